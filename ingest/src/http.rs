//! OTLP over HTTP: `POST /v1/traces`, protobuf or JSON.
//!
//! ```text
//!  method ─► content type ─► content encoding ─► tenant ─► read (bounded) ─► decompress (bounded) ─► [JSON ─► protobuf] ─► push
//!   405         415               400             503/400        400              400                     400          429 503 400
//! ```
//!
//! Success and failure are answered in the content type of the request. Bodies are limited twice, as they arrive and decompressed.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use storage::wal::Entry;
use tokio::net::TcpListener;

use crate::{
    budget::Budget,
    distributor::{Distributor, Pushed},
    intake::{self, Bounds, IntakeError, Received},
    json,
    metrics::{OTLP, ReceiverMetrics},
    server::{Drained, ServerSettings, Versions, serve},
    status::{Code, Status, export_response, export_response_json},
    tenant::TenantError,
};

/// How the HTTP receiver is set up.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest body, compressed and decompressed, bytes (`max_request_body_size`).
    pub max_body_bytes: usize,
    /// Where requests go (`traces_url_path`).
    pub traces_path: String,
    /// Whether the tenant is taken from `X-Scope-OrgID`.
    pub multitenancy: bool,
    /// Connections.
    pub server: ServerSettings,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { max_body_bytes: 20 << 20, traces_path: "/v1/traces".to_owned(), multitenancy: false, server: ServerSettings::default() }
    }
}

/// Serves OTLP/HTTP on `listener` until `shutdown` completes and requests in flight are answered.
pub async fn otlp_http(
    listener: TcpListener,
    settings: HttpSettings,
    distributor: Distributor,
    budget: Budget,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let server = settings.server.clone();
    let metrics = distributor.receiver_metrics(OTLP, "http");
    let receiver = Arc::new(Receiver { settings, distributor, budget, metrics });
    let handler = move |request| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.respond(request).await }
    };
    serve(listener, "otlp/http", Versions::Http1And2, &server, handler, shutdown).await
}

struct Receiver {
    settings: HttpSettings,
    distributor: Distributor,
    budget: Budget,
    metrics: ReceiverMetrics,
}

/// The form of a request, and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Protobuf,
    Json,
}

impl Form {
    fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "application/x-protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        })
    }
}

/// A refusal with what is counted about it.
struct Refused {
    status: Status,
    spans: u64,
    reason: &'static str,
}

impl Refused {
    fn new(status: Status, spans: u64, reason: &'static str) -> Self {
        Self { status, spans, reason }
    }
}

impl Receiver {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != self.settings.traces_path {
            self.metrics.refused(0, "not_found");
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        if request.method() != Method::POST {
            self.metrics.refused(0, "method_not_allowed");
            return text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed, supported: [POST]");
        }
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(form) = Form::of(content_type) else {
            self.metrics.refused(0, "unsupported_media_type");
            return text(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "415 unsupported media type, supported: [application/json, application/x-protobuf]",
            );
        };
        let mut response = match self.export(request, form).await {
            Ok(pushed) => {
                self.metrics.accepted(pushed.spans());
                let rejected = pushed.rejected.as_ref().map(|rejected| (rejected.spans, rejected.message.as_str()));
                Response::new(Full::new(match form {
                    Form::Protobuf => export_response(rejected),
                    Form::Json => export_response_json(rejected),
                }))
            }
            Err(refused) => {
                self.metrics.refused(refused.spans, refused.reason);
                let mut response = Response::new(Full::new(match form {
                    Form::Protobuf => refused.status.to_protobuf(),
                    Form::Json => refused.status.to_json(),
                }));
                let http_status = refused.status.code.http();
                *response.status_mut() = http_status;
                let may_retry = matches!(http_status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
                if let Some(delay) = refused.status.retry_after.filter(|_| may_retry) {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs()));
                }
                response
            }
        };
        response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
        response
    }

    async fn export(&self, request: Request<Incoming>, form: Form) -> Result<Pushed, Refused> {
        let bounds = Bounds {
            max_body_bytes: self.settings.max_body_bytes,
            body_timeout: self.settings.server.body_timeout,
            multitenancy: self.settings.multitenancy,
        };
        let received = intake::read(request, bounds, &self.budget).await;
        let Received { tenant, mut body, skip_metrics_generation, mut reservation } =
            received.map_err(|error| self.not_received(&error))?;
        if form == Form::Json {
            // A field takes more room in JSON than on the wire.
            reservation
                .reach(2 * body.len())
                .await
                .map_err(|error| self.not_received(&IntakeError::Body { tenant: tenant.clone(), error: error.into() }))?;
            let transcoded = json::transcode(&body);
            body = transcoded
                .map(Bytes::from)
                .map_err(|error| Refused::new(Status::new(Code::InvalidArgument, error.to_string()), 0, "malformed_json"))?;
            reservation.shrink(body.len());
        }
        self.distributor
            .push(&tenant, Entry { body, skip_metrics_generation })
            .await
            .map_err(|error| Refused::new(error.status(), error.spans, error.reason()))
    }

    fn not_received(&self, error: &IntakeError) -> Refused {
        let status = match error {
            IntakeError::Encoding(_) => Status::new(Code::InvalidArgument, error.to_string()),
            IntakeError::Tenant(TenantError::Absent) => Status::new(Code::Unavailable, error.to_string()),
            IntakeError::Tenant(_) => Status::new(Code::InvalidArgument, error.to_string()),
            IntakeError::Body { tenant, error } => error.status(self.distributor.retry_after(tenant)),
        };
        Refused::new(status, 0, error.reason())
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
