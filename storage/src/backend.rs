//! The bucket: `<prefix>/<tenant>/<block>/<object>` over any `object_store`, and the list of the blocks in it.
//!
//! ```text
//!  put       data.parquet, bloom-0 …, index          nobody sees the block yet
//!  publish   meta.json                               now it exists
//!  delete    meta.json, then the rest                first it is gone, then its bytes are
//! ```
//!
//! A folder without `meta.json` is no block, which is what makes a crash between any two writes harmless. Reads of many ranges are
//! joined when they lie close together and run [`CONCURRENCY`] at a time; so do listings of tenants and reads of metas.

use std::{collections::HashMap, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use parking_lot::RwLock;

use crate::{
    block::{Encoded, Meta},
    id::{BlockId, Tenant},
};

/// Requests of one operation that are under way at the same time.
const CONCURRENCY: usize = 16;

/// Ranges with less than this between them are fetched together.
const JOIN_GAP: u64 = 64 << 10;

/// Joined ranges grow no larger than this, unless one alone is.
const JOIN_MAX: u64 = 8 << 20;

/// A meta larger than this is not one.
const MAX_META_BYTES: u64 = 1 << 20;

/// Names below the prefix that are no tenants (block-format.md §2).
const NO_TENANTS: [&str; 2] = ["tempo_cluster_seed.json", "work.json"];

/// What the bucket refused, with the object's name.
#[derive(Debug, thiserror::Error)]
#[error("{action} \"{path}\"")]
pub struct StoreError {
    /// What was attempted: `get`, `put`, `list`, `delete`.
    pub action: &'static str,
    /// The object.
    pub path: String,
    /// What the store said.
    #[source]
    pub source: object_store::Error,
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(object_store::Error) -> StoreError {
    let path = path.to_string();
    move |source| StoreError { action, path, source }
}

/// A bucket that holds blocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Store {
    /// Blocks below `prefix` (empty: the root) of a bucket.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { objects, prefix: Path::from(prefix) }
    }

    fn tenant_path(&self, tenant: &Tenant) -> Path {
        self.prefix.clone().join(tenant.as_str())
    }

    fn block_path(&self, tenant: &Tenant, block: BlockId) -> Path {
        self.tenant_path(tenant).join(block.to_string())
    }

    fn object_path(&self, tenant: &Tenant, block: BlockId, name: &str) -> Path {
        self.block_path(tenant, block).join(name)
    }

    /// Writes everything of a block but its `meta.json`: the block does not exist yet. Repeating it changes nothing.
    ///
    /// # Errors
    /// The bucket refused an object.
    pub async fn put(&self, block: &Encoded) -> Result<(), StoreError> {
        self.put_object(&block.meta, crate::block::DATA, block.data.clone()).await?;
        // Collected first: a lazy closure over borrowed shards would keep callers from spawning this future.
        let mut blooms = Vec::with_capacity(block.blooms.len());
        for (index, bytes) in block.blooms.iter().enumerate() {
            blooms.push(self.put_bloom(&block.meta, index, bytes.clone()));
        }
        stream::iter(blooms).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        self.put_object(&block.meta, "index", block.index.clone()).await
    }

    async fn put_bloom(&self, meta: &Meta, index: usize, bytes: Bytes) -> Result<(), StoreError> {
        self.put_object(meta, &format!("bloom-{index}"), bytes).await
    }

    /// Writes `meta.json`: now the block exists. Repeating it changes nothing.
    ///
    /// # Errors
    /// The bucket refused the object.
    pub async fn publish(&self, meta: &Meta) -> Result<(), StoreError> {
        let path = self.object_path(&meta.tenant_id, meta.block_id, "meta.json");
        let json = meta.to_json().map_err(|error| object_store::Error::Generic { store: "block", source: Box::new(error) });
        self.put_object(meta, "meta.json", json.map_err(refused("put", &path))?.into()).await
    }

    async fn put_object(&self, meta: &Meta, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.object_path(&meta.tenant_id, meta.block_id, name);
        self.objects.put(&path, bytes.into()).await.map(drop).map_err(refused("put", &path))
    }

    /// Names of the tenants that have a folder, sorted. Names that no tenant can have are passed over.
    ///
    /// # Errors
    /// The bucket refused the listing.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let listing = self.objects.list_with_delimiter(prefix).await.map_err(refused("list", &self.prefix))?;
        let mut tenants = Vec::new();
        for folder in &listing.common_prefixes {
            let Some(name) = folder.filename().filter(|name| !NO_TENANTS.contains(name)) else { continue };
            match Tenant::new(name) {
                Ok(tenant) => tenants.push(tenant),
                Err(error) => tracing::warn!(folder = name, %error, "folder in the bucket is no tenant"),
            }
        }
        tenants.sort();
        Ok(tenants)
    }

    /// Descriptions of the tenant's live blocks, of whatever format, newest first. Folders without `meta.json` are no blocks; an
    /// unreadable one is logged and skipped.
    ///
    /// # Errors
    /// The bucket refused the listing or a `meta.json` that is there.
    pub async fn blocks(&self, tenant: &Tenant) -> Result<Vec<Meta>, StoreError> {
        let path = self.tenant_path(tenant);
        let listing = self.objects.list_with_delimiter(Some(&path)).await.map_err(refused("list", &path))?;
        let ids = listing.common_prefixes.iter().filter_map(|folder| {
            let name = folder.filename()?;
            let id = BlockId::parse_str(name).ok().filter(|id| id.to_string() == name);
            if id.is_none() {
                tracing::debug!(%tenant, folder = name, "folder of the tenant is no block");
            }
            id
        });
        let ids: Vec<_> = ids.collect();
        let mut found = stream::iter(ids.into_iter().map(|id| self.meta(tenant, id))).buffer_unordered(CONCURRENCY);
        let mut metas = Vec::new();
        while let Some(meta) = found.next().await {
            metas.extend(meta?);
        }
        sort(&mut metas, |meta| meta);
        Ok(metas)
    }

    /// The description of a block, if it has a readable one that belongs to it.
    async fn meta(&self, tenant: &Tenant, block: BlockId) -> Result<Option<Meta>, StoreError> {
        let path = self.object_path(tenant, block, "meta.json");
        let object = match self.objects.get(&path).await {
            Ok(object) => object,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(refused("get", &path)(error)),
        };
        if object.meta.size > MAX_META_BYTES {
            tracing::warn!(%tenant, %block, bytes = object.meta.size, "meta.json is too large to be one, block skipped");
            return Ok(None);
        }
        let bytes = match object.bytes().await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(refused("get", &path)(error)),
        };
        match Meta::from_json(&bytes) {
            Ok(meta) if meta.block_id == block && meta.tenant_id == *tenant => Ok(Some(meta)),
            Ok(meta) => {
                tracing::warn!(%tenant, %block, says_tenant = %meta.tenant_id, says_block = %meta.block_id, "meta.json belongs to another block, block skipped");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%tenant, %block, %error, "meta.json is unreadable, block skipped");
                Ok(None)
            }
        }
    }

    /// A whole object of a block.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn get(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<Bytes, StoreError> {
        let path = self.object_path(tenant, block, name);
        let object = self.objects.get(&path).await.map_err(refused("get", &path))?;
        object.bytes().await.map_err(refused("get", &path))
    }

    /// Ranges of an object of a block, neighbouring ones fetched together. The answers are in the order of `ranges`; one may be shorter
    /// than asked for when the object is.
    ///
    /// # Errors
    /// The bucket refused one.
    pub async fn get_ranges(&self, tenant: &Tenant, block: BlockId, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let path = self.object_path(tenant, block, name);
        let joined = join(ranges);
        let fetches = joined.iter().map(|range| {
            let objects = Arc::clone(&self.objects);
            let (path, range) = (path.clone(), range.clone());
            async move { objects.get_range(&path, range).await.map_err(refused("get", &path)) }
        });
        let fetches: Vec<_> = fetches.collect();
        let fetched: Vec<Bytes> = stream::iter(fetches).buffered(CONCURRENCY).try_collect().await?;
        let slice = |range: &Range<u64>| {
            if range.start >= range.end {
                return Bytes::new();
            }
            let at = joined.partition_point(|joined| joined.start <= range.start).saturating_sub(1);
            let (Some(joined), Some(bytes)) = (joined.get(at), fetched.get(at)) else { return Bytes::new() };
            let cut = |position: u64| usize::try_from(position - joined.start).unwrap_or(usize::MAX).min(bytes.len());
            bytes.slice(cut(range.start)..cut(range.end))
        };
        Ok(ranges.iter().map(slice).collect())
    }

    /// Deletes all objects of a block, `meta.json` first. Deleting what is gone is no error.
    ///
    /// # Errors
    /// The bucket refused a deletion.
    pub async fn delete(&self, tenant: &Tenant, block: BlockId) -> Result<(), StoreError> {
        self.delete_object(&self.object_path(tenant, block, "meta.json")).await?;
        let folder = self.block_path(tenant, block);
        let objects: Vec<_> = self.objects.list(Some(&folder)).try_collect().await.map_err(refused("list", &folder))?;
        let deletions = objects.into_iter().map(|object| async move { self.delete_object(&object.location).await });
        stream::iter(deletions).buffer_unordered(CONCURRENCY).try_collect::<()>().await
    }

    async fn delete_object(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(refused("delete", path)(error)),
        }
    }
}

