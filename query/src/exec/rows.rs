//! Field expressions on one span after the other: the whole language, for what has no loop over arrays.
//!
//! A condition is compiled once per batch: fields become columns, so that looking at a span costs no look-up by name. One that looks at
//! events (or links) holds when it holds for *some* event: it is tried with each event in turn, so that all its parts speak about the
//! same one. Events and links are independent of each other; to keep this from costing the product of both, the parts of a conjunction
//! that speak only about events and those that speak only about links are tried apart.

use std::{ops::Range, sync::Arc};

use super::ExecError;
use crate::{
    columns::{Batch, Elements, Vector},
    traceql::{
        ExecutionError, Field, Scope, Type, Value,
        ast::{BinaryOp, Expr, LogicalOp, Node, UnaryOp},
        pattern::Pattern,
        scalar::{Fault, Scalar, arithmetic, compare, matches},
    },
};

/// Key of the attribute that names a service.
const SERVICE_NAME: &str = "service.name";

/// A span, and the event and link that a condition is tried with, by their numbers in the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) span: usize,
    event: Option<usize>,
    link: Option<usize>,
}

impl Subject {
    /// A span without event or link.
    pub(super) fn new(span: usize) -> Self {
        Self { span, event: None, link: None }
    }
}

/// What a condition speaks about besides the span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) events: bool,
    pub(super) links: bool,
}

impl Parts {
    pub(super) fn of(expr: &Expr) -> Self {
        let mut parts = Self::default();
        expr.for_each_chosen_field(&mut |field| {
            parts.events |= field.is_of_event();
            parts.links |= field.is_of_link();
        });
        parts
    }

    fn both(self) -> bool {
        self.events && self.links
    }
}

/// The values of a field.
#[derive(Debug)]
pub(super) enum Column {
    Span(Arc<Vector>),
    /// Of the first event (link) that has it; and where those of each span begin.
    First(Arc<Vector>, Arc<Vec<u32>>),
    Event(Elements),
    Link(Elements),
}

impl Column {
    pub(super) fn new(batch: &Batch, field: &Field) -> Result<Self, ExecError> {
        Ok(if field.is_of_event() {
            Self::Event(batch.elements(field)?)
        } else if field.is_of_link() {
            Self::Link(batch.elements(field)?)
        } else {
            Self::Span(batch.vector(field)?)
        })
    }

    /// That of the first event (link) that has a field.
    fn first(batch: &Batch, field: &Field) -> Result<Self, ExecError> {
        Ok(Self::First(batch.first(field)?, batch.elements(field)?.offsets))
    }

    /// The value for a subject. Where no event or link was chosen, the last one that has the field counts.
    pub(super) fn get(&self, subject: Subject) -> Scalar<'_> {
        let (elements, chosen) = match self {
            Self::Span(vector) | Self::First(vector, _) => return vector.scalar(subject.span),
            Self::Event(elements) => (elements, subject.event),
            Self::Link(elements) => (elements, subject.link),
        };
        match chosen {
            Some(element) => elements.values.scalar(element),
            None => {
                let mut all = range_of(elements, subject.span).rev().map(|element| elements.values.scalar(element));
                all.find(|value| !value.is_nil()).unwrap_or(Scalar::Nil)
            }
        }
    }

    /// Whether it belongs to events or links, of which the span has none.
    fn lacks_carrier(&self, span: usize) -> bool {
        match self {
            Self::Span(_) => false,
            Self::First(_, offsets) => offsets[span] == offsets[span + 1],
            Self::Event(elements) | Self::Link(elements) => range_of(elements, span).is_empty(),
        }
    }
}

fn range_of(elements: &Elements, span: usize) -> Range<usize> {
    elements.offsets[span] as usize..elements.offsets[span + 1] as usize
}

