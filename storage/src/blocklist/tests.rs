use super::*;

pub(super) use crate::block::fixtures::meta;

/// A list of one tenant, whose blocks are numbers.
struct List {
    list: Blocklist,
    tenant: Tenant,
}

/// A block and what it was merged from.
type Block<'a> = (u128, &'a [u128]);

impl List {
    fn new() -> Self {
        Self { list: Blocklist::new(), tenant: Tenant::single() }
    }

    fn meta(&self, (number, inputs): Block<'_>) -> Meta {
        let compacted_from = inputs.iter().map(|input| BlockId::from_u128(*input)).collect();
        Meta { block_id: BlockId::from_u128(number), compacted_from, ..meta(&self.tenant, number.try_into().expect("small")) }
    }

    fn found(&self, live: &[Block<'_>], compacted: &[Block<'_>]) -> Found {
        Found {
            live: live.iter().map(|block| Arc::new(self.meta(*block))).collect(),
            compacted: compacted.iter().map(|block| (Arc::new(self.meta(*block)), 100)).collect(),
            no_compact: HashSet::new(),
        }
    }

    fn poll(&self, live: &[Block<'_>], compacted: &[Block<'_>]) {
        self.list.apply(self.list.begin_poll(), &self.tenant, self.found(live, compacted), i64::MAX);
    }

    fn add(&self, block: Block<'_>) {
        self.list.add(self.meta(block));
    }

