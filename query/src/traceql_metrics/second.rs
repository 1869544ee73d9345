//! What is done to finished series: `topk`, `bottomk`, comparisons.

use std::cmp::Ordering;

use super::{finish::Series, labels::rank_order};
use crate::traceql::{BinaryOp, SecondStage};

/// Applies a stage.
pub(super) fn apply(stage: &SecondStage, series: Vec<Series>) -> Vec<Series> {
    match stage {
        SecondStage::TopK(limit) => rank(series, *limit, |left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))),
        SecondStage::BottomK(limit) => rank(series, *limit, |left, right| left.0.total_cmp(&right.0).then(right.1.cmp(&left.1))),
        SecondStage::Filter { op, value } => filter(series, |sample| holds(*op, sample, *value)),
    }
}

/// A sample, and the place of its series in the order of labels.
type Contender = (f64, usize);

/// Keeps, in each interval, the `limit` samples that come first.
fn rank(mut series: Vec<Series>, limit: u64, order: impl Fn(&Contender, &Contender) -> Ordering) -> Vec<Series> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if series.len() <= limit {
        return series;
    }
    series.sort_by(|left, right| rank_order(&left.labels, &right.labels));
    let intervals = series.first().map_or(0, |series| series.samples.len());
    let mut contenders: Vec<Contender> = Vec::with_capacity(series.len());
    for interval in 0..intervals {
        contenders.clear();
        // Zeros of both signs are one value.
        contenders.extend(series.iter().enumerate().map(|(place, series)| (series.samples[interval] + 0.0, place)));
        contenders.retain(|(sample, _)| !sample.is_nan());
        if contenders.len() > limit {
            contenders.select_nth_unstable_by(limit, &order);
            for (_, place) in contenders.drain(limit..) {
                series[place].samples[interval] = f64::NAN;
            }
        }
    }
    series.retain(Series::has_samples);
    series
}

fn filter(mut series: Vec<Series>, holds: impl Fn(f64) -> bool) -> Vec<Series> {
    for series in &mut series {
        series.samples.iter_mut().filter(|sample| !holds(**sample)).for_each(|sample| *sample = f64::NAN);
        series.exemplars.retain(|exemplar| !exemplar.value.is_nan() && holds(exemplar.value));
    }
    series.retain(Series::has_samples);
    series
}

fn holds(op: BinaryOp, sample: f64, value: f64) -> bool {
    match op {
        BinaryOp::Equal => sample == value,
        BinaryOp::NotEqual => sample != value,
        BinaryOp::Greater => sample > value,
        BinaryOp::GreaterEqual => sample >= value,
        BinaryOp::Less => sample < value,
        BinaryOp::LessEqual => sample <= value,
        // The grammar has no others here.
        _ => false,
    }
}
