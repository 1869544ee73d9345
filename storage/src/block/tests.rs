//! Blocks as a whole: those of Tempo read, ours written and read back, damaged ones refused.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use object_store::{local::LocalFileSystem, memory::InMemory};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData, span::Link},
};
use parquet::{
    data_type::ByteArray,
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
};
use prost::Message as _;

use super::{tests_losses::what_is_left, *};
use crate::{
    backend::Store,
    blocklist::Blocklist,
    id::SpanKey,
    otlp::{Slice, Walk, index},
    segment::SpanRef,
    wal::Position,
};

fn settings() -> Settings {
    Settings { row_group_size_bytes: 100_000, bloom_filter_shard_size_bytes: 1000, ..Settings::default() }
}

pub(super) fn segments_of(traces: &TracesData) -> Vec<Segment> {
    // Not by way of the request's index: the fixtures have span ids of lengths that a request may not have, but a block may.
    let mut body = Vec::new();
    let mut append = |message: Vec<u8>| {
        let start = body.len() as u32;
        body.extend_from_slice(&message);
        Slice { start, end: body.len() as u32 }
    };
    let mut spans: BTreeMap<TraceId, Vec<SpanRef>> = BTreeMap::new();
    for resource_spans in &traces.resource_spans {
        let resource = append(resource_spans.resource.as_ref().map(|m| m.encode_to_vec()).unwrap_or_default());
        for scope_spans in &resource_spans.scope_spans {
            let scope = append(scope_spans.scope.as_ref().map(|m| m.encode_to_vec()).unwrap_or_default());
            for span in &scope_spans.spans {
                let id = TraceId(span.trace_id.as_slice().try_into().expect("16 bytes"));
                let key = SpanKey { span_id: nested::key(&span.span_id), kind: span.kind };
                spans.entry(id).or_default().push(SpanRef {
                    key,
                    start_ns: span.start_time_unix_nano,
                    resource,
                    scope,
                    span: append(span.encode_to_vec()),
                });
            }
        }
    }
    let body = Bytes::from(body);
    let segment = |(trace_id, spans)| Segment { tenant: Tenant::single(), trace_id, position: Position(0), body: body.clone(), spans };
    spans.into_iter().map(segment).collect()
}

/// Position of a leaf of vParquet4.
pub(super) fn leaf(name: &str) -> usize {
    schema::of(Format::V4, &[]).leaf(name)
}

/// Puts segments together by trace.
pub(super) fn collect(segments: impl IntoIterator<Item = Segment>) -> Vec<TraceSegments> {
    let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
    for segment in segments {
        traces.entry(segment.trace_id).or_default().push(Arc::new(segment));
    }
    traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect()
}

async fn published(encoded: &Encoded) -> Store {
    let store = Store::new(Arc::new(InMemory::new()), "");
    store.put(encoded).await.expect("put");
    store.publish(&encoded.meta).await.expect("publish");
    store
}

pub(super) async fn open(encoded: &Encoded) -> Reader {
    Reader::open(&published(encoded).await, Arc::new(encoded.meta.clone())).await.expect("open")
}

pub(super) async fn all(reader: &Reader, projection: Projection) -> Vec<Trace> {
    let mut traces = Vec::new();
    for row_group in 0..reader.row_groups() {
        traces.extend(reader.scan(row_group, projection).await.expect("scan"));
    }
    traces
}

/// Every combination of what a projection may ask for.
pub(super) fn every_projection() -> impl Iterator<Item = Projection> {
    (0u8..32).map(|bits| Projection {
        resource_attributes: bits & 1 > 0,
        scopes: bits & 2 > 0,
        span_attributes: bits & 4 > 0,
        events: bits & 8 > 0,
        links: bits & 16 > 0,
    })
}

pub(super) fn id_of(traces: &TracesData) -> TraceId {
    let span = traces.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).next().expect("a span");
    TraceId(span.trace_id.as_slice().try_into().expect("16 bytes"))
}

