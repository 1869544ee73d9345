//! vParquet4 rows to traces (block-format.md §8.7).
//!
//! A leaf comes out of the file as three lists: values, definition levels, repetition levels. [`Rows`] walks all leaves of a row group
//! side by side, the way that Dremel's record assembly does: `SpanID` says how many resources, scopes and spans there are; every other
//! leaf is asked for one entry per element of its list, or for one entry that says that there is none.
//!
//! The bytes are untrusted: leaves that disagree about the structure are an error.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};

use super::{
    Projection, Trace, encode, json,
    leaf::{Leaf, Wrong, trace_id},
};
use crate::id::{SpanKey, TraceId};

/// Positions of the leaves (§7.4).
pub(super) mod at {
    pub(crate) const TRACE_ID: usize = 0;
    pub(crate) const RESOURCE_ATTRIBUTES: usize = 10;
    pub(crate) const RESOURCE_DROPPED: usize = 17;
    pub(crate) const SERVICE: usize = 18;
    pub(crate) const RESOURCE_FIXED: usize = 19;
    pub(crate) const RESOURCE_DEDICATED: usize = 27;
    pub(crate) const SCOPE_NAME: usize = 37;
    pub(crate) const SCOPE_VERSION: usize = 38;
    pub(crate) const SCOPE_ATTRIBUTES: usize = 39;
    pub(crate) const SCOPE_DROPPED: usize = 46;
    pub(crate) const SPAN_ID: usize = 47;
    pub(crate) const PARENT_SPAN_ID: usize = 48;
    pub(crate) const NAME: usize = 52;
    pub(crate) const KIND: usize = 53;
    pub(crate) const TRACE_STATE: usize = 54;
    pub(crate) const START: usize = 55;
    pub(crate) const DURATION: usize = 56;
    pub(crate) const STATUS: usize = 57;
    pub(crate) const STATUS_MESSAGE: usize = 58;
    pub(crate) const ATTRIBUTES: usize = 59;
    pub(crate) const DROPPED_ATTRIBUTES: usize = 66;
    pub(crate) const EVENT_TIME: usize = 67;
    pub(crate) const EVENT_NAME: usize = 68;
    pub(crate) const EVENT_ATTRIBUTES: usize = 69;
    pub(crate) const EVENT_DROPPED: usize = 76;
    pub(crate) const DROPPED_EVENTS: usize = 77;
    pub(crate) const LINK_TRACE_ID: usize = 78;
    pub(crate) const LINK_SPAN_ID: usize = 79;
    pub(crate) const LINK_TRACE_STATE: usize = 80;
    pub(crate) const LINK_ATTRIBUTES: usize = 81;
    pub(crate) const LINK_DROPPED: usize = 88;
    pub(crate) const DROPPED_LINKS: usize = 89;
    pub(crate) const SPAN_FIXED: usize = 90;
    pub(crate) const STATUS_CODE: usize = 92;
    pub(crate) const SPAN_DEDICATED: usize = 93;
    pub(crate) const LEAVES: usize = 103;
}

/// The leaves that a projection needs, in order. `resource` and `span` are the numbers of dedicated columns in use.
pub(super) fn leaves_of(projection: Projection, resource: usize, span: usize) -> Vec<usize> {
    let mut leaves = vec![at::TRACE_ID, at::SERVICE, at::SPAN_ID, at::PARENT_SPAN_ID];
    leaves.extend(at::NAME..=at::STATUS_MESSAGE);
    if projection.resource_attributes {
        leaves.extend(at::RESOURCE_ATTRIBUTES..=at::RESOURCE_DROPPED);
        leaves.extend(at::RESOURCE_FIXED..at::RESOURCE_DEDICATED + resource);
    }
    if projection.scopes {
        leaves.extend(at::SCOPE_NAME..=at::SCOPE_DROPPED);
    }
    if projection.span_attributes {
        leaves.extend(at::ATTRIBUTES..=at::DROPPED_ATTRIBUTES);
        leaves.extend(at::SPAN_FIXED..at::SPAN_DEDICATED + span);
    }
    if projection.events {
        leaves.extend(at::EVENT_TIME..=at::DROPPED_EVENTS);
    }
    if projection.links {
        leaves.extend(at::LINK_TRACE_ID..=at::DROPPED_LINKS);
    }
    leaves.sort_unstable();
    leaves
}

