//! The few Thrift structures that lie outside the footer: page headers and offset indexes, in the compact protocol.
//!
//! Both are written and read here because pages are; everything else of the footer is the `parquet` crate's. That crate allocates by the
//! numbers of a schema and recurses as deep as a schema says, so the begin of a footer is looked at here first.

use super::encoding::{varint, zigzag};

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

/// A structure being written. Fields come in ascending order.
struct Struct<'a> {
    out: &'a mut Vec<u8>,
    last: u8,
}

impl Struct<'_> {
    fn field(&mut self, id: u8, kind: u8) {
        self.out.push((id - self.last) << 4 | kind);
        self.last = id;
    }

    fn int(&mut self, id: u8, value: i32) {
        self.field(id, I32);
        zigzag(value.into(), self.out);
    }

    fn long(&mut self, id: u8, value: i64) {
        self.field(id, I64);
        zigzag(value, self.out);
    }

    fn nested(&mut self, id: u8, fill: impl FnOnce(&mut Struct<'_>)) {
        self.field(id, STRUCT);
        structure(self.out, fill);
    }
}

fn structure(out: &mut Vec<u8>, fill: impl FnOnce(&mut Struct<'_>)) {
    let mut fields = Struct { out, last: 0 };
    fill(&mut fields);
    fields.out.push(0);
}

/// What a page header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) dictionary: bool,
    pub(crate) uncompressed: i32,
    pub(crate) compressed: i32,
    /// CRC-32 of the bytes after the header.
    pub(crate) crc: u32,
    pub(crate) values: i32,
    /// Parquet's number of the encoding of the values.
    pub(crate) encoding: i32,
}

/// Parquet's number of the encoding RLE, that of the levels.
const RLE: i32 = 3;

/// Writes a dictionary page's or a (version 1) data page's header.
pub(crate) fn write_page_header(page: &Page, out: &mut Vec<u8>) {
    structure(out, |header| {
        header.int(1, if page.dictionary { 2 } else { 0 });
        header.int(2, page.uncompressed);
        header.int(3, page.compressed);
        header.int(4, page.crc as i32);
        header.nested(if page.dictionary { 7 } else { 5 }, |inner| {
            inner.int(1, page.values);
            inner.int(2, page.encoding);
            if !page.dictionary {
                inner.int(3, RLE);
                inner.int(4, RLE);
            }
        });
    });
}

/// Writes an offset index: offset in the file, bytes with header, and first row of each page.
pub(crate) fn write_offset_index(pages: impl ExactSizeIterator<Item = (i64, i32, i64)>, out: &mut Vec<u8>) {
    structure(out, |index| {
        index.field(1, LIST);
        let count = pages.len();
        if count < 15 {
            index.out.push((count as u8) << 4 | STRUCT);
        } else {
            index.out.push(0xf0 | STRUCT);
            varint(count as u64, index.out);
        }
        for (offset, bytes, first_row) in pages {
            structure(index.out, |page| {
                page.long(1, offset);
                page.int(2, bytes);
                page.long(3, first_row);
            });
        }
    });
}

/// Sizes of a page found in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageSizes {
    /// Bytes of the header.
    pub(crate) header: usize,
    /// Bytes stored after the header.
    pub(crate) compressed: usize,
    /// Bytes that decoding will ask for.
    pub(crate) uncompressed: usize,
    /// Values that the page says it has.
    pub(crate) values: usize,
}

/// What a page found in a chunk is; numbers are those of Parquet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) sizes: PageSizes,
    /// 0 is a data page of version 1, 2 a dictionary, 3 a data page of version 2.
    pub(crate) kind: i64,
    /// CRC-32 of the stored bytes, if the writer gave one.
    pub(crate) crc: Option<u32>,
    /// Encoding of the values.
    pub(crate) encoding: i64,
    /// Whether the levels have the encoding RLE, as those of version 2 always have.
    pub(crate) rle_levels: bool,
    /// What only data pages of version 2 say.
    pub(crate) v2: Option<PageV2>,
}