#[tokio::test]
async fn a_bucket_of_tempo_is_listed_and_blocks_that_are_not_what_their_metas_say_are_refused() {
    let Some(root) = fixtures::root() else { return };
    for format in Format::ALL {
        let objects = LocalFileSystem::new_with_prefix(root.join(format.name())).expect("folder");
        let store = Store::new(Arc::new(objects), "");
        let list = Blocklist::load(&store).await.expect("load");
        let tenant = Tenant::new("fixture-tenant").expect("tenant");
        assert_eq!(list.blocks(&tenant).len(), 2);
        // Two of the three are marked as compacted.
        assert_eq!(list.blocks(&Tenant::new("compaction-tenant").expect("tenant")).len(), 1);
        for meta in list.blocks(&tenant).iter() {
            Reader::open(&store, Arc::clone(meta)).await.expect("supported");
            for name in ["vParquet", "v2", "vparquet4", "vParquet5-preview5", "vParquet6", ""] {
                let unknown = Meta { format: name.to_owned(), ..meta.as_ref().clone() };
                let error = Reader::open(&store, Arc::new(unknown)).await.expect_err("not supported");
                assert!(matches!(&error, BlockError::Unsupported { format, .. } if format == name));
                assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
            }
            for other in Format::ALL.into_iter().filter(|&other| other != format) {
                let lying = Meta { format: other.name().to_owned(), ..meta.as_ref().clone() };
                let error = Reader::open(&store, Arc::new(lying)).await.expect_err("has other columns");
                assert!(matches!(error, BlockError::Corrupt { .. }), "{error}");
            }
        }
    }
}

fn without_order(mut attributes: Vec<KeyValue>) -> Vec<KeyValue> {
    attributes.sort_by_cached_key(|attribute| (attribute.key.clone(), attribute.encode_to_vec()));
    attributes
}

/// What the format and the canonical order leave of a trace, as a sorted list of (resource, scope, span).
pub(super) fn flat(resource_spans: &[ResourceSpans]) -> Vec<(Resource, InstrumentationScope, Span)> {
    let mut spans = Vec::new();
    for resource in resource_spans {
        let mut about = resource.resource.clone().unwrap_or_default();
        about.attributes = without_order(about.attributes);
        for scope in &resource.scope_spans {
            let mut kept = scope.scope.clone().unwrap_or_default();
            kept.attributes = without_order(kept.attributes);
            for span in &scope.spans {
                let mut span = span.clone();
                span.attributes = without_order(span.attributes);
                for event in &mut span.events {
                    event.attributes = without_order(std::mem::take(&mut event.attributes));
                }
                spans.push((about.clone(), kept.clone(), span));
            }
        }
    }
    spans.sort_by(|a, b| {
        let key = |s: &Span| (s.start_time_unix_nano, s.span_id.clone(), s.kind, s.encode_to_vec());
        key(&a.2).cmp(&key(&b.2)).then_with(|| format!("{:?}", (&a.0, &a.1)).cmp(&format!("{:?}", (&b.0, &b.1))))
    });
    spans
}

/// Keeps one span of every identity: the first in canonical order, which is the order that `flat` gives apart from equal ones.
fn once(spans: Vec<(Resource, InstrumentationScope, Span)>) -> Vec<(Resource, InstrumentationScope, Span)> {
    let mut seen = std::collections::HashSet::new();
    spans.into_iter().filter(|(_, _, span)| seen.insert((nested::key(&span.span_id), span.kind))).collect()
}

#[tokio::test]
async fn our_block_of_tempos_traces_reads_back_as_tempos_block() {
    let Some(sources) = fixtures::traces("traces/set-a.delim.pb") else { return };
    let (_, main) = fixtures::block(Format::V4, "main").expect("block");
    for (name, dedicated) in [("multi", Vec::new()), ("main", main.dedicated_columns.clone())] {
        let settings = Settings { dedicated_columns: dedicated, ..settings() };
        let traces = collect(sources.iter().flat_map(segments_of));
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        let reader = open(&encoded).await;
        let ours: HashMap<_, _> = all(&reader, Projection::ALL).await.into_iter().map(|trace| (trace.trace_id, trace)).collect();
        let expected = fixtures::traces(&format!("readback/vParquet4.{name}.delim.pb")).expect("readback");
        assert_eq!(ours.len(), expected.len());
        let mut repeated = 0;
        for expected in &expected {
            let id = id_of(expected);
            let (ours, expected) = (flat(&ours[&id].resource_spans), flat(&expected.resource_spans));
            let kept = once(expected.clone());
            repeated += expected.len() - kept.len();
            assert_eq!(ours, kept, "{name} {id}");
        }
        assert!(repeated > 0, "the fixture has repeated spans");
        assert_eq!(encoded.meta.total_objects, 200);
        assert_eq!((encoded.meta.start_time, encoded.meta.end_time), (main.start_time, main.end_time));
    }
}

