//! Members in this process, each with a listener, a mesh and workers of its own, and whatever may come between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dataflow::cluster::{Candidate, Cause, Cluster, Epoch, Metrics, Options, Role, Settings};
use parking_lot::Mutex;
use storage::tls::Peers;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::toy::{self, Manifests, Mischief};

/// How long anything may take before a test gives up.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Quick enough for tests, slow enough for a busy machine.
pub(crate) fn settings() -> Settings {
    Settings {
        cluster: "test".to_owned(),
        threads: 2,
        beat: Duration::from_millis(50),
        dead_after: Duration::from_secs(2),
        mesh_timeout: Duration::from_secs(3),
        alone_after: Duration::ZERO,
        ..Settings::default()
    }
}

/// A formation as a member saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) epoch: Epoch,
    pub(crate) members: Vec<String>,
    pub(crate) reason: &'static str,
    /// Why it was lost, once nothing of it is left.
    pub(crate) ended: Option<Cause>,
}

/// A directory of manifests, and what gossip says.
#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
    pub(crate) gossip: watch::Sender<Arc<[Candidate]>>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().expect("directory"), gossip: watch::Sender::new(Vec::new().into()) }
    }

    pub(crate) fn manifests(&self) -> Manifests {
        Manifests::new(self.directory.path())
    }

    /// Waits until everybody's log is read further in an epoch not below this one, and recounts.
    pub(crate) fn verify_progress(&self, epoch: u64, members: &[&str]) {
        let before = self.manifests().newest();
        let has_moved = |member: &&str| {
            let newest = self.manifests().newest();
            newest.epoch >= epoch && newest.positions.get(*member) > before.positions.get(*member)
        };
        eventually("all logs are read", || members.iter().all(has_moved));
        self.manifests().newest().verify();
    }

    /// Starts a member that listens, and is known to gossip under an address of its own or a given one.
    pub(crate) fn member(&self, id: &str, incarnation: u64) -> Member {
        self.member_with(id, incarnation, settings(), |address| address)
    }

    pub(crate) fn member_with(
        &self,
        id: &str,
        incarnation: u64,
        settings: Settings,
        public: impl FnOnce(SocketAddr) -> SocketAddr,
    ) -> Member {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let address = public(listener.local_addr().expect("has an address"));
        let me = Candidate { id: id.to_owned(), incarnation, address, role: Role::Ingester };
        self.gossip.send_modify(|all| {
            let others = all.iter().filter(|candidate| candidate.id != id).cloned();
            *all = others.chain([me.clone()]).collect();
        });
        Member::start(self, settings, me, listener, self.gossip.subscribe())
    }

    /// Has gossip forget a member.
    pub(crate) fn forget(&self, id: &str) {
        self.gossip.send_modify(|all| *all = all.iter().filter(|candidate| candidate.id != id).cloned().collect());
    }
}

/// A process, as far as the mesh is concerned.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) candidate: Candidate,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) mischief: Mischief,
    pub(crate) stuck: Arc<AtomicBool>,
    pub(crate) registry: prometheus::Registry,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    pub(crate) fn start(
        site: &Site,
        settings: Settings,
        candidate: Candidate,
        listener: TcpListener,
        gossip: watch::Receiver<Arc<[Candidate]>>,
    ) -> Self {
        let (registry, manifests, mischief) = (prometheus::Registry::new(), site.manifests(), Mischief::default());
        let metrics = Metrics::new(&registry).expect("metrics");
        let newest = manifests.newest().epoch;
        let cluster =
            Arc::new(Cluster::start(settings, candidate.clone(), newest, listener, Peers::default(), gossip, metrics).expect("starts"));
        let (seen, stuck) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicBool>::default());
        let options = Options {
            patience: Duration::from_millis(300),
            when_stuck: {
                let stuck = Arc::clone(&stuck);
                Arc::new(move || stuck.store(true, Ordering::SeqCst))
            },
            ..Options::default()
        };
        let thread = {
            let (cluster, seen, mischief) = (Arc::clone(&cluster), Arc::clone(&seen), mischief.clone());
            thread::spawn(move || {
                while let Some(formation) = cluster.next() {
                    seen.lock().push(Seen {
                        epoch: formation.epoch.clone(),
                        members: formation.members.iter().map(|member| member.id.clone()).collect(),
                        reason: formation.reason,
                        ended: None,
                    });
                    match toy::run(formation, &manifests, &mischief, options.clone()) {
                        Ok(ended) => seen.lock().last_mut().expect("just seen").ended = Some(ended.cause),
                        Err(newer) => cluster.raise(newer),
                    }
                }
            })
        };
        Self { candidate, cluster, mischief, stuck, registry, seen, thread: Some(thread) }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// The formation that runs.
    pub(crate) fn current(&self) -> Option<Seen> {
        self.seen.lock().last().filter(|seen| seen.ended.is_none()).cloned()
    }

    /// Whether what runs is formed by these.
    pub(crate) fn runs(&self, members: &[&str]) -> bool {
        self.current().is_some_and(|seen| seen.members == members)
    }

    pub(crate) fn stop(&mut self) {
        self.cluster.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("member's thread does not panic");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.thread.is_some() && !thread::panicking() {
            self.stop();
        }
    }
}

