//! What a cache is configured by. Plain data; the YAML keys are named at each field.

use std::time::Duration;

use super::Role;

/// Memcached reads a longer time to live as a point in time.
const MAX_TTL_SECONDS: u32 = 30 * 24 * 3600;

/// The cache as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of the in-process tier, keys and bookkeeping included. Follows from the process's memory.
    pub local_bytes: u64,
    /// Larger ranges are not cached as [`Role::ParquetPage`]: `storage.trace.search.read_buffer_size_bytes`.
    pub max_page_bytes: u64,
    /// Blooms of blocks above this compaction level are not cached, 0 is no limit: `storage.trace.cache_min_compaction_level`, whose
    /// name says the opposite of what Tempo does with it.
    pub max_bloom_compaction_level: u32,
    /// Blooms of blocks that began longer ago are not cached, zero is no limit: `storage.trace.cache_max_block_age`.
    pub max_bloom_block_age: Duration,
    /// Caches outside of the process: `cache.caches`, and what the legacy `storage.trace.cache` means.
    pub memcached: Vec<Memcached>,
}

impl Default for Settings {
    /// Tempo's defaults, and 64 MiB in the process.
    fn default() -> Self {
        Self {
            local_bytes: 64 << 20,
            max_page_bytes: 1 << 20,
            max_bloom_compaction_level: 0,
            max_bloom_block_age: Duration::ZERO,
            memcached: Vec::new(),
        }
    }
}

/// One memcached, or several that share the keys: `cache.caches[].memcached` or `storage.trace.memcached`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memcached {
    /// Its label in metrics; empty is the roles with a vertical bar between them.
    pub name: String,
    /// What it caches: `cache.caches[].roles`. A role is in at most one.
    pub roles: Vec<Role>,
    /// `host`: looked up as the SRV record `_<service>._tcp.<host>`, or by itself when there is no `service`.
    pub host: String,
    /// `service`.
    pub service: String,
    /// `addresses`, separated by commas: `host:port`, `dns+host:port`, `dnssrv+name` or `dnssrvnoa+name`. Go before `host`.
    pub addresses: String,
    /// How long a caller waits for a look-up, and a worker for a write: `timeout`.
    pub timeout: Duration,
    /// Connections to each server for look-ups: `max_idle_conns`, of which no more than eight are opened.
    pub max_idle_conns: usize,
    /// Larger values are not written; 0 is no limit: `max_item_size`.
    pub max_item_size: usize,
    /// How often names are looked up: `update_interval`.
    pub update_interval: Duration,
    /// Keys stay where they are when servers come and go: `consistent_hash`.
    pub consistent_hash: bool,
    /// Failures in a row after which a server is left alone; 0 is three: `circuit_breaker_consecutive_failures`.
    pub circuit_breaker_consecutive_failures: u32,
    /// For how long; zero is a second, doubled with every probe that fails, up to a minute: `circuit_breaker_timeout`.
    pub circuit_breaker_timeout: Duration,
    /// Failures this long ago no longer count; zero counts them until there is a success: `circuit_breaker_interval`.
    pub circuit_breaker_interval: Duration,
    /// How long memcached keeps a value; zero is for ever: `ttl`.
    pub ttl: Duration,
    /// Writes under way at the same time: `cache.background.writeback_goroutines`.
    pub writers: usize,
    /// Writes that wait: `cache.background.writeback_buffer`.
    pub queue_entries: usize,
    /// Bytes of writes that wait.
    pub queue_bytes: usize,
}

impl Default for Memcached {
    /// Tempo's defaults, no server, and 64 MiB of writes that wait.
    fn default() -> Self {
        Self {
            name: String::new(),
            roles: Vec::new(),
            host: String::new(),
            service: String::new(),
            addresses: String::new(),
            timeout: Duration::from_millis(100),
            max_idle_conns: 16,
            max_item_size: 0,
            update_interval: Duration::from_secs(60),
            consistent_hash: false,
            circuit_breaker_consecutive_failures: 0,
            circuit_breaker_timeout: Duration::ZERO,
            circuit_breaker_interval: Duration::ZERO,
            ttl: Duration::ZERO,
            writers: 10,
            queue_entries: 10_000,
            queue_bytes: 64 << 20,
        }
    }
}

impl Memcached {
    /// Its label in metrics.
    pub(super) fn label(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        self.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join("|")
    }

    /// The time to live as memcached takes it: whole seconds, rounded up, at most 30 days; 0 is for ever.
    pub(super) fn ttl_seconds(&self) -> u32 {
        let seconds = self.ttl.as_secs().saturating_add(u64::from(self.ttl.subsec_nanos() > 0));
        u32::try_from(seconds).unwrap_or(u32::MAX).min(MAX_TTL_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_never_read_as_for_ever_or_as_a_date() {
        let seconds = |ttl| Memcached { ttl, ..Memcached::default() }.ttl_seconds();
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(48 * 3600)), 172_800);
        assert_eq!(seconds(Duration::from_secs(31 * 24 * 3600)), 2_592_000);
        assert_eq!(seconds(Duration::MAX), 2_592_000);
    }
}
