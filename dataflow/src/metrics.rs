//! What the dataflow counts. Names that Tempo has are Tempo's; the dataflow's own begin with `rubato_dataflow_`.

use std::{collections::HashMap, sync::Arc};

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets};

use storage::{block::Meta, id::Tenant};

use crate::worker::State;

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) spans: IntCounter,
    pub(crate) duplicate_spans: IntCounter,
    pub(crate) dropped_spans: IntCounterVec,
    pub(crate) traces_created: IntCounterVec,
    pub(crate) live_traces: IntGaugeVec,
    pub(crate) live_trace_bytes: IntGaugeVec,
    pub(crate) remembered_spans: IntGaugeVec,
    pub(crate) held_bytes: IntGaugeVec,
    pub(crate) pending_blocks: IntGaugeVec,
    pub(crate) tick_input: IntGauge,
    pub(crate) tick_probe: IntGauge,
    pub(crate) wal_lag_bytes: IntGauge,
    pub(crate) feed_paused: IntCounterVec,
    pub(crate) generations: IntCounterVec,
    pub(crate) commits: IntCounter,
    pub(crate) commit_failures: IntCounter,
    pub(crate) skipped_blocks: IntCounterVec,
    pub(crate) encode_seconds: Histogram,
    pub(crate) encode_failures: IntCounter,
    pub(crate) blocks_flushed: IntCounter,
    pub(crate) blocks_cleared: IntCounter,
    pub(crate) flush_queue: IntGauge,
    pub(crate) failed_flushes: IntCounter,
    pub(crate) flush_retries: IntCounter,
    pub(crate) flush_failed_retries: IntCounter,
    pub(crate) flush_seconds: Histogram,
    pub(crate) flush_bytes: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let counters = |name: &str, help: &str, label: &str| register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let gauges = |name: &str, help: &str, label: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &[label])?);
        let histogram =
            |name: &str, help: &str, buckets| register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?);
        Ok(Self {
            spans: counter("rubato_dataflow_spans_total", "Spans that entered the dataflow")?,
            duplicate_spans: counter("rubato_dataflow_duplicate_spans_total", "Spans dropped because their identity was seen before")?,
            dropped_spans: counters("rubato_dataflow_dropped_spans_total", "Acknowledged spans that could not be stored", "reason")?,
            traces_created: counters("tempo_ingester_traces_created_total", "Live traces begun", "tenant")?,
            live_traces: gauges("tempo_ingester_live_traces", "Live traces", "tenant")?,
            live_trace_bytes: gauges("tempo_ingester_live_trace_bytes", "Bytes held for live traces", "tenant")?,
            remembered_spans: gauges("rubato_dataflow_remembered_spans", "Span identities remembered to drop copies", "worker")?,
            held_bytes: gauges("rubato_dataflow_held_bytes", "Bytes held in live traces, batches and uploads", "worker")?,
            pending_blocks: gauges("rubato_dataflow_pending_blocks", "Blocks that wait for upload or commit", "worker")?,
            tick_input: gauge("rubato_dataflow_tick_input", "Tick that is being fed")?,
            tick_probe: gauge("rubato_dataflow_tick_probe", "Tick that every operator has finished")?,
            wal_lag_bytes: gauge("rubato_dataflow_wal_lag_bytes", "Bytes in the write-ahead log that were not fed yet")?,
            feed_paused: counters("rubato_dataflow_feed_paused_total", "Times that feeding paused, by reason", "reason")?,
            generations: counters("rubato_dataflow_generations_total", "Generations of the dataflow, by what began them", "reason")?,
            commits: counter("rubato_dataflow_commits_total", "Manifests committed")?,
            commit_failures: counter("rubato_dataflow_commit_failures_total", "Manifests that the store refused")?,
            skipped_blocks: counters(
                "rubato_dataflow_skipped_blocks_total",
                "Committed blocks that recovery could neither publish nor read, by reason",
                "reason",
            )?,
            encode_seconds: histogram(
                "rubato_dataflow_block_encode_seconds",
                "Time to encode a block",
                exponential_buckets(0.005, 2.0, 12)?,
            )?,
            encode_failures: counter("rubato_dataflow_block_encode_failures_total", "Blocks whose encoder failed")?,
            blocks_flushed: counter("tempo_ingester_blocks_flushed_total", "Blocks written and published")?,
            blocks_cleared: counter("tempo_ingester_blocks_cleared_total", "Blocks of which the log need not keep anything any more")?,
            flush_queue: gauge("tempo_ingester_flush_queue_length", "Blocks that wait to be encoded or are on their way to the bucket")?,
            failed_flushes: counter("tempo_ingester_failed_flushes_total", "Block uploads that failed")?,
            flush_retries: counter("tempo_ingester_flush_retries_total", "Block uploads tried again")?,
            flush_failed_retries: counter("tempo_ingester_flush_failed_retries_total", "Retried block uploads that failed")?,
            flush_seconds: histogram(
                "tempo_ingester_flush_duration_seconds",
                "Time to upload a block",
                exponential_buckets(1.0, 2.0, 10)?,
            )?,
            flush_bytes: histogram("tempo_ingester_flush_size_bytes", "Size of uploaded blocks", exponential_buckets(1048576.0, 2.0, 10)?)?,
        })
    }
}

