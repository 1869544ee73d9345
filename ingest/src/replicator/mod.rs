//! Writes what the distributor has checked to the ingesters of a ring, and says when it is safe there.
//!
//! ```text
//!  request ─► Plan: by trace, by ingesters ─► room in the budget ─► calls, all at once ─► Quorum ─► the client
//!                      (ring)                                          │       │
//!                                                                      │       └─ answers that come late are still counted
//!                                                                      └─ Peer: one connection per ingester
//! ```
//!
//! A trace is safe when a majority of its ingesters has it in the log; which ingesters, and how many may fail, says the ring
//! ([`storage::ring::Ring::replicas`]). The client is answered as soon as that is decided for all traces.
//!
//! Bytes in memory are bounded twice, because they are held for two reasons. Until a request is decided its messages count against a budget, for
//! which further requests wait; it is not the receivers' budget, since those hold their bytes meanwhile and would wait for themselves. After
//! that, calls without an answer only hold what their ingester may owe ([`ReplicatorSettings::max_late_bytes`]), and are given up beyond
//! it: an ingester that hangs can neither fill the memory nor stop the others.
//!
//! Invariants: a request is acknowledged only when each of its traces is safe or was refused by the ingesters themselves; whether the
//! client still waits changes nothing about what is sent.

mod peer;
mod plan;
mod pool;
mod quorum;
mod rope;

