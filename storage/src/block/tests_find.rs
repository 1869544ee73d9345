//! What finding a trace costs: reads of the bucket, counted, and pages that are looked at.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, memory::InMemory, path::Path,
};
use parquet::file::{page_index::index_reader::decode_offset_index, reader::FileReader as _, serialized_reader::SerializedFileReader};

use super::{
    tests::{leaf, synthetic},
    *,
};
use crate::backend::Store;

/// An in-memory bucket that notes the name of every object read.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    read: Arc<Mutex<Vec<String>>>,
}

/// The names of the objects that were read since the last time.
fn taken(read: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *read.lock().expect("no test panics while it counts"))
}

/// A counting bucket with a block, and what it counts.
async fn counted(encoded: &Encoded) -> (Store, Arc<Mutex<Vec<String>>>) {
    let counting = Counting::default();
    let read = Arc::clone(&counting.read);
    let store = Store::new(Arc::new(counting), "");
    store.put(encoded).await.expect("put");
    (store, read)
}

/// Looks every id up with nothing cached, and counts.
async fn look_up_cold(encoded: &Encoded, ids: &[TraceId], small_row_group: Option<u64>) {
    let (store, read) = counted(encoded).await;
    for &id in ids {
        let meta = Arc::new(encoded.meta.clone());
        let filters = Arc::new(Filters::new(Arc::clone(&meta)));
        assert!(filters.may_hold(&store, id).await.expect("filters"));
        let mut reader = Reader::open_with(&store, meta, filters).await.expect("open");
        reader.small_row_group = small_row_group.unwrap_or(reader.small_row_group);
        assert_eq!(reader.find(id).await.expect("find").map(|trace| trace.trace_id), Some(id));
        let reads = taken(&read);
        let count = |name: &str| reads.iter().filter(|read| *read == name).count();
        assert_eq!(reads.iter().filter(|name| name.starts_with("bloom-")).count(), 1, "{reads:?}");
        assert!(count(DATA) <= 4, "{reads:?}");
        assert_eq!(count(DATA) + 1, reads.len(), "{reads:?}");
    }
    let mut absent = 0;
    for seed in 0..200u8 {
        let meta = Arc::new(encoded.meta.clone());
        let filters = Arc::new(Filters::new(Arc::clone(&meta)));
        let id = TraceId([seed; 16]);
        if ids.contains(&id) {
            continue;
        }
        if filters.may_hold(&store, id).await.expect("filters") {
            // A false positive.
            assert_eq!(Reader::open_with(&store, meta, filters).await.expect("open").find(id).await.expect("find"), None);
            let reads = taken(&read);
            assert!(reads.iter().filter(|name| *name == DATA).count() <= 4 && reads.len() <= 5, "{reads:?}");
        } else {
            absent += 1;
            let reads = taken(&read);
            assert!(matches!(reads.as_slice(), [name] if name.starts_with("bloom-")), "{reads:?}");
        }
    }
    assert!(absent > 50, "the test wants negatives");
}

#[tokio::test]
async fn tempos_blocks_cost_four_reads_at_most() {
    for format in Format::ALL {
        let Some(folders) = fixtures::blocks(format.name()) else { return };
        for folder in folders {
            let read = |name: &str| Bytes::from(std::fs::read(folder.join(name)).expect("an object"));
            // Compacted blocks are blocks too.
            let meta = ["meta.json", "meta.compacted.json"].iter().find_map(|name| std::fs::read(folder.join(name)).ok());
            let meta = Meta::from_json(&meta.expect("a meta")).expect("meta");
            let blooms = (0..meta.bloom_shards).map(|shard| read(&format!("bloom-{shard}"))).collect();
            let mut encoded = Encoded { meta, data: read(DATA), blooms, index: read("index") };
            let (store, _) = counted(&encoded).await;
            let ids: Vec<_> = {
                let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
                reader.span_keys().await.expect("keys").into_keys().collect()
            };
            assert_eq!(ids.len() as u64, encoded.meta.total_objects);
            let some: Vec<_> = ids.iter().copied().step_by(7).chain(ids.last().copied()).collect();
            look_up_cold(&encoded, &some, None).await;
            look_up_cold(&encoded, &some[..3], Some(0)).await;
            // Metas of the first releases do not say how long the footer is, and some say a wrong number of row groups.
            encoded.meta.footer_size = 0;
            encoded.meta.total_records += 3;
            look_up_cold(&encoded, &some[..3], None).await;
        }
    }
}

#[tokio::test]
async fn our_blocks_cost_four_reads_at_most() {
    let traces = synthetic(&crate::synthetic::requests(17, 600));
    for row_group_size_bytes in [40_000, 100_000_000] {
        let settings = Settings { row_group_size_bytes, ..Settings::default() };
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        let ids: Vec<_> = traces.iter().step_by(97).map(|trace| trace.trace_id).collect();
        for small_row_group in [None, Some(0)] {
            look_up_cold(&encoded, &ids, small_row_group).await;
        }
    }
}

