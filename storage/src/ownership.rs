//! Who does a job that one process of several should do: the compaction of some blocks, the index of a tenant.
//!
//! Being the owner is an optimisation and never a lock: two processes may both believe it for a while.

use std::fmt::Debug;

/// Decides by the text of a job's key (block-format.md §13.4).
pub trait Ownership: Debug + Send + Sync + 'static {
    /// Whether this process does the job now.
    fn owns(&self, key: &str) -> bool;
}

/// The only process: it does everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sole;

impl Ownership for Sole {
    fn owns(&self, _key: &str) -> bool {
        true
    }
}
