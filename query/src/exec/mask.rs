//! Conditions as loops over arrays: which spans (or events, or links) satisfy them.
//!
//! ```text
//!  name = "GET /"    dictionary  "POST /" "GET /" "pay"          asked once per string
//!                    hits           0        1      0
//!                    codes       1 1 0 2 1 …  ─►  mask 1 1 0 0 1 …
//! ```
//!
//! What can be said so cannot fail, so it may be evaluated for spans that another condition has sorted out already, and in any order.

use super::{
    ExecError,
    rows::{Reading, is_service_name, text_beside},
};
use crate::{
    columns::{Batch, Dictionary, NIL, Numbers, Texts, Vector},
    traceql::{
        Field, Intrinsic, Type, Value,
        ast::{BinaryOp, Expr, LogicalOp, Node, UnaryOp},
        scalar::{Scalar, compare, flip, matches, satisfies},
        types::operands_fit,
    },
};
use std::sync::Arc;

/// One entry per span.
pub(super) type Mask = Vec<bool>;

/// What a condition is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    Spans,
    Events,
    Links,
}

impl Domain {
    fn has(self, field: &Field) -> bool {
        match self {
            Self::Spans => !field.is_of_event() && !field.is_of_link(),
            Self::Events => field.is_of_event(),
            Self::Links => field.is_of_link(),
        }
    }

    fn vector(self, batch: &Batch, field: &Field) -> Result<Arc<Vector>, ExecError> {
        Ok(match self {
            Self::Spans => batch.vector(field)?,
            Self::Events | Self::Links => batch.elements(field)?.values,
        })
    }
}

/// Whether a condition can be evaluated as loops over arrays. For events and links it then never holds where there are none.
pub(super) fn is_vectorised(expr: &Expr, domain: Domain) -> bool {
    let has = |expr: &Expr| match &expr.node {
        Node::Field(field) => domain.has(field),
        Node::First(_) => domain == Domain::Spans,
        _ => false,
    };
    match &expr.node {
        Node::Literal(value) => domain == Domain::Spans && matches!(value, Value::Bool(_)),
        Node::Field(_) | Node::First(_) => domain == Domain::Spans && has(expr),
        Node::Unary { op, operand } => {
            domain == Domain::Spans && *op == UnaryOp::Not && operand.is_boolean() && is_vectorised(operand, domain)
        }
        Node::Binary { op, left, right } => !op.is_arithmetic() && (has(left) && is_literal(right) || is_literal(left) && has(right)),
        Node::Logical { operands, .. } => operands.iter().all(|operand| is_vectorised(operand, domain)),
        // What is absent where there is no event must be told from what is absent in events.
        Node::IsNil { operand, swapped, .. } => {
            has(operand) && !matches!(operand.node, Node::First(_)) && !(*swapped && domain != Domain::Spans)
        }
        Node::Match { subject, .. } => has(subject),
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr.node, Node::Literal(_))
}

/// The values of an expression that is a field.
fn values_of(batch: &Batch, expr: &Expr, domain: Domain) -> Result<Option<Arc<Vector>>, ExecError> {
    Ok(match &expr.node {
        Node::Field(field) => Some(domain.vector(batch, field)?),
        Node::First(field) => Some(batch.first(field)?),
        _ => None,
    })
}

/// Whether evaluation never fails, whatever the span is.
pub(super) fn is_infallible(expr: &Expr) -> bool {
    match &expr.node {
        Node::Literal(_) | Node::Field(_) | Node::First(_) => true,
        Node::Unary { op, operand } => match op {
            UnaryOp::Not => operand.is_boolean() && is_infallible(operand),
            UnaryOp::Negate => is_number(operand) && is_infallible(operand),
        },
        Node::Binary { op, left, right } => {
            let operands = is_infallible(left) && is_infallible(right);
            let fits = match op {
                BinaryOp::Divide | BinaryOp::Modulo => false,
                op if op.is_arithmetic() => !may_be_array(left) && !may_be_array(right),
                _ => !may_be_array(left) || !may_be_array(right),
            };
            operands && fits
        }
        Node::Logical { operands, .. } => operands.iter().all(is_infallible),
        Node::IsNil { operand, .. } => is_infallible(operand),
        Node::Match { subject, .. } => is_infallible(subject),
    }
}

