//! Blocks of all versions that Tempo wrote, read completely and compared with what Tempo itself reads.

use std::sync::Arc;

use object_store::memory::InMemory;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    trace::v1::{ScopeSpans, Span, TracesData, span::Link},
};
use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
};

use super::{
    column::{Column, Strings, Values},
    decode::{Layout, Rows},
    fixtures,
    leaf::Leaf,
    tests::{all, every_projection, flat, id_of},
    *,
};
use crate::{backend::Store, id::SpanKey};

fn spans(resource_spans: &[ResourceSpans]) -> impl Iterator<Item = &Span> {
    resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans)
}

#[tokio::test]
async fn every_trace_of_tempos_blocks_is_read_as_tempo_reads_it() {
    for format in Format::ALL {
        for (name, row_groups) in [("main", 1..=1), ("multi", 9..=11), ("compacted", 1..=1)] {
            let Some((store, meta)) = fixtures::block(format, name) else { return };
            let expected = fixtures::traces(&format!("readback/{format}.{name}.delim.pb")).expect("readback");
            let reader = Reader::open(&store, Arc::new(meta.clone())).await.expect("open");
            assert!(row_groups.contains(&reader.row_groups()), "{format} {name}");
            assert_eq!(meta.total_objects, expected.len() as u64);
            let scanned = all(&reader, Projection::ALL).await;
            assert_eq!(scanned.len(), expected.len());
            let keys = reader.span_keys().await.expect("keys");
            for (expected, scanned) in expected.iter().zip(scanned) {
                assert_eq!(scanned.trace_id, id_of(expected));
                assert_eq!(scanned.resource_spans, expected.resource_spans, "{format} {name} {}", scanned.trace_id);
                let found = reader.find(scanned.trace_id).await.expect("find").expect("is there");
                assert_eq!(found, scanned);
                let spans = spans(&expected.resource_spans);
                let spans: Vec<_> = spans.map(|s| SpanKey { span_id: nested::key(&s.span_id), kind: s.kind }).collect();
                assert_eq!(keys[&scanned.trace_id], spans);
            }
            for absent in [TraceId([0; 16]), TraceId([0x7f; 16]), TraceId([0xff; 16])] {
                assert_eq!(reader.find(absent).await.expect("find"), None);
            }
        }
    }
}

#[tokio::test]
async fn a_projection_leaves_out_what_it_does_not_name_and_nothing_else() {
    for format in Format::ALL {
        let Some((store, meta)) = fixtures::block(format, "main") else { return };
        let reader = Reader::open(&store, Arc::new(meta)).await.expect("open");
        let whole = all(&reader, Projection::ALL).await;
        for projection in every_projection() {
            let mut expected = whole.clone();
            for resource in expected.iter_mut().flat_map(|trace| &mut trace.resource_spans) {
                if !projection.resource_attributes {
                    let kept = resource.resource.as_mut().expect("always there");
                    // The service's name is an intrinsic; it is stored apart from generic attributes of that name.
                    kept.attributes = service_name(&kept.attributes).into_iter().cloned().collect();
                    kept.dropped_attributes_count = 0;
                }
                for scope in &mut resource.scope_spans {
                    scope.scope = scope.scope.take().filter(|_| projection.scopes);
                    for span in &mut scope.spans {
                        if !projection.span_attributes {
                            span.attributes.clear();
                            span.dropped_attributes_count = 0;
                        }
                        if !projection.events {
                            span.events.clear();
                            span.dropped_events_count = 0;
                        }
                        if !projection.links {
                            span.links.clear();
                            span.dropped_links_count = 0;
                        }
                    }
                }
            }
            assert!(all(&reader, projection).await == expected, "{format} {projection:?}");
        }
    }
}

