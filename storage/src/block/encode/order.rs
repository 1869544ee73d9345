//! The order of a row: which spans a trace has, and how they are grouped into resources and scopes.
//!
//! ```text
//!  segments ─ collect ─► spans ─ canonical: sort, drop repeated ones ─► group by resource and scope ─► places in row order
//! ```
//!
//! Canonical order is (start, span id, kind, bytes of span, resource and scope): nothing depends on the order in which segments arrived,
//! and of spans with one identity the first in this order is kept. Resources and scopes come in the order of their first spans; equal ones
//! are one (block-format.md §8.6), in vParquet2 and 3 too, where it does no harm.

use std::collections::{HashMap, HashSet};

use super::{EncodeError, Encoder};
use crate::{block::TraceSegments, otlp::Slice};

/// How the spans of a trace are put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::block) enum Order {
    Canonical,
    /// As they were given, repeated ones too: nothing of a block that is written again is lost.
    Given,
    /// The same, and equal resources and scopes stay apart: what Tempo does with a trace of vParquet2 and 3 that it is given as a whole,
    /// for comparing with it.
    #[cfg(test)]
    Apart,
}

/// A span on its way into a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) start: u64,
    pub(super) span_id: u64,
    pub(super) kind: i32,
    pub(super) segment: u32,
    pub(super) resource: Slice,
    pub(super) scope: Slice,
    pub(super) bytes: &'a [u8],
}

/// What groups a span: the places of the first spans of its resource and of its scope, then its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) resource: u32,
    pub(super) scope: u32,
    pub(super) span: u32,
    pub(super) resource_entry: u32,
    pub(super) scope_entry: u32,
}

/// The spans of a trace, in order.
pub(super) fn collect(trace: &TraceSegments, order: Order) -> Result<Vec<Entry<'_>>, EncodeError> {
    let id = trace.trace_id;
    let mut entries = Vec::with_capacity(trace.segments.iter().map(|segment| segment.spans.len()).sum());
    for (index, segment) in trace.segments.iter().enumerate() {
        for span in &segment.spans {
            let bytes = span.span.of(&segment.body).ok_or(EncodeError::Outside(id))?;
            entries.push(Entry {
                start: span.start_ns,
                span_id: span.key.span_id,
                kind: span.key.kind,
                segment: index as u32,
                resource: span.resource,
                scope: span.scope,
                bytes,
            });
        }
    }
    if order == Order::Canonical {
        let message = |entry: &Entry<'_>, slice: Slice| trace.segments.get(entry.segment as usize).and_then(|s| slice.of(&s.body));
        entries.sort_unstable_by(|a, b| {
            (a.start, a.span_id, a.kind)
                .cmp(&(b.start, b.span_id, b.kind))
                .then_with(|| a.bytes.cmp(b.bytes))
                .then_with(|| message(a, a.resource).cmp(&message(b, b.resource)))
                .then_with(|| message(a, a.scope).cmp(&message(b, b.scope)))
        });
        drop_repeated(&mut entries);
    }
    Ok(entries)
}

impl Encoder {
    /// Fills `places` with the spans in row order.
    pub(super) fn group(&mut self, trace: &TraceSegments, entries: &[Entry<'_>], order: Order) -> Result<(), EncodeError> {
        let id = trace.trace_id;
        let wire = |source| EncodeError::Wire { id, source };
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        // Few resources and scopes take part in one trace: what was looked up last is found by looking at the spans before.
        let mut resources: Vec<((u32, Slice), u32)> = Vec::new();
        let mut scopes: Vec<((u32, Slice), u32)> = Vec::new();
        let mut first_resource: FirstSeen<u32> = FirstSeen::default();
        let mut first_scope: FirstSeen<(u32, u32)> = FirstSeen::default();
        for (span, entry) in entries.iter().enumerate() {
            let body = &trace.segments[entry.segment as usize].body;
            let resource_entry = match known(&resources, (entry.segment, entry.resource)) {
                Some(known) => known,
                None => {
                    let message = if entry.resource.is_empty() { &[] } else { entry.resource.of(body).ok_or(EncodeError::Outside(id))? };
                    let found = self.resource(message).map_err(wire)?;
                    resources.push(((entry.segment, entry.resource), found));
                    found
                }
            };
            let scope_entry = match known(&scopes, (entry.segment, entry.scope)) {
                Some(known) => known,
                None => {
                    let message = if entry.scope.is_empty() { &[] } else { entry.scope.of(body).ok_or(EncodeError::Outside(id))? };
                    let found = self.scope(message).map_err(wire)?;
                    scopes.push(((entry.segment, entry.scope), found));
                    found
                }
            };
            let span = span as u32;
            let (resource, scope) = match order {
                #[cfg(test)]
                Order::Apart => (entry.resource.start, entry.scope.start),
                _ => (self.resources[resource_entry as usize].class, self.scopes[scope_entry as usize].class),
            };
            let (resource, resource_entry) = first_resource.of(resource, (span, resource_entry));
            let (scope, scope_entry) = first_scope.of((resource, scope), (span, scope_entry));
            places.push(Place { resource, scope, span, resource_entry, scope_entry });
        }
        places.sort_unstable();
        self.places = places;
        Ok(())
    }
}

/// Keeps the first of the spans with one id and kind.
fn drop_repeated(entries: &mut Vec<Entry<'_>>) {
    if entries.len() <= 32 {
        let mut kept = 0;
        for at in 0..entries.len() {
            let entry = entries[at];
            if !entries[..kept].iter().any(|known| known.span_id == entry.span_id && known.kind == entry.kind) {
                entries[kept] = entry;
                kept += 1;
            }
        }
        entries.truncate(kept);
    } else {
        let mut seen = HashSet::with_capacity(entries.len());
        entries.retain(|entry| seen.insert((entry.span_id, entry.kind)));
    }
}

/// The newest matches are the likeliest; a trace of very many requests falls back to the caches by content.
fn known(known: &[((u32, Slice), u32)], wanted: (u32, Slice)) -> Option<u32> {
    known.iter().rev().take(16).find(|(place, _)| *place == wanted).map(|(_, found)| *found)
}

/// The first span (and what was found for it) of every class, for few or many classes.
#[derive(Debug)]
struct FirstSeen<K> {
    few: Vec<(K, (u32, u32))>,
    many: HashMap<K, (u32, u32)>,
}

impl<K> Default for FirstSeen<K> {
    fn default() -> Self {
        Self { few: Vec::new(), many: HashMap::new() }
    }
}

impl<K: Copy + Eq + std::hash::Hash> FirstSeen<K> {
    #[inline]
    fn of(&mut self, class: K, span: (u32, u32)) -> (u32, u32) {
        if let Some((_, first)) = self.few.iter().find(|(known, _)| *known == class) {
            return *first;
        }
        if self.few.len() < 32 {
            self.few.push((class, span));
            return span;
        }
        *self.many.entry(class).or_insert(span)
    }
}