fn may_be_array(expr: &Expr) -> bool {
    matches!(expr.node, Node::Field(Field::Attribute { .. }) | Node::First(Field::Attribute { .. }))
}

/// Whether the value is a number for every span.
fn is_number(expr: &Expr) -> bool {
    match &expr.node {
        Node::Literal(value) => value.type_of().is_numeric(),
        Node::Field(Field::Intrinsic(intrinsic)) => {
            let everywhere = !matches!(intrinsic, Intrinsic::EventTimeSinceStart | Intrinsic::Parent);
            everywhere && intrinsic.type_of().is_numeric()
        }
        _ => false,
    }
}

/// What a condition is for every span: true, or at least a boolean. Where all are booleans, nothing is said.
struct Truth {
    holds: Mask,
    boolean: Option<Mask>,
}

impl From<Mask> for Truth {
    fn from(holds: Mask) -> Self {
        Self { holds, boolean: None }
    }
}

/// For which spans (events, links) a condition holds. It [is vectorised](is_vectorised).
pub(super) fn evaluate(batch: &Batch, condition: &Expr, domain: Domain, entries: usize) -> Result<Mask, ExecError> {
    truth(batch, condition, domain, Reading::Filter, entries).map(|truth| truth.holds)
}

fn truth(batch: &Batch, expr: &Expr, domain: Domain, reading: Reading, entries: usize) -> Result<Truth, ExecError> {
    Ok(match &expr.node {
        Node::Literal(value) => vec![*value == Value::Bool(true); entries].into(),
        Node::Field(_) | Node::First(_) => match values_of(batch, expr, domain)? {
            Some(vector) => truth_of(&vector),
            None => vec![false; entries].into(),
        },
        Node::Unary { operand, .. } => {
            let mut holds = truth(batch, operand, domain, Reading::Value, entries)?.holds;
            holds.iter_mut().for_each(|holds| *holds = !*holds);
            holds.into()
        }
        Node::Binary { op, left, right } => {
            let (op, field, literal) = match (&left.node, &right.node) {
                (_, Node::Literal(literal)) => (*op, left, literal),
                (Node::Literal(literal), _) => (flip(*op), right, literal),
                _ => return Ok(vec![false; entries].into()),
            };
            let Some(vector) = values_of(batch, field, domain)? else { return Ok(vec![false; entries].into()) };
            let strict = reading.strict(op, left, right);
            comparison(&vector, op, literal, strict, is_service_name(field)).into()
        }
        Node::Logical { op, operands } => logical(batch, *op, operands, domain, reading, entries)?.into(),
        Node::IsNil { operand, negated, .. } => match values_of(batch, operand, domain)? {
            Some(vector) => is_nil(&vector, *negated).into(),
            None => vec![false; entries].into(),
        },
        Node::Match { subject, pattern, negated } => {
            let Some(vector) = values_of(batch, subject, domain)? else { return Ok(vec![false; entries].into()) };
            let service = is_service_name(subject);
            match &*vector {
                Vector::Text(texts) => by_string(texts, |_, text| matches(Scalar::Text(text), pattern, *negated)).into(),
                other => each(other, |value| matches(if service { text_beside(value) } else { value }, pattern, *negated)).into(),
            }
        }
    })
}

/// A bare field as a condition.
fn truth_of(vector: &Vector) -> Truth {
    match vector {
        Vector::Bool(Numbers { values, present: None }) => values.clone().into(),
        Vector::Bool(Numbers { values, present: Some(present) }) => {
            Truth { holds: both(values.clone(), present), boolean: Some(present.clone()) }
        }
        other => Truth {
            holds: each(other, |value| value == Scalar::Bool(true)),
            boolean: Some(each(other, |value| value.type_of() == Type::Bool)),
        },
    }
}

