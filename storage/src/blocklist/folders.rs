//! What the folders of a tenant say, with one listing and one read for each block that was not known before.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};

use super::Found;
use crate::{
    backend::{Store, StoreError},
    block::Meta,
    id::{BlockId, Tenant},
};

/// How folders are looked at.
pub(super) struct Look<'a> {
    /// Descriptions that need not be read again: they never change.
    pub(super) known: &'a HashMap<BlockId, Arc<Meta>>,
    /// Descriptions that are read at the same time.
    pub(super) concurrency: usize,
    /// Blocks with a `nocompact.flg` that are not known are passed over.
    pub(super) skip_no_compact: bool,
    /// How long to wait before each read.
    pub(super) delay: &'a (dyn Fn() -> Duration + Send + Sync),
    /// Seconds since the Unix epoch: when a block was compacted that was live in the listing.
    pub(super) now: i64,
}

/// What was seen and what it cost.
#[derive(Debug)]
pub(super) struct Seen {
    /// Sorted by id.
    pub(super) found: Found,
    /// Objects in the listing.
    pub(super) objects: u64,
    /// Requests for descriptions.
    pub(super) reads: u64,
}

/// A block that is not known: its id, and since when its folder says that it is compacted.
type Unknown = (BlockId, Option<i64>);

/// What an unknown block turned out to be, and how many requests that took.
type Read = (Option<(Arc<Meta>, Option<i64>)>, u64);

pub(super) async fn look(store: &Store, tenant: &Tenant, look: &Look<'_>) -> Result<Seen, StoreError> {
    let listing = store.listing(tenant).await?;
    let live: HashSet<BlockId> = listing.live.iter().copied().collect();
    let no_compact: HashSet<BlockId> = listing.no_compact.into_iter().collect();
    let mut found = Found::default();
    let mut unknown: Vec<Unknown> = Vec::new();
    for id in listing.live {
        match look.known.get(&id) {
            Some(meta) => found.live.push(Arc::clone(meta)),
            None if look.skip_no_compact && no_compact.contains(&id) => {}
            None => unknown.push((id, None)),
        }
    }
    // Between copy and deletion a block is both, which counts as live.
    for (id, at) in listing.compacted.into_iter().filter(|(id, _)| !live.contains(id)) {
        match look.known.get(&id) {
            Some(meta) => found.compacted.push((Arc::clone(meta), at)),
            None => unknown.push((id, Some(at))),
        }
    }
    let reads: Vec<_> = unknown.into_iter().map(|unknown| read(store, tenant, unknown, look)).collect();
    let mut reads = stream::iter(reads).buffer_unordered(look.concurrency.max(1));
    let mut requests = 0;
    while let Some(outcome) = reads.next().await {
        let (block, took) = outcome?;
        requests += took;
        match block {
            Some((meta, None)) => found.live.push(meta),
            Some((meta, Some(at))) => found.compacted.push((meta, at)),
            None => {}
        }
    }
    found.live.sort_unstable_by_key(|meta| meta.block_id);
    found.compacted.sort_unstable_by_key(|(meta, _)| meta.block_id);
    found.no_compact = no_compact;
    Ok(Seen { found, objects: listing.objects, reads: requests })
}

/// A block may have become compacted, or have gone, since it was listed.
async fn read(store: &Store, tenant: &Tenant, (id, compacted): Unknown, look: &Look<'_>) -> Result<Read, StoreError> {
    let delay = (look.delay)();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut requests = 1;
    if compacted.is_none() {
        if let Some(meta) = store.meta(tenant, id).await? {
            return Ok((Some((Arc::new(meta), None)), requests));
        }
        requests += 1;
    }
    let meta = store.compacted_meta(tenant, id).await?;
    Ok((meta.map(|meta| (Arc::new(meta), Some(compacted.unwrap_or(look.now)))), requests))
}
