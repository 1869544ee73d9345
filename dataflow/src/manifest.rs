//! The manifest: what of the log is in blocks, as of a tick.
//!
//! One JSON object per commit, `manifest-<sequence>.json`, written with put-if-absent: of two writers that both believe to be the one,
//! the second to write a sequence number fails and must read again. The newest readable one counts; [`KEPT`] older ones stay.
//!
//! ```text
//!  {"version":2,"sequence":7,"tick":6912345678,"positions":{"<wal id>":{"held":81920,"counted":90112}},
//!   "blocks":[{"meta":{…meta.json…},"records":{"<wal id>":{"first":4096,"last":77824}}}],
//!   "generator":{"series":"generator-…","identities":[{"object":"generator-…","tick":6912345678}]}}
//! ```
//!
//! * Every span in a record before `held` is in a published block.
//! * Every span in a record before `counted` has been seen by the collections that count spans; a replay stores it if need be, and does
//!   not count it again.
//! * Every span in a record from `held` on is in one of `blocks`, or will be read again.
//! * The objects that `generator` names hold the collections as of `tick`: what every record before `counted` came to. They lie beside the
//!   manifest and were written before it. Version 1 had none.
//! * A block is listed until `held` has passed its last record *and* it is known to be published, so recovery publishes each listed
//!   block again (repeating it changes nothing) and reads its span identities to recognise what it must not store twice.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path};
use serde::{Deserialize, Serialize};
use storage::{block::Meta, wal::Position};
use uuid::Uuid;

/// How many manifests before the newest are kept.
pub const KEPT: usize = 2;

const VERSION: u32 = 2;

/// Beginning of the names of objects that manifests refer to.
const OBJECTS: &str = "generator-";

/// First and last record (by where they begin) that something came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first.
    pub first: Position,
    /// The last.
    pub last: Position,
}

impl Range {
    /// The range of some positions, if there are any.
    pub fn of(positions: impl IntoIterator<Item = Position>) -> Option<Self> {
        positions.into_iter().fold(None, |range: Option<Self>, position| {
            Some(range.map_or(Self { first: position, last: position }, |range| Self {
                first: range.first.min(position),
                last: range.last.max(position),
            }))
        })
    }
}

/// How far a WAL is stored and counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Where to read again from.
    pub held: Position,
    /// Records before this were counted; never before `held`.
    pub counted: Position,
}

/// A block in a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommittedBlock {
    /// Its `meta.json`.
    pub meta: Meta,
    /// Where its spans' records lie, by WAL.
    pub records: BTreeMap<Uuid, Range>,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Number of this manifest, one more than its predecessor's.
    pub sequence: u64,
    /// The checkpoint tick that it was made at.
    pub tick: u64,
    /// By WAL: how far it is stored and counted.
    pub positions: BTreeMap<Uuid, Positions>,
    /// Blocks that recovery must know of.
    pub blocks: Vec<CommittedBlock>,
    /// What the metrics-generator had come to; `None` where it never counted anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorObjects>,
}

/// The objects in which a checkpoint of the metrics-generator is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorObjects {
    /// Series and waiting halves.
    pub series: String,
    /// Identities of counted spans, oldest first.
    pub identities: Vec<IdentitiesObject>,
}

/// An object with identities of counted spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitiesObject {
    /// Its name.
    pub object: String,
    /// They were counted up to this tick.
    pub tick: u64,
}

impl Manifest {
    /// The manifest after this one: `blocks` are new, `positions` replace what they name.
    pub fn next(&self, tick: u64, positions: &BTreeMap<Uuid, Positions>, blocks: Vec<CommittedBlock>) -> Self {
        let mut all = self.positions.clone();
        for (wal, new) in positions {
            let entry = all.entry(*wal).or_default();
            *entry = Positions { held: entry.held.max(new.held), counted: entry.counted.max(new.counted) };
        }
        let still_needed =
            |block: &&CommittedBlock| block.records.iter().any(|(wal, range)| all.get(wal).is_none_or(|wal| range.last >= wal.held));
        let old = self.blocks.iter().filter(still_needed).cloned();
        let generator = self.generator.clone();
        Self { version: VERSION, sequence: self.sequence + 1, tick, blocks: old.chain(blocks).collect(), positions: all, generator }
    }
}

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Somebody else wrote this sequence number first.
    #[error("manifest {sequence} was written by somebody else")]
    Conflict {
        /// The number.
        sequence: u64,
    },
    /// A manifest of a later version of this program.
    #[error("manifest \"{path}\" has version {version}, this program knows {VERSION}")]
    Version {
        /// Its name.
        path: String,
        /// Its version.
        version: u32,
    },
    /// None of the manifests there are can be read.
    #[error("none of the {count} manifests below \"{prefix}\" can be read")]
    Unreadable {
        /// How many there are.
        count: usize,
        /// Where.
        prefix: String,
    },
    /// What the metrics-generator has come to cannot be encoded.
    #[error("checkpoint of the metrics-generator cannot be encoded")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store refused.
    #[error("{action} manifest below \"{prefix}\"")]
    Store {
        /// What was attempted.
        action: &'static str,
        /// Where.
        prefix: String,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
}

