//! Zipkin v2 to OTLP (write-path.md §3.4).
//!
//! Spans are sorted by local service and library: each service becomes a resource, each library a scope. What a resource is made of
//! comes from the first span of the group.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as OtlpSpan, Status,
        span::{Event, Link, SpanKind},
        status::StatusCode,
    },
};

use super::model::{Kind, Span};

/// Links that are looked for in the tags of a span.
const MAX_LINKS: usize = 128;

const LIBRARY_NAME: &str = "otel.library.name";
const LIBRARY_VERSION: &str = "otel.library.version";
const SERVICE_SOURCE: &str = "otlp.service.name.source";
const LINK_PREFIX: &str = "otlp.link.";

/// Keys of resources in the old conventions, by what they begin with.
const RESOURCE_PREFIXES: [&str; 14] = [
    "cloud.",
    "aws.ecs.",
    "aws.eks.",
    "aws.log.",
    "container.",
    "device.",
    "faas.",
    "host.",
    "k8s.",
    "os.",
    "process.",
    "service.",
    "telemetry.",
    "webengine.",
];

/// The others, whole.
const RESOURCE_KEYS: [&str; 4] =
    ["deployment.environment", "opencensus.starttime", "opencensus.exporterversion", "opencensus.resourcetype"];

/// Translates spans. With `parse_tags`, tags whose text is a number or a boolean become one.
pub(super) fn to_otlp(mut spans: Vec<Span>, parse_tags: bool) -> Vec<ResourceSpans> {
    let library = |span: &Span| span.tags.get(LIBRARY_NAME).cloned().unwrap_or_default();
    spans.sort_by_cached_key(|span| (span.local.service.clone(), library(span)));
    let mut out: Vec<ResourceSpans> = Vec::new();
    let mut last: Option<(String, String)> = None;
    for span in spans {
        let place = (span.local.service.clone(), library(&span));
        let same_service = last.as_ref().is_some_and(|(service, _)| *service == place.0);
        if !same_service {
            out.push(ResourceSpans { resource: Some(resource(&span)), ..ResourceSpans::default() });
        }
        let Some(resource_spans) = out.last_mut() else { continue };
        if !same_service || last.as_ref().is_none_or(|(_, library)| *library != place.1) {
            let version = span.tags.get(LIBRARY_VERSION).cloned().unwrap_or_default();
            let scope = InstrumentationScope { name: place.1.clone(), version, ..InstrumentationScope::default() };
            resource_spans.scope_spans.push(ScopeSpans { scope: Some(scope), ..ScopeSpans::default() });
        }
        if let Some(scope_spans) = resource_spans.scope_spans.last_mut() {
            scope_spans.spans.push(translate(span, parse_tags));
        }
        last = Some(place);
    }
    out
}

