//! Field expressions on a span.
//!
//! A condition that looks at events (or links) holds when it holds for *some* event: it is tried with each event in turn, so that all its
//! parts speak about the same one. Events and links are independent of each other. To keep this from costing the product of
//! both, the parts of a conjunction that speak only about events and those that speak only about links are tried apart.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    trace::v1::{
        Span,
        span::{Event, Link},
    },
};

use super::{
    super::{
        ast::{BinaryOp, Expr, Field, Intrinsic, LogicalOp, Node, Scope, UnaryOp},
        error::{ExecutionError, quote},
        value::{Kind, Type},
    },
    operand::{Fault, Operand, arithmetic, compare, matches_pattern},
    tree::Place,
    view::{SERVICE_NAME, SpanView, TraceView, span_id},
};

/// A span, and the event and link that a condition is tried with.
#[derive(Clone, Copy)]
pub(super) struct Subject<'v> {
    trace: &'v TraceView<'v>,
    index: usize,
    span: &'v SpanView<'v>,
    event: Option<&'v Event>,
    link: Option<&'v Link>,
}

/// What a condition speaks about besides the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    events: bool,
    links: bool,
}

impl Parts {
    fn of(expr: &Expr) -> Self {
        let mut parts = Self { events: false, links: false };
        expr.for_each_chosen_field(&mut |field| {
            parts.events |= field.is_of_event();
            parts.links |= field.is_of_link();
        });
        parts
    }
}

impl<'v> Subject<'v> {
    /// A span without event or link.
    pub(super) fn new(trace: &'v TraceView<'v>, span: usize) -> Self {
        Self { trace, index: span, span: &trace.spans[span], event: None, link: None }
    }

    /// Whether a condition holds for the span.
    pub(super) fn satisfies(self, condition: &'v Expr) -> Result<bool, ExecutionError> {
        self.witness(condition).map(|witness| witness.is_some())
    }

    /// The subject with the last event and link for which a condition holds; `None` when it does not hold.
    pub(super) fn witness(self, condition: &'v Expr) -> Result<Option<Self>, ExecutionError> {
        let parts = Parts::of(condition);
        if !parts.events && !parts.links {
            return Ok(self.holds(condition)?.then_some(self));
        }
        let conjuncts: Vec<&Expr> = match &condition.node {
            Node::Logical { op: LogicalOp::And, operands } => operands.iter().collect(),
            _ => vec![condition],
        };
        let both = Parts { events: true, links: true };
        if parts != both || conjuncts.iter().any(|conjunct| Parts::of(conjunct) == both) {
            return self.some(parts, &conjuncts);
        }
        let (of_events, others): (Vec<&Expr>, Vec<&Expr>) = conjuncts.into_iter().partition(|conjunct| Parts::of(conjunct).events);
        let Some(with_event) = self.some(Parts { events: true, links: false }, &of_events)? else {
            return Ok(None);
        };
        with_event.some(Parts { events: false, links: true }, &others)
    }

    /// The last event and link, as far as they are asked for, with which all conditions hold.
    fn some(self, parts: Parts, conditions: &[&'v Expr]) -> Result<Option<Self>, ExecutionError> {
        let events = choices(parts.events, &self.span.span.events, self.event);
        let links = choices(parts.links, &self.span.span.links, self.link);
        for event in events.iter().rev() {
            'links: for link in links.iter().rev() {
                let subject = Self { event: *event, link: *link, ..self };
                for condition in conditions {
                    if !subject.holds(condition)? {
                        continue 'links;
                    }
                }
                return Ok(Some(subject));
            }
        }
        Ok(None)
    }

