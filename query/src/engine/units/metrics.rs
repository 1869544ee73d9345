//! Partial series of a metrics query, from one place.
//!
//! ```text
//!  part of a block ─► Scan: wanted leaves of row groups in which something may count ─► Batch ─► Observer ─► one partial result
//!  recent data ─► traces, by the block that they are going into ─► Batch ─► Observer ─► a partial result for each block, and one for the rest
//! ```
//!
//! What of recent data is going into a block is counted apart, so that whoever asked can leave out what it reads from that block.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, atomic::Ordering},
};

use storage::{
    block::Trace,
    id::{BlockId, Tenant},
    recent::RecentTrace,
};

use super::{LIVE_BYTES, RecentSource, Units, Work, assemble, blocking, elsewhere};
use crate::{
    columns::{Batch, Scan},
    engine::{
        QueryError,
        memory::{Account, Held},
    },
    job::{BlockPart, MetricsAnswer, MetricsJob, MetricsPartial, Place, Recency},
    traceql_metrics::{MetricsRequest, Observer},
};

impl Units {
    pub(super) async fn metrics(&self, tenant: &Tenant, job: MetricsJob, work: &Work) -> Result<MetricsAnswer, QueryError> {
        match job.place {
            Place::Recent => self.recent_metrics(tenant, job.request, work).await,
            Place::RowGroups(part) => self.block_metrics(&part, job.request, work).await,
        }
    }

    /// A task of its own, so that the permit is held until the last batch is gone, even when nobody waits for the answer any more.
    async fn block_metrics(&self, part: &BlockPart, request: Arc<MetricsRequest>, work: &Work) -> Result<MetricsAnswer, QueryError> {
        let permit = self.scan_permit().await?;
        let reader = self.open_blocks.open(&self.store, &part.meta).await?;
        let row_groups = part.row_groups.start as usize..reader.row_groups().min(part.row_groups.end as usize);
        let (cancelled, memory) = (work.cancelled(), work.memory.clone());
        let mut counter = Counter::new(&request, &memory)?;
        let scan = tokio::spawn(async move {
            let _permit = permit;
            let scan = Scan::new(reader, Arc::new(request.wanted()))?;
            let mut inspected_bytes = 0;
            for row_group in row_groups {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                let mut batches = scan.row_group(row_group).await?;
                inspected_bytes += batches.bytes()?;
                while !batches.is_empty() {
                    let held = memory.reserve_piece(batches.memory_of_next()?).await?;
                    let Some(batch) = batches.next().await? else { break };
                    counter = blocking(move || {
                        let _held = held;
                        counter.count(&batch)?;
                        Ok(counter)
                    })
                    .await?;
                }
            }
            let (partial, inspected_spans) = blocking(move || Ok(counter.finish(None))).await?;
            Ok(MetricsAnswer { partials: vec![partial], inspected_spans, inspected_bytes, recent: Recency::default() })
        });
        scan.await.unwrap_or_else(|error| Err(QueryError::Worker { cause: error.to_string() }))
    }

    async fn recent_metrics(&self, tenant: &Tenant, request: Arc<MetricsRequest>, work: &Work) -> Result<MetricsAnswer, QueryError> {
        let RecentSource::Here(recent) = &self.recent else { return Err(elsewhere()) };
        let (mut traces, recency) = Recency::split(recent.traces(tenant).await?);
        // Where a bound is reached, the order decides what is kept.
        traces.sort_unstable_by_key(|trace| trace.trace_id);
        let permit = self.scan_permit().await?;
        let (tenant, cancelled, memory) = (tenant.clone(), work.cancelled(), work.memory.clone());
        let mut held = memory.reserve_piece(LIVE_BYTES).await?;
        let (partials, inspected_spans) = blocking(move || {
            let _permit = permit;
            let mut counters: BTreeMap<Option<BlockId>, (Counter, Vec<Trace>, u64)> = BTreeMap::new();
            // Of all traces that wait.
            let mut bytes = 0;
            for RecentTrace { trace_id, parts } in traces {
                if cancelled.load(Ordering::Relaxed) {
                    break;
                }
                let mut by_block: BTreeMap<Option<BlockId>, Vec<_>> = BTreeMap::new();
                for part in parts {
                    by_block.entry(part.going).or_default().push(part);
                }
                for (going, parts) in by_block {
                    let Some((trace, more)) = assemble(&tenant, &RecentTrace { trace_id, parts })? else { continue };
                    let (counter, waiting, its_bytes) = match counters.entry(going) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => entry.insert((Counter::new(&request, &memory)?, Vec::new(), 0)),
                    };
                    waiting.push(trace);
                    *its_bytes += more;
                    bytes += more;
                    held.resize(bytes.max(held.bytes()))?;
                    if *its_bytes >= LIVE_BYTES {
                        counter.count(&Batch::live(std::mem::take(waiting)))?;
                        bytes -= std::mem::take(its_bytes);
                    }
                }
            }
            let mut partials = Vec::with_capacity(counters.len());
            let mut inspected = 0;
            for (going, (mut counter, waiting, _)) in counters {
                counter.count(&Batch::live(waiting))?;
                let (partial, spans) = counter.finish(going);
                partials.push(partial);
                inspected += spans;
            }
            Ok((partials, inspected))
        })
        .await?;
        Ok(MetricsAnswer { partials, inspected_spans, inspected_bytes: 0, recent: recency })
    }
}

/// An observer and its memory.
#[derive(Debug)]
struct Counter {
    observer: Observer,
    held: Held,
}

impl Counter {
    fn new(request: &Arc<MetricsRequest>, memory: &Account) -> Result<Self, QueryError> {
        Ok(Self { observer: Observer::new(Arc::clone(request)), held: memory.keep(0)? })
    }

    fn count(&mut self, batch: &Batch) -> Result<(), QueryError> {
        self.observer.observe(batch, None)?;
        self.held.resize(self.observer.bytes() as u64)
    }

    fn finish(self, going: Option<BlockId>) -> (MetricsPartial, u64) {
        let inspected = self.observer.inspected_spans();
        (MetricsPartial { going, series: self.observer.finish().encode().into() }, inspected)
    }
}
