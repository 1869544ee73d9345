//! The receivers: one socket and one service for each that the configuration names, all before the same distributor.

use std::{collections::HashMap, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use storage::wal::Wal;
use tokio::net::{TcpListener, UdpSocket};

use crate::{
    app::App,
    config::{Grpc, Http, Udp},
    http,
    modules::TenantLimits,
};

/// Bytes of requests between socket and log, at most.
const MAX_INGEST_BYTES: u64 = 256 << 20;
/// How long a request may wait for its share of those.
const INGEST_WAIT: Duration = Duration::from_secs(5);
/// Retry hint of refused requests where the configuration says nothing: without one, OTLP clients drop what was refused.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The sockets of the receivers.
#[derive(Debug, Default)]
pub(crate) struct Receivers {
    otlp_grpc: Vec<(TcpListener, Grpc)>,
    otlp_http: Vec<(TcpListener, Http, String)>,
    jaeger_grpc: Vec<(TcpListener, Grpc)>,
    jaeger_http: Vec<(TcpListener, Http)>,
    jaeger_udp: Vec<(UdpSocket, Udp, ingest::ThriftProtocol)>,
    zipkin: Vec<(TcpListener, Http, bool)>,
}

impl Receivers {
    /// Takes the ports.
    pub(crate) async fn bind(app: &App) -> anyhow::Result<Self> {
        let config = app.config.distributor.receivers.clone();
        // Listening in the clear where encryption or authentication was asked for would be worse than not listening.
        if let Some(key) = config.unused.iter().find(|key| key.contains(".tls") || key.contains(".auth")) {
            anyhow::bail!("{key} is not available in this version of Rubato: remove it to listen without");
        }
        // As would be not listening at all without a word.
        if let Some(name) = config.unavailable.first() {
            anyhow::bail!("distributor.receivers.{name} is not available in this version of Rubato");
        }
        let mut receivers = Self::default();
        for grpc in config.otlp_grpc {
            receivers.otlp_grpc.push((http::bind(&grpc.endpoint).await?, grpc));
        }
        for (http, path) in config.otlp_http {
            receivers.otlp_http.push((http::bind(&http.endpoint).await?, http, path));
        }
        for grpc in config.jaeger_grpc {
            receivers.jaeger_grpc.push((http::bind(&grpc.endpoint).await?, grpc));
        }
        for http in config.jaeger_http {
            receivers.jaeger_http.push((http::bind(&http.endpoint).await?, http));
        }
        let compact = config.jaeger_compact.into_iter().map(|udp| (udp, ingest::ThriftProtocol::Compact));
        let binary = config.jaeger_binary.into_iter().map(|udp| (udp, ingest::ThriftProtocol::Binary));
        for (udp, protocol) in compact.chain(binary) {
            let socket = UdpSocket::bind(&udp.endpoint).await;
            let socket = socket.map_err(|error| anyhow::anyhow!("failed to listen on {} (UDP): {error}", udp.endpoint))?;
            receivers.jaeger_udp.push((socket, udp, protocol));
        }
        for (http, parse_string_tags) in config.zipkin {
            receivers.zipkin.push((http::bind(&http.endpoint).await?, http, parse_string_tags));
        }
        Ok(receivers)
    }

    /// Begins to take spans.
    pub(crate) fn serve(self, app: &mut App, wal: &Wal) -> anyhow::Result<()> {
        let distributor = distributor(app, wal)?;
        let bytes = usize::try_from(app.sizes.ingest_bytes.min(MAX_INGEST_BYTES))?;
        let budget = ingest::Budget::new(bytes, INGEST_WAIT, &app.registry)?;
        let multitenancy = app.config.multitenancy;
        let clock = Arc::clone(&app.clock);
        let mut services = Services { app, numbers: HashMap::new() };
        let grpc_settings = |grpc: &Grpc| ingest::GrpcSettings {
            max_message_bytes: grpc.max_message_bytes,
            multitenancy,
            ..ingest::GrpcSettings::default()
        };
        for (listener, grpc) in self.otlp_grpc {
            let (settings, distributor, budget) = (grpc_settings(&grpc), distributor.clone(), budget.clone());
            services.spawn("otlp-grpc", listener.local_addr()?, |shutdown| {
                ingest::otlp_grpc(listener, settings, distributor, budget, shutdown)
            });
        }
        for (listener, http, traces_path) in self.otlp_http {
            let settings =
                ingest::HttpSettings { max_body_bytes: http.max_body_bytes, traces_path, multitenancy, ..ingest::HttpSettings::default() };
            let (distributor, budget) = (distributor.clone(), budget.clone());
            services.spawn("otlp-http", listener.local_addr()?, |shutdown| {
                ingest::otlp_http(listener, settings, distributor, budget, shutdown)
            });
        }
        for (listener, grpc) in self.jaeger_grpc {
            let (settings, distributor, budget) = (grpc_settings(&grpc), distributor.clone(), budget.clone());
            services.spawn("jaeger-grpc", listener.local_addr()?, |shutdown| {
                ingest::jaeger_grpc(listener, settings, distributor, budget, shutdown)
            });
        }
        for (listener, http) in self.jaeger_http {
            let settings =
                ingest::JaegerHttpSettings { max_body_bytes: http.max_body_bytes, multitenancy, ..ingest::JaegerHttpSettings::default() };
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
        for (listener, http, parse_string_tags) in self.zipkin {
            let settings = ingest::ZipkinSettings {
                max_body_bytes: http.max_body_bytes,
                parse_string_tags,
                multitenancy,
                ..ingest::ZipkinSettings::default()
            };
            let (distributor, budget, clock) = (distributor.clone(), budget.clone(), Arc::clone(&clock));
            services.spawn("zipkin", listener.local_addr()?, |shutdown| {
                ingest::zipkin(listener, settings, distributor, budget, clock, shutdown)
            });
        }
        Ok(())
    }
}

/// The distributor of this process.
fn distributor(app: &App, wal: &Wal) -> anyhow::Result<ingest::Distributor> {
    let config = &app.config;
    let written = config.settings.written("distributor.retry_after_on_resource_exhausted").is_some();
    let retry_after = config.distributor.retry_after.or((!written).then_some(RETRY_AFTER)).unwrap_or_default();
    let settings = ingest::DistributorSettings {
        max_attribute_bytes: usize::try_from(config.distributor.max_attribute_bytes)?,
        retry_after_on_resource_exhausted: retry_after,
        rate_strategy: match config.settings.text("overrides.defaults.ingestion.rate_strategy") {
            // One process is the only distributor there is.
            "global" => ingest::RateStrategy::Global { distributors: 1 },
            _ => ingest::RateStrategy::Local,
        },
        trace_idle_period: config.ingester.trace_idle_period,
        ..ingest::DistributorSettings::default()
    };
    let limits = Arc::new(TenantLimits(Arc::clone(&app.overrides)));
    Ok(ingest::Distributor::new(settings, Arc::new(wal.clone()), limits, Arc::clone(&app.clock), &app.registry)?)
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
