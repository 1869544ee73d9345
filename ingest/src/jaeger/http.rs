//! Thrift over HTTP: `POST /api/traces`, what Jaeger's collector takes on 14268.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;

use super::GROWTH;
use crate::{
    body::BodyError,
    budget::Budget,
    distributor::Distributor,
    foreign::Foreign,
    intake::{self, Bounds, IntakeError, Received},
    metrics::{JAEGER, ReceiverMetrics},
    server::{Drained, ServerSettings, Versions, serve},
};

const PATH: &str = "/api/traces";

/// How the receiver is set up.
#[derive(Clone, Debug)]
pub struct JaegerHttpSettings {
    /// Largest body, compressed and decompressed, bytes (`max_request_body_size`).
    pub max_body_bytes: usize,
    /// Whether the tenant is taken from `X-Scope-OrgID`.
    pub multitenancy: bool,
    /// Connections.
    pub server: ServerSettings,
}

impl Default for JaegerHttpSettings {
    fn default() -> Self {
        Self { max_body_bytes: 20 << 20, multitenancy: false, server: ServerSettings::default() }
    }
}

/// Serves Jaeger's Thrift over HTTP on `listener` until `shutdown` completes and requests in flight are answered.
pub async fn jaeger_thrift_http(
    listener: TcpListener,
    settings: JaegerHttpSettings,
    distributor: Distributor,
    budget: Budget,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let server = settings.server.clone();
    let metrics = distributor.receiver_metrics(JAEGER, "collector_http");
    let receiver = Arc::new(Receiver { settings, distributor, budget, metrics });
    let handler = move |request| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.respond(request).await }
    };
    serve(listener, "jaeger/thrift_http", Versions::Http1And2, &server, handler, shutdown).await
}

struct Receiver {
    settings: JaegerHttpSettings,
    distributor: Distributor,
    budget: Budget,
    metrics: ReceiverMetrics,
}

/// A refusal: how it is answered and what is counted.
struct Refused {
    status: StatusCode,
    message: String,
    spans: u64,
    reason: &'static str,
}

impl Refused {
    fn new(status: StatusCode, message: String, reason: &'static str) -> Self {
        Self { status, message, spans: 0, reason }
    }
}

impl Receiver {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = match self.take(request).await {
            Ok(spans) => {
                self.metrics.accepted(spans);
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::ACCEPTED;
                response
            }
            Err(refused) => {
                self.metrics.refused(refused.spans, refused.reason);
                let mut response = Response::new(Full::new(Bytes::from(refused.message + "\n")));
                *response.status_mut() = refused.status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                response
            }
        };
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    async fn take(&self, request: Request<Incoming>) -> Result<u64, Refused> {
        if request.uri().path() != PATH {
            return Err(Refused::new(StatusCode::NOT_FOUND, "404 page not found".to_owned(), "not_found"));
        }
        if request.method() != Method::POST {
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed".to_owned(), "method_not_allowed"));
        }
        check_content_type(request.headers().get(header::CONTENT_TYPE))?;
        let bounds = Bounds {
            max_body_bytes: self.settings.max_body_bytes,
            body_timeout: self.settings.server.body_timeout,
            multitenancy: self.settings.multitenancy,
        };
        let Received { tenant, body, mut reservation } = intake::read(request, bounds, &self.budget).await.map_err(|e| not_received(&e))?;
        let wanted = body.len().saturating_mul(GROWTH).min(self.budget.total());
        reservation.reach(wanted).await.map_err(|error| unreadable(&error.into()))?;
        let request = Foreign::JaegerThrift
            .to_otlp(&body, Duration::ZERO, false)
            .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, format!("Unable to process request body: {error}"), "malformed"))?;
        drop(body);
        let pushed = self.distributor.push(&tenant, request).await.map_err(|error| Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: format!("Cannot submit Jaeger batch: {error}"),
            spans: error.spans,
            reason: error.reason(),
        })?;
        Ok(pushed.spans())
    }
}

fn check_content_type(value: Option<&HeaderValue>) -> Result<(), Refused> {
    let refused = |message: String| Refused::new(StatusCode::BAD_REQUEST, message, "unsupported_media_type");
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-thrift" | "application/vnd.apache.thrift.binary" => Ok(()),
        "" => Err(refused("Cannot parse content type: mime: no media type".to_owned())),
        other => Err(refused(format!("Unsupported content type: {other}"))),
    }
}

fn unreadable(error: &BodyError) -> Refused {
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("Unable to process request body: {error}"), error.reason())
}

fn not_received(error: &IntakeError) -> Refused {
    match error {
        IntakeError::Body { error, .. } => unreadable(error),
        IntakeError::Encoding(_) => Refused::new(StatusCode::BAD_REQUEST, error.to_string(), error.reason()),
        IntakeError::Tenant(_) => {
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("Cannot submit Jaeger batch: {error}"), error.reason())
        }
    }
}
