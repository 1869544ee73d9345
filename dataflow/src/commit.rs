//! Commits: from "this block is on the bucket" to "queries read it, and the logs may forget its records".
//!
//! ```text
//!  all workers ── Uploaded(block), Held(tick, records) ─────────┐
//!  generator ── Ready(tick); contents stay in the ledger ───────┤
//!  each feed ── Mark(ticks, position fed) ──────────────────────┴─► Collector (first worker of all) ─► Mailbox ─► committer task
//!      each process: Keep ─► generator's objects ─► Kept ─► manifest written ─► meta.json of each new block ─┐
//!      each process's steward: ◄────────────────────────── Committed ────────────────────────────────────────┘
//!                              blocklist, snapshot of its series, workers drop their copies, its log releases files
//! ```
//!
//! A checkpoint at tick c is complete when every worker of every process has said when the oldest span arrived that it holds outside
//! uploaded blocks, and every feed has said how far it had read, as of c. How far each log had been read before that oldest span arrived
//! is where a recovery must begin to read it. A worker reports an uploaded block before it stops counting it as held, on the same channel,
//! so a complete checkpoint knows every block it relies on, and what a worker reports later is true of c, too: at most too much of it is
//! in blocks already. Where there is a generator, the shards of each worker as of exactly c belong to it.
//!
//! Likewise what a log had a little before c was not necessarily counted by then: a copy from another log may have come before it, and
//! with a later tick. So positions stay behind c by as much as that may be, and of what is read again the identities of counted spans tell
//! what was counted.
//!
//! Why ticks, and not the records of what is held: of a span's copies in several logs only the first is held, and the others must not be
//! let go, since the log that had the first may be lost. Logs are read side by side, so copies arrive at about the same tick ([`Replicas`]).
//!
//! Commits are strictly one after the other: the next manifest is written only when all blocks of the last are published, which is what
//! allows it to drop them.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::{backend::Store, block::Meta, compactor::Publication, wal::Position};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::{
    batch::Origin,
    letters::{Committed, Json, Kept, Post, Word},
    manifest::{CommittedBlock, GeneratorObjects, IdentitiesObject, Manifest, ManifestError, ManifestStore, Positions, Range},
    metrics::Metrics,
    upload::Backoff,
};

/// What workers report to the committing one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A block is on the bucket, without its `meta.json`.
    Uploaded(Json<Meta>, Origin),
    /// As of a checkpoint tick: when the oldest span arrived that the worker holds outside uploaded blocks.
    Held { worker: usize, tick: u64, oldest: Option<u64> },
}

/// How far a feed had read when it left the tick `since`: everything fed up to any tick from `since` to `until` lies before `position`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) log: usize,
    pub(crate) wal: Uuid,
    pub(crate) since: u64,
    pub(crate) until: u64,
    pub(crate) position: Position,
}

/// A worker has entered a shard as of a tick into the ledger of its process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) tick: u64,
    /// Whether it differs from the one before.
    pub(crate) changed: bool,
}

/// Something that can be committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) tick: u64,
    pub(crate) positions: BTreeMap<Uuid, Positions>,
    pub(crate) blocks: Vec<CommittedBlock>,
    /// Copies of spans that arrived since this tick may come again.
    pub(crate) since: u64,
    /// Whether the generator has come to something else than at the checkpoint before.
    pub(crate) changed: bool,
}

/// How far apart copies of a span in different logs may be, in ticks. Both are 0 where there is one log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replicas {
    /// A copy that is seen later may have arrived this much earlier: a feed goes no further ahead of the others.
    pub(crate) earlier: u64,
    /// A copy may arrive this much later and is still recognised.
    pub(crate) later: u64,
}

/// What must come together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Workers of all processes.
    pub(crate) workers: usize,
    /// Logs that are fed.
    pub(crate) logs: usize,
    pub(crate) has_generator: bool,
    /// Ticks from one checkpoint to the next.
    pub(crate) every: u64,
    pub(crate) replicas: Replicas,
}

