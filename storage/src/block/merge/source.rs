//! An input, read in windows: all leaves of as many rows as the budget allows.
//!
//! ```text
//!  row group   ids, offset indexes ──► what every row costs
//!              │ small: one window        │ large: windows of about the budget, along the pages
//!              ▼                          ▼
//!  Window      of every leaf the pages that hold the window's rows     one joined read of ranges; dictionaries once per row group
//! ```
//!
//! Tempo cuts row groups at an estimate that can be a hundred megabytes of compressed bytes, so a row group does not always fit. A chunk
//! without an offset index (neither Tempo nor this release write such) is fetched whole. The dictionaries of a row group stay in memory,
//! compressed, until its last row is merged: every window needs them, however large the row group is. Decoded ones are kept within
//! a part of the budget.

use std::{
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::file::metadata::RowGroupMetaData;

use super::plan::{Cost, Part};
use crate::{
    backend::Store,
    block::{
        BlockError, Meta, Reader,
        column::{Column, Decoder, Fetched, Strings, Values, Wrong},
        leaf::trace_id,
        reader::{DATA, SHORT, corrupt, failed_or_short, offset_indexes, pages},
        row_group::{Parts, RowGroup, Wanted},
        thrift::PageLocation,
    },
    id::TraceId,
};

/// A row group whose rows are being handed out.
#[derive(Debug)]
struct Group {
    layout: Arc<Layout>,
    /// The dictionary pages, which all windows need, once one was fetched.
    dictionaries: Option<Vec<(u64, Bytes)>>,
    ids: Vec<TraceId>,
    costs: Vec<Cost>,
    next: usize,
}

/// Where the pages of a row group lie.
#[derive(Debug)]
struct Layout {
    group: Arc<RowGroup>,
    /// Per leaf; none if it has no offset index.
    pages: Vec<Option<Vec<PageLocation>>>,
    /// Per leaf: its dictionary, if it was decoded before.
    decoded: Vec<Mutex<Known>>,
    allowance: Arc<Allowance>,
}

/// A decoded dictionary: shared while somebody uses it, and kept for the next window while there is room for it.
#[derive(Debug, Default)]
struct Known {
    shared: Weak<Strings>,
    kept: Option<Kept>,
}

/// Bytes that the decoded dictionaries of all inputs may still take while nobody uses them.
#[derive(Debug)]
pub(super) struct Allowance(AtomicUsize);

impl Allowance {
    /// For so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Keeps a dictionary if there is room.
    fn keep(self: &Arc<Self>, dictionary: &Arc<Strings>) -> Option<Kept> {
        let bytes = dictionary.capacity();
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).ok()?;
        Some(Kept { _dictionary: Arc::clone(dictionary), bytes, allowance: Arc::clone(self) })
    }
}

