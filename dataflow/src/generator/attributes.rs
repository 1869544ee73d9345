//! Looks into resources and spans as they lie on the wire: attributes by key, and any value as the text of a label.
//!
//! Nothing is decoded that nobody asks for. The messages were validated before the acknowledgement; what is torn nevertheless reads as
//! absent.

use std::{borrow::Cow, fmt::Write};

use storage::otlp::wire::{Valid, Value};

use super::agg::Weight;

/// Field number of `Resource.attributes`.
pub const RESOURCE_ATTRIBUTES: u32 = 1;
/// Field number of `Span.trace_state`.
const TRACE_STATE: u32 = 3;
/// Field number of `Span.attributes`.
pub const SPAN_ATTRIBUTES: u32 = 9;

/// How deep values may nest before their text is cut off; validated messages stay below.
const MAX_DEPTH: usize = 100;

/// Key and value (an encoded `AnyValue`; empty where there is none) of the attributes in a message.
pub fn attributes(message: &[u8], field: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
    let of_field = move |found: storage::otlp::wire::Field<'_>| found.number == field;
    Valid::new(message).filter(move |found| of_field(*found)).filter_map(|found| found.value.bytes()).map(key_value)
}

/// Key and value of an encoded `KeyValue`.
#[inline]
pub fn key_value(message: &[u8]) -> (&[u8], &[u8]) {
    // As everybody writes it: both short, the key first, nothing else.
    if let [0x0a, length @ ..0x80, rest @ ..] = message
        && let Some((key, [0x12, length @ ..0x80, value @ ..])) = rest.split_at_checked(usize::from(*length))
        && value.len() == usize::from(*length)
    {
        return (key, value);
    }
    any_key_value(message)
}

#[inline(never)]
fn any_key_value(message: &[u8]) -> (&[u8], &[u8]) {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    for field in Valid::new(message) {
        match (field.number, field.value) {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    (key, value)
}

/// The first attribute with this key: its encoded `AnyValue`.
pub fn find<'a>(message: &'a [u8], field: u32, key: &[u8]) -> Option<&'a [u8]> {
    attributes(message, field).find(|(there, _)| *there == key).map(|(_, value)| value)
}

