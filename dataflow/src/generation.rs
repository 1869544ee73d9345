//! A generation: one life of the dataflow, from a manifest to its end.
//!
//! A generation begins by reading the newest manifest: it publishes the blocks listed there once more, unless they were compacted or
//! deleted meanwhile, learns which spans they hold, and reads the log from where the manifest says. A block that cannot be read any more
//! is passed over: the block that it was compacted into has its spans, and those that the log brings again are copies, which queries drop.
//! It ends when it is told to, when a worker panics, when the committer finds that somebody else commits, or when a member of its
//! [`Formation`] is lost; then the next one begins in the same process. Nothing outlives a generation but the log, the bucket and the
//! blocklist.
//!
//! In a cluster the first process claims the manifest for the generation, and the others wait for that. So all of them begin from the
//! same one, and what was still on its way in the generation before can no longer be committed (see [`crate::manifest`]).

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{Either, select},
    stream,
};
use parking_lot::Mutex;
use storage::{
    block::{BlockError, Meta, Reader, chain},
    compactor::Publication,
    id::Tenant,
    wal::{AppendError, WalError},
};
use tokio::sync::{Semaphore, mpsc as queue};

use crate::{
    cluster::{self, Cause, Epoch, Formation, Lost, Member, StartError, panic_text},
    commit::{Committer, Keepers, Mailbox, Replicas, publish},
    feed::{Pace, ReaderThread},
    generator::{
        self,
        accumulate::Routes,
        checkpoint::{Keeper, Restored},
    },
    handle::{Components, Connection, Link},
    ledger::Ledger,
    letters::Post,
    manifest::{CommittedBlock, Manifest, ManifestError, Positions},
    metrics::Metrics,
    seat::Seat,
    settings::Settings,
    steward::{Books, Staff, Steward},
    tick::Ticks,
    upload::{Pool, Uploader},
    worker::{self, KnownSpans, Request, Shared, Source, Start},
};

