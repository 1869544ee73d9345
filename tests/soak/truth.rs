//! What is sent, what must be found, and what is found meanwhile.
//!
//! Each request is sent until somebody acknowledges it, so that at the end all of it must be there; copies of attempts that failed must not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;
use storage::{
    id::{SpanKey, TraceId},
    synthetic::{Request, Requests, Settings, Totals},
};
use tokio::task::JoinSet;

use super::site::Site;
use crate::{
    harness::{
        PATIENCE,
        client::{Client, last_hour, spans},
        eventually,
        ledger::{Ledger, check},
        now_ns,
    },
    service_graph::{Edges, expected, name_of},
};

/// Requests in flight.
const SENDERS: usize = 4;
const SPANS_PER_REQUEST: usize = 25;
/// Between two requests of a sender.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an attempt may take. What it has left behind is still recognised when the next one comes.
const ATTEMPT: Duration = Duration::from_secs(8);

#[derive(Default)]
struct Books {
    ledger: Ledger,
    totals: Totals,
    /// Spans not acknowledged yet, of traces of which some are.
    open: HashMap<TraceId, usize>,
    attempts: u64,
    requests: u64,
    longest: Duration,
}

impl Books {
    fn acknowledge(&mut self, request: &Request, took: Duration) {
        self.requests += 1;
        self.longest = self.longest.max(took);
        for part in &request.parts {
            let summary = &part.trace;
            let keys = summary.spans[part.spans.clone()].iter().map(|span| span.key);
            self.ledger.acknowledged.entry(summary.trace_id).or_default().extend(keys);
            // Nothing that is sent is given up.
            self.ledger.sent.entry(summary.trace_id).or_insert_with(|| summary.spans.iter().map(|span| span.key).collect());
            self.totals.add_spans(summary, part.spans.clone());
            let open = self.open.entry(summary.trace_id).or_insert(summary.spans.len());
            *open -= part.spans.len();
            if *open == 0 {
                self.open.remove(&summary.trace_id);
                self.totals.complete_trace(summary);
            }
        }
    }
}

/// Load that goes on, and somebody who looks at it, while the site suffers.
pub(super) struct Load {
    books: Arc<Mutex<Books>>,
    requests: Arc<Mutex<Requests>>,
    tasks: JoinSet<()>,
    readers: JoinSet<Reads>,
    stop: Arc<AtomicBool>,
}

/// What readers have met.
#[derive(Debug, Default)]
pub(super) struct Reads {
    right: u64,
    refused: BTreeMap<String, u64>,
    /// Answers that miss what was acknowledged before they were asked for, and say nothing.
    wrong: Vec<String>,
}

impl Load {
    pub(super) fn start(site: &Site, seed: u64) -> Self {
        let settings = Settings { seed, base_time_ns: now_ns(), spans_per_request: SPANS_PER_REQUEST, ..Settings::default() };
        let (books, requests) = (Arc::<Mutex<Books>>::default(), Arc::new(Mutex::new(Requests::new(settings, None))));
        let distributors: Vec<Client> = site.of("distributor").map(super::site::Node::client).collect();
        let mut tasks = JoinSet::new();
        for sender in 0..SENDERS {
            tasks.spawn(send(sender, distributors.clone(), Arc::clone(&requests), Arc::clone(&books)));
        }
        let (stop, mut readers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for frontend in site.of("query-frontend") {
            readers.spawn(read(frontend.client(), Arc::clone(&books), Arc::clone(&stop)));
        }
        Self { books, requests, tasks, readers, stop }
    }

    fn acknowledged(&self) -> u64 {
        self.books.lock().expect("nobody panics here").requests
    }

    /// Waits until more is acknowledged than was in flight.
    pub(super) async fn goes_on(&self, when: &str) {
        let before = self.acknowledged();
        eventually(&format!("{when}: the load goes on"), async || (self.acknowledged() > before + 2 * SENDERS as u64).then_some(())).await;
    }

    /// Ends it when everything is acknowledged; everything is as it was sent.
    pub(super) async fn finish(mut self, site: &Site) {
        self.requests.lock().expect("nobody panics here").stop();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("senders do not panic");
        }
        self.stop.store(true, Ordering::Relaxed);
        let mut wrong = Vec::new();
        while let Some(reads) = self.readers.join_next().await {
            let reads = reads.expect("readers do not panic");
            eprintln!("meanwhile {} traces were read and were right; refused: {:?}", reads.right, reads.refused);
            wrong.extend(reads.wrong);
        }
        let books = std::mem::take(&mut *self.books.lock().expect("nobody panics here"));
        let Books { ledger, totals, attempts, requests, longest, .. } = books;
        eprintln!(
            "{} spans of {} traces in {requests} requests and {attempts} attempts, acknowledged after at most {longest:?}",
            totals.spans, totals.traces
        );
        let mut shares = [Ledger::default(), Ledger::default()];
        for (number, (id, spans)) in ledger.acknowledged.iter().enumerate() {
            shares[number % 2].acknowledged.insert(*id, spans.clone());
            shares[number % 2].sent.insert(*id, ledger.sent[id].clone());
        }
        for (frontend, share) in site.of("query-frontend").zip(&shares) {
            check(&frontend.client(), share, &frontend.name).await;
            once_in_metrics(&frontend.client(), totals.spans, &frontend.name).await;
        }
        counted_once(site, &totals).await;
        assert!(wrong.is_empty(), "{} answers hid something: {wrong:#?}", wrong.len());
    }
}

