//! One memcached (or mcrouter): its breaker, its connections, and what can be asked of it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use memcache::{Client, MemcacheError};
use tokio::sync::oneshot;

use super::{
    Failure,
    breaker::{Admission, Breaker},
    lanes::Lanes,
};
use crate::cache::settings::Memcached;

/// Connections for look-ups, at most. Each carries thousands of them in a second.
const MOST_READERS: usize = 8;
/// Connections for writes, at most, so that writes never keep look-ups waiting.
const MOST_WRITERS: usize = 4;

#[derive(Debug)]
pub(super) struct Server {
    name: String,
    address: SocketAddr,
    timeout: Duration,
    ttl_seconds: u32,
    breaker: Arc<Breaker>,
    reads: Lanes,
    writes: Lanes,
}

impl Server {
    pub(super) fn new(name: String, address: SocketAddr, settings: &Memcached) -> Self {
        // A time-out of nothing is refused by sockets.
        let timeout = settings.timeout.max(Duration::from_millis(1));
        Self {
            name,
            address,
            timeout,
            ttl_seconds: settings.ttl_seconds(),
            breaker: Arc::new(Breaker::new(settings)),
            reads: Lanes::new(address, timeout, settings.max_idle_conns.clamp(1, MOST_READERS)),
            writes: Lanes::new(address, timeout, settings.writers.clamp(1, MOST_WRITERS)),
        }
    }

    /// As in the addresses, or as they were looked up.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is left alone.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// What it has of `keys`.
    pub(super) async fn get(&self, keys: Vec<String>) -> Result<HashMap<String, Bytes>, Failure> {
        let found: HashMap<String, Vec<u8>> = self
            .ask(&self.reads, move |client| match keys.as_slice() {
                // A reply with another key is an error of the crate's here, and passed over there.
                [key] => Ok(client.get(key)?.map(|value| (key.clone(), value)).into_iter().collect()),
                keys => client.gets(&keys.iter().map(String::as_str).collect::<Vec<_>>()),
            })
            .await?;
        Ok(found.into_iter().map(|(key, value)| (key, Bytes::from(value))).collect())
    }

    /// Has it keep a value.
    pub(super) async fn set(&self, key: String, value: Bytes) -> Result<(), Failure> {
        let ttl = self.ttl_seconds;
        self.ask(&self.writes, move |client| client.set(&key, &value[..], ttl)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        lanes: &Lanes,
        requests: impl Fn(&Client) -> Result<T, MemcacheError> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.breaker.admit(Instant::now()) {
            Admission::Go => {}
            Admission::Skip => return Err(Failure::CircuitOpen),
            Admission::Probe => {
                self.probe();
                return Err(Failure::CircuitOpen);
            }
        }
        let (reply, answer) = oneshot::channel();
        let submitted = lanes.submit(Box::new(move |connection| {
            // Nobody waits any more: a server that answers late should not be asked for that, too.
            if !reply.is_closed() {
                let _ = reply.send(connection.run(requests));
            }
        }));
        if !submitted {
            return Err(Failure::Busy);
        }
        let answer = match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Unreachable("its thread ended".to_owned())),
            Err(_) => Err(Failure::Timeout),
        };
        match &answer {
            Err(failure @ (Failure::Timeout | Failure::Unreachable(_))) => {
                if self.breaker.failed(Instant::now()) {
                    tracing::warn!(server = %self.name, address = %self.address, %failure, "memcached is left alone for a while");
                }
            }
            _ => self.breaker.succeeded(),
        }
        answer
    }

    /// Asks for its version, with nobody waiting. Costs one of the connections for writes its time.
    fn probe(&self) {
        let (breaker, name) = (Arc::clone(&self.breaker), self.name.clone());
        self.writes.submit(Box::new(move |connection| match connection.run(Client::version) {
            Ok(_) => {
                breaker.succeeded();
                tracing::info!(server = %name, "memcached answers again");
            }
            Err(failure) => {
                breaker.probe_failed(Instant::now());
                tracing::debug!(server = %name, %failure, "memcached does not answer yet");
            }
        }));
    }
}
