//! Service graphs: pairs the client's and the server's half of every request into an edge between two services.
//!
//! ```text
//!  first-seen spans      Reader                   Halves                          Edges                    Observe
//!  CLIENT, PRODUCER ──►  key = own span id  ──┐   waits for the other half ─pair─► one for each pair ─tick► traces_service_graph_…
//!  SERVER, CONSUMER ──►  key = parent id    ──┤   `wait` ticks, then alone ──────► virtual node, or unpaired (side, cause)
//!                        no parent            ├──────────────────────────────────► user → server
//!                        client of a database ┴──────────────────────────────────► client → database
//! ```
//!
//! The state of one tenant on the worker that owns the trace; plain, without timely. Both halves of a request have the same trace, so
//! they meet here. Time is ticks of arrival, so what pairs does not depend on when it is processed: two halves of one key pair if their
//! ticks are less than `wait` apart, in whatever order they come. What the collection gets is therefore the same for any number of
//! workers and after any recovery, and it differs from Tempo's where Tempo's depends on the order of arrival:
//!
//! * Every server of a client is an edge, not only the first: a message with three consumers, a request that was redirected or hedged.
//!   Tempo counts the others as expired.
//! * Of what both halves say (connection type, multiplier, a dimension without prefix), the server's counts, not that of whoever came last.
//! * Of a half whose other half filter policies reject, that is known, whichever comes first.
//! * A root span of a server is an edge from its virtual client at once: nobody can come.
//!
//! A checkpoint keeps what has found nobody, and the producers that have: of ten seconds' requests nearly all are done with, and writing
//! them each time would cost more than everything else. So there is one thing that a crash can cost: the further edges of a redirected
//! or hedged request of which one was counted before the checkpoint and the other comes after it. It is counted as unpaired.
//!
//! Invariants: a half is in the state, in an edge, or counted in `ServiceGraphUnpaired` with side and cause, and in one of them only.
//! After [`ServiceGraph::advance`], nothing but the halves is held, which is what [`ServiceGraph::snapshot`] gives.

mod edges;
mod halves;
mod intern;
pub mod live;
mod live_quantile;
#[cfg(test)]
mod live_tests;
pub mod live_view;
mod metrics;
mod read;
mod unpaired;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use storage::id::{Tenant, TraceId};

use self::{
    edges::{Connection, EdgeKey, Edges, Request},
    halves::{Halves, Inserted, Key},
    intern::{Names, Symbol},
    read::{Read, Reader, Then},
    unpaired::Unpaired,
};
pub use self::{halves::Side, metrics::Metrics, unpaired::Cause};
use super::{
    FirstSeen, Observe, Weight,
    filter::{Filter, FilterError},
    scan::{Keys, Look},
    settings::{Common, ServiceGraphs},
};
use crate::tick::Ticks;

/// The client of a server that nobody known has called.
const USER: &str = "user";

/// The halves of one tenant on one worker. See the module documentation.
#[derive(Debug)]
pub struct ServiceGraph {
    wait: u64,
    max_waiting: usize,
    messaging_latency: bool,
    filter: Filter,
    reader: Reader,
    names: Names,
    halves: Halves,
    edges: Edges,
    unpaired: Unpaired,
    counts: Counts,
}

/// What has happened since somebody asked, as Tempo counts it: see [`Metrics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Edges begun.
    pub edges: u64,
    /// Edges whose other half did not come in time and could not be guessed.
    pub expired_edges: u64,
    /// Spans that were refused because too many waited.
    pub dropped_spans: u64,
    /// Edges that were none because one of their halves was rejected.
    pub dropped_edges: u64,
    /// Spans that filter policies rejected.
    pub filtered_spans: u64,
}

impl ServiceGraph {
    /// Nothing waits yet. `workers` share the tenant's `max_items`; `keys` get those of the attributes that are wanted.
    ///
    /// # Errors
    /// Filter policies that make no sense.
    pub fn new(
        tenant: Tenant,
        settings: &ServiceGraphs,
        common: &Common,
        ticks: Ticks,
        workers: usize,
        keys: &mut Keys,
    ) -> Result<Self, FilterError> {
        Ok(Self {
            wait: ticks.spanning(settings.wait),
            max_waiting: settings.max_items.div_ceil(workers.max(1)),
            messaging_latency: settings.enable_messaging_system_latency_histogram,
            filter: Filter::new(&settings.filter_policies)?,
            reader: Reader::new(settings, keys),
            names: Names::new(),
            halves: Halves::default(),
            unpaired: Unpaired::new(tenant.clone()),
            edges: Edges::new(tenant, settings, common),
            counts: Counts::default(),
        })
    }

