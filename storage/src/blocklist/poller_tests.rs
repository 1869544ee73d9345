//! Polls of buckets in memory, with what they cost.

use std::collections::HashSet;

use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path};

use super::{tests::meta, *};
use crate::{
    backend::counting::{Counting, Counts},
    block::fixtures,
    clock::ManualClock,
    ownership::{Ownership, Sole},
};
use prometheus::{Encoder as _, Registry, TextEncoder};

/// Owns nothing: a querier.
#[derive(Debug)]
struct Nothing;

impl Ownership for Nothing {
    fn owns(&self, _key: &str) -> bool {
        false
    }
}

/// Owns the jobs with these keys.
#[derive(Debug)]
struct Keys(&'static [&'static str]);

impl Ownership for Keys {
    fn owns(&self, key: &str) -> bool {
        self.0.contains(&key)
    }
}

/// A process that polls.
struct Process {
    poller: Poller,
    list: Blocklist,
    registry: Registry,
}

impl Process {
    fn blocks(&self, tenant: &Tenant) -> HashSet<BlockId> {
        self.list.blocks(tenant).iter().map(|meta| meta.block_id).collect()
    }

    async fn poll(&self) -> Cost {
        self.poller.poll().await.expect("polled")
    }

    fn metrics(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("text");
        String::from_utf8(text).expect("text")
    }
}

struct Bucket {
    objects: Arc<dyn ObjectStore>,
    counting: Arc<Counting>,
    store: Store,
    clock: ManualClock,
    tenant: Tenant,
}

impl Bucket {
    fn new() -> Self {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let counting = Counting::new(Arc::clone(&objects));
        let store = Store::new(Arc::clone(&counting) as Arc<dyn ObjectStore>, "");
        let clock = ManualClock::new(Duration::from_secs(4_000_000_000));
        Self { objects, counting, store, clock, tenant: Tenant::new("a").expect("tenant") }
    }

    fn process(&self, settings: Settings, ownership: impl Ownership) -> Process {
        let (list, registry) = (Blocklist::new(), Registry::new());
        let clock = Arc::new(self.clock.clone());
        let poller = Poller::new(self.store.clone(), list.clone(), settings, Arc::new(ownership), clock, &registry).expect("metrics");
        Process { poller, list, registry }
    }

    async fn publish(&self, blocks: usize) -> HashSet<BlockId> {
        let mut ids = HashSet::new();
        for number in 0..blocks {
            let meta = meta(&self.tenant, i64::try_from(number).expect("few"));
            self.store.publish(&meta).await.expect("published");
            ids.insert(meta.block_id);
        }
        ids
    }

    async fn put(&self, name: &str, bytes: &'static [u8]) {
        self.objects.put(&Path::from(format!("a/{name}")), bytes.into()).await.expect("put");
    }

    async fn has(&self, name: &str) -> bool {
        self.objects.head(&Path::from(format!("a/{name}"))).await.is_ok()
    }

    fn counts(&self) -> Counts {
        self.counting.reset()
    }
}

