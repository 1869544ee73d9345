//! The canonical text of a query: keys of spanset attributes and labels of series are made of it.
//!
//! An operand that is neither a literal nor a field stands in parentheses, so the text does not depend on precedence. The text of a query
//! parses back to the same tree, except for names and strings that contain quotes, numbers that have no literal (infinities, not-a-number), and
//! chains with more parentheses than the parser reads.

use std::fmt::{self, Display, Formatter};

use super::{
    Query,
    ast::{
        Aggregate, AggregateKind, BinaryOp, Expr, Field, Hint, Intrinsic, LogicalOp, Metrics, MetricsFunction, Node, Pipeline, Relation,
        ScalarExpr, ScalarFilter, Scope, SecondStage, SpansetExpr, Stage, StructuralOp, UnaryOp, Variant,
    },
    lexer::ends_name,
    number::{format_duration, format_float},
    value::Value,
};

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => {
                let text = format_float(*number);
                f.write_str(&text)?;
                if number.is_finite() && !text.contains(['.', 'e']) { f.write_str(".0") } else { Ok(()) }
            }
            Self::String(text) => write!(f, "`{text}`"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Duration(nanos) => f.write_str(&format_duration(*nanos)),
            Self::Status(status) => f.write_str(status.as_str()),
            Self::Kind(kind) => f.write_str(kind.as_str()),
            Self::Array(values) => {
                f.write_str("[")?;
                comma_separated(f, values, ", ")?;
                f.write_str("]")
            }
        }
    }
}

fn comma_separated<T: Display>(f: &mut Formatter<'_>, items: impl IntoIterator<Item = T>, separator: &str) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

impl Intrinsic {
    /// Canonical spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duration => "duration",
            Self::Name => "name",
            Self::Status => "status",
            Self::StatusMessage => "statusMessage",
            Self::Kind => "kind",
            Self::SpanId => "span:id",
            Self::SpanParentId => "span:parentID",
            Self::ChildCount => "span:childCount",
            Self::RootName => "rootName",
            Self::RootServiceName => "rootServiceName",
            Self::TraceDuration => "traceDuration",
            Self::TraceId => "trace:id",
            Self::NestedSetLeft => "nestedSetLeft",
            Self::NestedSetRight => "nestedSetRight",
            Self::NestedSetParent => "nestedSetParent",
            Self::EventName => "event:name",
            Self::EventTimeSinceStart => "event:timeSinceStart",
            Self::LinkTraceId => "link:traceID",
            Self::LinkSpanId => "link:spanID",
            Self::InstrumentationName => "instrumentation:name",
            Self::InstrumentationVersion => "instrumentation:version",
            Self::Parent => "parent",
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intrinsic(intrinsic) => f.write_str(intrinsic.as_str()),
            Self::Attribute { parent, scope, name } => {
                f.write_str(match (parent, scope) {
                    (false, Scope::Any) => ".",
                    (true, Scope::Any) => "parent.",
                    (false, Scope::Span) => "span.",
                    (true, Scope::Span) => "parent.span.",
                    (false, Scope::Resource) => "resource.",
                    (true, Scope::Resource) => "parent.resource.",
                    (_, Scope::Instrumentation) => "instrumentation.",
                    (_, Scope::Event) => "event.",
                    (_, Scope::Link) => "link.",
                })?;
                if name.is_empty() || name.contains(ends_name) { write!(f, "\"{name}\"") } else { f.write_str(name) }
            }
        }
    }
}

impl Display for BinaryOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
            Self::Power => "^",
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        })
    }
}

impl Display for UnaryOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Negate => "-",
            Self::Not => "!",
        })
    }
}

impl Display for LogicalOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::And => "&&",
            Self::Or => "||",
        })
    }
}

impl StructuralOp {
    /// The operator's text.
    pub fn as_str(self) -> &'static str {
        match (self.variant, self.relation) {
            (Variant::Plain, Relation::Child) => ">",
            (Variant::Plain, Relation::Descendant) => ">>",
            (Variant::Plain, Relation::Parent) => "<",
            (Variant::Plain, Relation::Ancestor) => "<<",
            (Variant::Plain, Relation::Sibling) => "~",
            (Variant::Negated, Relation::Child) => "!>",
            (Variant::Negated, Relation::Descendant) => "!>>",
            (Variant::Negated, Relation::Parent) => "!<",
            (Variant::Negated, Relation::Ancestor) => "!<<",
            (Variant::Negated, Relation::Sibling) => "!~",
            (Variant::Union, Relation::Child) => "&>",
            (Variant::Union, Relation::Descendant) => "&>>",
            (Variant::Union, Relation::Parent) => "&<",
            (Variant::Union, Relation::Ancestor) => "&<<",
            (Variant::Union, Relation::Sibling) => "&~",
        }
    }
}

/// An expression in the place of an operand.
struct Wrapped<'a>(&'a Expr);

impl Display for Wrapped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.0.node {
            Node::Literal(_) | Node::Field(_) | Node::First(_) => write!(f, "{}", self.0),
            _ => write!(f, "({})", self.0),
        }
    }
}

