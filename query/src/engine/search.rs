//! Finds traces.
//!
//! Two phases, so that memory stays small and what search says of a trace is about the whole trace:
//!
//! ```text
//!  1  recent ─┐                                     2  each candidate, newest first:
//!     block ──┼─ evaluate on each part ─► Newest       fetch all its parts, evaluate on the whole,
//!     block ──┘  (projection only)       (limit ids)   keep it if it still matches
//! ```
//!
//! * The first phase keeps nothing but ids and times: the `limit` candidates whose matching part starts latest. Blocks come newest first, and
//!   once `limit` candidates are newer than everything a block can hold, the rest is not read. A part starts no later than its block ends, by
//!   definition of what is compared here, so this prunes no candidate even where a block's times were corrected.
//! * A query can hold for a part and not for the whole (`{} | count() < 3`). Then the second phase comes up short, and the first runs again
//!   without the candidates that are known.
//! * A trace none of whose parts matches alone is not found, as in Tempo: parts of a trace lie together except while blocks are being cut.
//!
//! The answer is sorted by start, newest first, then by id.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use prost::Message as _;
use storage::{
    block::{Meta, Projection, Trace},
    id::{Tenant, TraceId},
};

use super::{Engine, Flow, LegacyTags, Query, QueryError, TimeRange, TraceRequest, Visitor, blocking, combine, end_ns, start_ns};
use crate::{
    duration, proto,
    traceql::{self, EvaluateOptions, Spanset, TraceMatch, TraceView, Value},
};

/// Shown as service of a trace whose root span is not there.
const NO_ROOT: &str = "<root span not yet received>";

/// Traces of the second phase that are fetched at the same time.
const FETCHES: usize = 8;

