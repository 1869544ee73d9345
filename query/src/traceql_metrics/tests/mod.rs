//! Metrics against the corpus, and against a naive reference on random traces.

mod bounds;
mod corpus;
mod naive;
mod random;

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::common::v1::any_value;
use storage::block::{Reader, Trace};

use super::{Asked, Cost, MetricsError, MetricsLimits, MetricsRequest, Observer, Partial, finish_instant, finish_range};
use crate::{
    columns::{Batch, Scan},
    proto, traceql,
};

/// Series by their labels, which are texts with their types; samples by time in milliseconds.
type Table = BTreeMap<Vec<(String, String)>, Vec<(i64, f64)>>;

fn request(query: &str, asked: Asked) -> MetricsRequest {
    request_within(query, asked, MetricsLimits::default())
}

fn request_within(query: &str, asked: Asked, limits: MetricsLimits) -> MetricsRequest {
    let query = traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    MetricsRequest::new(Arc::new(query), asked, limits).expect("a metrics query")
}

/// Counts traces as one batch.
fn count(request: &MetricsRequest, traces: &[Trace]) -> Result<Partial, MetricsError> {
    let mut observer = Observer::new(Arc::new(request.clone()));
    observer.observe(&Batch::live(traces.to_vec()), None)?;
    Ok(observer.finish())
}

/// Counts a block.
async fn count_block(request: &MetricsRequest, reader: &Arc<Reader>) -> Result<Partial, MetricsError> {
    let mut observer = Observer::new(Arc::new(request.clone()));
    let scan = Scan::new(Arc::clone(reader), Arc::new(request.wanted())).expect("a block");
    for row_group in 0..scan.row_groups() {
        let mut batches = scan.row_group(row_group).await.expect("a row group");
        while let Some(batch) = batches.next().await.expect("a batch") {
            observer.observe(&batch, None)?;
        }
    }
    Ok(observer.finish())
}

fn table(answer: &proto::QueryRangeResponse) -> Table {
    let sample = |sample: &proto::Sample| (sample.timestamp_ms, sample.value);
    answer.series.iter().map(|series| (labels(&series.labels), series.samples.iter().map(sample).collect())).collect()
}

fn labels(labels: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> Vec<(String, String)> {
    labels.iter().map(|label| (label.key.clone(), typed(label.value.as_ref().and_then(|value| value.value.as_ref())))).collect()
}

fn typed(value: Option<&any_value::Value>) -> String {
    format!("{value:?}")
}

/// The answer to a request as a table, whether range or instant.
fn answer(request: &MetricsRequest, partial: &Partial) -> Table {
    if request.asked().instant {
        let time = request.window().timestamp_ms(0);
        let answer = finish_instant(request, partial, Cost::default());
        answer.series.iter().map(|series| (labels(&series.labels), vec![(time, series.value)])).collect()
    } else {
        table(&finish_range(request, partial, Cost::default()))
    }
}

/// What differs between two tables; nothing when values are equal up to a share.
fn difference(expected: &Table, found: &Table, tolerance: f64) -> Option<String> {
    let zeros = |samples: &Vec<(i64, f64)>| samples.iter().all(|(_, value)| *value == 0.0);
    for (labels, samples) in expected {
        match found.get(labels) {
            None if zeros(samples) => {}
            None => return Some(format!("series {labels:?} is missing, there are {:?}", found.keys())),
            Some(found) => {
                let same = |((time, value), (found_time, found)): (&(i64, f64), &(i64, f64))| {
                    time == found_time && (value == found || (value - found).abs() <= tolerance * value.abs().max(found.abs()))
                };
                if samples.len() != found.len() || !samples.iter().zip(found).all(same) {
                    return Some(format!("series {labels:?}\n      expected {samples:?}\n      found    {found:?}"));
                }
            }
        }
    }
    found
        .iter()
        .find(|(labels, samples)| !expected.contains_key(*labels) && !zeros(samples))
        .map(|(labels, samples)| format!("series {labels:?} is too many: {samples:?}"))
}
