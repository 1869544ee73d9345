//! One block in place of another that holds the same spans: a compaction with one input, at an operator's wish.
//!
//! The steps are those of any compaction (see the module above), so a compactor that runs meanwhile leaves the block alone, and should this
//! process be killed after the decision, the compactor finishes what is left of it.

use std::{pin::pin, time::Duration};

use futures::future::{Either, select};

use super::{
    CompactError,
    job::{bury, is_live, verify},
    ledger::{Claim, Decision, Holder, Ledger},
    publish,
};
use crate::{
    backend::Store,
    block::{BlockError, Meta},
    clock::Clock,
    id::BlockId,
};

/// Why a block was not replaced. It is live as it was, unless something else became of it.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// It is not there, or it was compacted.
    #[error("block \"{0}\" is not live any more")]
    Gone(BlockId),
    /// An object beside it says that it must stay.
    #[error("block \"{0}\" must not be compacted: it has a nocompact.flg")]
    Flagged(BlockId),
    /// A compactor works on it, or was stopped while it did.
    #[error("block \"{block}\" is being compacted into block \"{output}\" by \"{by}\"")]
    Taken {
        /// The block.
        block: BlockId,
        /// What it becomes part of.
        output: BlockId,
        /// The instance that does it.
        by: String,
    },
    /// It was compacted, but not everybody knows yet.
    #[error("block \"{block}\" was compacted into block \"{output}\"")]
    Committed {
        /// The block.
        block: BlockId,
        /// What it is part of.
        output: BlockId,
    },
    /// A compactor lost its patience.
    #[error("block \"{0}\" was taken over by a compactor meanwhile")]
    Lost(BlockId),
    /// The bucket refused something, or what is in it is not readable.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// It cannot be written again.
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// Whether a block may be replaced now; the number of the claim to be made.
async fn free(ledger: &Ledger, meta: &Meta, output: BlockId, now: i64) -> Result<u32, ReplaceError> {
    let (tenant, block) = (&meta.tenant_id, meta.block_id);
    if !is_live(&ledger.store, tenant, block).await? {
        return Err(ReplaceError::Gone(block));
    }
    if ledger.store.exists(tenant, block, "nocompact.flg").await.map_err(CompactError::from)? {
        return Err(ReplaceError::Flagged(block));
    }
    match ledger.holder(tenant, block, output, now).await? {
        Holder::Nobody(number) => Ok(number),
        Holder::This => Err(ReplaceError::Taken { block, output, by: ledger.instance.clone() }),
        Holder::Another(claim) => Err(ReplaceError::Taken { block, output: claim.output, by: claim.by }),
        Holder::Committed(meta) => Err(ReplaceError::Committed { block, output: meta.block_id }),
    }
}

