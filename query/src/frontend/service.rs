//! The stream between a frontend and one worker of a querier, seen from the frontend.
//!
//! ```text
//!  worker                          frontend
//!    │ ── Process ──────────────────► │
//!    │ ◄────────────────────── GET_ID │
//!    │ ── clientID, features ───────► │
//!    │ ◄──────── request, or a batch  │   a batch only if the worker knows batches
//!    │ ── one answer per message ───► │   and so on
//!    ╳                                │   a broken stream: the jobs failed and may be tried again
//!    ╳ ◄──────────────────────────────│   nobody waits for the jobs any more: the stream is closed, the worker connects anew
//! ```

use std::{collections::HashMap, sync::Arc};

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response, Status, Streaming};

use super::{Batch, Frontend, Request};
use crate::{
    engine::{QueryError, RemoteError},
    job::{Answer, decode_outcome},
    proto::{
        frontend::{
            ClientToFrontend, Feature, FrontendToClient, NotifyClientShutdownRequest, NotifyClientShutdownResponse, Type, frontend_server,
        },
        httpgrpc::{Header, HttpRequest, HttpResponse},
    },
};

/// Where our jobs go.
pub(crate) const JOB_URL: &str = "/querier/rubato/job";

/// The header that says which query a job is of.
pub(crate) const QUERY_HEADER: &str = "X-Rubato-Query";

/// What an answer to one of our jobs is.
pub(crate) const OUTCOME_TYPE: &str = "application/x-rubato-outcome";

/// The gRPC service `frontend.Frontend`.
#[derive(Clone, Debug)]
pub struct FrontendService(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    frontend: Arc<Frontend>,
    /// Workers that are connected, by the name of their process: the number of streams, and whether it said farewell.
    clients: Mutex<HashMap<String, (usize, watch::Sender<bool>)>>,
}

impl FrontendService {
    /// The service of a frontend.
    pub fn new(frontend: Arc<Frontend>) -> Self {
        Self(Arc::new(Shared { frontend, clients: Mutex::default() }))
    }

    /// The service for a server that takes and sends messages of at most so many bytes.
    pub fn into_server(self, max_receive_bytes: usize, max_send_bytes: usize) -> frontend_server::FrontendServer<Self> {
        frontend_server::FrontendServer::new(self).max_decoding_message_size(max_receive_bytes).max_encoding_message_size(max_send_bytes)
    }
}

#[tonic::async_trait]
impl frontend_server::Frontend for FrontendService {
    type ProcessStream = ReceiverStream<Result<FrontendToClient, Status>>;

