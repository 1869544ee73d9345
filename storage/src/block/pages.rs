//! One leaf's chunk of a row group from arrays: levels and values become pages. Knows Parquet, nothing of traces and of no other leaf.
//!
//! ```text
//!  levels of a page ┐
//!  values of a page ┴─ ChunkWriter::page ─► header + body ─┐
//!                                                          ├─► Chunk ─► file::FileWriter
//!  dictionary ──────── ChunkWriter::finish ─► its page ────┘
//! ```
//!
//! Chunks do not know of each other and may be written on as many threads as there are [`Press`]es.
//!
//! Invariants (block-format.md §6.2): a chunk is dictionary-encoded throughout or not at all; booleans and nothing else are bit-packed
//! PLAIN; integers have no dictionary. Data pages are version 1, whose levels are compressed with the values: before compression half of a
//! trace's bytes are levels. A chunk is compressed or not as a whole, which is what Parquet can say.
//!
//! A compressed page is up to three zstd frames, which are one stream of bytes to every reader: what resembles each other is compressed
//! together, with the [`Effort`] that fits it, and repetition levels, which many leaves have in common, once for all of those leaves.
//!
//! ```text
//!  frame of the repetition levels │ frame of the definition levels │ frame of the values
//!  the same bytes in many leaves  │ if they are many               │
//! ```
//!
//! Strings of a large dictionary are sorted, so that each shares its beginning with the one before it: a fifth to a third of their bytes.
//! Their order is known when the last page is, so the pages of such a leaf wait as numbers until its chunk ends.

use std::sync::OnceLock;

use parquet::{
    basic::{Encoding, Type as Physical},
    errors::ParquetError,
};
use zstd::{
    bulk::Compressor,
    zstd_safe::{CParameter, Strategy},
};

use super::{
    encoding::{self, Width},
    interner::Interner,
    schema::{Layout, Leaf},
    thrift,
};

/// Pages of a chunk are left uncompressed as long as none is larger than this: compression cannot win.
const SMALL_PAGE: usize = 64;

/// Speed over size: what higher levels win is below two bytes of a hundred, and at level 6 they cost half of the speed.
pub(crate) const ZSTD_LEVEL: i32 = 1;

/// Bytes from which levels are a frame of their own: a frame has some eleven that say nothing.
const FRAME_BYTES: usize = 64;

/// Of a thousand bytes, those that compression must win on the first page that is not small, for the chunk to be compressed.
const WORTH_PER_MILLE: usize = 8;

/// Bytes of a string, with its length, that is long.
const LONG_STRING: usize = 100;

/// What zstd is told to do with bytes, by what they are. Chosen by measured size and time: a better search of matches makes random bytes
/// larger, because long distances cost more than the few bytes that happen to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// Whatever is left.
    Values,
    /// Words of eight bytes, of which some repeat: times.
    Words,
    /// Numbers of few strings: keys and names, which come in the same sequences again.
    Codes,
    /// Numbers of many strings.
    Sequences,
    /// Levels.
    Levels,
    /// The short strings of a dictionary, each of which resembles its neighbours.
    Strings,
}

impl Effort {
    const ALL: [Self; 6] = [Self::Values, Self::Words, Self::Codes, Self::Sequences, Self::Levels, Self::Strings];

