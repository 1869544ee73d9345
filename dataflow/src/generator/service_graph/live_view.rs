//! What is shown of a live service graph: nodes and edges with rates, errors and quantiles, and what changed between two of them.
//!
//! Durations are seconds, rates are per second, times are Unix milliseconds. A node's numbers are those of the edges that end at it, as in
//! Grafana. A quantile is read off the buckets of a histogram, as Prometheus' `histogram_quantile` does it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{
    live::{Durations, EdgeName, EdgeSums, UnpairedName},
    live_quantile::quantile,
};
use crate::generator::Weight;

/// A service graph over some time. Nodes and edges are ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Graph {
    /// Where the window begins: later than was asked for when no more is known.
    pub start_ms: u64,
    /// Where it ends: at the last commit.
    pub end_ms: u64,
    /// The services, and who they talk with.
    pub nodes: Vec<Node>,
    /// Who called whom.
    pub edges: Vec<Edge>,
    /// Halves of edges that found no partner.
    pub unpaired: Vec<UnpairedHalves>,
    /// Requests that are in no edge, because the tenant has as many series as it may have.
    pub overflow: f64,
}

/// A service, a database or somebody else.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name of the service.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: NodeKind,
    /// What came to it.
    #[serde(flatten)]
    pub totals: Totals,
    /// How long it took over that.
    pub latency: Latency,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeKind {
    /// Sends no spans: known because others talk with it.
    Virtual,
    /// A database, which sends no spans.
    Database,
    /// Sends spans.
    Service,
}

/// An arrow.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// Who calls.
    pub client: String,
    /// Who is called.
    pub server: String,
    /// As the label: empty, `messaging_system`, `database` or `virtual_node`.
    pub connection_type: String,
    /// How often.
    #[serde(flatten)]
    pub totals: Totals,
    /// How long the client saw it take.
    pub client_latency: Latency,
    /// How long the server took.
    pub server_latency: Latency,
    /// From the producer's end to the consumer's start, where that is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messaging_latency: Option<Latency>,
}

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// In the window.
    pub requests: f64,
    /// Of them with an error.
    pub failed: f64,
    /// Requests per second.
    pub rate: f64,
    /// Failed requests per second.
    pub failed_rate: f64,
}

/// Durations in seconds; absent where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// The mean.
    pub mean: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// Nine of ten are shorter.
    pub p90: Option<f64>,
    /// 95 of 100 are shorter.
    pub p95: Option<f64>,
    /// 99 of 100 are shorter.
    pub p99: Option<f64>,
}

/// Halves of edges that found no partner.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnpairedHalves {
    /// `client` or `server`.
    pub side: String,
    /// See [`Cause`](super::Cause).
    pub cause: String,
    /// How many in the window.
    pub halves: f64,
}

/// What makes one graph of another: nodes and edges that are new or different, and those that are gone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// As in the new graph.
    pub start_ms: u64,
    /// As in the new graph.
    pub end_ms: u64,
    /// New or different.
    pub nodes: Vec<Node>,
    /// New or different.
    pub edges: Vec<Edge>,
    /// Names of nodes that are gone.
    pub removed_nodes: Vec<String>,
    /// Edges that are gone.
    pub removed_edges: Vec<EdgeId>,
    /// As in the new graph.
    pub unpaired: Vec<UnpairedHalves>,
    /// As in the new graph.
    pub overflow: f64,
}

/// What tells an edge from the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeId {
    /// Who calls.
    pub client: String,
    /// Who is called.
    pub server: String,
    /// See [`Edge::connection_type`].
    pub connection_type: String,
}

