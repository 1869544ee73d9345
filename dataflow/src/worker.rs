//! One timely worker: builds the dataflow, steps it, and answers questions about its state between steps.
//!
//! The stateful operators are thin: their state is plain ([`LiveTraces`], [`Batches`], [`Collector`]) and shared with the loop
//! below by `Rc<RefCell<…>>`, all on this thread. Traces on their way between the two operators are kept in `in_transit`, so that a
//! question asked at that moment finds them, too.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use storage::{
    id::{BlockId, SpanKey, Tenant, TraceId},
    segment::Segment,
    wal::{Position, Wal},
};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandleVec, ProbeHandle, Scope, StreamVec,
        channels::pact::{Exchange, Pipeline},
        operators::{
            Probe,
            generic::{OutputBuilder, builder_rc::OperatorBuilder},
            vec::Input,
        },
    },
    scheduling::Activator,
    worker::Worker,
};
use tokio::sync::oneshot;

use crate::{
    batch::{self, Batches},
    commit::{Collector, Mailbox, Mark, Outcome},
    feed::{self, Feed, checkpoint_before},
    handle::RecentTrace,
    live::{self, CutTrace, LiveTraces},
    manifest::CommittedBlock,
    metrics::{Gauges, Metrics},
    settings::Settings,
    tick::Ticks,
    upload::{Uploaded, Uploader},
};

/// A question or order from another thread.
#[derive(Debug)]
pub(crate) enum Request {
    /// What the worker holds of one trace.
    Trace { tenant: Tenant, trace_id: TraceId, reply: oneshot::Sender<Vec<Arc<Segment>>> },
    /// All traces of a tenant that the worker holds.
    Traces { tenant: Tenant, reply: oneshot::Sender<Vec<RecentTrace>> },
    /// These blocks are listed now.
    Committed(Arc<[BlockId]>),
    /// Cut everything; answer when all of it is committed.
    Flush { reply: oneshot::Sender<()> },
}

/// What the threads of one generation share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Ends the generation.
    pub(crate) stop: Arc<AtomicBool>,
    /// Bytes held, by worker.
    pub(crate) held: Vec<AtomicUsize>,
    /// The budget is exhausted: workers with nothing to upload should cut what they have.
    pub(crate) pressure: AtomicBool,
    /// All records before this have been taken in by the operators.
    pub(crate) applied: Mutex<Position>,
}

impl Shared {
    /// All records before this are in blocks or with the workers.
    pub(crate) fn applied(&self) -> Position {
        *self.applied.lock()
    }

    fn held(&self) -> usize {
        self.held.iter().map(|held| held.load(Ordering::Relaxed)).sum()
    }
}

/// What one worker starts with.
pub(crate) struct Start {
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) uploads: mpsc::Receiver<Uploaded>,
    pub(crate) uploader: Uploader,
    pub(crate) wal_id: uuid::Uuid,
    /// Spans that are in blocks already; the worker keeps those of the traces that it owns.
    pub(crate) known: Arc<Vec<KnownSpans>>,
    /// Where the log ended when the generation began: until then, known spans may come again.
    pub(crate) replay_to: Position,
    /// Records before this were counted by a generation before.
    pub(crate) counted: Position,
    pub(crate) start_tick: u64,
    /// On the worker that reads the log.
    pub(crate) source: Option<Source>,
    /// On the worker that commits.
    pub(crate) mailbox: Option<Arc<Mailbox>>,
}

/// Spans of one trace that are in a block.
#[derive(Debug)]
pub(crate) struct KnownSpans {
    pub(crate) tenant: Tenant,
    pub(crate) trace_id: TraceId,
    pub(crate) keys: Vec<SpanKey>,
}

/// The reading worker's part of the feed.
pub(crate) struct Source {
    pub(crate) batches: mpsc::Receiver<feed::Batch>,
    pub(crate) from: Position,
    pub(crate) wal: Wal,
    pub(crate) clock: Arc<dyn storage::clock::Clock>,
}

/// From live traces to the batch, in this order.
#[derive(Clone, Debug)]
enum Cut {
    Trace(CutTrace),
    /// As of the tick: the oldest record that a live trace came from.
    Held {
        tick: u64,
        oldest: Option<Position>,
    },
    /// Everything before this is to become blocks now.
    All,
}

pub(crate) struct State {
    pub(crate) live: LiveTraces,
    pub(crate) batches: Batches,
    in_transit: VecDeque<CutTrace>,
    cut_all: bool,
    /// Whether everything that the log held at the start has been taken in.
    replayed: bool,
    uploaded: Vec<Uploaded>,
    flushes: Vec<Flush>,
    activators: Vec<Activator>,
}

