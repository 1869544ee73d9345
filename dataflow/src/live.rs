//! Live traces: assembles spans into traces, drops spans seen before, and cuts traces that are done.
//!
//! A trace is *live* from its first span until it is cut: idle for `idle` ticks, `live` ticks old, or grown to `max_bytes`. What is cut
//! leaves as a [`CutTrace`]. The identities of its spans stay for `window` ticks more, so that a late copy (a replica's, a client's
//! retry, a replayed record) is recognised; a late *new* span opens a fragment that is cut in its turn. Beyond the window a copy
//! passes for new: it may reach a second block, where queries and compaction recognise it by the same identity.
//!
//! Plain state, no timely: ticks come in as numbers. The operator in [`crate::worker`] drives it.
//!
//! ```text
//!  push(segment, tick) ──seen?──► live[tenant][trace].segments          deadlines: tick ─► traces to look at again
//!                        │ yes                                               │
//!                        ▼ count, drop                                       ▼ advance(tick) ─► CutTrace
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map},
    mem,
    sync::Arc,
};

use storage::{
    id::{SpanKey, Tenant, TraceId},
    segment::Segment,
};

/// Limits in ticks and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A trace is cut after this many ticks without a new span.
    pub idle: u64,
    /// A trace is cut this many ticks after its first span.
    pub live: u64,
    /// Identities are remembered this many ticks after the cut.
    pub window: u64,
    /// A trace is cut when this many bytes are held for it.
    pub max_bytes: usize,
}

/// A trace that left the live traces, or a fragment of one.
#[derive(Clone, Debug)]
pub struct CutTrace {
    /// Whose it is.
    pub tenant: Tenant,
    /// The trace.
    pub trace_id: TraceId,
    /// Its spans, each once.
    pub segments: Vec<Arc<Segment>>,
    /// Bytes held for it.
    pub bytes: usize,
    /// When its first span arrived.
    pub since: u64,
    /// When its last span arrived.
    pub until: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct LiveTraces {
    limits: Limits,
    tenants: HashMap<Tenant, HashMap<TraceId, Entry>>,
    /// When to look at a trace again. Each entry knows which of its deadlines counts; others are stale and skipped.
    deadlines: BTreeMap<u64, Vec<(Tenant, TraceId)>>,
    /// Traces that have reached `max_bytes` since the last `advance`.
    oversized: Vec<(Tenant, TraceId)>,
    bytes: usize,
    remembered: usize,
}

#[derive(Debug)]
struct Entry {
    seen: Seen,
    segments: Vec<Arc<Segment>>,
    bytes: usize,
    first_tick: u64,
    last_tick: u64,
    forget_at: u64,
    deadline: u64,
}

impl Entry {
    fn new(deadline: u64) -> Self {
        Self { seen: Seen::default(), segments: Vec::new(), bytes: 0, first_tick: 0, last_tick: 0, forget_at: 0, deadline }
    }
}

/// Identities of spans: a list while it is short, since most traces are.
#[derive(Debug)]
enum Seen {
    Few(Vec<SpanKey>),
    Many(HashSet<SpanKey>),
}

const FEW: usize = 64;

/// The deadline of what is remembered until the replay is over.
const NEVER: u64 = u64::MAX;

impl Default for Seen {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Seen {
    fn contains(&self, key: SpanKey) -> bool {
        match self {
            Self::Few(keys) => keys.contains(&key),
            Self::Many(keys) => keys.contains(&key),
        }
    }

    /// Whether the key is new.
    fn insert(&mut self, key: SpanKey) -> bool {
        match self {
            Self::Few(keys) => {
                if keys.contains(&key) {
                    return false;
                }
                if keys.len() < FEW {
                    keys.push(key);
                } else {
                    let mut many: HashSet<SpanKey> = mem::take(keys).into_iter().collect();
                    many.insert(key);
                    *self = Self::Many(many);
                }
                true
            }
            Self::Many(keys) => keys.insert(key),
        }
    }