    /// Whether a condition is true, read as a filter.
    ///
    /// In a filter the type of a literal selects among the values of an attribute: `.f > 1` does not see a float, because the reference looks
    /// for integers only. This holds for `attribute op literal` wherever it is one of the filter's alternatives, but not for `!=`, not
    /// under other operators, and not where the literal comes first.
    fn holds(self, condition: &'v Expr) -> Result<bool, ExecutionError> {
        match &condition.node {
            Node::Logical { op, operands } => {
                self.logical(
                    *op,
                    operands,
                    |operand| {
                        if operand.is_boolean() { self.holds(operand).map(Operand::Bool) } else { self.value(operand) }
                    },
                )
            }
            Node::Binary { op, left, right } if !op.is_arithmetic() && *op != BinaryOp::NotEqual => {
                if is_attribute(left)
                    && let Node::Literal(literal) = &right.node
                {
                    let found = self.value(left)?;
                    let beside = is_service_name(left) && literal.type_of() == Type::String;
                    if !beside && found.element_type() != literal.type_of() {
                        return Ok(false);
                    }
                }
                self.comparison(*op, left, right)
            }
            _ => Ok(self.value(condition)?.is_true()),
        }
    }

    /// The value of an expression. Where no event or link was chosen, the last one that has the field counts.
    pub(super) fn value(self, expr: &'v Expr) -> Result<Operand<'v>, ExecutionError> {
        match &expr.node {
            Node::Literal(value) => Ok(Operand::from(value)),
            Node::Field(field) => Ok(self.field(field)),
            Node::First(field) => Ok(self.first(field)),
            Node::Unary { op, operand } => self.unary(*op, operand, expr),
            Node::Binary { op, left, right } if op.is_arithmetic() => {
                arithmetic(*op, &self.value(left)?, &self.value(right)?).map_err(|fault| failure(fault, expr))
            }
            Node::Binary { op, left, right } => self.comparison(*op, left, right).map(Operand::Bool),
            Node::Logical { op, operands } => self.logical(*op, operands, |operand| self.value(operand)).map(Operand::Bool),
            Node::IsNil { operand, negated, swapped } => {
                let is_nil = self.value(operand)?.is_nil();
                // What belongs to no event is neither present nor absent.
                Ok(Operand::Bool(is_nil != *negated && !(is_nil && !swapped && self.lacks_carrier(operand))))
            }
            Node::Match { subject, pattern, negated } => {
                let value = self.value(subject)?;
                let value = if is_service_name(subject) { string_beside(value) } else { value };
                Ok(Operand::Bool(matches_pattern(&value, pattern, *negated)))
            }
        }
    }

    fn unary(self, op: UnaryOp, operand: &'v Expr, whole: &Expr) -> Result<Operand<'v>, ExecutionError> {
        let failed = |expected, found: Type| ExecutionError::Operand { expression: quote(whole), expected, found: found.as_str() };
        match (op, self.value(operand)?) {
            (UnaryOp::Negate, Operand::Int(number)) => Ok(Operand::Int(number.wrapping_neg())),
            (UnaryOp::Negate, Operand::Float(number)) => Ok(Operand::Float(-number)),
            (UnaryOp::Negate, Operand::Duration(nanos)) => Ok(Operand::Duration(nanos.wrapping_neg())),
            (UnaryOp::Not, Operand::Bool(value)) => Ok(Operand::Bool(!value)),
            (UnaryOp::Negate, other) => Err(failed("numeric", other.type_of())),
            (UnaryOp::Not, other) => Err(failed("boolean", other.type_of())),
        }
    }

    fn comparison(self, op: BinaryOp, left: &'v Expr, right: &'v Expr) -> Result<bool, ExecutionError> {
        let (mut a, mut b) = (self.value(left)?, self.value(right)?);
        if is_service_name(left) && b.type_of() == Type::String {
            a = string_beside(a);
        } else if is_service_name(right) && a.type_of() == Type::String {
            b = string_beside(b);
        }
        compare(op, &a, &b).map_err(|fault| failure(fault, &format_args!("{left} {op} {right}")))
    }

    /// Operands that are no booleans make the operation false, not the other way round.
    fn logical(
        self,
        op: LogicalOp,
        operands: &'v [Expr],
        evaluate: impl Fn(&'v Expr) -> Result<Operand<'v>, ExecutionError>,
    ) -> Result<bool, ExecutionError> {
        let mut result: Option<bool> = None;
        for (index, operand) in operands.iter().enumerate() {
            match (op, result) {
                (LogicalOp::And, Some(false)) => return Ok(false),
                (LogicalOp::Or, Some(true)) if operand.is_boolean() => continue,
                _ => {}
            }
            let value = match evaluate(operand)? {
                Operand::Bool(value) => Some(value),
                _ => None,
            };
            result = match (index, op) {
                (0, _) => value,
                (_, LogicalOp::And) => Some(result == Some(true) && value == Some(true)),
                (_, LogicalOp::Or) => Some(result.zip(value).is_some_and(|(left, right)| left || right)),
            };
        }
        Ok(result == Some(true))
    }

    /// Whether a field belongs to events or links, of which the span has none.
    fn lacks_carrier(self, operand: &Expr) -> bool {
        let (Node::Field(field) | Node::First(field)) = &operand.node else {
            return false;
        };
        field.is_of_event() && self.span.span.events.is_empty() || field.is_of_link() && self.span.span.links.is_empty()
    }

    /// The value of a field.
    pub(super) fn field(self, field: &Field) -> Operand<'v> {
        match field {
            Field::Attribute { parent: true, .. } => Operand::Nil,
            Field::Attribute { scope, name, .. } => self.attribute(*scope, name),
            Field::Intrinsic(intrinsic) => self.intrinsic(*intrinsic),
        }
    }

    fn attribute(self, scope: Scope, name: &str) -> Operand<'v> {
        match scope {
            Scope::Any => match lookup(&self.span.span.attributes, name) {
                Operand::Nil => lookup(self.span.resource, name),
                found => found,
            },
            Scope::Span => lookup(&self.span.span.attributes, name),
            Scope::Resource => match lookup(self.span.resource, name) {
                // Every resource is stored with a service.
                Operand::Nil if name == SERVICE_NAME => Operand::String(Cow::Borrowed("")),
                found => found,
            },
            Scope::Instrumentation => self.span.scope.map_or(Operand::Nil, |scope| lookup(&scope.attributes, name)),
            Scope::Event => self.of_event(|event| lookup(&event.attributes, name)),
            Scope::Link => self.of_link(|link| lookup(&link.attributes, name)),
        }
    }

    /// The second value of an attribute that has two: the resource's that one of the span hides from `.name`, and the empty name of a service
    /// whose name is no string.
    pub(super) fn attribute_beside(self, scope: Scope, name: &str) -> Operand<'v> {
        match scope {
            Scope::Any if !lookup(&self.span.span.attributes, name).is_nil() => lookup(self.span.resource, name),
            Scope::Resource if name == SERVICE_NAME => match lookup(self.span.resource, name) {
                Operand::Nil | Operand::String(_) => Operand::Nil,
                _ => Operand::String(Cow::Borrowed("")),
            },
            _ => Operand::Nil,
        }
    }

