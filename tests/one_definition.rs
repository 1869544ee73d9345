//! One definition: TraceQL metrics over the stored spans say what the generated series say, number by number.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use storage::synthetic::{Requests, Settings, Totals};

use crate::harness::{
    client::{Client, last_hour},
    eventually, now_ns,
    server::{Config, Server},
};

const GENERATOR: &str = "
metrics_generator:
  metrics_ingestion_time_range_slack: 1h
  processor:
    service_graphs:
      wait: 2m
query_frontend:
  metrics:
    max_response_series: 0
overrides:
  defaults:
    metrics_generator:
      processors: [service-graphs, span-metrics]
";

/// Upper bounds of the latency buckets in milliseconds.
const BOUNDS: [u64; 14] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Values of series by the values of some of their labels.
type Values = BTreeMap<Vec<String>, f64>;

/// The series of a metric in Prometheus' text, by the values of `labels`; what is the same in all of them is summed up.
fn exposed(text: &str, metric: &str, labels: &[&str], select: &[&str]) -> Values {
    let mut values = Values::new();
    let series = text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    for line in series.filter(|line| select.iter().all(|part| line.contains(part))) {
        let (pairs, value) = line.rsplit_once("} ").expect("a value");
        // No value of this test has quotes or commas inside.
        let pairs: BTreeMap<&str, &str> = pairs.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let of = |label: &&str| pairs.get(label).map_or_else(String::new, |value| value.trim_matches('"').to_owned());
        *values.entry(labels.iter().map(of).collect()).or_default() += value.parse::<f64>().expect("a number");
    }
    values
}

/// What TraceQL says, by the values of `labels`, of attributes in this order.
async fn asked(client: &Client, query: &str) -> Values {
    let (start, end) = last_hour();
    let answer = client.query("/api/metrics/query", &[("q", query), ("start", &start), ("end", &end)]).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let answer = answer.json();
    let series = answer["series"].as_array().cloned().unwrap_or_default();
    let of = |series: &Value| {
        let labels = series["labels"].as_array().expect("labels").iter();
        let labels = labels.map(|label| label["value"]["stringValue"].as_str().expect("a string").to_owned()).collect();
        (labels, series["value"].as_f64().unwrap_or(0.0))
    };
    series.iter().map(of).filter(|(_, value)| *value != 0.0).collect()
}

/// As TraceQL writes kinds and states.
fn as_in_traceql(values: Values) -> Values {
    let short = |label: String| match label.strip_prefix("SPAN_KIND_").or_else(|| label.strip_prefix("STATUS_CODE_")) {
        Some(name) => name.to_lowercase(),
        None => label,
    };
    values.into_iter().filter(|(_, value)| *value != 0.0).map(|(labels, value)| (labels.into_iter().map(short).collect(), value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn traceql_and_the_series_give_the_same_numbers() {
    // A trace whose spans come apart in time is cut between them, and then no query sees that one is the parent of the other.
    let server = Server::start(Config { more: GENERATOR, trace_idle_period: "5s", ..Config::default() }).await;
    let client = server.client();
    let settings = Settings { seed: 11, base_time_ns: now_ns(), trace_interval_ns: 1_000, spans_per_request: 200, ..Settings::default() };
    let (mut totals, mut traces) = (Totals::default(), BTreeSet::new());
    for request in Requests::new(settings, Some(200)) {
        let answer = client.post_protobuf(request.body.clone()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        for part in request.parts {
            if traces.insert(part.trace.trace_id) {
                totals.add_trace(&part.trace);
            }
        }
    }
    let calls = "traces_spanmetrics_calls_total";
    let labels = ["service", "span_name", "span_kind", "status_code"];
    let text = eventually("all spans are counted", || async {
        let text = client.get("/metrics/generator/single-tenant").await.expect("an answer").text();
        let counted: f64 = exposed(&text, calls, &labels, &[]).values().sum();
        (counted >= totals.spans as f64).then_some(text)
    })
    .await;

    let by = "by (resource.service.name, name, kind, status)";
    let series = as_in_traceql(exposed(&text, calls, &labels, &[]));
    assert_eq!(series.values().sum::<f64>(), totals.spans as f64);
    let services = exposed(&text, calls, &["service"], &[]);
    assert_eq!(services, totals.services.iter().map(|(name, spans)| (vec![(*name).to_owned()], *spans as f64)).collect::<Values>());
    assert_eq!(asked(&client, &format!("{{}} | count_over_time() {by}")).await, series);
    for bound in BOUNDS {
        let le = format!("le=\"{}\"", bound as f64 / 1e3);
        let buckets = as_in_traceql(exposed(&text, "traces_spanmetrics_latency_bucket", &labels, &[&le]));
        let query = format!("{{ duration <= {bound}ms }} | count_over_time() {by}");
        assert_eq!(asked(&client, &query).await, buckets, "{query}");
    }
    let seconds = as_in_traceql(exposed(&text, "traces_spanmetrics_latency_sum", &labels, &[]));
    let sums = asked(&client, &format!("{{}} | sum_over_time(duration) {by}")).await;
    assert_eq!(sums.keys().collect::<Vec<_>>(), seconds.keys().collect::<Vec<_>>());
    for (labels, sum) in &sums {
        assert!((sum - seconds[labels]).abs() <= 1e-9 * sum.abs(), "{labels:?}: {sum} and {}", seconds[labels]);
    }

    // Of an edge between services that both send spans, the server's half is the child of the client's.
    for (parent, child, connection) in [("client", "server", ""), ("producer", "consumer", "messaging_system")] {
        let edges = exposed(&text, "traces_service_graph_request_total", &["server", "connection_type"], &[]);
        let of = |(labels, value): (Vec<String>, f64)| (labels[1] == connection).then(|| (vec![labels[0].clone()], value));
        let edges: Values = edges.into_iter().filter_map(of).collect();
        assert!(!edges.is_empty());
        let query = format!("{{ kind = {parent} }} > {{ kind = {child} }} | count_over_time() by (resource.service.name)");
        assert_eq!(asked(&client, &query).await, edges, "{query}");
    }
}
