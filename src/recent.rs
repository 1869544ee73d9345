//! Where `query` meets `dataflow`: recent data, as one asks for it and the other has it.

use std::sync::Arc;

use async_trait::async_trait;
use dataflow::{Dataflow, DataflowError};
use query::{Recent, RecentAnswer, RecentError, RecentPart, RecentTrace};
use storage::id::{Tenant, TraceId};

/// The dataflow of this process as a source of recent data.
#[derive(Clone, Debug)]
pub(crate) struct RecentData(pub(crate) Arc<Dataflow>);

#[async_trait]
impl Recent for RecentData {
    async fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        let answer = self.0.trace(tenant, id).await.map_err(failed)?;
        Ok(RecentAnswer { data: parts(answer.data), published: answer.published })
    }

    async fn traces(&self, tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        let answer = self.0.traces(tenant).await.map_err(failed)?;
        let trace = |trace: dataflow::RecentTrace| RecentTrace { trace_id: trace.trace_id, parts: parts(trace.parts) };
        Ok(RecentAnswer { data: answer.data.into_iter().map(trace).collect(), published: answer.published })
    }
}

fn parts(parts: Vec<dataflow::RecentPart>) -> Vec<RecentPart> {
    parts.into_iter().map(|part| RecentPart { going: part.going, segments: part.segments }).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(error: DataflowError) -> RecentError {
    RecentError { cause: error.to_string() }
}
