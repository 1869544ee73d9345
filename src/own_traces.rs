//! Rubato's own traces, sent to a Jaeger collector: a span for each request to the query API.
//!
//! ```text
//!  request ─► Tracing: a span, child of `traceparent` ─► sampled? ─► queue, bounded ─► sender: Thrift over HTTP ─► collector
//!                                                                      └─ full ─► dropped, counted ◄─ collector away ─┘
//! ```
//!
//! Active when `JAEGER_ENDPOINT` names the collector, such as `http://jaeger-collector.jaeger.svc:14268/api/traces`. `JAEGER_SAMPLER_TYPE` is
//! `const` or `probabilistic`, `JAEGER_SAMPLER_PARAM` a number from 0 to 1 (by default all is sampled), `JAEGER_TAGS` a list `key=value,…` for
//! the process (deployment.md, "Integrations").
//!
//! Only requests of the query API are traced, never those that bring spans, so that a Rubato that is its own collector does not feed on its
//! own tail; nor are the sender's requests.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request},
    http::{self, HeaderMap, header},
    middleware::{self, Next},
};
use ingest::jaeger::{
    model::{Batch, Process, Span, Tag},
    thrift_body,
};
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as TagValue;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanProcessor},
};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::mpsc;

use crate::{
    client::{HttpClient, http_client},
    services::Shutdown,
};

/// Spans that may wait.
const QUEUE: usize = 2048;
/// Spans of one request, at most.
const BATCH: usize = 512;
/// How long spans wait for company.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long what waits may take to be sent at the end.
const LAST: Duration = Duration::from_secs(5);
/// Bytes of a request's target that are told.
const MAX_TARGET: usize = 2048;

/// Makes spans of requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct OwnTraces {
    tracer: SdkTracer,
    /// Keeps the tracer alive.
    _provider: SdkTracerProvider,
}

impl fmt::Debug for OwnTraces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTraces").finish_non_exhaustive()
    }
}

/// What the environment asks for.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    endpoint: http::Uri,
    /// Share of requests that are traced, from 0 to 1.
    share: f64,
    tags: Vec<(String, String)>,
}

impl Settings {
    /// Reads `JAEGER_*`; nothing without `JAEGER_ENDPOINT`.
    fn read(env: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let written = |name: &str| env(name).filter(|text| !text.is_empty());
        let Some(endpoint) = written("JAEGER_ENDPOINT") else { return Ok(None) };
        let uri: http::Uri = endpoint.parse().with_context(|| format!("JAEGER_ENDPOINT: \"{endpoint}\" is no URL"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            bail!("JAEGER_ENDPOINT: \"{endpoint}\" is not of the form http://host:port/path");
        }
        let share = match written("JAEGER_SAMPLER_PARAM") {
            None => 1.0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|share| (0.0..=1.0).contains(share))
                .with_context(|| format!("JAEGER_SAMPLER_PARAM: \"{text}\" is not a number from 0 to 1"))?,
        };
        let share = match written("JAEGER_SAMPLER_TYPE").as_deref() {
            None | Some("probabilistic") => share,
            Some("const") => f64::from(u8::from(share > 0.0)),
            Some(other) => bail!("JAEGER_SAMPLER_TYPE: \"{other}\" is not one of const, probabilistic"),
        };
        let tag = |text: &str| {
            let (key, value) = text.split_once('=').with_context(|| format!("JAEGER_TAGS: \"{text}\" is not of the form key=value"))?;
            anyhow::Ok((key.trim().to_owned(), value.trim().to_owned()))
        };
        let tags = written("JAEGER_TAGS").unwrap_or_default();
        let tags = tags.split(',').filter(|text| !text.trim().is_empty()).map(tag).collect::<Result<_, _>>()?;
        Ok(Some(Self { endpoint: uri, share, tags }))
    }
}

