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
//! a row group only. What is kept of bytes that were drained is their metadata: about 100 bytes per chunk and 20 per page.

use std::sync::Arc;

use parquet::{
    basic::{Compression, ZstdLevel},
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

/// Offset in the file, bytes, and first row of each page of a chunk.
type Locations = Vec<(i64, i32, i64)>;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FileWriter {
    schema: Arc<Schema>,
    bytes: Vec<u8>,
    /// Bytes that were taken away.
    drained: u64,
    row_groups: Vec<RowGroupMetaData>,
    locations: Vec<Locations>,
    rows: i64,
    /// Chunks of the row group that is being appended.
    placed: Vec<Placed>,
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
        Self { schema, bytes: b"PAR1".to_vec(), drained: 0, row_groups: Vec::new(), locations: Vec::new(), rows: 0, placed: Vec::new() }
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
        let start = self.size();
        let mut columns = Vec::with_capacity(self.schema.leaves.len());
        let mut total = 0;
        self.placed.clear();
        for chunk in chunks {
            let chunk = chunk?;
            total += chunk.raw as i64;
            columns.push(self.chunk(columns.len(), rows, &chunk)?);
        }
        let group = RowGroupMetaData::builder(Arc::clone(&self.schema.parquet))
            .set_column_metadata(columns)
            .set_num_rows(rows as i64)
            .set_total_byte_size(total)
            .set_ordinal(self.row_groups.len() as i32)
            .set_file_offset(start as i64)
            .build()?;
        self.row_groups.push(group);
        self.rows += rows as i64;
        Ok(())
    }

    fn chunk(&mut self, position: usize, rows: usize, chunk: &Chunk) -> Result<ColumnChunkMetaData, ColumnError> {
        let shape = |leaf: &str, what| ColumnError::Shape { leaf: leaf.to_owned(), what };
        let schema = Arc::clone(&self.schema);
        let leaf = schema.leaves.get(position).ok_or_else(|| shape("", "the schema has no such leaf"))?;
        if chunk.pages.iter().map(|page| page.rows).sum::<usize>() != rows {
            return Err(shape(&leaf.name, "the pages have other rows than the row group"));
        }
        let start = self.place(chunk);
        let mut builder = ColumnChunkMetaData::builder(schema.parquet.column(position));
        if !chunk.dictionary.is_empty() {
            builder = builder.set_dictionary_page_offset(Some(start as i64));
        }
        let data = (start + chunk.dictionary.len() as u64) as i64;
        let (mut offset, mut first_row) = (data, 0i64);
        let mut locations = Vec::with_capacity(chunk.pages.len());
        for page in &chunk.pages {
            let length = i32::try_from(page.length).map_err(|_| ColumnError::TooLarge { leaf: leaf.name.clone(), bytes: page.length })?;
            locations.push((offset, length, first_row));
            offset += i64::from(length);
            first_row += page.rows as i64;
        }
        self.locations.push(locations);
        let statistics = match &chunk.bounds {
            Some(Bounds::Bytes(min, max)) => {
                Some(Statistics::byte_array(Some(min.clone().into()), Some(max.clone().into()), None, Some(0), false))
            }
            Some(Bounds::Integers(min, max)) => Some(Statistics::int64(Some(*min as i64), Some(*max as i64), None, Some(0), false)),
            None => None,
        };
        if let Some(statistics) = statistics {
            builder = builder.set_statistics(statistics);
        }
        let compression = if chunk.compressed { Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?) } else { Compression::UNCOMPRESSED };
        Ok(builder
            .set_encodings(chunk.encodings.clone())
            .set_num_values(chunk.entries as i64)
            .set_compression(compression)
            .set_total_compressed_size((chunk.dictionary.len() + chunk.data.len()) as i64)
            .set_total_uncompressed_size(chunk.raw as i64)
            .set_data_page_offset(data)
            .build()?)
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
        let row_groups = self.row_groups.len();
        let mut locations = std::mem::take(&mut self.locations).into_iter();
        let mut written = Vec::with_capacity(row_groups);
        for group in std::mem::take(&mut self.row_groups) {
            let mut with_index = Vec::with_capacity(self.schema.leaves.len());
            for column in group.columns() {
                let start = self.size();
                thrift::write_offset_index(locations.next().unwrap_or_default().into_iter(), &mut self.bytes);
                let length = (self.size() - start) as i32;
                with_index.push(
                    column
                        .clone()
                        .into_builder()
                        .set_offset_index_offset(Some(start as i64))
                        .set_offset_index_length(Some(length))
                        .build()?,
                );
            }
            written.push(group.into_builder().set_column_metadata(with_index).build()?);
        }
        let about = FileMetaData::new(2, self.rows, Some(created_by.to_owned()), None, Arc::clone(&self.schema.parquet), None);
        let metadata = ParquetMetaDataBuilder::new(about).set_row_groups(written).build();
        let start = self.bytes.len();
        ParquetMetaDataWriter::new(&mut self.bytes, &metadata).finish()?;
        let footer = self.bytes.len() - start - 8;
        Ok(File { size: self.size(), bytes: self.bytes, row_groups, footer })
    }
}
