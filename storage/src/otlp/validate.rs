//! The walk that looks at every byte before a request is acknowledged.
//!
//! It is a recursive descent with one function per message. Only `AnyValue` recurses by itself, and the recursion is counted down as
//! `prost` does it (`depth` is how many levels may still be entered), so that a value nested 100,000 deep is refused after 100 levels.
//! A wrong id is remembered and reported only when the rest of the body turned out to be a message, because the reference decodes
//! first and looks at ids afterwards.

use super::{
    Invalid, MAX_DEPTH, SharedPart, Slice, SpanEntry, Walk, WireError, key, outermost,
    wire::{At, Cause, Cursor},
};
use crate::id::{SpanKey, TraceId};

/// Checks a whole request and indexes its spans. See the module documentation.
///
/// `max_attribute_bytes` only sets [`Walk::oversized_attributes`]; 0 means no limit.
///
/// # Errors
/// The first thing wrong with the body. `walk` then holds nothing of use.
pub fn validate(body: &[u8], max_attribute_bytes: usize, walk: &mut Walk) -> Result<(), Invalid> {
    walk.clear();
    let limit = if max_attribute_bytes == 0 { usize::MAX } else { max_attribute_bytes };
    let mut validator = Validator { walk, limit, wrong_id: None };
    validator.request(outermost(body)?)?;
    validator.wrong_id.map_or(Ok(()), Err)
}

struct Validator<'w> {
    walk: &'w mut Walk,
    /// Longest attribute key or string value that needs no cutting.
    limit: usize,
    /// The first span without ids.
    wrong_id: Option<Invalid>,
}

/// How many levels may still be entered inside a message of each kind.
mod depth {
    pub(super) const REQUEST: usize = super::MAX_DEPTH;
    pub(super) const RESOURCE_SPANS: usize = REQUEST - 1;
    pub(super) const RESOURCE: usize = RESOURCE_SPANS - 1;
    pub(super) const ENTITY_REF: usize = RESOURCE - 1;
    pub(super) const SCOPE_SPANS: usize = RESOURCE_SPANS - 1;
    pub(super) const SCOPE: usize = SCOPE_SPANS - 1;
    pub(super) const SPAN: usize = SCOPE_SPANS - 1;
    pub(super) const EVENT: usize = SPAN - 1;
    pub(super) const LINK: usize = SPAN - 1;
    pub(super) const STATUS: usize = SPAN - 1;
}

/// Names of the fields of one kind of attribute, for errors.
struct Paths {
    key_value: &'static str,
    key: &'static str,
    value: &'static str,
    string_value: &'static str,
    nested: &'static str,
}

macro_rules! paths {
    ($attributes:expr) => {
        &Paths {
            key_value: $attributes,
            key: concat!($attributes, ".key"),
            value: concat!($attributes, ".value"),
            string_value: concat!($attributes, ".value.string_value"),
            nested: concat!($attributes, ".value.(nested)"),
        }
    };
}

macro_rules! in_resource {
    ($field:literal) => {
        concat!("resource_spans.resource", $field)
    };
}

macro_rules! in_scope {
    ($field:literal) => {
        concat!("resource_spans.scope_spans.scope", $field)
    };
}

macro_rules! in_span {
    ($field:literal) => {
        concat!("resource_spans.scope_spans.spans", $field)
    };
}

const RESOURCE_ATTRIBUTES: &Paths = paths!("resource_spans.resource.attributes");
const SCOPE_ATTRIBUTES: &Paths = paths!("resource_spans.scope_spans.scope.attributes");
const SPAN_ATTRIBUTES: &Paths = paths!("resource_spans.scope_spans.spans.attributes");
const EVENT_ATTRIBUTES: &Paths = paths!("resource_spans.scope_spans.spans.events.attributes");
const LINK_ATTRIBUTES: &Paths = paths!("resource_spans.scope_spans.spans.links.attributes");

/// Skips a field that has no arm of its own: an unknown one, or a known one (`known` is a set of numbers) with a wrong wire type.
#[cold]
fn other(message: &mut Cursor<'_>, key: u32, known: u32, depth: usize) -> Result<(), Cause> {
    let number = key >> 3;
    if number < 32 && known & 1 << number != 0 {
        return Err(Cause::WireType);
    }
    message.skip(key, depth)
}

