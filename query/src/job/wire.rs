//! Jobs and answers as protobuf.
//!
//! The messages are ours, not Tempo's: Tempo's querier takes URLs, which cannot say what our jobs say (blocks with their descriptions,
//! candidates that are known already, whole traces over several blocks). Only the frame around them is Tempo's, see [`crate::frontend`].
//!
//! Queries travel as their canonical text, which parses to the same query. Descriptions of blocks travel without what reading them does not
//! need; columns that many blocks have in common are sent once. Everything that comes in is checked: an unknown number, a text that does not
//! parse, or a missing part is an [`InvalidJob`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::{Message, Oneof};
use storage::{
    block::{DedicatedColumn, Meta},
    id::{BlockId, Tenant, TraceId},
    recent::Coverage,
};

use super::{
    Answer, BlockPart, Bounds, Candidate, CandidatesAnswer, CandidatesJob, ExamineJob, ExaminedAnswer, ExternalJob, Job, MetricsAnswer,
    MetricsJob, MetricsPartial, Place, Recency, TagsAnswer, TagsJob, TraceAnswer, TraceJob, Wanted,
};
use crate::{
    engine::{Condition, LegacyTags, QueryError, RemoteError, SearchRequest, TagName, TagScope, TextIntrinsic, TimeRange},
    proto, traceql,
    traceql_metrics::{MetricsLimits, MetricsRequest},
};

/// Why bytes are no job, or no answer, of this release.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJob {
    /// They are not the protobuf that they should be.
    #[error("message of another release or not one: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Something in them makes no sense.
    #[error("invalid {what}")]
    Field {
        /// What.
        what: &'static str,
    },
}

fn invalid(what: &'static str) -> InvalidJob {
    InvalidJob::Field { what }
}

fn present<T>(part: Option<T>, what: &'static str) -> Result<T, InvalidJob> {
    part.ok_or(InvalidJob::Field { what })
}

#[derive(Clone, PartialEq, Message)]
struct WireJob {
    #[prost(oneof = "WireKind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<WireKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum WireKind {
    #[prost(message, tag = "1")]
    Trace(WireTraceJob),
    #[prost(message, tag = "2")]
    Candidates(WireCandidatesJob),
    #[prost(message, tag = "3")]
    Examine(WireExamineJob),
    #[prost(message, tag = "4")]
    Tags(WireTagsJob),
    #[prost(message, tag = "5")]
    Metrics(WireMetricsJob),
    #[prost(message, tag = "6")]
    ExternalTrace(WireExternalJob),
}

