//! `tempopb.Pusher` as an ingester serves it, called without a socket: what a Tempo distributor sends, and what nobody should.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use ingest::{Budget, Ingester, IngesterSettings, Limits, LimitsTable, PUSH_BYTES, PUSH_BYTES_V2, Pusher, PusherSettings, SharedOverrides};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prometheus::Registry;
use proptest::prelude::*;
use prost::Message as _;
use storage::{
    clock::ManualClock,
    otlp::{Walk, validate},
    ring::{Instance, Ring, Settings, State},
    wal::AppendError,
};

use crate::harness::{MemoryLog, NOW, framed, gzip, request, snappy_framed, span};

#[derive(Clone, PartialEq, prost::Message)]
struct PushBytesRequest {
    #[prost(bytes = "vec", repeated, tag = "2")]
    traces: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    ids: Vec<Vec<u8>>,
    #[prost(bool, tag = "5")]
    skip_metrics_generation: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PushResponse {
    #[prost(int32, repeated, tag = "1")]
    errors_by_trace: Vec<i32>,
}

struct Server {
    pusher: Pusher,
    log: Arc<MemoryLog>,
    overrides: SharedOverrides,
}

fn start(rings: Option<storage::ring::Rings>) -> Server {
    let (log, overrides, registry) = (Arc::new(MemoryLog::default()), SharedOverrides::default(), Registry::new());
    let clock = Arc::new(ManualClock::new(NOW));
    let (log_of, overrides_of) = (Arc::<MemoryLog>::clone(&log), Arc::new(overrides.clone()));
    let ingester = Ingester::new(IngesterSettings::default(), log_of, overrides_of, rings, clock, &registry).expect("fresh registry");
    let budget = Budget::new(64 << 20, Duration::from_millis(100), &registry).expect("fresh registry");
    let settings = PusherSettings { max_message_bytes: 4 << 20, ..PusherSettings::default() };
    Server { pusher: Pusher::new(settings, ingester, budget, &registry).expect("fresh registry"), log, overrides }
}

/// The code, the message of the status, and the reasons.
type Answer = (i32, String, Vec<i32>);

impl Server {
    async fn call(&self, path: &str, headers: &[(&str, &str)], data: Bytes) -> Answer {
        let mut request = Request::post(path).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.pusher.respond(request.body(Full::new(data)).expect("a request")).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("infallible");
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        let text = |name: &str| trailers.get(name).map(|value| value.to_str().expect("ASCII").to_owned()).unwrap_or_default();
        let data = body.to_bytes();
        let reasons = if data.is_empty() { Vec::new() } else { PushResponse::decode(&data[5..]).expect("a response").errors_by_trace };
        (text("grpc-status").parse().expect("a code"), text("grpc-message"), reasons)
    }

    async fn push(&self, message: &[u8]) -> Answer {
        self.call(PUSH_BYTES_V2, &[("x-scope-orgid", "t")], framed(false, message)).await
    }
}

/// A trace as a distributor of Tempo sends it: times, then the trace.
fn segment(request: &ExportTraceServiceRequest) -> Vec<u8> {
    [&[10, 0, 0, 0, 11, 0, 0, 0][..], &request.encode_to_vec()].concat()
}

fn push_of(traces: &[(u8, &str)]) -> PushBytesRequest {
    PushBytesRequest {
        traces: traces.iter().map(|&(trace, name)| segment(&request(&[span(trace, 1, name)]))).collect(),
        ids: traces.iter().map(|&(trace, _)| span(trace, 1, "").trace_id).collect(),
        ..Default::default()
    }
}

fn accepted() -> Answer {
    (0, String::new(), vec![])
}

#[tokio::test]
async fn what_tempo_sends_becomes_one_record() {
    let server = start(None);
    let mut message = push_of(&[(1, "a"), (2, "b"), (3, "c")]);
    message.skip_metrics_generation = true;
    let bytes = message.encode_to_vec();
    assert_eq!(server.push(&bytes).await, accepted());
    let tenant = ("x-scope-orgid", "t");
    let packed = [("gzip", gzip(&bytes)), ("snappy", snappy_framed(&bytes))];
    for (encoding, body) in packed {
        assert_eq!(server.call(PUSH_BYTES_V2, &[tenant, ("grpc-encoding", encoding)], framed(true, &body)).await, accepted());
    }
    message.traces.iter_mut().for_each(|trace| drop(trace.drain(..8)));
    assert_eq!(server.call(PUSH_BYTES, &[tenant], framed(false, &message.encode_to_vec())).await, accepted());
    let requests = server.log.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|record| *record == request(&[span(1, 1, "a"), span(2, 1, "b"), span(3, 1, "c")])));
    assert!(server.log.records.lock().iter().all(|(tenant, entry)| tenant == "t" && entry.skip_metrics_generation));
    message.skip_metrics_generation = false;
    assert_eq!(server.call(PUSH_BYTES, &[tenant], framed(false, &message.encode_to_vec())).await, accepted());
    assert!(!server.log.records.lock()[4].1.skip_metrics_generation);
}

