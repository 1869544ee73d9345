//! One attribute: from the wire to a value, and from a value to the leaves of a generic attribute (block-format.md §8.4).
//!
//! ```text
//!  KeyValue bytes ─ read ─► key, Value ─ code ─► Coded ─ push_coded ─► vParquet4, 5: Key, IsArray, four lists, ValueUnsupported
//!                                                                  └─► vParquet2, 3: Key, four optional values, two of JSON
//! ```

use std::borrow::Cow;

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value as Any};
use prost::Message as _;

use super::{
    columns::{Columns, Dictionary, Double, Flag, Integer, ListId, Text},
    format::Format,
    json,
};
use crate::otlp::{
    WireError,
    wire::{Fields, Value as Wire},
};

/// An attribute's value. Strings borrow from the wire where they can.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    Text(Cow<'a, [u8]>),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// Arrays, lists, bytes, and no value at all.
    Other(AnyValue),
}

const BROKEN: WireError = WireError { field: "attributes", cause: "is no key and value" };

/// Key and value of a `KeyValue` message.
#[inline]
pub(super) fn read(message: &[u8]) -> Result<(&[u8], Value<'_>), WireError> {
    // What every exporter writes: a short key, a short value, nothing else.
    if let Some((key, rest)) = short(0x0a, message)
        && let Some((value, [])) = short(0x12, rest)
    {
        return match short(0x0a, value) {
            Some((text, [])) => Ok((key, Value::Text(Cow::Borrowed(text)))),
            _ => Ok((key, read_any(value)?)),
        };
    }
    let (key, value) = read_raw(message)?;
    Ok(match value {
        Cow::Borrowed(value) => (key, read_any(value)?),
        Cow::Owned(value) => (key, read_any_slowly(&value)?),
    })
}

/// Splits off a length-delimited field of less than 128 bytes with this tag.
#[inline(always)]
fn short(tag: u8, message: &[u8]) -> Option<(&[u8], &[u8])> {
    match message {
        [first, length, rest @ ..] if *first == tag && *length < 0x80 => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

/// Key of a `KeyValue` message and the bytes of its `AnyValue`.
pub(super) fn read_raw(message: &[u8]) -> Result<(&[u8], Cow<'_, [u8]>), WireError> {
    let mut key: &[u8] = &[];
    let mut value: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for field in Fields::new(message) {
        let field = field?;
        match (field.number, field.value) {
            (1, Wire::Bytes(bytes)) => key = bytes,
            (2, Wire::Bytes(bytes)) if value.is_empty() => value = Cow::Borrowed(bytes),
            // Messages that appear twice are merged, which is the same as reading one after the other.
            (2, Wire::Bytes(bytes)) => value.to_mut().extend_from_slice(bytes),
            (1 | 2, _) => return Err(BROKEN),
            _ => {}
        }
    }
    Ok((key, value))
}

#[inline]
fn read_any(message: &[u8]) -> Result<Value<'_>, WireError> {
    let mut fields = Fields::new(message);
    let Some(field) = fields.next() else { return Ok(Value::Other(AnyValue::default())) };
    let field = field?;
    let value = match (field.number, field.value) {
        (1, Wire::Bytes(text)) => Value::Text(Cow::Borrowed(text)),
        (2, Wire::Varint(value)) => Value::Bool(value != 0),
        (3, Wire::Varint(value)) => Value::Int(value as i64),
        (4, Wire::Fixed64(bits)) => Value::Double(f64::from_bits(bits)),
        _ => return read_any_slowly(message),
    };
    if fields.next().is_some() {
        // More than one member: the last one counts.
        return read_any_slowly(message);
    }
    Ok(value)
}

/// Arrays, lists, bytes and oddities, by way of `prost`.
#[cold]
fn read_any_slowly(message: &[u8]) -> Result<Value<'static>, WireError> {
    let any = AnyValue::decode(message).map_err(|_| BROKEN)?;
    Ok(match any.value {
        Some(Any::StringValue(text)) => Value::Text(Cow::Owned(text.into_bytes())),
        Some(Any::BoolValue(value)) => Value::Bool(value),
        Some(Any::IntValue(value)) => Value::Int(value),
        Some(Any::DoubleValue(value)) => Value::Double(value),
        value => Value::Other(AnyValue { value }),
    })
}

