//! Input from people who mean harm, or whose software does: clear errors, bounded memory, and the server serves on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use prost::Message as _;

use crate::harness::{EXPORT, Options, Server, attribute, framed, gzip, request, span};

const PROTOBUF: &str = "application/x-protobuf";

/// The largest resident size that this process ever had, bytes; 0 where the system doesn't say.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or_default() << 10
}

/// Wraps `contents` in a protobuf field.
fn field(number: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = contents.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(contents);
    out
}

/// In a process of its own, because memory is measured per process and other tests use much.
#[test]
fn a_gibibyte_of_zeros_costs_nothing() {
    let mut alone = std::process::Command::new(std::env::current_exe().expect("this test"));
    let output = alone.args(["--ignored", "--exact", "hostile::bombs_in_a_process_of_their_own"]).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test was found");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_gibibyte_of_zeros_costs_nothing"]
async fn bombs_in_a_process_of_their_own() {
    let server = Server::start(Options::default()).await;
    let member = gzip(&vec![0; 64 << 20]);
    let gzip_bomb = member.repeat(16);
    let zstd_bomb = zstd::encode_all(&vec![0; 64 << 20][..], 1).expect("in memory").repeat(16);
    let lz4_bomb = crate::harness::lz4(&vec![0; 64 << 20]);
    let zlib_bomb = crate::harness::zlib(&vec![0; 64 << 20]);
    let snappy_bomb = crate::harness::snappy_framed(&vec![0; 64 << 20]);
    // A raw snappy block that claims 4 GiB.
    let snappy_claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x00];
    let before = peak_memory();
    let bombs: [(&str, &[u8]); 6] = [
        ("gzip", &gzip_bomb),
        ("zstd", &zstd_bomb),
        ("lz4", &lz4_bomb),
        ("deflate", &zlib_bomb),
        ("snappy", &snappy_bomb),
        ("snappy", &snappy_claim),
    ];
    for (encoding, bomb) in bombs {
        let answer = server.post(PROTOBUF, encoding, bomb).await;
        assert_eq!(answer.status, 400, "{encoding}");
        assert!(answer.text().contains("request body too large: more than 20971520 bytes"), "{encoding}: {}", answer.text());
    }
    for (encoding, bomb) in &bombs[..2] {
        let answer = server.call(EXPORT, &[("grpc-encoding", encoding)], framed(true, bomb)).await;
        assert_eq!(answer.code, 8, "{answer:?}");
        assert!(answer.message.contains("received message larger than max"), "{answer:?}");
    }
    // All at once share one budget.
    let all = (0..12).map(|_| server.post(PROTOBUF, "gzip", &gzip_bomb));
    let mut statuses = Vec::new();
    for answer in futures_join(all).await {
        statuses.push(answer.status);
    }
    assert!(statuses.iter().all(|status| [400, 429].contains(status)), "{statuses:?}");
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 256 << 20, "grew by {grown} bytes, twice the budget");
    server.assert_alive().await;
}

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut pinned {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pinned.into_iter().filter_map(|(_, result)| result).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_protobuf_is_named() {
    let server = Server::start(Options::default()).await;
    let good = request(&[span(1, 1, "a")]).encode_to_vec();
    let not_utf8 = {
        let mut body = request(&[span(1, 1, "QQQQ")]).encode_to_vec();
        let at = body.windows(4).position(|window| window == b"QQQQ").expect("the name");
        body[at] = 0xff;
        body
    };
    let huge_length = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let endless_varint = vec![0xff; 64];
    for body in [good[..good.len() - 1].to_vec(), not_utf8, huge_length, endless_varint, vec![0x0b], b"not protobuf at all".to_vec()] {
        let answer = server.post(PROTOBUF, "", &body).await;
        assert_eq!(answer.status, 400, "{body:?}");
        assert!(answer.text().contains("error unmarshalling request: "), "{}", answer.text());
        let answer = server.call(EXPORT, &[], framed(false, &body)).await;
        assert_eq!(answer.code, 13, "{answer:?}");
        let answer = server.post("application/json", "", &body).await;
        assert_eq!(answer.status, 400, "{body:?}");
    }
    assert!(server.log.records.lock().is_empty());
    assert_eq!(server.metric("rubato_ingest_refused_requests_total", "malformed"), 12.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_spans_in_one_trace() {
    let server = Server::start(Options::default()).await;
    // 31 bytes each: about as small as a valid span gets. 30 MB do not fit a request, so they come in two, of one trace.
    let smallest = |id: u32| Span { trace_id: vec![9; 16], span_id: [vec![1; 4], id.to_be_bytes().to_vec()].concat(), ..Span::default() };
    let half = |begin: u32| request(&(begin..begin + 500_000).map(smallest).collect::<Vec<_>>()).encode_to_vec();
    let begun = Instant::now();
    for begin in [0, 500_000] {
        let body = half(begin);
        server.clock.advance(Duration::from_secs(10));
        let answer = server.post(PROTOBUF, "", &body).await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("trace too large"), "{}", answer.text());
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(server.metric("tempo_discarded_spans_total", "trace_too_large"), 1e6);
    assert!(server.log.records.lock().is_empty());
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_of_ten_megabytes_is_cut() {
    let server = Server::start(Options::default()).await;
    let mut big = span(1, 1, "a");
    big.attributes = vec![attribute("k", Value::StringValue("v".repeat(10_000_000)))];
    let answer = server.post(PROTOBUF, "", &request(&[big]).encode_to_vec()).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0), "{}", answer.text());
    assert!(server.log.records.lock()[0].1.body.len() < 3000);
    assert_eq!(server.metric("tempo_distributor_attributes_truncated_total", ""), 1.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_nested_a_hundred_thousand_deep() {
    let server = Server::start(Options::default()).await;
    // AnyValue { array_value: ArrayValue { values: [AnyValue …] } }, built from the inside.
    let mut reversed: Vec<u8> = Vec::new();
    for _ in 0..100_000 {
        for number in [1u8, 5] {
            let mut prefix = field(number, &[]);
            prefix.pop();
            let mut length = reversed.len();
            while length >= 0x80 {
                prefix.push(length as u8 | 0x80);
                length >>= 7;
            }
            prefix.push(length as u8);
            reversed.extend(prefix.iter().rev());
        }
    }
    reversed.reverse();
    let key_value = [field(1, b"k"), field(2, &reversed)].concat();
    let good_span = span(1, 1, "a").encode_to_vec();
    let body = field(1, &field(2, &field(2, &[good_span, field(9, &key_value)].concat())));
    let answer = server.post(PROTOBUF, "", &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("error unmarshalling request: "), "{}", answer.text());
    let answer = server.call(EXPORT, &[], framed(false, &body)).await;
    assert_eq!(answer.code, 13, "{answer:?}");

    let value = format!("{}{}", r#"{"arrayValue":{"values":["#.repeat(100_000), "]}}".repeat(100_000));
    let json = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{value}}}]}}}}]}}"#);
    let answer = server.post("application/json", "", json.as_bytes()).await;
    assert!(answer.status == 400 && answer.text().contains("recursion limit exceeded"), "{}", answer.text());
    assert!(answer.body.len() < 2000);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_far_away_are_taken_as_they_are() {
    let server = Server::start(Options::default()).await;
    let at = |id, nanos| Span { start_time_unix_nano: nanos, end_time_unix_nano: nanos, ..span(id, id, "a") };
    // 1970, 2200, the end of time, and an end before the start.
    let backwards = Span { end_time_unix_nano: 1, ..span(4, 4, "a") };
    let sent = request(&[at(1, 0), at(2, 7_258_118_400_000_000_000), at(3, u64::MAX), backwards]);
    server.client().await.export(sent.clone()).await.expect("accepted");
    assert_eq!(server.log.requests(), [sent]);
    assert_eq!(server.metric("tempo_spans_distance_in_future_seconds", ""), 2.0);
    assert_eq!(server.metric("tempo_spans_distance_in_past_seconds", ""), 2.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_share_the_budget_and_the_slow_do_not_block_it_for_ever() {
    use tokio::io::AsyncWriteExt as _;
    let mut options = Options { budget: 2 << 20, ..Options::default() };
    options.server.body_timeout = Duration::from_millis(900);
    let server = Server::start(options).await;
    // Promises 2 MiB, which are reserved, and sends nothing.
    let mut slow = tokio::net::TcpStream::connect(server.http).await.expect("connects");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\ncontent-length: 2097152\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = server.post(PROTOBUF, "", &request(&[span(1, 1, "a")]).encode_to_vec()).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert!(answer.text().contains("too many bytes in flight") && answer.head.contains("retry-after: 5"), "{answer:?}");
    let status = server.client().await.export(request(&[span(1, 1, "a")])).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(server.metric("rubato_ingest_budget_refusals_total", ""), 2.0);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(server.metric("rubato_ingest_refused_requests_total", "slow_sender"), 1.0);
    server.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_ports_harms_nobody() {
    use tokio::io::AsyncWriteExt as _;
    let server = Server::start(Options::default()).await;
    for address in [server.grpc, server.http] {
        for noise in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff",
            &[0; 4096],
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
            let _ = stream.write_all(noise).await;
            drop(stream);
        }
    }
    let answer = server.call(EXPORT, &[], Bytes::new()).await;
    assert_eq!(answer.code, 13);
    server.assert_alive().await;
}
