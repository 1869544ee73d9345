//! Looks at the bucket from time to time and tells the list (block-format.md §15).
//!
//! ```text
//!  every tenant ─┬─ builder ──► one listing, metas of new blocks ──► Found ─┬─► index.pb.zst, index.json.gz
//!                │      ▲                                                   │
//!                │      └── no index, a stale or a broken one ──┐           └─► Blocklist::apply
//!                └─ reader ──► index.pb.zst, if it changed ─────┴─► Found ────────────▲
//! ```
//!
//! **Cost.** One listing for the names of tenants; then per tenant one listing for a builder (a request per thousand objects on S3) and one
//! conditional read for a reader. Nothing is asked about blocks that are known. An index that would say the same again is written only
//! when the last one is five minutes old. What a poll cost is in its log line, in metrics and in [`Cost`].
//!
//! **Failure.** A tenant that fails keeps its list; when too many do, all lists stay as they are. An index that cannot be written is no
//! failure: its readers look themselves.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use prometheus::Registry;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::{
    Blocklist, Found, Poll,
    folders::{Look, look},
    index::{self, IndexError, TenantIndex},
    metrics::Metrics,
};
use crate::{
    backend::{Store, StoreError, Version},
    block::{Meta, chain},
    clock::Clock,
    id::{BlockId, Tenant},
    ownership::Ownership,
};

/// An index that says nothing new is written again when the last one is this old: what looks at its age expects that.
const INDEX_REFRESH: Duration = Duration::from_secs(300);
/// Pauses before the first poll is tried again: from this, doubling, to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// First polls that tolerate no failing tenant: one that has no list yet would seem to be empty.
const STRICT_POLLS: usize = 6;

/// How the bucket is polled. Keys are below `storage.trace`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `blocklist_poll`: from the end of one poll to the beginning of the next. Zero means the default.
    pub interval: Duration,
    /// `blocklist_poll_concurrency`: metas of a tenant that are read at the same time. Zero means the default.
    pub concurrency: usize,
    /// `blocklist_poll_tenant_concurrency`: tenants that are polled at the same time; 0 means 1.
    pub tenant_concurrency: usize,
    /// `blocklist_poll_fallback`: without a usable index, look and write one.
    pub fallback: bool,
    /// `blocklist_poll_tenant_index_builders`: processes that build the index of a tenant.
    pub index_builders: usize,
    /// `blocklist_poll_stale_tenant_index`: an older index is not used; zero means that none is too old.
    pub stale_index: Duration,
    /// `blocklist_poll_jitter_ms`: each read of a meta waits up to this long, so that not all arrive at once.
    pub jitter: Duration,
    /// `blocklist_poll_tolerate_consecutive_errors`: times that a tenant is tried again.
    pub tolerate_consecutive_errors: usize,
    /// `blocklist_poll_tolerate_tenant_failures`: tenants that may fail without the poll being thrown away.
    pub tolerate_tenant_failures: usize,
    /// `empty_tenant_deletion_enabled`, `empty_tenant_deletion_age`: what lies below a tenant without blocks is deleted when nothing of
    /// it is younger than this. Zero means 12 hours, none means never.
    pub empty_tenant_deletion: Option<Duration>,
    /// For a process that polls to compact and not to answer: blocks with a `nocompact.flg` are neither listed nor in its index.
    pub skip_no_compact: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            concurrency: 50,
            tenant_concurrency: 0,
            fallback: true,
            index_builders: 2,
            stale_index: Duration::ZERO,
            jitter: Duration::ZERO,
            tolerate_consecutive_errors: 1,
            tolerate_tenant_failures: 1,
            empty_tenant_deletion: None,
            skip_no_compact: false,
            seed: 0,
        }
    }
}

/// What a poll asked of the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Listings of the tenants.
    pub tenant_listings: u64,
    /// Listings of a tenant's objects.
    pub listings: u64,
    /// Objects in them; S3 takes a request for each thousand.
    pub objects_listed: u64,
    /// Reads of `meta.json` and `meta.compacted.json`.
    pub metas_read: u64,
    /// Reads of an index, or of its absence.
    pub indexes_read: u64,
    /// Answers that an index is as it was.
    pub indexes_unchanged: u64,
    /// Index objects written.
    pub indexes_written: u64,
    /// Objects deleted.
    pub deletions: u64,
    /// Bytes of indexes read.
    pub bytes_read: u64,
    /// Bytes of indexes written.
    pub bytes_written: u64,
}

