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
pub(crate) fn run(worker: &mut Worker, start: Start) {
    let (index, peers) = (worker.index(), worker.peers());
    let ticks = Ticks::new(start.settings.tick);
    let mut live = LiveTraces::new(live::Limits {
        idle: ticks.spanning(start.settings.trace_idle_period),
        live: ticks.spanning(start.settings.trace_live_period),
        window: ticks.spanning(start.settings.duplicate_window),
        max_bytes: start.settings.max_trace_live_bytes,
    });
    for known in start.known.iter().filter(|known| owner(&known.tenant, known.trace_id) % peers as u64 == index as u64) {
        live.remember(&known.tenant, known.trace_id, &known.keys, start.start_tick);
    }
    let batches = Batches::new(batch::Limits {
        bytes: start.settings.max_block_bytes / peers,
        age: ticks.spanning(start.settings.max_block_duration),
    });
    let state = Rc::new(RefCell::new(State {
        live,
        batches,
        in_transit: VecDeque::new(),
        cut_all: false,
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
        let (_first_seen, cut) =
            live_traces(scope, segment_stream, Rc::clone(&state), Arc::clone(&start.metrics), checkpoint_every, start.start_tick);
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
        last_mark: 0,
    });
    // A worker without a source has let go of its inputs above: an input that neither advances nor closes would stop everybody.

    let mut gauges = Gauges::new(Arc::clone(&start.metrics), index);
    let mut published = Instant::now();
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
            let full = feed.step(&probe, start.shared.held());
            start.shared.pressure.store(full, Ordering::Relaxed);
            if let Some(applied) = feed.finished(&probe) {
                *start.shared.applied.lock() = applied;
            }
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

/// Drops copies, assembles traces, cuts them. Outputs: spans seen for the first time, and what was cut.
fn live_traces<'scope>(
    scope: Scope<'scope, u64>,
    segments: StreamVec<'scope, u64, Segment>,
    state: SharedState,
    metrics: Arc<Metrics>,
    checkpoint_every: u64,
    start_tick: u64,
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
            let State { live, in_transit, cut_all, .. } = &mut *state;
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
                    if let Some(segment) = pushed.first_seen {
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
            for uploaded in state.uploaded.drain(..) {
                match uploaded {
                    Uploaded::Block(meta) => {
                        if let Some(range) = state.batches.uploaded(&meta) {
                            session.give(Outcome::Uploaded(CommittedBlock { meta, records: [(wal_id, range)].into() }));
                        }
                    }
                    Uploaded::Nothing(block_id) => state.batches.dropped(block_id),
                }
            }
            let (mut all, mut reports) = (false, Vec::new());
            let mut tick = *live_capability.time();
            input.for_each(|time, cuts| {
                tick = tick.max(time.least().copied().unwrap_or_default());
                for cut in cuts.drain(..) {
                    match cut {
                        Cut::Trace(trace) => {
                            state.in_transit.pop_front();
                            state.batches.push(trace, tick);
                        }
                        Cut::Held { tick, oldest } => reports.push((tick, oldest)),
                        Cut::All => all = true,
                    }
                }
            });
            let frontier = frontiers[0].frontier().first().copied();
            for job in state.batches.cut(frontier.unwrap_or(tick), all, BlockId::new_v4) {
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
