//! Whom to ask first: `join_members`.
//!
//! | Written | Members |
//! |---|---|
//! | `host:port` or `host` | every address of the host |
//! | `dns+host:port` | the same |
//! | `dnssrv+name` | every address of each target of the SRV record, with the record's port |
//! | `dnssrvnoa+name` | the same, the targets being looked up by the operating system's resolver |

use std::{net::SocketAddr, time::Duration};

use hickory_resolver::{TokioResolver, proto::rr::RData};

/// The port of members that are written without one.
const PORT: u16 = 7946;
/// How long one name may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Members beyond these are ignored.
const MOST: usize = 256;

/// One entry of `join_members`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    /// `host:port`.
    Host(String),
    /// The name of an SRV record.
    Service(String),
}

impl Seed {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, name) = text.split_once('+').map_or(("", text), |(scheme, name)| (scheme, name));
        if name.is_empty() {
            return Err(format!("\"{text}\" has no name"));
        }
        match scheme {
            "" | "dns" => Ok(Self::Host(with_port(name).ok_or_else(|| format!("\"{text}\" is not host:port"))?)),
            "dnssrv" | "dnssrvnoa" => Ok(Self::Service(name.to_owned())),
            _ => Err(format!("\"{text}\": \"{scheme}+\" is not one of dns+, dnssrv+, dnssrvnoa+")),
        }
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        match self {
            Self::Host(host) => host_addresses(host).await,
            Self::Service(name) => {
                let mut found = Vec::new();
                for target in targets(name).await? {
                    found.extend(host_addresses(&target).await?);
                }
                Ok(found)
            }
        }
    }
}

/// The addresses of all seeds but the process's own, without those that cannot be looked up now.
pub(super) async fn look_up(seeds: &[Seed], own: SocketAddr) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for seed in seeds {
        match tokio::time::timeout(PATIENCE, seed.addresses()).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(addresses) => found.extend(addresses.into_iter().filter(|address| *address != own)),
            Err(error) => tracing::warn!(?seed, error, "members to join cannot be looked up"),
        }
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST);
    found
}

/// `host:port`, whose port may be left out.
fn with_port(name: &str) -> Option<String> {
    match name.rsplit_once(':') {
        _ if name.ends_with(']') => Some(format!("{name}:{PORT}")),
        None => Some(format!("{name}:{PORT}")),
        Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
            port.parse::<u16>().ok().map(|_| name.to_owned())
        }
        Some(_) => None,
    }
}

/// Addresses of `host:port`; those of version 4 alone if there are any: most hosts have both, and are one member.
async fn host_addresses(host: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<_> = tokio::net::lookup_host(host).await.map_err(|error| format!("{host}: {error}"))?.collect();
    let version_4: Vec<_> = found.iter().copied().filter(SocketAddr::is_ipv4).collect();
    Ok(if version_4.is_empty() { found } else { version_4 })
}

/// `host:port` of the targets of an SRV record.
async fn targets(name: &str) -> Result<Vec<String>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(|error| wrong(&error))?;
    let found = resolver.srv_lookup(name).await.map_err(|error| wrong(&error))?;
    let targets = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(format!("{}:{}", srv.target.to_utf8().trim_end_matches('.'), srv.port)),
        _ => None,
    });
    Ok(targets.take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling() {
        let host = |text: &str| Ok(Seed::Host(text.to_owned()));
        assert_eq!(Seed::parse("a:1"), host("a:1"));
        assert_eq!(Seed::parse("a"), host("a:7946"));
        assert_eq!(Seed::parse("[::1]"), host("[::1]:7946"));
        assert_eq!(Seed::parse("dns+gossip-ring.tempo.svc.cluster.local:7946"), host("gossip-ring.tempo.svc.cluster.local:7946"));
        assert_eq!(Seed::parse("dnssrv+_gossip._tcp.a"), Ok(Seed::Service("_gossip._tcp.a".to_owned())));
        assert_eq!(Seed::parse("dnssrvnoa+_gossip._tcp.a"), Ok(Seed::Service("_gossip._tcp.a".to_owned())));
        assert_eq!(Seed::parse("dns+"), Err("\"dns+\" has no name".to_owned()));
        assert_eq!(Seed::parse("a:b"), Err("\"a:b\" is not host:port".to_owned()));
        assert_eq!(Seed::parse("etcd+a"), Err("\"etcd+a\": \"etcd+\" is not one of dns+, dnssrv+, dnssrvnoa+".to_owned()));
    }

    #[tokio::test]
    async fn the_own_address_is_left_out() {
        let seeds = ["127.0.0.1:5", "dns+127.0.0.1:6", "127.0.0.1:6", "a.invalid:1"].map(|text| Seed::parse(text).expect("a seed"));
        let own = "127.0.0.1:5".parse().expect("an address");
        assert_eq!(look_up(&seeds, own).await, ["127.0.0.1:6".parse().expect("an address")]);
    }
}
