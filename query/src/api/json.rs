//! The protobuf JSON mapping of the answers, as Tempo's clients expect it.
//!
//! Names are lowerCamelCase as the protobuf descriptor gives them, zero scalars and empty lists are left out, present sub-messages always
//! appear, 64-bit integers are strings, bytes are standard base64, enums go by name, and a member of a `oneof` appears even when it is
//! zero. Grafana refuses answers with keys that it does not know, so nothing may be added.
//!
//! The text is written straight into one buffer: a trace of 5 MB passes through here without an intermediate tree.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link, SpanKind},
        status::StatusCode,
    },
};

use crate::proto;

/// A message that has a JSON form.
pub(crate) trait ToJson {
    /// Appends the message to `out`.
    fn write(&self, out: &mut Vec<u8>);

    /// The message as a text of its own.
    fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        self.write(&mut out);
        out
    }
}

/// An object being written.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    fn end(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        text(self.out, key);
        self.out.push(b':');
        self.out
    }

    fn string(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            text(self.key(key), value);
        }
    }

    fn number(&mut self, key: &str, value: u32) {
        if value != 0 {
            number(self.key(key), value);
        }
    }

    fn double(&mut self, key: &str, value: f64) {
        if value != 0.0 {
            double(self.key(key), value);
        }
    }

    fn long(&mut self, key: &str, value: impl std::fmt::Display + Default + PartialEq) {
        if value != Default::default() {
            quoted(self.key(key), value);
        }
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            base64(self.key(key), value);
        }
    }

    fn message<T: ToJson>(&mut self, key: &str, value: Option<&T>) {
        if let Some(value) = value {
            value.write(self.key(key));
        }
    }

    fn messages<T: ToJson>(&mut self, key: &str, values: &[T]) {
        if !values.is_empty() {
            list(self.key(key), values, |out, value| value.write(out));
        }
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        if !values.is_empty() {
            list(self.key(key), values, |out, value| text(out, value));
        }
    }

    /// Whether something is missing, and why.
    fn partial(&mut self, status: i32, message: &str) {
        self.enumeration("status", status, (status == proto::PartialStatus::Partial as i32).then_some("PARTIAL"));
        self.string("message", message);
    }

    fn enumeration(&mut self, key: &str, value: i32, name: Option<&str>) {
        match (value, name) {
            (0, _) => {}
            (_, Some(name)) => text(self.key(key), name),
            (value, None) => number(self.key(key), value),
        }
    }
}

fn list<T>(out: &mut Vec<u8>, values: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (position, value) in values.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write(out, value);
    }
    out.push(b']');
}

fn number(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing into a vector cannot fail.
    let _ = write!(out, "{value}");
}

fn quoted(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    let _ = write!(out, "\"{value}\"");
}

fn base64(out: &mut Vec<u8>, value: &[u8]) {
    quoted(out, STANDARD.encode(value));
}

fn double(out: &mut Vec<u8>, value: f64) {
    match value {
        value if value.is_nan() => out.extend_from_slice(b"\"NaN\""),
        f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
        f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
        value if value.abs() < 1e21 && (value == 0.0 || value.abs() >= 1e-6) => number(out, value),
        value => number(out, format_args!("{value:e}")),
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut plain = 0;
    for (position, byte) in value.bytes().enumerate() {
        let escape = match byte {
            b'"' => Some(b'"'),
            b'\\' => Some(b'\\'),
            b'\n' => Some(b'n'),
            b'\r' => Some(b'r'),
            b'\t' => Some(b't'),
            0..0x20 => None,
            _ => continue,
        };
        out.extend_from_slice(&value.as_bytes()[plain..position]);
        plain = position + 1;
        match escape {
            Some(letter) => out.extend_from_slice(&[b'\\', letter]),
            None => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out.extend_from_slice(&value.as_bytes()[plain..]);
    out.push(b'"');
}

/// The body of `/api/traces/{traceID}`: a trace whose only field is called `batches`, as the first clients knew it.
pub(crate) fn batches(resource_spans: &[ResourceSpans]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    let mut object = Object::begin(&mut out);
    object.messages("batches", resource_spans);
    object.end();
    out
}

impl ToJson for ResourceSpans {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.message("resource", self.resource.as_ref());
        object.messages("scopeSpans", &self.scope_spans);
        object.string("schemaUrl", &self.schema_url);
        object.end();
    }
}

impl ToJson for Resource {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.end();
    }
}

impl ToJson for ScopeSpans {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.message("scope", self.scope.as_ref());
        object.messages("spans", &self.spans);
        object.string("schemaUrl", &self.schema_url);
        object.end();
    }
}

