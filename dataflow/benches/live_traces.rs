//! Live traces: from split segments to cut traces, on one core, with one and with three replicas of each span.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dataflow::live::{Limits, LiveTraces};
use storage::{
    id::Tenant,
    otlp::{self, Walk},
    segment::Segment,
    synthetic,
    wal::Position,
};

/// 20 requests to a tick, as 250 ms of a busy minute.
const REQUESTS_PER_TICK: usize = 20;

fn segments(requests: &[Bytes]) -> Vec<Vec<Segment>> {
    let (tenant, mut walk) = (Tenant::single(), Walk::default());
    let split = |request: &Bytes| {
        otlp::index(request, &mut walk).expect("synthetic requests are valid");
        Segment::split(&tenant, Position(0), request, &walk)
    };
    requests.iter().map(split).collect()
}

fn run(ticks: Vec<Vec<Segment>>) -> usize {
    let mut live = LiveTraces::new(Limits { idle: 20, live: 120, window: 240, max_bytes: 8 << 20 });
    let mut cut = 0;
    for (number, segments) in ticks.into_iter().enumerate() {
        let tick = (number / REQUESTS_PER_TICK) as u64;
        for segment in segments {
            live.push(segment, tick);
        }
        live.advance(tick, |trace| cut += trace.segments.len());
    }
    live.cut_all(u64::MAX / 2, |trace| cut += trace.segments.len());
    cut
}

fn bench(criterion: &mut Criterion) {
    let once = segments(&synthetic::requests(1, 4000));
    let thrice: Vec<Vec<Segment>> = once.iter().flat_map(|request| [request.clone(), request.clone(), request.clone()]).collect();
    let spans: usize = once.iter().flatten().map(|segment| segment.spans.len()).sum();
    let mut group = criterion.benchmark_group("live_traces");
    group.sample_size(20).throughput(Throughput::Elements(spans as u64));
    group.bench_function("unique spans, one replica", |bencher| bencher.iter_batched(|| once.clone(), run, BatchSize::LargeInput));
    group.bench_function("unique spans, three replicas", |bencher| bencher.iter_batched(|| thrice.clone(), run, BatchSize::LargeInput));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
