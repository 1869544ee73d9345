//! Where `query` meets `dataflow`: recent data, as one asks for it and the other has it.

use std::sync::Arc;

use async_trait::async_trait;
use dataflow::{Dataflow, DataflowError};
use query::{Recent, RecentError, RecentTrace};
use storage::{
    id::{Tenant, TraceId},
    segment::Segment,
};

/// The dataflow of this process as a source of recent data.
#[derive(Clone, Debug)]
pub(crate) struct RecentData(pub(crate) Arc<Dataflow>);

#[async_trait]
impl Recent for RecentData {
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<Vec<Arc<Segment>>, RecentError> {
        self.0.trace(tenant, id).await.map_err(failed)
    }

    async fn traces(&self, tenant: &Tenant) -> Result<Vec<RecentTrace>, RecentError> {
        let traces = self.0.traces(tenant).await.map_err(failed)?;
        Ok(traces.into_iter().map(|trace| RecentTrace { trace_id: trace.trace_id, segments: trace.segments }).collect())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(error: DataflowError) -> RecentError {
    RecentError { cause: error.to_string() }
}
