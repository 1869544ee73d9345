//! What a row group cannot have, told from its dictionaries before its spans are read.
//!
//! Everything here errs on one side: what is called impossible is so, whatever else is not known. A dictionary that is not there says nothing.

use std::collections::BTreeSet;

use storage::block::{
    chunks::{Dictionaries, OwnScope},
    column::Strings,
};

use super::block::{AttributeLeaves, Leaves, ValueLeaves};
use crate::traceql::{
    Field, Intrinsic, Pipeline, Scope, Stage, Value,
    ast::{BinaryOp, Expr, LogicalOp, Node, SpansetExpr, Variant},
    pattern::Pattern,
    scalar::{flip, satisfies},
};

/// What is known of a row group.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) leaves: &'a Leaves,
    pub(super) dictionaries: &'a Dictionaries,
}

/// A condition on strings.
enum Test<'q> {
    Compare(BinaryOp, &'q str),
    Match(&'q Pattern, bool),
    /// Any string, and any other value.
    Any,
}

impl Test<'_> {
    fn holds(&self, string: &[u8]) -> bool {
        match self {
            // What is not UTF-8 reads differently.
            Self::Compare(op, text) if string.is_ascii() => satisfies(*op, Some(string.cmp(text.as_bytes()))),
            Self::Compare(op, text) => satisfies(*op, Some(String::from_utf8_lossy(string).as_ref().cmp(*text))),
            Self::Match(pattern, negated) => pattern.is_match(&String::from_utf8_lossy(string)) != *negated,
            Self::Any => true,
        }
    }
}

/// Whether a pipeline may leave something.
pub(super) fn may_leave(pipeline: &Pipeline, facts: &Facts<'_>) -> bool {
    pipeline.stages.iter().all(|stage| match stage {
        Stage::Spansets(expr) => spansets_may_be(expr, facts),
        _ => true,
    })
}

fn spansets_may_be(expr: &SpansetExpr, facts: &Facts<'_>) -> bool {
    match expr {
        SpansetExpr::Filter(condition) => may_hold(condition, facts),
        SpansetExpr::Logical { op: LogicalOp::And, operands } => operands.iter().all(|operand| spansets_may_be(operand, facts)),
        SpansetExpr::Logical { op: LogicalOp::Or, operands } => operands.iter().any(|operand| spansets_may_be(operand, facts)),
        SpansetExpr::Structural { op, left, right } => {
            let anchors = op.variant == Variant::Negated || spansets_may_be(left, facts);
            anchors && spansets_may_be(right, facts)
        }
        SpansetExpr::Pipeline(pipeline) => may_leave(pipeline, facts),
    }
}

/// Whether a condition may hold for some span.
pub(super) fn may_hold(condition: &Expr, facts: &Facts<'_>) -> bool {
    match &condition.node {
        Node::Literal(value) => *value == Value::Bool(true),
        Node::Field(field) => facts.may_have(field, &Test::Any),
        Node::Logical { op: LogicalOp::And, operands } => operands.iter().all(|operand| may_hold(operand, facts)),
        Node::Logical { op: LogicalOp::Or, operands } => operands.iter().any(|operand| may_hold(operand, facts)),
        Node::Binary { op, left, right } if !op.is_arithmetic() => match (&left.node, &right.node) {
            (Node::Field(field), Node::Literal(literal)) => facts.may_have(field, &test_of(*op, literal)),
            (Node::Literal(literal), Node::Field(field)) => facts.may_have(field, &test_of(flip(*op), literal)),
            _ => true,
        },
        Node::IsNil { operand, negated: true, .. } => match &operand.node {
            Node::Field(field) => facts.may_have(field, &Test::Any),
            _ => true,
        },
        Node::Match { subject, pattern, negated } => match &subject.node {
            Node::Field(field) => facts.may_have(field, &Test::Match(pattern, *negated)),
            _ => true,
        },
        _ => true,
    }
}

fn test_of(op: BinaryOp, literal: &Value) -> Test<'_> {
    match literal {
        Value::String(text) => Test::Compare(op, text),
        _ => Test::Any,
    }
}