/// The elements of an array that are all of one type, if they are.
pub(super) fn elements<'a, T>(value: &'a AnyValue, each: impl Fn(&'a Any) -> Option<T>) -> Option<Vec<T>> {
    let Some(Any::ArrayValue(array)) = &value.value else { return None };
    array.values.iter().map(|value| value.value.as_ref().and_then(&each)).collect()
}

/// A string's bytes.
pub(super) fn as_text(value: &Any) -> Option<&[u8]> {
    if let Any::StringValue(text) = value { Some(text.as_bytes()) } else { None }
}

/// An integer.
pub(super) fn as_int(value: &Any) -> Option<i64> {
    if let Any::IntValue(value) = value { Some(*value) } else { None }
}

fn as_double(value: &Any) -> Option<f64> {
    if let Any::DoubleValue(value) = value { Some(*value) } else { None }
}

fn as_bool(value: &Any) -> Option<bool> {
    if let Any::BoolValue(value) = value { Some(*value) } else { None }
}

/// A value as its leaves hold it, whose strings are numbers of the dictionary. Comparable bit by bit.
#[derive(Clone, Debug)]
pub(super) enum Coded {
    Text(u32),
    Int(i64),
    Double(f64),
    Bool(bool),
    Texts(Vec<u32>),
    Ints(Vec<i64>),
    Doubles(Vec<f64>),
    Bools(Vec<bool>),
    EmptyArray,
    /// JSON: in vParquet4 and 5 of all that has no other place.
    Json(String),
    /// JSON of an array, in vParquet2 and 3.
    JsonArray(String),
    /// Only the key is kept: bytes and missing values in vParquet2 and 3.
    Lost,
}

impl Coded {
    /// Appends bytes that are equal exactly for equal values.
    pub(super) fn identity(&self, out: &mut Vec<u8>) {
        fn each<const N: usize>(out: &mut Vec<u8>, tag: u8, words: impl ExactSizeIterator<Item = [u8; N]>) {
            out.push(tag);
            out.extend_from_slice(&(words.len() as u64).to_le_bytes());
            words.for_each(|word| out.extend_from_slice(&word));
        }
        match self {
            Self::Text(code) => each(out, 0, [code.to_le_bytes()].into_iter()),
            Self::Int(value) => each(out, 1, [value.to_le_bytes()].into_iter()),
            Self::Double(value) => each(out, 2, [value.to_le_bytes()].into_iter()),
            Self::Bool(value) => each(out, 3, [[u8::from(*value)]].into_iter()),
            Self::Texts(codes) => each(out, 4, codes.iter().map(|code| code.to_le_bytes())),
            Self::Ints(values) => each(out, 5, values.iter().map(|value| value.to_le_bytes())),
            Self::Doubles(values) => each(out, 6, values.iter().map(|value| value.to_le_bytes())),
            Self::Bools(values) => each(out, 7, values.iter().map(|&value| [u8::from(value)])),
            Self::EmptyArray => out.push(8),
            Self::Json(json) => each(out, 9, json.bytes().map(|byte| [byte])),
            Self::JsonArray(json) => each(out, 10, json.bytes().map(|byte| [byte])),
            Self::Lost => out.push(11),
        }
    }
}

/// The leaves of the generic attributes of one scope.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttributeLeaves {
    list: ListId,
    /// Repetition and definition level of an attribute; those of an element of its value lists are one more.
    level: u8,
    key: Dictionary,
    value: Dictionary,
    value_int: Integer,
    value_double: Double,
    value_bool: Flag,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// vParquet4 and 5: values are lists.
    Lists { is_array: Flag, values: ListId, ints: ListId, doubles: ListId, bools: ListId, unsupported: Text },
    /// vParquet2 and 3: values are optional.
    Optional { lists: Text, arrays: Text },
}

