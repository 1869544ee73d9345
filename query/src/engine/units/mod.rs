//! Runs jobs in this process: the only part of the query side that reads blocks and recent data.
//!
//! ```text
//!  Job ─► trace       point reads: filters of all blocks, then the few that may hold the trace
//!       ─► candidates  scan row groups, or recent data; evaluate; keep the newest
//!       ─► examine     whole traces out of recent data and blocks; evaluate; show
//!       ─► tags        scan row groups, or recent data; gather texts
//!       ─► metrics     scan row groups, or recent data; partial series
//! ```
//!
//! Each kind of job is a function of its own on [`Units`], and what it does to a trace is a [`Visitor`].
//!
//! *Invariants:* a job that nobody waits for any more stops at the next row group; a scan holds its permit and its memory until the last row
//! group is gone; a job whose place is recent data runs where the data is.

mod candidates;
mod examine;
mod external;
mod metrics;
mod tags;
mod trace;

pub use self::external::{ExternalError, ExternalTraces};

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use prometheus::Registry;
use storage::{
    backend::Store,
    block::{Projection, Trace},
    blocklist::Blocklist,
    id::Tenant,
    recent::RecentTrace,
    segment::Segment,
};
use tokio::sync::Semaphore;

use super::{
    QueryError, Recent, Settings,
    combine::Combiner,
    memory::{Account, Pool},
    open_blocks::OpenBlocks,
};
use crate::{
    columns::{Batch, Scan, Wanted},
    job::{Answer, BlockPart, Job, QueryId, Recency, Runner},
};

/// Bytes of memory of recent traces that are looked at together, about.
const LIVE_BYTES: u64 = 16 << 20;

/// Where recent data is.
#[derive(Clone, Debug)]
pub enum RecentSource {
    /// In this process.
    Here(Arc<dyn Recent>),
    /// In others, which run the jobs that need it.
    Elsewhere(Arc<dyn Runner>),
}

/// Runs jobs. See the module documentation.
#[derive(Debug)]
pub struct Units {
    store: Store,
    recent: RecentSource,
    blocklist: Option<Blocklist>,
    open_blocks: OpenBlocks,
    reads: Semaphore,
    scans: Arc<Semaphore>,
    concurrent_reads: usize,
    memory: Pool,
    external: Option<ExternalTraces>,
}

