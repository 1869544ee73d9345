//! Stages, and what may stand in parentheses around them.
//!
//! A parenthesis at the beginning of a stage may enclose four things, which only its inside tells apart: a spanset expression, a scalar
//! expression, a pipeline, and a pipeline ending in an aggregate. The parser reads the inside first and then looks what it got
//! ([`Operand`]). Operands joined by spanset operators are read as a flat list, because the first one decides what the others may be:
//!
//! ```text
//! {…}  or ({…} > {…})    every operand is a spanset expression
//! ({…} | …)              every operand stands in parentheses; the expression is the whole query
//! ```

use super::{
    super::{
        ast::{
            Aggregate, AggregateKind, BinaryOp, Expr, Located, LogicalOp, Node, Pipeline, Relation, ScalarExpr, ScalarFilter, SpansetExpr,
            Stage, StructuralOp, Variant,
        },
        error::Error,
        lexer::Token,
        value::Value,
    },
    Parser, STAGES_DEPTH,
};

/// The beginning of a query.
pub(super) enum First {
    /// A stage; others may follow.
    Stage(Stage),
    /// An expression of pipelines.
    Whole(SpansetExpr),
    /// A comparison of pipelines that end in aggregates.
    WholeScalar(ScalarFilter),
}

/// What a stage may begin with.
enum Operand {
    /// A filter or a spanset expression, and whether it stands in parentheses.
    Spansets(SpansetExpr, bool),
    /// A pipeline in parentheses.
    Pipeline(SpansetExpr),
    /// A scalar expression.
    Scalar(ScalarExpr),
    /// A pipeline ending in an aggregate, in parentheses, or arithmetic on such.
    ScalarPipeline(ScalarExpr),
}

/// A stage as far as it was read.
enum Read {
    First(First),
    /// A scalar expression that is not compared with anything.
    Bare(Operand),
}

#[derive(Clone, Copy)]
enum SpansetOp {
    Logical(LogicalOp),
    Structural(StructuralOp),
}

const EXPECTED_STAGE: &str = "\"{\", \"(\", an aggregate, by, coalesce or select";

impl Parser {
    pub(super) fn first_stage(&mut self) -> Result<First, Error> {
        if self.peek_word() == Some("coalesce") {
            return Err(self.unexpected("a stage other than coalesce()"));
        }
        match self.stage()? {
            Read::First(first) => Ok(first),
            Read::Bare(_) => Err(self.unexpected("a comparison")),
        }
    }

    pub(super) fn later_stage(&mut self) -> Result<Stage, Error> {
        let at = self.at();
        match self.stage()? {
            Read::First(First::Stage(stage)) => Ok(stage),
            Read::First(First::Whole(_) | First::WholeScalar(_)) => {
                Err(Error::parse(at, "unexpected pipeline in parentheses, expecting a stage"))
            }
            Read::Bare(_) => Err(self.unexpected("a comparison")),
        }
    }

    fn stage(&mut self) -> Result<Read, Error> {
        let stage = match self.peek_word() {
            Some("by") => {
                self.skip();
                self.expect("(")?;
                let key = self.expr()?;
                self.expect(")")?;
                Stage::By(key)
            }
            Some("coalesce") => {
                self.skip();
                self.expect("(")?;
                self.expect(")")?;
                Stage::Coalesce
            }
            Some("select") => {
                self.skip();
                Stage::Select(self.list(|parser| Ok(Located { at: parser.at(), item: parser.field()? }))?)
            }
            _ => return self.operands(),
        };
        Ok(Read::First(First::Stage(stage)))
    }

    fn operands(&mut self) -> Result<Read, Error> {
        match self.operand_of_stage()? {
            Operand::Spansets(first, _) => self.spanset_operands(first, false).map(|expr| Read::First(First::Stage(Stage::Spansets(expr)))),
            Operand::Pipeline(first) => self.spanset_operands(first, true).map(|expr| Read::First(First::Whole(expr))),
            scalar => self.scalar_filter(scalar),
        }
    }

    fn operand_of_stage(&mut self) -> Result<Operand, Error> {
        if self.is_next("{") {
            return Ok(Operand::Spansets(SpansetExpr::Filter(self.span_filter()?), false));
        }
        if self.take("(") {
            let operand = self.nested(STAGES_DEPTH, Self::parenthesised)?;
            self.expect(")")?;
            return Ok(operand);
        }
        if let Some(value) = self.take_signed_number() {
            return Ok(Operand::Scalar(ScalarExpr::Literal(value)));
        }
        match self.take_aggregate()? {
            Some(aggregate) => Ok(Operand::Scalar(ScalarExpr::Aggregate(aggregate))),
            None => Err(self.unexpected(EXPECTED_STAGE)),
        }
    }

