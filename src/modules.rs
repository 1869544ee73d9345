//! The modules of the target `all`, in the order of their dependencies: log, bucket, dataflow, queries, compactor, receivers; and those of
//! the target `compactor`: bucket, compactor.
//!
//! This is the only place that knows every crate. What each of them asks for is taken from the configuration and the sizes here and nowhere
//! else, so this file reads as the list of what is connected to what.

use std::{sync::Arc, time::Duration};

use crate::{
    app::{App, watch_overrides},
    config::{Backend, Config, Overrides},
    generator, queries,
    receivers::Receivers,
    recent::RecentData,
    service_graph,
};
use anyhow::Context as _;
use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::any,
};
use dataflow::{
    Components, Dataflow,
    generator::{Generator, Snapshots},
    manifest::ManifestStore,
};
use object_store::local::LocalFileSystem;
use prometheus::Registry;
use storage::{
    backend::{self, Store},
    block,
    blocklist::{self, Blocklist, Poller},
    cache::{self, Cache},
    clock::Clock,
    compactor::{self, Compactor},
    id::Tenant,
    ownership::Sole,
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
/// How long `flush_all_on_shutdown` may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(300);
/// Log kept on disk where the configuration says nothing.
const MAX_WAL_BYTES: u64 = 64 << 30;
/// Log records that may wait for the writer.
const WAL_QUEUE_BYTES: usize = 16 << 20;

/// Starts everything. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app);
    // Ports first: if one is taken, nothing should have begun.
    let receivers = Receivers::bind(app).await?;
    let wal = open_wal(app).await?;
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, false).await?;
    let snapshots = Snapshots::default();
    let service_graphs = service_graph::start(app, &snapshots)?;
    let dataflow = start_dataflow(app, &wal, &store, &blocklist, &snapshots).await?;
    generator::start_remote_write(app, &snapshots)?;
    compact(app, &store, &blocklist)?;
    let more = |app: &App, engine: &Arc<query::Engine>| {
        let flush = Router::new().route("/flush", any(flush)).with_state(Arc::clone(&dataflow));
        let prefix = &app.config.http_api_prefix;
        let api = service_graph::ROUTES.iter().chain(generator::API_ROUTES).map(|route| format!("{prefix}{route}"));
        let routes = api.chain(generator::ROUTES.iter().map(|&route| route.to_owned())).chain(["/flush".to_owned()]).collect();
        (flush.merge(generator::router(app, &snapshots, &dataflow, engine)).merge(service_graphs.router(prefix)), routes)
    };
    queries::start_in_one_process(app, store, blocklist, Arc::new(RecentData(Arc::clone(&dataflow))), more)?;
    receivers.serve(app, &wal)
}

/// Starts what the target `compactor` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_compactor(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app);
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, true).await?;
    compact(app, &store, &blocklist)?;
    // No API, rather than one that is not up yet.
    app.admin.serve_api(Router::new(), Vec::new());
    app.admin.serve_grpc(Routes::default());
    Ok(())
}

/// Starts what the target `query-frontend` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_query_frontend(app: &mut App) -> anyhow::Result<()> {
    reload_overrides(app);
    let store = open_bucket(app).await?;
    let blocklist = poll_bucket(app, &store, false).await?;
    queries::start_frontend(app, &store, blocklist)
}

/// Starts what the target `querier` has. Called once the HTTP server answers `/ready` with 503.
pub(crate) async fn start_querier(app: &mut App) -> anyhow::Result<()> {
    let store = open_bucket(app).await?;
    queries::start_querier(app, store)
}

fn reload_overrides(app: &mut App) {
    if let Some(period) = app.overrides.reload_period() {
        let overrides = Arc::clone(&app.overrides);
        app.spawn("overrides", async move |shutdown| watch_overrides(&overrides, period, shutdown).await);
    }
}

