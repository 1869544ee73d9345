//! The condition of a tag query.

use std::sync::Arc;

use super::ast::{Expr, LogicalOp, Node};

/// A condition on spans, taken from the filter of a tag query.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    pub(super) condition: Expr,
    /// The query that it was taken from, or what was left of it.
    pub(super) text: Arc<str>,
}

/// As a query that [`crate::traceql::tag_filter`] reads as the same filter.
impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Filter {
    /// The condition.
    pub(crate) fn condition(&self) -> &Expr {
        &self.condition
    }

    /// How many alternatives the condition has when it is written as alternatives of conjunctions.
    pub fn condition_groups(&self) -> usize {
        alternatives(&self.condition)
    }
}

fn alternatives(condition: &Expr) -> usize {
    match &condition.node {
        Node::Logical { op: LogicalOp::Or, operands } => operands.iter().map(alternatives).fold(0, usize::saturating_add),
        Node::Logical { op: LogicalOp::And, operands } => operands.iter().map(alternatives).fold(1, usize::saturating_mul),
        _ => 1,
    }
}
