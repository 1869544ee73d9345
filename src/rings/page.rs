//! `/ingester/ring` and its like: who is in a ring, as a table or as JSON, and a button to forget somebody.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use storage::{
    clock::Clock,
    ring::{Instance, Ring, Rings},
};

use crate::{
    http::{accepts, escape},
    logging,
    memberlist::Store,
};

/// What a page shows.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// What the page is called.
    pub(crate) title: &'static str,
    /// The key of the ring in the store.
    pub(crate) ring: String,
    /// Its live view.
    pub(crate) rings: Rings,
    /// Where somebody is forgotten.
    pub(crate) store: Store,
    /// Tells who is alive.
    pub(crate) clock: Arc<dyn Clock>,
}

impl Page {
    /// The page as a route.
    pub(crate) fn route(self, path: &str) -> Router {
        Router::new().route(path, get(show).post(forget)).with_state(self)
    }
}

async fn show(State(page): State<Page>, headers: HeaderMap) -> Response {
    let (ring, now) = (Arc::clone(&page.rings.borrow()), page.clock.now());
    if accepts(&headers, "application/json") {
        return Json(json(&ring, now)).into_response();
    }
    Html(html(page.title, &ring, now)).into_response()
}

async fn forget(State(page): State<Page>, body: Bytes) -> Response {
    let field = form_urlencoded::parse(&body).find(|(name, _)| name == "forget");
    let Some(id) = field.map(|(_, id)| id.into_owned()).filter(|id| !id.is_empty()) else {
        return (StatusCode::BAD_REQUEST, "the form has no field \"forget\"\n").into_response();
    };
    if !page.store.forget(&page.ring, &id) {
        return (StatusCode::NOT_FOUND, format!("instance \"{}\" is not in the ring\n", id)).into_response();
    }
    tracing::info!(ring = page.ring, id, "instance forgotten by request");
    // Loading the page again must not forget again.
    (StatusCode::FOUND, [(header::LOCATION, "#")]).into_response()
}

fn state(instance: &Instance, ring: &Ring, now: Duration) -> &'static str {
    if instance.is_fresh(now, ring.settings().heartbeat_timeout) { instance.state.as_str() } else { "UNHEALTHY" }
}

fn time(seconds: u64) -> String {
    if seconds == 0 { String::new() } else { logging::timestamp(Duration::from_secs(seconds)) }
}

fn json(ring: &Ring, now: Duration) -> serde_json::Value {
    let shards = ring.instances().iter().map(|instance| {
        serde_json::json!({
            "id": instance.id,
            "state": state(instance, ring, now),
            "address": instance.addr,
            "timestamp": time(instance.timestamp),
            "registered_timestamp": time(instance.registered),
            "read_only": instance.read_only,
            "zone": instance.zone,
            "tokens": instance.tokens,
        })
    });
    serde_json::json!({"shards": shards.collect::<Vec<_>>(), "now": logging::timestamp(now)})
}

fn html(title: &str, ring: &Ring, now: Duration) -> String {
    let mut rows = String::new();
    for (instance, share) in ring.instances().iter().zip(ring.shares()) {
        let (id, zone, addr) = (escape(&instance.id), escape(&instance.zone), escape(&instance.addr));
        let (state, registered, beat) = (state(instance, ring, now), time(instance.registered), time(instance.timestamp));
        let silence = now.saturating_sub(Duration::from_secs(instance.timestamp)).as_secs();
        // Quotes end the attribute that they stand in.
        let value = id.replace('"', "&quot;");
        _ = write!(
            rows,
            "<tr><td>{id}</td><td>{zone}</td><td>{state}</td><td>{addr}</td><td>{registered}</td><td>{}</td><td>{silence}s ago ({beat})</td>\
             <td>{}</td><td>{:.2}%</td><td><button name=forget value=\"{value}\" type=submit>Forget</button></td></tr>",
            instance.read_only,
            instance.tokens.len(),
            share * 100.0,
        );
    }
    format!(
        "<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1><p>Current time: {}</p><form action=\"\" method=post>\
         <table border=1><tr><th>Instance ID</th><th>Availability Zone</th><th>State</th><th>Address</th><th>Registered At</th><th>Read-Only</th>\
         <th>Last Heartbeat</th><th>Tokens</th><th>Ownership</th><th>Actions</th></tr>{rows}</table></form>",
        logging::timestamp(now)
    )
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use storage::{
        clock::ManualClock,
        ring::{Settings, State},
    };
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_table_json_and_a_button() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000)));
        let store = Store::of_one(Arc::clone(&clock));
        let rings = store.rings("ring", Settings::default());
        let instance = |id: &str, timestamp, token| Instance {
            id: id.to_owned(),
            addr: "h:1".to_owned(),
            timestamp,
            state: State::Active,
            tokens: vec![token],
            ..Instance::default()
        };
        store.set_instance("ring", &instance("a<\"b\"", 1_699_999_999, 0));
        store.set_instance("ring", &instance("old", 1_699_000_000, 1 << 31));
        let page = Page { title: "Ingester Ring Status", ring: "ring".to_owned(), rings, store, clock };
        let router = page.route("/ingester/ring");
        let ask = async |request: Request<Body>| {
            let response = router.clone().oneshot(request).await.expect("infallible");
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            (status, String::from_utf8(body.to_vec()).expect("text"))
        };
        let get = |accept: &str| Request::get("/ingester/ring").header("accept", accept).body(Body::empty()).expect("a request");
        let (_, html) = ask(get("text/html")).await;
        assert!(html.contains("<td>a&lt;\"b\"</td>") && html.contains("value=\"a&lt;&quot;b&quot;\""), "{html}");
        assert!(html.contains("<td>UNHEALTHY</td>") && html.contains("<td>50.00%</td>"), "{html}");
        let (_, text) = ask(get("application/json")).await;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((json["shards"][0]["state"].as_str(), json["shards"][1]["state"].as_str()), (Some("ACTIVE"), Some("UNHEALTHY")));
        let post = |body: &'static str| {
            let request = Request::post("/ingester/ring").header("content-type", "application/x-www-form-urlencoded");
            request.body(Body::from(body)).expect("a request")
        };
        assert_eq!(ask(post("forget=nobody")).await, (404, "instance \"nobody\" is not in the ring\n".to_owned()));
        assert_eq!(ask(post("")).await.0, 400);
        assert_eq!(ask(post("forget=old")).await.0, 302);
        let (_, text) = ask(get("application/json")).await;
        assert!(!text.contains("\"old\""), "{text}");
    }
}
