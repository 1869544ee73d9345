//! Puts spans into other messages than those they came in, without decoding them.
//!
//! The problem: a request holds the spans of many traces under shared resources and scopes. To send a trace on, or to leave one out, spans
//! have to stand in other `ResourceSpans`; but a span, a resource and a scope are each a run of bytes of the request that nobody has to look
//! into. So only the frames around them are written anew, and every byte of a span is copied once.
//!
//! ```text
//!  Parts of one body, in any order          encode
//!  (R1 S1 a)(R1 S1 b)(R1 S2 c)(R2 S1 d) ──────────► ResourceSpans { R1, [{S1, a b} {S2, c}] } ResourceSpans { R2, [{S1, d}] }
//! ```
//!
//! What is written is the contents of an `ExportTraceServiceRequest`, and just as well of a `tempopb.Trace`. Neighbours that share a resource
//! or a scope share the frame; [`share`] finds equal ones and makes them neighbours. As in Tempo, schema URLs are lost.

use std::collections::HashMap;

use storage::otlp::{Slice, SpanEntry};

use crate::wire::{LENGTH_DELIMITED, put_varint};

/// A span with its surroundings, as places in a body: contents of the messages, without tag and length. 0..0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) resource: Slice,
    pub(crate) scope: Slice,
    pub(crate) span: Slice,
}

impl From<&SpanEntry> for Parts {
    fn from(entry: &SpanEntry) -> Self {
        Self { resource: entry.resource, scope: entry.scope, span: entry.span }
    }
}

/// Resource spans of a request, resource of those, scope of scope spans: all are field 1.
const FIRST: u8 = 1 << 3 | LENGTH_DELIMITED;
/// Scope spans of resource spans, spans of scope spans.
const SECOND: u8 = 2 << 3 | LENGTH_DELIMITED;

/// Bytes that [`encode`] appends.
pub(crate) fn encoded_len(parts: &[Parts]) -> usize {
    resources(parts).map(|of_resource| field_len(resource_spans_len(of_resource))).sum()
}

/// Appends the spans, in the order given.
pub(crate) fn encode(body: &[u8], parts: &[Parts], out: &mut Vec<u8>) {
    for of_resource in resources(parts) {
        open(FIRST, resource_spans_len(of_resource), out);
        put(FIRST, of_resource[0].resource, body, out);
        for of_scope in scopes(of_resource) {
            open(SECOND, scope_spans_len(of_scope), out);
            put(FIRST, of_scope[0].scope, body, out);
            for part in of_scope {
                open(SECOND, part.span.len(), out);
                out.extend_from_slice(part.span.of(body).unwrap_or_default());
            }
        }
    }
}

/// Makes spans refer to the same resource and scope if the bytes of these are equal, and puts those next to each other. Spans that share both
/// keep their order.
pub(crate) fn share(body: &[u8], parts: &mut [Parts]) {
    // One map for both: they are told apart by what asks for them only, and a slice of equal bytes is as good.
    let mut first: HashMap<&[u8], Slice, foldhash::fast::RandomState> = HashMap::default();
    let mut previous: Option<(Parts, Parts)> = None;
    for part in parts.iter_mut() {
        let found = *part;
        let mut canonical = |slice: Slice, before: Option<(Slice, Slice)>| match before {
            Some((found, canonical)) if found == slice => canonical,
            _ if slice == Slice::default() => slice,
            _ => *first.entry(slice.of(body).unwrap_or_default()).or_insert(slice),
        };
        part.resource = canonical(found.resource, previous.map(|(found, canonical)| (found.resource, canonical.resource)));
        part.scope = canonical(found.scope, previous.map(|(found, canonical)| (found.scope, canonical.scope)));
        previous = Some((found, *part));
    }
    parts.sort_by_key(|part| (part.resource.start, part.resource.end, part.scope.start, part.scope.end));
}

fn resources(parts: &[Parts]) -> impl Iterator<Item = &[Parts]> {
    parts.chunk_by(|a, b| a.resource == b.resource)
}

fn scopes(of_resource: &[Parts]) -> impl Iterator<Item = &[Parts]> {
    of_resource.chunk_by(|a, b| a.scope == b.scope)
}

fn resource_spans_len(of_resource: &[Parts]) -> usize {
    part_len(of_resource[0].resource) + scopes(of_resource).map(|of_scope| field_len(scope_spans_len(of_scope))).sum::<usize>()
}

fn scope_spans_len(of_scope: &[Parts]) -> usize {
    part_len(of_scope[0].scope) + of_scope.iter().map(|part| field_len(part.span.len())).sum::<usize>()
}

/// Bytes of a resource or scope with its frame.
fn part_len(slice: Slice) -> usize {
    if slice == Slice::default() { 0 } else { field_len(slice.len()) }
}

