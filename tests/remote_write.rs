//! Remote write to a real Prometheus by each protocol and with each kind of histogram: all that it stored, asked for by queries.

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use storage::id::TraceId;

use crate::{
    harness::{
        client::last_hour,
        eventually, now_ns,
        otlp::{body, request, span, string},
        server::{Config, Server},
    },
    prometheus::Prometheus,
};

/// A protocol, by its message.
const V1: &str = "prometheus.WriteRequest";
const V2: &str = "io.prometheus.write.v2.Request";
/// The first Prometheus that knows the latter. Ones that are much older cannot say either what a native histogram was last.
const V2_SINCE: (u32, u32) = (2, 54);
/// The first whose receiver is known to make something of when series began.
const BEGINNINGS_SINCE: (u32, u32) = (3, 5);

/// Collects three times a second; a series that nothing adds to ends after two seconds.
fn config(prometheus: &Prometheus, message: &str, histograms: &str) -> Config {
    let more = format!(
        "
metrics_generator:
  registry:
    collection_interval: 300ms
    stale_duration: 2s
    external_labels: {{source: rubato}}
  metrics_ingestion_time_range_slack: 10m
  processor:
    span_metrics: {{enable_target_info: true}}
  storage:
    path: unused
    remote_write:
      - url: {}/api/v1/write
        send_exemplars: true
        protobuf_message: {message}
overrides:
  defaults:
    metrics_generator:
      processors: [span-metrics]
      generate_native_histograms: {histograms}
",
        prometheus.url
    );
    // A test has one configuration.
    Config { more: more.leak(), ..Config::default() }
}

/// Ten spans of 20 ms and five of 300 ms, each of a trace of its own.
fn spans(first_trace: u128) -> Vec<Span> {
    let end = now_ns();
    let of = |trace: u128| Span {
        start_time_unix_nano: end - if (trace - first_trace) < 10 { 20_000_000 } else { 300_000_000 },
        end_time_unix_nano: end,
        ..span(TraceId(trace.to_be_bytes()), 1, "work")
    };
    (first_trace..first_trace + 15).map(of).collect()
}

/// The sum of series as they were last, also of those that have ended since.
fn ever(series: &str) -> String {
    format!("sum(last_over_time({series}[1h]))")
}

fn is_near(found: Option<f64>, expected: f64) -> bool {
    found.is_some_and(|found| (found / expected - 1.0).abs() < 1e-9)
}

fn knows_v2() -> bool {
    Prometheus::version().is_some_and(|version| version >= V2_SINCE)
}

