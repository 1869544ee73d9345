//! From the pages of a chunk to a [`Column`].

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use parquet::basic::Compression;

use super::{
    super::thrift::{self, DATA_PAGE, DATA_PAGE_V2, DICTIONARY_PAGE, PageHeader},
    Chunk, Column, Dictionary, Fetched, Strings, Values, Wrong,
    codec::Codecs,
    levels::{self, Frames, Memo},
    spare::Spare,
    values::{PLAIN, PLAIN_DICTIONARY, Page, RLE_DICTIONARY, TORN},
};

const FEWER_ROWS: &str = "it has fewer rows than its row group";

/// Decodes chunks, one after the other; keeps memory for the next.
#[derive(Debug)]
pub struct Decoder {
    codecs: Codecs,
    /// A dictionary is read when a page with codes has already been decompressed.
    dictionary_codecs: Codecs,
    memo: Memo,
    spare: Spare,
    frames: Frames,
    /// Bytes that columns may still have together, where they are in memory together.
    room: Option<usize>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            codecs: Codecs::new(),
            dictionary_codecs: Codecs::new(),
            memo: Memo::default(),
            spare: Spare::within(usize::MAX / 2),
            frames: Frames::default(),
            room: None,
        }
    }
}

/// What is known of a chunk's dictionary.
enum Known<'a> {
    Nothing,
    /// Its page, which is decoded once a value needs it.
    Page(&'a [u8], PageHeader),
    Dictionary(Dictionary),
}

impl Decoder {
    /// The rows `rows` of a chunk, all of whose pages that hold them were fetched.
    ///
    /// # Errors
    /// What is wrong with the bytes, with the name of the leaf.
    pub fn column(&mut self, chunk: &Chunk, fetched: &Fetched, rows: Range<usize>) -> Result<Column, Wrong> {
        let column = self.read(chunk, fetched, rows).and_then(|column| self.take_room(column));
        column.map_err(|what| format!("leaf \"{}\": {what}", chunk.name))
    }

    /// For columns that are in memory together, and have at most so many bytes there. What one chunk may ask for is limited anyway, but a file
    /// has many.
    pub(crate) fn within(room: usize) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    /// For columns that come one after the other, and are given back: at most so many bytes of those wait for the next.
    pub(crate) fn keeping(bytes: usize) -> Self {
        Self { spare: Spare::within(bytes), ..Self::default() }
    }

    fn take_room(&mut self, column: Column) -> Result<Column, Wrong> {
        if let Some(room) = &mut self.room {
            *room = room.checked_sub(column.memory()).ok_or("the columns together are larger than their bytes can be")?;
        }
        Ok(column)
    }

    /// The dictionary of a chunk whose bytes, or the first page of them, are `chunk_bytes`; none if it does not begin with one.
    ///
    /// # Errors
    /// As of [`Decoder::column`].
    pub fn dictionary(&mut self, chunk: &Chunk, chunk_bytes: &Bytes) -> Result<Option<Dictionary>, Wrong> {
        let mut read = || {
            let header = thrift::page_header(chunk_bytes)?;
            if header.kind != DICTIONARY_PAGE {
                return Ok(None);
            }
            Budget::new(chunk).page(&header)?;
            read_dictionary(&mut self.dictionary_codecs, &mut self.spare, chunk, chunk_bytes, &header).map(Some)
        };
        read().map_err(|what: Wrong| format!("leaf \"{}\": {what}", chunk.name))
    }

    /// Forgets the levels of pages that were decoded, which are kept for other columns that share them. Those of other rows are of no use.
    pub(crate) fn forget_levels(&mut self) {
        self.frames = Frames::default();
    }

    /// Takes levels of a column back that nobody needs any more, for the columns that come next.
    pub(crate) fn give_levels(&mut self, levels: Vec<u8>) {
        self.spare.give_levels(levels);
    }

    /// The same of codes.
    pub(crate) fn give_codes(&mut self, codes: Vec<u32>) {
        self.spare.give_codes(codes);
    }

    /// The same of a dictionary.
    pub(crate) fn give_dictionary(&mut self, dictionary: Arc<Strings>) {
        self.spare.give_dictionary(dictionary);
    }

    /// The same of values.
    pub(crate) fn give_values(&mut self, values: Values) {
        self.spare.give_values(values);
    }

