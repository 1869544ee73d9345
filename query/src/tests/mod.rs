//! The whole query side against an in-memory bucket and recent data that tests put there.

mod border;
mod deleted;
mod errors;
mod external;
mod jobs;
mod mcp;
mod metrics;
mod querier;
mod search;
mod streaming;
mod tags;
mod trace_by_id;
mod truth;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use object_store::memory::InMemory;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status},
};
use parking_lot::Mutex;
use prometheus::Registry;
use prost::Message as _;
use storage::{
    backend::Store,
    block::{self, Meta, TraceSegments},
    blocklist::Blocklist,
    clock::ManualClock,
    id::{BlockId, Tenant, TraceId},
    otlp::{self, Walk},
    recent::{Coverage, RecentAnswer, RecentPart, RecentTrace},
    segment::Segment,
    wal::Position,
};
use tower::ServiceExt as _;

use crate::{ApiSettings, Engine, Limits, Recent, RecentError, RequestMetrics, Settings, router};

/// The time of all tests, Unix seconds.
const NOW: u64 = 1_700_000_000;

/// Everything around the router.
struct World {
    clock: ManualClock,
    recent: Arc<FakeRecent>,
    objects: Arc<InMemory>,
    store: Store,
    blocklist: Blocklist,
    registry: Registry,
    settings: Settings,
    api: ApiSettings,
    limits: Limits,
    /// How blocks are written.
    block: block::Settings,
    blocks: Mutex<u128>,
}

impl World {
    fn new() -> Self {
        let objects = Arc::new(InMemory::new());
        Self {
            clock: ManualClock::new(Duration::from_secs(NOW)),
            recent: Arc::default(),
            store: Store::new(Arc::<InMemory>::clone(&objects), ""),
            objects,
            blocklist: Blocklist::default(),
            registry: Registry::new(),
            settings: Settings::default(),
            api: ApiSettings::default(),
            limits: Limits::default(),
            block: block::Settings::default(),
            blocks: Mutex::default(),
        }
    }

    fn local_engine(&self) -> Arc<Engine> {
        let recent: Arc<dyn Recent> = Arc::<FakeRecent>::clone(&self.recent);
        let (store, blocklist, clock) = (self.store.clone(), self.blocklist.clone(), Arc::new(self.clock.clone()));
        let engine = Engine::new(self.settings.clone(), store, blocklist, recent, clock, &Registry::new()).expect("metrics are new");
        Arc::new(engine.with_overrides(Arc::new(self.limits)))
    }

    fn router(&self) -> Router {
        router(self.local_engine(), self.api.clone())
    }

    /// Puts spans into recent data.
    fn receive(&self, tenant: &Tenant, spans: Vec<ResourceSpans>) {
        let mut data = self.recent.data.lock();
        for segment in segments(tenant, spans) {
            data.entry(tenant.clone()).or_default().entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
    }

    /// Writes a block, without listing it.
    async fn write_block(&self, tenant: &Tenant, spans: Vec<ResourceSpans>) -> Meta {
        let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
        for segment in segments(tenant, spans) {
            traces.entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
        let traces: Vec<_> = traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect();
        let id = {
            let mut blocks = self.blocks.lock();
            *blocks += 1;
            BlockId::from_u128(*blocks)
        };
        let block = block::encode(&self.block, tenant, id, &traces).expect("valid segments");
        self.store.put(&block).await.expect("memory");
        self.store.publish(&block.meta).await.expect("memory");
        block.meta
    }

    /// Writes and lists a block.
    async fn cut(&self, tenant: &Tenant, spans: Vec<ResourceSpans>) {
        let meta = self.write_block(tenant, spans).await;
        self.blocklist.add(meta);
    }
}

fn segments(tenant: &Tenant, resource_spans: Vec<ResourceSpans>) -> Vec<Segment> {
    let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
    let mut walk = Walk::default();
    otlp::validate(&body, usize::MAX, &mut walk).expect("tests send valid spans");
    Segment::split(tenant, Position(0), &body, &walk)
}

/// What happens at a moment of a query.
type Hook = Box<dyn FnMut(&mut Data) + Send>;
type Data = HashMap<Tenant, BTreeMap<TraceId, Vec<Arc<Segment>>>>;

/// Recent data in a map, with a hook before and after each read.
#[derive(Default)]
struct FakeRecent {
    data: Mutex<Data>,
    /// Blocks that traces are going into.
    going: Arc<Mutex<HashMap<TraceId, BlockId>>>,
    /// Blocks that data became lately.
    published: Arc<Mutex<Vec<Arc<Meta>>>>,
    hook: Mutex<Option<Hook>>,
    failure: Mutex<Option<RecentError>>,
}

impl std::fmt::Debug for FakeRecent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeRecent").finish_non_exhaustive()
    }
}

impl FakeRecent {
    fn read<T>(&self, tenant: &Tenant, read: impl FnOnce(&Data) -> T) -> Result<RecentAnswer<T>, RecentError> {
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        let mut data = self.data.lock();
        self.moment(&mut data);
        let published = self.published.lock().iter().filter(|meta| meta.tenant_id == *tenant).cloned().collect();
        let answer = RecentAnswer { data: read(&data), published, coverage: Coverage::ALONE };
        self.moment(&mut data);
        Ok(answer)
    }