/// Decoded leaves of some rows, and the names of their dedicated columns.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) leaves: Vec<Option<Leaf>>,
    pub(super) resource_dedicated: Vec<String>,
    pub(super) span_dedicated: Vec<String>,
}

impl Rows {
    /// Room for all leaves, none there.
    pub(super) fn new(resource_dedicated: Vec<String>, span_dedicated: Vec<String>) -> Self {
        Self { leaves: (0..at::LEAVES).map(|_| None).collect(), resource_dedicated, span_dedicated }
    }

    fn leaf(&mut self, position: usize) -> Result<&mut Leaf, Wrong> {
        self.leaves[position].as_mut().ok_or_else(|| format!("leaf {position} was not decoded"))
    }

    fn has(&self, position: usize) -> bool {
        self.leaves[position].is_some()
    }

    /// Uses up the entry in which each of the leaves says that there is no element.
    fn skip(&mut self, positions: std::ops::RangeInclusive<usize>) -> Result<(), Wrong> {
        self.leaves[positions].iter_mut().flatten().try_for_each(|leaf| match leaf.next()? {
            None => Ok(()),
            Some(_) => Err("leaves disagree about the structure of a row".to_owned()),
        })
    }

    fn begin_row(&self) -> Result<(), Wrong> {
        if self.leaves.iter().flatten().any(|leaf| leaf.repetition() != 0) {
            return Err("leaves disagree about the end of a row".to_owned());
        }
        Ok(())
    }

    fn text(&mut self, position: usize) -> Result<String, Wrong> {
        utf8(self.leaf(position)?.bytes()?)
    }

    fn long(&mut self, position: usize) -> Result<i64, Wrong> {
        self.leaf(position)?.optional_long()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    /// A count that the projection may lack.
    fn count(&mut self, position: usize) -> Result<u32, Wrong> {
        if self.has(position) { self.long(position).map(|value| value as u32) } else { Ok(0) }
    }

    /// The next row.
    pub(super) fn trace(&mut self) -> Result<Trace, Wrong> {
        self.begin_row()?;
        let id = trace_id(self.leaf(at::TRACE_ID)?.bytes()?);
        let mut trace = Trace { trace_id: id, resource_spans: Vec::new() };
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 1 {
            self.skip(at::RESOURCE_ATTRIBUTES..=at::LEAVES - 1)?;
            return Ok(trace);
        }
        loop {
            trace.resource_spans.push(self.resource_spans(id)?);
            if self.leaf(at::SPAN_ID)?.repetition() != 1 {
                return Ok(trace);
            }
        }
    }

    fn resource_spans(&mut self, id: TraceId) -> Result<ResourceSpans, Wrong> {
        let mut attributes = self.attributes(at::RESOURCE_ATTRIBUTES, 2)?;
        let dropped_attributes_count = self.count(at::RESOURCE_DROPPED)?;
        let service = self.text(at::SERVICE)?;
        let fixed = self.texts(at::RESOURCE_FIXED, encode::RESOURCE_LEAVES.iter().map(|(name, _)| *name))?;
        let names = std::mem::take(&mut self.resource_dedicated);
        let dedicated = self.texts(at::RESOURCE_DEDICATED, names.iter().map(String::as_str));
        self.resource_dedicated = names;
        attributes.extend(dedicated?);
        if !service.is_empty() {
            attributes.push(attribute("service.name", Any::StringValue(service)));
        }
        attributes.extend(fixed);
        let resource = Resource { attributes, dropped_attributes_count, ..Resource::default() };
        let mut scope_spans = Vec::new();
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 2 {
            self.skip(at::SCOPE_NAME..=at::LEAVES - 1)?;
        } else {
            loop {
                scope_spans.push(self.scope_spans(id)?);
                if self.leaf(at::SPAN_ID)?.repetition() != 2 {
                    break;
                }
            }
        }
        Ok(ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() })
    }

