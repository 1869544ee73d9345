//! Limits of a tenant, where they come from, and the token bucket that keeps a tenant to its bytes per second.
//!
//! Limits are plain data, looked up anew for every push, so that a reload of the runtime overrides takes effect at once. As in the
//! reference there is no merging: a tenant's entry replaces all defaults, and what it leaves out is zero.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use parking_lot::RwLock;
use storage::id::Tenant;
use tokio::sync::watch;

use crate::usage::CostAttribution;

/// What a tenant may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Refill of the token bucket, bytes per second (`ingestion.rate_limit_bytes`). 0 refuses everything beyond the burst.
    pub rate_limit_bytes: u64,
    /// Capacity of the token bucket, bytes (`ingestion.burst_size_bytes`). 0 refuses everything.
    pub burst_size_bytes: u64,
    /// Live traces (`ingestion.max_traces_per_user`); 0 is unlimited.
    pub max_traces_per_user: u64,
    /// Live traces in all ingesters together (`ingestion.max_global_traces_per_user`); 0 is unlimited.
    pub max_global_traces_per_user: u64,
    /// Ingesters that the tenant is written to (`ingestion.tenant_shard_size`); 0 is all of them.
    pub tenant_shard_size: usize,
    /// Bytes that a trace may gather (`global.max_bytes_per_trace`); 0 is unlimited.
    pub max_bytes_per_trace: u64,
    /// Longest attribute key and string value, bytes (`ingestion.max_attribute_bytes`); 0 takes the distributor's.
    pub max_attribute_bytes: usize,
    /// Whether refusals for too many bytes carry a hint when to come back (`ingestion.retry_info_enabled`).
    pub retry_info_enabled: bool,
    /// What the tenant's bytes are attributed to, if the distributor does that (`cost_attribution`).
    pub cost_attribution: Option<Arc<CostAttribution>>,
}

impl Limits {
    /// What an entry that sets nothing means: see the module documentation.
    pub const ZERO: Self = Self {
        rate_limit_bytes: 0,
        burst_size_bytes: 0,
        max_traces_per_user: 0,
        max_global_traces_per_user: 0,
        tenant_shard_size: 0,
        max_bytes_per_trace: 0,
        max_attribute_bytes: 0,
        retry_info_enabled: false,
        cost_attribution: None,
    };
}

impl Default for Limits {
    /// Tempo 2.10's `overrides.defaults`.
    fn default() -> Self {
        Self {
            rate_limit_bytes: 15_000_000,
            burst_size_bytes: 20_000_000,
            max_traces_per_user: 10_000,
            max_global_traces_per_user: 0,
            tenant_shard_size: 0,
            max_bytes_per_trace: 5_000_000,
            max_attribute_bytes: 0,
            retry_info_enabled: true,
            cost_attribution: None,
        }
    }
}

/// Where limits come from. Called for every push: cheap, and never blocks on I/O.
pub trait Overrides: Debug + Send + Sync + 'static {
    /// The limits in force for `tenant` now.
    fn limits(&self, tenant: &Tenant) -> Arc<Limits>;
}

/// Limits of all tenants at one moment. Looked up: the tenant's own entry, else the wildcard, else the defaults.
#[derive(Clone, Debug, Default)]
pub struct LimitsTable {
    /// `overrides.defaults`.
    pub defaults: Arc<Limits>,
    /// The entry `*`.
    pub wildcard: Option<Arc<Limits>>,
    /// Entries by tenant.
    pub tenants: HashMap<Tenant, Arc<Limits>>,
}

impl LimitsTable {
    /// The limits of `tenant`.
    pub fn limits(&self, tenant: &Tenant) -> Arc<Limits> {
        Arc::clone(self.tenants.get(tenant).or(self.wildcard.as_ref()).unwrap_or(&self.defaults))
    }
}

/// A [`LimitsTable`] that can be replaced while requests are served. Clones share the table.
#[derive(Clone, Debug, Default)]
pub struct SharedOverrides(Arc<RwLock<LimitsTable>>);

impl SharedOverrides {
    /// Starts with `table`.
    pub fn new(table: LimitsTable) -> Self {
        Self(Arc::new(RwLock::new(table)))
    }

    /// Replaces the table; pushes from now on see the new one.
    pub fn store(&self, table: LimitsTable) {
        let old = std::mem::replace(&mut *self.0.write(), table);
        drop(old);
    }
}

impl Overrides for SharedOverrides {
    fn limits(&self, tenant: &Tenant) -> Arc<Limits> {
        self.0.read().limits(tenant)
    }
}

/// How a tenant's rate is divided among distributors (`overrides.defaults.ingestion.rate_strategy`).
#[derive(Clone, Debug, Default)]
pub enum RateStrategy {
    /// Each distributor grants the whole rate.
    #[default]
    Local,
    /// The rate is divided by the number of healthy distributors (0 counts as 1), as it is at the time of each push.
    Global(watch::Receiver<usize>),
}

/// The rate in force in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    limit: u64,
    global: u64,
    burst: u64,
}

impl Rate {
    pub(crate) fn new(limits: &Limits, strategy: &RateStrategy) -> Self {
        let burst = limits.burst_size_bytes;
        match strategy {
            RateStrategy::Local => Self { limit: limits.rate_limit_bytes, global: 0, burst },
            RateStrategy::Global(distributors) => {
                let distributors = (*distributors.borrow()).max(1) as u64;
                let limit = limits.rate_limit_bytes / distributors;
                Self { limit, global: limit * distributors, burst }
            }
        }
    }

