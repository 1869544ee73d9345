//! Any text: the parser answers without panic, its errors point into the text, and what it accepts prints and evaluates on spans.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::Event},
};
use query::{
    columns::Batch,
    exec::Exec,
    traceql::{self, EvaluateOptions},
};
use storage::{block::Trace, id::TraceId};

/// A root and its child, with attributes of some types.
static TRACE: LazyLock<Trace> = LazyLock::new(|| {
    let pair = |key: &str, value| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() };
    let attributes = vec![pair("a", Value::StringValue("x".to_owned())), pair("b", Value::IntValue(3)), pair("c", Value::BoolValue(true))];
    let span = |id: u8, parent: &[u8]| Span {
        trace_id: vec![1; 16],
        span_id: vec![id; 8],
        parent_span_id: parent.to_vec(),
        name: format!("span {id}"),
        start_time_unix_nano: 1_000_000,
        end_time_unix_nano: 3_000_000,
        attributes: attributes.clone(),
        events: vec![Event { name: "e".to_owned(), attributes: attributes.clone(), ..Event::default() }],
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span(1, &[]), span(2, &[1; 8])], ..ScopeSpans::default() }];
    let resource = Some(Resource { attributes: attributes.clone(), ..Resource::default() });
    Trace { trace_id: TraceId([1; 16]), resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }] }
});

fuzz_target!(|text: &str| {
    let _ = traceql::tag_filter(text);
    match traceql::parse(text) {
        Ok(query) => {
            assert!(!query.to_string().is_empty());
            let batch = Batch::live(vec![TRACE.clone()]);
            // A query may fail on a span: a division by zero does.
            if let Ok(found) = Exec::new(&query).matches(&batch, EvaluateOptions { spans_per_spanset: 3 }) {
                assert!(found.len() <= 1 && !(query.matches_nothing() && !found.is_empty()), "{text}");
            }
        }
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(error.at.line >= 1 && error.at.line as usize <= lines, "{error}");
        }
    }
});
