//! Thrift over UDP: what Jaeger's agent took from clients beside it on 6831 (compact) and 6832 (binary).
//!
//! ```text
//!  socket ──recv──► queue of datagrams, bounded ──► workers: decode, translate, push
//!             └─ full: dropped, counted
//! ```
//!
//! The reference drops in silence what it cannot take; here every drop is counted with its reason.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use storage::id::Tenant;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    distributor::Distributor,
    foreign::Foreign,
    metrics::{JAEGER, ReceiverMetrics},
    server::{Drained, ServerSettings},
};

/// Thrift's encodings, by the port that one expects them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThriftProtocol {
    /// 6831.
    Compact,
    /// 6832.
    Binary,
}

impl ThriftProtocol {
    fn transport(self) -> &'static str {
        match self {
            Self::Compact => "udp_thrift_compact",
            Self::Binary => "udp_thrift_binary",
        }
    }
}

/// How the receiver is set up.
#[derive(Clone, Debug)]
pub struct JaegerUdpSettings {
    /// How the datagrams are written.
    pub protocol: ThriftProtocol,
    /// Datagrams that may wait (`queue_size`).
    pub queue_size: usize,
    /// Largest datagram, bytes (`max_packet_size`); what is longer is cut by the socket and then malformed.
    pub max_packet_size: usize,
    /// Datagrams that are worked on at a time (`workers`).
    pub workers: usize,
    /// Whether tenants are told apart, which datagrams cannot.
    pub multitenancy: bool,
}

impl JaegerUdpSettings {
    /// The reference's defaults.
    pub fn new(protocol: ThriftProtocol) -> Self {
        Self { protocol, queue_size: 1000, max_packet_size: 65_000, workers: 10, multitenancy: false }
    }
}

/// Takes datagrams from `socket` until `shutdown` completes and those that wait are worked off.
pub async fn jaeger_thrift_udp(
    socket: UdpSocket,
    settings: JaegerUdpSettings,
    distributor: Distributor,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let metrics = distributor.receiver_metrics(JAEGER, settings.protocol.transport());
    let receiver = Arc::new(Receiver { settings, distributor, metrics });
    let (queue, waiting) = mpsc::channel(receiver.settings.queue_size.max(1));
    let worker = Arc::clone(&receiver);
    let workers = tokio::spawn(async move {
        let workers = worker.settings.workers.max(1);
        ReceiverStream::new(waiting).for_each_concurrent(workers, |datagram: Bytes| worker.take(datagram)).await;
    });
    tokio::select! {
        () = receiver.listen(&socket, &queue) => {}
        () = shutdown => {}
    }
    drop(queue);
    let abort = workers.abort_handle();
    if timeout(ServerSettings::default().drain_timeout, workers).await.is_err() {
        abort.abort();
        return Drained { aborted_connections: 1 };
    }
    Drained { aborted_connections: 0 }
}

struct Receiver {
    settings: JaegerUdpSettings,
    distributor: Distributor,
    metrics: ReceiverMetrics,
}

impl Receiver {
    /// Receives for ever.
    async fn listen(&self, socket: &UdpSocket, queue: &mpsc::Sender<Bytes>) {
        let mut buffer = vec![0; self.settings.max_packet_size.clamp(1, 1 << 16)];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, _)) => {
                    if queue.try_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        self.metrics.refused(0, "queue_full");
                    }
                }
                // Of a datagram that we once sent, nothing that concerns us; not in a loop that spins.
                Err(error) => {
                    tracing::debug!(%error, "receiving a datagram failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn take(&self, datagram: Bytes) {
        if self.settings.multitenancy {
            self.metrics.refused(0, "no_tenant");
            return;
        }
        let form = match self.settings.protocol {
            ThriftProtocol::Compact => Foreign::JaegerCompactDatagram,
            ThriftProtocol::Binary => Foreign::JaegerBinaryDatagram,
        };
        let request = match form.to_otlp(&datagram, Duration::ZERO, false) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, bytes = datagram.len(), "datagram is no batch of spans");
                return self.metrics.refused(0, "malformed");
            }
        };
        drop(datagram);
        match self.distributor.push(&Tenant::single(), request).await {
            Ok(pushed) => self.metrics.accepted(pushed.spans()),
            Err(error) => {
                tracing::debug!(%error, spans = error.spans, "spans of a datagram were refused");
                self.metrics.refused(error.spans, error.reason());
            }
        }
    }
}
