//! The blocks that queries and the compactor see, by tenant.
//!
//! ```text
//!  dataflow ── add ──────────────┐
//!  compactor ── replace, remove ─┤► Blocklist ──► queries:   blocks(tenant), newest first
//!  Poller ── begin_poll, apply ──┘                compactor: compactable(tenant), compacted(tenant), tenants()
//! ```
//!
//! A block's life goes one way: live, compacted, gone. What a poll finds may be older than what this process did itself, and whoever
//! knows a later stage is right. So a local change is laid over the results of all polls that began before it and of the first one that
//! began after it, which may have read an index from before; the second one is believed without it.
//!
//! **Nothing twice.** A block that another one holds (`lineage`) counts as compacted, whatever its folder says.
//!
//! **No gap.** A listing is no snapshot: it may see an input compacted and its output not yet. So a block that was served and is live no
//! more, without a live block that is known to hold it, is served until the next poll. Its bytes stay for `compacted_block_retention`.
//! The same holds for a block that is seen compacted for the first time, and was lately: it may be the output that was missed before.
//! Retention marks blocks without a successor, which are then served one poll longer.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;

pub use self::poller::{Cost, PollError, Poller, Settings};
use self::{
    folders::{Look, look},
    lineage::Lineage,
};
use crate::{
    backend::{CONCURRENCY, Store, StoreError, sort},
    block::Meta,
    id::{BlockId, Tenant},
};

mod folders;
pub mod index;
mod lineage;
mod metrics;
#[cfg(test)]
mod model_tests;
mod poller;
#[cfg(test)]
mod poller_tests;
#[cfg(test)]
mod tests;

/// Blocks that a list without polls keeps of a tenant, see [`Blocklist::unpolled`].
const MAX_UNPOLLED: usize = 1000;

/// A block that is served no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Compacted {
    /// The block.
    pub meta: Arc<Meta>,
    /// When it was marked as compacted, in seconds since the Unix epoch. `None`: its folder says that it is live, but another block is
    /// known to hold its spans; it waits for being marked.
    pub at: Option<i64>,
}

/// The blocks of a tenant as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    /// Newest first.
    pub live: Arc<Vec<Arc<Meta>>>,
    /// By id.
    pub compacted: Arc<Vec<Compacted>>,
}

/// What a poll found below a tenant: folders as they are, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Blocks whose folders say that they are live.
    pub live: Vec<Arc<Meta>>,
    /// Blocks whose folders say that they are compacted, and since when: seconds since the Unix epoch.
    pub compacted: Vec<(Arc<Meta>, i64)>,
    /// Live blocks that must not be compacted yet, as far as that is known: the tenant index does not say.
    pub no_compact: HashSet<BlockId>,
}

/// The number of a poll; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Poll(u64);

/// How far a block has come in this process.
#[derive(Clone, Debug)]
enum Stage {
    Live(Arc<Meta>),
    /// The description is missing if the list did not know the block.
    Compacted(Option<Arc<Meta>>, i64),
    Gone,
}

/// A stage that this process brought about.
#[derive(Debug)]
struct Change {
    stage: Stage,
    /// Polls begun before.
    polls_before: u64,
    /// Whether the result of a poll that began afterwards has been applied.
    survived: bool,
}

/// The blocks of one tenant. What is served is made anew of everything else whenever something changes.
#[derive(Debug, Default)]
struct Blocks {
    /// What the last poll found.
    found: Found,
    /// The number of that poll; 0 if there was none.
    applied: u64,
    changes: HashMap<BlockId, Change>,
    /// Served until the next poll.
    kept: HashMap<BlockId, Arc<Meta>>,
    live: Arc<Vec<Arc<Meta>>>,
    compacted: Arc<Vec<Compacted>>,
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<Tenant, Blocks>,
    /// Polls begun.
    polls: u64,
    /// Times that blocks may have left.
    departures: u64,
    unpolled: bool,
}

/// The blocks of every tenant. Cheap to clone; clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Blocklist(Arc<RwLock<State>>);

impl Blocklist {
    /// An empty list, for polls to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// A list for a process that never polls because it needs none. It holds the newest thousand blocks per tenant that were added here.
    pub fn unpolled() -> Self {
        Self(Arc::new(RwLock::new(State { unpolled: true, ..State::default() })))
    }

