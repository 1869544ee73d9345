//! Which leaf of a block has what, by version; found by name once per block.

use std::collections::BTreeSet;

use storage::block::{
    BlockError, Reader,
    chunks::{OwnColumn, OwnScope},
};

use crate::traceql::{Field, Intrinsic, Scope};

/// Repetition level of the second and later elements of the lists, and definition level of those that are there: all that is between the lists
/// is required.
pub(super) const RESOURCE: u8 = 1;
pub(super) const SCOPE: u8 = 2;
pub(super) const SPAN: u8 = 3;
/// Of events and links.
pub(super) const ELEMENT: u8 = 4;

/// Positions of the leaves of a block.
#[derive(Debug)]
pub(crate) struct Leaves {
    pub(crate) trace_id: usize,
    pub(crate) trace_start: usize,
    pub(crate) trace_end: usize,
    pub(crate) root_service: usize,
    pub(crate) root_name: usize,
    pub(super) service: usize,
    pub(crate) scope_name: usize,
    pub(crate) scope_version: usize,
    pub(super) span_id: usize,
    pub(super) parent_id: usize,
    pub(super) nested_parent: usize,
    pub(super) nested_left: usize,
    pub(super) nested_right: usize,
    pub(super) children: Option<usize>,
    pub(crate) name: usize,
    pub(super) kind: usize,
    pub(crate) start: usize,
    pub(super) duration: usize,
    pub(super) status: usize,
    pub(super) status_message: usize,
    pub(crate) event_name: usize,
    pub(super) event_time: usize,
    /// Whether times of events are those since the start of the span.
    pub(super) event_time_is_relative: bool,
    pub(super) links: Links,
    pub(super) resource_attributes: AttributeLeaves,
    pub(super) scope_attributes: Option<AttributeLeaves>,
    pub(super) span_attributes: AttributeLeaves,
    pub(super) event_attributes: AttributeLeaves,
    pub(super) own: Vec<OwnColumn>,
}

#[derive(Debug)]
pub(super) enum Links {
    /// One message per span.
    Message(usize),
    Typed {
        trace_id: usize,
        span_id: usize,
        attributes: AttributeLeaves,
    },
}

/// A list of generic attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttributeLeaves {
    pub(crate) key: usize,
    pub(crate) values: ValueLeaves,
}

/// How the values are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValueLeaves {
    /// Lists of one type each, or one value of one type.
    Typed {
        texts: usize,
        ints: usize,
        doubles: usize,
        bools: usize,
        /** JSON of arrays. */
        arrays: Option<usize>,
    },
    /// A message.
    Message(usize),
}

impl AttributeLeaves {
    fn new(find: &impl Fn(&str) -> Option<usize>, above: &str) -> Option<Self> {
        let leaf = |name: &str| find(&format!("{above}.Attrs[].{name}"));
        let key = leaf("Key")?;
        let list = |name: &str| leaf(&format!("{name}[]")).or_else(|| leaf(name));
        let values = match list("ValueInt") {
            Some(ints) => ValueLeaves::Typed {
                texts: list("Value")?,
                ints,
                doubles: list("ValueDouble")?,
                bools: list("ValueBool")?,
                arrays: leaf("ValueArray"),
            },
            None => ValueLeaves::Message(leaf("Value")?),
        };
        Some(Self { key, values })
    }

    /// The leaves, keys first.
    pub(super) fn all(&self) -> Vec<usize> {
        let mut leaves = vec![self.key];
        match self.values {
            ValueLeaves::Typed { texts, ints, doubles, bools, arrays } => {
                leaves.extend([texts, ints, doubles, bools]);
                leaves.extend(arrays);
            }
            ValueLeaves::Message(values) => leaves.push(values),
        }
        leaves
    }
}

const SPANS: &str = "rs[].ss[].Spans[]";

