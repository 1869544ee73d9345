//! The distributor: decides what of a request is kept, and hands it to the log.
//!
//! ```text
//!  body ─► token bucket ─► validate ─► normalise? ─► truncate? ─► trace limits ─► cut refused spans? ─► Log::append ─► Pushed
//!             │               │                                       │                                    │
//!        RESOURCE_EXHAUSTED  INVALID_ARGUMENT                    partial_success                       UNAVAILABLE
//! ```
//!
//! The steps with a question mark rewrite the body and are taken by few requests; all others pass through as the bytes that arrived.
//! The order is that of the reference, with one freedom: tokens are taken by the size of the body before it is walked, so that a sender over
//! its rate costs next to nothing, and are given back when the body turns out to hold no spans or to be no request at all. What the
//! reference would not have charged is not charged.
//!
//! A walk fills a list of spans. Ordinary bodies use one list per thread; bodies above [`LARGE_BODY`] share a single one and take turns, so
//! that a burst of huge requests costs the memory of one.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::{self, Debug},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prometheus::Registry;
use storage::{
    clock::Clock,
    id::Tenant,
    otlp::{self, Invalid, Walk, WireError},
    wal::{AppendError, Position, Wal},
};

use crate::{
    limits::{Limits, Overrides, Rate, RateStrategy, TokenBucket},
    metrics::{Discarded, Metrics, ReceiverMetrics, TenantMetrics},
    status::{Code, Status},
    traces::{Batch, TableSettings, TraceTable, Verdict},
    wire,
};

/// Bodies above this many bytes are walked one after the other.
const LARGE_BODY: usize = 1 << 20;
/// Spans for which a thread keeps memory between requests.
const KEPT_SPANS: usize = 1 << 15;
/// How often tenants are looked through for what can be forgotten.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Where accepted requests go: the write-ahead log, or what a test puts in its place.
#[async_trait]
pub trait Log: Debug + Send + Sync + 'static {
    /// Appends a validated request of `tenant`; returns once it is durable.
    ///
    /// # Errors
    /// Nothing was appended, and the client should be told so.
    async fn append(&self, tenant: &Tenant, body: Bytes) -> Result<Position, AppendError>;
}

#[async_trait]
impl Log for Wal {
    async fn append(&self, tenant: &Tenant, body: Bytes) -> Result<Position, AppendError> {
        Self::append(self, tenant, body).await
    }
}

/// What the distributor does the same for all tenants.
#[derive(Clone, Debug)]
pub struct DistributorSettings {
    /// Longest attribute key and string value, bytes, for tenants without a value of their own; 0 cuts nothing
    /// (`distributor.max_attribute_bytes`).
    pub max_attribute_bytes: usize,
    /// When refused clients are asked to come back; zero says nothing (`distributor.retry_after_on_resource_exhausted`). Clients of OTLP
    /// do not retry a RESOURCE_EXHAUSTED without it.
    pub retry_after_on_resource_exhausted: Duration,
    /// How a tenant's rate is divided.
    pub rate_strategy: RateStrategy,
    /// How long a trace counts as live after its last push (`ingester.trace_idle_period`).
    pub trace_idle_period: Duration,
    /// How long the size of a trace is remembered after its last push, at least; up to twice as long.
    pub trace_size_retention: Duration,
    /// Traces remembered per tenant (about 70 bytes each). Beyond it the oldest are forgotten early.
    pub max_tracked_traces: usize,
    /// Tenants known at a time. Beyond it, pushes of further tenants are refused.
    pub max_tenants: usize,
    /// A tenant without a push for this long is forgotten, with its metrics.
    pub tenant_idle_period: Duration,
}

impl Default for DistributorSettings {
    fn default() -> Self {
        Self {
            max_attribute_bytes: 2048,
            retry_after_on_resource_exhausted: Duration::from_secs(5),
            rate_strategy: RateStrategy::Local,
            trace_idle_period: Duration::from_secs(5),
            trace_size_retention: Duration::from_secs(300),
            max_tracked_traces: 1 << 17,
            max_tenants: 10_000,
            tenant_idle_period: Duration::from_secs(3600),
        }
    }
}

