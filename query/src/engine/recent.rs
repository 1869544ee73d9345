//! Recent data, as the engine asks for it; [`storage::recent`] says what it is.

use std::fmt::Debug;

use async_trait::async_trait;
use storage::{
    id::{Tenant, TraceId},
    recent::{RecentAnswer, RecentPart, RecentTrace},
};

/// Data that may not be in a listed block yet. Implementations owe what [`storage::recent`] says of an answer.
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
