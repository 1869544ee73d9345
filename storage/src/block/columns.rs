//! Columns being filled: typed buffers, and how they become the pages and chunks of a Parquet file.
//!
//! ```text
//!  mapping (encode) ──push──► levels per list, values per leaf      one page interval
//!                                │ every PAGE_ENTRIES spans, at a row boundary: flush_page
//!                                ▼
//!                             encoded, compressed pages per leaf     one row group
//!                                │ cut_row_group
//!                                ▼
//!                             dictionary page + pages, leaf by leaf ──► file ──finish──► offset indexes, footer
//! ```
//!
//! Two things make this fast. Levels are kept and encoded once per list, whose leaves (17 for spans) then copy the bytes. And all leaves
//! are cut into pages at the same rows, which is what makes that possible and gives readers one page per leaf for one row.
//!
//! Invariants of the file (block-format.md §6.2): a chunk is dictionary-encoded throughout or not at all; booleans and nothing else are
//! bit-packed PLAIN; integers have no dictionary; bounds are marked exact on both sides; there is no key-value metadata.
//! Data pages are version 1, whose levels are compressed together with the values: half of a trace's bytes are levels.

use std::sync::Arc;

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaData},
        statistics::Statistics,
    },
};

use super::{
    encoding::{self, Width},
    interner::Interner,
    schema::{Layout, List, Schema},
    thrift,
};

/// Entries of the list that sets the pace, in one page. Finding one trace decodes a page of every leaf; of smaller pages more bytes are
/// headers, and they compress less.
const PAGE_ENTRIES: usize = 8 << 10;

/// Bytes of free text in the buffers after which a page is cut early.
const PAGE_BYTES: usize = 4 << 20;

/// Pages of a chunk are left uncompressed as long as none is larger than this: compression cannot win.
const SMALL_PAGE: usize = 64;

/// Speed over size; higher levels win little on pages, which are mostly random ids and packed bits.
const ZSTD_LEVEL: i32 = 1;

/// Dictionaries are text, on which a higher level wins more, and there is one of them per row group.
const DICTIONARY_ZSTD_LEVEL: i32 = 4;

/// A list, by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListId(pub(crate) u32);

/// A leaf, by position. One type per kind of value, so that a wrong push does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dictionary(u32);
/// See [`Dictionary`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text(u32);
/// See [`Dictionary`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integer(u32);
/// See [`Dictionary`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Double(u32);
/// See [`Dictionary`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag(u32);

#[derive(Debug)]
struct Levels {
    list: List,
    /// `repetition << 4 | definition` of every entry.
    entries: Vec<u8>,
    /// Encoded, with the length before it; of this page.
    repetition: Vec<u8>,
    definition: Vec<u8>,
    /// Definition levels of an optional leaf that is always null: the same levels in a width that has room for one more.
    nulls: Vec<u8>,
    /// Whether the list has optional leaves of its own.
    optional: bool,
}

#[derive(Debug, Default)]
struct DictionaryLeaf {
    interner: Interner,
    codes: Vec<u32>,
    /// Entries of the list in which an optional leaf has a value.
    present: Vec<u32>,
    invalid: bool,
}

