//! The ledger: what the workers of this process have generated, as of the checkpoint ticks that were not committed yet.
//!
//! ```text
//!  worker ── Shard(tick, series) ──────────────┐
//!  worker ── Shard(tick, halves, identities) ──┴─► ledger ── take(tick), when that tick is to be committed ─► bucket
//!     └──────── Ready(tick) ──► commit
//! ```
//!
//! Contents stay in the process that has come to them; the commit is only told that they are here. Each worker enters its shards before
//! it says so, hence whoever knows that all workers of all processes are ready finds everything. Identities belong to the first tick that
//! is committed after them; contents of ticks that are passed over are forgotten.

use std::{collections::BTreeMap, mem};

use parking_lot::Mutex;

use crate::generator::checkpoint::{Contents, Part, Shard};

/// Ticks of which contents are kept. A commit takes one of the newest few: the feed goes no further ahead of it.
const KEPT: usize = 64;

/// What was generated as of a tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Generated {
    pub(crate) contents: Contents,
    /// Of the spans that were counted since the tick taken before.
    pub(crate) identities: Vec<u64>,
    /// Whether `contents` differ from those of the tick taken before.
    pub(crate) changed: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    ticks: Mutex<BTreeMap<u64, Generated>>,
}

impl Ledger {
    pub(crate) fn add(&self, shard: Shard) {
        let mut ticks = self.ticks.lock();
        let generated = ticks.entry(shard.tick).or_default();
        match shard.part {
            Part::Series { series, changed } => {
                generated.contents.series.extend(series);
                generated.changed |= changed;
            }
            Part::Observed { identities, halves, changed } => {
                generated.changed |= changed;
                generated.contents.halves.extend(halves);
                generated.identities.extend(identities);
            }
        }
        if ticks.len() > KEPT
            && let Some((_, oldest)) = ticks.pop_first()
            && let Some(mut next) = ticks.first_entry()
        {
            next.get_mut().follow(oldest);
        }
    }

    /// What there is as of `tick`; what was before it goes. `None` if nothing was entered for this tick.
    pub(crate) fn take(&self, tick: u64) -> Option<Generated> {
        let mut ticks = self.ticks.lock();
        ticks.get(&tick)?;
        let later = ticks.split_off(&(tick + 1));
        let taken = mem::replace(&mut *ticks, later);
        drop(ticks);
        taken.into_values().reduce(|older, mut newer| {
            newer.follow(older);
            newer
        })
    }
}

impl Generated {
    /// Takes the place of an older one.
    fn follow(&mut self, older: Self) {
        let newer = mem::replace(&mut self.identities, older.identities);
        self.identities.extend(newer);
        self.changed |= older.changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_identity_is_lost_whatever_is_passed_over() {
        let ledger = Ledger::default();
        let observed = |tick, identities| Shard { tick, part: Part::Observed { identities, halves: Vec::new(), changed: false } };
        let series = |tick, changed| Shard { tick, part: Part::Series { series: Vec::new(), changed } };
        ledger.add(observed(4, vec![1]));
        ledger.add(series(8, true));
        ledger.add(observed(8, vec![2, 3]));
        ledger.add(observed(12, vec![4]));
        ledger.add(series(12, false));
        assert_eq!(ledger.take(9), None);
        let taken = ledger.take(8).expect("there");
        assert_eq!((taken.identities, taken.changed), (vec![1, 2, 3], true));
        for tick in 13..200 {
            ledger.add(observed(tick, vec![tick]));
        }
        let taken = ledger.take(199).expect("there");
        assert_eq!(taken.identities, [4].into_iter().chain(13..200).collect::<Vec<_>>());
        assert!(!taken.changed);
    }
}
