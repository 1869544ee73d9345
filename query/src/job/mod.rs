//! Jobs: the parts that a query is cut into, and their answers.
//!
//! ```text
//!  request ──plan──► Job, Job, Job ──Runner──► Answer, Answer, Answer ──combine──► response
//!                     │                 │
//!                     │                 ├─ engine::Units: here
//!                     └── wire ◄────────┴─ frontend::Queue: some querier, by `encode` and `decode`
//! ```
//!
//! A job says everything that its execution needs (query, blocks with their descriptions, limits), so whoever executes it needs the bucket
//! and recent data and nothing else: no list of blocks, no limits of tenants, no clock. A job on blocks has one answer whoever runs it and
//! however often, which is what makes retries, hedging and caching right.
//!
//! Jobs travel in the format of [`wire`], which is ours: it changes with the release, so queriers and frontends must be of one release.

mod wire;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Debug},
    ops::Range,
    str::FromStr,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::Message as _;
use storage::{
    block::Meta,
    id::{BlockId, Tenant, TraceId},
    recent::{Coverage, RecentAnswer},
};
use uuid::Uuid;

pub use self::wire::InvalidJob;
use crate::{
    engine::{QueryError, SearchRequest, TagName, TagScope},
    proto,
    traceql::Filter,
    traceql_metrics::MetricsRequest,
};

/// Tells jobs of one query from those of others: those that run in one process share a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryId(Uuid);

impl QueryId {
    /// An id that no other query has.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for QueryId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Runs jobs.
#[async_trait]
pub trait Runner: Debug + Send + Sync {
    /// Runs one job of a query, on behalf of a tenant. Dropping the future cancels the job, wherever it runs.
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError>;
}

/// A part of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Look one trace up.
    Trace(TraceJob),
    /// Look one trace up in a store that is not ours.
    ExternalTrace(ExternalJob),
    /// Find traces that a search may return.
    Candidates(CandidatesJob),
    /// Evaluate a search on whole traces.
    Examine(ExamineJob),
    /// Gather names or values of attributes.
    Tags(TagsJob),
    /// Evaluate a metrics query.
    Metrics(MetricsJob),
}

/// Where a job looks.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// Data that is in no listed block yet.
    Recent,
    /// Some row groups of a block.
    RowGroups(BlockPart),
}

impl Place {
    /// The block, if it is one.
    pub fn block(&self) -> Option<&BlockPart> {
        match self {
            Self::Recent => None,
            Self::RowGroups(part) => Some(part),
        }
    }
}

/// Consecutive row groups of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockPart {
    /// The block.
    pub meta: Arc<Meta>,
    /// Its row groups; an end beyond the last means all that follow, since descriptions may be wrong about their number.
    pub row_groups: Range<u32>,
}

impl BlockPart {
    /// The whole block.
    pub fn whole(meta: Arc<Meta>) -> Self {
        Self { meta, row_groups: 0..u32::MAX }
    }

    /// Cuts a block into parts of about `target_bytes`, in order; 0 means that blocks are not cut.
    pub fn cut(meta: &Arc<Meta>, target_bytes: u64) -> Vec<Self> {
        let groups = meta.total_records.max(1);
        if target_bytes == 0 || meta.size <= target_bytes || groups == 1 {
            return vec![Self::whole(Arc::clone(meta))];
        }
        let bytes_per_group = (meta.size / u64::from(groups)).max(1);
        let step = u32::try_from((target_bytes / bytes_per_group).max(1)).unwrap_or(u32::MAX);
        let mut parts = Vec::new();
        let mut start = 0u32;
        while start < groups {
            let end = start.saturating_add(step);
            parts.push(Self { meta: Arc::clone(meta), row_groups: start..if end >= groups { u32::MAX } else { end } });
            start = end;
        }
        parts
    }

