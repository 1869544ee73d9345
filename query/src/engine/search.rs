//! Finds traces.
//!
//! Two phases, so that memory stays small and what search says of a trace is about the whole trace:
//!
//! ```text
//!  1  recent ─┐                                     2  each candidate, newest first:
//!     block ──┼─ evaluate on each part ─► Newest       fetch all its parts, evaluate on the whole,
//!     block ──┘  (Job::Candidates)        (limit ids)   keep it if it still matches (Job::Examine)
//! ```
//!
//! * The first phase keeps nothing but ids and times: the `limit` candidates whose matching part starts latest. Blocks come newest first, and
//!   once `limit` candidates are newer than everything a block can hold, the rest is not read. A part starts no later than its block ends, by
//!   definition of what is compared here, so this prunes no candidate even where a block's times were corrected.
//! * A query can hold for a part and not for the whole (`{} | count() < 3`). Then the second phase comes up short, and the first runs again
//!   without the candidates that are known.
//! * A trace none of whose parts matches alone is not found, as in Tempo: parts of a trace lie together except while blocks are being cut.
//! * What the second phase says of a trace is final. So whoever wants results while the first phase runs gets the candidates so far examined,
//!   and none is examined twice.
//!
//! The answer is sorted by start, newest first, then by id.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use storage::id::{Tenant, TraceId};

use super::{
    Charge, Engine, LegacyTags, QueryError, Running, Streaming, TimeRange, end_ns,
    matcher::{Matcher, count},
    newest::Newest,
    plan::Snapshot,
    refuse_incomplete,
    stream::Progress,
    wrong_kind,
};
use crate::{
    job::{Answer, Candidate, CandidatesAnswer, CandidatesJob, ExamineJob, Job, Place},
    metrics::Op,
    proto, traceql,
};

/// Jobs of the second phase that run at the same time.
const EXAMINATIONS: usize = 8;

/// Most traces of one of them.
const MAX_EXAMINED: usize = 32;

/// What is searched for.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// A TraceQL query; a metrics function in it is ignored.
    TraceQl(traceql::Query),
    /// Pairs and bounds of the whole trace's duration, both included. Without pairs every trace of that duration.
    Tags {
        /// The pairs.
        tags: LegacyTags,
        /// Shortest duration.
        min_duration: Duration,
        /// Longest duration; zero means any.
        max_duration: Duration,
    },
}

/// A search.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchRequest {
    /// What is searched for.
    pub condition: Condition,
    /// Traces that overlap this range. Without it: all recent traces, and those of the blocks of the last hour
    /// ([`super::Settings::default_lookback`]).
    pub range: Option<TimeRange>,
    /// Most traces.
    pub limit: usize,
    /// Most spans shown of a spanset.
    pub spans_per_spanset: usize,
}

impl Engine {
    /// Searches. The same search on the same data gives the same answer.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time, or the query fails on some trace.
    pub async fn search(&self, tenants: &[Tenant], request: SearchRequest) -> Result<proto::SearchResponse, QueryError> {
        self.searched(tenants, Arc::new(request), None).await
    }

    /// Searches, and says every `every` what traces it found since the last time, and what it cost so far. The last message is the whole
    /// answer. A trace that was found early may be missing there, if newer ones took its place.
    pub fn search_stream(
        self: &Arc<Self>,
        tenants: Vec<Tenant>,
        request: SearchRequest,
        every: Duration,
    ) -> Streaming<proto::SearchResponse> {
        let (engine, request) = (Arc::clone(self), Arc::new(request));
        Streaming::spawn(every, move |progress| async move { engine.searched(&tenants, request, Some(&progress)).await })
    }

    async fn searched(
        &self,
        tenants: &[Tenant],
        request: Arc<SearchRequest>,
        progress: Option<&Progress<proto::SearchResponse>>,
    ) -> Result<proto::SearchResponse, QueryError> {
        self.on_one_list(|| self.run_search(tenants, Arc::clone(&request), progress)).await
    }

