//! Blocks of every version written again in every version.

use std::sync::Arc;

use object_store::memory::InMemory;

use super::{
    tests::{all, flat},
    tests_losses::what_is_left,
    *,
};
use crate::backend::Store;

/// A block of the fixtures in a bucket that can be written to.
async fn copy(format: Format, name: &str) -> Option<(Store, Arc<Meta>)> {
    let (from, meta) = fixtures::block(format, name)?;
    let store = Store::new(Arc::new(InMemory::new()), "");
    for name in
        ["data.parquet".to_owned(), "index".to_owned()].into_iter().chain((0..meta.bloom_shards).map(|shard| format!("bloom-{shard}")))
    {
        match from.get(&meta.tenant_id, meta.block_id, &name).await {
            Ok(bytes) => store.put_named(&meta.tenant_id, meta.block_id, &name, bytes).await.expect("put"),
            Err(error) => assert!(error.is_not_found() && name == "index", "{error}"),
        }
    }
    store.publish(&meta).await.expect("publish");
    Some((store, Arc::new(meta)))
}

async fn traces(store: &Store, meta: &Arc<Meta>) -> Vec<Trace> {
    all(&Reader::open(store, Arc::clone(meta)).await.expect("open"), Projection::ALL).await
}

#[tokio::test]
async fn every_version_becomes_every_version_and_loses_what_it_says() {
    for (from, name) in Format::ALL.into_iter().flat_map(|format| [(format, "main"), (format, "multi")]) {
        let Some((store, source)) = copy(from, name).await else { return };
        let before = traces(&store, &source).await;
        for version in Format::ALL {
            // Small row groups: they are drained one by one.
            let settings = Settings {
                version,
                row_group_size_bytes: 20_000,
                bloom_filter_shard_size_bytes: 100,
                dedicated_columns: source.dedicated_columns.clone(),
                ..Settings::default()
            };
            let id = BlockId::from_u128(version as u128 + 1);
            let mut done = Vec::new();
            let meta = rewrite(&store, &source, id, &settings, |groups| done.push(groups)).await.expect("rewrite");
            store.publish(&meta).await.expect("publish");
            let groups = Reader::open(&store, Arc::clone(&source)).await.expect("open").row_groups();
            assert_eq!(done, (1..=groups).collect::<Vec<_>>());
            assert_eq!((meta.format.as_str(), meta.block_id, meta.total_objects), (version.name(), id, source.total_objects));
            assert_eq!((meta.start_time, meta.end_time), (source.start_time, source.end_time));
            assert_eq!((meta.compaction_level, meta.replication_factor), (source.compaction_level, source.replication_factor));
            assert!(meta.total_records > 3 && meta.bloom_shards > 1, "{meta:?}");
            let meta = Arc::new(meta);
            let verified = verify(&store, Arc::clone(&meta)).await.expect("verify");
            assert_eq!(verified.problems, Vec::<String>::new(), "{from} to {version}");
            let after = traces(&store, &meta).await;
            assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(&after) {
                assert_eq!(before.trace_id, after.trace_id);
                let left = what_is_left(version, &meta.dedicated_columns, before.resource_spans.clone());
                assert_eq!(flat(&left), flat(&after.resource_spans), "{from} to {version}, trace {}", before.trace_id);
            }
            let lost = before.iter().zip(&after).any(|(before, after)| flat(&before.resource_spans) != flat(&after.resource_spans));
            let told = losses(from, version, !meta.dedicated_columns.is_empty());
            // A block of vParquet5 has lost already what its dedicated columns cannot hold.
            assert!(lost != told.is_empty() || (from, version) == (Format::V5, Format::V5), "{from} to {version}: {lost}, {told:?}");
        }
    }
}

#[tokio::test]
async fn a_source_that_is_damaged_leaves_nothing_to_publish() {
    let Some((store, source)) = copy(Format::V4, "multi").await else { return };
    let data = store.get(&source.tenant_id, source.block_id, DATA).await.expect("get");
    let mut damaged = data.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle - 2_000..middle].fill(0xff);
    store.put_named(&source.tenant_id, source.block_id, DATA, damaged.into()).await.expect("put");
    let id = BlockId::from_u128(1);
    let error = rewrite(&store, &source, id, &Settings::default(), |_| {}).await.expect_err("damaged");
    assert!(error.to_string().contains(&source.block_id.to_string()), "{error}");
    assert!(!store.exists(&source.tenant_id, id, DATA).await.expect("head"));
    let unknown = Arc::new(Meta { format: "vParquet9".to_owned(), ..Meta::clone(&source) });
    let error = rewrite(&store, &unknown, id, &Settings::default(), |_| {}).await.expect_err("unknown");
    assert!(matches!(error, BlockError::Unsupported { .. }), "{error}");
}
