//! Reading objects: whole, by ranges, and descriptions of blocks.
//!
//! Ranges that lie close together are joined, since a request costs more than a few kilobytes more; joined ones run [`CONCURRENCY`] at a
//! time. What is no description is logged and counts as none: anybody may write into a bucket.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStoreExt as _;

use super::{CONCURRENCY, Store, StoreError, refused};
use crate::{
    block::Meta,
    id::{BlockId, Tenant},
};

/// Ranges with less than this between them are fetched together.
pub(crate) const JOIN_GAP: u64 = 64 << 10;

/// Joined ranges grow no larger than this, unless one alone is.
pub(crate) const JOIN_MAX: u64 = 8 << 20;

/// A meta larger than this is not one.
const MAX_META_BYTES: u64 = 1 << 20;

impl Store {
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

    /// Whether an object of a block is there.
    ///
    /// # Errors
    /// The bucket did not say.
    pub async fn exists(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<bool, StoreError> {
        Ok(self.size(tenant, block, name).await?.is_some())
    }

    /// Bytes of an object of a block, if it is there.
    ///
    /// # Errors
    /// The bucket did not say.
    pub async fn size(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.object_path(tenant, block, name);
        match self.objects.head(&path).await {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(refused("head", &path)(error)),
        }
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

#[cfg(test)]
mod tests {
    use object_store::{ObjectStore, memory::InMemory};
    use proptest::prelude::*;

    use super::*;

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
