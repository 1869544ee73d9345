//! Limits on traces: how many a tenant may have live, and how large one may grow.
//!
//! The problem: a span is small, but a trace is kept in memory until it is idle, and a trace without end (an instrumented loop) would grow
//! for ever. Both must be refused at the door, at the cost of a few nanoseconds per span.
//!
//! ```text
//!  spans of a request ──Batch::group──► one entry per trace ──TraceTable::charge──► verdict per trace
//!                      (reused memory)                        (under the tenant's lock)
//! ```
//!
//! Rules. A trace is live while its last accepted push is younger than `trace_idle_period`. When as many traces are live as the tenant
//! may have, spans of traces that are *not* live are refused; those that are live may be completed (the reference refuses these too,
//! which loses the rest of traces that it has already paid for). A trace whose bytes, counted over all pushes including refused ones,
//! exceed the limit has its spans refused from then on, and a refused push doesn't keep it alive.
//!
//! Live traces are counted without scanning: time is cut into ticks of an eighth of the idle period, each tick knows how many traces
//! were last pushed in it, and a tick that grows too old leaves the sum. A trace thus expires between 8 and 9 eighths of the period.
//!
//! Sizes outlive liveness, because a trace that pauses is still one trace: entries are kept in two generations, looked up in both and moved
//! to the younger one when touched. When the younger is as old as the retention, or full, the older is dropped whole. Memory is at most
//! two full generations; what is forgotten early starts to count again from zero.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use storage::{
    id::TraceId,
    otlp::{Slice, SpanEntry},
};

/// Ticks in an idle period.
const TICKS: u64 = 8;

/// What an ingester decides about the spans of a trace. The numbers are those of `tempopb.PushErrorReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted = 0,
    LiveTracesExceeded = 1,
    TraceTooLarge = 2,
    /// The spans are not what they are said to be.
    Unknown = 3,
}

impl Verdict {
    /// Reasons to refuse.
    pub(crate) const REFUSALS: [Self; 3] = [Self::LiveTracesExceeded, Self::TraceTooLarge, Self::Unknown];

    /// The name in metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Accepted => "",
            Self::LiveTracesExceeded => "live_traces_exceeded",
            Self::TraceTooLarge => "trace_too_large",
            Self::Unknown => "unknown_error",
        }
    }

    /// Reads a `tempopb.PushErrorReason`.
    pub(crate) fn of_code(code: u64) -> Self {
        match code {
            0 => Self::Accepted,
            1 => Self::LiveTracesExceeded,
            2 => Self::TraceTooLarge,
            _ => Self::Unknown,
        }
    }
}

/// Refused spans of a request, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals([Refused; Verdict::REFUSALS.len()]);

/// What was refused for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) traces: u64,
    pub(crate) spans: u64,
    /// The first of the traces.
    pub(crate) example: TraceId,
}

impl Refusals {
    /// Adds the spans of a trace, unless they are accepted.
    pub(crate) fn add(&mut self, verdict: Verdict, trace_id: TraceId, spans: u64) {
        if let Some(place) = Verdict::REFUSALS.iter().position(|&refusal| refusal == verdict) {
            let refused = &mut self.0[place];
            if refused.traces == 0 {
                refused.example = trace_id;
            }
            refused.traces += 1;
            refused.spans += spans;
        }
    }

    /// All refused spans.
    pub(crate) fn spans(&self) -> u64 {
        self.0.iter().map(|refused| refused.spans).sum()
    }

    /// The reasons that occurred.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Verdict, Refused)> {
        Verdict::REFUSALS.into_iter().zip(self.0).filter(|(_, refused)| refused.traces > 0)
    }
}

/// The part of one request that belongs to one trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceShare {
    pub(crate) trace_id: TraceId,
    /// Bytes of its spans, and of resource and scope once per run of spans that share them.
    pub(crate) bytes: u64,
    pub(crate) spans: u64,
    /// Earliest start, Unix nanoseconds.
    pub(crate) start_ns: u64,
    /// Latest end, Unix nanoseconds.
    pub(crate) end_ns: u64,
    pub(crate) verdict: Verdict,
    resource: Slice,
    scope: Slice,
}

/// The traces of one request. Its memory is reused from request to request.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) shares: Vec<TraceShare>,
    /// For each span of the request, which of the shares it is in.
    pub(crate) share_of: Vec<u32>,
    places: HashMap<TraceId, u32, TraceIdHashing>,
}

