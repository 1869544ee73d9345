//! Where other processes are: names that are looked up again and again, because what they stand for changes.

use std::{collections::BTreeSet, net::SocketAddr};

/// The addresses of `host:port` names, separated by commas; those that cannot be looked up now are left out, with a word.
pub(super) async fn resolve(names: &str) -> BTreeSet<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        // Forms that Tempo's flags allow and that mean the same here.
        let name = name.strip_prefix("dns:///").or_else(|| name.strip_prefix("dns+")).unwrap_or(name);
        match tokio::net::lookup_host(name).await {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!(name, %error, "address cannot be looked up"),
        }
    }
    addresses
}

/// A connection that is made when it is needed.
pub(super) fn channel(address: SocketAddr) -> tonic::transport::Channel {
    // An address is always a URL.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.unwrap_or_else(|_| tonic::transport::Endpoint::from_static("http://127.0.0.1:9095"));
    endpoint
        .connect_timeout(std::time::Duration::from_secs(5))
        .http2_keep_alive_interval(std::time::Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .connect_lazy()
}
