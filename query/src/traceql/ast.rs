//! The tree of a query.
//!
//! ```text
//! Query ── Pipeline ── Stage ─┬─ SpansetExpr ── Expr (field expression)
//!   │                         ├─ ScalarFilter ── ScalarExpr ── Aggregate ── Expr
//!   │                         └─ by(Expr), coalesce(), select(Field, …)
//!   ├── Metrics ── SecondStage
//!   └── Hint
//! ```
//!
//! Chains of one logical operator are one node with many operands, so that the depth of a tree does not grow with the number of
//! alternatives; everything else is bounded in depth by the parser. Two trees are equal when they mean the same: places in the text do not
//! take part in comparisons.

use super::{pattern::Pattern, value::Value};

/// A place in the text of a query. Both count from 1; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Character in the line.
    pub column: u32,
}

/// Something with its place, which takes no part in comparisons.
#[derive(Clone, Copy, Debug)]
pub struct Located<T> {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub item: T,
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.item == other.item
    }
}

/// Where an attribute is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `.x`: the span, else the resource.
    Any,
    /// `span.x`
    Span,
    /// `resource.x`
    Resource,
    /// `instrumentation.x`
    Instrumentation,
    /// `event.x`
    Event,
    /// `link.x`
    Link,
}

/// A value that every span has without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intrinsic {
    /// `duration`
    Duration,
    /// `name`
    Name,
    /// `status`
    Status,
    /// `statusMessage`
    StatusMessage,
    /// `kind`
    Kind,
    /// `span:id`
    SpanId,
    /// `span:parentID`
    SpanParentId,
    /// `span:childCount`
    ChildCount,
    /// `rootName`
    RootName,
    /// `rootServiceName`
    RootServiceName,
    /// `traceDuration`
    TraceDuration,
    /// `trace:id`
    TraceId,
    /// `nestedSetLeft`
    NestedSetLeft,
    /// `nestedSetRight`
    NestedSetRight,
    /// `nestedSetParent`
    NestedSetParent,
    /// `event:name`
    EventName,
    /// `event:timeSinceStart`
    EventTimeSinceStart,
    /// `link:traceID`
    LinkTraceId,
    /// `link:spanID`
    LinkSpanId,
    /// `instrumentation:name`
    InstrumentationName,
    /// `instrumentation:version`
    InstrumentationVersion,
    /// `parent`, reserved.
    Parent,
}

/// A reference to the span.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// An attribute.
    Attribute {
        /// `parent.…`: of the parent span.
        parent: bool,
        /// Where to look.
        scope: Scope,
        /// Its key.
        name: String,
    },
    /// An intrinsic.
    Intrinsic(Intrinsic),
}

/// Unary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// `-`
    Negate,
    /// `!`
    Not,
}

/// Binary operators of field and scalar expressions, except the logical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Modulo,
    /// `^`
    Power,
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

impl BinaryOp {
    /// Whether the operator gives a number.
    pub fn is_arithmetic(self) -> bool {
        matches!(self, Self::Add | Self::Subtract | Self::Multiply | Self::Divide | Self::Modulo | Self::Power)
    }
}

/// Logical operators of field and spanset expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogicalOp {
    /// `&&`
    And,
    /// `||`
    Or,
}

/// A field expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Where it begins; for an operation, where its operator stands.
    pub at: Position,
    /// What it is.
    pub node: Node,
}

impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

/// Kinds of field expressions.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A constant.
    Literal(Value),
    /// A value of the span.
    Field(Field),
    /// A field of events or links in a query of several filters: the value of the first event (link) that has it.
    First(Field),
    /// `-x`, `!x`
    Unary {
        /// Operator.
        op: UnaryOp,
        /// Operand.
        operand: Box<Expr>,
    },
    /// `left op right`
    Binary {
        /// Operator.
        op: BinaryOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// `a && b && …`, grouped to the left; at least two operands.
    Logical {
        /// Operator.
        op: LogicalOp,
        /// Operands from left to right.
        operands: Vec<Expr>,
    },
    /// `x = nil`, `x != nil`
    IsNil {
        /// What is tested.
        operand: Box<Expr>,
        /// `!=`
        negated: bool,
        /// `nil = x`, which a span without events (links) satisfies for a field of theirs, as `x = nil` is not.
        swapped: bool,
    },
    /// `x =~ "…"`, `x !~ "…"`
    Match {
        /// What is tested.
        subject: Box<Expr>,
        /// The expression.
        pattern: Pattern,
        /// `!~`
        negated: bool,
    },
}

