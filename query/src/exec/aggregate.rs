//! Aggregates of spansets, and the filters that compare them.

use std::{cmp::Ordering, sync::Arc};

use super::{
    ExecError,
    rows::Values,
    spansets::{Attribute, Spansets},
};
use crate::{
    columns::{Batch, Vector},
    traceql::{
        Type, Value,
        ast::{Aggregate, AggregateKind, Expr, Node, ScalarExpr, ScalarFilter},
        scalar::{Scalar, compare},
    },
};

/// Keeps the spansets whose aggregate satisfies the comparison, and notes its value.
pub(super) fn filter(filter: &ScalarFilter, batch: &Batch, spansets: Spansets) -> Result<Spansets, ExecError> {
    // Other forms do not pass validation.
    let (ScalarExpr::Aggregate(aggregate), ScalarExpr::Literal(literal)) = (&filter.left, &filter.right) else {
        return Ok(Spansets::default());
    };
    let argument = aggregate.argument.as_deref().map(|argument| Argument::new(batch, argument)).transpose()?;
    let mut keep = Vec::with_capacity(spansets.len());
    let mut values: Vec<Value> = Vec::new();
    for spanset in 0..spansets.len() {
        let value = evaluate(aggregate, argument.as_ref(), spansets.spans_of(spanset))?;
        let holds = value.as_f64().is_some() && compare(filter.op, value, literal.into()).unwrap_or(false);
        if holds {
            values.push(value.to_value());
        }
        keep.push(holds);
    }
    let mut kept = spansets.select(&keep);
    let index = (0..kept.len() as u32).collect();
    kept.attributes.push(Attribute { name: Arc::from(aggregate.to_string()), values: Arc::new(values.into_iter().collect()), index });
    Ok(kept)
}

/// What is aggregated: a column, or an expression that is computed span by span.
enum Argument<'q> {
    Vector(Arc<Vector>),
    Values(Values<'q>),
}

impl<'q> Argument<'q> {
    fn new(batch: &Batch, argument: &'q Expr) -> Result<Self, ExecError> {
        Ok(match &argument.node {
            Node::Field(field) => Self::Vector(batch.vector(field)?),
            _ => Self::Values(Values::new(batch, argument)?),
        })
    }

    fn get(&self, span: u32) -> Result<Scalar<'_>, ExecError> {
        match self {
            Self::Vector(vector) => Ok(vector.scalar(span as usize)),
            Self::Values(values) => Ok(values.get(span as usize)?),
        }
    }
}

/// The value of an aggregate over some spans; [`Scalar::Nil`] when no span has a value.
fn evaluate<'v>(aggregate: &Aggregate, argument: Option<&'v Argument<'_>>, spans: &[u32]) -> Result<Scalar<'v>, ExecError> {
    let Some(argument) = argument else {
        return Ok(Scalar::Int(spans.len() as i64));
    };
    let mut total = Total::default();
    let mut extreme = Scalar::Nil;
    for &span in spans {
        let value = argument.get(span)?;
        if value.is_nil() {
            continue;
        }
        match aggregate.kind {
            AggregateKind::Count => total.count += 1,
            AggregateKind::Sum | AggregateKind::Avg => total.add(value),
            AggregateKind::Min if extreme.is_nil() || order(value, extreme) == Ordering::Less => extreme = value,
            AggregateKind::Max if extreme.is_nil() || order(value, extreme) == Ordering::Greater => extreme = value,
            AggregateKind::Min | AggregateKind::Max => {}
        }
    }
    Ok(match aggregate.kind {
        AggregateKind::Count => Scalar::Int(total.count),
        AggregateKind::Sum => total.sum,
        AggregateKind::Avg => total.average(),
        AggregateKind::Min | AggregateKind::Max => extreme,
    })
}

/// A sum in the type of the first value; values of other types are left out of it and counted.
struct Total {
    sum: Scalar<'static>,
    count: i64,
}

impl Default for Total {
    fn default() -> Self {
        Self { sum: Scalar::Nil, count: 0 }
    }
}

impl Total {
    fn add(&mut self, value: Scalar<'_>) {
        self.count += 1;
        self.sum = match (self.sum, value) {
            (_, Scalar::Int(number)) if self.count == 1 => Scalar::Int(number),
            (_, Scalar::Float(number)) if self.count == 1 => Scalar::Float(number),
            (_, Scalar::Duration(nanos)) if self.count == 1 => Scalar::Duration(nanos),
            (Scalar::Int(sum), Scalar::Int(number)) => Scalar::Int(sum.wrapping_add(number)),
            (Scalar::Float(sum), Scalar::Float(number)) => Scalar::Float(sum + number),
            (Scalar::Duration(sum), Scalar::Duration(nanos)) => Scalar::Duration(sum.wrapping_add(nanos)),
            (sum, _) => sum,
        };
    }

    /// The sum divided by the number of all values.
    fn average(&self) -> Scalar<'static> {
        match self.sum {
            Scalar::Int(sum) => Scalar::Float(sum as f64 / self.count as f64),
            Scalar::Float(sum) => Scalar::Float(sum / self.count as f64),
            Scalar::Duration(sum) => Scalar::Duration(sum / self.count),
            _ => Scalar::Nil,
        }
    }
}

/// Numbers by value; everything else by type, then by value.
fn order(left: Scalar<'_>, right: Scalar<'_>) -> Ordering {
    match (left, right) {
        (Scalar::Int(left) | Scalar::Duration(left), Scalar::Int(right) | Scalar::Duration(right)) => left.cmp(&right),
        (Scalar::Text(left), Scalar::Text(right)) => left.cmp(right),
        (Scalar::Bool(left), Scalar::Bool(right)) => left.cmp(&right),
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
            _ => rank(left).cmp(&rank(right)),
        },
    }
}

fn rank(value: Scalar<'_>) -> u8 {
    match value.type_of() {
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
