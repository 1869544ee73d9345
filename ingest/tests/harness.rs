//! All receivers on ports of their own, with a log in memory and a clock that stands still.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest::{
    Budget, Distributor, DistributorSettings, Drained, GrpcSettings, HttpSettings, Ingester, IngesterSettings, JaegerHttpSettings,
    JaegerUdpSettings, Limits, LimitsTable, Log, ServerSettings, SharedOverrides, Sink, ThriftProtocol, ZipkinSettings, jaeger_grpc,
    jaeger_thrift_http, jaeger_thrift_udp, otlp_grpc, otlp_http, zipkin,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use parking_lot::Mutex;
use prometheus::Registry;
use prost::Message as _;
use storage::{
    clock::ManualClock,
    id::Tenant,
    wal::{AppendError, Entry, Position},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::JoinHandle,
};

pub(crate) const NOW: Duration = Duration::from_secs(1_800_000_000);
pub(crate) const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A log that remembers, fails when told to, and can make appends wait.
#[derive(Debug, Default)]
pub(crate) struct MemoryLog {
    pub(crate) records: Mutex<Vec<(String, Entry)>>,
    pub(crate) failure: Mutex<Option<AppendError>>,
    pub(crate) delay: Mutex<Duration>,
}

#[async_trait]
impl Log for MemoryLog {
    async fn append(&self, tenant: &Tenant, entry: Entry) -> Result<Position, AppendError> {
        let delay = *self.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        let mut records = self.records.lock();
        records.push((tenant.to_string(), entry));
        Ok(Position(records.len() as u64))
    }
}

impl MemoryLog {
    pub(crate) fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.records
            .lock()
            .iter()
            .map(|(_, entry)| ExportTraceServiceRequest::decode(&entry.body[..]).expect("only valid bodies"))
            .collect()
    }

    pub(crate) fn span_names(&self) -> Vec<String> {
        let scopes = self.requests().into_iter().flat_map(|r| r.resource_spans).flat_map(|rs| rs.scope_spans);
        scopes.flat_map(|ss| ss.spans).map(|span| span.name).collect()
    }
}

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) multitenancy: bool,
    pub(crate) budget: usize,
    pub(crate) limits: Limits,
    pub(crate) distributor: DistributorSettings,
    pub(crate) server: ServerSettings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            multitenancy: false,
            budget: 128 << 20,
            limits: Limits::default(),
            distributor: DistributorSettings::default(),
            server: ServerSettings { drain_timeout: Duration::from_secs(5), ..ServerSettings::default() },
        }
    }
}

pub(crate) struct Server {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) jaeger_grpc: SocketAddr,
    pub(crate) jaeger_http: SocketAddr,
    pub(crate) jaeger_compact: SocketAddr,
    pub(crate) jaeger_binary: SocketAddr,
    pub(crate) zipkin: SocketAddr,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) clock: ManualClock,
    pub(crate) overrides: SharedOverrides,
    registry: Registry,
    stop: Vec<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<Drained>>,
}

