//! What was sent comes back, by id and by search, before and after the blocks are cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry::{
    Array, KeyValue, StringValue, Value as SdkValue,
    trace::{Link, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    trace::v1::{ResourceSpans, Span},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use serde_json::json;
use storage::{
    id::TraceId,
    synthetic::{Requests, Settings, SpanTruth, Summary, Totals},
};

use crate::harness::{
    client::{Client, last_hour, spans},
    eventually, now_ns,
    otlp::{body, span, string},
    server::{Config, Server},
};

/// Keeps what the SDK would export.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("nobody panics here").extend(batch);
        Ok(())
    }
}

fn resource(service: &'static str) -> Resource {
    Resource::builder_empty().with_attributes([KeyValue::new("service.name", service), KeyValue::new("host.cpus", 8)]).build()
}

/// One trace as an instrumented program makes it: three spans with everything that a span can have.
fn record_trace(service: &'static str) -> Vec<SpanData> {
    let collected = Collected::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(collected.clone()).with_resource(resource(service)).build();
    let tracer = provider.tracer("roundtrip");
    let elsewhere = SpanContext::new(
        opentelemetry::trace::TraceId::from(7u128),
        opentelemetry::trace::SpanId::from(9u64),
        opentelemetry::trace::TraceFlags::SAMPLED,
        false,
        opentelemetry::trace::TraceState::default(),
    );
    let root = tracer
        .span_builder("GET /checkout")
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("http.request.method", "GET"),
            KeyValue::new("http.response.status_code", 503),
            KeyValue::new("app.ratio", 0.25),
            KeyValue::new("app.retried", true),
            KeyValue::new("app.skus", SdkValue::Array(Array::from(vec![StringValue::from("a"), StringValue::from("b")]))),
            KeyValue::new("app.empty", ""),
            KeyValue::new("app.utf8", "käse 🧀"),
        ])
        .with_links(vec![Link::new(elsewhere, vec![KeyValue::new("why", "retry")], 0)])
        .start(&tracer);
    let root = opentelemetry::Context::new().with_span(root);
    let child = tracer.span_builder("SELECT orders").with_kind(SpanKind::Client).start_with_context(&tracer, &root);
    let child = root.with_span(child);
    child.span().add_event("exception", vec![KeyValue::new("exception.type", "Timeout"), KeyValue::new("attempt", 3)]);
    child.span().set_status(Status::error("timed out"));
    let inner = tracer.span_builder("parse rows").with_kind(SpanKind::Internal).start_with_context(&tracer, &child);
    child.with_span(inner).span().end();
    child.span().end();
    root.span().end();
    provider.shutdown().expect("the collector has nothing to flush");
    let mut collected = collected.0.lock().expect("nobody panics here");
    assert_eq!(collected.len(), 3);
    std::mem::take(&mut collected)
}

async fn export(mut exporter: opentelemetry_otlp::SpanExporter, service: &'static str, spans: Vec<SpanData>) {
    exporter.set_resource(&resource(service));
    exporter.export(spans).await.expect("the server acknowledges");
}

/// A span without what the wire, the blocks and the SDK may state in several ways: order of attributes, absent or empty messages, and
/// the flags, which the block format has no column for.
fn normal(span: &Span) -> Span {
    let mut span = span.clone();
    span.flags = 0;
    span.status.get_or_insert_default();
    span.attributes.sort_by(|a, b| a.key.cmp(&b.key));
    for event in &mut span.events {
        event.attributes.sort_by(|a, b| a.key.cmp(&b.key));
    }
    for link in &mut span.links {
        link.flags = 0;
        link.attributes.sort_by(|a, b| a.key.cmp(&b.key));
    }
    span
}

/// Spans by identity; each must occur once.
fn by_identity<'a>(spans: impl Iterator<Item = &'a Span>) -> BTreeMap<(Vec<u8>, i32), Span> {
    let mut all = BTreeMap::new();
    for span in spans {
        let before = all.insert((span.span_id.clone(), span.kind), normal(span));
        assert!(before.is_none(), "span {:?} comes twice", span.name);
    }
    all
}

