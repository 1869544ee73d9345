//! The feed: from the log's files into the dataflow's input, no faster than the dataflow can take.
//!
//! A thread of its own reads, verifies, indexes and splits records, so that workers never wait for a disk. It is a few batches ahead
//! at most ([`QUEUE`]). The worker that owns the input takes batches while admission allows: no further than `window` ticks beyond
//! the probe, and only while the process holds fewer bytes than its budget.
//!
//! Ticks go on while reading pauses, so that traces already taken in are still cut, uploaded and let go.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use storage::{
    clock::Clock,
    otlp::{self, Walk},
    segment::Segment,
    wal::{Position, Reader, Record, Wal},
};
use timely::dataflow::{InputHandleVec, operators::probe};
use tokio::runtime::Handle;

use crate::{commit::Mark, metrics::Metrics, tick::Ticks};

/// Batches that may wait between the reader and the worker, each of about [`BATCH_BYTES`].
const QUEUE: usize = 4;
const BATCH_BYTES: usize = 1 << 20;
/// While records trickle in, the log is read this often rather than for each: fewer, larger batches.
const GATHER: Duration = Duration::from_millis(40);

/// What the reader hands to the worker.
#[derive(Debug)]
pub(crate) enum Batch {
    /// Records that were appended during `tick`, or in a burst around it.
    Records { tick: u64, segments: Vec<Segment>, bytes: usize, next: Position },
    /// Nothing to read as of `tick`.
    Idle { tick: u64 },
}

/// What the reader thread needs.
pub(crate) struct ReaderThread {
    pub(crate) wal: Wal,
    pub(crate) reader: Reader,
    pub(crate) ticks: Ticks,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) metrics: Arc<Metrics>,
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
        while !self.stop.load(Ordering::Relaxed) {
            let now = self.ticks.at(self.clock.now());
            head.mark_unchanged();
            records.clear();
            if let Err(error) = self.reader.read(BATCH_BYTES, &mut records) {
                tracing::error!(%error, "write-ahead log cannot be read, trying again");
                thread::sleep(Duration::from_secs(1));
                continue;
            }
            let caught_up = records.is_empty();
            let batch = if caught_up { Batch::Idle { tick: now } } else { self.split(&records, &mut walk) };
            if batches.send(batch).is_err() {
                return;
            }
            worker.unpark();
            if caught_up {
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
        for record in records {
            bytes += record.body.len();
            match otlp::index(&record.body, walk) {
                Ok(()) => segments.extend(Segment::split(&record.tenant, record.position, &record.body, walk)),
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
    pub(crate) segments: InputHandleVec<u64, Segment>,
    pub(crate) marks: InputHandleVec<u64, Mark>,
    pub(crate) window: u64,
    pub(crate) resident_budget: usize,
    pub(crate) checkpoint_every: u64,
    pub(crate) ticks: Ticks,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wal: Wal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiting: Option<Batch>,
    /// End of the last record fed.
    pub(crate) fed: Position,
    /// Ticks that were fed and are not finished, with the end of their last record.
    pub(crate) unfinished: VecDeque<(u64, Position)>,
    pub(crate) tick: u64,
    pub(crate) last_mark: u64,
}

impl Feed {
    /// Feeds what is admitted. `resident` is what the process holds now. Returns whether the budget stands in the way.
    pub(crate) fn step(&mut self, probe: &probe::Handle<u64>, resident: usize) -> bool {
        let mut resident = resident;
        loop {
            let Some(batch) = self.waiting.take().or_else(|| self.batches.try_recv().ok()) else { return false };
            match batch {
                Batch::Idle { tick } => self.advance(tick),
                Batch::Records { tick, mut segments, bytes, next } => {
                    self.advance(tick);
                    let behind = probe.less_than(&self.tick.saturating_sub(self.window));
                    let full = resident >= self.resident_budget;
                    if behind || full {
                        self.metrics.feed_paused.with_label_values(&[if full { "budget" } else { "window" }]).inc();
                        self.waiting = Some(Batch::Records { tick, segments, bytes, next });
                        if full {
                            self.advance(self.ticks.at(self.clock.now()));
                        }
                        return full;
                    }
                    self.segments.send_batch(&mut segments);
                    self.fed = next;
                    resident += bytes;
                    match self.unfinished.back_mut() {
                        Some((last, end)) if *last == self.tick => *end = next,
                        _ => self.unfinished.push_back((self.tick, next)),
                    }
                }
            }
        }
    }

    /// Sets the gauges of the feed.
    pub(crate) fn publish(&self, probe: &probe::Handle<u64>) {
        let passed = probe.with_frontier(|frontier| frontier.first().copied()).unwrap_or(self.tick);
        self.metrics.tick_probe.set(i64::try_from(passed).unwrap_or(i64::MAX));
        let head = self.wal.head().borrow().0;
        self.metrics.wal_lag_bytes.set(i64::try_from(head.saturating_sub(self.fed.0)).unwrap_or(i64::MAX));
    }

    fn advance(&mut self, tick: u64) {
        if tick <= self.tick {
            return;
        }
        let due = checkpoint_before(tick, self.checkpoint_every);
        if due > self.last_mark && due >= self.tick {
            self.marks.send(Mark { tick: due, position: self.fed });
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
