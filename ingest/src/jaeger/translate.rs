//! Jaeger to OTLP (write-path.md §3.2).

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as OtlpSpan, Status,
        span::{Event, Link, SpanKind},
        status::StatusCode,
    },
};
use prost::Message;

use super::model::{Batch, Log, Process, Reference, Span, Tag};

/// The name by which a sender of OTLP says to Jaeger that it has none.
const NO_SERVICE: &str = "OTLPResourceNoServiceName";

/// Which form a batch came in; protobuf carries a little more of OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Thrift,
    Protobuf,
}

/// Translates a batch. Spans of one process share a resource, those of one library a scope.
pub(super) fn to_otlp(batch: Batch, form: Form) -> Vec<ResourceSpans> {
    let Batch { process, spans } = batch;
    let mut out: Vec<ResourceSpans> = Vec::new();
    // By their bytes, since there may be as many as spans.
    let mut resources: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut scopes: HashMap<(usize, String, String), usize> = HashMap::new();
    let common = resource(&process, form);
    let common_bytes = common.encode_to_vec();
    for mut span in spans {
        let own = span.process.take().filter(|_| form == Form::Protobuf).map(|process| resource(&process, form));
        let bytes = own.as_ref().map(Message::encode_to_vec);
        let bytes = bytes.as_ref().unwrap_or(&common_bytes);
        let place = match resources.get(bytes) {
            Some(&place) => place,
            None => {
                resources.insert(bytes.clone(), out.len());
                out.push(ResourceSpans { resource: Some(own.unwrap_or_else(|| common.clone())), ..ResourceSpans::default() });
                out.len() - 1
            }
        };
        let Some(resource_spans) = out.get_mut(place) else { continue };
        let scope = if form == Form::Protobuf { scope(&mut span.tags) } else { InstrumentationScope::default() };
        let at = *scopes.entry((place, scope.name.clone(), scope.version.clone())).or_insert_with(|| {
            resource_spans.scope_spans.push(ScopeSpans { scope: Some(scope), ..ScopeSpans::default() });
            resource_spans.scope_spans.len() - 1
        });
        if let Some(scope_spans) = resource_spans.scope_spans.get_mut(at) {
            scope_spans.spans.push(translate(span, form));
        }
    }
    out
}

fn resource(process: &Process, form: Form) -> Resource {
    let mut attributes = Vec::new();
    let none = form == Form::Protobuf && process.service == NO_SERVICE;
    if !process.service.is_empty() && !none {
        attributes.push(attribute("service.name".to_owned(), Value::StringValue(process.service.clone())));
    }
    let has_host = process.tags.iter().any(|tag| tag.key == "host.name");
    for Tag { key, value } in process.tags.iter().cloned() {
        attributes.push(match (key.as_str(), value) {
            ("hostname", value) if !has_host => attribute("host.name".to_owned(), value),
            ("jaeger.version", Value::StringValue(version)) => {
                attribute("opencensus.exporterversion".to_owned(), Value::StringValue(format!("Jaeger-{version}")))
            }
            (_, value) => attribute(key, value),
        });
    }
    Resource { attributes, ..Resource::default() }
}

fn scope(tags: &mut Vec<Tag>) -> InstrumentationScope {
    let name = take_text(tags, "otel.scope.name").unwrap_or_default();
    let version = take_text(tags, "otel.scope.version").unwrap_or_default();
    InstrumentationScope { name, version, ..InstrumentationScope::default() }
}

fn translate(span: Span, form: Form) -> OtlpSpan {
    let Span { trace_id, span_id, parent_id, name, references, start, duration, mut tags, logs, process: _ } = span;
    let parent = parent(parent_id, trace_id, &references);
    let kind = kind(&mut tags);
    let status = status(&mut tags, kind);
    let trace_state = if form == Form::Protobuf { take_text(&mut tags, "w3c.tracestate") } else { None };
    OtlpSpan {
        trace_id: trace_id.to_vec(),
        span_id: span_id.to_vec(),
        trace_state: trace_state.unwrap_or_default(),
        parent_span_id: parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        name,
        kind: kind.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(duration),
        attributes: tags.into_iter().map(|Tag { key, value }| attribute(key, value)).collect(),
        events: logs.into_iter().map(event).collect(),
        links: links(&references, trace_id, parent),
        status: Some(status),
        ..OtlpSpan::default()
    }
}

fn parent(own: [u8; 8], trace_id: [u8; 16], references: &[Reference]) -> Option<[u8; 8]> {
    let first = |follows_from: bool| {
        references.iter().find(|reference| reference.follows_from == follows_from && reference.trace_id == trace_id).map(|r| r.span_id)
    };
    Some(own).filter(|own| *own != [0; 8]).or_else(|| first(false)).or_else(|| first(true))
}

