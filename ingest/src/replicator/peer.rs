//! One ingester as seen from here: a connection, its health, and what it owes an answer for.
//!
//! ```text
//!  call ─► connected? ──yes──► HTTP/2 stream: headers, Rope ─► status, message
//!             │ no                     │
//!             ▼                        └─ stale connection: again on a new one, once
//!        connect, or fail at once for a while after it failed
//! ```
//!
//! One HTTP/2 connection carries all calls. An ingester that hangs (stopped, partitioned) costs nobody else anything: calls that are no longer
//! waited for may hold [`PeerSettings::max_late_bytes`] at most, and beyond that are given up, as are new ones.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use storage::{
    otlp::wire::{Valid, Value},
    tls::Connector,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::rope::Rope;
use crate::{
    compression::Encoding,
    metrics::PeerMetrics,
    push_message,
    pusher::PUSH_BYTES_V2,
    status::Code,
    tenant::ORG_ID_HEADER,
    traces::Verdict,
    unary::{CONTENT_TYPE, GRPC_ENCODING, GRPC_MESSAGE, GRPC_STATUS, PREFIX, percent_decode, prefix},
};

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// `ServingStatus::SERVING`.
const SERVING: u64 = 1;
/// Bytes of an answer beside a few per trace.
const ANSWER_BYTES: usize = 4 << 10;

/// How ingesters are called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerSettings {
    pub(crate) connect_timeout: Duration,
    /// How long calls fail at once after a connection failed; doubled with each further failure up to `max_backoff`.
    pub(crate) backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) max_late_bytes: usize,
}

/// Why a call has no answer, or what it was answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ingester {ingester}: {message}")]
pub struct CallError {
    /// Its address.
    pub ingester: Arc<str>,
    /// The code of its status, or what comes nearest.
    pub code: Code,
    /// The message of its status, or what went wrong.
    pub message: String,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: Arc<str>,
    settings: PeerSettings,
    connector: Connector,
    metrics: PeerMetrics,
    /// A tokio mutex because a connection is made while it is held: all calls wait for the same one.
    link: Mutex<Link>,
    late: Arc<Semaphore>,
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Link {
    sender: Option<SendRequest<Full<Rope>>>,
    /// How often connecting failed in a row, until when it is not tried again, and what it failed of.
    failure: Option<(u32, Instant, String)>,
}

impl Peer {
    pub(crate) fn new(address: &str, settings: PeerSettings, connector: Connector, metrics: PeerMetrics) -> Self {
        let late = Arc::new(Semaphore::new(settings.max_late_bytes.min(Semaphore::MAX_PERMITS)));
        Self { address: address.into(), settings, connector, metrics, link: Mutex::default(), late, failing: AtomicBool::new(false) }
    }

    /// Sends a `PushBytesRequest` with `traces` traces and waits for its answer.
    pub(crate) async fn push(
        &self,
        tenant: &HeaderValue,
        encoding: Encoding,
        message: Rope,
        traces: usize,
        remote_timeout: Duration,
    ) -> Result<Vec<Verdict>, CallError> {
        self.metrics.appends.inc();
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(ORG_ID_HEADER, tenant.clone());
        if encoding != Encoding::Identity {
            headers.insert(GRPC_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        let answer = async {
            if self.late.available_permits() == 0 && self.settings.max_late_bytes > 0 {
                return Err(self.failed(Code::Unavailable, "too many bytes wait for its answers"));
            }
            let answer = self.call(PUSH_BYTES_V2, headers, message, ANSWER_BYTES + 10 * traces, remote_timeout).await?;
            push_message::read_response(&answer, traces).map_err(|error| self.failed(Code::Internal, error))
        };
        let answer = answer.await;
        self.note(answer.as_ref().err());
        answer
    }

    /// Counts a call that was given up.
    pub(crate) fn given_up(&self) -> CallError {
        let error = self.failed(Code::Unavailable, "gave up waiting: too many bytes wait for its answers");
        self.note(Some(&error));
        error
    }

    fn note(&self, error: Option<&CallError>) {
        match error {
            Some(error) => {
                self.metrics.append_failures.inc();
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(ingester = &*self.address, err = error.message.as_str(), "ingester does not take what it is sent");
                }
            }
            None => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(ingester = &*self.address, "ingester takes what it is sent again");
                }
            }
        }
    }

