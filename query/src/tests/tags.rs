//! Names and values of attributes.

use opentelemetry_proto::tonic::{
    common::v1::ArrayValue,
    trace::v1::span::{Event, Link},
};

use super::*;
use crate::{engine::INTRINSICS, proto};

/// Attributes in every scope, in recent data and in a block.
async fn world() -> World {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let events = vec![Event { name: "retry".to_owned(), attributes: vec![attribute("attempt", Value::IntValue(2))], ..Event::default() }];
    let link = Link { trace_id: vec![1; 16], span_id: vec![1; 8], attributes: vec![attribute("reason", text("batch"))], ..Link::default() };
    let both = ArrayValue { values: ["x", "y"].map(|value| AnyValue { value: Some(text(value)) }).to_vec() };
    let rich = Span {
        attributes: vec![
            attribute("http.status_code", Value::IntValue(200)),
            attribute("ratio", Value::DoubleValue(0.5)),
            attribute("cached", Value::BoolValue(false)),
            attribute("labels", Value::ArrayValue(both)),
            attribute("mixed", text("200")),
        ],
        events,
        links: vec![link],
        ..span(3, 3, 0, "GET /", 600)
    };
    let plain = Span { attributes: vec![attribute("mixed", Value::IntValue(200))], ..span(4, 4, 0, "POST /", 500) };
    let mut spans = service("frontend", vec![rich, plain]);
    if let Some(scope) = &mut spans.scope_spans[0].scope {
        scope.attributes = vec![attribute("library", text("x"))];
    }
    world.cut(&Tenant::single(), vec![spans]).await;
    world
}

/// An answer without its cost, which depends on the size of blocks.
fn found(answer: &serde_json::Value, key: &str) -> String {
    assert!(answer["metrics"].is_object());
    answer.get(key).map_or_else(|| "none".to_owned(), ToString::to_string)
}

