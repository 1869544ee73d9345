//! vParquet4 rows to traces (block-format.md §8.7).
//!
//! A leaf comes out of the file as three lists: values, definition levels, repetition levels. [`Rows`] walks all leaves of a row group
//! side by side, the way that Dremel's record assembly does: `SpanID` says how many resources, scopes and spans there are; every other
//! leaf is asked for one entry per element of its list, or for one entry that says that there is none.
//!
//! The bytes are untrusted: pages are measured before they are decoded, leaves that disagree about the structure are an error, and a
//! panic inside the `parquet` crate is caught and becomes an error too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Buf as _, Bytes};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader},
    data_type::{ByteArray, DataType},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::ColumnChunkMetaData,
        page_index::offset_index::PageLocation,
        reader::{ChunkReader, Length},
        serialized_reader::SerializedPageReader,
    },
    schema::types::ColumnDescPtr,
};

use super::{Projection, Trace, encode, json, thrift};
use crate::id::{SpanKey, TraceId};

/// What is wrong with the bytes.
pub(super) type Wrong = String;

/// Parts of a file, as they were fetched.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(pub(super) Vec<(u64, Bytes)>);

impl Length for Parts {
    fn len(&self) -> u64 {
        self.0.iter().map(|(start, bytes)| start + bytes.len() as u64).max().unwrap_or(0)
    }
}

impl ChunkReader for Parts {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.from(start).map(|bytes| bytes.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are beyond what was fetched")));
        }
        Ok(bytes.slice(..length))
    }
}

impl Parts {
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let found = self.0.iter().find_map(|(at, bytes)| {
            let skip = usize::try_from(start.checked_sub(*at)?).ok()?;
            (skip < bytes.len()).then(|| bytes.slice(skip..))
        });
        found.ok_or_else(|| ParquetError::EOF(format!("byte {start} was not fetched")))
    }
}

/// Where a chunk lies in the file: begin and length.
pub(super) fn chunk_range(chunk: &ColumnChunkMetaData, file: u64) -> Result<std::ops::Range<u64>, Wrong> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let range = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
    match range.and_then(|(start, length)| Some(start..start.checked_add(length)?)) {
        Some(range) if range.end <= file => Ok(range),
        _ => Err(format!("chunk of \"{}\" lies outside of the file", chunk.column_path())),
    }
}

/// Rows of a chunk that are to be decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    pub(super) skip: usize,
    pub(super) take: usize,
    /// All rows of the row group.
    pub(super) all: usize,
    /// Largest number of entries that a leaf may claim to have.
    pub(super) limit: usize,
}

/// Values of a leaf. Integers of 32 bits that did not come by way of the `parquet` crate are [`Values::Long`] too.
#[derive(Debug)]
pub(super) enum Values {
    Bytes(Vec<ByteArray>),
    Long(Vec<i64>),
    Int(Vec<i32>),
    Double(Vec<f64>),
    Bool(Vec<bool>),
}

/// The decoded entries of a leaf, and how far they have been used.
#[derive(Debug)]
pub(super) struct Leaf {
    values: Values,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    max_definition: i16,
    max_repetition: i16,
    entry: usize,
    value: usize,
}

/// Decodes the selected rows of a chunk, whose bytes are in `parts`. `pages` are all its pages, or none if the whole chunk was fetched.
pub(super) fn leaf(
    descriptor: &ColumnDescPtr,
    chunk: &ColumnChunkMetaData,
    parts: Parts,
    pages: Option<Vec<PageLocation>>,
    selection: Selection,
) -> Result<Leaf, Wrong> {
    let wrong = |what: &dyn std::fmt::Display| format!("leaf \"{}\": {what}", descriptor.path());
    measure(&parts, selection.limit).map_err(|what| wrong(&what))?;
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let reader = SerializedPageReader::new(std::sync::Arc::new(parts), chunk, selection.all, pages)?;
        read_leaf(descriptor, get_column_reader(std::sync::Arc::clone(descriptor), Box::new(reader)), selection)
    }));
    match decoded {
        Ok(Ok(leaf)) => Ok(leaf),
        Ok(Err(error)) => Err(wrong(&error)),
        Err(_) => Err(wrong(&"its decoder panicked")),
    }
}

