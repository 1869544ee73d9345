//! Decompression within bounds: the output never exceeds a limit, and every byte of it, as well as the decompressor's window, is reserved
//! in the budget before it exists. A bomb is noticed when its output passes the limit, not when memory is gone.
//!
//! Work is done in steps with a yield between them, so that one large body doesn't hold up the thread's other connections.

use std::{
    io::{Read, Write as _},
    str::FromStr,
};

use bytes::{Buf as _, Bytes};

use crate::{body::BodyError, budget::Reservation};

/// Output made between two yields.
const STEP: usize = 256 << 10;
/// Windows of up to 8 MiB, as RFC 8878 recommends decoders to support.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;
/// Windows of what we compress.
const ZSTD_WINDOW_LOG: u32 = 20;

/// Compression of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    /// Also what HTTP calls `deflate`.
    Zlib,
    Zstd,
    /// A raw block or a framed stream, told apart by its first bytes.
    Snappy,
    /// The frame format.
    Lz4,
}

/// Compression of the messages that we send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Bytes as they are.
    None,
    /// Small, and slow to make.
    Gzip,
    /// Fast; what Tempo uses.
    #[default]
    Snappy,
    /// Smaller than snappy at a similar cost.
    Zstd,
}

/// A name that is no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported compression type: {0}")]
pub struct UnknownCompression(String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    /// Reads the value of `grpc_compression`.
    fn from_str(name: &str) -> Result<Self, UnknownCompression> {
        match name {
            "" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "snappy" => Ok(Self::Snappy),
            "zstd" => Ok(Self::Zstd),
            _ => Err(UnknownCompression(name.to_owned())),
        }
    }
}

impl Compression {
    /// Compresses a part of a message. Parts are compressed each by itself and sent one behind the other: in all of these formats that is the
    /// compressed form of the whole, to the decoders of Go just as to ours.
    pub(crate) fn compress(self, part: Bytes) -> std::io::Result<Bytes> {
        let compressed = match self {
            Self::None => return Ok(part),
            Self::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::with_capacity(part.len() / 4), flate2::Compression::fast());
                out.write_all(&part)?;
                out.finish()?
            }
            Self::Snappy => {
                let mut out = snap::write::FrameEncoder::new(Vec::with_capacity(part.len() / 3));
                out.write_all(&part)?;
                out.into_inner().map_err(snap::write::IntoInnerError::into_error)?
            }
            Self::Zstd => {
                let mut out = zstd::stream::write::Encoder::new(Vec::with_capacity(part.len() / 4), 1)?;
                // The same for all parts, since decoders may go by the first.
                out.window_log(ZSTD_WINDOW_LOG)?;
                out.write_all(&part)?;
                out.finish()?
            }
        };
        Ok(compressed.into())
    }
}

impl From<Compression> for Encoding {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::Identity,
            Compression::Gzip => Self::Gzip,
            Compression::Snappy => Self::Snappy,
            Compression::Zstd => Self::Zstd,
        }
    }
}

impl Encoding {
    /// By the value of `Content-Encoding`.
    pub(crate) fn of_http(name: &str) -> Option<Self> {
        Some(match name {
            "" | "identity" => Self::Identity,
            "gzip" => Self::Gzip,
            "zlib" | "deflate" => Self::Zlib,
            "zstd" => Self::Zstd,
            "snappy" => Self::Snappy,
            "lz4" => Self::Lz4,
            _ => return None,
        })
    }

    /// By the value of `grpc-encoding`.
    pub(crate) fn of_grpc(name: &str) -> Option<Self> {
        match name {
            "identity" | "gzip" | "zstd" | "snappy" => Self::of_http(name),
            _ => None,
        }
    }

