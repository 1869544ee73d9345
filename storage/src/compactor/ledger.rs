//! Who may merge a block into what: claims and decisions, small objects beside the blocks that are written once and never changed.
//!
//! ```text
//!  <input>/compaction-0.json          {"output":"O","inputs":["A","B"],"by":"host:3200","at":1700000000}
//!  <input>/compaction-1.json          the next claim, valid only if the output of the one before was given up
//!  <output>/compaction-decision.json  {"commit":{…meta.json…}}  or  "abort"
//!  <output>/compaction-alive.json     {"at":1700000900}  written anew now and then by whoever writes the output
//! ```
//!
//! Claims and decisions are put-if-absent, so the first writer wins and whoever comes later reads what it wrote; nothing is ever released by deleting
//! it, because a deletion that is late would release what another has taken since. A claim ends when the output that it names has the
//! decision to abort. Anybody may write that decision: of a holder that is still at work it only takes the work, since without a decision
//! to commit its output is never published. Time is used to decide whether that is worth while, never whether it is safe: a claim is old when
//! neither it nor the last sign of life of its output is young.
//!
//! Tempo ignores these objects and deletes them with the block's folder.

use std::{convert::Infallible, time::Duration};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, Error as _},
};

use super::CompactError;
use crate::{
    backend::Store,
    block::{Meta, chain},
    clock::Clock,
    id::{BlockId, Tenant},
};

const DECISION: &str = "compaction-decision.json";

/// Signs of life while a claim holds, so that one may get lost.
const RENEWALS: u32 = 4;

/// Between two signs of life, at least.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

const ALIVE: &str = "compaction-alive.json";

/// Claims on one block that are looked through. Each stands for a job that was given up.
const MAX_CLAIMS: u32 = 1000;

/// A block is to become part of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// The output.
    pub(super) output: BlockId,
    /// All inputs of the output, sorted.
    pub(super) inputs: Vec<BlockId>,
    /// The instance that means to write it.
    pub(super) by: String,
    /// When it was claimed, by that instance's clock: seconds since the Unix epoch.
    pub(super) at: i64,
}

/// A sign of life.
#[derive(Debug, Serialize, Deserialize)]
struct Alive {
    /// By the instance's clock: seconds since the Unix epoch.
    at: i64,
}

/// What becomes of an output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Decision {
    /// All of its objects are there; it is to be published with this `meta.json`, and then its inputs are compacted.
    Commit(Box<Meta>),
    /// It will never be published.
    Abort,
}

/// In whose hands a block is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Holder {
    /// Nobody's; the number of the claim to be made.
    Nobody(u32),
    /// Those of the output that was asked for.
    This,
    /// Those of a job that may still be at work.
    Another(Claim),
    /// Those of an output that has been decided for.
    Committed(Box<Meta>),
}

/// Reads and writes claims and decisions for one instance.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) store: Store,
    /// The name of this instance.
    pub(super) instance: String,
    /// Seconds after which a claim of another instance is given up for it.
    pub(super) claim_timeout: i64,
}

impl Ledger {
    async fn read<T: DeserializeOwned>(&self, tenant: &Tenant, block: BlockId, name: &str) -> Result<Option<T>, CompactError> {
        let bytes = match self.store.get(tenant, block, name).await {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.source, object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| CompactError::Ledger { block, name: name.to_owned(), source })
    }

    /// Writes an object unless it is there.
    async fn create(&self, tenant: &Tenant, block: BlockId, name: &str, value: &impl Serialize) -> Result<bool, CompactError> {
        let json = serde_json::to_vec(value).map_err(|source| CompactError::Ledger { block, name: name.to_owned(), source })?;
        Ok(self.store.create(tenant, block, name, json.into()).await?)
    }

    /// What was decided about an output.
    pub(super) async fn decision(&self, tenant: &Tenant, output: BlockId) -> Result<Option<Decision>, CompactError> {
        let decision = self.read(tenant, output, DECISION).await?;
        match &decision {
            // Inputs are compacted because of it.
            Some(Decision::Commit(meta)) if meta.block_id != output || meta.tenant_id != *tenant => {
                let source =
                    serde_json::Error::custom(format_args!("it is about block \"{}\" of tenant \"{}\"", meta.block_id, meta.tenant_id));
                Err(CompactError::Ledger { block: output, name: DECISION.to_owned(), source })
            }
            _ => Ok(decision),
        }
    }

