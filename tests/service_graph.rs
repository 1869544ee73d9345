//! The service graph of what was sent: live, as a stream, as series, and across `kill -9`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use storage::{
    id::TraceId,
    synthetic::{Connection, Requests, Settings, Totals},
};

use crate::harness::{
    client::Client,
    eventually, now_ns,
    otlp::{body, span},
    server::{Config, Server},
};

/// Everything that is late counts, too: machines that run tests are slow.
const GENERATOR: &str = "
metrics_generator:
  metrics_ingestion_time_range_slack: 1h
  processor:
    service_graphs:
      wait: 2m
overrides:
  defaults:
    metrics_generator:
      processors: [service-graphs]
";

fn config() -> Config {
    Config { more: GENERATOR, ..Config::default() }
}

/// Requests and failures by client, server and connection type. All databases of a kind are one: the truth knows no addresses.
pub(crate) type Edges = BTreeMap<(String, String, String), (u64, u64)>;

pub(crate) fn name_of(server: &str, connection: &str) -> String {
    let kind = server.split('-').next().unwrap_or_default();
    if connection == "database" { kind.to_owned() } else { server.to_owned() }
}

pub(crate) fn expected(totals: &Totals) -> Edges {
    let edges = totals.edges.iter().map(|(edge, totals)| {
        let connection = match edge.connection {
            Connection::Request => "",
            Connection::Messaging => "messaging_system",
            Connection::Database => "database",
        };
        ((edge.client.to_owned(), name_of(edge.server, connection), connection.to_owned()), (totals.requests, totals.failed))
    });
    edges.collect()
}

/// The edges between those that are known: calls from outside are no edges in the truth.
fn edges<'a>(graph: impl IntoIterator<Item = &'a Value>) -> Edges {
    let mut edges = Edges::new();
    for edge in graph {
        let text = |name: &str| edge[name].as_str().expect("a string").to_owned();
        let count = |name: &str| edge[name].as_f64().expect("a number") as u64;
        let connection = text("connectionType");
        if connection != "virtual_node" {
            let sums = edges.entry((text("client"), name_of(&text("server"), &connection), connection)).or_default();
            sums.0 += count("requests");
            sums.1 += count("failed");
        }
    }
    edges
}

/// Follows a stream of events and keeps the graph that they amount to.
struct Follower {
    response: reqwest::Response,
    text: String,
    edges: BTreeMap<(String, String, String), Value>,
    nodes: BTreeSet<String>,
}

impl Follower {
    async fn new(server: &Server) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let response = client.get(format!("{}/api/service-graph/stream?window=1h", server.url())).send().await.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new(), edges: BTreeMap::new(), nodes: BTreeSet::new() }
    }

    /// Takes in the next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<String> {
        while !self.text.contains("\n\n") {
            let bytes = self.response.chunk().await.ok()??;
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        let (event, rest) = self.text.split_once("\n\n")?;
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        let (kind, data) = (field("event:"), field("data:"));
        self.text = rest.to_owned();
        if data.is_empty() {
            return Some("keep-alive".to_owned());
        }
        let data: Value = serde_json::from_str(&data).expect("JSON");
        if kind == "graph" {
            self.edges.clear();
            self.nodes.clear();
        }
        let list = |name: &str| data[name].as_array().cloned().unwrap_or_default();
        let key =
            |edge: &Value| ["client", "server", "connectionType"].map(|name| edge[name].as_str().expect("a string").to_owned()).into();
        list("removedEdges").iter().for_each(|edge| _ = self.edges.remove(&key(edge)));
        list("removedNodes").iter().for_each(|node| _ = self.nodes.remove(node.as_str().expect("a name")));
        self.edges.extend(list("edges").into_iter().map(|edge| (key(&edge), edge)));
        self.nodes.extend(list("nodes").iter().map(|node| node["name"].as_str().expect("a name").to_owned()));
        Some(kind)
    }
}