/// Looks at the headers of all pages: none may ask for memory out of proportion.
///
/// # Errors
/// Which limit they exceed, or that they are torn.
pub(super) fn measure(parts: &Parts, limit: usize) -> Result<(), &'static str> {
    let mut values = 0usize;
    for (_, part) in &parts.0 {
        let mut rest = part.as_ref();
        while !rest.is_empty() {
            let page = thrift::page_sizes(rest)?;
            values = values.saturating_add(page.values);
            if values > limit {
                return Err("its pages claim more values than their bytes can hold");
            }
            if page.uncompressed > (16 << 20) + page.compressed.saturating_mul(1000) {
                return Err("a page claims to be larger than its bytes can be");
            }
            rest = &rest[page.header + page.compressed..];
        }
    }
    Ok(())
}

fn read_leaf(descriptor: &ColumnDescPtr, reader: ColumnReader, selection: Selection) -> ParquetResult<Leaf> {
    let (mut definition, mut repetition) = (Vec::new(), Vec::new());
    let levels = (&mut definition, &mut repetition);
    let values = match reader {
        ColumnReader::ByteArrayColumnReader(reader) => Values::Bytes(read_values(reader, descriptor, selection, levels)?),
        ColumnReader::Int64ColumnReader(reader) => Values::Long(read_values(reader, descriptor, selection, levels)?),
        ColumnReader::Int32ColumnReader(reader) => Values::Int(read_values(reader, descriptor, selection, levels)?),
        ColumnReader::DoubleColumnReader(reader) => Values::Double(read_values(reader, descriptor, selection, levels)?),
        ColumnReader::BoolColumnReader(reader) => Values::Bool(read_values(reader, descriptor, selection, levels)?),
        _ => return Err(ParquetError::General("is of a type that no leaf has".to_owned())),
    };
    let (max_definition, max_repetition) = (descriptor.max_def_level(), descriptor.max_rep_level());
    Ok(Leaf::new(values, definition, repetition, max_definition, max_repetition))
}

fn read_values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    descriptor: &ColumnDescPtr,
    selection: Selection,
    (definition, repetition): (&mut Vec<i16>, &mut Vec<i16>),
) -> ParquetResult<Vec<T::T>> {
    let mut values = Vec::new();
    if selection.skip > 0 && reader.skip_records(selection.skip)? != selection.skip {
        return Err(ParquetError::EOF("has fewer rows than its row group".to_owned()));
    }
    let mut rows = 0;
    while rows < selection.take {
        let with_definition = (descriptor.max_def_level() > 0).then_some(&mut *definition);
        let with_repetition = (descriptor.max_rep_level() > 0).then_some(&mut *repetition);
        let (records, ..) = reader.read_records(selection.take - rows, with_definition, with_repetition, &mut values)?;
        if records == 0 {
            return Err(ParquetError::EOF("has fewer rows than its row group".to_owned()));
        }
        rows += records;
    }
    Ok(values)
}

impl Leaf {
    /// Decoded entries, none of them used.
    pub(super) fn new(values: Values, definition: Vec<i16>, repetition: Vec<i16>, max_definition: i16, max_repetition: i16) -> Self {
        Self { values, definition, repetition, max_definition, max_repetition, entry: 0, value: 0 }
    }

    fn definition(&self) -> Option<i16> {
        if self.max_definition > 0 { self.definition.get(self.entry).copied() } else { Some(0) }
    }

    /// Repetition level of the next entry; 0 at the end, where a new row would begin.
    fn repetition(&self) -> i16 {
        if self.max_repetition > 0 { self.repetition.get(self.entry).copied().unwrap_or(0) } else { 0 }
    }

    /// Uses up an entry and returns the position of its value, if it has one.
    fn next(&mut self) -> Result<Option<usize>, Wrong> {
        let definition = self.definition().ok_or_else(|| "a leaf has fewer entries than its structure".to_owned())?;
        self.entry += 1;
        if definition != self.max_definition {
            return Ok(None);
        }
        self.value += 1;
        Ok(Some(self.value - 1))
    }

    /// Ids of a trace id leaf.
    pub(super) fn trace_ids(mut self, rows: usize) -> Result<Vec<TraceId>, Wrong> {
        (0..rows).map(|_| self.bytes().map(trace_id)).collect()
    }

