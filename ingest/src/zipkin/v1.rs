//! Zipkin's v1 spans, JSON and Thrift, to OTLP (write-path.md §3.4).
//!
//! In v1 nearly everything is an annotation: `cs` and `cr` make a span a client's, `sr` and `ss` a server's, and who sent it stands in the
//! annotations' endpoints.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as OtlpSpan, Status,
        span::{Event, SpanKind},
        status::StatusCode,
    },
};
use serde::Deserialize;
use thrift::protocol::TType;

use super::{
    list,
    model::{Endpoint, JsonEndpoint, Malformed},
    translate::{attribute, guess, text},
};
use crate::thrift::{Input, Malformed as ThriftMalformed, Protocol};

/// A span of the v1 model. Times are microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Span {
    trace_id: [u8; 16],
    id: [u8; 8],
    parent_id: Option<[u8; 8]>,
    name: String,
    timestamp: u64,
    duration: u64,
    annotations: Vec<Annotation>,
    tags: Vec<Tag>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Annotation {
    timestamp: u64,
    value: String,
    host: Option<Endpoint>,
}

#[derive(Clone, Debug, PartialEq)]
struct Tag {
    key: String,
    value: Value,
    host: Option<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpan {
    #[serde(default)]
    trace_id: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    parent_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    timestamp: Option<u64>,
    #[serde(default)]
    duration: Option<u64>,
    #[serde(default)]
    annotations: Option<Vec<JsonAnnotation>>,
    #[serde(default)]
    binary_annotations: Option<Vec<JsonTag>>,
}

#[derive(Debug, Deserialize)]
struct JsonAnnotation {
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    value: String,
    #[serde(default)]
    endpoint: Option<JsonEndpoint>,
}

#[derive(Debug, Deserialize)]
struct JsonTag {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: serde_json::Value,
    #[serde(default)]
    endpoint: Option<JsonEndpoint>,
}

/// Reads a JSON array of v1 spans. With `parse_tags`, tags whose text is a number or a boolean become one.
pub(super) fn from_json(body: &[u8], parse_tags: bool) -> Result<Vec<Span>, Malformed> {
    let spans: Vec<JsonSpan> = list::from_json(body)?;
    spans.into_iter().enumerate().map(|(number, span)| span.into_span(number, parse_tags)).collect()
}

impl JsonSpan {
    fn into_span(self, number: usize, parse_tags: bool) -> Result<Span, Malformed> {
        let wrong = |field: &'static str| move |why: String| Malformed::Field { span: number, field, why };
        let id = |text: &str| match text.len() {
            16 => super::model::span_id(text),
            _ => Err(format!("{} characters where 16 hexadecimal digits are required", text.len())),
        };
        let trace_id = match self.trace_id.len() {
            16 | 32 => super::model::trace_id(&self.trace_id),
            length => Err(format!("{length} characters where 16 or 32 hexadecimal digits are required")),
        };
        let host = |endpoint: Option<JsonEndpoint>, field| endpoint.map(JsonEndpoint::into_endpoint).transpose().map_err(wrong(field));
        let annotation =
            |JsonAnnotation { timestamp, value, endpoint }| Ok(Annotation { timestamp, value, host: host(endpoint, "annotations")? });
        let tag = |JsonTag { key, value, endpoint }: JsonTag| {
            let value = match value {
                serde_json::Value::String(text) if parse_tags => guess(text),
                serde_json::Value::String(text) => Value::StringValue(text),
                serde_json::Value::Bool(value) => Value::BoolValue(value),
                serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                    (Some(integer), _) => Value::IntValue(integer),
                    (None, double) => Value::DoubleValue(double.unwrap_or_default()),
                },
                other => Value::StringValue(other.to_string()),
            };
            Ok(Tag { key, value, host: host(endpoint, "binaryAnnotations")? })
        };
        Ok(Span {
            trace_id: trace_id.map_err(wrong("traceId"))?,
            id: id(&self.id).map_err(wrong("id"))?,
            parent_id: self.parent_id.filter(|id| !id.is_empty()).map(|text| id(&text)).transpose().map_err(wrong("parentId"))?,
            name: self.name.unwrap_or_default(),
            timestamp: self.timestamp.unwrap_or_default(),
            duration: self.duration.unwrap_or_default(),
            annotations: self.annotations.unwrap_or_default().into_iter().map(annotation).collect::<Result<_, _>>()?,
            tags: self.binary_annotations.unwrap_or_default().into_iter().map(tag).collect::<Result<_, _>>()?,
        })
    }
}

