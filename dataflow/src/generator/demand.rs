//! Demand: how many series a tenant with a limit would have without it.
//!
//! ```text
//!  refused series ──► sketch of the current period, by cost ─┐
//!                     sketches of the periods before         ├─ union ──► Σ cost × distinct ──► gauge
//!  active series  ───────────────────────────────────────────┘
//! ```
//!
//! Who is refused is not remembered, there is no bound on how many they are: a [`Sketch`] (HyperLogLog with 1024 registers, 3 % off as a
//! rule) of each period tells how many different ones there were. Tempo estimates the same in the same way, and whoever sets limits
//! compares the two.

use std::collections::BTreeMap;

use super::series::SeriesId;

/// Periods in the time that makes a series stale; what was refused longer ago is no demand.
pub(crate) const PERIODS: u64 = 3;

const PRECISION: u32 = 10;
const REGISTERS: usize = 1 << PRECISION;

/// A set of hashes, as far as it takes to estimate its size.
#[derive(Clone, Debug)]
pub(crate) struct Sketch(Box<[u8; REGISTERS]>);

impl Default for Sketch {
    fn default() -> Self {
        Self(Box::new([0; REGISTERS]))
    }
}

impl Sketch {
    /// Adds an element by its hash.
    pub(crate) fn insert(&mut self, hash: u64) {
        let register = &mut self.0[(hash >> (u64::BITS - PRECISION)) as usize];
        // The bit ends the run of zeros where the hash does.
        let rank = ((hash << PRECISION) | 1 << (PRECISION - 1)).leading_zeros() as u8 + 1;
        *register = rank.max(*register);
    }

    fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(this, other)| *this = (*this).max(*other));
    }

    /// About how many different elements were added.
    pub(crate) fn estimate(&self) -> u64 {
        const SIZE: f64 = REGISTERS as f64;
        let alpha = 0.7213 / (1.0 + 1.079 / SIZE);
        let raw = alpha * SIZE * SIZE / self.0.iter().map(|rank| 2f64.powi(-i32::from(*rank))).sum::<f64>();
        let empty = self.0.iter().filter(|rank| **rank == 0).count();
        // Few elements are better counted by the registers that they leave empty.
        let estimate = if raw <= 2.5 * SIZE && empty > 0 { SIZE * (SIZE / empty as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

/// What was refused to one tenant in one period.
#[derive(Clone, Debug, Default)]
struct Refused {
    /// By the cost of the series.
    series: BTreeMap<u64, Sketch>,
    entities: Sketch,
}

/// What was refused to one tenant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    periods: BTreeMap<u64, Refused>,
}

impl Demand {
    /// A series of this cost and label set was refused.
    pub(crate) fn refuse(&mut self, period: u64, cost: u64, series: SeriesId, entity: u64) {
        let refused = self.periods.entry(period).or_default();
        refused.series.entry(cost).or_default().insert(hash(series));
        refused.entities.insert(spread(entity));
    }

    /// Forgets what is too long ago; whether anything is left.
    pub(crate) fn forget(&mut self, period: u64) -> bool {
        self.periods = self.periods.split_off(&(period + 1).saturating_sub(PERIODS));
        !self.periods.is_empty()
    }

    /// Everything that was refused, to be completed by what is active.
    pub(crate) fn union(&self) -> Union {
        let mut union = Union::default();
        for refused in self.periods.values() {
            refused.series.iter().for_each(|(cost, sketch)| union.series.entry(*cost).or_default().merge(sketch));
            union.entities.merge(&refused.entities);
        }
        union
    }
}

/// All that a tenant wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Union {
    series: BTreeMap<u64, Sketch>,
    entities: Sketch,
}

impl Union {
    /// Adds an active series.
    pub(crate) fn add(&mut self, cost: u64, series: SeriesId, entity: u64) {
        self.series.entry(cost).or_default().insert(hash(series));
        self.entities.insert(spread(entity));
    }

    /// About how many series there would be, by cost, and how many label sets.
    pub(crate) fn estimate(&self) -> (u64, u64) {
        (self.series.iter().map(|(cost, sketch)| cost * sketch.estimate()).sum(), self.entities.estimate())
    }
}

fn hash(series: SeriesId) -> u64 {
    // Both halves are hashes; this one is of everything.
    spread(series.0 as u64)
}

/// Spreads what distinguishes two hashes over all bits: the last step of `SplitMix64`.
fn spread(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_close_whatever_the_size() {
        for size in [0u64, 1, 10, 100, 1_000, 5_000, 100_000] {
            let mut sketch = Sketch::default();
            (0..size).chain(0..size).for_each(|element| sketch.insert(spread(element)));
            let off = sketch.estimate().abs_diff(size) as f64;
            assert!(off <= 0.1 * size as f64, "{} and not {size}", sketch.estimate());
        }
    }

    #[test]
    fn what_is_refused_again_is_one_demand_and_ends() {
        let mut demand = Demand::default();
        for period in 0..3 {
            (0..50).for_each(|series| demand.refuse(period, 19, SeriesId(series), series as u64 / 2));
        }
        let mut union = demand.union();
        (40..60).for_each(|series| union.add(1, SeriesId(series), series as u64 / 2));
        let (series, entities) = union.estimate();
        assert!(series.abs_diff(50 * 19 + 20) <= 50, "{series}");
        assert!(entities.abs_diff(30) <= 2, "{entities}");
        assert!(demand.forget(4), "the last period is in the window");
        assert!(!demand.forget(5));
    }
}
