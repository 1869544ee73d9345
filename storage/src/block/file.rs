//! A Parquet file put together from finished chunks, row group by row group, of which only the part that was not taken away is in memory.
//!
//! ```text
//!  PAR1 │ row group: chunk, chunk, … │ row group … │ offset indexes │ footer, its length, PAR1
//!       └─ row_group ─► drain ─► bucket             └─ finish ───────────────────────────────┘
//! ```
//!
//! Leaves whose chunks are the same bytes share them: the footer says of each where its chunk lies, and nothing in Parquet says that no other
//! lies there. Of a row group's hundred leaves a third have no value at all, and what they store are levels that they have in common.
//!
//! ```text
//!  footer   HttpMethod ─┐ HttpUrl ─┐ String06 ─┐ Name ─┐
//!  chunks          … [levels, no values] ◄─────┘  [ … ]◄┘
//! ```
//!
//! Invariants (block-format.md §6.2): bounds are exact on both sides; there is no column index and no key-value metadata; chunks are shared within
//! a row group only. What is kept of bytes that were drained is their metadata: about 70 bytes per chunk and 8 per page.

use std::sync::Arc;

use parquet::{
    basic::{Compression, EncodingMask, ZstdLevel},
    file::{
        metadata::{ColumnChunkMetaData, FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaData},
        statistics::Statistics,
    },
};

use super::{
    pages::{Bounds, Chunk, ColumnError, ZSTD_LEVEL},
    schema::Schema,
    thrift,
};

/// The end of a file.
#[derive(Debug)]
pub(crate) struct File {
    /// What was not drained.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the whole file.
    pub(crate) size: u64,
    pub(crate) row_groups: usize,
    /// Bytes of the footer without its length and magic.
    pub(crate) footer: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FileWriter {
    schema: Arc<Schema>,
    bytes: Vec<u8>,
    /// Bytes that were taken away.
    drained: u64,
    row_groups: Vec<Group>,
    /// Chunks of all row groups.
    chunks: Vec<Known>,
    /// Pages of all chunks: their bytes with header, and their rows.
    pages: Vec<(i32, u32)>,
    /// Chunks of the row group that is being appended.
    placed: Vec<Placed>,
}

/// What is kept of a row group.
#[derive(Clone, Copy, Debug)]
struct Group {
    start: u64,
    rows: usize,
    /// Bytes before compression.
    raw: usize,
}

/// What is kept of a chunk. There are a hundred and more in each row group, and all of them wait for the end of the file, so they are small: the
/// descriptions that the footer gets, ten times as large, are made when everything else is done.
#[derive(Debug)]
struct Known {
    start: u64,
    dictionary: usize,
    data: usize,
    entries: usize,
    raw: usize,
    pages: u32,
    encodings: EncodingMask,
    compressed: bool,
    bounds: Option<Box<Bounds>>,
}

/// Where the bytes of a chunk begin in those that were not drained, and how many they are: of its dictionary, and of its pages.
#[derive(Clone, Copy, Debug)]
struct Placed {
    start: usize,
    dictionary: usize,
    data: usize,
}

impl FileWriter {
    /// A file without row groups.
    pub(crate) fn new(schema: Arc<Schema>) -> Self {
        let bytes = b"PAR1".to_vec();
        Self { schema, bytes, drained: 0, row_groups: Vec::new(), chunks: Vec::new(), pages: Vec::new(), placed: Vec::new() }
    }

    /// Bytes of the file so far.
    pub(crate) fn size(&self) -> u64 {
        self.drained + self.bytes.len() as u64
    }

    /// Makes room for so many bytes at once, instead of by doubling.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    /// Appends a row group of `rows` rows. `chunks` come in the order of the leaves, one of each.
    ///
    /// # Errors
    /// There are too few or too many chunks, or they have other rows.
    pub(crate) fn row_group(
        &mut self,
        rows: usize,
        chunks: impl IntoIterator<Item = Result<Chunk, ColumnError>>,
    ) -> Result<(), ColumnError> {
        let (start, first) = (self.size(), self.chunks.len());
        let mut raw = 0;
        self.placed.clear();
        for chunk in chunks {
            let chunk = chunk?;
            raw += chunk.raw;
            self.chunk(self.chunks.len() - first, rows, chunk)?;
        }
        if self.chunks.len() - first < self.schema.leaves.len() {
            return Err(shape("", "a row group has fewer leaves than the schema"));
        }
        self.row_groups.push(Group { start, rows, raw });
        Ok(())
    }

