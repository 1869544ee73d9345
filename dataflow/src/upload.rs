//! The upload pool: encodes a block on a blocking thread and puts it on the bucket, however long the bucket is away.
//!
//! Encoding is bounded by a semaphore, since it costs CPU and memory; uploads are bounded by the bytes that the process may hold
//! ([`crate::Settings::resident_bytes`]), since each of them keeps its spans readable until it is committed.

use std::{
    sync::{Arc, mpsc},
    thread::Thread,
    time::Duration,
};

use storage::{
    backend::Store,
    block::{self, Encoded, Meta, TraceSegments},
    id::BlockId,
};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};

use crate::{batch::Job, metrics::Metrics};

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Uploaded {
    /// On the bucket, not published.
    Block(Meta),
    /// None of its traces can be encoded; they were counted and logged.
    Nothing(BlockId),
}

/// What a worker needs to upload.
#[derive(Debug)]
pub(crate) struct Uploader {
    store: Store,
    settings: Arc<block::Settings>,
    encoders: Arc<Semaphore>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    results: mpsc::Sender<Uploaded>,
    worker: Thread,
    tasks: JoinSet<()>,
}

/// What all uploaders of a process share.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) store: Store,
    pub(crate) settings: Arc<block::Settings>,
    pub(crate) encoders: Arc<Semaphore>,
    pub(crate) runtime: Handle,
    pub(crate) metrics: Arc<Metrics>,
}

impl Uploader {
    /// An uploader whose results go to `results`; `worker` is woken for each.
    pub(crate) fn new(pool: Pool, results: mpsc::Sender<Uploaded>, worker: Thread) -> Self {
        let Pool { store, settings, encoders, runtime, metrics } = pool;
        Self { store, settings, encoders, runtime, metrics, results, worker, tasks: JoinSet::new() }
    }

    /// Begins a job. Dropping the uploader abandons its jobs: the log still has their spans.
    pub(crate) fn spawn(&mut self, job: Job) {
        while self.tasks.try_join_next().is_some() {}
        let (store, settings, encoders) = (self.store.clone(), Arc::clone(&self.settings), Arc::clone(&self.encoders));
        let (metrics, results, worker) = (Arc::clone(&self.metrics), self.results.clone(), self.worker.clone());
        let task = async move {
            let Ok(permit) = encoders.acquire_owned().await else { return };
            let block_id = job.block_id;
            let encoder_metrics = Arc::clone(&metrics);
            let encoded = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                encode(&settings, &job, &encoder_metrics)
            });
            let outcome = match encoded.await {
                Ok(Some(encoded)) => {
                    put(&store, &encoded, &metrics).await;
                    Uploaded::Block(encoded.meta)
                }
                Ok(None) => Uploaded::Nothing(block_id),
                Err(error) => {
                    // The traces stay pending, readable and in the log; the next start tries again.
                    tracing::error!(%error, %block_id, "block encoder failed");
                    metrics.encode_failures.inc();
                    return;
                }
            };
            if results.send(outcome).is_ok() {
                worker.unpark();
            }
        };
        self.tasks.spawn_on(task, &self.runtime);
    }
}

/// Encodes a job's traces. Traces that turn out to be corrupt (a disk that lied after the checksum was verified) are left out.
fn encode(settings: &block::Settings, job: &Job, metrics: &Metrics) -> Option<Encoded> {
    let timer = metrics.encode_seconds.start_timer();
    let error = match block::encode(settings, &job.tenant, job.block_id, &job.traces) {
        Ok(encoded) => {
            timer.observe_duration();
            return Some(encoded);
        }
        Err(error) => error,
    };
    tracing::error!(%error, block_id = %job.block_id, tenant = %job.tenant, "block cannot be encoded, leaving out what is corrupt");
    let is_sound = |trace: &&TraceSegments| {
        let alone = std::slice::from_ref(*trace);
        let sound = block::encode(settings, &job.tenant, job.block_id, alone).is_ok();
        if !sound {
            let spans: usize = trace.segments.iter().map(|segment| segment.spans.len()).sum();
            tracing::error!(trace_id = %trace.trace_id, tenant = %job.tenant, spans, "trace is corrupt and lost");
            metrics.dropped_spans.with_label_values(&["corrupt"]).inc_by(spans as u64);
        }
        sound
    };
    let sound: Vec<TraceSegments> = job.traces.iter().filter(is_sound).cloned().collect();
    if sound.is_empty() {
        return None;
    }
    block::encode(settings, &job.tenant, job.block_id, &sound).ok()
}

async fn put(store: &Store, encoded: &Encoded, metrics: &Metrics) {
    let mut backoff = Backoff::default();
    loop {
        let timer = metrics.flush_seconds.start_timer();
        match store.put(encoded).await {
            Ok(()) => {
                timer.observe_duration();
                metrics.flush_bytes.observe(encoded.data.len() as f64);
                return;
            }
            Err(error) => {
                metrics.failed_flushes.inc();
                metrics.flush_retries.inc();
                if backoff.tries > 0 {
                    metrics.flush_failed_retries.inc();
                }
                backoff.wait("block", &error).await;
            }
        }
    }
}

/// Waits between tries: 100 ms, doubling up to 10 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pub(crate) tries: u32,
}

impl Backoff {
    pub(crate) async fn wait(&mut self, what: &'static str, error: &(dyn std::error::Error + Send + Sync)) {
        let wait = Duration::from_millis(100 << self.tries.min(7)).min(Duration::from_secs(10));
        self.tries += 1;
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(what, %error, cause, tries = self.tries, ?wait, "bucket refused, trying again");
        tokio::time::sleep(wait).await;
    }
}
