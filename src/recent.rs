//! Where `query` meets `dataflow`: recent data, as one asks for it and the other has it.

use std::sync::Arc;

use async_trait::async_trait;
use dataflow::{Dataflow, DataflowError};
use query::{Recent, RecentError};
use storage::{
    id::{Tenant, TraceId},
    recent::{RecentAnswer, RecentPart, RecentTrace},
};

/// The dataflow of this process as a source of recent data.
#[derive(Clone, Debug)]
pub(crate) struct RecentData(pub(crate) Arc<Dataflow>);

#[async_trait]
impl Recent for RecentData {
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        self.0.trace(tenant, id).await.map_err(failed)
    }

    async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        self.0.traces(tenant).await.map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(error: DataflowError) -> RecentError {
    RecentError { cause: error.to_string() }
}