    async fn run_search(
        &self,
        tenants: &[Tenant],
        request: Arc<SearchRequest>,
        progress: Option<&Progress<proto::SearchResponse>>,
    ) -> Result<proto::SearchResponse, QueryError> {
        let range = request.range.unwrap_or_else(|| self.lookback());
        let running = self.begin(self.settings.search_timeout);
        let mut search = Search {
            engine: self,
            running: &running,
            tenants,
            snapshot: self.snapshot(tenants, Some(range)),
            // The other parts of a trace may lie outside the range.
            all: self.snapshot(tenants, None),
            metrics: proto::SearchMetrics::default(),
            charge: self.charge(),
            examined: HashMap::new(),
            shown: HashSet::new(),
            bytes: 0,
            progress,
            request,
        };
        let limit = search.request.limit;
        let mut found: Vec<(TraceId, proto::TraceSearchMetadata)> = Vec::new();
        let mut known = Arc::new(HashSet::new());
        while found.len() < limit && !Matcher::new(Arc::clone(&search.request))?.matches_nothing() {
            let newest = search.candidates(&known, limit - found.len()).await?;
            let candidates = newest.sorted();
            search.examine(&candidates).await?;
            Arc::make_mut(&mut known).extend(candidates.iter().map(|(id, _)| *id));
            found.extend(candidates.iter().filter_map(|(id, _)| search.found(*id)));
            if !newest.is_full() {
                break;
            }
        }
        found.sort_unstable_by_key(|(id, trace)| (Reverse(trace.start_time_unix_nano), *id));
        let traces = found.into_iter().map(|(_, trace)| trace).collect();
        Ok(proto::SearchResponse { traces, metrics: Some(search.metrics) })
    }
}

/// A search that is running.
struct Search<'e> {
    engine: &'e Engine,
    running: &'e Running<'e>,
    tenants: &'e [Tenant],
    request: Arc<SearchRequest>,
    /// Blocks in the range of the search.
    snapshot: Snapshot,
    /// Blocks of all times.
    all: Snapshot,
    metrics: proto::SearchMetrics,
    charge: Charge,
    /// What the second phase said of traces, with the times at which it looked; nothing where they do not match.
    examined: HashMap<TraceId, (TimeRange, Option<proto::TraceSearchMetadata>)>,
    /// Traces that were sent already.
    shown: HashSet<TraceId>,
    /// Bytes of the traces that were found.
    bytes: usize,
    progress: Option<&'e Progress<proto::SearchResponse>>,
}

