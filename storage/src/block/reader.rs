//! Reading a block by ranges (block-format.md §10).
//!
//! ```text
//!  open   footer                                                       1 read
//!  find   bloom shard, kept ► row group by first ids (statistics, no read) ► ids of the row group and offset indexes
//!           ► of every leaf the dictionary and the page that holds the row
//!  scan   the chunks of the projection's leaves, neighbouring ones together
//! ```
//!
//! Ranges come from the footer and are checked against the size that the meta gives before anything is fetched. Decoding runs on a
//! blocking thread.
//!
//! A look-up in a block that does not have the trace reads at most one bloom shard, and nothing when it reads that shard again: a
//! reader keeps shards up to [`KEPT_BLOOM_BYTES`] (more than ten of the usual size; a block has one per 85000 traces).

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::file::{
    metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
    page_index::{index_reader::decode_offset_index, offset_index::PageLocation},
    statistics::Statistics,
};

use super::{
    BlockError, FORMAT, Meta, Projection, Trace, bloom,
    decode::{self, Rows, at},
    encode::dedicated_names,
    leaf::{self, Parts, Selection, Wrong, chunk_range},
    row::{Decoded, Decoder, Dictionaries},
    schema,
};
use crate::{
    backend::{Store, StoreError},
    id::{SpanKey, TraceId},
};

/// Name of the Parquet file.
pub(crate) const DATA: &str = "data.parquet";

/// Bytes of bloom shards that one reader keeps.
const KEPT_BLOOM_BYTES: usize = 1 << 20;