impl Units {
    /// With a list of blocks, opened ones are closed when they leave it.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        settings: &Settings,
        store: Store,
        blocklist: Option<Blocklist>,
        recent: RecentSource,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        Ok(Self {
            store,
            recent,
            blocklist,
            open_blocks: OpenBlocks::new(settings.open_blocks, settings.open_blocks_bytes),
            reads: Semaphore::new(settings.concurrent_reads.clamp(1, Semaphore::MAX_PERMITS)),
            scans: Arc::new(Semaphore::new(settings.concurrent_scans.clamp(1, Semaphore::MAX_PERMITS))),
            concurrent_reads: settings.concurrent_reads.max(1),
            memory: Pool::new(settings.memory_bytes, settings.memory_bytes_per_query, "jobs", registry)?,
            external: None,
        })
    }

    /// The units with a store that is not ours, for look-ups of traces.
    #[must_use]
    pub fn with_external(self, external: ExternalTraces) -> Self {
        Self { external: Some(external), ..self }
    }

    async fn run_here(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        if let Some(list) = &self.blocklist {
            self.open_blocks.close_unlisted(list);
        }
        let work = Work { cancelled: Arc::new(AtomicBool::new(false)), query, memory: self.memory.account(query) };
        Ok(match job {
            Job::Trace(job) => Answer::Trace(self.trace(tenant, job, &work).await?),
            Job::ExternalTrace(job) => {
                let failed = || QueryError::External { cause: "external mode is not enabled".to_owned() };
                Answer::Trace(self.external.as_ref().ok_or_else(failed)?.trace(tenant, &job).await?)
            }
            Job::Candidates(job) => Answer::Candidates(self.candidates(tenant, job, &work).await?),
            Job::Examine(job) => Answer::Examined(self.examine(job, &work).await?),
            Job::Tags(job) => Answer::Tags(self.tags(tenant, job, &work).await?),
            Job::Metrics(job) => Answer::Metrics(self.metrics(tenant, job, &work).await?),
        })
    }

    /// Hands all recent traces of a tenant to a visitor, on a blocking thread, in the order of their ids: bounded answers depend on what
    /// comes first. Returns what else is said of recent data, too.
    async fn scan_recent<V: Visitor>(&self, tenant: &Tenant, mut visitor: V, work: &Work) -> Result<(V, Recency), QueryError> {
        let RecentSource::Here(recent) = &self.recent else { return Err(elsewhere()) };
        let (mut traces, recency) = Recency::split(recent.traces(tenant).await?);
        traces.sort_unstable_by_key(|trace| trace.trace_id);
        let (tenant, cancelled) = (tenant.clone(), work.cancelled());
        let permit = self.scan_permit().await?;
        let mut held = work.memory.reserve_piece(LIVE_BYTES).await?;
        let visitor = blocking(move || {
            let _permit = permit;
            for recent in &traces {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                if let Some((trace, bytes)) = assemble(&tenant, recent)? {
                    held.resize(bytes.max(held.bytes()))?;
                    visitor.visit(trace)?;
                }
            }
            Ok(visitor)
        })
        .await?;
        Ok((visitor, recency))
    }

    /// Hands the traces of some row groups of a block to a visitor, row group by row group. This is a task of its own, so that the permit is
    /// held until the last row group is gone, even when nobody waits for the answer any more.
    async fn scan_block<V: Visitor>(&self, part: &BlockPart, projection: Projection, mut visitor: V, work: &Work) -> Result<V, QueryError> {
        let permit = self.scan_permit().await?;
        let reader = self.open_blocks.open(&self.store, &part.meta).await?;
        let (cancelled, memory) = (work.cancelled(), work.memory.clone());
        let row_groups = part.row_groups.start as usize..reader.row_groups().min(part.row_groups.end as usize);
        let scan = tokio::spawn(async move {
            let _permit = permit;
            for row_group in row_groups {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                let bytes = u64::try_from(reader.footer().row_group(row_group).total_byte_size()).unwrap_or(0);
                // Of all columns, while few are decoded, but into structures that are larger than their values.
                let held = memory.reserve_piece(bytes).await?;
                let traces = reader.scan(row_group, projection).await?;
                visitor = blocking(move || {
                    let _held = held;
                    traces.into_iter().try_for_each(|trace| visitor.visit(trace))?;
                    Ok(visitor)
                })
                .await?;
            }
            Ok(visitor)
        });
        scan.await.unwrap_or_else(|error| Err(QueryError::Worker { cause: error.to_string() }))
    }

    /// Hands all recent traces of a tenant to a visitor, in batches, on a blocking thread, in the order of their ids. Returns what
    /// else is said of recent data, too.
    async fn recent_batches<V: BatchVisitor>(&self, tenant: &Tenant, mut visitor: V, work: &Work) -> Result<(V, Recency), QueryError> {
        let RecentSource::Here(recent) = &self.recent else { return Err(elsewhere()) };
        let (mut traces, recency) = Recency::split(recent.traces(tenant).await?);
        traces.sort_unstable_by_key(|trace| trace.trace_id);
        let (tenant, cancelled) = (tenant.clone(), work.cancelled());
        let permit = self.scan_permit().await?;
        let mut held = work.memory.reserve_piece(LIVE_BYTES).await?;
        let visitor = blocking(move || {
            let _permit = permit;
            let (mut batch, mut bytes) = (Vec::new(), 0);
            let mut recent = traces.iter().peekable();
            while let Some(next) = recent.next() {
                if cancelled.load(Ordering::Relaxed) || visitor.is_done() {
                    break;
                }
                if let Some((trace, more)) = assemble(&tenant, next)? {
                    bytes += more;
                    held.resize(bytes.max(held.bytes()))?;
                    batch.push(trace);
                }
                if bytes >= LIVE_BYTES || recent.peek().is_none() {
                    visitor.visit(&Batch::live(std::mem::take(&mut batch)))?;
                    bytes = 0;
                }
            }
            Ok(visitor)
        })
        .await?;
        Ok((visitor, recency))
    }

    /// Hands what is wanted of some row groups of a block to a visitor, in batches. As [`Units::scan_block`], this is a task of its own.
    async fn batches_of_block<V: BatchVisitor>(
        &self,
        part: &BlockPart,
        wanted: Wanted,
        mut visitor: V,
        work: &Work,
    ) -> Result<V, QueryError> {
        let permit = self.scan_permit().await?;
        let reader = self.open_blocks.open(&self.store, &part.meta).await?;
        let (cancelled, memory) = (work.cancelled(), work.memory.clone());
        let row_groups = part.row_groups.start as usize..reader.row_groups().min(part.row_groups.end as usize);
        let scan = Scan::new(reader, Arc::new(wanted))?;
        let task = tokio::spawn(async move {
            let _permit = permit;
            for row_group in row_groups {
                if cancelled.load(Ordering::Relaxed) || visitor.is_done() {
                    break;
                }
                let mut batches = scan.row_group(row_group).await?;
                while !batches.is_empty() && !cancelled.load(Ordering::Relaxed) {
                    let held = memory.reserve(batches.memory_of_next()?).await?;
                    let Some(batch) = batches.next().await? else { break };
                    visitor = blocking(move || {
                        let _held = held;
                        visitor.visit(&batch)?;
                        Ok(visitor)
                    })
                    .await?;
                }
            }
            Ok(visitor)
        });
        task.await.unwrap_or_else(|error| Err(QueryError::Worker { cause: error.to_string() }))
    }

    async fn scan_permit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, QueryError> {
        Arc::clone(&self.scans).acquire_owned().await.map_err(|error| QueryError::Worker { cause: error.to_string() })
    }

    async fn read_permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, QueryError> {
        self.reads.acquire().await.map_err(|error| QueryError::Worker { cause: error.to_string() })
    }
}

