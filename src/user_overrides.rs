//! Overrides that tenants set for themselves (`overrides.user_configurable_overrides`): where they are kept, and `/api/overrides`.
//!
//! ```text
//!  bucket: overrides/<tenant>/overrides.json ──every poll_interval──► documents ──► Overrides ──► limits of everything
//!             ▲                                                          ▲
//!             └── check the version, write ── GET, POST, PATCH, DELETE ──┘ at once in this process, elsewhere with the next poll
//! ```
//!
//! The version of a document is the tag that the bucket gives it. Who changes one names the version that it has seen, so that two people do
//! not undo each other's work; between reading the version and writing there is a moment in which another process may write, as with Tempo
//! on buckets without versions.
//!
//! *Invariants:* a document that cannot be read, or is wrong, leaves the one before in place, and is counted; what is stored was valid when it
//! was stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{IntCounter, Registry};
use storage::{
    backend::{self, Store, StoreError, Version},
    id::Tenant,
};
use tokio::sync::Mutex;

use crate::{
    app::App,
    config::{self, Backend, Overrides, OwnOverrides},
};

/// Its path, after the prefix.
pub(crate) const ROUTE: &str = "/api/overrides";

/// Name of a tenant's document.
const OBJECT: &str = "overrides.json";

/// Largest document.
const MAX_BYTES: u64 = 1 << 20;

/// Version of a document of a bucket that has none.
const UNVERSIONED: &str = "1";

/// Documents of all tenants. See the module documentation.
#[derive(Debug)]
pub(crate) struct UserOverrides {
    settings: config::UserOverrides,
    multitenancy: bool,
    store: Store,
    overrides: Arc<Overrides>,
    /// Held while documents are read or written, so that neither sees half of the other.
    documents: Mutex<BTreeMap<Tenant, Stored>>,
    failed: IntCounter,
}

#[derive(Clone, Debug)]
struct Stored {
    document: OwnOverrides,
    /// As the bucket says it, quotes and all.
    tag: Option<String>,
}

impl Stored {
    fn version(&self) -> &str {
        self.tag.as_deref().map_or(UNVERSIONED, |tag| tag.trim_matches('"'))
    }
}

/// Reads all documents, and goes on doing so, if tenants may set overrides.
pub(crate) async fn start(app: &mut App) -> anyhow::Result<()> {
    let Some(settings) = app.config.user_overrides.clone() else { return Ok(()) };
    let store = open(&settings.backend).await.context("overrides.user_configurable_overrides.client")?;
    let user_overrides = UserOverrides::new(settings, app.config.multitenancy, store, Arc::clone(&app.overrides), &app.registry)?;
    let user_overrides = Arc::new(user_overrides);
    // A bucket that is away does not keep the process from starting: the limits of the operator hold.
    user_overrides.poll().await;
    let polling = Arc::clone(&user_overrides);
    app.spawn("user-configurable-overrides", async move |mut shutdown| {
        loop {
            tokio::select! {
                () = tokio::time::sleep(polling.settings.poll_interval.max(Duration::from_millis(10))) => polling.poll().await,
                () = shutdown.wait() => return Ok(()),
            }
        }
    });
    app.user_overrides = Some(user_overrides);
    Ok(())
}

/// The bucket that documents are in.
async fn open(backend: &Backend) -> anyhow::Result<Store> {
    const FOLDER: &str = "overrides";
    let mut settings = match backend {
        Backend::Store(settings) => settings.clone(),
        Backend::Unknown(name) => anyhow::bail!("unknown backend \"{name}\" (one of local, s3, gcs, azure)"),
    };
    let below = |prefix: &mut String| *prefix = format!("{}/{FOLDER}", prefix.trim_end_matches('/')).trim_start_matches('/').to_owned();
    match &mut settings {
        backend::Settings::Local(path) => {
            anyhow::ensure!(!path.as_os_str().is_empty(), "local.path is empty");
            path.push(FOLDER);
        }
        backend::Settings::S3(s3) => below(&mut s3.prefix),
        backend::Settings::Gcs(gcs) => below(&mut gcs.prefix),
        backend::Settings::Azure(azure) => below(&mut azure.prefix),
        backend::Settings::Memory => {}
    }
    // Requests of the store of blocks are counted, and there is one set of metrics.
    let components =
        backend::Components { registry: &Registry::new(), seed: std::process::id().into(), env: &|name| std::env::var(name).ok() };
    Ok(backend::open(&settings, components).await?)
}