/// Operands that are no booleans make the operation false. The first operand is what the others are joined with, from left to right.
fn logical(batch: &Batch, op: LogicalOp, operands: &[Expr], domain: Domain, reading: Reading, entries: usize) -> Result<Mask, ExecError> {
    let mut operands = operands.iter();
    let Some(first) = operands.next() else { return Ok(vec![false; entries]) };
    let Truth { mut holds, mut boolean } = truth(batch, first, domain, reading.of_operand(first), entries)?;
    for operand in operands {
        if op == LogicalOp::And && !holds.contains(&true) {
            break;
        }
        let next = truth(batch, operand, domain, reading.of_operand(operand), entries)?;
        match op {
            LogicalOp::And => holds = both(holds, &next.holds),
            LogicalOp::Or => {
                // What is no boolean on the left makes the first step false.
                let mut joined = next.holds;
                if let Some(boolean) = boolean.take() {
                    joined = both(joined, &boolean);
                }
                joined.iter_mut().zip(&holds).for_each(|(joined, holds)| *joined |= holds);
                // What is no boolean on the right makes this step false, whatever was on the left.
                holds = match next.boolean {
                    Some(boolean) => both(joined, &boolean),
                    None => joined,
                };
            }
        }
    }
    Ok(holds)
}

/// Both masks at once.
pub(super) fn both(mut left: Mask, right: &[bool]) -> Mask {
    left.iter_mut().zip(right).for_each(|(left, right)| *left &= right);
    left
}

