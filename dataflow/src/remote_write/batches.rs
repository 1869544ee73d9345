//! From one collection to the next: which series began, went on and ended, cut into batches.
//!
//! ```text
//!  last sent   a b c   e          zeros    d, e': 0 before the first value
//!  collection  a   c d e'         values   a, c, d, e': value    b: staleness marker      (e' is e, begun again)
//! ```
//!
//! The comparison is with what the endpoint was sent last and not with the collection before, so that neither the zero nor the marker of a
//! series is lost with a collection that was dropped. A zero stands before everything that the series is sent later and after everything that
//! a series of the same labels was sent before, be it by an earlier process.
//!
//! Values say when their series began where the protocol can (2.0). That is the same in all collections, so that a receiver that knows a
//! series sees no reset, and it may be before the zero or after it. Zeros and markers say nothing of the kind.
//!
//! Zeros and values are different batches, and zeros go first: so a request holds one sample of a series, and one that is sent again after
//! it was written (its answer was lost) repeats what is there instead of adding what is older.

use std::collections::HashSet;

use super::{
    protocol::{Batch, MetricType},
    queue::Collection,
    relabel::Relabel,
    view::{Show, View, cost},
};
use crate::generator::Accumulated;

/// The zero before the first value of a collection at `at`: the second before the minute began.
fn zero_of(at: i64) -> i64 {
    at - at.rem_euclid(60_000) - 1_000
}

/// Two collections, one sent after the other.
#[derive(Debug)]
pub(crate) struct Transition<'a> {
    last: &'a Collection,
    now: &'a Collection,
    /// Milliseconds: zeros of series that began are later.
    floor: i64,
    /// Series that ended and are not there again under the same labels.
    ended: HashSet<u64>,
    /// Series that ended and are there again under the same labels.
    replaced: HashSet<u64>,
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Zeros,
    Values,
}

impl<'a> Transition<'a> {
    /// `floor` is the time in milliseconds before which nothing of this process is; that of the last marker, if there was one.
    pub(crate) fn new(last: &'a Collection, now: &'a Collection, floor: i64) -> Self {
        let mut ended: HashSet<u64> = HashSet::new();
        let mut there = now.series.iter().peekable();
        for series in last.series.iter() {
            while there.next_if(|there| there.series < series.series).is_some() {}
            if there.peek().is_none_or(|there| there.series != series.series) {
                ended.insert(series.series.name_hash());
            }
        }
        let mut replaced = HashSet::new();
        if !ended.is_empty() {
            replaced.extend(now.series.iter().map(|series| series.series.name_hash()).filter(|name| ended.contains(name)));
            ended.retain(|name| !replaced.contains(name));
        }
        Self { last, now, floor, ended, replaced }
    }

    /// Whether there are staleness markers.
    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The batches of a phase, of at most so many samples unless a single series has more.
    pub(crate) fn batches(&'a self, phase: Phase, max_samples: usize, relabel: &'a Relabel) -> Batches<'a> {
        Batches { transition: self, phase, max_samples, relabel, at: (0, 0), carried: 0, dropped: 0 }
    }

    /// The time of the zero of a series that began, or began `again`; none if there is no room for it.
    fn zero(&self, again: bool) -> Option<i64> {
        let floor = if again { self.floor.max(self.last.at) } else { self.floor };
        Some(zero_of(self.now.at).max(floor.saturating_add(1))).filter(|zero| *zero < self.now.at)
    }
}

/// The batches of a phase, one after the other.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    transition: &'a Transition<'a>,
    phase: Phase,
    max_samples: usize,
    relabel: &'a Relabel,
    /// Places in both lists.
    at: (usize, usize),
    /// Samples of the batch that is being made.
    carried: usize,
    /// Samples that relabelling has dropped.
    pub(crate) dropped: usize,
}

impl Batches<'_> {
    fn add(&mut self, view: &View, series: &Accumulated, before: Option<&Accumulated>, show: Show, at: i64, batch: &mut Batch) {
        let from = batch.series.len();
        view.emit_all(series, before, show, at, batch);
        let began = if show == Show::Value { self.transition.now.began(series) } else { 0 };
        let counts = batch.families[from..].iter().map(|family| family.kind != MetricType::Gauge);
        batch.began.extend(counts.map(|counts| if counts { began } else { 0 }));
        let mut keep = from;
        for index in from..batch.series.len() {
            let samples = batch.series[index].samples.len() + batch.series[index].histograms.len();
            if self.relabel.apply(&mut batch.series[index].labels) {
                batch.series.swap(keep, index);
                batch.families.swap(keep, index);
                batch.began.swap(keep, index);
                keep += 1;
                self.carried += samples;
            } else {
                self.dropped += samples;
            }
        }
        batch.series.truncate(keep);
        batch.families.truncate(keep);
        batch.began.truncate(keep);
    }

    /// Adds what comes next; `None` if there is nothing left.
    fn step(&mut self, batch: &mut Batch) -> Option<()> {
        let transition = self.transition;
        let (from, to) = (transition.last, transition.now);
        let (last, now) = (from.series.get(self.at.0), to.series.get(self.at.1));
        let order = match (last, now) {
            (None, None) => return None,
            (Some(last), Some(now)) => last.series.cmp(&now.series),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
        };
        self.at.0 += usize::from(order.is_le());
        self.at.1 += usize::from(order.is_ge());
        match (last.filter(|_| order.is_le()), now.filter(|_| order.is_ge()), self.phase) {
            (last, Some(now), Phase::Zeros) => {
                let replaces = || !transition.replaced.is_empty() && transition.replaced.contains(&now.series.name_hash());
                let again = last.is_some() || replaces();
                // Whoever had it before the generation began has sent it, or may have.
                let is_taken_over = to.recovered.is_some_and(|tick| now.first <= tick);
                if !is_taken_over
                    && last.is_none_or(|last| last.first != now.first)
                    && let Some(zero) = transition.zero(again)
                {
                    self.add(&to.view, now, None, Show::Zero, zero, batch);
                }
            }
            (last, Some(now), Phase::Values) => self.add(&to.view, now, last.map(|last| &**last), Show::Value, to.at, batch),
            (Some(last), None, Phase::Values) if transition.ended.contains(&last.series.name_hash()) => {
                self.add(&from.view, last, None, Show::End, to.at, batch);
            }
            _ => {}
        }
        Some(())
    }

    /// How many samples come next at most.
    fn next_cost(&self) -> usize {
        let last = self.transition.last.series.get(self.at.0).map_or(0, |series| cost(series));
        last.max(self.transition.now.series.get(self.at.1).map_or(0, |series| cost(series)))
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.carried = 0;
        loop {
            if self.carried > 0 && self.carried + self.next_cost() > self.max_samples {
                return Some(batch);
            }
            if self.step(&mut batch).is_none() {
                return Some(batch).filter(|batch| !batch.series.is_empty());
            }
        }
    }
}
