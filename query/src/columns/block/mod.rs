//! Batches of the rows of a row group.
//!
//! A field is found in its leaf, or, for an attribute, in the leaves of all generic attributes and in those leaves that it has of its own. What
//! belongs to a resource or a trace is decoded once for it and then repeated for its spans. Leaves are decoded when a field is asked for.
//!
//! Of several attributes with one key the first counts, in the order in which rows are read: generic ones, then those with leaves of their own.
//!
//! The bytes are untrusted: leaves that disagree about how many spans there are make the block corrupt.

mod attributes;
mod convert;
mod leaves;
mod listing;
mod shape;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use opentelemetry_proto::tonic::trace::v1::span::Link;
use storage::{
    block::{
        BlockError,
        chunks::{Chunks, OwnScope},
        column::{Column, Values},
        nested::{Node, Numbering, key},
        read_links,
    },
    id::TraceId,
};

use self::{
    attributes::{Attributes, Found},
    convert::{dense, of_elements},
    leaves::{ELEMENT, Links, RESOURCE, SCOPE, SPAN},
    shape::{Shape, element_offsets},
};
use super::{
    Elements, Listing, Runs, Source,
    live::{SERVICE_NAME, span_id, span_id_text, trace_id_text, value_of},
    vector::{Dictionary, NIL, Numbers, Texts, Vector},
};
use crate::traceql::{Field, Intrinsic, Kind, Scope, Status, Type, Value};

pub(crate) use self::leaves::{AttributeLeaves, Leaves, ValueLeaves};

/// Links, and where those of each span begin.
type StoredLinks = (Arc<Vec<Link>>, Arc<Vec<u32>>);

/// What a query expects of the types of attributes: where to look first.
pub(crate) type Expected = HashMap<Field, Type>;

/// Rows of a row group.
#[derive(Debug)]
pub(crate) struct Rows {
    chunks: Chunks,
    leaves: Arc<Leaves>,
    /// Lists of generic attributes that are known not to have these keys, so that their leaves were not fetched.
    lacking: BTreeSet<(usize, String)>,
    expected: Arc<Expected>,
    attributes: Attributes,
    /// Number of spans, once some leaf has said it.
    spans: Option<usize>,
    /// Levels of a leaf of spans.
    levels: Option<(Vec<u8>, Vec<u8>)>,
    shape: Option<Arc<Shape>>,
    event_offsets: Option<Arc<Vec<u32>>>,
    link_offsets: Option<Arc<Vec<u32>>>,
    /// Links of versions that store them as messages.
    links: Option<Arc<Vec<Link>>>,
}

impl Rows {
    pub(crate) fn new(chunks: Chunks, leaves: Arc<Leaves>, lacking: BTreeSet<(usize, String)>, expected: Arc<Expected>) -> Self {
        Self {
            chunks,
            leaves,
            lacking,
            expected,
            attributes: Attributes::default(),
            spans: None,
            levels: None,
            shape: None,
            event_offsets: None,
            link_offsets: None,
            links: None,
        }
    }

    /// The values of a required leaf of spans.
    fn of_spans(&mut self, leaf: usize) -> Result<Values, BlockError> {
        let Column { repetition, definition, values, .. } = self.chunks.column(leaf)?;
        if *self.spans.get_or_insert(values.len()) != values.len() {
            return Err(self.disagree());
        }
        if self.levels.is_none() {
            self.levels = Some((repetition, definition));
        }
        Ok(values)
    }

    fn longs(&mut self, leaf: usize) -> Result<Vec<i64>, BlockError> {
        match self.of_spans(leaf)? {
            Values::Long(values) => Ok(values),
            _ => Err(self.chunks.corrupt("a leaf of numbers has none")),
        }
    }

    fn disagree(&self) -> BlockError {
        self.chunks.corrupt("its leaves disagree about the number of spans")
    }

