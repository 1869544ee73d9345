//! The observer against the reference on random traces and queries, however the traces are split.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use proptest::prelude::*;
use storage::{
    block::{Format, Trace},
    id::TraceId,
};

use crate::exec::tests::write_block;

use super::{
    super::{Asked, Cost, MetricsLimits, Partial, finish_range},
    answer, count, count_block, difference, naive, request, request_within,
};

const BASE: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

fn value() -> impl Strategy<Value = any_value::Value> {
    prop_oneof![
        4 => prop::sample::select(vec!["x", "y", "nil", ""]).prop_map(|text| any_value::Value::StringValue(text.to_owned())),
        4 => (-3i64..2000).prop_map(any_value::Value::IntValue),
        2 => prop::sample::select(vec![0.5, -2.25, 1e9, 7.0]).prop_map(any_value::Value::DoubleValue),
        1 => any::<bool>().prop_map(any_value::Value::BoolValue),
        1 => Just(any_value::Value::ArrayValue(ArrayValue {
            values: vec![AnyValue { value: Some(any_value::Value::IntValue(1)) }, AnyValue { value: Some(any_value::Value::IntValue(2)) }],
        })),
    ]
}

fn attributes(keys: &'static [&'static str]) -> impl Strategy<Value = Vec<KeyValue>> {
    prop::collection::btree_map(prop::sample::select(keys.to_vec()), value(), 0..3).prop_map(|attributes| {
        attributes
            .into_iter()
            .map(|(key, value)| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() })
            .collect()
    })
}

prop_compose! {
    fn span()(
        id in 1u64..6,
        parent in 0u64..6,
        name in prop::sample::select(vec!["get", "put", "delete"]),
        // Edges of intervals among them.
        start in prop_oneof![0u64..20 * SECOND, (0u64..20).prop_map(|seconds| seconds * SECOND)],
        length in prop_oneof![Just(0u64), 1u64..5_000, 0u64..3 * SECOND],
        kind in 0i32..6,
        code in 0i32..3,
        attributes in attributes(&["a", "b", "n"]),
        events in prop::collection::vec(0u64..SECOND, 0..2),
    ) -> Span {
        Span {
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
            name: name.to_owned(),
            kind,
            start_time_unix_nano: BASE + start,
            end_time_unix_nano: BASE + start + length,
            attributes,
            events: events.into_iter().map(|after| Event { time_unix_nano: BASE + start + after, name: "e".to_owned(), ..Event::default() }).collect(),
            status: Some(Status { code, message: if code == 2 { "boom".to_owned() } else { String::new() } }),
            ..Span::default()
        }
    }
}

prop_compose! {
    fn resource_spans()(
        service in prop::option::of(prop::sample::select(vec!["cart", "shop"])),
        resource in attributes(&["a", "zone"]),
        scope in prop::option::of(attributes(&["lang"])),
        spans in prop::collection::vec(span(), 1..6),
    ) -> ResourceSpans {
        let service = service.map(|name| KeyValue {
            key: "service.name".to_owned(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(name.to_owned())) }),
            ..KeyValue::default()
        });
        let attributes = service.into_iter().chain(resource).collect();
        let scope = scope.map(|attributes| InstrumentationScope { name: "lib".to_owned(), attributes, ..InstrumentationScope::default() });
        ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope, spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    }
}

fn traces() -> impl Strategy<Value = Vec<Trace>> {
    prop::collection::vec(prop::collection::vec(resource_spans(), 1..3), 0..8).prop_map(|traces| {
        let trace = |(number, mut resource_spans): (usize, Vec<ResourceSpans>)| {
            let trace_id = TraceId(((number as u128 + 1) * 0x1234_5678_9abc_def0_1234).to_be_bytes());
            for spans in resource_spans.iter_mut().flat_map(|spans| &mut spans.scope_spans) {
                spans.spans.iter_mut().for_each(|span| span.trace_id = trace_id.0.to_vec());
            }
            Trace { trace_id, resource_spans }
        };
        traces.into_iter().enumerate().map(trace).collect()
    })
}

