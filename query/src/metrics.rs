//! What the query side tells Prometheus. Names and labels are Tempo's, because its dashboards and alerts select them.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{body::Body, extract::MatchedPath, response::Response};
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use parking_lot::Mutex;
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use tower::{Layer, Service};

/// Tenants with series of their own. Names come from clients, so their number is bounded; the rest share the label `other`.
const MAX_TENANTS: usize = 1_000;

/// Counters of queries.
#[derive(Debug)]
pub(crate) struct Metrics {
    queries: IntCounterVec,
    within_slo: IntCounterVec,
    throughput: CounterVec,
    inspected: IntCounterVec,
    jobs: HistogramVec,
    mcp_calls: IntCounterVec,
    tenants: Mutex<HashSet<String>>,
}

/// Kind of a query, label `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Traces,
    Search,
    Metadata,
    Metrics,
}

impl Op {
    fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Search => "search",
            Self::Metadata => "metadata",
            Self::Metrics => "metrics",
        }
    }
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let queries = IntCounterVec::new(
            Opts::new(
                "tempo_query_frontend_queries_total",
                "Queries, by how they ended: completed (errors too) or canceled by the client.",
            ),
            &["tenant", "op", "result"],
        )?;
        let inspected = IntCounterVec::new(
            Opts::new("tempo_query_frontend_bytes_inspected_total", "Bytes of blocks that queries looked at."),
            &["tenant", "op"],
        )?;
        let within_slo = IntCounterVec::new(
            Opts::new("tempo_query_frontend_queries_within_slo_total", "Queries that met their objective, or had none."),
            &["tenant", "op", "result"],
        )?;
        let throughput = CounterVec::new(
            Opts::new("tempo_query_frontend_bytes_processed_per_second", "Bytes per second of queries, added up; with an objective only."),
            &["tenant", "op"],
        )?;
        let jobs = HistogramOpts::new("tempo_query_frontend_jobs_per_query", "Jobs that queries are cut into.");
        let jobs = jobs.buckets((0..=6).map(|power| 10f64.powi(power)).collect());
        let jobs = HistogramVec::new(jobs, &["op"])?;
        let mcp_calls =
            IntCounterVec::new(Opts::new("tempo_query_frontend_mcp_calls_total", "Calls of tools of the MCP server, by tool."), &["tool"])?;
        registry.register(Box::new(mcp_calls.clone()))?;
        registry.register(Box::new(jobs.clone()))?;
        registry.register(Box::new(queries.clone()))?;
        registry.register(Box::new(within_slo.clone()))?;
        registry.register(Box::new(throughput.clone()))?;
        registry.register(Box::new(inspected.clone()))?;
        Ok(Self { queries, within_slo, throughput, inspected, jobs, mcp_calls, tenants: Mutex::default() })
    }

    pub(crate) fn inspected(&self, tenant: &str, op: Op, bytes: u64) {
        self.inspected.with_label_values(&[self.tenant_label(tenant), op.as_str()]).inc_by(bytes);
    }

    /// Counts a call of a tool, by one of a few names.
    pub(crate) fn mcp_call(&self, tool: &'static str) {
        self.mcp_calls.with_label_values(&[tool]).inc();
    }

    /// Takes down how many jobs a query is cut into.
    pub(crate) fn jobs(&self, op: Op, jobs: usize) {
        self.jobs.with_label_values(&[op.as_str()]).observe(jobs as f64);
    }

    /// Counts a query when it ends: as canceled unless it is told that it completed.
    pub(crate) fn running(&self, tenant: &str, op: Op, slo: Slo) -> Running {
        Running {
            queries: self.queries.clone(),
            within_slo: self.within_slo.clone(),
            throughput: self.throughput.clone(),
            tenant: self.tenant_label(tenant).to_owned(),
            op,
            slo,
            started: Instant::now(),
            outcome: None,
        }
    }

    fn tenant_label<'a>(&self, tenant: &'a str) -> &'a str {
        let mut tenants = self.tenants.lock();
        if tenants.contains(tenant) {
            return tenant;
        }
        if tenants.len() >= MAX_TENANTS {
            return "other";
        }
        tenants.insert(tenant.to_owned());
        tenant
    }
}

/// How fast queries of a kind should be. Zero in both means that all are fast enough.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Longest time; zero is no objective.
    pub duration: Duration,
    /// Bytes per second from which on it does not matter how long it takes; zero is no objective.
    pub throughput: f64,
}

impl Slo {
    fn is_met(self, took: Duration, bytes: u64) -> bool {
        let is_set = !self.duration.is_zero() || self.throughput > 0.0;
        let is_quick = !self.duration.is_zero() && took < self.duration;
        let is_busy = self.throughput > 0.0 && bytes_per_second(took, bytes) >= self.throughput;
        !is_set || is_quick || is_busy
    }
}

fn bytes_per_second(took: Duration, bytes: u64) -> f64 {
    bytes as f64 / took.as_secs_f64().max(1e-9)
}

