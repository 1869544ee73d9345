//! Reading a block by ranges (block-format.md §10).
//!
//! ```text
//!  open   footer                                                       1 read
//!  find   bloom shard ► row group by first ids (statistics, no read) ► ids of the row group ► offset indexes ► one page per leaf
//!  scan   the chunks of the projection's leaves, neighbouring ones together
//! ```
//!
//! Ranges come from the footer and are checked against the size that the meta gives before anything is fetched. Decoding runs on a
//! blocking thread.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parquet::file::{
    metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
    page_index::{index_reader::decode_offset_index, offset_index::PageLocation},
    statistics::Statistics,
};

use super::{
    BlockError, FORMAT, Meta, Projection, Trace, bloom,
    decode::{self, Leaf, Parts, Rows, Selection, Wrong, at, chunk_range},
    encode::dedicated_names,
    schema,
};
use crate::{
    backend::{Store, StoreError},
    id::{SpanKey, TraceId},
};

/// Name of the Parquet file.
pub(crate) const DATA: &str = "data.parquet";

/// An opened block: its footer is in memory, everything else is fetched by range when asked for.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    meta: Arc<Meta>,
    footer: Arc<ParquetMetaData>,
    /// First id of every row group, once they were needed.
    first_ids: OnceLock<Vec<TraceId>>,
}

impl Reader {
    /// Reads the footer.
    ///
    /// # Errors
    /// The bucket failed, the footer is not Parquet's or does not belong to the format, or the format is not supported.
    pub async fn open(store: &Store, meta: Arc<Meta>) -> Result<Self, BlockError> {
        if meta.format != FORMAT {
            return Err(BlockError::Unsupported { block: meta.block_id, tenant: meta.tenant_id.clone(), format: meta.format.clone() });
        }
        let mut footer_size = u64::from(meta.footer_size);
        if footer_size == 0 {
            // Very old blocks do not say it.
            let start = meta.size.checked_sub(8).ok_or_else(|| corrupt(&meta, "it is too small for a footer"))?;
            let tail = fetch(store, &meta, std::slice::from_ref(&(start..meta.size))).await?;
            footer_size = footer_length(tail.first().map_or(&[], |tail| tail)).map_err(|what| corrupt(&meta, what))?;
        }
        let start = meta.size.checked_sub(footer_size + 8).ok_or_else(|| corrupt(&meta, "its footer is larger than the file"))?;
        let bytes = fetch(store, &meta, std::slice::from_ref(&(start..meta.size))).await?;
        let footer = bytes.first().map_or(Err("its footer is missing".to_owned()), |bytes| read_footer(bytes, &meta));
        let footer = footer.map_err(|what| corrupt(&meta, what))?;
        Ok(Self { store: store.clone(), meta, footer: Arc::new(footer), first_ids: OnceLock::new() })
    }

    /// The block's description.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// Number of row groups.
    pub fn row_groups(&self) -> usize {
        self.footer.num_row_groups()
    }