/// An `AnyValue`, one level deep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Any<'a> {
    /// None of the others.
    Unset,
    /// A string; its bytes, which were validated as UTF-8.
    String(&'a [u8]),
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// The encoded `ArrayValue`.
    Array(&'a [u8]),
    /// The encoded `KeyValueList`.
    KeyValueList(&'a [u8]),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// Looks into an encoded `AnyValue`.
pub fn any(value: &[u8]) -> Any<'_> {
    let mut found = Any::Unset;
    for field in Valid::new(value) {
        found = match (field.number, field.value) {
            (1, Value::Bytes(text)) => Any::String(text),
            (2, Value::Varint(bool)) => Any::Bool(bool != 0),
            (3, Value::Varint(int)) => Any::Int(int as i64),
            (4, Value::Fixed64(bits)) => Any::Double(f64::from_bits(bits)),
            (5, Value::Bytes(array)) => Any::Array(array),
            (6, Value::Bytes(list)) => Any::KeyValueList(list),
            (7, Value::Bytes(bytes)) => Any::Bytes(bytes),
            _ => found,
        };
    }
    found
}

/// An encoded `AnyValue` as Tempo writes it into a label; `None` for bytes that are not UTF-8.
pub fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    match any(value) {
        Any::String(text) => std::str::from_utf8(text).ok().map(Cow::Borrowed),
        Any::Bool(bool) => Some(Cow::Borrowed(if bool { "true" } else { "false" })),
        Any::Unset | Any::Bytes(_) => Some(Cow::Borrowed("")),
        _ => {
            let mut text = String::new();
            write_text(value, &mut text, MAX_DEPTH)?;
            Some(Cow::Owned(text))
        }
    }
}

fn write_text(value: &[u8], out: &mut String, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match any(value) {
        Any::Unset | Any::Bytes(_) => {}
        Any::String(text) => out.push_str(std::str::from_utf8(text).ok()?),
        Any::Bool(bool) => out.push_str(if bool { "true" } else { "false" }),
        // Writing to a string does not fail. Rust's numbers are shortest and without exponent, as Tempo's are.
        Any::Int(int) => write!(out, "{int}").ok()?,
        Any::Double(double) if double.is_nan() => out.push_str("NaN"),
        Any::Double(double) if double.is_infinite() => out.push_str(if double > 0.0 { "+Inf" } else { "-Inf" }),
        Any::Double(double) => write!(out, "{double}").ok()?,
        Any::Array(array) => {
            out.push('[');
            for element in attributes_raw(array) {
                write_text(element, out, depth)?;
            }
            out.push(']');
        }
        Any::KeyValueList(list) => {
            out.push('{');
            for element in attributes_raw(list) {
                let (key, value) = key_value(element);
                out.push_str(std::str::from_utf8(key).ok()?);
                out.push(':');
                write_text(value, out, depth)?;
            }
            out.push('}');
        }
    }
    Some(())
}

/// The elements of an encoded `ArrayValue` or `KeyValueList`.
fn attributes_raw(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    Valid::new(message).filter(|field| field.number == 1).filter_map(|field| field.value.bytes())
}

/// How many spans a span stands for: 1/v for the first positive double v under `key` in the span or else in its resource. Where there is
/// none, or no `key`: what its trace state says, if that is asked for, or one.
pub fn weight(resource: &[u8], span: &[u8], key: &str, in_trace_state: bool) -> Weight {
    let otherwise = || if in_trace_state { sampling_weight(span) } else { Weight::ONE };
    if key.is_empty() {
        return otherwise();
    }
    let both = attributes(span, SPAN_ATTRIBUTES).chain(attributes(resource, RESOURCE_ATTRIBUTES));
    let ratio = both.filter(|(there, _)| *there == key.as_bytes()).find_map(|(_, value)| match any(value) {
        Any::Double(ratio) if ratio > 0.0 => Some(ratio),
        _ => None,
    });
    ratio.map_or_else(otherwise, Weight::of_ratio)
}

/// How many spans a span stands for by the threshold with which it was sampled: `ot=th:…` in its trace state, as OpenTelemetry defines it.
/// One where there is none.
pub fn sampling_weight(span: &[u8]) -> Weight {
    let of_state = |field: storage::otlp::wire::Field<'_>| field.number == TRACE_STATE;
    let state = Valid::new(span).find(|field| of_state(*field)).and_then(|field| field.value.bytes());
    let state = state.and_then(|state| std::str::from_utf8(state).ok()).unwrap_or_default();
    let member = state.split(',').find_map(|member| member.trim().strip_prefix("ot="));
    let threshold = member.and_then(|member| member.split(';').find_map(|part| part.strip_prefix("th:")));
    // Up to 14 hexadecimal digits; those that are left out at the end are zeros.
    let is_valid = |digits: &&str| (1..=14).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let threshold = threshold.filter(is_valid).and_then(|digits| u64::from_str_radix(&format!("{digits:0<14}"), 16).ok());
    threshold.map_or(Weight::ONE, Weight::of_threshold)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value as V};
    use prost::Message;

    use super::*;

    fn value(value: V) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    fn pair(key: &str, of: V) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(value(of)), ..KeyValue::default() }
    }

    #[test]
    fn the_trace_state_says_how_many_a_span_stands_for() {
        use opentelemetry_proto::tonic::trace::v1::Span;
        for (trace_state, expected) in [
            ("", 1.0),
            ("ot=th:0", 1.0),
            ("ot=th:8", 2.0),
            ("ot=th:c;rv:12345678901234", 4.0),
            ("vendor=th:c, ot=rv:1;th:fd70a4", 100.0),
            ("ot=th:ffffffffffffff", 2f64.powi(56)),
            ("ot=th:fffffffffffffff", 1.0),
            ("ot=th:xyz", 1.0),
            ("ot=th:", 1.0),
        ] {
            let attributes = vec![pair("ratio", V::DoubleValue(0.125))];
            let span = Span { trace_state: trace_state.to_owned(), attributes, ..Span::default() }.encode_to_vec();
            let close =
                |weight: Weight, expected: f64| assert!((weight.as_f64() / expected - 1.0).abs() < 1e-6, "{trace_state}: {weight:?}");
            close(weight(&[], &span, "", true), expected);
            close(weight(&[], &span, "absent", true), expected);
            close(weight(&[], &span, "ratio", true), 8.0);
            close(weight(&[], &span, "", false), 1.0);
        }
    }

    #[test]
    fn values_read_as_tempo_writes_them() {
        let list = |values: Vec<V>| V::ArrayValue(ArrayValue { values: values.into_iter().map(value).collect() });
        let map = |values| V::KvlistValue(KeyValueList { values });
        for (of, expected) in [
            (V::StringValue("x y".to_owned()), "x y"),
            (V::BoolValue(true), "true"),
            (V::IntValue(-42), "-42"),
            (V::DoubleValue(0.5), "0.5"),
            (V::DoubleValue(1e20), "100000000000000000000"),
            (list(vec![V::StringValue("x".to_owned()), V::StringValue("y".to_owned())]), "[xy]"),
            (map(vec![pair("a", V::IntValue(1)), pair("b", list(vec![V::BoolValue(false)]))]), "{a:1b:[false]}"),
            (V::BytesValue(vec![1, 2]), ""),
        ] {
            assert_eq!(text(&value(of).encode_to_vec()).as_deref(), Some(expected));
        }
        assert_eq!(text(&[]).as_deref(), Some(""));
        assert_eq!(text(&[0x0a, 1, 0xff]), None, "not UTF-8");
    }
}
