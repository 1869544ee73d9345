//! Blocks: one Parquet file of traces with its bloom filters, index and `meta.json`, as Tempo reads and writes them.
//!
//! ```text
//!  TraceSegments ──encode──► Encoded { data.parquet, bloom-N, index, meta } ──Store::put──► bucket ──Store::publish──► visible
//!                                                                                             │
//!  Trace ◄──Reader::find: bloom ► row group ► row ► its pages only ◄─────────────── ranges ◄──┤
//!  Traces ◄──Reader::scan: the leaves of a projection of one row group ◄─────────── ranges ◄──┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `meta`, `bloom` | the small objects of a block |
//! | `schema` | a version's columns as data |
//! | `dedicated` | which attributes have a column of their own |
//! | `columns` | filling columns row by row; knows nothing of traces |
//! | `pages`, `file`, `encoding`, `interner`, `thrift` | arrays to chunks, and chunks to a Parquet file |
//! | `encode`, `attributes`, `nested` | OTLP wire bytes to rows |
//! | `column`, `decoding` | pages to arrays |
//! | `footer`, `row_group`, `cover` | where the bytes of some rows lie, and in how many reads to fetch them |
//! | `filters`, `reader`, `chunks` | what is read of a bucket, and when |
//! | `decode`, `leaf` | arrays to OTLP, row by row |
//! | `merge`, `rewrite` | blocks to another block |
//! | `inspect`, `verify` | what operators ask |
//!
//! Written and read are vParquet2 to 5, whatever the bucket holds of them. A block of another format may lie in the bucket: it is listed,
//! and opening it is [`BlockError::Unsupported`].
//!
//! What the formats lose by their nature, of spans that went in and come out again (`tests_losses` is this list as a function):
//!
//! * all: span flags, schema URLs, entity refs; the difference between a missing and an empty scope, status or attribute value; the order
//!   of resources, scopes and their attributes, and of attributes with a column of their own among the others; resources and scopes that
//!   are repeated or empty; of several strings or integers under one name with a column of its own all but the last; an empty
//!   `service.name`;
//! * vParquet2 and 3: attributes of scopes, dropped counts of resources and scopes, and the values of resource and span attributes that
//!   are bytes. They alone keep the flags of links;
//! * vParquet4 and 5: link flags; the dropped counts of all but the first of equal resources or scopes;
//! * vParquet5, in dedicated columns: empty arrays, the difference between an array of one element and the element, and what a column had
//!   when its name comes again with another type.
//!
//! Strings that are not UTF-8, which others may have written, are read with U+FFFD in place of what is wrong.

mod attributes;
mod bloom;
pub mod chunks;
pub mod column;
mod columns;
mod cover;
mod decode;
mod decoding;
mod dedicated;
mod encode;
mod encoding;
mod file;
mod filters;
#[cfg(test)]
pub(crate) mod fixtures;
mod footer;
mod format;
mod inspect;
mod interner;
mod json;
mod leaf;
pub mod merge;
mod meta;
pub mod nested;
mod pages;
mod reader;
mod rewrite;
mod row_group;
mod schema;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_damage;
#[cfg(test)]
mod tests_encode;
#[cfg(test)]
mod tests_find;
#[cfg(test)]
mod tests_losses;
#[cfg(test)]
mod tests_rewrite;
#[cfg(test)]
mod tests_versions;
mod thrift;
mod verify;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;

pub(crate) use self::{bloom::is_filter, meta::rfc3339, reader::DATA};
pub use self::{
    decode::{json_value, message_value, read_links},
    filters::Filters,
    format::{Format, UnknownFormat},
    inspect::ColumnFacts,
    meta::{DedicatedColumn, Meta, Settings},
    reader::{Pages, Reader},
    rewrite::{losses, rewrite},
    verify::{Verified, verify},
};
use crate::{
    backend::StoreError,
    id::{BlockId, Tenant, TraceId},
    segment::Segment,
};

/// The format that is written by default.
pub const FORMAT: &str = "vParquet4";

/// A block that is not on the bucket yet.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its description; written last.
    pub meta: Meta,
    /// `data.parquet`.
    pub data: Bytes,
    /// `bloom-0`, `bloom-1`, …
    pub blooms: Vec<Bytes>,
    /// `index`.
    pub index: Bytes,
}

/// One trace of a block to be: its id and everything known of it, in any order and possibly with repeated spans.
#[derive(Clone, Debug)]
pub struct TraceSegments {
    /// The trace.
    pub trace_id: TraceId,
    /// Its segments.
    pub segments: Vec<Arc<Segment>>,
}

