//! Queries of Traces Drilldown, in the forms in which it writes them.

use super::{CHECKOUT_ID, Fixture, TICKS, strict, text};

#[tokio::test(flavor = "multi_thread")]
async fn primary_signals_choose_spans() {
    let fixture = Fixture::get().await;
    let ticks = usize::from(TICKS);
    for (signal, expected) in
        [("nestedSetParent<0", ticks + 3), ("true", ticks + 3), ("kind=server", 1), ("kind=consumer", 1), ("span.db.system.name!=\"\"", 1)]
    {
        assert_eq!(fixture.search(&format!("{{{signal}}}")).await.len(), expected, "{signal}");
    }
    let roots = fixture.search("{nestedSetParent<0 && true && status!=error}").await;
    assert!(roots.iter().all(|trace| trace.span_sets[0].matched == 1), "{roots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_that_are_there_are_not_nil() {
    let fixture = Fixture::get().await;
    // A resource without a service has an empty one.
    assert_eq!(fixture.search("{nestedSetParent<0 && resource.service.name != nil}").await.len(), usize::from(TICKS) + 3);
    assert_eq!(fixture.search("{nestedSetParent<0 && resource.deployment.environment != nil}").await.len(), 1);
    assert_eq!(fixture.search("{true && span.customer != nil}").await.len(), 1);
    assert_eq!(fixture.search("{true && span.nothing != nil}").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_list_selects_attributes() {
    let fixture = Fixture::get().await;
    let q = "{nestedSetParent<0 && true} | select(status, resource.service.name, name, duration, span.http.method)";
    let traces = fixture.search(q).await;
    let trace = traces.iter().find(|trace| trace.trace_id == CHECKOUT_ID).expect("the checkout");
    assert_eq!((trace.root_service_name.as_str(), trace.root_trace_name.as_str()), ("shop-backend", "GET /checkout"));
    let span = trace.spans().next().expect("the root");
    assert_eq!((span.name.as_str(), span.duration_nanos), ("GET /checkout", 557_000_000));
    assert_eq!(span.attribute("service.name"), Some(&text("shop-backend")));
    assert_eq!(span.attribute("http.method"), Some(&text("GET")));
    assert_eq!(span.attribute("status"), Some(&text("unset")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_structure_has_one_set_with_the_tree_in_it() {
    let fixture = Fixture::get().await;
    let select = "select(status, resource.service.name, name, nestedSetParent, nestedSetLeft, nestedSetRight)";
    for (other, spans) in [("kind = server", 2), ("status = error", 2), ("duration > 100ms", 3)] {
        let q = format!("({{nestedSetParent<0 && true}} &>> {{ {other} }}) || ({{nestedSetParent<0 && true}}) | {select}");
        let traces = fixture.search(&q).await;
        assert!(traces.iter().all(|trace| trace.span_sets.len() == 1), "{q}: one set per trace");
        let trace = traces.iter().find(|trace| trace.trace_id == CHECKOUT_ID).expect("the checkout");
        assert_eq!(trace.span_sets[0].matched, spans, "{q}");
        let int = |span: &strict::Span, key: &str| match span.attribute(key) {
            Some(strict::AnyValue::Int(value)) => *value,
            other => panic!("{key} is {other:?}"),
        };
        let mut roots = 0;
        for span in trace.spans() {
            assert!(int(span, "nestedSetLeft") < int(span, "nestedSetRight"));
            roots += u32::from(int(span, "nestedSetParent") < 0);
            assert!(matches!(span.attribute("service.name"), Some(strict::AnyValue::String(_))));
            assert!(matches!(span.attribute("status"), Some(strict::AnyValue::String(_))));
            assert!(!span.name.is_empty());
        }
        assert_eq!(roots, 1, "{q}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exceptions_come_with_their_events() {
    let fixture = Fixture::get().await;
    let q = "{true && resource.service.name != nil && status = error} | select(resource.service.name, event.exception.message, \
             event.exception.stacktrace, event.exception.type) with(most_recent=true)";
    let traces = fixture.search_with(q, &[("limit", "400"), ("spss", "10")]).await;
    let [trace] = traces.as_slice() else { panic!("{traces:?}") };
    let failed = trace.spans().find(|span| span.span_id == "0000000000000002").expect("the failed span");
    assert_eq!(failed.attribute("exception.message"), Some(&text("connection reset")));
    assert_eq!(failed.attribute("exception.type"), Some(&text("IOError")));
    assert_eq!(failed.attribute("exception.stacktrace"), Some(&text("at charge\nat pay")));
}