/// Compacts blocks and deletes old ones, unless it is disabled.
fn compact(app: &mut App, store: &Store, blocklist: &Blocklist) -> anyhow::Result<()> {
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
        // One that waits for the bucket, and one that works meanwhile.
        jobs: config.jobs.unwrap_or(threads.clamp(1, 2)),
        ..config.settings.clone()
    };
    let limits = Arc::new(TenantLimits(Arc::clone(&app.overrides)));
    let (store, blocklist, clock) = (store.clone(), blocklist.clone(), Arc::clone(&app.clock));
    // Without a ring every process owns everything, which costs work and nothing else.
    let compactor = Compactor::new(settings, store, blocklist, Arc::new(Sole), limits, clock, &app.registry)?;
    app.spawn("compactor", move |mut shutdown| async move {
        // On a thread of its own: choosing among many blocks takes its time.
        let runtime = tokio::runtime::Handle::current();
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
    let (wal, recovery) = tokio::task::spawn_blocking(move || Wal::open(settings, clock, &registry)).await??;
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
    if let Some(key) = &config.unavailable {
        anyhow::bail!("{key} is not available in this version of Rubato: caches are in the process and in memcached without TLS");
    }
    let settings = cache::Settings { local_bytes: app.sizes.cache_bytes / 2, ..config.settings.clone() };
    Ok(Cache::start(settings, Arc::clone(&app.clock), &app.registry)?)
}

/// Lists the blocks, and goes on doing so. Waits for the first list: without it, queries would silently miss blocks.
async fn poll_bucket(app: &mut App, store: &Store, skip_no_compact: bool) -> anyhow::Result<Blocklist> {
    let blocklist = Blocklist::new();
    let seed = u64::from(app.clock.now().subsec_nanos());
    let settings = blocklist::Settings { seed, skip_no_compact, ..app.config.storage.blocklist.clone() };
    let clock = Arc::clone(&app.clock);
    // One process of this target is the only one that there is.
    let poller = Poller::new(store.clone(), blocklist.clone(), settings, Arc::new(Sole), clock, &app.registry)?;
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

/// Starts the dataflow and waits until it has recovered.
async fn start_dataflow(
    app: &mut App,
    wal: &Wal,
    store: &Store,
    blocklist: &Blocklist,
    snapshots: &Snapshots,
) -> anyhow::Result<Arc<Dataflow>> {
    let config = Arc::clone(&app.config);
    let (ingester, sizes) = (&config.ingester, app.sizes);
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
        published_window: config.storage.blocklist.interval * 4,
        ..dataflow::Settings::default()
    };
    let components = Components {
        wal: wal.clone(),
        store: store.clone(),
        block_settings: Arc::new(block_settings(&config.storage.block)?),
        blocklist: blocklist.clone(),
        // Beside the log, since one is worth nothing without the other.
        manifests: ManifestStore::new(Arc::new(local(&config.storage.wal.dir)?), "manifest"),
        clock: Arc::clone(&app.clock),
        generator: Some(Generator { tenants: Arc::new(TenantLimits(Arc::clone(&app.overrides))), snapshots: snapshots.clone() }),
        runtime: tokio::runtime::Handle::current(),
    };
    let dataflow = Arc::new(Dataflow::start(settings, components, &app.registry)?);
    let (stopping, flush) = (Arc::clone(&dataflow), ingester.flush_all_on_shutdown);
    app.started("dataflow", move || async move {
        let flushed = async {
            if flush {
                tokio::time::timeout(FLUSH_DEADLINE, stopping.flush()).await.context("flush on shutdown: the bucket does not answer")??;
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
    tokio::time::timeout(RECOVERY_DEADLINE, recovered).await.context("the dataflow did not recover")?;
    let ready = Arc::clone(&dataflow);
    let check = move || if ready.is_running() { Ok(()) } else { Err("Ingester not ready: dataflow is re-forming".to_owned()) };
    app.admin.check_ready_by(vec![Box::new(check)]);
    Ok(dataflow)
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
            max_bytes_per_trace: limits.max_bytes_per_trace,
            max_attribute_bytes: usize::try_from(limits.max_attribute_bytes).unwrap_or(usize::MAX),
            retry_info_enabled: limits.retry_info_enabled,
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
