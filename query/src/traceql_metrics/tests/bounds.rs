//! Memory, limits, exemplars.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use storage::{block::Trace, id::TraceId};

use super::{
    super::{Asked, Cost, MetricsError, MetricsLimits, MetricsRequest, Partial, finish_range},
    count, request, request_within,
};
use crate::{proto, traceql};

const BASE: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

/// Traces of one span, each with a `span.id` of its own, a second apart.
fn traces(from: u64, to: u64) -> Vec<Trace> {
    let trace = |number: u64| {
        let trace_id = TraceId((u128::from(number) << 64 | 7).to_be_bytes());
        let id = KeyValue {
            key: "id".to_owned(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(format!("{number:06}"))) }),
            ..KeyValue::default()
        };
        let start = BASE + number % 1_000 * SECOND + 1;
        let span = Span {
            trace_id: trace_id.0.to_vec(),
            span_id: (number + 1).to_be_bytes().to_vec(),
            name: "call".to_owned(),
            start_time_unix_nano: start,
            end_time_unix_nano: start + (number + 1) * 1_000_000,
            attributes: vec![id],
            ..Span::default()
        };
        Trace {
            trace_id,
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        }
    };
    (from..to).map(trace).collect()
}

fn asked() -> Asked {
    Asked { start: BASE, end: BASE + 1_000 * SECOND, step: Some(10 * SECOND), ..Asked::default() }
}

fn tight(query: &str) -> MetricsRequest {
    request_within(query, asked(), MetricsLimits { max_bytes: 1 << 20, ..MetricsLimits::default() })
}

#[test]
fn what_does_not_fit_into_memory_is_cut_at_one_place() {
    let request = tight("{} | count_over_time() by (span.id)");
    let whole = count(&request, &traces(0, 5_000)).expect("cut");
    let mut parts = count(&request, &traces(2_500, 5_000)).expect("cut");
    parts.merge(&request, &count(&request, &traces(0, 2_500)).expect("cut")).expect("cut");
    for partial in [whole, parts] {
        let answer = finish_range(&request, &partial, Cost::default());
        assert_eq!(answer.status(), proto::PartialStatus::Partial);
        assert!(answer.message.contains("1048576 bytes of memory"), "{}", answer.message);
        assert!(answer.series.len() > 300, "{}", answer.series.len());
        for (number, series) in answer.series.iter().enumerate() {
            let value = series.labels[0].value.clone().and_then(|value| value.value);
            assert_eq!(value, Some(any_value::Value::StringValue(format!("{number:06}"))), "the first ones, none left out");
            assert_eq!(series.samples.iter().map(|sample| sample.value).sum::<f64>(), 1.0);
        }
    }
}

#[test]
fn a_choice_among_too_few_is_refused() {
    let error = count(&tight("{} | rate() by (span.id) | topk(3)"), &traces(0, 5_000)).expect_err("too large");
    assert!(matches!(error, MetricsError::TooLarge { max_bytes: 1_048_576 }), "{error}");
    assert_eq!(
        error.to_string(),
        "the series of the query need more than 1048576 bytes of memory, narrow its time range, use a larger step, or group by fields with \
         fewer values"
    );
    let exact = request("{} | rate() by (span.id) | topk(3)", asked());
    assert!(count(&exact, &traces(0, 5_000)).is_ok());
}

#[test]
fn attributes_with_too_many_values_are_told_by_their_totals() {
    let request = request("{} | compare({ duration > 1s })", Asked { step: Some(1_000 * SECOND), ..asked() });
    let total = |partial: &Partial| {
        let answer = finish_range(&request, partial, Cost::default());
        let mut found: Vec<(String, f64)> = Vec::new();
        for series in answer.series.iter().filter(|series| series.labels[1].key == "span.id") {
            let meta = series.labels[0].value.clone().and_then(|value| value.value);
            found.push((format!("{meta:?}"), series.samples.iter().map(|sample| sample.value).sum()));
        }
        found
    };
    let whole = count(&request, &traces(0, 30_000)).expect("fits");
    let found = total(&whole);
    assert_eq!(found.len(), 2, "no values, two totals: {found:?}");
    assert_eq!(found.iter().map(|(_, sum)| sum).sum::<f64>(), 30_000.0);
    let mut parts = count(&request, &traces(0, 15_000)).expect("fits");
    parts.merge(&request, &count(&request, &traces(15_000, 30_000)).expect("fits")).expect("fits");
    assert_eq!(total(&parts), found, "each part has few enough values, both together have not");
    let few = total(&count(&request, &traces(0, 100)).expect("fits"));
    assert_eq!(few.len(), 10 + 1, "{few:?}");
}

#[test]
fn a_wide_comparison_is_refused_before_it_takes_all_memory() {
    let error = count(&tight("{} | compare({ duration > 1s })"), &traces(0, 3_000)).expect_err("too large");
    assert!(matches!(error, MetricsError::TooLarge { .. }), "{error}");
}

