//! What Tempo's own components, other stores and language models ask a process.

use prost::Message as _;
use serde_json::{Value, json};
use storage::id::TraceId;
use tonic::{codec::CompressionEncoding, transport::Channel};

use super::protocols::tempopb::{self, metrics_client::MetricsClient};
use crate::harness::{
    client::{Answer, spans},
    eventually, now_ns,
    otlp::{body, span},
    server::{Config, Server},
};

fn trace(number: u8) -> TraceId {
    TraceId([number; 16])
}

async fn send(server: &Server, service: &str, number: u8) {
    let answer =
        server.client().post_protobuf(body(service, vec![span(trace(number), u64::from(number), "sell")])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The descriptions of the blocks of a server with one tenant.
fn blocks(server: &Server) -> Vec<Value> {
    let Ok(blocks) = std::fs::read_dir(server.blocks_path().join("single-tenant")) else { return Vec::new() };
    let metas = blocks.filter_map(|block| std::fs::read(block.ok()?.path().join("meta.json")).ok());
    metas.filter_map(|meta| serde_json::from_slice(&meta).ok()).collect()
}

fn seconds() -> u64 {
    now_ns() / 1_000_000_000
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_tempos_frontend_are_answered_block_by_block() {
    let server = Server::start(Config::default()).await;
    for number in 1..=3 {
        send(&server, "shop", number).await;
        let expected = u64::from(number);
        eventually("the trace in a block", || async { (server.traces_in_blocks("single-tenant") >= expected).then_some(()) }).await;
    }
    // Merging may take blocks away while they are asked for: then the list is made anew.
    let found = eventually("each trace in one block", || async {
        let mut found = Vec::new();
        for meta in blocks(&server) {
            let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| meta[key].as_u64().unwrap_or(0).to_string();
            let (start, end) = ((seconds() - 3600).to_string(), (seconds() + 60).to_string());
            let (block, version) = (text("blockID"), text("format"));
            let (size, footer, records) = (number("size"), number("footerSize"), number("totalRecords"));
            let parameters = [
                ("q", "{ name = \"sell\" }"),
                ("limit", "20"),
                ("spss", "3"),
                ("start", start.as_str()),
                ("end", end.as_str()),
                ("blockID", &block),
                ("startPage", "0"),
                ("pagesToSearch", "100"),
                ("size", &size),
                ("indexPageSize", "0"),
                ("totalRecords", &records),
                ("version", &version),
                ("footerSize", &footer),
                ("encoding", "none"),
                ("dc", "[]"),
            ];
            let query: Vec<String> =
                parameters.iter().map(|(name, value)| format!("{name}={}", value.replace(' ', "%20").replace('"', "%22"))).collect();
            let path = format!("/querier/api/search?{}", query.join("&"));
            let answer = server.client().get_as(&path, "application/protobuf").await;
            if answer.status != 200 {
                return None;
            }
            assert_eq!(answer.headers["content-type"], "application/protobuf");
            let message = tempopb::SearchResponse::decode(answer.body).expect("a message");
            found.extend(message.traces.into_iter().map(|trace| trace.trace_id));
        }
        found.sort();
        found.dedup();
        (found.len() == 3).then_some(found)
    })
    .await;
    assert_eq!(found, [1, 2, 3].map(|number| trace(number).to_short_hex()));
    let missing = server.client().get_as("/querier/api/traces/ff?mode=blocks", "application/protobuf").await;
    assert_eq!(missing.status, 404);
    tempopb::TraceByIdResponse::decode(missing.body).expect("a message");
    assert_eq!(server.client().get("/querier/api/metrics/query?q=%7B%7D").await.expect("an answer").status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn tempos_queriers_measure_recent_data() {
    let server = Server::start(Config::without_blocks()).await;
    send(&server, "shop", 1).await;
    send(&server, "cart", 2).await;
    let step = 60_000_000_000;
    let end = (now_ns() / step + 1) * step;
    let query = "{} | count_over_time() by (resource.service.name)".to_owned();
    let request =
        tempopb::QueryRangeRequest { query, start: end - 10 * step, end, step, query_mode: "recent".to_owned(), ..Default::default() };
    // Tempo's queriers compress what they ask.
    let client = MetricsClient::new(Channel::from_shared(server.grpc_url()).expect("a URL").connect_lazy());
    let mut client = client.send_compressed(CompressionEncoding::Gzip);
    let answer = client.query_range(request.clone()).await.expect("an answer").into_inner();
    let sum = |series: &tempopb::TimeSeries| series.samples.iter().map(|sample| sample.value).sum::<f64>();
    assert_eq!(answer.series.iter().map(sum).collect::<Vec<_>>(), [1.0, 1.0], "{answer:?}");
    let quantiles = tempopb::QueryRangeRequest { query: "{} | quantile_over_time(duration, .5)".to_owned(), ..request };
    let answer = client.query_range(quantiles).await.expect("an answer").into_inner();
    assert!(answer.series.iter().all(|series| series.labels[0].key == "__bucket"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_of_another_store_are_found() {
    let other = Server::start(Config::without_blocks()).await;
    let more = format!(
        "query_frontend: {{trace_by_id: {{external_enabled: true}}}}\nquerier: {{trace_by_id: {{external: {{endpoint: \"{}\", timeout: 30s}}}}}}",
        other.url()
    );
    let server = Server::start(Config { more: more.leak(), ..Config::without_blocks() }).await;
    send(&other, "shop", 1).await;
    send(&server, "cart", 2).await;
    let theirs = server.client().trace(trace(1)).await.expect("found");
    assert_eq!(spans(&theirs).count(), 1);
    assert_eq!(spans(&server.client().trace(trace(2)).await.expect("found")).count(), 1);
    assert!(server.client().trace(trace(3)).await.is_none());
    let asked = "tempo_querier_external_endpoint_request_duration_seconds_count";
    assert_eq!(server.client().metric(asked, &["status_code=\"200\""]).await, 1.0);
    assert_eq!(server.client().metric(asked, &["status_code=\"404\""]).await, 2.0);
}

/// Sends a message to the server for language models.
async fn ask(server: &Server, tenant: Option<&str>, method: &str, params: Value) -> Answer {
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.post(format!("{}/api/mcp", server.url())).header("Content-Type", "application/json").body(message.to_string());
    let request = request.header("Accept", "application/json, text/event-stream");
    let client = tenant.map_or_else(|| server.client(), |tenant| server.client().with_tenant(tenant));
    client.send(request).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn language_models_ask_if_they_may() {
    let config = || Config { multitenancy: true, ..Config::without_blocks() };
    let closed = Server::start(config()).await;
    assert_eq!(ask(&closed, Some("a"), "ping", json!({})).await.status, 404);
    let server = Server::start(Config { more: "query_frontend: {mcp_server: {enabled: true}}", ..config() }).await;
    server.client().with_tenant("a").export(body("shop", vec![span(trace(1), 1, "sell")]), None).await.expect("acknowledged");

    assert_eq!((ask(&server, None, "ping", json!({})).await.status, ask(&server, Some("a"), "ping", json!({})).await.status), (401, 200));
    let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
    let hello = ask(&server, Some("a"), "initialize", hello).await.json();
    assert_eq!(hello["result"]["serverInfo"], json!({"name": "tempo", "version": "0.1.0"}));
    let search = json!({"name": "traceql-search", "arguments": {"query": "{ name = \"sell\" }"}});
    let text = async |tenant: &str| {
        let answer = ask(&server, Some(tenant), "tools/call", search.clone()).await.json();
        answer["result"]["content"][0]["text"].as_str().expect("a text").to_owned()
    };
    assert!(text("a").await.contains(&trace(1).to_short_hex()));
    assert!(!text("b").await.contains(&trace(1).to_short_hex()));
    assert_eq!(server.client().metric("tempo_query_frontend_mcp_calls_total", &["tool=\"traceql-search\""]).await, 2.0);
    let routes = server.client().get("/status/endpoints").await.expect("an answer").text();
    assert!(routes.contains("/api/mcp"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_attributed_to_those_who_send_them() {
    let plain = Server::start(Config::without_blocks()).await;
    assert_eq!(plain.client().get("/usage_metrics").await.expect("an answer").status, 404);
    let config = Config {
        distributor: "  usage: {cost_attribution: {enabled: true}}",
        more: "overrides: {defaults: {cost_attribution: {dimensions: {service.name: service, team: \"\"}}}}",
        ..Config::without_blocks()
    };
    let server = Server::start(config).await;
    send(&server, "shop", 1).await;
    send(&server, "shop", 2).await;
    send(&server, "cart", 3).await;
    let usage = server.client().get("/usage_metrics").await.expect("an answer");
    assert_eq!((usage.status, usage.headers["content-type"].as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let text = usage.text();
    let bytes = |service: &str| {
        let labels = format!("{{service=\"{service}\",team=\"__missing__\",tenant=\"single-tenant\",tracker=\"cost-attribution\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix("tempo_usage_tracker_bytes_received_total")?.strip_prefix(&labels));
        line.unwrap_or_else(|| panic!("{service} in {text}")).parse::<f64>().expect("a number")
    };
    let received = server.client().metric("tempo_distributor_bytes_received_total", &[]).await;
    assert_eq!(bytes("shop") + bytes("cart"), received);
    assert!(bytes("shop") > bytes("cart"));
}
