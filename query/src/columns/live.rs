//! Batches of traces in memory: live ones, and those that were put together from several places.
//!
//! The traces stay as they are, OTLP messages; a field that is asked for is gathered in one pass over them.

use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    trace::v1::{
        Span,
        span::{Event, Link},
    },
};
use storage::{
    block::{
        BlockError, Trace,
        nested::{Nested, Node, Numbering, key},
    },
    id::TraceId,
};

use super::{
    Elements, Source,
    builder::Builder,
    vector::{Numbers, Vector},
};
use crate::traceql::{Field, Intrinsic, Kind, Scope, Status, Value};

/// Key of the attribute that names a service.
pub(super) const SERVICE_NAME: &str = "service.name";

/// Where a span stands in its trace.
#[derive(Clone, Copy, Debug)]
struct Place {
    trace: u32,
    resource: u32,
    /// Which spans of the resource it is in.
    scope_spans: u32,
    /// Which spans of the resource have the scope whose attributes count: the first one of that name and version.
    scope: u32,
    span: u32,
}

/// Traces in memory.
#[derive(Debug)]
pub(super) struct Live {
    traces: Vec<Trace>,
    places: Vec<Place>,
    offsets: Vec<u32>,
    /// The spans that name the traces.
    roots: Vec<Option<u32>>,
    nested: Option<Vec<Nested>>,
}

impl Live {
    pub(super) fn new(traces: Vec<Trace>) -> Self {
        let mut places = Vec::new();
        let mut offsets = vec![0];
        let mut roots = Vec::with_capacity(traces.len());
        for (trace, content) in (0..).zip(&traces) {
            let begin = places.len();
            for (resource, resource_spans) in (0..).zip(&content.resource_spans) {
                let mut scopes: HashMap<(&str, &str), u32> = HashMap::new();
                for (scope_spans, content) in (0..).zip(&resource_spans.scope_spans) {
                    let scope = content.scope.as_ref();
                    let scope = scope.map_or(scope_spans, |scope| *scopes.entry((&scope.name, &scope.version)).or_insert(scope_spans));
                    places.extend((0..content.spans.len() as u32).map(|span| Place { trace, resource, scope_spans, scope, span }));
                }
            }
            let is_root = |place: &Place| {
                let span =
                    &content.resource_spans[place.resource as usize].scope_spans[place.scope_spans as usize].spans[place.span as usize];
                is_zero(&span.parent_span_id) && !is_linked_child(span)
            };
            roots.push(places[begin..].iter().rposition(is_root).map(|root| (begin + root) as u32));
            offsets.push(places.len() as u32);
        }
        Self { traces, places, offsets, roots, nested: None }
    }

    fn span(&self, place: &Place) -> &Span {
        let resource_spans = &self.traces[place.trace as usize].resource_spans[place.resource as usize];
        &resource_spans.scope_spans[place.scope_spans as usize].spans[place.span as usize]
    }

    fn all(&self) -> impl Iterator<Item = &Span> {
        self.places.iter().map(|place| self.span(place))
    }

    fn resource(&self, place: &Place) -> &[KeyValue] {
        let resource_spans = &self.traces[place.trace as usize].resource_spans[place.resource as usize];
        resource_spans.resource.as_ref().map_or(&[], |resource| &resource.attributes)
    }

    fn scope(&self, place: &Place) -> Option<&InstrumentationScope> {
        let resource_spans = &self.traces[place.trace as usize].resource_spans[place.resource as usize];
        resource_spans.scope_spans[place.scope as usize].scope.as_ref()
    }

    fn texts<'a>(&'a self, text: impl Fn(&'a Place) -> &'a str) -> Vector {
        self.places.iter().map(|place| Some(text(place))).collect()
    }

    fn attributes(&self, scope: Scope, name: &str) -> Vector {
        let mut builder = Builder::default();
        for place in &self.places {
            let span = &self.span(place).attributes;
            match scope {
                Scope::Any => {
                    if !push_attribute(&mut builder, span, name) && !push_attribute(&mut builder, self.resource(place), name) {
                        builder.push_nil();
                    }
                }
                Scope::Resource => {
                    if !push_attribute(&mut builder, self.resource(place), name) {
                        // Every resource is stored with a service.
                        if name == SERVICE_NAME { builder.push_text("") } else { builder.push_nil() }
                    }
                }
                _ => {
                    let attributes = match scope {
                        Scope::Span => span,
                        _ => self.scope(place).map_or(&[][..], |scope| &scope.attributes),
                    };
                    if !push_attribute(&mut builder, attributes, name) {
                        builder.push_nil();
                    }
                }
            }
        }
        builder.finish()
    }

