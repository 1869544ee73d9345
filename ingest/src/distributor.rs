//! The distributor: decides what of a request is kept, and hands it on.
//!
//! ```text
//!                                                                            ┌─► Ingester: trace limits ─► cut refused spans? ─► Log::append
//!  body ─► token bucket ─► validate ─► normalise? ─► truncate? ─► Sink ──────┤                                      (a single process)
//!             │               │                                              └─► Replicator: by trace ─► ingesters of the ring ─► quorum
//!        RESOURCE_EXHAUSTED  INVALID_ARGUMENT                                         │
//!                                                                  partial_success, UNAVAILABLE
//! ```
//!
//! The steps with a question mark rewrite the body and are taken by few requests; all others pass through as the bytes that arrived.
//! The order is that of the reference, with one freedom: tokens are taken by the size of the body before it is walked, so that a sender over
//! its rate costs next to nothing, and are given back when the body turns out to hold no spans or to be no request at all. What the
//! reference would not have charged is not charged.

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::Registry;
use storage::{
    clock::Clock,
    id::Tenant,
    otlp::{self, Invalid, WireError},
    ring::RingError,
    wal::{AppendError, Entry},
};

use crate::{
    budget::Exhausted,
    ingester::{self, Admission, Ingester},
    limits::{Limits, Overrides, Rate, RateStrategy, TokenBucket},
    metrics::{Discarded, Metrics, ReceiverMetrics, TenantMetrics},
    replicator::{CallError, Plan, ReplicationError, Replicator},
    scratch::{Scratch, Scratches},
    status::{Code, Status},
    tenants::{Active, Tenants, TooManyTenants},
    traces::{Batch, Refusals, Refused, Verdict},
    usage::UsageTracker,
    wire,
};

/// Where the distributor hands over what it has checked.
#[derive(Clone, Debug)]
pub enum Sink {
    /// To the ingester in the same process.
    Local(Ingester),
    /// To the ingesters of a ring.
    Ring(Replicator),
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
            max_tenants: 10_000,
            tenant_idle_period: Duration::from_secs(3600),
        }
    }
}

/// A request that was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Spans that are durable now: in the log, or in those of as many ingesters as make a quorum.
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

/// A request that was refused as a whole. Nothing of it is stored, unless some ingesters of a ring took it and too many did not; then it may
/// be sent again, because ingesters recognise spans that they have.
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
    #[error(transparent)]
    TooManyTenants(#[from] TooManyTenants),
    /// Not an OTLP message. Don't retry.
    #[error("error unmarshalling request: {0}")]
    Malformed(WireError),
    /// A trace or span id that is none. Don't retry.
    #[error("{0}")]
    InvalidId(Invalid),
    /// The log refused. Retry later.
    #[error("{0}")]
    Log(AppendError),
    /// Too few ingesters are there. Retry later.
    #[error("{0}")]
    Ring(RingError),
    /// Too much waits for ingesters. Retry later.
    #[error("{error}")]
    Busy {
        /// What there is no room for.
        error: Exhausted,
        /// When to come back, if clients are to be told.
        retry_after: Option<Duration>,
    },
    /// Too few ingesters took it; this is what the last of them said.
    #[error("{error}")]
    Ingester {
        /// Its answer.
        error: CallError,
        /// When to come back, if clients are to be told.
        retry_after: Option<Duration>,
    },
}

impl Refusal {
    fn new(error: ReplicationError, retry_after: Option<Duration>) -> Self {
        match error {
            ReplicationError::Ring(error) => Self::Ring(error),
            ReplicationError::Busy(error) => Self::Busy { error, retry_after },
            ReplicationError::Ingester(error) => Self::Ingester { error, retry_after },
        }
    }
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
            Refusal::Ring(_) => "no_quorum",
            Refusal::Busy { .. } => "too_many_bytes_in_flight",
            Refusal::Ingester { .. } => "ingesters_failed",
        }
    }

    /// How it is answered.
    pub(crate) fn status(&self) -> Status {
        let (code, retry_after) = match &self.refusal {
            Refusal::RateLimited { retry_after, .. } | Refusal::Busy { retry_after, .. } => (Code::ResourceExhausted, *retry_after),
            Refusal::TooManyTenants { .. } => (Code::ResourceExhausted, None),
            Refusal::Malformed(_) | Refusal::InvalidId(_) => (Code::InvalidArgument, None),
            Refusal::Log(error) => (log_code(error), None),
            Refusal::Ring(_) => (Code::Unavailable, None),
            Refusal::Ingester { error, retry_after } => (error.code, retry_after.filter(|_| error.code == Code::ResourceExhausted)),
        };
        Status { code, message: self.to_string(), retry_after }
    }
}

