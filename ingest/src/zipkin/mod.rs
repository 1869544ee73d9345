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
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use storage::{clock::Clock, wal::Entry};
use tokio::net::TcpListener;

pub(crate) use self::list::most_spans;
use crate::{
    budget::Budget,
    distributor::Distributor,
    foreign::{Foreign, Malformed, Untranslated},
    intake::{self, Bounds, IntakeError, Received, Refused, respond},
    metrics::{ReceiverMetrics, ZIPKIN},
    server::{Drained, ServerSettings, Versions, serve},
    status::Code,
};

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
    let forms = Forms::new(&distributor);
    let receiver = Arc::new(Receiver { settings, distributor, budget, clock, forms });
    let handler = move |request| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.respond(request).await }
    };
    serve(listener, "zipkin", Versions::Http1And2, &server, handler, shutdown).await
}

/// How the spans of a request are written, and what is counted of such requests.
struct Form {
    foreign: Foreign,
    metrics: ReceiverMetrics,
}

struct Forms {
    v1_thrift: Form,
    v1_json: Form,
    v2_json: Form,
    v2_proto: Form,
}

impl Forms {
    fn new(distributor: &Distributor) -> Self {
        let form = |foreign, transport| Form { foreign, metrics: distributor.receiver_metrics(ZIPKIN, transport) };
        Self {
            v1_thrift: form(Foreign::ZipkinV1Thrift, "http_v1_thrift"),
            v1_json: form(Foreign::ZipkinV1Json, "http_v1_json"),
            v2_json: form(Foreign::ZipkinV2Json, "http_v2_json"),
            v2_proto: form(Foreign::ZipkinV2Protobuf, "http_v2_proto"),
        }
    }

    fn of(&self, path: &str, content_type: &str) -> &Form {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (path.contains("api/v1/spans"), essence.as_str()) {
            (true, "application/x-thrift") => &self.v1_thrift,
            (true, _) => &self.v1_json,
            (false, "application/x-protobuf") => &self.v2_proto,
            (false, _) => &self.v2_json,
        }
    }
}

struct Receiver {
    settings: ZipkinSettings,
    distributor: Distributor,
    budget: Budget,
    clock: Arc<dyn Clock>,
    forms: Forms,
}

impl Receiver {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let form = self.forms.of(request.uri().path(), content_type);
        respond(&form.metrics, self.take(request, form.foreign).await)
    }

    async fn take(&self, request: Request<Incoming>, form: Foreign) -> Result<u64, Refused> {
        let bounds = Bounds {
            max_body_bytes: self.settings.max_body_bytes,
            body_timeout: self.settings.server.body_timeout,
            multitenancy: self.settings.multitenancy,
        };
        let received = intake::read(request, bounds, &self.budget).await.map_err(|error| not_received(&error))?;
        let Received { tenant, body, skip_metrics_generation, mut reservation } = received;
        let translated = form.to_otlp_within(&mut reservation, &body, self.clock.now(), self.settings.parse_string_tags).await;
        let request = translated.map_err(|error| match error {
            Untranslated::NoRoom(error) => not_received(&IntakeError::Body { tenant: tenant.clone(), error: error.into() }),
            Untranslated::Malformed(error) => {
                Refused { status: StatusCode::BAD_REQUEST, body: error.to_string(), spans: 0, reason: "malformed" }
            }
        })?;
        drop(body);
        let pushed = self.distributor.push(&tenant, Entry { body: request, skip_metrics_generation }).await.map_err(|error| {
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