    /// Lists the bucket once, for tools and tests; writes nothing.
    ///
    /// # Errors
    /// The bucket refused a listing or the description of a block.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        let list = Self::new();
        let poll = list.begin_poll();
        let known = HashMap::new();
        let look_at = Look { known: &known, concurrency: CONCURRENCY, skip_no_compact: false, delay: &|| Duration::ZERO, now: i64::MAX };
        for tenant in store.tenants().await? {
            let seen = look(store, &tenant, &look_at).await?;
            list.apply(poll, &tenant, seen.found, i64::MAX);
        }
        Ok(list)
    }

    /// The tenant's live blocks, newest first: what queries read.
    pub fn blocks(&self, tenant: &Tenant) -> Arc<Vec<Arc<Meta>>> {
        self.0.read().tenants.get(tenant).map(|blocks| Arc::clone(&blocks.live)).unwrap_or_default()
    }

    /// The tenant's blocks that may be compacted, newest first: the live ones without those that are merely kept until the next poll and
    /// those with a `nocompact.flg`.
    pub fn compactable(&self, tenant: &Tenant) -> Vec<Arc<Meta>> {
        let state = self.0.read();
        let Some(blocks) = state.tenants.get(tenant) else { return Vec::new() };
        let excluded = |meta: &Meta| blocks.found.no_compact.contains(&meta.block_id) || blocks.is_kept(meta.block_id);
        blocks.live.iter().filter(|meta| !excluded(meta)).cloned().collect()
    }

    /// The tenant's compacted blocks, by id.
    pub fn compacted(&self, tenant: &Tenant) -> Arc<Vec<Compacted>> {
        self.0.read().tenants.get(tenant).map(|blocks| Arc::clone(&blocks.compacted)).unwrap_or_default()
    }

    /// The tenant's live and compacted blocks as of one moment.
    pub fn stages(&self, tenant: &Tenant) -> Stages {
        let state = self.0.read();
        let of = |blocks: &Blocks| Stages { live: Arc::clone(&blocks.live), compacted: Arc::clone(&blocks.compacted) };
        state.tenants.get(tenant).map(of).unwrap_or_default()
    }

    /// The tenants that have blocks, live or compacted, sorted.
    pub fn tenants(&self) -> Vec<Tenant> {
        let state = self.0.read();
        let has_blocks = |blocks: &Blocks| !blocks.live.is_empty() || !blocks.compacted.is_empty();
        let mut tenants: Vec<_> = state.tenants.iter().filter(|(_, blocks)| has_blocks(blocks)).map(|(tenant, _)| tenant.clone()).collect();
        tenants.sort();
        tenants
    }

    /// Adds a block that was published; does nothing if it is there already.
    pub fn add(&self, meta: Meta) {
        let tenant = meta.tenant_id.clone();
        self.change(&tenant, [(meta.block_id, Stage::Live(Arc::new(meta)))]);
    }

    /// A compaction, in one step: the inputs are compacted since `now` (seconds since the Unix epoch), the outputs are live. Retention has
    /// inputs only.
    pub fn replace(&self, tenant: &Tenant, removed: &[BlockId], added: Vec<Meta>, now: i64) {
        let removed = removed.iter().map(|&id| (id, Stage::Compacted(None, now)));
        let added = added.into_iter().map(|meta| (meta.block_id, Stage::Live(Arc::new(meta))));
        self.change(tenant, removed.chain(added));
    }

    /// Takes blocks off the list that were deleted.
    pub fn remove(&self, tenant: &Tenant, ids: &[BlockId]) {
        self.change(tenant, ids.iter().map(|&id| (id, Stage::Gone)));
    }

    /// Told that the bytes of a block are not in the bucket: takes it off the list if it is merely kept until the next poll. Says whether
    /// the list is without it now: then it was deleted as it should be, and the list holds what took its place.
    pub fn is_gone(&self, tenant: &Tenant, block: BlockId) -> bool {
        let mut state = self.0.write();
        let State { tenants, departures, .. } = &mut *state;
        let Some(blocks) = tenants.get_mut(tenant) else { return true };
        if blocks.kept.remove(&block).is_some() {
            *departures += 1;
            blocks.refresh();
        }
        blocks.live.iter().all(|meta| meta.block_id != block)
    }

    /// A number that grows whenever blocks may have left the list.
    pub fn departures(&self) -> u64 {
        self.0.read().departures
    }

    /// Numbers a poll that begins now.
    pub fn begin_poll(&self) -> Poll {
        let mut state = self.0.write();
        state.polls += 1;
        Poll(state.polls)
    }

    /// Puts what a poll found in the place of what the last one found. Blocks without successor that are seen compacted for the
    /// first time, and were so at `recent` (seconds since the Unix epoch) or later are served until the next poll.
    ///
    /// A result that is older than the last one is passed over.
    pub fn apply(&self, poll: Poll, tenant: &Tenant, found: Found, recent: i64) {
        let mut state = self.0.write();
        state.departures += 1;
        let blocks = state.tenants.entry(tenant.clone()).or_default();
        if poll.0 <= blocks.applied {
            return;
        }
        blocks.apply(poll.0, found, recent);
        if blocks.is_empty() {
            state.tenants.remove(tenant);
        }
    }

    /// The tenants that the list knows of, with blocks or without.
    fn known_tenants(&self) -> Vec<Tenant> {
        self.0.read().tenants.keys().cloned().collect()
    }

    fn change(&self, tenant: &Tenant, stages: impl IntoIterator<Item = (BlockId, Stage)>) {
        let mut state = self.0.write();
        let (polls_before, unpolled) = (state.polls, state.unpolled);
        let State { tenants, departures, .. } = &mut *state;
        let blocks = tenants.entry(tenant.clone()).or_default();
        for (id, stage) in stages {
            *departures += u64::from(stage.order() > 0);
            blocks.change(id, stage, polls_before);
        }
        if unpolled {
            // No poll brings anything back, so that only what is there need be remembered.
            blocks.changes.retain(|_, change| matches!(change.stage, Stage::Live(_)));
        }
        blocks.refresh();
        if unpolled {
            blocks.forget_oldest();
        }
    }
}