/// Values of an integer or string leaf by the `parquet` crate alone, of one row.
fn column(encoded: &Encoded, row: usize, leaf: &str) -> Vec<String> {
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let position = self::leaf(leaf);
    let group = file.get_row_group(0).expect("row group");
    let mut reader = group.get_column_reader(position).expect("leaf");
    fn read<T: parquet::data_type::DataType>(reader: &mut parquet::column::reader::ColumnReaderImpl<T>, row: usize) -> Vec<T::T> {
        let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(reader.skip_records(row).expect("skip"), row);
        let _ = reader.read_records(1, Some(&mut definition), Some(&mut repetition), &mut values).expect("read");
        values
    }
    use parquet::column::reader::ColumnReader;
    match &mut reader {
        ColumnReader::Int32ColumnReader(reader) => read(reader, row).iter().map(i32::to_string).collect(),
        ColumnReader::Int64ColumnReader(reader) => read(reader, row).iter().map(i64::to_string).collect(),
        ColumnReader::ByteArrayColumnReader(reader) => {
            read(reader, row).iter().map(|v: &ByteArray| String::from_utf8_lossy(v.data()).into_owned()).collect()
        }
        _ => panic!("not a leaf of these tests"),
    }
}

#[test]
fn rows_hold_what_tempo_would_compute() {
    let span = |id: u8, parent: u8, start: u64, end: u64, kind: i32, name: &str| Span {
        trace_id: vec![1; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        kind,
        name: name.to_owned(),
        ..Span::default()
    };
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    };
    let service = |name: &str, spans: Vec<Span>| ResourceSpans {
        resource: Some(Resource { attributes: vec![text("service.name", name)], ..Resource::default() }),
        scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    };
    let mut linked = span(4, 0, 40, 45, 1, "linked");
    linked.links = vec![Link { trace_id: vec![1; 16], attributes: vec![text("opentracing.ref_type", "child_of")], ..Link::default() }];
    let mut failed = span(3, 2, 30, 90, 2, "failed");
    failed.status = Some(Status { code: 2, ..Status::default() });
    let traces = TracesData {
        resource_spans: vec![
            service("b", vec![failed, linked]),
            service("a", vec![span(1, 0, 10, 20, 1, "root"), span(2, 1, 15, 80, 3, "client")]),
            service("a", vec![span(5, 9, 0, 1, 1, "unset start")]),
        ],
    };
    let encoded = encode(&settings(), &Tenant::single(), BlockId::nil(), &collect(segments_of(&traces))).expect("encode");
    let column = |leaf: &str| column(&encoded, 0, leaf);
    assert_eq!(column("TraceIDText"), ["1010101010101010101010101010101"]);
    assert_eq!((column("StartTimeUnixNano"), column("EndTimeUnixNano")), (vec!["10".to_owned()], vec!["90".to_owned()]));
    assert_eq!(column("DurationNano"), ["80"]);
    assert_eq!((column("RootSpanName"), column("RootServiceName")), (vec!["root".to_owned()], vec!["a".to_owned()]));
    assert_eq!(column("ServiceStats{}.key"), ["a", "b"]);
    assert_eq!(column("ServiceStats{}.value.SpanCount"), ["3", "2"]);
    assert_eq!(column("ServiceStats{}.value.ErrorCount"), ["0", "1"]);
    assert_eq!(column("rs[].Resource.ServiceName"), ["a", "b"]);
    assert_eq!(column("rs[].ss[].Spans[].Name"), ["unset start", "root", "client", "failed", "linked"]);
    assert_eq!(column("rs[].ss[].Spans[].NestedSetLeft"), ["0", "1", "2", "3", "7"]);
    assert_eq!(column("rs[].ss[].Spans[].NestedSetRight"), ["0", "6", "5", "4", "8"]);
    assert_eq!(column("rs[].ss[].Spans[].ParentID"), ["0", "-1", "1", "2", "-1"]);
}