    /// Decides about an output, if nobody has; returns what holds.
    pub(super) async fn decide(&self, tenant: &Tenant, output: BlockId, decision: Decision) -> Result<Decision, CompactError> {
        if self.create(tenant, output, DECISION, &decision).await? {
            return Ok(decision);
        }
        // Gone again only if the folder was deleted meanwhile, and then nothing can become of the output.
        Ok(self.decision(tenant, output).await?.unwrap_or(Decision::Abort))
    }

    /// In whose hands an input is, as seen by a job that wants it for `output`. Gives up claims that nobody works on any more: those of
    /// this instance, which has one job at a time for a block, and those that are too old.
    pub(super) async fn holder(&self, tenant: &Tenant, input: BlockId, output: BlockId, now: i64) -> Result<Holder, CompactError> {
        for number in 0..MAX_CLAIMS {
            let Some(claim) = self.read::<Claim>(tenant, input, &name(number)).await? else { return Ok(Holder::Nobody(number)) };
            if claim.output == output {
                return Ok(Holder::This);
            }
            let decision = match self.decision(tenant, claim.output).await? {
                Some(decision) => decision,
                None if claim.by != self.instance && self.is_young(tenant, &claim, now).await? => return Ok(Holder::Another(claim)),
                None => {
                    tracing::info!(%tenant, block = %input, output = %claim.output, by = claim.by, "claim of an abandoned compaction is given up");
                    self.decide(tenant, claim.output, Decision::Abort).await?
                }
            };
            if let Decision::Commit(meta) = decision {
                return Ok(Holder::Committed(meta));
            }
        }
        Err(CompactError::Claims { block: input, most: MAX_CLAIMS })
    }