    fn bytes(&mut self) -> Result<&[u8], Wrong> {
        self.optional_bytes()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    fn optional_bytes(&mut self) -> Result<Option<&[u8]>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.values {
            Values::Bytes(values) => {
                values.get(at).map(|value| Some(value.data())).ok_or_else(|| "a leaf has fewer values than entries".to_owned())
            }
            _ => Err("a leaf has the wrong type".to_owned()),
        }
    }

    fn optional_long(&mut self) -> Result<Option<i64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        let value = match &self.values {
            Values::Long(values) => values.get(at).copied(),
            Values::Int(values) => values.get(at).copied().map(i64::from),
            _ => None,
        };
        value.map(Some).ok_or_else(|| "a leaf has fewer values than entries".to_owned())
    }

    fn double(&mut self) -> Result<Option<f64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.values {
            Values::Double(values) => values.get(at).copied().map(Some).ok_or_else(|| "a leaf has fewer values than entries".to_owned()),
            _ => Err("a leaf has the wrong type".to_owned()),
        }
    }

    fn bool(&mut self) -> Result<Option<bool>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.values {
            Values::Bool(values) => values.get(at).copied().map(Some).ok_or_else(|| "a leaf has fewer values than entries".to_owned()),
            _ => Err("a leaf has the wrong type".to_owned()),
        }
    }
}

/// Trace ids of other lengths are padded on the left or cut to the last sixteen bytes.
pub(super) fn trace_id(bytes: &[u8]) -> TraceId {
    let mut id = [0; 16];
    let kept = &bytes[bytes.len().saturating_sub(16)..];
    id[16 - kept.len()..].copy_from_slice(kept);
    TraceId(id)
}

/// Positions of the leaves (§7.4).
pub(super) mod at {
    pub(crate) const TRACE_ID: usize = 0;
    pub(crate) const RESOURCE_ATTRIBUTES: usize = 10;
    pub(crate) const RESOURCE_DROPPED: usize = 17;
    pub(crate) const SERVICE: usize = 18;
    pub(crate) const RESOURCE_FIXED: usize = 19;
    pub(crate) const RESOURCE_DEDICATED: usize = 27;
    pub(crate) const SCOPE_NAME: usize = 37;
    pub(crate) const SCOPE_VERSION: usize = 38;
    pub(crate) const SCOPE_ATTRIBUTES: usize = 39;
    pub(crate) const SCOPE_DROPPED: usize = 46;
    pub(crate) const SPAN_ID: usize = 47;
    pub(crate) const PARENT_SPAN_ID: usize = 48;
    pub(crate) const NAME: usize = 52;
    pub(crate) const KIND: usize = 53;
    pub(crate) const TRACE_STATE: usize = 54;
    pub(crate) const START: usize = 55;
    pub(crate) const DURATION: usize = 56;
    pub(crate) const STATUS: usize = 57;
    pub(crate) const STATUS_MESSAGE: usize = 58;
    pub(crate) const ATTRIBUTES: usize = 59;
    pub(crate) const DROPPED_ATTRIBUTES: usize = 66;
    pub(crate) const EVENT_TIME: usize = 67;
    pub(crate) const EVENT_NAME: usize = 68;
    pub(crate) const EVENT_ATTRIBUTES: usize = 69;
    pub(crate) const EVENT_DROPPED: usize = 76;
    pub(crate) const DROPPED_EVENTS: usize = 77;
    pub(crate) const LINK_TRACE_ID: usize = 78;
    pub(crate) const LINK_SPAN_ID: usize = 79;
    pub(crate) const LINK_TRACE_STATE: usize = 80;
    pub(crate) const LINK_ATTRIBUTES: usize = 81;
    pub(crate) const LINK_DROPPED: usize = 88;
    pub(crate) const DROPPED_LINKS: usize = 89;
    pub(crate) const SPAN_FIXED: usize = 90;
    pub(crate) const STATUS_CODE: usize = 92;
    pub(crate) const SPAN_DEDICATED: usize = 93;
    pub(crate) const LEAVES: usize = 103;
}

