//! Memory for looking at a request: the list of its spans and the traces they belong to, kept from one request to the next.
//!
//! Ordinary bodies use one such memory per thread; bodies above [`LARGE_BODY`] share a single one and take turns, so that a burst of huge
//! requests costs the memory of one.

use std::cell::RefCell;

use storage::otlp::{SpanEntry, Walk};

use crate::traces::Batch;

/// Bodies above this many bytes are walked one after the other.
const LARGE_BODY: usize = 1 << 20;
/// Spans for which memory is kept between requests.
const KEPT_SPANS: usize = 1 << 15;

/// What a walk over a request fills.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) walk: Walk,
    /// Spans of several walks.
    pub(crate) spans: Vec<SpanEntry>,
    pub(crate) batch: Batch,
}

impl Scratch {
    fn shrink(&mut self) {
        if self.walk.spans.capacity() > KEPT_SPANS {
            self.walk = Walk::default();
        }
        if self.spans.capacity() > KEPT_SPANS {
            self.spans = Vec::new();
        }
        self.batch.shrink(KEPT_SPANS);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Hands out memory; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Scratches {
    /// A tokio mutex because requests wait for it; not held across an await.
    large: tokio::sync::Mutex<Scratch>,
}

impl Scratches {
    /// Does the work of a request of `bytes` bytes.
    pub(crate) async fn with<T>(&self, bytes: usize, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let work = |scratch: &mut Scratch| {
            let result = work(scratch);
            scratch.shrink();
            result
        };
        if bytes > LARGE_BODY { work(&mut *self.large.lock().await) } else { SCRATCH.with_borrow_mut(work) }
    }
}
