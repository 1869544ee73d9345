//! Metrics over recent data and blocks.
//!
//! ```text
//!  recent data ─► partials, each with the block that its spans are going into ─ listed? dropped ─┐
//!  parts of blocks ─► partials ──────────────────────────────────────────────────────────────────┴─ merge ─► series
//! ```
//!
//! Unlike a search, which recognises spans by their identity, metrics only have numbers, so every span must be counted by one job. The
//! [`Snapshot`](super::plan::Snapshot) says which block is read; whatever recent data is going into one of them is not counted.

use std::{sync::Arc, time::Duration};

use storage::id::Tenant;

use super::{Engine, QueryError, Streaming, TimeRange, stream::Progress, wrong_kind};
use crate::{
    job::{Answer, Job, MetricsAnswer, MetricsJob, Place},
    proto,
    traceql_metrics::{Cost, MetricsError, MetricsRequest, Partial, finish_instant, finish_range},
};

impl Engine {
    /// Answers a range query. The same query on the same data gives the same answer.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time, the query fails on some span, or the series do not fit into memory.
    pub async fn query_range(&self, tenants: &[Tenant], request: Arc<MetricsRequest>) -> Result<proto::QueryRangeResponse, QueryError> {
        let (partial, cost) = self.measured(tenants, &request, None).await?;
        Ok(finish_range(&request, &partial, cost))
    }

    /// Answers a range query, and says every `every` how far it is. The last message is the whole answer; those before it have no series,
    /// because a sample that was sent must not change any more.
    pub fn query_range_stream(
        self: &Arc<Self>,
        tenants: Vec<Tenant>,
        request: Arc<MetricsRequest>,
        every: Duration,
    ) -> Streaming<proto::QueryRangeResponse> {
        let engine = Arc::clone(self);
        Streaming::spawn(every, move |progress| async move {
            let (partial, cost) = engine.measured(&tenants, &request, Some(&progress)).await?;
            Ok(finish_range(&request, &partial, cost))
        })
    }

    /// Answers an instant query.
    ///
    /// # Errors
    /// As of [`Engine::query_range`].
    pub async fn query_instant(&self, tenants: &[Tenant], request: Arc<MetricsRequest>) -> Result<proto::QueryInstantResponse, QueryError> {
        let (partial, cost) = self.measured(tenants, &request, None).await?;
        Ok(finish_instant(&request, &partial, cost))
    }

    async fn measured(
        &self,
        tenants: &[Tenant],
        request: &Arc<MetricsRequest>,
        progress: Option<&Progress<proto::QueryRangeResponse>>,
    ) -> Result<(Partial, Cost), QueryError> {
        self.on_one_list(self.settings.search_timeout, || self.measure(tenants, request, progress)).await
    }

    async fn measure(
        &self,
        tenants: &[Tenant],
        request: &Arc<MetricsRequest>,
        progress: Option<&Progress<proto::QueryRangeResponse>>,
    ) -> Result<(Partial, Cost), QueryError> {
        let mut all = Partial::new(request);
        let mut cost = Cost::default();
        if request.query().matches_nothing() {
            return Ok((all, cost));
        }
        let (low, high) = request.window().bounds();
        let range = TimeRange { start: low / 1_000_000_000, end: high / 1_000_000_000 };
        let mut snapshot = self.snapshot(tenants, Some(range));
        let job = |place| Job::Metrics(MetricsJob { request: Arc::clone(request), place });
        let mut recent = Vec::with_capacity(tenants.len());
        for tenant in tenants {
            let Answer::Metrics(answer) = self.run(tenant, job(Place::Recent)).await? else { return Err(wrong_kind()) };
            snapshot.add(&answer.published);
            recent.push(answer);
        }
        // What is read of blocks is known only now.
        for answer in recent {
            let counts = |going: &Option<_>| going.is_none_or(|block| !snapshot.holds(block));
            take(request, &mut all, &mut cost, &answer, counts)?;
        }

        let parts = snapshot.parts(self.settings.target_bytes_per_job);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        cost.total_blocks = number(snapshot.blocks().len());
        cost.total_block_bytes = snapshot.blocks().iter().map(|meta| meta.size).sum();
        cost.total_jobs = number(parts.len() + tenants.len());
        cost.completed_jobs = number(tenants.len());
        let mut charge = self.charge();
        let mut parts = parts.into_iter();
        let mut running = self.in_order(self.settings.concurrent_jobs);
        loop {
            while running.has_room()
                && let Some(part) = parts.next()
            {
                charge.add(part.bytes())?;
                running.begin(part.meta.tenant_id.clone(), job(Place::RowGroups(part)));
            }
            let Some(answer) = running.next().await else { break };
            let Answer::Metrics(answer) = answer? else { return Err(wrong_kind()) };
            take(request, &mut all, &mut cost, &answer, |_| true)?;
            cost.completed_jobs += 1;
            if let Some(progress) = progress.filter(|progress| progress.is_due()) {
                progress.send(proto::QueryRangeResponse { metrics: Some(cost), ..proto::QueryRangeResponse::default() });
            }
        }
        Ok((all, cost))
    }
}

/// Adds what a job has counted.
fn take(
    request: &MetricsRequest,
    all: &mut Partial,
    cost: &mut Cost,
    answer: &MetricsAnswer,
    counts: impl Fn(&Option<storage::id::BlockId>) -> bool,
) -> Result<(), QueryError> {
    cost.inspected_spans += answer.inspected_spans;
    cost.inspected_bytes += answer.inspected_bytes;
    for partial in answer.partials.iter().filter(|partial| counts(&partial.going)) {
        all.merge(request, &Partial::decode(request, &partial.series)?)?;
    }
    Ok(())
}

impl From<MetricsError> for QueryError {
    fn from(error: MetricsError) -> Self {
        use crate::exec::ExecError;
        match error {
            MetricsError::TooLarge { max_bytes } => Self::TooMuchMemory { max_bytes: max_bytes as u64 },
            MetricsError::Exec(ExecError::Execution(error)) => Self::Execution(error),
            MetricsError::Exec(ExecError::Block(error)) => (*error).into(),
            MetricsError::NotMetrics | MetricsError::Query(_) | MetricsError::Window(_) | MetricsError::Foreign { .. } => {
                Self::Worker { cause: error.to_string() }
            }
        }
    }
}