impl Graph {
    /// Shows sums.
    pub(super) fn new(
        [from, until]: [Duration; 2],
        edges: HashMap<&EdgeName, EdgeSums>,
        unpaired: HashMap<&UnpairedName, Weight>,
        overflow: Weight,
    ) -> Self {
        let seconds = until.saturating_sub(from).as_secs_f64();
        let edges: BTreeMap<&EdgeName, EdgeSums> = edges.into_iter().collect();
        let mut nodes: BTreeMap<&Arc<str>, Incoming> = BTreeMap::new();
        for (name, sums) in &edges {
            let (client, server) = kinds(&name.connection_type, sums);
            let node = nodes.entry(&name.client).or_default();
            node.kind = node.kind.max(client);
            let node = nodes.entry(&name.server).or_default();
            node.kind = node.kind.max(server);
            node.requests.0 += sums.requests.0;
            node.failed.0 += sums.failed.0;
            // Of a server that sends no spans only the clients know.
            node.durations.add(if server == Some(NodeKind::Virtual) { &sums.client } else { &sums.server });
        }
        let node = |(name, node): (&Arc<str>, Incoming)| Node {
            name: name.to_string(),
            kind: node.kind.unwrap_or(NodeKind::Virtual),
            totals: Totals::new(node.requests, node.failed, seconds),
            latency: Latency::new(&node.durations),
        };
        let edge = |(name, sums): (&EdgeName, EdgeSums)| Edge {
            client: name.client.to_string(),
            server: name.server.to_string(),
            connection_type: name.connection_type.to_string(),
            totals: Totals::new(sums.requests, sums.failed, seconds),
            client_latency: Latency::new(&sums.client),
            server_latency: Latency::new(&sums.server),
            messaging_latency: sums.messaging.layout.is_some().then(|| Latency::new(&sums.messaging)),
        };
        let unpaired: BTreeMap<_, _> = unpaired.into_iter().collect();
        let unpaired = unpaired.into_iter().map(|((side, cause), halves)| UnpairedHalves {
            side: side.to_string(),
            cause: cause.to_string(),
            halves: halves.as_f64(),
        });
        Self {
            start_ms: milliseconds(from),
            end_ms: milliseconds(until),
            nodes: nodes.into_iter().map(node).collect(),
            unpaired: unpaired.collect(),
            edges: edges.into_iter().map(edge).collect(),
            overflow: overflow.as_f64(),
        }
    }

    /// What has changed since `before`; none if nothing has but the time.
    pub fn changes_since(&self, before: &Self) -> Option<Changes> {
        let (nodes, removed_nodes) = changes(&before.nodes, &self.nodes, |node| node.name.clone());
        let (edges, removed_edges) = changes(&before.edges, &self.edges, Edge::id);
        let same = nodes.is_empty() && removed_nodes.is_empty() && edges.is_empty() && removed_edges.is_empty();
        let same = same && self.unpaired == before.unpaired && self.overflow == before.overflow;
        (!same).then(|| Changes {
            start_ms: self.start_ms,
            end_ms: self.end_ms,
            nodes,
            edges,
            removed_nodes,
            removed_edges,
            unpaired: self.unpaired.clone(),
            overflow: self.overflow,
        })
    }
}

/// What is new or different in `after`, and the names of what is in `before` only.
fn changes<T: PartialEq + Clone, K: Ord>(before: &[T], after: &[T], name: impl Fn(&T) -> K) -> (Vec<T>, Vec<K>) {
    let mut gone: BTreeMap<K, &T> = before.iter().map(|item| (name(item), item)).collect();
    let changed = after.iter().filter(|item| gone.remove(&name(item)) != Some(*item)).cloned().collect();
    (changed, gone.into_keys().collect())
}

impl Edge {
    /// What tells it from the others.
    pub fn id(&self) -> EdgeId {
        EdgeId { client: self.client.clone(), server: self.server.clone(), connection_type: self.connection_type.clone() }
    }
}

/// What comes to a node.
#[derive(Default)]
struct Incoming {
    kind: Option<NodeKind>,
    requests: Weight,
    failed: Weight,
    durations: Durations,
}

/// What an edge says about its two ends.
fn kinds(connection_type: &str, sums: &EdgeSums) -> (Option<NodeKind>, Option<NodeKind>) {
    use NodeKind::{Database, Service, Virtual};
    let (client, server) = match connection_type {
        "database" => (Service, Database),
        // The side that did not come took no time.
        "virtual_node" if sums.client.agg.sum == 0 => (Virtual, Service),
        "virtual_node" => (Service, Virtual),
        _ => (Service, Service),
    };
    (Some(client), Some(server))
}

impl Totals {
    fn new(requests: Weight, failed: Weight, seconds: f64) -> Self {
        let (requests, failed) = (requests.as_f64(), failed.as_f64());
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        Self { requests, failed, rate: rate(requests), failed_rate: rate(failed) }
    }
}

impl Latency {
    fn new(durations: &Durations) -> Self {
        let of = |q| quantile(durations.layout.as_deref()?, &durations.agg, q);
        let count = durations.agg.count.as_f64();
        let mean = (count > 0.0).then(|| durations.agg.seconds() / count);
        Self { mean, p50: of(0.5), p90: of(0.9), p95: of(0.95), p99: of(0.99) }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
