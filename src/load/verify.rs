//! Reads traces back through the query API and compares them with the ledger.
//!
//! A trace is *good* when it has every acknowledged span, no span twice, and no more spans than were sent. Reading may lag behind
//! acknowledging, so a trace that lacks spans is asked for again until the patience ends; a doubled span is wrong at once.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use axum::{body::Body, http};
use bytes::Bytes;
use futures::StreamExt as _;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;
use storage::id::TraceId;

use super::ledger::{Ledger, TraceLedger};
use crate::client::{HttpClient, http_client};

/// Queries in flight.
const CONCURRENCY: usize = 8;

/// Bytes of an answer; a trace larger than this is not read.
const MAX_ANSWER: usize = 256 << 20;

/// How to verify.
#[derive(Debug)]
pub(super) struct Settings {
    /// Traces to read; 0 reads all.
    pub(super) traces: usize,
    /// How long acknowledged spans may take to be readable.
    pub(super) patience: Duration,
    /// How long one answer may take.
    pub(super) timeout: Duration,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verification {
    traces: u64,
    spans: u64,
    missing: u64,
    doubled: u64,
    surplus: u64,
    unreadable: u64,
    /// Some of the bad ones.
    examples: Vec<String>,
}

impl Verification {
    pub(super) fn is_good(&self) -> bool {
        self.missing == 0 && self.doubled == 0 && self.surplus == 0 && self.unreadable == 0
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "verified       {} traces, {} spans: {} missing, {} doubled, {} never sent, {} traces unreadable",
            self.traces, self.spans, self.missing, self.doubled, self.surplus, self.unreadable
        )?;
        self.examples.iter().try_for_each(|example| write!(f, "\n               {example}"))
    }
}

/// Reads the acknowledged traces, or some of them, back from the query API at `url`.
///
/// # Errors
/// A URL that cannot be used. What the API answers is in the outcome.
pub(super) async fn verify(url: &str, tenant: Option<&str>, ledger: &Ledger, settings: &Settings) -> anyhow::Result<Verification> {
    let base: http::Uri = url.parse().with_context(|| format!("\"{url}\" is not a URL"))?;
    if base.scheme_str() != Some("http") || base.authority().is_none() {
        bail!("\"{url}\" is not of the form http://host:port");
    }
    let client = http_client();
    let mut traces = ledger.traces();
    if settings.traces > 0 && traces.len() > settings.traces {
        let step = traces.len().div_ceil(settings.traces);
        traces = traces.into_iter().step_by(step).collect();
    }
    let deadline = Instant::now() + settings.patience;
    let mut checks = futures::stream::iter(traces)
        .map(|(id, expected)| check(&client, url.trim_end_matches('/'), tenant, id, expected, deadline, settings.timeout))
        .buffer_unordered(CONCURRENCY);
    let mut outcome = Verification::default();
    while let Some((id, expected, found)) = checks.next().await {
        outcome.add(id, expected, found);
    }
    Ok(outcome)
}

/// Spans of a trace: those with different identities, and all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    distinct: u64,
    all: u64,
}

impl Verification {
    fn add(&mut self, id: TraceId, expected: TraceLedger, found: Result<Found, String>) {
        self.traces += 1;
        let problem = match found {
            Err(problem) => {
                self.unreadable += 1;
                problem
            }
            Ok(found) => {
                let missing = u64::from(expected.acknowledged).saturating_sub(found.distinct);
                let surplus = found.distinct.saturating_sub(u64::from(expected.acknowledged + expected.unknown));
                let doubled = found.all - found.distinct;
                self.spans += found.distinct;
                self.missing += missing;
                self.surplus += surplus;
                self.doubled += doubled;
                if missing + surplus + doubled == 0 {
                    return;
                }
                format!("{} spans, {} of them different, of {} acknowledged", found.all, found.distinct, expected.acknowledged)
            }
        };
        if self.examples.len() < 5 {
            self.examples.push(format!("trace {id}: {problem}"));
        }
    }
}

async fn check(
    client: &HttpClient,
    base: &str,
    tenant: Option<&str>,
    id: TraceId,
    expected: TraceLedger,
    deadline: Instant,
    timeout: Duration,
) -> (TraceId, TraceLedger, Result<Found, String>) {
    loop {
        let found = match tokio::time::timeout(timeout, read(client, base, tenant, id)).await {
            Ok(found) => found,
            Err(_) => Err("no answer in time".to_owned()),
        };
        let may_improve = match &found {
            Ok(found) => found.distinct < u64::from(expected.acknowledged),
            Err(_) => true,
        };
        if !may_improve || Instant::now() >= deadline {
            return (id, expected, found);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn read(client: &HttpClient, base: &str, tenant: Option<&str>, id: TraceId) -> Result<Found, String> {
    let mut request = http::Request::get(format!("{base}/api/traces/{id}")).header(http::header::ACCEPT, "application/protobuf");
    if let Some(tenant) = tenant {
        request = request.header("X-Scope-OrgID", tenant);
    }
    let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER).await.map_err(|error| error.to_string())?;
    match status.as_u16() {
        200 => count(body),
        404 => Ok(Found { distinct: 0, all: 0 }),
        other => Err(format!("HTTP {other}: {}", String::from_utf8_lossy(&body).trim())),
    }
}

/// A span's identity is its id and its kind.
fn count(body: Bytes) -> Result<Found, String> {
    let trace = TracesData::decode(body).map_err(|error| format!("the answer is no trace: {error}"))?;
    let mut ids = HashSet::new();
    let mut all = 0;
    for span in trace.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans) {
        all += 1;
        ids.insert((span.span_id.as_slice(), span.kind));
    }
    Ok(Found { distinct: ids.len() as u64, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(acknowledged: u32, unknown: u32, distinct: u64, all: u64) -> Verification {
        let mut outcome = Verification::default();
        outcome.add(TraceId([1; 16]), TraceLedger { acknowledged, unknown }, Ok(Found { distinct, all }));
        outcome
    }

    #[test]
    fn only_what_was_acknowledged_must_be_there_and_only_once() {
        assert!(outcome(5, 0, 5, 5).is_good());
        assert!(outcome(5, 3, 5, 5).is_good());
        assert!(outcome(5, 3, 8, 8).is_good());
        assert_eq!(outcome(5, 0, 4, 4).missing, 1);
        assert_eq!(outcome(5, 0, 5, 7).doubled, 2);
        assert_eq!(outcome(5, 3, 9, 9).surplus, 1);
        let mut unreadable = Verification::default();
        unreadable.add(TraceId([1; 16]), TraceLedger::default(), Err("HTTP 500".to_owned()));
        assert!(!unreadable.is_good());
    }

    #[test]
    fn spans_are_counted_by_identity() {
        let mut generator = storage::synthetic::Generator::new(storage::synthetic::Settings::default());
        let trace = generator.trace_with_spans(20);
        let mut resource_spans = trace.resource_spans().to_vec();
        let body = |resource_spans: &[_]| Bytes::from(TracesData { resource_spans: resource_spans.to_vec() }.encode_to_vec());
        assert_eq!(count(body(&resource_spans)), Ok(Found { distinct: 20, all: 20 }));
        let again = resource_spans[0].clone();
        let spans = again.scope_spans.iter().map(|scope| scope.spans.len() as u64).sum::<u64>();
        resource_spans.push(again);
        assert_eq!(count(body(&resource_spans)), Ok(Found { distinct: 20, all: 20 + spans }));
        assert!(count(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
