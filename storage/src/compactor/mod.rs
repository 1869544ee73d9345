//! Blocks become fewer and larger, and old ones go away (block-format.md §12, §13).
//!
//! ```text
//!  blocklist ──plan──► jobs ──owned?──► claim inputs ──merge──► decision ──► output's meta.json ──► inputs' meta.compacted.json
//!      ▲                                                                                        │
//!      └──────────────────────────── output in place of its inputs ◄────────────────────────────┘
//!  blocklist, listing ──retention──► mark expired blocks, delete compacted ones, clear what never came to be
//! ```
//!
//! Two loops run side by side. The compaction loop takes one tenant per cycle, in their order, passing over those that have nothing to do,
//! and works through its jobs until none is left or [`Settings::max_time_per_tenant`] is over. What fails is logged, counted and left alone
//! for a while; the other jobs go on.
//!
//! # Nothing is lost and nothing is served twice
//!
//! An output and its inputs hold the same spans, so readers must always see exactly one of the two, whatever is killed and whoever else
//! believes to own the job. [`Ownership`] only saves work; what follows does not rely on it, and not on clocks either. A bucket gives
//! put-if-absent of one object, so a job is a small two-phase commit over objects that are written once (module `ledger`):
//!
//! 1. *Look.* Each input is live and in nobody's hands. The inputs of the inputs are marked as compacted, should somebody have been stopped
//!    in the middle of that.
//! 2. *Claim* each input for the output, in the order of their ids.
//! 3. *Merge*: everything of the output but `meta.json`.
//! 4. *Look again*: the inputs are live. The output's file is as long as it should be.
//! 5. *Decide* to commit. Here and nowhere else the output becomes the one that holds the spans. The decision holds the `meta.json`.
//! 6. *Publish* `meta.json`. From here on readers pass over the inputs, because the output's `compactedFrom` names them.
//! 7. *Mark* the inputs as compacted, and put the output in their place in the list.
//!
//! A claim is valid until its output is given up, a decision is for ever, and both are put-if-absent. So an input is in at most one
//! output that can still be decided for; and of the decisions about one output the first counts.
//!
//! | stopped after | what is found | outcome |
//! |---|---|---|
//! | 1 | nothing | the inputs are live; done again |
//! | 2, 3, 4 | claims for an output without a decision | the inputs are live; the same instance does the same job again under the same id, or gives it up for another; other instances do so when neither the claim nor the last sign of life is younger than [`Settings::claim_timeout`] |
//! | 5 | a decision to commit, no `meta.json` | the inputs are live; whoever wants one of them, or sweeps the bucket, publishes the output and marks the inputs |
//! | 6, and within 7 | the output is live, some inputs are live, too | readers see the output alone; the sweep marks the inputs; so does whoever compacts or expires the output, before anything else |
//! | 7 | the output is live, the inputs are compacted | done |
//!
//! | two at once | outcome |
//! |---|---|
//! | the same job, or jobs that share an input | the second to claim it gives up its own output, so its other inputs are free |
//! | one thinks that the other is dead | it decides to abort; the other finds that when it wants to commit, or the one finds the commit and helps |
//! | retention expires an input meanwhile | found in 4, or else it lives on in the output until that expires |
//! | the output is compacted or deleted while somebody still means to publish it | `meta.compacted.json` is there until the last byte is gone, and publishing looks for it first |
//!
//! *Tempo on the same bucket* knows nothing of claims. Step 4 finds what it compacted meanwhile, as its own compactors find it; between
//! that and step 7 both may compact one block, which its own compactors may, too, and queries drop the copies.
//!
//! *Known limit*: a process that is suspended between two requests for longer than `compacted_block_retention`, and then sends the second,
//! can bring the `meta.json` of a deleted block back, without its data.

mod job;
mod ledger;
mod metrics;
mod plan;
mod publication;
mod replace;
mod retention;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::BoxFuture, stream};
use parking_lot::Mutex;
use prometheus::Registry;

use self::{
    job::{Outcome, Runner},
    ledger::Ledger,
    metrics::Metrics,
};
pub use self::{
    plan::{Job, Selection, plan},
    publication::{Publication, publish},
    replace::{ReplaceError, check, replace},
};
use crate::{
    backend::{Store, StoreError},
    block::{
        self, BlockError, Meta, chain,
        merge::{self, Merged},
    },
    blocklist::Blocklist,
    clock::Clock,
    id::{BlockId, Tenant},
    ownership::Ownership,
};

