//! The trace view: lookups by id as the data source makes and decodes them.

use prost::Message as _;
use serde_json::{Value, json};

use super::{
    AUDIT, BARE, CHECKOUT, CHECKOUT_ID, Fixture, ORDER, SHOP,
    protocols::tempopb::{PartialStatus, Trace, TraceByIdResponse, common::v1::any_value::Value as Any},
    strict,
};
use crate::harness::client::Answer;

const PROTOBUF: &str = "application/protobuf";

async fn v2(fixture: &Fixture, id: &str) -> TraceByIdResponse {
    let answer = fixture.client().get_as(&format!("/api/v2/traces/{id}"), PROTOBUF).await;
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, PROTOBUF), "{}", answer.text());
    TraceByIdResponse::decode(answer.body).expect("a TraceByIDResponse")
}

fn names(trace: &Trace) -> Vec<&str> {
    let scopes = trace.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let mut names: Vec<_> = scopes.flat_map(|scope| &scope.spans).map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_by_id_is_whole() {
    let fixture = Fixture::get().await;
    for id in [CHECKOUT_ID.to_owned(), format!("0{CHECKOUT_ID}"), CHECKOUT.to_string(), CHECKOUT.to_string().to_uppercase()] {
        let answer = v2(fixture, &id).await;
        let trace = answer.trace.as_ref().expect("a trace, always");
        assert_eq!(names(trace), ["GET /checkout", "SELECT accounts", "charge", "pay"], "{id}");
        assert_eq!((answer.status(), answer.message.as_str()), (PartialStatus::Complete, ""));
        assert!(answer.metrics.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_scope_and_status_are_on_the_wire() {
    let fixture = Fixture::get().await;
    for id in [CHECKOUT, BARE] {
        let trace = v2(fixture, &id.to_string()).await.trace.expect("a trace");
        assert!(!trace.resource_spans.is_empty());
        for resource in &trace.resource_spans {
            assert!(resource.resource.is_some());
            for scope in &resource.scope_spans {
                assert!(scope.scope.is_some());
                assert!(scope.spans.iter().all(|span| span.status.is_some()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_trace_is_empty_in_the_second_version() {
    let fixture = Fixture::get().await;
    let answer = v2(fixture, "abc").await;
    assert_eq!(answer.trace, Some(Trace::default()), "Grafana looks into it unasked");
    let shown = fixture.client().get("/api/v2/traces/abc").await.expect("an answer");
    assert_eq!((shown.status, &shown.json()["trace"]), (200, &json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_trace_is_404_without_body_in_the_first_version() {
    let fixture = Fixture::get().await;
    for accept in [PROTOBUF, "application/json"] {
        let answer = fixture.client().get_as("/api/traces/abc", accept).await;
        assert_eq!((answer.status, answer.body.len()), (404, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_version_is_a_trace_in_protobuf_and_has_batches_in_json() {
    let fixture = Fixture::get().await;
    let path = format!("/api/traces/{CHECKOUT_ID}");
    let answer = fixture.client().get_as(&path, PROTOBUF).await;
    assert_eq!(answer.headers["content-type"], PROTOBUF);
    assert_eq!(names(&Trace::decode(answer.body).expect("a trace")).len(), 4);

    let shown: Value = strict::read(&fixture.client().get(&path).await.expect("an answer"));
    let keys: Vec<_> = shown.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["batches"]);
    check_json(&shown["batches"], fixture.base);
    let shown: Value = strict::read(&fixture.client().get(&format!("/api/v2/traces/{CHECKOUT_ID}")).await.expect("an answer"));
    check_json(&shown["trace"]["resourceSpans"], fixture.base);
}

/// Ids in base64, times as texts, enums by name.
fn check_json(resource_spans: &Value, base: u64) {
    let resources = resource_spans.as_array().expect("a list");
    assert!(resources.iter().all(|resource| resource["resource"].is_object()));
    let scopes = resources.iter().flat_map(|resource| resource["scopeSpans"].as_array().expect("scopes"));
    let mut charge = None;
    for scope in scopes {
        assert_eq!(scope["scope"], json!({"name": "by hand", "version": "1.2"}));
        for span in scope["spans"].as_array().expect("spans") {
            assert!(span["status"].is_object(), "{span}");
            assert!(span["startTimeUnixNano"].is_string(), "{span}");
            charge = (span["name"] == "charge").then_some(span).or(charge);
        }
    }
    let charge = charge.expect("the span");
    assert_eq!(charge["traceId"], "AAAAAAAAAAAPPgzud65dyQ==");
    assert_eq!((&charge["spanId"], &charge["parentSpanId"]), (&json!("AAAAAAAAAAI="), &json!("AAAAAAAAAAE=")));
    assert_eq!(charge["kind"], "SPAN_KIND_CLIENT");
    assert_eq!(charge["status"], json!({"code": "STATUS_CODE_ERROR", "message": "boom"}));
    assert_eq!(charge["startTimeUnixNano"], (base + 35_000_000).to_string());
    let value = |key: &str| {
        let attributes = charge["attributes"].as_array().expect("attributes");
        attributes.iter().find(|attribute| attribute["key"] == key).expect("the attribute")["value"].clone()
    };
    assert_eq!(value("http.status_code"), json!({"intValue": "500"}));
    assert_eq!(value("customer"), json!({"stringValue": "alice"}));
    assert_eq!(value("retried"), json!({"boolValue": true}));
    assert_eq!(value("ratio"), json!({"doubleValue": 0.5}));
    assert_eq!(value("skus"), json!({"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}));
    assert_eq!(charge["events"][0]["name"], "exception");
    assert_eq!(charge["events"][0]["timeUnixNano"], (base + 36_000_000).to_string());
    assert_eq!(charge["links"][0]["traceId"], "UVFRUVFRUVFRUVFRUVFRUQ==");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_chooses_blocks_and_not_spans() {
    let fixture = Fixture::get().await;
    fixture.wait_for_blocks().await;
    let [start, end] = fixture.seconds();
    let around = format!("/api/v2/traces/{ORDER}?start={}&end={}", start - 1800, end + 1800);
    let answer = fixture.client().get_as(&around, PROTOBUF).await;
    let trace = TraceByIdResponse::decode(answer.body).expect("protobuf").trace.expect("a trace");
    assert_eq!(names(&trace), ["process order"]);
    let reversed = fixture.client().get("/api/v2/traces/1?start=5&end=4").await.expect("an answer");
    assert_eq!((reversed.status, reversed.text().as_str()), (400, "http parameter start must be before end. received start=5 end=4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_are_refused() {
    let fixture = Fixture::get().await;
    let ask = async |id: &str| {
        let answer: Answer = fixture.client().get(&format!("/api/v2/traces/{id}")).await.expect("an answer");
        assert_eq!(answer.status, 400);
        answer.text()
    };
    assert_eq!(ask("12x").await, "trace IDs can only contain hex characters: invalid character 'x' at position 2");
    assert_eq!(ask(&"1".repeat(33)).await, "trace IDs can't be larger than 128 bits");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_joined_by_a_bar_are_seen_as_one() {
    let fixture = Fixture::get().await;
    let both = fixture.server.client().with_tenant(&format!("{SHOP}|{AUDIT}"));
    let answer = both.get_as(&format!("/api/v2/traces/{CHECKOUT_ID}"), PROTOBUF).await;
    let trace = TraceByIdResponse::decode(answer.body).expect("protobuf").trace.expect("a trace");
    assert_eq!(names(&trace), ["GET /checkout", "SELECT accounts", "charge", "pay", "record"]);
    let mut services: Vec<_> = trace
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.resource.as_ref().expect("a resource").attributes)
        .filter(|attribute| attribute.key == "service.name")
        .map(|attribute| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Any::StringValue(name)) => name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    services.sort_unstable();
    services.dedup();
    assert_eq!(services, ["audit", "payments", "shop-backend"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn language_models_get_short_json() {
    let fixture = Fixture::get().await;
    let answer = fixture.client().get_as(&format!("/api/v2/traces/{CHECKOUT_ID}"), "application/vnd.grafana.llm").await;
    assert_eq!(answer.headers["content-type"], "application/vnd.grafana.llm+json");
    let trace = answer.json();
    assert_eq!(trace["trace"]["traceId"], CHECKOUT.to_string());
    assert!(trace["metrics"]["inspectedBytes"].is_u64());
    let services = trace["trace"]["services"].as_array().expect("services");
    let payments = services.iter().find(|service| service["serviceName"] == "payments").expect("the service");
    assert_eq!(payments["resource"], json!({"k8s.pod.name": "payments-1"}));
    let spans = services.iter().flat_map(|service| service["scopes"][0]["spans"].as_array().expect("spans"));
    let charge = spans.into_iter().find(|span| span["name"] == "charge").expect("the span");
    assert_eq!(charge["spanId"], "0000000000000002");
    assert_eq!((&charge["kind"], &charge["durationMs"]), (&json!("client"), &json!(446)));
    assert_eq!(charge["attributes"]["http.status_code"], 500);
    assert_eq!(charge["status"], json!({"code": "error", "message": "boom"}));
    let unknown = fixture.client().get_as("/api/v2/traces/abc", "application/vnd.grafana.llm").await;
    assert_eq!(unknown.json(), json!({}));
}
