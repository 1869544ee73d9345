//! Finds one trace.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::Message as _;
use storage::{
    block::{Meta, Trace},
    id::{Tenant, TraceId},
};

use super::{
    Engine, Query, QueryError, TimeRange,
    combine::{self, Combiner},
    decode,
};

/// A question for one trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceRequest {
    /// The trace.
    pub id: TraceId,
    /// Which blocks are opened; all when absent. Recent data is looked at in any case, and spans are not filtered.
    pub range: Option<TimeRange>,
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
}

impl Engine {
    /// Looks a trace up in everything the tenants have, and shows it as clients expect it.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn trace(&self, tenants: &[Tenant], request: TraceRequest) -> Result<FoundTrace, QueryError> {
        let max_bytes = self.max_bytes_per_trace(tenants);
        let query = self.query();
        let found = self.on_one_list(self.settings.trace_timeout, || self.whole_trace(tenants, request, max_bytes, &query)).await?;
        let mut resource_spans = found.trace.resource_spans;
        combine::separate_shared_ids(&mut resource_spans);
        combine::complete(&mut resource_spans);
        Ok(FoundTrace { resource_spans, truncated: found.truncated, max_bytes, inspected_bytes: found.inspected_bytes })
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
    pub(super) async fn whole_trace(
        &self,
        tenants: &[Tenant],
        request: TraceRequest,
        max_bytes: usize,
        query: &Query,
    ) -> Result<WholeTrace, QueryError> {
        let mut combiner = Combiner::new(max_bytes);
        let mut inspected_bytes = 0;
        for tenant in tenants {
            for segment in self.recent.trace(tenant, request.id).await? {
                if !combiner.is_truncated() {
                    combiner.add(decode(tenant, &segment)?);
                }
            }
        }

        // First the filters of all blocks: the trace is in few of them, and the others cost no more than that.
        let concurrency = self.settings.concurrent_reads.max(1);
        let blocks = self.blocks(tenants, request.range);
        let filtered = futures::stream::iter(blocks).map(|meta| self.may_hold(meta, request.id)).buffered(concurrency);
        let candidates: Vec<Arc<Meta>> = filtered.try_filter_map(|candidate| async { Ok(candidate) }).try_collect().await?;
        let mut found = futures::stream::iter(candidates).map(|meta| self.find(meta, request.id, query)).buffered(concurrency);
        while let Some(trace) = found.next().await {
            if let Some((trace, bytes)) = trace? {
                combiner.add(trace.resource_spans);
                inspected_bytes += bytes;
            }
            if combiner.is_truncated() {
                break;
            }
        }
        Ok(WholeTrace { truncated: combiner.is_truncated(), trace: combiner.finish(request.id), inspected_bytes })
    }

    /// The block, if its filters do not say that it lacks the trace.
    async fn may_hold(&self, meta: Arc<Meta>, id: TraceId) -> Result<Option<Arc<Meta>>, QueryError> {
        let _permit = self.reads.acquire().await.map_err(|error| QueryError::Worker { cause: error.to_string() })?;
        Ok(self.open_blocks.may_hold(&self.store, &meta, id).await?.then_some(meta))
    }

    async fn find(&self, meta: Arc<Meta>, id: TraceId, query: &Query) -> Result<Option<(Trace, u64)>, QueryError> {
        let _permit = self.reads.acquire().await.map_err(|error| QueryError::Worker { cause: error.to_string() })?;
        let reader = self.open_blocks.open(&self.store, &meta).await?;
        let Some(trace) = reader.look_up(id).await? else {
            return Ok(None);
        };
        let bytes = trace.resource_spans.iter().map(|resource| resource.encoded_len() as u64).sum();
        query.budget.charge(bytes)?;
        Ok(Some((trace, bytes)))
    }
}

/// A trace as it is stored.
#[derive(Debug)]
pub(super) struct WholeTrace {
    /// Its spans, each once.
    pub(super) trace: Trace,
    /// Whether it is cut at the size limit.
    pub(super) truncated: bool,
    /// Bytes that came from blocks.
    pub(super) inspected_bytes: u64,
}