/// A block that failed is left alone this long, doubled with each failure.
const FIRST_PAUSE: i64 = 60;
/// And no longer than this.
const LONGEST_PAUSE: i64 = 6 * 3600;

/// How blocks are compacted and when they go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which blocks are merged.
    pub selection: Selection,
    /// How outputs are written.
    pub block: block::Settings,
    /// Bytes that all merges may hold together, about.
    pub memory_bytes: usize,
    /// Threads of all merges together.
    pub threads: usize,
    /// Jobs at the same time.
    pub jobs: usize,
    /// From the beginning of one cycle to that of the next, at least.
    pub cycle: Duration,
    /// No job begins after this long in one tenant.
    pub max_time_per_tenant: Duration,
    /// Time since their data was ingested after which blocks expire; 0: none does. A tenant's own goes before.
    pub block_retention: Duration,
    /// How long compacted blocks stay readable.
    pub compacted_block_retention: Duration,
    /// From the beginning of one round of retention to that of the next.
    pub retention_interval: Duration,
    /// Tenants that retention looks after at the same time.
    pub retention_concurrency: usize,
    /// From one sweep of a tenant's folder to the next.
    pub sweep_interval: Duration,
    /// Folders without any meta are left alone until they are this old, at least.
    pub garbage_age: Duration,
    /// A claim of another instance is given up for it after this long without a sign of life.
    pub claim_timeout: Duration,
    /// The name of this instance. Should be its own, and should be the same after a restart.
    pub instance: String,
}

impl Default for Settings {
    /// Tempo's defaults; one job at a time on one thread.
    fn default() -> Self {
        Self {
            selection: Selection::default(),
            block: block::Settings::default(),
            memory_bytes: 256 << 20,
            threads: 1,
            jobs: 1,
            cycle: Duration::from_secs(30),
            max_time_per_tenant: Duration::from_secs(300),
            block_retention: Duration::from_secs(14 * 24 * 3600),
            compacted_block_retention: Duration::from_secs(3600),
            retention_interval: Duration::from_secs(300),
            retention_concurrency: 10,
            sweep_interval: Duration::from_secs(3600),
            garbage_age: Duration::from_secs(24 * 3600),
            claim_timeout: Duration::from_secs(2 * 3600),
            instance: String::new(),
        }
    }
}

/// What a tenant has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Neither compaction nor retention.
    pub disabled: bool,
    /// In place of [`Selection::window`].
    pub window: Option<Duration>,
    /// In place of [`Settings::block_retention`].
    pub retention: Option<Duration>,
    /// Largest combined trace; 0: no limit (block-format.md §13.3).
    pub max_bytes_per_trace: usize,
}

/// Where the limits of tenants come from.
pub trait Overrides: Debug + Send + Sync + 'static {
    /// The limits of a tenant, now.
    fn limits(&self, tenant: &Tenant) -> Limits;
}

/// The same for all tenants.
impl Overrides for Limits {
    fn limits(&self, _tenant: &Tenant) -> Limits {
        *self
    }
}

/// Makes one block of several: [`merge::merge`], or what tests put in its place.
pub(crate) trait Merge: Debug + Send + Sync {
    /// Writes everything of the output but `meta.json`.
    fn merge<'a>(
        &'a self,
        store: &'a Store,
        inputs: &'a [Arc<Meta>],
        output: BlockId,
        settings: &'a merge::Settings,
    ) -> BoxFuture<'a, Result<Merged, BlockError>>;
}

#[derive(Debug)]
struct Columns;

impl Merge for Columns {
    fn merge<'a>(
        &'a self,
        store: &'a Store,
        inputs: &'a [Arc<Meta>],
        output: BlockId,
        settings: &'a merge::Settings,
    ) -> BoxFuture<'a, Result<Merged, BlockError>> {
        Box::pin(merge::merge(store, inputs, output, settings))
    }
}

