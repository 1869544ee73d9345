//! The way of every request to a store, below `object_store`'s clients, which sign requests and understand answers.
//!
//! ```text
//!  call ─► retry ──► hedge ──► attempt (time-out, metrics) ──► connection
//!            ▲         └─ after hedge_requests_at ─► attempt     │
//!            └── 5xx, 429, 408, connection failures ◄────────────┘
//! ```
//!
//! The clients' own retries are switched off, so that there is one policy ([`Retry`]). All requests of ours may be repeated: they write
//! what they wrote before, or ask whether something is there. Answers that are read whole anyway (listings, the end of a multipart upload)
//! are read within the attempt, so that one that breaks off in the middle is tried again like any other; bodies of objects are handed on
//! and mended by [`super::bucket`]. A request that loses against its hedge is cancelled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use object_store::{
    ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets};

use super::{
    open::OpenError,
    retry::Retry,
    settings::{Requests, Tls},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the service of a cloud's machine that hands out credentials may take. Elsewhere nobody answers there at all.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// What a body adds to a request's time-out.
const TIME_PER_MIB: Duration = Duration::from_secs(4);

/// Largest answer that is read whole: a listing of a thousand names is far below.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What is known about requests. Names and buckets of the first two are Tempo's (config.md §9).
#[derive(Clone, Debug)]
struct Metrics {
    duration: HistogramVec,
    hedged: IntCounter,
    failures: IntCounterVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let duration = HistogramOpts::new("tempodb_backend_request_duration_seconds", "Time from a request to the answer's head.");
        let metrics = Self {
            duration: HistogramVec::new(duration.buckets(exponential_buckets(0.005, 4.0, 6)?), &["operation", "status_code"])?,
            hedged: IntCounter::with_opts(Opts::new(
                "tempodb_backend_hedged_roundtrips_total",
                "Reads that were sent once more because the first was slow.",
            ))?,
            failures: IntCounterVec::new(
                Opts::new("rubato_backend_request_failures_total", "Requests without an answer."),
                &["operation", "reason"],
            )?,
        };
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.hedged.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }
}

/// The connections to a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    retry: Arc<Retry>,
    metrics: Metrics,
    hedge_at: Duration,
    hedge_up_to: usize,
    timeout: Duration,
}

impl Http {
    /// No connection yet.
    pub(super) fn new(tls: &Tls, requests: &Requests, retry: Arc<Retry>, registry: &Registry) -> Result<Self, OpenError> {
        Ok(Self {
            client: client(tls)?,
            retry,
            metrics: Metrics::new(registry)?,
            hedge_at: requests.hedge_at,
            hedge_up_to: requests.hedge_up_to,
            timeout: requests.timeout,
        })
    }

    /// One request, once more while it is unanswered and may be, and the first good answer.
    async fn hedged(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let up_to = if read && !self.hedge_at.is_zero() { self.hedge_up_to } else { 1 };
        let mut under_way = FuturesUnordered::new();
        under_way.push(self.attempt(request.clone()));
        let mut sent = 1;
        loop {
            tokio::select! {
                answer = under_way.next() => match answer {
                    Some(answer) if under_way.is_empty() || !may_help_to_retry(&answer) => return answer,
                    // The other one may do better.
                    _ => {}
                },
                () = tokio::time::sleep(self.hedge_at), if sent < up_to => {
                    sent += 1;
                    self.metrics.hedged.inc();
                    under_way.push(self.attempt(request.clone()));
                }
            }
        }
    }

    /// One request.
    async fn attempt(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let operation = operation(request.method());
        let timeout = if is_metadata_service(request.uri()) {
            METADATA_TIMEOUT
        } else {
            let mib = u32::try_from(request.body().content_length() >> 20).unwrap_or(u32::MAX);
            self.timeout + TIME_PER_MIB.saturating_mul(mib)
        };
        let whole = *request.method() == Method::POST || request.uri().query().is_some();
        let begin = Instant::now();
        let exchange = async {
            let response = self.client.call(request).await?;
            let status = response.status();
            self.metrics.duration.with_label_values(&[operation, status.as_str()]).observe(begin.elapsed().as_secs_f64());
            if whole { read_whole(response).await } else { Ok(response) }
        };
        let outcome = match tokio::time::timeout(timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer { timeout })),
        };
        if let Err(error) = &outcome {
            self.metrics.failures.with_label_values(&[operation, reason(error)]).inc();
        }
        outcome
    }
}

