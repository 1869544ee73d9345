//! Constants: what an operator gives when its operands are literals.
//!
//! Used while the tree is built (an operation on literals is replaced by its result) and, for numbers, when a query runs. An operation that
//! would fail is left in the tree, so that it fails when the query runs.

use super::{
    ast::{BinaryOp, Expr, Field, Intrinsic, LogicalOp, Node, Position, UnaryOp},
    pattern::{Pattern, PatternBudget},
    scalar::{self, Scalar},
    types,
    value::Value,
};

/// `op operand`, folded.
pub(super) fn unary(at: Position, op: UnaryOp, operand: Expr) -> Expr {
    let folded = match (op, &operand.node) {
        (UnaryOp::Negate, Node::Literal(Value::Int(number))) => Some(Value::Int(number.wrapping_neg())),
        (UnaryOp::Negate, Node::Literal(Value::Float(number))) => Some(Value::Float(-number)),
        (UnaryOp::Negate, Node::Literal(Value::Duration(nanos))) => Some(Value::Duration(nanos.wrapping_neg())),
        (UnaryOp::Not, Node::Literal(Value::Bool(value))) => Some(Value::Bool(!value)),
        _ => None,
    };
    let node = folded.map_or_else(|| Node::Unary { op, operand: Box::new(operand) }, Node::Literal);
    Expr { at, node }
}

/// `left op right`, folded.
pub(super) fn binary(at: Position, op: BinaryOp, left: Expr, right: Expr, patterns: &mut PatternBudget) -> Expr {
    let (mut left, mut right) = (left, right);
    strip_trace_id(&left, &mut right);
    strip_trace_id(&right, &mut left);
    if let (BinaryOp::Regex | BinaryOp::NotRegex, Node::Literal(Value::String(text))) = (op, &right.node) {
        return matching(at, op == BinaryOp::NotRegex, left, Pattern::new(text, patterns));
    }
    if let (Node::Literal(a), Node::Literal(b)) = (&left.node, &right.node)
        && types::operands_fit(op, a.type_of(), b.type_of())
        && let Some(value) = constant(op, a, b)
    {
        return Expr { at, node: Node::Literal(value) };
    }
    Expr { at, node: Node::Binary { op, left: Box::new(left), right: Box::new(right) } }
}

/// Trace ids are compared without leading zeros.
fn strip_trace_id(field: &Expr, literal: &mut Expr) {
    if field.node == Node::Field(Field::Intrinsic(Intrinsic::TraceId))
        && let Node::Literal(Value::String(text)) = &mut literal.node
    {
        *text = text.trim_start_matches('0').to_owned();
    }
}

fn constant(op: BinaryOp, left: &Value, right: &Value) -> Option<Value> {
    let (left, right) = (Scalar::from(left), Scalar::from(right));
    if op.is_arithmetic() {
        scalar::arithmetic(op, left, right).ok().map(Scalar::to_value)
    } else {
        scalar::compare(op, left, right).ok().map(Value::Bool)
    }
}

fn matching(at: Position, negated: bool, subject: Expr, pattern: Pattern) -> Expr {
    if let Node::Literal(Value::String(text)) = &subject.node
        && pattern.error().is_none()
    {
        return Expr { at, node: Node::Literal(Value::Bool(pattern.is_match(text) != negated)) };
    }
    Expr { at, node: Node::Match { subject: Box::new(subject), pattern, negated } }
}

/// `left op right` for `&&` and `||`, folded, as part of a chain where there is one.
pub(super) fn logical(at: Position, op: LogicalOp, left: Expr, right: Expr) -> Expr {
    if let (Node::Literal(Value::Bool(a)), Node::Literal(Value::Bool(b))) = (&left.node, &right.node) {
        let value = match op {
            LogicalOp::And => *a && *b,
            LogicalOp::Or => *a || *b,
        };
        return Expr { at, node: Node::Literal(Value::Bool(value)) };
    }
    match left.node {
        Node::Logical { op: chained, mut operands } if chained == op => {
            operands.push(right);
            Expr { at: left.at, node: Node::Logical { op, operands } }
        }
        node => Expr { at, node: Node::Logical { op, operands: vec![Expr { at: left.at, node }, right] } },
    }
}

/// `operand = nil` or `operand != nil`, or `swapped`, folded. The string `nil` counts as absent, and comparing `nil` with itself is false.
pub(super) fn nil_test(at: Position, operand: Expr, negated: bool, swapped: bool) -> Expr {
    let node = match &operand.node {
        Node::Literal(Value::Nil) => Node::Literal(Value::Bool(false)),
        Node::Literal(Value::String(text)) if text == "nil" => Node::Literal(Value::Bool(!negated)),
        Node::Literal(_) => Node::Literal(Value::Bool(negated)),
        _ => Node::IsNil { operand: Box::new(operand), negated, swapped },
    };
    Expr { at, node }
}
