//! A generation: one life of the dataflow, from a manifest to its end.
//!
//! A generation begins by reading the newest manifest: it publishes the blocks listed there once more, unless they were compacted or
//! deleted meanwhile, learns which spans they hold, and reads the log from where the manifest says. A block that cannot be read any more
//! is passed over: the block that it was compacted into has its spans, and those that the log brings again are copies, which queries drop. It ends when it is told to, or when a worker panics or the committer finds that somebody
//! else commits; then the next one begins in the same process. Nothing outlives a generation but the log, the bucket and the blocklist.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle, Thread},
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
    id::{BlockId, Tenant},
    wal::{Position, WalError},
};
use timely::{CommunicationConfig, WorkerConfig};
use tokio::sync::Semaphore;

use crate::{
    commit::{Committer, Mailbox, publish},
    feed::ReaderThread,
    generator::{
        self,
        accumulate::Routes,
        checkpoint::{Keeper, Restored},
    },
    handle::{Components, Link},
    manifest::{CommittedBlock, Manifest, ManifestError, Positions},
    metrics::Metrics,
    settings::Settings,
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
    /// The operating system refused a thread, or timely refused to start.
    #[error("dataflow cannot start: {0}")]
    Start(String),
    /// A worker panicked.
    #[error("worker panicked: {0}")]
    Panic(String),
}

impl From<BlockError> for GenerationError {
    fn from(error: BlockError) -> Self {
        Self::Block(Box::new(error))
    }
}

/// How soon recovery sees that it is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Blocks whose span identities are read at the same time during recovery.
const RECOVERY_READS: usize = 4;

