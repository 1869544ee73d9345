//! What is told: entries by key, and what their values mean.

use std::{collections::BTreeMap, net::SocketAddr};

use dataflow::cluster::Candidate;
use serde::{Deserialize, Serialize};
use storage::ring::{Instance, State};

/// Longest key.
pub(super) const MAX_KEY_BYTES: usize = 512;
/// Longest value: an instance with thousands of tokens.
pub(super) const MAX_VALUE_BYTES: usize = 64 << 10;
/// Tokens of an instance.
const MAX_TOKENS: usize = 4096;

/// One thing that somebody said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Milliseconds since the Unix epoch, raised above the version before.
    pub(super) version: u64,
    /// JSON.
    pub(super) value: String,
}

/// The versions of all entries by key.
pub(super) type Versions = BTreeMap<String, u64>;

/// What an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A process.
    Member(Said),
    /// An instance of the ring of this name.
    Instance(String, Instance),
    /// Something that a later version says; passed on.
    Unknown,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) address: SocketAddr,
    #[serde(default)]
    pub(super) left: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) candidate: Option<Candidate>,
}

/// How a member is doing, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    /// Silent for a while.
    Dead,
    /// It said goodbye.
    Left,
}

impl Liveness {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "Alive",
            Self::Dead => "Dead",
            Self::Left => "Left",
        }
    }
}

/// A member, as this process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) liveness: Liveness,
    pub(crate) candidate: Option<Candidate>,
}

/// The value of an instance's entry.
#[derive(Serialize, Deserialize)]
struct Described {
    addr: String,
    timestamp: u64,
    state: String,
    #[serde(default)]
    tokens: Vec<u32>,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    registered: u64,
    #[serde(default)]
    read_only: bool,
}

pub(super) fn member_key(name: &str) -> String {
    format!("member/{name}")
}

pub(super) fn instance_key(ring: &str, id: &str) -> String {
    format!("ring/{ring}/{id}")
}

/// The name of the member whose key this is.
pub(super) fn member_name(key: &str) -> Option<&str> {
    key.strip_prefix("member/")
}

pub(super) fn describe(instance: &Instance) -> String {
    let Instance { id: _, addr, timestamp, state, tokens, zone, registered, read_only } = instance.clone();
    let described = Described { addr, timestamp, state: state.as_str().to_owned(), tokens, zone, registered, read_only };
    serde_json::to_string(&described).unwrap_or_default()
}

impl Entry {
    /// Reads the entry.
    ///
    /// # Errors
    /// What is wrong with it, as a label for metrics.
    pub(super) fn meaning(&self) -> Result<Meaning, &'static str> {
        if self.key.len() > MAX_KEY_BYTES || self.value.len() > MAX_VALUE_BYTES {
            return Err("too_large");
        }
        let malformed = |_| "malformed";
        if member_name(&self.key).is_some() {
            return serde_json::from_str(&self.value).map(Meaning::Member).map_err(malformed);
        }
        let Some((ring, id)) = self.key.strip_prefix("ring/").and_then(|rest| rest.split_once('/')) else { return Ok(Meaning::Unknown) };
        let Described { addr, timestamp, state, tokens, zone, registered, read_only } =
            serde_json::from_str(&self.value).map_err(malformed)?;
        let state = State::ALL.into_iter().find(|known| known.as_str() == state).ok_or("malformed")?;
        if ring.is_empty() || id.is_empty() || tokens.len() > MAX_TOKENS {
            return Err("malformed");
        }
        Ok(Meaning::Instance(ring.to_owned(), Instance { id: id.to_owned(), addr, timestamp, state, tokens, zone, registered, read_only }))
    }
}
