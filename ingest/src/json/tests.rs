//! The transcoder against `opentelemetry-proto`: a random tree, written as JSON here and transcoded, decodes to the same tree.

use super::*;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use serde_json::{Value, json};

/// What the mapping leaves to the sender.
#[derive(Clone, Copy, Debug)]
struct Style {
    snake_case: bool,
    numbers_as_strings: bool,
    enums_by_name: bool,
}

impl Style {
    fn name(self, camel: &str) -> String {
        if !self.snake_case {
            return camel.to_owned();
        }
        camel.chars().flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()])).collect()
    }

    fn object<const N: usize>(self, fields: [(&str, Value); N]) -> Value {
        let unknown = ("unknownField".to_owned(), json!({ "a": [1, { "b": null }] }));
        Value::Object(fields.into_iter().map(|(name, value)| (self.name(name), value)).chain([unknown]).collect())
    }

    fn integer(self, number: impl ToString + Into<serde_json::Number>) -> Value {
        if self.numbers_as_strings { json!(number.to_string()) } else { Value::Number(number.into()) }
    }

    fn enumeration(self, names: &[&str], number: i32) -> Value {
        match names.get(usize::try_from(number).unwrap_or(usize::MAX)) {
            Some(name) if self.enums_by_name => json!(name),
            _ => json!(number),
        }
    }

    fn any(self, value: &AnyValue) -> Value {
        let list = |values: Vec<Value>| self.object([("values", Value::Array(values))]);
        let (name, value) = match &value.value {
            None => return json!({}),
            Some(Any::StringValue(text)) => ("stringValue", json!(text)),
            Some(Any::BoolValue(value)) => ("boolValue", json!(value)),
            Some(Any::IntValue(number)) => ("intValue", self.integer(*number)),
            Some(Any::DoubleValue(number)) if number.is_finite() => ("doubleValue", json!(number)),
            Some(Any::DoubleValue(number)) if *number > 0.0 => ("doubleValue", json!("Infinity")),
            Some(Any::DoubleValue(_)) => ("doubleValue", json!("-Infinity")),
            Some(Any::ArrayValue(array)) => ("arrayValue", list(array.values.iter().map(|v| self.any(v)).collect())),
            Some(Any::KvlistValue(pairs)) => ("kvlistValue", list(pairs.values.iter().map(|kv| self.pair(kv)).collect())),
            Some(Any::BytesValue(bytes)) => ("bytesValue", json!(BASE64.encode(bytes))),
            Some(other) => panic!("not generated: {other:?}"),
        };
        json!({ self.name(name): value })
    }

    fn pair(self, pair: &KeyValue) -> Value {
        let value = pair.value.as_ref().map_or(Value::Null, |value| self.any(value));
        self.object([("key", json!(pair.key)), ("value", value)])
    }

    fn attributes(self, attributes: &[KeyValue]) -> Value {
        attributes.iter().map(|pair| self.pair(pair)).collect()
    }

    fn span(self, span: &Span) -> Value {
        let events = span.events.iter().map(|event| {
            self.object([
                ("timeUnixNano", self.integer(event.time_unix_nano)),
                ("name", json!(event.name)),
                ("attributes", self.attributes(&event.attributes)),
                ("droppedAttributesCount", json!(event.dropped_attributes_count)),
            ])
        });
        let links = span.links.iter().map(|link| {
            self.object([
                ("traceId", hex(&link.trace_id)),
                ("spanId", hex(&link.span_id)),
                ("traceState", json!(link.trace_state)),
                ("attributes", self.attributes(&link.attributes)),
                ("flags", json!(link.flags)),
            ])
        });
        let codes = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
        let kinds = [
            "SPAN_KIND_UNSPECIFIED",
            "SPAN_KIND_INTERNAL",
            "SPAN_KIND_SERVER",
            "SPAN_KIND_CLIENT",
            "SPAN_KIND_PRODUCER",
            "SPAN_KIND_CONSUMER",
        ];
        let status = span.status.as_ref().map_or(Value::Null, |status| {
            self.object([("message", json!(status.message)), ("code", self.enumeration(&codes, status.code))])
        });
        self.object([
            ("traceId", hex(&span.trace_id)),
            ("spanId", hex(&span.span_id)),
            ("traceState", json!(span.trace_state)),
            ("parentSpanId", hex(&span.parent_span_id)),
            ("name", json!(span.name)),
            ("kind", self.enumeration(&kinds, span.kind)),
            ("startTimeUnixNano", self.integer(span.start_time_unix_nano)),
            ("endTimeUnixNano", self.integer(span.end_time_unix_nano)),
            ("attributes", self.attributes(&span.attributes)),
            ("droppedAttributesCount", json!(span.dropped_attributes_count)),
            ("events", events.collect()),
            ("links", links.collect()),
            ("droppedLinksCount", json!(span.dropped_links_count)),
            ("status", status),
            ("flags", json!(span.flags)),
        ])
    }

    fn request(self, request: &ExportTraceServiceRequest) -> Value {
        let resource_spans = request.resource_spans.iter().map(|rs| {
            let resource = rs.resource.as_ref().map_or(Value::Null, |r| self.object([("attributes", self.attributes(&r.attributes))]));
            let scope_spans = rs.scope_spans.iter().map(|ss| {
                let scope = ss.scope.as_ref().map_or(Value::Null, |scope| {
                    self.object([
                        ("name", json!(scope.name)),
                        ("version", json!(scope.version)),
                        ("attributes", self.attributes(&scope.attributes)),
                    ])
                });
                let spans = ss.spans.iter().map(|span| self.span(span)).collect();
                self.object([("scope", scope), ("spans", spans), ("schemaUrl", json!(ss.schema_url))])
            });
            self.object([("resource", resource), ("scopeSpans", scope_spans.collect()), ("schemaUrl", json!(rs.schema_url))])
        });
        self.object([("resourceSpans", resource_spans.collect())])
    }
}

