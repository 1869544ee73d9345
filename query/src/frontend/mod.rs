//! The query-frontend: gives jobs to whoever can run them.
//!
//! ```text
//!  Engine ─► Frontend::run ─► cache ─► try, try again ─► Queue ─┬─► workers in this process ─► Units
//!                                                               └─► streams of queriers (gRPC) ─► their Units
//! ```
//!
//! What waits is bounded per tenant, and tenants take turns ([`queue`]). What runs is bounded by the workers: each runs one job, or one batch,
//! at a time. A job that failed for a reason that may pass is tried again, by another worker if there is one. Whoever drops the future of a
//! job cancels it: it leaves the queue without being served, or its worker's stream is closed, or its task in this process ends.
//!
//! **The wire.** The service `frontend.Frontend` and the messages of `httpgrpc` are Tempo's: streams, question for the name, single requests
//! and batches, one answer per message, farewell. What the requests say is ours (`POST /querier/rubato/job` with a [`Job`] as body), so a
//! querier of Tempo can connect but not answer: it says 404. Our querier answers Tempo's frontend with what it has below `/querier`
//! ([`crate::querier_router`]). Our frontends and queriers must be of one release.

mod cache;
mod metrics;
mod queue;
mod service;
mod weight;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use prometheus::Registry;
use storage::{cache::Cache, id::Tenant};
use tokio::sync::{Semaphore, oneshot};

pub(crate) use self::service::{JOB_URL, OUTCOME_TYPE, QUERY_HEADER};
use self::{
    metrics::Metrics,
    queue::{Batch, Entry, Full, Queue},
};
pub use self::{service::FrontendService, weight::Weights};
use crate::{
    engine::QueryError,
    job::{Answer, Job, QueryId, Runner},
};

/// Settings of the query-frontend.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most jobs of a tenant that wait (`query_frontend.max_outstanding_per_tenant`).
    pub max_outstanding_per_tenant: usize,
    /// Times that a job is tried, the first one included; 0 is as good as 1 (`query_frontend.max_retries`).
    pub max_tries: usize,
    /// Weight of the jobs that a querier takes at once (`query_frontend.max_batch_size`).
    pub max_batch_size: usize,
    /// A job that has no answer after this time is given to a second worker; `None` never does.
    pub hedge_after: Option<Duration>,
    /// How jobs are weighed against `max_batch_size`.
    pub weights: Weights,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_outstanding_per_tenant: 20_000, max_tries: 2, max_batch_size: 7, hedge_after: None, weights: Weights::default() }
    }
}

/// Runs jobs by giving them to workers. See the module documentation.
#[derive(Debug)]
pub struct Frontend {
    settings: Settings,
    queue: Queue<Request>,
    cache: Option<Cache>,
    metrics: Metrics,
}

/// A job that waits for a worker, or is with one.
#[derive(Debug)]
struct Request {
    query: QueryId,
    job: Job,
    weight: usize,
    since: Instant,
    reply: oneshot::Sender<Result<Answer, QueryError>>,
}

impl Entry for Request {
    fn weight(&self) -> usize {
        self.weight
    }

    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }
}

