//! Accumulating: the sum of all differences of each series, its limits and its end.
//!
//! ```text
//!  (Series, tick, Agg), in the order of ticks ──► admitted? ──► series ─► Accumulated { agg, first, last }
//!                                                  │ no: the same with fewer labels, or the overflow series of its metric
//!  checkpoint(tick) ──► what was not observed for `stale` ticks goes ──► shard: all that is left
//! ```
//!
//! Plain state of one worker, no timely. What a shard holds is shared with this state until it changes, so a checkpoint costs a pointer
//! for each series, and a copy for those that change before it is written.
//!
//! *Limits.* A tenant with a limit has all of its series on one worker (see [`Routes`]), which admits them in the order of ticks, and
//! within a tick by identity: who is admitted does not depend on the number of workers. Refused observations are not lost, they count in
//! the series `{metric_overflow="true"}` of their metric; a label with too many values gets `__cardinality_overflow__` instead.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use differential_dataflow::difference::{IsZero, Semigroup};
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use storage::id::Tenant;

use super::{
    agg::Agg,
    demand::{Demand, PERIODS, Union},
    metrics::Metrics,
    series::{Definition, Family, Labels, Layout, Series, SeriesId},
    settings::{Common, Tenants},
    snapshot::{Accumulated, Exemplar},
};
use crate::seat::Workers;

type Map<K, V> = HashMap<K, V, RandomState>;

/// Which tenants have all of their series on one worker: those that have a limit when their first series comes. Decided once in a
/// generation, for all workers of the process.
#[derive(Clone, Debug)]
pub struct Routes {
    source: Arc<dyn Tenants>,
    workers: Workers,
    decided: Arc<Mutex<HashMap<Tenant, bool>>>,
    /// The same as far as this worker has asked.
    known: Map<Tenant, bool>,
}

impl Routes {
    /// Nothing is decided yet; series belong to these workers.
    pub fn new(source: Arc<dyn Tenants>, workers: Workers) -> Self {
        Self { source, workers, decided: Arc::default(), known: Map::default() }
    }

    fn is_limited(&mut self, tenant: &Tenant) -> bool {
        if let Some(limited) = self.known.get(tenant) {
            return *limited;
        }
        let limited = *self.decided.lock().entry(tenant.clone()).or_insert_with(|| {
            self.source.settings(tenant).is_some_and(|settings| {
                let Common { max_active_series, max_active_entities, max_cardinality_per_label, .. } = settings.common;
                max_active_series > 0 || max_active_entities > 0 || max_cardinality_per_label > 0
            })
        });
        self.known.insert(tenant.clone(), limited);
        limited
    }

    /// The index of the worker to whom a series belongs.
    pub fn of(&mut self, series: &Series) -> u64 {
        let hash = if self.is_limited(series.tenant()) {
            BuildHasherDefault::<DefaultHasher>::default().hash_one(series.tenant())
        } else {
            series.name_hash()
        };
        self.workers.of(hash)
    }
}

/// How many series in Tempo's sense one of ours is.
fn cost(family: Family, layout: &Layout) -> u64 {
    let classic = layout.classic.as_ref().map_or(0, |bounds| bounds.len() as u64 + 3);
    let histogram = classic + u64::from(layout.native.is_some());
    match family {
        Family::SpanMetrics => {
            let parts = layout.parts;
            u64::from(parts.count) + u64::from(parts.size) + if parts.latency { histogram } else { 0 }
        }
        Family::ServiceGraphClient | Family::ServiceGraphServer | Family::ServiceGraphMessaging => histogram,
        Family::TargetInfo | Family::HostInfo | Family::ServiceGraphRequests | Family::ServiceGraphFailed => 1,
        Family::ServiceGraphUnpaired => 0,
    }
}

/// What a tenant's series amount to.
#[derive(Debug, Default)]
struct Usage {
    cost: u64,
    /// Label sets, by hash, with how many series have them: `max_active_entities` counts them.
    entities: HashMap<u64, usize>,
    /// By label: its values, with how many series have them. Kept only for tenants with `max_cardinality_per_label`.
    values: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    demand: Demand,
    /// What this worker adds to the gauges of demand: series and label sets.
    shown: (u64, u64),
    /// When the log last said that a limit is reached.
    warned: Option<Instant>,
}