/// Why a poll, or one of a tenant, has no result.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// The bucket refused something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index is not one.
    #[error("\"{name}\" of tenant \"{tenant}\" is broken")]
    Broken {
        /// The object.
        name: &'static str,
        /// The tenant.
        tenant: Tenant,
        /// What is wrong with it.
        source: IndexError,
    },
    /// An index is larger than any should be.
    #[error("\"{name}\" of tenant \"{tenant}\" has {bytes} bytes, which is too much")]
    TooLarge {
        /// The object.
        name: &'static str,
        /// The tenant.
        tenant: Tenant,
        /// Its size.
        bytes: u64,
    },
    /// There is no index.
    #[error("tenant \"{0}\" has no index")]
    Missing(Tenant),
    /// The index is too old.
    #[error("the index of tenant \"{tenant}\" is {age:?} old")]
    Stale {
        /// The tenant.
        tenant: Tenant,
        /// Its age.
        age: Duration,
    },
    /// Something was to be computed and was not: a defect.
    #[error("a worker of the poll failed")]
    Worker(#[from] tokio::task::JoinError),
    /// Too many tenants failed; all lists stay as they are.
    #[error("{failed} tenants failed, among them \"{tenant}\"")]
    Tenants {
        /// How many.
        failed: usize,
        /// One of them.
        tenant: Tenant,
        /// What failed there.
        source: Box<PollError>,
    },
}

/// What is known of a tenant from the last poll.
#[derive(Debug)]
struct Last {
    found: Found,
    /// The index that this came from, if it did.
    read: Option<ReadIndex>,
    /// When this process wrote the index of this, if it did.
    written_at: Option<Duration>,
}

#[derive(Clone, Debug)]
struct ReadIndex {
    name: &'static str,
    tag: Option<String>,
    created_at: Duration,
}

/// Polls a bucket for a list. See the module documentation.
pub struct Poller {
    store: Store,
    list: Blocklist,
    settings: Settings,
    ownership: Arc<dyn Ownership>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    random: Mutex<ChaCha8Rng>,
    last: Mutex<HashMap<Tenant, Last>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("settings", &self.settings).field("ownership", &self.ownership).finish_non_exhaustive()
    }
}

