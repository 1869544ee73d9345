//! `tempopb.Querier` without a network: what a querier of Tempo hears of recent data.

use tonic::{Code, Request};

use super::*;
use crate::{
    grpc::{RecentQueries, recent_queries},
    proto::{self, querier_server::Querier as _},
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
async fn paths_below_querier_answer_for_one_tenant() {
    let mut world = World::new();
    (world.api.multitenancy_enabled, world.api.http_api_prefix) = (true, "/tempo".to_owned());
    world.receive(&Tenant::new("a").expect("a tenant"), shop());
    let router = world.router();
    for path in [
        format!("/api/traces/{SHOP_HEX}"),
        format!("/api/v2/traces/{SHOP_HEX}"),
        "/api/search".to_owned(),
        "/api/search/tags".to_owned(),
        "/api/v2/search/tags".to_owned(),
        "/api/search/tag/name/values".to_owned(),
        "/api/v2/search/tag/name/values".to_owned(),
        format!("/api/metrics/query_range?q={}&start={}&end={NOW}", encoded("{} | rate()"), NOW - 60),
    ] {
        let ask =
            async |below: &str, tenants: &str| get_with(&router, &format!("{below}/tempo{path}"), &[("x-scope-orgid", tenants)]).await;
        assert_eq!(ask("/querier", "a").await.ok(), ask("", "a").await.ok(), "{path}");
        assert_eq!(ask("", "a|b").await.status, StatusCode::OK, "{path}");
        let several = ask("/querier", "a|b").await;
        assert_eq!((several.status.as_u16(), several.text()), (400, "multiple org IDs present"), "{path}");
    }
    assert_eq!(get_with(&router, "/tempo/querier/api/search", &[("x-scope-orgid", "a")]).await.status, StatusCode::NOT_FOUND);
}
