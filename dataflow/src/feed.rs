//! The feed: from the log's files into the dataflow's input, no faster than the dataflow can take.
//!
//! A thread of its own reads, verifies, indexes and splits records, so that workers never wait for a disk. It is a few batches ahead
//! at most ([`QUEUE`]). The worker that owns the input takes batches while admission allows: no further than `window` ticks beyond
//! the probe, and only while the process holds fewer bytes than its budget.
//!
//! Ticks go on while reading pauses, so that traces already taken in are still cut, uploaded and let go.
//!
//! In a cluster each ingester has a feed for its own log. Time is the slowest feed's, so the logs are read side by side in the order of
//! arrival, and copies of a span in different logs come at about the same tick, also when logs are read again or lag behind. Hence nobody
//! may run ahead or stay behind for reasons of his own: see [`Pace`]. And since a trace's owner takes in spans that others feed, a feed
//! pauses, too, while another process is full.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use storage::{
    clock::Clock,
    otlp::{self, Walk},
    segment::Segment,
    wal::{Position, Reader, Record, Wal},
};
use timely::dataflow::{InputHandleVec, operators::probe};
use tokio::runtime::Handle;

use crate::{cluster::Lost, commit::Mark, metrics::Metrics, records::place, seat::Seat, tick::Ticks, worker::hash};

/// Batches that may wait between the reader and the worker, each of about [`BATCH_BYTES`].
const QUEUE: usize = 4;
const BATCH_BYTES: usize = 1 << 20;
/// While records trickle in, the log is read this often rather than for each: fewer, larger batches.
const GATHER: Duration = Duration::from_millis(40);
/// After an error, the log is read again this soon: time goes on meanwhile.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// A segment, whose position says its log, too (see [`crate::records`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Arrived {
    pub(crate) segment: Segment,
    /// When its record was appended to the log, in Unix nanoseconds.
    pub(crate) at: u64,
    /// Whether a generation before has counted it, or nobody is to.
    pub(crate) counted: bool,
}

/// How the clock of this process becomes ticks of the generation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// On its own: records have the tick of their arrival, and while there is nothing to read it is now, but not before this.
    Own {
        /// The clock when the generation began: checkpoints begin there.
        start: u64,
    },
    /// In a cluster: all begin where the manifest ends, and go on no faster than time does, whatever clocks say.
    Common {
        /// First tick of the generation: what is read again arrives then.
        floor: u64,
        /// What tick it was, by the clock of the first process, when the generation began.
        began: u64,
        /// When that was.
        since: Instant,
        /// Added to ticks of this process's clock. 0 while it differs from the first process's by little.
        shift: i64,
        /// That little.
        tolerance: u64,
    },
}

impl Pace {
    /// For a generation that began at tick `began`, which is about `now` by our own clock.
    pub(crate) fn common(floor: u64, began: u64, now: u64, tolerance: u64) -> Self {
        let skew = i64::try_from(began).unwrap_or(i64::MAX).saturating_sub_unsigned(now);
        let shift = if skew.unsigned_abs() > tolerance { skew } else { 0 };
        Self::Common { floor, began, since: Instant::now(), shift, tolerance }
    }

    /// The first tick at which there can be a checkpoint.
    pub(crate) fn start(self) -> u64 {
        match self {
            Self::Own { start } => start,
            Self::Common { floor, .. } => floor,
        }
    }

    /// The tick of a record that arrived at `tick` by our clock.
    fn arrival(self, tick: u64, ticks: Ticks) -> u64 {
        match self {
            Self::Own { .. } => tick,
            Self::Common { floor, began, since, shift, tolerance } => {
                let latest = began.saturating_add(ticks.at(since.elapsed())).saturating_add(2 * tolerance);
                tick.saturating_add_signed(shift).min(latest).max(floor)
            }
        }
    }

    /// What tick it is when our clock says `tick` and nothing waits to be read.
    fn idle(self, tick: u64, ticks: Ticks) -> u64 {
        match self {
            Self::Own { start } => tick.max(start),
            Self::Common { .. } => self.arrival(tick, ticks),
        }
    }
}