fn service_of(resource_spans: &ResourceSpans) -> String {
    let attributes = &resource_spans.resource.as_ref().expect("a resource, always").attributes;
    let name = attributes.iter().find(|attribute| attribute.key == "service.name").expect("a service");
    match name.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(name)) => name.clone(),
        other => panic!("service.name is {other:?}"),
    }
}

async fn wait_for_trace(client: &Client, id: TraceId, count: usize) -> Vec<ResourceSpans> {
    eventually(&format!("{count} spans of trace {id}"), || async { client.trace(id).await.filter(|trace| spans(trace).count() >= count) })
        .await
}

async fn wait_for_blocks(server: &Server, traces: u64) {
    eventually(&format!("{traces} traces in blocks"), || async { (server.traces_in_blocks("single-tenant") >= traces).then_some(()) })
        .await;
}

/// Restarts the server without its WAL: what it knows then, it knows from the blocks.
async fn keep_only_blocks(server: &mut Server) {
    let status = server.terminate().await;
    assert!(status.success(), "SIGTERM ends with {status}");
    std::fs::remove_dir_all(server.wal_path()).expect("there is a WAL");
    server.start_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exporters_spans_come_back_before_and_after_the_cut() {
    let (by_grpc, by_http) = (record_trace("shop-grpc"), record_trace("shop-http"));
    let mut server = Server::start(Config { max_block_duration: "3s", ..Config::default() }).await;
    let grpc = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(server.otlp_grpc_url())
        .with_compression(opentelemetry_otlp::Compression::Gzip)
        .build()
        .expect("a gRPC exporter");
    export(grpc, "shop-grpc", by_grpc.clone()).await;
    let http =
        opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(server.otlp_http_url()).build().expect("an HTTP exporter");
    export(http, "shop-http", by_http.clone()).await;

    for after_cut in [false, true] {
        if after_cut {
            wait_for_blocks(&server, 2).await;
            keep_only_blocks(&mut server).await;
        }
        let client = server.client();
        for (service, sent) in [("shop-grpc", &by_grpc), ("shop-http", &by_http)] {
            let sent: Vec<Span> = sent.iter().cloned().map(Span::from).collect();
            let id = TraceId(sent[0].trace_id.as_slice().try_into().expect("16 bytes"));
            let trace = wait_for_trace(&client, id, 3).await;
            assert_eq!(by_identity(spans(&trace)), by_identity(sent.iter()), "after the cut: {after_cut}");
            assert!(trace.iter().all(|resource_spans| service_of(resource_spans) == service));
            assert!(
                trace
                    .iter()
                    .flat_map(|resource| &resource.scope_spans)
                    .all(|scope| scope.scope.as_ref().is_some_and(|scope| scope.name == "roundtrip"))
            );
            for q in [
                format!("{{ resource.service.name = \"{service}\" && span.http.response.status_code = 503 }}"),
                format!("{{ resource.service.name = \"{service}\" && status = error && name = \"SELECT orders\" }}"),
                format!("{{ resource.service.name = \"{service}\" && span.app.ratio = 0.25 && span.app.retried = true && kind = server }}"),
                format!("{{ resource.host.cpus = 8 && .service.name = \"{service}\" && span.app.utf8 = \"käse 🧀\" }}"),
            ] {
                let found = eventually(&q, || async { Some(client.search(&q, 20).await).filter(|found| !found.is_empty()) }).await;
                assert_eq!(found.len(), 1, "{q}: {found:?}");
                assert_eq!(found[0]["traceID"], id.to_short_hex());
                assert_eq!(found[0]["rootServiceName"], service);
                assert_eq!(found[0]["rootTraceName"], "GET /checkout");
                assert_eq!(found[0]["spanSets"][0]["matched"], 1, "{q}");
                assert_eq!(found[0]["serviceStats"][service], json!({"spanCount": 3, "errorCount": 1}));
            }
            let nothing =
                client.search(&format!("{{ resource.service.name = \"{service}\" && span.http.response.status_code = 200 }}"), 20).await;
            assert_eq!(nothing, Vec::<serde_json::Value>::new());
        }
    }
}

/// The JSON answers, which Grafana and people read, say what the protobuf answers say.
#[tokio::test(flavor = "multi_thread")]
async fn traces_are_answered_as_json_and_protobuf_by_both_versions() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let id = TraceId(0x00ab_cdef_u128.to_be_bytes());
    let mut sent = span(id, 0x42, "by hand");
    sent.attributes = vec![string("key", "value")];
    let answer = client.post_protobuf(body("tiny", vec![sent.clone()])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_for_trace(&client, id, 1).await;

    let v1 = client.get("/api/traces/abcdef").await.expect("an answer");
    assert_eq!((v1.status, v1.headers["content-type"].as_str()), (200, "application/json"));
    let expected = json!({
        "traceId": "AAAAAAAAAAAAAAAAAKvN7w==",
        "spanId": "AAAAAAAAAEI=",
        "name": "by hand",
        "kind": "SPAN_KIND_SERVER",
        "startTimeUnixNano": sent.start_time_unix_nano.to_string(),
        "endTimeUnixNano": sent.end_time_unix_nano.to_string(),
        "attributes": [{"key": "key", "value": {"stringValue": "value"}}],
        "status": {},
    });
    assert_eq!(v1.json()["batches"][0]["scopeSpans"][0]["spans"][0], expected);
    let v2 = client.get("/api/v2/traces/0ABCDEF").await.expect("an answer");
    assert_eq!(v2.json()["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0], expected);
    assert!(v2.json().get("status").is_none(), "complete answers have no status");

    let protobuf = client.get_as("/api/v2/traces/abcdef", "application/protobuf").await;
    assert_eq!(protobuf.headers["content-type"], "application/protobuf");
    // TraceByIDResponse: field 1 is the trace.
    assert_eq!(protobuf.body.first(), Some(&0x0a));

    let absent = client.get("/api/traces/1234").await.expect("an answer");
    assert_eq!((absent.status, absent.body.len()), (404, 0));
    let absent = client.get("/api/v2/traces/1234").await.expect("an answer");
    assert_eq!((absent.status, &absent.json()["trace"]), (200, &json!({})));
    let wrong = client.get("/api/traces/12xy").await.expect("an answer");
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("trace IDs can only contain hex characters: invalid character 'x' at position 2"), "{}", wrong.text());
    let long = client.get(&format!("/api/v2/traces/{}", "1".repeat(33))).await.expect("an answer");
    assert_eq!(long.status, 400);
    assert!(long.text().contains("trace IDs can't be larger than 128 bits"), "{}", long.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn otlp_json_is_taken_and_answered_as_json() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let end = now_ns();
    let message = json!({"resourceSpans": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "from-json"}}]},
        "scopeSpans": [{"scope": {"name": "s"}, "spans": [{
            "traceId": "5b8efff798038103d269b633813fc60c",
            "spanId": "eee19b7ec3c1b174",
            "name": "json span",
            "kind": 3,
            "startTimeUnixNano": (end - 5_000_000).to_string(),
            "endTimeUnixNano": end.to_string(),
            "attributes": [{"key": "count", "value": {"intValue": "12"}}],
            "unknownField": {"is": ["ignored"]},
        }]}],
    }]});
    let answer = client.post(&[("Content-Type", "application/json")], message.to_string()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.headers["content-type"].starts_with("application/json"));
    assert!([json!({}), json!({"partialSuccess": {}})].contains(&answer.json()), "{}", answer.text());

    let id = TraceId::from_hex("5b8efff798038103d269b633813fc60c").expect("an id");
    let trace = wait_for_trace(&client, id, 1).await;
    let span = spans(&trace).next().expect("one");
    assert_eq!((span.name.as_str(), span.kind, span.end_time_unix_nano), ("json span", 3, end));
    assert_eq!(span.attributes[0].value.as_ref().and_then(|value| value.value.clone()), Some(Value::IntValue(12)));
}

