//! The first phase of a search, in one place.

use std::{collections::HashSet, sync::Arc};

use storage::{
    block::Trace,
    id::{Tenant, TraceId},
};

use super::{BatchVisitor, Units, Visitor, Work};
use crate::{
    columns::{Batch, Wanted},
    engine::{
        QueryError, combine, end_ns,
        matcher::{Matcher, count},
        newest::Newest,
        start_ns,
    },
    exec::Exec,
    job::{Candidate, CandidatesAnswer, CandidatesJob, Place, Recency},
};

impl Units {
    pub(super) async fn candidates(&self, tenant: &Tenant, job: CandidatesJob, work: &Work) -> Result<CandidatesAnswer, QueryError> {
        let matcher = Matcher::new(job.search)?;
        let bounds = job.place.block().map(|part| (start_ns(&part.meta), end_ns(&part.meta)));
        let exec = Exec::new(matcher.query());
        let mut finder = Finder { matcher, exec, known: job.known, floor: job.floor, bounds, newest: Newest::new(job.limit), inspected: 0 };
        let mut inspected_bytes = 0;
        let mut recent = Recency::default();
        match job.place {
            Place::Recent if finder.matcher.is_traceql() => (finder, recent) = self.recent_batches(tenant, finder, work).await?,
            Place::Recent => (finder, recent) = self.scan_recent(tenant, finder, work).await?,
            Place::RowGroups(part) => {
                inspected_bytes = part.bytes();
                finder = if finder.matcher.is_traceql() {
                    let wanted = finder.wanted();
                    self.batches_of_block(&part, wanted, finder, work).await?
                } else {
                    let projection = finder.matcher.projection();
                    self.scan_block(&part, projection, finder, work).await?
                };
            }
        }
        Ok(CandidatesAnswer { candidates: finder.newest.sorted(), inspected_traces: finder.inspected, inspected_bytes, recent })
    }
}

/// Looks for candidates.
#[derive(Debug)]
struct Finder {
    matcher: Matcher,
    exec: Exec,
    known: Arc<HashSet<TraceId>>,
    /// Age below which candidates are of no use.
    floor: u64,
    /// First and last nanosecond of the block.
    bounds: Option<(u64, u64)>,
    newest: Newest,
    inspected: u32,
}

impl Finder {
    /// What is read of blocks.
    fn wanted(&self) -> Wanted {
        let wanted = Wanted::of(self.matcher.query());
        let nanos = |seconds: u64| seconds.saturating_mul(1_000_000_000);
        match self.matcher.request.range {
            Some(range) => wanted.touching(nanos(range.start), nanos(range.end)),
            None => wanted,
        }
    }

    /// A trace of these times, if it may be one of the newest.
    fn candidate(&self, id: TraceId, start: u64, end: u64) -> Option<Candidate> {
        let (block_start, block_end) = self.bounds.unwrap_or((start, u64::MAX));
        let candidate = Candidate { age: start.min(block_end), start: start.min(block_end), end: end.max(block_start) };
        let floor = self.floor.max(self.newest.floor());
        (candidate.age >= floor && !self.known.contains(&id) && self.matcher.in_range(start, end)).then_some(candidate)
    }
}

impl BatchVisitor for Finder {
    fn visit(&mut self, batch: &Batch) -> Result<(), QueryError> {
        let (ids, times) = (batch.trace_ids()?, batch.trace_times_ns()?);
        self.inspected = self.inspected.saturating_add(count(ids.len()));
        let candidates: Vec<_> = ids.iter().zip(times.iter()).map(|(id, (start, end))| self.candidate(*id, *start, *end)).collect();
        let wanted: Vec<bool> = candidates.iter().map(Option::is_some).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        for trace in self.exec.traces(batch, Some(&wanted))? {
            if let (Some(id), Some(Some(candidate))) = (ids.get(trace as usize), candidates.get(trace as usize)) {
                self.newest.offer(*id, *candidate);
            }
        }
        Ok(())
    }
}

impl Visitor for Finder {
    fn visit(&mut self, trace: Trace) -> Result<(), QueryError> {
        self.inspected = self.inspected.saturating_add(1);
        let Some((start, end)) = combine::time_range(&trace.resource_spans) else {
            return Ok(());
        };
        let id = trace.trace_id;
        if let Some(candidate) = self.candidate(id, start, end)
            && self.matcher.evaluate(trace, 1)?.is_some()
        {
            self.newest.offer(id, candidate);
        }
        Ok(())
    }
}
