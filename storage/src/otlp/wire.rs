//! Protobuf's wire format, read field by field.
//!
//! [`Fields`] hands out `(number, value)` pairs, borrows everything and skips groups, which OTLP does not use. [`Valid`] is the same for
//! whoever looks for a few fields, mostly in a message that was validated before, and has nobody to tell of an error. [`Cursor`] is one
//! level lower, for the walks of this module: it hands out raw keys and lets the caller say what it expects.
//!
//! ```text
//!  0a 05 68 65 6c 6c 6f   10 2a           39 <8 bytes>
//!  └─ field 1: Bytes ──┘ └ field 2: Varint └ field 7: Fixed64
//! ```
//!
//! Invariants: a cursor never leaves its message, whatever lengths the bytes claim; nothing is allocated; nothing panics.
//! The rules (ten-byte varints, keys of 32 bits, nesting of groups) are `prost`'s, so that what passes here also decodes there.

use super::{MAX_DEPTH, Slice, WireError};

/// The value of a field, as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `int32`, `int64`, `uint32`, `uint64`, `bool` and enumerations (wire type 0).
    Varint(u64),
    /// `fixed64`, and `double` as its bits (wire type 1).
    Fixed64(u64),
    /// Strings, bytes and messages, without the length before them (wire type 2).
    Bytes(&'a [u8]),
    /// `fixed32`, and `float` as its bits (wire type 5).
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// The bytes of a length-delimited field; none for the other wire types.
    #[inline]
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number.
    pub number: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// The fields of one message, in the order of the wire. Ends after the first error.
///
/// ```
/// use storage::otlp::wire::{Field, Fields, Value};
///
/// let fields: Result<Vec<_>, _> = Fields::new(&[0x0a, 0x02, b'h', b'i', 0x10, 0x2a]).collect();
/// let expected = vec![Field { number: 1, value: Value::Bytes(b"hi") }, Field { number: 2, value: Value::Varint(42) }];
/// assert_eq!(fields, Ok(expected));
/// assert!(Fields::new(&[0x0a, 0x7f]).next().expect("one field").is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Fields<'a> {
    /// The fields of the message that `message` holds, without a tag or length before it.
    #[inline]
    pub fn new(message: &'a [u8]) -> Self {
        Self { cursor: Cursor::new(message) }
    }

    /// The fields of the message that lies at `slice` of `body`; no fields when `slice` is not inside `body`.
    #[inline]
    pub fn within(body: &'a [u8], slice: Slice) -> Self {
        Self::new(slice.of(body).unwrap_or_default())
    }

    #[cold]
    fn fail(&mut self, cause: Cause) -> Option<Result<Field<'a>, WireError>> {
        self.cursor = Cursor::new(&[]);
        Some(Err(cause.at("message")))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    /// Inlined wherever it is called: the loops over spans pick a few fields, and one that is passed over costs a few instructions then,
    /// instead of a field built in memory and taken apart again.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.cursor.is_at_end() {
                return None;
            }
            let key = match self.cursor.key() {
                Ok(key) => key,
                Err(cause) => return self.fail(cause),
            };
            let value = match key & 7 {
                0 => self.cursor.varint().map(Value::Varint),
                1 => self.cursor.fixed64().map(Value::Fixed64),
                2 => self.cursor.chunk().map(Value::Bytes),
                5 => self.cursor.fixed32().map(Value::Fixed32),
                _ => match self.cursor.skip(key, MAX_DEPTH) {
                    Ok(()) => continue,
                    Err(cause) => Err(cause),
                },
            };
            return match value {
                Ok(value) => Some(Ok(Field { number: key >> 3, value })),
                Err(cause) => self.fail(cause),
            };
        }
    }
}

/// The fields of one message up to the first that is not valid, in the order of the wire.
///
/// Passing over a field costs half of what it costs in [`Fields`], since nearly all of them have one of three shapes.
#[derive(Clone, Debug)]
pub struct Valid<'a> {
    rest: &'a [u8],
}

impl<'a> Valid<'a> {
    /// The fields of the message that `message` holds, without a tag or length before it.
    #[inline(always)]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    #[inline(never)]
    fn any_shape(&mut self) -> Option<Field<'a>> {
        let mut fields = Fields::new(self.rest);
        let field = fields.next()?.ok();
        self.rest = if field.is_some() { &self.rest[fields.cursor.at..] } else { &[] };
        field
    }
}

