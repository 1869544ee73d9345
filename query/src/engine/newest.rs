//! The newest candidates of a search.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use storage::id::TraceId;

use crate::job::Candidate;

/// The `limit` candidates of the largest age, whatever the order in which they are offered: a candidate that was offered several times
/// counts with its largest age, and ages only grow, so what was once pushed out by `limit` larger ones stays out.
#[derive(Debug)]
pub(super) struct Newest {
    limit: usize,
    candidates: HashMap<TraceId, Candidate>,
    ages: BTreeSet<(u64, Reverse<TraceId>)>,
}

impl Newest {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, candidates: HashMap::new(), ages: BTreeSet::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.candidates.len() >= self.limit
    }

    /// Candidates of a smaller age than this are of no use.
    pub(super) fn floor(&self) -> u64 {
        if self.is_full() { self.ages.first().map_or(u64::MAX, |(age, _)| *age) } else { 0 }
    }

    pub(super) fn offer(&mut self, id: TraceId, candidate: Candidate) {
        let merged = match self.candidates.get(&id) {
            Some(known) => {
                self.ages.remove(&(known.age, Reverse(id)));
                Candidate { age: known.age.max(candidate.age), start: known.start.min(candidate.start), end: known.end.max(candidate.end) }
            }
            None => candidate,
        };
        self.candidates.insert(id, merged);
        self.ages.insert((merged.age, Reverse(id)));
        if self.candidates.len() > self.limit
            && let Some((_, Reverse(oldest))) = self.ages.pop_first()
        {
            self.candidates.remove(&oldest);
        }
    }

    pub(super) fn merge(&mut self, candidates: impl IntoIterator<Item = (TraceId, Candidate)>) {
        for (id, candidate) in candidates {
            self.offer(id, candidate);
        }
    }

    /// Newest first.
    pub(super) fn sorted(&self) -> Vec<(TraceId, Candidate)> {
        self.ages.iter().rev().filter_map(|(_, Reverse(id))| Some((*id, *self.candidates.get(id)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_newest_are_kept_whatever_the_order(
            offers in prop::collection::vec((0u8..20, 0u64..50), 0..60),
            limit in 1usize..8,
            split in 0usize..60,
        ) {
            let candidate = |age| Candidate { age, start: age, end: age };
            let id = |number: u8| TraceId([number; 16]);
            let (left, right) = offers.split_at(split.min(offers.len()));
            let mut newest = Newest::new(limit);
            for part in [right, left] {
                let mut local = Newest::new(limit);
                part.iter().for_each(|(number, age)| local.offer(id(*number), candidate(*age)));
                newest.merge(local.sorted());
            }

            let mut best: HashMap<u8, u64> = HashMap::new();
            for (number, age) in offers {
                let known = best.entry(number).or_default();
                *known = age.max(*known);
            }
            let mut expected: Vec<_> = best.into_iter().map(|(number, age)| (Reverse(age), id(number))).collect();
            expected.sort_unstable();
            expected.truncate(limit);
            let kept: Vec<_> = newest.sorted().into_iter().map(|(id, candidate)| (Reverse(candidate.age), id)).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
