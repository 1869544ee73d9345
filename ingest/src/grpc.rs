//! The calls of gRPC that take spans: OTLP's `TraceService/Export` and Jaeger's `CollectorService/PostSpans`.
//!
//! One unary call with a message that we don't decode needs little of gRPC, and that little is here: the five bytes before a message, the
//! names of compressions, the status in trailers. Written by hand because two bounds need it so: the length before the message is known before the
//! message is read, which is when it is reserved in the byte budget, and decompression ends at the limit of the *decompressed* size.
//!
//! ```text
//!  HEADERS  :path, content-type, grpc-encoding, x-scope-orgid
//!  DATA     compressed? (1 byte) | length (4 bytes, big-endian) | message
//!                                      └─► reserve ──► read ──► decompress ──► Distributor::push
//!  HEADERS/DATA/trailers  grpc-status, grpc-message, grpc-status-details-bin
//! ```

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body, Frame, Incoming};
use tokio::net::TcpListener;

use crate::{
    body::{BodyError, BodyReader},
    budget::{Budget, Reservation},
    compression::Encoding,
    distributor::{Distributor, Pushed, Refusal},
    foreign::{Foreign, Untranslated},
    jaeger,
    metrics::{JAEGER, OTLP, ReceiverMetrics},
    server::{Drained, ServerSettings, Versions, serve},
    status::{Code, Status, export_response},
    tenant::{self, TenantError},
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

const ACCEPTED_ENCODINGS: &str = "identity,gzip,zstd,snappy";
const PREFIX: usize = 5;

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
        let is_grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            self.metrics.refused(0, "unsupported_media_type");
            let mut response = Response::new(Reply::default());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let mut response = match self.export(request).await {
            Ok(pushed) => {
                self.metrics.accepted(pushed.spans());
                let message = self.call.reply(&pushed);
                let mut data = BytesMut::with_capacity(PREFIX + message.len());
                data.extend_from_slice(&[0]);
                data.extend_from_slice(&(message.len() as u32).to_be_bytes());
                data.extend_from_slice(&message);
                let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
                Response::new(Reply { data: Some(data.freeze()), trailers: Some(trailers) })
            }
            Err(refused) => {
                self.metrics.refused(refused.spans, refused.reason);
                let mut response = Response::new(Reply::default());
                put_status(response.headers_mut(), &refused.status);
                response
            }
        };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED_ENCODINGS));
        response
    }

    async fn export(&self, request: Request<Incoming>) -> Result<Pushed, Refused> {
        let (head, body) = request.into_parts();
        if head.uri.path() != self.call.path() || head.method != http::Method::POST {
            return Err(Refused::new(Code::Unimplemented, format!("unknown method {}", head.uri.path()), "unknown_method"));
        }
        let encoding = head.headers.get("grpc-encoding").map_or(b"identity".as_slice(), HeaderValue::as_bytes);
        let encoding = std::str::from_utf8(encoding).ok().and_then(Encoding::of_grpc).ok_or_else(|| {
            let message = format!("grpc: Decompressor is not installed for grpc-encoding {:?}", String::from_utf8_lossy(encoding));
            Refused::new(Code::Unimplemented, message, "unsupported_encoding")
        })?;
        let tenant = tenant::extract(&head.headers, self.settings.multitenancy).map_err(|error| {
            let code = if error == TenantError::Absent { Code::Unavailable } else { Code::InvalidArgument };
            Refused::new(code, error.to_string(), "no_tenant")
        })?;
        let mut reservation = self.budget.open();
        let message = self.read_message(body, encoding, &mut reservation).await.map_err(|error| match error {
            MessageError::Body(error) => {
                let status = match &error {
                    BodyError::TooLarge { limit } => {
                        Status::new(Code::ResourceExhausted, format!("grpc: received message larger than max ({limit} bytes)"))
                    }
                    BodyError::Corrupt { .. } => Status::new(Code::Internal, error.to_string()),
                    _ => error.status(self.distributor.retry_after(&tenant)),
                };
                Refused { status, spans: 0, reason: error.reason() }
            }
            MessageError::Framing(cause) => Refused::new(Code::Internal, format!("grpc: {cause}"), "bad_framing"),
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
        self.distributor.push(&tenant, message).await.map_err(|error| {
            let mut status = error.status();
            if matches!(error.refusal, Refusal::Malformed(_)) {
                // What a gRPC library says about a message that it cannot decode.
                status.code = Code::Internal;
            }
            Refused { status, spans: error.spans, reason: error.reason() }
        })
    }

    /// Reads the one message of the call and decompresses it.
    async fn read_message(&self, body: Incoming, encoding: Encoding, reservation: &mut Reservation) -> Result<Bytes, MessageError> {
        let limit = self.settings.max_message_bytes;
        let mut reader = BodyReader::new(body, self.settings.server.body_timeout);
        let mut start = Bytes::new();
        while start.len() < PREFIX {
            let chunk = reader.next().await?.ok_or(MessageError::Framing("no message"))?;
            start = if start.is_empty() { chunk } else { [start, chunk].concat().into() };
        }
        let compressed = match start.get_u8() {
            0 => false,
            1 => true,
            _ => return Err(MessageError::Framing("invalid compression flag")),
        };
        let length = start.get_u32() as usize;
        if length > limit {
            return Err(BodyError::TooLarge { limit }.into());
        }
        reservation.reach(length).await.map_err(BodyError::from)?;
        let message = if start.len() >= length {
            start
        } else {
            let mut message = Vec::with_capacity(length);
            message.extend_from_slice(&start);
            drop(start);
            while message.len() < length {
                let chunk = reader.next().await?.ok_or(MessageError::Framing("message ends before its length"))?;
                if message.len() + chunk.len() > length {
                    return Err(MessageError::Framing("more than one message"));
                }
                message.extend_from_slice(&chunk);
            }
            message.into()
        };
        if message.len() > length || reader.next().await?.is_some() {
            return Err(MessageError::Framing("more than one message"));
        }
        let encoding = if compressed { encoding } else { Encoding::Identity };
        Ok(encoding.decompress(message, limit, reservation).await?)
    }
}

/// Why a call has no message.
enum MessageError {
    Body(BodyError),
    Framing(&'static str),
}

impl From<BodyError> for MessageError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

/// A message and the trailers behind it; without both the answer is its head, which then carries the status.
#[derive(Default)]
struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.data.take().map(Frame::data).or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }
}

const GRPC_STATUS: header::HeaderName = header::HeaderName::from_static("grpc-status");

fn put_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as i32));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(&status.message)) {
        headers.insert("grpc-message", message);
    }
    if status.retry_after.is_some()
        && let Ok(details) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(status.to_protobuf()))
    {
        headers.insert("grpc-status-details-bin", details);
    }
}

/// Encodes a message as gRPC does: bytes other than printable ASCII, and `%`, as `%XX`. Cut to what fits a header.
fn percent_encode(message: &str) -> String {
    const MAX: usize = 2048;
    let mut out = String::with_capacity(message.len());
    for character in message.chars() {
        if out.len() >= MAX {
            break;
        }
        if (' '..='~').contains(&character) && character != '%' {
            out.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                out.push('%');
                out.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% ü\n"), "100%25 %C3%BC%0A");
        assert!(percent_encode(&"ü".repeat(100_000)).len() < 2060);
    }
}