/// Sorts ranges and joins those that overlap or lie close together. Empty ones vanish.
fn join(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_unstable_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start < last.end || (range.start - last.end <= JOIN_GAP && range.end - last.start <= JOIN_MAX) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Newest first.
fn sort<T>(metas: &mut [T], meta: impl Fn(&T) -> &Meta) {
    metas.sort_by_key(|each| std::cmp::Reverse((meta(each).end_time, meta(each).block_id)));
}

/// Blocks of one tenant, newest first; replaced as a whole when one is added.
type Blocks = Arc<Vec<Arc<Meta>>>;

/// The live blocks of every tenant, as queries see them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Blocklist {
    tenants: Arc<RwLock<HashMap<Tenant, Blocks>>>,
}

impl Blocklist {
    /// Lists the bucket.
    ///
    /// # Errors
    /// The bucket refused a listing.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        let tenants = store.tenants().await?;
        let listings = tenants.into_iter().map(|tenant| async move { store.blocks(&tenant).await.map(|blocks| (tenant, blocks)) });
        let mut listings = stream::iter(listings.collect::<Vec<_>>()).buffer_unordered(CONCURRENCY);
        let mut found = HashMap::new();
        while let Some(listing) = listings.next().await {
            let (tenant, blocks) = listing?;
            if !blocks.is_empty() {
                found.insert(tenant, Arc::new(blocks.into_iter().map(Arc::new).collect()));
            }
        }
        Ok(Self { tenants: Arc::new(RwLock::new(found)) })
    }

    /// Adds a block; does nothing if it is there already.
    pub fn add(&self, meta: Meta) {
        let mut tenants = self.tenants.write();
        let blocks = Arc::make_mut(tenants.entry(meta.tenant_id.clone()).or_default());
        if blocks.iter().all(|known| known.block_id != meta.block_id) {
            blocks.push(Arc::new(meta));
            sort(blocks, |meta| meta);
        }
    }

    /// The tenant's blocks, newest first.
    pub fn blocks(&self, tenant: &Tenant) -> Arc<Vec<Arc<Meta>>> {
        self.tenants.read().get(tenant).cloned().unwrap_or_default()
    }

    /// The tenants that have blocks.
    pub fn tenants(&self) -> Vec<Tenant> {
        self.tenants.read().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use proptest::prelude::*;

    fn meta(tenant: &Tenant, end_time: i64) -> Meta {
        Meta {
            format: "vParquet9".to_owned(),
            block_id: BlockId::new_v4(),
            tenant_id: tenant.clone(),
            start_time: 0,
            end_time,
            total_objects: 1,
            size: 4,
            compaction_level: 0,
            index_page_size: 0,
            total_records: 1,
            bloom_shards: 1,
            footer_size: 1,
            dedicated_columns: Vec::new(),
            replication_factor: 1,
        }
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

    proptest! {
        #[test]
        fn ranges_come_back_in_order(ranges in prop::collection::vec((0u64..300_000, 0u64..2_000), 0..40)) {
            let object: Vec<u8> = (0..302_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let joined = join(&ranges);
            prop_assert!(joined.windows(2).all(|two| two[0].end < two[1].start));
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let fetched = runtime.block_on(async {
                let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
                let store = Store::new(Arc::clone(&objects), "");
                let tenant = Tenant::single();
                let block = BlockId::nil();
                objects.put(&store.object_path(&tenant, block, "o"), object.clone().into()).await.expect("put");
                store.get_ranges(&tenant, block, "o", &ranges).await.expect("ranges")
            });
            for (range, bytes) in ranges.iter().zip(&fetched) {
                prop_assert_eq!(&bytes[..], &object[range.start as usize..range.end as usize]);
            }
        }
    }
}
