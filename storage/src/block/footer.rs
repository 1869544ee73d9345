//! The end of the Parquet file: what is read when a block is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{column::Wrong, thrift};

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
    thrift::check_footer(footer).map_err(|what| format!("footer {what}"))?;
    match catch_unwind(AssertUnwindSafe(|| ParquetMetaDataReader::decode_metadata(footer))) {
        Ok(Ok(metadata)) => Ok(metadata),
        Ok(Err(error)) => Err(format!("footer: {error}")),
        Err(_) => Err("footer: its decoder panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::metadata::{FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter},
        schema::{parser::parse_message_type, types::SchemaDescriptor},
    };

    use super::{super::encoding::varint, *};

    /// A footer whose schema has these elements: their names, and how many children they say they have.
    fn footer<'a>(elements: impl ExactSizeIterator<Item = (&'a str, i32)>, row_groups: u64) -> Vec<u8> {
        let mut out = vec![0x15, 2, 0x19, 0xfc];
        varint(elements.len() as u64, &mut out);
        for (name, children) in elements {
            // INT64 and optional; a name; a number of children if there are any.
            out.extend_from_slice(&[0x15, 4, 0x25, 2, 0x18]);
            varint(name.len() as u64, &mut out);
            out.extend_from_slice(name.as_bytes());
            if children != 0 {
                out.push(0x15);
                varint((i64::from(children) << 1 ^ i64::from(children) >> 63) as u64, &mut out);
            }
            out.push(0);
        }
        out.extend_from_slice(&[0x16, 0, 0x19, 0xfc]);
        varint(row_groups, &mut out);
        out.push(0);
        let length = out.len() as u32;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(b"PAR1");
        out
    }

    #[test]
    fn a_small_footer_cannot_ask_for_much() {
        assert_eq!(read(&footer([("root", 2), ("a", 0), ("b", 0)].into_iter(), 0)).map(|found| found.num_row_groups()), Ok(0));
        let long = "x".repeat(1 << 20);
        let deep = vec![("group", 1); 4000];
        let many = vec![("group", 1); 500_000];
        let closed: Vec<_> = [("root", 100)].into_iter().chain([("group", 1), ("leaf", 0)].repeat(100)).collect();
        for (bytes, expected) in [
            (footer([("root", i32::MAX)].into_iter(), 0), Some("footer has a schema with more children than elements")),
            (footer([("root", -1)].into_iter(), 0), Some("footer has a schema with a negative number of children")),
            (footer(deep.into_iter(), 0), Some("footer has a schema nested too deeply")),
            (footer(many.into_iter(), 0), Some("footer has a schema of too many elements")),
            (footer([("root", 1), (long.as_str(), 0)].into_iter(), 0), Some("footer has a schema with too long a name")),
            (footer([("root", 1), ("a", 0)].into_iter(), 1), Some("footer claims more row groups than its bytes can describe")),
            (footer(closed.into_iter(), 0), None),
        ] {
            assert_eq!(read(&bytes).err().as_deref(), expected);
        }
    }

    #[test]
    fn a_field_of_another_type_hides_no_schema() {
        let mut bytes = footer([("root", 1), ("a", 0)].into_iter(), 0);
        assert!(read(&bytes).is_ok());
        // The version as bytes: a decoder that does not look at the type goes on within them.
        bytes[0] = 0x18;
        assert_eq!(read(&bytes).expect_err("another type"), "footer does not begin with version, schema, rows and row groups");
    }

    #[test]
    fn schemas_with_logical_types_are_read() {
        let schema = parse_message_type(
            "message m { required binary s (STRING); optional group g { repeated int64 u (INTEGER(64, false)); optional int32 d (DATE); } }",
        );
        let schema = SchemaDescriptor::new(std::sync::Arc::new(schema.expect("a schema")));
        let about = FileMetaData::new(2, 0, Some("test".to_owned()), None, std::sync::Arc::new(schema), None);
        let mut bytes = Vec::new();
        let metadata = ParquetMetaDataBuilder::new(about).build();
        ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().expect("written");
        assert_eq!(read(&bytes).expect("a footer").file_metadata().schema_descr().num_columns(), 3);
    }
}
