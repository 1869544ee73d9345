//! Memory that queries may hold: a budget per query, out of a pool of the process.
//!
//! ```text
//!  Pool (process) ─┬─► budget of a query ─┬─► Account of a job ─┬─► piece: what is decoded now, until it is looked at
//!                  └─► …                  └─► …                 └─► kept:  series, traces, answers
//! ```
//!
//! Whoever allocates much reserves it first and keeps the [`Held`] as long as the memory. All jobs of a query that run in one process share
//! one budget, whoever sent them. What is reserved are estimates, so a limit is worth half of the memory that must not be exceeded, not all
//! of it.
//!
//! *Invariant:* whoever holds a piece waits for no memory until that is gone. So a job that wants one may wait as long as somebody holds one,
//! and there are no deadlocks. When nobody does, there will be no more room, and the job fails with a text that names the bound.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use prometheus::{IntGauge, Opts, Registry};
use tokio::sync::Notify;

use super::QueryError;
use crate::job::QueryId;

/// What all queries of a process may hold.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_bytes: u64,
    max_bytes_per_query: u64,
    state: Mutex<State>,
    /// Memory was given back.
    freed: Notify,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    all: Used,
    queries: HashMap<QueryId, Budget>,
}

/// What is held.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    bytes: u64,
    /// How many pieces there are.
    pieces: usize,
}

/// What a query holds.
#[derive(Debug, Default)]
struct Budget {
    used: Used,
    accounts: usize,
}

impl Pool {
    /// A pool; 0 means any number of bytes. `holder` is who reserves from it, as the label of the metric.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(max_bytes: u64, max_bytes_per_query: u64, holder: &str, registry: &Registry) -> prometheus::Result<Self> {
        let help =
            "Bytes of memory that running queries have reserved: jobs for what they decode and count, answers until they are merged.";
        let gauge = IntGauge::with_opts(Opts::new("rubato_query_memory_bytes", help).const_label("holder", holder))?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self(Arc::new(Shared { max_bytes, max_bytes_per_query, state: Mutex::default(), freed: Notify::new(), gauge })))
    }

    /// An account for one job of a query.
    pub fn account(&self, query: QueryId) -> Account {
        self.0.state.lock().queries.entry(query).or_default().accounts += 1;
        Account(Arc::new(Owner { pool: Arc::clone(&self.0), query }))
    }
}

impl Shared {
    /// Reserves, if there is room. `piece` is 1 for a piece. Otherwise an error, and whether there may be room later.
    fn take(&self, query: QueryId, bytes: u64, piece: usize) -> Result<(), (QueryError, bool)> {
        let State { all, queries } = &mut *self.state.lock();
        let budget = &mut queries.entry(query).or_default().used;
        let fits = |used: &Used, limit: u64| limit == 0 || used.bytes.saturating_add(bytes) <= limit;
        if !fits(budget, self.max_bytes_per_query) {
            return Err((
                QueryError::TooMuchMemory { max_bytes: self.max_bytes_per_query },
                bytes <= self.max_bytes_per_query && budget.pieces > 0,
            ));
        }
        if !fits(all, self.max_bytes) {
            // More than there will ever be is the query's own fault.
            return Err(if bytes > self.max_bytes {
                (QueryError::TooMuchMemory { max_bytes: self.max_bytes }, false)
            } else {
                (QueryError::MemoryExhausted { max_bytes: self.max_bytes }, all.pieces > 0)
            });
        }
        for used in [&mut *all, budget] {
            used.bytes += bytes;
            used.pieces += piece;
        }
        self.gauge.set(i64::try_from(all.bytes).unwrap_or(i64::MAX));
        Ok(())
    }

    fn give_back(&self, query: QueryId, bytes: u64, piece: usize) {
        let State { all, queries } = &mut *self.state.lock();
        for used in [Some(&mut *all), queries.get_mut(&query).map(|budget| &mut budget.used)].into_iter().flatten() {
            used.bytes = used.bytes.saturating_sub(bytes);
            used.pieces = used.pieces.saturating_sub(piece);
        }
        self.gauge.set(i64::try_from(all.bytes).unwrap_or(i64::MAX));
        self.freed.notify_waiters();
    }
}

/// What one job holds. Clones share it.
#[derive(Clone, Debug)]
pub struct Account(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    pool: Arc<Shared>,
    query: QueryId,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        if let Some(budget) = state.queries.get_mut(&self.query) {
            budget.accounts = budget.accounts.saturating_sub(1);
            if budget.accounts == 0 {
                state.queries.remove(&self.query);
            }
        }
    }
}

/// Memory that is reserved until this is dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: u64,
    piece: usize,
}

