//! TraceQL metrics: panels, alerts and the pictures of Traces Drilldown.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Code;

use super::{
    CHECKOUT, Fixture, SECOND, SHOP, TICKS, of_tenant,
    protocols::tempopb::{QueryInstantRequest, QueryRangeRequest},
    strict::{self, AnyValue, MetricsInstant, MetricsRange, Series},
    text,
};

/// Spans that were sent.
const SPANS: f64 = TICKS as f64 + 6.0;
/// Those without a parent.
const ROOTS: f64 = TICKS as f64 + 3.0;
const STEP: f64 = 10.0;

impl Fixture {
    async fn series(&self, q: &str, parameters: &[(&str, &str)]) -> Vec<Series> {
        // Of two steps the first one counts.
        let parameters: Vec<_> = [("q", q)].iter().chain(parameters).chain(&[("step", "10s")]).copied().collect();
        strict::read::<MetricsRange>(&self.ask("/api/metrics/query_range", &parameters).await).series
    }
}

/// The value of the only label of that name.
#[track_caller]
fn label<'a>(series: &'a Series, key: &str) -> &'a AnyValue {
    let label = series.labels.iter().find(|label| label.key == key);
    &label.unwrap_or_else(|| panic!("no {key} in {series:?}")).value
}

fn sum(series: &Series) -> f64 {
    series.samples.iter().map(|sample| sample.value).sum()
}

