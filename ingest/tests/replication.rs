//! A distributor before ingesters on sockets of their own, some of which are dead, slow, or of another opinion.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest::{
    Budget, Compression, Distributor, DistributorSettings, Ingester, IngesterSettings, Limits, LimitsTable, PushError, Pushed, Pusher,
    PusherSettings, Refusal, Replicator, ReplicatorSettings, SharedOverrides, Sink, status::Code,
};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use parking_lot::Mutex;
use prometheus::Registry;
use prost::Message as _;
use storage::{
    clock::{Clock, ManualClock},
    id::Tenant,
    ring::{Instance, Operation, Ring, RingError, Settings, State, token},
    tls::Connector,
    wal::{AppendError, Entry},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::harness::{MemoryLog, NOW, request, span};

/// What an ingester does with calls, before it looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Willing,
    /// Takes the call and never answers.
    Hanging,
    /// Answers late.
    Slow(Duration),
    /// Says in its health check that it does not serve.
    Ill,
}

/// An ingester of its own: log, limits, socket.
struct Node {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    log: Arc<MemoryLog>,
    overrides: SharedOverrides,
    pusher: Pusher,
    server: JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.expect("a port")).await
    }

    async fn start_on(listener: TcpListener) -> Self {
        let (log, overrides, registry) = (Arc::new(MemoryLog::default()), SharedOverrides::default(), Registry::new());
        let clock = Arc::new(ManualClock::new(NOW));
        let settings = IngesterSettings::default();
        let ingester = Ingester::new(settings, Arc::<MemoryLog>::clone(&log), Arc::new(overrides.clone()), None, clock, &registry);
        let budget = Budget::new(64 << 20, Duration::from_secs(1), &registry).expect("fresh registry");
        let pusher = Pusher::new(PusherSettings::default(), ingester.expect("fresh registry"), budget, &registry).expect("fresh registry");
        let address = listener.local_addr().expect("bound");
        let mood = Arc::new(Mutex::new(Mood::Willing));
        let server = tokio::spawn(serve(listener, pusher.clone(), Arc::clone(&mood)));
        Self { address, mood, log, overrides, pusher, server }
    }

    /// Ends it as a crash would: connections are cut and the port is closed.
    async fn kill(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn limit(&self, limits: Limits) {
        self.overrides.store(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() });
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.log.span_names();
        names.sort();
        names
    }
}

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

async fn serve(listener: TcpListener, pusher: Pusher, mood: Arc<Mutex<Mood>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let (pusher, mood) = (pusher.clone(), Arc::clone(&mood));
        let service = service_fn(move |request| {
            let (pusher, mood) = (pusher.clone(), *mood.lock());
            async move { Ok::<_, Infallible>(answer(&pusher, mood, request).await) }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        connections.spawn(connection);
    }
}

async fn answer(pusher: &Pusher, mood: Mood, request: Request<Incoming>) -> Response<AnyBody> {
    match mood {
        Mood::Hanging => std::future::pending().await,
        Mood::Slow(pause) => tokio::time::sleep(pause).await,
        Mood::Willing | Mood::Ill => {}
    }
    if request.uri().path() == "/grpc.health.v1.Health/Check" {
        let status = if mood == Mood::Ill { 2 } else { 1 };
        let message = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        return Response::new(message.with_trailers(async { Some(Ok(trailers)) }).boxed_unsync());
    }
    pusher.respond(request).await.map(BodyExt::boxed_unsync)
}

/// Ingesters, their ring, and the distributor that writes to them.
struct Cluster {
    nodes: Vec<Node>,
    ring: Settings,
    rings: watch::Sender<Arc<Ring>>,
    replicator: Replicator,
    distributor: Distributor,
    overrides: SharedOverrides,
    registry: Registry,
}

fn settings() -> ReplicatorSettings {
    ReplicatorSettings {
        remote_timeout: Duration::from_secs(30),
        connect_backoff: Duration::ZERO,
        max_connect_backoff: Duration::ZERO,
        ..ReplicatorSettings::default()
    }
}

impl Cluster {
    async fn start(nodes: usize, replication_factor: usize, settings: ReplicatorSettings) -> Self {
        let mut started = Vec::new();
        for _ in 0..nodes {
            started.push(Node::start().await);
        }
        let ring = Settings { replication_factor, ..Settings::default() };
        let (rings, watched) = watch::channel(Arc::new(Ring::default()));
        let (overrides, registry) = (SharedOverrides::default(), Registry::new());
        let budget = Budget::for_replication(64 << 20, Duration::from_secs(1), &registry).expect("fresh registry");
        let replicator = Replicator::new(settings, watched, budget, Connector::default(), &registry).expect("fresh registry");
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(NOW));
        let sink = Sink::Ring(replicator.clone());
        let distributor = Distributor::new(DistributorSettings::default(), sink, Arc::new(overrides.clone()), clock, &registry);
        let distributor = distributor.expect("fresh registry");
        let cluster = Self { nodes: started, ring, rings, replicator, distributor, overrides, registry };
        cluster.publish(&vec![State::Active; nodes]);
        cluster
    }

    /// Makes the ring anew, with the nodes in these states.
    fn publish(&self, states: &[State]) {
        let instance = |(place, (node, &state)): (usize, (&Node, &State))| Instance {
            id: format!("ingester-{place}"),
            addr: node.address.to_string(),
            timestamp: NOW.as_secs(),
            state,
            tokens: (0..64).map(|n| (place as u32 * 64 + n + 1).wrapping_mul(0x9e37_79b9)).collect(),
            ..Instance::default()
        };
        let ring = Ring::new(self.nodes.iter().zip(states).enumerate().map(instance), self.ring.clone());
        self.rings.send_replace(Arc::new(ring));
    }

    async fn push(&self, spans: &[Span]) -> Result<Pushed, PushError> {
        self.distributor.push(&Tenant::single(), Bytes::from(request(spans).encode_to_vec())).await
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        let labelled = metrics.filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label));
        labelled.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
    }

    fn failures(&self, node: usize) -> f64 {
        self.metric("tempo_distributor_ingester_append_failures_total", &self.nodes[node].address.to_string())
    }

    fn names(&self) -> Vec<Vec<String>> {
        self.nodes.iter().map(Node::names).collect()
    }
}

