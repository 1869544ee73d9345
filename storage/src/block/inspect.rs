//! What a block's footer says of its columns, for people.

use serde::Serialize;

use super::Reader;

/// A column over all row groups of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnFacts {
    /// Its path in the Parquet schema, without the names of list groups: `rs.ss.Spans.Name`.
    pub name: String,
    /// Compression codec, such as `ZSTD`.
    pub codec: String,
    /// Encodings of its pages, such as `RLE_DICTIONARY PLAIN`.
    pub encodings: String,
    /// Entries, nulls and empty lists among them.
    pub values: u64,
    /// Bytes in the file; columns that store the same share them, and each counts them.
    pub compressed: u64,
    /// Bytes before compression.
    pub uncompressed: u64,
}

impl Reader {
    /// The software that wrote the file, as it calls itself.
    pub fn created_by(&self) -> Option<&str> {
        self.footer().file_metadata().created_by()
    }

    /// Rows and bytes of every row group.
    pub fn row_group_sizes(&self) -> Vec<(u64, u64)> {
        let size = |number: i64| u64::try_from(number).unwrap_or(0);
        self.footer().row_groups().iter().map(|group| (size(group.num_rows()), size(group.compressed_size()))).collect()
    }

    /// Every column, in the order of the file.
    pub fn column_facts(&self) -> Vec<ColumnFacts> {
        let schema = self.footer().file_metadata().schema_descr();
        let mut columns: Vec<_> = schema.columns().iter().map(|column| named(&column.path().string())).collect();
        for group in self.footer().row_groups() {
            for (facts, chunk) in columns.iter_mut().zip(group.columns()) {
                let size = |number: i64| u64::try_from(number).unwrap_or(0);
                facts.values = facts.values.saturating_add(size(chunk.num_values()));
                facts.compressed = facts.compressed.saturating_add(size(chunk.compressed_size()));
                facts.uncompressed = facts.uncompressed.saturating_add(size(chunk.uncompressed_size()));
                // Of a chunk that is not worth compressing the codec is another one: the largest chunk speaks for all.
                let codec = format!("{:?}", chunk.compression());
                let codec = codec.split('(').next().unwrap_or_default();
                if facts.codec.is_empty() || codec != "UNCOMPRESSED" {
                    codec.clone_into(&mut facts.codec);
                }
                let mut encodings: Vec<_> = chunk.encodings().map(|encoding| format!("{encoding:?}")).collect();
                encodings.sort();
                encodings.retain(|encoding| encoding != "RLE");
                if facts.encodings.len() < encodings.join(" ").len() {
                    facts.encodings = encodings.join(" ");
                }
            }
        }
        columns
    }
}

fn named(path: &str) -> ColumnFacts {
    let name = path.replace(".list.element", "").replace(".key_value", "");
    ColumnFacts { name, codec: String::new(), encodings: String::new(), values: 0, compressed: 0, uncompressed: 0 }
}
