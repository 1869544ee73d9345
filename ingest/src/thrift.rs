//! Thrift as far as receivers need it: structs read field by field, over the `thrift` crate's protocols.
//!
//! No code is generated: a decoder is a match on field number and type. A field of another number or type is passed over, as Thrift asks
//! for. Bodies are untrusted; strings and containers cannot claim to be larger than the body, structs nest no deeper than [`MAX_DEPTH`],
//! and those of lists take no more than [`GROWTH`] times the body's bytes: a struct without fields is one byte of it.

use std::io::Cursor;

use thrift::{
    TConfiguration,
    protocol::{TBinaryInputProtocol, TCompactInputProtocol, TInputProtocol, TMessageType, TType},
};

/// Levels of structs and containers.
const MAX_DEPTH: usize = 16;

/// Bytes that the structs of all lists may take per byte of the body. Those that have fields stay far below.
const GROWTH: usize = 8;

/// Bytes that they may take in any case.
const SMALL: usize = 1 << 20;

/// Bytes that do not say what they should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub(crate) struct Malformed {
    /// The field at which reading ended, from the outermost struct inwards: `Batch.2[17].Span.5`.
    place: String,
    why: String,
}

impl Malformed {
    fn new(why: impl std::fmt::Display) -> Self {
        Self { place: String::new(), why: why.to_string() }
    }

    fn inside(mut self, place: impl std::fmt::Display) -> Self {
        let dot = if self.place.is_empty() || self.place.starts_with('[') { "" } else { "." };
        self.place = format!("{place}{dot}{}", self.place);
        self
    }
}

impl From<thrift::Error> for Malformed {
    fn from(error: thrift::Error) -> Self {
        match error {
            thrift::Error::Protocol(error) => Self::new(error.message),
            thrift::Error::Transport(error) => Self::new(error.message),
            other => Self::new(other),
        }
    }
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Binary,
    Compact,
}

