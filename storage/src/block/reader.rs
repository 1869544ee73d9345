//! Reading a block by ranges (block-format.md §10).
//!
//! ```text
//!  open     footer                                                                      1 read
//!  find     bloom shard, kept ► row group by first ids (statistics, no read)            1 read, and often all there is
//!             small row group   ► its chunks and offset indexes                         1 or 2 reads
//!             large row group   ► its ids and offset indexes                            1 or 2 reads
//!                               ► dictionaries and pages of the row                     2 or 1 reads
//!  scan     the chunks of a projection's leaves, neighbouring ones together
//!  columns  the chunks of some leaves, or of their pages those that hold some rows
//! ```
//!
//! So a look-up that finds costs at most four reads of the Parquet file, footer included, and one that does not find costs one bloom
//! shard. A row group is small when the store fetches it in one request; one read of a few MiB is then cheaper than two that wait for
//! each other, and its chunks are what scans ask for too, so they share a cache. Of a large one the pages lie far apart: the reads that
//! are left are laid so that they move the fewest bytes ([`cover`](super::cover::cover)), unless that is absurd.
//!
//! Column indexes are neither written nor read. Rows are sorted by random ids, so nearly every page of another leaf has nearly every value
//! between its bounds; what a dictionary says tells more. Of the ids they would save sixteen bytes per row of large row groups, but they lie
//! apart from the offset indexes, and a look-up that reads one after the other would need five reads.
//!
//! Every range is asked for under its role, which decides where it is cached. Ranges come from the footer and are checked against the
//! size that the meta gives before anything is fetched. Decoding runs on a blocking thread.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parquet::file::{metadata::ParquetMetaData, statistics::Statistics};
use tokio::sync::OnceCell;

use super::{
    BlockError, DedicatedColumn, Filters, Format, Meta, Projection, Trace,
    column::{Column, Decoder, Dictionary, Fetched, Strings, Values, Wrong},
    cover::cover,
    decode::{Layout, Rows},
    dedicated::known_to_2_10,
    footer,
    leaf::{Leaf, trace_id},
    row_group::{Dictionaries, Parts, RowGroup, Wanted},
    thrift::PageLocation,
};
use crate::{
    backend::{self, JOIN_MAX, Store, StoreError},
    cache::Role,
    id::{SpanKey, TraceId},
};

/// Name of the Parquet file.
pub(crate) const DATA: &str = "data.parquet";

/// Reads of the Parquet file that a look-up may cost when nothing is cached.
const LOOK_UP_READS: usize = 4;

/// Row groups that the store fetches in one request.
const SMALL_ROW_GROUP: u64 = JOIN_MAX;

/// Bytes of the file's end that are read when nobody knows how long the footer is.
const GUESSED_FOOTER: u64 = 64 << 10;

/// An opened block: its footer is in memory, everything else is fetched by range when asked for. Bloom shards are kept once they were
/// fetched, up to 1 MiB per reader; of more than that the oldest go. So are up to 1 MiB of dictionaries that look-ups needed.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    meta: Arc<Meta>,
    pub(super) footer: Arc<ParquetMetaData>,
    /// The dedicated columns that the file has leaves for.
    dedicated: Arc<[DedicatedColumn]>,
    layout: Arc<Layout>,
    filters: Arc<Filters>,
    /// Compressed bytes of row groups whose chunks a look-up fetches all at once.
    pub(super) small_row_group: u64,
    /// Where ids lie, once that was needed.
    bounds: OnceCell<Bounds>,
    dictionaries: Arc<Dictionaries>,
    /// What the footer says of the row groups that were looked at.
    groups: Vec<OnceLock<Arc<RowGroup>>>,
}

/// Which ids the row groups hold.
#[derive(Debug)]
enum Bounds {
    /// The first of every row group.
    First(Vec<TraceId>),
    /// The last of every row group.
    Last(Vec<TraceId>),
}

impl Bounds {
    /// The row group that would hold an id.
    fn find(&self, id: TraceId) -> Option<usize> {
        match self {
            Self::First(ids) => ids.partition_point(|&first| first <= id).checked_sub(1),
            Self::Last(ids) => Some(ids.partition_point(|&last| last < id)).filter(|&at| at < ids.len()),
        }
    }
}

