//! One OTLP endpoint, spoken to by gRPC or HTTP with requests that are encoded already.

use std::{
    fmt,
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::{body::Body, http};
use bytes::{Buf as _, BufMut as _, Bytes};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use crate::client::{HttpClient, http_client};

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Protocol {
    /// OTLP over gRPC
    Grpc,
    /// OTLP over HTTP with protobuf bodies
    Http,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "gRPC",
            Self::Http => "HTTP",
        })
    }
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Compression {
    /// Not at all
    None,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// An attempt that was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What the endpoint or the network said, without what differs from request to request.
    pub(super) kind: String,
    /// Whether the same request may be accepted later.
    pub(super) retryable: bool,
    /// How long the endpoint asks to wait.
    pub(super) retry_after: Option<Duration>,
    /// Whether the endpoint may have taken the request all the same.
    pub(super) maybe_taken: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) enum Endpoint {
    Grpc(GrpcEndpoint),
    Http(Box<HttpEndpoint>),
}

impl Endpoint {
    /// Connections are opened when first needed.
    pub(super) fn new(
        url: &str,
        protocol: Option<Protocol>,
        compression: Compression,
        tenant: Option<&str>,
        timeout: Duration,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("endpoint \"{url}\" is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            bail!("endpoint \"{url}\" is not of the form http://host:port");
        }
        let has_path = uri.path().len() > 1;
        match protocol.unwrap_or(if uri.port_u16() == Some(4318) || has_path { Protocol::Http } else { Protocol::Grpc }) {
            Protocol::Grpc => GrpcEndpoint::new(&uri, compression, tenant, timeout, connections).map(Self::Grpc),
            Protocol::Http => HttpEndpoint::new(&uri, compression, tenant, timeout).map(|endpoint| Self::Http(Box::new(endpoint))),
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self {
            Self::Grpc(_) => Protocol::Grpc,
            Self::Http(_) => Protocol::Http,
        }
    }

    /// Sends an encoded `ExportTraceServiceRequest` once.
    pub(super) async fn send(&self, body: Bytes) -> Result<(), Failure> {
        match self {
            Self::Grpc(endpoint) => endpoint.send(body).await,
            Self::Http(endpoint) => endpoint.send(body).await,
        }
    }
}

/// A partial success is no success: some spans are not stored.
fn check_partial_success(response: &ExportTraceServiceResponse) -> Result<(), Failure> {
    match &response.partial_success {
        Some(partial) if partial.rejected_spans > 0 => Err(Failure {
            kind: format!("partial success: {}", partial.error_message),
            retryable: false,
            retry_after: None,
            maybe_taken: true,
        }),
        _ => Ok(()),
    }
}

/// OTLP over gRPC.
#[derive(Debug)]
pub(super) struct GrpcEndpoint {
    channels: Vec<Channel>,
    next: AtomicUsize,
    compression: Option<CompressionEncoding>,
    tenant: Option<MetadataValue<Ascii>>,
    timeout: Duration,
}

impl GrpcEndpoint {
    fn new(uri: &http::Uri, compression: Compression, tenant: Option<&str>, timeout: Duration, connections: usize) -> anyhow::Result<Self> {
        let channel = || Channel::builder(uri.clone()).connect_timeout(Duration::from_secs(10)).connect_lazy();
        Ok(Self {
            channels: (0..connections.max(1)).map(|_| channel()).collect(),
            next: AtomicUsize::new(0),
            compression: match compression {
                Compression::None => None,
                Compression::Gzip => Some(CompressionEncoding::Gzip),
                Compression::Zstd => Some(CompressionEncoding::Zstd),
            },
            tenant: tenant.map(|tenant| tenant.parse().with_context(|| format!("tenant \"{tenant}\" cannot be sent"))).transpose()?,
            timeout,
        })
    }

    async fn send(&self, body: Bytes) -> Result<(), Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let mut client = tonic::client::Grpc::new(self.channels[number].clone());
        if let Some(compression) = self.compression {
            client = client.send_compressed(compression);
        }
        let mut request = tonic::Request::new(body);
        request.set_timeout(self.timeout);
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert("x-scope-orgid", tenant.clone());
        }
        let path = http::uri::PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        let call = async {
            client.ready().await.map_err(|error| failure_of_connection(&error.into()))?;
            client.unary(request, path, Encoded).await.map_err(|status| failure_of_status(&status))
        };
        let response = tokio::time::timeout(self.timeout, call).await.map_err(|_| timed_out())??;
        check_partial_success(response.get_ref())
    }
}

fn timed_out() -> Failure {
    Failure { kind: "no answer in time".to_owned(), retryable: true, retry_after: None, maybe_taken: true }
}

/// The connection could not be had: nothing was sent.
fn failure_of_connection(error: &anyhow::Error) -> Failure {
    Failure { kind: format!("cannot connect: {}", error.root_cause()), retryable: true, retry_after: None, maybe_taken: false }
}

fn failure_of_status(status: &Status) -> Failure {
    let code = status.code();
    // ResourceExhausted is retryable by the protocol only with a hint; a load generator tries anyway.
    let retryable = matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unknown
    );
    let refused = matches!(
        code,
        Code::ResourceExhausted | Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    );
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source.and_then(std::error::Error::source) {
        source = Some(cause);
    }
    let text = source.map_or_else(|| status.message().to_owned(), ToString::to_string);
    Failure {
        kind: format!("gRPC {code:?}: {}", without_numbers(&text)),
        retryable,
        retry_after: retry_after(status.details()),
        maybe_taken: !refused,
    }
}

