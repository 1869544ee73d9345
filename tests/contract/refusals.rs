//! Errors, operation and the edges of HTTP that Grafana meets.

use super::{CHECKOUT_ID, Fixture, SHOP};
use crate::harness::server::{Config, Server};

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_too_long_are_refused_in_words_that_grafana_knows() {
    let fixture = Fixture::get().await;
    let expected = "range specified by start and end exceeds 168h0m0s. received start=1 end=1000000";
    for path in ["/api/search", "/api/search/tags", "/api/v2/search/tags", "/api/v2/search/tag/name/values"] {
        let answer = fixture.client().query(path, &[("start", "1"), ("end", "1000000")]).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, expected), "{path}");
        assert!(answer.headers["content-type"].starts_with("text/plain"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parameters_are_named() {
    let fixture = Fixture::get().await;
    for (path, parameters, text) in [
        ("/api/search", &[("q", "{}"), ("tags", "a=b")][..], "invalid request: can't specify tags and q in the same query"),
        ("/api/search", &[("limit", "0")], "invalid limit: must be a positive number"),
        ("/api/search", &[("spss", "101")], "spans per span set exceeds 100. received 101"),
        ("/api/search", &[("start", "10")], "http parameter start must be before end. received start=10 end=0"),
        ("/api/search", &[("start", "20"), ("end", "10")], "http parameter start must be before end. received start=20 end=10"),
        ("/api/search", &[("end", "10")], "error parsing date range: only one of start and end provided: must provide both or neither"),
        ("/api/search/tags", &[("scope", "x")], "invalid scope: x"),
        ("/api/v2/search/tag/a%20b/values", &[], "please provide a valid tagName: failed to parse identifier a b"),
    ] {
        let answer = fixture.client().query(path, parameters).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, text), "{path} {parameters:?}");
    }
    let answer = fixture.client().query("/api/search", &[("q", "{ .a = ")]).await;
    assert!(answer.status == 400 && answer.text().starts_with("invalid TraceQL query: "), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tenant_only_what_needs_none_answers() {
    let fixture = Fixture::get().await;
    let nobody = fixture.server.client();
    for path in ["/api/search", "/api/traces/1", "/api/v2/traces/1", "/api/v2/search/tags", "/api/metrics/query_range?q=%7B%7D"] {
        let answer = nobody.get(path).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (401, "no org id\n"), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
    assert_eq!(nobody.get("/api/echo").await.expect("an answer").text(), "echo\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_turns_streaming_on() {
    let fixture = Fixture::get().await;
    let answer = fixture.server.client().get("/api/status/buildinfo").await.expect("an answer");
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    let info = answer.json();
    let mut keys: Vec<_> = info.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["branch", "buildDate", "buildUser", "goVersion", "revision", "version"]);
    let version: Vec<u32> = info["version"].as_str().expect("a text").split('.').map(|part| part.parse().expect("a number")).collect();
    assert!(version.len() == 3 && version.as_slice() >= [2, 7, 0].as_slice(), "{version:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_compressed_for_those_who_ask() {
    let fixture = Fixture::get().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("{}/api/search?limit=200", fixture.server.url());
    let answer = fixture.client().send(client.get(url).header("Accept-Encoding", "gzip")).await.expect("an answer");
    assert_eq!((answer.status, answer.headers["content-encoding"].as_str()), (200, "gzip"));
    assert_eq!(answer.body[..2], [0x1f, 0x8b]);
    assert!(!fixture.client().get("/api/search?limit=200").await.expect("an answer").headers.contains_key("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_shown_in_both_formats() {
    let fixture = Fixture::get().await;
    fixture.search("{}").await;
    let text = fixture.server.client().get("/metrics").await.expect("an answer");
    assert!(text.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = fixture.server.client().get_as("/metrics", accept).await;
    assert!(open.headers["content-type"].starts_with("application/openmetrics-text; version=1.0.0"));
    let open = open.text();
    assert!(open.ends_with("\n# EOF\n") && open.contains("# TYPE tempo_query_frontend_queries counter\n"), "{open}");
    for (family, labels) in [
        ("tempo_query_frontend_queries_total", ["op=\"search\"", "result=\"completed\"", "tenant=\"shop\""]),
        ("tempo_query_frontend_queries_within_slo_total", ["op=\"search\"", "result=\"completed\"", "tenant=\"shop\""]),
        ("tempo_request_duration_seconds_count", ["route=\"api_search\"", "status_code=\"200\"", "method=\"GET\""]),
    ] {
        assert!(fixture.server.client().metric(family, &labels).await >= 1.0, "{family}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_query_frontend_hold() {
    let more = "\
http_api_prefix: /tempo
query_frontend:
  url_deny_list: ['limit=13\\b']
  max_query_expression_size_bytes: 50
  multi_tenant_queries_enabled: false
  search: {default_result_limit: 5, max_result_limit: 20, max_spans_per_span_set: 4, max_duration: 1h}";
    let server = Server::start(Config { more, multitenancy: true, ..Config::without_blocks() }).await;
    let client = server.client().with_tenant(SHOP);
    let body = prost::Message::encode_to_vec(&opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest {
        resource_spans: super::ticks(crate::harness::now_ns() - 60 * super::SECOND),
    });
    client.export(body, None).await.expect("acknowledged");
    assert_eq!(server.client().get("/tempo/api/echo").await.expect("an answer").status, 200);
    assert_eq!(client.get("/api/search").await.expect("an answer").status, 404);
    let found = client.get("/tempo/api/search").await.expect("an answer").json();
    assert_eq!(found["traces"].as_array().map(Vec::len), Some(5));
    for (parameters, text) in [
        ("limit=13", "Invalid request /tempo/api/search?limit=13. This query has been identified as one that destabilizes our system."),
        ("limit=21", "limit 21 exceeds max limit 20"),
        ("spss=5", "spans per span set exceeds 4. received 5"),
        ("start=1&end=3602", "range specified by start and end exceeds 1h0m0s. received start=1 end=3602"),
        (
            &format!("q={}", "%20".repeat(51)),
            "TraceQL expression exceeds the configured maximum size of 50 bytes, reduce the query expression size or contact your system \
             administrator",
        ),
    ] {
        let answer = client.get(&format!("/tempo/api/search?{parameters}")).await.expect("an answer");
        assert_eq!(answer.status, 400);
        assert!(answer.text().starts_with(text), "{parameters}: {}", answer.text());
    }
    let several = server.client().with_tenant("shop|audit").get(&format!("/tempo/api/v2/traces/{CHECKOUT_ID}")).await.expect("an answer");
    assert_eq!((several.status, several.text().as_str()), (400, "multiple org IDs present"));
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_of_go_are_not_there() {
    let fixture = Fixture::get().await;
    for path in ["/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/profile?seconds=1", "/debug/pprof/heap"] {
        let answer = fixture.server.client().get(path).await.expect("an answer");
        assert!(
            answer.status == 404 && answer.text().starts_with("there are no profiles here"),
            "{path}: {} {}",
            answer.status,
            answer.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_nobody_knows_are_not_found() {
    let fixture = Fixture::get().await;
    for path in ["/api/metrics/summary?q=%7B%7D", "/api/nothing", "/api/traces/", "/api/search/tag/name/value", "/api/mcp"] {
        let answer = fixture.client().get(path).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (404, "404 page not found\n"), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
}
