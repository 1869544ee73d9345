//! The end of the Parquet file: what is read when a block is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::column::Wrong;

/// Bytes behind the footer: its length and the magic.
pub(super) const TAIL: u64 = 8;

/// Length of the footer, as the last eight bytes of the file say.
///
/// # Errors
/// It is no Parquet file.
pub(super) fn length(file_end: &[u8]) -> Result<u64, Wrong> {
    match file_end.last_chunk::<8>() {
        Some([a, b, c, d, b'P', b'A', b'R', b'1']) => Ok(u32::from_le_bytes([*a, *b, *c, *d]).into()),
        _ => Err("data.parquet does not end as a Parquet file".to_owned()),
    }
}

/// Decodes a footer, given with its length and magic.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(bytes: &[u8]) -> Result<ParquetMetaData, Wrong> {
    let (footer, tail) = bytes.split_at(bytes.len().saturating_sub(TAIL as usize));
    if length(tail)? != footer.len() as u64 {
        return Err("the length of the footer is not what meta.json says".to_owned());
    }
    match catch_unwind(AssertUnwindSafe(|| ParquetMetaDataReader::decode_metadata(footer))) {
        Ok(Ok(metadata)) => Ok(metadata),
        Ok(Err(error)) => Err(format!("footer: {error}")),
        Err(_) => Err("footer: its decoder panicked".to_owned()),
    }
}
