use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use proptest::prelude::*;

use super::*;
use crate::otlp;

/// Few traces, so that a request holds several spans of each.
fn requests() -> impl Strategy<Value = ExportTraceServiceRequest> {
    (otlp::tests::request(0), any::<u64>()).prop_map(|(mut request, seed)| {
        let mut seed = seed;
        for span in request.resource_spans.iter_mut().flat_map(|r| &mut r.scope_spans).flat_map(|s| &mut s.spans) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            span.trace_id = vec![(seed >> 62) as u8 + 1; 16];
        }
        request
    })
}

fn split(request: &ExportTraceServiceRequest) -> Vec<Segment> {
    let body = Bytes::from(request.encode_to_vec());
    let mut walk = Walk::default();
    otlp::validate(&body, 0, &mut walk).expect("valid");
    Segment::split(&Tenant::single(), Position(7), &body, &walk)
}

/// Every span with what it belongs to, as bytes because the trees may hold NaN.
type Flat = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

fn flatten<'a>(resource_spans: impl IntoIterator<Item = &'a ResourceSpans>) -> Vec<(Vec<u8>, Flat)> {
    let mut flat = Vec::new();
    for resource_spans in resource_spans {
        for scope_spans in &resource_spans.scope_spans {
            for span in &scope_spans.spans {
                let resource = resource_spans.resource.as_ref().map(Message::encode_to_vec);
                let scope = scope_spans.scope.as_ref().map(Message::encode_to_vec);
                flat.push((span.trace_id.clone(), (resource, scope, span.encode_to_vec())));
            }
        }
    }
    flat
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn split_and_decode_give_back_every_span(request in requests()) {
        let segments = split(&request);
        let sent = flatten(&request.resource_spans);
        let mut order: Vec<Vec<u8>> = Vec::new();
        for (trace_id, _) in &sent {
            if !order.contains(trace_id) {
                order.push(trace_id.clone());
            }
        }
        prop_assert_eq!(segments.iter().map(|segment| segment.trace_id.0.to_vec()).collect::<Vec<_>>(), order);
        for segment in &segments {
            let decoded = segment.decode().expect("valid");
            let expected: Vec<_> = sent.iter().filter(|(trace_id, _)| trace_id[..] == segment.trace_id.0).cloned().collect();
            prop_assert_eq!(flatten(&decoded), expected);
            prop_assert_eq!(segment.position, Position(7));
            let bytes: usize = decoded.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).map(Message::encoded_len).sum();
            prop_assert_eq!(segment.span_bytes(), bytes);
        }
    }

    #[test]
    fn a_journey_carries_every_span_and_little_else(request in requests()) {
        for segment in split(&request) {
            let json = serde_json::to_vec(&segment).expect("serialises");
            let arrived: Segment = serde_json::from_slice(&json).expect("deserialises");
            let (sent, received) = (segment.decode().expect("valid"), arrived.decode().expect("valid"));
            prop_assert_eq!(flatten(&sent), flatten(&received));
            prop_assert_eq!(segment.span_bytes(), arrived.span_bytes());
            prop_assert!(arrived.body.len() <= segment.body.len());
            // A second journey changes nothing any more.
            let again: Segment = serde_json::from_slice(&serde_json::to_vec(&arrived).expect("serialises")).expect("deserialises");
            prop_assert_eq!(again, arrived);
        }
    }
}

#[test]
fn resources_and_scopes_travel_once() {
    let span = |id: u8| Span { trace_id: vec![1; 16], span_id: vec![id; 8], ..Default::default() };
    let attribute = opentelemetry_proto::tonic::common::v1::KeyValue { key: "k".repeat(1000), ..Default::default() };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(opentelemetry_proto::tonic::resource::v1::Resource { attributes: vec![attribute], ..Default::default() }),
            scope_spans: vec![ScopeSpans { spans: (1..50).map(span).collect(), ..Default::default() }],
            ..Default::default()
        }],
    };
    let segments = split(&request);
    let arrived: Segment = serde_json::from_slice(&serde_json::to_vec(&segments[0]).expect("serialises")).expect("deserialises");
    assert_eq!(arrived.body.len(), segments[0].span_bytes() + segments[0].spans[0].resource.len());
}

#[test]
fn a_segment_from_elsewhere_is_checked() {
    let refuse = |change: fn(&mut Segment), reason: &str| {
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: vec![Span { trace_id: vec![1; 16], span_id: vec![2; 8], ..Default::default() }],
                    ..Default::default()
                }],
                ..Default::default()
            }],
        };
        let segment = split(&request).remove(0);
        let wire = |segment: &Segment| Wire {
            tenant: segment.tenant.clone(),
            trace_id: segment.trace_id,
            position: segment.position,
            body: segment.body.clone(),
            spans: segment.spans.clone(),
        };
        let mut changed = segment;
        change(&mut changed);
        let json = serde_json::to_string(&wire(&changed)).expect("serialises");
        let error = serde_json::from_str::<Segment>(&json).expect_err("refused").to_string();
        assert!(error.contains(reason), "{error}");
    };
    refuse(|segment| segment.spans.clear(), "without spans");
    refuse(|segment| segment.spans[0].span.end = 10_000, "outside its body");
    refuse(|segment| segment.spans[0].scope = Slice { start: 5, end: 4 }, "outside its body");
}
