//! The HTTP server: what an operator asks (`/ready`, `/metrics`, `/status…`), and the place where the query API is put in.
//!
//! ```text
//!  :3200 ──► log, connection handling ──► operational routes
//!                                    └──► everything else ──► query API (503 until recovery has ended)
//! ```
//!
//! The server listens before anything is recovered, so that probes get an answer at once: `/ready` says which services are still starting. The API is set
//! exactly once ([`Admin::serve_api`]).

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt::Write as _,
    future::Future,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Path, Query, Request, State as Shared},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{any, get},
};
use ingest::Admit as _;
use prometheus::{Registry, TextEncoder};
use query::RequestMetrics;
use storage::clock::{Clock as _, SystemClock};
use tokio::net::TcpListener;
use tonic::{Status, service::Routes};
use tower::ServiceExt as _;

use crate::{
    auth::Credentials,
    config::{Config, Mode, Overrides, runtime_config, tenant_json},
    grpc, listener, logging, openmetrics,
    own_traces::OwnTraces,
    process,
    services::{Services, Shutdown, table},
};

/// A check of readiness beyond the states of the services: what to say while not ready.
pub(crate) type ReadyCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Operational routes, for `/status/endpoints`.
const ROUTES: &[(&str, &str)] = &[
    ("metrics", "/metrics"),
    ("live", "/live"),
    ("ready", "/ready"),
    ("status", "/status"),
    ("status_section", "/status/{version|services|endpoints|runtime_config|config}"),
    ("status_overrides", "/status/overrides"),
    ("status_overrides_tenant", "/status/overrides/{tenant}"),
    ("status_usage_stats", "/status/usage-stats"),
];

/// What the operational routes show.
pub(crate) struct Admin {
    config: Arc<Config>,
    overrides: Arc<Overrides>,
    registry: Registry,
    services: Services,
    stopping: Shutdown,
    checks: Mutex<Vec<ReadyCheck>>,
    pages: OnceLock<(Router, Vec<String>)>,
    api: OnceLock<(Router, Vec<String>)>,
    grpc: OnceLock<Router>,
    request_metrics: Option<RequestMetrics>,
    own_traces: OnceLock<OwnTraces>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("services", &self.services).field("has_api", &self.api.get().is_some()).finish_non_exhaustive()
    }
}

impl Admin {
    /// Collects what is shown. `stopping` is thrown when the process was asked to end.
    ///
    /// # Errors
    /// The metrics of requests are registered already.
    pub(crate) fn new(
        config: Arc<Config>,
        overrides: Arc<Overrides>,
        registry: Registry,
        services: Services,
        stopping: Shutdown,
    ) -> prometheus::Result<Arc<Self>> {
        let request_metrics = if config.server.instrument { Some(RequestMetrics::new(&registry)?) } else { None };
        let (checks, pages, api, grpc, own_traces) = (Mutex::default(), OnceLock::new(), OnceLock::new(), OnceLock::new(), OnceLock::new());
        Ok(Arc::new(Self { config, overrides, registry, services, stopping, checks, pages, api, grpc, request_metrics, own_traces }))
    }

    /// Puts the query API in, measured. `routes` are its path templates, for `/status/endpoints`. A second call is ignored and returns false.
    pub(crate) fn serve_api(&self, router: Router, routes: Vec<String>) -> bool {
        let router = match self.own_traces.get() {
            Some(own_traces) => own_traces.trace(router),
            None => router,
        };
        let router = match &self.request_metrics {
            Some(metrics) => router.layer(metrics.clone()),
            None => router,
        };
        self.api.set((router, routes)).is_ok()
    }

    /// Puts the gRPC services in. A second call is ignored and returns false.
    pub(crate) fn serve_grpc(&self, services: Routes) -> bool {
        self.grpc.set(services.prepare().into_axum_router()).is_ok()
    }

    /// The gRPC services, once they are there.
    pub(crate) fn grpc_services(&self) -> Option<Router> {
        self.grpc.get().cloned()
    }

    /// Largest message of a gRPC call that is taken.
    pub(crate) fn max_grpc_message_bytes(&self) -> usize {
        self.config.server.grpc.max_receive_bytes
    }

    /// What measures requests, unless that is turned off.
    pub(crate) fn request_metrics(&self) -> Option<&RequestMetrics> {
        self.request_metrics.as_ref()
    }