#[derive(Clone, PartialEq, Message)]
struct WireExternalJob {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
    #[prost(uint64, tag = "4")]
    max_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireTraceJob {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    /// Absent: recent data.
    #[prost(message, optional, tag = "2")]
    blocks: Option<WireBlocks>,
    #[prost(uint64, tag = "3")]
    max_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireCandidatesJob {
    #[prost(message, optional, tag = "1")]
    search: Option<WireSearch>,
    #[prost(message, optional, tag = "2")]
    place: Option<WirePlace>,
    /// 16 bytes each.
    #[prost(bytes = "vec", tag = "3")]
    known: Vec<u8>,
    #[prost(uint64, tag = "4")]
    floor: u64,
    #[prost(uint64, tag = "5")]
    limit: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireExamineJob {
    #[prost(message, optional, tag = "1")]
    search: Option<WireSearch>,
    #[prost(message, repeated, tag = "2")]
    traces: Vec<WireExamined>,
    #[prost(string, repeated, tag = "3")]
    tenants: Vec<String>,
    #[prost(message, optional, tag = "4")]
    blocks: Option<WireBlocks>,
    #[prost(bool, tag = "5")]
    left_pad_trace_ids: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireExamined {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireTagsJob {
    #[prost(message, optional, tag = "1")]
    wanted: Option<WireWanted>,
    #[prost(string, optional, tag = "2")]
    filter: Option<String>,
    #[prost(uint64, tag = "3")]
    max_bytes: u64,
    #[prost(uint64, tag = "4")]
    max_per_group: u64,
    #[prost(uint64, tag = "5")]
    max_entries: u64,
    #[prost(uint64, tag = "6")]
    max_stale: u64,
    #[prost(bool, tag = "7")]
    count_group: bool,
    #[prost(message, optional, tag = "8")]
    place: Option<WirePlace>,
}

#[derive(Clone, PartialEq, Message)]
struct WireWanted {
    /// Names when neither an attribute nor an intrinsic is there.
    #[prost(string, optional, tag = "1")]
    attribute: Option<String>,
    #[prost(string, optional, tag = "2")]
    intrinsic: Option<String>,
    /// Of names or of the attribute.
    #[prost(string, optional, tag = "3")]
    scope: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct WireMetricsJob {
    #[prost(message, optional, tag = "1")]
    request: Option<proto::QueryRangeRequest>,
    #[prost(message, optional, tag = "2")]
    place: Option<WirePlace>,
    /// Bounds, see [`MetricsLimits`].
    #[prost(uint32, tag = "3")]
    max_exemplars: u32,
    #[prost(uint64, tag = "4")]
    max_intervals: u64,
    #[prost(uint32, tag = "5")]
    max_series: u32,
    #[prost(uint64, tag = "6")]
    max_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireSearch {
    /// A TraceQL query; absent in a search by tags.
    #[prost(string, optional, tag = "1")]
    query: Option<String>,
    #[prost(message, repeated, tag = "2")]
    tags: Vec<WireTag>,
    #[prost(uint64, tag = "3")]
    min_duration_ns: u64,
    #[prost(uint64, tag = "4")]
    max_duration_ns: u64,
    #[prost(message, optional, tag = "5")]
    range: Option<WireRange>,
    #[prost(uint64, tag = "6")]
    limit: u64,
    #[prost(uint64, tag = "7")]
    spans_per_spanset: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireTag {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WireRange {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
}

/// Recent data when there is no block.
#[derive(Clone, PartialEq, Message)]
struct WirePlace {
    #[prost(message, optional, tag = "1")]
    block: Option<WireBlocks>,
    #[prost(uint32, tag = "2")]
    first: u32,
    #[prost(uint32, tag = "3")]
    end: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireBlocks {
    /// Lists of dedicated columns, as in `meta.json`.
    #[prost(bytes = "vec", repeated, tag = "1")]
    columns: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    tenants: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    blocks: Vec<WireBlock>,
}

#[derive(Clone, PartialEq, Message)]
struct WireBlock {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(sint64, tag = "3")]
    start_time: i64,
    #[prost(sint64, tag = "4")]
    end_time: i64,
    #[prost(uint64, tag = "5")]
    total_objects: u64,
    #[prost(uint64, tag = "6")]
    size: u64,
    #[prost(uint32, tag = "7")]
    total_records: u32,
    #[prost(uint32, tag = "8")]
    bloom_shards: u32,
    #[prost(uint32, tag = "9")]
    footer_size: u32,
    #[prost(uint32, tag = "10")]
    replication_factor: u32,
    /// Index into the lists of columns.
    #[prost(uint32, tag = "11")]
    columns: u32,
    /// Index into the tenants.
    #[prost(uint32, tag = "12")]
    tenant: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireOutcome {
    #[prost(oneof = "WireAnswer", tags = "1, 2, 3, 4, 5, 6")]
    answer: Option<WireAnswer>,
    #[prost(message, optional, tag = "7")]
    published: Option<WireBlocks>,
    #[prost(uint64, tag = "8")]
    inspected_bytes: u64,
    /// See [`Coverage`].
    #[prost(uint64, tag = "9")]
    epoch: u64,
    #[prost(uint32, tag = "10")]
    index: u32,
    #[prost(uint32, tag = "11")]
    processes: u32,
    #[prost(bool, tag = "12")]
    incomplete: bool,
}

#[derive(Clone, PartialEq, Oneof)]
enum WireAnswer {
    #[prost(message, tag = "1")]
    Trace(WireTraceAnswer),
    #[prost(message, tag = "2")]
    Candidates(WireCandidatesAnswer),
    #[prost(message, tag = "3")]
    Examined(proto::SearchResponse),
    #[prost(message, tag = "4")]
    Tags(WireTagsAnswer),
    #[prost(message, tag = "5")]
    Metrics(WireMetricsAnswer),
    #[prost(message, tag = "6")]
    Error(WireError),
}

#[derive(Clone, PartialEq, Message)]
struct WireTraceAnswer {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
    #[prost(bool, tag = "2")]
    truncated: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireCandidatesAnswer {
    #[prost(message, repeated, tag = "1")]
    candidates: Vec<WireCandidate>,
    #[prost(uint32, tag = "2")]
    inspected_traces: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireCandidate {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    age: u64,
    #[prost(fixed64, tag = "3")]
    start: u64,
    #[prost(fixed64, tag = "4")]
    end: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireTagsAnswer {
    #[prost(message, repeated, tag = "1")]
    found: Vec<WireTag>,
    #[prost(bool, tag = "2")]
    full: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireMetricsAnswer {
    #[prost(message, repeated, tag = "1")]
    partials: Vec<WireMetricsPartial>,
    #[prost(uint64, tag = "2")]
    inspected_spans: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireMetricsPartial {
    #[prost(bytes = "vec", optional, tag = "1")]
    going: Option<Vec<u8>>,
    #[prost(bytes = "bytes", tag = "2")]
    series: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct WireError {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(bool, tag = "3")]
    retryable: bool,
    /// The block that is gone, and its tenant.
    #[prost(bytes = "vec", tag = "4")]
    block: Vec<u8>,
    #[prost(string, tag = "5")]
    tenant: String,
}

pub(super) fn encode_job(job: &Job) -> Vec<u8> {
    let kind = match job {
        Job::Trace(job) => WireKind::Trace(WireTraceJob {
            id: job.id.0.to_vec(),
            blocks: job.blocks.as_deref().map(blocks_to_wire),
            max_bytes: job.max_bytes as u64,
        }),
        Job::ExternalTrace(job) => WireKind::ExternalTrace(WireExternalJob {
            id: job.id.0.to_vec(),
            start: job.start,
            end: job.end,
            max_bytes: job.max_bytes as u64,
        }),
        Job::Candidates(job) => WireKind::Candidates(WireCandidatesJob {
            search: Some(search_to_wire(&job.search)),
            place: Some(place_to_wire(&job.place)),
            known: known_to_wire(&job.known),
            floor: job.floor,
            limit: job.limit as u64,
        }),
        Job::Examine(job) => WireKind::Examine(WireExamineJob {
            search: Some(search_to_wire(&job.search)),
            traces: job.traces.iter().map(|(id, range)| WireExamined { id: id.0.to_vec(), start: range.start, end: range.end }).collect(),
            tenants: job.tenants.iter().map(|tenant| tenant.as_str().to_owned()).collect(),
            blocks: Some(blocks_to_wire(&job.blocks)),
            left_pad_trace_ids: job.left_pad_trace_ids,
        }),
        Job::Tags(job) => WireKind::Tags(WireTagsJob {
            wanted: Some(wanted_to_wire(&job.wanted)),
            filter: job.filter.as_ref().map(ToString::to_string),
            max_bytes: job.bounds.max_bytes as u64,
            max_per_group: job.bounds.max_per_group as u64,
            max_entries: job.bounds.max_entries as u64,
            max_stale: job.bounds.max_stale as u64,
            count_group: job.bounds.count_group,
            place: Some(place_to_wire(&job.place)),
        }),
        Job::Metrics(job) => WireKind::Metrics(WireMetricsJob {
            request: Some(job.request.to_proto()),
            place: Some(place_to_wire(&job.place)),
            max_exemplars: job.request.limits().max_exemplars,
            max_intervals: job.request.limits().max_intervals,
            max_series: job.request.limits().max_series,
            max_bytes: job.request.limits().max_bytes as u64,
        }),
    };
    WireJob { kind: Some(kind) }.encode_to_vec()
}

pub(super) fn decode_job(bytes: &[u8]) -> Result<Job, InvalidJob> {
    let job = present(WireJob::decode(bytes)?.kind, "kind of job")?;
    Ok(match job {
        WireKind::Trace(job) => Job::Trace(TraceJob {
            id: trace_id(&job.id)?,
            blocks: job.blocks.map(blocks_from_wire).transpose()?,
            max_bytes: size(job.max_bytes),
        }),
        WireKind::ExternalTrace(job) => {
            Job::ExternalTrace(ExternalJob { id: trace_id(&job.id)?, start: job.start, end: job.end, max_bytes: size(job.max_bytes) })
        }
        WireKind::Candidates(job) => Job::Candidates(CandidatesJob {
            search: search_from_wire(job.search)?,
            place: place_from_wire(job.place)?,
            known: Arc::new(job.known.chunks(16).map(trace_id).collect::<Result<_, _>>()?),
            floor: job.floor,
            limit: size(job.limit),
        }),
        WireKind::Examine(job) => {
            let traces = job.traces.iter().map(|one| Ok((trace_id(&one.id)?, TimeRange { start: one.start, end: one.end })));
            Job::Examine(ExamineJob {
                search: search_from_wire(job.search)?,
                traces: traces.collect::<Result<_, InvalidJob>>()?,
                tenants: job.tenants.iter().map(|name| tenant(name)).collect::<Result<_, _>>()?,
                blocks: blocks_from_wire(job.blocks.unwrap_or_default())?,
                left_pad_trace_ids: job.left_pad_trace_ids,
            })
        }
        WireKind::Tags(job) => Job::Tags(TagsJob {
            wanted: wanted_from_wire(job.wanted.unwrap_or_default())?,
            filter: job.filter.map(|filter| present(traceql::tag_filter(&filter), "filter")).transpose()?,
            bounds: Bounds {
                max_bytes: size(job.max_bytes),
                max_per_group: size(job.max_per_group),
                max_entries: size(job.max_entries),
                max_stale: size(job.max_stale),
                count_group: job.count_group,
            },
            place: place_from_wire(job.place)?,
        }),
        WireKind::Metrics(job) => {
            let limits = MetricsLimits {
                max_exemplars: job.max_exemplars,
                max_intervals: job.max_intervals,
                max_series: job.max_series,
                max_bytes: size(job.max_bytes),
            };
            let request = MetricsRequest::from_proto(&present(job.request, "metrics request")?, limits);
            let request = Arc::new(request.map_err(|_| invalid("metrics query"))?);
            Job::Metrics(MetricsJob { request, place: place_from_wire(job.place)? })
        }
    })
}

pub(super) fn encode_outcome(outcome: &Result<Answer, QueryError>) -> Vec<u8> {
    let (answer, inspected_bytes) = match outcome {
        Ok(Answer::Trace(answer)) => {
            let (resource_spans, truncated) = (answer.resource_spans.clone(), answer.truncated);
            (WireAnswer::Trace(WireTraceAnswer { resource_spans, truncated }), answer.inspected_bytes)
        }
        Ok(Answer::Candidates(answer)) => {
            let candidate = |(id, candidate): &(TraceId, Candidate)| WireCandidate {
                id: id.0.to_vec(),
                age: candidate.age,
                start: candidate.start,
                end: candidate.end,
            };
            let candidates = answer.candidates.iter().map(candidate).collect();
            let inspected_traces = answer.inspected_traces;
            (WireAnswer::Candidates(WireCandidatesAnswer { candidates, inspected_traces }), answer.inspected_bytes)
        }
        Ok(Answer::Examined(answer)) => {
            let found = proto::SearchResponse { traces: answer.found.clone(), metrics: None };
            (WireAnswer::Examined(found), answer.inspected_bytes)
        }
        Ok(Answer::Tags(answer)) => {
            let found = answer.found.iter().map(|(group, text)| WireTag { key: (*group).to_owned(), value: text.clone() }).collect();
            (WireAnswer::Tags(WireTagsAnswer { found, full: answer.full }), answer.inspected_bytes)
        }
        Ok(Answer::Metrics(answer)) => {
            let partial = |partial: &MetricsPartial| WireMetricsPartial {
                going: partial.going.map(|block| block.as_bytes().to_vec()),
                series: partial.series.clone(),
            };
            let partials = answer.partials.iter().map(partial).collect();
            (WireAnswer::Metrics(WireMetricsAnswer { partials, inspected_spans: answer.inspected_spans }), answer.inspected_bytes)
        }
        Err(error) => (WireAnswer::Error(error_to_wire(error)), 0),
    };
    let mut wire = WireOutcome { answer: Some(answer), inspected_bytes, ..WireOutcome::default() };
    if let Ok(Answer::Examined(answer)) = outcome {
        wire.incomplete = answer.incomplete;
    }
    if let Some(recent) = outcome.as_ref().ok().and_then(Answer::recent) {
        wire.published = (!recent.published.is_empty()).then(|| blocks_to_wire(&recent.published));
        let Coverage { epoch, index, processes } = recent.coverage;
        (wire.epoch, wire.index, wire.processes, wire.incomplete) = (epoch, index, processes, recent.incomplete);
    }
    wire.encode_to_vec()
}

pub(super) fn decode_outcome(bytes: &[u8]) -> Result<Answer, QueryError> {
    let broken = |error: InvalidJob| QueryError::Worker { cause: format!("answer of another process: {error}") };
    let WireOutcome { answer, published, inspected_bytes, epoch, index, processes, incomplete } =
        WireOutcome::decode(bytes).map_err(|error| broken(error.into()))?;
    let recent = Recency {
        published: published.map(blocks_from_wire).transpose().map_err(broken)?.unwrap_or_default(),
        coverage: Coverage { epoch, index, processes },
        incomplete,
    };
    Ok(match answer.ok_or_else(|| broken(invalid("answer")))? {
        WireAnswer::Trace(WireTraceAnswer { resource_spans, truncated }) => {
            Answer::Trace(TraceAnswer { resource_spans, truncated, inspected_bytes, recent })
        }
        WireAnswer::Candidates(answer) => {
            let candidate = |one: WireCandidate| Ok((trace_id(&one.id)?, Candidate { age: one.age, start: one.start, end: one.end }));
            let candidates = answer.candidates.into_iter().map(candidate).collect::<Result<_, InvalidJob>>().map_err(broken)?;
            Answer::Candidates(CandidatesAnswer { candidates, inspected_traces: answer.inspected_traces, inspected_bytes, recent })
        }
        WireAnswer::Examined(answer) => Answer::Examined(ExaminedAnswer { found: answer.traces, inspected_bytes, incomplete }),
        WireAnswer::Tags(answer) => {
            let text = |tag: WireTag| Ok((group(&tag.key)?, tag.value));
            let found = answer.found.into_iter().map(text).collect::<Result<_, InvalidJob>>().map_err(broken)?;
            Answer::Tags(TagsAnswer { found, full: answer.full, inspected_bytes, recent })
        }
        WireAnswer::Metrics(answer) => {
            let partial = |partial: WireMetricsPartial| {
                let going = partial.going.map(|id| block_id(&id)).transpose()?;
                Ok(MetricsPartial { going, series: partial.series })
            };
            let partials = answer.partials.into_iter().map(partial).collect::<Result<_, InvalidJob>>().map_err(broken)?;
            Answer::Metrics(MetricsAnswer { partials, inspected_spans: answer.inspected_spans, inspected_bytes, recent })
        }
        WireAnswer::Error(error) => return Err(error_from_wire(error).unwrap_or_else(broken)),
    })
}

fn error_to_wire(error: &QueryError) -> WireError {
    let mut wire = WireError {
        status: error.status().into(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        block: Vec::new(),
        tenant: String::new(),
    };
    if let QueryError::BlockGone { tenant, block, cause } = error {
        wire.block = block.as_bytes().to_vec();
        wire.tenant = tenant.as_str().to_owned();
        wire.message.clone_from(cause);
    }
    wire
}

fn error_from_wire(error: WireError) -> Result<QueryError, InvalidJob> {
    if !error.block.is_empty() {
        return Ok(QueryError::BlockGone { tenant: tenant(&error.tenant)?, block: block_id(&error.block)?, cause: error.message });
    }
    let status = u16::try_from(error.status).ok().filter(|status| (400..600).contains(status)).ok_or(invalid("status"))?;
    Ok(QueryError::Remote(RemoteError { status, message: error.message, retryable: error.retryable }))
}

fn search_to_wire(search: &SearchRequest) -> WireSearch {
    let mut wire = WireSearch {
        range: search.range.map(|TimeRange { start, end }| WireRange { start, end }),
        limit: search.limit as u64,
        spans_per_spanset: search.spans_per_spanset as u64,
        ..WireSearch::default()
    };
    match &search.condition {
        Condition::TraceQl(query) => wire.query = Some(query.text().to_owned()),
        Condition::Tags { tags, min_duration, max_duration } => {
            wire.tags = tags.pairs().iter().map(|(key, value)| WireTag { key: key.clone(), value: value.clone() }).collect();
            wire.min_duration_ns = nanos(*min_duration);
            wire.max_duration_ns = nanos(*max_duration);
        }
    }
    wire
}

fn search_from_wire(wire: Option<WireSearch>) -> Result<Arc<SearchRequest>, InvalidJob> {
    let wire = present(wire, "search")?;
    let condition = match wire.query {
        Some(text) => Condition::TraceQl(query(&text)?),
        None => Condition::Tags {
            tags: LegacyTags::from_pairs(wire.tags.into_iter().map(|tag| (tag.key, tag.value)).collect()),
            min_duration: Duration::from_nanos(wire.min_duration_ns),
            max_duration: Duration::from_nanos(wire.max_duration_ns),
        },
    };
    Ok(Arc::new(SearchRequest {
        condition,
        range: wire.range.map(|WireRange { start, end }| TimeRange { start, end }),
        limit: size(wire.limit),
        spans_per_spanset: size(wire.spans_per_spanset),
    }))
}

fn wanted_to_wire(wanted: &Wanted) -> WireWanted {
    let scope = |scope: &Option<TagScope>| scope.map(|scope| scope.as_str().to_owned());
    match wanted {
        Wanted::Names(of) => WireWanted { scope: scope(of), ..WireWanted::default() },
        Wanted::Values(TagName::Attribute { scope: of, name }) => {
            WireWanted { attribute: Some(name.clone()), scope: scope(of), ..WireWanted::default() }
        }
        Wanted::Values(TagName::Text(intrinsic)) => WireWanted { intrinsic: Some(intrinsic.as_str().to_owned()), ..WireWanted::default() },
        // Answered without looking, so that no job is made of them.
        Wanted::Values(TagName::Keywords(_) | TagName::Nothing) => WireWanted { intrinsic: Some(String::new()), ..WireWanted::default() },
    }
}

fn wanted_from_wire(wire: WireWanted) -> Result<Wanted, InvalidJob> {
    let scope = wire.scope.map(|name| present(TagScope::from_name(&name), "scope")).transpose()?;
    Ok(match (wire.attribute, wire.intrinsic) {
        (Some(name), _) => Wanted::Values(TagName::Attribute { scope, name }),
        (None, Some(name)) => Wanted::Values(TagName::Text(present(TextIntrinsic::from_name(&name), "intrinsic")?)),
        (None, None) => Wanted::Names(scope),
    })
}

fn place_to_wire(place: &Place) -> WirePlace {
    match place {
        Place::Recent => WirePlace::default(),
        Place::RowGroups(part) => WirePlace {
            block: Some(blocks_to_wire(std::slice::from_ref(&part.meta))),
            first: part.row_groups.start,
            end: part.row_groups.end,
        },
    }
}

fn place_from_wire(wire: Option<WirePlace>) -> Result<Place, InvalidJob> {
    let WirePlace { block, first, end } = present(wire, "place")?;
    let Some(block) = block else { return Ok(Place::Recent) };
    let meta = present(blocks_from_wire(block)?.pop(), "block")?;
    if first >= end {
        return Err(invalid("range of row groups"));
    }
    Ok(Place::RowGroups(BlockPart { meta, row_groups: first..end }))
}

fn blocks_to_wire(metas: &[Arc<Meta>]) -> WireBlocks {
    let mut wire = WireBlocks::default();
    // There are few different lists.
    let mut columns: Vec<&[DedicatedColumn]> = Vec::new();
    let mut tenants: HashMap<&Tenant, u32> = HashMap::new();
    for meta in metas {
        let of_columns = columns.iter().position(|known| *known == meta.dedicated_columns).unwrap_or_else(|| {
            columns.push(&meta.dedicated_columns);
            // Lists of texts cannot fail to be JSON.
            wire.columns.push(serde_json::to_vec(&meta.dedicated_columns).unwrap_or_default());
            wire.columns.len() - 1
        });
        let of_tenant = *tenants.entry(&meta.tenant_id).or_insert_with(|| {
            wire.tenants.push(meta.tenant_id.as_str().to_owned());
            wire.tenants.len() as u32 - 1
        });
        wire.blocks.push(WireBlock {
            id: meta.block_id.as_bytes().to_vec(),
            format: meta.format.clone(),
            start_time: meta.start_time,
            end_time: meta.end_time,
            total_objects: meta.total_objects,
            size: meta.size,
            total_records: meta.total_records,
            bloom_shards: meta.bloom_shards,
            footer_size: meta.footer_size,
            replication_factor: meta.replication_factor,
            columns: of_columns as u32,
            tenant: of_tenant,
        });
    }
    wire
}

fn blocks_from_wire(wire: WireBlocks) -> Result<Vec<Arc<Meta>>, InvalidJob> {
    let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|_| invalid("dedicated columns"));
    let columns: Vec<Vec<DedicatedColumn>> = wire.columns.into_iter().map(parse).collect::<Result<_, _>>()?;
    let tenants: Vec<Tenant> = wire.tenants.iter().map(|name| tenant(name)).collect::<Result<_, _>>()?;
    let meta = |block: WireBlock| {
        Ok(Arc::new(Meta {
            format: block.format,
            block_id: block_id(&block.id)?,
            tenant_id: present(tenants.get(block.tenant as usize), "tenant of a block")?.clone(),
            start_time: block.start_time,
            end_time: block.end_time,
            total_objects: block.total_objects,
            size: block.size,
            compaction_level: 0,
            index_page_size: 0,
            total_records: block.total_records,
            bloom_shards: block.bloom_shards,
            footer_size: block.footer_size,
            dedicated_columns: present(columns.get(block.columns as usize), "columns of a block")?.clone(),
            replication_factor: block.replication_factor,
            compacted_from: Vec::new(),
            created_at: None,
        }))
    };
    wire.blocks.into_iter().map(meta).collect()
}

fn known_to_wire(known: &std::collections::HashSet<TraceId>) -> Vec<u8> {
    let mut ids: Vec<TraceId> = known.iter().copied().collect();
    ids.sort_unstable();
    ids.iter().flat_map(|id| id.0).collect()
}

fn query(text: &str) -> Result<traceql::Query, InvalidJob> {
    traceql::parse(text).map_err(|_| invalid("query"))
}

fn tenant(name: &str) -> Result<Tenant, InvalidJob> {
    Tenant::new(name).map_err(|_| invalid("tenant"))
}

fn trace_id(bytes: &[u8]) -> Result<TraceId, InvalidJob> {
    bytes.try_into().map(TraceId).map_err(|_| invalid("trace id"))
}

fn block_id(bytes: &[u8]) -> Result<BlockId, InvalidJob> {
    BlockId::from_slice(bytes).map_err(|_| invalid("block id"))
}

/// Groups of names and values are a closed set.
fn group(name: &str) -> Result<&'static str, InvalidJob> {
    const TYPES: [&str; 6] = ["string", "int", "float", "bool", "duration", "keyword"];
    let scope = TagScope::from_name(name).map(TagScope::as_str);
    scope.or_else(|| TYPES.into_iter().find(|known| *known == name)).ok_or(invalid("group of a tag"))
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