/// Why a compaction failed.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The bucket refused something.
    #[error("bucket")]
    Store(#[from] StoreError),
    /// The blocks cannot be merged.
    #[error("merge")]
    Block(#[from] BlockError),
    /// The merge panicked.
    #[error("merge into block \"{output}\" panicked")]
    Panic {
        /// What was being written.
        output: BlockId,
    },
    /// A claim or a decision cannot be read.
    #[error("object \"{name}\" of block \"{block}\" is unreadable")]
    Ledger {
        /// The block.
        block: BlockId,
        /// The object.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Claims without end.
    #[error("block \"{block}\" was claimed {most} times in vain")]
    Claims {
        /// The block.
        block: BlockId,
        /// How often.
        most: u32,
    },
    /// Attempts without end.
    #[error("compaction of block \"{block}\" and others was given up {most} times")]
    Attempts {
        /// The first of the blocks.
        block: BlockId,
        /// How often.
        most: u32,
    },
    /// The output is not as it was written.
    #[error("file of the new block \"{output}\" does not end where its meta says")]
    Torn {
        /// The output.
        output: BlockId,
    },
    /// An output that was decided for is gone.
    #[error("data of block \"{output}\" is gone before it was published")]
    Vanished {
        /// The output.
        output: BlockId,
    },
}

/// Told when the first of the running merges begins, and when the last one has ended. A merge uses and frees arrays of megabytes all the
/// time, which an allocator may want to know.
pub trait Watcher: Debug + Send + Sync {
    /// Whether merges run from now on.
    fn merging(&self, any: bool);
}

/// Nobody wants to know.
impl Watcher for () {
    fn merging(&self, _any: bool) {}
}

/// The jobs that run. Whoever watches is told under the lock, so that what it is told last is so.
#[derive(Debug, Default)]
struct Running(Mutex<usize>);

/// A job that runs until this is dropped.
struct Begun<'c>(&'c Compactor);

impl<'c> Begun<'c> {
    fn new(compactor: &'c Compactor) -> Self {
        let mut running = compactor.running.0.lock();
        *running += 1;
        compactor.metrics.running.inc();
        if *running == 1 {
            compactor.watcher.merging(true);
        }
        Self(compactor)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut running = self.0.running.0.lock();
        *running -= 1;
        self.0.metrics.running.dec();
        if *running == 0 {
            self.0.watcher.merging(false);
        }
    }
}

/// What one cycle did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cycle {
    /// Jobs that wrote a block.
    pub compacted: usize,
    /// Jobs that turned out not to be ours to do.
    pub skipped: usize,
    /// Jobs that failed.
    pub failed: usize,
}

/// Compacts the blocks of a bucket and lets them expire.
#[derive(Debug)]
pub struct Compactor {
    settings: Settings,
    store: Store,
    blocklist: Blocklist,
    ownership: Arc<dyn Ownership>,
    overrides: Arc<dyn Overrides>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    merge: Box<dyn Merge>,
    watcher: Box<dyn Watcher>,
    running: Running,
    state: Mutex<State>,
}

/// What is known beyond a cycle, and may be forgotten.
#[derive(Debug, Default)]
struct State {
    /// The tenant that had the last cycle.
    last: Option<Tenant>,
    /// Blocks that are left alone until then, and how often they failed.
    paused: HashMap<BlockId, (i64, u32)>,
    /// When a tenant's folder was last swept.
    swept: HashMap<Tenant, i64>,
}

impl Compactor {
    /// A compactor of the blocks in a list, which somebody else keeps up to date.
    ///
    /// # Errors
    /// A metric of the same name is registered.
    pub fn new(
        settings: Settings,
        store: Store,
        blocklist: Blocklist,
        ownership: Arc<dyn Ownership>,
        overrides: Arc<dyn Overrides>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let metrics = Metrics::new(registry)?;
        let (merge, watcher) = (Box::new(Columns), Box::new(()));
        let (running, state) = (Running::default(), Mutex::default());
        Ok(Self { settings, store, blocklist, ownership, overrides, clock, metrics, merge, watcher, running, state })
    }

    /// The same with somebody who is told of merges.
    #[must_use]
    pub fn watched_by(self, watcher: impl Watcher + 'static) -> Self {
        Self { watcher: Box::new(watcher), ..self }
    }

    /// Compacts and retains until it is dropped, which is as safe as everything else that can happen to it.
    pub async fn run(&self) {
        let compaction = async {
            loop {
                let began = Instant::now();
                let cycle = self.cycle().await;
                if cycle != Cycle::default() {
                    tracing::debug!(?cycle, elapsed = ?began.elapsed(), "compaction cycle ended");
                }
                tokio::time::sleep(self.settings.cycle.saturating_sub(began.elapsed())).await;
            }
        };
        let retention = async {
            loop {
                let began = Instant::now();
                if let Err(error) = self.retain().await {
                    tracing::error!(error = chain(&error), "retention failed");
                    self.metrics.retention_errors.inc();
                }
                tokio::time::sleep(self.settings.retention_interval.saturating_sub(began.elapsed())).await;
            }
        };
        futures::future::join(compaction, retention).await;
    }