    async fn process(&self, call: Call<Streaming<ClientToFrontend>>) -> Result<Response<Self::ProcessStream>, Status> {
        let (sender, messages) = mpsc::channel(1);
        let (shared, inbound) = (Arc::clone(&self.0), call.into_inner());
        tokio::spawn(async move {
            if let Err(status) = serve(&shared, inbound, &sender).await {
                tracing::debug!(%status, "stream of a querier ends");
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn notify_client_shutdown(
        &self,
        call: Call<NotifyClientShutdownRequest>,
    ) -> Result<Response<NotifyClientShutdownResponse>, Status> {
        if let Some((_, stopping)) = self.0.clients.lock().get(&call.get_ref().client_id) {
            stopping.send_replace(true);
        }
        Ok(Response::new(NotifyClientShutdownResponse {}))
    }
}

/// A stream that is counted.
struct Connected<'s> {
    shared: &'s Shared,
    client: String,
    stopping: watch::Receiver<bool>,
}

impl<'s> Connected<'s> {
    fn new(shared: &'s Shared, client: String) -> Self {
        let stopping = {
            let mut clients = shared.clients.lock();
            let (streams, stopping) = clients.entry(client.clone()).or_insert_with(|| (0, watch::channel(false).0));
            *streams += 1;
            stopping.subscribe()
        };
        shared.frontend.metrics.connected.inc();
        Self { shared, client, stopping }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.shared.frontend.metrics.connected.dec();
        let mut clients = self.shared.clients.lock();
        if let Some((streams, _)) = clients.get_mut(&self.client) {
            *streams -= 1;
            if *streams == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Gives jobs to one worker until one of the two goes.
async fn serve(
    shared: &Shared,
    mut inbound: Streaming<ClientToFrontend>,
    outbound: &mpsc::Sender<Result<FrontendToClient, Status>>,
) -> Result<(), Status> {
    let gone = || Status::cancelled("the querier is gone");
    let question = HttpRequest { method: "GET".to_owned(), url: "/invalid_request_sent_by_frontend".to_owned(), ..HttpRequest::default() };
    let get_id = FrontendToClient { http_request: Some(question), r#type: Type::GetId.into(), ..FrontendToClient::default() };
    outbound.send(Ok(get_id)).await.map_err(|_| gone())?;
    let hello = inbound.message().await?.ok_or_else(gone)?;
    let weight = if hello.features & Feature::RequestBatching as i32 != 0 { shared.frontend.settings.max_batch_size } else { 1 };
    let mut connected = Connected::new(shared, hello.client_id);
    loop {
        // In this order: a stream that has ended must not take jobs that others could run.
        let batch = tokio::select! {
            biased;
            // It says nothing unasked, so that this is its end.
            _ = inbound.message() => return Err(gone()),
            _ = connected.stopping.wait_for(|stopping| *stopping) => return Ok(()),
            batch = shared.frontend.next(weight) => batch,
        };
        let Some(batch) = batch else { return Ok(()) };
        exchange(shared, &mut inbound, outbound, batch).await?;
    }
}

/// One message and its answer.
async fn exchange(
    shared: &Shared,
    inbound: &mut Streaming<ClientToFrontend>,
    outbound: &mpsc::Sender<Result<FrontendToClient, Status>>,
    batch: Batch<Request>,
) -> Result<(), Status> {
    let metrics = &shared.frontend.metrics;
    let mut requests: Vec<HttpRequest> = batch.entries.iter().map(|entry| request(&batch, entry)).collect();
    let is_batch = requests.len() > 1;
    let message = FrontendToClient {
        r#type: if is_batch { Type::HttpRequestBatch } else { Type::HttpRequest }.into(),
        http_request: if is_batch { None } else { requests.pop() },
        http_request_batch: requests,
    };
    let mut entries = batch.entries;
    if outbound.send(Ok(message)).await.is_err() {
        // It never got them, so that this was no try.
        for entry in entries {
            shared.frontend.put_back(&batch.tenant, entry);
        }
        return Err(Status::unavailable("the querier is gone"));
    }
    metrics.running.add(entries.len() as i64);
    let answers = async {
        let answer = inbound.message().await?.ok_or_else(|| Status::unavailable("the querier went away"))?;
        Ok(answer)
    };
    let outcome: Result<Option<ClientToFrontend>, Status> = tokio::select! {
        answer = answers => answer.map(Some),
        _ = join_all(entries.iter_mut().map(|entry| entry.reply.closed())) => Ok(None),
    };
    metrics.running.sub(entries.len() as i64);
    match outcome {
        Ok(Some(answer)) => {
            let answers = if is_batch { answer.http_response_batch } else { answer.http_response.into_iter().collect() };
            let missing = entries.len().saturating_sub(answers.len());
            let answers = answers.into_iter().map(|answer| outcome_of(&answer)).chain(std::iter::repeat_with(no_answer).take(missing));
            for (entry, outcome) in entries.into_iter().zip(answers) {
                // Whoever asked may have gone.
                _ = entry.reply.send(outcome);
            }
            Ok(())
        }
        Ok(None) => {
            metrics.cancelled.with_label_values(&["running"]).inc_by(entries.len() as u64);
            Err(Status::cancelled("nobody waits for the answer"))
        }
        Err(status) => {
            for entry in entries {
                _ = entry.reply.send(Err(QueryError::Transport { cause: status.message().to_owned() }));
            }
            Err(status)
        }
    }
}

fn request(batch: &Batch<Request>, entry: &Request) -> HttpRequest {
    let header = |key: &str, value: &str| Header { key: key.to_owned(), values: vec![value.to_owned()] };
    HttpRequest {
        method: "POST".to_owned(),
        url: JOB_URL.to_owned(),
        headers: vec![
            header("X-Scope-OrgID", batch.tenant.as_str()),
            header(QUERY_HEADER, &entry.query.to_string()),
            header("Accept", OUTCOME_TYPE),
        ],
        body: entry.job.encode(),
    }
}

fn outcome_of(answer: &HttpResponse) -> Result<Answer, QueryError> {
    let is_ours = |header: &Header| {
        header.key.eq_ignore_ascii_case("content-type") && header.values.first().is_some_and(|value| value == OUTCOME_TYPE)
    };
    if answer.headers.iter().any(is_ours) {
        return decode_outcome(&answer.body);
    }
    // Not one of our queriers.
    let message = String::from_utf8_lossy(&answer.body).into_owned();
    Err(QueryError::Remote(RemoteError { status: 500, message: format!("querier answers {}: {message}", answer.code), retryable: false }))
}

fn no_answer() -> Result<Answer, QueryError> {
    Err(QueryError::Transport { cause: "the querier answered less than it was asked".to_owned() })
}
