//! Puts the parts of one trace together.
//!
//! A trace lies in pieces: some spans are recent, others in one or several blocks, and while data moves from one place to the next the same
//! span is seen in both. Spans are the same when id and kind are (Zipkin's client and server halves share the id); the first one seen wins.
//! Resources are not merged: a trace shows who sent what.
//!
//! ```text
//!  segment ──┐
//!  segment ──┼─► Combiner::add ──► (known span? drop) ──► (too large? stop) ──► finish: sorted if more than one part
//!  block   ──┘
//! ```
//!
//! Invariant: the result does not depend on the order of the parts as long as it fits the size limit and repeated spans are equal.

use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind};
use prost::Message as _;
use storage::{
    block::Trace,
    id::{SpanKey, TraceId},
};

/// The identity of a span inside its trace.
pub(crate) fn key(span: &Span) -> SpanKey {
    SpanKey { span_id: number(&span.span_id), kind: span.kind }
}

/// Bytes of a span id as a number; longer ids, which no valid span has, keep their last eight bytes.
fn number(id: &[u8]) -> u64 {
    id.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Earliest start and latest end of the spans, Unix nanoseconds; `None` without spans.
pub(crate) fn time_range(trace: &[ResourceSpans]) -> Option<(u64, u64)> {
    spans(trace).fold(None, |range, span| {
        let (start, end) = range.unwrap_or((u64::MAX, 0));
        Some((start.min(span.start_time_unix_nano), end.max(span.end_time_unix_nano).max(span.start_time_unix_nano)))
    })
}

/// All spans of a trace.
pub(crate) fn spans(trace: &[ResourceSpans]) -> impl Iterator<Item = &Span> {
    trace.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
}

/// Collects the parts of one trace.
#[derive(Debug)]
pub(crate) struct Combiner {
    seen: HashSet<SpanKey>,
    trace: Vec<ResourceSpans>,
    parts: usize,
    bytes: usize,
    max_bytes: usize,
    truncated: bool,
}

impl Combiner {
    /// A trace of at most `max_bytes` of protobuf; 0 means any size.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { seen: HashSet::new(), trace: Vec::new(), parts: 0, bytes: 0, max_bytes, truncated: false }
    }

    /// Adds what is new in `part`. Once the trace is too large nothing more is added.
    pub(crate) fn add(&mut self, part: Vec<ResourceSpans>) {
        let mut added = false;
        for mut resource in part {
            let mut resource_bytes = resource.resource.as_ref().map_or(0, |resource| resource.encoded_len());
            for scope in &mut resource.scope_spans {
                let mut scope_bytes = scope.scope.as_ref().map_or(0, |scope| scope.encoded_len());
                scope.spans.retain(|span| {
                    if self.truncated || self.seen.contains(&key(span)) {
                        return false;
                    }
                    let bytes = span.encoded_len() + resource_bytes + scope_bytes;
                    if self.max_bytes > 0 && self.bytes + bytes > self.max_bytes {
                        self.truncated = true;
                        return false;
                    }
                    self.bytes += bytes;
                    (resource_bytes, scope_bytes) = (0, 0);
                    self.seen.insert(key(span))
                });
            }
            resource.scope_spans.retain(|scope| !scope.spans.is_empty());
            if !resource.scope_spans.is_empty() {
                self.trace.push(resource);
                added = true;
            }
        }
        self.parts += usize::from(added);
    }

    /// The size limit; 0 means any size.
    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Bytes of memory that the trace takes, about: messages are larger than their encoding.
    pub(crate) fn memory(&self) -> u64 {
        4 * self.bytes as u64
    }

    /// Whether spans were left out because the trace is too large.
    pub(crate) fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The trace so far, as it was stored. Sorted when it came in more than one part.
    pub(crate) fn finish(mut self, trace_id: TraceId) -> Trace {
        if self.parts > 1 {
            sort(&mut self.trace);
        }
        Trace { trace_id, resource_spans: self.trace }
    }
}