    fn shape(&mut self) -> Result<Arc<Shape>, BlockError> {
        if let Some(shape) = &self.shape {
            return Ok(Arc::clone(shape));
        }
        if self.levels.is_none() {
            self.of_spans(self.leaves.start)?;
        }
        let (repetition, definition) = self.levels.get_or_insert_default();
        let shape = Arc::new(Shape::new(repetition, definition));
        if shape.traces.len() != self.chunks.rows() + 1 || self.spans.is_some_and(|spans| spans != shape.spans()) {
            return Err(self.disagree());
        }
        Ok(Arc::clone(self.shape.insert(shape)))
    }

    /// Checks that a vector has a value per range, and repeats each for its spans.
    fn spread(&self, vector: &Vector, offsets: &[u32]) -> Result<Vector, BlockError> {
        if vector.len() + 1 == offsets.len() { Ok(vector.spread(offsets)) } else { Err(self.disagree()) }
    }

    fn per_trace(&mut self, vector: &Vector) -> Result<Vector, BlockError> {
        let shape = self.shape()?;
        self.spread(vector, &shape.traces)
    }

    /// A leaf of traces.
    fn of_traces(&mut self, leaf: usize) -> Result<Vector, BlockError> {
        Ok(dense(self.chunks.column(leaf)?.values))
    }

    fn values_of_scopes(&mut self, leaf: usize) -> Result<Vector, BlockError> {
        Ok(of_elements(self.chunks.column(leaf)?, SCOPE))
    }

    fn of_scopes(&mut self, leaf: usize) -> Result<Vector, BlockError> {
        let scopes = self.values_of_scopes(leaf)?;
        let shape = self.shape()?;
        self.spread(&scopes, &shape.scopes)
    }

    /// A key among generic attributes; none if it is known that it is not there, or the version has no such attributes.
    fn generic(&mut self, scope: Scope, name: &str) -> Result<Option<Found>, BlockError> {
        let level = match scope {
            Scope::Resource => RESOURCE,
            Scope::Instrumentation => SCOPE,
            Scope::Event | Scope::Link => ELEMENT,
            Scope::Any | Scope::Span => SPAN,
        };
        let leaves = Arc::clone(&self.leaves);
        let Some(generic) = leaves.generic(scope) else { return Ok(None) };
        if self.lacking.contains(&(generic.key, name.to_owned())) {
            return Ok(None);
        }
        let field = |scope| Field::Attribute { parent: false, scope, name: name.to_owned() };
        let expected = self.expected.get(&field(scope)).or_else(|| self.expected.get(&field(Scope::Any))).copied();
        self.attributes.find(&mut self.chunks, generic, level, name, expected).map(Some)
    }

    /// Generic attributes, then those with leaves of their own, of the elements of a list. `count` is how many elements there are.
    fn attribute(&mut self, scope: Scope, own: Option<OwnScope>, level: u8, name: &str, count: usize) -> Result<Vector, BlockError> {
        let (mut vector, has_key) = match self.generic(scope, name)? {
            Some(Found { vector, has_key }) => (vector, has_key),
            None => (Vector::Nil(count), None),
        };
        let leaves = Arc::clone(&self.leaves);
        for column in own.into_iter().flat_map(|own| leaves.own_of(own, name)) {
            let mut values = of_elements(self.chunks.column(column.leaf)?, level);
            if column.non_empty {
                values = without_empty(values);
            }
            if values.len() != vector.len() {
                return Err(self.disagree());
            }
            vector = vector.or(values, has_key.as_deref());
        }
        if vector.len() == count { Ok(vector) } else { Err(self.disagree()) }
    }

    fn span_attribute(&mut self, name: &str) -> Result<Vector, BlockError> {
        let spans = self.shape()?.spans();
        self.attribute(Scope::Span, Some(OwnScope::Span), SPAN, name, spans)
    }

    /// An attribute of resources, one value each.
    fn of_resources(&mut self, name: &str) -> Result<Vector, BlockError> {
        let shape = self.shape()?;
        self.attribute(Scope::Resource, Some(OwnScope::Resource), RESOURCE, name, shape.resources.len() - 1)
    }

    /// The same as `resource.name` sees it: every resource is stored with a service.
    fn of_resources_with_service(&mut self, name: &str) -> Result<Vector, BlockError> {
        let vector = self.of_resources(name)?;
        Ok(if name == SERVICE_NAME { with_empty(vector) } else { vector })
    }