const fn fields(numbers: std::ops::RangeInclusive<u32>) -> u32 {
    (1 << (*numbers.end() + 1)) - (1 << *numbers.start())
}

impl Validator<'_> {
    fn request(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        while !message.is_at_end() {
            match message.key().at("request")? {
                key::REQUEST_RESOURCE_SPANS => self.resource_spans(message.message().at("resource_spans")?)?,
                key => other(&mut message, key, fields(1..=1), depth::REQUEST).at("request")?,
            }
        }
        Ok(())
    }

    fn resource_spans(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        let mut resource = SharedPart::new(self.walk);
        while !message.is_at_end() {
            match message.key().at("resource_spans")? {
                key::RESOURCE_SPANS_RESOURCE => {
                    let found = message.message().at(in_resource!(""))?;
                    resource.found(found.slice(), self.walk);
                    self.resource(found)?;
                }
                key::RESOURCE_SPANS_SCOPE_SPANS => {
                    self.scope_spans(message.message().at("resource_spans.scope_spans")?, resource.slice)?;
                }
                0x1a => drop(message.string().at("resource_spans.schema_url")?),
                key => other(&mut message, key, fields(1..=3), depth::RESOURCE_SPANS).at("resource_spans")?,
            }
        }
        resource.finish(self.walk, |span| &mut span.resource);
        Ok(())
    }

    fn resource(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        while !message.is_at_end() {
            match message.key().at(in_resource!(""))? {
                0x0a => self.attribute(&mut message, depth::RESOURCE, RESOURCE_ATTRIBUTES)?,
                0x10 => drop(message.varint().at(in_resource!(".dropped_attributes_count"))?),
                0x1a => entity_ref(message.message().at(in_resource!(".entity_refs"))?)?,
                key => other(&mut message, key, fields(1..=3), depth::RESOURCE).at(in_resource!(""))?,
            }
        }
        Ok(())
    }

    fn scope_spans(&mut self, mut message: Cursor<'_>, resource: Slice) -> Result<(), WireError> {
        let mut scope = SharedPart::new(self.walk);
        while !message.is_at_end() {
            match message.key().at("resource_spans.scope_spans")? {
                key::SCOPE_SPANS_SPANS => self.span(message.message().at(in_span!(""))?, resource, scope.slice)?,
                key::SCOPE_SPANS_SCOPE => {
                    let found = message.message().at(in_scope!(""))?;
                    scope.found(found.slice(), self.walk);
                    self.scope(found)?;
                }
                0x1a => drop(message.string().at("resource_spans.scope_spans.schema_url")?),
                key => other(&mut message, key, fields(1..=3), depth::SCOPE_SPANS).at("resource_spans.scope_spans")?,
            }
        }
        scope.finish(self.walk, |span| &mut span.scope);
        Ok(())
    }

    fn scope(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        while !message.is_at_end() {
            match message.key().at(in_scope!(""))? {
                0x0a => drop(message.string().at(in_scope!(".name"))?),
                0x12 => drop(message.string().at(in_scope!(".version"))?),
                0x1a => self.attribute(&mut message, depth::SCOPE, SCOPE_ATTRIBUTES)?,
                0x20 => drop(message.varint().at(in_scope!(".dropped_attributes_count"))?),
                key => other(&mut message, key, fields(1..=4), depth::SCOPE).at(in_scope!(""))?,
            }
        }
        Ok(())
    }

    fn span(&mut self, mut message: Cursor<'_>, resource: Slice, scope: Slice) -> Result<(), WireError> {
        let span = message.slice();
        let (mut trace_id, mut span_id, mut parent_span_id): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut kind, mut start_ns, mut end_ns) = (0, 0, 0);
        let mut status_seen = false;
        while !message.is_at_end() {
            match message.key().at(in_span!(""))? {
                0x4a => self.attribute(&mut message, depth::SPAN, SPAN_ATTRIBUTES)?,
                key::SPAN_TRACE_ID => trace_id = message.chunk().at(in_span!(".trace_id"))?,
                key::SPAN_SPAN_ID => span_id = message.chunk().at(in_span!(".span_id"))?,
                0x1a => drop(message.string().at(in_span!(".trace_state"))?),
                0x22 => parent_span_id = message.chunk().at(in_span!(".parent_span_id"))?,
                0x2a => drop(message.string().at(in_span!(".name"))?),
                key::SPAN_KIND => kind = message.varint().at(in_span!(".kind"))?,
                key::SPAN_START => start_ns = message.fixed64().at(in_span!(".start_time_unix_nano"))?,
                key::SPAN_END => end_ns = message.fixed64().at(in_span!(".end_time_unix_nano"))?,
                0x50 => drop(message.varint().at(in_span!(".dropped_attributes_count"))?),
                0x5a => self.event(message.message().at(in_span!(".events"))?)?,
                0x60 => drop(message.varint().at(in_span!(".dropped_events_count"))?),
                0x6a => self.link(message.message().at(in_span!(".links"))?)?,
                0x70 => drop(message.varint().at(in_span!(".dropped_links_count"))?),
                0x7a => {
                    self.walk.needs_normalising |= status_seen;
                    status_seen = true;
                    status(message.message().at(in_span!(".status"))?)?;
                }
                0x85 => drop(message.fixed32().at(in_span!(".flags"))?),
                key => other(&mut message, key, fields(1..=16), depth::SPAN).at(in_span!(""))?,
            }
        }
        let trace_id = id::<16>(trace_id).ok_or(Cause::IdLength16).at(in_span!(".trace_id"))?;
        let span_id = id::<8>(span_id).ok_or(Cause::IdLength8).at(in_span!(".span_id"))?;
        id::<8>(parent_span_id).ok_or(Cause::IdLength8).at(in_span!(".parent_span_id"))?;
        if self.wrong_id.is_none() {
            if trace_id == [0; 16] {
                self.wrong_id = Some(Invalid::TraceId { bits: 0 });
            } else if span_id == [0; 8] {
                self.wrong_id = Some(Invalid::SpanId { bits: 0 });
            }
        }
        // Enumerations are 32 bits wide: the upper bits of the varint are dropped, as prost does.
        let key = SpanKey { span_id: u64::from_be_bytes(span_id), kind: kind as i32 };
        self.walk.spans.push(SpanEntry { trace_id: TraceId(trace_id), key, resource, scope, span, start_ns, end_ns });
        Ok(())
    }

    fn event(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        while !message.is_at_end() {
            match message.key().at(in_span!(".events"))? {
                0x09 => drop(message.fixed64().at(in_span!(".events.time_unix_nano"))?),
                0x12 => drop(message.string().at(in_span!(".events.name"))?),
                0x1a => self.attribute(&mut message, depth::EVENT, EVENT_ATTRIBUTES)?,
                0x20 => drop(message.varint().at(in_span!(".events.dropped_attributes_count"))?),
                key => other(&mut message, key, fields(1..=4), depth::EVENT).at(in_span!(".events"))?,
            }
        }
        Ok(())
    }

    fn link(&mut self, mut message: Cursor<'_>) -> Result<(), WireError> {
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
        while !message.is_at_end() {
            match message.key().at(in_span!(".links"))? {
                0x0a => trace_id = message.chunk().at(in_span!(".links.trace_id"))?,
                0x12 => span_id = message.chunk().at(in_span!(".links.span_id"))?,
                0x1a => drop(message.string().at(in_span!(".links.trace_state"))?),
                0x22 => self.attribute(&mut message, depth::LINK, LINK_ATTRIBUTES)?,
                0x28 => drop(message.varint().at(in_span!(".links.dropped_attributes_count"))?),
                0x35 => drop(message.fixed32().at(in_span!(".links.flags"))?),
                key => other(&mut message, key, fields(1..=6), depth::LINK).at(in_span!(".links"))?,
            }
        }
        id::<16>(trace_id).ok_or(Cause::IdLength16).at(in_span!(".links.trace_id"))?;
        id::<8>(span_id).ok_or(Cause::IdLength8).at(in_span!(".links.span_id"))?;
        Ok(())
    }

    /// An attribute of a resource, scope, span, event or link: the keys and values that the limit is about.
    #[inline]
    fn attribute(&mut self, parent: &mut Cursor<'_>, depth: usize, paths: &'static Paths) -> Result<(), WireError> {
        let message = parent.message().at(paths.key_value)?;
        self.key_value(message, depth - 1, self.limit, paths)
    }

    fn key_value(&mut self, mut message: Cursor<'_>, depth: usize, limit: usize, paths: &'static Paths) -> Result<(), WireError> {
        let mut value_seen = false;
        while !message.is_at_end() {
            match message.key().at(paths.key_value)? {
                0x0a => self.walk.oversized_attributes |= message.string().at(paths.key)?.len() > limit,
                0x12 => {
                    self.walk.needs_normalising |= value_seen;
                    value_seen = true;
                    let inner = enter(depth).at(paths.value)?;
                    self.any_value(message.message().at(paths.value)?, inner, limit, paths)?;
                }
                0x18 => drop(message.varint().at(paths.key_value)?),
                key => other(&mut message, key, fields(1..=3), depth).at(paths.key_value)?,
            }
        }
        Ok(())
    }

    fn any_value(&mut self, mut message: Cursor<'_>, depth: usize, limit: usize, paths: &'static Paths) -> Result<(), WireError> {
        let mut value_seen = false;
        while !message.is_at_end() {
            let key = message.key().at(paths.value)?;
            match key {
                0x0a => self.walk.oversized_attributes |= message.string().at(paths.string_value)?.len() > limit,
                0x10 | 0x18 | 0x40 => drop(message.varint().at(paths.value)?),
                0x21 => drop(message.fixed64().at(paths.value)?),
                0x2a | 0x32 => {
                    let inner = enter(depth).at(paths.nested)?;
                    self.list(message.message().at(paths.value)?, inner, key == 0x32, paths)?;
                }
                0x3a => drop(message.chunk().at(paths.value)?),
                key => {
                    other(&mut message, key, fields(1..=8), depth).at(paths.value)?;
                    continue;
                }
            }
            self.walk.needs_normalising |= value_seen;
            value_seen = true;
        }
        Ok(())
    }

    /// `ArrayValue` and `KeyValueList`: both hold their elements in field 1. What is inside is never cut, whatever its length.
    fn list(&mut self, mut message: Cursor<'_>, depth: usize, of_key_values: bool, paths: &'static Paths) -> Result<(), WireError> {
        while !message.is_at_end() {
            match message.key().at(paths.nested)? {
                0x0a => {
                    let inner = enter(depth).at(paths.nested)?;
                    let element = message.message().at(paths.nested)?;
                    if of_key_values {
                        self.key_value(element, inner, usize::MAX, paths)?;
                    } else {
                        self.any_value(element, inner, usize::MAX, paths)?;
                    }
                }
                key => other(&mut message, key, fields(1..=1), depth).at(paths.nested)?,
            }
        }
        Ok(())
    }
}

