//! Talks to a server: OTLP by HTTP and gRPC with bytes as they are, and the query API.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, TracesData};
use prost::Message as _;
use serde_json::Value;
use storage::id::TraceId;
use tonic::{
    Status,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use super::now;

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {} {}", self.status, self.text()))
    }
}

/// See the module documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    otlp_grpc: String,
    otlp_http: String,
    tenant: Option<String>,
    authorization: Option<String>,
}

impl Client {
    pub(crate) fn new(http: u16, otlp_grpc: u16, otlp_http: u16) -> Self {
        Self::of([http, otlp_grpc, otlp_http].map(|port| format!("127.0.0.1:{port}")))
    }

    /// Of these addresses for HTTP, OTLP by gRPC and OTLP by HTTP.
    pub(crate) fn of([http, otlp_grpc, otlp_http]: [String; 3]) -> Self {
        Self {
            http: waiting(Duration::from_secs(60)),
            base: format!("http://{http}"),
            otlp_grpc: format!("http://{otlp_grpc}"),
            otlp_http: format!("http://{otlp_http}/v1/traces"),
            tenant: None,
            authorization: None,
        }
    }

    /// Waits no longer than this for an answer by HTTP.
    pub(crate) fn giving_up_after(self, timeout: Duration) -> Self {
        Self { http: waiting(timeout), ..self }
    }

    pub(crate) fn with_tenant(&self, tenant: &str) -> Self {
        Self { tenant: Some(tenant.to_owned()), ..self.clone() }
    }

    pub(crate) fn with_authorization(&self, value: &str) -> Self {
        Self { authorization: Some(value.to_owned()), ..self.clone() }
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let request = match &self.tenant {
            Some(tenant) => request.header("X-Scope-OrgID", tenant),
            None => request,
        };
        let request = match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        let response = request.send().await?;
        let status = response.status().as_u16();
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = response.headers().iter().map(header).collect();
        Ok(Answer { status, headers, body: response.bytes().await? })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, reqwest::Error> {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.try_get_as(path, accept).await.expect("an answer")
    }

    pub(crate) async fn try_get_as(&self, path: &str, accept: &str) -> Result<Answer, reqwest::Error> {
        self.send(self.http.get(format!("{}{path}", self.base)).header("Accept", accept)).await
    }

    /// Asks the query API with parameters that still have to be escaped.
    pub(crate) async fn query(&self, path: &str, parameters: &[(&str, &str)]) -> Answer {
        let escape = |(name, value): &(&str, &str)| format!("{name}={}", escape(value));
        let parameters: Vec<String> = parameters.iter().map(escape).collect();
        self.get(&format!("{path}?{}", parameters.join("&"))).await.expect("an answer")
    }

    /// OTLP by HTTP.
    pub(crate) async fn post(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Answer, reqwest::Error> {
        let request = self.http.post(&self.otlp_http).body(reqwest::Body::from(body.into()));
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    pub(crate) async fn post_protobuf(&self, body: impl Into<Bytes>) -> Result<Answer, reqwest::Error> {
        self.post(&[("Content-Type", "application/x-protobuf")], body).await
    }

    /// OTLP by gRPC; the message need not be one.
    pub(crate) async fn export(&self, body: impl Into<Bytes>, compression: Option<CompressionEncoding>) -> Result<Bytes, Status> {
        let channel = Channel::from_shared(self.otlp_grpc.clone()).expect("a URL").connect_lazy();
        let mut client = tonic::client::Grpc::new(channel);
        if let Some(compression) = compression {
            client = client.send_compressed(compression);
        }
        let mut request = tonic::Request::new(body.into());
        request.set_timeout(Duration::from_secs(60));
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert("x-scope-orgid", tenant.parse().expect("a header"));
        }
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.parse().expect("a header"));
        }
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export".parse().expect("a path");
        client.unary(request, path, Raw).await.map(tonic::Response::into_inner)
    }

    /// A trace by id, by protobuf; `None` if there is none.
    pub(crate) async fn trace(&self, id: TraceId) -> Option<Vec<ResourceSpans>> {
        let answer = self.get_as(&format!("/api/traces/{id}"), "application/protobuf").await;
        match answer.status {
            200 => Some(TracesData::decode(answer.body).expect("a trace").resource_spans),
            404 => None,
            other => panic!("trace {id}: {other} {}", answer.text()),
        }
    }

    /// Searches by TraceQL over the last hour and returns the `traces` of the answer.
    pub(crate) async fn search(&self, q: &str, limit: usize) -> Vec<Value> {
        let (start, end) = last_hour();
        let answer =
            self.query("/api/search", &[("q", q), ("limit", &limit.to_string()), ("start", &start), ("end", &end), ("spss", "100")]).await;
        assert_eq!(answer.status, 200, "search {q}: {}", answer.text());
        answer.json()["traces"].as_array().cloned().unwrap_or_default()
    }

    /// The value of a metric, summed over the series that have all these labels (as `name="value"`).
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.get("/metrics").await.expect("an answer").text();
        let of_metric = answer.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
        let labelled = of_metric.filter(|rest| labels.iter().all(|label| rest.contains(label)));
        labelled.map(|rest| rest.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
    }
}

/// A client that waits this long.
fn waiting(timeout: Duration) -> reqwest::Client {
    reqwest::Client::builder().timeout(timeout).no_proxy().build().expect("an HTTP client")
}

/// `start` and `end` in seconds.
pub(crate) fn last_hour() -> (String, String) {
    let now = now().as_secs();
    ((now - 3600).to_string(), (now + 60).to_string())
}

/// All spans of a trace.
pub(crate) fn spans(trace: &[ResourceSpans]) -> impl Iterator<Item = &Span> {
    trace.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
}

fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Sends and receives messages as they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
