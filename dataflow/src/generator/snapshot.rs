//! What is shown to the outside: the collections as of a committed checkpoint.
//!
//! A snapshot is published when the manifest that holds the same state is on the bucket, never before. So whatever was read from a
//! snapshot, a recovery begins at it or later: no counter goes backwards, even through kill -9.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use storage::id::{Tenant, TraceId};
use tokio::sync::watch;

use super::{agg::Agg, series::Series};

/// A trace that is an example of a value in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemplar {
    /// Bucket of the classic histogram, or of the native one where there is no classic one. As in [`Buckets`](super::Buckets).
    pub bucket: i32,
    /// The trace.
    pub trace_id: TraceId,
    /// Duration of its span (or edge) in nanoseconds.
    pub nanoseconds: u64,
    /// When the span ended, Unix nanoseconds.
    pub at: u64,
}

/// A series and what it has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accumulated {
    /// The series.
    pub series: Series,
    /// Everything that was observed.
    pub agg: Agg,
    /// Tick of the first observation. A series that became stale and comes again begins anew, with a later one.
    pub first: u64,
    /// Tick of the last observation.
    pub last: u64,
    /// The latest example of each bucket that had one, by bucket.
    #[serde(skip)]
    pub exemplars: Vec<Exemplar>,
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of the manifest that holds this state; grows with every snapshot. 0 before the first.
    pub sequence: u64,
    /// All records that arrived up to this tick are in it, and none that arrived later.
    pub tick: u64,
    /// The end of that tick, since the Unix epoch.
    pub at: Duration,
    /// How long a tick is.
    pub tick_length: Duration,
    /// The tick with which the generation began, if it took series up: those that were observed first at it or before were shown before, perhaps by another
    /// process.
    pub recovered: Option<u64>,
    /// By tenant: all its series, ordered by identity.
    pub tenants: HashMap<Tenant, Arc<[Arc<Accumulated>]>>,
}

/// Where the newest snapshot is read. Cheap to clone; all clones see the same.
#[derive(Clone, Debug)]
pub struct Snapshots {
    current: watch::Sender<Arc<Snapshot>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { current: watch::Sender::new(Arc::default()) }
    }
}

impl Snapshots {
    /// The newest snapshot; an empty one before the first.
    pub fn latest(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    /// Tells of each new snapshot, or at least of the newest.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Replaces the newest snapshot. For the committer, and for tests of what reads snapshots.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.send_replace(Arc::new(snapshot));
    }
}