#[test]
fn the_file_obeys_what_tempos_readers_demand() {
    use parquet::basic::{Encoding, Type as Physical};
    let requests = crate::synthetic::requests(7, 300);
    let traces = synthetic(&requests);
    let settings = Settings { row_group_size_bytes: 50_000, ..settings() };
    let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let metadata = file.metadata();
    let about = metadata.file_metadata();
    assert_eq!((about.version(), about.num_rows()), (2, traces.len() as i64));
    assert!(about.created_by().is_some_and(|by| by.starts_with("rubato version ")));
    assert_eq!(about.key_value_metadata(), None);
    assert!(metadata.num_row_groups() > 1);
    assert_eq!(metadata.num_row_groups() as u32, encoded.meta.total_records);
    let footer = u32::from_le_bytes(encoded.data[encoded.data.len() - 8..][..4].try_into().expect("four bytes"));
    assert_eq!((footer, encoded.data.len() as u64), (encoded.meta.footer_size, encoded.meta.size));
    let mut lasts = Vec::new();
    let mut row = 0;
    for group in metadata.row_groups() {
        row += group.num_rows() as usize;
        lasts.push(STANDARD.encode(traces[row - 1].trace_id.0));
        for chunk in group.columns() {
            let encodings: Vec<_> = chunk.encodings().collect();
            match chunk.column_type() {
                Physical::BOOLEAN | Physical::DOUBLE => {
                    assert!(encodings.contains(&Encoding::PLAIN) && chunk.dictionary_page_offset().is_none())
                }
                Physical::INT32 | Physical::INT64 => assert_eq!(chunk.dictionary_page_offset(), None),
                _ => assert_eq!(chunk.dictionary_page_offset().is_some(), encodings.contains(&Encoding::RLE_DICTIONARY)),
            }
            assert!(chunk.offset_index_range().is_some());
            if let Some(statistics) = chunk.statistics() {
                assert_eq!(statistics.min_is_exact(), statistics.max_is_exact());
            }
        }
    }
    assert_eq!(row, traces.len());
    let index: serde_json::Value = serde_json::from_slice(&encoded.index).expect("json");
    assert_eq!(index, serde_json::json!({ "rowGroups": lasts }));
}

pub(super) fn synthetic(requests: &[Bytes]) -> Vec<TraceSegments> {
    let mut walk = Walk::default();
    let mut segments = Vec::new();
    for body in requests {
        index(body, &mut walk).expect("a valid request");
        segments.extend(Segment::split(&Tenant::single(), Position(0), body, &walk));
    }
    collect(segments)
}

#[tokio::test]
async fn synthetic_traces_come_back_by_id_and_by_scan_from_many_pages() {
    let requests = crate::synthetic::requests(3, 1500);
    let traces = synthetic(&requests);
    let settings = Settings { row_group_size_bytes: 100_000_000, ..settings() };
    let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let reader = open(&encoded).await;
    let scanned = all(&reader, Projection::ALL).await;
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let chunk = file.metadata().row_group(0).column(leaf("rs[].ss[].Spans[].SpanID"));
    let range = chunk.offset_index_range().expect("offset index");
    let pages = parquet::file::page_index::index_reader::decode_offset_index(&encoded.data[range.start as usize..range.end as usize]);
    assert!(pages.expect("pages").page_locations().len() > 1, "the test wants several pages");
    assert_eq!(scanned.len(), traces.len());
    for (at, (trace, source)) in scanned.iter().zip(&traces).enumerate() {
        assert_eq!(trace.trace_id, source.trace_id);
        let sent: Vec<_> = source.segments.iter().flat_map(|segment| segment.decode().expect("decode")).collect();
        assert_eq!(flat(&trace.resource_spans), flat(&what_is_left(Format::V4, &encoded.meta.dedicated_columns, sent)));
        if at % 97 == 0 {
            assert_eq!(reader.find(trace.trace_id).await.expect("find").as_ref(), Some(trace));
        }
    }
    for (trace, whole) in all(&reader, Projection::INTRINSICS).await.iter().zip(&scanned) {
        let names = |trace: &Trace| {
            trace.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).map(|s| s.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(trace), names(whole));
        assert!(
            trace
                .resource_spans
                .iter()
                .flat_map(|r| &r.scope_spans)
                .all(|s| s.scope.is_none() && s.spans.iter().all(|s| s.attributes.is_empty() && s.events.is_empty()))
        );
        assert!(trace.resource_spans.iter().all(|r| r.resource.as_ref().is_some_and(|r| r.attributes.len() == 1)));
    }
}