use std::{
    collections::HashMap,
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::HeaderValue;
use parking_lot::Mutex;
use prometheus::Registry;
use storage::{
    id::Tenant,
    otlp::SpanEntry,
    ring::{Operation, Ring, RingError, Rings, token},
    tls::Connector,
};
use tokio::sync::{oneshot, watch};

pub use self::peer::CallError;
pub(crate) use self::plan::Plan;
use self::{
    peer::{Peer, PeerSettings},
    plan::Call,
    pool::{HealthChecks, Pool},
    quorum::{Outcome, Quorum},
};
use crate::{
    budget::{Budget, Exhausted},
    compression::Compression,
    limits::Limits,
    metrics::ReplicatorMetrics,
    status::Code,
    traces::{Batch, Refusals, Verdict},
};

/// How ingesters are written to.
#[derive(Clone, Copy, Debug)]
pub struct ReplicatorSettings {
    /// How long a call may take (`ingester_client.remote_timeout`).
    pub remote_timeout: Duration,
    /// Whether an ingester that is not active is replaced by the next one on the ring (`distributor.extend_writes`).
    pub extend_writes: bool,
    /// Compression of messages (`ingester_client.grpc_client_config.grpc_compression`).
    pub compression: Compression,
    /// How long connecting may take (`…grpc_client_config.connect_timeout`).
    pub connect_timeout: Duration,
    /// After a connection failed, how long it is not tried again (`…connect_backoff_base_delay`); doubled each time.
    pub connect_backoff: Duration,
    /// The longest such pause (`…connect_backoff_max_delay`).
    pub max_connect_backoff: Duration,
    /// How often ingesters are asked for their health (`ingester_client.pool_config.checkinterval`); none is never.
    pub health_check_period: Option<Duration>,
    /// How long they may take to answer that (`…pool_config.healthchecktimeout`).
    pub health_check_timeout: Duration,
    /// Bytes of calls to one ingester that may wait for an answer which nobody needs any more.
    pub max_late_bytes: usize,
}

impl Default for ReplicatorSettings {
    fn default() -> Self {
        Self {
            remote_timeout: Duration::from_secs(5),
            extend_writes: true,
            compression: Compression::Snappy,
            connect_timeout: Duration::from_secs(5),
            connect_backoff: Duration::from_secs(1),
            max_connect_backoff: Duration::from_secs(5),
            health_check_period: Some(Duration::from_secs(15)),
            health_check_timeout: Duration::from_secs(1),
            max_late_bytes: 16 << 20,
        }
    }
}

/// See the module documentation. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Replicator(Arc<Inner>);

struct Inner {
    settings: ReplicatorSettings,
    rings: Rings,
    budget: Budget,
    pool: Pool,
    shards: Mutex<Shards>,
}

/// The rings of tenants that use only some of the ingesters, as they follow from a ring of all.
#[derive(Debug, Default)]
struct Shards {
    of: Option<Arc<Ring>>,
    rings: HashMap<(Tenant, usize), Arc<Ring>>,
}

impl Debug for Replicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicator").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// Why a request is not safe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicationError {
    /// Nothing was sent: there are too few ingesters.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Nothing was sent: too much is on its way.
    #[error(transparent)]
    Busy(#[from] Exhausted),
    /// Too few ingesters took it. This was the answer that decided so.
    #[error(transparent)]
    Ingester(CallError),
}

impl Replicator {
    /// Writes to the ingesters of `rings`, holding messages within `budget`, which is to be no other's.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: ReplicatorSettings,
        rings: Rings,
        budget: Budget,
        connector: Connector,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let peer_settings = PeerSettings {
            connect_timeout: settings.connect_timeout,
            backoff: settings.connect_backoff,
            max_backoff: settings.max_connect_backoff,
            max_late_bytes: settings.max_late_bytes,
        };
        let pool = Pool::new(peer_settings, connector, ReplicatorMetrics::new(registry)?);
        Ok(Self(Arc::new(Inner { settings, rings, budget, pool, shards: Mutex::default() })))
    }

    /// Watches over the connections until `shutdown` completes.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let Inner { settings, rings, pool, .. } = &*self.0;
        let checks = HealthChecks { period: settings.health_check_period, timeout: settings.health_check_timeout };
        pool.maintain(rings.clone(), checks, shutdown).await;
    }

    /// Decides which ingesters a request goes to. Doesn't wait.
    ///
    /// # Errors
    /// There are too few of them.
    pub(crate) fn plan(
        &self,
        tenant: &Tenant,
        limits: &Limits,
        body: Bytes,
        spans: &[SpanEntry],
        batch: &Batch,
        now: Duration,
    ) -> Result<Plan, RingError> {
        let ring = self.ring(tenant, limits.tenant_shard_size);
        let operation = if self.0.settings.extend_writes { Operation::Write } else { Operation::WriteNoExtend };
        let replicas = |id: storage::id::TraceId| ring.replicas(token(tenant.as_str(), &id.0), operation, now);
        Plan::new(body, spans, batch, ring.settings().replication_factor.max(1), replicas)
    }

    /// The ring of a tenant.
    fn ring(&self, tenant: &Tenant, size: usize) -> Arc<Ring> {
        let ring = Arc::clone(&self.0.rings.borrow());
        if size == 0 {
            return ring;
        }
        let mut shards = self.0.shards.lock();
        if shards.of.as_ref().is_none_or(|of| !Arc::ptr_eq(of, &ring)) {
            *shards = Shards { of: Some(Arc::clone(&ring)), rings: HashMap::new() };
        }
        let shard = shards.rings.entry((tenant.clone(), size)).or_insert_with(|| Arc::new(ring.shard(tenant.as_str(), size)));
        Arc::clone(shard)
    }

    /// Sends what was planned. Returns what the ingesters refused of it once the rest is safe.
    ///
    /// # Errors
    /// Some of it is not safe, and should be sent again.
    pub(crate) async fn write(&self, tenant: &Tenant, mut plan: Plan) -> Result<Refusals, ReplicationError> {
        let mut reservation = self.0.budget.open();
        reservation.reach(plan.held_bytes()).await?;
        let internal =
            |message: String| ReplicationError::Ingester(CallError { ingester: Arc::from("all"), code: Code::Internal, message });
        let calls = plan.calls(self.0.settings.compression).map_err(|error| internal(format!("compress: {error}")))?;
        let tenant = HeaderValue::from_str(tenant.as_str()).map_err(|error| internal(format!("tenant: {error}")))?;
        let (decide, decision) = oneshot::channel();
        let this = self.clone();
        // A task of its own: answers are waited for when the client no longer does, be it that it was answered or that it left.
        tokio::spawn(async move {
            let (late, is_late) = watch::channel(false);
            let replication_factor = plan.replication_factor;
            let mut quorum = Quorum::new(plan.needs());
            let mut answers: FuturesUnordered<_> = calls.into_iter().map(|call| this.call(&tenant, call, is_late.clone())).collect();
            let mut open = Some((decide, reservation));
            while let Some((traces, answer)) = answers.next().await {
                let outcome = match &answer {
                    Ok(verdicts) => quorum.succeeded(traces, verdicts),
                    Err(_) => quorum.failed(traces),
                };
                let outcome = match (outcome, answer) {
                    (Outcome::Open, _) => continue,
                    (Outcome::Lost, Err(error)) => Err(ReplicationError::Ingester(error)),
                    (Outcome::Reached | Outcome::Lost, _) => Ok(quorum.refused(&plan.traces, replication_factor)),
                };
                if let Some((decide, reservation)) = open.take() {
                    // The client may be gone.
                    let _ = decide.send(outcome);
                    late.send_replace(true);
                    drop(reservation);
                }
            }
        });
        decision.await.unwrap_or_else(|_| Err(internal("gave no answer".to_owned())))
    }

    /// Makes a call, for as long as somebody needs its answer or its ingester may owe it.
    async fn call(
        &self,
        tenant: &HeaderValue,
        call: Call,
        mut is_late: watch::Receiver<bool>,
    ) -> (impl Iterator<Item = usize> + use<>, Result<Vec<Verdict>, CallError>) {
        let Inner { settings, pool, .. } = &*self.0;
        let places = call.places();
        let count = call.traces.iter().map(ExactSizeIterator::len).sum();
        let peer: Arc<Peer> = pool.peer(&call.instance.addr);
        let bytes = bytes::Buf::remaining(&call.message);
        pool.sends(bytes);
        let owed = async {
            // An error means that nobody will ever be late.
            if is_late.wait_for(|late| *late).await.is_ok()
                && let Some(_room) = peer.late_room(bytes)
            {
                std::future::pending::<()>().await;
            }
        };
        let answer = tokio::select! {
            answer = peer.push(tenant, settings.compression.into(), call.message, count, settings.remote_timeout) => answer,
            () = owed => Err(peer.given_up()),
        };
        (places, answer)
    }
}
