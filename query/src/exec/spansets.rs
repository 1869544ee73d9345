//! What a stage leaves: spans, spanset after spanset.
//!
//! ```text
//!  spans    1 3 4 │ 7 │ 9 11        numbers of spans in the batch, ascending within a spanset
//!  offsets  0       3   4     6
//!  traces   0       0   2           numbers of traces, ascending
//! ```
//!
//! No spanset is empty, and no span is in two of them.

use std::sync::Arc;

use super::{ExecError, mask::Mask};
use crate::{
    columns::{Batch, Vector},
    traceql::Value,
};

/// Spansets of the traces of a batch.
#[derive(Clone, Debug)]
pub struct Spansets {
    /// The spans.
    pub spans: Vec<u32>,
    /// Where each spanset begins in `spans`, and where the last one ends.
    pub offsets: Vec<u32>,
    /// The trace of each spanset.
    pub traces: Vec<u32>,
    /// What stages have said about the spansets, in the order of the stages.
    pub attributes: Vec<Attribute>,
    /// What each spanset was split off from: its trace, or the spanset that a parenthesised pipeline was given. Ascending.
    pub(super) origins: Vec<u32>,
}

/// Values of `by(…)` or of an aggregate: one per spanset.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// Canonical text.
    pub name: Arc<str>,
    /// The values.
    pub values: Arc<Vector>,
    /// Where in `values` that of each spanset stands.
    pub index: Vec<u32>,
}

impl Default for Spansets {
    fn default() -> Self {
        Self { spans: Vec::new(), offsets: vec![0], traces: Vec::new(), attributes: Vec::new(), origins: Vec::new() }
    }
}

impl Spansets {
    /// The spans of a mask, or all, as one spanset per trace.
    pub(super) fn of_traces(batch: &Batch, mask: Option<&[bool]>) -> Result<Self, ExecError> {
        let mut spansets = Self::default();
        for (trace, range) in (0..).zip(batch.trace_offsets()?.windows(2)) {
            match mask {
                Some(mask) => spansets.spans.extend((range[0]..range[1]).filter(|&span| mask[span as usize])),
                None => spansets.spans.extend(range[0]..range[1]),
            }
            spansets.end(trace, trace);
        }
        Ok(spansets)
    }

    /// Ends a spanset, if anything was put into it. Whether that was so.
    pub(super) fn end(&mut self, trace: u32, origin: u32) -> bool {
        let end = self.spans.len() as u32;
        let any = self.offsets.last().is_none_or(|&begin| begin < end);
        if any {
            self.offsets.push(end);
            self.traces.push(trace);
            self.origins.push(origin);
        }
        any
    }

    /// Number of spansets.
    pub fn len(&self) -> usize {
        self.traces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.traces.is_empty()
    }

    /// The spans of a spanset.
    ///
    /// # Panics
    /// There are not so many spansets.
    pub fn spans_of(&self, spanset: usize) -> &[u32] {
        &self.spans[self.offsets[spanset] as usize..self.offsets[spanset + 1] as usize]
    }

    /// The spans as a mask.
    pub(super) fn mask(&self, spans: usize) -> Mask {
        let mut mask = vec![false; spans];
        self.spans.iter().for_each(|&span| mask[span as usize] = true);
        mask
    }

    /// Only the spans of a mask; spansets that lose all go.
    pub(super) fn retain(self, mask: &[bool]) -> Self {
        let mut kept = Self { spans: Vec::with_capacity(self.spans.len()), ..Self::default() };
        let mut places = Vec::new();
        for spanset in 0..self.len() {
            kept.spans.extend(self.spans_of(spanset).iter().filter(|&&span| mask[span as usize]));
            if kept.end(self.traces[spanset], self.origins[spanset]) {
                places.push(spanset as u32);
            }
        }
        kept.attributes = self.attributes.into_iter().map(|attribute| attribute.take(&places)).collect();
        kept
    }

    /// Those spansets for which `keep` is true.
    pub(super) fn select(self, keep: &[bool]) -> Self {
        let mut kept = Self::default();
        let places: Vec<u32> = keep.iter().zip(0..).filter_map(|(keep, place)| keep.then_some(place)).collect();
        for &place in &places {
            let place = place as usize;
            kept.spans.extend_from_slice(self.spans_of(place));
            kept.end(self.traces[place], self.origins[place]);
        }
        kept.attributes = self.attributes.into_iter().map(|attribute| attribute.take(&places)).collect();
        kept
    }

    /// The same spansets, each the origin of what comes of it, without their attributes.
    pub(super) fn as_origins(&self) -> Self {
        Self { attributes: Vec::new(), origins: (0..self.len() as u32).collect(), ..self.clone() }
    }

    /// One spanset of all that have the same origin.
    pub(super) fn coalesce(self) -> Self {
        let mut united = Self { spans: Vec::with_capacity(self.spans.len()), ..Self::default() };
        let mut spanset = 0;
        while let Some(&origin) = self.origins.get(spanset) {
            let end = spanset + self.origins[spanset..].iter().take_while(|&&other| other == origin).count();
            let begin = united.spans.len();
            united.spans.extend_from_slice(&self.spans[self.offsets[spanset] as usize..self.offsets[end] as usize]);
            united.spans[begin..].sort_unstable();
            united.end(self.traces[spanset], origin);
            spanset = end;
        }
        united
    }
}

impl Attribute {
    /// The value of a spanset.
    ///
    /// # Panics
    /// There are not so many spansets.
    pub fn value(&self, spanset: usize) -> Value {
        self.values.value(self.index[spanset] as usize)
    }

    /// The attribute of other spansets, each of which inherits it from one.
    pub(super) fn take(self, places: &[u32]) -> Self {
        let index = places.iter().map(|&place| self.index[place as usize]).collect();
        Self { index, ..self }
    }
}
