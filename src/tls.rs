//! Connections as they are accepted: in the clear, or once their handshakes are done.
//!
//! ```text
//!  TcpListener ──► Listener ──► plain: as it is accepted
//!                     │    └──► TLS:   handshakes in tasks of their own, bounded in number and time ──► channel
//!                     └ Open: how many there are, and may be; more wait to be accepted
//! ```
//!
//! A handshake never stands in the way of another, and a client that says nothing is gone after [`HANDSHAKE_TIME`].

use std::{sync::Arc, time::Duration};

use prometheus::IntGauge;
use storage::tls::{Acceptor, Connection, ServerTls, TlsError};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait to be accepted.
const MAX_HANDSHAKES: usize = 256;
/// Connections that may wait between their handshake and the server.
const READY_CONNECTIONS: usize = 16;

/// The connections of one protocol.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    count: IntGauge,
    slots: Option<Arc<Semaphore>>,
}

impl Open {
    /// Counted by `count`, and as many as `limit` at a time; 0 is as many as there are.
    pub(crate) fn new(count: IntGauge, limit: usize) -> Self {
        let slots = (limit > 0).then(|| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))));
        Self { count, slots }
    }
}

/// A place among the connections of a protocol, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    count: IntGauge,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.count.dec();
    }
}

/// A connection and its place: drop the place when the connection has ended.
pub(crate) type Accepted = (Connection, Slot);

/// Accepts connections; see the module documentation.
#[derive(Debug)]
pub(crate) enum Listener {
    /// In the clear.
    Plain(TcpListener, Open),
    /// Encrypted: connections whose handshakes are done.
    Tls(mpsc::Receiver<Accepted>),
}

impl Listener {
    /// Takes a listener over. Must be called inside a runtime.
    ///
    /// # Errors
    /// As [`ServerTls::config`].
    pub(crate) fn new(listener: TcpListener, tls: Option<&ServerTls>, open: Open) -> Result<Self, TlsError> {
        let acceptor = Acceptor::new(tls)?;
        if !acceptor.is_encrypted() {
            return Ok(Self::Plain(listener, open));
        }
        let (sender, ready) = mpsc::channel(READY_CONNECTIONS);
        tokio::spawn(handshakes(listener, acceptor, open, sender));
        Ok(Self::Tls(ready))
    }

    /// The next connection. Never fails: what goes wrong with one is its own affair.
    pub(crate) async fn next(&mut self) -> Option<Accepted> {
        match self {
            Self::Plain(listener, open) => {
                let (stream, slot) = accept(listener, open).await;
                Some((Connection::Plain(stream), slot))
            }
            Self::Tls(ready) => ready.recv().await,
        }
    }
}

async fn accept(listener: &TcpListener, open: &Open) -> (TcpStream, Slot) {
    // Never closed: it lives as long as the listener.
    let permit = match &open.slots {
        Some(slots) => Arc::clone(slots).acquire_owned().await.ok(),
        None => None,
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers go out when they are written.
                _ = stream.set_nodelay(true);
                open.count.inc();
                return (stream, Slot { count: open.count.clone(), _permit: permit });
            }
            Err(error) => {
                // Out of file descriptors, most likely; there will be some again when connections close.
                tracing::warn!(%error, "cannot accept connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Ends when nobody takes connections any more.
async fn handshakes(listener: TcpListener, acceptor: Acceptor, open: Open, ready: mpsc::Sender<Accepted>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let next = async {
            // Never closed: it lives as long as this function.
            let handshake = Arc::clone(&handshakes).acquire_owned().await.ok();
            (handshake, accept(&listener, &open).await)
        };
        let (handshake, (stream, slot)) = tokio::select! {
            () = ready.closed() => return,
            next = next => next,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                // Nobody there any more: the connection closes.
                Ok(Ok(connection)) => _ = ready.send((connection, slot)).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_elapsed) => tracing::debug!("TLS handshake took too long"),
            }
            drop(handshake);
        });
    }
}
