//! The few pieces of the protobuf wire format that receivers need themselves: counting the spans of a body that will not be walked, and
//! writing fields.

/// Wire type of a varint.
pub(crate) const VARINT: u8 = 0;
/// Wire type of eight bytes, little-endian.
pub(crate) const FIXED64: u8 = 1;
/// Wire type of a length and as many bytes.
pub(crate) const LENGTH_DELIMITED: u8 = 2;
/// Wire type of four bytes, little-endian.
pub(crate) const FIXED32: u8 = 5;

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag of a field.
pub(crate) fn put_tag(out: &mut Vec<u8>, field: u32, wire_type: u8) {
    put_varint(out, u64::from(field) << 3 | u64::from(wire_type));
}

/// Appends a field of bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_tag(out, field, LENGTH_DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Turns what was appended from `begin` on into the contents of a message field whose tag ends at `begin`: puts the length before it.
pub(crate) fn close_message(out: &mut Vec<u8>, begin: usize) {
    let length = out.len() - begin;
    let mut prefix = [0u8; 10];
    let mut used = 0;
    let mut rest = length;
    while rest >= 0x80 {
        prefix[used] = rest as u8 | 0x80;
        rest >>= 7;
        used += 1;
    }
    prefix[used] = rest as u8;
    used += 1;
    out.extend_from_slice(&prefix[..used]);
    out[begin..].rotate_right(used);
}

/// Counts the spans of an `ExportTraceServiceRequest` by hopping over them. A body that is torn counts up to where it is torn: this is
/// for the statistics of requests that are refused.
pub(crate) fn count_spans(body: &[u8]) -> u64 {
    // resource_spans = 1, scope_spans = 2, spans = 2
    let mut spans = 0;
    for resource_spans in Fields(body).filter(|f| f.0 == 1) {
        for scope_spans in Fields(resource_spans.1).filter(|f| f.0 == 2) {
            spans += Fields(scope_spans.1).filter(|f| f.0 == 2).count() as u64;
        }
    }
    spans
}

/// The length-delimited fields of a message; ends at the first byte that makes no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let tag = self.varint()?;
            match (tag & 7) as u8 {
                VARINT => drop(self.varint()?),
                FIXED64 => drop(self.take(8)?),
                FIXED32 => drop(self.take(4)?),
                LENGTH_DELIMITED => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    return Some((tag >> 3, self.take(length)?));
                }
                _ => return None,
            }
        }
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

/// How often a field occurs in a message, up to where it is torn.
pub(crate) fn count_field(message: &[u8], number: u32) -> usize {
    storage::otlp::wire::Valid::new(message).filter(|field| field.number == number).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
    use prost::Message as _;

    #[test]
    fn spans_are_counted_and_torn_bodies_end_quietly() {
        let scope_spans =
            |n: usize| ScopeSpans { spans: vec![Span { name: "x".into(), flags: 7, ..Span::default() }; n], ..Default::default() };
        let resource_spans = ResourceSpans { scope_spans: vec![scope_spans(2), scope_spans(0), scope_spans(3)], ..Default::default() };
        let body = ExportTraceServiceRequest { resource_spans: vec![resource_spans.clone(), resource_spans] }.encode_to_vec();
        assert_eq!(count_spans(&body), 10);
        for end in 0..body.len() {
            assert!(count_spans(&body[..end]) <= 10);
        }
        assert_eq!(count_spans(&[0xff; 64]), 0);
    }

    #[test]
    fn messages_are_closed_with_minimal_lengths() {
        for length in [0usize, 1, 127, 128, 16_383, 16_384] {
            let mut out = vec![9, 9];
            out.extend((0..length).map(|i| i as u8));
            close_message(&mut out, 2);
            let mut expected = vec![9, 9];
            put_varint(&mut expected, length as u64);
            expected.extend((0..length).map(|i| i as u8));
            assert_eq!(out, expected);
        }
    }
}