/// The leaves that a projection needs, in order. `resource` and `span` are the numbers of dedicated columns in use.
pub(super) fn leaves_of(projection: Projection, resource: usize, span: usize) -> Vec<usize> {
    let mut leaves = vec![at::TRACE_ID, at::SERVICE, at::SPAN_ID, at::PARENT_SPAN_ID];
    leaves.extend(at::NAME..=at::STATUS_MESSAGE);
    if projection.resource_attributes {
        leaves.extend(at::RESOURCE_ATTRIBUTES..=at::RESOURCE_DROPPED);
        leaves.extend(at::RESOURCE_FIXED..at::RESOURCE_DEDICATED + resource);
    }
    if projection.scopes {
        leaves.extend(at::SCOPE_NAME..=at::SCOPE_DROPPED);
    }
    if projection.span_attributes {
        leaves.extend(at::ATTRIBUTES..=at::DROPPED_ATTRIBUTES);
        leaves.extend(at::SPAN_FIXED..at::SPAN_DEDICATED + span);
    }
    if projection.events {
        leaves.extend(at::EVENT_TIME..=at::DROPPED_EVENTS);
    }
    if projection.links {
        leaves.extend(at::LINK_TRACE_ID..=at::DROPPED_LINKS);
    }
    leaves.sort_unstable();
    leaves
}

/// Decoded leaves of some rows, and the names of their dedicated columns.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) leaves: Vec<Option<Leaf>>,
    pub(super) resource_dedicated: Vec<String>,
    pub(super) span_dedicated: Vec<String>,
}

impl Rows {
    /// Room for all leaves, none there.
    pub(super) fn new(resource_dedicated: Vec<String>, span_dedicated: Vec<String>) -> Self {
        Self { leaves: (0..at::LEAVES).map(|_| None).collect(), resource_dedicated, span_dedicated }
    }

    fn leaf(&mut self, position: usize) -> Result<&mut Leaf, Wrong> {
        self.leaves[position].as_mut().ok_or_else(|| format!("leaf {position} was not decoded"))
    }

    fn has(&self, position: usize) -> bool {
        self.leaves[position].is_some()
    }

    /// Uses up the entry in which each of the leaves says that there is no element.
    fn skip(&mut self, positions: std::ops::RangeInclusive<usize>) -> Result<(), Wrong> {
        self.leaves[positions].iter_mut().flatten().try_for_each(|leaf| match leaf.next()? {
            None => Ok(()),
            Some(_) => Err("leaves disagree about the structure of a row".to_owned()),
        })
    }

    fn begin_row(&self) -> Result<(), Wrong> {
        if self.leaves.iter().flatten().any(|leaf| leaf.repetition() != 0) {
            return Err("leaves disagree about the end of a row".to_owned());
        }
        Ok(())
    }

    fn text(&mut self, position: usize) -> Result<String, Wrong> {
        utf8(self.leaf(position)?.bytes()?)
    }

    fn long(&mut self, position: usize) -> Result<i64, Wrong> {
        self.leaf(position)?.optional_long()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    /// A count that the projection may lack.
    fn count(&mut self, position: usize) -> Result<u32, Wrong> {
        if self.has(position) { self.long(position).map(|value| value as u32) } else { Ok(0) }
    }

    /// The next row.
    pub(super) fn trace(&mut self) -> Result<Trace, Wrong> {
        self.begin_row()?;
        let id = trace_id(self.leaf(at::TRACE_ID)?.bytes()?);
        let mut trace = Trace { trace_id: id, resource_spans: Vec::new() };
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 1 {
            self.skip(at::RESOURCE_ATTRIBUTES..=at::LEAVES - 1)?;
            return Ok(trace);
        }
        loop {
            trace.resource_spans.push(self.resource_spans(id)?);
            if self.leaf(at::SPAN_ID)?.repetition() != 1 {
                return Ok(trace);
            }
        }
    }

    fn resource_spans(&mut self, id: TraceId) -> Result<ResourceSpans, Wrong> {
        let mut attributes = self.attributes(at::RESOURCE_ATTRIBUTES, 2)?;
        let dropped_attributes_count = self.count(at::RESOURCE_DROPPED)?;
        let service = self.text(at::SERVICE)?;
        let fixed = self.texts(at::RESOURCE_FIXED, encode::RESOURCE_LEAVES.iter().map(|(name, _)| *name))?;
        let names = std::mem::take(&mut self.resource_dedicated);
        let dedicated = self.texts(at::RESOURCE_DEDICATED, names.iter().map(String::as_str));
        self.resource_dedicated = names;
        attributes.extend(dedicated?);
        if !service.is_empty() {
            attributes.push(attribute("service.name", Any::StringValue(service)));
        }
        attributes.extend(fixed);
        let resource = Resource { attributes, dropped_attributes_count, ..Resource::default() };
        let mut scope_spans = Vec::new();
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 2 {
            self.skip(at::SCOPE_NAME..=at::LEAVES - 1)?;
        } else {
            loop {
                scope_spans.push(self.scope_spans(id)?);
                if self.leaf(at::SPAN_ID)?.repetition() != 2 {
                    break;
                }
            }
        }
        Ok(ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() })
    }

