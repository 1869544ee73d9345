//! Old blocks go in two steps (block-format.md §12), and what nobody needs goes in one.
//!
//! ```text
//!  live, ingested before now − block_retention ──► meta.compacted.json ──compacted_block_retention──► deleted
//!  live, but merged into a live block ─► meta.compacted.json      whoever merged it was stopped before it got to it
//!  neither meta, output decided for ───► meta.json                the same, one step earlier
//!  neither meta, output given up ──────► deleted after garbage_age
//!  neither meta, nothing decided ──────► deleted after garbage_age or block_retention, whichever is longer
//! ```
//!
//! A block's age counts from when its youngest data was ingested ([`Meta::ingested_at`]), not from its spans' own times: whoever sends spans
//! of last year, or has a clock that says 1970, keeps them as long as everybody else, and no longer than that if it says 2100.
//!
//! The last line is about uploads that were cut short, and about blocks that a dataflow has committed to and cannot publish, because the
//! bucket or the process has been away ever since. They look the same from here, so neither is touched before retention would delete the
//! published block. Before a folder is deleted, the decision to give it up is written into it: a compactor that is still at work on it
//! finds that instead of its chance to commit.

use std::collections::HashSet;

use futures::{StreamExt as _, stream};

use super::{
    CompactError, Compactor, Limits,
    job::{bury, finish},
    ledger::{Decision, Ledger},
};
use crate::{
    backend::{CONCURRENCY, Listing},
    block::{Meta, chain},
    id::{BlockId, Tenant},
};

impl Compactor {
    /// One round of retention over all tenants.
    ///
    /// # Errors
    /// The tenants cannot be listed. What fails for a block is logged, counted and tried again in the next round.
    pub async fn retain(&self) -> Result<(), CompactError> {
        let timer = self.metrics.retention_seconds.start_timer();
        let tenants = self.store.tenants().await?;
        let rounds = tenants.iter().map(|tenant| self.retain_tenant(tenant)).collect::<Vec<_>>();
        stream::iter(rounds).buffer_unordered(self.settings.retention_concurrency.max(1)).collect::<Vec<()>>().await;
        timer.observe_duration();
        Ok(())
    }

    async fn retain_tenant(&self, tenant: &Tenant) {
        let limits = self.overrides.limits(tenant);
        if limits.disabled {
            return;
        }
        let now = self.now();
        let retention = seconds(limits.retention.unwrap_or(self.settings.block_retention));
        if retention > 0 {
            let (blocks, horizon) = (self.blocklist.blocks(tenant), now - retention);
            let expired = blocks.iter().filter(|meta| meta.ingested_at() < horizon && self.ownership.owns(&meta.block_id.to_string()));
            let expiring = expired.map(|meta| self.expire(meta, horizon)).collect::<Vec<_>>();
            stream::iter(expiring).buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
        }
        let kept = seconds(self.settings.compacted_block_retention);
        let compacted = self.blocklist.compacted(tenant);
        let is_old = |at: Option<i64>| at.is_some_and(|at| at < now - kept);
        let old = compacted.iter().filter(|block| is_old(block.at) && self.ownership.owns(&block.meta.block_id.to_string()));
        let deleting = old.map(|block| self.delete(&block.meta)).collect::<Vec<_>>();
        stream::iter(deleting).buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
        if self.sweep_is_due(tenant, now)
            && let Err(error) = self.sweep(tenant, &limits).await
        {
            self.failed(tenant, None, "bucket could not be swept", &error);
        }
    }

