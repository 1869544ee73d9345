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

use crate::{commit::Mark, metrics::Metrics, tick::Ticks};

/// Batches that may wait between the reader and the worker, each of about [`BATCH_BYTES`].
const QUEUE: usize = 4;
const BATCH_BYTES: usize = 1 << 20;
/// While records trickle in, the log is read this often rather than for each: fewer, larger batches.
const GATHER: Duration = Duration::from_millis(40);
/// After an error, the log is read again this soon: time goes on meanwhile.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// A segment and when its record was appended to the log, in Unix nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Arrived {
    pub(crate) segment: Segment,
    pub(crate) at: u64,
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
        for record in records {
            bytes += record.body.len();
            // A body of its own: a slice would keep all that was read with it in memory, for as long as any tenant's block waits.
            let body = Bytes::copy_from_slice(&record.body);
            match otlp::index(&body, walk) {
                Ok(()) => {
                    let at = u64::try_from(record.at.as_nanos()).unwrap_or(u64::MAX);
                    let split = Segment::split(&record.tenant, record.position, &body, walk);
                    segments.extend(split.into_iter().map(|segment| Arrived { segment, at }));
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
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiting: Option<Batch>,
    /// End of the last record fed.
    pub(crate) fed: Position,
    /// Ticks that were fed and are not finished, with the end of their last record.
    pub(crate) unfinished: VecDeque<(u64, Position)>,
    pub(crate) tick: u64,
    /// When the tick last moved.
    pub(crate) moved: Instant,
    /// The clock when the generation began: checkpoints begin there.
    pub(crate) start_tick: u64,
    pub(crate) last_mark: u64,
}

/// The thread that reads the log is gone, though nobody told it to end.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl Feed {
    /// Feeds what is admitted. `resident` is what the process holds now. Returns whether the budget stands in the way.
    ///
    /// # Errors
    /// There will never be more to feed, or the reader was told to stop.
    pub(crate) fn step(&mut self, probe: &probe::Handle<u64>, resident: usize) -> Result<bool, ReaderGone> {
        let mut resident = resident;
        loop {
            let batch = match self.waiting.take().map_or_else(|| self.batches.try_recv(), Ok) {
                Ok(batch) => batch,
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
                Err(mpsc::TryRecvError::Disconnected) => return Err(ReaderGone),
            };
            match batch {
                Batch::Idle { tick, next } => {
                    self.advance(tick.max(self.start_tick));
                    // Behind the last record there may be damage or a gap.
                    self.passed(next);
                }
                Batch::Records { tick, mut segments, bytes, next } => {
                    self.advance(tick);
                    let behind = probe.less_than(&self.tick.saturating_sub(self.window));
                    let full = resident >= self.resident_budget;
                    if behind || full {
                        self.metrics.feed_paused.with_label_values(&[if full { "budget" } else { "window" }]).inc();
                        self.waiting = Some(Batch::Records { tick, segments, bytes, next });
                        if full {
                            self.advance(self.ticks.at(self.clock.now()).max(self.start_tick));
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

#[cfg(test)]
mod tests {
    use storage::{clock::SystemClock, id::Tenant, wal};

    use super::*;

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
            stop: Arc::default(),
            metrics: Arc::new(Metrics::new(&registry).expect("nothing is registered")),
        };
        let mut records = Vec::new();
        thread.reader.read(BATCH_BYTES, &mut records).expect("read");
        let Batch::Records { segments, .. } = thread.split(&records, &mut Walk::default()) else { panic!("records") };
        assert_eq!(segments.len(), 3);
        assert!(segments.iter().all(|arrived| arrived.segment.body.is_unique()), "each body is its segment's own");
        thread.wal.close().await;
    }
}
