//! Generations over processes: which processes run the dataflow together, from when until when.
//!
//! Timely fixes who takes part when it starts, and takes its process down when somebody is lost. Our processes also receive spans and
//! answer queries, and should not care. So a process hosts one *generation* of timely after the other: the processes that live agree on a
//! [`Formation`], connect to each other, run workers, and when one of them is lost (or hangs, or returns, or an operator panics) all of them
//! take their workers down and agree again. Meanwhile the log takes what arrives.
//!
//! ```text
//!  gossip ──candidates──► mesh ◄──beats, forms──► the other processes' meshes
//!                          │ Formation {epoch, members, sockets, lost}
//!                          ▼
//!                        start ──► timely's threads ──► workers (poll `lost`) ──► join ──► next Formation
//! ```
//!
//! * Gossip says who may exist, and where; it is slow. Who lives is decided by beats over connections of our own (`council`).
//! * The leader is the lowest id that lives. It says who forms the next generation and gives it an [`Epoch`], which only ever rises: over
//!   restarts, too, for it begins above that of the newest manifest.
//! * A formation needs a majority of the candidates if there are more than two. That spares a cut-off minority the work; what keeps data
//!   exact is that manifests carry the epoch and a newer one is never overwritten.
//! * No thread of timely ever panics because a process was lost: see [`stream`].
//! * Whoever connects and knows the cluster's name is believed, if connections are in the clear: then the mesh belongs into a network that
//!   strangers do not reach. What they send costs bounded memory and time, and takes nobody down.
//! * Nothing of a generation outlives it: threads, sockets and wakers are gone when [`Running::join`] returns.
//!
//! A process that is alone ([`Cluster::alone`]) has formations of one, without listener, sockets or threads of the mesh.

mod council;
mod execute;
mod lost;
mod mesh;
mod metrics;
pub mod stream;
pub(crate) mod wire;

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use execute::panic_text;
pub use execute::{Ended, Options, Running, StartError, execute, start};
pub use lost::{Cause, Lost};
pub use mesh::Cluster;
pub use metrics::Metrics;
pub use stream::GenStream;

/// Port that the mesh listens on by default.
pub const DEFAULT_PORT: u16 = 7947;

/// How processes form generations. All processes of a cluster need the same, but for a moment while they are changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the cluster: others in the same network are refused.
    pub cluster: String,
    /// Workers of this process. Processes with another number, or another wire version, cannot be members of one formation: the most form.
    pub threads: usize,
    /// Version of the dataflow. Another order of operators, another record or another version of timely is another one.
    pub wire: u32,
    /// What else must be the same in all members for their results to be right, by name, as text. Those that differ are not members of one formation either.
    pub alike: BTreeMap<String, String>,
    /// How often a process tells the others that it lives.
    pub beat: Duration,
    /// Who was silent for this long is taken for dead. Too short, and a busy machine loses generations for nothing.
    pub dead_after: Duration,
    /// How long the members of a form may take to connect to each other.
    pub mesh_timeout: Duration,
    /// How long a connection may take to say what it is for.
    pub handshake_timeout: Duration,
    /// How long a process that knows of no others waits at its start before it forms alone: gossip may be about to tell.
    pub alone_after: Duration,
    /// How long a candidate that gossip has dropped, without having left, counts for a majority. Longer than any partition that a
    /// minority is to sit out; and as long as the dataflow stands still if a majority is lost for good and gossip is told to forget it.
    pub remember: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: String::new(),
            threads: 1,
            wire: 1,
            alike: BTreeMap::new(),
            beat: Duration::from_millis(100),
            dead_after: Duration::from_secs(1),
            mesh_timeout: Duration::from_millis(1500),
            handshake_timeout: Duration::from_secs(1),
            alone_after: Duration::from_secs(3),
            remember: Duration::from_secs(15 * 60),
        }
    }
}

/// What a process does in the dataflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Feeds its log; its workers own traces.
    Ingester,
    /// Feeds nothing; its workers own series.
    Generator,
}

