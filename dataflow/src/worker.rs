//! One timely worker: builds the dataflow, steps it, and answers questions about its state between steps.
//!
//! The stateful operators are thin: their state is plain ([`LiveTraces`], [`Batches`], [`Collector`]) and shared with the loop
//! below by `Rc<RefCell<…>>`, all on this thread. Traces on their way between the two operators are kept in `in_transit`, so that a
//! question asked at that moment finds them, too.
//!
//! All workers of all processes of a generation build the same dataflow. The first worker of each process has more to do: it feeds the
//! process's log, if there is one, and sends and receives [letters](crate::letters). The first of all commits.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, VecDeque},
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
    recent::{Coverage, RecentAnswer, RecentPart, RecentTrace},
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
use tokio::sync::{mpsc as queue, oneshot};

use crate::{
    batch::{self, Batches},
    cluster::Lost,
    commit::{Collector, Expected, Mailbox, Mark, Outcome, Ready, Replicas},
    feed::{self, Arrived, Feed, Pace, checkpoint_before},
    generator::{
        self, Tenants,
        accumulate::{Accumulator, Routes},
        checkpoint::{Part, Restored, Shard},
        observe::{Observer, Setup},
        operators::{self, Arrival, Checkpoints},
    },
    ledger::Ledger,
    letters::{Json, Letter, Word},
    live::{self, CutTrace, LiveTraces},
    metrics::{Gauges, Metrics},
    seat::{Seat, Workers},
    settings::Settings,
    steward::Order,
    tick::Ticks,
    upload::{Uploaded, Uploader},
};

/// Version of the dataflow that [`run`] builds: of its operators and their order, of the records that travel between processes, of timely.
/// Processes with another one cannot take part in one generation.
pub(crate) const WIRE: u32 = 1;

/// A question or order from another thread.
#[derive(Debug)]
pub(crate) enum Request {
    /// What the worker holds of one trace, and what of the end of the log it would hold.
    Trace { tenant: Tenant, trace_id: TraceId, tail: Tail, reply: oneshot::Sender<RecentAnswer<Vec<RecentPart>>> },
    /// All traces of a tenant that the worker holds, and what of the end of the log it would hold.
    Traces { tenant: Tenant, tail: Tail, reply: oneshot::Sender<RecentAnswer<Vec<RecentTrace>>> },
    /// These blocks are listed now.
    Committed(Arc<[BlockId]>),
    /// Cut everything; answer when all of it is committed.
    Flush { reply: oneshot::Sender<()> },
    /// To the first worker: send this.
    Send(Letter),
}

/// Segments of the end of the log that the operators may not have taken in.
pub(crate) type Tail = Arc<[Arc<Segment>]>;

/// What the threads of one generation share in one process.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Says when the generation ends.
    pub(crate) lost: Lost,
    /// Bytes held, by worker.
    pub(crate) held: Vec<AtomicUsize>,
    /// The budget is exhausted: workers with nothing to upload should cut what they have.
    pub(crate) pressure: AtomicBool,
    /// All records of this process's log before this have been taken in by the operators, whoever owns their traces.
    pub(crate) applied: Mutex<Position>,
    /// How many logs have been read again up to where they ended when the generation began.
    pub(crate) replayed: AtomicUsize,
    /// By process: whether it holds as many bytes as it may.
    pub(crate) full: Vec<AtomicBool>,
}

impl Shared {
    /// All records before this are in blocks or with the workers.
    pub(crate) fn applied(&self) -> Position {
        *self.applied.lock()
    }

    fn held(&self) -> usize {
        self.held.iter().map(|held| held.load(Ordering::Relaxed)).sum()
    }

    /// Whether a process other than this one is full.
    fn is_full_elsewhere(&self, seat: &Seat) -> bool {
        self.full.iter().enumerate().any(|(process, full)| process != seat.index && full.load(Ordering::Relaxed))
    }
}

/// What one worker starts with.
pub(crate) struct Start {
    pub(crate) seat: Seat,
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) uploads: mpsc::Receiver<Uploaded>,
    pub(crate) uploader: Uploader,
    /// Spans that are in blocks already; the worker keeps those of the traces that it owns.
    pub(crate) known: Arc<Vec<KnownSpans>>,
    /// On the worker that commits: blocks that were committed lately, by generations before.
    pub(crate) published: Vec<Arc<storage::block::Meta>>,
    /// The first tick at which there can be a checkpoint.
    pub(crate) start_tick: u64,
    /// How far apart copies of a span may be.
    pub(crate) replicas: Replicas,
    /// Where metrics are generated.
    pub(crate) generator: Option<GeneratorStart>,
    /// On the first worker of a process that brings a log.
    pub(crate) source: Option<Source>,
    /// On the first worker of a process: where letters go.
    pub(crate) orders: Option<queue::UnboundedSender<Order>>,
    /// On the worker that commits.
    pub(crate) mailbox: Option<Arc<Mailbox>>,
}