/// A body being read.
pub(crate) struct Input<'a> {
    protocol: Box<dyn TInputProtocol + 'a>,
    /// Bytes that structs of lists may still take.
    room: usize,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    pub(crate) fn new(protocol: Protocol, body: &'a [u8]) -> Result<Self, Malformed> {
        let limit = Some(body.len());
        let limits = TConfiguration::builder()
            .max_message_size(limit)
            .max_frame_size(limit)
            .max_container_size(limit)
            .max_string_size(limit)
            .max_recursion_depth(Some(MAX_DEPTH))
            .build()?;
        let transport = Cursor::new(body);
        let protocol: Box<dyn TInputProtocol + 'a> = match protocol {
            // Old clients leave the version out.
            Protocol::Binary => Box::new(TBinaryInputProtocol::with_config(transport, false, limits)),
            Protocol::Compact => Box::new(TCompactInputProtocol::with_config(transport, limits)),
        };
        Ok(Self { protocol, room: body.len().saturating_mul(GROWTH).saturating_add(SMALL) })
    }

    /// Reads the head of a message: the name of what is called. An answer is no message.
    pub(crate) fn message(&mut self) -> Result<String, Malformed> {
        let head = self.protocol.read_message_begin()?;
        match head.message_type {
            TMessageType::Call | TMessageType::OneWay => Ok(head.name),
            other => Err(Malformed::new(format!("a message of type {other} is no call"))),
        }
    }

    /// Reads a struct. `field` is given each field's number and type and says whether it read it; others are passed over.
    pub(crate) fn structure(
        &mut self,
        name: &str,
        mut field: impl FnMut(&mut Self, i16, TType) -> Result<bool, Malformed>,
    ) -> Result<(), Malformed> {
        self.protocol.read_struct_begin()?;
        loop {
            let head = self.protocol.read_field_begin().map_err(|error| Malformed::from(error).inside(name))?;
            if head.field_type == TType::Stop {
                break;
            }
            let number = head.id.unwrap_or_default();
            let here = |error: Malformed| error.inside(number).inside(name);
            if !field(self, number, head.field_type).map_err(here)? {
                self.protocol.skip_till_depth(head.field_type, MAX_DEPTH as i8).map_err(|error| here(error.into()))?;
            }
            self.protocol.read_field_end()?;
        }
        Ok(self.protocol.read_struct_end()?)
    }

    /// Reads a list of structs; a list of something else is passed over.
    pub(crate) fn structures<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let head = self.protocol.read_list_begin()?;
        let mut elements = Vec::new();
        for number in 0..head.size {
            let here = |error: Malformed| error.inside(format_args!("[{number}]"));
            match head.element_type {
                TType::Struct => {
                    let room = self.room.checked_sub(size_of::<T>());
                    self.room = room.ok_or_else(|| here(Malformed::new("more structs than the body can hold")))?;
                    elements.push(element(self).map_err(here)?);
                }
                other => self.protocol.skip_till_depth(other, MAX_DEPTH as i8).map_err(|error| here(error.into()))?,
            }
        }
        self.protocol.read_list_end()?;
        Ok(elements)
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        Ok(self.protocol.read_bytes()?)
    }

    /// Reads a string. Thrift does not ask for UTF-8; what is none is replaced.
    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, Malformed> {
        Ok(self.protocol.read_bool()?)
    }

    pub(crate) fn short(&mut self) -> Result<i16, Malformed> {
        Ok(self.protocol.read_i16()?)
    }

    pub(crate) fn int(&mut self) -> Result<i32, Malformed> {
        Ok(self.protocol.read_i32()?)
    }

    pub(crate) fn long(&mut self) -> Result<i64, Malformed> {
        Ok(self.protocol.read_i64()?)
    }

    pub(crate) fn double(&mut self) -> Result<f64, Malformed> {
        Ok(self.protocol.read_double()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use thrift::protocol::{
        TBinaryOutputProtocol, TCompactOutputProtocol, TFieldIdentifier, TListIdentifier, TOutputProtocol, TStructIdentifier,
    };

    use super::*;

    /// `{1: "name", 2: [{1: 7}, {1: 8}], 9: {1: true}}`.
    fn write(out: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        let field = |name: &str, kind, id| TFieldIdentifier::new(name, kind, id);
        out.write_struct_begin(&TStructIdentifier::new("Outer"))?;
        out.write_field_begin(&field("name", TType::String, 1))?;
        out.write_string("name")?;
        out.write_field_end()?;
        out.write_field_begin(&field("list", TType::List, 2))?;
        out.write_list_begin(&TListIdentifier::new(TType::Struct, 2))?;
        for value in [7, 8] {
            out.write_struct_begin(&TStructIdentifier::new("Inner"))?;
            out.write_field_begin(&field("value", TType::I64, 1))?;
            out.write_i64(value)?;
            out.write_field_end()?;
            out.write_field_stop()?;
            out.write_struct_end()?;
        }
        out.write_list_end()?;
        out.write_field_end()?;
        out.write_field_begin(&field("unknown", TType::Struct, 9))?;
        out.write_struct_begin(&TStructIdentifier::new("Unknown"))?;
        out.write_field_begin(&field("flag", TType::Bool, 1))?;
        out.write_bool(true)?;
        out.write_field_end()?;
        out.write_field_stop()?;
        out.write_struct_end()?;
        out.write_field_end()?;
        out.write_field_stop()?;
        out.write_struct_end()
    }

    fn encoded(protocol: Protocol) -> Vec<u8> {
        let mut bytes = Vec::new();
        match protocol {
            Protocol::Binary => write(&mut TBinaryOutputProtocol::new(&mut bytes, true)),
            Protocol::Compact => write(&mut TCompactOutputProtocol::new(&mut bytes)),
        }
        .expect("written");
        bytes
    }

    fn read(protocol: Protocol, bytes: &[u8]) -> Result<(String, Vec<i64>), Malformed> {
        let (mut name, mut values) = (String::new(), Vec::new());
        Input::new(protocol, bytes)?.structure("Outer", |input, number, kind| {
            match (number, kind) {
                (1, TType::String) => name = input.text()?,
                (2, TType::List) => {
                    values = input.structures(|input| {
                        let mut value = 0;
                        input.structure("Inner", |input, number, kind| match (number, kind) {
                            (1, TType::I64) => input.long().map(|read| value = read).map(|()| true),
                            _ => Ok(false),
                        })?;
                        Ok(value)
                    })?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok((name, values))
    }

    #[test]
    fn both_protocols_are_read_and_unknown_fields_passed_over() {
        for protocol in [Protocol::Binary, Protocol::Compact] {
            assert_eq!(read(protocol, &encoded(protocol)), Ok(("name".to_owned(), vec![7, 8])));
        }
    }

    #[test]
    fn where_a_body_is_wrong_is_said() {
        let bytes = encoded(Protocol::Binary);
        // Within the value of the second element.
        let torn = &bytes[..bytes.windows(8).position(|w| w == 8i64.to_be_bytes()).expect("8") + 3];
        assert!(read(Protocol::Binary, torn).expect_err("torn").to_string().starts_with("Outer.2[1].Inner.1: "), "{torn:?}");
        let mut huge = vec![11, 0, 1];
        huge.extend_from_slice(&i32::MAX.to_be_bytes());
        let error = read(Protocol::Binary, &huge).expect_err("huge").to_string();
        assert!(error.starts_with("Outer.1: ") && error.contains("2147483647"), "{error}");
    }

    /// A struct without fields is one byte, and much more in memory.
    #[test]
    fn many_structs_of_nothing_are_refused() {
        let list = |count: usize| {
            let count_bytes = (count as u32).to_be_bytes();
            [&[15, 0, 2, 12][..], &count_bytes, &vec![0; count + 1]].concat()
        };
        let read = |body: &[u8]| {
            let mut found = 0;
            Input::new(Protocol::Binary, body)?.structure("Outer", |input, _, _| {
                let structs = input.structures(|input| input.structure("Inner", |_, _, _| Ok(false)).map(|()| [0u8; 200]))?;
                found = structs.len();
                Ok(true)
            })?;
            Ok::<_, Malformed>(found)
        };
        assert_eq!(read(&list(5000)), Ok(5000));
        let error = read(&list(100_000)).expect_err("20 MB from 100 kB").to_string();
        assert!(error.starts_with("Outer.2[") && error.ends_with("]: more structs than the body can hold"), "{error}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bit in 0u8..8) {
            for protocol in [Protocol::Binary, Protocol::Compact] {
                let _ = read(protocol, &bytes);
                let mut damaged = encoded(protocol);
                let at = flip.index(damaged.len());
                damaged[at] ^= 1 << bit;
                let _ = read(protocol, &damaged);
                let _ = read(protocol, &damaged[..cut.index(damaged.len())]);
                let _ = Input::new(protocol, &bytes).and_then(|mut input| input.message());
            }
        }
    }
}
