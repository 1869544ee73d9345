//! A cache in memcached: never an error, and never in anybody's way.
//!
//! ```text
//!  get ──keys by server──► breaker ──► lanes ──► what was found; the rest, whatever went wrong, was not
//!  put ──► queue, bounded in entries and bytes ──► a few writes at a time ──► breaker ──► lanes
//!             └─ full: dropped and counted
//!  every update_interval: names ──► servers
//! ```
//!
//! Values are the raw bytes, without flags: what Tempo wrote is read, and the other way round. Keys that memcached's protocol cannot carry
//! (longer than 250 bytes, or with spaces or control characters) are never cached there; no key of ours is such.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use parking_lot::RwLock;
use tokio::sync::mpsc;

use self::{discovery::Source, server::Server};
use super::{metrics::Metrics, settings};

mod breaker;
mod discovery;
mod lanes;
mod placement;
mod server;

/// Keys asked for in one request.
const KEYS_AT_ONCE: usize = 32;
/// Longest key of memcached's protocol.
const MAX_KEY_BYTES: usize = 250;
/// How soon names are looked up again as long as there is no server.
const FIRST_LOOKUPS: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("no server is known")]
    NoServer,
    #[error("it failed before and is left alone")]
    CircuitOpen,
    #[error("too many requests wait for it")]
    Busy,
    #[error("it does not answer in time")]
    Timeout,
    #[error("{0}")]
    Unreachable(String),
    #[error("it refused: {0}")]
    Refused(String),
}

impl Failure {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoServer => "no_server",
            Self::CircuitOpen => "circuit_open",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Refused(_) => "refused",
        }
    }
}

/// One configured cache.
#[derive(Debug)]
pub(super) struct Memcached {
    shared: Arc<Shared>,
    queue: mpsc::Sender<(String, Bytes)>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    settings: settings::Memcached,
    metrics: Arc<Metrics>,
    servers: RwLock<Vec<Arc<Server>>>,
    queued_bytes: AtomicUsize,
}

impl Memcached {
    /// Begins to look for the servers and to take writes, on the runtime that this is called in. Ends when it is dropped.
    ///
    /// # Errors
    /// The addresses are not understood.
    pub(super) fn start(settings: settings::Memcached, metrics: Arc<Metrics>) -> Result<Self, String> {
        let sources = discovery::sources(&settings)?;
        let (queue, writes) = mpsc::channel(settings.queue_entries.max(1));
        let name = settings.label();
        if settings.ttl > Duration::from_secs(settings.ttl_seconds().into()) {
            tracing::warn!(cache = %name, seconds = settings.ttl_seconds(), "memcached keeps nothing for longer");
        }
        let shared = Arc::new(Shared { name, settings, metrics, servers: RwLock::default(), queued_bytes: AtomicUsize::new(0) });
        tokio::spawn(keep_looking_up(sources, Arc::downgrade(&shared)));
        tokio::spawn(write(writes, Arc::clone(&shared)));
        Ok(Self { shared, queue })
    }

    /// What is there of `keys`.
    pub(super) async fn get(&self, keys: &[&str]) -> HashMap<String, Bytes> {
        let servers = self.shared.servers.read().clone();
        let mut by_server: Vec<Vec<String>> = vec![Vec::new(); servers.len().max(1)];
        for key in keys.iter().filter(|key| is_allowed(key)) {
            by_server[placement::place(key, servers.len(), self.shared.settings.consistent_hash)].push((*key).to_owned());
        }
        let requests = by_server.iter().enumerate().flat_map(|(place, keys)| keys.chunks(KEYS_AT_ONCE).map(move |keys| (place, keys)));
        let requests = requests.map(|(place, keys)| self.get_from(servers.get(place), keys));
        future::join_all(requests).await.into_iter().flatten().collect()
    }

    async fn get_from(&self, server: Option<&Arc<Server>>, keys: &[String]) -> HashMap<String, Bytes> {
        let Shared { name, metrics, .. } = &*self.shared;
        let begun = Instant::now();
        let found = match server {
            Some(server) => server.get(keys.to_vec()).await,
            None => Err(Failure::NoServer),
        };
        let method = if keys.len() == 1 { "Memcache.Get" } else { "Memcache.GetMulti" };
        let status = match &found {
            Ok(found) if keys.len() == 1 && found.is_empty() => "404",
            Ok(_) => "200",
            Err(_) => "500",
        };
        // What was not asked took no time.
        if !matches!(found, Err(Failure::NoServer | Failure::CircuitOpen)) {
            metrics.seconds.with_label_values(&[method, status, name]).observe(begun.elapsed().as_secs_f64());
        }
        found.unwrap_or_else(|failure| {
            metrics.failures.with_label_values(&[name, failure.reason()]).inc();
            HashMap::new()
        })
    }