/// The last text of that name that is not empty: the fixtures have it last among the attributes that are read back.
fn service_name(attributes: &[KeyValue]) -> Option<&KeyValue> {
    let text = |a: &&KeyValue| matches!(a.value.as_ref().and_then(|v| v.value.as_ref()), Some(Any::StringValue(text)) if !text.is_empty());
    attributes.iter().rfind(|a| a.key == "service.name").filter(text)
}

#[tokio::test]
async fn the_pages_of_a_wal_are_read_as_the_blocks_of_the_same_traces() {
    for format in Format::ALL {
        let Some((completed_store, completed)) = fixtures::block(format, "completed") else { return };
        let root = fixtures::root().expect("fixtures").join("wal").join(format.name());
        let folder = root.join(format!("{}+{}+{format}", completed.block_id, completed.tenant_id));
        let meta = Meta::from_json(&std::fs::read(folder.join("meta.json")).expect("meta")).expect("meta");
        assert_eq!(meta.dedicated_columns, completed.dedicated_columns);
        for (page, source) in [("0000000001", "first"), ("0000000002", "second")] {
            // A page file is a Parquet file whose meta says nothing of it.
            let data = Bytes::from(std::fs::read(folder.join(page)).expect("page"));
            let meta = Meta { size: data.len() as u64, ..meta.clone() };
            let store = Store::new(Arc::new(InMemory::new()), "");
            store.put(&Encoded { meta: meta.clone(), data, blooms: Vec::new(), index: Bytes::new() }).await.expect("put");
            let reader = Reader::open(&store, Arc::new(meta)).await.expect("open");
            assert_eq!(reader.row_groups(), 1);
            let mut rows = all(&reader, Projection::ALL).await;
            rows.reverse();
            let (store, meta) = fixtures::block(format, source).expect("block");
            let expected = all(&Reader::open(&store, Arc::new(meta)).await.expect("open"), Projection::ALL).await;
            assert_eq!(rows.len(), expected.len());
            for (row, expected) in rows.iter().zip(&expected) {
                assert_eq!(
                    (row.trace_id, flat(&row.resource_spans)),
                    (expected.trace_id, flat(&expected.resource_spans)),
                    "{format} {page}"
                );
            }
        }
        let reader = Reader::open(&completed_store, Arc::new(completed)).await.expect("open");
        let rows = all(&reader, Projection::ALL).await;
        let expected = fixtures::traces(&format!("readback/{format}.compacted.delim.pb")).expect("readback");
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!((row.trace_id, flat(&row.resource_spans)), (id_of(expected), flat(&expected.resource_spans)), "{format}");
            assert_eq!(reader.find(row.trace_id).await.expect("find").as_ref(), Some(row));
        }
    }
}

#[tokio::test]
async fn blocks_of_the_repository_of_tempo_are_read_or_refused_by_name() {
    const ID: &str = "b27b0e53-66a0-4505-afd6-434ae3cd4a10";
    let Some((store, meta)) = fixtures::bucket("upstream/vparquet2-v2.9.5", "single-tenant", ID) else { return };
    let reader = Reader::open(&store, Arc::new(meta.clone())).await.expect("open");
    let traces = all(&reader, Projection::ALL).await;
    assert_eq!((traces.len(), meta.total_objects), (134, 134));
    assert!(traces.is_sorted_by_key(|trace| trace.trace_id));
    for trace in &traces {
        assert!(spans(&trace.resource_spans).next().is_some());
        assert_eq!(reader.find(trace.trace_id).await.expect("find").as_ref(), Some(trace));
    }
    // Columns of versions in development, which their names do not tell.
    for (folder, difference) in [("upstream/vparquet3-v3.0.3", "leaf 14 is "), ("upstream/vparquet4-v3.0.3", "leaf 11 is ")] {
        let (store, meta) = fixtures::bucket(folder, "single-tenant", ID).expect("block");
        let error = Reader::open(&store, Arc::new(meta)).await.expect_err("has other columns");
        assert!(matches!(&error, BlockError::Corrupt { what, .. } if what.contains(difference)), "{error}");
        assert!(error.to_string().contains(ID), "{error}");
    }
    let (store, meta) = fixtures::bucket("upstream/vparquet5-v3.0.3", "single-tenant", ID).expect("block");
    let error = Reader::open(&store, Arc::new(meta)).await.expect_err("is a preview");
    assert!(matches!(&error, BlockError::Unsupported { format, .. } if format == "vParquet5-preview5"), "{error}");
}

