//! The modules of each target, in the order of their dependencies; those of `all`: membership, log, bucket, dataflow, queries, compactor, receivers.
//!
//! This is the only place that knows every crate. What each of them asks for is taken from the configuration and the sizes here and nowhere
//! else, so this file reads as the list of what is connected to what.

use std::{sync::Arc, time::Duration};

use crate::{
    allocator,
    app::{App, watch_overrides},
    config::{Backend, Config, KvStore, Overrides},
    generator,
    membership::{Kind, Membership, Proposal},
    queries,
    receivers::Receivers,
    recent::RecentData,
    service_graph,
    usage::Usage,
    user_overrides, write_path,
};
use anyhow::Context as _;
use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::any,
};
use dataflow::{
    Components, Dataflow, DataflowError, Mesh,
    cluster::Role,
    generator::{Generator, Snapshots},
    manifest::ManifestStore,
};
use object_store::local::LocalFileSystem;
use prometheus::{IntCounterVec, Opts, Registry};
use storage::{
    backend::{self, Store},
    block,
    blocklist::{self, Blocklist, Poller},
    cache::{self, Cache},
    clock::Clock,
    compactor::{self, Compactor},
    id::Tenant,
    ownership::{Member, Ownership, Sole},
    tls::Peers,
    wal::{self, Wal},
};
use tonic::service::Routes;

/// OTLP bytes of cut traces that make a block, at most: blocks come small and often, which keeps memory low, and compaction makes them
/// large. A smaller `ingester.max_block_bytes`, or little memory, makes them smaller still.
const MAX_BATCH_BYTES: u64 = 24 << 20;
/// Bytes of spans that the dataflow holds, at most, however much memory there is: the log holds more than that for less.
const MAX_RESIDENT_BYTES: u64 = 256 << 20;
/// How long recovery may take before the process gives up.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(3600);
/// How long a member of a cluster waits at its start for the others.
const FORMATION_WAIT: Duration = Duration::from_secs(60);
/// How long `flush_all_on_shutdown` may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(300);
/// Log kept on disk where the configuration says nothing.
const MAX_WAL_BYTES: u64 = 64 << 30;
/// Log records that may wait for the writer.
const WAL_QUEUE_BYTES: usize = 16 << 20;

/// Starts everything. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    // Ports first: if one is taken, nothing should have begun.
    let receivers = Receivers::bind(app).await?;
    let rings = Kind::watched(&app.config);
    let membership = Membership::start(app, &rings).await?;
    let place = Membership::reserve(app, Kind::Ingester);
    for kind in [Kind::Generator, Kind::Compactor, Kind::Distributor] {
        join(app, &membership, kind)?;
    }
    let ownership = ownership(app, &membership);
    let wal = open_wal(app).await?;
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, false, &ownership).await?;
    let snapshots = Snapshots::default();
    let service_graphs = service_graph::start(app, &snapshots)?;
    let part = Part { membership: &membership, role: Role::Ingester, wal: Some(&wal) };
    let dataflow = start_dataflow(app, part, &store, &blocklist, &snapshots).await?;
    generator::start_remote_write(app, &snapshots)?;
    compact(app, &store, &blocklist, ownership)?;
    let usage = Usage::new(app)?;
    let more = |app: &App, engine: &Arc<query::Engine>| {
        let flush = Router::new().route("/flush", any(flush)).with_state(Arc::clone(&dataflow));
        let prefix = &app.config.http_api_prefix;
        let api = service_graph::ROUTES.iter().chain(generator::API_ROUTES).map(|route| format!("{prefix}{route}"));
        let routes =
            api.chain(generator::ROUTES.iter().map(|&route| route.to_owned())).chain(["/flush".to_owned()]).chain(usage.routes()).collect();
        (
            flush
                .merge(usage.router(app))
                .merge(generator::router(app, &snapshots, &dataflow, engine))
                .merge(service_graphs.router(prefix)),
            routes,
        )
    };
    // Where the ring is shared, others are pushed to and asked, too.
    let rings = membership.rings(Kind::Ingester).filter(|_| app.config.cluster.ingester.store == KvStore::Memberlist);
    let others = match &rings {
        Some(rings) => membership.ingester_addresses(app).map(|addresses| (addresses, rings.clone())),
        None => None,
    };
    let services = queries::start_in_one_process(app, &store, blocklist, Arc::new(RecentData(Arc::clone(&dataflow))), others, more)?;
    let ingester = write_path::ingester(app, &wal, rings.clone())?;
    let sink = match rings {
        Some(rings) => {
            let budget = ingest::Budget::for_pushes(write_path::budget_bytes(app)?, write_path::BUDGET_WAIT, &app.registry)?;
            let services = write_path::pusher(app, ingester, budget, services)?;
            app.admin.serve_grpc(services);
            ingest::Sink::Ring(write_path::replicator(app, rings)?)
        }
        None => {
            app.admin.serve_grpc(services);
            ingest::Sink::Local(ingester)
        }
    };
    // Whoever sees it in the ring may push.
    membership.join(app, place)?;
    let distributors = membership.healthy_distributors(app);
    let distributor = write_path::distributor(app, sink, distributors, &usage)?;
    receivers.serve(app, &distributor)
}

