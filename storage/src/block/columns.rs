//! Columns being filled, row by row: typed buffers, and when they become pages and row groups.
//!
//! ```text
//!  mapping (encode) ──push──► levels per list, values per leaf      one page interval
//!                                │ every PAGE_ENTRIES spans, at a row boundary: flush_page
//!                                ▼
//!                             pages::ChunkWriter of each leaf        one row group
//!                                │ cut_row_group
//!                                ▼
//!                             file::FileWriter ──finish──► the file
//! ```
//!
//! Two things make this fast. Levels are kept and encoded once per list, whose leaves (17 for spans) then copy the bytes, and equal repetition
//! levels are compressed once, whosever they are. And all leaves are cut into pages at the same rows, which is what makes that possible and
//! gives readers one page per leaf for one row.

use std::sync::Arc;

use super::{
    encoding::width_of,
    file::{File, FileWriter},
    interner::Interner,
    pages::{self, ChunkWriter, ColumnError, EncodedLevels, Press, Shared, write_levels},
    schema::{Layout, List, Schema},
};

/// Entries of the list that sets the pace, in one page. Finding one trace decodes a page of every leaf; of smaller pages more bytes are
/// headers, and they compress less.
pub(crate) const PAGE_ENTRIES: usize = 24 << 10;

/// Bytes of free text in the buffers after which a page is cut early.
const PAGE_BYTES: usize = 4 << 20;

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
    /// Which of the page's repetition levels are this list's.
    repetition: usize,
    /// Encoded, with the length before it; of this page.
    definition: Vec<u8>,
    /// Definition levels of an optional leaf that is always null: the same levels in a width that has room for one more.
    nulls: Vec<u8>,
    /// Whether the list has optional leaves of its own.
    optional: bool,
}

/// Repetition levels that lists have in common.
#[derive(Debug)]
struct Repetition {
    levels: Vec<u8>,
    /// Bits of each when they are encoded.
    width: u32,
    encoded: Shared,
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
}

#[derive(Debug)]
struct NumberLeaf<T> {
    values: Vec<T>,
    present: Vec<u32>,
}

impl<T> Default for NumberLeaf<T> {
    fn default() -> Self {
        Self { values: Vec::new(), present: Vec::new() }
    }
}

impl<T> NumberLeaf<T> {
    fn next_page(&mut self) {
        self.values.clear();
        self.present.clear();
    }
}

impl DictionaryLeaf {
    fn next_page(&mut self) {
        self.codes.clear();
        self.present.clear();
    }
}

impl TextLeaf {
    fn next_page(&mut self) {
        self.lengths.clear();
        self.bytes.clear();
        self.present.clear();
    }
}

#[derive(Debug)]
enum Values {
    Dictionary(u32),
    Text(u32),
    Integer(u32),
    Double(u32),
    Flag(u32),
}

/// See the module documentation.
pub(crate) struct Columns {
    schema: Arc<Schema>,
    pace: usize,
    levels: Vec<Levels>,
    /// The different repetition levels of this page.
    repetitions: Vec<Repetition>,
    leaves: Vec<Values>,
    dictionaries: Vec<DictionaryLeaf>,
    texts: Vec<TextLeaf>,
    integers: Vec<NumberLeaf<i64>>,
    doubles: Vec<NumberLeaf<f64>>,
    flags: Vec<NumberLeaf<u8>>,
    chunks: Vec<ChunkWriter>,
    press: Press,
    rows_in_page: usize,
    rows_in_group: usize,
    text_bytes: usize,
    scratch: Vec<u8>,
    present: Vec<u8>,
    file: FileWriter,
}

impl std::fmt::Debug for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Columns").field("rows_in_group", &self.rows_in_group).field("file", &self.file.size()).finish_non_exhaustive()
    }
}

impl Columns {
    /// Empty columns. Pages are cut by the number of entries of the list `pace`.
    pub(crate) fn new(schema: &Arc<Schema>, pace: &str) -> Self {
        let mut columns = Self {
            pace: schema.list(pace),
            levels: schema
                .lists
                .iter()
                .enumerate()
                .map(|(position, list)| Levels {
                    list: list.clone(),
                    entries: Vec::new(),
                    repetition: 0,
                    definition: Vec::new(),
                    nulls: Vec::new(),
                    optional: schema.leaves.iter().any(|leaf| leaf.list == position && leaf.optional),
                })
                .collect(),
            repetitions: Vec::new(),
            leaves: Vec::new(),
            dictionaries: Vec::new(),
            texts: Vec::new(),
            integers: Vec::new(),
            doubles: Vec::new(),
            flags: Vec::new(),
            chunks: schema.leaves.iter().map(|_| ChunkWriter::default()).collect(),
            press: Press::new(),
            rows_in_page: 0,
            rows_in_group: 0,
            text_bytes: 0,
            scratch: Vec::new(),
            present: Vec::new(),
            file: FileWriter::new(Arc::clone(schema)),
            schema: Arc::clone(schema),
        };
        for leaf in &schema.leaves {
            use parquet::basic::Type as Physical;
            columns.leaves.push(match (leaf.physical, leaf.layout) {
                (Physical::BYTE_ARRAY, Layout::Dictionary) => {
                    columns.dictionaries.push(DictionaryLeaf::default());
                    Values::Dictionary(columns.dictionaries.len() as u32 - 1)
                }
                (Physical::INT32 | Physical::INT64, _) => {
                    columns.integers.push(NumberLeaf::default());
                    Values::Integer(columns.integers.len() as u32 - 1)
                }
                (Physical::DOUBLE, _) => {
                    columns.doubles.push(NumberLeaf::default());
                    Values::Double(columns.doubles.len() as u32 - 1)
                }
                (Physical::BOOLEAN, _) => {
                    columns.flags.push(NumberLeaf::default());
                    Values::Flag(columns.flags.len() as u32 - 1)
                }
                _ => {
                    columns.texts.push(TextLeaf { utf8: leaf.text, ..TextLeaf::default() });
                    Values::Text(columns.texts.len() as u32 - 1)
                }
            });
        }
        columns
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
        self.doubles[leaf.0 as usize].values.push(value);
    }