    fn replace(&self, inputs: &[u128], outputs: &[Block<'_>]) {
        let inputs: Vec<_> = inputs.iter().map(|input| BlockId::from_u128(*input)).collect();
        self.list.replace(&self.tenant, &inputs, outputs.iter().map(|block| self.meta(*block)).collect(), 200);
    }

    /// Numbers of the live blocks, newest first.
    fn live(&self) -> Vec<u128> {
        self.list.blocks(&self.tenant).iter().map(|meta| meta.block_id.as_u128()).collect()
    }

    /// Numbers of the compacted blocks and since when.
    fn compacted(&self) -> Vec<(u128, Option<i64>)> {
        self.list.compacted(&self.tenant).iter().map(|compacted| (compacted.meta.block_id.as_u128(), compacted.at)).collect()
    }

    fn compactable(&self) -> Vec<u128> {
        self.list.compactable(&self.tenant).iter().map(|meta| meta.block_id.as_u128()).collect()
    }
}

#[test]
fn a_compaction_is_one_step() {
    let list = List::new();
    list.poll(&[(1, &[]), (2, &[]), (3, &[])], &[]);
    let before = list.list.blocks(&list.tenant);
    list.replace(&[1, 2], &[(9, &[1, 2])]);
    assert_eq!((list.live(), list.compacted()), (vec![9, 3], vec![(1, Some(200)), (2, Some(200))]));
    assert_eq!(before.len(), 3, "who took the list before has all of it");
    list.list.remove(&list.tenant, &[BlockId::from_u128(1)]);
    assert_eq!((list.live(), list.compacted()), (vec![9, 3], vec![(2, Some(200))]));
    assert_eq!(list.list.tenants(), std::slice::from_ref(&list.tenant));
}

#[test]
fn local_changes_survive_a_poll_that_began_before_and_one_that_began_after() {
    let list = List::new();
    list.poll(&[(1, &[]), (2, &[])], &[]);
    let poll = list.list.begin_poll();
    list.replace(&[1], &[(8, &[])]);
    list.add((9, &[]));
    list.list.remove(&list.tenant, &[BlockId::from_u128(2)]);
    for _ in 0..2 {
        assert_eq!((list.live(), list.compacted()), (vec![9, 8], vec![(1, Some(200))]));
        // Found before the changes, and found in an index from before.
        let found = list.found(&[(1, &[]), (2, &[])], &[]);
        list.list.apply(poll, &list.tenant, found.clone(), i64::MAX);
        list.list.apply(poll, &list.tenant, found, i64::MAX);
        assert_eq!((list.live(), list.compacted()), (vec![9, 8], vec![(1, Some(200))]));
        list.poll(&[(1, &[]), (2, &[])], &[]);
    }
    // The second that began after the changes is believed, but for what it does not know of.
    assert_eq!((list.live(), list.compacted()), (vec![9, 8, 2, 1], vec![]));
    assert_eq!(list.compactable(), [2, 1]);
    list.poll(&[(1, &[]), (2, &[])], &[]);
    assert_eq!(list.live(), [2, 1]);
}

#[test]
fn a_later_stage_is_right() {
    let list = List::new();
    list.add((1, &[]));
    list.add((1, &[]));
    list.poll(&[], &[(1, &[])]);
    assert_eq!((list.live(), list.compacted()), (vec![1], vec![(1, Some(100))]), "compacted by somebody else and kept for a poll");
    assert_eq!(list.compactable(), [0; 0]);
    list.add((1, &[]));
    list.poll(&[], &[(1, &[])]);
    assert_eq!((list.live(), list.compacted()), (vec![], vec![(1, Some(100))]));
    list.list.remove(&list.tenant, &[BlockId::from_u128(1)]);
    list.add((1, &[]));
    assert_eq!((list.live(), list.compacted()), (vec![], vec![]));
}

#[test]
fn blocks_without_a_successor_are_served_until_the_next_poll() {
    let list = List::new();
    list.poll(&[(1, &[]), (2, &[]), (3, &[])], &[]);
    // 9 is in the listing and 8, the output of 3, is not; 1 is missing altogether.
    list.poll(&[(9, &[2])], &[(2, &[]), (3, &[])]);
    assert_eq!(list.live(), [9, 3, 1]);
    assert_eq!(list.compactable(), [9]);
    assert!(!list.list.is_gone(&list.tenant, BlockId::from_u128(9)), "a block that is there has to be readable");
    assert!(list.list.is_gone(&list.tenant, BlockId::from_u128(1)));
    assert_eq!(list.live(), [9, 3]);
    list.poll(&[(8, &[3]), (9, &[2])], &[(2, &[]), (3, &[])]);
    assert_eq!(list.live(), [9, 8]);
    // An older listing once more: outputs are kept, and hide what they were made of.
    list.poll(&[(2, &[]), (3, &[])], &[]);
    assert_eq!((list.live(), list.compacted()), (vec![9, 8], vec![(2, None), (3, None)]));
    list.poll(&[(2, &[]), (3, &[])], &[]);
    assert_eq!((list.live(), list.compacted()), (vec![3, 2], vec![]));
    list.poll(&[], &[]);
    assert_eq!(list.live(), [3, 2]);
    list.poll(&[], &[]);
    assert_eq!(list.list.tenants(), []);
}

#[test]
fn the_first_poll_keeps_what_was_compacted_lately() {
    let list = List::new();
    let poll = list.list.begin_poll();
    let mut found = list.found(&[(9, &[3])], &[(1, &[]), (2, &[]), (3, &[])]);
    found.compacted[0].1 = 99;
    list.list.apply(poll, &list.tenant, found, 100);
    assert_eq!(list.live(), [9, 2], "1 was compacted too long ago, 3 has a successor");
    list.poll(&[(9, &[3])], &[(1, &[]), (2, &[]), (3, &[])]);
    assert_eq!(list.live(), [9]);
}

#[test]
fn outputs_that_are_always_missed_are_bridged() {
    let list = List::new();
    let poll = |live: &[Block<'_>], compacted: &[Block<'_>]| {
        list.list.apply(list.list.begin_poll(), &list.tenant, list.found(live, compacted), 100);
        list.live()
    };
    assert_eq!(poll(&[(1, &[]), (2, &[])], &[]), [2, 1]);
    assert_eq!(poll(&[], &[(1, &[]), (2, &[])]), [2, 1], "8 is not in the listing yet");
    assert_eq!(poll(&[], &[(1, &[]), (2, &[]), (8, &[1, 2])]), [8], "9 is not in the listing yet");
    assert_eq!(poll(&[(9, &[8])], &[(1, &[]), (2, &[]), (8, &[1, 2])]), [9]);
}

#[test]
fn inputs_that_were_not_marked_count_as_compacted() {
    let list = List::new();
    list.poll(&[(1, &[]), (2, &[]), (9, &[1, 2])], &[(2, &[])]);
    assert_eq!((list.live(), list.compacted()), (vec![9], vec![(1, None), (2, None)]), "2 is half marked");
    list.poll(&[(9, &[1, 2])], &[(1, &[]), (2, &[])]);
    assert_eq!((list.live(), list.compacted()), (vec![9], vec![(1, Some(100)), (2, Some(100))]));
}

#[test]
fn flagged_blocks_are_served_and_not_compacted() {
    let list = List::new();
    let poll = list.list.begin_poll();
    let flagged = Found { no_compact: HashSet::from([BlockId::from_u128(1)]), ..list.found(&[(1, &[]), (2, &[])], &[]) };
    list.list.apply(poll, &list.tenant, flagged, i64::MAX);
    assert_eq!((list.live(), list.compactable()), (vec![2, 1], vec![2]));
}

#[test]
fn a_list_without_polls_is_bounded() {
    let list = List { list: Blocklist::unpolled(), tenant: Tenant::single() };
    for number in 0..1100 {
        list.add((number, &[]));
    }
    let live = list.live();
    assert_eq!((live.len(), live.first(), live.last()), (MAX_UNPOLLED, Some(&1099), Some(&100)));
    list.replace(&live, &[]);
    assert_eq!((list.live(), list.compacted()), (vec![], vec![]));
}