    fn per_resource(&mut self, resources: &Vector) -> Result<Vector, BlockError> {
        let shape = self.shape()?;
        self.spread(resources, &shape.resources)
    }

    /// Of a scope the attributes count that the first scope of its resource has that has its name and version.
    fn scope_attribute(&mut self, name: &str) -> Result<Vector, BlockError> {
        let shape = self.shape()?;
        let count = shape.scopes.len() - 1;
        let scopes = self.attribute(Scope::Instrumentation, None, SCOPE, name, count)?;
        if matches!(scopes, Vector::Nil(_)) {
            return self.spread(&scopes, &shape.scopes);
        }
        let names = of_elements(self.chunks.column(self.leaves.scope_name)?, SCOPE);
        let versions = of_elements(self.chunks.column(self.leaves.scope_version)?, SCOPE);
        if names.len() != count || versions.len() != count {
            return Err(self.disagree());
        }
        let mut first: HashMap<(u32, &str, &str), usize> = HashMap::new();
        let place = |scope: usize| {
            let key = (shape.resource_of_scope[scope], names.text(scope).unwrap_or_default(), versions.text(scope).unwrap_or_default());
            Some(*first.entry(key).or_insert(scope))
        };
        let scopes = scopes.take((0..count).map(place));
        self.spread(&scopes, &shape.scopes)
    }

    fn ids(&mut self, leaf: usize) -> Result<Vector, BlockError> {
        let values = self.of_spans(leaf)?;
        let ids = (0..values.len()).map(|span| span_id_text(values.string(span).unwrap_or_default()));
        Ok(unique(ids))
    }

    fn children(&mut self) -> Result<Vector, BlockError> {
        let shape = self.shape()?;
        let mut children = match self.leaves.children {
            Some(leaf) => {
                let mut children = self.longs(leaf)?;
                let left = self.longs(self.leaves.nested_left)?;
                // Tempo writes what the row before had into traces that have no numbers.
                for trace in shape.traces.windows(2) {
                    let spans = trace[0] as usize..trace[1] as usize;
                    if left[spans.clone()].iter().all(|&left| left == 0) {
                        children[spans].fill(0);
                    }
                }
                return Ok(Vector::Int(Numbers::all(children)));
            }
            None => Vec::with_capacity(shape.spans()),
        };
        let (ids, parents) = (self.of_spans(self.leaves.span_id)?, self.of_spans(self.leaves.parent_id)?);
        let kinds = self.longs(self.leaves.kind)?;
        let mut numbering = Numbering::default();
        let (mut nodes, mut numbers) = (Vec::new(), Vec::new());
        for trace in shape.traces.windows(2) {
            nodes.clear();
            nodes.extend((trace[0] as usize..trace[1] as usize).map(|span| {
                let parent = parents.string(span).unwrap_or_default();
                let is_root = parent.iter().all(|&byte| byte == 0);
                Node { id: key(ids.string(span).unwrap_or_default()), parent: (!is_root).then(|| key(parent)), kind: kinds[span] as i32 }
            }));
            numbering.number(&nodes, &mut numbers);
            children.extend(numbers.iter().map(|nested| i64::from(nested.children)));
        }
        Ok(Vector::Int(Numbers::all(children)))
    }

