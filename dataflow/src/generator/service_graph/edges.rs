//! Edges of one tick, summed up before anybody else sees them.
//!
//! A busy service graph has hundreds of edges and thousands of requests in a tick. Each request adds to one [`Edge`], found by numbers;
//! the series that the edge stands for, with labels and buckets, are looked up only when the tick is over, once for each edge that
//! changed. They are kept from tick to tick, until the names that they are made of are swept.

use std::{collections::HashMap, mem, sync::Arc};

use differential_dataflow::difference::IsZero;
use foldhash::fast::RandomState;
use storage::id::{Tenant, TraceId};

use super::intern::{Names, Symbol};
use crate::generator::{
    Agg, Definition, Exemplar, Family, Labels, Layout, Observe, Parts, Series, Weight,
    histogram::Bucketer,
    settings::{Common, ServiceGraphs},
    span_metrics::shorten,
};

/// `connection_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Connection {
    /// A client and a server that both send spans.
    Request,
    /// A producer and a consumer.
    Messaging,
    /// The server is a database.
    Database,
    /// The client is not known.
    VirtualClient,
    /// The server sends no spans.
    VirtualServer,
}

impl Connection {
    fn label(self) -> &'static str {
        match self {
            Self::Request => "",
            Self::Messaging => "messaging_system",
            Self::Database => "database",
            Self::VirtualClient | Self::VirtualServer => "virtual_node",
        }
    }

    /// The label `virtual_node`.
    fn virtual_node(self) -> &'static str {
        match self {
            Self::VirtualClient => "client",
            Self::VirtualServer => "server",
            Self::Request | Self::Messaging | Self::Database => "",
        }
    }
}

/// Which edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EdgeKey {
    pub(super) client: Symbol,
    pub(super) server: Symbol,
    /// What the client's half adds to the labels; the server's half comes after it and counts where both say something.
    pub(super) client_dimensions: Symbol,
    pub(super) server_dimensions: Symbol,
    pub(super) connection: Connection,
}

/// One request along an edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) trace_id: TraceId,
    pub(super) weight: Weight,
    pub(super) failed: bool,
    /// Nanoseconds; 0 for a side that did not come.
    pub(super) client_ns: u64,
    pub(super) server_ns: u64,
    /// From the producer's end to the consumer's start, nanoseconds.
    pub(super) messaging_ns: Option<u64>,
    /// When it ended, or nearly so: Unix nanoseconds.
    pub(super) at: u64,
}

/// Edges kept from tick to tick, of about 2 KiB each with their series. When there are more, all are made anew.
const MAX_KEPT: usize = 20_000;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Edges {
    tenant: Tenant,
    bucketer: Bucketer,
    counter: Arc<Layout>,
    common: Common,
    virtual_node_label: bool,
    label_names: LabelNames,
    numbers: HashMap<EdgeKey, usize, RandomState>,
    edges: Vec<Edge>,
    /// The edges that have changed in this tick.
    changed: Vec<usize>,
}

#[derive(Debug)]
struct Edge {
    key: EdgeKey,
    requests: Sum,
    failed: Sum,
    client: Sum,
    server: Sum,
    messaging: Sum,
    /// The last request of this tick, if any.
    latest: Option<Request>,
}

/// What has come to a series in this tick, and the series once it is needed.
#[derive(Debug, Default)]
struct Sum {
    agg: Agg,
    series: Option<Series>,
}

#[derive(Debug)]
struct LabelNames {
    client: Arc<str>,
    server: Arc<str>,
    connection_type: Arc<str>,
    virtual_node: Arc<str>,
}

