//! Leaves of some rows of a row group: fetched together, decoded one by one when somebody asks.
//!
//! ```text
//!  Reader::dictionaries ─► what values the leaves can have: often enough to know that a row group need not be read
//!  Reader::chunks ───────► Chunks: bytes ─ column(leaf) ─► arrays
//! ```
//!
//! This is how queries read blocks: IO in one step, decoding on a thread of the caller's, and only of what turns out to be needed.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use parking_lot::Mutex;
use parquet::{
    basic::Encoding,
    file::{metadata::ColumnChunkMetaData, statistics::Statistics},
};

use super::{
    BlockError, Format, Meta,
    column::{Column, Decoder, Dictionary, Fetched, Strings, Values, Wrong},
    dedicated::{self, RESOURCE_LEAVES, SPAN_LEAVES, STATUS_CODE},
    reader::{Reader, corrupt, offset_indexes, pages},
    row_group::{Parts, RowGroup, Wanted, dictionary},
};
use crate::cache::Role;

/// What a column of an attribute belongs to.
pub use super::dedicated::Scope as OwnScope;

/// An attribute that has a leaf of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnColumn {
    /// Name of the attribute.
    pub name: String,
    /// What it belongs to.
    pub scope: OwnScope,
    /// Its leaf.
    pub leaf: usize,
    /// Whether an empty string stands for none.
    pub non_empty: bool,
}

/// Bytes of some leaves of some rows of a row group.
#[derive(Debug)]
pub struct Chunks {
    meta: Arc<Meta>,
    group: Arc<RowGroup>,
    rows: Range<usize>,
    wanted: HashMap<usize, Wanted>,
    dictionaries: SharedDictionaries,
    parts: Parts,
    bytes: usize,
    decoder: Decoder,
}

/// Dictionaries by leaf.
pub type Dictionaries = HashMap<usize, Arc<Strings>>;

/// Dictionaries of a row group, which all its rows have in common: what some rows needed the others need not decode again.
pub type SharedDictionaries = Arc<Mutex<Dictionaries>>;

impl Chunks {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether a leaf was fetched.
    pub fn has(&self, leaf: usize) -> bool {
        self.wanted.contains_key(&leaf)
    }