    /// Has a value written soon, unless too much waits.
    pub(super) fn put(&self, key: String, value: Bytes) {
        let Shared { name, settings, metrics, queued_bytes, .. } = &*self.shared;
        let dropped = |reason| metrics.dropped.with_label_values(&[name.as_str(), reason]).inc();
        if !is_allowed(&key) {
            return dropped("key");
        }
        if settings.max_item_size > 0 && value.len() > settings.max_item_size {
            metrics.too_large.with_label_values(&[name]).inc();
            return dropped("item_size");
        }
        let bytes = key.len() + value.len();
        if queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > settings.queue_bytes {
            queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            metrics.overflows.with_label_values(&[name]).inc();
            return dropped("queue_bytes");
        }
        let queue_length = metrics.queue_length.with_label_values(&[name]);
        queue_length.inc();
        if self.queue.try_send((key, value)).is_err() {
            queue_length.dec();
            queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            metrics.overflows.with_label_values(&[name]).inc();
            dropped("queue_entries");
        }
    }

    /// Its label in metrics.
    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    /// How many servers it has.
    pub(super) fn servers(&self) -> usize {
        self.shared.servers.read().len()
    }

    /// How many of them are left alone.
    pub(super) fn open_servers(&self) -> usize {
        self.shared.servers.read().iter().filter(|server| server.is_open()).count()
    }
}

impl Shared {
    /// The servers from now on. Those that stay keep their connections and what is known of them.
    fn replace(&self, found: Vec<discovery::Found>) {
        let mut servers = self.servers.write();
        let known = |name: &str, address| servers.iter().find(|known| known.name() == name && known.address() == address).cloned();
        let server = |(name, address): discovery::Found| {
            known(&name, address).unwrap_or_else(|| {
                tracing::info!(cache = %self.name, server = %name, %address, "memcached server");
                Arc::new(Server::new(name, address, &self.settings))
            })
        };
        *servers = found.into_iter().map(server).collect();
    }

    async fn write(&self, key: String, value: Bytes) {
        let bytes = key.len() + value.len();
        let server = {
            let servers = self.servers.read();
            servers.get(placement::place(&key, servers.len(), self.settings.consistent_hash)).cloned()
        };
        let begun = Instant::now();
        let written = match server {
            Some(server) => server.set(key, value).await,
            None => Err(Failure::NoServer),
        };
        if !matches!(written, Err(Failure::NoServer | Failure::CircuitOpen)) {
            let status = if written.is_ok() { "200" } else { "500" };
            self.metrics.seconds.with_label_values(&["Memcache.Put", status, &self.name]).observe(begun.elapsed().as_secs_f64());
        }
        if let Err(failure) = written {
            tracing::debug!(cache = %self.name, %failure, "value not written to memcached");
            self.metrics.dropped.with_label_values(&[self.name.as_str(), failure.reason()]).inc();
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.queue_length.with_label_values(&[&self.name]).dec();
    }
}

/// Writes what waits, until the cache is dropped and nothing waits any more.
async fn write(mut queue: mpsc::Receiver<(String, Bytes)>, shared: Arc<Shared>) {
    let writes = stream::poll_fn(|context| queue.poll_recv(context));
    writes.for_each_concurrent(shared.settings.writers.max(1), |(key, value)| shared.write(key, value)).await;
}

/// Looks the names up again and again. A failure changes nothing: a name server that is away does not take the cache away.
async fn keep_looking_up(sources: Vec<Source>, shared: std::sync::Weak<Shared>) {
    loop {
        let found = discovery::look_up(&sources).await;
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            if let Some(found) = found {
                shared.replace(found);
            }
            if shared.servers.read().is_empty() { FIRST_LOOKUPS } else { shared.settings.update_interval.max(FIRST_LOOKUPS) }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Whether memcached's protocol can carry a key.
fn is_allowed(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}
