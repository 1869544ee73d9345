//! How the bytes that a merge may hold are shared out.
//!
//! ```text
//!  memory_bytes ─┬─ beside: parts of the upload; dictionaries of the largest row group of every input, compressed,
//!                │          and the largest of them decoded, of as many leaves as there are threads
//!                ├─ work:   1/2 windows │ 1/4 leaves being decoded and written │ 3/16 row groups on their way │ 1/16 dictionaries that wait
//!                └─ 3/8:    what nobody counts, and what an allocator takes for more than it gives
//! ```
//!
//! What is beside follows from the inputs and cannot be made smaller: every window of a row group needs its dictionaries. If it leaves less
//! than a quarter of the budget, that is taken all the same, and the merge may hold more than it should.

use parquet::{
    basic::Type,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData},
};

use super::{super::row_group, ROW_GROUP_BYTES, Settings, plan::Cost};

/// A fraction of the budget that the parts of an upload may take, unless they cannot be so small.
pub(super) const UPLOAD: u64 = 6;

/// A fraction of the budget that work gets, whatever is beside.
const LEAST: u64 = 4;

/// Memory for each thread, at least: with less, row groups become so small that they cost more than a further thread does.
const THREAD: usize = 64 << 20;

/// As many threads as there is memory for.
pub(super) fn threads(settings: &Settings) -> usize {
    settings.threads.min(settings.memory_bytes / THREAD).max(1)
}

/// What each kind of thing may take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// A window, compressed.
    pub(super) window: u64,
    /// A row group of the output.
    pub(super) row_group: Cost,
    /// Decoded dictionaries that wait for the next row group.
    pub(super) dictionaries: usize,
}

impl Budget {
    /// For inputs with these footers, and an output whose upload holds `upload` bytes at most.
    pub(super) fn new<'a>(settings: &Settings, upload: u64, footers: impl ExactSizeIterator<Item = &'a ParquetMetaData>) -> Self {
        let inputs = footers.len() as u64;
        let threads = settings.threads.max(1) as u64;
        let memory = settings.memory_bytes as u64;
        let beside = beside(threads, upload, footers);
        let work = (memory / 8 * 5).saturating_sub(beside).max(memory / LEAST);
        let share = |parts: u64| work / parts.max(1);
        Self {
            // Of a source, windows may be held by the row group that is encoded and by the one that is planned, and each may touch two.
            window: share(8 * inputs).max(64 << 10),
            row_group: Cost {
                stored: ROW_GROUP_BYTES.min(share(16)).max(1),
                raw: share(4 * threads).max(1),
                estimate: settings.block.row_group_size_bytes.max(1) as u64,
            },
            dictionaries: share(16) as usize,
        }
    }
}

/// Bytes that a merge holds however little it does at a time.
fn beside<'a>(threads: u64, upload: u64, footers: impl Iterator<Item = &'a ParquetMetaData>) -> u64 {
    let (mut stored, mut size) = (0u64, 0u64);
    // Of each leaf: its largest dictionary.
    let mut decoded: Vec<u64> = Vec::new();
    for footer in footers {
        let mut largest = 0;
        for group in footer.row_groups() {
            let mut sum = 0u64;
            decoded.resize(decoded.len().max(group.num_columns()), 0);
            for (chunk, decoded) in group.columns().iter().zip(&mut decoded) {
                let bytes = dictionary_bytes(chunk);
                sum = sum.saturating_add(bytes);
                *decoded = expanded(bytes, chunk).max(*decoded);
            }
            largest = largest.max(sum);
            size = size.saturating_add(u64::try_from(group.compressed_size()).unwrap_or(0));
        }
        stored = stored.saturating_add(largest);
    }
    // No two threads are at the same leaf.
    decoded.sort_unstable_by(|one, other| other.cmp(one));
    let decoded = decoded.into_iter().take(usize::try_from(threads).unwrap_or(usize::MAX)).fold(0, u64::saturating_add);
    // Its page, and the strings of that.
    stored.saturating_add(decoded.saturating_mul(2)).saturating_add(size.min(upload))
}

/// Compressed bytes of a chunk's dictionary.
fn dictionary_bytes(chunk: &ColumnChunkMetaData) -> u64 {
    let bytes = row_group::dictionary(chunk).map_or(0, |dictionary| dictionary.end - dictionary.start);
    u64::try_from(bytes.min(chunk.compressed_size())).unwrap_or(0)
}

/// What a dictionary of so many compressed bytes takes once it is decoded, about: as much as the chunk's bytes grow.
fn expanded(bytes: u64, chunk: &ColumnChunkMetaData) -> u64 {
    if chunk.column_type() != Type::BYTE_ARRAY {
        return 0;
    }
    let size = |size: i64| u128::try_from(size).unwrap_or(0);
    let grown = u128::from(bytes) * size(chunk.uncompressed_size()) / size(chunk.compressed_size()).max(1);
    u64::try_from(grown).unwrap_or(u64::MAX)
}
