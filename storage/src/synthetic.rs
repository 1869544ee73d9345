//! Synthetic traces: one realistic, seeded data set for `rubato load`, the benches and the property tests.
//!
//! A made-up shop of fourteen services answers requests. A trace is a tree of calls: a client's and a server's span for every request
//! between services, a producer's and a consumer's for every message, a client's for every database statement, and internal spans.
//! Names and values are skewed as in real life (a few operations and users make most of the traffic), times nest as the calls do,
//! one trace in eight has an error that usually travels up with its exception, and resources carry what a Kubernetes cluster adds.
//!
//! ```text
//!  seed ──► Tree (who called whom, when) ──► span bytes ──► Trace (+ Summary: what is true of it)
//!                                                             │
//!                                      Requests ◄─────────────┘  n spans each, of many traces, grouped by resource
//!                                         └──► Request (body, + which spans of which traces)
//! ```
//!
//! Invariants: the same [`Settings`] give the same bytes, on every machine (no floating-point functions, no clock). What
//! [`Summary`] and [`Totals`] say is counted from the tree and not from the bytes, so that a decoder can be checked against it.
//! Memory does not grow with the number of traces. Trace ids and span ids are random, as the W3C asks for, and never zero.
//!
//! With the default settings a trace has 25 spans on average and a span takes about 407 bytes of OTLP, its share of the resource
//! included.

mod catalog;
mod request;
mod span;
mod tree;
mod truth;
mod wire;

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::ResourceSpans};
use prost::Message as _;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

use self::{
    catalog::SERVICES,
    span::SCOPES,
    tree::{Dice, Tree},
};
pub use self::{
    request::{Part, Request, Requests},
    truth::{Connection, Edge, EdgeTotals, SpanTruth, Summary, Totals, services, span_names},
};
use crate::id::{SpanKey, TraceId};

/// What is generated. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The same seed gives the same traces.
    pub seed: u64,
    /// When the root span of the first trace ends, Unix nanoseconds.
    pub base_time_ns: u64,
    /// Time between the traces.
    pub trace_interval_ns: u64,
    /// Mean number of spans of a trace; a trace has between about a fifth and five times as many.
    pub spans_per_trace: usize,
    /// Number of spans of a request; only the last has fewer.
    pub spans_per_request: usize,
    /// Percentage of traces whose spans arrive in two or three requests.
    pub split_traces_percent: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            base_time_ns: 1_790_000_000_000_000_000,
            // 400 traces, 10,000 spans a second.
            trace_interval_ns: 2_500_000,
            spans_per_trace: 25,
            spans_per_request: 1000,
            split_traces_percent: 40,
        }
    }
}

/// One generated trace: its spans as bytes, and what is true of them.
#[derive(Debug)]
pub struct Trace {
    summary: Arc<Summary>,
    /// The contents of the `Span` messages, one after the other.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
    /// Resource and scope of each.
    groups: Vec<u16>,
    /// Where the parts that are sent apart end.
    part_ends: Vec<u32>,
    resource_spans: Vec<ResourceSpans>,
}

impl Trace {
    /// What is true of it.
    pub fn summary(&self) -> &Arc<Summary> {
        &self.summary
    }

    /// The spans, grouped by resource and scope. Only of traces from the iterator.
    pub fn resource_spans(&self) -> &[ResourceSpans] {
        &self.resource_spans
    }

    fn span_bytes(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..self.ends[index] as usize]
    }

    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.part_ends.iter().copied());
        starts.zip(&self.part_ends).map(|(start, end)| start as usize..*end as usize)
    }
}

/// Makes traces, one after the other, without end.
#[derive(Debug)]
pub struct Generator {
    settings: Settings,
    dice: Dice,
    time_ns: u64,
    tree: Tree,
    scratch: String,
    /// Contents of the `Resource` messages, pod by pod.
    resources: Vec<Vec<u8>>,
    /// Contents of the `InstrumentationScope` messages, [`SCOPES`] for each resource.
    scopes: Vec<Vec<u8>>,
    /// Number of the first resource of each service.
    first_resource: Vec<usize>,
}

impl Generator {
    /// Begins with the first trace.
    pub fn new(settings: Settings) -> Self {
        let mut resources = Vec::new();
        let mut scopes = Vec::new();
        let mut first_resource = Vec::new();
        for (number, service) in SERVICES.iter().enumerate() {
            first_resource.push(resources.len());
            for pod in 0..usize::from(service.pods) {
                resources.push(span::resource(number, pod));
                scopes.extend((0..SCOPES).map(|scope| span::scope(number, scope)));
            }
        }
        Self {
            dice: Dice(ChaCha8Rng::seed_from_u64(settings.seed)),
            time_ns: settings.base_time_ns,
            settings,
            tree: Tree::default(),
            scratch: String::new(),
            resources,
            scopes,
            first_resource,
        }
    }

    /// Sets when the root span of the next trace ends, Unix nanoseconds; the traces after it follow at the interval of the settings.
    pub fn set_time(&mut self, time_ns: u64) {
        self.time_ns = time_ns;
    }