/// Errors are counted by kind: sizes and positions would make every one its own.
fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().take(300) {
        if character.is_ascii_digit() {
            if !out.ends_with('N') {
                out.push('N');
            }
        } else {
            out.push(character);
        }
    }
    out
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcDetail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct RpcDetail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<RetryDelay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The delay of a `RetryInfo` among the details of a status.
fn retry_after(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let detail = status.details.into_iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(detail.value).ok()?.delay?;
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?))
}

/// Takes requests that are encoded already, and decodes the answers.
#[derive(Clone, Copy, Debug)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // One step, as the whole message is known.
        BufferSettings::new(512 * 1024, 512 * 1024)
    }
}

impl Decoder for Encoded {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        ExportTraceServiceResponse::decode(bytes)
            .map(Some)
            .map_err(|error| Status::internal(format!("the answer is no OTLP message: {error}")))
    }
}

/// OTLP over HTTP, protobuf bodies.
#[derive(Debug)]
pub(super) struct HttpEndpoint {
    client: HttpClient,
    uri: http::Uri,
    compression: Compression,
    tenant: Option<http::HeaderValue>,
    timeout: Duration,
}

impl HttpEndpoint {
    fn new(uri: &http::Uri, compression: Compression, tenant: Option<&str>, timeout: Duration) -> anyhow::Result<Self> {
        let path = if uri.path().len() > 1 { uri.path() } else { "/v1/traces" };
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        Ok(Self {
            client: http_client(),
            uri: format!("http://{authority}{path}").parse().context("the endpoint's path cannot be sent")?,
            compression,
            tenant: tenant.map(|tenant| tenant.parse().with_context(|| format!("tenant \"{tenant}\" cannot be sent"))).transpose()?,
            timeout,
        })
    }

    async fn send(&self, body: Bytes) -> Result<(), Failure> {
        let mut request = http::Request::post(self.uri.clone()).header(http::header::CONTENT_TYPE, "application/x-protobuf");
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant.clone());
        }
        let encoding = match self.compression {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
        };
        if let Some(encoding) = encoding {
            request = request.header(http::header::CONTENT_ENCODING, encoding);
        }
        let unsendable = |cause: String| Failure { kind: cause, retryable: false, retry_after: None, maybe_taken: false };
        let body = compress(self.compression, body).map_err(|error| unsendable(format!("cannot compress: {error}")))?;
        let request = request.body(Body::from(body)).map_err(|error| unsendable(error.to_string()))?;
        let call = async {
            let response = self.client.request(request).await.map_err(|error| {
                let connect = error.is_connect();
                let mut failure = failure_of_connection(&error.into());
                if !connect {
                    failure.kind = failure.kind.replace("cannot connect", "connection broke");
                    failure.maybe_taken = true;
                }
                failure
            })?;
            let (head, body) = response.into_parts();
            let body = axum::body::to_bytes(Body::new(body), 1 << 20).await.map_err(|error| Failure {
                kind: format!("the answer broke off: {error}"),
                retryable: true,
                retry_after: None,
                maybe_taken: true,
            })?;
            Ok((head, body))
        };
        let (head, body) = tokio::time::timeout(self.timeout, call).await.map_err(|_| timed_out())??;
        if head.status.is_success() {
            // Answers that are not the message are taken as empty: some backends send none.
            return check_partial_success(&ExportTraceServiceResponse::decode(body).unwrap_or_default());
        }
        let retry_after = head.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let text: String = String::from_utf8_lossy(&body).chars().filter(|character| !character.is_control()).collect();
        Err(Failure {
            kind: format!("HTTP {}: {}", head.status.as_u16(), without_numbers(text.trim())),
            retryable: matches!(head.status.as_u16(), 429 | 502..=504),
            retry_after: retry_after.map(Duration::from_secs),
            maybe_taken: head.status.is_server_error(),
        })
    }
}

fn compress(compression: Compression, body: Bytes) -> std::io::Result<Bytes> {
    match compression {
        Compression::None => Ok(body),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
            encoder.write_all(&body)?;
            encoder.finish().map(Bytes::from)
        }
        Compression::Zstd => zstd::bulk::compress(&body, 1).map(Bytes::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_hints_are_read_and_junk_is_none() {
        let delay = RetryDelay { seconds: 5, nanos: 500_000_000 };
        let value = Bytes::from(RetryInfo { delay: Some(delay) }.encode_to_vec());
        let detail = RpcDetail { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value };
        let details = RpcStatus { details: vec![detail] }.encode_to_vec();
        assert_eq!(retry_after(&details), Some(Duration::from_millis(5500)));
        assert_eq!(retry_after(b""), None);
        assert_eq!(retry_after(b"\xff\xff\xff"), None);
    }

    #[test]
    fn the_protocol_follows_from_the_endpoint() {
        let _runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").enter();
        let endpoint = |url| Endpoint::new(url, None, Compression::None, None, Duration::from_secs(1), 1);
        assert!(matches!(endpoint("http://127.0.0.1:4317"), Ok(Endpoint::Grpc(_))));
        assert!(matches!(endpoint("http://127.0.0.1:4318"), Ok(Endpoint::Http(_))));
        assert!(matches!(endpoint("http://127.0.0.1:80/otlp/v1/traces"), Ok(Endpoint::Http(_))));
        for wrong in ["127.0.0.1:4317", "https://a:1", "", "http://"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_are_counted_by_kind() {
        assert_eq!(without_numbers("while adding 40213 bytes for user 7"), "while adding N bytes for user N");
    }
}
