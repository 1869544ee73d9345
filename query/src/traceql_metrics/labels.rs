//! Labels of series: typed values, their order, and how they are shown.
//!
//! A group of spans is known by the values of the `by` fields, one for each, absent ones among them. What a client sees drops the absent
//! ones, and shows durations and keywords as text. Values of different types are different groups: `1` is not `"1"`.

use std::{cmp::Ordering, fmt::Write as _};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

use crate::traceql::{Kind, Status, Value};

/// Label of the function's name on series without groups.
pub(super) const NAME: &str = "__name__";
/// Label of a bucket's upper bound.
pub(super) const BUCKET: &str = "__bucket";
/// Label of a quantile.
pub(super) const QUANTILE: &str = "p";
/// Label that tells what a series of `compare()` counts.
pub(super) const META_TYPE: &str = "__meta_type";
/// Of that label: a series that counts the values behind averages.
pub(super) const COUNT: &str = "__count";
/// Label of an exemplar's trace.
pub(super) const TRACE_ID: &str = "trace:id";
/// What an absent value is shown as where something must be shown.
const NIL: &str = "nil";

/// The value of a `by` field, or of an attribute that is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LabelValue {
    /// Absent.
    Nil,
    /// 64-bit integer.
    Int(i64),
    /// Bits of a double.
    Float(u64),
    /// Text.
    Text(Box<str>),
    /// `true` or `false`.
    Bool(bool),
    /// Nanoseconds, shown as text.
    Duration(i64),
    /// Status, shown as text.
    Status(Status),
    /// Kind, shown as text.
    Kind(Kind),
}

/// A [`LabelValue`] that is looked for: text is borrowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LabelRef<'v> {
    /// Text.
    Text(&'v str),
    /// Any other value.
    Other(LabelValue),
}

/// The values of the `by` fields, in their order.
pub type Group = Box<[LabelValue]>;

impl From<Value> for LabelValue {
    fn from(value: Value) -> Self {
        match value {
            Value::Nil => Self::Nil,
            Value::Int(number) => Self::Int(number),
            Value::Float(number) => Self::float(number),
            Value::String(text) => Self::Text(text.into_boxed_str()),
            Value::Bool(value) => Self::Bool(value),
            Value::Duration(nanos) => Self::Duration(nanos),
            Value::Status(status) => Self::Status(status),
            Value::Kind(kind) => Self::Kind(kind),
            // Series have no arrays; they are told apart from absent values and not from each other.
            Value::Array(_) => Self::Text(NIL.into()),
        }
    }
}

impl<'v> From<&'v LabelValue> for LabelRef<'v> {
    fn from(value: &'v LabelValue) -> Self {
        if let LabelValue::Text(text) = value { Self::Text(text) } else { Self::Other(value.clone()) }
    }
}

impl<'v> From<&'v Value> for LabelRef<'v> {
    fn from(value: &'v Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            Value::Array(_) => Self::Text(NIL),
            other => Self::Other(LabelValue::from(other.clone())),
        }
    }
}

impl LabelRef<'_> {
    pub(super) fn to_value(&self) -> LabelValue {
        match self {
            Self::Text(text) => LabelValue::Text((*text).into()),
            Self::Other(value) => value.clone(),
        }
    }

    /// As of [`LabelValue::heap_bytes`].
    pub(super) fn heap_bytes(&self) -> usize {
        if let Self::Text(text) = self { text.len() } else { 0 }
    }
}

impl LabelValue {
    /// A double. Not-a-number is one value.
    pub fn float(number: f64) -> Self {
        Self::Float(if number.is_nan() { f64::NAN.to_bits() } else { number.to_bits() })
    }

    /// The value as clients see it.
    pub(super) fn shown(&self) -> any_value::Value {
        match self {
            Self::Int(number) => any_value::Value::IntValue(*number),
            Self::Float(bits) => any_value::Value::DoubleValue(f64::from_bits(*bits)),
            Self::Bool(value) => any_value::Value::BoolValue(*value),
            Self::Nil | Self::Text(_) | Self::Duration(_) | Self::Status(_) | Self::Kind(_) => any_value::Value::StringValue(self.text()),
        }
    }

    /// The value as text: what series are sorted by.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Nil => NIL.to_owned(),
            Self::Int(number) => number.to_string(),
            Self::Float(bits) => f64::from_bits(*bits).to_string(),
            Self::Text(text) => text.as_ref().to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Duration(nanos) => crate::duration::to_go(*nanos),
            Self::Status(status) => status.as_str().to_owned(),
            Self::Kind(kind) => kind.as_str().to_owned(),
        }
    }

    /// Bytes of memory beyond the value itself.
    pub(super) fn heap_bytes(&self) -> usize {
        if let Self::Text(text) = self { text.len() } else { 0 }
    }
}

