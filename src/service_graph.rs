//! The live service graph over HTTP: `GET /api/service-graph`, and a stream of its changes at `GET /api/service-graph/stream`.
//!
//! ```text
//!  Snapshots ─► follow ─► LiveGraphs ─► tell the streams ─┬─► stream: graph now − graph sent = changes ─► queue of 8 ─► client
//!                             │                            └─► stream: …
//!                             └─◄ GET: one graph
//! ```
//!
//! A stream begins with the whole graph and goes on with what changes, as server-sent events; the id of an event is the number of the
//! commit that it shows, and a client that comes back begins anew. Bounded are the number of streams and the events that wait for a
//! client: one that falls behind is let go, counted, and may come back.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use dataflow::{
    generator::{
        Snapshots,
        service_graph::{
            live::{LiveGraphs, MAX_WINDOW, STEP},
            live_view::Graph,
        },
    },
    tick::Ticks,
};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde::Serialize;
use storage::id::Tenant;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::{app::App, config::duration, services::Shutdown};

/// The window of a request that does not say.
const DEFAULT_WINDOW: Duration = Duration::from_secs(300);
/// Streams at the same time.
const MAX_STREAMS: i64 = 256;
/// Events that may wait for a client.
const MAX_WAITING: usize = 8;
/// Graphs of the same commit that are kept for others who ask for the same.
const MAX_KEPT: usize = 64;
/// A client hears something at least this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Routes, for `/status/endpoints`.
pub(crate) const ROUTES: &[&str] = &["/api/service-graph", "/api/service-graph/stream"];

/// The live service graphs of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ServiceGraphs {
    shared: Arc<Shared>,
    /// The number of the commit that is shown; gone when nothing more will come.
    shown: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    multitenancy: bool,
    state: Mutex<Shown>,
    streams: IntGauge,
    dropped: IntCounterVec,
}

#[derive(Debug)]
struct Shown {
    graphs: LiveGraphs,
    sequence: u64,
    /// Graphs of this commit, by tenant and window in steps.
    kept: HashMap<(Tenant, u64), Arc<Graph>>,
}

/// Starts following the generator, before it shows anything.
///
/// # Errors
/// Its metrics are registered already.
pub(crate) fn start(app: &mut App, snapshots: &Snapshots) -> anyhow::Result<ServiceGraphs> {
    let since = Ticks::new(app.config.dataflow.tick).at(app.clock.now());
    let (graphs, follow) = ServiceGraphs::new(snapshots, since, app.config.multitenancy, &app.registry)?;
    app.spawn("service-graph", follow);
    Ok(graphs)
}

impl ServiceGraphs {
    /// Of a process that begins at tick `since`, and what keeps them up to date with the generator: a future that ends when told to.
    fn new(
        snapshots: &Snapshots,
        since: u64,
        multitenancy: bool,
        registry: &Registry,
    ) -> prometheus::Result<(Self, impl FnOnce(Shutdown) -> Follow + use<>)> {
        let streams = IntGauge::new("rubato_service_graph_streams", "Clients that follow a live service graph.")?;
        let dropped =
            Opts::new("rubato_service_graph_dropped_streams_total", "Clients of live service graphs that were refused or let go.");
        let dropped = IntCounterVec::new(dropped, &["reason"])?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        let state = Mutex::new(Shown { graphs: LiveGraphs::new(since), sequence: 0, kept: HashMap::new() });
        let shared = Arc::new(Shared { multitenancy, state, streams, dropped });
        let (show, shown) = watch::channel(0);
        let (follower, snapshots) = (Arc::clone(&shared), snapshots.subscribe());
        let follow = move |shutdown| Box::pin(follow(follower, snapshots, show, shutdown)) as Follow;
        Ok((Self { shared, shown }, follow))
    }

