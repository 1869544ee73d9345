//! Values while a query runs, and what the operators of the language do with them.
//!
//! An operand borrows from the trace or from the query. Missing values and mismatched types are not errors: comparisons with them are
//! false, and so is arithmetic.

use std::{borrow::Cow, cmp::Ordering};

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};

use super::super::{
    ast::BinaryOp,
    pattern::Pattern,
    types,
    value::{Kind, Status, Type, Value},
};

/// A value while a query runs.
#[derive(Clone, Debug)]
pub(in super::super) enum Operand<'a> {
    Nil,
    Int(i64),
    Float(f64),
    String(Cow<'a, str>),
    Bool(bool),
    Duration(i64),
    Status(Status),
    Kind(Kind),
    /// At least two elements, all of this type.
    Array(&'a [AnyValue], Type),
}

/// Why an operation fails, and with it the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fault {
    DivisionByZero,
    Array,
}

impl<'a> From<&'a Value> for Operand<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            // Queries have no array literals.
            Value::Nil | Value::Array(_) => Self::Nil,
            Value::Int(number) => Self::Int(*number),
            Value::Float(number) => Self::Float(*number),
            Value::String(text) => Self::String(Cow::Borrowed(text)),
            Value::Bool(value) => Self::Bool(*value),
            Value::Duration(nanos) => Self::Duration(*nanos),
            Value::Status(status) => Self::Status(*status),
            Value::Kind(kind) => Self::Kind(*kind),
        }
    }
}

impl<'a> Operand<'a> {
    /// The value of an attribute. What the language cannot express is absent.
    pub(super) fn from_attribute(value: &'a AnyValue) -> Self {
        let Some(any_value::Value::ArrayValue(array)) = &value.value else {
            return Self::from_scalar(value);
        };
        match array.values.as_slice() {
            [] => Self::Nil,
            [single] => Self::from_scalar(single),
            [first, rest @ ..] => match Self::from_scalar(first).type_of() {
                Type::Nil => Self::Nil,
                element if rest.iter().all(|value| Self::from_scalar(value).type_of() == element) => Self::Array(&array.values, element),
                _ => Self::Nil,
            },
        }
    }

    fn from_scalar(value: &'a AnyValue) -> Self {
        match &value.value {
            Some(any_value::Value::StringValue(text)) => Self::String(Cow::Borrowed(text)),
            Some(any_value::Value::IntValue(number)) => Self::Int(*number),
            Some(any_value::Value::DoubleValue(number)) => Self::Float(*number),
            Some(any_value::Value::BoolValue(value)) => Self::Bool(*value),
            _ => Self::Nil,
        }
    }

    pub(super) fn type_of(&self) -> Type {
        match self {
            Self::Nil => Type::Nil,
            Self::Int(_) => Type::Int,
            Self::Float(_) => Type::Float,
            Self::String(_) => Type::String,
            Self::Bool(_) => Type::Bool,
            Self::Duration(_) => Type::Duration,
            Self::Status(_) => Type::Status,
            Self::Kind(_) => Type::Kind,
            Self::Array(..) => Type::Array,
        }
    }

    /// The type, or that of the elements.
    pub(super) fn element_type(&self) -> Type {
        match self {
            Self::Array(_, element) => *element,
            scalar => scalar.type_of(),
        }
    }

    pub(super) fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    /// Integers, floats and durations (in nanoseconds) as a float.
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(number) | Self::Duration(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// An owned copy.
    pub(in super::super) fn to_value(&self) -> Value {
        match self {
            Self::Nil => Value::Nil,
            Self::Int(number) => Value::Int(*number),
            Self::Float(number) => Value::Float(*number),
            Self::String(text) => Value::String(text.as_ref().to_owned()),
            Self::Bool(value) => Value::Bool(*value),
            Self::Duration(nanos) => Value::Duration(*nanos),
            Self::Status(status) => Value::Status(*status),
            Self::Kind(kind) => Value::Kind(*kind),
            Self::Array(values, _) => Value::Array(values.iter().map(|value| Self::from_scalar(value).to_value()).collect()),
        }
    }
}

/// `left op right` for an arithmetic operator.
pub(in super::super) fn arithmetic(op: BinaryOp, left: &Operand<'_>, right: &Operand<'_>) -> Result<Operand<'static>, Fault> {
    if left.is_nil() || right.is_nil() {
        return Ok(Operand::Bool(false));
    }
    if matches!(left, Operand::Array(..)) || matches!(right, Operand::Array(..)) {
        return Err(Fault::Array);
    }
    if let (Operand::Int(left), Operand::Int(right)) = (left, right) {
        return integer_arithmetic(op, *left, *right).map(Operand::Int);
    }
    let (Some(left), Some(right)) = (left.as_f64(), right.as_f64()) else {
        return Ok(Operand::Bool(false));
    };
    Ok(Operand::Float(match op {
        BinaryOp::Add => left + right,
        BinaryOp::Subtract => left - right,
        BinaryOp::Multiply => left * right,
        BinaryOp::Divide => left / right,
        BinaryOp::Modulo => left % right,
        BinaryOp::Power => left.powf(right),
        _ => return Ok(Operand::Bool(false)),
    }))
}

