//! Which blocks are merged: the selection of block-format.md §13.1 as a function of metas and the time.
//!
//! ```text
//!  live metas ─► eligible? ─► sort by (group, order) ─► stripes of neighbours ─► jobs
//!                  │                                        └► waiting: the window is open and more will come
//!                  └ unknown version, level too high, cut-over window
//! ```
//!
//! In three things this differs from Tempo's selection, because a dataflow writes many small blocks where an ingester writes few large
//! ones, and with the times that its spans have. When `small_bytes` and `patience` are zero, the selection among Tempo's blocks is Tempo's
//! exactly.
//!
//! * *Wide stripes of small blocks.* As long as all of a stripe is no more than `small_bytes`, it takes `max_small_inputs` blocks instead
//!   of `max_inputs`.
//! * *Recent is what came in lately.* Blocks are merged by level for a day after they were ingested, even where their spans are old. Blocks
//!   of Tempo do not say when that was; their end does.
//! * *Patience.* In the window that is being written, a stripe that could still grow waits for `patience · max_inputs^level` after the
//!   end of its oldest block. At most one stripe less one block waits per level. Merging whatever is there, as Tempo does, makes pairs
//!   out of pairs: in the simulation below that writes every byte about twice as often.

use std::{sync::Arc, time::Duration};

use crate::{
    block::{DedicatedColumn, Format, Meta},
    id::Tenant,
};

/// Seconds after which blocks of a window are compacted by its owner alone and not by level. Tempo counts them from the end of the spans;
/// so do we where nothing else is known. Spans of last year that come in all day would otherwise be merged into one large block again and
/// again.
const ACTIVE_SECONDS: i64 = 24 * 3600;

/// What is merged with what.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Blocks are merged when their ends lie in the same window.
    pub window: Duration,
    /// Traces of an output, at most, counted before equal ones are combined.
    pub max_objects: u64,
    /// Bytes of the inputs of a job, at most.
    pub max_bytes: u64,
    /// Inputs of a job, at least.
    pub min_inputs: usize,
    /// Inputs of a job, at most.
    pub max_inputs: usize,
    /// Blocks of this level and above stay as they are; 0: no limit.
    pub max_level: u32,
    /// A job whose inputs are no more than this many bytes may have `max_small_inputs`.
    pub small_bytes: u64,
    /// Inputs of a job of small blocks, at most.
    pub max_small_inputs: usize,
    /// How long a job of level 0 in the window that is being written waits for more inputs.
    pub patience: Duration,
}

impl Default for Selection {
    /// Tempo's defaults, 16 inputs for jobs of up to 128 MiB, 2 min of patience.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(3600),
            max_objects: 6_000_000,
            max_bytes: 100 << 30,
            min_inputs: 2,
            max_inputs: 4,
            max_level: 0,
            small_bytes: 128 << 20,
            max_small_inputs: 16,
            patience: Duration::from_secs(120),
        }
    }
}

/// Blocks that are to become one.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Whose they are.
    pub tenant: Tenant,
    /// The blocks, smallest first.
    pub inputs: Vec<Arc<Meta>>,
    /// What its owner is found by (block-format.md §13.4).
    pub key: String,
}

impl Job {
    /// The highest level of the inputs.
    pub fn level(&self) -> u32 {
        self.inputs.iter().map(|meta| meta.compaction_level).max().unwrap_or_default()
    }

    /// Bytes of the inputs.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|meta| meta.size).sum()
    }
}

/// A block with what it is sorted and grouped by. Texts, since Tempo compares texts.
#[derive(Clone, Debug)]
struct Entry {
    group: String,
    order: String,
    hash: u64,
    /// Whole windows since the one of the block's end; only in active windows.
    active_age: Option<i64>,
    key: String,
    meta: Arc<Meta>,
}

/// The jobs among the live blocks of one tenant, most urgent first. No block is in two.
pub fn plan(tenant: &Tenant, blocks: &[Arc<Meta>], selection: &Selection, now_seconds: i64) -> Vec<Job> {
    let mut entries: Vec<Entry> = blocks.iter().filter_map(|meta| entry(tenant, meta, selection, now_seconds)).collect();
    entries.sort_by(|one, other| (&one.group, &one.order).cmp(&(&other.group, &other.order)));
    let mut jobs = Vec::new();
    let mut rest = entries.as_slice();
    while let [first, ..] = rest {
        let (length, is_full) = stripe(rest, selection);
        let (found, after) = rest.split_at(length);
        rest = after;
        let enough = length >= selection.min_inputs.max(2);
        if enough && (is_full || !waits(found, selection, now_seconds)) {
            let inputs = found.iter().map(|entry| Arc::clone(&entry.meta)).collect();
            jobs.push(Job { tenant: tenant.clone(), inputs, key: first.key.clone() });
        }
    }
    jobs
}

