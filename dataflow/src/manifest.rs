//! The manifest: what of the log is in blocks, as of a tick.
//!
//! One JSON object per commit, `manifest-<sequence>.json`, written with put-if-absent: of two writers that both believe to be the one,
//! the second to write a sequence number fails and must read again. The newest readable one counts; [`KEPT`] older ones stay.
//!
//! ```text
//!  {"version":3,"sequence":7,"epoch":{…},"began":6912345000,"tick":6912345678,
//!   "positions":{"<wal id>":{"held":81920,"counted":90112}},"fed":{"<wal id>":6912345678},
//!   "blocks":[{"meta":{…meta.json…},"records":{"<wal id>":{"first":4096,"last":77824}}}],
//!   "generator":{"series":["generator-…"],"identities":[{"object":"generator-…","tick":6912345678}]}}
//! ```
//!
//! In a cluster the manifests lie on the bucket and cover the logs of all members, also of those that are away: their positions and blocks
//! are carried over from manifest to manifest. Each generation begins with a manifest of its own ([`ManifestStore::claim`]) that says the
//! same as the one before under a new `epoch`. From then on no generation before it can commit, since the number that it would use is
//! taken, and every member begins from the same manifest, since it waits for that one.
//!
//! * Every span in a record before `held` is in a published block.
//! * Every span in a record before `counted` has been seen by the collections that count spans; a replay stores it if need be, and does
//!   not count it again.
//! * Every span in a record from `held` on is in one of `blocks`, or will be read again.
//! * The objects that `generator` names hold the collections as of `tick`: what every record before `counted` came to. They lie beside the
//!   manifest and were written before it, one by each process. Version 1 had none, version 2 one.
//! * A block is listed until `held` has passed its last record *and* it is known to be published, so recovery publishes each listed
//!   block again (repeating it changes nothing) and reads its span identities to recognise what it must not store twice. In a cluster
//!   copies of its spans may lie in other logs, so it is listed until those have been passed, too.
//! * A log that is away is waited for, since it may hold what nobody else has; but not for ever
//!   ([`absent_log_window`](crate::Settings::absent_log_window)). After that the blocks that it shares records with are let go. Its position
//!   stays, so if it comes back nevertheless, what lies behind is still neither stored nor counted twice; of what lies ahead, spans that
//!   others had stored are stored again, which queries and compaction see to.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path};
use serde::{Deserialize, Deserializer, Serialize};
use storage::{block::Meta, wal::Position};
use uuid::Uuid;

use crate::cluster::Epoch;

/// How many manifests before the newest are kept.
pub const KEPT: usize = 2;

const VERSION: u32 = 3;

/// Logs of which a position is kept. Beyond, those that were not fed for the longest time are forgotten, and read from their beginning if
/// they come back.
const MAX_LOGS: usize = 1000;

/// How often a process looks whether the manifest is there with which it begins.
const CLAIM_POLL: Duration = Duration::from_millis(50);

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
    /// In a cluster: the tick at which the last of its spans arrived.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub until: u64,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Number of this manifest, one more than its predecessor's.
    pub sequence: u64,
    /// The generation that wrote it; `None` for a process on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// In a cluster: what tick it was, by the clock of the process that commits, when its generation began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub began: u64,
    /// The checkpoint tick that it was made at.
    pub tick: u64,
    /// By WAL: how far it is stored and counted.
    pub positions: BTreeMap<Uuid, Positions>,
    /// By WAL: the tick at which it was last fed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fed: BTreeMap<Uuid, u64>,
    /// Blocks that recovery must know of.
    pub blocks: Vec<CommittedBlock>,
    /// What the metrics-generator had come to; `None` where it never counted anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorObjects>,
}

/// The objects in which a checkpoint of the metrics-generator is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorObjects {
    /// Series and waiting halves, by each process.
    #[serde(deserialize_with = "one_or_many")]
    pub series: Vec<String>,
    /// Identities of counted spans, oldest first.
    pub identities: Vec<IdentitiesObject>,
}

