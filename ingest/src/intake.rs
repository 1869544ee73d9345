//! The way of an HTTP request up to its decompressed body, the same for every receiver that speaks HTTP, and the answer of those that
//! stand for a collector of Jaeger or Zipkin.
//!
//! ```text
//!  content encoding ─► tenant ─► read within limit, deadline and budget ─► decompress within limit and budget
//! ```

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use storage::id::Tenant;

use crate::{
    body::{BodyError, BodyReader},
    budget::{Budget, Reservation},
    compression::Encoding,
    metrics::ReceiverMetrics,
    tenant::{self, TenantError},
};

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Largest body, compressed and decompressed, bytes.
    pub(crate) max_body_bytes: usize,
    /// How long the body may take.
    pub(crate) body_timeout: Duration,
    /// Whether the tenant is taken from `X-Scope-OrgID`.
    pub(crate) multitenancy: bool,
}

/// A request that has arrived.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) tenant: Tenant,
    /// Decompressed.
    pub(crate) body: Bytes,
    /// See [`skips_metrics_generation`].
    pub(crate) skip_metrics_generation: bool,
    /// The budget's share of the body; ends when this is dropped.
    pub(crate) reservation: Reservation,
}

/// Why a request did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("unsupported Content-Encoding: {0}")]
    Encoding(String),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error("{error}")]
    Body {
        /// Whose request it is.
        tenant: Tenant,
        error: BodyError,
    },
}

impl IntakeError {
    /// The label under which it is counted.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Encoding(_) => "unsupported_encoding",
            Self::Tenant(_) => "no_tenant",
            Self::Body { error, .. } => error.reason(),
        }
    }
}

/// Whether a sender wants its spans stored only, since it generates metrics from them itself: the header or metadata is there, whatever it
/// says.
pub(crate) fn skips_metrics_generation(headers: &HeaderMap) -> bool {
    headers.contains_key("no-generate-metrics")
}

/// Reads a request.
pub(crate) async fn read(request: Request<Incoming>, bounds: Bounds, budget: &Budget) -> Result<Received, IntakeError> {
    let (head, body) = request.into_parts();
    let encoding = head.headers.get(header::CONTENT_ENCODING).map_or(b"".as_slice(), HeaderValue::as_bytes);
    let encoding = std::str::from_utf8(encoding)
        .ok()
        .and_then(Encoding::of_http)
        .ok_or_else(|| IntakeError::Encoding(String::from_utf8_lossy(encoding).into_owned()))?;
    let tenant = tenant::extract(&head.headers, bounds.multitenancy)?;
    let skip_metrics_generation = skips_metrics_generation(&head.headers);
    let limit = bounds.max_body_bytes;
    let mut reservation = budget.open();
    let announced = hyper::body::Body::size_hint(&body).exact();
    let body = async {
        let body = BodyReader::new(body, bounds.body_timeout).whole(announced, limit, &mut reservation).await?;
        encoding.decompress(body, limit, &mut reservation).await
    };
    match body.await {
        Ok(body) => Ok(Received { tenant, body, skip_metrics_generation, reservation }),
        Err(error) => Err(IntakeError::Body { tenant, error }),
    }
}

/// A refusal: how it is answered and what is counted.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
    pub(crate) spans: u64,
    pub(crate) reason: &'static str,
}

/// Counts and answers what became of a request: how many spans were taken, with 202, or the refusal. The connection takes no other request.
pub(crate) fn respond(metrics: &ReceiverMetrics, taken: Result<u64, Refused>) -> Response<Full<Bytes>> {
    let mut response = match taken {
        Ok(spans) => {
            metrics.accepted(spans);
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(refused) => {
            metrics.refused(refused.spans, refused.reason);
            let mut response = Response::new(Full::new(Bytes::from(refused.body)));
            *response.status_mut() = refused.status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            response
        }
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
