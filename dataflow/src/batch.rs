//! Batches: cut traces wait here, per tenant, until they make a block; then until the block is committed.
//!
//! ```text
//!  CutTrace ─► open batch of the tenant ──full, old or asked──► pending block ──uploaded──► done ──committed──► gone
//!              └──────────────── all readable by queries, all counted as held bytes ──────────────┘
//! ```
//!
//! A block stays here until the commit that lists it, so that at every moment a span is live, here, or in a listed block.
//! Blocks that were committed lately are remembered by their descriptions: whoever asks for recent data may not have heard of them.
//! Plain state, no timely. The operator in [`crate::worker`] drives it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use storage::{
    block::{Meta, TraceSegments},
    id::{BlockId, Tenant, TraceId},
    segment::Segment,
};

use crate::{live::CutTrace, records::Records};

/// When a batch becomes a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Held bytes of a tenant's batch that are enough.
    pub(crate) bytes: usize,
    /// Ticks since its first trace came.
    pub(crate) age: u64,
    /// Ticks for which committed blocks are remembered.
    pub(crate) published: u64,
}

/// A block to be encoded and uploaded.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) block_id: BlockId,
    pub(crate) tenant: Tenant,
    /// Sorted by id.
    pub(crate) traces: Arc<Vec<TraceSegments>>,
}

/// What a block's spans came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Their records.
    pub(crate) records: Records,
    /// The tick at which the last of them arrived.
    pub(crate) until: u64,
}

#[derive(Debug)]
struct Open {
    traces: BTreeMap<TraceId, Vec<Arc<Segment>>>,
    bytes: usize,
    /// When the first trace came.
    begun: u64,
    /// When the first and the last span had arrived.
    since: u64,
    until: u64,
}

