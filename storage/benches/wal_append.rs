//! Appending to the write-ahead log and reading back: groups of concurrent requests of about 100 KB, in bytes and in spans.

use std::{hint::black_box, path::Path, sync::Arc};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use storage::{
    clock::SystemClock,
    id::Tenant,
    synthetic::{self, Settings},
    wal::{self, Position, Sync, Wal},
};
use tempfile::TempDir;

/// Requests that are in flight together.
const GROUP: usize = 32;

fn open(dir: &Path, sync: Sync) -> Wal {
    let settings = wal::Settings { dir: dir.to_owned(), file_bytes: 64 << 20, sync, max_bytes: 4 << 30, queue_bytes: 64 << 20 };
    Wal::open(settings, Arc::new(SystemClock), &prometheus::Registry::new()).expect("opens").0
}

async fn append_all(wal: &Wal, bodies: &[Bytes]) {
    let tenant = Tenant::single();
    for result in join_all(bodies.iter().map(|body| wal.append(&tenant, body.clone()))).await {
        result.expect("appended");
    }
}

fn wal_append(criterion: &mut Criterion) {
    let spans_per_request = 250;
    let (mut bodies, _) = synthetic::requests_with(Settings { spans_per_request, ..Settings::default() }, 400);
    bodies.truncate(GROUP);
    assert_eq!(bodies.len(), GROUP);
    let bytes: u64 = bodies.iter().map(|body| body.len() as u64).sum();
    let spans = (GROUP * spans_per_request) as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");

    let mut group = criterion.benchmark_group("wal");
    group.sample_size(20);
    for (name, sync) in [("never", Sync::Never), ("always", Sync::Always)] {
        // On the disk that the build is on, which is rarely a memory file system.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let wal = open(dir.path(), sync);
        for (unit, throughput) in [("bytes", Throughput::Bytes(bytes)), ("spans", Throughput::Elements(spans))] {
            group.throughput(throughput);
            group.bench_function(format!("append/{name}/{unit}"), |bencher| {
                bencher.iter(|| {
                    runtime.block_on(append_all(&wal, &bodies));
                    wal.release(*wal.head().borrow()).expect("released");
                });
            });
        }
        runtime.block_on(wal.close());
    }

    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let wal = open(dir.path(), Sync::Never);
    runtime.block_on(append_all(&wal, &bodies));
    for (unit, throughput) in [("bytes", Throughput::Bytes(bytes)), ("spans", Throughput::Elements(spans))] {
        group.throughput(throughput);
        group.bench_function(format!("read/{unit}"), |bencher| {
            bencher.iter(|| {
                let mut reader = wal.reader(Position(0)).expect("a reader");
                let mut records = Vec::new();
                while reader.position() < *wal.head().borrow() {
                    records.clear();
                    reader.read(1 << 20, &mut records).expect("readable");
                    black_box(&records);
                }
            });
        });
    }
    runtime.block_on(wal.close());
}

criterion_group!(benches, wal_append);
criterion_main!(benches);
