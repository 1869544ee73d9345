//! Walks OTLP's protobuf wire format without building owned trees.
//!
//! Two walks over an `ExportTraceServiceRequest` (wire-compatible with `TracesData` and `tempopb.Trace`):
//!
//! * [`validate`] looks at every byte once, descends into every message, and accepts exactly what `prost` would decode as the
//!   `opentelemetry-proto` types (UTF-8 strings, nesting of at most [`MAX_DEPTH`]) and whose ids have the lengths that OTLP gives them.
//!   It runs once, before a request is acknowledged, so that nothing that was acknowledged can turn out to be undecodable later.
//! * [`index`] only hops from span to span. It runs on bytes that were validated before (a WAL record); it still checks every bound,
//!   because disks lie, but does not descend.
//!
//! ```text
//!  body   ├ ResourceSpans ───────────────────────────────────┤├ ResourceSpans ─── …
//!           ├ Resource ┤├ ScopeSpans ──────────────────────┤
//!                         ├ Scope ┤├ Span ┤├ Span ┤├ Span ┤
//!  Walk           ▲            ▲       ▲
//!  SpanEntry { resource,   scope,    span, trace_id, key, start_ns, end_ns }
//! ```
//!
//! Both fill a [`Walk`] that the caller reuses from request to request.
//!
//! Protobuf lets a sender split a singular sub-message over several fields, which the reader has to merge. Nobody does it, but a slice
//! cannot say it. [`validate`] therefore reports such a body ([`Walk::needs_normalising`]) and [`normalise`] rewrites it. In a body that
//! needs no normalising each `resource`, `scope`, `status` and `value` occurs at most once, and an `AnyValue` holds at most one value;
//! a scalar may still occur twice, and the last one counts.
//!
//! Where messages are looked into after the walk, [`wire::Fields`] hands out their fields.

mod rewrite;
#[cfg(test)]
pub(crate) mod tests;
mod validate;
pub mod wire;

pub use rewrite::{normalise, retain_spans, truncate_attributes};
pub use validate::validate;

use serde::{Deserialize, Serialize};

use self::wire::{At, Cause, Cursor};
use crate::id::{SpanKey, TraceId};

/// How deep `AnyValue`s may nest, as in `prost`.
pub const MAX_DEPTH: usize = 100;

/// A range of bytes of a body, in bytes from its start. Bodies are limited to 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slice {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Slice {
    /// The bytes of `body` that it stands for; none when it is not inside `body`.
    #[inline]
    pub fn of(self, body: &[u8]) -> Option<&[u8]> {
        body.get(self.start as usize..self.end as usize)
    }

    /// Number of bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether it holds no byte. A message without fields is such a slice, too.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }
}

/// One span found by a walk. The slices are the *contents* of the messages, without tag and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanEntry {
    /// The trace that it belongs to.
    pub trace_id: TraceId,
    /// Its identity inside the trace.
    pub key: SpanKey,
    /// The `Resource` message; empty when the `ResourceSpans` has none.
    pub resource: Slice,
    /// The `InstrumentationScope` message; empty when the `ScopeSpans` has none.
    pub scope: Slice,
    /// The `Span` message.
    pub span: Slice,
    /// Start, Unix nanoseconds.
    pub start_ns: u64,
    /// End, Unix nanoseconds.
    pub end_ns: u64,
}

/// What a walk found. Reused between requests.
#[derive(Debug, Default)]
pub struct Walk {
    /// The spans, in the order of the body.
    pub spans: Vec<SpanEntry>,
    /// Whether an attribute key or string value is longer than the limit handed to [`validate`].
    pub oversized_attributes: bool,
    /// Whether a singular sub-message occurs twice, so that the slices do not tell the whole truth: see [`normalise`].
    pub needs_normalising: bool,
}

impl Walk {
    fn clear(&mut self) {
        self.spans.clear();
        self.oversized_attributes = false;
        self.needs_normalising = false;
    }
}

/// Why bytes are not an OTLP message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct WireError {
    /// Path of the field, such as `resource_spans.scope_spans.spans.name`.
    pub field: &'static str,
    /// What is wrong with it.
    pub cause: &'static str,
}

/// Why a request is refused as a whole. The texts of the id errors are Tempo's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The bytes are not the message, or an id has a length that the OTLP decoder of the reference refuses.
    #[error("invalid OTLP request: {0}")]
    Wire(#[from] WireError),
    /// A trace id that is absent or all zero.
    #[error("trace ids must be 128 bit, received {bits} bits")]
    TraceId {
        /// Its length in bits.
        bits: usize,
    },
    /// A span id that is absent or all zero.
    #[error("span ids must be 64 bit and not all zero, received {bits} bits")]
    SpanId {
        /// Its length in bits.
        bits: usize,
    },
}

// Keys: field number << 3 | wire type. The numbers are those of opentelemetry-proto 1.x.
mod key {
    pub(super) const REQUEST_RESOURCE_SPANS: u32 = 1 << 3 | 2;
    pub(super) const RESOURCE_SPANS_RESOURCE: u32 = 1 << 3 | 2;
    pub(super) const RESOURCE_SPANS_SCOPE_SPANS: u32 = 2 << 3 | 2;
    pub(super) const SCOPE_SPANS_SCOPE: u32 = 1 << 3 | 2;
    pub(super) const SCOPE_SPANS_SPANS: u32 = 2 << 3 | 2;
    pub(super) const SPAN_TRACE_ID: u32 = 1 << 3 | 2;
    pub(super) const SPAN_SPAN_ID: u32 = 2 << 3 | 2;
    pub(super) const SPAN_KIND: u32 = 6 << 3;
    pub(super) const SPAN_START: u32 = 7 << 3 | 1;
    pub(super) const SPAN_END: u32 = 8 << 3 | 1;
}