/// A compiled expression.
#[derive(Debug)]
enum Code<'q> {
    Literal(&'q Value),
    Column(Column),
    Unary { op: UnaryOp, operand: Box<Code<'q>>, whole: &'q Expr },
    Arithmetic { op: BinaryOp, left: Box<Code<'q>>, right: Box<Code<'q>>, whole: &'q Expr },
    Comparison(Box<Comparison<'q>>),
    Logical { op: LogicalOp, operands: Vec<Operand<'q>> },
    IsNil { operand: Box<Code<'q>>, negated: bool, swapped: bool },
    Match { subject: Box<Code<'q>>, pattern: &'q Pattern, negated: bool, service: bool },
}

#[derive(Debug)]
struct Comparison<'q> {
    op: BinaryOp,
    left: Code<'q>,
    right: Code<'q>,
    /// The only type of the left side that counts.
    strict: Option<Type>,
    /// Which side is the name of the service.
    service: (bool, bool),
    whole: &'q Expr,
}

#[derive(Debug)]
struct Operand<'q> {
    code: Code<'q>,
    /// Whether the value is a boolean whatever the span is.
    boolean: bool,
}

/// How an expression is read: in a filter the type of a literal selects among the values of an attribute. `.f > 1` does not see a float,
/// because the reference looks for integers only. This holds for `attribute op literal` wherever it is one of the filter's alternatives, but
/// not for `!=`, not under other operators, and not where the literal comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Filter,
    Value,
}

impl Reading {
    /// The only type of the left side of a comparison that counts, if there is one.
    pub(super) fn strict(self, op: BinaryOp, left: &Expr, right: &Expr) -> Option<Type> {
        match &right.node {
            Node::Literal(literal) if self == Self::Filter && op != BinaryOp::NotEqual && is_attribute(left) => {
                let beside = is_service_name(left) && literal.type_of() == Type::String;
                (!beside).then(|| literal.type_of())
            }
            _ => None,
        }
    }

    /// How the operands of a logical operator are read.
    pub(super) fn of_operand(self, operand: &Expr) -> Self {
        if self == Self::Filter && operand.is_boolean() { Self::Filter } else { Self::Value }
    }
}

impl<'q> Code<'q> {
    fn new(batch: &Batch, expr: &'q Expr, reading: Reading) -> Result<Self, ExecError> {
        let value = |expr: &'q Expr| Self::new(batch, expr, Reading::Value);
        let boxed = |expr: &'q Expr| value(expr).map(Box::new);
        Ok(match &expr.node {
            Node::Literal(value) => Self::Literal(value),
            Node::Field(field) => Self::Column(Column::new(batch, field)?),
            Node::First(field) => Self::Column(Column::first(batch, field)?),
            Node::Unary { op, operand } => Self::Unary { op: *op, operand: boxed(operand)?, whole: expr },
            Node::Binary { op, left, right } if op.is_arithmetic() => {
                Self::Arithmetic { op: *op, left: boxed(left)?, right: boxed(right)?, whole: expr }
            }
            Node::Binary { op, left, right } => Self::Comparison(Box::new(Comparison {
                op: *op,
                left: value(left)?,
                right: value(right)?,
                strict: reading.strict(*op, left, right),
                service: (is_service_name(left), is_service_name(right)),
                whole: expr,
            })),
            Node::Logical { op, operands } => {
                let operand = |operand: &'q Expr| {
                    let code = Self::new(batch, operand, reading.of_operand(operand))?;
                    Ok(Operand { code, boolean: operand.is_boolean() })
                };
                Self::Logical { op: *op, operands: operands.iter().map(operand).collect::<Result<_, ExecError>>()? }
            }
            Node::IsNil { operand, negated, swapped } => Self::IsNil { operand: boxed(operand)?, negated: *negated, swapped: *swapped },
            Node::Match { subject, pattern, negated } => {
                Self::Match { subject: boxed(subject)?, pattern, negated: *negated, service: is_service_name(subject) }
            }
        })
    }

    fn value(&self, subject: Subject) -> Result<Scalar<'_>, ExecutionError> {
        match self {
            Self::Literal(Value::Array(_)) => Ok(Scalar::Nil),
            Self::Literal(value) => Ok((*value).into()),
            Self::Column(column) => Ok(column.get(subject)),
            Self::Unary { op, operand, whole } => unary(*op, operand.value(subject)?, whole),
            Self::Arithmetic { op, left, right, whole } => {
                arithmetic(*op, left.value(subject)?, right.value(subject)?).map_err(|fault| failure(fault, whole))
            }
            Self::Comparison(comparison) => comparison.holds(subject).map(Scalar::Bool),
            Self::Logical { op, operands } => logical(*op, operands, subject).map(Scalar::Bool),
            Self::IsNil { operand, negated, swapped } => {
                let is_nil = operand.value(subject)?.is_nil();
                // What belongs to no event is neither present nor absent.
                let nowhere = matches!(&**operand, Self::Column(column) if column.lacks_carrier(subject.span));
                Ok(Scalar::Bool(is_nil != *negated && !(is_nil && nowhere && !swapped)))
            }
            Self::Match { subject: tested, pattern, negated, service } => {
                let value = tested.value(subject)?;
                Ok(Scalar::Bool(matches(if *service { text_beside(value) } else { value }, pattern, *negated)))
            }
        }
    }

    fn holds(&self, subject: Subject) -> Result<bool, ExecutionError> {
        Ok(matches!(self.value(subject)?, Scalar::Bool(true)))
    }
}

