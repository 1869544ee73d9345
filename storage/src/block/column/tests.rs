//! Columns against the `parquet` crate, which reads the same files in its own way.

use std::sync::Arc;

use parquet::{
    basic::{Encoding, ZstdLevel},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type},
    file::{
        properties::{WriterProperties, WriterVersion},
        reader::FileReader as _,
        serialized_reader::SerializedFileReader,
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

use super::*;
use crate::{
    block::{Settings, fixtures, row_group::chunk_range},
    id::{BlockId, Tenant},
};

/// All rows of a leaf, as the crate reads them: levels, and values as text.
type Entries = (Vec<u8>, Vec<u8>, Vec<String>);

fn reference(file: &SerializedFileReader<Bytes>, group: usize, leaf: usize) -> Entries {
    fn read<T: DataType>(mut reader: ColumnReaderImpl<T>, rows: usize, show: impl Fn(&T::T) -> String) -> Entries {
        let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (mut done, mut some) = (0, 1);
        while done < rows && some > 0 {
            (some, ..) =
                reader.read_records(rows - done, Some(&mut definition), Some(&mut repetition), &mut values).expect("the crate reads it");
            done += some;
        }
        assert_eq!(done, rows);
        let levels = |levels: Vec<i16>| levels.into_iter().map(|level| level as u8).collect();
        (levels(repetition), levels(definition), values.iter().map(show).collect())
    }
    let group = file.get_row_group(group).expect("row group");
    let rows = group.metadata().num_rows() as usize;
    match group.get_column_reader(leaf).expect("column") {
        ColumnReader::ByteArrayColumnReader(reader) => read(reader, rows, |value| format!("{:?}", value.data())),
        ColumnReader::Int64ColumnReader(reader) => read(reader, rows, i64::to_string),
        ColumnReader::Int32ColumnReader(reader) => read(reader, rows, i32::to_string),
        ColumnReader::DoubleColumnReader(reader) => read(reader, rows, |value| value.to_bits().to_string()),
        ColumnReader::BoolColumnReader(reader) => read(reader, rows, bool::to_string),
        _ => panic!("a leaf of an unexpected type"),
    }
}

fn entries(column: &Column) -> Entries {
    let values = match &column.values {
        Values::Codes { .. } | Values::Bytes(_) => {
            (0..column.values.len()).map(|index| format!("{:?}", column.values.string(index).expect("a string"))).collect()
        }
        Values::Long(values) => values.iter().map(i64::to_string).collect(),
        Values::Double(values) => values.iter().map(|value| value.to_bits().to_string()).collect(),
        Values::Bool(values) => values.iter().map(bool::to_string).collect(),
    };
    let levels = [&column.repetition, &column.definition].map(|levels| levels.is_empty() || levels.len() == column.entries);
    assert_eq!(levels, [true; 2]);
    (column.repetition.clone(), column.definition.clone(), values)
}

/// The rows of a range of whole entries.
fn part(entries: &Entries, max_definition: u8, rows: &std::ops::Range<usize>) -> Entries {
    let (repetition, definition, values) = entries;
    let count = if repetition.is_empty() { definition.len().max(values.len()) } else { repetition.len() };
    let mut part: Entries = Default::default();
    let (mut row, mut value) = (0usize, 0);
    for entry in 0..count {
        row += usize::from(repetition.get(entry).is_none_or(|&level| level == 0));
        let there = definition.get(entry).is_none_or(|&level| level == max_definition);
        if rows.contains(&(row - 1)) {
            part.0.extend(repetition.get(entry));
            part.1.extend(definition.get(entry));
            part.2.extend(there.then(|| values[value].clone()));
        }
        value += usize::from(there);
    }
    part
}

/// Compares every chunk of a file, as a whole and in some ranges of rows.
fn check(bytes: &Bytes) {
    let file = SerializedFileReader::new(bytes.clone()).expect("file");
    let mut decoder = Decoder::default();
    for (number, group) in file.metadata().row_groups().iter().enumerate() {
        let rows = group.num_rows() as usize;
        for (leaf, chunk) in group.columns().iter().enumerate() {
            let range = chunk_range(chunk, bytes.len() as u64).expect("inside");
            let fetched = Fetched::whole(bytes.slice(range.start as usize..range.end as usize));
            let described = Chunk::new(chunk, rows, 1 << 20).expect("chunk");
            let whole = decoder.column(&described, &fetched, 0..rows).expect("decodes");
            let expected = reference(&file, number, leaf);
            assert_eq!(entries(&whole), expected, "leaf {}", described.name);
            for part_of in [0..1, rows / 3..rows / 2 + 1, rows - 1..rows, rows / 2..rows / 2] {
                let column = decoder.column(&described, &fetched, part_of.clone()).expect("decodes");
                assert_eq!(entries(&column), part(&expected, whole.max_definition, &part_of), "leaf {} {part_of:?}", described.name);
            }
            assert!(decoder.column(&described, &fetched, 0..rows + 1).is_err());
        }
    }
}

#[test]
fn the_blocks_of_tempo_are_read_as_the_crate_reads_them() {
    for version in ["vParquet2", "vParquet3", "vParquet4", "vParquet5"] {
        let Some(blocks) = fixtures::blocks(version) else { return };
        for block in blocks {
            check(&std::fs::read(block.join("data.parquet")).expect("data").into());
        }
    }
}

#[test]
fn levels_that_leaves_share_are_decoded_once_for_all_of_them() {
    let traces = crate::block::tests::synthetic(&crate::synthetic::requests(9, 600));
    let encoded = crate::block::encode(&Settings::default(), &Tenant::single(), BlockId::from_u128(1), &traces).expect("encodes");
    let header = |page: &[u8]| crate::block::thrift::page_header(page).expect("a page").sizes.header;
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let framed = file.metadata().row_group(0).columns().iter().filter(|chunk| {
        let page = &encoded.data[usize::try_from(chunk.data_page_offset()).expect("inside")..];
        matches!(chunk.compression(), Compression::ZSTD(_)) && levels::Frames::first(&page[header(page)..]).is_some()
    });
    assert!(framed.count() > 10, "the levels of many leaves are frames of their own");
    check(&encoded.data);
}

/// A file of one row group with an int64, an optional string in a list, a double and an int32.
fn file(properties: WriterProperties, numbers: &[i64], lists: &[Vec<Option<String>>]) -> Bytes {
    let message = "message m { required int64 a; repeated group l { optional binary s; } required double d; required int32 i; }";
    let schema = Arc::new(parse_message_type(message).expect("schema"));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("writer");
    let mut group = writer.next_row_group().expect("row group");
    let mut column = group.next_column().expect("column").expect("a");
    column.typed::<Int64Type>().write_batch(numbers, None, None).expect("write");
    column.close().expect("close");
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        if list.is_empty() {
            definition.push(0);
            repetition.push(0);
        }
        for (index, string) in list.iter().enumerate() {
            definition.push(1 + i16::from(string.is_some()));
            repetition.push(i16::from(index > 0));
            values.extend(string.as_ref().map(|string| ByteArray::from(string.as_str())));
        }
    }
    let mut column = group.next_column().expect("column").expect("s");
    column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&repetition)).expect("write");
    column.close().expect("close");
    let doubles: Vec<_> = numbers.iter().map(|&number| number as f64 / 3.0).collect();
    let mut column = group.next_column().expect("column").expect("d");
    column.typed::<DoubleType>().write_batch(&doubles, None, None).expect("write");
    column.close().expect("close");
    let ints: Vec<_> = numbers.iter().map(|&number| number as i32).collect();
    let mut column = group.next_column().expect("column").expect("i");
    column.typed::<Int32Type>().write_batch(&ints, None, None).expect("write");
    column.close().expect("close");
    group.close().expect("close");
    writer.into_inner().expect("file").into()
}