impl Batch {
    /// Sums up the spans of a request by trace.
    pub(crate) fn group(&mut self, spans: &[SpanEntry]) {
        self.shares.clear();
        self.share_of.clear();
        self.places.clear();
        let mut last = usize::MAX;
        for span in spans {
            if self.shares.get(last).is_none_or(|share| share.trace_id != span.trace_id) {
                last = *self.places.entry(span.trace_id).or_insert_with(|| {
                    self.shares.push(TraceShare {
                        trace_id: span.trace_id,
                        bytes: u64::from(length(span.resource) + length(span.scope)),
                        spans: 0,
                        start_ns: u64::MAX,
                        end_ns: 0,
                        verdict: Verdict::Accepted,
                        resource: span.resource,
                        scope: span.scope,
                    });
                    self.shares.len() as u32 - 1
                }) as usize;
            }
            self.share_of.push(last as u32);
            let share = &mut self.shares[last];
            if share.resource != span.resource {
                share.resource = span.resource;
                share.bytes += u64::from(length(span.resource));
            }
            if share.scope != span.scope {
                share.scope = span.scope;
                share.bytes += u64::from(length(span.scope));
            }
            share.bytes += u64::from(length(span.span));
            share.spans += 1;
            share.start_ns = share.start_ns.min(span.start_ns);
            share.end_ns = share.end_ns.max(span.end_ns);
        }
    }

    /// What was decided about the trace of a span of this request, told by its place.
    pub(crate) fn verdict(&self, span: usize) -> Verdict {
        self.share_of.get(span).map_or(Verdict::Accepted, |&share| self.shares[share as usize].verdict)
    }

    /// Gives memory back that only an unusually large request needed.
    pub(crate) fn shrink(&mut self, spans: usize) {
        if self.share_of.capacity() > spans {
            *self = Self::default();
        }
    }
}

fn length(slice: Slice) -> u32 {
    slice.end.saturating_sub(slice.start)
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    /// Tick of the last accepted push; 0 when there was none.
    tick: u64,
}

/// What a tenant's traces may be; 0 is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceLimits {
    /// Live traces in this process.
    pub(crate) max_live: u64,
    /// Bytes of a trace.
    pub(crate) max_bytes: u64,
}

/// How the table of every tenant is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableSettings {
    pub(crate) idle: Duration,
    pub(crate) retention: Duration,
    pub(crate) max_entries: usize,
}

/// The traces that a tenant pushed lately.
#[derive(Debug)]
pub(crate) struct TraceTable {
    settings: TableSettings,
    young: HashMap<TraceId, Entry, TraceIdHashing>,
    old: HashMap<TraceId, Entry, TraceIdHashing>,
    rotated_at: Duration,
    live: LiveTraces,
}

impl TraceTable {
    pub(crate) fn new(settings: TableSettings) -> Self {
        Self { settings, young: HashMap::default(), old: HashMap::default(), rotated_at: Duration::ZERO, live: LiveTraces::default() }
    }

    /// Counts a request in and decides, per trace, whether its spans are accepted. Says whether any were refused.
    pub(crate) fn charge(&mut self, batch: &mut Batch, limits: TraceLimits, now: Duration) -> bool {
        self.advance(now);
        let max_live = if limits.max_live == 0 { u64::MAX } else { limits.max_live };
        let max_bytes = if limits.max_bytes == 0 { u64::MAX } else { limits.max_bytes };
        // Never so small that live traces would be forgotten for lack of room.
        let room = (self.settings.max_entries / 2).max(usize::try_from(limits.max_live).unwrap_or(usize::MAX));
        let mut refused = false;
        for share in &mut batch.shares {
            let mut entry = match self.young.get(&share.trace_id).or_else(|| self.old.get(&share.trace_id)) {
                Some(entry) => *entry,
                None => Entry { bytes: 0, tick: 0 },
            };
            if !self.live.contains(entry.tick) && self.live.count >= max_live {
                share.verdict = Verdict::LiveTracesExceeded;
                refused = true;
                continue;
            }
            entry.bytes = entry.bytes.saturating_add(share.bytes);
            if entry.bytes > max_bytes {
                share.verdict = Verdict::TraceTooLarge;
                refused = true;
            } else {
                entry.tick = self.live.touch(entry.tick);
            }
            if self.young.len() >= room && !self.young.contains_key(&share.trace_id) {
                self.rotate(now);
            }
            self.young.insert(share.trace_id, entry);
        }
        refused
    }

    /// Takes back the bytes of a request that could not be stored, so that its retry is not counted twice.
    pub(crate) fn discharge(&mut self, batch: &Batch) {
        for share in batch.shares.iter().filter(|share| share.verdict == Verdict::Accepted) {
            let entry = match self.young.get_mut(&share.trace_id) {
                Some(entry) => Some(entry),
                None => self.old.get_mut(&share.trace_id),
            };
            if let Some(entry) = entry {
                entry.bytes = entry.bytes.saturating_sub(share.bytes);
            }
        }
    }

    /// Forgets what is too old, and says whether nothing is left.
    pub(crate) fn expire(&mut self, now: Duration) -> bool {
        self.advance(now);
        self.young.is_empty() && self.old.is_empty()
    }