    /// Tempo's words for a refusal of `size` bytes.
    pub(crate) fn refusal(&self, size: u64, tenant: &Tenant) -> String {
        let Self { limit, global, burst } = *self;
        if size > limit && size > burst {
            format!(
                "RATE_LIMITED: batch size ({size} bytes) exceeds ingestion limit (local: {limit} bytes/s, global: {global} bytes/s, \
                 burst: {burst} bytes) while adding {size} bytes for user {tenant}. consider reducing batch size or increasing rate limit."
            )
        } else {
            format!(
                "RATE_LIMITED: ingestion rate limit (local: {limit} bytes/s, global: {global} bytes/s, burst: {burst} bytes) exceeded \
                 while adding {size} bytes for user {tenant}. consider increasing the limit or reducing ingestion rate."
            )
        }
    }
}

/// A token bucket: starts full, is refilled at the rate up to the burst, and admits a request whole or not at all.
#[derive(Debug, Default)]
pub(crate) struct TokenBucket {
    /// Tokens and when they were counted; `None` until the first request.
    state: Option<(f64, Duration)>,
}

impl TokenBucket {
    /// Takes `size` tokens if there are as many.
    pub(crate) fn take(&mut self, size: u64, rate: Rate, now: Duration) -> bool {
        let burst = rate.burst as f64;
        let (tokens, counted_at) = self.state.unwrap_or((burst, now));
        let refill = now.saturating_sub(counted_at).as_secs_f64() * rate.limit as f64;
        let tokens = (tokens + refill).min(burst);
        let admitted = tokens >= size as f64;
        let left = if admitted { tokens - size as f64 } else { tokens };
        // A clock that steps back must not refill twice for the same time.
        self.state = Some((left, now.max(counted_at)));
        admitted
    }

    /// Returns tokens that were taken for a request that turned out not to count.
    pub(crate) fn refund(&mut self, size: u64) {
        if let Some((tokens, _)) = &mut self.state {
            *tokens += size as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_oracles_of_the_reference() {
        let tenant = Tenant::new("t").expect("valid");
        let rate = Rate::new(&Limits::default(), &RateStrategy::Local);
        let mut bucket = TokenBucket::default();
        assert!(!bucket.take(21_000_000, rate, SECOND));
        assert_eq!(
            rate.refusal(21_000_000, &tenant),
            "RATE_LIMITED: batch size (21000000 bytes) exceeds ingestion limit (local: 15000000 bytes/s, global: 0 bytes/s, burst: \
             20000000 bytes) while adding 21000000 bytes for user t. consider reducing batch size or increasing rate limit."
        );
        assert!(bucket.take(18_000_000, rate, SECOND), "a refusal takes nothing");
        assert!(!bucket.take(18_000_000, rate, SECOND));
        assert_eq!(
            rate.refusal(18_000_000, &tenant),
            "RATE_LIMITED: ingestion rate limit (local: 15000000 bytes/s, global: 0 bytes/s, burst: 20000000 bytes) exceeded while \
             adding 18000000 bytes for user t. consider increasing the limit or reducing ingestion rate."
        );
        assert!(!bucket.take(18_000_000, rate, SECOND * 2), "17 MB after a second");
        assert!(bucket.take(17_000_000, rate, SECOND * 2));
        assert!(!bucket.take(1, rate, SECOND), "a clock that steps back refills nothing");
        assert!(!bucket.take(1, rate, SECOND * 2), "nor does its return");
        bucket.refund(5);
        assert!(bucket.take(5, rate, SECOND * 2));
    }

    #[test]
    fn zero_limits_refuse_everything_and_global_rates_are_divided() {
        let rate = Rate::new(&Limits::ZERO, &RateStrategy::Local);
        assert!(!TokenBucket::default().take(1, rate, SECOND));
        let (distributors, watched) = watch::channel(4);
        let strategy = RateStrategy::Global(watched);
        let rate = || Rate::new(&Limits::default(), &strategy);
        assert_eq!(rate(), Rate { limit: 3_750_000, global: 15_000_000, burst: 20_000_000 });
        distributors.send_replace(5);
        assert_eq!(rate(), Rate { limit: 3_000_000, global: 15_000_000, burst: 20_000_000 });
        distributors.send_replace(0);
        drop(distributors);
        assert_eq!(rate().limit, 15_000_000, "the last number stays, and none is one");
    }

    #[test]
    fn lookup_goes_from_entry_to_wildcard_to_defaults() {
        let entry = |n| Arc::new(Limits { max_traces_per_user: n, ..Limits::ZERO });
        let (a, b) = (Tenant::new("a").expect("valid"), Tenant::new("b").expect("valid"));
        let overrides = SharedOverrides::default();
        assert_eq!(*overrides.limits(&a), Limits::default());
        let mut table = LimitsTable { wildcard: Some(entry(1)), ..LimitsTable::default() };
        table.tenants.insert(a.clone(), entry(2));
        overrides.store(table);
        assert_eq!((overrides.limits(&a).max_traces_per_user, overrides.limits(&b).max_traces_per_user), (2, 1));
    }
}
