//! Limits of a tenant: rate, attributes, traces.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use ingest::{Distributor, DistributorSettings, Ingester, IngesterSettings, Limits, LimitsTable, SharedOverrides, Sink};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest},
    common::v1::any_value::Value,
    trace::v1::{Span, span::Event, span::Link},
};
use prometheus::Registry;
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use storage::{clock::ManualClock, id::Tenant};
use tonic::Code;

use crate::harness::{MemoryLog, NOW, Options, Server, attribute, request, span};

const SPAN_REASONS: [&str; 3] = ["live_traces_exceeded", "trace_too_large", "rate_limited"];

fn options(limits: Limits) -> Options {
    Options { limits, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_bucket_refuses_and_refills() {
    let server = Server::start(Options::default()).await;
    let padded = |bytes: usize| {
        let mut big = span(1, 1, "");
        big.attributes = (0..bytes / 2000).map(|_| attribute("k", Value::StringValue("v".repeat(1990)))).collect();
        request(&[big, span(1, 2, "b")]).encode_to_vec()
    };
    // Within the burst of 20 MB, which is not refilled while the clock stands.
    let body = padded(18_000_000);
    let size = body.len();
    assert!((17_900_000..19_000_000).contains(&size), "{size}");
    let post = async |body: &[u8]| server.post("application/x-protobuf", "", body).await;
    let first = post(&body).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let answer = post(&body).await;
    let text = format!(
        "RATE_LIMITED: ingestion rate limit (local: 15000000 bytes/s, global: 0 bytes/s, burst: 20000000 bytes) exceeded while adding {size} \
         bytes for user single-tenant. consider increasing the limit or reducing ingestion rate."
    );
    assert!(answer.status == 429 && answer.text().contains(&text), "{}", answer.text());
    assert_eq!(server.metric("tempo_discarded_spans_total", "rate_limited"), 2.0);
    assert_eq!(server.metric("tempo_distributor_ingress_bytes_total", ""), 2.0 * size as f64, "counted before the limit");
    assert_eq!(server.metric("tempo_distributor_bytes_received_total", ""), size as f64, "counted behind it");
    server.clock.advance(Duration::from_secs(2));
    assert_eq!(post(&padded(6_000_000)).await.status, 200);

    let table = |limits| LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() };
    server.overrides.store(table(Limits { rate_limit_bytes: 10, burst_size_bytes: 20, ..Limits::default() }));
    let status = server.client().await.export(request(&[span(1, 1, "a")])).await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let size = request(&[span(1, 1, "a")]).encoded_len();
    let text = format!(
        "RATE_LIMITED: batch size ({size} bytes) exceeds ingestion limit (local: 10 bytes/s, global: 0 bytes/s, burst: 20 bytes) while \
         adding {size} bytes for user single-tenant. consider reducing batch size or increasing rate limit."
    );
    assert_eq!(status.message(), text);
    server.client().await.export(request(&[])).await.expect("no spans, no limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_a_tenant_replaces_all_defaults() {
    let server = Server::start(Options { multitenancy: true, ..Options::default() }).await;
    let entry = Arc::new(Limits { max_traces_per_user: 5, ..Limits::ZERO });
    let tenants = [(Tenant::new("a").expect("valid"), entry)].into();
    server.overrides.store(LimitsTable { tenants, ..LimitsTable::default() });
    let body = request(&[span(1, 1, "a")]).encode_to_vec();
    let post = async |tenant: &str| {
        server.raw(&format!("POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf\r\nx-scope-orgid: {tenant}"), &body).await
    };
    assert_eq!((post("a").await.status, post("b").await.status), (429, 200));
    server.overrides.store(LimitsTable::default());
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(post("a").await.status, 200, "a reload counts at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_attributes_are_cut_at_a_character() {
    let server = Server::start(options(Limits { max_attribute_bytes: 8, ..Limits::default() })).await;
    let long = || attribute("a-long-key", Value::StringValue("1234567é9".into()));
    let cut = || attribute("a-long-k", Value::StringValue("1234567".into()));
    let decorate = |attribute: &dyn Fn() -> _| Span {
        attributes: vec![attribute()],
        events: vec![Event { attributes: vec![attribute()], ..Event::default() }],
        links: vec![Link { attributes: vec![attribute()], ..Link::default() }],
        ..span(1, 1, "the name of a span is no attribute")
    };
    server.client().await.export(request(&[decorate(&long)])).await.expect("accepted");
    let mut expected = request(&[decorate(&cut)]);
    // "service.name" = "shop"
    expected.resource_spans[0].resource.as_mut().expect("resource").attributes[0].key.truncate(8);
    assert_eq!(server.log.requests(), [expected]);
    assert_eq!(server.metric("tempo_distributor_attributes_truncated_total", ""), 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_beyond_the_limit_is_cut_out_and_reported() {
    let server = Server::start(options(Limits { max_traces_per_user: 2, ..Limits::default() })).await;
    let mut client = server.client().await;
    let mut export = async |spans: &[Span]| {
        let response = client.export(request(spans)).await.expect("success").into_inner();
        response.partial_success.unwrap_or_default()
    };
    let none = ExportTracePartialSuccess::default();
    assert_eq!(export(&[span(1, 1, "a"), span(2, 2, "b")]).await, none);
    let partial = export(&[span(3, 3, "no"), span(1, 4, "c"), span(3, 5, "no"), span(4, 6, "no")]).await;
    assert_eq!(partial.rejected_spans, 3);
    assert_eq!(
        partial.error_message,
        "3 spans of 2 new traces refused: max live traces exceeded for user single-tenant (max_traces_per_user 2)"
    );
    assert_eq!(export(&[span(3, 3, "no")]).await.rejected_spans, 1);
    assert_eq!(server.log.span_names(), ["a", "b", "c"]);
    let counts = SPAN_REASONS.map(|reason| server.metric("tempo_discarded_spans_total", reason));
    assert_eq!(counts, [4.0, 0.0, 0.0]);
    assert_eq!(server.metric("tempo_receiver_accepted_spans", "grpc"), 7.0, "the request succeeded");
    assert_eq!(server.metric("rubato_ingest_live_traces", ""), 2.0);
    server.clock.advance(Duration::from_secs(6));
    assert_eq!(export(&[span(3, 3, "d")]).await, none, "the others are idle now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_too_large_is_cut_out_and_reported() {
    let server = Server::start(options(Limits { max_bytes_per_trace: 500, ..Limits::default() })).await;
    let large = |id| span(1, id, &"x".repeat(300));
    let body = |id| request(&[large(id), span(2, 1, "small")]).encode_to_vec();
    let first = server.post("application/x-protobuf", "", &body(1)).await;
    assert_eq!((first.status, first.body.len()), (200, 0));
    let json =
        r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"09090909090909090909090909090901","spanId":"0100000000000002","name":""#;
    let json = format!("{json}{}\"}}]}}]}}]}}", "x".repeat(300));
    let answer = server.post("application/json", "", json.as_bytes()).await;
    assert_eq!(answer.status, 200);
    let partial = &answer.json()["partialSuccess"];
    assert_eq!(partial["rejectedSpans"], "1");
    assert_eq!(
        partial["errorMessage"],
        "1 spans of 1 traces refused: trace too large for user single-tenant (max_bytes_per_trace 500, trace \
         09090909090909090909090909090901)"
    );
    assert_eq!(server.log.records.lock().len(), 1, "nothing was left to store");
    assert_eq!(server.post("application/x-protobuf", "", &body(3)).await.status, 200);
    assert_eq!(server.log.span_names()[1..], ["small", "small"]);
    assert_eq!(server.metric("tempo_discarded_spans_total", "trace_too_large"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_full_log_is_not_counted_twice() {
    let server = Server::start(options(Limits { max_bytes_per_trace: 500, ..Limits::default() })).await;
    let mut client = server.client().await;
    *server.log.failure.lock() = Some(storage::wal::AppendError::Closed);
    for _ in 0..3 {
        client.export(request(&[span(1, 1, &"x".repeat(300))])).await.expect_err("refused");
    }
    *server.log.failure.lock() = None;
    let response = client.export(request(&[span(1, 1, &"x".repeat(300))])).await.expect("accepted");
    assert!(response.into_inner().partial_success.is_none());
    assert_eq!(server.log.records.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_bounded_and_idle_ones_forgotten() {
    let mut options = Options { multitenancy: true, ..Options::default() };
    options.distributor.max_tenants = 2;
    let server = Server::start(options).await;
    let body = request(&[span(1, 1, "a")]).encode_to_vec();
    let post = async |tenant: &str| {
        let head = format!("POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf\r\nx-scope-orgid: {tenant}");
        server.raw(&head, &body).await.status
    };
    assert_eq!([post("a").await, post("b").await, post("c").await, post("a").await], [200, 200, 429, 200]);
    assert_eq!(server.metric("tempo_discarded_spans_total", "too_many_tenants"), 1.0);
    server.clock.advance(Duration::from_secs(4000));
    assert_eq!(post("c").await, 200);
    assert_eq!(server.metric("tempo_distributor_spans_received_total", "a"), 0.0, "its series are gone");
    assert_eq!(server.metric("tempo_distributor_spans_received_total", "c"), 1.0);
}

proptest! {
    /// What is stored is what a list of live traces, scanned for every span, would let pass: the same spans in the same order, with their
    /// resources; and what is not stored is reported.
    #[test]
    fn what_is_cut_out_agrees_with_a_scan(
        pushes in vec((0u64..3, vec(vec((0u8..6, 0u8..3), 0..6), 1..4)), 1..20),
        max_traces in 1u64..5,
    ) {
        let limits = Limits { max_traces_per_user: max_traces, ..Limits::default() };
        let overrides = SharedOverrides::new(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() });
        let log = Arc::new(MemoryLog::default());
        let clock = ManualClock::new(NOW);
        let settings = IngesterSettings { trace_idle_period: Duration::from_secs(8), ..IngesterSettings::default() };
        let (log_of, overrides_of, registry) = (Arc::<MemoryLog>::clone(&log), Arc::new(overrides.clone()), Registry::new());
        let ingester = Ingester::new(settings, log_of, overrides_of, None, Arc::new(clock.clone()), &registry);
        let sink = Sink::Local(ingester.expect("fresh registry"));
        let clock_of = Arc::new(clock.clone());
        let distributor = Distributor::new(DistributorSettings::default(), sink, Arc::new(overrides), clock_of, &registry);
        let distributor = distributor.expect("fresh registry");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let mut last_push: HashMap<u8, u64> = HashMap::new();
        let (mut now, mut expected, mut number) = (0, Vec::new(), 0);
        for (pause, groups) in pushes {
            now += pause;
            clock.advance(Duration::from_secs(pause));
            let mut sent = ExportTraceServiceRequest::default();
            let (mut refused, mut accepted) = (0, 0);
            for spans in groups {
                let mut group = request(&[]);
                for (trace, id) in spans {
                    number += 1;
                    let name = format!("{number}");
                    group.resource_spans[0].scope_spans[0].spans.push(span(trace, id + 1, &name));
                    let live = |last: &u64| now - last <= 8;
                    let is_full = last_push.values().filter(|last| live(last)).count() as u64 >= max_traces;
                    if is_full && !last_push.get(&trace).is_some_and(live) {
                        refused += 1;
                    } else {
                        last_push.insert(trace, now);
                        accepted += 1;
                        expected.push(name);
                    }
                }
                sent.resource_spans.append(&mut group.resource_spans);
            }
            let pushed = runtime.block_on(distributor.push(&Tenant::single(), Bytes::from(sent.encode_to_vec()))).expect("success");
            prop_assert_eq!((pushed.accepted_spans, pushed.rejected.map_or(0, |rejected| rejected.spans)), (accepted, refused));
        }
        prop_assert_eq!(log.span_names(), expected);
        let resources = log.requests().into_iter().flat_map(|stored| stored.resource_spans).map(|group| group.resource);
        prop_assert!(resources.into_iter().all(|resource| resource == request(&[]).resource_spans[0].resource));
    }
}
