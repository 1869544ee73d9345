//! Lists of spans that cannot be longer than their bytes allow: an element that is next to nothing on the wire is hundreds of bytes here.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor},
};

use super::model::Malformed;

/// Spans that may be in a body: their ids alone are 24 bytes in any encoding. A few more than that do no harm, and get a better error.
pub(crate) fn most_spans(body: &[u8]) -> usize {
    body.len() / 24 + 16
}

/// Reads a JSON array of spans.
pub(super) fn from_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<Vec<T>, Malformed> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let spans = Spans { room: most_spans(body), of: PhantomData }.deserialize(&mut json);
    let spans = spans.and_then(|spans| json.end().map(|()| spans));
    spans.map_err(|error| Malformed::Encoding(error.to_string()))
}

struct Spans<T> {
    room: usize,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Spans<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<T>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Spans<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut spans = Vec::new();
        while let Some(span) = elements.next_element()? {
            if spans.len() == self.room {
                return Err(A::Error::custom("more spans than the body can hold"));
            }
            spans.push(span);
        }
        Ok(spans)
    }
}
