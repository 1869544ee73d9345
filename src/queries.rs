//! The query path of a process: all of it in one, or the part of a query-frontend or a querier.
//!
//! ```text
//!  all             HTTP, gRPC ─► Engine ─► Frontend ─► workers here ─► Units ─► bucket, recent data of this process
//!                                              └─► queriers, if any connect           └─► rubato.Recent, tempopb.Querier
//!  query-frontend  HTTP, gRPC ─► Engine ─► Frontend ─► queriers
//!  querier         frontends ─► Workers ─► Units ─► bucket, and rubato.Recent of the processes that take spans in
//! ```

use std::{sync::Arc, time::Duration};

use axum::Router;
use prometheus::Registry;
use query::{
    Engine, Recent, RecentSource, Units,
    frontend::{Frontend, FrontendService},
    job::Runner,
    querier::{Addresses, Ingesters, RecentService, Workers, look_up},
};
use storage::{backend::Store, blocklist::Blocklist, cache::Role};
use tonic::service::{Routes, RoutesBuilder};

use crate::{app::App, modules::TenantLimits, process, user_overrides};

/// What an opened block keeps in memory at most: bloom shards and dictionaries, 1 MiB each.
const OPEN_BLOCK_BYTES: u64 = 2 << 20;

/// The whole path in the process that has the recent data. `more` is asked for routes beside the API, and their paths.
pub(crate) fn start_in_one_process(
    app: &mut App,
    store: Store,
    blocklist: Blocklist,
    recent: Arc<dyn Recent>,
    more: impl FnOnce(&App, &Arc<Engine>) -> (Router, Vec<String>),
) -> anyhow::Result<()> {
    let settings = settings(app)?;
    let frontend = frontend(app, &store)?;
    let units: Arc<dyn Runner> =
        Arc::new(Units::new(&settings, store, Some(blocklist.clone()), RecentSource::Here(recent), &app.registry)?);
    let workers = (Arc::clone(&frontend), Arc::clone(&units), app.config.query_frontend.concurrent_workers);
    app.spawn("query-workers", async move |mut shutdown| {
        let (frontend, units, concurrency) = workers;
        tokio::select! {
            () = frontend.work(units, concurrency) => {}
            () = shutdown.wait() => {}
        }
        Ok(())
    });
    let services = recent_builder(app, units, &settings)?;
    serve(app, frontend, settings, blocklist, services, more)
}

/// The recent data of this process, for others to ask.
pub(crate) fn recent_services(app: &App, store: Store, blocklist: Blocklist, recent: Arc<dyn Recent>) -> anyhow::Result<Routes> {
    let settings = settings(app)?;
    let units: Arc<dyn Runner> = Arc::new(Units::new(&settings, store, Some(blocklist), RecentSource::Here(recent), &app.registry)?);
    Ok(recent_builder(app, units, &settings)?.routes())
}

/// `rubato.Recent` for our queriers, `tempopb.Querier` for Tempo's.
fn recent_builder(app: &App, units: Arc<dyn Runner>, settings: &query::Settings) -> anyhow::Result<RoutesBuilder> {
    let grpc = &app.config.server.grpc;
    // Answers are as large as queriers take them.
    let max_answer_bytes = app.config.querier.workers.max_receive_bytes;
    let (receive, send) = (grpc.max_receive_bytes, grpc.max_send_bytes);
    let for_tempo = engine(app, Arc::clone(&units), settings.clone(), Blocklist::new(), &Registry::new())?;
    let for_tempo = query::recent_querier(for_tempo, api_settings(app)?).max_decoding_message_size(receive).max_encoding_message_size(send);
    let mut services = Routes::builder();
    services.add_service(RecentService::new(units).into_server(receive, max_answer_bytes));
    services.add_service(for_tempo);
    Ok(services)
}

/// A frontend whose jobs queriers run.
pub(crate) fn start_frontend(app: &mut App, store: &Store, blocklist: Blocklist) -> anyhow::Result<()> {
    let frontend = frontend(app, store)?;
    let connected = Arc::clone(&frontend);
    let check = move || match connected.connected() {
        0 => Err("Query Frontend not ready: not ready: number of queriers connected to query-frontend is 0".to_owned()),
        _ => Ok(()),
    };
    app.admin.check_ready_by(vec![Box::new(check)]);
    let settings = settings(app)?;
    serve(app, frontend, settings, blocklist, Routes::builder(), |_, _| (Router::new(), Vec::new()))
}

