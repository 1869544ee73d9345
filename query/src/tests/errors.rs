//! Texts of refusals, over the whole stack. The single parameters are tested where they are read.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use object_store::ObjectStoreExt as _;
use regex::Regex;

use super::*;
use crate::{
    engine::{QueryError, RecentSource, Units},
    job::{self, Job, QueryId, Runner},
};

async fn check(router: &Router, url: &str, status: u16, text: &str) {
    let answer = get(router, url).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (status, text), "{url}");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[tokio::test]
async fn refusals_are_plain_text() {
    let router = World::new().router();
    check(&router, "/api/traces/xyz", 400, "trace IDs can only contain hex characters: invalid character 'x' at position 0").await;
    check(&router, "/api/v2/traces/1?start=5&end=4", 400, "http parameter start must be before end. received start=5 end=4").await;
    check(&router, "/api/search?limit=0", 400, "invalid limit: must be a positive number").await;
    check(&router, "/api/search?q=%7B%7D&tags=a%3Db", 400, "invalid request: can't specify tags and q in the same query").await;
    check(
        &router,
        "/api/search?start=1&end=1000000",
        400,
        "range specified by start and end exceeds 168h0m0s. received start=1 end=1000000",
    )
    .await;
    check(&router, "/api/search/tags?scope=spam", 400, "invalid scope: spam").await;
    check(&router, "/api/v2/search/tags?start=x", 400, "invalid start: parsing \"x\": invalid syntax").await;
    check(&router, "/api/v2/search/tag/a%20b/values", 400, "please provide a valid tagName: failed to parse identifier a b").await;
    check(&router, "/api/search/tag//values", 400, "please provide a non-empty tagName").await;
    check(&router, "/api/v2/search/tag/values", 400, "please provide a non-empty tagName").await;
    check(&router, "/api/search/tag/x", 404, "404 page not found\n").await;
    let bad = get(&router, "/api/search?q=%7B").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(bad.text().starts_with("invalid TraceQL query: "), "{}", bad.text());
}

#[tokio::test]
async fn a_missing_tenant_is_refused_early() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    let router = world.router();
    for url in ["/api/traces/1", "/api/v2/traces/1", "/api/search", "/api/search/tags", "/api/v2/search/tags", "/api/search/tag/a/values"] {
        let answer = get(&router, url).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (401, "no org id\n"), "{url}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let invalid = get_with(&router, url, &[("x-scope-orgid", "a/b")]).await;
        assert_eq!((invalid.status.as_u16(), invalid.text()), (400, "tenant ID 'a/b' contains unsupported character '/'"), "{url}");
    }
}

