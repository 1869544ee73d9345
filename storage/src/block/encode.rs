//! Traces to rows of any version (block-format.md §8, §9), straight from the wire bytes of their spans.
//!
//! ```text
//!  TraceSegments ─ order ─► spans in row order
//!                                          │
//!  resource bytes ─ cache ─► converted ──┐ ▼
//!  scope bytes ───── cache ─► converted ─┴───► Columns, field by field
//! ```
//!
//! The versions differ in which leaves there are and how attributes, events and links look in them; [`Leaves`](leaves::Leaves) says so, and
//! what is the same has one way. Resources repeat in every trace, so what they become is cached by their bytes for a row group.

mod leaves;
mod order;
mod own;
mod shared;
mod span;

pub(super) use self::order::Order;
use self::{
    leaves::Leaves,
    order::{Entry, Place},
    own::{Own, Slots},
    shared::{Resource, Scope, write_resource, write_scope},
};
use super::{
    columns::Columns,
    dedicated::{self, RESOURCE_LEAVES, SPAN_LEAVES, STATUS_CODE, assigned},
    file::File,
    format::Format,
    interner::Interner,
    meta::DedicatedColumn,
    nested::{Nested, Node, Numbering},
    pages::ColumnError,
    schema,
};
use crate::{block::TraceSegments, id::TraceId, otlp::WireError};

/// Bytes of strings in the dictionaries after which a row group is cut, whatever the estimate says: pages end at 2 GiB.
const MAX_DICTIONARY_BYTES: usize = 1 << 29;

/// Why traces cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("trace {id}")]
    Wire {
        id: TraceId,
        #[source]
        source: WireError,
    },
    #[error("trace {0}: a span lies outside of its body")]
    Outside(TraceId),
    #[error("traces are not sorted by id: {0} comes twice or late")]
    Unsorted(TraceId),
    #[error(transparent)]
    Columns(#[from] ColumnError),
}

/// What was encoded.
#[derive(Debug)]
pub(super) struct Encoding {
    pub(super) file: File,
    pub(super) ids: Vec<TraceId>,
    /// Last id of every row group.
    pub(super) last_ids: Vec<TraceId>,
    /// Smallest start and largest end of traces that have one, Unix nanoseconds.
    pub(super) start: Option<u64>,
    pub(super) end: Option<u64>,
}

/// Encodes traces, sorted by id.
pub(super) fn encode(
    format: Format,
    row_group_size: usize,
    kept: &[DedicatedColumn],
    traces: &[TraceSegments],
    order: Order,
) -> Result<Encoding, EncodeError> {
    let mut writer = Writer::new(format, row_group_size, kept, order);
    writer.ids.reserve(traces.len());
    for trace in traces {
        writer.add(trace)?;
    }
    writer.finish()
}

/// A block that is encoded trace by trace. In memory are the row group that is not full, and of the others what was not drained.
#[derive(Debug)]
pub(super) struct Writer {
    encoder: Encoder,
    order: Order,
    row_group_size: usize,
    /// Estimated size of the row group.
    estimate: usize,
    ids: Vec<TraceId>,
    last_ids: Vec<TraceId>,
}

impl Writer {
    /// A block without traces, whose row groups are cut at this estimated size.
    pub(super) fn new(format: Format, row_group_size: usize, kept: &[DedicatedColumn], order: Order) -> Self {
        let encoder = Encoder::new(format, kept);
        Self { encoder, order, row_group_size, estimate: 0, ids: Vec::new(), last_ids: Vec::new() }
    }

