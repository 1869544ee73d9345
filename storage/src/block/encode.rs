//! Traces to vParquet4 rows (block-format.md §8, §9), straight from the wire bytes of their spans.
//!
//! ```text
//!  TraceSegments ─ collect, sort, drop repeated spans ─► canonical spans ─ group by resource and scope ─► row order
//!                                                                                                     │
//!  resource bytes ─ cache ─► converted resource (dictionary numbers) ──┐                              ▼
//!  scope bytes ───── cache ─► converted scope ─────────────────────────┴──────────────────► Columns, field by field
//! ```
//!
//! Canonical order is (start, span id, kind, bytes of span, resource and scope): nothing depends on the order in which segments
//! arrived, and of spans with one identity the first in this order is kept. Resources and scopes come in the order of their first
//! spans; equal ones are one (§8.6). Resources repeat in every trace, so what they become is cached by their bytes for a row group.

mod leaves;
mod shared;

use std::collections::{HashMap, HashSet};

use self::{
    leaves::Leaves,
    shared::{Resource, Scope, write_resource, write_scope},
};
use super::{
    attributes::{self, Value},
    columns::{ColumnError, Columns, Dictionary, File},
    interner::Interner,
    meta::DedicatedColumn,
    nested::{self, Nested, Node, Numbering},
    schema,
};
use crate::{
    block::TraceSegments,
    id::TraceId,
    otlp::{
        Slice, WireError,
        wire::{Fields, Value as Wire},
    },
};

/// Attributes of resources with a leaf of their own, in the order of the leaves (§7.2). `service.name` comes before them.
pub(super) const RESOURCE_LEAVES: [(&str, &str); 8] = [
    ("cluster", "Cluster"),
    ("namespace", "Namespace"),
    ("pod", "Pod"),
    ("container", "Container"),
    ("k8s.cluster.name", "K8sClusterName"),
    ("k8s.namespace.name", "K8sNamespaceName"),
    ("k8s.pod.name", "K8sPodName"),
    ("k8s.container.name", "K8sContainerName"),
];

/// Attributes of spans with a leaf of their own; `http.status_code` is the third, of integers.
pub(super) const SPAN_LEAVES: [(&str, &str); 2] = [("http.method", "HttpMethod"), ("http.url", "HttpUrl")];

/// Name of the integer attribute of spans with a leaf of its own.
pub(super) const STATUS_CODE: &str = "http.status_code";

/// Dedicated columns per scope.
pub(super) const DEDICATED: usize = 10;

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
    #[error("compressor")]
    Compressor(#[source] std::io::Error),
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

/// The entries of `columns` that vParquet4 can hold, as they stand in `meta.json` (§3.1).
pub(super) fn kept(columns: &[DedicatedColumn]) -> Vec<DedicatedColumn> {
    let fixed = |column: &DedicatedColumn| match column.scope.as_str() {
        "resource" => column.name == "service.name" || RESOURCE_LEAVES.iter().any(|(name, _)| *name == column.name),
        "span" => column.name == STATUS_CODE || SPAN_LEAVES.iter().any(|(name, _)| *name == column.name),
        _ => true,
    };
    columns.iter().filter(|c| c.kind == "string" && c.options.is_empty() && !fixed(c)).cloned().collect()
}

/// Names of the attributes in the dedicated leaves `String01`, `String02`, … of a scope.
pub(super) fn dedicated_names<'a>(kept: &'a [DedicatedColumn], scope: &str) -> Vec<&'a str> {
    kept.iter().filter(|c| c.scope == scope).take(DEDICATED).map(|c| c.name.as_str()).collect()
}

/// Encodes traces, sorted by id.
pub(super) fn encode(row_group_size: usize, kept: &[DedicatedColumn], traces: &[TraceSegments]) -> Result<Encoding, EncodeError> {
    let mut encoder = Encoder::new(kept).map_err(EncodeError::Compressor)?;
    let mut encoding_ids: Vec<TraceId> = Vec::with_capacity(traces.len());
    let mut last_ids = Vec::new();
    let mut estimate = 0;
    for trace in traces {
        if encoding_ids.last().is_some_and(|&last| last >= trace.trace_id) {
            return Err(EncodeError::Unsorted(trace.trace_id));
        }
        let Some(cost) = encoder.trace(trace)? else { continue };
        encoding_ids.push(trace.trace_id);
        estimate += cost;
        if estimate >= row_group_size || encoder.columns.dictionary_bytes() >= MAX_DICTIONARY_BYTES {
            encoder.cut()?;
            last_ids.push(trace.trace_id);
            estimate = 0;
        }
    }
    if estimate > 0 {
        last_ids.extend(encoding_ids.last());
    }
    let Encoder { columns, start, end, .. } = encoder;
    let file = columns.finish(concat!("rubato version ", env!("CARGO_PKG_VERSION"), " (build vparquet4)"))?;
    Ok(Encoding { file, ids: encoding_ids, last_ids, start, end })
}

