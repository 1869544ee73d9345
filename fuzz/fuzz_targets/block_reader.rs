//! Whatever lies in a bucket: a file, a chunk of one, a bloom filter or a meta is read or refused with an error, in bounded memory.
//!
//! The first byte says what the rest is. Chunks are there apart from files because the checksums of pages stop nearly every mutation.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path};
use parquet::basic::{Compression, Type};
use storage::{
    backend::Store,
    block::{
        Filters, Format, Meta, Projection, Reader,
        column::{Chunk, Decoder, Fetched},
    },
    id::{BlockId, Tenant, TraceId},
};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime"));

fn meta(format: Format, size: u64) -> Meta {
    let json = format!(
        r#"{{"format":"{format}","blockID":"{}","tenantID":"single-tenant","totalObjects":1,"size":{size},"bloomShards":1}}"#,
        BlockId::nil()
    );
    Meta::from_json(json.as_bytes()).expect("a valid meta")
}

fn store(name: &str, bytes: &[u8]) -> Store {
    let objects = Arc::new(InMemory::new());
    let path = Path::from(format!("single-tenant/{}/{name}", BlockId::nil()));
    RUNTIME.block_on(objects.put(&path, bytes.to_vec().into())).expect("memory");
    Store::new(objects as Arc<dyn ObjectStore>, "")
}

/// A file: everything that can be asked of it.
fn file(format: Format, bytes: &[u8]) {
    let store = store("data.parquet", bytes);
    RUNTIME.block_on(async {
        let Ok(reader) = Reader::open(&store, Arc::new(meta(format, bytes.len() as u64))).await else { return };
        for id in [TraceId([0; 16]), TraceId([0x77; 16]), TraceId([0xff; 16])] {
            let _ = reader.look_up(id).await;
        }
        for row_group in 0..reader.row_groups().min(3) {
            if let Ok(traces) = reader.scan(row_group, Projection::ALL).await {
                for trace in traces.iter().take(3) {
                    let _ = reader.look_up(trace.trace_id).await;
                }
            }
            if let Ok(mut pages) = reader.pages(row_group, &[0, 3, 20, 40]).await {
                let rows = pages.rows();
                let _ = reader.columns_of(&mut pages, rows / 2..rows).await;
                let _ = reader.columns_of(&mut pages, 0..rows.min(1)).await;
            }
        }
        let _ = reader.span_keys().await;
    });
}

/// A chunk of some type, codec and depth.
fn chunk(kind: u8, levels: u8, rows: u8, bytes: &[u8]) {
    let chunk = Chunk {
        name: "fuzzed".to_owned(),
        physical: [Type::BYTE_ARRAY, Type::INT64, Type::INT32, Type::DOUBLE, Type::BOOLEAN][usize::from(kind) % 5],
        codec: [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(Default::default()),
            Compression::GZIP(Default::default()),
            Compression::LZ4_RAW,
        ][usize::from(kind) / 5 % 5],
        max_definition: levels % 8,
        max_repetition: levels / 8 % 8,
        rows: rows.into(),
        limit: 1 << 16,
    };
    let mut decoder = Decoder::default();
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    let whole = decoder.column(&chunk, &Fetched::whole(bytes.clone()), 0..chunk.rows);
    if let Ok(column) = &whole {
        assert!(column.entries >= chunk.rows, "every row has an entry");
        for index in 0..column.values.len() {
            let _ = column.values.string(index);
        }
    }
    let part = decoder.column(&chunk, &Fetched::whole(bytes.clone()), chunk.rows / 3..chunk.rows / 2);
    assert!(part.is_ok() || whole.is_err(), "a part of what can be decoded can be decoded");
    let _ = decoder.dictionary(&chunk, &bytes);
}

fuzz_target!(|data: &[u8]| {
    match data {
        [version @ 0..=3, bytes @ ..] => file(Format::ALL[usize::from(*version)], bytes),
        [4, bytes @ ..] => {
            let store = store("bloom-0", bytes);
            let filters = Filters::new(Arc::new(meta(Format::V4, 1)));
            let _ = RUNTIME.block_on(filters.may_hold(&store, TraceId([0x5a; 16])));
        }
        [5, bytes @ ..] => {
            if let Ok(meta) = Meta::from_json(bytes) {
                let _ = meta.to_json();
            }
        }
        [6, kind, levels, rows, bytes @ ..] => chunk(*kind, *levels, *rows, bytes),
        _ => {}
    }
});