    /// `{ … }`
    pub(super) fn span_filter(&mut self) -> Result<Expr, Error> {
        let at = self.at();
        self.expect("{")?;
        if self.take("}") {
            return Ok(Expr { at, node: Node::Literal(Value::Bool(true)) });
        }
        let condition = self.expr()?;
        self.expect("}")?;
        Ok(condition)
    }

    /// The inside of a parenthesis.
    fn parenthesised(&mut self) -> Result<Operand, Error> {
        if self.peek_word() == Some("coalesce") {
            return Err(self.unexpected("a stage other than coalesce()"));
        }
        let at = self.at();
        let first = match self.stage()? {
            Read::Bare(operand) => return Ok(operand),
            Read::First(First::Whole(expr)) => return Ok(Operand::Pipeline(expr)),
            Read::First(First::WholeScalar(_)) => return Err(Error::parse(at, "a comparison of pipelines cannot stand in parentheses")),
            Read::First(First::Stage(stage)) => stage,
        };
        let mut stages = vec![first];
        while self.take("|") {
            let at = self.at();
            match self.stage()? {
                Read::First(First::Stage(stage)) => stages.push(stage),
                Read::Bare(Operand::Scalar(ScalarExpr::Aggregate(aggregate))) if aggregate.at == at => {
                    return Ok(Operand::ScalarPipeline(ScalarExpr::Pipeline { pipeline: Pipeline { stages }, aggregate }));
                }
                Read::Bare(_) => return Err(self.unexpected("a comparison")),
                Read::First(_) => return Err(Error::parse(at, "unexpected pipeline in parentheses, expecting a stage")),
            }
        }
        Ok(match <[Stage; 1]>::try_from(stages) {
            Ok([Stage::Spansets(expr)]) => Operand::Spansets(expr, true),
            Ok([stage]) => Operand::Pipeline(SpansetExpr::Pipeline(Pipeline { stages: vec![stage] })),
            Err(stages) => Operand::Pipeline(SpansetExpr::Pipeline(Pipeline { stages })),
        })
    }

    /// The operators and operands after the first operand of a spanset expression, or of an expression of pipelines.
    fn spanset_operands(&mut self, first: SpansetExpr, pipelines: bool) -> Result<SpansetExpr, Error> {
        let mut operands = vec![first];
        let mut operators = Vec::new();
        while let Some(op) = spanset_operator(self.peek()) {
            self.skip();
            let at = self.at();
            operands.push(match (self.operand_of_stage()?, pipelines) {
                (Operand::Spansets(expr, _), false) | (Operand::Spansets(expr, true) | Operand::Pipeline(expr), true) => expr,
                (Operand::Spansets(..), true) => {
                    return Err(Error::parse(at, "unexpected \"{\", expecting \"(\": the first operand is a pipeline in parentheses"));
                }
                (Operand::Pipeline(_), false) => {
                    return Err(Error::parse(at, "unexpected pipeline in parentheses, expecting spansets as in the first operand"));
                }
                (Operand::Scalar(_) | Operand::ScalarPipeline(_), _) => {
                    return Err(Error::parse(at, "unexpected scalar expression, expecting \"{\" or \"(\""));
                }
            });
            operators.push(op);
        }
        self.group(operands, operators)
    }

    /// Groups a flat list: structural operators bind tighter than logical ones; both group to the left.
    fn group(&mut self, operands: Vec<SpansetExpr>, operators: Vec<SpansetOp>) -> Result<SpansetExpr, Error> {
        let mut operands = operands.into_iter();
        let mut result: Option<(SpansetExpr, LogicalOp)> = None;
        let Some(mut current) = operands.next() else {
            return Err(self.unexpected(EXPECTED_STAGE));
        };
        for (op, operand) in operators.into_iter().zip(operands) {
            match op {
                SpansetOp::Structural(op) => {
                    self.count_grouped()?;
                    current = SpansetExpr::Structural { op, left: Box::new(current), right: Box::new(operand) };
                }
                SpansetOp::Logical(op) => {
                    let left = match result.take() {
                        Some((left, pending)) => {
                            if pending != op {
                                self.count_grouped()?;
                            }
                            join(pending, left, current)
                        }
                        None => current,
                    };
                    result = Some((left, op));
                    current = operand;
                }
            }
        }
        Ok(match result {
            Some((left, op)) => join(op, left, current),
            None => current,
        })
    }

    fn take_aggregate(&mut self) -> Result<Option<Aggregate>, Error> {
        let at = self.at();
        let kind = match self.peek_word() {
            Some("count") => AggregateKind::Count,
            Some("min") => AggregateKind::Min,
            Some("max") => AggregateKind::Max,
            Some("avg") => AggregateKind::Avg,
            Some("sum") => AggregateKind::Sum,
            _ => return Ok(None),
        };
        self.skip();
        self.expect("(")?;
        let argument = if kind == AggregateKind::Count { None } else { Some(Box::new(self.expr()?)) };
        self.expect(")")?;
        Ok(Some(Aggregate { at, kind, argument }))
    }

