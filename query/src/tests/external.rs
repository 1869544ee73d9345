//! Traces of a store that is not ours: a small HTTP server.

use axum::{
    extract::{Path, RawQuery, State},
    response::IntoResponse as _,
    routing::any,
};
use opentelemetry_proto::tonic::trace::v1::TracesData;

use super::*;
use crate::{ExternalTraces, RecentSource, Units};

/// What the other store was asked, and what it says.
#[derive(Default)]
struct Other {
    asked: Mutex<Vec<String>>,
    answer: Mutex<(StatusCode, Vec<u8>)>,
}

async fn answer(
    State(other): State<Arc<Other>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> axum::response::Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default();
    other.asked.lock().push(format!("{id} {} {} {}", query.unwrap_or_default(), header("accept"), header("x-scope-orgid")));
    other.answer.lock().clone().into_response()
}

async fn serve(other: &Arc<Other>) -> String {
    let router = Router::new().route("/base/api/traces/{id}", any(answer)).with_state(Arc::clone(other));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/base/")
}

impl World {
    fn engine_with(&self, external: Option<ExternalTraces>) -> Arc<Engine> {
        let recent = RecentSource::Here(Arc::<FakeRecent>::clone(&self.recent));
        let units = Units::new(&self.settings, self.store.clone(), Some(self.blocklist.clone()), recent, &Registry::new());
        let units = units.expect("metrics are new");
        let units = match external {
            Some(external) => units.with_external(external),
            None => units,
        };
        let (blocklist, clock) = (self.blocklist.clone(), Arc::new(self.clock.clone()));
        let engine = Engine::over(Arc::new(units), self.settings.clone(), blocklist, clock, &Registry::new()).expect("metrics are new");
        Arc::new(engine.with_overrides(Arc::new(self.limits)))
    }
}

fn external(endpoint: &str, registry: &Registry) -> ExternalTraces {
    ExternalTraces::new(endpoint, Duration::from_secs(30), registry).expect("an endpoint")
}

fn protobuf(spans: Vec<ResourceSpans>) -> (StatusCode, Vec<u8>) {
    (StatusCode::OK, TracesData { resource_spans: spans }.encode_to_vec())
}

#[tokio::test]
async fn a_trace_has_the_spans_of_the_other_store_too() {
    let mut world = World::new();
    (world.settings.external_traces, world.api.multitenancy_enabled) = (true, true);
    let tenant = Tenant::new("a").expect("a tenant");
    world.receive(&tenant, vec![service("here", vec![span(SHOP, 1, 0, "ours", 60)])]);
    let other = Arc::new(Other::default());
    let registry = Registry::new();
    let external = external(&serve(&other).await, &registry);
    let engine = world.engine_with(Some(external));
    let router = router(Arc::clone(&engine), world.api.clone());
    let querier = crate::querier_router(&engine, world.store.clone(), &world.api).expect("metrics are new");
    let ask =
        async |router: &Router, path: &str| get_with(router, path, &[("x-scope-orgid", "a"), ("accept", "application/protobuf")]).await;
    let names = |answer: &Answer| {
        let message = proto_trace(answer);
        let mut names: Vec<_> = message
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans)
            .map(|span| span.name.clone())
            .collect();
        names.sort();
        names.join(",")
    };

    // Seen in both stores: once.
    let theirs = vec![service("there", vec![span(SHOP, 2, 1, "theirs", 60)]), service("here", vec![span(SHOP, 1, 0, "ours", 60)])];
    *other.answer.lock() = protobuf(theirs);
    assert_eq!(names(&ask(&router, &format!("/api/v2/traces/{SHOP_HEX}?start=5&end=1800000000")).await), "ours,theirs");
    assert_eq!(other.asked.lock().pop().as_deref(), Some(format!("0{SHOP_HEX} start=5&end=1800000000 application/protobuf a").as_str()));
    assert_eq!(names(&ask(&querier, &format!("/querier/api/v2/traces/{SHOP_HEX}?mode=external")).await), "ours,theirs");
    assert_eq!(other.asked.lock().pop().as_deref(), Some(format!("0{SHOP_HEX}  application/protobuf a").as_str()));
    assert_eq!(names(&ask(&querier, &format!("/querier/api/v2/traces/{SHOP_HEX}?mode=all")).await), "ours");
    assert!(other.asked.lock().is_empty(), "parts are asked for one by one");

    *other.answer.lock() = (StatusCode::NOT_FOUND, b"not protobuf".to_vec());
    assert_eq!(names(&ask(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await), "ours");
    for (answer, text) in [
        ((StatusCode::BAD_GATEWAY, Vec::new()), "external endpoint: answers 502"),
        ((StatusCode::OK, vec![0xff; 9]), "external endpoint: no trace: "),
    ] {
        *other.answer.lock() = answer;
        let failed = ask(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await;
        assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(failed.text().starts_with(text), "{}", failed.text());
    }

    let family = registry.gather().into_iter().next().expect("one metric");
    assert_eq!(family.name(), "tempo_querier_external_endpoint_request_duration_seconds");
    let counts: BTreeMap<_, _> = family
        .get_metric()
        .iter()
        .map(|metric| (metric.get_label()[0].value().to_owned(), metric.get_histogram().get_sample_count()))
        .collect();
    assert_eq!(counts, BTreeMap::from([("200".to_owned(), 3), ("404".to_owned(), 1), ("502".to_owned(), 1)]));
}

fn proto_trace(answer: &Answer) -> Vec<ResourceSpans> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let message = crate::proto::TraceByIdResponse::decode(answer.body.clone()).expect("a message");
    message.trace.map(|trace| trace.resource_spans).unwrap_or_default()
}

#[tokio::test]
async fn a_trace_of_the_other_store_is_no_larger_than_one_of_ours() {
    let mut world = World::new();
    (world.settings.external_traces, world.limits.max_bytes_per_trace) = (true, 1_000);
    let other = Arc::new(Other::default());
    let engine = world.engine_with(Some(external(&serve(&other).await, &Registry::new())));
    let router = router(engine, world.api.clone());
    for spans in [20, 2_000] {
        *other.answer.lock() = protobuf(vec![service("there", (1..=spans).map(|id| span(SHOP, id, 0, "theirs", 60)).collect())]);
        let part = get(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await.json();
        assert_eq!(part["status"], "PARTIAL", "{spans} spans");
        assert_eq!(get(&router, &format!("/api/traces/{SHOP_HEX}")).await.status, StatusCode::UNPROCESSABLE_ENTITY, "{spans} spans");
    }
}

#[tokio::test]
async fn without_a_client_it_is_an_error_and_endpoints_are_urls() {
    let mut world = World::new();
    world.settings.external_traces = true;
    let failed = get(&router(world.engine_with(None), world.api.clone()), &format!("/api/v2/traces/{SHOP_HEX}")).await;
    assert_eq!((failed.status.as_u16(), failed.text()), (500, "external endpoint: external mode is not enabled"));
    for endpoint in ["", "tempo:3200", "ftp://tempo", "/path"] {
        let refused = ExternalTraces::new(endpoint, Duration::from_secs(1), &Registry::new()).expect_err("no URL");
        assert!(refused.to_string().contains(&format!("\"{endpoint}\"")), "{refused}");
    }
    // A port that nobody listens on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let engine = world.engine_with(Some(external(&endpoint, &Registry::new())));
    let failed = get(&router(engine, world.api.clone()), &format!("/api/v2/traces/{SHOP_HEX}")).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(failed.text().starts_with("external endpoint: "), "{}", failed.text());
}