impl Comparison<'_> {
    fn holds(&self, subject: Subject) -> Result<bool, ExecutionError> {
        let (mut left, mut right) = (self.left.value(subject)?, self.right.value(subject)?);
        if self.strict.is_some_and(|strict| left.element_type() != strict) {
            return Ok(false);
        }
        if self.service.0 && right.type_of() == Type::String {
            left = text_beside(left);
        } else if self.service.1 && left.type_of() == Type::String {
            right = text_beside(right);
        }
        compare(self.op, left, right).map_err(|fault| failure(fault, self.whole))
    }
}

fn unary<'v>(op: UnaryOp, value: Scalar<'v>, whole: &Expr) -> Result<Scalar<'v>, ExecutionError> {
    let failed = |expected, found: Type| ExecutionError::operand(whole, expected, found);
    match (op, value) {
        (UnaryOp::Negate, Scalar::Int(number)) => Ok(Scalar::Int(number.wrapping_neg())),
        (UnaryOp::Negate, Scalar::Float(number)) => Ok(Scalar::Float(-number)),
        (UnaryOp::Negate, Scalar::Duration(nanos)) => Ok(Scalar::Duration(nanos.wrapping_neg())),
        (UnaryOp::Not, Scalar::Bool(value)) => Ok(Scalar::Bool(!value)),
        (UnaryOp::Negate, other) => Err(failed("numeric", other.type_of())),
        (UnaryOp::Not, other) => Err(failed("boolean", other.type_of())),
    }
}

/// Operands that are no booleans make the operation false, not the other way round.
fn logical(op: LogicalOp, operands: &[Operand<'_>], subject: Subject) -> Result<bool, ExecutionError> {
    let mut result: Option<bool> = None;
    for (index, operand) in operands.iter().enumerate() {
        match (op, result) {
            (LogicalOp::And, Some(false)) => return Ok(false),
            (LogicalOp::Or, Some(true)) if operand.boolean => continue,
            _ => {}
        }
        let value = match operand.code.value(subject)? {
            Scalar::Bool(value) => Some(value),
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

/// A value of every span, compiled.
#[derive(Debug)]
pub(super) struct Values<'q>(Code<'q>);

impl<'q> Values<'q> {
    pub(super) fn new(batch: &Batch, expr: &'q Expr) -> Result<Self, ExecError> {
        Code::new(batch, expr, Reading::Value).map(Self)
    }

    /// The value of a span; of several events or links the last one that has the field counts.
    pub(super) fn get(&self, span: usize) -> Result<Scalar<'_>, ExecutionError> {
        self.0.value(Subject::new(span))
    }
}

/// A condition, compiled.
#[derive(Debug)]
pub(super) struct Condition<'q> {
    conjuncts: Vec<Conjunct<'q>>,
    /// What all speak about together.
    parts: Parts,
    /// How many events and links the spans have.
    events: Option<Elements>,
    links: Option<Elements>,
}

#[derive(Debug)]
struct Conjunct<'q> {
    code: Code<'q>,
    parts: Parts,
}