impl Found {
    /// Each block once: while a block is being marked it is both, which counts as live.
    fn normalized(mut self) -> Self {
        let mut seen = HashSet::new();
        self.live.retain(|meta| seen.insert(meta.block_id));
        self.compacted.retain(|(meta, _)| seen.insert(meta.block_id));
        self
    }
}

impl Stage {
    fn order(&self) -> u8 {
        match self {
            Self::Live(_) => 0,
            Self::Compacted(..) => 1,
            Self::Gone => 2,
        }
    }
}

impl Blocks {
    fn is_empty(&self) -> bool {
        self.live.is_empty() && self.compacted.is_empty() && self.changes.is_empty()
    }

    fn is_kept(&self, id: BlockId) -> bool {
        self.kept.contains_key(&id)
    }

    fn change(&mut self, id: BlockId, stage: Stage, polls_before: u64) {
        let stage = match stage {
            Stage::Compacted(None, at) => Stage::Compacted(self.meta(id), at),
            stage => stage,
        };
        let known = self.changes.get(&id);
        if known.is_none_or(|known| known.stage.order() < stage.order()) {
            self.changes.insert(id, Change { stage, polls_before, survived: false });
        }
    }

    /// The description of a block that the list knows.
    fn meta(&self, id: BlockId) -> Option<Arc<Meta>> {
        let live = self.live.iter().find(|meta| meta.block_id == id).cloned();
        live.or_else(|| self.compacted.iter().find(|compacted| compacted.meta.block_id == id).map(|compacted| Arc::clone(&compacted.meta)))
    }

