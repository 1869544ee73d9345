//! Messages of calls that come compressed, as plain ones.
//!
//! Clients in Go compress with what both sides have been given: snappy, as Tempo's queriers do unless told otherwise, or gzip. Neither is what
//! the generated services take by themselves.
//!
//! ```text
//!  1 │ length │ compressed  ──► decompressed, within the limit of a message ──►  0 │ length │ message
//!  0 │ length │ message     ─────────────────────────────────────────────────►  0 │ length │ message
//! ```
//!
//! Pushes go through as they are: whoever takes them decompresses within a budget of bytes. So do calls with a compression that is not known,
//! which the services refuse.

use std::io::Read;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use tonic::Status;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The service whose messages are left alone.
const PUSHER: &str = "/tempopb.Pusher/";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Snappy,
}

impl Encoding {
    fn of(name: &HeaderValue) -> Option<Self> {
        match name.as_bytes() {
            b"gzip" => Some(Self::Gzip),
            b"snappy" => Some(Self::Snappy),
            _ => None,
        }
    }

    /// Decompresses a message to at most `max_bytes`.
    fn decompress(self, compressed: &[u8], max_bytes: usize) -> Result<Vec<u8>, Status> {
        let decoder: Box<dyn Read + '_> = match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(compressed)),
            Self::Snappy => Box::new(snap::read::FrameDecoder::new(compressed)),
        };
        let mut message = Vec::new();
        let read = decoder.take(max_bytes as u64 + 1).read_to_end(&mut message);
        read.map_err(|error| Status::internal(format!("message cannot be decompressed: {error}")))?;
        if message.len() > max_bytes { Err(too_large(max_bytes)) } else { Ok(message) }
    }
}

fn too_large(max_bytes: usize) -> Status {
    Status::resource_exhausted(format!("message is larger than {max_bytes} bytes"))
}

/// The middleware. No message may be larger than `max_bytes`, compressed or not.
pub(super) async fn plain(State(max_bytes): State<usize>, mut request: Request, next: Next) -> Response {
    let encoding = request.headers().get("grpc-encoding").and_then(Encoding::of);
    let Some(encoding) = encoding.filter(|_| !request.uri().path().starts_with(PUSHER)) else { return next.run(request).await };
    request.headers_mut().remove("grpc-encoding");
    request.headers_mut().remove(header::CONTENT_LENGTH);
    next.run(request.map(|body| Body::from_stream(messages(body, encoding, max_bytes)))).await
}

/// The messages of a call, plain, prefixes included.
fn messages(body: Body, encoding: Encoding, max_bytes: usize) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
    stream::unfold(Some((body.into_data_stream(), BytesMut::new())), move |state| async move {
        let (mut body, mut come) = state?;
        loop {
            match next_of(&mut come, encoding, max_bytes) {
                Ok(Some(message)) => return Some((Ok(message), Some((body, come)))),
                Ok(None) => {}
                Err(status) => return Some((Err(status), None)),
            }
            match body.next().await {
                Some(Ok(chunk)) => come.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(Status::internal(format!("call cannot be read: {error}"))), None)),
                None if come.is_empty() => return None,
                None => return Some((Err(Status::internal("call ends within a message")), None)),
            }
        }
    })
}

