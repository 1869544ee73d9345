//! The messages of Tempo's query API (package `tempopb`), written out by hand.
//!
//! They are few, and their field numbers are a contract that does not change, so a generator would add a build step and save nothing.
//! Spans, resources and attributes are those of `opentelemetry-proto`: Tempo's copies have the same field numbers. The JSON form of the
//! same messages is written by `api::json`; names there follow the protobuf JSON mapping, mixed case included.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{common::v1::KeyValue, trace::v1::TracesData};

/// Answer of `/api/v2/traces/{traceID}`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceByIdResponse {
    /// The trace; present even when nothing was found, because Grafana takes it for granted.
    #[prost(message, optional, tag = "1")]
    pub trace: Option<TracesData>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<TraceByIdMetrics>,
    /// Whether something is missing.
    #[prost(enumeration = "PartialStatus", tag = "3")]
    pub status: i32,
    /// Why something is missing.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// Cost of a lookup.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TraceByIdMetrics {
    /// Bytes read from blocks.
    #[prost(uint64, tag = "1")]
    pub inspected_bytes: u64,
}

/// Whether an answer is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PartialStatus {
    /// Nothing was left out.
    Complete = 0,
    /// A limit cut the answer short.
    Partial = 1,
}

/// Answer of `/api/search`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchResponse {
    /// The traces found, newest first.
    #[prost(message, repeated, tag = "1")]
    pub traces: Vec<TraceSearchMetadata>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<SearchMetrics>,
}

/// What a search tells of one trace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceSearchMetadata {
    /// Lower-case hex, leading zeros stripped unless the tenant wants them.
    #[prost(string, tag = "1")]
    pub trace_id: String,
    /// Service of the root span.
    #[prost(string, tag = "2")]
    pub root_service_name: String,
    /// Name of the root span.
    #[prost(string, tag = "3")]
    pub root_trace_name: String,
    /// Start of the earliest span, Unix nanoseconds.
    #[prost(uint64, tag = "4")]
    pub start_time_unix_nano: u64,
    /// Milliseconds from the earliest start to the latest end, rounded down.
    #[prost(uint32, tag = "5")]
    pub duration_ms: u32,
    /// Copy of the first of `span_sets`, which older clients read.
    #[prost(message, optional, tag = "6")]
    pub span_set: Option<SpanSet>,
    /// The spansets that the query left.
    #[prost(message, repeated, tag = "7")]
    pub span_sets: Vec<SpanSet>,
    /// Spans and errors by service.
    #[prost(btree_map = "string, message", tag = "8")]
    pub service_stats: BTreeMap<String, ServiceStats>,
}

/// Spans of one service in a trace.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ServiceStats {
    /// Spans.
    #[prost(uint32, tag = "1")]
    pub span_count: u32,
    /// Spans with status error.
    #[prost(uint32, tag = "2")]
    pub error_count: u32,
}

/// A spanset of a result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpanSet {
    /// The first few spans.
    #[prost(message, repeated, tag = "1")]
    pub spans: Vec<Span>,
    /// How many there are.
    #[prost(uint32, tag = "2")]
    pub matched: u32,
    /// Group keys and aggregates.
    #[prost(message, repeated, tag = "3")]
    pub attributes: Vec<KeyValue>,
}

/// A span of a result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    /// 16 hex digits.
    #[prost(string, tag = "1")]
    pub span_id: String,
    /// Name, if the query looked at it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Start, Unix nanoseconds.
    #[prost(uint64, tag = "3")]
    pub start_time_unix_nano: u64,
    /// Duration, nanoseconds.
    #[prost(uint64, tag = "4")]
    pub duration_nanos: u64,
    /// The fields that the query looked at.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<KeyValue>,
}

/// Cost of a search.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SearchMetrics {
    /// Traces that the query was evaluated on; a trace in two places counts twice.
    #[prost(uint32, tag = "1")]
    pub inspected_traces: u32,
    /// Bytes read from blocks.
    #[prost(uint64, tag = "2")]
    pub inspected_bytes: u64,
    /// Blocks in the time range.
    #[prost(uint32, tag = "3")]
    pub total_blocks: u32,
    /// Parts of the search that are done.
    #[prost(uint32, tag = "4")]
    pub completed_jobs: u32,
    /// Parts of the search.
    #[prost(uint32, tag = "5")]
    pub total_jobs: u32,
    /// Bytes of the blocks in the time range.
    #[prost(uint64, tag = "6")]
    pub total_block_bytes: u64,
    /// Never filled, as in Tempo.
    #[prost(uint64, tag = "7")]
    pub inspected_spans: u64,
}

/// Answer of `/api/search/tags`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsResponse {
    /// Attribute names, sorted.
    #[prost(string, repeated, tag = "1")]
    pub tag_names: Vec<String>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Answer of `/api/v2/search/tags`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsV2Response {
    /// Attribute names by scope.
    #[prost(message, repeated, tag = "1")]
    pub scopes: Vec<SearchTagsV2Scope>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Attribute names of one scope.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SearchTagsV2Scope {
    /// The scope.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The names, sorted.
    #[prost(string, repeated, tag = "2")]
    pub tags: Vec<String>,
}

/// Answer of `/api/search/tag/{tag}/values`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagValuesResponse {
    /// The values, sorted.
    #[prost(string, repeated, tag = "1")]
    pub tag_values: Vec<String>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Answer of `/api/v2/search/tag/{tag}/values`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagValuesV2Response {
    /// The values, sorted.
    #[prost(message, repeated, tag = "1")]
    pub tag_values: Vec<TagValue>,
    /// What it cost.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// A value of a tag.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct TagValue {
    /// `string`, `int`, `float`, `bool`, `duration` or `keyword`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// The value as text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Cost of a tag query. Like Tempo, only the first field is filled.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MetadataMetrics {
    /// Bytes read from blocks.
    #[prost(uint64, tag = "1")]
    pub inspected_bytes: u64,
    /// Parts of the query.
    #[prost(uint32, tag = "2")]
    pub total_jobs: u32,
    /// Parts of the query that are done.
    #[prost(uint32, tag = "3")]
    pub completed_jobs: u32,
    /// Blocks in the time range.
    #[prost(uint32, tag = "4")]
    pub total_blocks: u32,
    /// Bytes of the blocks in the time range.
    #[prost(uint64, tag = "5")]
    pub total_block_bytes: u64,
}
