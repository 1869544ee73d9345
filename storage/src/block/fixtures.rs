//! Blocks and traces that real releases of Tempo wrote, for the tests, which say nothing when the folder is not there; and the description
//! of a block for tests that need no more of one.

use std::{path::PathBuf, sync::Arc};

use object_store::local::LocalFileSystem;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

use super::{Format, Meta};
use crate::{
    backend::Store,
    id::{BlockId, Tenant},
};

/// The description of some block of one trace.
pub(crate) fn meta(tenant: &Tenant, end_time: i64) -> Meta {
    Meta {
        format: Format::V4.name().to_owned(),
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
        created_at: None,
    }
}

/// The folder of the fixtures.
pub(crate) fn root() -> Option<PathBuf> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/blocks"));
    if !root.exists() {
        eprintln!("skipped: no fixtures at {}", root.display());
        return None;
    }
    Some(root)
}

/// Folders of all blocks of a version.
pub(crate) fn blocks(version: &str) -> Option<Vec<PathBuf>> {
    let root = root()?.join(version);
    let mut found = Vec::new();
    for tenant in std::fs::read_dir(root).expect("version").map(|entry| entry.expect("tenant").path()).filter(|path| path.is_dir()) {
        found.extend(std::fs::read_dir(tenant).expect("tenant").map(|entry| entry.expect("block").path()).filter(|path| path.is_dir()));
    }
    Some(found)
}

/// A block of a version as a bucket and its meta: `main`, `multi`, `compacted`, its inputs `first` and `second`, and `completed` from a WAL.
pub(crate) fn block(format: Format, name: &str) -> Option<(Store, Meta)> {
    let number = &format.name()["vParquet".len()..];
    let (folder, tenant, id) = match name {
        "main" => (format.name().to_owned(), "fixture-tenant", format!("{number}a000000-0000-4000-8000-0000000000aa")),
        "multi" => (format.name().to_owned(), "fixture-tenant", format!("{number}b000000-0000-4000-8000-0000000000bb")),
        "first" => (format.name().to_owned(), "compaction-tenant", format!("{number}c000000-0000-4000-8000-0000000000c1")),
        "second" => (format.name().to_owned(), "compaction-tenant", format!("{number}c000000-0000-4000-8000-0000000000c2")),
        "completed" => (format!("wal/{format}/blocks"), "fixture-tenant", format!("{number}d000000-0000-4000-8000-0000000000dd")),
        _ => {
            let live = blocks(format.name())?.into_iter().find(|block| {
                block.join("meta.json").exists() && block.parent().is_some_and(|tenant| tenant.ends_with("compaction-tenant"))
            });
            let live = live.expect("the tenant has one live block");
            (format.name().to_owned(), "compaction-tenant", live.file_name().expect("a name").to_string_lossy().into_owned())
        }
    };
    bucket(&folder, tenant, &id)
}

/// A block in a folder, as a bucket and its meta, whether it is marked as compacted or not.
pub(crate) fn bucket(folder: &str, tenant: &str, id: &str) -> Option<(Store, Meta)> {
    let root = root()?.join(folder);
    let block = root.join(tenant).join(id);
    let meta = std::fs::read(block.join("meta.json")).or_else(|_| std::fs::read(block.join("meta.compacted.json"))).expect("meta");
    let store = Store::new(Arc::new(LocalFileSystem::new_with_prefix(&root).expect("folder")), "");
    Some((store, Meta::from_json(&meta).expect("meta")))
}

/// The traces of a `.delim.pb` file, in order of their ids.
pub(crate) fn traces(name: &str) -> Option<Vec<TracesData>> {
    let bytes = std::fs::read(root()?.join(name)).expect("traces");
    let mut rest = bytes.as_slice();
    let mut traces = Vec::new();
    while !rest.is_empty() {
        traces.push(TracesData::decode_length_delimited(&mut rest).expect("trace"));
    }
    Some(traces)
}
