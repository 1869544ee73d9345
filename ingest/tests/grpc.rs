//! OTLP/gRPC with the generated client, and with hand-made frames where the client is too well-behaved.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message as _;
use storage::wal::Entry;
use tonic::{Code, codec::CompressionEncoding, metadata::MetadataValue};

use crate::harness::{EXPORT, Options, Server, framed, request, snappy_framed, span};

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_accepted_and_the_bytes_are_kept() {
    let server = Server::start(Options::default()).await;
    let sent = request(&[span(1, 1, "a"), span(2, 2, "b")]);
    let plain = server.client().await;
    let gzip = server.client().await.send_compressed(CompressionEncoding::Gzip);
    let zstd = server.client().await.send_compressed(CompressionEncoding::Zstd);
    for mut client in [plain, gzip, zstd] {
        let response = client.export(sent.clone()).await.expect("accepted");
        assert_eq!(response.into_inner(), ExportTraceServiceResponse::default());
    }
    let data = framed(true, &snappy_framed(&sent.encode_to_vec()));
    assert_eq!(server.call(EXPORT, &[("grpc-encoding", "snappy")], data).await.code, 0);
    assert_eq!(server.log.requests(), vec![sent.clone(); 4]);
    assert!(server.log.records.lock().iter().all(|(tenant, entry)| tenant == "single-tenant" && entry.body == sent.encode_to_vec()));

    let size = 4.0 * sent.encoded_len() as f64;
    assert_eq!(server.metric("tempo_receiver_accepted_spans", "grpc"), 8.0);
    assert_eq!(server.metric("tempo_distributor_ingress_bytes_total", "single-tenant"), size);
    assert_eq!(server.metric("tempo_distributor_bytes_received_total", "single-tenant"), size);
    assert_eq!(server.metric("tempo_distributor_spans_received_total", "single-tenant"), 8.0);
    assert_eq!(server.metric("tempo_distributor_push_duration_seconds", ""), 4.0);
    assert_eq!(server.metric("tempo_distributor_traces_per_batch", ""), 4.0);
    assert_eq!(server.metric("tempo_spans_distance_in_future_seconds", "single-tenant"), 8.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_spans_succeed_and_store_nothing() {
    let server = Server::start(Options::default()).await;
    let mut client = server.client().await;
    for empty in [ExportTraceServiceRequest::default(), request(&[])] {
        client.export(empty).await.expect("accepted");
    }
    assert!(server.log.records.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_from_metadata_only_when_asked_for() {
    let server = Server::start(Options { multitenancy: true, ..Options::default() }).await;
    let export = async |tenants: &[&'static str]| {
        let mut call = tonic::Request::new(request(&[span(1, 1, "a")]));
        for tenant in tenants {
            call.metadata_mut().append("x-scope-orgid", MetadataValue::from_static(tenant));
        }
        server.client().await.export(call).await.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
    };
    assert_eq!(export(&["team-a"]).await, Ok(()));
    assert_eq!(export(&["b:x=1|b"]).await, Ok(()));
    assert_eq!(export(&[]).await, Err((Code::Unavailable, "no org id".to_owned())));
    assert_eq!(export(&["a", "b"]).await, Err((Code::Unavailable, "no org id".to_owned())));
    assert_eq!(export(&["a|b"]).await, Err((Code::InvalidArgument, "multiple org IDs present".to_owned())));
    let unsupported = "tenant ID 'a/b' contains unsupported character '/'".to_owned();
    assert_eq!(export(&["a/b"]).await, Err((Code::InvalidArgument, unsupported)));
    let tenants: Vec<_> = server.log.records.lock().iter().map(|record| record.0.clone()).collect();
    assert_eq!(tenants, ["team-a", "b"]);

    let server = Server::start(Options::default()).await;
    let mut call = tonic::Request::new(request(&[span(1, 1, "a")]));
    call.metadata_mut().append("x-scope-orgid", MetadataValue::from_static("team-a"));
    server.client().await.export(call).await.expect("accepted");
    assert_eq!(server.log.records.lock()[0].0, "single-tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_says_that_it_generates_metrics_itself() {
    let server = Server::start(Options::default()).await;
    for value in [None, Some("true"), Some("")] {
        let mut call = tonic::Request::new(request(&[span(1, 1, "a")]));
        if let Some(value) = value {
            call.metadata_mut().append("no-generate-metrics", MetadataValue::from_static(value));
        }
        server.client().await.export(call).await.expect("accepted");
    }
    let skips = |records: &[(String, Entry)]| records.iter().map(|record| record.1.skip_metrics_generation).collect::<Vec<_>>();
    assert_eq!(skips(&server.log.records.lock()), [false, true, true], "whatever it says");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_checked_and_one_bad_span_refuses_the_request() {
    let server = Server::start(Options::default()).await;
    let mut client = server.client().await;
    let mut export = async |change: fn(&mut opentelemetry_proto::tonic::trace::v1::Span)| {
        let mut spans: Vec<_> = (0..100).map(|n| span(1, n, "a")).collect();
        change(&mut spans[50]);
        let status = client.export(request(&spans)).await.expect_err("refused");
        (status.code(), status.message().to_owned())
    };
    let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());
    assert_eq!(export(|s| s.span_id = vec![0; 8]).await, invalid("span ids must be 64 bit and not all zero, received 0 bits"));
    assert_eq!(export(|s| s.trace_id = vec![]).await, invalid("trace ids must be 128 bit, received 0 bits"));
    assert_eq!(export(|s| s.trace_id = vec![0; 16]).await, invalid("trace ids must be 128 bit, received 0 bits"));
    for (code, message) in [export(|s| s.span_id = vec![1; 7]).await, export(|s| s.trace_id = vec![1; 17]).await] {
        assert_eq!(code, Code::Internal, "a decode error: {message}");
        assert!(message.starts_with("error unmarshalling request: "), "{message}");
    }
    assert!(server.log.records.lock().is_empty());
    assert_eq!(server.metric("tempo_discarded_spans_total", "invalid_span_id"), 100.0);
    assert_eq!(server.metric("tempo_discarded_spans_total", "invalid_trace_id"), 200.0);
    assert_eq!(server.metric("tempo_receiver_refused_spans", "grpc"), 500.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_held_to() {
    let server = Server::start(Options::default()).await;
    let message = request(&[span(1, 1, "a")]).encode_to_vec();
    let check = async |path: &str, headers: &[(&str, &str)], data, code: i32, text: &str| {
        let answer = server.call(path, headers, data).await;
        assert_eq!((answer.http, answer.code), (200, code), "{answer:?}");
        assert!(answer.message.contains(text), "{answer:?}");
    };
    check("/a.B/C", &[], framed(false, &message), 12, "unknown method /a.B/C").await;
    check(EXPORT, &[("grpc-encoding", "br")], framed(true, &message), 12, "br").await;
    check(EXPORT, &[], framed(false, &vec![0; (4 << 20) + 1]), 8, "received message larger than max").await;
    check(EXPORT, &[], framed(false, &message).slice(..20), 13, "message ends before its length").await;
    check(EXPORT, &[], framed(false, &message).slice(..3), 13, "no message").await;
    let two = [framed(false, &message), framed(false, &message)].concat();
    check(EXPORT, &[], two.into(), 13, "more than one message").await;
    check(EXPORT, &[("grpc-encoding", "gzip")], framed(true, &message), 13, "failed to decompress gzip").await;
    check(EXPORT, &[], [&[7], &framed(false, &message)[1..]].concat().into(), 13, "invalid compression flag").await;
    assert!(server.log.records.lock().is_empty());
    let flag_says_plain = server.call(EXPORT, &[("grpc-encoding", "gzip")], framed(false, &message)).await;
    assert_eq!(flag_says_plain.code, 0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusing_log_is_unavailable_and_leaves_no_trace() {
    let server = Server::start(Options::default()).await;
    let mut client = server.client().await;
    *server.log.failure.lock() = Some(storage::wal::AppendError::Full("100 bytes left".into()));
    let status = client.export(request(&[span(1, 1, "a")])).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "write-ahead log is full: 100 bytes left");
    assert_eq!(server.metric("rubato_ingest_refused_requests_total", "wal_full"), 1.0);
    *server.log.failure.lock() = None;
    client.export(request(&[span(1, 1, "a")])).await.expect("recovered");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_requests_in_flight_finish() {
    let mut server = Server::start(Options::default()).await;
    *server.log.delay.lock() = Duration::from_millis(400);
    let mut client = server.client().await;
    let in_flight = tokio::spawn(async move { client.export(request(&[span(1, 1, "a")])).await });
    let body = request(&[span(1, 2, "b")]).encode_to_vec();
    let (answer, drained) = tokio::join!(server_post(server.http, body), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.stop().await
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(drained.iter().all(|drained| drained.aborted_connections == 0));
    in_flight.await.expect("task").expect("answered");
    assert_eq!(server.log.records.lock().len(), 2);
    assert!(tokio::net::TcpStream::connect(server.grpc).await.is_err(), "the listener is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_at_its_deadline() {
    let mut options = Options::default();
    options.server.drain_timeout = Duration::from_millis(100);
    let mut server = Server::start(options).await;
    *server.log.delay.lock() = Duration::from_secs(60);
    let mut client = server.client().await;
    let in_flight = tokio::spawn(async move { client.export(request(&[span(1, 1, "a")])).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let drained = server.stop().await;
    assert_eq!(drained[0].aborted_connections, 1);
    assert!(in_flight.await.expect("task").is_err());
}

async fn server_post(address: std::net::SocketAddr, body: Vec<u8>) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let head =
        format!("POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}
