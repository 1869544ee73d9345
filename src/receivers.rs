//! The receivers: one socket and one service for each that the configuration names, all before the same distributor.

use std::{collections::HashMap, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::net::{TcpListener, UdpSocket};

use anyhow::Context as _;
use storage::tls::ServerTls;

use crate::{
    app::App,
    auth::Credentials,
    config::{Grpc, Http, Udp},
    http, write_path,
};

/// A receiver's socket and how connections to it are treated.
#[derive(Debug)]
struct Socket {
    listener: TcpListener,
    server: ingest::ServerSettings,
}

/// The sockets of the receivers.
#[derive(Debug, Default)]
pub(crate) struct Receivers {
    otlp_grpc: Vec<(Socket, Grpc)>,
    otlp_http: Vec<(Socket, Http, String)>,
    jaeger_grpc: Vec<(Socket, Grpc)>,
    jaeger_http: Vec<(Socket, Http)>,
    jaeger_udp: Vec<(UdpSocket, Udp, ingest::ThriftProtocol)>,
    zipkin: Vec<(Socket, Http, bool)>,
}

impl Receivers {
    /// Takes the ports.
    pub(crate) async fn bind(app: &App) -> anyhow::Result<Self> {
        let config = app.config.distributor.receivers.clone();
        let admit = Credentials::read(&app.config.server.auth)?.map(|credentials| credentials as Arc<dyn ingest::Admit>);
        let socket = async |endpoint: &str, tls: &Option<ServerTls>| -> anyhow::Result<Socket> {
            let listener = http::bind(endpoint).await?;
            let tls = tls.as_ref().map(ServerTls::config).transpose();
            let tls = tls.with_context(|| format!("TLS of the receiver on {endpoint}"))?;
            Ok(Socket { listener, server: ingest::ServerSettings { tls, admit: admit.clone(), ..ingest::ServerSettings::default() } })
        };
        let mut receivers = Self::default();
        for grpc in config.otlp_grpc {
            receivers.otlp_grpc.push((socket(&grpc.endpoint, &grpc.tls).await?, grpc));
        }
        for (http, path) in config.otlp_http {
            receivers.otlp_http.push((socket(&http.endpoint, &http.tls).await?, http, path));
        }
        for grpc in config.jaeger_grpc {
            receivers.jaeger_grpc.push((socket(&grpc.endpoint, &grpc.tls).await?, grpc));
        }
        for http in config.jaeger_http {
            receivers.jaeger_http.push((socket(&http.endpoint, &http.tls).await?, http));
        }
        let compact = config.jaeger_compact.into_iter().map(|udp| (udp, ingest::ThriftProtocol::Compact));
        let binary = config.jaeger_binary.into_iter().map(|udp| (udp, ingest::ThriftProtocol::Binary));
        for (udp, protocol) in compact.chain(binary) {
            let socket = UdpSocket::bind(&udp.endpoint).await;
            let socket = socket.map_err(|error| anyhow::anyhow!("failed to listen on {} (UDP): {error}", udp.endpoint))?;
            receivers.jaeger_udp.push((socket, udp, protocol));
        }
        for (http, parse_string_tags) in config.zipkin {
            receivers.zipkin.push((socket(&http.endpoint, &http.tls).await?, http, parse_string_tags));
        }
        Ok(receivers)
    }

    /// Begins to take spans.
    pub(crate) fn serve(self, app: &mut App, distributor: &ingest::Distributor) -> anyhow::Result<()> {
        let budget = ingest::Budget::new(write_path::budget_bytes(app)?, write_path::BUDGET_WAIT, &app.registry)?;
        let multitenancy = app.config.multitenancy;
        let clock = Arc::clone(&app.clock);
        let mut services = Services { app, numbers: HashMap::new() };
        let grpc_settings = |grpc: &Grpc, server| ingest::GrpcSettings { max_message_bytes: grpc.max_message_bytes, multitenancy, server };
        for (Socket { listener, server }, grpc) in self.otlp_grpc {
            let (settings, distributor, budget) = (grpc_settings(&grpc, server), distributor.clone(), budget.clone());
            services.spawn("otlp-grpc", listener.local_addr()?, |shutdown| {
                ingest::otlp_grpc(listener, settings, distributor, budget, shutdown)
            });
        }
        for (Socket { listener, server }, http, traces_path) in self.otlp_http {
            let settings = ingest::HttpSettings { max_body_bytes: http.max_body_bytes, traces_path, multitenancy, server };
            let (distributor, budget) = (distributor.clone(), budget.clone());
            services.spawn("otlp-http", listener.local_addr()?, |shutdown| {
                ingest::otlp_http(listener, settings, distributor, budget, shutdown)
            });
        }
        for (Socket { listener, server }, grpc) in self.jaeger_grpc {
            let (settings, distributor, budget) = (grpc_settings(&grpc, server), distributor.clone(), budget.clone());
            services.spawn("jaeger-grpc", listener.local_addr()?, |shutdown| {
                ingest::jaeger_grpc(listener, settings, distributor, budget, shutdown)
            });
        }
        for (Socket { listener, server }, http) in self.jaeger_http {
            let settings = ingest::JaegerHttpSettings { max_body_bytes: http.max_body_bytes, multitenancy, server };
            let (distributor, budget) = (distributor.clone(), budget.clone());
            services.spawn("jaeger-thrift-http", listener.local_addr()?, |shutdown| {
                ingest::jaeger_thrift_http(listener, settings, distributor, budget, shutdown)
            });
        }
        for (socket, udp, protocol) in self.jaeger_udp {
            let Udp { queue_size, max_packet_size, workers, endpoint: _ } = udp;
            let settings = ingest::JaegerUdpSettings { protocol, queue_size, max_packet_size, workers, multitenancy };
            let distributor = distributor.clone();
            services.spawn("jaeger-thrift-udp", socket.local_addr()?, |shutdown| {
                ingest::jaeger_thrift_udp(socket, settings, distributor, shutdown)
            });
        }
        for (Socket { listener, server }, http, parse_string_tags) in self.zipkin {
            let settings = ingest::ZipkinSettings { max_body_bytes: http.max_body_bytes, parse_string_tags, multitenancy, server };
            let (distributor, budget, clock) = (distributor.clone(), budget.clone(), Arc::clone(&clock));
            services.spawn("zipkin", listener.local_addr()?, |shutdown| {
                ingest::zipkin(listener, settings, distributor, budget, clock, shutdown)
            });
        }
        Ok(())
    }
}

/// Starts receivers as services, those of one kind under names of their own.
struct Services<'a> {
    app: &'a mut App,
    numbers: HashMap<&'static str, usize>,
}

impl Services<'_> {
    fn spawn<F>(&mut self, kind: &'static str, address: SocketAddr, run: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> F)
    where
        F: Future<Output = ingest::Drained> + Send + 'static,
    {
        tracing::info!(%address, receiver = kind, "receiver listens");
        let number = self.numbers.entry(kind).or_default();
        *number += 1;
        let name = if *number == 1 { kind.to_owned() } else { format!("{kind}-{number}") };
        self.app.spawn(&name, |mut shutdown| {
            let receiver = run(Box::pin(async move { shutdown.wait().await }));
            async move {
                receiver.await;
                Ok(())
            }
        });
    }
}
