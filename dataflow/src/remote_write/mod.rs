//! Remote write: the generator's series, sent to Prometheus, Mimir and the like.
//!
//! ```text
//!  Snapshots ──every collection interval──► Collection ──► Queue ──► Sender ──► endpoint 1
//!  (committed)   a task for each tenant       @ t      └──► Queue ──► Sender ──► endpoint 2
//!                                                       bounded, drops the oldest
//! ```
//!
//! A snapshot is the state of a committed checkpoint, so a recovery begins at it or later: what is sent never goes backwards, not even through
//! `kill -9`. A [`view`] makes Prometheus' series of it, [`batches`] compares a collection with the one that an endpoint was sent last (which
//! series are new, which have ended), a [`sender`] sends and tries again. Endpoints know nothing of each other.
//!
//! The first collection of a process is compared with the snapshot that was recovered: its series were sent by an earlier process, or may have
//! been, and so begin without a zero. So do those that a process takes over from another one of its dataflow.

mod batches;
mod client;
mod exposition;
mod metrics;
mod protocol;
mod queue;
mod relabel;
mod sender;
mod settings;
mod view;

#[cfg(test)]
mod tests;

pub use client::EndpointError;
pub use exposition::{Exposition, Format};
pub use protocol::Protocol;
pub use relabel::{Action, Rule};
pub use settings::{Auth, Credentials, Endpoint, Overrides, Pem, Proxy, Queue, Settings, TenantSettings, Tls, TlsVersion};

use std::{collections::HashMap, sync::Arc, time::Duration};

use storage::{clock::Clock, id::Tenant};
use tokio::{sync::watch, task::JoinSet};

use crate::generator::{Accumulated, Snapshot, Snapshots};
use metrics::Metrics;
use queue::Collection;
use sender::{Sender, millis};
use view::View;

/// No tenant's series are collected more often than this.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Why remote write can't be started.
#[derive(Debug, thiserror::Error)]
pub enum RemoteWriteError {
    /// An endpoint can't be set up.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Metrics that are registered already.
    #[error("metrics of remote write")]
    Metrics(#[from] prometheus::Error),
}

/// Remote write, ready to run.
#[derive(Debug)]
pub struct RemoteWrite {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    endpoints: Vec<Arc<sender::Endpoint>>,
    snapshots: Snapshots,
    overrides: Arc<dyn Overrides>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// What counts as sent already.
    baseline: Arc<Snapshot>,
    /// When this process began, in milliseconds.
    started: i64,
}

impl RemoteWrite {
    /// Sets everything up. The newest of the `snapshots` must be the recovered one: it is taken for sent.
    ///
    /// # Errors
    /// An endpoint that can't be set up, or metrics that are registered already.
    pub fn new(
        settings: Settings,
        snapshots: Snapshots,
        overrides: Arc<dyn Overrides>,
        clock: Arc<dyn Clock>,
        registry: &prometheus::Registry,
    ) -> Result<Self, RemoteWriteError> {
        let endpoints = settings.endpoints.iter().map(|endpoint| sender::Endpoint::new(endpoint, &settings).map(Arc::new));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        let (baseline, started) = (snapshots.latest(), millis(clock.now()));
        let metrics = Metrics::new(registry)?;
        Ok(Self { shared: Arc::new(Shared { settings, endpoints, snapshots, overrides, clock, metrics, baseline, started }) })
    }

    /// Collects and sends until `shutdown`; then collects once more and sends what waits, as far as the deadline allows.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let shared = self.shared;
        if shared.endpoints.is_empty() {
            return shutdown.await;
        }
        tokio::pin!(shutdown);
        let (stop, stopping) = watch::channel(false);
        let mut snapshots = shared.snapshots.subscribe();
        snapshots.mark_changed();
        let (mut tasks, mut running) = (JoinSet::new(), HashMap::new());
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                // Snapshots end with the dataflow only, which outlives this task.
                Ok(()) = snapshots.changed() => {
                    let latest = Arc::clone(&snapshots.borrow_and_update());
                    for tenant in latest.tenants.keys().filter(|tenant| !running.contains_key(*tenant)).cloned().collect::<Vec<_>>() {
                        let (shared, stopping, of) = (Arc::clone(&shared), stopping.clone(), tenant.clone());
                        let task = tasks.spawn(async move { shared.collect(of, stopping).await });
                        running.insert(tenant, task.id());
                    }
                }
                // None ends by itself. One that panicked begins anew with the next snapshot.
                Some(Err(error)) = tasks.join_next() => {
                    tracing::error!(%error, "collection of a tenant failed");
                    running.retain(|_, of| *of != error.id());
                }
            }
        }
        _ = stop.send(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(shared.settings.flush_deadline, all).await.is_err() {
            tracing::warn!(deadline = ?shared.settings.flush_deadline, "samples that wait for remote write are given up");
        }
    }
}

impl Shared {
    /// Collects the series of a tenant until told to stop, also while it has none: what was sent last is remembered here.
    async fn collect(&self, tenant: Tenant, mut stopping: watch::Receiver<bool>) {
        let view = Arc::new(View::new(&self.settings, &tenant, &self.overrides.remote_write(&tenant)));
        let sent = Arc::new(collection(&self.baseline, &tenant, i64::MIN, view));
        let mut senders = JoinSet::new();
        let mut queues = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let metrics = self.metrics.of_endpoint(&tenant, &endpoint.name, &endpoint.settings.url);
            let seed = self.settings.seed.wrapping_add(index as u64);
            let (overrides, clock) = (Arc::clone(&self.overrides), Arc::clone(&self.clock));
            let sender = Arc::new(Sender::new(tenant.clone(), Arc::clone(endpoint), overrides, clock, metrics, seed));
            queues.push(Arc::clone(&sender));
            let (sent, started) = (Arc::clone(&sent), self.started);
            senders.spawn(async move { sender.run(sent, started).await });
        }
        let mut last = sent;
        self.metrics.settings_failed(&tenant, 0);
        loop {
            let of_tenant = self.overrides.remote_write(&tenant);
            let interval = of_tenant.collection_interval.unwrap_or(self.settings.collection_interval).max(MIN_INTERVAL);
            let is_last = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                // A channel that is closed says stop, too.
                _ = stopping.wait_for(|stop| *stop) => true,
            };
            let of_tenant = self.overrides.remote_write(&tenant);
            let at = millis(self.clock.now());
            if client::headers(&of_tenant.headers).is_none() {
                self.metrics.settings_failed(&tenant, 1);
            }
            if !of_tenant.disable_collection && at <= last.at {
                // The clock went back. What is sent now would be older than what was sent before.
                self.metrics.collection_failed(&tenant, "out_of_order");
            } else if !of_tenant.disable_collection {
                let view = Arc::new(View::new(&self.settings, &tenant, &of_tenant));
                let now = Arc::new(collection(&self.snapshots.latest(), &tenant, at, view));
                self.metrics.collected(&tenant, at);
                queues.iter().for_each(|sender| sender.push(&now));
                last = now;
            }
            if is_last {
                break;
            }
        }
        queues.iter().for_each(|sender| sender.queue.close());
        while senders.join_next().await.is_some() {}
    }
}

/// The series of a tenant in a snapshot.
fn collection(snapshot: &Snapshot, tenant: &Tenant, at: i64, view: Arc<View>) -> Collection {
    let series: Arc<[Arc<Accumulated>]> = snapshot.tenants.get(tenant).cloned().unwrap_or_default();
    let samples = series.iter().map(|series| view::cost(series)).sum();
    Collection { at, series, recovered: snapshot.recovered, tick_length: snapshot.tick_length, samples, view }
}
