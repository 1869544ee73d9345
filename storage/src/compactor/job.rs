//! One job from its inputs to its output, along the protocol in the module's documentation. Every step may be the last one.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{Either, select},
    stream,
};

use super::{
    CompactError, Limits, Merge, Settings,
    ledger::{Claim, Decision, Holder, Ledger},
    plan::Job,
    publication::{Publication, publish},
    seconds_of,
};
use crate::{
    backend::{CONCURRENCY, Store},
    block::{
        BlockError, DATA, Meta,
        merge::{self, Merged},
    },
    blocklist::Blocklist,
    clock::Clock,
    id::{BlockId, Tenant},
    ownership::Ownership,
};

/// Name space of the identities of outputs.
const OUTPUTS: BlockId = BlockId::from_u128(0x0d4a_66f1_6e57_4d34_9d43_6c1f_6b1f_59d2);

/// Outputs of one set of inputs that may be given up before the set is.
const MAX_ATTEMPTS: u32 = 1000;

/// How often a running job asks whether it is still this instance's.
const OWNERSHIP_CHECK: Duration = Duration::from_secs(1);

/// How a job ended that did not fail.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The inputs are compacted into the output.
    Compacted(Box<Merged>),
    /// An input belonged to an output that somebody had decided for and not seen through; now that is done.
    Finished,
    /// An input is not live any more.
    Gone,
    /// An input may not be compacted now, although it is live.
    Flagged(BlockId),
    /// Another instance is at work on an input, or took the job over.
    Taken,
    /// The job is not this instance's any more.
    Disowned,
}

impl Outcome {
    /// The label of the metric.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Compacted(_) => "compacted",
            Self::Finished => "finished",
            Self::Gone => "gone",
            Self::Flagged(_) => "nocompact",
            Self::Taken => "taken",
            Self::Disowned => "disowned",
        }
    }
}

/// What a job works with.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    pub(super) store: &'a Store,
    pub(super) blocklist: &'a Blocklist,
    pub(super) ownership: &'a dyn Ownership,
    pub(super) merge: &'a dyn Merge,
    pub(super) settings: &'a Settings,
    pub(super) ledger: &'a Ledger,
    pub(super) clock: &'a dyn Clock,
}