    fn intrinsic(&mut self, intrinsic: Intrinsic) -> Result<Vector, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        Ok(match intrinsic {
            Intrinsic::Duration => Vector::Duration(Numbers::all(self.longs(leaves.duration)?)),
            Intrinsic::Name => dense(self.of_spans(leaves.name)?),
            Intrinsic::Status => {
                Vector::Status(self.longs(leaves.status)?.into_iter().map(|code| Status::from_otlp(code as i32)).collect())
            }
            Intrinsic::StatusMessage => dense(self.of_spans(leaves.status_message)?),
            Intrinsic::Kind => Vector::Kind(self.longs(leaves.kind)?.into_iter().map(|kind| Kind::from_otlp(kind as i32)).collect()),
            Intrinsic::SpanId => self.ids(leaves.span_id)?,
            Intrinsic::SpanParentId => self.ids(leaves.parent_id)?,
            Intrinsic::ChildCount => self.children()?,
            Intrinsic::NestedSetLeft => Vector::Int(Numbers::all(self.longs(leaves.nested_left)?)),
            Intrinsic::NestedSetRight => Vector::Int(Numbers::all(self.longs(leaves.nested_right)?)),
            Intrinsic::NestedSetParent => Vector::Int(Numbers::all(self.longs(leaves.nested_parent)?)),
            Intrinsic::RootName => {
                let names = self.of_traces(leaves.root_name)?;
                self.per_trace(&names)?
            }
            Intrinsic::RootServiceName => {
                let names = self.of_traces(leaves.root_service)?;
                self.per_trace(&names)?
            }
            Intrinsic::TraceDuration => {
                let duration = |(start, end): (u64, u64)| i64::try_from(end.saturating_sub(start)).unwrap_or(i64::MAX);
                let durations = self.trace_times_ns()?.into_iter().map(duration).collect();
                self.per_trace(&Vector::Duration(Numbers::all(durations)))?
            }
            Intrinsic::TraceId => {
                let ids = self.trace_ids()?.into_iter().map(TraceId::to_short_hex);
                self.per_trace(&unique(ids))?
            }
            Intrinsic::InstrumentationName => self.of_scopes(leaves.scope_name)?,
            Intrinsic::InstrumentationVersion => self.of_scopes(leaves.scope_version)?,
            Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId | Intrinsic::Parent => {
                Vector::Nil(self.shape()?.spans())
            }
        })
    }

    /// Decodes a leaf of events or links, and how many of them the spans have.
    fn element_leaf(&mut self, leaf: usize) -> Result<(Arc<Vec<u32>>, Vector), BlockError> {
        let column = self.chunks.column(leaf)?;
        let offsets = element_offsets(&column.repetition, &column.definition);
        if offsets.len() != self.shape()?.spans() + 1 {
            return Err(self.disagree());
        }
        Ok((Arc::new(offsets), of_elements(column, ELEMENT)))
    }

    fn event_offsets(&mut self) -> Result<Arc<Vec<u32>>, BlockError> {
        if let Some(offsets) = &self.event_offsets {
            return Ok(Arc::clone(offsets));
        }
        let (offsets, _) = self.element_leaf(self.leaves.event_name)?;
        Ok(Arc::clone(self.event_offsets.insert(offsets)))
    }

    fn of_events(&mut self, field: &Field) -> Result<Elements, BlockError> {
        let offsets = self.event_offsets()?;
        let count = offsets.last().map_or(0, |&end| end as usize);
        let vector = match field {
            Field::Attribute { name, .. } => self.attribute(Scope::Event, Some(OwnScope::Event), ELEMENT, name, count)?,
            Field::Intrinsic(Intrinsic::EventName) => self.element_leaf(self.leaves.event_name)?.1,
            Field::Intrinsic(_) => {
                let Vector::Int(Numbers { mut values, .. }) = self.element_leaf(self.leaves.event_time)?.1 else {
                    return Err(self.chunks.corrupt("times of events are no numbers"));
                };
                if !self.leaves.event_time_is_relative && values.len() == count {
                    let starts = self.longs(self.leaves.start)?;
                    for (start, events) in starts.into_iter().zip(offsets.windows(2)) {
                        values[events[0] as usize..events[1] as usize].iter_mut().for_each(|time| *time = time.wrapping_sub(start));
                    }
                }
                Vector::Duration(Numbers::all(values))
            }
        };
        if vector.len() == count { Ok(Elements { offsets, values: Arc::new(vector) }) } else { Err(self.disagree()) }
    }

    fn of_links(&mut self, field: &Field) -> Result<Elements, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        let (trace_id, span_id) = match &leaves.links {
            Links::Message(message) => return self.of_stored_links(*message, field),
            Links::Typed { trace_id, span_id, .. } => (*trace_id, *span_id),
        };
        let texts = |column: Column, text: fn(&[u8]) -> String| {
            unique((0..column.values.len()).map(|link| text(column.values.string(link).unwrap_or_default())))
        };
        let offsets = match &self.link_offsets {
            Some(offsets) => Arc::clone(offsets),
            None => {
                let (offsets, _) = self.element_leaf(trace_id)?;
                Arc::clone(self.link_offsets.insert(offsets))
            }
        };
        let count = offsets.last().map_or(0, |&end| end as usize);
        let vector = match field {
            Field::Attribute { name, .. } => self.attribute(Scope::Link, None, ELEMENT, name, count)?,
            Field::Intrinsic(Intrinsic::LinkTraceId) => texts(self.chunks.column(trace_id)?, trace_id_text),
            Field::Intrinsic(_) => texts(self.chunks.column(span_id)?, span_id_text),
        };
        if vector.len() == count { Ok(Elements { offsets, values: Arc::new(vector) }) } else { Err(self.disagree()) }
    }

    /// Links of versions that store them as messages, and where those of each span begin.
    fn stored_links(&mut self, leaf: usize) -> Result<StoredLinks, BlockError> {
        Ok(match (&self.links, &self.link_offsets) {
            (Some(links), Some(offsets)) => (Arc::clone(links), Arc::clone(offsets)),
            _ => {
                let messages = self.of_spans(leaf)?;
                let (mut links, mut offsets) = (Vec::new(), vec![0]);
                for span in 0..messages.len() {
                    let of_span = read_links(messages.string(span).unwrap_or_default()).map_err(|what| self.chunks.corrupt(what))?;
                    links.extend(of_span);
                    offsets.push(links.len() as u32);
                }
                (Arc::clone(self.links.insert(Arc::new(links))), Arc::clone(self.link_offsets.insert(Arc::new(offsets))))
            }
        })
    }

    fn stored_link_names(&mut self) -> Result<Vec<String>, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        let Links::Message(leaf) = leaves.links else { return Ok(Vec::new()) };
        let (links, _) = self.stored_links(leaf)?;
        Ok(links.iter().flat_map(|link| &link.attributes).map(|attribute| attribute.key.clone()).collect())
    }

    /// A field of links of versions that store them as messages.
    fn of_stored_links(&mut self, leaf: usize, field: &Field) -> Result<Elements, BlockError> {
        let (links, offsets) = self.stored_links(leaf)?;
        let value = |link: &Link| match field {
            Field::Attribute { name, .. } => {
                let found = link.attributes.iter().find(|attribute| attribute.key == *name);
                found.and_then(|attribute| attribute.value.as_ref()).map_or(Value::Nil, value_of)
            }
            Field::Intrinsic(Intrinsic::LinkTraceId) => Value::String(trace_id_text(&link.trace_id)),
            Field::Intrinsic(_) => Value::String(span_id_text(&link.span_id)),
        };
        let values = Arc::new(links.iter().map(value).collect());
        Ok(Elements { offsets, values })
    }
}

