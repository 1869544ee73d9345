//! Links as vParquet2 and vParquet3 store them: the message `{ repeated Span.Link link = 1 }`, empty when there are none.

use opentelemetry_proto::tonic::trace::v1::span::Link;
use prost::Message as _;

use crate::{
    block::leaf::Wrong,
    otlp::wire::{Fields, Value},
};

/// Number of the field of links.
const LINK: u32 = 1;

/// The links of a span.
///
/// # Errors
/// The bytes are not such a message.
pub fn read(message: &[u8]) -> Result<Vec<Link>, Wrong> {
    let mut links = Vec::new();
    for field in Fields::new(message) {
        let field = field.map_err(|error| format!("links: {error}"))?;
        if let (LINK, Value::Bytes(link)) = (field.number, field.value) {
            links.push(Link::decode(link).map_err(|error| format!("a link: {error}"))?);
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_with_all_that_they_have_and_broken_ones_are_errors() {
        let link = |flags| Link { trace_id: vec![1; 16], span_id: vec![2; 3], trace_state: "a=b".to_owned(), flags, ..Link::default() };
        let mut message = Vec::new();
        for flags in [0, 0x101] {
            message.push(0x0a);
            message.extend(link(flags).encode_length_delimited_to_vec());
        }
        assert_eq!(read(&message), Ok(vec![link(0), link(0x101)]));
        assert_eq!(read(b""), Ok(Vec::new()));
        // Fields that we do not know are passed over.
        assert_eq!(read(&[&message[..], &[0x12, 0x00]].concat()).map(|links| links.len()), Ok(2));
        for cut in [1, 2, message.len() - 1] {
            assert!(read(&message[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read(b"\x0a\x02\x0a\x05").expect_err("torn").contains("a link"));
    }
}
