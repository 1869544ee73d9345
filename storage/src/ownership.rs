//! Who does a job that one process of several should do: the compaction of some blocks, the index of a tenant.
//!
//! Being the owner is an optimisation and never a lock: two processes may both believe it for a while.

use std::{fmt::Debug, sync::Arc};

use crate::{
    clock::Clock,
    ring::{Operation, Rings, fnv1a_32},
};

/// Decides by the text of a job's key (block-format.md §13.4).
pub trait Ownership: Debug + Send + Sync + 'static {
    /// Whether this process does the job now.
    fn owns(&self, key: &str) -> bool;
}

/// The only process: it does everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sole;

impl Ownership for Sole {
    fn owns(&self, _key: &str) -> bool {
        true
    }
}

/// One of the instances of a ring: it does what falls to it, and nothing as long as it isn't an active member itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// The live view of the ring, whose replication factor is 1.
    pub rings: Rings,
    /// The id of this instance.
    pub id: String,
    /// Tells which instances are alive.
    pub clock: Arc<dyn Clock>,
}

impl Ownership for Member {
    fn owns(&self, key: &str) -> bool {
        let ring = Arc::clone(&self.rings.borrow());
        // A ring without a healthy owner of the key leaves the work undone until it has one.
        let replicas = ring.replicas(fnv1a_32(key.as_bytes()), Operation::WriteNoExtend, self.clock.now());
        replicas.is_ok_and(|replicas| replicas.instances.iter().any(|instance| instance.id == self.id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::ManualClock,
        ring::{Instance, Ring, Settings, State},
    };

    #[test]
    fn every_key_has_one_owner_while_all_are_alive() {
        let clock = ManualClock::new(Duration::from_secs(1000));
        // Scattered as random tokens are. The hash doesn't do that to names that differ in their ends.
        let tokens = |place: u32| (0..64).map(|token| (place * 64 + token + 1).wrapping_mul(0x9e37_79b9)).collect();
        let instances = [("a", 0), ("b", 1), ("c", 2)].map(|(id, place)| Instance {
            id: id.to_owned(),
            timestamp: 1000,
            state: State::Active,
            tokens: tokens(place),
            ..Instance::default()
        });
        let settings = Settings { heartbeat_timeout: Duration::from_secs(60), ..Settings::default() };
        let (sender, rings) = tokio::sync::watch::channel(Arc::new(Ring::new(instances.clone(), settings.clone())));
        let members = ["a", "b", "c"].map(|id| Member { rings: rings.clone(), id: id.to_owned(), clock: Arc::new(clock.clone()) });
        let keys: Vec<String> = (0..100).map(|key| format!("block-{key}")).collect();
        let owners = |key: &String| members.iter().filter(|member| member.owns(key)).count();
        assert!(keys.iter().all(|key| owners(key) == 1));
        assert!(members.iter().all(|member| keys.iter().any(|key| member.owns(key))), "everybody owns something");
        clock.advance(Duration::from_secs(61));
        assert!(keys.iter().all(|key| owners(key) == 0), "nobody is known to be alive");
        let [_, b, c] = instances;
        let alive = [b, c].map(|instance| Instance { timestamp: 1061, ..instance });
        sender.send_replace(Arc::new(Ring::new(alive, settings)));
        assert!(keys.iter().all(|key| owners(key) == 1), "the others took over");
        assert!(!members[0].owns(&keys[0]));
    }
}