#[tokio::test]
async fn one_trace_that_is_wrong_does_not_harm_the_others() {
    let server = start(None);
    let mut message =
        push_of(&[(1, "good"), (2, "torn"), (3, "short"), (4, "other id"), (5, "no id"), (6, "good too"), (7, "torn header")]);
    message.traces[1].pop();
    message.traces[2].truncate(3);
    message.ids[3] = span(9, 1, "").trace_id;
    message.ids[4] = vec![1, 2, 3];
    message.traces[6].truncate(8);
    assert_eq!(server.push(&message.encode_to_vec()).await, (0, String::new(), vec![0, 3, 3, 3, 3, 0, 0]));
    assert_eq!(server.log.span_names(), ["good", "good too"]);

    let twice = with_two_resources(request(&[span(1, 1, "x")]));
    let message = PushBytesRequest { traces: vec![twice], ids: vec![span(1, 1, "").trace_id], ..Default::default() };
    assert_eq!(server.push(&message.encode_to_vec()).await.2, [3], "a resource in two fields");
    assert_eq!(server.push(&[]).await, accepted(), "nothing at all");
    assert_eq!(server.log.records.lock().len(), 1);
}

/// The segment of a request whose one `ResourceSpans` has a second resource behind the first.
fn with_two_resources(mut request: ExportTraceServiceRequest) -> Vec<u8> {
    let mut inner = request.resource_spans.remove(0).encode_to_vec();
    inner.extend_from_slice(&[0x0a, 0x00]);
    let mut out = vec![10, 0, 0, 0, 11, 0, 0, 0, 0x0a];
    prost::encoding::encode_varint(inner.len() as u64, &mut out);
    out.extend_from_slice(&inner);
    out
}

#[tokio::test]
async fn limits_are_answered_per_trace() {
    let server = start(None);
    let limits = Limits { max_traces_per_user: 2, max_bytes_per_trace: 300, ..Limits::default() };
    server.overrides.store(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() });
    let long = "x".repeat(400);
    let message = push_of(&[(1, "a"), (2, &long), (3, "c"), (4, "d"), (1, "again")]);
    assert_eq!(server.push(&message.encode_to_vec()).await, (0, String::new(), vec![0, 2, 0, 1, 0]));
    assert_eq!(server.log.span_names(), ["a", "c", "again"]);
}

