//! The end of a generation, as everybody concerned learns of it.
//!
//! ```text
//!  socket breaks ─┐                        ┌─► workers: `is_set` is true, parked ones are woken; they return
//!  newer form    ─┼─► set(cause), once ────┼─► mesh: agrees with the others again
//!  panic, stop   ─┘                        └─► threads of timely: wait for the workers to be gone, then end in peace
//! ```

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::Epoch;

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The process stops.
    Stop,
    /// A connection to a member ended or broke.
    Peer {
        /// Whose.
        id: String,
        /// How.
        error: String,
    },
    /// There is a newer form: somebody was silent for too long, or came, or failed.
    Superseded {
        /// Its epoch.
        by: Epoch,
    },
    /// A worker of this process panicked.
    Panic {
        /// Its index among the workers of all processes.
        worker: usize,
        /// What it said.
        message: String,
    },
    /// A worker, or whoever works for it, of this process cannot go on.
    Failed {
        /// Why.
        error: String,
    },
    /// All workers of this process returned, or the formation was dropped.
    Done,
}

impl Cause {
    /// A word for it, as metrics carry it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Peer { .. } => "peer",
            Self::Superseded { .. } => "superseded",
            Self::Panic { .. } => "panic",
            Self::Failed { .. } => "failed",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => write!(f, "told to stop"),
            Self::Peer { id, error } => write!(f, "connection to member {id:?}: {error}"),
            Self::Superseded { by } => write!(f, "superseded by epoch {by}"),
            Self::Panic { worker, message } => write!(f, "worker {worker} panicked: {message}"),
            Self::Failed { error } => write!(f, "{error}"),
            Self::Done => write!(f, "workers returned"),
        }
    }
}

/// Whether a generation is lost. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct Lost(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Read by workers between any two steps.
    is_set: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// For the mesh, which does not block.
    noticed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    cause: Option<(Cause, Instant)>,
    /// To be woken when it is set.
    threads: Vec<Thread>,
    /// Workers that run.
    workers: usize,
    /// Whether all workers have come and gone.
    is_gone: bool,
}

impl Lost {
    /// One that tells the mesh, too, of everything that happens to it.
    pub(crate) fn noticed_by(noticed: Arc<Notify>) -> Self {
        Self(Arc::new(Shared { noticed, ..Shared::default() }))
    }

    /// Whether the generation is lost: workers return as soon as they see it.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// Ends the generation. The first cause is kept.
    pub fn set(&self, cause: Cause) {
        let threads = {
            let mut state = self.0.state.lock();
            if state.cause.is_some() {
                return;
            }
            state.cause = Some((cause, Instant::now()));
            self.0.is_set.store(true, Ordering::Release);
            std::mem::take(&mut state.threads)
        };
        self.0.changed.notify_all();
        self.0.noticed.notify_one();
        threads.iter().for_each(Thread::unpark);
    }

    /// Why it is lost, if it is.
    pub fn cause(&self) -> Option<Cause> {
        self.0.state.lock().cause.as_ref().map(|(cause, _)| cause.clone())
    }

    /// When it was lost, if it is.
    pub fn since(&self) -> Option<Instant> {
        self.0.state.lock().cause.as_ref().map(|(_, since)| *since)
    }

    /// Has a thread woken when the generation is lost, or at once if it is.
    pub fn wake(&self, thread: Thread) {
        let mut state = self.0.state.lock();
        if state.cause.is_some() {
            thread.unpark();
        } else {
            state.threads.push(thread);
        }
    }

    pub(crate) fn worker_begins(&self) {
        self.0.state.lock().workers += 1;
    }

    pub(crate) fn worker_ends(&self) {
        self.0.state.lock().workers -= 1;
        self.0.changed.notify_all();
    }

    /// Waits for all workers to end. False if some have not within `patience` of the loss, or of this call if that came later.
    pub(crate) fn wait_for_workers(&self, patience: Duration) -> bool {
        let mut state = self.0.state.lock();
        let mut deadline = None;
        while state.workers > 0 {
            if state.cause.is_none() {
                self.0.changed.wait(&mut state);
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
            if Instant::now() >= deadline {
                return false;
            }
            self.0.changed.wait_until(&mut state, deadline);
        }
        true
    }

    /// Whether the workers are gone and nobody wants what a connection brings.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_set() && self.0.state.lock().is_gone
    }

    /// Blocks until the workers are gone.
    pub(crate) fn wait_until_gone(&self) {
        let mut state = self.0.state.lock();
        while !state.is_gone {
            self.0.changed.wait(&mut state);
        }
    }

    pub(crate) fn workers_gone(&self) {
        self.set(Cause::Done);
        self.0.state.lock().is_gone = true;
        self.0.changed.notify_all();
    }
}

/// Held by whoever runs the formation; when it is dropped, the workers are gone.
#[derive(Debug)]
pub(crate) struct End(Lost);

impl End {
    pub(crate) fn new(lost: Lost) -> Self {
        Self(lost)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.workers_gone();
        self.0.0.noticed.notify_one();
    }
}