/// Every reference but the one to the parent.
fn links(references: &[Reference], trace_id: [u8; 16], parent: Option<[u8; 8]>) -> Vec<Link> {
    let to_parent = |reference: &Reference| !reference.follows_from && reference.trace_id == trace_id && Some(reference.span_id) == parent;
    let link = |reference: &Reference| {
        let kind = if reference.follows_from { "follows_from" } else { "child_of" };
        Link {
            trace_id: reference.trace_id.to_vec(),
            span_id: reference.span_id.to_vec(),
            attributes: vec![attribute("opentracing.ref_type".to_owned(), Value::StringValue(kind.to_owned()))],
            ..Link::default()
        }
    };
    references.iter().filter(|reference| !to_parent(reference)).map(link).collect()
}

fn kind(tags: &mut Vec<Tag>) -> SpanKind {
    let Some(at) = tags.iter().position(|tag| tag.key == "span.kind") else { return SpanKind::Unspecified };
    let kind = match &tags[at].value {
        Value::StringValue(kind) => match kind.as_str() {
            "client" => SpanKind::Client,
            "server" => SpanKind::Server,
            "producer" => SpanKind::Producer,
            "consumer" => SpanKind::Consumer,
            "internal" => SpanKind::Internal,
            _ => return SpanKind::Unspecified,
        },
        _ => return SpanKind::Unspecified,
    };
    tags.remove(at);
    kind
}

/// The first rule that applies says the status.
fn status(tags: &mut Vec<Tag>, kind: SpanKind) -> Status {
    let with = |code: StatusCode, message: Option<String>| Status { code: code.into(), message: message.unwrap_or_default() };
    if let Some(at) = tags.iter().position(|tag| tag.key == "error" && tag.value == Value::BoolValue(true)) {
        tags.remove(at);
        let message = take_text(tags, "otel.status_description").or_else(|| text(tags, "http.status_message"));
        return with(StatusCode::Error, message);
    }
    if let Some(code) = take_text(tags, "otel.status_code") {
        let code = match code.to_ascii_uppercase().as_str() {
            "OK" => Some(StatusCode::Ok),
            "ERROR" => Some(StatusCode::Error),
            _ => None,
        };
        if let Some(code) = code {
            return with(code, take_text(tags, "otel.status_description"));
        }
    }
    let http = tags.iter().find(|tag| tag.key == "http.status_code").and_then(|tag| match &tag.value {
        Value::IntValue(code) => Some(*code),
        Value::StringValue(code) => code.parse().ok(),
        _ => None,
    });
    let code = match (http, kind) {
        (None | Some(100..=398), _) => StatusCode::Unset,
        (Some(400..=499), SpanKind::Server) => StatusCode::Unset,
        (Some(_), _) => StatusCode::Error,
    };
    with(code, http.and_then(|_| text(tags, "http.status_message")))
}

fn event(log: Log) -> Event {
    let Log { time, mut fields } = log;
    let name = take_text(&mut fields, "event").unwrap_or_default();
    Event {
        time_unix_nano: time,
        name,
        attributes: fields.into_iter().map(|Tag { key, value }| attribute(key, value)).collect(),
        ..Event::default()
    }
}

fn text(tags: &[Tag], key: &str) -> Option<String> {
    tags.iter().find_map(|tag| match &tag.value {
        Value::StringValue(text) if tag.key == key => Some(text.clone()),
        _ => None,
    })
}