fn hex(id: &[u8]) -> Value {
    id.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into()
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        ".{0,200}".prop_map(Any::StringValue),
        any::<bool>().prop_map(Any::BoolValue),
        any::<i64>().prop_map(Any::IntValue),
        prop_oneof![-1e9..1e9, Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(0.0)].prop_map(Any::DoubleValue),
        vec(any::<u8>(), 0..20).prop_map(Any::BytesValue),
    ];
    let value = leaf.prop_map(|value| AnyValue { value: Some(value) });
    prop_oneof![9 => value, 1 => Just(AnyValue { value: None })].prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|values| AnyValue { value: Some(Any::ArrayValue(ArrayValue { values })) }),
            vec(("[a-z.]{0,8}", inner), 0..4).prop_map(|pairs| {
                let values = pairs.into_iter().map(|(key, value)| pair(key, Some(value))).collect();
                AnyValue { value: Some(Any::KvlistValue(KeyValueList { values })) }
            }),
        ]
    })
}

fn pair(key: String, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key, value, ..KeyValue::default() }
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec(("[a-zé.]{0,12}", prop::option::of(any_value())).prop_map(|(key, value)| pair(key, value)), 0..4)
}

fn id(bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), bytes), Just(Vec::new())]
}

fn event() -> impl Strategy<Value = Event> {
    (any::<u64>(), ".{0,5}", attributes(), any::<u32>()).prop_map(|(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
        time_unix_nano,
        name,
        attributes,
        dropped_attributes_count,
    })
}

fn link() -> impl Strategy<Value = Link> {
    (id(16), id(8), ".{0,5}", attributes(), any::<u32>()).prop_map(|(trace_id, span_id, trace_state, attributes, flags)| Link {
        trace_id,
        span_id,
        trace_state,
        attributes,
        flags,
        ..Link::default()
    })
}

fn span() -> impl Strategy<Value = Span> {
    let ids = (id(16), id(8), id(8));
    let scalars = (".{0,9}", ".{0,5}", -2..9i32, any::<u64>(), any::<u64>(), any::<(u32, u32, u32)>());
    let status = prop::option::of((".{0,5}", 0..5i32).prop_map(|(message, code)| Status { message, code }));
    (ids, scalars, attributes(), vec(event(), 0..3), vec(link(), 0..3), status).prop_map(
        |(ids, scalars, attributes, events, links, status)| Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            name: scalars.0,
            trace_state: scalars.1,
            kind: scalars.2,
            start_time_unix_nano: scalars.3,
            end_time_unix_nano: scalars.4,
            flags: scalars.5.0,
            dropped_attributes_count: scalars.5.1,
            dropped_links_count: scalars.5.2,
            attributes,
            events,
            links,
            status,
            ..Span::default()
        },
    )
}

fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let scope = prop::option::of((".{0,5}", ".{0,5}", attributes()).prop_map(|(name, version, attributes)| InstrumentationScope {
        name,
        version,
        attributes,
        ..InstrumentationScope::default()
    }));
    let scope_spans = (scope, vec(span(), 0..4), ".{0,5}").prop_map(|(scope, spans, schema_url)| ScopeSpans { scope, spans, schema_url });
    let resource = prop::option::of(attributes().prop_map(|attributes| Resource { attributes, ..Resource::default() }));
    let resource_spans = (resource, vec(scope_spans, 0..3), ".{0,5}").prop_map(|(resource, scope_spans, schema_url)| ResourceSpans {
        resource,
        scope_spans,
        schema_url,
    });
    vec(resource_spans, 0..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn transcoding_agrees_with_the_generated_types(
        request in request(), snake_case: bool, numbers_as_strings: bool, enums_by_name: bool, pretty: bool,
    ) {
        let json = Style { snake_case, numbers_as_strings, enums_by_name }.request(&request);
        let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.expect("strings are keys");
        let wire = transcode(text.as_bytes()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(wire.len() <= text.len());
        prop_assert_eq!(ExportTraceServiceRequest::decode(&wire[..]).expect("decodes"), request);
    }

    #[test]
    fn torn_and_altered_texts_never_panic(request in request(), at: prop::sample::Index, byte: u8) {
        let style = Style { snake_case: false, numbers_as_strings: true, enums_by_name: false };
        let mut text = style.request(&request).to_string().into_bytes();
        let at = at.index(text.len());
        let _ = transcode(&text[..at]);
        text[at] = byte;
        if let Ok(wire) = transcode(&text) {
            prop_assert!(ExportTraceServiceRequest::decode(&wire[..]).is_ok());
        }
    }
}

#[test]
fn errors_name_the_place() {
    let check = |text: &str, path: &str, cause: &str| {
        let error = transcode(text.as_bytes()).expect_err(text);
        assert_eq!(error.path, path, "{text}");
        assert!(error.cause.starts_with(cause), "{text}: {}", error.cause);
    };
    let span = |field: &str| format!(r#"{{"resourceSpans":[{{}},{{"scope_spans":[{{"spans":[{{{field}}}]}}]}}]}}"#);
    let place = |name: &str| format!("resourceSpans[1].scopeSpans[0].spans[0].{name}");
    check("", "", "EOF");
    check("[]", "", "invalid type: sequence, expected an object (ExportTraceServiceRequest)");
    check(r#"{"resourceSpans":{}}"#, "resourceSpans", "invalid type: map, expected an array");
    check(r#"{"resourceSpans":[7]}"#, "resourceSpans[0]", "invalid type: integer `7`, expected an object (ResourceSpans)");
    let hex = r#"invalid value: string "abc", expected a string of 32 hex digits"#;
    check(&span(r#""traceId":"abc""#), &place("traceId"), hex);
    check(&span(r#""spanId":"000000000000000g""#), &place("spanId"), "invalid value: string");
    check(&span(r#""spanId":"é0000000000000""#), &place("spanId"), "invalid value: string");
    check(&span(r#""kind":"SPAN_KIND_OTHER""#), &place("kind"), "invalid value: string");
    check(&span(r#""startTimeUnixNano":"-1""#), &place("startTimeUnixNano"), "invalid value: string");
    check(&span(r#""startTimeUnixNano":1.5"#), &place("startTimeUnixNano"), "invalid type: floating point `1.5`");
    check(&span(r#""flags":4294967296"#), &place("flags"), "invalid type: integer `4294967296`");
    check(&span(r#""name":true"#), &place("name"), "invalid type: boolean `true`, expected a string");
    check(&span(r#""name":"\ud800""#), &place("name"), "unexpected end of hex escape");
    check("{} x", "", "trailing characters");
    assert!(transcode(b"{\"resourceSpans\":[{\"schemaUrl\":\"\xff\"}]}").is_err(), "not UTF-8");
}

#[test]
fn numbers_are_read_in_all_their_spellings() {
    let value = |text: &str| {
        let text = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{{{text}}}}}]}}}}]}}"#);
        let wire = transcode(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        let request = ExportTraceServiceRequest::decode(&wire[..]).expect("decodes");
        request.resource_spans[0].resource.clone().expect("resource").attributes[0].value.clone().expect("value").value
    };
    assert_eq!(value(r#""intValue":"-9223372036854775808""#), Some(Any::IntValue(i64::MIN)));
    assert_eq!(value(r#""intValue":1e3"#), Some(Any::IntValue(1000)));
    assert_eq!(value(r#""doubleValue":3"#), Some(Any::DoubleValue(3.0)));
    assert_eq!(value(r#""doubleValue":"2.5""#), Some(Any::DoubleValue(2.5)));
    assert!(matches!(value(r#""doubleValue":"NaN""#), Some(Any::DoubleValue(nan)) if nan.is_nan()));
    assert_eq!(value(r#""bytesValue":"-_8""#), Some(Any::BytesValue(vec![0xfb, 0xff])));
    assert_eq!(value(r#""bytesValue":"+/8=""#), Some(Any::BytesValue(vec![0xfb, 0xff])));
    assert_eq!(value(r#""stringValue":"a","intValue":null"#), Some(Any::StringValue("a".into())));
}

#[test]
fn deep_nesting_is_refused_where_it_counts_and_skipped_where_it_does_not() {
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let value = nested(r#"{"arrayValue":{"values":["#, "]}}");
    let text = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{value}}}]}}}}]}}"#);
    let error = transcode(text.as_bytes()).expect_err("too deep");
    assert!(error.cause.starts_with("recursion limit exceeded"), "{}", error.cause);
    assert!(error.path.len() < 400);
    assert_eq!(transcode(format!(r#"{{"unknown":{}}}"#, nested("[", "]")).as_bytes()), Ok(Vec::new()));
}
