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

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use storage::{
    backend::Store,
    block::{self, Meta},
    blocklist::Blocklist,
    clock::Clock,
    id::{BlockId, Tenant, TraceId},
    otlp::{self, Walk},
    segment::Segment,
    wal::{Wal, WalError},
};
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    generation::{self, GenerationError},
    generator::{
        self, Generator,
        explain::{self, Explained},
    },
    manifest::ManifestStore,
    metrics::Metrics,
    settings::Settings,
    worker::{Request, Shared, Tail},
};

/// What the dataflow works with.
#[derive(Clone, Debug)]
pub struct Components {
    /// Where spans come from.
    pub wal: Wal,
    /// Where blocks go.
    pub store: Store,
    /// How blocks are written.
    pub block_settings: Arc<block::Settings>,
    /// Where committed blocks are listed.
    pub blocklist: Blocklist,
    /// Where commits are recorded.
    pub manifests: ManifestStore,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The metrics-generator; `None` where nobody's metrics are generated.
    pub generator: Option<Generator>,
    /// Where uploads and commits run. Must outlive the dataflow and have more than one thread.
    pub runtime: Handle,
}

/// Segments of one trace that share their fate.
#[derive(Clone, Debug)]
pub struct RecentPart {
    /// The block that they are going into, once that is decided. It may be listed already.
    pub going: Option<BlockId>,
    /// The segments; spans may repeat.
    pub segments: Vec<Arc<Segment>>,
}

/// A trace, as much of it as is recent.
#[derive(Clone, Debug)]
pub struct RecentTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its parts, at most one for each block and one for none.
    pub parts: Vec<RecentPart>,
}

/// What is recent of a tenant, as of one moment for each trace.
#[derive(Clone, Debug, Default)]
pub struct RecentAnswer<T> {
    /// The data.
    pub data: T,
    /// Blocks of the tenant that were recent data within [`Settings::published_window`].
    pub published: Vec<Arc<Meta>>,
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
struct Connection {
    senders: Vec<mpsc::Sender<Request>>,
    threads: Vec<Thread>,
    shared: Arc<Shared>,
}

impl Link {
    pub(crate) fn connect(&self, senders: Vec<mpsc::Sender<Request>>, threads: Vec<Thread>, shared: Arc<Shared>) {
        *self.current.lock() = Some(Connection { senders, threads, shared });
    }

    pub(crate) fn disconnect(&self) {
        *self.current.lock() = None;
    }

    fn get(&self) -> Option<Connection> {
        self.current.lock().clone()
    }
}

impl Connection {
    fn wake(&self) {
        self.threads.iter().for_each(Thread::unpark);
    }

    /// Asks every worker; `None` if the generation ends meanwhile.
    async fn ask<T>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) -> Option<Vec<T>> {
        let mut replies = Vec::with_capacity(self.senders.len());
        for sender in &self.senders {
            let (reply, answer) = oneshot::channel();
            sender.send(request(reply)).ok()?;
            replies.push(answer);
        }
        self.wake();
        futures::future::try_join_all(replies).await.ok()
    }
}