fn strings() -> impl Strategy<Value = Vec<Vec<Option<String>>>> {
    let string = prop_oneof![Just(None), "[ab]{0,3}".prop_map(Some), "prefix-[a-z]{0,20}".prop_map(Some)];
    prop::collection::vec(prop::collection::vec(string, 0..5), 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_the_crate_writes_is_read(
        lists in strings(),
        seed in any::<i64>(),
        second in any::<bool>(),
        dictionary in prop_oneof![Just(None), Just(Some(1 << 20)), Just(Some(64))],
        codec in prop_oneof![Just(Compression::UNCOMPRESSED), Just(Compression::SNAPPY), Just(Compression::ZSTD(ZstdLevel::default()))],
        kind in 0..3,
        page in 1usize..100,
    ) {
        let numbers: Vec<i64> = (0..lists.len() as i64).map(|row| if row % 7 == 0 { seed.wrapping_mul(row) } else { row % 5 }).collect();
        let mut properties = WriterProperties::builder()
            .set_writer_version(if second { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 })
            .set_dictionary_enabled(dictionary.is_some())
            .set_dictionary_page_size_limit(dictionary.unwrap_or(1))
            .set_compression(codec)
            .set_write_batch_size(page.min(16))
            .set_data_page_row_count_limit(page);
        if dictionary.is_none() {
            let (string, number, double) = match kind {
                0 => (Encoding::PLAIN, Encoding::PLAIN, Encoding::PLAIN),
                1 => (Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BINARY_PACKED, Encoding::PLAIN),
                _ => (Encoding::DELTA_BYTE_ARRAY, Encoding::BYTE_STREAM_SPLIT, Encoding::BYTE_STREAM_SPLIT),
            };
            for (path, encoding) in [(vec!["l", "s"], string), (vec!["a"], number), (vec!["i"], number), (vec!["d"], double)] {
                properties = properties.set_column_encoding(path.into_iter().map(str::to_owned).collect::<Vec<_>>().into(), encoding);
            }
        }
        check(&file(properties.build(), &numbers, &lists));
    }
}

#[test]
fn a_dictionary_that_is_given_up_in_the_middle_becomes_strings() {
    let lists: Vec<_> = (0..2000).map(|row| vec![Some(format!("string {row}"))]).collect();
    let properties = WriterProperties::builder()
        .set_dictionary_page_size_limit(1000)
        .set_write_batch_size(10)
        .set_data_page_row_count_limit(100)
        .build();
    let bytes = file(properties, &vec![1; lists.len()], &lists);
    check(&bytes);
    let file = SerializedFileReader::new(bytes.clone()).expect("file");
    let chunk = file.metadata().row_group(0).column(1);
    let range = chunk_range(chunk, bytes.len() as u64).expect("inside");
    let described = Chunk::new(chunk, lists.len(), 1 << 20).expect("chunk");
    let fetched = Fetched::whole(bytes.slice(range.start as usize..range.end as usize));
    let mut decoder = Decoder::default();
    let values = |decoder: &mut Decoder, rows| decoder.column(&described, &fetched, rows).expect("decodes").values;
    assert!(matches!(values(&mut decoder, 0..10), Values::Codes { .. }));
    assert!(matches!(values(&mut decoder, 1500..2000), Values::Bytes(_)));
    let Values::Bytes(all) = values(&mut decoder, 0..2000) else { panic!("strings") };
    assert!(all.iter().enumerate().all(|(row, string)| string == format!("string {row}").as_bytes()));
    let dictionary = decoder.dictionary(&described, &fetched.pages[0]).expect("decodes").expect("is there");
    let Dictionary::Strings(strings) = dictionary else { panic!("strings") };
    assert_eq!(strings.get(5), b"string 5");
}

#[test]
fn every_codec_is_undone_and_damage_is_an_error() {
    use std::io::Write as _;
    let body: Vec<u8> = (0..100_000u32).map(|at| (at / 50) as u8).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&body).expect("gzip");
    let codecs = [
        (Compression::UNCOMPRESSED, body.clone()),
        (Compression::SNAPPY, snap::raw::Encoder::new().compress_vec(&body).expect("snappy")),
        (Compression::ZSTD(ZstdLevel::default()), zstd::bulk::compress(&body, 1).expect("zstd")),
        (Compression::GZIP(Default::default()), gzip.finish().expect("gzip")),
        (Compression::LZ4_RAW, lz4_flex::block::compress(&body)),
    ];
    let mut decoder = codec::Codecs::new();
    for (codec, stored) in codecs {
        assert_eq!(decoder.expand(codec, &stored, body.len()).expect("expands"), body);
        assert!(decoder.expand(codec, &stored, body.len() - 1).is_err(), "{codec}");
        assert!(decoder.expand(codec, &stored, body.len() + 1).is_err(), "{codec}");
        assert!(decoder.expand(codec, &stored[..stored.len() - 9], body.len()).is_err(), "{codec}");
    }
    assert!(decoder.expand(Compression::LZO, b"x", 1).expect_err("nobody uses it").contains("LZO"));
}

