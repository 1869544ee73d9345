//! Evaluation of a query on one trace at a time.
//!
//! ```text
//! storage::block::Trace ──► TraceView ──► pipeline ──► groups of spans ──► TraceMatch
//!                           tree, root    stages       indices             values to show
//! ```
//!
//! The evaluator is the plain reading of the language: it looks at every span with every condition. Nothing in a query relates two traces,
//! so callers may evaluate as many traces at a time as they like.

mod aggregate;
mod condition;
mod operand;
mod output;
mod pipeline;
mod structural;
mod tree;
mod view;

use std::collections::BTreeMap;

pub(super) use operand::{Operand, arithmetic, compare};
use storage::{block::Projection, id::TraceId};
pub use view::TraceView;

use super::shown::Shown;
use super::{
    Query,
    ast::{Expr, Field, LogicalOp, Node, Pipeline, SpansetExpr, Stage},
    error::ExecutionError,
    value::Value,
};
use condition::Subject;

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

/// Evaluates a query's pipeline on a trace.
pub(super) fn evaluate(query: &Query, trace: &TraceView<'_>, options: EvaluateOptions) -> Result<Option<TraceMatch>, ExecutionError> {
    let groups = pipeline::run(&query.pipeline, trace)?;
    if groups.is_empty() {
        return Ok(None);
    }
    let shown = Shown::of_query(query);
    Ok(Some(TraceMatch {
        trace_id: trace.id,
        root_service_name: trace.root_service_name().to_owned(),
        root_trace_name: trace.root_name().to_owned(),
        start_ns: trace.start_ns,
        duration_ms: trace.duration_ns() / 1_000_000,
        services: output::service_stats(trace),
        spansets: groups.into_iter().map(|group| shown.spanset(trace, group, options.spans_per_spanset)).collect(),
    }))
}

/// Which parts of traces a query looks at.
pub(super) fn projection(query: &Query) -> Projection {
    output::projection(Shown::of_query(query).fields())
}

/// The fields that a query refers to.
pub(super) fn fields(query: &Query) -> Vec<Field> {
    Shown::of_query(query).fields().iter().map(|&field| field.clone()).collect()
}

/// Whether all filters of a pipeline are constantly false.
pub(super) fn matches_nothing(pipeline: &Pipeline) -> bool {
    fn is_false(expr: &SpansetExpr) -> bool {
        match expr {
            SpansetExpr::Filter(Expr { node: Node::Literal(Value::Bool(value)), .. }) => !value,
            SpansetExpr::Filter(_) => false,
            SpansetExpr::Logical { operands, .. } => operands.iter().all(is_false),
            SpansetExpr::Structural { left, right, .. } => is_false(left) && is_false(right),
            SpansetExpr::Pipeline(pipeline) => matches_nothing(pipeline),
        }
    }
    pipeline.stages.iter().all(|stage| matches!(stage, Stage::Spansets(expr) if is_false(expr)))
}

/// A condition on spans, taken from the filter of a tag query.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    pub(super) condition: Expr,
}

/// As a query that [`crate::traceql::tag_filter`] reads as the same filter.
impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{ {} }}", self.condition)
    }
}

impl Filter {
    /// The condition.
    pub(crate) fn condition(&self) -> &Expr {
        &self.condition
    }

    /// Indices of the spans of a trace that satisfy the condition, in storage order. A condition that fails on a span does not hold for it.
    pub fn matching_spans(&self, trace: &TraceView<'_>) -> Vec<usize> {
        (0..trace.spans.len()).filter(|span| Subject::new(trace, *span).satisfies(&self.condition).unwrap_or(false)).collect()
    }

    /// How many alternatives the condition has when it is written as alternatives of conjunctions.
    pub fn condition_groups(&self) -> usize {
        alternatives(&self.condition)
    }

    /// Which parts of traces the condition looks at.
    pub fn projection(&self) -> Projection {
        let mut shown = Shown::default();
        shown.expr(&self.condition);
        output::projection(shown.fields())
    }
}

fn alternatives(condition: &Expr) -> usize {
    match &condition.node {
        Node::Logical { op: LogicalOp::Or, operands } => operands.iter().map(alternatives).fold(0, usize::saturating_add),
        Node::Logical { op: LogicalOp::And, operands } => operands.iter().map(alternatives).fold(1, usize::saturating_mul),
        _ => 1,
    }
}

#[cfg(test)]
mod language_tests;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod structural_tests;