/// A dictionary that was kept, until it is dropped.
#[derive(Debug)]
struct Kept {
    _dictionary: Arc<Strings>,
    bytes: usize,
    allowance: Arc<Allowance>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.allowance.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Layout {
    fn wanted(&self, leaf: usize, rows: &Range<usize>) -> Wanted {
        self.group.pages_of(leaf, self.pages[leaf].as_deref(), rows)
    }

    /// One past the last row whose pages are within the budget, or come with those of the row `first` anyway.
    fn end_of_window(&self, first: usize, budget: u64) -> usize {
        let bytes = |end: usize| -> u64 {
            let pages = |leaf| self.wanted(leaf, &(first..end)).pages;
            (0..self.pages.len()).map(pages).map(|pages| pages.end - pages.start).sum()
        };
        let limit = budget.max(bytes(first + 1));
        let (mut low, mut high) = (first + 1, self.group.rows);
        while low < high {
            let middle = high - (high - low) / 2;
            if bytes(middle) <= limit { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// Bytes of all leaves for some rows of a row group of an input.
#[derive(Debug)]
pub(super) struct Window {
    meta: Arc<Meta>,
    layout: Arc<Layout>,
    /// Row of the row group that is row 0 of the part.
    first: usize,
    parts: Parts,
}

impl Window {
    /// Decodes rows of a leaf; they are counted as those of the part.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn column(&self, decoder: &mut Decoder, leaf: usize, rows: &Range<u32>) -> Result<Column, Wrong> {
        let rows = self.first + rows.start as usize..self.first + rows.end as usize;
        let known = self.layout.decoded[leaf].lock().shared.upgrade();
        let fetched = self.layout.wanted(leaf, &rows).fetched(&self.parts, known)?;
        let column = self.layout.group.column(decoder, leaf, &fetched, rows)?;
        if let Values::Codes { dictionary, .. } = &column.values {
            let mut known = self.layout.decoded[leaf].lock();
            if known.kept.is_none() {
                *known = Known { shared: Arc::downgrade(dictionary), kept: self.layout.allowance.keep(dictionary) };
            }
        }
        Ok(column)
    }

    /// A number that windows of the same row group have in common, and no others.
    pub(super) fn group(&self) -> usize {
        Arc::as_ptr(&self.layout).addr()
    }

    /// The error that something is wrong with this input.
    pub(super) fn corrupt(&self, what: impl Into<String>) -> BlockError {
        corrupt(&self.meta, what)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Source {
    store: Store,
    reader: Reader,
    leaves: Vec<usize>,
    trace_id: usize,
    /// Compressed bytes of a window.
    budget: u64,
    allowance: Arc<Allowance>,
    next_group: usize,
    group: Option<Group>,
    last: Option<TraceId>,
}

impl Source {
    /// An input of `leaves` leaves, of which `trace_id` is that of trace ids.
    pub(super) fn new(store: &Store, reader: Reader, leaves: usize, trace_id: usize, budget: u64, allowance: Arc<Allowance>) -> Self {
        let leaves = (0..leaves).collect();
        Self { store: store.clone(), reader, leaves, trace_id, budget, allowance, next_group: 0, group: None, last: None }
    }

    fn corrupt(&self, what: impl Into<String>) -> BlockError {
        corrupt(self.reader.meta(), what)
    }

    /// The next rows; none at the end of the block.
    pub(super) async fn next(&mut self) -> Result<Option<Part<Arc<Window>>>, BlockError> {
        let mut whole = None;
        while self.group.as_ref().is_none_or(|group| group.next == group.ids.len()) {
            if self.next_group == self.reader.row_groups() {
                return Ok(None);
            }
            (self.group, whole) = self.load(self.next_group).await?;
            self.next_group += 1;
        }
        let Some(mut group) = self.group.take() else { return Ok(None) };
        let first = group.next;
        let (rows, parts) = match whole {
            Some(parts) => (first..group.ids.len(), parts),
            None => {
                let rows = first..group.layout.end_of_window(first, self.budget);
                let wanted: Vec<_> = self.leaves.iter().map(|&leaf| group.layout.wanted(leaf, &rows)).collect();
                let dictionaries = match &group.dictionaries {
                    Some(known) => known.clone(),
                    None => {
                        let pages: Vec<_> = wanted.iter().filter_map(|wanted| wanted.dictionary.clone()).collect();
                        group.dictionaries.insert(apart(self.fetch(&pages).await?)).clone()
                    }
                };
                let mut parts = apart(self.fetch(&wanted.into_iter().map(|wanted| wanted.pages).collect::<Vec<_>>()).await?);
                parts.extend(dictionaries);
                (rows, Parts::new(parts))
            }
        };
        group.next = rows.end;
        let window = Window { meta: Arc::clone(self.reader.meta()), layout: Arc::clone(&group.layout), first, parts };
        let part = Part { ids: group.ids[rows.clone()].to_vec(), costs: group.costs[rows].to_vec(), data: Arc::new(window) };
        self.group = Some(group);
        Ok(Some(part))
    }

    /// Reads what is needed to know the rows of a row group, and all of it if it fits into the budget.
    async fn load(&mut self, number: usize) -> Result<(Option<Group>, Option<Parts>), BlockError> {
        let group = self.reader.group(number)?;
        if group.rows == 0 {
            return Ok((None, None));
        }
        let whole = group.bytes(&self.leaves) <= self.budget;
        let chunks = if whole { self.leaves.as_slice() } else { std::slice::from_ref(&self.trace_id) };
        let mut ranges: Vec<_> = chunks.iter().map(|&leaf| group.chunk_range(leaf)).collect();
        ranges.extend(offset_indexes(&group, &self.leaves));
        let parts = Parts::new(self.fetch(&ranges).await?);

        let footer = Arc::clone(self.reader.footer());
        let (leaves, id_leaf, allowance) = (self.leaves.clone(), self.trace_id, Arc::clone(&self.allowance));
        let read = tokio::task::spawn_blocking(move || -> Result<_, Wrong> {
            let rows = group.rows;
            let pages: Vec<_> = leaves.iter().map(|&leaf| pages(&group, leaf, &parts)).collect::<Result<_, _>>()?;
            let chunk = Fetched::whole(parts.get(&group.chunk_range(id_leaf))?);
            let column = group.column(&mut Decoder::default(), id_leaf, &chunk, 0..rows)?;
            let id = |row| column.values.string(row).map(trace_id).ok_or_else(|| "a row has no trace id".to_owned());
            let ids: Vec<_> = (0..rows).map(id).collect::<Result<_, _>>()?;
            let layout = Layout { decoded: pages.iter().map(|_| Mutex::default()).collect(), group, pages, allowance };
            let costs = costs(footer.row_group(number), &layout);
            Ok((Group { layout: Arc::new(layout), dictionaries: None, ids, costs, next: 0 }, parts))
        });
        let (group, parts) = read.await.map_err(|_| self.corrupt("its decoder panicked"))?.map_err(|what| self.corrupt(what))?;
        if self.last.is_some_and(|last| group.ids[0] <= last) || !group.ids.is_sorted_by(|a, b| a < b) {
            return Err(self.corrupt(format!("the rows of row group {number} are not sorted by trace id")));
        }
        self.last = group.ids.last().copied();
        Ok((Some(group), whole.then_some(parts)))
    }

    /// Ranges of the Parquet file, past the cache: what a merge reads is about to be replaced.
    async fn fetch(&self, ranges: &[Range<u64>]) -> Result<Vec<(u64, Bytes)>, BlockError> {
        let meta = self.reader.meta();
        let fetched = match self.store.get_ranges(&meta.tenant_id, meta.block_id, DATA, ranges).await {
            Ok(fetched) => fetched,
            Err(source) => return Err(failed_or_short(&self.store, meta, source).await),
        };
        if !fetched.iter().zip(ranges).all(|(bytes, range)| bytes.len() as u64 == range.end - range.start) {
            return Err(self.corrupt(SHORT));
        }
        Ok(ranges.iter().map(|range| range.start).zip(fetched).collect())
    }
}

/// The same parts in memory of their own. Ranges that lie close together are read together with what is between them, often all of a row
/// group, and that would stay as long as one of them does.
fn apart(parts: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
    let mut all = Vec::with_capacity(parts.iter().map(|(_, bytes)| bytes.len()).sum());
    parts.iter().for_each(|(_, bytes)| all.extend_from_slice(bytes));
    let mut all = Bytes::from(all);
    parts.into_iter().map(|(start, bytes)| (start, all.split_to(bytes.len()))).collect()
}

/// Bits behind the point of sums of bytes per row.
const FRACTION: u32 = 10;

/// What each row costs: the pages' bytes, shared by their rows; dictionaries, memory and Tempo's estimate by all rows of the row group.
fn costs(metadata: &RowGroupMetaData, layout: &Layout) -> Vec<Cost> {
    let rows = layout.group.rows;
    // Steps up at the first row of a page, down behind its last one.
    let mut steps = vec![0i64; rows + 1];
    let mut share = |bytes: u64, rows: Range<usize>| {
        let share = (bytes << FRACTION) as i64 / rows.len().max(1) as i64;
        steps[rows.start] += share;
        steps[rows.end] -= share;
    };
    let (mut raw, mut estimate) = (0u64, 0u64);
    for (leaf, (pages, column)) in layout.pages.iter().zip(metadata.columns()).enumerate() {
        let chunk = layout.group.chunk_range(leaf);
        let mut rest = chunk.end - chunk.start;
        if let Some(pages) = pages {
            let ends = pages.iter().skip(1).map(|page| page.first_row).chain([rows]);
            for (page, end) in pages.iter().zip(ends) {
                share(page.size, page.first_row..end);
                rest = rest.saturating_sub(page.size);
            }
        }
        share(rest, 0..rows);
        let values = u64::try_from(column.num_values()).unwrap_or(0).min(1 << 32);
        let bytes = u64::try_from(column.uncompressed_size()).unwrap_or(0).min(1 << 40);
        // In memory an entry has two levels and a value; once as it was read and once as it is written.
        raw = raw.max(2 * (10 * values + bytes));
        let strings = column.column_type() == parquet::basic::Type::BYTE_ARRAY;
        estimate += values + if strings { bytes / 20 } else { 0 };
    }
    let (raw, estimate) = (raw.div_ceil(rows as u64), estimate.div_ceil(rows as u64));
    let mut stored = 0i64;
    steps.pop();
    let cost = |step| {
        stored += step;
        Cost { stored: (stored >> FRACTION).max(1) as u64, raw, estimate }
    };
    steps.into_iter().map(cost).collect()
}
