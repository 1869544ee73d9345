//! Thrift over HTTP: `POST /api/traces`, what Jaeger's collector takes on 14268.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use storage::wal::Entry;
use tokio::net::TcpListener;

use crate::{
    body::BodyError,
    budget::Budget,
    distributor::Distributor,
    foreign::{Foreign, Untranslated},
    intake::{self, Bounds, IntakeError, Received, Refused, respond},
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
        async move { respond(&receiver.metrics, receiver.take(request).await) }
    };
    serve(listener, "jaeger/thrift_http", Versions::Http1And2, &server, handler, shutdown).await
}

struct Receiver {
    settings: JaegerHttpSettings,
    distributor: Distributor,
    budget: Budget,
    metrics: ReceiverMetrics,
}

/// A refusal with this message as its body.
fn refused(status: StatusCode, message: impl std::fmt::Display, reason: &'static str) -> Refused {
    Refused { status, body: format!("{message}\n"), spans: 0, reason }
}

impl Receiver {
    async fn take(&self, request: Request<Incoming>) -> Result<u64, Refused> {
        if request.uri().path() != PATH {
            return Err(refused(StatusCode::NOT_FOUND, "404 page not found", "not_found"));
        }
        if request.method() != Method::POST {
            return Err(refused(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed", "method_not_allowed"));
        }
        check_content_type(request.headers().get(header::CONTENT_TYPE))?;
        let bounds = Bounds {
            max_body_bytes: self.settings.max_body_bytes,
            body_timeout: self.settings.server.body_timeout,
            multitenancy: self.settings.multitenancy,
        };
        let Received { tenant, body, skip_metrics_generation, mut reservation } =
            intake::read(request, bounds, &self.budget).await.map_err(|e| not_received(&e))?;
        let translated = Foreign::JaegerThrift.to_otlp_within(&mut reservation, &body, Duration::ZERO, false).await;
        let request = translated.map_err(|error| match error {
            Untranslated::NoRoom(error) => unreadable(&error.into()),
            Untranslated::Malformed(error) => {
                refused(StatusCode::BAD_REQUEST, format_args!("Unable to process request body: {error}"), "malformed")
            }
        })?;
        drop(body);
        let pushed = self.distributor.push(&tenant, Entry { body: request, skip_metrics_generation }).await.map_err(|error| Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: format!("Cannot submit Jaeger batch: {error}\n"),
            spans: error.spans,
            reason: error.reason(),
        })?;
        Ok(pushed.spans())
    }
}

fn check_content_type(value: Option<&HeaderValue>) -> Result<(), Refused> {
    let refused = |message: &str| refused(StatusCode::BAD_REQUEST, message, "unsupported_media_type");
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-thrift" | "application/vnd.apache.thrift.binary" => Ok(()),
        "" => Err(refused("Cannot parse content type: mime: no media type")),
        other => Err(refused(&format!("Unsupported content type: {other}"))),
    }
}

fn unreadable(error: &BodyError) -> Refused {
    refused(StatusCode::INTERNAL_SERVER_ERROR, format_args!("Unable to process request body: {error}"), error.reason())
}

fn not_received(error: &IntakeError) -> Refused {
    match error {
        IntakeError::Body { error, .. } => unreadable(error),
        IntakeError::Encoding(_) => refused(StatusCode::BAD_REQUEST, error, error.reason()),
        IntakeError::Tenant(_) => {
            refused(StatusCode::INTERNAL_SERVER_ERROR, format_args!("Cannot submit Jaeger batch: {error}"), error.reason())
        }
    }
}