impl<'a> Iterator for Valid<'a> {
    type Item = Field<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Field<'a>> {
        let (key, rest) = match self.rest {
            [key @ 8..0x80, rest @ ..] => (*key, rest),
            [] => return None,
            // The key of `Span.flags`, which is the last field of nearly every span.
            [0x85, 0x01, a, b, c, d, rest @ ..] => {
                self.rest = rest;
                return Some(Field { number: 16, value: Value::Fixed32(u32::from_le_bytes([*a, *b, *c, *d])) });
            }
            _ => return self.any_shape(),
        };
        let (value, rest) = match (key & 7, rest) {
            (2, [length @ ..0x80, rest @ ..]) if usize::from(*length) <= rest.len() => {
                let (value, rest) = rest.split_at(usize::from(*length));
                (Value::Bytes(value), rest)
            }
            (1, rest) if rest.len() >= 8 => {
                let (value, rest) = rest.split_first_chunk()?;
                (Value::Fixed64(u64::from_le_bytes(*value)), rest)
            }
            (0, [value @ ..0x80, rest @ ..]) => (Value::Varint(u64::from(*value)), rest),
            _ => return self.any_shape(),
        };
        self.rest = rest;
        Some(Field { number: u32::from(key >> 3), value })
    }
}

/// What is wrong with a field. Small, so that the fast path hands it on in a register; the path is added where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cause {
    Truncated,
    Varint,
    Key,
    WireType,
    Utf8,
    GroupEnd,
    TooDeep,
    IdLength8,
    IdLength16,
    TooLong,
}

impl Cause {
    #[cold]
    pub(super) fn at(self, field: &'static str) -> WireError {
        let cause = match self {
            Self::Truncated => "ends before its announced length",
            Self::Varint => "varint is longer than 64 bits or cut off",
            Self::Key => "field number is 0 or too large",
            Self::WireType => "wrong wire type",
            Self::Utf8 => "not UTF-8",
            Self::GroupEnd => "end of a group that was not begun",
            Self::TooDeep => "nested too deeply",
            Self::IdLength8 => "id is neither empty nor 8 bytes long",
            Self::IdLength16 => "id is neither empty nor 16 bytes long",
            Self::TooLong => "longer than 4 GiB",
        };
        WireError { field, cause }
    }
}

/// Adds the path of the field to a [`Cause`].
pub(super) trait At<T> {
    fn at(self, field: &'static str) -> Result<T, WireError>;
}

impl<T> At<T> for Result<T, Cause> {
    #[inline(always)]
    fn at(self, field: &'static str) -> Result<T, WireError> {
        self.map_err(|cause| cause.at(field))
    }
}

/// A place in a message. Positions count from the start of the outermost bytes, so that they can be kept as [`Slice`]s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    /// Everything up to the end of this message, beginning with the outermost message.
    bytes: &'a [u8],
    /// Next byte to read; at most `bytes.len()`.
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline(always)]
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// What is left of the message. Exact because the outermost walk refuses bodies of more than 4 GiB.
    #[inline(always)]
    pub(super) fn slice(&self) -> Slice {
        Slice { start: self.at as u32, end: self.bytes.len() as u32 }
    }

    /// Number and wire type as one word, `number << 3 | wire type`. The wire type may still be one that does not exist.
    #[inline(always)]
    pub(super) fn key(&mut self) -> Result<u32, Cause> {
        let key = self.varint()?;
        if key < 8 || key > u64::from(u32::MAX) {
            return Err(Cause::Key);
        }
        Ok(key as u32)
    }

    #[inline(always)]
    pub(super) fn varint(&mut self) -> Result<u64, Cause> {
        // One byte: nearly every key and length. Two bytes: lengths of spans and the key of `flags`.
        let Some(&first) = self.bytes.get(self.at) else { return Err(Cause::Truncated) };
        if first < 0x80 {
            self.at += 1;
            return Ok(u64::from(first));
        }
        if let Some(&second) = self.bytes.get(self.at + 1)
            && second < 0x80
        {
            self.at += 2;
            return Ok(u64::from(first & 0x7f) | u64::from(second) << 7);
        }
        self.long_varint()
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Cause> {
        let mut value = 0;
        for (count, &byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (count * 7);
            if byte < 0x80 {
                if count == 9 && byte > 1 {
                    return Err(Cause::Varint);
                }
                self.at += count + 1;
                return Ok(value);
            }
        }
        Err(Cause::Varint)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Cause> {
        let Some(array) = self.bytes[self.at..].first_chunk::<N>() else { return Err(Cause::Truncated) };
        self.at += N;
        Ok(*array)
    }

    #[inline(always)]
    pub(super) fn fixed64(&mut self) -> Result<u64, Cause> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn fixed32(&mut self) -> Result<u32, Cause> {
        self.array().map(u32::from_le_bytes)
    }

    /// A length and as many bytes.
    #[inline(always)]
    pub(super) fn chunk(&mut self) -> Result<&'a [u8], Cause> {
        let length = self.varint()?;
        let rest = &self.bytes[self.at..];
        if length > rest.len() as u64 {
            return Err(Cause::Truncated);
        }
        let length = length as usize;
        self.at += length;
        Ok(&rest[..length])
    }

    /// A length and a message of that length.
    #[inline(always)]
    pub(super) fn message(&mut self) -> Result<Self, Cause> {
        let length = self.varint()?;
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(Cause::Truncated);
        }
        let at = self.at;
        self.at += length as usize;
        Ok(Self { bytes: &self.bytes[..self.at], at })
    }

    /// A length and a UTF-8 string of that length.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<&'a [u8], Cause> {
        let bytes = self.chunk()?;
        if is_ascii(bytes) || is_utf8(bytes) { Ok(bytes) } else { Err(Cause::Utf8) }
    }

    /// Skips the value of a field that nobody knows. `depth` is how many levels may still be entered.
    pub(super) fn skip(&mut self, key: u32, depth: usize) -> Result<(), Cause> {
        if depth == 0 {
            return Err(Cause::TooDeep);
        }
        match key & 7 {
            0 => self.varint().map(drop),
            1 => self.fixed64().map(drop),
            2 => self.chunk().map(drop),
            3 => loop {
                let inner = self.key()?;
                if inner & 7 == 4 {
                    return if inner >> 3 == key >> 3 { Ok(()) } else { Err(Cause::GroupEnd) };
                }
                self.skip(inner, depth - 1)?;
            },
            4 => Err(Cause::GroupEnd),
            5 => self.fixed32().map(drop),
            _ => Err(Cause::WireType),
        }
    }
}

