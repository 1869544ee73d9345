//! Sends the collections of one tenant to one endpoint: one after the other, the batches of each a few at a time.
//!
//! ```text
//!  queue ──► collection ──► zeros ──► up to 4 requests ──► values ──► up to 4 requests ──► next collection
//!                                      └ until written or refused, with pauses ┘
//! ```
//!
//! A request holds one sample of a series at most, and a phase begins when the one before is done with; so samples of a series arrive in the
//! order of time, whatever is tried again. A batch is tried until it is written or refused; meanwhile collections wait in the
//! queue, which drops the oldest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use storage::{clock::Clock, id::Tenant};

use super::{
    batches::{Phase, Transition},
    client::{self, Client, EndpointError, Outcome, Request},
    metrics::EndpointMetrics,
    protocol::{Batch, Count, Family, Protocol, encode_metadata},
    queue::{Collection, Queue},
    relabel::Relabel,
    settings::{self, Overrides, Settings},
    view::Metric,
};

/// Requests of a tenant to an endpoint that may be under way at the same time, however many shards are configured.
const MAX_CONCURRENCY: usize = 4;

/// An endpoint, shared by all tenants.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) settings: settings::Endpoint,
    /// The label `remote_name`.
    pub(crate) name: String,
    client: Client,
    relabel: Relabel,
    /// The receiver has shown that it doesn't know protocol 2.0.
    knows_only_v1: AtomicBool,
    add_org_id_header: bool,
}

impl Endpoint {
    pub(crate) fn new(endpoint: &settings::Endpoint, settings: &Settings) -> Result<Self, EndpointError> {
        let relabel = Relabel::new(&endpoint.relabel).map_err(|why| EndpointError::Relabel { url: endpoint.url.clone(), why })?;
        let digest: [u8; 16] = Md5::digest(endpoint.url.as_bytes()).into();
        let digits: String = digest[..3].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            settings: endpoint.clone(),
            name: if endpoint.name.is_empty() { digits } else { endpoint.name.clone() },
            client: Client::new(endpoint, &settings.user_agent)?,
            relabel,
            knows_only_v1: AtomicBool::new(false),
            add_org_id_header: settings.add_org_id_header,
        })
    }

    fn protocol(&self) -> Protocol {
        if self.knows_only_v1.load(Ordering::Relaxed) { Protocol::V1 } else { self.settings.protocol }
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.settings.queue.max_shards.clamp(1, MAX_CONCURRENCY)
    }

    /// Samples that may wait in a queue.
    pub(crate) fn queue_capacity(&self) -> usize {
        self.settings.queue.capacity.saturating_mul(self.settings.queue.max_shards.max(1))
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) tenant: Tenant,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) overrides: Arc<dyn Overrides>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: EndpointMetrics,
    random: Mutex<ChaCha8Rng>,
}