/// A request that was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Spans that are in the log now.
    pub accepted_spans: u64,
    /// Spans that were cut out because of a limit on traces; the client learns of them by `partial_success`.
    pub rejected: Option<Rejected>,
}

/// Spans of an accepted request that were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// How many.
    pub spans: u64,
    /// Why, for whoever operates the client.
    pub message: String,
}

impl Pushed {
    /// All spans of the request.
    pub fn spans(&self) -> u64 {
        self.accepted_spans + self.rejected.as_ref().map_or(0, |rejected| rejected.spans)
    }
}

/// A request that was refused as a whole: nothing of it is stored.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{refusal}")]
pub struct PushError {
    /// Spans that it held, as far as could be told.
    pub spans: u64,
    /// Why.
    pub refusal: Refusal,
}

/// Why a request was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The tenant's token bucket does not hold as many bytes. Retry later, or send smaller requests.
    #[error("{message}")]
    RateLimited {
        /// Tempo's words.
        message: String,
        /// When to come back, if clients are to be told.
        retry_after: Option<Duration>,
    },
    /// As many tenants as may be are active. Retry later.
    #[error("too many active tenants (max {max})")]
    TooManyTenants {
        /// The limit.
        max: usize,
    },
    /// Not an OTLP message. Don't retry.
    #[error("error unmarshalling request: {0}")]
    Malformed(WireError),
    /// A trace or span id that is none. Don't retry.
    #[error("{0}")]
    InvalidId(Invalid),
    /// The log refused. Retry later.
    #[error("{0}")]
    Log(AppendError),
}

impl PushError {
    /// The label under which it is counted.
    pub(crate) fn reason(&self) -> &'static str {
        match &self.refusal {
            Refusal::RateLimited { .. } => "rate_limited",
            Refusal::TooManyTenants { .. } => "too_many_tenants",
            Refusal::Malformed(_) => "malformed",
            Refusal::InvalidId(_) => "invalid_id",
            Refusal::Log(AppendError::Full(_)) => "wal_full",
            Refusal::Log(AppendError::TooLarge { .. }) => "record_too_large",
            Refusal::Log(AppendError::Io(_) | AppendError::Closed) => "wal_unavailable",
        }
    }

    /// How it is answered.
    pub(crate) fn status(&self) -> Status {
        let (code, retry_after) = match &self.refusal {
            Refusal::RateLimited { retry_after, .. } => (Code::ResourceExhausted, *retry_after),
            Refusal::TooManyTenants { .. } => (Code::ResourceExhausted, None),
            Refusal::Malformed(_) | Refusal::InvalidId(_) | Refusal::Log(AppendError::TooLarge { .. }) => (Code::InvalidArgument, None),
            Refusal::Log(AppendError::Full(_) | AppendError::Io(_) | AppendError::Closed) => (Code::Unavailable, None),
        };
        Status { code, message: self.to_string(), retry_after }
    }
}

/// See the module documentation. Cheap to clone; all clones are one distributor.
#[derive(Clone)]
pub struct Distributor(Arc<Inner>);

struct Inner {
    settings: DistributorSettings,
    log: Arc<dyn Log>,
    overrides: Arc<dyn Overrides>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    tenants: RwLock<HashMap<Tenant, Arc<TenantState>>>,
    /// Unix seconds of the next look through the tenants.
    next_sweep: AtomicU64,
    /// A tokio mutex because requests wait for it; not held across an await.
    large: tokio::sync::Mutex<Scratch>,
}

impl Debug for Distributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distributor").field("settings", &self.0.settings).field("log", &self.0.log).finish_non_exhaustive()
    }
}