fn exemplars(query: &str, exemplars: u32) -> Vec<proto::TimeSeries> {
    let request = request(query, Asked { exemplars, ..asked() });
    finish_range(&request, &count(&request, &traces(0, 1_000)).expect("fits"), Cost::default()).series
}

#[test]
fn exemplars_are_spread_and_lead_to_traces() {
    let series = exemplars("{ span.id != nil } | max_over_time(duration)", 20);
    let found = &series[0].exemplars;
    assert!((10..=20).contains(&found.len()), "{}", found.len());
    assert!(found.is_sorted_by_key(|exemplar| exemplar.timestamp_ms));
    let slice = 1_010_000 / 10;
    for start in (0..10).map(|number| (BASE / 1_000_000) as i64 - 10_000 + number * slice) {
        let here = found.iter().filter(|exemplar| (start..start + slice).contains(&exemplar.timestamp_ms)).count();
        assert!(here <= 3, "two per slice, and one at the edge: {here}");
    }
    for exemplar in found {
        let text = |key: &str| match exemplar.labels.iter().find(|label| label.key == key).and_then(|label| label.value.clone()?.value) {
            Some(any_value::Value::StringValue(text)) => text,
            other => panic!("{key}: {other:?}"),
        };
        let number: u64 = text("span.id").parse().expect("a number");
        assert_eq!(text("trace:id"), format!("{number:016x}{:016x}", 7));
        assert_eq!(exemplar.value, (number + 1) as f64 / 1e3, "the value that was aggregated, in seconds");
        assert_eq!(exemplar.timestamp_ms, ((BASE + number * SECOND + 1) / 1_000_000) as i64);
    }
}

#[test]
fn exemplars_of_counts_have_the_value_of_their_sample_and_are_dropped_by_comparisons() {
    let series = exemplars("{} | count_over_time()", 10);
    assert!(!series[0].exemplars.is_empty());
    assert!(series[0].exemplars.iter().all(|exemplar| exemplar.value == 10.0), "ten spans in each interval");
    assert!(exemplars("{} | count_over_time() > 1", 10)[0].exemplars.is_empty());
    let kept = exemplars("{} | max_over_time(duration) > 500ms", 10);
    assert!(kept[0].exemplars.iter().all(|exemplar| exemplar.value > 0.5));
}

#[test]
fn hints_and_limits_bound_exemplars() {
    let number = |query: &str, exemplars: u32| self::exemplars(query, exemplars)[0].exemplars.len();
    assert_eq!(number("{} | rate() with(exemplars=false)", 10), 0);
    assert!((1..=4).contains(&number("{} | rate() with(exemplars=4)", 50)));
    assert!((50..=100).contains(&number("{} | rate() with(exemplars=true)", 0)), "the default");
    assert!((50..=100).contains(&number("{} | rate()", 5_000)), "no more than the limit");
    let instant = request("{} | rate()", Asked { instant: true, ..asked() });
    let answer = finish_range(&instant, &count(&instant, &traces(0, 10)).expect("fits"), Cost::default());
    assert!(answer.series[0].exemplars.is_empty(), "instant queries have none");
}

#[test]
fn exemplars_go_to_the_series_that_they_are_of() {
    let series = exemplars("{} | histogram_over_time(duration)", 100);
    assert!(series.len() > 3);
    for series in &series {
        for exemplar in &series.exemplars {
            let sample = series.samples.iter().find(|sample| sample.timestamp_ms > exemplar.timestamp_ms).expect("sampled");
            assert_eq!(exemplar.value, sample.value);
            assert!(sample.value > 0.0, "the span is in the bucket");
        }
    }
    let quantiles = exemplars("{} | quantile_over_time(duration, .1, .9)", 100);
    assert!(quantiles.iter().all(|series| !series.exemplars.is_empty()));
    let means: Vec<f64> = quantiles
        .iter()
        .map(|series| series.exemplars.iter().map(|exemplar| exemplar.value).sum::<f64>() / series.exemplars.len() as f64)
        .collect();
    assert!(means[0] < means[1], "each near its quantile: {means:?}");
}

#[test]
fn queries_travel_as_text_and_numbers() {
    let first = request("{ span.a > 1 } | rate() by (name) with(exemplars=7)", Asked { max_series: 9, exemplars: 3, ..asked() });
    let again = MetricsRequest::from_proto(&first.to_proto(), MetricsLimits::default()).expect("valid");
    assert_eq!(first, again);
    // Neither has a canonical text that means the same.
    for text in ["{ span.a = \"`\" } | rate()", "{ nil = event.a } | rate()"] {
        let sent = request(text, asked()).to_proto();
        let received = MetricsRequest::from_proto(&sent, MetricsLimits::default()).expect("valid");
        assert_eq!(received, request(text, asked()), "{text}");
    }
    let spans = proto::QueryRangeRequest { query: "{}".to_owned(), start: 1, end: 2, step: 1, ..Default::default() };
    let error = MetricsRequest::from_proto(&spans, MetricsLimits::default()).expect_err("no function");
    assert_eq!(error.to_string(), "not a metrics query");
    assert!(traceql::parse("{} | rate()").expect("valid").metrics().is_some());
}