/// Whether all bytes are ASCII: words that overlap at the end instead of a loop over single bytes, because most strings are short.
#[inline(always)]
fn is_ascii(bytes: &[u8]) -> bool {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    if let Some(last) = bytes.last_chunk::<8>() {
        let mut all = u64::from_ne_bytes(*last);
        for word in bytes.as_chunks::<8>().0 {
            all |= u64::from_ne_bytes(*word);
        }
        return all & HIGH == 0;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return (u32::from_ne_bytes(*first) | u32::from_ne_bytes(*last)) & HIGH as u32 == 0;
    }
    bytes.iter().fold(0, |all, byte| all | byte) < 0x80
}

#[cold]
fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_follow_prost() {
        let check = |bytes: &[u8]| {
            let mut cursor = Cursor::new(bytes);
            let ours = cursor.varint().ok().map(|value| (value, cursor.at));
            let mut rest = bytes;
            let theirs = prost::encoding::decode_varint(&mut rest).ok().map(|value| (value, bytes.len() - rest.len()));
            assert_eq!(ours, theirs, "{bytes:02x?}");
        };
        for length in 0..12 {
            for last in [0x00, 0x01, 0x02, 0x7f, 0x80, 0xff] {
                let mut bytes = vec![0xff; length];
                bytes.push(last);
                check(&bytes);
                bytes.extend([0; 12]);
                check(&bytes);
            }
        }
    }

    #[test]
    fn ascii_is_found_at_every_length() {
        for length in 0..40 {
            let mut bytes = vec![b'a'; length];
            assert!(is_ascii(&bytes));
            for at in 0..length {
                bytes[at] = 0x80;
                assert!(!is_ascii(&bytes), "byte {at} of {length}");
                bytes[at] = b'a';
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn valid_fields_are_those_before_the_first_error(bytes in proptest::collection::vec(wire_byte(), 0..60)) {
            let all: Vec<_> = Valid::new(&bytes).collect();
            proptest::prop_assert_eq!(all, Fields::new(&bytes).map_while(Result::ok).collect::<Vec<_>>());
        }
    }

    /// Mostly keys and lengths of few bytes.
    fn wire_byte() -> impl proptest::strategy::Strategy<Value = u8> {
        proptest::prop_oneof![
            4 => 0..12u8,
            4 => proptest::sample::select(&[0x08, 0x0a, 0x11, 0x1d, 0x39, 0x4a, 0x82, 0x85, 0x01][..]),
            1 => proptest::prelude::any::<u8>(),
        ]
    }

    #[test]
    fn groups_are_skipped_and_bounded() {
        // field 1, group 2 { field 3 }, field 4
        let bytes = [0x08, 0x01, 0x13, 0x18, 0x05, 0x14, 0x20, 0x09];
        let fields = Fields::new(&bytes).collect::<Result<Vec<_>, _>>().expect("valid");
        assert_eq!(fields, [Field { number: 1, value: Value::Varint(1) }, Field { number: 4, value: Value::Varint(9) }]);
        assert!(Fields::new(&vec![0x13; 100_000]).any(|field| field.is_err()));
        assert_eq!(
            Fields::new(&[0x14]).filter_map(Result::err).map(|e| e.cause).collect::<Vec<_>>(),
            ["end of a group that was not begun"]
        );
    }
}