#[derive(Debug, Default)]
struct TextLeaf {
    utf8: bool,
    lengths: Vec<i64>,
    bytes: Vec<u8>,
    present: Vec<u32>,
    invalid: bool,
    bounds: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct IntegerLeaf {
    narrow: bool,
    values: Vec<i64>,
    present: Vec<u32>,
    bounds: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Values {
    Dictionary(u32),
    Text(u32),
    Integer(u32),
    Double(u32),
    Flag(u32),
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    pages: Vec<Page>,
    compressed: bool,
    values: usize,
}

/// Why columns cannot become a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ColumnError {
    #[error("a page of \"{leaf}\" has {bytes} bytes, more than Parquet can hold")]
    TooLarge { leaf: String, bytes: usize },
    #[error("text of \"{leaf}\" is not utf-8")]
    Utf8 { leaf: String },
    #[error("{leaf}: compression failed")]
    Compression {
        leaf: String,
        #[source]
        source: std::io::Error,
    },
    #[error("footer")]
    Footer(#[from] ParquetError),
}

/// A finished file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) row_groups: usize,
    /// Bytes of the footer without its length and magic.
    pub(crate) footer: usize,
}

/// See the module documentation.
pub(crate) struct Columns {
    schema: &'static Schema,
    pace: usize,
    levels: Vec<Levels>,
    leaves: Vec<Values>,
    dictionaries: Vec<DictionaryLeaf>,
    texts: Vec<TextLeaf>,
    integers: Vec<IntegerLeaf>,
    doubles: Vec<Vec<f64>>,
    flags: Vec<Vec<u8>>,
    chunks: Vec<Chunk>,
    compressor: zstd::bulk::Compressor<'static>,
    rows_in_page: usize,
    rows_in_group: usize,
    text_bytes: usize,
    page: Vec<u8>,
    scratch: Vec<u8>,
    file: Vec<u8>,
    /// Metadata of the row groups written, and the pages of their chunks: offset in the file, bytes, first row.
    row_groups: Vec<(Vec<ColumnChunkMetaData>, usize)>,
    locations: Vec<Vec<(i64, i32, i64)>>,
}

impl std::fmt::Debug for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Columns").field("rows_in_group", &self.rows_in_group).field("file", &self.file.len()).finish_non_exhaustive()
    }
}

impl Columns {
    /// Empty columns. Pages are cut by the number of entries of the list `pace`.
    ///
    /// # Errors
    /// The compressor has no memory.
    pub(crate) fn new(schema: &'static Schema, pace: &str) -> std::io::Result<Self> {
        let mut columns = Self {
            schema,
            pace: schema.list(pace),
            levels: schema
                .lists
                .iter()
                .enumerate()
                .map(|(position, list)| Levels {
                    list: list.clone(),
                    entries: Vec::new(),
                    repetition: Vec::new(),
                    definition: Vec::new(),
                    nulls: Vec::new(),
                    optional: schema.leaves.iter().any(|leaf| leaf.list == position && leaf.optional),
                })
                .collect(),
            leaves: Vec::new(),
            dictionaries: Vec::new(),
            texts: Vec::new(),
            integers: Vec::new(),
            doubles: Vec::new(),
            flags: Vec::new(),
            chunks: schema.leaves.iter().map(|_| Chunk::default()).collect(),
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            rows_in_page: 0,
            rows_in_group: 0,
            text_bytes: 0,
            page: Vec::new(),
            scratch: Vec::new(),
            file: b"PAR1".to_vec(),
            row_groups: Vec::new(),
            locations: Vec::new(),
        };
        for leaf in &schema.leaves {
            use parquet::basic::Type as Physical;
            columns.leaves.push(match (leaf.physical, leaf.layout) {
                (Physical::BYTE_ARRAY, Layout::Dictionary) => {
                    columns.dictionaries.push(DictionaryLeaf::default());
                    Values::Dictionary(columns.dictionaries.len() as u32 - 1)
                }
                (Physical::INT32 | Physical::INT64, _) => {
                    columns.integers.push(IntegerLeaf { narrow: leaf.physical == Physical::INT32, ..IntegerLeaf::default() });
                    Values::Integer(columns.integers.len() as u32 - 1)
                }
                (Physical::DOUBLE, _) => {
                    columns.doubles.push(Vec::new());
                    Values::Double(columns.doubles.len() as u32 - 1)
                }
                (Physical::BOOLEAN, _) => {
                    columns.flags.push(Vec::new());
                    Values::Flag(columns.flags.len() as u32 - 1)
                }
                _ => {
                    columns.texts.push(TextLeaf { utf8: leaf.text, ..TextLeaf::default() });
                    Values::Text(columns.texts.len() as u32 - 1)
                }
            });
        }
        Ok(columns)
    }

    /// The list of this name. Panics, as all of these, when the schema has no such thing: names are constants of this crate.
    pub(crate) fn list(&self, name: &str) -> ListId {
        ListId(self.schema.list(name) as u32)
    }

    /// The leaf of this name, which has a dictionary.
    pub(crate) fn dictionary(&self, name: &str) -> Dictionary {
        match self.leaves[self.schema.leaf(name)] {
            Values::Dictionary(slot) => Dictionary(slot),
            _ => panic!("leaf \"{name}\" has no dictionary"),
        }
    }

