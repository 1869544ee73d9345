//! TraceQL, the query language: text to tree to answer.
//!
//! ```text
//! text ──► lexer ──► parser ──► types ──► Query ──► exec, traceql_metrics
//!                    (fold)                │
//!                                          └─► print: canonical text
//! ```
//!
//! A query is parsed once, by [`parse`], which also folds constants and validates; what comes out is legal. It is then evaluated on batches of
//! traces by `exec`, wherever they come from. Nothing here does IO, and nothing in a query relates two traces. The plain reading of the language,
//! one trace and one span at a time, is kept for tests as the reference (`eval`).
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
#[cfg(test)]
pub(crate) mod eval;
mod filter;
mod fold;
mod found;
mod lenient;
mod lexer;
mod number;
mod parser;
pub(crate) mod pattern;
mod print;
pub(crate) mod scalar;
pub(crate) mod shown;
pub(crate) mod types;
mod value;

pub use ast::{BinaryOp, Expr, Field, Hint, Intrinsic, Located, Metrics, MetricsFunction, Pipeline, Position, Scope, SecondStage, Stage};
pub use error::{Error, ErrorClass, ExecutionError};
pub use filter::Filter;
pub use found::{EvaluateOptions, ServiceStats, SpanMatch, Spanset, TraceMatch};
pub use value::{Kind, Status, Type, Value};

use std::sync::Arc;

/// Longest query that callers should hand to [`parse`], in bytes, unless configured otherwise.
pub const DEFAULT_MAX_QUERY_BYTES: usize = 131_072;

/// A query that was parsed and found valid. Queries that mean the same, written differently, are equal.
#[derive(Clone, Debug)]
pub struct Query {
    pipeline: Pipeline,
    metrics: Option<Metrics>,
    hints: Vec<Hint>,
    text: Arc<str>,
}

impl PartialEq for Query {
    fn eq(&self, other: &Self) -> bool {
        (&self.pipeline, &self.metrics, &self.hints) == (&other.pipeline, &other.metrics, &other.hints)
    }
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
    /// Evaluates the pipeline on one trace by the reference; a metrics function is left out. `None` when the trace is not a result.
    #[cfg(test)]
    pub(crate) fn evaluate(&self, trace: &TraceView<'_>, options: EvaluateOptions) -> Result<Option<TraceMatch>, ExecutionError> {
        eval::evaluate(self, trace, options)
    }

    /// The query as it was written: what other processes are told. The canonical text does not serve, since it has no way to write a backquote.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The stages before the metrics function.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The fields that the query looks at or shows, those of its metrics function included; each once, in order of appearance.
    pub fn fields(&self) -> Vec<Field> {
        shown::Shown::of_query(self).fields().iter().map(|&field| field.clone()).collect()
    }

    /// The query `{ condition }`.
    pub(crate) fn filter(condition: &Expr) -> Self {
        let text = format!("{{ {condition} }}").into();
        let stages = vec![Stage::Spansets(ast::SpansetExpr::Filter(condition.clone()))];
        Self { pipeline: Pipeline { stages }, metrics: None, hints: Vec::new(), text }
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
        self.pipeline.matches_nothing()
    }
}

#[cfg(test)]
pub(crate) mod corpus_tests;
#[cfg(test)]
pub(crate) use eval::{TraceView, reference};
#[cfg(test)]
mod property_tests;
