//! Writing objects, and the life of a block: put, publish, mark as compacted, delete.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, path::Path};

use super::{
    CONCURRENCY, Store, StoreError, Upload, refused,
    upload::{Expected, Parts},
};
use crate::{
    block::{Encoded, Meta},
    id::{BlockId, Tenant},
};

impl Store {
    /// Writes everything of a block but its `meta.json`: the block does not exist yet. Repeating it changes nothing.
    ///
    /// # Errors
    /// The bucket refused an object.
    pub async fn put(&self, block: &Encoded) -> Result<(), StoreError> {
        self.put_object(&block.meta, crate::block::DATA, block.data.clone()).await?;
        self.put_filters_and_index(&block.meta, &block.blooms, &block.index).await
    }

    /// Writes the small objects of a block that stand between its data and its `meta.json`.
    pub(crate) async fn put_filters_and_index(&self, meta: &Meta, blooms: &[Bytes], index: &Bytes) -> Result<(), StoreError> {
        // Collected first: a lazy closure over borrowed shards would keep callers from spawning this future.
        let mut shards = Vec::with_capacity(blooms.len());
        for (number, bytes) in blooms.iter().enumerate() {
            shards.push(self.put_bloom(meta, number, bytes.clone()));
        }
        stream::iter(shards).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        self.put_object(meta, "index", index.clone()).await?;
        self.wrote(meta, blooms, index);
        Ok(())
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

    /// Turns a live block into a compacted one: its `meta.json` becomes `meta.compacted.json`. Repeating it after a failure finishes it,
    /// and a block that is gone stays gone.
    ///
    /// The time of compaction is the time at which `meta.compacted.json` was written (block-format.md §2.1), so it is written anew and
    /// not copied: a copy on a local disk would keep the age of the block.
    ///
    /// # Errors
    /// The bucket refused it; the block is then live or both, which counts as live.
    pub async fn mark_compacted(&self, tenant: &Tenant, block: BlockId) -> Result<(), StoreError> {
        let (live, compacted) = (self.object_path(tenant, block, "meta.json"), self.object_path(tenant, block, "meta.compacted.json"));
        let meta = match self.objects.get(&live).await {
            Ok(object) => object.bytes().await.map_err(refused("get", &live))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(refused("get", &live)(error)),
        };
        self.objects.put(&compacted, meta.into()).await.map_err(refused("put", &compacted))?;
        self.delete_object(&live).await
    }

    /// Begins an object of a block that is written piece by piece and exists once it is finished.
    pub fn upload(&self, tenant: &Tenant, block: BlockId, name: &str) -> Upload {
        self.upload_of(tenant, block, name, Expected::UNKNOWN)
    }

    /// The same, of which something is known.
    pub(crate) fn upload_of(&self, tenant: &Tenant, block: BlockId, name: &str, expected: Expected) -> Upload {
        Upload::new(Arc::clone(&self.objects), self.object_path(tenant, block, name), Parts::new(self.parts, expected))
    }

    /// Writes a small object of a block unless it is there, and says whether it did. Of several that try, one does.
    ///
    /// The bytes should name their writer: when the bucket's answer is lost, what is there is compared with them.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn create(&self, tenant: &Tenant, block: BlockId, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        let path = self.object_path(tenant, block, name);
        match self.objects.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => match self.get(tenant, block, name).await {
                Ok(there) => Ok(there == bytes),
                Err(_) => Err(refused("create", &path)(error)),
            },
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

    /// Deletes all objects of a block: `meta.json` first, then its data, and `meta.compacted.json` last, so that nobody who finds the data
    /// takes the block for one that was not published yet. Deleting what is gone is no error.
    ///
    /// # Errors
    /// The bucket refused a deletion.
    pub async fn delete(&self, tenant: &Tenant, block: BlockId) -> Result<(), StoreError> {
        self.delete_object(&self.object_path(tenant, block, "meta.json")).await?;
        let folder = self.block_path(tenant, block);
        let objects: Vec<_> = self.objects.list(Some(&folder)).try_collect().await.map_err(refused("list", &folder))?;
        self.delete_object(&folder.clone().join(crate::block::DATA)).await?;
        let compacted = folder.join("meta.compacted.json");
        let rest = objects.into_iter().map(|object| object.location).filter(|path| *path != compacted);
        let deletions = rest.map(|path| async move { self.delete_object(&path).await });
        stream::iter(deletions).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        self.delete_object(&compacted).await
    }

    pub(super) async fn delete_object(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(refused("delete", path)(error)),
        }
    }
}