    /// Its name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
        }
    }

    /// Decompresses a body to at most `limit` bytes. `reservation` must cover `compressed`; it ends up covering the result.
    pub(crate) async fn decompress(self, compressed: Bytes, limit: usize, reservation: &mut Reservation) -> Result<Bytes, BodyError> {
        let corrupt = |cause: String| BodyError::Corrupt { encoding: self.name(), cause };
        let io_error = |error: std::io::Error| corrupt(error.to_string());
        let input = compressed.len();
        let mut scratch = 64 << 10;
        let mut decoder: Box<dyn Read + Send> = match self {
            Self::Identity if input > limit => return Err(BodyError::TooLarge { limit }),
            Self::Identity => return Ok(compressed),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(compressed.reader())),
            Self::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(compressed.reader())),
            Self::Zstd => {
                let window_log = zstd_window_log(&compressed, limit).ok_or_else(|| corrupt("invalid or too large window".to_owned()))?;
                scratch += 1 << window_log;
                reservation.reach(input + scratch).await?;
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed.reader()).map_err(io_error)?;
                decoder.window_log_max(window_log).map_err(io_error)?;
                Box::new(decoder)
            }
            Self::Snappy if compressed.starts_with(&[0xff, 6, 0, 0]) => Box::new(snap::read::FrameDecoder::new(compressed.reader())),
            // A stream of no chunks: what encoders make of nothing.
            Self::Snappy if compressed.is_empty() => return Ok(compressed),
            Self::Snappy => {
                let length = snap::raw::decompress_len(&compressed).map_err(|error| corrupt(error.to_string()))?;
                if length > limit {
                    return Err(BodyError::TooLarge { limit });
                }
                reservation.reach(input + length).await?;
                let body = snap::raw::Decoder::new().decompress_vec(&compressed).map_err(|error| corrupt(error.to_string()))?;
                drop(compressed);
                reservation.shrink(length);
                return Ok(body.into());
            }
            Self::Lz4 => {
                scratch += 3 * lz4_block_bytes(&compressed);
                reservation.reach(input + scratch).await?;
                Box::new(lz4_flex::frame::FrameDecoder::new(compressed.reader()))
            }
        };
        let mut body = Vec::new();
        loop {
            if body.len() == body.capacity() {
                // One byte more than allowed, to tell a body of exactly the limit from a larger one.
                let capacity = (body.capacity() * 2).max(4 * input).max(4 << 10).min(limit + 1);
                reservation.reach(input + scratch + capacity).await?;
                body.reserve_exact(capacity - body.len());
            }
            let room = (body.capacity() - body.len()).min(STEP);
            let read = decoder.by_ref().take(room as u64).read_to_end(&mut body).map_err(io_error)?;
            if body.len() > limit {
                return Err(BodyError::TooLarge { limit });
            }
            if read == 0 {
                break;
            }
            if read == STEP {
                tokio::task::yield_now().await;
            }
        }
        drop(decoder);
        reservation.shrink(body.capacity());
        Ok(body.into())
    }
}

/// Base-2 logarithm of the window that the first frame asks for (RFC 8878 §3.1.1.1); frames behind it may not ask for more. `None` when
/// there is no frame, or its window is larger than what is allowed for a body of `limit` bytes.
fn zstd_window_log(frame: &[u8], limit: usize) -> Option<u32> {
    let header = frame.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = header.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        // The mantissa adds up to 7/8 of the power of two.
        let window_log = 10 + u32::from(rest.first()? >> 3) + u32::from(rest.first()? & 7 != 0);
        return (window_log <= MAX_ZSTD_WINDOW_LOG).then_some(window_log);
    }
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content_size = rest.get(dictionary_id..)?;
    let mut bytes = [0; 8];
    let used = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    bytes[..used].copy_from_slice(content_size.get(..used)?);
    let content_size = u64::from_le_bytes(bytes) + if used == 2 { 256 } else { 0 };
    let window_log = content_size.max(1).checked_next_power_of_two()?.trailing_zeros().max(10);
    // A single segment of up to the limit is fine: the window is not larger than the result.
    (window_log <= MAX_ZSTD_WINDOW_LOG || content_size <= limit as u64).then_some(window_log)
}