/// How a refusal of the log is answered.
pub(crate) fn log_code(error: &AppendError) -> Code {
    match error {
        AppendError::TooLarge { .. } => Code::InvalidArgument,
        AppendError::Full(_) | AppendError::Io(_) | AppendError::Closed => Code::Unavailable,
    }
}

/// See the module documentation. Cheap to clone; all clones are one distributor.
#[derive(Clone)]
pub struct Distributor(Arc<Inner>);

struct Inner {
    settings: DistributorSettings,
    sink: Sink,
    overrides: Arc<dyn Overrides>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    tenants: Tenants<State>,
    scratches: Scratches,
    usage: Option<UsageTracker>,
}

impl Debug for Distributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distributor").field("settings", &self.0.settings).field("sink", &self.0.sink).finish_non_exhaustive()
    }
}

/// What is kept per tenant. The mutex is a std-like one because its sections are short and never await.
#[derive(Debug)]
struct State {
    bucket: Mutex<TokenBucket>,
    metrics: TenantMetrics,
}

impl Distributor {
    /// A distributor that hands over to `sink`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: DistributorSettings,
        sink: Sink,
        overrides: Arc<dyn Overrides>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let tenants = Tenants::new(settings.max_tenants, settings.tenant_idle_period);
        let (metrics, scratches) = (Metrics::new(registry)?, Scratches::default());
        Ok(Self(Arc::new(Inner { settings, sink, overrides, clock, metrics, tenants, scratches, usage: None })))
    }

    /// The distributor with a tracker of whose bytes tenants send. To be called before anything is pushed; afterwards it changes nothing.
    #[must_use]
    pub fn with_usage(mut self, usage: UsageTracker) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.usage = Some(usage);
        }
        self
    }

    /// Takes an encoded `ExportTraceServiceRequest`. Returns once what was accepted is durable.
    ///
    /// # Errors
    /// Nothing of the request is stored; see [`Refusal`] for what to do.
    pub async fn push(&self, tenant: &Tenant, request: impl Into<Entry>) -> Result<Pushed, PushError> {
        let begun = Instant::now();
        let result = self.0.push(tenant, request.into()).await;
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

/// What is left to do for a request after all checks.
enum Checked {
    /// Nothing: it holds no spans.
    Empty,
    /// To be appended here, but for what was refused.
    Append { ingester: Ingester, admission: Admission, body: Bytes, spans: u64, refused: Refusals },
    /// To be sent to others.
    Send { replicator: Replicator, plan: Plan, spans: u64 },
}

impl Inner {
    async fn push(&self, tenant: &Tenant, Entry { body, skip_metrics_generation }: Entry) -> Result<Pushed, PushError> {
        if body.is_empty() {
            return Ok(Pushed::default());
        }
        let now = self.clock.now();
        let limits = self.overrides.limits(tenant);
        self.tenants.sweep(now, |_| false, |tenant| self.metrics.forget(tenant));
        let fresh = || State { bucket: Mutex::default(), metrics: self.metrics.tenant(tenant) };
        let state = self.tenants.pushing(tenant, now, fresh).map_err(|error| self.one_too_many(&body, error))?;
        let size = body.len();
        let checked = self.scratches.with(size, |scratch| self.check(tenant, &state, &limits, body, now, scratch)).await?;
        match checked {
            Checked::Empty => Ok(Pushed::default()),
            Checked::Append { ingester, admission, body, spans, refused } => {
                let rejected = self.reject(tenant, &limits, &refused);
                let accepted_spans = spans - refused.spans();
                ingester.append(tenant, admission, Entry { body, skip_metrics_generation }).await.map_err(|error| {
                    self.metrics.discard(Discarded::WalRefused, tenant.as_str(), accepted_spans);
                    PushError { spans, refusal: Refusal::Log(error) }
                })?;
                Ok(Pushed { accepted_spans, rejected })
            }
            Checked::Send { replicator, mut plan, spans } => {
                plan.skip_metrics_generation = skip_metrics_generation;
                let refused = replicator.write(tenant, plan).await.map_err(|error| self.not_replicated(tenant, &limits, spans, error))?;
                let rejected = self.reject(tenant, &limits, &refused);
                Ok(Pushed { accepted_spans: spans - refused.spans(), rejected })
            }
        }
    }

    fn one_too_many(&self, body: &[u8], error: TooManyTenants) -> PushError {
        let spans = wire::count_spans(body);
        // One series for all of them: their number is what has no bound.
        self.metrics.discard(Discarded::TooManyTenants, "", spans);
        PushError { spans, refusal: error.into() }
    }

    fn not_replicated(&self, tenant: &Tenant, limits: &Limits, spans: u64, error: ReplicationError) -> PushError {
        self.metrics.discard(Discarded::NotReplicated, tenant.as_str(), spans);
        PushError { spans, refusal: Refusal::new(error, self.retry_after(limits)) }
    }

    /// All that is decided about a request before it is handed over. Doesn't wait.
    fn check(
        &self,
        tenant: &Tenant,
        state: &Active<State>,
        limits: &Limits,
        mut body: Bytes,
        now: Duration,
        Scratch { walk, batch, .. }: &mut Scratch,
    ) -> Result<Checked, PushError> {
        let size = body.len() as u64;
        let rate = Rate::new(limits, &self.settings.rate_strategy);
        if !state.bucket.lock().take(size, rate, now) {
            let spans = wire::count_spans(&body);
            state.metrics.ingress_bytes.inc_by(size);
            if spans == 0 {
                return Ok(Checked::Empty);
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
            return Ok(Checked::Empty);
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

        if let (Some(usage), Some(by)) = (&self.usage, &limits.cost_attribution) {
            usage.observe(tenant, by, &body, now);
        }
        batch.group(&walk.spans);
        self.observe(state, batch, now);
        match &self.sink {
            Sink::Local(ingester) => {
                let admission = ingester.admit(tenant, limits, batch, now).map_err(|error| self.one_too_many(&body, error))?;
                let mut refused = Refusals::default();
                if admission.refused {
                    batch.shares.iter().for_each(|share| refused.add(share.verdict, share.trace_id, share.spans));
                    body = ingester::accepted(&body, &walk.spans, batch);
                }
                Ok(Checked::Append { ingester: ingester.clone(), admission, body, spans, refused })
            }
            Sink::Ring(replicator) => {
                let plan = replicator.plan(tenant, limits, body, &walk.spans, batch, now);
                let plan = plan.map_err(|error| self.not_replicated(tenant, limits, spans, error.into()))?;
                Ok(Checked::Send { replicator: replicator.clone(), plan, spans })
            }
        }
    }

    fn observe(&self, state: &State, batch: &Batch, now: Duration) {
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

    /// Counts and explains the spans that ingesters refused.
    fn reject(&self, tenant: &Tenant, limits: &Limits, refused: &Refusals) -> Option<Rejected> {
        let mut reasons = Vec::new();
        for (verdict, Refused { traces, spans, example }) in refused.iter() {
            let (discarded, reason) = match verdict {
                Verdict::Accepted => continue,
                Verdict::LiveTracesExceeded => (
                    Discarded::LiveTracesExceeded,
                    format!(
                        "{spans} spans of {traces} new traces refused: max live traces exceeded for user {tenant} (max_traces_per_user {})",
                        limits.max_traces_per_user
                    ),
                ),
                Verdict::TraceTooLarge => (
                    Discarded::TraceTooLarge,
                    format!(
                        "{spans} spans of {traces} traces refused: trace too large for user {tenant} (max_bytes_per_trace {}, trace {example})",
                        limits.max_bytes_per_trace
                    ),
                ),
                Verdict::Unknown => (
                    Discarded::UnknownError,
                    format!("{spans} spans of {traces} traces refused by ingesters for user {tenant} (trace {example})"),
                ),
            };
            self.metrics.discard(discarded, tenant.as_str(), spans);
            reasons.push(reason);
        }
        (!reasons.is_empty()).then(|| Rejected { spans: refused.spans(), message: reasons.join("; ") })
    }

    fn retry_after(&self, limits: &Limits) -> Option<Duration> {
        let retry_after = self.settings.retry_after_on_resource_exhausted;
        (limits.retry_info_enabled && !retry_after.is_zero()).then_some(retry_after)
    }
}
