//! Answers queries from recent data and from blocks.
//!
//! ```text
//!              ┌─ Recent (dataflow) ── segments ─┐
//!  tenants ────┤      asked first                ├─► combine / evaluate ─► answer
//!              └─ Blocklist ── OpenBlocks ── scan ┘
//!                     asked second
//! ```
//!
//! **No gap and no double.** Data moves from recent to blocks, and a block is listed before its traces leave recent. So whoever asks recent
//! first and takes the list of blocks afterwards sees everything at least once; what is seen twice is dropped on (span id, kind). Both rules
//! hold for every query here, and nothing here keeps a list of blocks across them. A block whose bytes are deleted while a query reads it
//! has left the list before, and what took its place is on it: such a query begins again.
//!
//! **Bounds.** Point reads share one semaphore. Scans, which decode whole row groups, share a much smaller one, run on blocking threads, and
//! hold one row group each. Answers are bounded by their own limits (size of a trace, number of traces, bytes of tag values). Every query has a deadline;
//! when it passes, or the client goes away, scans stop at the next row group.
//!
//! **Determinism.** Blocks are read concurrently but taken in order, newest first, so that the same query on the same data gives the same
//! answer, counters included.

mod combine;
mod legacy;
mod open_blocks;
mod search;
mod tags;
mod trace;

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use prometheus::Registry;
use storage::{
    backend::Store,
    block::{BlockError, Meta, Projection, Trace, chain},
    blocklist::Blocklist,
    clock::Clock,
    id::{Tenant, TraceId},
    otlp::WireError,
    segment::Segment,
};
use tokio::sync::Semaphore;

pub(crate) use self::tags::INTRINSICS;
use self::{combine::Combiner, open_blocks::OpenBlocks};
pub use self::{
    legacy::{InvalidTags, LegacyTags},
    search::{Condition, SearchRequest},
    tags::{NamesRequest, TagName, TagScope, Tags, TextIntrinsic, ValuesRequest},
    trace::{FoundTrace, TraceRequest},
};
use crate::{metrics::Metrics, traceql::ExecutionError};

/// The spans of one trace that are recent.
#[derive(Clone, Debug)]
pub struct RecentTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its segments, in any order.
    pub segments: Vec<Arc<Segment>>,
}

/// Data that may not be in a listed block yet.
///
/// Implementations owe one thing: a span leaves only after the block that holds it is in the [`Blocklist`].
#[async_trait]
pub trait Recent: Debug + Send + Sync {
    /// Everything known of one trace that may not be in a listed block yet.
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<Vec<Arc<Segment>>, RecentError>;

    /// All recent traces of the tenant, each once.
    async fn traces(&self, tenant: &Tenant) -> Result<Vec<RecentTrace>, RecentError>;
}

/// Why recent data cannot be read. Without it an answer could miss spans that were acknowledged, so the query fails; try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot guarantee complete results: {cause}")]
pub struct RecentError {
    /// What is wrong.
    pub cause: String,
}

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most bytes that a query may read from blocks; 0 means any number. Too small and long ranges fail, too large and one query may keep
    /// the disks busy for minutes.
    pub max_bytes_per_query: u64,
    /// Most bytes, as protobuf, that the answer to a search may grow to; 0 means any number. Such an answer is held in memory.
    pub max_bytes_per_answer: usize,
    /// Most point reads (one trace in one block) at a time, over all queries.
    pub concurrent_reads: usize,
    /// Most scans at a time, over all queries. Each holds a decoded row group, so this bounds memory; about one per CPU.
    pub concurrent_scans: usize,
    /// Most opened blocks that are kept.
    pub open_blocks: usize,
    /// Most bytes of footers that are kept.
    pub open_blocks_bytes: u64,
    /// Deadline of a trace lookup.
    pub trace_timeout: Duration,
    /// Deadline of searches and tag queries.
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

/// Why a query has no answer.
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
    /// The deadline has passed.
    #[error("context deadline exceeded")]
    Deadline,
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
}