    fn intrinsic(&mut self, intrinsic: Intrinsic) -> Vector {
        match intrinsic {
            Intrinsic::Duration => Vector::Duration(Numbers::all(self.all().map(duration_ns).collect())),
            Intrinsic::Name => self.texts(|place| &self.span(place).name),
            Intrinsic::Status => Vector::Status(self.all().map(status).collect()),
            Intrinsic::StatusMessage => self.texts(|place| self.span(place).status.as_ref().map_or("", |status| &status.message)),
            Intrinsic::Kind => Vector::Kind(self.all().map(|span| Kind::from_otlp(span.kind)).collect()),
            Intrinsic::SpanId => self.all().map(|span| Value::String(span_id_text(&span.span_id))).collect(),
            Intrinsic::SpanParentId => self.all().map(|span| Value::String(span_id_text(&span.parent_span_id))).collect(),
            Intrinsic::ChildCount => self.numbers(|nested| nested.children),
            Intrinsic::NestedSetLeft => self.numbers(|nested| nested.left),
            Intrinsic::NestedSetRight => self.numbers(|nested| nested.right),
            Intrinsic::NestedSetParent => self.numbers(|nested| nested.parent),
            Intrinsic::RootName => self.texts(|place| {
                let root = self.roots[place.trace as usize];
                root.map_or("", |root| &self.span(&self.places[root as usize]).name)
            }),
            Intrinsic::RootServiceName => self.texts(|place| {
                let root = self.roots[place.trace as usize];
                root.map_or("", |root| service_name(self.resource(&self.places[root as usize])))
            }),
            Intrinsic::TraceDuration => {
                let extents: Vec<i64> = (0..self.traces.len())
                    .map(|trace| self.extent(trace))
                    .map(|(start, end)| i64::try_from(end.saturating_sub(start)).unwrap_or(i64::MAX))
                    .collect();
                Vector::Duration(Numbers::all(self.places.iter().map(|place| extents[place.trace as usize]).collect()))
            }
            Intrinsic::TraceId => {
                let ids: Vec<String> = self.traces.iter().map(|trace| trace.trace_id.to_short_hex()).collect();
                self.places.iter().map(|place| Some(ids[place.trace as usize].as_str())).collect()
            }
            Intrinsic::InstrumentationName => self.texts(|place| self.scope(place).map_or("", |scope| &scope.name)),
            Intrinsic::InstrumentationVersion => self.texts(|place| self.scope(place).map_or("", |scope| &scope.version)),
            Intrinsic::EventName | Intrinsic::EventTimeSinceStart | Intrinsic::LinkTraceId | Intrinsic::LinkSpanId | Intrinsic::Parent => {
                Vector::Nil(self.places.len())
            }
        }
    }

    /// Earliest start and latest end of a trace.
    fn extent(&self, trace: usize) -> (u64, u64) {
        let places = &self.places[self.offsets[trace] as usize..self.offsets[trace + 1] as usize];
        let spans = || places.iter().map(|place| self.span(place));
        let start = spans().map(|span| span.start_time_unix_nano).min().unwrap_or_default();
        (start, spans().map(|span| span.end_time_unix_nano).max().unwrap_or_default())
    }

    fn numbers(&mut self, number: fn(&Nested) -> i32) -> Vector {
        let nested = match self.nested.take() {
            Some(nested) => nested,
            None => self.number(),
        };
        let numbers = nested.iter().map(|nested| number(nested).into()).collect();
        self.nested = Some(nested);
        Vector::Int(Numbers::all(numbers))
    }

