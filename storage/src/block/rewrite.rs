//! A block written again, in another version or with other dedicated columns.
//!
//! ```text
//!  source ─ Reader::scan: one row group ─► Traces ─ segments ─► encode::Writer ─ drain ─► Upload ─► output
//! ```
//!
//! Versions lay the same things out differently, so every row is taken apart and put together again; a merge, whose inputs are of one
//! version, need not do that. What a row holds stays in its order and nothing is dropped, not even spans that are there twice: only what
//! the version of the output cannot hold ([`losses`]). In memory are a row group of the source, decoded, and one of the output.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{
    BlockError, Format, Meta, Projection, Reader, Settings, Trace, TraceSegments, chain,
    encode::{Encoding, Order, Writer},
    filters_and_index, nested,
    reader::{DATA, failed},
};
use crate::{
    backend::{Store, Upload},
    id::{BlockId, SpanKey, Tenant},
    otlp::Slice,
    segment::{Segment, SpanRef},
    wal::Position,
};

/// What a block of version `from` loses when it becomes one of version `to`, with dedicated columns or without, in words.
pub fn losses(from: Format, to: Format, dedicated: bool) -> Vec<&'static str> {
    let mut lost = Vec::new();
    match (from >= Format::V4, to >= Format::V4) {
        (true, false) => lost.extend([
            "attributes of scopes",
            "dropped counts of resources and scopes",
            "values of resource and span attributes that are bytes",
        ]),
        (false, true) => lost.push("flags of links"),
        _ => {}
    }
    if from == Format::V5 && to < Format::V5 {
        lost.push("of an attribute such as http.method or k8s.pod.name that comes several times, all values but the last");
    }
    if to == Format::V5 && dedicated {
        lost.push("empty arrays in dedicated columns, and whether a single value was an array of one");
    }
    lost
}

/// Writes what `source` holds as the block `output`, all but its `meta.json`, which is returned to be published. Version, dedicated columns,
/// row groups and bloom filters are those of `settings`; times, level and replication factor are the source's. `progress` is told how many
/// row groups of the source are done.
///
/// # Errors
/// The source cannot be read, or the bucket refused the output; what was written of it stays as garbage without a `meta.json`.
pub async fn rewrite(
    store: &Store,
    source: &Arc<Meta>,
    output: BlockId,
    settings: &Settings,
    progress: impl FnMut(usize),
) -> Result<Meta, BlockError> {
    let reader = Reader::open(store, Arc::clone(source)).await?;
    let dedicated_columns = settings.columns_kept();
    let refused = |what: String| BlockError::Encode { block: output, tenant: source.tenant_id.clone(), what };
    let writer = Writer::new(settings.version, settings.row_group_size_bytes, &dedicated_columns, Order::Given);
    let mut upload = store.upload(&source.tenant_id, output, DATA);
    let writer = match copy(&reader, writer, &mut upload, &refused, progress).await {
        Ok(writer) => writer,
        Err(error) => {
            if let Err(error) = upload.abort().await {
                tracing::warn!(tenant = %source.tenant_id, block = %output, error = chain(&error), "upload of a failed rewrite was not aborted");
            }
            return Err(error);
        }
    };
    let encoding = match tokio::task::spawn_blocking(move || writer.finish()).await {
        Ok(Ok(encoding)) => encoding,
        Ok(Err(error)) => return Err(refused(chain(&error))),
        Err(_) => return Err(refused("a thread that encodes panicked".to_owned())),
    };
    let (blooms, index) = filters_and_index(settings, &encoding);
    let Encoding { file, ids, .. } = encoding;
    let meta = Meta {
        format: settings.version.name().to_owned(),
        block_id: output,
        total_objects: ids.len() as u64,
        size: file.size,
        index_page_size: 0,
        total_records: file.row_groups as u32,
        bloom_shards: blooms.len() as u32,
        footer_size: file.footer as u32,
        dedicated_columns,
        compacted_from: Vec::new(),
        ..Meta::clone(source)
    };
    upload.write(&file.bytes).await.map_err(|error| failed(&meta, error))?;
    upload.finish().await.map_err(|error| failed(&meta, error))?;
    store.put_filters_and_index(&meta, &blooms, &index).await.map_err(|error| failed(&meta, error))?;
    Ok(meta)
}

/// Writes every row group of the source; what is not drained is in the writer.
async fn copy(
    reader: &Reader,
    mut writer: Writer,
    upload: &mut Upload,
    refused: &impl Fn(String) -> BlockError,
    mut progress: impl FnMut(usize),
) -> Result<Writer, BlockError> {
    let tenant = &reader.meta().tenant_id;
    for row_group in 0..reader.row_groups() {
        let traces = reader.scan(row_group, Projection::ALL).await?;
        let (next, bytes) = add(writer, traces, tenant.clone()).await.map_err(refused)?;
        writer = next;
        upload.write(&bytes).await.map_err(|error| failed(reader.meta(), error))?;
        progress(row_group + 1);
    }
    Ok(writer)
}

/// Adds traces on a blocking thread; returns the bytes of row groups that are finished.
async fn add(mut writer: Writer, traces: Vec<Trace>, tenant: Tenant) -> Result<(Writer, Vec<u8>), String> {
    let work = move || {
        for trace in traces {
            let id = trace.trace_id;
            let segments = segments(&tenant, &trace).ok_or_else(|| format!("trace {id} is larger than 4 GiB"))?;
            drop(trace);
            writer.add(&segments).map_err(|error| chain(&error))?;
        }
        let bytes = writer.drain();
        Ok((writer, bytes))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("a thread that encodes panicked".to_owned()))
}

/// A trace as it would have come in; none if it is too large for one body. Not by way of a request, because a block may have span ids of
/// lengths that a request may not have.
fn segments(tenant: &Tenant, trace: &Trace) -> Option<TraceSegments> {
    fn append(body: &mut Vec<u8>, message: Option<&impl Message>) -> Option<Slice> {
        let start = u32::try_from(body.len()).ok()?;
        if let Some(message) = message {
            body.extend_from_slice(&message.encode_to_vec());
        }
        Some(Slice { start, end: u32::try_from(body.len()).ok()? })
    }
    let mut body = Vec::new();
    let mut spans = Vec::new();
    for resource_spans in &trace.resource_spans {
        let resource = append(&mut body, resource_spans.resource.as_ref())?;
        for scope_spans in &resource_spans.scope_spans {
            let scope = append(&mut body, scope_spans.scope.as_ref())?;
            for span in &scope_spans.spans {
                let key = SpanKey { span_id: nested::key(&span.span_id), kind: span.kind };
                let start_ns = span.start_time_unix_nano;
                spans.push(SpanRef { key, start_ns, resource, scope, span: append(&mut body, Some(span))? });
            }
        }
    }
    let segment = Segment { tenant: tenant.clone(), trace_id: trace.trace_id, position: Position(0), body: Bytes::from(body), spans };
    Some(TraceSegments { trace_id: trace.trace_id, segments: vec![Arc::new(segment)] })
}