/// Waits until these, and only these, run one epoch together, newer than a given one.
pub(crate) fn formed(members: &[&Member], after: u64) -> Epoch {
    let mut ids: Vec<&str> = members.iter().map(|member| member.candidate.id.as_str()).collect();
    ids.sort_unstable();
    let epoch = || members[0].current().filter(|seen| seen.epoch.counter > after).map(|seen| seen.epoch);
    let same = || {
        let epoch = epoch();
        epoch.is_some() && members.iter().all(|member| member.runs(&ids) && member.current().map(|seen| seen.epoch) == epoch)
    };
    eventually(&format!("{ids:?} form after {after}"), same);
    epoch().expect("just seen")
}

/// Stands before members' listeners and holds up what is blocked, as a network that is cut does: nothing closes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    blocked: Arc<Mutex<BTreeSet<(String, String)>>>,
    addresses: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
}

impl Network {
    /// Where others reach the member that listens at `address`.
    pub(crate) fn front(&self, to: &str, address: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let public = listener.local_addr().expect("has an address");
        self.addresses.lock().insert(to.to_owned(), public);
        let (network, to) = (self.clone(), to.to_owned());
        thread::spawn(move || {
            for incoming in listener.incoming() {
                let (network, to) = (network.clone(), to.clone());
                // Whatever fails here is a connection that fails.
                thread::spawn(move || incoming.ok().and_then(|incoming| network.carry(incoming, &to, address).ok()));
            }
        });
        public
    }

    pub(crate) fn block(&self, one: &str, other: &str) {
        let pairs = [(one.to_owned(), other.to_owned()), (other.to_owned(), one.to_owned())];
        self.blocked.lock().extend(pairs);
    }

    pub(crate) fn heal(&self) {
        self.blocked.lock().clear();
    }

    fn carry(&self, mut incoming: TcpStream, to: &str, address: SocketAddr) -> std::io::Result<()> {
        // The dialler says who it is.
        let mut hello = vec![0; 12];
        incoming.read_exact(&mut hello)?;
        let length = u32::from_be_bytes([hello[8], hello[9], hello[10], hello[11]]) as usize;
        hello.resize(12 + length, 0);
        incoming.read_exact(&mut hello[12..])?;
        let said: serde_json::Value = serde_json::from_slice(&hello[12..])?;
        let from = said["from"]["id"].as_str().unwrap_or_default().to_owned();
        let link = (from, to.to_owned());
        self.wait_open(&link);
        let mut outgoing = TcpStream::connect(address)?;
        outgoing.write_all(&hello)?;
        let (back_from, back_to) = (outgoing.try_clone()?, incoming.try_clone()?);
        let (network, back_link) = (self.clone(), link.clone());
        thread::spawn(move || network.copy(back_from, back_to, &back_link));
        self.copy(incoming, outgoing, &link);
        Ok(())
    }

    fn wait_open(&self, link: &(String, String)) {
        while self.blocked.lock().contains(link) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, link: &(String, String)) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            self.wait_open(link);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        self.wait_open(link);
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    }
}
