//! From counts to series as clients see them.
//!
//! ```text
//!  Partial ─► series of the function ─► second stages ─► sorted ─► limit ─► QueryRangeResponse, QueryInstantResponse
//!             0 or nothing where
//!             there are no spans
//! ```
//!
//! While series are worked on, not-a-number is a sample that is not there.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use opentelemetry_proto::tonic::common::v1::any_value;
use storage::id::TraceId;

use super::{
    cells::{Buckets, Cells, Number, sum},
    compare::SIDES,
    exemplars::Exemplar,
    labels::{self, Label, LabelValue, SortKey, group_labels, key_value},
    partial::Partial,
    request::{MetricsRequest, Shape},
    second,
};
use crate::{proto, traceql::MetricsFunction};

/// A finished series.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) labels: Vec<Label>,
    /// One per interval.
    pub(super) samples: Vec<f64>,
    pub(super) exemplars: Vec<Shown>,
}

/// An exemplar of a finished series. Its value is not a number until samples are known, when spans are counted.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    trace: TraceId,
    time: u64,
    pub(super) value: f64,
    labels: Vec<(Box<str>, LabelValue)>,
}

impl Series {
    pub(super) fn has_samples(&self) -> bool {
        self.samples.iter().any(|sample| !sample.is_nan())
    }
}

/// What a query costs, for its answer.
pub type Cost = proto::SearchMetrics;

/// The answer to a range query.
pub fn finish_range(request: &MetricsRequest, partial: &Partial, cost: Cost) -> proto::QueryRangeResponse {
    let (series, message) = finish(request, partial, false);
    show_range(request, series, message, cost)
}

/// The answer to a part of a query, whose series somebody else adds up, as Tempo's frontends and queriers do: histograms instead of quantiles,
/// averages with the number of values that they are of, and nothing of second stages.
pub fn finish_part(request: &MetricsRequest, partial: &Partial, cost: Cost) -> proto::QueryRangeResponse {
    let (series, message) = finish(request, partial, true);
    show_range(request, series, message, cost)
}

fn show_range(request: &MetricsRequest, series: Vec<Series>, message: String, cost: Cost) -> proto::QueryRangeResponse {
    let window = request.window();
    let sample = |(interval, value): (usize, f64)| proto::Sample { value, timestamp_ms: window.timestamp_ms(interval) };
    let series = series.into_iter().map(|series| proto::TimeSeries {
        labels: series.labels.iter().map(Label::shown).collect(),
        exemplars: series.exemplars.iter().filter_map(|exemplar| show_exemplar(request, &series, exemplar)).collect(),
        samples: series.samples.iter().copied().enumerate().filter(|(_, value)| !value.is_nan()).map(sample).collect(),
    });
    proto::QueryRangeResponse { series: series.collect(), metrics: Some(cost), status: status(&message), message }
}

/// The answer to an instant query.
pub fn finish_instant(request: &MetricsRequest, partial: &Partial, cost: Cost) -> proto::QueryInstantResponse {
    let (series, message) = finish(request, partial, false);
    let series = series.into_iter().filter_map(|series| {
        let value = series.samples.first().copied()?;
        Some(proto::InstantSeries { labels: series.labels.iter().map(Label::shown).collect(), value })
    });
    proto::QueryInstantResponse { series: series.collect(), metrics: Some(cost), status: status(&message), message }
}

fn status(message: &str) -> i32 {
    let status = if message.is_empty() { proto::PartialStatus::Complete } else { proto::PartialStatus::Partial };
    status.into()
}

