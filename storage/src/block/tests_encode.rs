//! What is written, leaf by leaf, against what Tempo wrote of the same traces; read by the `parquet` crate alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span, TracesData};
use parquet::{
    basic::Encoding,
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
};

use super::{
    encode::Order,
    file::FileWriter,
    interner::Interner,
    pages::{self, Column, Press, Values},
    schema::{Layout, Schema},
    tests::{collect, segments_of},
    *,
};

/// Repetition level, definition level, and the value if it is not null.
type Entry = (i16, i16, Option<String>);

/// The entries of every row, by leaf.
type Rows = Vec<(String, Vec<Vec<Entry>>)>;

fn read<T: DataType>(mut reader: ColumnReaderImpl<T>, max: i16, text: impl Fn(&T::T) -> String) -> Vec<Vec<Entry>> {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    let _ = reader.read_records(usize::MAX, Some(&mut definition), Some(&mut repetition), &mut values).expect("read");
    let count = values.len().max(definition.len()).max(repetition.len());
    definition.resize(count, 0);
    repetition.resize(count, 0);
    let mut values = values.iter();
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    for (repetition, definition) in repetition.into_iter().zip(definition) {
        if repetition == 0 {
            rows.push(Vec::new());
        }
        let value = (definition == max).then(|| text(values.next().expect("a value")));
        rows.last_mut().expect("a row").push((repetition, definition, value));
    }
    assert!(values.next().is_none());
    rows
}

/// Everything in a file.
fn rows(data: Bytes) -> Rows {
    let file = SerializedFileReader::new(data).expect("file");
    let columns = file.metadata().file_metadata().schema_descr().columns().to_vec();
    let mut all: Rows = columns.iter().map(|column| (column.path().string(), Vec::new())).collect();
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).expect("row group");
        for (position, column) in columns.iter().enumerate() {
            let max = column.max_def_level();
            all[position].1.extend(match group.get_column_reader(position).expect("leaf") {
                ColumnReader::BoolColumnReader(reader) => read(reader, max, bool::to_string),
                ColumnReader::Int32ColumnReader(reader) => read(reader, max, i32::to_string),
                ColumnReader::Int64ColumnReader(reader) => read(reader, max, i64::to_string),
                ColumnReader::DoubleColumnReader(reader) => read(reader, max, |value| format!("{value:?}")),
                ColumnReader::ByteArrayColumnReader(reader) => read(reader, max, |value| {
                    std::str::from_utf8(value.data()).map_or_else(|_| format!("{:x?}", value.data()), str::to_owned)
                }),
                _ => panic!("no leaf has this type"),
            });
        }
    }
    all
}

/// vParquet3 of Tempo holds an empty string where there is no JSON, vParquet2 null, as we do in both (block-format.md §7.6).
fn without_empty_json(leaf: &str, row: &[Entry]) -> Vec<Entry> {
    if !leaf.ends_with(".ValueKVList") && !leaf.ends_with(".ValueArray") {
        return row.to_vec();
    }
    row.iter()
        .cloned()
        .map(|(repetition, definition, value)| match value {
            Some(empty) if empty.is_empty() => (repetition, definition - 1, None),
            value => (repetition, definition, value),
        })
        .collect()
}

/// Why the entries of a leaf of a trace are not Tempo's, if there is a reason.
fn reason(format: Format, trace: &TracesData, leaf: &str) -> Option<&'static str> {
    let spans = || trace.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
    let scopes = || trace.resource_spans.iter().flat_map(|r| &r.scope_spans);
    let three = spans().any(|span| spans().filter(|other| nested::key(&other.span_id) == nested::key(&span.span_id)).count() == 3);
    let rooted = spans().any(|span| span.parent_span_id.is_empty());
    let last = leaf.rsplit('.').next().unwrap_or(leaf);
    let leaf_of_span = leaf.contains("Spans.");
    if !leaf_of_span && trace.resource_spans.iter().any(|r| r.scope_spans.is_empty() || r.scope_spans.iter().any(|s| s.spans.is_empty())) {
        return Some("a resource or scope without spans is not kept");
    }
    match last {
        "StartTimeUnixNano" | "DurationNano" if !leaf.contains('.') && spans().any(|span| span.start_time_unix_nano == 0) => {
            Some("a span without a start does not restart the minimum (§18)")
        }
        "ParentID" | "NestedSetLeft" | "NestedSetRight" if format == Format::V2 && three => {
            Some("the limit is two equal ids in vParquet2, too (§18)")
        }
        "ChildCount" if !rooted || three => Some("there are no stale counts (§18)"),
        _ if leaf.contains("Scope.Attrs.")
            && scopes().any(|s| s.scope.as_ref().is_some_and(|s| !s.attributes.is_sorted_by(|a, b| a.key <= b.key))) =>
        {
            Some("attributes of a scope are sorted even if it is the only one")
        }
        _ => None,
    }
}

