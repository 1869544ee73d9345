//! `tempopb.Pusher`: how the distributors of a cluster write to this ingester.
//!
//! ```text
//!  PushBytesRequest ─► each trace: validate, is it the one it says? ─► Ingester: trace limits, log ─► PushResponse
//!                                        │                                    │                            ▲
//!                                        └─ UNKNOWN_ERROR                     ├─ MAX_LIVE_TRACES, TRACE_TOO_LARGE per trace
//!                                                                             └─ UNAVAILABLE for all of them
//! ```
//!
//! What came in many segments becomes one record of the log, as a receiver would have written it: the spans are put under their resources again,
//! each resource once, since every segment brought its own copy. Nothing is decoded.
//!
//! A push may come twice: distributors retry, and clients do. Spans have identities, by which the dataflow drops what it has.
//!
//! Distributors are trusted no more than clients: a segment is validated as a whole request is. One that isn't what it says is refused alone; the
//! others of its request are not harmed.

use std::{
    fmt::{Debug, Display},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body;
use prometheus::Registry;
use storage::{
    id::Tenant,
    otlp::{self, Slice, SpanEntry},
    wal::{AppendError, Entry},
};

use crate::{
    body::{BodyError, BodyReader},
    budget::{Budget, Reservation},
    distributor::log_code,
    ingester::{self, Admission, Ingester},
    limits::Limits,
    metrics::PusherMetrics,
    push_message::{self, PushMessage, TIMES},
    scratch::{Scratch, Scratches},
    status::{Code, Status},
    tenant,
    traces::Verdict,
    unary::{self, Reply},
};

/// The path of the call.
pub const PUSH_BYTES_V2: &str = "/tempopb.Pusher/PushBytesV2";
/// The path of its predecessor, whose traces come without start and end.
pub const PUSH_BYTES: &str = "/tempopb.Pusher/PushBytes";

/// How pushes are taken.
#[derive(Clone, Debug)]
pub struct PusherSettings {
    /// Largest message, compressed and decompressed, bytes (`server.grpc_server_max_recv_msg_size`).
    pub max_message_bytes: usize,
    /// How long a message may take to arrive, waiting for the budget included.
    pub body_timeout: Duration,
}

impl Default for PusherSettings {
    fn default() -> Self {
        Self { max_message_bytes: 16 << 20, body_timeout: Duration::from_secs(30) }
    }
}

/// See the module documentation. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Pusher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: PusherSettings,
    ingester: Ingester,
    budget: Budget,
    metrics: PusherMetrics,
    scratches: Scratches,
    closed: AtomicBool,
}

/// A push that was refused as a whole.
#[derive(Debug)]
struct Refused {
    status: Status,
    reason: &'static str,
}

impl Refused {
    fn new(code: Code, message: impl Display, reason: &'static str) -> Self {
        Self { status: Status::new(code, message.to_string()), reason }
    }
}

/// A push that was looked at.
struct Looked {
    admission: Admission,
    /// What was accepted.
    entry: Entry,
    /// Per trace.
    verdicts: Vec<Verdict>,
}

impl Pusher {
    /// Takes pushes for `ingester`, holding bytes within `budget`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(settings: PusherSettings, ingester: Ingester, budget: Budget, registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = PusherMetrics::new(registry)?;
        Ok(Self(Arc::new(Inner { settings, ingester, budget, metrics, scratches: Scratches::default(), closed: AtomicBool::new(false) })))
    }

    /// From now on refuses every push, in a way that makes distributors go elsewhere: the process is about to end.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }

    /// Answers a call to [`PUSH_BYTES_V2`] or [`PUSH_BYTES`], on whichever server it came.
    pub async fn respond<B>(&self, request: Request<B>) -> Response<Reply>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        if !unary::is_grpc(request.headers()) {
            self.0.metrics.refused("unsupported_media_type");
            return Reply::unsupported();
        }
        match self.0.push(request).await {
            Ok(verdicts) => {
                verdicts.iter().for_each(|&verdict| self.0.metrics.verdict(verdict));
                Reply::success(&push_message::response(&verdicts))
            }
            Err(refused) => {
                self.0.metrics.refused(refused.reason);
                Reply::failure(&refused.status)
            }
        }
    }
}