    /// One whole trace. Asks the bloom filter first.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn find(&self, id: TraceId) -> Result<Option<Trace>, BlockError> {
        let shard = bloom::shard_of(id, self.meta.bloom_shards);
        let filter = self.store.get(&self.meta.tenant_id, self.meta.block_id, &format!("bloom-{shard}")).await;
        let filter = filter.map_err(|source| failed(&self.meta, source))?;
        if !bloom::contains(&filter, id).map_err(|what| self.corrupt(what))? {
            return Ok(None);
        }
        let Some(row_group) = self.first_ids().await?.partition_point(|&first| first <= id).checked_sub(1) else { return Ok(None) };
        let ids = self.trace_ids(row_group).await?;
        let Ok(row) = ids.binary_search(&id) else { return Ok(None) };
        let rows = self.row(row_group, row, ids.len()).await?;
        let trace = self.compute(rows, |mut rows| rows.trace()).await?;
        if trace.trace_id != id {
            return Err(self.corrupt(format!("row {row} of row group {row_group} is not that of trace {id}")));
        }
        Ok(Some(trace))
    }

    /// The traces of one row group, in order of their ids.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn scan(&self, row_group: usize, projection: Projection) -> Result<Vec<Trace>, BlockError> {
        let resource = dedicated_names(&self.meta.dedicated_columns, "resource").len();
        let span = dedicated_names(&self.meta.dedicated_columns, "span").len();
        let (job, count) = self.chunks(row_group, decode::leaves_of(projection, resource, span)).await?;
        self.compute(job, move |job| {
            let mut rows = job.decode()?;
            (0..count).map(|_| rows.trace()).collect()
        })
        .await
    }

    /// Identity of every span of the block, for recovery.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn span_keys(&self) -> Result<BTreeMap<TraceId, Vec<SpanKey>>, BlockError> {
        let mut keys = BTreeMap::new();
        for row_group in 0..self.row_groups() {
            let (job, count) = self.chunks(row_group, vec![at::TRACE_ID, at::SPAN_ID, at::KIND]).await?;
            let found: Vec<_> = self
                .compute(job, move |job| {
                    let mut rows = job.decode()?;
                    (0..count).map(|_| rows.span_keys()).collect()
                })
                .await?;
            keys.extend(found);
        }
        Ok(keys)
    }

    fn corrupt(&self, what: impl Into<String>) -> BlockError {
        corrupt(&self.meta, what)
    }

    /// Runs CPU-bound work where it holds nobody up.
    async fn compute<I: Send + 'static, T: Send + 'static>(
        &self,
        input: I,
        work: impl FnOnce(I) -> Result<T, Wrong> + Send + 'static,
    ) -> Result<T, BlockError> {
        let done = tokio::task::spawn_blocking(move || work(input)).await;
        done.map_err(|_| self.corrupt("its decoder panicked"))?.map_err(|what| self.corrupt(what))
    }

    /// Row group, its rows, and the largest number of entries that its leaves may have.
    fn group(&self, row_group: usize) -> Result<(&RowGroupMetaData, usize, usize), BlockError> {
        if row_group >= self.row_groups() {
            return Err(self.corrupt(format!("it has no row group {row_group}")));
        }
        let group = self.footer.row_group(row_group);
        let mut bytes = 0u64;
        for leaf in 0..at::LEAVES {
            let range = chunk_range(group.column(leaf), self.meta.size).map_err(|what| self.corrupt(what))?;
            bytes += range.end - range.start;
        }
        let limit = usize::try_from(bytes.saturating_mul(32).saturating_add(1024)).unwrap_or(usize::MAX);
        match usize::try_from(group.num_rows()) {
            Ok(rows) if rows <= limit => Ok((group, rows, limit)),
            _ => Err(self.corrupt(format!("row group {row_group} claims {} rows", group.num_rows()))),
        }
    }

    /// Fetches whole chunks of the given leaves, which are sorted.
    async fn chunks(&self, row_group: usize, leaves: Vec<usize>) -> Result<(Job, usize), BlockError> {
        let (group, rows, limit) = self.group(row_group)?;
        let ranges: Result<Vec<_>, _> = leaves.iter().map(|&leaf| chunk_range(group.column(leaf), self.meta.size)).collect();
        let ranges = ranges.map_err(|what| self.corrupt(what))?;
        let bytes = fetch(&self.store, &self.meta, &ranges).await?;
        let fetched = leaves.into_iter().zip(ranges).zip(bytes);
        let leaves = fetched.map(|((leaf, range), bytes)| (leaf, Parts(vec![(range.start, bytes)]), None)).collect();
        Ok((self.job(row_group, leaves, Selection { skip: 0, take: rows, all: rows, limit }), rows))
    }

    fn job(&self, row_group: usize, leaves: Vec<(usize, Parts, Option<Vec<PageLocation>>)>, selection: Selection) -> Job {
        let names = |scope| dedicated_names(&self.meta.dedicated_columns, scope).into_iter().map(str::to_owned).collect();
        Job { footer: Arc::clone(&self.footer), row_group, leaves, selection, rows: Rows::new(names("resource"), names("span")) }
    }

    async fn trace_ids(&self, row_group: usize) -> Result<Vec<TraceId>, BlockError> {
        let (job, rows) = self.chunks(row_group, vec![at::TRACE_ID]).await?;
        self.compute(job, move |job| {
            let mut decoded = job.decode()?;
            decoded.leaves[at::TRACE_ID].take().ok_or_else(|| "its trace ids are missing".to_owned())?.trace_ids(rows)
        })
        .await
    }

    /// First id of every row group: from the statistics, or from the ids themselves.
    async fn first_ids(&self) -> Result<&[TraceId], BlockError> {
        if let Some(known) = self.first_ids.get() {
            return Ok(known);
        }
        let mut first_ids = Vec::with_capacity(self.row_groups());
        for row_group in 0..self.row_groups() {
            let (group, ..) = self.group(row_group)?;
            let first = match group.column(at::TRACE_ID).statistics() {
                Some(Statistics::ByteArray(bounds)) if bounds.min_is_exact() => {
                    bounds.min_opt().and_then(|min| min.data().try_into().ok()).map(TraceId)
                }
                _ => None,
            };
            first_ids.push(match first {
                Some(first) => first,
                None => self.trace_ids(row_group).await?.first().copied().unwrap_or_default(),
            });
        }
        if !first_ids.is_sorted() {
            return Err(self.corrupt("its row groups are not sorted by trace id"));
        }
        Ok(self.first_ids.get_or_init(|| first_ids))
    }

    /// Fetches and decodes all leaves of one row: of every leaf the page that holds it, or the chunk if there is no offset index.
    async fn row(&self, row_group: usize, row: usize, rows: usize) -> Result<Rows, BlockError> {
        let (group, _, limit) = self.group(row_group)?;
        let resource = dedicated_names(&self.meta.dedicated_columns, "resource").len();
        let span = dedicated_names(&self.meta.dedicated_columns, "span").len();
        let leaves = decode::leaves_of(Projection::ALL, resource, span);
        let index =
            |&leaf: &usize| group.column(leaf).offset_index_range().filter(|range| range.start <= range.end && range.end <= self.meta.size);
        let indexes: Vec<Option<Range<u64>>> = leaves.iter().map(index).collect();
        let wanted: Vec<_> = indexes.iter().flatten().cloned().collect();
        let mut fetched = fetch(&self.store, &self.meta, &wanted).await?.into_iter();
        let mut plan = Vec::with_capacity(leaves.len());
        let mut ranges = Vec::new();
        for (&leaf, index) in leaves.iter().zip(&indexes) {
            let chunk = group.column(leaf);
            let range = chunk_range(chunk, self.meta.size).map_err(|what| self.corrupt(what))?;
            let pages = match index.as_ref().and_then(|_| fetched.next()) {
                Some(bytes) => Some(read_pages(&bytes, chunk, &range, rows).map_err(|what| self.corrupt(what))?),
                None => None,
            };
            let before = ranges.len();
            match &pages {
                None => ranges.push(range),
                Some(pages) => {
                    let page = pages.partition_point(|page| page.first_row_index as usize <= row) - 1;
                    let first = pages[0].offset as u64;
                    if first > range.start {
                        ranges.push(range.start..first);
                    }
                    let start = pages[page].offset as u64;
                    ranges.push(start..start + pages[page].compressed_page_size as u64);
                }
            }
            plan.push((leaf, before..ranges.len(), pages));
        }
        let bytes = fetch(&self.store, &self.meta, &ranges).await?;
        let parts = |parts: Range<usize>| Parts(parts.map(|at| (ranges[at].start, bytes[at].clone())).collect());
        let leaves = plan.into_iter().map(|(leaf, at, pages)| (leaf, parts(at), pages)).collect();
        let job = self.job(row_group, leaves, Selection { skip: row, take: 1, all: rows, limit });
        self.compute(job, Job::decode).await
    }
}