/// Why a generation could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GenerationError {
    /// The manifest cannot be read or written.
    #[error("manifest")]
    Manifest(#[from] ManifestError),
    /// The log cannot be read.
    #[error("write-ahead log")]
    Wal(#[from] WalError),
    /// A block that the manifest lists cannot be read.
    #[error("block that the manifest lists")]
    Block(#[source] Box<BlockError>),
    /// The log cannot go on where the manifest says that it ended.
    #[error("write-ahead log cannot be continued")]
    Append(#[from] AppendError),
    /// The operating system refused a thread or a socket.
    #[error("dataflow cannot start")]
    Start(#[from] StartError),
    /// It was told to end, by whatever was not planned.
    #[error("{0}")]
    Lost(Cause),
}

impl From<BlockError> for GenerationError {
    fn from(error: BlockError) -> Self {
        Self::Block(Box::new(error))
    }
}

impl GenerationError {
    /// A word for it, as metrics carry it.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "manifest",
            Self::Wal(_) | Self::Append(_) => "wal",
            Self::Block(_) => "block",
            Self::Start(_) => "start_failed",
            Self::Lost(cause) => cause.label(),
        }
    }
}

/// How soon recovery sees that it is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Blocks whose span identities are read at the same time during recovery.
const RECOVERY_READS: usize = 4;

/// What a generation begins with.
struct Recovered {
    manifest: Manifest,
    known: Vec<KnownSpans>,
    restored: Restored,
}

/// What the generations of a process have in common.
pub(crate) struct Host {
    pub(crate) settings: Settings,
    pub(crate) components: Components,
    pub(crate) metrics: Arc<Metrics>,
    /// Where there is a generator.
    pub(crate) generator_metrics: Option<Arc<generator::metrics::Metrics>>,
    /// Where the workers of the current one are to be found.
    pub(crate) link: Arc<Link>,
    /// No more generations are wanted.
    pub(crate) stopped: Arc<AtomicBool>,
}

/// Runs one generation to its end. `Ok` when it was told to stop. `epoch` is its name in a cluster.
pub(crate) fn run(host: &Host, formation: Formation, epoch: Option<Epoch>) -> Result<(), GenerationError> {
    let Host { settings, components, metrics, generator_metrics, link, stopped } = host;
    let runtime = components.runtime.clone();
    let ticks = Ticks::new(settings.tick);
    let spanning = |duration| ticks.spanning(duration);
    let roles = formation.members.iter().map(|member| member.role).collect();
    let seat = Seat { index: formation.index, threads: formation.threads, roles };
    let (workers, lost) = (seat.threads, formation.lost.clone());
    let members: Arc<[Member]> = formation.members.as_slice().into();
    let keeper = components.generator.as_ref().zip(generator_metrics.as_ref()).map(|(generator, metrics)| Keeper {
        snapshots: generator.snapshots.clone(),
        metrics: Arc::clone(metrics),
        ticks,
        // For as long as a copy would be recognised: while its trace is live, and the window after that.
        window: spanning(settings.trace_live_period) + spanning(settings.trace_idle_period) + spanning(settings.duplicate_window),
    });
    // Recovery waits for the bucket and for others, perhaps for ever; whoever wants to stop should not have to.
    let recovery = async {
        let began = async {
            let manifest = match &epoch {
                None => components.manifests.load().await?,
                Some(epoch) if seat.index == 0 => components.manifests.claim(epoch, ticks.at(components.clock.now())).await?,
                Some(epoch) => components.manifests.claimed(epoch).await?,
            };
            recover(components, metrics, keeper.as_ref(), manifest).await
        };
        match select(pin!(began), pin!(until(stopped, &lost))).await {
            Either::Left((recovered, _)) => Some(recovered),
            Either::Right(_) => None,
        }
    };
    let Some(recovered) = runtime.block_on(recovery) else { return ended(&lost) };
    let Recovered { manifest, known, restored } = recovered?;
    let now = ticks.at(components.clock.now());
    let pace = match &epoch {
        None => Pace::Own { start: now },
        Some(_) => Pace::common(manifest.tick + 1, manifest.began, now, settings.window),
    };
    let start_tick = pace.start();
    let replicas = match &epoch {
        None => Replicas::default(),
        Some(_) => Replicas { earlier: settings.window, later: spanning(settings.duplicate_window) },
    };
    let shared = Arc::new(Shared {
        lost: lost.clone(),
        held: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        pressure: AtomicBool::new(false),
        applied: Mutex::default(),
        replayed: AtomicUsize::new(0),
        full: (0..seat.processes()).map(|_| AtomicBool::new(false)).collect(),
    });
    let wal = components.wal.clone().filter(|_| seat.feeds(seat.index));
    let source = match &wal {
        Some(wal) => {
            let Positions { held, counted } = manifest.positions.get(&wal.id()).copied().unwrap_or_default();
            // After a power loss a log that does not fsync may end before what was committed from it: positions are never used again.
            runtime.block_on(wal.advance_to(held))?;
            let replay_to = *wal.head().borrow();
            let reader = wal.reader(held)?;
            let from = reader.position();
            *shared.applied.lock() = from;
            let reader = ReaderThread {
                wal: wal.clone(),
                reader,
                ticks,
                clock: Arc::clone(&components.clock),
                runtime: runtime.clone(),
                lost: lost.clone(),
                metrics: Arc::clone(metrics),
                log: seat.index,
                counted,
                seat: seat.clone(),
            };
            Some((reader, from, replay_to))
        }
        None => None,
    };
    let mailbox = Arc::new(Mailbox::default());
    let pool = Pool {
        store: components.store.clone(),
        settings: Arc::clone(&components.block_settings),
        encoders: Arc::new(Semaphore::new(settings.encoders.max(1))),
        runtime: runtime.clone(),
        clock: Arc::clone(&components.clock),
        metrics: Arc::clone(metrics),
    };
    let (sequence, tick) = (manifest.sequence, manifest.tick);
    let ledger = Arc::new(Ledger::default());
    let generator = components.generator.as_ref().zip(generator_metrics.as_ref()).map(|(generator, metrics)| worker::GeneratorStart {
        tenants: Arc::clone(&generator.tenants),
        metrics: Arc::clone(metrics),
        routes: Routes::new(Arc::clone(&generator.tenants), seat.series_workers()),
        restored: Arc::new(restored),
        ledger: Arc::clone(&ledger),
    });
    let recovered = manifest.generator.is_some().then_some(tick);
    if let (Some(keeper), Some(generator)) = (keeper.as_ref().filter(|_| recovered.is_some()), &generator) {
        let (mut routes, ours) = (generator.routes.clone(), seat.workers(seat.index));
        let series = generator.restored.contents.series.iter();
        let ours = series.filter(|there| ours.contains(&usize::try_from(routes.of(&there.series)).unwrap_or(usize::MAX)));
        keeper.publish(sequence, tick, Some(tick), ours);
    }
    let generators: Vec<_> = (0..workers).map(|_| Mutex::new(generator.clone())).collect();
    drop(generator);
    let known: Vec<_> = std::iter::repeat_n(Arc::new(known), workers).map(|known| Mutex::new(Some(known))).collect();
    let published = Mutex::new(Some(published_lately(components, settings)));

    // Each worker takes its end of its queues when its thread runs.
    let (request_senders, request_receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel::<Request>()).unzip();
    let receivers: Vec<_> = request_receivers.into_iter().map(|receiver| Mutex::new(Some(receiver))).collect();
    let (orders, ordered) = queue::unbounded_channel();
    let source = Mutex::new(source);
    let reader_thread = Arc::new(Mutex::new(None));
    let closure = {
        let (settings, shared, metrics, mailbox) = (settings.clone(), Arc::clone(&shared), Arc::clone(metrics), Arc::clone(&mailbox));
        let (wal, clock, seat) = (wal.clone(), Arc::clone(&components.clock), seat.clone());
        let (reader_thread, orders) = (Arc::clone(&reader_thread), orders.clone());
        move |worker: &mut timely::worker::Worker| -> Result<(), String> {
            let local = worker.index() - seat.workers(seat.index).start;
            let is_first = local == 0;
            let requests = receivers[local].lock().take().ok_or("worker started twice")?;
            let (results, uploads) = mpsc::channel();
            let source = match (source.lock().take_if(|_| is_first), &wal) {
                (Some((reader, from, replay_to)), Some(wal)) => {
                    let (batches, handle) = reader.spawn(thread::current()).map_err(|error| error.to_string())?;
                    *reader_thread.lock() = Some(handle);
                    Some(Source { batches, from, replay_to, pace, wal: wal.clone(), clock: Arc::clone(&clock) })
                }
                _ => None,
            };
            let start = Start {
                seat: seat.clone(),
                settings: settings.clone(),
                shared: Arc::clone(&shared),
                metrics: Arc::clone(&metrics),
                requests,
                uploads,
                uploader: Uploader::new(pool.clone(), results, thread::current()),
                known: known[local].lock().take().unwrap_or_default(),
                generator: generators[local].lock().take(),
                published: published.lock().take_if(|_| is_first).unwrap_or_default(),
                start_tick,
                replicas,
                source,
                orders: is_first.then(|| orders.clone()),
                mailbox: (worker.index() == 0).then(|| Arc::clone(&mailbox)),
            };
            worker::run(worker, start)
        }
    };
    let failed = lost.clone();
    let work = move |worker: &mut timely::worker::Worker| {
        if let Err(error) = closure(worker) {
            failed.set(Cause::Failed { error });
        }
    };
    let running = cluster::start(formation, cluster::Options::default(), work)?;
    let staff = Staff { senders: request_senders, threads: running.threads() };
    let post = Post { index: seat.index, processes: seat.processes(), staff: staff.clone() };

    // The committer is the only writer of manifests of this generation.
    let (answers, answered) = queue::unbounded_channel();
    let window = keeper.as_ref().map(|keeper| keeper.window);
    let committer = (seat.index == 0).then(|| Committer {
        manifests: components.manifests.clone(),
        store: components.store.clone(),
        metrics: Arc::clone(metrics),
        commit_interval: settings.commit_interval,
        absent: spanning(settings.absent_log_window),
        keepers: window.map(|window| Keepers { answers: answered, window }),
        post: post.clone(),
    });
    let commit_lost = lost.clone();
    let commit_task = committer.map(|committer| {
        runtime.spawn(async move {
            let ended = AssertUnwindSafe(committer.run(manifest, &mailbox)).catch_unwind().await;
            let error = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic_text(panic.as_ref()),
            };
            tracing::error!(error, "commit failed, the generation ends");
            commit_lost.set(Cause::Failed { error });
        })
    });
    let steward = Steward {
        post,
        staff: staff.clone(),
        shared: Arc::clone(&shared),
        wal,
        blocklist: components.blocklist.clone(),
        books: keeper.map(|keeper| Books { keeper, recovered, ledger, manifests: components.manifests.clone() }),
        answers: Some(answers),
    };
    let steward_task = runtime.spawn(steward.run(ordered));

    link.connect(Connection { seat: seat.clone(), epoch, members, staff, shared, orders });
    if stopped.load(Ordering::SeqCst) {
        // Told to stop before there was a connection to tell it through.
        lost.set(Cause::Stop);
    }
    tracing::info!(workers, processes = seat.processes(), index = seat.index, start_tick, "dataflow generation begins");
    running.join();
    link.disconnect();
    steward_task.abort();
    let _ = commit_task.as_ref().map(tokio::task::JoinHandle::abort);
    // It sees that the generation is lost or its queue gone; a reader that panicked has said so.
    let reader_thread = reader_thread.lock().take();
    let _ = reader_thread.map(JoinHandle::join);
    // An aborted task may be in the middle of a put; wait until it is not, so that the next generation reads what it wrote.
    let _ = runtime.block_on(steward_task);
    if let Some(commit_task) = commit_task {
        let _ = runtime.block_on(commit_task);
    }
    ended(&lost)
}

/// What the end of a generation is for whoever runs it.
fn ended(lost: &Lost) -> Result<(), GenerationError> {
    match lost.cause() {
        None | Some(Cause::Stop) => Ok(()),
        Some(cause) => Err(GenerationError::Lost(cause)),
    }
}

/// The listed blocks that generations before, of this process or another, may have committed so lately that others have not heard of them.
fn published_lately(components: &Components, settings: &Settings) -> Vec<Arc<Meta>> {
    let since = components.clock.now().saturating_sub(settings.published_window).as_secs();
    let is_late = |meta: &Arc<Meta>| meta.created_at.is_some_and(|at| u64::try_from(at).is_ok_and(|at| at >= since));
    let blocks = |tenant: Tenant| components.blocklist.blocks(&tenant).iter().filter(|meta| is_late(meta)).cloned().collect::<Vec<_>>();
    components.blocklist.tenants().into_iter().flat_map(blocks).collect()
}

/// Returns when the process stops or the generation is lost before it has begun.
async fn until(stopped: &AtomicBool, lost: &Lost) {
    while !stopped.load(Ordering::SeqCst) && !lost.is_set() {
        tokio::time::sleep(STOP_POLL).await;
    }
}

/// Publishes what the manifest lists, and learns which spans need not be stored again.
async fn recover(
    components: &Components,
    metrics: &Metrics,
    keeper: Option<&Keeper>,
    manifest: Manifest,
) -> Result<Recovered, GenerationError> {
    let restored = match keeper {
        Some(keeper) => keeper.restore(&components.manifests, &manifest).await?,
        None => Restored::default(),
    };
    let mut readable = Vec::new();
    for block in &manifest.blocks {
        match publish(&components.store, block).await {
            Publication::Live => {
                components.blocklist.add(block.meta.clone());
                readable.push(block.clone());
            }
            Publication::Compacted => readable.push(block.clone()),
            Publication::Gone => metrics.skip_block(&block.meta, "gone", "its objects are not in the bucket"),
        }
    }
    let known = stream::iter(readable)
        .map(|block| known_spans(components, metrics, &manifest, block))
        .buffer_unordered(RECOVERY_READS)
        .try_concat()
        .await?;
    Ok(Recovered { manifest, known, restored })
}

async fn known_spans(
    components: &Components,
    metrics: &Metrics,
    manifest: &Manifest,
    block: CommittedBlock,
) -> Result<Vec<KnownSpans>, GenerationError> {
    // Of a log that is not here nobody knows how much of it is left.
    let ours = components.wal.as_ref().map(|wal| (wal.id(), wal.tail()));
    let may_come_again = manifest.epoch.is_some()
        || block.records.iter().any(|(wal, range)| ours.is_some_and(|(id, tail)| id == *wal && range.last >= tail));
    if !may_come_again {
        return Ok(Vec::new());
    }
    let positions = |wal| manifest.positions.get(wal).copied().unwrap_or_default();
    let is_counted = block.records.iter().all(|(wal, range)| range.last < positions(wal).counted);
    let tenant = block.meta.tenant_id.clone();
    let meta = Arc::new(block.meta);
    let keys = async { Reader::open(&components.store, Arc::clone(&meta)).await?.span_keys().await };
    let reason = match keys.await {
        Ok(keys) => {
            let known = |(trace_id, keys)| KnownSpans { tenant: tenant.clone(), trace_id, keys, is_counted };
            return Ok(keys.into_iter().map(known).collect());
        }
        // Reading it again would end the same way, and the log must not wait for it.
        Err(error @ BlockError::Corrupt { .. }) => ("corrupt", error),
        Err(error @ BlockError::Unsupported { .. }) => ("unsupported", error),
        Err(error) if is_gone(&error) => ("gone", error),
        Err(error) => return Err(error.into()),
    };
    metrics.skip_block(&meta, reason.0, &chain(&reason.1));
    Ok(Vec::new())
}

/// Whether an object of the block is not there.
fn is_gone(error: &BlockError) -> bool {
    matches!(error, BlockError::Store { source, .. } if matches!(source.source, object_store::Error::NotFound { .. }))
}
