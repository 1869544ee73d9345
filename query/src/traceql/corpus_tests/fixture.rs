//! OTLP/JSON fixtures as traces.

use std::{collections::BTreeMap, fs, path::Path};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use serde_json::Value as Json;
use storage::{block::Trace, id::TraceId};

/// The traces of a fixture, in order of their ids.
pub(crate) fn load(file: &Path) -> Vec<Trace> {
    let text = fs::read_to_string(file).expect("fixture is readable");
    let json: Json = serde_json::from_str(&text).expect("fixture is JSON");
    let mut traces: BTreeMap<Vec<u8>, Vec<ResourceSpans>> = BTreeMap::new();
    for resource_spans in list(&json["resourceSpans"]) {
        for (id, part) in split_by_trace(resource_spans) {
            traces.entry(id).or_default().push(part);
        }
    }
    let traces = traces.into_iter();
    traces.map(|(id, resource_spans)| Trace { trace_id: TraceId(id.try_into().expect("16 bytes")), resource_spans }).collect()
}

fn split_by_trace(json: &Json) -> BTreeMap<Vec<u8>, ResourceSpans> {
    let resource = json.get("resource").map(|resource| Resource { attributes: attributes(resource), ..Default::default() });
    let mut parts: BTreeMap<Vec<u8>, ResourceSpans> = BTreeMap::new();
    for scope_spans in list(&json["scopeSpans"]) {
        let scope = scope_spans.get("scope").map(|scope| InstrumentationScope {
            name: text(&scope["name"]),
            version: text(&scope["version"]),
            attributes: attributes(scope),
            ..Default::default()
        });
        let mut by_trace: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for json in list(&scope_spans["spans"]) {
            let span = span(json);
            by_trace.entry(span.trace_id.clone()).or_default().push(span);
        }
        for (id, spans) in by_trace {
            let part = parts.entry(id).or_insert_with(|| ResourceSpans { resource: resource.clone(), ..Default::default() });
            part.scope_spans.push(ScopeSpans { scope: scope.clone(), spans, ..Default::default() });
        }
    }
    parts
}

fn span(json: &Json) -> Span {
    Span {
        trace_id: hex(&json["traceId"]),
        span_id: hex(&json["spanId"]),
        parent_span_id: hex(&json["parentSpanId"]),
        name: text(&json["name"]),
        kind: integer(&json["kind"]) as i32,
        start_time_unix_nano: integer(&json["startTimeUnixNano"]) as u64,
        end_time_unix_nano: integer(&json["endTimeUnixNano"]) as u64,
        attributes: attributes(json),
        events: list(&json["events"])
            .map(|event| Event {
                time_unix_nano: integer(&event["timeUnixNano"]) as u64,
                name: text(&event["name"]),
                attributes: attributes(event),
                ..Default::default()
            })
            .collect(),
        links: list(&json["links"])
            .map(|link| Link {
                trace_id: hex(&link["traceId"]),
                span_id: hex(&link["spanId"]),
                attributes: attributes(link),
                ..Default::default()
            })
            .collect(),
        status: json.get("status").map(|status| Status { message: text(&status["message"]), code: integer(&status["code"]) as i32 }),
        ..Default::default()
    }
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn text(json: &Json) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn integer(json: &Json) -> i64 {
    match json {
        Json::String(digits) => digits.parse().expect("an integer"),
        other => other.as_i64().unwrap_or_default(),
    }
}

fn hex(json: &Json) -> Vec<u8> {
    let digits = json.as_str().unwrap_or_default();
    (0..digits.len()).step_by(2).map(|index| u8::from_str_radix(&digits[index..index + 2], 16).expect("hex")).collect()
}

fn attributes(json: &Json) -> Vec<KeyValue> {
    list(&json["attributes"]).map(key_value).collect()
}

fn key_value(json: &Json) -> KeyValue {
    KeyValue { key: text(&json["key"]), value: Some(any_value(&json["value"])), ..Default::default() }
}

/// An OTLP/JSON `AnyValue`.
pub(crate) fn any_value(json: &Json) -> AnyValue {
    let value = json.as_object().and_then(|fields| fields.iter().next()).map(|(kind, value)| match kind.as_str() {
        "stringValue" => any_value::Value::StringValue(text(value)),
        "boolValue" => any_value::Value::BoolValue(value.as_bool().expect("a boolean")),
        "intValue" => any_value::Value::IntValue(integer(value)),
        "doubleValue" => any_value::Value::DoubleValue(match value.as_str() {
            Some(text) => text.parse().expect("a float"),
            None => value.as_f64().expect("a float"),
        }),
        "bytesValue" => any_value::Value::BytesValue(text(value).into_bytes()),
        "arrayValue" => any_value::Value::ArrayValue(ArrayValue { values: list(&value["values"]).map(any_value).collect() }),
        "kvlistValue" => any_value::Value::KvlistValue(KeyValueList { values: list(&value["values"]).map(key_value).collect() }),
        other => panic!("unknown kind of value {other}"),
    });
    AnyValue { value }
}