fn order(span: &Span) -> (u64, SpanKey) {
    (span.start_time_unix_nano, key(span))
}

fn first(scope: &ScopeSpans) -> Option<(u64, SpanKey)> {
    scope.spans.first().map(order)
}

fn sort(trace: &mut [ResourceSpans]) {
    for resource in trace.iter_mut() {
        for scope in &mut resource.scope_spans {
            scope.spans.sort_by_key(order);
        }
        resource.scope_spans.sort_by_key(first);
    }
    trace.sort_by_key(|resource| resource.scope_spans.first().and_then(first));
}

/// Gives Zipkin's server halves an id of their own, as Tempo shows them: the server span becomes a child of the client span whose id it
/// shared, and the children of the shared id become children of the server span. New ids count from 1, skipping those in use.
pub(crate) fn separate_shared_ids(trace: &mut [ResourceSpans]) {
    let mut clients = HashSet::new();
    let mut used = HashSet::new();
    for span in spans(trace) {
        let id = number(&span.span_id);
        used.insert(id);
        if span.kind == SpanKind::Client as i32 {
            clients.insert(id);
        }
    }

    let mut next = 0u64;
    let mut renamed: HashMap<u64, u64> = HashMap::new();
    let mut servers: HashSet<u64> = HashSet::new();
    for span in spans_mut(trace) {
        let shared = number(&span.span_id);
        if span.kind != SpanKind::Server as i32 || !clients.contains(&shared) || renamed.contains_key(&shared) {
            continue;
        }
        let id = loop {
            next += 1;
            if used.insert(next) {
                break next;
            }
        };
        renamed.insert(shared, id);
        servers.insert(id);
        span.parent_span_id = shared.to_be_bytes().to_vec();
        span.span_id = id.to_be_bytes().to_vec();
    }
    if renamed.is_empty() {
        return;
    }
    for span in spans_mut(trace) {
        if span.parent_span_id.is_empty() || servers.contains(&number(&span.span_id)) {
            continue;
        }
        if let Some(id) = renamed.get(&number(&span.parent_span_id)) {
            span.parent_span_id = id.to_be_bytes().to_vec();
        }
    }
}

fn spans_mut(trace: &mut [ResourceSpans]) -> impl Iterator<Item = &mut Span> {
    trace.iter_mut().flat_map(|resource| &mut resource.scope_spans).flat_map(|scope| &mut scope.spans)
}

