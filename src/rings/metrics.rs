//! What the rings look like, counted when the metrics are asked for (write-path.md §5.1).

use std::{collections::BTreeMap, sync::Arc};

use prometheus::{
    Gauge, GaugeVec, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use storage::{
    clock::Clock,
    ring::{Rings, State},
};

/// The states of the metrics, all of which are always there.
const STATES: [&str; 5] = ["ACTIVE", "LEAVING", "PENDING", "JOINING", "Unhealthy"];

/// Counts the members of a ring from now on. `own` is the id and the number of tokens of the instance of this process, if it has one.
///
/// # Errors
/// A ring of this name is counted already.
pub(crate) fn observe(
    name: &str,
    rings: Rings,
    own: Option<(String, usize)>,
    clock: Arc<dyn Clock>,
    registry: &Registry,
) -> prometheus::Result<()> {
    let opts = |metric: &str, help: &str| Opts::new(metric, help).const_label("name", name);
    let gauges = |metric: &str, help: &str, labels: &[&str]| IntGaugeVec::new(opts(metric, help), labels);
    let single = |metric: &str, help: &str| Gauge::with_opts(opts(metric, help));
    let counted = Counted {
        members: gauges("tempo_ring_members", "Members of the ring by state.", &["state"])?,
        oldest: GaugeVec::new(opts("tempo_ring_oldest_member_timestamp", "Oldest heartbeat by state."), &["state"])?,
        zones: gauges("tempo_ring_zone_members", "Members of the ring by zone and state.", &["zone", "state"])?,
        tokens: single("tempo_ring_tokens_total", "Tokens in the ring.")?,
        owned: own.is_some().then(|| single("tempo_ring_member_tokens_owned", "Tokens of this instance.")).transpose()?,
        to_own: own.is_some().then(|| single("tempo_ring_member_tokens_to_own", "Tokens that this instance is to have.")).transpose()?,
        rings,
        own,
        clock,
    };
    registry.register(Box::new(counted))
}

struct Counted {
    rings: Rings,
    own: Option<(String, usize)>,
    clock: Arc<dyn Clock>,
    members: IntGaugeVec,
    oldest: GaugeVec,
    zones: IntGaugeVec,
    tokens: Gauge,
    owned: Option<Gauge>,
    to_own: Option<Gauge>,
}

impl Counted {
    fn collectors(&self) -> impl Iterator<Item = &dyn Collector> {
        let always: [&dyn Collector; 4] = [&self.members, &self.oldest, &self.zones, &self.tokens];
        let own = [&self.owned, &self.to_own].into_iter().flatten().map(|gauge| gauge as &dyn Collector);
        always.into_iter().chain(own)
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds and counts")]
    fn count(&self) {
        let (ring, now) = (Arc::clone(&self.rings.borrow()), self.clock.now());
        let mut by_state: BTreeMap<&str, (i64, u64)> = STATES.into_iter().map(|state| (state, (0, 0))).collect();
        let mut by_zone: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for zone in ring.zones() {
            by_zone.extend(STATES.into_iter().map(|state| ((zone.as_str(), state), 0)));
        }
        for instance in ring.instances() {
            let is_fresh = instance.is_fresh(now, ring.settings().heartbeat_timeout);
            let state = if is_fresh || instance.state == State::Left { instance.state.as_str() } else { "Unhealthy" };
            let (count, oldest) = by_state.entry(state).or_default();
            *oldest = if *count == 0 { instance.timestamp } else { instance.timestamp.min(*oldest) };
            *count += 1;
            *by_zone.entry((instance.zone.as_str(), state)).or_default() += 1;
        }
        for (state, (count, oldest)) in by_state {
            self.members.with_label_values(&[state]).set(count);
            self.oldest.with_label_values(&[state]).set(oldest as f64);
        }
        self.zones.reset();
        for ((zone, state), count) in by_zone.into_iter().filter(|((zone, _), _)| !zone.is_empty()) {
            self.zones.with_label_values(&[zone, state]).set(count);
        }
        self.tokens.set(ring.tokens() as f64);
        if let (Some((id, to_own)), Some(owned), Some(wanted)) = (&self.own, &self.owned, &self.to_own) {
            owned.set(ring.instance(id).map_or(0.0, |instance| instance.tokens.len() as f64));
            wanted.set(*to_own as f64);
        }
    }
}

impl Collector for Counted {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.count();
        self.collectors().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::TextEncoder;
    use storage::{
        clock::ManualClock,
        ring::{Instance, Settings},
    };

    use super::*;
    use crate::memberlist::Store;

    #[test]
    fn members_by_state() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Duration::from_secs(10_000)));
        let store = Store::of_one(Arc::clone(&clock));
        let registry = Registry::new();
        for name in ["ingester", "compactor"] {
            observe(name, store.rings(name, Settings::default()), Some(("a".to_owned(), 3)), Arc::clone(&clock), &registry).expect("new");
        }
        let instance = |id: &str, timestamp, state, zone: &str| Instance {
            id: id.to_owned(),
            timestamp,
            state,
            zone: zone.to_owned(),
            tokens: vec![timestamp as u32, 7],
            ..Instance::default()
        };
        store.set_instance("ingester", &instance("a", 9_999, State::Active, "x"));
        store.set_instance("ingester", &instance("b", 9_998, State::Active, "x"));
        store.set_instance("ingester", &instance("c", 5, State::Active, ""));
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for line in [
            "tempo_ring_members{name=\"ingester\",state=\"ACTIVE\"} 2",
            "tempo_ring_members{name=\"ingester\",state=\"Unhealthy\"} 1",
            "tempo_ring_members{name=\"ingester\",state=\"JOINING\"} 0",
            "tempo_ring_members{name=\"compactor\",state=\"ACTIVE\"} 0",
            "tempo_ring_oldest_member_timestamp{name=\"ingester\",state=\"ACTIVE\"} 9998",
            "tempo_ring_zone_members{name=\"ingester\",state=\"ACTIVE\",zone=\"x\"} 2",
            "tempo_ring_tokens_total{name=\"ingester\"} 4",
            "tempo_ring_member_tokens_owned{name=\"ingester\"} 2",
            "tempo_ring_member_tokens_to_own{name=\"ingester\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