impl Reader {
    /// Reads the footer.
    ///
    /// # Errors
    /// The bucket failed, the footer is not Parquet's or does not belong to the format, or the format is not supported.
    pub async fn open(store: &Store, meta: Arc<Meta>) -> Result<Self, BlockError> {
        let filters = Arc::new(Filters::new(Arc::clone(&meta)));
        Self::open_with(store, meta, filters).await
    }

    /// As [`Reader::open`], with bloom filters that may have been asked before.
    ///
    /// # Errors
    /// As of [`Reader::open`].
    pub async fn open_with(store: &Store, meta: Arc<Meta>, filters: Arc<Filters>) -> Result<Self, BlockError> {
        let Ok(format) = meta.format.parse::<Format>() else {
            return Err(BlockError::Unsupported { block: meta.block_id, tenant: meta.tenant_id.clone(), format: meta.format.clone() });
        };
        let bytes = footer_bytes(store, &meta).await?;
        let footer = footer::read(&bytes).map_err(|what| corrupt(&meta, what))?;
        let (dedicated, layout) = layout(format, &meta.dedicated_columns, &footer).map_err(|what| corrupt(&meta, what))?;
        if footer.row_groups().iter().any(|group| group.num_columns() < layout.leaves()) {
            return Err(corrupt(&meta, "a row group lacks columns"));
        }
        let groups = footer.row_groups().iter().map(|_| OnceLock::new()).collect();
        Ok(Self {
            store: store.clone(),
            meta,
            footer: Arc::new(footer),
            dedicated,
            layout,
            filters,
            small_row_group: SMALL_ROW_GROUP,
            bounds: OnceCell::new(),
            dictionaries: Arc::default(),
            groups,
        })
    }

    /// The block's description.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// The dedicated columns that the file has leaves for: those of the meta, but for blocks of release 2.10 with more than it knew.
    pub fn dedicated_columns(&self) -> &[DedicatedColumn] {
        &self.dedicated
    }

    /// The block's footer.
    pub fn footer(&self) -> &Arc<ParquetMetaData> {
        &self.footer
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
        if self.filters.may_hold(&self.store, id).await? { self.look_up(id).await } else { Ok(None) }
    }

    /// One whole trace, of which the bloom filter says that it may be there.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn look_up(&self, id: TraceId) -> Result<Option<Trace>, BlockError> {
        let Some(number) = self.bounds().await?.find(id) else { return Ok(None) };
        let group = self.group(number)?;
        let leaves = self.layout.leaves_of(Projection::ALL);
        let small = group.bytes(&leaves) <= self.small_row_group;
        let first = if small { leaves.clone() } else { vec![self.layout.trace_id()] };

        let mut ranges: Vec<_> = first.iter().map(|&leaf| (Role::ParquetPage, group.chunk_range(leaf))).collect();
        let indexes = offset_indexes(&group, &leaves);
        ranges.extend(indexes.iter().map(|index| (Role::ParquetOffsetIdx, index.clone())));
        let left = LOOK_UP_READS.saturating_sub(1 + requests(&ranges)).max(1);
        let parts = self.fetch(&ranges).await?;

