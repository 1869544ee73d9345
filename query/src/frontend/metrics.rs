//! What the queue of jobs tells Prometheus. Names are Tempo's where it has the metric.

use std::collections::HashSet;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Tenants with series of their own.
const MAX_TENANTS: usize = 1000;

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) queue_length: IntGaugeVec,
    pub(crate) discarded: IntCounterVec,
    pub(crate) queue_seconds: Histogram,
    pub(crate) batch_size: Histogram,
    pub(crate) batch_weight: HistogramVec,
    pub(crate) retries: Histogram,
    pub(crate) connected: IntGauge,
    pub(crate) running: IntGauge,
    pub(crate) cancelled: IntCounterVec,
    pub(crate) cached: IntCounterVec,
    tenants: Mutex<HashSet<String>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let small = || vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0];
        let metrics = Self {
            queue_length: IntGaugeVec::new(
                Opts::new("tempo_query_frontend_queue_length", "Number of jobs in the queue, by tenant."),
                &["user"],
            )?,
            discarded: IntCounterVec::new(
                Opts::new(
                    "tempo_query_frontend_discarded_requests_total",
                    "Jobs that were refused because the tenant had too many waiting.",
                ),
                &["user"],
            )?,
            queue_seconds: Histogram::with_opts(HistogramOpts::new(
                "tempo_query_frontend_queue_duration_seconds",
                "Time (in seconds) that jobs spent in the queue.",
            ))?,
            batch_size: Histogram::with_opts(
                HistogramOpts::new("tempo_query_frontend_actual_batch_size", "Jobs that were taken from the queue at once.")
                    .buckets(small()),
            )?,
            batch_weight: HistogramVec::new(
                HistogramOpts::new("tempo_query_frontend_batch_weight", "Weight of the jobs that were taken from the queue at once.")
                    .buckets(small()),
                &["user"],
            )?,
            retries: Histogram::with_opts(
                HistogramOpts::new("tempo_query_frontend_retries", "Times that a job was tried again.")
                    .buckets(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            )?,
            connected: IntGauge::new("tempo_query_frontend_connected_clients", "Streams of queriers that are connected.")?,
            running: IntGauge::new("rubato_query_frontend_running_jobs", "Jobs that run in this process or in a querier.")?,
            cancelled: IntCounterVec::new(
                Opts::new(
                    "rubato_query_frontend_cancelled_jobs_total",
                    "Jobs that nobody waited for any more, by where they were: queued or running.",
                ),
                &["stage"],
            )?,
            cached: IntCounterVec::new(
                Opts::new("rubato_query_frontend_job_cache_total", "Jobs that could be cached, by whether they were (hit or miss)."),
                &["result"],
            )?,
            tenants: Mutex::default(),
        };
        registry.register(Box::new(metrics.queue_length.clone()))?;
        registry.register(Box::new(metrics.discarded.clone()))?;
        registry.register(Box::new(metrics.queue_seconds.clone()))?;
        registry.register(Box::new(metrics.batch_size.clone()))?;
        registry.register(Box::new(metrics.batch_weight.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.cancelled.clone()))?;
        registry.register(Box::new(metrics.cached.clone()))?;
        Ok(metrics)
    }

    /// The label of a tenant. Names come from clients, so that those beyond the first thousand share one.
    pub(crate) fn tenant<'t>(&self, tenant: &'t str) -> &'t str {
        let mut tenants = self.tenants.lock();
        if tenants.contains(tenant) {
            return tenant;
        }
        if tenants.len() >= MAX_TENANTS {
            return "other";
        }
        tenants.insert(tenant.to_owned());
        tenant
    }
}
