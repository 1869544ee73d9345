//! The second phase of a search: whole traces.

use std::{collections::HashSet, sync::Arc};

use storage::id::{BlockId, TraceId};

use super::{Units, Work, blocking};
use crate::{
    engine::{QueryError, TimeRange, combine, combine::Combiner, end_ns, matcher::Matcher, memory::Held, start_ns},
    job::{ExamineJob, ExaminedAnswer},
    proto,
};

impl Units {
    pub(super) async fn examine(&self, job: ExamineJob, work: &Work) -> Result<ExaminedAnswer, QueryError> {
        let matcher = Arc::new(Matcher::new(Arc::clone(&job.search))?);
        let listed: HashSet<BlockId> = job.blocks.iter().map(|meta| meta.block_id).collect();
        let mut answer = ExaminedAnswer::default();
        for (id, range) in &job.traces {
            let found = self.examine_one(&job, &matcher, &listed, *id, *range, work, &mut answer).await?;
            answer.found.extend(found);
        }
        Ok(answer)
    }

    /// Evaluates the search on the whole of a trace, however large it is.
    #[expect(clippy::too_many_arguments, reason = "the parts of one job, used in one place")]
    async fn examine_one(
        &self,
        job: &ExamineJob,
        matcher: &Arc<Matcher>,
        listed: &HashSet<BlockId>,
        id: TraceId,
        range: TimeRange,
        work: &Work,
        answer: &mut ExaminedAnswer,
    ) -> Result<Option<proto::TraceSearchMetadata>, QueryError> {
        let mut held = work.memory.reserve(0).await?;
        let mut combiner = Combiner::new(0);
        let mut gathered = self.gather(job, listed, id, range, work, &mut combiner, &mut held).await;
        if let Err(QueryError::TooMuchMemory { .. } | QueryError::MemoryExhausted { .. }) = gathered {
            // Other traces are looked at meanwhile; when they are done there may be room.
            drop(held);
            held = work.memory.reserve(combiner.memory()).await?;
            combiner = Combiner::new(0);
            gathered = self.gather(job, listed, id, range, work, &mut combiner, &mut held).await;
        }
        let (inspected_bytes, incomplete) = gathered?;
        answer.inspected_bytes += inspected_bytes;
        answer.incomplete |= incomplete;
        let whole = combiner.finish(id);
        let (matcher, padded) = (Arc::clone(matcher), job.left_pad_trace_ids);
        blocking(move || {
            let _held = held;
            let Some((start, end)) = combine::time_range(&whole.resource_spans) else { return Ok(None) };
            if !matcher.in_range(start, end) {
                return Ok(None);
            }
            let found = matcher.evaluate(whole, matcher.request.spans_per_spanset)?;
            Ok(found.map(|found| matcher.show(found, padded)))
        })
        .await
    }

    /// Puts the parts of a trace together, and reserves memory for them. Returns the bytes that were read of blocks, and whether recent data is
    /// missing.
    #[expect(clippy::too_many_arguments, reason = "the parts of one job, used in one place")]
    async fn gather(
        &self,
        job: &ExamineJob,
        listed: &HashSet<BlockId>,
        id: TraceId,
        range: TimeRange,
        work: &Work,
        combiner: &mut Combiner,
        held: &mut Held,
    ) -> Result<(u64, bool), QueryError> {
        let (mut blocks, mut incomplete) = (job.blocks.clone(), false);
        for tenant in &job.tenants {
            let recent = self.recent_parts(tenant, id, combiner, held, work).await?;
            incomplete |= recent.incomplete;
            blocks.extend(recent.published.into_iter().filter(|meta| !listed.contains(&meta.block_id)));
        }
        blocks.retain(|meta| range.overlaps(start_ns(meta), end_ns(meta)));
        Ok((self.parts_in_blocks(&blocks, id, combiner, held).await?, incomplete))
    }
}
