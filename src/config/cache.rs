//! `cache`, and what the legacy `storage.trace.cache` means: the same, for the roles that it always had.

use std::time::Duration;

use storage::cache::{MemcachedSettings, Role};

use super::Settings;

/// The cache's name where it is configured in the legacy form.
const LEGACY: &str = "legacy";
/// The keys below `storage.trace.search.cache_control`, and what each adds to the legacy cache.
const CACHE_CONTROL: [(&str, Role); 3] =
    [("footer", Role::ParquetFooter), ("column_index", Role::ParquetColumnIdx), ("offset_index", Role::ParquetOffsetIdx)];

/// The caches.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// All but the size of the tier in the process, which follows from the memory.
    pub(crate) settings: storage::cache::Settings,
    /// A key that asks for something that this version doesn't have: starting without would be slower than what was asked for.
    pub(crate) unavailable: Option<String>,
}

/// The caches of a configuration without [`problems`].
pub(super) fn cache(s: &Settings) -> Cache {
    let mut cache = Cache {
        settings: storage::cache::Settings {
            max_page_bytes: s.number("storage.trace.search.read_buffer_size_bytes"),
            max_bloom_compaction_level: u32::try_from(s.number("storage.trace.cache_min_compaction_level")).unwrap_or(u32::MAX),
            max_bloom_block_age: s.duration("storage.trace.cache_max_block_age"),
            ..storage::cache::Settings::default()
        },
        unavailable: None,
    };
    for (index, entry) in s.blocks("cache.caches").into_iter().enumerate() {
        let roles = entry.strings("roles").iter().filter_map(|role| Role::from_name(role)).collect();
        let key = format!("cache.caches[{index}]");
        if entry.any_written("redis") {
            cache.unavailable.get_or_insert(format!("{key}.redis"));
        } else {
            cache.add(memcached(entry, "memcached", s, "cache.background", "", roles), entry.flag("memcached.tls_enabled"), &key);
        }
    }
    match s.text("storage.trace.cache") {
        "memcached" => {
            let roles = legacy_roles(s);
            let memcached = memcached(s, "storage.trace.memcached", s, "storage.trace.background_cache", LEGACY, roles);
            cache.add(memcached, s.flag("storage.trace.memcached.tls_enabled"), "storage.trace");
        }
        "redis" => drop(cache.unavailable.get_or_insert("storage.trace.cache: redis".to_owned())),
        _ => {}
    }
    cache
}

impl Cache {
    fn add(&mut self, memcached: MemcachedSettings, is_encrypted: bool, key: &str) {
        if is_encrypted {
            // Sending values in the clear where encryption was asked for would be worse than not starting.
            self.unavailable.get_or_insert(format!("{key}.memcached.tls_enabled"));
        }
        self.settings.memcached.push(memcached);
    }
}

/// A block `memcached` below `path`, and its write-back below `background`.
fn memcached(block: &Settings, path: &str, s: &Settings, background: &str, name: &str, roles: Vec<Role>) -> MemcachedSettings {
    let key = |key: &str| format!("{path}.{key}");
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let default = MemcachedSettings::default();
    // Nothing means the default, as it does in Tempo.
    let duration = |name: &str, default: Duration| Some(block.duration(&key(name))).filter(|it| !it.is_zero()).unwrap_or(default);
    MemcachedSettings {
        name: name.to_owned(),
        roles,
        host: block.text(&key("host")).to_owned(),
        service: block.text(&key("service")).to_owned(),
        addresses: block.text(&key("addresses")).to_owned(),
        timeout: duration("timeout", default.timeout),
        max_idle_conns: Some(size(block.number(&key("max_idle_conns")))).filter(|it| *it > 0).unwrap_or(default.max_idle_conns),
        max_item_size: size(block.number(&key("max_item_size"))),
        update_interval: duration("update_interval", default.update_interval),
        consistent_hash: block.flag(&key("consistent_hash")),
        circuit_breaker_consecutive_failures: u32::try_from(block.number(&key("circuit_breaker_consecutive_failures"))).unwrap_or(u32::MAX),
        circuit_breaker_timeout: block.duration(&key("circuit_breaker_timeout")),
        circuit_breaker_interval: block.duration(&key("circuit_breaker_interval")),
        ttl: block.duration(&key("ttl")),
        writers: size(s.number(&format!("{background}.writeback_goroutines"))),
        queue_entries: size(s.number(&format!("{background}.writeback_buffer"))),
        queue_bytes: default.queue_bytes,
    }
}

fn legacy_roles(s: &Settings) -> Vec<Role> {
    let controlled = CACHE_CONTROL.into_iter().filter(|(key, _)| s.flag(&format!("storage.trace.search.cache_control.{key}")));
    [Role::Bloom, Role::TraceIdIndex].into_iter().chain(controlled.map(|(_, role)| role)).collect()
}

/// What is wrong with the caches, in Tempo's words.
pub(super) fn problems(s: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    let mut claimed = Vec::new();
    for cache in s.blocks("cache.caches") {
        let roles = cache.strings("roles");
        if roles.is_empty() {
            problems.push("configured caches require a valid role".to_owned());
        }
        let stores = (cache.any_written("memcached"), cache.any_written("redis"));
        for role in roles {
            if Role::from_name(&role).is_none() {
                problems.push(format!("role {role} is not a valid role"));
            } else if claimed.contains(&role) {
                problems.push(format!("role {role} is claimed by more than one cache"));
            }
            match stores {
                (true, true) => problems.push(format!("cache config for role {role} has both memcached and redis configs")),
                (false, false) => problems.push(format!("cache config for role {role} has neither memcached nor redis configs")),
                _ => {}
            }
            claimed.push(role);
        }
    }
    let legacy = s.text("storage.trace.cache");
    let control = CACHE_CONTROL.iter().any(|(key, _)| s.flag(&format!("storage.trace.search.cache_control.{key}")));
    match legacy {
        "" if control => problems.push("storage.trace.search.cache_control is set without storage.trace.cache".to_owned()),
        "" => {}
        "memcached" | "redis" => {
            let twice = legacy_roles(s).into_iter().filter(|role| claimed.iter().any(|claimed| claimed == role.name()));
            problems.extend(twice.map(|role| format!("role {} is claimed by more than one cache", role.name())));
        }
        _ => problems.push(format!("unknown cache type: {legacy}")),
    }
    problems
}
