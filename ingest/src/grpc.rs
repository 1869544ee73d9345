//! The calls of gRPC that take spans: OTLP's `TraceService/Export` and Jaeger's `CollectorService/PostSpans`.
//!
//! How a call is read and answered is in [`unary`](crate::unary).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use storage::wal::Entry;
use tokio::net::TcpListener;

use crate::{
    body::{BodyError, BodyReader},
    budget::Budget,
    distributor::{Distributor, Pushed, Refusal},
    foreign::{Foreign, Untranslated},
    intake, jaeger,
    metrics::{JAEGER, OTLP, ReceiverMetrics},
    server::{Drained, ServerSettings, Versions, serve},
    status::{Code, Status, export_response},
    tenant::{self, TenantError},
    unary::{self, Reply},
};

/// The one call that a receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Export,
    PostSpans,
}

impl Call {
    fn path(self) -> &'static str {
        match self {
            Self::Export => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::PostSpans => jaeger::POST_SPANS,
        }
    }

    /// The message of a success.
    fn reply(self, pushed: &Pushed) -> Bytes {
        match self {
            Self::Export => export_response(pushed.rejected.as_ref().map(|rejected| (rejected.spans, rejected.message.as_str()))),
            Self::PostSpans => Bytes::new(),
        }
    }
}

/// How the gRPC receiver is set up.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// Largest message, compressed and decompressed, bytes (`max_recv_msg_size_mib`).
    pub max_message_bytes: usize,
    /// Whether the tenant is taken from `x-scope-orgid`.
    pub multitenancy: bool,
    /// Connections.
    pub server: ServerSettings,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        Self { max_message_bytes: 4 << 20, multitenancy: false, server: ServerSettings::default() }
    }
}

/// Serves OTLP/gRPC on `listener` until `shutdown` completes and requests in flight are answered.
pub async fn otlp_grpc(
    listener: TcpListener,
    settings: GrpcSettings,
    distributor: Distributor,
    budget: Budget,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let metrics = distributor.receiver_metrics(OTLP, "grpc");
    listen(listener, "otlp/grpc", Receiver { call: Call::Export, settings, distributor, budget, metrics }, shutdown).await
}

/// Serves Jaeger's `CollectorService` on `listener` until `shutdown` completes and requests in flight are answered.
pub async fn jaeger_grpc(
    listener: TcpListener,
    settings: GrpcSettings,
    distributor: Distributor,
    budget: Budget,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let metrics = distributor.receiver_metrics(JAEGER, "grpc");
    listen(listener, "jaeger/grpc", Receiver { call: Call::PostSpans, settings, distributor, budget, metrics }, shutdown).await
}

async fn listen(listener: TcpListener, name: &'static str, receiver: Receiver, shutdown: impl Future<Output = ()>) -> Drained {
    let server = receiver.settings.server.clone();
    let receiver = Arc::new(receiver);
    let handler = move |request| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.respond(request).await }
    };
    serve(listener, name, Versions::Http2, &server, handler, shutdown).await
}

struct Receiver {
    call: Call,
    settings: GrpcSettings,
    distributor: Distributor,
    budget: Budget,
    metrics: ReceiverMetrics,
}

/// A refusal with what is counted about it.
struct Refused {
    status: Status,
    spans: u64,
    reason: &'static str,
}

impl Refused {
    fn new(code: Code, message: impl Into<String>, reason: &'static str) -> Self {
        Self { status: Status::new(code, message), spans: 0, reason }
    }
}

impl Receiver {
    async fn respond(&self, request: Request<Incoming>) -> Response<Reply> {
        if !unary::is_grpc(request.headers()) {
            self.metrics.refused(0, "unsupported_media_type");
            return Reply::unsupported();
        }
        match self.export(request).await {
            Ok(pushed) => {
                self.metrics.accepted(pushed.spans());
                Reply::success(&self.call.reply(&pushed))
            }
            Err(refused) => {
                self.metrics.refused(refused.spans, refused.reason);
                Reply::failure(&refused.status)
            }
        }
    }

    async fn export(&self, request: Request<Incoming>) -> Result<Pushed, Refused> {
        let (head, body) = request.into_parts();
        if head.uri.path() != self.call.path() || head.method != http::Method::POST {
            return Err(Refused::new(Code::Unimplemented, format!("unknown method {}", head.uri.path()), "unknown_method"));
        }
        let encoding = unary::encoding(&head.headers).map_err(|status| Refused { status, spans: 0, reason: "unsupported_encoding" })?;
        let tenant = tenant::extract(&head.headers, self.settings.multitenancy).map_err(|error| {
            let code = if error == TenantError::Absent { Code::Unavailable } else { Code::InvalidArgument };
            Refused::new(code, error.to_string(), "no_tenant")
        })?;
        let skip_metrics_generation = intake::skips_metrics_generation(&head.headers);
        let mut reservation = self.budget.open();
        let reader = BodyReader::new(body, self.settings.server.body_timeout);
        let message = unary::read_message(reader, encoding, self.settings.max_message_bytes, &mut reservation).await;
        let message = message.map_err(|error| {
            let status = error.status(self.distributor.retry_after(&tenant));
            Refused { status, spans: 0, reason: error.reason() }
        })?;
        let message = match self.call {
            Call::Export => message,
            Call::PostSpans => {
                let translated = Foreign::JaegerProtobuf.to_otlp_within(&mut reservation, &message, Duration::ZERO, false).await;
                translated.map_err(|error| match error {
                    Untranslated::NoRoom(error) => {
                        let error = BodyError::from(error);
                        Refused { status: error.status(self.distributor.retry_after(&tenant)), spans: 0, reason: error.reason() }
                    }
                    Untranslated::Malformed(error) => Refused::new(Code::InvalidArgument, error.to_string(), "malformed"),
                })?
            }
        };
        self.distributor.push(&tenant, Entry { body: message, skip_metrics_generation }).await.map_err(|error| {
            let mut status = error.status();
            if matches!(error.refusal, Refusal::Malformed(_)) {
                // What a gRPC library says about a message that it cannot decode.
                status.code = Code::Internal;
            }
            Refused { status, spans: error.spans, reason: error.reason() }
        })
    }
}