/// What is kept per tenant. The mutexes are std-like because their sections are short and never await.
#[derive(Debug)]
struct TenantState {
    bucket: Mutex<TokenBucket>,
    traces: Mutex<TraceTable>,
    /// Unix seconds.
    last_push: AtomicU64,
    metrics: TenantMetrics,
}

/// Memory that is reused from request to request.
#[derive(Debug, Default)]
struct Scratch {
    walk: Walk,
    batch: Batch,
}

impl Scratch {
    fn shrink(&mut self) {
        if self.walk.spans.capacity() > KEPT_SPANS {
            self.walk = Walk::default();
        }
        self.batch.shrink(KEPT_SPANS);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Distributor {
    /// A distributor that writes to `log`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: DistributorSettings,
        log: Arc<dyn Log>,
        overrides: Arc<dyn Overrides>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Inner {
            settings,
            log,
            overrides,
            clock,
            metrics: Metrics::new(registry)?,
            tenants: RwLock::default(),
            next_sweep: AtomicU64::new(0),
            large: tokio::sync::Mutex::default(),
        })))
    }

    /// Takes an encoded `ExportTraceServiceRequest`. Returns once what was accepted is durable.
    ///
    /// # Errors
    /// Nothing of the request is stored; see [`Refusal`] for what to do.
    pub async fn push(&self, tenant: &Tenant, body: Bytes) -> Result<Pushed, PushError> {
        let begun = Instant::now();
        let result = self.0.push(tenant, body).await;
        self.0.metrics.push_duration.observe(begun.elapsed().as_secs_f64());
        result
    }

    /// When a client of `tenant` is asked to come back after a refusal for lack of resources; `None` says nothing.
    pub(crate) fn retry_after(&self, tenant: &Tenant) -> Option<Duration> {
        self.0.retry_after(&self.0.overrides.limits(tenant))
    }

    pub(crate) fn receiver_metrics(&self, receiver: &'static str, transport: &'static str) -> ReceiverMetrics {
        ReceiverMetrics::new(&self.0.metrics, receiver, transport)
    }
}

/// What is left of a request after all checks.
struct Checked {
    body: Bytes,
    pushed: Pushed,
}

impl Inner {
    async fn push(&self, tenant: &Tenant, body: Bytes) -> Result<Pushed, PushError> {
        if body.is_empty() {
            return Ok(Pushed::default());
        }
        let now = self.clock.now();
        let limits = self.overrides.limits(tenant);
        let state = match self.tenant(tenant, now) {
            Ok(state) => state,
            Err(refusal) => {
                let spans = wire::count_spans(&body);
                // One series for all of them: their number is what has no bound.
                self.metrics.discard(Discarded::TooManyTenants, "", spans);
                return Err(PushError { spans, refusal });
            }
        };
        let checked = if body.len() > LARGE_BODY {
            let mut scratch = self.large.lock().await;
            self.check(tenant, &state, &limits, body, now, &mut scratch)
        } else {
            SCRATCH.with_borrow_mut(|scratch| self.check(tenant, &state, &limits, body, now, scratch))
        };
        let Checked { body, pushed } = checked?;
        if pushed.accepted_spans == 0 {
            return Ok(pushed);
        }
        match self.log.append(tenant, body.clone()).await {
            Ok(_) => Ok(pushed),
            Err(error) => {
                Self::take_back(&state, &body);
                let spans = pushed.spans();
                self.metrics.discard(Discarded::WalRefused, tenant.as_str(), pushed.accepted_spans);
                Err(PushError { spans, refusal: Refusal::Log(error) })
            }
        }
    }

    /// All that is decided about a request. Doesn't wait.
    fn check(
        &self,
        tenant: &Tenant,
        state: &TenantState,
        limits: &Limits,
        body: Bytes,
        now: Duration,
        scratch: &mut Scratch,
    ) -> Result<Checked, PushError> {
        let result = self.check_with(tenant, state, limits, body, now, scratch);
        scratch.shrink();
        result
    }

