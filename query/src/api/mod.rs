//! Tempo's HTTP API for queries, as an axum router.
//!
//! ```text
//!  request ─► tenant ─► parameters ─► deny list ─► engine ─► JSON, protobuf or text for language models ─► gzip
//! ```
//!
//! Handlers translate and nothing else: what is read and how is the engine's affair, and what is asked and answered is the same over gRPC
//! ([`answers`]). Methods are not restricted, as in Tempo, and parameters come from the query string; `/api/search` also takes them as the
//! JSON object of a body, for queries that are too long for a URL.
//!
//! What differs from Tempo, on purpose: the newest 30 seconds are not hidden unless asked for, and a search without a range covers all recent
//! data and the blocks of the last hour.

pub(crate) mod answers;
mod compress;
pub(crate) mod error;
mod format;
mod handlers;
mod jobs;
mod json;
mod llm;
mod mcp;
mod metrics;
pub(crate) mod params;
pub(crate) mod tenant;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, TracesData};
use regex::Regex;
use serde::Serialize;

pub use self::jobs::querier_router;
use self::{answers::Api, error::ApiError, json::ToJson};
use crate::{engine::Engine, metrics::Slos, proto, traceql_metrics::MetricsLimits};

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// Put before every path, such as `/tempo`; empty for none.
    pub http_api_prefix: String,
    /// Whether requests name their tenant.
    pub multitenancy_enabled: bool,
    /// Whether a request may name several tenants.
    pub multi_tenant_queries_enabled: bool,
    /// Longest time for a request, answered by 503; zero means any. The engine has deadlines of its own.
    pub api_timeout: Duration,
    /// Names of headers that are logged with each query; without any, queries are not logged.
    pub logged_headers: Vec<String>,
    /// Requests whose URL matches one of these are refused.
    pub url_deny_list: Vec<Regex>,
    /// Traces that a search returns when it does not say.
    pub default_result_limit: usize,
    /// Most traces that a search may ask for; 0 means any number.
    pub max_result_limit: usize,
    /// Spans per spanset when a search does not say.
    pub default_spans_per_spanset: usize,
    /// Most spans per spanset that a search may ask for; 0 means any number.
    pub max_spans_per_spanset: usize,
    /// Longest range of a search or tag query, unless the tenant has its own limit; zero means any.
    pub max_search_duration: Duration,
    /// Longest TraceQL query in bytes; 0 means any.
    pub max_query_bytes: usize,
    /// Most alternatives of the filter of a tag query; 0 means any number.
    pub max_condition_groups: usize,
    /// What is younger than this is hidden from all but lookups of traces. Zero, unlike Tempo: what was acknowledged can be read at once.
    pub query_end_cutoff: Duration,
    /// Most bytes of one message of a gRPC stream, unless a single entry is larger; 0 means any number.
    pub max_packet_bytes: usize,
    /// Longest range of a metrics query, unless the tenant has its own limit; zero means any.
    pub max_metrics_duration: Duration,
    /// Bounds of metrics queries.
    pub metrics: MetricsLimits,
    /// Whether language models may ask at `/api/mcp`.
    pub mcp_enabled: bool,
    /// How fast queries should be.
    pub slos: Slos,
    /// Shown at `/api/status/buildinfo`.
    pub build: BuildInfo,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            http_api_prefix: String::new(),
            multitenancy_enabled: false,
            multi_tenant_queries_enabled: true,
            api_timeout: Duration::ZERO,
            logged_headers: Vec::new(),
            url_deny_list: Vec::new(),
            default_result_limit: 20,
            max_result_limit: 262_144,
            default_spans_per_spanset: 3,
            max_spans_per_spanset: 100,
            max_search_duration: Duration::from_secs(168 * 3600),
            max_query_bytes: crate::traceql::DEFAULT_MAX_QUERY_BYTES,
            max_condition_groups: 100,
            query_end_cutoff: Duration::ZERO,
            max_packet_bytes: 2 << 20,
            max_metrics_duration: Duration::from_secs(24 * 3600),
            metrics: MetricsLimits::default(),
            mcp_enabled: false,
            slos: Slos::default(),
            build: BuildInfo::default(),
        }
    }
}

