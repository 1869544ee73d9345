//! Metrics over recent data and blocks.
//!
//! ```text
//!  recent data ─► partials, each with the block that its spans are going into ─ listed? dropped ─┐
//!  parts of blocks ─► partials ──────────────────────────────────────────────────────────────────┴─ merge ─► series
//! ```
//!
//! Unlike a search, which recognises spans by their identity, metrics only have numbers, so every span must be counted by one job. The
//! [`Snapshot`](super::plan::Snapshot) says which block is read; whatever recent data is going into one of them is not counted.
//!
//! A block that lies within the range is asked for its own intervals only. So a dashboard whose range moves on asks the same of old blocks again
//! and again, and the answers can be kept.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use storage::{
    block::Meta,
    id::{BlockId, Tenant},
};

use super::{Engine, INCOMPLETE, QueryError, Streaming, TimeRange, end_ns, start_ns, stream::Progress, wrong_kind};
use crate::{
    job::{Answer, Job, MetricsAnswer, MetricsJob, Place},
    metrics::Op,
    proto,
    traceql_metrics::{Cost, MetricsError, MetricsRequest, Partial, finish_instant, finish_part, finish_range},
};

/// What was counted until now, and what it cost.
struct Measured {
    partial: Partial,
    cost: Cost,
    /// Whether recent spans are missing.
    incomplete: bool,
    /// The left edge of the first interval that no block that is still to come can add to, Unix nanoseconds; later ones are final, too.
    final_from: u64,
}

impl Engine {
    /// Answers a range query. The same query on the same data gives the same answer.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time, the query fails on some span, or the series do not fit into memory.
    pub async fn query_range(&self, tenants: &[Tenant], request: Arc<MetricsRequest>) -> Result<proto::QueryRangeResponse, QueryError> {
        let measured = self.measured(tenants, &request, |_| {}).await?;
        Ok(whole_range(&request, &measured))
    }

    /// Answers a range query, and says every `every` how far it is and what it knows for good: samples of intervals that all blocks which
    /// may hold spans of them were read for, each once. The last message is the whole answer.
    pub fn query_range_stream(
        self: &Arc<Self>,
        tenants: Vec<Tenant>,
        request: Arc<MetricsRequest>,
        every: Duration,
    ) -> Streaming<proto::QueryRangeResponse> {
        let engine = Arc::clone(self);
        Streaming::spawn(every, move |progress| async move {
            let differences = Differences { request: &request, progress: &progress, shown_from: parking_lot::Mutex::new(u64::MAX) };
            let measured = engine.measured(&tenants, &request, |measured| differences.show(measured)).await?;
            Ok(whole_range(&request, &measured))
        })
    }

    /// Answers a part of a query, for somebody who adds parts up, see [`finish_part`].
    pub(crate) async fn query_part(
        &self,
        tenants: &[Tenant],
        request: Arc<MetricsRequest>,
    ) -> Result<proto::QueryRangeResponse, QueryError> {
        let measured = self.measured(tenants, &request, |_| {}).await?;
        // Whoever cuts queries knows how many parts and blocks there are.
        let Cost { inspected_bytes, inspected_spans, .. } = measured.cost;
        let cost = Cost { inspected_bytes, inspected_spans, ..Cost::default() };
        let mut answer = finish_part(&request, &measured.partial, cost);
        say_incomplete(measured.incomplete, &mut answer.status, &mut answer.message);
        Ok(answer)
    }

    /// Answers an instant query.
    ///
    /// # Errors
    /// As of [`Engine::query_range`].
    pub async fn query_instant(&self, tenants: &[Tenant], request: Arc<MetricsRequest>) -> Result<proto::QueryInstantResponse, QueryError> {
        let measured = self.measured(tenants, &request, |_| {}).await?;
        Ok(whole_instant(&request, &measured))
    }

    /// Answers an instant query, and says every `every` how far it is. Its one interval is final only at the end.
    pub fn query_instant_stream(
        self: &Arc<Self>,
        tenants: Vec<Tenant>,
        request: Arc<MetricsRequest>,
        every: Duration,
    ) -> Streaming<proto::QueryInstantResponse> {
        let engine = Arc::clone(self);
        Streaming::spawn(every, move |progress| async move {
            let show = |measured: &Measured| {
                if progress.is_due() {
                    progress.send(proto::QueryInstantResponse { metrics: Some(measured.cost), ..Default::default() });
                }
            };
            let measured = engine.measured(&tenants, &request, show).await?;
            Ok(whole_instant(&request, &measured))
        })
    }

    async fn measured(&self, tenants: &[Tenant], request: &Arc<MetricsRequest>, show: impl Fn(&Measured)) -> Result<Measured, QueryError> {
        self.on_one_list(|| self.measure(tenants, request, &show)).await
    }

