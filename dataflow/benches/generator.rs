//! The metrics-generator: from spans seen for the first time to the sums of their series, on one core, stage by stage and beside a plain
//! hash map; and the CPU time that the whole dataflow takes with it and without, from log to bucket.

use std::{
    collections::HashMap,
    fs,
    hint::black_box,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataflow::{
    Components, Dataflow, Workers,
    generator::{
        Agg, Generator, Series, Settings, Snapshots, Weight,
        accumulate::{Accumulator, Routes},
        attributes,
        histogram::Bucketer,
        metrics::Metrics,
        observe::{Observer, Setup},
        settings::{Common, Fixed, SPAN_METRICS_BUCKETS, ServiceGraphs, SpanMetrics},
    },
    manifest::ManifestStore,
    tick::Ticks,
};
use differential_dataflow::{
    operators::arrange::arrangement::arrange_core,
    trace::implementations::{KeyBatcher, KeySpine},
};
use object_store::memory::InMemory;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prometheus::Registry;
use prost::Message;
use storage::{
    backend::Store,
    block,
    blocklist::Blocklist,
    clock::SystemClock,
    id::Tenant,
    otlp::{self, Walk, wire},
    segment::Segment,
    synthetic,
    wal::{self, Position, Wal},
};
use timely::dataflow::{
    InputHandleVec, ProbeHandle,
    channels::pact::Pipeline,
    operators::{Inspect, Probe, vec::Input},
};

/// 50 000 spans to a tick, as 250 ms of a busy minute.
const REQUESTS_PER_TICK: usize = 25;
const SERVICES: usize = 14;

type Update = ((Series, ()), u64, Agg);

/// Requests whose spans make `SERVICES` times `names` series of span metrics, all of them equally busy.
fn requests(names: usize) -> Vec<Bytes> {
    let mut number = 0usize;
    let rename = |request: &Bytes| {
        let mut request = ExportTraceServiceRequest::decode(request.clone()).expect("synthetic requests are valid");
        for span in request.resource_spans.iter_mut().flat_map(|all| &mut all.scope_spans).flat_map(|all| &mut all.spans) {
            number += 1;
            let name = number.wrapping_mul(0x9e37_79b9) >> 7;
            span.name = format!("operation {}", name % names);
            span.kind = (name % names % 5) as i32 + 1;
            span.status = None;
        }
        Bytes::from(request.encode_to_vec())
    };
    let settings = synthetic::Settings { spans_per_request: 2000, ..synthetic::Settings::default() };
    synthetic::requests_with(settings, 16_000).0.iter().map(rename).collect()
}

fn segments(requests: &[Bytes]) -> Vec<Vec<Segment>> {
    let (tenant, mut walk) = (Tenant::single(), Walk::default());
    let split = |request: &Bytes| {
        otlp::index(request, &mut walk).expect("synthetic requests are valid");
        Segment::split(&tenant, Position(0), request, &walk)
    };
    requests.iter().map(split).collect()
}

/// Whatever the time is that the spans end, they are not late.
fn settings(graphs: bool) -> Arc<Fixed> {
    let settings = Settings {
        span_metrics: Some(SpanMetrics::default()),
        service_graphs: graphs.then(ServiceGraphs::default),
        common: Common { slack: Duration::from_secs(u64::from(u32::MAX)), ..Common::default() },
        ..Settings::default()
    };
    Arc::new(Fixed { default: Some(Arc::new(settings)), ..Fixed::default() })
}

fn observer(graphs: bool) -> Observer {
    let metrics = Arc::new(Metrics::new(&Registry::new()).expect("nothing is registered"));
    let ticks = Ticks::new(Duration::from_millis(250));
    Observer::new(Setup { source: settings(graphs), ticks, workers: 1, metrics, period: 4, forget_every: u64::MAX })
}

fn accumulator() -> Accumulator {
    let metrics = Arc::new(Metrics::new(&Registry::new()).expect("nothing is registered"));
    let source = settings(false);
    Accumulator::new(Arc::clone(&source) as _, Routes::new(source, Workers::new([0])), metrics, 3600, [])
}

/// First seen to pre-aggregated.
fn observe(mut observer: Observer, ticks: &[&[Vec<Segment>]]) -> usize {
    let mut updates = 0;
    for (tick, requests) in ticks.iter().enumerate() {
        requests.iter().flatten().for_each(|segment| observer.push(segment, 0, tick as u64));
        observer.finish(tick as u64, |_, _| updates += 1, |_| {});
    }
    updates
}

/// First seen to accumulated, with the differential arrangement between.
fn differential(requests: &Arc<Vec<Vec<Segment>>>) -> usize {
    let requests = Arc::clone(requests);
    timely::execute_directly(move |worker| {
        let (mut observer, mut accumulator) = (observer(false), accumulator());
        let (sender, differences) = mpsc::channel::<(u64, Vec<(Series, Agg)>)>();
        let probe = ProbeHandle::new();
        let mut input: InputHandleVec<u64, Update> = worker.dataflow(|scope| {
            let (input, updates): (InputHandleVec<u64, Update>, _) = Input::new_input(&scope);
            let arranged = arrange_core::<_, _, _, KeySpine<Series, u64, Agg>>(updates, Pipeline, "Series", KeyBatcher::new);
            let stream = arranged.as_collection(|series, ()| series.clone()).inner;
            stream
                .inspect_core(move |event| {
                    let Ok((_, batch)) = event else { return };
                    let Some((_, tick, _)) = batch.first() else { return };
                    // The other end is in the same function.
                    let _ = sender.send((*tick, batch.iter().map(|(series, _, agg)| (series.clone(), agg.clone())).collect()));
                })
                .probe_with(&probe);
            input
        });
        for (tick, requests) in requests.chunks(REQUESTS_PER_TICK).enumerate() {
            let tick = tick as u64;
            requests.iter().flatten().for_each(|segment| observer.push(segment, 0, tick));
            observer.finish(tick, |series, agg| input.send(((series, ()), tick, agg)), |_| {});
            input.advance_to(tick + 1);
            while probe.less_than(&(tick + 1)) {
                worker.step();
            }
            for (tick, updates) in differences.try_iter() {
                accumulator.apply(updates, tick);
            }
            if tick % 4 == 3 {
                black_box(accumulator.checkpoint(tick));
            }
        }
        accumulator.checkpoint(u64::MAX / 2).0.len()
    })
}

/// The same sums in one hash map, found by the text of the labels: what one would write without any of this.
fn hash_map(requests: &[Vec<Segment>]) -> usize {
    let layout =
        dataflow::generator::Layout { parts: dataflow::generator::Parts::ALL, classic: Some(SPAN_METRICS_BUCKETS.into()), native: None };
    let bucketer = Bucketer::of(layout);
    let mut series: HashMap<(String, String, i32, i32), Agg> = HashMap::new();
    for segment in requests.iter().flatten() {
        for span in &segment.spans {
            let resource = span.resource.of(&segment.body).expect("inside");
            let service = attributes::find(resource, attributes::RESOURCE_ATTRIBUTES, b"service.name").and_then(attributes::text);
            let (mut name, mut start, mut end, mut status): (&[u8], u64, u64, i32) = (&[], 0, 0, 0);
            let encoded = span.span.of(&segment.body).expect("inside");
            for field in wire::Valid::new(encoded) {
                match (field.number, field.value) {
                    (5, wire::Value::Bytes(bytes)) => name = bytes,
                    (7, wire::Value::Fixed64(time)) => start = time,
                    (8, wire::Value::Fixed64(time)) => end = time,
                    (15, wire::Value::Bytes(_)) => status = 1,
                    _ => {}
                }
            }
            let key = (service.unwrap_or_default().into_owned(), String::from_utf8_lossy(name).into_owned(), span.key.kind, status);
            let agg = series.entry(key).or_default();
            bucketer.observe(agg, end.saturating_sub(start), Weight::ONE);
            agg.size += encoded.len() as i128;
        }
    }
    series.len()
}

fn stages(criterion: &mut Criterion) {
    for names in [64, 900] {
        let requests = segments(&requests(names));
        let ticks: Vec<&[Vec<Segment>]> = requests.chunks(REQUESTS_PER_TICK).collect();
        let spans: usize = requests.iter().flatten().map(|segment| segment.spans.len()).sum();
        let mut group = criterion.benchmark_group(format!("{} series", names * SERVICES));
        group.sample_size(10).throughput(Throughput::Elements(spans as u64));
        let mut measure = |name: &str, run: &dyn Fn() -> usize| {
            group.bench_function(name, |bencher| bencher.iter_custom(|iterations| (0..iterations).map(|_| on_cpu(run)).sum()));
        };
        measure("hash map", &|| hash_map(&requests));
        measure("observe", &|| observe(observer(false), &ticks));
        measure("observe, with service graphs", &|| observe(observer(true), &ticks));
        let owned = Arc::new(requests.clone());
        measure("observe, arrange, accumulate", &|| differential(&owned));
        group.finish();
    }
}

/// How long this thread was on a CPU meanwhile, which other load of the machine hardly changes.
fn on_cpu(run: &dyn Fn() -> usize) -> Duration {
    let now = || {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
    };
    let before = now();
    black_box(run());
    now() - before
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|index| fields[*index].parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

/// CPU time from a log full of requests to the bucket.
fn through(requests: &[Bytes], generator: Option<Generator>) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let folder = tempfile::tempdir().expect("folder");
    let registry = Registry::new();
    let settings = wal::Settings {
        dir: folder.path().join("wal"),
        file_bytes: 64 << 20,
        sync: wal::Sync::Never,
        max_bytes: 4 << 30,
        queue_bytes: 64 << 20,
    };
    let (wal, _) = Wal::open(settings, Arc::new(SystemClock), &registry).expect("log");
    runtime.block_on(async {
        for request in requests {
            wal.append(&Tenant::single(), request.clone()).await.expect("append");
        }
    });
    let objects = Arc::new(InMemory::new());
    let store = Store::new(Arc::clone(&objects) as _, "");
    let components = Components {
        wal: Some(wal.clone()),
        blocklist: runtime.block_on(Blocklist::load(&store)).expect("blocklist"),
        store,
        block_settings: Arc::new(block::Settings::default()),
        manifests: ManifestStore::new(objects, "manifests"),
        clock: Arc::new(SystemClock),
        generator,
        runtime: runtime.handle().clone(),
    };
    let before = cpu();
    let dataflow = Dataflow::start(dataflow::Settings::default(), components, &registry).expect("dataflow");
    runtime.block_on(dataflow.flush()).expect("flush");
    let took = cpu() - before;
    runtime.block_on(dataflow.shutdown());
    runtime.block_on(wal.close());
    took
}

fn whole(criterion: &mut Criterion) {
    for names in [64, 900] {
        whole_of(criterion, names);
    }
}

fn whole_of(criterion: &mut Criterion, names: usize) {
    let requests = requests(names);
    let spans: usize = segments(&requests).iter().flatten().map(|segment| segment.spans.len()).sum();
    let mut group = criterion.benchmark_group(format!("cpu time from log to bucket, {} series", names * SERVICES));
    group.sample_size(10).throughput(Throughput::Elements(spans as u64));
    let mut measure = |name: &str, generator: &dyn Fn() -> Option<Generator>| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| (0..iterations).map(|_| through(&requests, generator())).sum());
        });
    };
    measure("without generator", &|| None);
    let generator = |tenants: Arc<Fixed>| Some(Generator { tenants, snapshots: Snapshots::default() });
    measure("nobody wants metrics", &|| generator(Arc::new(Fixed::default())));
    measure("span metrics", &|| generator(settings(false)));
    measure("span metrics and service graphs", &|| generator(settings(true)));
    group.finish();
}

criterion_group!(benches, stages, whole);
criterion_main!(benches);