/// Starts what the target `compactor` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_compactor(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    let membership = Membership::start(app, &[Kind::Compactor]).await?;
    join(app, &membership, Kind::Compactor)?;
    let ownership = ownership(app, &membership);
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, true, &ownership).await?;
    compact(app, &store, &blocklist, ownership)?;
    // No API, rather than one that is not up yet.
    app.admin.serve_api(Router::new(), Vec::new());
    app.admin.serve_grpc(Routes::default());
    Ok(())
}

/// Starts what the target `query-frontend` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_query_frontend(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    Membership::start(app, &[]).await?;
    let store = open_bucket(app).await?;
    // Whoever compacts builds the lists; a frontend does where nobody else did.
    let blocklist = poll_bucket(app, &store, false, &sole()).await?;
    queries::start_frontend(app, &store, blocklist)
}

/// Starts what the target `querier` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_querier(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    let membership = Membership::start(app, &[]).await?;
    let ring = membership.ingester_addresses(app).zip(membership.rings(Kind::Ingester));
    let store = open_bucket(app).await?;
    // For those who do not say which blocks they mean: frontends of Tempo that look traces up.
    let blocklist = poll_bucket(app, &store, false, &sole()).await?;
    queries::start_querier(app, store, blocklist, ring)
}

/// Starts what the target `ingester` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_ingester(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    let membership = Membership::start(app, &[Kind::Ingester]).await?;
    let place = Membership::reserve(app, Kind::Ingester);
    let wal = open_wal(app).await?;
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, false, &sole()).await?;
    let snapshots = Snapshots::default();
    let part = Part { membership: &membership, role: Role::Ingester, wal: Some(&wal) };
    let dataflow = start_dataflow(app, part, &store, &blocklist, &snapshots).await?;
    // Of the series that its workers own: none, where there are metrics-generators.
    generator::start_remote_write(app, &snapshots)?;
    let flush = Router::new().route("/flush", any(flush)).with_state(Arc::clone(&dataflow));
    let services = queries::recent_services(app, store, blocklist, Arc::new(RecentData(dataflow)))?;
    let ingester = write_path::ingester(app, &wal, membership.rings(Kind::Ingester))?;
    let budget = ingest::Budget::new(write_path::budget_bytes(app)?, write_path::BUDGET_WAIT, &app.registry)?;
    let services = write_path::pusher(app, ingester, budget, services)?;
    app.admin.serve_grpc(services);
    app.admin.serve_api(flush, vec!["/flush".to_owned()]);
    // Last: whoever sees it in the ring may push.
    membership.join(app, place)?;
    Ok(())
}

/// Starts what the target `metrics-generator` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_metrics_generator(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    let membership = Membership::start(app, &[Kind::Generator]).await?;
    let place = Membership::reserve(app, Kind::Generator);
    let store = open_bucket(app).await?;
    let snapshots = Snapshots::default();
    let service_graphs = service_graph::start(app, &snapshots)?;
    let part = Part { membership: &membership, role: Role::Generator, wal: None };
    let dataflow = start_dataflow(app, part, &store, &Blocklist::new(), &snapshots).await?;
    generator::start_remote_write(app, &snapshots)?;
    let prefix = &app.config.http_api_prefix;
    let api = service_graph::ROUTES.iter().map(|route| format!("{prefix}{route}"));
    let routes = api.chain(generator::ROUTES.iter().map(|&route| route.to_owned())).collect();
    let router = generator::exposition_router(app, &snapshots).merge(service_graphs.router(prefix));
    app.admin.serve_api(router, routes);
    app.admin.serve_grpc(Routes::default());
    membership.join(app, place)?;
    // Held by its module.
    drop(dataflow);
    Ok(())
}

