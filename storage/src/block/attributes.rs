//! One attribute: from the wire to a value, and from a value to the seven leaves of a generic attribute (block-format.md §8.4).

use std::borrow::Cow;

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value as Any};
use prost::Message as _;

use super::{
    columns::{Columns, Dictionary, Double, Flag, Integer, ListId, Text},
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
    Texts(Vec<Vec<u8>>),
    Ints(Vec<i64>),
    Doubles(Vec<f64>),
    Bools(Vec<bool>),
    EmptyArray,
    /// JSON of everything else.
    Unsupported(String),
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
    read_fields(message)
}

/// Splits off a length-delimited field of less than 128 bytes with this tag.
#[inline(always)]
fn short(tag: u8, message: &[u8]) -> Option<(&[u8], &[u8])> {
    match message {
        [first, length, rest @ ..] if *first == tag && *length < 0x80 => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

fn read_fields(message: &[u8]) -> Result<(&[u8], Value<'_>), WireError> {
    let mut key: &[u8] = &[];
    let mut value: Option<&[u8]> = None;
    let mut repeated = Vec::new();
    for field in Fields::new(message) {
        let field = field?;
        match (field.number, field.value) {
            (1, Wire::Bytes(bytes)) => key = bytes,
            (2, Wire::Bytes(bytes)) => {
                // Messages that appear twice are merged, which is the same as reading one after the other.
                if let Some(first) = value.replace(bytes) {
                    repeated.extend_from_slice(first);
                }
            }
            (1 | 2, _) => return Err(BROKEN),
            _ => {}
        }
    }
    let Some(value) = value else { return Ok((key, Value::Unsupported("{}".to_owned()))) };
    if !repeated.is_empty() {
        repeated.extend_from_slice(value);
        return Ok((key, read_any_slowly(&repeated)?));
    }
    Ok((key, read_any(value)?))
}

#[inline]
fn read_any(message: &[u8]) -> Result<Value<'_>, WireError> {
    let mut fields = Fields::new(message);
    let Some(field) = fields.next() else { return Ok(Value::Unsupported("{}".to_owned())) };
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
    Ok(match &any.value {
        Some(Any::StringValue(text)) => Value::Text(Cow::Owned(text.clone().into_bytes())),
        Some(Any::BoolValue(value)) => Value::Bool(*value),
        Some(Any::IntValue(value)) => Value::Int(*value),
        Some(Any::DoubleValue(value)) => Value::Double(*value),
        Some(Any::ArrayValue(array)) => {
            let values: Vec<_> = array.values.iter().map(|v| v.value.as_ref()).collect();
            same_type(&values).unwrap_or_else(|| Value::Unsupported(json::write(any.value.as_ref())))
        }
        other => Value::Unsupported(json::write(other.as_ref())),
    })
}

/// An array whose elements all have the type of the first one.
fn same_type(values: &[Option<&Any>]) -> Option<Value<'static>> {
    fn all<T>(values: &[Option<&Any>], each: impl Fn(&Any) -> Option<T>) -> Option<Vec<T>> {
        values.iter().map(|value| value.and_then(&each)).collect()
    }
    let Some(first) = values.first() else { return Some(Value::EmptyArray) };
    Some(match first {
        Some(Any::StringValue(_)) => {
            Value::Texts(all(values, |v| if let Any::StringValue(v) = v { Some(v.clone().into_bytes()) } else { None })?)
        }
        Some(Any::IntValue(_)) => Value::Ints(all(values, |v| if let Any::IntValue(v) = v { Some(*v) } else { None })?),
        Some(Any::DoubleValue(_)) => Value::Doubles(all(values, |v| if let Any::DoubleValue(v) = v { Some(*v) } else { None })?),
        Some(Any::BoolValue(_)) => Value::Bools(all(values, |v| if let Any::BoolValue(v) = v { Some(*v) } else { None })?),
        _ => return None,
    })
}

/// A value whose strings are numbers of the dictionary: what is kept of resources and scopes. Comparable bit by bit.
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
    Unsupported(String),
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
            Self::Unsupported(json) => each(out, 9, json.bytes().map(|byte| [byte])),
        }
    }
}

/// The leaves of the generic attributes of one scope.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttributeLeaves {
    list: ListId,
    values: ListId,
    ints: ListId,
    doubles: ListId,
    bools: ListId,
    /// Repetition and definition level of an attribute; those of an element of its value lists are one more.
    level: u8,
    key: Dictionary,
    is_array: Flag,
    value: Dictionary,
    value_int: Integer,
    value_double: Double,
    value_bool: Flag,
    unsupported: Text,
}

