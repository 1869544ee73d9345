//! One trace, from recent data or from blocks.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use storage::{
    block::{Meta, Trace},
    id::{Tenant, TraceId},
};

use super::{RecentSource, Units, Work, decode};
use crate::{
    engine::{QueryError, combine::Combiner, memory::Held},
    job::{Answer, Job, Recency, TraceAnswer, TraceJob},
};

impl Units {
    pub(super) async fn trace(&self, tenant: &Tenant, job: TraceJob, work: &Work) -> Result<TraceAnswer, QueryError> {
        let mut combiner = Combiner::new(job.max_bytes);
        let (mut recent, mut inspected_bytes) = (Recency::default(), 0);
        let mut held = work.memory.reserve(0).await?;
        match &job.blocks {
            None => recent = self.recent_parts(tenant, job.id, &mut combiner, &mut held, work).await?,
            Some(blocks) => inspected_bytes = self.parts_in_blocks(blocks, job.id, &mut combiner, &mut held).await?,
        }
        let truncated = combiner.is_truncated();
        Ok(TraceAnswer { resource_spans: combiner.finish(job.id).resource_spans, truncated, inspected_bytes, recent })
    }

    /// Adds what is recent of a trace, wherever that is. Returns what else is said of recent data.
    pub(super) async fn recent_parts(
        &self,
        tenant: &Tenant,
        id: TraceId,
        combiner: &mut Combiner,
        held: &mut Held,
        work: &Work,
    ) -> Result<Recency, QueryError> {
        match &self.recent {
            RecentSource::Here(recent) => {
                let (data, recency) = Recency::split(recent.trace(tenant, id).await?);
                for segment in data.iter().flat_map(|part| &part.segments) {
                    if !combiner.is_truncated() {
                        combiner.add(decode(tenant, segment)?);
                        held.resize(combiner.memory())?;
                    }
                }
                Ok(recency)
            }
            RecentSource::Elsewhere(others) => {
                let job = Job::Trace(TraceJob { id, blocks: None, max_bytes: combiner.max_bytes() });
                let Answer::Trace(answer) = others.run(work.query, tenant, job).await? else { return Err(crate::engine::wrong_kind()) };
                combiner.add(answer.resource_spans);
                held.resize(combiner.memory())?;
                Ok(answer.recent)
            }
        }
    }

    /// Adds what blocks hold of a trace, in their order. Returns the bytes read.
    pub(super) async fn parts_in_blocks(
        &self,
        blocks: &[Arc<Meta>],
        id: TraceId,
        combiner: &mut Combiner,
        held: &mut Held,
    ) -> Result<u64, QueryError> {
        // First the filters of all blocks: the trace is in few of them, and the others cost no more than that.
        let filtered = futures::stream::iter(blocks.to_vec()).map(|meta| self.may_hold(meta, id)).buffered(self.concurrent_reads);
        let candidates: Vec<Arc<Meta>> = filtered.try_filter_map(|candidate| async { Ok(candidate) }).try_collect().await?;
        let mut found = futures::stream::iter(candidates).map(|meta| self.find(meta, id)).buffered(self.concurrent_reads);
        let mut inspected_bytes = 0;
        while let Some(trace) = found.next().await {
            if let Some(trace) = trace? {
                inspected_bytes += trace.resource_spans.iter().map(|resource| resource.encoded_len() as u64).sum::<u64>();
                combiner.add(trace.resource_spans);
                held.resize(combiner.memory())?;
            }
            if combiner.is_truncated() {
                break;
            }
        }
        Ok(inspected_bytes)
    }

    /// The block, if its filters do not say that it lacks the trace.
    async fn may_hold(&self, meta: Arc<Meta>, id: TraceId) -> Result<Option<Arc<Meta>>, QueryError> {
        let _permit = self.read_permit().await?;
        Ok(self.open_blocks.may_hold(&self.store, &meta, id).await?.then_some(meta))
    }

    async fn find(&self, meta: Arc<Meta>, id: TraceId) -> Result<Option<Trace>, QueryError> {
        let _permit = self.read_permit().await?;
        let reader = self.open_blocks.open(&self.store, &meta).await?;
        Ok(reader.look_up(id).await?)
    }
}
