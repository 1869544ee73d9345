//! Metrics on one core: spans per second of a warm vParquet4 block on a local disk, from the bytes to the partial result; of columns that are
//! decoded already; and what merging and finishing partial results costs.
//!
//! Run with `cargo bench -p rubato-query --bench metrics`.

use std::{collections::BTreeMap, hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use object_store::local::LocalFileSystem;
use query::{
    columns::{Batch, Scan},
    traceql,
    traceql_metrics::{Asked, Cost, MetricsLimits, MetricsRequest, Observer, Partial, finish_range},
};
use storage::{
    backend::Store,
    block::{Encoded, Reader, Settings, TraceSegments, encode},
    id::{BlockId, Tenant, TraceId},
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};
use tokio::runtime::Runtime;

/// Traces of 25 spans on average.
const TRACES: usize = 20_000;

const QUERIES: [(&str, &str); 9] = [
    ("rate", "{} | rate()"),
    ("rate without exemplars", "{} | rate() with(exemplars=false)"),
    ("rate by name", "{} | rate() by (name)"),
    ("rate by service", "{} | rate() by (resource.service.name)"),
    ("rate by service and status", "{} | rate() by (resource.service.name, status)"),
    ("quantile by name", "{} | quantile_over_time(duration, .9) by (name)"),
    ("histogram", "{} | histogram_over_time(duration)"),
    ("sum by name", "{} | sum_over_time(duration) by (name)"),
    ("compare", "{} | compare({ status = error })"),
];

fn block() -> Encoded {
    let (requests, _) = synthetic::requests_with(synthetic::Settings::default(), TRACES);
    let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
    let mut walk = Walk::default();
    for body in &requests {
        index(body, &mut walk).expect("a valid request");
        for segment in Segment::split(&Tenant::single(), Position(0), body, &walk) {
            traces.entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
    }
    let traces: Vec<_> = traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect();
    encode(&Settings::default(), &Tenant::single(), BlockId::from_u128(1), &traces).expect("encode")
}

fn request(query: &str, start: u64, end: u64) -> Arc<MetricsRequest> {
    let query = Arc::new(traceql::parse(query).expect("a query"));
    // As Traces Drilldown asks: the whole range for a comparison, some dozens of intervals for graphs.
    let step = if query.to_string().contains("compare") { end - start } else { (end - start) / 60 };
    let asked = Asked { start, end, step: Some(step.max(1)), ..Asked::default() };
    Arc::new(MetricsRequest::new(query, asked, MetricsLimits::default()).expect("a metrics query"))
}

async fn batches(reader: &Arc<Reader>, request: &MetricsRequest) -> Vec<Batch> {
    let scan = Scan::new(Arc::clone(reader), Arc::new(request.wanted())).expect("scan");
    let mut all = Vec::new();
    for row_group in 0..scan.row_groups() {
        let mut batches = scan.row_group(row_group).await.expect("row group");
        while let Some(batch) = batches.next().await.expect("batch") {
            all.push(batch);
        }
    }
    all
}

fn count<'b>(request: &Arc<MetricsRequest>, batches: impl IntoIterator<Item = &'b Batch>) -> Partial {
    let mut observer = Observer::new(Arc::clone(request));
    for batch in batches {
        observer.observe(batch, None).expect("fits");
    }
    observer.finish()
}

fn metrics(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("runtime");
    let encoded = block();
    let folder = tempfile::tempdir().expect("folder");
    let store = Store::new(Arc::new(LocalFileSystem::new_with_prefix(folder.path()).expect("folder")), "");
    runtime.block_on(store.put(&encoded)).expect("put");
    let reader = Arc::new(runtime.block_on(Reader::open(&store, Arc::new(encoded.meta.clone()))).expect("open"));
    let second = |time: i64| u64::try_from(time).expect("after 1970") * 1_000_000_000;
    let (start, end) = (second(encoded.meta.start_time), second(encoded.meta.end_time + 1));
    let whole = runtime.block_on(batches(&reader, &request("{} | rate()", start, end)));
    let spans = whole.iter().map(|batch| batch.spans().expect("a good block") as u64).sum();
    eprintln!("{spans} spans in {} bytes", encoded.meta.size);
    drop((whole, encoded));

    let mut group = criterion.benchmark_group("metrics: warm block");
    group
        .throughput(Throughput::Elements(spans))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .measurement_time(Duration::from_secs(2));
    for (name, query) in QUERIES {
        let request = request(query, start, end);
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(count(&request, &runtime.block_on(batches(&reader, &request)))));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("metrics: decoded columns");
    group.throughput(Throughput::Elements(spans)).sample_size(20).measurement_time(Duration::from_secs(1));
    for (name, query) in QUERIES {
        let request = request(query, start, end);
        let decoded = runtime.block_on(batches(&reader, &request));
        group.bench_function(name, |bencher| bencher.iter(|| black_box(count(&request, &decoded))));
    }
    group.finish();

    let mut group = criterion.benchmark_group("metrics: merge four and finish");
    group.sample_size(20).measurement_time(Duration::from_secs(1));
    for (name, query) in QUERIES {
        let request = request(query, start, end);
        let part = count(&request, &runtime.block_on(batches(&reader, &request))).encode();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut all = Partial::new(&request);
                for _ in 0..4 {
                    all.merge(&request, &Partial::decode(&request, &part).expect("our own")).expect("fits");
                }
                black_box(finish_range(&request, &all, Cost::default()))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