/// A process that wants to take part, as it says of itself in gossip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name; stays the same over restarts. At most [`MAX_ID_BYTES`].
    pub id: String,
    /// Rises with every start under this name: the time of the start serves well.
    pub incarnation: u64,
    /// Where its mesh listens.
    pub address: SocketAddr,
    /// What it does.
    pub role: Role,
}

/// Longest name of a candidate.
pub const MAX_ID_BYTES: usize = 256;

/// A process of a formation. The order of members is the same everywhere: by id.
pub type Member = Candidate;

/// Names a generation. A later one is greater; no two that anybody but their leader heard of, or that have a manifest, have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Greater than every counter that the leader had heard of.
    pub counter: u64,
    /// Who formed it; tells apart what two leaders form that do not hear each other.
    pub leader: Arc<str>,
}

impl Epoch {
    /// The epoch as one number, for those who only tell epochs apart and want the later one: the counter, and 16 bits of who formed it.
    pub fn number(&self) -> u64 {
        let hash = storage::ring::fnv1a_32(self.leader.as_bytes());
        self.counter << 16 | u64::from(hash >> 16 ^ hash & 0xffff)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.leader)
    }
}

/// Who runs the next generation, and how this process reaches them. Hand it to [`start`], or drop it: either ends it.
#[derive(Debug)]
pub struct Formation {
    /// Its name.
    pub epoch: Epoch,
    /// Which of the members this process is.
    pub index: usize,
    /// All of them, by id.
    pub members: Vec<Member>,
    /// Workers of each process. Worker `i` of process `p` is worker `p * threads + i`.
    pub threads: usize,
    /// Connections to the others, by index; `None` for this process.
    pub streams: Vec<Option<GenStream>>,
    /// Tells when it is over, and why.
    pub lost: Lost,
    /// What began it: `start`, or the [`Cause::label`] of what ended the one before.
    pub reason: &'static str,
    /// Says that the workers are gone, at the latest when the formation is dropped.
    end: lost::End,
}

impl Formation {
    pub(crate) fn new(
        epoch: Epoch,
        index: usize,
        members: Vec<Member>,
        threads: usize,
        streams: Vec<Option<GenStream>>,
        lost: Lost,
        reason: &'static str,
    ) -> Self {
        let end = lost::End::new(lost.clone());
        Self { epoch, index, members, threads, streams, lost, reason, end }
    }

    /// A formation of one process, for as long as nobody stops it.
    pub fn alone(epoch: Epoch, member: Member, threads: usize) -> Self {
        Self::new(epoch, 0, vec![member], threads, vec![None], Lost::default(), "start")
    }

    /// Formations of members that are all in this process, connected over loopback: for tests and benches.
    ///
    /// # Errors
    /// No sockets to be had.
    pub fn loopback(epoch: &Epoch, members: &[Member], threads: usize) -> io::Result<Vec<Self>> {
        let losts: Vec<Lost> = members.iter().map(|_| Lost::default()).collect();
        let mut streams: Vec<Vec<Option<GenStream>>> = members.iter().map(|_| members.iter().map(|_| None).collect()).collect();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        for low in 0..members.len() {
            for high in low + 1..members.len() {
                let dialled = std::net::TcpStream::connect(listener.local_addr()?)?;
                let (accepted, _) = listener.accept()?;
                dialled.set_nodelay(true)?;
                accepted.set_nodelay(true)?;
                streams[low][high] = Some(GenStream::new(accepted, &members[high].id, low, high, threads, losts[low].clone()));
                streams[high][low] = Some(GenStream::new(dialled, &members[low].id, high, low, threads, losts[high].clone()));
            }
        }
        let formation = |(index, (streams, lost))| Self::new(epoch.clone(), index, members.to_vec(), threads, streams, lost, "start");
        Ok(streams.into_iter().zip(losts).enumerate().map(formation).collect())
    }
}
