//! Merging blocks of synthetic traces, beside the decoding and encoding that it saves.
//!
//! Run with `cargo bench -p rubato-storage --bench merge`. `apart` are two blocks without a trace in common, whose rows alternate;
//! `together` are two blocks of which each has half of the requests, so that traces that were split over requests meet. With
//! `MERGE_BENCH_BLOCKS=<megabytes>` it measures nothing but merges four blocks of that size in a folder and says what memory that took:
//! the peak of the resident memory of a process that does nothing else.

use std::{collections::BTreeMap, hint::black_box, path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use object_store::{local::LocalFileSystem, memory::InMemory};
use storage::{
    backend::Store,
    block::{self, Meta, Projection, Reader, TraceSegments, encode, merge},
    id::{BlockId, Tenant, TraceId},
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};

/// That of the binary: what a merge leaves behind in memory is the allocator's doing.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TRACES: usize = 8000;

fn traces<'a>(requests: impl Iterator<Item = &'a Bytes>) -> Vec<TraceSegments> {
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

fn spans(traces: &[TraceSegments]) -> u64 {
    traces.iter().flat_map(|trace| &trace.segments).map(|segment| segment.spans.len() as u64).sum()
}

fn settings(threads: usize) -> merge::Settings {
    merge::Settings { block: block::Settings::default(), max_bytes_per_trace: 5_000_000, memory_bytes: 256 << 20, threads }
}

async fn put(store: &Store, id: u128, traces: &[TraceSegments]) -> Arc<Meta> {
    let encoded = encode(&block::Settings::default(), &Tenant::single(), BlockId::from_u128(id), traces).expect("encode");
    store.put(&encoded).await.expect("put");
    Arc::new(encoded.meta)
}

fn bench(criterion: &mut Criterion) {
    if let Some(megabytes) = std::env::var("MERGE_BENCH_BLOCKS").ok().and_then(|text| text.parse().ok()) {
        return memory(megabytes);
    }
    let requests = synthetic::requests(1, TRACES);
    let bytes: u64 = requests.iter().map(|body| body.len() as u64).sum();
    let all = traces(requests.iter());
    let spans = spans(&all);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime");
    let store = Store::new(Arc::new(InMemory::new()), "");
    let (apart, together) = runtime.block_on(async {
        let half =
            |odd: usize| all.iter().enumerate().filter(move |(at, _)| at % 2 == odd).map(|(_, trace)| trace.clone()).collect::<Vec<_>>();
        let apart = [put(&store, 1, &half(0)).await, put(&store, 2, &half(1)).await];
        let some = |odd: usize| traces(requests.iter().enumerate().filter(|(at, _)| at % 2 == odd).map(|(_, body)| body));
        (apart, [put(&store, 3, &some(0)).await, put(&store, 4, &some(1)).await])
    });

    let (settings_of_blocks, tenant) = (block::Settings::default(), Tenant::single());
    let merge = |inputs: &[Arc<Meta>], threads: usize| {
        runtime.block_on(merge::merge(&store, inputs, BlockId::from_u128(9), &settings(threads))).expect("merge")
    };
    let decode = || {
        runtime.block_on(async {
            for meta in &apart {
                let reader = Reader::open(&store, Arc::clone(meta)).await.expect("open");
                for row_group in 0..reader.row_groups() {
                    black_box(reader.scan(row_group, Projection::ALL).await.expect("scan"));
                }
            }
        });
    };
    let encode_all = || encode(&settings_of_blocks, &tenant, BlockId::nil(), black_box(&all)).expect("encode");
    // Time on the CPU, which other load of the machine hardly changes.
    let cost = |work: &dyn Fn()| {
        work();
        let before = cpu();
        (0..5).for_each(|_| work());
        (cpu() - before) / 5.0
    };
    let (decoding, encoding) = (cost(&decode), cost(&|| drop(encode_all())));
    eprintln!("{spans} spans; cpu: decode {decoding:.2} s, encode {encoding:.2} s");
    for (name, inputs, threads) in [("apart", &apart, 1), ("apart", &apart, 2), ("together", &together, 1), ("together", &together, 2)] {
        let merging = cost(&|| drop(merge(inputs, threads)));
        eprintln!(
            "cpu: merge {name} with {threads} threads {merging:.2} s, {:.0} spans/s, {:.2} of decode and encode",
            spans as f64 / merging,
            merging / (decoding + encoding)
        );
    }

    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10);
    group.throughput(Throughput::ElementsAndBytes { elements: spans, bytes });
    for (name, inputs) in [("apart", &apart), ("together", &together)] {
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(name, threads), |bencher| bencher.iter(|| merge(inputs, threads)));
        }
    }
    group.bench_function("decode", |bencher| bencher.iter(decode));
    group.bench_function("encode", |bencher| bencher.iter(encode_all));
    group.finish();
}

