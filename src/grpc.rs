//! The gRPC server: health at once, everything else once it is put in.
//!
//! ```text
//!  :9095 ──────────────────────────────────────┐
//!                                              ├─► measure ──► deadline ──► plain messages ──► grpc.health.v1.Health
//!  :3200 ── HTTP/2 with application/grpc ──────┘                                         └──► services (UNAVAILABLE until recovery has ended)
//!           (stream_over_http_enabled)
//! ```
//!
//! Both ports lead to the same router. Grafana streams over the port of its data source's URL, which is that of HTTP. A call that its client
//! gives a time (`grpc-timeout`) ends with DEADLINE_EXCEEDED when that is over, and so does its work, whose future is dropped.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Version, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use query::{InFlight, RequestMetrics};
use tonic::{Code, Status, service::Routes};
use tower::ServiceExt as _;

use crate::http::Admin;

mod plain;

mod health {
    #![allow(
        missing_docs,
        unreachable_pub,
        dead_code,
        unused_qualifications,
        clippy::clone_on_ref_ptr,
        reason = "generated; the client is used in tests only"
    )]
    tonic::include_proto!("grpc.health.v1");
}

use health::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

/// The router of all services.
pub(crate) fn router(admin: &Arc<Admin>) -> Router {
    let late = Arc::clone(admin);
    let services = tower::service_fn(move |request: Request| {
        let services = late.grpc_services();
        async move {
            Ok::<_, Infallible>(match services {
                Some(services) => services.oneshot(request).await.unwrap_or_else(|never| match never {}),
                None => Status::unavailable("the query API is not up yet").into_http::<Body>(),
            })
        }
    });
    let router = Routes::new(HealthServer::new(Probe(Arc::clone(admin)))).into_axum_router().fallback_service(services);
    let router = router.layer(middleware::from_fn_with_state(admin.max_grpc_message_bytes(), plain::plain));
    let router = router.layer(middleware::from_fn(within_deadline));
    match admin.request_metrics() {
        Some(metrics) => router.layer(middleware::from_fn_with_state(metrics.clone(), measure)),
        None => router,
    }
}

