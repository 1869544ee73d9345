//! Validation: types of expressions, and arguments that the grammar cannot check.
//!
//! The walk is depth first and from left to right; the first thing found wrong is reported.

use super::{
    ast::{
        Aggregate, AggregateKind, BinaryOp, Expr, Field, Intrinsic, Located, Metrics, MetricsFunction, Node, Pipeline, Position,
        ScalarExpr, ScalarFilter, Scope, SecondStage, SpansetExpr, Stage, UnaryOp,
    },
    error::{Error, quote},
    value::Type,
};

/// Most `by` labels of a metrics function.
const MAX_BY: usize = 5;

/// Whether two types can meet in an operation.
pub(super) fn types_match(left: Type, right: Type) -> bool {
    left == right || left.is_numeric() && right.is_numeric() || [left, right].iter().any(|t| matches!(t, Type::Attribute | Type::Nil))
}

/// Whether a type has an operator.
pub(super) fn allows(op: BinaryOp, operand: Type) -> bool {
    use BinaryOp::{Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual, NotRegex, Regex};
    match operand {
        Type::Attribute | Type::Array => true,
        Type::Bool | Type::Status | Type::Kind | Type::Nil => matches!(op, Equal | NotEqual),
        Type::Int | Type::Float | Type::Duration => !matches!(op, Regex | NotRegex),
        Type::String => matches!(op, Equal | NotEqual | Regex | NotRegex | Greater | GreaterEqual | Less | LessEqual),
    }
}

/// Whether `left op right` makes sense.
pub(crate) fn operands_fit(op: BinaryOp, left: Type, right: Type) -> bool {
    types_match(left, right) && allows(op, left) && allows(op, right)
}

impl Intrinsic {
    /// The static type.
    pub(crate) fn type_of(self) -> Type {
        match self {
            Self::Duration | Self::TraceDuration | Self::EventTimeSinceStart => Type::Duration,
            Self::Name
            | Self::StatusMessage
            | Self::SpanId
            | Self::SpanParentId
            | Self::RootName
            | Self::RootServiceName
            | Self::TraceId
            | Self::EventName
            | Self::LinkTraceId
            | Self::LinkSpanId => Type::String,
            Self::Status => Type::Status,
            Self::Kind => Type::Kind,
            Self::ChildCount | Self::NestedSetLeft | Self::NestedSetRight | Self::NestedSetParent => Type::Int,
            Self::InstrumentationName | Self::InstrumentationVersion => Type::Attribute,
            Self::Parent => Type::Nil,
        }
    }
}

/// Checks a field and gives its type.
fn field(at: Position, field: &Field) -> Result<Type, Error> {
    match field {
        Field::Attribute { parent: true, .. } | Field::Intrinsic(Intrinsic::Parent) => {
            Err(Error::unsupported(at, format_args!("\"{}\" is", quote(field))))
        }
        Field::Attribute { .. } => Ok(Type::Attribute),
        Field::Intrinsic(intrinsic) => Ok(intrinsic.type_of()),
    }
}

/// Checks an expression and gives its type.
pub(super) fn expr(checked: &Expr) -> Result<Type, Error> {
    let at = checked.at;
    match &checked.node {
        Node::Literal(value) => Ok(value.type_of()),
        Node::Field(reference) | Node::First(reference) => field(at, reference),
        Node::Unary { op, operand } => unary(at, *op, operand),
        Node::Binary { op, left, right } => {
            let (left_type, right_type) = (expr(left)?, expr(right)?);
            if matches!(op, BinaryOp::Regex | BinaryOp::NotRegex) {
                return Err(Error::validation(at, format!("the right side of {op} must be a string, found \"{}\"", quote(right))));
            }
            binary(at, *op, left_type, right_type, checked)
        }
        Node::Logical { op, operands } => {
            for operand in operands {
                let found = expr(operand)?;
                if !matches!(found, Type::Bool | Type::Attribute) {
                    return Err(Error::validation(
                        operand.at,
                        format!("{op} needs boolean operands, \"{}\" is of type {found}", quote(operand)),
                    ));
                }
            }
            Ok(Type::Bool)
        }
        Node::IsNil { operand, negated, .. } => {
            expr(operand)?;
            if !negated && is_never_nil(operand) {
                return Err(Error::validation(at, format!("\"{}\" is never nil", quote(operand))));
            }
            Ok(Type::Bool)
        }
        Node::Match { subject, pattern, negated } => {
            let op = if *negated { BinaryOp::NotRegex } else { BinaryOp::Regex };
            let found = expr(subject)?;
            binary(at, op, found, Type::String, checked)?;
            match pattern.error() {
                Some(reason) => Err(Error::validation(at, format!("invalid regular expression \"{}\": {reason}", quote(pattern.as_str())))),
                None => Ok(Type::Bool),
            }
        }
    }
}

fn unary(at: Position, op: UnaryOp, operand: &Expr) -> Result<Type, Error> {
    let found = expr(operand)?;
    let (fits, expected) = match op {
        UnaryOp::Negate => (found.is_numeric(), "a numeric"),
        UnaryOp::Not => (found == Type::Bool, "a boolean"),
    };
    if fits || found == Type::Attribute {
        Ok(found)
    } else {
        Err(Error::validation(at, format!("{op} needs {expected} operand, \"{}\" is of type {found}", quote(operand))))
    }
}

fn binary(at: Position, op: BinaryOp, left: Type, right: Type, whole: &impl std::fmt::Display) -> Result<Type, Error> {
    if !types_match(left, right) {
        return Err(Error::validation(
            at,
            format!("binary operations must operate on the same type, found {left} and {right}: {}", quote(whole)),
        ));
    }
    for operand in [left, right] {
        if !allows(op, operand) {
            return Err(Error::validation(at, format!("illegal operation {op} for type {operand}: {}", quote(whole))));
        }
    }
    Ok(match (op.is_arithmetic(), left) {
        (false, _) => Type::Bool,
        (true, Type::Attribute) => right,
        (true, _) => left,
    })
}