impl Server {
    pub(crate) async fn start(options: Options) -> Self {
        let registry = Registry::new();
        let log = Arc::new(MemoryLog::default());
        let clock = ManualClock::new(NOW);
        let overrides = SharedOverrides::new(LimitsTable { defaults: Arc::new(options.limits), ..LimitsTable::default() });
        let ingester = Ingester::new(
            IngesterSettings::default(),
            Arc::<MemoryLog>::clone(&log),
            Arc::new(overrides.clone()),
            None,
            Arc::new(clock.clone()),
            &registry,
        )
        .expect("fresh registry");
        let distributor =
            Distributor::new(options.distributor, Sink::Local(ingester), Arc::new(overrides.clone()), Arc::new(clock.clone()), &registry)
                .expect("fresh registry");
        let budget = Budget::new(options.budget, Duration::from_millis(300), &registry).expect("fresh registry");
        let listeners = futures::future::join_all((0..5).map(|_| TcpListener::bind("127.0.0.1:0"))).await;
        let listeners: Vec<_> = listeners.into_iter().map(|listener| listener.expect("a port")).collect();
        let tcp: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let sockets = futures::future::join_all((0..2).map(|_| UdpSocket::bind("127.0.0.1:0"))).await;
        let sockets: Vec<_> = sockets.into_iter().map(|socket| socket.expect("a port")).collect();
        let udp: Vec<_> = sockets.iter().map(|socket| socket.local_addr().expect("bound")).collect();
        let mut stop = Vec::new();
        let mut stopped = || {
            let (sender, receiver) = oneshot::channel::<()>();
            stop.push(sender);
            async { drop(receiver.await) }
        };
        let Options { multitenancy, server, .. } = options;
        let mut listeners = listeners.into_iter();
        let mut listener = || listeners.next().expect("five");
        let both = || (distributor.clone(), budget.clone());
        let grpc = GrpcSettings { multitenancy, server: server.clone(), ..GrpcSettings::default() };
        let mut tasks = Vec::new();
        let (d, b) = both();
        tasks.push(tokio::spawn(otlp_grpc(listener(), grpc.clone(), d, b, stopped())));
        let (d, b) = both();
        let settings = HttpSettings { multitenancy, server: server.clone(), ..HttpSettings::default() };
        tasks.push(tokio::spawn(otlp_http(listener(), settings, d, b, stopped())));
        let (d, b) = both();
        tasks.push(tokio::spawn(jaeger_grpc(listener(), grpc, d, b, stopped())));
        let (d, b) = both();
        let settings = JaegerHttpSettings { multitenancy, server: server.clone(), ..JaegerHttpSettings::default() };
        tasks.push(tokio::spawn(jaeger_thrift_http(listener(), settings, d, b, stopped())));
        let (d, b) = both();
        let settings = ZipkinSettings { multitenancy, server, ..ZipkinSettings::default() };
        tasks.push(tokio::spawn(zipkin(listener(), settings, d, b, Arc::new(clock.clone()), stopped())));
        for (socket, protocol) in sockets.into_iter().zip([ThriftProtocol::Compact, ThriftProtocol::Binary]) {
            let settings = JaegerUdpSettings { multitenancy, ..JaegerUdpSettings::new(protocol) };
            tasks.push(tokio::spawn(jaeger_thrift_udp(socket, settings, distributor.clone(), stopped())));
        }
        Self {
            grpc: tcp[0],
            http: tcp[1],
            jaeger_grpc: tcp[2],
            jaeger_http: tcp[3],
            zipkin: tcp[4],
            jaeger_compact: udp[0],
            jaeger_binary: udp[1],
            log,
            clock,
            overrides,
            registry,
            stop,
            tasks,
        }
    }

    pub(crate) async fn stop(&mut self) -> Vec<Drained> {
        self.stop.clear();
        let mut drained = Vec::new();
        for task in self.tasks.drain(..) {
            drained.push(task.await.expect("server task"));
        }
        drained
    }

    pub(crate) async fn client(&self) -> TraceServiceClient<tonic::transport::Channel> {
        TraceServiceClient::connect(format!("http://{}", self.grpc)).await.expect("connects")
    }