impl Poller {
    /// A poller that has not polled yet.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        store: Store,
        list: Blocklist,
        mut settings: Settings,
        ownership: Arc<dyn Ownership>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let defaults = Settings::default();
        if settings.interval.is_zero() {
            settings.interval = defaults.interval;
        }
        if settings.concurrency == 0 {
            settings.concurrency = defaults.concurrency;
        }
        Ok(Self {
            store,
            list,
            ownership,
            clock,
            metrics: Metrics::new(registry)?,
            random: Mutex::new(ChaCha8Rng::seed_from_u64(settings.seed)),
            last: Mutex::default(),
            settings,
        })
    }

    /// Polls until it succeeds, and says why it does not: without a first result, queries would silently miss blocks. A tenant that goes
    /// on failing holds the others up for some tries only.
    ///
    /// # Errors
    /// The bucket refuses to list the tenants, which trying again would not change.
    pub async fn first_poll(&self, failed: impl Fn(&str)) -> Result<(), StoreError> {
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let tolerated = if tries > STRICT_POLLS { self.settings.tolerate_tenant_failures } else { 0 };
            let error = match self.poll_tolerating(tolerated).await {
                Ok(_) => break,
                // What a tenant's blocks or index say comes as the failure of that tenant.
                Err(PollError::Store(refusal)) if refusal.is_refusal() => return Err(refusal),
                Err(error) => error,
            };
            let why = chain(&error);
            tracing::warn!(error = why, again_in = ?pause, "the bucket cannot be polled yet");
            failed(&why);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE).min(self.settings.interval);
        }
        Ok(())
    }

    /// Polls from time to time, beginning with a pause, until `shutdown` ends. A poll under way is given up then.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let polls = async {
            loop {
                tokio::time::sleep(self.settings.interval).await;
                if let Err(error) = self.poll().await {
                    tracing::error!(error = chain(&error), "the bucket cannot be polled, the blocklist stays as it is");
                }
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = polls => {}
        }
    }

    /// Polls once, and says what that cost.
    ///
    /// # Errors
    /// The tenants cannot be listed, or too many of them failed: the list is as it was.
    pub async fn poll(&self) -> Result<Cost, PollError> {
        self.poll_tolerating(self.settings.tolerate_tenant_failures).await
    }

    async fn poll_tolerating(&self, failures: usize) -> Result<Cost, PollError> {
        let began = Instant::now();
        let poll = self.list.begin_poll();
        let cost = Mutex::new(Cost::default());
        let outcome = self.poll_tenants(poll, failures, &cost).await;
        let cost = *cost.lock();
        self.metrics.duration.observe(began.elapsed().as_secs_f64());
        self.metrics.count(&cost);
        let tenants = outcome?;
        tracing::info!(
            tenants,
            listings = cost.tenant_listings + cost.listings,
            objects_listed = cost.objects_listed,
            metas_read = cost.metas_read,
            indexes_read = cost.indexes_read,
            indexes_unchanged = cost.indexes_unchanged,
            indexes_written = cost.indexes_written,
            deletions = cost.deletions,
            bytes_read = cost.bytes_read,
            bytes_written = cost.bytes_written,
            elapsed = ?began.elapsed(),
            "blocklist polled"
        );
        Ok(cost)
    }

    async fn poll_tenants(&self, poll: Poll, tolerated: usize, cost: &Mutex<Cost>) -> Result<usize, PollError> {
        cost.lock().tenant_listings += 1;
        let tenants = self.store.tenants().await.inspect_err(|_| self.metrics.errors.with_label_values(&[""]).inc())?;
        let polls: Vec<_> = tenants
            .iter()
            .map(|tenant| async move {
                let outcome = self.poll_tenant_until_it_works(tenant, cost).await;
                (tenant, outcome)
            })
            .collect();
        let mut polls = pin!(stream::iter(polls).buffer_unordered(self.settings.tenant_concurrency.max(1)));
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        while let Some((tenant, outcome)) = polls.next().await {
            match outcome {
                Ok(blocks) => found.push((tenant, blocks)),
                Err(error) => failed.push((tenant, error)),
            }
        }
        if failed.len() > tolerated
            && let Some((tenant, source)) = failed.pop()
        {
            return Err(PollError::Tenants { failed: failed.len() + 1, tenant: tenant.clone(), source: Box::new(source) });
        }
        let two_polls_ago = self.clock.now().saturating_sub(self.settings.interval * 2);
        for (tenant, blocks) in found {
            self.list.apply(poll, tenant, blocks, seconds(two_polls_ago));
            self.metrics.show(&self.list, tenant);
        }
        let listed: HashSet<&Tenant> = tenants.iter().collect();
        for gone in self.list.known_tenants().iter().filter(|tenant| !listed.contains(tenant)) {
            self.list.apply(poll, gone, Found::default(), i64::MAX);
        }
        self.last.lock().retain(|tenant, _| {
            let stays = listed.contains(tenant);
            if !stays {
                self.metrics.forget(tenant);
            }
            stays
        });
        Ok(tenants.len())
    }

    async fn poll_tenant_until_it_works(&self, tenant: &Tenant, cost: &Mutex<Cost>) -> Result<Found, PollError> {
        let mut errors = 0;
        loop {
            let error = match self.poll_tenant(tenant, cost).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            errors += 1;
            tracing::warn!(%tenant, error = chain(&error), errors, "tenant cannot be polled");
            if errors > self.settings.tolerate_consecutive_errors {
                self.metrics.errors.with_label_values(&[tenant.as_str()]).inc();
                return Err(error);
            }
        }
    }

    async fn poll_tenant(&self, tenant: &Tenant, cost: &Mutex<Cost>) -> Result<Found, PollError> {
        let is_builder = (0..self.settings.index_builders).any(|n| self.ownership.owns(&format!("build-tenant-index-{n}-{tenant}")));
        let gauge = self.metrics.index_builder.with_label_values(&[tenant.as_str()]);
        if !is_builder {
            gauge.set(0);
            match self.read_index(tenant, cost).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    self.metrics.index_errors.with_label_values(&[tenant.as_str()]).inc();
                    if !self.settings.fallback {
                        return Err(error);
                    }
                    tracing::warn!(%tenant, error = chain(&error), "tenant index cannot be used, looking at the bucket");
                }
            }
        }
        gauge.set(1);
        self.look(tenant, cost).await
    }

    /// Takes what another process found.
    async fn read_index(&self, tenant: &Tenant, cost: &Mutex<Cost>) -> Result<Found, PollError> {
        for name in [index::PROTOBUF, index::JSON] {
            let known = self.last.lock().get(tenant).and_then(|last| last.read.clone()).filter(|read| read.name == name);
            let tag = known.as_ref().and_then(|read| read.tag.as_deref());
            let version = self.store.version_of_tenant(tenant, name, tag, index::MAX_BYTES).await?;
            let (created_at, found) = match version {
                Version::Missing => {
                    cost.lock().indexes_read += 1;
                    continue;
                }
                Version::TooLarge(bytes) => return Err(PollError::TooLarge { name, tenant: tenant.clone(), bytes }),
                Version::Unchanged => {
                    cost.lock().indexes_unchanged += 1;
                    let last = self.last.lock();
                    let (Some(known), Some(last)) = (known, last.get(tenant)) else { return Err(PollError::Missing(tenant.clone())) };
                    (known.created_at, last.found.clone())
                }
                Version::Changed(bytes, tag) => {
                    {
                        let mut cost = cost.lock();
                        cost.indexes_read += 1;
                        cost.bytes_read += bytes.len() as u64;
                    }
                    let owner = tenant.clone();
                    let decode = if name == index::PROTOBUF { TenantIndex::from_protobuf } else { TenantIndex::from_json };
                    let decoded = tokio::task::spawn_blocking(move || decode(&bytes, &owner)).await?;
                    let TenantIndex { created_at, found } =
                        decoded.map_err(|source| PollError::Broken { name, tenant: tenant.clone(), source })?;
                    let read = Some(ReadIndex { name, tag, created_at });
                    self.last.lock().insert(tenant.clone(), Last { found: found.clone(), read, written_at: None });
                    (created_at, found)
                }
            };
            let age = self.clock.now().saturating_sub(created_at);
            if !self.settings.stale_index.is_zero() && age > self.settings.stale_index {
                return Err(PollError::Stale { tenant: tenant.clone(), age });
            }
            self.show_age(tenant, age);
            return Ok(found);
        }
        Err(PollError::Missing(tenant.clone()))
    }

    /// Looks at the folders, and tells others.
    async fn look(&self, tenant: &Tenant, cost: &Mutex<Cost>) -> Result<Found, PollError> {
        let known = self.known(tenant);
        let delay = || self.delay();
        let settings = &self.settings;
        let look_at = Look {
            known: &known,
            concurrency: settings.concurrency,
            skip_no_compact: settings.skip_no_compact,
            delay: &delay,
            now: seconds(self.clock.now()),
        };
        cost.lock().listings += 1;
        let seen = look(&self.store, tenant, &look_at).await?;
        {
            let mut cost = cost.lock();
            cost.objects_listed += seen.objects;
            cost.metas_read += seen.reads;
        }
        let found = seen.found;
        let written_at = if found.live.is_empty() && found.compacted.is_empty() {
            self.clear(tenant, seen.objects, cost).await;
            None
        } else {
            self.write_index(tenant, &found, cost).await
        };
        self.last.lock().insert(tenant.clone(), Last { found: found.clone(), read: None, written_at });
        Ok(found)
    }

    /// Descriptions of blocks that need not be read.
    fn known(&self, tenant: &Tenant) -> HashMap<BlockId, Arc<Meta>> {
        let (live, compacted) = (self.list.blocks(tenant), self.list.compacted(tenant));
        let mut known: HashMap<_, _> = live.iter().map(|meta| (meta.block_id, Arc::clone(meta))).collect();
        known.extend(compacted.iter().map(|compacted| (compacted.meta.block_id, Arc::clone(&compacted.meta))));
        if let Some(Last { found, .. }) = self.last.lock().get(tenant) {
            let metas = found.live.iter().chain(found.compacted.iter().map(|(meta, _)| meta));
            known.extend(metas.map(|meta| (meta.block_id, Arc::clone(meta))));
        }
        known
    }

    fn delay(&self) -> Duration {
        let jitter = u64::try_from(self.settings.jitter.as_nanos()).unwrap_or(u64::MAX);
        if jitter == 0 { Duration::ZERO } else { Duration::from_nanos(self.random.lock().next_u64() % jitter) }
    }

    /// Writes both indexes, unless they would say the same again, and says when this was written. A failure is logged.
    async fn write_index(&self, tenant: &Tenant, found: &Found, cost: &Mutex<Cost>) -> Option<Duration> {
        let now = self.clock.now();
        let stale = self.settings.stale_index;
        let refresh = if stale.is_zero() { INDEX_REFRESH } else { INDEX_REFRESH.min(stale / 2) };
        let written_at = self.last.lock().get(tenant).filter(|last| last.found == *found).and_then(|last| last.written_at);
        if let Some(age) = written_at.map(|at| now.saturating_sub(at)).filter(|age| *age < refresh) {
            self.show_age(tenant, age);
            return written_at;
        }
        let index = TenantIndex { created_at: now, found: found.clone() };
        match self.put_index(tenant, index, cost).await {
            Ok(()) => {
                self.show_age(tenant, Duration::ZERO);
                Some(now)
            }
            Err(error) => {
                tracing::warn!(%tenant, error = chain(&error), "tenant index cannot be written");
                None
            }
        }
    }

    async fn put_index(&self, tenant: &Tenant, index: TenantIndex, cost: &Mutex<Cost>) -> Result<(), PollError> {
        let encoded = tokio::task::spawn_blocking(move || {
            let protobuf = index.to_protobuf().map_err(|source| (index::PROTOBUF, source))?;
            let json = index.to_json().map_err(|source| (index::JSON, source))?;
            Ok([(index::PROTOBUF, protobuf), (index::JSON, json)])
        });
        let broken = |(name, source)| PollError::Broken { name, tenant: tenant.clone(), source };
        for (name, bytes) in encoded.await?.map_err(broken)? {
            {
                let mut cost = cost.lock();
                cost.indexes_written += 1;
                cost.bytes_written += bytes.len() as u64;
            }
            self.store.put_of_tenant(tenant, name, Bytes::from(bytes)).await?;
        }
        Ok(())
    }

    /// There are no blocks: takes the indexes away, once, and in time all the rest. A failure is logged.
    async fn clear(&self, tenant: &Tenant, objects: u64, cost: &Mutex<Cost>) {
        if objects == 0 {
            return;
        }
        let cleared = self.last.lock().get(tenant).is_some_and(|last| last.found.live.is_empty() && last.found.compacted.is_empty());
        let deleted = async {
            if !cleared {
                for name in [index::PROTOBUF, index::JSON] {
                    cost.lock().deletions += 1;
                    self.store.delete_of_tenant(tenant, name).await?;
                }
            }
            if let Some(age) = self.settings.empty_tenant_deletion {
                let age = if age.is_zero() { Duration::from_secs(12 * 3600) } else { age };
                let deleted = self.store.delete_tenant(tenant, seconds(self.clock.now().saturating_sub(age))).await?;
                if let Some(deleted) = deleted {
                    cost.lock().deletions += deleted as u64;
                    tracing::info!(%tenant, objects = deleted, "tenant without blocks deleted");
                }
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = deleted.await {
            tracing::warn!(%tenant, error = chain(&error), "tenant without blocks cannot be cleared");
        }
    }

    fn show_age(&self, tenant: &Tenant, age: Duration) {
        self.metrics.index_age.with_label_values(&[tenant.as_str()]).set(seconds(age));
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