#[tokio::test]
async fn the_limit_of_the_whole_cluster_is_shared() {
    let instance =
        |n: usize, state| Instance { id: n.to_string(), timestamp: NOW.as_secs(), state, tokens: vec![n as u32], ..Default::default() };
    let members = [State::Active, State::Active, State::Active, State::Leaving];
    let ring = Ring::new(
        members.into_iter().enumerate().map(|(n, state)| instance(n, state)),
        Settings { replication_factor: 2, ..Settings::default() },
    );
    let (_ring, rings) = tokio::sync::watch::channel(Arc::new(ring));
    let server = start(Some(rings));
    let push = push_of(&[(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]).encode_to_vec();
    for (limits, accepted) in [
        // 5 traces in two copies among three ingesters.
        (Limits { max_global_traces_per_user: 5, max_traces_per_user: 0, ..Limits::default() }, 3),
        (Limits { max_global_traces_per_user: 5, max_traces_per_user: 2, ..Limits::default() }, 2),
        (Limits { max_global_traces_per_user: 2, tenant_shard_size: 1, max_traces_per_user: 0, ..Limits::default() }, 4),
    ] {
        server.overrides.store(LimitsTable { defaults: Arc::new(limits.clone()), ..LimitsTable::default() });
        let tenant = format!("t{accepted}");
        let (code, _, reasons) = server.call(PUSH_BYTES_V2, &[("x-scope-orgid", &tenant)], framed(false, &push)).await;
        assert_eq!((code, reasons.iter().filter(|&&reason| reason == 0).count()), (0, accepted), "{limits:?}");
    }
}

#[tokio::test]
async fn whole_pushes_are_refused_with_a_reason() {
    let server = start(None);
    let good = push_of(&[(1, "a")]).encode_to_vec();
    let tenant = [("x-scope-orgid", "t")];
    let call = |path, headers, message| server.call(path, headers, message);
    let expect = |answer: Answer, code: i32, text: &str| assert_eq!((answer.0, answer.1.as_str()), (code, text));
    let mismatched = PushBytesRequest { traces: vec![vec![]; 2], ids: vec![vec![]; 1], ..Default::default() }.encode_to_vec();
    expect(server.push(&mismatched).await, 3, "mismatched traces/ids length: 2, 1");
    expect(call(PUSH_BYTES_V2, &[], framed(false, &good)).await, 3, "no org id");
    expect(call(PUSH_BYTES_V2, &[("x-scope-orgid", "a|b")], framed(false, &good)).await, 3, "multiple org IDs present");
    expect(call("/tempopb.Pusher/Other", &tenant, framed(false, &good)).await, 12, "unknown method /tempopb.Pusher/Other");
    expect(call(PUSH_BYTES_V2, &tenant, framed(false, &good).slice(..20)).await, 13, "grpc: message ends before its length");
    let large = framed(false, &vec![0; 5 << 20]);
    expect(call(PUSH_BYTES_V2, &tenant, large).await, 8, "grpc: received message larger than max (4194304 bytes)");
    *server.log.failure.lock() = Some(AppendError::Full("no space".to_owned()));
    expect(server.push(&good).await, 14, "write-ahead log is full: no space");
    *server.log.failure.lock() = Some(AppendError::Closed);
    expect(server.push(&good).await, 14, "Ingester is shutting down");
    *server.log.failure.lock() = None;
    assert_eq!(server.push(&good).await, accepted(), "what the log refused was not counted");
    server.pusher.close();
    expect(server.push(&good).await, 14, "Ingester is shutting down");
    assert_eq!(server.log.records.lock().len(), 1);
}

#[tokio::test]
async fn lists_of_millions_of_nothings_cost_little() {
    let server = start(None);
    let nothings = [0x12, 0, 0x1a, 0].repeat(1 << 19);
    let (code, _, reasons) = server.push(&nothings).await;
    assert_eq!((code, reasons.len()), (0, 1 << 19));
    assert!(reasons.iter().all(|&reason| reason == 3));
    let lonely = [0x12, 0].repeat(1 << 20);
    assert_eq!(server.push(&lonely).await.1, "mismatched traces/ids length: 1048576, 0");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is done to a message: an answer, no panic, and nothing in the log but valid requests.
    #[test]
    fn damaged_messages_are_survived(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..6),
        legacy in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let server = start(None);
        let mut message = push_of(&[(1, "first"), (2, "second"), (1, "third")]).encode_to_vec();
        for (at, byte, how) in cuts {
            if message.is_empty() {
                break;
            }
            let at = at.index(message.len());
            match how {
                0 => message[at] = byte,
                1 => message.insert(at, byte),
                2 => drop(message.remove(at)),
                _ => message.truncate(at),
            }
        }
        let path = if legacy { PUSH_BYTES } else { PUSH_BYTES_V2 };
        let (code, ..) = runtime.block_on(server.call(path, &[("x-scope-orgid", "t")], framed(false, &message)));
        prop_assert!([0, 3].contains(&code), "{}", code);
        for (_, record) in server.log.records.lock().iter() {
            prop_assert_eq!(validate(&record.body, 0, &mut Walk::default()), Ok(()));
        }
    }
}