        let row = Row { id, group, layout: Arc::clone(&self.layout), dictionaries: Arc::clone(&self.dictionaries), leaves };
        if small {
            return self.compute(move || row.locate(&parts)?.map(|(at, wanted)| row.decode(at, &wanted, &parts)).transpose()).await;
        }
        let (row, located) = self.compute(move || row.locate(&parts).map(|located| (row, located))).await?;
        let Some((at, wanted)) = located else { return Ok(None) };
        let ranges: Vec<_> = wanted.iter().flat_map(Wanted::ranges).collect();
        let ranges: Vec<_> = cover(&ranges, left).into_iter().map(|range| (Role::ParquetPage, range)).collect();
        let parts = self.fetch(&ranges).await?;
        self.compute(move || row.decode(at, &wanted, &parts)).await.map(Some)
    }

    /// The traces of one row group, in order of their ids.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn scan(&self, row_group: usize, projection: Projection) -> Result<Vec<Trace>, BlockError> {
        self.rows(row_group, self.layout.leaves_of(projection), Rows::trace).await
    }

    /// Identity of every span of the block, for recovery.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn span_keys(&self) -> Result<BTreeMap<TraceId, Vec<SpanKey>>, BlockError> {
        let mut keys = BTreeMap::new();
        for row_group in 0..self.row_groups() {
            keys.extend(self.rows(row_group, self.layout.key_leaves().to_vec(), Rows::span_keys).await?);
        }
        Ok(keys)
    }

    /// Something of every row of a row group.
    async fn rows<T: Send + 'static>(
        &self,
        row_group: usize,
        leaves: Vec<usize>,
        read: fn(&mut Rows) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, BlockError> {
        let group = self.group(row_group)?;
        let parts = self.fetch_chunks(&group, &leaves).await?;
        let layout = Arc::clone(&self.layout);
        self.compute(move || {
            let mut decoder = group.decoder(&leaves);
            let mut rows = Rows::new(layout);
            for leaf in leaves {
                rows.insert(leaf, Leaf::new(whole(&group, &mut decoder, leaf, &parts)?));
            }
            (0..group.rows).map(|_| read(&mut rows)).collect()
        })
        .await
    }

    /// Columns of all rows of a row group: of `leaves`, in their order.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn columns(&self, row_group: usize, leaves: &[usize]) -> Result<Vec<Column>, BlockError> {
        let group = self.group(row_group)?;
        let leaves = self.known(leaves)?;
        let parts = self.fetch_chunks(&group, &leaves).await?;
        self.compute(move || {
            let mut decoder = group.decoder(&leaves);
            leaves.into_iter().map(|leaf| whole(&group, &mut decoder, leaf, &parts)).collect()
        })
        .await
    }

    /// The offset indexes of some leaves of a row group, for reading their rows piece by piece.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn pages(&self, row_group: usize, leaves: &[usize]) -> Result<Pages, BlockError> {
        let group = self.group(row_group)?;
        let leaves = self.known(leaves)?;
        let ranges: Vec<_> = offset_indexes(&group, &leaves).into_iter().map(|index| (Role::ParquetOffsetIdx, index)).collect();
        let parts = self.fetch(&ranges).await?;
        let pages = leaves.iter().map(|&leaf| pages(&group, leaf, &parts)).collect::<Result<_, _>>();
        let pages = pages.map_err(|what| self.corrupt(what))?;
        let dictionaries = vec![None; leaves.len()];
        Ok(Pages { group, leaves, pages, dictionaries })
    }

    /// Columns of some rows: of the leaves of `pages`, in their order. Dictionaries are kept in `pages`, so that they are read once and
    /// are the same for all columns of a leaf.
    ///
    /// # Errors
    /// The bucket failed, the block is corrupt, or the row group has fewer rows.
    pub async fn columns_of(&self, pages: &mut Pages, rows: Range<usize>) -> Result<Vec<Column>, BlockError> {
        let group = Arc::clone(&pages.group);
        let wanted = |(at, &leaf): (usize, &usize)| {
            let wanted = group.pages_of(leaf, pages.pages[at].as_deref(), &rows);
            if pages.dictionaries[at].is_some() { Wanted { dictionary: None, ..wanted } } else { wanted }
        };
        let wanted: Vec<_> = pages.leaves.iter().enumerate().map(wanted).collect();
        let ranges: Vec<_> = wanted.iter().flat_map(Wanted::ranges).map(|range| (Role::ParquetPage, range)).collect();
        let parts = self.fetch(&ranges).await?;
        let (leaves, known) = (pages.leaves.clone(), pages.dictionaries.clone());
        let columns = self
            .compute(move || {
                let mut decoder = group.decoder(&leaves);
                let column = |(wanted, known): (Wanted, Option<Arc<Strings>>)| {
                    group.column(&mut decoder, wanted.leaf, &wanted.fetched(&parts, known)?, rows.clone())
                };
                wanted.into_iter().zip(known).map(column).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        for (kept, column) in pages.dictionaries.iter_mut().zip(&columns) {
            if let Values::Codes { dictionary, .. } = &column.values {
                kept.get_or_insert_with(|| Arc::clone(dictionary));
            }
        }
        Ok(columns)
    }

    /// The dictionary of a leaf of a row group, which says what values the leaf can have there; none if it has none.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn dictionary(&self, row_group: usize, leaf: usize) -> Result<Option<Dictionary>, BlockError> {
        let pages = self.pages(row_group, &[leaf]).await?;
        let wanted = pages.group.pages_of(leaf, pages.pages[0].as_deref(), &(0..0));
        // Without an offset index the dictionary may be anywhere in the chunk.
        let range = wanted.dictionary.unwrap_or(wanted.pages);
        let parts = self.fetch(&[(Role::ParquetPage, range.clone())]).await?;
        self.compute(move || pages.group.dictionary(&mut Decoder::default(), leaf, &parts.get(&range)?)).await
    }

    /// Checks numbers of leaves.
    pub(super) fn known(&self, leaves: &[usize]) -> Result<Vec<usize>, BlockError> {
        match leaves.iter().find(|&&leaf| leaf >= self.layout.leaves()) {
            Some(leaf) => Err(self.corrupt(format!("it has no leaf {leaf}"))),
            None => Ok(leaves.to_vec()),
        }
    }

    /// What the footer says of a row group.
    pub(super) fn group(&self, number: usize) -> Result<Arc<RowGroup>, BlockError> {
        let new = || RowGroup::new(&self.footer, number, self.layout.leaves(), self.meta.size).map_err(|what| self.corrupt(what));
        let Some(slot) = self.groups.get(number) else { return new().map(Arc::new) };
        if let Some(known) = slot.get() {
            return Ok(Arc::clone(known));
        }
        let group = new()?;
        Ok(Arc::clone(slot.get_or_init(|| Arc::new(group))))
    }

    async fn fetch_chunks(&self, group: &RowGroup, leaves: &[usize]) -> Result<Parts, BlockError> {
        let ranges: Vec<_> = leaves.iter().map(|&leaf| (Role::ParquetPage, group.chunk_range(leaf))).collect();
        self.fetch(&ranges).await
    }

    pub(super) async fn fetch(&self, ranges: &[(Role, Range<u64>)]) -> Result<Parts, BlockError> {
        fetch(&self.store, &self.meta, ranges).await
    }

    /// Which ids the row groups hold: by the statistics, by the object `index`, or by the ids themselves.
    async fn bounds(&self) -> Result<&Bounds, BlockError> {
        self.bounds.get_or_try_init(|| self.find_bounds()).await
    }

    async fn find_bounds(&self) -> Result<Bounds, BlockError> {
        let leaf = self.layout.trace_id();
        let first = |group: &parquet::file::metadata::RowGroupMetaData| match group.column(leaf).statistics() {
            // Tempo does not say whether bounds are exact. One that was cut would be shorter than an id.
            Some(Statistics::ByteArray(bounds)) => bounds.min_opt().and_then(|min| min.data().try_into().ok()).map(TraceId),
            _ => None,
        };
        let (bounds, source) = if let Some(first) = self.footer.row_groups().iter().map(first).collect::<Option<Vec<_>>>() {
            (Bounds::First(first), "statistics")
        } else if let Some(last) = self.index().await? {
            (Bounds::Last(last), "index")
        } else {
            let mut first = Vec::with_capacity(self.row_groups());
            for row_group in 0..self.row_groups() {
                let ids = self.columns(row_group, &[leaf]).await?;
                first.push(ids.first().and_then(|ids| ids.values.string(0)).map(trace_id).unwrap_or_default());
            }
            (Bounds::First(first), "ids")
        };
        let (Bounds::First(ids) | Bounds::Last(ids)) = &bounds;
        if ids.is_sorted() { Ok(bounds) } else { Err(self.corrupt(format!("by its {source} its row groups are not sorted"))) }
    }

    /// The last id of every row group by the object `index`, if it is there and fits.
    async fn index(&self) -> Result<Option<Vec<TraceId>>, BlockError> {
        #[derive(serde::Deserialize)]
        struct Index {
            #[serde(rename = "rowGroups")]
            row_groups: Vec<String>,
        }
        let bytes = match self.store.read(Role::TraceIdIndex, &self.meta.tenant_id, self.meta.block_id, "index").await {
            Ok(bytes) => bytes,
            Err(StoreError { source: object_store::Error::NotFound { .. }, .. }) => return Ok(None),
            Err(source) => return Err(failed(&self.meta, source)),
        };
        let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return Ok(None) };
        let id = |text: &String| STANDARD.decode(text).ok()?.try_into().ok().map(TraceId);
        let ids = index.row_groups.iter().map(id).collect::<Option<Vec<_>>>();
        Ok(ids.filter(|ids| ids.len() == self.row_groups()))
    }

    pub(super) fn corrupt(&self, what: impl Into<String>) -> BlockError {
        corrupt(&self.meta, what)
    }

    /// Runs CPU-bound work where it holds nobody up.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Wrong> + Send + 'static,
    ) -> Result<T, BlockError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| self.corrupt("its decoder panicked"))?.map_err(|what| self.corrupt(what))
    }
}

