//! What every store must do, as functions over a [`Store`] in an empty bucket.
//!
//! Each backend runs [`all`]; a backend that fails one can't hold blocks.

use std::time::Duration;

use bytes::Bytes;
use object_store::{Error, ObjectStoreExt as _};

use super::super::*;
use crate::{
    block::{Encoded, Meta, fixtures},
    id::{BlockId, Tenant},
};

/// Runs everything. `store` makes a store below a prefix of one and the same empty bucket; parts are small enough for [`LARGE`].
pub(crate) async fn all(store: impl Fn(&str) -> Store) {
    an_empty_bucket(&store("")).await;
    let stores = [store(""), store("deep/er/prefix")];
    for store in &stores {
        objects_of_a_block(store).await;
        objects_of_a_tenant(store).await;
        ranges(store).await;
        uploads(store).await;
        one_creator(store).await;
        life_of_a_block(store).await;
        compaction_is_dated(store).await;
        listings(store).await;
    }
    prefixes_are_apart(&store("one"), &store("one-more")).await;
}

/// Bytes of an object of several parts: parts of 5 MiB, the least that S3 allows.
pub(crate) const LARGE: usize = (10 << 20) + 12_345;

pub(crate) fn tenant(name: &str) -> Tenant {
    Tenant::new(name).expect("a legal name")
}

pub(crate) fn block(tenant: &Tenant, end_time: i64) -> Encoded {
    let meta = Meta { bloom_shards: 2, ..fixtures::meta(tenant, end_time) };
    let blooms = vec![Bytes::from_static(b"b0"), Bytes::from_static(b"b1")];
    Encoded { meta, data: Bytes::from_static(b"data"), blooms, index: Bytes::from_static(b"{}") }
}

/// Bytes without a period that a part or a page could have.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

async fn an_empty_bucket(store: &Store) {
    let (tenant, id) = (tenant("nobody"), BlockId::new_v4());
    assert_eq!(store.tenants().await.expect("tenants"), []);
    assert_eq!(store.blocks(&tenant).await.expect("blocks"), []);
    assert_eq!(store.listing(&tenant).await.expect("listing"), Listing::default());
    assert_eq!(store.meta(&tenant, id).await.expect("meta"), None);
    assert_eq!(store.compacted_meta(&tenant, id).await.expect("compacted meta"), None);
    assert!(!store.exists(&tenant, id, "data.parquet").await.expect("exists"));
    let missing = store.get(&tenant, id, "data.parquet").await.expect_err("there is nothing");
    assert!(matches!(missing.source, Error::NotFound { .. }), "{missing:?}");
    assert!(missing.to_string().contains(&format!("{id}/data.parquet")), "{missing}");
    assert!(store.get_of_tenant(&tenant, "index.json.gz").await.expect("an absent object is no error").is_none());
    store.mark_compacted(&tenant, id).await.expect("what is gone stays gone");
    store.delete(&tenant, id).await.expect("nothing to delete");
    store.delete_named(&tenant, id, "x").await.expect("nothing to delete");
    store.delete_of_tenant(&tenant, "x").await.expect("nothing to delete");
    assert_eq!(store.tenants().await.expect("tenants"), [], "questions leave nothing behind");
}

async fn objects_of_a_block(store: &Store) {
    let (tenant, id) = (tenant("it's-a_tenant.*(1)!"), BlockId::new_v4());
    for name in ["data.parquet", "bloom-0", "nocompact.flg"] {
        for content in [&b""[..], b"first", b"second, longer than the first"] {
            store.put_named(&tenant, id, name, Bytes::from_static(content)).await.expect("put");
            assert_eq!(store.get(&tenant, id, name).await.expect("get"), content, "{name}");
            assert!(store.exists(&tenant, id, name).await.expect("exists"));
        }
        store.delete_named(&tenant, id, name).await.expect("delete");
        store.delete_named(&tenant, id, name).await.expect("deleting again");
        assert!(!store.exists(&tenant, id, name).await.expect("exists"), "{name}");
    }
}