    fn number(&self) -> Vec<Nested> {
        let mut numbering = Numbering::default();
        let mut all = Vec::with_capacity(self.places.len());
        let (mut nodes, mut numbers) = (Vec::new(), Vec::new());
        for trace in self.offsets.windows(2) {
            nodes.clear();
            nodes.extend(self.places[trace[0] as usize..trace[1] as usize].iter().map(|place| {
                let span = self.span(place);
                let parent = (!is_zero(&span.parent_span_id)).then(|| key(&span.parent_span_id));
                Node { id: key(&span.span_id), parent, kind: span.kind }
            }));
            numbering.number(&nodes, &mut numbers);
            all.extend_from_slice(&numbers);
        }
        all
    }

    fn of_events(&self, value: impl Fn(&mut Builder, &Span, &Event)) -> Elements {
        let mut builder = Builder::default();
        let mut offsets = vec![0];
        for span in self.all() {
            span.events.iter().for_each(|event| value(&mut builder, span, event));
            offsets.push(offsets.last().copied().unwrap_or(0) + span.events.len() as u32);
        }
        Elements { offsets: offsets.into(), values: builder.finish().into() }
    }

    fn of_links(&self, value: impl Fn(&mut Builder, &Link)) -> Elements {
        let mut builder = Builder::default();
        let mut offsets = vec![0];
        for span in self.all() {
            span.links.iter().for_each(|link| value(&mut builder, link));
            offsets.push(offsets.last().copied().unwrap_or(0) + span.links.len() as u32);
        }
        Elements { offsets: offsets.into(), values: builder.finish().into() }
    }
}

impl Source for Live {
    fn traces(&self) -> usize {
        self.traces.len()
    }

    fn trace_ids(&mut self) -> Result<Vec<TraceId>, BlockError> {
        Ok(self.traces.iter().map(|trace| trace.trace_id).collect())
    }

    fn trace_offsets(&mut self) -> Result<Vec<u32>, BlockError> {
        Ok(self.offsets.clone())
    }

    fn trace_times_ns(&mut self) -> Result<Vec<(u64, u64)>, BlockError> {
        Ok((0..self.traces.len()).map(|trace| self.extent(trace)).collect())
    }

    fn starts_ns(&mut self) -> Result<Vec<u64>, BlockError> {
        Ok(self.all().map(|span| span.start_time_unix_nano).collect())
    }

    fn span_ids(&mut self) -> Result<Vec<u64>, BlockError> {
        Ok(self.all().map(|span| span_id(&span.span_id)).collect())
    }

    fn service_names(&mut self) -> Result<Vector, BlockError> {
        Ok(self.texts(|place| service_name(self.resource(place))))
    }

    fn vector(&mut self, field: &Field) -> Result<Vector, BlockError> {
        Ok(match field {
            Field::Attribute { parent: true, .. } => Vector::Nil(self.places.len()),
            Field::Attribute { scope, name, .. } => self.attributes(*scope, name),
            Field::Intrinsic(intrinsic) => self.intrinsic(*intrinsic),
        })
    }

    fn elements(&mut self, field: &Field) -> Result<Elements, BlockError> {
        Ok(match field {
            Field::Attribute { scope: Scope::Link, name, .. } => {
                self.of_links(|builder, link| attribute_or_nil(builder, &link.attributes, name))
            }
            Field::Attribute { name, .. } => self.of_events(|builder, _, event| attribute_or_nil(builder, &event.attributes, name)),
            Field::Intrinsic(Intrinsic::EventName) => self.of_events(|builder, _, event| builder.push_text(&event.name)),
            Field::Intrinsic(Intrinsic::LinkTraceId) => self.of_links(|builder, link| builder.push_text(&trace_id_text(&link.trace_id))),
            Field::Intrinsic(Intrinsic::LinkSpanId) => self.of_links(|builder, link| builder.push_text(&span_id_text(&link.span_id))),
            Field::Intrinsic(_) => self.of_events(|builder, span, event| {
                builder.push(Value::Duration(event.time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64));
            }),
        })
    }

    fn attribute_names(&mut self, scope: Scope) -> Result<Vec<String>, BlockError> {
        let (mut known, mut names) = (HashSet::new(), Vec::new());
        let mut add = |attributes: &[KeyValue]| {
            for name in visible(attributes) {
                if !known.contains(name) {
                    known.insert(name.to_owned());
                    names.push(name.to_owned());
                }
            }
        };
        for place in &self.places {
            let span = self.span(place);
            if matches!(scope, Scope::Any | Scope::Span) {
                add(&span.attributes);
            }
            if matches!(scope, Scope::Any | Scope::Resource) {
                add(self.resource(place));
            }
            match scope {
                Scope::Instrumentation => add(self.scope(place).map_or(&[], |scope| &scope.attributes)),
                Scope::Event => span.events.iter().for_each(|event| add(&event.attributes)),
                Scope::Link => span.links.iter().for_each(|link| add(&link.attributes)),
                _ => {}
            }
        }
        Ok(names)
    }