/// What is known of a log.
#[derive(Debug)]
struct Log {
    wal: Uuid,
    /// In order.
    marks: VecDeque<Mark>,
}

impl Log {
    /// How far it was fed as of a tick.
    fn fed(&self, tick: u64) -> Option<Position> {
        self.marks.iter().rev().find(|mark| mark.since <= tick && tick <= mark.until).map(|mark| mark.position)
    }

    /// How far it was fed as of a tick, or less. Nothing is known of the time before the generation began.
    fn fed_at_least(&self, tick: u64) -> Position {
        self.marks.iter().rev().find(|mark| mark.since <= tick).map_or_else(Position::default, |mark| mark.position)
    }

    /// Forgets what only ticks before this one need.
    fn forget(&mut self, tick: u64) {
        while self.marks.get(1).is_some_and(|next| next.since <= tick) {
            self.marks.pop_front();
        }
    }
}

/// Puts reports and marks together. State of the commit operator.
#[derive(Debug)]
pub(crate) struct Collector {
    expected: Expected,
    /// The last report of each worker.
    reports: BTreeMap<usize, (u64, Option<u64>)>,
    logs: BTreeMap<usize, Log>,
    uploaded: Vec<(Meta, Origin)>,
    /// By tick: shards that are ready, and whether one of them has changed.
    ready: BTreeMap<u64, (usize, bool)>,
    /// The tick of the last complete checkpoint.
    last: u64,
}

impl Collector {
    pub(crate) fn new(expected: Expected) -> Self {
        let (reports, logs, ready) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { expected, reports, logs, uploaded: Vec::new(), ready, last: 0 }
    }

    pub(crate) fn ready(&mut self, ready: Ready) {
        let (shards, changed) = self.ready.entry(ready.tick).or_default();
        *shards += 1;
        *changed |= ready.changed;
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        let log = self.logs.entry(mark.log).or_insert_with(|| Log { wal: mark.wal, marks: VecDeque::new() });
        log.marks.push_back(mark);
    }

    pub(crate) fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Uploaded(Json(meta), origin) => self.uploaded.push((meta, origin)),
            Outcome::Held { worker, tick, oldest } => {
                self.reports.insert(worker, (tick, oldest));
            }
        }
    }

    /// The newest complete checkpoint, once. Older ones, complete or not, are forgotten.
    pub(crate) fn complete(&mut self) -> Option<Checkpoint> {
        let Expected { workers, logs, has_generator, every, replicas } = self.expected;
        if self.reports.len() < workers || self.logs.len() < logs {
            return None;
        }
        // Reports are true of what came before, so the slowest worker decides.
        let reported = self.reports.values().map(|(tick, _)| *tick).min()?;
        let marked = self.logs.values().map(|log| log.marks.back().map_or(0, |mark| mark.until)).min().unwrap_or(reported);
        let shards = if has_generator { 2 * workers } else { 0 };
        let is_ready = |tick: u64| shards == 0 || self.ready.get(&tick).is_some_and(|(ready, _)| *ready >= shards);
        let newest = reported.min(marked) / every * every;
        let candidates = (self.last + 1..=newest).rev().step_by(usize::try_from(every).unwrap_or(usize::MAX)).take(CANDIDATES);
        let tick = candidates.into_iter().find(|tick| is_ready(*tick) && self.logs.values().all(|log| log.fed(*tick).is_some()))?;

        // What was read by then was seen by the operators, or a copy of it, at this checkpoint's tick at the latest: it was counted.
        let settled = tick.saturating_sub(replicas.earlier);
        let oldest = self.reports.values().filter_map(|(_, oldest)| *oldest).min();
        let held_since = oldest.map_or(settled, |oldest| settled.min(oldest.saturating_sub(1 + replicas.earlier)));
        let position = |log: &mut Log| {
            log.forget(held_since);
            (log.wal, Positions { held: log.fed_at_least(held_since), counted: log.fed_at_least(settled) })
        };
        let positions = self.logs.values_mut().map(position).collect();
        let later = self.ready.split_off(&(tick + 1));
        let changed = mem::replace(&mut self.ready, later).into_values().any(|(_, changed)| changed);
        let by_wal = |(log, range): (usize, Range)| Some((self.logs.get(&log)?.wal, range));
        let block = |(meta, Origin { records, until }): (Meta, Origin)| CommittedBlock {
            meta,
            records: records.iter().filter_map(by_wal).collect(),
            until,
        };
        let blocks = mem::take(&mut self.uploaded).into_iter().map(block).collect();
        self.last = tick;
        // On its own a process recognises what comes again by where it is in the log.
        let since = if replicas.later == 0 { u64::MAX } else { held_since.saturating_sub(replicas.later) };
        Some(Checkpoint { tick, positions, blocks, since, changed })
    }
}