impl Field {
    /// Whether events have it.
    pub(crate) fn is_of_event(&self) -> bool {
        matches!(self, Self::Attribute { scope: Scope::Event, .. } | Self::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart))
    }

    /// Whether links have it.
    pub(crate) fn is_of_link(&self) -> bool {
        matches!(self, Self::Attribute { scope: Scope::Link, .. } | Self::Intrinsic(Intrinsic::LinkTraceId | Intrinsic::LinkSpanId))
    }
}

impl Expr {
    /// Whether the value is a boolean whatever the span is.
    pub(crate) fn is_boolean(&self) -> bool {
        match &self.node {
            Node::Literal(value) => value.type_of() == super::value::Type::Bool,
            Node::Field(_) | Node::First(_) => false,
            Node::Unary { op, .. } => *op == UnaryOp::Not,
            Node::Binary { op, .. } => !op.is_arithmetic(),
            Node::Logical { .. } | Node::IsNil { .. } | Node::Match { .. } => true,
        }
    }

    /// Whether some part of it looks at the span.
    pub fn references_span(&self) -> bool {
        let mut found = false;
        self.for_each_field(&mut |_| found = true);
        found
    }

    /// Calls `visit` with every field in it of which the condition chooses an event (link), if it is a field of such, from left to right.
    pub(crate) fn for_each_chosen_field<'a>(&'a self, visit: &mut impl FnMut(&'a Field)) {
        self.for_each(&mut |node| {
            if let Node::Field(field) = node {
                visit(field);
            }
        });
    }

    /// Calls `visit` with every field in it, from left to right.
    pub fn for_each_field<'a>(&'a self, visit: &mut impl FnMut(&'a Field)) {
        self.for_each(&mut |node| {
            if let Node::Field(field) | Node::First(field) = node {
                visit(field);
            }
        });
    }

    /// Calls `visit` with everything in it, from left to right.
    pub(crate) fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a Node)) {
        visit(&self.node);
        match &self.node {
            Node::Literal(_) | Node::Field(_) | Node::First(_) => {}
            Node::Unary { operand, .. } | Node::IsNil { operand, .. } => operand.for_each(visit),
            Node::Match { subject, .. } => subject.for_each(visit),
            Node::Binary { left, right, .. } => {
                left.for_each(visit);
                right.for_each(visit);
            }
            Node::Logical { operands, .. } => operands.iter().for_each(|operand| operand.for_each(visit)),
        }
    }

    fn operands_mut(&mut self) -> Vec<&mut Self> {
        match &mut self.node {
            Node::Literal(_) | Node::Field(_) | Node::First(_) => Vec::new(),
            Node::Unary { operand, .. } | Node::IsNil { operand, .. } | Node::Match { subject: operand, .. } => vec![operand],
            Node::Binary { left, right, .. } => vec![left, right],
            Node::Logical { operands, .. } => operands.iter_mut().collect(),
        }
    }

    /// Reads fields of events and links as those of the first one that has the field.
    fn read_first(&mut self) {
        if let Node::Field(field) = &self.node
            && (field.is_of_event() || field.is_of_link())
        {
            self.node = Node::First(field.clone());
        }
        self.operands_mut().into_iter().for_each(Self::read_first);
    }
}

/// Relations of spans in the tree of a trace. `A > B` reads “B is a child of A”.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `>`
    Child,
    /// `>>`
    Descendant,
    /// `<`
    Parent,
    /// `<<`
    Ancestor,
    /// `~`
    Sibling,
}

/// What is kept of the two sides of a structural operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Spans of the right side that have the relation.
    Plain,
    /// `!`: spans of the right side that do not have it.
    Negated,
    /// `&`: spans of both sides that have it.
    Union,
}

/// A structural operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StructuralOp {
    /// The relation.
    pub relation: Relation,
    /// What is kept.
    pub variant: Variant,
}

