//! Memory that queries may hold: an account per query, out of a pool of the process.
//!
//! ```text
//!  Pool (process) ──► Account (query, or one job of it in another process) ──► Held: a decoded row group, a table of series, …
//! ```
//!
//! Whoever allocates much reserves it first and keeps the [`Held`] as long as the memory. A query that wants more than it may have fails with
//! a text that says so; one that finds the pool empty waits if it holds nothing yet, and fails if it does: whoever holds never waits, so there
//! are no deadlocks. What is reserved are estimates, so a limit is worth half of the memory that must not be exceeded, not all of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus::{IntGauge, Registry};
use tokio::sync::Notify;

use super::QueryError;

/// What all queries of a process may hold.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_bytes: u64,
    max_bytes_per_query: u64,
    used: AtomicU64,
    freed: Notify,
    gauge: IntGauge,
}

impl Pool {
    /// A pool; 0 means any number of bytes.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(max_bytes: u64, max_bytes_per_query: u64, registry: &Registry) -> prometheus::Result<Self> {
        let gauge = IntGauge::new("rubato_query_memory_bytes", "Bytes of memory that running queries have reserved.")?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self(Arc::new(Shared { max_bytes, max_bytes_per_query, used: AtomicU64::new(0), freed: Notify::new(), gauge })))
    }

    /// An account for one query.
    pub fn account(&self) -> Account {
        Account(Arc::new(Used { pool: Arc::clone(&self.0), used: AtomicU64::new(0) }))
    }
}

/// What one query holds. Clones share it.
#[derive(Clone, Debug)]
pub struct Account(Arc<Used>);

#[derive(Debug)]
struct Used {
    pool: Arc<Shared>,
    used: AtomicU64,
}

/// Memory that is reserved until this is dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: u64,
}

impl Account {
    /// Reserves memory; waits for other queries if there is none and this one holds nothing.
    ///
    /// # Errors
    /// The query may not hold so much, or holds something and there is no more.
    pub async fn reserve(&self, bytes: u64) -> Result<Held, QueryError> {
        loop {
            let freed = self.0.pool.freed.notified();
            tokio::pin!(freed);
            // From here on no notification is missed.
            freed.as_mut().enable();
            match self.try_reserve(bytes) {
                Err(QueryError::MemoryExhausted { .. }) if self.0.used.load(Ordering::Relaxed) == 0 => freed.await,
                outcome => return outcome,
            }
        }
    }

    /// Reserves memory for something that cannot be had in smaller pieces, such as a row group: no more than the query may hold, so that it is
    /// served, if need be alone.
    ///
    /// # Errors
    /// The query holds something and there is no more.
    pub async fn reserve_piece(&self, bytes: u64) -> Result<Held, QueryError> {
        let pool = &self.0.pool;
        let limits = [pool.max_bytes, pool.max_bytes_per_query].into_iter().filter(|limit| *limit > 0);
        self.reserve(limits.fold(bytes, u64::min)).await
    }

    /// Reserves memory now or not at all.
    ///
    /// # Errors
    /// The query may not hold so much, or there is no more.
    pub fn try_reserve(&self, bytes: u64) -> Result<Held, QueryError> {
        let pool = &self.0.pool;
        take(&self.0.used, bytes, pool.max_bytes_per_query)
            .map_err(|()| QueryError::TooMuchMemory { max_bytes: pool.max_bytes_per_query })?;
        if take(&pool.used, bytes, pool.max_bytes).is_err() {
            self.0.used.fetch_sub(bytes, Ordering::Relaxed);
            // More than there will ever be is the query's own fault.
            return Err(if bytes > pool.max_bytes {
                QueryError::TooMuchMemory { max_bytes: pool.max_bytes }
            } else {
                QueryError::MemoryExhausted { max_bytes: pool.max_bytes }
            });
        }
        pool.gauge.set(i64::try_from(pool.used.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        Ok(Held { account: self.clone(), bytes })
    }
}

impl Held {
    /// Reserves more.
    ///
    /// # Errors
    /// As of [`Account::try_reserve`]; what was held stays.
    pub fn grow(&mut self, bytes: u64) -> Result<(), QueryError> {
        let mut more = self.account.try_reserve(bytes)?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let pool = &self.account.0.pool;
        self.account.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        let before = pool.used.fetch_sub(self.bytes, Ordering::Relaxed);
        pool.gauge.set(i64::try_from(before.saturating_sub(self.bytes)).unwrap_or(i64::MAX));
        pool.freed.notify_waiters();
    }
}

/// Adds to a counter unless that exceeds a limit; 0 means none.
fn take(counter: &AtomicU64, bytes: u64, limit: u64) -> Result<(), ()> {
    let fits = |used: u64| used.checked_add(bytes).filter(|sum| limit == 0 || *sum <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(max_bytes: u64, per_query: u64) -> Pool {
        Pool::new(max_bytes, per_query, &Registry::new()).expect("a new registry")
    }

    #[tokio::test]
    async fn a_query_is_told_when_it_wants_too_much() {
        let pool = pool(100, 60);
        let account = pool.account();
        let mut held = account.reserve(50).await.expect("room");
        assert!(matches!(account.reserve(20).await, Err(QueryError::TooMuchMemory { max_bytes: 60 })));
        held.grow(10).expect("room");
        assert!(held.grow(1).is_err());
        assert_eq!((held.bytes(), pool.0.used.load(Ordering::Relaxed)), (60, 60));
        let other = pool.account();
        let _some = other.try_reserve(40).expect("room");
        assert!(matches!(other.reserve(1).await, Err(QueryError::MemoryExhausted { max_bytes: 100 })), "who holds does not wait");
        drop(held);
        assert_eq!(pool.0.used.load(Ordering::Relaxed), 40);
        assert_eq!(pool.0.gauge.get(), 40);
    }

    #[tokio::test]
    async fn who_holds_nothing_waits() {
        let pool = pool(100, 0);
        let held = pool.account().reserve(90).await.expect("room");
        let (account, waiting) = (pool.account(), tokio::sync::oneshot::channel());
        let task = tokio::spawn(async move {
            waiting.0.send(()).expect("somebody listens");
            account.reserve(50).await.map(|held| held.bytes())
        });
        waiting.1.await.expect("the task runs");
        assert!(!task.is_finished());
        drop(held);
        assert_eq!(task.await.expect("no panic").expect("room"), 50);
        assert!(matches!(pool.account().reserve(101).await, Err(QueryError::TooMuchMemory { max_bytes: 100 })));
        assert_eq!(pool.account().reserve_piece(101).await.expect("alone").bytes(), 100);
    }
}