    /// Adds a double to an optional leaf; `entry` is that of its list.
    pub(crate) fn push_optional_double(&mut self, leaf: Double, entry: u32, value: f64) {
        let leaf = &mut self.doubles[leaf.0 as usize];
        leaf.values.push(value);
        leaf.present.push(entry);
    }

    /// Adds a boolean to an optional leaf; `entry` is that of its list.
    pub(crate) fn push_optional_flag(&mut self, leaf: Flag, entry: u32, value: bool) {
        let leaf = &mut self.flags[leaf.0 as usize];
        leaf.values.push(u8::from(value));
        leaf.present.push(entry);
    }

    /// Adds a boolean.
    #[inline(always)]
    pub(crate) fn push_flag(&mut self, leaf: Flag, value: bool) {
        self.flags[leaf.0 as usize].values.push(u8::from(value));
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
        self.repetitions.clear();
        for levels in &mut self.levels {
            levels.encode(&mut self.scratch, &mut self.repetitions);
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
        let levels = &self.levels[info.list];
        let entries = if info.list == 0 { self.rows_in_page } else { levels.entries.len() };
        let mut strings = 0;
        let (values, present): (_, &[u32]) = match self.leaves[position] {
            Values::Dictionary(slot) => {
                let leaf = &self.dictionaries[slot as usize];
                if leaf.invalid {
                    return Err(ColumnError::Utf8 { leaf: info.name.clone() });
                }
                strings = leaf.interner.len();
                (pages::Values::Codes(&leaf.codes), &leaf.present)
            }
            Values::Text(slot) => {
                let leaf = &self.texts[slot as usize];
                if leaf.invalid {
                    return Err(ColumnError::Utf8 { leaf: info.name.clone() });
                }
                (pages::Values::Bytes(&leaf.lengths, &leaf.bytes), &leaf.present)
            }
            Values::Integer(slot) => {
                let leaf = &self.integers[slot as usize];
                (pages::Values::Integers(&leaf.values), &leaf.present)
            }
            Values::Double(slot) => (pages::Values::Doubles(&self.doubles[slot as usize].values), &self.doubles[slot as usize].present),
            Values::Flag(slot) => (pages::Values::Flags(&self.flags[slot as usize].values), &self.flags[slot as usize].present),
        };
        let definition = if !info.optional {
            &levels.definition
        } else if present.is_empty() {
            &levels.nulls
        } else {
            self.present.clear();
            levels.encode_present(present, &mut self.scratch, &mut self.present);
            &self.present
        };
        let levels = EncodedLevels { repetition: &self.repetitions[levels.repetition].encoded, definition };
        self.chunks[position].page(info, &mut self.press, (self.rows_in_page, entries), levels, values, strings)?;
        match self.leaves[position] {
            Values::Dictionary(slot) => self.dictionaries[slot as usize].next_page(),
            Values::Text(slot) => self.texts[slot as usize].next_page(),
            Values::Integer(slot) => self.integers[slot as usize].next_page(),
            Values::Double(slot) => self.doubles[slot as usize].next_page(),
            Values::Flag(slot) => self.flags[slot as usize].next_page(),
        }
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
        let rows = std::mem::take(&mut self.rows_in_group);
        let Self { schema, leaves, dictionaries, chunks, press, file, .. } = self;
        let finished = schema.leaves.iter().zip(leaves).zip(chunks).map(|((info, leaf), chunk)| {
            let Values::Dictionary(slot) = leaf else { return chunk.finish(info, press, None) };
            let interner = &mut dictionaries[*slot as usize].interner;
            let finished = chunk.finish(info, press, Some(interner));
            interner.clear();
            finished
        });
        file.row_group(rows, finished)
    }

    /// Takes the bytes of the row groups that were finished since the last time.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        self.file.drain()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The last row group or the footer cannot be written.
    pub(crate) fn finish(mut self, created_by: &str) -> Result<File, ColumnError> {
        self.cut_row_group()?;
        self.file.finish(created_by)
    }
}

impl Levels {
    /// Encodes the levels of this page for the leaves to copy.
    fn encode(&mut self, scratch: &mut Vec<u8>, repetitions: &mut Vec<Repetition>) {
        self.definition.clear();
        self.nulls.clear();
        let List { repetition, definition, .. } = self.list;
        scratch.clear();
        if repetition > 0 {
            scratch.extend(self.entries.iter().map(|entry| entry >> 4));
        }
        let width = width_of(repetition.into());
        let known = repetitions.iter().position(|known| known.width == width && known.levels == *scratch);
        self.repetition = known.unwrap_or_else(|| {
            let mut encoded = Vec::new();
            if repetition > 0 {
                write_levels(scratch, repetition, &mut encoded);
            }
            repetitions.push(Repetition { levels: scratch.clone(), width, encoded: Shared::new(encoded) });
            repetitions.len() - 1
        });
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
}
