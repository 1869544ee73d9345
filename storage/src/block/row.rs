//! One row out of the pages that hold it: what finding a trace decodes.
//!
//! ```text
//!  page ─► repetition levels ─► where the row begins and ends ─┐   shared by the leaves of a list, whose
//!       ─► definition levels ─► which of its values are there ─┤   levels are the same bytes
//!       ─► values ──────────────────────────────────────────────┴─► only those of the row ─► Leaf
//!                                 numbers ─► dictionary, walked up to the largest number
//! ```
//!
//! The `parquet` crate would decode the whole page and turn a whole dictionary into strings, for every leaf. This reads what our encoder
//! writes: data pages of version 1 with zstd or without compression. Pages of other writers are [`Decoded::Foreign`] and left to the
//! crate, so nothing depends on this but time.
//!
//! Decompressing dictionaries, which serve a whole row group, takes longer than all the rest; [`Dictionaries`] keeps some of them.
//!
//! The bytes are untrusted. Pages are [measured](leaf::measure) before they are decompressed, checksums are compared, and levels and
//! values must be where the headers say.

use std::{collections::HashMap, io, ops::Range, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::{
    basic::{Compression, Type as Physical},
    file::metadata::ColumnChunkMetaData,
};

use super::{
    decoding::{Hybrid, delta, plain_strings},
    encoding::width_of,
    leaf::{self, Leaf, Parts, Values, Wrong},
    thrift::{self, PageHeader},
};
use crate::id::TraceId;

/// Parquet's numbers of kinds of pages and of encodings.
const DATA_V1: i64 = 0;
const DICTIONARY: i64 = 2;
const PLAIN: i64 = 0;
const PLAIN_DICTIONARY: i64 = 2;
const DELTA_BINARY_PACKED: i64 = 5;
const DELTA_LENGTH_BYTE_ARRAY: i64 = 6;
const RLE_DICTIONARY: i64 = 8;

/// Bytes of dictionaries that one reader keeps.
const KEPT_DICTIONARY_BYTES: usize = 1 << 20;

/// Decompressed dictionaries by row group and leaf: those that were needed first, up to 1 MiB, for as long as the reader lives.
#[derive(Debug, Default)]
pub(super) struct Dictionaries(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    bodies: HashMap<(usize, usize), Bytes>,
}

impl Dictionaries {
    fn get(&self, row_group: usize, leaf: usize) -> Option<Bytes> {
        self.0.lock().bodies.get(&(row_group, leaf)).cloned()
    }

    fn keep(&self, row_group: usize, leaf: usize, body: &Bytes) {
        let mut kept = self.0.lock();
        if kept.bytes + body.len() <= KEPT_DICTIONARY_BYTES && !kept.bodies.contains_key(&(row_group, leaf)) {
            kept.bytes += body.len();
            kept.bodies.insert((row_group, leaf), body.clone());
        }
    }
}

/// What became of a leaf.
#[derive(Debug)]
pub(super) enum Decoded<T> {
    Done(T),
    /// It is written in a way that only the `parquet` crate reads.
    Foreign,
}

/// Levels of a row, and where its values are among those of the page.
#[derive(Debug)]
struct Levels {
    repetition: Vec<i16>,
    definition: Vec<i16>,
    values: Range<usize>,
}

type LevelsKey = (i16, i16, usize);
type RowKey = (u32, usize, usize);

/// Entries of a row, and their repetition levels.
type Row = (Range<usize>, Vec<i16>);

/// Decodes the leaves of one row, one after the other.
pub(super) struct Decoder {
    dictionaries: Arc<Dictionaries>,
    row_group: usize,
    zstd: zstd::bulk::Decompressor<'static>,
    /// Levels that were decoded: for the largest levels and the row in the page, their bytes and what they say.
    known: Vec<(LevelsKey, Bytes, Arc<Levels>)>,
    /// The same of repetition levels alone, by width, number of entries and row: lists without elements of their own share them.
    known_rows: Vec<(RowKey, Bytes, Row)>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

const TORN: &str = "a page is torn";
const FEWER_ROWS: &str = "has fewer rows than its row group";

impl Decoder {
    /// A decoder of a row of this row group.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(dictionaries: Arc<Dictionaries>, row_group: usize) -> io::Result<Self> {
        Ok(Self {
            dictionaries,
            row_group,
            zstd: zstd::bulk::Decompressor::new()?,
            known: Vec::new(),
            known_rows: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Decodes row `row` of the page of leaf `position` that is the last of `parts`; what comes before it is the chunk's dictionary. No more than `limit`
    /// entries are believed.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn leaf(
        &mut self,
        position: usize,
        chunk: &ColumnChunkMetaData,
        parts: &Parts,
        row: usize,
        limit: usize,
    ) -> Result<Decoded<Leaf>, Wrong> {
        self.read(position, chunk, parts, row, limit).map_err(|what| format!("leaf \"{}\": {what}", chunk.column_path()))
    }

    fn read(
        &mut self,
        position: usize,
        chunk: &ColumnChunkMetaData,
        parts: &Parts,
        row: usize,
        limit: usize,
    ) -> Result<Decoded<Leaf>, Wrong> {
        leaf::measure(parts, limit)?;
        let descriptor = chunk.column_descr();
        let (dictionary, page) = match parts.0.as_slice() {
            [(_, page)] => (None, page),
            [(_, dictionary), (_, page)] => (Some(dictionary), page),
            _ => return Ok(Decoded::Foreign),
        };
        let header = thrift::page_header(page)?;
        let narrow = match descriptor.physical_type() {
            Physical::INT32 => true,
            Physical::INT64 | Physical::DOUBLE | Physical::BYTE_ARRAY | Physical::BOOLEAN => false,
            _ => return Ok(Decoded::Foreign),
        };
        if header.kind != DATA_V1 || !header.rle_levels {
            return Ok(Decoded::Foreign);
        }
        let Some(body) = self.body(chunk, page, &header)? else { return Ok(Decoded::Foreign) };
        let (max_definition, max_repetition) = (descriptor.max_def_level(), descriptor.max_rep_level());
        let (levels, rest) = self.levels(&body, header.sizes.values, max_definition, max_repetition, row)?;
        let Range { start, end } = levels.values;
        let input = &body[rest..];
        let values = match (descriptor.physical_type(), header.encoding) {
            (Physical::BYTE_ARRAY, RLE_DICTIONARY | PLAIN_DICTIONARY) if start == end => Values::Bytes(Vec::new()),
            (Physical::BYTE_ARRAY, RLE_DICTIONARY | PLAIN_DICTIONARY) => {
                let (&width, numbers) = input.split_first().ok_or(TORN)?;
                let mut hybrid = Hybrid::new(numbers, width.into()).ok_or("its dictionary numbers are too wide")?;
                let mut codes = Vec::with_capacity(end - start);
                hybrid.skip(start).and_then(|()| hybrid.read(end - start, &mut codes)).ok_or(TORN)?;
                let dictionary = dictionary.ok_or("its dictionary is missing")?;
                let header = thrift::page_header(dictionary)?;
                if header.kind != DICTIONARY || !matches!(header.encoding, PLAIN | PLAIN_DICTIONARY) {
                    return Ok(Decoded::Foreign);
                }
                let strings = match self.dictionaries.get(self.row_group, position) {
                    Some(known) => known,
                    None => {
                        let Some(strings) = self.body(chunk, dictionary, &header)? else { return Ok(Decoded::Foreign) };
                        if chunk.compression() != Compression::UNCOMPRESSED {
                            self.dictionaries.keep(self.row_group, position, &strings);
                        }
                        strings
                    }
                };
                let found = plain_strings(&strings, header.sizes.values, &codes).ok_or("a dictionary number has no string")?;
                // Copies, which do not keep the whole dictionary.
                Values::Bytes(found.into_iter().map(|range| strings[range].to_vec().into()).collect())
            }
            (Physical::BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY) => {
                Values::Bytes(delta_strings(input, start..end, header.sizes.values)?.map(|text| text.to_vec().into()).collect())
            }
            (Physical::INT64 | Physical::INT32, DELTA_BINARY_PACKED) => {
                let (mut values, _) = delta(input, narrow, end, header.sizes.values).ok_or(TORN)?;
                Values::Long(values.split_off(start))
            }
            (Physical::INT32, PLAIN) => Values::Long(fixed(input, start..end)?.map(|word| i32::from_le_bytes(word).into()).collect()),
            (Physical::INT64, PLAIN) => Values::Long(fixed(input, start..end)?.map(i64::from_le_bytes).collect()),
            (Physical::DOUBLE, PLAIN) => Values::Double(fixed(input, start..end)?.map(f64::from_le_bytes).collect()),
            (Physical::BOOLEAN, PLAIN) => {
                let bit = |at: usize| input.get(at / 8).map(|byte| byte >> (at % 8) & 1 == 1).ok_or(TORN);
                Values::Bool((start..end).map(bit).collect::<Result<_, _>>()?)
            }
            _ => return Ok(Decoded::Foreign),
        };
        let (definition, repetition) = (levels.definition.clone(), levels.repetition.clone());
        Ok(Decoded::Done(Leaf::new(values, definition, repetition, max_definition, max_repetition)))
    }

    /// The trace ids of a whole chunk of `rows` rows.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn trace_ids(
        &mut self,
        chunk: &ColumnChunkMetaData,
        parts: &Parts,
        rows: usize,
        limit: usize,
    ) -> Result<Decoded<Vec<TraceId>>, Wrong> {
        leaf::measure(parts, limit)?;
        let [(_, bytes)] = parts.0.as_slice() else { return Ok(Decoded::Foreign) };
        let mut rest = bytes.clone();
        let mut ids = Vec::with_capacity(rows);
        while !rest.is_empty() {
            let header = thrift::page_header(&rest)?;
            if header.kind != DATA_V1 || header.encoding != DELTA_LENGTH_BYTE_ARRAY {
                return Ok(Decoded::Foreign);
            }
            let Some(body) = self.body(chunk, &rest, &header)? else { return Ok(Decoded::Foreign) };
            let values = header.sizes.values;
            ids.extend(delta_strings(&body, 0..values, values)?.map(leaf::trace_id));
            rest = rest.slice(header.sizes.header + header.sizes.compressed..);
        }
        if ids.len() != rows {
            return Err(format!("it has {} trace ids in {rows} rows", ids.len()));
        }
        Ok(Decoded::Done(ids))
    }

    /// The bytes of a page without compression.
    fn body(&mut self, chunk: &ColumnChunkMetaData, page: &Bytes, header: &PageHeader) -> Result<Option<Bytes>, Wrong> {
        let sizes = header.sizes;
        let stored = page.slice(sizes.header..sizes.header + sizes.compressed);
        if header.crc.is_some_and(|crc| crc != crc32fast::hash(&stored)) {
            return Err("the checksum of a page is wrong".to_owned());
        }
        let body = match chunk.compression() {
            Compression::UNCOMPRESSED => stored,
            Compression::ZSTD(_) if sizes.uncompressed == 0 => Bytes::new(),
            Compression::ZSTD(_) => {
                self.zstd.decompress(&stored, sizes.uncompressed).map_err(|error| format!("a page does not decompress: {error}"))?.into()
            }
            _ => return Ok(None),
        };
        if body.len() != sizes.uncompressed {
            return Err("a page has another size than its header says".to_owned());
        }
        Ok(Some(body))
    }

    /// Levels of a row of the page, and where its values begin.
    fn levels(
        &mut self,
        body: &Bytes,
        entries: usize,
        max_definition: i16,
        max_repetition: i16,
        row: usize,
    ) -> Result<(Arc<Levels>, usize), Wrong> {
        let mut end = 0;
        let mut section = |wanted: bool| -> Result<Range<usize>, Wrong> {
            if !wanted {
                return Ok(end..end);
            }
            let length = body.get(end..).and_then(|rest| rest.first_chunk::<4>()).ok_or(TORN)?;
            let start = end + 4;
            end = start.checked_add(u32::from_le_bytes(*length) as usize).filter(|&end| end <= body.len()).ok_or(TORN)?;
            Ok(start..end)
        };
        let repetition = section(max_repetition > 0)?;
        let definition = section(max_definition > 0)?;
        let key = (max_definition, max_repetition, row);
        let bytes = body.slice(..end);
        if let Some((_, _, levels)) = self.known.iter().find(|(known, of, _)| *known == key && *of == bytes) {
            return Ok((Arc::clone(levels), end));
        }
        let mut levels = Levels { repetition: Vec::new(), definition: Vec::new(), values: 0..0 };
        levels.values = if max_repetition > 0 {
            let (found, repetition) = self.row(body.slice(repetition), max_repetition, entries, row)?;
            levels.repetition = repetition;
            found
        } else if row < entries {
            row..row + 1
        } else {
            return Err(FEWER_ROWS.to_owned());
        };
        if max_definition > 0 {
            let chosen = levels.values.clone();
            read_levels(&body[definition], max_definition, chosen.end, &mut self.scratch)?;
            let there = |range: &[u8]| range.iter().filter(|&&level| i16::from(level) == max_definition).count();
            let before = there(&self.scratch[..chosen.start]);
            let row = &self.scratch[chosen];
            levels.values = before..before + there(row);
            levels.definition = row.iter().map(|&level| level.into()).collect();
        }
        let levels = Arc::new(levels);
        self.known.push((key, bytes, Arc::clone(&levels)));
        Ok((levels, end))
    }

    /// Where a row lies among the entries of a page, and its repetition levels.
    fn row(&mut self, bytes: Bytes, max: i16, entries: usize, row: usize) -> Result<Row, Wrong> {
        let key = (level_width(max), entries, row);
        if let Some((_, _, found)) = self.known_rows.iter().find(|(known, of, _)| *known == key && *of == bytes) {
            return Ok(found.clone());
        }
        read_levels(&bytes, max, entries, &mut self.scratch)?;
        // Rows begin where the level is 0.
        let mut starts = self.scratch.iter().enumerate().filter(|(_, level)| **level == 0).map(|(at, _)| at).skip(row);
        let start = starts.next().ok_or(FEWER_ROWS)?;
        let end = starts.next().unwrap_or(entries);
        let found = (start..end, self.scratch[start..end].iter().map(|&level| level.into()).collect());
        self.known_rows.push((key, bytes, Row::clone(&found)));
        Ok(found)
    }
}

fn level_width(max: i16) -> u32 {
    width_of(u64::from(max.unsigned_abs()))
}

/// The first `entries` levels of a page.
fn read_levels(bytes: &[u8], max: i16, entries: usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
    out.clear();
    Hybrid::new(bytes, level_width(max)).and_then(|mut levels| levels.read_levels(entries, out)).ok_or_else(|| TORN.to_owned())
}

/// Some of at most `limit` strings whose lengths come first.
fn delta_strings(input: &[u8], wanted: Range<usize>, limit: usize) -> Result<impl Iterator<Item = &[u8]>, Wrong> {
    let (mut lengths, text) = delta(input, true, wanted.end, limit).ok_or(TORN)?;
    let mut at = 0usize;
    for (index, length) in lengths.iter().enumerate() {
        let length = usize::try_from(*length).map_err(|_| TORN)?;
        at = at.checked_add(length).filter(|&end| end <= text.len()).ok_or(TORN)?;
        if index + 1 == wanted.start {
            break;
        }
    }
    let mut at = if wanted.start == 0 { 0 } else { at };
    let lengths = lengths.split_off(wanted.start);
    let mut strings = Vec::with_capacity(lengths.len());
    for length in lengths {
        let length = usize::try_from(length).map_err(|_| TORN)?;
        let end = at.checked_add(length).filter(|&end| end <= text.len()).ok_or(TORN)?;
        strings.push(&text[at..end]);
        at = end;
    }
    Ok(strings.into_iter())
}

/// Some of the words of a PLAIN page.
fn fixed<const N: usize>(input: &[u8], wanted: Range<usize>) -> Result<impl Iterator<Item = [u8; N]>, Wrong> {
    let (words, _) = input.as_chunks::<N>();
    words.get(wanted).map(|words| words.iter().copied()).ok_or_else(|| TORN.to_owned())
}
