//! The server under test, and the clients that talk to it.

pub(crate) mod client;
pub(crate) mod ledger;
pub(crate) mod network;
pub(crate) mod otlp;
#[path = "../../storage/src/backend/tests/server.rs"]
#[expect(dead_code, reason = "the tests of the storage crate, where it lives, use all of it")]
pub(crate) mod s3;
pub(crate) mod server;

use std::{future::Future, time::Duration};

use storage::clock::{Clock as _, SystemClock};

/// How long something that happens in the background may take. Far more than it needs: machines that run tests are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Asks again and again until there is an answer.
///
/// # Panics
/// There is none within [`PATIENCE`].
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Time since the Unix epoch.
pub(crate) fn now() -> Duration {
    SystemClock.now()
}

pub(crate) fn now_ns() -> u64 {
    now().as_nanos() as u64
}
