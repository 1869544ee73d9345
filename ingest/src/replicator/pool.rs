//! The ingesters that this process is a client of, by address.
//!
//! A peer is made when it is first written to. It goes when the ring no longer has its address, and when it fails a health check: the next write
//! then begins with a new connection.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use parking_lot::RwLock;
use storage::{
    ring::{Ring, Rings},
    tls::Connector,
};

use super::peer::{Peer, PeerSettings};
use crate::metrics::ReplicatorMetrics;

/// When health is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthChecks {
    /// None asks never.
    pub(crate) period: Option<Duration>,
    pub(crate) timeout: Duration,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: PeerSettings,
    connector: Connector,
    metrics: ReplicatorMetrics,
    peers: RwLock<HashMap<String, Arc<Peer>>>,
}

impl Pool {
    pub(crate) fn new(settings: PeerSettings, connector: Connector, metrics: ReplicatorMetrics) -> Self {
        Self { settings, connector, metrics, peers: RwLock::default() }
    }

    /// The ingester at an address.
    pub(crate) fn peer(&self, address: &str) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(address) {
            return Arc::clone(peer);
        }
        let mut peers = self.peers.write();
        let peer = match peers.get(address) {
            Some(peer) => Arc::clone(peer),
            None => {
                let peer = Arc::new(Peer::new(address, self.settings, self.connector.clone(), self.metrics.peer(address)));
                peers.insert(address.to_owned(), Arc::clone(&peer));
                peer
            }
        };
        self.metrics.clients.set(peers.len() as i64);
        peer
    }

    /// Counts bytes that are sent.
    pub(crate) fn sends(&self, bytes: usize) {
        self.metrics.sent_bytes.inc_by(bytes as u64);
    }

    /// Lets go of ingesters that are gone or ill until `shutdown` completes.
    pub(crate) async fn maintain(&self, mut rings: Rings, checks: HealthChecks, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut ring_is_kept = true;
        // The first check is due after a period, and so is each one after a check.
        let pause = async || match checks.period {
            Some(period) => tokio::time::sleep(period).await,
            None => std::future::pending().await,
        };
        loop {
            let mut due = std::pin::pin!(pause());
            loop {
                tokio::select! {
                    () = &mut shutdown => return,
                    changed = rings.changed(), if ring_is_kept => {
                        ring_is_kept = changed.is_ok();
                        let ring = Arc::clone(&rings.borrow_and_update());
                        self.retain(&ring);
                    }
                    () = &mut due => break,
                }
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = self.check(checks.timeout) => {}
            }
        }
    }

    /// Forgets who is not in the ring.
    fn retain(&self, ring: &Ring) {
        let mut peers = self.peers.write();
        peers.retain(|address, _| {
            let kept = ring.instances().iter().any(|instance| instance.addr == *address);
            if !kept {
                tracing::info!(ingester = address.as_str(), "ingester left the ring");
                self.metrics.forget(address);
            }
            kept
        });
        self.metrics.clients.set(peers.len() as i64);
    }

    /// Forgets who does not serve.
    async fn check(&self, timeout: Duration) {
        let peers: Vec<Arc<Peer>> = self.peers.read().values().map(Arc::clone).collect();
        let checked = join_all(peers.iter().map(|peer| async move { (peer, peer.check(timeout).await) })).await;
        let mut known = self.peers.write();
        for (peer, result) in checked {
            if let Err(error) = result {
                tracing::warn!(ingester = &*peer.address, err = error.message.as_str(), "ingester fails its health check");
                if known.get(&*peer.address).is_some_and(|known| Arc::ptr_eq(known, peer)) {
                    known.remove(&*peer.address);
                }
            }
        }
        self.metrics.clients.set(known.len() as i64);
    }
}