fn query() -> impl Strategy<Value = String> {
    let pipeline = prop::sample::select(vec![
        "{}",
        "{ name = \"get\" }",
        "{ span.a != nil }",
        "{ .n > 5 || status = error }",
        "{ false }",
        "{} | count() > 3",
        "{ kind = server } > {}",
        "{ name = \"put\" } && { status = ok }",
        "{} | by(name) | max(duration) > 1us",
    ]);
    let field = prop::sample::select(vec![
        "name",
        "status",
        "kind",
        ".a",
        "span.a",
        "span.b",
        "span.n",
        "resource.service.name",
        "resource.zone",
        "rootName",
        "duration",
        "instrumentation.lang",
        "span:childCount",
    ]);
    let number = prop::sample::select(vec!["duration", "span.n", ".a", "traceDuration", "span:childCount", "event:timeSinceStart", "name"]);
    let function = prop_oneof![
        3 => Just("rate()".to_owned()),
        2 => Just("count_over_time()".to_owned()),
        6 => (prop::sample::select(vec!["min", "max", "sum", "avg", "histogram"]), number.clone()).prop_map(|(name, field)| format!("{name}_over_time({field})")),
        2 => number.prop_map(|field| format!("quantile_over_time({field}, 0, .5, .9, 1)")),
    ];
    let second = prop::sample::select(vec!["", "", "", " | topk(1)", " | bottomk(2)", " > 1", " != 0 | topk(2)", " <= 2 >= 0.001"]);
    let grouped = (pipeline.clone(), function, prop::collection::vec(field, 0..4), second).prop_map(|(pipeline, function, by, second)| {
        let by = if by.is_empty() { String::new() } else { format!(" by ({})", by.join(", ")) };
        format!("{pipeline} | {function}{by}{second}")
    });
    let selection = prop::sample::select(vec!["{ status = error }", "{ span.n > 10 }", "{ event:name = \"e\" }", "{ false }"]);
    let tail = prop::sample::select(vec!["", ", 1", ", 3, 1700000002000000000, 1700000009000000000"]);
    let compare = (pipeline, selection, tail).prop_map(|(pipeline, selection, tail)| format!("{pipeline} | compare({selection}{tail})"));
    prop_oneof![4 => grouped, 1 => compare]
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        0u64..10 * SECOND,
        1u64..15 * SECOND,
        prop::sample::select(vec![SECOND / 2, SECOND, 3 * SECOND, 7 * SECOND]),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(start, length, step, instant)| Asked {
            start: BASE + start,
            end: BASE + start + length,
            step: Some(step),
            instant,
            ..Asked::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_observer_agrees_with_the_reference(traces in traces(), query in query(), asked in asked()) {
        let request = request(&query, asked);
        let found = answer(&request, &count(&request, &traces).expect("evaluates"));
        let wrong = difference(&naive::evaluate(&request, &traces), &found, 1e-9);
        prop_assert!(wrong.is_none(), "{query}: {}", wrong.unwrap_or_default());
    }

    #[test]
    fn blocks_agree_with_the_reference(mut traces in traces(), query in query(), asked in asked(), five in any::<bool>()) {
        // Blocks keep one of several spans with one identity, spans in an order of their own, by which the last root names the trace, and of
        // equal resources the attributes of one of several scopes with one name.
        for trace in &mut traces {
            let scopes = trace.resource_spans.iter_mut().flat_map(|spans| &mut spans.scope_spans).filter_map(|spans| spans.scope.as_mut());
            scopes.enumerate().for_each(|(number, scope)| scope.name = format!("lib {number}"));
            let spans = trace.resource_spans.iter_mut().flat_map(|spans| &mut spans.scope_spans).flat_map(|spans| &mut spans.spans);
            for (number, span) in (1u64..).zip(spans) {
                span.span_id = number.to_be_bytes().to_vec();
                span.parent_span_id = match (number, span.parent_span_id.is_empty()) {
                    (1, _) => Vec::new(),
                    (_, true) => 1u64.to_be_bytes().to_vec(),
                    (_, false) => std::mem::take(&mut span.parent_span_id),
                };
            }
        }
        prop_assume!(!traces.is_empty());
        let request = request(&query, asked);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let found = runtime.block_on(async {
            let reader = write_block(if five { Format::V5 } else { Format::V4 }, 2_000, &traces).await;
            answer(&request, &count_block(&request, &reader).await.expect("evaluates"))
        });
        let wrong = difference(&naive::evaluate(&request, &traces), &found, 1e-9);
        prop_assert!(wrong.is_none(), "{query}: {}", wrong.unwrap_or_default());
    }

    #[test]
    fn neither_split_nor_order_matters(
        traces in traces(),
        query in query(),
        mut asked in asked(),
        places in prop::collection::vec(0usize..4, 8),
        exemplars in 1u32..5,
        max_series in 0u32..4,
    ) {
        (asked.exemplars, asked.max_series) = (exemplars, max_series);
        let request = request(&query, asked);
        let whole = count(&request, &traces).expect("evaluates");
        let parts: Vec<Partial> = (0..4).map(|place| {
            let here: Vec<Trace> = traces.iter().zip(&places).filter(|(_, at)| **at == place).map(|(trace, _)| trace.clone()).collect();
            count(&request, &here).expect("evaluates")
        }).collect();
        let show = |partial: &Partial| finish_range(&request, partial, Cost::default());
        let expected = show(&whole);
        let merged = |order: &[usize]| {
            let mut all = Partial::new(&request);
            order.iter().for_each(|place| all.merge(&request, &parts[*place]).expect("fits"));
            all
        };
        let mut left = merged(&[0, 1]);
        left.merge(&request, &merged(&[2, 3])).expect("fits");
        for partial in [merged(&[0, 1, 2, 3]), merged(&[3, 1, 0, 2]), left, Partial::decode(&request, &whole.encode()).expect("our own")] {
            prop_assert_eq!(&show(&partial), &expected, "{}", query);
        }
    }

    #[test]
    fn series_that_are_shown_are_right_even_if_there_is_no_room_for_all(
        traces in traces(),
        query in query(),
        asked in asked(),
        max_series in 1u32..5,
    ) {
        let all = request(&query, asked);
        let cut = request(&query, Asked { max_series, ..asked });
        let expected = finish_range(&all, &count(&all, &traces).expect("evaluates"), Cost::default());
        let found = finish_range(&cut, &count(&cut, &traces).expect("evaluates"), Cost::default());
        let shown = expected.series.len().min(max_series as usize);
        prop_assert_eq!(&found.series[..], &expected.series[..shown], "{}", query);
        prop_assert_eq!(found.message.is_empty(), expected.series.len() <= max_series as usize);
    }

    #[test]
    fn foreign_bytes_are_an_error_and_no_more(query in query(), asked in asked(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let request = request_within(&query, asked, MetricsLimits { max_bytes: 1 << 20, ..MetricsLimits::default() });
        if let Ok(partial) = Partial::decode(&request, &bytes) {
            finish_range(&request, &partial, Cost::default());
        }
    }

    #[test]
    fn damaged_bytes_are_an_error_and_no_more(
        traces in traces(),
        query in query(),
        asked in asked(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let request = request(&query, asked);
        let mut bytes = count(&request, &traces).expect("evaluates").encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(partial) = Partial::decode(&request, &bytes) {
            let mut twice = partial.clone();
            let _ = twice.merge(&request, &partial);
            finish_range(&request, &twice, Cost::default());
        }
    }
}