/// What the header of a data page of version 2 says beyond that of version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageV2 {
    pub(crate) rows: usize,
    /// Bytes of the definition levels, which are not compressed and come second.
    pub(crate) definition: usize,
    /// Bytes of the repetition levels, which are not compressed and come first.
    pub(crate) repetition: usize,
    /// Whether the values are compressed.
    pub(crate) compressed: bool,
}

/// Kinds of pages.
pub(crate) const DATA_PAGE: i64 = 0;
pub(crate) const DICTIONARY_PAGE: i64 = 2;
pub(crate) const DATA_PAGE_V2: i64 = 3;

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// What is wrong with it. All sizes of an accepted header are non-negative, and the page lies inside `bytes`.
pub(crate) fn page_header(bytes: &[u8]) -> Result<PageHeader, String> {
    read_page_header(bytes).map_err(|what| format!("a page header {what}"))
}

fn read_page_header(bytes: &[u8]) -> Result<PageHeader, &'static str> {
    let mut input = Input { bytes, at: 0 };
    let (mut uncompressed, mut compressed, mut values) = (None, None, 0);
    let (mut page, mut crc, mut encoding, mut levels) = (-1, None, -1, [-1; 2]);
    let (mut rows, mut lengths, mut packed) = (None, [0; 2], true);
    input.fields(|input, id, kind| match (id, kind) {
        (1, I32) => input.long().map(|value| page = value),
        (2, I32) => input.long().map(|size| uncompressed = Some(size)),
        (3, I32) => input.long().map(|size| compressed = Some(size)),
        (4, I32) => input.long().map(|value| crc = Some(value as u32)),
        (8, STRUCT) => input.fields(|input, id, kind| match (id, kind) {
            (1, I32) => input.long().map(|count| values = count),
            (3, I32) => input.long().map(|count| rows = Some(count)),
            (4, I32) => input.long().map(|value| encoding = value),
            (5, I32) => input.long().map(|length| lengths[0] = length),
            (6, I32) => input.long().map(|length| lengths[1] = length),
            (7, TRUE | FALSE) => {
                packed = kind == TRUE;
                Ok(())
            }
            _ => input.skip(kind, 16),
        }),
        (5 | 7, STRUCT) => input.fields(|input, id, kind| match (id, kind) {
            (1, I32) => input.long().map(|count| values = count),
            (2, I32) => input.long().map(|value| encoding = value),
            (3, I32) => input.long().map(|value| levels[0] = value),
            (4, I32) => input.long().map(|value| levels[1] = value),
            _ => input.skip(kind, 16),
        }),
        _ => input.skip(kind, 16),
    })?;
    let size = |value: Option<i64>| value.and_then(|v| usize::try_from(v).ok()).ok_or("has a negative or missing size");
    let sizes =
        PageSizes { header: input.at, compressed: size(compressed)?, uncompressed: size(uncompressed)?, values: size(Some(values))? };
    if sizes.compressed > bytes.len() - input.at {
        return Err("is of a page longer than its chunk");
    }
    let mut v2 = None;
    if page == DATA_PAGE_V2 {
        let [definition, repetition] = [size(Some(lengths[0]))?, size(Some(lengths[1]))?];
        if definition.checked_add(repetition).is_none_or(|levels| levels > sizes.compressed || levels > sizes.uncompressed) {
            return Err("has levels longer than the page");
        }
        v2 = Some(PageV2 { rows: size(rows)?, definition, repetition, compressed: packed });
    }
    let rle_levels = v2.is_some() || levels == [i64::from(RLE); 2];
    Ok(PageHeader { sizes, kind: page, crc, encoding, rle_levels, v2 })
}

/// Where a page lies, as an offset index says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageLocation {
    /// Where its header begins in the file.
    pub(crate) offset: u64,
    /// Bytes of header and body.
    pub(crate) size: u64,
    /// Its first row, counted from that of the row group.
    pub(crate) first_row: usize,
}