    /// Adds a trace, unless it has no spans. Its id is greater than that of the one before.
    pub(super) fn add(&mut self, trace: &TraceSegments) -> Result<(), EncodeError> {
        if self.ids.last().is_some_and(|&last| last >= trace.trace_id) {
            return Err(EncodeError::Unsorted(trace.trace_id));
        }
        let Some(cost) = self.encoder.trace(trace, self.order)? else { return Ok(()) };
        self.ids.push(trace.trace_id);
        self.estimate += cost;
        if self.estimate >= self.row_group_size || self.encoder.columns.dictionary_bytes() >= MAX_DICTIONARY_BYTES {
            self.encoder.cut()?;
            self.last_ids.push(trace.trace_id);
            self.estimate = 0;
        }
        Ok(())
    }

    /// Takes the bytes of the row groups that were finished since the last time.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        self.encoder.columns.drain()
    }

    /// Ends the block.
    pub(super) fn finish(mut self) -> Result<Encoding, EncodeError> {
        if self.estimate > 0 {
            self.last_ids.extend(self.ids.last());
        }
        let Encoder { columns, start, end, format, .. } = self.encoder;
        let file = columns.finish(&created_by(format))?;
        Ok(Encoding { file, ids: self.ids, last_ids: self.last_ids, start, end })
    }
}

/// What a file says of who wrote it.
pub(super) fn created_by(format: Format) -> String {
    format!("rubato version {} (build {})", env!("CARGO_PKG_VERSION"), format.name().to_ascii_lowercase())
}

/// What the parts of a row add to the estimate of its size, about as Tempo does when it writes a block of this version from protobuf
/// (block-format.md §6.1): numbers of values in vParquet2 and 3.
#[derive(Clone, Copy, Debug)]
struct Prices {
    row: usize,
    resource: usize,
    resource_attribute: usize,
    scope: usize,
    span: usize,
    attribute: usize,
    event: usize,
    event_attribute: usize,
    link: usize,
}

impl Prices {
    const fn of(format: Format) -> Self {
        match format {
            Format::V2 => Self {
                row: 7,
                resource: 10,
                resource_attribute: 7,
                scope: 2,
                span: 19,
                attribute: 7,
                event: 4,
                event_attribute: 2,
                link: 0,
            },
            Format::V3 => Self { resource: 19, span: 29, event: 3, ..Self::of(Format::V2) },
            Format::V4 => Self { resource: 10, span: 14, event: 4, event_attribute: 4, ..Self::of(Format::V2) },
            Format::V5 => {
                Self { row: 23, resource: 31, scope: 6, span: 61, event: 14, event_attribute: 7, link: 29, ..Self::of(Format::V2) }
            }
        }
    }
}

/// What a span's attribute key means. Kept per key and row group.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// Slot of its own leaf.
    Own(usize),
    Generic,
}

/// Which key came after which: instrumentation sets attributes in the same order again and again, and comparing with the key that is expected
/// is quicker than looking it up.
#[derive(Debug)]
struct Sequence {
    /// The key that came last, as its number plus one; 0 at the begin of a span.
    last: usize,
    /// The number of the key that came after it the last time, by `last`.
    next: Vec<u32>,
}

impl Default for Sequence {
    fn default() -> Self {
        Self { last: 0, next: vec![0] }
    }
}

impl Sequence {
    /// The number of the next key, and whether it is new.
    #[inline]
    fn number(&mut self, keys: &mut Interner, key: &[u8]) -> (u32, bool) {
        let expected = self.next[self.last];
        let (number, new) = if keys.is(expected, key) { (expected, false) } else { keys.intern(key) };
        if new {
            self.next.push(0);
        }
        self.next[self.last] = number;
        self.last = number as usize + 1;
        (number, new)
    }
}

/// Repetition levels of a second and later resource, scope, span, event or link, attribute of a span.
const RESOURCE: u8 = 1;
const SCOPE: u8 = 2;
const SPAN: u8 = 3;
const EVENT: u8 = 4;

