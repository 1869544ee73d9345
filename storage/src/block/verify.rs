//! Reads a block completely and checks that its objects fit together.
//!
//! | object | checked |
//! |---|---|
//! | `data.parquet` | every page of every leaf decodes; ids ascend strictly over all row groups |
//! | `meta.json` | rows are as many as it says; row groups are no more than it says |
//! | `bloom-N` | all shards are there, and the shard of every id has the id |
//! | `index` | if there is one, it has the last id of every row group |
//!
//! Memory is one decoded row group and the bloom filters.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{BlockError, Meta, Projection, Reader, bloom, nested};
use crate::{
    backend::{Store, StoreError},
    id::TraceId,
};

/// Problems that are told one by one; more are counted.
const TOLD: usize = 10;

/// What reading a block completely found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Rows read.
    pub traces: u64,
    /// Spans read.
    pub spans: u64,
    /// Spans that are in their trace more than once, which Tempo's blocks may have.
    pub repeated: u64,
    /// What does not fit; empty for a good block.
    pub problems: Vec<String>,
}

/// Verifies a block.
///
/// # Errors
/// It cannot be opened or read on: the bucket failed, the format is not supported, or a page is damaged.
pub async fn verify(store: &Store, meta: Arc<Meta>) -> Result<Verified, BlockError> {
    let reader = Reader::open(store, Arc::clone(&meta)).await?;
    let mut problems = Problems::default();
    let failed = |source: StoreError| BlockError::Store { block: meta.block_id, tenant: meta.tenant_id.clone(), source: Box::new(source) };
    let mut blooms = Vec::new();
    for shard in 0..meta.bloom_shards {
        let name = format!("bloom-{shard}");
        match store.get(&meta.tenant_id, meta.block_id, &name).await {
            Ok(filter) => blooms.push(Some(filter)),
            Err(error) if error.is_not_found() => {
                problems.add(format!("{name} is missing"));
                blooms.push(None);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let (mut traces, mut spans, mut repeated) = (0, 0, 0);
    let mut last: Option<TraceId> = None;
    let mut last_ids = Vec::new();
    for row_group in 0..reader.row_groups() {
        for trace in reader.scan(row_group, Projection::ALL).await? {
            let id = trace.trace_id;
            traces += 1;
            if last.is_some_and(|last| last >= id) {
                problems.add(format!("trace {id} of row group {row_group} is not in order"));
            }
            last = Some(id);
            let shard = bloom::shard_of(id, meta.bloom_shards);
            if let Some(Some(filter)) = blooms.get(shard as usize) {
                match bloom::contains(filter, id) {
                    Ok(true) => {}
                    Ok(false) => problems.add(format!("bloom-{shard} does not have trace {id}")),
                    Err(what) => problems.add(format!("bloom-{shard}: {what}")),
                }
            }
            let mut keys = HashSet::new();
            let all = trace.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
            for span in all {
                spans += 1;
                repeated += u64::from(!keys.insert((nested::key(&span.span_id), span.kind)));
            }
        }
        last_ids.extend(last);
    }
    if traces != meta.total_objects {
        problems.add(format!("it has {traces} traces and meta.json says {}", meta.total_objects));
    }
    if reader.row_groups() > meta.total_records as usize {
        problems.add(format!("it has {} row groups and meta.json says {}", reader.row_groups(), meta.total_records));
    }
    match store.get(&meta.tenant_id, meta.block_id, "index").await {
        Ok(index) if !index_fits(&index, &last_ids) => problems.add("index does not have the last ids of the row groups".to_owned()),
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(Verified { traces, spans, repeated, problems: problems.finish() })
}

fn index_fits(index: &[u8], last_ids: &[TraceId]) -> bool {
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(index) else { return false };
    let Some(ids) = index.get("rowGroups").and_then(|ids| ids.as_array()) else { return false };
    ids.iter().map(|id| id.as_str()).eq(last_ids
        .iter()
        .map(|id| STANDARD.encode(id.0))
        .collect::<Vec<_>>()
        .iter()
        .map(|id| Some(id.as_str())))
}

#[derive(Debug, Default)]
struct Problems {
    told: Vec<String>,
    more: u64,
}

impl Problems {
    fn add(&mut self, what: String) {
        if self.told.len() < TOLD { self.told.push(what) } else { self.more += 1 }
    }

    fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}
