//! The gRPC service without a network.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use regex::Regex;
use tonic::{Code, Status};

use super::{errors::Stuck, *};
use crate::{
    QueryError,
    engine::{Condition, SearchRequest},
    grpc::{StreamingQueries, streaming_queries},
    job::{Answer, Job, QueryId, Runner},
    proto::{self, streaming_querier_server::StreamingQuerier as _},
    traceql,
    traceql_metrics::{Asked, MetricsLimits, MetricsRequest},
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
async fn samples_that_were_sent_are_final_and_come_newest_first() {
    let world = World::new();
    let tenant = Tenant::single();
    for number in 1..=6u64 {
        // Blocks whose times touch each other, and two names of which one is in every second block only.
        let name = if number % 2 == 0 { "even" } else { "odd" };
        let spans = (0..5).map(|at| span(number.into(), 10 * number + at, 0, name, 20 * number + 6 * at)).collect();
        world.cut(&tenant, vec![service("a", spans)]).await;
    }
    world.receive(&tenant, shop());
    let query = Arc::new(traceql::parse("{} | count_over_time() by (name)").expect("valid"));
    let asked = Asked { start: (NOW - 300) * 1_000_000_000, end: NOW * 1_000_000_000, step: Some(10_000_000_000), ..Asked::default() };
    let request = Arc::new(MetricsRequest::new(query, asked, MetricsLimits::default()).expect("valid"));
    let engine = world.local_engine();
    let messages: Vec<_> = engine.query_range_stream(vec![tenant.clone()], Arc::clone(&request), Duration::ZERO).collect().await;
    let messages: Vec<_> = messages.into_iter().map(|message| message.expect("no error")).collect();
    let (last, differences) = messages.split_last().expect("a final message, always");
    assert_eq!(last, &engine.query_range(std::slice::from_ref(&tenant), Arc::clone(&request)).await.expect("no error"));
    let count: f64 = last.series.iter().flat_map(|series| &series.samples).map(|sample| sample.value).sum();
    assert!((count - 33.0).abs() < 1e-9, "every span, once: {count}");

    let samples = |answer: &proto::QueryRangeResponse| {
        let of = |series: &proto::TimeSeries| {
            let labels = format!("{:?}", series.labels);
            series.samples.iter().map(move |sample| ((labels.clone(), sample.timestamp_ms), sample.value)).collect::<Vec<_>>()
        };
        answer.series.iter().flat_map(of).collect::<Vec<_>>()
    };
    let whole: BTreeMap<_, _> = samples(last).into_iter().collect();
    let (mut sent, mut oldest) = (BTreeMap::new(), i64::MAX);
    for (key, value) in differences.iter().flat_map(samples) {
        assert_eq!(whole.get(&key), Some(&value), "{key:?} will not change");
        assert_eq!(sent.insert(key, value), None, "and is sent once");
    }
    for difference in differences.iter().filter(|difference| !difference.series.is_empty()) {
        let times = || samples(difference).into_iter().map(|((_, time), _)| time);
        assert!(times().max() < Some(oldest), "time runs backwards");
        oldest = times().min().expect("samples");
    }
    assert!(sent.len() > 10, "most are known before the end: {}", sent.len());
    let second: Vec<_> = {
        let query = Arc::new(traceql::parse("{} | rate() by (name) | topk(1)").expect("valid"));
        let request = Arc::new(MetricsRequest::new(query, asked, MetricsLimits::default()).expect("valid"));
        engine.query_range_stream(vec![tenant.clone()], request, Duration::ZERO).collect().await
    };
    let early = second[..second.len() - 1].iter().map(|message| message.as_ref().expect("no error"));
    assert!(
        early.clone().count() > 0 && early.clone().all(|message| message.series.is_empty() && message.metrics.is_some()),
        "all series choose"
    );

    let query = Arc::new(traceql::parse("{} | count_over_time()").expect("valid"));
    let request = Arc::new(MetricsRequest::new(query, Asked { instant: true, ..asked }, MetricsLimits::default()).expect("valid"));
    let instant: Vec<_> = engine.query_instant_stream(vec![tenant.clone()], request, Duration::ZERO).collect().await;
    let instant: Vec<_> = instant.into_iter().map(|message| message.expect("no error")).collect();
    let done: Vec<_> = instant.iter().map(|message| message.metrics.as_ref().expect("metrics, always").completed_jobs).collect();
    assert!(done.is_sorted() && done.len() > 1 && done.last() == Some(&7), "{done:?}");
    let (last, early) = instant.split_last().expect("a final message, always");
    assert!(early.iter().all(|message| message.series.is_empty()), "one that is not over");
    assert!((last.series[0].value - 33.0).abs() < 1e-9);
}

#[tokio::test]
async fn recent_data_that_is_missing_is_spoken_of() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let engine = world.engine(Arc::new(Lacking(world.units())));
    let router = router(Arc::clone(&engine), world.api.clone());
    let trace = get(&router, &format!("/api/v2/traces/{SHOP_HEX}")).await.json();
    assert_eq!(trace["status"], "PARTIAL");
    assert_eq!(trace["message"], "Recent spans may be missing: not all processes that take spans in have answered");
    let metrics = get(&router, &format!("/api/metrics/query?q={}&start={}&end={NOW}", encoded("{} | rate()"), NOW - 120)).await.json();
    assert_eq!(metrics["status"], "PARTIAL");
    assert_eq!(metrics["message"], "recent spans are missing: not all processes that take spans in have answered");
    for url in ["/api/search", "/api/search/tags", "/api/v2/search/tag/name/values", &format!("/api/traces/{SHOP_HEX}")] {
        let answer = get(&router, url).await;
        let text = "cannot guarantee complete results: not all processes that take spans in have answered";
        assert_eq!((answer.status.as_u16(), answer.text()), (500, text), "{url} cannot say so otherwise");
    }
}

/// Says of all recent data that some is missing.
#[derive(Debug)]
struct Lacking(crate::Units);

#[async_trait]
impl Runner for Lacking {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        let is_recent = job.is_recent();
        let mut answer = self.0.run(query, tenant, job).await?;
        if is_recent {
            answer.lacks_recent();
        }
        Ok(answer)
    }
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
