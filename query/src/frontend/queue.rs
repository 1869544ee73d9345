//! A bounded queue per tenant, whose tenants take turns.
//!
//! ```text
//!  push ─► tenant a │▒▒▒▒▒▒│ ─┐
//!          tenant b │▒│      ─┼─ turns: a b c a b … ─► next: a batch of one tenant
//!          tenant c │▒▒▒│    ─┘
//! ```
//!
//! *Invariants:* a tenant never has more than `capacity` entries; with n tenants waiting, each is served once in n turns; the entries of a
//! tenant leave in the order in which they came; an entry that nobody waits for any more leaves without being served, and does not keep a new
//! one out.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use parking_lot::Mutex;
use prometheus::IntCounter;
use storage::id::Tenant;
use tokio::sync::Notify;

/// Something that waits in a queue.
pub(crate) trait Entry {
    /// What it counts in a batch; at least 1.
    fn weight(&self) -> usize;

    /// Whether nobody waits for it any more.
    fn is_cancelled(&self) -> bool;
}

/// The tenant has too much waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// See the module documentation.
pub(crate) struct Queue<E> {
    capacity: usize,
    state: Mutex<State<E>>,
    changed: Notify,
    /// Entries that left because nobody waited for them any more.
    cancelled: IntCounter,
}

struct State<E> {
    waiting: HashMap<Tenant, VecDeque<E>>,
    /// Tenants with entries, each once, next first.
    turns: VecDeque<Tenant>,
    is_closed: bool,
}

impl<E> fmt::Debug for Queue<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl<E: Entry> Queue<E> {
    /// At most `capacity` entries of each tenant; `cancelled` counts those that nobody waited for any more.
    pub(crate) fn new(capacity: usize, cancelled: IntCounter) -> Self {
        let state = State { waiting: HashMap::new(), turns: VecDeque::new(), is_closed: false };
        Self { capacity: capacity.max(1), state: Mutex::new(state), changed: Notify::new(), cancelled }
    }

    /// Puts an entry in. Returns how many the tenant has now.
    pub(crate) fn push(&self, tenant: &Tenant, entry: E) -> Result<usize, Full> {
        let mut state = self.state.lock();
        let State { waiting, turns, is_closed } = &mut *state;
        if *is_closed {
            // Dropping the entry tells whoever waits for it.
            return Ok(0);
        }
        // Who has a list of entries has a turn.
        if !waiting.contains_key(tenant) {
            waiting.insert(tenant.clone(), VecDeque::new());
            turns.push_back(tenant.clone());
        }
        let entries = waiting.entry(tenant.clone()).or_default();
        if entries.len() >= self.capacity {
            let before = entries.len();
            entries.retain(|entry| !entry.is_cancelled());
            self.cancelled.inc_by((before - entries.len()) as u64);
        }
        if entries.len() >= self.capacity {
            return Err(Full);
        }
        entries.push_back(entry);
        let length = entries.len();
        drop(state);
        self.changed.notify_one();
        Ok(length)
    }

    /// Entries of the tenant whose turn it is, of at most `weight` together, but at least one; waits until there are some. `None` once the
    /// queue is closed. Dropping the future loses nothing.
    pub(crate) async fn next(&self, weight: usize) -> Option<Batch<E>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.is_closed {
                    // Others wait, too.
                    self.changed.notify_one();
                    return None;
                }
                let batch = state.take(weight, &self.cancelled);
                if !state.turns.is_empty() {
                    self.changed.notify_one();
                }
                if batch.is_some() {
                    return batch;
                }
            }
            changed.await;
        }
    }

    /// Drops everything that waits and lets nobody wait any more.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.waiting.clear();
        state.turns.clear();
        drop(state);
        self.changed.notify_one();
    }
}

/// Entries of one tenant.
#[derive(Debug)]
pub(crate) struct Batch<E> {
    /// The tenant.
    pub(crate) tenant: Tenant,
    /// Its entries, none cancelled as of now.
    pub(crate) entries: Vec<E>,
    /// What they weigh.
    pub(crate) weight: usize,
    /// How many are left of the tenant.
    pub(crate) left: usize,
}

impl<E: Entry> State<E> {
    fn take(&mut self, most: usize, cancelled: &IntCounter) -> Option<Batch<E>> {
        while let Some(tenant) = self.turns.pop_front() {
            let Some(waiting) = self.waiting.get_mut(&tenant) else { continue };
            let mut batch = Batch { tenant, entries: Vec::new(), weight: 0, left: 0 };
            while let Some(entry) = waiting.pop_front_if(|entry| entry.is_cancelled() || batch.fits(entry.weight(), most)) {
                if entry.is_cancelled() {
                    cancelled.inc();
                    continue;
                }
                batch.weight += entry.weight().max(1);
                batch.entries.push(entry);
            }
            batch.left = waiting.len();
            if waiting.is_empty() {
                self.waiting.remove(&batch.tenant);
            } else {
                self.turns.push_back(batch.tenant.clone());
            }
            if !batch.entries.is_empty() {
                return Some(batch);
            }
        }
        None
    }
}

