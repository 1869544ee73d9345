//! The dataflow as the rest of the process sees it: started, asked, flushed, stopped.
//!
//! A question about recent data is answered from three places, in the order in which data moves, so that nothing slips past:
//!
//! 1. the end of the log that the operators have not taken in yet, read from its files;
//! 2. the workers: live traces, traces on their way, batches, blocks not yet listed;
//! 3. (by the caller) the listed blocks.
//!
//! Each trace belongs to one worker, and a worker answers between two of its steps, so what it says is true of one moment: which parts it
//! holds, into which block each of them is going, and which blocks it has handed over lately. It is given the end of the log with the
//! question and leaves out what it has seen already, so that a span comes once, however far it moved since the end was read. With that a
//! caller can tell for every span whether a block that it knows holds it, and knows of every block that it may have to read.
//!
//! In a cluster each ingester answers for the traces that its own workers own, with the ends of all members' logs ([`Tails`]). Who has the
//! answers of all of them, in one generation, has everything: see [`Coverage`].

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use storage::{
    backend::Store,
    block,
    blocklist::Blocklist,
    clock::Clock,
    id::{BlockId, Tenant, TraceId},
    recent::{Coverage, RecentAnswer, RecentPart, RecentTrace},
    segment::Segment,
    tls::Peers,
    wal::{Wal, WalError},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc as queue, oneshot, watch},
};

use crate::{
    cluster::{self, Candidate, Cause, Cluster, Epoch, Formation, Member, Role},
    generation::{self, GenerationError, Host},
    generator::{
        self, Generator,
        explain::{self, Explained},
    },
    manifest::{ManifestError, ManifestStore},
    metrics::Metrics,
    records::{log_of, position_of},
    seat::Seat,
    settings::Settings,
    steward::{Order, Staff},
    tails::{Ends, MeshTails, TailQuestion, Tails},
    worker::{Request, Shared, Tail, WIRE},
};

/// What the dataflow works with.
#[derive(Clone, Debug)]
pub struct Components {
    /// Where spans come from; `None` for a process that takes none in.
    pub wal: Option<Wal>,
    /// Where blocks go.
    pub store: Store,
    /// How blocks are written.
    pub block_settings: Arc<block::Settings>,
    /// Where committed blocks are listed.
    pub blocklist: Blocklist,
    /// Where commits are recorded: beside the log of a process on its own, on the bucket in a cluster.
    pub manifests: ManifestStore,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The metrics-generator; `None` where nobody's metrics are generated.
    pub generator: Option<Generator>,
    /// Where uploads and commits run. Must outlive the dataflow and have more than one thread.
    pub runtime: Handle,
}

/// What a member of a cluster needs besides.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The generations in which it takes part, one after the other.
    pub formations: Arc<dyn Formations>,
    /// How it reaches the others' logs.
    pub tails: Arc<dyn Tails>,
}

/// How a member of a cluster meets the others: see [`Dataflow::join_mesh`].
#[derive(Debug)]
pub struct Mesh {
    /// The cluster's name, beats and deadlines. Alike in all members.
    pub settings: cluster::Settings,
    /// This process, as gossip tells the others of it.
    pub me: Candidate,
    /// Where the others reach it: bound to what [`Candidate::address`] says, or behind it.
    pub listener: TcpListener,
    /// How it and the others speak with each other. Alike in all members.
    pub peers: Peers,
    /// What gossip knows: everybody who says that they take part, reachable or not. It must not forget a process merely because it is
    /// silent.
    pub candidates: watch::Receiver<Arc<[Candidate]>>,
}

/// Where formations come from: a [`Cluster`].
pub trait Formations: fmt::Debug + Send + Sync {
    /// Waits for the next one; `None` after [`Self::stop`]. Nothing is left of the one before.
    fn next(&self) -> Option<Formation>;

    /// No generation up to this counter of an epoch can commit any more.
    fn raise(&self, counter: u64);

    /// Ends what is running, and the wait.
    fn stop(&self);
}

impl Formations for Cluster {
    fn next(&self) -> Option<Formation> {
        self.next()
    }

    fn raise(&self, counter: u64) {
        self.raise(counter);
    }