    /// What follows the first operand of a scalar expression, up to and including the comparison.
    fn scalar_filter(&mut self, first: Operand) -> Result<Read, Error> {
        let left = self.scalar(first, 0)?;
        let at = self.at();
        let Some(op) = self.take_comparison() else {
            return Ok(Read::Bare(left));
        };
        match left {
            Operand::ScalarPipeline(left) => {
                let right = match self.take_literal() {
                    Some(value) => ScalarExpr::Literal(value),
                    None => {
                        let at = self.at();
                        let first = self.operand_of_stage()?;
                        match self.scalar(first, 0)? {
                            Operand::ScalarPipeline(right) => right,
                            _ => return Err(Error::parse(at, "expecting a literal or a pipeline ending in an aggregate")),
                        }
                    }
                };
                Ok(Read::First(First::WholeScalar(ScalarFilter { at, op, left, right })))
            }
            Operand::Scalar(left) => {
                let right_at = self.at();
                let first = self.operand_of_stage()?;
                match self.scalar(first, 0)? {
                    Operand::Scalar(right) => Ok(Read::First(First::Stage(Stage::Scalar(ScalarFilter { at, op, left, right })))),
                    _ => Err(Error::parse(right_at, "expecting a number, a duration or an aggregate")),
                }
            }
            Operand::Spansets(..) | Operand::Pipeline(_) => Err(Error::parse(at, "spansets cannot be compared")),
        }
    }

    /// Arithmetic on scalars, from an operand that was read.
    fn scalar(&mut self, first: Operand, lowest: u8) -> Result<Operand, Error> {
        let mut left = first;
        while let Some((op, level)) = arithmetic(self.peek()).filter(|(_, level)| *level >= lowest) {
            let at = self.at();
            self.skip();
            let right_at = self.at();
            let right = self.nested(STAGES_DEPTH, |parser| {
                let operand = parser.operand_of_stage()?;
                parser.scalar(operand, if op == BinaryOp::Power { level } else { level + 1 })
            })?;
            self.count_grouped()?;
            let join = |left, right| ScalarExpr::Binary { at, op, left: Box::new(left), right: Box::new(right) };
            left = match (left, right) {
                (Operand::Scalar(left), Operand::Scalar(right)) => Operand::Scalar(join(left, right)),
                (Operand::ScalarPipeline(left), Operand::ScalarPipeline(right)) => Operand::ScalarPipeline(join(left, right)),
                _ => return Err(Error::parse(right_at, "operands of arithmetic must both be scalars or both be pipelines in parentheses")),
            };
        }
        Ok(left)
    }
}

fn join(op: LogicalOp, left: SpansetExpr, right: SpansetExpr) -> SpansetExpr {
    match left {
        SpansetExpr::Logical { op: chained, mut operands } if chained == op => {
            operands.push(right);
            SpansetExpr::Logical { op, operands }
        }
        left => SpansetExpr::Logical { op, operands: vec![left, right] },
    }
}

fn arithmetic(token: &Token) -> Option<(BinaryOp, u8)> {
    let Token::Symbol(symbol) = token else {
        return None;
    };
    Some(match *symbol {
        "+" => (BinaryOp::Add, 1),
        "-" => (BinaryOp::Subtract, 1),
        "*" => (BinaryOp::Multiply, 2),
        "/" => (BinaryOp::Divide, 2),
        "%" => (BinaryOp::Modulo, 2),
        "^" => (BinaryOp::Power, 3),
        _ => return None,
    })
}

fn spanset_operator(token: &Token) -> Option<SpansetOp> {
    let Token::Symbol(symbol) = token else {
        return None;
    };
    let structural = |variant, relation| SpansetOp::Structural(StructuralOp { relation, variant });
    Some(match *symbol {
        "&&" => SpansetOp::Logical(LogicalOp::And),
        "||" => SpansetOp::Logical(LogicalOp::Or),
        ">" => structural(Variant::Plain, Relation::Child),
        ">>" => structural(Variant::Plain, Relation::Descendant),
        "<" => structural(Variant::Plain, Relation::Parent),
        "<<" => structural(Variant::Plain, Relation::Ancestor),
        "~" => structural(Variant::Plain, Relation::Sibling),
        "!>" => structural(Variant::Negated, Relation::Child),
        "!>>" => structural(Variant::Negated, Relation::Descendant),
        "!<" => structural(Variant::Negated, Relation::Parent),
        "!<<" => structural(Variant::Negated, Relation::Ancestor),
        "!~" => structural(Variant::Negated, Relation::Sibling),
        "&>" => structural(Variant::Union, Relation::Child),
        "&>>" => structural(Variant::Union, Relation::Descendant),
        "&<" => structural(Variant::Union, Relation::Parent),
        "&<<" => structural(Variant::Union, Relation::Ancestor),
        "&~" => structural(Variant::Union, Relation::Sibling),
        _ => return None,
    })
}
