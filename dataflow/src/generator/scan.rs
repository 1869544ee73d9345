//! Reads a span in one pass over its wire bytes: the fields that every processor asks for, and the attributes that somebody wants.
//!
//! Of the twenty attributes of a resource and the ten of a span only the handful that the settings of a tenant name are of interest, always
//! the same ones. [`Keys`] gives each of them a number once; what is found of one message then lies under these numbers. A key that is not
//! wanted costs a look at its length, and of most spans nobody wants any.
//!
//! ```text
//!  Keys      0 service.name   1 peer.service   2 db.name  …
//!  values    0 ─► AnyValue    1 ─► none        2 ─► AnyValue        slices of the body: nothing is copied
//! ```

use storage::otlp::wire::{Valid, Value};

use super::attributes::{SPAN_ATTRIBUTES, key_value};

/// The attribute keys that the processors of a tenant look for, numbered.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Vec<Box<str>>,
    /// Bit n: a key of n bytes is wanted; bit 63: one of 63 or more.
    lengths: u64,
}

/// Number of a key in [`Keys`].
pub type KeyNumber = usize;

fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

impl Keys {
    /// The number of a key, which is looked for from now on.
    pub fn number(&mut self, key: &str) -> KeyNumber {
        self.keys.iter().position(|known| **known == *key).unwrap_or_else(|| {
            self.keys.push(Box::from(key));
            self.lengths |= length_bit(key.len());
            self.keys.len() - 1
        })
    }

    /// The `AnyValue`s that a message has under each key in its `attributes` (a field number): of each key the first. A key without a
    /// value has the empty `AnyValue`.
    pub fn find<'a>(&self, message: &'a [u8], attributes: u32) -> Vec<Option<&'a [u8]>> {
        let mut values = vec![None; self.keys.len()];
        let of_field = Valid::new(message).filter(|field| field.number == attributes);
        of_field.filter_map(|field| field.value.bytes()).for_each(|attribute| self.look_at(attribute, &mut values));
        values
    }

    /// What [`Self::find`] finds, for longer than the message lives.
    pub fn find_owned(&self, message: &[u8], attributes: u32) -> Vec<Option<Box<[u8]>>> {
        self.find(message, attributes).into_iter().map(|value| value.map(Box::from)).collect()
    }

    #[inline]
    fn look_at<'a>(&self, attribute: &'a [u8], values: &mut [Option<&'a [u8]>]) {
        // Most keys are not wanted, and nearly all are shorter than 128 bytes and come first.
        if let [0x0a, length @ ..0x80, ..] = attribute
            && self.lengths & length_bit(usize::from(*length)) == 0
        {
            return;
        }
        let (key, value) = key_value(attribute);
        let number = self.keys.iter().position(|known| known.as_bytes() == key);
        if let Some(found) = number.and_then(|number| values.get_mut(number)) {
            found.get_or_insert(value);
        }
    }
}

/// Whose attributes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Nobody's.
    Never,
    /// Those of a span without parent.
    AtRoots,
    /// Everybody's.
    Always,
}

/// What every processor asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scanned<'a> {
    pub(crate) parent_span_id: u64,
    pub(crate) name: &'a [u8],
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) status: i32,
    pub(crate) message: &'a [u8],
}

/// Walks once over a span's fields. The first value of each of `keys` goes to `values`, which is left empty if nobody looks.
#[inline]
pub(crate) fn scan<'a>(span: &'a [u8], keys: &Keys, look: Look, values: &mut Vec<Option<&'a [u8]>>) -> Scanned<'a> {
    let mut found = Scanned::default();
    values.clear();
    if look != Look::Never {
        values.resize(keys.keys.len(), None);
    }
    Valid::new(span).for_each(|field| match (field.number, field.value) {
        (4, Value::Bytes(id)) => found.parent_span_id = id.try_into().map_or(0, u64::from_be_bytes),
        (5, Value::Bytes(name)) => found.name = name,
        (7, Value::Fixed64(start)) => found.start_ns = start,
        (8, Value::Fixed64(end)) => found.end_ns = end,
        // Who writes the parent behind the attributes has them looked at for nothing.
        (SPAN_ATTRIBUTES, Value::Bytes(attribute)) if look == Look::Always || look == Look::AtRoots && found.parent_span_id == 0 => {
            keys.look_at(attribute, values);
        }
        (15, Value::Bytes(status)) => Valid::new(status).for_each(|field| match (field.number, field.value) {
            (2, Value::Bytes(message)) => found.message = message,
            (3, Value::Varint(code)) => found.status = code as i32,
            _ => {}
        }),
        _ => {}
    });
    found
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
    use prost::Message as _;

    use super::*;

    fn key_value(key: &str, value: Option<i64>) -> Vec<u8> {
        let value = value.map(|value| AnyValue { value: Some(any_value::Value::IntValue(value)) });
        KeyValue { key: key.to_owned(), value, ..KeyValue::default() }.encode_to_vec()
    }

    #[test]
    fn the_first_attribute_of_a_key_counts() {
        let mut keys = Keys::default();
        let (address, long) = (keys.number("server.address"), keys.number(&"k".repeat(70)));
        assert_eq!(keys.number("server.address"), address);
        let attributes: [Vec<u8>; 7] = [
            key_value("server.eddress", Some(1)),
            key_value("server.address", Some(2)),
            key_value("server.address", Some(3)),
            key_value(&"k".repeat(71), Some(4)),
            key_value(&"k".repeat(70), None),
            key_value("", Some(5)),
            b"\x0a\x7f".to_vec(),
        ];
        let message: Vec<u8> = attributes.iter().flat_map(|one| [&[0x4a, one.len() as u8], &one[..]].concat()).collect();
        assert_eq!(keys.find(&message, 8)[address], None);
        let values = keys.find(&message, 9);
        assert_eq!((values[address], values[long]), (Some(&[0x18, 2][..]), Some(&[][..])));
        for (look, parent, expected) in [
            (Look::Never, 1, vec![]),
            (Look::AtRoots, 1, vec![None, None]),
            (Look::AtRoots, 0, values.clone()),
            (Look::Always, 1, values.clone()),
        ] {
            let span = [&[0x22, 8, 0, 0, 0, 0, 0, 0, 0, parent], &message[..]].concat();
            let mut seen = vec![Some(&[1][..])];
            assert_eq!(scan(&span, &keys, look, &mut seen).parent_span_id, u64::from(parent));
            assert_eq!(seen, expected, "{look:?} of a child of {parent}");
        }
    }
}