/// A spanset expression, or, as a whole query, an expression of parenthesised pipelines.
#[derive(Clone, Debug, PartialEq)]
pub enum SpansetExpr {
    /// `{ condition }`
    Filter(Expr),
    /// `a && b && …`, grouped to the left; at least two operands.
    Logical {
        /// Operator.
        op: LogicalOp,
        /// Operands from left to right.
        operands: Vec<SpansetExpr>,
    },
    /// `left op right`
    Structural {
        /// Operator.
        op: StructuralOp,
        /// Left operand.
        left: Box<SpansetExpr>,
        /// Right operand.
        right: Box<SpansetExpr>,
    },
    /// A parenthesised pipeline as operand.
    Pipeline(Pipeline),
}

/// Stages, each fed with the spansets of the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// At least one.
    pub stages: Vec<Stage>,
}

impl Pipeline {
    /// Where there are several filters, conditions look only at the first event (link) that has their field: Tempo fetches the values of all
    /// events of a span then, and finds the first.
    pub(super) fn settle_elements(&mut self) {
        let mut conditions = Vec::new();
        self.conditions_mut(&mut conditions);
        if conditions.len() > 1 {
            conditions.into_iter().for_each(Expr::read_first);
        }
    }

    /// Whether all its filters are constantly false.
    pub(super) fn matches_nothing(&self) -> bool {
        self.stages.iter().all(|stage| matches!(stage, Stage::Spansets(expr) if expr.is_false()))
    }

    /// The conditions of all filters, from left to right.
    pub(crate) fn conditions(&self) -> Vec<&Expr> {
        let mut found = Vec::new();
        self.collect_conditions(&mut found);
        found
    }

    fn collect_conditions<'a>(&'a self, found: &mut Vec<&'a Expr>) {
        for stage in &self.stages {
            if let Stage::Spansets(expr) = stage {
                expr.collect_conditions(found);
            }
        }
    }

    fn conditions_mut<'a>(&'a mut self, found: &mut Vec<&'a mut Expr>) {
        for stage in &mut self.stages {
            if let Stage::Spansets(expr) = stage {
                expr.conditions_mut(found);
            }
        }
    }
}

impl SpansetExpr {
    fn is_false(&self) -> bool {
        match self {
            Self::Filter(condition) => condition.node == Node::Literal(Value::Bool(false)),
            Self::Logical { operands, .. } => operands.iter().all(Self::is_false),
            Self::Structural { left, right, .. } => left.is_false() && right.is_false(),
            Self::Pipeline(pipeline) => pipeline.matches_nothing(),
        }
    }

    fn collect_conditions<'a>(&'a self, found: &mut Vec<&'a Expr>) {
        match self {
            Self::Filter(condition) => found.push(condition),
            Self::Logical { operands, .. } => operands.iter().for_each(|operand| operand.collect_conditions(found)),
            Self::Structural { left, right, .. } => {
                left.collect_conditions(found);
                right.collect_conditions(found);
            }
            Self::Pipeline(pipeline) => pipeline.collect_conditions(found),
        }
    }

    fn conditions_mut<'a>(&'a mut self, found: &mut Vec<&'a mut Expr>) {
        match self {
            Self::Filter(condition) => found.push(condition),
            Self::Logical { operands, .. } => operands.iter_mut().for_each(|operand| operand.conditions_mut(found)),
            Self::Structural { left, right, .. } => {
                left.conditions_mut(found);
                right.conditions_mut(found);
            }
            Self::Pipeline(pipeline) => pipeline.conditions_mut(found),
        }
    }
}

/// One stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Keeps spans.
    Spansets(SpansetExpr),
    /// Keeps spansets.
    Scalar(ScalarFilter),
    /// `by(expr)`
    By(Expr),
    /// `coalesce()`
    Coalesce,
    /// `select(field, …)`
    Select(Vec<Located<Field>>),
}

/// `left cmp right`
#[derive(Clone, Debug)]
pub struct ScalarFilter {
    /// Where the comparison stands.
    pub at: Position,
    /// Comparison.
    pub op: BinaryOp,
    /// Left operand.
    pub left: ScalarExpr,
    /// Right operand.
    pub right: ScalarExpr,
}

