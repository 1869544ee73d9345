//! What is true of the synthetic spans: counted from what was generated, not from what was encoded.

use std::{collections::BTreeMap, ops::Range};

use serde::{Serialize, Serializer};

use super::catalog::{SERVICES, TOPICS};
use crate::id::{SpanKey, TraceId};

/// What stands between the two ends of an [`Edge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// A client's span and a server's.
    Request,
    /// A producer's span and a consumer's.
    Messaging,
    /// A client's span and a database that sends no spans.
    Database,
}

/// An arrow of the service graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Edge {
    /// `service.name` of the client or producer.
    pub client: &'static str,
    /// `service.name` of the server or consumer; `db.system.name` of a database.
    pub server: &'static str,
    /// What stands between them.
    pub connection: Connection,
}

/// How often an [`Edge`] was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EdgeTotals {
    /// Requests, messages or statements.
    pub requests: u64,
    /// Those of them of which a span has the status error.
    pub failed: u64,
}

/// What is true of one span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanTruth {
    /// Its identity inside the trace.
    pub key: SpanKey,
    /// Its name.
    pub name: &'static str,
    /// Its `service.name`.
    pub service: &'static str,
    /// Whether its status is error.
    pub error: bool,
    /// The arrow that ends with this span: set on a server's, a consumer's, and on the client's span of a database.
    pub edge: Option<Edge>,
    /// Whether a span of that arrow has the status error.
    pub edge_failed: bool,
}

/// What is true of one trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub trace_id: TraceId,
    /// Start of its earliest span, Unix nanoseconds.
    pub start_ns: u64,
    /// End of its latest span, Unix nanoseconds.
    pub end_ns: u64,
    /// `service.name` of its root span.
    pub root_service: &'static str,
    /// Name of its root span.
    pub root_name: &'static str,
    /// Its spans, in the order in which they are sent.
    pub spans: Vec<SpanTruth>,
}

impl Summary {
    /// Spans with status error.
    pub fn errors(&self) -> u64 {
        self.spans.iter().filter(|span| span.error).count() as u64
    }
}

/// Sums over spans. Its size is bounded by the catalogue of services and names, not by the number of spans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Whole traces added.
    pub traces: u64,
    /// Spans.
    pub spans: u64,
    /// Spans with status error.
    pub errors: u64,
    /// Spans by `service.name`.
    pub services: BTreeMap<&'static str, u64>,
    /// Spans by name.
    pub names: BTreeMap<&'static str, u64>,
    /// Arrows of the service graph. Only of whole traces: half an arrow is none.
    #[serde(serialize_with = "edge_list")]
    pub edges: BTreeMap<Edge, EdgeTotals>,
}

impl Totals {
    /// Adds a whole trace.
    pub fn add_trace(&mut self, trace: &Summary) {
        self.add_spans(trace, 0..trace.spans.len());
        self.complete_trace(trace);
    }

    /// Adds the spans of a trace that lie in `range`, without its edges.
    ///
    /// # Panics
    /// A range that the trace does not have.
    pub fn add_spans(&mut self, trace: &Summary, range: Range<usize>) {
        for span in &trace.spans[range] {
            self.spans += 1;
            self.errors += u64::from(span.error);
            *self.services.entry(span.service).or_default() += 1;
            *self.names.entry(span.name).or_default() += 1;
        }
    }

    /// Counts a trace all spans of which were added by [`Self::add_spans`], and its edges.
    pub fn complete_trace(&mut self, trace: &Summary) {
        self.traces += 1;
        for span in &trace.spans {
            if let Some(edge) = span.edge {
                let totals = self.edges.entry(edge).or_default();
                totals.requests += 1;
                totals.failed += u64::from(span.edge_failed);
            }
        }
    }
}

fn edge_list<S: Serializer>(edges: &BTreeMap<Edge, EdgeTotals>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(flatten)]
        edge: &'a Edge,
        #[serde(flatten)]
        totals: &'a EdgeTotals,
    }
    serializer.collect_seq(edges.iter().map(|(edge, totals)| Entry { edge, totals }))
}

/// The `service.name`s that can occur.
pub fn services() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|service| service.name)
}

/// The span names that can occur, some of them more than once.
pub fn span_names() -> impl Iterator<Item = &'static str> {
    let of_services = SERVICES.iter().flat_map(|service| {
        let operations = service.operations.iter().map(|operation| operation.name);
        let statements = service.statements.iter().map(|statement| statement.name);
        operations.chain(statements).chain(service.internal.iter().copied())
    });
    of_services.chain(TOPICS.iter().flat_map(|topic| [topic.publish, topic.process]))
}