impl Search<'_> {
    /// The first phase.
    async fn candidates(&mut self, known: &Arc<HashSet<TraceId>>, wanted: usize) -> Result<Newest, QueryError> {
        let engine = self.engine;
        let mut newest = Newest::new(wanted);
        let request = Arc::clone(&self.request);
        let job = |place: Place, floor: u64| {
            let (search, known) = (Arc::clone(&request), Arc::clone(known));
            Job::Candidates(CandidatesJob { search, place, known, floor, limit: wanted })
        };
        for tenant in self.tenants {
            let answer = self.running.run(tenant, job(Place::Recent, 0)).await?;
            let Answer::Candidates(answer) = answer else { return Err(wrong_kind()) };
            refuse_incomplete(answer.recent.incomplete)?;
            self.snapshot.add(&answer.recent.published);
            self.all.add(&answer.recent.published);
            self.take(answer, &mut newest);
        }
        let parts = self.snapshot.parts(engine.settings.target_bytes_per_job);
        if known.is_empty() {
            engine.metrics.jobs(Op::Search, parts.len() + self.tenants.len());
            let blocks = self.snapshot.blocks();
            self.metrics.total_blocks = count(blocks.len());
            self.metrics.total_jobs = count(parts.len() + self.tenants.len());
            self.metrics.total_block_bytes = blocks.iter().map(|meta| meta.size).sum();
            self.metrics.completed_jobs = count(self.tenants.len());
        }

        let first_round = known.is_empty();
        let mut parts = parts.into_iter();
        let mut ends = std::collections::VecDeque::new();
        let mut running = self.running.in_order(engine.settings.concurrent_jobs);
        loop {
            while running.has_room()
                && let Some(part) = parts.next()
            {
                let end = end_ns(&part.meta);
                if end < newest.floor() {
                    // What follows is older still.
                    parts = Vec::new().into_iter();
                    break;
                }
                self.charge.add(part.bytes())?;
                ends.push_back(end);
                running.begin(part.meta.tenant_id.clone(), job(Place::RowGroups(part), newest.floor()));
            }
            if ends.pop_front().is_none_or(|end| end < newest.floor()) {
                break;
            }
            let Some(answer) = running.next().await else { break };
            let Answer::Candidates(answer) = answer? else { return Err(wrong_kind()) };
            self.take(answer, &mut newest);
            self.metrics.completed_jobs += u32::from(first_round);
            self.show(&newest).await?;
        }
        // Blocks that need not be read are done, too.
        self.metrics.completed_jobs = self.metrics.total_jobs;
        Ok(newest)
    }

    fn take(&mut self, answer: CandidatesAnswer, newest: &mut Newest) {
        self.metrics.inspected_traces = self.metrics.inspected_traces.saturating_add(answer.inspected_traces);
        self.metrics.inspected_bytes += answer.inspected_bytes;
        newest.merge(answer.candidates);
    }

    /// The second phase, for those candidates that were not examined yet.
    async fn examine(&mut self, candidates: &[(TraceId, Candidate)]) -> Result<(), QueryError> {
        let engine = self.engine;
        let Some(first) = self.tenants.first() else { return Ok(()) };
        let spread = engine.settings.trace_spread.as_secs();
        let around = |candidate: &Candidate| TimeRange {
            start: (candidate.start / 1_000_000_000).saturating_sub(spread),
            end: (candidate.end / 1_000_000_000).saturating_add(1).saturating_add(spread),
        };
        // One whose other parts turned up meanwhile is examined again, at all their times.
        let candidates = candidates.iter().map(|(id, candidate)| (*id, around(candidate)));
        let new: Vec<_> = candidates.filter(|(id, range)| self.examined.get(id).is_none_or(|(known, _)| known != range)).collect();
        let left_pad_trace_ids = self.tenants.iter().any(|tenant| engine.limits(tenant).left_pad_trace_ids);
        let length = (new.len() / (4 * EXAMINATIONS)).clamp(1, MAX_EXAMINED);
        let mut chunks = new.chunks(length);
        let mut begun = std::collections::VecDeque::new();
        let mut running = self.running.in_order(EXAMINATIONS);
        loop {
            while running.has_room()
                && let Some(chunk) = chunks.next()
            {
                let start = chunk.iter().map(|(_, range)| range.start).min().unwrap_or(0);
                let end = chunk.iter().map(|(_, range)| range.end).max().unwrap_or(0);
                begun.push_back(chunk);
                let job = ExamineJob {
                    search: Arc::clone(&self.request),
                    traces: chunk.to_vec(),
                    tenants: self.tenants.to_vec(),
                    blocks: self.all.blocks_within(TimeRange { start, end }),
                    left_pad_trace_ids,
                };
                running.begin(first.clone(), Job::Examine(job));
            }
            let (Some(answer), Some(chunk)) = (running.next().await, begun.pop_front()) else { return Ok(()) };
            let Answer::Examined(answer) = answer? else { return Err(wrong_kind()) };
            refuse_incomplete(answer.incomplete)?;
            self.charge.add(answer.inspected_bytes)?;
            for (id, range) in chunk {
                self.examined.insert(*id, (*range, None));
            }
            for trace in answer.found {
                self.bytes += trace.encoded_len();
                let id = TraceId::from_hex(&trace.trace_id).map_err(|error| QueryError::Worker { cause: error.to_string() })?;
                if let Some((_, found)) = self.examined.get_mut(&id) {
                    *found = Some(trace);
                }
            }
            let max_bytes = engine.settings.max_bytes_per_answer;
            if max_bytes > 0 && self.bytes > max_bytes {
                return Err(QueryError::AnswerTooLarge { max_bytes });
            }
        }
    }

    /// A trace that was examined and matches.
    fn found(&self, id: TraceId) -> Option<(TraceId, proto::TraceSearchMetadata)> {
        Some((id, self.examined.get(&id)?.1.clone()?))
    }

    /// Sends what is new, if somebody waits for it and it is time.
    async fn show(&mut self, newest: &Newest) -> Result<(), QueryError> {
        let Some(progress) = self.progress.filter(|progress| progress.is_due()) else { return Ok(()) };
        let candidates = newest.sorted();
        self.examine(&candidates).await?;
        let new = candidates.iter().filter(|(id, _)| !self.shown.contains(id));
        let mut traces: Vec<_> = new.filter_map(|(id, _)| self.found(*id)).collect();
        traces.sort_unstable_by_key(|(id, trace)| (Reverse(trace.start_time_unix_nano), *id));
        let ids: Vec<_> = traces.iter().map(|(id, _)| *id).collect();
        let traces = traces.into_iter().map(|(_, trace)| trace).collect();
        if progress.send(proto::SearchResponse { traces, metrics: Some(self.metrics) }) {
            self.shown.extend(ids);
        }
        Ok(())
    }
}
