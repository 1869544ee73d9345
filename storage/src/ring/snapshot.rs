//! The snapshot itself: built once from what is known of the instances, then only asked.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use super::{Instance, Operation, Replicas, RingError, Settings, State, quorum};

/// Everybody who is in a ring at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ring {
    /// By id, ascending.
    instances: Arc<[Arc<Instance>]>,
    /// Ascending and distinct; apart from their owners so that a search touches little memory.
    tokens: Arc<[u32]>,
    /// The index in `instances` of the owner of the token at the same place.
    owners: Arc<[u32]>,
    /// Per instance, the index of its zone, if it has one.
    zone_of: Arc<[Option<u32>]>,
    /// The distinct zones, ascending.
    zones: Arc<[String]>,
    settings: Settings,
}

impl Default for Ring {
    fn default() -> Self {
        Self::new([], Settings::default())
    }
}

impl Ring {
    /// The ring of these instances. Of several descriptions of one id the one with the newest heartbeat counts, and of equally new ones the one that says
    /// LEFT. A token that several claim belongs to one that isn't LEAVING if there is any, and among those to the smallest id.
    pub fn new(instances: impl IntoIterator<Item = Instance>, settings: Settings) -> Self {
        let mut newest: BTreeMap<String, Instance> = BTreeMap::new();
        for instance in instances {
            match newest.entry(instance.id.clone()) {
                Entry::Vacant(entry) => _ = entry.insert(instance),
                Entry::Occupied(mut entry) => {
                    if supersedes(&instance, entry.get()) {
                        entry.insert(instance);
                    }
                }
            }
        }
        let here =
            newest.into_values().filter(|instance| instance.state != State::Left && !settings.excluded_zones.contains(&instance.zone));
        let instances = here.map(|mut instance| {
            instance.tokens.sort_unstable();
            instance.tokens.dedup();
            Arc::new(instance)
        });
        Self::of(instances.collect(), settings)
    }

    /// The ring of instances with distinct ids in ascending order, none of which has left.
    pub(super) fn of(instances: Vec<Arc<Instance>>, settings: Settings) -> Self {
        let claims = instances.iter().zip(0u32..).flat_map(|(instance, index)| {
            let leaving = instance.state == State::Leaving;
            instance.tokens.iter().map(move |token| (*token, leaving, index))
        });
        let mut claims: Vec<(u32, bool, u32)> = claims.collect();
        claims.sort_unstable();
        claims.dedup_by_key(|(token, ..)| *token);
        let zones: BTreeSet<&str> = instances.iter().map(|instance| instance.zone.as_str()).filter(|zone| !zone.is_empty()).collect();
        let zones: Vec<String> = zones.into_iter().map(str::to_owned).collect();
        let zone_of = instances.iter().map(|instance| zones.binary_search(&instance.zone).ok().and_then(|zone| u32::try_from(zone).ok()));
        Self {
            tokens: claims.iter().map(|(token, ..)| *token).collect(),
            owners: claims.iter().map(|(.., owner)| *owner).collect(),
            zone_of: zone_of.collect(),
            zones: zones.into(),
            instances: instances.into(),
            settings,
        }
    }

