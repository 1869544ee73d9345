//! Answers for language models: plain JSON with as few words as possible. Attributes are maps, ids are hexadecimal, integers are numbers.
//! Tempo calls this form unstable.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind, status::StatusCode},
};
use serde_json::{Map, Value, json};

use crate::proto;

/// A trace; an empty object when there is none.
pub(crate) fn trace(answer: &proto::TraceByIdResponse) -> Value {
    let resources = answer.trace.as_ref().map_or(&[][..], |trace| &trace.resource_spans);
    let mut spans = resources.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
    let Some(first) = spans.next() else {
        return json!({});
    };
    let inspected = answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
    let mut shown = json!({
        "trace": {"traceId": hex(&first.trace_id), "services": resources.iter().map(service).collect::<Vec<_>>()},
        "metrics": {"inspectedBytes": inspected},
    });
    if answer.status == i32::from(proto::PartialStatus::Partial) {
        shown["status"] = json!("PARTIAL");
        shown["message"] = json!(answer.message);
    }
    shown
}

/// Values by type.
pub(crate) fn values(answer: &proto::SearchTagValuesV2Response) -> Value {
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for value in &answer.tag_values {
        by_type.entry(&value.r#type).or_default().push(&value.value);
    }
    let inspected = answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
    json!({"tagValues": by_type, "metrics": {"inspectedBytes": inspected}})
}

fn service(resource: &ResourceSpans) -> Value {
    let mut attributes = resource.resource.as_ref().map_or_else(Map::new, |resource| map(&resource.attributes));
    let name = attributes.remove("service.name").unwrap_or_default();
    let name = if let Value::String(name) = name { name } else { String::new() };
    json!({
        "serviceName": name,
        "resource": attributes,
        "scopes": resource.scope_spans.iter().map(scope).collect::<Vec<_>>(),
    })
}

fn scope(scope: &ScopeSpans) -> Value {
    let (name, version) = scope.scope.as_ref().map_or(("", ""), |scope| (scope.name.as_str(), scope.version.as_str()));
    json!({"name": name, "version": version, "spans": scope.spans.iter().map(span).collect::<Vec<_>>()})
}

fn span(span: &Span) -> Value {
    let mut shown = json!({
        "spanId": hex(&span.span_id),
        "name": span.name,
        "kind": kind(span.kind),
        "startTimeUnixNano": span.start_time_unix_nano.to_string(),
        "endTimeUnixNano": span.end_time_unix_nano.to_string(),
        "durationMs": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1_000_000,
        "attributes": map(&span.attributes),
    });
    if !span.parent_span_id.is_empty() {
        shown["parentSpanId"] = json!(hex(&span.parent_span_id));
    }
    if !span.events.is_empty() {
        let event = |event: &opentelemetry_proto::tonic::trace::v1::span::Event| json!({"name": event.name, "timeUnixNano": event.time_unix_nano.to_string(), "attributes": map(&event.attributes)});
        shown["events"] = span.events.iter().map(event).collect();
    }
    if !span.links.is_empty() {
        let link = |link: &opentelemetry_proto::tonic::trace::v1::span::Link| json!({"traceId": hex(&link.trace_id), "spanId": hex(&link.span_id), "attributes": map(&link.attributes)});
        shown["links"] = span.links.iter().map(link).collect();
    }
    let status = span.status.clone().unwrap_or_default();
    let code = match status.code() {
        StatusCode::Unset => "unset",
        StatusCode::Ok => "ok",
        StatusCode::Error => "error",
    };
    shown["status"] = json!({"code": code});
    if !status.message.is_empty() {
        shown["status"]["message"] = json!(status.message);
    }
    shown
}

fn kind(kind: i32) -> &'static str {
    match SpanKind::try_from(kind).unwrap_or_default() {
        SpanKind::Unspecified => "unspecified",
        SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    }
}

fn map(attributes: &[KeyValue]) -> Map<String, Value> {
    attributes.iter().map(|attribute| (attribute.key.clone(), value(attribute.value.as_ref()))).collect()
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|any| any.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::IntValue(value)) => json!(value),
        Some(Any::DoubleValue(value)) => json!(value),
        Some(Any::ArrayValue(array)) => array.values.iter().map(|element| value(Some(element))).collect(),
        Some(Any::KvlistValue(list)) => Value::Object(map(&list.values)),
        Some(Any::BytesValue(bytes)) => json!(STANDARD.encode(bytes)),
        Some(Any::StringValueStrindex(_)) | None => Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}
