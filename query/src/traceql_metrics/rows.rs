//! The spans of a batch that count, as arrays: which spans, in which interval, with which value, in which group.
//!
//! ```text
//!  spans      3  4  7  9        only those that count
//!  intervals  0  0  1  1
//!  locals     0  1  1  0        groups of this batch, by number
//!  groups     [cart] [shop]     looked up once per batch and group, not per span
//! ```

use std::hash::Hash;

use foldhash::{HashMap, HashMapExt as _};

use super::{
    cells::Number,
    labels::{Group, LabelValue},
    request::Shape,
    window::Window,
};
use crate::{
    columns::{NIL, Numbers, Texts, Vector},
    traceql::Value,
};

/// Finds intervals. Spans that follow each other mostly start in the same one, which is found without a division.
#[derive(Debug)]
pub(super) struct Axis<'w> {
    window: &'w Window,
    /// Times after `low` and up to `high` are in `interval`.
    low: u64,
    high: u64,
    interval: usize,
}

impl<'w> Axis<'w> {
    pub(super) fn new(window: &'w Window) -> Self {
        Self { window, low: u64::MAX, high: 0, interval: 0 }
    }

    #[inline]
    pub(super) fn interval(&mut self, time: u64) -> Option<usize> {
        if time > self.low && time <= self.high {
            return Some(self.interval);
        }
        let interval = self.window.interval(time)?;
        (self.low, self.high) = self.window.edges(interval);
        self.interval = interval;
        Some(interval)
    }
}

/// Spans that count.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) spans: Vec<u32>,
    pub(super) intervals: Vec<u32>,
    /// Values; empty when spans are counted.
    pub(super) numbers: Vec<Number>,
}

impl Rows {
    /// Of the spans `among` (all when `None`) those within the window that have a value for the function.
    pub(super) fn new(window: &Window, starts: &[u64], among: Option<&[u32]>, argument: Option<(&Vector, Shape)>) -> Self {
        match among {
            Some(spans) => Self::of(window, starts, spans.iter().copied(), argument),
            None => Self::of(window, starts, 0..starts.len() as u32, argument),
        }
    }

    fn of(window: &Window, starts: &[u64], among: impl Iterator<Item = u32>, argument: Option<(&Vector, Shape)>) -> Self {
        let expected = among.size_hint().0;
        let mut rows = Self { spans: Vec::with_capacity(expected), intervals: Vec::with_capacity(expected), numbers: Vec::new() };
        let mut axis = Axis::new(window);
        let Some((vector, shape)) = argument else {
            for span in among {
                if let Some(interval) = axis.interval(starts[span as usize]) {
                    rows.spans.push(span);
                    rows.intervals.push(interval as u32);
                }
            }
            return rows;
        };
        rows.numbers.reserve(expected);
        let mut take = |span: u32, number: Option<Number>| {
            if let Some(number) = number.filter(|number| number.counts(shape))
                && let Some(interval) = axis.interval(starts[span as usize])
            {
                rows.spans.push(span);
                rows.intervals.push(interval as u32);
                rows.numbers.push(number);
            }
        };
        match vector {
            Vector::Int(values) | Vector::Duration(values) => {
                among.for_each(|span| take(span, values.get(span as usize).map(Number::Int)));
            }
            Vector::Float(values) => among.for_each(|span| take(span, values.get(span as usize).map(Number::Float))),
            Vector::Mixed(values) => among.for_each(|span| take(span, number(&values[span as usize]))),
            Vector::Nil(_) | Vector::Text(_) | Vector::Bool(_) | Vector::Status(_) | Vector::Kind(_) => {}
        }
        rows
    }
}

/// A value as a number, if it is one.
pub(super) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Int(number) | Value::Duration(number) => Some(Number::Int(*number)),
        Value::Float(number) => Some(Number::Float(*number)),
        _ => None,
    }
}

/// The values of a field among some spans, by number. Different numbers may stand for the same value.
#[derive(Debug)]
pub(super) struct Locals {
    /// One per span.
    pub(super) numbers: Vec<u32>,
    /// By number.
    pub(super) values: Vec<LabelValue>,
}