/// Reads a Thrift list of v1 spans in the binary protocol.
pub(super) fn from_thrift(body: &[u8]) -> Result<Vec<Span>, Malformed> {
    let spans = Input::new(Protocol::Binary, body).and_then(|mut input| input.structures(thrift_span));
    let spans = spans.map_err(|error: ThriftMalformed| Malformed::Encoding(error.to_string()))?;
    for (number, span) in spans.iter().enumerate() {
        let wrong = |field, why: &str| Err(Malformed::Field { span: number, field, why: why.to_owned() });
        if span.trace_id == [0; 16] {
            return wrong("trace_id", "valid trace id required");
        }
        if span.id == [0; 8] {
            return wrong("id", "valid span id required");
        }
    }
    Ok(spans)
}

fn thrift_span(input: &mut Input<'_>) -> Result<Span, ThriftMalformed> {
    let (mut span, mut high, mut low) = (Span::default(), 0i64, 0i64);
    input.structure("Span", |input, number, kind| {
        match (number, kind) {
            (1, TType::I64) => low = input.long()?,
            (3, TType::String) => span.name = input.text()?,
            (4, TType::I64) => span.id = input.long()?.to_be_bytes(),
            (5, TType::I64) => span.parent_id = Some(input.long()?.to_be_bytes()).filter(|id| *id != [0; 8]),
            (6, TType::List) => span.annotations.extend(input.structures(thrift_annotation)?),
            (8, TType::List) => span.tags.extend(input.structures(thrift_tag)?),
            (10, TType::I64) => span.timestamp = microseconds(input.long()?),
            (11, TType::I64) => span.duration = microseconds(input.long()?),
            (12, TType::I64) => high = input.long()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    span.trace_id[..8].copy_from_slice(&high.to_be_bytes());
    span.trace_id[8..].copy_from_slice(&low.to_be_bytes());
    Ok(span)
}

/// Times are signed in Thrift; one before 1970 is none.
fn microseconds(time: i64) -> u64 {
    u64::try_from(time).unwrap_or_default()
}

fn thrift_annotation(input: &mut Input<'_>) -> Result<Annotation, ThriftMalformed> {
    let mut annotation = Annotation::default();
    input.structure("Annotation", |input, number, kind| {
        match (number, kind) {
            (1, TType::I64) => annotation.timestamp = microseconds(input.long()?),
            (2, TType::String) => annotation.value = input.text()?,
            (3, TType::Struct) => annotation.host = Some(thrift_endpoint(input)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(annotation)
}

fn thrift_tag(input: &mut Input<'_>) -> Result<Tag, ThriftMalformed> {
    const STRING: i32 = 6;
    let (mut key, mut value, mut kind_of_value, mut host) = (String::new(), Vec::new(), STRING, None);
    input.structure("BinaryAnnotation", |input, number, kind| {
        match (number, kind) {
            (1, TType::String) => key = input.text()?,
            (2, TType::String) => value = input.bytes()?,
            (3, TType::I32) => kind_of_value = input.int()?,
            (4, TType::Struct) => host = Some(thrift_endpoint(input)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    // Numbers are big-endian in as many bytes as their type has; others are kept as the bytes that they are.
    let typed = match (kind_of_value, value.as_slice()) {
        (0, &[byte]) => Some(Value::BoolValue(byte != 0)),
        (2, &[a, b]) => Some(Value::IntValue(i16::from_be_bytes([a, b]).into())),
        (3, &[a, b, c, d]) => Some(Value::IntValue(i32::from_be_bytes([a, b, c, d]).into())),
        (4, bytes) => <[u8; 8]>::try_from(bytes).ok().map(|bytes| Value::IntValue(i64::from_be_bytes(bytes))),
        (5, bytes) => <[u8; 8]>::try_from(bytes).ok().map(|bytes| Value::DoubleValue(f64::from_be_bytes(bytes))),
        (STRING, bytes) => Some(Value::StringValue(String::from_utf8_lossy(bytes).into_owned())),
        _ => None,
    };
    Ok(Tag { key, value: typed.unwrap_or(Value::BytesValue(value)), host })
}

fn thrift_endpoint(input: &mut Input<'_>) -> Result<Endpoint, ThriftMalformed> {
    let mut endpoint = Endpoint::default();
    input.structure("Endpoint", |input, number, kind| {
        match (number, kind) {
            (1, TType::I32) => endpoint.ipv4 = Some(Ipv4Addr::from(input.int()?.to_be_bytes())).filter(|address| !address.is_unspecified()),
            (2, TType::I16) => endpoint.port = input.short()? as u16,
            (3, TType::String) => endpoint.service = input.text()?,
            (4, TType::String) => endpoint.ipv6 = <[u8; 16]>::try_from(input.bytes()?.as_slice()).ok().map(Ipv6Addr::from),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(endpoint)
}

/// Translates spans; those without a start begin `now`, a time since the Unix epoch. Spans of one sender share a resource.
pub(super) fn to_otlp(spans: Vec<Span>, now: Duration) -> Vec<ResourceSpans> {
    let mut out: Vec<ResourceSpans> = Vec::new();
    let mut known: BTreeMap<(String, String), usize> = BTreeMap::new();
    for span in spans {
        let sender = Sender::of(&span);
        let place = *known.entry((sender.service.clone(), sender.address())).or_insert_with(|| {
            let scope = ScopeSpans { scope: Some(InstrumentationScope::default()), ..ScopeSpans::default() };
            out.push(ResourceSpans { resource: Some(sender.resource()), scope_spans: vec![scope], ..ResourceSpans::default() });
            out.len() - 1
        });
        if let Some(scope_spans) = out.get_mut(place).and_then(|resource_spans| resource_spans.scope_spans.last_mut()) {
            scope_spans.spans.push(translate(span, now));
        }
    }
    out
}

/// Who sent a span.
#[derive(Debug)]
struct Sender {
    service: String,
    endpoint: Endpoint,
}

impl Sender {
    fn of(span: &Span) -> Self {
        let hosts = span.annotations.iter().filter(|annotation| kind_of(&annotation.value).is_some()).filter_map(|a| a.host.as_ref());
        let hosts = hosts.chain(span.tags.iter().filter_map(|tag| tag.host.as_ref()));
        let endpoint = hosts.into_iter().find(|host| !host.service.is_empty()).cloned().unwrap_or_default();
        let component = || match span.tags.iter().find(|tag| tag.key == "lc").map(|tag| &tag.value) {
            Some(Value::StringValue(component)) if !component.is_empty() => component.clone(),
            _ => "unknown-service".to_owned(),
        };
        let service = if endpoint.service.is_empty() { component() } else { endpoint.service.clone() };
        Self { service, endpoint }
    }

    fn address(&self) -> String {
        format!("{:?} {:?} {}", self.endpoint.ipv4, self.endpoint.ipv6, self.endpoint.port)
    }

    fn resource(&self) -> Resource {
        let mut attributes = vec![text("service.name", &self.service)];
        attributes.extend(self.endpoint.ipv4.map(|address| text("ipv4", &address.to_string())));
        attributes.extend(self.endpoint.ipv6.map(|address| text("ipv6", &address.to_string())));
        attributes.extend((self.endpoint.port > 0).then(|| text("port", &self.endpoint.port.to_string())));
        Resource { attributes, ..Resource::default() }
    }
}

fn kind_of(annotation: &str) -> Option<SpanKind> {
    match annotation {
        "cs" | "cr" => Some(SpanKind::Client),
        "ss" | "sr" => Some(SpanKind::Server),
        "ms" => Some(SpanKind::Producer),
        "mr" => Some(SpanKind::Consumer),
        _ => None,
    }
}

fn translate(span: Span, now: Duration) -> OtlpSpan {
    let Span { trace_id, id, parent_id, name, timestamp, duration, annotations, tags } = span;
    let kind = annotations.iter().find_map(|annotation| kind_of(&annotation.value)).unwrap_or(SpanKind::Unspecified);
    let start = if timestamp == 0 { now.as_nanos() as u64 } else { timestamp.saturating_mul(1000) };
    let (status, left) = status(tags);
    let mut attributes: Vec<KeyValue> = left
        .into_iter()
        .map(|tag| if tag.key == "lc" { attribute("component", tag.value) } else { attribute(&tag.key, tag.value) })
        .collect();
    if timestamp == 0 {
        attributes.push(attribute("otel.zipkin.absentField.startTime", Value::BoolValue(true)));
    }
    let events = annotations.into_iter().filter(|annotation| kind_of(&annotation.value).is_none());
    OtlpSpan {
        trace_id: trace_id.to_vec(),
        span_id: id.to_vec(),
        parent_span_id: parent_id.filter(|parent| *parent != id).map(|parent| parent.to_vec()).unwrap_or_default(),
        name,
        kind: kind.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(duration.saturating_mul(1000)),
        attributes,
        events: events
            .map(|annotation| Event {
                time_unix_nano: annotation.timestamp.saturating_mul(1000),
                name: annotation.value,
                ..Event::default()
            })
            .collect(),
        status: Some(status),
        ..OtlpSpan::default()
    }
}

/// The status, and the tags that did not become it: `census.status_code` before `otel.status_code` before `error` before
/// `http.status_code`, which stays a tag.
fn status(mut tags: Vec<Tag>) -> (Status, Vec<Tag>) {
    let mut take = |key: &str| tags.iter().position(|tag| tag.key == key).map(|at| tags.remove(at).value);
    let census = take("census.status_code").as_ref().and_then(number);
    let census_message = take("census.status_description").map(shown).unwrap_or_default();
    let otel = take("otel.status_code").map(shown);
    let otel_message = take("otel.status_description").map(shown).unwrap_or_default();
    let flag = tags.iter().position(|tag| tag.key == "error");
    let error = flag.map(|at| match &tags[at].value {
        Value::BoolValue(flag) => (*flag, true),
        Value::StringValue(text) => (text != "false", text == "true" || text == "false"),
        _ => (true, false),
    });
    let http = tags.iter().find(|tag| tag.key == "http.status_code").and_then(|tag| number(&tag.value));
    if let (Some(at), Some((_, true))) = (flag, error) {
        tags.remove(at);
    }
    let (code, message) = match (census, otel, error, http) {
        (Some(0), ..) => (StatusCode::Unset, census_message),
        (Some(_), ..) => (StatusCode::Error, census_message),
        (None, Some(code), ..) => match code.as_str() {
            "STATUS_CODE_OK" | "Ok" | "1" => (StatusCode::Ok, otel_message),
            "STATUS_CODE_ERROR" | "Error" | "2" => (StatusCode::Error, otel_message),
            _ => (StatusCode::Unset, otel_message),
        },
        (None, None, Some((true, _)), _) => (StatusCode::Error, String::new()),
        (None, None, _, Some(http)) if !(100..400).contains(&http) => (StatusCode::Error, String::new()),
        _ => (StatusCode::Unset, String::new()),
    };
    (Status { code: code.into(), message }, tags)
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::IntValue(number) => Some(*number),
        Value::StringValue(text) => text.parse().ok(),
        _ => None,
    }
}

fn shown(value: Value) -> String {
    match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn names(attributes: &[KeyValue]) -> Vec<String> {
        let value = |kv: &KeyValue| kv.value.clone().and_then(|value| value.value).map(shown).unwrap_or_default();
        attributes.iter().map(|kv| format!("{}={}", kv.key, value(kv))).collect()
    }

    #[test]
    fn annotations_say_kind_and_sender() {
        let json = br#"[{"traceId":"0000000000000001","id":"0000000000000002","parentId":"0000000000000001","name":"get","timestamp":1000,"duration":10,
            "annotations":[{"timestamp":1000,"value":"sr","endpoint":{"serviceName":"back","ipv4":"10.0.0.2","port":8080}},{"timestamp":1005,"value":"work"},{"timestamp":1010,"value":"ss"}],
            "binaryAnnotations":[{"key":"http.status_code","value":"404"},{"key":"lc","value":"lib"},{"key":"n","value":5}]},
            {"traceId":"00000000000000010000000000000001","id":"0000000000000003","binaryAnnotations":[{"key":"lc","value":"local"},{"key":"error","value":"true"}]}]"#;
        let out = to_otlp(from_json(json, false).expect("spans"), NOW);
        let resources: Vec<_> = out.iter().map(|rs| names(&rs.resource.as_ref().expect("resource").attributes)).collect();
        assert_eq!(resources, [vec!["service.name=back", "ipv4=10.0.0.2", "port=8080"], vec!["service.name=local"]]);
        let span = &out[0].scope_spans[0].spans[0];
        assert_eq!((span.kind, span.start_time_unix_nano, span.end_time_unix_nano), (SpanKind::Server.into(), 1_000_000, 1_010_000));
        assert_eq!(span.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["work"]);
        assert_eq!(names(&span.attributes), ["http.status_code=404", "component=lib", "n=5"]);
        assert_eq!(span.status.as_ref().expect("status").code, i32::from(StatusCode::Error));
        let late = &out[1].scope_spans[0].spans[0];
        assert_eq!(late.start_time_unix_nano, NOW.as_nanos() as u64);
        assert_eq!(names(&late.attributes), ["component=local", "otel.zipkin.absentField.startTime=true"]);
        assert_eq!((late.status.as_ref().expect("status").code, late.trace_id[7]), (StatusCode::Error.into(), 1));
    }

    #[test]
    fn the_first_status_that_is_there_counts() {
        let tag = |(key, value): (&str, &str)| Tag { key: key.to_owned(), value: Value::StringValue(value.to_owned()), host: None };
        for (tags, code, message, left) in [
            (vec![("census.status_code", "5"), ("census.status_description", "gone"), ("otel.status_code", "Ok")], 2, "gone", 0),
            (vec![("census.status_code", "0"), ("error", "true")], 0, "", 0),
            (vec![("otel.status_code", "STATUS_CODE_OK"), ("error", "true"), ("otel.status_description", "d")], 1, "d", 0),
            (vec![("error", "boom"), ("http.status_code", "200")], 2, "", 2),
            (vec![("error", "false"), ("http.status_code", "399")], 0, "", 1),
            (vec![("http.status_code", "400")], 2, "", 1),
            (vec![("http.status_code", "99")], 2, "", 1),
            (vec![], 0, "", 0),
        ] {
            let (found, rest) = status(tags.iter().copied().map(tag).collect());
            assert_eq!((found.code, found.message.as_str(), rest.len()), (code, message, left), "{tags:?}");
        }
    }

    #[test]
    fn ids_have_sixteen_or_thirty_two_digits() {
        for (json, error) in [
            (
                r#"[{"traceId":"1","id":"0000000000000002"}]"#,
                "span 0: traceId: 1 characters where 16 or 32 hexadecimal digits are required",
            ),
            (r#"[{"traceId":"0000000000000001","id":"2"}]"#, "span 0: id: 1 characters where 16 hexadecimal digits are required"),
            (r#"[{"traceId":"0000000000000000","id":"0000000000000002"}]"#, "span 0: traceId: valid trace id required"),
        ] {
            assert_eq!(from_json(json.as_bytes(), false).expect_err(json).to_string(), error);
        }
    }

    /// A list of one span in the binary protocol, written by hand: `{12: 1, 1: 2, 4: 3, 3: "n", 10: 7, 6: [{1: 8, 2: "sr", 3: {…}}], 8: […]}`.
    fn thrift() -> Vec<u8> {
        let long = |id: u8, value: i64| [&[10, 0, id][..], &value.to_be_bytes()].concat();
        let string = |id: u8, value: &[u8]| [&[11, 0, id][..], &(value.len() as u32).to_be_bytes(), value].concat();
        let endpoint = [&[8, 0, 1, 10, 0, 0, 9, 6, 0, 2, 0x1f, 0x90][..], &string(3, b"back"), &[0]].concat();
        let annotation = [long(1, 8), string(2, b"sr"), vec![12, 0, 3], endpoint, vec![0]].concat();
        let tag = |key: &[u8], kind: u8, value: &[u8]| [string(1, key), string(2, value), vec![8, 0, 3, 0, 0, 0, kind, 0]].concat();
        let tags = [tag(b"b", 0, &[1]), tag(b"i", 3, &[0, 0, 0, 9]), tag(b"s", 6, b"text"), tag(b"odd", 4, &[1])].concat();
        [
            vec![12, 0, 0, 0, 1],
            long(12, 1),
            long(1, 2),
            long(4, 3),
            string(3, b"n"),
            long(10, 7),
            [&[15, 0, 6, 12, 0, 0, 0, 1][..], &annotation].concat(),
            [&[15, 0, 8, 12, 0, 0, 0, 4][..], &tags].concat(),
            vec![0],
        ]
        .concat()
    }

    #[test]
    fn thrift_is_read() {
        let spans = from_thrift(&thrift()).expect("spans");
        let out = to_otlp(spans, NOW);
        assert_eq!(names(&out[0].resource.as_ref().expect("resource").attributes), ["service.name=back", "ipv4=10.0.0.9", "port=8080"]);
        let span = &out[0].scope_spans[0].spans[0];
        assert_eq!((span.trace_id[7], span.trace_id[15], span.span_id[7], span.name.as_str()), (1, 2, 3, "n"));
        assert_eq!(names(&span.attributes)[..3], ["b=true", "i=9", "s=text"]);
        assert_eq!(span.attributes[3].value.clone().and_then(|value| value.value), Some(Value::BytesValue(vec![1])));
        let torn = &thrift()[..40];
        assert!(from_thrift(torn).expect_err("torn").to_string().starts_with("[0].Span"), "{}", from_thrift(torn).expect_err("torn"));
    }
}