/// Where the pages of some leaves of a row group lie, and their dictionaries as far as they were needed.
#[derive(Debug)]
pub struct Pages {
    group: Arc<RowGroup>,
    leaves: Vec<usize>,
    /// By position in `leaves`; none if the leaf has no offset index.
    pages: Vec<Option<Vec<PageLocation>>>,
    dictionaries: Vec<Option<Arc<Strings>>>,
}

impl Pages {
    /// Number of rows of the row group.
    pub fn rows(&self) -> usize {
        self.group.rows
    }

    /// Compressed bytes of all pages that hold some rows, dictionaries left out.
    pub fn bytes(&self, rows: &Range<usize>) -> u64 {
        let bytes = |(at, &leaf): (usize, &usize)| {
            let pages = self.group.pages_of(leaf, self.pages[at].as_deref(), rows).pages;
            pages.end - pages.start
        };
        self.leaves.iter().enumerate().map(bytes).sum()
    }
}

/// A trace that is looked for in a row group.
#[derive(Debug)]
struct Row {
    id: TraceId,
    group: Arc<RowGroup>,
    layout: Arc<Layout>,
    dictionaries: Arc<Dictionaries>,
    leaves: Vec<usize>,
}

impl Row {
    /// The row of the trace, and where its pages lie.
    fn locate(&self, parts: &Parts) -> Result<Option<(usize, Vec<Wanted>)>, Wrong> {
        let ids = whole(&self.group, &mut Decoder::default(), self.layout.trace_id(), parts)?;
        let id = |row: usize| ids.values.string(row).map(trace_id).ok_or("its trace ids are no strings");
        let (mut low, mut high) = (0, self.group.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            if id(middle)? < self.id { low = middle + 1 } else { high = middle }
        }
        if low == self.group.rows || id(low)? != self.id {
            return Ok(None);
        }
        let wanted = |&leaf: &usize| Ok(self.group.pages_of(leaf, pages(&self.group, leaf, parts)?.as_deref(), &(low..low + 1)));
        let wanted = self.leaves.iter().map(wanted).collect::<Result<_, Wrong>>()?;
        Ok(Some((low, wanted)))
    }

