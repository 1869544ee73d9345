//! The halves of requests: a client's that waits for its server's, and the other way round.
//!
//! Two halves belong together when they have the same key: the trace and the span id of the client, which is the parent id of the server.
//! A half stays for `wait` ticks from its own tick on. A client pairs with *every* server that comes within `wait` of it (several
//! consumers of one message, the server behind a redirect), so it stays when it has found one; a server has one client and leaves with
//! it. What has found nobody when its time is up is handed out by [`Halves::expire`].
//!
//! ```text
//!  table: key ─► first ─► next ─► …      chain of one key: at most one client, servers only while there is no client
//!                  │
//!  slots  [ half ][ half ][ free ][ half ]          wheel: tick ─► (slot, its generation) whose time is up then
//! ```
//!
//! A half that filter policies reject waits and pairs like any other, so that it is known why the other one stays alone: a server leaves
//! with a client that was rejected, and a client that only rejected servers have answered waits on, marked.
//!
//! Which pairs come out depends on the ticks of the halves and not on the order in which they come in, with two exceptions, both counted:
//! halves that are refused because too many wait, and a second client under the same id, which only broken senders have.

use std::{collections::BTreeMap, hash::BuildHasher};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use serde::{Deserialize, Serialize};
use storage::id::TraceId;

use super::intern::Symbol;
use crate::generator::Weight;

/// What the two halves of a request have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) trace_id: TraceId,
    /// Of the client.
    pub(super) span_id: u64,
}

/// Which half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// A client's or producer's.
    Client,
    /// A server's or consumer's.
    Server,
}

/// What is kept of a span until the other one comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Half {
    pub(super) key: Key,
    /// End minus start, nanoseconds.
    pub(super) duration_ns: u64,
    /// The client's end or the server's start, Unix nanoseconds.
    pub(super) time_ns: u64,
    /// How many spans it stands for.
    pub(super) weight: Weight,
    /// Its `service.name`.
    pub(super) service: Symbol,
    /// Who the other side is if nobody comes; [`Symbol::NONE`] if it does not say.
    pub(super) peer: Symbol,
    /// Labels that it adds to the edge.
    pub(super) dimensions: Symbol,
    pub(super) side: Side,
    /// A producer's or consumer's.
    pub(super) messaging: bool,
    pub(super) failed: bool,
    /// Filter policies reject it.
    pub(super) filtered: bool,
    /// A client that was answered, but by a server that filter policies reject.
    pub(super) partner_filtered: bool,
}

/// What became of a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It waits for the other one: an edge has begun.
    Waits,
    /// It completed an edge that had begun, or several.
    Completed,
    /// It made a further edge with a client that has one already.
    Further,
    /// Too many wait already.
    Refused,
    /// Another client has its key.
    Duplicate,
    /// A rejected server, of a client that waits on.
    Rejected,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    half: Half,
    /// When its time is up.
    expires: u64,
    previous: u32,
    next: u32,
    /// Tells what the wheel says of this half from what it says of one before it.
    generation: u32,
    used: bool,
    /// A client that has found a server.
    paired: bool,
}

/// No slot.
const NONE: u32 = u32::MAX;

/// Below this many slots, memory is not given back.
const FEW: usize = 1024;

/// For every half that may wait, so many paired clients are kept: ten seconds of a service graph are mostly such. Beyond that, a further
/// server of a client that is not kept finds nobody.
const PAIRED_FOR_EACH_WAITING: usize = 16;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Halves {
    table: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    wheel: BTreeMap<u64, Vec<(u32, u32)>>,
    waiting: usize,
    hasher: RandomState,
}

impl Halves {
    /// Takes in a half whose time is up at tick `expires`; at most `max_waiting` may wait. Hands out the pairs that it makes, the client
    /// first; the servers of them are none that are rejected.
    pub(super) fn insert(&mut self, half: Half, expires: u64, max_waiting: usize, mut pair: impl FnMut(&Half, &Half)) -> Inserted {
        let hash = self.hasher.hash_one(half.key);
        let head = self.table.find(hash, |slot| self.slots[*slot as usize].half.key == half.key).copied().unwrap_or(NONE);
        let Some(first) = self.slots.get_mut(head as usize) else { return self.wait(hash, half, expires, max_waiting) };
        match (first.half.side, half.side) {
            (Side::Client, Side::Client) => Inserted::Duplicate,
            (Side::Server, Side::Server) => self.wait(hash, half, expires, max_waiting),
            (Side::Client, Side::Server) if half.filtered => {
                first.half.partner_filtered = true;
                Inserted::Rejected
            }
            (Side::Client, Side::Server) => {
                pair(&first.half, &half);
                if first.paired {
                    return Inserted::Further;
                }
                first.paired = true;
                self.waiting -= 1;
                Inserted::Completed
            }
            (Side::Server, Side::Client) => {
                if let Ok(entry) = self.table.find_entry(hash, |slot| *slot == head) {
                    entry.remove();
                }
                let (mut next, mut half, mut paired) = (head, half, false);
                while let Some(slot) = self.slots.get(next as usize) {
                    if slot.half.filtered {
                        half.partner_filtered = true;
                    } else {
                        pair(&half, &slot.half);
                        paired = true;
                    }
                    let server = std::mem::replace(&mut next, slot.next);
                    self.release(server);
                    self.waiting -= 1;
                }
                if !paired {
                    return self.wait(hash, half, expires, max_waiting);
                }
                if self.len() - self.waiting < max_waiting.saturating_mul(PAIRED_FOR_EACH_WAITING) {
                    self.keep(hash, half, expires, true);
                }
                Inserted::Completed
            }
        }
    }