/// Where manifests are kept.
#[derive(Clone, Debug)]
pub struct ManifestStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl ManifestStore {
    /// Manifests directly below `prefix`.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { objects, prefix: Path::from(prefix) }
    }

    fn path(&self, sequence: u64) -> Path {
        self.prefix.clone().join(format!("manifest-{sequence:020}.json"))
    }

    fn failed(&self, action: &'static str, source: object_store::Error) -> ManifestError {
        ManifestError::Store { action, prefix: self.prefix.to_string(), source }
    }

    async fn list(&self) -> Result<Vec<Path>, ManifestError> {
        let objects: Vec<_> = self.objects.list(Some(&self.prefix)).try_collect().await.map_err(|source| self.failed("list", source))?;
        let mut paths: Vec<Path> = objects
            .into_iter()
            .map(|object| object.location)
            .filter(|path| path.filename().is_some_and(|name| name.starts_with("manifest-") && name.ends_with(".json")))
            .collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// The newest readable manifest; an empty one where there is none.
    ///
    /// # Errors
    /// The store refused, or there are manifests and none can be read.
    pub async fn load(&self) -> Result<Manifest, ManifestError> {
        let paths = self.list().await?;
        // The successor needs a number that is free, even where the newest is unreadable.
        let newest = paths.last().and_then(number).unwrap_or_default();
        for path in paths.iter().rev() {
            let bytes = self.objects.get(path).await.map_err(|source| self.failed("get", source))?;
            let bytes = bytes.bytes().await.map_err(|source| self.failed("get", source))?;
            match serde_json::from_slice::<Manifest>(&bytes) {
                Ok(manifest) if (1..=VERSION).contains(&manifest.version) => {
                    return Ok(Manifest { sequence: manifest.sequence.max(newest), ..manifest });
                }
                Ok(manifest) => return Err(ManifestError::Version { path: path.to_string(), version: manifest.version }),
                Err(error) => tracing::error!(%path, %error, "manifest is unreadable, falling back to the one before"),
            }
        }
        if paths.is_empty() {
            Ok(Manifest { version: VERSION, ..Manifest::default() })
        } else {
            Err(ManifestError::Unreadable { count: paths.len(), prefix: self.prefix.to_string() })
        }
    }

    /// Writes a manifest and forgets old ones.
    ///
    /// # Errors
    /// The store refused, or the sequence number is taken.
    pub async fn store(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let body = serde_json::to_vec(manifest)
            .map_err(|error| self.failed("encode", object_store::Error::Generic { store: "manifest", source: Box::new(error) }))?;
        let path = self.path(manifest.sequence);
        match self.objects.put_opts(&path, PutPayload::from(body), PutMode::Create.into()).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => return Err(ManifestError::Conflict { sequence: manifest.sequence }),
            Err(source) => return Err(self.failed("put", source)),
        }
        for old in self.list().await?.into_iter().rev().filter(|old| *old < path).skip(KEPT) {
            if let Err(error) = self.objects.delete(&old).await {
                tracing::warn!(path = %old, %error, "old manifest could not be deleted");
            }
        }
        self.forget_objects(manifest).await
    }

    /// Deletes objects that neither this manifest nor the [`KEPT`] before it need. Of identities that have become useless since, the older
    /// manifests may name more.
    async fn forget_objects(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let Some(generator) = &manifest.generator else { return Ok(()) };
        let is_named = |name: &str| name == generator.series || generator.identities.iter().any(|identities| identities.object == name);
        let objects: Vec<_> = self.objects.list(Some(&self.prefix)).try_collect().await.map_err(|source| self.failed("list", source))?;
        for path in objects.into_iter().map(|object| object.location) {
            let Some(name) = path.filename().filter(|name| name.starts_with(OBJECTS) && !is_named(name)) else { continue };
            let sequence = name.strip_prefix(OBJECTS).and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
            let is_old = sequence.is_some_and(|sequence| sequence.saturating_add(KEPT as u64) < manifest.sequence);
            if is_old && let Err(error) = self.objects.delete(&path).await {
                tracing::warn!(%path, %error, "old checkpoint could not be deleted");
            }
        }
        Ok(())
    }

    /// Writes an object that the manifest with this sequence number is going to name, and returns its name.
    ///
    /// # Errors
    /// The store refused.
    pub async fn put_object(&self, sequence: u64, extension: &str, body: Bytes) -> Result<String, ManifestError> {
        let name = format!("{OBJECTS}{sequence:020}-{}.{extension}", Uuid::new_v4());
        let path = self.prefix.clone().join(name.as_str());
        self.objects.put(&path, PutPayload::from_bytes(body)).await.map_err(|source| self.failed("put object of", source))?;
        Ok(name)
    }

    /// Reads an object that a manifest names; `None` if it is not there.
    ///
    /// # Errors
    /// The store refused.
    pub async fn get_object(&self, name: &str) -> Result<Option<Bytes>, ManifestError> {
        let got = async { self.objects.get(&self.prefix.clone().join(name)).await?.bytes().await };
        match got.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("get object of", source)),
        }
    }
}