async fn send(sender: usize, distributors: Vec<Client>, requests: Arc<Mutex<Requests>>, books: Arc<Mutex<Books>>) {
    let next = || requests.lock().expect("nobody panics here").next();
    while let Some(request) = next() {
        let began = Instant::now();
        for attempt in sender.. {
            books.lock().expect("nobody panics here").attempts += 1;
            let sent = distributors[attempt % distributors.len()].post_protobuf(request.body.clone());
            if let Ok(Ok(answer)) = tokio::time::timeout(ATTEMPT, sent).await
                && answer.status == 200
            {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "nobody acknowledges");
            tokio::time::sleep(PAUSE).await;
        }
        books.lock().expect("nobody panics here").acknowledge(&request, began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks for traces, most of them new, and compares with what was acknowledged before.
async fn read(frontend: Client, books: Arc<Mutex<Books>>, stop: Arc<AtomicBool>) -> Reads {
    let (mut reads, mut random) = (Reads::default(), 1_u64);
    let refuse = |why: String, reads: &mut Reads| *reads.refused.entry(why).or_default() += 1;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let asked = {
            let books = books.lock().expect("nobody panics here");
            let acknowledged = &books.ledger.acknowledged;
            let at = (random >> 33) as usize % acknowledged.len().max(1);
            // Those of which spans are still on their way are the newest.
            let open = books.open.keys().nth((random >> 40) as usize % books.open.len().max(1)).filter(|_| random >> 63 == 0);
            let id = open.or_else(|| acknowledged.keys().nth(at)).copied();
            id.map(|id| (id, acknowledged[&id].clone()))
        };
        let Some((id, acknowledged)) = asked else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        match frontend.try_get_as(&format!("/api/traces/{id}"), "application/protobuf").await {
            Ok(answer) if matches!(answer.status, 200 | 404) => {
                let trace =
                    if answer.status == 200 { TracesData::decode(answer.body).expect("a trace").resource_spans } else { Vec::new() };
                let key = |id: &[u8], kind| SpanKey { span_id: u64::from_be_bytes(id.try_into().expect("8 bytes")), kind };
                let all: Vec<SpanKey> = spans(&trace).map(|span| key(&span.span_id, span.kind)).collect();
                let found: BTreeSet<SpanKey> = all.iter().copied().collect();
                let missing = acknowledged.difference(&found).count();
                if missing > 0 || found.len() < all.len() {
                    let at = storage::clock::Clock::now(&storage::clock::SystemClock);
                    reads.wrong.push(format!("{at:?}: {missing} of {} missing, {} of trace {id}", acknowledged.len(), all.len()));
                } else {
                    reads.right += 1;
                }
            }
            Ok(answer) => refuse(format!("{} {}", answer.status, answer.text().chars().take(120).collect::<String>()), &mut reads),
            Err(_) => refuse("no answer".to_owned(), &mut reads),
        }
        tokio::time::sleep(PAUSE).await;
    }
    reads
}

/// TraceQL metrics count each span once, though they cannot recognise copies in blocks.
async fn once_in_metrics(frontend: &Client, expected: u64, what: &str) {
    let began = Instant::now();
    loop {
        let (start, end) = last_hour();
        let answer = frontend.query("/api/metrics/query", &[("q", "{} | count_over_time()"), ("start", &start), ("end", &end)]).await;
        if answer.status == 200 {
            let json = answer.json();
            let series = json["series"].as_array().into_iter().flatten();
            let sum: f64 = series.map(|series| series["value"].as_f64().unwrap_or_default()).sum();
            assert!(sum <= expected as f64, "{what}: TraceQL metrics count {sum} of {expected} spans");
            if sum == expected as f64 {
                return;
            }
        }
        assert!(began.elapsed() < PATIENCE, "{what}: TraceQL metrics do not count {expected} spans: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Every series of Prometheus is what was sent.
async fn counted_once(site: &Site, totals: &Totals) {
    let calls = async |by: &str, filter: &str| -> BTreeMap<String, u64> {
        let query = format!("sum by ({by}) (traces_spanmetrics_calls_total{filter})");
        let found = site.outside.prometheus.query(&query).await;
        found.into_iter().map(|(labels, values)| (labels[by].as_str().unwrap_or_default().to_owned(), values[0] as u64)).collect()
    };
    let owned = |truth: &BTreeMap<&'static str, u64>| truth.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let (services, names): (BTreeMap<String, u64>, BTreeMap<String, u64>) = (owned(&totals.services), owned(&totals.names));
    let errors: u64 = totals.errors;
    let began = Instant::now();
    loop {
        let found = (
            calls("service", "").await,
            calls("span_name", "").await,
            calls("status_code", "{status_code=\"STATUS_CODE_ERROR\"}").await.values().sum::<u64>(),
            graph(site).await,
        );
        if found == (services.clone(), names.clone(), errors, expected(totals)) {
            return;
        }
        if began.elapsed() > PATIENCE {
            let all = site.outside.prometheus.query("sum by (__metrics_gen_instance) (traces_spanmetrics_calls_total)").await;
            assert_eq!(found.0, services, "by service: {all:?}");
            assert_eq!(found.1, names, "by name: {all:?}");
            assert_eq!(found.2, errors, "errors: {all:?}");
            assert_eq!(found.3, expected(totals), "edges: {all:?}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The service graph as Prometheus has it, between those who are known.
async fn graph(site: &Site) -> Edges {
    let mut edges = Edges::new();
    for (metric, is_failed) in [("request_total", false), ("request_failed_total", true)] {
        let query = format!("sum by (client, server, connection_type) (traces_service_graph_{metric})");
        for (labels, values) in site.outside.prometheus.query(&query).await {
            let text = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
            let connection = text("connection_type");
            if connection != "virtual_node" {
                let sums = edges.entry((text("client"), name_of(&text("server"), &connection), connection)).or_default();
                *(if is_failed { &mut sums.1 } else { &mut sums.0 }) += values[0] as u64;
            }
        }
    }
    edges
}
