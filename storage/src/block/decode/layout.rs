//! Where a version has what: positions of leaves, found by their names, and the reading of a row by them.

use std::{collections::HashMap, ops::Range, sync::Arc};

use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use parquet::schema::types::SchemaDescriptor;

use super::{
    Leaves,
    attributes::{Attributes, Column, Kind},
    links,
};
use crate::{
    block::{
        DedicatedColumn, Format, Projection, Trace,
        dedicated::{self, Assigned, Scope},
        leaf::{Wrong, trace_id},
        schema::{self, Schema},
    },
    id::TraceId,
};

/// What the leaves of a block stand for.
#[derive(Debug)]
pub(in crate::block) struct Layout {
    leaves: usize,
    trace_id: usize,
    resources: List,
    resource: ResourceLeaves,
    scopes: List,
    scope: ScopeLeaves,
    spans: List,
    span: SpanLeaves,
    events: List,
    event: EventLeaves,
    links: Links,
}

/// A list of the row.
#[derive(Debug)]
struct List {
    /// The leaves inside of it, which are neighbours.
    leaves: Range<usize>,
    /// The leaf that says how many elements there are; the first in the row of all that are read.
    leader: usize,
    /// Definition level of an element that is there, and repetition level of the second and later ones.
    level: i16,
}

#[derive(Debug)]
struct ResourceLeaves {
    attributes: Attributes,
    dropped: Option<usize>,
    service: usize,
    /// Dedicated columns, then fixed ones.
    columns: Vec<Column>,
}

#[derive(Debug)]
struct ScopeLeaves {
    name: usize,
    version: usize,
    attributes: Option<Attributes>,
    dropped: Option<usize>,
}

#[derive(Debug)]
struct SpanLeaves {
    id: usize,
    parent: usize,
    name: usize,
    kind: usize,
    trace_state: usize,
    start: usize,
    duration: usize,
    status: usize,
    status_message: usize,
    attributes: Attributes,
    dropped_attributes: usize,
    dropped_events: usize,
    dropped_links: usize,
    /// Dedicated columns, then fixed ones.
    columns: Vec<Column>,
}

#[derive(Debug)]
struct EventLeaves {
    time: usize,
    /// Whether the time is that since the start of the span.
    relative: bool,
    name: usize,
    attributes: Attributes,
    dropped: usize,
    /// Dedicated columns.
    columns: Vec<Column>,
}

#[derive(Debug)]
enum Links {
    /// One message of all links.
    Message(usize),
    Typed {
        list: List,
        trace_id: usize,
        span_id: usize,
        trace_state: usize,
        attributes: Attributes,
        dropped: usize,
    },
}

const RESOURCES: &str = "rs[]";
const SCOPES: &str = "rs[].ss[]";
const SPANS: &str = "rs[].ss[].Spans[]";
const EVENTS: &str = "rs[].ss[].Spans[].Events[]";
const LINKS: &str = "rs[].ss[].Spans[].Links[]";

/// The leaves of a schema by name.
struct Names<'a> {
    schema: &'a Schema,
    positions: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn new(schema: &'a Schema) -> Self {
        let positions = schema.leaves.iter().enumerate().map(|(position, leaf)| (leaf.name.as_str(), position)).collect();
        Self { schema, positions }
    }

    fn find(&self, above: &str, name: &str) -> Option<usize> {
        self.positions.get(format!("{above}.{name}").as_str()).copied()
    }

    fn leaf(&self, above: &str, name: &str) -> Result<usize, Wrong> {
        self.find(above, name).ok_or_else(|| format!("the schema has no leaf \"{above}.{name}\""))
    }

    fn list(&self, name: &str, leader: usize) -> Result<List, Wrong> {
        let inside = |leaf: &schema::Leaf| leaf.name.starts_with(name);
        let first = self.schema.leaves.iter().position(inside).ok_or_else(|| format!("the schema has no list \"{name}\""))?;
        let length = self.schema.leaves[first..].iter().take_while(|leaf| inside(leaf)).count();
        let level = self.schema.lists[self.schema.list(name)].repetition;
        Ok(List { leaves: first..first + length, leader, level: level.into() })
    }

    fn attributes(&self, above: &str) -> Result<Attributes, Wrong> {
        let list = format!("{above}.Attrs[]");
        let key = self.leaf(&list, "Key")?;
        let List { leaves, level, .. } = self.list(&list, key)?;
        Attributes::new(leaves, level, |name| self.find(&list, name))
            .ok_or_else(|| format!("the schema stores \"{list}\" in an unknown way"))
    }

    /// The column of an attribute with a leaf of its own, if the schema has that leaf.
    fn column(&self, leaf: &str, attribute: &str, kind: Kind) -> Option<Column> {
        let position = *self.positions.get(leaf)?;
        let list = &self.schema.lists[self.schema.leaves[position].list];
        let level = (list.name == leaf).then_some(list.repetition.into());
        Some(Column::new(position, attribute, kind, level))
    }

    /// The dedicated columns of a scope.
    fn dedicated(&self, columns: &[Assigned<'_>], scope: Scope) -> Vec<Column> {
        let of_scope = columns.iter().filter(|column| column.scope == scope);
        of_scope.filter_map(|column| self.column(&column.leaf(), column.name, if column.int { Kind::Int } else { Kind::Text })).collect()
    }
}