async fn objects_of_a_tenant(store: &Store) {
    let tenant = tenant("indexed");
    store.put_of_tenant(&tenant, "index.pb.zst", Bytes::from_static(b"index")).await.expect("put");
    let (bytes, modified) = store.get_of_tenant(&tenant, "index.pb.zst").await.expect("get").expect("it is there");
    assert_eq!(bytes, "index");
    assert!(modified > 1_700_000_000, "{modified}");
    assert!(store.tenants().await.expect("tenants").contains(&tenant));
    store.delete_of_tenant(&tenant, "index.pb.zst").await.expect("delete");
    assert!(store.get_of_tenant(&tenant, "index.pb.zst").await.expect("get").is_none());
}

async fn ranges(store: &Store) {
    let (tenant, id) = (tenant("ranges"), BlockId::new_v4());
    let content = noise(500_000);
    store.put_named(&tenant, id, "data.parquet", content.clone()).await.expect("put");
    let asked = [400_000..400_100, 0..4, 3..200_000, 499_990..500_000, 10..10, 250_000..250_001];
    let got = store.get_ranges(&tenant, id, "data.parquet", &asked).await.expect("ranges");
    for (range, bytes) in asked.iter().zip(&got) {
        assert_eq!(bytes, &content.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    assert!(store.get_ranges(&tenant, id, "absent", &asked).await.is_err());
    store.delete(&tenant, id).await.expect("delete");
}

async fn uploads(store: &Store) {
    let (tenant, id) = (tenant("uploads"), BlockId::new_v4());
    let content = noise(LARGE);
    for (length, piece) in [(0, 1), (10, 3), (store.parts.bytes.expect("parts of a test"), 1 << 20), (LARGE, 700_001)] {
        let mut upload = store.upload(&tenant, id, "data.parquet");
        for piece in content[..length].chunks(piece) {
            upload.write(piece).await.expect("write");
        }
        assert_eq!(upload.written(), length as u64);
        assert!(!store.exists(&tenant, id, "data.parquet").await.expect("exists"), "it does not exist before it is finished");
        assert_eq!(upload.finish().await.expect("finish"), length as u64);
        assert_eq!(store.get(&tenant, id, "data.parquet").await.expect("get"), content[..length], "{length} bytes by {piece}");
        store.delete_named(&tenant, id, "data.parquet").await.expect("delete");
    }
    let mut upload = store.upload(&tenant, id, "data.parquet");
    upload.write(&content).await.expect("write");
    upload.abort().await.expect("abort");
    assert!(!store.exists(&tenant, id, "data.parquet").await.expect("exists"), "aborted");
    let listing = store.listing(&tenant).await.expect("listing");
    assert_eq!(listing, Listing::default(), "an aborted upload leaves nothing");
}

async fn one_creator(store: &Store) {
    let (tenant, id) = (tenant("creators"), BlockId::new_v4());
    let claims = (0..8).map(|number| store.create(&tenant, id, "owner", Bytes::from(format!("claim of {number}"))));
    let claims = futures::future::join_all(claims).await;
    let won: Vec<_> = claims.iter().enumerate().filter(|(_, won)| *won.as_ref().expect("create")).map(|(number, _)| number).collect();
    assert_eq!(won.len(), 1, "{claims:?}");
    let there = store.get(&tenant, id, "owner").await.expect("get");
    assert_eq!(there, format!("claim of {}", won[0]));
    assert!(!store.create(&tenant, id, "owner", there).await.expect("create"), "also for the one that won");
    store.delete(&tenant, id).await.expect("delete");
    assert!(store.create(&tenant, id, "owner", Bytes::from_static(b"next")).await.expect("create"), "free again");
    store.delete(&tenant, id).await.expect("delete");
}

async fn life_of_a_block(store: &Store) {
    let tenant = tenant("life");
    let (old, new) = (block(&tenant, 1), block(&tenant, 2));
    let id = old.meta.block_id;
    store.put(&old).await.expect("put");
    store.put(&old).await.expect("again");
    assert_eq!(store.blocks(&tenant).await.expect("blocks"), [], "no block without its meta.json");
    let listing = store.listing(&tenant).await.expect("listing");
    assert_eq!((listing.objects, listing.unfinished.len(), listing.live.len()), (4, 1, 0));
    store.publish(&old.meta).await.expect("publish");
    store.publish(&old.meta).await.expect("again");
    store.put(&new).await.expect("put");
    store.publish(&new.meta).await.expect("publish");
    assert_eq!(store.blocks(&tenant).await.expect("blocks"), [new.meta.clone(), old.meta.clone()], "newest first");
    assert_eq!(store.meta(&tenant, id).await.expect("meta"), Some(old.meta.clone()));
    assert_eq!(store.get(&tenant, id, "bloom-1").await.expect("get"), "b1");

    store.mark_compacted(&tenant, id).await.expect("mark");
    store.mark_compacted(&tenant, id).await.expect("again");
    assert_eq!(store.meta(&tenant, id).await.expect("meta"), None);
    assert_eq!(store.compacted_meta(&tenant, id).await.expect("meta"), Some(old.meta.clone()));
    assert_eq!(store.blocks(&tenant).await.expect("blocks"), std::slice::from_ref(&new.meta));
    assert_eq!(store.get(&tenant, id, "data.parquet").await.expect("its bytes are still there"), "data");

    for id in [id, new.meta.block_id] {
        store.delete(&tenant, id).await.expect("delete");
        store.delete(&tenant, id).await.expect("again");
    }
    assert_eq!(store.listing(&tenant).await.expect("listing"), Listing::default());
    assert!(!store.tenants().await.expect("tenants").contains(&tenant), "nothing is left");
}

async fn compaction_is_dated(store: &Store) {
    let tenant = tenant("dated");
    let block = block(&tenant, 1);
    store.put(&block).await.expect("put");
    store.publish(&block.meta).await.expect("publish");
    let before = store.objects.head(&store.object_path(&tenant, block.meta.block_id, "meta.json")).await.expect("head").last_modified;
    // Stores know seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    store.mark_compacted(&tenant, block.meta.block_id).await.expect("mark");
    let listing = store.listing(&tenant).await.expect("listing");
    let [(id, at)] = listing.compacted[..] else { panic!("{listing:?}") };
    assert_eq!(id, block.meta.block_id);
    assert!(at > before.timestamp(), "compaction happened at {at}, not when the block was written: {before}");
    store.delete(&tenant, id).await.expect("delete");
}

async fn listings(store: &Store) {
    let tenant = tenant("listings");
    let mut blocks: Vec<_> = (0..4).map(|number| block(&tenant, number)).collect();
    blocks.sort_by_key(|block| block.meta.block_id);
    let [live, held, both, compacted] = &blocks[..] else { panic!("four blocks") };
    for block in &blocks {
        store.put(block).await.expect("put");
        store.publish(&block.meta).await.expect("publish");
    }
    store.put_named(&tenant, held.meta.block_id, "nocompact.flg", Bytes::new()).await.expect("put");
    for block in [both, compacted] {
        store.mark_compacted(&tenant, block.meta.block_id).await.expect("mark");
    }
    store.publish(&both.meta).await.expect("publish");
    let unfinished = block(&tenant, 9);
    store.put(&unfinished).await.expect("put");
    store.put_of_tenant(&tenant, "index.json.gz", Bytes::from_static(b"x")).await.expect("put");

    let listing = store.listing(&tenant).await.expect("listing");
    let ids = |pairs: &[(BlockId, i64)]| pairs.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(listing.live, [live, held, both].map(|block| block.meta.block_id));
    assert_eq!(ids(&listing.compacted), [both, compacted].map(|block| block.meta.block_id));
    assert_eq!(ids(&listing.unfinished), [unfinished.meta.block_id]);
    assert_eq!(listing.no_compact, [held.meta.block_id]);
    assert_eq!(listing.objects, 5 * 4 + 3 + 2 + 1 + 1, "objects, metas, compacted metas, the flag, the index");
    store.delete_of_tenant(&tenant, "index.json.gz").await.expect("delete");
    for block in blocks.iter().chain([&unfinished]) {
        store.delete(&tenant, block.meta.block_id).await.expect("delete");
    }
}

async fn prefixes_are_apart(one: &Store, other: &Store) {
    let tenant = tenant("apart");
    let block = block(&tenant, 1);
    one.put(&block).await.expect("put");
    one.publish(&block.meta).await.expect("publish");
    assert_eq!(other.tenants().await.expect("tenants"), []);
    assert_eq!(other.blocks(&tenant).await.expect("blocks"), []);
    assert_eq!(one.tenants().await.expect("tenants"), std::slice::from_ref(&tenant));
    one.delete(&tenant, block.meta.block_id).await.expect("delete");
}
