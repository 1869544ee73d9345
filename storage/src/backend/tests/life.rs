//! Blocks from publish to delete, in memory.

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{ObjectStoreExt as _, memory::InMemory};

use super::super::*;
use crate::{
    block::{Encoded, Meta, fixtures},
    blocklist::Blocklist,
};

fn meta(tenant: &Tenant, end_time: i64) -> Meta {
    Meta { format: "vParquet9".to_owned(), ..fixtures::meta(tenant, end_time) }
}

fn block(meta: Meta) -> Encoded {
    Encoded { meta, data: Bytes::from_static(b"0123456789"), blooms: vec![Bytes::from_static(b"b")], index: Bytes::from_static(b"{}") }
}

#[tokio::test]
async fn a_block_exists_from_publish_to_delete() {
    for prefix in ["", "some/prefix"] {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Store::new(Arc::clone(&objects), prefix);
        let tenant = Tenant::single();
        let first = block(meta(&tenant, 1));
        store.put(&first).await.expect("put");
        assert!(Blocklist::load(&store).await.expect("load").tenants().is_empty());
        store.publish(&first.meta).await.expect("publish");
        store.publish(&first.meta).await.expect("again");
        let second = block(meta(&tenant, 2));
        store.put(&second).await.expect("put");
        store.publish(&second.meta).await.expect("publish");
        let list = Blocklist::load(&store).await.expect("load");
        let ids = |list: &Blocklist| list.blocks(&tenant).iter().map(|m| m.block_id).collect::<Vec<_>>();
        assert_eq!(ids(&list), [second.meta.block_id, first.meta.block_id]);
        list.add(second.meta.clone());
        let third = meta(&tenant, 3);
        list.add(third.clone());
        assert_eq!(ids(&list), [third.block_id, second.meta.block_id, first.meta.block_id]);
        assert_eq!(store.get(&tenant, first.meta.block_id, "index").await.expect("index"), "{}");
        assert!(store.get(&tenant, third.block_id, "index").await.is_err());
        store.delete(&tenant, first.meta.block_id).await.expect("delete");
        store.delete(&tenant, first.meta.block_id).await.expect("deleting again");
        store.delete(&tenant, second.meta.block_id).await.expect("delete");
        assert_eq!(objects.list(None).count().await, 0);
    }
}

#[tokio::test]
async fn strange_folders_and_metas_are_passed_over() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::new(Arc::clone(&objects), "p");
    let tenant = Tenant::new("a").expect("tenant");
    let good = meta(&tenant, 1);
    store.publish(&good).await.expect("publish");
    let foreign = meta(&tenant, 1).to_json().expect("json");
    let large = vec![b' '; 2 << 20];
    for (path, bytes) in [
        ("p/work.json".to_owned(), b"{}".as_slice()),
        ("p/tempo_cluster_seed.json/x".to_owned(), b"{}"),
        ("p/not a tenant/x".to_owned(), b"{}"),
        ("p/a/index.json.gz".to_owned(), b""),
        ("p/a/no-block/meta.json".to_owned(), b"{}"),
        (format!("p/a/{}/meta.json", BlockId::new_v4()), b"{"),
        (format!("p/a/{}/meta.json", BlockId::new_v4()), &foreign),
        (format!("p/a/{}/meta.json", BlockId::new_v4()), &large),
        (format!("p/a/{}/meta.compacted.json", BlockId::new_v4()), b"{}"),
    ] {
        objects.put(&Path::from(path), Bytes::copy_from_slice(bytes).into()).await.expect("put");
    }
    assert_eq!(store.tenants().await.expect("tenants"), std::slice::from_ref(&tenant));
    assert_eq!(store.blocks(&tenant).await.expect("blocks"), [good]);
}

#[tokio::test]
async fn names_are_those_of_the_bucket_and_not_escaped() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::new(Arc::clone(&objects), "/with space/*/");
    let tenant = Tenant::new("it's_a*(tenant)!").expect("Tempo allows it");
    let meta = meta(&tenant, 1);
    store.publish(&meta).await.expect("publish");
    let expected = format!("with space/*/it's_a*(tenant)!/{}/meta.json", meta.block_id);
    let names: Vec<_> = objects.list(None).map(|object| object.expect("list").location.to_string()).collect().await;
    assert_eq!(names, [expected]);
    assert_eq!(store.tenants().await.expect("tenants"), [tenant]);
}