/// The log says at most this often that a limit is reached.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// See the module documentation.
#[derive(Debug)]
pub struct Accumulator {
    source: Arc<dyn Tenants>,
    metrics: Arc<Metrics>,
    routes: Routes,
    stale: u64,
    series: Map<SeriesId, Arc<Accumulated>>,
    /// The series that has a name now: one whose layout has changed takes the place of its predecessor.
    names: Map<u64, SeriesId>,
    usage: HashMap<Tenant, Usage>,
    /// Where the observations of refused series go, as of the current tick.
    redirected: Map<SeriesId, Series>,
    tick: u64,
    swept: u64,
    changed: bool,
}

impl Accumulator {
    /// Begins with what the generations before have come to; `stale` ticks without an observation end a series.
    pub fn new(
        source: Arc<dyn Tenants>,
        routes: Routes,
        metrics: Arc<Metrics>,
        stale: u64,
        restored: impl IntoIterator<Item = Accumulated>,
    ) -> Self {
        let mut accumulator = Self {
            source,
            metrics,
            routes,
            stale: stale.max(1),
            series: Map::default(),
            names: Map::default(),
            usage: HashMap::new(),
            redirected: Map::default(),
            tick: 0,
            swept: 0,
            changed: false,
        };
        for accumulated in restored {
            let series = accumulated.series.clone();
            accumulator.admit(&series);
            accumulator.series.insert(series.id(), Arc::new(accumulated));
        }
        accumulator
    }

    /// What was observed of some series in one tick; ticks do not go back.
    pub fn apply(&mut self, mut updates: Vec<(Series, Agg)>, tick: u64) {
        if tick != self.tick {
            self.tick = tick;
            self.redirected.clear();
        }
        self.changed |= !updates.is_empty();
        // New series are admitted in this order.
        updates.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (series, agg) in updates {
            if !self.add_to_known(series.id(), &agg, tick) {
                let target = self.target(series);
                self.add(target, &agg, tick);
            }
        }
    }

    /// Adds to a series that is there, if it is.
    fn add_to_known(&mut self, id: SeriesId, agg: &Agg, tick: u64) -> bool {
        let Some(there) = self.series.get_mut(&id) else { return false };
        let there = Arc::make_mut(there);
        there.agg.plus_equals(agg);
        there.last = there.last.max(tick);
        true
    }

    fn add(&mut self, series: Series, agg: &Agg, tick: u64) {
        let id = series.id();
        if self.add_to_known(id, agg, tick) {
            return;
        }
        self.admit(&series);
        self.metrics.series_added.with_label_values(&[series.tenant().as_str()]).inc_by(cost(series.family(), series.layout()));
        let accumulated = Accumulated { series, agg: agg.clone(), first: tick, last: tick, exemplars: Vec::new() };
        self.series.insert(id, Arc::new(accumulated));
    }

    /// The series in which a new series counts: itself unless a limit stands in the way.
    fn target(&mut self, series: Series) -> Series {
        if let Some(target) = self.redirected.get(&series.id()) {
            return target.clone();
        }
        let tenant = series.tenant().clone();
        let Some(settings) = self.source.settings(&tenant) else { return series };
        let common = &settings.common;
        if common.max_active_series == 0 && common.max_active_entities == 0 && common.max_cardinality_per_label == 0 {
            return series;
        }
        let id = series.id();
        let mut target = series;
        if let Some(labels) = self.within_cardinality(&target, common.max_cardinality_per_label) {
            self.metrics.labels_limited.with_label_values(&[tenant.as_str()]).inc();
            target = Series::new(Definition { labels, ..target.definition().clone() });
        }
        if !self.series.contains_key(&target.id()) && self.is_full(&target, common) {
            self.refuse(&target, common);
            let labels = Labels::new(vec![("metric_overflow".into(), "true".into())]);
            target = Series::new(Definition { labels, ..target.definition().clone() });
        }
        if target.id() != id {
            self.redirected.insert(id, target.clone());
        }
        target
    }

