//! The query path of a process: all of it in one, or the part of a query-frontend or a querier.
//!
//! ```text
//!  all             HTTP, gRPC ─► Engine ─► Frontend ─► workers here ─► Units ─► bucket, recent data of this process
//!                                              └─► queriers, if any connect           └─► rubato.Recent, tempopb.Querier
//!  query-frontend  HTTP, gRPC ─► Engine ─► Frontend ─► queriers
//!  querier         frontends ─► Workers ─► Units ─► bucket, and rubato.Recent of the processes that take spans in
//! ```

use std::sync::Arc;

use axum::Router;
use prometheus::Registry;
use query::{
    Engine, Recent, RecentSource, Units,
    frontend::{Frontend, FrontendService},
    job::Runner,
    querier::{Ingesters, RecentService, Workers},
};
use storage::{backend::Store, blocklist::Blocklist, cache::Role};
use tonic::service::{Routes, RoutesBuilder};

use crate::{app::App, modules::TenantLimits, process};

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
    let grpc = &app.config.server.grpc;
    // Answers are as large as queriers take them.
    let max_answer_bytes = app.config.querier.workers.max_receive_bytes;
    let (receive, send) = (grpc.max_receive_bytes, grpc.max_send_bytes);
    let for_tempo = engine(app, Arc::clone(&units), settings.clone(), Blocklist::new(), &Registry::new())?;
    let for_tempo = query::recent_querier(for_tempo, api_settings(app)?).max_decoding_message_size(receive).max_encoding_message_size(send);
    let mut services = Routes::builder();
    services.add_service(RecentService::new(units).into_server(receive, max_answer_bytes));
    services.add_service(for_tempo);
    serve(app, frontend, settings, blocklist, services, more)
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

/// A querier without an API.
pub(crate) fn start_querier(app: &mut App, store: Store) -> anyhow::Result<()> {
    let config = Arc::clone(&app.config);
    let querier = &config.querier;
    for (key, value) in
        [("querier.frontend_worker.frontend_address", &querier.workers.frontends), ("rubato.querier.ingester_address", &querier.ingesters)]
    {
        anyhow::ensure!(!value.is_empty(), "the target \"querier\" needs {key}: host:port, several of them separated by commas");
    }
    let mut workers = querier.workers.clone();
    if workers.id.is_empty() {
        let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty()).unwrap_or_else(|| "querier".to_owned());
        // Several may run on one host.
        workers.id = format!("{host}-{}", std::process::id());
    }
    let ingesters = Ingesters::new(&querier.ingesters, workers.lookup_interval, workers.max_receive_bytes, &app.registry)?;
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
    let (more, paths) = more(app, &engine);
    let routes = ROUTES.iter().map(|route| format!("{}{route}", app.config.http_api_prefix)).chain(paths).collect();
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
