//! Answers queries from recent data and from blocks.
//!
//! ```text
//!  request ─► Engine: plan ──► jobs ──► Runner ──► answers ─► Engine: combine ─► response
//!              │                          │
//!              └─ Snapshot of the         ├─ Units: Recent (dataflow), OpenBlocks, scans     in this process
//!                 list of blocks          └─ frontend::Queue ─► queriers, each with Units    in others
//! ```
//!
//! The engine knows which blocks there are and what tenants may do, and never reads one; [`Units`] read, and know neither. Between the two
//! there are [`Job`]s and nothing else, so that a query runs the same way in one process or many.
//!
//! **No gap and no double.** Data moves from recent to blocks: it is cut into a block, the block is listed, and then it leaves recent. Every
//! answer about recent data is a snapshot of one moment and says two things beside the data: which block each part is going into, if any, and
//! which blocks have left recent lately ([`Recent`]). So the list of blocks may be taken before recent is asked, and may be as old as a
//! poll, in another process too: what left recent since then is named by the answer and read as well. Whoever must not see a span twice drops
//! the parts that are going into a block that is listed or was compacted since ([`plan::Snapshot::holds`]); whoever combines spans recognises
//! them by their identity. A block whose bytes are deleted while a query reads it has left the list before, and what took its place is on it:
//! such a query begins again.
//!
//! **Bounds.** Point reads share one semaphore. Scans, which decode whole row groups, share a much smaller one, run on blocking threads, and
//! hold one row group each, whose bytes come out of the budget that all jobs of a query share, and of that of the process ([`memory`]). What
//! comes of jobs and waits for being merged has a budget, too. Answers are bounded by their own limits (size of a
//! trace, number of traces, bytes of tag values). A query may go on for as long as it gets on: it fails when
//! nothing has come of its jobs for the time that one of them may take. Then, or when the client goes away, its jobs are dropped, and scans stop
//! at the next row group.
//!
//! **Determinism.** Jobs run concurrently but their answers are taken in order, newest block first, so that the same query on the same data
//! gives the same answer, whoever ran its jobs.

mod combine;
mod gathered;
mod legacy;
mod matcher;
pub mod memory;
mod metrics;
mod newest;
mod open_blocks;
pub(crate) mod part;
pub(crate) mod plan;
mod recent;
mod search;
mod stream;
mod tags;
mod trace;
mod units;