#[tokio::test]
async fn row_groups_without_statistics_are_found_by_index_or_ids() {
    let traces = synthetic(&crate::synthetic::requests(23, 100));
    let settings = Settings { row_group_size_bytes: 20_000, ..Settings::default() };
    let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let nothing = Bytes::from_static(b"{}");
    let fewer = Bytes::from_static(br#"{"rowGroups":["AAAAAAAAAAAAAAAAAAAAAA=="]}"#);
    for (index, helps) in [(encoded.index.clone(), true), (nothing, false), (fewer, false), (Bytes::new(), false)] {
        let (store, read) = counted(&Encoded { index, ..encoded.clone() }).await;
        let mut reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
        assert!(reader.row_groups() > 2, "the test wants several row groups");
        let groups = reader.footer.row_groups().iter().map(|group| {
            let columns = group.columns().iter().map(|chunk| chunk.clone().into_builder().clear_statistics().build().expect("chunk"));
            let columns = columns.collect();
            group.clone().into_builder().set_column_metadata(columns).build().expect("row group")
        });
        let footer = reader.footer.as_ref().clone().into_builder().set_row_groups(groups.collect()).build();
        reader.footer = Arc::new(footer);
        for trace in &traces {
            assert_eq!(reader.look_up(trace.trace_id).await.expect("find").map(|found| found.trace_id), Some(trace.trace_id));
            let reads = taken(&read);
            assert!(!helps || reads.len() <= 4, "{reads:?}");
        }
        assert_eq!(reader.look_up(TraceId([0; 16])).await.expect("find"), None);
        assert_eq!(reader.look_up(TraceId([0xff; 16])).await.expect("find"), None);
    }
}

#[tokio::test]
async fn columns_of_some_rows_are_parts_of_those_of_all() {
    let traces = synthetic(&crate::synthetic::requests(29, 1200));
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let (store, _) = counted(&encoded).await;
    let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    let names = ["TraceID", "rs[].ss[].Spans[].SpanID", "rs[].ss[].Spans[].Name", "rs[].ss[].Spans[].Attrs[].Value[]"];
    let leaves = names.map(leaf);
    let whole = reader.columns(0, &leaves).await.expect("columns");
    let mut pages = reader.pages(0, &leaves).await.expect("pages");
    let rows = pages.rows();
    assert_eq!(rows, traces.len());
    assert!(pages.bytes(&(0..1)) < pages.bytes(&(0..rows)));
    let mut joined = vec![(Vec::<u8>::new(), Vec::<u8>::new(), Vec::<Vec<u8>>::new()); leaves.len()];
    for start in (0..rows).step_by(97) {
        let part = reader.columns_of(&mut pages, start..(start + 97).min(rows)).await.expect("columns");
        for (joined, column) in joined.iter_mut().zip(part) {
            joined.0.extend(&column.repetition);
            joined.1.extend(&column.definition);
            joined.2.extend((0..column.values.len()).map(|index| column.values.string(index).expect("a string").to_vec()));
        }
    }
    for ((whole, joined), name) in whole.iter().zip(joined).zip(names) {
        assert_eq!((&whole.repetition, &whole.definition), (&joined.0, &joined.1), "{name}");
        assert_eq!(whole.values.len(), joined.2.len());
        assert!(joined.2.iter().enumerate().all(|(index, value)| whole.values.string(index) == Some(value)), "{name}");
    }
    let column::Values::Codes { dictionary, .. } = &whole[2].values else { panic!("names have a dictionary") };
    let alone = reader.dictionary(0, leaves[2]).await.expect("dictionary").expect("is there");
    assert!(matches!(alone, column::Dictionary::Strings(alone) if alone == *dictionary));
    assert!(reader.dictionary(0, leaves[1]).await.expect("dictionary").is_none());
    assert!(reader.columns(0, &[1000]).await.is_err());
    assert!(reader.columns_of(&mut pages, 0..rows + 1).await.is_err());
    assert!(reader.pages(9, &leaves).await.is_err());
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting")
    }
}

impl ObjectStore for Counting {
    fn put_opts<'a, 'b, 'r>(&'a self, location: &'b Path, payload: PutPayload, opts: PutOptions) -> BoxFuture<'r, Result<PutResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.inner.put_opts(location, payload, opts)
    }

    fn put_multipart_opts<'a, 'b, 'r>(
        &'a self,
        location: &'b Path,
        opts: PutMultipartOptions,
    ) -> BoxFuture<'r, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.inner.put_multipart_opts(location, opts)
    }

    fn get_opts<'a, 'b, 'r>(&'a self, location: &'b Path, options: GetOptions) -> BoxFuture<'r, Result<GetResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.read.lock().expect("no test panics while it counts").push(location.filename().unwrap_or_default().to_owned());
        self.inner.get_opts(location, options)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'r>(&'a self, prefix: Option<&'b Path>) -> BoxFuture<'r, Result<ListResult>>
    where
        'a: 'r,
        'b: 'r,
        Self: 'r,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'r>(&'a self, from: &'b Path, to: &'c Path, options: CopyOptions) -> BoxFuture<'r, Result<()>>
    where
        'a: 'r,
        'b: 'r,
        'c: 'r,
        Self: 'r,
    {
        self.inner.copy_opts(from, to, options)
    }
}