    /// Books a series that a limit keeps out.
    fn refuse(&mut self, series: &Series, common: &Common) {
        let (tenant, cost) = (series.tenant().as_str(), cost(series.family(), series.layout()));
        self.metrics.series_limited.with_label_values(&[tenant]).inc_by(cost);
        if common.max_active_entities > 0 {
            self.metrics.entities_limited.with_label_values(&[tenant]).inc();
        }
        let period = self.tick / self.period();
        let usage = self.usage.entry(series.tenant().clone()).or_default();
        usage.demand.refuse(period, cost, series.id(), entity(series));
        if usage.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            usage.warned = Some(Instant::now());
            let Common { max_active_series, max_active_entities, .. } = common;
            let (active_series, active_entities) = (usage.cost, usage.entities.len());
            tracing::warn!(tenant, active_series, max_active_series, active_entities, max_active_entities, "reached max active series");
        }
    }

    /// Ticks in a period of demand.
    fn period(&self) -> u64 {
        self.stale.div_ceil(PERIODS)
    }

    fn is_full(&mut self, series: &Series, common: &Common) -> bool {
        let cost = cost(series.family(), series.layout());
        if cost == 0 || is_overflow(series) {
            return false;
        }
        // A tenant that got its limit after its series were spread is given an equal part on each worker.
        let workers = self.routes.workers.count() as u64;
        let share = |limit: u64, limited| if limited { limit } else { limit.div_ceil(workers) };
        let limited = self.routes.is_limited(series.tenant());
        let (series_limit, entity_limit) = (share(common.max_active_series, limited), share(common.max_active_entities, limited));
        let Some(usage) = self.usage.get(series.tenant()) else { return series_limit != 0 && cost > series_limit };
        let entity_is_new = !usage.entities.contains_key(&entity(series));
        (series_limit != 0 && usage.cost + cost > series_limit)
            || (entity_limit != 0 && entity_is_new && usage.entities.len() as u64 >= entity_limit)
    }

    /// Labels with `__cardinality_overflow__` where a value would be one too many; `None` if that is nowhere.
    fn within_cardinality(&self, series: &Series, limit: u64) -> Option<Labels> {
        if limit == 0 {
            return None;
        }
        let usage = self.usage.get(series.tenant())?;
        let too_many = |name: &Arc<str>, value: &Arc<str>| {
            let values = usage.values.get(name);
            values.is_some_and(|values| !values.contains_key(value) && values.len() as u64 >= limit)
        };
        let pairs = series.labels().pairs();
        pairs.iter().any(|(name, value)| too_many(name, value)).then(|| {
            let overflow: Arc<str> = CARDINALITY_OVERFLOW.into();
            pairs
                .iter()
                .map(|(name, value)| (Arc::clone(name), Arc::clone(if too_many(name, value) { &overflow } else { value })))
                .collect()
        })
    }

    /// A series is there from now on.
    fn admit(&mut self, series: &Series) {
        let before = self.names.insert(series.name_hash(), series.id()).filter(|before| *before != series.id());
        if let Some(before) = before.and_then(|before| self.series.get(&before)).filter(|before| before.series.is_named_as(series)) {
            let before = before.series.clone();
            self.remove(&before);
        }
        self.count(series, true);
    }

    fn remove(&mut self, series: &Series) {
        self.series.remove(&series.id());
        if self.names.get(&series.name_hash()) == Some(&series.id()) {
            self.names.remove(&series.name_hash());
        }
        self.metrics.series_removed.with_label_values(&[series.tenant().as_str()]).inc_by(cost(series.family(), series.layout()));
        self.count(series, false);
        self.changed = true;
    }

    /// Books a series that comes, or one that goes.
    fn count(&mut self, series: &Series, comes: bool) {
        if is_overflow(series) {
            return;
        }
        let cost = cost(series.family(), series.layout());
        let keeps_values = self.source.settings(series.tenant()).is_some_and(|settings| settings.common.max_cardinality_per_label > 0);
        let usage = self.usage.entry(series.tenant().clone()).or_default();
        usage.cost = if comes { usage.cost + cost } else { usage.cost.saturating_sub(cost) };
        let entity_changes = cost > 0 && adjust(&mut usage.entities, entity(series), comes);
        for (name, value) in series.labels().pairs() {
            // The stand-in for all others takes nobody's place.
            let stands_for_itself = &**value != CARDINALITY_OVERFLOW;
            match usage.values.get_mut(name) {
                Some(values) if stands_for_itself => {
                    adjust(values, Arc::clone(value), comes);
                }
                None if stands_for_itself && comes && keeps_values => {
                    usage.values.insert(Arc::clone(name), HashMap::from([(Arc::clone(value), 1)]));
                }
                _ => {}
            }
        }
        let tenant = [series.tenant().as_str()];
        self.metrics.active_series.with_label_values(&tenant).add(if comes { signed(cost) } else { -signed(cost) });
        if entity_changes {
            self.metrics.active_entities.with_label_values(&tenant).add(if comes { 1 } else { -1 });
            let counter = if comes { &self.metrics.entities_added } else { &self.metrics.entities_removed };
            counter.with_label_values(&tenant).inc();
        }
    }

    /// Shows limits and demand of all tenants that have series here.
    fn show_demand(&mut self, tick: u64) {
        let period = tick / self.period();
        let mut limited: HashMap<Tenant, Union> = HashMap::new();
        for (tenant, usage) in &mut self.usage {
            if usage.demand.forget(period) {
                limited.insert(tenant.clone(), usage.demand.union());
            }
        }
        if !limited.is_empty() {
            for series in self.series.values().map(|there| &there.series).filter(|series| !is_overflow(series)) {
                let cost = cost(series.family(), series.layout());
                if let Some(union) = limited.get_mut(series.tenant()).filter(|_| cost > 0) {
                    union.add(cost, series.id(), entity(series));
                }
            }
        }
        for (tenant, usage) in &mut self.usage {
            let active = (usage.cost, usage.entities.len() as u64);
            let wanted = limited.get(tenant).map_or(active, |union| {
                let (series, entities) = union.estimate();
                (series.max(active.0), entities.max(active.1))
            });
            self.metrics.show_demand(tenant, std::mem::replace(&mut usage.shown, wanted), wanted);
            let limits = self.source.settings(tenant).map(|settings| settings.common.clone()).unwrap_or_default();
            self.metrics.max_active_series.with_label_values(&[tenant.as_str()]).set(signed(limits.max_active_series));
            self.metrics.max_active_entities.with_label_values(&[tenant.as_str()]).set(signed(limits.max_active_entities));
        }
    }

    /// Remembers an example; of those that come for one bucket, the last one.
    pub fn exemplar(&mut self, series: &Series, exemplar: Exemplar) {
        let id = self.redirected.get(&series.id()).map_or(series.id(), Series::id);
        let Some(there) = self.series.get_mut(&id) else { return };
        let exemplars = &mut Arc::make_mut(there).exemplars;
        match exemplars.binary_search_by_key(&exemplar.bucket, |there| there.bucket) {
            Ok(index) => exemplars[index] = exemplar,
            Err(index) => exemplars.insert(index, exemplar),
        }
    }

    /// Everything as of `tick`, up to which everything has been applied, and whether anything has changed since the last call. Series that
    /// are stale go first; that is looked at sixteen times in the time that makes them so.
    pub fn checkpoint(&mut self, tick: u64) -> (Vec<Arc<Accumulated>>, bool) {
        let sweep = tick / (self.stale / 16).max(1);
        if sweep != self.swept {
            self.swept = sweep;
            let is_stale = |accumulated: &&Arc<Accumulated>| tick.saturating_sub(accumulated.last) > self.stale;
            let stale: Vec<Series> = self.series.values().filter(is_stale).map(|accumulated| accumulated.series.clone()).collect();
            stale.iter().for_each(|series| self.remove(series));
        }
        self.show_demand(tick);
        let shown = self.series.values().filter(|accumulated| !accumulated.agg.is_zero());
        (shown.map(Arc::clone).collect(), std::mem::take(&mut self.changed))
    }
}

