//! What Grafana's Tempo data source and Traces Drilldown depend on, one test for each item.
//!
//! All tests of this module share one process with several tenants, which takes gRPC on its HTTP port. The gRPC client is generated from the
//! `.proto` files alone, and JSON is read by types that know exactly the keys that Grafana knows ([`strict`]); neither shares anything with
//! the server but the format. Traces are cut into blocks while the tests run, so every query may meet them on either side or between.

mod drilldown;
mod interop;
mod metrics;
mod query_tool;
mod refusals;
mod search;
mod streaming;
mod strict;
mod tags;
mod traces;

/// The messages and clients, from the `.proto` files.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    clippy::all,
    clippy::clone_on_ref_ptr,
    reason = "generated, and not all of it is used"
)]
pub(crate) mod protocols {
    include!(concat!(env!("OUT_DIR"), "/protocols.rs"));
}

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use prost::Message as _;
use storage::id::TraceId;
use tokio::sync::OnceCell;
use tonic::{Request, transport::Channel};

use self::protocols::tempopb::streaming_querier_client::StreamingQuerierClient;
use crate::harness::{
    client::{Answer, Client},
    eventually, now_ns,
    otlp::{attribute, string},
    server::{Config, Server},
};

/// The tenant with the traces.
const SHOP: &str = "shop";
/// A tenant that knows another part of one of them.
const AUDIT: &str = "audit";

/// A checkout: four spans of two services, one of which failed. Its id begins with zeros.
const CHECKOUT: TraceId = TraceId([0, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0x3e, 0x0c, 0xee, 0x77, 0xae, 0x5d, 0xc9]);
/// As search shows it.
const CHECKOUT_ID: &str = "f3e0cee77ae5dc9";
/// A message that was processed.
const ORDER: TraceId = TraceId([0x51; 16]);
/// A span without resource, scope and status.
const BARE: TraceId = TraceId([0xba; 16]);
/// Traces of one short span, a second apart.
const TICKS: u8 = 30;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// The shared server and when its traces began.
#[derive(Debug)]
struct Fixture {
    server: Server,
    /// Start of the first span, Unix nanoseconds.
    base: u64,
}

impl Fixture {
    /// The server, with its traces.
    async fn get() -> &'static Self {
        static SHARED: OnceCell<Fixture> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let config = Config { multitenancy: true, more: "stream_over_http_enabled: true", ..Config::default() };
        let mut server = Server::start(config).await;
        server.end_with_this_process();
        let base = (now_ns() / SECOND - 100) * SECOND;
        let fixture = Self { server, base };
        fixture.export(SHOP, checkout(base)).await;
        fixture.export(SHOP, vec![order(base + SECOND), bare(base + 2 * SECOND)]).await;
        fixture.export(SHOP, ticks(base + 3 * SECOND)).await;
        fixture.export(AUDIT, vec![audit(base)]).await;
        fixture
    }

    async fn export(&self, tenant: &str, resource_spans: Vec<ResourceSpans>) {
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        self.server.client().with_tenant(tenant).export(body, None).await.expect("acknowledged");
    }

    fn client(&self) -> Client {
        self.server.client().with_tenant(SHOP)
    }

    /// The range of the traces in seconds, as parameters.
    fn range(&self) -> [(&'static str, String); 2] {
        let [start, end] = self.seconds();
        [("start", start.to_string()), ("end", end.to_string())]
    }

    fn seconds(&self) -> [u32; 2] {
        let seconds = |nanos: u64| u32::try_from(nanos / SECOND).expect("before 2106");
        [seconds(self.base) - 60, seconds(self.base) + 60]
    }

    /// Asks for a path with parameters and the range of the traces.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Answer {
        let range = self.range();
        let range = range.iter().map(|(name, value)| (*name, value.as_str()));
        let parameters: Vec<_> = parameters.iter().copied().chain(range).collect();
        self.client().query(path, &parameters).await
    }

    /// The traces that a query finds, newest first.
    async fn search(&self, q: &str) -> Vec<strict::Trace> {
        self.search_with(q, &[("limit", "200"), ("spss", "20")]).await
    }

    async fn search_with(&self, q: &str, parameters: &[(&str, &str)]) -> Vec<strict::Trace> {
        let parameters: Vec<_> = [("q", q)].iter().chain(parameters).copied().collect();
        let answer = self.ask("/api/search", &parameters).await;
        assert_eq!(answer.status, 200, "{q}: {}", answer.text());
        strict::search(&answer).traces
    }

    /// Waits until everything that was sent is in blocks.
    async fn wait_for_blocks(&self) {
        let all = u64::from(TICKS) + 3;
        eventually("the traces in blocks", || async { (self.server.traces_in_blocks(SHOP) >= all).then_some(()) }).await;
    }

    /// A gRPC client of the HTTP port, as Grafana has it.
    fn streaming(&self) -> StreamingQuerierClient<Channel> {
        StreamingQuerierClient::new(Channel::from_shared(self.server.url()).expect("a URL").connect_lazy())
    }
}

