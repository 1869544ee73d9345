//! Range and instant queries over recent data and blocks.

use super::*;
use crate::traceql_metrics::MetricsLimits;

fn range(query: &str, step: &str) -> String {
    format!("/api/metrics/query_range?q={}&start={}&end={}&step={step}", encoded(query), NOW - 120, NOW)
}

fn instant(query: &str) -> String {
    format!("/api/metrics/query?q={}&start={}&end={}", encoded(query), NOW - 120, NOW)
}

#[tokio::test]
async fn a_range_has_a_sample_for_each_step() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, shop());
    world.cut(&tenant, vec![service("other", vec![span(7, 7, 0, "other", 30)])]).await;
    let router = world.router();
    let answer = get(&router, &range("{} | rate() with(exemplars=false)", "60")).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let size = world.blocklist.blocks(&tenant)[0].size;
    let read: u64 = answer.json()["metrics"]["inspectedBytes"].as_str().expect("bytes").parse().expect("a number");
    assert!(read > 0 && read < size, "of a block of {size} bytes a few columns are read: {read}");
    // Four spans in one minute.
    assert_eq!(
        answer.ok(),
        format!(
            "{{\"series\":[{{\"labels\":[{{\"key\":\"__name__\",\"value\":{{\"stringValue\":\"rate\"}}}}],\"samples\":[\
             {{\"timestampMs\":\"1699999860000\"}},{{\"timestampMs\":\"1699999920000\"}},\
             {{\"value\":0.06666666666666667,\"timestampMs\":\"1699999980000\"}},{{\"timestampMs\":\"1700000040000\"}}]}}],\
             \"metrics\":{{\"inspectedBytes\":\"{read}\",\"totalBlocks\":1,\"completedJobs\":2,\"totalJobs\":2,\
             \"totalBlockBytes\":\"{size}\",\"inspectedSpans\":\"4\"}}}}"
        )
    );
}

#[tokio::test]
async fn an_instant_has_a_value_for_each_series() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, shop());
    let router = world.router();
    let answer = get(&router, &instant("{} | count_over_time() by (resource.service.name, status)")).await.json();
    assert_eq!(
        answer["series"],
        serde_json::json!([
            {"labels": [{"key": "resource.service.name", "value": {"stringValue": "payments"}},
                        {"key": "status", "value": {"stringValue": "unset"}}], "value": 1},
            {"labels": [{"key": "resource.service.name", "value": {"stringValue": "shop-backend"}},
                        {"key": "status", "value": {"stringValue": "error"}}], "value": 1},
            {"labels": [{"key": "resource.service.name", "value": {"stringValue": "shop-backend"}},
                        {"key": "status", "value": {"stringValue": "unset"}}], "value": 1},
        ])
    );
    let nothing = get(&router, &instant("{ name = \"nobody\" } | max_over_time(duration)")).await;
    assert_eq!(nothing.ok(), r#"{"metrics":{"completedJobs":1,"totalJobs":1,"inspectedSpans":"3"}}"#);
    let zero = get(&router, &instant("{ name = \"nobody\" } | rate()")).await.json();
    assert_eq!(zero["series"], serde_json::json!([{"labels": [{"key": "__name__", "value": {"stringValue": "rate"}}]}]));
    let never = get(&router, &instant("{ false } | rate() by (name)")).await;
    assert_eq!(never.ok(), r#"{"metrics":{}}"#, "nothing is read for nothing");
}

#[tokio::test]
async fn an_instant_is_the_same_over_blocks() {
    let (recent, blocks) = (World::new(), World::new());
    let tenant = Tenant::single();
    let spans = || [shop(), vec![service("other", vec![span(7, 7, 0, "other", 30), span(8, 8, 0, "other", 119)])]];
    for spans in spans() {
        recent.receive(&tenant, spans);
    }
    for spans in spans() {
        blocks.cut(&tenant, spans).await;
    }
    let (recent, blocks) = (recent.router(), blocks.router());
    for query in [
        "{} | rate() by (name)",
        "{} | min_over_time(duration)",
        "{} | avg_over_time(duration) by (resource.service.name)",
        "{} | quantile_over_time(duration, .5, .9)",
        "{} | count_over_time() by (name) | topk(1)",
        "{} | compare({ name = \"other\" })",
    ] {
        // The first range holds both blocks, the others a part of one.
        for (from, to) in [(120, 0), (100, 0), (120, 20), (60, 29)] {
            let url = format!("/api/metrics/query?q={}&start={}&end={}", encoded(query), NOW - from, NOW - to);
            let (expected, found) = (get(&recent, &url).await.json(), get(&blocks, &url).await.json());
            assert_eq!(found["series"], expected["series"], "{url}");
        }
    }
}

#[tokio::test]
async fn exemplars_lead_to_traces() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let answer = get(&world.router(), &range("{ name = \"charge\" } | max_over_time(duration)", "60")).await.json();
    let exemplar = &answer["series"][0]["exemplars"][0];
    assert_eq!(exemplar["value"], 0.446_979_497);
    assert_eq!(exemplar["timestampMs"], "1699999940035");
    let labels = exemplar["labels"].as_array().expect("labels");
    assert!(labels.contains(&serde_json::json!({"key": "trace:id", "value": {"stringValue": format!("0{SHOP_HEX}")}})), "{labels:?}");
    assert!(labels.contains(&serde_json::json!({"key": "name", "value": {"stringValue": "charge"}})), "{labels:?}");
}

