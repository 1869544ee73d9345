//! Aggregates of a spanset.

use std::cmp::Ordering;

use super::{
    super::{
        ast::{Aggregate, AggregateKind, Expr},
        error::ExecutionError,
        value::Type,
    },
    condition::Subject,
    operand::Operand,
    view::TraceView,
};

/// The value of an aggregate over some spans; [`Operand::Nil`] when no span has a value.
pub(super) fn evaluate<'v>(aggregate: &'v Aggregate, trace: &'v TraceView<'v>, spans: &[usize]) -> Result<Operand<'v>, ExecutionError> {
    let Some(argument) = &aggregate.argument else {
        return Ok(Operand::Int(i64::try_from(spans.len()).unwrap_or(i64::MAX)));
    };
    let values = values(argument, trace, spans)?;
    Ok(match aggregate.kind {
        AggregateKind::Count => Operand::Int(i64::try_from(values.len()).unwrap_or(i64::MAX)),
        AggregateKind::Sum => sum(&values),
        AggregateKind::Avg => average(&values),
        AggregateKind::Min => extreme(values, Ordering::Less),
        AggregateKind::Max => extreme(values, Ordering::Greater),
    })
}

fn values<'v>(argument: &'v Expr, trace: &'v TraceView<'v>, spans: &[usize]) -> Result<Vec<Operand<'v>>, ExecutionError> {
    let mut values = Vec::with_capacity(spans.len());
    for span in spans {
        let value = Subject::new(trace, *span).value(argument)?;
        if !value.is_nil() {
            values.push(value);
        }
    }
    Ok(values)
}

/// The sum in the type of the first value; values of other types are left out.
fn sum(values: &[Operand<'_>]) -> Operand<'static> {
    let integers = |wanted: Type| {
        values.iter().filter(|value| value.type_of() == wanted).fold(0i64, |sum, value| match value {
            Operand::Int(number) | Operand::Duration(number) => sum.wrapping_add(*number),
            _ => sum,
        })
    };
    match values.first().map(Operand::type_of) {
        Some(Type::Int) => Operand::Int(integers(Type::Int)),
        Some(Type::Duration) => Operand::Duration(integers(Type::Duration)),
        Some(Type::Float) => Operand::Float(values.iter().filter(|value| value.type_of() == Type::Float).filter_map(Operand::as_f64).sum()),
        _ => Operand::Nil,
    }
}

/// The sum divided by the number of all values.
fn average(values: &[Operand<'_>]) -> Operand<'static> {
    let count = values.len();
    match sum(values) {
        Operand::Int(sum) => Operand::Float(sum as f64 / count as f64),
        Operand::Float(sum) => Operand::Float(sum / count as f64),
        Operand::Duration(sum) => Operand::Duration(sum / i64::try_from(count).unwrap_or(i64::MAX)),
        _ => Operand::Nil,
    }
}

fn extreme<'v>(values: Vec<Operand<'v>>, wanted: Ordering) -> Operand<'v> {
    values.into_iter().reduce(|best, value| if order(&value, &best) == wanted { value } else { best }).unwrap_or(Operand::Nil)
}

/// Numbers by value; everything else by type, then by value.
fn order(left: &Operand<'_>, right: &Operand<'_>) -> Ordering {
    match (left, right) {
        (Operand::Int(left) | Operand::Duration(left), Operand::Int(right) | Operand::Duration(right)) => left.cmp(right),
        (Operand::String(left), Operand::String(right)) => left.cmp(right),
        (Operand::Bool(left), Operand::Bool(right)) => left.cmp(right),
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
            _ => rank(left).cmp(&rank(right)),
        },
    }
}

fn rank(operand: &Operand<'_>) -> u8 {
    match operand.type_of() {
        Type::Nil | Type::Attribute => 0,
        Type::Int => 1,
        Type::Float => 2,
        Type::String => 3,
        Type::Bool => 4,
        Type::Array => 5,
        Type::Duration => 6,
        Type::Status => 7,
        Type::Kind => 8,
    }
}
