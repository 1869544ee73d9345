//! Input that is wrong by accident or by intent: clear errors, bounded memory, and the process lives.

use std::io::Write as _;

use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use storage::{
    id::TraceId,
    synthetic::{self, Generator, Settings},
};
use tonic::{Code, codec::CompressionEncoding};

use crate::harness::{
    client::{Answer, Client, spans},
    eventually, now_ns,
    otlp::{attribute, body, request, span, string},
    server::{Config, Server},
};

/// How far the resident memory of the server may grow by any of these. The list holds inputs that would take many gigabytes.
const MAX_MEMORY: u64 = 700 << 20;

/// A server, and the proof that it is well.
#[derive(Debug)]
struct Victim {
    server: Server,
    client: Client,
}

impl Victim {
    async fn start() -> Self {
        // No rate limit stands before what is tested.
        let more = "\
overrides:
  defaults:
    ingestion:
      rate_limit_bytes: 2000000000
      burst_size_bytes: 2000000000";
        let server = Server::start(Config { more, ..Config::default() }).await;
        let client = server.client();
        Self { server, client }
    }

    async fn post(&self, body: impl Into<bytes::Bytes>) -> Answer {
        self.client.post_protobuf(body).await.expect("an answer, not a broken connection")
    }

    /// It runs, it is ready, a good trace goes in and comes out, and its memory stayed bounded.
    async fn assert_well(mut self) {
        assert!(self.server.is_alive(), "the process died");
        let id = TraceId([0xaa; 16]);
        let answer = self.post(body("good", vec![span(id, 1, "good")])).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        eventually("a good trace", || self.client.trace(id)).await;
        assert_eq!(self.client.get("/ready").await.expect("an answer").status, 200);
        let peak = self.server.peak_memory();
        assert!(peak < MAX_MEMORY, "peak memory is {} MiB", peak >> 20);
    }
}