    fn scope_spans(&mut self, id: TraceId) -> Result<ScopeSpans, Wrong> {
        let scope = if self.has(at::SCOPE_NAME) {
            let name = self.text(at::SCOPE_NAME)?;
            let version = self.text(at::SCOPE_VERSION)?;
            let attributes = self.attributes(at::SCOPE_ATTRIBUTES, 3)?;
            let dropped_attributes_count = self.count(at::SCOPE_DROPPED)?;
            Some(InstrumentationScope { name, version, attributes, dropped_attributes_count })
        } else {
            None
        };
        let mut spans = Vec::new();
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 3 {
            self.skip(at::SPAN_ID..=at::LEAVES - 1)?;
        } else {
            loop {
                spans.push(self.span(id)?);
                if self.leaf(at::SPAN_ID)?.repetition() != 3 {
                    break;
                }
            }
        }
        Ok(ScopeSpans { scope, spans, ..ScopeSpans::default() })
    }

    fn span(&mut self, id: TraceId) -> Result<Span, Wrong> {
        let mut span = Span {
            trace_id: id.0.to_vec(),
            span_id: self.leaf(at::SPAN_ID)?.bytes()?.to_vec(),
            parent_span_id: self.leaf(at::PARENT_SPAN_ID)?.bytes()?.to_vec(),
            name: self.text(at::NAME)?,
            kind: self.long(at::KIND)? as i32,
            trace_state: self.text(at::TRACE_STATE)?,
            start_time_unix_nano: self.long(at::START)? as u64,
            ..Span::default()
        };
        span.end_time_unix_nano = span.start_time_unix_nano.wrapping_add(self.long(at::DURATION)? as u64);
        let code = self.long(at::STATUS)? as i32;
        span.status = Some(Status { message: self.text(at::STATUS_MESSAGE)?, code });
        span.attributes = self.attributes(at::ATTRIBUTES, 4)?;
        span.dropped_attributes_count = self.count(at::DROPPED_ATTRIBUTES)?;
        if self.has(at::EVENT_TIME) {
            span.events = self.events(span.start_time_unix_nano)?;
            span.dropped_events_count = self.count(at::DROPPED_EVENTS)?;
        }
        if self.has(at::LINK_TRACE_ID) {
            span.links = self.links()?;
            span.dropped_links_count = self.count(at::DROPPED_LINKS)?;
        }
        if self.has(at::STATUS_CODE) {
            let fixed = self.texts(at::SPAN_FIXED, encode::SPAN_LEAVES.iter().map(|(name, _)| *name))?;
            let status_code = self.leaf(at::STATUS_CODE)?.optional_long()?;
            let names = std::mem::take(&mut self.span_dedicated);
            let dedicated = self.texts(at::SPAN_DEDICATED, names.iter().map(String::as_str));
            self.span_dedicated = names;
            span.attributes.extend(dedicated?);
            span.attributes.extend(fixed);
            span.attributes.extend(status_code.map(|code| attribute(encode::STATUS_CODE, Any::IntValue(code))));
        }
        Ok(span)
    }

    fn events(&mut self, start: u64) -> Result<Vec<Event>, Wrong> {
        let mut events = Vec::new();
        if self.leaf(at::EVENT_TIME)?.definition().unwrap_or(0) < 4 {
            self.skip(at::EVENT_TIME..=at::EVENT_DROPPED)?;
            return Ok(events);
        }
        loop {
            events.push(Event {
                time_unix_nano: start.wrapping_add(self.long(at::EVENT_TIME)? as u64),
                name: self.text(at::EVENT_NAME)?,
                attributes: self.attributes(at::EVENT_ATTRIBUTES, 5)?,
                dropped_attributes_count: self.count(at::EVENT_DROPPED)?,
            });
            if self.leaf(at::EVENT_TIME)?.repetition() != 4 {
                return Ok(events);
            }
        }
    }

