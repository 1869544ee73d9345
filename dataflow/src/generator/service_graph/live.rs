//! The live service graph: what happened lately, taken from the collection as it is committed.
//!
//! The collection counts since for ever, so a window is a difference of two snapshots. Each snapshot is compared with the one before, and
//! what was added is kept by edge in *steps* of five seconds; a window is the sum of its steps.
//!
//! ```text
//!  Snapshots: n ─┐
//!                ├─ difference ─► step of now:  edge ─► requests, failed, durations
//!  n + 1 ────────┘                │
//!                    steps │ … │ … │ … │ … │ now │      a window = Σ of the steps since it began = Graph
//! ```
//!
//! Both snapshots are ordered by series and share what did not change, so a comparison looks at pointers only, except where something
//! happened. Kept are [`MAX_WINDOW`] and, per tenant, [`MAX_SUMS`] sums; when these are used up the oldest steps go, and a [`Graph`]
//! says how far back it reaches. What a series had come to before the process began is not part of any window.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use differential_dataflow::difference::{Abelian as _, IsZero as _, Semigroup as _};
use storage::id::Tenant;

use super::live_view::Graph;
use crate::generator::{Accumulated, Agg, Family, Layout, Series, Snapshot, Weight};

/// The longest window.
pub const MAX_WINDOW: Duration = Duration::from_secs(3600);

/// Windows begin at multiples of this.
pub const STEP: Duration = Duration::from_secs(5);

/// Sums kept for a tenant: 100 edges that are always busy make 720 steps of 100 sums in an hour.
const MAX_SUMS: usize = 100_000;

/// Windows over the service graphs of all tenants.
#[derive(Debug)]
pub struct LiveGraphs {
    /// Series that began in this tick or after it are new; of older ones the first sight is where counting begins.
    since: u64,
    previous: Option<Arc<Snapshot>>,
    /// When the first snapshot was taken.
    began: Duration,
    tenants: HashMap<Tenant, Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    steps: VecDeque<Step>,
    sums: usize,
    /// Nothing before this is known any longer.
    from: Duration,
}

/// What happened in one step.
#[derive(Debug, Default)]
struct Step {
    /// Its begin divided by [`STEP`].
    number: u64,
    edges: HashMap<EdgeName, EdgeSums>,
    unpaired: HashMap<UnpairedName, Weight>,
    overflow: Weight,
}

/// Which edge, whatever dimensions it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EdgeName {
    pub(super) client: Arc<str>,
    pub(super) server: Arc<str>,
    pub(super) connection_type: Arc<str>,
}

/// Side and cause.
pub(super) type UnpairedName = (Arc<str>, Arc<str>);

/// What happened along an edge.
#[derive(Clone, Debug, Default)]
pub(super) struct EdgeSums {
    pub(super) requests: Weight,
    pub(super) failed: Weight,
    pub(super) client: Durations,
    pub(super) server: Durations,
    pub(super) messaging: Durations,
}

/// Durations in buckets, and what the buckets are.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations {
    pub(super) agg: Agg,
    pub(super) layout: Option<Arc<Layout>>,
}

impl Durations {
    /// Adds what came later.
    pub(super) fn add(&mut self, later: &Self) {
        if let Some(layout) = &later.layout {
            self.add_agg(&later.agg, layout);
        }
    }

    /// Where the buckets have changed meanwhile, the new ones count.
    fn add_agg(&mut self, agg: &Agg, layout: &Arc<Layout>) {
        if self.layout.as_ref().is_some_and(|before| Arc::ptr_eq(before, layout) || before == layout) {
            self.agg.plus_equals(agg);
        } else {
            *self = Self { agg: agg.clone(), layout: Some(Arc::clone(layout)) };
        }
    }
}

impl EdgeSums {
    /// Adds what came later.
    pub(super) fn add(&mut self, later: &Self) {
        self.requests.0 += later.requests.0;
        self.failed.0 += later.failed.0;
        self.client.add(&later.client);
        self.server.add(&later.server);
        self.messaging.add(&later.messaging);
    }
}

impl LiveGraphs {
    /// Of a process that began at tick `since`.
    pub fn new(since: u64) -> Self {
        Self { since, previous: None, began: Duration::ZERO, tenants: HashMap::new() }
    }

    /// Takes in the next snapshot.
    pub fn apply(&mut self, snapshot: &Arc<Snapshot>) {
        if self.previous.as_ref().is_some_and(|previous| previous.sequence >= snapshot.sequence) {
            return;
        }
        let (previous, since) = match &self.previous {
            Some(previous) => (&previous.tenants, previous.tick),
            None => {
                self.began = snapshot.at;
                (&HashMap::new(), self.since)
            }
        };
        let number = step_of(snapshot.at);
        for (tenant, series) in &snapshot.tenants {
            let before = previous.get(tenant).map_or(&[][..], |series| series);
            differences(before, series, since, |series, agg| {
                if !self.tenants.contains_key(tenant) {
                    self.tenants.insert(tenant.clone(), Steps::default());
                }
                if let Some(steps) = self.tenants.get_mut(tenant) {
                    steps.add(number, series, agg);
                }
            });
        }
        let oldest = number.saturating_sub(MAX_WINDOW.as_secs() / STEP.as_secs());
        self.tenants.values_mut().for_each(|steps| steps.forget(oldest));
        self.tenants.retain(|_, steps| !steps.steps.is_empty());
        self.previous = Some(Arc::clone(snapshot));
    }