impl PartialEq for ScalarFilter {
    fn eq(&self, other: &Self) -> bool {
        (self.op, &self.left, &self.right) == (other.op, &other.left, &other.right)
    }
}

/// An expression over a spanset.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarExpr {
    /// A constant.
    Literal(Value),
    /// `count()`, `max(field)`, …
    Aggregate(Aggregate),
    /// `left op right`
    Binary {
        /// Where the operator stands.
        at: Position,
        /// Arithmetic operator.
        op: BinaryOp,
        /// Left operand.
        left: Box<ScalarExpr>,
        /// Right operand.
        right: Box<ScalarExpr>,
    },
    /// `(pipeline | aggregate)`
    Pipeline {
        /// The stages before the aggregate.
        pipeline: Pipeline,
        /// The aggregate.
        aggregate: Aggregate,
    },
}

/// An aggregate of a spanset.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// Where it begins.
    pub at: Position,
    /// Which one.
    pub kind: AggregateKind,
    /// Its argument; none for `count()`.
    pub argument: Option<Box<Expr>>,
}

impl PartialEq for Aggregate {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.argument) == (other.kind, &other.argument)
    }
}

/// Aggregate functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AggregateKind {
    /// `count()`
    Count,
    /// `min(e)`
    Min,
    /// `max(e)`
    Max,
    /// `avg(e)`
    Avg,
    /// `sum(e)`
    Sum,
}

/// The metrics part of a query.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where the function begins.
    pub at: Position,
    /// The function.
    pub function: MetricsFunction,
    /// Labels.
    pub by: Vec<Field>,
    /// What is done to the finished series, in order.
    pub second: Vec<Located<SecondStage>>,
}

impl PartialEq for Metrics {
    fn eq(&self, other: &Self) -> bool {
        (&self.function, &self.by, &self.second) == (&other.function, &other.by, &other.second)
    }
}

/// Metrics functions.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricsFunction {
    /// `rate()`
    Rate,
    /// `count_over_time()`
    CountOverTime,
    /// `min_over_time(field)`
    MinOverTime(Field),
    /// `max_over_time(field)`
    MaxOverTime(Field),
    /// `avg_over_time(field)`
    AvgOverTime(Field),
    /// `sum_over_time(field)`
    SumOverTime(Field),
    /// `histogram_over_time(field)`
    HistogramOverTime(Field),
    /// `quantile_over_time(field, q, …)`
    QuantileOverTime(Field, Vec<f64>),
    /// `compare({selection}, topN, start, end)`
    Compare {
        /// Condition of the selection.
        selection: Box<Expr>,
        /// Values per attribute.
        top_n: i64,
        /// Start of the window, Unix nanoseconds; 0 without window.
        start_ns: i64,
        /// End of the window.
        end_ns: i64,
    },
}

impl MetricsFunction {
    /// The name of the function.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::CountOverTime => "count_over_time",
            Self::MinOverTime(_) => "min_over_time",
            Self::MaxOverTime(_) => "max_over_time",
            Self::AvgOverTime(_) => "avg_over_time",
            Self::SumOverTime(_) => "sum_over_time",
            Self::HistogramOverTime(_) => "histogram_over_time",
            Self::QuantileOverTime(..) => "quantile_over_time",
            Self::Compare { .. } => "compare",
        }
    }

    /// The field that is aggregated.
    pub fn argument(&self) -> Option<&Field> {
        match self {
            Self::Rate | Self::CountOverTime | Self::Compare { .. } => None,
            Self::MinOverTime(field)
            | Self::MaxOverTime(field)
            | Self::AvgOverTime(field)
            | Self::SumOverTime(field)
            | Self::HistogramOverTime(field)
            | Self::QuantileOverTime(field, _) => Some(field),
        }
    }
}

/// What is done to finished series.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondStage {
    /// `topk(n)`
    TopK(u64),
    /// `bottomk(n)`
    BottomK(u64),
    /// Keeps samples; durations are in seconds.
    Filter {
        /// Comparison.
        op: BinaryOp,
        /// What samples are compared with.
        value: f64,
    },
}

/// `name=literal` in `with(…)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hint {
    /// Name.
    pub name: String,
    /// Value.
    pub value: Value,
}
