//! Where other processes are: names that are looked up again and again, because what they stand for changes.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use storage::tls::Connector;
use tokio::sync::watch;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Addresses of processes (`host:port`), as they are known now. Whoever finds them out sends each change.
pub type Addresses = watch::Receiver<Arc<[String]>>;

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

/// Looks `host:port` names, separated by commas, up for ever, and tells `known` when their addresses change. A name server that is away for a
/// moment does not make them go.
pub async fn look_up(names: String, every: Duration, known: watch::Sender<Arc<[String]>>) {
    loop {
        let addresses: Arc<[String]> = resolve(&names).await.iter().map(SocketAddr::to_string).collect();
        if !addresses.is_empty() {
            known.send_if_modified(|before| {
                let is_new = *before != addresses;
                *before = addresses;
                is_new
            });
        }
        tokio::time::sleep(every.max(Duration::from_millis(100))).await;
    }
}

/// A connection that is made by `connector` when it is needed.
///
/// # Errors
/// The address is none.
pub(super) fn channel(address: &str, connector: &Connector) -> Result<Channel, tonic::transport::Error> {
    // What requests say that they are for; the connection itself is the connector's.
    let origin = Endpoint::from_shared(format!("{}://{address}", connector.scheme()))?.uri().clone();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .origin(origin)
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let (connector, address) = (connector.clone(), address.to_owned());
    let connect = move |_: Uri| {
        let (connector, address) = (connector.clone(), address.clone());
        async move { connector.connect(&address).await.map(TokioIo::new) }
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}

/// What went wrong with a call: of a broken connection the innermost cause, which its message leaves out.
pub(super) fn cause(status: &Status) -> String {
    let mut innermost = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        innermost = Some(error.to_string());
        source = error.source();
    }
    match innermost {
        Some(cause) if !status.message().contains(&cause) => format!("{}: {cause}", status.message()),
        _ => status.message().to_owned(),
    }
}
