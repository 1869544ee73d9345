//! What a search finds: traces, their spansets, and the spans that are shown of those.

use std::collections::BTreeMap;

use storage::id::TraceId;

use super::value::Value;

/// How results are shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluateOptions {
    /// Most spans returned per spanset (`spss`); `matched` still counts all.
    pub spans_per_spanset: usize,
}

/// What a query found in one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceMatch {
    /// The trace.
    pub trace_id: TraceId,
    /// `service.name` of the root span; empty when there is no root.
    pub root_service_name: String,
    /// Name of the root span; empty when there is no root.
    pub root_trace_name: String,
    /// Start of the earliest span, Unix nanoseconds.
    pub start_ns: u64,
    /// Latest end minus earliest start over all spans, in whole milliseconds.
    pub duration_ms: u64,
    /// Spans and errors per `service.name`, over the whole trace.
    pub services: BTreeMap<String, ServiceStats>,
    /// What the pipeline left; never empty.
    pub spansets: Vec<Spanset>,
}

/// Counts of one service in a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Spans.
    pub spans: u32,
    /// Spans with status error.
    pub errors: u32,
}

/// One spanset of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanset {
    /// Number of spans before truncation.
    pub matched: usize,
    /// Values of `by(…)` and of aggregates, keyed by canonical text, in order of the stages.
    pub attributes: Vec<(String, Value)>,
    /// At most [`EvaluateOptions::spans_per_spanset`] spans, in storage order.
    pub spans: Vec<SpanMatch>,
}

/// One span of a spanset.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanMatch {
    /// The eight bytes of the span id, big-endian.
    pub span_id: u64,
    /// Name, when the query refers to it.
    pub name: Option<String>,
    /// Start, Unix nanoseconds.
    pub start_ns: u64,
    /// End minus start.
    pub duration_ns: u64,
    /// The other fields that the query refers to, as far as the span has them.
    pub attributes: Vec<(String, Value)>,
}
