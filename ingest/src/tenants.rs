//! What is kept per tenant, for as long as the tenant pushes: made at its first push, forgotten some time after its last.
//!
//! Names of tenants are chosen by senders, so there are at most so many at a time.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use storage::id::Tenant;

/// How often tenants are looked through for what can be forgotten.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// The tenants that push, with a state for each.
#[derive(Debug)]
pub(crate) struct Tenants<S> {
    max: usize,
    idle: Duration,
    states: RwLock<HashMap<Tenant, Arc<Active<S>>>>,
    /// Unix seconds of the next look through the tenants.
    next_sweep: AtomicU64,
}

/// A tenant's state.
#[derive(Debug)]
pub(crate) struct Active<S> {
    state: S,
    /// Unix seconds.
    last_push: AtomicU64,
}

impl<S> Deref for Active<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state
    }
}

/// As many tenants as may be are active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many active tenants (max {max})")]
pub struct TooManyTenants {
    /// The limit.
    pub max: usize,
}

impl<S> Tenants<S> {
    /// No tenants yet; at most `max`, each forgotten `idle` after its last push.
    pub(crate) fn new(max: usize, idle: Duration) -> Self {
        Self { max, idle, states: RwLock::default(), next_sweep: AtomicU64::new(0) }
    }

    /// The state of a tenant that pushes now; made if there is none.
    pub(crate) fn pushing(&self, tenant: &Tenant, now: Duration, make: impl FnOnce() -> S) -> Result<Arc<Active<S>>, TooManyTenants> {
        let known = self.states.read().get(tenant).map(Arc::clone);
        if let Some(active) = known {
            active.last_push.store(now.as_secs(), Ordering::Relaxed);
            return Ok(active);
        }
        let mut states = self.states.write();
        if states.len() >= self.max && !states.contains_key(tenant) {
            return Err(TooManyTenants { max: self.max });
        }
        let active =
            states.entry(tenant.clone()).or_insert_with(|| Arc::new(Active { state: make(), last_push: AtomicU64::new(now.as_secs()) }));
        Ok(Arc::clone(active))
    }

    /// Now and then forgets the tenants that are idle and of which `needed` says no; `forgotten` learns of each.
    pub(crate) fn sweep(&self, now: Duration, mut needed: impl FnMut(&S) -> bool, mut forgotten: impl FnMut(&Tenant)) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.as_secs() + SWEEP_PERIOD.as_secs();
        if now.as_secs() < due || self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        self.states.write().retain(|tenant, active| {
            // Asked first: it also lets go of what an active tenant no longer needs.
            let needed = needed(&active.state);
            let kept = needed || now.as_secs().saturating_sub(active.last_push.load(Ordering::Relaxed)) < self.idle.as_secs();
            if !kept {
                forgotten(tenant);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_bounded_and_forgotten() {
        let tenants = Tenants::new(2, Duration::from_secs(100));
        let name = |name: &str| Tenant::new(name).expect("valid");
        let at = Duration::from_secs;
        for tenant in ["a", "b", "a"] {
            tenants.pushing(&name(tenant), at(1000), || tenant == "b").expect("room for two");
        }
        let refused = tenants.pushing(&name("c"), at(1000), || false);
        assert_eq!(refused.map(|_| ()), Err(TooManyTenants { max: 2 }));
        let mut gone = Vec::new();
        tenants.sweep(at(1101), |&needed| needed, |tenant| gone.push(tenant.to_string()));
        assert_eq!(gone, ["a"], "b is needed");
        tenants.sweep(at(1102), |_| false, |tenant| gone.push(tenant.to_string()));
        assert_eq!(gone, ["a"], "not twice within a minute");
        tenants.pushing(&name("c"), at(1102), || false).expect("room again");
        tenants.sweep(at(1200), |_| false, |tenant| gone.push(tenant.to_string()));
        assert_eq!(gone, ["a", "b"]);
    }
}
