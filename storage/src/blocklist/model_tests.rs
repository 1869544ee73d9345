//! The list against a bucket of which everything is known: who wrote what, which spans a block holds, what was marked and deleted.
//!
//! Blocks are written, merged and deleted by this process and by others, processes are killed in the middle, and listings see one half of
//! the names earlier than the other; where indexes are read, they are up to a poll old. Whatever happens, a span that was served once is
//! served ever after; and when all is quiet, once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{tests::meta, *};

/// Polls after which a compacted block may be deleted.
const RETENTION: u64 = 3;

#[derive(Clone, Debug)]
struct Block {
    meta: Arc<Meta>,
    spans: BTreeSet<u64>,
    live: bool,
    /// Polls applied when it was marked.
    compacted: Option<u64>,
}

struct Model {
    list: Blocklist,
    tenant: Tenant,
    /// What is in the bucket.
    bucket: BTreeMap<BlockId, Block>,
    /// What every block ever held.
    spans: HashMap<BlockId, BTreeSet<u64>>,
    served: BTreeSet<u64>,
    next: u64,
    polls: u64,
    /// A poll under way, and what it has seen of the first half of the names.
    poll: Option<(Poll, Found)>,
    /// What another process wrote, and the polls applied then.
    index: Option<(Found, u64)>,
}

impl Model {
    fn new() -> Self {
        Self {
            list: Blocklist::new(),
            tenant: Tenant::single(),
            bucket: BTreeMap::new(),
            spans: HashMap::new(),
            served: BTreeSet::new(),
            next: 0,
            polls: 0,
            poll: None,
            index: None,
        }
    }