    fn apply(&mut self, poll: u64, found: Found, recent: i64) {
        self.applied = poll;
        let previous = std::mem::replace(&mut self.found, found.normalized());
        self.changes.retain(|_, change| {
            let began_after = change.polls_before < poll;
            let kept = !(began_after && change.survived);
            change.survived |= began_after;
            kept
        });
        // Blocks that were served and kept once already are not kept again.
        let kept = std::mem::take(&mut self.kept);
        let (live, compacted) = self.stages();
        let is_live: HashSet<BlockId> = live.iter().map(|meta| meta.block_id).collect();
        let missing = |meta: &&Arc<Meta>| !is_live.contains(&meta.block_id) && !kept.contains_key(&meta.block_id);
        let mut candidates: Vec<Arc<Meta>> = self.live.iter().filter(missing).cloned().collect();
        let lately: Vec<_> = compacted.iter().filter(|compacted| compacted.at.is_some_and(|at| at >= recent)).collect();
        if !lately.is_empty() {
            let found = previous.compacted.iter().map(|(meta, _)| meta);
            let shown = self.compacted.iter().map(|compacted| &compacted.meta);
            let known: HashSet<BlockId> = found.chain(shown).map(|meta| meta.block_id).collect();
            let new = lately.into_iter().filter(|compacted| !known.contains(&compacted.meta.block_id));
            candidates.extend(new.map(|compacted| Arc::clone(&compacted.meta)));
        }
        if !candidates.is_empty() {
            let known = compacted.iter().map(|compacted| &compacted.meta).chain(self.live.iter());
            let lineage = Lineage::new(&live, known.map(Arc::as_ref));
            self.kept = candidates.into_iter().filter(|meta| !lineage.is_held(meta)).map(|meta| (meta.block_id, meta)).collect();
        }
        self.refresh();
    }

    /// The last poll's live and compacted blocks, with the local changes laid over them.
    fn stages(&self) -> (Vec<Arc<Meta>>, Vec<Compacted>) {
        let stage = |id: BlockId| self.changes.get(&id).map(|change| &change.stage);
        let unchanged = |meta: &&Arc<Meta>| matches!(stage(meta.block_id), None | Some(Stage::Live(_)));
        let mut live: Vec<_> = self.found.live.iter().filter(unchanged).cloned().collect();
        let found = self.found.compacted.iter().filter(|(meta, _)| !matches!(stage(meta.block_id), Some(Stage::Gone)));
        let mut compacted: Vec<_> = found.map(|(meta, at)| Compacted { meta: Arc::clone(meta), at: Some(*at) }).collect();
        if !self.changes.is_empty() {
            let is_live: HashSet<BlockId> = live.iter().map(|meta| meta.block_id).collect();
            let is_compacted: HashSet<BlockId> = compacted.iter().map(|compacted| compacted.meta.block_id).collect();
            for (id, change) in self.changes.iter().filter(|(id, _)| !is_compacted.contains(id)) {
                match &change.stage {
                    Stage::Live(meta) if !is_live.contains(id) => live.push(Arc::clone(meta)),
                    Stage::Compacted(Some(meta), at) => compacted.push(Compacted { meta: Arc::clone(meta), at: Some(*at) }),
                    _ => {}
                }
            }
        }
        (live, compacted)
    }

    /// Makes what is served anew.
    fn refresh(&mut self) {
        self.kept.retain(|id, _| !matches!(self.changes.get(id), Some(Change { stage: Stage::Compacted(..) | Stage::Gone, .. })));
        let (mut live, mut compacted) = self.stages();
        let is_live: HashSet<BlockId> = live.iter().map(|meta| meta.block_id).collect();
        self.kept.retain(|id, _| !is_live.contains(id));
        live.extend(self.kept.values().cloned());
        let superfluous = Lineage::new(&live, compacted.iter().map(|compacted| compacted.meta.as_ref())).superfluous(&live);
        if !superfluous.is_empty() {
            let is_compacted: HashSet<BlockId> = compacted.iter().map(|compacted| compacted.meta.block_id).collect();
            live.retain(|meta| {
                let stays = !superfluous.contains(&meta.block_id);
                if !stays && !is_compacted.contains(&meta.block_id) {
                    compacted.push(Compacted { meta: Arc::clone(meta), at: None });
                }
                stays
            });
        }
        sort(&mut live, |meta| meta);
        compacted.sort_by_key(|compacted| compacted.meta.block_id);
        self.live = Arc::new(live);
        self.compacted = Arc::new(compacted);
    }

    fn forget_oldest(&mut self) {
        while self.live.len() > MAX_UNPOLLED {
            let Some(oldest) = self.live.last() else { return };
            self.changes.remove(&oldest.block_id);
            self.refresh();
        }
    }
}
