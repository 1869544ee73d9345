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

use std::collections::{BTreeMap, HashMap};

use super::{cells::add_counts, error::MetricsError, labels::LabelValue, request::MetricsRequest};

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
    /// Spans that have the value, likewise.
    pub(super) values: HashMap<LabelValue, [Vec<u64>; 2]>,
    /// There are too many values.
    pub(super) overflowed: bool,
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
        values: Option<impl Iterator<Item = (LabelValue, [&'a [u32]; 2])>>,
    ) -> Result<(), MetricsError> {
        let bytes = &mut self.bytes;
        let attribute = begin(&mut self.attributes, bytes, key);
        let intervals = request.window().intervals();
        for (total, counts) in attribute.totals.iter_mut().zip(totals) {
            add_part(total, counts, first, intervals, bytes);
        }
        match values {
            Some(values) => values.for_each(|(value, counts)| {
                if let Some(sides) = attribute.value(request, value, bytes) {
                    sides.iter_mut().zip(counts).for_each(|(to, counts)| add_part(to, counts, first, intervals, bytes));
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
        for (key, from) in &other.attributes {
            let attribute = begin(&mut self.attributes, bytes, key);
            for (total, counts) in attribute.totals.iter_mut().zip(&from.totals) {
                add_side(total, counts, bytes);
            }
            if from.overflowed {
                attribute.overflow(bytes);
            }
            for (value, counts) in &from.values {
                if let Some(sides) = attribute.value(request, value.clone(), bytes) {
                    sides.iter_mut().zip(counts).for_each(|(to, counts)| add_side(to, counts, bytes));
                }
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
const VALUE_OVERHEAD: usize = 96;

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

fn add_side(to: &mut Vec<u64>, counts: &[u64], bytes: &mut usize) {
    if counts.iter().all(|count| *count == 0) {
        return;
    }
    if to.is_empty() {
        to.resize(counts.len(), 0);
        *bytes += 8 * counts.len();
    }
    add_counts(to, counts);
}

/// Adds counts of intervals from `first` on.
fn add_part(to: &mut Vec<u64>, counts: &[u32], first: usize, intervals: usize, bytes: &mut usize) {
    if counts.iter().all(|count| *count == 0) {
        return;
    }
    if to.is_empty() {
        to.resize(intervals, 0);
        *bytes += 8 * intervals;
    }
    to.iter_mut().skip(first).zip(counts).for_each(|(to, count)| *to = to.saturating_add(u64::from(*count)));
}

impl Attribute {
    /// The counts of a value, of which there may be none yet; `None` when there are too many values.
    fn value(&mut self, request: &MetricsRequest, value: LabelValue, bytes: &mut usize) -> Option<&mut [Vec<u64>; 2]> {
        if self.overflowed {
            return None;
        }
        if !self.values.contains_key(&value) {
            if self.values.len() >= request.max_values() {
                self.overflow(bytes);
                return None;
            }
            *bytes += VALUE_OVERHEAD + value.heap_bytes();
        }
        Some(self.values.entry(value).or_default())
    }

    fn overflow(&mut self, bytes: &mut usize) {
        *bytes = bytes.saturating_sub(self.bytes());
        self.values = HashMap::new();
        self.overflowed = true;
        *bytes += self.bytes();
    }

    fn bytes(&self) -> usize {
        let sides = |sides: &[Vec<u64>; 2]| sides.iter().map(|counts| 8 * counts.len()).sum::<usize>();
        let values = self.values.iter().map(|(value, counts)| VALUE_OVERHEAD + value.heap_bytes() + sides(counts));
        sides(&self.totals) + values.sum::<usize>()
    }

    /// The values of one side with the largest totals, largest first; of equal ones the first by text.
    pub(super) fn top(&self, side: usize, number: usize) -> Vec<(&LabelValue, &[u64])> {
        let counted = self.values.iter().filter(|(_, counts)| !counts[side].is_empty());
        let mut top: Vec<(std::cmp::Reverse<u64>, String, &LabelValue, &[u64])> = counted
            .map(|(value, counts)| {
                (
                    std::cmp::Reverse(counts[side].iter().fold(0u64, |sum, count| sum.saturating_add(*count))),
                    value.text(),
                    value,
                    counts[side].as_slice(),
                )
            })
            .collect();
        top.sort_by(|left, right| (left.0, &left.1, left.2).cmp(&(right.0, &right.1, right.2)));
        top.truncate(number);
        top.into_iter().map(|(_, _, value, counts)| (value, counts)).collect()
    }
}