#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut failed = 0;
        loop {
            let answer = self.hedged(&request).await;
            if !may_help_to_retry(&answer) {
                if answer.is_ok() {
                    self.retry.succeeded();
                }
                return answer;
            }
            if is_conditional_write(&request) && may_have_been_done(&answer) {
                return answer;
            }
            failed += 1;
            // A machine without such a service will not get one.
            let pause = if is_metadata_service(request.uri()) && failed > 1 { None } else { self.retry.pause(failed) };
            let Some(pause) = pause else { return answer };
            let cause = match &answer {
                Ok(response) => format!("status {}", response.status()),
                Err(error) => format!("{} ({error})", reason(error)),
            };
            tracing::debug!(method = %request.method(), path = request.uri().path(), cause, failed, ?pause, "request to the bucket failed, trying again");
            tokio::time::sleep(pause).await;
        }
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {timeout:?}")]
struct NoAnswer {
    timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer breaks off or is longer than {MAX_ANSWER_BYTES} bytes")]
struct BrokenAnswer(#[source] Box<dyn std::error::Error + Send + Sync>);

/// An answer with its body in memory. S3 says at the end of a long operation that it failed, after it has said that all is well: such an
/// answer becomes the error that it should have been.
async fn read_whole(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let bytes = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, BrokenAnswer(error)))?.to_bytes();
    if parts.status == StatusCode::OK && bytes.len() < 4096 {
        let text = String::from_utf8_lossy(&bytes);
        let busy = ["InternalError", "SlowDown", "ServiceUnavailable"].iter().any(|code| text.contains(&format!("<Code>{code}</Code>")));
        if busy && text.contains("<Error>") {
            parts.status = StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    Ok(HttpResponse::from_parts(parts, bytes.into()))
}

/// Whether the same request may have another answer soon.
fn may_help_to_retry(answer: &Result<HttpResponse, HttpError>) -> bool {
    match answer {
        Ok(response) => {
            let status = response.status();
            let server =
                status.is_server_error() && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
            server || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        }
        Err(error) => !matches!(error.kind(), HttpErrorKind::Decode | HttpErrorKind::Unknown),
    }
}

/// Whether repeating a request may have another outcome because of the first one's.
fn is_conditional_write(request: &HttpRequest) -> bool {
    let conditions = ["if-match", "if-none-match", "x-goog-if-generation-match"];
    *request.method() == Method::PUT && conditions.iter().any(|name| request.headers().contains_key(*name))
}

/// Whether a failed request may have had its effect.
fn may_have_been_done(answer: &Result<HttpResponse, HttpError>) -> bool {
    match answer {
        Ok(response) => !matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS),
        Err(error) => error.kind() != HttpErrorKind::Connect,
    }
}

/// The label of a method: what no store asks for has none of its own.
fn operation(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

fn reason(error: &HttpError) -> &'static str {
    match error.kind() {
        HttpErrorKind::Connect => "connect",
        HttpErrorKind::Timeout => "timeout",
        HttpErrorKind::Request | HttpErrorKind::Interrupted => "interrupted",
        _ => "other",
    }
}

/// Whether credentials are asked from the machine that this process runs on.
fn is_metadata_service(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.starts_with("169.254.") || host == "metadata.google.internal")
}

fn client(tls: &Tls) -> Result<reqwest::Client, OpenError> {
    let read = |path: &std::path::Path| std::fs::read(path).map_err(|source| OpenError::File { path: path.to_owned(), source });
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("rubato/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(20))
        // A redirect means another region or endpoint, and its signature would be wrong there.
        .redirect(reqwest::redirect::Policy::none())
        .tls_version_min(if tls.require_1_3 { reqwest::tls::Version::TLS_1_3 } else { reqwest::tls::Version::TLS_1_2 })
        .tls_danger_accept_invalid_certs(tls.insecure_skip_verify);
    if let Some(path) = &tls.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?);
        builder = builder.tls_certs_merge(certificates.map_err(|source| OpenError::Pem { path: path.clone(), source })?);
    }
    if let Some((certificate, key)) = &tls.identity {
        let pem = [read(certificate)?, read(key)?].join(&b'\n');
        let identity = reqwest::Identity::from_pem(&pem).map_err(|source| OpenError::Pem { path: certificate.clone(), source })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(OpenError::Client)
}
