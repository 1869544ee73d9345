//! TraceQL, the query language: text to tree to answer.
//!
//! ```text
//! text ──► lexer ──► parser ──► types ──► Query ──► eval ──► TraceMatch
//!                    (fold)                │
//!                                          └─► print: canonical text
//! ```
//!
//! A query is parsed once, by [`parse`], which also folds constants and validates; what comes out is legal. It is then evaluated on one
//! trace at a time, wherever the trace comes from: [`TraceView::new`] prepares a trace, [`Query::evaluate`] answers. Nothing here does IO,
//! and nothing in a query relates two traces.
//!
//! The text of a query is untrusted: trees are bounded in depth and regular expressions in size, so that neither parsing nor evaluation can
//! exhaust stack or memory. Callers bound the length of the text ([`DEFAULT_MAX_QUERY_BYTES`]).
//!
//! ```
//! use query::traceql;
//!
//! let query = traceql::parse("{ resource.service.name = \"cart\" && duration > 500ms } | count() > 2").expect("a legal query");
//! assert_eq!(query.to_string(), "{ (resource.service.name = `cart`) && (duration > 500ms) }|(count()) > 2");
//!
//! let error = traceql::parse("{ .a == 1 }").expect_err("there is no such operator");
//! assert_eq!(error.class, traceql::ErrorClass::Parse);
//! assert_eq!((error.at.line, error.at.column), (1, 7));
//! ```

pub(crate) mod ast;
mod error;
mod eval;
mod fold;
mod lenient;
mod lexer;
mod number;
mod parser;
pub(crate) mod pattern;
mod print;
pub(crate) mod shown;
pub(crate) mod types;
mod value;

pub use ast::{BinaryOp, Expr, Field, Hint, Intrinsic, Located, Metrics, MetricsFunction, Pipeline, Position, Scope, SecondStage, Stage};
pub use error::{Error, ErrorClass, ExecutionError};
pub use eval::{EvaluateOptions, Filter, ServiceStats, SpanMatch, Spanset, TraceMatch, TraceView};
pub use value::{Kind, Status, Type, Value};

use storage::block::Projection;

/// Longest query that callers should hand to [`parse`], in bytes, unless configured otherwise.
pub const DEFAULT_MAX_QUERY_BYTES: usize = 131_072;

/// A query that was parsed and found valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pipeline: Pipeline,
    metrics: Option<Metrics>,
    hints: Vec<Hint>,
}

/// Parses and validates a query.
///
/// # Errors
/// The first thing wrong with it.
pub fn parse(query: &str) -> Result<Query, Error> {
    parser::parse(query)
}

/// Reads the `q` parameter of the tag endpoints: the condition of its first stage; `None` when there is nothing to filter by.
pub fn tag_filter(query: &str) -> Option<Filter> {
    lenient::tag_filter(query)
}

impl Query {
    /// Evaluates the pipeline on one trace; a metrics function is left out. `None` when the trace is not a result.
    ///
    /// # Errors
    /// The query fails on this trace and therefore as a whole.
    pub fn evaluate(&self, trace: &TraceView<'_>, options: EvaluateOptions) -> Result<Option<TraceMatch>, ExecutionError> {
        eval::evaluate(self, trace, options)
    }

    /// Which parts of traces must be decoded to evaluate the query and to show its results.
    ///
    /// One thing may differ on a trace without its links: the name of a trace with several roots, one of which the OpenTracing bridge
    /// has marked as a child by a link.
    pub fn projection(&self) -> Projection {
        eval::projection(self)
    }

    /// The stages before the metrics function.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The fields that the query looks at or shows, those of its metrics function included; each once, in order of appearance.
    pub fn fields(&self) -> Vec<Field> {
        eval::fields(self)
    }

    /// The query `{ condition }`.
    pub(crate) fn filter(condition: &Expr) -> Self {
        let stages = vec![Stage::Spansets(ast::SpansetExpr::Filter(condition.clone()))];
        Self { pipeline: Pipeline { stages }, metrics: None, hints: Vec::new() }
    }

    /// The metrics function, when it is a metrics query.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref()
    }

    /// Why a metrics endpoint cannot answer the query: it has no metrics function, or one that is not evaluated yet.
    pub fn metrics_error(&self) -> Error {
        match &self.metrics {
            Some(metrics) => Error::unsupported(metrics.at, format_args!("evaluating {}() is", metrics.function.as_str())),
            None => Error::validation(Position { line: 1, column: 1 }, "not a metrics query"),
        }
    }

    /// The value of a hint.
    pub fn hint(&self, name: &str) -> Option<&Value> {
        self.hints.iter().find(|hint| hint.name == name).map(|hint| &hint.value)
    }

    /// Whether the newest traces are wanted: `with(most_recent=true)`.
    pub fn most_recent(&self) -> bool {
        self.hint("most_recent") == Some(&Value::Bool(true))
    }

    /// Whether it is certain without reading data that nothing matches.
    pub fn matches_nothing(&self) -> bool {
        eval::matches_nothing(&self.pipeline)
    }
}

#[cfg(test)]
pub(crate) mod corpus_tests;
#[cfg(test)]
pub(crate) use eval::reference;
#[cfg(test)]
mod property_tests;