impl Runner<'_> {
    /// Does a job.
    pub(super) async fn run(&self, job: &Job, limits: &Limits) -> Result<Outcome, CompactError> {
        let tenant = &job.tenant;
        let mut inputs: Vec<BlockId> = job.inputs.iter().map(|meta| meta.block_id).collect();
        inputs.sort_unstable();
        let merge_settings = self.merge_settings(limits);
        let (output, decision) = self.output(tenant, &inputs, &merge_settings).await?;
        if let Some(Decision::Commit(meta)) = decision {
            self.finish(&meta).await?;
            return Ok(Outcome::Finished);
        }
        let seen = stream::iter(inputs.iter().map(|&input| self.look(tenant, input, output)).collect::<Vec<_>>());
        let seen: Vec<Seen> = seen.buffered(CONCURRENCY).try_collect().await?;
        let mut claims = Vec::new();
        let mut metas = Vec::new();
        for (&input, seen) in inputs.iter().zip(seen) {
            match seen {
                Seen::Live(meta, Holder::Nobody(number)) => {
                    claims.push((input, number));
                    metas.push(Arc::from(meta));
                }
                Seen::Live(meta, Holder::This) => metas.push(Arc::from(meta)),
                Seen::Live(_, Holder::Another(claim)) => {
                    tracing::info!(%tenant, block = %input, by = claim.by, output = %claim.output, "block is being compacted by another instance");
                    return Ok(Outcome::Taken);
                }
                Seen::Live(_, Holder::Committed(meta)) => {
                    self.finish(&meta).await?;
                    return Ok(Outcome::Finished);
                }
                Seen::Gone => {
                    self.blocklist.replace(tenant, &[input], Vec::new(), seconds_of(self.clock));
                    return Ok(Outcome::Gone);
                }
                Seen::Flagged => return Ok(Outcome::Flagged(input)),
            }
        }
        for meta in &metas {
            // Once an input is compacted, nothing says any more that the blocks it was made from are not live.
            bury(self.store, meta).await?;
        }
        let ours = Claim { output, inputs: inputs.clone(), by: self.ledger.instance.clone(), at: seconds_of(self.clock) };
        for (input, number) in claims {
            let made = self.ledger.claim(tenant, input, number, &ours).await?;
            // A claim of ours may have arrived although its answer did not.
            if !made && self.ledger.holder(tenant, input, output, seconds_of(self.clock)).await? != Holder::This {
                self.ledger.decide(tenant, output, Decision::Abort).await?;
                return Ok(Outcome::Taken);
            }
        }
        let merging = AssertUnwindSafe(self.merge.merge(self.store, &metas, output, &merge_settings)).catch_unwind();
        let Some(merged) = self.while_owned(job, output, merging).await else {
            self.ledger.decide(tenant, output, Decision::Abort).await?;
            return Ok(Outcome::Disowned);
        };
        let merged = merged.map_err(|_| CompactError::Panic { output })??;
        verify(self.store, &merged.meta).await?;
        let live = stream::iter(inputs.iter().map(|&input| is_live(self.store, tenant, input)).collect::<Vec<_>>());
        if !live.buffer_unordered(CONCURRENCY).try_all(std::future::ready).await? {
            self.ledger.decide(tenant, output, Decision::Abort).await?;
            return Ok(Outcome::Gone);
        }
        let commit = Decision::Commit(Box::new(merged.meta.clone()));
        match self.ledger.decide(tenant, output, commit).await? {
            Decision::Commit(meta) => {
                self.finish(&meta).await?;
                Ok(Outcome::Compacted(Box::new(merged)))
            }
            Decision::Abort => Ok(Outcome::Taken),
        }
    }

    fn merge_settings(&self, limits: &Limits) -> merge::Settings {
        let Settings { block, memory_bytes, threads, jobs, .. } = self.settings;
        merge::Settings {
            block: block.clone(),
            max_bytes_per_trace: limits.max_bytes_per_trace,
            memory_bytes: memory_bytes / jobs.max(&1),
            threads: (threads / jobs.max(&1)).max(1),
        }
    }

    /// The identity of the output, and what was decided about it, which is not to give it up. It follows from everything that decides the
    /// output's bytes, so an instance that was killed does the job again under the same name and leaves no garbage.
    async fn output(
        &self,
        tenant: &Tenant,
        inputs: &[BlockId],
        settings: &merge::Settings,
    ) -> Result<(BlockId, Option<Decision>), CompactError> {
        for attempt in 0..MAX_ATTEMPTS {
            let version = env!("CARGO_PKG_VERSION");
            let name = format!("{version}/{}/{tenant}/{inputs:?}/{settings:?}/{attempt}", self.ledger.instance);
            let output = BlockId::new_v5(&OUTPUTS, name.as_bytes());
            match self.ledger.decision(tenant, output).await? {
                Some(Decision::Abort) => {}
                decision => return Ok((output, decision)),
            }
        }
        Err(CompactError::Attempts { block: inputs.first().copied().unwrap_or_default(), most: MAX_ATTEMPTS })
    }

    async fn look(&self, tenant: &Tenant, input: BlockId, output: BlockId) -> Result<Seen, CompactError> {
        let Some(meta) = self.store.meta(tenant, input).await? else {
            if self.store.exists(tenant, input, "meta.json").await? {
                let what = "its meta.json is unreadable or belongs to another block".to_owned();
                return Err(BlockError::Corrupt { block: input, tenant: tenant.clone(), what }.into());
            }
            return Ok(Seen::Gone);
        };
        if self.store.exists(tenant, input, "meta.compacted.json").await? {
            // Somebody was stopped in the middle of marking it.
            self.store.mark_compacted(tenant, input).await?;
            return Ok(Seen::Gone);
        }
        if self.store.exists(tenant, input, "nocompact.flg").await? {
            return Ok(Seen::Flagged);
        }
        Ok(Seen::Live(Box::new(meta), self.ledger.holder(tenant, input, output, seconds_of(self.clock)).await?))
    }

    /// Waits for the work on an output as long as the job is this instance's, and tells others meanwhile.
    async fn while_owned<T>(&self, job: &Job, output: BlockId, work: impl Future<Output = T>) -> Option<T> {
        let lost = async {
            while self.ownership.owns(&job.key) {
                tokio::time::sleep(OWNERSHIP_CHECK).await;
            }
        };
        let lost = std::pin::pin!(lost);
        let alive = std::pin::pin!(self.ledger.keep_alive(&job.tenant, output, self.clock));
        match select(std::pin::pin!(work), select(lost, alive)).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// Sees an output through that was decided for.
    async fn finish(&self, output: &Meta) -> Result<(), CompactError> {
        finish(self.store, self.blocklist, output, self.clock).await
    }
}

