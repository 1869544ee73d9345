//! The server for language models, as a client of the protocol sees it.

use serde_json::{Value as Json, json};

use super::*;

fn world() -> World {
    let mut world = World::new();
    world.api.mcp_enabled = true;
    world.receive(&Tenant::single(), shop());
    world
}

async fn post_with(router: &Router, body: String, headers: &[(&str, &str)]) -> Answer {
    let base = [("content-type", "application/json"), ("accept", "application/json, text/event-stream"), ("host", "tempo:3200")];
    let kept = base.iter().filter(|(name, _)| !headers.iter().any(|(other, _)| other == name));
    let request = kept.chain(headers).fold(Request::post("/api/mcp"), |request, (name, value)| request.header(*name, *value));
    send(router, request.body(Body::from(body)).expect("request")).await
}

async fn ask(router: &Router, method: &str, params: Json) -> Json {
    let message = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
    let answer = post_with(router, message.to_string(), &[("mcp-protocol-version", "2025-11-25")]).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some("application/json")), "{}", answer.text());
    let answer = answer.json();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)));
    answer
}

/// The text of a tool's answer, and whether it is an error.
async fn call(router: &Router, tool: &str, arguments: Json) -> (String, bool) {
    let answer = ask(router, "tools/call", json!({"name": tool, "arguments": arguments})).await;
    let result = &answer["result"];
    let is_error = result.get("isError").is_some_and(|is_error| is_error == true);
    assert_eq!(result.get("_meta").is_none(), is_error, "{answer}");
    (result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}")).to_owned(), is_error)
}

