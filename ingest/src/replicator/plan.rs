//! What of a request goes to which ingester, and the bytes that are sent.
//!
//! ```text
//!  spans of a request ─by trace─► traces, each with the ingesters of its token
//!                                    │ sorted by their ingesters
//!                                    ▼
//!  arena   │ trace 5 │ trace 9 │ trace 1 │ trace 2 │ trace 7 │         every span once, whatever the number of copies
//!          └──── a b c ────────┘└─ a b d ┘└───── b c d ──────┘         runs: traces that go to the same ingesters, compressed as one
//!
//!  calls   a: runs 1 2     b: runs 1 2 3     c: runs 1 3     d: runs 2 3
//! ```
//!
//! Copying each span once is on purpose. The frames around it have to be written anew, since a trace goes with its own resource; sending the
//! frames and the spans as a list of small buffers would cost the kernel and HTTP/2 more, for each of the copies, than one copy costs here.
//!
//! Every trace brings its resources with it, so an arena can be larger than its request: how large is known before it is made.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use storage::{
    id::TraceId,
    otlp::SpanEntry,
    ring::{Instance, Replicas, RingError},
};

use super::rope::Rope;
use crate::{
    compression::Compression,
    push_message,
    regroup::{self, Parts},
    traces::Batch,
};

/// A run is ended beyond this many bytes, so that a call is no larger than a server takes. Only a trace that is larger by itself makes a larger one.
const RUN_BYTES: usize = 4 << 20;
/// Runs are put into one call up to this many bytes, before compression.
const CALL_BYTES: usize = 8 << 20;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Plan {
    body: Bytes,
    /// Trace by trace in the order of `traces`, those of a trace in the order of the request.
    parts: Vec<Parts>,
    pub(crate) traces: Vec<TracePlan>,
    /// The ingesters that take part.
    instances: Vec<Arc<Instance>>,
    /// For each trace, its ingesters as ascending places in `instances`.
    members: Vec<u16>,
    pub(crate) replication_factor: usize,
    /// Whether the metrics-generator passes the spans over.
    pub(crate) skip_metrics_generation: bool,
    /// Bytes of the arena.
    arena_bytes: usize,
}

/// A trace of the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct TracePlan {
    pub(crate) id: TraceId,
    pub(crate) spans: u64,
    pub(crate) max_errors: usize,
    /// First and last second.
    times: [u32; 2],
    parts: Range<usize>,
    /// In [`Plan::members`].
    members: Range<usize>,
    /// Bytes of the `Trace` message.
    bytes: usize,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) instance: Arc<Instance>,
    /// The traces, in the order of the message, as ranges of places in [`Plan::traces`].
    pub(crate) traces: Vec<Range<usize>>,
    pub(crate) message: Rope,
}

impl Call {
    /// The places of its traces.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        self.traces.clone().into_iter().flatten()
    }
}

/// Traces that go to the same ingesters.
struct Run {
    traces: Range<usize>,
    bytes: Range<usize>,
}

