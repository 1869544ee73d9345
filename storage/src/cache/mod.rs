//! What was read from the bucket before, by role (block-format.md §10.4).
//!
//! ```text
//!  look-up ──► in the process ──none──► memcached of the role, if it has one ──none──► bucket
//!                   ▲                          │                                          │
//!                   └──────────────────────────┴──────────────────────────────────────────┤
//!                                              ▲ in the background                        │
//!                                              └──────────────────────────────────────────┘
//! ```
//!
//! Objects of a block never change, so there is nothing to invalidate: an entry is right for as long as it is kept, and is pushed out by
//! what is asked for more often. A key says all there is to say about its value, whatever the role: `<tenant>:<block>:<name>` for a whole
//! object and `<tenant>:<block>:<name>:<offset>:<length>` for a range, as Tempo has them.
//!
//! Invariants: a cache makes nothing fail, since what goes wrong is a miss; the tier in the process stays below its bytes, keys and
//! bookkeeping included, and holds no buffer that is larger than its entry; of several callers that want the same object at the same time
//! one fetches it.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use prometheus::Registry;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync};

pub use self::settings::{Memcached as MemcachedSettings, Settings};
use self::{
    memcached::Memcached,
    metrics::{Gauges, Metrics},
};
use crate::{block::Meta, clock::Clock};

mod memcached;
mod metrics;
mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
pub(crate) mod tests;

/// Bookkeeping of an entry in the process: its place in the table and in the queue, and two allocations.
const ENTRY_BYTES: u64 = 160;
/// Entries larger than a shard are not kept: this leaves room for footers, blooms and pages of the usual sizes.
const SHARD_BYTES: u64 = 8 << 20;
/// More shards than this are of no use.
const MOST_SHARDS: u64 = 32;