    /// Decodes a leaf that was fetched.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn column(&mut self, leaf: usize) -> Result<Column, BlockError> {
        let mut read = || -> Result<Column, Wrong> {
            let wanted = self.wanted.get(&leaf).ok_or_else(|| format!("leaf {leaf} was not fetched"))?;
            let fetched = wanted.fetched(&self.parts, None)?;
            let dictionary = self.dictionaries.lock().get(&leaf).map(|strings| Dictionary::Strings(Arc::clone(strings)));
            self.group.column(&mut self.decoder, leaf, &Fetched { dictionary, ..fetched }, self.rows.clone())
        };
        let column = read().map_err(|what| self.corrupt(what))?;
        if let Values::Codes { dictionary, .. } = &column.values {
            self.dictionaries.lock().entry(leaf).or_insert_with(|| Arc::clone(dictionary));
        }
        Ok(column)
    }

    /// The error that says what is wrong with this block.
    pub fn corrupt(&self, what: impl Into<String>) -> BlockError {
        corrupt(&self.meta, what)
    }

    /// Bytes that were fetched.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Reader {
    /// The leaves by name: their paths in the schema, with `[]` after what is a list, such as `rs[].ss[].Spans[].Attrs[].Key`.
    pub fn leaves(&self) -> HashMap<String, usize> {
        let schema = super::schema::of(self.format(), self.dedicated_columns());
        schema.leaves.iter().enumerate().map(|(position, leaf)| (leaf.name.clone(), position)).collect()
    }

    /// The version of the format.
    pub fn format(&self) -> Format {
        self.meta().format.parse().unwrap_or(Format::V4)
    }

    /// The attributes that have leaves of their own, in the order in which they come after the generic ones. `leaves` are the block's.
    pub fn own_columns(&self, leaves: &HashMap<String, usize>) -> Vec<OwnColumn> {
        let format = self.format();
        let mut columns = Vec::new();
        let mut add = |name: &str, scope, leaf: &str, non_empty| {
            if let Some(&leaf) = leaves.get(leaf) {
                columns.push(OwnColumn { name: name.to_owned(), scope, leaf, non_empty });
            }
        };
        for column in dedicated::assigned(format, self.dedicated_columns()) {
            add(column.name, column.scope, &column.leaf(), false);
        }
        add("service.name", OwnScope::Resource, "rs[].Resource.ServiceName", true);
        for (name, leaf) in RESOURCE_LEAVES {
            add(name, OwnScope::Resource, &format!("rs[].Resource.{leaf}"), false);
        }
        for (name, leaf) in SPAN_LEAVES.into_iter().chain([(STATUS_CODE, "HttpStatusCode")]) {
            add(name, OwnScope::Span, &format!("rs[].ss[].Spans[].{leaf}"), false);
        }
        columns
    }

    fn chunk(&self, row_group: usize, leaf: usize) -> Option<&ColumnChunkMetaData> {
        self.footer.row_groups().get(row_group)?.columns().get(leaf)
    }

    /// Smallest and largest value of a leaf of unsigned numbers in a row group, if the footer says so.
    pub fn bounds_of(&self, row_group: usize, leaf: usize) -> Option<(u64, u64)> {
        match self.chunk(row_group, leaf)?.statistics()? {
            Statistics::Int64(bounds) => Some((*bounds.min_opt()? as u64, *bounds.max_opt()? as u64)),
            _ => None,
        }
    }

    /// Compressed bytes of leaves of a row group.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn bytes_of(&self, row_group: usize, leaves: &[usize]) -> Result<u64, BlockError> {
        Ok(self.group(row_group)?.bytes(&self.known(leaves)?))
    }

    /// Bytes of memory that leaves of a row group take once they are decoded, about: two levels and a value per entry, and strings.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn memory_of(&self, row_group: usize, leaves: &[usize]) -> Result<u64, BlockError> {
        let chunks = self.known(leaves)?.into_iter().filter_map(|leaf| self.chunk(row_group, leaf));
        let size = |number: i64| u64::try_from(number).unwrap_or(0);
        let bytes = chunks.map(|chunk| size(chunk.num_values()).saturating_mul(10).saturating_add(size(chunk.uncompressed_size())));
        Ok(bytes.fold(0, u64::saturating_add))
    }

    /// Where the dictionary of a leaf lies, if all its values are strings of it.
    fn dictionary_range(&self, row_group: usize, leaf: usize) -> Option<Range<u64>> {
        let chunk = self.chunk(row_group, leaf)?;
        let coded = |encoding| matches!(encoding, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY);
        // The dictionary itself is plain, and levels are runs.
        let levels = |encoding| matches!(encoding, Encoding::RLE | Encoding::PLAIN);
        if !chunk.encodings().any(coded) || chunk.encodings().any(|encoding| !coded(encoding) && !levels(encoding)) {
            return None;
        }
        let range = dictionary(chunk)?;
        let (start, end) = (u64::try_from(range.start).ok()?, u64::try_from(range.end).ok()?);
        (end <= self.meta().size).then_some(start..end)
    }

    /// The dictionaries of some leaves of a row group, of those in which all strings that they can have stand.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn dictionaries(&self, row_group: usize, leaves: &[usize]) -> Result<Dictionaries, BlockError> {
        let group = self.group(row_group)?;
        let leaves = self.known(leaves)?;
        let wanted: Vec<_> = leaves.into_iter().filter_map(|leaf| Some((leaf, self.dictionary_range(row_group, leaf)?))).collect();
        let ranges: Vec<_> = wanted.iter().map(|(_, range)| (Role::ParquetPage, range.clone())).collect();
        let parts = self.fetch(&ranges).await?;
        self.compute(move || {
            let mut decoder = Decoder::default();
            let mut found = Dictionaries::new();
            for (leaf, range) in wanted {
                if let Some(Dictionary::Strings(strings)) = group.dictionary(&mut decoder, leaf, &parts.get(&range)?)? {
                    found.insert(leaf, strings);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Leaves of rows of a row group, all of them if `rows` is not given. Dictionaries that are known already are not fetched again.
    ///
    /// # Errors
    /// The bucket failed, the block is corrupt, or it has no such rows.
    pub async fn chunks(
        &self,
        row_group: usize,
        leaves: &[usize],
        rows: Option<Range<usize>>,
        dictionaries: &SharedDictionaries,
    ) -> Result<Chunks, BlockError> {
        let group = self.group(row_group)?;
        let leaves = self.known(leaves)?;
        let whole = 0..group.rows;
        let indexes = match &rows {
            Some(_) => {
                let ranges: Vec<_> = offset_indexes(&group, &leaves).into_iter().map(|index| (Role::ParquetOffsetIdx, index)).collect();
                self.fetch(&ranges).await?
            }
            None => Parts::default(),
        };
        let decoded: HashSet<usize> = dictionaries.lock().keys().copied().collect();
        let wanted = |&leaf: &usize| -> Result<(usize, Wanted), Wrong> {
            let all = group.chunk_range(leaf);
            let known = decoded.contains(&leaf);
            let wanted = match &rows {
                Some(rows) => {
                    let wanted = group.pages_of(leaf, pages(&group, leaf, &indexes)?.as_deref(), rows);
                    if known { Wanted { dictionary: None, ..wanted } } else { wanted }
                }
                None => {
                    let dictionary = self.dictionary_range(row_group, leaf).filter(|range| known && range.start == all.start);
                    Wanted { leaf, dictionary: None, pages: dictionary.map_or(all.start, |range| range.end)..all.end, first_row: 0 }
                }
            };
            Ok((leaf, wanted))
        };
        let wanted: HashMap<usize, Wanted> = leaves.iter().map(wanted).collect::<Result<_, Wrong>>().map_err(|what| self.corrupt(what))?;
        let ranges: Vec<_> = wanted.values().flat_map(Wanted::ranges).map(|range| (Role::ParquetPage, range)).collect();
        let bytes = ranges.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
        let parts = self.fetch(&ranges).await?;
        let rows = rows.unwrap_or(whole);
        if rows.end > group.rows {
            return Err(self.corrupt(format!("row group {row_group} has fewer rows than {}", rows.end)));
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let dictionaries = Arc::clone(dictionaries);
        Ok(Chunks { meta: Arc::clone(self.meta()), group, rows, wanted, dictionaries, parts, bytes, decoder: Decoder::default() })
    }

    /// Number of rows of a row group.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn rows_of(&self, row_group: usize) -> Result<usize, BlockError> {
        Ok(self.group(row_group)?.rows)
    }
}