/// Starts what the target `distributor` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_distributor(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app).await?;
    let receivers = Receivers::bind(app).await?;
    let own: &[Kind] = if app.config.cluster.shares_rate_limits { &[Kind::Distributor] } else { &[] };
    let membership = Membership::start(app, own).await?;
    for kind in own {
        join(app, &membership, *kind)?;
    }
    let ingesters = membership.rings(Kind::Ingester);
    let ingesters = ingesters.context("a distributor finds ingesters by their ring")?;
    let replicator = write_path::replicator(app, ingesters)?;
    let distributors = membership.healthy_distributors(app);
    let usage = Usage::new(app)?;
    let distributor = write_path::distributor(app, ingest::Sink::Ring(replicator), distributors, &usage)?;
    app.admin.serve_api(usage.router(app), usage.routes());
    app.admin.serve_grpc(Routes::default());
    receivers.serve(app, &distributor)
}

/// Takes a place in a ring for as long as the process runs, if the ring is kept anywhere.
fn join(app: &mut App, membership: &Membership, kind: Kind) -> anyhow::Result<()> {
    if membership.rings(kind).is_some() {
        let place = Membership::reserve(app, kind);
        membership.join(app, place)?;
    }
    Ok(())
}

fn sole() -> Arc<dyn Ownership> {
    Arc::new(Sole)
}

/// Which of the compactors' work this process does: its share of the ring, or everything.
fn ownership(app: &App, membership: &Membership) -> Arc<dyn Ownership> {
    match membership.rings(Kind::Compactor) {
        Some(rings) => Arc::new(Member { rings, id: app.config.cluster.compactor.id.clone(), clock: Arc::clone(&app.clock) }),
        None => sole(),
    }
}

async fn reload_overrides(app: &mut App) -> anyhow::Result<()> {
    if let Some(period) = app.overrides.reload_period() {
        let overrides = Arc::clone(&app.overrides);
        app.spawn("overrides", async move |shutdown| watch_overrides(&overrides, period, shutdown).await);
    }
    user_overrides::start(app).await
}

/// Bytes below which the compactor has one job at a time.
const TWO_JOBS: u64 = 512 << 20;

/// Threads on which the compactor reads files and decodes what it needs at once.
const READERS: usize = 2;

/// Memory is given back at once while blocks are merged.
#[derive(Debug)]
struct Frugal;

impl compactor::Watcher for Frugal {
    fn merging(&self, any: bool) {
        allocator::give_back_at_once(any);
    }
}

/// Compacts blocks and deletes old ones, unless it is disabled.
fn compact(app: &mut App, store: &Store, blocklist: &Blocklist, ownership: Arc<dyn Ownership>) -> anyhow::Result<()> {
    let config = &app.config.compactor;
    if config.disabled {
        tracing::info!("compactor is disabled");
        return Ok(());
    }
    let threads = app.sizes.compactor_threads;
    let settings = compactor::Settings {
        block: block_settings(&app.config.storage.block)?,
        memory_bytes: usize::try_from(app.sizes.compactor_bytes)?,
        threads,
        // One that waits for the bucket, and one that works meanwhile, if there is memory for both.
        jobs: config.jobs.unwrap_or(if app.sizes.compactor_bytes < TWO_JOBS { 1 } else { threads.clamp(1, 2) }),
        ..config.settings.clone()
    };
    let limits = Arc::new(TenantLimits(Arc::clone(&app.overrides)));
    let (store, blocklist, clock) = (store.clone(), blocklist.clone(), Arc::clone(&app.clock));
    let compactor = Compactor::new(settings, store, blocklist, ownership, limits, clock, &app.registry)?.watched_by(Frugal);
    // Of its own: choosing among many blocks takes its time; and what many threads have read, each in memory of its own, stays resident.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(READERS).thread_name("compactor").enable_all().build()?;
    app.spawn("compactor", move |mut shutdown| async move {
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = compactor.run() => {}
                    () = shutdown.wait() => {}
                }
            });
        };
        tokio::task::spawn_blocking(work).await.context("compactor panicked")
    });
    Ok(())
}