/// The objectives of all kinds of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slos {
    /// Of traces by id.
    pub traces: Slo,
    /// Of searches.
    pub search: Slo,
    /// Of names and values of attributes.
    pub metadata: Slo,
    /// Of metrics queries.
    pub metrics: Slo,
}

impl Slos {
    pub(crate) fn of(&self, op: Op) -> Slo {
        match op {
            Op::Traces => self.traces,
            Op::Search => self.search,
            Op::Metadata => self.metadata,
            Op::Metrics => self.metrics,
        }
    }
}

/// A query that is running.
#[derive(Debug)]
pub(crate) struct Running {
    queries: IntCounterVec,
    within_slo: IntCounterVec,
    throughput: CounterVec,
    tenant: String,
    op: Op,
    slo: Slo,
    started: Instant,
    /// How it ended, unless nobody waits for it any more: the bytes it read, or nothing if the server failed.
    outcome: Option<Option<u64>>,
}

impl Running {
    /// The query has ended: with an answer that took so many bytes, or with a failure of the server.
    pub(crate) fn completed(mut self, bytes: Option<u64>) {
        self.outcome = Some(bytes);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let (result, is_within) = match self.outcome {
            None => ("canceled", true),
            Some(None) => ("completed", false),
            Some(Some(bytes)) => {
                if self.slo.throughput > 0.0 {
                    let labels = [self.tenant.as_str(), self.op.as_str()];
                    self.throughput.with_label_values(&labels).inc_by(bytes_per_second(took, bytes));
                }
                ("completed", self.slo.is_met(took, bytes))
            }
        };
        let labels = [self.tenant.as_str(), self.op.as_str(), result];
        self.queries.with_label_values(&labels).inc();
        if is_within {
            self.within_slo.with_label_values(&labels).inc();
        }
    }
}

/// A tower layer that measures HTTP requests, for an axum router with all its routes: how long they take (`tempo_request_duration_seconds`), how many
/// there are (`tempo_inflight_requests`), and how large they and their answers are (`tempo_request_message_bytes`, `tempo_response_message_bytes`). A
/// request that does not say how large it is counts as empty.
///
/// The label `route` is the path template of the route with every run of other characters than letters and digits replaced by `_`
/// (`/api/traces/{traceID}` is `api_traces_traceid`), `root` for `/`, `notfound` without a route. A handler whose template says too little
/// names its route by a [`RouteName`] in the extensions of its response.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    duration: HistogramVec,
    inflight: IntGaugeVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
    calls: Arc<Mutex<HashSet<String>>>,
}

/// Methods of gRPC with series of their own while they run. Clients may invent them; the rest share the label `other`.
const MAX_CALLS: usize = 64;

/// A request that is being answered, until it is dropped. Then the sizes of its messages are taken down.
#[derive(Debug)]
pub struct InFlight {
    gauge: IntGauge,
    request: Histogram,
    response: Histogram,
    request_bytes: usize,
    response_bytes: usize,
}

impl InFlight {
    /// So many more bytes came.
    pub fn received(&mut self, bytes: usize) {
        self.request_bytes += bytes;
    }

    /// So many more bytes are on their way back.
    pub fn answered(&mut self, bytes: usize) {
        self.response_bytes += bytes;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
        self.request.observe(self.request_bytes as f64);
        self.response.observe(self.response_bytes as f64);
    }
}

/// What a response is counted under, in place of its route's template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteName(pub String);

impl RequestMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];
        let options =
            HistogramOpts::new("tempo_request_duration_seconds", "Time (in seconds) spent serving HTTP requests.").buckets(buckets);
        let duration = HistogramVec::new(options, &["method", "route", "status_code", "ws"])?;
        let inflight = Opts::new("tempo_inflight_requests", "Requests that are being answered.");
        let inflight = IntGaugeVec::new(inflight, &["method", "route"])?;
        let bytes = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(exponential_buckets(4.0, 4.0, 15)?);
            HistogramVec::new(options, &["method", "route"])
        };
        let request_bytes = bytes("tempo_request_message_bytes", "Size (in bytes) of messages received in requests.")?;
        let response_bytes = bytes("tempo_response_message_bytes", "Size (in bytes) of messages sent in answers.")?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(inflight.clone()))?;
        registry.register(Box::new(request_bytes.clone()))?;
        registry.register(Box::new(response_bytes.clone()))?;
        Ok(Self { duration, inflight, request_bytes, response_bytes, calls: Arc::default() })
    }

    fn begin(&self, method: &str, route: &str) -> InFlight {
        let labels = [method, route];
        let gauge = self.inflight.with_label_values(&labels);
        gauge.inc();
        let (request, response) = (self.request_bytes.with_label_values(&labels), self.response_bytes.with_label_values(&labels));
        InFlight { gauge, request, response, request_bytes: 0, response_bytes: 0 }
    }

    /// A gRPC call begins.
    pub fn begin_grpc(&self, method: &str) -> InFlight {
        let mut calls = self.calls.lock();
        let is_known = calls.contains(method) || (calls.len() < MAX_CALLS && calls.insert(method.to_owned()));
        drop(calls);
        self.begin("gRPC", if is_known { method } else { "other" })
    }

    /// Counts a gRPC call that has ended. `method` must be one that exists, `status` is `success`, `error` or `cancel`.
    pub fn observe_grpc(&self, method: &str, status: &'static str, took: Duration) {
        self.duration.with_label_values(&["gRPC", method, status, "false"]).observe(took.as_secs_f64());
    }
}

