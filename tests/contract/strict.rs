//! JSON as Grafana reads it: with these keys and no others, 64-bit integers as texts, and nothing that is zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::harness::client::Answer;

/// Reads the body of an answer with status 200.
#[track_caller]
pub(super) fn read<T: DeserializeOwned>(answer: &Answer) -> T {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers.get("content-type").map(String::as_str), Some("application/json"));
    no_zeros(&answer.json(), "");
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error} in {}", answer.text()))
}

#[track_caller]
pub(super) fn search(answer: &Answer) -> Search {
    read(answer)
}

/// Zeros, empty texts and empty lists are left out; members of a value appear, and so do messages.
#[track_caller]
fn no_zeros(value: &Value, path: &str) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let path = format!("{path}.{key}");
                let is_member_of_value = key.ends_with("Value");
                let is_zero = match member {
                    Value::Null => true,
                    Value::Bool(value) => !value,
                    Value::Number(number) => number.as_f64() == Some(0.0),
                    Value::String(text) => text.is_empty() || text == "0",
                    Value::Array(elements) => elements.is_empty(),
                    Value::Object(_) => false,
                };
                assert!(is_member_of_value || !is_zero, "{path} is zero and there");
                no_zeros(member, &path);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| no_zeros(element, path)),
        _ => {}
    }
}

/// A 64-bit integer, which must be a text.
fn long<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn signed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// A number, of which those that JSON does not know are texts.
fn double<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_f64().ok_or_else(|| serde::de::Error::custom("no double")),
        Value::String(text) if matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity") => {
            text.replace("Infinity", "inf").parse().map_err(serde::de::Error::custom)
        }
        other => Err(serde::de::Error::custom(format!("{other} is no double"))),
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Search {
    pub(super) traces: Vec<Trace>,
    pub(super) metrics: Option<Metrics>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Trace {
    #[serde(rename = "traceID")]
    pub(super) trace_id: String,
    pub(super) root_service_name: String,
    pub(super) root_trace_name: String,
    #[serde(deserialize_with = "long")]
    pub(super) start_time_unix_nano: u64,
    pub(super) duration_ms: u32,
    pub(super) span_set: Option<SpanSet>,
    pub(super) span_sets: Vec<SpanSet>,
    pub(super) service_stats: BTreeMap<String, ServiceStats>,
}

impl Trace {
    /// All spans that matched and are shown.
    pub(super) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.span_sets.iter().flat_map(|set| &set.spans)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct ServiceStats {
    pub(super) span_count: u32,
    pub(super) error_count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SpanSet {
    pub(super) spans: Vec<Span>,
    pub(super) matched: u32,
    pub(super) attributes: Vec<KeyValue>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Span {
    #[serde(rename = "spanID")]
    pub(super) span_id: String,
    pub(super) name: String,
    #[serde(deserialize_with = "long")]
    pub(super) start_time_unix_nano: u64,
    #[serde(deserialize_with = "long")]
    pub(super) duration_nanos: u64,
    pub(super) attributes: Vec<KeyValue>,
}

impl Span {
    pub(super) fn attribute(&self, key: &str) -> Option<&AnyValue> {
        self.attributes.iter().find(|attribute| attribute.key == key).map(|attribute| &attribute.value)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: AnyValue,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum AnyValue {
    #[serde(rename = "stringValue")]
    String(String),
    #[serde(rename = "intValue", deserialize_with = "signed")]
    Int(i64),
    #[serde(rename = "doubleValue", deserialize_with = "double")]
    Double(f64),
    #[serde(rename = "boolValue")]
    Bool(bool),
    #[serde(rename = "arrayValue")]
    Array(Array),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Array {
    pub(super) values: Vec<AnyValue>,
}

/// Cost of searches and metrics queries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Metrics {
    pub(super) inspected_traces: u32,
    #[serde(deserialize_with = "long")]
    pub(super) inspected_bytes: u64,
    pub(super) total_blocks: u32,
    pub(super) completed_jobs: u32,
    pub(super) total_jobs: u32,
    #[serde(deserialize_with = "long")]
    pub(super) total_block_bytes: u64,
    #[serde(deserialize_with = "long")]
    pub(super) inspected_spans: u64,
}

/// Cost of tag queries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct MetadataMetrics {
    #[serde(deserialize_with = "long")]
    pub(super) inspected_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct TagNames {
    pub(super) tag_names: Vec<String>,
    pub(super) metrics: Option<MetadataMetrics>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TagScopes {
    pub(super) scopes: Vec<TagScope>,
    pub(super) metrics: Option<MetadataMetrics>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TagScope {
    pub(super) name: String,
    pub(super) tags: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct TagValues {
    pub(super) tag_values: Vec<String>,
    pub(super) metrics: Option<MetadataMetrics>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct TypedTagValues {
    pub(super) tag_values: Vec<TagValue>,
    pub(super) metrics: Option<MetadataMetrics>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TagValue {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) value: String,
}

/// `/api/metrics/query_range`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsRange {
    pub(super) series: Vec<Series>,
    pub(super) metrics: Option<Metrics>,
    pub(super) status: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Series {
    pub(super) labels: Vec<KeyValue>,
    pub(super) samples: Vec<Sample>,
    pub(super) exemplars: Vec<Exemplar>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Sample {
    #[serde(deserialize_with = "signed")]
    pub(super) timestamp_ms: i64,
    #[serde(deserialize_with = "double")]
    pub(super) value: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Exemplar {
    pub(super) labels: Vec<KeyValue>,
    #[serde(deserialize_with = "double")]
    pub(super) value: f64,
    #[serde(deserialize_with = "signed")]
    pub(super) timestamp_ms: i64,
}

/// `/api/metrics/query`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsInstant {
    pub(super) series: Vec<InstantSeries>,
    pub(super) metrics: Option<Metrics>,
    pub(super) status: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct InstantSeries {
    pub(super) labels: Vec<KeyValue>,
    #[serde(deserialize_with = "double")]
    pub(super) value: f64,
}