impl Edges {
    /// No edges yet.
    pub(super) fn new(tenant: Tenant, settings: &ServiceGraphs, common: &Common) -> Self {
        Self {
            tenant,
            bucketer: Bucketer::new(&settings.buckets, Parts::ALL, common),
            counter: Arc::new(Layout::COUNTER),
            common: common.clone(),
            virtual_node_label: settings.enable_virtual_node_label,
            label_names: LabelNames {
                client: Arc::from("client"),
                server: Arc::from("server"),
                connection_type: Arc::from("connection_type"),
                virtual_node: Arc::from("virtual_node"),
            },
            numbers: HashMap::default(),
            edges: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Adds a request.
    pub(super) fn add(&mut self, key: EdgeKey, request: Request) {
        let Self { bucketer, numbers, edges, changed, .. } = self;
        let number = *numbers.entry(key).or_insert_with(|| {
            edges.push(Edge::new(key));
            edges.len() - 1
        });
        let edge = &mut edges[number];
        let add = |sum: &mut Weight| sum.0 = sum.0.wrapping_add(request.weight.0);
        add(&mut edge.requests.agg.count);
        if request.failed {
            add(&mut edge.failed.agg.count);
        }
        bucketer.observe(&mut edge.client.agg, request.client_ns, request.weight);
        bucketer.observe(&mut edge.server.agg, request.server_ns, request.weight);
        if let Some(nanoseconds) = request.messaging_ns {
            bucketer.observe(&mut edge.messaging.agg, nanoseconds, request.weight);
        }
        if edge.latest.replace(request).is_none() {
            changed.push(number);
        }
    }

    /// The tick is over: hands out what has come.
    pub(super) fn flush(&mut self, names: &Names, observe: &mut impl Observe) {
        let mut changed = mem::take(&mut self.changed);
        for number in changed.drain(..) {
            let Some(mut edge) = self.edges.get_mut(number).map(Edge::take) else { continue };
            let Some(latest) = edge.latest.take() else { continue };
            let histogram = self.bucketer.layout();
            let mut labels = None;
            let mut give = |sum: &mut Sum, family: Family, layout: &Arc<Layout>, nanoseconds: Option<u64>| {
                let agg = mem::take(&mut sum.agg);
                if agg.is_zero() {
                    return;
                }
                let series = sum.series.get_or_insert_with(|| {
                    let labels = labels.get_or_insert_with(|| self.labels(&edge.key, names)).clone();
                    Series::new(Definition { tenant: self.tenant.clone(), family, labels, layout: Arc::clone(layout) })
                });
                observe.observe(series, &agg);
                if let Some(nanoseconds) = nanoseconds {
                    let bucket = self.bucketer.exemplar_bucket(nanoseconds);
                    observe.exemplar(series, Exemplar { bucket, trace_id: latest.trace_id, nanoseconds, at: latest.at });
                }
            };
            give(&mut edge.requests, Family::ServiceGraphRequests, &self.counter, None);
            give(&mut edge.failed, Family::ServiceGraphFailed, &self.counter, None);
            give(&mut edge.client, Family::ServiceGraphClient, histogram, Some(latest.client_ns));
            give(&mut edge.server, Family::ServiceGraphServer, histogram, Some(latest.server_ns));
            give(&mut edge.messaging, Family::ServiceGraphMessaging, histogram, latest.messaging_ns);
            self.edges[number] = edge;
        }
        self.changed = changed;
        if self.edges.len() > MAX_KEPT {
            self.clear();
        }
    }

    /// Forgets all edges; for when their symbols lose their meaning. Only after [`Self::flush`].
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
        self.edges.clear();
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    /// Labels of one edge.
    fn labels(&self, key: &EdgeKey, names: &Names) -> Labels {
        let value =
            |symbol| names.strings.get(symbol).map_or_else(|| Arc::from(""), |value| limited(value, self.common.max_label_value_length));
        let mut pairs = Vec::with_capacity(8);
        for dimensions in [key.client_dimensions, key.server_dimensions] {
            for (label, text) in names.dimensions.get(dimensions).into_iter().flat_map(|pairs| pairs.iter()) {
                let Some(label) = names.strings.get(*label) else { continue };
                pairs.push((limited(label, self.common.max_label_name_length), value(*text)));
            }
        }
        let LabelNames { client, server, connection_type, virtual_node } = &self.label_names;
        pairs.push((Arc::clone(client), value(key.client)));
        pairs.push((Arc::clone(server), value(key.server)));
        pairs.push((Arc::clone(connection_type), Arc::from(key.connection.label())));
        if self.virtual_node_label {
            pairs.push((Arc::clone(virtual_node), Arc::from(key.connection.virtual_node())));
        }
        Labels::new(pairs)
    }
}

impl Edge {
    fn new(key: EdgeKey) -> Self {
        Self {
            key,
            requests: Sum::default(),
            failed: Sum::default(),
            client: Sum::default(),
            server: Sum::default(),
            messaging: Sum::default(),
            latest: None,
        }
    }

    /// Takes it out for a moment.
    fn take(&mut self) -> Self {
        mem::replace(self, Self::new(self.key))
    }
}

/// At most so many bytes of a text, cut between characters; 0 is no limit.
fn limited(text: &Arc<str>, bytes: usize) -> Arc<str> {
    let short = shorten(text, bytes);
    if short.len() == text.len() { Arc::clone(text) } else { Arc::from(short) }
}
