//! The workers of a querier: each holds one stream to one frontend and runs what comes through it.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use futures::future::join_all;
use prometheus::{IntCounter, IntGauge, Registry};
use storage::{id::Tenant, tls::Connector};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};
use tower::ServiceExt as _;

use super::addresses::{cause, channel, resolve};
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
    connector: Connector,
    runner: Arc<dyn Runner>,
    /// What is answered to frontends of Tempo.
    http: Router,
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
        Ok(Self { settings, connector: Connector::default(), runner, http: Router::new(), metrics })
    }

    /// The same, connecting by `connector` instead of in the clear.
    #[must_use]
    pub fn with_connector(self, connector: Connector) -> Self {
        Self { connector, ..self }
    }

    /// The workers with an API below `/querier`, which is what frontends of Tempo ask for.
    #[must_use]
    pub fn with_http(self, http: Router) -> Self {
        Self { http, ..self }
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
                Entry::Vacant(entry) => match channel(&address.to_string(), &self.connector) {
                    Ok(channel) => entry.insert((channel, JoinSet::new())),
                    Err(error) => {
                        tracing::warn!(%address, %error, "not an address");
                        continue;
                    }
                },
            };
            while workers.len() < streams {
                workers.spawn(Arc::clone(self).work(channel.clone(), *address, workers.len()));
            }
            if workers.len() > streams {
                // Rare: another frontend came. Fewer workers are made anew.
                *workers = JoinSet::new();
                while workers.len() < streams {
                    workers.spawn(Arc::clone(self).work(channel.clone(), *address, workers.len()));
                }
            }
        }
    }

    /// One stream after the other.
    async fn work(self: Arc<Self>, channel: Channel, address: SocketAddr, number: usize) {
        let (shortest, longest) = self.settings.backoff;
        let mut wait = shortest;
        let mut said = String::new();
        loop {
            match self.process(channel.clone()).await {
                Ok(()) => wait = shortest,
                Err(status) => {
                    let cause = cause(&status);
                    tracing::debug!(%address, cause, "stream to a query-frontend ends");
                    // One of a frontend's streams speaks for all of them, once for each thing that is wrong.
                    if number == 0 && said != cause {
                        tracing::warn!(%address, cause, "no jobs from a query-frontend");
                        said = cause;
                    }
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
            let answer = self.run_http(request).await;
            self.metrics.executed.inc();
            return answer;
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

impl Workers {
    /// Answers a frontend of Tempo, which sends URLs.
    async fn run_http(&self, request: &HttpRequest) -> HttpResponse {
        let refused = |code: i32, text: &str| HttpResponse { code, body: text.as_bytes().to_vec(), ..HttpResponse::default() };
        let headers = request.headers.iter().flat_map(|header| header.values.iter().map(|value| (header.key.as_str(), value.as_str())));
        let builder = http::Request::builder().method(request.method.as_str()).uri(request.url.as_str());
        let builder = headers.fold(builder, |builder, (key, value)| builder.header(key, value));
        let Ok(call) = builder.body(axum::body::Body::from(request.body.clone())) else { return refused(400, "invalid request\n") };
        let response = self.http.clone().oneshot(call).await.unwrap_or_else(|never| match never {});
        let (parts, body) = response.into_parts();
        // The frame takes its part, too.
        let most = self.settings.max_send_bytes.saturating_sub(1024);
        let Ok(body) = axum::body::to_bytes(body, most).await else {
            return refused(413, &format!("response larger than the max ({})", self.settings.max_send_bytes));
        };
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| Header {
            key: name.to_string(),
            values: vec![String::from_utf8_lossy(value.as_bytes()).into_owned()],
        };
        HttpResponse { code: parts.status.as_u16().into(), headers: parts.headers.iter().map(header).collect(), body: body.to_vec() }
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use axum::{extract::RawQuery, routing::any};
    use http::HeaderMap;

    use super::*;
    use crate::job::Answer;

    #[derive(Debug)]
    struct Nobody;

    #[async_trait]
    impl Runner for Nobody {
        async fn run(&self, _query: QueryId, _tenant: &Tenant, _job: Job) -> Result<Answer, QueryError> {
            Err(QueryError::QueueFull)
        }
    }

    fn workers(max_send_bytes: usize) -> Workers {
        let settings = WorkerSettings {
            id: "q".to_owned(),
            frontends: String::new(),
            lookup_interval: Duration::from_secs(1),
            concurrency: 1,
            parallelism: None,
            extra_delay: Duration::ZERO,
            max_receive_bytes: 1 << 20,
            max_send_bytes,
            backoff: (Duration::ZERO, Duration::ZERO),
        };
        let answer = async |RawQuery(query): RawQuery, headers: HeaderMap| {
            let tenant = headers.get("x-scope-orgid").map(|value| value.to_str().expect("text").to_owned());
            (http::StatusCode::ACCEPTED, [("content-type", "text/x-test")], format!("{query:?} {tenant:?}"))
        };
        let router = Router::new().route("/querier/api/search", any(answer));
        Workers::new(settings, Arc::new(Nobody), &Registry::new()).expect("metrics are new").with_http(router)
    }

    fn request(url: &str, tenant: &str) -> HttpRequest {
        let header = Header { key: "X-Scope-OrgID".to_owned(), values: vec![tenant.to_owned()] };
        HttpRequest { method: "GET".to_owned(), url: url.to_owned(), headers: vec![header], body: Vec::new() }
    }

    #[tokio::test]
    async fn frontends_of_tempo_are_answered_as_over_http() {
        let workers = workers(1 << 20);
        let answer = workers.run_one(&request("/querier/api/search?q=x", "a")).await;
        assert_eq!((answer.code, String::from_utf8_lossy(&answer.body).as_ref()), (202, "Some(\"q=x\") Some(\"a\")"));
        let content_type = answer.headers.iter().find(|header| header.key == "content-type").expect("a type");
        assert_eq!(content_type.values, ["text/x-test"]);
        assert_eq!(workers.run_one(&request("/querier/api/other", "a")).await.code, 404);
        assert_eq!(workers.run_one(&request("/querier/api/search", "a\nb")).await.code, 400);
        assert_eq!(workers.run_one(&request("no url at all", "a")).await.code, 400);
        assert_eq!(workers.metrics.executed.get(), 4);
    }

    #[tokio::test]
    async fn answers_that_are_too_large_are_refused() {
        let answer = workers(1024 + 10).run_one(&request("/querier/api/search?q=0123456789", "a")).await;
        assert_eq!((answer.code, String::from_utf8_lossy(&answer.body).as_ref()), (413, "response larger than the max (1034)"));
    }
}
