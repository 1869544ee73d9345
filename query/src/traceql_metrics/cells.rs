//! What is kept of a group in each interval.
//!
//! ```text
//!              interval 0   1   2
//!  group 0              4   0   9
//!  group 1              1   1   0        one array, row after row: cells[group * intervals + interval]
//! ```
//!
//! Everything here adds up exactly: counts are integers, sums are exact ([`ExactSum`]), extremes are values that occurred. So it does not
//! matter how spans were split into jobs, nor in which order the jobs are put together.

use super::{exact::ExactSum, request::Shape};

/// Cells of all groups.
#[derive(Clone, Debug)]
pub(super) enum Cells {
    Counts(Vec<u64>),
    /// Not-a-number where there is no value.
    Min(Vec<f64>),
    Max(Vec<f64>),
    Sums(Vec<Sum>),
    Buckets(Vec<Buckets>),
}

/// Sum and number of values.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) total: ExactSum,
}

impl Sum {
    #[inline]
    pub(super) fn add(&mut self, number: Number) {
        self.count += 1;
        match number {
            Number::Int(value) => self.total.add_integer(value),
            Number::Float(value) => self.total.add_double(value),
        }
    }
}

/// A value that is aggregated; durations are integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    /// The exponent of its bucket: the smallest power of two that is not below it. Small, negative and broken numbers have none.
    #[inline]
    pub(super) fn exponent(self) -> Option<u8> {
        match self {
            Self::Int(value) if value >= 2 => Some((u64::BITS - (value as u64 - 1).leading_zeros()) as u8),
            _ => None,
        }
    }

    /// Whether a function of the shape takes it in.
    #[inline]
    pub(super) fn counts(self, shape: Shape) -> bool {
        match shape {
            Shape::Buckets => self.exponent().is_some(),
            Shape::Min | Shape::Max => !matches!(self, Self::Float(value) if value.is_nan()),
            _ => true,
        }
    }
}

/// Counts of one group by bucket. Only buckets that received values are there.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    /// One more than the place in `rows` of the bucket with this exponent; 0 when it is not there.
    slots: [u8; 64],
    /// Exponents, and counts by interval.
    rows: Vec<(u8, Box<[u64]>)>,
}

impl Buckets {
    fn new() -> Self {
        Self { slots: [0; 64], rows: Vec::new() }
    }

    /// The counts of a bucket, and whether they are new.
    #[inline]
    pub(super) fn row(&mut self, exponent: u8, intervals: usize) -> &mut [u64] {
        let exponent = exponent & 63;
        if self.slots[usize::from(exponent)] == 0 {
            self.rows.push((exponent, vec![0; intervals].into_boxed_slice()));
            self.slots[usize::from(exponent)] = self.rows.len() as u8;
        }
        let slot = usize::from(self.slots[usize::from(exponent)]) - 1;
        &mut self.rows[slot].1
    }

    /// Exponents with their counts, ascending.
    pub(super) fn sorted(&self) -> Vec<(u8, &[u64])> {
        let slots = self.slots.iter().filter(|slot| **slot != 0);
        slots.map(|slot| &self.rows[usize::from(*slot) - 1]).map(|(exponent, counts)| (*exponent, counts.as_ref())).collect()
    }
}

impl Cells {
    pub(super) fn new(shape: Shape) -> Self {
        match shape {
            Shape::Count | Shape::Compare => Self::Counts(Vec::new()),
            Shape::Min => Self::Min(Vec::new()),
            Shape::Max => Self::Max(Vec::new()),
            Shape::Sum => Self::Sums(Vec::new()),
            Shape::Buckets => Self::Buckets(Vec::new()),
        }
    }

    /// Bytes that one more group costs, with as many buckets as durations of very different lengths have.
    pub(super) fn bytes_per_group(&self, intervals: usize) -> usize {
        match self {
            Self::Counts(_) | Self::Min(_) | Self::Max(_) => 8 * intervals,
            Self::Sums(_) => size_of::<Sum>() * intervals,
            Self::Buckets(_) => size_of::<Buckets>() + 16 * (8 * intervals + size_of::<(u8, Box<[u64]>)>()),
        }
    }