/// Fetched bytes that wait to be decoded.
#[derive(Debug)]
struct Job {
    footer: Arc<ParquetMetaData>,
    row_group: usize,
    leaves: Vec<(usize, Parts, Option<Vec<PageLocation>>)>,
    selection: Selection,
    rows: Rows,
}

impl Job {
    fn decode(mut self) -> Result<Rows, Wrong> {
        let group = self.footer.row_group(self.row_group);
        for (position, parts, pages) in self.leaves {
            let chunk = group.column(position);
            let leaf: Leaf = decode::leaf(&chunk.column_descr_ptr(), chunk, parts, pages, self.selection)?;
            self.rows.leaves[position] = Some(leaf);
        }
        Ok(self.rows)
    }
}

fn corrupt(meta: &Meta, what: impl Into<String>) -> BlockError {
    BlockError::Corrupt { block: meta.block_id, tenant: meta.tenant_id.clone(), what: what.into() }
}

fn failed(meta: &Meta, source: StoreError) -> BlockError {
    BlockError::Store { block: meta.block_id, tenant: meta.tenant_id.clone(), source: Box::new(source) }
}

/// Ranges of the Parquet file. Each answer has the length that was asked for.
async fn fetch(store: &Store, meta: &Meta, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, BlockError> {
    let bytes = store.get_ranges(&meta.tenant_id, meta.block_id, DATA, ranges).await.map_err(|source| failed(meta, source))?;
    let complete =
        bytes.len() == ranges.len() && bytes.iter().zip(ranges).all(|(bytes, range)| bytes.len() as u64 == range.end - range.start);
    if complete { Ok(bytes) } else { Err(corrupt(meta, "data.parquet is shorter than meta.json says")) }
}

fn footer_length(tail: &[u8]) -> Result<u64, Wrong> {
    match tail {
        [a, b, c, d, b'P', b'A', b'R', b'1'] => Ok(u32::from_le_bytes([*a, *b, *c, *d]).into()),
        _ => Err("data.parquet does not end as a Parquet file".to_owned()),
    }
}

/// Decodes and checks the footer with its length and magic.
fn read_footer(bytes: &[u8], meta: &Meta) -> Result<ParquetMetaData, Wrong> {
    let (footer, tail) = bytes.split_at(bytes.len().saturating_sub(8));
    if footer_length(tail)? != footer.len() as u64 {
        return Err("the length of the footer is not what meta.json says".to_owned());
    }
    let decoded = catch_unwind(AssertUnwindSafe(|| ParquetMetaDataReader::decode_metadata(footer)));
    let metadata = match decoded {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(error)) => return Err(format!("footer: {error}")),
        Err(_) => return Err("footer: its decoder panicked".to_owned()),
    };
    if let Some(difference) = schema::difference(schema::v4(), metadata.file_metadata().schema_descr()) {
        return Err(format!("its columns are not those of {}: {difference}", meta.format));
    }
    if metadata.row_groups().iter().any(|group| group.num_columns() < at::LEAVES) {
        return Err("a row group lacks columns".to_owned());
    }
    Ok(metadata)
}