impl Layout {
    /// The layout of a block of this format and with these dedicated columns in this file.
    ///
    /// # Errors
    /// The file has other columns than that.
    pub(in crate::block) fn of(format: Format, dedicated: &[DedicatedColumn], file: &SchemaDescriptor) -> Result<Arc<Self>, Wrong> {
        let schema = schema::of(format, dedicated);
        if let Some(difference) = schema::difference(&schema, file) {
            return Err(format!("its columns are not those of {format}: {difference}"));
        }
        Self::new(&schema, &dedicated::assigned(format, dedicated)).map(Arc::new)
    }

    fn new(schema: &Schema, dedicated: &[Assigned<'_>]) -> Result<Self, Wrong> {
        let names = Names::new(schema);
        let id = names.leaf(SPANS, "SpanID")?;
        Ok(Self {
            leaves: schema.leaves.len(),
            trace_id: schema.leaf("TraceID"),
            resources: names.list(RESOURCES, id)?,
            resource: ResourceLeaves::new(&names, dedicated)?,
            scopes: names.list(SCOPES, id)?,
            scope: ScopeLeaves::new(&names)?,
            spans: names.list(SPANS, id)?,
            span: SpanLeaves::new(&names, id, dedicated)?,
            events: names.list(EVENTS, names.leaf(EVENTS, "Name")?)?,
            event: EventLeaves::new(&names, dedicated)?,
            links: Links::new(&names)?,
        })
    }

    /// Number of leaves of a file, those that may be added at its end left out.
    pub(in crate::block) fn leaves(&self) -> usize {
        self.leaves
    }

    /// Position of the trace ids.
    pub(in crate::block) fn trace_id(&self) -> usize {
        self.trace_id
    }

    /// The leaves that identify spans: trace id, span id and kind, in this order, in which they also lie in the file.
    pub(in crate::block) fn key_leaves(&self) -> [usize; 3] {
        [self.trace_id, self.span.id, self.span.kind]
    }

    /// The leaves that a projection needs, in the order of the file.
    pub(in crate::block) fn leaves_of(&self, projection: Projection) -> Vec<usize> {
        let span = &self.span;
        let mut leaves = vec![self.trace_id, self.resource.service];
        leaves.extend([span.id, span.parent, span.name, span.kind, span.trace_state]);
        leaves.extend([span.start, span.duration, span.status, span.status_message]);
        if projection.resource_attributes {
            leaves.extend(self.resource.attributes.leaves());
            leaves.extend(self.resource.dropped);
            leaves.extend(self.resource.columns.iter().map(Column::leaf));
        }
        if projection.scopes {
            leaves.extend([self.scope.name, self.scope.version]);
            leaves.extend(self.scope.attributes.iter().flat_map(Attributes::leaves));
            leaves.extend(self.scope.dropped);
        }
        if projection.span_attributes {
            leaves.extend(span.attributes.leaves());
            leaves.push(span.dropped_attributes);
            leaves.extend(span.columns.iter().map(Column::leaf));
        }
        if projection.events {
            let event = &self.event;
            leaves.extend([event.time, event.name, event.dropped, span.dropped_events]);
            leaves.extend(event.attributes.leaves());
            leaves.extend(event.columns.iter().map(Column::leaf));
        }
        if projection.links {
            leaves.push(span.dropped_links);
            match &self.links {
                Links::Message(message) => leaves.push(*message),
                Links::Typed { trace_id, span_id, trace_state, attributes, dropped, .. } => {
                    leaves.extend([trace_id, span_id, trace_state, dropped]);
                    leaves.extend(attributes.leaves());
                }
            }
        }
        leaves.sort_unstable();
        // The service's name is both.
        leaves.dedup();
        leaves
    }

    pub(super) fn trace(&self, leaves: &mut Leaves) -> Result<Trace, Wrong> {
        let trace_id = trace_id(leaves.get(self.trace_id)?.bytes()?);
        let resource_spans = self.resources.each(leaves, |leaves| self.resource_spans(leaves, trace_id))?;
        Ok(Trace { trace_id, resource_spans })
    }

    fn resource_spans(&self, leaves: &mut Leaves, trace_id: TraceId) -> Result<ResourceSpans, Wrong> {
        let resource = self.resource.read(leaves)?;
        let scope_spans = self.scopes.each(leaves, |leaves| {
            let scope = self.scope.read(leaves)?;
            let spans = self.spans.each(leaves, |leaves| self.span(leaves, trace_id))?;
            Ok(ScopeSpans { scope, spans, ..ScopeSpans::default() })
        })?;
        Ok(ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() })
    }