/// A querier without an API. It asks the ingesters of `ring`, unless it is told where they are.
pub(crate) fn start_querier(app: &mut App, store: Store, ring: Option<Addresses>) -> anyhow::Result<()> {
    let config = Arc::clone(&app.config);
    let querier = &config.querier;
    let needs = |key: &str| format!("the target \"querier\" needs {key}: host:port, several of them separated by commas");
    anyhow::ensure!(!querier.workers.frontends.is_empty(), needs("querier.frontend_worker.frontend_address"));
    let mut workers = querier.workers.clone();
    if workers.id.is_empty() {
        let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty()).unwrap_or_else(|| "querier".to_owned());
        // Several may run on one host.
        workers.id = format!("{host}-{}", std::process::id());
    }
    let addresses = match ring {
        Some(ring) if querier.ingesters.is_empty() => ring,
        None if querier.ingesters.is_empty() => {
            anyhow::bail!("{}, or a ring: ingester.lifecycler.ring.kvstore.store: memberlist", needs("rubato.querier.ingester_address"))
        }
        _ => ingester_addresses(app, querier.ingesters.clone(), workers.lookup_interval),
    };
    let ingesters = Ingesters::new(addresses, workers.max_receive_bytes, &app.registry)?;
    let recent = RecentSource::Elsewhere(Arc::new(ingesters));
    let units = Units::new(&settings(app)?, store, None, recent, &app.registry)?;
    let workers = Arc::new(Workers::new(workers, Arc::new(units), &app.registry)?);
    app.spawn("querier", async move |mut shutdown| {
        workers.run(shutdown.wait()).await;
        Ok(())
    });
    app.admin.serve_api(Router::new(), Vec::new());
    app.admin.serve_grpc(Routes::default());
    Ok(())
}

/// Where the processes are that take spans in: what the configured names stand for, looked up again and again.
fn ingester_addresses(app: &mut App, names: String, every: Duration) -> Addresses {
    let (known, addresses) = tokio::sync::watch::channel(Arc::from([]));
    app.spawn("ingester-addresses", async move |mut shutdown| {
        tokio::select! {
            () = look_up(names, every, known) => {}
            () = shutdown.wait() => {}
        }
        Ok(())
    });
    addresses
}

/// The queue of this process. It is closed before the servers stop, since its streams have no end of their own.
fn frontend(app: &mut App, store: &Store) -> anyhow::Result<Arc<Frontend>> {
    let cache = store.cache().filter(|cache| cache.outlives_process(Role::FrontendSearch)).cloned();
    let frontend = Arc::new(Frontend::new(app.config.query_frontend.settings.clone(), cache, &app.registry)?);
    let closing = Arc::clone(&frontend);
    app.started("query-frontend", move || async move {
        closing.close();
        Ok(())
    });
    Ok(frontend)
}

/// Puts the API and the services in.
fn serve(
    app: &App,
    frontend: Arc<Frontend>,
    settings: query::Settings,
    blocklist: Blocklist,
    mut services: RoutesBuilder,
    more: impl FnOnce(&App, &Arc<Engine>) -> (Router, Vec<String>),
) -> anyhow::Result<()> {
    let grpc = &app.config.server.grpc;
    let runner: Arc<dyn Runner> = Arc::<Frontend>::clone(&frontend);
    let (engine, api) = (engine(app, runner, settings, blocklist, &app.registry)?, api_settings(app)?);
    let streaming = query::streaming_querier(Arc::clone(&engine), api.clone())
        .max_decoding_message_size(grpc.max_receive_bytes)
        .max_encoding_message_size(grpc.max_send_bytes);
    services.add_service(streaming);
    services.add_service(FrontendService::new(frontend).into_server(grpc.max_receive_bytes, grpc.max_send_bytes));
    let (more, mut paths) = more(app, &engine);
    let more = match &app.user_overrides {
        Some(user_overrides) => {
            paths.push(format!("{}{}", app.config.http_api_prefix, user_overrides::ROUTE));
            more.merge(user_overrides.router(&app.config.http_api_prefix))
        }
        None => more,
    };
    let prefix = &app.config.http_api_prefix;
    let internal = ROUTES.iter().take(QUERIES).map(|route| format!("/querier{prefix}{route}"));
    let routes = ROUTES.iter().map(|route| format!("{prefix}{route}")).chain(internal).chain(paths).collect();
    app.admin.serve_grpc(services.routes());
    app.admin.serve_api(query::router(engine, api).merge(more), routes);
    Ok(())
}

