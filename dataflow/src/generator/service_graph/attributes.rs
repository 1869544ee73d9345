//! Attributes by key, looked up in wire bytes.
//!
//! Of the twenty attributes of a resource and the ten of a span only the handful that the settings name are of interest, always the same
//! ones. [`Keys`] gives each of them a number once; [`Found`] then says where each lies in one message after one pass over it. A key
//! that is not wanted costs a look at its length.
//!
//! ```text
//!  Keys      0 service.name   1 peer.service   2 db.name  …
//!  Found     0 ─► AnyValue    1 ─► none        2 ─► AnyValue        slices of the body: nothing is copied
//! ```

use storage::otlp::wire::{Fields, Value};

/// The attribute keys that are looked for, numbered.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: Vec<Box<str>>,
    /// Bit n: a key of n bytes is wanted; bit 63: one of 63 or more.
    lengths: u64,
}

/// Number of a key in [`Keys`].
pub(super) type KeyNumber = usize;

fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

impl Keys {
    /// The number of a key, which is looked for from now on.
    pub(super) fn number(&mut self, key: &str) -> KeyNumber {
        self.keys.iter().position(|known| **known == *key).unwrap_or_else(|| {
            self.keys.push(Box::from(key));
            self.lengths |= length_bit(key.len());
            self.keys.len() - 1
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    #[inline]
    fn find(&self, key: &[u8]) -> Option<KeyNumber> {
        if self.lengths & length_bit(key.len()) == 0 {
            return None;
        }
        self.keys.iter().position(|known| known.as_bytes() == key)
    }
}

/// The `AnyValue`s of [`Keys`] in one message: of each key the first. A key without a value has the empty `AnyValue`.
#[derive(Debug)]
pub(super) struct Found<'a>(Vec<Option<&'a [u8]>>);

/// What a [`Found`] is made in, to be used again for the next one.
pub(super) type Memory = Vec<Option<&'static [u8]>>;

impl<'a> Found<'a> {
    /// Nothing found yet.
    pub(super) fn within(memory: Memory, keys: &Keys) -> Self {
        let mut found = memory;
        found.resize(keys.len(), None);
        Self(found)
    }

    /// Gives the memory back.
    pub(super) fn into_memory(self) -> Memory {
        // Collected in place: the library sees that the elements are of one size.
        self.0.into_iter().map(|_| None).collect()
    }

    /// Takes note of the attributes of a message that are wanted.
    pub(super) fn look_into(&mut self, keys: &Keys, message: &'a [u8], attributes: u32) {
        // Bytes were validated when they were acknowledged; what a disk made of them since ends the message, not the process.
        Fields::new(message).map_while(Result::ok).for_each(|field| {
            if let (true, Value::Bytes(key_value)) = (field.number == attributes, field.value) {
                self.look_at(keys, key_value);
            }
        });
    }

    #[inline]
    fn look_at(&mut self, keys: &Keys, key_value: &'a [u8]) {
        // Most keys are not wanted, and nearly all are shorter than 128 bytes and come first.
        if let [0x0a, length @ ..0x80, ..] = key_value
            && keys.lengths & length_bit(usize::from(*length)) == 0
        {
            return;
        }
        let (mut number, mut value) = (keys.find(b""), &[][..]);
        for field in Fields::new(key_value).map_while(Result::ok) {
            match (field.number, field.value) {
                (1, Value::Bytes(key)) => {
                    number = keys.find(key);
                    if number.is_none() {
                        return;
                    }
                }
                (2, Value::Bytes(bytes)) => value = bytes,
                _ => {}
            }
        }
        if let Some(found) = number.and_then(|number| self.0.get_mut(number))
            && found.is_none()
        {
            *found = Some(value);
        }
    }

    /// The `AnyValue` of a key.
    #[inline]
    pub(super) fn get(&self, number: KeyNumber) -> Option<&'a [u8]> {
        *self.0.get(number)?
    }
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
        let mut found = Found::within(Memory::new(), &keys);
        found.look_into(&keys, &message, 8);
        assert_eq!(found.get(address), None);
        found.look_into(&keys, &message, 9);
        assert_eq!((found.get(address), found.get(long)), (Some(&[0x18, 2][..]), Some(&[][..])));
        assert_eq!(Found::within(found.into_memory(), &keys).get(address), None);
    }
}