    fn compressor(self) -> std::io::Result<Compressor<'static>> {
        use CParameter::{ChainLog, HashLog, MinMatch, SearchLog, Strategy as Search, TargetLength, WindowLog};
        let (level, parameters): (i32, &[CParameter]) = match self {
            Self::Values => (ZSTD_LEVEL, &[]),
            Self::Words => (ZSTD_LEVEL, &[WindowLog(14), HashLog(14), MinMatch(4), TargetLength(0), Search(Strategy::ZSTD_fast)]),
            Self::Codes => (5, &[]),
            Self::Sequences => (3, &[]),
            Self::Levels => {
                (5, &[WindowLog(17), HashLog(15), ChainLog(15), SearchLog(5), MinMatch(6), TargetLength(8), Search(Strategy::ZSTD_lazy)])
            }
            Self::Strings => (
                ZSTD_LEVEL,
                &[WindowLog(12), HashLog(13), ChainLog(13), SearchLog(1), MinMatch(6), TargetLength(0), Search(Strategy::ZSTD_lazy2)],
            ),
        };
        let mut compressor = Compressor::new(level)?;
        parameters.iter().try_for_each(|&parameter| compressor.set_parameter(parameter))?;
        Ok(compressor)
    }
}

/// Bytes of a page from which that can be told.
const SAMPLE: usize = 4096;

/// Codes of at least one bit take whole bytes while they fit into one: bytes that stand for a string each compress better.
const CODE_BITS: u32 = 8;

/// The same for those that fit into two.
const WIDE_CODE_BITS: u32 = 16;

/// Strings of a dictionary that keep the order in which they appeared: the frequent ones are early, and pages are written at once while there
/// are no others.
const FIXED_CODES: usize = 1 << CODE_BITS;

/// Strings that are sorted by themselves, so that the pages that have no others need no wider numbers.
const SHORT_CODES: usize = 1 << WIDE_CODE_BITS;

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
    #[error("{leaf}: {what}")]
    Shape { leaf: String, what: &'static str },
    #[error("footer")]
    Footer(#[from] ParquetError),
}

/// The values of some rows of a leaf, without nulls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    /// Numbers of strings in the chunk's dictionary.
    Codes(&'a [u32]),
    /// Lengths of byte strings, and the strings one after the other.
    Bytes(&'a [i64], &'a [u8]),
    /// INT32 and INT64, unsigned ones by their bits.
    Integers(&'a [i64]),
    /// DOUBLE.
    Doubles(&'a [f64]),
    /// BOOLEAN, 0 or 1 each.
    Flags(&'a [u8]),
}

/// Levels of a page as they stand in it: each encoded with its length before it, or empty when there can be only one level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedLevels<'a> {
    pub(crate) repetition: &'a Shared,
    pub(crate) definition: &'a [u8],
}

/// Bytes with which pages of several leaves begin, compressed when the first of them needs it.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    frame: OnceLock<Vec<u8>>,
}

impl Shared {
    /// Not compressed yet.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, frame: OnceLock::new() }
    }
}

/// Compressors and buffers: what a thread that writes chunks needs.
pub(crate) struct Press {
    /// By [`Effort`].
    compressors: [Option<Compressor<'static>>; Effort::ALL.len()],
    page: Vec<u8>,
    compressed: Vec<u8>,
    /// The frames of a page.
    stored: Vec<u8>,
}

impl std::fmt::Debug for Press {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Press").finish_non_exhaustive()
    }
}

impl Press {
    /// An idle one.
    pub(crate) fn new() -> Self {
        Self { compressors: Default::default(), page: Vec::new(), compressed: Vec::new(), stored: Vec::new() }
    }

    fn compress(&mut self, effort: Effort, body: &[u8]) -> Result<&[u8], PageError> {
        let compressor = match &mut self.compressors[effort as usize] {
            Some(known) => known,
            unused => unused.insert(effort.compressor().map_err(PageError::Compression)?),
        };
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(body.len()));
        compressor.compress_to_buffer(body, &mut self.compressed).map_err(PageError::Compression)?;
        Ok(&self.compressed)
    }

    fn add_frame(&mut self, effort: Effort, body: &[u8]) -> Result<(), PageError> {
        self.compress(effort, body)?;
        self.stored.extend_from_slice(&self.compressed);
        Ok(())
    }

    /// Begins a page of several frames with those of its levels that are worth one, of `least` bytes or more. Returns how many bytes of
    /// the page are in them.
    fn add_levels(&mut self, levels: EncodedLevels<'_>, least: usize) -> Result<usize, PageError> {
        let EncodedLevels { repetition, definition } = levels;
        self.stored.clear();
        if repetition.bytes.len() < least.max(1) {
            return Ok(0);
        }
        match repetition.frame.get() {
            Some(frame) => self.stored.extend_from_slice(frame),
            None => {
                let frame = self.compress(Effort::Levels, &repetition.bytes)?.to_vec();
                self.stored.extend_from_slice(repetition.frame.get_or_init(|| frame));
            }
        }
        if definition.len() < least.max(1) {
            return Ok(repetition.bytes.len());
        }
        self.add_frame(Effort::Levels, definition)?;
        Ok(repetition.bytes.len() + definition.len())
    }

    /// Compresses a page that begins with these levels.
    fn compress_page(&mut self, effort: Effort, levels: EncodedLevels<'_>, body: &[u8]) -> Result<&[u8], PageError> {
        let done = self.add_levels(levels, FRAME_BYTES)?;
        self.add_frame(effort, &body[done..])?;
        Ok(&self.stored)
    }
}