/// Opens the log. It is closed after everything else has stopped.
async fn open_wal(app: &mut App) -> anyhow::Result<Wal> {
    let config = &app.config.storage.wal;
    let settings = wal::Settings {
        dir: config.dir.clone(),
        file_bytes: config.file_bytes,
        sync: config.sync,
        max_bytes: config.max_bytes.unwrap_or(MAX_WAL_BYTES),
        queue_bytes: WAL_QUEUE_BYTES,
    };
    let (clock, registry) = (Arc::clone(&app.clock), app.registry.clone());
    let options = Opts::new("tempo_ingester_replay_errors_total", "Parts of the log that could not be replayed.");
    let replay_errors = IntCounterVec::new(options, &["tenant"])?;
    registry.register(Box::new(replay_errors.clone()))?;
    // Whose the spans were, a damaged record doesn't say. There from the start, so that an alert sees it grow.
    let replay_errors = replay_errors.with_label_values(&[""]);
    let (wal, recovery) = tokio::task::spawn_blocking(move || Wal::open(settings, clock, &registry)).await??;
    replay_errors.inc_by(recovery.quarantined_records);
    tracing::info!(
        path = %app.config.storage.wal.dir.display(),
        tail = wal.tail().0,
        head = wal.head().borrow().0,
        torn_bytes = recovery.torn_bytes,
        quarantined_records = recovery.quarantined_records,
        "write-ahead log opened"
    );
    let closing = wal.clone();
    app.started("wal", move || async move {
        closing.close().await;
        Ok(())
    });
    Ok(wal)
}

/// The bucket that the configuration names. Call it once for a registry.
pub(crate) async fn open_store(config: &Config, registry: &Registry, clock: &dyn Clock) -> anyhow::Result<Store> {
    let Backend::Store(settings) = &config.storage.backend else { anyhow::bail!("no backend is configured") };
    // Processes that start together must not retry together.
    let now = clock.now();
    let seed = now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32) ^ u64::from(std::process::id());
    let components = backend::Components { registry, seed, env: &|name| std::env::var(name).ok() };
    backend::open(settings, components).await.with_context(|| format!("open {settings}"))
}

/// Opens the bucket, to be read through the caches. One whose settings are wrong stops the start; one that doesn't answer is waited for.
async fn open_bucket(app: &App) -> anyhow::Result<Store> {
    Ok(open_store(&app.config, &app.registry, app.clock.as_ref()).await?.with_cache(start_cache(app)?))
}

/// The caches that the bucket is read through.
fn start_cache(app: &App) -> anyhow::Result<Cache> {
    let config = &app.config.storage.cache;
    let settings = cache::Settings { local_bytes: app.sizes.cache_bytes / 2, ..config.settings.clone() };
    Ok(Cache::start(settings, Arc::clone(&app.clock), &app.registry)?)
}

/// Lists the blocks, and goes on doing so. Waits for the first list: without it, queries would silently miss blocks.
async fn poll_bucket(app: &mut App, store: &Store, skip_no_compact: bool, ownership: &Arc<dyn Ownership>) -> anyhow::Result<Blocklist> {
    let blocklist = Blocklist::new();
    let seed = u64::from(app.clock.now().subsec_nanos());
    let settings = blocklist::Settings { seed, skip_no_compact, ..app.config.storage.blocklist.clone() };
    let clock = Arc::clone(&app.clock);
    let poller = Poller::new(store.clone(), blocklist.clone(), settings, Arc::clone(ownership), clock, &app.registry)?;
    let polled = poller.first_poll(|why| app.waits("blocklist", why)).await;
    polled.with_context(|| format!("list the blocks of {}", app.config.storage.backend))?;
    app.spawn("blocklist", move |mut shutdown| async move {
        poller.run(shutdown.wait()).await;
        Ok(())
    });
    Ok(blocklist)
}

/// A folder as a store. Written with fsync: the log forgets what a manifest holds.
fn local(path: &std::path::Path) -> anyhow::Result<LocalFileSystem> {
    std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    Ok(LocalFileSystem::new_with_prefix(path)?.with_fsync(true))
}

/// What the dataflow of a process is about.
struct Part<'a> {
    membership: &'a Membership,
    role: Role,
    /// None for a process that takes no spans in.
    wal: Option<&'a Wal>,
}

