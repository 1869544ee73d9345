//! The bucket: `<prefix>/<tenant>/<block>/<object>` over any `object_store`, and what a block's life is there.
//!
//! ```text
//!  put              data.parquet, bloom-0 …, index          nobody sees the block yet
//!  publish          meta.json                               now it exists
//!  mark_compacted   meta.compacted.json, meta.json gone     superseded, its bytes still there
//!  delete           meta.json, then the rest                first it is gone, then its bytes are
//!
//!  Settings ──open──► Store ─► Bucket ──► client of S3, GCS, Azure ──► Http ──► network
//!                              tags,      names, signatures, XML       metrics, time-outs,
//!                              bodies cut                              hedging, retries
//!                              in the middle
//! ```
//!
//! A folder without `meta.json` is no block, which is what makes a crash between any two writes harmless. Whatever can be tried again is
//! tried again below this module, once and by one policy: a caller that sees an error has an answer, or an outage.

use std::{fmt, sync::Arc};

use object_store::{
    ObjectStore,
    path::{Path, PathPart},
};

use crate::{
    cache::Cache,
    id::{BlockId, Tenant},
};

mod azure;
mod bucket;
mod cached;
pub mod counting;
mod gcs;
mod http;
mod listing;
mod open;
mod read;
mod retry;
mod s3;
mod settings;
mod tenant;
mod upload;
mod write;

#[cfg(test)]
mod tests;

pub use self::{
    listing::Listing,
    open::{Components, OpenError, open},
    settings::{Azure, Encryption, Gcs, Requests, S3, Secret, Settings, Tls},
    tenant::Version,
    upload::Upload,
};
pub(crate) use self::{
    listing::sort,
    read::{JOIN_GAP, JOIN_MAX, join},
    upload::Expected,
};

/// Requests of one operation that are under way at the same time.
pub(crate) const CONCURRENCY: usize = 16;

/// What the bucket refused, with the object's name.
#[derive(Debug)]
pub struct StoreError {
    /// What was attempted: `get`, `put`, `list`, `delete`.
    pub action: &'static str,
    /// The object.
    pub path: String,
    /// What the store said.
    pub source: object_store::Error,
    said: Said,
}

impl StoreError {
    /// Whether the bucket answered that it is not for us, or not there: trying again will not help.
    pub fn is_refusal(&self) -> bool {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        // Of a listing, `object_store` tells the status in words only.
        let said = ["401", "403", "404"].iter().any(|status| self.said.0.contains(&format!("status code: {status}")));
        said || matches!(self.source, PermissionDenied { .. } | Unauthenticated { .. } | NotFound { .. })
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.action, self.path)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.said)
    }
}

/// The text of an error and of all its causes: each of `object_store`'s errors prints those below it too, so a chain would say everything
/// four times.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

fn refused(action: &'static str, path: &Path) -> impl FnOnce(object_store::Error) -> StoreError {
    let path = path.to_string();
    move |source| StoreError { action, path, said: Said(with_causes(&source)), source }
}

/// An error and those of its causes that it does not print itself, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text.replace(['\r', '\n'], " ")
}

/// Where a cluster keeps what it commits, beside the tenants. No tenant can be called so.
pub const DATAFLOW_FOLDER: &str = "rubato-dataflow";

/// A bucket that holds blocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    cache: Option<Cache>,
    parts: upload::Said,
    list_ranges: usize,
}

impl Store {
    /// Blocks below `prefix` (empty: the root) of a bucket.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let prefix = Path::parse(prefix).unwrap_or_else(|_| Path::from(prefix));
        Self { objects, prefix, cache: None, parts: upload::Said::default(), list_ranges: 1 }
    }

    /// The same bucket; uploads go in parts of `bytes`, of which at most `in_flight` are under way at the same time.
    #[must_use]
    pub fn with_parts(self, bytes: usize, in_flight: usize) -> Self {
        Self { parts: upload::Said { bytes: Some(bytes), in_flight: Some(in_flight) }, ..self }
    }

    /// The same bucket; a long listing of blocks goes on in this many ranges at the same time. It must list in the order of names.
    #[must_use]
    pub fn with_list_ranges(self, list_ranges: usize) -> Self {
        Self { list_ranges: list_ranges.max(1), ..self }
    }

    /// The bucket, and where [`DATAFLOW_FOLDER`] lies in it.
    pub fn dataflow_folder(&self) -> (Arc<dyn ObjectStore>, Path) {
        (Arc::clone(&self.objects), child(&self.prefix, DATAFLOW_FOLDER))
    }

    fn tenant_path(&self, tenant: &Tenant) -> Path {
        child(&self.prefix, tenant.as_str())
    }

    fn block_path(&self, tenant: &Tenant, block: BlockId) -> Path {
        child(&self.tenant_path(tenant), &block.to_string())
    }

    fn object_path(&self, tenant: &Tenant, block: BlockId, name: &str) -> Path {
        child(&self.block_path(tenant, block), name)
    }
}

/// A name below a path, as it is: what `object_store` would escape is a legal name of a tenant in Tempo's buckets.
fn child(path: &Path, name: &str) -> Path {
    path.clone().join(PathPart::parse(name).unwrap_or_else(|_| PathPart::from(name)))
}