impl Account {
    /// Reserves memory for a piece; waits for others while there is none. No more may be waited for until it is dropped.
    ///
    /// # Errors
    /// The query may not hold so much, or there is no room and nobody who makes some.
    pub async fn reserve(&self, bytes: u64) -> Result<Held, QueryError> {
        let Owner { pool, query } = &*self.0;
        loop {
            let freed = pool.freed.notified();
            tokio::pin!(freed);
            // From here on no notification is missed.
            freed.as_mut().enable();
            match pool.take(*query, bytes, 1) {
                Ok(()) => return Ok(Held { account: self.clone(), bytes, piece: 1 }),
                Err((_, true)) => freed.await,
                Err((error, false)) => return Err(error),
            }
        }
    }

    /// Reserves memory for a piece that cannot be had any smaller, such as a row group: no more than the query may hold, so that it is
    /// served, if need be alone.
    ///
    /// # Errors
    /// As of [`Account::reserve`].
    pub async fn reserve_piece(&self, bytes: u64) -> Result<Held, QueryError> {
        let pool = &self.0.pool;
        let limits = [pool.max_bytes, pool.max_bytes_per_query].into_iter().filter(|limit| *limit > 0);
        self.reserve(limits.fold(bytes, u64::min)).await
    }

    /// Reserves memory for something that is kept, now or not at all.
    ///
    /// # Errors
    /// The query may not hold so much, or there is no more.
    pub fn keep(&self, bytes: u64) -> Result<Held, QueryError> {
        self.0.pool.take(self.0.query, bytes, 0).map_err(|(error, _)| error)?;
        Ok(Held { account: self.clone(), bytes, piece: 0 })
    }
}

impl Held {
    /// Reserves more, or gives back, until it is so much.
    ///
    /// # Errors
    /// As of [`Account::keep`]; what was held stays.
    pub fn resize(&mut self, bytes: u64) -> Result<(), QueryError> {
        let Owner { pool, query } = &*self.account.0;
        if bytes > self.bytes {
            pool.take(*query, bytes - self.bytes, 0).map_err(|(error, _)| error)?;
        } else {
            pool.give_back(*query, self.bytes - bytes, 0);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.0.pool.give_back(self.account.0.query, self.bytes, self.piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(max_bytes: u64, per_query: u64) -> Pool {
        Pool::new(max_bytes, per_query, "jobs", &Registry::new()).expect("a new registry")
    }

    #[tokio::test]
    async fn a_query_is_told_when_it_wants_too_much() {
        let pool = pool(100, 60);
        let account = pool.account(QueryId::new());
        let mut held = account.keep(50).expect("room");
        assert!(matches!(account.reserve(20).await, Err(QueryError::TooMuchMemory { max_bytes: 60 })));
        held.resize(60).expect("room");
        assert!(held.resize(61).is_err());
        assert_eq!((held.bytes(), pool.0.gauge.get()), (60, 60));
        let other = pool.account(QueryId::new());
        let _some = other.keep(40).expect("room");
        assert!(matches!(other.reserve(1).await, Err(QueryError::MemoryExhausted { max_bytes: 100 })), "nobody makes room");
        held.resize(10).expect("less");
        assert_eq!(pool.0.gauge.get(), 50);
        drop(held);
        assert_eq!(pool.0.gauge.get(), 40);
    }

    #[tokio::test]
    async fn the_jobs_of_a_query_share_one_budget() {
        let pool = pool(0, 60);
        let query = QueryId::new();
        let (one, other) = (pool.account(query), pool.account(query));
        let kept = one.keep(50).expect("room");
        assert!(matches!(other.keep(20), Err(QueryError::TooMuchMemory { max_bytes: 60 })));
        pool.account(QueryId::new()).keep(60).expect("another query has a budget of its own");
        drop(one);
        assert!(other.keep(20).is_err(), "what is held counts as long as it is held");
        drop(kept);
        other.keep(60).expect("all of it is given back");
        drop(other);
        assert!(pool.0.state.lock().queries.is_empty(), "nothing is remembered of a query");
    }

    #[tokio::test]
    async fn who_wants_a_piece_waits_for_those_who_hold_one() {
        for same_query in [true, false] {
            let pool = if same_query { pool(0, 100) } else { pool(100, 0) };
            let query = QueryId::new();
            let first = pool.account(query);
            let held = first.reserve(90).await.expect("room");
            let (second, waiting) = (pool.account(if same_query { query } else { QueryId::new() }), tokio::sync::oneshot::channel());
            let kept = second.keep(5).expect("room");
            let task = tokio::spawn(async move {
                waiting.0.send(()).expect("somebody listens");
                second.reserve(50).await.map(|held| held.bytes())
            });
            waiting.1.await.expect("the task runs");
            assert!(!task.is_finished());
            drop(held);
            assert_eq!(task.await.expect("no panic").expect("room"), 50);
            drop(kept);
            assert!(matches!(first.reserve(101).await, Err(QueryError::TooMuchMemory { max_bytes: 100 })));
            assert_eq!(first.reserve_piece(101).await.expect("alone").bytes(), 100);
        }
    }
}