    /// The leaf of this name, of bytes without a dictionary.
    pub(crate) fn text(&self, name: &str) -> Text {
        match self.leaves[self.schema.leaf(name)] {
            Values::Text(slot) => Text(slot),
            _ => panic!("leaf \"{name}\" is no text"),
        }
    }

    /// The leaf of this name, of integers.
    pub(crate) fn integer(&self, name: &str) -> Integer {
        match self.leaves[self.schema.leaf(name)] {
            Values::Integer(slot) => Integer(slot),
            _ => panic!("leaf \"{name}\" is no integer"),
        }
    }

    /// The leaf of this name, of doubles.
    pub(crate) fn double(&self, name: &str) -> Double {
        match self.leaves[self.schema.leaf(name)] {
            Values::Double(slot) => Double(slot),
            _ => panic!("leaf \"{name}\" is no double"),
        }
    }

    /// The leaf of this name, of booleans.
    pub(crate) fn flag(&self, name: &str) -> Flag {
        match self.leaves[self.schema.leaf(name)] {
            Values::Flag(slot) => Flag(slot),
            _ => panic!("leaf \"{name}\" is no boolean"),
        }
    }

    /// Adds an entry to a list: an element, or, with a lower definition level, that there is none.
    #[inline(always)]
    pub(crate) fn enter(&mut self, list: ListId, repetition: u8, definition: u8) {
        self.levels[list.0 as usize].entries.push(repetition << 4 | definition);
    }

    /// Number of the latest entry of a list: what an optional value belongs to.
    #[inline(always)]
    pub(crate) fn latest(&self, list: ListId) -> u32 {
        self.levels[list.0 as usize].entries.len() as u32 - 1
    }

    /// The number of a string in a leaf's dictionary; stays good until the row group is cut.
    #[inline]
    pub(crate) fn code(&mut self, leaf: Dictionary, value: &[u8]) -> u32 {
        let leaf = &mut self.dictionaries[leaf.0 as usize];
        let (code, new) = leaf.interner.intern(value);
        if new && std::str::from_utf8(value).is_err() {
            leaf.invalid = true;
        }
        code
    }

    /// The string of a number.
    pub(crate) fn string(&self, leaf: Dictionary, code: u32) -> &[u8] {
        self.dictionaries[leaf.0 as usize].interner.get(code)
    }

    /// Adds a value by its number.
    #[inline(always)]
    pub(crate) fn push_code(&mut self, leaf: Dictionary, code: u32) {
        self.dictionaries[leaf.0 as usize].codes.push(code);
    }

    /// Adds a value to an optional leaf; `entry` is that of its list.
    #[inline(always)]
    pub(crate) fn push_optional_code(&mut self, leaf: Dictionary, entry: u32, code: u32) {
        let leaf = &mut self.dictionaries[leaf.0 as usize];
        leaf.codes.push(code);
        leaf.present.push(entry);
    }

    /// Adds a string.
    #[inline]
    pub(crate) fn push_string(&mut self, leaf: Dictionary, value: &[u8]) {
        let code = self.code(leaf, value);
        self.push_code(leaf, code);
    }

    /// Adds bytes.
    #[inline]
    pub(crate) fn push_text(&mut self, leaf: Text, value: &[u8]) {
        self.text_bytes += value.len();
        let leaf = &mut self.texts[leaf.0 as usize];
        leaf.lengths.push(value.len() as i64);
        if !value.is_empty() {
            leaf.invalid |= leaf.utf8 && std::str::from_utf8(value).is_err();
            leaf.bytes.extend_from_slice(value);
        }
    }

    /// Adds bytes to an optional leaf; `entry` is that of its list.
    pub(crate) fn push_optional_text(&mut self, leaf: Text, entry: u32, value: &[u8]) {
        self.push_text(leaf, value);
        self.texts[leaf.0 as usize].present.push(entry);
    }

    /// Adds an integer; unsigned ones by their bits.
    #[inline(always)]
    pub(crate) fn push_integer(&mut self, leaf: Integer, value: i64) {
        self.integers[leaf.0 as usize].values.push(value);
    }