fn integer_arithmetic(op: BinaryOp, left: i64, right: i64) -> Result<i64, Fault> {
    Ok(match op {
        BinaryOp::Add => left.wrapping_add(right),
        BinaryOp::Subtract => left.wrapping_sub(right),
        BinaryOp::Multiply => left.wrapping_mul(right),
        BinaryOp::Divide if right == 0 => return Err(Fault::DivisionByZero),
        BinaryOp::Divide => left.wrapping_div(right),
        BinaryOp::Modulo if right == 0 => return Err(Fault::DivisionByZero),
        BinaryOp::Modulo => left.wrapping_rem(right),
        // Tempo swaps the operands of an integer power, and queries are folded with it.
        BinaryOp::Power => (right as f64).powf(left as f64) as i64,
        _ => 0,
    })
}

/// `left op right` for a comparison.
pub(in super::super) fn compare(op: BinaryOp, left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, Fault> {
    match (left, right) {
        (Operand::Nil, _) | (_, Operand::Nil) => Ok(false),
        (Operand::Array(..), Operand::Array(..)) => Err(Fault::Array),
        (Operand::Array(values, _), scalar) => Ok(compare_elements(op, values, scalar)),
        (scalar, Operand::Array(values, _)) => Ok(compare_elements(flip(op), values, scalar)),
        _ => Ok(compare_scalars(op, left, right)),
    }
}

fn flip(op: BinaryOp) -> BinaryOp {
    match op {
        BinaryOp::Greater => BinaryOp::Less,
        BinaryOp::GreaterEqual => BinaryOp::LessEqual,
        BinaryOp::Less => BinaryOp::Greater,
        BinaryOp::LessEqual => BinaryOp::GreaterEqual,
        other => other,
    }
}

fn compare_elements(op: BinaryOp, values: &[AnyValue], scalar: &Operand<'_>) -> bool {
    let mut tests = values.iter().map(|value| compare_scalars(op, &Operand::from_scalar(value), scalar));
    if op == BinaryOp::NotEqual { tests.all(|test| test) } else { tests.any(|test| test) }
}

fn compare_scalars(op: BinaryOp, left: &Operand<'_>, right: &Operand<'_>) -> bool {
    if !types::operands_fit(op, left.type_of(), right.type_of()) {
        return false;
    }
    let ordering = match (left, right) {
        (Operand::Int(left) | Operand::Duration(left), Operand::Int(right) | Operand::Duration(right)) => Some(left.cmp(right)),
        (Operand::String(left), Operand::String(right)) => Some(left.as_bytes().cmp(right.as_bytes())),
        (Operand::Bool(left), Operand::Bool(right)) => Some(left.cmp(right)),
        (Operand::Status(left), Operand::Status(right)) => Some(left.cmp(right)),
        (Operand::Kind(left), Operand::Kind(right)) => Some(left.cmp(right)),
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right),
            _ => return false,
        },
    };
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
pub(super) fn matches_pattern(subject: &Operand<'_>, pattern: &Pattern, negated: bool) -> bool {
    match subject {
        Operand::String(text) => pattern.is_match(text) != negated,
        Operand::Array(values, Type::String) => {
            let found = values.iter().any(|value| matches!(Operand::from_scalar(value), Operand::String(text) if pattern.is_match(&text)));
            found != negated
        }
        _ => false,
    }
}
