//! Realistic traces, split over requests, recent data and blocks: what the API says must be what the generator knows.

use opentelemetry_proto::tonic::trace::v1::TracesData;
use storage::synthetic::{self, Totals};

use super::*;

/// A hundred traces; requests go to recent data and three blocks in turn, so many traces lie in two places.
async fn world() -> (World, Totals) {
    let mut world = World::new();
    world.limits.max_bytes_per_trace = 0;
    let settings =
        synthetic::Settings { base_time_ns: (NOW - 600) * 1_000_000_000, spans_per_request: 120, ..synthetic::Settings::default() };
    let (bodies, totals) = synthetic::requests_with(settings, 100);
    let tenant = Tenant::single();
    for place in 0..4 {
        let here = bodies.iter().enumerate().filter(|(position, _)| position % 4 == place);
        let spans = here.flat_map(|(_, body)| TracesData::decode(body.clone()).expect("valid").resource_spans).collect();
        if place == 0 {
            world.receive(&tenant, spans);
        } else {
            world.cut(&tenant, spans).await;
        }
    }
    (world, totals)
}

#[tokio::test]
async fn searches_count_what_was_sent() {
    let (world, totals) = world().await;
    let router = world.router();
    let search = async |query: &str| get(&router, &format!("/api/search?limit=1000&q={}", encoded(query))).await.json();
    let sum = |answer: &serde_json::Value, count: fn(&serde_json::Value) -> u64| -> u64 {
        answer["traces"].as_array().expect("traces").iter().map(count).sum()
    };
    let matched = |trace: &serde_json::Value| trace["spanSet"]["matched"].as_u64().unwrap_or(0);

    let all = search("{}").await;
    assert_eq!(sum(&all, |_| 1), totals.traces);
    assert_eq!(sum(&all, matched), totals.spans);
    let mut services: BTreeMap<String, u64> = BTreeMap::new();
    for trace in all["traces"].as_array().expect("traces") {
        for (service, stats) in trace["serviceStats"].as_object().expect("services") {
            *services.entry(service.clone()).or_default() += stats["spanCount"].as_u64().unwrap_or(0);
        }
    }
    let expected: BTreeMap<String, u64> = totals.services.iter().map(|(service, spans)| ((*service).to_owned(), *spans)).collect();
    assert_eq!(services, expected);
    assert_eq!(sum(&search("{ status = error }").await, matched), totals.errors);
    for (service, spans) in &totals.services {
        let found = search(&format!("{{ resource.service.name = \"{service}\" }}")).await;
        assert_eq!(sum(&found, matched), *spans, "{service}");
    }
}

#[tokio::test]
async fn tags_list_what_was_sent() {
    let (world, totals) = world().await;
    let router = world.router();
    for (tag, expected) in [("resource.service.name", totals.services.keys().collect::<Vec<_>>()), ("name", totals.names.keys().collect())]
    {
        let answer = get(&router, &format!("/api/v2/search/tag/{tag}/values")).await.json();
        let values: Vec<_> =
            answer["tagValues"].as_array().expect("values").iter().map(|value| value["value"].as_str().expect("text")).collect();
        assert_eq!(values, expected.into_iter().copied().collect::<Vec<_>>(), "{tag}");
    }
}

#[tokio::test]
async fn every_trace_comes_back_whole() {
    let (world, totals) = world().await;
    let router = world.router();
    let all = get(&router, "/api/search?limit=1000&q=%7B%7D").await.json();
    let mut spans = 0;
    for trace in all["traces"].as_array().expect("traces").iter().step_by(7) {
        let id = trace["traceID"].as_str().expect("id");
        let found = get_with(&router, &format!("/api/traces/{id}"), &[("accept", "application/protobuf")]).await;
        let whole = TracesData::decode(found.body).expect("protobuf");
        let count: usize = whole.resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum();
        assert_eq!(Some(count as u64), trace["spanSet"]["matched"].as_u64(), "{id}");
        spans += count as u64;
    }
    assert!(spans > 0 && spans < totals.spans);
}