/// So many checkpoints back a complete one is looked for. Workers and feeds may skip some, in leaps that are not the same everywhere.
const CANDIDATES: usize = 64;

/// Hands checkpoints from the worker to the committer without queueing: a newer one absorbs the one that still waits.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Option<Checkpoint>>,
    notify: Notify,
}

impl Mailbox {
    pub(crate) fn put(&self, mut checkpoint: Checkpoint) {
        let mut waiting = self.waiting.lock();
        if let Some(older) = waiting.take() {
            let newer = mem::replace(&mut checkpoint.blocks, older.blocks);
            checkpoint.blocks.extend(newer);
            checkpoint.changed |= older.changed;
        }
        *waiting = Some(checkpoint);
        drop(waiting);
        self.notify.notify_one();
    }

    async fn take(&self) -> Checkpoint {
        loop {
            if let Some(checkpoint) = self.waiting.lock().take() {
                return checkpoint;
            }
            self.notify.notified().await;
        }
    }
}

/// How the committer gets the names of the generator's objects.
#[derive(Debug)]
pub(crate) struct Keepers {
    /// What processes answer.
    pub(crate) answers: mpsc::UnboundedReceiver<(usize, Result<Kept, String>)>,
    /// Identities are listed for this many ticks.
    pub(crate) window: u64,
}

impl Keepers {
    /// Has every process write its part as of the manifest's tick; returns what the manifest is to name.
    ///
    /// # Errors
    /// A part cannot be written, so there must be no manifest that says that it was counted.
    async fn keep(&mut self, post: &Post, manifest: &Manifest) -> Result<Option<GeneratorObjects>, ManifestError> {
        let Manifest { tick, sequence, .. } = *manifest;
        post.send_all(&Word::Keep { tick, sequence });
        let mut parts = BTreeMap::new();
        while parts.len() < post.processes {
            let Some((from, kept)) = self.answers.recv().await else { return Err(ManifestError::Encode("generation has ended".into())) };
            parts.insert(from, kept.map_err(|error| ManifestError::Encode(error.into()))?);
        }
        if manifest.generator.is_none() && parts.values().all(|kept| *kept == Kept::default()) {
            return Ok(None);
        }
        let mut objects = manifest.generator.clone().unwrap_or_default();
        objects.identities.retain(|identities| identities.tick.saturating_add(self.window) >= tick);
        objects
            .identities
            .extend(parts.values().filter_map(|kept| kept.identities.clone()).map(|object| IdentitiesObject { object, tick }));
        objects.series = parts.into_values().filter_map(|kept| kept.series).collect();
        Ok(Some(objects))
    }
}

/// What the committer works on. There is one in a generation, in its first process.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) manifests: ManifestStore,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) commit_interval: Duration,
    /// Ticks for which a log may be away.
    pub(crate) absent: u64,
    /// Where there is a generator.
    pub(crate) keepers: Option<Keepers>,
    pub(crate) post: Post,
}