#[tokio::test]
async fn spans_are_counted_once_while_they_move() {
    border::at_every_moment(&range("{} | count_over_time() by (name) with(exemplars=false)", "10")).await;
    border::at_every_moment(&instant("{ resource.service.name != nil } | rate()")).await;
    border::at_every_moment(&instant("{} | sum_over_time(duration) by (resource.service.name)")).await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let mut world = World::new();
    world.limits.max_metrics_duration = Duration::from_secs(60);
    world.receive(&Tenant::single(), shop());
    let router = world.router();
    let refused = async |url: String| {
        let answer = get(&router, &url).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{url}");
        answer.text().to_owned()
    };
    assert_eq!(refused(range("{} | rate()", "10")).await, "metrics query time range exceeds the maximum allowed duration of 1m0s");
    assert_eq!(refused(instant("{}")).await, "not a metrics query");
    let short = |query: &str| format!("/api/metrics/query?q={}&start={}&end={}", encoded(query), NOW - 60, NOW);
    assert_eq!(refused(short("{ 1 / 0 = 1 } | rate()")).await, "integer division by zero in \"1 / 0\"");
    assert_eq!(get(&router, &short("{} | rate()")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn limits_make_answers_partial() {
    let mut world = World::new();
    world.receive(&Tenant::single(), shop());
    let url = instant("{} | count_over_time() by (name)") + "&maxSeries=2";
    let answer = get(&world.router(), &url).await.json();
    assert_eq!(answer["series"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer["status"], "PARTIAL");
    assert_eq!(
        answer["message"],
        "Response exceeds maximum series limit of 2, a partial response is returned. Warning: the accuracy of each individual value is not \
         guaranteed."
    );
    world.api.metrics = MetricsLimits { max_series: 1, ..MetricsLimits::default() };
    let answer = get(&world.router(), &url).await.json();
    assert_eq!(answer["series"].as_array().map(Vec::len), Some(1), "the smaller limit counts");
    world.api.metrics = MetricsLimits { max_bytes: 150, ..MetricsLimits::default() };
    let refused = get(&world.router(), &instant("{} | rate() by (name) | topk(1)")).await;
    assert_eq!(refused.text(), "query needs more than 150 bytes of memory, narrow its time range or group by less");
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tenants_are_added_up() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    for name in ["a", "b"] {
        let tenant = Tenant::new(name).expect("a tenant");
        world.receive(&tenant, shop());
        world.cut(&tenant, vec![service("other", vec![span(7, 7, 0, "other", 30)])]).await;
    }
    let router = world.router();
    let url = instant("{} | count_over_time()");
    let count = async |tenants: &str| get_with(&router, &url, &[("x-scope-orgid", tenants)]).await.json()["series"][0]["value"].clone();
    assert_eq!(count("a").await, 4);
    assert_eq!(count("a|b").await, 8);
}