impl<'q> Condition<'q> {
    /// All of these, which speak about the same event and link. Without events and links there must be only one of them.
    pub(super) fn new(batch: &Batch, conjuncts: &[&'q Expr]) -> Result<Self, ExecError> {
        let mut parts = Parts::default();
        let (mut events, mut links) = (None, None);
        let mut fields = Vec::new();
        for conjunct in conjuncts {
            conjunct.for_each_chosen_field(&mut |field| fields.push(field));
        }
        for field in fields {
            if field.is_of_event() {
                parts.events = true;
                events = Some(batch.elements(field)?);
            } else if field.is_of_link() {
                parts.links = true;
                links = Some(batch.elements(field)?);
            }
        }
        let conjuncts = conjuncts
            .iter()
            .map(|conjunct| Ok(Conjunct { code: Code::new(batch, conjunct, Reading::Filter)?, parts: Parts::of(conjunct) }));
        Ok(Self { conjuncts: conjuncts.collect::<Result<_, ExecError>>()?, parts, events, links })
    }

    /// Of a condition as it is written: taken apart where events and links ask for it.
    pub(super) fn whole(batch: &Batch, condition: &'q Expr) -> Result<Self, ExecError> {
        match &condition.node {
            Node::Logical { op: LogicalOp::And, operands } if Parts::of(condition) != Parts::default() => {
                Self::new(batch, &operands.iter().collect::<Vec<_>>())
            }
            _ => Self::new(batch, &[condition]),
        }
    }

    /// Whether it holds for a span.
    pub(super) fn holds(&self, span: usize) -> Result<bool, ExecutionError> {
        self.witness(span).map(|witness| witness.is_some())
    }

    /// The span with the last event and link for which it holds; `None` when it does not hold.
    pub(super) fn witness(&self, span: usize) -> Result<Option<Subject>, ExecutionError> {
        let subject = Subject::new(span);
        if !self.parts.both() || self.conjuncts.iter().any(|conjunct| conjunct.parts.both()) {
            return self.some(subject, self.parts, |_| true);
        }
        let Some(subject) = self.some(subject, Parts { events: true, links: false }, |parts| parts.events)? else {
            return Ok(None);
        };
        self.some(subject, Parts { events: false, links: true }, |parts| !parts.events)
    }

    /// The last event and link, as far as they are asked for, with which those conjuncts hold that are wanted.
    fn some(&self, subject: Subject, parts: Parts, wanted: impl Fn(Parts) -> bool) -> Result<Option<Subject>, ExecutionError> {
        let none = 0..0;
        let count = |asked: bool, elements: &Option<Elements>| match elements {
            Some(elements) if asked => range_of(elements, subject.span),
            _ => none.clone(),
        };
        let (events, links) = (count(parts.events, &self.events), count(parts.links, &self.links));
        for event in choices(events, subject.event) {
            'links: for link in choices(links.clone(), subject.link) {
                let subject = Subject { event, link, ..subject };
                for conjunct in self.conjuncts.iter().filter(|conjunct| wanted(conjunct.parts)) {
                    if !conjunct.code.holds(subject)? {
                        continue 'links;
                    }
                }
                return Ok(Some(subject));
            }
        }
        Ok(None)
    }
}

/// What a condition is tried with: every element from the last on where there are any, else what was chosen before.
fn choices(elements: Range<usize>, chosen: Option<usize>) -> impl Iterator<Item = Option<usize>> {
    let instead = elements.is_empty().then_some(chosen);
    elements.rev().map(Some).chain(instead)
}

fn failure(fault: Fault, whole: &Expr) -> ExecutionError {
    match fault {
        Fault::DivisionByZero => ExecutionError::division_by_zero(whole),
        Fault::Array => ExecutionError::array(whole),
    }
}

pub(super) fn is_attribute(expr: &Expr) -> bool {
    matches!(expr.node, Node::Field(Field::Attribute { .. }) | Node::First(Field::Attribute { .. }))
}

pub(super) fn is_service_name(expr: &Expr) -> bool {
    matches!(&expr.node, Node::Field(Field::Attribute { parent: false, scope: Scope::Resource, name }) if name == SERVICE_NAME)
}

/// A service name that is no string exists beside an empty one.
pub(super) fn text_beside(value: Scalar<'_>) -> Scalar<'_> {
    match value {
        text @ Scalar::Text(_) => text,
        _ => Scalar::Text(""),
    }
}
