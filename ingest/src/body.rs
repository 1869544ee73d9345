//! Reads request bodies as they arrive, within a limit, a deadline and the budget.

use std::{fmt::Display, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use crate::{
    budget::{Exhausted, Reservation},
    status::{Code, Status},
};

/// Reserved at first for a body that doesn't announce its length.
const FIRST_RESERVATION: usize = 16 << 10;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// More than the limit, before or after decompression.
    #[error("request body too large: more than {limit} bytes")]
    TooLarge { limit: usize },
    /// Doesn't decompress.
    #[error("failed to decompress {encoding} request body: {cause}")]
    Corrupt { encoding: &'static str, cause: String },
    /// No room for it.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The sender went away or broke the protocol.
    #[error("failed to read request body: {0}")]
    Torn(String),
    /// The sender is too slow.
    #[error("request body was not received within {0:?}")]
    Slow(Duration),
}

impl BodyError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Corrupt { .. } => "corrupt_compression",
            Self::Exhausted(_) => "too_many_bytes_in_flight",
            Self::Torn(_) => "torn",
            Self::Slow(_) => "slow_sender",
        }
    }

    /// `retry_after` is the hint for the tenant, given when the sender is not to blame.
    pub(crate) fn status(&self, retry_after: Option<Duration>) -> Status {
        let (code, retry_after) = match self {
            Self::Exhausted(_) => (Code::ResourceExhausted, retry_after),
            Self::Slow(_) => (Code::Unavailable, None),
            Self::TooLarge { .. } | Self::Corrupt { .. } | Self::Torn(_) => (Code::InvalidArgument, None),
        };
        Status { code, message: self.to_string(), retry_after }
    }
}

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct BodyReader<B = Incoming> {
    body: B,
    timeout: Duration,
    deadline: Instant,
}

impl<B> BodyReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    pub(crate) fn new(body: B, timeout: Duration) -> Self {
        Self { body, timeout, deadline: Instant::now() + timeout }
    }

    /// The next bytes that arrived; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let frame = tokio::time::timeout_at(self.deadline, self.body.frame()).await.map_err(|_| BodyError::Slow(self.timeout))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(BodyError::Torn(error.to_string())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
            }
        }
    }

    /// Reads to the end. `announced` is the length that the sender promised, which is reserved at once.
    pub(crate) async fn whole(&mut self, announced: Option<u64>, limit: usize, reservation: &mut Reservation) -> Result<Bytes, BodyError> {
        let too_large = BodyError::TooLarge { limit };
        let announced = match announced.map(usize::try_from) {
            None => None,
            Some(Ok(length)) if length <= limit => Some(length),
            Some(_) => return Err(too_large),
        };
        reservation.reach(announced.unwrap_or(FIRST_RESERVATION.min(limit))).await?;
        let mut first = Bytes::new();
        let mut gathered = Vec::new();
        while let Some(chunk) = self.next().await? {
            let length = first.len() + gathered.len() + chunk.len();
            if length > limit {
                return Err(too_large);
            }
            if first.is_empty() && gathered.is_empty() {
                // Most bodies are one chunk, which needs no copy.
                reservation.reach(length).await?;
                first = chunk;
                continue;
            }
            if length > gathered.capacity() {
                let capacity = announced.filter(|&announced| announced >= length).unwrap_or(length.saturating_mul(2).min(limit));
                reservation.reach(capacity).await?;
                gathered.reserve_exact(capacity - gathered.len());
            }
            gathered.extend_from_slice(&std::mem::take(&mut first));
            gathered.extend_from_slice(&chunk);
        }
        Ok(if gathered.is_empty() { first } else { gathered.into() })
    }
}