/// Sends what was traced until it is told to stop.
#[derive(Debug)]
pub(crate) struct Sender {
    client: HttpClient,
    endpoint: http::Uri,
    process: Process,
    queue: mpsc::Receiver<Span>,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Metrics {
    sent: IntCounter,
    dropped: IntCounterVec,
}

impl OwnTraces {
    /// What the environment asks for, if it asks: the maker of spans, and the sender that is to be run. `target` is what this process is.
    ///
    /// # Errors
    /// The environment asks for what cannot be.
    pub(crate) fn from_env(
        env: &dyn Fn(&str) -> Option<String>,
        target: &str,
        registry: &Registry,
    ) -> anyhow::Result<Option<(Self, Sender)>> {
        let Some(Settings { endpoint, share, tags }) = Settings::read(env)? else { return Ok(None) };
        let sent = IntCounter::new("rubato_own_traces_sent_spans_total", "Own spans that a collector took.")?;
        let dropped = Opts::new("rubato_own_traces_dropped_spans_total", "Own spans that were lost.");
        let metrics = Metrics { sent, dropped: IntCounterVec::new(dropped, &["reason"])? };
        registry.register(Box::new(metrics.sent.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        let (spans, queue) = mpsc::channel(QUEUE);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_span_processor(Queue { spans, metrics: metrics.clone() })
            .build();
        let text = |(key, value): (String, String)| Tag { key, value: TagValue::StringValue(value) };
        let process = Process { service: format!("tempo-{target}"), tags: tags.into_iter().map(text).collect() };
        tracing::info!(%endpoint, share, "own traces are sent to a Jaeger collector");
        let own = Self { tracer: provider.tracer("rubato"), _provider: provider };
        Ok(Some((own, Sender { client: http_client(), endpoint, process, queue, metrics })))
    }

    /// The router, each of its requests traced.
    pub(crate) fn trace(&self, router: Router) -> Router {
        let tracer = self.tracer.clone();
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let tracer = tracer.clone();
            async move {
                let route = request.extensions().get::<MatchedPath>().map_or("not found", MatchedPath::as_str);
                let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
                let target: String = target.chars().take(MAX_TARGET).collect();
                let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
                let mut attributes =
                    vec![KeyValue::new("http.request.method", request.method().to_string()), KeyValue::new("url.target", target)];
                if let Some(tenant) = request.headers().get("x-scope-orgid").and_then(|value| value.to_str().ok()) {
                    attributes.push(KeyValue::new("tenant", tenant.to_owned()));
                }
                let builder = tracer.span_builder(format!("{} {route}", request.method()));
                let builder = builder.with_kind(SpanKind::Server).with_attributes(attributes);
                let span = Context::new().with_span(builder.start_with_context(&tracer, &parent));
                let response = next.run(request).await;
                let status = response.status();
                span.span().set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
                if status.is_server_error() {
                    span.span().set_status(Status::error(status.to_string()));
                }
                span.span().end();
                response
            }
        }))
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(header::HeaderName::as_str).collect()
    }
}