#[test]
fn the_order_of_arrival_and_repetitions_do_not_matter() {
    let mut segments: Vec<Segment> = Vec::new();
    let mut walk = Walk::default();
    for body in crate::synthetic::requests(11, 60) {
        index(&body, &mut walk).expect("valid");
        segments.extend(Segment::split(&Tenant::single(), Position(0), &body, &walk));
    }
    // One segment per span, so that there is something to shuffle.
    let mut single: Vec<Segment> =
        segments.iter().flat_map(|s| s.spans.iter().map(|&span| Segment { spans: vec![span], ..s.clone() })).collect();
    let expected = encode(&settings(), &Tenant::single(), BlockId::nil(), &collect(segments)).expect("encode");
    let mut random = 1u64;
    for _ in 0..3 {
        for at in (1..single.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            single.swap(at, (random >> 33) as usize % (at + 1));
        }
        let repeated = single.iter().take(random as usize % single.len()).cloned().collect::<Vec<_>>();
        let encoded =
            encode(&settings(), &Tenant::single(), BlockId::nil(), &collect(single.iter().cloned().chain(repeated))).expect("encode");
        assert!(encoded.data == expected.data, "data.parquet depends on the order of arrival");
        assert_eq!(encoded.meta, expected.meta);
    }
}

#[tokio::test]
async fn damaged_files_are_errors_and_never_panics() {
    let traces = synthetic(&crate::synthetic::requests(5, 20));
    for version in Format::ALL {
        let settings = Settings { version, ..settings() };
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        let read = async |data: Bytes, meta: &Meta| -> Result<usize, BlockError> {
            let store = published(&Encoded { data, meta: meta.clone(), ..encoded.clone() }).await;
            let reader = Reader::open(&store, Arc::new(meta.clone())).await?;
            let mut count = 0;
            for row_group in 0..reader.row_groups() {
                count += reader.scan(row_group, Projection::ALL).await?.len();
            }
            reader.span_keys().await?;
            for trace in traces.iter().step_by(10) {
                reader.find(trace.trace_id).await?;
            }
            Ok(count)
        };
        assert_eq!(read(encoded.data.clone(), &encoded.meta).await.expect("undamaged"), traces.len());
        let length = encoded.data.len();
        for cut in [0, 3, 8, length / 2, length - 9, length - 1] {
            let short = encoded.data.slice(..cut);
            let meta = Meta { size: cut as u64, ..encoded.meta.clone() };
            assert!(matches!(read(short.clone(), &meta).await, Err(BlockError::Corrupt { .. })), "cut at {cut}");
            assert!(read(short, &encoded.meta).await.is_err(), "cut at {cut} without the meta knowing");
        }
        let (mut errors, mut tried) = (0, 0);
        for step in 0..48usize {
            // Half of the flips fall into the footer, where all structure is.
            let footer = encoded.meta.footer_size as usize + 8;
            let at = if step % 2 == 0 { length - 1 - step * 7919 % footer } else { step * 104_729 % length };
            let mut bytes = encoded.data.to_vec();
            bytes[at] ^= 1 << (step % 8);
            tried += 1;
            errors += usize::from(read(bytes.into(), &encoded.meta).await.is_err());
        }
        // Flips of unused bits (names of encodings, statistics, sizes that nobody reads) may go unnoticed; data is under checksums.
        assert!(errors > tried / 3, "{errors} of {tried} flips were noticed");
        for footer_size in [1, encoded.meta.footer_size - 1, encoded.meta.footer_size + 1, u32::MAX] {
            let meta = Meta { footer_size, ..encoded.meta.clone() };
            assert!(matches!(read(encoded.data.clone(), &meta).await, Err(BlockError::Corrupt { .. })));
        }
        let unsaid = Meta { footer_size: 0, ..encoded.meta.clone() };
        assert_eq!(read(encoded.data.clone(), &unsaid).await.expect("old metas do not say it"), traces.len());
    }
}