    /// Live traces.
    pub(crate) fn live(&self) -> u64 {
        self.live.count
    }

    fn advance(&mut self, now: Duration) {
        let tick_ns = (self.settings.idle.as_nanos() / u128::from(TICKS)).max(1);
        self.live.advance(u64::try_from(now.as_nanos() / tick_ns).unwrap_or(u64::MAX));
        let age = now.saturating_sub(self.rotated_at);
        if age >= self.settings.retention {
            self.rotate(now);
        }
        if age >= self.settings.retention * 2 {
            self.rotate(now);
        }
    }

    fn rotate(&mut self, now: Duration) {
        self.old = std::mem::take(&mut self.young);
        self.rotated_at = now;
    }
}

/// How many traces were last pushed in each tick of the idle period.
#[derive(Debug, Default)]
struct LiveTraces {
    /// Sum of `by_tick`.
    count: u64,
    newest: u64,
    /// The last element belongs to `newest`.
    by_tick: VecDeque<u64>,
}

impl LiveTraces {
    fn advance(&mut self, tick: u64) {
        if self.by_tick.is_empty() {
            self.newest = tick;
            self.by_tick.push_back(0);
        }
        // A clock that steps back stands still here.
        let steps = tick.saturating_sub(self.newest);
        for _ in 0..steps.min(TICKS + 1) {
            self.by_tick.push_back(0);
        }
        self.newest += steps;
        while self.by_tick.len() as u64 > TICKS + 1 {
            self.count -= self.by_tick.pop_front().unwrap_or_default();
        }
    }

    fn place(&self, tick: u64) -> Option<usize> {
        (self.by_tick.len() as u64).checked_sub(1 + self.newest.checked_sub(tick)?).map(|place| place as usize)
    }

    fn contains(&self, tick: u64) -> bool {
        tick != 0 && self.place(tick).is_some()
    }

    /// Moves a trace from the tick of its last push to the newest, which is returned.
    fn touch(&mut self, tick: u64) -> u64 {
        match self.place(tick).filter(|_| tick != 0) {
            Some(place) => self.by_tick[place] = self.by_tick[place].saturating_sub(1),
            None => self.count += 1,
        }
        if let Some(newest) = self.by_tick.back_mut() {
            *newest += 1;
        }
        self.newest
    }
}

/// Hashes trace ids: one multiplication under a key drawn per process, because ids are chosen by the sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceIdHashing {
    keys: [u64; 2],
}

impl Default for TraceIdHashing {
    fn default() -> Self {
        static KEYS: std::sync::LazyLock<[u64; 2]> = std::sync::LazyLock::new(|| {
            let random = RandomState::new();
            [random.hash_one(0), random.hash_one(1)]
        });
        Self { keys: *KEYS }
    }
}

impl BuildHasher for TraceIdHashing {
    type Hasher = TraceIdHasher;

    fn build_hasher(&self) -> TraceIdHasher {
        TraceIdHasher { keys: self.keys, hash: 0 }
    }
}

/// See [`TraceIdHashing`].
#[derive(Debug)]
pub(crate) struct TraceIdHasher {
    keys: [u64; 2],
    hash: u64,
}