/// The pages of a chunk without their checksums, which would notice every damage before the decoder sees it.
fn without_checksums(mut chunk: &[u8]) -> Vec<u8> {
    use crate::block::thrift::page_header;
    let mut out = Vec::new();
    while !chunk.is_empty() {
        let header = page_header(chunk).expect("a header");
        let (page, rest) = chunk.split_at(header.sizes.header + header.sizes.compressed);
        chunk = rest;
        if header.crc.is_none() {
            out.extend_from_slice(page);
            continue;
        }
        // Four short fields of one varint each; the checksum is the fourth, and the next one counts from it.
        let mut at = 0;
        let mut starts = Vec::new();
        for _ in 0..4 {
            starts.push(at);
            at += 1 + page[at + 1..].iter().position(|byte| byte & 0x80 == 0).expect("a varint") + 1;
        }
        out.extend_from_slice(&page[..starts[3]]);
        out.push(page[at] + 0x10);
        out.extend_from_slice(&page[at + 1..]);
    }
    out
}

/// Chunks of Tempo's smaller blocks, of all versions, without checksums.
fn chunks() -> &'static [(Chunk, Vec<u8>)] {
    static CHUNKS: std::sync::LazyLock<Vec<(Chunk, Vec<u8>)>> = std::sync::LazyLock::new(|| {
        let mut chunks = Vec::new();
        let versions = crate::block::Format::ALL.into_iter().filter_map(|format| fixtures::blocks(format.name()));
        for block in versions.flatten().filter(|folder| folder.join("meta.compacted.json").exists()) {
            let bytes = Bytes::from(std::fs::read(block.join("data.parquet")).expect("data"));
            let file = SerializedFileReader::new(bytes.clone()).expect("file");
            for group in file.metadata().row_groups() {
                for chunk in group.columns() {
                    let range = chunk_range(chunk, bytes.len() as u64).expect("inside");
                    let described = Chunk::new(chunk, group.num_rows() as usize, 1 << 16).expect("chunk");
                    chunks.push((described, without_checksums(&bytes[range.start as usize..range.end as usize])));
                }
            }
        }
        chunks
    });
    &CHUNKS
}

