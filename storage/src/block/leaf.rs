//! One leaf of some rows, decoded: its values and levels side by side, and a cursor over them.
//!
//! [`leaf`] decodes what the `parquet` crate can read, which is every encoding and codec; `row` is the fast way for what our encoder and
//! Tempo write. The bytes are untrusted: pages are [measured](measure) before they are decoded, and a panic inside the crate is caught and
//! becomes an error.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Buf as _, Bytes};
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

use super::thrift;
use crate::id::TraceId;

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

    pub(super) fn definition(&self) -> Option<i16> {
        if self.max_definition > 0 { self.definition.get(self.entry).copied() } else { Some(0) }
    }

    /// Repetition level of the next entry; 0 at the end, where a new row would begin.
    pub(super) fn repetition(&self) -> i16 {
        if self.max_repetition > 0 { self.repetition.get(self.entry).copied().unwrap_or(0) } else { 0 }
    }

    /// Uses up an entry and returns the position of its value, if it has one.
    pub(super) fn next(&mut self) -> Result<Option<usize>, Wrong> {
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

    pub(super) fn bytes(&mut self) -> Result<&[u8], Wrong> {
        self.optional_bytes()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    pub(super) fn optional_bytes(&mut self) -> Result<Option<&[u8]>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.values {
            Values::Bytes(values) => {
                values.get(at).map(|value| Some(value.data())).ok_or_else(|| "a leaf has fewer values than entries".to_owned())
            }
            _ => Err("a leaf has the wrong type".to_owned()),
        }
    }

    pub(super) fn optional_long(&mut self) -> Result<Option<i64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        let value = match &self.values {
            Values::Long(values) => values.get(at).copied(),
            Values::Int(values) => values.get(at).copied().map(i64::from),
            _ => None,
        };
        value.map(Some).ok_or_else(|| "a leaf has fewer values than entries".to_owned())
    }

    pub(super) fn double(&mut self) -> Result<Option<f64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.values {
            Values::Double(values) => values.get(at).copied().map(Some).ok_or_else(|| "a leaf has fewer values than entries".to_owned()),
            _ => Err("a leaf has the wrong type".to_owned()),
        }
    }

    pub(super) fn bool(&mut self) -> Result<Option<bool>, Wrong> {
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