#[tokio::test]
async fn it_is_off_unless_it_is_turned_on() {
    let mut world = world();
    world.api.mcp_enabled = false;
    assert_eq!(post_with(&world.router(), "{}".to_owned(), &[]).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn clients_are_greeted_in_the_revision_they_ask_for() {
    let router = world().router();
    let hello = |version: &str| json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
    for (asked, spoken) in
        [("2025-03-26", "2025-03-26"), ("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("2099-01-01", "2025-11-25")]
    {
        let answer = ask(&router, "initialize", hello(asked)).await;
        assert_eq!(answer["result"]["protocolVersion"], spoken);
        assert_eq!(answer["result"]["serverInfo"], json!({"name": "tempo", "version": "0.1.0"}));
        assert_eq!(answer["result"]["capabilities"], json!({"tools": {}, "resources": {}}));
    }
    assert_eq!(ask(&router, "initialize", json!({})).await["error"]["code"], -32602);
    assert_eq!(ask(&router, "ping", Json::Null).await["result"], json!({}));
    assert_eq!(ask(&router, "prompts/list", json!({})).await["error"]["code"], -32601);
    for silent in [
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "method": "notifications/unknown", "params": {}}),
        json!({"jsonrpc": "2.0", "id": 3, "result": {}}),
    ] {
        let answer = post_with(&router, silent.to_string(), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (202, ""), "{silent}");
    }
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let router = world().router();
    for (body, code) in [
        ("{", -32700),
        ("5", -32600),
        ("{}", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, -32600),
        ("[]", -32600),
    ] {
        let answer = post_with(&router, body.to_owned(), &[]).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let error: Json = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(error["error"]["code"], code, "{body}: {error}");
    }
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    for (headers, status) in [
        (&[("mcp-protocol-version", "2026-07-28")][..], 400),
        (&[("mcp-protocol-version", "nonsense")], 400),
        (&[("accept", "text/html")], 406),
        (&[("content-type", "text/plain")], 415),
        (&[("origin", "https://evil.example")], 403),
        (&[("origin", "null")], 403),
        (&[("origin", "http://tempo:3200")], 200),
        (&[("accept", "*/*")], 200),
        (&[("mcp-session-id", "whatever")], 200),
        (&[("content-type", "application/json; charset=utf-8")], 200),
    ] {
        assert_eq!(post_with(&router, ping.to_owned(), headers).await.status.as_u16(), status, "{headers:?}");
    }
    for method in ["GET", "DELETE", "PUT"] {
        let request = Request::builder().method(method).uri("/api/mcp").header("accept", "text/event-stream");
        let refused = send(&router, request.body(Body::empty()).expect("request")).await;
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, Some("POST")), "{method}");
    }
    assert_eq!(post_with(&router, " ".repeat((1 << 20) + 1), &[]).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn only_the_oldest_revision_knows_batches() {
    let router = world().router();
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"2.0","id":"b","method":"x"},5]"#;
    let answers = post_with(&router, batch.to_owned(), &[("mcp-protocol-version", "2025-03-26")]).await.json();
    let seen: Vec<_> =
        answers.as_array().expect("a list").iter().map(|answer| (answer["id"].clone(), answer["error"]["code"].clone())).collect();
    assert_eq!(seen, [(json!(1), Json::Null), (json!("b"), json!(-32601)), (Json::Null, json!(-32600))]);
    assert_eq!(post_with(&router, batch.to_owned(), &[("mcp-protocol-version", "2025-06-18")]).await.status, StatusCode::BAD_REQUEST);
    let many = format!("[{}]", vec![r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#; 21].join(","));
    assert_eq!(post_with(&router, many, &[]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tools_answer_as_the_queries_do() {
    let world = world();
    let engine = world.local_engine();
    let router = router(Arc::clone(&engine), world.api.clone());
    let listed = ask(&router, "tools/list", json!({})).await;
    let tools = listed["result"]["tools"].as_array().expect("tools").clone();
    let names: Vec<_> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "traceql-search",
            "traceql-metrics-instant",
            "traceql-metrics-range",
            "get-trace",
            "get-attribute-names",
            "get-attribute-values",
            "docs-traceql",
            "docs-config"
        ]
    );
    for tool in &tools {
        assert_eq!((&tool["inputSchema"]["type"], &tool["annotations"]["readOnlyHint"]), (&json!("object"), &json!(true)), "{tool}");
    }
    assert_eq!(tools[6]["inputSchema"]["properties"]["name"]["enum"], json!(["basic", "aggregates", "structural", "metrics"]));

    let range = json!({"query": "{ status = error }", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T22:13:20Z"});
    for arguments in [range, json!({"query": "{ status = error }"})] {
        let (found, is_error) = call(&router, "traceql-search", arguments).await;
        assert!(!is_error, "{found}");
        let found: Json = serde_json::from_str(&found).expect("JSON");
        assert_eq!(found["traces"][0]["traceID"], SHOP_HEX);
    }
    let (counted, _) = call(&router, "traceql-metrics-instant", json!({"query": "{} | count_over_time()"})).await;
    assert_eq!(serde_json::from_str::<Json>(&counted).expect("JSON")["series"][0]["value"], 3.0);
    let (series, _) = call(&router, "traceql-metrics-range", json!({"query": "{} | count_over_time() by (name)"})).await;
    assert_eq!(serde_json::from_str::<Json>(&series).expect("JSON")["series"].as_array().map(Vec::len), Some(3));
    let (trace, _) = call(&router, "get-trace", json!({"trace_id": SHOP_HEX})).await;
    assert_eq!(serde_json::from_str::<Json>(&trace).expect("JSON")["trace"]["traceId"], format!("0{SHOP_HEX}"));
    let (names, _) = call(&router, "get-attribute-names", json!({"scope": "span"})).await;
    assert_eq!(
        serde_json::from_str::<Json>(&names).expect("JSON")["scopes"],
        json!([{"name": "span", "tags": ["customer", "http.status_code"]}])
    );
    let filtered = json!({"name": "resource.service.name", "filter-query": "{ status = error }"});
    let (values, _) = call(&router, "get-attribute-values", filtered).await;
    assert_eq!(serde_json::from_str::<Json>(&values).expect("JSON")["tagValues"], json!({"string": ["shop-backend"]}));
    let (text, is_error) = call(&router, "docs-traceql", json!({"name": "structural"})).await;
    assert!(!is_error && text.starts_with("# TraceQL: how spans relate"));
    let (text, is_error) = call(&router, "docs-config", json!({"name": "config-overview"})).await;
    assert!(!is_error && text.contains("storage:"));
}

#[tokio::test]
async fn a_tool_that_cannot_answer_says_why() {
    let router = world().router();
    for (tool, arguments, text) in [
        ("traceql-search", json!({}), "argument \"query\" is required"),
        ("traceql-search", json!({"query": 5}), "argument \"query\" must be a text"),
        ("traceql-search", json!({"query": "{"}), "invalid TraceQL query: "),
        ("traceql-search", json!({"query": "{} | rate()"}), "this is a TraceQL metrics query: use the tool traceql-metrics-instant"),
        ("traceql-metrics-range", json!({"query": "{}"}), "this is not a TraceQL metrics query: use the tool traceql-search"),
        ("traceql-metrics-instant", json!({"query": "{} | count() > 1"}), "this is not a TraceQL metrics query"),
        ("traceql-search", json!({"query": "{}", "start": "yesterday"}), "argument \"start\" is no time of RFC 3339"),
        (
            "traceql-search",
            json!({"query": "{}", "start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:13:20Z"}),
            "the start must be before the end",
        ),
        ("get-trace", json!({"trace_id": "xyz"}), "trace IDs can only contain hex characters"),
        ("get-trace", json!({"trace_id": "abc"}), "trace abc was not found"),
        ("get-attribute-names", json!({"scope": "x"}), "invalid scope: x"),
        ("get-attribute-values", json!({"name": "a b"}), "please provide a valid tagName"),
        ("get-attribute-values", json!({"name": "name", "filter-query": "{ name = "}), "filter-query: invalid TraceQL query: "),
        ("docs-traceql", json!({"name": "query"}), "there is no \"query\", only basic, aggregates, structural, metrics"),
    ] {
        let (said, is_error) = call(&router, tool, arguments.clone()).await;
        assert!(is_error && said.starts_with(text), "{tool} {arguments}: {said}");
    }
    for (params, message) in [
        (json!({"name": "drop-table"}), "unknown tool: drop-table"),
        (json!({}), "name of a tool is required"),
        (json!({"name": "get-trace", "arguments": []}), "arguments must be an object"),
    ] {
        let answer = ask(&router, "tools/call", params).await;
        assert_eq!(answer["error"], json!({"code": -32602, "message": message}));
    }
}

#[tokio::test]
async fn documents_are_resources() {
    let router = world().router();
    let listed = ask(&router, "resources/list", json!({})).await["result"]["resources"].clone();
    let uris: Vec<_> = listed.as_array().expect("a list").iter().filter_map(|resource| resource["uri"].as_str()).collect();
    assert_eq!(uris.len(), 7);
    for uri in uris {
        let contents = ask(&router, "resources/read", json!({"uri": uri})).await["result"]["contents"][0].clone();
        assert_eq!((&contents["uri"], &contents["mimeType"]), (&json!(uri), &json!("text/markdown")));
        assert!(contents["text"].as_str().is_some_and(|text| text.starts_with("# ")), "{uri}");
    }
    assert_eq!(ask(&router, "resources/read", json!({"uri": "docs://x"})).await["error"]["code"], -32002);
    assert_eq!(ask(&router, "resources/templates/list", json!({})).await["result"], json!({"resourceTemplates": []}));
}

#[tokio::test]
async fn tenants_are_those_of_queries_and_calls_are_counted() {
    let mut world = World::new();
    (world.api.mcp_enabled, world.api.multitenancy_enabled) = (true, true);
    world.api.url_deny_list = vec![regex::Regex::new("/api/search\\?.*forbidden").expect("a pattern")];
    world.receive(&Tenant::new("a").expect("a tenant"), shop());
    let registry = Registry::new();
    let recent: Arc<dyn Recent> = Arc::<FakeRecent>::clone(&world.recent);
    let (store, blocklist, clock) = (world.store.clone(), world.blocklist.clone(), Arc::new(world.clock.clone()));
    let engine = Engine::new(world.settings.clone(), store, blocklist, recent, clock, &registry).expect("metrics are new");
    let router = router(Arc::new(engine), world.api.clone());
    let search = |query: &str| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "traceql-search", "arguments": {"query": query}}})
            .to_string()
    };
    let nobody = post_with(&router, search("{}"), &[]).await;
    assert_eq!((nobody.status.as_u16(), nobody.text()), (401, "no org id\n"));
    let found = async |tenant: &str, query: &str| {
        let answer = post_with(&router, search(query), &[("x-scope-orgid", tenant)]).await.json();
        answer["result"]["content"][0]["text"].as_str().expect("text").to_owned()
    };
    assert!(found("a", "{}").await.contains(SHOP_HEX));
    assert!(!found("b", "{}").await.contains(SHOP_HEX));
    assert!(found("a|b", "{}").await.contains(SHOP_HEX));
    assert!(found("a", "{ name = \"forbidden\" }").await.starts_with("Invalid request /api/search?q="));
    let family = registry.gather().into_iter().find(|family| family.name() == "tempo_query_frontend_mcp_calls_total").expect("counted");
    assert_eq!((family.get_metric()[0].get_label()[0].value(), family.get_metric()[0].get_counter().get_value()), ("traceql-search", 4.0));
}
