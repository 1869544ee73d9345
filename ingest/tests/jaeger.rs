//! Jaeger's receivers: the same batch over every transport, and the answers that its clients know.

use std::{net::SocketAddr, time::Duration};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use storage::wal::AppendError;
use thrift::{
    protocol::{
        TBinaryOutputProtocol, TCompactOutputProtocol, TFieldIdentifier, TListIdentifier, TMessageIdentifier, TMessageType,
        TOutputProtocol, TStructIdentifier, TType,
    },
    transport::TBufferChannel,
};
use tokio::net::UdpSocket;

use crate::harness::{Options, Server, framed, gzip};

const POST_SPANS: &str = "/jaeger.api_v2.CollectorService/PostSpans";
const THRIFT: &str = "application/x-thrift";

fn spans(server: &Server) -> Vec<Span> {
    let resources = server.log.requests().into_iter().flat_map(|request| request.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

fn structure(out: &mut dyn TOutputProtocol, fields: &mut dyn FnMut(&mut dyn TOutputProtocol) -> thrift::Result<()>) -> thrift::Result<()> {
    out.write_struct_begin(&TStructIdentifier::new(""))?;
    fields(out)?;
    out.write_field_stop()?;
    out.write_struct_end()
}

fn field(out: &mut dyn TOutputProtocol, id: i16, kind: TType) -> thrift::Result<()> {
    out.write_field_begin(&TFieldIdentifier::new("", kind, id))
}

fn long(out: &mut dyn TOutputProtocol, id: i16, value: i64) -> thrift::Result<()> {
    field(out, id, TType::I64)?;
    out.write_i64(value)?;
    out.write_field_end()
}

fn string(out: &mut dyn TOutputProtocol, id: i16, value: &str) -> thrift::Result<()> {
    field(out, id, TType::String)?;
    out.write_string(value)?;
    out.write_field_end()
}

fn tag(out: &mut dyn TOutputProtocol, key: &str, value: &str) -> thrift::Result<()> {
    structure(out, &mut |out| {
        string(out, 1, key)?;
        field(out, 2, TType::I32)?;
        out.write_i32(0)?;
        out.write_field_end()?;
        string(out, 3, value)
    })
}

/// A batch of one span of the service `shop`.
fn batch(out: &mut dyn TOutputProtocol) -> thrift::Result<()> {
    structure(out, &mut |out| {
        field(out, 1, TType::Struct)?;
        structure(out, &mut |out| string(out, 1, "shop"))?;
        out.write_field_end()?;
        field(out, 2, TType::List)?;
        out.write_list_begin(&TListIdentifier::new(TType::Struct, 1))?;
        structure(out, &mut |out| {
            long(out, 1, 0x0203)?;
            long(out, 2, 0x0100)?;
            long(out, 3, 0x0405)?;
            long(out, 4, 0x0607)?;
            string(out, 5, "buy")?;
            field(out, 7, TType::I32)?;
            out.write_i32(1)?;
            out.write_field_end()?;
            long(out, 8, 1_000)?;
            long(out, 9, 7)?;
            field(out, 10, TType::List)?;
            out.write_list_begin(&TListIdentifier::new(TType::Struct, 2))?;
            tag(out, "span.kind", "server")?;
            tag(out, "http.status_code", "500")?;
            out.write_list_end()?;
            out.write_field_end()
        })?;
        out.write_list_end()?;
        out.write_field_end()
    })
}

fn written(compact: bool, write: &mut dyn FnMut(&mut dyn TOutputProtocol) -> thrift::Result<()>) -> Vec<u8> {
    let mut channel = TBufferChannel::with_capacity(0, 64 << 10);
    if compact {
        write(&mut TCompactOutputProtocol::new(&mut channel)).expect("written");
    } else {
        write(&mut TBinaryOutputProtocol::new(&mut channel, true)).expect("written");
    }
    channel.write_bytes()
}

fn datagram(compact: bool, call: &str) -> Vec<u8> {
    written(compact, &mut |out| {
        out.write_message_begin(&TMessageIdentifier::new(call, TMessageType::OneWay, 1))?;
        structure(out, &mut |out| {
            field(out, 1, TType::Struct)?;
            batch(out)?;
            out.write_field_end()
        })?;
        out.write_message_end()
    })
}

async fn send(address: SocketAddr, datagram: &[u8]) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.send_to(datagram, address).await.expect("sent");
}

/// Datagrams have no answer: waits until `done`.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

fn assert_is_the_span(span: &Span) {
    assert_eq!(span.trace_id, [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3]);
    assert_eq!((&span.span_id[6..], &span.parent_span_id[6..]), (&[4, 5][..], &[6, 7][..]));
    assert_eq!((span.name.as_str(), span.kind()), ("buy", SpanKind::Server));
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000, 1_007_000));
    assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
    assert_eq!(span.attributes.iter().map(|attribute| attribute.key.as_str()).collect::<Vec<_>>(), ["http.status_code"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_takes_the_same_batch() {
    let server = Server::start(Options::default()).await;
    let body = written(false, &mut batch);
    for content_type in [THRIFT, "application/vnd.apache.thrift.binary; charset=utf-8"] {
        let answer = server.post_to(server.jaeger_http, "/api/traces?format=jaeger.thrift", content_type, &body).await;
        assert_eq!((answer.status, answer.text().as_str()), (202, ""));
        assert!(answer.head.contains("connection: close"), "{}", answer.head);
    }
    let gzipped = server.post_to(server.jaeger_http, "/api/traces", &format!("{THRIFT}\r\ncontent-encoding: gzip"), &gzip(&body)).await;
    assert_eq!(gzipped.status, 202);
    send(server.jaeger_compact, &datagram(true, "emitBatch")).await;
    send(server.jaeger_binary, &datagram(false, "emitBatch")).await;
    until("both datagrams arrive", || spans(&server).len() == 5).await;
    spans(&server).iter().for_each(assert_is_the_span);
    assert!(server.log.requests().iter().all(|request| request.resource_spans[0] == server.log.requests()[0].resource_spans[0]));
    for (transport, count) in [("collector_http", 3.0), ("udp_thrift_compact", 1.0), ("udp_thrift_binary", 1.0)] {
        assert_eq!(server.metric("tempo_receiver_accepted_spans", transport), count, "{transport}");
    }
}

/// `PostSpansRequest` by hand: one span of trace 09…, span 08…, named `grpc`, one second long.
fn post_spans(trace_id: &[u8]) -> Vec<u8> {
    let message = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8][..], bytes].concat();
    let process = message(1, b"shop");
    let kind = [message(1, b"span.kind"), message(3, b"client")].concat();
    let span =
        [message(1, trace_id), message(2, &[8; 8]), message(3, b"grpc"), message(6, &[8, 5]), message(7, &[8, 1]), message(8, &kind)]
            .concat();
    message(1, &[message(1, &span), message(2, &process)].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_takes_batches_of_protobuf() {
    let server = Server::start(Options::default()).await;
    let answer = server.call_to(server.jaeger_grpc, POST_SPANS, &[], framed(false, &post_spans(&[9; 16]))).await;
    assert_eq!((answer.http, answer.code), (200, 0), "{}", answer.message);
    let span = &spans(&server)[0];
    assert_eq!((span.name.as_str(), span.kind(), span.end_time_unix_nano), ("grpc", SpanKind::Client, 6_000_000_000));
    let answer = server.call_to(server.jaeger_grpc, POST_SPANS, &[], framed(false, &post_spans(&[9; 3]))).await;
    assert_eq!((answer.code, answer.message.as_str()), (3, "span 0: trace_id: 3 bytes where 16 are required"));
    let answer = server.call_to(server.jaeger_grpc, crate::harness::EXPORT, &[], framed(false, &[])).await;
    assert_eq!(answer.code, 12, "OTLP is not taken here");
    let answer = server.call(POST_SPANS, &[], framed(false, &[])).await;
    assert_eq!(answer.code, 12, "and Jaeger not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_refusals_are_those_of_the_reference() {
    let server = Server::start(Options::default()).await;
    let body = written(false, &mut batch);
    for (path, content_type, body, status, text) in [
        ("/api/traces", "application/json", &body[..], 400, "Unsupported content type: application/json"),
        ("/api/traces", "", &body, 400, "Cannot parse content type: mime: no media type"),
        ("/api/traces", THRIFT, &body[..20], 400, "Unable to process request body: Batch."),
        ("/other", THRIFT, &body, 404, "404 page not found"),
    ] {
        let answer = server.post_to(server.jaeger_http, path, content_type, body).await;
        assert_eq!(answer.status, status, "{text}");
        assert!(answer.text().starts_with(text), "{}", answer.text());
    }
    *server.log.failure.lock() = Some(AppendError::Full("100 bytes left".to_owned()));
    let answer = server.post_to(server.jaeger_http, "/api/traces", THRIFT, &body).await;
    assert_eq!(answer.status, 500);
    assert!(answer.text().starts_with("Cannot submit Jaeger batch: "), "{}", answer.text());
    *server.log.failure.lock() = None;
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_datagram_cannot_be_is_counted() {
    let server = Server::start(Options::default()).await;
    send(server.jaeger_compact, b"nonsense").await;
    send(server.jaeger_compact, &datagram(false, "emitBatch")).await;
    send(server.jaeger_binary, &datagram(false, "emitBatch")[..60]).await;
    send(server.jaeger_binary, &datagram(false, "emitZipkinBatch")).await;
    until("four are malformed", || server.refused("malformed") == 4.0).await;
    assert_eq!(spans(&server).len(), 0);
    server.assert_alive().await;

    let server = Server::start(Options { multitenancy: true, ..Options::default() }).await;
    send(server.jaeger_compact, &datagram(true, "emitBatch")).await;
    until("a datagram has no tenant", || server.refused("no_tenant") == 1.0).await;
    assert_eq!(spans(&server).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_receiver_works_off_what_waits() {
    let mut server = Server::start(Options::default()).await;
    *server.log.delay.lock() = Duration::from_millis(50);
    for _ in 0..20 {
        send(server.jaeger_compact, &datagram(true, "emitBatch")).await;
    }
    // Each of ten workers takes one at a time: most of them wait.
    until("the first are taken", || !spans(&server).is_empty()).await;
    let before = spans(&server).len();
    server.stop().await;
    assert!(spans(&server).len() > before, "{before} before, {} after", spans(&server).len());
}
