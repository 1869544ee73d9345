//! The metrics-generator of this process: what tenants want of it, where its series are sent, and what is shown of them.
//!
//! ```text
//!  overrides ──► TenantLimits ──► dataflow (what is generated) ──► Snapshots ──► remote write ──► endpoints
//!                            └──► remote write, exposition                  └──► /metrics/generator/{tenant}
//!  log and blocks ──► a trace ──► explain, as the dataflow counted it ──► /api/metrics-generator/explain
//! ```

use std::{convert::Infallible, fmt::Display, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use dataflow::{
    Dataflow,
    generator::{
        self, Snapshots,
        explain::{self, Explained},
    },
    remote_write::{Exposition, Format, Overrides as _, RemoteWrite, Settings, TenantSettings},
};
use storage::{
    block,
    id::{Tenant, TraceId},
};

use crate::{app::App, modules::TenantLimits, process};

/// Path templates of [`router`] that have no prefix, for `/status/endpoints`.
pub(crate) const ROUTES: &[&str] = &["/metrics/generator/{tenant}"];
/// Path templates of [`router`] that have the prefix of the API.
pub(crate) const API_ROUTES: &[&str] = &["/api/metrics-generator/explain"];

impl generator::Tenants for TenantLimits {
    fn version(&self) -> u64 {
        self.0.version()
    }

    fn settings(&self, tenant: &Tenant) -> Option<Arc<generator::Settings>> {
        self.0.limits(tenant.as_str()).generator.processors.clone()
    }
}

impl dataflow::remote_write::Overrides for TenantLimits {
    fn remote_write(&self, tenant: &Tenant) -> Arc<TenantSettings> {
        Arc::clone(&self.0.limits(tenant.as_str()).generator.remote_write)
    }
}

/// Sends what is generated, once the dataflow has recovered.
pub(crate) fn start_remote_write(app: &mut App, snapshots: &Snapshots) -> anyhow::Result<()> {
    let settings = Settings {
        user_agent: format!("Rubato/{}", process::VERSION),
        // Processes that start together must not retry together.
        seed: u64::from(app.clock.now().subsec_nanos()) ^ u64::from(std::process::id()) << 32,
        ..app.config.generator.remote_write.clone()
    };
    for endpoint in &settings.endpoints {
        tracing::info!(url = endpoint.url, name = endpoint.name, "series of the metrics-generator are sent to an endpoint");
    }
    let overrides = Arc::new(TenantLimits(Arc::clone(&app.overrides)));
    let remote_write = RemoteWrite::new(settings, snapshots.clone(), overrides, Arc::clone(&app.clock), &app.registry)?;
    app.spawn("remote-write", move |mut shutdown| async move {
        remote_write.run(shutdown.wait()).await;
        Ok(())
    });
    Ok(())
}

/// What the series of a tenant are shown from.
#[derive(Clone)]
struct Shown {
    snapshots: Snapshots,
    settings: Arc<Settings>,
    tenants: Arc<TenantLimits>,
}

/// What a trace is explained from.
#[derive(Clone)]
struct Explains {
    snapshots: Snapshots,
    dataflow: Arc<Dataflow>,
    engine: Arc<query::Engine>,
    multitenancy: bool,
}

/// What is shown of the generator where traces are at hand.
pub(crate) fn router(app: &App, snapshots: &Snapshots, dataflow: &Arc<Dataflow>, engine: &Arc<query::Engine>) -> Router {
    let explains = Explains {
        snapshots: snapshots.clone(),
        dataflow: Arc::clone(dataflow),
        engine: Arc::clone(engine),
        multitenancy: app.config.multitenancy,
    };
    let path = format!("{}/api/metrics-generator/explain", app.config.http_api_prefix);
    exposition_router(app, snapshots).merge(Router::new().route(&path, get(explain)).with_state(explains))
}

/// The series themselves: [`ROUTES`].
pub(crate) fn exposition_router(app: &App, snapshots: &Snapshots) -> Router {
    let shown = Shown {
        snapshots: snapshots.clone(),
        settings: Arc::new(app.config.generator.remote_write.clone()),
        tenants: Arc::new(TenantLimits(Arc::clone(&app.overrides))),
    };
    Router::new().route("/metrics/generator/{tenant}", get(exposition)).with_state(shown)
}

/// Why a question is not answered.
type Refusal = (StatusCode, String);

fn refuse(status: StatusCode, why: impl Display) -> Refusal {
    (status, format!("{why}\n"))
}

/// The one tenant that a request names in `X-Scope-OrgID`; what follows a colon in a name is metadata.
///
/// # Errors
/// None is named, or several, or one that can't be.
pub(crate) fn tenant(multitenancy: bool, headers: &HeaderMap) -> Result<Tenant, Refusal> {
    if !multitenancy {
        return Ok(Tenant::single());
    }
    let header = headers.get("x-scope-orgid").filter(|value| !value.is_empty());
    let header = header.ok_or_else(|| refuse(StatusCode::UNAUTHORIZED, "no org id"))?;
    let header = String::from_utf8_lossy(header.as_bytes());
    if header.contains('|') {
        return Err(refuse(StatusCode::BAD_REQUEST, "multiple org IDs present"));
    }
    let name = header.split_once(':').map_or(&*header, |(name, _metadata)| name);
    Tenant::new(name).map_err(|invalid| refuse(StatusCode::BAD_REQUEST, invalid))
}

#[derive(Debug, serde::Deserialize)]
struct ExplainQuery {
    trace: Option<String>,
}

#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    trace_id: String,
    /// What is shown and sent includes everything that arrived until then, Unix nanoseconds.
    committed_unix_nano: u64,
    spans: Vec<Explained>,
}

