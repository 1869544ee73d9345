//! Tests of the store as a whole: what every backend must do, and what happens when S3 misbehaves.

mod clouds;
mod conformance;
mod life;
mod s3;
mod server;

use std::sync::Arc;

use object_store::{ObjectStore, memory::InMemory};
use prometheus::Registry;

use super::{Components, Settings, Store, open};

/// Bytes of a part in tests: the least that S3 allows.
const PART: usize = 5 << 20;

#[tokio::test]
async fn memory_conforms() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    conformance::all(|prefix| Store::new(Arc::clone(&objects), prefix).with_parts(PART, 2).with_list_ranges(3)).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::new();
    let components = Components { registry: &registry, seed: 1, env: &|_| None };
    let store = open(&Settings::Local(folder.path().join("made")), components).await.expect("open").with_parts(PART, 2);
    conformance::all(|prefix| Store { prefix: object_store::path::Path::from(prefix), ..store.clone() }).await;
}