impl AttributeLeaves {
    /// The leaves below `prefix`, such as `rs[].Resource`, whose attributes are at `level`.
    pub(super) fn new(columns: &Columns, prefix: &str, level: u8) -> Self {
        let name = |leaf: &str| format!("{prefix}.Attrs[].{leaf}");
        Self {
            list: columns.list(&format!("{prefix}.Attrs[]")),
            values: columns.list(&name("Value[]")),
            ints: columns.list(&name("ValueInt[]")),
            doubles: columns.list(&name("ValueDouble[]")),
            bools: columns.list(&name("ValueBool[]")),
            level,
            key: columns.dictionary(&name("Key")),
            is_array: columns.flag(&name("IsArray")),
            value: columns.dictionary(&name("Value[]")),
            value_int: columns.integer(&name("ValueInt[]")),
            value_double: columns.double(&name("ValueDouble[]")),
            value_bool: columns.flag(&name("ValueBool[]")),
            unsupported: columns.text(&name("ValueUnsupported")),
        }
    }

    /// Adds that there are no attributes: `definition` is that of what lacks them.
    #[inline]
    pub(super) fn none(&self, columns: &mut Columns, repetition: u8, definition: u8) {
        for list in [self.list, self.values, self.ints, self.doubles, self.bools] {
            columns.enter(list, repetition, definition);
        }
    }

    /// The number of a key.
    #[inline]
    pub(super) fn key(&self, columns: &mut Columns, key: &[u8]) -> u32 {
        columns.code(self.key, key)
    }

    /// Replaces the strings of a value by numbers.
    pub(super) fn code(&self, columns: &mut Columns, value: Value<'_>) -> Coded {
        match value {
            Value::Text(text) => Coded::Text(columns.code(self.value, &text)),
            Value::Int(value) => Coded::Int(value),
            Value::Double(value) => Coded::Double(value),
            Value::Bool(value) => Coded::Bool(value),
            Value::Texts(texts) => Coded::Texts(texts.iter().map(|text| columns.code(self.value, text)).collect()),
            Value::Ints(values) => Coded::Ints(values),
            Value::Doubles(values) => Coded::Doubles(values),
            Value::Bools(values) => Coded::Bools(values),
            Value::EmptyArray => Coded::EmptyArray,
            Value::Unsupported(json) => Coded::Unsupported(json),
        }
    }

    /// Adds an attribute straight from the wire.
    #[inline]
    pub(super) fn push(&self, columns: &mut Columns, repetition: u8, key: u32, value: Value<'_>) {
        if let Value::Text(text) = value {
            let code = columns.code(self.value, &text);
            columns.enter(self.list, repetition, self.level);
            columns.push_code(self.key, key);
            columns.push_flag(self.is_array, false);
            columns.enter(self.values, repetition, self.level + 1);
            columns.push_code(self.value, code);
            columns.enter(self.ints, repetition, self.level);
            columns.enter(self.doubles, repetition, self.level);
            columns.enter(self.bools, repetition, self.level);
        } else {
            let coded = self.code(columns, value);
            self.push_coded(columns, repetition, key, &coded);
        }
    }

    /// Adds an attribute. `repetition` is 0 for the first attribute of the first … of the row, and [`Self::level`] for a further one.
    #[inline]
    pub(super) fn push_coded(&self, columns: &mut Columns, repetition: u8, key: u32, value: &Coded) {
        let level = self.level;
        columns.enter(self.list, repetition, level);
        columns.push_code(self.key, key);
        let (texts, ints, doubles, bools): (&[u32], &[i64], &[f64], &[bool]) = match value {
            Coded::Text(code) => (std::slice::from_ref(code), &[], &[], &[]),
            Coded::Int(value) => (&[], std::slice::from_ref(value), &[], &[]),
            Coded::Double(value) => (&[], &[], std::slice::from_ref(value), &[]),
            Coded::Bool(value) => (&[], &[], &[], std::slice::from_ref(value)),
            Coded::Texts(codes) => (codes, &[], &[], &[]),
            Coded::Ints(values) => (&[], values, &[], &[]),
            Coded::Doubles(values) => (&[], &[], values, &[]),
            Coded::Bools(values) => (&[], &[], &[], values),
            Coded::EmptyArray | Coded::Unsupported(_) => (&[], &[], &[], &[]),
        };
        let is_array = matches!(value, Coded::Texts(_) | Coded::Ints(_) | Coded::Doubles(_) | Coded::Bools(_) | Coded::EmptyArray);
        columns.push_flag(self.is_array, is_array);
        self.elements(columns, self.values, repetition, texts, |columns, &code| columns.push_code(self.value, code));
        self.elements(columns, self.ints, repetition, ints, |columns, &value| columns.push_integer(self.value_int, value));
        self.elements(columns, self.doubles, repetition, doubles, |columns, &value| columns.push_double(self.value_double, value));
        self.elements(columns, self.bools, repetition, bools, |columns, &value| columns.push_flag(self.value_bool, value));
        if let Coded::Unsupported(json) = value {
            let entry = columns.latest(self.list);
            columns.push_optional_text(self.unsupported, entry, json.as_bytes());
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