/// Sends spans until their series end, and once more, and looks at everything that Prometheus has then.
async fn everything_is_stored(message: &str, histograms: &str) {
    let Some(prometheus) = Prometheus::start().await else { return };
    if !knows_v2() {
        eprintln!("skipped: this Prometheus is older than 2.54 and knows neither remote write 2.0 nor all of native histograms");
        return;
    }
    let server = Server::start(config(&prometheus, message, histograms)).await;
    let client = server.client();
    let send = async |spans: Vec<Span>| {
        let mut request = request("a", spans);
        // Without anything but its name, a service has no info.
        request.resource_spans[0].resource.as_mut().expect("a resource").attributes.push(string("host.name", "h"));
        let answer = client.post_protobuf(request.encode_to_vec()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let has = async |query: &str, expected: f64| {
        eventually(query, || async { prometheus.value(query).await.filter(|value| *value == expected) }).await;
    };
    send(spans(1)).await;
    has(&ever("traces_spanmetrics_calls_total{service=\"a\"}"), 15.0).await;
    assert!(prometheus.value(&ever("traces_spanmetrics_size_total")).await.is_some_and(|bytes| bytes > 15.0 * 40.0));
    has(&ever("traces_target_info{job=\"a\",host_name=\"h\"}"), 1.0).await;
    if histograms != "native" {
        for (le, expected) in [("0.016", 0.0), ("0.032", 10.0), ("0.256", 10.0), ("0.512", 15.0), ("+Inf", 15.0)] {
            has(&ever(&format!("traces_spanmetrics_latency_bucket{{le=\"{le}\"}}")), expected).await;
        }
        has(&ever("traces_spanmetrics_latency_count"), 15.0).await;
        assert!(is_near(prometheus.value(&ever("traces_spanmetrics_latency_sum")).await, 1.7));
    }
    if histograms != "classic" {
        let native = ever("traces_spanmetrics_latency");
        has(&format!("histogram_count({native})"), 15.0).await;
        assert!(is_near(prometheus.value(&format!("histogram_sum({native})")).await, 1.7));
        assert!(is_near(prometheus.value(&format!("histogram_fraction(0.1, +Inf, {native})")).await, 1.0 / 3.0));
        for (quantile, expected) in [(0.5, 0.02), (0.9, 0.3)] {
            let found = prometheus.value(&format!("histogram_quantile({quantile}, {native})")).await.expect("a quantile");
            // A bucket is 9 % wide.
            assert!((found / expected - 1.0).abs() < 0.09, "{quantile}: {found}");
        }
    }

    // Two exemplars in a series of a native histogram, one in each of two of a classic one.
    let (name, series) = if histograms == "native" { ("traces_spanmetrics_latency", 1) } else { ("traces_spanmetrics_latency_bucket", 2) };
    let (start, end) = last_hour();
    let stored = eventually("exemplars", || async {
        let found = prometheus.get("/api/v1/query_exemplars", &[("query", name), ("start", &start), ("end", &end)]).await;
        Some(found.as_array().expect("series").clone()).filter(|found| !found.is_empty())
    })
    .await;
    assert_eq!(stored.len(), series, "{stored:?}");
    let exemplars: Vec<_> = stored.iter().flat_map(|series| series["exemplars"].as_array().expect("exemplars")).collect();
    assert_eq!(exemplars.len(), 2, "{exemplars:?}");
    for exemplar in exemplars {
        let trace = u32::from_str_radix(exemplar["labels"]["traceID"].as_str().expect("an id"), 16).expect("a number");
        let expected = if trace <= 10 { "0.02" } else { "0.3" };
        assert!((1..=15).contains(&trace) && exemplar["value"] == expected, "{exemplar}");
    }

    // The series end: an instant query finds none, long before five minutes have passed.
    eventually("no series", || async { prometheus.value("count({source=\"rubato\"})").await.is_none().then_some(()) }).await;
    // The same again begins at zero.
    send(spans(101)).await;
    eventually("both begin with a zero", || async {
        let history = prometheus.query("traces_spanmetrics_calls_total[1h]").await;
        let [(_, values)] = history.as_slice() else { panic!("one series: {history:?}") };
        let mut changes = values.clone();
        changes.dedup();
        Some(changes).filter(|changes| *changes == [0.0, 15.0, 0.0, 15.0])
    })
    .await;
    assert_eq!(prometheus.value("resets(traces_spanmetrics_calls_total[1h])").await, Some(1.0));

    assert_eq!(prometheus.complaints(), [""; 0]);
    for metric in ["prometheus_tsdb_out_of_order_samples_total", "prometheus_tsdb_exemplar_out_of_order_exemplars_total"] {
        assert_eq!(prometheus.own_metric(metric).await, 0.0, "{metric}");
    }
    if message == V2 {
        // Only 2.0 tells what a metric is together with its samples; Prometheus keeps that in its log.
        let wal = prometheus.wal();
        for help in
            ["Spans", "Duration of spans in seconds", "Encoded size of spans in bytes", "Attributes of the resources that sent spans"]
        {
            assert!(wal.windows(help.len()).any(|window| window == help.as_bytes()), "{help}");
        }
    }
    let sent = async |name: &str| client.metric(name, &[]).await;
    assert!(sent("prometheus_remote_storage_exemplars_total").await >= 2.0);
    for kind in ["samples", "histograms", "exemplars"] {
        assert_eq!(sent(&format!("prometheus_remote_storage_{kind}_failed_total")).await, 0.0, "{kind}");
    }
    let not_understood = client.metric("rubato_remote_write_requests_total", &["outcome=\"not_understood\""]).await;
    assert_eq!(not_understood, 0.0, "the receiver takes what it is sent");
}

#[tokio::test]
async fn native_histograms_by_protocol_1() {
    everything_is_stored(V1, "native").await;
}

#[tokio::test]
async fn both_kinds_of_histograms_by_protocol_1() {
    everything_is_stored(V1, "both").await;
}

#[tokio::test]
async fn native_histograms_by_protocol_2() {
    everything_is_stored(V2, "native").await;
}

#[tokio::test]
async fn both_kinds_of_histograms_by_protocol_2() {
    everything_is_stored(V2, "both").await;
}

/// A receiver that is told when series began puts a zero there, if it is told to.
#[tokio::test]
async fn protocol_2_tells_when_series_began() {
    if Prometheus::version().is_some_and(|version| version < BEGINNINGS_SINCE) {
        eprintln!("skipped: this Prometheus is older than 3.5 and does not look at when series began");
        return;
    }
    let Some(prometheus) = Prometheus::start_with(&["--enable-feature=created-timestamp-zero-ingestion"]).await else { return };
    let server = Server::start(config(&prometheus, V2, "classic")).await;
    let client = server.client();
    // What begins right before a minute does has our own zero behind its beginning. Not three times in a row.
    for (service, first_trace) in [("a", 100), ("b", 200), ("c", 300)] {
        let sent = i64::try_from(now_ns() / 1_000_000).expect("a time");
        assert_eq!(client.post_protobuf(body(service, spans(first_trace))).await.expect("an answer").status, 200);
        let query = format!("traces_spanmetrics_calls_total{{service=\"{service}\"}}[1h]");
        let history = eventually(&query, || async {
            let data = prometheus.get("/api/v1/query", &[("query", &query)]).await;
            let sample = |sample: &serde_json::Value| {
                let value: f64 = sample[1].as_str().and_then(|text| text.parse().ok()).expect("a value");
                ((sample[0].as_f64().expect("a time") * 1e3).round() as i64, value)
            };
            let history: Vec<_> = data["result"][0]["values"].as_array()?.iter().map(sample).collect();
            // Told again and again, it is no news.
            (history.iter().filter(|(_, value)| *value == 15.0).count() > 2).then_some(history)
        })
        .await;
        let zeros: Vec<_> = history.iter().take_while(|(_, value)| *value == 0.0).map(|(at, _)| *at).collect();
        assert_eq!(prometheus.complaints(), [""; 0]);
        assert_eq!(prometheus.own_metric("prometheus_tsdb_out_of_order_samples_total").await, 0.0);
        if let [_, began] = zeros.as_slice() {
            assert!(*began >= sent - 1_000 && *began <= history[2].0, "it began with the first span, sent at {sent}: {history:?}");
            assert!(history[2..].iter().all(|(_, value)| *value == 15.0), "{history:?}");
            return;
        }
        assert_eq!(zeros.len(), 1, "{history:?}");
    }
    panic!("no series has a zero at its beginning");
}

/// A receiver that does not know protocol 2.0 is asked once and sent 1.0 from then on.
#[tokio::test]
async fn protocol_1_if_the_receiver_does_not_know_2() {
    // One that could is told not to.
    let arguments = ["--web.remote-write-receiver.accepted-protobuf-messages=prometheus.WriteRequest"];
    let Some(prometheus) = Prometheus::start_with(if knows_v2() { &arguments } else { &[] }).await else { return };
    let server = Server::start(config(&prometheus, V2, "both")).await;
    let client = server.client();
    assert_eq!(client.post_protobuf(body("a", spans(1))).await.expect("an answer").status, 200);
    let calls = ever("traces_spanmetrics_calls_total");
    eventually(&calls, || async { prometheus.value(&calls).await.filter(|value| *value == 15.0) }).await;
    assert_eq!(client.metric("rubato_remote_write_requests_total", &["outcome=\"not_understood\""]).await, 1.0, "it is asked once");
    assert_eq!(client.metric("prometheus_remote_storage_samples_failed_total", &[]).await, 0.0);
}