    fn chunk(&mut self, position: usize, rows: usize, chunk: Chunk) -> Result<(), ColumnError> {
        let name = self.schema.leaves.get(position).map(|leaf| &leaf.name).ok_or_else(|| shape("", "the schema has no such leaf"))?;
        if chunk.pages.iter().map(|page| page.rows).sum::<usize>() != rows {
            return Err(shape(name, "the pages have other rows than the row group"));
        }
        for page in &chunk.pages {
            let too_large = |_| ColumnError::TooLarge { leaf: name.clone(), bytes: page.length };
            self.pages.push((i32::try_from(page.length).map_err(too_large)?, page.rows as u32));
        }
        let known = Known {
            start: self.place(&chunk),
            dictionary: chunk.dictionary.len(),
            data: chunk.data.len(),
            entries: chunk.entries,
            raw: chunk.raw,
            pages: chunk.pages.len() as u32,
            encodings: EncodingMask::new_from_encodings(chunk.encodings.iter()),
            compressed: chunk.compressed,
            bounds: chunk.bounds.map(Box::new),
        };
        self.chunks.push(known);
        Ok(())
    }

    /// Where the bytes of a chunk lie in the file: where an earlier leaf of the row group has the same ones, or else at the end.
    fn place(&mut self, chunk: &Chunk) -> u64 {
        let Chunk { dictionary, data, .. } = chunk;
        let same = |placed: &&Placed| {
            let (first, rest) = self.bytes[placed.start..].split_at(placed.dictionary);
            (placed.dictionary, placed.data) == (dictionary.len(), data.len()) && first == dictionary && rest.starts_with(data)
        };
        if let Some(known) = self.placed.iter().find(same) {
            return self.drained + known.start as u64;
        }
        let placed = Placed { start: self.bytes.len(), dictionary: dictionary.len(), data: data.len() };
        self.bytes.extend_from_slice(dictionary);
        self.bytes.extend_from_slice(data);
        self.placed.push(placed);
        self.drained + placed.start as u64
    }

    /// Takes the bytes that were written since the last time.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        self.drained += self.bytes.len() as u64;
        std::mem::take(&mut self.bytes)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The footer cannot be written.
    pub(crate) fn finish(mut self, created_by: &str) -> Result<File, ColumnError> {
        let schema = Arc::clone(&self.schema);
        let mut indexes = self.offset_indexes().into_iter();
        let mut chunks = std::mem::take(&mut self.chunks).into_iter();
        let mut groups = Vec::with_capacity(self.row_groups.len());
        let mut rows = 0;
        for (ordinal, group) in self.row_groups.iter().enumerate() {
            let columns = chunks.by_ref().take(schema.leaves.len()).zip(&mut indexes).enumerate();
            let columns = columns.map(|(leaf, (chunk, index))| chunk.described(&schema, leaf, index)).collect::<Result<_, _>>()?;
            let described = RowGroupMetaData::builder(Arc::clone(&schema.parquet))
                .set_column_metadata(columns)
                .set_num_rows(group.rows as i64)
                .set_total_byte_size(group.raw as i64)
                .set_ordinal(ordinal as i32)
                .set_file_offset(group.start as i64)
                .build()?;
            groups.push(described);
            rows += group.rows as i64;
        }
        let about = FileMetaData::new(2, rows, Some(created_by.to_owned()), None, Arc::clone(&schema.parquet), None);
        let metadata = ParquetMetaDataBuilder::new(about).set_row_groups(groups).build();
        let start = self.bytes.len();
        ParquetMetaDataWriter::new(&mut self.bytes, &metadata).finish()?;
        // Length and magic follow.
        let footer = self.bytes.len() - start - 8;
        Ok(File { size: self.size(), bytes: self.bytes, row_groups: self.row_groups.len(), footer })
    }

