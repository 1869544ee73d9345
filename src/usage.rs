//! `/usage_metrics`: whose bytes tenants send, where that is asked for (`distributor.usage.cost_attribution`).

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::any,
};
use storage::clock::Clock;

use crate::app::App;

const ROUTE: &str = "/usage_metrics";

/// The tracker of this process, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Usage(Option<ingest::UsageTracker>);

impl Usage {
    /// As configured. Once per process.
    pub(crate) fn new(app: &App) -> anyhow::Result<Self> {
        let settings = app.config.distributor.usage;
        Ok(Self(settings.map(|settings| ingest::UsageTracker::new(settings, &app.registry)).transpose()?))
    }

    pub(crate) fn tracker(&self) -> Option<ingest::UsageTracker> {
        self.0.clone()
    }

    /// The page, which is not there without a tracker.
    pub(crate) fn router(&self, app: &App) -> Router {
        match &self.0 {
            Some(tracker) => Router::new().route(ROUTE, any(show)).with_state((tracker.clone(), Arc::clone(&app.clock))),
            None => Router::new(),
        }
    }

    /// Its path, for `/status/endpoints`.
    pub(crate) fn routes(&self) -> Vec<String> {
        self.0.iter().map(|_| ROUTE.to_owned()).collect()
    }
}

async fn show(State((tracker, clock)): State<(ingest::UsageTracker, Arc<dyn Clock>)>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], tracker.render(clock.now())).into_response()
}