    /// Whether the process can take traffic.
    pub(crate) fn is_ready(&self) -> bool {
        self.readiness().0.is_success()
    }

    /// Whether the process was asked to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_thrown()
    }

    /// Requests to an API that is put in later are traced. A second call is ignored.
    pub(crate) fn trace_by(&self, own_traces: OwnTraces) {
        _ = self.own_traces.set(own_traces);
    }

    /// Puts pages in beside the operational ones: those of the cluster. A second call is ignored and returns false.
    pub(crate) fn serve_pages(&self, router: Router, routes: Vec<String>) -> bool {
        let router = match &self.request_metrics {
            Some(metrics) => router.route_layer(metrics.clone()),
            None => router,
        };
        self.pages.set((router, routes)).is_ok()
    }

    /// Adds what must hold before `/ready` says so.
    pub(crate) fn check_ready_by(&self, checks: Vec<ReadyCheck>) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).extend(checks);
    }

    /// Whether the process can take traffic: the status and body of `/ready`.
    fn readiness(&self) -> (StatusCode, String) {
        let unavailable = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text);
        if self.stopping.is_thrown() {
            return unavailable("Application is stopping\n".to_owned());
        }
        if let Some(text) = self.services.not_running() {
            return unavailable(text);
        }
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = checks.iter().find_map(|check| check().err()) {
            return unavailable(format!("{text}\n"));
        }
        (StatusCode::OK, "ready\n".to_owned())
    }
}

/// The router of everything, for those who have credentials if there are any to have.
pub(crate) fn router(admin: &Arc<Admin>, credentials: Option<Arc<Credentials>>) -> Router {
    let prefix = &admin.config.http_api_prefix;
    let late = Arc::clone(admin);
    let api = tower::service_fn(move |request: Request| {
        let page = late.pages.get().filter(|(_, routes)| routes.iter().any(|route| route == request.uri().path()));
        let api = page.or_else(|| late.api.get()).map(|(router, _)| router.clone());
        async move {
            let response = match api {
                Some(router) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
                None => (StatusCode::SERVICE_UNAVAILABLE, "the query API is not up yet\n").into_response(),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let operational = Router::new()
        .route("/live", any(live))
        .route("/ready", any(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/status/overrides", get(status_overrides))
        .route("/status/overrides/{tenant}", get(status_overrides_tenant))
        .route("/status/{section}", get(status_section))
        .route("/debug/pprof/", any(no_profiles))
        .route("/debug/pprof/{*profile}", any(no_profiles))
        .route(&format!("{prefix}/status/usage-stats"), any(async || "usage-stats is not enabled\n"));
    // Only what is matched here: the API measures itself, and what it doesn't know.
    let operational = match &admin.request_metrics {
        Some(metrics) => operational.route_layer(metrics.clone()),
        None => operational,
    };
    let router = operational
        .with_state(Arc::clone(admin))
        .fallback_service(api)
        .layer(middleware::from_fn_with_state(Arc::clone(admin), connection));
    let router = if admin.config.server.grpc_over_http {
        router.layer(middleware::from_fn_with_state(grpc::router(admin), grpc::over_http))
    } else {
        router
    };
    match credentials {
        Some(credentials) => router.layer(middleware::from_fn_with_state(credentials, authenticate)),
        None => router,
    }
}

/// The internal server: `/ready` and nothing else.
pub(crate) fn internal_router(admin: &Arc<Admin>) -> Router {
    Router::new().route("/ready", any(ready)).with_state(Arc::clone(admin))
}

/// Lets nobody in without credentials but probes, which have none.
async fn authenticate(Shared(credentials): Shared<Arc<Credentials>>, request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/ready" | "/live") || credentials.admit(request.headers()) {
        return next.run(request).await;
    }
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request without valid credentials");
    if grpc::is_grpc(&request) {
        return Status::unauthenticated("no valid credentials").into_http();
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, credentials.challenge())], "no valid credentials\n").into_response()
}

/// Around every request: its log line, and the end of keep-alive while stopping.
async fn connection(Shared(admin): Shared<Arc<Admin>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, uri, version) = (request.method().clone(), request.uri().clone(), request.version());
    let request = match admin.config.server.http_timeouts.read {
        Some(timeout) => request.map(|body| listener::read_within(timeout, body)),
        None => request,
    };
    let mut response = next.run(request).await;
    let (status, elapsed) = (response.status(), started.elapsed());
    let message = || format!("{method} {uri} ({}) {elapsed:.1?}", status.as_u16());
    if status.is_server_error() && !matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE) {
        tracing::warn!("{}", message());
    } else if admin.config.server.log_requests_at_info {
        tracing::info!("{}", message());
    } else if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!("{}", message());
    }
    if admin.stopping.is_thrown() && version <= Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// For liveness probes: true while the process answers at all, also while it starts, recovers, drains or waits for others. A restart mends
/// none of those.
async fn live() -> &'static str {
    "live\n"
}