impl UserOverrides {
    fn new(
        settings: config::UserOverrides,
        multitenancy: bool,
        store: Store,
        overrides: Arc<Overrides>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let failed = IntCounter::new(
            "tempo_overrides_user_configurable_overrides_reload_failed_total",
            "Times that the overrides of a tenant, or the list of tenants that have some, could not be read.",
        )?;
        registry.register(Box::new(failed.clone()))?;
        Ok(Self { settings, multitenancy, store, overrides, documents: Mutex::default(), failed })
    }

    /// Reads what has changed in the bucket.
    async fn poll(&self) {
        let mut documents = self.documents.lock().await;
        let tenants = match self.store.tenants().await {
            Ok(tenants) => tenants,
            Err(error) => {
                self.failed.inc();
                tracing::error!(err = chain(&error), "tenants with overrides of their own cannot be listed");
                return;
            }
        };
        let listed: BTreeSet<Tenant> = tenants.into_iter().collect();
        documents.retain(|tenant, _| listed.contains(tenant));
        for tenant in &listed {
            if let Err(why) = self.refresh(tenant, &mut documents).await {
                self.failed.inc();
                tracing::error!(tenant = tenant.as_str(), err = why, "overrides of a tenant cannot be read");
            }
        }
        self.publish(&documents);
    }

    /// Reads a tenant's document, if it has changed.
    async fn refresh(&self, tenant: &Tenant, documents: &mut BTreeMap<Tenant, Stored>) -> Result<(), String> {
        let known = documents.get(tenant).and_then(|stored| stored.tag.clone());
        match self.store.version_of_tenant(tenant, OBJECT, known.as_deref(), MAX_BYTES).await.map_err(|error| chain(&error))? {
            Version::Unchanged => {}
            Version::Missing => _ = documents.remove(tenant),
            Version::TooLarge(bytes) => return Err(format!("the document has {bytes} bytes, and may have {MAX_BYTES}")),
            Version::Changed(bytes, tag) => {
                let document = OwnOverrides::parse(&bytes, &self.settings.forwarders)?;
                documents.insert(tenant.clone(), Stored { document, tag });
            }
        }
        Ok(())
    }

    /// What is known holds from now on.
    fn publish(&self, documents: &BTreeMap<Tenant, Stored>) {
        let settings = documents.iter().map(|(tenant, stored)| (tenant.as_str().to_owned(), stored.document.settings.clone()));
        self.overrides.set_own(settings);
    }

    /// `/api/overrides`.
    pub(crate) fn router(self: &Arc<Self>, prefix: &str) -> Router {
        let methods = get(show).post(replace).patch(change).delete(remove);
        Router::new().route(&format!("{prefix}{ROUTE}"), methods).with_state(Arc::clone(self))
    }

    fn tenant(&self, headers: &HeaderMap) -> Result<Tenant, Refusal> {
        query::tenant_of(headers, self.multitenancy).map_err(|(status, text)| Refusal { status, text })
    }

    /// Writes a tenant's document, and has it hold. Returns what is stored then.
    async fn write(&self, tenant: &Tenant, document: &OwnOverrides, documents: &mut BTreeMap<Tenant, Stored>) -> Result<Stored, Refusal> {
        let bytes = Bytes::from(document.json.to_string());
        self.store.put_of_tenant(tenant, OBJECT, bytes).await.map_err(|error| unreachable(&error))?;
        documents.remove(tenant);
        self.refresh(tenant, documents).await.map_err(|why| refusal(StatusCode::INTERNAL_SERVER_ERROR, &why))?;
        self.publish(documents);
        documents.get(tenant).cloned().ok_or_else(|| refusal(StatusCode::INTERNAL_SERVER_ERROR, "the document is gone"))
    }

    /// Refuses a tenant's first document if the operator has said something of the same keys.
    fn check_conflicts(&self, tenant: &Tenant, parameters: &Parameters) -> Result<(), Refusal> {
        let skip = match parameters.skip_conflicting_overrides_check.as_deref() {
            None | Some("") => false,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(_) => {
                let text = "could not parse skip-conflicting-overrides-check, must be a boolean value";
                return Err(refusal(StatusCode::BAD_REQUEST, text));
            }
        };
        let is_checked = self.settings.check_conflicts && !skip;
        let entries = self.overrides.entries();
        if is_checked && entries.get(tenant.as_str()).is_some_and(|entry| config::conflicts(&entry.settings)) {
            let text = "tenant has conflicting overrides set in runtime config, contact your system administrator to perform changes through \
                        the API";
            return Err(refusal(StatusCode::BAD_REQUEST, text));
        }
        Ok(())
    }
}

#[derive(Debug, serde::Deserialize)]
struct Parameters {
    scope: Option<String>,
    #[serde(rename = "skip-conflicting-overrides-check")]
    skip_conflicting_overrides_check: Option<String>,
}

