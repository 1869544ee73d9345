//! `AnyValue` as compact proto3 JSON, for the values that have no typed column (block-format.md §8.4).
//!
//! `{"arrayValue":{"values":[{"stringValue":"a"},{"intValue":"1"}]}}`: 64-bit integers and non-finite doubles are strings, bytes are
//! base64, a set member is written even when it holds the default. Reading takes what any proto3 JSON writer may produce; depth is
//! bounded before anything recursive looks at the text.

use std::fmt::Write as _;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value};
use serde::Deserialize as _;
use serde_json::Value as Json;

/// Brackets that may be open at once: three per level of an `AnyValue`, of which the wire allows a hundred.
const MAX_BRACKETS: usize = 400;

/// The value as JSON.
pub(crate) fn write(value: Option<&Value>) -> String {
    let mut out = String::new();
    write_any(value, &mut out);
    out
}

fn write_any(value: Option<&Value>, out: &mut String) {
    // Writing into a string cannot fail.
    let _ = match value {
        None | Some(Value::StringValueStrindex(_)) => write!(out, "{{}}"),
        Some(Value::StringValue(text)) => {
            out.push_str("{\"stringValue\":");
            write_string(text, out);
            write!(out, "}}")
        }
        Some(Value::BoolValue(value)) => write!(out, "{{\"boolValue\":{value}}}"),
        Some(Value::IntValue(value)) => write!(out, "{{\"intValue\":\"{value}\"}}"),
        Some(Value::DoubleValue(value)) if value.is_nan() => write!(out, "{{\"doubleValue\":\"NaN\"}}"),
        Some(Value::DoubleValue(value)) if value.is_infinite() => {
            write!(out, "{{\"doubleValue\":\"{}\"}}", if *value > 0.0 { "Infinity" } else { "-Infinity" })
        }
        Some(Value::DoubleValue(value)) if *value != 0.0 && !(1e-6..1e21).contains(&value.abs()) => {
            write!(out, "{{\"doubleValue\":{value:e}}}")
        }
        Some(Value::DoubleValue(value)) => write!(out, "{{\"doubleValue\":{value}}}"),
        Some(Value::BytesValue(bytes)) => write!(out, "{{\"bytesValue\":\"{}\"}}", STANDARD.encode(bytes)),
        Some(Value::ArrayValue(array)) => {
            out.push_str("{\"arrayValue\":{");
            if !array.values.is_empty() {
                out.push_str("\"values\":[");
                for (index, element) in array.values.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_any(element.value.as_ref(), out);
                }
                out.push(']');
            }
            write!(out, "}}}}")
        }
        Some(Value::KvlistValue(list)) => {
            out.push_str("{\"kvlistValue\":{");
            if !list.values.is_empty() {
                out.push_str("\"values\":[");
                for (index, entry) in list.values.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_entry(entry, out);
                }
                out.push(']');
            }
            write!(out, "}}}}")
        }
    };
}

fn write_entry(entry: &KeyValue, out: &mut String) {
    out.push('{');
    if !entry.key.is_empty() {
        out.push_str("\"key\":");
        write_string(&entry.key, out);
    }
    if let Some(value) = &entry.value {
        out.push_str(if entry.key.is_empty() { "\"value\":" } else { ",\"value\":" });
        write_any(value.value.as_ref(), out);
    }
    out.push('}');
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        let _ = match character {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            control if control < ' ' => write!(out, "\\u{:04x}", control as u32),
            other => {
                out.push(other);
                Ok(())
            }
        };
    }
    out.push('"');
}

/// Reads what [`write`] or another proto3 JSON writer wrote.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn read(text: &[u8]) -> Result<AnyValue, String> {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_BRACKETS {
        return Err(format!("attribute value is nested {deepest} deep"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.disable_recursion_limit();
    let json = Json::deserialize(&mut deserializer).map_err(|e| format!("attribute value is not JSON: {e}"))?;
    deserializer.end().map_err(|e| format!("attribute value is not JSON: {e}"))?;
    read_any(&json)
}

fn member<'a>(json: &'a Json, camel: &str, snake: &str) -> Option<&'a Json> {
    json.get(camel).or_else(|| json.get(snake)).filter(|value| !value.is_null())
}