#[tokio::test]
async fn names_come_by_scope() {
    let world = world().await;
    let router = world.router();
    let names = async |query: &str| found(&get(&router, &format!("/api/v2/search/tags{query}")).await.json(), "scopes");
    let intrinsic = format!(r#"{{"name":"intrinsic","tags":{}}}"#, serde_json::to_string(&INTRINSICS).expect("JSON"));
    let scopes = [
        r#"{"name":"event","tags":["attempt"]}"#,
        r#"{"name":"instrumentation","tags":["library"]}"#,
        r#"{"name":"link","tags":["reason"]}"#,
        r#"{"name":"resource","tags":["service.name"]}"#,
        r#"{"name":"span","tags":["cached","customer","http.status_code","labels","mixed","ratio"]}"#,
        &intrinsic,
    ];
    assert_eq!(names("").await, format!("[{}]", scopes.join(",")));
    assert_eq!(names("?scope=none").await, format!("[{}]", scopes.join(",")));
    assert_eq!(names("?scope=resource").await, format!("[{}]", scopes[3]));
    assert_eq!(names("?scope=intrinsic").await, format!("[{intrinsic}]"));
    assert_eq!(names("?scope=trace").await, "none");
    assert_eq!(names("?scope=span&limit=1").await, r#"[{"name":"span","tags":["http.status_code"]}]"#, "in the order of the data");
    let filter = encoded("{ name = \"POST /\" && .x = }");
    assert_eq!(names(&format!("?scope=span&q={filter}")).await, r#"[{"name":"span","tags":["mixed"]}]"#);
}

#[tokio::test]
async fn the_first_version_lists_names_flat() {
    let world = world().await;
    let router = world.router();
    let names = async |query: &str| found(&get(&router, &format!("/api/search/tags{query}")).await.json(), "tagNames");
    assert_eq!(
        names("").await,
        r#"["attempt","cached","customer","http.status_code","labels","library","mixed","ratio","reason","service.name"]"#
    );
    assert_eq!(names("?scope=link").await, r#"["reason"]"#);
    assert_eq!(names("?scope=intrinsic").await, serde_json::to_string(&INTRINSICS).expect("JSON"));
    let protobuf = get_with(&router, "/api/search/tags?scope=event", &[("accept", "application/protobuf")]).await;
    assert_eq!(proto::SearchTagsResponse::decode(protobuf.body).expect("protobuf").tag_names, ["attempt"]);
}

#[tokio::test]
async fn values_have_types() {
    let world = world().await;
    let router = world.router();
    let check = async |tag: &str, query: &str, expected: &[(&str, &str)]| {
        let answer = get(&router, &format!("/api/v2/search/tag/{}/values{query}", encoded(tag))).await.json();
        let values = answer["tagValues"].as_array().cloned().unwrap_or_default();
        let found: Vec<_> =
            values.iter().map(|value| (value["type"].as_str().expect("type"), value["value"].as_str().expect("value"))).collect();
        assert_eq!(found, expected, "{tag}{query}");
    };
    check("span.http.status_code", "", &[("int", "200"), ("int", "500")]).await;
    check(".http.status_code", "", &[("int", "200"), ("int", "500")]).await;
    check("resource.http.status_code", "", &[]).await;
    check("resource.service.name", "", &[("string", "frontend"), ("string", "payments"), ("string", "shop-backend")]).await;
    check("span.ratio", "", &[("float", "0.5")]).await;
    check("span.cached", "", &[("bool", "false")]).await;
    check("span.labels", "", &[("string", "x"), ("string", "y")]).await;
    check("span.mixed", "", &[("int", "200"), ("string", "200")]).await;
    check("span.mixed", "?limit=1", &[("string", "200")]).await;
    check("event.attempt", "", &[("int", "2")]).await;
    check("link.reason", "", &[("string", "batch")]).await;
    check("instrumentation.library", "", &[("string", "x")]).await;
    check("name", "", &[("string", "GET /"), ("string", "POST /"), ("string", "charge"), ("string", "pay"), ("string", "update-billing")])
        .await;
    check("statusMessage", "", &[("string", "boom")]).await;
    check("rootName", "", &[("string", "GET /"), ("string", "POST /"), ("string", "update-billing")]).await;
    check("trace:rootService", "", &[("string", "frontend"), ("string", "shop-backend")]).await;
    check("event:name", "", &[("string", "retry")]).await;
    check("instrumentation:name", "", &[("string", "otel-lib")]).await;
    check("instrumentation:version", "", &[("string", "1.2.0")]).await;
    check("status", "", &[("keyword", "error"), ("keyword", "ok"), ("keyword", "unset")]).await;
    check("span:kind", "?limit=2", &[("keyword", "client"), ("keyword", "consumer")]).await;
    check("duration", "", &[]).await;
    check("trace:id", "", &[]).await;
    let error = format!("?q={}", encoded("{ status = error }"));
    check("resource.service.name", &error, &[("string", "shop-backend")]).await;
    check("rootName", &error, &[("string", "update-billing")]).await;
    check("name", &format!("?q={}", encoded("{ resource.service.name = \"payments\"")), &[("string", "pay")]).await;
    check(
        "name",
        &format!("?q={}&limit=3", encoded("{ name = ")),
        &[("string", "charge"), ("string", "pay"), ("string", "update-billing")],
    )
    .await;
    check("name", &format!("?start={}&end={}", NOW - 10, NOW), &[("string", "charge"), ("string", "pay"), ("string", "update-billing")])
        .await;
}

#[tokio::test]
async fn the_first_version_lists_values_flat() {
    let world = world().await;
    let router = world.router();
    let values = async |tag: &str| found(&get(&router, &format!("/api/search/tag/{tag}/values")).await.json(), "tagValues");
    assert_eq!(values("service.name").await, r#"["frontend","payments","shop-backend"]"#);
    assert_eq!(values("mixed").await, r#"["200"]"#);
    assert_eq!(values("status.code").await, r#"["unset","ok","error"]"#);
    assert_eq!(values("error").await, r#"["true"]"#);
    assert_eq!(values("no/such/tag").await, "none");
}

#[tokio::test]
async fn answers_are_cut_at_the_tenants_limits() {
    let mut world = world().await;
    world.limits.max_bytes_per_tag_values_query = 30;
    let router = world.router();
    let names = get(&router, "/api/search/tags").await.json();
    assert_eq!(found(&names, "tagNames"), r#"["http.status_code","service.name"]"#, "no error, and no marker");
    world.limits = Limits { max_blocks_per_tag_values_query: 1, ..Limits::default() };
    world.cut(&Tenant::single(), vec![service("newer", vec![span(8, 8, 0, "s", 5)])]).await;
    let values = get(&world.router(), "/api/search/tag/service.name/values").await.json();
    assert_eq!(found(&values, "tagValues"), r#"["newer","payments","shop-backend"]"#);
}