/// Reads an offset index.
///
/// # Errors
/// What is wrong with it. Whether the pages fit the chunk is for the caller to see.
pub(crate) fn offset_index(bytes: &[u8]) -> Result<Vec<PageLocation>, &'static str> {
    const NUMBER: &str = "has a negative or missing number";
    let mut input = Input { bytes, at: 0 };
    let mut pages = Vec::new();
    input.fields(|input, id, kind| {
        if (id, kind) != (1, LIST) {
            return input.skip(kind, 16);
        }
        let count = input.list(STRUCT)?;
        for _ in 0..count {
            let (mut offset, mut size, mut first_row) = (-1, -1, -1);
            input.fields(|input, id, kind| match (id, kind) {
                (1, I64) => input.long().map(|value| offset = value),
                (2, I32) => input.long().map(|value| size = value),
                (3, I64) => input.long().map(|value| first_row = value),
                _ => input.skip(kind, 16),
            })?;
            let page = PageLocation {
                offset: u64::try_from(offset).map_err(|_| NUMBER)?,
                size: u64::try_from(size).map_err(|_| NUMBER)?,
                first_row: usize::try_from(first_row).map_err(|_| NUMBER)?,
            };
            pages.push(page);
        }
        Ok(())
    })?;
    Ok(pages)
}

/// Elements of a schema: those of blocks have some hundred.
const MAX_ELEMENTS: u64 = 4096;

/// Groups within groups of a schema: those of blocks are 20 deep.
const MAX_GROUPS: usize = 32;

/// Bytes of a name in a schema. Every leaf's path repeats the names of its groups.
const MAX_NAME: u64 = 128;

/// Bytes that a row group takes in a footer, at least: those of one chunk.
const ROW_GROUP_BYTES: u64 = 16;