#[async_trait]
impl Runner for Units {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        match &self.recent {
            RecentSource::Elsewhere(others) if job.is_recent() => others.run(query, tenant, job).await,
            _ => self.run_here(query, tenant, job).await,
        }
    }
}

/// Looks at traces one after the other, on a thread of its own.
trait Visitor: Send + 'static {
    fn visit(&mut self, trace: Trace) -> Result<(), QueryError>;
}

/// Looks at batches one after the other, on a thread of its own.
trait BatchVisitor: Send + 'static {
    fn visit(&mut self, batch: &Batch) -> Result<(), QueryError>;

    /// Whether nothing more can change what it found.
    fn is_done(&self) -> bool {
        false
    }
}

/// A running job. Dropping it tells its scans to stop.
#[derive(Debug)]
struct Work {
    cancelled: Arc<AtomicBool>,
    query: QueryId,
    /// What it holds, out of the budget of its query.
    memory: Account,
}

impl Work {
    fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A job for recent data that came to a process without.
fn elsewhere() -> QueryError {
    QueryError::Worker { cause: "recent data is in another process".to_owned() }
}

/// Puts the segments of a recent trace together; `None` when there are none. With the bytes of memory that it takes.
fn assemble(tenant: &Tenant, recent: &RecentTrace) -> Result<Option<(Trace, u64)>, QueryError> {
    let mut combiner = Combiner::new(0);
    for segment in recent.parts.iter().flat_map(|part| &part.segments) {
        combiner.add(decode(tenant, segment)?);
    }
    let bytes = combiner.memory();
    let trace = combiner.finish(recent.trace_id);
    Ok((!trace.resource_spans.is_empty()).then_some((trace, bytes)))
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