/// A span whose trace lies anywhere on the ring: its number is the first byte of the id, since the last one hardly moves the token.
fn spread(trace: u8, id: u8, name: &str) -> Span {
    let mut span = span(trace, id, name);
    span.trace_id.reverse();
    span
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(tokio::time::Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn unavailable(error: &PushError) -> (Code, &str) {
    match &error.refusal {
        Refusal::Ingester { error, .. } => (error.code, &error.message),
        other => panic!("refused by ingesters, not because of {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_copy_is_whole_in_every_compression() {
    for compression in [Compression::None, Compression::Snappy, Compression::Gzip, Compression::Zstd] {
        let cluster = Cluster::start(3, 3, ReplicatorSettings { compression, ..settings() }).await;
        let spans: Vec<Span> = (0..100).map(|n| span(n % 7, n, &format!("span {n:03}"))).collect();
        let wanted = Entry { body: request(&spans).encode_to_vec().into(), skip_metrics_generation: compression == Compression::Gzip };
        let pushed = cluster.distributor.push(&Tenant::single(), wanted.clone()).await.expect("all are willing");
        assert_eq!((pushed.accepted_spans, &pushed.rejected), (100, &None));
        let expected: Vec<String> = spans.iter().map(|span| span.name.clone()).collect();
        eventually("the third answers, too", || cluster.names().iter().all(|names| *names == expected)).await;
        for node in &cluster.nodes {
            // One record, under one copy of the resource.
            let [request]: [ExportTraceServiceRequest; 1] = node.log.requests().try_into().expect("one record");
            assert_eq!(node.log.records.lock()[0].1.skip_metrics_generation, wanted.skip_metrics_generation);
            assert_eq!(request.resource_spans.len(), 1);
            assert_eq!(request.resource_spans[0].resource, crate::harness::request(&[]).resource_spans[0].resource);
            let mut stored = request.resource_spans[0].scope_spans[0].spans.clone();
            stored.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(stored, spans);
        }
        assert_eq!(cluster.metric("tempo_distributor_ingester_appends_total", ""), 3.0);
        assert_eq!(cluster.metric("tempo_distributor_ingester_append_failures_total", ""), 0.0);
        assert_eq!(cluster.metric("tempo_distributor_ingester_clients", ""), 3.0);
        eventually("nothing is held", || cluster.metric("rubato_distributor_replication_inflight_bytes", "") == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_may_be_dead_and_comes_back() {
    let mut cluster = Cluster::start(3, 3, settings()).await;
    cluster.push(&[span(1, 1, "a")]).await.expect("all are there");
    eventually("all have it", || cluster.names().iter().all(|names| names.len() == 1)).await;
    let address = cluster.nodes[1].address;
    cluster.nodes[1].kill().await;
    cluster.push(&[span(1, 2, "b")]).await.expect("two are there");
    eventually("its failure is counted", || cluster.failures(1) == 1.0).await;
    assert_eq!((cluster.failures(0), cluster.failures(2)), (0.0, 0.0));
    assert_eq!([&cluster.nodes[0], &cluster.nodes[2]].map(Node::names), [["a", "b"], ["a", "b"]]);

    cluster.nodes[1] = Node::start_on(TcpListener::bind(address).await.expect("the port is free again")).await;
    cluster.push(&[span(1, 3, "c")]).await.expect("all are there");
    eventually("it is written to again", || cluster.nodes[1].names() == ["c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_slow_and_their_answers_count() {
    let cluster = Cluster::start(3, 3, settings()).await;
    cluster.nodes[0].set(Mood::Hanging);
    cluster.nodes[1].set(Mood::Slow(Duration::from_millis(50)));
    // The hanging one would take 30 s.
    let pushed = tokio::time::timeout(Duration::from_secs(20), cluster.push(&[span(1, 1, "a")])).await;
    assert_eq!(pushed.expect("in time").expect("two are enough").accepted_spans, 1);
    assert_eq!(cluster.failures(0), 0.0, "it may still answer");
    eventually("messages are not counted against others", || cluster.metric("rubato_distributor_replication_inflight_bytes", "") == 0.0)
        .await;
    assert_eq!([1, 2].map(|node| cluster.nodes[node].names()), [["a"], ["a"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_can_only_owe_so_much() {
    let cluster = Cluster::start(3, 3, ReplicatorSettings { max_late_bytes: 1, ..settings() }).await;
    cluster.nodes[2].set(Mood::Hanging);
    for n in 1..4 {
        cluster.push(&[span(1, n, "a")]).await.expect("two are enough");
        eventually("the call is given up", || cluster.failures(2) == f64::from(n)).await;
    }

    let one_call = cluster.metric("rubato_distributor_replicated_bytes_total", "") as usize / 9;
    let cluster = Cluster::start(3, 3, ReplicatorSettings { max_late_bytes: one_call, ..settings() }).await;
    cluster.nodes[2].set(Mood::Hanging);
    cluster.push(&[span(1, 1, "a")]).await.expect("two are enough");
    assert_eq!(cluster.failures(2), 0.0, "the first call may wait");
    for n in 2..5 {
        cluster.push(&[span(1, n, "b")]).await.expect("two are enough");
    }
    eventually("the next ones may not", || cluster.failures(2) == 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_last_word_is_that_of_an_ingester() {
    let mut cluster = Cluster::start(3, 3, ReplicatorSettings { remote_timeout: Duration::from_millis(300), ..settings() }).await;
    cluster.nodes[0].pusher.close();
    *cluster.nodes[1].log.failure.lock() = Some(AppendError::Full("no space".to_owned()));
    let error = cluster.push(&[span(1, 1, "a"), span(2, 2, "b")]).await.expect_err("one is not enough");
    let (code, message) = unavailable(&error);
    assert_eq!(code, Code::Unavailable);
    assert!(["Ingester is shutting down", "write-ahead log is full: no space"].contains(&message), "{message}");
    assert_eq!(error.spans, 2);
    assert_eq!(cluster.metric("tempo_discarded_spans_total", "not_replicated"), 2.0);

    cluster.nodes[0].set(Mood::Hanging);
    cluster.nodes[1].set(Mood::Hanging);
    let error = cluster.push(&[span(1, 1, "a")]).await.expect_err("no answer in time");
    assert_eq!(unavailable(&error), (Code::DeadlineExceeded, "no answer within 300ms"));

    cluster.nodes[0].kill().await;
    cluster.nodes[1].kill().await;
    let error = cluster.push(&[span(1, 1, "a")]).await.expect_err("nobody listens");
    assert_eq!(unavailable(&error).0, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_most_ingesters_refuse_is_discarded() {
    let cluster = Cluster::start(3, 3, settings()).await;
    let large = |id| Span { name: "x".repeat(1000), ..span(1, id, "") };
    let small = Limits { max_bytes_per_trace: 600, ..Limits::default() };
    cluster.nodes[0].limit(small.clone());
    let pushed = cluster.push(&[large(1), span(2, 2, "b")]).await.expect("accepted");
    // Which answers came first decides whether the refusal of one made a majority impossible to know.
    let rejected = pushed.rejected.map_or(0, |rejected| rejected.spans);
    assert_eq!(pushed.accepted_spans + rejected, 2);
    eventually("the others have both", || cluster.names().iter().map(Vec::len).collect::<Vec<_>>() == [1, 2, 2]).await;

    let before = cluster.metric("tempo_discarded_spans_total", "trace_too_large");
    cluster.nodes[1].limit(small.clone());
    cluster.nodes[2].limit(small);
    let pushed = cluster.push(&[large(3), large(4), span(2, 5, "c")]).await.expect("still a success");
    assert_eq!(pushed.accepted_spans, 1);
    let rejected = pushed.rejected.expect("the client learns of it");
    assert_eq!(rejected.spans, 2);
    assert!(rejected.message.contains("2 spans of 1 traces refused: trace too large for user single-tenant"), "{}", rejected.message);
    assert_eq!(cluster.metric("tempo_discarded_spans_total", "trace_too_large"), before + 2.0);

    for node in &cluster.nodes {
        node.limit(Limits { max_traces_per_user: 2, ..Limits::default() });
    }
    let pushed = cluster.push(&[span(7, 1, "new"), span(2, 6, "d")]).await.expect("still a success");
    assert_eq!((pushed.accepted_spans, pushed.rejected.map(|rejected| rejected.spans)), (1, Some(1)));
    assert_eq!(cluster.metric("tempo_discarded_spans_total", "live_traces_exceeded"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rings_without_a_quorum_refuse_before_anything_is_sent() {
    let cluster = Cluster::start(3, 3, settings()).await;
    let refused = async |texts: &[&str]| {
        let error = cluster.push(&[span(1, 1, "a")]).await.expect_err("refused");
        assert!(matches!(error.refusal, Refusal::Ring(RingError::NoInstances | RingError::Empty | RingError::TooFewReplicas { .. })));
        assert!(texts.iter().all(|text| error.to_string().starts_with(text)), "{error}");
    };
    cluster.publish(&[State::Active, State::Leaving, State::Joining]);
    refused(&["at least 2 live replicas required, could only find 1 - unhealthy instances: 127.0.0.1:"]).await;
    cluster.publish(&[]);
    refused(&["DoBatch: InstancesCount <= 0"]).await;
    let naked = Instance { id: "a".to_owned(), timestamp: NOW.as_secs(), state: State::Active, ..Instance::default() };
    cluster.rings.send_replace(Arc::new(Ring::new([naked], cluster.ring.clone())));
    refused(&["empty ring"]).await;
    assert_eq!(cluster.metric("tempo_distributor_ingester_appends_total", ""), 0.0);
}

/// How many spans each node has of each trace, by the number of [`spread`].
fn traces(cluster: &Cluster) -> Vec<BTreeMap<u8, usize>> {
    let of_node = |node: &Node| {
        let mut traces = BTreeMap::new();
        let spans = node.log.requests().into_iter().flat_map(|r| r.resource_spans).flat_map(|rs| rs.scope_spans).flat_map(|ss| ss.spans);
        for span in spans {
            *traces.entry(span.trace_id[0]).or_insert(0) += 1;
        }
        traces
    };
    cluster.nodes.iter().map(of_node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_trace_goes_where_the_ring_says() {
    let names = |replicas: &[Arc<Instance>]| replicas.iter().map(|instance| instance.id.clone()).collect::<Vec<_>>();
    // Three are left, so each trace goes to all of them.
    const MIXED: [State; 5] = [State::Active, State::Leaving, State::Active, State::Joining, State::Active];
    const ONE_LEAVES: [State; 5] = [State::Active, State::Active, State::Leaving, State::Active, State::Active];
    for (states, extend_writes) in [([State::Active; 5], true), (MIXED, true), (ONE_LEAVES, false)] {
        let cluster = Cluster::start(5, 3, ReplicatorSettings { extend_writes, ..settings() }).await;
        cluster.publish(&states);
        // Spans of many traces, mixed.
        let spans: Vec<Span> = (0..200u8).map(|n| spread(n % 61, n, "s")).collect();
        cluster.push(&spans).await.expect("a quorum");
        let ring = cluster.rings.borrow().clone();
        let mut expected: Vec<BTreeMap<u8, usize>> = vec![BTreeMap::new(); 5];
        let (mut copies, mut sets) = (0, BTreeSet::new());
        for trace in 0..61u8 {
            let id = spread(trace, 0, "").trace_id;
            let operation = if extend_writes { Operation::Write } else { Operation::WriteNoExtend };
            let replicas = ring.replicas(token("single-tenant", &id), operation, NOW).expect("a quorum").instances;
            copies += replicas.len();
            let mut set = names(&replicas);
            set.sort();
            sets.insert(set);
            for name in names(&replicas) {
                let node: usize = name.rsplit('-').next().and_then(|n| n.parse().ok()).expect("a number");
                expected[node].insert(trace, (0..200u8).filter(|n| n % 61 == trace).count());
            }
        }
        assert!(if extend_writes { copies == 3 * 61 } else { copies < 3 * 61 }, "{copies}");
        assert!(states == MIXED || sets.len() > 3, "traces go to different ingesters: {sets:?}");
        eventually("every copy arrives, and none elsewhere", || traces(&cluster) == expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_a_shard_use_some_of_the_ingesters() {
    let cluster = Cluster::start(4, 1, settings()).await;
    cluster
        .overrides
        .store(LimitsTable { defaults: Arc::new(Limits { tenant_shard_size: 2, ..Limits::default() }), ..LimitsTable::default() });
    cluster.push(&(0..100).map(|n| spread(n, n, "s")).collect::<Vec<_>>()).await.expect("all are willing");
    let shard = cluster.rings.borrow().shard("single-tenant", 2);
    let members: Vec<String> = shard.instances().iter().map(|instance| instance.addr.clone()).collect();
    let written: Vec<String> = cluster.nodes.iter().filter(|node| !node.names().is_empty()).map(|node| node.address.to_string()).collect();
    assert_eq!(members, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_too_large_for_a_call_are_sent_in_several() {
    let cluster = Cluster::start(1, 1, ReplicatorSettings { compression: Compression::None, ..settings() }).await;
    let big = |n: u8| Span { name: format!("{n:03}{}", "x".repeat(150_000)), ..span(n, n, "") };
    let spans: Vec<Span> = (0..120).map(big).collect();
    assert_eq!(cluster.push(&spans).await.expect("willing").accepted_spans, 120);
    assert_eq!(cluster.metric("tempo_distributor_ingester_appends_total", ""), 3.0);
    assert_eq!(cluster.nodes[0].names().len(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_bounded_by_their_budget() {
    let cluster = Cluster::start(1, 1, settings()).await;
    // Small spans, each a trace of its own, under a resource that is large: the messages are much larger than the request.
    let mut request = request(&(0..200).map(|n| span(n, n, "s")).collect::<Vec<_>>());
    request.resource_spans[0].resource.get_or_insert_default().attributes[0].key = "k".repeat(1_000_000);
    cluster.overrides.store(LimitsTable {
        defaults: Arc::new(Limits { max_attribute_bytes: 2_000_000, ..Limits::default() }),
        ..LimitsTable::default()
    });
    let error = cluster.distributor.push(&Tenant::single(), Bytes::from(request.encode_to_vec())).await.expect_err("200 MB");
    assert!(matches!(error.refusal, Refusal::Busy { retry_after: Some(_), .. }), "{error}");
    assert_eq!(cluster.metric("tempo_distributor_ingester_appends_total", ""), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_go_with_the_ring_and_with_health() {
    let checks = ReplicatorSettings {
        health_check_period: Some(Duration::from_millis(20)),
        health_check_timeout: Duration::from_secs(20),
        ..settings()
    };
    let cluster = Cluster::start(3, 3, checks).await;
    let replicator = cluster.replicator.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let watching = tokio::spawn(async move { replicator.run(async { drop(stopped.await) }).await });
    let clients = || cluster.metric("tempo_distributor_ingester_clients", "");
    cluster.push(&[span(1, 1, "a")]).await.expect("all are there");
    assert_eq!(clients(), 3.0);
    cluster.nodes[0].set(Mood::Ill);
    eventually("the ill one goes", || clients() == 2.0).await;
    cluster.nodes[0].set(Mood::Willing);
    cluster.push(&[span(1, 2, "b")]).await.expect("all are there");
    assert_eq!(clients(), 3.0);
    let gone = cluster.nodes[2].address.to_string();
    cluster.publish(&[State::Active, State::Active]);
    eventually("who left the ring goes", || clients() == 2.0).await;
    assert_eq!(cluster.metric("tempo_distributor_ingester_appends_total", &gone), 0.0, "with its series");
    drop(stop);
    watching.await.expect("ends when told to");
}