/// Runs one generation to its end. `Ok` when it was told to stop.
pub(crate) fn run(
    settings: &Settings,
    components: &Components,
    metrics: &Arc<Metrics>,
    generator_metrics: Option<&Arc<generator::metrics::Metrics>>,
    link: &Link,
    stopped: &AtomicBool,
) -> Result<(), GenerationError> {
    let runtime = components.runtime.clone();
    let ticks = Ticks::new(settings.tick);
    let spanning = |duration| ticks.spanning(duration);
    let keeper = components.generator.as_ref().zip(generator_metrics).map(|(generator, metrics)| Keeper {
        snapshots: generator.snapshots.clone(),
        metrics: Arc::clone(metrics),
        ticks,
        // For as long as a copy would be recognised: while its trace is live, and the window after that.
        window: spanning(settings.trace_live_period) + spanning(settings.trace_idle_period) + spanning(settings.duplicate_window),
    });
    // Recovery waits for the bucket, perhaps for ever; whoever wants to stop should not have to.
    let recovery = async {
        match select(pin!(recover(components, metrics, keeper.as_ref())), pin!(until(stopped))).await {
            Either::Left((recovered, _)) => Some(recovered),
            Either::Right(_) => None,
        }
    };
    let Some(recovered) = runtime.block_on(recovery) else { return Ok(()) };
    let (manifest, known, restored) = recovered?;
    let workers = settings.workers.max(1);
    let Positions { held, counted } = manifest.positions.get(&components.wal.id()).copied().unwrap_or_default();
    // After a power loss a log that does not fsync may end before what was committed from it: positions are never used again.
    runtime.block_on(components.wal.advance_to(held)).map_err(|error| GenerationError::Start(error.to_string()))?;
    let replay_to = *components.wal.head().borrow();
    let reader = components.wal.reader(held)?;
    let from = reader.position();
    let shared = Arc::new(Shared {
        stop: Arc::new(AtomicBool::new(false)),
        held: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        pressure: AtomicBool::new(false),
        applied: Mutex::new(from),
    });
    let mailbox = Arc::new(Mailbox::default());
    let pool = Pool {
        store: components.store.clone(),
        settings: Arc::clone(&components.block_settings),
        encoders: Arc::new(Semaphore::new(settings.encoders.max(1))),
        runtime: runtime.clone(),
        clock: Arc::clone(&components.clock),
        metrics: Arc::clone(metrics),
    };
    let generator = components.generator.as_ref().zip(generator_metrics).map(|(generator, metrics)| worker::GeneratorStart {
        tenants: Arc::clone(&generator.tenants),
        metrics: Arc::clone(metrics),
        routes: Routes::new(Arc::clone(&generator.tenants)),
        restored: Arc::new(restored),
    });
    let generators: Vec<_> = (0..workers).map(|_| Mutex::new(generator.clone())).collect();
    drop(generator);
    let known: Vec<_> = std::iter::repeat_n(Arc::new(known), workers).map(|known| Mutex::new(Some(known))).collect();
    let start_tick = ticks.at(components.clock.now());
    let published = Mutex::new(Some(published_lately(components, settings)));

    // Each worker takes its end of its queues when its thread runs, and tells us its thread so that it can be woken.
    let (request_senders, request_receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel::<Request>()).unzip();
    let receivers: Vec<_> = request_receivers.into_iter().map(|receiver| Mutex::new(Some(receiver))).collect();
    let (thread_sender, threads) = mpsc::channel::<(usize, Thread)>();
    let source = Mutex::new(Some(ReaderThread {
        wal: components.wal.clone(),
        reader,
        ticks,
        clock: Arc::clone(&components.clock),
        runtime: runtime.clone(),
        stop: Arc::clone(&shared.stop),
        metrics: Arc::clone(metrics),
    }));
    let failure = Arc::new(Mutex::new(None));
    let reader_thread = Arc::new(Mutex::new(None));
    let closure = {
        let (settings, shared, metrics, mailbox) = (settings.clone(), Arc::clone(&shared), Arc::clone(metrics), Arc::clone(&mailbox));
        let (wal, clock, failure) = (components.wal.clone(), Arc::clone(&components.clock), Arc::clone(&failure));
        let reader_thread = Arc::clone(&reader_thread);
        move |worker: &mut timely::worker::Worker| {
            let index = worker.index();
            let body = AssertUnwindSafe(|| -> Result<(), String> {
                let requests = receivers[index].lock().take().ok_or("worker started twice")?;
                thread_sender.send((index, thread::current())).map_err(|_| "generation is gone")?;
                let (results, uploads) = mpsc::channel();
                let source = source.lock().take_if(|_| index == 0);
                let source = match source {
                    Some(reader) => {
                        let (batches, handle) = reader.spawn(thread::current()).map_err(|error| error.to_string())?;
                        *reader_thread.lock() = Some(handle);
                        Some(Source { batches, from, wal: wal.clone(), clock: Arc::clone(&clock) })
                    }
                    None => None,
                };
                let start = Start {
                    settings: settings.clone(),
                    shared: Arc::clone(&shared),
                    metrics: Arc::clone(&metrics),
                    requests,
                    uploads,
                    uploader: Uploader::new(pool.clone(), results, thread::current()),
                    wal_id: wal.id(),
                    known: known[index].lock().take().unwrap_or_default(),
                    generator: generators[index].lock().take(),
                    published: published.lock().take_if(|_| index == 0).unwrap_or_default(),
                    replay_to,
                    counted,
                    start_tick,
                    source,
                    mailbox: (index == 0).then(|| Arc::clone(&mailbox)),
                };
                worker::run(worker, start)
            });
            let outcome = catch_unwind(body).unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
            if let Err(error) = outcome {
                tracing::error!(worker = index, error, "dataflow worker failed, the generation ends");
                failure.lock().get_or_insert(error);
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
            }
            shared.stop.store(true, Ordering::SeqCst);
        }
    };
    let (builders, others) = CommunicationConfig::Process(workers).try_build().map_err(GenerationError::Start)?;
    let guards = timely::execute::execute_from(builders, others, WorkerConfig::default(), closure).map_err(GenerationError::Start)?;
    let mut worker_threads: Vec<Option<Thread>> = vec![None; workers];
    for (index, thread) in threads.iter().take(workers) {
        worker_threads[index] = Some(thread);
    }
    let worker_threads: Vec<Thread> = worker_threads.into_iter().flatten().collect();
    let wake = {
        let threads = worker_threads.clone();
        move || threads.iter().for_each(Thread::unpark)
    };

    // The committer is the only writer of manifests of this generation.
    let committer = Committer {
        manifests: components.manifests.clone(),
        store: components.store.clone(),
        blocklist: components.blocklist.clone(),
        wal: components.wal.clone(),
        metrics: Arc::clone(metrics),
        commit_interval: settings.commit_interval,
        generator: keeper,
    };
    let commit_failed = Arc::clone(&failure);
    let (commit_stop, commit_senders, commit_wake) = (Arc::clone(&shared.stop), request_senders.clone(), wake.clone());
    let commit_task = runtime.spawn(async move {
        let committed = |ids: &[BlockId]| {
            let ids: Arc<[BlockId]> = ids.into();
            for sender in &commit_senders {
                // A worker that is gone needs no news.
                let _ = sender.send(Request::Committed(Arc::clone(&ids)));
            }
            commit_wake();
        };
        let ended = AssertUnwindSafe(committer.run(manifest, &mailbox, committed)).catch_unwind().await;
        let error = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_text(panic.as_ref()),
        };
        tracing::error!(error, "commit failed, the generation ends");
        commit_failed.lock().get_or_insert(error);
        commit_stop.store(true, Ordering::SeqCst);
    });

    link.connect(request_senders, worker_threads, Arc::clone(&shared));
    if stopped.load(Ordering::SeqCst) {
        // Told to stop before there was a connection to tell it through.
        shared.stop.store(true, Ordering::SeqCst);
        wake();
    }
    tracing::info!(workers, from = from.0, "dataflow generation begins");
    let results = guards.join();
    link.disconnect();
    shared.stop.store(true, Ordering::SeqCst);
    commit_task.abort();
    // It sees the stop flag or its queue gone; a reader that panicked has said so.
    let reader_thread = reader_thread.lock().take();
    let _ = reader_thread.map(JoinHandle::join);
    // The aborted task may be in the middle of a put; wait until it is not, so that the next generation reads what it wrote.
    let _ = runtime.block_on(commit_task);
    let failure = failure.lock().take();
    match failure.or_else(|| results.into_iter().find_map(Result::err)) {
        Some(error) => Err(GenerationError::Panic(error)),
        None => Ok(()),
    }
}