    fn links(&mut self) -> Result<Vec<Link>, Wrong> {
        let mut links = Vec::new();
        if self.leaf(at::LINK_TRACE_ID)?.definition().unwrap_or(0) < 4 {
            self.skip(at::LINK_TRACE_ID..=at::LINK_DROPPED)?;
            return Ok(links);
        }
        loop {
            links.push(Link {
                trace_id: self.leaf(at::LINK_TRACE_ID)?.bytes()?.to_vec(),
                span_id: self.leaf(at::LINK_SPAN_ID)?.bytes()?.to_vec(),
                trace_state: self.text(at::LINK_TRACE_STATE)?,
                attributes: self.attributes(at::LINK_ATTRIBUTES, 5)?,
                dropped_attributes_count: self.count(at::LINK_DROPPED)?,
                flags: 0,
            });
            if self.leaf(at::LINK_TRACE_ID)?.repetition() != 4 {
                return Ok(links);
            }
        }
    }

    /// Optional leaves of strings, one after the other, as attributes.
    fn texts<'a>(&mut self, first: usize, names: impl Iterator<Item = &'a str>) -> Result<Vec<KeyValue>, Wrong> {
        let mut attributes = Vec::new();
        if !self.has(first) {
            return Ok(attributes);
        }
        for (position, name) in (first..).zip(names) {
            if let Some(text) = self.leaf(position)?.optional_bytes()? {
                attributes.push(attribute(name, Any::StringValue(utf8(text)?)));
            }
        }
        Ok(attributes)
    }

    /// The generic attributes of one element: seven leaves from `first` on, at definition and repetition level `level`.
    fn attributes(&mut self, first: usize, level: i16) -> Result<Vec<KeyValue>, Wrong> {
        let mut attributes = Vec::new();
        if !self.has(first) {
            return Ok(attributes);
        }
        if self.leaf(first)?.definition().unwrap_or(0) < level {
            self.skip(first..=first + 6)?;
            return Ok(attributes);
        }
        loop {
            let key = self.text(first)?;
            let is_array = self.leaf(first + 1)?.bool()?.unwrap_or(false);
            let mut values = Vec::new();
            for kind in 2..6 {
                self.elements(first + kind, kind, level + 1, &mut values)?;
            }
            let unsupported = self.leaf(first + 6)?.optional_bytes()?.filter(|json| !json.is_empty()).map(json::read).transpose()?;
            let value = match unsupported {
                Some(value) => value,
                None if is_array => AnyValue {
                    value: Some(Any::ArrayValue(ArrayValue {
                        values: values.into_iter().map(|value| AnyValue { value: Some(value) }).collect(),
                    })),
                },
                None => AnyValue { value: values.into_iter().next() },
            };
            attributes.push(KeyValue { key, value: Some(value), ..KeyValue::default() });
            if self.leaf(first)?.repetition() != level {
                return Ok(attributes);
            }
        }
    }

    fn elements(&mut self, position: usize, kind: usize, level: i16, out: &mut Vec<Any>) -> Result<(), Wrong> {
        let leaf = self.leaf(position)?;
        loop {
            let value = match kind {
                2 => leaf.optional_bytes()?.map(utf8).transpose()?.map(Any::StringValue),
                3 => leaf.optional_long()?.map(Any::IntValue),
                4 => leaf.double()?.map(Any::DoubleValue),
                _ => leaf.bool()?.map(Any::BoolValue),
            };
            out.extend(value);
            if leaf.repetition() != level {
                return Ok(());
            }
        }
    }

    /// Identities of the spans of the next row; needs only the leaves of trace id, span id and kind.
    pub(super) fn span_keys(&mut self) -> Result<(TraceId, Vec<SpanKey>), Wrong> {
        self.begin_row()?;
        let id = trace_id(self.leaf(at::TRACE_ID)?.bytes()?);
        let mut keys = Vec::new();
        loop {
            let span_id = self.leaf(at::SPAN_ID)?.optional_bytes()?.map(super::nested::key);
            let kind = self.leaf(at::KIND)?.optional_long()?;
            if let (Some(span_id), Some(kind)) = (span_id, kind) {
                keys.push(SpanKey { span_id, kind: kind as i32 });
            }
            if self.leaf(at::SPAN_ID)?.repetition() == 0 {
                return Ok((id, keys));
            }
        }
    }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn utf8(bytes: &[u8]) -> Result<String, Wrong> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string is not utf-8".to_owned())
}