fn entry(tenant: &Tenant, meta: &Arc<Meta>, selection: &Selection, now_seconds: i64) -> Option<Entry> {
    meta.format.parse::<Format>().ok()?;
    let level = meta.compaction_level;
    if selection.max_level > 0 && level >= selection.max_level {
        return None;
    }
    let window_of = |seconds: i64| seconds.div_euclid(i64::try_from(selection.window.as_secs()).unwrap_or(i64::MAX).max(1));
    let window = window_of(meta.end_time);
    let first_active = window_of(now_seconds - ACTIVE_SECONDS);
    let age = window_of(now_seconds) - window;
    let age_text = hex16(age);
    let factor = meta.replication_factor;
    let hash = dedicated_hash(&meta.dedicated_columns);
    let order = format!("{:016X}-{}-{hash:016X}", meta.total_objects, meta.format);
    let meta = Arc::clone(meta);
    // By level as long as more may come, which has nothing to do with the time of the spans.
    match window_of(meta.ingested_at()).cmp(&first_active) {
        // Two owners might both think it is theirs.
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Entry {
            group: format!("A-{level}-{age_text}-{factor}"),
            order,
            hash,
            active_age: Some(age),
            key: format!("{tenant}-{level}-{window}-{factor}"),
            meta,
        }),
        std::cmp::Ordering::Less => Some(Entry {
            group: format!("B-{age_text}-{factor}"),
            order: format!("{level}-{order}"),
            hash,
            active_age: None,
            key: format!("{tenant}-{window}-{factor}"),
            meta,
        }),
    }
}

/// A number as Go prints it with `%016X`: of a negative one the sign is one of the sixteen characters.
fn hex16(number: i64) -> String {
    if number < 0 { format!("-{:015X}", number.unsigned_abs()) } else { format!("{number:016X}") }
}

/// How many of the first entries belong together, at least 1, and whether a limit keeps further ones out.
fn stripe(entries: &[Entry], selection: &Selection) -> (usize, bool) {
    let first = &entries[0];
    let (mut objects, mut bytes) = (first.meta.total_objects, first.meta.size);
    for (length, next) in entries.iter().enumerate().skip(1) {
        if next.group != first.group || next.meta.format != first.meta.format || next.hash != first.hash {
            return (length, is_full(length, bytes, selection));
        }
        objects = objects.saturating_add(next.meta.total_objects);
        let more = bytes.saturating_add(next.meta.size);
        if objects > selection.max_objects || more > selection.max_bytes || length >= most_inputs(more, selection) {
            return (length, true);
        }
        bytes = more;
    }
    (entries.len(), is_full(entries.len(), bytes, selection))
}

fn is_full(length: usize, bytes: u64, selection: &Selection) -> bool {
    length >= most_inputs(bytes, selection)
}

fn most_inputs(bytes: u64, selection: &Selection) -> usize {
    if bytes <= selection.small_bytes { selection.max_inputs.max(selection.max_small_inputs) } else { selection.max_inputs }
}

/// Whether a stripe that could take more blocks should wait for them.
fn waits(stripe: &[Entry], selection: &Selection, now_seconds: i64) -> bool {
    if stripe.iter().any(|entry| entry.active_age != Some(0)) {
        return false;
    }
    let level = stripe[0].meta.compaction_level;
    let factor = u64::try_from(selection.max_inputs).unwrap_or(u64::MAX).saturating_pow(level);
    let patience = i64::try_from(selection.patience.as_secs().saturating_mul(factor)).unwrap_or(i64::MAX);
    let oldest = stripe.iter().map(|entry| entry.meta.end_time).min().unwrap_or(i64::MAX);
    now_seconds < oldest.saturating_add(patience)
}