/// What the reader hands to the worker.
#[derive(Debug)]
pub(crate) enum Batch {
    /// Records that were appended during `tick`, or in a burst around it.
    Records { tick: u64, segments: Vec<Arrived>, bytes: usize, next: Position },
    /// Nothing to read as of `tick`, and nothing that can be read lies before `next`.
    Idle { tick: u64, next: Position },
}

/// What the reader thread needs.
pub(crate) struct ReaderThread {
    pub(crate) wal: Wal,
    pub(crate) reader: Reader,
    pub(crate) ticks: Ticks,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    pub(crate) lost: Lost,
    pub(crate) metrics: Arc<Metrics>,
    /// Number of the log in this generation.
    pub(crate) log: usize,
    /// Records before this were counted by a generation before.
    pub(crate) counted: Position,
    /// Where there are other processes.
    pub(crate) seat: Seat,
}

impl ReaderThread {
    /// Starts the thread; `worker` is woken for each batch.
    pub(crate) fn spawn(self, worker: Thread) -> std::io::Result<(mpsc::Receiver<Batch>, JoinHandle<()>)> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let handle = thread::Builder::new().name("wal-reader".to_owned()).spawn(move || self.run(&sender, &worker))?;
        Ok((receiver, handle))
    }

    fn run(mut self, batches: &mpsc::SyncSender<Batch>, worker: &Thread) {
        let (mut records, mut walk) = (Vec::new(), Walk::default());
        let mut head = self.wal.head();
        while !self.lost.is_set() {
            let now = self.ticks.at(self.clock.now());
            head.mark_unchanged();
            records.clear();
            let read = self.reader.read(BATCH_BYTES, &mut records);
            // What was read before an error counts: the reader goes on behind it.
            let nothing = records.is_empty();
            let batch = if nothing { Batch::Idle { tick: now, next: self.reader.position() } } else { self.split(&records, &mut walk) };
            if batches.send(batch).is_err() {
                return;
            }
            worker.unpark();
            if let Err(error) = read {
                tracing::error!(%error, "write-ahead log cannot be read, trying again");
                thread::sleep(self.ticks.length().min(READ_AGAIN));
            } else if nothing {
                let changed = async {
                    if tokio::time::timeout(self.ticks.length(), head.changed()).await.is_ok() {
                        tokio::time::sleep(GATHER.min(self.ticks.length())).await;
                    }
                };
                self.runtime.block_on(changed);
            }
        }
    }

    fn split(&self, records: &[Record], walk: &mut Walk) -> Batch {
        let mut segments = Vec::new();
        let mut bytes = 0;
        let (owners, here) = (self.seat.trace_workers(), self.seat.workers(self.seat.index));
        // Timely asks what is to travel for its size more than once; made here, off the worker's thread, its bytes are made once.
        let travels = |segment: &Segment| {
            let owner = owners.of(hash(&segment.tenant, segment.trace_id));
            !usize::try_from(owner).is_ok_and(|owner| here.contains(&owner))
        };
        let is_shared = self.seat.processes() > 1;
        let packed = |segment: Segment| if is_shared && travels(&segment) { segment.compacted() } else { segment };
        for record in records {
            bytes += record.body.len();
            // A body of its own: a slice would keep all that was read with it in memory, for as long as any tenant's block waits.
            let body = Bytes::copy_from_slice(&record.body);
            match otlp::index(&body, walk) {
                Ok(()) => {
                    let at = u64::try_from(record.at.as_nanos()).unwrap_or(u64::MAX);
                    let split = Segment::split(&record.tenant, place(self.log, record.position), &body, walk);
                    let counted = record.position < self.counted || record.skip_metrics_generation;
                    segments.extend(split.into_iter().map(|segment| Arrived { segment: packed(segment), at, counted }));
                }
                Err(error) => {
                    tracing::error!(%error, position = record.position.0, "record passed its checksum but is not OTLP, skipping it");
                    self.metrics.dropped_spans.with_label_values(&["unreadable_record"]).inc();
                }
            }
        }
        let (tick, next) = records.last().map_or((0, Position::default()), |last| (self.ticks.at(last.at), last.next));
        Batch::Records { tick, segments, bytes, next }
    }
}