    fn now(&self) -> i64 {
        seconds_of(&*self.clock)
    }

    fn ledger(&self) -> Ledger {
        let claim_timeout = i64::try_from(self.settings.claim_timeout.as_secs()).unwrap_or(i64::MAX);
        Ledger { store: self.store.clone(), instance: self.settings.instance.clone(), claim_timeout }
    }

    /// One cycle: the next tenant that has jobs.
    pub async fn cycle(&self) -> Cycle {
        let mut tenants = self.blocklist.tenants();
        for tenant in tenants.iter().filter(|tenant| !self.overrides.limits(tenant).disabled) {
            self.mark_superseded(tenant).await;
        }
        let last = self.state.lock().last.clone();
        let next = tenants.partition_point(|tenant| last.as_ref().is_some_and(|last| tenant <= last));
        tenants.rotate_left(next);
        let mut cycle = Cycle::default();
        if let Some(tenant) = tenants.iter().find(|tenant| !self.jobs(tenant).is_empty()) {
            self.state.lock().last = Some(tenant.clone());
            cycle = self.compact(tenant).await;
        }
        self.measure(&tenants);
        cycle
    }

    /// The jobs of a tenant that are this instance's.
    fn jobs(&self, tenant: &Tenant) -> Vec<Job> {
        let limits = self.overrides.limits(tenant);
        if limits.disabled {
            return Vec::new();
        }
        let selection = Selection { window: limits.window.unwrap_or(self.settings.selection.window), ..self.settings.selection.clone() };
        let now = self.now();
        let mut blocks = self.blocklist.compactable(tenant);
        let state = self.state.lock();
        blocks.retain(|meta| state.paused.get(&meta.block_id).is_none_or(|(until, _)| *until <= now));
        drop(state);
        let mut jobs = plan(tenant, &blocks, &selection, now);
        jobs.retain(|job| self.ownership.owns(&job.key));
        jobs
    }

    /// Works through a tenant's jobs, and those that follow from them, until none is left or the time is over.
    async fn compact(&self, tenant: &Tenant) -> Cycle {
        let began = Instant::now();
        let in_time = || began.elapsed() < self.settings.max_time_per_tenant;
        let mut total = Cycle::default();
        loop {
            let jobs = self.jobs(tenant);
            let running = stream::iter(&jobs).take_while(|_| std::future::ready(in_time())).map(|job| self.job(job));
            let outcomes = running.buffer_unordered(self.settings.jobs.max(1)).collect::<Vec<_>>().await;
            let compacted = outcomes.iter().filter(|outcome| **outcome == Some(true)).count();
            total.compacted += compacted;
            total.skipped += outcomes.iter().filter(|outcome| **outcome == Some(false)).count();
            total.failed += outcomes.iter().filter(|outcome| outcome.is_none()).count();
            if compacted == 0 || !in_time() {
                return total;
            }
        }
    }

    /// Does a job; whether it wrote a block, or nothing if it failed.
    async fn job(&self, job: &Job) -> Option<bool> {
        let limits = self.overrides.limits(&job.tenant);
        let ledger = self.ledger();
        let runner = Runner {
            store: &self.store,
            blocklist: &self.blocklist,
            ownership: &*self.ownership,
            merge: &*self.merge,
            settings: &self.settings,
            ledger: &ledger,
            clock: &*self.clock,
        };
        let began = Instant::now();
        let running = Begun::new(self);
        let outcome = runner.run(job, &limits).await;
        drop(running);
        match outcome {
            Ok(outcome) => {
                self.metrics.jobs.with_label_values(&[outcome.name()]).inc();
                match outcome {
                    Outcome::Compacted(merged) => {
                        self.compacted(job, &merged, began.elapsed());
                        return Some(true);
                    }
                    Outcome::Flagged(block) => self.pause(&[block]),
                    Outcome::Taken => self.pause(&inputs(job)),
                    Outcome::Finished | Outcome::Gone | Outcome::Disowned => {}
                }
                Some(false)
            }
            Err(error) => {
                tracing::error!(tenant = %job.tenant, inputs = ?inputs(job), error = chain(&error), "compaction failed");
                self.metrics.jobs.with_label_values(&["failed"]).inc();
                self.metrics.errors.inc();
                self.pause(&to_blame(job, &error));
                None
            }
        }
    }