/// For each span of a trace, in which series it was counted, or why not.
async fn explain(
    State(explains): State<Explains>,
    Query(question): Query<ExplainQuery>,
    headers: HeaderMap,
) -> Result<axum::Json<Explanation>, Refusal> {
    let tenant = tenant(explains.multitenancy, &headers)?;
    let text = question.trace.filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "please provide a trace id in the parameter \"trace\""))?;
    let id = TraceId::from_hex(&text).map_err(|error| refuse(StatusCode::BAD_REQUEST, format_args!("trace \"{text}\": {error}")))?;
    let unavailable = |error: &dyn std::error::Error| refuse(StatusCode::SERVICE_UNAVAILABLE, block::chain(error));
    let request = query::engine::TraceRequest { id, range: None };
    let found = explains.engine.trace(std::slice::from_ref(&tenant), request).await.map_err(|error| unavailable(&error))?;
    if found.resource_spans.is_empty() {
        return Err(refuse(StatusCode::NOT_FOUND, format_args!("trace {id} is not known")));
    }
    let stored = explain::segments(&tenant, found.resource_spans).map_err(|error| unavailable(&error))?;
    let spans = explains.dataflow.explain(&tenant, id, stored).await.map_err(|error| unavailable(&error))?;
    let committed = explains.snapshots.latest().at;
    let committed_unix_nano = u64::try_from(committed.as_nanos()).unwrap_or(u64::MAX);
    Ok(axum::Json(Explanation { trace_id: id.to_hex(), committed_unix_nano, spans }))
}

/// A tenant's series as text: Prometheus' format, or OpenMetrics with exemplars where `Accept` asks for it.
async fn exposition(State(shown): State<Shown>, Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    let tenant = match Tenant::new(&tenant) {
        Ok(tenant) => tenant,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let accepts: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::of(&accepts.join(","));
    let of_tenant = shown.tenants.remote_write(&tenant);
    let content_type = [(header::CONTENT_TYPE, format.content_type())];
    match Exposition::new(&shown.snapshots.latest(), &tenant, &shown.settings, &of_tenant, format) {
        Some(exposition) => {
            let chunks = futures::stream::iter(exposition.map(Ok::<String, Infallible>));
            (content_type, Body::from_stream(chunks)).into_response()
        }
        None if generator::Tenants::settings(&*shown.tenants, &tenant).is_some() => {
            let end = if format == Format::OpenMetrics { "# EOF\n" } else { "" };
            (content_type, end).into_response()
        }
        None => {
            let text = format!("nothing is generated for tenant \"{tenant}\": it has no processors in metrics_generator.processors\n");
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}