/// xxHash64 of a list of dedicated columns (block-format.md §3.1); 0 when it is empty.
fn dedicated_hash(columns: &[DedicatedColumn]) -> u64 {
    if columns.is_empty() {
        return 0;
    }
    let mut text = Vec::new();
    for column in columns {
        text.extend_from_slice(column.scope.as_bytes());
        for part in [&column.name, &column.kind].into_iter().chain(&column.options) {
            text.push(0xff);
            text.extend_from_slice(part.as_bytes());
        }
    }
    twox_hash::XxHash64::oneshot(0, &text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{compactor::testing, id::BlockId};

    const NOW: i64 = 1_700_000_000 / 3600 * 3600 + 1800;

    /// Tempo's rules and nothing else.
    fn tempo() -> Selection {
        Selection { small_bytes: 0, patience: Duration::ZERO, ..Selection::default() }
    }

    fn block(number: u128, level: u32, end_time: i64, objects: u64) -> Meta {
        Meta {
            block_id: BlockId::from_u128(number),
            compaction_level: level,
            start_time: end_time - 60,
            end_time,
            total_objects: objects,
            size: objects * 1000,
            ..testing::meta()
        }
    }

    fn numbers(blocks: &[Meta], selection: &Selection) -> Vec<(String, Vec<u128>)> {
        let blocks: Vec<_> = blocks.iter().cloned().map(Arc::new).collect();
        let jobs = plan(&Tenant::single(), &blocks, selection, NOW);
        jobs.iter().map(|job| (job.key.clone(), job.inputs.iter().map(|meta| meta.block_id.as_u128()).collect())).collect()
    }

    #[test]
    fn low_levels_and_recent_windows_go_first_and_small_blocks_together() {
        let hour = NOW / 3600;
        let blocks = [
            block(1, 0, NOW, 30),
            block(2, 0, NOW, 10),
            block(3, 0, NOW, 20),
            block(4, 0, NOW, 50),
            block(5, 0, NOW, 40),
            block(6, 1, NOW, 5),
            block(7, 1, NOW, 6),
            block(8, 0, NOW - 3600, 7),
            block(9, 0, NOW - 3600, 8),
            block(10, 0, NOW - 7200, 8),
        ];
        let key = |level: i64, window: i64| format!("single-tenant-{level}-{window}-1");
        assert_eq!(
            numbers(&blocks, &tempo()),
            [(key(0, hour), vec![2, 3, 1, 5]), (key(0, hour - 1), vec![8, 9]), (key(1, hour), vec![6, 7])],
            "block 4 has no neighbour left, block 10 never had one"
        );
    }

    #[test]
    fn old_windows_are_compacted_across_levels_and_the_cut_over_not_at_all() {
        let day = 24 * 3600;
        let blocks = [
            block(1, 3, NOW - day - 3600, 9),
            block(2, 0, NOW - day - 3600, 99),
            block(3, 0, NOW - day, 1),
            block(4, 0, NOW - day, 1),
            block(5, 0, NOW - day + 3600, 1),
            block(6, 0, NOW - day + 3600, 1),
        ];
        let window = (NOW - day) / 3600;
        let jobs = numbers(&blocks, &tempo());
        assert_eq!(
            jobs,
            [(format!("single-tenant-0-{}-1", window + 1), vec![5, 6]), (format!("single-tenant-{}-1", window - 1), vec![2, 1])]
        );
    }

    #[test]
    fn old_spans_that_are_still_coming_in_are_compacted_by_level() {
        let of_1970 = |number, level, ingested| Meta { created_at: Some(ingested), ..block(number, level, 100, 10) };
        let blocks = [of_1970(1, 3, NOW - 60), of_1970(2, 0, NOW - 60), of_1970(3, 0, NOW), of_1970(4, 1, NOW)];
        assert_eq!(numbers(&blocks, &tempo()), [("single-tenant-0-0-1".to_owned(), vec![2, 3])]);
        let over = [of_1970(1, 3, NOW - 30 * 3600), of_1970(2, 0, NOW - 40 * 3600)];
        assert_eq!(numbers(&over, &tempo()), [("single-tenant-0-1".to_owned(), vec![2, 1])]);
    }

    #[test]
    fn versions_columns_and_replication_do_not_mix() {
        let with = |number, change: fn(&mut Meta)| {
            let mut meta = block(number, 0, NOW, 10);
            change(&mut meta);
            meta
        };
        let column = |name: &str| DedicatedColumn { scope: "span".into(), name: name.into(), kind: "string".into(), options: Vec::new() };
        let mut blocks = vec![
            with(1, |meta| meta.format = "vParquet3".into()),
            with(2, |meta| meta.format = "vParquet5-preview1".into()),
            with(3, |meta| meta.format = "vParquet5-preview1".into()),
            with(4, |meta| meta.replication_factor = 0),
            with(5, |_| {}),
            with(6, |meta| meta.compaction_level = 4),
            with(7, |meta| meta.compaction_level = 4),
        ];
        blocks[4].dedicated_columns = vec![column("a")];
        let mut other = block(8, 0, NOW, 10);
        other.dedicated_columns = vec![column("b")];
        blocks.push(other);
        assert_eq!(numbers(&blocks, &Selection { max_level: 4, ..tempo() }), []);
        assert_eq!(numbers(&blocks, &Selection { max_level: 5, ..tempo() }).len(), 1, "blocks 6 and 7");
    }

    #[test]
    fn limits_of_objects_and_bytes_end_a_stripe() {
        let blocks: Vec<_> = (1..=4).map(|number| block(u128::from(number), 0, NOW, 100 * number)).collect();
        let of = |selection: Selection| numbers(&blocks, &selection).into_iter().map(|(_, ids)| ids).collect::<Vec<_>>();
        assert_eq!(of(Selection { max_objects: 600, ..tempo() }), [vec![1, 2, 3]]);
        assert_eq!(of(Selection { max_objects: 500, ..tempo() }), [vec![1, 2]]);
        assert_eq!(of(Selection { max_bytes: 700_000, ..tempo() }), [vec![1, 2, 3]]);
        assert_eq!(of(Selection { max_bytes: 299_999, ..tempo() }), [] as [Vec<u128>; 0]);
        assert_eq!(of(Selection { min_inputs: 4, max_objects: 600, ..tempo() }), [] as [Vec<u128>; 0]);
    }

    #[test]
    fn a_stripe_that_may_grow_waits_its_time() {
        let selection = Selection { patience: Duration::from_secs(60), small_bytes: 1 << 20, max_small_inputs: 6, ..tempo() };
        let blocks = |count: u128, end| (0..count).map(|number| block(number, 0, end, 10)).collect::<Vec<_>>();
        assert_eq!(numbers(&blocks(5, NOW - 59), &selection), []);
        assert_eq!(numbers(&blocks(5, NOW - 60), &selection)[0].1.len(), 5);
        assert_eq!(numbers(&blocks(7, NOW), &selection)[0].1.len(), 6, "it is full");
        assert_eq!(numbers(&blocks(5, NOW - 3600), &selection)[0].1.len(), 5, "its window is over");
        let higher: Vec<_> = (0..3).map(|number| block(number, 1, NOW - 239, 10)).collect();
        assert_eq!(numbers(&higher, &selection), [], "four times as long on the next level");
        let large: Vec<_> = (0..5).map(|number| block(number, 0, NOW, 300)).collect();
        assert_eq!(numbers(&large, &selection)[0].1.len(), 4, "too large for a wide stripe, so this one is full");
    }

    #[test]
    fn ages_are_written_as_go_writes_them() {
        assert_eq!(hex16(26), "000000000000001A");
        assert_eq!(hex16(-1), "-000000000000001");
    }

    #[test]
    fn the_hash_of_columns_is_of_their_text() {
        let column = |scope: &str, name: &str, options: &[&str]| DedicatedColumn {
            scope: scope.into(),
            name: name.into(),
            kind: "string".into(),
            options: options.iter().map(|&option| option.into()).collect(),
        };
        assert_eq!(dedicated_hash(&[]), 0);
        let expected = twox_hash::XxHash64::oneshot(0, b"span\xffa\xffstringresource\xffb\xffstring\xffblob");
        assert_eq!(dedicated_hash(&[column("span", "a", &[]), column("resource", "b", &["blob"])]), expected);
    }

    /// The text of the specification, step by step and slowly.
    fn naive(blocks: &[Meta], selection: &Selection) -> Vec<Vec<u128>> {
        let window = |seconds: i64| (seconds as f64 / selection.window.as_secs() as f64).floor() as i64;
        let active_window = window(NOW - 86_400);
        let mut sorted = Vec::new();
        for block in blocks {
            let (level, factor) = (block.compaction_level, block.replication_factor);
            let age = window(NOW) - window(block.end_time);
            let columns = if block.dedicated_columns.is_empty() { 0 } else { dedicated_hash(&block.dedicated_columns) };
            let order = format!("{:016X}-{}-{columns:016X}", block.total_objects, block.format);
            if window(block.end_time) > active_window {
                sorted.push((format!("A-{level}-{age:016X}-{factor}"), order, block));
            } else if window(block.end_time) < active_window {
                sorted.push((format!("B-{age:016X}-{factor}"), format!("{level}-{order}"), block));
            }
        }
        sorted.sort_by_key(|(group, order, _)| (group.clone(), order.clone()));
        let mut jobs = Vec::new();
        let mut at = 0;
        while at < sorted.len() {
            let fits = |length: usize| {
                let stripe = &sorted[at..at + length];
                stripe.iter().all(|(group, _, block)| {
                    *group == sorted[at].0
                        && block.format == sorted[at].2.format
                        && block.dedicated_columns == sorted[at].2.dedicated_columns
                }) && length <= selection.max_inputs
                    && stripe.iter().map(|(_, _, block)| block.total_objects).sum::<u64>() <= selection.max_objects
                    && stripe.iter().map(|(_, _, block)| block.size).sum::<u64>() <= selection.max_bytes
            };
            let longest = (2..=sorted.len() - at).take_while(|&length| fits(length)).last().unwrap_or(1);
            if longest >= selection.min_inputs {
                jobs.push(sorted[at..at + longest].iter().map(|(_, _, block)| block.block_id.as_u128()).collect());
            }
            at += longest;
        }
        jobs
    }

    fn blocks() -> impl Strategy<Value = Vec<Meta>> {
        let shape = (0u32..3, 0i64..30, 0u64..50, 0u32..2, 0usize..2, 0usize..2);
        prop::collection::vec(shape, 0..60).prop_map(|blocks| {
            let numbered = blocks.into_iter().enumerate();
            let meta = |(number, (level, hours, objects, factor, version, columns)): (usize, (u32, i64, u64, u32, usize, usize))| Meta {
                format: ["vParquet3", "vParquet4"][version].to_owned(),
                replication_factor: factor,
                dedicated_columns: crate::block::Settings::default().dedicated_columns[..columns].to_vec(),
                ..block(number as u128, level, NOW - hours * 3600, objects)
            };
            numbered.map(meta).collect()
        })
    }

    proptest! {
        #[test]
        fn selection_is_that_of_the_specification(blocks in blocks(), max_inputs in 2usize..6, max_objects in 20u64..200, min_inputs in 2usize..4) {
            let selection = Selection { max_inputs, max_objects, min_inputs, max_bytes: 120_000, ..tempo() };
            let found: Vec<_> = numbers(&blocks, &selection).into_iter().map(|(_, ids)| ids).collect();
            prop_assert_eq!(found, naive(&blocks, &selection));
        }

        #[test]
        fn wide_stripes_keep_the_limits_and_no_block_is_in_two_jobs(blocks in blocks(), small_bytes in 0u64..200_000) {
            let selection = Selection { small_bytes, max_bytes: 120_000, max_objects: 150, ..Selection::default() };
            let mut seen = std::collections::HashSet::new();
            let listed: BTreeMap<u128, &Meta> = blocks.iter().map(|meta| (meta.block_id.as_u128(), meta)).collect();
            for (_, ids) in numbers(&blocks, &selection) {
                prop_assert!(ids.len() >= 2);
                let bytes: u64 = ids.iter().map(|id| listed[id].size).sum();
                prop_assert!(bytes <= 120_000 && (ids.len() <= 4 || (ids.len() <= 16 && bytes <= small_bytes)));
                prop_assert!(ids.iter().all(|id| seen.insert(*id)));
            }
        }
    }

    /// Two hours of a tenant that writes a block of 3.5 MB every six seconds (10,000 spans/s): what compaction writes for each byte of
    /// ingest, and the most blocks that queries see at a time.
    fn simulate(selection: &Selection) -> (f64, usize) {
        let begin = NOW / 3600 * 3600;
        let (mut blocks, mut ingested, mut rewritten, mut most) = (Vec::<Arc<Meta>>::new(), 0u64, 0u64, 0);
        let mut number = 0u128;
        for second in 0..2 * 3600 {
            let now = begin + second;
            number += 1;
            if second % 6 == 0 {
                blocks.push(Arc::new(Meta { size: 3_500_000, ..block(number, 0, now - 10, 6000) }));
                ingested += 3_500_000;
            }
            if second % 30 == 0 {
                for job in plan(&Tenant::single(), &blocks, selection, now) {
                    number += 1;
                    let end = job.inputs.iter().map(|meta| meta.end_time).max().expect("two at least");
                    let objects = job.inputs.iter().map(|meta| meta.total_objects).sum();
                    blocks.retain(|block| !job.inputs.contains(block));
                    blocks.push(Arc::new(Meta { size: job.bytes(), ..block(number, job.level() + 1, end, objects) }));
                    rewritten += job.bytes();
                }
            }
            most = most.max(blocks.len());
        }
        (rewritten as f64 / ingested as f64, most)
    }

    #[test]
    fn every_byte_is_rewritten_half_as_often_as_by_tempo() {
        let (ours, our_most) = simulate(&Selection::default());
        let (theirs, their_most) = simulate(&tempo());
        eprintln!("written per byte of ingest: {ours:.2}, with Tempo's selection {theirs:.2}; blocks at most: {our_most}, {their_most}");
        assert!(ours < 4.0 && theirs / ours > 1.5, "{ours} {theirs}");
        assert!(our_most < 40, "{our_most}");
    }
}