#[derive(Debug)]
struct Pending {
    tenant: Tenant,
    traces: Arc<Vec<TraceSegments>>,
    origin: Origin,
    since: u64,
    bytes: usize,
    /// Once it is uploaded.
    meta: Option<Arc<Meta>>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Batches {
    limits: Limits,
    open: HashMap<Tenant, Open>,
    pending: HashMap<BlockId, Pending>,
    /// Committed blocks, oldest first, with the ticks at which they were.
    published: VecDeque<(u64, Arc<Meta>)>,
    /// The last tick that was heard of.
    tick: u64,
    bytes: usize,
}

impl Batches {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, open: HashMap::new(), pending: HashMap::new(), published: VecDeque::new(), tick: 0, bytes: 0 }
    }

    /// Takes in a trace that was cut at `tick`. Fragments of one trace become one row. Returns the block that it makes full.
    pub(crate) fn push(&mut self, trace: CutTrace, tick: u64, new_id: impl FnOnce() -> BlockId) -> Option<Job> {
        self.bytes += trace.bytes;
        let tenant = trace.tenant;
        let open = self.open.entry(tenant.clone()).or_insert_with(|| Open {
            traces: BTreeMap::new(),
            bytes: 0,
            begun: tick,
            since: trace.since,
            until: trace.until,
        });
        open.bytes += trace.bytes;
        (open.since, open.until) = (open.since.min(trace.since), open.until.max(trace.until));
        open.traces.entry(trace.trace_id).or_default().extend(trace.segments);
        if open.bytes < self.limits.bytes {
            return None;
        }
        self.cut_tenant(tenant, new_id())
    }

    /// Turns the batches that are old, or (with `all`) not empty, into jobs.
    pub(crate) fn cut(&mut self, tick: u64, all: bool, mut new_id: impl FnMut() -> BlockId) -> Vec<Job> {
        let limits = self.limits;
        self.tick = self.tick.max(tick);
        while self.published.front().is_some_and(|(at, _)| at.saturating_add(limits.published) < self.tick) {
            self.published.pop_front();
        }
        let due: Vec<Tenant> = self
            .open
            .iter()
            .filter(|(_, open)| all || tick.saturating_sub(open.begun) >= limits.age)
            .map(|(tenant, _)| tenant.clone())
            .collect();
        due.into_iter().filter_map(|tenant| self.cut_tenant(tenant, new_id())).collect()
    }

    fn cut_tenant(&mut self, tenant: Tenant, block_id: BlockId) -> Option<Job> {
        let open = self.open.remove(&tenant)?;
        let records = Records::of(open.traces.values().flatten().map(|segment| segment.position));
        let traces = open.traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments });
        let traces = Arc::new(traces.collect::<Vec<_>>());
        let origin = Origin { records, until: open.until };
        let pending =
            Pending { tenant: tenant.clone(), traces: Arc::clone(&traces), origin, since: open.since, bytes: open.bytes, meta: None };
        self.pending.insert(block_id, pending);
        Some(Job { block_id, tenant, traces })
    }

    /// A block was uploaded: it goes into the next commit, and no longer holds the log. Returns what it came from.
    pub(crate) fn uploaded(&mut self, meta: &Meta) -> Option<Origin> {
        let pending = self.pending.get_mut(&meta.block_id)?;
        pending.meta = Some(Arc::new(meta.clone()));
        Some(pending.origin.clone())
    }

    /// A job turned out to hold no trace that could be encoded: nothing of it will ever be committed.
    pub(crate) fn dropped(&mut self, block_id: BlockId) {
        if let Some(pending) = self.pending.remove(&block_id) {
            self.bytes -= pending.bytes;
        }
    }

    /// Remembers a block that was committed before this began, at a tick.
    pub(crate) fn remember(&mut self, meta: Arc<Meta>, tick: u64) {
        self.published.push_back((tick, meta));
    }

    /// A block is listed: queries find its traces there from now on.
    pub(crate) fn committed(&mut self, block_id: BlockId) {
        if let Some(pending) = self.pending.remove(&block_id) {
            self.bytes -= pending.bytes;
            self.published.extend(pending.meta.map(|meta| (self.tick, meta)));
        }
    }

    /// Blocks of a tenant that were committed lately.
    pub(crate) fn published(&self, tenant: &Tenant) -> impl Iterator<Item = &Arc<Meta>> {
        self.published.iter().map(|(_, meta)| meta).filter(move |meta| meta.tenant_id == *tenant)
    }

    /// When the oldest span arrived that is in no uploaded block yet.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let pending = self.pending.values().filter(|pending| pending.meta.is_none()).map(|pending| pending.since);
        self.open.values().map(|open| open.since).chain(pending).min()
    }

    /// Everything here of one trace, each part with the block that it is going into.
    pub(crate) fn trace(&self, tenant: &Tenant, trace_id: TraceId, mut each: impl FnMut(Option<BlockId>, &[Arc<Segment>])) {
        if let Some(segments) = self.open.get(tenant).and_then(|open| open.traces.get(&trace_id)) {
            each(None, segments);
        }
        for (block, pending) in self.pending.iter().filter(|(_, pending)| pending.tenant == *tenant) {
            if let Ok(found) = pending.traces.binary_search_by_key(&trace_id, |trace| trace.trace_id) {
                each(Some(*block), &pending.traces[found].segments);
            }
        }
    }

    /// All traces here of a tenant, each part with the block that it is going into.
    pub(crate) fn traces_of(&self, tenant: &Tenant, mut each: impl FnMut(TraceId, Option<BlockId>, &[Arc<Segment>])) {
        if let Some(open) = self.open.get(tenant) {
            for (trace_id, segments) in &open.traces {
                each(*trace_id, None, segments);
            }
        }
        for (block, pending) in self.pending.iter().filter(|(_, pending)| pending.tenant == *tenant) {
            for trace in pending.traces.iter() {
                each(trace.trace_id, Some(*block), &trace.segments);
            }
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Blocks that wait for upload or commit.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Ids of the blocks that wait for upload or commit.
    pub(crate) fn pending_ids(&self) -> impl Iterator<Item = BlockId> {
        self.pending.keys().copied()
    }
}
