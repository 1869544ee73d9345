//! `otlp::validate` accepts what `prost` decodes and whose ids are right, and nothing else; the walks find the spans that `prost` finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use storage::otlp::{Walk, index, normalise, retain_spans, truncate_attributes, validate};

fuzz_target!(|body: &[u8]| {
    let (mut walk, mut indexed) = (Walk::default(), Walk::default());
    let accepted = validate(body, 16, &mut walk).is_ok();
    let request = ExportTraceServiceRequest::decode(body).ok().filter(ids_are_right);
    assert_eq!(accepted, request.is_some());
    let index_result = index(body, &mut indexed);
    let Some(request) = request else { return };
    index_result.expect("an accepted body can be indexed");
    assert_eq!(walk.spans, indexed.spans);
    let spans: Vec<_> = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
    assert_eq!(walk.spans.len(), spans.len());
    for (entry, span) in walk.spans.iter().zip(spans) {
        assert_eq!(entry.trace_id.0, span.trace_id[..]);
        assert_eq!((entry.key.span_id.to_be_bytes(), entry.key.kind), (span.span_id[..].try_into().expect("8 bytes"), span.kind));
        assert_eq!((entry.start_ns, entry.end_ns), (span.start_time_unix_nano, span.end_time_unix_nano));
    }
    let normal = normalise(body);
    validate(&normal, 16, &mut walk).expect("a normalised body is valid");
    assert!(!walk.needs_normalising);
    let (truncated, _) = truncate_attributes(body, 16);
    validate(&truncated, 16, &mut walk).expect("a truncated body is valid");
    assert!(!walk.oversized_attributes);
    assert!(retain_spans(body, |_| false).is_empty());
});

fn ids_are_right(request: &ExportTraceServiceRequest) -> bool {
    let present = |id: &[u8], bytes: usize| id.len() == bytes && id.iter().any(|byte| *byte != 0);
    request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).all(|span| {
        let links = span.links.iter().all(|link| matches!(link.trace_id.len(), 0 | 16) && matches!(link.span_id.len(), 0 | 8));
        present(&span.trace_id, 16) && present(&span.span_id, 8) && matches!(span.parent_span_id.len(), 0 | 8) && links
    })
}
