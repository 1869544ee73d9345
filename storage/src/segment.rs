//! A segment: the spans of one trace that arrived in one request, still as the wire bytes they came in.
//!
//! Segments are what travels through the dataflow and what a block is encoded from. A segment holds one reference to the body of its
//! WAL record and, for each span, where its resource, its scope and the span itself lie in it; nothing is copied or decoded until
//! somebody asks.
//!
//! ```text
//!  body  │ resource │ scope │ span A1 │ span B1 │ span A2 │        shared, one allocation per WAL read
//!            ▲  ▲      ▲  ▲      ▲         ▲         ▲
//!  trace A ──┴──┼──────┴──┼──────┴─────────┼─────────┘             SpanRefs: offsets only
//!  trace B ─────┴─────────┴────────────────┘
//! ```
//!
//! Between processes (serde) a segment carries only the bytes that it refers to, each resource and scope once.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::OnceLock,
};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    id::{SpanKey, Tenant, TraceId},
    otlp::{Slice, SpanEntry, Walk, WireError},
    wal::Position,
};

/// One span inside a [`Segment::body`]. The slices are the *contents* of the messages, without tag and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanRef {
    /// Identity inside the trace.
    pub key: SpanKey,
    /// Start, Unix nanoseconds.
    pub start_ns: u64,
    /// The `Resource` message; empty when the `ResourceSpans` has none.
    pub resource: Slice,
    /// The `InstrumentationScope` message; empty when the `ScopeSpans` has none.
    pub scope: Slice,
    /// The `Span` message.
    pub span: Slice,
}

/// The spans of one trace from one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose trace it is.
    pub tenant: Tenant,
    /// The trace.
    pub trace_id: TraceId,
    /// Where the record that it came from begins in its WAL.
    pub position: Position,
    /// The record's body, a valid `ExportTraceServiceRequest`. Shared by all segments of the record. After a journey between processes
    /// only the messages that `spans` refers to, without what held them together.
    pub body: Bytes,
    /// The spans, in the order of the request; never empty.
    pub spans: Vec<SpanRef>,
}

impl Segment {
    /// Regroups the spans of one record by trace, in order of first appearance.
    pub fn split(tenant: &Tenant, position: Position, body: &Bytes, walk: &Walk) -> Vec<Self> {
        let Some(first) = walk.spans.first() else { return Vec::new() };
        // Two passes, so that each segment's spans are allocated once and at their size. The trace of the span before is tried first:
        // the spans of one trace often follow one another.
        let mut groups: HashMap<TraceId, u32, FoldBuilder> = HashMap::with_hasher(FoldBuilder::new());
        let mut sizes: Vec<(TraceId, usize)> = vec![(first.trace_id, 0)];
        let mut group_of = Vec::with_capacity(walk.spans.len());
        groups.insert(first.trace_id, 0);
        let mut previous = (first.trace_id, 0u32);
        for entry in &walk.spans {
            if entry.trace_id != previous.0 {
                let group = *groups.entry(entry.trace_id).or_insert_with(|| {
                    sizes.push((entry.trace_id, 0));
                    sizes.len() as u32 - 1
                });
                previous = (entry.trace_id, group);
            }
            sizes[previous.1 as usize].1 += 1;
            group_of.push(previous.1);
        }
        let mut segments: Vec<Self> = sizes
            .into_iter()
            .map(|(trace_id, spans)| Self {
                tenant: tenant.clone(),
                trace_id,
                position,
                body: body.clone(),
                spans: Vec::with_capacity(spans),
            })
            .collect();
        for (entry, group) in walk.spans.iter().zip(group_of) {
            let SpanEntry { key, start_ns, resource, scope, span, .. } = *entry;
            segments[group as usize].spans.push(SpanRef { key, start_ns, resource, scope, span });
        }
        segments
    }

