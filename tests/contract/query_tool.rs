//! `rubato query` against the shared server.

use super::{CHECKOUT_ID, Fixture, SHOP};
use crate::harness::server::run;

/// Runs the tool; its exit code and what it prints.
async fn tool(arguments: &[&str]) -> (Option<i32>, String, String) {
    let fixture = Fixture::get().await;
    let arguments: Vec<String> = ["query"].iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
    let arguments = [arguments, vec!["--url".to_owned(), fixture.server.url()]].concat();
    let output = tokio::task::spawn_blocking(move || {
        let dir = tempfile::tempdir().expect("a folder");
        run(dir.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let output = output.await.expect("the tool ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

async fn good(arguments: &[&str]) -> String {
    let (code, printed, error) = tool(&[arguments, &["--tenant", SHOP]].concat()).await;
    assert_eq!(code, Some(0), "{arguments:?}: {error}");
    printed
}

async fn bad(arguments: &[&str]) -> String {
    let (code, printed, error) = tool(arguments).await;
    assert_eq!((code, printed.as_str()), (Some(1), ""), "{arguments:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_listed() {
    let table = good(&["search", "{ status = error }"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("START") && lines[0].contains("DURATION"), "{table}");
    for part in [CHECKOUT_ID, "557ms", "shop-backend", "GET /checkout"] {
        assert!(lines[1].contains(part), "{part} in {table}");
    }
    assert!(table.contains("1 traces; "), "{table}");
    let with_spans = good(&["search", "{ span.customer = \"alice\" }", "--spans", "--limit", "5"]).await;
    assert!(with_spans.contains("0000000000000002") && with_spans.contains("customer=alice"), "{with_spans}");
    let none = good(&["search", "{ name = \"nothing\" }"]).await;
    assert!(none.starts_with("0 traces; "), "{none}");
    let json: serde_json::Value = serde_json::from_str(&good(&["search", "{ status = error }", "--json"]).await).expect("JSON");
    assert_eq!(json["traces"][0]["traceID"], CHECKOUT_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_a_waterfall() {
    let drawn = good(&["trace", CHECKOUT_ID]).await;
    for part in ["4 spans of 2 services, 1 errors", "shop-backend: GET /checkout", "└─ shop-backend: charge !", "└─ payments: pay", "█"]
    {
        assert!(drawn.contains(part), "{part} in {drawn}");
    }
    let details = good(&["trace", CHECKOUT_ID, "--verbose"]).await;
    assert!(details.contains("exception.message = connection reset"), "{details}");
    let json: serde_json::Value = serde_json::from_str(&good(&["trace", CHECKOUT_ID, "--json"]).await).expect("JSON");
    assert!(json["trace"]["resourceSpans"].is_array());
    let error = bad(&["trace", "abc", "--tenant", SHOP]).await;
    assert!(error.contains("the server has no trace 00000000000000000000000000000abc"), "{error}");
    let error = bad(&["trace", "xyz", "--tenant", SHOP]).await;
    assert!(error.contains("\"xyz\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_listed() {
    let names = good(&["tags", "--scope", "resource"]).await;
    assert!(names.contains("resource  service.name\n") && names.ends_with("\n3 names\n"), "{names}");
    let values = good(&["tag-values", "span.http.status_code", "--query", "{ status = error }"]).await;
    assert!(values.contains("int   500\n") && values.ends_with("\n1 values\n"), "{values}");
    let json: serde_json::Value = serde_json::from_str(&good(&["tag-values", "status", "--json"]).await).expect("JSON");
    assert_eq!(json["tagValues"][0]["type"], "keyword");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_the_server_are_shown() {
    let error = bad(&["search", "{ .a == 1 }", "--tenant", SHOP]).await;
    assert!(error.contains("/api/search answered 400: invalid TraceQL query: "), "{error}");
    let error = bad(&["search"]).await;
    assert!(error.contains("answered 401: no org id"), "{error}");
    let error = bad(&["tag-values", "a b", "--tenant", SHOP]).await;
    assert!(error.contains("failed to parse identifier a b"), "{error}");
    let error = bad(&["search", "--start", "yesterday", "--tenant", SHOP]).await;
    assert!(error.contains("\"yesterday\" is neither Unix seconds nor a time"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    // Nothing listens on the discard port.
    let output = run(dir.path(), &["query", "search", "--url", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("http://127.0.0.1:9 cannot be reached"), "{error}");
    let help = run(dir.path(), &["query", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in ["search", "trace", "tags", "tag-values", "metrics"] {
        assert!(help.contains(word), "{help}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_a_line_per_series() {
    let shown = good(&["metrics", "{} | count_over_time() by (resource.service.name)", "--since", "10m"]).await;
    assert!(shown.contains("{resource.service.name=\"clock\"}") && shown.contains('█') && shown.contains(" series; "), "{shown}");
    let instant = good(&["metrics", "{ status = error } | count_over_time()", "--instant"]).await;
    assert!(instant.contains("{__name__=\"count_over_time\"}") && instant.contains("1 series; "), "{instant}");
    let json: serde_json::Value = serde_json::from_str(&good(&["metrics", "{} | rate()", "--json"]).await).expect("JSON");
    assert!(json["series"][0]["samples"].is_array());
    let error = bad(&["metrics", "{}", "--tenant", SHOP]).await;
    assert!(error.contains("answered 400: not a metrics query"), "{error}");
}