/// A flush that waits for commits.
struct Flush {
    reply: oneshot::Sender<()>,
    /// Known once everything has been cut.
    blocks: Option<Vec<BlockId>>,
}

impl State {
    fn activate(&self) {
        for activator in &self.activators {
            activator.activate();
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.live.bytes() + self.batches.bytes() + self.in_transit.iter().map(|trace| trace.bytes).sum::<usize>()
    }

    fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> Vec<Arc<Segment>> {
        let mut segments = self.live.trace(tenant, trace_id).to_vec();
        for trace in self.in_transit.iter().filter(|trace| trace.trace_id == trace_id && trace.tenant == *tenant) {
            segments.extend_from_slice(&trace.segments);
        }
        self.batches.trace(tenant, trace_id, &mut segments);
        segments
    }

    fn traces(&self, tenant: &Tenant) -> Vec<RecentTrace> {
        let mut traces: HashMap<TraceId, Vec<Arc<Segment>>> = HashMap::new();
        for (trace_id, segments) in self.live.traces_of(tenant) {
            traces.entry(trace_id).or_default().extend_from_slice(segments);
        }
        for trace in self.in_transit.iter().filter(|trace| trace.tenant == *tenant) {
            traces.entry(trace.trace_id).or_default().extend_from_slice(&trace.segments);
        }
        self.batches.traces_of(tenant, |trace_id, segments| traces.entry(trace_id).or_default().extend_from_slice(segments));
        traces.into_iter().map(|(trace_id, segments)| RecentTrace { trace_id, segments }).collect()
    }

    fn committed(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            self.batches.committed(*block);
        }
        self.finish_flushes();
    }

    /// Nothing of a block can be stored: there is nothing to wait for any longer.
    fn dropped(&mut self, block: BlockId) {
        self.batches.dropped(block);
        self.finish_flushes();
    }

    fn finish_flushes(&mut self) {
        let pending: Vec<BlockId> = self.batches.pending_ids().collect();
        let waits = |flush: &Flush| flush.blocks.as_ref().is_none_or(|blocks| blocks.iter().any(|block| pending.contains(block)));
        let (waiting, finished): (Vec<_>, Vec<_>) = self.flushes.drain(..).partition(waits);
        self.flushes = waiting;
        for flush in finished {
            // Whoever asked may have gone.
            let _ = flush.reply.send(());
        }
    }
}

type SharedState = Rc<RefCell<State>>;

/// Which worker owns a trace.
fn owner(tenant: &Tenant, trace_id: TraceId) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one((tenant, trace_id))
}

