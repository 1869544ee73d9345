//! The HTTP client of tools and exporters, without TLS.

use std::time::Duration;

use axum::body::Body;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};

/// Keeps its connections. Cheap to clone.
pub(crate) type HttpClient = hyper_util::client::legacy::Client<HttpConnector, Body>;

/// A client that gives up connecting after ten seconds.
pub(crate) fn http_client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(10)));
    hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector)
}