/// The listed blocks that generations before, of this process or another, may have committed so lately that others have not heard of them.
fn published_lately(components: &Components, settings: &Settings) -> Vec<Arc<Meta>> {
    let since = components.clock.now().saturating_sub(settings.published_window).as_secs();
    let is_late = |meta: &Arc<Meta>| meta.created_at.is_some_and(|at| u64::try_from(at).is_ok_and(|at| at >= since));
    let blocks = |tenant: Tenant| components.blocklist.blocks(&tenant).iter().filter(|meta| is_late(meta)).cloned().collect::<Vec<_>>();
    components.blocklist.tenants().into_iter().flat_map(blocks).collect()
}

/// Returns when the flag is set.
async fn until(stopped: &AtomicBool) {
    while !stopped.load(Ordering::SeqCst) {
        tokio::time::sleep(STOP_POLL).await;
    }
}

/// Reads the manifest, publishes what it lists, and learns which spans need not be stored again.
async fn recover(
    components: &Components,
    metrics: &Metrics,
    keeper: Option<&Keeper>,
) -> Result<(Manifest, Vec<KnownSpans>, Restored), GenerationError> {
    let manifest = components.manifests.load().await?;
    let restored = match keeper {
        Some(keeper) => keeper.restore(&components.manifests, &manifest).await?,
        None => Restored::default(),
    };
    let counted = manifest.positions.get(&components.wal.id()).map_or_else(Position::default, |positions| positions.counted);
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
        .map(|block| known_spans(components, metrics, counted, block))
        .buffer_unordered(RECOVERY_READS)
        .try_concat()
        .await?;
    Ok((manifest, known, restored))
}

async fn known_spans(
    components: &Components,
    metrics: &Metrics,
    counted: Position,
    block: CommittedBlock,
) -> Result<Vec<KnownSpans>, GenerationError> {
    let wal_id = components.wal.id();
    let Some(range) = block.records.get(&wal_id) else { return Ok(Vec::new()) };
    if range.last < components.wal.tail() {
        return Ok(Vec::new());
    }
    let tenant = block.meta.tenant_id.clone();
    let meta = Arc::new(block.meta);
    let keys = async { Reader::open(&components.store, Arc::clone(&meta)).await?.span_keys().await };
    let reason = match keys.await {
        Ok(keys) => {
            let is_counted = range.last < counted;
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

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "worker panicked".to_owned())
}