    /// The routes, below `prefix`.
    pub(crate) fn router(self, prefix: &str) -> Router {
        let prefix = match prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("/{prefix}"),
        };
        Router::new()
            .route(&format!("{prefix}{}", ROUTES[0]), get(graph))
            .route(&format!("{prefix}{}", ROUTES[1]), get(stream))
            .with_state(self)
    }

    /// The newest graph, and the number of its commit.
    async fn graph(&self, tenant: &Tenant, window: Duration) -> (u64, Arc<Graph>) {
        let steps = window.as_secs().div_ceil(STEP.as_secs());
        let key = (tenant.clone(), steps);
        let known = {
            let shown = self.shared.state();
            (shown.sequence, shown.kept.get(&key).map(Arc::clone))
        };
        if let (sequence, Some(graph)) = known {
            return (sequence, graph);
        }
        let shared = Arc::clone(&self.shared);
        let sum = move || {
            let mut shown = shared.state();
            let graph = Arc::new(shown.graphs.graph(&key.0, STEP * u32::try_from(steps).unwrap_or(u32::MAX)));
            if shown.kept.len() < MAX_KEPT {
                shown.kept.insert(key, Arc::clone(&graph));
            }
            (shown.sequence, graph)
        };
        // A large graph takes milliseconds. It fails only when the process ends.
        tokio::task::spawn_blocking(sum).await.unwrap_or_default()
    }

    /// Whose graph over which window is asked for.
    fn question(&self, headers: &HeaderMap, query: &WindowQuery) -> Result<(Tenant, Duration), (StatusCode, String)> {
        let refuse = |status, why: &str| (status, format!("{why}\n"));
        let tenant = crate::generator::tenant(self.shared.multitenancy, headers)?;
        let window = match query.window.as_deref().filter(|text| !text.is_empty()) {
            None => DEFAULT_WINDOW,
            Some(text) => {
                let invalid = |why: &str| refuse(StatusCode::BAD_REQUEST, &format!("invalid window: {why}"));
                // A bare number is seconds, as in Prometheus' API.
                let window = match text.parse() {
                    Ok(seconds) => Duration::from_secs(seconds),
                    Err(_) => u64::try_from(duration(text).map_err(|why| invalid(&why))?).map(Duration::from_nanos).unwrap_or_default(),
                };
                if window.is_zero() || window > MAX_WINDOW {
                    return Err(invalid(&format!("{text} is not above 0 and at most 1h")));
                }
                window
            }
        };
        Ok((tenant, window))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Shown> {
        // What a panicking thread has left is a sum short of some series at worst.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps the graphs up to date.
type Follow = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

async fn follow(
    shared: Arc<Shared>,
    mut snapshots: watch::Receiver<Arc<dataflow::generator::Snapshot>>,
    show: watch::Sender<u64>,
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        // The empty one from before the first commit says nothing.
        if snapshot.sequence > 0 {
            let (shared, sequence) = (Arc::clone(&shared), snapshot.sequence);
            let apply = move || {
                let mut shown = shared.state();
                shown.graphs.apply(&snapshot);
                shown.sequence = sequence;
                shown.kept.clear();
            };
            tokio::task::spawn_blocking(apply).await?;
            show.send_replace(sequence);
        }
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            changed = snapshots.changed() => if changed.is_err() {
                // The generator has ended before us: nothing more will come.
                shutdown.wait().await;
                return Ok(());
            },
        }
    }
}

#[derive(Debug, serde::Deserialize)]
struct WindowQuery {
    window: Option<String>,
}

/// `GET /api/service-graph?window=5m`.
async fn graph(State(graphs): State<ServiceGraphs>, Query(query): Query<WindowQuery>, headers: HeaderMap) -> Response {
    match graphs.question(&headers, &query) {
        Ok((tenant, window)) => Json(&*graphs.graph(&tenant, window).await.1).into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// `GET /api/service-graph/stream?window=5m`: the event `graph`, then events `changes`.
async fn stream(State(graphs): State<ServiceGraphs>, Query(query): Query<WindowQuery>, headers: HeaderMap) -> Response {
    let (tenant, window) = match graphs.question(&headers, &query) {
        Ok(question) => question,
        Err(refused) => return refused.into_response(),
    };
    let Some(place) = Place::take(&graphs.shared) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many clients follow service graphs\n").into_response();
    };
    let (events, waiting) = mpsc::channel(MAX_WAITING);
    tokio::spawn(send(graphs, tenant, window, events, place));
    Sse::new(ReceiverStream::new(waiting)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

type Events = mpsc::Sender<Result<Event, Infallible>>;

/// Feeds one client until it goes, falls behind, or nothing more will come.
async fn send(mut graphs: ServiceGraphs, tenant: Tenant, window: Duration, events: Events, place: Place) {
    graphs.shown.mark_unchanged();
    let (sequence, mut sent) = graphs.graph(&tenant, window).await;
    let mut alive = place.give(&events, sequence, "graph", &*sent);
    while alive {
        tokio::select! {
            () = events.closed() => return,
            changed = graphs.shown.changed() => if changed.is_err() { return },
        }
        let (sequence, graph) = graphs.graph(&tenant, window).await;
        if let Some(changes) = graph.changes_since(&sent) {
            alive = place.give(&events, sequence, "changes", &changes);
            sent = graph;
        }
    }
}

/// A stream's place among those that are allowed.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        // Counted before it is compared, so that two who come together cannot both have the last place.
        let place = Self(Arc::clone(shared));
        shared.streams.inc();
        if shared.streams.get() > MAX_STREAMS {
            shared.dropped.with_label_values(&["too_many"]).inc();
            return None;
        }
        Some(place)
    }

    /// Queues an event. Returns whether the client may stay.
    fn give(&self, events: &Events, sequence: u64, name: &str, data: &impl Serialize) -> bool {
        let event = Event::default().id(sequence.to_string()).event(name).json_data(data);
        let reason = match event.map(|event| events.try_send(Ok(event))) {
            Ok(Ok(())) => return true,
            Ok(Err(mpsc::error::TrySendError::Closed(_))) => return false,
            Ok(Err(mpsc::error::TrySendError::Full(_))) => "slow",
            Err(_) => "not_encodable",
        };
        self.0.dropped.with_label_values(&[reason]).inc();
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

#[cfg(test)]
mod tests;
