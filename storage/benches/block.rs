//! Encoding blocks of all versions, and finding and scanning vParquet4 blocks and asking their bloom filters, of synthetic traces, per span and
//! per byte of OTLP.
//!
//! Run with `cargo bench -p rubato-storage --bench block`. Before measuring it prints what a span costs on disk in every version, beside
//! its OTLP bytes, and by leaf in vParquet4.

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use object_store::memory::InMemory;
use parquet::file::{reader::FileReader as _, serialized_reader::SerializedFileReader};
use storage::{
    backend::Store,
    block::{Encoded, Filters, Format, Projection, Reader, Settings, TraceSegments, encode},
    id::{BlockId, Tenant, TraceId},
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};

const TRACES: usize = 4000;

fn traces(requests: &[Bytes]) -> Vec<TraceSegments> {
    let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
    let mut walk = Walk::default();
    for body in requests {
        index(body, &mut walk).expect("a valid request");
        for segment in Segment::split(&Tenant::single(), Position(0), body, &walk) {
            traces.entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
    }
    traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect()
}

fn describe(encoded: &Encoded, spans: u64, bytes: u64) {
    let file = SerializedFileReader::new(encoded.data.clone()).expect("our own file");
    let mut leaves = BTreeMap::new();
    for group in file.metadata().row_groups() {
        for chunk in group.columns() {
            let sizes: &mut (i64, i64) = leaves.entry(chunk.column_path().string()).or_default();
            sizes.0 += chunk.compressed_size();
            sizes.1 += chunk.uncompressed_size();
        }
    }
    let per_span = |bytes: f64| bytes / spans as f64;
    eprintln!(
        "{}: {spans} spans: {:.1} bytes of OTLP, {:.2} stored (data.parquet), {:.2} of them footer, per span",
        encoded.meta.format,
        per_span(bytes as f64),
        per_span(encoded.data.len() as f64),
        per_span(encoded.meta.footer_size.into())
    );
    if encoded.meta.format != Format::V4.name() {
        return;
    }
    let mut leaves: Vec<_> = leaves.into_iter().collect();
    leaves.sort_by_key(|(_, (stored, _))| -stored);
    for (leaf, (stored, raw)) in leaves.iter().take(24) {
        eprintln!("{:8.2} stored {:8.2} before compression  {leaf}", per_span(*stored as f64), per_span(*raw as f64));
    }
}

/// Seconds that this process was on a CPU, which other load of the machine hardly changes.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: state is the first field, user and system time are the twelfth and thirteenth.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn block(criterion: &mut Criterion) {
    let requests = synthetic::requests(1, TRACES);
    let bytes: u64 = requests.iter().map(|body| body.len() as u64).sum();
    let traces = traces(&requests);
    let spans: u64 = traces.iter().flat_map(|trace| &trace.segments).map(|segment| segment.spans.len() as u64).sum();
    let (settings, tenant, id) = (Settings::default(), Tenant::single(), BlockId::nil());
    let encoded = encode(&settings, &tenant, id, &traces).expect("encode");
    let versions = Format::ALL.map(|version| Settings { version, ..settings.clone() });
    for settings in &versions {
        describe(&encode(settings, &tenant, id, &traces).expect("encode"), spans, bytes);
        let before = cpu();
        (0..5).for_each(|_| drop(encode(settings, &tenant, id, black_box(&traces)).expect("encode")));
        eprintln!("{}: cpu: {:.0} spans/s", settings.version, 5.0 * spans as f64 / (cpu() - before));
    }

    let mut group = criterion.benchmark_group("block");
    group.sample_size(20);
    // Spans a second, and bytes of OTLP a second.
    group.throughput(Throughput::ElementsAndBytes { elements: spans, bytes });
    for settings in &versions {
        group.bench_function(format!("encode/{}", settings.version), |bencher| {
            bencher.iter(|| encode(settings, &tenant, id, black_box(&traces)).expect("encode"));
        });
    }

    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let store = Store::new(Arc::new(InMemory::new()), "");
    let reader = runtime.block_on(async {
        store.put(&encoded).await.expect("put");
        Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open")
    });
    group.sample_size(10);
    for (name, projection) in [("scan_all", Projection::ALL), ("scan_intrinsics", Projection::INTRINSICS)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(async { reader.scan(0, projection).await.expect("scan").len() }));
        });
    }
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    let ids: Vec<_> = traces.iter().map(|trace| trace.trace_id).collect();
    let mut next = 0;
    group.bench_function("find", |bencher| {
        bencher.iter(|| {
            next = (next + 997) % ids.len();
            runtime.block_on(async { reader.find(ids[next]).await.expect("find").expect("is there") })
        });
    });
    let filters = Filters::new(Arc::new(encoded.meta));
    group.bench_function("bloom", |bencher| {
        bencher.iter(|| {
            next = (next + 997) % ids.len();
            runtime.block_on(async { assert!(filters.may_hold(&store, black_box(ids[next])).await.expect("bloom")) });
        });
    });
    group.bench_function("find_absent", |bencher| {
        bencher.iter(|| runtime.block_on(async { reader.find(TraceId([0xab; 16])).await.expect("find") }));
    });
    group.finish();
}

criterion_group!(benches, block);
criterion_main!(benches);