/// The series in the order of the answer, and why some are missing.
fn finish(request: &MetricsRequest, partial: &Partial, is_part: bool) -> (Vec<Series>, String) {
    let mut series = series_of(request, partial, is_part);
    series.retain(Series::has_samples);
    for stage in request.second().filter(|_| !is_part) {
        series = second::apply(stage, series);
    }
    series.sort_by_cached_key(|series| SortKey::new(&series.labels));
    let limit = request.max_series();
    let is_cut = partial.groups.horizon.is_some();
    let message = if limit > 0 && (series.len() > limit || is_cut && series.len() == limit) {
        series.truncate(limit);
        format!(
            "Response exceeds maximum series limit of {limit}, a partial response is returned. Warning: the accuracy of each individual value is \
             not guaranteed."
        )
    } else if is_cut {
        format!(
            "the series of the query need more than {} bytes of memory, only the first {} are returned; group by fields with fewer values",
            request.limits().max_bytes,
            series.len()
        )
    } else {
        String::new()
    };
    (series, message)
}

fn series_of(request: &MetricsRequest, partial: &Partial, is_part: bool) -> Vec<Series> {
    if request.shape() == Shape::Compare {
        return compared(request, partial);
    }
    let name = |labels: Vec<Label>| {
        if request.by().is_empty() { vec![Label::new(labels::NAME, LabelValue::Text(request.function().as_str().into()))] } else { labels }
    };
    let groups = by_labels(request, partial);
    let mut all = Vec::new();
    for (group, (cells, at)) in &groups {
        let exemplars: Vec<Shown> = exemplars_of(request, partial, group);
        let here = |samples| Series { labels: name(group.clone()), samples, exemplars: exemplars.clone() };
        let (from, to) = (at * partial.groups.intervals, (at + 1) * partial.groups.intervals);
        match cells.as_ref() {
            Cells::Counts(cells) => {
                let divisor = if *request.function() == MetricsFunction::Rate { request.window().step_seconds() } else { 1.0 };
                all.push(here(cells[from..to].iter().map(|count| *count as f64 / divisor).collect()));
            }
            Cells::Min(cells) | Cells::Max(cells) => {
                all.push(here(cells[from..to].iter().map(|value| value / request.unit()).collect()));
            }
            Cells::Sums(cells) => {
                let is_average = matches!(request.function(), MetricsFunction::AvgOverTime(_));
                if is_average && is_part {
                    let count = Label::new(labels::META_TYPE, LabelValue::Text(labels::COUNT.into()));
                    let samples = cells[from..to].iter().map(|sum| if sum.count == 0 { f64::NAN } else { sum.count as f64 }).collect();
                    all.push(Series { labels: name(group.clone()).into_iter().chain([count]).collect(), samples, exemplars: Vec::new() });
                }
                all.push(here(
                    cells[from..to]
                        .iter()
                        .map(|sum| match sum.count {
                            0 => f64::NAN,
                            count if is_average => sum.total.value() / count as f64 / request.unit(),
                            _ => sum.total.value() / request.unit(),
                        })
                        .collect(),
                ));
            }
            Cells::Buckets(cells) => all.extend(of_buckets(request, &cells[*at], group, &exemplars, is_part)),
        }
    }
    // A count of nothing is 0, and a graph needs a line.
    if all.is_empty() && request.by().is_empty() && request.shape() == Shape::Count && !is_part {
        all.push(Series { labels: name(Vec::new()), samples: vec![0.0; partial.groups.intervals], exemplars: Vec::new() });
    }
    all
}

/// Cells, and the number of a group in them.
type Row<'a> = (Cow<'a, Cells>, usize);

/// Groups by the labels that are shown. Groups that look the same, because one of them has the text `nil` where others have nothing, are one.
fn by_labels<'a>(request: &MetricsRequest, partial: &'a Partial) -> Vec<(Vec<Label>, Row<'a>)> {
    let intervals = partial.groups.intervals;
    let mut groups: HashMap<Vec<Label>, Row<'a>> = HashMap::with_capacity(partial.groups.len());
    for (group, at) in partial.groups.iter() {
        let cells = &partial.groups.cells;
        match groups.entry(group_labels(request.keys(), group)) {
            Entry::Vacant(entry) => {
                entry.insert((Cow::Borrowed(cells), at));
            }
            Entry::Occupied(mut entry) => {
                let mut merged = Cells::new(request.shape());
                merged.push(intervals);
                let (known, known_at) = entry.get();
                merged.merge(0, known, *known_at, intervals);
                merged.merge(0, cells, at, intervals);
                entry.insert((Cow::Owned(merged), 0));
            }
        }
    }
    groups.into_iter().collect()
}