fn entity_ref(mut message: Cursor<'_>) -> Result<(), WireError> {
    const PATH: &str = in_resource!(".entity_refs");
    while !message.is_at_end() {
        match message.key().at(PATH)? {
            0x0a | 0x12 | 0x1a | 0x22 => drop(message.string().at(PATH)?),
            key => other(&mut message, key, fields(1..=4), depth::ENTITY_REF).at(PATH)?,
        }
    }
    Ok(())
}

fn status(mut message: Cursor<'_>) -> Result<(), WireError> {
    while !message.is_at_end() {
        match message.key().at(in_span!(".status"))? {
            0x12 => drop(message.string().at(in_span!(".status.message"))?),
            0x18 => drop(message.varint().at(in_span!(".status.code"))?),
            // Field 1 was `deprecated_code` and is reserved now.
            key => other(&mut message, key, fields(2..=3), depth::STATUS).at(in_span!(".status"))?,
        }
    }
    Ok(())
}

/// An id of `N` bytes; absent is all zero, as all zero is absent. None when the length is neither.
#[inline]
fn id<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    if bytes.is_empty() { Some([0; N]) } else { bytes.try_into().ok() }
}

#[inline]
fn enter(depth: usize) -> Result<usize, Cause> {
    depth.checked_sub(1).ok_or(Cause::TooDeep)
}