/// An opened block: its footer is in memory, everything else is fetched by range when asked for. Bloom shards are kept once they were
/// fetched, up to 1 MiB per reader; of more than that the oldest go. So are up to 1 MiB of dictionaries that look-ups needed.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    meta: Arc<Meta>,
    footer: Arc<ParquetMetaData>,
    /// First id of every row group, once they were needed.
    first_ids: OnceLock<Vec<TraceId>>,
    /// Bloom shards by number, oldest first.
    blooms: Mutex<VecDeque<(u32, Bytes)>>,
    dictionaries: Arc<Dictionaries>,
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
        Ok(Self {
            store: store.clone(),
            meta,
            footer: Arc::new(footer),
            first_ids: OnceLock::new(),
            blooms: Mutex::default(),
            dictionaries: Arc::default(),
        })
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
        if !self.may_hold(id).await? {
            return Ok(None);
        }
        let Some(row_group) = self.first_ids().await?.partition_point(|&first| first <= id).checked_sub(1) else { return Ok(None) };
        let Some(found) = self.locate(row_group, id).await? else { return Ok(None) };
        let row = found.selection.skip;
        let job = self.pages(row_group, found).await?;
        let trace = self.compute(job, |job| job.decode()?.trace()).await?;
        if trace.trace_id != id {
            return Err(self.corrupt(format!("row {row} of row group {row_group} is not that of trace {id}")));
        }
        Ok(Some(trace))
    }

    /// What the bloom filter says of an id.
    async fn may_hold(&self, id: TraceId) -> Result<bool, BlockError> {
        let shard = bloom::shard_of(id, self.meta.bloom_shards);
        let known = self.blooms.lock().iter().find(|(known, _)| *known == shard).map(|(_, filter)| filter.clone());
        if let Some(filter) = known {
            return bloom::contains(&filter, id).map_err(|what| self.corrupt(what));
        }
        let filter = self.store.get(&self.meta.tenant_id, self.meta.block_id, &format!("bloom-{shard}")).await;
        let filter = filter.map_err(|source| failed(&self.meta, source))?;
        let may_hold = bloom::contains(&filter, id).map_err(|what| self.corrupt(what))?;
        let mut kept = self.blooms.lock();
        if !kept.iter().any(|(known, _)| *known == shard) {
            kept.push_back((shard, filter));
            while kept.iter().map(|(_, filter)| filter.len()).sum::<usize>() > KEPT_BLOOM_BYTES {
                kept.pop_front();
            }
        }
        Ok(may_hold)
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
        let rows = Rows::new(names("resource"), names("span"));
        Job { footer: Arc::clone(&self.footer), dictionaries: Arc::clone(&self.dictionaries), row_group, leaves, selection, rows }
    }

    async fn trace_ids(&self, row_group: usize) -> Result<Vec<TraceId>, BlockError> {
        let (job, _) = self.chunks(row_group, vec![at::TRACE_ID]).await?;
        self.compute(job, Job::trace_ids).await
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

    /// Looks for an id among those of a row group; fetches the offset indexes on the way.
    async fn locate(&self, row_group: usize, id: TraceId) -> Result<Option<Located>, BlockError> {
        let (group, rows, limit) = self.group(row_group)?;
        let names = |scope| dedicated_names(&self.meta.dedicated_columns, scope).len();
        let leaves = decode::leaves_of(Projection::ALL, names("resource"), names("span"));
        let index =
            |&leaf: &usize| group.column(leaf).offset_index_range().filter(|range| range.start <= range.end && range.end <= self.meta.size);
        let indexes: Vec<Option<Range<u64>>> = leaves.iter().map(index).collect();
        let ids = chunk_range(group.column(at::TRACE_ID), self.meta.size).map_err(|what| self.corrupt(what))?;
        let start = ids.start;
        let wanted: Vec<_> = std::iter::once(ids).chain(indexes.iter().flatten().cloned()).collect();
        let mut fetched = fetch(&self.store, &self.meta, &wanted).await?.into_iter();
        let ids = Parts(vec![(start, fetched.next().unwrap_or_default())]);
        let mut located = Vec::with_capacity(leaves.len());
        for (leaf, index) in leaves.into_iter().zip(indexes) {
            located.push((leaf, index.and_then(|_| fetched.next())));
        }
        let whole = Selection { skip: 0, take: rows, all: rows, limit };
        let job = self.job(row_group, vec![(at::TRACE_ID, ids, None)], whole);
        let row = self.compute(job, move |job| job.row_of(id)).await?;
        Ok(row.map(|row| Located { leaves: located, selection: Selection { skip: row, take: 1, ..whole } }))
    }

    /// Fetches, for all leaves of one row, the dictionary and the page that holds the row, or the chunk if there is no offset index.
    async fn pages(&self, row_group: usize, located: Located) -> Result<Job, BlockError> {
        let (group, ..) = self.group(row_group)?;
        let Located { leaves, selection } = located;
        let mut plan = Vec::with_capacity(leaves.len());
        let mut ranges = Vec::new();
        for (leaf, index) in leaves {
            let chunk = group.column(leaf);
            let range = chunk_range(chunk, self.meta.size).map_err(|what| self.corrupt(what))?;
            let pages = index.map(|bytes| read_pages(&bytes, chunk, &range, selection.all)).transpose();
            let pages = pages.map_err(|what| self.corrupt(what))?;
            let before = ranges.len();
            match &pages {
                None => ranges.push(range),
                Some(pages) => {
                    let page = page_of(pages, selection.skip);
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
        Ok(self.job(row_group, leaves, selection))
    }
}

/// The page that holds a row. There is a first page, and its first row is 0.
fn page_of(pages: &[PageLocation], row: usize) -> usize {
    pages.partition_point(|page| page.first_row_index as usize <= row) - 1
}

/// A row, and the offset indexes of the leaves that it needs, where there are any.
#[derive(Debug)]
struct Located {
    leaves: Vec<(usize, Option<Bytes>)>,
    selection: Selection,
}

/// Fetched bytes that wait to be decoded.
#[derive(Debug)]
struct Job {
    footer: Arc<ParquetMetaData>,
    dictionaries: Arc<Dictionaries>,
    row_group: usize,
    leaves: Vec<(usize, Parts, Option<Vec<PageLocation>>)>,
    selection: Selection,
    rows: Rows,
}

impl Job {
    fn decode(mut self) -> Result<Rows, Wrong> {
        let mut decoder = Decoder::new(Arc::clone(&self.dictionaries), self.row_group).map_err(|error| error.to_string())?;
        let group = self.footer.row_group(self.row_group);
        for (position, parts, pages) in self.leaves {
            let chunk = group.column(position);
            let one = match &pages {
                Some(pages) if self.selection.take == 1 => {
                    let row = self.selection.skip - pages[page_of(pages, self.selection.skip)].first_row_index as usize;
                    decoder.leaf(position, chunk, &parts, row, self.selection.limit)?
                }
                _ => Decoded::Foreign,
            };
            self.rows.leaves[position] = Some(match one {
                Decoded::Done(leaf) => leaf,
                Decoded::Foreign => leaf::leaf(&chunk.column_descr_ptr(), chunk, parts, pages, self.selection)?,
            });
        }
        Ok(self.rows)
    }

    /// The trace ids of the row group; nothing else was fetched.
    fn trace_ids(self) -> Result<Vec<TraceId>, Wrong> {
        let Selection { all, limit, .. } = self.selection;
        if let Some((_, parts, _)) = self.leaves.first() {
            let chunk = self.footer.row_group(self.row_group).column(at::TRACE_ID);
            let mut decoder = Decoder::new(Arc::clone(&self.dictionaries), self.row_group).map_err(|error| error.to_string())?;
            if let Decoded::Done(ids) = decoder.trace_ids(chunk, parts, all, limit)? {
                return Ok(ids);
            }
        }
        let mut decoded = self.decode()?;
        decoded.leaves[at::TRACE_ID].take().ok_or_else(|| "its trace ids are missing".to_owned())?.trace_ids(all)
    }

    fn row_of(self, id: TraceId) -> Result<Option<usize>, Wrong> {
        self.trace_ids().map(|ids| ids.binary_search(&id).ok())
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