/// When a checkpoint is due: the last multiple of `every` before `tick`.
pub(crate) fn checkpoint_before(tick: u64, every: u64) -> u64 {
    tick.saturating_sub(1) / every * every
}

/// The worker's side of the feed: owns the inputs.
pub(crate) struct Feed {
    pub(crate) batches: mpsc::Receiver<Batch>,
    pub(crate) segments: InputHandleVec<u64, Arrived>,
    pub(crate) marks: InputHandleVec<u64, Mark>,
    pub(crate) window: u64,
    pub(crate) resident_budget: usize,
    pub(crate) checkpoint_every: u64,
    pub(crate) ticks: Ticks,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wal: Wal,
    /// Number of the log in this generation.
    pub(crate) log: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiting: Option<Batch>,
    /// End of the last record fed.
    pub(crate) fed: Position,
    /// Ticks that were fed and are not finished, with the end of their last record.
    pub(crate) unfinished: VecDeque<(u64, Position)>,
    pub(crate) tick: u64,
    /// When the tick last moved.
    pub(crate) moved: Instant,
    pub(crate) pace: Pace,
    pub(crate) last_mark: u64,
}

/// The thread that reads the log is gone, though nobody told it to end.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl Feed {
    /// Feeds what is admitted. `resident` is what the process holds now; `elsewhere` says whether another process is full. Returns whether
    /// our own budget stands in the way.
    ///
    /// # Errors
    /// There will never be more to feed, or the reader was told to stop.
    pub(crate) fn step(&mut self, probe: &probe::Handle<u64>, resident: usize, elsewhere: bool) -> Result<bool, ReaderGone> {
        let mut resident = resident;
        loop {
            let batch = match self.waiting.take().map_or_else(|| self.batches.try_recv(), Ok) {
                Ok(batch) => batch,
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
                Err(mpsc::TryRecvError::Disconnected) => return Err(ReaderGone),
            };
            match batch {
                Batch::Idle { tick, next } => {
                    self.advance(self.pace.idle(tick, self.ticks));
                    // Behind the last record there may be damage or a gap.
                    self.passed(next);
                }
                Batch::Records { tick, mut segments, bytes, next } => {
                    self.advance(self.pace.arrival(tick, self.ticks));
                    let behind = probe.less_than(&self.tick.saturating_sub(self.window));
                    let full = resident >= self.resident_budget;
                    if behind || full || elsewhere {
                        let reason = if full {
                            "budget"
                        } else if elsewhere {
                            "elsewhere"
                        } else {
                            "window"
                        };
                        self.metrics.feed_paused.with_label_values(&[reason]).inc();
                        self.waiting = Some(Batch::Records { tick, segments, bytes, next });
                        if full || elsewhere {
                            self.go_on();
                        }
                        return Ok(full);
                    }
                    self.segments.send_batch(&mut segments);
                    self.passed(next);
                    resident += bytes;
                }
            }
        }
    }

    /// Time must go on while reading pauses, or nothing would be committed and the pause would never end. In a cluster only as fast as it
    /// does anyway, so that what waits is not fed at a later tick than its copies.
    fn go_on(&mut self) {
        match self.pace {
            Pace::Own { .. } => self.advance(self.pace.idle(self.ticks.at(self.clock.now()), self.ticks)),
            Pace::Common { .. } => self.advance(0),
        }
    }

    /// Everything before `next` was fed.
    fn passed(&mut self, next: Position) {
        if next <= self.fed {
            return;
        }
        self.fed = next;
        match self.unfinished.back_mut() {
            Some((last, end)) if *last == self.tick => *end = next,
            _ => self.unfinished.push_back((self.tick, next)),
        }
    }

    /// Sets the gauges of the feed.
    pub(crate) fn publish(&self, probe: &probe::Handle<u64>) {
        let passed = probe.with_frontier(|frontier| frontier.first().copied()).unwrap_or(self.tick);
        self.metrics.tick_probe.set(i64::try_from(passed).unwrap_or(i64::MAX));
        let head = self.wal.head().borrow().0;
        self.metrics.wal_lag_bytes.set(i64::try_from(head.saturating_sub(self.fed.0)).unwrap_or(i64::MAX));
    }

    /// Goes on to `tick`. If that has passed already, the clock has stepped back or was ahead: then time goes on from where it is, at its
    /// own pace, because cuts and commits wait for it.
    fn advance(&mut self, tick: u64) {
        let tick = if tick < self.tick { self.tick.saturating_add(self.ticks.at(self.moved.elapsed())) } else { tick };
        if tick <= self.tick {
            return;
        }
        self.moved = Instant::now();
        let due = checkpoint_before(tick, self.checkpoint_every);
        if due > self.last_mark && due >= self.tick {
            let (log, wal) = (self.log, self.wal.id());
            self.marks.send(Mark { log, wal, since: self.tick, until: tick - 1, position: self.fed });
            self.last_mark = due;
        }
        self.tick = tick;
        self.segments.advance_to(tick);
        self.marks.advance_to(tick);
        self.metrics.tick_input.set(i64::try_from(tick).unwrap_or(i64::MAX));
    }

    /// The end of the last record of the last tick that every operator has finished, if that moved.
    pub(crate) fn finished(&mut self, probe: &probe::Handle<u64>) -> Option<Position> {
        let mut finished = None;
        while let Some((tick, end)) = self.unfinished.front() {
            if probe.less_equal(tick) {
                break;
            }
            finished = Some(*end);
            self.unfinished.pop_front();
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use storage::{clock::SystemClock, id::Tenant, wal};

    use super::*;
    use crate::cluster::Role;

    #[tokio::test]
    async fn a_record_that_is_kept_keeps_no_others_in_memory() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = wal::Settings {
            dir: folder.path().to_owned(),
            file_bytes: 1 << 20,
            sync: wal::Sync::Never,
            max_bytes: 1 << 30,
            queue_bytes: 1 << 20,
        };
        let registry = prometheus::Registry::new();
        let (wal, _) = Wal::open(settings, Arc::new(SystemClock), &registry).expect("log");
        // One span: trace 1…1, span 2…2.
        let span = [[0x0a, 16].as_slice(), &[1; 16], &[0x12, 8], &[2; 8]].concat();
        let nested = [[0x12, 28].as_slice(), &span].concat();
        let body = Bytes::from([[0x0a, 32, 0x12, 30].as_slice(), &nested].concat());
        for tenant in ["busy", "rare", "busy"] {
            wal.append(&Tenant::new(tenant).expect("valid"), body.clone()).await.expect("append");
        }
        let mut thread = ReaderThread {
            reader: wal.reader(Position::default()).expect("reader"),
            wal,
            ticks: Ticks::new(Duration::from_millis(250)),
            clock: Arc::new(SystemClock),
            runtime: Handle::current(),
            lost: Lost::default(),
            metrics: Arc::new(Metrics::new(&registry).expect("nothing is registered")),
            log: 0,
            counted: Position::default(),
            seat: Seat { index: 0, threads: 1, roles: [Role::Ingester].into() },
        };
        let mut records = Vec::new();
        thread.reader.read(BATCH_BYTES, &mut records).expect("read");
        let Batch::Records { segments, .. } = thread.split(&records, &mut Walk::default()) else { panic!("records") };
        assert_eq!(segments.len(), 3);
        assert!(segments.iter().all(|arrived| arrived.segment.body.is_unique()), "each body is its segment's own");
        thread.wal.close().await;
    }
}
