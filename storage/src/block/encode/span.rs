//! Spans with their events and links, from the wire to the leaves.

use super::{
    super::{
        attributes,
        nested::{self, Node},
    },
    EVENT, Encoder, Meaning, SPAN,
    leaves::{EventAttributes, Links},
    order::Entry,
};
use crate::{
    block::{attributes::Value, encoding::varint},
    id::TraceId,
    otlp::{
        WireError,
        wire::{Fields, Value as Wire},
    },
};

/// What the row needs to know of a span that was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) name: &'a [u8],
    pub(super) root: bool,
    pub(super) error: bool,
    pub(super) estimate: usize,
}

impl Encoder {
    /// Writes a span; its nested set numbers follow with those of the whole trace.
    pub(super) fn span<'a>(&mut self, id: TraceId, entry: &Entry<'a>, repetition: u8) -> Result<Span<'a>, WireError> {
        let mut span = Span { estimate: self.prices.span, start: entry.start, ..Span::default() };
        let (mut trace_state, mut span_id, mut parent): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut kind, mut status, mut message): (i32, i64, &[u8]) = (0, 0, &[]);
        let (mut dropped_attributes, mut dropped_events, mut dropped_links) = (0i64, 0i64, 0i64);
        let mut attribute_repetition = repetition;
        let mut event_repetition = repetition;
        let mut link_repetition = repetition;
        let mut child_of = false;
        self.columns.enter(self.leaves.spans, repetition, SPAN);
        self.sequence.last = 0;
        for field in Fields::new(entry.bytes) {
            let field = field?;
            match (field.number, field.value) {
                (9, Wire::Bytes(bytes)) => {
                    span.estimate += self.prices.attribute;
                    if self.span_attribute(bytes, attribute_repetition)? {
                        attribute_repetition = SPAN + 1;
                    }
                }
                (1, _) | (16, _) => {}
                (2, Wire::Bytes(bytes)) => span_id = bytes,
                (3, Wire::Bytes(bytes)) => trace_state = bytes,
                (4, Wire::Bytes(bytes)) => parent = bytes,
                (5, Wire::Bytes(bytes)) => span.name = bytes,
                (6, Wire::Varint(value)) => kind = value as i32,
                (7, Wire::Fixed64(_)) => {}
                (8, Wire::Fixed64(value)) => span.end = value,
                (10, Wire::Varint(value)) => dropped_attributes = (value as i32).into(),
                (11, Wire::Bytes(bytes)) => {
                    span.estimate += self.event(bytes, span.start, event_repetition)?;
                    event_repetition = EVENT;
                }
                (12, Wire::Varint(value)) => dropped_events = (value as i32).into(),
                (13, Wire::Bytes(bytes)) => {
                    span.estimate += self.prices.link;
                    child_of |= self.link(bytes, id, link_repetition)?;
                    link_repetition = EVENT;
                }
                (14, Wire::Varint(value)) => dropped_links = (value as i32).into(),
                (15, Wire::Bytes(bytes)) => {
                    for field in Fields::new(bytes) {
                        let field = field?;
                        match (field.number, field.value) {
                            (2, Wire::Bytes(bytes)) => message = bytes,
                            (3, Wire::Varint(value)) => status = (value as i32).into(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let (columns, leaves) = (&mut self.columns, &self.leaves);
        if attribute_repetition == repetition {
            leaves.attributes.none(columns, repetition, SPAN);
        }
        if event_repetition != EVENT {
            columns.enter(leaves.events, repetition, SPAN);
            match &leaves.event_attributes {
                EventAttributes::Typed(attributes) => attributes.none(columns, repetition, SPAN),
                EventAttributes::Raw { list, .. } => columns.enter(*list, repetition, SPAN),
            }
            self.event_own.none(columns, repetition, SPAN);
        }
        match &leaves.links {
            Links::Typed { list, attributes, .. } if link_repetition != EVENT => {
                columns.enter(*list, repetition, SPAN);
                attributes.none(columns, repetition, SPAN);
            }
            Links::Typed { .. } => {}
            Links::Raw(leaf) => {
                columns.push_text(*leaf, &self.raw_links);
                self.raw_links.clear();
            }
        }
        columns.push_text(leaves.span_id, span_id);
        columns.push_text(leaves.parent_span_id, parent);
        columns.push_string(leaves.name, span.name);
        columns.push_integer(leaves.kind, kind.into());
        columns.push_text(leaves.trace_state, trace_state);
        columns.push_integer(leaves.span_start, span.start as i64);
        columns.push_integer(leaves.span_duration, span.end.wrapping_sub(span.start) as i64);
        columns.push_integer(leaves.status, status);
        columns.push_text(leaves.status_message, message);
        columns.push_integer(leaves.dropped_attributes, dropped_attributes);
        columns.push_integer(leaves.dropped_events, dropped_events);
        columns.push_integer(leaves.dropped_links, dropped_links);
        for &(seconds, leaf) in &leaves.rounded {
            // A start on a boundary counts to the interval before it; no start is 0.
            columns.push_integer(leaf, (span.start.saturating_sub(1) / (seconds * 1_000_000_000)) as u32 as i32 as i64);
        }
        self.span_own.write(columns, &self.span_slots, leaves.spans, repetition, SPAN);
        self.span_slots.clear();
        self.nodes.push(Node { id: nested::key(span_id), parent: (!parent.is_empty()).then(|| nested::key(parent)), kind });
        span.root = parent.is_empty() && !child_of;
        span.error = status == 2;
        Ok(span)
    }

    /// Writes an attribute of a span, and returns whether it is a generic one.
    #[inline]
    fn span_attribute(&mut self, bytes: &[u8], repetition: u8) -> Result<bool, WireError> {
        let (key, value) = attributes::read(bytes)?;
        let (number, new) = self.sequence.number(&mut self.keys, key);
        if new {
            self.meanings.push((self.span_own.slot(key).map_or(Meaning::Generic, Meaning::Own), None));
        }
        let (meaning, code) = &mut self.meanings[number as usize];
        if let Meaning::Own(slot) = *meaning
            && self.span_own.offer(&mut self.columns, &mut self.span_slots, slot, &value)
        {
            return Ok(false);
        }
        let attributes = &self.leaves.attributes;
        let key = match code {
            Some(code) => *code,
            None => *code.insert(attributes.key(&mut self.columns, key)),
        };
        attributes.push(&mut self.columns, repetition, key, &value);
        Ok(true)
    }

    /// Writes an event and returns its estimated size.
    fn event(&mut self, bytes: &[u8], span_start: u64, repetition: u8) -> Result<usize, WireError> {
        let (columns, leaves) = (&mut self.columns, &self.leaves);
        let (mut time, mut name, mut dropped): (u64, &[u8], i64) = (0, &[], 0);
        let mut estimate = self.prices.event;
        let mut attribute_repetition = repetition;
        let mut any = false;
        for field in Fields::new(bytes) {
            let field = field?;
            match (field.number, field.value) {
                (1, Wire::Fixed64(value)) => time = value,
                (2, Wire::Bytes(text)) => name = text,
                (3, Wire::Bytes(attribute)) => {
                    estimate += self.prices.event_attribute;
                    match &leaves.event_attributes {
                        EventAttributes::Typed(attributes) => {
                            let (key, value) = attributes::read(attribute)?;
                            if let Some(slot) = self.event_own.slot(key)
                                && self.event_own.offer(columns, &mut self.event_slots, slot, &value)
                            {
                                continue;
                            }
                            let key = attributes.key(columns, key);
                            attributes.push(columns, attribute_repetition, key, &value);
                        }
                        EventAttributes::Raw { list, key: leaf, value: values } => {
                            let (key, value) = attributes::read_raw(attribute)?;
                            columns.enter(*list, attribute_repetition, EVENT + 1);
                            columns.push_string(*leaf, key);
                            columns.push_text(*values, &value);
                        }
                    }
                    attribute_repetition = EVENT + 1;
                    any = true;
                }
                (4, Wire::Varint(value)) => dropped = (value as i32).into(),
                _ => {}
            }
        }
        columns.enter(leaves.events, repetition, EVENT);
        match &leaves.event_attributes {
            _ if any => {}
            EventAttributes::Typed(attributes) => attributes.none(columns, repetition, EVENT),
            EventAttributes::Raw { list, .. } => columns.enter(*list, repetition, EVENT),
        }
        let relative = matches!(leaves.event_attributes, EventAttributes::Typed(_));
        columns.push_integer(leaves.event_time, if relative { time.wrapping_sub(span_start) } else { time } as i64);
        columns.push_string(leaves.event_name, name);
        columns.push_integer(leaves.event_dropped, dropped);
        self.event_own.write(columns, &self.event_slots, leaves.events, repetition, EVENT);
        self.event_slots.clear();
        Ok(estimate)
    }

    /// Writes a link and returns whether it makes its span a child in the same trace (block-format.md §8.1).
    fn link(&mut self, bytes: &[u8], id: TraceId, repetition: u8) -> Result<bool, WireError> {
        let columns = &mut self.columns;
        let (mut trace_id, mut span_id, mut trace_state, mut dropped): (&[u8], &[u8], &[u8], i64) = (&[], &[], &[], 0);
        let mut attribute_repetition = repetition;
        let (mut any, mut child_of) = (false, false);
        for field in Fields::new(bytes) {
            let field = field?;
            match (field.number, field.value) {
                (1, Wire::Bytes(bytes)) => trace_id = bytes,
                (2, Wire::Bytes(bytes)) => span_id = bytes,
                (3, Wire::Bytes(bytes)) => trace_state = bytes,
                (4, Wire::Bytes(attribute)) => {
                    let (key, value) = attributes::read(attribute)?;
                    child_of |= key == b"opentracing.ref_type" && matches!(&value, Value::Text(text) if text.as_ref() == b"child_of");
                    if let Links::Typed { attributes, .. } = &self.leaves.links {
                        let key = attributes.key(columns, key);
                        attributes.push(columns, attribute_repetition, key, &value);
                        attribute_repetition = EVENT + 1;
                        any = true;
                    }
                }
                (5, Wire::Varint(value)) => dropped = (value as i32).into(),
                _ => {}
            }
        }
        match &self.leaves.links {
            Links::Typed { list, trace_id: trace_leaf, span_id: span_leaf, trace_state: state_leaf, attributes, dropped: dropped_leaf } => {
                columns.enter(*list, repetition, EVENT);
                if !any {
                    attributes.none(columns, repetition, EVENT);
                }
                columns.push_text(*trace_leaf, trace_id);
                columns.push_text(*span_leaf, span_id);
                columns.push_text(*state_leaf, trace_state);
                columns.push_integer(*dropped_leaf, dropped);
            }
            Links::Raw(_) => {
                // A message whose only field, 1, is repeated and holds links.
                self.raw_links.push(0x0a);
                varint(bytes.len() as u64, &mut self.raw_links);
                self.raw_links.extend_from_slice(bytes);
            }
        }
        Ok(child_of && trace_id == id.0)
    }
}