/// Writes `((a op b) op c) op d`.
fn chain<T: Display>(f: &mut Formatter<'_>, op: LogicalOp, operands: &[T]) -> fmt::Result {
    for _ in 2..operands.len() {
        f.write_str("(")?;
    }
    for (index, operand) in operands.iter().enumerate() {
        match index {
            0 => write!(f, "{operand}")?,
            1 => write!(f, " {op} {operand}")?,
            _ => write!(f, ") {op} {operand}")?,
        }
    }
    Ok(())
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.node {
            Node::Literal(value) => write!(f, "{value}"),
            Node::Field(field) | Node::First(field) => write!(f, "{field}"),
            Node::Unary { op, operand } => write!(f, "{op}{}", Wrapped(operand)),
            Node::Binary { op, left, right } => {
                // A minus sign would reach over an operator that binds tighter.
                let tight = matches!(op, BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Modulo | BinaryOp::Power);
                if tight && is_negative(left) {
                    write!(f, "({left})")?
                } else {
                    write!(f, "{}", Wrapped(left))?
                }
                write!(f, " {op} {}", Wrapped(right))
            }
            Node::Logical { op, operands } => chain(f, *op, &operands.iter().map(Wrapped).collect::<Vec<_>>()),
            Node::IsNil { operand, negated, .. } => write!(f, "{} {} nil", Wrapped(operand), if *negated { "!=" } else { "=" }),
            Node::Match { subject, pattern, negated } => {
                let op = if *negated { BinaryOp::NotRegex } else { BinaryOp::Regex };
                write!(f, "{} {op} {}", Wrapped(subject), Value::String(pattern.as_str().to_owned()))
            }
        }
    }
}

fn is_negative(expr: &Expr) -> bool {
    match expr.node {
        Node::Literal(Value::Int(number) | Value::Duration(number)) => number < 0,
        Node::Literal(Value::Float(number)) => number.is_sign_negative(),
        _ => false,
    }
}

/// A spanset expression in the place of an operand.
struct WrappedSpansets<'a>(&'a SpansetExpr);

impl Display for WrappedSpansets<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "({})", self.0)
    }
}

impl Display for SpansetExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(condition) => write!(f, "{{ {condition} }}"),
            Self::Logical { op, operands } => chain(f, *op, &operands.iter().map(WrappedSpansets).collect::<Vec<_>>()),
            Self::Structural { op, left, right } => write!(f, "({left}) {} ({right})", op.as_str()),
            Self::Pipeline(pipeline) => write!(f, "{pipeline}"),
        }
    }
}

impl Display for Pipeline {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        comma_separated(f, &self.stages, "|")
    }
}

impl Display for Stage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spansets(expr) => write!(f, "{expr}"),
            Self::Scalar(filter) => write!(f, "{filter}"),
            Self::By(expr) => write!(f, "by({expr})"),
            Self::Coalesce => f.write_str("coalesce()"),
            Self::Select(fields) => {
                f.write_str("select(")?;
                comma_separated(f, fields.iter().map(|selected| &selected.item), ", ")?;
                f.write_str(")")
            }
        }
    }
}

impl AggregateKind {
    /// The name of the function.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
            Self::Sum => "sum",
        }
    }
}

impl Display for Aggregate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.argument {
            Some(argument) => write!(f, "{}({argument})", self.kind.as_str()),
            None => write!(f, "{}()", self.kind.as_str()),
        }
    }
}

/// A scalar expression in the place of an operand.
struct WrappedScalar<'a>(&'a ScalarExpr);

impl Display for WrappedScalar<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ScalarExpr::Literal(_) => write!(f, "{}", self.0),
            _ => write!(f, "({})", self.0),
        }
    }
}

impl Display for ScalarExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(value) => write!(f, "{value}"),
            Self::Aggregate(aggregate) => write!(f, "{aggregate}"),
            Self::Binary { op, left, right, .. } => write!(f, "{} {op} {}", WrappedScalar(left), WrappedScalar(right)),
            Self::Pipeline { pipeline, aggregate } => write!(f, "{pipeline}|{aggregate}"),
        }
    }
}

impl Display for ScalarFilter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", WrappedScalar(&self.left), self.op, WrappedScalar(&self.right))
    }
}

impl Display for Metrics {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.function.as_str())?;
        match &self.function {
            MetricsFunction::QuantileOverTime(field, quantiles) => {
                write!(f, "{field}")?;
                for quantile in quantiles {
                    write!(f, ",{quantile:.5}")?;
                }
            }
            MetricsFunction::Compare { selection, top_n, start_ns, end_ns } => {
                write!(f, "{{ {selection} }}, {top_n}")?;
                if (*start_ns, *end_ns) != (0, 0) {
                    write!(f, ", {start_ns}, {end_ns}")?;
                }
            }
            other => {
                if let Some(field) = other.argument() {
                    write!(f, "{field}")?;
                }
            }
        }
        f.write_str(")")?;
        if !self.by.is_empty() {
            f.write_str("by(")?;
            comma_separated(f, &self.by, ",")?;
            f.write_str(")")?;
        }
        self.second.iter().try_for_each(|stage| match &stage.item {
            SecondStage::TopK(limit) => write!(f, " | topk({limit})"),
            SecondStage::BottomK(limit) => write!(f, " | bottomk({limit})"),
            SecondStage::Filter { op, value } => write!(f, " {op} {}", format_float(*value)),
        })
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pipeline)?;
        if let Some(metrics) = &self.metrics {
            write!(f, " | {metrics}")?;
        }
        if !self.hints.is_empty() {
            f.write_str(" with(")?;
            comma_separated(f, &self.hints, ",")?;
            f.write_str(")")?;
        }
        Ok(())
    }
}