fn is_of_resource(key: &str) -> bool {
    RESOURCE_KEYS.contains(&key) || RESOURCE_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn resource(span: &Span) -> Resource {
    let mut attributes = Vec::new();
    if !span.local.service.is_empty() {
        let key = span.tags.get(SERVICE_SOURCE).map_or("service.name", String::as_str);
        attributes.push(text(key, &span.local.service));
    }
    let own = span.tags.iter().filter(|(key, _)| is_of_resource(key) && attributes.iter().all(|known| known.key != **key));
    let own: Vec<_> = own.map(|(key, value)| text(key, value)).collect();
    attributes.extend(own);
    Resource { attributes, ..Resource::default() }
}

fn translate(span: Span, parse_tags: bool) -> OtlpSpan {
    let Span { trace_id, id, parent_id, kind, name, timestamp, duration, local, remote, annotations, mut tags } = span;
    let mut out = OtlpSpan {
        trace_id: trace_id.to_vec(),
        span_id: id.to_vec(),
        parent_span_id: parent_id.filter(|parent| *parent != id).map(|parent| parent.to_vec()).unwrap_or_default(),
        name,
        start_time_unix_nano: timestamp.saturating_mul(1000),
        end_time_unix_nano: timestamp.saturating_add(duration).saturating_mul(1000),
        trace_state: tags.remove("w3c.tracestate").unwrap_or_default(),
        kind: span_kind(kind, &mut tags).into(),
        status: Some(status(&mut tags)),
        links: links(&mut tags),
        ..OtlpSpan::default()
    };
    for key in [LIBRARY_NAME, LIBRARY_VERSION, SERVICE_SOURCE] {
        tags.remove(key);
    }
    for (key, value) in tags.into_iter().filter(|(key, _)| !is_of_resource(key)) {
        let value = if parse_tags { guess(value) } else { Value::StringValue(value) };
        out.attributes.push(attribute(&key, value));
    }
    for (prefix, endpoint) in [("net.host", local), ("net.peer", remote)] {
        if prefix == "net.peer" && !endpoint.service.is_empty() {
            out.attributes.push(text("peer.service", &endpoint.service));
        }
        let address = endpoint.ipv6.map(|address| address.to_string()).or_else(|| endpoint.ipv4.map(|address| address.to_string()));
        out.attributes.extend(address.map(|address| text(&format!("{prefix}.ip"), &address)));
        if endpoint.port > 0 {
            out.attributes.push(attribute(&format!("{prefix}.port"), Value::IntValue(endpoint.port.into())));
        }
    }
    if timestamp == 0 {
        out.attributes.push(attribute("otel.zipkin.absentField.startTime", Value::BoolValue(true)));
    }
    out.events = annotations.into_iter().map(|annotation| event(annotation.timestamp, annotation.value)).collect();
    out
}

fn span_kind(kind: Kind, tags: &mut BTreeMap<String, String>) -> SpanKind {
    match kind {
        Kind::Client => SpanKind::Client,
        Kind::Server => SpanKind::Server,
        Kind::Producer => SpanKind::Producer,
        Kind::Consumer => SpanKind::Consumer,
        Kind::Unspecified if tags.get("span.kind").is_some_and(|kind| kind == "internal") => {
            tags.remove("span.kind");
            SpanKind::Internal
        }
        Kind::Unspecified => SpanKind::Unspecified,
    }
}

fn status(tags: &mut BTreeMap<String, String>) -> Status {
    let mut status = Status::default();
    if let Some(code) = tags.remove("otel.status_code") {
        let code = match code.as_str() {
            "STATUS_CODE_OK" | "Ok" => StatusCode::Ok,
            "STATUS_CODE_ERROR" | "Error" => StatusCode::Error,
            _ => StatusCode::Unset,
        };
        status = Status { code: code.into(), message: tags.remove("otel.status_description").unwrap_or_default() };
    }
    if let Some(error) = tags.get("error") {
        let is_flag = error == "true";
        status.code = StatusCode::Error.into();
        if is_flag {
            tags.remove("error");
        }
    }
    status
}

/// `trace id | span id | trace state | attributes as JSON | dropped attributes`, one tag each. What is none stays a tag.
fn links(tags: &mut BTreeMap<String, String>) -> Vec<Link> {
    let mut links = Vec::new();
    for number in 0..MAX_LINKS {
        let key = format!("{LINK_PREFIX}{number}");
        let Some(value) = tags.get(&key) else { break };
        let Some(link) = link(value) else { continue };
        tags.remove(&key);
        links.push(link);
    }
    links
}

fn link(value: &str) -> Option<Link> {
    let mut parts = value.splitn(4, '|');
    let (trace_id, span_id, trace_state, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (json, dropped) = rest.rsplit_once('|')?;
    Some(Link {
        trace_id: super::model::trace_id(trace_id).ok()?.to_vec(),
        span_id: super::model::span_id(span_id).ok()?.to_vec(),
        trace_state: trace_state.to_owned(),
        attributes: attributes_of_json(json)?,
        dropped_attributes_count: dropped.parse().ok()?,
        ..Link::default()
    })
}

/// An annotation, which may be `name | attributes as JSON | dropped attributes`.
fn event(timestamp: u64, value: String) -> Event {
    let time_unix_nano = timestamp.saturating_mul(1000);
    let full = || {
        let (name, rest) = value.split_once('|')?;
        let (json, dropped) = rest.rsplit_once('|')?;
        Some((name.to_owned(), attributes_of_json(json)?, dropped.parse().ok()?))
    };
    match full() {
        Some((name, attributes, dropped_attributes_count)) => Event { time_unix_nano, name, attributes, dropped_attributes_count },
        None => Event { time_unix_nano, name: value, ..Event::default() },
    }
}

/// The members of a JSON object whose values are scalars; `None` if it is no such object.
fn attributes_of_json(json: &str) -> Option<Vec<KeyValue>> {
    let members: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).ok()?;
    members
        .into_iter()
        .map(|(key, value)| {
            let value = match value {
                serde_json::Value::String(text) => Value::StringValue(text),
                serde_json::Value::Bool(value) => Value::BoolValue(value),
                serde_json::Value::Number(number) => match number.as_i64() {
                    Some(integer) => Value::IntValue(integer),
                    None => Value::DoubleValue(number.as_f64()?),
                },
                other => Value::StringValue(other.to_string()),
            };
            Some(attribute(&key, value))
        })
        .collect()
}

/// A text as the number or boolean that it spells, if it does.
pub(super) fn guess(text: String) -> Value {
    if let Ok(integer) = text.parse::<i64>() {
        return Value::IntValue(integer);
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && let Ok(double) = text.parse::<f64>()
    {
        return Value::DoubleValue(double);
    }
    match text.as_str() {
        "true" => Value::BoolValue(true),
        "false" => Value::BoolValue(false),
        _ => Value::StringValue(text),
    }
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{super::v2::from_json, *};

    fn translated(json: &str, parse_tags: bool) -> Vec<ResourceSpans> {
        to_otlp(from_json(json.as_bytes()).expect("spans"), parse_tags)
    }

    fn only(json: &str) -> OtlpSpan {
        let span = format!(r#"[{{"traceId":"1","id":"2","timestamp":1000,"duration":500,{json}}}]"#);
        translated(&span, false).remove(0).scope_spans.remove(0).spans.remove(0)
    }

    fn shown(attributes: &[KeyValue]) -> Vec<String> {
        let value = |value: &Value| match value {
            Value::StringValue(text) => format!("{text:?}"),
            Value::BoolValue(value) => value.to_string(),
            Value::IntValue(value) => value.to_string(),
            Value::DoubleValue(value) => format!("{value:?}"),
            other => format!("{other:?}"),
        };
        let value = |kv: &KeyValue| kv.value.as_ref().and_then(|v| v.value.as_ref()).map(value).unwrap_or_default();
        attributes.iter().map(|kv| format!("{}={}", kv.key, value(kv))).collect()
    }

    #[test]
    fn services_are_resources_and_libraries_are_scopes() {
        let out = translated(
            r#"[{"traceId":"1","id":"1","localEndpoint":{"serviceName":"b"},"tags":{"otel.library.name":"y","otel.library.version":"2"}},
                {"traceId":"1","id":"2","localEndpoint":{"serviceName":"a"},"tags":{"host.name":"h1","x":"1"}},
                {"traceId":"1","id":"3","localEndpoint":{"serviceName":"b"},"tags":{"otel.library.name":"x"}},
                {"traceId":"1","id":"4","localEndpoint":{"serviceName":"a"},"tags":{"host.name":"h2"}},
                {"traceId":"1","id":"5"}]"#,
            false,
        );
        let resources: Vec<_> = out.iter().map(|rs| shown(&rs.resource.as_ref().expect("resource").attributes)).collect();
        assert_eq!(
            resources,
            [vec![], vec!["service.name=\"a\"".to_owned(), "host.name=\"h1\"".to_owned()], vec!["service.name=\"b\"".to_owned()]]
        );
        let scopes: Vec<_> = out[2].scope_spans.iter().map(|ss| ss.scope.clone().expect("scope")).map(|s| (s.name, s.version)).collect();
        assert_eq!(scopes, [("x".to_owned(), String::new()), ("y".to_owned(), "2".to_owned())]);
        assert_eq!(out[1].scope_spans[0].spans.len(), 2);
        assert_eq!(shown(&out[1].scope_spans[0].spans[0].attributes), ["x=\"1\"", "otel.zipkin.absentField.startTime=true"]);
        assert_eq!(shown(&out[1].scope_spans[0].spans[1].attributes), ["otel.zipkin.absentField.startTime=true"]);
    }

    #[test]
    fn another_key_may_hold_the_service() {
        let json = r#"[{"traceId":"1","id":"1","localEndpoint":{"serviceName":"p"},"tags":{"otlp.service.name.source":"faas.name"}}]"#;
        let out = translated(json, false);
        assert_eq!(shown(&out[0].resource.as_ref().expect("resource").attributes), ["faas.name=\"p\""]);
        assert_eq!(shown(&out[0].scope_spans[0].spans[0].attributes), ["otel.zipkin.absentField.startTime=true"]);
    }

    #[test]
    fn a_span_keeps_what_it_says() {
        let span = only(
            r#""parentId":"2","kind":"SERVER","name":"get","localEndpoint":{"ipv4":"1.2.3.4","ipv6":"::1","port":80},
               "remoteEndpoint":{"serviceName":"peer","ipv4":"5.6.7.8"},"tags":{"w3c.tracestate":"a=b","n":"1"},
               "annotations":[{"timestamp":1200,"value":"plain"},{"timestamp":1300,"value":"named|{\"k\":1,\"t\":\"x|y\",\"d\":1.5,\"b\":true}|3"}]"#,
        );
        assert_eq!(span.parent_span_id, Vec::<u8>::new(), "a span is not its own parent");
        assert_eq!((span.kind, span.trace_state.as_str(), span.name.as_str()), (SpanKind::Server.into(), "a=b", "get"));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000, 1_500_000));
        assert_eq!(
            shown(&span.attributes),
            ["n=\"1\"", "net.host.ip=\"::1\"", "net.host.port=80", "peer.service=\"peer\"", "net.peer.ip=\"5.6.7.8\""]
        );
        assert_eq!((span.events[0].name.as_str(), span.events[0].time_unix_nano), ("plain", 1_200_000));
        assert_eq!((span.events[1].name.as_str(), span.events[1].dropped_attributes_count), ("named", 3));
        assert_eq!(shown(&span.events[1].attributes), ["b=true", "d=1.5", "k=1", "t=\"x|y\""]);
    }

    #[test]
    fn kind_and_status_come_from_tags() {
        for (tags, code, message, left) in [
            (r#"{"otel.status_code":"STATUS_CODE_OK","otel.status_description":"fine"}"#, 1, "fine", vec![]),
            (r#"{"otel.status_code":"Error","error":"true"}"#, 2, "", vec![]),
            (r#"{"error":"timeout"}"#, 2, "", vec!["error=\"timeout\""]),
            (r#"{"error":""}"#, 2, "", vec!["error=\"\""]),
            (r#"{"otel.status_code":"Unset"}"#, 0, "", vec![]),
        ] {
            let span = only(&format!(r#""tags":{tags}"#));
            let status = span.status.expect("status");
            assert_eq!(
                (status.code, status.message.as_str(), shown(&span.attributes)),
                (code, message, left.iter().map(|s| (*s).to_owned()).collect()),
                "{tags}"
            );
        }
        assert_eq!(only(r#""tags":{"span.kind":"internal"}"#).kind, i32::from(SpanKind::Internal));
        let odd = only(r#""tags":{"span.kind":"client"}"#);
        assert_eq!((odd.kind, shown(&odd.attributes)), (0, vec!["span.kind=\"client\"".to_owned()]));
    }

    #[test]
    fn links_are_tags_and_what_is_none_stays_one() {
        let span = only(r#""tags":{"otlp.link.0":"3|4|s=t|{\"a\":\"|\"}|2","otlp.link.1":"nonsense","otlp.link.2":"5|6||{}|0"}"#);
        assert_eq!(span.links.len(), 2);
        assert_eq!((span.links[0].trace_id[15], span.links[0].span_id[7], span.links[0].trace_state.as_str()), (3, 4, "s=t"));
        assert_eq!((shown(&span.links[0].attributes), span.links[0].dropped_attributes_count), (vec!["a=\"|\"".to_owned()], 2));
        assert_eq!(shown(&span.attributes), ["otlp.link.1=\"nonsense\""]);
    }

    #[test]
    fn tags_are_guessed_when_asked_for() {
        let json = r#"[{"traceId":"1","id":"1","timestamp":1,"tags":{"a":"1","b":"1.5","c":"true","d":"NaN","e":"1x","f":"-2e3"}}]"#;
        let out = translated(json, true);
        assert_eq!(shown(&out[0].scope_spans[0].spans[0].attributes), ["a=1", "b=1.5", "c=true", "d=\"NaN\"", "e=\"1x\"", "f=-2000.0"]);
    }
}