    /// Everybody, by id in ascending order, with their tokens in ascending order.
    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// The instance of this id.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        let index = self.instances.binary_search_by(|instance| instance.id.as_str().cmp(id)).ok()?;
        self.instances.get(index)
    }

    /// How this ring answers.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The distinct zones of the instances, ascending; instances without a zone are in none.
    pub fn zones(&self) -> &[String] {
        &self.zones
    }

    /// How many distinct tokens there are.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Whether an instance takes part in an operation now.
    pub fn is_healthy(&self, instance: &Instance, operation: Operation, now: Duration) -> bool {
        operation.admits(instance.state) && instance.is_fresh(now, self.settings.heartbeat_timeout)
    }

    /// How many instances take part in an operation now.
    pub fn healthy(&self, operation: Operation, now: Duration) -> usize {
        self.instances.iter().filter(|instance| self.is_healthy(instance, operation, now)).count()
    }

    /// The instances to which a key belongs, and how many of them may fail.
    ///
    /// # Errors
    /// Nobody is in the ring, nobody has a token, or too few of the key's instances are healthy.
    pub fn replicas(&self, key: u32, operation: Operation, now: Duration) -> Result<Replicas, RingError> {
        if self.instances.is_empty() {
            return Err(RingError::NoInstances);
        }
        if self.tokens.is_empty() {
            return Err(RingError::Empty);
        }
        quorum::of_key(self, &self.walk(key, operation), operation, now)
    }

    /// All instances that take part in an operation, and how many of them may fail without a key having lost all its copies.
    ///
    /// # Errors
    /// Nobody is in the ring, nobody has a token, or so many are unhealthy that some key may have no copy among the others.
    pub fn all(&self, operation: Operation, now: Duration) -> Result<Replicas, RingError> {
        if self.tokens.is_empty() {
            return Err(RingError::Empty);
        }
        quorum::of_all(self, operation, now)
    }

    /// Whether instances of which these are there have, together, a copy of everything that was acknowledged; those that have nothing yet, or nothing any more,
    /// need not be there.
    pub fn is_covered(&self, is_there: impl Fn(&Instance) -> bool) -> bool {
        let has_something = |instance: &Instance| matches!(instance.state, State::Active | State::Leaving);
        quorum::spare(self, |instance| !has_something(instance) || is_there(instance)).is_some()
    }

    /// The part of each instance of [`Ring::instances`] in all keys, from 0 to 1, as first owner.
    pub fn shares(&self) -> Vec<f64> {
        let mut owned = vec![0u64; self.instances.len()];
        let mut previous = self.tokens.last().copied().unwrap_or_default();
        for (token, owner) in self.tokens.iter().zip(self.owners.iter()) {
            // The only token owns everything, which is the one case where the distance around the ring is not below 2^32.
            let keys = if self.tokens.len() == 1 { 1 << 32 } else { u64::from(token.wrapping_sub(previous)) };
            owned[*owner as usize] += keys;
            previous = *token;
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 2^32, which a double holds exactly")]
        owned.into_iter().map(|keys| keys as f64 / (1u64 << 32) as f64).collect()
    }

    /// The place of the first token greater than the key, which is the first one of all for a key beyond the last.
    fn start(&self, key: u32) -> usize {
        let place = self.tokens.partition_point(|token| *token <= key);
        if place == self.tokens.len() { 0 } else { place }
    }

    /// The owners of the tokens from a key on, clockwise once around.
    pub(super) fn clockwise(&self, key: u32) -> impl Iterator<Item = usize> {
        let (before, from) = self.owners.split_at(self.start(key));
        from.iter().chain(before).map(|owner| *owner as usize)
    }

    /// The instances that a key falls to, healthy or not.
    fn walk(&self, key: u32, operation: Operation) -> Vec<usize> {
        let mut target = self.settings.replication_factor.max(1);
        let mut found: Vec<usize> = Vec::with_capacity(target + 1);
        let zones = if self.settings.zone_awareness { self.zones.len() } else { 0 };
        let per_zone = (target / zones.max(1)).max(1);
        let mut in_zone = vec![0usize; zones];
        // Once every zone is full nobody more can be found, unless somebody is in none.
        let mut open = if zones > 0 && self.zone_of.iter().all(Option::is_some) { zones } else { usize::MAX };
        for owner in self.clockwise(key) {
            if open == 0 || found.len() >= target.min(self.instances.len()) {
                break;
            }
            let zone = self.zone_of[owner].map(|zone| zone as usize).filter(|_| zones > 0);
            if found.contains(&owner) || zone.is_some_and(|zone| in_zone[zone] >= per_zone) {
                continue;
            }
            found.push(owner);
            if operation.extends(self.instances[owner].state) {
                target += 1;
            } else if let Some(zone) = zone {
                in_zone[zone] += 1;
                if in_zone[zone] == per_zone {
                    open -= 1;
                }
            }
        }
        found
    }
}

/// Whether news of an instance replaces what was known of it (write-path.md §5.7).
fn supersedes(news: &Instance, known: &Instance) -> bool {
    news.timestamp > known.timestamp || news.timestamp == known.timestamp && news.state == State::Left && known.state != State::Left
}