/// The block size in the header of an LZ4 frame; the largest there is if there is no such header.
fn lz4_block_bytes(frame: &[u8]) -> usize {
    match frame.get(5).filter(|_| frame.starts_with(&[4, 0x22, 0x4d, 0x18])).map(|descriptor| descriptor >> 4 & 7) {
        Some(4) => 64 << 10,
        Some(5) => 256 << 10,
        Some(6) => 1 << 20,
        Some(7) => 4 << 20,
        _ => 8 << 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Budget;
    use std::time::Duration;

    pub(crate) fn compress(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(data).expect("in memory");
                out.finish().expect("in memory")
            }
            Encoding::Zlib => {
                let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(data).expect("in memory");
                out.finish().expect("in memory")
            }
            Encoding::Zstd => zstd::encode_all(data, 1).expect("in memory"),
            Encoding::Snappy => {
                let mut out = snap::write::FrameEncoder::new(Vec::new());
                out.write_all(data).expect("in memory");
                out.into_inner().expect("in memory")
            }
            Encoding::Lz4 => {
                let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
                out.write_all(data).expect("in memory");
                out.finish().expect("in memory")
            }
        }
    }

    const ALL: [Encoding; 6] = [Encoding::Identity, Encoding::Gzip, Encoding::Zlib, Encoding::Zstd, Encoding::Snappy, Encoding::Lz4];

    async fn decompress(encoding: Encoding, compressed: Vec<u8>, limit: usize) -> (Result<Bytes, BodyError>, usize) {
        let budget = Budget::new(64 << 20, Duration::from_millis(10), &prometheus::Registry::new()).expect("fresh registry");
        let mut reservation = budget.open();
        reservation.reach(compressed.len()).await.expect("room");
        let result = encoding.decompress(compressed.into(), limit, &mut reservation).await;
        (result, reservation.held())
    }

    #[tokio::test]
    async fn every_encoding_round_trips_up_to_the_limit() {
        for size in [0, 1, 5000, 3 << 20] {
            let data: Vec<u8> = (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8 & 0x1f).collect();
            for encoding in ALL {
                let (body, held) = decompress(encoding, compress(encoding, &data), size).await;
                assert!(body.as_deref() == Ok(&data[..]), "{encoding:?} {size}");
                assert!(held >= size, "{encoding:?}: the result is reserved");
                if size > 0 {
                    let (body, _) = decompress(encoding, compress(encoding, &data), size - 1).await;
                    assert_eq!(body, Err(BodyError::TooLarge { limit: size - 1 }), "{encoding:?} {size}");
                }
            }
            let (body, _) = decompress(Encoding::Snappy, snap::raw::Encoder::new().compress_vec(&data).expect("small"), size).await;
            assert!(body.as_deref() == Ok(&data[..]), "raw snappy {size}");
        }
    }

    #[tokio::test]
    async fn parts_are_compressed_apart_and_read_as_one() {
        let part = |bytes: u32| -> Bytes { (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8 & 0x1f).collect() };
        for sizes in [&[0u32][..], &[1, 0, 5000], &[10, 3 << 20, 100, 70_000]] {
            let parts: Vec<Bytes> = sizes.iter().map(|&bytes| part(bytes)).collect();
            for name in ["", "gzip", "snappy", "zstd"] {
                let compression: Compression = name.parse().expect("known");
                let compressed = parts.iter().map(|part| compression.compress(part.clone()).expect("in memory"));
                let message: Vec<u8> = compressed.flatten().collect();
                let (body, _) = decompress(compression.into(), message, 4 << 20).await;
                assert!(body.as_deref() == Ok(&parts.concat()[..]), "{name} {sizes:?}: {:?}", body.err());
            }
        }
        assert_eq!("lz4".parse::<Compression>().map_err(|error| error.to_string()), Err("unsupported compression type: lz4".to_owned()));
    }

    #[tokio::test]
    async fn torn_and_foreign_bodies_are_errors() {
        let data = vec![7; 10_000];
        for encoding in ALL.into_iter().skip(1) {
            let whole = compress(encoding, &data);
            for body in [whole[..whole.len() / 2].to_vec(), b"certainly nothing that is compressed".to_vec(), vec![0xff; 40]] {
                let (result, _) = decompress(encoding, body, 1 << 20).await;
                assert!(matches!(result, Err(BodyError::Corrupt { .. } | BodyError::TooLarge { .. })), "{encoding:?}: {result:?}");
            }
        }
    }

    #[tokio::test]
    async fn zstd_windows_are_bounded() {
        let mut out = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("encoder");
        out.window_log(26).expect("parameter");
        out.write_all(&[1; 100]).expect("in memory");
        let (result, held) = decompress(Encoding::Zstd, out.finish().expect("in memory"), 20 << 20).await;
        assert!(matches!(result, Err(BodyError::Corrupt { encoding: "zstd", .. })), "{result:?}");
        assert!(held < 1 << 20);
    }
}