    /// Spreads ids over both halves.
    fn new_id(&mut self) -> BlockId {
        self.next += 1;
        BlockId::from_u128(u128::from(self.next).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    fn publish(&mut self, inputs: &[BlockId], spans: BTreeSet<u64>) -> Meta {
        let id = self.new_id();
        let meta = Meta { block_id: id, compacted_from: inputs.to_vec(), ..meta(&self.tenant, 1) };
        self.spans.insert(id, spans.clone());
        self.bucket.insert(id, Block { meta: Arc::new(meta.clone()), spans, live: true, compacted: None });
        meta
    }

    fn ingest(&mut self, here: bool) {
        let span = self.next;
        let meta = self.publish(&[], BTreeSet::from([span]));
        if here {
            self.list.add(meta);
        }
    }

    /// The list of a process that has just started.
    fn fresh(&self) -> Blocklist {
        let (list, mut found) = (Blocklist::new(), Found::default());
        self.look(true, &mut found);
        self.look(false, &mut found);
        list.apply(list.begin_poll(), &self.tenant, found, i64::MAX);
        list
    }

    /// Merges up to three blocks; `marks` of them are marked before the process is killed. Processes that merge one block with different
    /// others at the same time are left out: their outputs overlap, and both are served.
    fn compact(&mut self, here: bool, pick: usize, marks: usize, twin: bool) {
        let compactable = |list: &Blocklist| list.compactable(&self.tenant).iter().map(|meta| meta.block_id).collect::<Vec<_>>();
        let mut candidates = compactable(&self.fresh());
        if here {
            let known: BTreeSet<_> = compactable(&self.list).into_iter().collect();
            candidates.retain(|id| known.contains(id));
        }
        if candidates.len() < 2 {
            return;
        }
        let start = pick % (candidates.len() - 1);
        let inputs: Vec<_> = candidates.into_iter().skip(start).take(2 + pick % 2).collect();
        let spans: BTreeSet<u64> = inputs.iter().flat_map(|id| self.bucket[id].spans.clone()).collect();
        let output = self.publish(&inputs, spans.clone());
        if twin {
            // Another process did the same at the same time.
            self.publish(&inputs, spans);
        }
        if here {
            self.list.replace(&self.tenant, &inputs, vec![output], 0);
        }
        for id in inputs.iter().take(marks) {
            self.mark(*id);
        }
    }

    fn mark(&mut self, id: BlockId) {
        let polls = self.polls;
        if let Some(block) = self.bucket.get_mut(&id) {
            block.live = false;
            block.compacted.get_or_insert(polls);
        }
    }

    /// Marks what killed processes left.
    fn mark_left(&mut self) {
        let compacted = self.fresh().compacted(&self.tenant);
        compacted.iter().filter(|compacted| compacted.at.is_none()).for_each(|compacted| self.mark(compacted.meta.block_id));
    }

    /// Deletes what was marked long ago, not before it has marked what was left.
    fn delete(&mut self, here: bool) {
        self.mark_left();
        let polls = self.polls;
        let old = |block: &Block| !block.live && block.compacted.is_some_and(|at| at + RETENTION < polls);
        let ids: Vec<_> = self.bucket.iter().filter(|(_, block)| old(block)).map(|(id, _)| *id).collect();
        self.bucket.retain(|id, _| !ids.contains(id));
        if here {
            self.list.remove(&self.tenant, &ids);
        }
    }

    fn look(&self, lower: bool, found: &mut Found) {
        for block in self.bucket.values().filter(|block| (block.meta.block_id.as_u128() >> 127 == 0) == lower) {
            match block.compacted {
                Some(at) if !block.live => found.compacted.push((Arc::clone(&block.meta), i64::try_from(at).expect("few"))),
                _ => found.live.push(Arc::clone(&block.meta)),
            }
        }
    }

    fn begin_poll(&mut self) {
        let mut found = Found::default();
        self.look(true, &mut found);
        self.poll = Some((self.list.begin_poll(), found));
    }

    fn end_poll(&mut self) {
        let Some((poll, mut found)) = self.poll.take() else { return };
        self.look(false, &mut found);
        self.polls += 1;
        let recent = i64::try_from(self.polls).expect("few") - 2;
        self.list.apply(poll, &self.tenant, found, recent);
    }

    fn write_index(&mut self) {
        let mut found = Found::default();
        self.look(true, &mut found);
        self.look(false, &mut found);
        self.index = Some((found, self.polls));
    }

    fn read_index(&mut self) {
        // One poll after the other.
        self.end_poll();
        let Some((found, _)) = self.index.clone().filter(|(_, polls)| polls + 1 >= self.polls) else { return };
        self.polls += 1;
        let recent = i64::try_from(self.polls).expect("few") - 2;
        self.list.apply(self.list.begin_poll(), &self.tenant, found, recent);
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let blocks = self.list.blocks(&self.tenant);
        let now: BTreeSet<u64> = blocks.iter().flat_map(|meta| self.spans[&meta.block_id].clone()).collect();
        let lost: Vec<_> = self.served.difference(&now).collect();
        prop_assert!(lost.is_empty(), "spans {lost:?} are served no more");
        let gone: Vec<_> = blocks.iter().filter(|meta| !self.bucket.contains_key(&meta.block_id)).collect();
        prop_assert!(gone.is_empty(), "served after deletion: {gone:?}");
        let ids: BTreeSet<_> = blocks.iter().map(|meta| meta.block_id).collect();
        prop_assert_eq!(ids.len(), blocks.len(), "a block is there twice");
        prop_assert!(self.list.compacted(&self.tenant).iter().all(|c| c.at.is_some() || !ids.contains(&c.meta.block_id)));
        self.served = now;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_and_nothing_stays_double(reader: bool, steps in prop::collection::vec((0u8..14, any::<bool>(), 0usize..64), 1..80)) {
        let mut model = Model::new();
        for (step, here, pick) in steps {
            match step {
                0..=2 => model.ingest(here),
                3 | 4 => model.compact(here, pick, pick % 4, false),
                5 => model.compact(here, pick, 3, true),
                6 => model.delete(here),
                7 => model.mark_left(),
                8..=10 if reader => model.write_index(),
                _ if reader => model.read_index(),
                8..=10 => model.begin_poll(),
                _ => model.end_poll(),
            }
            model.check()?;
        }
        // All is quiet.
        for _ in 0..3 {
            model.begin_poll();
            model.end_poll();
            model.check()?;
        }
        model.mark_left();
        for _ in 0..3 {
            model.begin_poll();
            model.end_poll();
            model.check()?;
        }
        let all: BTreeSet<u64> = model.bucket.values().flat_map(|block| block.spans.clone()).collect();
        prop_assert_eq!(&model.served, &all);
        let blocks = model.list.blocks(&model.tenant);
        let times: usize = blocks.iter().map(|meta| model.spans[&meta.block_id].len()).sum();
        prop_assert_eq!(times, all.len(), "some spans are served twice: {:?}", blocks);
        prop_assert_eq!(model.list.compactable(&model.tenant).len(), blocks.len());
    }
}