    /// The share of the block's bytes that lies in the part.
    pub fn bytes(&self) -> u64 {
        let groups = self.meta.total_records.max(1);
        let here = self.row_groups.end.min(groups).saturating_sub(self.row_groups.start.min(groups));
        if here == groups { self.meta.size } else { self.meta.size / u64::from(groups) * u64::from(here) }
    }
}

/// Look one trace up: in recent data, or in blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceJob {
    /// The trace.
    pub id: TraceId,
    /// The blocks to look into, in this order; recent data when absent.
    pub blocks: Option<Vec<Arc<Meta>>>,
    /// Most bytes of spans, as protobuf; 0 means any number.
    pub max_bytes: usize,
}

/// Look one trace up in a store that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalJob {
    /// The trace.
    pub id: TraceId,
    /// Where to look for it, Unix seconds; 0 is not said.
    pub start: u64,
    /// The end of that; 0 is not said.
    pub end: u64,
    /// Most bytes of spans, as protobuf; 0 means any number.
    pub max_bytes: usize,
}

/// Find the newest traces some part of which matches.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidatesJob {
    /// What is searched for.
    pub search: Arc<SearchRequest>,
    /// Where.
    pub place: Place,
    /// Traces that are of no interest any more.
    pub known: Arc<HashSet<TraceId>>,
    /// Candidates of a smaller age are of no use.
    pub floor: u64,
    /// Most candidates.
    pub limit: usize,
}

/// Evaluate a search on whole traces: recent data and blocks together.
#[derive(Clone, Debug, PartialEq)]
pub struct ExamineJob {
    /// What is searched for.
    pub search: Arc<SearchRequest>,
    /// The traces, each with the times between which its parts are looked for in blocks.
    pub traces: Vec<(TraceId, crate::engine::TimeRange)>,
    /// Whose traces these are; one trace may lie in several tenants.
    pub tenants: Vec<Tenant>,
    /// The blocks of the tenants that may hold parts of them, newest first.
    pub blocks: Vec<Arc<Meta>>,
    /// Whether trace ids are shown with all 32 digits.
    pub left_pad_trace_ids: bool,
}

/// Gather names or values of attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct TagsJob {
    /// What is gathered.
    pub wanted: Wanted,
    /// Only from spans that satisfy it.
    pub filter: Option<Filter>,
    /// When it is enough.
    pub bounds: Bounds,
    /// Where.
    pub place: Place,
}

/// What a tag query gathers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Names of attributes of a scope; of all scopes when absent.
    Names(Option<TagScope>),
    /// Values.
    Values(TagName),
}

/// Bounds of a tag answer; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all texts.
    pub max_bytes: usize,
    /// Texts in a group.
    pub max_per_group: usize,
    /// Texts.
    pub max_entries: usize,
    /// Known texts in a row.
    pub max_stale: usize,
    /// Whether the name of the group counts as bytes of a text.
    pub count_group: bool,
}

/// Evaluate a metrics query.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsJob {
    /// The query, with its time axis and bounds.
    pub request: Arc<MetricsRequest>,
    /// Where.
    pub place: Place,
}

/// What a job found.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of a [`Job::Trace`] or [`Job::ExternalTrace`].
    Trace(TraceAnswer),
    /// Of a [`Job::Candidates`].
    Candidates(CandidatesAnswer),
    /// Of a [`Job::Examine`].
    Examined(ExaminedAnswer),
    /// Of a [`Job::Tags`].
    Tags(TagsAnswer),
    /// Of a [`Job::Metrics`].
    Metrics(MetricsAnswer),
}

/// What an answer about recent data says beside the data; of no meaning in an answer about blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recency {
    /// Blocks that recent data became lately, which may not be on the list of whoever asks.
    pub published: Vec<Arc<Meta>>,
    /// Which part of all recent data it is about.
    pub coverage: Coverage,
    /// Whether recent data is missing, because a process that has some could not be asked.
    pub incomplete: bool,
}

impl Recency {
    /// What an answer of this process says, and its data.
    pub(crate) fn split<T>(answer: RecentAnswer<T>) -> (T, Self) {
        (answer.data, Self { published: answer.published, coverage: answer.coverage, incomplete: false })
    }