/// All values of a leaf that is in no list, by the `parquet` crate alone.
fn values(file: &SerializedFileReader<Bytes>, name: &str) -> Vec<String> {
    fn read<T: DataType>(mut reader: ColumnReaderImpl<T>, rows: usize) -> Vec<T::T> {
        let mut values = Vec::new();
        assert_eq!(reader.read_records(rows, None, None, &mut values).expect("read").0, rows);
        values
    }
    let schema = file.metadata().file_metadata().schema_descr();
    let leaf = schema.columns().iter().position(|leaf| leaf.path().string() == name).expect("a leaf");
    let mut found = Vec::new();
    for at in 0..file.num_row_groups() {
        let group = file.get_row_group(at).expect("row group");
        let rows = group.metadata().num_rows() as usize;
        match group.get_column_reader(leaf).expect("leaf") {
            ColumnReader::Int64ColumnReader(reader) => found.extend(read(reader, rows).iter().map(|&v| (v as u64).to_string())),
            ColumnReader::ByteArrayColumnReader(reader) => {
                found.extend(read(reader, rows).iter().map(|v: &ByteArray| String::from_utf8_lossy(v.data()).into_owned()))
            }
            _ => panic!("not a leaf of these tests"),
        }
    }
    found
}

#[tokio::test]
async fn what_rows_say_of_traces_follows_from_the_spans_that_are_read() {
    for format in Format::ALL {
        for name in ["main", "multi", "completed"] {
            let Some((store, meta)) = fixtures::block(format, name) else { return };
            let reader = Reader::open(&store, Arc::new(meta.clone())).await.expect("open");
            let traces = all(&reader, Projection::ALL).await;
            let data = store.get(&meta.tenant_id, meta.block_id, DATA).await.expect("data");
            let file = SerializedFileReader::new(data).expect("file");
            let leaves = ["TraceIDText", "StartTimeUnixNano", "EndTimeUnixNano", "DurationNano", "RootServiceName", "RootSpanName"];
            let mut leaves = leaves.map(|leaf| values(&file, leaf).into_iter());
            for trace in &traces {
                // 0 stands for a time that is not set, also in the middle.
                let start = spans(&trace.resource_spans).map(|span| span.start_time_unix_nano);
                let start = start.reduce(|min, start| if start < min || min == 0 { start } else { min }).unwrap_or_default();
                let end = spans(&trace.resource_spans).map(|span| span.end_time_unix_nano).max().unwrap_or_default();
                let child_of = |key: &KeyValue| key.key == "opentracing.ref_type" && key.value == text_value("child_of");
                let is_root = |span: &&Span| {
                    let linked = |link: &Link| link.trace_id == span.trace_id && link.attributes.iter().any(child_of);
                    span.parent_span_id.is_empty() && !span.links.iter().any(linked)
                };
                let roots = trace.resource_spans.iter().flat_map(|r| r.scope_spans.iter().map(move |s| (r, s)));
                let root = roots.flat_map(|(r, s)| s.spans.iter().filter(is_root).map(move |span| (r, span))).last();
                let service = |r: &ResourceSpans| {
                    let attributes = &r.resource.as_ref().expect("always there").attributes;
                    let value = service_name(attributes).and_then(|a| a.value.as_ref()?.value.as_ref());
                    if let Some(Any::StringValue(text)) = value { text.clone() } else { String::new() }
                };
                // Of a repeated name the row says the first and the resource keeps the last.
                let mut service = root.map(|(r, _)| service(r)).unwrap_or_default();
                if service == "dup2" {
                    service = "dup1".to_owned();
                }
                let hex: String = trace.trace_id.0.iter().map(|byte| format!("{byte:02x}")).collect();
                let expected = [
                    hex.trim_start_matches('0').to_owned(),
                    start.to_string(),
                    end.to_string(),
                    end.wrapping_sub(start).to_string(),
                    service,
                    root.map(|(_, span)| span.name.clone()).unwrap_or_default(),
                ];
                assert_eq!(leaves.each_mut().map(|leaf| leaf.next().expect("a row")), expected, "{format} {name} {}", trace.trace_id);
            }
        }
    }
}

