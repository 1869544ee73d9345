//! Attributes, as the versions store them (block-format.md §8.4, §8.5).

use std::ops::Range;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value as Any};
use prost::Message as _;

use super::{Leaves, text};
use crate::{
    block::{
        json,
        leaf::{Leaf, Wrong},
    },
    otlp::wire::{Field, Fields, Value},
};

/// Number of the field of strings in `AnyValue`.
const STRING_VALUE: u32 = 1;

/// A list of generic attributes.
#[derive(Debug)]
pub(super) struct Attributes {
    leaves: Range<usize>,
    /// Definition level of an attribute that is there, and repetition level of the second and later ones.
    level: i16,
    key: usize,
    values: Values,
}

/// How the values are stored.
#[derive(Debug)]
enum Values {
    /// Lists of one type each, of which one has the elements; JSON for what fits none of them.
    Lists { is_array: usize, texts: usize, ints: usize, doubles: usize, bools: usize, unsupported: usize },
    /// One value, or JSON of an array or a list of keys and values.
    Single { text: usize, int: usize, double: usize, bool: usize, kvlist: usize, array: usize },
    /// An `AnyValue` as a message.
    Message(usize),
}

impl Attributes {
    /// Attributes in these leaves, which `find` gives by name. None if they are stored in no known way.
    pub(super) fn new(leaves: Range<usize>, level: i16, find: impl Fn(&str) -> Option<usize>) -> Option<Self> {
        let values = if let Some(is_array) = find("IsArray") {
            Values::Lists {
                is_array,
                texts: find("Value[]")?,
                ints: find("ValueInt[]")?,
                doubles: find("ValueDouble[]")?,
                bools: find("ValueBool[]")?,
                unsupported: find("ValueUnsupported")?,
            }
        } else if let Some(array) = find("ValueArray") {
            Values::Single {
                text: find("Value")?,
                int: find("ValueInt")?,
                double: find("ValueDouble")?,
                bool: find("ValueBool")?,
                kvlist: find("ValueKVList")?,
                array,
            }
        } else {
            Values::Message(find("Value")?)
        };
        Some(Self { leaves, level, key: find("Key")?, values })
    }

    /// The leaves.
    pub(super) fn leaves(&self) -> Range<usize> {
        self.leaves.clone()
    }

    /// The attributes of one element, in a list with room for so many more; none if the leaves were not decoded.
    pub(super) fn read(&self, leaves: &mut Leaves, more: usize) -> Result<Vec<KeyValue>, Wrong> {
        if !leaves.has(self.key) {
            return Ok(Vec::new());
        }
        let keys = leaves.get(self.key)?;
        if keys.definition().unwrap_or(0) < self.level {
            leaves.skip(self.leaves())?;
            return Ok(Vec::new());
        }
        let mut attributes = Vec::with_capacity(keys.elements(self.level) + more);
        loop {
            let key = leaves.text(self.key)?;
            let value = self.value(leaves)?;
            attributes.push(KeyValue { key, value: Some(value), ..KeyValue::default() });
            if leaves.get(self.key)?.repetition() != self.level {
                return Ok(attributes);
            }
        }
    }

    fn value(&self, leaves: &mut Leaves) -> Result<AnyValue, Wrong> {
        match self.values {
            Values::Lists { is_array, texts, ints, doubles, bools, unsupported } => {
                let is_array = leaves.get(is_array)?.bool()?.unwrap_or(false);
                let mut values = Elements::default();
                values.take(leaves.get(texts)?, self.level + 1, a_text)?;
                values.take(leaves.get(ints)?, self.level + 1, an_int)?;
                values.take(leaves.get(doubles)?, self.level + 1, a_double)?;
                values.take(leaves.get(bools)?, self.level + 1, a_bool)?;
                match some_json(leaves.get(unsupported)?)? {
                    Some(value) => Ok(value),
                    None if is_array => Ok(values.array()),
                    None => Ok(AnyValue { value: values.first }),
                }
            }
            Values::Single { text, int, double, bool, kvlist, array } => {
                let values = [
                    a_text(leaves.get(text)?)?,
                    an_int(leaves.get(int)?)?,
                    a_double(leaves.get(double)?)?,
                    a_bool(leaves.get(bool)?)?,
                    some_json(leaves.get(kvlist)?)?.and_then(|any| any.value),
                    some_json(leaves.get(array)?)?.and_then(|any| any.value),
                ];
                Ok(AnyValue { value: values.into_iter().flatten().next() })
            }
            Values::Message(value) => message(leaves.get(value)?.bytes()?),
        }
    }
}

/// Elements of lists of which usually one list has one element.
#[derive(Debug, Default)]
struct Elements {
    first: Option<Any>,
    others: Vec<Any>,
}

impl Elements {
    /// Takes the elements of a list whose second and later ones have the repetition level `level`.
    #[inline]
    fn take(&mut self, leaf: &mut Leaf, level: i16, read: impl Fn(&mut Leaf) -> Result<Option<Any>, Wrong>) -> Result<(), Wrong> {
        loop {
            match read(leaf)? {
                Some(value) if self.first.is_some() => self.others.push(value),
                Some(value) => self.first = Some(value),
                None => {}
            }
            if leaf.repetition() != level {
                return Ok(());
            }
        }
    }