/// A data page of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) rows: usize,
    /// Bytes with the header.
    pub(crate) length: usize,
    kind: PageKind,
    /// Bytes of the header.
    header: usize,
    /// Bytes with the header, before compression.
    raw: usize,
}

/// Smallest and largest value of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bounds {
    Bytes(Vec<u8>, Vec<u8>),
    /// Unsigned.
    Integers(u64, u64),
}

#[cfg(test)]
impl Page {
    /// A page of a chunk that a test makes up.
    pub(crate) fn of(rows: usize, length: usize) -> Self {
        let kind = PageKind { dictionary: false, values: rows, encoding: Encoding::PLAIN, effort: Effort::Sequences };
        Self { rows, length, kind, header: 0, raw: length }
    }
}

/// A finished chunk, to be put into a file.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The dictionary page, if the leaf has a dictionary; empty otherwise.
    pub(crate) dictionary: Vec<u8>,
    /// The data pages.
    pub(crate) data: Vec<u8>,
    pub(crate) pages: Vec<Page>,
    /// Whether pages are zstd frames.
    pub(crate) compressed: bool,
    /// Entries, nulls included.
    pub(crate) entries: usize,
    /// Bytes before compression.
    pub(crate) raw: usize,
    pub(crate) encodings: Vec<Encoding>,
    pub(crate) bounds: Option<Bounds>,
}

/// Whether a chunk is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Codec {
    /// Not yet: all pages so far are small.
    #[default]
    Undecided,
    Plain,
    Zstd,
}

/// A chunk being written.
#[derive(Debug, Default)]
pub(crate) struct ChunkWriter {
    data: Vec<u8>,
    pages: Vec<Page>,
    /// The pages after those, while the dictionary has no order.
    waiting: Vec<Waiting>,
    codec: Codec,
    entries: usize,
    bounds: Option<Bounds>,
}

/// A page of numbers of a large dictionary.
#[derive(Debug)]
struct Waiting {
    rows: usize,
    entries: usize,
    /// Frames of the levels, and how many bytes are in them.
    levels: Vec<u8>,
    level_bytes: usize,
    codes: Vec<u32>,
    /// Number of strings in the dictionary when this was its last page.
    strings: usize,
}

