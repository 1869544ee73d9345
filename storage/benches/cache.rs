//! What a hit costs, by where it is found: in the process, in a memcached of this machine, or in a file of the local disk.
//!
//! Without `memcached` on the path its part is left out.

use std::{
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use object_store::local::LocalFileSystem;
use prometheus::Registry;
use storage::{
    backend::Store,
    cache::{Cache, MemcachedSettings, Role, Settings},
    clock::SystemClock,
    id::{BlockId, Tenant},
};
use tokio::runtime::Runtime;

const KEYS: usize = 50;

fn cache(runtime: &Runtime, settings: Settings) -> Cache {
    let _entered = runtime.enter();
    Cache::start(settings, Arc::new(SystemClock), &Registry::new()).expect("the settings are right")
}

fn hits(c: &mut Criterion, runtime: &Runtime, place: &str, cache: &Cache, bytes: usize) {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("single-tenant:{}:data.parquet:{n}:{bytes}", BlockId::nil())).collect();
    runtime.block_on(async {
        while cache.get(Role::ParquetPage, &keys).await.iter().any(Option::is_none) {
            for key in &keys {
                cache.put(Role::ParquetPage, key.clone(), Bytes::from(vec![7; bytes]));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut group = c.benchmark_group(format!("cache hit, {bytes} B, {place}"));
    for number in [1, KEYS] {
        group.throughput(Throughput::Elements(number as u64));
        group.bench_function(format!("{number} keys"), |b| {
            b.iter(|| runtime.block_on(cache.get(Role::ParquetPage, &keys[..number])));
        });
    }
    group.finish();
}

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    for bytes in [4 << 10, 64 << 10] {
        hits(c, &runtime, "in the process", &cache(&runtime, Settings::default()), bytes);
    }

    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::new(Arc::new(LocalFileSystem::new_with_prefix(dir.path()).expect("a folder")), "");
    let (tenant, block) = (Tenant::single(), BlockId::nil());
    runtime.block_on(store.put_named(&tenant, block, "data.parquet", vec![7; 64 << 20].into())).expect("the disk has room");
    for bytes in [4 << 10, 64 << 10] {
        let mut group = c.benchmark_group(format!("read, {bytes} B, local disk"));
        for number in [1, KEYS as u64] {
            // Far enough apart that they are read one by one.
            let ranges: Vec<_> = (0..number).map(|n| n * (1 << 20)..n * (1 << 20) + bytes).collect();
            group.throughput(Throughput::Elements(number));
            group.bench_function(format!("{number} ranges"), |b| {
                b.iter(|| runtime.block_on(store.get_ranges(&tenant, block, "data.parquet", &ranges)).expect("they are there"));
            });
        }
        group.finish();
    }

    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let mut command = Command::new("memcached");
    command.args(["-l", "127.0.0.1", "-U", "0", "-u", "nobody", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut memcached) = command.spawn() else { return };
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let far = MemcachedSettings {
        roles: vec![Role::ParquetPage],
        addresses: format!("127.0.0.1:{port}"),
        timeout: Duration::from_secs(5),
        ..MemcachedSettings::default()
    };
    let cache = cache(&runtime, Settings { local_bytes: 0, memcached: vec![far], ..Settings::default() });
    for bytes in [4 << 10, 64 << 10] {
        hits(c, &runtime, "memcached", &cache, bytes);
    }
    memcached.kill().and_then(|()| memcached.wait()).expect("a child can be killed");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