    /// Adds an integer to an optional leaf; `entry` is that of its list.
    pub(crate) fn push_optional_integer(&mut self, leaf: Integer, entry: u32, value: i64) {
        let leaf = &mut self.integers[leaf.0 as usize];
        leaf.values.push(value);
        leaf.present.push(entry);
    }

    /// Adds a double.
    pub(crate) fn push_double(&mut self, leaf: Double, value: f64) {
        self.doubles[leaf.0 as usize].push(value);
    }

    /// Adds a boolean.
    #[inline(always)]
    pub(crate) fn push_flag(&mut self, leaf: Flag, value: bool) {
        self.flags[leaf.0 as usize].push(u8::from(value));
    }

    /// Ends a row; cuts the page if it is full.
    ///
    /// # Errors
    /// The page cannot be written.
    pub(crate) fn end_row(&mut self) -> Result<(), ColumnError> {
        self.rows_in_page += 1;
        if self.levels[self.pace].entries.len() >= PAGE_ENTRIES || self.text_bytes >= PAGE_BYTES {
            self.flush_page()?;
        }
        Ok(())
    }

    /// Bytes of strings in the dictionaries of this row group.
    pub(crate) fn dictionary_bytes(&self) -> usize {
        self.dictionaries.iter().map(|leaf| leaf.interner.bytes()).sum()
    }

    fn flush_page(&mut self) -> Result<(), ColumnError> {
        if self.rows_in_page == 0 {
            return Ok(());
        }
        for levels in &mut self.levels {
            levels.encode(&mut self.scratch);
        }
        for position in 0..self.leaves.len() {
            self.flush_leaf(position)?;
        }
        for levels in &mut self.levels {
            levels.entries.clear();
        }
        self.rows_in_group += self.rows_in_page;
        self.rows_in_page = 0;
        self.text_bytes = 0;
        Ok(())
    }