/// Version 2 named one object.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Names::deserialize(deserializer)? {
        Names::One(name) if name.is_empty() => Vec::new(),
        Names::One(name) => vec![name],
        Names::Many(names) => names,
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
    /// The manifest after this one: `blocks` are new, `positions` replace what they name. Copies of spans that arrived at the tick `since` or
    /// later may come again, from whatever log; but no longer from those that were not fed for `absent` ticks.
    pub fn next(&self, tick: u64, positions: &BTreeMap<Uuid, Positions>, blocks: Vec<CommittedBlock>, since: u64, absent: u64) -> Self {
        let (mut all, mut fed) = (self.positions.clone(), self.fed.clone());
        for (wal, new) in positions {
            let entry = all.entry(*wal).or_default();
            *entry = Positions { held: entry.held.max(new.held), counted: entry.counted.max(new.counted) };
            fed.insert(*wal, tick);
        }
        // A manifest of an earlier version does not say when.
        all.keys().for_each(|wal| {
            fed.entry(*wal).or_insert(tick);
        });
        while all.len() > MAX_LOGS
            && let Some(oldest) = fed.iter().min_by_key(|(_, at)| **at).map(|(wal, _)| *wal)
        {
            fed.remove(&oldest);
            all.remove(&oldest);
        }
        let may_come = |wal: &Uuid| fed.get(wal).is_none_or(|at| at.saturating_add(absent) >= tick);
        let is_held = |(wal, range): (&Uuid, &Range)| may_come(wal) && all.get(wal).is_none_or(|wal| range.last >= wal.held);
        let still_needed = |block: &&CommittedBlock| block.until >= since || block.records.iter().any(is_held);
        let old = self.blocks.iter().filter(still_needed).cloned();
        let blocks = old.chain(blocks).collect();
        Self { version: VERSION, sequence: self.sequence + 1, tick, blocks, positions: all, fed, ..self.clone() }
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
    /// Another generation commits.
    #[error("manifests of generation {ours:?} cannot be written or read any more, generation {theirs:?} has begun")]
    Superseded {
        /// The one that asked.
        ours: Option<Epoch>,
        /// The one that has taken over.
        theirs: Option<Epoch>,
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
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: impl Into<Path>) -> Self {
        Self { objects, prefix: prefix.into() }
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
        loop {
            match self.load_once().await {
                // Whoever commits has deleted it since it was listed, so there are newer ones.
                Err(ManifestError::Store { source: object_store::Error::NotFound { .. }, .. }) => {}
                done => return done,
            }
        }
    }

    async fn load_once(&self) -> Result<Manifest, ManifestError> {
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

    /// Begins a generation: writes the newest manifest again under its epoch, and returns it. Nobody who began before can commit from then
    /// on. `now` is the current tick.
    ///
    /// # Errors
    /// The store refused, or a later generation has begun.
    pub async fn claim(&self, epoch: &Epoch, now: u64) -> Result<Manifest, ManifestError> {
        loop {
            let newest = self.load().await?;
            if newest.epoch.as_ref() > Some(epoch) {
                return Err(ManifestError::Superseded { ours: Some(epoch.clone()), theirs: newest.epoch });
            }
            let began = now.max(newest.tick + 1);
            let claim = Manifest { version: VERSION, sequence: newest.sequence + 1, epoch: Some(epoch.clone()), began, ..newest };
            match self.store(&claim).await {
                Ok(()) => return Ok(claim),
                // Somebody committed meanwhile, or an earlier try arrived although its answer did not.
                Err(ManifestError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The manifest with which a generation begins, as soon as it is there.
    ///
    /// # Errors
    /// The store refused, or a later generation has begun.
    pub async fn claimed(&self, epoch: &Epoch) -> Result<Manifest, ManifestError> {
        loop {
            let newest = self.load().await?;
            match newest.epoch.as_ref().cmp(&Some(epoch)) {
                Ordering::Equal => return Ok(newest),
                Ordering::Greater => return Err(ManifestError::Superseded { ours: Some(epoch.clone()), theirs: newest.epoch }),
                Ordering::Less => tokio::time::sleep(CLAIM_POLL).await,
            }
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
        let there = self.list().await?;
        // Whoever slept for long finds its number free again, because what had it was deleted.
        if there.last().is_some_and(|newest| *newest > path) {
            return Err(ManifestError::Conflict { sequence: manifest.sequence });
        }
        for old in there.into_iter().rev().filter(|old| *old < path).skip(KEPT) {
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
        let is_named = |name: &str| {
            generator.series.iter().any(|series| series == name) || generator.identities.iter().any(|identities| identities.object == name)
        };
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
        let first =
            store.load().await.expect("nothing there is an empty manifest").next(1, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
        store.store(&first).await.expect("put");
        let torn = store.path(first.sequence + 1);
        store.objects.put(&torn, PutPayload::from_static(b"{\"version\":1,")).await.expect("put");
        let there = store.load().await.expect("falls back");
        assert_eq!(there, Manifest { sequence: first.sequence + 1, ..first });
        let next = there.next(2, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
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
            manifest = manifest.next(tick, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
            let series = store.put_object(manifest.sequence, "series.zst", Bytes::from_static(b"s")).await.expect("put");
            let object = store.put_object(manifest.sequence, "ids", Bytes::from_static(b"i")).await.expect("put");
            names.push((series.clone(), object.clone()));
            let generator = manifest.generator.get_or_insert_default();
            generator.series = vec![series];
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
    async fn whoever_began_before_cannot_commit() {
        let store = store();
        let epoch = |counter, leader: &str| Epoch { counter, leader: leader.into() };
        let old = store.claim(&epoch(4, "a"), 100).await.expect("first");
        assert_eq!((old.began, old.sequence), (100, 1));
        let in_flight = old.next(101, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
        let new = store.claim(&epoch(5, "b"), 90).await.expect("later");
        assert_eq!((new.began, new.sequence, new.epoch.as_ref()), (90, 2, Some(&epoch(5, "b"))));
        assert!(matches!(store.store(&in_flight).await, Err(ManifestError::Conflict { sequence: 2 })), "its number is taken");
        for late in [store.claim(&epoch(4, "a"), 100).await, store.claimed(&epoch(4, "z")).await] {
            let Err(ManifestError::Superseded { theirs, .. }) = late else { panic!("{late:?}") };
            assert_eq!(theirs, Some(epoch(5, "b")));
        }
        assert_eq!(store.claimed(&epoch(5, "b")).await.expect("it is there"), new);
        let mut next = new;
        for tick in 0..6 {
            next = next.next(tick, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
            store.store(&next).await.expect("nobody is newer");
        }
        // Its number is free again, and it must not think that it has committed.
        assert!(matches!(store.store(&in_flight).await, Err(ManifestError::Conflict { .. })));
        assert_eq!(store.load().await.expect("there"), next);
    }

    #[test]
    fn a_log_that_is_gone_holds_nothing_for_ever() {
        let (here, gone) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |wal, held| (wal, Positions { held: Position(held), counted: Position(held) });
        let meta = serde_json::json!({"format": "vParquet4", "blockID": storage::id::BlockId::new_v4(), "tenantID": "single-tenant"});
        let meta: Meta = serde_json::from_value(meta).expect("a description");
        let records = [(here, Range { first: Position(0), last: Position(5) }), (gone, Range { first: Position(0), last: Position(50) })];
        let block = CommittedBlock { meta, records: records.into(), until: 0 };
        let both = [at(here, 10), at(gone, 10)].into();
        let mut manifest = Manifest::default().next(100, &both, vec![block], u64::MAX, 20);
        assert_eq!(manifest.blocks.len(), 1);
        for tick in 101..=120 {
            manifest = manifest.next(tick, &[at(here, tick)].into(), Vec::new(), u64::MAX, 20);
            assert_eq!(manifest.blocks.len(), 1, "it may come back");
        }
        manifest = manifest.next(121, &[at(here, 121)].into(), Vec::new(), u64::MAX, 20);
        assert_eq!(manifest.blocks.len(), 0);
        assert_eq!(manifest.positions[&gone].held, Position(10), "and if it does, it is known how far it was read");
        for log in 10..2000 {
            manifest = manifest.next(122 + log, &[at(Uuid::from_u128(u128::from(log)), 1)].into(), Vec::new(), u64::MAX, 20);
        }
        assert_eq!((manifest.positions.len(), manifest.fed.len()), (MAX_LOGS, MAX_LOGS));
        assert!(!manifest.positions.contains_key(&gone));
    }

    #[tokio::test]
    async fn a_sequence_number_is_written_once_and_old_ones_go() {
        let store = store();
        let mut manifest = store.load().await.expect("empty");
        for tick in 0..10 {
            manifest = manifest.next(tick, &BTreeMap::new(), Vec::new(), u64::MAX, u64::MAX);
            store.store(&manifest).await.expect("put");
        }
        assert!(matches!(store.store(&manifest).await, Err(ManifestError::Conflict { sequence: 10 })));
        assert_eq!(store.list().await.expect("list").len(), KEPT + 1);
    }
}
