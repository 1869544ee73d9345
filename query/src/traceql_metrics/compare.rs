//! `compare()`: how often each attribute has which value, inside a selection and outside.
//!
//! ```text
//!  span.http.status_code ─┬─ baseline   200: [812, 790]  404: [3, 0]     total [815, 790]
//!                         └─ selection  500: [ 12,  40]                  total [ 12,  40]
//! ```
//!
//! An attribute with a value of its own for nearly every span (ids of requests) cannot be counted within bounded memory, and its most frequent
//! values say nothing. When it has more than [`MetricsRequest::max_values`] values, only its totals are kept. Whether it has does not depend
//! on how spans were split into jobs, so neither does the answer.

use std::{cmp::Reverse, collections::BTreeMap, hash::BuildHasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{
    cells::{add_counts, sum},
    error::MetricsError,
    labels::{LabelRef, LabelValue},
    request::MetricsRequest,
};

/// Outside of the selection, and inside.
pub(super) const SIDES: [&str; 2] = ["baseline", "selection"];

/// Counts by attribute, of both sides.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    /// By canonical text.
    attributes: BTreeMap<Box<str>, Attribute>,
    bytes: usize,
}

/// Counts of one attribute.
#[derive(Clone, Debug, Default)]
pub(super) struct Attribute {
    /// Spans that have it, by side and interval; empty while there are none.
    pub(super) totals: [Vec<u64>; 2],
    /// Spans that have the value.
    pub(super) values: Values,
    /// There are too many values.
    pub(super) overflowed: bool,
}

/// Counts by value, one row each: by interval outside of the selection, then inside. One allocation holds the counts of all values, and a value
/// is found without making a string of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    /// Number of the row.
    rows: HashTable<u32>,
    hasher: RandomState,
    /// By row.
    values: Vec<LabelValue>,
    /// Row after row.
    counts: Vec<u64>,
}

impl Comparison {
    pub(super) fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// Bytes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Attributes by canonical text, sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.attributes.iter().map(|(key, attribute)| (key.as_ref(), attribute))
    }

    /// Adds what was counted of an attribute: totals, and counts of each value; both of each side by interval from the interval `first` on.
    /// Without values there are too many.
    ///
    /// # Errors
    /// The attributes do not fit into memory.
    pub(super) fn add<'a>(
        &mut self,
        request: &MetricsRequest,
        key: &str,
        first: usize,
        totals: [&[u32]; 2],
        values: Option<impl Iterator<Item = (LabelRef<'a>, [&'a [u32]; 2])>>,
    ) -> Result<(), MetricsError> {
        let bytes = &mut self.bytes;
        let attribute = begin(&mut self.attributes, bytes, key);
        let intervals = request.window().intervals();
        for (total, counts) in attribute.totals.iter_mut().zip(totals) {
            if counts.iter().any(|count| *count > 0) {
                add_part(begun(total, intervals, bytes), counts, first);
            }
        }
        match values {
            Some(values) => values.for_each(|(value, counts)| {
                if let Some(row) = attribute.row(request, &value, bytes) {
                    row.chunks_exact_mut(intervals).zip(counts).for_each(|(to, counts)| add_part(to, counts, first));
                }
            }),
            None => attribute.overflow(bytes),
        }
        check(request, *bytes)
    }

    /// Whether it is known already that an attribute has too many values.
    pub(super) fn is_overflowed(&self, key: &str) -> bool {
        self.attributes.get(key).is_some_and(|attribute| attribute.overflowed)
    }

    /// Adds the counts of another job.
    ///
    /// # Errors
    /// The attributes do not fit into memory.
    pub(super) fn merge(&mut self, request: &MetricsRequest, other: &Self) -> Result<(), MetricsError> {
        let bytes = &mut self.bytes;
        let intervals = request.window().intervals();
        for (key, from) in &other.attributes {
            let attribute = begin(&mut self.attributes, bytes, key);
            for (total, counts) in attribute.totals.iter_mut().zip(&from.totals) {
                if !counts.is_empty() {
                    add_counts(begun(total, intervals, bytes), counts);
                }
            }
            if from.overflowed {
                attribute.overflow(bytes);
            }
            for (value, counts) in from.values.iter(intervals) {
                let Some(row) = attribute.row(request, &LabelRef::from(value), bytes) else { break };
                add_counts(row, counts);
            }
            check(request, *bytes)?;
        }
        Ok(())
    }

    /// Puts an attribute there as another process has sent it.
    pub(super) fn insert(&mut self, key: &str, attribute: Attribute) {
        self.bytes += attribute.bytes() + key.len() + ATTRIBUTE_OVERHEAD;
        self.attributes.insert(key.into(), attribute);
    }
}

const ATTRIBUTE_OVERHEAD: usize = 256;
const VALUE_OVERHEAD: usize = 48;

