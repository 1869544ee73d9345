//! Relations of spans in the tree of a trace, over nested-set numbers.
//!
//! For every candidate: is there an anchor that has the relation with it? Answered from an index over the anchors, so that the cost is
//! that of sorting, not of all pairs. Number 0 marks a span without place; it is related to nothing.

use std::collections::{HashMap, HashSet};

use super::{
    super::ast::{Relation, StructuralOp, Variant},
    tree::{Place, Tree},
};

/// The spans that `left op right` leaves, in storage order. Operands are indices of spans.
pub(super) fn apply(op: StructuralOp, tree: &Tree, left: &[usize], right: &[usize]) -> Vec<usize> {
    let place = |span: &usize| tree.place(*span);
    let keep = |relation, anchors: &[usize], candidates: &[usize], wanted: bool| -> Vec<usize> {
        let index = Index::new(relation, anchors.iter().map(place));
        candidates.iter().copied().filter(|candidate| index.has_anchor_of(place(candidate)) == wanted).collect()
    };
    match op.variant {
        Variant::Plain => keep(op.relation, left, right, true),
        Variant::Negated => keep(op.relation, left, right, false),
        Variant::Union => {
            let mut both = keep(op.relation, left, right, true);
            both.extend(keep(inverse(op.relation), right, left, true));
            both.sort_unstable();
            both.dedup();
            both
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

/// Anchors, arranged for one relation.
enum Index {
    /// Left numbers of the anchors.
    Children(HashSet<i64>),
    /// Parent numbers of the anchors.
    Parents(HashSet<i64>),
    /// Left numbers in order, each with the largest right number so far.
    Descendants(Vec<(i64, i64)>),
    /// Left numbers in order.
    Ancestors(Vec<i64>),
    /// Left numbers of the anchors by their parent; two are enough.
    Siblings(HashMap<i64, (i64, Option<i64>)>),
}

impl Index {
    fn new(relation: Relation, anchors: impl Iterator<Item = Place>) -> Self {
        let anchors = anchors.filter(|place| place.left != 0);
        match relation {
            Relation::Child => Self::Children(anchors.map(|place| place.left).collect()),
            Relation::Parent => Self::Parents(anchors.map(|place| place.parent).collect()),
            Relation::Descendant => {
                let mut extents: Vec<(i64, i64)> = anchors.map(|place| (place.left, place.right)).collect();
                extents.sort_unstable();
                let mut furthest = 0;
                for (_, right) in &mut extents {
                    furthest = furthest.max(*right);
                    *right = furthest;
                }
                Self::Descendants(extents)
            }
            Relation::Ancestor => {
                let mut lefts: Vec<i64> = anchors.map(|place| place.left).collect();
                lefts.sort_unstable();
                Self::Ancestors(lefts)
            }
            Relation::Sibling => {
                let mut by_parent: HashMap<i64, (i64, Option<i64>)> = HashMap::new();
                for place in anchors {
                    by_parent.entry(place.parent).and_modify(|(_, second)| *second = Some(place.left)).or_insert((place.left, None));
                }
                Self::Siblings(by_parent)
            }
        }
    }

    fn has_anchor_of(&self, candidate: Place) -> bool {
        if candidate.left == 0 {
            return false;
        }
        match self {
            Self::Children(lefts) => lefts.contains(&candidate.parent),
            Self::Parents(parents) => parents.contains(&candidate.left),
            Self::Descendants(extents) => {
                let before = extents.partition_point(|(left, _)| *left < candidate.left);
                before > 0 && extents[before - 1].1 > candidate.right
            }
            Self::Ancestors(lefts) => {
                let after = lefts.partition_point(|left| *left <= candidate.left);
                lefts.get(after).is_some_and(|left| *left < candidate.right)
            }
            Self::Siblings(by_parent) => {
                by_parent.get(&candidate.parent).is_some_and(|(first, second)| second.is_some() || *first != candidate.left)
            }
        }
    }
}