    /// Whether somebody may still be at work on the output of a claim.
    async fn is_young(&self, tenant: &Tenant, claim: &Claim, now: i64) -> Result<bool, CompactError> {
        let is_young = |at: i64| now.abs_diff(at) <= self.claim_timeout.unsigned_abs();
        if is_young(claim.at) {
            return Ok(true);
        }
        match self.read::<Alive>(tenant, claim.output, ALIVE).await {
            Ok(alive) => Ok(alive.is_some_and(|alive| is_young(alive.at))),
            // Whoever writes what nobody understands is no sign of life.
            Err(CompactError::Ledger { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives signs of life of an output for as long as it is polled.
    pub(super) async fn keep_alive(&self, tenant: &Tenant, output: BlockId, clock: &dyn Clock) -> Infallible {
        let pause = Duration::from_secs(self.claim_timeout.unsigned_abs()) / RENEWALS;
        loop {
            tokio::time::sleep(pause.max(SHORTEST_PAUSE)).await;
            let alive = serde_json::json!(Alive { at: super::seconds_of(clock) }).to_string();
            if let Err(error) = self.store.put_named(tenant, output, ALIVE, alive.into()).await {
                tracing::warn!(%tenant, block = %output, error = chain(&error), "bucket refused a sign of life of a compaction");
            }
        }
    }

    /// Makes the claim of this number on an input; false if somebody else made it.
    pub(super) async fn claim(&self, tenant: &Tenant, input: BlockId, number: u32, claim: &Claim) -> Result<bool, CompactError> {
        self.create(tenant, input, &name(number), claim).await
    }
}

fn name(number: u32) -> String {
    format!("compaction-{number}.json")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::compactor::testing;

    fn ledger(store: &Store, instance: &str) -> Ledger {
        Ledger { store: store.clone(), instance: instance.to_owned(), claim_timeout: 100 }
    }

    fn claim(output: u128, by: &str, at: i64) -> Claim {
        Claim { output: BlockId::from_u128(output), inputs: vec![BlockId::from_u128(1)], by: by.to_owned(), at }
    }

    #[tokio::test]
    async fn a_claim_holds_until_its_output_is_given_up() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let (ours, theirs) = (ledger(&store, "us"), ledger(&store, "them"));
        let (tenant, input, output) = (Tenant::single(), BlockId::from_u128(1), BlockId::from_u128(10));
        assert_eq!(ours.holder(&tenant, input, output, 1000).await.expect("read"), Holder::Nobody(0));
        assert!(theirs.claim(&tenant, input, 0, &claim(11, "them", 1000)).await.expect("first"));
        assert!(!ours.claim(&tenant, input, 0, &claim(10, "us", 1000)).await.expect("second"));
        assert_eq!(ours.holder(&tenant, input, output, 1100).await.expect("read"), Holder::Another(claim(11, "them", 1000)));
        assert_eq!(theirs.holder(&tenant, input, BlockId::from_u128(11), 1100).await.expect("read"), Holder::This);

        // Too old: it is given up, and then its holder cannot commit.
        assert_eq!(ours.holder(&tenant, input, output, 1101).await.expect("read"), Holder::Nobody(1));
        let commit = Decision::Commit(Box::new(Meta { block_id: output, ..testing::meta() }));
        assert_eq!(theirs.decide(&tenant, BlockId::from_u128(11), commit.clone()).await.expect("decided"), Decision::Abort);

        // What is committed can't be given up, however old the claim.
        assert!(ours.claim(&tenant, input, 1, &claim(10, "us", 1101)).await.expect("first"));
        assert_eq!(ours.decide(&tenant, output, commit.clone()).await.expect("first"), commit);
        assert_eq!(theirs.decide(&tenant, output, Decision::Abort).await.expect("decided"), commit);
        let holder = theirs.holder(&tenant, input, BlockId::from_u128(12), 9999).await.expect("read");
        assert_eq!(holder, Holder::Committed(Box::new(Meta { block_id: output, ..testing::meta() })));
    }

    #[tokio::test]
    async fn a_sign_of_life_renews_a_claim() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let (ours, theirs) = (ledger(&store, "us"), ledger(&store, "them"));
        let (tenant, input, output) = (Tenant::single(), BlockId::from_u128(1), BlockId::from_u128(10));
        let taken = claim(11, "them", 1000);
        assert!(theirs.claim(&tenant, input, 0, &taken).await.expect("first"));
        store.put_named(&tenant, taken.output, ALIVE, r#"{"at":1090}"#.into()).await.expect("put");
        assert_eq!(ours.holder(&tenant, input, output, 1190).await.expect("read"), Holder::Another(taken.clone()));
        store.put_named(&tenant, taken.output, ALIVE, r#"{"at":"#.into()).await.expect("put");
        assert_eq!(ours.holder(&tenant, input, output, 1191).await.expect("read"), Holder::Nobody(1));
    }

    #[tokio::test]
    async fn what_this_instance_left_behind_is_given_up_at_once() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let ours = ledger(&store, "us");
        let (tenant, input) = (Tenant::single(), BlockId::from_u128(1));
        assert!(ours.claim(&tenant, input, 0, &claim(10, "us", 1000)).await.expect("first"));
        assert_eq!(ours.holder(&tenant, input, BlockId::from_u128(11), 1000).await.expect("read"), Holder::Nobody(1));
        assert_eq!(ours.decision(&tenant, BlockId::from_u128(10)).await.expect("read"), Some(Decision::Abort));
    }

    #[tokio::test]
    async fn what_cannot_be_true_is_refused() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let ours = ledger(&store, "us");
        let (tenant, input, output) = (Tenant::single(), BlockId::from_u128(1), BlockId::from_u128(10));
        ours.create(&tenant, output, DECISION, &Decision::Commit(Box::new(testing::meta()))).await.expect("put");
        let error = ours.decision(&tenant, output).await.expect_err("a commit of another block");
        assert!(error.to_string().contains(DECISION), "{error}");
        // As old as can be.
        assert!(ours.claim(&tenant, input, 0, &claim(11, "them", i64::MIN)).await.expect("first"));
        assert_eq!(ours.holder(&tenant, input, output, 1000).await.expect("read"), Holder::Nobody(1));
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_read_is_an_error_with_its_name() {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let (tenant, input) = (Tenant::single(), BlockId::from_u128(1));
        store.put_named(&tenant, input, "compaction-0.json", "{".into()).await.expect("put");
        let error = ledger(&store, "us").holder(&tenant, input, input, 0).await.expect_err("no JSON");
        assert!(error.to_string().contains("compaction-0.json"), "{error}");
    }
}
