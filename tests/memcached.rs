//! A cache in memcached makes reads cheaper and nothing else: answers are the same with it, while it is dead or stopped, and after.

#[path = "../storage/src/cache/testing.rs"]
pub(crate) mod process;

use storage::id::TraceId;

use self::process::Memcached;
use crate::harness::{
    eventually,
    otlp::{body, span},
    server::{Config, Server},
};

fn id(n: u64) -> TraceId {
    TraceId((u128::from(n) << 64 | 0xcafe).to_be_bytes())
}

/// Sends traces and waits until they are in blocks.
async fn send(server: &Server, traces: std::ops::Range<u64>) {
    for n in traces.clone() {
        let sent = server.client().post_protobuf(body("cached", vec![span(id(n), n + 1, &format!("span {n}"))])).await;
        assert_eq!(sent.expect("an answer").status, 200);
    }
    eventually("blocks", || async { (server.traces_in_blocks("single-tenant") >= traces.end).then_some(()) }).await;
}

/// Every trace is found, by id and by search, and one that was never sent is not.
async fn check(server: &Server, traces: u64, when: &str) {
    let client = server.client();
    for n in 0..traces {
        let trace = client.trace(id(n)).await.unwrap_or_else(|| panic!("{when}: trace {n}"));
        assert_eq!(trace[0].scope_spans[0].spans[0].name, format!("span {n}"), "{when}");
    }
    assert_eq!(client.trace(id(1 << 40)).await, None, "{when}");
    let found = client.search("{ resource.service.name = \"cached\" }", 1000).await;
    assert_eq!(found.len() as u64, traces, "{when}");
}

/// The process with nothing cached in it.
async fn restart(server: &mut Server) {
    assert!(server.terminate().await.success());
    server.start_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_depend_on_memcached() {
    let Some(mut memcached) = Memcached::start() else { return };
    let more = format!(
        "\
cache:
  caches:
    - roles: [bloom, parquet-footer]
      memcached:
        addresses: {0}
        timeout: 2s
        circuit_breaker_consecutive_failures: 1
        circuit_breaker_timeout: 200ms
        ttl: 48h
    - roles: [parquet-page, parquet-offset-idx]
      memcached:
        addresses: dns+localhost:{1}
        consistent_hash: true
        timeout: 2s
        circuit_breaker_consecutive_failures: 1
        circuit_breaker_timeout: 200ms
",
        memcached.address,
        memcached.address.port()
    );
    let mut server = Server::start(Config { more: more.leak(), ..Config::default() }).await;
    let found =
        async |server: &Server, place: &str| server.client().metric("rubato_cache_lookups_total", &[&format!("found=\"{place}\"")]).await;
    let open = async |server: &Server| server.client().metric("rubato_memcache_open_servers", &[]).await;

    send(&server, 0..30).await;
    check(&server, 30, "with memcached").await;
    check(&server, 30, "again").await;
    assert!(found(&server, "local").await > 0.0);
    assert!(found(&server, "none").await > 0.0);
    let queued = || async { (server.client().metric("tempo_cache_background_queue_length", &[]).await == 0.0).then_some(()) };
    eventually("nothing waits to be written", queued).await;
    assert!(
        server.client().metric("tempo_memcache_request_duration_seconds_count", &["method=\"Memcache.Put\"", "status_code=\"200\""]).await
            > 0.0
    );

    restart(&mut server).await;
    check(&server, 30, "from memcached").await;
    for role in ["bloom", "parquet-footer", "parquet-page"] {
        let labels = ["found=\"memcached\"", &format!("role=\"{role}\"")];
        assert!(server.client().metric("rubato_cache_lookups_total", &labels).await > 0.0, "{role}");
    }

    memcached.kill();
    restart(&mut server).await;
    check(&server, 30, "without memcached").await;
    assert_eq!(found(&server, "memcached").await, 0.0);
    assert!(open(&server).await > 0.0);
    send(&server, 30..40).await;
    check(&server, 40, "without memcached, written to").await;

    memcached.start_again();
    restart(&mut server).await;
    check(&server, 40, "with an empty memcached").await;
    memcached.signal("-STOP");
    send(&server, 40..50).await;
    check(&server, 50, "with a memcached that hangs").await;
    eventually("it is left alone", || async { (open(&server).await > 0.0).then_some(()) }).await;
    memcached.signal("-CONT");
    let mut sent = 50;
    while open(&server).await > 0.0 {
        assert!(sent < 300, "memcached is not used again");
        send(&server, sent..sent + 10).await;
        sent += 10;
        check(&server, sent, "with a memcached that went on").await;
    }
    restart(&mut server).await;
    check(&server, sent, "after all").await;
    assert!(found(&server, "memcached").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_available_is_refused_by_name() {
    for (more, expected) in [
        (
            "cache:\n  caches:\n    - roles: [bloom]\n      redis:\n        endpoint: localhost:1\n",
            "cache.caches[0].redis is not available",
        ),
        (
            "cache:\n  caches:\n    - roles: [bloom]\n      memcached:\n        addresses: localhost:1\n        tls_enabled: true\n",
            "cache.caches[0].memcached.tls_enabled is not available",
        ),
        (
            "cache:\n  caches:\n    - roles: [bloom]\n      memcached:\n        addresses: udp+localhost\n",
            "is not one of dns+, dnssrv+, dnssrvnoa+",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("config.yaml");
        let text = format!(
            "server: {{http_listen_address: 127.0.0.1, http_listen_port: 0, grpc_listen_port: 0}}\nstorage: {{trace: {{backend: local, local: {{path: blocks}}, wal: {{path: wal}}}}}}\n{more}"
        );
        std::fs::write(&path, text).expect("the folder is writable");
        let output = crate::harness::server::run(dir.path(), &[&format!("-config.file={}", path.display())]);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && printed.contains(expected), "{printed}");
    }
}