impl Facts<'_> {
    fn may_have(&self, field: &Field, test: &Test<'_>) -> bool {
        match field {
            Field::Attribute { parent: true, .. } => false,
            Field::Attribute { scope: Scope::Any, name, .. } => {
                self.may_have_attribute(Scope::Span, name, test) || self.may_have_attribute(Scope::Resource, name, test)
            }
            Field::Attribute { scope, name, .. } => self.may_have_attribute(*scope, name, test),
            Field::Intrinsic(intrinsic) => match text_leaf(self.leaves, *intrinsic) {
                Some(leaf) => self.may_have_string(leaf, test),
                None => true,
            },
        }
    }

    fn may_have_attribute(&self, scope: Scope, name: &str, test: &Test<'_>) -> bool {
        let generic = match self.leaves.generic(scope) {
            Some(leaves) => self.may_have_key(leaves, name) && self.values_may_be(leaves, test),
            // Links as messages; scopes whose attributes the version does not keep.
            None => scope == Scope::Link,
        };
        let mut own = own_scope(scope).into_iter().flat_map(|own| self.leaves.own_of(own, name));
        generic || own.any(|column| self.may_have_string(column.leaf, test))
    }

    /// Whether a list of attributes may have a key.
    pub(super) fn may_have_key(&self, leaves: &AttributeLeaves, name: &str) -> bool {
        self.dictionaries.get(&leaves.key).is_none_or(|keys| contains(keys, name))
    }

    fn values_may_be(&self, leaves: &AttributeLeaves, test: &Test<'_>) -> bool {
        match leaves.values {
            // Arrays are elsewhere.
            ValueLeaves::Typed { arrays: Some(_), .. } | ValueLeaves::Message(_) => true,
            ValueLeaves::Typed { texts, .. } => self.may_have_string(texts, test),
        }
    }

    fn may_have_string(&self, leaf: usize, test: &Test<'_>) -> bool {
        matches!(test, Test::Any) || self.dictionaries.get(&leaf).is_none_or(|strings| strings.iter().any(|string| test.holds(string)))
    }
}

fn contains(strings: &Strings, name: &str) -> bool {
    let odd = name.contains('\u{fffd}');
    strings.iter().any(|string| string == name.as_bytes() || odd && String::from_utf8_lossy(string) == name)
}

fn own_scope(scope: Scope) -> Option<OwnScope> {
    match scope {
        Scope::Resource => Some(OwnScope::Resource),
        Scope::Span => Some(OwnScope::Span),
        Scope::Event => Some(OwnScope::Event),
        _ => None,
    }
}

/// The leaf of an intrinsic whose dictionary says what it can be.
fn text_leaf(leaves: &Leaves, intrinsic: Intrinsic) -> Option<usize> {
    Some(match intrinsic {
        Intrinsic::Name => leaves.name,
        Intrinsic::RootName => leaves.root_name,
        Intrinsic::RootServiceName => leaves.root_service,
        Intrinsic::InstrumentationName => leaves.scope_name,
        Intrinsic::InstrumentationVersion => leaves.scope_version,
        Intrinsic::EventName => leaves.event_name,
        _ => return None,
    })
}

/// The leaves whose dictionaries may say that a pipeline leaves nothing.
pub(super) fn telling(pipeline: &Pipeline, leaves: &Leaves, telling: &mut BTreeSet<usize>) {
    for stage in &pipeline.stages {
        if let Stage::Spansets(expr) = stage {
            telling_spansets(expr, leaves, telling);
        }
    }
}

fn telling_spansets(expr: &SpansetExpr, leaves: &Leaves, found: &mut BTreeSet<usize>) {
    match expr {
        SpansetExpr::Filter(condition) => telling_condition(condition, leaves, found),
        SpansetExpr::Logical { operands, .. } => operands.iter().for_each(|operand| telling_spansets(operand, leaves, found)),
        SpansetExpr::Structural { left, right, .. } => {
            telling_spansets(left, leaves, found);
            telling_spansets(right, leaves, found);
        }
        SpansetExpr::Pipeline(pipeline) => telling(pipeline, leaves, found),
    }
}

/// The leaves whose dictionaries may say that a condition never holds.
pub(super) fn telling_condition(condition: &Expr, leaves: &Leaves, found: &mut BTreeSet<usize>) {
    match &condition.node {
        Node::Logical { operands, .. } => operands.iter().for_each(|operand| telling_condition(operand, leaves, found)),
        Node::Binary { left, right, .. } => match (&left.node, &right.node) {
            (Node::Field(field), Node::Literal(Value::String(_))) | (Node::Literal(Value::String(_)), Node::Field(field)) => {
                telling_field(field, leaves, found);
            }
            _ => {}
        },
        Node::Match { subject, .. } => {
            if let Node::Field(field) = &subject.node {
                telling_field(field, leaves, found);
            }
        }
        _ => {}
    }
}

fn telling_field(field: &Field, leaves: &Leaves, found: &mut BTreeSet<usize>) {
    let mut attribute = |scope: Scope, name: &str| {
        if let Some(AttributeLeaves { values: ValueLeaves::Typed { texts, arrays: None, .. }, .. }) = leaves.generic(scope) {
            found.insert(*texts);
        }
        found.extend(own_scope(scope).into_iter().flat_map(|own| leaves.own_of(own, name)).map(|column| column.leaf));
    };
    match field {
        Field::Attribute { scope: Scope::Any, name, .. } => {
            attribute(Scope::Span, name);
            attribute(Scope::Resource, name);
        }
        Field::Attribute { scope, name, .. } => attribute(*scope, name),
        Field::Intrinsic(intrinsic) => found.extend(text_leaf(leaves, *intrinsic)),
    }
}
