//! Columns: one leaf of some rows of a row group, decoded into arrays.
//!
//! ```text
//!  chunk   dictionary page │ page │ page │ page          of the file, or only those pages that hold the rows that are wanted
//!             │               │
//!             ▼               ▼ decompress
//!         Dictionary       repetition levels ─► entries of the wanted rows ─► Column::repetition   u8 each
//!             │            definition levels ─► which of them have values ─► Column::definition   u8 each
//!             └──────────► values ────────────► only those ───────────────► Column::values        codes, strings, numbers
//! ```
//!
//! An *entry* is a pair of levels; it has a value if its definition level is the largest one of the leaf. Values are arrays without
//! gaps: nothing is allocated per value. Strings with a dictionary stay numbers of it, so that a condition on them is asked once per
//! string of the dictionary and then compared as numbers.
//!
//! Everything that Parquet knows is read: data pages of both versions, dictionaries of any type, all encodings that the types of our
//! leaves can have, and the codecs snappy, zstd, gzip and LZ4_RAW. Not read are levels in the encoding BIT_PACKED, which has been
//! deprecated since 2013, and pages that begin in the middle of a row. A chunk whose pages are partly with and partly without dictionary
//! becomes plain strings.
//!
//! The bytes are untrusted. No number of the file is believed before it was compared with a limit: entries with what the row group's bytes
//! can hold ([`Chunk::limit`]), sizes of pages with what compression can achieve, and columns that are in memory together likewise.
//! Checksums are compared where there are any.

mod codec;
mod levels;
mod pages;
mod spare;
#[cfg(test)]
mod tests;
mod values;

use bytes::Bytes;
use parquet::{
    basic::{Compression, Type as Physical},
    file::metadata::ColumnChunkMetaData,
};

pub use self::{
    pages::Decoder,
    values::{Dictionary, Strings, Values},
};

/// What is wrong with the bytes.
pub type Wrong = String;

/// Decoded entries and values of a leaf.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Repetition level of every entry; empty if the leaf is in no list, where every row has one entry.
    pub repetition: Vec<u8>,
    /// Definition level of every entry; empty if every entry has a value.
    pub definition: Vec<u8>,
    /// The values of those entries that have one.
    pub values: Values,
    /// Definition level of an entry that has a value.
    pub max_definition: u8,
    /// Repetition level of the innermost list.
    pub max_repetition: u8,
    /// Number of entries.
    pub entries: usize,
}

impl Column {
    /// Makes room for so many pages more like the one that is there, so that arrays do not have to be moved as they grow.
    fn reserve(&mut self, pages: usize) {
        /// Entries: bytes say nothing of how many there are, and more are believed only once they were decoded.
        const MOST: usize = 1 << 20;
        let more = |len: usize| len.saturating_mul(pages).min(MOST);
        self.repetition.reserve(more(self.repetition.len()));
        self.definition.reserve(more(self.definition.len()));
        self.values.reserve(more(self.values.len()));
    }

    /// Bytes of memory that it takes, about.
    fn memory(&self) -> usize {
        self.repetition.len() + self.definition.len() + self.values.memory()
    }
}

/// What decoding needs to know of a column chunk.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Name of the leaf, for errors.
    pub name: String,
    /// Type of its values.
    pub physical: Physical,
    /// Compression of its pages.
    pub codec: Compression,
    /// Definition level of an entry that has a value.
    pub max_definition: u8,
    /// Repetition level of the innermost list.
    pub max_repetition: u8,
    /// Rows of the row group.
    pub rows: usize,
    /// Largest number of entries that the chunk may claim to have.
    pub limit: usize,
}

impl Chunk {
    /// A chunk of a row group of `rows` rows, of which at most `limit` entries are believed.
    ///
    /// # Errors
    /// Its levels are deeper than any schema is.
    pub(crate) fn new(chunk: &ColumnChunkMetaData, rows: usize, limit: usize) -> Result<Self, Wrong> {
        let leaf = chunk.column_descr();
        let level = |level: i16| u8::try_from(level).ok().filter(|&level| level < 64);
        let (Some(max_definition), Some(max_repetition)) = (level(leaf.max_def_level()), level(leaf.max_rep_level())) else {
            return Err(format!("leaf \"{}\" is nested too deeply", chunk.column_path()));
        };
        Ok(Self {
            name: chunk.column_path().string(),
            physical: leaf.physical_type(),
            codec: chunk.compression(),
            max_definition,
            max_repetition,
            rows,
            limit,
        })
    }
}

/// Bytes of a chunk, as they were fetched.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Its dictionary, if it was decoded before.
    pub dictionary: Option<Dictionary>,
    /// Runs of whole pages in the order of the file: the dictionary page first, unless the dictionary is known or there is none, and
    /// data pages without a gap between them.
    pub pages: Vec<Bytes>,
    /// Row of the row group at which the first data page begins.
    pub first_row: usize,
}

impl Fetched {
    /// A whole chunk.
    pub fn whole(chunk: Bytes) -> Self {
        Self { dictionary: None, pages: vec![chunk], first_row: 0 }
    }
}