    fn read(&mut self, chunk: &Chunk, fetched: &Fetched, rows: Range<usize>) -> Result<Column, Wrong> {
        let mut column = Column {
            repetition: self.spare.levels(),
            definition: self.spare.levels(),
            values: Values::none(chunk.physical)?,
            max_definition: chunk.max_definition,
            max_repetition: chunk.max_repetition,
            entries: 0,
        };
        if rows.end > chunk.rows || rows.start < fetched.first_row {
            return Err(FEWER_ROWS.to_owned());
        }
        let mut known = fetched.dictionary.clone().map_or(Known::Nothing, Known::Dictionary);
        let mut budget = Budget::new(chunk);
        let mut row = fetched.first_row;
        for bytes in &fetched.pages {
            let mut rest = bytes.as_ref();
            while !rest.is_empty() && row < rows.end {
                let header = thrift::page_header(rest)?;
                let (page, behind) = rest.split_at(header.sizes.header + header.sizes.compressed);
                rest = behind;
                budget.page(&header)?;
                match header.kind {
                    DICTIONARY_PAGE if matches!(known, Known::Nothing) => known = Known::Page(page, header),
                    DATA_PAGE | DATA_PAGE_V2 => {
                        let says = match header.v2 {
                            _ if chunk.max_repetition == 0 => Some(header.sizes.values),
                            Some(v2) => Some(v2.rows),
                            None => None,
                        };
                        // A page that ends before the wanted rows is not even decompressed.
                        if let Some(end) = says.and_then(|says| row.checked_add(says)).filter(|&end| end <= rows.start) {
                            row = end;
                            continue;
                        }
                        let wanted = rows.start.saturating_sub(row)..rows.end - row;
                        let is_first = column.entries == 0;
                        let here = self.read_page(chunk, page, &header, &mut known, wanted, budget.room, &mut column)?;
                        if is_first {
                            // They are of about one size; the last one is smaller.
                            column.reserve(rest.len().div_ceil(page.len()));
                        }
                        if says.is_some_and(|says| says != here) {
                            return Err("a page has another number of rows than its header says".to_owned());
                        }
                        row = row.checked_add(here).ok_or(TORN)?;
                    }
                    _ => {}
                }
            }
        }
        if row < rows.end {
            return Err(FEWER_ROWS.to_owned());
        }
        Ok(column)
    }

    /// Appends the rows `wanted` of a page, of which there may be fewer, and returns how many rows it has.
    #[expect(clippy::too_many_arguments, reason = "one step of a loop with much state")]
    fn read_page(
        &mut self,
        chunk: &Chunk,
        page: &[u8],
        header: &PageHeader,
        known: &mut Known<'_>,
        wanted: Range<usize>,
        room: usize,
        column: &mut Column,
    ) -> Result<usize, Wrong> {
        if !header.rle_levels && (chunk.max_repetition > 0 || chunk.max_definition > 0) {
            return Err("its levels have an encoding that is not supported".to_owned());
        }
        let entries = header.sizes.values;
        let one_row = wanted.len() == 1;
        let stored = stored(page, header)?;
        let max = chunk.max_repetition;
        let framed = max > 0 && header.v2.is_none() && matches!(chunk.codec, Compression::ZSTD(_));
        let frame = if framed { Frames::first(stored) } else { None };
        let known_levels = frame.and_then(|frame| self.frames.find(max, entries, &wanted, frame));
        let Sections { repetition, definition, values: input } = match (known_levels, frame) {
            (Some(levels), Some(frame)) => Sections::read_behind(&mut self.codecs, chunk, &stored[frame.len()..], header, levels.size)?,
            _ => Sections::read(&mut self.codecs, chunk, stored, header)?,
        };
        let begin = column.repetition.len();
        let (rows, selected) = match known_levels {
            _ if max == 0 => (entries, wanted.start.min(entries)..wanted.end.min(entries)),
            Some(known) => {
                column.repetition.extend_from_slice(&known.levels);
                known.found.clone()
            }
            None if one_row => self.memo.repetition(repetition, max, entries, &wanted, &mut column.repetition)?,
            None => levels::repetition(repetition, max, entries, &wanted, &mut column.repetition)?,
        };
        if let Some(frame) = frame.filter(|_| known_levels.is_none()) {
            let of = (max, entries, wanted);
            self.frames.keep(of, frame, repetition.len(), &column.repetition[begin..], (rows, selected.clone()));
        }
        let values = match chunk.max_definition {
            0 => selected.clone(),
            max if one_row => self.memo.definition(definition, max, &selected, &mut column.definition)?,
            max => levels::definition(definition, max, &selected, &mut column.definition)?,
        };
        column.entries += selected.len();
        let coded = matches!(header.encoding, RLE_DICTIONARY | PLAIN_DICTIONARY) && !values.is_empty();
        let dictionary = if coded { known.get(&mut self.dictionary_codecs, &mut self.spare, chunk)? } else { None };
        if column.values.is_empty() {
            let none = Values::none(chunk.physical)?;
            column.values = match dictionary {
                Some(Dictionary::Strings(strings)) if matches!(none, Values::Bytes(_)) => {
                    Values::Codes { codes: self.spare.codes(), dictionary: Arc::clone(strings) }
                }
                _ if values.is_empty() => none,
                _ => self.spare.room_for(none),
            };
        }
        let page = Page { physical: chunk.physical, encoding: header.encoding, input, limit: entries, dictionary };
        column.values.append(&page, values, room)?;
        Ok(rows)
    }
}