    fn join(&mut self, other: Self) {
        self.published.extend(other.published);
        self.incomplete |= other.incomplete;
    }
}

/// A trace, as much of it as there is in one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceAnswer {
    /// Its spans, as they are stored.
    pub resource_spans: Vec<ResourceSpans>,
    /// Whether it is cut at the size limit.
    pub truncated: bool,
    /// Bytes that came from blocks.
    pub inspected_bytes: u64,
    /// What it says of recent data.
    pub recent: Recency,
}

/// A trace that may be a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What candidates are compared by: the start of the latest matching part, but no later than the end of its block.
    pub age: u64,
    /// First of the times that the blocks of its parts touch, Unix nanoseconds.
    pub start: u64,
    /// Last of them.
    pub end: u64,
}

/// Traces that may be results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CandidatesAnswer {
    /// The traces, each once, newest first.
    pub candidates: Vec<(TraceId, Candidate)>,
    /// Traces that were looked at.
    pub inspected_traces: u32,
    /// Bytes of blocks that were looked at.
    pub inspected_bytes: u64,
    /// What it says of recent data.
    pub recent: Recency,
}

/// Traces that are results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExaminedAnswer {
    /// Those of the examined traces that match, in the order in which they were asked for.
    pub found: Vec<proto::TraceSearchMetadata>,
    /// Bytes that came from blocks.
    pub inspected_bytes: u64,
    /// See [`Recency::incomplete`].
    pub incomplete: bool,
}

/// Names or values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TagsAnswer {
    /// Names by scope, or values by type, in the order in which they were found.
    pub found: Vec<(&'static str, String)>,
    /// Whether a bound was reached, so that what would have come next is missing.
    pub full: bool,
    /// Bytes of blocks that were looked at.
    pub inspected_bytes: u64,
    /// What it says of recent data.
    pub recent: Recency,
}

/// Partial series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsAnswer {
    /// Partial results. Those of recent data that is on its way into a block say so: they do not count if the block is known.
    pub partials: Vec<MetricsPartial>,
    /// Spans that were looked at.
    pub inspected_spans: u64,
    /// Bytes of blocks that were looked at.
    pub inspected_bytes: u64,
    /// What it says of recent data.
    pub recent: Recency,
}

/// A partial result of a metrics query.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsPartial {
    /// The block that the spans behind it are going into.
    pub going: Option<BlockId>,
    /// The partial series, in the encoding of `traceql_metrics`.
    pub series: Bytes,
}

impl Job {
    /// Where the job looks, if it is one place.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Candidates(job) => Some(&job.place),
            Self::Tags(job) => Some(&job.place),
            Self::Metrics(job) => Some(&job.place),
            Self::Trace(_) | Self::ExternalTrace(_) | Self::Examine(_) => None,
        }
    }

    pub(crate) fn place_mut(&mut self) -> Option<&mut Place> {
        match self {
            Self::Candidates(job) => Some(&mut job.place),
            Self::Tags(job) => Some(&mut job.place),
            Self::Metrics(job) => Some(&mut job.place),
            Self::Trace(_) | Self::ExternalTrace(_) | Self::Examine(_) => None,
        }
    }

    /// Whether all that the job reads is recent data.
    pub fn is_recent(&self) -> bool {
        matches!(self.place(), Some(Place::Recent)) || matches!(self, Self::Trace(TraceJob { blocks: None, .. }))
    }

    /// Encodes the job for another process.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_job(self)
    }

    /// Reads an encoded job.
    ///
    /// # Errors
    /// The bytes are no job of this release.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidJob> {
        wire::decode_job(bytes)
    }
}

impl Answer {
    /// What the answer says of recent data; nothing if it cannot be about recent data alone.
    pub fn recent(&self) -> Option<&Recency> {
        match self {
            Self::Trace(answer) => Some(&answer.recent),
            Self::Candidates(answer) => Some(&answer.recent),
            Self::Tags(answer) => Some(&answer.recent),
            Self::Metrics(answer) => Some(&answer.recent),
            Self::Examined(_) => None,
        }
    }

