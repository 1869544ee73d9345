//! Recent data: spans that may not be in a listed block yet.
//!
//! The dataflow has it and queries ask for it, and neither knows the other; these are the words that both use.
//!
//! ```text
//!  ingester 1 ─ Answer (epoch 7, process 0 of 3) ─┐
//!  ingester 2 ─ Answer (epoch 7, process 1 of 3) ─┼─► all there is, as each trace belongs to one process of an epoch
//!  ingester 3 ─ Answer (epoch 7, process 2 of 3) ─┘
//! ```
//!
//! An answer is true of one moment, for each trace. What was acknowledged before is, at that moment, in exactly one of: a part that is going
//! nowhere yet; a part that is going into a block; one of the blocks that the answer says were published; a block that was published so long
//! ago that everybody's list has it, or what it was compacted into. A span that was sent twice may be there twice.

use std::sync::Arc;

use crate::{
    block::Meta,
    id::{BlockId, TraceId},
    segment::Segment,
};

/// Some spans of one trace that share their fate.
#[derive(Clone, Debug)]
pub struct RecentPart {
    /// The block that they are going into, once that is decided. It may be listed already.
    pub going: Option<BlockId>,
    /// Their segments, in any order; spans may repeat.
    pub segments: Vec<Arc<Segment>>,
}

/// The spans of one trace that are recent.
#[derive(Clone, Debug)]
pub struct RecentTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its parts, in any order, at most one for each block and one for none.
    pub parts: Vec<RecentPart>,
}

/// What is recent of a tenant in one process, as of one moment for each trace.
#[derive(Clone, Debug, Default)]
pub struct RecentAnswer<T> {
    /// The data.
    pub data: T,
    /// Blocks of the tenant that were recent data until lately: for so long that every list of blocks has them meanwhile. They need not be
    /// live any more.
    pub published: Vec<Arc<Meta>>,
    /// Which part of all recent data this is.
    pub coverage: Coverage,
}

/// Which part of all recent data an answer is about. Processes that work together share it out among themselves anew in each epoch, so
/// that the answers of all processes of one epoch are everything, and answers of two epochs must not be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// The epoch; 0 for a process that works alone, whose epochs concern nobody else.
    pub epoch: u64,
    /// Number of the process that answers in its epoch, from 0.
    pub index: u32,
    /// How many processes of the epoch have a part of the data.
    pub processes: u32,
}

impl Coverage {
    /// Everything that a process has which works alone.
    pub const ALONE: Self = Self { epoch: 0, index: 0, processes: 1 };

    /// Whether the process works alone.
    pub fn is_alone(self) -> bool {
        self.epoch == 0
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self::ALONE
    }
}