impl AttributeLeaves {
    /// The leaves below `prefix`, such as `rs[].Resource`, whose attributes are at `level`.
    pub(super) fn new(columns: &Columns, format: Format, prefix: &str, level: u8) -> Self {
        let name = |leaf: &str| format!("{prefix}.Attrs[].{leaf}");
        let (mark, shape) = match format {
            Format::V2 | Format::V3 => {
                ("", Shape::Optional { lists: columns.text(&name("ValueKVList")), arrays: columns.text(&name("ValueArray")) })
            }
            Format::V4 | Format::V5 => {
                let shape = Shape::Lists {
                    is_array: columns.flag(&name("IsArray")),
                    values: columns.list(&name("Value[]")),
                    ints: columns.list(&name("ValueInt[]")),
                    doubles: columns.list(&name("ValueDouble[]")),
                    bools: columns.list(&name("ValueBool[]")),
                    unsupported: columns.text(&name("ValueUnsupported")),
                };
                ("[]", shape)
            }
        };
        Self {
            list: columns.list(&format!("{prefix}.Attrs[]")),
            level,
            key: columns.dictionary(&name("Key")),
            value: columns.dictionary(&name(&format!("Value{mark}"))),
            value_int: columns.integer(&name(&format!("ValueInt{mark}"))),
            value_double: columns.double(&name(&format!("ValueDouble{mark}"))),
            value_bool: columns.flag(&name(&format!("ValueBool{mark}"))),
            shape,
        }
    }

    /// Adds that there are no attributes: `definition` is that of what lacks them.
    #[inline]
    pub(super) fn none(&self, columns: &mut Columns, repetition: u8, definition: u8) {
        columns.enter(self.list, repetition, definition);
        if let Shape::Lists { values, ints, doubles, bools, .. } = self.shape {
            for list in [values, ints, doubles, bools] {
                columns.enter(list, repetition, definition);
            }
        }
    }

    /// The number of a key.
    #[inline]
    pub(super) fn key(&self, columns: &mut Columns, key: &[u8]) -> u32 {
        columns.code(self.key, key)
    }

    /// Replaces the strings of a value by numbers.
    pub(super) fn code(&self, columns: &mut Columns, value: &Value<'_>) -> Coded {
        match value {
            Value::Text(text) => Coded::Text(columns.code(self.value, text)),
            Value::Int(value) => Coded::Int(*value),
            Value::Double(value) => Coded::Double(*value),
            Value::Bool(value) => Coded::Bool(*value),
            Value::Other(any) => match (self.shape, &any.value) {
                (Shape::Lists { .. }, _) => self.code_lists(columns, any),
                (Shape::Optional { .. }, Some(Any::ArrayValue(_))) => Coded::JsonArray(json::write(any.value.as_ref())),
                (Shape::Optional { .. }, Some(Any::KvlistValue(_))) => Coded::Json(json::write(any.value.as_ref())),
                (Shape::Optional { .. }, _) => Coded::Lost,
            },
        }
    }

    /// An array whose elements all have the type of the first one, or JSON.
    fn code_lists(&self, columns: &mut Columns, any: &AnyValue) -> Coded {
        if let Some(Any::ArrayValue(array)) = &any.value {
            let same = match array.values.first().map(|first| &first.value) {
                None => Some(Coded::EmptyArray),
                Some(Some(Any::StringValue(_))) => {
                    elements(any, as_text).map(|texts| Coded::Texts(texts.into_iter().map(|text| columns.code(self.value, text)).collect()))
                }
                Some(Some(Any::IntValue(_))) => elements(any, as_int).map(Coded::Ints),
                Some(Some(Any::DoubleValue(_))) => elements(any, as_double).map(Coded::Doubles),
                Some(Some(Any::BoolValue(_))) => elements(any, as_bool).map(Coded::Bools),
                Some(_) => None,
            };
            if let Some(same) = same {
                return same;
            }
        }
        Coded::Json(json::write(any.value.as_ref()))
    }