    fn compacted(&self, job: &Job, merged: &Merged, elapsed: Duration) {
        let level = job.level().to_string();
        let labels = [level.as_str()];
        let Merged { meta, objects_combined, spans_combined, spans_discarded } = merged;
        self.metrics.blocks.with_label_values(&labels).inc_by(job.inputs.len() as u64);
        self.metrics.objects_written.with_label_values(&labels).inc_by(meta.total_objects);
        self.metrics.bytes_written.with_label_values(&labels).inc_by(meta.size);
        self.metrics.objects_combined.with_label_values(&labels).inc_by(*objects_combined);
        self.metrics.spans_combined.with_label_values(&[&meta.replication_factor.to_string()]).inc_by(*spans_combined);
        if *spans_discarded > 0 {
            let labels = ["trace_too_large_to_compact", job.tenant.as_str()];
            self.metrics.discarded_spans.with_label_values(&labels).inc_by(*spans_discarded);
        }
        self.metrics.bytes_read.inc_by(job.bytes());
        self.metrics.job_seconds.observe(elapsed.as_secs_f64());
        let mut state = self.state.lock();
        for meta in &job.inputs {
            state.paused.remove(&meta.block_id);
        }
        drop(state);
        tracing::info!(
            tenant = %job.tenant,
            block = %meta.block_id,
            inputs = job.inputs.len(),
            level = meta.compaction_level,
            objects = meta.total_objects,
            bytes_read = job.bytes(),
            bytes = meta.size,
            ?elapsed,
            "blocks compacted"
        );
    }

    /// Leaves blocks alone for a while, so that they do not hold up the others.
    fn pause(&self, blocks: &[BlockId]) {
        let now = self.now();
        let mut state = self.state.lock();
        for &block in blocks {
            let (until, failures) = state.paused.entry(block).or_insert((now, 0));
            *until = now + (FIRST_PAUSE << (*failures).min(16)).min(LONGEST_PAUSE);
            *failures = failures.saturating_add(1);
        }
    }

    /// Reports what waits for this instance, and forgets what is gone.
    fn measure(&self, tenants: &[Tenant]) {
        let now = self.now();
        let mut live = HashSet::new();
        self.metrics.outstanding_blocks.reset();
        self.metrics.outstanding_bytes.reset();
        self.metrics.oldest_level0.reset();
        for tenant in tenants {
            let jobs = self.jobs(tenant);
            let labels = [tenant.as_str()];
            let blocks: usize = jobs.iter().map(|job| job.inputs.len()).sum();
            let bytes: u64 = jobs.iter().map(Job::bytes).sum();
            let level0 = jobs.iter().flat_map(|job| &job.inputs).filter(|meta| meta.compaction_level == 0);
            let age = level0.map(|meta| now.saturating_sub(meta.ingested_at())).max().unwrap_or_default().max(0);
            self.metrics.outstanding_blocks.with_label_values(&labels).set(i64::try_from(blocks).unwrap_or(i64::MAX));
            self.metrics.outstanding_bytes.with_label_values(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
            self.metrics.oldest_level0.with_label_values(&labels).set(age);
            live.extend(self.blocklist.blocks(tenant).iter().map(|meta| meta.block_id));
        }
        self.state.lock().paused.retain(|block, _| live.contains(block));
    }
}

/// The time in seconds since the Unix epoch.
fn seconds_of(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.now().as_secs()).unwrap_or(i64::MAX)
}

fn inputs(job: &Job) -> Vec<BlockId> {
    job.inputs.iter().map(|meta| meta.block_id).collect()
}

/// The inputs that a failure is about; all of them if it does not say.
fn to_blame(job: &Job, error: &CompactError) -> Vec<BlockId> {
    let block = match error {
        CompactError::Block(BlockError::Corrupt { block, .. } | BlockError::Unsupported { block, .. })
        | CompactError::Ledger { block, .. }
        | CompactError::Claims { block, .. } => *block,
        // The bucket is asked again in the next cycle.
        CompactError::Store(_) | CompactError::Block(BlockError::Store { .. }) => return Vec::new(),
        _ => BlockId::nil(),
    };
    let all = inputs(job);
    if all.contains(&block) { vec![block] } else { all }
}