impl Plan {
    /// Sorts a request by traces and these by their ingesters, which `replicas` names.
    ///
    /// # Errors
    /// There are not enough ingesters for one of the traces.
    pub(crate) fn new(
        body: Bytes,
        spans: &[SpanEntry],
        batch: &Batch,
        replication_factor: usize,
        mut replicas: impl FnMut(TraceId) -> Result<Replicas, RingError>,
    ) -> Result<Self, RingError> {
        let mut instances: Vec<Arc<Instance>> = Vec::new();
        let mut members = Vec::with_capacity(batch.shares.len() * replication_factor);
        let mut traces = Vec::with_capacity(batch.shares.len());
        for share in &batch.shares {
            let replicas = replicas(share.trace_id)?;
            let begin = members.len();
            for instance in replicas.instances {
                let known = instances.iter().position(|known| Arc::ptr_eq(known, &instance) || known.id == instance.id);
                let place = known.unwrap_or_else(|| {
                    instances.push(instance);
                    instances.len() - 1
                });
                members.push(place as u16);
            }
            members[begin..].sort_unstable();
            let seconds = |ns: u64| u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX);
            traces.push(TracePlan {
                id: share.trace_id,
                spans: share.spans,
                max_errors: replicas.max_errors,
                times: [seconds(share.start_ns), seconds(share.end_ns)],
                members: begin..members.len(),
                ..TracePlan::default()
            });
        }
        // Spans are counted into their places: by the place of their trace, each trace's in the order of the request.
        let mut order: Vec<u32> = (0..traces.len() as u32).collect();
        order.sort_by_key(|&trace| &members[traces[trace as usize].members.clone()]);
        let mut next = vec![0usize; traces.len()];
        let mut end = 0;
        for &trace in &order {
            let plan = &mut traces[trace as usize];
            next[trace as usize] = end;
            plan.parts = end..end + plan.spans as usize;
            end = plan.parts.end;
        }
        let none = Parts { resource: Default::default(), scope: Default::default(), span: Default::default() };
        let mut parts = vec![none; spans.len()];
        for (span, &trace) in spans.iter().zip(&batch.share_of) {
            let place = &mut next[trace as usize];
            parts[*place] = span.into();
            *place += 1;
        }
        let mut traces: Vec<TracePlan> = order.into_iter().map(|trace| std::mem::take(&mut traces[trace as usize])).collect();
        let mut arena_bytes = 0;
        for trace in &mut traces {
            trace.bytes = regroup::encoded_len(&parts[trace.parts.clone()]);
            arena_bytes += push_message::entry_len(trace.bytes);
        }
        Ok(Self { body, parts, traces, instances, members, replication_factor, arena_bytes, skip_metrics_generation: false })
    }

    /// Bytes that the plan and its messages hold, beside the request itself.
    pub(crate) fn held_bytes(&self) -> usize {
        self.arena_bytes + self.parts.len() * size_of::<Parts>()
    }

    /// Makes the calls.
    ///
    /// # Errors
    /// Compressing failed.
    pub(crate) fn calls(&mut self, compression: Compression) -> std::io::Result<Vec<Call>> {
        let mut arena = Vec::with_capacity(self.arena_bytes);
        let mut runs: Vec<Run> = Vec::new();
        for (place, trace) in self.traces.iter().enumerate() {
            let parts = &self.parts[trace.parts.clone()];
            let begin = arena.len();
            push_message::put_entry(&mut arena, trace.id, trace.times, trace.bytes, |out| regroup::encode(&self.body, parts, out));
            let fits =
                |run: &Run| self.members_of(run.traces.start) == self.members_of(place) && arena.len() - run.bytes.start <= RUN_BYTES;
            match runs.last_mut().filter(|run| fits(run)) {
                Some(run) => {
                    run.traces.end = place + 1;
                    run.bytes.end = arena.len();
                }
                None => {
                    if self.skip_metrics_generation {
                        push_message::put_skip_metrics_generation(&mut arena);
                    }
                    runs.push(Run { traces: place..place + 1, bytes: begin..arena.len() });
                }
            }
        }
        // Nothing of the request is needed any more.
        self.body = Bytes::new();
        self.parts = Vec::new();
        let arena = Bytes::from(arena);
        let mut parts = Vec::with_capacity(runs.len());
        for run in &runs {
            parts.push(compression.compress(arena.slice(run.bytes.clone()))?);
        }
        let mut calls = Vec::with_capacity(self.instances.len());
        for (place, instance) in self.instances.iter().enumerate() {
            let mut traces: Vec<Range<usize>> = Vec::new();
            let mut chunks: Vec<Bytes> = Vec::new();
            let mut bytes = 0;
            let mut finish = |traces: &mut Vec<Range<usize>>, chunks: &mut Vec<Bytes>| {
                let message = Rope::new(std::mem::take(chunks));
                calls.push(Call { instance: Arc::clone(instance), traces: std::mem::take(traces), message });
            };
            let of_instance = |run: &&(&Run, &Bytes)| self.members_of(run.0.traces.start).contains(&(place as u16));
            let runs: Vec<(&Run, &Bytes)> = runs.iter().zip(&parts).collect();
            for (run, chunk) in runs.iter().filter(of_instance) {
                if bytes + run.bytes.len() > CALL_BYTES && bytes > 0 {
                    finish(&mut traces, &mut chunks);
                    bytes = 0;
                }
                bytes += run.bytes.len();
                traces.push(run.traces.clone());
                chunks.push(Bytes::clone(chunk));
            }
            finish(&mut traces, &mut chunks);
        }
        Ok(calls)
    }

    /// The ingesters of a trace.
    fn members_of(&self, trace: usize) -> &[u16] {
        &self.members[self.traces[trace].members.clone()]
    }

    /// For each trace, how many calls must succeed and how many may fail.
    pub(crate) fn needs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.traces.iter().map(|trace| (trace.members.len() - trace.max_errors, trace.max_errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push_message::{PushMessage, TIMES};
    use bytes::Buf as _;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use storage::{
        otlp::{Walk, validate},
        synthetic,
    };

    /// The chunks of a message, by where they are in memory.
    fn chunks(message: &Rope) -> BTreeMap<usize, usize> {
        let mut slices = [std::io::IoSlice::new(&[]); 64];
        let filled = message.chunks_vectored(&mut slices);
        slices[..filled].iter().map(|slice| (slice.as_ptr() as usize, slice.len())).collect()
    }

    fn spans(body: &[u8]) -> BTreeSet<(TraceId, Vec<u8>)> {
        let mut walk = Walk::default();
        validate(body, 0, &mut walk).expect("valid");
        walk.spans.iter().map(|span| (span.trace_id, span.span.of(body).expect("inside").to_vec())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Every ingester gets its traces with all their spans, nobody gets others, and each byte is in memory once.
        #[test]
        fn calls_are_complete_and_share_their_bytes(seed in any::<u64>(), ingesters in 1usize..8, copies in 1usize..4) {
            let settings = synthetic::Settings { seed, spans_per_request: 150, ..synthetic::Settings::default() };
            let body = synthetic::requests_with(settings, 150).0.remove(0);
            let mut walk = Walk::default();
            validate(&body, 0, &mut walk).expect("synthetic requests are valid");
            let mut batch = Batch::default();
            batch.group(&walk.spans);
            let instance = |n: usize| Arc::new(Instance { id: n.to_string(), ..Instance::default() });
            let instances: Vec<Arc<Instance>> = (0..ingesters).map(instance).collect();
            // As a ring does it, from anywhere on around.
            let replicas_of = |id: TraceId| {
                let begin = usize::from(id.0[0]) % ingesters;
                (0..copies.min(ingesters)).map(|n| Arc::clone(&instances[(begin + n) % ingesters])).collect::<Vec<_>>()
            };
            let replicas = |id| Ok(Replicas { instances: replicas_of(id), max_errors: (copies.min(ingesters) - 1) / 2 });
            let mut plan = Plan::new(body.clone(), &walk.spans, &batch, copies, replicas).expect("enough");
            let held = plan.held_bytes();
            let calls = plan.calls(Compression::None).expect("nothing is compressed");

            let distinct: BTreeMap<usize, usize> = calls.iter().flat_map(|call| chunks(&call.message)).collect();
            prop_assert_eq!(distinct.values().sum::<usize>(), plan.arena_bytes);
            prop_assert!(held >= plan.arena_bytes);

            let everything = spans(&body);
            let mut got: BTreeMap<&str, BTreeSet<(TraceId, Vec<u8>)>> = BTreeMap::new();
            for call in &calls {
                let mut message = call.message.clone();
                let message = message.copy_to_bytes(message.remaining());
                let message = PushMessage::read(&message).expect("a message");
                let places: Vec<usize> = call.places().collect();
                prop_assert_eq!(message.len(), places.len());
                for ((trace, id), place) in message.entries().zip(places) {
                    prop_assert_eq!(id, &plan.traces[place].id.0[..]);
                    let spans = spans(&trace[TIMES..]);
                    prop_assert_eq!(spans.len() as u64, plan.traces[place].spans);
                    got.entry(&call.instance.id).or_default().extend(spans);
                }
            }
            for instance in &instances {
                let belongs = |id: TraceId| replicas_of(id).iter().any(|replica| replica.id == instance.id);
                let expected: BTreeSet<_> = everything.iter().filter(|(id, _)| belongs(*id)).cloned().collect();
                prop_assert_eq!(got.remove(instance.id.as_str()).unwrap_or_default(), expected);
            }
            let needs: Vec<_> = plan.needs().collect();
            prop_assert!(needs.iter().all(|&(must, may)| must + may == copies.min(ingesters) && must > may));
        }
    }
}
