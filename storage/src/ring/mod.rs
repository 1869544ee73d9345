//! The ring: which instances a key belongs to, and how many of them must answer.
//!
//! ```text
//!  instances (id, addr, state, heartbeat, zone, tokens)      key = FNV-1 32 of tenant ‖ trace id
//!      │ newest per id, LEFT dropped, conflicts of tokens resolved      │
//!      ▼                                                               ▼
//!  tokens, sorted:  ··· 17 a │ 90 c │ 203 b │ 511 a ···   first token > key, then clockwise, each instance once,
//!                                                         one more for every state that extends, at most RF / zones of a zone
//!      │                                                               │
//!      └── quorum: drop the unhealthy ones, max_errors = healthy − (n / 2 + 1) ──► Replicas
//! ```
//!
//! A [`Ring`] is an immutable snapshot and does no I/O: membership is told by whoever keeps it (gossip, or a constant in a single process), as a new snapshot
//! in a [`Rings`] channel. Whether an instance is healthy depends on the time, which is therefore an argument of every question.
//!
//! Invariants: an id occurs once; a token has one owner; an instance that has left is not part of the ring. Two processes that know of the same instances
//! build the same ring and the same shards, whatever the order in which they learnt of them.
//!
//! Facts: the ring of Tempo 2.10 (write-path.md §5), whose answers and error texts these are.

mod hash;
mod quorum;
mod shuffle;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    hash::{fnv1_32, fnv1a_32, token},
    snapshot::Ring,
};

/// The live view of a ring: the newest snapshot, and notice of every newer one.
pub type Rings = tokio::sync::watch::Receiver<Arc<Ring>>;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Takes its share of everything.
    Active,
    /// Is shutting down: no new writes, but what it has can be read.
    Leaving,
    /// Has announced itself and owns no tokens yet, or may not use them yet.
    #[default]
    Pending,
    /// Has tokens and watches whether somebody else claims them.
    Joining,
    /// Is gone; its entry remains for a while so that old news of it is recognised.
    Left,
}

impl State {
    /// All of them, in the order of their numbers in Tempo's protobuf.
    pub const ALL: [Self; 5] = [Self::Active, Self::Leaving, Self::Pending, Self::Joining, Self::Left];

    /// The name that pages, metrics and messages show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Leaving => "LEAVING",
            Self::Pending => "PENDING",
            Self::Joining => "JOINING",
            Self::Left => "LEFT",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One member of a ring, as it last described itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Unique in the ring; the host name unless configured otherwise.
    pub id: String,
    /// Where it serves gRPC, as `host:port`.
    pub addr: String,
    /// Its last heartbeat, in seconds since the Unix epoch.
    pub timestamp: u64,
    /// Where it is in its life.
    pub state: State,
    /// Positions on the ring; ascending in what [`Ring::instances`] gives, any order elsewhere.
    pub tokens: Vec<u32>,
    /// Its availability zone; empty if it has none.
    pub zone: String,
    /// When it first joined, in seconds since the Unix epoch; 0 if unknown.
    pub registered: u64,
    /// Takes no new data of tenants with a shard of their own.
    pub read_only: bool,
}

impl Instance {
    /// Whether its last heartbeat is recent enough. A `timeout` of zero means that heartbeats don't matter.
    pub fn is_fresh(&self, now: Duration, timeout: Duration) -> bool {
        timeout.is_zero() || now.saturating_sub(Duration::from_secs(self.timestamp)) <= timeout
    }
}

/// How a ring answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many instances have a copy of a key; 0 counts as 1.
    pub replication_factor: usize,
    /// An instance that was silent for longer is unhealthy; zero means never.
    pub heartbeat_timeout: Duration,
    /// Whether the copies of a key must lie in different zones.
    pub zone_awareness: bool,
    /// Instances of these zones take no part.
    pub excluded_zones: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { replication_factor: 1, heartbeat_timeout: Duration::from_secs(300), zone_awareness: false, excluded_zones: Vec::new() }
    }
}

/// What the instances of a key are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// New data; an instance that doesn't take any is replaced by the next one on the ring.
    Write,
    /// New data, without replacements.
    WriteNoExtend,
    /// Recent data; an instance that can't have any yet is complemented by the next one on the ring.
    Read,
    /// Statistics of all instances that are alive.
    Reporting,
}

impl Operation {
    /// Whether an instance in this state takes part.
    pub fn admits(self, state: State) -> bool {
        match self {
            Self::Write | Self::WriteNoExtend => state == State::Active,
            Self::Read => matches!(state, State::Active | State::Pending | State::Leaving),
            Self::Reporting => true,
        }
    }

    /// Whether an instance in this state makes the look-up take one more.
    pub fn extends(self, state: State) -> bool {
        match self {
            Self::Write => state != State::Active,
            Self::Read => matches!(state, State::Pending | State::Joining | State::Left),
            Self::WriteNoExtend | Self::Reporting => false,
        }
    }
}

/// The healthy instances to ask, and how many of them may fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// Healthy instances, in the order in which the ring has them.
    pub instances: Vec<Arc<Instance>>,
    /// The outcome holds as long as no more than this many of them fail.
    pub max_errors: usize,
}

impl Replicas {
    /// How many of the instances have to succeed.
    pub fn min_success(&self) -> usize {
        self.instances.len().saturating_sub(self.max_errors)
    }
}

/// Why a ring names no instances. The texts are Tempo's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Nobody is in the ring.
    #[error("DoBatch: InstancesCount <= 0")]
    NoInstances,
    /// There are instances, and none of them has a token.
    #[error("empty ring")]
    Empty,
    /// Too few instances of the key are healthy.
    #[error("at least {required} live replicas required{zones}, could only find {found}{}", unhealthy_list(.unhealthy), zones = if *.zone_awareness { " across different zones" } else { "" })]
    TooFewReplicas {
        /// How many are needed for a quorum.
        required: usize,
        /// How many there are.
        found: usize,
        /// The addresses of those that don't count.
        unhealthy: Vec<String>,
        /// Whether the ring keeps copies in different zones.
        zone_awareness: bool,
    },
    /// So many instances of the whole ring are unhealthy that some keys may have no copy left.
    #[error("too many unhealthy instances in the ring")]
    TooManyUnhealthy,
}

fn unhealthy_list(addresses: &[String]) -> String {
    if addresses.is_empty() { String::new() } else { format!(" - unhealthy instances: {}", addresses.join(",")) }
}