    /// Adds an attribute straight from the wire.
    #[inline]
    pub(super) fn push(&self, columns: &mut Columns, repetition: u8, key: u32, value: &Value<'_>) {
        if let (Value::Text(text), Shape::Lists { is_array, values, ints, doubles, bools, .. }) = (value, self.shape) {
            let code = columns.code(self.value, text);
            columns.enter(self.list, repetition, self.level);
            columns.push_code(self.key, key);
            columns.push_flag(is_array, false);
            columns.enter(values, repetition, self.level + 1);
            columns.push_code(self.value, code);
            columns.enter(ints, repetition, self.level);
            columns.enter(doubles, repetition, self.level);
            columns.enter(bools, repetition, self.level);
        } else {
            let coded = self.code(columns, value);
            self.push_coded(columns, repetition, key, &coded);
        }
    }

    /// Adds an attribute. `repetition` is 0 for the first attribute of the first … of the row, and [`Self::level`] for a further one.
    #[inline]
    pub(super) fn push_coded(&self, columns: &mut Columns, repetition: u8, key: u32, value: &Coded) {
        columns.enter(self.list, repetition, self.level);
        columns.push_code(self.key, key);
        match self.shape {
            Shape::Lists { is_array, values, ints, doubles, bools, unsupported } => {
                let (t, i, d, b): (&[u32], &[i64], &[f64], &[bool]) = match value {
                    Coded::Text(code) => (std::slice::from_ref(code), &[], &[], &[]),
                    Coded::Int(value) => (&[], std::slice::from_ref(value), &[], &[]),
                    Coded::Double(value) => (&[], &[], std::slice::from_ref(value), &[]),
                    Coded::Bool(value) => (&[], &[], &[], std::slice::from_ref(value)),
                    Coded::Texts(codes) => (codes, &[], &[], &[]),
                    Coded::Ints(values) => (&[], values, &[], &[]),
                    Coded::Doubles(values) => (&[], &[], values, &[]),
                    Coded::Bools(values) => (&[], &[], &[], values),
                    Coded::EmptyArray | Coded::Json(_) | Coded::JsonArray(_) | Coded::Lost => (&[], &[], &[], &[]),
                };
                let array = matches!(value, Coded::Texts(_) | Coded::Ints(_) | Coded::Doubles(_) | Coded::Bools(_) | Coded::EmptyArray);
                columns.push_flag(is_array, array);
                self.elements(columns, values, repetition, t, |columns, &code| columns.push_code(self.value, code));
                self.elements(columns, ints, repetition, i, |columns, &value| columns.push_integer(self.value_int, value));
                self.elements(columns, doubles, repetition, d, |columns, &value| columns.push_double(self.value_double, value));
                self.elements(columns, bools, repetition, b, |columns, &value| columns.push_flag(self.value_bool, value));
                if let Coded::Json(json) = value {
                    let entry = columns.latest(self.list);
                    columns.push_optional_text(unsupported, entry, json.as_bytes());
                }
            }
            Shape::Optional { lists, arrays } => {
                let entry = columns.latest(self.list);
                match value {
                    Coded::Text(code) => columns.push_optional_code(self.value, entry, *code),
                    Coded::Int(value) => columns.push_optional_integer(self.value_int, entry, *value),
                    Coded::Double(value) => columns.push_optional_double(self.value_double, entry, *value),
                    Coded::Bool(value) => columns.push_optional_flag(self.value_bool, entry, *value),
                    Coded::Json(json) => columns.push_optional_text(lists, entry, json.as_bytes()),
                    Coded::JsonArray(json) => columns.push_optional_text(arrays, entry, json.as_bytes()),
                    _ => {}
                }
            }
        }
    }

    #[inline(always)]
    fn elements<T>(&self, columns: &mut Columns, list: ListId, repetition: u8, values: &[T], push: impl Fn(&mut Columns, &T)) {
        let Some((first, others)) = values.split_first() else { return columns.enter(list, repetition, self.level) };
        columns.enter(list, repetition, self.level + 1);
        push(columns, first);
        for value in others {
            columns.enter(list, self.level + 1, self.level + 1);
            push(columns, value);
        }
    }
}
