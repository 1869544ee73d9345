//! Which servers the addresses stand for.
//!
//! | Written | Servers |
//! |---|---|
//! | `host:port` | that one |
//! | `dns+host:port` | one for each address of the host |
//! | `dnssrv+name` | one for each address of each target of the SRV record |
//! | `dnssrvnoa+name` | one for each target of the SRV record |
//! | `host` and `service` | `dnssrv+_<service>._tcp.<host>` |
//! | `host` alone | `dns+<host>:11211` |
//!
//! Hosts are looked up by the operating system, which knows `/etc/hosts`; it cannot look up SRV records, which `hickory-resolver` does
//! with the operating system's name servers and search domains.

use std::{net::SocketAddr, time::Duration};

use hickory_resolver::{TokioResolver, proto::rr::RData};

use super::placement::natural;
use crate::cache::settings::Memcached;

/// Memcached's port, for hosts without one.
const PORT: u16 = 11211;
/// How long one name may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Servers beyond these are ignored.
const MOST_SERVERS: usize = 256;

/// A way to find servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// One server.
    Host(String),
    /// Every address of a host is a server.
    Addresses(String),
    /// Every address of every target of an SRV record is a server.
    Services(String),
    /// Every target of an SRV record is a server.
    ServiceHosts(String),
}

/// What the settings name, in their order.
///
/// # Errors
/// What is missing or not understood.
pub(super) fn sources(settings: &Memcached) -> Result<Vec<Source>, String> {
    let Memcached { host, service, addresses, .. } = settings;
    let written = addresses.split(',').map(str::trim).filter(|address| !address.is_empty());
    let sources: Vec<_> = written.map(source).collect::<Result<_, _>>()?;
    match (sources.is_empty(), host.is_empty(), service.is_empty()) {
        (false, ..) => Ok(sources),
        (_, false, false) => Ok(vec![Source::Services(format!("_{service}._tcp.{host}"))]),
        (_, false, true) => Ok(vec![Source::Addresses(with_port(host)?)]),
        _ => Err("memcached has neither addresses nor host".to_owned()),
    }
}

fn source(address: &str) -> Result<Source, String> {
    let Some((scheme, name)) = address.split_once('+') else { return Ok(Source::Host(with_port(address)?)) };
    match scheme {
        _ if name.is_empty() => Err(format!("memcached address \"{address}\" has no name")),
        "dns" => Ok(Source::Addresses(with_port(name)?)),
        "dnssrv" => Ok(Source::Services(name.to_owned())),
        "dnssrvnoa" => Ok(Source::ServiceHosts(name.to_owned())),
        _ => Err(format!("memcached address \"{address}\": \"{scheme}+\" is not one of dns+, dnssrv+, dnssrvnoa+")),
    }
}

/// `host:port`, whose port may be left out.
fn with_port(address: &str) -> Result<String, String> {
    let wrong = || format!("memcached address \"{address}\" is not host:port");
    match address.rsplit_once(':') {
        // Without a port, an IPv6 address has brackets.
        _ if address.ends_with(']') => Ok(format!("{address}:{PORT}")),
        None => Ok(format!("{address}:{PORT}")),
        Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
            port.parse::<u16>().map(|_| address.to_owned()).map_err(|_| wrong())
        }
        Some(_) => Err(wrong()),
    }
}

/// A server's name, which decides its place, and its address.
pub(super) type Found = (String, SocketAddr);

/// The servers of all sources, in the order of their names; `None` when one of them could not be looked up.
pub(super) async fn look_up(sources: &[Source]) -> Option<Vec<Found>> {
    let mut found = Vec::new();
    for source in sources {
        let looked_up = tokio::time::timeout(PATIENCE, look_up_one(source)).await;
        match looked_up.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(servers) => found.extend(servers),
            Err(error) => {
                tracing::warn!(?source, error, "memcached servers cannot be looked up");
                return None;
            }
        }
    }
    found.sort_by(|(left, _), (right, _)| natural(left, right));
    found.dedup_by(|(left, _), (right, _)| left == right);
    found.truncate(MOST_SERVERS);
    Some(found)
}

async fn look_up_one(source: &Source) -> Result<Vec<Found>, String> {
    match source {
        Source::Host(host) => Ok(addresses(host).await?.first().map(|address| (host.clone(), *address)).into_iter().collect()),
        Source::Addresses(host) => Ok(addresses(host).await?.into_iter().map(|address| (address.to_string(), address)).collect()),
        Source::Services(name) | Source::ServiceHosts(name) => {
            let mut found = Vec::new();
            for target in services(name).await? {
                let addresses = addresses(&target).await?;
                if matches!(source, Source::ServiceHosts(_)) {
                    found.extend(addresses.first().map(|address| (target, *address)));
                } else {
                    found.extend(addresses.into_iter().map(|address| (address.to_string(), address)));
                }
            }
            Ok(found)
        }
    }
}

/// Addresses of `host:port`; those of version 4 alone if there are any: most hosts have both, and are one server.
async fn addresses(host: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<_> = tokio::net::lookup_host(host).await.map_err(|error| format!("{host}: {error}"))?.collect();
    let version_4: Vec<_> = found.iter().copied().filter(SocketAddr::is_ipv4).collect();
    Ok(if version_4.is_empty() { found } else { version_4 })
}

/// `host:port` of the targets of an SRV record.
async fn services(name: &str) -> Result<Vec<String>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(|error| wrong(&error))?;
    let found = resolver.srv_lookup(name).await.map_err(|error| wrong(&error))?;
    let targets = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(format!("{}:{}", srv.target.to_utf8().trim_end_matches('.'), srv.port)),
        _ => None,
    });
    Ok(targets.take(MOST_SERVERS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(addresses: &str) -> Result<Vec<Source>, String> {
        sources(&Memcached { addresses: addresses.to_owned(), ..Memcached::default() })
    }

    #[test]
    fn addresses_as_written() {
        let expected = vec![
            Source::Host("a:1".to_owned()),
            Source::Host("[::1]:11211".to_owned()),
            Source::Host("[::1]:5".to_owned()),
            Source::Addresses("b:11211".to_owned()),
            Source::Services("_m._tcp.c".to_owned()),
            Source::ServiceHosts("_m._tcp.d".to_owned()),
        ];
        assert_eq!(of("a:1, [::1],[::1]:5,dns+b,dnssrv+_m._tcp.c,,dnssrvnoa+_m._tcp.d"), Ok(expected));
        for wrong in ["a:b", ":1", "a:99999", "::1", "udp+a", "dns+", ""] {
            assert!(of(wrong).expect_err(wrong).contains("memcached"), "{wrong}");
        }
        let hosts = |host: &str, service: &str| sources(&Memcached { host: host.into(), service: service.into(), ..Memcached::default() });
        assert_eq!(hosts("memcached", "memcached-client"), Ok(vec![Source::Services("_memcached-client._tcp.memcached".to_owned())]));
        assert_eq!(hosts("memcached", ""), Ok(vec![Source::Addresses("memcached:11211".to_owned())]));
    }

    #[tokio::test]
    async fn addresses_are_looked_up_and_ordered() {
        let sources = of("127.0.0.10:2,127.0.0.9:2,127.0.0.9:2,dns+localhost:7").expect("addresses");
        let found = look_up(&sources).await.expect("localhost is known everywhere");
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["127.0.0.1:7", "127.0.0.9:2", "127.0.0.10:2"]);
        assert_eq!(look_up(&of("nowhere.invalid:1").expect("an address")).await, None);
    }
}
