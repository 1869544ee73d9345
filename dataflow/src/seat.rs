//! Where this process sits in a generation, and who owns what in it.
//!
//! ```text
//!  process      0: ingester      1: ingester      2: generator          threads = 2
//!  worker       0       1        2       3        4       5
//!  log, feed    ▲                ▲                                      the first worker of each ingester feeds its own log
//!  traces       ●       ●        ●       ●                              by hash, among workers of ingesters
//!  series                                         ●       ●             by hash, among workers of generators, if there are any
//!  commit       ▲                                                       the first worker of all
//! ```
//!
//! All processes of a generation compute the same from the same formation.

use std::{ops::Range, sync::Arc};

use crate::cluster::Role;

/// Workers among whom something is divided by a hash.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[u64]>);

impl Workers {
    /// The workers with these indexes; at least one.
    pub fn new(indexes: impl IntoIterator<Item = usize>) -> Self {
        Self(indexes.into_iter().map(|index| index as u64).collect())
    }

    /// The index of the worker to whom a hash belongs.
    #[inline]
    pub fn of(&self, hash: u64) -> u64 {
        self.0[(hash % self.0.len() as u64) as usize]
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    /// Which process this is.
    pub(crate) index: usize,
    /// Workers of each process.
    pub(crate) threads: usize,
    /// Of each process.
    pub(crate) roles: Arc<[Role]>,
}

impl Seat {
    pub(crate) fn processes(&self) -> usize {
        self.roles.len()
    }

    /// Workers of all processes.
    pub(crate) fn peers(&self) -> usize {
        self.processes() * self.threads
    }

    /// The workers of a process.
    pub(crate) fn workers(&self, process: usize) -> Range<usize> {
        process * self.threads..(process + 1) * self.threads
    }

    /// Whether the process brings a log.
    pub(crate) fn feeds(&self, process: usize) -> bool {
        self.roles[process] == Role::Ingester
    }

    /// How many logs are fed.
    pub(crate) fn logs(&self) -> usize {
        self.roles.iter().filter(|role| **role == Role::Ingester).count()
    }

    /// Who owns traces.
    pub(crate) fn trace_workers(&self) -> Workers {
        self.workers_of(Role::Ingester)
    }

    /// Who owns series.
    pub(crate) fn series_workers(&self) -> Workers {
        self.workers_of(Role::Generator)
    }

    /// The workers of the processes with this role, or of all if nobody has it.
    fn workers_of(&self, role: Role) -> Workers {
        let has_role = |process: &usize| self.roles[*process] == role;
        let of_role: Vec<usize> = (0..self.processes()).filter(has_role).flat_map(|process| self.workers(process)).collect();
        if of_role.is_empty() { Workers::new(0..self.peers()) } else { Workers::new(of_role) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_own_series_and_nothing_else() {
        let seat = Seat { index: 1, threads: 2, roles: [Role::Ingester, Role::Ingester, Role::Generator].into() };
        let reached = |workers: &Workers| (0..100).map(|hash| workers.of(hash)).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(reached(&seat.trace_workers()), (0..4).collect());
        assert_eq!(reached(&seat.series_workers()), (4..6).collect());
        assert_eq!((seat.peers(), seat.logs(), seat.workers(1)), (6, 2, 2..4));
        let without = Seat { roles: [Role::Ingester; 3].into(), ..seat };
        assert_eq!(reached(&without.series_workers()), (0..6).collect());
    }
}
