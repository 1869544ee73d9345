//! Searches of the editor, the builder and old clients.

use std::collections::BTreeSet;

use prost::Message as _;
use storage::id::TraceId;

use super::{CHECKOUT_ID, Fixture, MILLISECOND, ORDER, SECOND, TICKS, protocols::tempopb::SearchResponse, service, span, strict, text};
use crate::harness::{client::Answer, now_ns};

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_told_as_a_whole() {
    let fixture = Fixture::get().await;
    let traces = fixture.search("{ status = error }").await;
    let [trace] = traces.as_slice() else { panic!("{traces:?}") };
    assert_eq!(trace.trace_id, CHECKOUT_ID, "without leading zeros");
    assert_eq!((trace.root_service_name.as_str(), trace.root_trace_name.as_str()), ("shop-backend", "GET /checkout"));
    assert_eq!((trace.start_time_unix_nano, trace.duration_ms), (fixture.base, 557));
    let stats = |service: &str| trace.service_stats[service].clone();
    assert_eq!(stats("shop-backend"), strict::ServiceStats { span_count: 2, error_count: 1 });
    assert_eq!(stats("payments"), strict::ServiceStats { span_count: 2, error_count: 0 });
    let [set] = trace.span_sets.as_slice() else { panic!("{trace:?}") };
    assert_eq!(trace.span_set.as_ref(), Some(set), "a copy, for one table of Grafana's");
    assert_eq!((set.matched, set.spans.len()), (1, 1));
    let span = &set.spans[0];
    assert_eq!((span.span_id.as_str(), span.name.as_str()), ("0000000000000002", ""), "the name was not asked for");
    assert_eq!((span.start_time_unix_nano, span.duration_nanos), (fixture.base + 35 * MILLISECOND, 446 * MILLISECOND));
    assert_eq!(span.attribute("status"), Some(&text("error")));
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_says_the_same_as_json() {
    let fixture = Fixture::get().await;
    let [start, end] = fixture.seconds();
    let path = format!("/api/search?q=%7Bstatus%3Derror%7D&start={start}&end={end}");
    let answer = fixture.client().get_as(&path, "application/protobuf").await;
    assert_eq!(answer.headers["content-type"], "application/protobuf");
    let answer = SearchResponse::decode(answer.body).expect("a SearchResponse");
    assert_eq!(answer.traces.len(), 1);
    assert_eq!(answer.traces[0].trace_id, CHECKOUT_ID);
    assert_eq!(answer.traces[0].span_sets[0].spans[0].span_id, "0000000000000002");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_come_without_scope_and_with_their_type() {
    let fixture = Fixture::get().await;
    let traces = fixture
        .search("{ span.customer = \"alice\" } | select(resource.service.name, span.http.status_code, span.retried, span.ratio, span.skus, kind, name)")
        .await;
    let span = traces.first().and_then(|trace| trace.spans().next()).expect("the span").clone();
    assert_eq!(span.name, "charge");
    assert_eq!(span.attribute("customer"), Some(&text("alice")));
    assert_eq!(span.attribute("service.name"), Some(&text("shop-backend")));
    assert_eq!(span.attribute("http.status_code"), Some(&strict::AnyValue::Int(500)));
    assert_eq!(span.attribute("retried"), Some(&strict::AnyValue::Bool(true)));
    assert_eq!(span.attribute("ratio"), Some(&strict::AnyValue::Double(0.5)));
    assert_eq!(span.attribute("kind"), Some(&text("client")));
    let skus = strict::Array { values: vec![text("a"), text("b")] };
    assert_eq!(span.attribute("skus"), Some(&strict::AnyValue::Array(skus)));
    assert!(span.attributes.iter().all(|attribute| !attribute.key.starts_with("span.") && !attribute.key.starts_with("resource.")));
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_are_left_out() {
    let fixture = Fixture::get().await;
    let traces = fixture.search("{ name = \"tick\" }").await;
    assert_eq!(traces.len(), usize::from(TICKS));
    assert!(traces.iter().all(|trace| trace.duration_ms == 0), "half a millisecond");
    // Of JSON, `strict` has checked it.
    let nothing = fixture.ask("/api/search", &[("q", "{ name = \"nothing\" }")]).await;
    assert!(nothing.json().get("traces").is_none() && nothing.json()["metrics"].is_object(), "{}", nothing.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_keeps_the_newest_newest_first() {
    let fixture = Fixture::get().await;
    let newest = |traces: &[strict::Trace]| traces.iter().map(|trace| trace.start_time_unix_nano).collect::<Vec<_>>();
    let expected: Vec<u64> = (0..u64::from(TICKS)).rev().map(|number| fixture.base + (3 + number) * SECOND).collect();
    let all = fixture.search_with("{}", &[]).await;
    assert_eq!(all.len(), 20, "unless another limit is given");
    assert_eq!(newest(&all), expected[..20]);
    for _ in 0..3 {
        assert_eq!(newest(&fixture.search_with("{}", &[("limit", "7")]).await), expected[..7], "whenever asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_a_set_are_limited_and_all_are_counted() {
    let fixture = Fixture::get().await;
    for (spss, shown) in [(&[][..], 3), (&[("spss", "1")], 1), (&[("spss", "0")], 3), (&[("spss", "100")], 4)] {
        let traces = fixture.search_with("{ resource.service.name =~ \"shop-backend|payments\" }", spss).await;
        let set = &traces[0].span_sets[0];
        assert_eq!((set.spans.len(), set.matched), (shown, 4), "{spss:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_have_a_set_each() {
    let fixture = Fixture::get().await;
    let traces = fixture.search("{ trace:rootName = \"GET /checkout\" } | by(resource.service.name) | count() > 1").await;
    let sets = &traces[0].span_sets;
    assert_eq!(sets.len(), 2);
    for set in sets {
        let keys: Vec<_> = set.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        assert_eq!(keys, ["by(resource.service.name)", "count()"]);
        assert_eq!(set.attributes[1].value, strict::AnyValue::Int(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_builder_writes_is_understood() {
    let fixture = Fixture::get().await;
    let ticks = usize::from(TICKS);
    // The trace without a service has an empty one.
    for (q, expected) in [
        ("{}", ticks + 3),
        ("{resource.service.name=\"worker\"}", 1),
        ("{(resource.service.name=\"worker\" || resource.service.name=\"payments\")}", 2),
        ("{resource.service.name!=\"clock\" && resource.service.name!=\"worker\"}", 2),
        ("{resource.service.name=~\"work.*|pay.*\"}", 2),
        ("{resource.service.name!~\"clock|worker\"}", 2),
        ("{.http.status_code=500}", 1),
        ("{span.http.status_code>=400}", 1),
        ("{name=\"tick\"}", ticks),
        ("{status=error}", 1),
        ("{kind=consumer && duration>1s}", 1),
        ("{traceDuration>500ms}", 2),
        ("{event.exception.type=\"IOError\"}", 1),
        ("{link:traceID=\"51515151515151515151515151515151\"}", 1),
        ("{instrumentation:name=\"by hand\" && status=error}", 1),
        ("{span.retried=true}", 1),
        ("{span.ratio<0.75}", 1),
    ] {
        assert_eq!(fixture.search(q).await.len(), expected, "{q}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_json_asks_too() {
    let fixture = Fixture::get().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let post = async |url: &str, body: &'static str| -> Answer {
        let request = client.post(format!("{}{url}", fixture.server.url())).header("Content-Type", "application/json").body(body);
        fixture.client().send(request).await.expect("an answer")
    };
    assert_eq!(strict::search(&post("/api/search", "{\"limit\": 20}").await).traces.len(), 20);
    let answer = post("/api/search", "{\"q\": \"{ status = error }\", \"limit\": \"5\"}").await;
    assert_eq!(strict::search(&answer).traces.len(), 1);
    assert_eq!(strict::search(&post("/api/search?limit=2", "{\"limit\": 20}").await).traces.len(), 2, "the URL goes before");
    let answer = post("/api/search", "{\"limit\": [1]}").await;
    assert_eq!((answer.status, answer.text().contains("limit")), (400, true), "{}", answer.text());
    assert_eq!(strict::search(&post("/api/search?limit=3", "q=%7B%7D").await).traces.len(), 3, "a form is ignored");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_old_clients_search_without_spans() {
    let fixture = Fixture::get().await;
    for (parameters, expected) in [
        (&[("tags", "service.name=pay")][..], 1),
        (&[("tags", "http.status_code=500 customer=alice")], 1),
        (&[("tags", "customer=\"ali\"")], 0),
        (&[("tags", "status.code=error")], 1),
        (&[("minDuration", "1s")], 1),
        (&[("tags", "name=tick"), ("maxDuration", "1ms"), ("limit", "5")], 5),
    ] {
        let traces = strict::search(&fixture.ask("/api/search", parameters).await).traces;
        assert_eq!(traces.len(), expected, "{parameters:?}");
        assert!(traces.iter().all(|trace| trace.span_sets.is_empty() && trace.span_set.is_none()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_seconds_or_since() {
    let fixture = Fixture::get().await;
    let ids = |answer: &Answer| strict::search(answer).traces.into_iter().map(|trace| trace.trace_id).collect::<BTreeSet<_>>();
    let query = ("q", "{ kind = consumer }");
    let client = fixture.client();
    let all = BTreeSet::from([ORDER.to_string()]);
    assert_eq!(ids(&client.query("/api/search", &[query, ("since", "1h")]).await), all);
    assert_eq!(ids(&client.query("/api/search", &[query]).await), all, "the last quarter of an hour at least");
    let [start, _] = fixture.seconds();
    let before = [query, ("start", &(start - 600).to_string()), ("end", &(start - 300).to_string())];
    assert_eq!(ids(&client.query("/api/search", &before).await), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_found_at_once() {
    let fixture = Fixture::get().await;
    // Of another tenant, so that the tests beside this one do not see it.
    for number in 1..=5u8 {
        let id = TraceId([number; 16]);
        let now = span(id, [u64::from(number), 0], 2, "fresh", now_ns(), 1000);
        fixture.export("fresh", vec![service("fresh", vec![now])]).await;
        let answer = fixture.server.client().with_tenant("fresh").query("/api/search", &[("q", "{ name = \"fresh\" }")]).await;
        let traces = strict::search(&answer).traces;
        assert_eq!(traces.len(), usize::from(number), "no blind 30 seconds");
        assert_eq!(traces[0].trace_id, id.to_string().trim_start_matches('0'));
    }
    let tags = fixture.server.client().with_tenant("fresh").query("/api/v2/search/tag/name/values", &[]).await;
    assert_eq!(strict::read::<strict::TypedTagValues>(&tags).tag_values.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tenants_are_searched_as_one() {
    let fixture = Fixture::get().await;
    let both = fixture.server.client().with_tenant("audit|shop");
    let traces = strict::search(&both.query("/api/search", &[("q", "{ name = \"record\" } || { name = \"charge\" }")]).await).traces;
    let [trace] = traces.as_slice() else { panic!("{traces:?}") };
    assert_eq!(trace.span_sets[0].matched, 2, "one trace in two tenants");
    assert_eq!(trace.service_stats.keys().collect::<Vec<_>>(), ["audit", "payments", "shop-backend"]);
}