fn exemplars_of(request: &MetricsRequest, partial: &Partial, labels: &[Label]) -> Vec<Shown> {
    let here = |exemplar: &Exemplar| group_labels(request.keys(), &exemplar.group) == labels;
    let shown = |(trace, exemplar): (TraceId, &Exemplar)| Shown {
        trace,
        time: exemplar.time,
        value: exemplar.number.map_or(f64::NAN, |number| number.as_f64() / request.unit()),
        labels: exemplar.labels.clone(),
    };
    let mut shown: Vec<Shown> = partial.exemplars.iter().filter(|(_, exemplar)| here(exemplar)).map(shown).collect();
    shown.sort_by_key(|exemplar| (exemplar.time, exemplar.trace));
    shown
}

fn of_buckets(request: &MetricsRequest, buckets: &Buckets, group: &[Label], exemplars: &[Shown], is_part: bool) -> Vec<Series> {
    let bound = |exponent: u8| (1u64 << exponent) as f64 / request.unit();
    let labelled = |key: &str, value: f64, samples, exemplars| {
        let label = Label::new(key, LabelValue::float(value));
        Series { labels: group.iter().cloned().chain([label]).collect(), samples, exemplars }
    };
    let rows = buckets.sorted();
    if let MetricsFunction::QuantileOverTime(_, quantiles) = request.function()
        && !is_part
    {
        let quantiles: Vec<f64> = quantiles.iter().fold(Vec::new(), |mut distinct, quantile| {
            if !distinct.contains(quantile) {
                distinct.push(*quantile);
            }
            distinct
        });
        let intervals = rows.first().map_or(0, |(_, counts)| counts.len());
        let whole: Vec<(u8, u64)> = rows.iter().map(|(exponent, counts)| (*exponent, sum(counts))).collect();
        let levels: Vec<f64> = quantiles.iter().map(|quantile| self::quantile(&whole, *quantile) / request.unit()).collect();
        // An exemplar belongs to the quantile that it is nearest to.
        let nearest = |value: f64| {
            let distances = levels.iter().map(|level| (level - value).abs()).enumerate();
            distances.min_by(|left, right| left.1.total_cmp(&right.1)).map(|(place, _)| place)
        };
        let mut column: Vec<(u8, u64)> = Vec::with_capacity(rows.len());
        let mut samples: Vec<Vec<f64>> = vec![Vec::with_capacity(intervals); quantiles.len()];
        for interval in 0..intervals {
            column.clear();
            column.extend(rows.iter().map(|(exponent, counts)| (*exponent, counts[interval])).filter(|(_, count)| *count > 0));
            for (samples, quantile) in samples.iter_mut().zip(&quantiles) {
                samples.push(self::quantile(&column, *quantile) / request.unit());
            }
        }
        return quantiles
            .iter()
            .zip(samples)
            .enumerate()
            .map(|(place, (quantile, samples))| {
                let mine = exemplars.iter().filter(|exemplar| nearest(exemplar.value) == Some(place)).cloned().collect();
                labelled(labels::QUANTILE, *quantile, samples, mine)
            })
            .collect();
    }
    let of_row = |(exponent, counts): (u8, &[u64])| {
        let in_bucket = |exemplar: &&Shown| Number::Int((exemplar.value * request.unit()).round() as i64).exponent() == Some(exponent);
        // Spans are counted: an exemplar's value is that of the sample.
        let counted = |exemplar: &Shown| Shown { value: f64::NAN, ..exemplar.clone() };
        let mine = exemplars.iter().filter(in_bucket).map(counted).collect();
        labelled(labels::BUCKET, bound(exponent), counts.iter().map(|count| *count as f64).collect(), mine)
    };
    rows.into_iter().map(of_row).collect()
}

