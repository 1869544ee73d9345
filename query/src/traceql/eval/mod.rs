//! The reference: evaluation of a query on one trace at a time, for tests only.
//!
//! ```text
//! storage::block::Trace ──► TraceView ──► pipeline ──► groups of spans ──► TraceMatch
//!                           tree, root    stages       indices             values to show
//! ```
//!
//! The evaluator is the plain reading of the language: it looks at every span with every condition. What answers queries is `exec`, which must
//! agree with it.

mod aggregate;
mod condition;
mod operand;
mod output;
mod pipeline;
mod structural;
mod tree;
mod view;

pub(crate) use view::TraceView;

use super::{
    Query,
    error::ExecutionError,
    found::{EvaluateOptions, TraceMatch},
    shown::Shown,
};

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

mod language_tests;
pub(crate) mod reference;
mod structural_tests;
