//! What the generator counts of itself. Names that Tempo has are Tempo's.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::service_graph;

/// Counters and gauges of all tenants.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) spans_received: IntCounterVec,
    pub(crate) bytes_received: IntCounterVec,
    pub(crate) spans_discarded: IntCounterVec,
    pub(crate) active_series: IntGaugeVec,
    pub(crate) active_entities: IntGaugeVec,
    pub(crate) series_added: IntCounterVec,
    pub(crate) series_removed: IntCounterVec,
    pub(crate) series_limited: IntCounterVec,
    pub(crate) labels_limited: IntCounterVec,
    pub(crate) checkpoint_bytes: IntCounterVec,
    pub(crate) lost_checkpoints: IntCounter,
    pub(crate) service_graphs: service_graph::Metrics,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["tenant"])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let lost_checkpoints = IntCounter::new(
            "rubato_generator_lost_checkpoints_total",
            "Objects of a checkpoint that recovery could not read, so that series began anew",
        )?;
        registry.register(Box::new(lost_checkpoints.clone()))?;
        Ok(Self {
            spans_received: counters("tempo_metrics_generator_spans_received_total", "Spans received, each once", &["tenant"])?,
            bytes_received: counters("tempo_metrics_generator_bytes_received_total", "Bytes of spans received, each once", &["tenant"])?,
            spans_discarded: counters(
                "tempo_metrics_generator_spans_discarded_total",
                "Spans that count in no series, by reason",
                &["tenant", "reason", "processor"],
            )?,
            active_series: gauges("tempo_metrics_generator_registry_active_series", "Active series, by what they cost")?,
            active_entities: gauges("tempo_metrics_generator_registry_active_entities", "Active label sets")?,
            series_added: counters("tempo_metrics_generator_registry_series_added_total", "Series that began", &["tenant"])?,
            series_removed: counters("tempo_metrics_generator_registry_series_removed_total", "Series that became stale", &["tenant"])?,
            series_limited: counters(
                "tempo_metrics_generator_registry_series_limited_total",
                "Series that counted in an overflow series instead, each time that they were observed in a tick",
                &["tenant"],
            )?,
            labels_limited: counters(
                "rubato_generator_labels_limited_total",
                "Series with a label that had too many values, each time that they were observed in a tick",
                &["tenant"],
            )?,
            checkpoint_bytes: counters(
                "rubato_generator_checkpoint_bytes_total",
                "Bytes written to the bucket by checkpoints",
                &["content"],
            )?,
            lost_checkpoints,
            service_graphs: service_graph::Metrics::new(registry)?,
        })
    }
}
