//! What the compactor counts. Names that Tempo has are Tempo's.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector, exponential_buckets,
};

/// Jobs and retention of one compactor.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) blocks: IntCounterVec,
    pub(super) objects_written: IntCounterVec,
    pub(super) bytes_written: IntCounterVec,
    pub(super) objects_combined: IntCounterVec,
    pub(super) spans_combined: IntCounterVec,
    pub(super) errors: IntCounter,
    pub(super) outstanding_blocks: IntGaugeVec,
    pub(super) outstanding_bytes: IntGaugeVec,
    pub(super) oldest_level0: IntGaugeVec,
    pub(super) bytes_read: IntCounter,
    pub(super) discarded_spans: IntCounterVec,
    pub(super) jobs: IntCounterVec,
    pub(super) job_seconds: Histogram,
    pub(super) running: IntGauge,
    pub(super) marked_for_deletion: IntCounter,
    pub(super) deleted: IntCounter,
    pub(super) retention_errors: IntCounter,
    pub(super) retention_seconds: Histogram,
    pub(super) garbage_deleted: IntCounter,
    pub(super) marks_finished: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let counters = |name: &str, help: &str, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let gauges = |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &["tenant"])?);
        let histogram = |name: &str, help: &str, start: f64, count: usize| {
            let buckets = exponential_buckets(start, 2.0, count)?;
            register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
        };
        Ok(Self {
            blocks: counters("tempodb_compaction_blocks_total", "Blocks that were merged into others", &["level"])?,
            objects_written: counters("tempodb_compaction_objects_written_total", "Traces written by compaction", &["level"])?,
            bytes_written: counters("tempodb_compaction_bytes_written_total", "Bytes of data written by compaction", &["level"])?,
            objects_combined: counters("tempodb_compaction_objects_combined_total", "Traces combined from several rows", &["level"])?,
            spans_combined: counters(
                "tempodb_compaction_spans_combined_total",
                "Spans dropped because another block had them",
                &["replication_factor"],
            )?,
            errors: counter("tempodb_compaction_errors_total", "Compactions that failed")?,
            outstanding_blocks: gauges("tempodb_compaction_outstanding_blocks", "Blocks that wait for this compactor")?,
            outstanding_bytes: gauges("rubato_compactor_outstanding_bytes", "Bytes of data that wait for this compactor")?,
            oldest_level0: gauges(
                "rubato_compactor_oldest_level0_age_seconds",
                "Age of the oldest block that has neighbours to be merged with and was never compacted, 0 if there is none",
            )?,
            bytes_read: counter("rubato_compactor_bytes_read_total", "Bytes of data of the blocks that were merged")?,
            discarded_spans: counters(
                "rubato_compactor_discarded_spans_total",
                "Spans that compaction did not keep, by reason",
                &["reason", "tenant"],
            )?,
            jobs: counters("rubato_compactor_jobs_total", "Jobs by how they ended", &["outcome"])?,
            job_seconds: histogram("rubato_compactor_job_duration_seconds", "Time of jobs that wrote a block", 0.05, 16)?,
            running: register(registry, IntGauge::new("rubato_compactor_jobs_running", "Jobs under way")?)?,
            marked_for_deletion: counter("tempodb_retention_marked_for_deletion_total", "Blocks whose retention is over")?,
            deleted: counter("tempodb_retention_deleted_total", "Blocks whose objects were deleted")?,
            retention_errors: counter("tempodb_retention_errors_total", "Blocks that retention failed for")?,
            retention_seconds: histogram("tempodb_retention_duration_seconds", "Time of a round of retention", 0.25, 6)?,
            garbage_deleted: counter("rubato_compactor_garbage_deleted_total", "Folders of blocks that never came to be, deleted")?,
            marks_finished: counter(
                "rubato_compactor_marks_finished_total",
                "Blocks marked as compacted because whoever merged them did not get to it",
            )?,
        })
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