/// The offsets of resources, scopes or traces.
type OffsetsOf = fn(&Shape) -> &Arc<Vec<u32>>;

impl Source for Rows {
    fn traces(&self) -> usize {
        self.chunks.rows()
    }

    fn trace_ids(&mut self) -> Result<Vec<TraceId>, BlockError> {
        let values = self.chunks.column(self.leaves.trace_id)?.values;
        Ok((0..values.len()).map(|trace| trace_id(values.string(trace).unwrap_or_default())).collect())
    }

    fn trace_offsets(&mut self) -> Result<Vec<u32>, BlockError> {
        Ok(self.shape()?.traces.to_vec())
    }

    fn trace_times_ns(&mut self) -> Result<Vec<(u64, u64)>, BlockError> {
        let starts = self.chunks.column(self.leaves.trace_start)?.values;
        let ends = self.chunks.column(self.leaves.trace_end)?.values;
        match (starts, ends) {
            (Values::Long(starts), Values::Long(ends)) => {
                Ok(starts.into_iter().zip(ends).map(|(start, end)| (start as u64, end as u64)).collect())
            }
            _ => Err(self.chunks.corrupt("times of traces are no numbers")),
        }
    }

    fn starts_ns(&mut self) -> Result<Vec<u64>, BlockError> {
        Ok(self.longs(self.leaves.start)?.into_iter().map(|start| start as u64).collect())
    }

