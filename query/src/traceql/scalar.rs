//! Single values, and what the operators of the language do with them: while constants are folded, and while a query runs.
//!
//! A scalar borrows from a column or from the query. Missing values and mismatched types are not errors: comparisons with them are false, and
//! so is arithmetic.

use std::cmp::Ordering;

use super::{
    ast::BinaryOp,
    pattern::Pattern,
    types::operands_fit,
    value::{Kind, Status, Type, Value},
};

/// A value while a query runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Nil,
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bool(bool),
    Duration(i64),
    Status(Status),
    Kind(Kind),
    /// At least two elements of one type.
    Array(&'a [Value]),
}

/// Why an operation fails, and with it the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    DivisionByZero,
    Array,
}

impl<'a> From<&'a Value> for Scalar<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Nil => Self::Nil,
            Value::Int(number) => Self::Int(*number),
            Value::Float(number) => Self::Float(*number),
            Value::String(text) => Self::Text(text),
            Value::Bool(value) => Self::Bool(*value),
            Value::Duration(nanos) => Self::Duration(*nanos),
            Value::Status(status) => Self::Status(*status),
            Value::Kind(kind) => Self::Kind(*kind),
            Value::Array(values) => Self::Array(values),
        }
    }
}

impl Scalar<'_> {
    pub(crate) fn type_of(self) -> Type {
        match self {
            Self::Nil => Type::Nil,
            Self::Int(_) => Type::Int,
            Self::Float(_) => Type::Float,
            Self::Text(_) => Type::String,
            Self::Bool(_) => Type::Bool,
            Self::Duration(_) => Type::Duration,
            Self::Status(_) => Type::Status,
            Self::Kind(_) => Type::Kind,
            Self::Array(_) => Type::Array,
        }
    }

    /// The type, or that of the elements.
    pub(crate) fn element_type(self) -> Type {
        match self {
            Self::Array(values) => values.first().map_or(Type::Nil, Value::type_of),
            scalar => scalar.type_of(),
        }
    }

    pub(crate) fn is_nil(self) -> bool {
        matches!(self, Self::Nil)
    }

    /// Integers, floats and durations (in nanoseconds) as a float.
    pub(crate) fn as_f64(self) -> Option<f64> {
        match self {
            Self::Int(number) | Self::Duration(number) => Some(number as f64),
            Self::Float(number) => Some(number),
            _ => None,
        }
    }

    /// An owned copy.
    pub(crate) fn to_value(self) -> Value {
        match self {
            Self::Nil => Value::Nil,
            Self::Int(number) => Value::Int(number),
            Self::Float(number) => Value::Float(number),
            Self::Text(text) => Value::String(text.to_owned()),
            Self::Bool(value) => Value::Bool(value),
            Self::Duration(nanos) => Value::Duration(nanos),
            Self::Status(status) => Value::Status(status),
            Self::Kind(kind) => Value::Kind(kind),
            Self::Array(values) => Value::Array(values.to_vec()),
        }
    }
}

/// `left op right` for an arithmetic operator.
pub(crate) fn arithmetic(op: BinaryOp, left: Scalar<'_>, right: Scalar<'_>) -> Result<Scalar<'static>, Fault> {
    match (left, right) {
        (Scalar::Nil, _) | (_, Scalar::Nil) => Ok(Scalar::Bool(false)),
        (Scalar::Array(_), _) | (_, Scalar::Array(_)) => Err(Fault::Array),
        (Scalar::Int(left), Scalar::Int(right)) => of_integers(op, left, right).map(Scalar::Int),
        _ => Ok(match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => of_floats(op, left, right).map_or(Scalar::Bool(false), Scalar::Float),
            _ => Scalar::Bool(false),
        }),
    }
}

fn of_floats(op: BinaryOp, left: f64, right: f64) -> Option<f64> {
    Some(match op {
        BinaryOp::Add => left + right,
        BinaryOp::Subtract => left - right,
        BinaryOp::Multiply => left * right,
        BinaryOp::Divide => left / right,
        BinaryOp::Modulo => left % right,
        BinaryOp::Power => left.powf(right),
        _ => return None,
    })
}