    fn check_with(
        &self,
        tenant: &Tenant,
        state: &TenantState,
        limits: &Limits,
        mut body: Bytes,
        now: Duration,
        Scratch { walk, batch }: &mut Scratch,
    ) -> Result<Checked, PushError> {
        let size = body.len() as u64;
        let rate = Rate::new(limits, self.settings.rate_strategy);
        if !state.bucket.lock().take(size, rate, now) {
            let spans = wire::count_spans(&body);
            state.metrics.ingress_bytes.inc_by(size);
            if spans == 0 {
                return Ok(Checked { body, pushed: Pushed::default() });
            }
            self.metrics.discard(Discarded::RateLimited, tenant.as_str(), spans);
            let refusal = Refusal::RateLimited { message: rate.refusal(size, tenant), retry_after: self.retry_after(limits) };
            return Err(PushError { spans, refusal });
        }

        let max_attribute_bytes = match (limits.max_attribute_bytes, self.settings.max_attribute_bytes) {
            (0, 0) => usize::MAX,
            (0, all_tenants) => all_tenants,
            (own, _) => own,
        };
        let valid = otlp::validate(&body, max_attribute_bytes, walk);
        let spans = match &valid {
            Ok(()) => walk.spans.len() as u64,
            Err(Invalid::Wire(error)) => {
                state.bucket.lock().refund(size);
                return Err(PushError { spans: wire::count_spans(&body), refusal: Refusal::Malformed(error.clone()) });
            }
            Err(_) => wire::count_spans(&body),
        };
        state.metrics.ingress_bytes.inc_by(size);
        if spans == 0 {
            state.bucket.lock().refund(size);
            return Ok(Checked { body, pushed: Pushed::default() });
        }
        state.metrics.bytes_received.inc_by(size);
        state.metrics.spans_received.inc_by(spans);
        if let Err(invalid) = valid {
            let reason = if matches!(invalid, Invalid::SpanId { .. }) { Discarded::InvalidSpanId } else { Discarded::InvalidTraceId };
            self.metrics.discard(reason, tenant.as_str(), spans);
            return Err(PushError { spans, refusal: Refusal::InvalidId(invalid) });
        }

        if walk.needs_normalising || walk.oversized_attributes {
            if walk.needs_normalising {
                body = otlp::normalise(&body).into();
            }
            if walk.oversized_attributes {
                let (cut, attributes) = otlp::truncate_attributes(&body, max_attribute_bytes);
                body = cut.into();
                state.metrics.attributes_truncated.inc_by(attributes);
            }
            otlp::index(&body, walk).map_err(|error| PushError { spans, refusal: Refusal::Malformed(error) })?;
        }

        batch.group(&walk.spans);
        let (refused, live) = {
            let mut traces = state.traces.lock();
            (traces.charge(batch, limits, now), traces.live())
        };
        state.metrics.live_traces.set(i64::try_from(live).unwrap_or(i64::MAX));
        self.observe(state, batch, now);
        let rejected = refused.then(|| self.reject(tenant, limits, batch));
        if let Some(rejected) = &rejected {
            body = if rejected.spans == spans {
                Bytes::new()
            } else {
                otlp::retain_spans(&body, |span| batch.verdict(span.trace_id) == Verdict::Accepted).into()
            };
        }
        let accepted_spans = spans - rejected.as_ref().map_or(0, |rejected| rejected.spans);
        Ok(Checked { body, pushed: Pushed { accepted_spans, rejected } })
    }

    fn observe(&self, state: &TenantState, batch: &Batch, now: Duration) {
        self.metrics.traces_per_batch.observe(batch.shares.len() as f64);
        let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
        for share in &batch.shares {
            let ahead = (i128::from(share.end_ns) - now) as f64 / 1e9;
            if ahead > 0.0 {
                state.metrics.distance_in_future.observe(ahead);
            } else {
                state.metrics.distance_in_past.observe(-ahead);
            }
        }
    }