    /// Phase 1. What the folder says counts: an index that Tempo built leaves out our own keys, and a deletion is for ever.
    async fn expire(&self, listed: &Meta, horizon: i64) {
        let (tenant, block) = (&listed.tenant_id, listed.block_id);
        let marked = async {
            let there = self.store.meta(tenant, block).await?;
            if there.as_ref().is_some_and(|meta| meta.ingested_at() >= horizon) {
                return Ok(false);
            }
            bury(&self.store, there.as_ref().unwrap_or(listed)).await?;
            self.store.mark_compacted(tenant, block).await?;
            Ok::<_, CompactError>(true)
        };
        match marked.await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(%tenant, %block, "retention of the block is over");
                self.metrics.marked_for_deletion.inc();
                self.blocklist.replace(tenant, &[block], Vec::new(), self.now());
            }
            Err(error) => self.failed(tenant, Some(block), "block could not be marked for deletion", &error),
        }
    }

    /// Phase 2. The list may be wrong, so a block goes only if its folder says that it is compacted, or says nothing any more.
    async fn delete(&self, meta: &Meta) {
        let (tenant, block) = (&meta.tenant_id, meta.block_id);
        let deleted = async {
            let (store, is_live) = (&self.store, "meta.json");
            if store.exists(tenant, block, is_live).await? && !store.exists(tenant, block, "meta.compacted.json").await? {
                return Ok(false);
            }
            store.delete(tenant, block).await.map(|()| true)
        };
        match deleted.await {
            Ok(false) => tracing::warn!(%tenant, %block, "block is listed as compacted and its folder says that it is live, not deleted"),
            Ok(true) => {
                tracing::info!(%tenant, %block, "block deleted");
                self.metrics.deleted.inc();
                self.blocklist.remove(tenant, &[block]);
            }
            Err(error) => self.failed(tenant, Some(block), "block could not be deleted", &error.into()),
        }
    }

    fn sweep_is_due(&self, tenant: &Tenant, now: i64) -> bool {
        let mut state = self.state.lock();
        let last = state.swept.get(tenant).copied();
        let is_due = last.is_none_or(|last| now - last >= seconds(self.settings.sweep_interval));
        if is_due {
            state.swept.insert(tenant.clone(), now);
        }
        is_due
    }

    /// Marks the blocks as compacted that a listed block is known to hold, although their folders say that they are live.
    pub(super) async fn mark_superseded(&self, tenant: &Tenant) {
        let compacted = self.blocklist.compacted(tenant);
        let unmarked = compacted.iter().filter(|block| block.at.is_none());
        let marking = unmarked.map(|block| self.mark(tenant, block.meta.block_id)).collect::<Vec<_>>();
        stream::iter(marking).buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
    }

    async fn mark(&self, tenant: &Tenant, block: BlockId) {
        match self.store.mark_compacted(tenant, block).await {
            Ok(()) => {
                tracing::info!(%tenant, %block, "block was merged into another and is marked as compacted now");
                self.metrics.marks_finished.inc();
                self.blocklist.replace(tenant, &[block], Vec::new(), self.now());
            }
            Err(error) => self.failed(tenant, Some(block), "block could not be marked as compacted", &error.into()),
        }
    }

    /// Finishes what others began, and deletes what nobody needs.
    async fn sweep(&self, tenant: &Tenant, limits: &Limits) -> Result<(), CompactError> {
        let listing = self.store.listing(tenant).await?;
        let compacted: HashSet<BlockId> = listing.compacted.iter().map(|(block, _)| *block).collect();
        for &block in listing.live.iter().filter(|block| compacted.contains(block)) {
            self.mark(tenant, block).await;
        }
        self.clear(tenant, &listing, limits).await
    }

    async fn clear(&self, tenant: &Tenant, listing: &Listing, limits: &Limits) -> Result<(), CompactError> {
        let now = self.now();
        let age = seconds(self.settings.garbage_age);
        let retention = seconds(limits.retention.unwrap_or(self.settings.block_retention));
        let ledger = self.ledger();
        for &(block, youngest) in &listing.unfinished {
            if youngest > now - age || !self.ownership.owns(&block.to_string()) {
                continue;
            }
            // Without retention nothing is ever too old to be published.
            let is_outdated = retention > 0 && youngest < now - age.max(retention);
            if let Err(error) = self.clear_folder(&ledger, tenant, block, is_outdated).await {
                self.failed(tenant, Some(block), "unfinished block could not be deleted", &error);
            }
        }
        Ok(())
    }

    async fn clear_folder(&self, ledger: &Ledger, tenant: &Tenant, block: BlockId, is_outdated: bool) -> Result<(), CompactError> {
        let decision = match ledger.decision(tenant, block).await? {
            None if is_outdated => ledger.decide(tenant, block, Decision::Abort).await?,
            None => return Ok(()),
            Some(decision) => decision,
        };
        match decision {
            Decision::Commit(meta) => finish(&self.store, &self.blocklist, &meta, &*self.clock).await,
            Decision::Abort => {
                self.store.delete(tenant, block).await?;
                tracing::info!(%tenant, %block, "folder of a block that never came to be deleted");
                self.metrics.garbage_deleted.inc();
                Ok(())
            }
        }
    }

    fn failed(&self, tenant: &Tenant, block: Option<BlockId>, what: &str, error: &CompactError) {
        let block = block.map(|block| block.to_string()).unwrap_or_default();
        tracing::error!(%tenant, block, error = chain(error), "{what}");
        self.metrics.retention_errors.inc();
    }
}

fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