impl Leaves {
    /// # Errors
    /// The schema is none that we know.
    pub(crate) fn new(reader: &Reader) -> Result<Self, BlockError> {
        let leaves = reader.leaves();
        let find = |name: &str| leaves.get(name).copied();
        Self::find(&find, reader.own_columns(&leaves)).ok_or_else(|| BlockError::Corrupt {
            block: reader.meta().block_id,
            tenant: reader.meta().tenant_id.clone(),
            what: "its schema lacks leaves that all versions have".to_owned(),
        })
    }

    fn find(find: &impl Fn(&str) -> Option<usize>, own: Vec<OwnColumn>) -> Option<Self> {
        let span = |name: &str| find(&format!("{SPANS}.{name}"));
        let relative = span("Events[].TimeSinceStartNano");
        let links = match span("Links") {
            Some(message) => Links::Message(message),
            None => Links::Typed {
                trace_id: span("Links[].TraceID")?,
                span_id: span("Links[].SpanID")?,
                attributes: AttributeLeaves::new(find, &format!("{SPANS}.Links[]"))?,
            },
        };
        Some(Self {
            trace_id: find("TraceID")?,
            trace_start: find("StartTimeUnixNano")?,
            trace_end: find("EndTimeUnixNano")?,
            root_service: find("RootServiceName")?,
            root_name: find("RootSpanName")?,
            service: find("rs[].Resource.ServiceName")?,
            scope_name: find("rs[].ss[].Scope.Name")?,
            scope_version: find("rs[].ss[].Scope.Version")?,
            span_id: span("SpanID")?,
            parent_id: span("ParentSpanID")?,
            nested_parent: span("ParentID")?,
            nested_left: span("NestedSetLeft")?,
            nested_right: span("NestedSetRight")?,
            children: span("ChildCount"),
            name: span("Name")?,
            kind: span("Kind")?,
            start: span("StartTimeUnixNano")?,
            duration: span("DurationNano")?,
            status: span("StatusCode")?,
            status_message: span("StatusMessage")?,
            event_name: span("Events[].Name")?,
            event_time: relative.or_else(|| span("Events[].TimeUnixNano"))?,
            event_time_is_relative: relative.is_some(),
            links,
            resource_attributes: AttributeLeaves::new(find, "rs[].Resource")?,
            scope_attributes: AttributeLeaves::new(find, "rs[].ss[].Scope"),
            span_attributes: AttributeLeaves::new(find, SPANS)?,
            event_attributes: AttributeLeaves::new(find, &format!("{SPANS}.Events[]"))?,
            own,
        })
    }

    /// The leaves of the attributes of this name with a leaf of their own.
    pub(crate) fn own_of<'a>(&'a self, scope: OwnScope, name: &'a str) -> impl Iterator<Item = &'a OwnColumn> {
        self.own.iter().filter(move |column| column.scope == scope && column.name == name)
    }

    /// The generic attributes of a scope, as far as the version has them.
    pub(crate) fn generic(&self, scope: Scope) -> Option<&AttributeLeaves> {
        match scope {
            Scope::Any | Scope::Span => Some(&self.span_attributes),
            Scope::Resource => Some(&self.resource_attributes),
            Scope::Instrumentation => self.scope_attributes.as_ref(),
            Scope::Event => Some(&self.event_attributes),
            Scope::Link => match &self.links {
                Links::Message(_) => None,
                Links::Typed { attributes, .. } => Some(attributes),
            },
        }
    }

    /// Adds the leaves that a field needs. `has_key` says whether a generic attribute of this name can be there.
    pub(crate) fn of_field(&self, field: &Field, has_key: &impl Fn(Scope, &str) -> bool, leaves: &mut BTreeSet<usize>) {
        match field {
            Field::Attribute { parent: true, .. } => {}
            Field::Attribute { scope: Scope::Any, name, .. } => {
                for scope in [Scope::Span, Scope::Resource] {
                    self.of_attribute(scope, name, has_key, leaves);
                }
            }
            Field::Attribute { scope, name, .. } => self.of_attribute(*scope, name, has_key, leaves),
            Field::Intrinsic(intrinsic) => leaves.extend(self.of_intrinsic(*intrinsic)),
        }
    }

