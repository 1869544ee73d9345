//! Rules of the language that the corpus does not pin down, one query and one small trace each.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span,
        span::{Event, Link},
    },
};
use storage::block::Trace;

use super::{
    super::{ExecutionError, parse, tag_filter},
    EvaluateOptions, TraceView,
};
use crate::columns::Batch;

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn trace(spans: Vec<Span>) -> Trace {
    let service = attribute("service.name", any_value::Value::StringValue("cart".to_owned()));
    let resource = Resource { attributes: vec![service, attribute("i", any_value::Value::IntValue(9))], ..Default::default() };
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    Trace { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }], ..Default::default() }
}

/// Span 1: i = 7, f = 7.5, no events. Span 2: three events a/1, b/2, b/3 and two links.
fn sample() -> Trace {
    let event = |name: &str, k| Event {
        name: name.to_owned(),
        attributes: vec![attribute("k", any_value::Value::IntValue(k))],
        ..Default::default()
    };
    trace(vec![
        Span {
            span_id: vec![0, 0, 0, 0, 0, 0, 0, 1],
            attributes: vec![attribute("i", any_value::Value::IntValue(7)), attribute("f", any_value::Value::DoubleValue(7.5))],
            end_time_unix_nano: 100,
            ..Default::default()
        },
        Span {
            span_id: vec![0, 0, 0, 0, 0, 0, 0, 2],
            parent_span_id: vec![0, 0, 0, 0, 0, 0, 0, 1],
            events: vec![event("a", 1), event("b", 2), event("b", 3)],
            links: vec![Link { span_id: vec![5; 8], ..Default::default() }, Link { span_id: vec![6; 8], ..Default::default() }],
            ..Default::default()
        },
    ])
}

fn found(query: &str) -> Result<Vec<Vec<u64>>, ExecutionError> {
    let trace = sample();
    let query = parse(query).expect(query);
    let result = query.evaluate(&TraceView::new(&trace), EvaluateOptions { spans_per_spanset: 10 })?;
    let spansets = result.into_iter().flat_map(|found| found.spansets);
    Ok(spansets.map(|spanset| spanset.spans.into_iter().map(|span| span.span_id).collect()).collect())
}

#[test]
fn queries_find_what_they_should() {
    for (query, expected) in [
        ("{ .i = 7 }", vec![vec![1]]),
        ("{ .i = 9 }", vec![vec![2]]),
        ("{ resource.i = 9 }", vec![vec![1, 2]]),
        // The type of the literal selects, except under other operators.
        ("{ .f > 7 }", vec![]),
        ("{ .f > 7.0 }", vec![vec![1]]),
        ("{ .f + 0 > 7 }", vec![vec![1]]),
        ("{ .i < .f }", vec![vec![1]]),
        // Parts of one filter speak about the same event, filters do not.
        ("{ event:name = \"a\" && event.k = 2 }", vec![]),
        ("{ event:name = \"b\" && event.k = 2 }", vec![vec![2]]),
        // With several filters only the first event that has the field counts.
        ("{ event:name = \"a\" } && { event:name = \"b\" }", vec![]),
        ("{ event.k = 3 && link:spanID = \"0505050505050505\" }", vec![vec![2]]),
        ("{ event.missing = nil }", vec![vec![2]]),
        ("{ event.missing != nil || .i = 7 }", vec![vec![1]]),
        // Absent values.
        ("{ .missing != 1 }", vec![]),
        ("{ .missing = nil }", vec![vec![1, 2]]),
        ("{ .missing + 1 = 2 }", vec![]),
        ("{ true || .missing }", vec![]),
        ("{ .i = 7 || .missing = 1 }", vec![vec![1]]),
        ("{ !(span.i = 7) }", vec![vec![2]]),
        // Pipelines.
        ("{ .i = 7 } > {}", vec![vec![2]]),
        ("{} | by(span:id) | { .i = 7 }", vec![vec![1]]),
        ("{} | by(span:id) | coalesce()", vec![vec![1, 2]]),
        ("{} | count() > 2", vec![]),
        ("{} | avg(.i) = 8", vec![vec![1, 2]]),
        ("{} | max(.missing) != 1", vec![]),
        ("{ false } | count() < 5", vec![]),
    ] {
        let spans: Vec<Vec<u64>> = expected;
        assert_eq!(found(query), Ok(spans), "{query}");
    }
}

#[test]
fn failures_name_the_expression() {
    for (query, text) in [
        ("{ 1 / 0 = 1 }", "integer division by zero in \"1 / 0\""),
        ("{ -.missing = 1 }", "\"-.missing\" needs a numeric operand, found nil"),
        ("{ !.i }", "\"!.i\" needs a boolean operand, found int"),
        ("({} | by(span:id)) > ({})", "\">\" needs one spanset on each side, found 2; use coalesce() after by()"),
    ] {
        let error = found(query).expect_err(query);
        assert_eq!(error.to_string(), text, "{query}");
    }
}

#[test]
fn spans_are_cut_but_counted() {
    let trace = sample();
    let query = parse("{}").expect("legal");
    let result = query.evaluate(&TraceView::new(&trace), EvaluateOptions { spans_per_spanset: 1 }).expect("no failure").expect("a match");
    assert_eq!((result.spansets[0].matched, result.spansets[0].spans.len()), (2, 1));
    assert_eq!(result.root_service_name, "cart");
    assert_eq!(result.services["cart"].spans, 2);
}

#[test]
fn tag_filters_choose_spans() {
    let trace = sample();
    let filter = tag_filter("{ .i = 7 && .half = ").expect("a filter");
    assert_eq!(filter.matching(&Batch::live(vec![trace])).expect("evaluates"), [true, false]);
}

#[test]
fn constantly_false_queries_are_known() {
    for (query, nothing) in [
        ("{ false }", true),
        ("{ 1 = 2 } && { false }", true),
        ("{ false } > { false } | { false }", true),
        ("{ false } || {}", false),
        ("{ false } | count() > 1", false),
        ("{ .a = 1 }", false),
    ] {
        assert_eq!(parse(query).expect(query).matches_nothing(), nothing, "{query}");
    }
}

#[test]
fn an_empty_trace_matches_nothing() {
    let trace = Trace::default();
    let view = TraceView::new(&trace);
    assert!(view.is_empty());
    let query = parse("{}").expect("legal");
    assert_eq!(query.evaluate(&view, EvaluateOptions { spans_per_spanset: 3 }), Ok(None));
}
