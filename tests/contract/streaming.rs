//! gRPC: what Grafana streams, on the port of HTTP and on its own.

use std::collections::BTreeMap;

use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::{
    CHECKOUT_ID, Fixture, SHOP, TICKS, of_tenant,
    protocols::{
        grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
        tempopb::{
            SearchRequest, SearchResponse, SearchTagValuesRequest, SearchTagsRequest, TraceSearchMetadata,
            streaming_querier_client::StreamingQuerierClient,
        },
    },
    strict,
};
use crate::harness::server::{Config, Server};

/// All messages of a stream.
async fn messages<M>(mut stream: Streaming<M>) -> Result<Vec<M>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn search(client: &mut StreamingQuerierClient<Channel>, request: Request<SearchRequest>) -> Result<Vec<SearchResponse>, Status> {
    messages(client.search(request).await?.into_inner()).await
}

impl Fixture {
    fn searching(&self, query: &str) -> SearchRequest {
        let [start, end] = self.seconds();
        SearchRequest { query: query.to_owned(), start, end, ..SearchRequest::default() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn save_and_test_searches_for_anything() {
    let fixture = Fixture::get().await;
    let echo = fixture.server.client().get("/api/echo").await.expect("an answer");
    assert_eq!((echo.status, echo.text().as_str()), (200, "echo\n"), "without a tenant");
    let request = SearchRequest { limit: 1, ..fixture.searching("{}") };
    let answer = search(&mut fixture.streaming(), of_tenant(SHOP, request)).await.expect("no error");
    assert_eq!(answer.last().map(|last| last.traces.len()), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ports_answer() {
    let fixture = Fixture::get().await;
    for url in [fixture.server.url(), fixture.server.grpc_url()] {
        let channel = Channel::from_shared(url).expect("a URL").connect().await.expect("a connection");
        let answer =
            search(&mut StreamingQuerierClient::new(channel.clone()), of_tenant(SHOP, fixture.searching("{ status = error }"))).await;
        assert_eq!(answer.expect("no error").last().map(|last| last.traces.len()), Some(1));
        let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("an answer");
        assert_eq!(health.into_inner().status(), ServingStatus::Serving);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_takes_grpc_only_when_told_to() {
    let server = Server::start(Config::without_blocks()).await;
    let client = |url: String| StreamingQuerierClient::new(Channel::from_shared(url).expect("a URL").connect_lazy());
    search(&mut client(server.grpc_url()), Request::new(SearchRequest::default())).await.expect("an answer");
    search(&mut client(server.url()), Request::new(SearchRequest::default())).await.expect_err("HTTP only");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_the_health_hears_of_the_end() {
    let mut server = Server::start(Config { more: "shutdown_delay: 2s", ..Config::without_blocks() }).await;
    let channel = Channel::from_shared(server.grpc_url()).expect("a URL").connect().await.expect("a connection");
    let mut health = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(health.message().await.expect("no error").expect("how it is now").status(), ServingStatus::Serving);
    let heard = tokio::spawn(async move { messages(health).await });
    let status = server.terminate().await;
    assert!(status.success(), "it does not wait for who watches: {status}");
    let heard = heard.await.expect("no panic").expect("an end, and no error");
    assert_eq!(heard.iter().map(|answer| answer.status()).collect::<Vec<_>>(), [ServingStatus::NotServing]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_final_message_is_what_http_answers() {
    let fixture = Fixture::get().await;
    fixture.wait_for_blocks().await;
    for (q, spss) in [("{}", 0), ("{ status = error }", 3), ("{ resource.service.name =~ \"shop.*|payments\" } | select(name)", 1)] {
        let request = SearchRequest { limit: 50, spans_per_span_set: spss, ..fixture.searching(q) };
        let streamed = search(&mut fixture.streaming(), of_tenant(SHOP, request)).await.expect("no error");
        let last = streamed.last().expect("a final message, always");
        let spss = spss.to_string();
        let asked = fixture.search_with(q, &[("limit", "50"), ("spss", &spss)]).await;
        assert_eq!(last.traces.iter().map(summary).collect::<Vec<_>>(), asked.iter().map(told).collect::<Vec<_>>(), "{q}");
        let metrics = last.metrics.as_ref().expect("metrics, always");
        assert!(metrics.completed_jobs <= metrics.total_jobs && metrics.total_jobs > 0, "{metrics:?}");
    }
}

type Summary = (String, String, u64, u32, Vec<(u32, Vec<String>)>);

fn summary(trace: &TraceSearchMetadata) -> Summary {
    let sets = trace.span_sets.iter().map(|set| (set.matched, set.spans.iter().map(|span| span.span_id.clone()).collect())).collect();
    (trace.trace_id.clone(), trace.root_trace_name.clone(), trace.start_time_unix_nano, trace.duration_ms, sets)
}

fn told(trace: &strict::Trace) -> Summary {
    let sets = trace.span_sets.iter().map(|set| (set.matched, set.spans.iter().map(|span| span.span_id.clone()).collect())).collect();
    (trace.trace_id.clone(), trace.root_trace_name.clone(), trace.start_time_unix_nano, trace.duration_ms, sets)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_merge_to_the_answer() {
    // As Grafana does: by id, over all messages.
    let fixture = Fixture::get().await;
    let request = SearchRequest { limit: 200, ..fixture.searching("{}") };
    let streamed = search(&mut fixture.streaming(), of_tenant(SHOP, request)).await.expect("no error");
    let mut merged: BTreeMap<String, TraceSearchMetadata> = BTreeMap::new();
    for trace in streamed.iter().flat_map(|message| &message.traces) {
        merged.entry(trace.trace_id.clone()).or_insert_with(|| trace.clone());
    }
    assert_eq!(merged.len(), usize::from(TICKS) + 3);
    assert_eq!(streamed.last().expect("a final message").traces.len(), usize::from(TICKS) + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_is_a_message_too() {
    let fixture = Fixture::get().await;
    let streamed = search(&mut fixture.streaming(), of_tenant(SHOP, fixture.searching("{ name = \"nothing\" }"))).await.expect("no error");
    let last = streamed.last().expect("a final message, always");
    assert!(last.traces.is_empty() && last.metrics.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tags_are_searched_for() {
    let fixture = Fixture::get().await;
    let tags = [("service.name", "pay"), ("customer", "alice")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let [start, end] = fixture.seconds();
    let request = SearchRequest { tags: tags.into(), min_duration_ms: 100, start, end, ..SearchRequest::default() };
    let streamed = search(&mut fixture.streaming(), of_tenant(SHOP, request)).await.expect("no error");
    assert_eq!(streamed.last().expect("a final message").traces.iter().map(|trace| &trace.trace_id).collect::<Vec<_>>(), [CHECKOUT_ID]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_values_of_attributes_stream() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds();
    let mut client = fixture.streaming();
    let names = SearchTagsRequest { scope: "resource".to_owned(), start, end, ..SearchTagsRequest::default() };
    let first = messages(client.search_tags(of_tenant(SHOP, names.clone())).await.expect("a stream").into_inner()).await.expect("no error");
    let expected = ["deployment.environment", "k8s.pod.name", "service.name"];
    assert_eq!(first.last().expect("a final message").tag_names, expected);
    let second = messages(client.search_tags_v2(of_tenant(SHOP, names)).await.expect("a stream").into_inner()).await.expect("no error");
    assert_eq!(second.last().expect("a final message").scopes[0].tags, expected);

    let query = "{ status = error }".to_owned();
    let values = |tag_name: &str| {
        let request = SearchTagValuesRequest { tag_name: tag_name.to_owned(), query: query.clone(), start, end, ..Default::default() };
        of_tenant(SHOP, request)
    };
    let stream = client.search_tag_values(values("http.status_code")).await.expect("a stream").into_inner();
    assert_eq!(messages(stream).await.expect("no error").last().expect("a final message").tag_values, ["200", "500"]);
    let stream = client.search_tag_values_v2(values("span.http.status_code")).await.expect("a stream").into_inner();
    let typed = messages(stream).await.expect("no error").last().expect("a final message").tag_values.clone();
    assert_eq!(typed.iter().map(|value| (value.r#type.as_str(), value.value.as_str())).collect::<Vec<_>>(), [("int", "500")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_a_code_and_the_words_of_http() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds();
    let mut client = fixture.streaming();
    for (request, code, text) in [
        (fixture.searching("{ .a = "), Code::InvalidArgument, "invalid TraceQL query: "),
        (SearchRequest { limit: 262_145, ..fixture.searching("{}") }, Code::InvalidArgument, "limit 262145 exceeds max limit 262144"),
        (
            SearchRequest { start: end, end: start, ..fixture.searching("{}") },
            Code::InvalidArgument,
            "http parameter start must be before end. received start=",
        ),
        (
            SearchRequest { start: end - 1_000_000, end, ..fixture.searching("{}") },
            Code::InvalidArgument,
            "range specified by start and end exceeds 168h0m0s. received start=",
        ),
    ] {
        let status = search(&mut client, of_tenant(SHOP, request)).await.expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(text), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_must_be_named_exactly_once() {
    let fixture = Fixture::get().await;
    let mut client = fixture.streaming();
    let mut twice = of_tenant(SHOP, fixture.searching("{}"));
    twice.metadata_mut().append("x-scope-orgid", SHOP.parse().expect("a header"));
    for request in [Request::new(fixture.searching("{}")), twice] {
        let status = search(&mut client, request).await.expect_err("refused");
        assert_eq!((status.code(), status.message()), (Code::Unknown, "no org id"));
    }
    let status = search(&mut client, of_tenant("a/b", fixture.searching("{}"))).await.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "tenant ID 'a/b' contains unsupported character '/'"));
    let both = search(&mut client, of_tenant("shop|audit", fixture.searching("{ name = \"record\" }"))).await.expect("no error");
    assert_eq!(both.last().map(|last| last.traces.len()), Some(1));
    // What else Grafana sends along.
    let mut request = of_tenant(SHOP, fixture.searching("{ status = error }"));
    request.metadata_mut().insert("authorization", "Basic dTpw".parse().expect("a header"));
    assert_eq!(search(&mut client, request).await.expect("no error").last().map(|last| last.traces.len()), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_come_in_packets() {
    let config = Config { more: "query_frontend: {max_grpc_streaming_packet_size: 600}", ..Config::without_blocks() };
    let server = Server::start(config).await;
    let body = prost::Message::encode_to_vec(&opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest {
        resource_spans: super::ticks(crate::harness::now_ns() - 60 * super::SECOND),
    });
    server.client().export(body, None).await.expect("acknowledged");
    let channel = Channel::from_shared(server.grpc_url()).expect("a URL").connect_lazy();
    let request = SearchRequest { limit: 200, ..SearchRequest::default() };
    let packets = search(&mut StreamingQuerierClient::new(channel), Request::new(request)).await.expect("no error");
    assert!(packets.len() > 2, "{}", packets.len());
    for packet in &packets {
        assert!(packet.metrics.is_some());
        assert!(prost::Message::encoded_len(packet) <= 600 || packet.traces.len() == 1);
    }
    let ids: std::collections::BTreeSet<_> = packets.iter().flat_map(|packet| &packet.traces).map(|trace| &trace.trace_id).collect();
    assert_eq!(ids.len(), usize::from(TICKS));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_measured_by_their_method() {
    let fixture = Fixture::get().await;
    search(&mut fixture.streaming(), of_tenant(SHOP, fixture.searching("{}"))).await.expect("no error");
    search(&mut fixture.streaming(), of_tenant(SHOP, fixture.searching("{"))).await.expect_err("refused");
    let name = "tempo_request_duration_seconds_count";
    for status in ["success", "error"] {
        let labels = ["method=\"gRPC\"", "route=\"/tempopb.StreamingQuerier/Search\"", &format!("status_code=\"{status}\"")];
        let count = || async { Some(fixture.server.client().metric(name, &labels).await).filter(|count| *count >= 1.0) };
        crate::harness::eventually(status, count).await;
    }
}