fn begin<'a>(attributes: &'a mut BTreeMap<Box<str>, Attribute>, bytes: &mut usize, key: &str) -> &'a mut Attribute {
    if !attributes.contains_key(key) {
        *bytes += key.len() + ATTRIBUTE_OVERHEAD;
    }
    attributes.entry(key.into()).or_default()
}

fn check(request: &MetricsRequest, bytes: usize) -> Result<(), MetricsError> {
    let max_bytes = request.limits().max_bytes;
    if bytes > max_bytes { Err(MetricsError::TooLarge { max_bytes }) } else { Ok(()) }
}

/// The totals of a side, of which there may be none yet.
fn begun<'a>(total: &'a mut Vec<u64>, intervals: usize, bytes: &mut usize) -> &'a mut [u64] {
    if total.is_empty() {
        total.resize(intervals, 0);
        *bytes += 8 * intervals;
    }
    total
}

/// Adds counts of intervals from `first` on.
fn add_part(to: &mut [u64], counts: &[u32], first: usize) {
    to.iter_mut().skip(first).zip(counts).for_each(|(to, count)| *to = to.saturating_add(u64::from(*count)));
}

impl Values {
    /// Values with their counts, in the order in which they came.
    pub(super) fn iter(&self, intervals: usize) -> impl Iterator<Item = (&LabelValue, &[u64])> {
        self.values.iter().zip(self.counts.chunks_exact(2 * intervals.max(1)))
    }

    /// The row of a value, if there is one.
    fn find(&self, hash: u64, value: &LabelRef<'_>) -> Option<usize> {
        self.rows.find(hash, |&row| LabelRef::from(&self.values[row as usize]) == *value).map(|row| *row as usize)
    }

    /// The row of a value, which may be new, of so many intervals; `None` if it would be one more than `most`.
    pub(super) fn place(&mut self, value: &LabelRef<'_>, intervals: usize, most: usize) -> Option<usize> {
        let hash = self.hasher.hash_one(value);
        if let Some(row) = self.find(hash, value) {
            return Some(row);
        }
        let Self { rows, hasher, values, counts } = self;
        let row = values.len();
        if row >= most {
            return None;
        }
        values.push(value.to_value());
        counts.resize(counts.len() + 2 * intervals, 0);
        rows.insert_unique(hash, row as u32, |&row| hasher.hash_one(LabelRef::from(&values[row as usize])));
        Some(row)
    }

    /// The counts of a row.
    pub(super) fn counts_mut(&mut self, row: usize, intervals: usize) -> &mut [u64] {
        &mut self.counts[2 * intervals * row..][..2 * intervals]
    }

    /// Bytes of memory, about.
    fn bytes(&self) -> usize {
        8 * self.counts.len() + self.values.iter().map(|value| VALUE_OVERHEAD + value.heap_bytes()).sum::<usize>()
    }
}

impl Attribute {
    /// The counts of a value, of which there may be none yet; `None` when there are too many values.
    fn row(&mut self, request: &MetricsRequest, value: &LabelRef<'_>, bytes: &mut usize) -> Option<&mut [u64]> {
        if self.overflowed {
            return None;
        }
        let intervals = request.window().intervals();
        let known = self.values.values.len();
        let Some(row) = self.values.place(value, intervals, request.max_values()) else {
            self.overflow(bytes);
            return None;
        };
        if self.values.values.len() > known {
            *bytes += VALUE_OVERHEAD + value.heap_bytes() + 16 * intervals;
        }
        Some(self.values.counts_mut(row, intervals))
    }

    fn overflow(&mut self, bytes: &mut usize) {
        *bytes = bytes.saturating_sub(self.bytes());
        self.values = Values::default();
        self.overflowed = true;
        *bytes += self.bytes();
    }

    fn bytes(&self) -> usize {
        self.totals.iter().map(|counts| 8 * counts.len()).sum::<usize>() + self.values.bytes()
    }

    /// The values of one side with the largest totals, largest first; of equal ones the first by text.
    pub(super) fn top<'v>(&'v self, request: &MetricsRequest, side: usize, number: usize) -> Vec<(&'v LabelValue, &'v [u64])> {
        let intervals = request.window().intervals();
        let of_side = |(value, counts): (_, &'v [u64])| (value, &counts[side * intervals..][..intervals]);
        let with_sum = |(value, counts): (&'v LabelValue, &'v [u64])| (sum(counts), value, counts);
        let mut top: Vec<_> = self.values.iter(intervals).map(of_side).map(with_sum).filter(|(sum, ..)| *sum > 0).collect();
        // Texts are made of those only that may be shown.
        if let Some(last) = number.checked_sub(1).filter(|last| *last < top.len()) {
            let least = top.select_nth_unstable_by_key(last, |(sum, ..)| Reverse(*sum)).1.0;
            top.retain(|(sum, ..)| *sum >= least);
        }
        top.sort_by_cached_key(|(sum, value, _)| (Reverse(*sum), value.text(), (*value).clone()));
        top.truncate(number);
        top.into_iter().map(|(_, value, counts)| (value, counts)).collect()
    }
}