#[derive(Debug)]
struct Encoder {
    format: Format,
    prices: Prices,
    columns: Columns,
    leaves: Leaves,
    /// Attributes with a leaf of their own, and their values in the current span or event.
    resource_own: Own,
    span_own: Own,
    span_slots: Slots,
    event_own: Own,
    event_slots: Slots,
    keys: Interner,
    /// Meaning of the keys, and their numbers in the leaf of generic keys once they are used there.
    meanings: Vec<(Meaning, Option<u32>)>,
    sequence: Sequence,
    /// Numbers the messages as `resources` does.
    resource_cache: Interner,
    resources: Vec<Resource>,
    resource_classes: Interner,
    /// Numbers the messages as `scopes` does.
    scope_cache: Interner,
    scopes: Vec<Scope>,
    scope_classes: Interner,
    /// The links of the current span as one message.
    raw_links: Vec<u8>,
    numbering: Numbering,
    nodes: Vec<Node>,
    nested: Vec<Nested>,
    places: Vec<Place>,
    start: Option<u64>,
    end: Option<u64>,
}

impl Encoder {
    fn new(format: Format, kept: &[DedicatedColumn]) -> Self {
        const SPAN: &str = "rs[].ss[].Spans[]";
        let columns = Columns::new(&schema::of(format, kept), SPAN);
        let assigned = assigned(format, kept);
        let (resource, span): (&[_], &[_]) = if format == Format::V5 { (&[], &[]) } else { (&RESOURCE_LEAVES, &SPAN_LEAVES) };
        let mut span_own = Own::new(&columns, SPAN, span, &assigned, dedicated::Scope::Span);
        if format != Format::V5 {
            span_own = span_own.with_int(STATUS_CODE, columns.integer(&format!("{SPAN}.HttpStatusCode")));
        }
        let event_own = Own::new(&columns, SPAN, &[], &assigned, dedicated::Scope::Event);
        Self {
            format,
            prices: Prices::of(format),
            leaves: Leaves::new(&columns, format),
            resource_own: Own::new(&columns, "rs[].Resource", resource, &assigned, dedicated::Scope::Resource),
            span_slots: span_own.slots(),
            span_own,
            event_slots: event_own.slots(),
            event_own,
            columns,
            keys: Interner::default(),
            meanings: Vec::new(),
            sequence: Sequence::default(),
            resource_cache: Interner::default(),
            resources: Vec::new(),
            resource_classes: Interner::default(),
            scope_cache: Interner::default(),
            scopes: Vec::new(),
            scope_classes: Interner::default(),
            raw_links: Vec::new(),
            numbering: Numbering::default(),
            nodes: Vec::new(),
            nested: Vec::new(),
            places: Vec::new(),
            start: None,
            end: None,
        }
    }

    /// Ends the row group; numbers of its dictionaries are forgotten.
    fn cut(&mut self) -> Result<(), EncodeError> {
        self.columns.cut_row_group()?;
        self.keys.clear();
        self.meanings.clear();
        self.sequence = Sequence::default();
        self.resource_cache.clear();
        self.resources.clear();
        self.resource_classes.clear();
        self.scope_cache.clear();
        self.scopes.clear();
        self.scope_classes.clear();
        Ok(())
    }

    /// Adds a trace as a row and returns its estimated size; nothing happens when it has no spans.
    fn trace(&mut self, trace: &TraceSegments, order: Order) -> Result<Option<usize>, EncodeError> {
        let id = trace.trace_id;
        let entries = order::collect(trace, order)?;
        if entries.is_empty() {
            return Ok(None);
        }
        self.group(trace, &entries, order)?;
        let cost = self.row(id, &entries).map_err(|source| EncodeError::Wire { id, source })?;
        self.columns.end_row()?;
        Ok(Some(cost))
    }

