//! Everything that this process knows of the cluster, and those who want to hear of changes.
//!
//! The store does no I/O: without gossip it is the whole cluster of a single process (`kvstore: inmemory`).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Place},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as Moment},
};

use dataflow::cluster::Candidate;
use storage::{
    clock::Clock,
    ring::{Instance, Ring, Rings, Settings, State},
};
use tokio::sync::watch;

use super::{
    Liveness, Member,
    entry::{self, Entry, Meaning, Said, Versions},
};

/// Entries that are held; more are refused.
const MAX_ENTRIES: usize = 20_000;
/// Versions further in the future are refused: they could not be overwritten any more.
const MAX_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// What is known. A handle: clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    /// How long what has left, or a silent member, is remembered.
    left_timeout: Duration,
    /// A member that was silent for longer is dead.
    silence: Duration,
    // Held for as long as a map is walked through, never while waiting.
    known: Mutex<Known>,
    candidates: watch::Sender<Arc<[Candidate]>>,
}

#[derive(Debug, Default)]
struct Known {
    entries: BTreeMap<String, Fact>,
    listeners: Vec<Listener>,
}

/// An entry, read.
#[derive(Debug)]
struct Fact {
    version: u64,
    value: String,
    meaning: Meaning,
    /// When this process heard of the version.
    heard: Moment,
}

/// Somebody who wants to know a ring.
#[derive(Debug)]
struct Listener {
    ring: String,
    settings: Settings,
    snapshots: watch::Sender<Arc<Ring>>,
}

/// What became of entries of a peer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    /// Those that were news.
    pub(super) news: u64,
    /// Those that were refused, by reason.
    pub(super) refused: BTreeMap<&'static str, u64>,
}

impl Store {
    pub(crate) fn new(clock: Arc<dyn Clock>, left_timeout: Duration, silence: Duration) -> Self {
        let (candidates, _) = watch::channel(Arc::from([]));
        Self(Arc::new(Shared { clock, left_timeout, silence, known: Mutex::default(), candidates }))
    }

