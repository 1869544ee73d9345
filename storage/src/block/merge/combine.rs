//! Several rows of one trace become one (block-format.md §13.3), without looking at more than what the rules ask for.
//!
//! ```text
//!  Row 0   ResourceSpans ─ ScopeSpans ─ Span Span          what the row's leaves say: ids, kinds, times, and which resources
//!  Row 1   ResourceSpans ─ ScopeSpans ─ Span Span          and scopes are equal (a class per resource and scope)
//!                        ▼ combine
//!  Tree    resources, scopes and spans of the new row, each a (row, ordinal) of where it is copied from
//! ```
//!
//! An *ordinal* counts the elements of one level within a row: resources, scopes or spans, and with them the entries that stand for an
//! empty list, because those are what lies in a leaf. Nothing is decoded: the leaves copy the elements by ordinal.
//!
//! Differences from Tempo: the sort is stable, resources and scopes without spans are dropped from the first row too, and spans are told
//! apart by id and kind themselves, not by the exclusive or of both.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use crate::block::nested;

/// A span, as far as combining needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) ordinal: u32,
    pub(super) id: Vec<u8>,
    /// First eight bytes of the parent's id; none for a root.
    pub(super) parent: Option<u64>,
    pub(super) kind: i64,
    pub(super) start: u64,
    /// Whether its status is an error.
    pub(super) error: bool,
}

/// A scope with spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) ordinal: u32,
    /// Equal for equal scopes of all rows that are combined.
    pub(super) class: u32,
    pub(super) spans: Vec<Span>,
}

/// A resource with scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) ordinal: u32,
    /// Equal for equal resources of all rows that are combined.
    pub(super) class: u32,
    pub(super) service: Vec<u8>,
    pub(super) scopes: Vec<Scope>,
}

/// A row, without what is empty in it.
pub(super) type Row = Vec<Resource>;

/// An element of the new row: copied from this row and ordinal, with this repetition level at its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) row: u32,
    pub(super) ordinal: u32,
    pub(super) repetition: u8,
}

/// Spans and errors of one service of the new row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) service: Vec<u8>,
    pub(super) spans: i64,
    pub(super) errors: i64,
}

/// The new row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) resources: Vec<Element>,
    pub(super) scopes: Vec<Element>,
    pub(super) spans: Vec<Element>,
    /// Spans of each of `scopes`.
    pub(super) spans_of_scopes: Vec<i64>,
    /// What the nested set numbers are made of, for each of `spans`.
    pub(super) nodes: Vec<nested::Node>,
    /// Sorted by service.
    pub(super) stats: Vec<Stats>,
    /// Spans that were dropped because they were there.
    pub(super) dropped: u64,
}

/// A scope of the new row on its way.
struct Group<'a> {
    row: u32,
    resource: &'a Resource,
    scopes: Vec<Part<'a>>,
}

struct Part<'a> {
    row: u32,
    scope: &'a Scope,
    spans: Vec<(u32, &'a Span)>,
}

impl Group<'_> {
    fn first(&self) -> Option<(u64, &[u8])> {
        self.scopes.first().and_then(Part::first)
    }
}

impl Part<'_> {
    fn first(&self) -> Option<(u64, &[u8])> {
        self.spans.first().map(|(_, span)| (span.start, span.id.as_slice()))
    }
}

/// Identity of a span: the first eight bytes of its id, and its kind, of which unknown ones count as the first.
fn token(span: &Span) -> (u64, i64) {
    (nested::key(&span.id), if (0..8).contains(&span.kind) { span.kind } else { 0 })
}

/// Combines the rows of one trace. `rebatch` says whether equal resources and scopes become one (vParquet4 and later).
pub(super) fn combine(rows: &[Row], rebatch: bool) -> Tree {
    let mut seen: HashSet<(u64, i64)> = HashSet::new();
    let mut dropped = 0;
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let (first, last) = (number == 0, number + 1 == rows.len());
        let number = number as u32;
        for resource in row {
            let mut group = Group { row: number, resource, scopes: Vec::with_capacity(resource.scopes.len()) };
            for scope in &resource.scopes {
                let mut part = Part { row: number, scope, spans: Vec::with_capacity(scope.spans.len()) };
                for span in &scope.spans {
                    // Repeated spans within the first and within the last row are kept, as they are in a row that meets no other.
                    let known = if last && !first { seen.contains(&token(span)) } else { !seen.insert(token(span)) && !first };
                    if known {
                        dropped += 1;
                    } else {
                        part.spans.push((number, span));
                    }
                }
                if !part.spans.is_empty() {
                    group.scopes.push(part);
                }
            }
            if !group.scopes.is_empty() {
                groups.push(group);
            }
        }
    }
    for group in &mut groups {
        for part in &mut group.scopes {
            part.spans.sort_by(|(_, a), (_, b)| (a.start, &a.id).cmp(&(b.start, &b.id)));
        }
        group.scopes.sort_by(|a, b| a.first().cmp(&b.first()));
    }
    groups.sort_by(|a, b| a.first().cmp(&b.first()));
    if rebatch {
        groups = join(groups);
    }
    let mut tree = write(&groups);
    tree.dropped = dropped;
    tree
}