    /// Encodes one page of one leaf and empties its buffers.
    fn flush_leaf(&mut self, position: usize) -> Result<(), ColumnError> {
        let info = &self.schema.leaves[position];
        let list = self.schema.leaves[position].list;
        let levels = &self.levels[list];
        let entries = if list == 0 { self.rows_in_page } else { levels.entries.len() };
        let page = &mut self.page;
        page.clear();
        page.extend_from_slice(&levels.repetition);
        let none = Vec::new();
        let (present, values) = match self.leaves[position] {
            Values::Dictionary(slot) => (&self.dictionaries[slot as usize].present, self.dictionaries[slot as usize].codes.len()),
            Values::Text(slot) => (&self.texts[slot as usize].present, self.texts[slot as usize].lengths.len()),
            Values::Integer(slot) => (&self.integers[slot as usize].present, self.integers[slot as usize].values.len()),
            Values::Double(slot) => (&none, self.doubles[slot as usize].len()),
            Values::Flag(slot) => (&none, self.flags[slot as usize].len()),
        };
        if !info.optional {
            page.extend_from_slice(&levels.definition);
        } else if present.is_empty() {
            page.extend_from_slice(&levels.nulls);
        } else {
            levels.encode_present(present, &mut self.scratch, page);
        }
        debug_assert!(info.optional || values == levels.elements(entries), "{} has {values} values", info.name);
        let encoding = match self.leaves[position] {
            Values::Dictionary(slot) => {
                let leaf = &mut self.dictionaries[slot as usize];
                if std::mem::take(&mut leaf.invalid) {
                    return Err(ColumnError::Utf8 { leaf: info.name.clone() });
                }
                let width = encoding::width_of((leaf.interner.len() as u64).saturating_sub(1));
                page.push(width as u8);
                encoding::hybrid(&leaf.codes, width, page);
                leaf.codes.clear();
                leaf.present.clear();
                Encoding::RLE_DICTIONARY
            }
            Values::Text(slot) => {
                let leaf = &mut self.texts[slot as usize];
                if std::mem::take(&mut leaf.invalid) {
                    return Err(ColumnError::Utf8 { leaf: info.name.clone() });
                }
                encoding::delta_lengths(&leaf.lengths, &leaf.bytes, page);
                if info.bounds {
                    // Only trace ids have bounds; they come sorted.
                    let first = leaf.lengths.first().and_then(|&length| leaf.bytes.get(..length as usize)).unwrap_or_default();
                    let last = leaf.lengths.last().and_then(|&length| leaf.bytes.get(leaf.bytes.len() - length as usize..));
                    let last = last.unwrap_or_default().to_vec();
                    match &mut leaf.bounds {
                        Some((_, max)) => *max = last,
                        None => leaf.bounds = Some((first.to_vec(), last)),
                    }
                }
                leaf.lengths.clear();
                leaf.bytes.clear();
                leaf.present.clear();
                Encoding::DELTA_LENGTH_BYTE_ARRAY
            }
            Values::Integer(slot) => {
                let leaf = &mut self.integers[slot as usize];
                if info.bounds {
                    leaf.bounds = leaf.values.iter().fold(leaf.bounds, |bounds, &value| {
                        let value = value as u64;
                        Some(bounds.map_or((value, value), |(min, max)| (min.min(value), max.max(value))))
                    });
                }
                if info.layout == Layout::Delta {
                    encoding::delta(&leaf.values, if leaf.narrow { Width::W32 } else { Width::W64 }, page);
                } else if leaf.narrow {
                    page.extend(leaf.values.iter().flat_map(|&v| (v as i32).to_le_bytes()));
                } else {
                    page.extend(leaf.values.iter().flat_map(|v| v.to_le_bytes()));
                }
                leaf.values.clear();
                leaf.present.clear();
                if info.layout == Layout::Delta { Encoding::DELTA_BINARY_PACKED } else { Encoding::PLAIN }
            }
            Values::Double(slot) => {
                let leaf = &mut self.doubles[slot as usize];
                page.extend(leaf.iter().flat_map(|v| v.to_le_bytes()));
                leaf.clear();
                Encoding::PLAIN
            }
            Values::Flag(slot) => {
                let leaf = &mut self.flags[slot as usize];
                encoding::bits(leaf, page);
                leaf.clear();
                Encoding::PLAIN
            }
        };
        let chunk = &mut self.chunks[position];
        chunk.values += entries;
        if !chunk.compressed && page.len() > SMALL_PAGE {
            chunk.compress_what_is_there(&mut self.compressor, &mut self.scratch).map_err(|e| e.of(&info.name))?;
        }
        let kind = PageKind { dictionary: false, values: entries, encoding };
        let written = write_page(kind, page, chunk.compressed, &mut self.compressor, &mut self.scratch, &mut chunk.bytes)
            .map_err(|e| e.of(&info.name))?;
        chunk.pages.push(Page { rows: self.rows_in_page, ..written });
        Ok(())
    }