/// What a span's attribute key means. Kept per key and row group.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// Slot of an optional leaf of strings.
    Leaf(usize),
    StatusCode,
    Generic,
}

/// A span on its way into a row.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    start: u64,
    span_id: u64,
    kind: i32,
    segment: u32,
    resource: Slice,
    scope: Slice,
    bytes: &'a [u8],
}

/// What groups a span: the places of the first spans of its resource and of its scope, then its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    resource: u32,
    scope: u32,
    span: u32,
    resource_entry: u32,
    scope_entry: u32,
}

/// Repetition levels of a second and later resource, scope, span, event or link, attribute of a span.
const RESOURCE: u8 = 1;
const SCOPE: u8 = 2;
const SPAN: u8 = 3;
const EVENT: u8 = 4;

#[derive(Debug)]
struct Encoder {
    columns: Columns,
    leaves: Leaves,
    /// Dedicated attributes of resources and their leaves.
    resource_dedicated: Vec<(String, Dictionary)>,
    /// Optional leaves of strings of spans: the fixed ones, then the dedicated ones.
    span_optional: Vec<(String, Dictionary)>,
    /// Values of `span_optional` of the current span, and of `http.status_code`.
    optional_values: Vec<Option<u32>>,
    keys: Interner,
    /// Meaning of the keys, and their numbers in the leaf of generic keys once they are used there.
    meanings: Vec<(Meaning, Option<u32>)>,
    /// Numbers the messages as `resources` does.
    resource_cache: Interner,
    resources: Vec<Resource>,
    resource_classes: Interner,
    /// Numbers the messages as `scopes` does.
    scope_cache: Interner,
    scopes: Vec<Scope>,
    scope_classes: Interner,
    numbering: Numbering,
    nodes: Vec<Node>,
    nested: Vec<Nested>,
    places: Vec<Place>,
    start: Option<u64>,
    end: Option<u64>,
}

impl Encoder {
    fn new(kept: &[DedicatedColumn]) -> std::io::Result<Self> {
        let columns = Columns::new(schema::v4(), "rs[].ss[].Spans[]")?;
        let dedicated = |scope: &str, prefix: &str| {
            let names = dedicated_names(kept, scope);
            let leaf = |at: usize| columns.dictionary(&format!("{prefix}.DedicatedAttributes.String{at:02}"));
            names.into_iter().zip(1..).map(|(name, at)| (name.to_owned(), leaf(at))).collect::<Vec<_>>()
        };
        let resource_dedicated = dedicated("resource", "rs[].Resource");
        let fixed = SPAN_LEAVES.iter().map(|(name, leaf)| ((*name).to_owned(), columns.dictionary(&format!("rs[].ss[].Spans[].{leaf}"))));
        let span_optional: Vec<_> = fixed.chain(dedicated("span", "rs[].ss[].Spans[]")).collect();
        Ok(Self {
            leaves: Leaves::new(&columns),
            resource_dedicated,
            optional_values: vec![None; span_optional.len()],
            span_optional,
            columns,
            keys: Interner::default(),
            meanings: Vec::new(),
            resource_cache: Interner::default(),
            resources: Vec::new(),
            resource_classes: Interner::default(),
            scope_cache: Interner::default(),
            scopes: Vec::new(),
            scope_classes: Interner::default(),
            numbering: Numbering::default(),
            nodes: Vec::new(),
            nested: Vec::new(),
            places: Vec::new(),
            start: None,
            end: None,
        })
    }

    /// Ends the row group; numbers of its dictionaries are forgotten.
    fn cut(&mut self) -> Result<(), EncodeError> {
        self.columns.cut_row_group()?;
        self.keys.clear();
        self.meanings.clear();
        self.resource_cache.clear();
        self.resources.clear();
        self.resource_classes.clear();
        self.scope_cache.clear();
        self.scopes.clear();
        self.scope_classes.clear();
        Ok(())
    }

