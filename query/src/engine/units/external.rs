//! Traces of another store: a server that answers `GET /api/traces/{id}` with OTLP, as Tempo does.
//!
//! What it says is bytes from outside: no more of an answer is read than a trace may be long, and what is not protobuf is an error. A trace that
//! it lacks (404) is no error.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prometheus::{HistogramOpts, HistogramVec, Registry};
use prost::Message as _;
use storage::id::Tenant;

use crate::{
    api::tenant::ORG_ID,
    engine::{QueryError, combine::Combiner},
    job::{ExternalJob, TraceAnswer},
};

/// Longest answer where traces may have any size.
const MAX_BYTES: usize = 256 << 20;

/// The other store.
#[derive(Clone, Debug)]
pub struct ExternalTraces {
    client: reqwest::Client,
    /// Without a slash at the end.
    endpoint: String,
    seconds: HistogramVec,
}

/// Why there is no client for the other store.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The endpoint is none.
    #[error("external endpoint \"{endpoint}\" is not a URL of http or https")]
    Endpoint {
        /// What it is.
        endpoint: String,
    },
    /// The client cannot be made.
    #[error("client of the external endpoint: {0}")]
    Client(#[from] reqwest::Error),
    /// A metric of the same name is registered already.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

impl ExternalTraces {
    /// A client. `timeout` is that of a whole request.
    ///
    /// # Errors
    /// See [`ExternalError`].
    pub fn new(endpoint: &str, timeout: Duration, registry: &Registry) -> Result<Self, ExternalError> {
        let url = reqwest::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            return Err(ExternalError::Endpoint { endpoint: endpoint.to_owned() });
        }
        let client = reqwest::Client::builder().timeout(timeout).build()?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "tempo_querier_external_endpoint_request_duration_seconds",
                "Time (in seconds) until the external store of traces answered, by status; 0 is no answer.",
            ),
            &["status_code"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { client, endpoint: endpoint.trim_end_matches('/').to_owned(), seconds })
    }

    /// What the other store has of a trace; nothing if it lacks it.
    pub(super) async fn trace(&self, tenant: &Tenant, job: &ExternalJob) -> Result<TraceAnswer, QueryError> {
        let began = Instant::now();
        let (status, outcome) = match self.get(tenant, job).await {
            Ok(answer) => (answer.0.as_u16(), Ok(answer)),
            Err(error) => (0, Err(error)),
        };
        self.seconds.with_label_values(&[status.to_string().as_str()]).observe(began.elapsed().as_secs_f64());
        let failed = |cause: String| QueryError::External { cause };
        let (status, body) = outcome.map_err(|error| failed(storage::block::chain(&error.without_url())))?;
        match status {
            StatusCode::NOT_FOUND => return Ok(TraceAnswer::default()),
            StatusCode::OK => {}
            other => return Err(failed(format!("answers {}", other.as_u16()))),
        }
        let Some(body) = body else { return Ok(TraceAnswer { truncated: true, ..TraceAnswer::default() }) };
        let trace = TracesData::decode(body).map_err(|error| failed(format!("no trace: {error}")))?;
        let mut combiner = Combiner::new(job.max_bytes);
        combiner.add(trace.resource_spans);
        let truncated = combiner.is_truncated();
        Ok(TraceAnswer { resource_spans: combiner.finish(job.id).resource_spans, truncated, ..TraceAnswer::default() })
    }

    /// Status and body; no body if it is too long.
    async fn get(&self, tenant: &Tenant, job: &ExternalJob) -> Result<(StatusCode, Option<Bytes>), reqwest::Error> {
        let mut url = format!("{}/api/traces/{}", self.endpoint, job.id);
        for (separator, name, time) in [('?', "start", job.start), (if job.start > 0 { '&' } else { '?' }, "end", job.end)] {
            if time > 0 {
                _ = write!(url, "{separator}{name}={time}");
            }
        }
        let request = self.client.get(url).header(header::ACCEPT, "application/protobuf").header(ORG_ID, tenant.as_str());
        let mut response = request.send().await?;
        let status = response.status();
        // What surrounds spans takes its part, too.
        let most = if job.max_bytes == 0 { MAX_BYTES } else { job.max_bytes.saturating_mul(2).min(MAX_BYTES) };
        let mut body = BytesMut::new();
        while status == StatusCode::OK
            && let Some(chunk) = response.chunk().await?
        {
            if body.len() + chunk.len() > most {
                return Ok((status, None));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, Some(body.freeze())))
    }
}
