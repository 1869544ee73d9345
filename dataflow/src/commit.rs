//! Commits: from "this block is on the bucket" to "queries read it, and the log may forget its records".
//!
//! ```text
//!  worker 1..n ── Uploaded(block), Held(tick, oldest record) ──┐
//!         generator ── Shard(tick, series, halves, identities) ┤
//!  feed ── Mark(tick, position fed) ───────────────────────────┴─► Collector (worker 0) ─► Mailbox ─► committer task
//!      generator's objects ─► manifest written ─► meta.json of each new block ─► blocklist ─► workers drop their copies, WAL releases files
//!                                             └─► snapshot of the series published
//! ```
//!
//! A checkpoint at tick c is complete when every worker has said which record is the oldest that it holds outside uploaded blocks, and
//! the feed has said how far it had read, as of c. The smaller of the two is where a recovery must begin to read. A worker reports an
//! uploaded block before it stops counting it as held, on the same channel, so a complete checkpoint knows every block it relies on.
//! Where there is a generator, each worker's shards as of c belong to it, too.
//!
//! Commits are strictly one after the other: the next manifest is written only when all blocks of the last are published, which is what
//! allows it to drop them.

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::{backend::Store, blocklist::Blocklist, compactor::Publication, id::BlockId, wal::Position, wal::Wal};
use tokio::sync::Notify;

use crate::{
    generator::checkpoint::{self, Contents, Part, Shard},
    manifest::{CommittedBlock, Manifest, ManifestError, ManifestStore, Positions},
    metrics::Metrics,
    upload::Backoff,
};

/// What workers report to the committing one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A block is on the bucket, without its `meta.json`.
    Uploaded(CommittedBlock),
    /// As of a checkpoint tick: the oldest record that the worker holds outside uploaded blocks.
    Held { tick: u64, oldest: Option<Position> },
}

/// How far the feed had read as of a checkpoint tick.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) tick: u64,
    pub(crate) position: Position,
}

/// Something that can be committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) tick: u64,
    pub(crate) positions: Positions,
    pub(crate) blocks: Vec<CommittedBlock>,
    pub(crate) generated: Generated,
}

/// What the generator has come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Generated {
    pub(crate) contents: Contents,
    /// Of the spans that were counted since the checkpoint before.
    pub(crate) identities: Vec<u64>,
    /// Whether `contents` differ from those of the checkpoint before.
    pub(crate) changed: bool,
}

/// Shards as of one tick.
#[derive(Debug, Default)]
struct Shards {
    parts: usize,
    generated: Generated,
}

/// Puts reports and marks together. State of the commit operator.
#[derive(Debug)]
pub(crate) struct Collector {
    workers: usize,
    reports: BTreeMap<u64, (usize, Option<Position>)>,
    marks: BTreeMap<u64, Position>,
    uploaded: Vec<CommittedBlock>,
    shards: BTreeMap<u64, Shards>,
    /// Shards that make a tick complete; none where there is no generator.
    parts: usize,
}

impl Collector {
    pub(crate) fn new(workers: usize, has_generator: bool) -> Self {
        let parts = if has_generator { 2 * workers } else { 0 };
        Self { workers, reports: BTreeMap::new(), marks: BTreeMap::new(), uploaded: Vec::new(), shards: BTreeMap::new(), parts }
    }

    pub(crate) fn shard(&mut self, shard: Shard) {
        let Shards { parts, generated } = self.shards.entry(shard.tick).or_default();
        *parts += 1;
        match shard.part {
            Part::Series { series, changed } => {
                generated.contents.series.extend(series);
                generated.changed |= changed;
            }
            Part::Observed { identities, halves, changed } => {
                generated.changed |= changed;
                generated.contents.halves.extend(halves);
                generated.identities.extend(identities);
            }
        }
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.marks.insert(mark.tick, mark.position);
    }

    pub(crate) fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Uploaded(block) => self.uploaded.push(block),
            Outcome::Held { tick, oldest } => {
                let (count, held) = self.reports.entry(tick).or_insert((0, None));
                *count += 1;
                *held = (*held).into_iter().chain(oldest).min();
            }
        }
    }

    /// The newest complete checkpoint, once. Older ones, complete or not, are forgotten: workers may skip ticks.
    pub(crate) fn complete(&mut self) -> Option<Checkpoint> {
        let complete = |(tick, (count, oldest)): (&u64, &(usize, Option<Position>))| {
            let mark = self.marks.get(tick).filter(|_| *count == self.workers)?;
            let parts = self.shards.get(tick).map_or(0, |shards| shards.parts);
            if parts < self.parts {
                return None;
            }
            // What was read by then has been seen by every operator, so it was counted, whether it is stored or not.
            Some((*tick, Positions { held: oldest.map_or(*mark, |oldest| oldest.min(*mark)), counted: *mark }))
        };
        let (tick, positions) = self.reports.iter().rev().find_map(complete)?;
        self.reports = self.reports.split_off(&(tick + 1));
        self.marks = self.marks.split_off(&(tick + 1));
        let later = self.shards.split_off(&(tick + 1));
        let mut generated = Generated::default();
        for (_, shards) in mem::replace(&mut self.shards, later) {
            generated.absorb(shards.generated);
        }
        Some(Checkpoint { tick, positions, blocks: mem::take(&mut self.uploaded), generated })
    }
}

impl Generated {
    /// Goes on to a newer checkpoint's.
    fn absorb(&mut self, newer: Self) {
        self.contents = newer.contents;
        self.identities.extend(newer.identities);
        self.changed |= newer.changed;
    }
}

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
            let newer = mem::replace(&mut checkpoint.generated, older.generated);
            checkpoint.generated.absorb(newer);
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

