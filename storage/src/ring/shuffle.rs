//! Shuffle sharding: a tenant uses a few instances, chosen by its name, so that a tenant that kills its instances doesn't kill those of all others.
//!
//! Every process must choose alike, and goes on doing so when the instances change a little: tokens are drawn from a generator seeded with the tenant's name
//! (and the zone's), and each draw takes the first instance from there on that was not taken before. An instance that joins or goes therefore replaces at most
//! one of a shard.

use std::{collections::BTreeSet, sync::Arc};

use super::{Instance, Ring};

impl Ring {
    /// The ring of a tenant's `size` instances; all of it if `size` is 0 or there aren't more instances. With zone awareness the same number comes from
    /// each zone, so `size` is rounded up to a multiple of the number of zones.
    pub fn shard(&self, tenant: &str, size: usize) -> Self {
        if size == 0 || size >= self.instances().len() {
            return self.clone();
        }
        let mut chosen: BTreeSet<usize> = BTreeSet::new();
        if self.settings().zone_awareness {
            let zones: BTreeSet<&str> = self.instances().iter().map(|instance| instance.zone.as_str()).collect();
            for zone in &zones {
                let mut draws = Draws::new(tenant, Some(zone));
                self.choose(size.div_ceil(zones.len()), &mut draws, &mut chosen, |instance| instance.zone == *zone);
            }
        } else {
            self.choose(size, &mut Draws::new(tenant, None), &mut chosen, |_| true);
        }
        Self::of(chosen.into_iter().map(|place| Arc::clone(&self.instances()[place])).collect(), self.settings().clone())
    }

    fn choose(&self, count: usize, draws: &mut Draws, chosen: &mut BTreeSet<usize>, is_eligible: impl Fn(&Instance) -> bool) {
        for _ in 0..count {
            let eligible = |place: &usize| {
                let instance = &self.instances()[*place];
                !instance.read_only && is_eligible(instance) && !chosen.contains(place)
            };
            let Some(place) = self.clockwise(draws.next()).find(eligible) else { return };
            chosen.insert(place);
        }
    }
}

/// A sequence of numbers that a name decides: SplitMix64, seeded with the name's FNV-1a 64. Written out because processes of different versions must agree.
struct Draws(u64);

impl Draws {
    fn new(tenant: &str, zone: Option<&str>) -> Self {
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = tenant.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
        // The zero keeps tenant and zone apart: neither contains it.
        Self(zone.map_or(hash, |zone| zone.as_bytes().iter().fold(fnv(hash, &0), fnv)))
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 32) as u32
    }
}