/// Sends synthetic traces and returns what is true of them.
async fn send_synthetic(client: &Client, traces: usize) -> (Vec<Arc<Summary>>, Totals, Vec<bytes::Bytes>) {
    // All of it lies in the seconds before now.
    let settings = Settings { seed: 20, base_time_ns: now_ns() - 5_000_000_000, spans_per_request: 400, ..Settings::default() };
    let mut summaries = BTreeMap::new();
    let mut totals = Totals::default();
    let mut bodies = Vec::new();
    for request in Requests::new(settings, Some(traces)) {
        let answer = client.post_protobuf(request.body.clone()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        for part in request.parts {
            totals.add_spans(&part.trace, part.spans);
            summaries.insert(part.trace.trace_id, part.trace);
        }
        bodies.push(request.body);
    }
    (summaries.into_values().collect(), totals, bodies)
}

fn by_trace(bodies: &[bytes::Bytes]) -> BTreeMap<TraceId, Vec<Span>> {
    use prost::Message as _;
    let mut traces = BTreeMap::<TraceId, Vec<Span>>::new();
    for body in bodies {
        let request = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(body.clone()).expect("a request");
        for span in spans(&request.resource_spans) {
            let id = TraceId(span.trace_id.as_slice().try_into().expect("16 bytes"));
            traces.entry(id).or_default().push(span.clone());
        }
    }
    traces
}

#[tokio::test(flavor = "multi_thread")]
async fn realistic_traces_come_back_whole_and_are_found_by_what_is_in_them() {
    let mut server = Server::start(Config { max_block_duration: "3s", ..Config::default() }).await;
    let (summaries, totals, bodies) = send_synthetic(&server.client(), 150).await;
    let sent = by_trace(&bodies);
    assert_eq!(sent.len(), summaries.len());

    for after_cut in [false, true] {
        if after_cut {
            wait_for_blocks(&server, sent.len() as u64).await;
            keep_only_blocks(&mut server).await;
        }
        let client = server.client();
        for (id, sent) in &sent {
            let trace = wait_for_trace(&client, *id, sent.len()).await;
            assert_eq!(by_identity(spans(&trace)), by_identity(sent.iter()), "trace {id}, after the cut: {after_cut}");
        }
        check_searches(&client, &summaries).await;
        check_tags(&client, &totals).await;
    }
}

async fn check_searches(client: &Client, summaries: &[Arc<Summary>]) {
    type Matches = fn(&SpanTruth) -> bool;
    let counts: [(&str, Matches); 6] = [
        ("{ resource.service.name = \"payment\" }", |span| span.service == "payment"),
        ("{ name = \"SELECT products\" }", |span| span.name == "SELECT products"),
        ("{ status = error }", |span| span.error),
        ("{ status = error && resource.service.name = \"catalog\" }", |span| span.error && span.service == "catalog"),
        ("{ kind = consumer || name = \"publish orders\" }", |span| span.key.kind == 5 || span.name == "publish orders"),
        ("{ resource.service.name =~ \"ca.*\" && kind = server }", |span| span.service.starts_with("ca") && span.key.kind == 2),
    ];
    for (q, matches) in counts {
        let matched = |summary: &Arc<Summary>| summary.spans.iter().filter(|span| matches(span)).count() as u64;
        let expected: BTreeMap<String, u64> = summaries
            .iter()
            .map(|summary| (summary.trace_id.to_short_hex(), matched(summary)))
            .filter(|(_, matched)| *matched > 0)
            .collect();
        assert!(!expected.is_empty(), "{q} tests nothing");
        let found = eventually(&format!("{} traces for {q}", expected.len()), || async {
            Some(client.search(q, 1000).await).filter(|found| found.len() >= expected.len())
        })
        .await;
        let found: BTreeMap<String, u64> = found
            .iter()
            .map(|trace| (trace["traceID"].as_str().expect("an id").to_owned(), trace["spanSets"][0]["matched"].as_u64().expect("a count")))
            .collect();
        assert_eq!(found, expected, "{q}");
    }
    assert_eq!(client.search("{ }", 7).await.len(), 7, "the limit holds");
}

async fn check_tags(client: &Client, totals: &Totals) {
    let (start, end) = last_hour();
    let range = [("start", start.as_str()), ("end", end.as_str())];
    let services: BTreeSet<&str> = totals.services.keys().copied().collect();
    let strings = |answer: &serde_json::Value| {
        answer.as_array().expect("a list").iter().map(|value| value.as_str().expect("text").to_owned()).collect::<BTreeSet<String>>()
    };

    let v1 = client.query("/api/search/tag/service.name/values", &range).await.json();
    assert_eq!(strings(&v1["tagValues"]), services.iter().map(|name| (*name).to_owned()).collect());
    let v2 = client.query("/api/v2/search/tag/resource.service.name/values", &range).await.json();
    let typed: BTreeSet<(String, String)> = v2["tagValues"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|value| (value["type"].as_str().expect("a type").to_owned(), value["value"].as_str().expect("text").to_owned()))
        .collect();
    assert_eq!(typed, services.iter().map(|name| ("string".to_owned(), (*name).to_owned())).collect());
    let codes = client.query("/api/v2/search/tag/span.http.response.status_code/values", &range).await.json();
    assert!(codes["tagValues"].as_array().expect("a list").contains(&json!({"type": "int", "value": "200"})), "{codes}");
    let names = client.query("/api/v2/search/tag/name/values", &range).await.json();
    assert_eq!(names["tagValues"].as_array().expect("a list").len(), totals.names.len(), "{names}");

    let tags = strings(&client.query("/api/search/tags", &range).await.json()["tagNames"]);
    for tag in ["service.name", "k8s.pod.name", "db.query.text", "app.cart.value", "thread.id"] {
        assert!(tags.contains(tag), "{tag} is not in {tags:?}");
    }
    let scopes = client.query("/api/v2/search/tags", &range).await.json();
    let scope = |name: &str| {
        let scopes = scopes["scopes"].as_array().expect("a list");
        let scope = scopes.iter().find(|scope| scope["name"] == name).unwrap_or_else(|| panic!("no scope {name} in {scopes:?}"));
        strings(&scope["tags"])
    };
    assert!(scope("resource").contains("k8s.deployment.name") && !scope("resource").contains("db.query.text"));
    assert!(scope("span").contains("db.query.text") && !scope("span").contains("service.name"));
    assert!(scope("event").contains("exception.type"));
    assert!(scope("intrinsic").contains("duration"));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_spans_are_stored_once() {
    let mut server = Server::start(Config { trace_idle_period: "1s", ..Config::default() }).await;
    let id = TraceId([9; 16]);
    let message = body("again", (1..=5).map(|number| span(id, number, "once")).collect());
    for _ in 0..4 {
        assert_eq!(server.client().post_protobuf(message.clone()).await.expect("an answer").status, 200);
    }
    let trace = wait_for_trace(&server.client(), id, 5).await;
    assert_eq!(by_identity(spans(&trace)).len(), 5);
    wait_for_blocks(&server, 1).await;
    // A straggler's repetition, after the block.
    assert_eq!(server.client().post_protobuf(message).await.expect("an answer").status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let trace = wait_for_trace(&server.client(), id, 5).await;
    assert_eq!(by_identity(spans(&trace)).len(), 5);
    // Whether or not the repetition became a block of its own, the answer from blocks alone has each span once.
    keep_only_blocks(&mut server).await;
    let trace = wait_for_trace(&server.client(), id, 5).await;
    assert_eq!(by_identity(spans(&trace)).len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn operational_endpoints_answer() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let echo = client.get("/api/echo").await.expect("an answer");
    assert_eq!((echo.status, echo.text().as_str()), (200, "echo\n"));
    let ready = client.get("/ready").await.expect("an answer");
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    let info = client.get("/api/status/buildinfo").await.expect("an answer").json();
    for key in ["version", "revision", "branch", "buildUser", "buildDate", "goVersion"] {
        assert!(info[key].is_string(), "{key} in {info}");
    }
    assert_eq!(client.get("/status").await.expect("an answer").status, 200);
    assert_eq!(client.post_protobuf(body("metrics", vec![span(TraceId([3; 16]), 1, "x")])).await.expect("an answer").status, 200);
    let received = eventually("the received span is counted", || async {
        let spans = client.metric("tempo_distributor_spans_received_total", &["tenant=\"single-tenant\""]).await;
        (spans > 0.0).then_some(spans)
    })
    .await;
    assert!((received - 1.0).abs() < f64::EPSILON, "{received}");
}