/// Indexes the spans of a body that was validated before. Of a sub-message that occurs twice it takes the last and says so in
/// [`Walk::needs_normalising`].
///
/// # Errors
/// Where the body is torn.
pub fn index(body: &[u8], walk: &mut Walk) -> Result<(), WireError> {
    walk.clear();
    let mut request = outermost(body)?;
    while !request.is_at_end() {
        match request.key().at("request")? {
            key::REQUEST_RESOURCE_SPANS => index_resource_spans(request.message().at("resource_spans")?, walk)?,
            unknown => request.skip(unknown, MAX_DEPTH).at("request")?,
        }
    }
    Ok(())
}

fn index_resource_spans(mut message: Cursor<'_>, walk: &mut Walk) -> Result<(), WireError> {
    let mut resource = SharedPart::new(walk);
    while !message.is_at_end() {
        match message.key().at("resource_spans")? {
            key::RESOURCE_SPANS_RESOURCE => {
                resource.found(message.message().at("resource_spans.resource")?.slice(), walk);
            }
            key::RESOURCE_SPANS_SCOPE_SPANS => {
                index_scope_spans(message.message().at("resource_spans.scope_spans")?, resource.slice, walk)?;
            }
            unknown => message.skip(unknown, MAX_DEPTH - 1).at("resource_spans")?,
        }
    }
    resource.finish(walk, |span| &mut span.resource);
    Ok(())
}

fn index_scope_spans(mut message: Cursor<'_>, resource: Slice, walk: &mut Walk) -> Result<(), WireError> {
    let mut scope = SharedPart::new(walk);
    while !message.is_at_end() {
        match message.key().at("resource_spans.scope_spans")? {
            key::SCOPE_SPANS_SCOPE => {
                scope.found(message.message().at("resource_spans.scope_spans.scope")?.slice(), walk);
            }
            key::SCOPE_SPANS_SPANS => {
                let span = message.message().at("resource_spans.scope_spans.spans")?;
                walk.spans.push(index_span(span, resource, scope.slice)?);
            }
            unknown => message.skip(unknown, MAX_DEPTH - 2).at("resource_spans.scope_spans")?,
        }
    }
    scope.finish(walk, |span| &mut span.scope);
    Ok(())
}

fn index_span(mut message: Cursor<'_>, resource: Slice, scope: Slice) -> Result<SpanEntry, WireError> {
    const PATH: &str = "resource_spans.scope_spans.spans";
    let span = message.slice();
    let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
    let (mut kind, mut start_ns, mut end_ns) = (0, 0, 0);
    while !message.is_at_end() {
        match message.key().at(PATH)? {
            key::SPAN_TRACE_ID => trace_id = message.chunk().at("resource_spans.scope_spans.spans.trace_id")?,
            key::SPAN_SPAN_ID => span_id = message.chunk().at("resource_spans.scope_spans.spans.span_id")?,
            key::SPAN_KIND => kind = message.varint().at("resource_spans.scope_spans.spans.kind")?,
            key::SPAN_START => start_ns = message.fixed64().at("resource_spans.scope_spans.spans.start_time_unix_nano")?,
            key::SPAN_END => end_ns = message.fixed64().at("resource_spans.scope_spans.spans.end_time_unix_nano")?,
            other => skip_known(&mut message, other).at(PATH)?,
        }
    }
    let trace_id = trace_id.try_into().map_err(|_| Cause::IdLength16).at("resource_spans.scope_spans.spans.trace_id")?;
    let span_id = span_id.try_into().map_err(|_| Cause::IdLength8).at("resource_spans.scope_spans.spans.span_id")?;
    // Enumerations are 32 bits wide: the upper bits of the varint are dropped, as prost does.
    let key = SpanKey { span_id: u64::from_be_bytes(span_id), kind: kind as i32 };
    Ok(SpanEntry { trace_id: TraceId(trace_id), key, resource, scope, span, start_ns, end_ns })
}

/// Skips a field; inlined for the attributes, events and strings that most of a span's fields are.
#[inline(always)]
fn skip_known(message: &mut Cursor<'_>, key: u32) -> Result<(), Cause> {
    if key & 7 == 2 { message.chunk().map(drop) } else { message.skip(key, MAX_DEPTH - 3) }
}

fn outermost(body: &[u8]) -> Result<Cursor<'_>, WireError> {
    if body.len() > u32::MAX as usize { Err(Cause::TooLong.at("request")) } else { Ok(Cursor::new(body)) }
}

/// The resource or scope that the spans of a message share. It may come behind the spans: then they learn of it at the end.
struct SharedPart {
    slice: Slice,
    first_span: usize,
    seen: bool,
    late: bool,
}

impl SharedPart {
    #[inline]
    fn new(walk: &Walk) -> Self {
        Self { slice: Slice::default(), first_span: walk.spans.len(), seen: false, late: false }
    }

    #[inline]
    fn found(&mut self, slice: Slice, walk: &mut Walk) {
        walk.needs_normalising |= self.seen;
        self.late |= walk.spans.len() > self.first_span;
        self.seen = true;
        self.slice = slice;
    }

    #[inline]
    fn finish(self, walk: &mut Walk, part: impl Fn(&mut SpanEntry) -> &mut Slice) {
        if self.late {
            for span in &mut walk.spans[self.first_span..] {
                *part(span) = self.slice;
            }
        }
    }
}