    /// The store of a process without others.
    pub(crate) fn of_one(clock: Arc<dyn Clock>) -> Self {
        Self::new(clock, Duration::from_secs(300), Duration::from_secs(10))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic leaves single entries whole.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live view of a ring, from now on.
    pub(crate) fn rings(&self, ring: &str, settings: Settings) -> Rings {
        let mut known = self.known();
        let (snapshots, rings) = watch::channel(Arc::new(known.ring(ring, &settings)));
        known.listeners.retain(|listener| listener.snapshots.receiver_count() > 0);
        known.listeners.push(Listener { ring: ring.to_owned(), settings, snapshots });
        rings
    }

    /// The live view of those who would take part in the dataflow: candidates of living members, by id.
    pub(crate) fn candidates(&self) -> watch::Receiver<Arc<[Candidate]>> {
        self.0.candidates.subscribe()
    }

    /// An instance as it was last described, whatever its state.
    pub(crate) fn instance(&self, ring: &str, id: &str) -> Option<Instance> {
        match &self.known().entries.get(&entry::instance_key(ring, id))?.meaning {
            Meaning::Instance(_, instance) => Some(instance.clone()),
            _ => None,
        }
    }

    /// Describes an instance.
    pub(crate) fn set_instance(&self, ring: &str, instance: &Instance) {
        self.write(entry::instance_key(ring, &instance.id), entry::describe(instance));
    }

    /// Writes that an instance has left. Returns false if there is none, or if it has left before.
    pub(crate) fn forget(&self, ring: &str, id: &str) -> bool {
        let Some(instance) = self.instance(ring, id).filter(|instance| instance.state != State::Left) else { return false };
        let timestamp = self.0.clock.now().as_secs().max(instance.timestamp);
        self.set_instance(ring, &Instance { state: State::Left, tokens: Vec::new(), timestamp, ..instance });
        true
    }

    /// Describes this process anew, which is its heartbeat.
    pub(super) fn set_member(&self, name: &str, said: &Said) {
        self.write(entry::member_key(name), serde_json::to_string(said).unwrap_or_default());
    }

    fn write(&self, key: String, value: String) {
        let now = self.now_millis();
        let version = self.known().entries.get(&key).map_or(now, |fact| now.max(fact.version + 1));
        self.merge(vec![Entry { key, version, value }]);
    }

    /// Takes what is newer.
    pub(super) fn merge(&self, entries: Vec<Entry>) -> Merged {
        let (mut merged, mut touched, mut members_touched) = (Merged::default(), BTreeSet::new(), false);
        let now = self.now_millis();
        let mut known = self.known();
        for entry in entries {
            match known.take(entry, now, self.0.left_timeout) {
                Ok(Some(Touched::Ring(ring))) => {
                    merged.news += 1;
                    touched.insert(ring);
                }
                Ok(Some(Touched::Member)) => {
                    merged.news += 1;
                    members_touched = true;
                }
                Ok(Some(Touched::Nothing)) => merged.news += 1,
                Ok(None) => {}
                Err(reason) => *merged.refused.entry(reason).or_default() += 1,
            }
        }
        known.tell(&touched);
        drop(known);
        if members_touched {
            self.tell_candidates();
        }
        merged
    }

    /// Drops what is too old, and tells of members that went silent.
    pub(super) fn expire(&self) {
        let now = self.now_millis();
        let mut known = self.known();
        let mut touched = BTreeSet::new();
        known.entries.retain(|_, fact| {
            let stays = !is_obsolete(&fact.meaning, fact.version, now, self.0.left_timeout);
            if !stays && let Meaning::Instance(ring, _) = &fact.meaning {
                touched.insert(ring.clone());
            }
            stays
        });
        known.tell(&touched);
        drop(known);
        self.tell_candidates();
    }

    /// Everybody that is known, by name.
    pub(crate) fn members(&self) -> Vec<Member> {
        let known = self.known();
        let members = known.entries.iter().filter_map(|(key, fact)| {
            let (Some(name), Meaning::Member(Said { address, left, candidate })) = (entry::member_name(key), &fact.meaning) else {
                return None;
            };
            let liveness = match (left, fact.heard.elapsed() <= self.0.silence) {
                (true, _) => Liveness::Left,
                (false, true) => Liveness::Alive,
                (false, false) => Liveness::Dead,
            };
            Some(Member { name: name.to_owned(), address: *address, liveness, candidate: candidate.clone() })
        });
        members.collect()
    }

    /// How long a member has been silent.
    pub(super) fn silent_for(&self, name: &str) -> Option<Duration> {
        self.known().entries.get(&entry::member_key(name)).map(|fact| fact.heard.elapsed())
    }

    /// What is known, as keys with versions.
    pub(super) fn versions(&self) -> Versions {
        self.known().entries.iter().map(|(key, fact)| (key.clone(), fact.version)).collect()
    }

    /// What is newer here than there, and the keys of what is newer there.
    pub(super) fn compare(&self, there: &Versions) -> (Vec<Entry>, Vec<String>) {
        let known = self.known();
        let newer = known.entries.iter().filter(|(key, fact)| there.get(*key).is_none_or(|version| *version < fact.version));
        let newer = newer.map(|(key, fact)| fact.to_entry(key)).collect();
        let wanted = there.iter().filter(|(key, version)| known.entries.get(*key).is_none_or(|fact| fact.version < **version));
        (newer, wanted.map(|(key, _)| key.clone()).take(MAX_ENTRIES).collect())
    }

    /// The entries of these keys.
    pub(super) fn entries(&self, keys: &[String]) -> Vec<Entry> {
        let known = self.known();
        keys.iter().filter_map(|key| known.entries.get(key).map(|fact| fact.to_entry(key))).collect()
    }

    /// The names of the rings that have entries, with how many.
    pub(crate) fn ring_names(&self) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for fact in self.known().entries.values() {
            if let Meaning::Instance(ring, _) = &fact.meaning {
                *names.entry(ring.clone()).or_default() += 1;
            }
        }
        names
    }