/// Appends the scopes of equal resources to the first of them, then, within resources of several scopes, the spans of equal scopes to the
/// first of them (block-format.md §8.6).
fn join(groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let mut place: HashMap<u32, usize> = HashMap::new();
    let mut joined: Vec<Group<'_>> = Vec::with_capacity(groups.len());
    for group in groups {
        match place.get(&group.resource.class) {
            Some(&at) => joined[at].scopes.extend(group.scopes),
            None => {
                place.insert(group.resource.class, joined.len());
                joined.push(group);
            }
        }
    }
    for group in &mut joined {
        let mut place: HashMap<u32, usize> = HashMap::new();
        let mut scopes: Vec<Part<'_>> = Vec::with_capacity(group.scopes.len());
        for part in group.scopes.drain(..) {
            match place.get(&part.scope.class) {
                Some(&at) => scopes[at].spans.extend(part.spans),
                None => {
                    place.insert(part.scope.class, scopes.len());
                    scopes.push(part);
                }
            }
        }
        group.scopes = scopes;
    }
    joined
}

fn write(groups: &[Group<'_>]) -> Tree {
    let mut tree = Tree::default();
    let mut place: HashMap<&[u8], usize> = HashMap::new();
    let mut repetition = 0;
    for group in groups {
        tree.resources.push(Element { row: group.row, ordinal: group.resource.ordinal, repetition });
        let service = group.resource.service.as_slice();
        let stats = *place.entry(service).or_insert_with(|| {
            tree.stats.push(Stats { service: service.to_vec(), spans: 0, errors: 0 });
            tree.stats.len() - 1
        });
        for part in &group.scopes {
            tree.scopes.push(Element { row: part.row, ordinal: part.scope.ordinal, repetition });
            tree.spans_of_scopes.push(part.spans.len() as i64);
            for &(row, span) in &part.spans {
                tree.spans.push(Element { row, ordinal: span.ordinal, repetition });
                tree.nodes.push(nested::Node { id: nested::key(&span.id), parent: span.parent, kind: span.kind as i32 });
                tree.stats[stats].spans += 1;
                tree.stats[stats].errors += i64::from(span.error);
                repetition = 3;
            }
            repetition = 2;
        }
        repetition = 1;
    }
    tree.stats.sort_by(|a, b| a.service.cmp(&b.service));
    tree
}

/// A scope that has spans: its ordinal and theirs.
type ScopeOutline = (u32, Range<u32>);

/// The resources of a row that have spans, by ordinal, with their scopes, as the levels of the span id leaf show them: repetition and
/// definition of every entry.
pub(super) fn outline(entries: impl Iterator<Item = (u8, u8)>) -> Vec<(u32, Vec<ScopeOutline>)> {
    let mut resources: Vec<(u32, Vec<ScopeOutline>)> = Vec::new();
    let (mut resource, mut scope) = (0u32, 0u32);
    for (at, (repetition, definition)) in entries.enumerate() {
        let at = at as u32;
        if at > 0 {
            resource += u32::from(repetition <= 1);
            scope += u32::from(repetition <= 2);
        }
        if definition < 3 {
            continue;
        }
        if resources.last().is_none_or(|(known, _)| *known != resource) {
            resources.push((resource, Vec::new()));
        }
        let Some((_, scopes)) = resources.last_mut() else { continue };
        match scopes.last_mut() {
            Some((known, spans)) if *known == scope => spans.end = at + 1,
            _ => scopes.push((scope, at..at + 1)),
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(ordinal: u32, id: u8, kind: i64, start: u64) -> Span {
        Span { ordinal, id: vec![id; 8], kind, start, ..Span::default() }
    }

    #[test]
    fn outlines_count_what_is_empty() {
        // Two resources; the first without scopes, the second with an empty scope and one of two spans; then a third with one span.
        let entries = [(0, 1), (1, 2), (2, 3), (3, 3), (1, 3)];
        assert_eq!(outline(entries.into_iter()), [(1, vec![(2, 2..4)]), (2, vec![(3, 4..5)])]);
        assert_eq!(outline([(0, 0)].into_iter()), []);
        assert_eq!(outline([(0, 3), (3, 3), (2, 3)].into_iter()), [(0, vec![(0, 0..2), (1, 2..3)])]);
    }

    #[test]
    fn the_first_of_a_span_stays_and_groups_are_sorted_by_their_first_span() {
        let scope = |ordinal, class, spans| Scope { ordinal, class, spans };
        let resource = |ordinal, class, name: &str, scopes| Resource { ordinal, class, service: name.into(), scopes };
        let a = vec![resource(0, 1, "late", vec![scope(0, 1, vec![span(0, 9, 2, 90), span(1, 1, 2, 80)])])];
        let b = vec![
            resource(0, 2, "early", vec![scope(0, 1, vec![span(0, 3, 2, 10), span(1, 1, 3, 5)])]),
            resource(1, 1, "late", vec![scope(1, 2, vec![span(2, 1, 2, 1)]), scope(2, 1, vec![span(3, 4, 2, 70)])]),
        ];
        let tree = combine(&[a.clone(), b.clone()], true);
        let element = |row, ordinal, repetition| Element { row, ordinal, repetition };
        assert_eq!(tree.dropped, 1);
        // Resource "late" comes at 70 with the part from the second row, which is then joined by that of the first.
        assert_eq!(tree.resources, [element(1, 0, 0), element(1, 1, 1)]);
        assert_eq!(tree.scopes, [element(1, 0, 0), element(1, 2, 1)]);
        assert_eq!(tree.spans, [element(1, 1, 0), element(1, 0, 3), element(1, 3, 1), element(0, 1, 3), element(0, 0, 3)]);
        assert_eq!(tree.spans_of_scopes, [2, 3]);
        assert_eq!(
            tree.stats.iter().map(|stats| (stats.service.as_slice(), stats.spans)).collect::<Vec<_>>(),
            [(b"early".as_slice(), 2), (b"late".as_slice(), 3)]
        );
        let apart = combine(&[a, b], false);
        assert_eq!(apart.resources.len(), 3);
        assert_eq!(apart.spans.iter().map(|span| span.repetition).collect::<Vec<_>>(), [0, 3, 1, 1, 3]);
    }

    /// A span by row, ordinal, resource class, scope class and service.
    type Found = (u32, u32, u32, u32);

    fn naive(rows: &[Row]) -> Vec<Found> {
        let mut kept: Vec<(u32, Found, &Span)> = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let before = kept.len();
            for resource in row {
                for scope in &resource.scopes {
                    for span in &scope.spans {
                        let middle = number > 0 && number + 1 < rows.len();
                        let known = if middle { &kept[..] } else { &kept[..before] };
                        if !known.iter().any(|(_, _, other)| token(other) == token(span)) {
                            kept.push((number as u32, (number as u32, span.ordinal, resource.class, scope.class), span));
                        }
                    }
                }
            }
        }
        let mut found: Vec<_> = kept.into_iter().map(|(_, found, _)| found).collect();
        found.sort_unstable();
        found
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let span = (0u8..12, 1i64..4, 0u64..5).prop_map(|(id, kind, start)| span(0, id, kind, start));
        let scope = (0u32..3, prop::collection::vec(span, 1..4)).prop_map(|(class, spans)| Scope { ordinal: 0, class, spans });
        let resource = (0u32..3, prop::collection::vec(scope, 1..3)).prop_map(|(class, scopes)| Resource {
            ordinal: 0,
            class,
            service: vec![b'a' + class as u8],
            scopes,
        });
        prop::collection::vec(prop::collection::vec(resource, 1..4), 2..5).prop_map(|mut rows| {
            for row in &mut rows {
                let (mut scopes, mut spans) = (0, 0);
                for (ordinal, resource) in row.iter_mut().enumerate() {
                    resource.ordinal = ordinal as u32;
                    for scope in &mut resource.scopes {
                        scope.ordinal = scopes;
                        scopes += 1;
                        for span in &mut scope.spans {
                            span.ordinal = spans;
                            spans += 1;
                        }
                    }
                }
            }
            rows
        })
    }

    proptest! {
        #[test]
        fn no_span_is_lost_doubled_or_moved_to_another_resource(rows in rows(), rebatch: bool) {
            let tree = combine(&rows, rebatch);
            let class_of_resource = |element: &Element| rows[element.row as usize][element.ordinal as usize].class;
            let class_of_scope = |element: &Element| {
                rows[element.row as usize].iter().flat_map(|r| &r.scopes).find(|s| s.ordinal == element.ordinal).map(|s| s.class)
            };
            let (mut resource, mut scope) = (0, 0);
            let mut found = Vec::new();
            for (at, span) in tree.spans.iter().enumerate() {
                prop_assert_eq!(span.repetition == 0, at == 0);
                resource += usize::from(span.repetition == 1);
                scope += usize::from(span.repetition == 1 || span.repetition == 2);
                let class = class_of_scope(&tree.scopes[scope]).expect("a scope of the row");
                found.push((span.row, span.ordinal, class_of_resource(&tree.resources[resource]), class));
            }
            prop_assert_eq!((resource + 1, scope + 1), (tree.resources.len(), tree.scopes.len()));
            prop_assert_eq!(tree.spans_of_scopes.iter().sum::<i64>(), tree.spans.len() as i64);
            prop_assert_eq!(tree.stats.iter().map(|stats| stats.spans).sum::<i64>(), tree.spans.len() as i64);
            let all: usize = rows.iter().flatten().flat_map(|r| &r.scopes).map(|s| s.spans.len()).sum();
            prop_assert_eq!(tree.dropped as usize, all - tree.spans.len());
            found.sort_unstable();
            prop_assert_eq!(found, naive(&rows));
            if rebatch {
                let mut classes: Vec<_> = tree.resources.iter().map(class_of_resource).collect();
                classes.sort_unstable();
                prop_assert!(classes.windows(2).all(|two| two[0] != two[1]));
            }
        }
    }
}
