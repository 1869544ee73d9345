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

use super::{tests::synthetic, *};
use crate::backend::Store;

/// An in-memory bucket that notes the name of every object read.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    read: Arc<Mutex<Vec<String>>>,
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
    let counting = Counting::default();
    let read = Arc::clone(&counting.read);
    let taken = || std::mem::take(&mut *read.lock().expect("no test panics while it counts"));
    let store = Store::new(Arc::new(counting), "");
    store.put(&encoded).await.expect("put");
    taken();
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
    let traces = synthetic(&crate::synthetic::requests(3, 1500));
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &traces).expect("encode");
    let open = async |data: Vec<u8>| {
        let store = Store::new(Arc::new(InMemory::new()), "");
        store.put(&Encoded { data: data.into(), ..encoded.clone() }).await.expect("put");
        Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open")
    };
    let file = SerializedFileReader::new(encoded.data.clone()).expect("file");
    let group = file.metadata().row_group(0);
    let pages_of = |leaf: usize| {
        let range = group.column(leaf).offset_index_range().expect("offset index");
        decode_offset_index(&encoded.data[range.start as usize..range.end as usize]).expect("index").page_locations().clone()
    };
    let whole = open(encoded.data.to_vec()).await.scan(0, Projection::ALL).await.expect("scan");
    let starts: Vec<_> = pages_of(decode::at::SPAN_ID).iter().map(|page| page.first_row_index as usize).collect();
    assert!(starts.len() > 2, "the test wants several pages");
    let last = traces.len() - 1;
    for row in starts.iter().flat_map(|&start| [start, start.saturating_sub(1)]).chain([last]) {
        let mut data = encoded.data.to_vec();
        let mut needed = Vec::new();
        for leaf in (0..group.num_columns()).filter(|&leaf| leaf != decode::at::TRACE_ID) {
            let pages = pages_of(leaf);
            let page = pages.partition_point(|page| page.first_row_index as usize <= row) - 1;
            for (index, location) in pages.iter().enumerate() {
                let range = location.offset as usize..location.offset as usize + location.compressed_page_size as usize;
                if index == page {
                    needed.push((leaf, range.end - 1));
                } else {
                    data[range].fill(0xff);
                }
            }
        }
        let reader = open(data.clone()).await;
        for _ in 0..2 {
            assert_eq!(reader.find(traces[row].trace_id).await.expect("find").as_ref(), Some(&whole[row]));
        }
        let &(_, at) = needed.iter().find(|(leaf, _)| *leaf == decode::at::SPAN_ID).expect("a page of span ids");
        data[at] ^= 1;
        assert!(matches!(open(data).await.find(traces[row].trace_id).await, Err(BlockError::Corrupt { .. })));
    }
}

#[tokio::test]
async fn every_trace_is_found_as_it_is_scanned() {
    let traces = synthetic(&crate::synthetic::requests(9, 250));
    for row_group_size_bytes in [20_000, 100_000_000] {
        let settings = Settings { row_group_size_bytes, bloom_filter_shard_size_bytes: 64, ..Settings::default() };
        let encoded = encode(&settings, &Tenant::single(), BlockId::nil(), &traces).expect("encode");
        assert!(encoded.blooms.len() > 1);
        let store = Store::new(Arc::new(InMemory::new()), "");
        store.put(&encoded).await.expect("put");
        let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
        for row_group in 0..reader.row_groups() {
            for trace in reader.scan(row_group, Projection::ALL).await.expect("scan") {
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
    let (start, _) = file.metadata().row_group(0).column(decode::at::NAME).byte_range();
    let page = thrift::page_sizes(&encoded.data[start as usize..]).expect("header");
    let mut data = encoded.data.to_vec();
    data[start as usize + page.header + page.compressed / 2] ^= 4;
    let store = Store::new(Arc::new(InMemory::new()), "");
    store.put(&Encoded { data: Bytes::from(data), ..encoded.clone() }).await.expect("put");
    let reader = Reader::open(&store, Arc::new(encoded.meta.clone())).await.expect("open");
    assert!(matches!(reader.find(traces[0].trace_id).await, Err(BlockError::Corrupt { .. })));
}
