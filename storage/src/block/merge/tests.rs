//! Merges of real blocks and of random ones, against Tempo's output and a naive model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, memory::InMemory, path::Path as ObjectPath,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::{
    block::{
        Projection, Reader, Trace, TraceSegments,
        column::{Column, Values},
        encode, fixtures, nested, schema,
    },
    id::Tenant,
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};

fn settings() -> Settings {
    Settings { block: crate::block::Settings::default(), max_bytes_per_trace: 0, memory_bytes: 64 << 20, threads: 2 }
}

fn bucket() -> Store {
    Store::new(Arc::new(InMemory::new()), "")
}

/// Puts a block of the fixtures into the bucket; live or compacted.
async fn load(store: &Store, folder: &Path) -> Arc<Meta> {
    let json = std::fs::read(folder.join("meta.json")).or_else(|_| std::fs::read(folder.join("meta.compacted.json"))).expect("meta");
    let meta = Meta::from_json(&json).expect("meta");
    for file in std::fs::read_dir(folder).expect("block") {
        let file = file.expect("file");
        let name = file.file_name().into_string().expect("name");
        let bytes = std::fs::read(file.path()).expect("object");
        store.put_named(&meta.tenant_id, meta.block_id, &name, bytes.into()).await.expect("put");
    }
    Arc::new(meta)
}

/// The two inputs of Tempo's compactor, and its output.
async fn compaction(store: &Store, format: Format) -> Option<(Vec<Arc<Meta>>, Arc<Meta>)> {
    let folder = fixtures::root()?.join(format.name()).join("compaction-tenant");
    let (mut inputs, mut output) = (Vec::new(), None);
    for block in fixtures::blocks(format.name())?.into_iter().filter(|path| path.starts_with(&folder)) {
        let meta = load(store, &block).await;
        if meta.compaction_level == 0 { inputs.push(meta) } else { output = Some(meta) }
    }
    inputs.sort_by_key(|meta| meta.block_id);
    assert_eq!(inputs.len(), 2);
    Some((inputs, output.expect("an output")))
}

type Entry = (u8, u8, Option<Vec<u8>>);

/// Every entry of every leaf of a row: levels and value.
type Row = BTreeMap<String, Vec<Entry>>;

/// All rows of a block as its leaves have them, in order.
async fn rows(store: &Store, meta: &Arc<Meta>) -> Vec<(TraceId, Row)> {
    let reader = Reader::open(store, Arc::clone(meta)).await.expect("open");
    let format: Format = meta.format.parse().expect("format");
    let schema = schema::of(format, &meta.dedicated_columns);
    let leaves: Vec<_> = (0..schema.leaves.len()).collect();
    let mut all = Vec::new();
    for group in 0..reader.row_groups() {
        let columns = reader.columns(group, &leaves).await.expect("columns");
        let count = reader.footer().row_group(group).num_rows() as usize;
        let mut found: Vec<Row> = vec![Row::new(); count];
        for (leaf, column) in schema.leaves.iter().zip(&columns) {
            let entries = entries(column);
            assert_eq!(entries.len(), count, "{}", leaf.name);
            for (row, entries) in found.iter_mut().zip(entries) {
                row.insert(leaf.name.clone(), entries);
            }
        }
        for row in found {
            let id = row["TraceID"][0].2.clone().expect("id").try_into().map(TraceId).expect("16 bytes");
            all.push((id, row));
        }
    }
    assert_eq!(all.len() as u64, meta.total_objects);
    assert!(all.is_sorted_by(|a, b| a.0 < b.0), "rows are not sorted");
    all
}

fn entries(column: &Column) -> Vec<Vec<Entry>> {
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    let mut at = 0;
    for entry in 0..column.entries {
        let repetition = column.repetition.get(entry).copied().unwrap_or(0);
        let definition = column.definition.get(entry).copied().unwrap_or(0);
        if repetition == 0 {
            rows.push(Vec::new());
        }
        let value = (definition == column.max_definition).then(|| {
            at += 1;
            match &column.values {
                Values::Long(values) => values[at - 1].to_string().into_bytes(),
                Values::Double(values) => values[at - 1].to_bits().to_string().into_bytes(),
                Values::Bool(values) => values[at - 1].to_string().into_bytes(),
                strings => strings.string(at - 1).expect("a string").to_vec(),
            }
        });
        rows.last_mut().expect("a row begins with 0").push((repetition, definition, value));
    }
    assert_eq!(at, column.values.len());
    rows
}

