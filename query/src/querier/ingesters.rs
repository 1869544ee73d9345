//! The processes that take spans in, as a querier asks them.
//!
//! Each runs the job on what it has. All must answer: one that does not may have spans that were acknowledged, so that an answer without it
//! could be wrong.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::try_join_all;
use prometheus::{IntGauge, Registry};
use storage::id::Tenant;
use tokio::sync::Mutex;

use super::addresses::{channel, resolve};
use crate::{
    engine::{QueryError, RecentError},
    job::{Answer, Job, Runner, decode_outcome},
    proto::rubato::{RecentJob, recent_client::RecentClient},
};

type Client = RecentClient<tonic::transport::Channel>;

/// See the module documentation.
#[derive(Debug)]
pub struct Ingesters {
    names: String,
    lookup_interval: Duration,
    max_message_bytes: usize,
    known: Mutex<Known>,
    clients: IntGauge,
}

#[derive(Debug, Default)]
struct Known {
    clients: BTreeMap<SocketAddr, Client>,
    looked_up: Option<Instant>,
}

impl Ingesters {
    /// The processes at these `host:port` names, separated by commas, which are looked up again after some time.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(names: &str, lookup_interval: Duration, max_message_bytes: usize, registry: &Registry) -> prometheus::Result<Self> {
        let clients = IntGauge::new("tempo_querier_livestore_clients", "Processes that are asked for recent data.")?;
        registry.register(Box::new(clients.clone()))?;
        Ok(Self { names: names.to_owned(), lookup_interval, max_message_bytes, known: Mutex::default(), clients })
    }

    async fn clients(&self) -> Result<Vec<(SocketAddr, Client)>, RecentError> {
        let mut known = self.known.lock().await;
        let is_old = known.looked_up.is_none_or(|at| at.elapsed() > self.lookup_interval);
        if is_old || known.clients.is_empty() {
            let addresses = resolve(&self.names).await;
            // A name server that is away for a moment does not make them go.
            if !addresses.is_empty() {
                known.clients.retain(|address, _| addresses.contains(address));
                for address in addresses {
                    known.clients.entry(address).or_insert_with(|| {
                        RecentClient::new(channel(address))
                            .max_decoding_message_size(self.max_message_bytes)
                            .max_encoding_message_size(self.max_message_bytes)
                    });
                }
                known.looked_up = Some(Instant::now());
            }
            self.clients.set(i64::try_from(known.clients.len()).unwrap_or(0));
        }
        if known.clients.is_empty() {
            return Err(RecentError { cause: format!("no address is known for \"{}\"", self.names) });
        }
        Ok(known.clients.iter().map(|(address, client)| (*address, client.clone())).collect())
    }
}

#[async_trait]
impl Runner for Ingesters {
    async fn run(&self, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        let request = Arc::new(RecentJob { tenant: tenant.as_str().to_owned(), job: job.encode() });
        let ask = |(address, mut client): (SocketAddr, Client)| {
            let request = RecentJob::clone(&request);
            async move {
                let answer = client.run(request).await;
                let failed = |status: tonic::Status| RecentError { cause: format!("{address}: {}", status.message()) };
                decode_outcome(&answer.map_err(failed)?.into_inner().outcome)
            }
        };
        let answers = try_join_all(self.clients().await?.into_iter().map(ask)).await?;
        let joined = answers.into_iter().reduce(|mut all, answer| {
            all.join(answer);
            all
        });
        joined.ok_or_else(|| RecentError { cause: "nobody takes spans in".to_owned() }.into())
    }
}
