//! Fewer, larger reads in the place of many small ones.

use std::ops::Range;

use crate::backend::JOIN_GAP;

/// More bytes than this are not moved to save requests.
const MAX_BYTES: u64 = 16 << 20;

/// At most `requests` ranges that cover all of `ranges`, with the smallest sum of lengths: the largest gaps are left out. Should the sum
/// pass 16 MiB, more requests are cheaper, and further gaps are left out until it does not, as long as they are larger than those that
/// [`Store::get_ranges`] closes anyway.
///
/// [`Store::get_ranges`]: crate::backend::Store::get_ranges
pub(super) fn cover(ranges: &[Range<u64>], requests: usize) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_unstable_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    let (Some(first), Some(last)) = (joined.first(), joined.last()) else { return Vec::new() };
    let mut total = last.end - first.start;
    let gap = |at: usize| joined[at + 1].start - joined[at].end;
    let mut gaps: Vec<_> = (0..joined.len() - 1).collect();
    gaps.sort_by_key(|&at| std::cmp::Reverse(gap(at)));
    let mut cuts: Vec<_> = gaps
        .into_iter()
        .enumerate()
        .take_while(|&(taken, at)| {
            let cut = taken + 1 < requests || (total > MAX_BYTES && gap(at) > JOIN_GAP);
            total -= if cut { gap(at) } else { 0 };
            cut
        })
        .map(|(_, at)| at)
        .collect();
    cuts.sort_unstable();
    let starts = std::iter::once(0).chain(cuts.iter().map(|at| at + 1));
    let ends = cuts.iter().copied().chain([joined.len() - 1]);
    starts.zip(ends).map(|(start, end)| joined[start].start..joined[end].end).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_gaps_are_left_out() {
        let ranges = [100..110, 0..10, 1000..1010, 15..20, 8..12];
        assert_eq!(cover(&ranges, 1), std::slice::from_ref(&(0..1010)));
        assert_eq!(cover(&ranges, 2), [0..110, 1000..1010]);
        assert_eq!(cover(&ranges, 3), [0..20, 100..110, 1000..1010]);
        assert_eq!(cover(&ranges, 9), [0..12, 15..20, 100..110, 1000..1010]);
        assert_eq!(cover(&[], 3), []);
        assert_eq!(cover(std::slice::from_ref(&(5..5)), 3), []);
    }

    #[test]
    fn absurd_amounts_are_not_read() {
        let mib = 1 << 20;
        let ranges: Vec<_> = (0..20).map(|at| at * 3 * mib..at * 3 * mib + 1).collect();
        // Three gaps of 3 MiB fit below the limit.
        let covered = cover(&ranges, 1);
        assert!(covered.iter().map(|range| range.end - range.start).sum::<u64>() <= MAX_BYTES);
        assert_eq!(covered.len(), 15);
        // Gaps that would be closed anyway stay.
        let many: Vec<_> = (0..1000).map(|at| at * JOIN_GAP..at * JOIN_GAP + 1).collect();
        assert_eq!(cover(&many, 1).len(), 1);
    }

    proptest! {
        #[test]
        fn every_range_lies_in_one(ranges in prop::collection::vec((0u64..1 << 26, 0u64..1 << 16), 0..40), requests in 1usize..5) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let covered = cover(&ranges, requests);
            prop_assert!(covered.windows(2).all(|two| two[0].end < two[1].start));
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                prop_assert!(covered.iter().any(|cover| cover.start <= range.start && range.end <= cover.end));
            }
            let total: u64 = covered.iter().map(|range| range.end - range.start).sum();
            // No more requests than are needed to stay below the limit.
            let smallest = covered.windows(2).map(|two| two[1].start - two[0].end).min().unwrap_or(0);
            prop_assert!(covered.len() <= requests || total + smallest > MAX_BYTES);
        }
    }
}