async fn traces(store: &Store, meta: &Arc<Meta>) -> Vec<Trace> {
    let reader = Reader::open(store, Arc::clone(meta)).await.expect("open");
    let mut traces = Vec::new();
    for group in 0..reader.row_groups() {
        traces.extend(reader.scan(group, Projection::ALL).await.expect("scan"));
    }
    traces
}

/// Services of a row with their spans and errors: Tempo's order of them is arbitrary in vParquet4.
fn take_stats(row: &mut Row) -> BTreeSet<Vec<Option<Entry>>> {
    let names: Vec<_> = row.keys().filter(|name| name.starts_with("ServiceStats")).cloned().collect();
    let leaves: Vec<_> = names.iter().filter_map(|name| row.remove(name)).collect();
    let count = leaves.first().map_or(0, Vec::len);
    (0..count).map(|at| leaves.iter().map(|leaf| leaf.get(at).map(|entry| (0, entry.1, entry.2.clone()))).collect()).collect()
}

#[tokio::test]
async fn a_merge_of_tempos_inputs_is_tempos_output_value_by_value() {
    for format in Format::ALL {
        let store = bucket();
        let Some((inputs, theirs)) = compaction(&store, format).await else { return };
        let merged = merge(&store, &inputs, BlockId::from_u128(7), &settings()).await.expect("merge");
        let meta = Arc::new(merged.meta.clone());
        let (ours, expected) = (rows(&store, &meta).await, rows(&store, &theirs).await);
        assert_eq!(ours.len(), expected.len());
        for ((id, mut row), (_, mut expected)) in ours.into_iter().zip(expected) {
            assert_eq!(take_stats(&mut row), take_stats(&mut expected), "{format} {id}");
            assert_eq!(row, expected, "{format} {id}");
        }
        assert_eq!(traces(&store, &meta).await, traces(&store, &theirs).await, "{format}");
        // 40 traces of which both inputs have 16, six of them entirely.
        assert_eq!((merged.meta.total_objects, merged.objects_combined, merged.spans_discarded), (40, 16, 0));
        let spans = async |meta: &Arc<Meta>| -> usize {
            let reader = Reader::open(&store, Arc::clone(meta)).await.expect("open");
            reader.span_keys().await.expect("keys").values().map(Vec::len).sum()
        };
        let (mut before, after) = (0, spans(&meta).await);
        for input in &inputs {
            before += spans(input).await;
        }
        assert_eq!(merged.spans_combined as usize, before - after);
        let Meta { start_time, end_time, replication_factor, ref dedicated_columns, compaction_level, .. } = *meta;
        assert_eq!((start_time, end_time), (theirs.start_time, theirs.end_time));
        assert_eq!((replication_factor, dedicated_columns, compaction_level), (theirs.replication_factor, &theirs.dedicated_columns, 1));
        assert_eq!(meta.bloom_shards, theirs.bloom_shards);
        assert_eq!(meta.compacted_from, inputs.iter().map(|meta| meta.block_id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_objects_of_a_merge_fit_each_other() {
    let store = bucket();
    let Some((inputs, _)) = compaction(&store, Format::V5).await else { return };
    let mut small = settings();
    small.block.row_group_size_bytes = 3000;
    small.block.bloom_filter_shard_size_bytes = 33;
    let merged = merge(&store, &inputs, BlockId::from_u128(7), &small).await.expect("merge");
    let meta = Arc::new(merged.meta);
    assert!(meta.total_records > 3, "{meta:?}");
    let get = async |name: &str| store.get(&meta.tenant_id, meta.block_id, name).await.expect("an object");
    let data = get(DATA).await;
    assert_eq!(data.len() as u64, meta.size);
    assert_eq!(data[data.len() - 8..data.len() - 4], meta.footer_size.to_le_bytes());
    assert_eq!(&data[..4], b"PAR1");
    let reader = Reader::open(&store, Arc::clone(&meta)).await.expect("open");
    assert_eq!(reader.row_groups() as u32, meta.total_records);
    let mut last_ids = Vec::new();
    let all = rows(&store, &meta).await;
    let mut at = 0;
    for group in reader.footer().row_groups() {
        at += group.num_rows() as usize;
        last_ids.push(STANDARD.encode(all[at - 1].0.0));
    }
    let index: serde_json::Value = serde_json::from_slice(&get("index").await).expect("json");
    assert_eq!(index, serde_json::json!({ "rowGroups": last_ids }));
    for trace in traces(&store, &meta).await {
        // By way of blooms, index and offset indexes.
        assert_eq!(reader.find(trace.trace_id).await.expect("find"), Some(trace));
    }
    // 56 objects at 9.585 bits each, in shards of 264 bits.
    assert_eq!(meta.bloom_shards, 3);
    assert!(store.meta(&meta.tenant_id, meta.block_id).await.expect("list").is_none(), "the compactor publishes");
}

#[tokio::test]
async fn threads_and_memory_do_not_change_the_traces_and_threads_not_the_bytes() {
    for format in [Format::V2, Format::V4] {
        let store = bucket();
        let Some((inputs, _)) = compaction(&store, format).await else { return };
        let mut blocks = Vec::new();
        // With little memory inputs are read by pages, and row groups are small.
        for (number, threads, memory_bytes) in [(1, 1, 64 << 20), (2, 4, 64 << 20), (3, 1, 1000), (4, 3, 1000)] {
            let settings = Settings { threads, memory_bytes, ..settings() };
            let merged = merge(&store, &inputs, BlockId::from_u128(number), &settings).await.expect("merge");
            let data = store.get(&merged.meta.tenant_id, merged.meta.block_id, DATA).await.expect("data");
            blocks.push((data, Arc::new(merged.meta)));
        }
        assert!(blocks[0].0 == blocks[1].0);
        assert!(blocks[2].1.total_records > blocks[0].1.total_records);
        let (few, many) = (rows(&store, &blocks[2].1).await, rows(&store, &blocks[0].1).await);
        assert!(few == many);
        assert!(rows(&store, &blocks[3].1).await == many);
    }
}

#[tokio::test]
async fn rows_that_are_too_large_together_keep_the_first() {
    let store = bucket();
    let Some((inputs, _)) = compaction(&store, Format::V4).await else { return };
    let (first, second) = (rows(&store, &inputs[0]).await, rows(&store, &inputs[1]).await);
    let size = |row: &Row| -> usize {
        let texts = |name: &str| schema::of(Format::V4, &[]).leaves[schema::of(Format::V4, &[]).leaf(name)].physical;
        row.iter()
            .map(|(name, entries)| {
                let bytes = texts(name) == parquet::basic::Type::BYTE_ARRAY;
                entries.iter().map(|entry| 1 + entry.2.as_ref().filter(|_| bytes).map_or(1, Vec::len)).sum::<usize>()
            })
            .sum()
    };
    let meetings: BTreeMap<TraceId, (usize, bool)> = first
        .iter()
        .filter_map(|(id, row)| {
            second.iter().find(|(other, _)| other == id).map(|(_, other)| (*id, (size(row) + size(other), row == other)))
        })
        .collect();
    let (id, (limit, _)) = meetings.iter().filter(|(_, (_, equal))| !equal).nth(4).expect("a meeting");
    let all = merge(&store, &inputs, BlockId::from_u128(1), &settings()).await.expect("merge");
    let all = rows(&store, &Arc::new(all.meta)).await;
    for (limit, kept) in [(*limit, false), (*limit - 1, true)] {
        let merged = merge(&store, &inputs, BlockId::from_u128(2), &Settings { max_bytes_per_trace: limit, ..settings() }).await;
        let merged = merged.expect("merge");
        let too_large = |id: &TraceId| meetings.get(id).is_some_and(|(size, equal)| !equal && *size > limit);
        assert_eq!(too_large(id), kept);
        let mut discarded = 0;
        for (place, (id, row)) in rows(&store, &Arc::new(merged.meta)).await.iter().enumerate() {
            if too_large(id) {
                assert_eq!(Some(row), first.iter().find(|(other, _)| other == id).map(|(_, row)| row));
                let other = second.iter().find(|(other, _)| other == id).expect("a meeting");
                discarded += other.1["rs[].ss[].Spans[].SpanID"].iter().filter(|entry| entry.2.is_some()).count();
            } else {
                assert_eq!(row, &all[place].1);
            }
        }
        assert!(discarded > 0);
        assert_eq!(merged.spans_discarded as usize, discarded);
        assert_eq!(merged.objects_combined as usize, meetings.keys().filter(|id| !too_large(id)).count());
    }
}

#[tokio::test]
async fn blocks_that_do_not_belong_together_are_refused() {
    let store = bucket();
    let Some((inputs, _)) = compaction(&store, Format::V4).await else { return };
    let refused =
        async |inputs: &[Arc<Meta>]| merge(&store, inputs, BlockId::nil(), &settings()).await.map(drop).expect_err("refused").to_string();
    assert!(refused(&[]).await.contains("there is no input"));
    for change in [
        |meta: &mut Meta| meta.format = "vParquet3".to_owned(),
        |meta: &mut Meta| meta.tenant_id = Tenant::single(),
        |meta: &mut Meta| meta.dedicated_columns = crate::block::Settings::default().dedicated_columns,
    ] {
        let mut other = Meta::clone(&inputs[1]);
        change(&mut other);
        assert!(refused(&[Arc::clone(&inputs[0]), Arc::new(other)]).await.contains("differ in tenant, version or dedicated columns"));
    }
    let mut unknown = Meta::clone(&inputs[0]);
    unknown.format = "vParquet9".to_owned();
    assert!(refused(&[Arc::new(unknown)]).await.contains("vParquet9"));
    // The same rows twice are not sorted when one input has them; an input that says it is another block does not.
    let mut gone = Meta::clone(&inputs[0]);
    gone.block_id = BlockId::from_u128(99);
    assert!(refused(&[Arc::new(gone)]).await.contains("00000000-0000-0000-0000-000000000063"));
}

/// Random traces: everything that `synthetic` makes, as segments.
fn segments(seed: u64, traces: usize) -> Vec<Segment> {
    let settings = synthetic::Settings { seed, spans_per_trace: 6, spans_per_request: 50, ..synthetic::Settings::default() };
    let mut walk = Walk::default();
    let mut segments = Vec::new();
    for body in synthetic::requests_with(settings, traces).0 {
        index(&body, &mut walk).expect("a valid request");
        segments.extend(Segment::split(&Tenant::single(), Position(0), &body, &walk));
    }
    segments
}

async fn write(store: &Store, settings: &crate::block::Settings, id: BlockId, segments: &[&Segment]) -> Arc<Meta> {
    let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
    for &segment in segments {
        traces.entry(segment.trace_id).or_default().push(Arc::new(segment.clone()));
    }
    let traces: Vec<_> = traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect();
    let encoded = encode(settings, &Tenant::single(), id, &traces).expect("encode");
    store.put(&encoded).await.expect("put");
    Arc::new(encoded.meta)
}

/// The spans of a trace by identity, each with its resource and scope, as texts.
type Spans = BTreeMap<(u64, i32), String>;

fn spans(trace: &Trace, into: &mut Spans) {
    for resource_spans in &trace.resource_spans {
        for scope_spans in &resource_spans.scope_spans {
            for span in &scope_spans.spans {
                let text = format!("{:?} {:?} {span:?}", resource_spans.resource, scope_spans.scope);
                into.entry((nested::key(&span.span_id), span.kind)).or_insert(text);
            }
        }
    }
}

fn check_against_model(format: Format, seed: u64, blocks: &[Vec<bool>], memory_bytes: usize, row_group: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(async {
        let store = bucket();
        let segments = segments(seed, 30);
        let mut block = crate::block::Settings { version: format, ..crate::block::Settings::default() };
        block.row_group_size_bytes = row_group;
        let mut inputs = Vec::new();
        let mut model: BTreeMap<TraceId, Spans> = BTreeMap::new();
        for (number, chosen) in blocks.iter().enumerate() {
            let chosen: Vec<_> =
                segments.iter().zip(chosen.iter().cycle()).filter(|(_, chosen)| **chosen).map(|(segment, _)| segment).collect();
            let meta = write(&store, &block, BlockId::from_u128(number as u128 + 1), &chosen).await;
            for trace in traces(&store, &meta).await {
                spans(&trace, model.entry(trace.trace_id).or_default());
            }
            inputs.push(meta);
        }
        let settings = Settings { block, max_bytes_per_trace: 0, memory_bytes, threads: 2 };
        let merged = merge(&store, &inputs, BlockId::from_u128(100), &settings).await.expect("merge");
        let meta = Arc::new(merged.meta);
        let mut found: BTreeMap<TraceId, Spans> = BTreeMap::new();
        let mut count = 0;
        for trace in traces(&store, &meta).await {
            count += trace.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum::<usize>();
            spans(&trace, found.entry(trace.trace_id).or_default());
        }
        assert_eq!(count, model.values().map(BTreeMap::len).sum::<usize>(), "a span comes twice");
        assert_eq!(found, model);
        // What describes the whole trace is what it would be if the block had been written at once.
        let all: Vec<_> = segments
            .iter()
            .enumerate()
            .filter(|(at, _)| blocks.iter().any(|chosen| chosen[at % chosen.len()]))
            .map(|(_, segment)| segment)
            .collect();
        let at_once = write(&store, &settings.block, BlockId::from_u128(101), &all).await;
        for ((id, mut row), (_, mut expected)) in rows(&store, &meta).await.into_iter().zip(rows(&store, &at_once).await) {
            assert_eq!(take_stats(&mut row), take_stats(&mut expected), "{id}");
            for leaf in
                ["TraceID", "TraceIDText", "StartTimeUnixNano", "EndTimeUnixNano", "DurationNano", "RootServiceName", "RootSpanName"]
            {
                assert_eq!(row[leaf], expected[leaf], "{id} {leaf}");
            }
            for leaf in ["SpanID", "NestedSetLeft", "ParentID"] {
                let leaf = format!("rs[].ss[].Spans[].{leaf}");
                assert_eq!(row[&leaf].len(), expected[&leaf].len(), "{id} {leaf}");
            }
        }
        assert_eq!(Reader::open(&store, Arc::clone(&meta)).await.expect("open").span_keys().await.expect("keys").len(), model.len());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Every block holds some of the segments: what lies in two of them is a duplicate, what is cut between them must grow together.
    #[test]
    fn a_merge_is_the_union_of_its_inputs(
        format in prop::sample::select(Format::ALL.to_vec()),
        seed in 0u64..1000,
        blocks in prop::collection::vec(prop::collection::vec(any::<bool>(), 1..40), 1..5),
        memory_bytes in prop::sample::select(vec![1usize, 20_000, 64 << 20]),
        row_group in prop::sample::select(vec![500usize, 20_000, 100_000_000]),
    ) {
        check_against_model(format, seed, &blocks, memory_bytes, row_group);
    }
}

#[test]
fn identical_and_disjoint_blocks_merge() {
    for format in Format::ALL {
        check_against_model(format, 1, &[vec![true], vec![true], vec![true]], 64 << 20, 3000);
        check_against_model(format, 2, &[vec![true, false], vec![false, true]], 64 << 20, 100_000_000);
        check_against_model(format, 3, &[vec![false], vec![true], vec![false]], 64 << 20, 100_000_000);
    }
}

#[tokio::test]
async fn nothing_merged_is_a_block_without_rows() {
    let store = bucket();
    let meta = write(&store, &crate::block::Settings::default(), BlockId::from_u128(1), &[]).await;
    let merged = merge(&store, &[Arc::clone(&meta), meta], BlockId::from_u128(2), &settings()).await.expect("merge");
    assert_eq!((merged.meta.total_objects, merged.meta.total_records, merged.meta.start_time), (0, 0, Meta::NO_TIME));
    assert!(rows(&store, &Arc::new(merged.meta)).await.is_empty());
}

/// A bucket that counts requests, and bytes that were read and are still held.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    gets: AtomicUsize,
    puts: AtomicUsize,
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
    total: AtomicUsize,
}

/// Bytes that give back what they took when nobody holds them any longer.
struct Lent {
    bytes: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.held.now.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Held {
    fn lend(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let now = self.now.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        self.most.fetch_max(now, Ordering::Relaxed);
        self.total.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Lent { bytes, held: Arc::clone(self) })
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting")
    }
}

type Answer<T> = object_store::Result<T>;

impl ObjectStore for Counting {
    fn put_opts<'a, 'b, 'r>(&'a self, location: &'b ObjectPath, payload: PutPayload, opts: PutOptions) -> BoxFuture<'r, Answer<PutResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_opts(location, payload, opts)
    }

    fn put_multipart_opts<'a, 'b, 'r>(
        &'a self,
        location: &'b ObjectPath,
        opts: PutMultipartOptions,
    ) -> BoxFuture<'r, Answer<Box<dyn MultipartUpload>>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_multipart_opts(location, opts)
    }

    fn get_opts<'a, 'b, 'r>(&'a self, location: &'b ObjectPath, options: GetOptions) -> BoxFuture<'r, Answer<GetResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.gets.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let found = self.inner.get_opts(location, options).await?;
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let extensions = found.extensions.clone();
            // A copy, so that the bucket's own bytes do not count.
            let bytes = self.held.lend(found.bytes().await?.to_vec().into());
            let payload = GetResultPayload::Stream(Box::pin(stream::once(async move { Ok(bytes) })));
            Ok(GetResult { payload, meta, range, attributes, extensions })
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Answer<ObjectPath>>) -> BoxStream<'static, Answer<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'r>(&'a self, prefix: Option<&'b ObjectPath>) -> BoxFuture<'r, Answer<ListResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'r>(&'a self, from: &'b ObjectPath, to: &'c ObjectPath, options: CopyOptions) -> BoxFuture<'r, Answer<()>>
    where
        'a: 'r,
        'b: 'r,
        'c: 'r,
        Self: 'r,
    {
        self.inner.copy_opts(from, to, options)
    }
}

/// Two blocks of some row groups whose traces alternate, in a bucket that counts.
async fn counted() -> (Arc<Counting>, Store, Vec<Arc<Meta>>) {
    let counting = Arc::new(Counting::default());
    let store = Store::new(Arc::clone(&counting) as Arc<dyn ObjectStore>, "");
    let settings = crate::block::Settings { row_group_size_bytes: 5000, ..crate::block::Settings::default() };
    let segments = segments(5, 100);
    let mut inputs = Vec::new();
    for number in 0..2 {
        let chosen: Vec<_> = segments.iter().filter(|segment| segment.trace_id.0[15] % 2 == number).collect();
        inputs.push(write(&store, &settings, BlockId::from_u128(number as u128 + 1), &chosen).await);
    }
    (counting, store, inputs)
}

/// A block of `traces` traces of one span with `bytes` bytes of noise, all in one row group.
async fn noise(store: &Store, id: u8, traces: usize, bytes: usize) -> Arc<Meta> {
    let mut state = u64::from(id);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut segments = Vec::new();
    for _ in 0..traces {
        let mut trace_id = [0; 16];
        trace_id.fill_with(&mut next);
        let message: String = (0..bytes).map(|_| char::from(next() & 0x7f)).collect();
        let span = Span {
            trace_id: trace_id.to_vec(),
            span_id: vec![id; 8],
            name: "noise".to_owned(),
            status: Some(Status { message, code: 2 }),
            ..Span::default()
        };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        let request = TracesData { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] };
        let body = Bytes::from(request.encode_to_vec());
        let mut walk = Walk::default();
        index(&body, &mut walk).expect("a valid request");
        segments.extend(Segment::split(&Tenant::single(), Position(0), &body, &walk));
    }
    let settings = crate::block::Settings { row_group_size_bytes: usize::MAX, ..crate::block::Settings::default() };
    write(store, &settings, BlockId::from_u128(id.into()), &segments.iter().collect::<Vec<_>>()).await
}

#[tokio::test]
async fn what_is_held_of_the_inputs_stays_within_the_budget() {
    let counting = Arc::new(Counting::default());
    let store = Store::new(Arc::clone(&counting) as Arc<dyn ObjectStore>, "");
    // Pages of 4 MiB, which is what the text of a page may have; seven bits of every byte are noise.
    let inputs = [noise(&store, 1, 1000, 50_000).await, noise(&store, 2, 1000, 50_000).await];
    let size: u64 = inputs.iter().map(|meta| meta.size).sum();
    let memory_bytes = 32 << 20;
    assert!(size as usize > 5 * memory_bytes / 2, "{size} bytes of input do not show anything");
    let merged = merge(&store, &inputs, BlockId::from_u128(10), &Settings { memory_bytes, ..settings() }).await.expect("merge");
    let most = counting.held.most.load(Ordering::Relaxed);
    assert!(most < memory_bytes, "{most} bytes of {size} were held at a time");
    assert_eq!(counting.held.now.load(Ordering::Relaxed), 0, "all was given back");
    assert_eq!(merged.meta.total_objects, 2000);
    assert!(merged.meta.size > size * 99 / 100);
    // Every page was read once.
    let read = counting.held.total.load(Ordering::Relaxed) as u64;
    assert!(read < size * 11 / 10, "{read} of {size} bytes were read");
    let reader = Reader::open(&store, Arc::new(merged.meta)).await.expect("open");
    for group in reader.footer().row_groups() {
        assert!(group.compressed_size() < 5 << 20, "a row group has {} bytes", group.compressed_size());
    }
}

/// Where the inputs lie that are merged in a process of its own.
const INPUTS: &str = "RUBATO_TEST_MERGE_INPUTS";

fn local(folder: &Path) -> Store {
    Store::new(Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder).expect("a folder")), "")
}