fn read_any(json: &Json) -> Result<AnyValue, String> {
    let object = json.as_object().ok_or_else(|| "attribute value is not a JSON object".to_owned())?;
    let Some((name, content)) = object.iter().find(|(_, value)| !value.is_null()) else { return Ok(AnyValue { value: None }) };
    let wrong = || format!("attribute value has a {name} of the wrong type");
    let text = content.as_str();
    let value = match name.as_str() {
        "stringValue" | "string_value" => Value::StringValue(text.ok_or_else(wrong)?.to_owned()),
        "boolValue" | "bool_value" => Value::BoolValue(content.as_bool().ok_or_else(wrong)?),
        "intValue" | "int_value" => Value::IntValue(content.as_i64().or_else(|| text?.parse().ok()).ok_or_else(wrong)?),
        "doubleValue" | "double_value" => Value::DoubleValue(content.as_f64().or_else(|| text?.parse().ok()).ok_or_else(wrong)?),
        "bytesValue" | "bytes_value" => {
            let text = text.ok_or_else(wrong)?;
            let decoded = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].iter().find_map(|engine| engine.decode(text).ok());
            Value::BytesValue(decoded.ok_or_else(wrong)?)
        }
        "arrayValue" | "array_value" => Value::ArrayValue(ArrayValue { values: elements(content, read_any).ok_or_else(wrong)?? }),
        "kvlistValue" | "kvlist_value" => Value::KvlistValue(KeyValueList {
            values: elements(content, |entry| {
                Ok(KeyValue {
                    key: member(entry, "key", "key").and_then(Json::as_str).unwrap_or_default().to_owned(),
                    value: member(entry, "value", "value").map(read_any).transpose()?,
                    ..KeyValue::default()
                })
            })
            .ok_or_else(wrong)??,
        }),
        _ => return Err(format!("attribute value has an unknown member \"{name}\"")),
    };
    Ok(AnyValue { value: Some(value) })
}

fn elements<T>(json: &Json, each: impl Fn(&Json) -> Result<T, String>) -> Option<Result<Vec<T>, String>> {
    let object = json.as_object()?;
    match object.get("values") {
        None | Some(Json::Null) => Some(Ok(Vec::new())),
        Some(values) => Some(values.as_array()?.iter().map(each).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_as_in_the_format_description() {
        let any = |value| AnyValue { value: Some(value) };
        let array = Value::ArrayValue(ArrayValue { values: vec![any(Value::StringValue("a".to_owned())), any(Value::IntValue(1))] });
        assert_eq!(write(Some(&array)), r#"{"arrayValue":{"values":[{"stringValue":"a"},{"intValue":"1"}]}}"#);
        let list = Value::KvlistValue(KeyValueList {
            values: vec![KeyValue { key: "k".to_owned(), value: Some(any(Value::BoolValue(true))), ..KeyValue::default() }],
        });
        assert_eq!(write(Some(&list)), r#"{"kvlistValue":{"values":[{"key":"k","value":{"boolValue":true}}]}}"#);
        assert_eq!(write(Some(&Value::BytesValue(vec![0, 1, 2, 255]))), r#"{"bytesValue":"AAEC/w=="}"#);
        assert_eq!(write(Some(&Value::KvlistValue(KeyValueList::default()))), r#"{"kvlistValue":{}}"#);
        assert_eq!(write(None), "{}");
        assert_eq!(write(Some(&Value::DoubleValue(2.0))), r#"{"doubleValue":2}"#);
    }

    #[test]
    fn every_value_comes_back() {
        let doubles =
            [0.0, -2.5, 1e300, -1e-300, f64::MIN_POSITIVE, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, 1e21, 123_456_789.123_456_79];
        let mut values: Vec<Value> = doubles.map(Value::DoubleValue).into();
        values.extend([i64::MIN, -1, 0, i64::MAX].map(Value::IntValue));
        values.push(Value::StringValue("\"\\\u{1}\n\r\t<é\u{1f980}".to_owned()));
        let mut deep = AnyValue {
            value: Some(Value::ArrayValue(ArrayValue { values: values.into_iter().map(|v| AnyValue { value: Some(v) }).collect() })),
        };
        for level in 0..98 {
            let value = if level % 2 == 0 {
                Value::ArrayValue(ArrayValue { values: vec![deep, AnyValue::default()] })
            } else {
                Value::KvlistValue(KeyValueList { values: vec![KeyValue { key: String::new(), value: Some(deep), ..KeyValue::default() }] })
            };
            deep = AnyValue { value: Some(value) };
        }
        assert_eq!(read(write(deep.value.as_ref()).as_bytes()), Ok(deep));
    }

    #[test]
    fn bad_json_is_an_error() {
        for bad in [
            "",
            "{",
            "[]",
            "{\"intValue\":{}}",
            "{\"intValue\":\"1x\"}",
            "{\"bytesValue\":\"!\"}",
            "{\"arrayValue\":1}",
            "{\"foo\":1}",
            "{}{}",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read("{\"arrayValue\":{\"values\":[".repeat(100_000).as_bytes()).is_err());
        assert_eq!(read(br#"{"int_value":5}"#), Ok(AnyValue { value: Some(Value::IntValue(5)) }));
    }
}