    fn part(&self, id: TraceId, segments: &[Arc<Segment>]) -> RecentPart {
        RecentPart { going: self.going.lock().get(&id).copied(), segments: segments.to_vec() }
    }

    fn moment(&self, data: &mut Data) {
        if let Some(hook) = self.hook.lock().as_mut() {
            hook(data);
        }
    }
}

#[async_trait]
impl Recent for FakeRecent {
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        self.read(tenant, |data| {
            data.get(tenant).and_then(|traces| traces.get(&id)).map(|segments| self.part(id, segments)).into_iter().collect()
        })
    }

    async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        self.read(tenant, |data| {
            let traces = data.get(tenant).into_iter().flatten();
            traces.map(|(trace_id, segments)| RecentTrace { trace_id: *trace_id, parts: vec![self.part(*trace_id, segments)] }).collect()
        })
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

/// Spans of one service.
fn service(name: &str, spans: Vec<Span>) -> ResourceSpans {
    let resource = Resource { attributes: vec![attribute("service.name", text(name))], ..Resource::default() };
    let scope = InstrumentationScope { name: "otel-lib".to_owned(), version: "1.2.0".to_owned(), ..InstrumentationScope::default() };
    ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

/// A span of a second, `seconds` before now. A parent of 0 makes it a root.
fn span(trace: u128, id: u64, parent: u64, name: &str, seconds: u64) -> Span {
    let start = (NOW - seconds) * 1_000_000_000;
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name: name.to_owned(),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000_000,
        ..Span::default()
    }
}

const SHOP: u128 = 0x0f3e_0cee_77ae_5dc9_c17a_de36_89eb_2e54;
const SHOP_HEX: &str = "f3e0cee77ae5dc9c17ade3689eb2e54";

/// A shop: a root, and a failed call to another service.
fn shop() -> Vec<ResourceSpans> {
    let root = Span { end_time_unix_nano: (NOW - 60) * 1_000_000_000 + 557_000_000, ..span(SHOP, 0x1c1b, 0, "update-billing", 60) };
    let charge = Span {
        kind: 3,
        start_time_unix_nano: (NOW - 60) * 1_000_000_000 + 35_685_173,
        end_time_unix_nano: (NOW - 60) * 1_000_000_000 + 482_664_670,
        attributes: vec![attribute("http.status_code", Value::IntValue(500)), attribute("customer", text("alice"))],
        status: Some(Status { code: 2, message: "boom".to_owned() }),
        ..span(SHOP, 0x563d, 0x1c1b, "charge", 60)
    };
    let pay = Span {
        start_time_unix_nano: (NOW - 60) * 1_000_000_000 + 40_000_000,
        end_time_unix_nano: (NOW - 60) * 1_000_000_000 + 400_000_000,
        ..span(SHOP, 0x77, 0x563d, "pay", 60)
    };
    vec![service("shop-backend", vec![root, charge]), service("payments", vec![pay])]
}

/// What the router answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    #[track_caller]
    fn ok(&self) -> &str {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        self.text()
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).expect("JSON")
    }
}

async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a buffer");
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn get(router: &Router, url: &str) -> Answer {
    get_with(router, url, &[]).await
}

async fn get_with(router: &Router, url: &str, headers: &[(&str, &str)]) -> Answer {
    let request = headers.iter().fold(Request::get(url), |request, (name, value)| request.header(*name, *value));
    send(router, request.body(Body::empty()).expect("request")).await
}

/// Query text in a URL.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[tokio::test]
async fn echo_and_build_info_need_no_tenant() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    world.api.http_api_prefix = "/tempo/".to_owned();
    world.api.build.version = "2.10.8".to_owned();
    let router = world.router();
    let echo = get(&router, "/tempo/api/echo").await;
    assert_eq!((echo.ok(), echo.header("content-type")), ("echo\n", Some("text/plain; charset=utf-8")));
    let info = get(&router, "/tempo/api/status/buildinfo").await;
    assert_eq!(info.ok(), r#"{"version":"2.10.8","revision":"","branch":"","buildUser":"","buildDate":"","goVersion":""}"#);
    assert_eq!(info.header("content-type"), Some("application/json"));
    assert_eq!(get(&router, "/api/echo").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn requests_are_measured_by_route() {
    let world = World::new();
    let metrics = RequestMetrics::new(&world.registry).expect("new");
    let router = world.router().layer(metrics);
    for url in
        ["/api/traces/1", "/api/v2/search/tag/.a%2Fb/values", "/api/search/tag/x/y/values", "/api/search/tag/x", "/nothing", "/api/echo"]
    {
        get(&router, url).await;
    }
    let families = world.registry.gather();
    let mut counted: Vec<_> = families
        .iter()
        .find(|family| family.name() == "tempo_request_duration_seconds")
        .expect("measured")
        .get_metric()
        .iter()
        .map(|metric| {
            let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name).expect("label").value().to_owned();
            format!(
                "{} {} {} {} {}",
                label("method"),
                label("route"),
                label("status_code"),
                label("ws"),
                metric.get_histogram().get_sample_count()
            )
        })
        .collect();
    counted.sort();
    assert_eq!(
        counted,
        [
            "GET api_echo 200 false 1",
            "GET api_search_tag_tagname_values 200 false 1",
            "GET api_traces_traceid 404 false 1",
            "GET api_v2_search_tag_tagname_values 200 false 1",
            "GET notfound 404 false 2",
        ]
    );
}
