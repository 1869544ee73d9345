//! Membership: what the processes of a cluster tell each other about themselves, without anything in between.
//!
//! ```text
//!   lifecyclers, dataflow ──write──► Store: key ─► (version, value) ──► rings, members, candidates (watch channels)
//!                                      ▲ merge: the larger (version, value) wins
//!                                      │
//!   every gossip_interval, with gossip_nodes members at random, over TCP (:7946):
//!        A ── Sync: the versions of all keys ──► B
//!        A ◄─ Delta: what B has newer, and the keys that A has newer ── B
//!        A ── Entries: those ──► B          A ◄── Taken ── B
//! ```
//!
//! A key is a member (`member/<name>`) or an instance of a ring (`ring/<ring>/<id>`). A version is a time in milliseconds, raised above what was known before,
//! so whoever writes last wins and everybody ends with the same map whatever the order of messages (the merge is a maximum). An instance that is forgotten
//! is written as LEFT, by whomever, and its entry is dropped when it is older than `left_ingesters_timeout`; a member is dropped when it was silent for that long.
//!
//! **Why no gossip crate.** The state is a few KiB per process, and one exchange brings two processes level, so there is little that a crate could do.
//! `foca` and `memberlist` are under the MPL-2.0, which `deny.toml` refuses. `chitchat` keeps the encoding of its messages to itself, so that it can speak
//! nothing but its own UDP, where Tempo's deployments open a TCP port; it asserts on versions that a peer sent, and it expands 64 KiB of a peer's bytes to
//! hundreds of MiB. Here, a message that isn't understood ends its connection, and nothing else.
//!
//! Invariants: bytes of a peer never panic and are never trusted for a size; frames, keys, values, entries and connections are bounded; nobody with another
//! `cluster_label` is listened to, nor, with `tls_enabled` and `tls_ca_path`, anybody without a certificate. Without those the port must be closed to
//! strangers, as in Tempo. What is deliberately absent: the decision who is alive in the dataflow, which beats over its own connections make much faster.

mod connection;
mod entry;
mod gossip;
mod metrics;
pub(crate) mod page;
mod seeds;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::{net::SocketAddr, time::Duration};

pub(crate) use self::{
    entry::{Liveness, Member},
    gossip::Gossip,
    store::Store,
};
pub(crate) use seeds::Seed;

use self::metrics::Metrics;

/// How a process takes part.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Unique among the members.
    pub(crate) name: String,
    /// What is listened on.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where the others reach this process.
    pub(crate) advertise: SocketAddr,
    /// Members with another label are strangers.
    pub(crate) label: String,
    /// Listen to strangers, too.
    pub(crate) accept_any_label: bool,
    /// Whom to ask first.
    pub(crate) join: Vec<Seed>,
    /// Whom to ask again every `rejoin_interval`; those of `join` if empty.
    pub(crate) rejoin: Vec<Seed>,
    /// Never if none.
    pub(crate) rejoin_interval: Option<Duration>,
    /// Pause after the first attempt to join that reached nobody, doubled each time.
    pub(crate) min_join_backoff: Duration,
    /// The longest pause.
    pub(crate) max_join_backoff: Duration,
    /// Attempts; 0 is without end.
    pub(crate) max_join_retries: u64,
    /// Whether a process that reached nobody ends.
    pub(crate) abort_if_join_fails: bool,
    /// Whether a process whose first attempt reached fewer than this many ends.
    pub(crate) fast_join_min_nodes: Option<usize>,
    /// Time between rounds.
    pub(crate) interval: Duration,
    /// Members of a round.
    pub(crate) fanout: usize,
    /// Silent members are asked for this long, in case that they are only cut off.
    pub(crate) dead_time: Duration,
    /// Deadline for the last words.
    pub(crate) leave_timeout: Duration,
    /// Deadline of a connection attempt.
    pub(crate) dial_timeout: Duration,
    /// Deadline of an exchange.
    pub(crate) exchange_timeout: Duration,
}
