//! The query path of a process: all of it in one, or the part of a query-frontend or a querier.
//!
//! ```text
//!  all             HTTP, gRPC ─► Engine ─► Frontend ─► workers here ─► Units ─► bucket, recent data of this process (or of all in its ring)
//!                                              └─► queriers, if any connect           └─► rubato.Recent, tempopb.Querier
//!  query-frontend  HTTP, gRPC ─► Engine ─► Frontend ─► queriers
//!  querier         frontends ─► Workers ─► Units ─► bucket, and rubato.Recent of the processes that take spans in
//!                  (of Tempo:)      └─► /querier/api/… ─► Engine ─┘
//! ```

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use prometheus::Registry;
use query::{
    Engine, ExternalTraces, Recent, RecentSource, Units,
    frontend::{Frontend, FrontendService},
    job::Runner,
    querier::{Addresses, Ingesters, RecentService, Workers, look_up},
};
use storage::{backend::Store, blocklist::Blocklist, cache::Role, ring::Rings, tls::Connector};
use tonic::service::{Routes, RoutesBuilder};

use crate::{app::App, modules::TenantLimits, process, user_overrides, write_path};

/// What an opened block keeps in memory at most: bloom shards and dictionaries, 1 MiB each.
const OPEN_BLOCK_BYTES: u64 = 2 << 20;

/// Where the ingesters are, and who of them has what.
pub(crate) type Ring = (Addresses, Rings);

/// The whole path in the process that has the recent data, which is asked for it with `others` if there are any. Returns what is to be served by
/// gRPC. `more` is asked for routes beside the API, and their paths.
pub(crate) fn start_in_one_process(
    app: &mut App,
    store: &Store,
    blocklist: Blocklist,
    recent: Arc<dyn Recent>,
    others: Option<Ring>,
    more: impl FnOnce(&App, &Arc<Engine>) -> (Router, Vec<String>),
) -> anyhow::Result<Routes> {
    let settings = settings(app)?;
    let frontend = frontend(app, store)?;
    let units = |recent, registry: &Registry| -> anyhow::Result<Arc<dyn Runner>> {
        let units = Units::new(&settings, store.clone(), Some(blocklist.clone()), recent, registry)?;
        Ok(Arc::new(with_external(app, units)?))
    };
    let here = units(RecentSource::Here(recent), &app.registry)?;
    let everywhere = match others {
        // What its jobs take is theirs: the rest of a query does not run where it is asked.
        Some(ring) => units(RecentSource::Elsewhere(Arc::new(ingesters(app, ring)?)), &Registry::new())?,
        None => Arc::clone(&here),
    };
    let workers = (Arc::clone(&frontend), everywhere, app.config.query_frontend.concurrent_workers);
    app.spawn("query-workers", async move |mut shutdown| {
        let (frontend, units, concurrency) = workers;
        tokio::select! {
            () = frontend.work(units, concurrency) => {}
            () = shutdown.wait() => {}
        }
        Ok(())
    });
    let services = recent_builder(app, here, &settings)?;
    serve(app, frontend, settings, (store.clone(), blocklist), services, more)
}

/// The units, with the store of traces that is not ours, if there is one.
fn with_external(app: &App, units: Units) -> anyhow::Result<Units> {
    let querier = &app.config.querier;
    if querier.external_endpoint.is_empty() {
        return Ok(units);
    }
    let external = ExternalTraces::new(&querier.external_endpoint, querier.external_timeout, &app.registry);
    Ok(units.with_external(external.context("querier.trace_by_id.external.endpoint")?))
}

/// The recent data of this process, for others to ask.
pub(crate) fn recent_services(app: &App, store: Store, blocklist: Blocklist, recent: Arc<dyn Recent>) -> anyhow::Result<Routes> {
    let settings = settings(app)?;
    let units: Arc<dyn Runner> = Arc::new(Units::new(&settings, store, Some(blocklist), RecentSource::Here(recent), &app.registry)?);
    Ok(recent_builder(app, units, &settings)?.routes())
}

/// `rubato.Recent` for our queriers, `tempopb.Querier` and `tempopb.Metrics` for Tempo's.
fn recent_builder(app: &App, units: Arc<dyn Runner>, settings: &query::Settings) -> anyhow::Result<RoutesBuilder> {
    let grpc = &app.config.server.grpc;
    // Answers are as large as queriers take them.
    let max_answer_bytes = app.config.querier.workers.max_receive_bytes;
    let (receive, send) = (grpc.max_receive_bytes, grpc.max_send_bytes);
    let for_tempo = engine(app, Arc::clone(&units), settings.clone(), Blocklist::new(), &Registry::new())?;
    let metrics = query::recent_metrics(Arc::clone(&for_tempo), api_settings(app)?);
    let metrics = metrics.max_decoding_message_size(receive).max_encoding_message_size(send);
    let for_tempo = query::recent_querier(for_tempo, api_settings(app)?).max_decoding_message_size(receive).max_encoding_message_size(send);
    let mut services = Routes::builder();
    services.add_service(RecentService::new(units).into_server(receive, max_answer_bytes));
    services.add_service(for_tempo);
    services.add_service(metrics);
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
    let services = serve(app, frontend, settings, (store.clone(), blocklist), Routes::builder(), |_, _| (Router::new(), Vec::new()))?;
    app.admin.serve_grpc(services);
    Ok(())
}

