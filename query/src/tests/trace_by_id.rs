//! One trace, from wherever it lies.

use opentelemetry_proto::tonic::trace::v1::TracesData;

use super::*;
use crate::proto;

const SHOP_BATCHES: &str = concat!(
    r#"[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop-backend"}}]},"scopeSpans":[{"#,
    r#""scope":{"name":"otel-lib","version":"1.2.0"},"spans":["#,
    r#"{"traceId":"Dz4M7neuXcnBet42iesuVA==","spanId":"AAAAAAAAHBs=","name":"update-billing","kind":"SPAN_KIND_SERVER","#,
    r#""startTimeUnixNano":"1699999940000000000","endTimeUnixNano":"1699999940557000000","status":{}},"#,
    r#"{"traceId":"Dz4M7neuXcnBet42iesuVA==","spanId":"AAAAAAAAVj0=","parentSpanId":"AAAAAAAAHBs=","name":"charge","#,
    r#""kind":"SPAN_KIND_CLIENT","startTimeUnixNano":"1699999940035685173","endTimeUnixNano":"1699999940482664670","#,
    r#""attributes":[{"key":"http.status_code","value":{"intValue":"500"}},{"key":"customer","value":{"stringValue":"alice"}}],"#,
    r#""status":{"message":"boom","code":"STATUS_CODE_ERROR"}}]}]},"#,
    r#"{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"payments"}}]},"scopeSpans":[{"#,
    r#""scope":{"name":"otel-lib","version":"1.2.0"},"spans":["#,
    r#"{"traceId":"Dz4M7neuXcnBet42iesuVA==","spanId":"AAAAAAAAAHc=","parentSpanId":"AAAAAAAAVj0=","name":"pay","#,
    r#""kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1699999940040000000","endTimeUnixNano":"1699999940400000000","status":{}}]}]}]"#,
);

#[tokio::test]
async fn a_recent_trace_looks_as_tempo_shows_it() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let router = world.router();
    let v1 = get(&router, &format!("/api/traces/{SHOP_HEX}")).await;
    assert_eq!(v1.ok(), format!("{{\"batches\":{SHOP_BATCHES}}}"));
    assert_eq!(v1.header("content-type"), Some("application/json"));
    let v2 = get(&router, &format!("/api/v2/traces/0{}", SHOP_HEX.to_uppercase())).await;
    assert_eq!(v2.ok(), format!("{{\"trace\":{{\"resourceSpans\":{SHOP_BATCHES}}},\"metrics\":{{}}}}"));
}

#[tokio::test]
async fn protobuf_is_sent_when_asked_for() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let router = world.router();
    let accept = [("accept", "application/json;q=0.1, application/protobuf")];
    let v1 = get_with(&router, &format!("/api/traces/{SHOP_HEX}"), &accept).await;
    assert_eq!(v1.header("content-type"), Some("application/protobuf"));
    let trace = TracesData::decode(v1.body).expect("protobuf");
    assert_eq!(trace.resource_spans.len(), 2);
    assert!(trace.resource_spans[1].scope_spans[0].spans[0].status.is_some(), "status is always present");
    let v2 = get_with(&router, &format!("/api/v2/traces/{SHOP_HEX}"), &accept).await;
    let answer = proto::TraceByIdResponse::decode(v2.body).expect("protobuf");
    assert_eq!(answer.trace, Some(trace));
    assert_eq!(answer.status(), proto::PartialStatus::Complete);
}

