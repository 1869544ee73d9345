//! The cold paths: bodies that have to change are decoded by `prost`, changed, and encoded again.
//!
//! All of them take validated bodies. Handed anything else, they return it as it is, because there is nothing sound to do to it.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value},
};
use prost::Message;

use super::{SpanEntry, Walk, index};

/// Rewrites a validated body so that each sub-message occurs at most once, as [`Walk::needs_normalising`] asks for. Drops unknown
/// fields. Cold path.
pub fn normalise(body: &[u8]) -> Vec<u8> {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => request.encode_to_vec(),
        Err(_) => body.to_vec(),
    }
}

/// Rewrites a validated body with attribute keys and string values of resources, scopes, spans, events and links cut to
/// `max_attribute_bytes` (at a character boundary; 0 means no limit). Returns the body, normalised as by [`normalise`], and how many
/// keys and values were cut. Cold path.
pub fn truncate_attributes(body: &[u8], max_attribute_bytes: usize) -> (Vec<u8>, u64) {
    let Ok(mut request) = ExportTraceServiceRequest::decode(body) else { return (body.to_vec(), 0) };
    let mut cut = 0;
    if max_attribute_bytes > 0 {
        let mut cut_all = |attributes: &mut [KeyValue]| cut += cut_attributes(attributes, max_attribute_bytes);
        for resource_spans in &mut request.resource_spans {
            if let Some(resource) = &mut resource_spans.resource {
                cut_all(&mut resource.attributes);
            }
            for scope_spans in &mut resource_spans.scope_spans {
                if let Some(scope) = &mut scope_spans.scope {
                    cut_all(&mut scope.attributes);
                }
                for span in &mut scope_spans.spans {
                    cut_all(&mut span.attributes);
                    span.events.iter_mut().for_each(|event| cut_all(&mut event.attributes));
                    span.links.iter_mut().for_each(|link| cut_all(&mut link.attributes));
                }
            }
        }
    }
    (request.encode_to_vec(), cut)
}

fn cut_attributes(attributes: &mut [KeyValue], max_bytes: usize) -> u64 {
    let mut cut = 0;
    for attribute in attributes {
        cut += cut_string(&mut attribute.key, max_bytes);
        if let Some(any_value::Value::StringValue(text)) = attribute.value.as_mut().and_then(|any| any.value.as_mut()) {
            cut += cut_string(text, max_bytes);
        }
    }
    cut
}

/// Cuts at the last character boundary that fits; 1 if there was anything to cut.
fn cut_string(text: &mut String, max_bytes: usize) -> u64 {
    if text.len() <= max_bytes {
        return 0;
    }
    text.truncate(text.floor_char_boundary(max_bytes));
    1
}

/// Rewrites a validated body without the spans for which `keep` says no. Scopes and resources left without spans go too. `keep` sees
/// the spans in the order of the body, with slices of the body as it was. Cold path.
pub fn retain_spans(body: &[u8], mut keep: impl FnMut(&SpanEntry) -> bool) -> Vec<u8> {
    let mut walk = Walk::default();
    let (Ok(()), Ok(mut request)) = (index(body, &mut walk), ExportTraceServiceRequest::decode(body)) else { return body.to_vec() };
    let mut entries = walk.spans.iter();
    for resource_spans in &mut request.resource_spans {
        for scope_spans in &mut resource_spans.scope_spans {
            scope_spans.spans.retain(|_| entries.next().is_some_and(&mut keep));
        }
        resource_spans.scope_spans.retain(|scope_spans| !scope_spans.spans.is_empty());
    }
    request.resource_spans.retain(|resource_spans| !resource_spans.scope_spans.is_empty());
    request.encode_to_vec()
}