    /// Adds a trace as a row and returns its estimated size (§6.1); nothing happens when it has no spans.
    fn trace(&mut self, trace: &TraceSegments) -> Result<Option<usize>, EncodeError> {
        let id = trace.trace_id;
        let wire = |source| EncodeError::Wire { id, source };
        let mut entries = Vec::with_capacity(trace.segments.iter().map(|segment| segment.spans.len()).sum());
        for (index, segment) in trace.segments.iter().enumerate() {
            for span in &segment.spans {
                let bytes = span.span.of(&segment.body).ok_or(EncodeError::Outside(id))?;
                entries.push(Entry {
                    start: start_of(bytes).map_err(wire)?,
                    span_id: span.key.span_id,
                    kind: span.key.kind,
                    segment: index as u32,
                    resource: span.resource,
                    scope: span.scope,
                    bytes,
                });
            }
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let message = |entry: &Entry<'_>, slice: Slice| trace.segments.get(entry.segment as usize).and_then(|s| slice.of(&s.body));
        entries.sort_unstable_by(|a, b| {
            (a.start, a.span_id, a.kind)
                .cmp(&(b.start, b.span_id, b.kind))
                .then_with(|| a.bytes.cmp(b.bytes))
                .then_with(|| message(a, a.resource).cmp(&message(b, b.resource)))
                .then_with(|| message(a, a.scope).cmp(&message(b, b.scope)))
        });
        drop_repeated(&mut entries);

        self.group(trace, &entries)?;
        self.row(id, &entries).map_err(wire).and_then(|cost| {
            self.columns.end_row()?;
            Ok(Some(cost))
        })
    }

    /// Fills `places` with the spans in row order.
    fn group(&mut self, trace: &TraceSegments, entries: &[Entry<'_>]) -> Result<(), EncodeError> {
        let id = trace.trace_id;
        let wire = |source| EncodeError::Wire { id, source };
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        // Few resources and scopes take part in one trace: what was looked up last is found by looking at the spans before.
        let mut resources: Vec<((u32, Slice), u32)> = Vec::new();
        let mut scopes: Vec<((u32, Slice), u32)> = Vec::new();
        let mut first_resource: FirstSeen<u32> = FirstSeen::default();
        let mut first_scope: FirstSeen<(u32, u32)> = FirstSeen::default();
        for (span, entry) in entries.iter().enumerate() {
            let body = &trace.segments[entry.segment as usize].body;
            let resource_entry = match known(&resources, (entry.segment, entry.resource)) {
                Some(known) => known,
                None => {
                    let message = if entry.resource.is_empty() { &[] } else { entry.resource.of(body).ok_or(EncodeError::Outside(id))? };
                    let found = self.resource(message).map_err(wire)?;
                    resources.push(((entry.segment, entry.resource), found));
                    found
                }
            };
            let scope_entry = match known(&scopes, (entry.segment, entry.scope)) {
                Some(known) => known,
                None => {
                    let message = if entry.scope.is_empty() { &[] } else { entry.scope.of(body).ok_or(EncodeError::Outside(id))? };
                    let found = self.scope(message).map_err(wire)?;
                    scopes.push(((entry.segment, entry.scope), found));
                    found
                }
            };
            let span = span as u32;
            let (resource, resource_entry) = first_resource.of(self.resources[resource_entry as usize].class, (span, resource_entry));
            let class = self.scopes[scope_entry as usize].class;
            let (scope, scope_entry) = first_scope.of((resource, class), (span, scope_entry));
            places.push(Place { resource, scope, span, resource_entry, scope_entry });
        }
        places.sort_unstable();
        self.places = places;
        Ok(())
    }

    /// Writes the row of `places`.
    fn row(&mut self, id: TraceId, entries: &[Entry<'_>]) -> Result<usize, WireError> {
        let places = std::mem::take(&mut self.places);
        self.nodes.clear();
        let mut estimate = 7;
        let (mut start, mut end) = (0u64, 0u64);
        let (mut root_service, mut root_span): (Option<u32>, &[u8]) = (None, &[]);
        let mut stats: Vec<(u32, i64, i64)> = Vec::new();
        let (mut resource, mut scope) = (u32::MAX, u32::MAX);
        let mut repetition = 0;
        for place in &places {
            let found = &self.resources[place.resource_entry as usize];
            if place.resource != resource {
                resource = place.resource;
                scope = u32::MAX;
                estimate += found.estimate;
                write_resource(&mut self.columns, &self.leaves, found, repetition);
                if !stats.iter().any(|(service, ..)| *service == found.service) {
                    stats.push((found.service, 0, 0));
                }
            }
            if place.scope != scope {
                scope = place.scope;
                estimate += 2;
                write_scope(&mut self.columns, &self.leaves, &self.scopes[place.scope_entry as usize], repetition);
            }
            let (service, root) = (found.service, found.root_service);
            let span = self.span(id, &entries[place.span as usize], repetition)?;
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
        for nested in &self.nested {
            columns.push_integer(leaves.parent, nested.parent.into());
            columns.push_integer(leaves.left, nested.left.into());
            columns.push_integer(leaves.right, nested.right.into());
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
        let mut stats: Vec<_> =
            stats.into_iter().map(|(code, spans, errors)| (columns.string(leaves.service, code).to_vec(), spans, errors)).collect();
        stats.sort_unstable();
        for (index, (service, spans, errors)) in stats.iter().enumerate() {
            columns.enter(leaves.stats, u8::from(index > 0), 1);
            columns.push_text(leaves.stats_key, service);
            columns.push_integer(leaves.stats_spans, *spans);
            columns.push_integer(leaves.stats_errors, *errors);
        }
        if start != 0 {
            self.start = Some(self.start.map_or(start, |known| known.min(start)));
        }
        if end != 0 {
            self.end = Some(self.end.map_or(end, |known| known.max(end)));
        }
        Ok(estimate)
    }

    /// Writes a span; its nested set numbers follow with those of the whole trace.
    fn span<'a>(&mut self, id: TraceId, entry: &Entry<'a>, repetition: u8) -> Result<Span<'a>, WireError> {
        let mut span = Span { estimate: 14, start: entry.start, ..Span::default() };
        let (mut trace_state, mut span_id, mut parent): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut kind, mut status, mut message): (i32, i64, &[u8]) = (0, 0, &[]);
        let (mut dropped_attributes, mut dropped_events, mut dropped_links) = (0i64, 0i64, 0i64);
        let mut attribute_repetition = repetition;
        let mut event_repetition = repetition;
        let mut link_repetition = repetition;
        let mut child_of = false;
        let mut http_status = None;
        self.columns.enter(self.leaves.spans, repetition, SPAN);
        for field in Fields::new(entry.bytes) {
            let field = field?;
            match (field.number, field.value) {
                (9, Wire::Bytes(bytes)) => {
                    span.estimate += 7;
                    let (key, value) = attributes::read(bytes)?;
                    let (number, new) = self.keys.intern(key);
                    if new {
                        let meaning = match self.span_optional.iter().position(|(name, _)| name.as_bytes() == key) {
                            Some(slot) => Meaning::Leaf(slot),
                            None if key == STATUS_CODE.as_bytes() => Meaning::StatusCode,
                            None => Meaning::Generic,
                        };
                        self.meanings.push((meaning, None));
                    }
                    let (meaning, code) = &mut self.meanings[number as usize];
                    match (*meaning, value) {
                        (Meaning::Leaf(slot), Value::Text(text)) => {
                            self.optional_values[slot] = Some(self.columns.code(self.span_optional[slot].1, &text));
                        }
                        (Meaning::StatusCode, Value::Int(value)) => http_status = Some(value),
                        (_, value) => {
                            let attributes = &self.leaves.attributes;
                            let key = match code {
                                Some(code) => *code,
                                None => *code.insert(attributes.key(&mut self.columns, key)),
                            };
                            attributes.push(&mut self.columns, attribute_repetition, key, value);
                            attribute_repetition = SPAN + 1;
                        }
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
                    span.estimate += write_event(&mut self.columns, &self.leaves, bytes, span.start, event_repetition)?;
                    event_repetition = EVENT;
                }
                (12, Wire::Varint(value)) => dropped_events = (value as i32).into(),
                (13, Wire::Bytes(bytes)) => {
                    child_of |= write_link(&mut self.columns, &self.leaves, bytes, id, link_repetition)?;
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
        let latest = columns.latest(leaves.spans);
        if attribute_repetition != SPAN + 1 {
            leaves.attributes.none(columns, repetition, SPAN);
        }
        if event_repetition != EVENT {
            columns.enter(leaves.events, repetition, SPAN);
            leaves.event_attributes.none(columns, repetition, SPAN);
        }
        if link_repetition != EVENT {
            columns.enter(leaves.links, repetition, SPAN);
            leaves.link_attributes.none(columns, repetition, SPAN);
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
        for (value, (_, leaf)) in self.optional_values.iter_mut().zip(&self.span_optional) {
            if let Some(code) = value.take() {
                columns.push_optional_code(*leaf, latest, code);
            }
        }
        if let Some(value) = http_status {
            columns.push_optional_integer(leaves.status_code, latest, value);
        }
        self.nodes.push(Node { id: nested::key(span_id), parent: (!parent.is_empty()).then(|| nested::key(parent)), kind });
        span.root = parent.is_empty() && !child_of;
        span.error = status == 2;
        Ok(span)
    }
}

/// What the row needs to know of a span that was written.
#[derive(Clone, Copy, Debug, Default)]
struct Span<'a> {
    start: u64,
    end: u64,
    name: &'a [u8],
    root: bool,
    error: bool,
    estimate: usize,
}

/// Start of a span. The last one counts if there are several.
#[inline]
fn start_of(span: &[u8]) -> Result<u64, WireError> {
    let mut start = 0;
    for field in Fields::new(span) {
        let field = field?;
        if let (7, Wire::Fixed64(value)) = (field.number, field.value) {
            start = value;
        }
    }
    Ok(start)
}

/// Keeps the first of the spans with one id and kind.
fn drop_repeated(entries: &mut Vec<Entry<'_>>) {
    if entries.len() <= 32 {
        let mut kept = 0;
        for at in 0..entries.len() {
            let entry = entries[at];
            if !entries[..kept].iter().any(|known| known.span_id == entry.span_id && known.kind == entry.kind) {
                entries[kept] = entry;
                kept += 1;
            }
        }
        entries.truncate(kept);
    } else {
        let mut seen = HashSet::with_capacity(entries.len());
        entries.retain(|entry| seen.insert((entry.span_id, entry.kind)));
    }
}

/// The newest matches are the likeliest; a trace of very many requests falls back to the caches by content.
fn known(known: &[((u32, Slice), u32)], wanted: (u32, Slice)) -> Option<u32> {
    known.iter().rev().take(16).find(|(place, _)| *place == wanted).map(|(_, found)| *found)
}

/// The first span (and what was found for it) of every class, for few or many classes.
#[derive(Debug)]
struct FirstSeen<K> {
    few: Vec<(K, (u32, u32))>,
    many: HashMap<K, (u32, u32)>,
}

impl<K> Default for FirstSeen<K> {
    fn default() -> Self {
        Self { few: Vec::new(), many: HashMap::new() }
    }
}

impl<K: Copy + Eq + std::hash::Hash> FirstSeen<K> {
    #[inline]
    fn of(&mut self, class: K, span: (u32, u32)) -> (u32, u32) {
        if let Some((_, first)) = self.few.iter().find(|(known, _)| *known == class) {
            return *first;
        }
        if self.few.len() < 32 {
            self.few.push((class, span));
            return span;
        }
        *self.many.entry(class).or_insert(span)
    }
}

/// Writes an event and returns its estimated size.
fn write_event(columns: &mut Columns, leaves: &Leaves, bytes: &[u8], span_start: u64, repetition: u8) -> Result<usize, WireError> {
    let (mut time, mut name, mut dropped): (u64, &[u8], i64) = (0, &[], 0);
    let mut estimate = 4;
    let mut attribute_repetition = repetition;
    let mut any = false;
    for field in Fields::new(bytes) {
        let field = field?;
        match (field.number, field.value) {
            (1, Wire::Fixed64(value)) => time = value,
            (2, Wire::Bytes(text)) => name = text,
            (3, Wire::Bytes(attribute)) => {
                let (key, value) = attributes::read(attribute)?;
                let key = leaves.event_attributes.key(columns, key);
                leaves.event_attributes.push(columns, attribute_repetition, key, value);
                attribute_repetition = EVENT + 1;
                any = true;
                estimate += 4;
            }
            (4, Wire::Varint(value)) => dropped = (value as i32).into(),
            _ => {}
        }
    }
    columns.enter(leaves.events, repetition, EVENT);
    if !any {
        leaves.event_attributes.none(columns, repetition, EVENT);
    }
    columns.push_integer(leaves.event_time, time.wrapping_sub(span_start) as i64);
    columns.push_string(leaves.event_name, name);
    columns.push_integer(leaves.event_dropped, dropped);
    Ok(estimate)
}

/// Writes a link and returns whether it makes its span a child in the same trace (§8.1).
fn write_link(columns: &mut Columns, leaves: &Leaves, bytes: &[u8], id: TraceId, repetition: u8) -> Result<bool, WireError> {
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
                let key = leaves.link_attributes.key(columns, key);
                leaves.link_attributes.push(columns, attribute_repetition, key, value);
                attribute_repetition = EVENT + 1;
                any = true;
            }
            (5, Wire::Varint(value)) => dropped = (value as i32).into(),
            _ => {}
        }
    }
    columns.enter(leaves.links, repetition, EVENT);
    if !any {
        leaves.link_attributes.none(columns, repetition, EVENT);
    }
    columns.push_text(leaves.link_trace_id, trace_id);
    columns.push_text(leaves.link_span_id, span_id);
    columns.push_text(leaves.link_trace_state, trace_state);
    columns.push_integer(leaves.link_dropped, dropped);
    Ok(child_of && trace_id == id.0)
}
