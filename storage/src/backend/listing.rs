//! Listing tenants and blocks.
//!
//! A tenant's blocks are found by listing the names of all its objects, a thousand per request on S3, each request waiting for the one
//! before. Most tenants fit into the first. Where there is more, the rest of the space of block ids is cut into ranges that are listed at
//! the same time:
//!
//! ```text
//!  00000000-…            last of the first thousand                                     ffffffff-…
//!  ├── first request ───────┤── range 1 ──────────┤── range 2 ──────────┤── range 3 ───────┤
//! ```
//!
//! That costs at most one request more per range than listing in a row.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use object_store::{ObjectMeta, path::Path};
use uuid::Uuid;

use super::{CONCURRENCY, DATAFLOW_FOLDER, Store, StoreError, child, refused};
use crate::{
    block::Meta,
    id::{BlockId, Tenant},
};

/// Names below the prefix that are no tenants (block-format.md §2, and ours).
const NO_TENANTS: [&str; 3] = ["tempo_cluster_seed.json", "work.json", DATAFLOW_FOLDER];

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

    /// What lies below a tenant, by listing the names of all its objects: one request per thousand objects on S3, and none per block.
    ///
    /// # Errors
    /// The bucket refused the listing.
    pub async fn listing(&self, tenant: &Tenant) -> Result<Listing, StoreError> {
        let path = self.tenant_path(tenant);
        let limit = if self.list_ranges > 1 { FIRST_REQUEST } else { u64::MAX };
        let mut folders = Folders::default();
        let last = folders.take(&path, self.objects.list(Some(&path)), None, limit).await.map_err(refused("list", &path))?;
        if let Some(last) = last {
            let ranges = split(&path, last, self.list_ranges);
            let listings = ranges.into_iter().map(|(after, until)| {
                let (objects, path) = (self.objects.list_with_offset(Some(&path), &after), path.clone());
                async move {
                    let mut folders = Folders::default();
                    folders.take(&path, objects, until.as_ref(), u64::MAX).await.map(|_| folders)
                }
            });
            // Collected first: a lazy closure over borrowed paths would keep callers from spawning this future.
            let listings: Vec<_> = listings.collect();
            let mut listings = stream::iter(listings).buffer_unordered(self.list_ranges);
            while let Some(more) = listings.next().await {
                folders.add(more.map_err(refused("list", &path))?);
            }
        }
        Ok(folders.into_listing())
    }
}

/// Objects that S3 lists in one answer.
const FIRST_REQUEST: u64 = 1000;

/// Cuts the names below `path` that come after `last` into ranges: what comes before the first name, and the name that ends it.
fn split(path: &Path, last: Path, ranges: usize) -> Vec<(Path, Option<Path>)> {
    let id = last.prefix_match(path).and_then(|mut parts| Uuid::parse_str(parts.next()?.as_ref()).ok());
    // What comes after the last block is not much.
    let Some(id) = id else { return vec![(last, None)] };
    let step = (u128::MAX - id.as_u128()) / ranges.max(1) as u128;
    let border = |number: usize| child(path, &Uuid::from_u128(id.as_u128() + step * number as u128).to_string());
    let range = |number: usize| {
        let after = if number == 0 { last.clone() } else { border(number) };
        (after, (number + 1 < ranges).then(|| border(number + 1)))
    };
    (0..ranges).map(range).collect()
}

/// What is known of a block's folder.
#[derive(Debug, Default)]
struct Folder {
    live: bool,
    compacted: Option<i64>,
    no_compact: bool,
    youngest: i64,
}

/// Folders of blocks, by what was listed.
#[derive(Debug, Default)]
struct Folders {
    folders: BTreeMap<BlockId, Folder>,
    objects: u64,
}

impl Folders {
    /// Takes what is listed, up to the name `until` or `limit` objects. Returns the last name when the limit was reached.
    async fn take(
        &mut self,
        path: &Path,
        mut objects: BoxStream<'_, object_store::Result<ObjectMeta>>,
        until: Option<&Path>,
        limit: u64,
    ) -> object_store::Result<Option<Path>> {
        while let Some(object) = objects.try_next().await? {
            if until.is_some_and(|until| object.location >= *until) {
                break;
            }
            self.see(path, &object);
            if self.objects == limit {
                return Ok(Some(object.location));
            }
        }
        Ok(None)
    }

    fn see(&mut self, path: &Path, object: &ObjectMeta) {
        self.objects += 1;
        let Some(mut parts) = object.location.prefix_match(path) else { return };
        let (Some(folder), Some(name)) = (parts.next(), parts.next()) else { return };
        let Some(id) = BlockId::parse_str(folder.as_ref()).ok().filter(|id| id.to_string() == folder.as_ref()) else { return };
        let folder = self.folders.entry(id).or_default();
        let modified = object.last_modified.timestamp();
        folder.youngest = folder.youngest.max(modified);
        match name.as_ref() {
            "meta.json" => folder.live = true,
            "meta.compacted.json" => folder.compacted = Some(modified),
            "nocompact.flg" => folder.no_compact = true,
            _ => {}
        }
    }

    /// Adds what another range saw: a folder may lie across the border behind the first request.
    fn add(&mut self, other: Folders) {
        self.objects += other.objects;
        for (id, more) in other.folders {
            let folder = self.folders.entry(id).or_default();
            folder.live |= more.live;
            folder.compacted = folder.compacted.max(more.compacted);
            folder.no_compact |= more.no_compact;
            folder.youngest = folder.youngest.max(more.youngest);
        }
    }

    fn into_listing(self) -> Listing {
        let mut listing = Listing { objects: self.objects, ..Listing::default() };
        for (id, folder) in self.folders {
            if folder.live {
                listing.live.push(id);
                listing.no_compact.extend(folder.no_compact.then_some(id));
            }
            listing.compacted.extend(folder.compacted.map(|at| (id, at)));
            if !folder.live && folder.compacted.is_none() {
                listing.unfinished.push((id, folder.youngest));
            }
        }
        listing
    }
}

/// Newest first.
pub(crate) fn sort<T>(metas: &mut [T], meta: impl Fn(&T) -> &Meta) {
    metas.sort_by_key(|each| std::cmp::Reverse((meta(each).end_time, meta(each).block_id)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_behind_the_last_name_once() {
        let path = Path::from("p/a");
        for (last, ranges) in [
            ("p/a/00000000-0000-4000-8000-000000000000/meta.json", 3),
            ("p/a/fffffffe-0000-4000-8000-000000000000/bloom-0", 7),
            ("p/a/ffffffff-ffff-ffff-ffff-ffffffffffff/index", 4),
        ] {
            let last = Path::from(last);
            let split = split(&path, last.clone(), ranges);
            assert_eq!(split.len(), ranges);
            assert_eq!(split[0].0, last);
            assert_eq!(split[ranges - 1].1, None);
            for two in split.windows(2) {
                assert_eq!(two[0].1.as_ref(), Some(&two[1].0), "a range begins where the one before ends");
                assert!(two[0].0 <= two[1].0 || two[0].0 == last, "{two:?}");
            }
        }
        let outside = Path::from("p/a/index.json.gz");
        assert_eq!(split(&path, outside.clone(), 3), [(outside, None)]);
    }
}
