//! OTLP/HTTP as written on the wire.

use base64::Engine as _;
use prost::Message as _;
use serde_json::json;

use crate::harness::{Options, Server, gzip, lz4, request, snappy_framed, span, zlib};

const PROTOBUF: &str = "application/x-protobuf";

#[tokio::test(flavor = "multi_thread")]
async fn every_encoding_is_accepted() {
    let server = Server::start(Options::default()).await;
    let sent = request(&[span(1, 1, "a"), span(2, 2, "b")]);
    let body = sent.encode_to_vec();
    let encodings = [
        ("", body.clone()),
        ("identity", body.clone()),
        ("gzip", gzip(&body)),
        ("zstd", zstd::encode_all(&body[..], 3).expect("in memory")),
        ("zlib", zlib(&body)),
        ("deflate", zlib(&body)),
        ("snappy", snappy_framed(&body)),
        ("snappy", snap::raw::Encoder::new().compress_vec(&body).expect("small")),
        ("lz4", lz4(&body)),
    ];
    let count = encodings.len();
    for (encoding, body) in encodings {
        let answer = server.post("application/x-protobuf; charset=x", encoding, &body).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{encoding}: {}", answer.text());
        assert!(answer.head.contains("content-type: application/x-protobuf"), "{}", answer.head);
    }
    assert_eq!(server.log.requests(), vec![sent; count]);
    assert_eq!(server.metric("tempo_receiver_accepted_spans", "http"), 2.0 * count as f64);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_becomes_the_same_request() {
    let server = Server::start(Options::default()).await;
    let sent = request(&[span(1, 1, "a")]);
    let json = json!({ "resourceSpans": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": "shop" } }] },
        "scope_spans": [{ "spans": [{
            "traceId": "09090909090909090909090909090901", "spanId": "0100000000000001", "name": "a",
            "startTimeUnixNano": "1800000000000000000", "end_time_unix_nano": 1_800_000_000_000_000_005u64,
            "kind": "SPAN_KIND_UNSPECIFIED", "somethingNew": [[{}]],
        }] }],
    }] });
    let answer = server.post("application/json", "", json.to_string().as_bytes()).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "partialSuccess": {} })));
    let answer = server.post("Application/JSON;charset=utf-8", "gzip", &gzip(json.to_string().as_bytes())).await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.log.requests(), vec![sent; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_told_so_in_the_words_of_the_reference() {
    let server = Server::start(Options::default()).await;
    let body = request(&[span(1, 1, "a")]).encode_to_vec();
    let answer = server.raw("PUT /v1/traces HTTP/1.1\r\ncontent-type: application/json", &body).await;
    assert_eq!((answer.status, answer.text().as_str()), (405, "405 method not allowed, supported: [POST]"));
    assert!(answer.head.contains("content-type: text/plain"));
    let answer = server.post("text/plain", "", &body).await;
    let text = "415 unsupported media type, supported: [application/json, application/x-protobuf]";
    assert_eq!((answer.status, answer.text().as_str()), (415, text));
    assert_eq!(server.raw("POST /v1/metrics HTTP/1.1\r\ncontent-type: application/json", &body).await.status, 404);

    let answer = server.post("application/json", "br", &body).await;
    assert_eq!((answer.status, answer.json()), (400, json!({ "code": 3, "message": "unsupported Content-Encoding: br" })));
    let answer = server.post("application/json", "", br#"{"resourceSpans":[{"scopeSpans":7}]}"#).await;
    let message = answer.json()["message"].as_str().expect("a message").to_owned();
    assert!(answer.status == 400 && message.contains("resourceSpans[0].scopeSpans"), "{message}");
    let answer = server.post(PROTOBUF, "", b"\x0a\xff").await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("error unmarshalling request"), "{}", answer.text());
    let mut bad = span(1, 1, "a");
    bad.span_id = vec![0; 8];
    let answer = server.post(PROTOBUF, "", &request(&[bad]).encode_to_vec()).await;
    assert_eq!(answer.status, 400);
    assert_eq!(&answer.body[..2], [8, 3], "google.rpc.Status with code 3");
    assert!(answer.text().contains("span ids must be 64 bit and not all zero, received 0 bits"));
    let answer = server.post(PROTOBUF, "", &vec![0; (20 << 20) + 1]).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("request body too large"), "{}", answer.text());
    assert!(server.log.records.lock().is_empty());
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_from_the_header() {
    let server = Server::start(Options { multitenancy: true, ..Options::default() }).await;
    let body = request(&[span(1, 1, "a")]).encode_to_vec();
    let post = async |headers: &str| {
        server.raw(&format!("POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf{headers}"), &body).await
    };
    let answer = post("").await;
    assert!(answer.status == 503 && answer.text().contains("no org id"), "{answer:?}");
    assert_eq!(post("\r\nX-Scope-OrgID: a\r\nX-Scope-OrgID: a").await.status, 503);
    assert_eq!(post("\r\nX-Scope-OrgID: a|b").await.status, 400);
    assert_eq!(post("\r\nX-Scope-OrgID: a").await.status, 200);
    assert_eq!(server.log.records.lock()[0].0, "a");
    assert_eq!(post("\r\nX-Scope-OrgID: a\r\nNo-Generate-Metrics: 1").await.status, 200);
    let skips: Vec<_> = server.log.records.lock().iter().map(|record| record.1.skip_metrics_generation).collect();
    assert_eq!(skips, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_a_length_are_read_and_bounded() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = Server::start(Options::default()).await;
    let spans: Vec<_> = (1..200).map(|n| span(n, n, &"n".repeat(2000))).collect();
    let body = request(&spans).encode_to_vec();
    let post = async |body: &[u8], times: usize| {
        let mut stream = tokio::net::TcpStream::connect(server.http).await.expect("connects");
        let head = "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\nconnection: close\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        for piece in body.chunks(70_001).cycle().take(body.len().div_ceil(70_001) * times) {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            if stream.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(post(&body, 1).await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.log.records.lock()[0].1.body, body);
    let answer = post(&body, 100).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.metric("rubato_ingest_refused_requests_total", "too_large"), 1.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_info_reaches_both_worlds() {
    let limits = ingest::Limits { burst_size_bytes: 10, ..ingest::Limits::default() };
    let server = Server::start(Options { limits, ..Options::default() }).await;
    let sent = request(&[span(1, 1, "a")]);
    let answer = server
        .post("application/json", "", b"{\"resourceSpans\":[{\"schemaUrl\":\"0123456789\",\"scopeSpans\":[{\"spans\":[{}]}]}]}")
        .await;
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 5\r\n"), "{}", answer.head);
    assert_eq!(answer.json()["code"], 8);
    assert_eq!(answer.json()["details"][0]["retryDelay"], "5s");
    let status = server.client().await.export(sent).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    // google.rpc.Status { details: [Any { RetryInfo { retry_delay: 5 s } }] }
    let retry_info = base64::engine::general_purpose::STANDARD.decode("CgIIBQ==").expect("base64");
    assert!(status.details().windows(retry_info.len()).any(|window| window == retry_info), "{:?}", status.details());
    assert!(String::from_utf8_lossy(status.details()).contains("type.googleapis.com/google.rpc.RetryInfo"));

    let without = ingest::Limits { retry_info_enabled: false, burst_size_bytes: 10, ..ingest::Limits::default() };
    server.overrides.store(ingest::LimitsTable { defaults: without.into(), ..ingest::LimitsTable::default() });
    let status = server.client().await.export(request(&[span(1, 1, "a")])).await.expect_err("refused");
    assert!(status.details().is_empty());
}
