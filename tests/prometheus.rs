//! What the metrics-generator sends, as a real Prometheus has it: the numbers that Grafana asks for, and counters through `kill -9`.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::Value;
use storage::id::TraceId;

use crate::harness::{
    eventually, now_ns,
    otlp::{body, span},
    server::{Config, Server},
};

/// A Prometheus of its own that takes remote write. Killed when dropped.
pub(crate) struct Prometheus {
    pub(crate) url: String,
    http: reqwest::Client,
    process: Child,
    dir: tempfile::TempDir,
}

impl Prometheus {
    /// What `--version` says first; `None` where it is not installed.
    pub(crate) fn version() -> Option<(u32, u32)> {
        let output = Command::new("prometheus").arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }

    /// `None`, with the reason printed, where Prometheus is not installed; where it must be, that is a failure.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_at("127.0.0.1", &[]).await
    }

    /// As [`Self::start`], with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::start_at("127.0.0.1", arguments).await
    }

    /// As [`Self::start_with`], at another address of this machine.
    pub(crate) async fn start_at(host: &str, arguments: &[&str]) -> Option<Self> {
        if Self::version().is_none() {
            assert!(std::env::var_os("CI").is_none(), "prometheus is not installed: apt-get install prometheus");
            eprintln!("skipped: prometheus is not installed");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("rubato-prometheus-").tempdir().expect("a temporary folder");
        let config = dir.path().join("prometheus.yaml");
        std::fs::write(&config, "storage: {exemplars: {max_exemplars: 1000}}\n").expect("writable");
        let listener = TcpListener::bind((host, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--web.enable-remote-write-receiver", "--no-storage.tsdb.wal-compression"])
            .arg("--enable-feature=native-histograms,exemplar-storage,metadata-wal-records")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).expect("writable"))
            .spawn()
            .expect("prometheus starts");
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let prometheus = Self { url: format!("http://{address}"), http, process, dir };
        let ready = format!("{}/-/ready", prometheus.url);
        eventually("prometheus is ready", || async {
            prometheus.http.get(&ready).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        Some(prometheus)
    }

    pub(crate) async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = reqwest::Url::parse_with_params(&format!("{}{path}", self.url), parameters).expect("a URL");
        let answer = self.http.get(url).send().await.expect("an answer").text().await.expect("a body");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }

    /// The samples of an instant query: labels, and the value (of a matrix: all values).
    pub(crate) async fn query(&self, query: &str) -> Vec<(Value, Vec<f64>)> {
        let data = self.get("/api/v1/query", &[("query", query)]).await;
        let value = |sample: &Value| sample[1].as_str().and_then(|text| text.parse().ok()).expect("a value");
        let series = |series: &Value| {
            let values = series["values"].as_array().map(|samples| samples.iter().map(value).collect());
            (series["metric"].clone(), values.unwrap_or_else(|| vec![value(&series["value"])]))
        };
        data["result"].as_array().expect("a result").iter().map(series).collect()
    }

    /// The value of a query with one result; `None` if there is none.
    pub(crate) async fn value(&self, query: &str) -> Option<f64> {
        let found = self.query(query).await;
        assert!(found.len() <= 1, "{query}: {found:?}");
        found.first().map(|(_, values)| values[0])
    }

    /// One of its own metrics, summed over its series.
    pub(crate) async fn own_metric(&self, name: &str) -> f64 {
        let answer = self.http.get(format!("{}/metrics", self.url)).send().await.expect("an answer").text().await.expect("a body");
        let of_metric = answer.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
        of_metric.map(|rest| rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")).sum()
    }

    /// What it has written to its log so far, series and metadata among it, not compressed.
    pub(crate) fn wal(&self) -> Vec<u8> {
        let folder = std::fs::read_dir(self.dir.path().join("data/wal")).expect("a folder");
        let files = folder.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
        files.flat_map(|path| std::fs::read(path).expect("readable")).collect()
    }

    /// The lines of its own log that say that something went wrong.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).expect("readable");
        let is_complaint = |line: &&str| ["level=error", "level=ERROR", "Error on ingesting"].iter().any(|word| line.contains(word));
        log.lines().filter(is_complaint).map(str::to_owned).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn config(prometheus: &Prometheus) -> Config {
    let more = format!(
        "
metrics_generator:
  registry:
    collection_interval: 300ms
    external_labels: {{source: rubato}}
  metrics_ingestion_time_range_slack: 10m
  storage:
    path: unused
    remote_write:
      - url: {}/api/v1/write
        send_exemplars: true
overrides:
  defaults:
    metrics_generator:
      processors: [service-graphs, span-metrics]
      generate_native_histograms: both
",
        prometheus.url
    );
    // A test has one configuration.
    Config { more: more.leak(), ..Config::default() }
}

/// A client's span of 300 ms that calls a server's span of 150 ms.
fn call(trace: u128, failed: bool) -> (Span, Span) {
    let id = TraceId(trace.to_be_bytes());
    let status = Some(Status { code: if failed { 2 } else { 0 }, ..Status::default() });
    let end = now_ns();
    let client = Span { kind: 3, start_time_unix_nano: end - 300_000_000, end_time_unix_nano: end, ..span(id, 1, "GET b") };
    let server = Span {
        kind: 2,
        parent_span_id: 1_u64.to_be_bytes().to_vec(),
        start_time_unix_nano: end - 200_000_000,
        end_time_unix_nano: end - 50_000_000,
        status,
        ..span(id, 2, "GET /")
    };
    (client, server)
}

#[tokio::test]
async fn grafanas_queries_return_the_right_numbers() {
    let Some(prometheus) = Prometheus::start().await else { return };
    let server = Server::start(config(&prometheus)).await;
    let client = server.client();
    let (calls, failed) = (20, 5);
    let (clients, servers): (Vec<_>, Vec<_>) = (1..=calls).map(|trace| call(trace, trace <= failed)).unzip();
    for (service, spans) in [("a", clients), ("b", servers)] {
        let answer = client.post_protobuf(body(service, spans)).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let (calls, failed) = (calls as f64, failed as f64);
    let total = "sum by (client, server) (traces_service_graph_request_total)";
    eventually("all calls are there", || async { prometheus.value(total).await.filter(|value| *value == calls) }).await;
    let spans = "traces_spanmetrics_calls_total{span_kind=\"SPAN_KIND_SERVER\",status_code=\"STATUS_CODE_ERROR\"}";
    eventually("all errors are there", || async { prometheus.value(spans).await.filter(|value| *value == failed) }).await;

    // As of a collection: its series have the same times, so Prometheus extrapolates each by the same factor.
    let at = prometheus.value("max(timestamp(traces_service_graph_request_total))").await.expect("a time");
    let rate = |metric: &str| format!("sum by (client, server) (rate({metric} [1h] @ {at:.3}))");
    let increase = "sum by (client, server) (max_over_time(traces_service_graph_request_total [1h]) - min_over_time(traces_service_graph_request_total [1h]))";
    assert_eq!(prometheus.value(increase).await, Some(calls), "the first value is an increase, too");
    let factor = prometheus.value(&rate("traces_service_graph_request_total")).await.expect("a rate") / calls;
    for (metric, expected) in [
        ("traces_service_graph_request_failed_total", failed),
        ("traces_service_graph_request_server_seconds_count", calls),
        ("traces_service_graph_request_client_seconds_count", calls),
    ] {
        let found = prometheus.value(&rate(metric)).await.expect("a rate");
        assert!((found / factor - expected).abs() < 1e-6, "{metric}: {} and not {expected}", found / factor);
    }
    for (metric, expected) in [("server", 0.15 * calls), ("client", 0.3 * calls)] {
        let sum = format!("traces_service_graph_request_{metric}_seconds_sum");
        assert!((prometheus.value(&sum).await.expect("a sum") - expected).abs() < 1e-9, "{sum}");
        for quantile in ["0.5", "0.9"] {
            let le = if metric == "server" { (0.1, 0.2) } else { (0.2, 0.4) };
            let buckets = format!("sum by (le, client, server) (rate(traces_service_graph_request_{metric}_seconds_bucket [1h]))");
            let classic = prometheus.value(&format!("histogram_quantile({quantile}, {buckets})")).await.expect("a quantile");
            assert!(classic > le.0 && classic <= le.1, "{metric}: {classic}");
            let native = format!("histogram_quantile({quantile}, traces_service_graph_request_{metric}_seconds)");
            let native = prometheus.value(&native).await.expect("a quantile");
            // A bucket is 9 % wide.
            assert!((native / (expected / calls) - 1.0).abs() < 0.1, "{metric}: {native}");
        }
    }
    let native = "histogram_count(traces_spanmetrics_latency{service=\"b\",status_code=\"STATUS_CODE_UNSET\"})";
    assert_eq!(prometheus.value(native).await, Some(calls - failed));

    let labels = prometheus.query("group by (client, connection_type, server) (traces_service_graph_request_total{})").await;
    assert_eq!(labels, [(serde_json::json!({"client": "a", "server": "b"}), vec![1.0])]);
    let red = "sum by (span_name) (rate(traces_spanmetrics_calls_total{span_kind=\"SPAN_KIND_SERVER\"}[1h]))";
    let red = prometheus.query(&format!("topk(5, {red})")).await;
    assert_eq!(red.len(), 1, "{red:?}");
    assert_eq!(red[0].0["span_name"], "GET /");
    let latency = "histogram_quantile(0.9, sum(rate(traces_spanmetrics_latency_bucket{span_name=\"GET /\",service=\"b\"}[1h])) by (le))";
    let latency = prometheus.value(latency).await.expect("a quantile");
    assert!(latency > 0.128 && latency <= 0.256, "{latency}");
    let all = prometheus.query("traces_spanmetrics_calls_total").await;
    assert!(all.iter().all(|(labels, _)| labels["source"] == "rubato" && labels["__metrics_gen_instance"].is_string()), "{all:?}");

    let (start, end) = crate::harness::client::last_hour();
    let query = [("query", "traces_spanmetrics_latency_bucket"), ("start", &start), ("end", &end)];
    let exemplars = prometheus.get("/api/v1/query_exemplars", &query).await;
    let ids: Vec<&str> =
        exemplars.as_array().expect("series").iter().filter_map(|series| series["exemplars"][0]["labels"]["traceID"].as_str()).collect();
    assert!(!ids.is_empty() && ids.iter().all(|id| u128::from_str_radix(id, 16).is_ok_and(|id| (1..=20).contains(&id))), "{exemplars}");

    let text = client.get("/metrics/generator/single-tenant").await.expect("an answer").text();
    assert!(text.contains("# TYPE traces_service_graph_request_total counter\ntraces_service_graph_request_total{"), "{text}");
    let open = client.get_as("/metrics/generator/single-tenant", "application/openmetrics-text; version=1.0.0").await;
    assert_eq!(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text().contains(" # {traceID=\"") && open.text().ends_with("# EOF\n"), "{}", open.text());
    let explained = client.get(&format!("/api/metrics-generator/explain?trace={:x}", 3)).await.expect("an answer").json();
    let spans = explained["spans"].as_array().expect("spans");
    assert_eq!(spans.len(), 2, "{explained}");
    for span in spans {
        assert_eq!(span["committed"], true, "{explained}");
        let outcomes = span["outcomes"].as_array().expect("outcomes");
        let counted = outcomes.iter().find(|outcome| outcome["outcome"] == "counted").expect("it is counted");
        assert_eq!((&counted["labels"]["service"], &counted["place"]), (&span["service"], &"series".into()), "{explained}");
        assert!(outcomes.iter().any(|outcome| outcome["partner"].is_string()), "{explained}");
    }
    for (trace, status) in [("", 400), ("?trace=xyz", 400), ("?trace=abcdef", 404)] {
        let answer = client.get(&format!("/api/metrics-generator/explain{trace}")).await.expect("an answer");
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert_eq!(client.get("/metrics/generator/a%2Fb").await.expect("an answer").status, 400);
    assert_eq!(client.metric("prometheus_remote_storage_samples_failed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn counters_do_not_go_backwards_through_kill_9() {
    let Some(prometheus) = Prometheus::start().await else { return };
    let mut server = Server::start(config(&prometheus)).await;
    let (waves, spans) = (8, 25);
    let sum = "sum(traces_spanmetrics_calls_total{service=\"a\"})";
    for wave in 1..=waves {
        let client = server.client();
        let body = body("a", (1..=spans).map(|span_id| span(TraceId(u128::to_be_bytes(wave)), span_id, "work")).collect());
        let answer = client.post_protobuf(body).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        if wave % 2 == 0 {
            // Some of what was acknowledged has been sent, some has not.
            let sent = (wave as u64 - 1) * spans;
            eventually("the wave before is sent", || async { prometheus.value(sum).await.filter(|value| *value >= sent as f64) }).await;
            server.kill();
            server.start_again().await;
        }
    }
    let all = waves as u64 * spans;
    eventually("everything is there", || async { prometheus.value(sum).await.filter(|value| *value == all as f64) }).await;
    // Nothing comes after that.
    let client = server.client();
    let written = client.metric("prometheus_remote_storage_samples_total", &[]).await;
    eventually("another collection", || async {
        Some(client.metric("prometheus_remote_storage_samples_total", &[]).await).filter(|now| *now > written)
    })
    .await;
    assert_eq!(prometheus.value(sum).await, Some(all as f64));
    let history = prometheus.query("traces_spanmetrics_calls_total{service=\"a\"}[1h]").await;
    let [(_, values)] = history.as_slice() else { panic!("one series: {history:?}") };
    assert!(values[0] == 0.0 && values.is_sorted(), "{values:?}");
    assert_eq!(values[1..].iter().filter(|value| **value == 0.0).count(), 0, "{values:?}");
    for metric in ["traces_spanmetrics_calls_total", "traces_spanmetrics_latency_bucket", "traces_spanmetrics_size_total"] {
        let resets = prometheus.query(&format!("resets({metric}[1h]) > 0")).await;
        assert_eq!(resets, [], "{metric}");
    }
    assert_eq!(client.metric("prometheus_remote_storage_samples_failed_total", &[]).await, 0.0);
}
