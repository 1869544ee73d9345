//! Blocks and traces that real releases of Tempo wrote, for the tests. Everything here says nothing when the folder is not there.

use std::path::PathBuf;

use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

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