/// Go's profiles are those of its runtime. What of them a process of another kind could have, profilers of the operating system tell better.
async fn no_profiles() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there are no profiles here, this is not a Go process: use perf or another profiler of the operating system\n")
}

async fn ready(Shared(admin): Shared<Arc<Admin>>) -> Response {
    let (status, text) = admin.readiness();
    (status, text).into_response()
}

async fn metrics(Shared(admin): Shared<Arc<Admin>>, headers: HeaderMap) -> Response {
    let families = admin.registry.gather();
    if accepts(&headers, "application/openmetrics-text") {
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return ([(header::CONTENT_TYPE, content_type)], openmetrics::encode(&families)).into_response();
    }
    match TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[derive(serde::Deserialize)]
struct ModeQuery {
    mode: Option<String>,
}

const SECTIONS: &[&str] = &["version", "services", "endpoints", "runtime_config", "config"];

async fn status(Shared(admin): Shared<Arc<Admin>>, Query(query): Query<ModeQuery>) -> Response {
    sections(&admin, SECTIONS, query.mode.as_deref())
}

async fn status_section(Shared(admin): Shared<Arc<Admin>>, Path(name): Path<String>, Query(query): Query<ModeQuery>) -> Response {
    if !SECTIONS.contains(&name.as_str()) {
        return (StatusCode::NOT_FOUND, format!("no such section: {name} (one of {})\n", SECTIONS.join(", "))).into_response();
    }
    sections(&admin, &[&name], query.mode.as_deref())
}

fn sections(admin: &Admin, names: &[&str], mode: Option<&str>) -> Response {
    let mode = match Mode::parse(mode) {
        Ok(mode) => mode,
        Err(text) => return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
    };
    let mut out = String::new();
    for name in names {
        _ = writeln!(out, "GET /status/{name}");
        match *name {
            "version" => out.push_str(&process::version_text()),
            "services" => {
                let rows: Vec<_> = admin.services.rows().into_iter().map(Vec::from).collect();
                out.push_str(&table(&["service name", "status", "failure case"], &rows));
            }
            "endpoints" => out.push_str(&endpoints(admin)),
            "runtime_config" => out.push_str(&runtime_config(&admin.overrides, mode)),
            _ => _ = writeln!(out, "---\n{}", admin.config.to_yaml(mode).trim_end()),
        }
        out.push('\n');
    }
    ([(header::CONTENT_TYPE, "text/plain")], out).into_response()
}

fn endpoints(admin: &Admin) -> String {
    let mut rows: Vec<Vec<String>> = ROUTES.iter().map(|(name, path)| vec![(*name).to_owned(), (*path).to_owned()]).collect();
    for path in [&admin.pages, &admin.api].into_iter().filter_map(OnceLock::get).flat_map(|(_, routes)| routes) {
        let words: Vec<_> = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        rows.push(vec![words.join("_").to_lowercase(), path.clone()]);
    }
    rows.sort();
    format!("{}API documentation: https://grafana.com/docs/tempo/latest/api_docs/\n", table(&["name", "path"], &rows))
}

async fn status_overrides(Shared(admin): Shared<Arc<Admin>>, headers: HeaderMap) -> Response {
    let (entries, own) = (admin.overrides.entries(), admin.overrides.own());
    let tenants: BTreeSet<&String> = entries.keys().chain(own.keys()).collect();
    let now = logging::timestamp(SystemClock.now());
    if !accepts(&headers, "application/json") {
        let mut rows = String::new();
        let word = |is_so: bool| if is_so { "yes" } else { "no" };
        for tenant in tenants {
            let (runtime, own) = (word(entries.contains_key(tenant)), word(own.contains_key(tenant)));
            _ = write!(rows, "<tr><td>{}</td><td>{runtime}</td><td>{own}</td></tr>", escape(tenant));
        }
        return Html(format!(
            "<!doctype html><title>Overrides</title><h1>Overrides</h1><p>{now}</p><table><tr><th>tenant</th><th>runtime overrides</th><th>user-configurable overrides</th></tr>{rows}</table>"
        ))
        .into_response();
    }
    let tenant = |name: &String| {
        let (runtime, own) = (entries.contains_key(name), own.contains_key(name));
        serde_json::json!({"name": name, "has_runtime_overrides": runtime, "has_user_configurable_overrides": own})
    };
    axum::Json(serde_json::json!({"now": now, "tenants": tenants.into_iter().map(tenant).collect::<Vec<_>>()})).into_response()
}

async fn status_overrides_tenant(Shared(admin): Shared<Arc<Admin>>, Path(tenant): Path<String>) -> Response {
    let entries = admin.overrides.entries();
    let own = entries.get(&tenant);
    let effective = own.or_else(|| entries.get("*"));
    axum::Json(serde_json::json!({
        "now": logging::timestamp(SystemClock.now()),
        "tenant": tenant,
        "user_configurable_overrides": admin.overrides.own().get(&tenant).map(tenant_json),
        "runtime_overrides": effective.map(tenant_json),
        "using_default_or_wildcard_runtime_overrides": own.is_none(),
    }))
    .into_response()
}

pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|text| text.contains(media_type)))
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Binds a listener.
///
/// # Errors
/// The address is taken or can't be resolved; the error names it.
pub(crate) fn bind(endpoint: &str) -> impl Future<Output = anyhow::Result<TcpListener>> {
    let endpoint = endpoint.to_owned();
    async move { TcpListener::bind(&endpoint).await.map_err(|error| anyhow::anyhow!("failed to listen on {endpoint}: {error}")) }
}

