//! Exemplars: a few spans that a series is made of, so that a point of a graph leads to a trace.
//!
//! A trace gives at most one, chosen by a hash among its spans that count. Traces have a priority, a hash of their id; small ones are kept. Per
//! group the range is divided into slices that keep two each, so that exemplars are spread over time, and all groups together keep as many as
//! were asked for. What is kept is therefore a function of the set of traces, and not of the order in which they were seen: every trace
//! that would be kept in the end is among the kept ones of each job that saw it. Groups that are not shown take part, too.

use std::collections::BTreeMap;

use storage::id::TraceId;

use super::{
    cells::Number,
    labels::{Group, LabelValue},
    request::MetricsRequest,
};

/// Exemplars of a slice.
pub(super) const PER_SLICE: usize = 2;

/// A span of a series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) group: Group,
    /// Start of the span, Unix nanoseconds.
    pub(super) time: u64,
    /// The value that was aggregated; none when spans are counted.
    pub(super) number: Option<Number>,
    /// Fields that the query looks at, by canonical text.
    pub(super) labels: Vec<(Box<str>, LabelValue)>,
}

/// The exemplars of all groups, by priority and trace.
#[derive(Clone, Debug, Default)]
pub(super) struct Exemplars {
    /// With the slice that each is in.
    kept: BTreeMap<(u64, TraceId), (u64, Exemplar)>,
}

/// The priority of a trace: the smaller the better.
#[inline]
pub(super) fn priority(id: TraceId) -> u64 {
    let [high, low] = halves(id);
    mix(high ^ mix(low))
}

/// Which of `spans` spans of a trace is taken.
pub(super) fn choice(id: TraceId, spans: usize) -> usize {
    let [high, low] = halves(id);
    (mix(low ^ mix(high)) % spans.max(1) as u64) as usize
}

fn halves(TraceId(bytes): TraceId) -> [u64; 2] {
    let number = u128::from_be_bytes(bytes);
    [(number >> 64) as u64, number as u64]
}

/// The finaliser of SplitMix64: every bit of the input changes half of the output.
#[inline]
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Exemplars {
    /// Traces of this priority or a larger one are not kept.
    #[inline]
    pub(super) fn threshold(&self, request: &MetricsRequest) -> u64 {
        match self.kept.last_key_value() {
            _ if request.exemplars() == 0 => 0,
            Some(((priority, _), _)) if self.kept.len() >= request.exemplars() => *priority,
            _ => u64::MAX,
        }
    }

    /// The exemplars in a fixed order, with their traces.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TraceId, &Exemplar)> {
        self.kept.iter().map(|((_, id), (_, exemplar))| (*id, exemplar))
    }

    /// Whether a span of the trace would be kept: not if its slice has better ones.
    pub(super) fn has_room(&self, request: &MetricsRequest, id: TraceId, group: &[LabelValue], time: u64) -> bool {
        let slice = slice(request, time);
        let better = self.kept.range(..(priority(id), id));
        better.filter(|(_, (other, exemplar))| *other == slice && *exemplar.group == *group).nth(PER_SLICE - 1).is_none()
    }

    /// Takes an exemplar in, if it is to be kept.
    pub(super) fn offer(&mut self, request: &MetricsRequest, id: TraceId, exemplar: Exemplar) {
        let key = (priority(id), id);
        // A trace may come in parts, from several jobs.
        if let Some((_, known)) = self.kept.get(&key)
            && (known.time, &known.group) <= (exemplar.time, &exemplar.group)
        {
            return;
        }
        let slice = slice(request, exemplar.time);
        let group = exemplar.group.clone();
        self.kept.insert(key, (slice, exemplar));
        let same = self.kept.iter().filter(|(_, (other, exemplar))| *other == slice && exemplar.group == group);
        let worst = same.map(|(key, _)| *key).nth(PER_SLICE);
        let worst = worst.or_else(|| (self.kept.len() > request.exemplars()).then(|| self.kept.last_key_value().map(|(key, _)| *key))?);
        if let Some(worst) = worst {
            self.kept.remove(&worst);
        }
    }

    pub(super) fn merge(&mut self, request: &MetricsRequest, other: &Self) {
        for ((_, id), (_, exemplar)) in &other.kept {
            self.offer(request, *id, exemplar.clone());
        }
    }
}

/// The slice of a time.
pub(super) fn slice(request: &MetricsRequest, time: u64) -> u64 {
    let slices = (request.exemplars() / PER_SLICE).max(1) as u64;
    let (start, end) = request.window().bounds();
    // Rounded up, so that there are no more slices than there should be.
    let length = (end - start).div_ceil(slices).max(1);
    time.saturating_sub(start + 1) / length
}