impl Frontend {
    /// A frontend without workers. Answers are cached if the cache has a place for the role `frontend-search` beyond this process.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(settings: Settings, cache: Option<Cache>, registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Metrics::new(registry)?;
        let queue = Queue::new(settings.max_outstanding_per_tenant, metrics.cancelled.with_label_values(&["queued"]));
        Ok(Self { settings, queue, cache, metrics })
    }

    /// Works off the queue in this process, at most `concurrency` jobs at a time, until the frontend is closed.
    pub async fn work(&self, runner: Arc<dyn Runner>, concurrency: usize) {
        let workers = Arc::new(Semaphore::new(concurrency.clamp(1, Semaphore::MAX_PERMITS)));
        let mut running = tokio::task::JoinSet::new();
        loop {
            let Ok(worker) = Arc::clone(&workers).acquire_owned().await else { return };
            while running.try_join_next().is_some() {}
            // The smallest batch is one job.
            let Some(batch) = self.next(1).await else { return };
            let (runner, running_jobs, cancelled) =
                (Arc::clone(&runner), self.metrics.running.clone(), self.metrics.cancelled.with_label_values(&["running"]));
            running.spawn(async move {
                let _worker = worker;
                for Request { query, job, mut reply, .. } in batch.entries {
                    running_jobs.inc();
                    let outcome = tokio::select! {
                        outcome = runner.run(query, &batch.tenant, job) => Some(outcome),
                        () = reply.closed() => None,
                    };
                    running_jobs.dec();
                    match outcome {
                        // Whoever asked may go at this moment.
                        Some(outcome) => _ = reply.send(outcome),
                        None => cancelled.inc(),
                    }
                }
            });
        }
    }

    /// Lets all workers go and fails what waits.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether somebody is there to run jobs, apart from this process.
    pub fn connected(&self) -> usize {
        usize::try_from(self.metrics.connected.get()).unwrap_or(0)
    }

    async fn next(&self, weight: usize) -> Option<Batch<Request>> {
        let batch = self.queue.next(weight).await?;
        let label = self.metrics.tenant(batch.tenant.as_str());
        self.metrics.queue_length.with_label_values(&[label]).set(i64::try_from(batch.left).unwrap_or(i64::MAX));
        self.metrics.batch_size.observe(batch.entries.len() as f64);
        self.metrics.batch_weight.with_label_values(&[label]).observe(batch.weight as f64);
        for entry in &batch.entries {
            self.metrics.queue_seconds.observe(entry.since.elapsed().as_secs_f64());
        }
        Some(batch)
    }

    /// Puts a job into the queue.
    fn enqueue(
        &self,
        query: QueryId,
        tenant: &Tenant,
        job: Job,
        weight: usize,
    ) -> Result<oneshot::Receiver<Result<Answer, QueryError>>, QueryError> {
        let (reply, answer) = oneshot::channel();
        let label = self.metrics.tenant(tenant.as_str());
        match self.queue.push(tenant, Request { query, job, weight, since: Instant::now(), reply }) {
            Ok(length) => {
                self.metrics.queue_length.with_label_values(&[label]).set(i64::try_from(length).unwrap_or(i64::MAX));
                Ok(answer)
            }
            Err(Full) => {
                self.metrics.discarded.with_label_values(&[label]).inc();
                Err(QueryError::QueueFull)
            }
        }
    }

    /// Puts a job that nobody ran into the queue again. If there is no room, whoever waits for it sees that its worker went away.
    fn put_back(&self, tenant: &Tenant, request: Request) {
        if self.queue.push(tenant, request).is_err() {
            self.metrics.discarded.with_label_values(&[self.metrics.tenant(tenant.as_str())]).inc();
        }
    }

    /// Runs a job once; a second time at the same time if it takes long.
    async fn once(&self, query: QueryId, tenant: &Tenant, job: &Job, weight: usize) -> Result<Answer, QueryError> {
        let mut first = self.enqueue(query, tenant, job.clone(), weight)?;
        let Some(after) = self.settings.hedge_after else { return received(first.await) };
        if let Ok(outcome) = tokio::time::timeout(after, &mut first).await {
            return received(outcome);
        }
        let Ok(mut second) = self.enqueue(query, tenant, job.clone(), weight) else { return received(first.await) };
        let (outcome, other) = tokio::select! {
            outcome = &mut first => (received(outcome), second),
            outcome = &mut second => (received(outcome), first),
        };
        match outcome {
            Err(error) if error.is_retryable() => received(other.await),
            outcome => outcome,
        }
    }
}

#[async_trait]
impl Runner for Frontend {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        let cached = self.cache.as_ref().and_then(|cache| Some((cache, cache::key(tenant, &job)?)));
        if let Some((cache, key)) = &cached {
            let hit = cache::get(cache, key).await;
            self.metrics.cached.with_label_values(&[if hit.is_some() { "hit" } else { "miss" }]).inc();
            if let Some(answer) = hit {
                return Ok(answer);
            }
        }
        let mut tries = 1;
        let mut weight = self.settings.weights.of(&job);
        let outcome = loop {
            match self.once(query, tenant, &job, weight).await {
                Err(error) if error.is_retryable() && tries < self.settings.max_tries => {
                    tracing::info!(tenant = tenant.as_str(), tries, %error, "job failed, trying again");
                    tries += 1;
                    weight += usize::from(self.settings.weights.retries);
                }
                outcome => break outcome,
            }
        };
        self.metrics.retries.observe((tries - 1) as f64);
        if let Some((cache, key)) = cached {
            cache::put(cache, key, &outcome);
        }
        outcome
    }
}

/// What came of a job; nothing if its worker went away.
fn received(outcome: Result<Result<Answer, QueryError>, oneshot::error::RecvError>) -> Result<Answer, QueryError> {
    outcome.unwrap_or_else(|_| Err(QueryError::Transport { cause: "the worker of a job went away".to_owned() }))
}

#[cfg(test)]
mod tests;
