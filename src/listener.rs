//! Connections of HTTP and of gRPC: takes them, and gives up on clients that keep them busy with nothing.
//!
//! ```text
//!  accept ─► task per connection ─► HTTP/1.1, or HTTP/2 if the client begins with it ─► router
//!             │                        ├─ next request or its head does not come      idle
//!             │                        ├─ body of a request does not come to its end  read    (read_within)
//!             │                        ├─ client takes nothing of its answer          write   (Patient)
//!             │                        └─ client does not answer a ping               keepalive
//!             └─ shutdown, or too old: no further request, open ones are answered
//! ```
//!
//! The time that an answer takes to be found is not counted: queries have deadlines of their own, and streams go on as long as they do. An
//! offer to switch from HTTP/1.1 to HTTP/2 (`Upgrade: h2c`) is not taken, as the protocol allows; the request is answered where it came.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use futures::{StreamExt as _, stream};
use http_body::Body as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use storage::tls::Connection;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::{Instant, Sleep},
};
use tower::ServiceExt as _;

use crate::{
    config::{GrpcServer, HttpTimeouts},
    services::Shutdown,
    tls::Listener,
};

/// Requests of an HTTP/2 connection at the same time.
const HTTP_STREAMS: u32 = 200;

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    /// HTTP/2 and nothing else.
    only_http2: bool,
    /// How long clients are waited for.
    timeouts: HttpTimeouts,
    /// Requests of an HTTP/2 connection at the same time.
    max_concurrent_streams: u32,
    /// After what silence an HTTP/2 connection is pinged, and how long the answer may take.
    keepalive: Option<(Duration, Duration)>,
    /// After what time a connection takes no further request.
    max_age: Option<Duration>,
    /// How long those that are open may take then.
    max_age_grace: Option<Duration>,
}

impl From<HttpTimeouts> for Serving {
    fn from(timeouts: HttpTimeouts) -> Self {
        let max_concurrent_streams = HTTP_STREAMS;
        Self { only_http2: false, timeouts, max_concurrent_streams, keepalive: None, max_age: None, max_age_grace: None }
    }
}

impl From<&GrpcServer> for Serving {
    fn from(grpc: &GrpcServer) -> Self {
        Self {
            only_http2: true,
            timeouts: HttpTimeouts { idle: None, read: None, write: None },
            max_concurrent_streams: grpc.max_concurrent_streams.unwrap_or(u32::MAX),
            keepalive: Some((grpc.keepalive_time, grpc.keepalive_timeout)).filter(|(time, _)| !time.is_zero()),
            max_age: grpc.max_connection_age,
            max_age_grace: grpc.max_connection_age_grace,
        }
    }
}

/// Serves until told to stop and until open requests have ended.
///
/// # Errors
/// None: what goes wrong concerns one connection.
pub(crate) async fn serve(mut listener: Listener, serving: Serving, router: Router, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.next() => accepted,
            () = shutdown.wait() => break,
        };
        while connections.try_join_next().is_some() {}
        let Some((stream, slot)) = accepted else { break };
        let connection = connection(stream, serving, router.clone(), shutdown.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(stream: Connection, serving: Serving, router: Router, mut shutdown: Shutdown) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if serving.only_http2 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(serving.timeouts.idle);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(serving.max_concurrent_streams);
    if let Some((time, timeout)) = serving.keepalive {
        builder.http2().keep_alive_interval(time).keep_alive_timeout(timeout);
    }
    let service = router.map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new));
    let io = TokioIo::new(Patient { stream, patience: serving.timeouts.write, waiting: None });
    // The variant with upgrades would speak HTTP/1.1 whatever was asked for.
    let connection = builder.serve_connection(io, TowerToHyperService::new(service));
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = after(serving.max_age) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection => outcome,
                () = after(serving.max_age_grace) => Ok(()),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error, "connection ends");
    }
}

/// Ends after this time; never, if there is none.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// A body that fails when it has not come to its end in time.
pub(crate) fn read_within(timeout: Duration, body: Body) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let deadline = Instant::now() + timeout;
    let next = move |body: Option<axum::body::BodyDataStream>| async move {
        let mut body = body?;
        match tokio::time::timeout_at(deadline, body.next()).await {
            Ok(chunk) => chunk.map(|chunk| (chunk, Some(body))),
            Err(_) => {
                let late = io::Error::new(io::ErrorKind::TimedOut, "request body did not come in time");
                Some((Err(axum::Error::new(late)), None))
            }
        }
    };
    Body::from_stream(stream::unfold(Some(body.into_data_stream()), next))
}