#[test]
fn pages_without_checksums_are_the_same_pages() {
    let mut decoder = Decoder::default();
    for (chunk, bytes) in chunks() {
        let column = decoder.column(chunk, &Fetched::whole(bytes.clone().into()), 0..chunk.rows).expect("decodes");
        assert!(column.entries >= chunk.rows);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn damaged_pages_are_errors_and_never_panics(
        chunk in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
        first in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        levels in prop::option::weighted(0.1, (0u8..6, 0u8..6)),
        codec in prop::option::weighted(0.1, 0usize..5),
    ) {
        if chunks().is_empty() {
            return Ok(());
        }
        let (chunk, mut bytes) = chunk.get(chunks()).clone();
        let mut chunk = Chunk { limit: 1 << 16, ..chunk };
        for (at, byte, bit) in changes {
            // Half of the changes hit the first header, levels and lengths.
            let range = if first { bytes.len().min(48) } else { bytes.len() };
            let at = at.index(range);
            bytes[at] = if bit { bytes[at] ^ 1 << (byte % 8) } else { byte };
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some((definition, repetition)) = levels {
            (chunk.max_definition, chunk.max_repetition) = (definition, repetition);
        }
        if let Some(codec) = codec {
            chunk.codec = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default()), Compression::GZIP(Default::default()), Compression::LZ4_RAW][codec];
        }
        let mut decoder = Decoder::default();
        let bytes = Bytes::from(bytes);
        let fetched = Fetched::whole(bytes.clone());
        let whole = decoder.column(&chunk, &fetched, 0..chunk.rows);
        if let Ok(column) = &whole {
            prop_assert!(column.entries >= chunk.rows && column.entries <= chunk.limit);
            prop_assert!(column.values.len() <= column.entries);
            prop_assert!((0..column.values.len()).all(|index| column.values.string(index).is_none() == column.values.string(0).is_none()));
        }
        for rows in [chunk.rows / 2..chunk.rows / 2 + 1, 0..chunk.rows / 2, chunk.rows - 1..chunk.rows] {
            let part = decoder.column(&chunk, &fetched, rows);
            prop_assert!(part.is_ok() || whole.is_err());
        }
        let _ = decoder.dictionary(&chunk, &bytes);
    }
}

#[test]
fn columns_that_are_in_memory_together_share_their_room() {
    let bytes = file(WriterProperties::builder().build(), &[1, 2, 3], &[vec![], vec![], vec![]]);
    let parsed = SerializedFileReader::new(bytes.clone()).expect("file");
    let chunk = parsed.metadata().row_group(0).column(0);
    let range = chunk_range(chunk, bytes.len() as u64).expect("inside");
    let fetched = Fetched::whole(bytes.slice(range.start as usize..range.end as usize));
    let described = Chunk::new(chunk, 3, 100).expect("chunk");
    // Three numbers of eight bytes, twice.
    let mut decoder = Decoder::within(50);
    for _ in 0..2 {
        assert!(decoder.column(&described, &fetched, 0..3).is_ok());
    }
    let error = decoder.column(&described, &fetched, 0..3).expect_err("too much");
    assert_eq!(error, "leaf \"a\": the columns together are larger than their bytes can be");
}