#[test]
fn every_entry_of_every_leaf_is_that_of_tempo() {
    for format in Format::ALL {
        let Some(folders) = fixtures::blocks(format.name()) else { return };
        let (mut compared, mut reasons) = (0, BTreeMap::new());
        for folder in folders {
            let meta = std::fs::read(folder.join("meta.json")).or_else(|_| std::fs::read(folder.join("meta.compacted.json")));
            let meta = Meta::from_json(&meta.expect("meta")).expect("meta");
            let id = meta.block_id.to_string();
            let source = match &id[id.len() - 2..] {
                "aa" | "bb" => "set-a",
                "c1" => "compact-1",
                "c2" => "compact-2",
                // What the compactor made of these two.
                _ => continue,
            };
            let mut sources = fixtures::traces(&format!("traces/{source}.delim.pb")).expect("traces");
            sources.retain(|trace| trace.resource_spans.iter().flat_map(|r| &r.scope_spans).any(|s| !s.spans.is_empty()));
            let traces = collect(sources.iter().flat_map(segments_of));
            let kept = dedicated::kept(format, &meta.dedicated_columns);
            assert_eq!(kept, meta.dedicated_columns);
            let order = if format >= Format::V4 { Order::Given } else { Order::Apart };
            let ours = encode::encode(format, Settings::default().row_group_size_bytes, &kept, &traces, order).expect("encode");
            assert_eq!(ours.ids.len() as u64, meta.total_objects);
            let ours = rows(ours.file.bytes.into());
            let theirs = rows(std::fs::read(folder.join("data.parquet")).expect("data").into());
            assert_eq!(ours.len(), theirs.len());
            for ((leaf, ours), (same, theirs)) in ours.iter().zip(&theirs) {
                assert_eq!(leaf, same);
                assert_eq!(ours.len(), theirs.len(), "{leaf}");
                for ((ours, theirs), trace) in ours.iter().zip(theirs).zip(&sources) {
                    let mut theirs = without_empty_json(leaf, theirs);
                    let mut ours = ours.clone();
                    if trace.resource_spans.iter().any(|r| r.scope_spans.is_empty() || r.scope_spans.iter().any(|s| s.spans.is_empty())) {
                        // Levels say where the empty groups are; the values are those of the spans.
                        theirs.retain(|(_, _, value)| value.is_some());
                        theirs.iter_mut().chain(&mut ours).for_each(|entry| entry.0 = 0);
                        ours.retain(|(_, _, value)| value.is_some());
                    }
                    let why = reason(format, trace, leaf);
                    match why {
                        Some(why) if ours != theirs => *reasons.entry(why).or_insert(0) += 1,
                        _ => assert_eq!(ours, theirs, "{format} {id}: {leaf} of {}", tests::id_of(trace)),
                    }
                    compared += 1;
                }
            }
        }
        // Every reason is there because of something.
        let mut expected =
            vec!["a resource or scope without spans is not kept", "a span without a start does not restart the minimum (§18)"];
        match format {
            Format::V2 => expected.push("the limit is two equal ids in vParquet2, too (§18)"),
            Format::V3 => {}
            Format::V4 => expected.push("attributes of a scope are sorted even if it is the only one"),
            Format::V5 => {
                expected.extend(["attributes of a scope are sorted even if it is the only one", "there are no stale counts (§18)"]);
            }
        }
        expected.sort_unstable();
        assert_eq!(reasons.keys().copied().collect::<Vec<_>>(), expected, "{format}");
        let different: usize = reasons.values().sum();
        assert!(different * 100 < compared, "{format}: {different} of {compared}");
    }
}