/// Takes a string out of the tags; a value of another type stays.
fn take_text(tags: &mut Vec<Tag>, key: &str) -> Option<String> {
    let at = tags.iter().position(|tag| tag.key == key && matches!(tag.value, Value::StringValue(_)))?;
    match tags.remove(at).value {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn attribute(key: String, value: Value) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: Value) -> Tag {
        Tag { key: key.to_owned(), value }
    }

    fn string(key: &str, value: &str) -> Tag {
        tag(key, Value::StringValue(value.to_owned()))
    }

    fn one(span: Span, form: Form) -> OtlpSpan {
        to_otlp(Batch { process: Process::default(), spans: vec![span] }, form).remove(0).scope_spans.remove(0).spans.remove(0)
    }

    fn keys(attributes: &[KeyValue]) -> Vec<&str> {
        attributes.iter().map(|attribute| attribute.key.as_str()).collect()
    }

    #[test]
    fn a_process_becomes_a_resource() {
        let tags = vec![string("hostname", "h"), string("jaeger.version", "Go-1"), tag("n", Value::IntValue(1))];
        let process = Process { service: NO_SERVICE.to_owned(), tags };
        assert_eq!(keys(&resource(&process, Form::Protobuf).attributes), ["host.name", "opencensus.exporterversion", "n"]);
        assert_eq!(keys(&resource(&process, Form::Thrift).attributes)[0], "service.name");
        let both = Process { service: String::new(), tags: vec![string("hostname", "h"), string("host.name", "i")] };
        assert_eq!(keys(&resource(&both, Form::Thrift).attributes), ["hostname", "host.name"]);
    }

    #[test]
    fn the_status_comes_from_the_first_rule_that_applies() {
        let yes = || tag("error", Value::BoolValue(true));
        let http = |code| tag("http.status_code", Value::IntValue(code));
        use StatusCode::{Error, Ok, Unset};
        for (tags, kind, code, message, left) in [
            (vec![yes(), string("otel.status_description", "d"), string("otel.status_code", "OK")], SpanKind::Client, Error, "d", 1),
            (vec![yes(), string("http.status_message", "m")], SpanKind::Client, Error, "m", 1),
            (vec![string("otel.status_code", "ok"), string("otel.status_description", "d")], SpanKind::Client, Ok, "d", 0),
            (vec![string("otel.status_code", "odd"), http(500)], SpanKind::Client, Error, "", 1),
            (vec![http(399)], SpanKind::Server, Error, "", 1),
            (vec![http(404)], SpanKind::Server, Unset, "", 1),
            (vec![http(404), string("http.status_message", "m")], SpanKind::Client, Error, "m", 2),
            (vec![string("http.status_code", "200")], SpanKind::Client, Unset, "", 1),
            (vec![string("error", "true")], SpanKind::Client, Unset, "", 1),
            (vec![tag("error", Value::BoolValue(false))], SpanKind::Client, Unset, "", 1),
        ] {
            let mut rest = tags.clone();
            let status = status(&mut rest, kind);
            assert_eq!((status.code, status.message.as_str(), rest.len()), (i32::from(code), message, left), "{tags:?}");
        }
    }

    #[test]
    fn references_are_parents_and_links() {
        let reference = |follows_from, trace: u8, span: u8| Reference { follows_from, trace_id: [trace; 16], span_id: [span; 8] };
        let references = vec![reference(true, 1, 5), reference(false, 2, 6), reference(false, 1, 7), reference(false, 1, 8)];
        let span = Span { trace_id: [1; 16], span_id: [9; 8], references, ..Span::default() };
        let links = |span: &OtlpSpan| span.links.iter().map(|link| link.span_id[0]).collect::<Vec<_>>();
        let by_reference = one(span.clone(), Form::Protobuf);
        assert_eq!((by_reference.parent_span_id[0], links(&by_reference)), (7, vec![5, 6, 8]));
        let by_field = one(Span { parent_id: [8; 8], ..span.clone() }, Form::Thrift);
        assert_eq!((by_field.parent_span_id[0], links(&by_field)), (8, vec![5, 6, 7]));
        let follows = one(Span { references: vec![reference(true, 1, 5)], ..span }, Form::Thrift);
        assert_eq!((follows.parent_span_id[0], links(&follows)), (5, vec![5]));
    }

    #[test]
    fn protobuf_carries_processes_scopes_and_trace_states() {
        let other = Process { service: "other".to_owned(), tags: Vec::new() };
        let tags = vec![string("otel.scope.name", "lib"), string("otel.scope.version", "1"), string("w3c.tracestate", "a=b")];
        let span = |process| Span { tags: tags.clone(), process, ..Span::default() };
        let batch = Batch {
            process: Process { service: "one".to_owned(), tags: Vec::new() },
            spans: vec![span(None), span(Some(other)), span(None), Span::default()],
        };
        let out = to_otlp(batch.clone(), Form::Protobuf);
        assert_eq!(
            out.iter().map(|rs| rs.scope_spans.iter().map(|ss| ss.spans.len()).collect()).collect::<Vec<Vec<_>>>(),
            [vec![2, 1], vec![1]]
        );
        let first = &out[0].scope_spans[0];
        assert_eq!((first.scope.as_ref().map(|scope| scope.name.as_str()), first.spans[0].trace_state.as_str()), (Some("lib"), "a=b"));
        let out = to_otlp(batch, Form::Thrift);
        assert_eq!((out.len(), out[0].scope_spans.len(), out[0].scope_spans[0].spans[0].attributes.len()), (1, 1, 3));
    }

    #[test]
    fn logs_are_events_and_kinds_are_taken() {
        let logs = vec![
            Log { time: 5, fields: vec![string("event", "e"), string("k", "v")] },
            Log { time: 6, fields: vec![tag("event", Value::IntValue(1))] },
        ];
        let span = one(
            Span { logs, tags: vec![string("span.kind", "consumer"), string("x", "y")], start: 1, duration: 2, ..Span::default() },
            Form::Thrift,
        );
        assert_eq!((span.kind, span.end_time_unix_nano, keys(&span.attributes)), (SpanKind::Consumer.into(), 3, vec!["x"]));
        assert_eq!((span.events[0].name.as_str(), keys(&span.events[0].attributes)), ("e", vec!["k"]));
        assert_eq!((span.events[1].name.as_str(), keys(&span.events[1].attributes)), ("", vec!["event"]));
        let odd = one(Span { tags: vec![string("span.kind", "odd")], ..Span::default() }, Form::Thrift);
        assert_eq!((odd.kind, keys(&odd.attributes)), (0, vec!["span.kind"]));
    }

    #[test]
    fn unknown_types_say_so() {
        assert_eq!(super::super::model::unknown(9), Value::StringValue("<Unknown Jaeger TagType \"9\">".to_owned()));
    }
}