/// The running dataflow. Dropping it without [`Dataflow::shutdown`] stops it, too, but doesn't wait.
#[derive(Debug)]
pub struct Dataflow {
    link: Arc<Link>,
    wal: Wal,
    blocklist: Blocklist,
    runtime: Handle,
    generator: Option<Generator>,
    stopped: Arc<Stop>,
    manager: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Stop {
    flag: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

/// Records that the end of the log may add to one answer, in bytes. More than this waits only while the bucket is away or a long log is
/// read again.
const MAX_TAIL_BYTES: usize = 256 << 20;
/// How long a question waits for a generation to form.
const REFORM_WAIT: Duration = Duration::from_secs(5);
/// Between a generation that failed and the next.
const REFORM_DELAY: Duration = Duration::from_millis(200);

impl Dataflow {
    /// Starts the dataflow; it recovers and begins to read the log on threads of its own.
    ///
    /// # Errors
    /// Metrics that are registered already, or no thread to be had.
    pub fn start(settings: Settings, components: Components, registry: &prometheus::Registry) -> Result<Self, DataflowError> {
        let metrics = Arc::new(Metrics::new(registry).map_err(|error| DataflowError::Start(Box::new(error)))?);
        let generator = components.generator.as_ref().map(|_| generator::metrics::Metrics::new(registry)).transpose();
        let generator = generator.map_err(|error| DataflowError::Start(Box::new(error)))?.map(Arc::new);
        let (link, stopped) = (Arc::new(Link::default()), Arc::new(Stop::default()));
        let (wal, runtime, shown) = (components.wal.clone(), components.runtime.clone(), components.generator.clone());
        let blocklist = components.blocklist.clone();
        let manager = {
            let (link, stopped) = (Arc::clone(&link), Arc::clone(&stopped));
            thread::Builder::new()
                .name("dataflow".to_owned())
                .spawn(move || manage(&settings, &components, &metrics, generator.as_ref(), &link, &stopped))
                .map_err(|error| DataflowError::Start(Box::new(error)))?
        };
        Ok(Self { link, wal, blocklist, runtime, generator: shown, stopped, manager: Mutex::new(Some(manager)) })
    }

    /// Whether a generation is running.
    pub fn is_running(&self) -> bool {
        self.link.get().is_some()
    }

    async fn connection(&self) -> Result<Connection, DataflowError> {
        let deadline = tokio::time::Instant::now() + REFORM_WAIT;
        loop {
            if self.stopped.flag.load(Ordering::Relaxed) {
                return Err(DataflowError::Stopped);
            }
            if let Some(connection) = self.link.get() {
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
        let tail = self.tail(&connection, tenant, move |segment| segment.trace_id == trace_id).await?;
        let ask = |reply| Request::Trace { tenant: tenant.clone(), trace_id, tail: Arc::clone(&tail), reply };
        self.join(tenant, connection.ask(ask).await)
    }

    /// All traces of a tenant that may not be in a listed block yet. A trace comes once.
    ///
    /// # Errors
    /// No generation is running, or the log cannot be read.
    pub async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, DataflowError> {
        let connection = self.connection().await?;
        let tail = self.tail(&connection, tenant, |_| true).await?;
        let ask = |reply| Request::Traces { tenant: tenant.clone(), tail: Arc::clone(&tail), reply };
        self.join(tenant, connection.ask(ask).await)
    }

    /// Puts the answers of all workers together. Blocks whose objects have gone are not named.
    fn join<T>(&self, tenant: &Tenant, answers: Option<Vec<RecentAnswer<Vec<T>>>>) -> Result<RecentAnswer<Vec<T>>, DataflowError> {
        let mut all = RecentAnswer { data: Vec::new(), published: Vec::new() };
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
        let wal = self.wal.clone();
        let arrivals = self.runtime.spawn_blocking(move || {
            let with_arrival = |segment: Arc<Segment>| Ok((Arc::clone(&segment), arrival(&wal, &segment)?));
            recent.into_iter().map(with_arrival).collect::<Result<Vec<_>, WalError>>()
        });
        let mut segments = arrivals.await.map_err(|_| DataflowError::Stopped)??;
        segments.extend(stored.into_iter().map(|segment| (segment, None)));
        let settings = generator.tenants.settings(tenant).unwrap_or_default();
        Ok(explain::explain(&settings, &generator.snapshots.latest(), tenant, &segments))
    }

    /// The end of the log that the operators have not taken in.
    async fn tail(
        &self,
        connection: &Connection,
        tenant: &Tenant,
        wanted: impl Fn(&Segment) -> bool + Send + 'static,
    ) -> Result<Tail, DataflowError> {
        let from = connection.shared.applied();
        let head = *self.wal.head().borrow();
        if from >= head {
            return Ok(Tail::default());
        }
        let (wal, tenant) = (self.wal.clone(), tenant.clone());
        let scan = self.runtime.spawn_blocking(move || -> Result<Tail, DataflowError> {
            let mut reader = wal.reader(from)?;
            let (mut found, mut bytes, mut records, mut walk) = (Vec::new(), 0, Vec::new(), Walk::default());
            while reader.position() < head {
                records.clear();
                reader.read(1 << 20, &mut records)?;
                if records.is_empty() {
                    break;
                }
                for record in records.iter().filter(|record| record.tenant == tenant) {
                    if otlp::index(&record.body, &mut walk).is_ok() {
                        let before = found.len();
                        let segments = Segment::split(&record.tenant, record.position, &record.body, &walk);
                        found.extend(segments.into_iter().filter(&wanted).map(Arc::new));
                        bytes += if found.len() > before { record.body.len() } else { 0 };
                        if bytes > MAX_TAIL_BYTES {
                            return Err(DataflowError::Backlog { bytes: head.0 - from.0 });
                        }
                    }
                }
            }
            Ok(found.into())
        });
        scan.await.map_err(|_| DataflowError::Stopped)?
    }

    /// Cuts everything acknowledged so far into blocks and returns when all of it is committed.
    ///
    /// # Errors
    /// The generation ended meanwhile.
    pub async fn flush(&self) -> Result<(), DataflowError> {
        let head = *self.wal.head().borrow();
        let connection = loop {
            let connection = self.connection().await?;
            if connection.shared.applied() >= head {
                break connection;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        connection.ask(|reply| Request::Flush { reply }).await.ok_or(DataflowError::Reforming)?;
        Ok(())
    }

    /// Stops all threads. What is not in a block stays in the log.
    pub async fn shutdown(&self) {
        self.stop();
        let manager = self.manager.lock().take();
        if let Some(manager) = manager {
            // A manager that panicked has said so.
            let _ = tokio::task::spawn_blocking(move || manager.join()).await;
        }
    }

    fn stop(&self) {
        self.stopped.flag.store(true, Ordering::SeqCst);
        self.stopped.changed.notify_all();
        if let Some(connection) = self.link.get() {
            connection.shared.stop.store(true, Ordering::SeqCst);
            connection.wake();
        }
    }
}

impl Drop for Dataflow {
    fn drop(&mut self) {
        self.stop();
    }
}

/// When a segment's record was appended; `None` when the log has let go of it.
fn arrival(wal: &Wal, segment: &Segment) -> Result<Option<Duration>, WalError> {
    let mut records = Vec::new();
    wal.reader(segment.position)?.read(1, &mut records)?;
    Ok(records.first().filter(|record| record.position == segment.position).map(|record| record.at))
}

/// One generation after the other until stopped.
fn manage(
    settings: &Settings,
    components: &Components,
    metrics: &Arc<Metrics>,
    generator: Option<&Arc<generator::metrics::Metrics>>,
    link: &Link,
    stopped: &Stop,
) {
    let mut reason = "start";
    while !stopped.flag.load(Ordering::SeqCst) {
        metrics.generations.with_label_values(&[reason]).inc();
        match generation::run(settings, components, metrics, generator, link, &stopped.flag) {
            Ok(()) => reason = "restart",
            Err(error) => {
                reason = match error {
                    GenerationError::Panic(_) => "panic",
                    GenerationError::Manifest(_) => "manifest",
                    GenerationError::Wal(_) => "wal",
                    GenerationError::Block(_) => "block",
                    GenerationError::Start(_) => "start_failed",
                };
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(%error, cause, "dataflow generation ended, the next one begins");
            }
        }
        let mut lock = stopped.lock.lock();
        if !stopped.flag.load(Ordering::SeqCst) {
            stopped.changed.wait_for(&mut lock, REFORM_DELAY);
        }
    }
}