impl ChunkWriter {
    /// Adds a page of `rows` whole rows, with `entries` entries, nulls included. `strings` is the number of strings that the dictionary has so
    /// far, which is more than any code of the page.
    ///
    /// # Errors
    /// The page cannot be written.
    pub(crate) fn page(
        &mut self,
        leaf: &Leaf,
        press: &mut Press,
        (rows, entries): (usize, usize),
        levels: EncodedLevels<'_>,
        values: Values<'_>,
        strings: usize,
    ) -> Result<(), ColumnError> {
        self.entries += entries;
        if let Values::Codes(codes) = values
            && strings > FIXED_CODES
        {
            return self.wait((rows, entries), press, levels, codes, strings).map_err(|error| error.of(&leaf.name));
        }
        let mut page = std::mem::take(&mut press.page);
        page.clear();
        page.extend_from_slice(&levels.repetition.bytes);
        page.extend_from_slice(levels.definition);
        let encoding = encode(leaf, values, strings, &mut page);
        if leaf.bounds {
            self.widen(values);
        }
        let kind = PageKind { dictionary: false, values: entries, encoding, effort: effort_of(leaf) };
        let written = self.write(leaf, kind, levels, &page, press).map_err(|error| error.of(&leaf.name));
        press.page = page;
        self.pages.push(Page { rows, ..written? });
        Ok(())
    }

    /// Keeps a page of numbers until the dictionary is complete.
    fn wait(
        &mut self,
        (rows, entries): (usize, usize),
        press: &mut Press,
        levels: EncodedLevels<'_>,
        codes: &[u32],
        strings: usize,
    ) -> Result<(), PageError> {
        if self.codec == Codec::Undecided {
            self.compress_what_is_there(press)?;
        }
        let mut level_bytes = press.add_levels(levels, 1)?;
        if level_bytes == 0 && !levels.definition.is_empty() {
            press.add_frame(Effort::Levels, levels.definition)?;
            level_bytes = levels.definition.len();
        }
        self.waiting.push(Waiting { rows, entries, levels: press.stored.clone(), level_bytes, codes: codes.to_vec(), strings });
        Ok(())
    }