/// Why a block cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The bucket failed; may work later.
    #[error("block \"{block}\" of tenant \"{tenant}\"")]
    Store {
        /// The block.
        block: BlockId,
        /// Its tenant.
        tenant: Tenant,
        /// What the bucket said.
        #[source]
        source: Box<StoreError>,
    },
    /// The bytes are not a block; will not work later.
    #[error("block \"{block}\" of tenant \"{tenant}\" is corrupt: {what}")]
    Corrupt {
        /// The block.
        block: BlockId,
        /// Its tenant.
        tenant: Tenant,
        /// What is wrong.
        what: String,
    },
    /// The block has a format that this release cannot read.
    #[error("block \"{block}\" of tenant \"{tenant}\" has the format \"{format}\", which is not supported")]
    Unsupported {
        /// The block.
        block: BlockId,
        /// Its tenant.
        tenant: Tenant,
        /// Its format.
        format: String,
    },
    /// The traces cannot become a block.
    #[error("block \"{block}\" of tenant \"{tenant}\" cannot be encoded: {what}")]
    Encode {
        /// The block.
        block: BlockId,
        /// Its tenant.
        tenant: Tenant,
        /// Why not.
        what: String,
    },
}

/// Encodes a block of the version that `settings` say. `traces` is sorted by id and holds each id once. CPU-bound: call it on a blocking thread.
///
/// Deterministic: the same set of spans gives the same bytes whatever the order of the segments and however often spans are repeated.
/// Traces without spans are left out. The block says of itself that it is the only copy (`replicationFactor` 1).
///
/// # Errors
/// A segment whose bytes are not valid OTLP, or traces that are not sorted.
pub fn encode(settings: &Settings, tenant: &Tenant, id: BlockId, traces: &[TraceSegments]) -> Result<Encoded, BlockError> {
    let format = settings.version;
    let dedicated_columns = settings.columns_kept();
    let encoding = encode::encode(format, settings.row_group_size_bytes, &dedicated_columns, traces, encode::Order::Canonical)
        .map_err(|error| BlockError::Encode { block: id, tenant: tenant.clone(), what: chain(&error) })?;
    let (blooms, index) = filters_and_index(settings, &encoding);
    let seconds = |nanos: Option<u64>| nanos.map_or(Meta::NO_TIME, |nanos| (nanos / 1_000_000_000) as i64);
    let meta = Meta {
        format: format.name().to_owned(),
        block_id: id,
        tenant_id: tenant.clone(),
        start_time: seconds(encoding.start),
        end_time: seconds(encoding.end),
        total_objects: encoding.ids.len() as u64,
        size: encoding.file.size,
        compaction_level: 0,
        index_page_size: 0,
        total_records: encoding.file.row_groups as u32,
        bloom_shards: blooms.len() as u32,
        footer_size: encoding.file.footer as u32,
        dedicated_columns,
        replication_factor: 1,
        compacted_from: Vec::new(),
        created_at: None,
    };
    Ok(Encoded { meta, data: encoding.file.bytes.into(), blooms, index })
}

/// `bloom-0`, `bloom-1`, …, and `index` of what was encoded.
fn filters_and_index(settings: &Settings, encoding: &encode::Encoding) -> (Vec<Bytes>, Bytes) {
    let mut blooms =
        bloom::Builder::new(settings.bloom_filter_false_positive, settings.bloom_filter_shard_size_bytes, encoding.ids.len() as u64);
    for &trace in &encoding.ids {
        blooms.add(trace);
    }
    let row_groups: Vec<_> = encoding.last_ids.iter().map(|id| STANDARD.encode(id.0)).collect();
    let index = serde_json::json!({ "rowGroups": row_groups }).to_string().into();
    (blooms.finish().into_iter().map(Bytes::from).collect(), index)
}

/// Unix seconds as RFC 3339 text in UTC, as it stands in `meta.json`.
pub fn time_text(seconds: i64) -> String {
    rfc3339::format(seconds)
}

/// Unix seconds of RFC 3339 text, whose fraction is left out; nothing if it is something else.
pub fn time_of_text(text: &str) -> Option<i64> {
    rfc3339::parse(text)
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A trace read back from a block, as much of it as the projection asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its spans.
    pub resource_spans: Vec<ResourceSpans>,
}

/// Which parts of the traces a scan decodes. What is not asked for is left empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Attributes of resources.
    pub resource_attributes: bool,
    /// Scope name, version and attributes.
    pub scopes: bool,
    /// Attributes of spans.
    pub span_attributes: bool,
    /// Events.
    pub events: bool,
    /// Links.
    pub links: bool,
}

impl Projection {
    /// Everything.
    pub const ALL: Self = Self { resource_attributes: true, scopes: true, span_attributes: true, events: true, links: true };
    /// Ids, name, kind, times and status of the spans, and the services' names.
    pub const INTRINSICS: Self = Self { resource_attributes: false, scopes: false, span_attributes: false, events: false, links: false };
}