type Handled = Result<Response, Refusal>;

async fn show(State(all): State<Arc<UserOverrides>>, Query(parameters): Query<Parameters>, headers: HeaderMap) -> Handled {
    let tenant = all.tenant(&headers)?;
    let is_merged = match parameters.scope.as_deref() {
        None | Some("" | "api") => false,
        Some("merged") => true,
        Some(other) => {
            return Err(refusal(StatusCode::BAD_REQUEST, &format!("unknown scope \"{other}\", valid options are api and merged")));
        }
    };
    let mut documents = all.documents.lock().await;
    all.refresh(&tenant, &mut documents).await.map_err(|why| refusal(StatusCode::INTERNAL_SERVER_ERROR, &why))?;
    all.publish(&documents);
    let Some(stored) = documents.get(&tenant) else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    let json = if is_merged {
        config::to_json(&all.overrides.merged(tenant.as_str(), &stored.document.settings))
    } else {
        stored.document.json.clone()
    };
    Ok((e_tag(stored), axum::Json(json)).into_response())
}

async fn replace(State(all): State<Arc<UserOverrides>>, Query(parameters): Query<Parameters>, headers: HeaderMap, body: Bytes) -> Handled {
    let tenant = all.tenant(&headers)?;
    let seen = seen_version(&headers)?;
    let document = OwnOverrides::parse(&body, &all.settings.forwarders).map_err(|why| refusal(StatusCode::BAD_REQUEST, &why))?;
    let mut documents = all.documents.lock().await;
    all.refresh(&tenant, &mut documents).await.map_err(|why| refusal(StatusCode::INTERNAL_SERVER_ERROR, &why))?;
    check_version(documents.get(&tenant), &seen)?;
    if !documents.contains_key(&tenant) {
        all.check_conflicts(&tenant, &parameters)?;
    }
    let stored = all.write(&tenant, &document, &mut documents).await?;
    Ok(e_tag(&stored).into_response())
}

async fn change(State(all): State<Arc<UserOverrides>>, Query(parameters): Query<Parameters>, headers: HeaderMap, body: Bytes) -> Handled {
    let tenant = all.tenant(&headers)?;
    let invalid = |why: &str| refusal(StatusCode::BAD_REQUEST, why);
    let patch: serde_json::Value = serde_json::from_slice(&body).map_err(|error| invalid(&format!("json: {error}")))?;
    let mut documents = all.documents.lock().await;
    all.refresh(&tenant, &mut documents).await.map_err(|why| refusal(StatusCode::INTERNAL_SERVER_ERROR, &why))?;
    let before = documents.get(&tenant);
    if before.is_none() {
        all.check_conflicts(&tenant, &parameters)?;
    }
    let json = OwnOverrides::patched(before.map(|stored| &stored.document), &patch);
    let document = OwnOverrides::new(json, &all.settings.forwarders).map_err(|why| invalid(&why))?;
    let stored = all.write(&tenant, &document, &mut documents).await?;
    Ok((e_tag(&stored), axum::Json(stored.document.json)).into_response())
}

async fn remove(State(all): State<Arc<UserOverrides>>, headers: HeaderMap) -> Handled {
    let tenant = all.tenant(&headers)?;
    let seen = seen_version(&headers)?;
    let mut documents = all.documents.lock().await;
    all.refresh(&tenant, &mut documents).await.map_err(|why| refusal(StatusCode::INTERNAL_SERVER_ERROR, &why))?;
    let Some(stored) = documents.get(&tenant) else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    check_version(Some(stored), &seen)?;
    all.store.delete_of_tenant(&tenant, OBJECT).await.map_err(|error| unreachable(&error))?;
    documents.remove(&tenant);
    all.publish(&documents);
    Ok(StatusCode::OK.into_response())
}

/// The version that the client has seen; `0` for none.
fn seen_version(headers: &HeaderMap) -> Result<String, Refusal> {
    let version = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok()).map(|value| value.trim_matches('"').to_owned());
    version.filter(|version| !version.is_empty()).ok_or_else(|| refusal(StatusCode::PRECONDITION_REQUIRED, "must specify If-Match header"))
}

fn check_version(stored: Option<&Stored>, seen: &str) -> Result<(), Refusal> {
    if stored.map_or("0", Stored::version) == seen {
        return Ok(());
    }
    Err(refusal(StatusCode::PRECONDITION_FAILED, "version does not match"))
}

fn e_tag(stored: &Stored) -> [(header::HeaderName, HeaderValue); 1] {
    let value = HeaderValue::from_str(stored.version()).unwrap_or(HeaderValue::from_static(UNVERSIONED));
    [(header::ETAG, value)]
}