/// Sums by the text of a label.
fn sums(series: &[Series], key: &str) -> BTreeMap<String, f64> {
    let name = |series: &Series| match label(series, key) {
        AnyValue::String(text) => text.clone(),
        other => format!("{other:?}"),
    };
    series.iter().map(|series| (name(series), (sum(series) * STEP).round())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_without_groups_has_a_name_and_aligned_samples() {
    let fixture = Fixture::get().await;
    for (q, spans) in [
        ("{} | rate()", SPANS),
        ("{nestedSetParent<0 && true} | rate()", ROOTS),
        ("{nestedSetParent<0 && true} | rate() with(sample=true)", ROOTS),
        ("{kind=server && true && status=error} | rate()", 0.0),
        ("{true && status=error} | rate()", 1.0),
        ("{kind=consumer} | rate()", 1.0),
        ("{span.db.system.name!=\"\"} | rate()", 1.0),
    ] {
        let series = fixture.series(q, &[]).await;
        assert_eq!((series.iter().map(sum).sum::<f64>() * STEP).round(), spans, "{q}");
        assert!(series.len() == 1 || spans == 0.0, "{q}: {series:?}");
        for series in &series {
            assert_eq!((series.labels.len(), label(series, "__name__")), (1, &text("rate")), "{q}");
            let times: Vec<_> = series.samples.iter().map(|sample| sample.timestamp_ms).collect();
            assert!(times.is_sorted() && times.iter().all(|time| time % 10_000 == 0), "ends of intervals: {times:?}");
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 10_000), "empty intervals are there: {times:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_counts_in_the_interval_that_ends_after_it() {
    let fixture = Fixture::get().await;
    // The checkout begins at a whole second, which is the end of an interval that includes it.
    let series = fixture.series("{ name = \"GET /checkout\" } | count_over_time()", &[("step", "1s")]).await;
    let found: Vec<_> = series[0].samples.iter().filter(|sample| sample.value > 0.0).collect();
    assert_eq!((found.len(), found[0].timestamp_ms, found[0].value), (1, (fixture.base / 1_000_000) as i64, 1.0));
    assert_eq!(label(&series[0], "__name__"), &text("count_over_time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_labelled_as_the_query_says() {
    let fixture = Fixture::get().await;
    let by_service =
        fixture.series("{nestedSetParent<0 && true && resource.service.name != nil} | rate() by(resource.service.name)", &[]).await;
    // A resource without a service has an empty one.
    let expected = [("", 1.0), ("clock", f64::from(TICKS)), ("shop-backend", 1.0), ("worker", 1.0)];
    assert_eq!(sums(&by_service, "resource.service.name"), expected.map(|(name, spans)| (name.to_owned(), spans)).into());
    assert!(by_service.iter().all(|series| series.labels.len() == 1));

    let with_nil = fixture.series("{nestedSetParent<0} | rate() by(resource.deployment.environment)", &[]).await;
    let expected = [("nil", ROOTS - 1.0), ("prod", 1.0)];
    assert_eq!(sums(&with_nil, "resource.deployment.environment"), expected.map(|(name, spans)| (name.to_owned(), spans)).into());

    let by_code = fixture.series("{span.http.status_code != nil} | rate() by(span.http.status_code)", &[]).await;
    let codes: BTreeSet<_> = by_code.iter().map(|series| format!("{:?}", label(series, "span.http.status_code"))).collect();
    assert_eq!(codes, ["Int(200)", "Int(500)"].map(str::to_owned).into());

    let by_status = fixture.series("{true} | rate() by(status)", &[]).await;
    assert_eq!(sums(&by_status, "status"), [("error", 1.0), ("unset", SPANS - 1.0)].map(|(name, spans)| (name.to_owned(), spans)).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn quantiles_and_histograms_are_in_seconds() {
    let fixture = Fixture::get().await;
    let quantiles = fixture.series("{kind = consumer} | quantile_over_time(duration, 0.9, 0.5)", &[]).await;
    let p: BTreeSet<_> = quantiles.iter().map(|series| format!("{:?}", label(series, "p"))).collect();
    assert_eq!(p, ["Double(0.5)", "Double(0.9)"].map(str::to_owned).into());
    for series in &quantiles {
        let highest = series.samples.iter().map(|sample| sample.value).fold(0.0, f64::max);
        assert!((1.0..=2.2).contains(&highest), "1.5 s, within a power of two: {highest}");
    }
    let grouped = fixture.series("{true} | quantile_over_time(duration, 0.9) by(resource.service.name)", &[]).await;
    assert!(grouped.iter().all(|series| label(series, "p") == &AnyValue::Double(0.9)));

    let buckets = fixture.series("{kind = consumer} | histogram_over_time(duration) with(sample=true)", &[]).await;
    let [bucket] = buckets.as_slice() else { panic!("{buckets:?}") };
    let AnyValue::Double(bound) = label(bucket, "__bucket") else { panic!("{bucket:?}") };
    // Bounds are powers of two of nanoseconds.
    assert_eq!((*bound, sum(bucket)), ((1u64 << 31) as f64 / 1e9, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_tells_selection_from_baseline() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds();
    let (from, to) = (fixture.base - SECOND, fixture.base + 30 * SECOND);
    for q in
        ["{true && true} | compare({status = error}, 10)".to_owned(), format!("{{true}} | compare({{status = error}}, 10, {from}, {to})")]
    {
        let step = format!("{}s", end - start);
        let series = fixture.series(&q, &[("step", &step), ("limit", "100"), ("spss", "10")]).await;
        let mut totals = BTreeMap::new();
        for series in &series {
            let [meta, attribute] = series.labels.as_slice() else { panic!("{series:?}") };
            let AnyValue::String(kind) = &meta.value else { panic!("{series:?}") };
            assert_eq!(meta.key, "__meta_type");
            assert!(["baseline", "selection", "baseline_total", "selection_total"].contains(&kind.as_str()), "{kind}");
            assert!(!attribute.key.starts_with("__"));
            let value = format!("{:?}", attribute.value);
            totals.insert((kind.clone(), attribute.key.clone(), value), sum(series));
        }
        let total = |kind: &str, key: &str, value: &str| totals.get(&(kind.to_owned(), key.to_owned(), value.to_owned())).copied();
        assert_eq!(total("selection", "span.http.status_code", "Int(500)"), Some(1.0), "{q}: {totals:?}");
        assert_eq!(total("baseline", "span.http.status_code", "Int(200)"), Some(1.0), "{q}");
        assert_eq!(total("selection", "resource.service.name", "String(\"shop-backend\")"), Some(1.0), "{q}");
        assert_eq!(total("baseline", "resource.service.name", "String(\"clock\")"), Some(f64::from(TICKS)), "{q}");
        assert_eq!(total("selection_total", "resource.service.name", "String(\"nil\")"), Some(1.0), "{q}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exemplars_lead_to_traces() {
    let fixture = Fixture::get().await;
    let series = fixture.series("{ status = error } | max_over_time(duration)", &[("exemplars", "5")]).await;
    let [exemplar] = series[0].exemplars.as_slice() else { panic!("{series:?}") };
    let id = exemplar.labels.iter().find(|label| label.key == "trace:id").expect("the trace");
    let AnyValue::String(id) = &id.value else { panic!("{exemplar:?}") };
    assert_eq!(id.trim_start_matches('0'), CHECKOUT.to_string().trim_start_matches('0'));
    assert!(exemplar.value > 0.0 && exemplar.timestamp_ms > 0, "Grafana drops others");
    let rate = fixture.series("{ status = error } | rate()", &[("exemplars", "5")]).await;
    assert!(rate[0].exemplars.iter().all(|exemplar| exemplar.value > 0.0 && exemplar.timestamp_ms > 0), "{rate:?}");
    assert!(!rate[0].exemplars.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn times_steps_and_names_come_in_several_forms() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds();
    let total = async |parameters: &[(&str, &str)]| {
        let answer = fixture.client().query("/api/metrics/query_range", parameters).await;
        let series = strict::read::<MetricsRange>(&answer).series;
        series.iter().map(sum).sum::<f64>()
    };
    let q = ("q", "{} | count_over_time()");
    let (start, end) = (start.to_string(), end.to_string());
    let nanos = |seconds: &str| format!("{seconds}000000000");
    assert_eq!(total(&[q, ("start", &start), ("end", &end)]).await, SPANS);
    assert_eq!(total(&[("query", q.1), ("start", &start), ("end", &end), ("step", "15")]).await, SPANS);
    assert_eq!(total(&[q, ("start", &nanos(&start)), ("end", &nanos(&end)), ("step", "1m30s")]).await, SPANS);
    assert_eq!(total(&[q, ("start", &format!("{start}.5")), ("end", &end)]).await, SPANS);
    assert_eq!(total(&[q, ("since", "1h")]).await, SPANS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instant_is_one_value_per_series() {
    let fixture = Fixture::get().await;
    let instant = async |q: &str| {
        let answer = fixture.ask("/api/metrics/query", &[("q", q), ("step", "15s"), ("exemplars", "5")]).await;
        strict::read::<MetricsInstant>(&answer)
    };
    let counted = instant("{} | count_over_time()").await;
    assert_eq!(counted.series.iter().map(|series| series.value).collect::<Vec<_>>(), [SPANS]);
    assert_eq!(counted.series[0].labels[0].key, "__name__");
    let metrics = counted.metrics.expect("metrics, always");
    assert!(metrics.total_jobs > 0 && metrics.completed_jobs == metrics.total_jobs, "{metrics:?}");
    let rates = instant("{} | rate() by(resource.service.name) | topk(1)").await;
    let [top] = rates.series.as_slice() else { panic!("{rates:?}") };
    assert_eq!(top.labels[0].value, text("clock"));
    assert!((top.value - f64::from(TICKS) / 120.0).abs() < 1e-9, "{}", top.value);
    assert!(instant("{ name = \"nothing\" } | rate() by(name)").await.series.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_words_that_grafana_knows() {
    let fixture = Fixture::get().await;
    for path in ["/api/metrics/query_range", "/api/metrics/query"] {
        let ask = async |parameters: &[(&str, &str)]| {
            let answer = fixture.client().query(path, parameters).await;
            assert_eq!(answer.status, 400, "{}", answer.text());
            answer.text()
        };
        let long = ask(&[("q", "{} | rate()"), ("start", "1700000000"), ("end", "1700100000"), ("step", "1h")]).await;
        assert_eq!(long, "metrics query time range exceeds the maximum allowed duration of 3h0m0s");
        assert_eq!(ask(&[("q", "{}")]).await, "not a metrics query");
        assert_eq!(ask(&[("q", "{} | rate()"), ("start", "20"), ("end", "10")]).await, "end must be greater than start");
    }
    let small = fixture.ask("/api/metrics/query_range", &[("q", "{} | rate()"), ("step", "1ms")]).await;
    assert_eq!((small.status, small.text().as_str()), (400, "step of 1ms is too small, minimum step for given range is 12ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_what_http_answers() {
    let fixture = Fixture::get().await;
    fixture.wait_for_blocks().await;
    let [start, end] = fixture.seconds().map(|seconds| u64::from(seconds) * SECOND);
    let query = "{} | count_over_time() by(name)".to_owned();
    let mut client = fixture.streaming();
    let request = QueryRangeRequest { query: query.clone(), start, end, step: 10 * SECOND, ..QueryRangeRequest::default() };
    let mut stream = client.metrics_query_range(of_tenant(SHOP, request)).await.expect("a stream").into_inner();
    // As Grafana: for one time, the first sample stays.
    let mut merged: BTreeMap<(String, i64), f64> = BTreeMap::new();
    let mut last = None;
    while let Some(message) = stream.message().await.expect("no error") {
        for series in &message.series {
            let labels = format!("{:?}", series.labels);
            for sample in &series.samples {
                merged.entry((labels.clone(), sample.timestamp_ms)).or_insert(sample.value);
            }
        }
        last = Some(message);
    }
    let last = last.expect("a final message, always");
    let http = fixture.series(&query, &[]).await;
    assert_eq!(last.series.len(), http.len());
    for (streamed, asked) in last.series.iter().zip(&http) {
        let samples = |time: i64, value: f64| (time, value.to_bits());
        let streamed: Vec<_> = streamed.samples.iter().map(|sample| samples(sample.timestamp_ms, sample.value)).collect();
        assert_eq!(streamed, asked.samples.iter().map(|sample| samples(sample.timestamp_ms, sample.value)).collect::<Vec<_>>());
    }
    assert_eq!(merged.values().sum::<f64>(), SPANS);
    let metrics = last.metrics.expect("metrics, always");
    assert_eq!(metrics.completed_jobs, metrics.total_jobs);

    let request = QueryInstantRequest { query: "{} | count_over_time()".to_owned(), start, end };
    let mut stream = client.metrics_query_instant(of_tenant(SHOP, request)).await.expect("a stream").into_inner();
    let mut last = None;
    while let Some(message) = stream.message().await.expect("no error") {
        last = Some(message);
    }
    assert_eq!(last.expect("a final message").series.iter().map(|series| series.value).collect::<Vec<_>>(), [SPANS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_step_has_the_default_and_without_a_range_an_error() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds().map(|seconds| u64::from(seconds) * SECOND);
    let mut client = fixture.streaming();
    let ask = |start, end| QueryRangeRequest { query: "{} | rate()".to_owned(), start, end, ..QueryRangeRequest::default() };
    let mut stream = client.metrics_query_range(of_tenant(SHOP, ask(start, end))).await.expect("a stream").into_inner();
    let mut times = Vec::new();
    while let Some(message) = stream.message().await.expect("no error") {
        times = message.series.iter().flat_map(|series| &series.samples).map(|sample| sample.timestamp_ms).collect();
    }
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1000), "a second for two minutes");
    for (request, text) in [(ask(0, end), "start required"), (ask(start, 0), "end required")] {
        let refused = async { client.metrics_query_range(of_tenant(SHOP, request)).await?.into_inner().message().await };
        let status = refused.await.expect_err("refused");
        assert_eq!((status.code(), status.message()), (Code::Unknown, text));
    }
}