fn text_value(text: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Any::StringValue(text.to_owned())) })
}

/// Changes a few levels and numbers of values of a column.
fn damage(column: &mut Column, random: &mut impl FnMut(usize) -> usize) {
    for _ in 0..=random(3) {
        let at = random(column.entries.max(1));
        match random(5) {
            0 => {
                let level = random(usize::from(column.max_repetition) + 2) as u8;
                column.repetition.get_mut(at).into_iter().for_each(|entry| *entry = level);
            }
            1 => {
                let level = random(usize::from(column.max_definition) + 2) as u8;
                column.definition.get_mut(at).into_iter().for_each(|entry| *entry = level);
            }
            2 => column.repetition.truncate(at),
            3 => column.definition.truncate(at),
            _ => match &mut column.values {
                Values::Codes { codes, .. } => codes.truncate(at),
                Values::Long(values) => values.truncate(at),
                Values::Double(values) => values.truncate(at),
                Values::Bool(values) => values.truncate(at),
                values => *values = Values::Long(vec![at as i64]),
            },
        }
    }
}

#[tokio::test]
async fn columns_that_disagree_are_errors_and_never_panics() {
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for format in Format::ALL {
        let Some((store, meta)) = fixtures::block(format, "compacted") else { return };
        let reader = Reader::open(&store, Arc::new(meta.clone())).await.expect("open");
        let layout = Layout::of(format, &meta.dedicated_columns, reader.footer().file_metadata().schema_descr()).expect("layout");
        let leaves = layout.leaves_of(Projection::ALL);
        let columns = reader.columns(0, &leaves).await.expect("columns");
        let read = |columns: Vec<Column>| {
            let mut rows = Rows::new(Arc::clone(&layout));
            for (&leaf, column) in leaves.iter().zip(columns) {
                rows.insert(leaf, Leaf::new(column));
            }
            (0..meta.total_objects).map(|_| rows.trace()).collect::<Result<Vec<_>, _>>()
        };
        let whole = read(columns.clone()).expect("undamaged");
        let (mut errors, mut different) = (0, 0);
        for _ in 0..120 {
            let mut columns = columns.clone();
            let at = random(columns.len());
            damage(&mut columns[at], &mut random);
            match read(columns) {
                Err(_) => errors += 1,
                Ok(read) => different += usize::from(read != whole),
            }
        }
        // Levels may well say something else that is possible, which is for the checksums of the pages to notice.
        assert!(errors > 60 && errors + different > 70, "{format}: {errors} errors and {different} other answers of 120");

        // A dictionary of one string of 1 MiB, which 4097 spans say to have.
        let mut strings = Strings::default();
        strings.push(&vec![b'a'; 1 << 20]).expect("room");
        let mut columns = columns.clone();
        let name = leaves.iter().position(|&leaf| leaf == schema::of(format, &meta.dedicated_columns).leaf("rs[].ss[].Spans[].Name"));
        columns[name.expect("is asked for")].values = Values::Codes { codes: vec![0; 4097], dictionary: Arc::new(strings) };
        assert!(read(columns).expect_err("is too much").contains("more than a row group may have"));
    }
}

