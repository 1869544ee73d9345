//! What the generator counts of itself. Names that Tempo has are Tempo's.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use storage::id::Tenant;

use super::service_graph;

/// Counters and gauges of all tenants.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) spans_received: IntCounterVec,
    pub(crate) bytes_received: IntCounterVec,
    pub(crate) spans_discarded: IntCounterVec,
    pub(crate) active_series: IntGaugeVec,
    pub(crate) active_entities: IntGaugeVec,
    pub(crate) max_active_series: IntGaugeVec,
    pub(crate) max_active_entities: IntGaugeVec,
    pub(crate) series_demand: IntGaugeVec,
    pub(crate) entity_demand: IntGaugeVec,
    pub(crate) entities_added: IntCounterVec,
    pub(crate) entities_removed: IntCounterVec,
    pub(crate) entities_limited: IntCounterVec,
    pub(crate) active_processors: IntGaugeVec,
    pub(crate) processors_failed: IntCounterVec,
    pub(crate) sanitized_span_names: IntCounterVec,
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
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let gauges = |name: &str, help: &str| labelled(name, help, &["tenant"]);
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
            max_active_series: gauges(
                "tempo_metrics_generator_registry_max_active_series",
                "Active series that the tenant may have; 0 is no limit",
            )?,
            max_active_entities: gauges(
                "tempo_metrics_generator_registry_max_active_entities",
                "Active label sets that the tenant may have; 0 is no limit",
            )?,
            series_demand: gauges(
                "tempo_metrics_generator_registry_active_series_demand_estimate",
                "About how many active series there would be without a limit",
            )?,
            entity_demand: gauges(
                "tempo_metrics_generator_registry_entity_demand_estimate",
                "About how many active label sets there would be without a limit",
            )?,
            entities_added: counters("tempo_metrics_generator_registry_entities_added_total", "Label sets that began", &["tenant"])?,
            entities_removed: counters(
                "tempo_metrics_generator_registry_entities_removed_total",
                "Label sets whose series all became stale",
                &["tenant"],
            )?,
            entities_limited: counters(
                "tempo_metrics_generator_registry_entities_limited_total",
                "Label sets that counted in an overflow series instead, each time that a series of theirs was observed in a tick",
                &["tenant"],
            )?,
            active_processors: labelled(
                "tempo_metrics_generator_active_processors",
                "Whether the tenant has the processor",
                &["tenant", "processor"],
            )?,
            processors_failed: counters(
                "tempo_metrics_generator_active_processors_update_failed_total",
                "Settings of a tenant from which a processor could not be made",
                &["tenant"],
            )?,
            sanitized_span_names: counters(
                "rubato_generator_sanitized_span_names_total",
                "Span names of which a pattern was taken, or with dry_run would have been, each time that a worker meets one anew",
                &["tenant"],
            )?,
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

    /// Which processors a tenant has. Sub-processors are no processors of their own; recent metrics need none.
    pub(crate) fn show_processors(&self, tenant: &Tenant, graphs: bool, spans: bool, hosts: bool) {
        const NAMES: [&str; 7] = [
            "service-graphs",
            "span-metrics",
            "host-info",
            "span-metrics-count",
            "span-metrics-latency",
            "span-metrics-size",
            "local-blocks",
        ];
        let active = [graphs, spans, hosts].into_iter().chain(std::iter::repeat(false));
        for (name, active) in NAMES.into_iter().zip(active) {
            self.active_processors.with_label_values(&[tenant.as_str(), name]).set(i64::from(active));
        }
    }

    /// A worker's part of a tenant's demand, series and label sets, was one thing and is another now.
    pub(crate) fn show_demand(&self, tenant: &Tenant, before: (u64, u64), now: (u64, u64)) {
        let change = |before: u64, now: u64| i64::try_from(i128::from(now) - i128::from(before)).unwrap_or_default();
        self.series_demand.with_label_values(&[tenant.as_str()]).add(change(before.0, now.0));
        self.entity_demand.with_label_values(&[tenant.as_str()]).add(change(before.1, now.1));
    }
}
