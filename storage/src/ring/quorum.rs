//! How many instances have to succeed (write-path.md §5.4).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{Instance, Operation, Replicas, Ring, RingError};

/// Of the instances that a key falls to, given by their places, the healthy ones; an error if they are no quorum.
pub(super) fn of_key(ring: &Ring, places: &[usize], operation: Operation, now: Duration) -> Result<Replicas, RingError> {
    let replication_factor = ring.settings().replication_factor.max(1);
    // With two copies a majority would be both, so that one failure would stop everything: one success is enough.
    let required = if replication_factor == 2 { 1 } else { replication_factor.max(places.len()) / 2 + 1 };
    let is_healthy = |instance: &Arc<Instance>| ring.is_healthy(instance, operation, now);
    let at = |place: &usize| &ring.instances()[*place];
    let mut instances = Vec::with_capacity(places.len());
    instances.extend(places.iter().map(at).filter(|instance| is_healthy(instance)).cloned());
    if instances.len() < required {
        let unhealthy = places.iter().map(at).filter(|instance| !is_healthy(instance)).map(|instance| instance.addr.clone());
        // The strategy for two copies names nobody.
        let unhealthy = if replication_factor == 2 { Vec::new() } else { unhealthy.collect() };
        let zone_awareness = ring.settings().zone_awareness && replication_factor != 2;
        return Err(RingError::TooFewReplicas { required, found: instances.len(), unhealthy, zone_awareness });
    }
    let max_errors = instances.len() - required;
    Ok(Replicas { instances, max_errors })
}

/// The healthy instances of the whole ring; an error if a key may have no copy among them.
pub(super) fn of_all(ring: &Ring, operation: Operation, now: Duration) -> Result<Replicas, RingError> {
    let is_healthy = |instance: &Arc<Instance>| ring.is_healthy(instance, operation, now);
    let max_errors = spare(ring, is_healthy).ok_or(RingError::TooManyUnhealthy)?;
    let instances: Vec<_> = ring.instances().iter().filter(|instance| is_healthy(instance)).cloned().collect();
    if instances.is_empty() { Err(RingError::TooManyUnhealthy) } else { Ok(Replicas { instances, max_errors }) }
}

/// How many more may be lost; `None` if a key may have no copy among the present already.
///
/// Half of the copies of a key may be missing, rounded down; with zone awareness, of which at most one lies in a zone if there are enough zones, that means
/// so many zones, however many instances they have.
pub(super) fn spare(ring: &Ring, is_present: impl Fn(&Arc<Instance>) -> bool) -> Option<usize> {
    let replication_factor = ring.settings().replication_factor.max(1);
    let (present, absent): (Vec<_>, Vec<_>) = ring.instances().iter().partition(|instance| is_present(instance));
    let (lost, bearable) = if ring.settings().zone_awareness {
        let zones: BTreeSet<&str> = absent.iter().map(|instance| instance.zone.as_str()).collect();
        let all_zones: BTreeSet<&str> = ring.instances().iter().map(|instance| instance.zone.as_str()).collect();
        (zones.len(), all_zones.len().min(replication_factor) / 2)
    } else {
        // A ring with fewer instances than copies has lost those that it never had.
        (ring.instances().len().max(replication_factor) - present.len(), replication_factor / 2)
    };
    bearable.checked_sub(lost)
}
