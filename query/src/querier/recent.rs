//! The service `rubato.Recent`: runs a querier's jobs where recent data is.

use std::sync::Arc;

use storage::id::Tenant;
use tonic::{Request, Response, Status};

use crate::{
    job::{Job, QueryId, Runner, encode_outcome},
    proto::rubato::{RecentJob, RecentOutcome, recent_server},
};

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct RecentService(Arc<dyn Runner>);

impl RecentService {
    /// The service over what has the recent data of this process.
    pub fn new(runner: Arc<dyn Runner>) -> Self {
        Self(runner)
    }

    /// The service for a server that takes and sends messages of at most so many bytes.
    pub fn into_server(self, max_receive_bytes: usize, max_send_bytes: usize) -> recent_server::RecentServer<Self> {
        recent_server::RecentServer::new(self).max_decoding_message_size(max_receive_bytes).max_encoding_message_size(max_send_bytes)
    }
}

#[tonic::async_trait]
impl recent_server::Recent for RecentService {
    async fn run(&self, request: Request<RecentJob>) -> Result<Response<RecentOutcome>, Status> {
        let RecentJob { tenant, job } = request.into_inner();
        let tenant = Tenant::new(&tenant).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let job = Job::decode(&job).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !job.is_recent() {
            return Err(Status::invalid_argument("the job is not about recent data"));
        }
        // Dropped with the call when the querier does not wait any more.
        // One job of a query is all that comes here at a time.
        let outcome = self.0.run(QueryId::new(), &tenant, job).await;
        Ok(Response::new(RecentOutcome { outcome: encode_outcome(&outcome) }))
    }
}