    /// Writes the pages that wait. `order` are the strings of the dictionary by their old numbers.
    fn write_waiting(&mut self, leaf: &Leaf, press: &mut Press, order: &[u32]) -> Result<(), PageError> {
        let mut numbers = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            numbers[old as usize] = new as u32;
        }
        for Waiting { rows, entries, levels, level_bytes, mut codes, strings } in std::mem::take(&mut self.waiting) {
            codes.iter_mut().for_each(|code| *code = numbers[*code as usize]);
            // Numbers beyond those of two bytes are no longer in the order of appearance.
            let strings = if strings > SHORT_CODES { order.len() } else { strings };
            let mut page = std::mem::take(&mut press.page);
            page.clear();
            let encoding = encode(leaf, Values::Codes(&codes), strings, &mut page);
            press.stored.clone_from(&levels);
            let kind = PageKind { dictionary: false, values: entries, encoding, effort: Effort::Sequences };
            let added = press.add_frame(kind.effort, &page);
            let raw = level_bytes + page.len();
            press.page = page;
            added?;
            self.pages.push(Page { rows, ..write_page(kind, raw, &press.stored, &mut self.data)? });
        }
        Ok(())
    }

    fn widen(&mut self, values: Values<'_>) {
        match values {
            Values::Bytes(lengths, bytes) => {
                let mut rest = bytes;
                for &length in lengths {
                    let (value, after) = rest.split_at(length as usize);
                    rest = after;
                    match &mut self.bounds {
                        Some(Bounds::Bytes(min, max)) => {
                            if value < min.as_slice() {
                                *min = value.to_vec();
                            } else if value > max.as_slice() {
                                value.clone_into(max);
                            }
                        }
                        bounds => *bounds = Some(Bounds::Bytes(value.to_vec(), value.to_vec())),
                    }
                }
            }
            Values::Integers(values) => {
                for value in values.iter().map(|&value| value as u64) {
                    self.bounds = Some(match self.bounds {
                        Some(Bounds::Integers(min, max)) => Bounds::Integers(min.min(value), max.max(value)),
                        _ => Bounds::Integers(value, value),
                    });
                }
            }
            _ => {}
        }
    }

    /// Appends a data page, and decides whether the chunk is compressed when this is the first page from which that can be told.
    fn write(&mut self, leaf: &Leaf, kind: PageKind, levels: EncodedLevels<'_>, body: &[u8], press: &mut Press) -> Result<Page, PageError> {
        match self.codec {
            Codec::Undecided if body.len() <= SMALL_PAGE => write_page(kind, body.len(), body, &mut self.data),
            Codec::Plain => write_page(kind, body.len(), body, &mut self.data),
            Codec::Zstd => {
                let compressed = press.compress_page(kind.effort, levels, body)?;
                write_page(kind, body.len(), compressed, &mut self.data)
            }
            Codec::Undecided => {
                let compressed = press.compress_page(kind.effort, levels, body)?.to_vec();
                let won = body.len().saturating_sub(compressed.len());
                // A dictionary has yet to come.
                if won * 1000 < body.len() * WORTH_PER_MILLE && body.len() >= SAMPLE && leaf.layout != Layout::Dictionary {
                    self.codec = Codec::Plain;
                    return write_page(kind, body.len(), body, &mut self.data);
                }
                self.compress_what_is_there(press)?;
                write_page(kind, body.len(), &compressed, &mut self.data)
            }
        }
    }

    /// From here on the chunk is compressed; the small pages that it has so far, too.
    fn compress_what_is_there(&mut self, press: &mut Press) -> Result<(), PageError> {
        self.codec = Codec::Zstd;
        let plain = std::mem::take(&mut self.data);
        let mut at = 0;
        for page in &mut self.pages {
            let body = &plain[at + page.header..at + page.length];
            at += page.length;
            let compressed = press.compress(page.kind.effort, body)?;
            *page = Page { rows: page.rows, ..write_page(page.kind, body.len(), compressed, &mut self.data)? };
        }
        Ok(())
    }

    /// Ends the chunk, and leaves an empty one for the next row group. `dictionary` holds the strings of the codes of all pages; other
    /// leaves have none.
    ///
    /// # Errors
    /// The dictionary cannot be written.
    pub(crate) fn finish(&mut self, leaf: &Leaf, press: &mut Press, dictionary: Option<&Interner>) -> Result<Chunk, ColumnError> {
        let mut encodings = vec![Encoding::RLE];
        let mut page = Vec::new();
        let mut raw = 0;
        if let Some(strings) = dictionary {
            let order = strings.sorted(&[FIXED_CODES, SHORT_CODES]);
            self.write_waiting(leaf, press, &order).map_err(|error| error.of(&leaf.name))?;
            let mut body = std::mem::take(&mut press.page);
            body.clear();
            strings.write_plain(&order, &mut body);
            if self.codec == Codec::Undecided && body.len() > SMALL_PAGE {
                self.compress_what_is_there(press).map_err(|error| error.of(&leaf.name))?;
            }
            // What long ones have in common is farther away.
            let effort = if body.len() < LONG_STRING * strings.len() { Effort::Strings } else { Effort::Values };
            let kind = PageKind { dictionary: true, values: strings.len(), encoding: Encoding::PLAIN, effort };
            let stored = if self.codec == Codec::Zstd { press.compress(kind.effort, &body) } else { Ok(body.as_slice()) };
            let written = stored.and_then(|stored| write_page(kind, body.len(), stored, &mut page)).map_err(|error| error.of(&leaf.name));
            press.page = body;
            raw += written?.raw;
            encodings.extend([Encoding::PLAIN, Encoding::RLE_DICTIONARY]);
        } else {
            encodings.push(encoding_of(leaf));
        }
        let Self { data, pages, codec, entries, bounds, .. } = std::mem::take(self);
        raw += pages.iter().map(|page| page.raw).sum::<usize>();
        Ok(Chunk { dictionary: page, data, pages, compressed: codec == Codec::Zstd, entries, raw, encodings, bounds })
    }
}