    /// The graph of a tenant over the last `window`, which is rounded up to whole steps and at most [`MAX_WINDOW`].
    pub fn graph(&self, tenant: &Tenant, window: Duration) -> Graph {
        let until = self.previous.as_ref().map_or(Duration::ZERO, |snapshot| snapshot.at);
        let steps = self.tenants.get(tenant);
        let begin = Duration::from_secs(until.saturating_sub(window.min(MAX_WINDOW)).as_secs() / STEP.as_secs() * STEP.as_secs());
        let known = steps.map_or(Duration::ZERO, |steps| steps.from).max(self.began);
        let (mut edges, mut unpaired, mut overflow) = (HashMap::<_, EdgeSums>::new(), HashMap::<_, Weight>::new(), Weight::ZERO);
        let first = step_of(begin);
        for step in steps.into_iter().flat_map(|steps| &steps.steps).filter(|step| step.number >= first) {
            step.edges.iter().for_each(|(name, sums)| edges.entry(name).or_default().add(sums));
            step.unpaired.iter().for_each(|(name, count)| unpaired.entry(name).or_default().0 += count.0);
            overflow.0 += step.overflow.0;
        }
        Graph::new([begin.max(known).min(until), until], edges, unpaired, overflow)
    }
}

fn step_of(time: Duration) -> u64 {
    time.as_secs() / STEP.as_secs()
}

/// What was added to the series of service graphs from one snapshot to the next. Both are ordered by identity.
fn differences(before: &[Arc<Accumulated>], after: &[Arc<Accumulated>], since: u64, mut add: impl FnMut(&Series, &Agg)) {
    let mut before = before.iter().peekable();
    for now in after {
        while before.next_if(|then| then.series < now.series).is_some() {}
        let then = before.next_if(|then| then.series == now.series);
        match then {
            Some(then) if Arc::ptr_eq(then, now) => {}
            _ if !is_of_service_graph(now.series.family()) => {}
            Some(then) if then.first == now.first => {
                let mut difference = then.agg.clone();
                difference.negate();
                difference.plus_equals(&now.agg);
                if !difference.is_zero() {
                    add(&now.series, &difference);
                }
            }
            _ if now.first >= since => add(&now.series, &now.agg),
            _ => {}
        }
    }
}

fn is_of_service_graph(family: Family) -> bool {
    match family {
        Family::ServiceGraphRequests
        | Family::ServiceGraphFailed
        | Family::ServiceGraphClient
        | Family::ServiceGraphServer
        | Family::ServiceGraphMessaging
        | Family::ServiceGraphUnpaired => true,
        Family::SpanMetrics | Family::TargetInfo | Family::HostInfo => false,
    }
}

impl Steps {
    fn add(&mut self, number: u64, series: &Series, agg: &Agg) {
        if self.steps.back().is_none_or(|step| step.number != number) {
            self.steps.push_back(Step { number, ..Step::default() });
        }
        let Some(step) = self.steps.back_mut() else { return };
        let before = step.edges.len() + step.unpaired.len();
        step.add(series, agg);
        self.sums += step.edges.len() + step.unpaired.len() - before;
    }

    /// Lets go of the steps before `oldest`, and of more when there are too many sums.
    fn forget(&mut self, oldest: u64) {
        while let Some(step) = self.steps.front().filter(|step| step.number < oldest || self.sums > MAX_SUMS) {
            self.sums -= step.edges.len() + step.unpaired.len();
            self.from = STEP * u32::try_from(step.number + 1).unwrap_or(u32::MAX);
            self.steps.pop_front();
        }
    }
}

impl Step {
    fn add(&mut self, series: &Series, agg: &Agg) {
        let labels = series.labels().pairs();
        let value =
            |name: &str| labels.iter().find(|(there, _)| **there == *name).map_or_else(|| Arc::from(""), |(_, value)| Arc::clone(value));
        if series.family() == Family::ServiceGraphUnpaired {
            self.unpaired.entry((value("side"), value("cause"))).or_default().0 += agg.count.0;
            return;
        }
        // Where the limits send what they refuse: nobody knows any longer between whom it was.
        if series.labels().get("metric_overflow").is_some() {
            if series.family() == Family::ServiceGraphRequests {
                self.overflow.0 += agg.count.0;
            }
            return;
        }
        let name = EdgeName { client: value("client"), server: value("server"), connection_type: value("connection_type") };
        let sums = self.edges.entry(name).or_default();
        let layout = &series.definition().layout;
        match series.family() {
            Family::ServiceGraphRequests => sums.requests.0 += agg.count.0,
            Family::ServiceGraphFailed => sums.failed.0 += agg.count.0,
            Family::ServiceGraphClient => sums.client.add_agg(agg, layout),
            Family::ServiceGraphServer => sums.server.add_agg(agg, layout),
            _ => sums.messaging.add_agg(agg, layout),
        }
    }
}
