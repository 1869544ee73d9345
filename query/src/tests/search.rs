//! Search.

use super::*;
use crate::proto;

async fn query(router: &Router, traceql: &str) -> serde_json::Value {
    get(router, &format!("/api/search?q={}", encoded(traceql))).await.json()
}

/// The ids of the traces of an answer, in its order.
fn ids(answer: &serde_json::Value) -> Vec<u64> {
    let traces = answer["traces"].as_array().cloned().unwrap_or_default();
    traces.iter().map(|trace| u64::from_str_radix(trace["traceID"].as_str().expect("id"), 16).expect("small hex")).collect()
}

#[tokio::test]
async fn an_answer_looks_as_tempo_shows_it() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let url = format!("/api/search?spss=1&q={}", encoded("{ status = error && name != nil && span.http.status_code >= 500 }"));
    let answer = get(&world.router(), &url).await;
    let spanset = concat!(
        r#"{"spans":[{"spanID":"000000000000563d","name":"charge","startTimeUnixNano":"1699999940035685173","#,
        r#""durationNanos":"446979497","attributes":[{"key":"status","value":{"stringValue":"error"}},"#,
        r#"{"key":"http.status_code","value":{"intValue":"500"}}]}],"matched":1}"#
    );
    assert_eq!(
        answer.ok(),
        format!(
            concat!(
                r#"{{"traces":[{{"traceID":"{id}","rootServiceName":"shop-backend","rootTraceName":"update-billing","#,
                r#""startTimeUnixNano":"1699999940000000000","durationMs":557,"spanSet":{spanset},"spanSets":[{spanset}],"#,
                r#""serviceStats":{{"payments":{{"spanCount":1}},"shop-backend":{{"spanCount":2,"errorCount":1}}}}}}],"#,
                r#""metrics":{{"inspectedTraces":1,"completedJobs":1,"totalJobs":1}}}}"#
            ),
            id = SHOP_HEX,
            spanset = spanset
        )
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn nothing_found_has_no_traces() {
    let world = World::new();
    let answer = get(&world.router(), "/api/search?q=%7B%7D").await;
    assert_eq!(answer.ok(), r#"{"metrics":{"completedJobs":1,"totalJobs":1}}"#);
    let constant = get(&world.router(), &format!("/api/search?q={}", encoded("{ false }"))).await;
    assert_eq!(constant.ok(), r#"{"metrics":{}}"#);
}

#[tokio::test]
async fn tags_find_traces_without_spansets() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    world.cut(&Tenant::single(), vec![service("shop-frontend", vec![span(5, 5, 0, "click", 20)])]).await;
    let router = world.router();
    for (tags, expected) in [
        ("tags=customer%3Dalice%20http.status_code%3D500", &["shop-backend"][..]),
        ("tags=service.name%3Dshop", &["shop-frontend", "shop-backend"]),
        ("tags=status.code%3Derror", &["shop-backend"]),
        ("tags=root.name%3Dclick", &["shop-frontend"]),
        ("minDuration=600ms", &["shop-frontend"]),
        ("maxDuration=557ms", &["shop-backend"]),
        ("minDuration=557ms&maxDuration=1s", &["shop-frontend", "shop-backend"]),
        ("tags=customer%3Dbob", &[]),
        ("", &["shop-frontend", "shop-backend"]),
    ] {
        let answer = get(&router, &format!("/api/search?{tags}")).await.json();
        let traces = answer["traces"].as_array().cloned().unwrap_or_default();
        let roots: Vec<_> = traces.iter().map(|trace| trace["rootServiceName"].as_str().expect("name")).collect();
        assert_eq!(roots, expected, "{tags}");
        assert!(traces.iter().all(|trace| trace.get("spanSets").is_none()), "{tags}");
    }
}

#[tokio::test]
async fn a_trace_without_root_says_so() {
    let world = World::new();
    world.receive(&Tenant::single(), vec![service("x", vec![span(5, 5, 4, "child", 20)])]);
    let answer = query(&world.router(), "{}").await;
    assert_eq!(answer["traces"][0]["rootServiceName"], "<root span not yet received>");
    assert_eq!(answer["traces"][0].get("rootTraceName"), None);
}

/// A world with traces 1 to 40, each a minute older than the one before, in recent data and blocks.
async fn forty() -> World {
    let world = World::new();
    let tenant = Tenant::single();
    let trace = |id: u64| vec![service("x", vec![span(id.into(), id, 0, "s", id * 60)])];
    for id in 1..=10 {
        world.receive(&tenant, trace(id));
    }
    for block in 1..4 {
        world.cut(&tenant, (block * 10 + 1..=block * 10 + 10).flat_map(trace).collect()).await;
    }
    world
}

#[tokio::test]
async fn the_newest_come_first_and_the_rest_is_not_read() {
    let world = forty().await;
    let router = world.router();
    assert_eq!(ids(&query(&router, "{}").await), (1..=20).collect::<Vec<_>>());
    let few = get(&router, "/api/search?q=%7B%7D&limit=15").await.json();
    assert_eq!(ids(&few), (1..=15).collect::<Vec<_>>());
    assert_eq!(
        (&few["metrics"]["totalBlocks"], &few["metrics"]["totalJobs"], &few["metrics"]["completedJobs"]),
        (&3.into(), &4.into(), &4.into())
    );
    assert_eq!(few["metrics"]["inspectedTraces"], 20, "one block is enough");
    let all = get(&router, "/api/search?q=%7B%7D&limit=100").await.json();
    assert_eq!(ids(&all), (1..=40).collect::<Vec<_>>());
    assert_eq!(all["metrics"]["inspectedBytes"], all["metrics"]["totalBlockBytes"]);
}

#[tokio::test]
async fn the_same_search_gives_the_same_answer() {
    let world = forty().await;
    let router = world.router();
    for limit in [3, 12, 25, 100] {
        let url = format!("/api/search?q={}&limit={limit}", encoded("{ name = \"s\" }"));
        let first = get(&router, &url).await;
        for _ in 0..5 {
            assert_eq!(get(&router, &url).await.ok(), first.ok());
        }
    }
}

#[tokio::test]
async fn ranges_choose_traces() {
    let world = forty().await;
    let router = world.router();
    let search = async |range: String| ids(&get(&router, &format!("/api/search?q=%7B%7D&limit=100&{range}")).await.json());
    assert_eq!(search(format!("start={}&end={}", NOW - 25 * 60, NOW - 8 * 60)).await, (8..=25).collect::<Vec<_>>());
    assert_eq!(search("since=5m".to_owned()).await, (1..=5).collect::<Vec<_>>());
    // A trace of a second that began just before the range reaches into it.
    assert_eq!(search(format!("start={}&end={}", NOW - 299, NOW - 290)).await, [5]);
    assert_eq!(search(format!("start={}&end={}", NOW - 298, NOW - 290)).await, Vec::<u64>::new());
}

#[tokio::test]
async fn without_a_range_recent_data_and_the_last_hour_are_searched() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, vec![service("x", vec![span(1, 1, 0, "s", 90_000)])]);
    world.cut(&tenant, vec![service("x", vec![span(2, 2, 0, "s", 3_000)])]).await;
    world.cut(&tenant, vec![service("x", vec![span(3, 3, 0, "s", 4_000)])]).await;
    assert_eq!(ids(&query(&world.router(), "{}").await), [2, 1]);
}