/// The memory of a process that does nothing but merge: it is measured per process, and other tests use much.
#[tokio::test]
async fn a_process_that_merges_takes_little_more_than_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = local(folder.path());
    for id in 1..=4 {
        let meta = noise(&store, id, 2000, 50_000).await;
        store.publish(&meta).await.expect("publish");
    }
    let mut alone = std::process::Command::new(std::env::current_exe().expect("this test"));
    let alone = alone.args(["--ignored", "--exact", "block::merge::tests::a_merge_in_a_process_of_its_own"]).env(INPUTS, folder.path());
    let output = alone.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test was found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "run by a_process_that_merges_takes_little_more_than_the_budget"]
async fn a_merge_in_a_process_of_its_own() {
    /// Bytes; none where the system does not say.
    fn peak() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        Some(kilobytes << 10)
    }
    let store = local(Path::new(&std::env::var_os(INPUTS).expect("a folder")));
    let mut inputs = Vec::new();
    for id in 1..=4 {
        inputs.push(Arc::new(store.meta(&Tenant::single(), BlockId::from_u128(id)).await.expect("get").expect("a block")));
    }
    let size: u64 = inputs.iter().map(|meta| meta.size).sum();
    let budget = 96 << 20;
    let before = peak();
    let merged = merge(&store, &inputs, BlockId::from_u128(10), &Settings { memory_bytes: budget, ..settings() }).await.expect("merge");
    assert_eq!(merged.meta.total_objects, 8000);
    let (Some(before), Some(after)) = (before, peak()) else {
        eprintln!("skipped: this system does not say how much memory a process takes");
        return;
    };
    // The system's allocator keeps some of what other threads have read.
    let limit = 9 * budget as u64 / 4;
    assert!(size > limit * 3 / 2, "{size} bytes of input do not show anything");
    let grown = after.saturating_sub(before);
    assert!(grown < limit, "grew by {grown} bytes while merging {size} bytes with a budget of {budget}");
}