    fn intrinsic(self, intrinsic: Intrinsic) -> Operand<'v> {
        let span = self.span.span;
        let text = |text: &'v str| Operand::String(Cow::Borrowed(text));
        match intrinsic {
            Intrinsic::Duration => Operand::Duration(self.span.duration_ns()),
            Intrinsic::Name => text(&span.name),
            Intrinsic::Status => Operand::Status(self.span.status()),
            Intrinsic::StatusMessage => text(self.span.status_message()),
            Intrinsic::Kind => Operand::Kind(Kind::from_otlp(span.kind)),
            Intrinsic::SpanId => span_id_text(&span.span_id),
            Intrinsic::SpanParentId => span_id_text(&span.parent_span_id),
            Intrinsic::ChildCount => Operand::Int(self.place().children),
            Intrinsic::RootName => text(self.trace.root_name()),
            Intrinsic::RootServiceName => text(self.trace.root_service_name()),
            Intrinsic::TraceDuration => Operand::Duration(i64::try_from(self.trace.duration_ns()).unwrap_or(i64::MAX)),
            Intrinsic::TraceId => Operand::String(Cow::Owned(self.trace.id.to_short_hex())),
            Intrinsic::NestedSetLeft => Operand::Int(self.place().left),
            Intrinsic::NestedSetRight => Operand::Int(self.place().right),
            Intrinsic::NestedSetParent => Operand::Int(self.place().parent),
            Intrinsic::EventName => self.of_event(|event| text(&event.name)),
            Intrinsic::EventTimeSinceStart => {
                self.of_event(|event| Operand::Duration(event.time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64))
            }
            Intrinsic::LinkTraceId => self.of_link(|link| {
                let id = link.trace_id.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
                Operand::String(Cow::Owned(format!("{id:x}")))
            }),
            Intrinsic::LinkSpanId => self.of_link(|link| span_id_text(&link.span_id)),
            Intrinsic::InstrumentationName => text(self.span.scope.map_or("", |scope| &scope.name)),
            Intrinsic::InstrumentationVersion => text(self.span.scope.map_or("", |scope| &scope.version)),
            Intrinsic::Parent => Operand::Nil,
        }
    }

    /// The value of the first event (link) that has a field.
    fn first(self, field: &Field) -> Operand<'v> {
        let of = |event, link| Self { event, link, ..self }.field(field);
        let Span { events, links, .. } = self.span.span;
        let found = if field.is_of_event() {
            events.iter().map(|event| of(Some(event), None)).find(|value| !value.is_nil())
        } else {
            links.iter().map(|link| of(None, Some(link))).find(|value| !value.is_nil())
        };
        found.unwrap_or(Operand::Nil)
    }

    fn place(self) -> Place {
        self.trace.tree().place(self.index)
    }

    fn of_event(self, get: impl Fn(&'v Event) -> Operand<'v>) -> Operand<'v> {
        match self.event {
            Some(event) => get(event),
            None => self.span.span.events.iter().rev().map(get).find(|value| !value.is_nil()).unwrap_or(Operand::Nil),
        }
    }

    fn of_link(self, get: impl Fn(&'v Link) -> Operand<'v>) -> Operand<'v> {
        match self.link {
            Some(link) => get(link),
            None => self.span.span.links.iter().rev().map(get).find(|value| !value.is_nil()).unwrap_or(Operand::Nil),
        }
    }
}