/// What the committer works on.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) manifests: ManifestStore,
    pub(crate) store: Store,
    pub(crate) blocklist: Blocklist,
    pub(crate) wal: Wal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) commit_interval: Duration,
    pub(crate) generator: Option<checkpoint::Keeper>,
}

impl Committer {
    /// Commits what comes through the mailbox, for ever; `committed` is told which blocks queries read from now on.
    ///
    /// # Errors
    /// Somebody else commits, too, or what is to be committed cannot be encoded: this generation must end.
    pub(crate) async fn run(
        &self,
        mut current: Manifest,
        mailbox: &Mailbox,
        committed: impl Fn(&[BlockId]) + Send,
    ) -> Result<(), ManifestError> {
        let mut last_written = Instant::now();
        // Of checkpoints that were not worth a commit.
        let mut pending = Generated::default();
        loop {
            let mut checkpoint = mailbox.take().await;
            pending.absorb(mem::take(&mut checkpoint.generated));
            let moved = current.positions.get(&self.wal.id()) != Some(&checkpoint.positions) || pending.changed;
            if checkpoint.blocks.is_empty() && (!moved || last_written.elapsed() < self.commit_interval) {
                continue;
            }
            let positions = BTreeMap::from([(self.wal.id(), checkpoint.positions)]);
            let mut next = current.next(checkpoint.tick, &positions, checkpoint.blocks.clone());
            if let Some(keeper) = &self.generator {
                keeper.write(&self.manifests, &mut next, &pending).await?;
            }
            self.write(&next).await?;
            if let Some(keeper) = &self.generator {
                keeper.publish(&next, &pending.contents);
            }
            pending = Generated::default();
            current = next;
            last_written = Instant::now();
            for block in &checkpoint.blocks {
                // New, so there is no need to look what became of it, unless this fails and perhaps did not.
                let outcome = match self.store.publish(&block.meta).await {
                    Ok(()) => Publication::Live,
                    Err(error) => {
                        tracing::warn!(%error, block_id = %block.meta.block_id, "bucket refused meta.json, trying again");
                        publish(&self.store, block).await
                    }
                };
                match outcome {
                    Publication::Live => self.blocklist.add(block.meta.clone()),
                    // It was published, and whoever compacted it since has listed what took its place.
                    Publication::Compacted => {}
                    Publication::Gone => self.metrics.skip_block(&block.meta, "gone", "its objects are not in the bucket"),
                }
                self.metrics.blocks_flushed.inc();
            }
            let ids: Vec<BlockId> = checkpoint.blocks.iter().map(|block| block.meta.block_id).collect();
            committed(&ids);
            self.metrics.commits.inc();
            if let Err(error) = self.wal.release(checkpoint.positions.held) {
                tracing::warn!(%error, "write-ahead log files could not be released");
            }
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

    #[test]
    fn a_checkpoint_needs_every_worker_and_the_mark() {
        let mut collector = Collector::new(2, false);
        collector.outcome(Outcome::Held { tick: 4, oldest: Some(Position(70)) });
        collector.mark(Mark { tick: 4, position: Position(100) });
        assert_eq!(collector.complete(), None);
        collector.outcome(Outcome::Held { tick: 4, oldest: Some(Position(50)) });
        assert_eq!(
            collector.complete(),
            Some(Checkpoint { tick: 4, positions: Positions { held: Position(50), counted: Position(100) }, ..Checkpoint::default() })
        );
        assert_eq!(collector.complete(), None);
    }

    #[test]
    fn a_checkpoint_needs_every_shard_and_loses_no_identity() {
        let mut collector = Collector::new(1, true);
        let observed = |tick, identities| Shard { tick, part: Part::Observed { identities, halves: Vec::new(), changed: false } };
        let series = |tick, changed| Shard { tick, part: Part::Series { series: Vec::new(), changed } };
        for tick in [4, 8] {
            collector.outcome(Outcome::Held { tick, oldest: None });
            collector.mark(Mark { tick, position: Position(tick) });
        }
        collector.shard(observed(4, vec![1]));
        collector.shard(series(8, true));
        assert_eq!(collector.complete(), None);
        collector.shard(observed(8, vec![2, 3]));
        collector.shard(observed(12, vec![4]));
        let complete = collector.complete().expect("tick 8 is complete");
        assert_eq!((complete.tick, complete.generated.identities, complete.generated.changed), (8, vec![1, 2, 3], true));
        let mailbox = Mailbox::default();
        mailbox.put(Checkpoint {
            tick: 8,
            generated: Generated { identities: vec![1], changed: true, ..Generated::default() },
            ..Checkpoint::default()
        });
        mailbox.put(Checkpoint { tick: 12, generated: Generated { identities: vec![4], ..Generated::default() }, ..Checkpoint::default() });
        let absorbed = mailbox.waiting.lock().take().expect("one waits");
        assert_eq!((absorbed.tick, absorbed.generated.identities, absorbed.generated.changed), (12, vec![1, 4], true));
    }

    #[test]
    fn what_was_read_bounds_what_is_held() {
        let mut collector = Collector::new(1, false);
        collector.outcome(Outcome::Held { tick: 4, oldest: None });
        collector.outcome(Outcome::Held { tick: 8, oldest: Some(Position(120)) });
        collector.mark(Mark { tick: 8, position: Position(90) });
        assert_eq!(collector.complete().map(|checkpoint| (checkpoint.tick, checkpoint.positions.held)), Some((8, Position(90))));
        collector.mark(Mark { tick: 4, position: Position(10) });
        assert_eq!(collector.complete(), None, "an older checkpoint must not follow a newer one");
    }
}
