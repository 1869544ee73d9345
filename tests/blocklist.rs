//! Two processes on one bucket: what one writes or deletes, the other sees when it has polled.

use std::fs;

use storage::id::TraceId;

use crate::harness::{
    eventually,
    otlp::{body, span},
    server::{Config, Server},
};

const POLL: &str = "    blocklist_poll: 300ms";

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_another_process_are_found_and_deleted_ones_are_not() {
    let writer = Server::start(Config { storage: POLL, ..Config::default() }).await;
    let reader = Server::start(Config { storage: POLL, bucket: Some(writer.blocks_path()), ..Config::default() }).await;
    let id = TraceId([7; 16]);
    let answer = writer.client().post_protobuf(body("shop", vec![span(id, 1, "sell")])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the other process finds the trace", || async { reader.client().trace(id).await }).await;
    let found = reader.client().search("{ name = \"sell\" }", 10).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(reader.client().metric("tempodb_blocklist_length", &["single-tenant"]).await, 1.0);
    let folder = writer.blocks_path().join("single-tenant");
    for name in ["index.pb.zst", "index.json.gz"] {
        assert!(folder.join(name).exists(), "{name}");
    }

    let blocks = fs::read_dir(&folder).expect("the tenant has a folder").map(|entry| entry.expect("an entry").path());
    blocks.filter(|path| path.is_dir()).for_each(|block| fs::remove_dir_all(block).expect("deleted"));
    for server in [&reader, &writer] {
        eventually("no block is listed", || async {
            (server.client().metric("tempodb_blocklist_length", &["single-tenant"]).await == 0.0).then_some(())
        })
        .await;
        // A block that left without a successor is served for one poll more, as far as its bytes are cached.
        eventually("the trace is gone", || async { server.client().trace(id).await.is_none().then_some(()) }).await;
        assert!(server.client().search("{ name = \"sell\" }", 10).await.is_empty());
    }
    assert!(!folder.join("index.pb.zst").exists());
}