/// Intrinsics, and the one attribute that every resource has.
fn is_never_nil(operand: &Expr) -> bool {
    match &operand.node {
        Node::Field(Field::Intrinsic(_)) => true,
        Node::Field(Field::Attribute { parent: false, scope: Scope::Resource, name }) => name == "service.name",
        _ => false,
    }
}

/// Checks a pipeline.
pub(super) fn pipeline(checked: &Pipeline) -> Result<(), Error> {
    checked.stages.iter().try_for_each(|stage| match stage {
        Stage::Spansets(expr) => spansets(expr),
        Stage::Scalar(filter) => scalar_filter(filter),
        Stage::By(key) => {
            expr(key)?;
            must_reference_span(key, "by()")
        }
        Stage::Coalesce => Ok(()),
        Stage::Select(fields) => fields.iter().try_for_each(|selected| field(selected.at, &selected.item).map(|_| ())),
    })
}

fn must_reference_span(checked: &Expr, whose: &str) -> Result<(), Error> {
    if checked.references_span() {
        Ok(())
    } else {
        Err(Error::validation(checked.at, format!("the argument of {whose} must reference the span, found \"{}\"", quote(checked))))
    }
}

fn filter(condition: &Expr) -> Result<(), Error> {
    match expr(condition)? {
        Type::Bool | Type::Attribute => Ok(()),
        found => Err(Error::validation(condition.at, format!("span filters must be boolean, \"{}\" is of type {found}", quote(condition)))),
    }
}

fn spansets(checked: &SpansetExpr) -> Result<(), Error> {
    match checked {
        SpansetExpr::Filter(condition) => filter(condition),
        SpansetExpr::Logical { operands, .. } => operands.iter().try_for_each(spansets),
        SpansetExpr::Structural { left, right, .. } => {
            spansets(left)?;
            spansets(right)
        }
        SpansetExpr::Pipeline(inner) => pipeline(inner),
    }
}

fn scalar_filter(checked: &ScalarFilter) -> Result<(), Error> {
    let (left, right) = (scalar(&checked.left)?, scalar(&checked.right)?);
    binary(checked.at, checked.op, left, right, checked)?;
    match (&checked.left, &checked.right) {
        (ScalarExpr::Aggregate(_), ScalarExpr::Literal(_)) => Ok(()),
        _ => Err(Error::unsupported(
            checked.at,
            format_args!("scalar filter \"{}\" that does not compare an aggregate with a constant is", quote(checked)),
        )),
    }
}

fn scalar(checked: &ScalarExpr) -> Result<Type, Error> {
    match checked {
        ScalarExpr::Literal(value) => Ok(value.type_of()),
        ScalarExpr::Aggregate(inner) => aggregate(inner),
        ScalarExpr::Binary { at, op, left, right } => {
            let (left, right) = (scalar(left)?, scalar(right)?);
            binary(*at, *op, left, right, checked)
        }
        ScalarExpr::Pipeline { pipeline: stages, aggregate: last } => {
            pipeline(stages)?;
            aggregate(last)
        }
    }
}

fn aggregate(checked: &Aggregate) -> Result<Type, Error> {
    let Some(argument) = &checked.argument else {
        return Ok(Type::Int);
    };
    let found = expr(argument)?;
    if !found.is_numeric() && found != Type::Attribute {
        return Err(Error::validation(
            checked.at,
            format!("aggregate field expressions must resolve to a number type, \"{}\" is of type {found}", quote(argument)),
        ));
    }
    must_reference_span(argument, checked.kind.as_str())?;
    Ok(if checked.kind == AggregateKind::Count { Type::Int } else { found })
}

/// Checks the metrics part.
pub(super) fn metrics(checked: &Metrics) -> Result<(), Error> {
    let at = checked.at;
    let name = checked.function.as_str();
    let mut most_labels = MAX_BY;
    match &checked.function {
        MetricsFunction::QuantileOverTime(_, quantiles) => {
            most_labels -= 1;
            if let Some(quantile) = quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
                return Err(Error::validation(at, format!("quantile must be between 0 and 1, found {quantile}")));
            }
        }
        MetricsFunction::AvgOverTime(_) | MetricsFunction::HistogramOverTime(_) => most_labels -= 1,
        MetricsFunction::Compare { selection, top_n, start_ns, end_ns } => {
            filter(selection)?;
            if *top_n <= 0 {
                return Err(Error::validation(at, format!("compare() top number of values must be greater than 0, found {top_n}")));
            }
            if (*start_ns, *end_ns) != (0, 0) && (*start_ns == 0 || *end_ns == 0 || end_ns <= start_ns) {
                return Err(Error::validation(
                    at,
                    format!("compare() needs a window with start before end, found {start_ns} and {end_ns}"),
                ));
            }
        }
        _ => {}
    }
    if checked.by.len() > most_labels {
        let found = checked.by.len();
        return Err(Error::unsupported(at, format_args!("{name}() by {found} fields, more than {most_labels}, is")));
    }
    for Located { at, item: stage } in &checked.second {
        if matches!(checked.function, MetricsFunction::Compare { .. }) {
            return Err(Error::validation(*at, "compare() cannot be followed by a second stage"));
        }
        if let SecondStage::TopK(0) | SecondStage::BottomK(0) = stage {
            return Err(Error::validation(*at, "the limit of topk() and bottomk() must be greater than 0"));
        }
    }
    Ok(())
}