/// What the generator of one worker starts with.
#[derive(Clone)]
pub(crate) struct GeneratorStart {
    pub(crate) tenants: Arc<dyn Tenants>,
    pub(crate) metrics: Arc<generator::metrics::Metrics>,
    pub(crate) routes: Routes,
    /// As of the manifest; the worker keeps what it owns.
    pub(crate) restored: Arc<Restored>,
    /// Where shards go.
    pub(crate) ledger: Arc<Ledger>,
}

/// Spans of one trace that are in a block.
#[derive(Debug)]
pub(crate) struct KnownSpans {
    pub(crate) tenant: Tenant,
    pub(crate) trace_id: TraceId,
    pub(crate) keys: Vec<SpanKey>,
    /// Whether all of them were counted. A block that was uploaded just before a commit may hold spans that arrived after its tick.
    pub(crate) is_counted: bool,
}

/// Spans that are stored and perhaps not counted: to be looked for in the log, where they come again.
#[derive(Debug, Default)]
struct Uncounted(HashMap<(Tenant, TraceId), HashSet<SpanKey>>);

impl Uncounted {
    /// The spans of a segment that must be counted although they are stored: those whose first record was not `counted`.
    fn take(&mut self, segment: &Segment, counted: bool) -> Option<Arc<Segment>> {
        let keys = self.0.get_mut(&(segment.tenant.clone(), segment.trace_id))?;
        let spans: Vec<_> = segment.spans.iter().filter(|span| keys.remove(&span.key)).copied().collect();
        (!counted && !spans.is_empty()).then(|| Arc::new(Segment { spans, ..segment.clone() }))
    }
}

/// The reading worker's part of the feed.
pub(crate) struct Source {
    pub(crate) batches: mpsc::Receiver<feed::Batch>,
    pub(crate) from: Position,
    /// Where the log ended when the generation began: until then, known spans may come again.
    pub(crate) replay_to: Position,
    pub(crate) pace: Pace,
    pub(crate) wal: Wal,
    pub(crate) clock: Arc<dyn storage::clock::Clock>,
}