/// A leaf of a row group as arrays.
#[derive(Default)]
struct Arrays {
    repetition: Vec<u8>,
    definition: Vec<u8>,
    codes: Vec<u32>,
    lengths: Vec<i64>,
    bytes: Vec<u8>,
    integers: Vec<i64>,
    doubles: Vec<f64>,
    flags: Vec<u8>,
    dictionary: Option<Interner>,
}

impl Arrays {
    fn read<T: DataType>(&mut self, mut reader: ColumnReaderImpl<T>) -> Vec<T::T> {
        let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
        let _ = reader.read_records(usize::MAX, Some(&mut definition), Some(&mut repetition), &mut values).expect("read");
        self.definition = definition.into_iter().map(|level| level as u8).collect();
        self.repetition = repetition.into_iter().map(|level| level as u8).collect();
        values
    }

    fn of(reader: ColumnReader, layout: Layout) -> Self {
        let mut arrays = Self::default();
        match reader {
            ColumnReader::BoolColumnReader(reader) => arrays.flags = arrays.read(reader).into_iter().map(u8::from).collect(),
            ColumnReader::Int32ColumnReader(reader) => arrays.integers = arrays.read(reader).into_iter().map(i64::from).collect(),
            ColumnReader::Int64ColumnReader(reader) => arrays.integers = arrays.read(reader),
            ColumnReader::DoubleColumnReader(reader) => arrays.doubles = arrays.read(reader),
            ColumnReader::ByteArrayColumnReader(reader) => {
                let values: Vec<ByteArray> = arrays.read(reader);
                if layout == Layout::Dictionary {
                    let mut dictionary = Interner::default();
                    arrays.codes = values.iter().map(|value| dictionary.intern(value.data()).0).collect();
                    arrays.dictionary = Some(dictionary);
                } else {
                    arrays.lengths = values.iter().map(|value| value.len() as i64).collect();
                    arrays.bytes = values.iter().flat_map(|value| value.data().to_vec()).collect();
                }
            }
            _ => panic!("no leaf has this type"),
        }
        arrays
    }

    fn column(&self, schema: &Schema, position: usize) -> Column<'_> {
        use parquet::basic::Type as Physical;
        let values = match (schema.leaves[position].physical, schema.leaves[position].layout) {
            (_, Layout::Dictionary) => Values::Codes(&self.codes),
            (Physical::BYTE_ARRAY, _) => Values::Bytes(&self.lengths, &self.bytes),
            (Physical::DOUBLE, _) => Values::Doubles(&self.doubles),
            (Physical::BOOLEAN, _) => Values::Flags(&self.flags),
            _ => Values::Integers(&self.integers),
        };
        Column { repetition: &self.repetition, definition: &self.definition, values, dictionary: self.dictionary.as_ref() }
    }
}

fn some_dedicated() -> Vec<DedicatedColumn> {
    let column = |scope: &str, name: &str, kind: &str, options: &[&str]| DedicatedColumn {
        scope: scope.to_owned(),
        name: name.to_owned(),
        kind: kind.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    };
    let mut columns = Settings::default().dedicated_columns;
    columns.push(column("span", "db.statement", "string", &["blob"]));
    columns.push(column("event", "exception.type", "string", &["array"]));
    columns
}

fn small(format: Format, traces: usize) -> Encoded {
    let settings = Settings { version: format, row_group_size_bytes: 20_000, dedicated_columns: some_dedicated(), ..Settings::default() };
    let traces = tests::synthetic(&crate::synthetic::requests(7, traces));
    encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode")
}

