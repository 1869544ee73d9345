//! Zipkin's receiver: every encoding, and the answers that its clients know.

use std::{sync::Arc, time::Duration};

use ingest::Limits;
use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use storage::wal::AppendError;

use crate::harness::{NOW, Options, Server, gzip};

const V2: &str = r#"[{"traceId":"463ac35c9f6413ad48485a3953bb6124","id":"a2fb4a1d1a96d312","kind":"CLIENT","name":"get /","timestamp":1472470996199000,"duration":207000,
    "localEndpoint":{"serviceName":"frontend","ipv4":"127.0.0.1"},"remoteEndpoint":{"ipv4":"192.168.99.101","port":9000},
    "annotations":[{"timestamp":1472470996238000,"value":"foo"}],"tags":{"http.path":"/api","clnt/finagle.version":"6.45.0"}}]"#;

fn spans(server: &Server) -> Vec<Span> {
    let resources = server.log.requests().into_iter().flat_map(|request| request.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn v2_json_is_taken_on_any_path() {
    let server = Server::start(Options::default()).await;
    for path in ["/api/v2/spans", "/", "/anything?x=1"] {
        let answer = server.post_to(server.zipkin, path, "application/json", V2.as_bytes()).await;
        assert_eq!((answer.status, answer.text().as_str()), (202, ""), "{path}");
        assert!(answer.head.contains("connection: close"), "{}", answer.head);
    }
    let answer = server.post_to(server.zipkin, "/api/v2/spans", "application/json\r\ncontent-encoding: gzip", &gzip(V2.as_bytes())).await;
    assert_eq!(answer.status, 202);
    let spans = spans(&server);
    assert_eq!(spans.len(), 4);
    assert!(spans.iter().all(|span| *span == spans[0]));
    let span = &spans[0];
    assert_eq!(span.trace_id, 0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124_u128.to_be_bytes());
    assert_eq!(
        (span.name.as_str(), span.start_time_unix_nano, span.end_time_unix_nano),
        ("get /", 1_472_470_996_199_000_000, 1_472_470_996_406_000_000)
    );
    let keys: Vec<_> = span.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(keys, ["clnt/finagle.version", "http.path", "net.host.ip", "net.peer.ip", "net.peer.port"]);
    assert_eq!(server.metric("tempo_receiver_accepted_spans", "http_v2_json"), 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_and_protobuf_are_told_by_path_and_type() {
    let server = Server::start(Options::default()).await;
    let v1 = r#"[{"traceId":"48485a3953bb6124","id":"48485a3953bb6124","name":"v1","annotations":[{"timestamp":1,"value":"sr","endpoint":{"serviceName":"s"}}]}]"#;
    let answer = server.post_to(server.zipkin, "/api/v1/spans", "application/json", v1.as_bytes()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(spans(&server)[0].start_time_unix_nano, NOW.as_nanos() as u64, "a span without a start begins now");
    // list of one struct: {1: 5, 4: 6, 3: "t", 10: 1000}
    let mut thrift = vec![12, 0, 0, 0, 1, 10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 10, 0, 4, 0, 0, 0, 0, 0, 0, 0, 6, 11, 0, 3, 0, 0, 0, 1, b't'];
    thrift.extend_from_slice(&[10, 0, 10, 0, 0, 0, 0, 0, 0, 3, 0xe8, 0]);
    let answer = server.post_to(server.zipkin, "/api/v1/spans", "application/x-thrift", &thrift).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    // spans(1): {trace_id(1), id(3), name(5): "p", timestamp(6)}
    let mut span = [&[0x0a, 16][..], &[7; 16], &[0x1a, 8], &[8; 8], &[0x2a, 1, b'p', 0x31], &5u64.to_le_bytes()].concat();
    span.splice(0..0, [0x0a, span.len() as u8]);
    let answer = server.post_to(server.zipkin, "/api/v2/spans", "application/x-protobuf", &span).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(spans(&server).iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["v1", "t", "p"]);
    assert_eq!(spans(&server).iter().map(|span| span.span_id[7]).collect::<Vec<_>>(), [0x24, 6, 8]);
    for transport in ["http_v1_json", "http_v1_thrift", "http_v2_proto"] {
        assert_eq!(server.metric("tempo_receiver_accepted_spans", transport), 1.0, "{transport}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_those_of_the_reference() {
    let server = Server::start(Options::default()).await;
    for (path, content_type, body, error) in [
        ("/api/v2/spans", "application/json", &b"[{"[..], "EOF while parsing an object at line 1 column 2"),
        ("/api/v2/spans", "application/json", br#"[{"traceId":"1","id":"0"}]"#, "span 0: id: valid span id required"),
        ("/api/v1/spans", "application/x-thrift", &[12, 0, 0], "failed to fill whole buffer"),
    ] {
        let answer = server.post_to(server.zipkin, path, content_type, body).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(error), "{}", answer.text());
    }
    assert_eq!(server.metric("rubato_ingest_refused_requests_total", "malformed"), 3.0);
    *server.log.failure.lock() = Some(AppendError::Full("100 bytes left".to_owned()));
    let answer = server.post_to(server.zipkin, "/api/v2/spans", "application/json", V2.as_bytes()).await;
    assert_eq!((answer.status, answer.text().as_str()), (500, "\"Internal Server Error\""));
    *server.log.failure.lock() = None;
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_rates_hold_here_too() {
    let limits = Limits { rate_limit_bytes: 1, burst_size_bytes: 1, ..Limits::default() };
    let server = Server::start(Options { multitenancy: true, limits, ..Options::default() }).await;
    let answer = server.post_to(server.zipkin, "/", "application/json", V2.as_bytes()).await;
    assert_eq!((answer.status, answer.text().as_str()), (500, "no org id"));
    let answer = server.post_to(server.zipkin, "/", "application/json\r\nX-Scope-OrgID: a", V2.as_bytes()).await;
    assert_eq!((answer.status, answer.text().as_str()), (500, "\"Internal Server Error\""));
    assert_eq!(server.metric("tempo_discarded_spans_total", "rate_limited"), 1.0);
    server.overrides.store(ingest::LimitsTable { defaults: Arc::new(Limits::default()), ..ingest::LimitsTable::default() });
    server.clock.advance(Duration::from_secs(1));
    let answer = server.post_to(server.zipkin, "/", "application/json\r\nX-Scope-OrgID: a", V2.as_bytes()).await;
    assert_eq!(answer.status, 202);
    assert_eq!(server.log.records.lock()[0].0, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types() {
    let server = Server::start(Options::default()).await;
    let json = r#"[{"traceId":"0000000000000001","id":"0000000000000002","timestamp":1,"binaryAnnotations":[{"key":"n","value":5},{"key":"t","value":"x"},{"key":"b","value":true}]}]"#;
    assert_eq!(server.post_to(server.zipkin, "/api/v1/spans", "application/json", json.as_bytes()).await.status, 202);
    let values: Vec<_> = spans(&server)[0].attributes.iter().filter_map(|kv| kv.value.clone()?.value).collect();
    assert_eq!(values, [Value::IntValue(5), Value::StringValue("x".to_owned()), Value::BoolValue(true)]);
}
