//! The bucket: `<prefix>/<tenant>/<block>/<object>` over any `object_store`, and what a block's life is there.
//!
//! ```text
//!  put       data.parquet, bloom-0 …, index          nobody sees the block yet
//!  publish   meta.json                               now it exists
//!  delete    meta.json, then the rest                first it is gone, then its bytes are
//! ```
//!
//! A folder without `meta.json` is no block, which is what makes a crash between any two writes harmless. Reads of many ranges are
//! joined when they lie close together and run [`CONCURRENCY`] at a time; so do listings of tenants and reads of metas.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, path::Path};

use crate::{
    block::{Encoded, Meta},
    cache::{Cache, Role},
    id::{BlockId, Tenant},
};

pub mod counting;
mod tenant;
mod upload;

pub use self::{tenant::Version, upload::Upload};

/// Requests of one operation that are under way at the same time.
pub(crate) const CONCURRENCY: usize = 16;

/// Ranges with less than this between them are fetched together.
pub(crate) const JOIN_GAP: u64 = 64 << 10;

/// Joined ranges grow no larger than this, unless one alone is.
pub(crate) const JOIN_MAX: u64 = 8 << 20;

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

impl StoreError {
    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }
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
    cache: Option<Cache>,
}

/// What lies below a tenant, from one listing of all object names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Blocks with a `meta.json`.
    pub live: Vec<BlockId>,
    /// Blocks with a `meta.compacted.json`, which may be live too, and when it was written: seconds since the Unix epoch.
    pub compacted: Vec<(BlockId, i64)>,
    /// Folders of blocks with neither, and when their youngest object was written: seconds since the Unix epoch.
    pub unfinished: Vec<(BlockId, i64)>,
    /// Live blocks with a `nocompact.flg`.
    pub no_compact: Vec<BlockId>,
    /// Objects seen.
    pub objects: u64,
}