    /// Puts back what [`Self::iter`] gave, in any order.
    pub(super) fn restore(&mut self, half: Half, expires: u64, paired: bool) {
        self.waiting += usize::from(!paired);
        self.keep(self.hasher.hash_one(half.key), half, expires, paired);
    }

    fn wait(&mut self, hash: u64, half: Half, expires: u64, max_waiting: usize) -> Inserted {
        if self.waiting >= max_waiting {
            return Inserted::Refused;
        }
        self.waiting += 1;
        self.keep(hash, half, expires, false);
        Inserted::Waits
    }

    /// Puts a half at the head of its chain.
    fn keep(&mut self, hash: u64, half: Half, expires: u64, paired: bool) {
        let Self { table, slots, free, hasher, .. } = self;
        let index = free.pop().unwrap_or(slots.len() as u32);
        let same = |slot: &u32| slots[*slot as usize].half.key == half.key;
        let next = match table.entry(hash, same, |slot| hasher.hash_one(slots[*slot as usize].half.key)) {
            Entry::Occupied(mut head) => std::mem::replace(head.get_mut(), index),
            Entry::Vacant(vacant) => {
                vacant.insert(index);
                NONE
            }
        };
        if let Some(after) = slots.get_mut(next as usize) {
            after.previous = index;
        }
        let generation = slots.get(index as usize).map_or(0, |slot| slot.generation);
        let slot = Slot { half, expires, previous: NONE, next, generation, used: true, paired };
        match slots.get_mut(index as usize) {
            Some(free) => *free = slot,
            None => slots.push(slot),
        }
        self.wheel.entry(expires).or_default().push((index, generation));
    }

    /// Gives a slot back that no chain refers to any longer. What the wheel says about it is void from now on.
    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.used = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }

    /// Removes the halves whose time is up at `tick`, and hands out those of them that have found nobody.
    pub(super) fn expire(&mut self, tick: u64, mut alone: impl FnMut(&Half)) {
        while let Some(due) = self.wheel.first_entry().filter(|due| *due.key() <= tick) {
            for (index, generation) in due.remove() {
                let slot = &self.slots[index as usize];
                if slot.generation != generation {
                    continue;
                }
                if !slot.paired {
                    self.waiting -= 1;
                    alone(&slot.half);
                }
                self.unlink(index);
                self.release(index);
            }
        }
        // After a burst: memory is given back when three quarters of it are idle.
        if self.slots.len() > FEW && self.len() * 4 < self.slots.len() {
            self.compact();
        }
    }

    /// Takes a half out of its chain.
    fn unlink(&mut self, index: u32) {
        let Slot { half, previous, next, .. } = self.slots[index as usize];
        if let Some(slot) = self.slots.get_mut(next as usize) {
            slot.previous = previous;
        }
        if let Some(slot) = self.slots.get_mut(previous as usize) {
            slot.next = next;
            return;
        }
        let Ok(mut head) = self.table.find_entry(self.hasher.hash_one(half.key), |slot| *slot == index) else { return };
        if next == NONE {
            head.remove();
        } else {
            *head.get_mut() = next;
        }
    }

    /// Moves everything into memory of the right size.
    fn compact(&mut self) {
        let mut compact = Self { hasher: self.hasher.clone(), ..Self::default() };
        self.iter().for_each(|(half, expires, paired)| compact.restore(*half, expires, paired));
        *self = compact;
    }

    /// What is kept: halves, when their time is up, and whether they have found somebody.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Half, u64, bool)> {
        self.slots.iter().filter(|slot| slot.used).map(|slot| (&slot.half, slot.expires, slot.paired))
    }

    /// How many halves are kept.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many there is memory for.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// How many of them have found nobody yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}