    /// Gives back what growing took too much: identities stay far longer than spans do.
    fn shrink(&mut self) {
        match self {
            Self::Few(keys) => keys.shrink_to_fit(),
            Self::Many(keys) => keys.shrink_to_fit(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Few(keys) => keys.len(),
            Self::Many(keys) => keys.len(),
        }
    }
}

/// What became of a pushed segment.
#[derive(Debug)]
pub struct Pushed {
    /// The spans that were new, if any.
    pub first_seen: Option<Arc<Segment>>,
    /// Spans dropped because they were seen before.
    pub duplicates: usize,
    /// Whether a live trace began with it.
    pub began: bool,
}

impl LiveTraces {
    /// No traces yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, tenants: HashMap::new(), deadlines: BTreeMap::new(), oversized: Vec::new(), bytes: 0, remembered: 0 }
    }

    /// Takes in a segment that arrived at `tick`.
    pub fn push(&mut self, mut segment: Segment, tick: u64) -> Pushed {
        let entries = match self.tenants.get_mut(&segment.tenant) {
            Some(entries) => entries,
            None => self.tenants.entry(segment.tenant.clone()).or_default(),
        };
        let entry = match entries.entry(segment.trace_id) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(vacant) => {
                let deadline = tick.saturating_add(self.limits.idle);
                self.deadlines.entry(deadline).or_default().push((segment.tenant.clone(), segment.trace_id));
                vacant.insert(Entry::new(deadline))
            }
        };
        let sent = segment.spans.len();
        segment.spans.retain(|span| entry.seen.insert(span.key));
        let duplicates = sent - segment.spans.len();
        self.remembered += segment.spans.len();
        if segment.spans.is_empty() {
            return Pushed { first_seen: None, duplicates, began: false };
        }
        let began = entry.segments.is_empty();
        if began {
            entry.first_tick = tick;
            let deadline = tick.saturating_add(self.limits.idle);
            if deadline < entry.deadline {
                entry.deadline = deadline;
                self.deadlines.entry(deadline).or_default().push((segment.tenant.clone(), segment.trace_id));
            }
        }
        entry.last_tick = tick;
        let bytes = held_bytes(&segment);
        entry.bytes += bytes;
        self.bytes += bytes;
        let segment = Arc::new(segment);
        entry.segments.push(Arc::clone(&segment));
        if entry.bytes >= self.limits.max_bytes {
            self.oversized.push((segment.tenant.clone(), segment.trace_id));
        }
        Pushed { first_seen: Some(segment), duplicates, began }
    }

    /// Marks spans as seen before, without holding anything of them: those that are in a block already when the log is replayed. They
    /// are remembered until [`Self::replayed`], however long the replay takes and whatever the ticks of its records are.
    pub fn remember(&mut self, tenant: &Tenant, trace_id: TraceId, keys: &[SpanKey]) {
        let entries = self.tenants.entry(tenant.clone()).or_default();
        let entry = entries.entry(trace_id).or_insert_with(|| Entry::new(NEVER));
        if entry.forget_at != NEVER {
            entry.forget_at = NEVER;
            self.deadlines.entry(NEVER).or_default().push((tenant.clone(), trace_id));
        }
        for key in keys {
            self.remembered += usize::from(entry.seen.insert(*key));
        }
    }

    /// The replay is over: from now on what was remembered for it is forgotten like everything else.
    pub fn replayed(&mut self, tick: u64) {
        let forget_at = tick.saturating_add(self.limits.window);
        for (tenant, trace_id) in self.deadlines.remove(&NEVER).unwrap_or_default() {
            let Some(entry) = self.tenants.get_mut(&tenant).and_then(|entries| entries.get_mut(&trace_id)) else { continue };
            if entry.forget_at == NEVER {
                entry.forget_at = forget_at;
            }
            // A live trace has a deadline of its own, and comes back to this one when it is cut.
            if entry.deadline == NEVER {
                entry.deadline = forget_at;
                self.deadlines.entry(forget_at).or_default().push((tenant, trace_id));
            }
        }
    }

