//! What an ingester does with spans that were checked: holds their traces to the tenant's limits and appends them to the log.
//!
//! ```text
//!  spans of a request ─► charge their traces ─► verdict per trace ─► the accepted, as one body ─► Log::append ─► acknowledged
//!                             ▲                                                                       │
//!                             └────────────── taken back when the log refuses ◄───────────────────────┘
//! ```
//!
//! In a single process the distributor hands its requests over directly; in a cluster they come through the [`Pusher`](crate::Pusher). A record
//! of the log is the same in both: one OTLP request of one tenant.
//!
//! Limits on traces are the ingester's and not the distributor's, because all spans of a trace meet here and nowhere before.

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::Registry;
use storage::{
    clock::Clock,
    id::Tenant,
    otlp::{self, SpanEntry},
    ring::{Operation, Rings},
    wal::{AppendError, Entry, Position, Wal},
};

use crate::{
    limits::{Limits, Overrides},
    metrics::{IngesterMetrics, IngesterTenantMetrics},
    regroup::{self, Parts},
    scratch::Scratch,
    tenants::{Active, Tenants, TooManyTenants},
    traces::{Batch, TableSettings, TraceLimits, TraceTable, Verdict},
};

/// Where accepted requests go: the write-ahead log, or what a test puts in its place.
#[async_trait]
pub trait Log: Debug + Send + Sync + 'static {
    /// Appends a validated request of `tenant`; returns once it is durable.
    ///
    /// # Errors
    /// Nothing was appended, and the client should be told so.
    async fn append(&self, tenant: &Tenant, entry: Entry) -> Result<Position, AppendError>;
}

#[async_trait]
impl Log for Wal {
    async fn append(&self, tenant: &Tenant, entry: Entry) -> Result<Position, AppendError> {
        Self::append(self, tenant, entry).await
    }
}

/// What an ingester does the same for all tenants.
#[derive(Clone, Debug)]
pub struct IngesterSettings {
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

impl Default for IngesterSettings {
    fn default() -> Self {
        Self {
            trace_idle_period: Duration::from_secs(5),
            trace_size_retention: Duration::from_secs(300),
            max_tracked_traces: 1 << 17,
            max_tenants: 10_000,
            tenant_idle_period: Duration::from_secs(3600),
        }
    }
}

/// See the module documentation. Cheap to clone; all clones are one ingester.
#[derive(Clone)]
pub struct Ingester(Arc<Inner>);

struct Inner {
    settings: IngesterSettings,
    log: Arc<dyn Log>,
    overrides: Arc<dyn Overrides>,
    /// The ingesters that share a tenant's traces with this one; none in a single process.
    rings: Option<Rings>,
    clock: Arc<dyn Clock>,
    metrics: IngesterMetrics,
    tenants: Tenants<State>,
}

impl Debug for Ingester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingester").field("settings", &self.0.settings).field("log", &self.0.log).finish_non_exhaustive()
    }
}

/// What is kept per tenant. The mutex is a std-like one because its sections are short and never await.
#[derive(Debug)]
struct State {
    traces: Mutex<TraceTable>,
    metrics: IngesterTenantMetrics,
}

/// A request whose traces are charged. Whoever holds one appends what was accepted.
#[derive(Debug)]
#[must_use]
pub(crate) struct Admission {
    state: Arc<Active<State>>,
    /// Whether any trace was refused; the verdicts are in the batch.
    pub(crate) refused: bool,
}