#[tokio::test]
async fn a_look_up_reads_one_bloom_shard_once_and_the_file_four_times_at_most() {
    let traces = synthetic(&crate::synthetic::requests(7, 300));
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let (store, read) = counted(&encoded).await;
    let taken = || taken(&read);
    let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    assert_eq!(taken(), [DATA]);
    // The filter is sparse: none of these ids is taken for one of the block's.
    for (number, reads) in [(1u8, vec!["bloom-0"]), (2, vec![]), (3, vec![])] {
        assert_eq!(reader.find(TraceId([number; 16])).await.expect("find"), None);
        assert_eq!(taken(), reads);
    }
    let cold = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    let found = cold.find(traces[100].trace_id).await.expect("find").expect("is there");
    assert_eq!(found.trace_id, traces[100].trace_id);
    let reads = taken();
    assert_eq!(reads.iter().filter(|name| *name == "bloom-0").count(), 1);
    assert!(reads.iter().filter(|name| *name == DATA).count() <= 4, "{reads:?}");
    assert!(reads.iter().all(|name| name == "bloom-0" || name == DATA), "{reads:?}");
}

#[tokio::test]
async fn finding_looks_at_the_pages_of_its_row_only() {
    let traces = synthetic(&crate::synthetic::requests(3, 2200));
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let open = async |data: Vec<u8>| {
        let store = Store::new(Arc::new(InMemory::new()), "");
        store.put(&Encoded { data: data.into(), ..encoded.clone() }).await.expect("put");
        Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open")
    };
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let group = file.metadata().row_group(0);
    let pages_of = |position: usize| {
        let range = group.column(position).offset_index_range().expect("offset index");
        decode_offset_index(&encoded.data[range.start as usize..range.end as usize]).expect("index").page_locations().clone()
    };
    let whole = open(encoded.data.to_vec()).await.scan(0, Projection::ALL).await.expect("scan");
    let starts: Vec<_> = pages_of(leaf("rs[].ss[].Spans[].SpanID")).iter().map(|page| page.first_row_index as usize).collect();
    assert!(starts.len() > 2, "the test wants several pages");
    let last = traces.len() - 1;
    for row in starts.iter().flat_map(|&start| [start, start.saturating_sub(1)]).chain([last]) {
        let mut data = encoded.data.to_vec();
        let mut needed = Vec::new();
        for position in (0..group.num_columns()).filter(|&position| position != leaf("TraceID")) {
            let pages = pages_of(position);
            let page = pages.partition_point(|page| page.first_row_index as usize <= row) - 1;
            for (index, location) in pages.iter().enumerate() {
                let range = location.offset as usize..location.offset as usize + location.compressed_page_size as usize;
                if index == page {
                    needed.push((position, range.end - 1));
                } else {
                    data[range].fill(0xff);
                }
            }
        }
        let reader = open(data.clone()).await;
        for _ in 0..2 {
            assert_eq!(reader.find(traces[row].trace_id).await.expect("find").as_ref(), Some(&whole[row]));
        }
        let &(_, at) = needed.iter().find(|(position, _)| *position == leaf("rs[].ss[].Spans[].SpanID")).expect("a page of span ids");
        data[at] ^= 1;
        assert!(matches!(open(data).await.find(traces[row].trace_id).await, Err(BlockError::Corrupt { .. })));
    }
}

#[tokio::test]
async fn every_trace_is_found_as_it_is_scanned() {
    let traces = synthetic(&crate::synthetic::requests(9, 120));
    let sizes = [(20_000, 1), (100_000_000, 9)];
    for (version, (row_group_size_bytes, step)) in Format::ALL.into_iter().flat_map(|version| sizes.map(|size| (version, size))) {
        let settings = Settings { version, row_group_size_bytes, bloom_filter_shard_size_bytes: 64, ..Settings::default() };
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        assert!(encoded.blooms.len() > 1);
        let store = Store::new(Arc::new(InMemory::new()), "");
        store.put(&encoded).await.expect("put");
        let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
        for row_group in 0..reader.row_groups() {
            for trace in reader.scan(row_group, Projection::ALL).await.expect("scan").into_iter().step_by(step) {
                assert_eq!(reader.find(trace.trace_id).await.expect("find"), Some(trace));
            }
        }
    }
}

#[tokio::test]
async fn damaged_dictionaries_are_noticed_by_finding() {
    let traces = synthetic(&crate::synthetic::requests(5, 40));
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let (start, _) = file.metadata().row_group(0).column(leaf("rs[].ss[].Spans[].Name")).byte_range();
    let page = thrift::page_header(&encoded.data[start as usize..]).expect("header").sizes;
    let mut data = encoded.data.to_vec();
    data[start as usize + page.header + page.compressed / 2] ^= 4;
    let store = Store::new(Arc::new(InMemory::new()), "");
    store.put(&Encoded { data: Bytes::from(data), ..encoded.clone() }).await.expect("put");
    let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    assert!(matches!(reader.find(traces[0].trace_id).await, Err(BlockError::Corrupt { .. })));
}