    fn bytes(&self) -> usize {
        // What OTLP messages take in memory is about three times what they take on the wire; nobody needs it exactly.
        self.places.len() * (size_of::<Place>() + size_of::<Span>() + 512)
    }
}

/// Keys of the attributes that the language sees.
fn visible(attributes: &[KeyValue]) -> impl Iterator<Item = &str> {
    attributes
        .iter()
        .filter(|attribute| attribute.value.as_ref().is_some_and(|value| value_of(value) != Value::Nil))
        .map(|attribute| &*attribute.key)
}

/// Adds the value of an attribute, if it is there and the language sees it.
fn push_attribute(builder: &mut Builder, attributes: &[KeyValue], name: &str) -> bool {
    let found = attributes.iter().find(|attribute| attribute.key == name).and_then(|attribute| attribute.value.as_ref());
    let Some(found) = found else { return false };
    if let Some(any_value::Value::StringValue(text)) = &found.value {
        builder.push_text(text);
        return true;
    }
    match value_of(found) {
        Value::Nil => false,
        value => {
            builder.push(value);
            true
        }
    }
}

fn attribute_or_nil(builder: &mut Builder, attributes: &[KeyValue], name: &str) {
    if !push_attribute(builder, attributes, name) {
        builder.push_nil();
    }
}

/// The value of an attribute. What the language cannot express is absent; a single element stands for its array.
pub(super) fn value_of(value: &AnyValue) -> Value {
    let Some(any_value::Value::ArrayValue(array)) = &value.value else { return scalar_of(value) };
    array_of(array.values.iter().map(scalar_of).collect())
}

/// An array of these elements, if there can be one.
pub(super) fn array_of(mut values: Vec<Value>) -> Value {
    let one_type = values.windows(2).all(|two| two[0].type_of() == two[1].type_of());
    match values.len() {
        0 => Value::Nil,
        1 => values.swap_remove(0),
        _ if one_type && values[0] != Value::Nil => Value::Array(values),
        _ => Value::Nil,
    }
}

fn scalar_of(value: &AnyValue) -> Value {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => Value::String(text.clone()),
        Some(any_value::Value::IntValue(number)) => Value::Int(*number),
        Some(any_value::Value::DoubleValue(number)) => Value::Float(*number),
        Some(any_value::Value::BoolValue(value)) => Value::Bool(*value),
        _ => Value::Nil,
    }
}

fn duration_ns(span: &Span) -> i64 {
    span.end_time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64
}

fn status(span: &Span) -> Status {
    Status::from_otlp(span.status.as_ref().map_or(0, |status| status.code))
}

/// The name of the service; empty when it is absent or no string.
fn service_name(resource: &[KeyValue]) -> &str {
    let value = resource.iter().find(|attribute| attribute.key == SERVICE_NAME).and_then(|attribute| attribute.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(name)) => name,
        _ => "",
    }
}

fn is_zero(id: &[u8]) -> bool {
    id.iter().all(|byte| *byte == 0)
}

/// The last eight bytes of an id, big-endian.
pub(super) fn span_id(id: &[u8]) -> u64 {
    id.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(super) fn span_id_text(id: &[u8]) -> String {
    format!("{:016x}", span_id(id))
}

pub(super) fn trace_id_text(id: &[u8]) -> String {
    format!("{:x}", id.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte)))
}

/// A root that the OpenTracing bridge has cut off: its parent is only a link into its own trace.
fn is_linked_child(span: &Span) -> bool {
    let child_of = |attribute: &KeyValue| {
        attribute.key == "opentracing.ref_type"
            && attribute.value.as_ref().and_then(|value| value.value.as_ref())
                == Some(&any_value::Value::StringValue("child_of".to_owned()))
    };
    span.links.iter().any(|link| link.trace_id == span.trace_id && link.attributes.iter().any(child_of))
}