impl Drop for Accumulator {
    /// What this worker showed in gauges goes with it.
    fn drop(&mut self) {
        for (tenant, usage) in &self.usage {
            self.metrics.active_series.with_label_values(&[tenant.as_str()]).sub(signed(usage.cost));
            self.metrics.active_entities.with_label_values(&[tenant.as_str()]).sub(signed(usage.entities.len() as u64));
            self.metrics.show_demand(tenant, usage.shown, (0, 0));
        }
    }
}

/// The value of a label that has too many.
pub(crate) const CARDINALITY_OVERFLOW: &str = "__cardinality_overflow__";

/// One more, or one less, under a key; what comes to nothing is gone. Whether a key has come or gone.
fn adjust<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K, more: bool) -> bool {
    match counts.entry(key) {
        Entry::Occupied(mut there) if more => {
            *there.get_mut() += 1;
            false
        }
        Entry::Occupied(there) if *there.get() <= 1 => {
            there.remove();
            true
        }
        Entry::Occupied(mut there) => {
            *there.get_mut() -= 1;
            false
        }
        Entry::Vacant(vacant) if more => {
            vacant.insert(1);
            true
        }
        Entry::Vacant(_) => false,
    }
}

/// A sum as a gauge has it.
fn signed(sum: u64) -> i64 {
    i64::try_from(sum).unwrap_or(i64::MAX)
}