/// Puts spans that have ended into the queue.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<Span>,
    metrics: Metrics,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut opentelemetry_sdk::trace::Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(to_jaeger(span)).is_err() {
            self.metrics.dropped.with_label_values(&["queue_full"]).inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn to_jaeger(span: SpanData) -> Span {
    let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let (start, end) = (nanos(span.start_time), nanos(span.end_time));
    let text = |key: &str, text: String| Tag { key: key.to_owned(), value: TagValue::StringValue(text) };
    let mut tags: Vec<_> =
        span.attributes.into_iter().map(|attribute| Tag { key: attribute.key.to_string(), value: tag_value(attribute.value) }).collect();
    tags.push(text("span.kind", format!("{:?}", span.span_kind).to_lowercase()));
    if let Status::Error { description } = span.status {
        tags.push(Tag { key: "error".to_owned(), value: TagValue::BoolValue(true) });
        tags.push(text("otel.status_description", description.into_owned()));
    }
    Span {
        trace_id: span.span_context.trace_id().to_bytes(),
        span_id: span.span_context.span_id().to_bytes(),
        parent_id: span.parent_span_id.to_bytes(),
        name: span.name.into_owned(),
        start,
        duration: end.saturating_sub(start),
        tags,
        ..Span::default()
    }
}

fn tag_value(value: Value) -> TagValue {
    match value {
        Value::Bool(flag) => TagValue::BoolValue(flag),
        Value::I64(integer) => TagValue::IntValue(integer),
        Value::F64(double) => TagValue::DoubleValue(double),
        other => TagValue::StringValue(other.as_str().into_owned()),
    }
}

impl Sender {
    /// Sends until `shutdown`, and then what waits.
    pub(crate) async fn run(mut self, mut shutdown: Shutdown) -> anyhow::Result<()> {
        let mut spans = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                received = self.queue.recv_many(&mut spans, BATCH) => {
                    if received == 0 {
                        return Ok(());
                    }
                    let deadline = tokio::time::Instant::now() + DELAY;
                    while spans.len() < BATCH {
                        match tokio::time::timeout_at(deadline, self.queue.recv()).await {
                            Ok(Some(span)) => spans.push(span),
                            Ok(None) | Err(_) => break,
                        }
                    }
                    self.send(std::mem::take(&mut spans)).await;
                }
                () = shutdown.wait() => break,
            }
        }
        self.queue.close();
        let rest = async {
            while self.queue.recv_many(&mut spans, BATCH).await > 0 {
                self.send(std::mem::take(&mut spans)).await;
            }
        };
        // What the collector does not take in time is lost, as the rest of a process that ends.
        _ = tokio::time::timeout(LAST, rest).await;
        Ok(())
    }

    async fn send(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let body = thrift_body(&Batch { process: self.process.clone(), spans });
        match self.post(body).await {
            Ok(()) => self.metrics.sent.inc_by(count),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), spans = count, "own spans were not taken by the collector");
                self.metrics.dropped.with_label_values(&["not_taken"]).inc_by(count);
            }
        }
    }

    async fn post(&self, body: Vec<u8>) -> anyhow::Result<()> {
        let request = http::Request::post(self.endpoint.clone())
            .header(header::CONTENT_TYPE, "application/x-thrift")
            .body(Body::from(body))
            .context("a request")?;
        let response = tokio::time::timeout(TIMEOUT, self.client.request(request)).await.context("no answer in time")??;
        anyhow::ensure!(response.status().is_success(), "answered {}", response.status());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let env = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::read(&env).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_says_where_and_how_much() {
        const ENDPOINT: (&str, &str) = ("JAEGER_ENDPOINT", "http://c:14268/api/traces");
        assert_eq!(read(&[("JAEGER_SAMPLER_PARAM", "x")]), Ok(None));
        let all = read(&[ENDPOINT, ("JAEGER_TAGS", "a=b, c = d,")]).expect("good").expect("active");
        assert_eq!((all.share, all.tags), (1.0, vec![("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())]));
        for (kind, param, share) in [("const", "1", 1.0), ("const", "0", 0.0), ("probabilistic", "0.25", 0.25), ("", "0.5", 0.5)] {
            let settings = read(&[ENDPOINT, ("JAEGER_SAMPLER_TYPE", kind), ("JAEGER_SAMPLER_PARAM", param)]);
            assert_eq!(settings.expect("good").expect("active").share, share);
        }
        for (pair, error) in [
            (("JAEGER_SAMPLER_TYPE", "remote"), "JAEGER_SAMPLER_TYPE: \"remote\" is not one of const, probabilistic"),
            (("JAEGER_SAMPLER_PARAM", "2"), "JAEGER_SAMPLER_PARAM: \"2\" is not a number from 0 to 1"),
            (("JAEGER_TAGS", "a"), "JAEGER_TAGS: \"a\" is not of the form key=value"),
        ] {
            assert_eq!(read(&[ENDPOINT, pair]).expect_err(error), error);
        }
        let error = read(&[("JAEGER_ENDPOINT", "https://c/api/traces")]).expect_err("no TLS");
        assert_eq!(error, "JAEGER_ENDPOINT: \"https://c/api/traces\" is not of the form http://host:port/path");
    }
}
