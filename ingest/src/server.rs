//! Serves HTTP connections on a listener until told to stop, then lets requests in flight finish.
//!
//! ```text
//!  listener ──accept, a slot each──► connection task ──► handler per request
//!  shutdown ──► stop accepting ──► GOAWAY / close after the response ──► drained, or aborted at the deadline
//! ```
//!
//! Both receivers stand directly on hyper: their requests need the body as a stream, to reserve memory before reading it, and nothing of
//! what a router or a gRPC framework offers.
//!
//! What a connection can make us hold outside of the byte budget is bounded by [`ServerSettings::max_connections`] times the HTTP/2
//! connection window ([`CONNECTION_WINDOW`]) or the HTTP/1 read buffer, and a header block of 16 KiB per stream.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls};

/// Unread bytes that an HTTP/2 connection may have in our memory.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Of these, bytes of one stream.
const STREAM_WINDOW: u32 = 128 << 10;
const MAX_HEADER_BYTES: u32 = 16 << 10;
const HTTP1_BUFFER: usize = 64 << 10;

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Connections served at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Requests at a time on an HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// A quiet HTTP/2 connection is pinged this often.
    pub keepalive_time: Duration,
    /// A ping that is not answered for this long ends the connection.
    pub keepalive_timeout: Duration,
    /// How long the head of an HTTP/1 request may take, waiting for it on an open connection included.
    pub header_timeout: Duration,
    /// How long a body may take to arrive, waiting for the budget included.
    pub body_timeout: Duration,
    /// After the shutdown was asked for, how long requests in flight may go on.
    pub drain_timeout: Duration,
    /// Connections are encrypted so; a handshake may take as long as a head. None is in the clear.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may send; none is everybody.
    pub admit: Option<Arc<dyn Admit>>,
}

/// Knows who may use a listener.
pub trait Admit: std::fmt::Debug + Send + Sync {
    /// Whether a request with these headers is let in.
    fn admit(&self, headers: &HeaderMap) -> bool;

    /// What those who are not are told to say: the value of `www-authenticate` (RFC 9110, 11.6.1).
    fn challenge(&self) -> &'static str;
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_concurrent_streams: 256,
            keepalive_time: Duration::from_secs(2 * 3600),
            keepalive_timeout: Duration::from_secs(20),
            header_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            tls: None,
            admit: None,
        }
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that still had requests in flight at the deadline, and were cut.
    pub aborted_connections: usize,
}

/// Which versions of HTTP a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    Http2,
    Http1And2,
}

/// Accepts and serves until `shutdown` completes, then drains.
pub(crate) async fn serve<H, F, B>(
    listener: TcpListener,
    name: &'static str,
    versions: Versions,
    settings: &ServerSettings,
    handler: H,
    shutdown: impl Future<Output = ()>,
) -> Drained
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = bytes::Bytes, Error = Infallible> + Default + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accept = async {
            // Never closed: the semaphore lives as long as this function.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connect(stream, versions, settings.clone(), handler.clone(), stopped.clone());
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(receiver = name, %peer, %error, "connection failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely; there will be some again when connections close.
                tracing::warn!(receiver = name, %error, "cannot accept connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    // Nobody listens when there is no connection.
    let _ = stop.send(true);
    let drained = tokio::time::timeout(settings.drain_timeout, async { while connections.join_next().await.is_some() {} }).await;
    let aborted_connections = if drained.is_ok() { 0 } else { connections.len() };
    if aborted_connections > 0 {
        tracing::warn!(receiver = name, aborted_connections, "connections were still busy at the end of the drain");
    }
    connections.shutdown().await;
    Drained { aborted_connections }
}

/// Serves a connection, after its handshake if it is to have one.
async fn connect<H, F, B>(
    stream: TcpStream,
    versions: Versions,
    settings: ServerSettings,
    handler: H,
    stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = bytes::Bytes, Error = Infallible> + Default + Send + 'static,
{
    stream.set_nodelay(true)?;
    match &settings.tls {
        None => serve_connection(stream, versions, settings, handler, stopped).await,
        Some(tls) => {
            let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(stream);
            let stream = tokio::time::timeout(settings.header_timeout, handshake).await??;
            serve_connection(stream, versions, settings, handler, stopped).await
        }
    }
}

async fn serve_connection<S, H, F, B>(
    stream: S,
    versions: Versions,
    settings: ServerSettings,
    handler: H,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = bytes::Bytes, Error = Infallible> + Default + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if versions == Versions::Http2 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.keepalive_time)
        .keep_alive_timeout(settings.keepalive_timeout)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let service = service_fn(move |request: Request<Incoming>| {
        let response = match &settings.admit {
            Some(admit) if !admit.admit(request.headers()) => Err(refusal(request.headers(), admit.challenge())),
            _ => Ok(handler(request)),
        };
        async move {
            Ok::<_, Infallible>(match response {
                Ok(response) => response.await,
                Err(refusal) => refusal,
            })
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// The answer to a request that is not let in, in the manner of its protocol.
fn refusal<B: Default>(asked: &HeaderMap, challenge: &'static str) -> Response<B> {
    let mut response = Response::new(B::default());
    let is_grpc = asked.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        // UNAUTHENTICATED, as an answer that is only trailers.
        for (name, value) in [("content-type", "application/grpc"), ("grpc-status", "16"), ("grpc-message", "no valid credentials")] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    } else {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}