fn each(vector: &Vector, mut test: impl FnMut(Scalar<'_>) -> bool) -> Mask {
    (0..vector.len()).map(|entry| test(vector.scalar(entry))).collect()
}

/// Tests the strings of the dictionary, then looks the spans up.
fn by_string(texts: &Texts, test: impl Fn(&Dictionary, &str) -> bool) -> Mask {
    let Texts { codes, dictionary } = texts;
    let hits: Vec<bool> = (0..dictionary.len() as u32).map(|code| test(dictionary, dictionary.text(code))).collect();
    by_hits(codes, &hits)
}

/// Which codes are among the hits.
fn by_hits(codes: &[u32], hits: &[bool]) -> Mask {
    let mut positions = hits.iter().zip(0..).filter_map(|(hit, code)| hit.then_some(code));
    match (positions.next(), positions.next()) {
        (None, _) => vec![false; codes.len()],
        (Some(only), None) => codes.iter().map(|&code| code == only).collect(),
        _ => codes.iter().map(|&code| hits.get(code as usize).copied().unwrap_or(false)).collect(),
    }
}

fn is_nil(vector: &Vector, negated: bool) -> Mask {
    match vector {
        Vector::Nil(entries) => vec![!negated; *entries],
        Vector::Text(texts) => texts.codes.iter().map(|&code| (code == NIL) != negated).collect(),
        Vector::Int(Numbers { present, .. }) | Vector::Duration(Numbers { present, .. }) => {
            absent(present.as_deref(), vector.len(), negated)
        }
        Vector::Float(Numbers { present, .. }) => absent(present.as_deref(), vector.len(), negated),
        Vector::Bool(Numbers { present, .. }) => absent(present.as_deref(), vector.len(), negated),
        Vector::Status(_) | Vector::Kind(_) => vec![negated; vector.len()],
        Vector::Mixed(values) => values.iter().map(|value| (*value == Value::Nil) != negated).collect(),
    }
}

fn absent(present: Option<&[bool]>, entries: usize, negated: bool) -> Mask {
    match present {
        Some(present) => present.iter().map(|&there| there == negated).collect(),
        None => vec![negated; entries],
    }
}

/// `vector op literal`. If `strict`, only values of that type count, or arrays of it.
fn comparison(vector: &Vector, op: BinaryOp, literal: &Value, strict: Option<Type>, service: bool) -> Mask {
    let nothing = || vec![false; vector.len()];
    if service && literal.type_of() == Type::String && !matches!(vector, Vector::Text(_)) {
        return each(vector, |value| compare(op, text_beside(value), literal.into()).unwrap_or(false));
    }
    let found = match vector {
        Vector::Nil(_) => return nothing(),
        Vector::Mixed(_) => {
            let fits = |value: Scalar<'_>| strict.is_none_or(|strict| value.element_type() == strict);
            return each(vector, |value| fits(value) && compare(op, value, literal.into()).unwrap_or(false));
        }
        Vector::Text(_) => Type::String,
        Vector::Int(_) => Type::Int,
        Vector::Float(_) => Type::Float,
        Vector::Bool(_) => Type::Bool,
        Vector::Duration(_) => Type::Duration,
        Vector::Status(_) => Type::Status,
        Vector::Kind(_) => Type::Kind,
    };
    if strict.is_some_and(|strict| strict != found) || !operands_fit(op, found, literal.type_of()) || *literal == Value::Nil {
        return nothing();
    }
    match (vector, literal) {
        (Vector::Text(texts), Value::String(text)) => match op {
            BinaryOp::Equal => {
                let hits: Vec<bool> = texts.dictionary.iter().map(|string| string == text.as_bytes()).collect();
                by_hits(&texts.codes, &hits)
            }
            op => by_string(texts, |_, string| satisfies(op, Some(string.as_bytes().cmp(text.as_bytes())))),
        },
        (Vector::Int(numbers) | Vector::Duration(numbers), Value::Int(literal) | Value::Duration(literal)) => {
            ordered(numbers, op, *literal)
        }
        (Vector::Int(numbers) | Vector::Duration(numbers), Value::Float(literal)) => {
            let literal = *literal;
            of_numbers(numbers, |number| satisfies(op, (number as f64).partial_cmp(&literal)))
        }
        (Vector::Float(numbers), Value::Int(literal) | Value::Duration(literal)) => {
            let literal = *literal as f64;
            of_numbers(numbers, |number| satisfies(op, number.partial_cmp(&literal)))
        }
        (Vector::Float(numbers), Value::Float(literal)) => of_numbers(numbers, |number| satisfies(op, number.partial_cmp(literal))),
        (Vector::Bool(numbers), Value::Bool(literal)) => of_numbers(numbers, |value| satisfies(op, Some(value.cmp(literal)))),
        (Vector::Status(values), Value::Status(literal)) => values.iter().map(|value| satisfies(op, Some(value.cmp(literal)))).collect(),
        (Vector::Kind(values), Value::Kind(literal)) => values.iter().map(|value| satisfies(op, Some(value.cmp(literal)))).collect(),
        _ => nothing(),
    }
}

/// Each operator has a loop of its own, which the compiler turns into vectors.
fn ordered(numbers: &Numbers<i64>, op: BinaryOp, literal: i64) -> Mask {
    match op {
        BinaryOp::Equal => of_numbers(numbers, |number| number == literal),
        BinaryOp::NotEqual => of_numbers(numbers, |number| number != literal),
        BinaryOp::Greater => of_numbers(numbers, |number| number > literal),
        BinaryOp::GreaterEqual => of_numbers(numbers, |number| number >= literal),
        BinaryOp::Less => of_numbers(numbers, |number| number < literal),
        BinaryOp::LessEqual => of_numbers(numbers, |number| number <= literal),
        _ => vec![false; numbers.values.len()],
    }
}

#[inline]
fn of_numbers<T: Copy>(numbers: &Numbers<T>, test: impl Fn(T) -> bool) -> Mask {
    let holds = numbers.values.iter().map(|&number| test(number)).collect();
    match &numbers.present {
        Some(present) => both(holds, present),
        None => holds,
    }
}
