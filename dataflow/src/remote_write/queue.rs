//! What waits for an endpoint: collections, the oldest of which are dropped when there are too many.
//!
//! Values are cumulative, so a dropped collection costs resolution and no count. A collection shares its series with the snapshot it was
//! taken from, and with those before as far as nothing changed, so that waiting costs little memory.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::view::View;
use crate::generator::Accumulated;

/// A collection: a tenant's series at a time.
#[derive(Debug)]
pub(crate) struct Collection {
    /// Milliseconds since the Unix epoch.
    pub(crate) at: i64,
    /// Ordered by identity.
    pub(crate) series: Arc<[Arc<Accumulated>]>,
    /// See [`Snapshot::recovered`](crate::generator::Snapshot::recovered).
    pub(crate) recovered: Option<u64>,
    /// See [`Snapshot::tick_length`](crate::generator::Snapshot::tick_length).
    pub(crate) tick_length: Duration,
    /// How many samples that makes.
    pub(crate) samples: usize,
    /// How they look.
    pub(crate) view: Arc<View>,
}

impl Collection {
    /// When a series began, in milliseconds: the beginning of the tick of its first observation, the same in every collection. 0 if that is
    /// not known, or was not before the collection: a clock may have been set back.
    pub(crate) fn began(&self, series: &Accumulated) -> i64 {
        let began = self.tick_length.as_millis().saturating_mul(series.first.into());
        i64::try_from(began).ok().filter(|began| *began < self.at).unwrap_or_default()
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Samples that may wait. One collection may, however large.
    capacity: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Collection>>,
    samples: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default(), changed: Notify::new() }
    }

    /// Adds a collection. Returns how many samples were dropped for it.
    pub(crate) fn push(&self, collection: Arc<Collection>) -> usize {
        let mut state = self.state.lock();
        state.samples += collection.samples;
        state.waiting.push_back(collection);
        let before = state.samples;
        while state.samples > self.capacity && state.waiting.len() > 1 {
            let oldest = state.waiting.pop_front().map_or(0, |oldest| oldest.samples);
            state.samples -= oldest;
        }
        self.changed.notify_one();
        before - state.samples
    }

    /// The oldest collection; waits for one. `None` when the queue is closed and empty.
    pub(crate) async fn pop(&self) -> Option<Arc<Collection>> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(oldest) = state.waiting.pop_front() {
                    state.samples -= oldest.samples;
                    return Some(oldest);
                }
                if state.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// No more collections will come.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }
}
