//! The bytes of a page without compression.

use std::io::Read as _;

use parquet::basic::Compression;

use super::Wrong;

/// Decompresses pages, one after the other, into memory that it keeps.
pub(super) struct Codecs {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    snappy: snap::raw::Decoder,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codecs").field("buffer", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl Codecs {
    pub(super) fn new() -> Self {
        Self { zstd: None, snappy: snap::raw::Decoder::new(), buffer: Vec::new() }
    }

    /// What `stored` is without compression: exactly `size` bytes, which the caller has found to be a reasonable number.
    ///
    /// # Errors
    /// The bytes are not what the codec makes, not of that size, or of a codec that nobody uses for blocks.
    pub(super) fn expand<'a>(&'a mut self, codec: Compression, stored: &'a [u8], size: usize) -> Result<&'a [u8], Wrong> {
        if codec == Compression::UNCOMPRESSED {
            return if stored.len() == size { Ok(stored) } else { Err(SIZE.to_owned()) };
        }
        if size == 0 {
            return Ok(&[]);
        }
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        let out = &mut self.buffer[..size];
        let failed = |error: &dyn std::fmt::Display| format!("a page does not decompress: {error}");
        let length = match codec {
            Compression::ZSTD(_) => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(|error| failed(&error))?),
                };
                zstd.decompress_to_buffer(stored, out).map_err(|error| failed(&error))?
            }
            Compression::SNAPPY => self.snappy.decompress(stored, out).map_err(|error| failed(&error))?,
            Compression::GZIP(_) => {
                let mut decoder = flate2::read::MultiGzDecoder::new(stored);
                decoder.read_exact(out).map_err(|error| failed(&error))?;
                let more = decoder.read(&mut [0]).map_err(|error| failed(&error))?;
                size + more
            }
            Compression::LZ4_RAW => lz4_flex::block::decompress_into(stored, out).map_err(|error| failed(&error))?,
            other => return Err(format!("it has the codec {other}, which is not supported")),
        };
        if length == size { Ok(out) } else { Err(SIZE.to_owned()) }
    }
}

const SIZE: &str = "a page has another size than its header says";