use std::{fmt::Debug, ops::RangeInclusive, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use prometheus::Registry;
use storage::{
    backend::Store,
    block::{BlockError, Meta, chain},
    blocklist::Blocklist,
    clock::Clock,
    id::{BlockId, Tenant, TraceId},
    otlp::WireError,
};

use self::memory::{Account, Held, Pool};
pub(crate) use self::tags::INTRINSICS;
pub use self::{
    legacy::{InvalidTags, LegacyTags},
    recent::{Recent, RecentError},
    search::{Condition, SearchRequest},
    stream::Streaming,
    tags::{NamesRequest, TagName, TagScope, Tags, TextIntrinsic, ValuesRequest},
    trace::{FoundTrace, TraceRequest},
    units::{ExternalError, ExternalTraces, RecentSource, Units},
};
use crate::{
    job::{Answer, Job, QueryId, Runner},
    metrics::Metrics,
    traceql::ExecutionError,
};

/// Settings of the engine and its units.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most bytes that a query may read from blocks; 0 means any number. Too small and long ranges fail, too large and one query may keep
    /// the disks busy for minutes.
    pub max_bytes_per_query: u64,
    /// Most bytes, as protobuf, that the answer to a search may grow to; 0 means any number. Such an answer is held in memory.
    pub max_bytes_per_answer: usize,
    /// Bytes of memory that the jobs of all queries in this process together may hold, decoded row groups and what they count; 0 means any
    /// number. Their answers may hold a quarter of it in addition, where they are gathered.
    pub memory_bytes: u64,
    /// Bytes of memory that the jobs of one query in this process may hold, and their answers a quarter of it; 0 means any number.
    pub memory_bytes_per_query: u64,
    /// Bytes of blocks that make one job. Too small and jobs cost more than what they do; too large and they cannot be spread.
    pub target_bytes_per_job: u64,
    /// Most jobs of one query at a time.
    pub concurrent_jobs: usize,
    /// Bytes of blocks that make one job of a metrics query.
    pub metrics_bytes_per_job: u64,
    /// Most jobs of one metrics query at a time.
    pub metrics_concurrent_jobs: usize,
    /// Most jobs that the look-up of a trace is cut into; one of them is for recent data.
    pub trace_shards: usize,
    /// Most of these at a time; 0 means all.
    pub concurrent_shards: usize,
    /// Whether traces are looked up in a store that is not ours, too.
    pub external_traces: bool,
    /// Most point reads (one trace in one block) at a time, over all queries.
    pub concurrent_reads: usize,
    /// Most scans at a time, over all queries. Each holds a decoded row group, so this bounds memory; about one per CPU.
    pub concurrent_scans: usize,
    /// Most opened blocks that are kept.
    pub open_blocks: usize,
    /// Most bytes of footers that are kept.
    pub open_blocks_bytes: u64,
    /// How long a job of a trace lookup may take.
    pub trace_timeout: Duration,
    /// How long a job of a search, a tag query or a metrics query may take.
    pub search_timeout: Duration,
    /// How far back blocks are searched when the client gives no range. All recent data is searched in any case.
    pub default_lookback: Duration,
    /// How far from a matching part of a trace the rest of it may lie: search looks for the other parts only in blocks that come this near.
    pub trace_spread: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_bytes_per_query: 0,
            max_bytes_per_answer: 64 << 20,
            memory_bytes: 0,
            memory_bytes_per_query: 0,
            target_bytes_per_job: 100 << 20,
            concurrent_jobs: 1000,
            metrics_bytes_per_job: 100 << 20,
            metrics_concurrent_jobs: 1000,
            trace_shards: 50,
            concurrent_shards: 0,
            external_traces: false,
            concurrent_reads: 400,
            concurrent_scans: 2,
            open_blocks: 512,
            open_blocks_bytes: 64 << 20,
            trace_timeout: Duration::from_secs(10),
            search_timeout: Duration::from_secs(30),
            default_lookback: Duration::from_secs(3600),
            trace_spread: Duration::from_secs(3600),
        }
    }
}

/// What a tenant may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a trace as protobuf; 0 means any number.
    pub max_bytes_per_trace: usize,
    /// Bytes of tag names or values in one answer; 0 means any number.
    pub max_bytes_per_tag_values_query: usize,
    /// Blocks that a tag query reads; 0 means any number.
    pub max_blocks_per_tag_values_query: usize,
    /// Longest range of a search; zero means the API's own limit.
    pub max_search_duration: Duration,
    /// Longest range of a metrics query; zero means the API's own limit.
    pub max_metrics_duration: Duration,
    /// Whether search shows trace ids with all 32 digits.
    pub left_pad_trace_ids: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes_per_trace: 5_000_000,
            max_bytes_per_tag_values_query: 1_000_000,
            max_blocks_per_tag_values_query: 0,
            max_search_duration: Duration::ZERO,
            max_metrics_duration: Duration::ZERO,
            left_pad_trace_ids: false,
        }
    }
}

/// Gives each tenant its limits.
pub trait Overrides: Debug + Send + Sync {
    /// The tenant's limits as of now.
    fn limits(&self, tenant: &Tenant) -> Limits;
}

/// The same limits for everyone.
impl Overrides for Limits {
    fn limits(&self, _tenant: &Tenant) -> Limits {
        *self
    }
}