    fn now_millis(&self) -> u64 {
        u64::try_from(self.0.clock.now().as_millis()).unwrap_or(u64::MAX)
    }

    fn tell_candidates(&self) {
        let mut newest: BTreeMap<String, Candidate> = BTreeMap::new();
        for candidate in
            self.members().into_iter().filter(|member| member.liveness == Liveness::Alive).filter_map(|member| member.candidate)
        {
            match newest.entry(candidate.id.clone()) {
                Place::Vacant(place) => _ = place.insert(candidate),
                Place::Occupied(mut place) if place.get().incarnation < candidate.incarnation => _ = place.insert(candidate),
                Place::Occupied(_) => {}
            }
        }
        let candidates: Arc<[Candidate]> = newest.into_values().collect();
        self.0.candidates.send_if_modified(|known| {
            let is_news = **known != *candidates;
            if is_news {
                *known = candidates;
            }
            is_news
        });
    }
}

/// What a newer entry changes.
enum Touched {
    Ring(String),
    Member,
    Nothing,
}

impl Known {
    /// Takes an entry if it is news; an error is the reason for refusing it.
    fn take(&mut self, entry: Entry, now: u64, left_timeout: Duration) -> Result<Option<Touched>, &'static str> {
        let full = self.entries.len() >= MAX_ENTRIES;
        let known = self.entries.get(&entry.key);
        if known.is_some_and(|fact| (fact.version, &fact.value) >= (entry.version, &entry.value)) {
            return Ok(None);
        }
        if known.is_none() && full {
            return Err("too_many");
        }
        if u128::from(entry.version) > u128::from(now) + MAX_AHEAD.as_millis() {
            return Err("from_the_future");
        }
        let meaning = entry.meaning()?;
        if is_obsolete(&meaning, entry.version, now, left_timeout) {
            return Ok(None);
        }
        let touched = match &meaning {
            Meaning::Instance(ring, _) => Touched::Ring(ring.clone()),
            Meaning::Member(_) => Touched::Member,
            Meaning::Unknown => Touched::Nothing,
        };
        let Entry { key, version, value } = entry;
        self.entries.insert(key, Fact { version, value, meaning, heard: Moment::now() });
        Ok(Some(touched))
    }

    fn ring(&self, name: &str, settings: &Settings) -> Ring {
        let first = entry::instance_key(name, "");
        let instances = self.entries.range(first.clone()..).take_while(|(key, _)| key.starts_with(&first));
        let instances = instances.filter_map(|(_, fact)| match &fact.meaning {
            Meaning::Instance(_, instance) => Some(instance.clone()),
            _ => None,
        });
        Ring::new(instances, settings.clone())
    }

    /// Gives new snapshots of these rings to those who listen.
    fn tell(&self, rings: &BTreeSet<String>) {
        for listener in self.listeners.iter().filter(|listener| rings.contains(&listener.ring)) {
            listener.snapshots.send_replace(Arc::new(self.ring(&listener.ring, &listener.settings)));
        }
    }
}

impl Fact {
    fn to_entry(&self, key: &str) -> Entry {
        Entry { key: key.to_owned(), version: self.version, value: self.value.clone() }
    }
}

/// Whether an entry is so old that it says nothing any more. An instance stays until somebody writes that it has left.
fn is_obsolete(meaning: &Meaning, version: u64, now: u64, left_timeout: Duration) -> bool {
    let may_expire = match meaning {
        Meaning::Instance(_, instance) => instance.state == State::Left,
        Meaning::Member(_) | Meaning::Unknown => true,
    };
    may_expire && u128::from(version) + left_timeout.as_millis() < u128::from(now)
}
