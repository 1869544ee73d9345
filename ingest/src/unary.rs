//! The little that a unary call with a message nobody decodes needs of gRPC: the five bytes before a message, the names of compressions, the
//! status in trailers.
//!
//! ```text
//!  HEADERS  :path, content-type, grpc-encoding, x-scope-orgid
//!  DATA     compressed? (1 byte) | length (4 bytes, big-endian) | message
//!                                      └─► reserve ──► read ──► decompress ──► whoever takes it
//!  HEADERS/DATA/trailers  grpc-status, grpc-message, grpc-status-details-bin
//! ```
//!
//! Written by hand because of what libraries don't offer. Receiving: the length before the message is known before the message is read, which
//! is when it is reserved in the byte budget, and decompression ends at the limit of the *decompressed* size. Sending: a message is a list of
//! buffers that other messages share, and is never copied into one of its own.

use std::{
    convert::Infallible,
    fmt::Display,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame};

use crate::{
    body::{BodyError, BodyReader},
    budget::Reservation,
    compression::Encoding,
    status::{Code, Status},
};

/// Compressions that are understood.
pub(crate) const ACCEPTED_ENCODINGS: &str = "identity,gzip,zstd,snappy";
/// Bytes before a message.
pub(crate) const PREFIX: usize = 5;
pub(crate) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether a request is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The compression of messages that the headers name.
pub(crate) fn encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    let name = headers.get(GRPC_ENCODING).map_or(b"identity".as_slice(), HeaderValue::as_bytes);
    std::str::from_utf8(name).ok().and_then(Encoding::of_grpc).ok_or_else(|| {
        let message = format!("grpc: Decompressor is not installed for grpc-encoding {:?}", String::from_utf8_lossy(name));
        Status::new(Code::Unimplemented, message)
    })
}

/// The five bytes before a message.
pub(crate) fn prefix(compressed: bool, length: u32) -> [u8; PREFIX] {
    let [a, b, c, d] = length.to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}

/// Reads the one message of a call, of at most `limit` bytes, and decompresses it.
pub(crate) async fn read_message<B>(
    mut reader: BodyReader<B>,
    encoding: Encoding,
    limit: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, MessageError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut start = Bytes::new();
    while start.len() < PREFIX {
        let chunk = reader.next().await?.ok_or(MessageError::Framing("no message"))?;
        start = if start.is_empty() { chunk } else { [start, chunk].concat().into() };
    }
    let compressed = match start.get_u8() {
        0 => false,
        1 => true,
        _ => return Err(MessageError::Framing("invalid compression flag")),
    };
    let length = start.get_u32() as usize;
    if length > limit {
        return Err(BodyError::TooLarge { limit }.into());
    }
    reservation.reach(length).await.map_err(BodyError::from)?;
    let message = if start.len() >= length {
        start
    } else {
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&start);
        drop(start);
        while message.len() < length {
            let chunk = reader.next().await?.ok_or(MessageError::Framing("message ends before its length"))?;
            if message.len() + chunk.len() > length {
                return Err(MessageError::Framing("more than one message"));
            }
            message.extend_from_slice(&chunk);
        }
        message.into()
    };
    if message.len() > length || reader.next().await?.is_some() {
        return Err(MessageError::Framing("more than one message"));
    }
    let encoding = if compressed { encoding } else { Encoding::Identity };
    Ok(encoding.decompress(message, limit, reservation).await?)
}

/// Why a call has no message.
#[derive(Debug)]
pub(crate) enum MessageError {
    Body(BodyError),
    Framing(&'static str),
}

impl MessageError {
    /// The label under which it is counted.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Body(error) => error.reason(),
            Self::Framing(_) => "bad_framing",
        }
    }

    /// How it is answered, in the words of gRPC libraries where they have some. `retry_after` is the hint for the sender, given when it is not
    /// to blame.
    pub(crate) fn status(&self, retry_after: Option<Duration>) -> Status {
        match self {
            Self::Body(BodyError::TooLarge { limit }) => {
                Status::new(Code::ResourceExhausted, format!("grpc: received message larger than max ({limit} bytes)"))
            }
            Self::Body(error @ BodyError::Corrupt { .. }) => Status::new(Code::Internal, error.to_string()),
            Self::Body(error) => error.status(retry_after),
            Self::Framing(cause) => Status::new(Code::Internal, format!("grpc: {cause}")),
        }
    }
}

impl From<BodyError> for MessageError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

/// An answer: a message and the trailers behind it; without both the answer is its head, which then carries the status.
#[derive(Debug, Default)]
pub struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Reply {
    /// A call that succeeded.
    pub(crate) fn success(message: &[u8]) -> Response<Self> {
        let mut data = BytesMut::with_capacity(PREFIX + message.len());
        data.extend_from_slice(&prefix(false, message.len() as u32));
        data.extend_from_slice(message);
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        Self { data: Some(data.freeze()), trailers: Some(trailers) }.respond()
    }

    /// A call that failed.
    pub(crate) fn failure(status: &Status) -> Response<Self> {
        let mut response = Self::default().respond();
        put_status(response.headers_mut(), status);
        response
    }

    /// What isn't gRPC.
    pub(crate) fn unsupported() -> Response<Self> {
        let mut response = Response::new(Self::default());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        response
    }

    fn respond(self) -> Response<Self> {
        let mut response = Response::new(self);
        response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
        response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED_ENCODINGS));
        response
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.data.take().map(Frame::data).or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }
}

fn put_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as i32));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(&status.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if status.retry_after.is_some()
        && let Ok(details) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(status.to_protobuf()))
    {
        headers.insert("grpc-status-details-bin", details);
    }
}

/// Encodes a message as gRPC does: bytes other than printable ASCII, and `%`, as `%XX`. Cut to what fits a header.
fn percent_encode(message: &str) -> String {
    const MAX: usize = 2048;
    let mut out = String::with_capacity(message.len());
    for character in message.chars() {
        if out.len() >= MAX {
            break;
        }
        if (' '..='~').contains(&character) && character != '%' {
            out.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                out.push('%');
                out.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase()));
            }
        }
    }
    out
}

/// Undoes [`percent_encode`]; what is no such encoding stays as it is.
pub(crate) fn percent_decode(message: &[u8]) -> String {
    let mut out = Vec::with_capacity(message.len());
    let mut rest = message;
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |place: usize| after.get(place).and_then(|&digit| char::from(digit).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% ü\n"), "100%25 %C3%BC%0A");
        assert!(percent_encode(&"ü".repeat(100_000)).len() < 2060);
        for message in ["", "plain", "100% ü\n %41", "%"] {
            assert_eq!(percent_decode(percent_encode(message).as_bytes()), message);
        }
        assert_eq!(percent_decode(b"50%, %z1 %C3"), "50%, %z1 \u{fffd}");
    }
}