/// Why a query, or a job of it, has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Recent data cannot be read.
    #[error(transparent)]
    Recent(#[from] RecentError),
    /// A recent segment is not OTLP.
    #[error("recent trace \"{trace_id}\" of tenant \"{tenant}\": {source}")]
    Segment {
        /// Its tenant.
        tenant: Tenant,
        /// Its trace.
        trace_id: TraceId,
        /// What is wrong with it.
        source: WireError,
    },
    /// A block cannot be read.
    #[error("{}", chain(.0.as_ref()))]
    Block(Box<BlockError>),
    /// A block is not in the bucket any more.
    #[error("{cause}")]
    BlockGone {
        /// Its tenant.
        tenant: Tenant,
        /// The block.
        block: BlockId,
        /// What the bucket said; names the block.
        cause: String,
    },
    /// A job took too long.
    #[error("context deadline exceeded")]
    Deadline,
    /// The tenant has too many jobs waiting.
    #[error("job queue full")]
    QueueFull,
    /// The trace is larger than the tenant's limit.
    #[error("trace exceeds max size (max bytes: {max_bytes})")]
    TraceTooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The query reads too much.
    #[error("query reads more than {max_bytes} bytes of blocks, narrow its time range")]
    TooManyBytes {
        /// The limit.
        max_bytes: u64,
    },
    /// The query holds too much.
    #[error("query needs more than {max_bytes} bytes of memory, narrow its time range or group by less")]
    TooMuchMemory {
        /// The limit.
        max_bytes: u64,
    },
    /// All queries together hold too much.
    #[error("queries use all {max_bytes} bytes of memory that they may, try again later")]
    MemoryExhausted {
        /// The limit.
        max_bytes: u64,
    },
    /// The answer is too large.
    #[error("the answer is larger than {max_bytes} bytes, ask for fewer traces or spans")]
    AnswerTooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The query fails on some trace.
    #[error("{0}")]
    Execution(#[from] ExecutionError),
    /// A part of the query stopped working: a defect.
    #[error("a worker of the query failed: {cause}")]
    Worker {
        /// What it said.
        cause: String,
    },
    /// The process that ran a job is not reached any more.
    #[error("querier: {cause}")]
    Transport {
        /// What went wrong.
        cause: String,
    },
    /// The store that is not ours has no answer.
    #[error("external endpoint: {cause}")]
    External {
        /// What went wrong.
        cause: String,
    },
    /// A job failed in another process.
    #[error("{}", .0.message)]
    Remote(RemoteError),
}

/// What another process said of a job that failed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteError {
    /// As an HTTP status.
    pub status: u16,
    /// As a text for the client.
    pub message: String,
    /// Whether another try may succeed.
    pub retryable: bool,
}

impl QueryError {
    /// The HTTP status that clients of Tempo expect.
    pub fn status(&self) -> u16 {
        match self {
            Self::Deadline => 504,
            Self::QueueFull => 429,
            Self::TraceTooLarge { .. } => 422,
            Self::TooManyBytes { .. } | Self::TooMuchMemory { .. } | Self::AnswerTooLarge { .. } | Self::Execution(_) => 400,
            Self::Recent(_) | Self::Segment { .. } | Self::Block(_) | Self::BlockGone { .. } | Self::Worker { .. } => 500,
            Self::MemoryExhausted { .. } | Self::Transport { .. } | Self::External { .. } => 500,
            Self::Remote(error) => error.status,
        }
    }

    /// Whether the same job may succeed when it is tried again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Recent(_) | Self::Worker { .. } | Self::Transport { .. } | Self::External { .. } | Self::MemoryExhausted { .. } => true,
            Self::Block(error) => matches!(error.as_ref(), BlockError::Store { .. }),
            Self::Remote(error) => error.retryable,
            _ => false,
        }
    }
}

impl From<BlockError> for QueryError {
    fn from(error: BlockError) -> Self {
        match &error {
            BlockError::Store { block, tenant, source } if source.is_not_found() => {
                Self::BlockGone { tenant: tenant.clone(), block: *block, cause: chain(&error) }
            }
            _ => Self::Block(Box::new(error)),
        }
    }
}

/// A range of Unix seconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// First second.
    pub start: u64,
    /// Last second.
    pub end: u64,
}

impl TimeRange {
    /// Whether something between two Unix times in nanoseconds touches the range.
    pub(crate) fn overlaps(self, start_ns: u64, end_ns: u64) -> bool {
        start_ns <= self.end.saturating_mul(1_000_000_000) && end_ns >= self.start.saturating_mul(1_000_000_000)
    }
}