fn of_integers(op: BinaryOp, left: i64, right: i64) -> Result<i64, Fault> {
    Ok(match op {
        BinaryOp::Add => left.wrapping_add(right),
        BinaryOp::Subtract => left.wrapping_sub(right),
        BinaryOp::Multiply => left.wrapping_mul(right),
        BinaryOp::Divide | BinaryOp::Modulo if right == 0 => return Err(Fault::DivisionByZero),
        BinaryOp::Divide => left.wrapping_div(right),
        BinaryOp::Modulo => left.wrapping_rem(right),
        // Tempo swaps the operands of an integer power, and queries are folded with it.
        BinaryOp::Power => (right as f64).powf(left as f64) as i64,
        _ => 0,
    })
}

/// `left op right` for a comparison.
pub(crate) fn compare(op: BinaryOp, left: Scalar<'_>, right: Scalar<'_>) -> Result<bool, Fault> {
    match (left, right) {
        (Scalar::Nil, _) | (_, Scalar::Nil) => Ok(false),
        (Scalar::Array(_), Scalar::Array(_)) => Err(Fault::Array),
        (Scalar::Array(values), scalar) => Ok(of_elements(op, values, scalar)),
        (scalar, Scalar::Array(values)) => Ok(of_elements(flip(op), values, scalar)),
        _ => Ok(of_scalars(op, left, right)),
    }
}

/// The operator that says the same with its operands exchanged.
pub(crate) fn flip(op: BinaryOp) -> BinaryOp {
    match op {
        BinaryOp::Greater => BinaryOp::Less,
        BinaryOp::GreaterEqual => BinaryOp::LessEqual,
        BinaryOp::Less => BinaryOp::Greater,
        BinaryOp::LessEqual => BinaryOp::GreaterEqual,
        other => other,
    }
}

fn of_elements(op: BinaryOp, values: &[Value], scalar: Scalar<'_>) -> bool {
    let mut tests = values.iter().map(|value| of_scalars(op, value.into(), scalar));
    if op == BinaryOp::NotEqual { tests.all(|test| test) } else { tests.any(|test| test) }
}

fn of_scalars(op: BinaryOp, left: Scalar<'_>, right: Scalar<'_>) -> bool {
    if !operands_fit(op, left.type_of(), right.type_of()) {
        return false;
    }
    let ordering = match (left, right) {
        (Scalar::Int(left) | Scalar::Duration(left), Scalar::Int(right) | Scalar::Duration(right)) => Some(left.cmp(&right)),
        (Scalar::Text(left), Scalar::Text(right)) => Some(left.as_bytes().cmp(right.as_bytes())),
        (Scalar::Bool(left), Scalar::Bool(right)) => Some(left.cmp(&right)),
        (Scalar::Status(left), Scalar::Status(right)) => Some(left.cmp(&right)),
        (Scalar::Kind(left), Scalar::Kind(right)) => Some(left.cmp(&right)),
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right),
            _ => return false,
        },
    };
    satisfies(op, ordering)
}

/// Whether operands in this order satisfy a comparison; those without order are different.
#[inline]
pub(crate) fn satisfies(op: BinaryOp, ordering: Option<Ordering>) -> bool {
    match op {
        BinaryOp::Equal => ordering == Some(Ordering::Equal),
        BinaryOp::NotEqual => ordering != Some(Ordering::Equal),
        BinaryOp::Greater => ordering == Some(Ordering::Greater),
        BinaryOp::GreaterEqual => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
        BinaryOp::Less => ordering == Some(Ordering::Less),
        BinaryOp::LessEqual => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
        _ => false,
    }
}

/// `subject =~ pattern`, or `!~` when negated. Only strings and arrays of strings ever match, either way.
pub(crate) fn matches(subject: Scalar<'_>, pattern: &Pattern, negated: bool) -> bool {
    match subject {
        Scalar::Text(text) => pattern.is_match(text) != negated,
        Scalar::Array(values) if subject.element_type() == Type::String => {
            values.iter().any(|value| matches!(value, Value::String(text) if pattern.is_match(text))) != negated
        }
        _ => false,
    }
}