impl From<BlockError> for QueryError {
    fn from(error: BlockError) -> Self {
        Self::Block(Box::new(error))
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
    fn overlaps(self, start_ns: u64, end_ns: u64) -> bool {
        start_ns <= self.end.saturating_mul(1_000_000_000) && end_ns >= self.start.saturating_mul(1_000_000_000)
    }
}

/// Answers queries. See the module documentation.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    store: Store,
    blocklist: Blocklist,
    recent: Arc<dyn Recent>,
    clock: Arc<dyn Clock>,
    overrides: Arc<dyn Overrides>,
    open_blocks: OpenBlocks,
    reads: Semaphore,
    scans: Arc<Semaphore>,
    metrics: Metrics,
}

impl Engine {
    /// An engine with the default limits for every tenant.
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
        Ok(Self {
            open_blocks: OpenBlocks::new(settings.open_blocks, settings.open_blocks_bytes),
            reads: Semaphore::new(settings.concurrent_reads.clamp(1, Semaphore::MAX_PERMITS)),
            scans: Arc::new(Semaphore::new(settings.concurrent_scans.clamp(1, Semaphore::MAX_PERMITS))),
            metrics: Metrics::new(registry)?,
            overrides: Arc::new(Limits::default()),
            settings,
            store,
            blocklist,
            recent,
            clock,
        })
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

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Does `work` within a time. When a block turns out to be deleted that is not on the list any more, `work` is done again from its
    /// beginning, on the list as it is now: leaving the block out could miss what went from there to a block that is new.
    async fn on_one_list<T, F>(&self, timeout: Duration, work: impl Fn() -> F) -> Result<T, QueryError>
    where
        F: Future<Output = Result<T, QueryError>>,
    {
        let until_it_holds = async {
            loop {
                match work().await {
                    Err(QueryError::Block(error)) if self.was_deleted(&error) => {
                        tracing::info!(error = chain(error.as_ref()), "block was deleted while it was read, the query begins again");
                    }
                    outcome => return outcome,
                }
            }
        };
        within(timeout, until_it_holds).await
    }

    /// Whether a block could not be read because it was deleted, as it should be.
    fn was_deleted(&self, error: &BlockError) -> bool {
        match error {
            BlockError::Store { block, tenant, source } => source.is_not_found() && self.blocklist.is_gone(tenant, *block),
            _ => false,
        }
    }

    /// The blocks of the tenants that may hold something of the range, newest first: by end descending, then by id, so that the order does
    /// not depend on when a block was added. Take it only after recent data was asked for.
    fn blocks(&self, tenants: &[Tenant], range: Option<TimeRange>) -> Vec<Arc<Meta>> {
        self.open_blocks.close_unlisted(&self.blocklist);
        let mut blocks: Vec<_> = tenants
            .iter()
            .flat_map(|tenant| self.blocklist.blocks(tenant).iter().cloned().collect::<Vec<_>>())
            .filter(|meta| range.is_none_or(|range| range.overlaps(start_ns(meta), end_ns(meta))))
            .collect();
        blocks.sort_by_key(|meta| (std::cmp::Reverse(end_ns(meta)), meta.block_id));
        blocks
    }

    /// The range of blocks when the client gave none.
    fn lookback(&self) -> TimeRange {
        let now = self.clock.now();
        TimeRange { start: now.saturating_sub(self.settings.default_lookback).as_secs(), end: u64::MAX }
    }

    /// Hands all recent traces of a tenant to a visitor, on a blocking thread.
    async fn scan_recent<V: Visitor>(&self, tenant: &Tenant, mut visitor: V, query: &Query) -> Result<V, QueryError> {
        let mut traces = self.recent.traces(tenant).await?;
        // Bounded answers depend on what comes first.
        traces.sort_unstable_by_key(|trace| trace.trace_id);
        let tenant = tenant.clone();
        let cancelled = query.cancelled();
        let permit = self.scan_permit().await?;
        blocking(move || {
            let _permit = permit;
            for recent in &traces {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                if let Some(trace) = assemble(&tenant, recent)? {
                    visitor.visit(trace)?;
                }
            }
            Ok(visitor)
        })
        .await
    }