#[tokio::test]
async fn denied_urls_are_refused() {
    let mut world = World::new();
    world.api.url_deny_list = vec![Regex::new("limit=9{3}").expect("regex")];
    let router = world.router();
    check(
        &router,
        "/api/search?limit=999",
        400,
        "Invalid request /api/search?limit=999. This query has been identified as one that destabilizes our system. Contact your system \
         administrator for more information",
    )
    .await;
    assert_eq!(get(&router, "/api/search?limit=998").await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_recent_data_nothing_is_answered() {
    let world = World::new();
    *world.recent.failure.lock() = Some(RecentError { cause: "workers are starting".to_owned() });
    let router = world.router();
    for url in ["/api/traces/1", "/api/search?q=%7B%7D", "/api/v2/search/tags", "/api/search/tag/a/values"] {
        check(&router, url, 500, "cannot guarantee complete results: workers are starting").await;
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let router = World::new().router();
    let request = Request::post("/api/search").body(Body::from(vec![b' '; (1 << 20) + 1])).expect("request");
    let answer = send(&router, request).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (413, "http: request body too large"));
}

#[tokio::test]
async fn a_query_that_fails_on_a_trace_fails() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let answer = get(&world.router(), &format!("/api/search?q={}", encoded("{ -span.customer = 1 }"))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text().contains("operand"), "{}", answer.text());
}

#[tokio::test]
async fn a_damaged_block_is_named() {
    let world = World::new();
    let meta = world.write_block(&Tenant::single(), shop()).await;
    let path = format!("single-tenant/{}/data.parquet", meta.block_id);
    world.objects.put(&path.as_str().into(), vec![0x55; meta.size as usize].into()).await.expect("memory");
    world.blocklist.add(meta.clone());
    let router = world.router();
    let trace = format!("/api/traces/{SHOP_HEX}");
    for url in [trace.as_str(), "/api/search?q=%7B%7D", "/api/search/tags"] {
        let answer = get(&router, url).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{url}");
        assert!(answer.text().contains(&meta.block_id.to_string()), "{url}: {}", answer.text());
    }
}

/// Recent data that never answers.
#[derive(Debug)]
pub(super) struct Stuck;

#[async_trait]
impl Recent for Stuck {
    async fn trace(&self, _: &Tenant, _: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        std::future::pending().await
    }

    async fn traces(&self, _: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn deadlines_pass() {
    let world = World::new();
    for (api_timeout, status, text) in [
        (Duration::ZERO, 504, "context deadline exceeded"),
        (Duration::from_millis(5), 503, "unable to process request in the configured timeout"),
    ] {
        let clock = Arc::new(world.clock.clone());
        let registry = Registry::new();
        let timeout = Duration::from_millis(50);
        let settings = Settings { trace_timeout: timeout, search_timeout: timeout, ..Settings::default() };
        let engine = Engine::new(settings, world.store.clone(), world.blocklist.clone(), Arc::new(Stuck), clock, &registry).expect("new");
        let router = router(Arc::new(engine), ApiSettings { api_timeout, ..ApiSettings::default() });
        for url in ["/api/traces/1", "/api/search?q=%7B%7D", "/api/v2/search/tags"] {
            check(&router, url, status, text).await;
        }
        let result = if api_timeout.is_zero() { "completed" } else { "canceled" };
        let families = registry.gather();
        let queries = families.iter().find(|family| family.name() == "tempo_query_frontend_queries_total").expect("metric");
        let results: Vec<_> = queries.get_metric().iter().map(|metric| metric.get_label()[1].value().to_owned()).collect();
        assert_eq!(results, [result; 3]);
    }
}

#[tokio::test]
async fn queries_that_are_refused_are_counted() {
    let world = World::new();
    let registry = Registry::new();
    let clock = Arc::new(world.clock.clone());
    let engine =
        Engine::new(Settings::default(), world.store.clone(), world.blocklist.clone(), Arc::new(Stuck), clock, &registry).expect("new");
    let router = router(Arc::new(engine), ApiSettings::default());
    for url in [
        "/api/traces/x",
        "/api/search?q=%7B",
        "/api/metrics/query_range?q=%7B",
        "/api/metrics/query?q=%7B",
        "/api/v2/search/tags?scope=moon",
        "/api/v2/search/tag/a%20b/values",
    ] {
        assert_eq!(get(&router, url).await.status, StatusCode::BAD_REQUEST, "{url}");
    }
    let families = registry.gather();
    let counted = |name: &str| -> BTreeMap<_, _> {
        let family = families.iter().find(|family| family.name() == name).expect("metric");
        let labels =
            |metric: &prometheus::proto::Metric| metric.get_label().iter().map(|label| label.value().to_owned()).collect::<Vec<_>>();
        family.get_metric().iter().map(|metric| (labels(metric).join(" "), metric.get_counter().get_value())).collect()
    };
    let expected = [
        ("metadata completed single-tenant", 2.0),
        ("metrics completed single-tenant", 2.0),
        ("search completed single-tenant", 1.0),
        ("traces completed single-tenant", 1.0),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(labels, count)| (labels.to_owned(), count)).into();
    assert_eq!(counted("tempo_query_frontend_queries_total"), expected);
    assert_eq!(counted("tempo_query_frontend_queries_within_slo_total"), expected, "what the client did wrong is within any objective");
}

/// Runs jobs after a pause each, and so many of them; the next never ends.
#[derive(Debug)]
struct Slow {
    units: Units,
    left: AtomicUsize,
}

#[async_trait]
impl Runner for Slow {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<job::Answer, QueryError> {
        tokio::time::sleep(Duration::from_millis(400)).await;
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            std::future::pending::<()>().await;
        }
        self.units.run(query, tenant, job).await
    }
}

#[tokio::test]
async fn a_query_may_take_long_as_long_as_it_gets_on() {
    let world = World::new();
    for _ in 0..6 {
        world.cut(&Tenant::single(), shop()).await;
    }
    // Seven jobs of a query, one after the other, take longer than one of them may.
    let timeout = Duration::from_secs(2);
    let settings = Settings {
        search_timeout: timeout,
        trace_timeout: timeout,
        concurrent_jobs: 1,
        metrics_concurrent_jobs: 1,
        concurrent_shards: 1,
        ..Settings::default()
    };
    for (jobs, status) in [(usize::MAX, 200), (3, 504)] {
        let urls = ["/api/search?q=%7B.none%3D1%7D", "/api/v2/search/tags", "/api/metrics/query_range?q=%7B%7D%7Crate()"];
        let asked = urls.map(|url| {
            let recent: Arc<dyn Recent> = Arc::<FakeRecent>::clone(&world.recent);
            let (recent, registry) = (RecentSource::Here(recent), Registry::new());
            let units = Units::new(&settings, world.store.clone(), None, recent, &registry).expect("new");
            let runner = Arc::new(Slow { units, left: AtomicUsize::new(jobs) });
            let clock = Arc::new(world.clock.clone());
            let engine = Engine::over(runner, settings.clone(), world.blocklist.clone(), clock, &registry).expect("new");
            let router = router(Arc::new(engine), ApiSettings::default());
            async move { (url, get(&router, url).await) }
        });
        for (url, answer) in futures::future::join_all(asked).await {
            assert_eq!(answer.status.as_u16(), status, "{url}: {}", answer.text());
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_clients_send_is_answered_or_refused(
        values in proptest::collection::vec((0usize..16, "[ -~]{0,12}|\\PC{0,4}|[0-9]{1,20}|\\{[ .a-z=<>&|\"0-9]{0,20}\\}?"), 0..5),
        path in 0usize..6,
        tag in "\\PC{0,8}",
        header in "[ -~]{0,12}",
        multitenant in proptest::bool::ANY,
    ) {
        const NAMES: [&str; 16] = [
            "q", "tags", "minDuration", "maxDuration", "limit", "start", "end", "since", "spss", "scope", "maxStaleValues", "mode",
            "blockStart", "blockEnd", "query", "x",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let answer = runtime.block_on(async {
            let mut world = World::new();
            world.api.multitenancy_enabled = multitenant;
            world.receive(&Tenant::single(), shop());
            let tag = encoded(&tag);
            let path = match path {
                0 => format!("/api/traces/{tag}"),
                1 => format!("/api/v2/traces/{tag}"),
                2 => "/api/search".to_owned(),
                3 => "/api/v2/search/tags".to_owned(),
                4 => format!("/api/search/tag/{tag}/values"),
                _ => format!("/api/v2/search/tag/{tag}/values"),
            };
            let query: Vec<_> = values.iter().map(|(name, value)| format!("{}={}", NAMES[*name], encoded(value))).collect();
            get_with(&world.router(), &format!("{path}?{}", query.join("&")), &[("x-scope-orgid", header.trim())]).await
        });
        proptest::prop_assert!(answer.status.as_u16() < 500, "{} {}", answer.status, answer.text());
    }
}