/// The parts of a page, decompressed.
struct Sections<'a> {
    repetition: &'a [u8],
    definition: &'a [u8],
    values: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(codecs: &'a mut Codecs, chunk: &Chunk, stored: &'a [u8], header: &PageHeader) -> Result<Self, Wrong> {
        if let Some(v2) = header.v2 {
            let (repetition, rest) = stored.split_at_checked(v2.repetition).ok_or(TORN)?;
            let (definition, values) = rest.split_at_checked(v2.definition).ok_or(TORN)?;
            let size = header.sizes.uncompressed.checked_sub(v2.repetition + v2.definition).ok_or(TORN)?;
            let codec = if v2.compressed { chunk.codec } else { Compression::UNCOMPRESSED };
            return Ok(Self { repetition, definition, values: codecs.expand(codec, values, size)? });
        }
        let body = codecs.expand(chunk.codec, stored, header.sizes.uncompressed)?;
        Self::of_body(body, chunk.max_repetition > 0, chunk.max_definition > 0)
    }

    /// What comes behind `before` bytes that are known already.
    fn read_behind(codecs: &'a mut Codecs, chunk: &Chunk, stored: &'a [u8], header: &PageHeader, before: usize) -> Result<Self, Wrong> {
        let size = header.sizes.uncompressed.checked_sub(before).ok_or(TORN)?;
        let body = codecs.expand(chunk.codec, stored, size)?;
        Self::of_body(body, false, chunk.max_definition > 0)
    }

    fn of_body(mut body: &'a [u8], repetition: bool, definition: bool) -> Result<Self, Wrong> {
        let mut section = |there: bool| {
            if !there {
                return Some(&[][..]);
            }
            let (length, rest) = body.split_first_chunk::<4>()?;
            let (section, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            body = rest;
            Some(section)
        };
        let repetition = section(repetition).ok_or(TORN)?;
        let definition = section(definition).ok_or(TORN)?;
        Ok(Self { repetition, definition, values: body })
    }
}

fn read_dictionary(codecs: &mut Codecs, spare: &mut Spare, chunk: &Chunk, page: &[u8], header: &PageHeader) -> Result<Dictionary, Wrong> {
    if !matches!(header.encoding, PLAIN | PLAIN_DICTIONARY) {
        return Err(format!("its dictionary has the encoding {}", header.encoding));
    }
    let body = codecs.expand(chunk.codec, stored(page, header)?, header.sizes.uncompressed)?;
    Dictionary::read(chunk.physical, body, header.sizes.values, spare)
}

impl Known<'_> {
    fn get(&mut self, codecs: &mut Codecs, spare: &mut Spare, chunk: &Chunk) -> Result<Option<&Dictionary>, Wrong> {
        if let Self::Page(page, header) = self {
            *self = Self::Dictionary(read_dictionary(codecs, spare, chunk, page, header)?);
        }
        Ok(if let Self::Dictionary(dictionary) = self { Some(dictionary) } else { None })
    }
}

/// The bytes of a page behind its header, if they are what was written.
fn stored<'a>(page: &'a [u8], header: &PageHeader) -> Result<&'a [u8], Wrong> {
    let stored = &page[header.sizes.header..header.sizes.header + header.sizes.compressed];
    if header.crc.is_some_and(|crc| crc != crc32fast::hash(stored)) {
        return Err("the checksum of a page is wrong".to_owned());
    }
    Ok(stored)
}

/// What the pages of a chunk may still ask for.
#[derive(Debug)]
struct Budget {
    entries: usize,
    /// Bytes; also those that copies of strings may have.
    room: usize,
}

/// A page may be larger than this by as much as compression can achieve.
const SMALL_PAGE: usize = 16 << 20;

/// All pages of a chunk together likewise.
const SMALL_CHUNK: usize = 256 << 20;

/// How much smaller compression makes bytes that are not few.
const RATIO: usize = 100;

impl Budget {
    fn new(chunk: &Chunk) -> Self {
        Self { entries: chunk.limit, room: SMALL_CHUNK }
    }

    /// Takes what a page claims to have.
    fn page(&mut self, header: &PageHeader) -> Result<(), Wrong> {
        let sizes = header.sizes;
        self.entries = self.entries.checked_sub(sizes.values).ok_or("its pages claim more values than their bytes can hold")?;
        let expanded = sizes.compressed.saturating_mul(RATIO);
        if sizes.uncompressed > expanded.saturating_add(SMALL_PAGE) {
            return Err("a page claims to be larger than its bytes can be".to_owned());
        }
        self.room = self.room.saturating_add(expanded);
        self.room = self.room.checked_sub(sizes.uncompressed).ok_or("its pages claim to be larger than their bytes can be")?;
        Ok(())
    }
}