impl ToJson for InstrumentationScope {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("name", &self.name);
        object.string("version", &self.version);
        object.messages("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.end();
    }
}

impl ToJson for Span {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.bytes("parentSpanId", &self.parent_span_id);
        object.string("name", &self.name);
        object.enumeration("kind", self.kind, SpanKind::try_from(self.kind).ok().map(|kind| kind.as_str_name()));
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.long("endTimeUnixNano", self.end_time_unix_nano);
        object.messages("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.messages("events", &self.events);
        object.number("droppedEventsCount", self.dropped_events_count);
        object.messages("links", &self.links);
        object.number("droppedLinksCount", self.dropped_links_count);
        object.message("status", self.status.as_ref());
        object.number("flags", self.flags);
        object.end();
    }
}

impl ToJson for Event {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.long("timeUnixNano", self.time_unix_nano);
        object.string("name", &self.name);
        object.messages("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.end();
    }
}

impl ToJson for Link {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.messages("attributes", &self.attributes);
        object.number("droppedAttributesCount", self.dropped_attributes_count);
        object.number("flags", self.flags);
        object.end();
    }
}

impl ToJson for Status {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("message", &self.message);
        object.enumeration("code", self.code, StatusCode::try_from(self.code).ok().map(|code| code.as_str_name()));
        object.end();
    }
}

impl ToJson for KeyValue {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("key", &self.key);
        object.message("value", self.value.as_ref());
        object.end();
    }
}

impl ToJson for AnyValue {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        match &self.value {
            Some(Value::StringValue(value)) => text(object.key("stringValue"), value),
            Some(Value::BoolValue(value)) => number(object.key("boolValue"), value),
            Some(Value::IntValue(value)) => quoted(object.key("intValue"), value),
            Some(Value::DoubleValue(value)) => double(object.key("doubleValue"), *value),
            Some(Value::ArrayValue(value)) => {
                let mut array = Object::begin(object.key("arrayValue"));
                array.messages("values", &value.values);
                array.end();
            }
            Some(Value::KvlistValue(value)) => {
                let mut map = Object::begin(object.key("kvlistValue"));
                map.messages("values", &value.values);
                map.end();
            }
            Some(Value::BytesValue(value)) => base64(object.key("bytesValue"), value),
            // An index into a string table that traces do not have.
            Some(Value::StringValueStrindex(_)) | None => {}
        }
        object.end();
    }
}

impl ToJson for proto::TraceByIdResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        if let Some(trace) = &self.trace {
            let mut inner = Object::begin(object.key("trace"));
            inner.messages("resourceSpans", &trace.resource_spans);
            inner.end();
        }
        if let Some(metrics) = &self.metrics {
            let mut inner = Object::begin(object.key("metrics"));
            inner.long("inspectedBytes", metrics.inspected_bytes);
            inner.end();
        }
        object.partial(self.status, &self.message);
        object.end();
    }
}

impl ToJson for proto::SearchResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("traces", &self.traces);
        object.message("metrics", self.metrics.as_ref());
        object.end();
    }
}

impl ToJson for proto::TraceSearchMetadata {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("traceID", &self.trace_id);
        object.string("rootServiceName", &self.root_service_name);
        object.string("rootTraceName", &self.root_trace_name);
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.number("durationMs", self.duration_ms);
        object.message("spanSet", self.span_set.as_ref());
        object.messages("spanSets", &self.span_sets);
        if !self.service_stats.is_empty() {
            let mut services = Object::begin(object.key("serviceStats"));
            for (service, stats) in &self.service_stats {
                let mut inner = Object::begin(services.key(service));
                inner.number("spanCount", stats.span_count);
                inner.number("errorCount", stats.error_count);
                inner.end();
            }
            services.end();
        }
        object.end();
    }
}

impl ToJson for proto::SpanSet {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("spans", &self.spans);
        object.number("matched", self.matched);
        object.messages("attributes", &self.attributes);
        object.end();
    }
}