impl Committer {
    /// Commits what comes through the mailbox, for ever, and tells all processes.
    ///
    /// # Errors
    /// Somebody else commits, too, or what is to be committed cannot be encoded: this generation must end.
    pub(crate) async fn run(mut self, mut current: Manifest, mailbox: &Mailbox) -> Result<(), ManifestError> {
        let mut last_written = Instant::now();
        // Since the last manifest, with checkpoints that were not worth a commit.
        let mut changed = false;
        loop {
            let checkpoint = mailbox.take().await;
            changed |= checkpoint.changed;
            let moved = changed || checkpoint.positions.iter().any(|(wal, positions)| current.positions.get(wal) != Some(positions));
            if checkpoint.blocks.is_empty() && (!moved || last_written.elapsed() < self.commit_interval) {
                continue;
            }
            let mut next = current.next(checkpoint.tick, &checkpoint.positions, checkpoint.blocks.clone(), checkpoint.since, self.absent);
            if let Some(keepers) = &mut self.keepers {
                next.generator = keepers.keep(&self.post, &next).await?;
            }
            self.write(&next).await?;
            changed = false;
            last_written = Instant::now();
            let mut blocks = Vec::with_capacity(checkpoint.blocks.len());
            for block in checkpoint.blocks {
                // Even a new block may be gone: the process may have been suspended since it was uploaded.
                match publish(&self.store, &block).await {
                    Publication::Live => blocks.push((block.meta, true)),
                    // It was published, and whoever compacted it since has listed what took its place.
                    Publication::Compacted => blocks.push((block.meta, false)),
                    Publication::Gone => {
                        self.metrics.skip_block(&block.meta, "gone", "its objects are not in the bucket");
                        blocks.push((block.meta, false));
                    }
                }
                self.metrics.blocks_flushed.inc();
                // The manifest that lists it is there: both happen at once here.
                self.metrics.blocks_cleared.inc();
            }
            self.metrics.commits.inc();
            let Manifest { sequence, tick, .. } = next;
            self.post.send_all(&Word::Committed(Json(Committed { sequence, tick, positions: checkpoint.positions, blocks })));
            current = next;
        }
    }

    async fn write(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let mut backoff = Backoff::default();
        loop {
            match self.manifests.store(manifest).await {
                Ok(()) => return Ok(()),
                // An earlier try of ours may have arrived although its answer did not.
                Err(ManifestError::Conflict { .. }) if self.manifests.load().await.is_ok_and(|there| there == *manifest) => return Ok(()),
                Err(error @ ManifestError::Conflict { .. }) => return Err(error),
                Err(error) => {
                    self.metrics.commit_failures.inc();
                    backoff.wait("manifest", &error).await;
                }
            }
        }
    }
}