/// What is searched for.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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
        let query = self.query();
        self.on_one_list(self.settings.search_timeout, || self.run_search(tenants, request.clone(), &query)).await
    }

    async fn run_search(&self, tenants: &[Tenant], request: SearchRequest, query: &Query) -> Result<proto::SearchResponse, QueryError> {
        let matcher = Arc::new(Matcher::new(request)?);
        let limit = matcher.request.limit;
        let mut metrics = proto::SearchMetrics::default();
        let padded = tenants.iter().any(|tenant| self.limits(tenant).left_pad_trace_ids);
        let max_bytes = self.settings.max_bytes_per_answer;
        let mut bytes = 0;
        let mut found: Vec<((Reverse<u64>, TraceId), _)> = Vec::new();
        let mut known = Arc::new(HashSet::new());
        while found.len() < limit && !matcher.matches_nothing() {
            let first_round = known.is_empty();
            let wanted = limit - found.len();
            let newest = self.candidates(tenants, &matcher, &known, wanted, query, &mut metrics, first_round).await?;
            let exhausted = !newest.is_full();
            Arc::make_mut(&mut known).extend(newest.candidates.keys());
            let candidates = newest.into_sorted();
            let mut traces = futures::stream::iter(candidates)
                .map(|(id, candidate)| self.examine(tenants, &matcher, id, candidate, query))
                .buffered(FETCHES);
            while let Some(trace) = traces.next().await {
                if let Some(trace) = trace? {
                    let order = (Reverse(trace.start_ns), trace.trace_id);
                    let shown = matcher.show(trace, padded);
                    bytes += shown.encoded_len();
                    found.push((order, shown));
                }
                if max_bytes > 0 && bytes > max_bytes {
                    return Err(QueryError::AnswerTooLarge { max_bytes });
                }
            }
            if exhausted {
                break;
            }
        }
        found.sort_unstable_by_key(|(order, _)| *order);
        let traces = found.into_iter().map(|(_, trace)| trace).collect();
        Ok(proto::SearchResponse { traces, metrics: Some(metrics) })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one search, used in one place")]
    async fn candidates(
        &self,
        tenants: &[Tenant],
        matcher: &Arc<Matcher>,
        known: &Arc<HashSet<TraceId>>,
        wanted: usize,
        query: &Query,
        metrics: &mut proto::SearchMetrics,
        first_round: bool,
    ) -> Result<Newest, QueryError> {
        let mut newest = Newest::new(wanted);
        let floor = Arc::new(AtomicU64::new(0));
        let finder = |bounds: Option<(u64, u64)>| Finder {
            matcher: Arc::clone(matcher),
            known: Arc::clone(known),
            floor: Arc::clone(&floor),
            bounds,
            newest: Newest::new(wanted),
            inspected: 0,
        };

        for tenant in tenants {
            let finder = self.scan_recent(tenant, finder(None), query).await?;
            metrics.inspected_traces = metrics.inspected_traces.saturating_add(finder.inspected);
            newest.merge(finder.newest);
        }

        let blocks = self.blocks(tenants, Some(matcher.request.range.unwrap_or_else(|| self.lookback())));
        if first_round {
            metrics.total_blocks = count(blocks.len());
            metrics.total_jobs = count(blocks.len() + tenants.len());
            // Blocks that need not be read are done, too.
            metrics.completed_jobs = metrics.total_jobs;
            metrics.total_block_bytes = blocks.iter().map(|meta| meta.size).sum();
        }
        floor.store(newest.floor(), Ordering::Relaxed);
        let take = |meta: &Meta, finder: Finder| {
            if end_ns(meta) < newest.floor() {
                return Flow::Stop;
            }
            metrics.inspected_traces = metrics.inspected_traces.saturating_add(finder.inspected);
            metrics.inspected_bytes += meta.size;
            newest.merge(finder.newest);
            floor.store(newest.floor(), Ordering::Relaxed);
            Flow::Continue
        };
        self.scan_blocks(blocks, matcher.projection(), query, |meta| finder(Some((start_ns(meta), end_ns(meta)))), take).await?;
        Ok(newest)
    }

    /// Evaluates the search on the whole of a trace.
    async fn examine(
        &self,
        tenants: &[Tenant],
        matcher: &Arc<Matcher>,
        id: TraceId,
        candidate: Candidate,
        query: &Query,
    ) -> Result<Option<TraceMatch>, QueryError> {
        let spread = self.settings.trace_spread.as_secs();
        let range = TimeRange {
            start: (candidate.start / 1_000_000_000).saturating_sub(spread),
            end: (candidate.end / 1_000_000_000).saturating_add(1).saturating_add(spread),
        };
        let request = TraceRequest { id, range: Some(range) };
        let whole = self.whole_trace(tenants, request, self.max_bytes_per_trace(tenants), query).await?;
        let matcher = Arc::clone(matcher);
        blocking(move || match combine::time_range(&whole.trace.resource_spans) {
            Some((start, end)) if matcher.in_range(start, end) => matcher.evaluate(&whole.trace, matcher.request.spans_per_spanset),
            _ => Ok(None),
        })
        .await
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A search that is ready to run.
#[derive(Debug)]
struct Matcher {
    request: SearchRequest,
    /// What is evaluated; for a search by tags, the query that every trace satisfies.
    query: traceql::Query,
}

impl Matcher {
    fn new(request: SearchRequest) -> Result<Self, QueryError> {
        let query = match &request.condition {
            Condition::TraceQl(query) => query.clone(),
            Condition::Tags { .. } => traceql::parse("{}").map_err(|error| QueryError::Worker { cause: error.to_string() })?,
        };
        Ok(Self { request, query })
    }

    fn matches_nothing(&self) -> bool {
        self.query.matches_nothing()
    }

    fn projection(&self) -> Projection {
        match &self.request.condition {
            Condition::Tags { tags, .. } if !tags.is_empty() => {
                Projection { resource_attributes: true, span_attributes: true, ..Projection::INTRINSICS }
            }
            _ => self.query.projection(),
        }
    }

    fn in_range(&self, start: u64, end: u64) -> bool {
        self.request.range.is_none_or(|range| range.overlaps(start, end))
    }

    fn evaluate(&self, trace: &Trace, spans_per_spanset: usize) -> Result<Option<TraceMatch>, QueryError> {
        let Some(found) = self.query.evaluate(&TraceView::new(trace), EvaluateOptions { spans_per_spanset })? else {
            return Ok(None);
        };
        if let Condition::Tags { tags, min_duration, max_duration } = &self.request.condition {
            let duration = combine::time_range(&trace.resource_spans).map_or(0, |(start, end)| end - start);
            let long_enough = u128::from(duration) >= min_duration.as_nanos();
            let short_enough = max_duration.is_zero() || u128::from(duration) <= max_duration.as_nanos();
            if !long_enough || !short_enough || !tags.matches(&trace.resource_spans, &found.root_trace_name, &found.root_service_name) {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    fn show(&self, found: TraceMatch, padded: bool) -> proto::TraceSearchMetadata {
        let span_sets: Vec<_> = match self.request.condition {
            Condition::TraceQl(_) => found.spansets.into_iter().map(show_spanset).collect(),
            Condition::Tags { .. } => Vec::new(),
        };
        let services = found.services.into_iter();
        proto::TraceSearchMetadata {
            trace_id: if padded { found.trace_id.to_hex() } else { found.trace_id.to_short_hex() },
            root_service_name: if found.root_service_name.is_empty() { NO_ROOT.to_owned() } else { found.root_service_name },
            root_trace_name: found.root_trace_name,
            start_time_unix_nano: found.start_ns,
            duration_ms: u32::try_from(found.duration_ms).unwrap_or(u32::MAX),
            span_set: span_sets.first().cloned(),
            span_sets,
            service_stats: services
                .map(|(service, stats)| (service, proto::ServiceStats { span_count: stats.spans, error_count: stats.errors }))
                .collect(),
        }
    }
}

fn show_spanset(spanset: Spanset) -> proto::SpanSet {
    proto::SpanSet {
        spans: spanset
            .spans
            .into_iter()
            .map(|span| proto::Span {
                span_id: format!("{:016x}", span.span_id),
                name: span.name.unwrap_or_default(),
                start_time_unix_nano: span.start_ns,
                duration_nanos: span.duration_ns,
                attributes: span.attributes.into_iter().map(show_attribute).collect(),
            })
            .collect(),
        matched: count(spanset.matched),
        attributes: spanset.attributes.into_iter().map(show_attribute).collect(),
    }
}

fn show_attribute((key, value): (String, Value)) -> KeyValue {
    KeyValue { key, value: Some(show_value(value)), ..KeyValue::default() }
}

fn show_value(value: Value) -> AnyValue {
    let value = match value {
        Value::Nil => any_value::Value::StringValue("nil".to_owned()),
        Value::Int(value) => any_value::Value::IntValue(value),
        Value::Float(value) => any_value::Value::DoubleValue(value),
        Value::String(value) => any_value::Value::StringValue(value),
        Value::Bool(value) => any_value::Value::BoolValue(value),
        Value::Duration(value) => any_value::Value::StringValue(duration::to_go(value)),
        Value::Status(value) => any_value::Value::StringValue(value.as_str().to_owned()),
        Value::Kind(value) => any_value::Value::StringValue(value.as_str().to_owned()),
        Value::Array(values) => any_value::Value::ArrayValue(ArrayValue { values: values.into_iter().map(show_value).collect() }),
    };
    AnyValue { value: Some(value) }
}

/// A trace that may be a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    /// What candidates are compared by: the start of the latest matching part, but no later than the end of its block.
    age: u64,
    /// Times that the blocks of its parts touch, Unix nanoseconds.
    start: u64,
    end: u64,
}

/// The `limit` candidates of the largest age, whatever the order in which they are offered: a candidate that was offered several times
/// counts with its largest age, and ages only grow, so what was once pushed out by `limit` larger ones stays out.
#[derive(Debug)]
struct Newest {
    limit: usize,
    candidates: HashMap<TraceId, Candidate>,
    ages: BTreeSet<(u64, Reverse<TraceId>)>,
}

impl Newest {
    fn new(limit: usize) -> Self {
        Self { limit, candidates: HashMap::new(), ages: BTreeSet::new() }
    }

    fn is_full(&self) -> bool {
        self.candidates.len() >= self.limit
    }

    /// Candidates of a smaller age than this are of no use.
    fn floor(&self) -> u64 {
        if self.is_full() { self.ages.first().map_or(u64::MAX, |(age, _)| *age) } else { 0 }
    }

    fn offer(&mut self, id: TraceId, candidate: Candidate) {
        let merged = match self.candidates.get(&id) {
            Some(known) => {
                self.ages.remove(&(known.age, Reverse(id)));
                Candidate { age: known.age.max(candidate.age), start: known.start.min(candidate.start), end: known.end.max(candidate.end) }
            }
            None => candidate,
        };
        self.candidates.insert(id, merged);
        self.ages.insert((merged.age, Reverse(id)));
        if self.candidates.len() > self.limit
            && let Some((_, Reverse(oldest))) = self.ages.pop_first()
        {
            self.candidates.remove(&oldest);
        }
    }

    fn merge(&mut self, other: Self) {
        for (id, candidate) in other.candidates {
            self.offer(id, candidate);
        }
    }

    /// Newest first.
    fn into_sorted(self) -> Vec<(TraceId, Candidate)> {
        let Self { ages, mut candidates, .. } = self;
        ages.into_iter().rev().filter_map(|(_, Reverse(id))| Some((id, candidates.remove(&id)?))).collect()
    }
}

/// Looks for candidates in one place.
#[derive(Debug)]
struct Finder {
    matcher: Arc<Matcher>,
    known: Arc<HashSet<TraceId>>,
    /// Age below which candidates are of no use. Rises while the search goes on; reading an older value costs time, not correctness.
    floor: Arc<AtomicU64>,
    /// First and last nanosecond of the block.
    bounds: Option<(u64, u64)>,
    newest: Newest,
    inspected: u32,
}

impl Visitor for Finder {
    fn visit(&mut self, trace: Trace) -> Result<(), QueryError> {
        self.inspected = self.inspected.saturating_add(1);
        let Some((start, end)) = combine::time_range(&trace.resource_spans) else {
            return Ok(());
        };
        let (block_start, block_end) = self.bounds.unwrap_or((start, u64::MAX));
        let candidate = Candidate { age: start.min(block_end), start: start.min(block_end), end: end.max(block_start) };
        let floor = self.floor.load(Ordering::Relaxed).max(self.newest.floor());
        if candidate.age < floor || self.known.contains(&trace.trace_id) || !self.matcher.in_range(start, end) {
            return Ok(());
        }
        if self.matcher.evaluate(&trace, 1)?.is_some() {
            self.newest.offer(trace.trace_id, candidate);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_newest_are_kept_whatever_the_order(
            offers in prop::collection::vec((0u8..20, 0u64..50), 0..60),
            limit in 1usize..8,
            split in 0usize..60,
        ) {
            let candidate = |age| Candidate { age, start: age, end: age };
            let id = |number: u8| TraceId([number; 16]);
            let (left, right) = offers.split_at(split.min(offers.len()));
            let mut newest = Newest::new(limit);
            for part in [right, left] {
                let mut local = Newest::new(limit);
                part.iter().for_each(|(number, age)| local.offer(id(*number), candidate(*age)));
                newest.merge(local);
            }

            let mut best: HashMap<u8, u64> = HashMap::new();
            for (number, age) in offers {
                let known = best.entry(number).or_default();
                *known = age.max(*known);
            }
            let mut expected: Vec<_> = best.into_iter().map(|(number, age)| (Reverse(age), id(number))).collect();
            expected.sort_unstable();
            expected.truncate(limit);
            let kept: Vec<_> = newest.into_sorted().into_iter().map(|(id, candidate)| (Reverse(candidate.age), id)).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