#[tokio::test]
async fn a_merge_costs_few_requests() {
    let (counting, store, inputs) = counted().await;
    let row_groups: usize = inputs.iter().map(|meta| meta.total_records as usize).sum();
    assert!(row_groups > 10);
    counting.gets.store(0, Ordering::Relaxed);
    counting.puts.store(0, Ordering::Relaxed);
    let merged = merge(&store, &inputs, BlockId::from_u128(9), &settings()).await.expect("merge");
    let (gets, puts) = (counting.gets.load(Ordering::Relaxed), counting.puts.load(Ordering::Relaxed));
    // A footer per input; per row group its chunks and its offset indexes.
    assert!(gets <= inputs.len() + 2 * row_groups, "{gets} reads of {row_groups} row groups");
    // Data, blooms, index.
    assert_eq!(puts, 2 + merged.meta.bloom_shards as usize);
}

#[tokio::test]
async fn damage_is_an_error_that_names_the_block() {
    let (_, store, inputs) = counted().await;
    let good = &inputs[0];
    let data = store.get(&good.tenant_id, good.block_id, DATA).await.expect("data");
    let mut wrong = Meta::clone(good);
    wrong.block_id = BlockId::from_u128(77);
    let wrong = Arc::new(wrong);
    let attempt = async |bytes: Vec<u8>| {
        store.put_named(&wrong.tenant_id, wrong.block_id, DATA, bytes.into()).await.expect("put");
        merge(&store, &[Arc::clone(&inputs[1]), Arc::clone(&wrong)], BlockId::from_u128(9), &settings())
            .await
            .map(|done| Arc::new(done.meta))
    };
    let whole = rows(&store, &attempt(data.to_vec()).await.expect("the copy is as good")).await;
    let is_named = |error: &BlockError| {
        let text = chain(error);
        assert!(text.contains("0000-00000000004d") && !text.contains("panicked"), "{text}");
    };
    is_named(&attempt(data[..data.len() / 2].to_vec()).await.expect_err("torn"));
    is_named(&attempt(data[..data.len() - 1].to_vec()).await.expect_err("torn"));
    // Pages have checksums; the offset indexes and the footer behind them have none.
    let reader = Reader::open(&store, Arc::clone(good)).await.expect("open");
    let indexes = reader.footer().row_groups().iter().flat_map(|group| group.columns()).filter_map(|chunk| chunk.offset_index_range());
    let pages = indexes.map(|index| index.start as usize).min().expect("offset indexes");
    let mut refused = 0;
    for step in 0..80 {
        let at = if step % 2 == 0 { 4 + (step * 7919) % (pages - 4) } else { pages + (step * 6131) % (data.len() - pages) };
        let mut bytes = data.to_vec();
        bytes[at] ^= 1 << (step % 8);
        match attempt(bytes).await {
            Err(error) => {
                is_named(&error);
                refused += 1;
            }
            // Headers of pages hold what nobody looks at.
            Ok(meta) if at < pages => assert!(rows(&store, &meta).await == whole, "byte {at} was changed and nobody saw it"),
            Ok(_) => {}
        }
    }
    assert!(refused > 40, "{refused}");
}