    /// Ends the row group, if it has rows: appends its chunks to the file and forgets the dictionaries.
    ///
    /// # Errors
    /// A page cannot be written.
    pub(crate) fn cut_row_group(&mut self) -> Result<(), ColumnError> {
        self.flush_page()?;
        if self.rows_in_group == 0 {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(self.leaves.len());
        for position in 0..self.leaves.len() {
            columns.push(self.write_chunk(position)?);
        }
        self.row_groups.push((columns, std::mem::take(&mut self.rows_in_group)));
        Ok(())
    }

    fn write_chunk(&mut self, position: usize) -> Result<ColumnChunkMetaData, ColumnError> {
        let info = &self.schema.leaves[position];
        let start = self.file.len();
        let chunk = &mut self.chunks[position];
        let mut raw = 0;
        let mut encodings = vec![Encoding::RLE];
        let mut builder = ColumnChunkMetaData::builder(self.schema.parquet.column(position));
        if let Values::Dictionary(slot) = self.leaves[position] {
            let interner = &mut self.dictionaries[slot as usize].interner;
            self.page.clear();
            interner.write_plain(&mut self.page);
            if !chunk.compressed && self.page.len() > SMALL_PAGE {
                chunk.compress_what_is_there(&mut self.compressor, &mut self.scratch).map_err(|e| e.of(&info.name))?;
            }
            let kind = PageKind { dictionary: true, values: interner.len(), encoding: Encoding::PLAIN };
            let written = write_page(kind, &self.page, chunk.compressed, &mut self.compressor, &mut self.scratch, &mut self.file)
                .map_err(|e| e.of(&info.name))?;
            raw += written.raw;
            interner.clear();
            builder = builder.set_dictionary_page_offset(Some(start as i64));
            encodings.extend([Encoding::PLAIN, Encoding::RLE_DICTIONARY]);
        } else {
            encodings.push(match (info.layout, info.physical) {
                (Layout::Plain, _) => Encoding::PLAIN,
                (_, parquet::basic::Type::BYTE_ARRAY) => Encoding::DELTA_LENGTH_BYTE_ARRAY,
                _ => Encoding::DELTA_BINARY_PACKED,
            });
        }
        let data = self.file.len();
        let (mut offset, mut first_row) = (data as i64, 0i64);
        let mut locations = Vec::with_capacity(chunk.pages.len());
        for page in &chunk.pages {
            let length = i32::try_from(page.length).map_err(|_| PageError::TooLarge(page.length).of(&info.name))?;
            locations.push((offset, length, first_row));
            offset += i64::from(length);
            first_row += page.rows as i64;
            raw += page.raw;
        }
        self.locations.push(locations);
        self.file.extend_from_slice(&chunk.bytes);
        let statistics = match self.leaves[position] {
            Values::Text(slot) => self.texts[slot as usize]
                .bounds
                .take()
                .map(|(min, max)| Statistics::byte_array(Some(min.into()), Some(max.into()), None, Some(0), false)),
            Values::Integer(slot) => self.integers[slot as usize]
                .bounds
                .take()
                .map(|(min, max)| Statistics::int64(Some(min as i64), Some(max as i64), None, Some(0), false)),
            _ => None,
        };
        if let Some(statistics) = statistics {
            builder = builder.set_statistics(statistics);
        }
        let compression = if chunk.compressed { Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?) } else { Compression::UNCOMPRESSED };
        let metadata = builder
            .set_encodings(encodings)
            .set_num_values(chunk.values as i64)
            .set_compression(compression)
            .set_total_compressed_size((self.file.len() - start) as i64)
            .set_total_uncompressed_size(raw as i64)
            .set_data_page_offset(data as i64)
            .build()?;
        chunk.clear();
        Ok(metadata)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The last row group or the footer cannot be written.
    pub(crate) fn finish(mut self, created_by: &str) -> Result<File, ColumnError> {
        self.cut_row_group()?;
        let row_groups = self.row_groups.len();
        let mut locations = self.locations.into_iter();
        let mut written = Vec::with_capacity(row_groups);
        let mut rows = 0;
        for (ordinal, (columns, rows_in_group)) in self.row_groups.into_iter().enumerate() {
            let mut with_index = Vec::with_capacity(columns.len());
            let (mut total, mut offset) = (0, None);
            for column in columns {
                total += column.uncompressed_size();
                offset = offset.or(Some(column.byte_range().0 as i64));
                let start = self.file.len();
                thrift::write_offset_index(locations.next().unwrap_or_default().into_iter(), &mut self.file);
                let length = (self.file.len() - start) as i32;
                with_index
                    .push(column.into_builder().set_offset_index_offset(Some(start as i64)).set_offset_index_length(Some(length)).build()?);
            }
            rows += rows_in_group as i64;
            written.push(
                RowGroupMetaData::builder(Arc::clone(&self.schema.parquet))
                    .set_column_metadata(with_index)
                    .set_num_rows(rows_in_group as i64)
                    .set_total_byte_size(total)
                    .set_ordinal(ordinal as i32)
                    .set_file_offset(offset.unwrap_or(4))
                    .build()?,
            );
        }
        let file = FileMetaData::new(2, rows, Some(created_by.to_owned()), None, Arc::clone(&self.schema.parquet), None);
        let metadata = ParquetMetaDataBuilder::new(file).set_row_groups(written).build();
        let start = self.file.len();
        ParquetMetaDataWriter::new(&mut self.file, &metadata).finish()?;
        let footer = self.file.len() - start - 8;
        Ok(File { bytes: self.file, row_groups, footer })
    }
}

impl Levels {
    /// Encodes the levels of this page for the leaves to copy.
    fn encode(&mut self, scratch: &mut Vec<u8>) {
        self.repetition.clear();
        self.definition.clear();
        self.nulls.clear();
        let List { repetition, definition, .. } = self.list;
        if repetition > 0 {
            scratch.clear();
            scratch.extend(self.entries.iter().map(|entry| entry >> 4));
            write_levels(scratch, repetition, &mut self.repetition);
        }
        if definition > 0 {
            scratch.clear();
            scratch.extend(self.entries.iter().map(|entry| entry & 15));
            write_levels(scratch, definition, &mut self.definition);
            if self.optional {
                write_levels(scratch, definition + 1, &mut self.nulls);
            }
        }
    }

