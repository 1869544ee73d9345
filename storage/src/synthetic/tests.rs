use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};

use super::*;

fn decode(bodies: &[Bytes]) -> Vec<ResourceSpans> {
    let decode = |body: &Bytes| ExportTraceServiceRequest::decode(body.as_ref()).expect("a request").resource_spans;
    bodies.iter().flat_map(decode).collect()
}

fn service(resource_spans: &ResourceSpans) -> String {
    let resource = resource_spans.resource.as_ref().expect("a resource");
    let attribute = resource.attributes.iter().find(|attribute| attribute.key == "service.name").expect("a service");
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(name)) => name.clone(),
        other => panic!("service.name is {other:?}"),
    }
}

fn spans(resource_spans: &ResourceSpans) -> impl Iterator<Item = &Span> {
    resource_spans.scope_spans.iter().flat_map(|scope_spans| &scope_spans.spans)
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_gives_others() {
    assert_eq!(requests(7, 200), requests(7, 200));
    assert_ne!(requests(7, 200), requests(8, 200));
}

#[test]
fn bytes_are_those_that_prost_writes() {
    for body in requests(3, 500) {
        let request = ExportTraceServiceRequest::decode(body.as_ref()).expect("a request");
        assert_eq!(request.encode_to_vec(), body);
    }
}

#[test]
fn long_messages_get_long_lengths() {
    for length in [0, 1, 127, 128, 16_383, 16_384] {
        let mut out = Vec::new();
        wire::message(&mut out, 1, |out| out.extend(std::iter::repeat_n(7, length)));
        let mut expected = Vec::new();
        wire::bytes(&mut expected, 1, &vec![7; length]);
        assert_eq!(out, expected);
        assert_eq!(out.len(), wire::field_len(length));
    }
}

#[test]
fn the_default_shape_is_as_stated() {
    let (bodies, totals) = requests_with(Settings::default(), 4000);
    let bytes: usize = bodies.iter().map(Bytes::len).sum();
    let per_span = bytes as f64 / totals.spans as f64;
    let per_trace = totals.spans as f64 / totals.traces as f64;
    let calls: u64 = totals.edges.iter().filter(|(edge, _)| edge.connection == Connection::Request).map(|(_, edge)| edge.requests).sum();
    let calls_per_trace = calls as f64 / totals.traces as f64;
    assert!((397.0..417.0).contains(&per_span), "{per_span} bytes per span");
    assert!((23.0..27.0).contains(&per_trace), "{per_trace} spans per trace");
    assert!((3.0..6.0).contains(&calls_per_trace), "{calls_per_trace} client and server pairs per trace");
    assert!((0.005..0.05).contains(&(totals.errors as f64 / totals.spans as f64)), "{} errors", totals.errors);
    assert_eq!(totals.services.len(), SERVICES.len());
    assert!(totals.names.len() > 100, "{} names", totals.names.len());
    for (number, body) in bodies.iter().enumerate() {
        let count: usize = decode(std::slice::from_ref(body)).iter().map(|resource_spans| spans(resource_spans).count()).sum();
        assert!(count == 1000 || number + 1 == bodies.len() && count <= 1000, "request {number} has {count} spans");
    }
}

#[test]
fn truth_agrees_with_what_is_decoded() {
    let (bodies, totals) = requests_with(Settings { seed: 5, ..Settings::default() }, 1000);
    let decoded = decode(&bodies);
    let mut counted = (0, 0, BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let mut by_id = BTreeMap::new();
    for resource_spans in &decoded {
        let service = service(resource_spans);
        for span in spans(resource_spans) {
            let error = span.status.as_ref().is_some_and(|status| status.code == 2);
            counted.0 += 1;
            counted.1 += u64::from(error);
            *counted.2.entry(service.clone()).or_default() += 1;
            *counted.3.entry(span.name.clone()).or_default() += 1;
            let before = by_id.insert((span.trace_id.clone(), span.span_id.clone()), (service.clone(), span, error));
            assert!(before.is_none(), "a span id occurs twice in a trace");
        }
    }
    // The naive service graph: every span looks for its parent.
    let mut edges = BTreeMap::<(String, String), EdgeTotals>::new();
    for (service, span, error) in by_id.values() {
        let parent = by_id.get(&(span.trace_id.clone(), span.parent_span_id.clone()));
        assert_eq!(parent.is_none(), span.parent_span_id.is_empty());
        if let Some((client, parent, parent_error)) = parent {
            let pair = (parent.kind(), span.kind());
            if [(SpanKind::Client, SpanKind::Server), (SpanKind::Producer, SpanKind::Consumer)].contains(&pair) {
                let edge = edges.entry((client.clone(), service.clone())).or_default();
                edge.requests += 1;
                edge.failed += u64::from(*error || *parent_error);
            }
        }
    }
    let names =
        |truth: &BTreeMap<&'static str, u64>| truth.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<BTreeMap<_, _>>();
    assert_eq!((totals.spans, totals.errors), (counted.0, counted.1));
    assert_eq!(names(&totals.services), counted.2);
    assert_eq!(names(&totals.names), counted.3);
    let expected: BTreeMap<_, _> = totals
        .edges
        .iter()
        .filter(|(edge, _)| edge.connection != Connection::Database)
        .map(|(edge, count)| ((edge.client.to_owned(), edge.server.to_owned()), *count))
        .collect();
    assert_eq!(edges, expected);
    let allowed: BTreeSet<_> = span_names().chain(["GET", "POST", "PUT"]).collect();
    assert!(totals.names.keys().all(|name| allowed.contains(name)));
}

#[test]
fn children_lie_inside_their_parents_unless_they_consume() {
    let mut generator = Generator::new(Settings { seed: 11, ..Settings::default() });
    for trace in generator.by_ref().take(300) {
        let all: Vec<&Span> = trace.resource_spans().iter().flat_map(spans).collect();
        assert_eq!(all.len(), trace.summary().spans.len());
        let by_id: BTreeMap<&[u8], &Span> = all.iter().map(|span| (span.span_id.as_slice(), *span)).collect();
        for span in &all {
            assert_eq!(span.trace_id, trace.summary().trace_id.0);
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            if let Some(parent) = by_id.get(span.parent_span_id.as_slice()) {
                let inside =
                    span.start_time_unix_nano >= parent.start_time_unix_nano && span.end_time_unix_nano <= parent.end_time_unix_nano;
                assert!(inside || span.kind() == SpanKind::Consumer, "{} is not inside {}", span.name, parent.name);
            }
        }
    }
}

#[test]
fn traces_may_be_of_any_size_and_requests_of_any_number() {
    let mut generator = Generator::new(Settings::default());
    for size in [1, 2, 3, 1000, 100_000] {
        let trace = generator.trace_with_spans(size);
        assert_eq!(trace.resource_spans().iter().flat_map(spans).count(), size);
    }
    for spans_per_request in [1, 3, 10_000] {
        let settings = Settings { spans_per_request, spans_per_trace: 4, ..Settings::default() };
        let (bodies, totals) = requests_with(settings, 100);
        assert_eq!(totals.traces, 100);
        assert_eq!(bodies.len() as u64, totals.spans.div_ceil(spans_per_request as u64));
    }
}

#[test]
fn many_traces_come_in_several_requests() {
    let mut seen = BTreeMap::<TraceId, BTreeSet<usize>>::new();
    for (number, request) in Requests::new(Settings::default(), Some(2000)).enumerate() {
        for part in &request.parts {
            seen.entry(part.trace.trace_id).or_default().insert(number);
        }
    }
    let split = seen.values().filter(|requests| requests.len() > 1).count();
    assert_eq!(seen.len(), 2000);
    assert!((300..1000).contains(&split), "{split} of 2000 traces are split");
}