/// The value below which a share of the values lies, as far as buckets tell: within a bucket values are taken to be spread evenly over its
/// logarithm. Buckets are ascending and not empty; none give 0.
fn quantile(buckets: &[(u8, u64)], share: f64) -> f64 {
    let bound = |exponent: u8| (1u64 << exponent) as f64;
    let total: u128 = buckets.iter().map(|(_, count)| u128::from(*count)).sum();
    if total == 0 {
        return 0.0;
    }
    let needed = ((share * total as f64).ceil() as u128).max(1);
    let mut seen = 0;
    let mut below = None;
    for (exponent, count) in buckets.iter().copied().filter(|(_, count)| *count > 0) {
        let count = u128::from(count);
        if seen + count > needed {
            let high = f64::from(exponent);
            let low = below.map_or(high - 1.0, f64::from);
            let part = (needed - seen) as f64 / count as f64;
            return (low + (high - low) * part).exp2();
        }
        seen += count;
        if seen == needed {
            return bound(exponent);
        }
        below = Some(exponent);
    }
    below.map_or(0.0, bound)
}

fn compared(request: &MetricsRequest, partial: &Partial) -> Vec<Series> {
    let MetricsFunction::Compare { top_n, .. } = request.function() else {
        return Vec::new();
    };
    let top_n = usize::try_from(*top_n).unwrap_or(0);
    let mut all = Vec::new();
    let samples = |counts: &[u64], times: u64| counts.iter().map(|count| count.saturating_mul(times) as f64).collect();
    for (key, attribute) in partial.comparison.iter() {
        // Tempo fetches an attribute that a condition asks for once for the condition and once more with all attributes, and counts both.
        let times = if request.conditions_ask_for(key) { 2 } else { 1 };
        let key: Arc<str> = key.into();
        let mut push = |meta: String, value, counts: &[u64]| {
            let labels = vec![Label::new(labels::META_TYPE, LabelValue::Text(meta.into())), Label { key: Arc::clone(&key), value }];
            all.push(Series { labels, samples: samples(counts, times), exemplars: Vec::new() });
        };
        for (side, name) in SIDES.into_iter().enumerate() {
            for (value, counts) in attribute.top(request, side, top_n) {
                push(name.to_owned(), value.clone(), counts);
            }
            if !attribute.totals[side].is_empty() {
                push(format!("{name}_total"), LabelValue::Nil, &attribute.totals[side]);
            }
        }
    }
    all
}

fn show_exemplar(request: &MetricsRequest, series: &Series, exemplar: &Shown) -> Option<proto::Exemplar> {
    let sample = series.samples[request.window().interval(exemplar.time)?];
    if sample.is_nan() {
        return None;
    }
    let fields = exemplar.labels.iter().map(|(key, value)| key_value(key, value.shown()));
    let trace = key_value(labels::TRACE_ID, any_value::Value::StringValue(exemplar.trace.to_hex()));
    Some(proto::Exemplar {
        labels: fields.chain([trace]).collect(),
        value: if exemplar.value.is_nan() { sample } else { exemplar.value },
        timestamp_ms: i64::try_from(exemplar.time / 1_000_000).unwrap_or(i64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_on_the_logarithm() {
        // 4, 4, 8, 8 as buckets of 2^2 and 2^3.
        let buckets = [(2, 2), (3, 2)];
        assert_eq!(quantile(&buckets, 0.5), 4.0, "exactly the bound of a bucket");
        assert_eq!(quantile(&buckets, 0.0), 2f64.powf(1.5), "at least one value is needed");
        assert_eq!(quantile(&buckets, 0.75), 2f64.powf(2.5));
        assert_eq!(quantile(&buckets, 1.0), 8.0);
        assert_eq!(quantile(&[(1, 1), (10, 2)], 0.6), 2f64.powf(5.5), "from the nearest bucket below, however far");
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