    fn span(&self, leaves: &mut Leaves, trace_id: TraceId) -> Result<Span, Wrong> {
        let mut span = self.span.read(leaves, trace_id)?;
        if leaves.has(self.event.time) {
            let start = span.start_time_unix_nano;
            span.events = self.events.each(leaves, |leaves| self.event.read(leaves, start))?;
        }
        span.links = self.links.read(leaves)?;
        Ok(span)
    }
}

impl List {
    /// Reads the elements that are there.
    fn each<T>(&self, leaves: &mut Leaves, mut read: impl FnMut(&mut Leaves) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
        let mut elements = Vec::new();
        if leaves.get(self.leader)?.definition().unwrap_or(0) < self.level {
            leaves.skip(self.leaves.clone())?;
            return Ok(elements);
        }
        loop {
            elements.push(read(leaves)?);
            if leaves.get(self.leader)?.repetition() != self.level {
                return Ok(elements);
            }
        }
    }
}

impl ResourceLeaves {
    fn new(names: &Names<'_>, dedicated: &[Assigned<'_>]) -> Result<Self, Wrong> {
        let above = format!("{RESOURCES}.Resource");
        let service = names.leaf(&above, "ServiceName")?;
        let mut columns = names.dedicated(dedicated, Scope::Resource);
        columns.push(Column::new(service, "service.name", Kind::NonEmptyText, None));
        let column = |(name, leaf): &(&str, &str)| names.column(&format!("{above}.{leaf}"), name, Kind::Text);
        columns.extend(dedicated::RESOURCE_LEAVES.iter().filter_map(column));
        let dropped = names.find(&above, "DroppedAttributesCount");
        Ok(Self { attributes: names.attributes(&above)?, dropped, service, columns })
    }

    fn read(&self, leaves: &mut Leaves) -> Result<Resource, Wrong> {
        let attributes = with_columns(&self.attributes, &self.columns, leaves)?;
        let dropped_attributes_count = leaves.count(self.dropped)?;
        Ok(Resource { attributes, dropped_attributes_count, ..Resource::default() })
    }
}

impl ScopeLeaves {
    fn new(names: &Names<'_>) -> Result<Self, Wrong> {
        let above = format!("{SCOPES}.Scope");
        let name = names.leaf(&above, "Name")?;
        let dropped = names.find(&above, "DroppedAttributesCount");
        let attributes = dropped.map(|_| names.attributes(&above)).transpose()?;
        Ok(Self { name, version: names.leaf(&above, "Version")?, attributes, dropped })
    }

    fn read(&self, leaves: &mut Leaves) -> Result<Option<InstrumentationScope>, Wrong> {
        if !leaves.has(self.name) {
            return Ok(None);
        }
        let attributes = self.attributes.as_ref().map(|attributes| attributes.read(leaves, 0)).transpose()?;
        Ok(Some(InstrumentationScope {
            name: leaves.text(self.name)?,
            version: leaves.text(self.version)?,
            attributes: attributes.unwrap_or_default(),
            dropped_attributes_count: leaves.count(self.dropped)?,
        }))
    }
}