/// Decodes and checks an offset index: its pages lie in the chunk, and their first rows ascend from 0.
fn read_pages(bytes: &[u8], chunk: &ColumnChunkMetaData, range: &Range<u64>, rows: usize) -> Result<Vec<PageLocation>, Wrong> {
    let wrong = |what: &dyn std::fmt::Display| format!("offset index of \"{}\": {what}", chunk.column_path());
    let decoded = catch_unwind(|| decode_offset_index(bytes)).map_err(|_| wrong(&"its decoder panicked"))?;
    let pages = decoded.map_err(|error| wrong(&error))?.page_locations().clone();
    let inside = |page: &PageLocation| {
        let start = u64::try_from(page.offset).ok()?;
        let end = start.checked_add(u64::try_from(page.compressed_page_size).ok()?)?;
        (start >= range.start && end <= range.end).then_some(())
    };
    let ascending = pages.windows(2).all(|two| two[0].first_row_index < two[1].first_row_index && two[0].offset < two[1].offset);
    let first = pages.first().is_some_and(|page| page.first_row_index == 0);
    let last = pages.last().is_some_and(|page| usize::try_from(page.first_row_index).is_ok_and(|row| row < rows));
    if !first || !last || !ascending || pages.iter().any(|page| inside(page).is_none()) {
        return Err(wrong(&"its pages do not fit the chunk"));
    }
    Ok(pages)
}
