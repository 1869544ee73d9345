//! `tempopb.Querier` without a network: what a querier of Tempo hears of recent data.

use tonic::{Code, Request};

use super::*;
use crate::{
    grpc::{RecentQueries, recent_queries},
    proto::{self, metrics_server::Metrics as _, querier_server::Querier as _},
};

impl World {
    /// As a process that takes spans in has it: without a list of blocks.
    fn asked_by_tempo(&self) -> RecentQueries {
        let (clock, units) = (Arc::new(self.clock.clone()), Arc::new(self.units()));
        let engine = Engine::over(units, self.settings.clone(), Blocklist::new(), clock, &Registry::new()).expect("metrics are new");
        let api = ApiSettings { query_end_cutoff: Duration::from_secs(30), ..self.api.clone() };
        recent_queries(Arc::new(engine.with_overrides(Arc::new(self.limits))), api)
    }
}

fn of_tenant<M>(tenant: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", tenant.parse().expect("a header"));
    request
}

#[tokio::test]
async fn a_trace_is_what_is_recent_of_it() {
    let mut world = World::new();
    world.receive(&Tenant::single(), shop());
    world.cut(&Tenant::single(), vec![service("other", vec![span(SHOP, 9, 0, "in a block long ago", 30)])]).await;
    let asked = |id: &[u8], allow_partial_trace| {
        Request::new(proto::TraceByIdRequest { trace_id: id.to_vec(), allow_partial_trace, ..proto::TraceByIdRequest::default() })
    };
    let id = SHOP.to_be_bytes();
    let found = world.asked_by_tempo().find_trace_by_id(asked(&id, false)).await.expect("no error").into_inner();
    let spans = |found: &proto::TraceByIdResponse| {
        let resources = found.trace.iter().flat_map(|trace| &trace.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum::<usize>()
    };
    assert_eq!((spans(&found), found.status), (3, 0));
    let none = world.asked_by_tempo().find_trace_by_id(asked(&[1], false)).await.expect("no error").into_inner();
    assert!(none.trace.is_none() && none.metrics.is_some());
    let refused = world.asked_by_tempo().find_trace_by_id(asked(&[0; 17], false)).await.expect_err("no id");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "trace IDs can't be larger than 128 bits"));

    world.limits.max_bytes_per_trace = 100;
    let refused = world.asked_by_tempo().find_trace_by_id(asked(&id, false)).await.expect_err("too large");
    assert_eq!(refused.message(), "trace exceeds max size (max bytes: 100)");
    let part = world.asked_by_tempo().find_trace_by_id(asked(&id, true)).await.expect("no error").into_inner();
    assert_eq!(part.status, i32::from(proto::PartialStatus::Partial));
    assert_eq!(part.message, "Trace exceeds maximum size of 100 bytes, a partial trace is returned");
}

#[tokio::test]
async fn searches_see_recent_data_and_nothing_is_too_new() {
    let world = World::new();
    world.receive(&Tenant::single(), vec![service("shop", vec![span(7, 7, 0, "just now", 1)])]);
    world.cut(&Tenant::single(), vec![service("old", vec![span(8, 8, 0, "cut", 60)])]).await;
    let service = world.asked_by_tempo();
    let search = async |query: &str| {
        let request = proto::SearchRequest { query: query.to_owned(), ..proto::SearchRequest::default() };
        service.search_recent(Request::new(request)).await.map(|answer| answer.into_inner().traces)
    };
    let found: Vec<_> = search("{}").await.expect("no error").into_iter().map(|trace| trace.root_trace_name).collect();
    assert_eq!(found, ["just now"]);
    assert_eq!(search("{").await.expect_err("no query").code(), Code::InvalidArgument);
    let tags = proto::SearchRequest { tags: [("name".to_owned(), "just".to_owned())].into(), ..proto::SearchRequest::default() };
    assert_eq!(service.search_recent(Request::new(tags)).await.expect("no error").into_inner().traces.len(), 1);
    let refused = service.search_block(Request::new(proto::SearchBlockRequest::default())).await.expect_err("nobody asks so");
    assert_eq!(refused.message(), "SearchBlock not implemented in livestore");
}