    fn span_ids(&mut self) -> Result<Vec<u64>, BlockError> {
        let values = self.of_spans(self.leaves.span_id)?;
        Ok((0..values.len()).map(|span| span_id(values.string(span).unwrap_or_default())).collect())
    }

    fn service_names(&mut self) -> Result<Vector, BlockError> {
        let resources = of_elements(self.chunks.column(self.leaves.service)?, RESOURCE);
        let shape = self.shape()?;
        self.spread(&resources, &shape.resources)
    }

    fn vector(&mut self, field: &Field) -> Result<Vector, BlockError> {
        let vector = match field {
            Field::Attribute { parent: true, .. } => Vector::Nil(self.shape()?.spans()),
            Field::Attribute { scope: Scope::Any, name, .. } => {
                let of_spans = self.span_attribute(name)?;
                let of_resources = self.of_resources(name)?;
                of_spans.or(self.per_resource(&of_resources)?, None)
            }
            Field::Attribute { scope: Scope::Resource, name, .. } => {
                let of_resources = self.of_resources_with_service(name)?;
                self.per_resource(&of_resources)?
            }
            Field::Attribute { scope: Scope::Instrumentation, name, .. } => self.scope_attribute(name)?,
            Field::Attribute { name, .. } => self.span_attribute(name)?,
            Field::Intrinsic(intrinsic) => self.intrinsic(*intrinsic)?,
        };
        if *self.spans.get_or_insert(vector.len()) == vector.len() { Ok(vector) } else { Err(self.disagree()) }
    }

    fn elements(&mut self, field: &Field) -> Result<Elements, BlockError> {
        if field.is_of_link() { self.of_links(field) } else { self.of_events(field) }
    }