/// Seconds that this process was on a CPU.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: state is the first field, user and system time are the twelfth and thirteenth.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Peak of the resident memory of this process, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

/// What a process that measures memory does: `<row groups> <threads> <megabytes of budget>`, or nothing but writing the inputs.
const RUN: &str = "MERGE_BENCH_RUN";

/// Merges four blocks of so many megabytes under several budgets, each in a process of its own that does nothing else.
fn memory(megabytes: u64) {
    let folder = std::env::temp_dir().join(format!("rubato-merge-{megabytes}"));
    if let Ok(run) = std::env::var(RUN) {
        // As the binary's compactor has it.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().expect("runtime");
        return runtime.block_on(alone(&folder, megabytes, &run));
    }
    let start = |run: &str| {
        let mut process = std::process::Command::new(std::env::current_exe().expect("this bench"));
        // As the binary does.
        process.env("MIMALLOC_PURGE_DELAY", "0");
        let status = process.args(std::env::args().skip(1)).env(RUN, run).status().expect("a process");
        assert!(status.success(), "{run}");
    };
    if !folder.join("written").exists() {
        std::fs::create_dir_all(&folder).expect("a folder");
        start("write");
        std::fs::write(folder.join("written"), "").expect("a file");
    }
    for row_groups in ["small", "large"] {
        for run in ["1 64", "2 64", "1 256", "2 256"] {
            start(&format!("{row_groups} {run}"));
        }
    }
}

async fn alone(folder: &Path, megabytes: u64, run: &str) {
    let store = Store::new(Arc::new(LocalFileSystem::new_with_prefix(folder).expect("a folder")), "");
    let &[row_groups, threads, budget] = run.split(' ').collect::<Vec<_>>().as_slice() else {
        return write(&store, megabytes).await;
    };
    let first = if row_groups == "small" { SMALL } else { LARGE };
    let mut inputs = Vec::new();
    for id in first..first + 4 {
        inputs.push(Arc::new(store.meta(&Tenant::single(), BlockId::from_u128(id)).await.expect("get").expect("a block")));
    }
    let count = |of: fn(&Meta) -> u64| inputs.iter().map(|meta| of(meta)).sum::<u64>();
    let (size, groups) = (count(|meta| meta.size), count(|meta| meta.total_records.into()));
    let settings =
        merge::Settings { memory_bytes: budget.parse::<usize>().expect("megabytes") << 20, ..settings(threads.parse().expect("threads")) };
    let (before, start, used) = (peak(), Instant::now(), cpu());
    let merged = merge::merge(&store, &inputs, BlockId::from_u128(9), &settings).await.expect("merge");
    eprintln!(
        "{} MB in row groups of {:.1} MB become {} MB, {} row groups; budget {budget} MB, {threads} threads: peak {} MB (before: {} MB), {:.1} s, cpu {:.1} s",
        size >> 20,
        size as f64 / groups as f64 / f64::from(1 << 20),
        merged.meta.size >> 20,
        merged.meta.total_records,
        peak() >> 20,
        before >> 20,
        start.elapsed().as_secs_f64(),
        cpu() - used,
    );
}

/// Ids of the inputs with row groups as Tempo cuts them, and as a merge does.
const LARGE: u128 = 0x10;
const SMALL: u128 = 0x20;

async fn write(store: &Store, megabytes: u64) {
    // 51 bytes per span and 25 spans per trace, about.
    let count = (megabytes << 20) as usize / (51 * 25);
    for number in 0..4 {
        let requests = synthetic::requests(number as u64 + 1, count);
        let large = put(store, LARGE + number, &traces(requests.iter())).await;
        store.publish(&large).await.expect("publish");
        let small = merge::merge(store, &[large], BlockId::from_u128(SMALL + number), &settings(1)).await.expect("merge").meta;
        store.publish(&small).await.expect("publish");
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