/// The time that the client gives a call, if it does so in the form of gRPC: up to eight digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Ends a call when the time is over that its client gives it, be it before the first message or between two of them.
async fn within_deadline(request: Request, next: Next) -> Response {
    let Some(timeout) = timeout_of(request.headers()) else { return next.run(request).await };
    let deadline = tokio::time::Instant::now() + timeout;
    let exceeded = || Status::deadline_exceeded("context deadline exceeded");
    let Ok(response) = tokio::time::timeout_at(deadline, next.run(request)).await else { return exceeded().into_http() };
    if response.body().is_end_stream() {
        return response;
    }
    let frames = move |body: Option<Body>| async move {
        let mut body = body?;
        match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(frame) => frame.map(|frame| (frame, Some(body))),
            Err(_) => {
                let mut trailers = HeaderMap::new();
                exceeded().add_header(&mut trailers).ok()?;
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    };
    response.map(|body| Body::new(StreamBody::new(stream::unfold(Some(body), frames))))
}

/// Whether a request is a call of gRPC.
pub(crate) fn is_grpc(request: &Request) -> bool {
    let says_so = |value: &header::HeaderValue| value.to_str().is_ok_and(|value| value.contains("application/grpc"));
    request.version() == Version::HTTP_2 && request.headers().get(header::CONTENT_TYPE).is_some_and(says_so)
}

/// Sends gRPC that comes in over the HTTP port where it belongs.
pub(crate) async fn over_http(State(grpc): State<Router>, request: Request, next: Next) -> Response {
    if is_grpc(&request) {
        return grpc.oneshot(request).await.unwrap_or_else(|never| match never {});
    }
    next.run(request).await
}

/// Whether the process can take calls.
#[derive(Debug)]
struct Probe(Arc<Admin>);

#[tonic::async_trait]
impl Health for Probe {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, _request: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        Ok(tonic::Response::new(HealthCheckResponse { status: serving(&self.0).into() }))
    }

    /// Says how it is now and whenever that changes, until the process stops: a call without end would hold up the server.
    async fn watch(&self, _request: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let changes = |(admin, last): (Arc<Admin>, Option<ServingStatus>)| async move {
            loop {
                let status = serving(&admin);
                if last != Some(status) {
                    return Some((Ok(HealthCheckResponse { status: status.into() }), (admin, Some(status))));
                }
                if admin.is_stopping() {
                    return None;
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        };
        Ok(tonic::Response::new(stream::unfold((Arc::clone(&self.0), None), changes).boxed()))
    }
}

/// How often those who watch learn of a change.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// All services share one fate, so their names do not matter.
fn serving(admin: &Admin) -> ServingStatus {
    if admin.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// A call that is going on. Counted when it is dropped.
struct Call {
    metrics: RequestMetrics,
    running: InFlight,
    method: String,
    started: Instant,
    code: Option<Code>,
}

impl Call {
    /// Takes the status from headers or trailers, wherever it is.
    fn note(&mut self, headers: &HeaderMap) {
        self.code = headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())).or(self.code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        // Clients may invent methods.
        let method = if self.code == Some(Code::Unimplemented) { "notfound" } else { self.method.as_str() };
        let status = match self.code {
            Some(Code::Ok) => "success",
            Some(Code::Cancelled) | None => "cancel",
            Some(_) => "error",
        };
        self.metrics.observe_grpc(method, status, took);
        log(&self.method, self.code, took);
    }
}

fn log(method: &str, code: Option<Code>, took: Duration) {
    tracing::debug!(method, code = code.map_or("cancelled", |code| code.description()), elapsed = format!("{took:.1?}"), "gRPC");
}

/// Measures a call to its end, which is that of the stream of its answers.
async fn measure(State(metrics): State<RequestMetrics>, request: Request, next: Next) -> Response {
    let method = request.uri().path().to_owned();
    let running = metrics.begin_grpc(&method);
    let mut call = Call { metrics, running, method, started: Instant::now(), code: None };
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let counting = move |frame: Frame<bytes::Bytes>| {
        counted.fetch_add(frame.data_ref().map_or(0, bytes::Bytes::len), Ordering::Relaxed);
        frame
    };
    let response = next.run(request.map(|body| Body::new(body.map_frame(counting)))).await;
    call.note(response.headers());
    let noting = move |frame: Frame<bytes::Bytes>| {
        call.running.received(received.swap(0, Ordering::Relaxed));
        call.running.answered(frame.data_ref().map_or(0, bytes::Bytes::len));
        if let Some(trailers) = frame.trailers_ref() {
            call.note(trailers);
        }
        frame
    };
    response.map(|body| Body::new(body.map_frame(noting))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::routing::any;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn timeouts_are_digits_and_a_unit() {
        let of =
            |text: &str| timeout_of(&HeaderMap::from_iter([("grpc-timeout".parse().expect("a name"), text.parse().expect("a value"))]));
        for (text, seconds) in
            [("1H", 3600.0), ("2M", 120.0), ("3S", 3.0), ("40m", 0.04), ("5u", 5e-6), ("0n", 0.0), ("99999999S", 99_999_999.0)]
        {
            assert_eq!(of(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1S "] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    /// Says when it is dropped.
    struct Dropped(Option<oneshot::Sender<()>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            _ = self.0.take().map(|told| told.send(()));
        }
    }

    /// A call of a service that never comes to an end: the status, in headers or trailers, and what came before it.
    async fn call(answers: bool, timeout: &str) -> (Option<Code>, usize) {
        let (told, dropped) = oneshot::channel();
        let work = Arc::new(std::sync::Mutex::new(Some(Dropped(Some(told)))));
        let service = any(async move || {
            let work = work.lock().expect("no panic").take();
            if !answers {
                std::future::pending::<()>().await;
            }
            let messages = stream::once(async { Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(b"message"))) });
            let endless = stream::once(async move {
                let _work = work;
                std::future::pending().await
            });
            Response::new(Body::new(StreamBody::new(messages.chain(endless))))
        });
        let router = Router::new().route("/", service).layer(middleware::from_fn(within_deadline));
        let request = Request::builder().uri("/").header("grpc-timeout", timeout).body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("infallible");
        let in_headers = response.headers().get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        let body = response.into_body().collect().await.expect("no error");
        let code = body.trailers().and_then(|trailers| trailers.get("grpc-status")).map(|code| Code::from_bytes(code.as_bytes()));
        let length = body.to_bytes().len();
        dropped.await.expect("the work is dropped");
        (in_headers.or(code), length)
    }

    #[tokio::test]
    async fn a_call_ends_when_its_time_is_over() {
        assert_eq!(call(false, "20m").await, (Some(Code::DeadlineExceeded), 0), "before the first message");
        assert_eq!(call(true, "20m").await, (Some(Code::DeadlineExceeded), 7), "after it");
    }
}