#[tokio::test]
async fn names_and_values_are_of_recent_data() {
    let mut world = World::new();
    world.api.multitenancy_enabled = true;
    let tenant = Tenant::new("a").expect("a tenant");
    world.receive(&tenant, shop());
    let service = world.asked_by_tempo();
    let names = || of_tenant("a", proto::SearchTagsRequest { scope: "span".to_owned(), ..proto::SearchTagsRequest::default() });
    let expected = ["customer", "http.status_code"];
    assert_eq!(service.search_tags(names()).await.expect("no error").into_inner().tag_names, expected);
    let scopes = service.search_tags_v2(names()).await.expect("no error").into_inner().scopes;
    assert_eq!((scopes.len(), scopes[0].tags.as_slice()), (1, expected.map(str::to_owned).as_slice()));
    let values =
        |tag: &str| of_tenant("a", proto::SearchTagValuesRequest { tag_name: tag.to_owned(), ..proto::SearchTagValuesRequest::default() });
    assert_eq!(service.search_tag_values(values("customer")).await.expect("no error").into_inner().tag_values, ["alice"]);
    let typed = service.search_tag_values_v2(values("span.http.status_code")).await.expect("no error").into_inner().tag_values;
    assert_eq!(typed.iter().map(|value| (value.r#type.as_str(), value.value.as_str())).collect::<Vec<_>>(), [("int", "500")]);

    let nobody = service.search_tags(Request::new(proto::SearchTagsRequest::default())).await.expect_err("no tenant");
    assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "no org id"));
    let other = of_tenant("b", proto::SearchTagsRequest { scope: "span".to_owned(), ..proto::SearchTagsRequest::default() });
    assert!(service.search_tags(other).await.expect("no error").into_inner().tag_names.is_empty());
}

#[tokio::test]
async fn metrics_are_parts_over_recent_data() {
    let world = World::new();
    world.receive(&Tenant::single(), shop());
    let second = 1_000_000_000;
    let (start, end, step) = ((NOW - 80) * second, NOW * second, 40 * second);
    let query = "{} | avg_over_time(duration)".to_owned();
    let asked = proto::QueryRangeRequest { query, start, end, step, query_mode: "recent".to_owned(), ..Default::default() };
    let service = world.asked_by_tempo();
    let answer = service.query_range(Request::new(asked.clone())).await.expect("no error").into_inner();
    assert_eq!(answer.series.len(), 2, "the averages, and of how many values they are: {answer:?}");
    assert!(answer.series.iter().all(|series| series.samples.len() == 1));
    for (wrong, text) in [
        (proto::QueryRangeRequest { start: 0, ..asked.clone() }, "start required"),
        (proto::QueryRangeRequest { end: 0, ..asked.clone() }, "end required"),
        (proto::QueryRangeRequest { step: 0, ..asked.clone() }, "step required"),
        (proto::QueryRangeRequest { query: "{}".to_owned(), ..asked }, "not a metrics query"),
    ] {
        assert_eq!(service.query_range(Request::new(wrong)).await.expect_err(text).message(), text);
    }
}

impl World {
    fn querier(&self) -> Router {
        crate::querier_router(&self.local_engine(), self.store.clone(), &self.api).expect("metrics are new")
    }
}

/// The parameters of a job on a block: all that Tempo's frontend says, of row groups from `first`.
fn job(meta: &Meta, first: u32) -> String {
    format!(
        "start={}&end={NOW}&blockID={}&startPage={first}&pagesToSearch=10&size={}&indexPageSize=0&totalRecords={}&version={}&footerSize={}\
         &encoding=none&dc={}",
        NOW - 3600,
        meta.block_id,
        meta.size,
        meta.total_records,
        meta.format,
        meta.footer_size,
        encoded(r#"[{"scope":1,"name":"k8s.pod.name"}]"#)
    )
}

#[tokio::test]
async fn paths_below_querier_answer_for_one_tenant() {
    let mut world = World::new();
    (world.api.multitenancy_enabled, world.api.http_api_prefix) = (true, "/tempo".to_owned());
    world.receive(&Tenant::new("a").expect("a tenant"), shop());
    let router = world.querier();
    for path in [
        format!("/api/traces/{SHOP_HEX}"),
        format!("/api/v2/traces/{SHOP_HEX}"),
        "/api/search".to_owned(),
        "/api/search/tags".to_owned(),
        "/api/v2/search/tags".to_owned(),
        "/api/search/tag/name/values".to_owned(),
        "/api/v2/search/tag/name/values".to_owned(),
        format!("/api/metrics/query_range?mode=recent&step=60s&q={}&start={}&end={NOW}", encoded("{} | rate()"), NOW - 60),
    ] {
        let ask =
            async |below: &str, tenants: &str| get_with(&router, &format!("{below}/tempo{path}"), &[("x-scope-orgid", tenants)]).await;
        assert_eq!(ask("/querier", "a").await.status, StatusCode::OK, "{path}");
        let several = ask("/querier", "a|b").await;
        assert_eq!((several.status.as_u16(), several.text()), (400, "multiple org IDs present"), "{path}");
        assert_eq!(ask("", "a").await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn jobs_on_a_block_see_its_row_groups_and_nothing_else() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, vec![service("live", vec![span(7, 7, 0, "just now", 1)])]);
    world.cut(&tenant, vec![service("other", vec![span(8, 8, 0, "elsewhere", 90)])]).await;
    // Not on the list yet.
    let meta = world.write_block(&tenant, shop()).await;
    let router = world.querier();
    let job = job(&meta, 0);

    let all = encoded("{}");
    let found = get(&router, &format!("/querier/api/search?q={all}&limit=20&spss=3&{job}")).await.json();
    assert_eq!((found["traces"].as_array().map(Vec::len), &found["traces"][0]["traceID"]), (Some(1), &SHOP_HEX.into()));
    assert_eq!(found["metrics"].get("totalJobs"), None, "{found}");
    let beyond = get(&router, &format!("/querier/api/search?q={all}&{}", self::job(&meta, 1))).await.json();
    assert_eq!(beyond.get("traces"), None);
    let recent = get(&router, &format!("/querier/api/search?q={all}&limit=20&start={}&end={NOW}", NOW - 3600)).await.json();
    assert_eq!((recent["traces"].as_array().map(Vec::len), &recent["traces"][0]["rootServiceName"]), (Some(1), &"live".into()));

    let names = get(&router, &format!("/querier/api/v2/search/tags?{job}")).await.json();
    assert!(names["scopes"].as_array().is_some_and(|scopes| scopes.iter().all(|scope| scope["name"] != "intrinsic")), "{names}");
    let names = get(&router, &format!("/querier/api/search/tags?scope=span&{job}")).await.json();
    assert_eq!(names["tagNames"], serde_json::json!(["customer", "http.status_code"]));
    let values = get(&router, &format!("/querier/api/v2/search/tag/resource.service.name/values?{job}")).await.json();
    assert!(values["tagValues"].as_array().is_some_and(|values| values.iter().all(|value| value["value"] != "other")), "{values}");
    let values = get(&router, &format!("/querier/api/search/tag/customer/values?{job}")).await.json();
    assert_eq!(values["tagValues"], serde_json::json!(["alice"]));

    // Exactly this name of the type, and no other.
    let accepted = [("accept", "application/protobuf")];
    let message = get_with(&router, &format!("/querier/api/search?q={all}&{job}"), &accepted).await;
    assert_eq!(proto::SearchResponse::decode(message.body).expect("a message").traces.len(), 1);
    let several = [("accept", "application/protobuf, application/json")];
    assert_eq!(get_with(&router, &format!("/querier/api/search?q={all}&{job}"), &several).await.json()["traces"][0]["traceID"], SHOP_HEX);
}

#[tokio::test]
async fn parts_of_metrics_queries_are_not_finished() {
    let world = World::new();
    let tenant = Tenant::single();
    let meta = world.write_block(&tenant, shop()).await;
    world.receive(&tenant, vec![service("live", vec![span(7, 7, 0, "just now", 30)])]);
    let router = world.querier();
    let second = 1_000_000_000;
    let (start, end) = ((NOW - 80) * second, NOW * second);
    let ask = async |query: &str, place: &str| {
        let range = format!("start={start}&end={end}&step=40s&exemplars=0&maxSeries=0");
        let block =
            format!("blockID={}&startPage=0&pagesToSearch=1&version=vParquet4&size=1&footerSize=1&encoding=none&dc=", meta.block_id);
        let place = if place.is_empty() { block } else { place.to_owned() };
        get(&router, &format!("/querier/api/metrics/query_range?q={}&{range}&{place}", encoded(query))).await
    };
    let series = |answer: &Answer| answer.json()["series"].as_array().cloned().unwrap_or_default();
    let label = |series: &serde_json::Value, at: usize| series["labels"][at]["key"].as_str().unwrap_or_default().to_owned();

    let counted = series(&ask("{} | count_over_time() | topk(1)", "").await);
    // Two intervals, (start, start + 40 s] and the next, and none in front of them.
    assert_eq!(
        counted[0]["samples"],
        serde_json::json!([{"timestampMs": ((NOW - 40) * 1000).to_string(), "value": 3},
        {"timestampMs": (NOW * 1000).to_string()}])
    );
    let recent = series(&ask("{} | count_over_time()", "mode=recent").await);
    assert_eq!(recent[0]["samples"][1]["value"], 1.0, "what is in the block is not recent");

    let buckets = series(&ask("{} | quantile_over_time(duration, .9)", "").await);
    assert!(buckets.len() > 1 && buckets.iter().all(|series| label(series, 0) == "__bucket"), "{buckets:?}");
    let averages = series(&ask("{} | avg_over_time(duration) by (name)", "").await);
    let counts = averages.iter().filter(|series| label(series, 1) == "__meta_type");
    assert_eq!((averages.len(), counts.count()), (6, 3), "{averages:?}");

    let refused = ask("{} | rate()", "mode=").await;
    assert_eq!(refused.text(), "invalid blockID: it is required unless mode is recent");
}

#[tokio::test]
async fn modes_of_a_trace_say_where_to_look() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, vec![service("live", vec![span(SHOP, 77, 0, "late", 1)])]);
    world.cut(&tenant, vec![service("first", vec![span(SHOP, 1, 0, "in a block", 60)])]).await;
    world.cut(&tenant, vec![service("second", vec![span(SHOP, 2, 0, "in another", 60)])]).await;
    let router = world.querier();
    let accepted = [("accept", "application/protobuf")];
    let names = async |version: &str, query: &str| {
        let answer = get_with(&router, &format!("/querier/api{version}/traces/{SHOP_HEX}?{query}"), &accepted).await;
        let message = proto::TraceByIdResponse::decode(answer.body).expect("a message");
        let resources = message.trace.into_iter().flat_map(|trace| trace.resource_spans);
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        let mut names: Vec<String> = spans.map(|span| span.name).collect();
        names.sort();
        (answer.status.as_u16(), names.join(","))
    };
    let expect = |names: &str| (200, names.to_owned());
    let first = "00000000000000000000000000000001";
    for version in ["", "/v2"] {
        assert_eq!(names(version, "mode=ingesters&blockStart=nonsense").await, expect("late"));
        assert_eq!(names(version, "mode=blocks").await, expect("in a block,in another"));
        let bounds = format!("mode=blocks&blockStart={first}&blockEnd={first}");
        assert_eq!(names(version, &bounds).await, expect("in a block"));
        assert_eq!(names(version, &format!("blockEnd={first}")).await, expect("in a block,late"));
    }
    let nothing = "mode=blocks&blockStart=ff000000-0000-0000-0000-000000000000";
    assert_eq!(names("", nothing).await, (404, String::new()));
    assert_eq!(names("/v2", nothing).await, expect(""));
    let external = get(&router, &format!("/querier/api/v2/traces/{SHOP_HEX}?mode=external")).await;
    assert_eq!((external.status.as_u16(), external.text()), (500, "external endpoint: external mode is not enabled"));
}

#[tokio::test]
async fn jobs_that_make_no_sense_are_refused() {
    let world = World::new();
    let meta = world.write_block(&Tenant::single(), shop()).await;
    let router = world.querier();
    let whole = job(&meta, 0);
    let with = |name: &str, value: &str| {
        let pairs = whole.split('&').map(|pair| match pair.split_once('=') {
            Some((key, _)) if key == name => format!("{name}={value}"),
            _ => pair.to_owned(),
        });
        pairs.collect::<Vec<_>>().join("&")
    };
    for (name, value, text) in [
        ("end", "", "start and end required"),
        ("startPage", "x", "invalid startPage: parsing \"x\": invalid syntax"),
        ("startPage", "-1", "startPage must be non-negative. received: -1"),
        ("pagesToSearch", "0", "pagesToSearch must be greater than 0. received: 0"),
        ("blockID", "x", "invalid blockID: "),
        ("indexPageSize", "x", "invalid indexPageSize x: "),
        ("totalRecords", "0", "totalRecords must be greater than 0. received 0"),
        ("version", "", "version required"),
        ("size", "-", "invalid size -: "),
        ("footerSize", "y", "invalid footerSize y: "),
        ("dc", "{}", "invalid dc: "),
    ] {
        for path in ["search", "search/tags", "v2/search/tags", "search/tag/a/values", "v2/search/tag/.a/values"] {
            let refused = get(&router, &format!("/querier/api/{path}?{}", with(name, value))).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path} {name}: {}", refused.text());
            assert!(refused.text().starts_with(text), "{path} {name}: {}", refused.text());
        }
    }
    let gone = get(&router, &format!("/querier/api/search?{}", with("blockID", "00000000-0000-0000-0000-0000000000aa"))).await;
    assert_eq!(gone.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(gone.text().contains("00000000-0000-0000-0000-0000000000aa"), "{}", gone.text());
}