impl Store {
    /// Blocks below `prefix` (empty: the root) of a bucket.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { objects, prefix: Path::from(prefix), cache: None }
    }

    /// The same bucket, read through a cache.
    #[must_use]
    pub fn with_cache(self, cache: Cache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// A whole object of a block, from the cache if the role is cached.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn read(&self, role: Role, tenant: &Tenant, block: BlockId, name: &str) -> Result<Bytes, StoreError> {
        let Some(cache) = &self.cache else { return self.get(tenant, block, name).await };
        let key = format!("{tenant}:{block}:{name}");
        if let Some(known) = cache.get(role, std::slice::from_ref(&key)).await.into_iter().flatten().next() {
            return Ok(known);
        }
        let bytes = self.get(tenant, block, name).await?;
        cache.put(role, key, bytes.clone());
        Ok(bytes)
    }

    /// Ranges of an object of a block as [`Store::get_ranges`] has them, each from the cache if its role is cached.
    ///
    /// # Errors
    /// The bucket refused one.
    pub async fn read_ranges(
        &self,
        tenant: &Tenant,
        block: BlockId,
        name: &str,
        ranges: &[(Role, Range<u64>)],
    ) -> Result<Vec<Bytes>, StoreError> {
        let plain: Vec<_> = ranges.iter().map(|(_, range)| range.clone()).collect();
        self.get_ranges(tenant, block, name, &plain).await
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

    /// The description of a live block, if it has a readable one that belongs to it.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn meta(&self, tenant: &Tenant, block: BlockId) -> Result<Option<Meta>, StoreError> {
        self.read_meta(tenant, block, "meta.json").await
    }

    /// The description of a compacted block, as [`Store::meta`].
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn compacted_meta(&self, tenant: &Tenant, block: BlockId) -> Result<Option<Meta>, StoreError> {
        self.read_meta(tenant, block, "meta.compacted.json").await
    }

    async fn read_meta(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<Option<Meta>, StoreError> {
        let path = self.object_path(tenant, block, name);
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

    /// What lies below a tenant, by listing the names of all its objects: one request per thousand objects on S3, and none per block.
    ///
    /// # Errors
    /// The bucket refused the listing.
    pub async fn listing(&self, tenant: &Tenant) -> Result<Listing, StoreError> {
        #[derive(Default)]
        struct Folder {
            live: bool,
            compacted: Option<i64>,
            no_compact: bool,
            youngest: i64,
        }
        let path = self.tenant_path(tenant);
        let mut objects = self.objects.list(Some(&path));
        let mut folders: BTreeMap<BlockId, Folder> = BTreeMap::new();
        let mut listing = Listing::default();
        while let Some(object) = objects.try_next().await.map_err(refused("list", &path))? {
            listing.objects += 1;
            let Some(mut parts) = object.location.prefix_match(&path) else { continue };
            let (Some(folder), Some(name)) = (parts.next(), parts.next()) else { continue };
            let Some(id) = BlockId::parse_str(folder.as_ref()).ok().filter(|id| id.to_string() == folder.as_ref()) else { continue };
            let folder = folders.entry(id).or_default();
            let modified = object.last_modified.timestamp();
            folder.youngest = folder.youngest.max(modified);
            match name.as_ref() {
                "meta.json" => folder.live = true,
                "meta.compacted.json" => folder.compacted = Some(modified),
                "nocompact.flg" => folder.no_compact = true,
                _ => {}
            }
        }
        for (id, folder) in folders {
            if folder.live {
                listing.live.push(id);
                listing.no_compact.extend(folder.no_compact.then_some(id));
            }
            listing.compacted.extend(folder.compacted.map(|at| (id, at)));
            if !folder.live && folder.compacted.is_none() {
                listing.unfinished.push((id, folder.youngest));
            }
        }
        Ok(listing)
    }

    /// Whether an object of a block is there.
    ///
    /// # Errors
    /// The bucket did not say.
    pub async fn exists(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<bool, StoreError> {
        let path = self.object_path(tenant, block, name);
        match self.objects.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(refused("head", &path)(error)),
        }
    }

    /// Turns a live block into a compacted one: its `meta.json` becomes `meta.compacted.json`. Repeating it changes nothing, and a block
    /// that is gone stays gone.
    ///
    /// # Errors
    /// The bucket refused it; the block is then live or both, which counts as live.
    pub async fn mark_compacted(&self, tenant: &Tenant, block: BlockId) -> Result<(), StoreError> {
        let (live, compacted) = (self.object_path(tenant, block, "meta.json"), self.object_path(tenant, block, "meta.compacted.json"));
        match self.objects.copy(&live, &compacted).await {
            Ok(()) => self.delete_object(&live).await,
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(refused("copy", &live)(error)),
        }
    }

    /// Begins an object of a block that is written piece by piece and exists once it is finished.
    pub fn upload(&self, tenant: &Tenant, block: BlockId, name: &str) -> Upload {
        Upload::new(Arc::clone(&self.objects), self.object_path(tenant, block, name))
    }

    /// Writes a small object of a block unless it is there, and says whether it did.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn create(&self, tenant: &Tenant, block: BlockId, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        let path = self.object_path(tenant, block, name);
        match self.objects.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(refused("create", &path)(error)),
        }
    }

    /// Writes an object of a block.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn put_named(&self, tenant: &Tenant, block: BlockId, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.object_path(tenant, block, name);
        self.objects.put(&path, bytes.into()).await.map(drop).map_err(refused("put", &path))
    }

    /// Deletes an object of a block. Deleting what is gone is no error.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn delete_named(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<(), StoreError> {
        self.delete_object(&self.object_path(tenant, block, name)).await
    }

    /// An object of the tenant itself, such as `index.pb.zst`, if it is there, and when it was written: seconds since the Unix epoch.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn get_of_tenant(&self, tenant: &Tenant, name: &str) -> Result<Option<(Bytes, i64)>, StoreError> {
        let path = self.tenant_path(tenant).join(name);
        match self.objects.get(&path).await {
            Ok(object) => {
                let modified = object.meta.last_modified.timestamp();
                object.bytes().await.map(|bytes| Some((bytes, modified))).map_err(refused("get", &path))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(refused("get", &path)(error)),
        }
    }

    /// Writes an object of the tenant itself.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn put_of_tenant(&self, tenant: &Tenant, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.tenant_path(tenant).join(name);
        self.objects.put(&path, bytes.into()).await.map(drop).map_err(refused("put", &path))
    }

    /// Deletes an object of the tenant itself. Deleting what is gone is no error.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn delete_of_tenant(&self, tenant: &Tenant, name: &str) -> Result<(), StoreError> {
        self.delete_object(&self.tenant_path(tenant).join(name)).await
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
pub(crate) fn join(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
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
pub(crate) fn sort<T>(metas: &mut [T], meta: impl Fn(&T) -> &Meta) {
    metas.sort_by_key(|each| std::cmp::Reverse((meta(each).end_time, meta(each).block_id)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocklist::Blocklist;
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
            compacted_from: Vec::new(),
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