/// Adds the empty messages that Grafana takes for granted: resource, scope and status.
pub(crate) fn complete(trace: &mut [ResourceSpans]) {
    for resource in trace {
        resource.resource.get_or_insert_default();
        for scope in &mut resource.scope_spans {
            scope.scope.get_or_insert_default();
            for span in &mut scope.spans {
                span.status.get_or_insert_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use proptest::prelude::*;

    use super::*;

    fn span(id: u64, kind: SpanKind, start: u64) -> Span {
        Span {
            span_id: id.to_be_bytes().to_vec(),
            kind: kind as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: start + 10,
            ..Span::default()
        }
    }

    fn child(id: u64, parent: u64, kind: SpanKind) -> Span {
        Span { parent_span_id: parent.to_be_bytes().to_vec(), ..span(id, kind, id) }
    }

    fn part(spans: Vec<Span>) -> Vec<ResourceSpans> {
        vec![ResourceSpans { scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }], ..ResourceSpans::default() }]
    }

    fn combine(parts: impl IntoIterator<Item = Vec<ResourceSpans>>) -> Vec<ResourceSpans> {
        let mut combiner = Combiner::new(0);
        parts.into_iter().for_each(|part| combiner.add(part));
        combiner.finish(TraceId::default()).resource_spans
    }

    fn ids(trace: &[ResourceSpans]) -> Vec<(u64, i32)> {
        spans(trace).map(|span| (number(&span.span_id), span.kind)).collect()
    }

    #[test]
    fn a_span_seen_twice_counts_once_but_the_kind_tells_halves_apart() {
        let trace = combine([
            part(vec![span(1, SpanKind::Client, 5), span(2, SpanKind::Internal, 3)]),
            part(vec![span(1, SpanKind::Server, 4), span(2, SpanKind::Internal, 3)]),
        ]);
        assert_eq!(ids(&trace), [(2, 1), (1, 3), (1, 2)]);
    }

    #[test]
    fn one_part_keeps_its_order() {
        assert_eq!(ids(&combine([part(vec![span(2, SpanKind::Client, 9), span(1, SpanKind::Client, 1)])])), [(2, 3), (1, 3)]);
        let repeated = vec![span(2, SpanKind::Client, 9), span(1, SpanKind::Client, 1)];
        assert_eq!(ids(&combine([part(repeated.clone()), part(repeated)])), [(2, 3), (1, 3)]);
    }

    #[test]
    fn a_trace_that_is_too_large_stops_at_the_limit() {
        let one = span(1, SpanKind::Client, 1).encoded_len();
        let mut combiner = Combiner::new(2 * one);
        combiner.add(part(vec![span(1, SpanKind::Client, 1)]));
        combiner.add(part(vec![span(1, SpanKind::Client, 1), span(2, SpanKind::Client, 2)]));
        assert!(!combiner.is_truncated(), "repeated spans do not count");
        combiner.add(part(vec![span(3, SpanKind::Client, 3)]));
        assert!(combiner.is_truncated());
        assert_eq!(ids(&combiner.finish(TraceId::default()).resource_spans), [(1, 3), (2, 3)]);
    }

    #[test]
    fn zipkin_halves_get_ids_of_their_own() {
        let mut trace = part(vec![
            child(7, 9, SpanKind::Client),
            child(7, 9, SpanKind::Server),
            child(8, 7, SpanKind::Internal),
            child(1, 8, SpanKind::Internal),
        ]);
        separate_shared_ids(&mut trace);
        let all: Vec<_> = spans(&trace).map(|span| (number(&span.span_id), number(&span.parent_span_id), span.kind)).collect();
        assert_eq!(all, [(7, 9, 3), (2, 7, 2), (8, 2, 1), (1, 8, 1)]);
    }

    #[test]
    fn ordinary_traces_are_left_alone() {
        let before = part(vec![child(7, 9, SpanKind::Client), child(8, 7, SpanKind::Server)]);
        let mut after = before.clone();
        separate_shared_ids(&mut after);
        assert_eq!(before, after);
    }

    #[test]
    fn completed_traces_have_resource_scope_and_status() {
        let mut trace = part(vec![span(1, SpanKind::Client, 1)]);
        complete(&mut trace);
        assert_eq!(trace[0].resource, Some(Resource::default()));
        assert!(trace[0].scope_spans[0].scope.is_some() && trace[0].scope_spans[0].spans[0].status.is_some());
    }

    proptest! {
        #[test]
        fn the_order_of_the_parts_does_not_matter(
            parts in prop::collection::vec(prop::collection::vec((1u64..30, 0i32..6), 1..6), 2..6),
            seed in any::<u64>(),
        ) {
            let build = |spans: &Vec<(u64, i32)>| {
                part(spans.iter().map(|(id, kind)| Span { kind: *kind, ..span(*id, SpanKind::Internal, id % 7) }).collect())
            };
            let mut shuffled: Vec<_> = parts.iter().enumerate().collect();
            shuffled.sort_by_key(|(position, _)| (*position as u64).wrapping_mul(seed | 1).rotate_left(17));
            let mut one = ids(&combine(parts.iter().map(build)));
            let mut other = ids(&combine(shuffled.iter().map(|(_, spans)| build(spans))));
            one.sort_unstable();
            other.sort_unstable();
            let expected: HashSet<_> = parts.iter().flatten().copied().collect();
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(one.len(), expected.len());
        }
    }
}
