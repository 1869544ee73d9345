//! How a refusal looks on the wire: `google.rpc.Status` for gRPC and for OTLP/HTTP, and the mapping between the two worlds' codes.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

/// Codes of gRPC that we answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are gRPC's")]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    /// The HTTP status that OTLP/HTTP answers for it.
    pub fn http(self) -> http::StatusCode {
        match self {
            Self::DeadlineExceeded | Self::Unavailable => http::StatusCode::SERVICE_UNAVAILABLE,
            Self::ResourceExhausted => http::StatusCode::TOO_MANY_REQUESTS,
            Self::InvalidArgument => http::StatusCode::BAD_REQUEST,
            Self::Unimplemented => http::StatusCode::NOT_FOUND,
            Self::Unknown | Self::Internal => http::StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Code {
    /// Reads the number of a code. Those that we don't answer with become their nearest: what may succeed when tried again is Unavailable.
    pub(crate) fn of_number(number: i32) -> Self {
        match number {
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            8 => Self::ResourceExhausted,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            1 | 10 | 11 | 14 | 15 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// A refusal, ready to be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Status {
    /// What kind of refusal.
    pub code: Code,
    /// For whoever reads the client's log.
    pub message: String,
    /// When to come back: a `google.rpc.RetryInfo` detail, and `Retry-After` over HTTP.
    pub retry_after: Option<Duration>,
}

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// As an encoded `google.rpc.Status`.
    pub(crate) fn to_protobuf(&self) -> Bytes {
        let details = self.retry_after.iter().map(|&delay| {
            let retry_delay = Some(DurationMessage {
                seconds: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(delay.subsec_nanos()).unwrap_or_default(),
            });
            AnyMessage { type_url: RETRY_INFO.to_owned(), value: RetryInfoMessage { retry_delay }.encode_to_vec() }
        });
        StatusMessage { code: self.code as i32, message: self.message.clone(), details: details.collect() }.encode_to_vec().into()
    }

    /// As the JSON form of `google.rpc.Status`.
    pub(crate) fn to_json(&self) -> Bytes {
        let mut json = serde_json::json!({ "code": self.code as i32, "message": self.message });
        if let Some(delay) = self.retry_after {
            let retry_delay = format!("{}s", delay.as_secs_f64());
            json["details"] = serde_json::json!([{ "@type": RETRY_INFO, "retryDelay": retry_delay }]);
        }
        json.to_string().into()
    }
}

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

#[derive(Clone, PartialEq, prost::Message)]
struct StatusMessage {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfoMessage {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<DurationMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DurationMessage {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `ExportTraceServiceResponse`: empty, or with what was refused of the request.
pub(crate) fn export_response(rejected: Option<(u64, &str)>) -> Bytes {
    let Some((spans, message)) = rejected else {
        return Bytes::new();
    };
    let partial_success =
        PartialSuccessMessage { rejected_spans: i64::try_from(spans).unwrap_or(i64::MAX), error_message: message.to_owned() };
    ExportResponseMessage { partial_success: Some(partial_success) }.encode_to_vec().into()
}

/// The same as JSON.
pub(crate) fn export_response_json(rejected: Option<(u64, &str)>) -> Bytes {
    let partial_success = match rejected {
        None => serde_json::json!({}),
        Some((spans, message)) => serde_json::json!({ "rejectedSpans": spans.to_string(), "errorMessage": message }),
    };
    serde_json::json!({ "partialSuccess": partial_success }).to_string().into()
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportResponseMessage {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccessMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccessMessage {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_carries_the_retry_hint() {
        let status = Status { retry_after: Some(Duration::from_millis(5500)), ..Status::new(Code::ResourceExhausted, "no") };
        assert_eq!(
            String::from_utf8_lossy(&status.to_json()),
            r#"{"code":8,"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"5.5s"}],"message":"no"}"#
        );
        assert_eq!(String::from_utf8_lossy(&export_response_json(None)), r#"{"partialSuccess":{}}"#);
    }
}