fn is_overflow(series: &Series) -> bool {
    series.labels().pairs().len() == 1 && series.labels().get("metric_overflow") == Some("true")
}

/// A label set, whatever metric it belongs to.
fn entity(series: &Series) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(series.labels())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generator::{
        Parts, Weight,
        settings::{Fixed, Settings},
    };

    fn accumulator(common: Common) -> Accumulator {
        let source: Arc<dyn Tenants> =
            Arc::new(Fixed { default: Some(Arc::new(Settings { common, ..Settings::default() })), ..Fixed::default() });
        let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).expect("nothing is registered"));
        Accumulator::new(Arc::clone(&source), Routes::new(source, Workers::new([0])), metrics, 16, [])
    }

    fn series(name: &str, bounds: &[f64]) -> Series {
        let labels = Labels::new(vec![("service".into(), "a".into()), ("span_name".into(), name.into())]);
        let layout = Layout { parts: Parts::ALL, classic: Some(bounds.into()), native: None };
        Series::new(Definition { tenant: Tenant::single(), family: Family::SpanMetrics, labels, layout: Arc::new(layout) })
    }

    fn one(series: Series) -> (Series, Agg) {
        (series, Agg::counted(Weight::ONE))
    }

    #[test]
    fn costs_are_tempos() {
        assert_eq!(cost(Family::SpanMetrics, series("a", &[0.1; 14]).layout()), 19);
        assert_eq!(cost(Family::TargetInfo, &Layout::COUNTER), 1);
        assert_eq!(cost(Family::ServiceGraphClient, &Layout { native: Some(3), ..series("a", &[0.1; 8]).layout().clone() }), 12);
    }

    #[test]
    fn other_buckets_take_the_place_of_those_before() {
        let mut accumulator = accumulator(Common::default());
        let (old, new) = (series("a", &[0.1]), series("a", &[0.1, 0.2]));
        accumulator.apply(vec![one(old), one(series("b", &[0.1]))], 1);
        accumulator.apply(vec![one(new.clone())], 2);
        let (shown, changed) = accumulator.checkpoint(2);
        assert!(changed);
        assert_eq!(
            shown.iter().filter(|there| there.series.labels() == new.labels()).map(|there| &there.series).collect::<Vec<_>>(),
            [&new]
        );
        assert_eq!(shown.len(), 2);
        assert!(!accumulator.checkpoint(3).1, "nothing has changed since");
    }

    #[test]
    fn demand_is_what_there_would_be_without_the_limit() {
        let mut accumulator = accumulator(Common { max_active_series: 5 * 4, ..Common::default() });
        let metrics = Arc::clone(&accumulator.metrics);
        let gauges = || {
            let gauges = [&metrics.active_series, &metrics.max_active_series, &metrics.series_demand, &metrics.entity_demand];
            gauges.map(|gauge| gauge.with_label_values(&[Tenant::SINGLE]).get())
        };
        let wanted = |names: std::ops::Range<u32>| names.map(|name| one(series(&name.to_string(), &[]))).collect::<Vec<_>>();
        accumulator.apply(wanted(0..3), 1);
        accumulator.checkpoint(1);
        assert_eq!(gauges(), [15, 20, 15, 3], "without refusals it is exact");
        for tick in 2..6 {
            accumulator.apply(wanted(0..40), tick);
        }
        accumulator.checkpoint(6);
        let [active, _, series, entities] = gauges();
        assert_eq!(active, 20);
        assert!((195..=205).contains(&series) && (39..=41).contains(&entities), "{series} {entities}");
        accumulator.apply(wanted(0..3), 21);
        accumulator.checkpoint(30);
        assert_eq!(gauges(), [15, 20, 15, 3], "demand ends when nobody asks");
        assert_eq!(metrics.entities_added.with_label_values(&[Tenant::SINGLE]).get(), 4);
        assert_eq!(metrics.entities_removed.with_label_values(&[Tenant::SINGLE]).get(), 1);
        drop(accumulator);
        assert_eq!(gauges(), [0, 20, 0, 0]);
    }

    #[test]
    fn what_ends_makes_room() {
        let mut accumulator = accumulator(Common { max_active_entities: 1, ..Common::default() });
        accumulator.apply(vec![one(series("a", &[0.1]))], 1);
        accumulator.apply(vec![one(series("b", &[0.1]))], 2);
        let names = |accumulator: &mut Accumulator, tick| {
            let shown = accumulator.checkpoint(tick).0;
            let name = |there: &Arc<Accumulated>| there.series.labels().get("span_name").unwrap_or("overflow").to_owned();
            let mut names: Vec<String> = shown.iter().map(name).collect();
            names.sort();
            names
        };
        assert_eq!(names(&mut accumulator, 3), ["a", "overflow"]);
        assert_eq!(names(&mut accumulator, 40), [""; 0]);
        accumulator.apply(vec![one(series("b", &[0.1]))], 41);
        assert_eq!(names(&mut accumulator, 41), ["b"]);
        assert_eq!(accumulator.usage[&Tenant::single()].entities.len(), 1);
    }

    proptest! {
        /// Whatever comes in whatever order within a tick: the same are admitted, nothing is lost, and the limit holds.
        #[test]
        fn limits_do_not_depend_on_the_order_within_a_tick(
            ticks in prop::collection::vec(prop::collection::vec(0..40u32, 0..30), 1..8),
            limit in 1..40u64,
            labels in 0..6u64,
            order in any::<bool>(),
        ) {
            let common = Common { max_active_series: limit, max_cardinality_per_label: labels, ..Common::default() };
            let (mut this, mut other) = (accumulator(common.clone()), accumulator(common));
            for (tick, names) in ticks.iter().enumerate() {
                let updates: Vec<_> = names.iter().map(|name| one(series(&name.to_string(), &[]))).collect();
                let mut reordered = updates.clone();
                if order { reordered.reverse() } else { reordered.rotate_left(updates.len() / 2) }
                this.apply(updates, tick as u64);
                other.apply(reordered, tick as u64);
                let (shown, _) = this.checkpoint(tick as u64);
                let cost: u64 =
                    shown.iter().filter(|there| !is_overflow(&there.series)).map(|there| cost(there.series.family(), there.series.layout())).sum();
                prop_assert!(cost <= limit);
                prop_assert_eq!(this.usage.get(&Tenant::single()).map_or(0, |usage| usage.cost), cost);
                if labels > 0 {
                    let names: std::collections::HashSet<_> = shown.iter().filter_map(|there| there.series.labels().get("span_name")).collect();
                    prop_assert!(names.len() as u64 <= labels + 1);
                }
            }
            let sums = |accumulator: &mut Accumulator| {
                let sums = accumulator.checkpoint(10).0.into_iter().map(|there| (there.series.id(), there.agg.count));
                sums.collect::<std::collections::BTreeMap<_, _>>()
            };
            let (this, other) = (sums(&mut this), sums(&mut other));
            prop_assert_eq!(this.values().map(|count| count.0).sum::<i128>(), Weight::ONE.0 * ticks.iter().flatten().count() as i128);
            prop_assert_eq!(this, other);
        }
    }
}
