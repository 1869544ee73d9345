//! A real server that speaks S3 and checks signatures, in this process, with faults in front of it.
//!
//! ```text
//!  client ──► faults: refuse, answer badly, stand still, cut the body, lose the answer ──► s3s ──► folder
//! ```
//!
//! Which request meets which fault is a list of rules, each for so many requests; what was asked is written down.

use std::{
    convert::Infallible,
    error::Error,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyDataStream, BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{net::TcpListener, task::JoinSet};

/// The only key that the server knows.
pub(crate) const ACCESS_KEY: &str = "AKIARUBATO";
/// Its secret.
pub(crate) const SECRET_KEY: &str = "do-not-print-me";
/// The only bucket.
pub(crate) const BUCKET: &str = "traces";

type Failure = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Failure>;

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// This status and body; the server never hears of the request.
    Answer(u16, &'static str),
    /// The request is done, and the status is this one.
    DoneBut(u16),
    /// No answer, ever.
    Silence,
    /// The connection is closed; the server never hears of the request.
    Refuse,
    /// The request is done, and the connection is closed instead of an answer.
    LoseAnswer,
    /// The connection is closed after this many bytes of the answer's body.
    CutBody(usize),
    /// Nothing comes after this many bytes of the answer's body.
    StallBody(usize),
}

/// Which requests meet a fault.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Method; empty: any.
    pub(crate) method: &'static str,
    /// Part of path and query.
    pub(crate) contains: String,
    /// How many requests, from the first one on.
    pub(crate) times: usize,
    /// What happens to them.
    pub(crate) fault: Fault,
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
    // Conditional writes one after another: the folder behind the server has no atomic one.
    conditional: tokio::sync::Mutex<()>,
}

/// A running server. Its folder outlives it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves a folder on a free port of this machine.
    pub(crate) async fn start(folder: PathBuf) -> Self {
        Self::start_at(folder, "127.0.0.1:0").await
    }

    /// Serves a folder on this address, once whoever had it before has let go of it.
    pub(crate) async fn start_at(folder: PathBuf, address: &str) -> Self {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("a folder for the bucket");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let (service, shared) = (builder.build(), Arc::new(Shared::default()));
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(serve(listener, service, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Stops: the port is free and all connections are closed when this returns.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
    }

    /// Adds a fault for the next `times` requests with this method whose path and query contain a text.
    pub(crate) fn fault(&self, method: &'static str, contains: &str, times: usize, fault: Fault) {
        let rule = Rule { method, contains: contains.to_owned(), times, fault };
        self.shared.rules.lock().expect("no panic").push(rule);
    }

    /// Forgets what was asked and all faults.
    pub(crate) fn reset(&self) {
        self.shared.rules.lock().expect("no panic").clear();
        self.shared.seen.lock().expect("no panic").clear();
    }

    /// What was asked, as `METHOD /path?query`, in order of arrival.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("no panic").clone()
    }

    /// How many requests had this method and contained a text.
    pub(crate) fn count(&self, method: &str, contains: &str) -> usize {
        self.seen().iter().filter(|seen| seen.starts_with(method) && seen.contains(contains)).count()
    }
}

async fn serve(listener: TcpListener, service: S3Service, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (service, shared) = (service.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let answer = service_fn(move |request| answer(request, service.clone(), Arc::clone(&shared)));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A connection that was cut on purpose ends with an error.
                    _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(request: Request<Incoming>, service: S3Service, shared: Arc<Shared>) -> Result<Response<Body>, Failure> {
    let method = request.method().to_string();
    let asked = request.uri().path_and_query().map_or(String::new(), ToString::to_string);
    shared.seen.lock().expect("no panic").push(format!("{method} {asked}"));
    let fault = {
        let mut rules = shared.rules.lock().expect("no panic");
        let hit = |rule: &&mut Rule| rule.times > 0 && (rule.method.is_empty() || rule.method == method) && asked.contains(&rule.contains);
        rules.iter_mut().find(hit).map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    match fault {
        Some(Fault::Answer(status, body)) => {
            // The whole request is taken first, as a server behind a queue does.
            _ = request.into_body().collect().await;
            return Ok(response(status, body));
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Refuse) => return Err("refused".into()),
        _ => {}
    }
    let conditional = request.headers().contains_key("if-none-match");
    let _one_at_a_time = if conditional { Some(shared.conditional.lock().await) } else { None };
    let done = service.call(request.map(s3s::Body::from)).await.map_err(|error| format!("{error:?}"))?;
    let (parts, body) = done.into_parts();
    let body = match fault {
        Some(Fault::DoneBut(status)) => return Ok(response(status, "")),
        Some(Fault::LoseAnswer) => return Err("answer lost".into()),
        Some(Fault::CutBody(bytes)) => first(body, bytes, futures::stream::once(async { Err("cut".into()) })),
        Some(Fault::StallBody(bytes)) => first(body, bytes, futures::stream::pending()),
        _ => body.map_err(|error| -> Failure { error }).boxed_unsync(),
    };
    Ok(Response::from_parts(parts, body))
}

fn response(status: u16, body: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).expect("a status")
}

/// The first bytes of a body, and then `end`.
fn first(body: s3s::Body, bytes: usize, end: impl futures::Stream<Item = Result<Bytes, Failure>> + Send + 'static) -> Body {
    let mut left = bytes;
    let pieces = BodyDataStream::new(body).map(move |piece| {
        let piece: Bytes = piece?;
        let piece = piece.slice(..piece.len().min(left));
        left -= piece.len();
        Ok(piece)
    });
    let some = pieces.take_while(|piece| std::future::ready(piece.as_ref().is_ok_and(|piece| !piece.is_empty())));
    StreamBody::new(some.chain(end).map(|piece: Result<Bytes, Failure>| piece.map(Frame::data))).boxed_unsync()
}