#[tokio::test]
async fn every_flipped_bit_of_the_data_is_noticed() {
    let traces = synthetic(&crate::synthetic::requests(5, 10));
    for version in Format::ALL {
        let settings = Settings { version, ..settings() };
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        let whole = all(&open(&encoded).await, Projection::ALL).await;
        let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
        // A bit of the stored bytes of a page, behind its header.
        for chunk in file.metadata().row_group(0).columns() {
            let (start, length) = chunk.byte_range();
            let bytes = &encoded.data[start as usize..(start + length) as usize];
            let page = thrift::page_header(bytes).expect("header").sizes;
            if page.compressed == 0 {
                continue;
            }
            let mut damaged = encoded.data.to_vec();
            damaged[start as usize + page.header + page.compressed / 2] ^= 4;
            let store = published(&Encoded { data: damaged.into(), ..encoded.clone() }).await;
            let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("footer");
            match reader.scan(0, Projection::ALL).await {
                Err(error) => assert!(matches!(error, BlockError::Corrupt { .. })),
                // Leaves that are not read back: what the row says of the trace as a whole.
                Ok(read) => assert_eq!(read, whole),
            }
        }
    }
}

#[test]
fn broken_segments_and_unsorted_traces_are_refused() {
    let traces = synthetic(&crate::synthetic::requests(5, 10));
    let refused =
        |traces: &[TraceSegments]| matches!(encode(&settings(), &Tenant::single(), BlockId::nil(), traces), Err(BlockError::Encode { .. }));
    assert!(!refused(&traces));
    assert!(refused(&[traces[1].clone(), traces[0].clone()]));
    assert!(refused(&[traces[0].clone(), traces[0].clone()]));
    let mut segment = traces[0].segments[0].as_ref().clone();
    segment.body = segment.body.slice(..segment.spans[0].span.end as usize - 1);
    assert!(refused(&[TraceSegments { trace_id: segment.trace_id, segments: vec![Arc::new(segment)] }]));
    let mut segment = traces[0].segments[0].as_ref().clone();
    let mut body = segment.body.to_vec();
    body[segment.spans[0].span.start as usize..segment.spans[0].span.end as usize].fill(0xff);
    segment.body = body.into();
    assert!(refused(&[TraceSegments { trace_id: segment.trace_id, segments: vec![Arc::new(segment)] }]));
}

#[tokio::test]
async fn an_empty_block_is_a_block() {
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &[]).expect("encode");
    assert_eq!((encoded.meta.start_time, encoded.meta.total_objects, encoded.blooms.len()), (Meta::NO_TIME, 0, 1));
    let reader = open(&encoded).await;
    assert_eq!(reader.row_groups(), 0);
    assert_eq!(reader.find(TraceId([1; 16])).await.expect("find"), None);
    assert!(reader.span_keys().await.expect("keys").is_empty());
    assert!(matches!(reader.scan(0, Projection::ALL).await, Err(BlockError::Corrupt { .. })));
}

#[tokio::test]
async fn only_finding_needs_the_offset_index() {
    let traces = synthetic(&crate::synthetic::requests(5, 40));
    let encoded = encode(&settings(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    // Blank out the offset indexes: a reader that used them would fail.
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let range = file.metadata().row_group(0).column(0).offset_index_range().expect("index");
    let mut damaged = encoded.data.to_vec();
    damaged[range.start as usize..range.end as usize].fill(0);
    let store = Store::new(Arc::new(InMemory::new()), "");
    store.put(&Encoded { data: damaged.into(), ..encoded.clone() }).await.expect("put");
    let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    let first = traces.first().expect("a trace").trace_id;
    assert!(matches!(reader.find(first).await, Err(BlockError::Corrupt { .. })));
    assert!(reader.scan(0, Projection::ALL).await.is_ok());
}