/// Where the binary comes from. Grafana reads `version` as semver and switches features on from 2.7.0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    /// Release that is compatible with Tempo's of the same number.
    pub version: String,
    /// Commit.
    pub revision: String,
    /// Branch.
    pub branch: String,
    /// Who built it.
    pub build_user: String,
    /// When it was built.
    pub build_date: String,
    /// The compiler; the name is that of the protocol.
    pub go_version: String,
}

/// The routes below `/api`, and what is said of paths that nobody knows. `/ready`, `/status` and `/metrics` are the binary's.
pub fn router(engine: Arc<Engine>, settings: ApiSettings) -> Router {
    let prefix = match settings.http_api_prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("/{prefix}"),
    };
    let api = Arc::new(Api { engine, settings });
    let path = |path: &str| format!("{prefix}{path}");
    let own = Router::new()
        .route(&path("/api/echo"), any(handlers::echo))
        .route(&path("/api/status/buildinfo"), get(handlers::build_info))
        .fallback(async || handlers::not_found())
        .with_state(Arc::clone(&api));
    queries(&prefix, api).merge(own)
}

/// The routes of all queries.
fn queries(prefix: &str, api: Arc<Api>) -> Router {
    let path = |path: &str| format!("{prefix}{path}");
    let queries = Router::new()
        .route(&path("/api/traces/{traceID}"), any(handlers::trace_v1))
        .route(&path("/api/v2/traces/{traceID}"), any(handlers::trace_v2))
        .route(&path("/api/search"), any(handlers::search))
        .route(&path("/api/metrics/query_range"), any(metrics::query_range))
        .route(&path("/api/metrics/query"), any(metrics::query_instant))
        .route(&path("/api/search/tags"), any(handlers::tags_v1))
        .route(&path("/api/v2/search/tags"), any(handlers::tags_v2))
        // A tag may contain slashes, and `/values` ends the path, which no template of the router can say.
        .route(&path("/api/search/tag/{*rest}"), any(handlers::values_v1))
        .route(&path("/api/v2/search/tag/{*rest}"), any(handlers::values_v2));
    let queries = if api.settings.mcp_enabled { queries.route(&path("/api/mcp"), any(mcp::serve)) } else { queries };
    queries.layer(middleware::from_fn_with_state(Arc::clone(&api), guard)).layer(middleware::from_fn(compress::gzip)).with_state(api)
}

/// What holds for all queries: the deny list and the time limit.
async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if let Err(denied) = api.check_url(&request.uri().to_string()) {
        return denied.into_response();
    }
    let logged = logged_headers(&api.settings.logged_headers, request.headers());
    let (uri, began) = (request.uri().clone(), Instant::now());
    let response = next.run(request);
    let response = if api.settings.api_timeout.is_zero() {
        response.await
    } else {
        let timed_out =
            || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unable to process request in the configured timeout").into_response();
        tokio::time::timeout(api.settings.api_timeout, response).await.unwrap_or_else(|_| timed_out())
    };
    if let Some(headers) = logged {
        let status = response.status().as_u16();
        tracing::info!(path = uri.path(), query = uri.query(), status, elapsed = ?began.elapsed(), headers, "query");
    }
    response
}

/// The headers of a query that are logged with it, as one text; nothing if queries are not logged.
fn logged_headers(names: &[String], headers: &http::HeaderMap) -> Option<String> {
    let value = |name: &String| {
        let values = headers.get_all(name.as_str()).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        format!("{name}={}", values.collect::<Vec<_>>().join(","))
    };
    (!names.is_empty()).then(|| names.iter().map(value).collect::<Vec<_>>().join(" "))
}

/// The one tenant of a request that cannot be about several.
///
/// # Errors
/// Status and text of the refusal, as of queries.
pub fn tenant_of(headers: &http::HeaderMap, multitenancy_enabled: bool) -> Result<storage::id::Tenant, (StatusCode, String)> {
    let tenancy = tenant::Tenancy { enabled: multitenancy_enabled, federation: false };
    let tenants = tenancy.tenants(headers).map_err(|error| (error.status(), error.text().to_owned()))?;
    tenants.into_iter().next().ok_or_else(|| (StatusCode::UNAUTHORIZED, "no org id".to_owned()))
}

/// A whole trace as `/api/v2/traces/{traceID}` answers in JSON.
pub fn trace_json(resource_spans: Vec<ResourceSpans>) -> Vec<u8> {
    proto::TraceByIdResponse { trace: Some(TracesData { resource_spans }), ..proto::TraceByIdResponse::default() }.to_json()
}