    /// The trace, in this row.
    fn decode(&self, row: usize, wanted: &[Wanted], parts: &Parts) -> Result<Trace, Wrong> {
        let mut decoder = self.group.decoder(&self.leaves);
        let mut rows = Rows::new(Arc::clone(&self.layout));
        for wanted in wanted {
            let known = self.dictionaries.get(self.group.number, wanted.leaf);
            let fetched = wanted.fetched(parts, known)?;
            let column = self.group.column(&mut decoder, wanted.leaf, &fetched, row..row + 1)?;
            if let Values::Codes { dictionary, .. } = &column.values {
                self.dictionaries.keep(self.group.number, wanted.leaf, dictionary);
            }
            rows.insert(wanted.leaf, Leaf::new(column));
        }
        let trace = rows.trace()?;
        if trace.trace_id != self.id {
            return Err(format!("row {row} of row group {} is not that of trace {}", self.group.number, self.id));
        }
        Ok(trace)
    }
}

impl Wanted {
    /// The pages, in the order of the file.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.dictionary.iter().cloned().chain([self.pages.clone()])
    }

    /// What was fetched of them; the dictionary may be known already.
    pub(super) fn fetched(&self, parts: &Parts, dictionary: Option<Arc<Strings>>) -> Result<Fetched, Wrong> {
        let dictionary_page = self.dictionary.as_ref().filter(|_| dictionary.is_none());
        let pages = dictionary_page.into_iter().chain([&self.pages]).map(|range| parts.get(range)).collect::<Result<_, _>>()?;
        Ok(Fetched { dictionary: dictionary.map(Dictionary::Strings), pages, first_row: self.first_row })
    }
}

/// What the leaves of a file are, and the dedicated columns that it has leaves for, of those in its meta.
fn layout(format: Format, columns: &[DedicatedColumn], footer: &ParquetMetaData) -> Result<(Arc<[DedicatedColumn]>, Arc<Layout>), Wrong> {
    let file = footer.file_metadata().schema_descr();
    let wrong = match Layout::of(format, columns, file) {
        Ok(layout) => return Ok((columns.into(), layout)),
        Err(wrong) => wrong,
    };
    let fewer = known_to_2_10(columns);
    match Layout::of(format, &fewer, file) {
        Ok(layout) if format == Format::V5 => Ok((fewer.into(), layout)),
        _ => Err(wrong),
    }
}

