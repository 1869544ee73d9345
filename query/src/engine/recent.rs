//! Recent data: what may not be in a listed block yet, as seen from here.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use storage::{
    block::Meta,
    id::{BlockId, Tenant, TraceId},
    segment::Segment,
};

/// Some spans of one trace that share their fate.
#[derive(Clone, Debug)]
pub struct RecentPart {
    /// The block that they are going into, once that is decided. It may be listed already.
    pub going: Option<BlockId>,
    /// Their segments, in any order.
    pub segments: Vec<Arc<Segment>>,
}

/// The spans of one trace that are recent.
#[derive(Clone, Debug)]
pub struct RecentTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its parts, in any order.
    pub parts: Vec<RecentPart>,
}

/// Recent data as of one moment.
#[derive(Clone, Debug, Default)]
pub struct RecentAnswer<T> {
    /// The data.
    pub data: T,
    /// Blocks of the tenant that were recent data until lately: for so long that every list of blocks has them meanwhile. They need not be
    /// live any more.
    pub published: Vec<Arc<Meta>>,
}

/// Data that may not be in a listed block yet.
///
/// Implementations owe this: an answer is true of one moment, for each trace. What was acknowledged before is, at that moment, in exactly one
/// of: a part that is going nowhere yet; a part that is going into a block; one of the blocks that the answer says were published; a block
/// that was published so long ago that everybody's list has it, or what it was compacted into. A span that was sent twice may be there twice.
#[async_trait]
pub trait Recent: Debug + Send + Sync {
    /// Everything known of one trace that may not be in a listed block yet.
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError>;

    /// All recent traces of the tenant, each once.
    async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError>;
}

/// Why recent data cannot be read. Without it an answer could miss spans that were acknowledged, so the query fails; try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot guarantee complete results: {cause}")]
pub struct RecentError {
    /// What is wrong.
    pub cause: String,
}