    fn array(self) -> AnyValue {
        let values = self.first.into_iter().chain(self.others).map(|value| AnyValue { value: Some(value) }).collect();
        AnyValue { value: Some(Any::ArrayValue(ArrayValue { values })) }
    }
}

#[inline]
fn a_text(leaf: &mut Leaf) -> Result<Option<Any>, Wrong> {
    Ok(leaf.optional_bytes()?.map(|bytes| Any::StringValue(text(bytes))))
}

#[inline]
fn an_int(leaf: &mut Leaf) -> Result<Option<Any>, Wrong> {
    Ok(leaf.optional_long()?.map(Any::IntValue))
}

#[inline]
fn a_double(leaf: &mut Leaf) -> Result<Option<Any>, Wrong> {
    Ok(leaf.double()?.map(Any::DoubleValue))
}

#[inline]
fn a_bool(leaf: &mut Leaf) -> Result<Option<Any>, Wrong> {
    Ok(leaf.bool()?.map(Any::BoolValue))
}

/// An `AnyValue` as JSON, as leaves have it.
///
/// # Errors
/// The bytes are none.
pub fn json_value(bytes: &[u8]) -> Result<AnyValue, Wrong> {
    json::read(bytes)
}

/// The value of a leaf of JSON. Release 3.0 writes an empty text where there is none.
#[inline]
fn some_json(leaf: &mut Leaf) -> Result<Option<AnyValue>, Wrong> {
    leaf.optional_bytes()?.filter(|json| !json.is_empty()).map(json::read).transpose()
}

/// An `AnyValue` as a message, or as JSON, which early releases wrote. No message begins with a brace: there is no field 15.
///
/// # Errors
/// The bytes are neither.
pub fn message(bytes: &[u8]) -> Result<AnyValue, Wrong> {
    if bytes.first() == Some(&b'{') {
        return json::read(bytes);
    }
    AnyValue::decode(bytes).or_else(|error| match Fields::new(bytes).next() {
        // What may be wrong is a string that is not UTF-8.
        Some(Ok(Field { number: STRING_VALUE, value: Value::Bytes(string) })) => {
            Ok(AnyValue { value: Some(Any::StringValue(text(string))) })
        }
        _ => Err(format!("the value of an event's attribute: {error}")),
    })
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Text of which the empty one stands for none.
    NonEmptyText,
    Int,
}

/// An attribute with a leaf of its own.
#[derive(Debug)]
pub(super) struct Column {
    leaf: usize,
    name: String,
    kind: Kind,
    /// Repetition level of the second and later values; none if there is one value at most.
    level: Option<i16>,
}

impl Column {
    /// A column of one value at most, or, if `level` is given, of lists: several values are an array, one is the value itself.
    pub(super) fn new(leaf: usize, name: &str, kind: Kind, level: Option<i16>) -> Self {
        Self { leaf, name: name.to_owned(), kind, level }
    }

    /// The leaf.
    pub(super) fn leaf(&self) -> usize {
        self.leaf
    }

    /// The attribute of one element; none if it has none or the leaf was not decoded.
    pub(super) fn read(&self, leaves: &mut Leaves) -> Result<Option<KeyValue>, Wrong> {
        if !leaves.has(self.leaf) {
            return Ok(None);
        }
        let leaf = leaves.get(self.leaf)?;
        let read = match self.kind {
            Kind::Text | Kind::NonEmptyText => a_text,
            Kind::Int => an_int,
        };
        let value = match self.level {
            None => AnyValue { value: read(leaf)? },
            Some(level) => {
                let mut values = Elements::default();
                values.take(leaf, level, read)?;
                if values.others.is_empty() { AnyValue { value: values.first } } else { values.array() }
            }
        };
        let absent = match &value.value {
            None => true,
            Some(Any::StringValue(text)) => self.kind == Kind::NonEmptyText && text.is_empty(),
            Some(_) => false,
        };
        Ok((!absent).then(|| KeyValue { key: self.name.clone(), value: Some(value), ..KeyValue::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![tag];
        prost::encoding::encode_varint(bytes.len() as u64, &mut field);
        field.extend_from_slice(bytes);
        field
    }

    #[test]
    fn values_of_events_are_messages_or_json() {
        let value = AnyValue { value: Some(Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(Any::IntValue(-1)) }] })) };
        assert_eq!(message(&value.encode_to_vec()), Ok(value.clone()));
        assert_eq!(message(br#"{"arrayValue":{"values":[{"intValue":"-1"}]}}"#), Ok(value));
        assert_eq!(message(b""), Ok(AnyValue { value: None }));
        let string = |text: &str| Ok(AnyValue { value: Some(Any::StringValue(text.to_owned())) });
        assert_eq!(message(b"\x0a\x01a"), string("a"));
        assert_eq!(message(b"\x0a\x02a\xff"), string("a\u{fffd}"));
        for broken in [b"\x0a".as_slice(), b"\x0a\x05a", b"{", b"{\"x\":1}", b"\x2a\x02\x0a\x05", &[0xff; 20]] {
            assert!(message(broken).is_err(), "{broken:?}");
        }
        // Deeper than anybody decodes: arrays of one array.
        let deep = (0..300).fold(Vec::new(), |inner: Vec<u8>, _| [0x0a, 0x2a].iter().fold(inner, |inner, &tag| field(tag, &inner)));
        assert!(message(&deep).is_err());
    }
}
