//! Relations of spans in the tree of a trace, over nested-set numbers.
//!
//! For every candidate: is there an anchor that has the relation with it? Answered from the anchors in order, so that the cost is that of
//! sorting, not of all pairs. Number 0 marks a span without place; it is related to nothing.

use std::sync::Arc;

use super::ExecError;
use crate::{
    columns::{Batch, Vector},
    traceql::{
        Field, Intrinsic,
        ast::{Relation, StructuralOp, Variant},
    },
};

/// Places of the spans of a batch.
#[derive(Debug)]
pub(super) struct Tree {
    left: Arc<Vector>,
    right: Arc<Vector>,
    parent: Arc<Vector>,
}

/// The place of a span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    left: i64,
    right: i64,
    parent: i64,
}

impl Tree {
    pub(super) fn new(batch: &Batch) -> Result<Self, ExecError> {
        let numbers = |intrinsic| batch.vector(&Field::Intrinsic(intrinsic));
        Ok(Self {
            left: numbers(Intrinsic::NestedSetLeft)?,
            right: numbers(Intrinsic::NestedSetRight)?,
            parent: numbers(Intrinsic::NestedSetParent)?,
        })
    }

    fn place(&self, span: u32) -> Place {
        let number = |vector: &Vector| match vector {
            Vector::Int(numbers) => numbers.get(span as usize).unwrap_or(0),
            _ => 0,
        };
        Place { left: number(&self.left), right: number(&self.right), parent: number(&self.parent) }
    }
}

/// Memory for one trace after the other.
#[derive(Debug, Default)]
pub(super) struct Relatives {
    index: Index,
}

impl Relatives {
    /// Calls `keep` with the spans that `left op right` leaves, in any order and maybe more than once. Operands are spans of one trace.
    pub(super) fn apply(&mut self, op: StructuralOp, tree: &Tree, left: &[u32], right: &[u32], mut keep: impl FnMut(u32)) {
        let mut related = |relation, anchors: &[u32], candidates: &[u32], wanted: bool| {
            self.index.fill(relation, anchors.iter().map(|&span| tree.place(span)));
            let found = candidates.iter().filter(|&&candidate| self.index.has_anchor_of(relation, tree.place(candidate)) == wanted);
            found.for_each(|&span| keep(span));
        };
        match op.variant {
            Variant::Plain => related(op.relation, left, right, true),
            Variant::Negated => related(op.relation, left, right, false),
            Variant::Union => {
                related(op.relation, left, right, true);
                related(inverse(op.relation), right, left, true);
            }
        }
    }
}

fn inverse(relation: Relation) -> Relation {
    match relation {
        Relation::Child => Relation::Parent,
        Relation::Parent => Relation::Child,
        Relation::Descendant => Relation::Ancestor,
        Relation::Ancestor => Relation::Descendant,
        Relation::Sibling => Relation::Sibling,
    }
}

/// Anchors, arranged for one relation: a number that is searched for, and another one.
///
/// | relation | sorted by | beside it |
/// |---|---|---|
/// | child | left | |
/// | parent | parent | |
/// | descendant | left | the largest right so far |
/// | ancestor | left | |
/// | sibling | parent | left |
#[derive(Debug, Default)]
struct Index(Vec<(i64, i64)>);

impl Index {
    fn fill(&mut self, relation: Relation, anchors: impl Iterator<Item = Place>) {
        let entry = |place: Place| match relation {
            Relation::Child | Relation::Ancestor => (place.left, 0),
            Relation::Parent => (place.parent, 0),
            Relation::Descendant => (place.left, place.right),
            Relation::Sibling => (place.parent, place.left),
        };
        self.0.clear();
        self.0.extend(anchors.filter(|place| place.left != 0).map(entry));
        self.0.sort_unstable();
        if relation == Relation::Descendant {
            let mut furthest = 0;
            for (_, right) in &mut self.0 {
                furthest = furthest.max(*right);
                *right = furthest;
            }
        }
    }

    fn has_anchor_of(&self, relation: Relation, candidate: Place) -> bool {
        let Self(anchors) = self;
        if candidate.left == 0 || anchors.is_empty() {
            return false;
        }
        let before = |number: i64| anchors.partition_point(|&(sorted, _)| sorted < number);
        let is_there = |number: i64| anchors.get(before(number)).is_some_and(|&(sorted, _)| sorted == number);
        match relation {
            Relation::Child => is_there(candidate.parent),
            Relation::Parent => is_there(candidate.left),
            Relation::Descendant => before(candidate.left).checked_sub(1).is_some_and(|at| anchors[at].1 > candidate.right),
            Relation::Ancestor => anchors.get(before(candidate.left + 1)).is_some_and(|&(left, _)| left < candidate.right),
            Relation::Sibling => {
                let mut siblings = anchors[before(candidate.parent)..].iter().take_while(|(parent, _)| *parent == candidate.parent);
                siblings.any(|&(_, left)| left != candidate.left)
            }
        }
    }
}