/// A leaf's arrays of a whole row group.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a> {
    /// Repetition level of every entry; empty when the leaf cannot repeat.
    pub(crate) repetition: &'a [u8],
    /// Definition level of every entry; empty when the leaf cannot be null or missing.
    pub(crate) definition: &'a [u8],
    /// The values of the entries that have the highest definition level.
    pub(crate) values: Values<'a>,
    /// The strings of the codes.
    pub(crate) dictionary: Option<&'a Interner>,
}

/// Writes the chunk of a leaf whose levels are those of `list`, with a page for each number of rows in `pages`.
///
/// # Errors
/// The arrays do not fit each other, a string is not UTF-8, or a page cannot be written.
#[cfg(test)]
pub(crate) fn chunk(
    leaf: &Leaf,
    list: &super::schema::List,
    column: &Column<'_>,
    pages: &[usize],
    press: &mut Press,
) -> Result<Chunk, ColumnError> {
    let shape = |what| ColumnError::Shape { leaf: leaf.name.clone(), what };
    let max = list.definition + u8::from(leaf.optional);
    if leaf.text && !text_is_utf8(column) {
        return Err(ColumnError::Utf8 { leaf: leaf.name.clone() });
    }
    let mut writer = ChunkWriter::default();
    let (mut entry, mut value, mut byte) = (0, 0, 0);
    let (mut repetition, mut definition) = (Vec::new(), Vec::new());
    for &rows in pages {
        let entries = if list.repetition == 0 { rows } else { entries_of(&column.repetition[entry..], rows) };
        let end = entry + entries;
        repetition.clear();
        definition.clear();
        let mut count = entries;
        if list.repetition > 0 {
            write_levels(
                column.repetition.get(entry..end).ok_or_else(|| shape("too few repetition levels"))?,
                list.repetition,
                &mut repetition,
            );
        }
        if max > 0 {
            let levels = column.definition.get(entry..end).ok_or_else(|| shape("too few definition levels"))?;
            count = levels.iter().filter(|&&level| level == max).count();
            write_levels(levels, max, &mut definition);
        }
        let values = part(column.values, value, count, &mut byte).ok_or_else(|| shape("too few values"))?;
        entry = end;
        value += count;
        let repetition = Shared::new(repetition.clone());
        let levels = EncodedLevels { repetition: &repetition, definition: &definition };
        writer.page(leaf, press, (rows, entries), levels, values, column.dictionary.map_or(0, Interner::len))?;
    }
    let length = if list.repetition > 0 { column.repetition.len() } else { column.definition.len() };
    if (list.repetition > 0 || max > 0) && length != entry {
        return Err(shape("more levels than the rows of the pages have"));
    }
    writer.finish(leaf, press, column.dictionary)
}

/// Entries of the first `rows` rows.
#[cfg(test)]
fn entries_of(repetition: &[u8], rows: usize) -> usize {
    let mut starts = repetition.iter().enumerate().filter(|&(_, &level)| level == 0).map(|(at, _)| at);
    starts.nth(rows).unwrap_or(repetition.len())
}

/// `count` values from the number `at` on; `byte` is where the bytes of the first of them are, and moves behind the last.
#[cfg(test)]
fn part<'a>(values: Values<'a>, at: usize, count: usize, byte: &mut usize) -> Option<Values<'a>> {
    let range = at..at + count;
    Some(match values {
        Values::Codes(codes) => Values::Codes(codes.get(range)?),
        Values::Bytes(lengths, bytes) => {
            let lengths = lengths.get(range)?;
            let start = *byte;
            *byte += lengths.iter().sum::<i64>() as usize;
            Values::Bytes(lengths, bytes.get(start..*byte)?)
        }
        Values::Integers(values) => Values::Integers(values.get(range)?),
        Values::Doubles(values) => Values::Doubles(values.get(range)?),
        Values::Flags(values) => Values::Flags(values.get(range)?),
    })
}