impl ToJson for proto::Span {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("spanID", &self.span_id);
        object.string("name", &self.name);
        object.long("startTimeUnixNano", self.start_time_unix_nano);
        object.long("durationNanos", self.duration_nanos);
        object.messages("attributes", &self.attributes);
        object.end();
    }
}

impl ToJson for proto::SearchMetrics {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.number("inspectedTraces", self.inspected_traces);
        object.long("inspectedBytes", self.inspected_bytes);
        object.number("totalBlocks", self.total_blocks);
        object.number("completedJobs", self.completed_jobs);
        object.number("totalJobs", self.total_jobs);
        object.long("totalBlockBytes", self.total_block_bytes);
        object.long("inspectedSpans", self.inspected_spans);
        object.end();
    }
}

impl ToJson for proto::MetadataMetrics {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.long("inspectedBytes", self.inspected_bytes);
        object.number("totalJobs", self.total_jobs);
        object.number("completedJobs", self.completed_jobs);
        object.number("totalBlocks", self.total_blocks);
        object.long("totalBlockBytes", self.total_block_bytes);
        object.end();
    }
}

impl ToJson for proto::QueryRangeResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("series", &self.series);
        object.message("metrics", self.metrics.as_ref());
        object.partial(self.status, &self.message);
        object.end();
    }
}

impl ToJson for proto::TimeSeries {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("labels", &self.labels);
        object.messages("samples", &self.samples);
        object.messages("exemplars", &self.exemplars);
        object.end();
    }
}

impl ToJson for proto::Sample {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.double("value", self.value);
        object.long("timestampMs", self.timestamp_ms);
        object.end();
    }
}

impl ToJson for proto::Exemplar {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("labels", &self.labels);
        object.double("value", self.value);
        object.long("timestampMs", self.timestamp_ms);
        object.end();
    }
}

impl ToJson for proto::QueryInstantResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("series", &self.series);
        object.message("metrics", self.metrics.as_ref());
        object.partial(self.status, &self.message);
        object.end();
    }
}

impl ToJson for proto::InstantSeries {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("labels", &self.labels);
        object.double("value", self.value);
        object.end();
    }
}

impl ToJson for proto::SearchTagsResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.strings("tagNames", &self.tag_names);
        object.message("metrics", self.metrics.as_ref());
        object.end();
    }
}

impl ToJson for proto::SearchTagsV2Response {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("scopes", &self.scopes);
        object.message("metrics", self.metrics.as_ref());
        object.end();
    }
}

impl ToJson for proto::SearchTagsV2Scope {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("name", &self.name);
        object.strings("tags", &self.tags);
        object.end();
    }
}

impl ToJson for proto::SearchTagValuesResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.strings("tagValues", &self.tag_values);
        object.message("metrics", self.metrics.as_ref());
        object.end();
    }
}

impl ToJson for proto::SearchTagValuesV2Response {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.messages("tagValues", &self.tag_values);
        object.message("metrics", self.metrics.as_ref());
        object.end();
    }
}

impl ToJson for proto::TagValue {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.string("type", &self.r#type);
        object.string("value", &self.value);
        object.end();
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, KeyValueList};

    use super::*;