impl Hasher for TraceIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            let mut id = [0; 16];
            id[..chunk.len()].copy_from_slice(chunk);
            let id = u128::from_le_bytes(id);
            let (low, high) = (id as u64 ^ self.keys[0] ^ self.hash, (id >> 64) as u64 ^ self.keys[1]);
            let product = u128::from(low) * u128::from(high);
            self.hash = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn write_usize(&mut self, _length: usize) {
        // The length prefix of an array: the same for all trace ids.
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use storage::id::SpanKey;

    const IDLE: Duration = Duration::from_secs(8);
    const SETTINGS: TableSettings = TableSettings { idle: IDLE, retention: Duration::from_secs(60), max_entries: 1 << 17 };

    fn span(trace: u8, bytes: u32) -> SpanEntry {
        let mut id = [1; 16];
        id[15] = trace;
        SpanEntry {
            trace_id: TraceId(id),
            key: SpanKey { span_id: 1, kind: 0 },
            resource: Slice::default(),
            scope: Slice::default(),
            span: Slice { start: 0, end: bytes },
            start_ns: 0,
            end_ns: 5,
        }
    }

    fn limits(max_live: u64, max_bytes: u64) -> TraceLimits {
        TraceLimits { max_live, max_bytes }
    }

    fn push(table: &mut TraceTable, spans: &[SpanEntry], limits: TraceLimits, at: u64) -> Vec<Verdict> {
        let mut batch = Batch::default();
        batch.group(spans);
        table.charge(&mut batch, limits, Duration::from_secs(at));
        (0..spans.len()).map(|span| batch.verdict(span)).collect()
    }

    use Verdict::{Accepted, LiveTracesExceeded, TraceTooLarge};

    #[test]
    fn new_traces_are_refused_at_the_limit_and_live_ones_go_on() {
        let mut table = TraceTable::new(SETTINGS);
        let two = limits(2, 0);
        assert_eq!(
            push(&mut table, &[span(1, 9), span(2, 9), span(3, 9), span(1, 9)], two, 100),
            [Accepted, Accepted, LiveTracesExceeded, Accepted]
        );
        assert_eq!(push(&mut table, &[span(3, 9), span(2, 9)], two, 107), [LiveTracesExceeded, Accepted]);
        assert_eq!(table.live(), 2);
        assert_eq!(push(&mut table, &[span(3, 9)], two, 109), [Accepted], "trace 1 has been idle for 9 s");
        assert_eq!(push(&mut table, &[span(1, 9)], two, 109), [LiveTracesExceeded], "and is no longer live");
        assert_eq!(push(&mut table, &[span(1, 9)], two, 10_000), [Accepted]);
        assert_eq!(table.live(), 1);
    }

    #[test]
    fn a_trace_that_is_too_large_stays_refused_until_it_is_forgotten() {
        let mut table = TraceTable::new(SETTINGS);
        let small = limits(0, 100);
        assert_eq!(push(&mut table, &[span(1, 60), span(2, 101)], small, 100), [Accepted, TraceTooLarge]);
        assert_eq!(table.live(), 1, "a refused trace is not live");
        assert_eq!(push(&mut table, &[span(1, 40)], small, 110), [Accepted]);
        assert_eq!(push(&mut table, &[span(1, 1)], small, 111), [TraceTooLarge]);
        assert_eq!(push(&mut table, &[span(1, 1)], small, 140), [TraceTooLarge], "its size outlives its liveness");
        assert_eq!(push(&mut table, &[span(1, 1)], small, 1000), [Accepted]);
        assert!(table.expire(Duration::from_secs(2000)));
    }

    #[test]
    fn what_could_not_be_stored_is_not_counted() {
        let mut table = TraceTable::new(SETTINGS);
        let mut batch = Batch::default();
        for _ in 0..3 {
            batch.group(&[span(1, 60)]);
            assert!(!table.charge(&mut batch, limits(0, 100), Duration::from_secs(100)));
            table.discharge(&batch);
        }
    }

    #[test]
    fn shared_resources_count_once_per_run() {
        let at = |span: SpanEntry, resource: u32| SpanEntry { resource: Slice { start: resource, end: resource + 10 }, ..span };
        let mut batch = Batch::default();
        batch.group(&[at(span(1, 5), 0), at(span(1, 5), 0), at(span(2, 5), 0), at(span(1, 5), 50)]);
        let got: Vec<_> = batch.shares.iter().map(|s| (s.bytes, s.spans)).collect();
        assert_eq!(got, [(35, 3), (15, 1)]);
    }

    #[test]
    fn memory_is_bounded_by_two_generations() {
        let mut table = TraceTable::new(TableSettings { max_entries: 100, ..SETTINGS });
        let mut batch = Batch::default();
        for n in 0..10_000u64 {
            let mut one = span(0, 1);
            one.trace_id.0[..8].copy_from_slice(&n.to_le_bytes());
            batch.group(&[one]);
            table.charge(&mut batch, limits(0, 0), Duration::from_secs(100));
        }
        assert!(table.young.len() + table.old.len() <= 100);
        assert_eq!(table.live(), 10_000, "the count does not depend on what is remembered");
    }

    proptest! {
        /// The table agrees with a list of (trace, bytes, last push) that is scanned for every push.
        #[test]
        fn agrees_with_a_scan(pushes in prop::collection::vec((0u64..4, 0u8..6, 1u32..40), 1..200), max_live in 0u64..4) {
            let limits = limits(max_live, 100);
            let mut table = TraceTable::new(TableSettings { retention: Duration::from_secs(1 << 30), ..SETTINGS });
            let mut model: Vec<(u64, Option<u64>)> = vec![(0, None); 6];
            let mut now = 100u64;
            for (pause, trace, bytes) in pushes {
                now += pause;
                let is_live = |last: Option<u64>| last.is_some_and(|last| now - last <= IDLE.as_secs());
                let live = model.iter().filter(|entry| is_live(entry.1)).count() as u64;
                let entry = &mut model[usize::from(trace)];
                let expected = if max_live > 0 && live >= max_live && !is_live(entry.1) {
                    LiveTracesExceeded
                } else {
                    entry.0 += u64::from(bytes);
                    if entry.0 > 100 { TraceTooLarge } else { entry.1 = Some(now); Accepted }
                };
                prop_assert_eq!(push(&mut table, &[span(trace, bytes)], limits, now), vec![expected]);
            }
        }
    }
}
