//! Zipkin over HTTP: v1 and v2, JSON, Thrift and protobuf (write-path.md §3.3).
//!
//! ```text
//!  path has api/v1/spans ? ── x-thrift ──► v1 Thrift ──┐
//!            │             └─ else ──────► v1 JSON ────┼─► OTLP ─► Distributor::push ─► 202
//!            └ no ─────────── x-protobuf ► v2 protobuf ┤
//!                          └─ else ──────► v2 JSON ────┘
//! ```
//!
//! Any path and any method with a body will do, as clients of a decade have found. A connection takes one request, as in the reference.

mod list;
mod model;
mod translate;
mod v1;
mod v2;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use storage::clock::Clock;
use tokio::net::TcpListener;

pub(crate) use self::list::most_spans;
use crate::{
    budget::Budget,
    distributor::Distributor,
    foreign::{Foreign, Malformed},
    intake::{self, Bounds, IntakeError, Received},
    metrics::{ReceiverMetrics, ZIPKIN},
    server::{Drained, ServerSettings, Versions, serve},
    status::Code,
};

/// Bytes that a request takes while it is translated, per byte that came in: the least a span can be written with is some 40 bytes, and
/// decoded and translated it is some 600.
const GROWTH: usize = 16;

/// How the Zipkin receiver is set up.
#[derive(Clone, Debug)]
pub struct ZipkinSettings {
    /// Largest body, compressed and decompressed, bytes (`max_request_body_size`).
    pub max_body_bytes: usize,
    /// Whether tags whose text is a number or a boolean become one (`parse_string_tags`).
    pub parse_string_tags: bool,
    /// Whether the tenant is taken from `X-Scope-OrgID`.
    pub multitenancy: bool,
    /// Connections.
    pub server: ServerSettings,
}

impl Default for ZipkinSettings {
    fn default() -> Self {
        Self { max_body_bytes: 20 << 20, parse_string_tags: false, multitenancy: false, server: ServerSettings::default() }
    }
}

/// Serves Zipkin on `listener` until `shutdown` completes and requests in flight are answered. Spans without a start begin when they arrive, by
/// `clock`.
pub async fn zipkin(
    listener: TcpListener,
    settings: ZipkinSettings,
    distributor: Distributor,
    budget: Budget,
    clock: Arc<dyn Clock>,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let server = settings.server.clone();
    let metrics = Form::ALL.map(|form| distributor.receiver_metrics(ZIPKIN, form.transport()));
    let receiver = Arc::new(Receiver { settings, distributor, budget, clock, metrics });
    let handler = move |request| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.respond(request).await }
    };
    serve(listener, "zipkin", Versions::Http1And2, &server, handler, shutdown).await
}

/// How the spans of a request are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V1Thrift,
    V1Json,
    V2Json,
    V2Proto,
}

impl Form {
    const ALL: [Self; 4] = [Self::V1Thrift, Self::V1Json, Self::V2Json, Self::V2Proto];

    fn of(path: &str, content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (path.contains("api/v1/spans"), essence.as_str()) {
            (true, "application/x-thrift") => Self::V1Thrift,
            (true, _) => Self::V1Json,
            (false, "application/x-protobuf") => Self::V2Proto,
            (false, _) => Self::V2Json,
        }
    }

    fn foreign(self) -> Foreign {
        match self {
            Self::V1Thrift => Foreign::ZipkinV1Thrift,
            Self::V1Json => Foreign::ZipkinV1Json,
            Self::V2Json => Foreign::ZipkinV2Json,
            Self::V2Proto => Foreign::ZipkinV2Protobuf,
        }
    }

    fn transport(self) -> &'static str {
        match self {
            Self::V1Thrift => "http_v1_thrift",
            Self::V1Json => "http_v1_json",
            Self::V2Json => "http_v2_json",
            Self::V2Proto => "http_v2_proto",
        }
    }
}

struct Receiver {
    settings: ZipkinSettings,
    distributor: Distributor,
    budget: Budget,
    clock: Arc<dyn Clock>,
    /// In the order of [`Form::ALL`].
    metrics: [ReceiverMetrics; 4],
}

/// A refusal: how it is answered and what is counted.
struct Refused {
    status: StatusCode,
    body: String,
    spans: u64,
    reason: &'static str,
}

impl Receiver {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let form = Form::of(request.uri().path(), content_type);
        let metrics = &self.metrics[form as usize];
        let mut response = match self.take(request, form).await {
            Ok(spans) => {
                metrics.accepted(spans);
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::ACCEPTED;
                response
            }
            Err(refused) => {
                metrics.refused(refused.spans, refused.reason);
                let mut response = Response::new(Full::new(Bytes::from(refused.body)));
                *response.status_mut() = refused.status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                response
            }
        };
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    async fn take(&self, request: Request<Incoming>, form: Form) -> Result<u64, Refused> {
        let bounds = Bounds {
            max_body_bytes: self.settings.max_body_bytes,
            body_timeout: self.settings.server.body_timeout,
            multitenancy: self.settings.multitenancy,
        };
        let received = intake::read(request, bounds, &self.budget).await.map_err(|error| not_received(&error))?;
        let Received { tenant, body, mut reservation } = received;
        let wanted = body.len().saturating_mul(GROWTH).min(self.budget.total());
        reservation
            .reach(wanted)
            .await
            .map_err(|error| not_received(&IntakeError::Body { tenant: tenant.clone(), error: error.into() }))?;
        let translated = form.foreign().to_otlp(&body, self.clock.now(), self.settings.parse_string_tags);
        let request = translated.map_err(|error| Refused {
            status: StatusCode::BAD_REQUEST,
            body: error.to_string(),
            spans: 0,
            reason: "malformed",
        })?;
        drop(body);
        let pushed = self.distributor.push(&tenant, request).await.map_err(|error| {
            let permanent = matches!(error.status().code, Code::InvalidArgument);
            let (status, body) = if permanent {
                (StatusCode::BAD_REQUEST, "\"Bad Request\"")
            } else {
                (StatusCode::INTERNAL_SERVER_ERROR, "\"Internal Server Error\"")
            };
            Refused { status, body: body.to_owned(), spans: error.spans, reason: error.reason() }
        })?;
        Ok(pushed.spans())
    }
}

/// Zipkin v1, JSON.
pub(crate) fn of_v1_json(body: &[u8], now: Duration, parse_tags: bool) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(v1::to_otlp(v1::from_json(body, parse_tags).map_err(Malformed::new)?, now))
}

/// Zipkin v1, Thrift.
pub(crate) fn of_v1_thrift(body: &[u8], now: Duration) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(v1::to_otlp(v1::from_thrift(body).map_err(Malformed::new)?, now))
}

/// Zipkin v2, JSON.
pub(crate) fn of_v2_json(body: &[u8], parse_tags: bool) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(translate::to_otlp(v2::from_json(body).map_err(Malformed::new)?, parse_tags))
}

/// Zipkin v2, protobuf.
pub(crate) fn of_v2_protobuf(body: &[u8], parse_tags: bool) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(translate::to_otlp(v2::from_proto(body).map_err(Malformed::new)?, parse_tags))
}

fn not_received(error: &IntakeError) -> Refused {
    let status = match error {
        IntakeError::Tenant(_) => StatusCode::INTERNAL_SERVER_ERROR,
        IntakeError::Encoding(_) => StatusCode::BAD_REQUEST,
        IntakeError::Body { error, .. } => error.status(None).code.http(),
    };
    Refused { status, body: error.to_string(), spans: 0, reason: error.reason() }
}