/// Runs one worker until the generation ends.
///
/// # Errors
/// It cannot go on.
pub(crate) fn run(worker: &mut Worker, mut start: Start) -> Result<(), String> {
    let (index, peers) = (worker.index(), worker.peers());
    let ticks = Ticks::new(start.settings.tick);
    let mut live = LiveTraces::new(live::Limits {
        idle: ticks.spanning(start.settings.trace_idle_period),
        live: ticks.spanning(start.settings.trace_live_period),
        window: ticks.spanning(start.settings.duplicate_window),
        max_bytes: start.settings.max_trace_live_bytes,
    });
    // The last worker to come here gives back the memory.
    let known = std::mem::take(&mut start.known);
    for known in known.iter().filter(|known| owner(&known.tenant, known.trace_id) % peers as u64 == index as u64) {
        live.remember(&known.tenant, known.trace_id, &known.keys);
    }
    drop(known);
    let batches = Batches::new(batch::Limits {
        bytes: start.settings.max_block_bytes / peers,
        age: ticks.spanning(start.settings.max_block_duration),
    });
    let state = Rc::new(RefCell::new(State {
        live,
        batches,
        in_transit: VecDeque::new(),
        cut_all: false,
        replayed: false,
        uploaded: Vec::new(),
        flushes: Vec::new(),
        activators: Vec::new(),
    }));
    let checkpoint_every = ticks.spanning(start.settings.checkpoint_interval);
    let probe = ProbeHandle::new();
    let uploader = Rc::new(RefCell::new(start.uploader));

    let (segments, marks) = worker.dataflow_named::<u64, _, _>("rubato", |scope| {
        let (segments, segment_stream): (InputHandleVec<u64, Segment>, _) = Input::new_input(&scope);
        let (marks, mark_stream): (InputHandleVec<u64, Mark>, _) = Input::new_input(&scope);
        // The metrics operators attach to the first output.
        let (_first_seen, cut) = live_traces(
            scope,
            segment_stream,
            Rc::clone(&state),
            Arc::clone(&start.metrics),
            checkpoint_every,
            start.start_tick,
            start.counted,
        );
        let outcomes = block_batch(scope, cut, Rc::clone(&state), Rc::clone(&uploader), index, start.wal_id);
        let outcomes = outcomes.probe_with(&probe);
        commit(scope, outcomes, mark_stream, peers, start.mailbox.clone());
        (segments, marks)
    });

    let mut feed = start.source.map(|source| Feed {
        batches: source.batches,
        segments,
        marks,
        window: start.settings.window,
        resident_budget: start.settings.resident_bytes,
        checkpoint_every,
        ticks,
        clock: source.clock,
        wal: source.wal,
        metrics: Arc::clone(&start.metrics),
        waiting: None,
        fed: source.from,
        unfinished: VecDeque::new(),
        tick: 0,
        moved: Instant::now(),
        start_tick: start.start_tick,
        last_mark: 0,
    });
    // A worker without a source has let go of its inputs above: an input that neither advances nor closes would stop everybody.

    let mut gauges = Gauges::new(Arc::clone(&start.metrics), index);
    let mut published = Instant::now();
    let mut outcome = Ok(());
    while !start.shared.stop.load(Ordering::Relaxed) {
        while let Ok(request) = start.requests.try_recv() {
            answer(&state, request);
        }
        while let Ok(uploaded) = start.uploads.try_recv() {
            let mut state = state.borrow_mut();
            state.uploaded.push(uploaded);
            state.activate();
        }
        start.shared.held[index].store(state.borrow().held(), Ordering::Relaxed);
        if let Some(feed) = &mut feed {
            let Ok(full) = feed.step(&probe, start.shared.held()) else {
                // It ends when it is told to, and that may have been a moment ago.
                if !start.shared.stop.load(Ordering::SeqCst) {
                    outcome = Err("the thread that reads the write-ahead log has died".to_owned());
                }
                break;
            };
            start.shared.pressure.store(full, Ordering::Relaxed);
            if let Some(applied) = feed.finished(&probe) {
                *start.shared.applied.lock() = applied;
            }
        }
        if !state.borrow().replayed && start.shared.applied() >= start.replay_to {
            state.borrow_mut().replayed = true;
        }
        relieve(&state, &start.shared);
        worker.step_or_park(Some(Duration::from_millis(100)));
        if published.elapsed() > Duration::from_secs(1) {
            published = Instant::now();
            gauges.publish(&state.borrow());
            if let Some(feed) = &feed {
                feed.publish(&probe);
            }
        }
    }
    gauges.withdraw();
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
    outcome
}

fn answer(state: &SharedState, request: Request) {
    let mut state = state.borrow_mut();
    // A reply that nobody waits for any more is no error.
    match request {
        Request::Trace { tenant, trace_id, reply } => {
            let _ = reply.send(state.trace(&tenant, trace_id));
        }
        Request::Traces { tenant, reply } => {
            let _ = reply.send(state.traces(&tenant));
        }
        Request::Committed(blocks) => state.committed(&blocks),
        Request::Flush { reply } => {
            state.flushes.push(Flush { reply, blocks: None });
            state.cut_all = true;
            state.activate();
        }
    }
}

/// Under pressure, a worker that has nothing on its way to the bucket cuts what it has: memory comes back when it is committed.
fn relieve(state: &SharedState, shared: &Shared) {
    if !shared.pressure.load(Ordering::Relaxed) {
        return;
    }
    let mut state = state.borrow_mut();
    if state.batches.pending() == 0 && !state.cut_all && state.held() > 0 {
        state.cut_all = true;
        state.activate();
    }
}

