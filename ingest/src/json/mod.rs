//! OTLP/JSON to protobuf, without a tree between the two.
//!
//! ```text
//!  JSON text ──serde_json, event by event──► Field of the schema ──► tag and value appended to the output
//!                                               │
//!                                               └─ message: append its fields, then put the length before them
//! ```
//!
//! The mapping is OTLP's: ids in hex, 64-bit integers as strings or numbers, enums as numbers or names, bytes in base64, names in camelCase
//! or snake_case; unknown fields and `null`s are ignored. A string or number goes from the text to the output without being kept. The output
//! is at most as large as the text, because a field's name takes more room than its tag.
//!
//! Nesting is limited by serde_json (128 levels of objects and arrays, about 40 of `AnyValue`), so that recursion is too; what is ignored may
//! nest as it likes, it is skipped without recursion. Whether ids and nesting are acceptable otherwise is for the distributor to check, on
//! the output, as for every request.

mod schema;

use std::fmt::{self, Write as _};

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

use self::schema::{Field, Kind, Message, REQUEST};
use crate::wire::{FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, close_message, put_bytes, put_tag, put_varint};

/// Why a text is not an OTLP request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid OTLP JSON at {path:?}: {cause}")]
pub(crate) struct JsonError {
    /// Where, such as `resourceSpans[0].scopeSpans[1].spans[2].traceId`.
    pub(crate) path: String,
    /// What is wrong, with line and column.
    pub(crate) cause: String,
}

/// Encodes the request in a JSON text.
pub(crate) fn transcode(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut writer = Writer { out: Vec::with_capacity(text.len() / 2), path: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let result = MessageSeed { writer: &mut writer, message: &REQUEST }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match result {
        Ok(()) => Ok(writer.out),
        Err(error) => Err(JsonError { path: writer.path_text(), cause: error.to_string() }),
    }
}

/// The output, and where in the input we are.
struct Writer {
    out: Vec<u8>,
    path: Vec<Step>,
}

#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Element(usize),
}

impl Writer {
    fn path_text(&self) -> String {
        /// Steps shown; the deepest paths are hostile and tell nothing.
        const SHOWN: usize = 24;
        let mut text = String::new();
        for (number, step) in self.path.iter().take(SHOWN).enumerate() {
            // Writing to a string cannot fail.
            let _ = match step {
                Step::Field(name) if number == 0 => write!(text, "{name}"),
                Step::Field(name) => write!(text, ".{name}"),
                Step::Element(index) => write!(text, "[{index}]"),
            };
        }
        if self.path.len() > SHOWN {
            text.push('…');
        }
        text
    }
}

/// Reads an object as `message`.
struct MessageSeed<'w> {
    writer: &'w mut Writer,
    message: &'static Message,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object ({})", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(KeySeed(self.message))? {
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            self.writer.path.push(Step::Field(field.name));
            map.next_value_seed(ValueSeed { writer: self.writer, field, is_element: false })?;
            // Left in place by an error, which is how it is known where.
            self.writer.path.pop();
        }
        Ok(())
    }
}

