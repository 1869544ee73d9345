//! The upload pool: encodes a block on a blocking thread and puts it on the bucket, however long the bucket is away.
//!
//! Encoding is bounded by a semaphore, since it costs CPU and memory; uploads are bounded by the bytes that the process may hold
//! ([`crate::Settings::resident_bytes`]), since each of them keeps its spans readable until it is committed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::Thread,
    time::Duration,
};

use prometheus::IntGauge;
use storage::{
    backend::Store,
    block::{self, Encoded, Meta, TraceSegments},
    clock::Clock,
    id::BlockId,
};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};

use crate::{batch::Job, cluster::panic_text, metrics::Metrics};

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
    pool: Pool,
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
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Uploader {
    /// An uploader whose results go to `results`; `worker` is woken for each.
    pub(crate) fn new(pool: Pool, results: mpsc::Sender<Uploaded>, worker: Thread) -> Self {
        Self { pool, results, worker, tasks: JoinSet::new() }
    }

    /// Begins a job. Dropping the uploader abandons its jobs: the log still has their spans.
    pub(crate) fn spawn(&mut self, job: Job) {
        while self.tasks.try_join_next().is_some() {}
        let Pool { store, settings, encoders, runtime, clock, metrics } = self.pool.clone();
        let (results, worker) = (self.results.clone(), self.worker.clone());
        let queued = Queued::new(&metrics.flush_queue);
        let task = async move {
            let _queued = queued;
            let block_id = job.block_id;
            let outcome = loop {
                let Ok(permit) = Arc::clone(&encoders).acquire_owned().await else { return };
                let (settings, job, encoder_metrics) = (Arc::clone(&settings), job.clone(), Arc::clone(&metrics));
                let encoded = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    encode(&settings, &job, &encoder_metrics)
                });
                match encoded.await {
                    Ok(Ok(Some(encoded))) => {
                        put(&store, &encoded, &metrics).await;
                        // Retention counts from here, however old the spans are and however long the bucket was away.
                        let created_at = i64::try_from(clock.now().as_secs()).ok();
                        break Uploaded::Block(Meta { created_at, ..encoded.meta });
                    }
                    Ok(Ok(None)) => break Uploaded::Nothing(block_id),
                    // The traces stay pending, readable and in the log.
                    Ok(Err(error)) => tracing::error!(error, %block_id, wait = ?ENCODE_AGAIN, "block encoder failed, trying again"),
                    Err(error) if error.is_cancelled() => return,
                    Err(error) => tracing::error!(%error, %block_id, wait = ?ENCODE_AGAIN, "block encoder died, trying again"),
                }
                metrics.encode_failures.inc();
                tokio::time::sleep(ENCODE_AGAIN).await;
            };
            if results.send(outcome).is_ok() {
                worker.unpark();
            }
        };
        self.tasks.spawn_on(task, &runtime);
    }
}

/// A job that is not on the bucket yet. Counted until it is dropped.
struct Queued(IntGauge);

impl Queued {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// After a failure for which no single trace is to blame.
const ENCODE_AGAIN: Duration = Duration::from_secs(10);

/// Encodes a job's traces; `None` when nothing can be. Traces that turn out to be corrupt (a disk that lied after the checksum was
/// verified), or that the encoder stumbles over, are left out: they must not stand in the way of all others for ever.
///
/// # Errors
/// Each trace that is left can be encoded, and all of them together cannot.
fn encode(settings: &block::Settings, job: &Job, metrics: &Metrics) -> Result<Option<Encoded>, String> {
    let timer = metrics.encode_seconds.start_timer();
    let error = match attempt(settings, job, &job.traces) {
        Ok(encoded) => {
            timer.observe_duration();
            return Ok(Some(encoded));
        }
        Err(error) => error,
    };
    timer.stop_and_discard();
    tracing::error!(error, block_id = %job.block_id, tenant = %job.tenant, "block cannot be encoded, leaving out what is corrupt");
    let is_sound = |trace: &TraceSegments| attempt(settings, job, std::slice::from_ref(trace)).is_ok();
    let (sound, corrupt): (Vec<_>, Vec<_>) = job.traces.iter().cloned().partition(is_sound);
    let encoded = if sound.is_empty() { None } else { Some(attempt(settings, job, &sound)?) };
    for trace in corrupt {
        let spans: usize = trace.segments.iter().map(|segment| segment.spans.len()).sum();
        tracing::error!(trace_id = %trace.trace_id, tenant = %job.tenant, spans, "trace is corrupt and lost");
        metrics.dropped_spans.with_label_values(&["corrupt"]).inc_by(spans as u64);
    }
    Ok(encoded)
}

/// Encodes once. A panic is an error like others: the encoder keeps nothing between two blocks.
fn attempt(settings: &block::Settings, job: &Job, traces: &[TraceSegments]) -> Result<Encoded, String> {
    let encode = || block::encode(settings, &job.tenant, job.block_id, traces);
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(encoded) => encoded.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("encoder panicked: {}", panic_text(panic.as_ref()))),
    }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use storage::{
        id::{SpanKey, Tenant, TraceId},
        otlp::Slice,
        segment::{Segment, SpanRef},
        wal::Position,
    };

    use super::*;

    fn trace(number: u8, body: &[u8]) -> TraceSegments {
        let end = u32::try_from(body.len()).expect("short");
        let span = SpanRef {
            key: SpanKey { span_id: u64::from(number), kind: 1 },
            start_ns: 0,
            resource: Slice::default(),
            scope: Slice::default(),
            span: Slice { start: 0, end },
        };
        let trace_id = TraceId([number; 16]);
        let body = Bytes::copy_from_slice(body);
        let segment = Segment { tenant: Tenant::single(), trace_id, position: Position(1), body, spans: vec![span] };
        TraceSegments { trace_id, segments: vec![Arc::new(segment)] }
    }

    #[test]
    fn a_corrupt_trace_costs_itself_only_and_is_counted() {
        let metrics = Metrics::new(&prometheus::Registry::new()).expect("nothing is registered");
        let job = |traces| Job { block_id: BlockId::new_v4(), tenant: Tenant::single(), traces: Arc::new(traces) };
        // An empty `name` of a span; a field that ends too late.
        let (good, bad): (&[u8], &[u8]) = (&[0x2a, 0], &[0x2a, 9, 1]);
        let mixed = job(vec![trace(1, good), trace(2, bad), trace(3, good)]);
        let encoded = encode(&block::Settings::default(), &mixed, &metrics).expect("the others are sound").expect("two are left");
        assert_eq!(encoded.meta.total_objects, 2);
        let nothing = encode(&block::Settings::default(), &job(vec![trace(2, bad)]), &metrics).expect("no failure");
        assert!(nothing.is_none());
        assert_eq!(metrics.dropped_spans.with_label_values(&["corrupt"]).get(), 2);
    }
}