/// Bytes of a field of `contents` bytes whose number is below 16.
pub(crate) fn field_len(contents: usize) -> usize {
    let varint = (usize::BITS - (contents | 1).leading_zeros()).div_ceil(7) as usize;
    1 + varint + contents
}

fn open(tag: u8, length: usize, out: &mut Vec<u8>) {
    out.push(tag);
    put_varint(out, length as u64);
}

fn put(tag: u8, slice: Slice, body: &[u8], out: &mut Vec<u8>) {
    if slice != Slice::default() {
        open(tag, slice.len(), out);
        out.extend_from_slice(slice.of(body).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::InstrumentationScope,
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
    use proptest::prelude::*;
    use prost::Message as _;
    use storage::otlp::{Walk, validate};

    /// Resources, scopes and names by number; 0 is none.
    fn body(groups: &[(u8, Vec<(u8, usize)>)]) -> (Vec<u8>, Vec<Parts>) {
        let mut id = 0u64;
        let mut span = || {
            id += 1;
            Span { trace_id: vec![7; 16], span_id: id.to_be_bytes().to_vec(), name: "n".repeat(id as usize * 40), ..Span::default() }
        };
        let mut scope_spans = |&(scope, spans): &(u8, usize)| ScopeSpans {
            scope: (scope > 0).then(|| InstrumentationScope { version: "v".repeat(usize::from(scope) - 1), ..Default::default() }),
            spans: (0..spans).map(|_| span()).collect(),
            ..Default::default()
        };
        let resource_spans = groups.iter().map(|(resource, scopes)| ResourceSpans {
            resource: (*resource > 0).then(|| Resource { dropped_attributes_count: u32::from(*resource) - 1, ..Default::default() }),
            scope_spans: scopes.iter().map(&mut scope_spans).collect(),
            ..Default::default()
        });
        let body = ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec();
        let mut walk = Walk::default();
        validate(&body, 0, &mut walk).expect("valid");
        (body, walk.spans.iter().map(Parts::from).collect())
    }

    /// A span with its resource and scope.
    type Found = (Option<Resource>, Option<InstrumentationScope>, Span);

    /// All spans, and the number of frames.
    fn flat(body: &[u8]) -> (Vec<Found>, usize, usize) {
        let request = ExportTraceServiceRequest::decode(body).expect("valid");
        let mut spans = Vec::new();
        let (resources, mut scopes) = (request.resource_spans.len(), 0);
        for of_resource in request.resource_spans {
            for of_scope in of_resource.scope_spans {
                scopes += 1;
                for span in of_scope.spans {
                    spans.push((of_resource.resource.clone(), of_scope.scope.clone(), span));
                }
            }
        }
        (spans, resources, scopes)
    }

    #[test]
    fn lengths_of_fields() {
        for contents in [0usize, 1, 127, 128, 16_383, 16_384, 1 << 21] {
            let mut out = Vec::new();
            open(FIRST, contents, &mut out);
            assert_eq!(field_len(contents), out.len() + contents);
        }
    }

    proptest! {
        /// Whatever is picked in whatever order is found again with its resource and scope, in as many bytes as were announced.
        #[test]
        fn picked_spans_keep_their_surroundings(
            groups in prop::collection::vec((0u8..3, prop::collection::vec((0u8..3, 0usize..4), 0..3)), 0..5),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            shared in any::<bool>(),
        ) {
            let (body, all) = body(&groups);
            let everything = flat(&body).0;
            prop_assume!(!all.is_empty());
            let picks: Vec<usize> = picks.iter().map(|pick| pick.index(all.len())).collect();
            let mut parts: Vec<Parts> = picks.iter().map(|&pick| all[pick]).collect();
            if shared {
                share(&body, &mut parts);
            }
            let mut out = Vec::new();
            encode(&body, &parts, &mut out);
            prop_assert_eq!(out.len(), encoded_len(&parts));
            let (mut got, resources, scopes) = flat(&out);
            let mut expected: Vec<_> = picks.iter().map(|&pick| everything[pick].clone()).collect();
            if shared {
                let pairs = |spans: &[Found]| {
                    let mut pairs: Vec<_> = spans.iter().map(|span| (format!("{:?}", span.0), format!("{:?}", span.1))).collect();
                    pairs.sort();
                    pairs.dedup();
                    pairs
                };
                let mut distinct = pairs(&got);
                prop_assert_eq!(scopes, distinct.len());
                distinct.dedup_by_key(|pair| pair.0.clone());
                prop_assert_eq!(resources, distinct.len());
                let by_id = |span: &Found| span.2.span_id.clone();
                got.sort_by_key(by_id);
                expected.sort_by_key(by_id);
            }
            prop_assert_eq!(got, expected);
        }
    }
}
