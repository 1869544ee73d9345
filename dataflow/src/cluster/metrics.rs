//! What the mesh counts. How many generations began, and why, is counted by whoever runs them: see [`super::Formation::reason`].

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};

/// Metrics of the mesh.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) epoch: IntGauge,
    pub(crate) members: IntGauge,
    pub(crate) candidates: IntGauge,
    pub(crate) losses: IntCounterVec,
    pub(crate) failed_forms: IntCounterVec,
    pub(crate) refused: IntCounterVec,
    pub(crate) reform_seconds: Histogram,
    pub(crate) sent_bytes: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let counters = |name: &str, help: &str, label: &str| register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        Ok(Self {
            epoch: gauge("rubato_dataflow_epoch", "Counter of the epoch that this process takes part in, 0 for none")?,
            members: gauge("rubato_dataflow_members", "Processes of the generation that this one takes part in, 0 for none")?,
            candidates: gauge("rubato_dataflow_candidates", "Processes that count for a majority, live or not")?,
            losses: counters("rubato_dataflow_losses_total", "Generations that ended, by cause", "cause")?,
            failed_forms: counters("rubato_dataflow_failed_forms_total", "Forms that did not become generations, by reason", "reason")?,
            refused: counters("rubato_dataflow_refused_connections_total", "Connections to the mesh that were refused", "reason")?,
            sent_bytes: register(
                registry,
                IntCounter::new(
                    "rubato_dataflow_mesh_sent_bytes_total",
                    "Bytes of records and progress sent to other processes of a generation",
                )?,
            )?,
            reform_seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("rubato_dataflow_reform_seconds", "From the end of a generation to all connections of the next")
                        .buckets(exponential_buckets(0.01, 2.0, 12)?),
                )?,
            )?,
        })
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