    /// Counts and explains the spans that the trace limits refused.
    fn reject(&self, tenant: &Tenant, limits: &Limits, batch: &Batch) -> Rejected {
        let sum = |verdict| batch.shares.iter().filter(|s| s.verdict == verdict).fold((0, 0), |sum, s| (sum.0 + 1, sum.1 + s.spans));
        let (new_traces, spans_of_new) = sum(Verdict::LiveTracesExceeded);
        let (large_traces, spans_of_large) = sum(Verdict::TraceTooLarge);
        self.metrics.discard(Discarded::LiveTracesExceeded, tenant.as_str(), spans_of_new);
        self.metrics.discard(Discarded::TraceTooLarge, tenant.as_str(), spans_of_large);
        let mut reasons = Vec::new();
        if new_traces > 0 {
            reasons.push(format!(
                "{spans_of_new} spans of {new_traces} new traces refused: max live traces exceeded for user {tenant} \
                 (max_traces_per_user {})",
                limits.max_traces_per_user
            ));
        }
        if let Some(example) = batch.shares.iter().find(|share| share.verdict == Verdict::TraceTooLarge) {
            reasons.push(format!(
                "{spans_of_large} spans of {large_traces} traces refused: trace too large for user {tenant} (max_bytes_per_trace {}, trace {})",
                limits.max_bytes_per_trace, example.trace_id
            ));
        }
        Rejected { spans: spans_of_new + spans_of_large, message: reasons.join("; ") }
    }

    /// Takes back what a request that the log refused has added to its traces.
    fn take_back(state: &TenantState, body: &[u8]) {
        let Scratch { mut walk, mut batch } = Scratch::default();
        if otlp::index(body, &mut walk).is_ok() {
            batch.group(&walk.spans);
            state.traces.lock().discharge(&batch);
        }
    }

    fn retry_after(&self, limits: &Limits) -> Option<Duration> {
        let retry_after = self.settings.retry_after_on_resource_exhausted;
        (limits.retry_info_enabled && !retry_after.is_zero()).then_some(retry_after)
    }

    fn tenant(&self, tenant: &Tenant, now: Duration) -> Result<Arc<TenantState>, Refusal> {
        let due = self.next_sweep.load(Ordering::Relaxed);
        if now.as_secs() >= due {
            let next = now.as_secs() + SWEEP_PERIOD.as_secs();
            if self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.sweep(now);
            }
        }
        let known = self.tenants.read().get(tenant).map(Arc::clone);
        if let Some(state) = known {
            state.last_push.store(now.as_secs(), Ordering::Relaxed);
            return Ok(state);
        }
        let mut tenants = self.tenants.write();
        if tenants.len() >= self.settings.max_tenants && !tenants.contains_key(tenant) {
            return Err(Refusal::TooManyTenants { max: self.settings.max_tenants });
        }
        let table = TableSettings {
            idle: self.settings.trace_idle_period,
            retention: self.settings.trace_size_retention,
            max_entries: self.settings.max_tracked_traces,
        };
        let state = tenants.entry(tenant.clone()).or_insert_with(|| {
            Arc::new(TenantState {
                bucket: Mutex::default(),
                traces: Mutex::new(TraceTable::new(table)),
                last_push: AtomicU64::new(now.as_secs()),
                metrics: self.metrics.tenant(tenant),
            })
        });
        Ok(Arc::clone(state))
    }

    /// Lets tenants forget traces, and forgets tenants.
    fn sweep(&self, now: Duration) {
        let idle = self.settings.tenant_idle_period.as_secs();
        self.tenants.write().retain(|tenant, state| {
            let mut traces = state.traces.lock();
            let empty = traces.expire(now);
            state.metrics.live_traces.set(i64::try_from(traces.live()).unwrap_or(i64::MAX));
            let kept = !empty || now.as_secs().saturating_sub(state.last_push.load(Ordering::Relaxed)) < idle;
            if !kept {
                self.metrics.forget(tenant);
            }
            kept
        });
    }
}