/// Drops copies, assembles traces, cuts them. Outputs: spans seen for the first time (by any generation: what lies before `counted` in
/// the log is read again only to be stored), and what was cut.
fn live_traces<'scope>(
    scope: Scope<'scope, u64>,
    segments: StreamVec<'scope, u64, Segment>,
    state: SharedState,
    metrics: Arc<Metrics>,
    checkpoint_every: u64,
    start_tick: u64,
    counted: Position,
) -> (StreamVec<'scope, u64, Arc<Segment>>, StreamVec<'scope, u64, Cut>) {
    let mut builder = OperatorBuilder::new("LiveTraces".to_owned(), scope);
    let exchange = Exchange::new(|segment: &Segment| owner(&segment.tenant, segment.trace_id));
    let mut input = builder.new_input(segments, exchange);
    let (first_seen, first_seen_stream) = builder.new_output();
    let (cut, cut_stream) = builder.new_output();
    let mut first_seen = OutputBuilder::<_, CapacityContainerBuilder<Vec<Arc<Segment>>>>::from(first_seen);
    let mut cut = OutputBuilder::<_, CapacityContainerBuilder<Vec<Cut>>>::from(cut);
    state.borrow_mut().activators.push(scope.activator_for(builder.operator_info().address));
    let mut last_report = checkpoint_before(start_tick, checkpoint_every);

    builder.build(move |mut capabilities| {
        // Only the second output is ever used with a capability of our own: cuts happen when time passes.
        let mut capability = capabilities.pop();
        capabilities.clear();
        move |frontiers| {
            let mut state = state.borrow_mut();
            let State { live, in_transit, cut_all, replayed, .. } = &mut *state;
            let mut first_seen = first_seen.activate();
            input.for_each(|time, segments| {
                let tick = time.least().copied().unwrap_or_default();
                let mut session = first_seen.session(&time);
                let (mut spans, mut duplicates) = (0, 0);
                for segment in segments.drain(..) {
                    spans += segment.spans.len();
                    let pushed = live.push(segment, tick);
                    duplicates += pushed.duplicates;
                    if pushed.began {
                        // Begun, so there is a segment that says whose it is.
                        let tenant = pushed.first_seen.as_ref().map_or("", |segment| segment.tenant.as_str());
                        metrics.traces_created.with_label_values(&[tenant]).inc();
                    }
                    if let Some(segment) = pushed.first_seen.filter(|segment| segment.position >= counted) {
                        session.give(segment);
                    }
                }
                metrics.spans.inc_by(spans as u64);
                metrics.duplicate_spans.inc_by(duplicates as u64);
            });
            let Some(&frontier) = frontiers[0].frontier().first() else {
                capability = None;
                return;
            };
            let Some(capability) = capability.as_mut() else { return };
            let mut cut = cut.activate();
            let mut session = cut.session(capability);
            let mut give = |trace: CutTrace| {
                in_transit.push_back(trace.clone());
                session.give(Cut::Trace(trace));
            };
            if *replayed {
                live.replayed(frontier);
            }
            live.advance(frontier, &mut give);
            if std::mem::take(cut_all) {
                live.cut_all(frontier, &mut give);
                session.give(Cut::All);
            }
            let due = checkpoint_before(frontier, checkpoint_every);
            if due > last_report {
                last_report = due;
                session.give(Cut::Held { tick: due, oldest: live.oldest() });
            }
            drop(session);
            capability.downgrade(&frontier);
        }
    });
    (first_seen_stream, cut_stream)
}

