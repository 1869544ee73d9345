//! The metrics of membership. The names that dashboards know are Tempo's (write-path.md §5.7).

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) members: IntGauge,
    pub(super) rings: IntGauge,
    pub(super) received: IntCounter,
    pub(super) pushes: IntCounter,
    pub(super) pulls: IntCounter,
    pub(super) failures: IntCounter,
    pub(super) refused_entries: IntCounterVec,
    pub(super) refused_connections: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let by_reason = |name: &str, help: &str| -> prometheus::Result<IntCounterVec> {
            let counter = IntCounterVec::new(Opts::new(name, help), &["reason"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        // Nothing is queued and nobody is suspected here, which is what 0 says on the dashboards.
        gauge("tempo_memberlist_client_cluster_node_health_score", "Health of this member; 0 is healthy.")?;
        gauge("tempo_memberlist_client_messages_in_broadcast_queue", "Messages that wait to be sent.")?;
        Ok(Self {
            members: gauge("tempo_memberlist_client_cluster_members_count", "Members that are alive.")?,
            rings: gauge("tempo_memberlist_client_kv_store_count", "Rings that are known.")?,
            received: counter("tempo_memberlist_client_received_broadcasts_total", "Entries that were news.")?,
            pushes: counter("tempo_memberlist_client_state_pushes_total", "Exchanges that this member began.")?,
            pulls: counter("tempo_memberlist_client_state_pulls_total", "Exchanges that others began.")?,
            failures: counter("rubato_memberlist_exchange_failures_total", "Exchanges that failed.")?,
            refused_entries: by_reason("rubato_memberlist_refused_entries_total", "Entries of peers that were refused.")?,
            refused_connections: by_reason("rubato_memberlist_refused_connections_total", "Connections that were refused.")?,
        })
    }
}