fn engine(
    app: &App,
    runner: Arc<dyn Runner>,
    settings: query::Settings,
    blocklist: Blocklist,
    registry: &Registry,
) -> anyhow::Result<Arc<Engine>> {
    let engine = Engine::over(runner, settings, blocklist, Arc::clone(&app.clock), registry)?;
    Ok(Arc::new(engine.with_overrides(Arc::new(TenantLimits(Arc::clone(&app.overrides))))))
}

fn settings(app: &App) -> anyhow::Result<query::Settings> {
    let config = &app.config;
    Ok(query::Settings {
        memory_bytes: app.sizes.query_bytes,
        memory_bytes_per_query: app.sizes.query_bytes / 2,
        target_bytes_per_job: config.query_frontend.target_bytes_per_job,
        concurrent_jobs: config.query_frontend.concurrent_jobs,
        metrics_bytes_per_job: config.query_frontend.metrics_bytes_per_job,
        metrics_concurrent_jobs: config.query_frontend.metrics_concurrent_jobs,
        trace_shards: config.query_frontend.trace_shards,
        concurrent_shards: config.query_frontend.concurrent_shards,
        concurrent_scans: app.sizes.async_threads,
        // The other half is the cache's.
        open_blocks: usize::try_from(app.sizes.cache_bytes / 2 / OPEN_BLOCK_BYTES)?.clamp(16, query::Settings::default().open_blocks),
        trace_timeout: config.query.trace_by_id_timeout,
        search_timeout: config.query.search_timeout,
        ..query::Settings::default()
    })
}

fn api_settings(app: &App) -> anyhow::Result<query::ApiSettings> {
    let config = &app.config;
    Ok(query::ApiSettings {
        http_api_prefix: config.http_api_prefix.clone(),
        multitenancy_enabled: config.multitenancy,
        multi_tenant_queries_enabled: config.query.multi_tenant,
        api_timeout: config.query.api_timeout.unwrap_or_default(),
        default_result_limit: usize::try_from(config.query.default_result_limit)?,
        max_result_limit: usize::try_from(config.query.max_result_limit)?,
        default_spans_per_spanset: usize::try_from(config.query.default_spans_per_span_set)?,
        max_spans_per_spanset: usize::try_from(config.query.max_spans_per_span_set)?,
        max_search_duration: config.query.max_search_duration.unwrap_or_default(),
        max_query_bytes: usize::try_from(config.query.max_expression_bytes)?,
        logged_headers: config.query.logged_headers.clone(),
        url_deny_list: config.query.denied_urls.clone(),
        query_end_cutoff: config.query.end_cutoff,
        max_condition_groups: usize::try_from(config.query.max_condition_groups)?,
        max_packet_bytes: usize::try_from(config.query.max_packet_bytes)?,
        max_metrics_duration: config.query.max_metrics_duration.unwrap_or_default(),
        metrics: config.query.metrics,
        slos: config.query.slos,
        build: query::BuildInfo {
            version: process::COMPATIBLE_VERSION.to_owned(),
            revision: process::revision().to_owned(),
            branch: process::branch().to_owned(),
            ..query::BuildInfo::default()
        },
    })
}

/// How many of them are queries, which are answered below `/querier`, too.
const QUERIES: usize = 9;

/// Path templates of the query API, for `/status/endpoints`.
const ROUTES: &[&str] = &[
    "/api/traces/{traceID}",
    "/api/v2/traces/{traceID}",
    "/api/search",
    "/api/metrics/query_range",
    "/api/metrics/query",
    "/api/search/tags",
    "/api/v2/search/tags",
    "/api/search/tag/{tagName}/values",
    "/api/v2/search/tag/{tagName}/values",
    "/api/echo",
    "/api/status/buildinfo",
];
