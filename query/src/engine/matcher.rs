//! A search that is ready to be evaluated on traces, and how its results are shown.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use storage::block::{Projection, Trace};

use super::{Condition, QueryError, SearchRequest, combine};
use crate::{
    columns::Batch,
    duration,
    exec::Exec,
    proto,
    traceql::{self, EvaluateOptions, Spanset, TraceMatch, Value},
};

/// Shown as service of a trace whose root span is not there.
const NO_ROOT: &str = "<root span not yet received>";

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A search that is ready to run.
#[derive(Debug)]
pub(super) struct Matcher {
    pub(super) request: Arc<SearchRequest>,
    /// What is evaluated; for a search by tags, the query that every trace satisfies.
    query: traceql::Query,
}

impl Matcher {
    pub(super) fn new(request: Arc<SearchRequest>) -> Result<Self, QueryError> {
        let query = match &request.condition {
            Condition::TraceQl(query) => query.clone(),
            Condition::Tags { .. } => traceql::parse("{}").map_err(|error| QueryError::Worker { cause: error.to_string() })?,
        };
        Ok(Self { request, query })
    }

    pub(super) fn matches_nothing(&self) -> bool {
        self.query.matches_nothing()
    }

    /// What a search by tags looks at; other searches read columns.
    pub(super) fn projection(&self) -> Projection {
        match &self.request.condition {
            Condition::Tags { tags, .. } if !tags.is_empty() => {
                Projection { resource_attributes: true, span_attributes: true, ..Projection::INTRINSICS }
            }
            _ => Projection::INTRINSICS,
        }
    }

    pub(super) fn in_range(&self, start: u64, end: u64) -> bool {
        self.request.range.is_none_or(|range| range.overlaps(start, end))
    }

    /// What is evaluated.
    pub(super) fn query(&self) -> &traceql::Query {
        &self.query
    }

    /// Whether a trace is found that can be judged span by span: TraceQL alone.
    pub(super) fn is_traceql(&self) -> bool {
        matches!(self.request.condition, Condition::TraceQl(_))
    }

    pub(super) fn evaluate(&self, trace: Trace, spans_per_spanset: usize) -> Result<Option<TraceMatch>, QueryError> {
        let legacy = match &self.request.condition {
            Condition::TraceQl(_) => None,
            Condition::Tags { tags, min_duration, max_duration } => Some((tags, min_duration, max_duration, trace.resource_spans.clone())),
        };
        let mut found = Exec::new(&self.query).matches(&Batch::live(vec![trace]), EvaluateOptions { spans_per_spanset })?;
        let Some(found) = found.pop() else { return Ok(None) };
        if let Some((tags, min_duration, max_duration, resource_spans)) = legacy {
            let duration = combine::time_range(&resource_spans).map_or(0, |(start, end)| end - start);
            let long_enough = u128::from(duration) >= min_duration.as_nanos();
            let short_enough = max_duration.is_zero() || u128::from(duration) <= max_duration.as_nanos();
            if !long_enough || !short_enough || !tags.matches(&resource_spans, &found.root_trace_name, &found.root_service_name) {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    pub(super) fn show(&self, found: TraceMatch, padded: bool) -> proto::TraceSearchMetadata {
        let span_sets: Vec<_> = match self.request.condition {
            Condition::TraceQl(_) => found.spansets.into_iter().map(show_spanset).collect(),
            Condition::Tags { .. } => Vec::new(),
        };
        let services = found.services.into_iter();
        proto::TraceSearchMetadata {
            trace_id: if padded { found.trace_id.to_hex() } else { found.trace_id.to_short_hex() },
            root_service_name: if found.root_service_name.is_empty() { NO_ROOT.to_owned() } else { found.root_service_name },
            root_trace_name: found.root_trace_name,
            start_time_unix_nano: found.start_ns,
            duration_ms: u32::try_from(found.duration_ms).unwrap_or(u32::MAX),
            span_set: span_sets.first().cloned(),
            span_sets,
            service_stats: services
                .map(|(service, stats)| (service, proto::ServiceStats { span_count: stats.spans, error_count: stats.errors }))
                .collect(),
        }
    }
}

fn show_spanset(spanset: Spanset) -> proto::SpanSet {
    proto::SpanSet {
        spans: spanset
            .spans
            .into_iter()
            .map(|span| proto::Span {
                span_id: format!("{:016x}", span.span_id),
                name: span.name.unwrap_or_default(),
                start_time_unix_nano: span.start_ns,
                duration_nanos: span.duration_ns,
                attributes: span.attributes.into_iter().map(show_attribute).collect(),
            })
            .collect(),
        matched: count(spanset.matched),
        attributes: spanset.attributes.into_iter().map(show_attribute).collect(),
    }
}

fn show_attribute((key, value): (String, Value)) -> KeyValue {
    KeyValue { key, value: Some(show_value(value)), ..KeyValue::default() }
}

fn show_value(value: Value) -> AnyValue {
    let value = match value {
        Value::Nil => any_value::Value::StringValue("nil".to_owned()),
        Value::Int(value) => any_value::Value::IntValue(value),
        Value::Float(value) => any_value::Value::DoubleValue(value),
        Value::String(value) => any_value::Value::StringValue(value),
        Value::Bool(value) => any_value::Value::BoolValue(value),
        Value::Duration(value) => any_value::Value::StringValue(duration::to_go(value)),
        Value::Status(value) => any_value::Value::StringValue(value.as_str().to_owned()),
        Value::Kind(value) => any_value::Value::StringValue(value.as_str().to_owned()),
        Value::Array(values) => any_value::Value::ArrayValue(ArrayValue { values: values.into_iter().map(show_value).collect() }),
    };
    AnyValue { value: Some(value) }
}