impl<E> Batch<E> {
    fn fits(&self, weight: usize, most: usize) -> bool {
        self.entries.is_empty() || self.weight + weight.max(1) <= most
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Item {
        number: usize,
        weight: usize,
        cancelled: Arc<Mutex<bool>>,
    }

    impl Entry for Item {
        fn weight(&self) -> usize {
            self.weight
        }

        fn is_cancelled(&self) -> bool {
            *self.cancelled.lock()
        }
    }

    fn counter() -> IntCounter {
        IntCounter::new("cancelled", "for a test").expect("a name")
    }

    fn tenant(number: usize) -> Tenant {
        Tenant::new(&format!("t{number}")).expect("a tenant")
    }

    fn item(number: usize, weight: usize) -> Item {
        Item { number, weight, cancelled: Arc::default() }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { tenant: usize, weight: usize },
        Cancel { which: usize },
        Take { most: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..4, 1usize..4).prop_map(|(tenant, weight)| Step::Push { tenant, weight }),
            1 => (0usize..64).prop_map(|which| Step::Cancel { which }),
            2 => (1usize..6).prop_map(|most| Step::Take { most }),
        ]
    }

    proptest! {
        /// Against lists: bounds, order within a tenant, turns between them, and that what is cancelled never comes out.
        #[test]
        fn it_is_bounded_ordered_and_fair(steps in prop::collection::vec(step(), 0..200), capacity in 1usize..8) {
            let queue = Queue::new(capacity, counter());
            let mut model: BTreeMap<usize, VecDeque<Item>> = BTreeMap::new();
            let mut turns: VecDeque<usize> = VecDeque::new();
            let mut items: Vec<Item> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push { tenant: owner, weight } => {
                        let item = item(number, weight);
                        items.push(item.clone());
                        let waiting = model.entry(owner).or_default();
                        if waiting.len() >= capacity {
                            waiting.retain(|item| !item.is_cancelled());
                        }
                        let expected = if waiting.len() < capacity { Ok(waiting.len() + 1) } else { Err(Full) };
                        prop_assert_eq!(queue.push(&tenant(owner), item.clone()), expected);
                        if expected.is_ok() {
                            waiting.push_back(item);
                            if !turns.contains(&owner) {
                                turns.push_back(owner);
                            }
                        }
                    }
                    Step::Cancel { which } if !items.is_empty() => *items[which % items.len()].cancelled.lock() = true,
                    Step::Cancel { .. } => {}
                    Step::Take { most } => {
                        let mut expected = None;
                        while expected.is_none()
                            && let Some(owner) = turns.pop_front()
                        {
                            let waiting = model.entry(owner).or_default();
                            let (mut batch, mut weight) = (Vec::new(), 0);
                            while let Some(item) = waiting.front() {
                                if !item.is_cancelled() {
                                    if !batch.is_empty() && weight + item.weight > most {
                                        break;
                                    }
                                    weight += item.weight;
                                    batch.push(item.number);
                                }
                                waiting.pop_front();
                            }
                            if !waiting.is_empty() {
                                turns.push_back(owner);
                            }
                            if !batch.is_empty() {
                                expected = Some((tenant(owner), batch));
                            }
                        }
                        let taken = queue.state.lock().take(most, &queue.cancelled);
                        let taken = taken.map(|batch| (batch.tenant, batch.entries.iter().map(|item| item.number).collect::<Vec<_>>()));
                        prop_assert_eq!(taken, expected);
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_flood_of_one_tenant_does_not_keep_another_waiting() {
        let queue = Queue::new(1000, counter());
        for number in 0..1000 {
            queue.push(&tenant(1), item(number, 1)).expect("room");
        }
        assert_eq!(queue.push(&tenant(1), item(0, 1)), Err(Full));
        queue.push(&tenant(2), item(7, 1)).expect("room for another");
        let first = queue.next(5).await.expect("open");
        let second = queue.next(5).await.expect("open");
        assert_eq!((first.tenant, first.entries.len(), first.left), (tenant(1), 5, 995));
        assert_eq!((second.tenant, second.entries[0].number), (tenant(2), 7));
    }

    #[tokio::test]
    async fn everybody_who_waits_is_woken() {
        let queue = Arc::new(Queue::new(10, counter()));
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.next(1).await.map(|batch| batch.entries.len()) })
            })
            .collect();
        for number in 0..2 {
            queue.push(&tenant(number), item(number, 1)).expect("room");
        }
        tokio::task::yield_now().await;
        tokio::time::timeout(Duration::from_secs(60), async {
            while waiting.iter().filter(|task| task.is_finished()).count() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("two are served");
        queue.close();
        let mut served = 0;
        for task in waiting {
            served += task.await.expect("no panic").unwrap_or(0);
        }
        assert_eq!(served, 2);
    }
}