/// A querier. It asks the ingesters of `ring`, unless it is told where they are. Its own API is what frontends of Tempo ask for.
pub(crate) fn start_querier(app: &mut App, store: Store, blocklist: Blocklist, ring: Option<Ring>) -> anyhow::Result<()> {
    let config = Arc::clone(&app.config);
    let querier = &config.querier;
    let mut workers = querier.workers.clone();
    if workers.id.is_empty() {
        let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty()).unwrap_or_else(|| "querier".to_owned());
        // Several may run on one host.
        workers.id = format!("{host}-{}", std::process::id());
    }
    let ingesters = match ring {
        Some(ring) if querier.ingesters.is_empty() => ingesters(app, ring)?,
        _ => {
            let addresses = ingester_addresses(app, querier.ingesters.clone(), workers.lookup_interval);
            let ingesters = Ingesters::new(addresses, workers.max_receive_bytes, &app.registry)?;
            ingesters.with_connector(write_path::ingester_connector(&config)?)
        }
    };
    let recent = RecentSource::Elsewhere(Arc::new(ingesters));
    let settings = settings(app)?;
    // The blocks of our frontends are those that they name, whatever is on the list here.
    let units = with_external(app, Units::new(&settings, store.clone(), None, recent, &app.registry)?)?;
    let units: Arc<dyn Runner> = Arc::new(units);
    let engine = engine(app, Arc::clone(&units), settings, blocklist, &Registry::new())?;
    let api = query::querier_router(&engine, store, &api_settings(app)?)?;
    let frontends = Connector::new(querier.frontend_tls.clone()).context("querier.frontend_worker.grpc_client_config")?;
    let workers = Workers::new(workers, units, &app.registry)?.with_connector(frontends).with_http(api.clone());
    let workers = Arc::new(workers);
    app.spawn("querier", async move |mut shutdown| {
        workers.run(shutdown.wait()).await;
        Ok(())
    });
    app.admin.serve_api(api, querier_routes(app).collect());
    app.admin.serve_grpc(Routes::default());
    Ok(())
}

/// The ingesters of a ring.
fn ingesters(app: &App, (addresses, rings): Ring) -> anyhow::Result<Ingesters> {
    let ingesters = Ingesters::new(addresses, app.config.querier.workers.max_receive_bytes, &app.registry)?;
    Ok(ingesters.with_connector(write_path::ingester_connector(&app.config)?).with_rings(rings))
}

/// Path templates below `/querier`.
fn querier_routes(app: &App) -> impl Iterator<Item = String> {
    let prefix = app.config.http_api_prefix.clone();
    ROUTES.iter().take(QUERIES).filter(|route| **route != INSTANT).map(move |route| format!("/querier{prefix}{route}"))
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

/// Puts the API in, and adds its services to those of gRPC.
fn serve(
    app: &App,
    frontend: Arc<Frontend>,
    settings: query::Settings,
    (store, blocklist): (Store, Blocklist),
    mut services: RoutesBuilder,
    more: impl FnOnce(&App, &Arc<Engine>) -> (Router, Vec<String>),
) -> anyhow::Result<Routes> {
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
    if api.mcp_enabled {
        paths.push(format!("{prefix}/api/mcp"));
    }
    let routes = ROUTES.iter().map(|route| format!("{prefix}{route}")).chain(querier_routes(app)).chain(paths).collect();
    let internal = query::querier_router(&engine, store, &api)?;
    app.admin.serve_api(query::router(engine, api).merge(internal).merge(more), routes);
    Ok(services.routes())
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
        external_traces: config.query_frontend.external_traces,
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
        mcp_enabled: config.query.mcp_enabled,
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

/// The one of them that is not cut into jobs of its own kind: frontends ask queriers for ranges of one step.
const INSTANT: &str = "/api/metrics/query";

/// Path templates of the query API, for `/status/endpoints`.
const ROUTES: &[&str] = &[
    "/api/traces/{traceID}",
    "/api/v2/traces/{traceID}",
    "/api/search",
    "/api/metrics/query_range",
    INSTANT,
    "/api/search/tags",
    "/api/v2/search/tags",
    "/api/search/tag/{tagName}/values",
    "/api/v2/search/tag/{tagName}/values",
    "/api/echo",
    "/api/status/buildinfo",
];
