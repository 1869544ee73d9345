//! TraceQL metrics of the real process: every span that was acknowledged is counted, and once, while traces become blocks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::Value;
use storage::id::TraceId;

use crate::harness::{
    client::{Client, last_hour},
    eventually,
    otlp::{body, span},
    server::{Config, Server},
};

const NAMES: [&str; 4] = ["browse", "checkout", "pay", "search"];
/// Traces that are sent one after the other, each of four spans.
const TRACES: u64 = 400;

async fn instant(client: &Client, query: &str) -> Value {
    let (start, end) = last_hour();
    client.query("/api/metrics/query", &[("q", query), ("start", &start), ("end", &end)]).await.json()
}

/// Values of series by the value of their only label.
fn values(answer: &Value) -> Vec<(String, f64)> {
    let series = answer["series"].as_array().cloned().unwrap_or_default();
    let value = |series: &Value| {
        (series["labels"][0]["value"]["stringValue"].as_str().unwrap_or_default().to_owned(), series["value"].as_f64().unwrap_or(0.0))
    };
    series.iter().map(value).collect()
}

fn total(answer: &Value) -> u64 {
    values(answer).iter().map(|(_, value)| *value as u64).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_span_is_counted_once_while_traces_become_blocks() {
    let server = Server::start(Config::default()).await;
    let (sent, acknowledged, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (client, sent, acknowledged, done) = (server.client(), Arc::clone(&sent), Arc::clone(&acknowledged), Arc::clone(&done));
        tokio::spawn(async move {
            for trace in 1..=TRACES {
                let id = TraceId(u128::from(trace).to_be_bytes());
                let spans = (1..).zip(NAMES).map(|(number, name)| span(id, number, name)).collect();
                sent.fetch_add(NAMES.len() as u64, Ordering::SeqCst);
                let answer = client.post_protobuf(body("shop", spans)).await.expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                acknowledged.fetch_add(NAMES.len() as u64, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        })
    };
    let client = server.client();
    let count = async || {
        let before = acknowledged.load(Ordering::SeqCst);
        let answer = instant(&client, "{} | count_over_time() by (name)").await;
        let after = sent.load(Ordering::SeqCst);
        let found = total(&answer);
        assert!((before..=after).contains(&found), "{found} spans, of {before} that were acknowledged before and {after} that were sent");
        answer
    };
    let mut questions = 0;
    while !done.load(Ordering::SeqCst) {
        count().await;
        questions += 1;
    }
    writer.await.expect("the writer does not panic");
    assert!(questions > 3, "asked {questions} times while spans came in");

    // And until all of it is in blocks.
    let (count, server, spans) = (&count, &server, (4 * TRACES).to_string());
    let spans = &spans;
    let all = eventually("all spans to be counted from blocks", || async move {
        let answer = count().await;
        let from_blocks =
            server.traces_in_blocks("single-tenant") == TRACES && answer["metrics"]["inspectedSpans"].as_str() == Some(spans.as_str());
        (from_blocks && answer["metrics"]["inspectedBytes"].is_string()).then_some(answer)
    })
    .await;
    let each: Vec<(String, f64)> = NAMES.iter().map(|name| ((*name).to_owned(), TRACES as f64)).collect();
    assert_eq!(values(&all), each);

    let rate = instant(&client, "{} | rate()").await;
    let expected = (4 * TRACES) as f64 / 3660.0;
    assert!((values(&rate)[0].1 - expected).abs() < 1e-9, "{rate}");
    let slow = instant(&client, "{ name = \"pay\" } | quantile_over_time(duration, .5)").await;
    // Spans of a millisecond: half of the logarithm between the bounds of their bucket, 2^19 and 2^20 ns.
    let middle = 2f64.powf(19.5) / 1e9;
    assert!((slow["series"][0]["value"].as_f64().expect("a value") - middle).abs() < 1e-9, "{slow}");
}

#[tokio::test]
async fn a_range_gives_grafana_what_it_asks_for() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let spans = (1..).zip(NAMES).map(|(number, name)| span(TraceId([7; 16]), number, name)).collect();
    assert_eq!(client.post_protobuf(body("shop", spans)).await.expect("an answer").status, 200);
    let (start, end) = last_hour();
    let ask = async |query: &str, step: &str| {
        client.query("/api/metrics/query_range", &[("q", query), ("start", &start), ("end", &end), ("step", step)]).await
    };
    let rate = ask("{nestedSetParent<0} | rate() by(resource.service.name) with(sample=true)", "60s").await.json();
    assert_eq!(rate["series"][0]["labels"][0]["key"], "resource.service.name");
    let samples = rate["series"][0]["samples"].as_array().expect("samples");
    assert_eq!(samples.iter().filter_map(|sample| sample["value"].as_f64()).sum::<f64>(), 4.0 / 60.0);
    assert_eq!(rate["series"][0]["exemplars"][0]["labels"].as_array().expect("labels").len(), 3);
    let compare = ask("{true} | compare({name = \"pay\"}, 10)", "3660s").await.json();
    let meta = |series: &&Value, meta: &str| series["labels"][0]["value"]["stringValue"] == meta && series["labels"][1]["key"] == "name";
    let series = compare["series"].as_array().expect("series");
    assert_eq!(series.iter().filter(|series| meta(series, "baseline")).count(), 3);
    assert_eq!(series.iter().filter(|series| meta(series, "selection")).count(), 1);
    let heat = ask("{} | histogram_over_time(duration)", "60s").await.json();
    assert_eq!(heat["series"][0]["labels"][0], serde_json::json!({"key": "__bucket", "value": {"doubleValue": 0.001048576}}));
    let refused = ask("{} | rate()", "1ms").await;
    assert_eq!(refused.text(), "step of 1ms is too small, minimum step for given range is 366ms");
}