    fn scope_spans(&mut self, id: TraceId) -> Result<ScopeSpans, Wrong> {
        let scope = if self.has(at::SCOPE_NAME) {
            let name = self.text(at::SCOPE_NAME)?;
            let version = self.text(at::SCOPE_VERSION)?;
            let attributes = self.attributes(at::SCOPE_ATTRIBUTES, 3)?;
            let dropped_attributes_count = self.count(at::SCOPE_DROPPED)?;
            Some(InstrumentationScope { name, version, attributes, dropped_attributes_count })
        } else {
            None
        };
        let mut spans = Vec::new();
        if self.leaf(at::SPAN_ID)?.definition().unwrap_or(0) < 3 {
            self.skip(at::SPAN_ID..=at::LEAVES - 1)?;
        } else {
            loop {
                spans.push(self.span(id)?);
                if self.leaf(at::SPAN_ID)?.repetition() != 3 {
                    break;
                }
            }
        }
        Ok(ScopeSpans { scope, spans, ..ScopeSpans::default() })
    }

    fn span(&mut self, id: TraceId) -> Result<Span, Wrong> {
        let mut span = Span {
            trace_id: id.0.to_vec(),
            span_id: self.leaf(at::SPAN_ID)?.bytes()?.to_vec(),
            parent_span_id: self.leaf(at::PARENT_SPAN_ID)?.bytes()?.to_vec(),
            name: self.text(at::NAME)?,
            kind: self.long(at::KIND)? as i32,
            trace_state: self.text(at::TRACE_STATE)?,
            start_time_unix_nano: self.long(at::START)? as u64,
            ..Span::default()
        };
        span.end_time_unix_nano = span.start_time_unix_nano.wrapping_add(self.long(at::DURATION)? as u64);
        let code = self.long(at::STATUS)? as i32;
        span.status = Some(Status { message: self.text(at::STATUS_MESSAGE)?, code });
        span.attributes = self.attributes(at::ATTRIBUTES, 4)?;
        span.dropped_attributes_count = self.count(at::DROPPED_ATTRIBUTES)?;
        if self.has(at::EVENT_TIME) {
            span.events = self.events(span.start_time_unix_nano)?;
            span.dropped_events_count = self.count(at::DROPPED_EVENTS)?;
        }
        if self.has(at::LINK_TRACE_ID) {
            span.links = self.links()?;
            span.dropped_links_count = self.count(at::DROPPED_LINKS)?;
        }
        if self.has(at::STATUS_CODE) {
            let fixed = self.texts(at::SPAN_FIXED, encode::SPAN_LEAVES.iter().map(|(name, _)| *name))?;
            let status_code = self.leaf(at::STATUS_CODE)?.optional_long()?;
            let names = std::mem::take(&mut self.span_dedicated);
            let dedicated = self.texts(at::SPAN_DEDICATED, names.iter().map(String::as_str));
            self.span_dedicated = names;
            span.attributes.extend(dedicated?);
            span.attributes.extend(fixed);
            span.attributes.extend(status_code.map(|code| attribute(encode::STATUS_CODE, Any::IntValue(code))));
        }
        Ok(span)
    }

    fn events(&mut self, start: u64) -> Result<Vec<Event>, Wrong> {
        let mut events = Vec::new();
        if self.leaf(at::EVENT_TIME)?.definition().unwrap_or(0) < 4 {
            self.skip(at::EVENT_TIME..=at::EVENT_DROPPED)?;
            return Ok(events);
        }
        loop {
            events.push(Event {
                time_unix_nano: start.wrapping_add(self.long(at::EVENT_TIME)? as u64),
                name: self.text(at::EVENT_NAME)?,
                attributes: self.attributes(at::EVENT_ATTRIBUTES, 5)?,
                dropped_attributes_count: self.count(at::EVENT_DROPPED)?,
            });
            if self.leaf(at::EVENT_TIME)?.repetition() != 4 {
                return Ok(events);
            }
        }
    }