/// A request with the tenant's name.
fn of_tenant<M>(tenant: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", tenant.parse().expect("a header"));
    request
}

fn resource(attributes: Vec<KeyValue>, spans: Vec<Span>) -> ResourceSpans {
    let scope = InstrumentationScope { name: "by hand".to_owned(), version: "1.2".to_owned(), ..InstrumentationScope::default() };
    ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

fn service(name: &str, spans: Vec<Span>) -> ResourceSpans {
    resource(vec![string("service.name", name)], spans)
}

/// A span; a parent of 0 makes it a root.
fn span(trace: TraceId, [id, parent]: [u64; 2], kind: i32, name: &str, start: u64, duration: u64) -> Span {
    Span {
        trace_id: trace.0.to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name: name.to_owned(),
        kind,
        start_time_unix_nano: start,
        end_time_unix_nano: start + duration,
        status: Some(Status::default()),
        ..Span::default()
    }
}

fn checkout(base: u64) -> Vec<ResourceSpans> {
    let root = Span {
        attributes: vec![string("http.method", "GET"), attribute("http.status_code", Any::IntValue(200))],
        ..span(CHECKOUT, [1, 0], 2, "GET /checkout", base, 557 * MILLISECOND)
    };
    let both = ArrayValue { values: ["a", "b"].map(|text| AnyValue { value: Some(Any::StringValue(text.to_owned())) }).to_vec() };
    let charge = Span {
        attributes: vec![
            attribute("http.status_code", Any::IntValue(500)),
            string("customer", "alice"),
            attribute("retried", Any::BoolValue(true)),
            attribute("ratio", Any::DoubleValue(0.5)),
            attribute("skus", Any::ArrayValue(both)),
        ],
        events: vec![Event {
            time_unix_nano: base + 36 * MILLISECOND,
            name: "exception".to_owned(),
            attributes: vec![
                string("exception.type", "IOError"),
                string("exception.message", "connection reset"),
                string("exception.stacktrace", "at charge\nat pay"),
            ],
            ..Event::default()
        }],
        links: vec![Link { trace_id: ORDER.0.to_vec(), span_id: 5u64.to_be_bytes().to_vec(), ..Link::default() }],
        status: Some(Status { code: 2, message: "boom".to_owned() }),
        ..span(CHECKOUT, [2, 1], 3, "charge", base + 35 * MILLISECOND, 446 * MILLISECOND)
    };
    let pay = span(CHECKOUT, [3, 2], 2, "pay", base + 40 * MILLISECOND, 360 * MILLISECOND);
    let query = Span {
        attributes: vec![string("db.system.name", "postgresql")],
        ..span(CHECKOUT, [4, 3], 3, "SELECT accounts", base + 50 * MILLISECOND, 100 * MILLISECOND)
    };
    let payments = vec![string("service.name", "payments"), string("k8s.pod.name", "payments-1")];
    vec![service("shop-backend", vec![root, charge]), resource(payments, vec![pay, query])]
}

fn order(start: u64) -> ResourceSpans {
    let attributes = vec![string("service.name", "worker"), string("deployment.environment", "prod")];
    resource(attributes, vec![span(ORDER, [5, 0], 5, "process order", start, 1500 * MILLISECOND)])
}

fn bare(start: u64) -> ResourceSpans {
    let span = Span { status: None, ..span(BARE, [6, 0], 0, "bare", start, MILLISECOND) };
    ResourceSpans { scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }], ..ResourceSpans::default() }
}

fn ticks(start: u64) -> Vec<ResourceSpans> {
    let tick = |number: u8| {
        let id = TraceId([0x70 + number; 16]);
        span(id, [100 + u64::from(number), 0], 1, "tick", start + u64::from(number) * SECOND, MILLISECOND / 2)
    };
    vec![service("clock", (0..TICKS).map(tick).collect())]
}

/// What another tenant knows of the checkout.
fn audit(base: u64) -> ResourceSpans {
    service("audit", vec![span(CHECKOUT, [9, 3], 2, "record", base + 60 * MILLISECOND, 5 * MILLISECOND)])
}

/// A text of a label or attribute.
fn text(value: &str) -> strict::AnyValue {
    strict::AnyValue::String(value.to_owned())
}