impl Sender {
    pub(crate) fn new(
        tenant: Tenant,
        endpoint: Arc<Endpoint>,
        overrides: Arc<dyn Overrides>,
        clock: Arc<dyn Clock>,
        metrics: EndpointMetrics,
        seed: u64,
    ) -> Self {
        let [shards, desired, most] = &metrics.shards;
        let concurrency = i64::try_from(endpoint.concurrency()).unwrap_or(i64::MAX);
        for gauge in [shards, desired] {
            gauge.set(concurrency);
        }
        most.set(i64::try_from(endpoint.settings.queue.max_shards).unwrap_or(i64::MAX));
        let queue = Arc::new(Queue::new(endpoint.queue_capacity()));
        Self { tenant, endpoint, queue, overrides, clock, metrics, random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)) }
    }

    /// Queues a collection.
    pub(crate) fn push(&self, collection: &Arc<Collection>) {
        self.metrics.pending.add(gauge(collection.samples));
        let dropped = self.queue.push(Arc::clone(collection));
        self.metrics.pending.sub(gauge(dropped));
        self.metrics.dropped("queue_full", dropped);
    }

    /// Sends what is queued until the queue is closed and empty. `last` is what counts as sent already.
    pub(crate) async fn run(&self, mut last: Arc<Collection>, started: i64) {
        let mut floor = started;
        let mut told_metadata: Option<Instant> = None;
        while let Some(collection) = self.queue.pop().await {
            let settings = &self.endpoint.settings;
            if let Some(interval) = settings.metadata_interval
                && self.endpoint.protocol() == Protocol::V1
                && told_metadata.is_none_or(|told| told.elapsed() >= interval)
            {
                self.tell_metadata(&collection).await;
                told_metadata = Some(Instant::now());
            }
            let transition = Transition::new(&last, &collection, floor);
            for phase in [Phase::Zeros, Phase::Values] {
                let mut batches = transition.batches(phase, settings.queue.max_samples_per_send, &self.endpoint.relabel);
                futures::stream::iter(&mut batches).for_each_concurrent(self.endpoint.concurrency(), |batch| self.deliver(batch)).await;
                self.metrics.dropped("dropped_series", batches.dropped);
            }
            if transition.has_ended() {
                floor = collection.at;
            }
            self.metrics.pending.sub(gauge(collection.samples));
            last = collection;
        }
    }

    /// What goes beside the protocol's own headers; `None` if it can't be sent.
    fn headers(&self) -> Option<http::HeaderMap> {
        let of_tenant = self.overrides.remote_write(&self.tenant);
        let mut headers = client::headers(self.endpoint.settings.headers.iter().chain(&of_tenant.headers))?;
        if self.endpoint.add_org_id_header && !headers.contains_key("x-scope-orgid") {
            headers.insert("x-scope-orgid", self.tenant.as_str().parse().ok()?);
        }
        Some(headers)
    }

    async fn deliver(&self, batch: Batch) {
        let (count, newest, queue) = (batch.count(), batch.newest(), &self.endpoint.settings.queue);
        let mut encoded: Option<(Protocol, Bytes)> = None;
        let mut backoff = queue.min_backoff;
        let mut attempt = 0;
        loop {
            let now = self.clock.now();
            let is_old = |limit: Duration| newest.is_some_and(|newest| millis(now).saturating_sub(newest) > millis(limit));
            if queue.sample_age_limit.is_some_and(is_old) {
                return self.metrics.dropped("too_old", samples(count));
            }
            let protocol = self.endpoint.protocol();
            let body = match &encoded {
                Some((of, body)) if *of == protocol => body.clone(),
                _ => {
                    let body = protocol.encode(&batch);
                    encoded = Some((protocol, body.clone()));
                    body
                }
            };
            let Some(headers) = self.headers() else {
                return self.fail(count, "header", None, "a header of remote write can't be sent");
            };
            let bytes = body.len() as u64;
            let begun = Instant::now();
            let outcome = self.endpoint.client.send(Request { protocol, body, attempt, count, headers }, now).await;
            self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
            self.metrics.bytes.inc_by(bytes);
            let (status, why, after) = match outcome {
                Outcome::Written => return self.written(count, newest),
                Outcome::NotUnderstood => {
                    self.metrics.request("not_understood", None);
                    if !self.endpoint.knows_only_v1.swap(true, Ordering::Relaxed) {
                        tracing::warn!(url = self.endpoint.settings.url, "receiver does not know remote write 2.0, it is sent 1.0");
                    }
                    continue;
                }
                Outcome::Refused { status, why, written } => {
                    self.add_written(written);
                    let left = Count {
                        samples: count.samples - written.samples,
                        histograms: count.histograms - written.histograms,
                        exemplars: count.exemplars - written.exemplars,
                    };
                    return self.fail(left, "refused", Some(status), &why);
                }
                Outcome::Retry { status: Some(429), why, .. } if !queue.retry_on_429 => {
                    return self.fail(count, "refused", Some(429), &why);
                }
                Outcome::Retry { status, why, after } => (status, why, after),
            };
            self.metrics.request("retried", status);
            self.metrics.samples_retried.inc_by(count.samples + count.histograms);
            let wait = after.unwrap_or_default().max(self.jittered(backoff));
            if attempt == 0 {
                tracing::warn!(tenant = %self.tenant, url = self.endpoint.settings.url, why, "remote write failed, it is tried again");
            }
            tokio::time::sleep(wait).await;
            backoff = backoff.saturating_mul(2).min(queue.max_backoff);
            attempt += 1;
        }
    }

    /// Between a half and the whole of it.
    fn jittered(&self, pause: Duration) -> Duration {
        let half = pause / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.random.lock().next_u64().checked_rem(nanos).unwrap_or(0))
    }

    fn add_written(&self, count: Count) {
        self.metrics.samples.inc_by(count.samples);
        self.metrics.histograms.inc_by(count.histograms);
        self.metrics.exemplars.inc_by(count.exemplars);
    }

    fn written(&self, count: Count, newest: Option<i64>) {
        self.metrics.request("written", None);
        self.add_written(count);
        #[expect(clippy::cast_precision_loss, reason = "a time as a float")]
        let newest = newest.map_or(0.0, |newest| newest as f64 / 1e3);
        self.metrics.highest_sent.set(self.metrics.highest_sent.get().max(newest));
    }

    fn fail(&self, count: Count, outcome: &str, status: Option<u16>, why: &str) {
        self.metrics.request(outcome, status);
        self.metrics.samples_failed.inc_by(count.samples);
        self.metrics.histograms_failed.inc_by(count.histograms);
        self.metrics.exemplars_failed.inc_by(count.exemplars);
        tracing::error!(tenant = %self.tenant, url = self.endpoint.settings.url, samples = samples(count), why, "remote write was refused");
    }

    /// Tells the receiver what the metrics of a collection are. It is only a help, so it is tried once.
    async fn tell_metadata(&self, collection: &Collection) {
        let has = |metric: &Metric| collection.series.iter().any(|series| Metric::of(series).any(|of| of == *metric));
        let families: Vec<Arc<Family>> =
            Metric::ALL.iter().filter(|metric| has(metric)).map(|metric| Arc::clone(collection.view.family(*metric))).collect();
        let Some(headers) = self.headers().filter(|_| !families.is_empty()) else { return };
        let request = Request { protocol: Protocol::V1, body: encode_metadata(&families), attempt: 0, count: Count::default(), headers };
        let outcome = self.endpoint.client.send(request, self.clock.now()).await;
        if outcome != Outcome::Written {
            tracing::debug!(tenant = %self.tenant, url = self.endpoint.settings.url, ?outcome, "metadata was not written");
        }
    }
}

fn samples(count: Count) -> usize {
    usize::try_from(count.samples + count.histograms).unwrap_or(usize::MAX)
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Milliseconds, as Prometheus counts time.
pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