    /// Room for the bytes of a call that nobody waits for any more.
    pub(crate) fn late_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.late).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Asks whether it serves.
    pub(crate) async fn check(&self, check_timeout: Duration) -> Result<(), CallError> {
        let answer = self.call(HEALTH_CHECK, HeaderMap::new(), Rope::default(), ANSWER_BYTES, check_timeout).await?;
        let status = Valid::new(&answer).filter(|field| field.number == 1).last().map(|field| field.value);
        if status == Some(Value::Varint(SERVING)) { Ok(()) } else { Err(self.failed(Code::Unavailable, "not serving")) }
    }

    fn failed(&self, code: Code, message: impl Display) -> CallError {
        CallError { ingester: Arc::clone(&self.address), code, message: message.to_string() }
    }

    /// A unary call. The answer has at most `limit` bytes.
    async fn call(&self, path: &str, headers: HeaderMap, message: Rope, limit: usize, deadline: Duration) -> Result<Bytes, CallError> {
        let call = async {
            let length =
                u32::try_from(message.remaining()).map_err(|_| self.failed(Code::ResourceExhausted, "message of more than 4 GiB"))?;
            let prefix = Bytes::copy_from_slice(&prefix(headers.contains_key(GRPC_ENCODING), length));
            let mut request = Request::post(format!("{}://{}{path}", self.connector.scheme(), self.address))
                .body(Full::new(message.behind(prefix)))
                .map_err(|error| self.failed(Code::Internal, error))?;
            *request.headers_mut() = headers;
            request.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
            request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
            let response = match self.sender().await?.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // Not a byte of it was sent: the connection had ended and nobody had noticed.
                    Some(request) => self.sender().await?.send_request(request).await.map_err(|error| self.broken(&error))?,
                    None => return Err(self.broken(error.error())),
                },
            };
            self.answer(response, limit).await
        };
        let answer = timeout(deadline, call).await;
        answer.unwrap_or_else(|_| Err(self.failed(Code::DeadlineExceeded, format_args!("no answer within {deadline:?}"))))
    }

    async fn answer(&self, response: http::Response<hyper::body::Incoming>, limit: usize) -> Result<Bytes, CallError> {
        let (head, mut body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(self.failed(Code::Unavailable, format_args!("HTTP status {}", head.status)));
        }
        let mut data = BytesMut::new();
        let mut trailers = head.headers;
        while let Some(frame) = body.frame().await {
            match frame.map_err(|error| self.broken(&error))?.into_data() {
                Ok(chunk) if data.len() + chunk.len() > limit + PREFIX => {
                    return Err(self.failed(Code::Internal, format_args!("answer of more than {limit} bytes")));
                }
                Ok(chunk) => data.extend_from_slice(&chunk),
                Err(frame) => {
                    if let Ok(found) = frame.into_trailers() {
                        trailers = found;
                    }
                }
            }
        }
        let code = trailers.get(GRPC_STATUS).and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
        let Some(code) = code else { return Err(self.failed(Code::Internal, "answer without status")) };
        if code != 0 {
            let message = trailers.get(GRPC_MESSAGE).map_or_else(String::new, |message| percent_decode(message.as_bytes()));
            return Err(self.failed(Code::of_number(code), message));
        }
        let data = data.freeze();
        // We offer no compression, so the answer has none.
        match data.first_chunk::<PREFIX>() {
            Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == data.len() - PREFIX => Ok(data.slice(PREFIX..)),
            _ => Err(self.failed(Code::Internal, "answer without message")),
        }
    }

    fn broken(&self, error: &hyper::Error) -> CallError {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        self.failed(Code::Unavailable, format_args!("{error}{source}"))
    }

    /// The connection; made if there is none that works.
    async fn sender(&self) -> Result<SendRequest<Full<Rope>>, CallError> {
        let mut link = self.link.lock().await;
        match &link.sender {
            Some(sender) if !sender.is_closed() => Ok(sender.clone()),
            _ => self.connect(&mut link).await,
        }
    }

    async fn connect(&self, link: &mut Link) -> Result<SendRequest<Full<Rope>>, CallError> {
        link.sender = None;
        if let Some((_, until, message)) = &link.failure
            && Instant::now() < *until
        {
            return Err(self.failed(Code::Unavailable, message));
        }
        let connected = async {
            let stream = self.connector.connect(&self.address).await.map_err(|error| format!("connect: {error}"))?;
            let handshake = http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).handshake(TokioIo::new(stream));
            handshake.await.map_err(|error| format!("connect: {error}"))
        };
        let connected = timeout(self.settings.connect_timeout, connected).await;
        match connected.unwrap_or_else(|_| Err(format!("connect: not within {:?}", self.settings.connect_timeout))) {
            Ok((sender, connection)) => {
                let address = Arc::clone(&self.address);
                // Ends when the last sender is dropped, or the other side ends it.
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(ingester = &*address, %error, "connection to ingester failed");
                    }
                });
                *link = Link { sender: Some(sender.clone()), failure: None };
                Ok(sender)
            }
            Err(message) => {
                let before = link.failure.as_ref().map_or(0, |(times, ..)| *times);
                let pause = self.settings.backoff.saturating_mul(1 << before.min(16)).min(self.settings.max_backoff);
                link.failure = Some((before + 1, Instant::now() + pause, message.clone()));
                Err(self.failed(Code::Unavailable, message))
            }
        }
    }
}