/// Release 2.10 had leaves for ten strings of a scope, and wrote longer lists into the meta than it had leaves for.
#[tokio::test]
async fn blocks_of_an_older_release_with_more_dedicated_columns_than_leaves_are_read_and_merged() {
    let column = |number: usize| DedicatedColumn {
        scope: "span".to_owned(),
        name: format!("key {number}"),
        kind: "string".to_owned(),
        options: Vec::new(),
    };
    let listed: Vec<_> = (0..13).map(column).collect();
    let settings = |leaves: usize| Settings { version: Format::V5, dedicated_columns: listed[..leaves].to_vec(), ..Settings::default() };
    let attribute = |number: usize, id: u8| KeyValue {
        key: format!("key {number}"),
        value: Some(AnyValue { value: Some(Any::StringValue(format!("{number} of {id}"))) }),
        ..KeyValue::default()
    };
    let expected = |id: u8| -> Vec<(String, String)> { (0..13).map(|n| (format!("key {n}"), format!("{n} of {id}"))).collect() };
    let store = Store::new(Arc::new(InMemory::new()), "");
    let block = async |id: u8, leaves: usize| {
        let span = Span {
            trace_id: vec![id; 16],
            span_id: vec![id; 8],
            attributes: (0..13).map(|n| attribute(n, id)).collect(),
            ..Span::default()
        };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        let traces = TracesData { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] };
        let traces = tests::collect(tests::segments_of(&traces));
        let mut encoded = encode(&settings(leaves), &Tenant::single(), BlockId::from_u128(id.into()), &traces).expect("encode");
        encoded.meta.dedicated_columns.clone_from(&listed);
        store.put(&encoded).await.expect("put");
        Arc::new(encoded.meta)
    };
    let attributes = async |meta: &Arc<Meta>, id: u8| {
        let reader = Reader::open(&store, Arc::clone(meta)).await.expect("open");
        let trace = reader.find(TraceId([id; 16])).await.expect("find").expect("is there");
        let mut found: Vec<_> = spans(&trace.resource_spans).flat_map(|span| &span.attributes).cloned().collect();
        found.sort_by_key(|attribute| attribute.key.trim_start_matches("key ").parse::<usize>().expect("a number"));
        let text = |attribute: KeyValue| match attribute.value.and_then(|value| value.value) {
            Some(Any::StringValue(text)) => (attribute.key, text),
            other => panic!("{other:?}"),
        };
        found.into_iter().map(text).collect::<Vec<_>>()
    };
    let (old, older, new) = (block(1, 10).await, block(2, 10).await, block(3, 13).await);
    for (meta, leaves) in [(&old, 10), (&older, 10), (&new, 13)] {
        let reader = Reader::open(&store, Arc::clone(meta)).await.expect("open");
        assert_eq!(reader.dedicated_columns(), &listed[..leaves]);
        let own = reader.own_columns(&reader.leaves());
        assert_eq!(own.iter().filter(|own| own.name.starts_with("key ")).count(), leaves);
    }
    for (meta, id) in [(&old, 1), (&older, 2), (&new, 3)] {
        assert_eq!(attributes(meta, id).await, expected(id));
    }
    let merge_settings = merge::Settings { block: settings(10), max_bytes_per_trace: 0, memory_bytes: 16 << 20, threads: 1 };
    let merged = merge::merge(&store, &[Arc::clone(&old), older], BlockId::from_u128(10), &merge_settings).await.expect("merge");
    assert_eq!(merged.meta.dedicated_columns, listed[..10], "the meta says what the file has");
    let merged = Arc::new(merged.meta);
    for id in [1, 2] {
        assert_eq!(attributes(&merged, id).await, expected(id));
    }
    let error = merge::merge(&store, &[old, new], BlockId::from_u128(11), &merge_settings).await.expect_err("other leaves");
    assert!(error.to_string().contains("have leaves for different dedicated columns"), "{error}");
}