#[test]
fn a_file_put_together_from_arrays_and_drained_holds_what_the_arrays_held() {
    for format in Format::ALL {
        let block = small(format, 120);
        let schema = schema::of(format, &block.meta.dedicated_columns);
        let source = SerializedFileReader::new(block.data.clone()).expect("file");
        assert!(source.num_row_groups() > 1);
        let mut press = Press::new();
        let mut file = FileWriter::new(Arc::clone(&schema));
        let mut written = Vec::new();
        for group in 0..source.num_row_groups() {
            let group = source.get_row_group(group).expect("row group");
            let rows = group.metadata().num_rows() as usize;
            let pages = if rows < 3 { vec![rows] } else { vec![1, rows / 2, rows - 1 - rows / 2] };
            let chunks: Vec<_> = (0..schema.leaves.len())
                .map(|position| {
                    let leaf = &schema.leaves[position];
                    let arrays = Arrays::of(group.get_column_reader(position).expect("leaf"), leaf.layout);
                    pages::chunk(leaf, &schema.lists[leaf.list], &arrays.column(&schema, position), &pages, &mut press)
                })
                .collect();
            file.row_group(rows, chunks).expect("row group");
            written.extend(file.drain());
        }
        let end = file.finish("test").expect("file");
        written.extend(&end.bytes);
        assert_eq!((end.size, end.row_groups), (written.len() as u64, source.num_row_groups()));
        let footer = u32::from_le_bytes(written[written.len() - 8..][..4].try_into().expect("four bytes"));
        assert_eq!(footer as usize, end.footer);
        let again = SerializedFileReader::new(Bytes::from(written.clone())).expect("file");
        for (ours, theirs) in again.metadata().row_groups().iter().zip(source.metadata().row_groups()) {
            for (ours, theirs) in ours.columns().iter().zip(theirs.columns()) {
                assert_eq!(ours.statistics(), theirs.statistics(), "{}", ours.column_path());
            }
        }
        assert_eq!(rows(written.into()), rows(block.data), "{format}");
    }
}

#[test]
fn arrays_that_do_not_fit_each_other_are_refused() {
    let schema = schema::of(Format::V4, &[]);
    let mut press = Press::new();
    let mut refused = |name: &str, column: &Column<'_>, pages: &[usize]| {
        let leaf = &schema.leaves[schema.leaf(name)];
        pages::chunk(leaf, &schema.lists[leaf.list], column, pages, &mut press).is_err()
    };
    let names =
        |repetition, definition, lengths| Column { repetition, definition, values: Values::Bytes(lengths, b"abc"), dictionary: None };
    let leaf = "rs[].ss[].Spans[].TraceState";
    assert!(!refused(leaf, &names(&[0, 3, 0], &[3, 3, 3], &[1, 1, 1]), &[1, 1]));
    assert!(refused(leaf, &names(&[0, 3, 0], &[3, 3], &[1, 1, 1]), &[1, 1]), "definition levels are missing");
    assert!(refused(leaf, &names(&[0, 3, 0], &[3, 3, 3], &[1, 1]), &[1, 1]), "a value is missing");
    assert!(refused(leaf, &names(&[0, 3, 0], &[3, 3, 3], &[1, 1, 2]), &[1, 1]), "bytes are missing");
    assert!(refused(leaf, &names(&[0, 3, 0], &[3, 3, 3], &[1, 1, 1]), &[1]), "a row is left over");
    let cut = Column { repetition: &[0, 0], definition: &[3, 3], values: Values::Bytes(&[1, 1], "é".as_bytes()), dictionary: None };
    assert!(refused(leaf, &cut, &[2]), "a character is cut in two");
}

#[test]
fn no_version_has_what_tempos_readers_stumble_over() {
    use parquet::basic::Type as Physical;
    for format in Format::ALL {
        let block = small(format, 120);
        let file = SerializedFileReader::new(block.data.clone()).expect("file");
        assert_eq!(block.meta.format, format.name());
        assert_eq!(file.metadata().num_row_groups() as u32, block.meta.total_records);
        for chunk in file.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            let encodings: Vec<_> = chunk.encodings().collect();
            let name = chunk.column_path().string();
            assert_eq!(chunk.column_index_offset(), None, "{name}");
            match chunk.column_type() {
                Physical::BOOLEAN | Physical::DOUBLE => assert_eq!(encodings, [Encoding::PLAIN, Encoding::RLE], "{name}"),
                Physical::INT32 | Physical::INT64 => assert_eq!(chunk.dictionary_page_offset(), None, "{name}"),
                _ => assert_eq!(chunk.dictionary_page_offset().is_some(), encodings.contains(&Encoding::RLE_DICTIONARY), "{name}"),
            }
            if let Some(statistics) = chunk.statistics() {
                assert_eq!(statistics.min_is_exact(), statistics.max_is_exact(), "{name}");
                assert!(!name.contains("Duration"), "{name}");
            }
        }
    }
}

