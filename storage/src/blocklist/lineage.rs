//! Which blocks are superfluous because another one holds all their spans.
//!
//! A block that Rubato's compactor wrote names the blocks it was merged from ([`Meta::compacted_from`]), and it holds exactly their spans.
//! So folders need not be believed: an input whose folder still says "live", because the compactor was killed before it marked it, is
//! served no more as soon as the output is.
//!
//! ```text
//!   x ──┐
//!       ├─► A ──┐                 B holds x, y, A and z, even when A is only known as compacted
//!   y ──┘       ├─► B
//!           z ──┘                 A' from {x, y} too: all that it was made of is in B
//! ```
//!
//! *l is held by m* when m descends from l, or from everything that l was merged from. That is a preorder; of every circle (two compactors
//! that did the same job) the smallest id stays. Since each block that is dropped is held by one that stays, no span is ever hidden.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{block::Meta, id::BlockId};

/// Blocks visited for one answer, at most. Real lineages are as deep as there are compaction levels; beyond this a block counts as held
/// by none.
const MAX_VISITED: usize = 256;

/// Who was made of whom.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    live: HashSet<BlockId>,
    outputs: HashMap<BlockId, Vec<BlockId>>,
}

impl Lineage {
    /// The lineage of live blocks; `known` are others that may lie between two of them.
    pub(super) fn new<'a>(live: &'a [Arc<Meta>], known: impl Iterator<Item = &'a Meta>) -> Self {
        let mut outputs: HashMap<BlockId, Vec<BlockId>> = HashMap::new();
        for meta in live.iter().map(Arc::as_ref).chain(known) {
            for &input in &meta.compacted_from {
                outputs.entry(input).or_default().push(meta.block_id);
            }
        }
        Self { live: live.iter().map(|meta| meta.block_id).collect(), outputs }
    }

    /// Whether a live block other than it holds all spans of this one.
    pub(super) fn is_held(&self, meta: &Meta) -> bool {
        !self.holders(meta).is_empty()
    }

    /// The ones among the live blocks that need not be read, by whom they are held being live.
    pub(super) fn superfluous(&self, live: &[Arc<Meta>]) -> HashSet<BlockId> {
        let by_id: HashMap<BlockId, &Arc<Meta>> = live.iter().map(|meta| (meta.block_id, meta)).collect();
        let is_superfluous = |meta: &&Arc<Meta>| {
            let is_above = |holder: &BlockId| {
                *holder < meta.block_id || by_id.get(holder).is_some_and(|holder| !self.holders(holder).contains(&meta.block_id))
            };
            self.holders(meta).iter().any(is_above)
        };
        live.iter().filter(is_superfluous).map(|meta| meta.block_id).collect()
    }

    /// The live blocks that hold all spans of `meta`, without itself. None when there are too many to say.
    fn holders(&self, meta: &Meta) -> HashSet<BlockId> {
        if self.outputs.is_empty() {
            return HashSet::new();
        }
        let Some(mut holders) = self.descendants(meta.block_id) else { return HashSet::new() };
        let mut of_all: Option<HashSet<BlockId>> = None;
        for &input in &meta.compacted_from {
            let Some(descendants) = self.descendants(input) else { return HashSet::new() };
            of_all = Some(match of_all {
                None => descendants,
                Some(of_all) => of_all.intersection(&descendants).copied().collect(),
            });
        }
        holders.extend(of_all.into_iter().flatten());
        holders.remove(&meta.block_id);
        holders
    }

    /// The live blocks that descend from `block`.
    fn descendants(&self, block: BlockId) -> Option<HashSet<BlockId>> {
        let mut visited = HashSet::new();
        let mut unvisited = vec![block];
        while let Some(next) = unvisited.pop() {
            for &output in self.outputs.get(&next).into_iter().flatten() {
                if visited.insert(output) {
                    unvisited.push(output);
                }
            }
            if visited.len() > MAX_VISITED {
                return None;
            }
        }
        visited.retain(|output| self.live.contains(output));
        Some(visited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blocklist::tests::meta, id::Tenant};

    fn id(number: u128) -> BlockId {
        BlockId::from_u128(number)
    }

    /// Blocks by number and the numbers they were merged from, live and compacted; what of the live ones stays.
    fn served(live: &[(u128, &[u128])], compacted: &[(u128, &[u128])]) -> Vec<u128> {
        let block = |&(number, inputs): &(u128, &[u128])| {
            let compacted_from = inputs.iter().copied().map(id).collect();
            Arc::new(Meta { block_id: id(number), compacted_from, ..meta(&Tenant::single(), 1) })
        };
        let live: Vec<_> = live.iter().map(block).collect();
        let compacted: Vec<_> = compacted.iter().map(block).collect();
        let superfluous = Lineage::new(&live, compacted.iter().map(Arc::as_ref)).superfluous(&live);
        live.iter().map(|meta| meta.block_id).filter(|id| !superfluous.contains(id)).map(|id| id.as_u128()).collect()
    }

    #[test]
    fn inputs_of_a_live_output_are_superfluous() {
        assert_eq!(served(&[(1, &[]), (2, &[]), (3, &[]), (9, &[1, 2])], &[]), [3, 9]);
        // Across a compacted one, and across one that is superfluous itself.
        assert_eq!(served(&[(1, &[]), (3, &[]), (10, &[9, 3])], &[(9, &[1, 2])]), [10]);
        assert_eq!(served(&[(1, &[]), (3, &[]), (9, &[1, 2]), (10, &[9, 3])], &[]), [10]);
        // What lies between is not known any more.
        assert_eq!(served(&[(1, &[]), (10, &[9, 3])], &[]), [1, 10]);
        // The output is compacted, and what it went into is not there.
        assert_eq!(served(&[(1, &[]), (2, &[])], &[(9, &[1, 2])]), [1, 2]);
    }

    #[test]
    fn of_two_outputs_with_the_same_inputs_one_stays() {
        assert_eq!(served(&[(8, &[1, 2]), (9, &[2, 1])], &[]), [8]);
        assert_eq!(served(&[(8, &[1, 2]), (9, &[1, 2]), (7, &[1, 2])], &[]), [7]);
        assert_eq!(served(&[(8, &[1, 2]), (9, &[1, 2, 3])], &[]), [9], "the one that holds more");
        assert_eq!(served(&[(8, &[1, 2]), (9, &[2, 3])], &[]), [8, 9], "neither holds all of the other");
        // The twin of an output that went on.
        assert_eq!(served(&[(5, &[1, 2]), (9, &[8, 3])], &[(8, &[1, 2])]), [9]);
    }

    #[test]
    fn no_lineage_hides_everything() {
        assert_eq!(served(&[(1, &[2]), (2, &[1])], &[]), [1]);
        assert_eq!(served(&[(1, &[3]), (2, &[1]), (3, &[2])], &[]), [1]);
        assert_eq!(served(&[(1, &[1])], &[]), [1]);
        let chain: Vec<_> = (0..600).map(|number| (number + 1, vec![number])).collect();
        let chain: Vec<_> = chain.iter().map(|(number, inputs)| (*number, inputs.as_slice())).collect();
        assert!(served(&chain, &[]).contains(&600), "too deep to be real, and yet");
    }
}
