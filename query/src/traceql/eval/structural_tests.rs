//! Structural operators against the plain reading of their definition: all pairs of spans, and parents looked up instead of numbers.

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use storage::block::Trace;

use super::{
    super::ast::{Relation, StructuralOp, Variant},
    structural::apply,
    tree::Place,
    view::TraceView,
};

/// A span with an id from 1 and the id of its parent; 0 for a root.
fn trace(parents: &[u8]) -> Trace {
    let span = |(index, parent): (usize, &u8)| Span {
        span_id: vec![0, 0, 0, 0, 0, 0, 0, index as u8 + 1],
        parent_span_id: if *parent == 0 { Vec::new() } else { vec![0, 0, 0, 0, 0, 0, 0, *parent] },
        ..Default::default()
    };
    let spans = parents.iter().enumerate().map(span).collect();
    let resource_spans = ResourceSpans { scope_spans: vec![ScopeSpans { spans, ..Default::default() }], ..Default::default() };
    Trace { resource_spans: vec![resource_spans], ..Default::default() }
}

/// The spans above a span, nearest first; `None` when they do not lead to a root.
fn ancestors(parents: &[u8], span: usize) -> Option<Vec<usize>> {
    let mut above = Vec::new();
    let mut current = span;
    while parents[current] != 0 {
        current = usize::from(parents[current]) - 1;
        if current >= parents.len() || above.len() > parents.len() {
            return None;
        }
        above.push(current);
    }
    Some(above)
}

/// Whether `span` has the relation to `anchor`: for [`Relation::Child`], whether it is a child of it.
fn related(relation: Relation, parents: &[u8], anchor: usize, span: usize) -> bool {
    let (Some(above_anchor), Some(above)) = (ancestors(parents, anchor), ancestors(parents, span)) else {
        return false;
    };
    match relation {
        Relation::Child => above.first() == Some(&anchor),
        Relation::Parent => above_anchor.first() == Some(&span),
        Relation::Descendant => above.contains(&anchor),
        Relation::Ancestor => above_anchor.contains(&span),
        Relation::Sibling => anchor != span && above.first() == above_anchor.first(),
    }
}

fn naive(op: StructuralOp, parents: &[u8], left: &[usize], right: &[usize]) -> Vec<usize> {
    let has_anchor = |span: &usize| left.iter().any(|anchor| related(op.relation, parents, *anchor, *span));
    let is_anchor = |anchor: &usize| right.iter().any(|span| related(op.relation, parents, *anchor, *span));
    match op.variant {
        Variant::Plain => right.iter().copied().filter(has_anchor).collect(),
        Variant::Negated => right.iter().copied().filter(|span| !has_anchor(span)).collect(),
        Variant::Union => {
            let kept = |span: &usize| right.contains(span) && has_anchor(span) || left.contains(span) && is_anchor(span);
            (0..parents.len()).filter(kept).collect()
        }
    }
}

proptest! {
    #[test]
    fn operators_do_what_they_say(
        spans in prop::collection::vec((0..12_u8, any::<bool>(), any::<bool>()), 1..12),
        relation in prop::sample::select(vec![
            Relation::Child, Relation::Descendant, Relation::Parent, Relation::Ancestor, Relation::Sibling,
        ]),
        variant in prop::sample::select(vec![Variant::Plain, Variant::Negated, Variant::Union]),
    ) {
        let parents: Vec<u8> = spans.iter().map(|(parent, _, _)| *parent).collect();
        let chosen = |side: fn(&(u8, bool, bool)) -> bool| -> Vec<usize> { (0..spans.len()).filter(|index| side(&spans[*index])).collect() };
        let (left, right) = (chosen(|span| span.1), chosen(|span| span.2));
        let op = StructuralOp { relation, variant };
        let trace = trace(&parents);
        let view = TraceView::new(&trace);
        prop_assert_eq!(apply(op, view.tree(), &left, &right), naive(op, &parents, &left, &right));
    }
}

#[test]
fn numbering_goes_depth_first() {
    // 1 ─┬─ 2 ── 4       5 has an unknown parent, 6 is below it, 7 is a second root
    //    └─ 3
    let trace = trace(&[0, 1, 1, 2, 99, 5, 0]);
    let view = TraceView::new(&trace);
    let all: Vec<Place> = (0..view.len()).map(|span| view.tree().place(span)).collect();
    let places: Vec<(i64, i64, i64)> = all.iter().map(|place| (place.left, place.right, place.parent)).collect();
    assert_eq!(places, [(1, 8, -1), (2, 5, 1), (6, 7, 1), (3, 4, 2), (0, 0, 0), (0, 0, 0), (9, 10, -1)]);
    let children: Vec<i64> = all.iter().map(|place| place.children).collect();
    assert_eq!(children, [2, 1, 0, 0, 1, 0, 0]);
}

#[test]
fn a_trace_without_root_or_with_a_triple_id_is_not_numbered() {
    for trace in [trace(&[2, 1]), {
        let mut trace = trace(&[0, 1, 1]);
        for span in &mut trace.resource_spans[0].scope_spans[0].spans {
            span.span_id = vec![1; 8];
        }
        trace
    }] {
        let view = TraceView::new(&trace);
        assert!((0..view.len()).all(|span| view.tree().place(span) == Place::default()), "{:?}", view.tree());
    }
}

#[test]
fn a_trace_may_be_a_long_path() {
    let parents: Vec<u8> = (0..200).collect();
    let trace = trace(&parents);
    let view = TraceView::new(&trace);
    assert_eq!(view.tree().place(199).left, 200);
    assert_eq!(view.tree().place(0).right, 400);
}
