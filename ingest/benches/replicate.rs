//! What a span costs on its way through a distributor and ingesters over loopback sockets, with logs that take everything at once, beside the
//! single process, which sends nothing. Prints how many bytes each span is between processes.

use std::{convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest::{
    Budget, Compression, Distributor, DistributorSettings, Ingester, IngesterSettings, Limits, LimitsTable, Log, Pusher, PusherSettings,
    Replicator, ReplicatorSettings, SharedOverrides, Sink,
};
use prometheus::Registry;
use storage::{
    clock::{Clock as _, ManualClock},
    id::Tenant,
    ring::{Instance, Ring, Settings, State},
    synthetic,
    tls::Connector,
    wal::{AppendError, Entry, Position},
};
use tokio::{net::TcpListener, sync::watch};

/// Requests at a time.
const CLIENTS: usize = 16;
const TRACES: usize = 1000;
const SPANS_PER_REQUEST: usize = 200;

#[derive(Debug)]
struct NullLog;

#[async_trait]
impl Log for NullLog {
    async fn append(&self, _: &Tenant, entry: Entry) -> Result<Position, AppendError> {
        Ok(Position(black_box(entry.body).len() as u64))
    }
}

fn overrides() -> Arc<SharedOverrides> {
    // All checks run, none refuses.
    let limits = Limits {
        rate_limit_bytes: u64::MAX,
        burst_size_bytes: u64::MAX,
        max_traces_per_user: 10_000_000,
        max_bytes_per_trace: u64::MAX,
        ..Limits::default()
    };
    Arc::new(SharedOverrides::new(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() }))
}

fn clock() -> ManualClock {
    ManualClock::new(Duration::from_secs(1_800_000_000))
}

fn ingester(registry: &Registry) -> Ingester {
    Ingester::new(IngesterSettings::default(), Arc::new(NullLog), overrides(), None, Arc::new(clock()), registry).expect("fresh registry")
}

fn distributor(sink: Sink, registry: &Registry) -> Distributor {
    Distributor::new(DistributorSettings::default(), sink, overrides(), Arc::new(clock()), registry).expect("fresh registry")
}

async fn node(place: usize) -> Instance {
    let registry = Registry::new();
    let budget = Budget::new(256 << 20, Duration::from_secs(5), &registry).expect("fresh registry");
    let pusher = Pusher::new(PusherSettings::default(), ingester(&registry), budget, &registry).expect("fresh registry");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let pusher = pusher.clone();
            let service = service_fn(move |request| {
                let pusher = pusher.clone();
                async move { Ok::<_, Infallible>(pusher.respond(request).await) }
            });
            stream.set_nodelay(true).expect("a socket");
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.initial_stream_window_size(512 << 10).initial_connection_window_size(1 << 20);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let tokens = (0..128).map(|n| (place as u32 * 128 + n + 1).wrapping_mul(0x9e37_79b9)).collect();
    Instance { id: place.to_string(), addr, timestamp: clock().now().as_secs(), state: State::Active, tokens, ..Instance::default() }
}

async fn cluster(nodes: usize, replication_factor: usize, compression: Compression) -> (Distributor, Registry) {
    let mut instances = Vec::new();
    for place in 0..nodes {
        instances.push(node(place).await);
    }
    let ring = Ring::new(instances, Settings { replication_factor, ..Settings::default() });
    let registry = Registry::new();
    let budget = Budget::for_replication(256 << 20, Duration::from_secs(5), &registry).expect("fresh registry");
    let settings = ReplicatorSettings { compression, ..ReplicatorSettings::default() };
    // The sender may go: the ring stays as it is.
    let replicator =
        Replicator::new(settings, watch::channel(Arc::new(ring)).1, budget, Connector::default(), &registry).expect("fresh registry");
    (distributor(Sink::Ring(replicator), &registry), registry)
}

async fn push_all(distributor: &Distributor, requests: &[Bytes]) {
    let tenant = Tenant::single();
    let pushes = futures::stream::iter(requests).map(|request| distributor.push(&tenant, request.clone()));
    pushes.buffer_unordered(CLIENTS).for_each(async |pushed| drop(pushed.expect("within all limits"))).await;
}

fn replicate(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let settings = synthetic::Settings { spans_per_request: SPANS_PER_REQUEST, ..synthetic::Settings::default() };
    let (requests, totals) = synthetic::requests_with(settings, TRACES);
    let request_bytes: usize = requests.iter().map(Bytes::len).sum();
    println_bytes("request", request_bytes, totals.spans);
    let mut group = criterion.benchmark_group("replicate");
    group.throughput(Throughput::Elements(totals.spans));
    let registry = Registry::new();
    let local = distributor(Sink::Local(ingester(&registry)), &registry);
    group.bench_function("one process", |bencher| bencher.iter(|| runtime.block_on(push_all(&local, &requests))));
    let none = ("none", Compression::None);
    for (nodes, copies, (name, compression)) in [
        (1, 1, none),
        (3, 1, none),
        (3, 3, none),
        (9, 3, none),
        (3, 3, ("snappy", Compression::Snappy)),
        (3, 3, ("zstd", Compression::Zstd)),
    ] {
        let (distributor, registry) = runtime.block_on(cluster(nodes, copies, compression));
        runtime.block_on(push_all(&distributor, &requests));
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "rubato_distributor_replicated_bytes_total").expect("counted");
        let bytes = family.get_metric()[0].get_counter().get_value() as usize;
        let case = format!("{nodes} ingesters, {copies} copies");
        println_bytes(&format!("{case}, {name}, all copies"), bytes, totals.spans);
        group.bench_function(BenchmarkId::new(case, name), |bencher| {
            bencher.iter(|| runtime.block_on(push_all(&distributor, &requests)));
        });
    }
    group.finish();
}

#[expect(clippy::print_stdout, reason = "a figure beside those of criterion")]
fn println_bytes(what: &str, bytes: usize, spans: u64) {
    println!("{what}: {} bytes per span", bytes as u64 / spans);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = replicate
}
criterion_main!(benches);
