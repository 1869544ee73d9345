//! The bloom filters of a block that is not opened: the cheapest way to learn that it lacks a trace.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{BlockError, Meta, bloom, reader::corrupt, reader::failed};
use crate::{backend::Store, id::TraceId};

/// Bytes of shards that are kept of one block: more than ten of the usual size. A block has one per 85000 traces.
const KEPT_BYTES: usize = 1 << 20;

/// The bloom filters of a block. Shards are kept once they were fetched, up to 1 MiB; of more than that the oldest go.
#[derive(Debug)]
pub struct Filters {
    meta: Arc<Meta>,
    /// By number, oldest first.
    kept: Mutex<VecDeque<(u32, Bytes)>>,
}

impl Filters {
    /// Those of a block; nothing is read yet.
    pub fn new(meta: Arc<Meta>) -> Self {
        Self { meta, kept: Mutex::default() }
    }

    /// Whether the block may hold a trace: one read of one shard, unless it is kept.
    ///
    /// # Errors
    /// The bucket failed, or the shard is corrupt.
    pub async fn may_hold(&self, store: &Store, id: TraceId) -> Result<bool, BlockError> {
        let meta = &self.meta;
        let shard = bloom::shard_of(id, meta.bloom_shards);
        let wrong = |what: String| corrupt(meta, format!("bloom-{shard}: {what}"));
        let known = self.kept.lock().iter().find(|(known, _)| *known == shard).map(|(_, filter)| filter.clone());
        if let Some(filter) = known {
            return bloom::contains(&filter, id).map_err(wrong);
        }
        let filter = store.read_bloom(meta, shard).await;
        let filter = filter.map_err(|source| failed(meta, source))?;
        let may_hold = bloom::contains(&filter, id).map_err(wrong)?;
        let mut kept = self.kept.lock();
        if !kept.iter().any(|(known, _)| *known == shard) {
            kept.push_back((shard, filter));
            while kept.iter().map(|(_, filter)| filter.len()).sum::<usize>() > KEPT_BYTES {
                kept.pop_front();
            }
        }
        Ok(may_hold)
    }
}