impl<S> Layer<S> for RequestMetrics {
    type Service = MeasuredService<S>;

    fn layer(&self, inner: S) -> MeasuredService<S> {
        MeasuredService { inner, metrics: self.clone() }
    }
}

/// The service that [`RequestMetrics`] makes.
#[derive(Clone, Debug)]
pub struct MeasuredService<S> {
    inner: S,
    metrics: RequestMetrics,
}

impl<S, B> Service<Request<B>> for MeasuredService<S>
where
    S: Service<Request<B>, Response = Response>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let method = method_label(request.method());
        let websocket = request.headers().get(header::UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let route = request.extensions().get::<MatchedPath>().map_or_else(|| "notfound".to_owned(), |path| route_name(path.as_str()));
        let duration = self.metrics.duration.clone();
        let mut running = self.metrics.begin(method, &route);
        running.received(length(request.headers()).unwrap_or_default());
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            let route = response.extensions().get::<RouteName>().map_or(route, |name| name.0.clone());
            let websocket = if websocket { "true" } else { "false" };
            let status = response.status();
            duration.with_label_values(&[method, route.as_str(), status.as_str(), websocket]).observe(started.elapsed().as_secs_f64());
            // What is there is passed on as it is; a stream is counted as it goes.
            if let Some(bytes) = response.body().size_hint().exact() {
                running.answered(usize::try_from(bytes).unwrap_or(usize::MAX));
                return Ok(response);
            }
            let counting = move |frame: Frame<bytes::Bytes>| {
                running.answered(frame.data_ref().map_or(0, bytes::Bytes::len));
                frame
            };
            Ok(response.map(|body| Body::new(body.map_frame(counting))))
        })
    }
}

/// What a message says of its length.
fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Clients may invent methods; those share a label.
fn method_label(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// The label `route` of a path template.
pub(crate) fn route_name(template: &str) -> String {
    let words: Vec<_> = template.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [] => "root".to_owned(),
        words => words.join("_").to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_named_as_dashboards_expect() {
        assert_eq!(route_name("/api/traces/{traceID}"), "api_traces_traceid");
        assert_eq!(route_name("/api/v2/search/tags"), "api_v2_search_tags");
        assert_eq!(route_name("/"), "root");
    }

    #[test]
    fn tenants_with_series_of_their_own_are_bounded() {
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        for number in 0..MAX_TENANTS + 10 {
            metrics.inspected(&format!("tenant-{number}"), Op::Search, 1);
        }
        assert_eq!(metrics.inspected.with_label_values(&["other", "search"]).get(), 10);
        metrics.inspected("tenant-0", Op::Search, 1);
        assert_eq!(metrics.inspected.with_label_values(&["tenant-0", "search"]).get(), 2);
    }

    #[test]
    fn a_dropped_query_was_canceled() {
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        metrics.running("a", Op::Traces, Slo::default()).completed(Some(0));
        drop(metrics.running("a", Op::Traces, Slo::default()));
        assert_eq!(metrics.queries.with_label_values(&["a", "traces", "completed"]).get(), 1);
        assert_eq!(metrics.queries.with_label_values(&["a", "traces", "canceled"]).get(), 1);
    }

    #[test]
    fn objectives_count_what_is_fast_enough() {
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        let run = |slo: Slo, outcome| metrics.running("a", Op::Search, slo).completed(outcome);
        let within = || metrics.within_slo.with_label_values(&["a", "search", "completed"]).get();
        run(Slo::default(), Some(0));
        assert_eq!(within(), 1, "no objective is met by all");
        run(Slo::default(), None);
        assert_eq!(within(), 1, "but not by failures");
        run(Slo { duration: Duration::from_nanos(1), throughput: 0.0 }, Some(1 << 40));
        assert_eq!(within(), 1);
        run(Slo { duration: Duration::from_secs(3600), throughput: 0.0 }, Some(0));
        assert_eq!(within(), 2);
        run(Slo { duration: Duration::from_nanos(1), throughput: 1.0 }, Some(1 << 40));
        assert_eq!(within(), 3, "much was read meanwhile");
        assert_eq!(metrics.queries.with_label_values(&["a", "search", "completed"]).get(), 5);
        assert!(metrics.throughput.with_label_values(&["a", "search"]).get() > 0.0);
    }
}