/// How this process meets those with whom it runs one dataflow; none if it runs one of its own.
fn mesh(app: &App, membership: &Membership, role: Role) -> anyhow::Result<Option<Mesh>> {
    let Some(Proposal { own: me, all: candidates }) = membership.propose(app, role)? else { return Ok(None) };
    let cluster = &app.config.cluster;
    let listen = cluster.mesh.listen;
    let listener = std::net::TcpListener::bind(listen).with_context(|| format!("listen on {listen} for the dataflow"))?;
    tracing::info!(address = %me.address, id = me.id, role = ?me.role, "dataflow listens for other processes");
    let (label, alike) = (cluster.memberlist.rest.label.clone(), app.config.of_one_dataflow());
    let settings = dataflow::cluster::Settings { cluster: label, alike, ..dataflow::cluster::Settings::default() };
    let peers = Peers::new(cluster.mesh.tls.as_ref()).context("rubato.dataflow")?;
    Ok(Some(Mesh { settings, me, listener, peers, candidates }))
}

/// Starts the dataflow and waits until it has recovered.
async fn start_dataflow(
    app: &mut App,
    part: Part<'_>,
    store: &Store,
    blocklist: &Blocklist,
    snapshots: &Snapshots,
) -> anyhow::Result<Arc<Dataflow>> {
    let config = Arc::clone(&app.config);
    let (ingester, sizes) = (&config.ingester, app.sizes);
    let interval = config.storage.blocklist.interval;
    let settings = dataflow::Settings {
        workers: sizes.dataflow_workers,
        tick: config.dataflow.tick,
        trace_idle_period: ingester.trace_idle_period,
        trace_live_period: ingester.trace_live_period,
        max_block_bytes: usize::try_from(ingester.max_block_bytes.min(sizes.live_bytes / 4).min(MAX_BATCH_BYTES))?,
        max_block_duration: ingester.max_block_duration,
        resident_bytes: usize::try_from(sizes.live_bytes.min(MAX_RESIDENT_BYTES))?,
        checkpoint_interval: config.dataflow.checkpoint_interval,
        encoders: sizes.block_encoders,
        stale_duration: config.generator.stale_duration,
        // A list that another process polls may be older than one interval, if somebody else builds the index, but not than some.
        published_window: if interval.is_zero() { dataflow::Settings::default().published_window } else { interval * 4 },
        ..dataflow::Settings::default()
    };
    let mesh = mesh(app, part.membership, part.role)?;
    let alone = mesh.is_none();
    let manifests = if alone {
        // Beside the log, since one is worth nothing without the other.
        ManifestStore::new(Arc::new(local(&config.storage.wal.dir)?), "manifest")
    } else {
        // Whoever commits next must see it.
        let (bucket, folder) = store.dataflow_folder();
        ManifestStore::new(bucket, folder)
    };
    let components = Components {
        wal: part.wal.cloned(),
        store: store.clone(),
        block_settings: Arc::new(block_settings(&config.storage.block)?),
        blocklist: blocklist.clone(),
        manifests,
        clock: Arc::clone(&app.clock),
        generator: Some(Generator { tenants: Arc::new(TenantLimits(Arc::clone(&app.overrides))), snapshots: snapshots.clone() }),
        runtime: tokio::runtime::Handle::current(),
    };
    let dataflow = match mesh {
        Some(mesh) => Dataflow::join_mesh(settings, components, mesh, &app.registry).await?,
        None => Dataflow::start(settings, components, &app.registry)?,
    };
    let dataflow = Arc::new(dataflow);
    // Who has no log has nothing that is not in others'.
    let (stopping, flush) = (Arc::clone(&dataflow), ingester.flush_all_on_shutdown && part.wal.is_some());
    app.started("dataflow", move || async move {
        let flushed = async {
            if flush {
                let flushed = tokio::time::timeout(FLUSH_DEADLINE, flush_once_formed(&stopping)).await;
                flushed.context("flush on shutdown: the bucket or the others do not answer")??;
            }
            Ok(())
        };
        let outcome = flushed.await;
        // What was not flushed is in the log.
        stopping.shutdown().await;
        outcome
    });
    let recovered = async {
        while !dataflow.is_running() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if alone {
        tokio::time::timeout(RECOVERY_DEADLINE, recovered).await.context("the dataflow did not recover")?;
        let ready = Arc::clone(&dataflow);
        let check = move || if ready.is_running() { Ok(()) } else { Err("Ingester not ready: dataflow is re-forming".to_owned()) };
        app.admin.check_ready_by(vec![Box::new(check)]);
    } else if tokio::time::timeout(FORMATION_WAIT, recovered).await.is_err() {
        // Neither here nor later does a cluster without a majority stop ingest: the log takes what comes.
        tracing::warn!("the dataflow has not formed with the others yet, going on without");
    }
    Ok(dataflow)
}

/// Flushes, again where the generation ended meanwhile: others may be stopping too.
async fn flush_once_formed(dataflow: &Dataflow) -> Result<(), DataflowError> {
    loop {
        match dataflow.flush().await {
            Err(DataflowError::Reforming) => tokio::time::sleep(Duration::from_millis(100)).await,
            outcome => return outcome,
        }
    }
}

/// How blocks are written.
pub(crate) fn block_settings(config: &crate::config::Block) -> anyhow::Result<block::Settings> {
    let columns = config.dedicated_columns.iter().map(|column| block::DedicatedColumn {
        scope: column.scope.clone(),
        name: column.name.clone(),
        kind: column.kind.clone(),
        options: column.options.clone(),
    });
    Ok(block::Settings {
        version: config.version.parse()?,
        bloom_filter_false_positive: config.bloom_filter_false_positive,
        bloom_filter_shard_size_bytes: usize::try_from(config.bloom_filter_shard_bytes)?,
        row_group_size_bytes: usize::try_from(config.row_group_bytes)?,
        dedicated_columns: columns.collect(),
    })
}

/// `/flush`: everything acknowledged so far becomes blocks. Answers when they are committed, for all tenants whoever is named.
async fn flush(State(dataflow): State<Arc<Dataflow>>, Query(query): Query<FlushQuery>) -> (StatusCode, String) {
    if let Some(tenant) = query.tenant.as_deref().filter(|tenant| !tenant.is_empty())
        && let Err(error) = Tenant::new(tenant)
    {
        return (StatusCode::NOT_FOUND, format!("{error}\n"));
    }
    match dataflow.flush().await {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

#[derive(Debug, serde::Deserialize)]
struct FlushQuery {
    tenant: Option<String>,
}

/// The tenants' limits of the configuration, as the crates ask for them.
#[derive(Debug)]
pub(crate) struct TenantLimits(pub(crate) Arc<Overrides>);

impl ingest::Overrides for TenantLimits {
    fn limits(&self, tenant: &Tenant) -> Arc<ingest::Limits> {
        let limits = self.0.limits(tenant.as_str());
        Arc::new(ingest::Limits {
            rate_limit_bytes: limits.rate_limit_bytes,
            burst_size_bytes: limits.burst_size_bytes,
            max_traces_per_user: limits.max_traces_per_user,
            max_global_traces_per_user: limits.max_global_traces_per_user,
            tenant_shard_size: usize::try_from(limits.tenant_shard_size).unwrap_or(usize::MAX),
            max_bytes_per_trace: limits.max_bytes_per_trace,
            max_attribute_bytes: usize::try_from(limits.max_attribute_bytes).unwrap_or(usize::MAX),
            retry_info_enabled: limits.retry_info_enabled,
            cost_attribution: limits.cost_attribution.clone(),
        })
    }
}

impl query::Overrides for TenantLimits {
    fn limits(&self, tenant: &Tenant) -> query::Limits {
        let limits = self.0.limits(tenant.as_str());
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        query::Limits {
            max_bytes_per_trace: size(limits.max_bytes_per_trace),
            max_bytes_per_tag_values_query: size(limits.max_bytes_per_tag_values_query),
            max_blocks_per_tag_values_query: size(limits.max_blocks_per_tag_values_query),
            max_search_duration: limits.max_search_duration,
            max_metrics_duration: limits.max_metrics_duration,
            left_pad_trace_ids: limits.left_pad_trace_ids,
        }
    }
}

impl compactor::Overrides for TenantLimits {
    fn limits(&self, tenant: &Tenant) -> compactor::Limits {
        let limits = self.0.limits(tenant.as_str());
        let nonzero = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        compactor::Limits {
            disabled: limits.compaction_disabled,
            window: nonzero(limits.compaction_window),
            retention: nonzero(limits.block_retention),
            max_bytes_per_trace: usize::try_from(limits.max_bytes_per_trace).unwrap_or(usize::MAX),
        }
    }
}
