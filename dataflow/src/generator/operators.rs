//! The generator's operators: [`Observer`] and [`Accumulator`] wired into the dataflow, with a differential arrangement between them.
//!
//! ```text
//!  first seen ──Pipeline──► Observe ──(Series, tick, Agg)──► arrange, Exchange(route) ──Pipeline──► Accumulate
//!                             │ └─────(Series, Exemplar)─────────────────────────────Exchange(route)──► │
//!                             └─ identities, halves ─────────────────────► Shard ◄──────────────────────┘ series
//! ```
//!
//! Both operators apply everything strictly in the order of ticks: what comes early waits. So what they report as of a checkpoint tick is
//! exactly what arrived up to it, on every worker. Nobody looks at series between two checkpoints, so what the spans of all ticks up to a
//! checkpoint add to a series is one update, at its tick. Nobody keeps the arrangement's trace, so it holds what its batcher has not sealed.

use std::{collections::BTreeMap, iter, mem, sync::Arc};

use differential_dataflow::{
    operators::arrange::arrangement::arrange_core,
    trace::implementations::{KeyBatcher, KeySpine},
};
use storage::segment::Segment;
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        Scope, StreamVec,
        channels::pact::{Exchange, Pipeline},
        operators::{
            Capability, Concat,
            generic::{OutputBuilder, builder_rc::OperatorBuilder},
        },
    },
};

use super::{
    accumulate::{Accumulator, Routes},
    agg::Agg,
    checkpoint::{Part, Shard},
    observe::Observer,
    series::Series,
    snapshot::Exemplar,
};
use crate::feed::checkpoint_before;

/// A segment whose spans were seen for the first time, and when its record arrived, in Unix nanoseconds.
pub(crate) type Arrival = (Arc<Segment>, u64);

type Update = ((Series, ()), u64, Agg);
type Example = (Series, Exemplar);

/// What the first operator gives to the second one and to the commit.
struct Observed<'scope> {
    updates: StreamVec<'scope, u64, Update>,
    exemplars: StreamVec<'scope, u64, Example>,
    shards: StreamVec<'scope, u64, Shard>,
}

/// What arrived during one tick.
#[derive(Default)]
struct Tick {
    updates: Vec<(Series, Agg)>,
    exemplars: Vec<Example>,
}

/// When checkpoints are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpoints {
    pub(crate) every: u64,
    /// None before this tick.
    pub(crate) start: u64,
}

impl Checkpoints {
    /// The last checkpoint that need not be reported.
    pub(crate) fn before(self) -> u64 {
        checkpoint_before(self.start, self.every)
    }

    /// What is to be reported when time has come to `frontier`, and was reported up to `last`. After a leap only the last few: others leap
    /// differently, and some of the same ticks must be reported by all.
    pub(crate) fn due(self, last: &mut u64, frontier: u64) -> impl Iterator<Item = u64> {
        const FEW: u64 = 4;
        let newest = checkpoint_before(frontier, self.every);
        let first = (*last + self.every).max(newest.saturating_sub((FEW - 1) * self.every));
        *last = newest.max(*last);
        (first..=newest).step_by(usize::try_from(self.every).unwrap_or(usize::MAX))
    }
}

/// Attaches the generator to `first_seen`. Its output is what a commit needs of it.
pub(crate) fn attach<'scope>(
    scope: Scope<'scope, u64>,
    first_seen: StreamVec<'scope, u64, Arrival>,
    observer: Observer,
    accumulator: Accumulator,
    routes: &Routes,
    checkpoints: Checkpoints,
) -> StreamVec<'scope, u64, Shard> {
    let Observed { updates, exemplars, shards } = observe(scope, first_seen, observer, checkpoints);
    let mut route = routes.clone();
    let pact = Exchange::new(move |((series, ()), _, _): &Update| route.of(series));
    let arranged = arrange_core::<_, _, _, KeySpine<Series, u64, Agg>>(updates, pact, "Series", KeyBatcher::new);
    let differences = arranged.as_collection(|series, ()| series.clone()).inner;
    let accumulated = accumulate(scope, differences, exemplars, accumulator, routes.clone(), checkpoints);
    shards.concat(accumulated)
}