    /// Writes the row of `places`.
    fn row(&mut self, id: TraceId, entries: &[Entry<'_>]) -> Result<usize, WireError> {
        let places = std::mem::take(&mut self.places);
        self.nodes.clear();
        let mut estimate = self.prices.row;
        let (mut start, mut end) = (0u64, 0u64);
        let (mut root_service, mut root_span): (Option<u32>, &[u8]) = (None, &[]);
        let mut stats: Vec<(u32, i64, i64)> = Vec::new();
        let (mut resource, mut scope) = (u32::MAX, u32::MAX);
        let (mut repetition, mut scope_spans) = (0, 0);
        for place in &places {
            let found = &self.resources[place.resource_entry as usize];
            if place.resource != resource {
                resource = place.resource;
                scope = u32::MAX;
                estimate += self.prices.resource + self.prices.resource_attribute * found.count;
                write_resource(&mut self.columns, &self.leaves, &self.resource_own, found, repetition);
                if !stats.iter().any(|(service, ..)| *service == found.service) {
                    stats.push((found.service, 0, 0));
                }
            }
            if place.scope != scope {
                scope = place.scope;
                if let Some(leaf) = self.leaves.scope_spans
                    && scope_spans > 0
                {
                    self.columns.push_integer(leaf, std::mem::take(&mut scope_spans));
                }
                estimate += self.prices.scope;
                write_scope(&mut self.columns, &self.leaves, &self.scopes[place.scope_entry as usize], repetition);
            }
            let (service, root) = (found.service, found.root_service);
            let span = self.span(id, &entries[place.span as usize], repetition)?;
            scope_spans += 1;
            repetition = SPAN;
            if let Some(next) = places.get(self.nodes.len()) {
                repetition = if next.resource != resource {
                    RESOURCE
                } else if next.scope != scope {
                    SCOPE
                } else {
                    SPAN
                };
            }
            estimate += span.estimate;
            if start == 0 || (span.start != 0 && span.start < start) {
                start = span.start;
            }
            end = end.max(span.end);
            if span.root {
                root_span = span.name;
                root_service = Some(root);
            }
            if let Some(stat) = stats.iter_mut().find(|(known, ..)| *known == service) {
                stat.1 += 1;
                stat.2 += i64::from(span.error);
            }
        }
        self.places = places;
        self.numbering.number(&self.nodes, &mut self.nested);
        let (columns, leaves) = (&mut self.columns, &self.leaves);
        if let Some(leaf) = leaves.scope_spans {
            columns.push_integer(leaf, scope_spans);
        }
        for nested in &self.nested {
            columns.push_integer(leaves.parent, nested.parent.into());
            columns.push_integer(leaves.left, nested.left.into());
            columns.push_integer(leaves.right, nested.right.into());
            if let Some(leaf) = leaves.children {
                columns.push_integer(leaf, nested.children.into());
            }
        }
        columns.push_text(leaves.trace_id, &id.0);
        columns.push_text(leaves.trace_id_text, id.to_short_hex().as_bytes());
        columns.push_integer(leaves.start, start as i64);
        columns.push_integer(leaves.end, end as i64);
        columns.push_integer(leaves.duration, end.wrapping_sub(start) as i64);
        match root_service {
            Some(code) => columns.push_code(leaves.root_service, code),
            None => columns.push_string(leaves.root_service, &[]),
        }
        columns.push_string(leaves.root_span, root_span);
        if let Some(leaves) = leaves.stats {
            let service = self.leaves.service;
            let mut stats: Vec<_> =
                stats.into_iter().map(|(code, spans, errors)| (columns.string(service, code).to_vec(), spans, errors)).collect();
            stats.sort_unstable();
            for (index, (service, spans, errors)) in stats.iter().enumerate() {
                columns.enter(leaves.list, u8::from(index > 0), 1);
                columns.push_string(leaves.service, service);
                columns.push_integer(leaves.spans, *spans);
                columns.push_integer(leaves.errors, *errors);
            }
        }
        if start != 0 {
            self.start = Some(self.start.map_or(start, |known| known.min(start)));
        }
        if end != 0 {
            self.end = Some(self.end.map_or(end, |known| known.max(end)));
        }
        Ok(estimate)
    }
}
