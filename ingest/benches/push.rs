//! `Distributor::push` with a log that takes everything at once: what a request costs between its decompression and the log.

use std::{hint::black_box, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ingest::{Distributor, DistributorSettings, Limits, LimitsTable, Log, SharedOverrides};
use storage::{
    clock::ManualClock,
    id::Tenant,
    otlp::{self, Walk},
    synthetic,
    wal::{AppendError, Position},
};

#[derive(Debug)]
struct NullLog;

#[async_trait]
impl Log for NullLog {
    async fn append(&self, _: &Tenant, body: Bytes) -> Result<Position, AppendError> {
        Ok(Position(black_box(body).len() as u64))
    }
}

fn distributor() -> Distributor {
    // All checks run, none refuses.
    let limits = Limits {
        rate_limit_bytes: u64::MAX,
        burst_size_bytes: u64::MAX,
        max_traces_per_user: 10_000_000,
        max_bytes_per_trace: u64::MAX,
        ..Limits::default()
    };
    let overrides = SharedOverrides::new(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() });
    let clock = ManualClock::new(Duration::from_secs(1_800_000_000));
    let registry = prometheus::Registry::new();
    Distributor::new(DistributorSettings::default(), Arc::new(NullLog), Arc::new(overrides), Arc::new(clock), &registry)
        .expect("fresh registry")
}

fn push(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let tenant = Tenant::single();
    let mut group = criterion.benchmark_group("push");
    for spans_per_request in [10, 100, 1000] {
        let settings = synthetic::Settings { spans_per_request, ..synthetic::Settings::default() };
        let (requests, _) = synthetic::requests_with(settings, 4000);
        let bytes: usize = requests.iter().map(Bytes::len).sum();
        let mut walk = Walk::default();
        let mut spans = 0;
        for request in &requests {
            otlp::validate(request, usize::MAX, &mut walk).expect("synthetic requests are valid");
            spans += walk.spans.len();
        }
        let distributor = distributor();
        for (unit, throughput) in [("spans", Throughput::Elements(spans as u64)), ("bytes", Throughput::Bytes(bytes as u64))] {
            group.throughput(throughput);
            group.bench_function(BenchmarkId::new(unit, spans_per_request), |bencher| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        for request in &requests {
                            distributor.push(&tenant, request.clone()).await.expect("within all limits");
                        }
                    });
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = push
}
criterion_main!(benches);
