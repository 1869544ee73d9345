//! The second phase of a search: whole traces.

use std::{collections::HashSet, sync::Arc};

use storage::id::{BlockId, TraceId};

use super::{Units, Work, blocking};
use crate::{
    engine::{QueryError, TimeRange, combine, combine::Combiner, end_ns, matcher::Matcher, start_ns},
    job::{ExamineJob, ExaminedAnswer},
    proto,
};

impl Units {
    pub(super) async fn examine(&self, job: ExamineJob, work: &Work) -> Result<ExaminedAnswer, QueryError> {
        let matcher = Arc::new(Matcher::new(Arc::clone(&job.search))?);
        let listed: HashSet<BlockId> = job.blocks.iter().map(|meta| meta.block_id).collect();
        let mut answer = ExaminedAnswer::default();
        for (id, range) in &job.traces {
            let found = self.examine_one(&job, &matcher, &listed, *id, *range, work, &mut answer.inspected_bytes).await?;
            answer.found.extend(found);
        }
        Ok(answer)
    }

    /// Evaluates the search on the whole of a trace.
    #[expect(clippy::too_many_arguments, reason = "the parts of one job, used in one place")]
    async fn examine_one(
        &self,
        job: &ExamineJob,
        matcher: &Arc<Matcher>,
        listed: &HashSet<BlockId>,
        id: TraceId,
        range: TimeRange,
        work: &Work,
        inspected_bytes: &mut u64,
    ) -> Result<Option<proto::TraceSearchMetadata>, QueryError> {
        let mut combiner = Combiner::new(job.max_bytes);
        let mut blocks = job.blocks.clone();
        for tenant in &job.tenants {
            let published = self.recent_parts(tenant, id, &mut combiner).await?;
            blocks.extend(published.into_iter().filter(|meta| !listed.contains(&meta.block_id)));
        }
        blocks.retain(|meta| range.overlaps(start_ns(meta), end_ns(meta)));
        if !combiner.is_truncated() {
            *inspected_bytes += self.parts_in_blocks(&blocks, id, &mut combiner, work).await?;
        }
        let whole = combiner.finish(id);
        let (matcher, padded) = (Arc::clone(matcher), job.left_pad_trace_ids);
        blocking(move || {
            let Some((start, end)) = combine::time_range(&whole.resource_spans) else { return Ok(None) };
            if !matcher.in_range(start, end) {
                return Ok(None);
            }
            let found = matcher.evaluate(whole, matcher.request.spans_per_spanset)?;
            Ok(found.map(|found| matcher.show(found, padded)))
        })
        .await
    }
}
