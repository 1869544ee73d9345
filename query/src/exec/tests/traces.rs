//! Random traces: late, repeated, rootless, cyclic and clock-skewed spans among them, and every kind of attribute.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use storage::{block::Trace, id::TraceId};

const TIME: u64 = 1_000_000_000_000;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => select(vec!["x", "y", "", "GET", "shop", "1"]).prop_map(|text| Value::StringValue(text.to_owned())),
        3 => select(vec![0, 1, 2, -1, 500]).prop_map(Value::IntValue),
        2 => select(vec![1.5, 2.0, -0.0, f64::NAN]).prop_map(Value::DoubleValue),
        1 => any::<bool>().prop_map(Value::BoolValue),
    ]
}

fn array(values: Vec<Value>) -> Value {
    Value::ArrayValue(ArrayValue { values: values.into_iter().map(|value| AnyValue { value: Some(value) }).collect() })
}

fn value() -> impl Strategy<Value = Option<Value>> {
    let of_one_type = prop_oneof![
        vec(select(vec!["x", "y", "z"]).prop_map(|text| Value::StringValue(text.to_owned())), 0..4),
        vec((0i64..3).prop_map(Value::IntValue), 0..4),
        vec(select(vec![1.5, 2.0]).prop_map(Value::DoubleValue), 0..3),
        vec(any::<bool>().prop_map(Value::BoolValue), 0..3),
    ];
    prop_oneof![
        12 => scalar().prop_map(Some),
        3 => of_one_type.prop_map(|values| Some(array(values))),
        1 => vec(scalar(), 2..4).prop_map(|values| Some(array(values))),
        1 => Just(Some(Value::KvlistValue(KeyValueList::default()))),
        1 => Just(Some(Value::BytesValue(vec![1, 2]))),
        1 => Just(None),
    ]
}

fn attributes(keys: &'static [&'static str]) -> impl Strategy<Value = Vec<KeyValue>> {
    vec((select(keys), value()), 0..4).prop_map(|attributes| {
        let attribute =
            |(key, value): (&str, Option<Value>)| KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), ..KeyValue::default() };
        attributes.into_iter().map(attribute).collect()
    })
}

fn span() -> impl Strategy<Value = Span> {
    let ids = (1u64..9, 0u64..10, 0i32..6);
    let texts = (select(vec!["GET /", "pay", ""]), select(vec!["", "bad"]));
    let times = (0u64..100, prop_oneof![5 => 0i64..50, 1 => -20i64..0]);
    let event = (select(vec!["e", "x", ""]), 0u64..60, attributes(&["a", "b"]));
    let link = (1u64..9, any::<bool>(), attributes(&["a", "opentracing.ref_type"]), any::<bool>());
    (
        ids,
        texts,
        times,
        option::of(0i32..3),
        attributes(&["a", "b", "http.method", "http.status_code", "dedicated", "number"]),
        vec(event, 0..3),
        vec(link, 0..3),
    )
        .prop_map(|((id, parent, kind), (name, message), (start, duration), code, attributes, events, links)| {
            let start = TIME + start;
            Span {
                span_id: id.to_be_bytes().to_vec(),
                parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
                name: name.to_owned(),
                kind,
                start_time_unix_nano: start,
                end_time_unix_nano: start.wrapping_add_signed(duration),
                status: code.map(|code| Status { code, message: message.to_owned() }),
                attributes,
                events: events
                    .into_iter()
                    .map(|(name, time, attributes)| Event {
                        name: name.to_owned(),
                        time_unix_nano: TIME + time,
                        attributes,
                        ..Event::default()
                    })
                    .collect(),
                links: links
                    .into_iter()
                    .map(|(id, own, mut attributes, child_of)| {
                        if child_of {
                            let value = Some(AnyValue { value: Some(Value::StringValue("child_of".to_owned())) });
                            attributes.push(KeyValue { key: "opentracing.ref_type".to_owned(), value, ..KeyValue::default() });
                        }
                        // The trace's own id is put in when it is known.
                        let trace_id = if own { Vec::new() } else { vec![7; 16] };
                        Link { trace_id, span_id: id.to_be_bytes().to_vec(), attributes, ..Link::default() }
                    })
                    .collect(),
                ..Span::default()
            }
        })
}

fn resource() -> impl Strategy<Value = ResourceSpans> {
    let scope = (option::of((select(vec!["lib", ""]), attributes(&["a", "b"]))), vec(span(), 1..6));
    (option::of(attributes(&["a", "b", "service.name", "pod", "dedicated"])), any::<bool>(), vec(scope, 1..3)).prop_map(
        |(attributes, named, scopes)| {
            let scope_spans = scopes.into_iter().map(|(scope, spans)| {
                let scope = scope.map(|(name, attributes)| InstrumentationScope {
                    name: name.to_owned(),
                    attributes,
                    ..InstrumentationScope::default()
                });
                ScopeSpans { scope, spans, ..ScopeSpans::default() }
            });
            let resource = attributes.map(|mut attributes| {
                // Of several names of the service blocks keep two, which contradict each other.
                let mut names = 0;
                attributes.retain(|attribute| attribute.key != "service.name" || std::mem::replace(&mut names, 1) == 0 && !named);
                if named {
                    let value = Some(AnyValue { value: Some(Value::StringValue("shop".to_owned())) });
                    attributes.insert(0, KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() });
                }
                Resource { attributes, ..Resource::default() }
            });
            ResourceSpans { resource, scope_spans: scope_spans.collect(), ..ResourceSpans::default() }
        },
    )
}

/// A few traces, in order of their ids.
pub(super) fn traces() -> impl Strategy<Value = Vec<Trace>> {
    vec(vec(resource(), 1..4), 1..5).prop_map(|traces| {
        let trace = |(number, mut resource_spans): (u8, Vec<ResourceSpans>)| {
            let mut id = [0; 16];
            id[14..].copy_from_slice(&[0xa1, number]);
            for span in resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans).flat_map(|scope| &mut scope.spans) {
                span.trace_id = id.to_vec();
                span.links.iter_mut().filter(|link| link.trace_id.is_empty()).for_each(|link| link.trace_id = id.to_vec());
            }
            Trace { trace_id: TraceId(id), resource_spans }
        };
        (1..).zip(traces).map(trace).collect()
    })
}