/// Plans queries and combines what their jobs found. See the module documentation. Clones share everything.
#[derive(Clone, Debug)]
pub struct Engine {
    settings: Settings,
    blocklist: Blocklist,
    /// The blocks of the list that it knows; all if absent.
    ids: Option<RangeInclusive<BlockId>>,
    runner: Arc<dyn Runner>,
    clock: Arc<dyn Clock>,
    overrides: Arc<dyn Overrides>,
    metrics: Arc<Metrics>,
    /// For what jobs answered.
    answers: Pool,
}

/// The share of memory that answers may have, beside that of jobs.
const ANSWERS: u64 = 4;

impl Engine {
    /// An engine that runs its jobs itself, with the default limits for every tenant.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: Settings,
        store: Store,
        blocklist: Blocklist,
        recent: Arc<dyn Recent>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let units = Units::new(&settings, store, Some(blocklist.clone()), RecentSource::Here(recent), registry)?;
        Self::over(Arc::new(units), settings, blocklist, clock, registry)
    }

    /// An engine whose jobs somebody else runs, with the default limits for every tenant.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn over(
        runner: Arc<dyn Runner>,
        settings: Settings,
        blocklist: Blocklist,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let answers = Pool::new(settings.memory_bytes / ANSWERS, settings.memory_bytes_per_query / ANSWERS, "answers", registry)?;
        let (overrides, metrics) = (Arc::new(Limits::default()), Arc::new(Metrics::new(registry)?));
        Ok(Self { settings, blocklist, ids: None, runner, clock, overrides, metrics, answers })
    }

    /// The engine with limits per tenant.
    #[must_use]
    pub fn with_overrides(mut self, overrides: Arc<dyn Overrides>) -> Self {
        self.overrides = overrides;
        self
    }

    /// The tenant's limits.
    pub fn limits(&self, tenant: &Tenant) -> Limits {
        self.overrides.limits(tenant)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The blocks as they are listed now. Recent data may be asked for before or afterwards, see [`plan::Snapshot`].
    pub(crate) fn snapshot(&self, tenants: &[Tenant], range: Option<TimeRange>) -> plan::Snapshot {
        let mut snapshot = plan::Snapshot::new(&self.blocklist, tenants, range);
        if let Some(ids) = &self.ids {
            snapshot.retain(ids);
        }
        snapshot
    }

    /// The description of a block, if it is on the list.
    pub(crate) fn listed(&self, tenant: &Tenant, block: BlockId) -> Option<Arc<Meta>> {
        self.blocklist.blocks(tenant).iter().find(|meta| meta.block_id == block).cloned()
    }

    /// For running the jobs of one query, which fails when nothing has come of them for as long as `patience`.
    pub(crate) fn begin(&self, patience: Duration) -> Running<'_> {
        let id = QueryId::new();
        Running { engine: self, id, patience, answers: self.answers.account(id) }
    }

    /// Does `work`. When a block turns out to be deleted that is not on the list any more, `work` is done again from its beginning, on the
    /// list as it is now: leaving the block out could miss what went from there to a block that is new.
    pub(crate) async fn on_one_list<T, F>(&self, work: impl Fn() -> F) -> Result<T, QueryError>
    where
        F: Future<Output = Result<T, QueryError>>,
    {
        loop {
            match work().await {
                Err(QueryError::BlockGone { tenant, block, cause }) if self.blocklist.is_gone(&tenant, block) => {
                    tracing::info!(error = cause, "block was deleted while it was read, the query begins again");
                }
                outcome => return outcome,
            }
        }
    }

    /// The range of blocks when the client gave none.
    pub(crate) fn lookback(&self) -> TimeRange {
        let now = self.clock.now();
        TimeRange { start: now.saturating_sub(self.settings.default_lookback).as_secs(), end: u64::MAX }
    }

    /// Counts the bytes that a query reads.
    pub(crate) fn charge(&self) -> Charge {
        Charge { bytes: 0, max_bytes: self.settings.max_bytes_per_query }
    }
}

