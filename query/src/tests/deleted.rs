//! Blocks that are deleted while queries read them.

use std::collections::HashSet;

use storage::blocklist::Found;

use super::*;

const QUERIES: [&str; 3] = [
    "/api/traces/f3e0cee77ae5dc9c17ade3689eb2e54",
    "/api/search?q=%7B%7D&start=1699990000&end=1700000000",
    "/api/v2/search/tag/span.customer/values?start=1699990000&end=1700000000",
];

/// A poll that finds these live blocks.
fn poll(world: &World, live: &[&Meta]) {
    let live = live.iter().map(|meta| Arc::new((*meta).clone())).collect();
    let found = Found { live, compacted: Vec::new(), no_compact: HashSet::new() };
    world.blocklist.apply(world.blocklist.begin_poll(), &Tenant::single(), found, i64::MAX);
}

#[tokio::test]
async fn what_took_the_place_of_a_deleted_block_is_read() {
    for url in QUERIES {
        let world = World::new();
        let tenant = Tenant::single();
        let input = world.write_block(&tenant, shop()).await;
        poll(&world, &[&input]);
        let before = get(&world.router(), url).await.json();
        // Another process put something else in its place: nothing says so, and the block is kept for a poll, but its bytes are gone.
        let output = world.write_block(&tenant, shop()).await;
        poll(&world, &[&output]);
        world.store.delete(&tenant, input.block_id).await.expect("deleted");
        assert_eq!(world.blocklist.blocks(&tenant).len(), 2);
        let mut after = get(&world.router(), url).await.json();
        let mut before = before;
        for answer in [&mut before, &mut after] {
            answer.as_object_mut().expect("an object").remove("metrics");
        }
        assert_eq!(after, before, "{url}");
        assert_eq!(world.blocklist.blocks(&tenant).len(), 1);
    }
}

#[tokio::test]
async fn a_listed_block_without_bytes_is_an_error() {
    for url in QUERIES {
        let world = World::new();
        let tenant = Tenant::single();
        let meta = world.write_block(&tenant, shop()).await;
        poll(&world, &[&meta]);
        world.store.delete(&tenant, meta.block_id).await.expect("deleted");
        let answer = get(&world.router(), url).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{url}: {}", answer.text());
        assert!(answer.text().contains(&meta.block_id.to_string()), "{}", answer.text());
    }
}