    fn stop(&self) {
        self.stop();
    }
}

/// Why a question was not answered. Ask again later.
#[derive(Debug, thiserror::Error)]
pub enum DataflowError {
    /// Between two generations for longer than a question may wait.
    #[error("dataflow is re-forming")]
    Reforming,
    /// It was shut down.
    #[error("dataflow is stopped")]
    Stopped,
    /// So much waits in the log that it cannot be held for one answer.
    #[error("{bytes} bytes wait in the write-ahead log, too many for one answer")]
    Backlog {
        /// How many.
        bytes: u64,
    },
    /// The end of the log cannot be read.
    #[error("end of the write-ahead log cannot be read")]
    Wal(#[from] WalError),
    /// The end of another member's log cannot be had.
    #[error("end of the write-ahead log of member \"{member}\" cannot be fetched")]
    Tail {
        /// Which.
        member: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be started.
    #[error("dataflow cannot be started")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How to reach the workers of the current generation.
#[derive(Debug, Default)]
pub(crate) struct Link {
    current: Mutex<Option<Connection>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) seat: Seat,
    /// In a cluster.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) members: Arc<[Member]>,
    pub(crate) staff: Staff,
    pub(crate) shared: Arc<Shared>,
    pub(crate) orders: queue::UnboundedSender<Order>,
}

impl Connection {
    /// Which part of all recent data this process answers for.
    fn coverage(&self) -> Coverage {
        let owners = |until: usize| (0..until).filter(|process| self.seat.feeds(*process)).count();
        let number = |processes: usize| u32::try_from(processes).unwrap_or(u32::MAX);
        let (index, processes) = (number(owners(self.seat.index)), number(owners(self.seat.processes())));
        self.epoch.as_ref().map_or(Coverage::ALONE, |epoch| Coverage { epoch: epoch.number(), index, processes })
    }
}

impl Link {
    pub(crate) fn connect(&self, connection: Connection) {
        *self.current.lock() = Some(connection);
    }

    pub(crate) fn disconnect(&self) {
        *self.current.lock() = None;
    }

    pub(crate) fn get(&self) -> Option<Connection> {
        self.current.lock().clone()
    }
}

/// The running dataflow. Dropping it without [`Dataflow::shutdown`] stops it, too, but doesn't wait.
#[derive(Debug)]
pub struct Dataflow {
    ends: Ends,
    membership: Option<Membership>,
    blocklist: Blocklist,
    generator: Option<Generator>,
    stopped: Arc<Stop>,
    manager: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Stop {
    flag: Arc<AtomicBool>,
    lock: Mutex<()>,
    changed: Condvar,
}

/// How long a question waits for a generation to form.
const REFORM_WAIT: Duration = Duration::from_secs(5);
/// Between a generation that failed and the next.
const REFORM_DELAY: Duration = Duration::from_millis(200);

impl Dataflow {
    /// Starts the dataflow of a process that is on its own; it recovers and begins to read the log on threads of its own.
    ///
    /// # Errors
    /// Metrics that are registered already, or no thread to be had.
    pub fn start(settings: Settings, components: Components, registry: &prometheus::Registry) -> Result<Self, DataflowError> {
        Self::run(settings, components, None, registry)
    }

    /// Starts the dataflow of a member of a cluster. It takes part in one formation after the other; all members must be alike in what they
    /// have a generator for, and in [`Settings`].
    ///
    /// # Errors
    /// Metrics that are registered already, or no thread to be had.
    pub fn join(
        settings: Settings,
        components: Components,
        membership: Membership,
        registry: &prometheus::Registry,
    ) -> Result<Self, DataflowError> {
        Self::run(settings, components, Some(membership), registry)
    }

    /// Starts the dataflow of a member of a cluster that meets the others over a mesh of its own. `mesh.settings.threads` and `wire` are
    /// the dataflow's to say and are set here. Other members' logs are read over the mesh, too, so there is nothing else to connect.
    ///
    /// # Errors
    /// Metrics that are registered already, no thread or socket to be had, or a name that is too long.
    pub async fn join_mesh(
        settings: Settings,
        components: Components,
        mesh: Mesh,
        registry: &prometheus::Registry,
    ) -> Result<Self, DataflowError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| DataflowError::Start(error);
        let metrics = cluster::Metrics::new(registry).map_err(|error| failed(Box::new(error)))?;
        // Without it the first epoch may be too low; then the bucket says so, and the next one is not.
        let newest = match components.manifests.load().await {
            Ok(manifest) => manifest.epoch.map_or(0, |epoch| epoch.counter),
            Err(error) => {
                tracing::warn!(error = %block::chain(&error), "newest manifest cannot be read, the cluster is joined without");
                0
            }
        };
        let Mesh { settings: of_mesh, me, listener, peers, candidates } = mesh;
        let of_mesh = cluster::Settings { threads: settings.workers.max(1), wire: WIRE, ..of_mesh };
        let cluster = Cluster::start(of_mesh, me, newest, listener, peers, candidates, metrics);
        let cluster = cluster.map_err(|error| failed(Box::new(error)))?;
        let cluster = Arc::new(cluster);
        let asking = cluster.asking();
        let membership = Membership { formations: Arc::clone(&cluster) as _, tails: Arc::new(MeshTails(cluster)) };
        let dataflow = Self::join(settings, components, membership, registry)?;
        // It ends with the mesh.
        let ends = dataflow.ends.clone();
        dataflow.ends.runtime.spawn(ends.answer_all(asking));
        Ok(dataflow)
    }

    fn run(
        settings: Settings,
        components: Components,
        membership: Option<Membership>,
        registry: &prometheus::Registry,
    ) -> Result<Self, DataflowError> {
        let metrics = Arc::new(Metrics::new(registry).map_err(|error| DataflowError::Start(Box::new(error)))?);
        let generator = components.generator.as_ref().map(|_| generator::metrics::Metrics::new(registry)).transpose();
        let generator = generator.map_err(|error| DataflowError::Start(Box::new(error)))?.map(Arc::new);
        let (link, stopped) = (Arc::new(Link::default()), Arc::new(Stop::default()));
        let (wal, runtime, shown) = (components.wal.clone(), components.runtime.clone(), components.generator.clone());
        let blocklist = components.blocklist.clone();
        let manager = {
            let (link, stop, membership) = (Arc::clone(&link), Arc::clone(&stopped), membership.clone());
            let host = Host { settings, components, metrics, generator_metrics: generator, link, stopped: Arc::clone(&stop.flag) };
            let life = Life { host, stop };
            thread::Builder::new()
                .name("dataflow".to_owned())
                .spawn(move || match membership {
                    Some(membership) => life.take_part(&*membership.formations),
                    None => life.alone(),
                })
                .map_err(|error| DataflowError::Start(Box::new(error)))?
        };
        let ends = Ends { link, wal, runtime };
        Ok(Self { ends, membership, blocklist, generator: shown, stopped, manager: Mutex::new(Some(manager)) })
    }

    /// Whether a generation is running.
    pub fn is_running(&self) -> bool {
        self.ends.link.get().is_some()
    }

    async fn connection(&self) -> Result<Connection, DataflowError> {
        let deadline = tokio::time::Instant::now() + REFORM_WAIT;
        loop {
            if self.stopped.flag.load(Ordering::Relaxed) {
                return Err(DataflowError::Stopped);
            }
            if let Some(connection) = self.ends.link.get() {
                return Ok(connection);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(DataflowError::Reforming);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything known of a trace that may not be in a listed block yet.
    ///
    /// # Errors
    /// No generation is running, or the log cannot be read.
    pub async fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, DataflowError> {
        let connection = self.connection().await?;
        let tail = self.tails(&connection, tenant, Some(trace_id)).await?;
        let ask = |reply| Request::Trace { tenant: tenant.clone(), trace_id, tail: Arc::clone(&tail), reply };
        self.combine(&connection, tenant, connection.staff.ask(ask).await)
    }

    /// All traces of a tenant that may not be in a listed block yet. A trace comes once.
    ///
    /// # Errors
    /// No generation is running, or the log cannot be read.
    pub async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, DataflowError> {
        let connection = self.connection().await?;
        let tail = self.tails(&connection, tenant, None).await?;
        let ask = |reply| Request::Traces { tenant: tenant.clone(), tail: Arc::clone(&tail), reply };
        self.combine(&connection, tenant, connection.staff.ask(ask).await)
    }

    /// Puts the answers of all workers together. Blocks whose objects have gone are not named.
    fn combine<T>(
        &self,
        connection: &Connection,
        tenant: &Tenant,
        answers: Option<Vec<RecentAnswer<Vec<T>>>>,
    ) -> Result<RecentAnswer<Vec<T>>, DataflowError> {
        let mut all = RecentAnswer { data: Vec::new(), published: Vec::new(), coverage: connection.coverage() };
        for answer in answers.ok_or(DataflowError::Reforming)? {
            all.data.extend(answer.data);
            all.published.extend(answer.published);
        }
        if !all.published.is_empty() {
            let listed = self.blocklist.stages(tenant);
            let live: HashSet<BlockId> = listed.live.iter().map(|meta| meta.block_id).collect();
            let is_there =
                |id: BlockId| live.contains(&id) || listed.compacted.binary_search_by_key(&id, |block| block.meta.block_id).is_ok();
            all.published.retain(|meta| is_there(meta.block_id));
        }
        Ok(all)
    }

    /// What the metrics-generator made of each span of a trace. `stored` is what blocks hold of it (see [`explain::segments`]): of spans
    /// that are no longer recent it is not known when they arrived. Empty where nothing is generated for anybody.
    ///
    /// # Errors
    /// No generation is running, or the log cannot be read.
    pub async fn explain(&self, tenant: &Tenant, trace_id: TraceId, stored: Vec<Arc<Segment>>) -> Result<Vec<Explained>, DataflowError> {
        let Some(generator) = &self.generator else { return Ok(Vec::new()) };
        let recent = self.trace(tenant, trace_id).await?.data;
        let mut recent: Vec<Arc<Segment>> = recent.into_iter().flat_map(|part| part.segments).collect();
        // Of copies, the first to arrive counts.
        recent.sort_by_key(|segment| segment.position);
        let ours = self.ends.wal.clone().map(|wal| (self.ends.link.get().map_or(0, |connection| connection.seat.index), wal));
        let arrivals = self.ends.runtime.spawn_blocking(move || {
            let with_arrival = |segment: Arc<Segment>| {
                let ours = ours.as_ref().filter(|(log, _)| *log == log_of(segment.position));
                let at = ours.map(|(_, wal)| arrival(wal, &segment)).transpose()?.flatten();
                Ok((segment, at))
            };
            recent.into_iter().map(with_arrival).collect::<Result<Vec<_>, WalError>>()
        });
        let mut segments = arrivals.await.map_err(|_| DataflowError::Stopped)??;
        segments.extend(stored.into_iter().map(|segment| (segment, None)));
        let settings = generator.tenants.settings(tenant).unwrap_or_default();
        Ok(explain::explain(&settings, &generator.snapshots.latest(), tenant, &segments))
    }

    /// The ends of all logs that the operators have not taken in, of traces that this process owns.
    async fn tails(&self, connection: &Connection, tenant: &Tenant, trace_id: Option<TraceId>) -> Result<Tail, DataflowError> {
        let owner = connection.seat.index;
        let ours = self.ends.end(connection, tenant, trace_id, owner);
        let (Some(Membership { tails, .. }), Some(epoch)) = (&self.membership, &connection.epoch) else { return Ok(ours.await?.into()) };
        let question = TailQuestion { epoch: epoch.clone(), tenant: tenant.clone(), trace_id, owner };
        let question = &question;
        let others = connection.members.iter().enumerate();
        let others = others.filter(|(index, member)| *index != owner && member.role == Role::Ingester).map(|(_, member)| async move {
            let fetched = tails.fetch(member, question).await;
            fetched.map_err(|source| DataflowError::Tail { member: member.id.clone(), source })
        });
        let (mut all, others) = futures::future::try_join(ours, futures::future::try_join_all(others)).await?;
        all.extend(others.into_iter().flatten().map(Arc::new));
        Ok(all.into())
    }

    /// The end of this process's log, for another member of its generation.
    ///
    /// # Errors
    /// This process is not in that generation, or the log cannot be read.
    pub async fn tail(&self, question: &TailQuestion) -> Result<Vec<Arc<Segment>>, DataflowError> {
        self.ends.tail(question).await
    }

    /// Cuts everything acknowledged so far into blocks, by all processes of the generation, and returns when all of it is committed.
    ///
    /// # Errors
    /// The generation ended meanwhile.
    pub async fn flush(&self) -> Result<(), DataflowError> {
        let connection = self.connection().await?;
        let (reply, answer) = oneshot::channel();
        connection.orders.send(Order::Flush(reply)).map_err(|_| DataflowError::Reforming)?;
        answer.await.map_err(|_| DataflowError::Reforming)
    }

    /// Stops all threads. What is not in a block stays in the log.
    pub async fn shutdown(&self) {
        self.stop();
        let (manager, membership) = (self.manager.lock().take(), self.membership.clone());
        let end = move || {
            if let Some(membership) = membership {
                membership.formations.stop();
            }
            // A manager that panicked has said so.
            let _ = manager.map(JoinHandle::join);
        };
        let _ = tokio::task::spawn_blocking(end).await;
    }

    fn stop(&self) {
        self.stopped.flag.store(true, Ordering::SeqCst);
        self.stopped.changed.notify_all();
        if let Some(connection) = self.ends.link.get() {
            connection.shared.lost.set(Cause::Stop);
        }
    }
}

impl Drop for Dataflow {
    fn drop(&mut self) {
        self.stop();
        // After a shutdown there is nothing left to stop.
        if let Some(membership) = self.membership.as_ref().filter(|_| self.manager.lock().is_some()) {
            membership.formations.stop();
        }
    }
}

/// When a segment's record was appended; `None` when the log has let go of it.
fn arrival(wal: &Wal, segment: &Segment) -> Result<Option<Duration>, WalError> {
    let mut records = Vec::new();
    let position = position_of(segment.position);
    wal.reader(position)?.read(1, &mut records)?;
    Ok(records.first().filter(|record| record.position == position).map(|record| record.at))
}

/// One generation after the other until stopped.
struct Life {
    host: Host,
    stop: Arc<Stop>,
}

impl Life {
    /// Each of this process only.
    fn alone(&self) {
        let mut reason = "start";
        let member = Member { id: String::new(), incarnation: 0, address: NOWHERE, role: Role::Ingester };
        while !self.stop.flag.load(Ordering::SeqCst) {
            let epoch = Epoch { counter: 0, leader: "".into() };
            let formation = Formation::alone(epoch, member.clone(), self.host.settings.workers.max(1));
            reason = self.one(formation, None, reason).map_or_else(|error| error.label(), |()| "restart");
            let mut lock = self.stop.lock.lock();
            if !self.stop.flag.load(Ordering::SeqCst) {
                self.stop.changed.wait_for(&mut lock, REFORM_DELAY);
            }
        }
    }

    /// Those that form.
    fn take_part(&self, formations: &dyn Formations) {
        while let Some(formation) = formations.next() {
            let (epoch, reason) = (formation.epoch.clone(), formation.reason);
            let ended = self.one(formation, Some(epoch), reason);
            if let Err(GenerationError::Manifest(ManifestError::Superseded { theirs: Some(theirs), .. })) = ended {
                formations.raise(theirs.counter);
            }
        }
    }

    fn one(&self, formation: Formation, epoch: Option<Epoch>, reason: &'static str) -> Result<(), GenerationError> {
        self.host.metrics.generations.with_label_values(&[reason]).inc();
        let ended = generation::run(&self.host, formation, epoch);
        match &ended {
            Ok(()) => {}
            // Members come and go.
            Err(error @ GenerationError::Lost(_)) => tracing::warn!(%error, "dataflow generation ended, the next one begins"),
            Err(error) => {
                let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(%error, cause, "dataflow generation ended, the next one begins");
            }
        }
        ended
    }
}

/// The address of a process that nobody connects to.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