    /// Hands all traces of a block to a visitor, row group by row group. This is a task of its own, so that the permit is held until the
    /// last row group is gone, even when nobody waits for the answer any more.
    async fn scan_block<V: Visitor>(
        &self,
        meta: &Arc<Meta>,
        projection: Projection,
        mut visitor: V,
        query: &Query,
    ) -> Result<V, QueryError> {
        let permit = self.scan_permit().await?;
        let reader = self.open_blocks.open(&self.store, meta).await?;
        let cancelled = query.cancelled();
        let budget = query.budget();
        let scan = tokio::spawn(async move {
            let _permit = permit;
            let bytes = reader.meta().size.div_ceil(reader.row_groups().max(1) as u64);
            for row_group in 0..reader.row_groups() {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                budget.charge(bytes)?;
                let traces = reader.scan(row_group, projection).await?;
                visitor = blocking(move || {
                    traces.into_iter().try_for_each(|trace| visitor.visit(trace))?;
                    Ok(visitor)
                })
                .await?;
            }
            Ok(visitor)
        });
        scan.await.unwrap_or_else(|error| Err(QueryError::Worker { cause: error.to_string() }))
    }

    /// Scans blocks concurrently and hands what the visitors gathered to `take`, in the order of the blocks, until it says stop.
    async fn scan_blocks<V: Visitor>(
        &self,
        blocks: Vec<Arc<Meta>>,
        projection: Projection,
        query: &Query,
        visitor: impl Fn(&Meta) -> V,
        mut take: impl FnMut(&Meta, V) -> Flow,
    ) -> Result<(), QueryError> {
        let visitor = &visitor;
        let mut scans = futures::stream::iter(blocks)
            .map(|meta| async move {
                let visitor = self.scan_block(&meta, projection, visitor(&meta), query).await;
                (meta, visitor)
            })
            .buffered(self.settings.concurrent_scans.max(1) * 2);
        while let Some((meta, visitor)) = scans.next().await {
            if take(&meta, visitor?) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    async fn scan_permit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, QueryError> {
        Arc::clone(&self.scans).acquire_owned().await.map_err(|error| QueryError::Worker { cause: error.to_string() })
    }

    fn query(&self) -> Query {
        Query {
            cancelled: Arc::new(AtomicBool::new(false)),
            budget: Arc::new(Budget { read: AtomicU64::new(0), max_bytes: self.settings.max_bytes_per_query }),
        }
    }
}

/// Whether more is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

/// Looks at traces one after the other, on a thread of its own.
trait Visitor: Send + 'static {
    fn visit(&mut self, trace: Trace) -> Result<(), QueryError>;
}

/// A running query. Dropping it tells its scans to stop.
#[derive(Debug)]
struct Query {
    cancelled: Arc<AtomicBool>,
    budget: Arc<Budget>,
}

impl Query {
    fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.budget)
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Bytes that a query has read from blocks.
#[derive(Debug)]
struct Budget {
    read: AtomicU64,
    max_bytes: u64,
}

impl Budget {
    fn charge(&self, bytes: u64) -> Result<(), QueryError> {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        if self.max_bytes > 0 && before + bytes > self.max_bytes {
            return Err(QueryError::TooManyBytes { max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

/// First nanosecond of a block.
fn start_ns(meta: &Meta) -> u64 {
    u64::try_from(meta.start_time).unwrap_or(0).saturating_mul(1_000_000_000)
}

/// Last nanosecond of a block: its description counts whole seconds.
fn end_ns(meta: &Meta) -> u64 {
    u64::try_from(meta.end_time).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(999_999_999)
}

/// Puts the segments of a recent trace together; `None` when there are none.
fn assemble(tenant: &Tenant, recent: &RecentTrace) -> Result<Option<Trace>, QueryError> {
    let mut combiner = Combiner::new(0);
    for segment in &recent.segments {
        combiner.add(decode(tenant, segment)?);
    }
    let trace = combiner.finish(recent.trace_id);
    Ok((!trace.resource_spans.is_empty()).then_some(trace))
}

fn decode(tenant: &Tenant, segment: &Segment) -> Result<Vec<opentelemetry_proto::tonic::trace::v1::ResourceSpans>, QueryError> {
    let failed = |source| QueryError::Segment { tenant: tenant.clone(), trace_id: segment.trace_id, source };
    segment.decode().map_err(failed)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, QueryError> + Send + 'static) -> Result<T, QueryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(QueryError::Worker { cause: error.to_string() }),
    }
}

async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(QueryError::Deadline))
}