async fn graph(client: &Client) -> Value {
    let answer = client.get("/api/service-graph?window=1h").await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_graph_is_the_graph_of_what_was_sent() {
    let mut server = Server::start(config()).await;
    let client = server.client();
    let mut follower = Follower::new(&server).await;
    assert_eq!(follower.next().await.as_deref(), Some("graph"), "the whole graph comes first");

    let settings = Settings { seed: 5, base_time_ns: now_ns(), trace_interval_ns: 1_000, spans_per_request: 200, ..Settings::default() };
    let (mut totals, mut traces) = (Totals::default(), BTreeSet::new());
    for request in Requests::new(settings, Some(300)) {
        let answer = client.post_protobuf(request.body.clone()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        for part in request.parts {
            if traces.insert(part.trace.trace_id) {
                totals.add_trace(&part.trace);
            }
        }
    }
    let expected = expected(&totals);
    assert!(expected.len() > 20, "{expected:?}");
    let requests = |edges: &Edges| edges.values().map(|(requests, _)| requests).sum::<u64>();
    let all = requests(&expected);
    let live = eventually("all edges", || async {
        Some(graph(&client).await).filter(|graph| requests(&edges(graph["edges"].as_array().expect("edges"))) >= all)
    })
    .await;
    assert_eq!(edges(live["edges"].as_array().expect("edges")), expected);
    let kind =
        |name: &str| live["nodes"].as_array().expect("nodes").iter().find(|node| node["name"] == name).map(|node| node["type"].clone());
    assert_eq!(kind("user"), Some(Value::from("virtual")));
    let services: BTreeSet<&str> = totals.edges.keys().map(|edge| edge.client).collect();
    assert!(services.iter().all(|service| kind(service) == Some(Value::from("service"))), "{live}");

    while requests(&edges(follower.edges.values())) < all {
        assert!(follower.next().await.is_some(), "the stream goes on");
    }
    assert_eq!(edges(follower.edges.values()), expected);
    let nodes: BTreeSet<String> =
        live["nodes"].as_array().expect("nodes").iter().map(|node| node["name"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(follower.nodes, nodes);
    assert_eq!(client.metric("rubato_service_graph_streams", &[]).await, 1.0);

    assert!(server.terminate().await.success(), "an open stream does not keep the process");
    while follower.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn halves_find_each_other_across_kill_9() {
    let mut server = Server::start(config()).await;
    let trace = |n: u8| TraceId([n + 1; 16]);
    let counted = async |client: &Client| {
        let text = client.get("/metrics/generator/single-tenant").await.expect("an answer").text();
        let of_edge = |line: &&str| line.contains(r#"client="cart""#) && line.contains(r#"server="shipping""#);
        let lines = text.lines().filter(|line| line.starts_with("traces_service_graph_request_total{")).filter(of_edge);
        lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum::<f64>()
    };
    let send = async |server: &Server, range: std::ops::Range<u8>, kind: i32| {
        let spans = range.map(|n| {
            let (id, parent) = if kind == 3 { (1, 9) } else { (2, 1u64) };
            let mut span = span(trace(n), id, "call");
            (span.kind, span.parent_span_id) = (kind, parent.to_be_bytes().to_vec());
            span
        });
        let service = if kind == 3 { "cart" } else { "shipping" };
        let answer = server.client().post_protobuf(body(service, spans.collect())).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    };

    send(&server, 0..100, 3).await;
    send(&server, 0..40, 2).await;
    // The commit that shows forty edges holds sixty halves.
    let client = server.client();
    eventually("forty edges", || async { (counted(&client).await == 40.0).then_some(()) }).await;
    server.kill();
    server.start_again().await;
    send(&server, 40..70, 2).await;
    // This time it is killed whenever that happens to be.
    server.kill();
    server.start_again().await;
    send(&server, 70..100, 2).await;
    let client = server.client();
    eventually("a hundred edges", || async { (counted(&client).await >= 100.0).then_some(()) }).await;
    // A copy of everything changes nothing; the marker is counted after it.
    send(&server, 0..100, 2).await;
    send(&server, 100..101, 3).await;
    send(&server, 100..101, 2).await;
    eventually("one more edge", || async { (counted(&client).await >= 101.0).then_some(()) }).await;
    assert_eq!(counted(&client).await, 101.0);
}