/// Reads a key as a field of the message, if it has such a field.
struct KeySeed(&'static Message);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// Reads the value of a field, or one element of a repeated field.
struct ValueSeed<'w> {
    writer: &'w mut Writer,
    field: &'static Field,
    is_element: bool,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl ValueSeed<'_> {
    fn is_list(&self) -> bool {
        self.field.repeated && !self.is_element
    }

    /// Whether a value equal to the default has to be written: it says which alternative of a oneof is set, or is an element.
    fn writes_defaults(&self) -> bool {
        self.field.oneof || self.is_element
    }

    fn put_varint(self, value: u64) {
        if value != 0 || self.writes_defaults() {
            put_tag(&mut self.writer.out, self.field.number, VARINT);
            put_varint(&mut self.writer.out, value);
        }
    }

    fn put_fixed64(self, value: u64) {
        if value != 0 || self.writes_defaults() {
            put_tag(&mut self.writer.out, self.field.number, FIXED64);
            self.writer.out.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn put_bytes(self, bytes: &[u8]) {
        if !bytes.is_empty() || self.writes_defaults() {
            put_bytes(&mut self.writer.out, self.field.number, bytes);
        }
    }

    /// A number, wherever it came from; `None` when it doesn't fit.
    fn put_integer(self, value: i128) -> Option<()> {
        match self.field.kind {
            Kind::Int64 => self.put_varint(i64::try_from(value).ok()? as u64),
            Kind::Uint32 => self.put_varint(u32::try_from(value).ok()?.into()),
            Kind::Enum(_) => self.put_varint(i64::from(i32::try_from(value).ok()?) as u64),
            Kind::Fixed64 => self.put_fixed64(u64::try_from(value).ok()?),
            Kind::Double => self.put_fixed64((value as f64).to_bits()),
            Kind::Fixed32 => {
                let value = u32::try_from(value).ok()?;
                if value != 0 || self.writes_defaults() {
                    put_tag(&mut self.writer.out, self.field.number, FIXED32);
                    self.writer.out.extend_from_slice(&value.to_le_bytes());
                }
            }
            Kind::Bool | Kind::Text | Kind::Base64 | Kind::Id(_) | Kind::Message(_) => return None,
        }
        Some(())
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_list() {
            return f.write_str("an array");
        }
        match self.field.kind {
            Kind::Message(message) => write!(f, "an object ({})", message.name),
            Kind::Text => f.write_str("a string"),
            Kind::Base64 => f.write_str("a string in base64"),
            Kind::Id(bytes) => write!(f, "a string of {} hex digits, or an empty one", 2 * bytes),
            Kind::Int64 => f.write_str("a 64-bit integer, as string or number"),
            Kind::Fixed64 => f.write_str("an unsigned 64-bit integer, as string or number"),
            Kind::Uint32 | Kind::Fixed32 => f.write_str("an unsigned 32-bit integer"),
            Kind::Double => f.write_str("a number"),
            Kind::Bool => f.write_str("true or false"),
            Kind::Enum(names) => write!(f, "a number or one of {names:?}"),
        }
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        // An element counts even when it is null; a field that is null is absent.
        if self.is_element && matches!(self.field.kind, Kind::Message(_)) {
            self.put_bytes(&[]);
        }
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if self.is_list() || !matches!(self.field.kind, Kind::Bool) {
            return Err(E::invalid_type(Unexpected::Bool(value), &self));
        }
        self.put_varint(value.into());
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        let error = E::invalid_type(Unexpected::Signed(value), &self);
        if self.is_list() { Err(error) } else { self.put_integer(value.into()).ok_or(error) }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        let error = E::invalid_type(Unexpected::Unsigned(value), &self);
        if self.is_list() { Err(error) } else { self.put_integer(value.into()).ok_or(error) }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let error = E::invalid_type(Unexpected::Float(value), &self);
        if self.is_list() {
            return Err(error);
        }
        if matches!(self.field.kind, Kind::Double) {
            self.put_fixed64(value.to_bits());
            return Ok(());
        }
        // 1e9 is an integer, too. Beyond 2^63 a double is no exact integer any more.
        let is_integer = value.fract() == 0.0 && value.abs() < 9.3e18;
        if is_integer { self.put_integer(value as i128).ok_or(error) } else { Err(error) }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let invalid = || E::invalid_value(Unexpected::Str(shorten(value)), &self);
        if self.is_list() {
            return Err(E::invalid_type(Unexpected::Str(shorten(value)), &self));
        }
        match self.field.kind {
            Kind::Text => self.put_bytes(value.as_bytes()),
            Kind::Base64 => {
                let engine = if value.contains(['-', '_']) { &BASE64_URL_SAFE } else { &BASE64 };
                let bytes = engine.decode(value).map_err(|_| invalid())?;
                self.put_bytes(&bytes);
            }
            Kind::Id(length) => {
                let mut id = [0; 16];
                let digits = value.as_bytes();
                if !digits.is_empty() && digits.len() != 2 * length {
                    return Err(invalid());
                }
                for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
                    let digit = |character: u8| char::from(character).to_digit(16).map(|digit| digit as u8);
                    *byte = pair.iter().try_fold(0, |byte, &c| Some(byte << 4 | digit(c)?)).ok_or_else(invalid)?;
                }
                self.put_bytes(&id[..digits.len() / 2]);
            }
            Kind::Enum(names) => {
                let number = names.iter().position(|name| *name == value).ok_or_else(invalid)?;
                self.put_varint(number as u64);
            }
            Kind::Double => {
                // Rust reads "Infinity", "-Infinity" and "NaN" as the mapping spells them.
                let number: f64 = value.parse().map_err(|_| invalid())?;
                self.put_fixed64(number.to_bits());
            }
            Kind::Int64 | Kind::Fixed64 | Kind::Uint32 | Kind::Fixed32 => {
                let number: i128 = value.parse().map_err(|_| invalid())?;
                let error = invalid();
                self.put_integer(number).ok_or(error)?;
            }
            Kind::Bool | Kind::Message(_) => return Err(E::invalid_type(Unexpected::Str(shorten(value)), &self)),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if !self.is_list() {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        for index in 0.. {
            self.writer.path.push(Step::Element(index));
            let seed = ValueSeed { writer: self.writer, field: self.field, is_element: true };
            let Some(()) = elements.next_element_seed(seed)? else {
                self.writer.path.pop();
                break;
            };
            self.writer.path.pop();
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(message) = self.field.kind else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        if self.is_list() {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        }
        put_tag(&mut self.writer.out, self.field.number, LENGTH_DELIMITED);
        let begin = self.writer.out.len();
        MessageSeed { writer: self.writer, message }.visit_map(map)?;
        close_message(&mut self.writer.out, begin);
        Ok(())
    }
}

const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));
const BASE64_URL_SAFE: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What of a text goes into an error message.
fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(64)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
