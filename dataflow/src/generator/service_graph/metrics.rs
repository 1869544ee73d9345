//! What Tempo's processor counts about itself, under Tempo's names. These count since the process began; the exact numbers are in the
//! collection.

use prometheus::{IntCounterVec, Opts, Registry};
use storage::id::Tenant;

use super::Counts;

/// Counters of all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    edges: IntCounterVec,
    expired_edges: IntCounterVec,
    dropped_spans: IntCounterVec,
    dropped_edges: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["tenant"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        Ok(Self {
            edges: counter("tempo_metrics_generator_processor_service_graphs_edges", "Edges begun.")?,
            expired_edges: counter(
                "tempo_metrics_generator_processor_service_graphs_expired_edges",
                "Edges whose other half did not come in time and could not be guessed.",
            )?,
            dropped_spans: counter(
                "tempo_metrics_generator_processor_service_graphs_dropped_spans",
                "Spans refused because too many halves waited.",
            )?,
            dropped_edges: counter(
                "tempo_metrics_generator_processor_service_graphs_dropped_edges",
                "Edges that were none because filter policies reject one of their halves.",
            )?,
        })
    }

    /// Adds what has happened to one tenant on one worker.
    pub fn add(&self, tenant: &Tenant, counts: Counts) {
        let tenant = tenant.as_str();
        for (counter, count) in [
            (&self.edges, counts.edges),
            (&self.expired_edges, counts.expired_edges),
            (&self.dropped_spans, counts.dropped_spans),
            (&self.dropped_edges, counts.dropped_edges),
        ] {
            if count > 0 {
                counter.with_label_values(&[tenant]).inc_by(count);
            }
        }
    }
}
