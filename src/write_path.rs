//! The write path's parts, made from the configuration: what a process needs of it depends on its target.
//!
//! ```text
//!  all           receivers ─► distributor ─► ingester ─► log                      no calls between processes
//!  distributor   receivers ─► distributor ─► replicator ─► ingesters of the ring  no log
//!  scalable-single-binary: both                                                  each process, for all of them
//!  ingester                   pushes over gRPC ─► ingester ─► log                 no receivers
//! ```

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{body::Body, extract::Request, routing::any};
use storage::{ring::Rings, tls::Connector, wal::Wal};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::{app::App, config::Config, modules::TenantLimits, usage::Usage};

/// Bytes of requests between socket and log, or between socket and ingesters, at most.
const MAX_BUDGET_BYTES: u64 = 256 << 20;
/// How long a request may wait for its share of those.
pub(crate) const BUDGET_WAIT: Duration = Duration::from_secs(5);
/// Retry hint of refused requests where the configuration says nothing: without one, OTLP clients drop what was refused.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Bytes that a budget of this process may have.
pub(crate) fn budget_bytes(app: &App) -> anyhow::Result<usize> {
    Ok(usize::try_from(app.sizes.ingest_bytes.min(MAX_BUDGET_BYTES))?)
}

fn limits(app: &App) -> Arc<TenantLimits> {
    Arc::new(TenantLimits(Arc::clone(&app.overrides)))
}

/// The ingester of this process. `rings` are the ingesters of the cluster if there is one. Once per process.
pub(crate) fn ingester(app: &App, wal: &Wal, rings: Option<Rings>) -> anyhow::Result<ingest::Ingester> {
    let settings =
        ingest::IngesterSettings { trace_idle_period: app.config.ingester.trace_idle_period, ..ingest::IngesterSettings::default() };
    Ok(ingest::Ingester::new(settings, Arc::new(wal.clone()), limits(app), rings, Arc::clone(&app.clock), &app.registry)?)
}

/// What writes to the ingesters of `rings`, with the module that watches over its connections. Once per process.
pub(crate) fn replicator(app: &mut App, rings: Rings) -> anyhow::Result<ingest::Replicator> {
    let settings = &app.config.settings;
    let client = |key: &str| format!("ingester_client.grpc_client_config.{key}");
    let pool = |key: &str| format!("ingester_client.pool_config.{key}");
    let budget_bytes = budget_bytes(app)?;
    let checks_health = settings.flag(&pool("healthcheckenabled"));
    let replicator_settings = ingest::ReplicatorSettings {
        remote_timeout: settings.duration("ingester_client.remote_timeout"),
        extend_writes: settings.flag("distributor.extend_writes"),
        compression: settings.text(&client("grpc_compression")).parse().with_context(|| client("grpc_compression"))?,
        connect_timeout: settings.duration(&client("connect_timeout")),
        connect_backoff: settings.duration(&client("connect_backoff_base_delay")),
        max_connect_backoff: settings.duration(&client("connect_backoff_max_delay")),
        health_check_period: Some(settings.duration(&pool("checkinterval"))).filter(|period| checks_health && !period.is_zero()),
        health_check_timeout: settings.duration(&pool("healthchecktimeout")),
        max_late_bytes: budget_bytes / 8,
    };
    let budget = ingest::Budget::for_replication(budget_bytes, BUDGET_WAIT, &app.registry)?;
    let connector = ingester_connector(&app.config)?;
    let replicator = ingest::Replicator::new(replicator_settings, rings, budget, connector, &app.registry)?;
    let watched = replicator.clone();
    app.spawn("ingester-clients", async move |mut shutdown| {
        watched.run(shutdown.wait()).await;
        Ok(())
    });
    Ok(replicator)
}

/// How ingesters are connected to.
pub(crate) fn ingester_connector(config: &Config) -> anyhow::Result<Connector> {
    Connector::new(config.ingester_client_tls.clone()).context("ingester_client.grpc_client_config")
}

/// The distributor of this process. `distributors` is how many of them are healthy in the cluster, if there is one. Once per process.
pub(crate) fn distributor(
    app: &App,
    sink: ingest::Sink,
    distributors: Option<watch::Receiver<usize>>,
    usage: &Usage,
) -> anyhow::Result<ingest::Distributor> {
    let config = &app.config;
    let written = config.settings.written("distributor.retry_after_on_resource_exhausted").is_some();
    let retry_after = config.distributor.retry_after.or((!written).then_some(RETRY_AFTER)).unwrap_or_default();
    let settings = ingest::DistributorSettings {
        max_attribute_bytes: usize::try_from(config.distributor.max_attribute_bytes)?,
        retry_after_on_resource_exhausted: retry_after,
        rate_strategy: match config.settings.text("overrides.defaults.ingestion.rate_strategy") {
            // One process is the only distributor there is.
            "global" => ingest::RateStrategy::Global(distributors.unwrap_or_else(|| watch::channel(1).1)),
            _ => ingest::RateStrategy::Local,
        },
        ..ingest::DistributorSettings::default()
    };
    let distributor = ingest::Distributor::new(settings, sink, limits(app), Arc::clone(&app.clock), &app.registry)?;
    Ok(match usage.tracker() {
        Some(tracker) => distributor.with_usage(tracker),
        None => distributor,
    })
}

/// Adds `tempopb.Pusher` to the services of the gRPC port, with the module that refuses pushes once the process is to end: it must be stopped before
/// the log is. Once per process.
pub(crate) fn pusher(app: &mut App, ingester: ingest::Ingester, budget: ingest::Budget, services: Routes) -> anyhow::Result<Routes> {
    let settings =
        ingest::PusherSettings { max_message_bytes: app.config.server.grpc.max_receive_bytes, ..ingest::PusherSettings::default() };
    let pusher = ingest::Pusher::new(settings, ingester, budget, &app.registry)?;
    let closing = pusher.clone();
    app.started("pusher", move || async move {
        closing.close();
        Ok(())
    });
    let push = any(move |request: Request| {
        let pusher = pusher.clone();
        async move { pusher.respond(request).await.map(Body::new) }
    });
    let router = services.into_axum_router().route(ingest::PUSH_BYTES_V2, push.clone()).route(ingest::PUSH_BYTES, push);
    Ok(Routes::from(router))
}