    /// Definition levels of an optional leaf that has values in the entries `present`.
    fn encode_present(&self, present: &[u32], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        scratch.clear();
        scratch.extend(self.entries.iter().map(|entry| entry & 15));
        for &entry in present {
            scratch[entry as usize] += 1;
        }
        write_levels(scratch, self.list.definition + 1, out);
    }

    /// Entries that are elements.
    fn elements(&self, entries: usize) -> usize {
        if self.list.definition == 0 {
            return entries;
        }
        self.entries.iter().filter(|&&entry| entry & 15 == self.list.definition).count()
    }
}

fn write_levels(levels: &[u8], max: u8, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    encoding::levels(levels, encoding::width_of(max.into()), out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

impl Chunk {
    fn clear(&mut self) {
        self.bytes.clear();
        self.pages.clear();
        self.compressed = false;
        self.values = 0;
    }

    /// From here on the chunk is compressed; the small pages that it has so far, too.
    fn compress_what_is_there(&mut self, compressor: &mut zstd::bulk::Compressor<'static>, scratch: &mut Vec<u8>) -> Result<(), PageError> {
        self.compressed = true;
        let plain = std::mem::take(&mut self.bytes);
        let mut at = 0;
        for page in &mut self.pages {
            let body = &plain[at + page.header..at + page.length];
            at += page.length;
            *page = Page { rows: page.rows, ..write_page(page.kind, body, true, compressor, scratch, &mut self.bytes)? };
        }
        Ok(())
    }
}

/// What a page holds.
#[derive(Clone, Copy, Debug)]
struct PageKind {
    dictionary: bool,
    values: usize,
    encoding: Encoding,
}

/// A page that was written.
#[derive(Clone, Copy, Debug)]
struct Page {
    kind: PageKind,
    rows: usize,
    /// Bytes of the header.
    header: usize,
    /// Bytes with the header.
    length: usize,
    /// Bytes with the header, before compression.
    raw: usize,
}

#[derive(Debug)]
enum PageError {
    TooLarge(usize),
    Compression(std::io::Error),
}

impl PageError {
    fn of(self, leaf: &str) -> ColumnError {
        let leaf = leaf.to_owned();
        match self {
            Self::TooLarge(bytes) => ColumnError::TooLarge { leaf, bytes },
            Self::Compression(source) => ColumnError::Compression { leaf, source },
        }
    }
}

/// Appends header and body of a page to `out`.
fn write_page(
    kind: PageKind,
    body: &[u8],
    compress: bool,
    compressor: &mut zstd::bulk::Compressor<'static>,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Page, PageError> {
    let uncompressed = i32::try_from(body.len()).map_err(|_| PageError::TooLarge(body.len()))?;
    let stored = if compress {
        scratch.clear();
        scratch.reserve(zstd::zstd_safe::compress_bound(body.len()));
        let level = if kind.dictionary { DICTIONARY_ZSTD_LEVEL } else { ZSTD_LEVEL };
        compressor.set_compression_level(level).map_err(PageError::Compression)?;
        compressor.compress_to_buffer(body, scratch).map_err(PageError::Compression)?;
        scratch.as_slice()
    } else {
        body
    };
    let header = thrift::Page {
        dictionary: kind.dictionary,
        uncompressed,
        compressed: i32::try_from(stored.len()).map_err(|_| PageError::TooLarge(stored.len()))?,
        crc: crc32fast::hash(stored),
        values: i32::try_from(kind.values).map_err(|_| PageError::TooLarge(body.len()))?,
        encoding: kind.encoding as i32,
    };
    let start = out.len();
    thrift::write_page_header(&header, out);
    let header = out.len() - start;
    out.extend_from_slice(stored);
    Ok(Page { kind, rows: 0, header, length: header + stored.len(), raw: header + body.len() })
}