    /// Cuts what is due when all segments before `tick` have been pushed.
    pub fn advance(&mut self, tick: u64, mut cut: impl FnMut(CutTrace)) {
        for (tenant, trace_id) in mem::take(&mut self.oversized) {
            self.cut(&tenant, trace_id, tick, &mut cut);
        }
        while let Some((&deadline, _)) = self.deadlines.first_key_value() {
            if deadline > tick {
                break;
            }
            let Some((_, due)) = self.deadlines.pop_first() else { break };
            for (tenant, trace_id) in due {
                self.look(tenant, trace_id, deadline, tick, &mut cut);
            }
        }
    }

    /// Cuts everything that is live.
    pub fn cut_all(&mut self, tick: u64, mut cut: impl FnMut(CutTrace)) {
        let live: Vec<_> = self
            .tenants
            .iter()
            .flat_map(|(tenant, entries)| {
                entries.iter().filter(|(_, entry)| !entry.segments.is_empty()).map(|(id, _)| (tenant.clone(), *id))
            })
            .collect();
        for (tenant, trace_id) in live {
            self.cut(&tenant, trace_id, tick, &mut cut);
        }
    }

    /// A deadline has come: cut, forget, or look again later.
    fn look(&mut self, tenant: Tenant, trace_id: TraceId, deadline: u64, tick: u64, cut: &mut impl FnMut(CutTrace)) {
        let limits = self.limits;
        let Some(entry) = self.tenants.get(&tenant).and_then(|entries| entries.get(&trace_id)) else { return };
        if entry.deadline != deadline {
            return;
        }
        if !entry.segments.is_empty() && due(entry, limits) <= tick {
            self.cut(&tenant, trace_id, tick, cut);
        }
        let Some(entries) = self.tenants.get_mut(&tenant) else { return };
        let Some(entry) = entries.get_mut(&trace_id) else { return };
        let next = if entry.segments.is_empty() { entry.forget_at } else { due(entry, limits) };
        if next <= tick {
            self.remembered -= entry.seen.len();
            entries.remove(&trace_id);
            if entries.is_empty() {
                self.tenants.remove(&tenant);
            }
        } else {
            entry.deadline = next;
            self.deadlines.entry(next).or_default().push((tenant, trace_id));
        }
    }

    fn cut(&mut self, tenant: &Tenant, trace_id: TraceId, tick: u64, cut: &mut impl FnMut(CutTrace)) {
        let Some(entry) = self.tenants.get_mut(tenant).and_then(|entries| entries.get_mut(&trace_id)) else { return };
        if entry.segments.is_empty() {
            return;
        }
        let (segments, bytes) = (mem::take(&mut entry.segments), mem::take(&mut entry.bytes));
        entry.forget_at = entry.forget_at.max(tick.saturating_add(self.limits.window));
        entry.seen.shrink();
        self.bytes -= bytes;
        let (since, until) = (entry.first_tick, entry.last_tick);
        cut(CutTrace { tenant: tenant.clone(), trace_id, segments, bytes, since, until });
    }

    /// When the oldest span that is held arrived.
    pub fn oldest(&self) -> Option<u64> {
        let live = self.tenants.values().flat_map(HashMap::values).filter(|entry| !entry.segments.is_empty());
        live.map(|entry| entry.first_tick).min()
    }

    /// What is live of one trace.
    pub fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> &[Arc<Segment>] {
        self.tenants.get(tenant).and_then(|entries| entries.get(&trace_id)).map_or(&[], |entry| &entry.segments)
    }

    /// Whether a span was seen already, as far as that is remembered: at least for as long as its trace is live.
    pub fn has_seen(&self, tenant: &Tenant, trace_id: TraceId, key: SpanKey) -> bool {
        self.tenants.get(tenant).and_then(|entries| entries.get(&trace_id)).is_some_and(|entry| entry.seen.contains(key))
    }

    /// All live traces of a tenant.
    pub fn traces_of(&self, tenant: &Tenant) -> impl Iterator<Item = (TraceId, &[Arc<Segment>])> {
        self.tenants
            .get(tenant)
            .into_iter()
            .flatten()
            .filter(|(_, entry)| !entry.segments.is_empty())
            .map(|(id, entry)| (*id, entry.segments.as_slice()))
    }