    /// Writes the offset indexes of all chunks. Returns where each begins, and its bytes.
    fn offset_indexes(&mut self) -> Vec<(u64, u32)> {
        let mut places = Vec::with_capacity(self.chunks.len());
        let mut pages = self.pages.as_slice();
        for chunk in &self.chunks {
            let start = self.drained + self.bytes.len() as u64;
            let (own, rest) = pages.split_at(chunk.pages as usize);
            pages = rest;
            let (mut offset, mut first_row) = ((chunk.start + chunk.dictionary as u64) as i64, 0);
            let locations = own.iter().map(|&(length, rows)| {
                let location = (offset, length, first_row);
                offset += i64::from(length);
                first_row += i64::from(rows);
                location
            });
            thrift::write_offset_index(locations, &mut self.bytes);
            places.push((start, (self.drained + self.bytes.len() as u64 - start) as u32));
        }
        places
    }
}

impl Known {
    /// As the footer has it. The offset index begins at `index.0` and has `index.1` bytes.
    fn described(self, schema: &Schema, leaf: usize, index: (u64, u32)) -> Result<ColumnChunkMetaData, ColumnError> {
        let mut builder = ColumnChunkMetaData::builder(schema.parquet.column(leaf));
        if self.dictionary > 0 {
            builder = builder.set_dictionary_page_offset(Some(self.start as i64));
        }
        let integer = |value: u64| Some(value as i64);
        let statistics = self.bounds.map(|bounds| match *bounds {
            Bounds::Bytes(min, max) => Statistics::byte_array(Some(min.into()), Some(max.into()), None, Some(0), false),
            Bounds::Integers(min, max) => Statistics::int64(integer(min), integer(max), None, Some(0), false),
        });
        if let Some(statistics) = statistics {
            builder = builder.set_statistics(statistics);
        }
        let compression = if self.compressed { Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?) } else { Compression::UNCOMPRESSED };
        Ok(builder
            .set_encodings_mask(self.encodings)
            .set_num_values(self.entries as i64)
            .set_compression(compression)
            .set_total_compressed_size((self.dictionary + self.data) as i64)
            .set_total_uncompressed_size(self.raw as i64)
            .set_data_page_offset((self.start + self.dictionary as u64) as i64)
            .set_offset_index_offset(Some(index.0 as i64))
            .set_offset_index_length(Some(index.1 as i32))
            .build()?)
    }
}

fn shape(leaf: &str, what: &'static str) -> ColumnError {
    ColumnError::Shape { leaf: leaf.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use parquet::{basic::Encoding, file::metadata::ParquetMetaDataReader};

    use super::{
        super::{Format, pages::Page, schema},
        *,
    };

    /// As many row groups as make each list and number longer than one byte.
    #[test]
    fn a_footer_describes_every_row_group() {
        let schema = schema::of(Format::V4, &[]);
        for groups in [0, 1, 14, 15, 200] {
            let mut file = FileWriter::new(Arc::clone(&schema));
            let mut bytes = Vec::new();
            for group in 0..groups {
                let chunk = |leaf| Chunk {
                    dictionary: vec![1; leaf % 3],
                    data: vec![leaf as u8; 1 + group],
                    pages: vec![Page::of(group + 64, 1 + group)],
                    compressed: leaf % 2 == 0,
                    entries: leaf,
                    raw: group,
                    encodings: vec![Encoding::PLAIN],
                    bounds: (leaf == 0).then(|| Bounds::Bytes(vec![0], vec![group as u8])),
                };
                file.row_group(group + 64, (0..schema.leaves.len()).map(|leaf| Ok(chunk(leaf)))).expect("fits");
                bytes.extend(file.drain());
            }
            let file = file.finish("a test").expect("ends");
            bytes.extend(&file.bytes);
            assert_eq!(file.size, bytes.len() as u64);
            let read = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(bytes)).expect("a file");
            assert_eq!(read.file_metadata().num_rows(), (0..groups).map(|group| group as i64 + 64).sum::<i64>());
            assert_eq!(read.file_metadata().created_by(), Some("a test"));
            assert_eq!(read.num_row_groups(), groups);
            for (number, group) in read.row_groups().iter().enumerate() {
                assert_eq!((group.num_rows(), group.total_byte_size()), (number as i64 + 64, (number * schema.leaves.len()) as i64));
                for (leaf, chunk) in group.columns().iter().enumerate() {
                    assert_eq!((chunk.num_values(), chunk.uncompressed_size()), (leaf as i64, number as i64));
                    assert_eq!(chunk.compressed_size() as usize, leaf % 3 + 1 + number);
                    assert_eq!(chunk.statistics().is_some(), leaf == 0);
                }
            }
        }
    }
}