    fn attribute_names(&mut self, scope: Scope) -> Result<Vec<String>, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        let lists: &[(Scope, u8)] = match scope {
            Scope::Any => &[(Scope::Span, SPAN), (Scope::Resource, RESOURCE)],
            Scope::Span => &[(Scope::Span, SPAN)],
            Scope::Resource => &[(Scope::Resource, RESOURCE)],
            Scope::Instrumentation => &[(Scope::Instrumentation, SCOPE)],
            Scope::Event => &[(Scope::Event, ELEMENT)],
            Scope::Link => &[(Scope::Link, ELEMENT)],
        };
        let mut names = Vec::new();
        for &(scope, level) in lists {
            match leaves.generic(scope) {
                Some(AttributeLeaves { key, .. }) => names.extend(self.attributes.names(&mut self.chunks, *key, level)?),
                // Links as messages.
                None if scope == Scope::Link => names.extend(self.stored_link_names()?),
                None => {}
            }
            let own = match scope {
                Scope::Resource => OwnScope::Resource,
                Scope::Span => OwnScope::Span,
                Scope::Event => OwnScope::Event,
                _ => continue,
            };
            for column in leaves.own.iter().filter(|column| column.scope == own) {
                if !self.chunks.has(column.leaf) {
                    continue;
                }
                let values = self.chunks.column(column.leaf)?.values;
                let any = (0..values.len()).any(|value| !column.non_empty || values.string(value).is_some_and(|name| !name.is_empty()));
                if any {
                    names.push(column.name.clone());
                }
            }
        }
        let mut known = BTreeSet::new();
        names.retain(|name| known.insert(name.clone()));
        Ok(names)
    }

    fn runs(&mut self, field: &Field) -> Result<Runs, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        let (offsets, values): (OffsetsOf, Vector) = match field {
            Field::Attribute { scope: Scope::Resource, name, parent: false } => {
                (|shape| &shape.resources, self.of_resources_with_service(name)?)
            }
            Field::Intrinsic(Intrinsic::RootName) => (|shape| &shape.traces, self.of_traces(leaves.root_name)?),
            Field::Intrinsic(Intrinsic::RootServiceName) => (|shape| &shape.traces, self.of_traces(leaves.root_service)?),
            Field::Intrinsic(Intrinsic::InstrumentationName) => (|shape| &shape.scopes, self.values_of_scopes(leaves.scope_name)?),
            Field::Intrinsic(Intrinsic::InstrumentationVersion) => (|shape| &shape.scopes, self.values_of_scopes(leaves.scope_version)?),
            _ => return Ok(Runs { offsets: None, values: self.vector(field)? }),
        };
        let shape = self.shape()?;
        let offsets = offsets(&shape);
        if values.len() + 1 != offsets.len() {
            return Err(self.disagree());
        }
        Ok(Runs { offsets: Some(Arc::clone(offsets)), values })
    }

    fn listing(&mut self, scope: Scope) -> Result<Option<Listing>, BlockError> {
        let leaves = Arc::clone(&self.leaves);
        let (level, own) = match scope {
            Scope::Span => (SPAN, OwnScope::Span),
            Scope::Resource => (RESOURCE, OwnScope::Resource),
            _ => return Ok(None),
        };
        let Some(generic) = leaves.generic(scope) else { return Ok(None) };
        let own = || leaves.own.iter().filter(move |column| column.scope == own);
        let is_own = |name: &str| own().any(|column| column.name == name);
        let Some(mut listing) = self.attributes.listing(&mut self.chunks, generic, level, is_own)? else { return Ok(None) };
        let shape = self.shape()?;
        let elements = if scope == Scope::Resource { shape.resources.len() - 1 } else { shape.spans() };
        if listing.entries.len() != elements {
            return Err(self.disagree());
        }
        listing.offsets = (scope == Scope::Resource).then(|| Arc::clone(&shape.resources));
        listing.own = own().filter(|column| self.chunks.has(column.leaf)).map(|column| column.name.clone()).collect();
        Ok(Some(listing))
    }

    fn bytes(&self) -> usize {
        let levels = self.levels.as_ref().map_or(0, |(repetition, definition)| repetition.len() + definition.len());
        self.chunks.bytes() + self.attributes.bytes() + levels
    }
}

/// Strings that are all different.
fn unique(texts: impl Iterator<Item = String>) -> Vector {
    let mut dictionary = Dictionary::default();
    let codes = texts.map(|text| dictionary.push(&text)).collect();
    Vector::Text(Texts { codes, dictionary: Arc::new(dictionary) })
}

/// Without the empty strings that stand for none.
fn without_empty(vector: Vector) -> Vector {
    let Vector::Text(Texts { mut codes, dictionary }) = vector else { return vector };
    for empty in (0..dictionary.len() as u32).filter(|&code| dictionary.bytes_of(code).is_empty()) {
        codes.iter_mut().filter(|code| **code == empty).for_each(|code| *code = NIL);
    }
    if codes.iter().all(|&code| code == NIL) { Vector::Nil(codes.len()) } else { Vector::Text(Texts { codes, dictionary }) }
}

/// With an empty string where there is nothing.
fn with_empty(vector: Vector) -> Vector {
    match vector {
        Vector::Text(Texts { mut codes, dictionary }) => {
            if !codes.contains(&NIL) {
                return Vector::Text(Texts { codes, dictionary });
            }
            let mut dictionary = Arc::unwrap_or_clone(dictionary);
            let empty = dictionary.push("");
            codes.iter_mut().filter(|code| **code == NIL).for_each(|code| *code = empty);
            Vector::Text(Texts { codes, dictionary: Arc::new(dictionary) })
        }
        other => (0..other.len()).map(|span| if other.is_nil(span) { Value::String(String::new()) } else { other.value(span) }).collect(),
    }
}

/// Trace ids of other lengths are padded on the left or cut to the last sixteen bytes.
fn trace_id(bytes: &[u8]) -> TraceId {
    let mut id = [0; 16];
    let kept = &bytes[bytes.len().saturating_sub(16)..];
    id[16 - kept.len()..].copy_from_slice(kept);
    TraceId(id)
}
