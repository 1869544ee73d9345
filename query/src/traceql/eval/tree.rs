//! The tree of a trace, as nested-set numbers.
//!
//! ```text
//! a ─┬─ b ── d        left/right    a 1/8   b 2/5   d 3/4   c 6/7
//!    └─ c             parent        a -1    b 1     d 2     c 1
//! ```
//!
//! One counter runs along a depth-first walk and is noted on entering a span and on leaving it, so that a span lies below another exactly
//! when its interval lies inside the other's. Several roots are walked one after the other; children are walked in storage order.
//! A span that is not connected to a root has no place: all three numbers are 0, and so they are for all spans of a trace without root or
//! with an id that occurs more than twice.

use std::collections::HashMap;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::view::{SpanView, span_id};

/// The place of a span in the tree of its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) left: i64,
    pub(super) right: i64,
    /// Left number of the parent; -1 for a root.
    pub(super) parent: i64,
    /// Number of direct children; counted for unconnected spans too.
    pub(super) children: i64,
}

/// The places of all spans of a trace.
#[derive(Debug)]
pub(super) struct Tree {
    places: Vec<Place>,
}

/// Who comes next in a walk.
#[derive(Clone, Copy, Default)]
struct Links {
    parent: Option<usize>,
    first_child: Option<usize>,
    next_sibling: Option<usize>,
}

impl Tree {
    pub(super) fn new(spans: &[SpanView<'_>]) -> Self {
        let mut places = vec![Place::default(); spans.len()];
        if !spans.iter().any(SpanView::is_root) {
            return Self { places };
        }
        let Some(links) = link(spans, &mut places) else {
            return Self { places };
        };
        let mut counter = 0;
        for root in (0..spans.len()).filter(|span| spans[*span].is_root()) {
            number(root, &links, &mut places, &mut counter);
        }
        Self { places }
    }

    /// The place of a span.
    pub(super) fn place(&self, span: usize) -> Place {
        self.places[span]
    }
}

/// Finds the parents of all spans and counts their children; `None` when an id occurs more than twice.
fn link(spans: &[SpanView<'_>], places: &mut [Place]) -> Option<Vec<Links>> {
    let mut by_id: HashMap<u64, (usize, Option<usize>)> = HashMap::with_capacity(spans.len());
    for (index, view) in spans.iter().enumerate() {
        let mut thrice = false;
        let again = |holders: &mut (usize, Option<usize>)| thrice = holders.1.replace(index).is_some();
        by_id.entry(span_id(&view.span.span_id)).and_modify(again).or_insert((index, None));
        if thrice {
            return None;
        }
    }
    let mut links = vec![Links::default(); spans.len()];
    // Backwards, so that each child is put before the later ones.
    for (index, view) in spans.iter().enumerate().rev().filter(|(_, view)| !view.is_root()) {
        let holders = by_id.get(&span_id(&view.span.parent_span_id));
        if let Some(parent) = holders.and_then(|holders| parent_among(spans, *holders, view)) {
            links[index].parent = Some(parent);
            links[index].next_sibling = links[parent].first_child.replace(index);
            places[parent].children += 1;
        }
    }
    Some(links)
}

/// Which of the spans that have the parent's id is meant. Zipkin's client and server halves share one.
fn parent_among(spans: &[SpanView<'_>], holders: (usize, Option<usize>), child: &SpanView<'_>) -> Option<usize> {
    let (first, Some(second)) = holders else {
        return Some(holders.0);
    };
    let is_server = child.span.kind == SpanKind::Server as i32;
    let wanted = if is_server { SpanKind::Client } else { SpanKind::Server };
    [first, second].into_iter().find(|holder| spans[*holder].span.kind == wanted as i32)
}

/// Walks what is below a root. Parents are unique and a root has none, so the walk ends.
fn number(root: usize, links: &[Links], places: &mut [Place], counter: &mut i64) {
    let mut entering = Some(root);
    let mut current = root;
    loop {
        if let Some(span) = entering {
            *counter += 1;
            places[span].left = *counter;
            places[span].parent = links[span].parent.map_or(-1, |parent| places[parent].left);
            current = span;
            entering = links[span].first_child;
            if entering.is_some() {
                continue;
            }
        }
        *counter += 1;
        places[current].right = *counter;
        entering = links[current].next_sibling;
        if entering.is_none() {
            match links[current].parent {
                Some(parent) => current = parent,
                None => return,
            }
        }
    }
}