#[tokio::test]
async fn what_search_says_is_about_the_whole_trace() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, vec![service("late", vec![span(9, 2, 1, "late", 10)])]);
    world.cut(&tenant, vec![service("early", vec![span(9, 1, 0, "early", 600)])]).await;
    let router = world.router();
    let found = query(&router, "{ name = \"late\" }").await;
    let trace = &found["traces"][0];
    assert_eq!(trace["rootTraceName"], "early");
    assert_eq!(trace["durationMs"], 591_000);
    assert_eq!(trace["serviceStats"]["early"]["spanCount"], 1);
    // Each part has one span, the trace has two.
    assert_eq!(ids(&query(&router, "{} | count() < 2").await), Vec::<u64>::new());
}

#[tokio::test]
async fn candidates_that_fall_through_make_room_for_others() {
    let world = World::new();
    let tenant = Tenant::single();
    for id in 1..=6u64 {
        // Two of three traces have a second span in an older block.
        world.receive(&tenant, vec![service("x", vec![span(id.into(), id, 0, "a", id * 10)])]);
        if id % 3 != 0 {
            world.cut(&tenant, vec![service("x", vec![span(id.into(), id + 100, id, "b", 1_000)])]).await;
        }
    }
    let url = format!("/api/search?limit=2&q={}", encoded("{ name = \"a\" } | count() = 1"));
    assert_eq!(ids(&get(&world.router(), &url).await.json()), [1, 2], "count() sees only the spans that the filter left");
    let url = format!("/api/search?limit=2&q={}", encoded("{ traceDuration < 2s }"));
    assert_eq!(ids(&get(&world.router(), &url).await.json()), [3, 6]);
}

