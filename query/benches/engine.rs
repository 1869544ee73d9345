//! Queries on warm blocks, one core: spans per second of a million synthetic spans in a vParquet4 block on a local disk.
//!
//! Run with `cargo bench -p rubato-query --bench engine`. Everything that a query does with a block is in the figures: looking at the footer's
//! row groups, reading dictionaries and leaves from the disk's cache, decoding, evaluation. Before measuring it prints what each query reads and
//! finds.

use std::{collections::BTreeMap, hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use object_store::local::LocalFileSystem;
use query::{
    columns::{Scan, Vector, Wanted},
    exec::Exec,
    traceql::{self, Field, Intrinsic},
};
use storage::{
    backend::Store,
    block::{Encoded, Format, Reader, Settings, TraceSegments, encode},
    id::{BlockId, Tenant, TraceId},
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};
use tokio::runtime::Runtime;

/// Traces of 25 spans on average.
const TRACES: usize = 40_000;

fn block(format: Format) -> Encoded {
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
    let settings = Settings { version: format, ..Settings::default() };
    encode(&settings, &Tenant::single(), BlockId::from_u128(1), &traces).expect("encode")
}

/// What is done with the spans that a query leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Only which traces they are in: the first phase of a search.
    Traces,
    /// Counted by the second of their start, as `rate()` does.
    Rate,
    /// The same by the value of a field.
    RateBy(Intrinsic),
}

const BUCKETS: usize = 1 << 10;

/// Spans that were found.
async fn run(reader: &Arc<Reader>, query: &traceql::Query, then: Then) -> usize {
    let mut wanted = Wanted::of(query);
    if let Then::RateBy(intrinsic) = then {
        wanted = wanted.and_fields([Field::Intrinsic(intrinsic)]);
    }
    let scan = Scan::new(Arc::clone(reader), Arc::new(wanted)).expect("scan");
    let exec = Exec::new(query);
    let mut found = 0;
    for row_group in 0..scan.row_groups() {
        let mut batches = scan.row_group(row_group).await.expect("row group");
        while let Some(batch) = batches.next().await.expect("batch") {
            found += match then {
                Then::Traces => {
                    let spansets = exec.spansets(&batch).expect("spansets");
                    let ids = batch.trace_ids().expect("ids");
                    black_box(spansets.traces.iter().map(|&trace| ids[trace as usize]).max());
                    spansets.spans.len()
                }
                Then::Rate => {
                    let starts = batch.starts_ns().expect("starts");
                    let mut counts = vec![0u64; BUCKETS];
                    let mut count = |start: u64| counts[(start / 1_000_000_000) as usize % BUCKETS] += 1;
                    match exec.matched(&batch, None).expect("matched") {
                        None => starts.iter().for_each(|&start| count(start)),
                        Some(spans) => spans.iter().for_each(|&span| count(starts[span as usize])),
                    }
                    black_box(counts).iter().sum::<u64>() as usize
                }
                Then::RateBy(intrinsic) => {
                    let starts = batch.starts_ns().expect("starts");
                    let keys = batch.vector(&Field::Intrinsic(intrinsic)).expect("vector");
                    let Vector::Text(texts) = &*keys else { panic!("names are strings") };
                    let mut counts = vec![0u64; BUCKETS * texts.dictionary.len()];
                    for (&start, &code) in starts.iter().zip(&texts.codes) {
                        counts[code as usize * BUCKETS + (start / 1_000_000_000) as usize % BUCKETS] += 1;
                    }
                    black_box(counts).iter().sum::<u64>() as usize
                }
            };
        }
    }
    found
}

/// Some value that only one span has.
async fn rare_value(reader: &Arc<Reader>) -> String {
    let field = Field::Attribute { parent: false, scope: traceql::Scope::Span, name: "app.request.id".to_owned() };
    let scan = Scan::new(Arc::clone(reader), Arc::new(Wanted::fields(vec![field.clone()]))).expect("scan");
    let mut batches = scan.row_group(0).await.expect("row group");
    let batch = batches.next().await.expect("batch").expect("some batch");
    let vector = batch.vector(&field).expect("vector");
    let found = (0..vector.len()).rev().find_map(|span| vector.text(span).map(str::to_owned));
    found.expect("some internal span")
}

fn engine(c: &mut Criterion) {
    let runtime = Runtime::new().expect("runtime");
    for format in [Format::V4, Format::V5] {
        let encoded = block(format);
        let folder = tempfile::tempdir().expect("folder");
        let objects = LocalFileSystem::new_with_prefix(folder.path()).expect("folder");
        let store = Store::new(Arc::new(objects), "");
        let reader = runtime.block_on(async {
            store.put(&encoded).await.expect("put");
            Arc::new(Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open"))
        });
        drop(encoded.data);
        let parse = |text: &str| traceql::parse(text).expect("a legal query");
        let spans = runtime.block_on(run(&reader, &parse("{}"), Then::Rate));
        eprintln!("{format}: {spans} spans in {} row groups, {} bytes", reader.row_groups(), encoded.meta.size);
        let rare = format!("{{ span.app.request.id = `{}` }}", runtime.block_on(rare_value(&reader)));
        let queries = [
            ("rate", "{}", Then::Rate),
            ("rate_by_name", "{}", Then::RateBy(Intrinsic::Name)),
            ("rate_of_a_service", "{ resource.service.name = `cart` && duration > 10ms }", Then::Rate),
            ("rate_of_errors", "{ status = error }", Then::Rate),
            ("rare_attribute", &rare, Then::Traces),
            ("attribute", "{ span.app.items > 45 }", Then::Traces),
            ("missing_attribute", "{ span.nowhere = `x` }", Then::Traces),
            ("regex", "{ name =~ `.*[Cc]art.*` }", Then::Traces),
            ("attribute_regex", "{ span.db.query.text =~ `SELECT.*` }", Then::Traces),
            ("descendants", "{ kind = server } >> { status = error }", Then::Traces),
            ("by_and_count", "{} | by(resource.service.name) | count() > 5", Then::Traces),
            ("arithmetic", "{ duration * 2 > 100ms }", Then::Traces),
        ];
        let mut group = c.benchmark_group(format!("engine/{format}"));
        group.throughput(Throughput::Elements(spans as u64)).sampling_mode(SamplingMode::Flat);
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for (name, text, then) in queries {
            let query = parse(text);
            eprintln!("{name}: {text} finds {} spans", runtime.block_on(run(&reader, &query, then)));
            group.bench_function(name, |bencher| bencher.iter(|| runtime.block_on(run(&reader, &query, then))));
        }
        group.finish();
    }
}

criterion_group!(benches, engine);
criterion_main!(benches);