fn ledger(store: &Store, output: BlockId, claim_timeout: Duration) -> Ledger {
    Ledger { store: store.clone(), instance: format!("rewrite into {output}"), claim_timeout: seconds(claim_timeout) }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Whether a block may be replaced: it is live and in nobody's hands. Changes nothing, so a claim counts however old it is.
///
/// # Errors
/// Why not.
pub async fn check(store: &Store, meta: &Meta) -> Result<(), ReplaceError> {
    free(&ledger(store, BlockId::nil(), Duration::MAX), meta, BlockId::nil(), 0).await.map(drop)
}

/// Replaces a block by `output`, which `write` writes, all but its `meta.json`. Returns the `meta.json` that was published.
///
/// # Errors
/// The block is not free (a claim that is older than `claim_timeout` is given up), cannot be written again, or the bucket refused something. After an error of publishing the decision for the
/// output stands, and compactors see it through.
pub async fn replace(
    store: &Store,
    source: &Meta,
    output: BlockId,
    claim_timeout: Duration,
    clock: &dyn Clock,
    write: impl Future<Output = Result<Meta, BlockError>>,
) -> Result<Meta, ReplaceError> {
    let (tenant, block) = (&source.tenant_id, source.block_id);
    let ledger = ledger(store, output, claim_timeout);
    let now = seconds(clock.now());
    let number = free(&ledger, source, output, now).await?;
    // Once the source is compacted, nothing says any more that the blocks it was made from are not live.
    bury(store, source).await?;
    let claim = Claim { output, inputs: vec![block], by: ledger.instance.clone(), at: now };
    if !ledger.claim(tenant, block, number, &claim).await? {
        return Err(ReplaceError::Lost(block));
    }
    let written = async {
        let mut meta = write.await?;
        meta.compacted_from = vec![block];
        verify(store, &meta).await?;
        if is_live(store, tenant, block).await? { Ok(meta) } else { Err(ReplaceError::Gone(block)) }
    };
    let written = match select(pin!(written), pin!(ledger.keep_alive(tenant, output, clock))).await {
        Either::Left((written, _)) => written,
        Either::Right((never, _)) => match never {},
    };
    let meta = match written {
        Ok(meta) => meta,
        Err(error) => {
            // The source is free again at once.
            ledger.decide(tenant, output, Decision::Abort).await?;
            return Err(error);
        }
    };
    if ledger.decide(tenant, output, Decision::Commit(Box::new(meta.clone()))).await? == Decision::Abort {
        return Err(ReplaceError::Lost(block));
    }
    if meta.total_objects > 0 {
        publish(store, &meta).await.map_err(CompactError::from)?;
    }
    bury(store, &meta).await?;
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::{block::DATA, clock::ManualClock, compactor::testing};

    const PATIENCE: Duration = Duration::from_secs(100);

    /// A source in a bucket, and the output as it would be.
    async fn world() -> (Store, Meta, Meta) {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let source = testing::meta();
        store.put_named(&source.tenant_id, source.block_id, DATA, "data".into()).await.expect("put");
        store.publish(&source).await.expect("publish");
        let data = b"spans\x00\x00\x00\x00PAR1";
        let output = Meta { block_id: BlockId::from_u128(7), total_objects: 1, size: data.len() as u64, ..source.clone() };
        store.put_named(&output.tenant_id, output.block_id, DATA, data.as_slice().into()).await.expect("put");
        (store, source, output)
    }

    #[tokio::test]
    async fn the_new_block_is_live_and_the_old_one_is_compacted() {
        let (store, source, output) = world().await;
        let clock = ManualClock::new(Duration::from_secs(1000));
        check(&store, &source).await.expect("free");
        let meta = replace(&store, &source, output.block_id, PATIENCE, &clock, async { Ok(output.clone()) }).await.expect("replace");
        assert_eq!(meta.compacted_from, [source.block_id]);
        assert_eq!(store.meta(&meta.tenant_id, meta.block_id).await.expect("get").as_ref(), Some(&meta));
        assert_eq!(store.meta(&source.tenant_id, source.block_id).await.expect("get"), None);
        let again = replace(&store, &source, BlockId::from_u128(8), PATIENCE, &clock, async { unreachable!("it is gone") }).await;
        assert!(matches!(again, Err(ReplaceError::Gone(_))), "{again:?}");
    }

    #[tokio::test]
    async fn a_block_in_the_hands_of_a_compactor_is_left_alone_until_it_is_given_up() {
        let (store, source, output) = world().await;
        let theirs = Ledger { store: store.clone(), instance: "host".to_owned(), claim_timeout: 100 };
        let claim = Claim { output: BlockId::from_u128(5), inputs: vec![source.block_id], by: "host".to_owned(), at: 990 };
        assert!(theirs.claim(&source.tenant_id, source.block_id, 0, &claim).await.expect("claim"));
        let error = check(&store, &source).await.expect_err("taken");
        assert!(error.to_string().ends_with("by \"host\""), "{error}");
        let late = ManualClock::new(Duration::from_secs(2000));
        replace(&store, &source, output.block_id, PATIENCE, &late, async { Ok(output.clone()) }).await.expect("replace");
    }

    #[tokio::test]
    async fn whoever_is_given_up_meanwhile_or_fails_changes_nothing() {
        let (store, source, output) = world().await;
        let clock = ManualClock::new(Duration::from_secs(1000));
        let failed =
            async { Err(BlockError::Corrupt { block: source.block_id, tenant: source.tenant_id.clone(), what: "torn".to_owned() }) };
        let error = replace(&store, &source, BlockId::from_u128(6), PATIENCE, &clock, failed).await.expect_err("torn");
        assert!(matches!(error, ReplaceError::Block(_)), "{error}");
        // It is free at once, and a compactor that takes over while the output is written wins.
        let theirs = Ledger { store: store.clone(), instance: "host".to_owned(), claim_timeout: 100 };
        let write = async {
            theirs.decide(&source.tenant_id, output.block_id, Decision::Abort).await.expect("decide");
            Ok(output.clone())
        };
        let error = replace(&store, &source, output.block_id, PATIENCE, &clock, write).await.expect_err("lost");
        assert!(matches!(error, ReplaceError::Lost(_)), "{error}");
        store.put_named(&source.tenant_id, source.block_id, "nocompact.flg", "".into()).await.expect("put");
        let error = check(&store, &source).await.expect_err("flagged");
        assert!(matches!(error, ReplaceError::Flagged(_)), "{error}");
        assert_eq!(store.meta(&source.tenant_id, source.block_id).await.expect("get").as_ref(), Some(&source));
        assert_eq!(store.meta(&output.tenant_id, output.block_id).await.expect("get"), None);
    }
}