/// A query that runs.
#[derive(Debug)]
pub(crate) struct Running<'e> {
    engine: &'e Engine,
    id: QueryId,
    /// How long nothing may come of its jobs.
    patience: Duration,
    /// What its answers hold here.
    answers: Account,
}

impl Running<'_> {
    /// Runs a job.
    pub(crate) async fn run(&self, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        tokio::time::timeout(self.patience, self.engine.runner.run(self.id, tenant, job)).await.unwrap_or(Err(QueryError::Deadline))
    }

    /// Nothing, which can grow with what is made of the answers.
    pub(crate) fn keep(&self) -> Result<Held, QueryError> {
        self.answers.keep(0)
    }

    /// For running jobs, at most so many at a time.
    pub(crate) fn in_order(&self, most: usize) -> InOrder<'_> {
        let most = most.max(1);
        InOrder { query: self, running: FuturesOrdered::new(), room: FIRST_JOBS.min(most), most }
    }
}

/// Jobs of one query that run at the same time and whose answers are taken in the order in which they were begun.
///
/// How many run begins small and grows with every answer, since many queries need few of their jobs, and later jobs can profit from what
/// earlier ones found. Dropping this cancels what runs.
pub(crate) struct InOrder<'q> {
    query: &'q Running<'q>,
    running: FuturesOrdered<BoxFuture<'q, Result<(Answer, Held), QueryError>>>,
    room: usize,
    most: usize,
}

/// Jobs that are begun before the first answer is there.
const FIRST_JOBS: usize = 32;

impl InOrder<'_> {
    /// Whether another job may begin.
    pub(crate) fn has_room(&self) -> bool {
        self.running.len() < self.room
    }

    /// Begins a job.
    pub(crate) fn begin(&mut self, tenant: Tenant, job: Job) {
        let query = self.query;
        self.running.push_back(Box::pin(async move {
            // Its time is not counted from here: it may wait in a queue until others have ended.
            let answer = query.engine.runner.run(query.id, &tenant, job).await?;
            // It may wait for long until those before it are there.
            let held = query.answers.keep(answer.bytes())?;
            Ok((answer, held))
        }));
    }

    /// The answer of the job that was begun first; `None` when there is none.
    pub(crate) async fn next(&mut self) -> Option<Result<Answer, QueryError>> {
        let Ok(answer) = tokio::time::timeout(self.query.patience, self.running.next()).await else {
            return Some(Err(QueryError::Deadline));
        };
        self.room = (self.room + 1).min(self.most);
        Some(answer?.map(|(answer, _)| answer))
    }
}

/// Bytes of blocks that a query reads.
#[derive(Debug)]
pub(crate) struct Charge {
    bytes: u64,
    max_bytes: u64,
}

impl Charge {
    /// Reads more.
    ///
    /// # Errors
    /// That is too much.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), QueryError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.max_bytes > 0 && self.bytes > self.max_bytes {
            return Err(QueryError::TooManyBytes { max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

/// Searches and tag queries have no way to say that something is missing, so that it is an error.
pub(crate) fn refuse_incomplete(is_incomplete: bool) -> Result<(), QueryError> {
    if is_incomplete { Err(RecentError { cause: INCOMPLETE.to_owned() }.into()) } else { Ok(()) }
}

/// Why recent data is missing in an answer.
pub(crate) const INCOMPLETE: &str = "not all processes that take spans in have answered";

/// An answer of another kind than its job.
pub(crate) fn wrong_kind() -> QueryError {
    QueryError::Worker { cause: "an answer of another kind than was asked for".to_owned() }
}

/// First nanosecond of a block.
pub(crate) fn start_ns(meta: &Meta) -> u64 {
    u64::try_from(meta.start_time).unwrap_or(0).saturating_mul(1_000_000_000)
}

/// Last nanosecond of a block: its description counts whole seconds.
pub(crate) fn end_ns(meta: &Meta) -> u64 {
    u64::try_from(meta.end_time).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(999_999_999)
}

#[cfg(test)]
mod safety_tests;