    /// The value of a counter or gauge, or the count of a histogram, by name and a label value; all labels summed when that is empty.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("metric {name}"));
        let metrics = family.get_metric().iter();
        let matching = metrics.filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label));
        matching.map(|m| m.get_counter().get_value() + m.get_gauge().get_value() + m.get_histogram().get_sample_count() as f64).sum()
    }

    /// Requests refused for a reason, none so far among them.
    pub(crate) fn refused(&self, reason: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "rubato_ingest_refused_requests_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default().iter();
        metrics.filter(|metric| metric.get_label().iter().any(|pair| pair.value() == reason)).map(|m| m.get_counter().get_value()).sum()
    }

    /// Sends an HTTP/1.1 request as it is written here.
    pub(crate) async fn raw(&self, head: &str, body: &[u8]) -> Answer {
        Self::raw_to(self.http, head, body).await
    }

    /// Posts to another of the receivers.
    pub(crate) async fn post_to(&self, address: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> Answer {
        Self::raw_to(address, &format!("POST {path} HTTP/1.1\r\ncontent-type: {content_type}"), body).await
    }

    async fn raw_to(address: SocketAddr, head: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("{head}\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(request.as_bytes()).await.expect("head is sent");
        // A server that refuses early may close before it has read everything.
        let _ = stream.write_all(body).await;
        Answer::read(&mut stream).await
    }

    pub(crate) async fn post(&self, content_type: &str, encoding: &str, body: &[u8]) -> Answer {
        let encoding = if encoding.is_empty() { String::new() } else { format!("\r\ncontent-encoding: {encoding}") };
        self.raw(&format!("POST /v1/traces HTTP/1.1\r\ncontent-type: {content_type}{encoding}"), body).await
    }

    /// Sends a gRPC message as it is given here: compression flag, contents, headers.
    pub(crate) async fn call(&self, path: &str, headers: &[(&str, &str)], data: Bytes) -> GrpcAnswer {
        self.call_to(self.grpc, path, headers, data).await
    }

    /// The same at another of the receivers.
    pub(crate) async fn call_to(&self, address: SocketAddr, path: &str, headers: &[(&str, &str)], data: Bytes) -> GrpcAnswer {
        let stream = TcpStream::connect(address).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection);
        let mut request = http::Request::post(format!("http://{address}{path}")).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(data)).expect("request")).await.expect("a response");
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok();
        let trailers = body.as_ref().and_then(|body| body.trailers().cloned()).unwrap_or_default();
        let value = |name: &str| {
            let value = trailers.get(name).or_else(|| head.headers.get(name));
            value.map(|value| value.to_str().expect("ASCII").to_owned())
        };
        let code = value("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(-1);
        GrpcAnswer { http: head.status.as_u16(), code, message: value("grpc-message").unwrap_or_default() }
    }

    /// That it still serves.
    pub(crate) async fn assert_alive(&self) {
        let before = self.log.records.lock().len();
        let response = self.client().await.export(request(&[span(250, 250, "alive")])).await.expect("still serves gRPC");
        assert_eq!(response.into_inner(), ExportTraceServiceResponse::default());
        let answer = self.post("application/x-protobuf", "", &request(&[span(250, 251, "alive")]).encode_to_vec()).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(self.log.records.lock().len(), before + 2);
        assert_eq!(self.metric("rubato_ingest_inflight_bytes", ""), 0.0);
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GrpcAnswer {
    pub(crate) http: u16,
    pub(crate) code: i32,
    pub(crate) message: String,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    async fn read(stream: &mut TcpStream) -> Self {
        let mut answer = Vec::new();
        // A reset behind the answer, because the server did not read everything, is fine.
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an answer in time");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Self { status, head, body: answer.split_off(end) }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

pub(crate) fn span(trace: u8, id: u8, name: &str) -> Span {
    Span {
        trace_id: [vec![9; 15], vec![trace]].concat(),
        span_id: vec![1, 0, 0, 0, 0, 0, 0, id],
        name: name.to_owned(),
        start_time_unix_nano: NOW.as_nanos() as u64,
        end_time_unix_nano: NOW.as_nanos() as u64 + 5,
        ..Span::default()
    }
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(crate) fn request(spans: &[Span]) -> ExportTraceServiceRequest {
    let resource = Resource { attributes: vec![attribute("service.name", Value::StringValue("shop".into()))], ..Resource::default() };
    let scope_spans = ScopeSpans { spans: spans.to_vec(), ..ScopeSpans::default() };
    let resource_spans = ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

/// A gRPC data frame around a message.
pub(crate) fn framed(compressed: bool, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [&[u8::from(compressed)], &length[..], message].concat().into()
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).expect("in memory");
    out.finish().expect("in memory")
}

pub(crate) fn zlib(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).expect("in memory");
    out.finish().expect("in memory")
}

pub(crate) fn snappy_framed(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = snap::write::FrameEncoder::new(Vec::new());
    out.write_all(data).expect("in memory");
    out.into_inner().expect("in memory")
}

pub(crate) fn lz4(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
    out.write_all(data).expect("in memory");
    out.finish().expect("in memory")
}