    fn of_attribute(&self, scope: Scope, name: &str, has_key: &impl Fn(Scope, &str) -> bool, leaves: &mut BTreeSet<usize>) {
        if has_key(scope, name) {
            leaves.extend(self.generic(scope).into_iter().flat_map(AttributeLeaves::all));
        }
        let own = match scope {
            Scope::Resource => Some(OwnScope::Resource),
            Scope::Span => Some(OwnScope::Span),
            Scope::Event => Some(OwnScope::Event),
            _ => None,
        };
        leaves.extend(own.into_iter().flat_map(|own| self.own_of(own, name)).map(|column| column.leaf));
        match (scope, &self.links) {
            (Scope::Event, _) => leaves.extend([self.event_name]),
            (Scope::Link, Links::Typed { trace_id, .. }) => leaves.extend([*trace_id]),
            (Scope::Link, Links::Message(message)) => leaves.extend([*message]),
            (Scope::Instrumentation, _) => leaves.extend([self.scope_name, self.scope_version]),
            _ => {}
        }
    }

    /// Adds the leaves of all attributes of a scope: their keys, and, if asked for, the values of generic ones.
    pub(crate) fn of_scope(&self, scope: Scope, with_values: bool, leaves: &mut BTreeSet<usize>) {
        self.of_attribute(scope, "", &|_, _| with_values, leaves);
        leaves.extend(self.generic(scope).map(|generic| generic.key));
        let own = match scope {
            Scope::Resource => OwnScope::Resource,
            Scope::Event => OwnScope::Event,
            Scope::Any => {
                self.of_scope(Scope::Resource, with_values, leaves);
                OwnScope::Span
            }
            Scope::Span => OwnScope::Span,
            Scope::Instrumentation | Scope::Link => return,
        };
        leaves.extend(self.own.iter().filter(|column| column.scope == own).map(|column| column.leaf));
    }

    fn of_intrinsic(&self, intrinsic: Intrinsic) -> Vec<usize> {
        let links = |typed: fn(usize, usize) -> usize| match &self.links {
            Links::Message(message) => vec![*message],
            // The ids of traces say how many links there are.
            Links::Typed { trace_id, span_id, .. } => vec![*trace_id, typed(*trace_id, *span_id)],
        };
        match intrinsic {
            Intrinsic::Duration => vec![self.duration],
            Intrinsic::Name => vec![self.name],
            Intrinsic::Status => vec![self.status],
            Intrinsic::StatusMessage => vec![self.status_message],
            Intrinsic::Kind => vec![self.kind],
            Intrinsic::SpanId => vec![self.span_id],
            Intrinsic::SpanParentId => vec![self.parent_id],
            Intrinsic::ChildCount => match self.children {
                Some(children) => vec![children, self.nested_left],
                None => vec![self.span_id, self.parent_id, self.kind],
            },
            Intrinsic::RootName => vec![self.root_name],
            Intrinsic::RootServiceName => vec![self.root_service],
            Intrinsic::TraceDuration => vec![self.trace_start, self.trace_end],
            Intrinsic::TraceId => vec![self.trace_id],
            Intrinsic::NestedSetLeft => vec![self.nested_left],
            Intrinsic::NestedSetRight => vec![self.nested_right],
            Intrinsic::NestedSetParent => vec![self.nested_parent],
            Intrinsic::EventName => vec![self.event_name],
            Intrinsic::EventTimeSinceStart => vec![self.event_name, self.event_time],
            Intrinsic::LinkTraceId => links(|trace_id, _| trace_id),
            Intrinsic::LinkSpanId => links(|_, span_id| span_id),
            Intrinsic::InstrumentationName => vec![self.scope_name],
            Intrinsic::InstrumentationVersion => vec![self.scope_version],
            Intrinsic::Parent => Vec::new(),
        }
    }
}