impl Locals {
    /// Numbers the values of a field.
    pub(super) fn of(vector: &Vector, spans: &[u32]) -> Self {
        match vector {
            Vector::Nil(_) => Self { numbers: vec![0; spans.len()], values: vec![LabelValue::Nil] },
            Vector::Text(texts) => Self::of_texts(texts, spans),
            Vector::Int(values) => Self::of_numbers(values, spans, |value| value, LabelValue::Int),
            Vector::Duration(values) => Self::of_numbers(values, spans, |value| value, LabelValue::Duration),
            Vector::Float(values) => Self::of_numbers(values, spans, f64::to_bits, LabelValue::float),
            Vector::Bool(values) => Self::of_numbers(values, spans, |value| value, LabelValue::Bool),
            Vector::Status(values) => Self::by_key(spans, |span| values[span], LabelValue::Status),
            Vector::Kind(values) => Self::by_key(spans, |span| values[span], LabelValue::Kind),
            Vector::Mixed(values) => Self::by_key(spans, |span| LabelValue::from(values[span].clone()), |value| value),
        }
    }

    fn of_texts(texts: &Texts, spans: &[u32]) -> Self {
        const UNKNOWN: u32 = u32::MAX;
        let entries = texts.dictionary.len();
        // The last entry is for spans without a string.
        let mut known = vec![UNKNOWN; entries + 1];
        let mut values = Vec::new();
        let mut numbers = Vec::with_capacity(spans.len());
        for span in spans {
            let code = texts.codes[*span as usize];
            let slot = &mut known[(code as usize).min(entries)];
            if *slot == UNKNOWN {
                *slot = values.len() as u32;
                values.push(if code == NIL { LabelValue::Nil } else { LabelValue::Text(texts.dictionary.text(code).into()) });
            }
            numbers.push(*slot);
        }
        Self { numbers, values }
    }

    fn of_numbers<T: Copy, K: Copy + Eq + Hash>(
        column: &Numbers<T>,
        spans: &[u32],
        key: impl Fn(T) -> K,
        label: impl Fn(T) -> LabelValue,
    ) -> Self {
        Self::numbered(spans, |span| column.get(span), |value| value.map(&key), |value| value.map_or(LabelValue::Nil, &label))
    }

    fn by_key<K: Clone + Eq + Hash>(spans: &[u32], get: impl Fn(usize) -> K, label: impl Fn(K) -> LabelValue) -> Self {
        Self::numbered(spans, get, K::clone, label)
    }

    fn numbered<T, K: Clone + Eq + Hash>(
        spans: &[u32],
        get: impl Fn(usize) -> T,
        key: impl Fn(&T) -> K,
        label: impl Fn(T) -> LabelValue,
    ) -> Self {
        let mut known: HashMap<K, u32> = HashMap::new();
        let mut values = Vec::new();
        let mut numbers = Vec::with_capacity(spans.len());
        let mut last: Option<(K, u32)> = None;
        for span in spans {
            let value = get(*span as usize);
            let key = key(&value);
            if let Some((_, number)) = last.as_ref().filter(|(last, _)| *last == key) {
                numbers.push(*number);
                continue;
            }
            let next = values.len() as u32;
            let number = *known.entry(key.clone()).or_insert(next);
            if number == next {
                values.push(label(value));
            }
            numbers.push(number);
            last = Some((key, number));
        }
        Self { numbers, values }
    }
}

/// Groups of some spans: a number per span, and what the numbers stand for.
pub(super) fn groups(fields: &[&Vector], spans: &[u32]) -> (Vec<u32>, Vec<Group>) {
    let mut fields = fields.iter();
    let Some(first) = fields.next() else {
        return (vec![0; spans.len()], vec![Group::default()]);
    };
    let Locals { mut numbers, values } = Locals::of(first, spans);
    let mut groups: Vec<Vec<LabelValue>> = values.into_iter().map(|value| vec![value]).collect();
    for field in fields {
        let next = Locals::of(field, spans);
        let mut known: HashMap<u64, u32> = HashMap::new();
        let mut combined = Vec::new();
        let (mut last, mut last_number) = (u64::MAX, 0);
        for (number, other) in numbers.iter_mut().zip(&next.numbers) {
            let pair = u64::from(*number) << 32 | u64::from(*other);
            if pair != last {
                let fresh = combined.len() as u32;
                last_number = *known.entry(pair).or_insert(fresh);
                if last_number == fresh {
                    let mut group = groups[*number as usize].clone();
                    group.push(next.values[*other as usize].clone());
                    combined.push(group);
                }
                last = pair;
            }
            *number = last_number;
        }
        groups = combined;
    }
    (numbers, groups.into_iter().map(Vec::into_boxed_slice).collect())
}