    /// Appends a group without values.
    pub(super) fn push(&mut self, intervals: usize) {
        match self {
            Self::Counts(cells) => cells.resize(cells.len() + intervals, 0),
            Self::Min(cells) | Self::Max(cells) => cells.resize(cells.len() + intervals, f64::NAN),
            Self::Sums(cells) => cells.resize_with(cells.len() + intervals, Sum::default),
            Self::Buckets(groups) => groups.push(Buckets::new()),
        }
    }

    /// Adds one value.
    #[inline]
    pub(super) fn add(&mut self, group: usize, interval: usize, intervals: usize, number: Number) {
        let at = group * intervals + interval;
        match self {
            Self::Counts(cells) => cells[at] += 1,
            // What is not a number loses against any value.
            Self::Min(cells) => cells[at] = cells[at].min(number.as_f64()),
            Self::Max(cells) => cells[at] = cells[at].max(number.as_f64()),
            Self::Sums(cells) => cells[at].add(number),
            Self::Buckets(groups) => {
                if let Some(exponent) = number.exponent() {
                    groups[group].row(exponent, intervals)[interval] += 1;
                }
            }
        }
    }

    /// Adds what other cells of the same kind hold of a group.
    pub(super) fn merge(&mut self, group: usize, other: &Self, from: usize, intervals: usize) {
        let (to, of) = (group * intervals..(group + 1) * intervals, from * intervals..(from + 1) * intervals);
        match (self, other) {
            (Self::Counts(cells), Self::Counts(other)) => add_counts(&mut cells[to], &other[of]),
            (Self::Min(cells), Self::Min(other)) => cells[to].iter_mut().zip(&other[of]).for_each(|(cell, other)| *cell = cell.min(*other)),
            (Self::Max(cells), Self::Max(other)) => cells[to].iter_mut().zip(&other[of]).for_each(|(cell, other)| *cell = cell.max(*other)),
            (Self::Sums(cells), Self::Sums(other)) => cells[to].iter_mut().zip(&other[of]).for_each(|(cell, other)| {
                cell.count = cell.count.saturating_add(other.count);
                cell.total.merge(&other.total);
            }),
            (Self::Buckets(groups), Self::Buckets(other)) => {
                for (exponent, counts) in &other[from].rows {
                    add_counts(groups[group].row(*exponent, intervals), counts);
                }
            }
            // Cells of one query are of one kind.
            _ => {}
        }
    }

    /// Keeps these groups, in this order.
    pub(super) fn keep(&mut self, groups: &[u32], intervals: usize) {
        fn rows<T: Clone>(cells: &mut Vec<T>, groups: &[u32], intervals: usize) {
            let kept = groups.iter().flat_map(|group| cells[*group as usize * intervals..][..intervals].iter().cloned()).collect();
            *cells = kept;
        }
        match self {
            Self::Counts(cells) => rows(cells, groups, intervals),
            Self::Min(cells) | Self::Max(cells) => rows(cells, groups, intervals),
            Self::Sums(cells) => rows(cells, groups, intervals),
            Self::Buckets(cells) => rows(cells, groups, 1),
        }
    }
}

/// All counts together.
pub(super) fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// Adds counts interval by interval.
pub(super) fn add_counts(to: &mut [u64], from: &[u64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = to.saturating_add(*from));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let bound = |value| Number::Int(value).exponent().map(|exponent| 1u64 << exponent);
        let expected = [(2, 2), (3, 4), (4, 4), (5, 8), (1024, 1024), (1025, 2048), (i64::MAX, 1 << 63)];
        for (value, bucket) in expected {
            assert_eq!(bound(value), Some(bucket), "{value}");
        }
        assert_eq!([1, 0, -1, -1024, i64::MIN].map(bound), [None; 5]);
        assert_eq!(Number::Float(1024.0).exponent(), None, "floats are in no bucket");
    }

    #[test]
    fn groups_can_be_left_out() {
        let mut cells = Cells::new(Shape::Buckets);
        for group in 0..3 {
            cells.push(2);
            cells.add(group, 1, 2, Number::Int(4 << group));
        }
        cells.keep(&[2, 0], 2);
        let Cells::Buckets(groups) = &cells else { panic!("kind changed") };
        assert_eq!(groups.iter().map(Buckets::sorted).collect::<Vec<_>>(), [vec![(4, &[0, 1][..])], vec![(2, &[0, 1])]]);
    }
}