/// Looks at what decoding a footer will allocate and recurse by: its schema, and how many row groups it claims.
///
/// The fields up to the row groups have to be those that Parquet has, of the types that it gives them and in the order of their numbers, as
/// all writers put them. Otherwise a decoder that does not look at types would see another schema than the one that was looked at.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_footer(bytes: &[u8]) -> Result<(), &'static str> {
    let mut input = Input { bytes, at: 0 };
    input.next_field(I32)?;
    input.long()?; // Version.
    input.next_field(LIST)?;
    input.schema()?;
    input.next_field(I64)?;
    input.long()?; // Rows.
    input.next_field(LIST)?;
    let row_groups = input.list(STRUCT)?;
    let left = (bytes.len() - input.at) as u64;
    if row_groups > left / ROW_GROUP_BYTES { Err("claims more row groups than its bytes can describe") } else { Ok(()) }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let byte = *self.bytes.get(self.at).ok_or("is torn")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("has a number of more than 64 bits")
    }

    fn long(&mut self) -> Result<i64, &'static str> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn fields(&mut self, mut each: impl FnMut(&mut Self, u64, u8) -> Result<(), &'static str>) -> Result<(), &'static str> {
        let mut id = 0u64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            id = match head >> 4 {
                0 => self.long()? as u64,
                step => id.wrapping_add(u64::from(step)),
            };
            each(self, id, head & 15)?;
        }
    }

    /// Type of the elements of a list, and their number, which is at most that of the bytes.
    fn list_header(&mut self) -> Result<(u8, u64), &'static str> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        if count > self.bytes.len() as u64 {
            return Err("is torn");
        }
        Ok((head, count))
    }

    /// The number of elements of a list of this type.
    fn list(&mut self, kind: u8) -> Result<u64, &'static str> {
        match self.list_header()? {
            (head, count) if head & 15 == kind || count == 0 => Ok(count),
            _ => Err("has a list of another type"),
        }
    }

    /// The head of the field whose number follows on that of the one before.
    fn next_field(&mut self, kind: u8) -> Result<(), &'static str> {
        if self.byte()? == 1 << 4 | kind { Ok(()) } else { Err("does not begin with version, schema, rows and row groups") }
    }

    /// Passes over a schema, which is a tree, depth first.
    fn schema(&mut self) -> Result<(), &'static str> {
        let count = self.list(STRUCT)?;
        if count > MAX_ELEMENTS {
            return Err("has a schema of too many elements");
        }
        // How many children every open group has yet to get.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..count {
            let children = self.schema_element()?;
            if children > count {
                return Err("has a schema with more children than elements");
            }
            while open.pop_if(|missing| *missing == 0).is_some() {}
            if let Some(missing) = open.last_mut() {
                *missing -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            if open.len() > MAX_GROUPS {
                return Err("has a schema nested too deeply");
            }
        }
        Ok(())
    }

    /// Passes over an element of a schema; how many children it has.
    fn schema_element(&mut self) -> Result<u64, &'static str> {
        const UNKNOWN: &str = "has a schema with a field that Parquet does not have";
        let mut children = 0;
        self.fields(|input, id, kind| match (id, kind) {
            (1..=3 | 6..=9, I32) => input.long().map(drop),
            (4, BINARY) => match input.varint()? {
                length @ ..=MAX_NAME => input.skip_bytes(length),
                _ => Err("has a schema with too long a name"),
            },
            (5, I32) => {
                children = u64::try_from(input.long()?).map_err(|_| "has a schema with a negative number of children")?;
                Ok(())
            }
            // Logical types: an integer has a width and a sign, the others of blocks have nothing.
            (10, STRUCT) => input.fields(|input, id, kind| match (id, kind) {
                (10, STRUCT) => input.fields(|input, id, kind| match (id, kind) {
                    (1, BYTE) => input.skip_bytes(1),
                    (2, TRUE | FALSE) => Ok(()),
                    _ => Err(UNKNOWN),
                }),
                (_, STRUCT) => input.fields(|_, _, _| Err(UNKNOWN)),
                _ => Err(UNKNOWN),
            }),
            _ => Err(UNKNOWN),
        })?;
        Ok(children)
    }

    fn skip_bytes(&mut self, count: u64) -> Result<(), &'static str> {
        let left = (self.bytes.len() - self.at) as u64;
        if count > left {
            return Err("is torn");
        }
        self.at += count as usize;
        Ok(())
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Result<(), &'static str> {
        if depth == 0 {
            return Err("is nested too deeply");
        }
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            BINARY => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            LIST | SET => {
                let (head, count) = self.list_header()?;
                (0..count).try_for_each(|_| match head & 15 {
                    1 | 2 => self.skip_bytes(1),
                    kind => self.skip(kind, depth - 1),
                })
            }
            STRUCT => self.fields(|input, _, kind| input.skip(kind, depth - 1)),
            _ => Err("has a field of unknown type"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_and_damage_is_an_error() {
        for dictionary in [false, true] {
            let page = Page { dictionary, uncompressed: 1000, compressed: 5, crc: 0xdead_beef, values: 77, encoding: 8 };
            let mut bytes = Vec::new();
            write_page_header(&page, &mut bytes);
            let header = bytes.len();
            bytes.extend_from_slice(b"12345rest");
            let sizes = PageSizes { header, compressed: 5, uncompressed: 1000, values: 77 };
            let kind = if dictionary { 2 } else { 0 };
            let expected = PageHeader { sizes, kind, crc: Some(0xdead_beef), encoding: 8, rle_levels: !dictionary, v2: None };
            assert_eq!(page_header(&bytes), Ok(expected));
            for cut in 0..header + 5 {
                assert!(page_header(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn offset_indexes_are_read_by_the_parquet_crate() {
        for count in [0i64, 1, 14, 15, 200] {
            let mut bytes = Vec::new();
            write_offset_index((0..usize::try_from(count).expect("small")).map(|i| (i as i64 * 1000 + 4, 999, i as i64 * 7)), &mut bytes);
            let index = parquet::file::page_index::index_reader::decode_offset_index(&bytes).expect("offset index");
            let ours = offset_index(&bytes).expect("offset index");
            assert_eq!(ours.len(), index.page_locations().len());
            for (ours, theirs) in ours.iter().zip(index.page_locations()) {
                let numbers = (ours.offset as i64, ours.size as i32, ours.first_row as i64);
                assert_eq!(numbers, (theirs.offset, theirs.compressed_page_size, theirs.first_row_index));
            }
            for cut in 0..bytes.len() {
                assert!(offset_index(&bytes[..cut]).is_err());
            }
            let pages: Vec<_> = index.page_locations().iter().map(|p| (p.offset, p.compressed_page_size, p.first_row_index)).collect();
            assert_eq!(pages, (0..count).map(|i| (i * 1000 + 4, 999, i * 7)).collect::<Vec<_>>());
        }
    }
}