/// Collects cut traces into blocks, sends blocks to the upload pool, and reports what is uploaded and what is held.
fn block_batch<'scope>(
    scope: Scope<'scope, u64>,
    cuts: StreamVec<'scope, u64, Cut>,
    state: SharedState,
    uploader: Rc<RefCell<Uploader>>,
    worker: usize,
    wal_id: uuid::Uuid,
) -> StreamVec<'scope, u64, Outcome> {
    let mut builder = OperatorBuilder::new("BlockBatch".to_owned(), scope);
    let mut input = builder.new_input(cuts, Pipeline);
    let (outcomes, stream) = builder.new_output();
    let mut outcomes = OutputBuilder::<_, CapacityContainerBuilder<Vec<Outcome>>>::from(outcomes);
    state.borrow_mut().activators.push(scope.activator_for(builder.operator_info().address));

    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |frontiers| {
            let mut state = state.borrow_mut();
            let state = &mut *state;
            let mut outcomes = outcomes.activate();
            let Some(live_capability) = capability.as_mut() else { return };
            let mut session = outcomes.session(&*live_capability);
            for uploaded in std::mem::take(&mut state.uploaded) {
                match uploaded {
                    Uploaded::Block(meta) => {
                        if let Some(range) = state.batches.uploaded(&meta) {
                            session.give(Outcome::Uploaded(CommittedBlock { meta, records: [(wal_id, range)].into() }));
                        }
                    }
                    Uploaded::Nothing(block_id) => state.dropped(block_id),
                }
            }
            let (mut all, mut reports, mut jobs) = (false, Vec::new(), Vec::new());
            let mut tick = *live_capability.time();
            input.for_each(|time, cuts| {
                tick = tick.max(time.least().copied().unwrap_or_default());
                for cut in cuts.drain(..) {
                    match cut {
                        Cut::Trace(trace) => {
                            state.in_transit.pop_front();
                            // Full blocks leave at once: a flood of cut traces makes many blocks of the usual size, not one large one.
                            jobs.extend(state.batches.push(trace, tick, BlockId::new_v4));
                        }
                        Cut::Held { tick, oldest } => reports.push((tick, oldest)),
                        Cut::All => all = true,
                    }
                }
            });
            let frontier = frontiers[0].frontier().first().copied();
            jobs.extend(state.batches.cut(frontier.unwrap_or(tick), all, BlockId::new_v4));
            for job in jobs {
                tracing::debug!(worker, block_id = %job.block_id, tenant = %job.tenant, traces = job.traces.len(), "block cut");
                uploader.borrow_mut().spawn(job);
            }
            if all {
                let pending: Vec<BlockId> = state.batches.pending_ids().collect();
                for flush in state.flushes.iter_mut().filter(|flush| flush.blocks.is_none()) {
                    flush.blocks = Some(pending.clone());
                }
                state.finish_flushes();
            }
            // Taken now, after everything that came before the report: at most too much is held, never too little.
            let here = state.batches.oldest();
            for (tick, oldest) in reports {
                session.give(Outcome::Held { tick, oldest: oldest.into_iter().chain(here).min() });
            }
            drop(session);
            match frontier {
                Some(frontier) => live_capability.downgrade(&frontier),
                None => capability = None,
            }
        }
    });
    stream
}

/// Gathers reports on the first worker and hands complete checkpoints to the committer.
fn commit<'scope>(
    scope: Scope<'scope, u64>,
    outcomes: StreamVec<'scope, u64, Outcome>,
    marks: StreamVec<'scope, u64, Mark>,
    workers: usize,
    mailbox: Option<Arc<Mailbox>>,
) {
    let mut builder = OperatorBuilder::new("Commit".to_owned(), scope);
    let mut outcomes = builder.new_input(outcomes, Exchange::new(|_: &Outcome| 0));
    let mut marks = builder.new_input(marks, Exchange::new(|_: &Mark| 0));
    let mut collector = Collector::new(workers);
    builder.build(move |_| {
        move |_| {
            marks.for_each(|_, marks| marks.drain(..).for_each(|mark| collector.mark(mark)));
            outcomes.for_each(|_, outcomes| outcomes.drain(..).for_each(|outcome| collector.outcome(outcome)));
            if let (Some(checkpoint), Some(mailbox)) = (collector.complete(), &mailbox) {
                mailbox.put(checkpoint);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use storage::segment::SpanRef;

    use super::*;

    #[test]
    fn a_flush_does_not_wait_for_a_block_that_will_never_be() {
        let mut state = State {
            live: LiveTraces::new(live::Limits { idle: 1, live: 1, window: 1, max_bytes: 1 }),
            batches: Batches::new(batch::Limits { bytes: 100, age: 1 }),
            in_transit: VecDeque::new(),
            cut_all: false,
            replayed: false,
            uploaded: Vec::new(),
            flushes: Vec::new(),
            activators: Vec::new(),
        };
        let (tenant, trace_id) = (Tenant::single(), TraceId([1; 16]));
        let span = SpanRef {
            key: SpanKey { span_id: 1, kind: 1 },
            resource: storage::otlp::Slice::default(),
            scope: storage::otlp::Slice::default(),
            span: storage::otlp::Slice::default(),
        };
        let body = bytes::Bytes::new();
        let segment = Segment { tenant: tenant.clone(), trace_id, position: Position(1), body, spans: vec![span] };
        let trace = CutTrace { tenant, trace_id, segments: vec![Arc::new(segment)], bytes: 7 };
        assert!(state.batches.push(trace, 1, BlockId::new_v4).is_none(), "not full");
        let jobs = state.batches.cut(1, true, BlockId::new_v4);
        let (reply, mut answer) = oneshot::channel();
        state.flushes.push(Flush { reply, blocks: Some(vec![jobs[0].block_id]) });
        state.finish_flushes();
        assert!(answer.try_recv().is_err(), "the block may still be stored");
        state.dropped(jobs[0].block_id);
        answer.try_recv().expect("nothing is left to wait for");
        assert_eq!(state.held(), 0);
    }
}
