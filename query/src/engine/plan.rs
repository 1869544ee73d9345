//! Which blocks a query reads, and how they are cut into jobs.

use std::{cell::OnceCell, collections::HashSet, ops::RangeInclusive, sync::Arc};

use storage::{
    block::Meta,
    blocklist::{Blocklist, Stages},
    id::{BlockId, Tenant},
};

use super::{TimeRange, end_ns, start_ns};
use crate::job::BlockPart;

/// The blocks of some tenants, as one query sees them from its beginning to its end.
///
/// It begins as the list of blocks at one moment and is completed by what answers about recent data name ([`Snapshot::add`]). A block that
/// the list knows, live or compacted, is not added: the list is right about it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    range: Option<TimeRange>,
    /// Newest first: by end descending, then by id, so that the order does not depend on when a block was added.
    blocks: Vec<Arc<Meta>>,
    /// What the list knows of the tenants, whatever the times.
    listed: Vec<Stages>,
    /// Ids of all that, once they are asked for, and of what was added.
    known: OnceCell<HashSet<BlockId>>,
}

impl Snapshot {
    pub(crate) fn new(list: &Blocklist, tenants: &[Tenant], range: Option<TimeRange>) -> Self {
        let listed: Vec<_> = tenants.iter().map(|tenant| list.stages(tenant)).collect();
        let live = listed.iter().flat_map(|stages| stages.live.iter());
        let blocks = live.filter(|meta| range.is_none_or(|range| touches(range, meta))).cloned().collect();
        let mut snapshot = Self { range, blocks, listed, known: OnceCell::new() };
        snapshot.sort();
        snapshot
    }

    /// Takes in blocks that were recent data lately.
    pub(crate) fn add(&mut self, published: &[Arc<Meta>]) {
        if published.is_empty() {
            return;
        }
        self.known();
        let before = self.blocks.len();
        for meta in published {
            let is_new = self.known.get_mut().is_some_and(|known| known.insert(meta.block_id));
            if is_new && self.range.is_none_or(|range| touches(range, meta)) {
                self.blocks.push(Arc::clone(meta));
            }
        }
        if self.blocks.len() > before {
            self.sort();
        }
    }

    /// Whether the spans of a block are in the blocks of this snapshot: recent data that is going into it must not be counted.
    pub(crate) fn holds(&self, block: BlockId) -> bool {
        self.known().contains(&block)
    }

    fn known(&self) -> &HashSet<BlockId> {
        self.known.get_or_init(|| {
            let live = self.listed.iter().flat_map(|stages| stages.live.iter().map(|meta| meta.block_id));
            live.chain(self.listed.iter().flat_map(|stages| stages.compacted.iter().map(|compacted| compacted.meta.block_id))).collect()
        })
    }

    /// Reads no blocks but those with ids between two.
    pub(crate) fn retain(&mut self, ids: &RangeInclusive<BlockId>) {
        self.blocks.retain(|meta| ids.contains(&meta.block_id));
    }

    /// The blocks, newest first.
    pub(crate) fn blocks(&self) -> &[Arc<Meta>] {
        &self.blocks
    }

    /// Those that touch a range.
    pub(crate) fn blocks_within(&self, range: TimeRange) -> Vec<Arc<Meta>> {
        self.blocks.iter().filter(|meta| touches(range, meta)).cloned().collect()
    }

    /// Reads no more than the newest blocks.
    pub(crate) fn truncate(&mut self, blocks: usize) {
        self.blocks.truncate(blocks);
    }

    /// The blocks cut into parts, in their order.
    pub(crate) fn parts(&self, target_bytes: u64) -> Vec<BlockPart> {
        self.blocks.iter().flat_map(|meta| BlockPart::cut(meta, target_bytes)).collect()
    }

    fn sort(&mut self) {
        self.blocks.sort_by_key(|meta| (std::cmp::Reverse(end_ns(meta)), meta.block_id));
    }
}

fn touches(range: TimeRange, meta: &Meta) -> bool {
    range.overlaps(start_ns(meta), end_ns(meta))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(number: u128, size: u64, records: u32) -> Arc<Meta> {
        let json = format!(
            r#"{{"format":"vParquet4","blockID":"{}","tenantID":"a","size":{size},"totalRecords":{records}}}"#,
            BlockId::from_u128(number)
        );
        Arc::new(Meta::from_json(json.as_bytes()).expect("a description"))
    }

    proptest! {
        #[test]
        fn parts_cover_a_block_once(size in 0u64..1_000_000, records in 0u32..300, target in 0u64..300_000) {
            let parts = BlockPart::cut(&meta(1, size, records), target);
            let mut next = 0;
            for part in &parts {
                prop_assert_eq!(part.row_groups.start, next);
                prop_assert!(part.row_groups.end > next);
                next = part.row_groups.end;
            }
            prop_assert_eq!(next, u32::MAX, "whatever follows belongs to the last part");
            let bytes: u64 = parts.iter().map(BlockPart::bytes).sum();
            prop_assert!(bytes <= size && size - bytes <= u64::from(records.max(1)));
        }
    }

    #[test]
    fn published_blocks_are_added_unless_the_list_knows_better() {
        let list = Blocklist::new();
        let tenant = Tenant::new("a").expect("a tenant");
        for number in [1, 2] {
            list.add(meta(number, 10, 1).as_ref().clone());
        }
        list.replace(&tenant, &[BlockId::from_u128(1)], vec![meta(3, 10, 1).as_ref().clone()], 1);
        let mut snapshot = Snapshot::new(&list, std::slice::from_ref(&tenant), None);
        snapshot.add(&[meta(1, 10, 1), meta(2, 10, 1), meta(4, 10, 1), meta(4, 10, 1)]);
        let mut ids: Vec<u128> = snapshot.blocks().iter().map(|meta| meta.block_id.as_u128()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [2, 3, 4]);
        assert!([1, 2, 3, 4].into_iter().all(|id| snapshot.holds(BlockId::from_u128(id))));
        assert!(!snapshot.holds(BlockId::from_u128(5)));
    }
}