/// Writes `meta.json`, however long it takes, unless the block has been compacted or deleted since it was committed.
pub(crate) async fn publish(store: &Store, block: &CommittedBlock) -> Publication {
    let mut backoff = Backoff::default();
    loop {
        match storage::compactor::publish(store, &block.meta).await {
            Ok(publication) => return publication,
            Err(error) => backoff.wait("meta.json", &error).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(workers: usize, logs: usize, has_generator: bool) -> Expected {
        Expected { workers, logs, has_generator, every: 4, replicas: Replicas::default() }
    }

    fn wal(log: usize) -> Uuid {
        Uuid::from_u128(log as u128)
    }

    fn mark(log: usize, since: u64, until: u64, position: u64) -> Mark {
        Mark { log, wal: wal(log), since, until, position: Position(position) }
    }

    fn held(worker: usize, tick: u64, oldest: Option<u64>) -> Outcome {
        Outcome::Held { worker, tick, oldest }
    }

    fn positions(log: usize, held: u64, counted: u64) -> (Uuid, Positions) {
        (wal(log), Positions { held: Position(held), counted: Position(counted) })
    }

    fn at(tick: u64, positions: impl Into<BTreeMap<Uuid, Positions>>) -> Checkpoint {
        Checkpoint { tick, positions: positions.into(), since: u64::MAX, ..Checkpoint::default() }
    }

    #[test]
    fn a_checkpoint_needs_every_worker_and_every_mark() {
        let mut collector = Collector::new(expected(2, 2, false));
        collector.outcome(held(0, 4, Some(3)));
        for log in 0..2 {
            collector.mark(mark(log, 0, 0, 10 + log as u64));
            collector.mark(mark(log, 2, 2, 50 + log as u64));
        }
        collector.mark(mark(0, 3, 6, 100));
        collector.mark(mark(1, 4, 4, 90));
        assert_eq!(collector.complete(), None, "a worker is missing");
        collector.outcome(held(1, 4, None));
        assert_eq!(collector.complete(), Some(at(4, [positions(0, 50, 100), positions(1, 51, 90)])));
        assert_eq!(collector.complete(), None, "it was handed out");
        for worker in 0..2 {
            collector.outcome(held(worker, 8, None));
        }
        collector.mark(mark(0, 7, 9, 120));
        assert_eq!(collector.complete(), None, "a mark is missing");
        collector.mark(mark(1, 5, 8, 95));
        assert_eq!(collector.complete(), Some(at(8, [positions(0, 120, 120), positions(1, 95, 95)])));
    }

    #[test]
    fn workers_and_feeds_may_leap_as_they_like() {
        let mut collector = Collector::new(expected(2, 2, false));
        collector.outcome(held(0, 8, Some(7)));
        collector.outcome(held(1, 20, Some(9)));
        collector.mark(mark(0, 3, 30, 100));
        collector.mark(mark(1, 1, 5, 10));
        collector.mark(mark(1, 7, 40, 20));
        assert_eq!(collector.complete(), Some(at(8, [positions(0, 100, 100), positions(1, 10, 20)])));
    }

    #[test]
    fn copies_are_held_with_their_spans() {
        let replicas = Replicas { earlier: 2, later: 5 };
        let mut collector = Collector::new(Expected { replicas, ..expected(1, 2, false) });
        for tick in 0..=16 {
            collector.mark(mark(0, tick, tick, 100 + tick));
            collector.mark(mark(1, tick, tick, 200 + tick));
        }
        collector.outcome(held(0, 16, Some(13)));
        let complete = collector.complete().expect("complete");
        assert_eq!(complete.positions, [positions(0, 110, 114), positions(1, 210, 214)].into());
        assert_eq!(complete.since, 5, "copies of what arrived at tick 5 may lie behind what was read at tick 10");
        for tick in 17..=24 {
            collector.mark(mark(0, tick, tick, 100 + tick));
            collector.mark(mark(1, tick, tick, 200 + tick));
        }
        collector.outcome(held(0, 24, None));
        let complete = collector.complete().expect("complete");
        // The first copy of what log 0 had at tick 23 may be one that log 1 had at tick 25, which is not counted yet.
        assert_eq!(complete.positions, [positions(0, 122, 122), positions(1, 222, 222)].into());
    }

    #[test]
    fn a_checkpoint_needs_every_shard_of_its_tick() {
        let mut collector = Collector::new(expected(1, 1, true));
        collector.outcome(held(0, 12, None));
        collector.mark(mark(0, 1, 100, 5));
        collector.ready(Ready { tick: 4, changed: true });
        collector.ready(Ready { tick: 8, changed: false });
        assert_eq!(collector.complete(), None);
        collector.ready(Ready { tick: 8, changed: false });
        collector.ready(Ready { tick: 12, changed: true });
        let complete = collector.complete().expect("tick 8 is complete");
        assert_eq!((complete.tick, complete.changed), (8, true), "what has changed at a tick that was passed over counts");
        let mailbox = Mailbox::default();
        mailbox.put(Checkpoint { tick: 8, changed: true, ..Checkpoint::default() });
        mailbox.put(Checkpoint { tick: 12, ..Checkpoint::default() });
        let absorbed = mailbox.waiting.lock().take().expect("one waits");
        assert_eq!((absorbed.tick, absorbed.changed), (12, true));
    }

    #[test]
    fn what_was_read_bounds_what_is_held() {
        let mut collector = Collector::new(expected(1, 1, false));
        collector.outcome(held(0, 8, Some(12)));
        collector.mark(mark(0, 8, 8, 90));
        assert_eq!(collector.complete(), Some(at(8, [positions(0, 90, 90)])));
        collector.mark(mark(0, 4, 4, 10));
        assert_eq!(collector.complete(), None, "an older checkpoint must not follow a newer one");
    }
}