/// From live traces to the batch, in this order.
#[derive(Clone, Debug)]
enum Cut {
    Trace(CutTrace),
    /// As of the tick: when the oldest live span arrived.
    Held {
        tick: u64,
        oldest: Option<u64>,
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
    /// Which worker this is, and who owns traces.
    index: u64,
    owners: Workers,
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

    fn trace(&self, tenant: &Tenant, trace_id: TraceId, tail: &Tail) -> RecentAnswer<Vec<RecentPart>> {
        let mut parts = Vec::new();
        let mut add = |going, segments: &[Arc<Segment>]| add_part(&mut parts, going, segments);
        add(None, self.live.trace(tenant, trace_id));
        for trace in self.in_transit.iter().filter(|trace| trace.trace_id == trace_id && trace.tenant == *tenant) {
            add(None, &trace.segments);
        }
        self.batches.trace(tenant, trace_id, &mut add);
        self.unseen(tail, |segment| add(None, &[segment]));
        RecentAnswer { data: parts, published: self.batches.published(tenant).cloned().collect(), coverage: Coverage::ALONE }
    }

    fn traces(&self, tenant: &Tenant, tail: &Tail) -> RecentAnswer<Vec<RecentTrace>> {
        let mut traces: HashMap<TraceId, Vec<RecentPart>> = HashMap::new();
        let mut add = |trace_id, going, segments: &[Arc<Segment>]| add_part(traces.entry(trace_id).or_default(), going, segments);
        for (trace_id, segments) in self.live.traces_of(tenant) {
            add(trace_id, None, segments);
        }
        for trace in self.in_transit.iter().filter(|trace| trace.tenant == *tenant) {
            add(trace.trace_id, None, &trace.segments);
        }
        self.batches.traces_of(tenant, &mut add);
        self.unseen(tail, |segment| add(segment.trace_id, None, &[segment]));
        let data = traces.into_iter().map(|(trace_id, parts)| RecentTrace { trace_id, parts }).collect();
        RecentAnswer { data, published: self.batches.published(tenant).cloned().collect(), coverage: Coverage::ALONE }
    }

    /// What of the end of the log this worker will take in: of its own traces, spans that it has not seen. Those that it has seen are with
    /// it or in blocks, however far they have come since the end was read.
    fn unseen(&self, tail: &Tail, mut each: impl FnMut(Arc<Segment>)) {
        let mut new: HashSet<(TraceId, SpanKey)> = HashSet::new();
        for segment in tail.iter().filter(|segment| self.owners.of(hash(&segment.tenant, segment.trace_id)) == self.index) {
            let trace_id = segment.trace_id;
            let mut is_new = |key: SpanKey| !self.live.has_seen(&segment.tenant, trace_id, key) && new.insert((trace_id, key));
            let spans: Vec<_> = segment.spans.iter().filter(|span| is_new(span.key)).copied().collect();
            if spans.len() == segment.spans.len() {
                each(Arc::clone(segment));
            } else if !spans.is_empty() {
                each(Arc::new(Segment { spans, ..Segment::clone(segment) }));
            }
        }
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

/// Adds segments to the part of a trace that shares their fate.
fn add_part(parts: &mut Vec<RecentPart>, going: Option<BlockId>, segments: &[Arc<Segment>]) {
    if segments.is_empty() {
        return;
    }
    match parts.iter_mut().find(|part| part.going == going) {
        Some(part) => part.segments.extend_from_slice(segments),
        None => parts.push(RecentPart { going, segments: segments.to_vec() }),
    }
}

/// What decides over who owns a trace.
pub(crate) fn hash(tenant: &Tenant, trace_id: TraceId) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one((tenant, trace_id))
}

/// Runs one worker until the generation ends.
///
/// # Errors
/// It cannot go on.
pub(crate) fn run(worker: &mut Worker, mut start: Start) -> Result<(), String> {
    let (index, seat) = (worker.index(), start.seat.clone());
    // Among those of this process.
    let local = index - seat.workers(seat.index).start;
    let owners = seat.trace_workers();
    let ticks = Ticks::new(start.settings.tick);
    let mut live = LiveTraces::new(live::Limits {
        idle: ticks.spanning(start.settings.trace_idle_period),
        live: ticks.spanning(start.settings.trace_live_period),
        window: ticks.spanning(start.settings.duplicate_window),
        max_bytes: start.settings.max_trace_live_bytes,
    });
    // The last worker to come here gives back the memory.
    let known = std::mem::take(&mut start.known);
    let mut uncounted = Uncounted::default();
    for known in known.iter().filter(|known| owners.of(hash(&known.tenant, known.trace_id)) == index as u64) {
        live.remember(&known.tenant, known.trace_id, &known.keys);
        if start.generator.is_some() && !known.is_counted {
            uncounted.0.entry((known.tenant.clone(), known.trace_id)).or_default().extend(&known.keys);
        }
    }
    drop(known);
    let mut batches = Batches::new(batch::Limits {
        bytes: start.settings.max_block_bytes / seat.threads,
        age: ticks.spanning(start.settings.max_block_duration),
        published: ticks.spanning(start.settings.published_window),
    });
    for meta in std::mem::take(&mut start.published) {
        batches.remember(meta, start.start_tick);
    }
    let state = Rc::new(RefCell::new(State {
        live,
        batches,
        in_transit: VecDeque::new(),
        cut_all: false,
        replayed: false,
        uploaded: Vec::new(),
        flushes: Vec::new(),
        activators: Vec::new(),
        index: index as u64,
        owners: owners.clone(),
    }));
    let probe = ProbeHandle::new();
    let uploader = Rc::new(RefCell::new(start.uploader));
    let checkpoints = Checkpoints { every: ticks.spanning(start.settings.checkpoint_interval), start: start.start_tick };
    let has_generator = start.generator.is_some();
    let replicas = start.replicas;
    let expected = Expected { workers: seat.peers(), logs: seat.logs(), has_generator, every: checkpoints.every, replicas };

    let (segments, marks, letters) = worker.dataflow_named::<u64, _, _>("rubato", |scope| {
        let (segments, segment_stream): (InputHandleVec<u64, Arrived>, _) = Input::new_input(&scope);
        let (marks, mark_stream): (InputHandleVec<u64, Mark>, _) = Input::new_input(&scope);
        let (letters, letter_stream): (InputHandleVec<u64, Letter>, _) = Input::new_input(&scope);
        let (first_seen, cut) =
            live_traces(scope, segment_stream, Rc::clone(&state), Arc::clone(&start.metrics), checkpoints, owners, uncounted);
        let outcomes = block_batch(scope, cut, Rc::clone(&state), Rc::clone(&uploader), index);
        let outcomes = outcomes.probe_with(&probe);
        let ready = start.generator.take().map(|generator| {
            let (routes, ledger) = (generator.routes.clone(), Arc::clone(&generator.ledger));
            let (observer, accumulator) = generator.begin(&start.settings, index, &seat);
            let shards = operators::attach(scope, first_seen, observer, accumulator, &routes, checkpoints);
            enter(scope, shards, ledger).probe_with(&probe)
        });
        commit(scope, outcomes, mark_stream, ready, expected, start.mailbox.clone());
        receive(scope, letter_stream, seat.threads, Arc::clone(&start.shared), start.orders.clone());
        (segments, marks, letters)
    });

    // A worker lets go of the inputs that it does not need: one that neither advances nor closes would stop everybody. Nothing waits for
    // the time of letters.
    let mut letters = start.orders.take().map(|_| letters);
    let mut replay_to = start.source.as_ref().map(|source| source.replay_to);
    let mut feed = start.source.map(|source| Feed {
        batches: source.batches,
        segments,
        marks,
        window: start.settings.window,
        resident_budget: start.settings.resident_bytes,
        checkpoint_every: checkpoints.every,
        ticks,
        clock: source.clock,
        wal: source.wal,
        log: seat.index,
        metrics: Arc::clone(&start.metrics),
        waiting: None,
        fed: source.from,
        unfinished: VecDeque::new(),
        tick: 0,
        moved: Instant::now(),
        pace: source.pace,
        last_mark: 0,
    });
    let mut was_full = false;

    let mut gauges = Gauges::new(Arc::clone(&start.metrics), local);
    let mut published = Instant::now();
    let mut outcome = Ok(());
    while !start.shared.lost.is_set() {
        let mut outbox = Vec::new();
        while let Ok(request) = start.requests.try_recv() {
            match request {
                Request::Send(letter) => outbox.push(letter),
                question => answer(&state, question),
            }
        }
        while let Ok(uploaded) = start.uploads.try_recv() {
            let mut state = state.borrow_mut();
            state.uploaded.push(uploaded);
            state.activate();
        }
        start.shared.held[local].store(state.borrow().held(), Ordering::Relaxed);
        let mut tell_all = |word: &Word| {
            outbox.extend((0..seat.processes()).map(|to| Letter { from: seat.index, to, word: word.clone() }));
        };
        if let Some(feed) = &mut feed {
            let Ok(full) = feed.step(&probe, start.shared.held(), start.shared.is_full_elsewhere(&seat)) else {
                // It ends when it is told to, and that may have been a moment ago.
                if !start.shared.lost.is_set() {
                    outcome = Err("the thread that reads the write-ahead log has died".to_owned());
                }
                break;
            };
            start.shared.pressure.store(full, Ordering::Relaxed);
            if let Some(applied) = feed.finished(&probe) {
                *start.shared.applied.lock() = applied;
            }
            if replay_to.take_if(|end| start.shared.applied() >= *end).is_some() {
                tell_all(&Word::Replayed);
            }
        }
        // Others feed what this process holds, too, so they must know.
        if seat.processes() > 1 && letters.is_some() {
            let is_full = start.shared.held() >= start.settings.resident_bytes;
            start.shared.pressure.fetch_or(is_full, Ordering::Relaxed);
            if is_full != was_full {
                was_full = is_full;
                tell_all(&Word::Full(is_full));
                if feed.is_none() {
                    start.shared.pressure.store(is_full, Ordering::Relaxed);
                }
            }
        }
        if let Some(letters) = letters.as_mut().filter(|_| !outbox.is_empty()) {
            letters.send_batch(&mut outbox);
            let next = letters.time() + 1;
            letters.advance_to(next);
        }
        if !state.borrow().replayed && start.shared.replayed.load(Ordering::SeqCst) >= seat.logs() {
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

impl GeneratorStart {
    /// The state of one worker: of what was restored, what it owns.
    fn begin(self, settings: &Settings, index: usize, seat: &Seat) -> (Observer, Accumulator) {
        let Self { tenants, metrics, mut routes, restored, .. } = self;
        let ticks = Ticks::new(settings.tick);
        let stale = ticks.spanning(settings.stale_duration);
        let (index, owners) = (index as u64, seat.trace_workers());
        let series: Vec<_> = restored.contents.series.iter().filter(|there| routes.of(&there.series) == index).collect();
        let series = series.into_iter().map(|accumulated| (**accumulated).clone());
        let accumulator = Accumulator::new(Arc::clone(&tenants), routes.clone(), Arc::clone(&metrics), stale, series);
        let is_mine = |(tenant, half): &&(Tenant, generator::service_graph::Half)| owners.of(hash(tenant, half.trace_id)) == index;
        let halves = restored.contents.halves.iter().filter(is_mine).cloned().collect();
        // Exemplars are seen when they are committed.
        let period = ticks.spanning(settings.commit_interval);
        let setup = Setup { source: tenants, ticks, workers: owners.count(), metrics, period, forget_every: stale };
        let mut observer = Observer::new(setup);
        observer.restore(restored.counted.clone(), halves);
        (observer, accumulator)
    }
}

fn answer(state: &SharedState, request: Request) {
    let mut state = state.borrow_mut();
    // A reply that nobody waits for any more is no error.
    match request {
        Request::Trace { tenant, trace_id, tail, reply } => {
            let _ = reply.send(state.trace(&tenant, trace_id, &tail));
        }
        Request::Traces { tenant, tail, reply } => {
            let _ = reply.send(state.traces(&tenant, &tail));
        }
        Request::Committed(blocks) => state.committed(&blocks),
        Request::Flush { reply } => {
            state.flushes.push(Flush { reply, blocks: None });
            state.cut_all = true;
            state.activate();
        }
        // The loop above has seen to it.
        Request::Send(_) => {}
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

/// Drops copies, assembles traces, cuts them. Outputs: spans seen for the first time (by any generation: what was counted before is read
/// again only to be stored), and what was cut.
fn live_traces<'scope>(
    scope: Scope<'scope, u64>,
    segments: StreamVec<'scope, u64, Arrived>,
    state: SharedState,
    metrics: Arc<Metrics>,
    checkpoints: Checkpoints,
    owners: Workers,
    mut uncounted: Uncounted,
) -> (StreamVec<'scope, u64, Arrival>, StreamVec<'scope, u64, Cut>) {
    let mut builder = OperatorBuilder::new("LiveTraces".to_owned(), scope);
    let exchange = Exchange::new(move |arrived: &Arrived| owners.of(hash(&arrived.segment.tenant, arrived.segment.trace_id)));
    let mut input = builder.new_input(segments, exchange);
    let (first_seen, first_seen_stream) = builder.new_output();
    let (cut, cut_stream) = builder.new_output();
    let mut first_seen = OutputBuilder::<_, CapacityContainerBuilder<Vec<Arrival>>>::from(first_seen);
    let mut cut = OutputBuilder::<_, CapacityContainerBuilder<Vec<Cut>>>::from(cut);
    state.borrow_mut().activators.push(scope.activator_for(builder.operator_info().address));
    let mut last_report = checkpoints.before();

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
                for Arrived { segment, at, counted } in segments.drain(..) {
                    spans += segment.spans.len();
                    if !uncounted.0.is_empty() {
                        uncounted.take(&segment, counted).into_iter().for_each(|segment| session.give((segment, at)));
                    }
                    let pushed = live.push(segment, tick);
                    duplicates += pushed.duplicates;
                    if pushed.began {
                        // Begun, so there is a segment that says whose it is.
                        let tenant = pushed.first_seen.as_ref().map_or("", |segment| segment.tenant.as_str());
                        metrics.traces_created.with_label_values(&[tenant]).inc();
                    }
                    if let Some(segment) = pushed.first_seen.filter(|_| !counted) {
                        session.give((segment, at));
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
                uncounted.0.clear();
                live.replayed(frontier);
            }
            live.advance(frontier, &mut give);
            if std::mem::take(cut_all) {
                live.cut_all(frontier, &mut give);
                session.give(Cut::All);
            }
            let due = checkpoint_before(frontier, checkpoints.every);
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
                        if let Some(origin) = state.batches.uploaded(&meta) {
                            session.give(Outcome::Uploaded(Json(meta), origin));
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
                session.give(Outcome::Held { worker, tick, oldest: oldest.into_iter().chain(here).min() });
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

/// Enters shards into the process's ledger, and says that they are there.
fn enter<'scope>(scope: Scope<'scope, u64>, shards: StreamVec<'scope, u64, Shard>, ledger: Arc<Ledger>) -> StreamVec<'scope, u64, Ready> {
    let mut builder = OperatorBuilder::new("Ledger".to_owned(), scope);
    let mut input = builder.new_input(shards, Pipeline);
    let (ready, stream) = builder.new_output();
    let mut ready = OutputBuilder::<_, CapacityContainerBuilder<Vec<Ready>>>::from(ready);
    builder.build(move |_| {
        move |_| {
            let mut ready = ready.activate();
            input.for_each(|time, shards| {
                let mut session = ready.session(&time);
                for shard in shards.drain(..) {
                    let (Part::Series { changed, .. } | Part::Observed { changed, .. }) = shard.part;
                    let tick = shard.tick;
                    ledger.add(shard);
                    session.give(Ready { tick, changed });
                }
            });
        }
    });
    stream
}

/// Gathers reports on the first worker and hands complete checkpoints to the committer.
fn commit<'scope>(
    scope: Scope<'scope, u64>,
    outcomes: StreamVec<'scope, u64, Outcome>,
    marks: StreamVec<'scope, u64, Mark>,
    ready: Option<StreamVec<'scope, u64, Ready>>,
    expected: Expected,
    mailbox: Option<Arc<Mailbox>>,
) {
    let mut builder = OperatorBuilder::new("Commit".to_owned(), scope);
    let mut outcomes = builder.new_input(outcomes, Exchange::new(|_: &Outcome| 0));
    let mut marks = builder.new_input(marks, Exchange::new(|_: &Mark| 0));
    let mut collector = Collector::new(expected);
    let mut ready = ready.map(|ready| builder.new_input(ready, Exchange::new(|_: &Ready| 0)));
    builder.build(move |_| {
        move |_| {
            marks.for_each(|_, marks| marks.drain(..).for_each(|mark| collector.mark(mark)));
            if let Some(ready) = &mut ready {
                ready.for_each(|_, ready| ready.drain(..).for_each(|ready| collector.ready(ready)));
            }
            outcomes.for_each(|_, outcomes| outcomes.drain(..).for_each(|outcome| collector.outcome(outcome)));
            if let (Some(checkpoint), Some(mailbox)) = (collector.complete(), &mailbox) {
                mailbox.put(checkpoint);
            }
        }
    });
}

/// Brings each letter to the first worker of its addressee, which sees to what concerns the feed and gives the others to the steward.
fn receive<'scope>(
    scope: Scope<'scope, u64>,
    letters: StreamVec<'scope, u64, Letter>,
    threads: usize,
    shared: Arc<Shared>,
    orders: Option<queue::UnboundedSender<Order>>,
) {
    let mut builder = OperatorBuilder::new("Letters".to_owned(), scope);
    let mut letters = builder.new_input(letters, Exchange::new(move |letter: &Letter| (letter.to * threads) as u64));
    builder.build(move |_| {
        move |_| {
            letters.for_each(|_, letters| {
                for letter in letters.drain(..) {
                    match letter.word {
                        Word::Full(is_full) => shared.full[letter.from].store(is_full, Ordering::Relaxed),
                        Word::Replayed => {
                            shared.replayed.fetch_add(1, Ordering::SeqCst);
                        }
                        _ => {
                            // A steward that is gone has no successor in this generation.
                            let _ = orders.as_ref().map(|orders| orders.send(Order::Letter(letter)));
                        }
                    }
                }
            });
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
            batches: Batches::new(batch::Limits { bytes: 100, age: 1, published: 1 }),
            in_transit: VecDeque::new(),
            cut_all: false,
            replayed: false,
            uploaded: Vec::new(),
            flushes: Vec::new(),
            activators: Vec::new(),
            index: 0,
            owners: Workers::new([0]),
        };
        let (tenant, trace_id) = (Tenant::single(), TraceId([1; 16]));
        let span = SpanRef {
            key: SpanKey { span_id: 1, kind: 1 },
            start_ns: 0,
            resource: storage::otlp::Slice::default(),
            scope: storage::otlp::Slice::default(),
            span: storage::otlp::Slice::default(),
        };
        let body = bytes::Bytes::new();
        let segment = Segment { tenant: tenant.clone(), trace_id, position: Position(1), body, spans: vec![span] };
        let trace = CutTrace { tenant, trace_id, segments: vec![Arc::new(segment)], bytes: 7, since: 1, until: 1 };
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
