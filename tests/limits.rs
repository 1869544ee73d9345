//! What is over a limit is refused with a clear text and a hint when to come back, and counted.

use prost::Message as _;
use storage::id::TraceId;
use tonic::Code;

use crate::harness::{
    eventually,
    otlp::{body, span, string},
    server::{Config, Server},
};

/// About 15 kB a request; the bucket holds two of them and a bit.
const RATE: Config = Config {
    server: "",
    receiver: "",
    multitenancy: false,
    trace_idle_period: "10m",
    max_block_duration: "1h",
    backend: String::new(),
    distributor: "  retry_after_on_resource_exhausted: 2s",
    ingester: "",
    storage: "",
    bucket: None,
    more: "\
overrides:
  defaults:
    ingestion:
      rate_limit_bytes: 5000
      burst_size_bytes: 40000",
};

fn fifteen_kilobytes(trace: u8) -> bytes::Bytes {
    let mut span = span(TraceId([trace; 16]), 1, "large");
    span.attributes = (0..10).map(|number| string(&format!("key-{number}"), &"x".repeat(1500))).collect();
    body("limits", vec![span])
}

/// `google.rpc.Status`, as far as it is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// The `RetryInfo` of two seconds: field 1, a message of field 1, the number 2.
const TWO_SECONDS: [u8; 4] = [0x0a, 0x02, 0x08, 0x02];

fn has_hint(status: &RpcStatus) -> bool {
    status.details.iter().any(|detail| detail.type_url.ends_with("google.rpc.RetryInfo") && detail.value == TWO_SECONDS)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_above_the_rate_is_429_with_a_hint_and_passes_later() {
    let server = Server::start(RATE).await;
    let client = server.client();
    let mut refused = None;
    for trace in 1..=50 {
        let answer = client.post_protobuf(fifteen_kilobytes(trace)).await.expect("an answer");
        if answer.status != 200 {
            refused = Some((trace, answer));
            break;
        }
    }
    let (trace, answer) = refused.expect("the bucket empties");
    assert!(trace >= 3, "two requests fit into the bucket");
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.headers.get("retry-after").map(String::as_str), Some("2"));
    let status = RpcStatus::decode(answer.body.clone()).expect("a google.rpc.Status");
    assert_eq!(status.code, Code::ResourceExhausted as i32);
    assert!(
        status
            .message
            .starts_with("RATE_LIMITED: ingestion rate limit (local: 5000 bytes/s, global: 0 bytes/s, burst: 40000 bytes) exceeded"),
        "{status:?}"
    );
    assert!(has_hint(&status), "{status:?}");

    let json =
        r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":""#
            .to_owned()
            + &"x".repeat(39_000)
            + r#""}]}]}]}"#;
    let answer = client.post(&[("Content-Type", "application/json")], json).await.expect("an answer");
    assert_eq!((answer.status, answer.json()["code"].as_i64()), (429, Some(8)), "{}", answer.text());

    let discarded = client.metric("tempo_discarded_spans_total", &["reason=\"rate_limited\"", "tenant=\"single-tenant\""]).await;
    assert!(discarded >= 2.0, "{discarded}");
    eventually("the bucket fills again", || async {
        let answer = client.post_protobuf(fifteen_kilobytes(trace)).await.expect("an answer");
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_above_the_rate_is_resource_exhausted_with_a_hint() {
    let server = Server::start(RATE).await;
    let client = server.client();
    let mut refused = None;
    for trace in 1..=50 {
        if let Err(status) = client.export(fifteen_kilobytes(trace), None).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("the bucket empties");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(has_hint(&RpcStatus::decode(status.details()).expect("details")), "{status:?}");

    let too_large = body("limits", vec![span(TraceId([1; 16]), 1, &"x".repeat(50_000))]);
    let status = client.export(too_large, None).await.expect_err("refused");
    assert!(status.message().starts_with("RATE_LIMITED: batch size ("), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_above_the_limit_of_a_tenant_are_dropped_and_counted() {
    let more = "\
overrides:
  defaults:
    ingestion:
      max_traces_per_user: 5";
    let server = Server::start(Config { more, ..Config::without_blocks() }).await;
    let client = server.client();
    for trace in 1..=12 {
        let answer =
            client.post_protobuf(body("limits", vec![span(TraceId([trace; 16]), 1, "one"), span(TraceId([trace; 16]), 2, "two")])).await;
        assert_eq!(answer.expect("an answer").status, 200, "Tempo acknowledges what it drops by this limit");
    }
    let dropped = eventually("dropped spans are counted", || async {
        let dropped = client.metric("tempo_discarded_spans_total", &["reason=\"live_traces_exceeded\""]).await;
        (dropped >= 14.0).then_some(dropped)
    })
    .await;
    assert!((dropped - 14.0).abs() < f64::EPSILON, "{dropped}");
    for trace in 1..=12 {
        assert_eq!(client.trace(TraceId([trace; 16])).await.is_some(), trace <= 5, "trace {trace}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_attributes_are_cut_and_counted() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let id = TraceId([4; 16]);
    let mut long = span(id, 1, "long");
    // 2047 bytes, then a character of two: the cut must not split it.
    long.attributes = vec![string("short", "s"), string("long", &("x".repeat(2047) + "ü and more"))];
    assert_eq!(client.post_protobuf(body("limits", vec![long])).await.expect("an answer").status, 200);
    let trace = eventually("the trace", || client.trace(id)).await;
    let span = crate::harness::client::spans(&trace).next().expect("one span").clone();
    let lengths: Vec<usize> = span
        .attributes
        .iter()
        .map(|attribute| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(value)) => value.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [1, 2047]);
    assert!((client.metric("tempo_distributor_attributes_truncated_total", &[]).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_refuses_what_is_not_otlp() {
    let server = Server::start(Config::without_blocks()).await;
    let client = server.client();
    let message = body("limits", vec![span(TraceId([2; 16]), 1, "x")]);
    let text = client.post(&[("Content-Type", "text/plain")], message.clone()).await.expect("an answer");
    assert_eq!(text.status, 415);
    assert!(text.text().contains("415 unsupported media type, supported: [application/json, application/x-protobuf]"), "{}", text.text());
    let strange =
        client.post(&[("Content-Type", "application/x-protobuf"), ("Content-Encoding", "br")], message.clone()).await.expect("an answer");
    assert_eq!(strange.status, 400, "{}", strange.text());
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let put = client.send(http.put(server.otlp_http_url()).body(message.to_vec())).await.expect("an answer");
    assert_eq!(put.status, 405);
    assert!(put.text().contains("405 method not allowed, supported: [POST]"), "{}", put.text());

    for (encoding, compressed) in [("gzip", gzip(&message)), ("zstd", zstd::bulk::compress(&message, 1).expect("zstd"))] {
        let answer = client
            .post(&[("Content-Type", "application/x-protobuf"), ("Content-Encoding", encoding)], compressed)
            .await
            .expect("an answer");
        assert_eq!(answer.status, 200, "{encoding}: {}", answer.text());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}