    fn any(value: Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    #[track_caller]
    fn check(value: &impl ToJson, expected: &str) {
        assert_eq!(String::from_utf8(value.to_json()).expect("text"), expected);
    }

    #[test]
    fn values_keep_their_type_and_zero_members_appear() {
        check(&any(Value::StringValue(String::new())), r#"{"stringValue":""}"#);
        check(&any(Value::BoolValue(false)), r#"{"boolValue":false}"#);
        check(&any(Value::IntValue(-5)), r#"{"intValue":"-5"}"#);
        check(&any(Value::DoubleValue(0.0)), r#"{"doubleValue":0}"#);
        check(&any(Value::DoubleValue(1.5)), r#"{"doubleValue":1.5}"#);
        check(&any(Value::DoubleValue(1e300)), r#"{"doubleValue":1e300}"#);
        check(&any(Value::DoubleValue(f64::NAN)), r#"{"doubleValue":"NaN"}"#);
        check(&any(Value::DoubleValue(f64::NEG_INFINITY)), r#"{"doubleValue":"-Infinity"}"#);
        check(&any(Value::BytesValue(vec![0xff, 0xfe])), r#"{"bytesValue":"//4="}"#);
        check(
            &any(Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(1))] })),
            r#"{"arrayValue":{"values":[{"intValue":"1"}]}}"#,
        );
        check(&any(Value::ArrayValue(ArrayValue { values: Vec::new() })), r#"{"arrayValue":{}}"#);
        let pair = KeyValue { key: "k".to_owned(), value: Some(any(Value::BoolValue(true))), key_strindex: 0 };
        check(
            &any(Value::KvlistValue(KeyValueList { values: vec![pair] })),
            r#"{"kvlistValue":{"values":[{"key":"k","value":{"boolValue":true}}]}}"#,
        );
        check(&AnyValue { value: None }, "{}");
    }

    #[test]
    fn strings_are_escaped() {
        check(&any(Value::StringValue("a\"b\\c\nd\u{1}é\u{1f600}".to_owned())), "{\"stringValue\":\"a\\\"b\\\\c\\nd\\u0001é\u{1f600}\"}");
    }

    #[test]
    fn every_text_reads_back() {
        proptest::proptest!(|(value in ".*")| {
            let mut out = Vec::new();
            text(&mut out, &value);
            let back: String = serde_json::from_slice(&out).expect("JSON");
            proptest::prop_assert_eq!(back, value);
        });
    }

    #[test]
    fn every_double_reads_back() {
        proptest::proptest!(|(bits in proptest::num::u64::ANY)| {
            let value = f64::from_bits(bits);
            let mut out = Vec::new();
            double(&mut out, value);
            if value.is_finite() {
                let back: f64 = std::str::from_utf8(&out).expect("text").parse().expect("number");
                proptest::prop_assert_eq!(back.to_bits(), value.to_bits());
                serde_json::from_slice::<serde_json::Value>(&out).expect("JSON");
            }
        });
    }

    #[test]
    fn a_trace_looks_as_documented() {
        let span = Span {
            trace_id: (0x2f..0x3f).collect(),
            span_id: vec![1, 2, 3, 4, 5, 6, 7, 8],
            name: "update-billing".to_owned(),
            kind: 2,
            start_time_unix_nano: 1_684_778_327_699_392_724,
            end_time_unix_nano: 1_684_778_328_256_392_724,
            events: vec![Event { time_unix_nano: 1, name: "exception".to_owned(), ..Event::default() }],
            links: vec![Link { span_id: vec![1; 8], flags: 1, ..Link::default() }],
            status: Some(Status { message: "boom".to_owned(), code: 2 }),
            ..Span::default()
        };
        let trace = ResourceSpans {
            resource: Some(Resource::default()),
            scope_spans: vec![ScopeSpans { scope: Some(InstrumentationScope::default()), spans: vec![span], schema_url: "u".to_owned() }],
            schema_url: String::new(),
        };
        assert_eq!(
            String::from_utf8(batches(&[trace])).expect("text"),
            concat!(
                r#"{"batches":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{"traceId":"LzAxMjM0NTY3ODk6Ozw9Pg==","#,
                r#""spanId":"AQIDBAUGBwg=","name":"update-billing","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1684778327699392724","#,
                r#""endTimeUnixNano":"1684778328256392724","events":[{"timeUnixNano":"1","name":"exception"}],"#,
                r#""links":[{"spanId":"AQEBAQEBAQE=","flags":1}],"status":{"message":"boom","code":"STATUS_CODE_ERROR"}}],"#,
                r#""schemaUrl":"u"}]}]}"#
            )
        );
        assert_eq!(batches(&[]), b"{}");
    }

    #[test]
    fn unknown_enum_values_are_numbers() {
        check(&Status { message: String::new(), code: 9 }, r#"{"code":9}"#);
        check(&Status::default(), "{}");
    }

    #[test]
    fn an_unknown_trace_still_has_a_trace() {
        let response = proto::TraceByIdResponse {
            trace: Some(opentelemetry_proto::tonic::trace::v1::TracesData::default()),
            metrics: Some(proto::TraceByIdMetrics { inspected_bytes: 1234 }),
            ..proto::TraceByIdResponse::default()
        };
        check(&response, r#"{"trace":{},"metrics":{"inspectedBytes":"1234"}}"#);
    }
}