    /// Whose attributes are looked at, of spans of a kind.
    pub fn looks(&self, kind: i32) -> Look {
        read::side(kind).map_or(Look::Never, |(side, _)| self.reader.looks(side))
    }

    /// Takes in a span that arrived at `tick`. Spans come in the order of ticks; no span comes twice.
    pub fn push(&mut self, span: &FirstSeen<'_>, tick: u64) {
        let Some((side, messaging)) = read::side(span.kind) else { return };
        if span.service.is_empty() {
            self.unpaired.count(side, Cause::NoServiceName);
            return;
        }
        self.expire(tick);
        if !self.filter.accepts(span) {
            self.counts.filtered_spans += 1;
            let Read { half, then } = Read::bare(span, side, messaging, Symbol::NONE);
            if then == Then::Wait {
                self.wait_or_pair(halves::Half { filtered: true, ..half }, tick.saturating_add(self.wait));
            }
            return;
        }
        let Read { half, then } = self.reader.read(span, side, messaging, &mut self.names);
        match then {
            Then::Wait => self.wait_or_pair(half, tick.saturating_add(self.wait)),
            Then::Root => {
                self.counts.edges += 1;
                let client = if half.peer == Symbol::NONE { self.names.strings.intern(USER) } else { half.peer };
                self.edges.add(
                    EdgeKey {
                        client,
                        server: half.service,
                        client_dimensions: Symbol::NONE,
                        server_dimensions: half.dimensions,
                        connection: Connection::VirtualClient,
                    },
                    half.request(0, half.duration_ns),
                );
            }
            Then::Database(server) => {
                self.counts.edges += 1;
                self.edges.add(half.edge_to(server, Connection::Database), half.request(half.duration_ns, half.duration_ns));
            }
        }
    }

    fn wait_or_pair(&mut self, half: halves::Half, expires: u64) {
        let Self { edges, messaging_latency, counts, unpaired, .. } = self;
        let inserted = self.halves.insert(half, expires, self.max_waiting, |client, server| {
            if client.filtered {
                counts.dropped_edges += 1;
                unpaired.count(Side::Server, Cause::Filtered);
                return;
            }
            let (key, request) = join(client, server, *messaging_latency);
            edges.add(key, request);
        });
        match inserted {
            // Nobody asks what becomes of it.
            _ if half.filtered => {}
            Inserted::Waits | Inserted::Further => self.counts.edges += 1,
            Inserted::Completed | Inserted::Rejected => {}
            Inserted::Refused => {
                self.counts.dropped_spans += 1;
                self.unpaired.count(half.side, Cause::MaxItems);
            }
            Inserted::Duplicate => self.unpaired.count(half.side, Cause::DuplicateId),
        }
    }

    /// All spans up to and including `tick` have been pushed: what is due is given up, and what has come is handed out.
    pub fn advance(&mut self, tick: u64, observe: &mut impl Observe) {
        self.expire(tick.saturating_add(1));
        self.edges.flush(&self.names, observe);
        self.unpaired.flush(observe);
        if self.names.is_sweep_due() {
            self.edges.clear();
            self.names.sweep(self.halves.iter().map(|(half, ..)| (half.service, half.peer, half.dimensions)));
        }
    }

    /// Gives up the halves that nobody of `tick` or later can pair with.
    fn expire(&mut self, tick: u64) {
        let Self { halves, edges, unpaired, counts, .. } = self;
        halves.expire(tick, |half| {
            if half.filtered {
                return;
            }
            if half.partner_filtered {
                counts.dropped_edges += 1;
                unpaired.count(half.side, Cause::Filtered);
            } else if half.side == Side::Client && half.peer != Symbol::NONE {
                edges.add(half.edge_to(half.peer, Connection::VirtualServer), half.request(half.duration_ns, 0));
            } else {
                counts.expired_edges += 1;
                unpaired.count(half.side, Cause::NoPartner);
            }
        });
    }

