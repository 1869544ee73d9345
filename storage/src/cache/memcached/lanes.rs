//! A few threads with a connection each: the crate `memcache` blocks, and its connections must not be used after a failure.
//!
//! ```text
//!  submit ──► queue, bounded ──► thread 1, connection 1 ──► server
//!                           └──► thread n, connection n ──►
//! ```
//!
//! Threads are started when there is work and no idle one, up to a bound, and end when the lanes are dropped. What the crate leaves open
//! is closed here:
//! - It connects without a time-out, and waits for the whole of its own when a connection is refused. So a connection is tried first with
//!   a time-out, and closed again.
//! - It puts a connection back into its pool whatever happened on it, even when half an answer is still to come. So each pool holds one
//!   connection, and is thrown away after any failure.
//! - It believes the length of a value and panics on the longest ones: panics are caught and are failures.
//! - It writes requests in small pieces, which `TCP_NODELAY` keeps from waiting for each other.
//!
//! Known limitations, which the crate's interface leaves no way around: a time-out is that of one read, so that a server that sends a byte
//! now and then keeps a thread busy (but no caller waiting); and a server that announces a value of terabytes, where the system refuses
//! such allocations, ends the process. Servers of a cache are part of the deployment, which nobody else should be able to reach.

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use memcache::{Client, ConnectionManager, MemcacheError, Pool, Url};
use parking_lot::{Condvar, Mutex};
use scheduled_thread_pool::ScheduledThreadPool;

use super::Failure;

/// Jobs that wait for a thread of one server.
const QUEUE: usize = 1024;
/// Nothing here recurses.
const STACK_BYTES: usize = 256 << 10;
/// Threads that open connections, of all servers together. They are not kept for long: what they connect to was reachable just before.
const CONNECTORS: usize = 4;

static CONNECT_ON: LazyLock<Arc<ScheduledThreadPool>> = LazyLock::new(|| {
    let pool = ScheduledThreadPool::builder().num_threads(CONNECTORS).thread_name_pattern("memcached-connect-{}");
    Arc::new(pool.build())
});

pub(super) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The threads of one server. Jobs that wait when they are dropped are still done.
#[derive(Debug)]
pub(super) struct Lanes(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    timeout: Duration,
    most_threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    closed: bool,
}

impl Lanes {
    /// At most `most_threads` connections to a server.
    pub(super) fn new(address: SocketAddr, timeout: Duration, most_threads: usize) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { address, timeout, most_threads: most_threads.max(1), state, changed }))
    }

    /// Has a thread do something with its connection. Refuses when too much waits.
    pub(super) fn submit(&self, job: Job) -> bool {
        let mut state = self.0.state.lock();
        if state.jobs.len() >= QUEUE {
            return false;
        }
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= self.0.most_threads {
            self.0.changed.notify_one();
            return true;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.0);
        let thread = thread::Builder::new().name("memcached".to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || shared.work()) {
            tracing::warn!(%error, "no thread for memcached");
            state.threads -= 1;
            if state.threads == 0 {
                state.jobs.pop_back();
                return false;
            }
        }
        true
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut connection = Connection { address: self.address, timeout: self.timeout, client: None };
        loop {
            let mut state = self.state.lock();
            while state.jobs.is_empty() && !state.closed {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
            let Some(job) = state.jobs.pop_front() else { return };
            drop(state);
            job(&mut connection);
        }
    }
}

/// A connection that is opened when it is needed and forgotten when it failed.
pub(super) struct Connection {
    address: SocketAddr,
    timeout: Duration,
    client: Option<Client>,
}

impl Connection {
    /// Runs requests, which may be done twice: when a connection that was used before fails, the server may have been started anew since.
    pub(super) fn run<T>(&mut self, requests: impl Fn(&Client) -> Result<T, MemcacheError>) -> Result<T, Failure> {
        if let Some(client) = self.client.take() {
            match attempt(&client, &requests) {
                Ok(answer) => {
                    self.client = Some(client);
                    return Ok(answer);
                }
                Err(failure @ (Failure::Timeout | Failure::Refused(_))) => return Err(failure),
                Err(_) => {}
            }
        }
        let client = self.connect()?;
        let answer = attempt(&client, &requests)?;
        self.client = Some(client);
        Ok(answer)
    }

    fn connect(&self) -> Result<Client, Failure> {
        TcpStream::connect_timeout(&self.address, self.timeout).map_err(|error| of_io(&error))?;
        let seconds = self.timeout.as_secs_f64();
        let url = format!("memcache://{}?protocol=ascii&timeout={seconds}&tcp_nodelay=true", self.address);
        let url = Url::parse(&url).map_err(|error| Failure::Unreachable(error.to_string()))?;
        let pool = Pool::builder()
            .max_size(1)
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(self.timeout)
            // The request itself shows whether the connection is good, without another round trip.
            .test_on_check_out(false)
            .thread_pool(Arc::clone(&CONNECT_ON))
            .build_unchecked(ConnectionManager::new(url));
        Client::with_pool(pool).map_err(of)
    }
}

fn attempt<T>(client: &Client, requests: impl Fn(&Client) -> Result<T, MemcacheError>) -> Result<T, Failure> {
    let answer = catch_unwind(AssertUnwindSafe(|| requests(client)));
    answer.unwrap_or_else(|_| Err(memcache::ClientError::Error("the answer cannot be read".into()).into())).map_err(of)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn of(error: MemcacheError) -> Failure {
    match &error {
        MemcacheError::IOError(error) => of_io(error),
        // The server said so in the words of the protocol.
        MemcacheError::ServerError(memcache::ServerError::Error(what)) => Failure::Refused(what.trim_end().to_owned()),
        MemcacheError::CommandError(what) => Failure::Refused(what.to_string()),
        MemcacheError::ClientError(memcache::ClientError::Error(what)) if what.starts_with("CLIENT_ERROR") => {
            Failure::Refused(what.trim_end().to_owned())
        }
        other => Failure::Unreachable(other.to_string()),
    }
}

fn of_io(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Unreachable(error.to_string()),
    }
}
