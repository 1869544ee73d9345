use axum::{
    body::{Body, BodyDataStream},
    http::Request,
};
use dataflow::generator::{Accumulated, Agg, Definition, Family, Labels, Layout, Series, Snapshot, Weight};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::Value as Json;
use tower::ServiceExt as _;

use super::*;

/// The routes over a generator that commits when the test says so.
struct World {
    snapshots: Snapshots,
    router: Router,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    shown: watch::Receiver<u64>,
}

impl World {
    fn new(multitenancy: bool) -> Self {
        let snapshots = Snapshots::default();
        let (graphs, follow) = ServiceGraphs::new(&snapshots, 0, multitenancy, &Registry::new()).expect("an empty registry");
        let (stop, shutdown) = Shutdown::new();
        tokio::spawn(follow(shutdown));
        let (shared, shown) = (Arc::clone(&graphs.shared), graphs.shown.clone());
        Self { snapshots, router: graphs.router("/prefix"), shared, stop, shown }
    }

    /// A commit after which there have been so many requests from a to b, and waits until it is shown.
    async fn commit(&mut self, sequence: u64, requests: i128) {
        let labels: Labels =
            [("client", "a"), ("server", "b")].map(|(name, value)| (Arc::from(name), Arc::from(value))).into_iter().collect();
        let tenant = Tenant::single();
        let layout = Arc::new(Layout::COUNTER);
        let series = Series::new(Definition { tenant: tenant.clone(), family: Family::ServiceGraphRequests, labels, layout });
        let agg = Agg::counted(Weight(Weight::ONE.0 * requests));
        let accumulated = Accumulated { series, agg, first: 1, last: sequence, exemplars: Vec::new() };
        let tenants = [(tenant, Arc::from([Arc::new(accumulated)]))].into();
        self.snapshots.publish(Snapshot {
            sequence,
            tick: sequence,
            at: Duration::from_secs(1_000 + sequence),
            tenants,
            ..Snapshot::default()
        });
        self.shown.wait_for(|shown| *shown == sequence).await.expect("followed");
    }

    async fn get(&self, path: &str, tenant: Option<&str>) -> Response {
        let mut request = Request::get(path);
        if let Some(tenant) = tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        self.router.clone().oneshot(request.body(Body::empty()).expect("a request")).await.expect("infallible")
    }
}

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The next event: its fields by name.
async fn event(stream: &mut BodyDataStream) -> Option<HashMap<String, String>> {
    let bytes = stream.next().await?.expect("readable");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(text.lines().filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[tokio::test]
async fn a_graph_of_the_newest_commit() {
    let mut world = World::new(false);
    world.commit(1, 0).await;
    world.commit(2, 10).await;
    let (status, body) = text(world.get("/prefix/api/service-graph?window=1m", None).await).await;
    let graph: Json = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, graph["edges"][0]["requests"].as_f64(), graph["endMs"].as_u64()), (200, Some(10.0), Some(1_002_000)));
    world.commit(3, 30).await;
    let (_, body) = text(world.get("/prefix/api/service-graph", None).await).await;
    assert!(body.contains("\"requests\":30.0"), "{body}");
}

#[tokio::test]
async fn questions_without_an_answer() {
    let world = World::new(true);
    for (path, tenant, expected) in [
        ("?window=x", Some("a"), (400, "invalid window: invalid duration \"x\": unknown unit \"x\"\n")),
        ("?window=2h", Some("a"), (400, "invalid window: 2h is not above 0 and at most 1h\n")),
        ("?window=-5s", Some("a"), (400, "invalid window: -5s is not above 0 and at most 1h\n")),
        ("", None, (401, "no org id\n")),
        ("", Some("a|b"), (400, "multiple org IDs present\n")),
        ("", Some("a/b"), (400, "tenant ID 'a/b' contains unsupported character '/'\n")),
    ] {
        for route in ROUTES {
            let (status, body) = text(world.get(&format!("/prefix{route}{path}"), tenant).await).await;
            assert_eq!((status, body.as_str()), expected, "{route}{path}");
        }
    }
    let (status, body) = text(world.get("/prefix/api/service-graph?window=60", Some("a:source=x")).await).await;
    assert_eq!((status, body.as_str()), (200, r#"{"startMs":0,"endMs":0,"nodes":[],"edges":[],"unpaired":[],"overflow":0.0}"#));
}

#[tokio::test]
async fn a_stream_is_a_graph_and_then_changes() {
    let mut world = World::new(false);
    world.commit(1, 0).await;
    let mut stream = world.get("/prefix/api/service-graph/stream", None).await.into_body().into_data_stream();
    let first = event(&mut stream).await.expect("an event");
    assert_eq!((first["event"].as_str(), first["id"].as_str()), ("graph", "1"));
    // Nothing has happened: nothing is said.
    world.commit(2, 0).await;
    world.commit(3, 5).await;
    let second = event(&mut stream).await.expect("an event");
    assert_eq!((second["event"].as_str(), second["id"].as_str()), ("changes", "3"));
    let changes: Json = serde_json::from_str(&second["data"]).expect("JSON");
    assert_eq!((&changes["edges"][0]["client"], &changes["removedEdges"]), (&Json::from("a"), &Json::from(Vec::<Json>::new())));
    world.stop.send_replace(true);
    assert!(event(&mut stream).await.is_none(), "the process ends");
}

#[tokio::test]
async fn a_client_that_falls_behind_is_let_go() {
    let mut world = World::new(false);
    world.commit(1, 0).await;
    let mut stream = world.get("/prefix/api/service-graph/stream", None).await.into_body().into_data_stream();
    for sequence in 2.. {
        world.commit(sequence, i128::from(sequence)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        if world.shared.streams.get() == 0 {
            break;
        }
        assert!(sequence < 10_000, "nobody reads, and nothing is done about it");
    }
    assert_eq!(world.shared.dropped.with_label_values(&["slow"]).get(), 1);
    let mut events = 0;
    while event(&mut stream).await.is_some() {
        events += 1;
    }
    assert_eq!(events, MAX_WAITING, "what was queued is still sent, and then the end");
}

#[tokio::test]
async fn clients_are_limited_and_leave_their_places() {
    let mut world = World::new(false);
    world.commit(1, 0).await;
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS {
        let response = world.get("/prefix/api/service-graph/stream", None).await;
        assert_eq!(response.status(), StatusCode::OK);
        streams.push(response);
    }
    let (status, body) = text(world.get("/prefix/api/service-graph/stream", None).await).await;
    assert_eq!((status, body.as_str()), (503, "too many clients follow service graphs\n"));
    assert_eq!(world.shared.dropped.with_label_values(&["too_many"]).get(), 1);
    streams.clear();
    while world.shared.streams.get() > 0 {
        tokio::task::yield_now().await;
    }
}