/// A label of a finished series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Label {
    pub(super) key: std::sync::Arc<str>,
    pub(super) value: LabelValue,
}

impl Label {
    pub(super) fn new(key: &str, value: LabelValue) -> Self {
        Self { key: key.into(), value }
    }

    pub(super) fn shown(&self) -> KeyValue {
        key_value(&self.key, self.value.shown())
    }
}

/// An attribute of an answer.
pub(super) fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The labels of a group: absent values are left out, but something is always there.
pub(super) fn group_labels(keys: &[std::sync::Arc<str>], group: &[LabelValue]) -> Vec<Label> {
    let of = |(key, value): (&std::sync::Arc<str>, &LabelValue)| Label { key: std::sync::Arc::clone(key), value: value.clone() };
    let labels: Vec<Label> = keys.iter().zip(group).filter(|(_, value)| **value != LabelValue::Nil).map(of).collect();
    if labels.is_empty() {
        // Shown as the text, so that it is one series with the groups of that text.
        return keys
            .first()
            .map(|key| Label { key: std::sync::Arc::clone(key), value: LabelValue::Text(NIL.into()) })
            .into_iter()
            .collect();
    }
    labels
}

/// The place of a series among others: by number of labels, then label by label its key and the text of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SortKey {
    labels: usize,
    text: String,
}

impl SortKey {
    pub(super) fn new(labels: &[Label]) -> Self {
        let mut text = String::new();
        for label in labels {
            // Separators sort before everything else; the type tells equal texts apart.
            let _ = write!(text, "{}\0{}\0{}\0", label.key, label.value.text(), rank(&label.value));
        }
        Self { labels: labels.len(), text }
    }

    pub(super) fn to_parts(&self) -> (u64, &str) {
        (self.labels as u64, &self.text)
    }

    pub(super) fn from_parts(labels: u64, text: String) -> Self {
        Self { labels: usize::try_from(labels).unwrap_or(usize::MAX), text }
    }
}

fn rank(value: &LabelValue) -> u8 {
    match value {
        LabelValue::Int(_) => 0,
        LabelValue::Float(_) => 1,
        LabelValue::Bool(_) => 2,
        // All of these are shown as text.
        _ => 3,
    }
}

impl Ord for SortKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.labels, &self.text).cmp(&(other.labels, &other.text))
    }
}

impl PartialOrd for SortKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Order for ties of `topk` and `bottomk`: label by label the text of the value, then the key.
pub(super) fn rank_order(left: &[Label], right: &[Label]) -> Ordering {
    let text = |label: &Label| (label.value.text(), std::sync::Arc::clone(&label.key));
    left.iter().map(text).cmp(right.iter().map(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_values_are_left_out_but_not_all_of_them() {
        let keys = ["span.a".into(), "name".into()];
        let text = |text: &str| LabelValue::Text(text.into());
        let shown = |group: [LabelValue; 2]| {
            let labels = group_labels(&keys, &group);
            labels.iter().map(|label| format!("{}={}", label.key, label.value.text())).collect::<Vec<_>>().join(",")
        };
        assert_eq!(shown([LabelValue::Int(1), text("x")]), "span.a=1,name=x");
        assert_eq!(shown([LabelValue::Nil, text("x")]), "name=x");
        assert_eq!(shown([LabelValue::Nil, LabelValue::Nil]), "span.a=nil");
        assert_eq!(LabelValue::Duration(1_500_000_000).shown(), any_value::Value::StringValue("1.5s".to_owned()));
        assert_eq!(LabelValue::from(Value::Array(vec![Value::Int(1), Value::Int(2)])), text("nil"));
    }

    #[test]
    fn series_are_sorted_by_number_of_labels_then_key_then_text() {
        let labels = |pairs: &[(&str, LabelValue)]| pairs.iter().map(|(key, value)| Label::new(key, value.clone())).collect::<Vec<_>>();
        let text = |text: &str| LabelValue::Text(text.into());
        let sorted = [
            labels(&[("a", LabelValue::Int(10))]),
            labels(&[("a", LabelValue::Int(9))]),
            labels(&[("a", text("9"))]),
            labels(&[("a", text("x"))]),
            labels(&[("a", text("xa"))]),
            labels(&[("b", text("a"))]),
            labels(&[("a", text("x")), ("p", LabelValue::float(0.5))]),
        ];
        let keys: Vec<SortKey> = sorted.iter().map(|labels| SortKey::new(labels)).collect();
        assert!(keys.is_sorted_by(|left, right| left < right), "{keys:?}");
    }
}