/// The sequence number in a manifest's name.
fn number(path: &Path) -> Option<u64> {
    path.filename()?.strip_prefix("manifest-")?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn store() -> ManifestStore {
        ManifestStore::new(Arc::new(InMemory::new()), "m")
    }

    #[tokio::test]
    async fn the_newest_readable_manifest_counts() {
        let store = store();
        let first = store.load().await.expect("nothing there is an empty manifest").next(1, &BTreeMap::new(), Vec::new());
        store.store(&first).await.expect("put");
        let torn = store.path(first.sequence + 1);
        store.objects.put(&torn, PutPayload::from_static(b"{\"version\":1,")).await.expect("put");
        let there = store.load().await.expect("falls back");
        assert_eq!(there, Manifest { sequence: first.sequence + 1, ..first });
        let next = there.next(2, &BTreeMap::new(), Vec::new());
        store.store(&next).await.expect("the number after the torn one is free");
        assert_eq!(store.load().await.expect("there"), next);
    }

    #[tokio::test]
    async fn manifests_of_the_version_before_are_read() {
        let store = store();
        let old = br#"{"version":1,"sequence":3,"tick":9,"positions":{},"blocks":[]}"#;
        store.objects.put(&store.path(3), PutPayload::from_static(old)).await.expect("put");
        let manifest = store.load().await.expect("version 1");
        assert_eq!((manifest.sequence, manifest.tick, manifest.generator), (3, 9, None));
    }

    #[tokio::test]
    async fn objects_go_when_no_manifest_needs_them() {
        let store = store();
        let mut manifest = store.load().await.expect("empty");
        let mut names = Vec::new();
        for tick in 0..6 {
            manifest = manifest.next(tick, &BTreeMap::new(), Vec::new());
            let series = store.put_object(manifest.sequence, "json.zst", Bytes::from_static(b"s")).await.expect("put");
            let object = store.put_object(manifest.sequence, "ids", Bytes::from_static(b"i")).await.expect("put");
            names.push((series.clone(), object.clone()));
            let generator = manifest.generator.get_or_insert_default();
            generator.series = series;
            generator.identities.push(IdentitiesObject { object, tick });
            store.store(&manifest).await.expect("put");
        }
        for (index, (series, identities)) in names.iter().enumerate() {
            let there = store.get_object(series).await.expect("get").is_some();
            assert_eq!(there, index >= 6 - 1 - KEPT, "series of manifest {index}");
            assert!(store.get_object(identities).await.expect("get").is_some(), "the newest manifest names all identities");
        }
    }

    #[tokio::test]
    async fn a_sequence_number_is_written_once_and_old_ones_go() {
        let store = store();
        let mut manifest = store.load().await.expect("empty");
        for tick in 0..10 {
            manifest = manifest.next(tick, &BTreeMap::new(), Vec::new());
            store.store(&manifest).await.expect("put");
        }
        assert!(matches!(store.store(&manifest).await, Err(ManifestError::Conflict { sequence: 10 })));
        assert_eq!(store.list().await.expect("list").len(), KEPT + 1);
    }
}