/// `-health`: asks a URL, which must be plain http, and says whether the answer is 2xx.
///
/// # Errors
/// What went wrong, or the answer.
pub(crate) fn health(url: &str) -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow::anyhow!("{url} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address =
        if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { host.to_owned() } else { format!("{host}:80") };
    let timeout = Some(Duration::from_secs(5));
    let mut stream = std::net::TcpStream::connect(&address).map_err(|error| anyhow::anyhow!("failed to connect to {address}: {error}"))?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status.starts_with('2'), "{url} answered {}", answer.lines().next().unwrap_or("nothing"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{self, Request as Load},
        services::State,
    };
    use axum::body::Body;

    struct Fixture {
        admin: Arc<Admin>,
        services: Services,
        stop: tokio::sync::watch::Sender<bool>,
        _dir: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("tempo.yaml");
        let overrides = dir.path().join("overrides.yaml");
        std::fs::write(&overrides, "overrides:\n  a&b: {ingestion: {rate_limit_bytes: 5}, read: {max_search_duration: 1d}}\n")
            .expect("writable");
        std::fs::write(&file, format!("overrides: {{per_tenant_override_config: {}}}\nhttp_api_prefix: /tempo\n", overrides.display()))
            .expect("writable");
        let config = Arc::new(config::load(&Load { file: Some(file), ..Load::default() }, &|_| None).expect("a right file"));
        let registry = Registry::new();
        let overrides = Arc::new(Overrides::new(config.overrides.clone(), &registry).expect("a right file"));
        let (stop, stopping) = Shutdown::new();
        let services = Services::default();
        let admin = Admin::new(config, overrides, registry, services.clone(), stopping).expect("an empty registry");
        Fixture { admin, services, stop, _dir: dir }
    }

    async fn get(fixture: &Fixture, uri: &str, accept: &str) -> (u16, HeaderMap, String) {
        let request = Request::builder().uri(uri).header(header::ACCEPT, accept).body(Body::empty()).expect("a request");
        let response = router(&fixture.admin, None).oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn readiness_follows_services_checks_and_shutdown() {
        let fixture = fixture();
        fixture.services.set("wal", State::Starting);
        let body = async || get(&fixture, "/ready", "*/*").await;
        let live = get(&fixture, "/live", "*/*").await;
        assert_eq!((live.0, live.2.as_str()), (200, "live\n"), "also before anything is ready");
        assert_eq!((body().await.0, body().await.2.as_str()), (503, "Some services are not Running:\nStarting: 1\n"));
        fixture.services.set("wal", State::Running);
        assert_eq!((body().await.0, body().await.2.as_str()), (200, "ready\n"));
        fixture.admin.check_ready_by(vec![Box::new(|| Ok(()))]);
        fixture.admin.check_ready_by(vec![Box::new(|| Err("Ingester not ready: replaying".to_owned()))]);
        assert_eq!((body().await.0, body().await.2.as_str()), (503, "Ingester not ready: replaying\n"));
        fixture.stop.send(true).expect("somebody listens");
        let (status, headers, text) = body().await;
        assert_eq!((status, text.as_str()), (503, "Application is stopping\n"));
        assert_eq!(headers[header::CONNECTION], "close");
    }

    #[tokio::test]
    async fn the_api_is_put_in_later() {
        let fixture = fixture();
        assert_eq!(get(&fixture, "/tempo/api/echo", "*/*").await.0, 503);
        let api = Router::new().route("/tempo/api/echo", any(async || "echo\n"));
        assert!(fixture.admin.serve_api(api, vec!["/tempo/api/echo".to_owned()]));
        assert_eq!(get(&fixture, "/tempo/api/echo", "*/*").await.2, "echo\n");
        assert_eq!(get(&fixture, "/nowhere", "*/*").await.0, 404);
        let (_, _, text) = get(&fixture, "/metrics", "*/*").await;
        let count = |route: &str| {
            let rest = text
                .lines()
                .find(|line| line.starts_with("tempo_request_duration_seconds_count") && line.contains(&format!("route=\"{route}\"")));
            rest.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        };
        assert_eq!((count("tempo_api_echo"), count("notfound")), (Some(1), Some(1)), "{text}");
        let (_, _, text) = get(&fixture, "/status/endpoints", "*/*").await;
        assert!(text.starts_with("GET /status/endpoints\n+-") && text.contains("| tempo_api_echo "), "{text}");
    }

    #[tokio::test]
    async fn status_pages() {
        let fixture = fixture();
        let (status, headers, text) = get(&fixture, "/status", "*/*").await;
        assert_eq!((status, headers[header::CONTENT_TYPE].as_bytes()), (200, b"text/plain".as_slice()));
        let order: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("GET /status/")).collect();
        assert_eq!(order, SECTIONS);
        assert_eq!(get(&fixture, "/status/config?mode=all", "*/*").await.0, 500);
        assert_eq!(get(&fixture, "/status/config?mode=all", "*/*").await.2, "unknown value for mode query parameter: all");
        let (_, _, text) = get(&fixture, "/status/config?mode=diff", "*/*").await;
        assert!(
            text.starts_with("GET /status/config\n---\nhttp_api_prefix: /tempo\noverrides:\n    per_tenant_override_config: "),
            "{text}"
        );
        let (_, _, text) = get(&fixture, "/status/runtime_config?mode=diff", "*/*").await;
        let expected = "overrides:\n    \"a&b\":\n        ingestion:\n            rate_limit_bytes: 5\n        read:\n            max_search_duration: 1d\n";
        assert_eq!(text, format!("GET /status/runtime_config\n{expected}\n"));
        assert_eq!(get(&fixture, "/status/nothing", "*/*").await.0, 404);
        assert_eq!(get(&fixture, "/tempo/status/usage-stats", "*/*").await.2, "usage-stats is not enabled\n");
        assert!(
            get(&fixture, "/metrics", "*/*")
                .await
                .2
                .contains("tempo_limits_overrides{limit_name=\"ingestion_rate_limit_bytes\",user=\"a&b\"} 5\n")
        );
    }

    #[tokio::test]
    async fn overrides_pages() {
        let fixture = fixture();
        let (_, _, text) = get(&fixture, "/status/overrides", "text/html").await;
        assert!(text.contains("<td>a&amp;b</td>"), "{text}");
        let (_, _, text) = get(&fixture, "/status/overrides", "application/json").await;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            json["tenants"][0],
            serde_json::json!({"name": "a&b", "has_runtime_overrides": true, "has_user_configurable_overrides": false})
        );
        let (_, _, text) = get(&fixture, "/status/overrides/a&b", "*/*").await;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            json["runtime_overrides"],
            serde_json::json!({"ingestion": {"rate_limit_bytes": 5}, "read": {"max_search_duration": "1d"}})
        );
        assert_eq!(json["using_default_or_wildcard_runtime_overrides"], false);
        let (_, _, text) = get(&fixture, "/status/overrides/other", "*/*").await;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&json["runtime_overrides"], json["using_default_or_wildcard_runtime_overrides"].as_bool()),
            (&serde_json::Value::Null, Some(true))
        );
    }
}