    /// A segment that came from another process; see [`Self::compacted`].
    ///
    /// # Errors
    /// It has no spans, or refers to what is not in its body.
    pub fn checked(self) -> Result<Self, &'static str> {
        let inside = |slice: Slice| slice.of(&self.body).is_some();
        if self.spans.is_empty() {
            Err("segment without spans")
        } else if !self.spans.iter().all(|span| inside(span.resource) && inside(span.scope) && inside(span.span)) {
            Err("segment with a slice outside its body")
        } else {
            Ok(self)
        }
    }

    /// The same with a body of its own, which holds only what the spans refer to, each resource and scope once: for a journey.
    pub fn compacted(&self) -> Self {
        let (body, spans) = self.compact();
        Self { tenant: self.tenant.clone(), trace_id: self.trace_id, position: self.position, body: body.into(), spans }
    }

    /// Whether the body holds little else than what the spans refer to, as after [`Self::compacted`].
    fn is_compact(&self) -> bool {
        let (mut total, mut previous) = (0, None);
        for span in &self.spans {
            let is_new = |part: fn(&SpanRef) -> Slice| previous.is_none_or(|before| part(before) != part(span));
            let resource = if is_new(|span| span.resource) { span.resource.len() } else { 0 };
            let scope = if is_new(|span| span.scope) { span.scope.len() } else { 0 };
            total += span.span.len() + resource + scope;
            previous = Some(span);
        }
        total >= self.body.len()
    }

    /// Bytes of the span messages: what this segment adds to the size of its trace.
    pub fn span_bytes(&self) -> usize {
        self.spans.iter().map(|span| span.span.len()).sum()
    }

    /// Decodes the spans, grouped by resource and scope as they were sent. Cold path: queries.
    ///
    /// # Errors
    /// Where the body is not what [`crate::otlp::validate`] accepts.
    pub fn decode(&self) -> Result<Vec<ResourceSpans>, WireError> {
        let mut decoded: Vec<ResourceSpans> = Vec::new();
        let mut previous: Option<&SpanRef> = None;
        for span in &self.spans {
            let same_resource = previous.is_some_and(|previous| previous.resource == span.resource);
            let same_scope = same_resource && previous.is_some_and(|previous| previous.scope == span.scope);
            if !same_resource {
                let resource = self.decode_part(span.resource, "resource_spans.resource")?;
                decoded.push(ResourceSpans { resource, ..Default::default() });
            }
            let Some(resource_spans) = decoded.last_mut() else { continue };
            if !same_scope {
                let scope = self.decode_part(span.scope, "resource_spans.scope_spans.scope")?;
                resource_spans.scope_spans.push(ScopeSpans { scope, ..Default::default() });
            }
            let Some(scope_spans) = resource_spans.scope_spans.last_mut() else { continue };
            scope_spans.spans.push(self.decode_message(span.span, "resource_spans.scope_spans.spans")?);
            previous = Some(span);
        }
        Ok(decoded)
    }

    /// A resource or scope. The slice 0..0 stands for none: nothing but a span or a tag can be at the very start of a body.
    fn decode_part<M: Message + Default>(&self, slice: Slice, field: &'static str) -> Result<Option<M>, WireError> {
        if slice == Slice::default() { Ok(None) } else { self.decode_message(slice, field).map(Some) }
    }

    fn decode_message<M: Message + Default>(&self, slice: Slice, field: &'static str) -> Result<M, WireError> {
        let bytes = slice.of(&self.body).ok_or(WireError { field, cause: "slice outside the body" })?;
        M::decode(bytes).map_err(|_| WireError { field, cause: "undecodable message" })
    }

    /// The bytes that the spans refer to, one message behind the other, and the spans with slices into them.
    ///
    /// Spans come before their resource and scope, so that 0..0 keeps meaning "none" (a span is never empty: it has ids). Resources and
    /// scopes are compared with those of the span before only, because spans that share them follow one another.
    fn compact(&self) -> (Vec<u8>, Vec<SpanRef>) {
        let mut body = Vec::with_capacity(self.span_bytes() + 1024);
        let mut spans: Vec<SpanRef> = Vec::with_capacity(self.spans.len());
        let mut append = |slice: Slice| {
            let start = body.len() as u32;
            body.extend_from_slice(slice.of(&self.body).unwrap_or_default());
            Slice { start, end: body.len() as u32 }
        };
        let mut previous: Option<(&SpanRef, Slice, Slice)> = None;
        for span in &self.spans {
            let message = append(span.span);
            let mut part = |slice: Slice, before: Option<(Slice, Slice)>| match before {
                _ if slice == Slice::default() => slice,
                Some((original, compacted)) if original == slice => compacted,
                _ => append(slice),
            };
            let resource = part(span.resource, previous.map(|(before, resource, _)| (before.resource, resource)));
            let scope = part(span.scope, previous.map(|(before, _, scope)| (before.scope, scope)));
            spans.push(SpanRef { resource, scope, span: message, ..*span });
            previous = Some((span, resource, scope));
        }
        (body, spans)
    }
}

/// What a segment is between processes: its fields, made of owned ones and of borrowed ones.
#[derive(Serialize, Deserialize)]
struct Wire<T, B, S> {
    tenant: T,
    trace_id: TraceId,
    position: Position,
    body: B,
    spans: S,
}

impl Serialize for Segment {
    /// Cheap for one that was compacted before, which is right where the size is asked for first and the bytes after that.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let compacted = (!self.is_compact()).then(|| self.compacted());
        let Self { tenant, trace_id, position, body, spans } = compacted.as_ref().unwrap_or(self);
        Wire { tenant, trace_id: *trace_id, position: *position, body, spans }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;

        let Wire { tenant, trace_id, position, body, spans } = Wire::deserialize(deserializer)?;
        Self { tenant, trace_id, position, body, spans }.checked().map_err(D::Error::custom)
    }
}

/// A hash of 16 bytes by one multiplication. Trace ids are chosen by clients, so the multiplication is keyed by the process: whoever
/// does not know the keys cannot make a request whose ids collide.
#[derive(Clone, Copy)]
struct FoldBuilder {
    keys: (u64, u64),
}

impl FoldBuilder {
    fn new() -> Self {
        static KEYS: OnceLock<(u64, u64)> = OnceLock::new();
        let keys = *KEYS.get_or_init(|| {
            let random = RandomState::new();
            (random.hash_one(1u8), random.hash_one(2u8))
        });
        Self { keys }
    }
}

impl BuildHasher for FoldBuilder {
    type Hasher = Fold;

    #[inline]
    fn build_hasher(&self) -> Fold {
        Fold { keys: self.keys, state: 0 }
    }
}

struct Fold {
    keys: (u64, u64),
    state: u64,
}

impl Hasher for Fold {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            let mut word = [0; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            let word = u128::from_le_bytes(word);
            let product = u128::from(word as u64 ^ self.keys.0) * u128::from((word >> 64) as u64 ^ self.keys.1);
            self.state = self.state.rotate_left(23) ^ product as u64 ^ (product >> 64) as u64;
        }
    }

    #[inline]
    fn write_usize(&mut self, _: usize) {
        // The length prefix of the id's array: always 16.
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests;