impl Inner {
    async fn push<B>(&self, request: Request<B>) -> Result<Vec<Verdict>, Refused>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let (head, body) = request.into_parts();
        let before_trace = match head.uri.path() {
            PUSH_BYTES_V2 => TIMES,
            PUSH_BYTES => 0,
            path => return Err(Refused::new(Code::Unimplemented, format_args!("unknown method {path}"), "unknown_method")),
        };
        if self.closed.load(Ordering::Relaxed) {
            return Err(shutting_down());
        }
        let encoding = unary::encoding(&head.headers).map_err(|status| Refused { status, reason: "unsupported_encoding" })?;
        // Between processes the tenant is always named.
        let tenant = tenant::extract(&head.headers, true).map_err(|error| Refused::new(Code::InvalidArgument, error, "no_tenant"))?;
        let mut reservation = self.budget.open();
        let reader = BodyReader::new(body, self.settings.body_timeout);
        let message = unary::read_message(reader, encoding, self.settings.max_message_bytes, &mut reservation).await;
        let message = message.map_err(|error| Refused { status: error.status(None), reason: error.reason() })?;
        let Looked { admission, entry, verdicts } = self.look(&tenant, message, before_trace, &mut reservation).await?;
        self.ingester.append(&tenant, admission, entry).await.map_err(|error| match error {
            AppendError::Closed => shutting_down(),
            error => Refused::new(log_code(&error), &error, "wal_refused"),
        })?;
        Ok(verdicts)
    }

    /// Decides about the traces of a message, and makes a body of the accepted ones.
    async fn look(&self, tenant: &Tenant, message: Bytes, before_trace: usize, reservation: &mut Reservation) -> Result<Looked, Refused> {
        let invalid = |error| Refused::new(Code::InvalidArgument, error, "malformed");
        let read = PushMessage::read(&message).map_err(invalid)?;
        // The body is no larger than the message, and a trace costs a few bytes beside.
        let wanted = message.len() * 2 + read.len() * 8;
        reservation.reach(wanted).await.map_err(|error| {
            let error = BodyError::from(error);
            Refused { status: error.status(None), reason: error.reason() }
        })?;
        let (limits, now) = (self.ingester.limits(tenant), self.ingester.now());
        let decide = |scratch: &mut Scratch| self.decide(tenant, &limits, &message, read, before_trace, now, scratch);
        self.scratches.with(message.len(), decide).await
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are what the decision depends on")]
    fn decide(
        &self,
        tenant: &Tenant,
        limits: &Limits,
        message: &[u8],
        read: PushMessage<'_>,
        before_trace: usize,
        now: Duration,
        Scratch { walk, spans, batch }: &mut Scratch,
    ) -> Result<Looked, Refused> {
        const NO_SPAN: u32 = u32::MAX;
        spans.clear();
        let mut verdicts = Vec::with_capacity(read.len());
        let mut first_spans = Vec::with_capacity(read.len());
        for (trace, id) in read.entries() {
            // Both are slices of the message, so this is how far in it the trace lies.
            let begin = trace.as_ptr() as usize - message.as_ptr() as usize + before_trace;
            let valid = trace.get(before_trace..).is_some_and(|trace| otlp::validate(trace, 0, walk).is_ok());
            // A message in several fields, which no distributor sends, has no single slice.
            let valid = valid && !walk.needs_normalising && walk.spans.iter().all(|span| span.trace_id.0 == *id);
            verdicts.push(if valid && id.len() == 16 { Verdict::Accepted } else { Verdict::Unknown });
            first_spans.push(if valid && !walk.spans.is_empty() { spans.len() as u32 } else { NO_SPAN });
            if valid {
                spans.extend(walk.spans.iter().map(|span| moved(span, begin)));
            }
        }
        batch.group(spans);
        let admission = self.ingester.admit(tenant, limits, batch, now);
        let admission = admission.map_err(|error| Refused::new(Code::ResourceExhausted, error, "too_many_tenants"))?;
        for (verdict, &first) in verdicts.iter_mut().zip(&first_spans).filter(|(_, first)| **first != NO_SPAN) {
            *verdict = batch.verdict(first as usize);
        }
        let body = ingester::accepted(message, spans, batch);
        let entry = Entry { body, skip_metrics_generation: read.skip_metrics_generation };
        Ok(Looked { admission, entry, verdicts })
    }
}

/// Not the reference's code, Unknown, which OTLP clients don't retry.
fn shutting_down() -> Refused {
    Refused::new(Code::Unavailable, "Ingester is shutting down", "shutting_down")
}

/// The same span in the bytes that hold its body from `begin` on.
fn moved(span: &SpanEntry, begin: usize) -> SpanEntry {
    let moved = |slice: Slice| match slice {
        // None stays none.
        slice if slice == Slice::default() => slice,
        Slice { start, end } => Slice { start: start + begin as u32, end: end + begin as u32 },
    };
    SpanEntry { resource: moved(span.resource), scope: moved(span.scope), span: moved(span.span), ..*span }
}
