//! What the log counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector, exponential_buckets};

use super::{AppendError, files::Files};

#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) appended_bytes: IntCounter,
    pub(super) appended_records: IntCounter,
    pub(super) fsync_seconds: Histogram,
    pub(super) fsync_failures: IntCounter,
    pub(super) group_records: Histogram,
    pub(super) corrupt_records: IntCounter,
    pub(super) quarantined_records: IntCounter,
    pub(super) torn_bytes: IntCounter,
    pub(super) queue_bytes: IntGauge,
    refused: IntCounterVec,
    disk_bytes: IntGauge,
    files: IntGauge,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            appended_bytes: add(
                registry,
                IntCounter::new("rubato_wal_appended_bytes_total", "Bytes of acknowledged records, with their headers.")?,
            )?,
            appended_records: add(registry, IntCounter::new("rubato_wal_appended_records_total", "Acknowledged records.")?)?,
            fsync_seconds: add(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("rubato_wal_fsync_seconds", "Time that an fsync of the write-ahead log took.")
                        .buckets(exponential_buckets(0.000_1, 2.0, 16)?),
                )?,
            )?,
            fsync_failures: add(
                registry,
                IntCounter::new("rubato_wal_fsync_failures_total", "Failed fsyncs, after each of which a file was abandoned.")?,
            )?,
            group_records: add(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("rubato_wal_group_records", "Records written and acknowledged together.")
                        .buckets(exponential_buckets(1.0, 2.0, 11)?),
                )?,
            )?,
            corrupt_records: add(registry, IntCounter::new("rubato_wal_corrupt_records_total", "Damaged records that a reader skipped.")?)?,
            quarantined_records: add(
                registry,
                IntCounter::new("rubato_wal_quarantined_records_total", "Damaged records that were copied to the quarantine folder.")?,
            )?,
            torn_bytes: add(
                registry,
                IntCounter::new("rubato_wal_torn_bytes_total", "Bytes of unfinished records that were cut off at the start.")?,
            )?,
            queue_bytes: add(registry, IntGauge::new("rubato_wal_queue_bytes", "Bytes of records that wait for the writer.")?)?,
            refused: add(
                registry,
                IntCounterVec::new(Opts::new("rubato_wal_refused_total", "Appends that were refused, by reason."), &["reason"])?,
            )?,
            disk_bytes: add(registry, IntGauge::new("rubato_wal_disk_bytes", "Bytes of the files of the write-ahead log.")?)?,
            files: add(registry, IntGauge::new("rubato_wal_files", "Files of the write-ahead log.")?)?,
        })
    }

    pub(super) fn refuse(&self, error: &AppendError) {
        let reason = match error {
            AppendError::Full(_) => "full",
            AppendError::Io(_) => "io",
            AppendError::TooLarge { .. } => "too_large",
            AppendError::Closed => "closed",
        };
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(super) fn show_files(&self, files: &Files) {
        self.disk_bytes.set(i64::try_from(files.bytes()).unwrap_or(i64::MAX));
        self.files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
