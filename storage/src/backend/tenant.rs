//! Objects of a tenant itself, read only when they changed, and the end of a tenant that has no blocks any more.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{GetOptions, ObjectStore as _};

use super::{CONCURRENCY, Store, StoreError, refused};
use crate::id::Tenant;

/// What is there of an object that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// Nothing.
    Missing,
    /// What the asker has already.
    Unchanged,
    /// Its bytes, and the tag of this version if the bucket has tags.
    Changed(Bytes, Option<String>),
    /// It has more bytes than the asker takes: so many.
    TooLarge(u64),
}

impl Store {
    /// An object of the tenant itself, such as `index.pb.zst`, in one request, unless it still has the tag `known`.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn version_of_tenant(&self, tenant: &Tenant, name: &str, known: Option<&str>, max_bytes: u64) -> Result<Version, StoreError> {
        let path = self.tenant_path(tenant).join(name);
        let options = GetOptions { if_none_match: known.map(str::to_owned), ..GetOptions::default() };
        match self.objects.get_opts(&path, options).await {
            Ok(object) if object.meta.size > max_bytes => Ok(Version::TooLarge(object.meta.size)),
            Ok(object) => {
                let tag = object.meta.e_tag.clone();
                object.bytes().await.map(|bytes| Version::Changed(bytes, tag)).map_err(refused("get", &path))
            }
            Err(object_store::Error::NotModified { .. }) => Ok(Version::Unchanged),
            Err(object_store::Error::NotFound { .. }) => Ok(Version::Missing),
            Err(error) => Err(refused("get", &path)(error)),
        }
    }

    /// Deletes everything below a tenant, if no block is there and nothing was written at `since` (seconds since the Unix epoch) or
    /// later. A block is there as soon as its data is: somebody may have committed to publishing it, and retention clears it away when it
    /// is too old for that. Says how many objects that were; `None` if it may not be.
    ///
    /// # Errors
    /// The bucket refused the listing or a deletion.
    pub async fn delete_tenant(&self, tenant: &Tenant, since: i64) -> Result<Option<usize>, StoreError> {
        let path = self.tenant_path(tenant);
        let objects: Vec<_> = self.objects.list(Some(&path)).try_collect().await.map_err(refused("list", &path))?;
        let is_block = |name: &str| matches!(name, "meta.json" | "meta.compacted.json" | crate::block::DATA);
        if objects.iter().any(|object| object.last_modified.timestamp() >= since || object.location.filename().is_some_and(is_block)) {
            return Ok(None);
        }
        let deletions: Vec<_> = objects.iter().map(|object| self.delete_object(&object.location)).collect();
        stream::iter(deletions).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        Ok(Some(objects.len()))
    }
}