    /// What waits, and what may get further edges after a crash, too: for a checkpoint as of the tick of the last [`Self::advance`].
    pub fn snapshot(&self) -> Vec<Half> {
        let text = |symbol| self.names.strings.get(symbol).map(Arc::clone);
        let record = |(half, expires, paired): (&halves::Half, u64, bool)| Half {
            trace_id: half.key.trace_id,
            span_id: half.key.span_id,
            side: half.side,
            messaging: half.messaging,
            failed: half.failed,
            paired,
            filtered: half.filtered,
            partner_filtered: half.partner_filtered,
            expires,
            duration_ns: half.duration_ns,
            time_ns: half.time_ns,
            weight: half.weight,
            service: text(half.service).unwrap_or_default(),
            peer: text(half.peer),
            dimensions: self
                .names
                .dimensions
                .get(half.dimensions)
                .into_iter()
                .flat_map(|labels| labels.iter())
                .map(|(name, value)| (text(*name).unwrap_or_default(), text(*value).unwrap_or_default()))
                .collect(),
        };
        self.halves.iter().filter(|(half, _, paired)| !paired || half.messaging).map(record).collect()
    }

    /// Takes in what waited when the checkpoint was made, on whatever worker.
    pub fn restore(&mut self, halves: impl IntoIterator<Item = Half>) {
        for half in halves {
            let Names { strings, dimensions } = &mut self.names;
            let labels: Vec<_> = half.dimensions.iter().map(|(name, value)| (strings.intern(name), strings.intern(value))).collect();
            let kept = halves::Half {
                key: Key { trace_id: half.trace_id, span_id: half.span_id },
                duration_ns: half.duration_ns,
                time_ns: half.time_ns,
                weight: half.weight,
                service: strings.intern(&half.service),
                peer: half.peer.map_or(Symbol::NONE, |peer| strings.intern(&peer)),
                dimensions: if labels.is_empty() { Symbol::NONE } else { dimensions.intern(&labels) },
                side: half.side,
                messaging: half.messaging,
                failed: half.failed,
                filtered: half.filtered,
                partner_filtered: half.partner_filtered,
            };
            self.halves.restore(kept, half.expires, half.paired);
        }
    }

    /// How many halves wait for the other.
    pub fn waiting(&self) -> usize {
        self.halves.waiting()
    }

    /// What has happened since this was last called.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}

/// Two halves as a request along an edge.
fn join(client: &halves::Half, server: &halves::Half, messaging_latency: bool) -> (EdgeKey, Request) {
    let key = EdgeKey {
        client: client.service,
        server: server.service,
        client_dimensions: client.dimensions,
        server_dimensions: server.dimensions,
        connection: if server.messaging { Connection::Messaging } else { Connection::Request },
    };
    // Where clocks disagree the consumer has begun before the producer ended: nothing can be said then.
    let latency = server.time_ns.checked_sub(client.time_ns).filter(|latency| *latency > 0);
    let request = Request {
        trace_id: client.key.trace_id,
        weight: server.weight,
        failed: client.failed || server.failed,
        client_ns: client.duration_ns,
        server_ns: server.duration_ns,
        messaging_ns: latency.filter(|_| messaging_latency && server.messaging),
        at: server.time_ns.saturating_add(server.duration_ns).max(client.time_ns),
    };
    (key, request)
}

impl halves::Half {
    /// The edge from this client to a server that sends no spans.
    fn edge_to(&self, server: Symbol, connection: Connection) -> EdgeKey {
        EdgeKey { client: self.service, server, client_dimensions: self.dimensions, server_dimensions: Symbol::NONE, connection }
    }

    /// A request of which there is this half only.
    fn request(&self, client_ns: u64, server_ns: u64) -> Request {
        let at = if self.side == Side::Client { self.time_ns } else { self.time_ns.saturating_add(self.duration_ns) };
        Request { trace_id: self.key.trace_id, weight: self.weight, failed: self.failed, client_ns, server_ns, messaging_ns: None, at }
    }
}

/// What a checkpoint keeps of a half. It is written in a form without names: no field may ever be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// The trace that it belongs to; its owner keeps the half.
    pub trace_id: TraceId,
    /// Id of the client's span.
    pub span_id: u64,
    /// Which half.
    pub side: Side,
    /// Whether it is of a message.
    pub messaging: bool,
    /// Whether its span has the status error.
    pub failed: bool,
    /// Whether it has found the other half; then it waits only for further ones.
    pub paired: bool,
    /// Whether filter policies reject it.
    pub filtered: bool,
    /// Whether it was answered by a half that filter policies reject.
    pub partner_filtered: bool,
    /// The first tick that is too late.
    pub expires: u64,
    /// Duration of its span.
    pub duration_ns: u64,
    /// The client's end or the server's start, Unix nanoseconds.
    pub time_ns: u64,
    /// How many spans its span stands for.
    pub weight: Weight,
    /// Its service.
    pub service: Arc<str>,
    /// The other side's name if nobody comes.
    pub peer: Option<Arc<str>>,
    /// Labels that it adds.
    pub dimensions: Vec<(Arc<str>, Arc<str>)>,
}