#[tokio::test]
async fn an_unknown_trace_is_404_in_v1_and_empty_in_v2() {
    let router = World::new().router();
    let v1 = get(&router, "/api/traces/abc").await;
    assert_eq!((v1.status, v1.text(), v1.header("content-type")), (StatusCode::NOT_FOUND, "", None));
    assert_eq!(get(&router, "/api/v2/traces/abc").await.ok(), r#"{"trace":{},"metrics":{}}"#);
    let protobuf = get_with(&router, "/api/v2/traces/abc", &[("accept", "application/protobuf")]).await;
    let answer = proto::TraceByIdResponse::decode(protobuf.body).expect("protobuf");
    assert_eq!(answer.trace, Some(TracesData::default()), "Grafana takes the trace for granted");
}

#[tokio::test]
async fn a_trace_that_is_too_large_is_refused_in_v1_and_partial_in_v2() {
    let mut world = World::new();
    world.limits.max_bytes_per_trace = 250;
    world.receive(&Tenant::single(), shop());
    let router = world.router();
    let v1 = get(&router, &format!("/api/traces/{SHOP_HEX}")).await;
    assert_eq!((v1.status, v1.text()), (StatusCode::UNPROCESSABLE_ENTITY, "trace exceeds max size (max bytes: 250)"));
    let v2 = get(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await.json();
    assert_eq!(v2["status"], "PARTIAL");
    assert_eq!(v2["message"], "Trace exceeds maximum size of 250 bytes, a partial trace is returned");
    assert_eq!(v2["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"], "update-billing");
}

fn names(answer: &serde_json::Value) -> Vec<String> {
    let empty = Vec::new();
    let list = |value: &serde_json::Value| value.as_array().unwrap_or(&empty).clone();
    let mut names = Vec::new();
    for resource in list(&answer["trace"]["resourceSpans"]) {
        for scope in list(&resource["scopeSpans"]) {
            names.extend(list(&scope["spans"]).iter().map(|span| span["name"].as_str().expect("name").to_owned()));
        }
    }
    names
}

#[tokio::test]
async fn parts_of_a_trace_are_put_together() {
    let world = World::new();
    let tenant = Tenant::single();
    let a = |id, seconds| span(SHOP, id, 0, &format!("s{id}"), seconds);
    world.receive(&tenant, vec![service("x", vec![a(5, 5), a(4, 10)])]);
    world.receive(&tenant, vec![service("x", vec![a(4, 10)])]);
    world.cut(&tenant, vec![service("x", vec![a(1, 4000), a(2, 3000)])]).await;
    world.cut(&tenant, vec![service("x", vec![a(2, 3000), a(3, 2000), a(4, 10)])]).await;
    let router = world.router();
    let whole = get(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await.json();
    assert_eq!(names(&whole), ["s1", "s2", "s3", "s4", "s5"]);
    // A range chooses blocks, never recent data.
    let range = format!("start={}&end={}", NOW - 5000, NOW - 3500);
    let part = get(&router, &format!("/api/v2/traces/{SHOP_HEX}?{range}")).await.json();
    assert_eq!(names(&part), ["s1", "s2", "s4", "s5"]);
}

#[tokio::test]
async fn a_trace_looks_the_same_from_a_block() {
    let world = World::new();
    world.cut(&Tenant::single(), shop()).await;
    let answer = get(&world.router(), &format!("/api/v2/traces/{SHOP_HEX}")).await.json();
    let mut found = names(&answer);
    found.sort();
    assert_eq!(found, ["charge", "pay", "update-billing"]);
    assert!(answer["metrics"]["inspectedBytes"].as_str().expect("text").parse::<u64>().expect("number") > 100);
}

#[tokio::test]
async fn tenants_see_their_own_and_federation_sees_all() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    let (a, b) = (Tenant::new("a").expect("name"), Tenant::new("b").expect("name"));
    world.receive(&a, vec![service("x", vec![span(SHOP, 1, 0, "of-a", 10)])]);
    world.receive(&b, vec![service("x", vec![span(SHOP, 2, 1, "of-b", 9)])]);
    let router = world.router();
    let url = format!("/api/v2/traces/{SHOP_HEX}");
    for (header, expected) in [("a", &["of-a"][..]), ("b", &["of-b"]), ("b|a", &["of-a", "of-b"]), ("c", &[])] {
        let answer = get_with(&router, &url, &[("x-scope-orgid", header)]).await.json();
        assert_eq!(names(&answer), expected, "{header}");
    }
}

#[tokio::test]
async fn large_answers_are_compressed() {
    use std::io::Read as _;
    let world = World::new();
    let spans = (1..100).map(|id| span(SHOP, id, 0, "the same name again and again", 10)).collect();
    world.receive(&Tenant::single(), vec![service("x", spans)]);
    let router = world.router();
    let url = format!("/api/traces/{SHOP_HEX}");
    let plain = get(&router, &url).await;
    assert_eq!(plain.header("content-encoding"), None);
    let zipped = get_with(&router, &url, &[("accept-encoding", "deflate, gzip")]).await;
    assert_eq!((zipped.header("content-encoding"), zipped.header("vary")), (Some("gzip"), Some("accept-encoding")));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_string(&mut text).expect("gzip");
    assert_eq!(text, plain.text());
    let small = get_with(&router, "/api/v2/traces/1", &[("accept-encoding", "gzip")]).await;
    assert_eq!((small.header("content-encoding"), small.ok()), (None, r#"{"trace":{},"metrics":{}}"#));
}