/// What a cached thing is, which decides where it is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Whole bloom filters.
    Bloom,
    /// The `index` object.
    TraceIdIndex,
    /// Parquet footers.
    ParquetFooter,
    /// Column indexes.
    ParquetColumnIdx,
    /// Offset indexes.
    ParquetOffsetIdx,
    /// Pages, dictionaries, whole small chunks.
    ParquetPage,
    /// Answers of search jobs.
    FrontendSearch,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bloom,
        Self::TraceIdIndex,
        Self::ParquetFooter,
        Self::ParquetColumnIdx,
        Self::ParquetOffsetIdx,
        Self::ParquetPage,
        Self::FrontendSearch,
    ];

    /// Its name in configurations and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bloom => "bloom",
            Self::TraceIdIndex => "trace-id-index",
            Self::ParquetFooter => "parquet-footer",
            Self::ParquetColumnIdx => "parquet-column-idx",
            Self::ParquetOffsetIdx => "parquet-offset-idx",
            Self::ParquetPage => "parquet-page",
            Self::FrontendSearch => "frontend-search",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A cache is configured with something that is not understood.
    #[error("cache \"{name}\": {what}")]
    Settings {
        /// The cache: its roles.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Its metrics are registered already.
    #[error("metrics of the cache cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// The caches of all roles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Shared>);

struct Shared {
    settings: Settings,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    local: Local,
    memcached: Vec<Memcached>,
}

type Local = sync::Cache<String, Bytes, Weight>;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("settings", &self.settings).field("local_bytes", &self.local.weight()).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<String, Bytes> for Weight {
    fn weight(&self, key: &String, value: &Bytes) -> u64 {
        key.len() as u64 + value.len() as u64 + ENTRY_BYTES
    }
}

impl Cache {
    /// The caches that the settings describe. Servers are looked up and asked in the background of the runtime that this is called in, so
    /// that one that is away keeps nobody from starting.
    ///
    /// # Errors
    /// Addresses that are not understood, a role in two caches, metrics that exist already.
    pub fn start(settings: Settings, clock: Arc<dyn Clock>, registry: &Registry) -> Result<Self, CacheError> {
        let metrics = Arc::new(Metrics::register(registry)?);
        for (index, cache) in settings.memcached.iter().enumerate() {
            let taken = |role: &&Role| settings.memcached[..index].iter().any(|other| other.roles.contains(role));
            if let Some(role) = cache.roles.iter().find(taken) {
                let what = format!("role {} is claimed by more than one cache", role.name());
                return Err(CacheError::Settings { name: cache.label(), what });
            }
        }
        let start = |cache: &MemcachedSettings| {
            Memcached::start(cache.clone(), Arc::clone(&metrics)).map_err(|what| CacheError::Settings { name: cache.label(), what })
        };
        let memcached = settings.memcached.iter().map(start).collect::<Result<_, _>>()?;
        let local = local(settings.local_bytes);
        let shared = Arc::new(Shared { settings, clock, metrics, local, memcached });
        let state = Arc::downgrade(&shared);
        registry.register(Box::new(Gauges::new(move |gauges| {
            let Some(shared) = state.upgrade() else { return };
            gauges.set_local(shared.local.weight(), shared.local.len());
            shared.memcached.iter().for_each(|cache| gauges.set_servers(cache.name(), cache.servers(), cache.open_servers()));
        })?))?;
        Ok(Self(shared))
    }

    /// What is cached of `keys`, in their order. Never an error: what cannot be read is not cached.
    pub async fn get(&self, role: Role, keys: &[String]) -> Vec<Option<Bytes>> {
        self.get_whole(role, keys, |_, _| true).await
    }

    /// As [`Cache::get`], where `is_whole` tells of which bytes the key of this number can be: others are as good as none.
    pub(crate) async fn get_whole(&self, role: Role, keys: &[String], is_whole: impl Fn(usize, &Bytes) -> bool) -> Vec<Option<Bytes>> {
        let mut found: Vec<Option<Bytes>> = keys.iter().map(|key| self.0.local.get(key)).collect();
        let known = found.iter().flatten().count();
        self.count(role, "local", known);
        if known == keys.len() {
            return found;
        }
        if let Some(far) = self.far(role) {
            let missing: Vec<&str> = keys.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(key, _)| key.as_str()).collect();
            let values = far.get(&missing).await;
            for (index, (key, place)) in keys.iter().zip(&mut found).enumerate() {
                if place.is_none()
                    && let Some(value) = values.get(key).filter(|value| is_whole(index, value))
                {
                    self.0.local.insert(key.clone(), value.clone());
                    *place = Some(value.clone());
                }
            }
        }
        let known_now = found.iter().flatten().count();
        self.count(role, "memcached", known_now - known);
        self.count(role, "none", keys.len() - known_now);
        found
    }

    /// Caches a value: in the process now, in memcached soon and if there is room. Should be no part of something larger, which would be
    /// kept whole.
    pub fn put(&self, role: Role, key: String, value: Bytes) {
        if let Some(far) = self.far(role) {
            far.put(key.clone(), value.clone());
        }
        // Nothing of ours reads it.
        if role != Role::TraceIdIndex {
            self.0.local.insert(key, value);
        }
    }

    /// A value from the cache, or else fetched and cached. Of those who want the same at the same time one fetches it; if that fails, or
    /// is given up, the next one tries. `is_whole` tells what can be a value: other bytes are as good as none.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub async fn get_or_fetch<E>(
        &self,
        role: Role,
        key: &str,
        is_whole: impl Fn(&Bytes) -> bool,
        fetch: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, E> {
        let guard = match self.0.local.get_value_or_guard_async(key).await {
            Ok(known) if is_whole(&known) => {
                self.count(role, "local", 1);
                return Ok(known);
            }
            Ok(_) => None,
            Err(guard) => Some(guard),
        };
        let far = self.far(role);
        let found = match far {
            Some(far) => far.get(&[key]).await.remove(key).filter(|value| is_whole(value)),
            None => None,
        };
        self.count(role, if found.is_some() { "memcached" } else { "none" }, 1);
        let value = match found {
            Some(value) => value,
            None => {
                let value = fetch.await?;
                if !is_whole(&value) {
                    // Whoever asked will say what is wrong with it.
                    return Ok(value);
                }
                // Often a part of something larger, which would be kept whole.
                let value = Bytes::copy_from_slice(&value);
                if let Some(far) = far {
                    far.put(key.to_owned(), value.clone());
                }
                value
            }
        };
        match guard {
            // An error here says that the entry was removed meanwhile, which does not matter.
            Some(guard) => drop(guard.insert(value.clone())),
            None => self.0.local.insert(key.to_owned(), value.clone()),
        }
        Ok(value)
    }

    /// Whether values of a role outlive the process: without that, answers of search jobs are not worth caching.
    pub fn outlives_process(&self, role: Role) -> bool {
        self.far(role).is_some()
    }

    /// Largest range that is cached as a page.
    pub(crate) fn max_page_bytes(&self) -> u64 {
        self.0.settings.max_page_bytes
    }

    /// Whether the bloom filters of a block are cached.
    pub(crate) fn takes_blooms_of(&self, meta: &Meta) -> bool {
        let Settings { max_bloom_compaction_level, max_bloom_block_age, .. } = &self.0.settings;
        let age = i64::try_from(self.0.clock.now().as_secs()).unwrap_or(i64::MAX).saturating_sub(meta.start_time);
        let oldest = i64::try_from(max_bloom_block_age.as_secs()).unwrap_or(i64::MAX);
        (*max_bloom_compaction_level == 0 || meta.compaction_level <= *max_bloom_compaction_level)
            && (max_bloom_block_age.is_zero() || age <= oldest)
    }

    fn far(&self, role: Role) -> Option<&Memcached> {
        let place = self.0.settings.memcached.iter().position(|cache| cache.roles.contains(&role))?;
        self.0.memcached.get(place)
    }

    fn count(&self, role: Role, found: &str, number: usize) {
        self.0.metrics.lookups.with_label_values(&[role.name(), found]).inc_by(number as u64);
    }
}

fn local(bytes: u64) -> Local {
    let shards = usize::try_from((bytes / SHARD_BYTES).clamp(1, MOST_SHARDS)).unwrap_or(1);
    // Most entries are pages of some tens of kilobytes.
    let entries = usize::try_from(bytes / (16 << 10)).unwrap_or(usize::MAX).clamp(64, 1 << 20);
    let options = OptionsBuilder::new().shards(shards).weight_capacity(bytes).estimated_items_capacity(entries).build();
    let options = options.unwrap_or_else(|error| unreachable!("all that is required is set: {error}"));
    Local::with_options(options, Weight, DefaultHashBuilder::default(), sync::DefaultLifecycle::default())
}
