//! Blocks become fewer while the process runs, is killed and starts again, and every trace is found all the time, once.

use std::{collections::BTreeSet, fs};

use storage::id::TraceId;

use crate::harness::{
    client::spans,
    eventually,
    network::{Network, ring_of, start_all},
    otlp::{body, span},
    server::{Config, Server},
};

const POLL: &str = "    blocklist_poll: 500ms";
/// As soon as there are two blocks, they are one; what was merged is deleted soon.
const HASTY: &str = "\
compactor:
  compaction: {compaction_cycle: 100ms, compacted_block_retention: 3s}
rubato:
  compactor: {patience_cycles: 0, small_bytes: 0B}";

fn trace(number: u64) -> TraceId {
    TraceId((u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// Sends traces of two spans, and makes a block of each.
async fn send(server: &Server, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let body = body("shop", vec![span(trace(number), 1, "sell"), span(trace(number), 2, "pack")]);
        let answer = server.client().post_protobuf(body).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = server.client().get("/flush").await.expect("an answer");
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
}

async fn check(server: &Server, traces: u64) {
    for number in 0..traces {
        let found = eventually("a trace", || async { server.client().trace(trace(number)).await }).await;
        let ids: Vec<_> = spans(&found).map(|span| span.span_id.clone()).collect();
        assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (2, 2), "trace {number}");
    }
    let found = server.client().search("{ name = \"sell\" }", 1000).await;
    assert_eq!(found.len() as u64, traces);
}

/// Folders with a `meta.json`, and all folders.
fn folders(server: &Server) -> (usize, usize) {
    let Ok(entries) = fs::read_dir(server.blocks_path().join("single-tenant")) else { return (0, 0) };
    let folders: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|path| path.is_dir()).collect();
    (folders.iter().filter(|path| path.join("meta.json").exists()).count(), folders.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_flushes_become_few_blocks_whatever_happens_to_the_process() {
    let mut server = Server::start(Config { storage: POLL, more: HASTY, ..Config::default() }).await;
    let mut traces = 0;
    for round in 0..4 {
        send(&server, traces..traces + 8).await;
        traces += 8;
        // Wherever compaction is.
        if round % 2 == 0 {
            server.kill();
        } else {
            assert!(server.terminate().await.success());
        }
        server.start_again().await;
        check(&server, traces).await;
    }
    eventually("few blocks, and nothing else", || async {
        let (live, all) = folders(&server);
        (live <= 4 && all <= 4).then_some(())
    })
    .await;
    check(&server, traces).await;
    assert_eq!(server.client().metric("tempodb_compaction_errors_total", &[]).await, 0.0);
    assert_eq!(server.client().metric("tempodb_retention_errors_total", &[]).await, 0.0);
    server.kill();
    server.start_again().await;
    check(&server, traces).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_its_own_compacts() {
    let writer = Server::start(Config { storage: POLL, more: "compactor: {disabled: true}", ..Config::default() }).await;
    send(&writer, 0..6).await;
    assert_eq!(folders(&writer), (6, 6), "this one does not compact");
    let more: &'static str = "\
target: compactor
compactor:
  compaction: {compaction_cycle: 100ms, compacted_block_retention: 3s}
rubato:
  compactor: {patience_cycles: 0}";
    let compactor = Server::start(Config { storage: POLL, more, bucket: Some(writer.blocks_path()), ..Config::default() }).await;
    eventually("one block", || async { (folders(&writer) == (1, 1)).then_some(()) }).await;
    check(&writer, 6).await;
    let merged = compactor.client().metric("tempodb_compaction_blocks_total", &[]).await;
    assert!(merged >= 6.0, "{merged}");
    let answer = compactor.client().get("/api/search").await.expect("an answer");
    assert_eq!(answer.status, 404, "it answers no queries");
    let answer = writer.client().post_protobuf(body("shop", vec![span(trace(6), 1, "sell"), span(trace(6), 2, "pack")])).await;
    assert_eq!(answer.expect("an answer").status, 200);
    check(&writer, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compactors_share_the_work_by_their_ring_and_take_over_from_a_dead_one() {
    let tenants = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"];
    let writer =
        Server::start(Config { multitenancy: true, storage: POLL, more: "compactor: {disabled: true}", ..Config::default() }).await;
    let mut sent = 0;
    let mut send = async || {
        for _ in 0..3 {
            for tenant in tenants {
                let body = body("shop", vec![span(trace(sent), 1, "sell")]);
                let answer = writer.client().with_tenant(tenant).post_protobuf(body).await.expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            sent += 1;
            assert_eq!(writer.client().get("/flush").await.expect("an answer").status, 204);
        }
        sent
    };
    let blocks = |tenant: &str| {
        let entries = fs::read_dir(writer.blocks_path().join(tenant)).into_iter().flatten();
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().join("meta.json").exists())).count()
    };
    send().await;
    let network = Network::new();
    let mut compactors = [0, 1].map(|node| {
        Server::prepare(Config { multitenancy: true, storage: POLL, bucket: Some(writer.blocks_path()), ..network.compactor(node, 2) })
    });
    start_all(&mut compactors).await;
    for compactor in &compactors {
        eventually("two compactors in the ring", async || {
            let ring = ring_of(compactor, "compactor").await;
            (ring.len() == 2 && ring.values().all(|(state, tokens)| state == "ACTIVE" && tokens.len() == 512)).then_some(())
        })
        .await;
    }
    // Three each were there; an index from before the last one shows two, and then one of each of two levels stays.
    eventually("few blocks of each tenant", async || tenants.iter().all(|tenant| blocks(tenant) <= 2).then_some(())).await;

    // What fell to the one that is killed falls to the other, which forgets it later on.
    compactors[0].kill();
    let total = send().await;
    // Of the four, which are of two levels, one of each may stay.
    eventually("few blocks of each tenant again", async || tenants.iter().all(|tenant| blocks(tenant) <= 2).then_some(())).await;
    eventually("the dead one is forgotten", async || {
        let ring = ring_of(&compactors[1], "compactor").await;
        (ring.into_keys().collect::<Vec<_>>() == ["compactor-1"]).then_some(())
    })
    .await;
    for tenant in tenants {
        for number in 0..total {
            let client = writer.client().with_tenant(tenant);
            let found = eventually("a trace", || async { client.trace(trace(number)).await }).await;
            assert_eq!(spans(&found).count(), 1, "{tenant}, trace {number}");
        }
    }
    assert_eq!(compactors[1].client().metric("tempodb_compaction_errors_total", &[]).await, 0.0);
}