    /// Live traces per tenant and the bytes held for them.
    pub fn tenants(&self) -> impl Iterator<Item = (&Tenant, usize, usize)> {
        self.tenants.iter().map(|(tenant, entries)| {
            let live = entries.values().filter(|entry| !entry.segments.is_empty());
            let (count, bytes) = live.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.bytes));
            (tenant, count, bytes)
        })
    }

    /// Bytes held for live traces.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of span identities remembered.
    pub fn remembered(&self) -> usize {
        self.remembered
    }
}

/// When a live trace is cut if nothing more arrives.
fn due(entry: &Entry, limits: Limits) -> u64 {
    entry.last_tick.saturating_add(limits.idle).min(entry.first_tick.saturating_add(limits.live))
}

/// What a segment costs in memory: its spans' bytes, its share of resources and scopes (estimated), and its own structures.
fn held_bytes(segment: &Segment) -> usize {
    let spans = segment.span_bytes();
    spans + spans / 8 + size_of::<Segment>() + segment.spans.len() * size_of::<storage::segment::SpanRef>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;
    use storage::{otlp::Slice, segment::SpanRef, wal::Position};

    use super::*;

    const LIMITS: Limits = Limits { idle: 4, live: 12, window: 20, max_bytes: 100_000 };

    fn trace_id(n: u8) -> TraceId {
        TraceId([n; 16])
    }

    /// A segment whose spans are `ids`, each of 100 bytes.
    fn segment(trace: u8, ids: &[u64], position: u64) -> Segment {
        let span = |id: &u64| SpanRef {
            key: SpanKey { span_id: *id, kind: 1 },
            start_ns: 0,
            resource: Slice::default(),
            scope: Slice::default(),
            span: Slice { start: 0, end: 100 },
        };
        Segment {
            tenant: Tenant::single(),
            trace_id: trace_id(trace),
            position: Position(position),
            body: Bytes::from_static(&[0; 100]),
            spans: ids.iter().map(span).collect(),
        }
    }

    fn ids(cut: &CutTrace) -> Vec<u64> {
        cut.segments.iter().flat_map(|segment| &segment.spans).map(|span| span.key.span_id).collect()
    }

    fn advance(live: &mut LiveTraces, tick: u64) -> Vec<CutTrace> {
        let mut cut = Vec::new();
        live.advance(tick, |trace| cut.push(trace));
        cut
    }

    #[test]
    fn a_trace_is_cut_when_idle_and_late_copies_are_dropped() {
        let mut live = LiveTraces::new(LIMITS);
        assert!(live.push(segment(1, &[1, 2], 10), 100).began);
        assert_eq!(live.push(segment(1, &[2, 3], 20), 102).duplicates, 1);
        assert_eq!(advance(&mut live, 105).len(), 0, "102 + 4 has not come");
        let cut = advance(&mut live, 106);
        assert_eq!(cut.iter().map(ids).collect::<Vec<_>>(), [[1, 2, 3]]);
        assert_eq!(live.push(segment(1, &[3, 1], 30), 110).duplicates, 2);
        assert_eq!(ids(&live_fragment(&mut live)), [4]);
        assert_eq!(live.bytes(), 0);
    }

    /// A late new span makes a fragment that is cut when it idles itself, not when its identity is forgotten.
    fn live_fragment(live: &mut LiveTraces) -> CutTrace {
        assert!(live.push(segment(1, &[4], 40), 111).began);
        let mut cut = advance(live, 115);
        assert_eq!(cut.len(), 1);
        cut.remove(0)
    }

    #[test]
    fn a_busy_trace_is_cut_by_age_and_a_large_one_by_size() {
        let mut live = LiveTraces::new(LIMITS);
        let mut cut = Vec::new();
        for tick in 0..12 {
            live.push(segment(1, &[tick], tick), tick);
            cut.extend(advance(&mut live, tick));
        }
        assert_eq!(cut.len(), 0);
        assert_eq!(advance(&mut live, 12).len(), 1);
        live.push(segment(2, &(0..1000).collect::<Vec<_>>(), 50), 20);
        assert_eq!(advance(&mut live, 20).len(), 1, "100 000 bytes are the limit");
    }

    #[test]
    fn identities_are_forgotten_after_the_window() {
        let mut live = LiveTraces::new(LIMITS);
        live.push(segment(1, &[1], 1), 0);
        advance(&mut live, 4);
        assert_eq!(live.remembered(), 1);
        advance(&mut live, 24);
        assert_eq!(live.remembered(), 0);
        assert_eq!(live.push(segment(1, &[1], 2), 25).duplicates, 0);
    }

    #[test]
    fn what_a_block_holds_is_known_before_it_comes() {
        let mut live = LiveTraces::new(LIMITS);
        live.remember(&Tenant::single(), trace_id(1), &[SpanKey { span_id: 7, kind: 1 }]);
        let pushed = live.push(segment(1, &[7, 8], 1), 1);
        assert_eq!((pushed.duplicates, pushed.began), (1, true));
        assert_eq!(live.oldest(), Some(1));
    }

    #[test]
    fn what_a_block_holds_is_known_until_the_replay_is_over() {
        let known = SpanKey { span_id: 7, kind: 1 };
        let mut live = LiveTraces::new(LIMITS);
        live.remember(&Tenant::single(), trace_id(1), &[known]);
        live.remember(&Tenant::single(), trace_id(2), &[known]);
        live.push(segment(1, &[8], 1), 100);
        assert_eq!(advance(&mut live, 104).len(), 1, "a fragment that is in no block yet");
        advance(&mut live, 1_000_000);
        assert_eq!(live.push(segment(1, &[7], 2), 1_000_000).duplicates, 1);
        assert_eq!(live.push(segment(2, &[7, 9], 2), 1_000_000).duplicates, 1);
        live.replayed(1_000_001);
        advance(&mut live, 1_000_020);
        assert_eq!((live.push(segment(1, &[7], 3), 1_000_020).duplicates, live.push(segment(2, &[7], 3), 1_000_020).duplicates), (1, 1));
        advance(&mut live, 1_000_100);
        assert_eq!((live.remembered(), live.deadlines.len(), live.bytes()), (0, 0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { trace: u8, ids: Vec<u64> },
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (0..6u8, prop::collection::vec(0..80u64, 1..90)).prop_map(|(trace, ids)| Step::Push { trace, ids });
        prop::collection::vec(prop_oneof![push, (0..6u64).prop_map(Step::Advance)], 0..80)
    }

    proptest! {
        /// Against a model that remembers everything for ever: within the window nothing comes out twice, nothing is lost, nothing
        /// stays longer than it may, and the counts of bytes add up.
        #[test]
        fn agrees_with_a_model(steps in steps()) {
            let limits = Limits { window: u64::MAX / 2, ..LIMITS };
            let mut live = LiveTraces::new(limits);
            let (mut sent, mut out) = (BTreeMap::<(u8, u64), u32>::new(), BTreeMap::<(u8, u64), u32>::new());
            let (mut tick, mut last) = (0, HashMap::<u8, u64>::new());
            for (position, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push { trace, ids } => {
                        live.push(segment(trace, &ids, position as u64), tick);
                        for id in ids {
                            if sent.insert((trace, id), 1).is_none() {
                                last.insert(trace, tick);
                            }
                        }
                    }
                    Step::Advance(by) => {
                        tick += by;
                        for cut in advance(&mut live, tick) {
                            prop_assert_eq!(cut.bytes, cut.segments.iter().map(|segment| held_bytes(segment)).sum::<usize>());
                            for id in ids(&cut) {
                                *out.entry((cut.trace_id.0[0], id)).or_default() += 1;
                            }
                        }
                        for trace in 0..6 {
                            let held = live.trace(&Tenant::single(), trace_id(trace));
                            let fresh = last.get(&trace).is_some_and(|last| last + LIMITS.idle > tick);
                            prop_assert!(held.is_empty() || fresh);
                        }
                    }
                }
            }
            live.cut_all(tick, |cut| ids(&cut).into_iter().for_each(|id| *out.entry((cut.trace_id.0[0], id)).or_default() += 1));
            prop_assert_eq!(sent, out);
            prop_assert_eq!(live.bytes(), 0);
            prop_assert_eq!(live.oldest(), None);
        }
    }
}