impl SpanLeaves {
    fn new(names: &Names<'_>, id: usize, dedicated: &[Assigned<'_>]) -> Result<Self, Wrong> {
        let leaf = |name| names.leaf(SPANS, name);
        let mut columns = names.dedicated(dedicated, Scope::Span);
        let column = |(name, leaf): &(&str, &str)| names.column(&format!("{SPANS}.{leaf}"), name, Kind::Text);
        columns.extend(dedicated::SPAN_LEAVES.iter().filter_map(column));
        columns.extend(names.column(&format!("{SPANS}.HttpStatusCode"), dedicated::STATUS_CODE, Kind::Int));
        Ok(Self {
            id,
            parent: leaf("ParentSpanID")?,
            name: leaf("Name")?,
            kind: leaf("Kind")?,
            trace_state: leaf("TraceState")?,
            start: leaf("StartTimeUnixNano")?,
            duration: leaf("DurationNano")?,
            status: leaf("StatusCode")?,
            status_message: leaf("StatusMessage")?,
            attributes: names.attributes(SPANS)?,
            dropped_attributes: leaf("DroppedAttributesCount")?,
            dropped_events: leaf("DroppedEventsCount")?,
            dropped_links: leaf("DroppedLinksCount")?,
            columns,
        })
    }

    /// All but events and links.
    fn read(&self, leaves: &mut Leaves, trace_id: TraceId) -> Result<Span, Wrong> {
        let start_time_unix_nano = leaves.long(self.start)? as u64;
        Ok(Span {
            trace_id: trace_id.0.to_vec(),
            span_id: leaves.bytes(self.id)?,
            parent_span_id: leaves.bytes(self.parent)?,
            name: leaves.text(self.name)?,
            kind: leaves.long(self.kind)? as i32,
            trace_state: leaves.text(self.trace_state)?,
            start_time_unix_nano,
            end_time_unix_nano: start_time_unix_nano.wrapping_add(leaves.long(self.duration)? as u64),
            status: Some(Status { code: leaves.long(self.status)? as i32, message: leaves.text(self.status_message)? }),
            attributes: with_columns(&self.attributes, &self.columns, leaves)?,
            dropped_attributes_count: leaves.count(Some(self.dropped_attributes))?,
            dropped_events_count: leaves.count(Some(self.dropped_events))?,
            dropped_links_count: leaves.count(Some(self.dropped_links))?,
            ..Span::default()
        })
    }
}

impl EventLeaves {
    fn new(names: &Names<'_>, dedicated: &[Assigned<'_>]) -> Result<Self, Wrong> {
        let relative = names.find(EVENTS, "TimeSinceStartNano");
        Ok(Self {
            time: relative.map_or_else(|| names.leaf(EVENTS, "TimeUnixNano"), Ok)?,
            relative: relative.is_some(),
            name: names.leaf(EVENTS, "Name")?,
            attributes: names.attributes(EVENTS)?,
            dropped: names.leaf(EVENTS, "DroppedAttributesCount")?,
            columns: names.dedicated(dedicated, Scope::Event),
        })
    }

    fn read(&self, leaves: &mut Leaves, start: u64) -> Result<Event, Wrong> {
        let time = leaves.long(self.time)? as u64;
        Ok(Event {
            time_unix_nano: if self.relative { start.wrapping_add(time) } else { time },
            name: leaves.text(self.name)?,
            attributes: with_columns(&self.attributes, &self.columns, leaves)?,
            dropped_attributes_count: leaves.count(Some(self.dropped))?,
        })
    }
}

impl Links {
    fn new(names: &Names<'_>) -> Result<Self, Wrong> {
        if let Some(message) = names.find(SPANS, "Links") {
            return Ok(Self::Message(message));
        }
        let trace_id = names.leaf(LINKS, "TraceID")?;
        Ok(Self::Typed {
            list: names.list(LINKS, trace_id)?,
            trace_id,
            span_id: names.leaf(LINKS, "SpanID")?,
            trace_state: names.leaf(LINKS, "TraceState")?,
            attributes: names.attributes(LINKS)?,
            dropped: names.leaf(LINKS, "DroppedAttributesCount")?,
        })
    }

    fn read(&self, leaves: &mut Leaves) -> Result<Vec<Link>, Wrong> {
        match self {
            Self::Message(message) if leaves.has(*message) => links::read(leaves.get(*message)?.bytes()?),
            Self::Typed { list, trace_id, span_id, trace_state, attributes, dropped } if leaves.has(*trace_id) => {
                list.each(leaves, |leaves| {
                    Ok(Link {
                        trace_id: leaves.bytes(*trace_id)?,
                        span_id: leaves.bytes(*span_id)?,
                        trace_state: leaves.text(*trace_state)?,
                        attributes: attributes.read(leaves, 0)?,
                        dropped_attributes_count: leaves.count(Some(*dropped))?,
                        flags: 0,
                    })
                })
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Generic attributes, then those with leaves of their own.
fn with_columns(generic: &Attributes, columns: &[Column], leaves: &mut Leaves) -> Result<Vec<KeyValue>, Wrong> {
    let mut attributes = generic.read(leaves, columns.len())?;
    for column in columns {
        attributes.extend(column.read(leaves)?);
    }
    Ok(attributes)
}
