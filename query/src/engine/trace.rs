//! Finds one trace.

use std::sync::Arc;

use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use storage::{
    block::Meta,
    id::{Tenant, TraceId},
};

use super::{
    Engine, QueryError, TimeRange,
    combine::{self, Combiner},
    wrong_kind,
};
use crate::{
    job::{Answer, ExternalJob, Job, Recency, TraceAnswer, TraceJob},
    metrics::Op,
};

/// Blocks of one job, at least: asking a filter costs less than a job.
const MIN_BLOCKS: usize = 8;

/// A question for one trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceRequest {
    /// The trace.
    pub id: TraceId,
    /// Which blocks are opened; all when absent. Recent data is looked at in any case, and spans are not filtered.
    pub range: Option<TimeRange>,
}

impl TraceRequest {
    fn external(&self, max_bytes: usize) -> ExternalJob {
        let TimeRange { start, end } = self.range.unwrap_or(TimeRange { start: 0, end: u64::MAX });
        ExternalJob { id: self.id, start, end: if end == u64::MAX { 0 } else { end }, max_bytes }
    }
}

/// A trace, or as much of it as the tenant's limit allows.
#[derive(Clone, Debug)]
pub struct FoundTrace {
    /// Its spans; empty when nothing is known of it. Every resource, scope and status is present.
    pub resource_spans: Vec<ResourceSpans>,
    /// Whether spans are missing because the trace is larger than `max_bytes`.
    pub truncated: bool,
    /// The limit that held.
    pub max_bytes: usize,
    /// Bytes read from blocks.
    pub inspected_bytes: u64,
    /// Whether recent spans may be missing, because a process that has some could not be asked.
    pub incomplete: bool,
}

impl Engine {
    /// Looks a trace up in everything the tenants have, and shows it as clients expect it.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn trace(&self, tenants: &[Tenant], request: TraceRequest) -> Result<FoundTrace, QueryError> {
        let mut found = self.stored_trace(tenants, request).await?;
        combine::separate_shared_ids(&mut found.resource_spans);
        combine::complete(&mut found.resource_spans);
        Ok(found)
    }

    /// Looks a trace up, and shows it as it is stored, for whoever has other parts of it.
    pub(crate) async fn stored_trace(&self, tenants: &[Tenant], request: TraceRequest) -> Result<FoundTrace, QueryError> {
        let max_bytes = self.max_bytes_per_trace(tenants);
        let found = self.on_one_list(|| self.whole_trace(tenants, request, max_bytes)).await?;
        Ok(FoundTrace {
            resource_spans: found.resource_spans,
            truncated: found.truncated,
            max_bytes,
            inspected_bytes: found.inspected_bytes,
            incomplete: found.recent.incomplete,
        })
    }

    /// Looks a trace up in the store that is not ours, and nowhere else.
    pub(crate) async fn external_trace(&self, tenant: &Tenant, request: TraceRequest) -> Result<FoundTrace, QueryError> {
        let max_bytes = self.limits(tenant).max_bytes_per_trace;
        let job = Job::ExternalTrace(request.external(max_bytes));
        let Answer::Trace(found) = self.begin(self.settings.trace_timeout).run(tenant, job).await? else {
            return Err(wrong_kind());
        };
        let TraceAnswer { resource_spans, truncated, inspected_bytes, .. } = found;
        Ok(FoundTrace { resource_spans, truncated, max_bytes, inspected_bytes, incomplete: false })
    }

    /// The largest limit of the tenants; 0 when one of them has none.
    pub(super) fn max_bytes_per_trace(&self, tenants: &[Tenant]) -> usize {
        let limits = tenants.iter().map(|tenant| self.limits(tenant).max_bytes_per_trace);
        limits
            .fold(None, |largest: Option<usize>, limit| match largest {
                Some(0) => Some(0),
                _ if limit == 0 => Some(0),
                largest => largest.max(Some(limit)),
            })
            .unwrap_or(0)
    }

    /// The trace as it is stored, from recent data and then from blocks, cut at `max_bytes`.
    async fn whole_trace(&self, tenants: &[Tenant], request: TraceRequest, max_bytes: usize) -> Result<TraceAnswer, QueryError> {
        let job = |blocks: Option<Vec<Arc<Meta>>>| Job::Trace(TraceJob { id: request.id, blocks, max_bytes });
        let query = self.begin(self.settings.trace_timeout);
        let mut snapshot = self.snapshot(tenants, request.range);
        let mut combiner = Combiner::new(max_bytes);
        let mut inspected_bytes = 0;
        let mut truncated = false;
        let mut recent = Recency::default();
        for tenant in tenants {
            let Answer::Trace(answer) = query.run(tenant, job(None)).await? else { return Err(wrong_kind()) };
            snapshot.add(&answer.recent.published);
            recent.incomplete |= answer.recent.incomplete;
            combiner.add(answer.resource_spans);
            truncated |= answer.truncated;
        }

        let most = if self.settings.concurrent_shards == 0 { usize::MAX } else { self.settings.concurrent_shards };
        let mut charge = self.charge();
        let mut running = query.in_order(most);
        if self.settings.external_traces {
            for tenant in tenants {
                running.begin(tenant.clone(), Job::ExternalTrace(request.external(max_bytes)));
            }
        }
        let shards = shards(snapshot.blocks(), self.settings.trace_shards.saturating_sub(1));
        let external = if self.settings.external_traces { tenants.len() } else { 0 };
        self.metrics.jobs(Op::Traces, shards.len() + tenants.len() + external);
        let mut shards = shards.into_iter();
        while !combiner.is_truncated() && !truncated {
            while running.has_room()
                && let Some((tenant, blocks)) = shards.next()
            {
                running.begin(tenant, job(Some(blocks)));
            }
            let Some(answer) = running.next().await else { break };
            let Answer::Trace(answer) = answer? else { return Err(wrong_kind()) };
            charge.add(answer.inspected_bytes)?;
            inspected_bytes += answer.inspected_bytes;
            combiner.add(answer.resource_spans);
            truncated |= answer.truncated;
        }
        let truncated = truncated || combiner.is_truncated();
        let resource_spans = combiner.finish(request.id).resource_spans;
        Ok(TraceAnswer { resource_spans, truncated, inspected_bytes, recent })
    }
}

/// Cuts the blocks of each tenant into at most `most` runs of about the same length, in their order.
fn shards(blocks: &[Arc<Meta>], most: usize) -> Vec<(Tenant, Vec<Arc<Meta>>)> {
    let mut by_tenant: Vec<(Tenant, Vec<Arc<Meta>>)> = Vec::new();
    for meta in blocks {
        match by_tenant.iter_mut().find(|(tenant, _)| *tenant == meta.tenant_id) {
            Some((_, blocks)) => blocks.push(Arc::clone(meta)),
            None => by_tenant.push((meta.tenant_id.clone(), vec![Arc::clone(meta)])),
        }
    }
    let cut = |(tenant, blocks): (Tenant, Vec<Arc<Meta>>)| {
        let length = blocks.len().div_ceil(most.max(1)).max(MIN_BLOCKS);
        blocks.chunks(length).map(|shard| (tenant.clone(), shard.to_vec())).collect::<Vec<_>>()
    };
    by_tenant.into_iter().flat_map(cut).collect()
}
