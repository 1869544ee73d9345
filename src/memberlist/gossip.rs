//! The running member: joins, gossips, answers, leaves.

use std::{
    collections::HashSet,
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dataflow::cluster::Candidate;
use futures::future::join_all;
use prometheus::Registry;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use storage::tls::Peers;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Liveness, Metrics, Settings, Store,
    connection::Connections,
    entry::Said,
    seeds::{self, Seed},
};
use crate::services::Shutdown;

/// Connections of others at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Seeds that are asked before the process goes on starting.
const FAST_JOIN_SEEDS: usize = 10;
/// Of so many rounds, one asks a silent member, too.
const ROUNDS_PER_DEAD: u32 = 5;

/// This process as a member. Says nothing about itself until [`Gossip::run`].
#[derive(Debug)]
pub(crate) struct Gossip {
    listeners: Vec<TcpListener>,
    connections: Arc<Connections>,
    /// What this process would do in the dataflow.
    candidate: Mutex<Option<Candidate>>,
    /// Members that are being asked: one exchange with each at a time.
    busy: Mutex<HashSet<SocketAddr>>,
    random: Mutex<ChaCha8Rng>,
}

impl Gossip {
    /// Takes the port.
    ///
    /// # Errors
    /// It is taken; the error names it.
    pub(crate) async fn bind(settings: Settings, store: Store, peers: Peers, seed: u64, registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let mut listeners = Vec::new();
        for address in &settings.listen {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|error| anyhow::anyhow!("failed to listen on {address} (memberlist): {error}"))?);
        }
        let metrics = Metrics::new(registry)?;
        Ok(Arc::new(Self {
            listeners,
            connections: Arc::new(Connections::new(settings, store, peers, metrics)),
            candidate: Mutex::default(),
            busy: Mutex::default(),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
        }))
    }

    fn settings(&self) -> &Settings {
        &self.connections.settings
    }

    /// What is known.
    pub(crate) fn store(&self) -> &Store {
        &self.connections.store
    }

    /// The name of this member.
    pub(crate) fn name(&self) -> &str {
        &self.settings().name
    }

    /// Says what this process would do in the dataflow, or that it would not.
    pub(crate) fn set_candidate(&self, candidate: Option<Candidate>) {
        *self.candidate.lock().unwrap_or_else(PoisonError::into_inner) = candidate;
        self.beat(false);
    }

    fn beat(&self, left: bool) {
        let candidate = self.candidate.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| !left);
        self.store().set_member(self.name(), &Said { address: self.settings().advertise, left, candidate });
    }

    /// Asks some of the seeds, once: whoever knows the cluster before it starts doesn't invent tokens that it had before.
    ///
    /// # Errors
    /// Fewer answered than `abort_if_cluster_fast_join_fails_min_nodes` asks for.
    pub(crate) async fn fast_join(&self) -> anyhow::Result<()> {
        self.beat(false);
        let mut seeds = seeds::look_up(&self.settings().join, self.settings().advertise).await;
        self.shuffle(&mut seeds);
        seeds.truncate(FAST_JOIN_SEEDS);
        let joined = self.ask_all(&seeds).await;
        tracing::info!(asked = seeds.len(), joined, "memberlist fast-join finished");
        if let Some(least) = self.settings().fast_join_min_nodes {
            anyhow::ensure!(
                joined >= least,
                "failed to join the memberlist cluster on startup: {joined} of at least {least} members answered"
            );
        }
        Ok(())
    }

    /// Gossips until told to stop, then says goodbye.
    ///
    /// # Errors
    /// A listener fails, or nobody could be joined and `abort_if_cluster_join_fails` is on.
    pub(crate) async fn run(self: Arc<Self>, mut shutdown: Shutdown) -> anyhow::Result<()> {
        let listening = join_all(self.listeners.iter().map(|listener| self.listen(listener)));
        let outcome = tokio::select! {
            _ = listening => Ok(()),
            () = self.gossip() => Ok(()),
            outcome = self.join() => outcome,
            () = self.rejoin() => Ok(()),
            () = shutdown.wait() => Ok(()),
        };
        self.leave().await;
        outcome
    }

    async fn listen(&self, listener: &TcpListener) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connections = Arc::clone(&self.connections);
                    tokio::spawn(async move {
                        answer(&connections, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(error = error.to_string(), "memberlist connection cannot be accepted");
                    // Out of file descriptors, most likely: trying again at once would only burn.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Rounds without end.
    async fn gossip(self: &Arc<Self>) {
        let mut ticks = interval(self.settings().interval.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.beat(false);
            self.store().expire();
            let members = self.store().members();
            let alive = members.iter().filter(|member| member.liveness == Liveness::Alive).count();
            self.connections.metrics.members.set(i64::try_from(alive).unwrap_or(i64::MAX));
            self.connections.metrics.rings.set(i64::try_from(self.store().ring_names().len()).unwrap_or(i64::MAX));
            for peer in self.choose() {
                self.ask_in_background(peer);
            }
        }
    }

    /// The members of this round.
    fn choose(&self) -> Vec<SocketAddr> {
        let members = self.store().members();
        let others = || members.iter().filter(|member| member.name != self.name());
        let of = |liveness: Liveness| others().filter(move |member| member.liveness == liveness);
        let mut alive: Vec<_> = of(Liveness::Alive).map(|member| member.address).collect();
        let lately = |name: &str| self.store().silent_for(name).is_some_and(|silence| silence <= self.settings().dead_time);
        let mut dead: Vec<_> = of(Liveness::Dead).filter(|member| lately(&member.name)).map(|member| member.address).collect();
        self.shuffle(&mut alive);
        self.shuffle(&mut dead);
        alive.truncate(self.settings().fanout.max(1));
        // In a pair that was cut in two, the silent one is the only one to ask.
        if alive.is_empty() || self.draw().is_multiple_of(ROUNDS_PER_DEAD) {
            alive.extend(dead.first());
        }
        alive
    }

    fn ask_in_background(self: &Arc<Self>, peer: SocketAddr) {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(peer) {
            return;
        }
        let this = Arc::clone(self);
        // Ends by the deadlines of the exchange.
        tokio::spawn(async move {
            if let Err(error) = this.connections.exchange(peer).await {
                tracing::debug!(%peer, error = error.to_string(), "member does not answer");
            }
            this.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
        });
    }

    /// Asks all of them at once; returns how many answered.
    async fn ask_all(&self, peers: &[SocketAddr]) -> usize {
        let ask = async |peer: &SocketAddr| match self.connections.exchange(*peer).await {
            Ok(()) => 1,
            // It is there, and does not speak as we do: without TLS, or with another authority.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                tracing::warn!(%peer, %error, "member cannot be joined");
                0
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "member cannot be joined");
                0
            }
        };
        join_all(peers.iter().map(ask)).await.into_iter().sum()
    }

    /// Joins with growing pauses, and goes on looking for members for as long as there are none. Returns with an error only.
    async fn join(&self) -> anyhow::Result<()> {
        let settings = self.settings();
        let (mut pause, mut attempts, mut joined) = (settings.min_join_backoff, 0, false);
        loop {
            let has_others = self.store().members().iter().any(|member| member.name != self.name() && member.liveness == Liveness::Alive);
            if has_others || settings.join.is_empty() {
                (joined, pause) = (true, settings.min_join_backoff);
                tokio::time::sleep(settings.max_join_backoff.max(Duration::from_secs(1))).await;
                continue;
            }
            attempts += 1;
            if self.ask_all(&seeds::look_up(&settings.join, settings.advertise).await).await > 0 {
                tracing::info!(attempts, "joined the memberlist cluster");
                continue;
            }
            if !joined && settings.max_join_retries > 0 && attempts == settings.max_join_retries {
                anyhow::ensure!(
                    !settings.abort_if_join_fails,
                    "joining the memberlist cluster failed: nobody answered in {attempts} attempts"
                );
                tracing::warn!(attempts, "joining the memberlist cluster failed, going on alone and trying further");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(settings.max_join_backoff);
        }
    }

    /// Asks the seeds again and again, so that parts of a cluster that lost each other meet. Never returns.
    async fn rejoin(&self) {
        let settings = self.settings();
        let Some(period) = settings.rejoin_interval.filter(|_| !settings.join.is_empty() || !settings.rejoin.is_empty()) else {
            return std::future::pending().await;
        };
        let seeds: &[Seed] = if settings.rejoin.is_empty() { &settings.join } else { &settings.rejoin };
        loop {
            tokio::time::sleep(period).await;
            let joined = self.ask_all(&seeds::look_up(seeds, settings.advertise).await).await;
            tracing::debug!(joined, "asked the seeds of the memberlist cluster again");
        }
    }

    /// Tells everybody that this process goes, and whatever it said last.
    async fn leave(&self) {
        self.beat(true);
        let began = Instant::now();
        let members = self.store().members().into_iter();
        let alive = members.filter(|member| member.liveness == Liveness::Alive && member.name != self.name());
        let peers: Vec<_> = alive.map(|member| member.address).collect();
        let told = tokio::time::timeout(self.settings().leave_timeout, self.ask_all(&peers)).await;
        tracing::info!(
            members = peers.len(),
            told = told.unwrap_or_default(),
            elapsed = format!("{:?}", began.elapsed()),
            "left the memberlist cluster"
        );
    }

    fn draw(&self) -> u32 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u32()
    }

    fn shuffle<T>(&self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.draw() as usize % (index + 1));
        }
    }
}

async fn answer(connections: &Connections, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = error.to_string(), "memberlist connection");
    }
    if let Err(error) = connections.answer(stream).await {
        tracing::debug!(error = error.to_string(), "memberlist connection ended");
    }
}
