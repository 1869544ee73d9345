//! Both ends of a connection between two members.
//!
//! ```text
//!  begins:  Hello, Sync ─►   ◄─ Delta   Entries ─►   ◄─ Taken      (kept, and used for the next exchange with the same member)
//!  answers: Hello is checked once; then each Sync is answered, each Entries merged, until the other end closes or says nothing for long
//! ```

use std::{
    collections::HashMap,
    io::{Error, ErrorKind},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use storage::tls::{Connection, Peers};
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

use super::{
    Metrics, Settings, Store,
    entry::{Entry, Versions},
    wire::{self, Hello, Message, PROTOCOL},
};

/// Connections that are kept; more are closed after use.
const MAX_KEPT: usize = 64;
/// Members are asked every second or so: a connection that is silent for longer isn't used any more.
const IDLE: Duration = Duration::from_secs(60);

/// What both ends need.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    // Locked to take one out or put one in.
    kept: Mutex<HashMap<SocketAddr, Connection>>,
    peers: Peers,
}

impl Connections {
    pub(super) fn new(settings: Settings, store: Store, peers: Peers, metrics: Metrics) -> Self {
        Self { settings, store, metrics, kept: Mutex::default(), peers }
    }

    /// Brings this process and another level.
    ///
    /// # Errors
    /// The other doesn't answer in time, or not in our language.
    pub(super) async fn exchange(&self, peer: SocketAddr) -> std::io::Result<()> {
        self.metrics.pushes.inc();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
        let versions = self.store.versions();
        let mut outcome = match kept {
            // It may have been closed meanwhile, which is no failure.
            Some(stream) => self.exchange_on(stream, &versions).await.ok(),
            None => None,
        };
        if outcome.is_none() {
            let connected = async { self.exchange_on(self.connect(peer).await?, &versions).await };
            outcome = Some(connected.await.inspect_err(|_| self.metrics.failures.inc())?);
        }
        if let Some(stream) = outcome {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(peer, stream);
        }
        Ok(())
    }

    async fn connect(&self, peer: SocketAddr) -> std::io::Result<Connection> {
        let address = peer.to_string();
        let mut stream = timeout(self.settings.dial_timeout, self.peers.connector.connect(&address)).await.map_err(late)??;
        let Settings { label, name, .. } = &self.settings;
        let hello = Hello { protocol: PROTOCOL, label: label.clone(), name: name.clone() };
        timeout(self.settings.exchange_timeout, wire::write(&mut stream, &hello)).await.map_err(late)??;
        Ok(stream)
    }

    async fn exchange_on(&self, mut stream: Connection, versions: &Versions) -> std::io::Result<Connection> {
        let exchange = async {
            wire::write(&mut stream, &Message::Sync(versions.clone())).await?;
            let Message::Delta { entries, wanted } = answered(&mut stream).await? else { return Err(misunderstood()) };
            self.merge(entries);
            if !wanted.is_empty() {
                wire::write(&mut stream, &Message::Entries(self.store.entries(&wanted))).await?;
                let Message::Taken = answered(&mut stream).await? else { return Err(misunderstood()) };
            }
            Ok(stream)
        };
        timeout(self.settings.exchange_timeout, exchange).await.map_err(late)?
    }

    /// Answers whoever has connected, until the connection ends.
    pub(super) async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let patience = self.settings.exchange_timeout;
        let accepted = timeout(patience, self.peers.acceptor.accept(stream)).await.map_err(late).flatten();
        let mut stream = accepted.inspect_err(|_| self.metrics.refused_connections.with_label_values(&["tls"]).inc())?;
        let hello: Option<Hello> = timeout(patience, wire::read(&mut stream)).await.map_err(late)??;
        let Some(hello) = hello else { return Ok(()) };
        if let Some(reason) = self.refuses(&hello) {
            self.metrics.refused_connections.with_label_values(&[reason]).inc();
            tracing::debug!(reason, member = hello.name, "member refused");
            return Ok(());
        }
        while let Some(message) = timeout(IDLE, wire::read(&mut stream)).await.map_err(late)?? {
            match message {
                Message::Sync(versions) => {
                    self.metrics.pulls.inc();
                    let (entries, wanted) = self.store.compare(&versions);
                    timeout(patience, wire::write(&mut stream, &Message::Delta { entries, wanted })).await.map_err(late)??;
                }
                Message::Entries(entries) => {
                    self.merge(entries);
                    timeout(patience, wire::write(&mut stream, &Message::Taken)).await.map_err(late)??;
                }
                Message::Delta { .. } | Message::Taken => return Err(misunderstood()),
            }
        }
        Ok(())
    }

    fn refuses(&self, hello: &Hello) -> Option<&'static str> {
        if hello.protocol != PROTOCOL {
            Some("protocol")
        } else if hello.label != self.settings.label && !self.settings.accept_any_label {
            Some("cluster_label")
        } else if hello.name == self.settings.name {
            // A seed that is this process under another address, or another process with the same name.
            Some("own_name")
        } else {
            None
        }
    }

    fn merge(&self, entries: Vec<Entry>) {
        let merged = self.store.merge(entries);
        self.metrics.received.inc_by(merged.news);
        for (reason, count) in merged.refused {
            self.metrics.refused_entries.with_label_values(&[reason]).inc_by(count);
        }
    }
}

async fn answered(stream: &mut Connection) -> std::io::Result<Message> {
    let nothing = || Error::new(ErrorKind::UnexpectedEof, "closed without an answer: perhaps another cluster_label");
    wire::read(stream).await?.ok_or_else(nothing)
}

fn misunderstood() -> Error {
    Error::new(ErrorKind::InvalidData, "not an answer to what was asked")
}

fn late(_: Elapsed) -> Error {
    ErrorKind::TimedOut.into()
}