impl Metrics {
    /// Counts and logs a committed block that cannot be read: its spans are in the block that it was compacted into, or lost.
    pub(crate) fn skip_block(&self, meta: &Meta, reason: &str, error: &str) {
        tracing::warn!(tenant = %meta.tenant_id, block_id = %meta.block_id, reason, error, "committed block is passed over");
        self.skipped_blocks.with_label_values(&[reason]).inc();
    }
}

/// The gauges of one worker. Those that are per tenant are sums over workers, so each worker adds what has changed since it last did.
pub(crate) struct Gauges {
    metrics: Arc<Metrics>,
    worker: String,
    live: HashMap<Tenant, (i64, i64)>,
}

impl Gauges {
    pub(crate) fn new(metrics: Arc<Metrics>, worker: usize) -> Self {
        Self { metrics, worker: worker.to_string(), live: HashMap::new() }
    }

    pub(crate) fn publish(&mut self, state: &State) {
        let labels = [self.worker.as_str()];
        self.metrics.held_bytes.with_label_values(&labels).set(gauge(state.held()));
        self.metrics.pending_blocks.with_label_values(&labels).set(gauge(state.batches.pending()));
        self.metrics.remembered_spans.with_label_values(&labels).set(gauge(state.live.remembered()));
        let live = state.live.tenants().map(|(tenant, traces, bytes)| (tenant.clone(), (gauge(traces), gauge(bytes)))).collect();
        self.replace(live);
    }

    /// Takes this worker's share out of the sums: its generation has ended.
    pub(crate) fn withdraw(&mut self) {
        self.replace(HashMap::new());
    }

    fn replace(&mut self, live: HashMap<Tenant, (i64, i64)>) {
        let old = std::mem::replace(&mut self.live, live);
        for (tenant, (traces, bytes)) in &self.live {
            let (old_traces, old_bytes) = old.get(tenant).copied().unwrap_or_default();
            self.add(tenant, traces - old_traces, bytes - old_bytes);
        }
        for (tenant, (traces, bytes)) in old.iter().filter(|(tenant, _)| !self.live.contains_key(*tenant)) {
            self.add(tenant, -traces, -bytes);
        }
    }

    fn add(&self, tenant: &Tenant, traces: i64, bytes: i64) {
        self.metrics.live_traces.with_label_values(&[tenant.as_str()]).add(traces);
        self.metrics.live_trace_bytes.with_label_values(&[tenant.as_str()]).add(bytes);
    }
}

/// A count as a gauge takes it.
pub(crate) fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