#[tokio::test]
async fn parameters_may_come_in_a_body() {
    let world = forty().await;
    let router = world.router();
    let post = async |url: &str, body: &'static str| send(&router, Request::post(url).body(Body::from(body)).expect("request")).await;
    assert_eq!(ids(&post("/api/search", r#"{"q": "{}", "limit": 3}"#).await.json()), [1, 2, 3]);
    assert_eq!(ids(&post("/api/search?limit=2&q=%7B%7D", r#"{"limit": 3}"#).await.json()), [1, 2]);
    assert_eq!(ids(&post("/api/search?limit=2", "q=%7Bfalse%7D").await.json()), [1, 2], "forms are ignored");
    let bad = post("/api/search", "{\"q\":").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(bad.text().starts_with("invalid request body: "), "{}", bad.text());
}

#[tokio::test]
async fn protobuf_says_the_same_as_json() {
    let world = forty().await;
    let router = world.router();
    let url = format!("/api/search?q={}", encoded("{ name = \"s\" } | select(resource.service.name)"));
    let protobuf = get_with(&router, &url, &[("accept", "application/protobuf")]).await;
    assert_eq!(protobuf.header("content-type"), Some("application/protobuf"));
    let answer = proto::SearchResponse::decode(protobuf.body).expect("protobuf");
    let json = get(&router, &url).await.json();
    assert_eq!(answer.traces.len(), 20);
    assert_eq!(answer.traces[3].trace_id, json["traces"][3]["traceID"]);
    let span = &answer.traces[3].span_sets[0].spans[0];
    assert_eq!(answer.traces[3].span_set.as_ref(), answer.traces[3].span_sets.first());
    assert_eq!((span.name.as_str(), span.attributes[0].key.as_str()), ("s", "service.name"));
    assert_eq!(answer.traces[3].service_stats["x"].span_count, 1);
}

#[tokio::test]
async fn tenants_are_searched_apart_or_together() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    let (a, b) = (Tenant::new("a").expect("name"), Tenant::new("b").expect("name"));
    world.receive(&a, vec![service("x", vec![span(1, 1, 0, "s", 10)])]);
    world.cut(&b, vec![service("x", vec![span(2, 2, 0, "s", 20)])]).await;
    let router = world.router();
    for (header, expected) in [("a", &[1][..]), ("b", &[2]), ("a|b", &[1, 2]), ("c", &[])] {
        let answer = get_with(&router, "/api/search?q=%7B%7D", &[("x-scope-orgid", header)]).await.json();
        assert_eq!(ids(&answer), expected, "{header}");
    }
}

#[tokio::test]
async fn limits_hold() {
    let mut world = forty().await;
    world.limits.left_pad_trace_ids = true;
    world.limits.max_search_duration = Duration::from_secs(60);
    let router = world.router();
    let padded = get(&router, "/api/search?q=%7B%7D&limit=1").await.json();
    assert_eq!(padded["traces"][0]["traceID"], "00000000000000000000000000000001");
    let long = get(&router, "/api/search?start=100&end=161").await;
    assert_eq!(long.text(), "range specified by start and end exceeds 1m0s. received start=100 end=161");
    world.settings.max_bytes_per_query = 1_000;
    let costly = get(&world.router(), "/api/search?q=%7B%7D&limit=100").await;
    assert_eq!((costly.status.as_u16(), costly.text()), (400, "query reads more than 1000 bytes of blocks, narrow its time range"));
    world.settings = Settings { max_bytes_per_answer: 100, ..Settings::default() };
    let large = get(&world.router(), "/api/search?q=%7B%7D").await;
    assert_eq!((large.status.as_u16(), large.text()), (400, "the answer is larger than 100 bytes, ask for fewer traces or spans"));
}
