//! One budget of bytes for all receivers together, and one for what waits for ingesters.
//!
//! The problem: each request may be megabytes, and anybody may open as many requests as the connections carry. The idea: before bytes
//! are read from a socket, or made by a decompressor, they are reserved here; a reservation lives as long as the request. Whoever finds
//! the budget spent waits, in order of arrival, until a deadline, and is then refused in a way that tells the client to come back.
//!
//! ```text
//!  announced length ──► reserve ──► read ──► grow ──► decompress ──► push ──► acknowledged ──► given back
//! ```
//!
//! A request that holds bytes while it waits for more could wait for another one that does the same. The deadline breaks such a knot:
//! some are refused and retried, none hangs.

use std::{sync::Arc, time::Duration};

use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that requests in flight may hold. Cheap to clone; all clones share the bytes.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    total: usize,
    max_wait: Duration,
    in_flight: IntGauge,
    refused: IntCounter,
}

/// The budget stayed spent for longer than a request may wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("too many bytes in flight: no room for {wanted} bytes within {waited:?} (budget {total} bytes)")]
pub struct Exhausted {
    /// Bytes that were asked for.
    pub wanted: usize,
    /// How long the request waited for them.
    pub waited: Duration,
    /// Size of the whole budget.
    pub total: usize,
}

impl Budget {
    /// A budget of `total` bytes in which a request waits at most `max_wait` for room.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(total: usize, max_wait: Duration, registry: &Registry) -> Result<Self, prometheus::Error> {
        let in_flight = IntGauge::new("rubato_ingest_inflight_bytes", "Bytes that requests in flight have reserved.")?;
        let refused = IntCounter::new("rubato_ingest_budget_refusals_total", "Requests refused because too many bytes were in flight.")?;
        Self::with(total, max_wait, in_flight, refused, registry)
    }

    /// The same for messages that wait for ingesters, see [`Replicator`](crate::Replicator).
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn for_replication(total: usize, max_wait: Duration, registry: &Registry) -> Result<Self, prometheus::Error> {
        let in_flight = IntGauge::new("rubato_distributor_replication_inflight_bytes", "Bytes of messages that wait for ingesters.")?;
        let refused = IntCounter::new(
            "rubato_distributor_replication_budget_refusals_total",
            "Requests refused because too many bytes waited for ingesters.",
        )?;
        Self::with(total, max_wait, in_flight, refused, registry)
    }

    /// The same for pushes of other processes, where this one has receivers, too: what it pushes must not wait for what it is pushed.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn for_pushes(total: usize, max_wait: Duration, registry: &Registry) -> Result<Self, prometheus::Error> {
        let in_flight = IntGauge::new("rubato_ingester_pushes_inflight_bytes", "Bytes that pushes in flight have reserved.")?;
        let refused =
            IntCounter::new("rubato_ingester_pushes_budget_refusals_total", "Pushes refused because too many bytes were in flight.")?;
        Self::with(total, max_wait, in_flight, refused, registry)
    }

    fn with(
        total: usize,
        max_wait: Duration,
        in_flight: IntGauge,
        refused: IntCounter,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        let total = total.min(Semaphore::MAX_PERMITS);
        Ok(Self { bytes: Arc::new(Semaphore::new(total)), total, max_wait, in_flight, refused })
    }

    /// An empty reservation, to be grown.
    pub(crate) fn open(&self) -> Reservation {
        Reservation { budget: self.clone(), held: None }
    }
}

/// Bytes of the budget that one request holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Bytes that it can hold at most: the whole budget.
    pub(crate) fn limit(&self) -> usize {
        self.budget.total
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Makes the reservation at least `wanted` bytes large, waiting for room if need be.
    pub(crate) async fn reach(&mut self, wanted: usize) -> Result<(), Exhausted> {
        let missing = wanted.saturating_sub(self.held());
        if missing == 0 {
            return Ok(());
        }
        let exhausted = |waited| Exhausted { wanted, waited, total: self.budget.total };
        let permits = u32::try_from(missing).ok().filter(|_| wanted <= self.budget.total);
        let Some(permits) = permits else {
            self.budget.refused.inc();
            return Err(exhausted(Duration::ZERO));
        };
        let acquire = Arc::clone(&self.budget.bytes).acquire_many_owned(permits);
        let Ok(Ok(more)) = tokio::time::timeout(self.budget.max_wait, acquire).await else {
            self.budget.refused.inc();
            return Err(exhausted(self.budget.max_wait));
        };
        self.budget.in_flight.add(i64::from(permits));
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// Gives back what is held beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let spare = self.held().saturating_sub(bytes);
        if let Some(given_back) = self.held.as_mut().and_then(|held| held.split(spare)) {
            self.budget.in_flight.sub(i64::try_from(given_back.num_permits()).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.in_flight.sub(i64::try_from(self.held()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_bounded_and_come_back() {
        let budget = Budget::new(100, Duration::from_millis(20), &Registry::new()).expect("fresh registry");
        let mut first = budget.open();
        first.reach(80).await.expect("room");
        first.reach(10).await.expect("already held");
        assert_eq!(budget.in_flight.get(), 80);
        let mut second = budget.open();
        assert_eq!(second.reach(30).await.map_err(|e| e.wanted), Err(30));
        assert!(second.reach(101).await.is_err(), "can never fit");
        first.shrink(70);
        second.reach(30).await.expect("room was given back");
        drop(first);
        drop(second);
        assert_eq!((budget.in_flight.get(), budget.bytes.available_permits(), budget.refused.get()), (0, 100, 2));
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let budget = Budget::new(10, Duration::from_secs(5), &Registry::new()).expect("fresh registry");
        let mut first = budget.open();
        first.reach(10).await.expect("room");
        let mut second = budget.open();
        let waiting = tokio::spawn(async move { second.reach(10).await });
        tokio::task::yield_now().await;
        drop(first);
        waiting.await.expect("task").expect("room after the first is gone");
    }
}