/// The column of all rows of a leaf.
fn whole(group: &RowGroup, decoder: &mut Decoder, leaf: usize, parts: &Parts) -> Result<Column, Wrong> {
    group.column(decoder, leaf, &Fetched::whole(parts.get(&group.chunk_range(leaf))?), 0..group.rows)
}

/// The offset index of a leaf, if it has one.
pub(super) fn pages(group: &RowGroup, leaf: usize, parts: &Parts) -> Result<Option<Vec<PageLocation>>, Wrong> {
    let Some(range) = group.offset_index_range(leaf) else { return Ok(None) };
    group.read_offset_index(leaf, &parts.get(&range)?).map(Some)
}

/// Where the offset indexes of some leaves lie: in one piece where that is not much more than they are.
pub(super) fn offset_indexes(group: &RowGroup, leaves: &[usize]) -> Vec<Range<u64>> {
    let ranges: Vec<_> = leaves.iter().filter_map(|&leaf| group.offset_index_range(leaf)).collect();
    backend::join(&ranges)
}

/// How many requests the store makes of ranges when none is cached.
fn requests(ranges: &[(Role, Range<u64>)]) -> usize {
    let ranges: Vec<_> = ranges.iter().map(|(_, range)| range.clone()).collect();
    backend::join(&ranges).len()
}

pub(super) fn corrupt(meta: &Meta, what: impl Into<String>) -> BlockError {
    BlockError::Corrupt { block: meta.block_id, tenant: meta.tenant_id.clone(), what: what.into() }
}

pub(super) fn failed(meta: &Meta, source: StoreError) -> BlockError {
    BlockError::Store { block: meta.block_id, tenant: meta.tenant_id.clone(), source: Box::new(source) }
}

pub(super) const SHORT: &str = "data.parquet is shorter than meta.json says";

/// The error of a read that the bucket refused. Each bucket has its own words for a range behind the end of an object, so its size says
/// whether it was that, which trying again does not change.
pub(super) async fn failed_or_short(store: &Store, meta: &Meta, source: StoreError) -> BlockError {
    let there = if source.is_not_found() { None } else { store.size(&meta.tenant_id, meta.block_id, DATA).await.ok().flatten() };
    if there.is_some_and(|size| size < meta.size) { corrupt(meta, SHORT) } else { failed(meta, source) }
}

/// The footer with its length and magic. Metas of the first releases do not say how long it is.
async fn footer_bytes(store: &Store, meta: &Meta) -> Result<Bytes, BlockError> {
    let one = async |start: u64| {
        let range = start..meta.size;
        let parts = fetch(store, meta, &[(Role::ParquetFooter, range.clone())]).await?;
        parts.get(&range).map_err(|what| corrupt(meta, what))
    };
    let start =
        |length: u64| meta.size.checked_sub(length + footer::TAIL).ok_or_else(|| corrupt(meta, "its footer is larger than the file"));
    if meta.footer_size > 0 {
        return one(start(meta.footer_size.into())?).await;
    }
    let guess = one(meta.size.saturating_sub(GUESSED_FOOTER)).await?;
    let start = start(footer::length(&guess).map_err(|what| corrupt(meta, what))?)?;
    match start.checked_sub(meta.size - guess.len() as u64) {
        Some(skip) => Ok(guess.slice(skip as usize..)),
        None => one(start).await,
    }
}

/// Ranges of the Parquet file.
async fn fetch(store: &Store, meta: &Meta, ranges: &[(Role, Range<u64>)]) -> Result<Parts, BlockError> {
    let bytes = match store.read_ranges(&meta.tenant_id, meta.block_id, DATA, ranges).await {
        Ok(bytes) => bytes,
        Err(source) => return Err(failed_or_short(store, meta, source).await),
    };
    let complete =
        bytes.len() == ranges.len() && bytes.iter().zip(ranges).all(|(bytes, (_, range))| bytes.len() as u64 == range.end - range.start);
    if !complete {
        return Err(corrupt(meta, SHORT));
    }
    Ok(Parts::new(ranges.iter().map(|(_, range)| range.start).zip(bytes).collect()))
}