/// Whether the bucket holds the file that the meta describes: soon it is the only copy.
pub(super) async fn verify(store: &Store, meta: &Meta) -> Result<(), CompactError> {
    if meta.total_objects == 0 {
        return Ok(());
    }
    let tail = meta.size.saturating_sub(8)..meta.size.saturating_add(1);
    let tail = store.get_ranges(&meta.tenant_id, meta.block_id, DATA, std::slice::from_ref(&tail)).await?;
    let expected = [&meta.footer_size.to_le_bytes(), b"PAR1".as_slice()].concat();
    if tail.first().is_some_and(|tail| **tail == expected) { Ok(()) } else { Err(CompactError::Torn { output: meta.block_id }) }
}

/// Whether a block is live.
pub(super) async fn is_live(store: &Store, tenant: &Tenant, block: BlockId) -> Result<bool, CompactError> {
    Ok(store.exists(tenant, block, "meta.json").await? && !store.exists(tenant, block, "meta.compacted.json").await?)
}

enum Seen {
    Live(Box<Meta>, Holder),
    Gone,
    Flagged,
}

/// Publishes an output that was decided for and marks its inputs. Repeating it changes nothing.
pub(super) async fn finish(store: &Store, blocklist: &Blocklist, output: &Meta, clock: &dyn Clock) -> Result<(), CompactError> {
    // A block of nothing is not written; its inputs had nothing.
    let is_empty = output.total_objects == 0;
    let publication = if is_empty { Publication::Compacted } else { publish(store, output).await? };
    if publication == Publication::Gone {
        return Err(CompactError::Vanished { output: output.block_id });
    }
    let marked = bury(store, output).await;
    let added = if publication == Publication::Live { vec![output.clone()] } else { Vec::new() };
    // Their bytes stay for a while from now on, for whoever has not heard of it, however long the merge took.
    blocklist.replace(&output.tenant_id, &output.compacted_from, added, seconds_of(clock));
    marked
}

/// Marks the blocks as compacted that a published output was made from. All are tried; the first failure is returned.
pub(super) async fn bury(store: &Store, output: &Meta) -> Result<(), CompactError> {
    // Nothing is made of itself, whatever a description in the bucket says.
    let inputs = output.compacted_from.iter().filter(|input| **input != output.block_id);
    let marks = inputs.map(|&input| store.mark_compacted(&output.tenant_id, input));
    let marks = stream::iter(marks.collect::<Vec<_>>()).buffer_unordered(CONCURRENCY).collect::<Vec<_>>().await;
    marks.into_iter().collect::<Result<(), _>>().map_err(CompactError::from)
}
