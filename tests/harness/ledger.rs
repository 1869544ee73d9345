//! Load whose fate is remembered: what was sent, what was acknowledged, and whether all of that, and nothing else, can be read back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use storage::{
    id::{SpanKey, TraceId},
    synthetic::{Request, Requests, Settings},
};

use super::{
    client::{Client, spans},
    eventually, now_ns,
};

/// Spans by trace.
pub(crate) type Spans = HashMap<TraceId, BTreeSet<SpanKey>>;

/// What became of what was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) acknowledged: Spans,
    pub(crate) sent: Spans,
}

fn note(spans: &mut Spans, request: &Request) {
    for part in &request.parts {
        let keys = part.trace.spans[part.spans.clone()].iter().map(|span| span.key);
        spans.entry(part.trace.trace_id).or_default().extend(keys);
    }
}

/// How much load. Enough to always have something in flight, and little enough to read all of it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) spans_per_request: usize,
    /// Between a sender's requests; there are four senders.
    pub(crate) pause: Duration,
}

impl Pace {
    /// For one process.
    pub(crate) const FAST: Self = Self { spans_per_request: 50, pause: Duration::from_millis(40) };
    /// For three that do the same.
    pub(crate) const SLOW: Self = Self { spans_per_request: 20, pause: Duration::from_millis(100) };
}

/// Sends requests, several at a time, until told to stop; what fails is not sent again.
pub(crate) async fn send_load(client: Client, pace: Pace, seed: u64, by_grpc: bool, ledger: Arc<Mutex<Ledger>>, stop: Arc<AtomicBool>) {
    let settings = Settings { seed, base_time_ns: now_ns(), spans_per_request: pace.spans_per_request, ..Settings::default() };
    let requests = futures::stream::iter(Requests::new(settings, None)).take_while(|_| std::future::ready(!stop.load(Ordering::Relaxed)));
    requests
        .for_each_concurrent(4, |request| {
            let (client, ledger) = (client.clone(), Arc::clone(&ledger));
            async move {
                note(&mut ledger.lock().expect("nobody panics here").sent, &request);
                let acknowledged = if by_grpc {
                    client.export(request.body.clone(), None).await.is_ok()
                } else {
                    client.post_protobuf(request.body.clone()).await.is_ok_and(|answer| answer.status == 200)
                };
                if acknowledged {
                    note(&mut ledger.lock().expect("nobody panics here").acknowledged, &request);
                }
                tokio::time::sleep(pace.pause).await;
            }
        })
        .await;
}

/// Every acknowledged span is there, none twice, and none that was not sent.
pub(crate) async fn check(client: &Client, ledger: &Ledger, what: &str) {
    futures::stream::iter(&ledger.acknowledged)
        .for_each_concurrent(8, |(id, acknowledged)| async move {
            let seen = eventually(&format!("{what}: the {} acknowledged spans of trace {id}", acknowledged.len()), || async {
                let trace = client.trace(*id).await?;
                let mut found = BTreeMap::<SpanKey, u32>::new();
                for span in spans(&trace) {
                    let span_id = u64::from_be_bytes(span.span_id.as_slice().try_into().expect("8 bytes"));
                    *found.entry(SpanKey { span_id, kind: span.kind }).or_default() += 1;
                }
                acknowledged.iter().all(|key| found.contains_key(key)).then_some(found)
            })
            .await;
            for (key, times) in &seen {
                assert_eq!(*times, 1, "{what}: span {key:?} of trace {id}");
                assert!(ledger.sent[id].contains(key), "{what}: span {key:?} of trace {id} was never sent");
            }
        })
        .await;
}

/// Load that goes on while the test does something else.
pub(crate) struct Load {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Begins to send.
    pub(crate) fn start(client: Client, seed: u64) -> Self {
        let (ledger, stop) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(send_load(client, Pace::SLOW, seed, true, Arc::clone(&ledger), Arc::clone(&stop)));
        Self { ledger, stop, task }
    }

    fn acknowledged(&self) -> usize {
        self.ledger.lock().expect("nobody panics here").acknowledged.len()
    }

    /// Waits until more traces are acknowledged, so that whatever happens next happens under load.
    pub(crate) async fn goes_on(&self) {
        let before = self.acknowledged();
        eventually("the load goes on", async || (self.acknowledged() > before + 20).then_some(())).await;
    }

    /// Ends it; returns what became of everything.
    pub(crate) async fn finish(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load does not panic");
        let ledger = self.ledger.lock().expect("nobody panics here");
        ledger.clone()
    }
}