    async fn measure(&self, tenants: &[Tenant], request: &Arc<MetricsRequest>, show: &impl Fn(&Measured)) -> Result<Measured, QueryError> {
        let query = self.begin(self.settings.search_timeout);
        let (partial, mut held) = (Partial::new(request), query.keep()?);
        let mut all = Measured { partial, cost: Cost::default(), incomplete: false, final_from: u64::MAX };
        if request.query().matches_nothing() {
            return Ok(all);
        }
        let (low, high) = request.window().bounds();
        let range = TimeRange { start: low / 1_000_000_000, end: high / 1_000_000_000 };
        let mut snapshot = self.snapshot(tenants, Some(range));
        let mut recent = Vec::with_capacity(tenants.len());
        for tenant in tenants {
            let job = Job::Metrics(MetricsJob { request: Arc::clone(request), place: Place::Recent });
            let Answer::Metrics(answer) = query.run(tenant, job).await? else { return Err(wrong_kind()) };
            snapshot.add(&answer.recent.published);
            all.incomplete |= answer.recent.incomplete;
            recent.push(answer);
        }
        // What is read of blocks is known only now.
        for answer in recent {
            all.take(request, request, &answer, |going| going.is_none_or(|block| !snapshot.holds(block)))?;
            held.resize(all.partial.bytes() as u64)?;
        }

        let parts = snapshot.parts(self.settings.metrics_bytes_per_job);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        all.cost.total_blocks = number(snapshot.blocks().len());
        all.cost.total_block_bytes = snapshot.blocks().iter().map(|meta| meta.size).sum();
        all.cost.total_jobs = number(parts.len() + tenants.len());
        all.cost.completed_jobs = number(tenants.len());
        self.metrics.jobs(Op::Metrics, parts.len() + tenants.len());
        let mut charge = self.charge();
        let mut parts = parts.into_iter();
        let mut running = query.in_order(self.settings.metrics_concurrent_jobs);
        let mut begun: VecDeque<(Arc<MetricsRequest>, u64)> = VecDeque::new();
        loop {
            while running.has_room()
                && let Some(part) = parts.next()
            {
                charge.add(part.bytes())?;
                let asked = within(request, &part.meta);
                begun.push_back((Arc::clone(&asked), end_ns(&part.meta)));
                running.begin(part.meta.tenant_id.clone(), Job::Metrics(MetricsJob { request: asked, place: Place::RowGroups(part) }));
            }
            let (Some(answer), Some((asked, _))) = (running.next().await, begun.pop_front()) else { break };
            let Answer::Metrics(answer) = answer? else { return Err(wrong_kind()) };
            all.take(request, &asked, &answer, |_| true)?;
            held.resize(all.partial.bytes() as u64)?;
            all.cost.completed_jobs += 1;
            // Blocks come by their end, newest first, so that the next one ends last of those that are to come.
            let next = begun.front().map(|(_, end)| *end).or_else(|| parts.as_slice().first().map(|part| end_ns(&part.meta)));
            all.final_from = next.unwrap_or(0);
            show(&all);
        }
        Ok(all)
    }
}

/// The query for a job on a block: over the intervals that the block touches and no more, if it lies within the range, so that its answer is
/// the same for all ranges that it lies within, and can be kept.
fn within(request: &Arc<MetricsRequest>, meta: &Meta) -> Arc<MetricsRequest> {
    request.within(start_ns(meta), end_ns(meta)).map_or_else(|| Arc::clone(request), Arc::new)
}

impl Measured {
    /// Adds what a job has counted that was asked for a part of the intervals.
    fn take(
        &mut self,
        request: &MetricsRequest,
        asked: &MetricsRequest,
        answer: &MetricsAnswer,
        counts: impl Fn(Option<BlockId>) -> bool,
    ) -> Result<(), QueryError> {
        self.cost.inspected_spans += answer.inspected_spans;
        self.cost.inspected_bytes += answer.inspected_bytes;
        for partial in answer.partials.iter().filter(|partial| counts(partial.going)) {
            self.partial.merge(request, &Partial::decode_part(request, asked, &partial.series)?)?;
        }
        Ok(())
    }
}

fn whole_range(request: &MetricsRequest, measured: &Measured) -> proto::QueryRangeResponse {
    let mut answer = finish_range(request, &measured.partial, measured.cost);
    say_incomplete(measured.incomplete, &mut answer.status, &mut answer.message);
    answer
}

fn whole_instant(request: &MetricsRequest, measured: &Measured) -> proto::QueryInstantResponse {
    let mut answer = finish_instant(request, &measured.partial, measured.cost);
    say_incomplete(measured.incomplete, &mut answer.status, &mut answer.message);
    answer
}

fn say_incomplete(is_incomplete: bool, status: &mut i32, message: &mut String) {
    if is_incomplete {
        *status = proto::PartialStatus::Partial.into();
        let reason = format!("recent spans are missing: {INCOMPLETE}");
        *message = if message.is_empty() { reason } else { format!("{message} {reason}") };
    }
}

/// Sends what is known for good while a range query runs.
struct Differences<'q> {
    request: &'q MetricsRequest,
    progress: &'q Progress<proto::QueryRangeResponse>,
    /// Samples from this time on were sent, Unix nanoseconds.
    shown_from: parking_lot::Mutex<u64>,
}

impl Differences<'_> {
    /// Clients keep the first sample that they get of a time, so that none is sent that could change: none of an interval that is not over, and none
    /// at all where series are chosen by all of their samples.
    fn show(&self, measured: &Measured) {
        if !self.progress.is_due() {
            return;
        }
        let mut message = proto::QueryRangeResponse { metrics: Some(measured.cost), ..Default::default() };
        let mut shown_from = self.shown_from.lock();
        let from = measured.final_from.min(*shown_from);
        let is_new = measured.final_from < *shown_from && self.request.window().bounds().1 > measured.final_from;
        if is_new && self.request.is_per_interval() {
            let whole = finish_range(self.request, &measured.partial, measured.cost);
            // One that is cut off may be another one in the end.
            if whole.message.is_empty() {
                let step = self.request.window().step();
                // A sample stands at the right edge of its interval.
                let is_final = |sample: &proto::Sample| {
                    let left = u64::try_from(sample.timestamp_ms).unwrap_or(0).saturating_mul(1_000_000).saturating_sub(step);
                    (from..*shown_from).contains(&left)
                };
                message.series = whole.series;
                message.series.iter_mut().for_each(|series| {
                    series.exemplars.clear();
                    series.samples.retain(is_final);
                });
                message.series.retain(|series| !series.samples.is_empty());
            }
        }
        if self.progress.send(message) && is_new {
            *shown_from = measured.final_from;
        }
    }
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