impl Ingester {
    /// An ingester that writes to `log`. `rings` are the ingesters of the cluster, this one among them, if there is a cluster: they share
    /// `max_global_traces_per_user`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: IngesterSettings,
        log: Arc<dyn Log>,
        overrides: Arc<dyn Overrides>,
        rings: Option<Rings>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let tenants = Tenants::new(settings.max_tenants, settings.tenant_idle_period);
        Ok(Self(Arc::new(Inner { settings, log, overrides, rings, clock, metrics: IngesterMetrics::new(registry)?, tenants })))
    }

    pub(crate) fn now(&self) -> Duration {
        self.0.clock.now()
    }

    pub(crate) fn limits(&self, tenant: &Tenant) -> Arc<Limits> {
        self.0.overrides.limits(tenant)
    }

    /// Charges the traces of a request and says, in the batch, which of them are refused. Doesn't wait.
    ///
    /// # Errors
    /// Nothing is charged: the tenant is one too many.
    pub(crate) fn admit(&self, tenant: &Tenant, limits: &Limits, batch: &mut Batch, now: Duration) -> Result<Admission, TooManyTenants> {
        let Inner { settings, metrics, tenants, .. } = &*self.0;
        let show = |state: &State, traces: &TraceTable| state.metrics.live_traces.set(i64::try_from(traces.live()).unwrap_or(i64::MAX));
        let needed = |state: &State| {
            let mut traces = state.traces.lock();
            let empty = traces.expire(now);
            show(state, &traces);
            !empty
        };
        tenants.sweep(now, needed, |tenant| metrics.forget(tenant));
        let table = TableSettings {
            idle: settings.trace_idle_period,
            retention: settings.trace_size_retention,
            max_entries: settings.max_tracked_traces,
        };
        let state =
            tenants.pushing(tenant, now, || State { traces: Mutex::new(TraceTable::new(table)), metrics: metrics.tenant(tenant) })?;
        let trace_limits = self.trace_limits(limits, now);
        let mut traces = state.traces.lock();
        let refused = traces.charge(batch, trace_limits, now);
        show(&state, &traces);
        drop(traces);
        Ok(Admission { state, refused })
    }

    /// Appends what was accepted of a request: a body that is valid OTLP, or empty. Returns once it is durable.
    ///
    /// # Errors
    /// Nothing was appended, and the traces are not charged for it.
    pub(crate) async fn append(&self, tenant: &Tenant, admission: Admission, entry: Entry) -> Result<(), AppendError> {
        let body = entry.body.clone();
        if body.is_empty() {
            return Ok(());
        }
        let state = admission.state;
        state.metrics.bytes_received.inc_by(body.len() as u64);
        let result = self.0.log.append(tenant, entry).await.map(drop);
        if result.is_err() {
            let Scratch { mut walk, mut batch, .. } = Scratch::default();
            if otlp::index(&body, &mut walk).is_ok() {
                batch.group(&walk.spans);
                state.traces.lock().discharge(&batch);
            }
        }
        result
    }

    /// What this ingester grants of the tenant's limits.
    fn trace_limits(&self, limits: &Limits, now: Duration) -> TraceLimits {
        let global = match (limits.max_global_traces_per_user, &self.0.rings) {
            (global @ 0, _) | (global, None) => global,
            (global, Some(rings)) => {
                let ring = rings.borrow();
                let healthy = ring.healthy(Operation::Write, now);
                let ingesters = smaller_nonzero(limits.tenant_shard_size as u64, healthy as u64).max(1);
                let copies = ring.settings().replication_factor as u64;
                // Not zero, which would be no limit.
                (global.saturating_mul(copies) / ingesters).max(1)
            }
        };
        TraceLimits { max_live: smaller_nonzero(limits.max_traces_per_user, global), max_bytes: limits.max_bytes_per_trace }
    }
}

/// The smaller of two limits of which 0 is none.
fn smaller_nonzero(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

/// A body of the spans of a request that were accepted; empty if none were.
pub(crate) fn accepted(body: &[u8], spans: &[SpanEntry], batch: &Batch) -> Bytes {
    let accepted = spans.iter().enumerate().filter(|&(place, _)| batch.verdict(place) == Verdict::Accepted);
    let mut parts: Vec<Parts> = accepted.map(|(_, span)| span.into()).collect();
    regroup::share(body, &mut parts);
    let mut out = Vec::with_capacity(regroup::encoded_len(&parts));
    regroup::encode(body, &parts, &mut out);
    out.into()
}