    fn trace(&mut self) -> Trace {
        let mean = self.settings.spans_per_trace.max(1);
        // Four classes of size whose weighted mean is the mean asked for: 0.4·0.3 + 0.3·0.7 + 0.2·1.5 + 0.1·3.7 = 1.
        let tenths = [3, 3, 3, 3, 7, 7, 7, 15, 15, 37][self.dice.below(10)];
        let centre = (mean * tenths).div_ceil(10);
        let spread = centre / 3;
        let spans = (centre - spread + self.dice.below(2 * spread + 1)).max(1);
        self.trace_of(spans)
    }

    fn trace_of(&mut self, spans: usize) -> Trace {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.dice.next().to_be_bytes());
        id[8..].copy_from_slice(&self.dice.next().max(1).to_be_bytes());
        let trace_id = TraceId(id);
        let Self { tree, dice, scratch, settings, .. } = self;
        tree.grow(dice, spans, self.time_ns);
        self.time_ns += settings.trace_interval_ns;

        let count = tree.nodes.len();
        let parts = if dice.below(100) < usize::from(settings.split_traces_percent) { 2 + dice.below(2) } else { 1 };
        // Spans are sent by the process that made them: what is split is the set of services.
        let mut order: Vec<(u8, u32)> = (0..count as u32)
            .map(|index| {
                let node = &tree.nodes[index as usize];
                (((usize::from(node.service) * 7 + usize::from(node.pod)) % parts) as u8, index)
            })
            .collect();
        order.sort_unstable();

        let mut trace = Trace {
            summary: Arc::new(Summary {
                trace_id,
                start_ns: tree.nodes.iter().map(|node| node.start_ns).min().unwrap_or_default(),
                end_ns: tree.nodes.iter().map(|node| node.end_ns).max().unwrap_or_default(),
                root_service: SERVICES[usize::from(tree.nodes[0].service)].name,
                root_name: tree.nodes[0].name(),
                spans: order
                    .iter()
                    .map(|(_, index)| {
                        let node = &tree.nodes[*index as usize];
                        let edge = tree.edge(node);
                        SpanTruth {
                            key: SpanKey { span_id: node.id, kind: node.kind() },
                            name: node.name(),
                            service: SERVICES[usize::from(node.service)].name,
                            error: node.error,
                            edge: edge.map(|(edge, _)| edge),
                            edge_failed: edge.is_some_and(|(_, failed)| failed),
                        }
                    })
                    .collect(),
            }),
            bytes: Vec::with_capacity(count * 420),
            ends: Vec::with_capacity(count),
            groups: Vec::with_capacity(count),
            part_ends: Vec::with_capacity(parts),
            resource_spans: Vec::new(),
        };
        for (position, (part, index)) in order.iter().enumerate() {
            let node = &tree.nodes[*index as usize];
            span::encode(&mut trace.bytes, scratch, dice, trace_id, tree, *index as usize);
            trace.ends.push(trace.bytes.len() as u32);
            let resource = self.first_resource[usize::from(node.service)] + usize::from(node.pod);
            trace.groups.push((resource * SCOPES + span::scope_of(node.step)) as u16);
            if order.get(position + 1).is_none_or(|(next, _)| next != part) {
                trace.part_ends.push(position as u32 + 1);
            }
        }
        trace
    }

    fn with_resource_spans(&self, mut trace: Trace) -> Trace {
        let whole = 0..trace.ends.len();
        let body = request::assemble(self, std::iter::once((&trace, whole)));
        let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("the generator writes what prost reads");
        trace.resource_spans = request.resource_spans;
        trace
    }

    /// A trace of exactly `spans` spans (at least one), for tests of extremes.
    pub fn trace_with_spans(&mut self, spans: usize) -> Trace {
        let trace = self.trace_of(spans.max(1));
        self.with_resource_spans(trace)
    }
}

impl Iterator for Generator {
    type Item = Trace;

    /// Never `None`.
    fn next(&mut self) -> Option<Trace> {
        let trace = self.trace();
        Some(self.with_resource_spans(trace))
    }
}

/// The first `traces` traces of a seed as encoded `ExportTraceServiceRequest`s, with the default settings.
pub fn requests(seed: u64, traces: usize) -> Vec<Bytes> {
    requests_with(Settings { seed, ..Settings::default() }, traces).0
}

/// As [`requests`], with other settings, and what is true of all of it.
pub fn requests_with(settings: Settings, traces: usize) -> (Vec<Bytes>, Totals) {
    let mut totals = Totals::default();
    let mut bodies = Vec::new();
    for request in Requests::new(settings, Some(traces)) {
        for part in &request.parts {
            totals.add_spans(&part.trace, part.spans.clone());
            // One part holds the trace's last span: so each trace is counted once.
            if part.spans.end == part.trace.spans.len() {
                totals.complete_trace(&part.trace);
            }
        }
        bodies.push(request.body);
    }
    (bodies, totals)
}

#[cfg(test)]
mod tests;