#[tokio::test]
async fn rows_out_of_order_are_refused() {
    let (_, store, inputs) = counted().await;
    // Rows of two row groups change places when their descriptions in the footer do.
    let data = store.get(&inputs[0].tenant_id, inputs[0].block_id, DATA).await.expect("data");
    let reader = Reader::open(&store, Arc::clone(&inputs[0])).await.expect("open");
    let mut groups = reader.footer().row_groups().to_vec();
    groups.swap(0, 1);
    let about = reader.footer().file_metadata().clone();
    let footer = parquet::file::metadata::ParquetMetaDataBuilder::new(about).set_row_groups(groups).build();
    let mut bytes = data[..data.len() - 8 - inputs[0].footer_size as usize].to_vec();
    let before = bytes.len();
    parquet::file::metadata::ParquetMetaDataWriter::new(&mut bytes, &footer).finish().expect("footer");
    let mut meta = Meta::clone(&inputs[0]);
    meta.block_id = BlockId::from_u128(77);
    meta.size = bytes.len() as u64;
    meta.footer_size = (bytes.len() - before - 8) as u32;
    store.put_named(&meta.tenant_id, meta.block_id, DATA, bytes.into()).await.expect("put");
    let error = merge(&store, &[Arc::new(meta)], BlockId::from_u128(9), &settings()).await.expect_err("refused");
    assert!(chain(&error).contains("row group 1 are not sorted by trace id"), "{}", chain(&error));
}
