//! What the caches count. Names of Tempo where it has them (config.md §9).

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    exponential_buckets,
    proto::MetricFamily,
};

#[derive(Debug)]
pub(super) struct Metrics {
    /// By role and where it was found: `local`, `memcached`, `none`.
    pub(super) lookups: IntCounterVec,
    /// By method, status code and cache.
    pub(super) seconds: HistogramVec,
    pub(super) too_large: IntCounterVec,
    pub(super) queue_length: IntGaugeVec,
    pub(super) overflows: IntCounterVec,
    /// By cache and reason.
    pub(super) dropped: IntCounterVec,
    /// By cache and reason.
    pub(super) failures: IntCounterVec,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| add(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        Ok(Self {
            lookups: counters(
                "rubato_cache_lookups_total",
                "Things looked up in the caches, by role and by where they were found: local, memcached or none.",
                &["role", "found"],
            )?,
            seconds: add(
                registry,
                HistogramVec::new(
                    HistogramOpts::new("tempo_memcache_request_duration_seconds", "Time that requests to memcached took.")
                        .buckets(exponential_buckets(0.000_016, 4.0, 8)?),
                    &["method", "status_code", "name"],
                )?,
            )?,
            too_large: counters(
                "tempo_memcache_client_set_skip_total",
                "Values that were not written to memcached because they are larger than max_item_size.",
                &["name"],
            )?,
            queue_length: add(
                registry,
                IntGaugeVec::new(Opts::new("tempo_cache_background_queue_length", "Writes to memcached that wait."), &["name"])?,
            )?,
            overflows: counters(
                "tempo_cache_dropped_background_writes_total",
                "Writes to memcached that were dropped because too many wait.",
                &["name"],
            )?,
            dropped: counters(
                "rubato_cache_dropped_writes_total",
                "Values that did not get into memcached, by reason: queue_entries, queue_bytes, item_size, key, no_server, circuit_open, \
                 busy, timeout, unreachable, refused.",
                &["name", "reason"],
            )?,
            failures: counters(
                "rubato_memcache_failed_lookups_total",
                "Look-ups in memcached without an answer, by reason: no_server, circuit_open, busy, timeout, unreachable, refused.",
                &["name", "reason"],
            )?,
        })
    }
}

/// States that are looked at when they are asked for.
pub(super) struct Gauges {
    values: Values,
    look: Box<dyn Fn(&Values) + Send + Sync>,
}

/// The gauges of [`Gauges`].
pub(super) struct Values {
    local_bytes: IntGauge,
    local_entries: IntGauge,
    servers: IntGaugeVec,
    open_servers: IntGaugeVec,
}

impl Gauges {
    /// `look` sets them.
    pub(super) fn new(look: impl Fn(&Values) + Send + Sync + 'static) -> prometheus::Result<Self> {
        let by_name = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["name"]);
        let values = Values {
            local_bytes: IntGauge::new("rubato_cache_local_bytes", "Bytes of the cache in the process, keys and bookkeeping included.")?,
            local_entries: IntGauge::new("rubato_cache_local_entries", "Entries of the cache in the process.")?,
            servers: by_name("tempo_memcache_client_servers", "Servers that the addresses stand for.")?,
            open_servers: by_name("rubato_memcache_open_servers", "Servers that are left alone because they failed.")?,
        };
        Ok(Self { values, look: Box::new(look) })
    }

    fn all(&self) -> [&dyn Collector; 4] {
        let Values { local_bytes, local_entries, servers, open_servers } = &self.values;
        [local_bytes, local_entries, servers, open_servers]
    }
}

impl Values {
    pub(super) fn set_local(&self, bytes: u64, entries: usize) {
        self.local_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.local_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(super) fn set_servers(&self, name: &str, servers: usize, open: usize) {
        self.servers.with_label_values(&[name]).set(i64::try_from(servers).unwrap_or(i64::MAX));
        self.open_servers.with_label_values(&[name]).set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.look)(&self.values);
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
