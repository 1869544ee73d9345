//! The gRPC service without a network.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use regex::Regex;
use tonic::{Code, Status};

use super::{errors::Stuck, *};
use crate::{
    engine::{Condition, SearchRequest},
    grpc::{StreamingQueries, streaming_queries},
    proto::{self, streaming_querier_server::StreamingQuerier as _},
    traceql,
};

impl World {
    fn streaming(&self) -> StreamingQueries {
        streaming_queries(self.local_engine(), self.api.clone())
    }
}

fn request(query: &str) -> tonic::Request<proto::SearchRequest> {
    tonic::Request::new(proto::SearchRequest { query: query.to_owned(), ..proto::SearchRequest::default() })
}

async fn search(service: &StreamingQueries, request: tonic::Request<proto::SearchRequest>) -> Result<Vec<proto::SearchResponse>, Status> {
    let mut stream = service.search(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.next().await {
        messages.push(message?);
    }
    Ok(messages)
}

#[tokio::test]
async fn what_was_sent_before_is_in_the_final_message_again() {
    let world = World::new();
    for number in 1..=5u64 {
        world.cut(&Tenant::single(), vec![service("a", vec![span(number.into(), number, 0, "x", 100 * number)])]).await;
    }
    world.receive(&Tenant::single(), shop());
    let query = traceql::parse("{}").expect("valid");
    let asked = SearchRequest { condition: Condition::TraceQl(query), range: None, limit: 20, spans_per_spanset: 3 };
    let engine = world.local_engine();
    let messages: Vec<_> = engine.search_stream(vec![Tenant::single()], asked.clone(), Duration::ZERO).collect().await;
    let messages: Vec<_> = messages.into_iter().map(|message| message.expect("no error")).collect();
    let (last, differences) = messages.split_last().expect("a final message, always");
    assert_eq!(last, &engine.search(&[Tenant::single()], asked).await.expect("no error"));
    assert_eq!(last.traces.len(), 6);
    assert!(!differences.is_empty());
    let sent: Vec<_> = differences.iter().flat_map(|difference| &difference.traces).collect();
    assert!(sent.iter().all(|trace| last.traces.contains(trace)), "what was sent is final");
    assert_eq!(sent.iter().map(|trace| &trace.trace_id).collect::<BTreeSet<_>>().len(), sent.len(), "and sent once");
    let done: Vec<_> = messages.iter().map(|message| message.metrics.as_ref().expect("metrics, always").completed_jobs).collect();
    assert!(done.is_sorted() && done.last() == Some(&6), "{done:?}");
}

#[tokio::test]
async fn denied_urls_are_denied_here_too() {
    let mut world = World::new();
    world.api.http_api_prefix = "/tempo".to_owned();
    world.api.url_deny_list = vec![Regex::new("^/tempo/api/search\\?.*limit=9{3}").expect("regex")];
    let denied = tonic::Request::new(proto::SearchRequest { query: "{}".to_owned(), limit: 999, ..proto::SearchRequest::default() });
    let status = search(&world.streaming(), denied).await.expect_err("denied");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("Invalid request /tempo/api/search?q=%7B%7D&limit=999. "), "{status}");
    assert_eq!(search(&world.streaming(), request("{}")).await.expect("not denied").len(), 1);
}

#[tokio::test]
async fn recent_data_that_cannot_be_read_is_an_internal_error() {
    let world = World::new();
    *world.recent.failure.lock() = Some(RecentError { cause: "workers are starting".to_owned() });
    let status = search(&world.streaming(), request("{}")).await.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::Internal, "cannot guarantee complete results: workers are starting"));
}

#[tokio::test]
async fn calls_end_when_their_time_is_over_or_nobody_waits() {
    let world = World::new();
    for (api_timeout, result) in [(Duration::from_millis(20), "canceled"), (Duration::ZERO, "canceled")] {
        let (clock, registry) = (Arc::new(world.clock.clone()), Registry::new());
        let engine = Engine::new(Settings::default(), world.store.clone(), world.blocklist.clone(), Arc::new(Stuck), clock, &registry);
        let settings = ApiSettings { api_timeout, ..ApiSettings::default() };
        let service = streaming_queries(Arc::new(engine.expect("new")), settings);
        let mut stream = service.search(request("{}")).await.expect("a stream").into_inner();
        if api_timeout.is_zero() {
            assert!(futures::poll!(stream.next()).is_pending());
        } else {
            let status = stream.next().await.expect("an error").expect_err("late");
            assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
            assert!(stream.next().await.is_none());
        }
        drop(stream);
        let families = registry.gather();
        let queries = families.iter().find(|family| family.name() == "tempo_query_frontend_queries_total").expect("metric");
        let results: Vec<_> = queries.get_metric().iter().map(|metric| metric.get_label()[1].value().to_owned()).collect();
        assert_eq!(results, [result]);
    }
}
