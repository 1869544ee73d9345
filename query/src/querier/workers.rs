//! The workers of a querier: each holds one stream to one frontend and runs what comes through it.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use prometheus::{IntCounter, IntGauge, Registry};
use storage::id::Tenant;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::addresses::{channel, resolve};
use crate::{
    engine::{QueryError, RemoteError},
    frontend::{JOB_URL, OUTCOME_TYPE, QUERY_HEADER},
    job::{Job, QueryId, Runner, encode_outcome},
    proto::{
        frontend::{ClientToFrontend, Feature, FrontendToClient, NotifyClientShutdownRequest, Type, frontend_client::FrontendClient},
        httpgrpc::{Header, HttpRequest, HttpResponse},
    },
};

/// Settings of a querier's workers.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Name of the process (`querier.frontend_worker.id`).
    pub id: String,
    /// `host:port` of the frontends, separated by commas (`querier.frontend_worker.frontend_address`).
    pub frontends: String,
    /// How often they are looked up (`querier.frontend_worker.dns_lookup_duration`).
    pub lookup_interval: Duration,
    /// Streams to all frontends together (`querier.max_concurrent_queries`, when `match_max_concurrent`).
    pub concurrency: usize,
    /// Streams to each frontend, instead (`querier.frontend_worker.parallelism`).
    pub parallelism: Option<usize>,
    /// Jobs wait this long before they begin, for experiments (`querier.extra_query_delay`).
    pub extra_delay: Duration,
    /// Largest message that is taken.
    pub max_receive_bytes: usize,
    /// Largest message that is sent.
    pub max_send_bytes: usize,
    /// Shortest and longest time between two tries to connect.
    pub backoff: (Duration, Duration),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Workers {
    settings: WorkerSettings,
    runner: Arc<dyn Runner>,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Metrics {
    executed: IntCounter,
    cancelled: IntCounter,
    running: IntGauge,
    connected: IntGauge,
}

impl Workers {
    /// Workers that run jobs by `runner`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(settings: WorkerSettings, runner: Arc<dyn Runner>, registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Metrics {
            executed: IntCounter::new("tempo_querier_worker_request_executed_total", "Jobs that were run for query-frontends.")?,
            cancelled: IntCounter::new("rubato_querier_cancelled_jobs_total", "Jobs that the query-frontend gave up while they ran.")?,
            running: IntGauge::new("rubato_querier_running_jobs", "Jobs that run.")?,
            connected: IntGauge::new("rubato_querier_connected_streams", "Streams to query-frontends that are connected.")?,
        };
        registry.register(Box::new(metrics.executed.clone()))?;
        registry.register(Box::new(metrics.cancelled.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        Ok(Self { settings, runner, metrics })
    }

    /// Whether there is a frontend to work for.
    pub fn is_connected(&self) -> bool {
        self.metrics.connected.get() > 0
    }

    /// Works until `stop` is there; then says farewell and ends what runs.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut frontends: BTreeMap<SocketAddr, (Channel, JoinSet<()>)> = BTreeMap::new();
        let follow = async {
            loop {
                let addresses = resolve(&self.settings.frontends).await;
                self.follow(&mut frontends, &addresses);
                tokio::time::sleep(self.settings.lookup_interval.max(Duration::from_millis(100))).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = stop => {}
        }
        let farewell = frontends.values().map(|(channel, _)| {
            let mut client = FrontendClient::new(channel.clone());
            let request = NotifyClientShutdownRequest { client_id: self.settings.id.clone() };
            async move {
                // One that does not hear it finds the streams closed.
                _ = tokio::time::timeout(Duration::from_secs(1), client.notify_client_shutdown(request)).await;
            }
        });
        join_all(farewell).await;
        let idle = async {
            while self.metrics.running.get() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        _ = tokio::time::timeout(FAREWELL, idle).await;
    }

    /// Has the right number of workers for each frontend.
    fn follow(self: &Arc<Self>, frontends: &mut BTreeMap<SocketAddr, (Channel, JoinSet<()>)>, addresses: &BTreeSet<SocketAddr>) {
        // Those of the ones that have gone end with their task sets.
        frontends.retain(|address, _| addresses.contains(address));
        let share = self.settings.concurrency.max(1).div_ceil(addresses.len().max(1));
        let streams = self.settings.parallelism.unwrap_or(share).max(1);
        for address in addresses {
            let (channel, workers) = match frontends.entry(*address) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => match channel(&address.to_string()) {
                    Ok(channel) => entry.insert((channel, JoinSet::new())),
                    Err(error) => {
                        tracing::warn!(%address, %error, "not an address");
                        continue;
                    }
                },
            };
            while workers.len() < streams {
                workers.spawn(Arc::clone(self).work(channel.clone(), *address));
            }
            if workers.len() > streams {
                // Rare: another frontend came. Fewer workers are made anew.
                *workers = JoinSet::new();
                while workers.len() < streams {
                    workers.spawn(Arc::clone(self).work(channel.clone(), *address));
                }
            }
        }
    }

    /// One stream after the other.
    async fn work(self: Arc<Self>, channel: Channel, address: SocketAddr) {
        let (shortest, longest) = self.settings.backoff;
        let mut wait = shortest;
        loop {
            match self.process(channel.clone()).await {
                Ok(()) => wait = shortest,
                Err(status) => {
                    tracing::debug!(%address, status = %status.message(), "stream to a query-frontend ends");
                    wait = (wait * 2).min(longest.max(shortest));
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Runs what comes through one stream until it ends.
    async fn process(&self, channel: Channel) -> Result<(), Status> {
        let mut client = FrontendClient::new(channel)
            .max_decoding_message_size(self.settings.max_receive_bytes)
            .max_encoding_message_size(self.settings.max_send_bytes);
        let (sender, outbound) = mpsc::channel::<ClientToFrontend>(1);
        let mut inbound = client.process(ReceiverStream::new(outbound)).await?.into_inner();
        let _connected = Counted::new(&self.metrics.connected, 1);
        while let Some(message) = inbound.message().await? {
            let reply = if message.r#type == Type::GetId as i32 {
                let features = Feature::RequestBatching as i32;
                ClientToFrontend { client_id: self.settings.id.clone(), features, ..ClientToFrontend::default() }
            } else {
                tokio::select! {
                    reply = self.answer(message) => reply,
                    // Nothing comes before the answer but the end: nobody waits for it any more.
                    _ = inbound.message() => {
                        self.metrics.cancelled.inc();
                        return Ok(());
                    }
                }
            };
            sender.send(reply).await.map_err(|_| Status::cancelled("the query-frontend is gone"))?;
        }
        Ok(())
    }

    async fn answer(&self, message: FrontendToClient) -> ClientToFrontend {
        let answers = async |requests: Vec<HttpRequest>| {
            let _running = Counted::new(&self.metrics.running, requests.len());
            join_all(requests.iter().map(|request| self.run_one(request))).await
        };
        if message.r#type == Type::HttpRequestBatch as i32 {
            let http_response_batch = answers(message.http_request_batch).await;
            return ClientToFrontend { http_response_batch, ..ClientToFrontend::default() };
        }
        let http_response = answers(message.http_request.into_iter().collect()).await.pop();
        ClientToFrontend { http_response, ..ClientToFrontend::default() }
    }

    async fn run_one(&self, request: &HttpRequest) -> HttpResponse {
        if request.url != JOB_URL {
            // A frontend of Tempo, or of another release.
            return HttpResponse { code: 404, body: b"404 page not found\n".to_vec(), ..HttpResponse::default() };
        }
        if !self.settings.extra_delay.is_zero() {
            tokio::time::sleep(self.settings.extra_delay).await;
        }
        let outcome = match job(request) {
            Ok((query, tenant, job)) => self.runner.run(query, &tenant, job).await,
            Err(message) => Err(QueryError::Remote(RemoteError { status: 400, message, retryable: false })),
        };
        self.metrics.executed.inc();
        let code = outcome.as_ref().map_or_else(|error| i32::from(error.status()), |_| 200);
        let mut body = encode_outcome(&outcome);
        // The frame takes its part, too.
        if body.len() + 1024 > self.settings.max_send_bytes {
            let message = format!("response larger than the max ({} vs {})", body.len(), self.settings.max_send_bytes);
            body = encode_outcome(&Err(QueryError::Remote(RemoteError { status: 500, message, retryable: false })));
        }
        let headers = vec![Header { key: "Content-Type".to_owned(), values: vec![OUTCOME_TYPE.to_owned()] }];
        HttpResponse { code, headers, body }
    }
}

/// How long what runs may go on after a farewell.
const FAREWELL: Duration = Duration::from_secs(5);

fn job(request: &HttpRequest) -> Result<(QueryId, Tenant, Job), String> {
    let header = |name: &str| {
        let header = request.headers.iter().find(|header| header.key.eq_ignore_ascii_case(name));
        header.and_then(|header| header.values.first())
    };
    let tenant = Tenant::new(header("x-scope-orgid").ok_or("no org id")?).map_err(|error| error.to_string())?;
    let query = header(QUERY_HEADER).ok_or("no query id")?.parse().map_err(|error: uuid::Error| error.to_string())?;
    Ok((query, tenant, Job::decode(&request.body).map_err(|error| error.to_string())?))
}

/// A gauge that counts something as long as it goes on.
struct Counted<'m>(&'m IntGauge, i64);

impl<'m> Counted<'m> {
    fn new(gauge: &'m IntGauge, number: usize) -> Self {
        let number = i64::try_from(number).unwrap_or(0);
        gauge.add(number);
        Self(gauge, number)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}