fn failure(fault: Fault, expression: &impl std::fmt::Display) -> ExecutionError {
    let expression = quote(expression);
    match fault {
        Fault::DivisionByZero => ExecutionError::DivisionByZero { expression },
        Fault::Array => ExecutionError::Array { expression },
    }
}

/// What a condition is tried with: every item where items are asked for and exist, else what was chosen before.
fn choices<'v, T>(asked: bool, items: &'v [T], chosen: Option<&'v T>) -> Vec<Option<&'v T>> {
    if asked && !items.is_empty() { items.iter().map(Some).collect() } else { vec![chosen] }
}

fn lookup<'v>(attributes: &'v [KeyValue], name: &str) -> Operand<'v> {
    let value = attributes.iter().find(|attribute| attribute.key == name).and_then(|attribute| attribute.value.as_ref());
    value.map_or(Operand::Nil, Operand::from_attribute)
}

fn span_id_text(id: &[u8]) -> Operand<'static> {
    Operand::String(Cow::Owned(format!("{:016x}", span_id(id))))
}

fn is_attribute(expr: &Expr) -> bool {
    matches!(expr.node, Node::Field(Field::Attribute { .. }) | Node::First(Field::Attribute { .. }))
}

fn is_service_name(expr: &Expr) -> bool {
    matches!(&expr.node, Node::Field(Field::Attribute { parent: false, scope: Scope::Resource, name }) if name == SERVICE_NAME)
}

/// A service name that is no string exists beside an empty one.
fn string_beside(value: Operand<'_>) -> Operand<'_> {
    match value {
        string @ Operand::String(_) => string,
        _ => Operand::String(Cow::Borrowed("")),
    }
}
