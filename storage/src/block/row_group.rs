//! A row group as the footer and its offset indexes describe it: where the bytes of which rows lie.

use std::{collections::HashMap, ops::Range, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::{
    column::{Chunk, Column, Decoder, Dictionary, Fetched, Strings, Wrong},
    thrift::{self, PageLocation},
};

/// Bytes of dictionaries that one reader keeps.
const KEPT_DICTIONARY_BYTES: usize = 1 << 20;

/// Entries that are believed of a leaf whatever the size of its row group.
const FEW_ENTRIES: u64 = 64 << 10;

/// Entries that are believed per byte of a row group: levels and numbers compress well, but not all leaves of a row do.
const ENTRIES_PER_BYTE: u64 = 32;

/// Bytes that decoded leaves may have together, whatever their size in the file.
const FEW_BYTES: u64 = 512 << 20;

/// And for each byte in the file.
const MEMORY_PER_BYTE: u64 = 100;

/// What the footer says of a row group, checked against the size of the file.
#[derive(Debug)]
pub(crate) struct RowGroup {
    pub(super) number: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    leaves: Vec<LeafChunk>,
}

#[derive(Debug)]
struct LeafChunk {
    chunk: Chunk,
    range: Range<u64>,
    offset_index: Option<Range<u64>>,
}

impl RowGroup {
    /// Row group `number` of a file of `size` bytes, of which the first `leaves` leaves are looked at.
    pub(super) fn new(footer: &ParquetMetaData, number: usize, leaves: usize, size: u64) -> Result<Self, Wrong> {
        let group = footer.row_groups().get(number).ok_or_else(|| format!("it has no row group {number}"))?;
        let ranges: Vec<_> = group.columns().iter().take(leaves).map(|chunk| chunk_range(chunk, size)).collect::<Result<_, _>>()?;
        // Chunks that overlap have no more bytes than the file.
        let bytes = ranges.iter().fold(0, |bytes: u64, range| bytes.saturating_add(range.end - range.start)).min(size);
        let limit = usize::try_from(bytes.saturating_mul(ENTRIES_PER_BYTE).saturating_add(FEW_ENTRIES)).unwrap_or(usize::MAX);
        let rows = usize::try_from(group.num_rows()).ok().filter(|&rows| rows <= limit);
        let rows = rows.ok_or_else(|| format!("row group {number} claims {} rows", group.num_rows()))?;
        let leaf = |(chunk, range): (&ColumnChunkMetaData, _)| {
            let offset_index = chunk.offset_index_range().filter(|index| index.start < index.end && index.end <= size);
            Ok(LeafChunk { chunk: Chunk::new(chunk, rows, limit)?, range, offset_index })
        };
        let leaves = group.columns().iter().zip(ranges).map(leaf).collect::<Result<_, Wrong>>()?;
        Ok(Self { number, rows, leaves })
    }

    /// Where a leaf's chunk lies in the file.
    pub(super) fn chunk_range(&self, leaf: usize) -> Range<u64> {
        self.leaves[leaf].range.clone()
    }

    /// Compressed bytes of leaves.
    pub(crate) fn bytes(&self, leaves: &[usize]) -> u64 {
        leaves.iter().map(|&leaf| self.leaves[leaf].range.end - self.leaves[leaf].range.start).sum()
    }

    /// A decoder for leaves that are in memory together.
    pub(super) fn decoder(&self, leaves: &[usize]) -> Decoder {
        let bytes = self.bytes(leaves).saturating_mul(MEMORY_PER_BYTE).saturating_add(FEW_BYTES);
        Decoder::within(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Where the offset index of a leaf lies, if it has one.
    pub(super) fn offset_index_range(&self, leaf: usize) -> Option<Range<u64>> {
        self.leaves[leaf].offset_index.clone()
    }

    /// Decodes the offset index of a leaf. Its pages lie in the chunk, one behind the other, and their first rows ascend from 0.
    pub(super) fn read_offset_index(&self, leaf: usize, bytes: &[u8]) -> Result<Vec<PageLocation>, Wrong> {
        let LeafChunk { chunk, range, .. } = &self.leaves[leaf];
        let wrong = |what: &str| format!("the offset index of \"{}\" {what}", chunk.name);
        let pages = thrift::offset_index(bytes).map_err(wrong)?;
        let mut end = range.start;
        for page in &pages {
            let next = page.offset.checked_add(page.size).filter(|&next| page.size > 0 && page.offset >= end && next <= range.end);
            end = next.ok_or_else(|| wrong("has pages that do not fit the chunk"))?;
        }
        let first = pages.first().is_some_and(|page| page.first_row == 0);
        let ascending = pages.windows(2).all(|two| two[0].first_row < two[1].first_row);
        let last = pages.last().is_none_or(|page| page.first_row < self.rows);
        if first && ascending && last { Ok(pages) } else { Err(wrong("has pages that do not fit the rows")) }
    }

    /// What of a leaf holds some rows: without an offset index, that is the whole chunk.
    pub(super) fn pages_of(&self, leaf: usize, pages: Option<&[PageLocation]>, rows: &Range<usize>) -> Wanted {
        let chunk = &self.leaves[leaf].range;
        let Some([first, ..]) = pages else { return Wanted { leaf, dictionary: None, pages: chunk.clone(), first_row: 0 } };
        let pages = pages.unwrap_or_default();
        let begin = pages.partition_point(|page| page.first_row <= rows.start).saturating_sub(1);
        let end = pages.partition_point(|page| page.first_row < rows.end).max(begin + 1);
        let (from, to) = (pages[begin], pages[end - 1]);
        Wanted {
            leaf,
            dictionary: (chunk.start < first.offset).then_some(chunk.start..first.offset),
            pages: from.offset..to.offset + to.size,
            first_row: from.first_row,
        }
    }

    /// Decodes rows of a leaf.
    pub(super) fn column(&self, decoder: &mut Decoder, leaf: usize, fetched: &Fetched, rows: Range<usize>) -> Result<Column, Wrong> {
        decoder.column(&self.leaves[leaf].chunk, fetched, rows)
    }

    /// Decodes the dictionary of a leaf.
    pub(super) fn dictionary(&self, decoder: &mut Decoder, leaf: usize, page: &Bytes) -> Result<Option<Dictionary>, Wrong> {
        decoder.dictionary(&self.leaves[leaf].chunk, page)
    }
}

/// Where the dictionary page of a chunk says that it lies, if it has one: before the data pages. Nothing is said about the file.
pub(super) fn dictionary(chunk: &ColumnChunkMetaData) -> Option<Range<i64>> {
    let data = chunk.data_page_offset();
    // Some writers say 0 when there is no dictionary.
    chunk.dictionary_page_offset().filter(|&start| 0 < start && start < data).map(|start| start..data)
}

/// Where a chunk lies in a file of `size` bytes.
pub(crate) fn chunk_range(chunk: &ColumnChunkMetaData, size: u64) -> Result<Range<u64>, Wrong> {
    let start = dictionary(chunk).map_or(chunk.data_page_offset(), |dictionary| dictionary.start);
    let range = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
    match range.and_then(|(start, length)| Some(start..start.checked_add(length)?)) {
        Some(range) if range.end <= size => Ok(range),
        _ => Err(format!("chunk of \"{}\" lies outside of the file", chunk.column_path())),
    }
}

/// What has to be fetched of a leaf to decode some rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) leaf: usize,
    /// The dictionary page, unless it is part of `pages` or there is none.
    pub(super) dictionary: Option<Range<u64>>,
    pub(super) pages: Range<u64>,
    /// The row of the first data page.
    pub(super) first_row: usize,
}

/// Parts of a file that were fetched: where each begins, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(Vec<(u64, Bytes)>);

impl Parts {
    pub(super) fn new(mut parts: Vec<(u64, Bytes)>) -> Self {
        parts.sort_by_key(|(start, _)| *start);
        Self(parts)
    }

    /// A range of the file, which lies in one of the parts.
    pub(super) fn get(&self, range: &Range<u64>) -> Result<Bytes, Wrong> {
        let before = self.0.partition_point(|(start, _)| *start <= range.start);
        let found = self.0[..before].iter().rev().find_map(|(start, bytes)| {
            let from = usize::try_from(range.start - start).ok()?;
            let to = usize::try_from(range.end.checked_sub(*start)?).ok()?;
            (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
        });
        found.ok_or_else(|| format!("bytes {} to {} were not fetched", range.start, range.end))
    }
}

/// Decoded dictionaries by row group and leaf: those that were needed first, up to 1 MiB, for as long as the reader lives. Decoding them
/// takes longer than decoding one row, and look-ups in the same block need the same ones.
#[derive(Debug, Default)]
pub(super) struct Dictionaries(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    dictionaries: HashMap<(usize, usize), Arc<Strings>>,
}

impl Dictionaries {
    pub(super) fn get(&self, row_group: usize, leaf: usize) -> Option<Arc<Strings>> {
        self.0.lock().dictionaries.get(&(row_group, leaf)).cloned()
    }

    pub(super) fn keep(&self, row_group: usize, leaf: usize, dictionary: &Arc<Strings>) {
        let mut kept = self.0.lock();
        let bytes = kept.bytes + dictionary.memory();
        if bytes <= KEPT_DICTIONARY_BYTES && !kept.dictionaries.contains_key(&(row_group, leaf)) {
            kept.bytes = bytes;
            kept.dictionaries.insert((row_group, leaf), Arc::clone(dictionary));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{fixtures, footer},
        *,
    };

    #[test]
    fn chunks_that_overlap_do_not_raise_what_is_believed() {
        let Some(blocks) = fixtures::blocks("vParquet4") else { return };
        let data = std::fs::read(blocks[0].join("data.parquet")).expect("data");
        let size = data.len() as u64;
        let length = footer::length(&data).expect("a tail") as usize;
        let honest = footer::read(&data[data.len() - length - 8..]).expect("a footer");
        let leaves = honest.row_group(0).num_columns();
        assert!(RowGroup::new(&honest, 0, leaves, size).is_ok());

        // Every chunk is the whole file, and there are more rows than its bytes can hold.
        let rows = i64::try_from(size * ENTRIES_PER_BYTE + FEW_ENTRIES).expect("small");
        let claims = |rows: i64| {
            let whole = |chunk: &ColumnChunkMetaData| {
                let chunk = chunk.clone().into_builder().set_data_page_offset(0).set_dictionary_page_offset(None);
                chunk.set_total_compressed_size(data.len() as i64).build().expect("a chunk")
            };
            let group = honest.row_group(0);
            let columns = group.columns().iter().map(whole).collect();
            let group = group.clone().into_builder().set_num_rows(rows).set_column_metadata(columns).build().expect("a row group");
            honest.clone().into_builder().set_row_groups(vec![group]).build()
        };
        assert!(RowGroup::new(&claims(rows), 0, leaves, size).is_ok());
        let error = RowGroup::new(&claims(rows + 1), 0, leaves, size).expect_err("too many rows");
        assert_eq!(error, format!("row group 0 claims {} rows", rows + 1));
    }
}