/// Takes the next message out of what has come, if it is all there.
fn next_of(come: &mut BytesMut, encoding: Encoding, max_bytes: usize) -> Result<Option<Bytes>, Status> {
    let Some(&[is_compressed, ref length @ ..]) = come.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > max_bytes {
        return Err(too_large(max_bytes));
    }
    if come.len() < PREFIX + length {
        return Ok(None);
    }
    let mut message = come.split_to(PREFIX + length).freeze();
    if is_compressed == 0 {
        return Ok(Some(message));
    }
    message.advance(PREFIX);
    let message = encoding.decompress(&message, max_bytes)?;
    let mut plain = BytesMut::with_capacity(PREFIX + message.len());
    plain.put_u8(0);
    plain.put_u32(u32::try_from(message.len()).map_err(|_| too_large(max_bytes))?);
    plain.extend_from_slice(&message);
    Ok(Some(plain.freeze()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::{Router, http::StatusCode, middleware, routing::post};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use tower::ServiceExt as _;

    use super::*;

    const MAX_BYTES: usize = 1_000;

    fn compressed(encoding: Encoding, message: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(message).expect("memory");
                out.finish().expect("memory")
            }
            Encoding::Snappy => {
                let mut out = snap::write::FrameEncoder::new(Vec::new());
                out.write_all(message).expect("memory");
                out.into_inner().expect("memory")
            }
        }
    }

    fn prefixed(is_compressed: bool, message: &[u8]) -> Vec<u8> {
        [&[u8::from(is_compressed)], (message.len() as u32).to_be_bytes().as_slice(), message].concat()
    }

    /// What a service gets of a body that comes in chunks, or why not.
    async fn received(path: &str, encoding: &str, body: &[u8], chunk: usize) -> Result<Vec<u8>, String> {
        let service = post(async |request: Request| {
            let encoding = request.headers().get("grpc-encoding").cloned();
            let body = request
                .into_body()
                .collect()
                .await
                .map_err(|error| (StatusCode::BAD_REQUEST, Status::from_error(error.into()).to_string()))?;
            Ok::<_, (StatusCode, String)>((encoding.map(|encoding| [("grpc-encoding", encoding)]), body.to_bytes()))
        });
        let router = Router::new().route(path, service).layer(middleware::from_fn_with_state(MAX_BYTES, plain));
        let chunks: Vec<_> = body.chunks(chunk).map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk))).collect();
        let request = Request::post(path).header("grpc-encoding", encoding).body(Body::from_stream(stream::iter(chunks)));
        let response = router.oneshot(request.expect("a request")).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a buffer").to_bytes().to_vec();
        if !parts.status.is_success() {
            return Err(String::from_utf8(body).expect("text"));
        }
        assert_eq!(parts.headers.contains_key("grpc-encoding"), path.starts_with(PUSHER) || encoding == "zstd");
        Ok(body)
    }

    proptest! {
        #[test]
        fn whatever_the_chunks_the_messages_are_the_same(
            messages in prop::collection::vec((prop::collection::vec(0u8..4, 0..300), any::<bool>()), 0..4),
            chunk in 1usize..64,
            is_snappy in any::<bool>(),
        ) {
            let (encoding, name) = if is_snappy { (Encoding::Snappy, "snappy") } else { (Encoding::Gzip, "gzip") };
            let sent = |(message, is_compressed): &(Vec<u8>, bool)| {
                if *is_compressed { prefixed(true, &compressed(encoding, message)) } else { prefixed(false, message) }
            };
            let sent = messages.iter().flat_map(sent).collect::<Vec<_>>();
            let expected = messages.iter().flat_map(|(message, _)| prefixed(false, message)).collect::<Vec<_>>();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            prop_assert_eq!(runtime.block_on(received("/tempopb.Querier/SearchRecent", name, &sent, chunk)), Ok(expected));
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused() {
        let bomb = prefixed(true, &compressed(Encoding::Gzip, &[0; MAX_BYTES + 1]));
        let torn = prefixed(true, &compressed(Encoding::Snappy, b"message"));
        for (encoding, body, expected) in [
            ("gzip", bomb.as_slice(), "message is larger than 1000 bytes"),
            ("gzip", &[1, 0xff, 0xff, 0xff, 0xff], "message is larger than 1000 bytes"),
            ("gzip", &prefixed(true, b"message"), "message cannot be decompressed"),
            ("snappy", &prefixed(true, b"message"), "message cannot be decompressed"),
            ("snappy", &torn[..torn.len() - 1], "call ends within a message"),
            ("snappy", &[0, 0], "call ends within a message"),
        ] {
            let error = received("/a/b", encoding, body, 64).await.err().unwrap_or_default();
            assert!(error.contains(expected), "{encoding} {expected}: {error}");
        }
    }

    #[tokio::test]
    async fn pushes_and_what_is_not_known_go_through() {
        let body = prefixed(true, b"anything");
        assert_eq!(received("/tempopb.Pusher/PushBytesV2", "snappy", &body, 3).await, Ok(body.clone()));
        assert_eq!(received("/a/b", "zstd", &body, 3).await, Ok(body));
    }
}
