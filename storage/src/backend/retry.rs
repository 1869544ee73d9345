//! When a failed request is tried again, and after how long.
//!
//! One policy for everything that a store is asked: a request that failed ([`super::http`]) and a body that broke off ([`super::bucket`]).
//! Pauses double from attempt to attempt, and each is cut by a random part so that many clients don't come back together. A bucket of
//! tokens bounds retries over all requests: each costs one, each success gives a tenth back. While the store is broken, what is left of
//! the load is the callers' first attempts; once it works, retries are there again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{IntCounter, Opts, Registry};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::settings::Requests;

/// Tokens when all is well.
const CAPACITY: u64 = 100;

/// What a retry costs, in units of what a success gives back.
const COST: u64 = 10;

/// The policy and its tokens, shared by all requests to a store.
#[derive(Debug)]
pub(super) struct Retry {
    attempts: u32,
    initial: Duration,
    max: Duration,
    tokens: AtomicU64,
    // A standard short lock: one number is drawn.
    random: Mutex<ChaCha8Rng>,
    retries: IntCounter,
    exhausted: IntCounter,
}

impl Retry {
    /// A policy with all its tokens. `seed` decides the pauses.
    pub(super) fn new(requests: &Requests, seed: u64, registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::with_opts(Opts::new(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        Ok(Self {
            attempts: requests.attempts.max(1),
            initial: requests.backoff_initial,
            max: requests.backoff_max.max(requests.backoff_initial),
            tokens: AtomicU64::new(CAPACITY * COST),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            retries: counter("rubato_backend_retries_total", "Requests to the bucket that were made again.")?,
            exhausted: counter(
                "rubato_backend_retries_refused_total",
                "Failed requests to the bucket that were not made again because too many had failed lately.",
            )?,
        })
    }

    /// How long to wait after the attempt number `failed`; none: that was the last.
    pub(super) fn pause(&self, failed: u32) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        if self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| tokens.checked_sub(COST)).is_err() {
            self.exhausted.inc();
            return None;
        }
        self.retries.inc();
        let longest = self.initial.saturating_mul(1 << (failed - 1).min(20)).min(self.max);
        // Between half of it and all of it.
        let share = 0.5 + f64::from(self.random.lock().next_u32()) / f64::from(u32::MAX) / 2.0;
        Some(longest.mul_f64(share))
    }

    /// A request was answered.
    pub(super) fn succeeded(&self) {
        let full = |tokens| (tokens < CAPACITY * COST).then_some(tokens + 1);
        _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(attempts: u32, seed: u64) -> Retry {
        let requests = Requests { attempts, ..Requests::default() };
        Retry::new(&requests, seed, &Registry::new()).expect("an empty registry")
    }

    #[test]
    fn pauses_grow_to_a_bound_and_the_seed_decides_them() {
        let pauses = |seed| {
            let retry = retry(6, seed);
            (1..=6).map(|failed| retry.pause(failed)).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
        for seed in 0..50 {
            let pauses = pauses(seed);
            for (pause, longest) in pauses.iter().zip([200, 400, 800, 1000, 1000]) {
                let pause = pause.expect("there are attempts left").as_millis();
                assert!((longest / 2 - 1..=longest).contains(&pause), "{pause} of {longest}");
            }
            assert_eq!(pauses[5], None, "six attempts have five pauses");
        }
    }

    #[test]
    fn a_broken_store_uses_up_the_tokens_and_answers_give_them_back() {
        let retry = retry(2, 0);
        let mut allowed = 0;
        while retry.pause(1).is_some() {
            allowed += 1;
        }
        assert_eq!((allowed, retry.retries.get(), retry.exhausted.get()), (CAPACITY, CAPACITY, 1));
        for _ in 0..COST {
            assert!(retry.pause(1).is_none());
            retry.succeeded();
        }
        assert!(retry.pause(1).is_some());
        assert!(retry.pause(1).is_none());
        for _ in 0..10 * CAPACITY * COST {
            retry.succeeded();
        }
        assert_eq!(retry.tokens.load(Ordering::Relaxed), CAPACITY * COST, "no more than all");
    }
}