/// Neither transport takes it, and both say why.
async fn assert_refused(victim: &Victim, what: &str, message: &[u8]) {
    let answer = victim.post(message.to_vec()).await;
    assert_eq!(answer.status, 400, "{what} by HTTP: {}", answer.text());
    assert!(answer.body.len() > 4, "{what} by HTTP: no reason is given");
    let status = victim.client.export(message.to_vec(), None).await.expect_err(what);
    assert!(matches!(status.code(), Code::InvalidArgument | Code::Internal), "{what} by gRPC: {status:?}");
    assert!(!status.message().is_empty(), "{what} by gRPC: no reason is given");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_protobuf_is_refused() {
    let victim = Victim::start().await;
    let good = synthetic::requests(3, 4).swap_remove(0);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        let mut bad = good.to_vec();
        match random.random_range(0..3) {
            0 => bad.truncate(random.random_range(1..bad.len())),
            1 => {
                for _ in 0..8 {
                    let at = random.random_range(0..bad.len());
                    bad[at] = random.random();
                }
            }
            _ => bad = (0..random.random_range(1..2000)).map(|_| random.random()).collect(),
        }
        let reference = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(bad.as_slice());
        let answer = victim.post(bad.clone()).await;
        match reference {
            Err(error) => assert_eq!(answer.status, 400, "prost says {error}; the answer is {}", answer.text()),
            // A flipped byte may leave a good message, or one with bad ids.
            Ok(_) => assert!([200, 400].contains(&answer.status), "{}: {}", answer.status, answer.text()),
        }
        let by_grpc = victim.client.export(bad, None).await;
        assert_eq!(by_grpc.is_ok(), answer.status == 200, "{by_grpc:?}, but HTTP {}", answer.status);
    }
    // A length beyond the end, as large as can be.
    assert_refused(&victim, "a huge length", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).await;
    assert_refused(&victim, "an endless varint", &[0x0a; 1].iter().copied().chain([0xff; 64]).collect::<Vec<u8>>()).await;
    assert_refused(&victim, "an end of group", &[0x0c]).await;
    let json = victim.client.post(&[("Content-Type", "application/json")], "{\"resourceSpans\":[{]}").await.expect("an answer");
    assert_eq!(json.status, 400, "{}", json.text());
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_bombs_do_not_explode() {
    let victim = Victim::start().await;
    // 4 GiB of zeros, and a kilobyte of what looks like a message before them.
    let chunk = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    for _ in 0..1024 {
        gzip.write_all(&chunk).expect("into memory");
    }
    for _ in 0..4096 {
        zstd.write_all(&chunk).expect("into memory");
    }
    let bombs = [("gzip", gzip.finish().expect("into memory")), ("zstd", zstd.finish().expect("into memory"))];
    for (encoding, bomb) in bombs {
        for content_type in ["application/x-protobuf", "application/json"] {
            let answer = victim
                .client
                .post(&[("Content-Type", content_type), ("Content-Encoding", encoding)], bomb.clone())
                .await
                .expect("an answer");
            assert!([400, 413].contains(&answer.status), "{encoding}: {} {}", answer.status, answer.text());
        }
        let broken = &bomb[..bomb.len() / 2];
        let answer = victim
            .client
            .post(&[("Content-Type", "application/x-protobuf"), ("Content-Encoding", encoding)], broken.to_vec())
            .await
            .expect("an answer");
        assert!([400, 413].contains(&answer.status), "{encoding}: {} {}", answer.status, answer.text());
    }
    // By gRPC the client compresses.
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let status = victim.client.export(vec![0; 256 << 20], Some(encoding)).await.expect_err("refused");
        assert!(!matches!(status.code(), Code::Ok | Code::Unavailable), "{status}");
    }
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_above_the_limits_are_refused() {
    let victim = Victim::start().await;
    // HTTP takes 20 MiB, gRPC 4 MiB.
    let answer = victim.client.post_protobuf(vec![0x0a; (20 << 20) + 1]).await;
    // The server may close the connection while the client still sends: that is a refusal too.
    if let Ok(answer) = answer {
        assert!([400, 413].contains(&answer.status), "{}: {}", answer.status, answer.text());
    }
    let large = body("large", vec![span(TraceId([1; 16]), 1, &"x".repeat(5 << 20))]);
    let status = victim.client.export(large.clone(), None).await.expect_err("above 4 MiB");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    assert_eq!(victim.post(large).await.status, 200, "HTTP takes 5 MiB");
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_spans_in_one_trace_are_bounded() {
    let victim = Victim::start().await;
    let id = TraceId([2; 16]);
    let end = now_ns();
    let mut acknowledged = 0;
    for request in 0..100u64 {
        let spans: Vec<Span> = (0..10_000)
            .map(|number| Span {
                trace_id: id.0.to_vec(),
                span_id: (request * 10_000 + number + 1).to_be_bytes().to_vec(),
                name: "many".to_owned(),
                start_time_unix_nano: end,
                end_time_unix_nano: end,
                ..Span::default()
            })
            .collect();
        let answer = victim.post(body("many", spans)).await;
        assert!([200, 429].contains(&answer.status), "{}: {}", answer.status, answer.text());
        acknowledged += u64::from(answer.status == 200);
    }
    assert!(acknowledged > 0, "nothing of it was taken");
    // What is beyond the trace's 5 MB is dropped and counted.
    eventually("dropped spans", || async {
        let dropped = victim.client.metric("tempo_discarded_spans_total", &["reason=\"trace_too_large\""]).await;
        (dropped > 500_000.0).then_some(())
    })
    .await;
    let answer = victim.client.get_as(&format!("/api/v2/traces/{id}"), "application/protobuf").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = victim.client.get_as(&format!("/api/traces/{id}"), "application/protobuf").await;
    assert!([200, 422].contains(&answer.status), "{}", answer.status);
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attribute_values_of_ten_megabytes_are_cut() {
    let victim = Victim::start().await;
    for (number, trace) in [(1u8, [3; 16]), (2, [4; 16])] {
        let id = TraceId(trace);
        let mut large = span(id, u64::from(number), "large");
        large.attributes = vec![string("large", &"x".repeat(10 << 20)), string(&"k".repeat(5 << 20), "long key")];
        let answer = victim.post(body("large", vec![large])).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let trace = eventually("the trace", || victim.client.trace(id)).await;
        let found = spans(&trace).next().expect("one span");
        for attribute in &found.attributes {
            assert!(attribute.key.len() <= 2048);
            let Some(Value::StringValue(value)) = attribute.value.as_ref().and_then(|value| value.value.as_ref()) else {
                panic!("{} lost its value", attribute.key)
            };
            assert!(value.len() <= 2048, "{} bytes", value.len());
        }
        assert_eq!(found.attributes.len(), 2);
    }
    victim.assert_well().await;
}

/// An attribute whose value is an array in an array …, `depth` deep, built without recursion.
fn nested(depth: usize) -> Vec<u8> {
    let varint_len = |value: usize| (64 - (value as u64 | 1).leading_zeros() as usize).div_ceil(7);
    let field = |content: usize| 1 + varint_len(content) + content;
    // From the inside out: the lengths of the AnyValue and ArrayValue messages.
    let mut lengths = vec![(0, 0)];
    for level in 0..depth {
        let array = field(lengths[level].0);
        lengths.push((field(array), array));
    }
    let key_value = 3 + field(lengths[depth].0);
    let ids: Vec<u8> = [[0x0a, 16].as_slice(), &[5; 16], &[0x12, 8], &[5; 8]].concat();
    let span = ids.len() + field(key_value);
    let scope_spans = field(span);
    let resource_spans = field(scope_spans);
    let mut out = Vec::new();
    let header = |out: &mut Vec<u8>, tag: u8, length: usize| {
        out.push(tag);
        prost::encoding::encode_varint(length as u64, out);
    };
    header(&mut out, 0x0a, resource_spans);
    header(&mut out, 0x12, scope_spans);
    header(&mut out, 0x12, span);
    out.extend(ids);
    header(&mut out, 0x4a, key_value);
    out.extend([0x0a, 1, b'k']);
    header(&mut out, 0x12, lengths[depth].0);
    for level in (0..depth).rev() {
        header(&mut out, 0x2a, lengths[level + 1].1);
        header(&mut out, 0x0a, lengths[level].0);
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn values_nested_a_hundred_thousand_deep_are_refused() {
    let victim = Victim::start().await;
    let shallow = nested(20);
    assert!(
        opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(shallow.as_slice()).is_ok(),
        "the test's bytes"
    );
    assert_eq!(victim.post(shallow).await.status, 200);
    assert_refused(&victim, "100,000 levels", &nested(100_000)).await;
    let json = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"k","value":"#.to_owned()
        + &r#"{"arrayValue":{"values":["#.repeat(100_000)
        + &"]}}".repeat(100_000)
        + "}]}]}]}]}";
    let answer = victim.client.post(&[("Content-Type", "application/json")], json).await.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.text());
    // Also where the query side parses.
    let deep = format!("{{ {}true{} }}", "(".repeat(9_000), ")".repeat(9_000));
    let answer = victim.client.query("/api/search", &[("q", &deep)]).await;
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_ids_refuse_the_whole_request() {
    let victim = Victim::start().await;
    let good = TraceId([6; 16]);
    let with_ids = |trace_id: &[u8], span_id: &[u8]| {
        let mut bad = span(good, 2, "bad");
        bad.trace_id = trace_id.to_vec();
        bad.span_id = span_id.to_vec();
        body("ids", vec![span(good, 1, "good"), bad])
    };
    for (what, trace_id, span_id, text) in [
        ("no trace id", [].as_slice(), [7; 8].as_slice(), "trace ids must be 128 bit, received 0 bits"),
        ("a zero trace id", &[0; 16], &[7; 8], "trace ids must be 128 bit, received"),
        ("no span id", &[7; 16], &[], "span ids must be 64 bit and not all zero, received 0 bits"),
        ("a zero span id", &[7; 16], &[0; 8], "span ids must be 64 bit and not all zero, received"),
    ] {
        let message = with_ids(trace_id, span_id);
        assert_refused(&victim, what, &message).await;
        let answer = victim.post(message).await;
        assert!(answer.text().contains(text), "{what}: {}", answer.text());
    }
    for length in [1, 15, 17, 1000] {
        assert_refused(&victim, "a trace id of another length", &with_ids(&vec![7; length], &[7; 8])).await;
    }
    for length in [1, 7, 9, 1000] {
        assert_refused(&victim, "a span id of another length", &with_ids(&[7; 16], &vec![7; length])).await;
    }
    assert!(victim.client.trace(good).await.is_none(), "a refused request must leave nothing");
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_far_away_are_kept() {
    let victim = Victim::start().await;
    let year_2200 = 7_258_118_400_000_000_000;
    let cases = [
        (1, 0, 0),
        (2, 0, 1),
        (3, 1_000_000_000, 2_000_000_000),
        (4, year_2200, year_2200 + 5),
        (5, u64::MAX - 1, u64::MAX),
        (6, now_ns(), 5),
    ];
    for (number, start, end) in cases {
        let mut odd = span(TraceId([0x70 + number; 16]), u64::from(number), "odd");
        (odd.start_time_unix_nano, odd.end_time_unix_nano) = (start, end);
        let answer = victim.post(body("odd", vec![odd])).await;
        assert_eq!(answer.status, 200, "{start}: {}", answer.text());
    }
    for after_cut in [false, true] {
        if after_cut {
            eventually("the odd traces in blocks", || async { (victim.server.traces_in_blocks("single-tenant") >= 6).then_some(()) }).await;
        }
        for (number, start, end) in cases {
            let trace = eventually("an odd trace", || victim.client.trace(TraceId([0x70 + number; 16]))).await;
            let found = spans(&trace).next().expect("one span");
            assert_eq!(found.start_time_unix_nano, start, "after the cut: {after_cut}");
            // A block keeps a duration: an end before the start cannot be told from an empty span.
            if end >= start {
                assert_eq!(found.end_time_unix_nano, end, "after the cut: {after_cut}");
            }
        }
        assert_eq!(victim.client.query("/api/search", &[("q", "{ name = \"odd\" }")]).await.status, 200);
    }
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strings_that_are_not_utf_8_are_refused() {
    let victim = Victim::start().await;
    let mut marked = span(TraceId([8; 16]), 1, "NAMENAME");
    marked.attributes = vec![string("KEYKEYKE", "VALUEVAL"), attribute("other", Value::StringValue("OTHERVAL".to_owned()))];
    let good = request("SERVICES", vec![marked]).encode_to_vec();
    for mark in ["NAMENAME", "KEYKEYKE", "VALUEVAL", "OTHERVAL", "SERVICES"] {
        let at = good.windows(8).position(|window| window == mark.as_bytes()).expect("the mark is there");
        let mut bad = good.clone();
        bad[at + 3] = 0xff;
        assert_refused(&victim, mark, &bad).await;
    }
    victim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_off_or_stall_do_no_harm() {
    use tokio::io::AsyncWriteExt as _;
    let victim = Victim::start().await;
    let http: std::net::SocketAddr =
        victim.server.otlp_http_url()["http://".len()..].split('/').next().and_then(|host| host.parse().ok()).expect("an address");
    let grpc: std::net::SocketAddr = victim.server.otlp_grpc_url()["http://".len()..].parse().expect("an address");
    let mut kept = Vec::new();
    for number in 0..60 {
        let mut socket = tokio::net::TcpStream::connect(if number % 2 == 0 { http } else { grpc }).await.expect("a connection");
        let start: &[u8] = match number % 3 {
            0 => b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\nContent-Length: 20000000\r\n\r\n\n",
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff",
            _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 GET / nonsense",
        };
        // The server may be quick to close what is nonsense.
        let _ = socket.write_all(start).await;
        if number % 4 == 0 {
            kept.push(socket);
        }
    }
    victim.assert_well().await;
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_honest_traces_pass() {
    let victim = Victim::start().await;
    let mut generator = Generator::new(Settings { base_time_ns: now_ns(), ..Settings::default() });
    let trace = generator.trace_with_spans(8_000);
    let message =
        opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest { resource_spans: trace.resource_spans().to_vec() };
    assert_eq!(victim.post(message.encode_to_vec()).await.status, 200);
    eventually("the whole trace", || async {
        let found = victim.client.trace(trace.summary().trace_id).await?;
        (spans(&found).count() == 8_000).then_some(())
    })
    .await;
    victim.assert_well().await;
}