/// Pages with few strings are written before there are many; those after them wait until the strings are sorted; and there are more strings
/// than two bytes can number.
#[tokio::test]
async fn strings_of_a_large_dictionary_stay_with_their_spans() {
    const SPANS: u64 = 250;
    let name = |number: u64| match number {
        0..30_000 => format!("early {}", number % 200),
        number if number % 7 == 0 => format!("early {}", number % 200),
        number => format!("{:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (number % 40)),
    };
    let trace = |trace: u64| {
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&trace.to_be_bytes());
        let span = |number: u64| Span {
            trace_id: trace_id.to_vec(),
            span_id: (number + 1).to_be_bytes().to_vec(),
            name: name(number),
            ..Span::default()
        };
        let scope_spans = vec![ScopeSpans { spans: (trace * SPANS..(trace + 1) * SPANS).map(span).collect(), ..ScopeSpans::default() }];
        TracesData { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
    };
    let traces: Vec<TracesData> = (0..500).map(trace).collect();
    let segments: Vec<TraceSegments> = traces
        .iter()
        .flat_map(segments_of)
        .map(|segment| TraceSegments { trace_id: segment.trace_id, segments: vec![Arc::new(segment)] })
        .collect();
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &segments).expect("encode");
    let reader = tests::open(&encoded).await;
    assert_eq!(reader.row_groups(), 1);
    let mut spans = 0;
    for trace in tests::all(&reader, Projection::INTRINSICS).await {
        for span in trace.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans) {
            let number = u64::from_be_bytes(span.span_id.as_slice().try_into().expect("eight bytes")) - 1;
            assert_eq!(span.name, name(number));
            spans += 1;
        }
    }
    assert_eq!(spans, 500 * SPANS);
}

/// Leaves without a value of their own have but levels, which are those of others. No other bytes are in two leaves.
#[test]
fn leaves_that_store_the_same_bytes_share_them() {
    for (format, expected) in [
        (
            Format::V3,
            vec![vec!["Cluster", "Namespace", "Pod", "Container", "String01", "String10"], vec!["HttpUrl", "String09", "String10"]],
        ),
        (Format::V4, vec![vec!["DroppedEventsCount", "DroppedLinksCount"], vec!["String09", "String10"]]),
    ] {
        let data = small(format, 40).data;
        let file = SerializedFileReader::new(data.clone()).expect("file");
        for group in file.metadata().row_groups() {
            let mut places: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
            for chunk in group.columns() {
                let name = chunk.column_path().parts().last().cloned().expect("a name");
                places.entry(chunk.byte_range()).or_default().push(name);
            }
            let ranges: Vec<_> = places.keys().map(|&(start, length)| start as usize..(start + length) as usize).collect();
            assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{format}: chunks overlap");
            let bodies: std::collections::HashSet<&[u8]> = ranges.iter().map(|range| &data[range.clone()]).collect();
            assert_eq!(bodies.len(), ranges.len(), "{format}: bytes are there twice");
            for wanted in &expected {
                let together = |names: &Vec<String>| wanted.iter().all(|&wanted| names.iter().any(|name| name == wanted));
                assert!(places.values().any(together), "{format}: {wanted:?} do not share a chunk: {places:?}");
            }
        }
    }
}

/// Changing the bytes of a version is allowed, and should not happen unseen: another encoding, another compressor, another order.
/// With `UPDATE_GOLDEN` set, the files are written anew. Those of releases must stay readable.
#[test]
fn blocks_have_the_bytes_that_they_had() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/blocks");
    for format in Format::ALL {
        let block = small(format, 3);
        let files = [("data.parquet", block.data.to_vec()), ("meta.json", block.meta.to_json().expect("meta"))];
        for (name, bytes) in files {
            let path = folder.join(format!("{format}.{name}"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &bytes).expect("golden file");
            }
            let golden = std::fs::read(&path).expect("golden file");
            assert!(
                golden == bytes,
                "{} of {} bytes differs from what is written now, {} bytes: if that is intended, run this test with UPDATE_GOLDEN=1",
                path.display(),
                golden.len(),
                bytes.len()
            );
            if name == "data.parquet" {
                assert_eq!(rows(golden.into()), rows(block.data.clone()));
            }
        }
    }
}