    /// Bytes of memory that it holds, about.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            // Messages are larger than their encoding.
            Self::Trace(answer) => 4 * answer.resource_spans.iter().map(ResourceSpans::encoded_len).sum::<usize>(),
            Self::Candidates(answer) => size_of::<(TraceId, Candidate)>() * answer.candidates.len(),
            Self::Examined(answer) => 4 * answer.found.iter().map(proto::TraceSearchMetadata::encoded_len).sum::<usize>(),
            Self::Tags(answer) => answer.found.iter().map(|(_, text)| size_of::<(&str, String)>() + text.len()).sum(),
            Self::Metrics(answer) => answer.partials.iter().map(|partial| partial.series.len()).sum(),
        };
        bytes as u64
    }

    fn recent_mut(&mut self) -> Option<&mut Recency> {
        match self {
            Self::Trace(answer) => Some(&mut answer.recent),
            Self::Candidates(answer) => Some(&mut answer.recent),
            Self::Tags(answer) => Some(&mut answer.recent),
            Self::Metrics(answer) => Some(&mut answer.recent),
            Self::Examined(_) => None,
        }
    }

    /// Says that recent data is missing.
    pub(crate) fn lacks_recent(&mut self) {
        self.recent_mut().into_iter().for_each(|recent| recent.incomplete = true);
    }

    /// Takes away what the answer cost: it did not this time.
    pub(crate) fn forget_cost(&mut self) {
        match self {
            Self::Trace(answer) => answer.inspected_bytes = 0,
            Self::Candidates(answer) => (answer.inspected_bytes, answer.inspected_traces) = (0, 0),
            Self::Examined(answer) => answer.inspected_bytes = 0,
            Self::Tags(answer) => answer.inspected_bytes = 0,
            Self::Metrics(answer) => (answer.inspected_bytes, answer.inspected_spans) = (0, 0),
        }
    }

    /// Puts the answers of several processes about their recent data together. Answers of another kind are left out.
    pub(crate) fn join(&mut self, other: Self) {
        match (self, other) {
            (Self::Trace(all), Self::Trace(answer)) => {
                all.resource_spans.extend(answer.resource_spans);
                all.truncated |= answer.truncated;
                all.recent.join(answer.recent);
            }
            (Self::Candidates(all), Self::Candidates(answer)) => {
                all.candidates.extend(answer.candidates);
                all.inspected_traces = all.inspected_traces.saturating_add(answer.inspected_traces);
                all.recent.join(answer.recent);
            }
            (Self::Tags(all), Self::Tags(answer)) => {
                all.found.extend(answer.found);
                all.full |= answer.full;
                all.recent.join(answer.recent);
            }
            (Self::Metrics(all), Self::Metrics(answer)) => {
                all.partials.extend(answer.partials);
                all.inspected_spans += answer.inspected_spans;
                all.recent.join(answer.recent);
            }
            _ => {}
        }
    }
}

/// Encodes what became of a job for another process.
pub fn encode_outcome(outcome: &Result<Answer, QueryError>) -> Vec<u8> {
    wire::encode_outcome(outcome)
}

/// Reads what became of a job in another process.
///
/// # Errors
/// What the job failed with, or that the bytes are none of this release.
pub fn decode_outcome(bytes: &[u8]) -> Result<Answer, QueryError> {
    wire::decode_outcome(bytes)
}

/// Texts by group, in the order of [`TagsAnswer`], as sorted sets.
pub(crate) fn sorted(found: Vec<(&'static str, String)>) -> BTreeMap<&'static str, std::collections::BTreeSet<String>> {
    let mut groups: BTreeMap<&'static str, std::collections::BTreeSet<String>> = BTreeMap::new();
    for (group, text) in found {
        groups.entry(group).or_default().insert(text);
    }
    groups
}