    fn links(&mut self) -> Result<Vec<Link>, Wrong> {
        let mut links = Vec::new();
        if self.leaf(at::LINK_TRACE_ID)?.definition().unwrap_or(0) < 4 {
            self.skip(at::LINK_TRACE_ID..=at::LINK_DROPPED)?;
            return Ok(links);
        }
        loop {
            links.push(Link {
                trace_id: self.leaf(at::LINK_TRACE_ID)?.bytes()?.to_vec(),
                span_id: self.leaf(at::LINK_SPAN_ID)?.bytes()?.to_vec(),
                trace_state: self.text(at::LINK_TRACE_STATE)?,
                attributes: self.attributes(at::LINK_ATTRIBUTES, 5)?,
                dropped_attributes_count: self.count(at::LINK_DROPPED)?,
                flags: 0,
            });
            if self.leaf(at::LINK_TRACE_ID)?.repetition() != 4 {
                return Ok(links);
            }
        }
    }

    /// Optional leaves of strings, one after the other, as attributes.
    fn texts<'a>(&mut self, first: usize, names: impl Iterator<Item = &'a str>) -> Result<Vec<KeyValue>, Wrong> {
        let mut attributes = Vec::new();
        if !self.has(first) {
            return Ok(attributes);
        }
        for (position, name) in (first..).zip(names) {
            if let Some(text) = self.leaf(position)?.optional_bytes()? {
                attributes.push(attribute(name, Any::StringValue(utf8(text)?)));
            }
        }
        Ok(attributes)
    }

    /// The generic attributes of one element: seven leaves from `first` on, at definition and repetition level `level`.
    fn attributes(&mut self, first: usize, level: i16) -> Result<Vec<KeyValue>, Wrong> {
        let mut attributes = Vec::new();
        if !self.has(first) {
            return Ok(attributes);
        }
        if self.leaf(first)?.definition().unwrap_or(0) < level {
            self.skip(first..=first + 6)?;
            return Ok(attributes);
        }
        loop {
            let key = self.text(first)?;
            let is_array = self.leaf(first + 1)?.bool()?.unwrap_or(false);
            let mut values = Vec::new();
            for kind in 2..6 {
                self.elements(first + kind, kind, level + 1, &mut values)?;
            }
            let unsupported = self.leaf(first + 6)?.optional_bytes()?.filter(|json| !json.is_empty()).map(json::read).transpose()?;
            let value = match unsupported {
                Some(value) => value,
                None if is_array => AnyValue {
                    value: Some(Any::ArrayValue(ArrayValue {
                        values: values.into_iter().map(|value| AnyValue { value: Some(value) }).collect(),
                    })),
                },
                None => AnyValue { value: values.into_iter().next() },
            };
            attributes.push(KeyValue { key, value: Some(value), ..KeyValue::default() });
            if self.leaf(first)?.repetition() != level {
                return Ok(attributes);
            }
        }
    }

    fn elements(&mut self, position: usize, kind: usize, level: i16, out: &mut Vec<Any>) -> Result<(), Wrong> {
        let leaf = self.leaf(position)?;
        loop {
            let value = match kind {
                2 => leaf.optional_bytes()?.map(utf8).transpose()?.map(Any::StringValue),
                3 => leaf.optional_long()?.map(Any::IntValue),
                4 => leaf.double()?.map(Any::DoubleValue),
                _ => leaf.bool()?.map(Any::BoolValue),
            };
            out.extend(value);
            if leaf.repetition() != level {
                return Ok(());
            }
        }
    }

    /// Identities of the spans of the next row; needs only the leaves of trace id, span id and kind.
    pub(super) fn span_keys(&mut self) -> Result<(TraceId, Vec<SpanKey>), Wrong> {
        self.begin_row()?;
        let id = trace_id(self.leaf(at::TRACE_ID)?.bytes()?);
        let mut keys = Vec::new();
        loop {
            let span_id = self.leaf(at::SPAN_ID)?.optional_bytes()?.map(super::nested::key);
            let kind = self.leaf(at::KIND)?.optional_long()?;
            if let (Some(span_id), Some(kind)) = (span_id, kind) {
                keys.push(SpanKey { span_id, kind: kind as i32 });
            }
            if self.leaf(at::SPAN_ID)?.repetition() == 0 {
                return Ok((id, keys));
            }
        }
    }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn utf8(bytes: &[u8]) -> Result<String, Wrong> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string is not utf-8".to_owned())
}
