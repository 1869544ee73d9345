//! Publishing a block that has been decided for, perhaps for the second time and perhaps long afterwards.
//!
//! The decision is durable before `meta.json` is (a manifest of the dataflow, a compaction's decision), so whoever recovers must write
//! `meta.json` again without knowing what became of the block since: it may have been published, merged into another, even deleted.
//! Bringing such a block back would show its spans twice. Deleting a block takes `meta.compacted.json` last, so as long as any bytes are
//! left, it says so.

use std::time::{Duration, Instant};

use crate::{
    backend::{Store, StoreError},
    block::{DATA, Meta},
};

/// Between looking and writing no more than this may pass; a process that was suspended looks again.
const MAX_GAP: Duration = Duration::from_secs(60);

/// What became of a block that was to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It is live.
    Live,
    /// It was compacted or has expired; its bytes are still there.
    Compacted,
    /// Its bytes are gone.
    Gone,
}

/// Publishes a block unless it has been compacted or deleted. Repeating it changes nothing.
///
/// # Errors
/// The bucket refused it or did not say.
pub async fn publish(store: &Store, meta: &Meta) -> Result<Publication, StoreError> {
    let (tenant, block) = (&meta.tenant_id, meta.block_id);
    loop {
        let began = Instant::now();
        if store.exists(tenant, block, "meta.compacted.json").await? {
            return Ok(Publication::Compacted);
        }
        if !store.exists(tenant, block, DATA).await? {
            return Ok(Publication::Gone);
        }
        if began.elapsed() < MAX_GAP {
            break;
        }
    }
    // Whatever is there already is the same.
    store.publish(meta).await?;
    Ok(Publication::Live)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::compactor::testing;

    #[tokio::test]
    async fn a_compacted_or_deleted_block_does_not_come_back() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let meta = testing::meta();
        let (tenant, block) = (&meta.tenant_id, meta.block_id);
        assert_eq!(publish(&store, &meta).await.expect("nothing there"), Publication::Gone);
        store.put_named(tenant, block, DATA, "data".into()).await.expect("put");
        for _ in 0..2 {
            assert_eq!(publish(&store, &meta).await.expect("publish"), Publication::Live);
            assert_eq!(store.meta(tenant, block).await.expect("get").as_ref(), Some(&meta));
        }
        store.mark_compacted(tenant, block).await.expect("mark");
        assert_eq!(publish(&store, &meta).await.expect("compacted"), Publication::Compacted);
        assert_eq!(store.meta(tenant, block).await.expect("get"), None);
        store.delete(tenant, block).await.expect("delete");
        assert_eq!(publish(&store, &meta).await.expect("deleted"), Publication::Gone);
    }
}