fn unreachable(error: &StoreError) -> Refusal {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, &chain(error))
}

/// An answer that is an error.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (self.status, headers, self.text + "\n").into_response()
    }
}

fn refusal(status: StatusCode, text: &str) -> Refusal {
    Refusal { status, text: text.to_owned() }
}

fn chain(error: &StoreError) -> String {
    storage::block::chain(error)
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Method, Request},
    };
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    struct Fixture {
        all: Arc<UserOverrides>,
        overrides: Arc<Overrides>,
        dir: tempfile::TempDir,
    }

    async fn fixture(entries: &str) -> Fixture {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (file, runtime) = (dir.path().join("tempo.yaml"), dir.path().join("runtime.yaml"));
        std::fs::write(&runtime, entries).expect("writable");
        let yaml = format!(
            "multitenancy_enabled: true\ndistributor: {{forwarders: [{{name: kafka, backend: otlpgrpc}}]}}\noverrides:\n  per_tenant_override_config: {}\n  \
             user_configurable_overrides:\n    enabled: true\n    api: {{check_for_conflicting_runtime_overrides: true}}\n    client: {{backend: \
             local, local: {{path: {}}}}}\n",
            runtime.display(),
            dir.path().join("bucket").display(),
        );
        std::fs::write(&file, yaml).expect("writable");
        let config = config::load(&config::Request { file: Some(file), ..config::Request::default() }, &|_| None).expect("a right file");
        let registry = Registry::new();
        let overrides = Arc::new(Overrides::new(config.overrides.clone(), &registry).expect("a right file"));
        let settings = config.user_overrides.expect("they are enabled");
        let store = open(&settings.backend).await.expect("a folder");
        let all = UserOverrides::new(settings, true, store, Arc::clone(&overrides), &registry).expect("an empty registry");
        Fixture { all: Arc::new(all), overrides, dir }
    }

    impl Fixture {
        /// Status, version and body of an answer.
        async fn ask(&self, method: Method, uri: &str, tenant: &str, version: Option<&str>, body: &str) -> (u16, String, String) {
            let mut request = Request::builder().method(method).uri(uri).header("X-Scope-OrgID", tenant);
            if let Some(version) = version {
                request = request.header(header::IF_MATCH, version);
            }
            let request = request.body(Body::from(body.to_owned())).expect("a request");
            let response = self.all.router("").oneshot(request).await.expect("infallible");
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
            let version = parts.headers.get(header::ETAG).map_or("", |tag| tag.to_str().expect("text")).to_owned();
            (parts.status.as_u16(), version, String::from_utf8(body.to_vec()).expect("text"))
        }

        async fn get(&self, tenant: &str, query: &str) -> (u16, String, Value) {
            let (status, version, body) = self.ask(Method::GET, &format!("{ROUTE}{query}"), tenant, None, "").await;
            (status, version, serde_json::from_str(&body).unwrap_or(Value::Null))
        }

        fn processors(&self, tenant: &str) -> Vec<String> {
            self.overrides.limits(tenant).processors.clone()
        }
    }

    const SPAN_METRICS: &str = r#"{"metrics_generator": {"processors": ["span-metrics"]}}"#;

    #[tokio::test]
    async fn a_document_from_beginning_to_end() {
        let fixture = fixture("").await;
        assert_eq!(fixture.get("a", "").await.0, 404);
        assert_eq!(fixture.get("a", "?scope=merged").await.0, 404);
        let before = fixture.processors("a");
        let (status, _, text) = fixture.ask(Method::POST, ROUTE, "a", None, SPAN_METRICS).await;
        assert_eq!((status, text.as_str()), (428, "must specify If-Match header\n"));
        let (status, _, text) = fixture.ask(Method::POST, ROUTE, "a", Some("7"), SPAN_METRICS).await;
        assert_eq!((status, text.as_str()), (412, "version does not match\n"));
        let (status, first, text) = fixture.ask(Method::POST, ROUTE, "a", Some("0"), SPAN_METRICS).await;
        assert_eq!((status, text.as_str()), (200, ""));
        assert!(!first.is_empty() && first != "0");
        assert!(fixture.processors("a").contains(&"span-metrics".to_owned()), "at once");
        assert_eq!(fixture.processors("b"), before, "nobody else's");
        assert!(fixture.dir.path().join("bucket/overrides/a/overrides.json").is_file());

        let (status, version, json) = fixture.get("a", "").await;
        assert_eq!((status, &version), (200, &first));
        assert_eq!(json["metrics_generator"]["processors"], json!(["span-metrics"]));
        assert_eq!(json["metrics_generator"]["processor"]["host_info"], json!({}));
        let (_, _, merged) = fixture.get("a", "?scope=merged").await;
        assert_eq!(merged["metrics_generator"]["native_histogram_bucket_factor"], json!(1.1), "{merged}");
        let (status, _, text) = fixture.ask(Method::GET, &format!("{ROUTE}?scope=bad"), "a", None, "").await;
        assert_eq!((status, text.as_str()), (400, "unknown scope \"bad\", valid options are api and merged\n"));

        let patch = r#"{"metrics_generator": {"disable_collection": true, "processors": null}}"#;
        let (status, second, text) = fixture.ask(Method::PATCH, ROUTE, "a", None, patch).await;
        let json: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((status, &json["metrics_generator"]["disable_collection"]), (200, &json!(true)));
        assert!(json["metrics_generator"].get("processors").is_none());
        assert_ne!(second, first);
        assert!(fixture.overrides.limits("a").disable_collection);
        assert_eq!(fixture.processors("a"), before);

        assert_eq!(fixture.ask(Method::DELETE, ROUTE, "a", None, "").await.0, 428);
        assert_eq!(fixture.ask(Method::DELETE, ROUTE, "a", Some(&first), "").await.0, 412);
        assert_eq!(fixture.ask(Method::DELETE, ROUTE, "a", Some(&second), "").await.0, 200);
        assert_eq!(fixture.ask(Method::DELETE, ROUTE, "a", Some(&second), "").await.0, 404);
        assert!(!fixture.overrides.limits("a").disable_collection);
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused() {
        let fixture = fixture(
            "overrides:\n  a: {metrics_generator: {disable_collection: true}}\n  b: {metrics_generator: {processors: [host-info]}}\n",
        )
        .await;
        let (status, _, text) = fixture.ask(Method::POST, ROUTE, "c", Some("0"), r#"{"x": 1}"#).await;
        assert_eq!((status, text.as_str()), (400, "json: unknown field \"x\"\n"));
        let (status, _, text) = fixture.ask(Method::PATCH, ROUTE, "c", None, r#"{"forwarders": ["x"]}"#).await;
        assert_eq!((status, text.as_str()), (400, "forwarder \"x\" is not a known forwarder, contact your system administrator\n"));
        assert_eq!(fixture.ask(Method::PATCH, ROUTE, "c", None, r#"{"forwarders": ["kafka"]}"#).await.0, 200);
        let (status, _, text) = fixture.ask(Method::POST, ROUTE, "a", Some("0"), SPAN_METRICS).await;
        assert!(status == 400 && text.starts_with("tenant has conflicting overrides set in runtime config"), "{status} {text}");
        let skipping = |value: &str| format!("{ROUTE}?skip-conflicting-overrides-check={value}");
        assert_eq!(fixture.ask(Method::POST, &skipping("maybe"), "a", Some("0"), SPAN_METRICS).await.0, 400);
        assert_eq!(fixture.ask(Method::POST, &skipping("true"), "a", Some("0"), SPAN_METRICS).await.0, 200);
        assert_eq!(fixture.ask(Method::POST, ROUTE, "b", Some("0"), SPAN_METRICS).await.0, 200, "processors are no conflict");
        assert_eq!(fixture.processors("b"), ["host-info", "span-metrics"], "what any of both names");
        assert_eq!(fixture.ask(Method::GET, ROUTE, "", None, "").await.0, 401);
        assert_eq!(fixture.ask(Method::GET, ROUTE, "a|b", None, "").await.0, 400);
    }

    #[tokio::test]
    async fn documents_of_others_are_read_and_mistakes_keep_the_last() {
        let fixture = fixture("").await;
        let folder = fixture.dir.path().join("bucket/overrides/a");
        std::fs::create_dir_all(&folder).expect("writable");
        std::fs::write(folder.join(OBJECT), SPAN_METRICS).expect("writable");
        fixture.all.poll().await;
        assert!(fixture.processors("a").contains(&"span-metrics".to_owned()));
        std::fs::write(folder.join(OBJECT), "not JSON at all, and longer than before, so that its tag differs: 1234567890")
            .expect("writable");
        fixture.all.poll().await;
        assert!(fixture.processors("a").contains(&"span-metrics".to_owned()));
        assert_eq!(fixture.all.failed.get(), 1);
        std::fs::remove_dir_all(&folder).expect("writable");
        fixture.all.poll().await;
        assert!(!fixture.processors("a").contains(&"span-metrics".to_owned()));
        assert_eq!(fixture.all.failed.get(), 1);
    }
}
