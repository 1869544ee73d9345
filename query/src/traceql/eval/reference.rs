//! The plain evaluator, span by span, for tests of what is built on its results.

use super::{
    super::{
        Query,
        ast::{Expr, Field, Intrinsic, Scope},
        error::ExecutionError,
        value::Value,
    },
    TraceView,
    condition::Subject,
    pipeline,
};

/// The spans that a pipeline leaves of a trace, ascending, each once.
pub(crate) fn matched(query: &Query, trace: &TraceView<'_>) -> Result<Vec<usize>, ExecutionError> {
    let mut spans: Vec<usize> = pipeline::run(&query.pipeline, trace)?.into_iter().flat_map(|group| group.spans).collect();
    spans.sort_unstable();
    spans.dedup();
    Ok(spans)
}

impl TraceView<'_> {
    /// The value of a field of a span as metrics take it: of several events the first one counts.
    pub(crate) fn value_of(&self, span: usize, field: &Field) -> Value {
        if *field == Field::Intrinsic(Intrinsic::EventTimeSinceStart) {
            let start = self.spans[span].span.start_time_unix_nano;
            let first = self.spans[span].span.events.first();
            return first.map_or(Value::Nil, |event| Value::Duration(event.time_unix_nano.wrapping_sub(start) as i64));
        }
        Subject::new(self, span).field(field).to_value()
    }

    /// Whether a condition holds for a span.
    pub(crate) fn satisfies(&self, span: usize, condition: &Expr) -> Result<bool, ExecutionError> {
        Subject::new(self, span).satisfies(condition)
    }

    /// Start of a span, Unix nanoseconds.
    pub(crate) fn start_of(&self, span: usize) -> u64 {
        self.spans[span].span.start_time_unix_nano
    }

    /// Keys of the attributes of a span, its resource and its scope, as fields.
    pub(crate) fn attribute_fields(&self, span: usize) -> Vec<Field> {
        let view = &self.spans[span];
        let of = |scope: Scope, key: &str| Field::Attribute { parent: false, scope, name: key.to_owned() };
        let span = view.span.attributes.iter().map(|attribute| of(Scope::Span, &attribute.key));
        let resource = view.resource.iter().map(|attribute| of(Scope::Resource, &attribute.key));
        let scope = view.scope.iter().flat_map(|scope| &scope.attributes);
        span.chain(resource).chain(scope.map(|attribute| of(Scope::Instrumentation, &attribute.key))).collect()
    }
}