/// A connection that fails when the other side takes nothing for a time.
struct Patient {
    stream: Connection,
    patience: Option<Duration>,
    /// Since it takes nothing.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// What came of a try to write; an error when that was nothing for too long.
    fn wait<T>(&mut self, context: &mut Context<'_>, tried: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let (true, Some(patience)) = (tried.is_pending(), self.patience) else {
            self.waiting = None;
            return tried;
        };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        waiting.as_mut().poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "client takes nothing of its answer")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wait(context, tried)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wait(context, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_flush(context);
        self.wait(context, tried)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_shutdown(context);
        self.wait(context, tried)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::SocketAddr};

    use axum::routing::{any, post};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::tls::Open;

    const SHORT: Duration = Duration::from_millis(200);
    /// Long enough for a busy machine, and shorter than the timeouts of nothing.
    const PATIENCE: Duration = Duration::from_secs(60);
    const NEVER: HttpTimeouts = HttpTimeouts { idle: None, read: None, write: None };

    struct Server {
        address: SocketAddr,
        stop: tokio::sync::watch::Sender<bool>,
        task: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    async fn start(timeouts: HttpTimeouts, router: Router) -> Server {
        limited(timeouts, router, Open::new(gauge(), 0)).await
    }

    fn gauge() -> prometheus::IntGauge {
        prometheus::IntGauge::new("connections", "Connections.").expect("a name")
    }

    async fn limited(serving: impl Into<Serving>, router: Router, open: Open) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = Shutdown::new();
        let listener = Listener::Plain(listener, open);
        Server { address, stop, task: tokio::spawn(serve(listener, serving.into(), router, shutdown)) }
    }

    /// Sends, and reads until the server closes the connection.
    async fn talk(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("listens");
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A connection that is reset has been closed, too.
        _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes the connection");
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn clients_that_say_nothing_are_left() {
        let server = start(HttpTimeouts { idle: Some(SHORT), ..NEVER }, Router::new().route("/", any(async || "hello"))).await;
        assert_eq!(talk(server.address, "GET / HTTP/1.1\r\nHost:").await, "", "a head without end");
        let answer = talk(server.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "answered, then left: {answer}");
    }

    #[tokio::test]
    async fn where_only_http_2_is_spoken_a_request_of_http_1_is_refused() {
        let serving = Serving { only_http2: true, ..NEVER.into() };
        let server = limited(serving, Router::new().route("/", any(async || "hello")), Open::new(gauge(), 0)).await;
        let mut stream = TcpStream::connect(server.address).await.expect("listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes the connection");
        assert!(!answer.starts_with(b"HTTP/1.1"), "{}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn connections_are_counted_and_wait_beyond_the_limit() {
        let count = gauge();
        let server = limited(NEVER, Router::new().route("/", any(async || "hello")), Open::new(count.clone(), 1)).await;
        let mut first = TcpStream::connect(server.address).await.expect("listens");
        first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        let mut word = [0; 8];
        first.read_exact(&mut word).await.expect("answered");
        assert_eq!((&word, count.get()), (b"HTTP/1.1", 1));
        let address = server.address;
        let second = tokio::spawn(async move { talk(address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await });
        drop(first);
        assert!(second.await.expect("no panic").ends_with("hello"), "once the first has gone");
        let gone = async {
            while count.get() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("both are gone");
    }

    #[tokio::test]
    async fn a_body_without_end_is_an_error() {
        let read = post(async |body: Request| match axum::body::to_bytes(body.into_body(), 1 << 20).await {
            Ok(bytes) => bytes.len().to_string(),
            Err(error) => error.to_string(),
        });
        let timed = axum::middleware::map_request(async |request: Request| request.map(|body| read_within(SHORT, body)));
        let server = start(NEVER, Router::new().route("/", read).layer(timed)).await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\n";
        let answer = talk(server.address, &format!("{head}12345")).await;
        assert!(answer.ends_with("\r\n\r\n5"), "{answer}");
        let answer = talk(server.address, &format!("{head}123")).await;
        assert!(answer.ends_with("request body did not come in time"), "{answer}");
    }

    #[tokio::test]
    async fn clients_that_take_nothing_are_left() {
        let (sender, mut left) = tokio::sync::mpsc::channel::<()>(1);
        // More than any buffer between the two holds. It is dropped with the answer.
        let endless = any(async move || {
            let chunk = bytes::Bytes::from(vec![0; 1 << 20]);
            Body::from_stream(stream::unfold(sender.clone(), move |sender| {
                let chunk = chunk.clone();
                async move { Some((Ok::<_, Infallible>(chunk), sender)) }
            }))
        });
        let server = start(HttpTimeouts { write: Some(SHORT), ..NEVER }, Router::new().route("/", endless)).await;
        let mut stream = TcpStream::connect(server.address).await.expect("listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        server.stop.send(true).expect("somebody listens");
        // The route has gone with the server, and the answer with the connection.
        tokio::time::timeout(PATIENCE, left.recv()).await.expect("the answer is dropped");
        tokio::time::timeout(PATIENCE, server.task).await.expect("the server ends").expect("no panic").expect("no error");
        drop(stream);
    }

    #[tokio::test]
    async fn open_requests_are_answered_before_the_end() {
        let (entered, mut has_entered) = tokio::sync::mpsc::channel(1);
        let release = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let gate = std::sync::Arc::clone(&release);
        let slow = any(async move || {
            entered.send(()).await.expect("somebody waits");
            gate.acquire().await.expect("open").forget();
            "done"
        });
        let server = start(NEVER, Router::new().route("/", slow)).await;
        let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA";
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{offer}\r\n\r\n");
        let address = server.address;
        let client = tokio::spawn(async move { talk(address, &request).await });
        has_entered.recv().await.expect("it begins");
        server.stop.send(true).expect("somebody listens");
        release.add_permits(1);
        let answer = client.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("done"), "also with an offer of HTTP/2: {answer}");
        tokio::time::timeout(PATIENCE, server.task).await.expect("the server ends").expect("no panic").expect("no error");
    }
}