#[cfg(test)]
fn text_is_utf8(column: &Column<'_>) -> bool {
    if let Some(strings) = column.dictionary {
        return (0..strings.len() as u32).all(|code| std::str::from_utf8(strings.get(code)).is_ok());
    }
    let Values::Bytes(lengths, bytes) = column.values else { return true };
    // Text that is UTF-8 as a whole can still be cut within a character.
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut at = 0;
    lengths.iter().all(|&length| {
        at += length as usize;
        text.is_char_boundary(at)
    })
}

/// Appends levels, of which `max` is the highest possible, with their length before them.
pub(crate) fn write_levels(levels: &[u8], max: u8, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    encoding::levels(levels, encoding::width_of(max.into()), out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

/// The encoding of the values of a leaf's data pages.
fn encoding_of(leaf: &Leaf) -> Encoding {
    match (leaf.layout, leaf.physical) {
        (Layout::Plain, _) => Encoding::PLAIN,
        (Layout::Dictionary, _) => Encoding::RLE_DICTIONARY,
        (_, Physical::BYTE_ARRAY) => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        _ => Encoding::DELTA_BINARY_PACKED,
    }
}

/// What fits the values of a page of a leaf that has no large dictionary.
fn effort_of(leaf: &Leaf) -> Effort {
    match (leaf.layout, leaf.physical) {
        (Layout::Dictionary, _) => Effort::Codes,
        (Layout::Plain, Physical::INT64 | Physical::DOUBLE) => Effort::Words,
        _ => Effort::Values,
    }
}

/// Appends the values of a page.
fn encode(leaf: &Leaf, values: Values<'_>, strings: usize, page: &mut Vec<u8>) -> Encoding {
    match values {
        Values::Codes(codes) => {
            let needed = encoding::width_of((strings as u64).saturating_sub(1));
            let width = match needed {
                1..=CODE_BITS => CODE_BITS,
                9..=WIDE_CODE_BITS => WIDE_CODE_BITS,
                other => other,
            };
            page.push(width as u8);
            encoding::hybrid(codes, width, page);
        }
        Values::Bytes(lengths, bytes) if leaf.layout == Layout::Plain => encoding::plain_strings(lengths, bytes, page),
        Values::Bytes(lengths, bytes) => encoding::delta_lengths(lengths, bytes, page),
        Values::Integers(values) => match (leaf.layout, leaf.physical) {
            (Layout::Delta, Physical::INT32) => encoding::delta(values, Width::W32, page),
            (Layout::Delta, _) => encoding::delta(values, Width::W64, page),
            (_, Physical::INT32) => page.extend(values.iter().flat_map(|&value| (value as i32).to_le_bytes())),
            _ => page.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        },
        Values::Doubles(values) => page.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Values::Flags(values) => encoding::bits(values, page),
    }
    encoding_of(leaf)
}

/// What a page holds.
#[derive(Clone, Copy, Debug)]
struct PageKind {
    dictionary: bool,
    values: usize,
    encoding: Encoding,
    effort: Effort,
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

/// Appends header and body of a page to `out`; `stored` is the body of `raw` bytes, or the body compressed.
fn write_page(kind: PageKind, raw: usize, stored: &[u8], out: &mut Vec<u8>) -> Result<Page, PageError> {
    let header = thrift::Page {
        dictionary: kind.dictionary,
        uncompressed: i32::try_from(raw).map_err(|_| PageError::TooLarge(raw))?,
        compressed: i32::try_from(stored.len()).map_err(|_| PageError::TooLarge(stored.len()))?,
        crc: crc32fast::hash(stored),
        values: i32::try_from(kind.values).map_err(|_| PageError::TooLarge(raw))?,
        encoding: kind.encoding as i32,
    };
    let start = out.len();
    thrift::write_page_header(&header, out);
    let header = out.len() - start;
    out.extend_from_slice(stored);
    Ok(Page { kind, rows: 0, header, length: header + stored.len(), raw: header + raw })
}