fn observe<'scope>(
    scope: Scope<'scope, u64>,
    first_seen: StreamVec<'scope, u64, Arrival>,
    mut observer: Observer,
    checkpoints: Checkpoints,
) -> Observed<'scope> {
    let mut builder = OperatorBuilder::new("Observe".to_owned(), scope);
    let mut input = builder.new_input(first_seen, Pipeline);
    let (updates, update_stream) = builder.new_output();
    let (exemplars, exemplar_stream) = builder.new_output();
    let (shards, shard_stream) = builder.new_output();
    let mut updates = OutputBuilder::<_, CapacityContainerBuilder<Vec<Update>>>::from(updates);
    let mut exemplars = OutputBuilder::<_, CapacityContainerBuilder<Vec<Example>>>::from(exemplars);
    let mut shards = OutputBuilder::<_, CapacityContainerBuilder<Vec<Shard>>>::from(shards);
    let mut last_report = checkpoints.before();
    // What came before its tick could be worked on.
    let mut waiting: BTreeMap<u64, Vec<Arrival>> = BTreeMap::new();

    builder.build(move |capabilities| {
        let mut capabilities: Option<[Capability<u64>; 3]> = capabilities.try_into().ok();
        move |frontiers| {
            input.for_each(|time, arrivals| {
                waiting.entry(time.least().copied().unwrap_or_default()).or_default().append(arrivals);
            });
            let frontier = frontiers[0].frontier().first().copied();
            let Some(held) = capabilities.as_mut() else { return };
            let (mut updates, mut exemplars, mut shards) = (updates.activate(), exemplars.activate(), shards.activate());
            let observe = |observer: &mut Observer, waiting: &mut BTreeMap<u64, Vec<Arrival>>, tick: u64| {
                let later = tick.checked_add(1).map_or_else(BTreeMap::new, |next| waiting.split_off(&next));
                for (tick, arrivals) in mem::replace(waiting, later) {
                    arrivals.iter().for_each(|(segment, at)| observer.push(segment, *at, tick));
                }
            };
            // Hands out what all that arrived up to `tick`, which nothing can follow, has come to since this was last done.
            let mut settle =
                |observer: &mut Observer, waiting: &mut BTreeMap<u64, Vec<Arrival>>, held: &[Capability<u64>; 3], tick: u64| {
                    observe(observer, waiting, tick);
                    let at = (held[0].delayed(&tick.max(*held[0].time())), held[1].delayed(&tick.max(*held[1].time())));
                    let (mut updates, mut exemplars) = (updates.session(&at.0), exemplars.session(&at.1));
                    let emit = |series, agg| updates.give(((series, ()), *at.0.time(), agg));
                    observer.finish(tick, emit, |exemplar| exemplars.give(exemplar));
                };
            let Some(frontier) = frontier else {
                let last = waiting.last_key_value().map_or(0, |(tick, _)| *tick).max(*held[0].time());
                settle(&mut observer, &mut waiting, held, last);
                capabilities = None;
                return;
            };
            for due in checkpoints.due(&mut last_report, frontier) {
                settle(&mut observer, &mut waiting, held, due);
                shards.session(&held[2]).give(Shard { tick: due, part: observer.checkpoint() });
            }
            // What is there already is worked on while it is fresh in the caches.
            observe(&mut observer, &mut waiting, frontier);
            held.iter_mut().for_each(|capability| capability.downgrade(&frontier));
        }
    });
    Observed { updates: update_stream, exemplars: exemplar_stream, shards: shard_stream }
}

fn accumulate<'scope>(
    scope: Scope<'scope, u64>,
    differences: StreamVec<'scope, u64, (Series, u64, Agg)>,
    exemplars: StreamVec<'scope, u64, Example>,
    mut accumulator: Accumulator,
    mut routes: Routes,
    checkpoints: Checkpoints,
) -> StreamVec<'scope, u64, Shard> {
    let mut builder = OperatorBuilder::new("Accumulate".to_owned(), scope);
    let mut differences = builder.new_input(differences, Pipeline);
    let mut exemplars = builder.new_input(exemplars, Exchange::new(move |(series, _): &Example| routes.of(series)));
    let (shards, shard_stream) = builder.new_output();
    let mut shards = OutputBuilder::<_, CapacityContainerBuilder<Vec<Shard>>>::from(shards);
    let mut last_report = checkpoints.before();
    let mut waiting: BTreeMap<u64, Tick> = BTreeMap::new();

    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |frontiers| {
            differences.for_each(|_, updates| {
                let mut updates = updates.drain(..).peekable();
                while let Some((_, tick, _)) = updates.peek() {
                    let tick = *tick;
                    let of_tick = &mut waiting.entry(tick).or_default().updates;
                    of_tick.extend(iter::from_fn(|| updates.next_if(|next| next.1 == tick)).map(|(series, _, agg)| (series, agg)));
                }
            });
            exemplars.for_each(|time, exemplars| {
                waiting.entry(time.least().copied().unwrap_or_default()).or_default().exemplars.append(exemplars);
            });
            let Some(held) = capability.as_mut() else { return };
            let mut settle = |accumulator: &mut Accumulator, next: u64| {
                let later = waiting.split_off(&next);
                for (tick, Tick { updates, exemplars }) in mem::replace(&mut waiting, later) {
                    accumulator.apply(updates, tick);
                    exemplars.iter().for_each(|(series, exemplar)| accumulator.exemplar(series, *exemplar));
                }
            };
            // The smaller of the two; an input that has ended stands in nobody's way.
            let frontier = frontiers.iter().filter_map(|frontier| frontier.frontier().first().copied()).min();
            let Some(frontier) = frontier else {
                settle(&mut accumulator, u64::MAX);
                capability = None;
                return;
            };
            for due in checkpoints.due(&mut last_report, frontier) {
                settle(&mut accumulator, due + 1);
                let (series, changed) = accumulator.checkpoint(due);
                shards.activate().session(&*held).give(Shard { tick: due, part: Part::Series { series, changed } });
            }
            settle(&mut accumulator, frontier);
            held.downgrade(&frontier);
        }
    });
    shard_stream
}