#[tokio::test]
async fn a_poll_of_an_unchanged_bucket_costs_one_request_per_tenant() {
    let bucket = Bucket::new();
    let ids = bucket.publish(100).await;
    let builder = bucket.process(Settings::default(), Sole);
    let reader = bucket.process(Settings::default(), Nothing);
    bucket.counts();

    let cost = builder.poll().await;
    assert_eq!(builder.blocks(&bucket.tenant), ids);
    assert_eq!((cost.tenant_listings, cost.listings, cost.metas_read, cost.indexes_written), (1, 1, 100, 2));
    let counts = bucket.counts();
    assert_eq!((counts.lists, counts.gets, counts.heads, counts.puts, counts.put_bytes), (2, 100, 0, 2, cost.bytes_written));

    // Again: the listing of tenants, the listing of the tenant.
    let cost = builder.poll().await;
    assert_eq!(cost, Cost { tenant_listings: 1, listings: 1, objects_listed: 102, ..Cost::default() });
    let counts = bucket.counts();
    assert_eq!((counts.lists, counts.gets, counts.heads, counts.puts, counts.deletes), (2, 0, 0, 0, 0));

    // One more block is one more read, and a new index.
    let more = bucket.publish(1).await;
    let cost = builder.poll().await;
    assert_eq!((cost.listings, cost.metas_read, cost.indexes_written), (1, 1, 2));
    let ids: HashSet<_> = ids.union(&more).copied().collect();
    assert_eq!(builder.blocks(&bucket.tenant), ids);
    bucket.counts();

    let cost = reader.poll().await;
    assert_eq!(reader.blocks(&bucket.tenant), ids);
    assert!(cost.bytes_read > 0);
    assert_eq!((cost.listings, cost.metas_read, cost.indexes_read), (0, 0, 1));
    let counts = bucket.counts();
    assert_eq!((counts.lists, counts.gets, counts.heads, counts.puts), (1, 1, 0, 0));

    // The index is as it was, and is not sent again.
    let cost = reader.poll().await;
    assert_eq!(cost, Cost { tenant_listings: 1, indexes_unchanged: 1, ..Cost::default() });
    let counts = bucket.counts();
    assert_eq!((counts.lists, counts.gets, counts.get_bytes, counts.heads, counts.puts), (1, 1, 0, 0, 0));
    assert_eq!(reader.blocks(&bucket.tenant), ids);

    // What looks at the age of indexes sees a young one.
    bucket.clock.advance(Duration::from_secs(300));
    assert_eq!(builder.poll().await.indexes_written, 2);
    let text = builder.metrics();
    for line in [
        "tempodb_blocklist_length{tenant=\"a\"} 101",
        "tempodb_blocklist_tenant_index_builder{tenant=\"a\"} 1",
        "tempodb_blocklist_tenant_index_age_seconds{tenant=\"a\"} 0",
        "tempodb_backend_objects_total{status=\"live\",tenant=\"a\"} 101",
        "tempodb_backend_bytes_total{status=\"compacted\",tenant=\"a\"} 0",
        "tempodb_blocklist_poll_duration_seconds_count 4",
        "rubato_blocklist_poll_requests_total{operation=\"read_meta\"} 101",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(reader.metrics().contains("tempodb_blocklist_tenant_index_builder{tenant=\"a\"} 0"));
}

#[tokio::test]
async fn new_compacted_and_deleted_blocks_are_seen() {
    let bucket = Bucket::new();
    let ids: Vec<_> = bucket.publish(3).await.into_iter().collect();
    let process = bucket.process(Settings::default(), Sole);
    process.poll().await;
    let output = Meta { compacted_from: ids[..2].to_vec(), ..meta(&bucket.tenant, 9) };
    bucket.store.publish(&output).await.expect("published");
    // Killed after the first mark.
    bucket.store.mark_compacted(&bucket.tenant, ids[0]).await.expect("marked");
    let cost = process.poll().await;
    assert_eq!(cost.metas_read, 1, "the description of a block that was live is known");
    assert_eq!(process.blocks(&bucket.tenant), HashSet::from([ids[2], output.block_id]));
    let compacted: HashMap<_, _> = process.list.compacted(&bucket.tenant).iter().map(|c| (c.meta.block_id, c.at.is_some())).collect();
    assert_eq!(compacted, HashMap::from([(ids[0], true), (ids[1], false)]));
    // Deleted by hand: served until the next poll, and gone when somebody asks.
    bucket.store.delete(&bucket.tenant, ids[2]).await.expect("deleted");
    process.poll().await;
    assert_eq!(process.list.compactable(&bucket.tenant).len(), 1);
    process.poll().await;
    assert_eq!(process.blocks(&bucket.tenant), HashSet::from([output.block_id]));
    // A process that starts now sees the same.
    let fresh = bucket.process(Settings::default(), Sole);
    fresh.poll().await;
    assert_eq!(fresh.blocks(&bucket.tenant), HashSet::from([output.block_id]));
    let loaded = Blocklist::load(&bucket.store).await.expect("loaded");
    assert_eq!((loaded.blocks(&bucket.tenant).len(), loaded.compacted(&bucket.tenant).len()), (1, 2));
}

#[tokio::test]
async fn without_a_usable_index_readers_look_themselves() {
    let bucket = Bucket::new();
    let ids = bucket.publish(5).await;
    let strict = bucket.process(Settings { fallback: false, tolerate_tenant_failures: 0, ..Settings::default() }, Nothing);
    let error = strict.poller.poll().await.expect_err("no index");
    assert_eq!(error.to_string(), "1 tenants failed, among them \"a\"");
    assert!(strict.metrics().contains("tempodb_blocklist_poll_errors_total{tenant=\"a\"} 1"));
    assert!(strict.metrics().contains("tempodb_blocklist_tenant_index_errors_total{tenant=\"a\"} 2"), "tried twice");

    // Missing: writes one, which the next one reads.
    let reader = bucket.process(Settings::default(), Nothing);
    let cost = reader.poll().await;
    assert_eq!((cost.indexes_read, cost.listings, cost.metas_read, cost.indexes_written), (2, 1, 5, 2));
    assert_eq!(reader.blocks(&bucket.tenant), ids);
    strict.poll().await;
    assert_eq!(strict.blocks(&bucket.tenant), ids);
    assert_eq!(reader.poll().await.listings, 0);

    // Without protobuf, JSON is read.
    bucket.store.delete_of_tenant(&bucket.tenant, index::PROTOBUF).await.expect("deleted");
    let cost = strict.poll().await;
    assert_eq!((cost.indexes_read, cost.listings), (2, 0));
    assert_eq!(strict.poll().await.indexes_unchanged, 1);

    // Broken: JSON does not help, looking does.
    bucket.put(index::PROTOBUF, b"garbage").await;
    let error = strict.poller.poll().await.expect_err("a broken index");
    assert!(crate::block::chain(&error).contains("\"index.pb.zst\" of tenant \"a\" is broken"), "{error:?}");
    assert_eq!(strict.blocks(&bucket.tenant), ids, "the old list stays");
    let cost = reader.poll().await;
    assert_eq!((cost.listings, cost.metas_read, cost.indexes_written), (1, 0, 2));
    strict.poll().await;

    // Stale.
    let impatient = Settings { stale_index: Duration::from_secs(60), ..Settings::default() };
    let impatient = bucket.process(impatient, Nothing);
    assert_eq!(impatient.poll().await.listings, 0);
    bucket.clock.advance(Duration::from_secs(61));
    let cost = impatient.poll().await;
    assert_eq!((cost.indexes_unchanged, cost.listings, cost.metas_read, cost.indexes_written), (1, 1, 0, 2));
}

#[tokio::test]
async fn the_first_poll_waits_for_tenants_that_fail() {
    let bucket = Bucket::new();
    let ids = bucket.publish(2).await;
    bucket.put(index::PROTOBUF, b"garbage").await;
    let reader = bucket.process(Settings { fallback: false, interval: Duration::from_millis(1), ..Settings::default() }, Nothing);
    // Tolerated later, not at first.
    reader.poll().await;
    let builder = bucket.process(Settings::default(), Sole);
    let reasons = parking_lot::Mutex::new(Vec::new());
    let repair = async {
        while reasons.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        builder.poll().await;
    };
    let (polled, ()) = tokio::join!(reader.poller.first_poll(|why| reasons.lock().push(why.to_owned())), repair);
    polled.expect("the bucket refuses nothing");
    assert_eq!(reader.blocks(&bucket.tenant), ids);
    assert!(reasons.lock()[0].contains("\"index.pb.zst\" of tenant \"a\" is broken"), "{reasons:?}");
}

#[tokio::test]
async fn builders_are_chosen_by_their_keys() {
    let bucket = Bucket::new();
    bucket.publish(1).await;
    for (keys, builders, builds) in [
        (&["build-tenant-index-0-a"][..], 2, true),
        (&["build-tenant-index-1-a"], 2, true),
        (&["build-tenant-index-2-a"], 2, false),
        (&["build-tenant-index-1-a"], 1, false),
        (&["build-tenant-index-0-b"], 2, false),
    ] {
        let process = bucket.process(Settings { index_builders: builders, ..Settings::default() }, Keys(keys));
        assert_eq!(process.poll().await.indexes_read == 0, builds, "{keys:?} of {builders}");
    }
}

#[tokio::test]
async fn a_tenant_without_blocks_loses_its_index_and_then_everything() {
    let bucket = Bucket::new();
    let ids = bucket.publish(1).await;
    bucket.put("stray", b"x").await;
    let keeping = bucket.process(Settings::default(), Sole);
    let deleting = bucket.process(Settings { empty_tenant_deletion: Some(Duration::from_secs(3600)), ..Settings::default() }, Sole);
    keeping.poll().await;
    assert!(bucket.has(index::PROTOBUF).await && bucket.has(index::JSON).await);
    for id in ids {
        bucket.store.delete(&bucket.tenant, id).await.expect("deleted");
    }
    assert_eq!(keeping.poll().await.deletions, 2);
    assert!(!bucket.has(index::PROTOBUF).await && !bucket.has(index::JSON).await && bucket.has("stray").await);
    assert_eq!(keeping.poll().await.deletions, 0, "once");
    assert_eq!(deleting.poll().await.deletions, 3);
    assert!(!bucket.has("stray").await);
    keeping.poll().await;
    assert_eq!(keeping.list.tenants(), []);
    assert!(!keeping.metrics().contains("tempodb_blocklist_length"), "no tenant is left");
}

#[tokio::test]
async fn a_block_that_is_not_published_yet_keeps_a_tenant() {
    let bucket = Bucket::new();
    let unpublished = BlockId::from_u128(77);
    bucket.put(&format!("{unpublished}/data.parquet"), b"spans").await;
    bucket.put(&format!("{unpublished}/bloom-0"), b"bloom").await;
    let deleting = bucket.process(Settings { empty_tenant_deletion: Some(Duration::from_secs(3600)), ..Settings::default() }, Sole);
    deleting.poll().await;
    assert!(bucket.has(&format!("{unpublished}/data.parquet")).await, "somebody may have committed to it");
    bucket.store.delete(&bucket.tenant, unpublished).await.expect("deleted");
    bucket.put("stray", b"x").await;
    deleting.poll().await;
    assert!(!bucket.has("stray").await);
}

#[tokio::test]
async fn young_objects_keep_a_tenant() {
    let bucket = Bucket::new();
    bucket.put("stray", b"x").await;
    // As if the clock of the bucket was that of the process.
    let early = ManualClock::new(Duration::from_secs(1));
    let bucket = Bucket { clock: early, ..bucket };
    let process = bucket.process(Settings { empty_tenant_deletion: Some(Duration::ZERO), ..Settings::default() }, Sole);
    process.poll().await;
    assert!(bucket.has("stray").await);
}

#[tokio::test]
async fn flagged_blocks_are_passed_over_where_that_is_wanted() {
    let bucket = Bucket::new();
    let id = bucket.publish(1).await.into_iter().next().expect("one");
    bucket.put(&format!("{id}/nocompact.flg"), b"").await;
    let skipping = bucket.process(Settings { skip_no_compact: true, ..Settings::default() }, Sole);
    let process = bucket.process(Settings::default(), Sole);
    skipping.poll().await;
    process.poll().await;
    assert_eq!((skipping.list.blocks(&bucket.tenant).len(), process.list.blocks(&bucket.tenant).len()), (0, 1));
    assert_eq!(process.list.compactable(&bucket.tenant).len(), 0);
    bucket.objects.delete(&Path::from(format!("a/{id}/nocompact.flg"))).await.expect("deleted");
    skipping.poll().await;
    process.poll().await;
    assert_eq!((skipping.list.blocks(&bucket.tenant).len(), process.list.compactable(&bucket.tenant).len()), (1, 1));
}

#[tokio::test]
async fn polls_go_on_until_told_to_end() {
    let bucket = Bucket::new();
    let settings = Settings { interval: Duration::from_millis(5), jitter: Duration::from_millis(5), ..Settings::default() };
    let process = bucket.process(settings, Sole);
    process.poller.first_poll(|why| panic!("{why}")).await.expect("polled");
    bucket.publish(3).await;
    assert_eq!(process.list.blocks(&bucket.tenant).len(), 0);
    let seen = async {
        while process.list.blocks(&bucket.tenant).len() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    process.poller.run(seen).await;
}

/// The buckets of Tempo: what we find by looking is what its index says.
#[tokio::test]
async fn looking_at_a_bucket_of_tempo_finds_what_its_index_says() {
    let Some(root) = fixtures::root() else { return };
    for version in ["vParquet2", "vParquet3", "vParquet4", "vParquet5"] {
        let objects = object_store::local::LocalFileSystem::new_with_prefix(root.join(version)).expect("folder");
        let store = Store::new(Arc::new(objects), "");
        let list = Blocklist::load(&store).await.expect("loaded");
        for tenant in list.tenants() {
            let bytes = std::fs::read(root.join(version).join(tenant.as_str()).join(index::PROTOBUF)).expect("index");
            let indexed = index::TenantIndex::from_protobuf(&bytes, &tenant).expect("index").found;
            let ids = |metas: Vec<BlockId>| metas.into_iter().collect::<HashSet<_>>();
            assert_eq!(
                ids(list.blocks(&tenant).iter().map(|meta| meta.block_id).collect()),
                ids(indexed.live.iter().map(|meta| meta.block_id).collect())
            );
            assert_eq!(
                ids(list.compacted(&tenant).iter().map(|compacted| compacted.meta.block_id).collect()),
                ids(indexed.compacted.iter().map(|(meta, _)| meta.block_id).collect())
            );
        }
    }
}
