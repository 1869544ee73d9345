//! What a target needs of the cluster: gossip if any of its rings is kept there, the rings with their pages and metrics, and its own places in them.
//!
//! ```text
//!  Membership::start  gossip (stopped last: says what was written before), rings, pages
//!  reserve ───────►   a place in a ring: stopped after whatever starts next, which is when the instance has LEFT
//!  join    ───────►   the instance is announced; stopped before whatever was started since, which is when it is LEAVING
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, routing::get};
use dataflow::cluster::{Candidate, Role};
use storage::{
    ring::{Operation, Rings},
    tls::Peers,
};
use tokio::sync::{oneshot, watch};

use crate::{
    app::App,
    config::{COMPACTOR, Cluster, Config, DISTRIBUTOR, INGESTER, KvStore, METRICS_GENERATOR, Memberlist, QUERIER, QUERY_FRONTEND, Ring},
    memberlist::{self, Gossip, Store},
    rings::{self, Lifecycler, address, page::Page},
};

/// Silence of a member that is no accident.
const SILENCE: Duration = Duration::from_secs(10);

/// A ring of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ingester,
    Distributor,
    Generator,
    Compactor,
}

impl Kind {
    /// The name in metrics, modules and paths.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingester => "ingester",
            Self::Distributor => "distributor",
            Self::Generator => "metrics-generator",
            Self::Compactor => "compactor",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Ingester => "Ingester Ring Status",
            Self::Distributor => "Distributor Ring Status",
            Self::Generator => "Metrics-generator Ring Status",
            Self::Compactor => "Compactor Ring Status",
        }
    }

    /// The rings that a process of this configuration's target looks at, whether or not they are kept anywhere.
    pub(crate) fn watched(config: &Config) -> Vec<Self> {
        let distributors = config.cluster.shares_rate_limits.then_some(Self::Distributor);
        let rings: &[Self] = match config.target.as_str() {
            DISTRIBUTOR => &[Self::Ingester, Self::Generator],
            INGESTER => &[Self::Ingester],
            METRICS_GENERATOR => &[Self::Ingester, Self::Generator],
            // Who is told where the ingesters are need not gossip.
            QUERIER if config.querier.ingesters.is_empty() => &[Self::Ingester],
            QUERIER | QUERY_FRONTEND => &[],
            COMPACTOR => &[Self::Compactor],
            _ => &[Self::Ingester, Self::Generator, Self::Compactor],
        };
        let takes_spans = config.is_single_binary() || config.target == DISTRIBUTOR;
        rings.iter().copied().chain(distributors.filter(|_| takes_spans)).collect()
    }

    /// What the configuration says of it.
    pub(crate) fn config(self, cluster: &Cluster) -> &Ring {
        match self {
            Self::Ingester => &cluster.ingester,
            Self::Distributor => &cluster.distributor,
            Self::Generator => &cluster.generator,
            Self::Compactor => &cluster.compactor,
        }
    }
}

/// This process among the others.
#[derive(Debug)]
pub(crate) struct Membership {
    gossip: Option<Arc<Gossip>>,
    views: Vec<View>,
}

/// A ring as this process sees it.
#[derive(Debug)]
struct View {
    kind: Kind,
    rings: Rings,
    /// Where it is kept.
    store: Store,
}

/// A place in a ring that is not taken yet.
#[derive(Debug)]
pub(crate) struct Place {
    kind: Kind,
    occupant: oneshot::Sender<Arc<Lifecycler>>,
}

/// This process among those who would take part in the dataflow.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// This process.
    pub(crate) own: Candidate,
    /// All of them, this one among them: those whose members are alive, by id.
    pub(crate) all: watch::Receiver<Arc<[Candidate]>>,
}

impl Membership {
    /// Looks at the rings of the target ([`Kind::watched`]), of which this process will be a member of `joined`; those that are kept nowhere are
    /// left out.
    ///
    /// # Errors
    /// The port of gossip is taken, or `abort_if_cluster_fast_join_fails` says so.
    pub(crate) async fn start(app: &mut App, joined: &[Kind]) -> anyhow::Result<Self> {
        let config = Arc::clone(&app.config);
        let watched = Kind::watched(&config);
        let present = || watched.iter().copied().filter(|kind| kind.config(&config.cluster).store != KvStore::Absent);
        let gossips = present().any(|kind| kind.config(&config.cluster).store == KvStore::Memberlist);
        let gossip = if gossips { Some(start_gossip(app, &config.cluster.memberlist).await?) } else { None };
        let shared = gossip.as_ref().map(|gossip| gossip.store().clone());
        let local = Store::of_one(Arc::clone(&app.clock));
        let mut pages = Router::new().route("/memberlist", get(memberlist::page::memberlist).with_state(shared.clone()));
        let (mut routes, mut views) = (vec!["/memberlist".to_owned()], Vec::new());
        for kind in present() {
            let ring = kind.config(&config.cluster);
            let store = shared.as_ref().filter(|_| ring.store == KvStore::Memberlist).unwrap_or(&local);
            let view = store.rings(&ring.key, ring.settings.clone());
            let own = joined.contains(&kind).then(|| (ring.id.clone(), ring.tokens));
            rings::observe(kind.name(), view.clone(), own, Arc::clone(&app.clock), &app.registry)?;
            let path = format!("/{}/ring", kind.name());
            let page = Page {
                title: kind.title(),
                ring: ring.key.clone(),
                rings: view.clone(),
                store: store.clone(),
                clock: Arc::clone(&app.clock),
            };
            pages = pages.merge(page.route(&path));
            routes.push(path);
            views.push(View { kind, rings: view, store: store.clone() });
        }
        app.admin.serve_pages(pages, routes);
        Ok(Self { gossip, views })
    }

    /// The live view of a ring; none if it is kept nowhere.
    pub(crate) fn rings(&self, kind: Kind) -> Option<Rings> {
        self.views.iter().find(|view| view.kind == kind).map(|view| view.rings.clone())
    }

    /// Keeps a place in a ring. The instance leaves it after everything has stopped that is started from now on.
    pub(crate) fn reserve(app: &mut App, kind: Kind) -> Place {
        let (occupant, arrived) = oneshot::channel::<Arc<Lifecycler>>();
        app.spawn(&format!("{}-ring", kind.name()), |mut shutdown| async move {
            let lifecycler = tokio::select! {
                lifecycler = arrived => lifecycler.ok(),
                () = shutdown.wait() => None,
            };
            if let Some(lifecycler) = lifecycler {
                Arc::clone(&lifecycler).run(shutdown).await?;
                lifecycler.unregister().await;
            } else {
                // Nobody came: the start failed, or was given up.
                shutdown.wait().await;
            }
            Ok(())
        });
        Place { kind, occupant }
    }

    /// Takes the place: this process is an instance of the ring from now on. It takes nothing new as soon as everything has stopped that is started from now
    /// on.
    ///
    /// # Errors
    /// It has no address, or its tokens cannot be read.
    pub(crate) fn join(&self, app: &mut App, place: Place) -> anyhow::Result<Arc<Lifecycler>> {
        let Place { kind, occupant } = place;
        let config = Arc::clone(&app.config);
        let ring = kind.config(&config.cluster);
        let view = self.views.iter().find(|view| view.kind == kind);
        let view = view.ok_or_else(|| anyhow::anyhow!("{} is empty: there is no ring to join", ring.store_key))?;
        let host = match &ring.address {
            Some(address) => address.clone(),
            None => match address::of_interfaces(&ring.interfaces) {
                Some(address) => address.to_string(),
                None => anyhow::bail!("{}: no address found for interfaces {:?}: configure it", kind.name(), ring.interfaces),
            },
        };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let settings = rings::Settings {
            ring: ring.key.clone(),
            name: kind.name(),
            id: ring.id.clone(),
            address: format!("{host}:{}", ring.port),
            zone: ring.zone.clone(),
            tokens: ring.tokens,
            heartbeat_period: ring.heartbeat_period,
            join_after: ring.join_after,
            observe_period: ring.observe_period,
            final_sleep: ring.final_sleep,
            min_ready_duration: ring.min_ready_duration,
            checks_ring_health: ring.checks_ring_health,
            tokens_file: ring.tokens_file.clone(),
            unregisters: ring.unregisters,
            forgets_after: ring.auto_forgets.then_some(ring.settings.heartbeat_timeout * 2).filter(|limit| !limit.is_zero()),
        };
        let lifecycler = Lifecycler::start(
            settings,
            view.store.clone(),
            view.rings.clone(),
            Arc::clone(&app.clock),
            seed(app, kind.name()),
            &app.registry,
        )?;
        // Whoever keeps the place ends only with the process.
        _ = occupant.send(Arc::clone(&lifecycler));
        if kind == Kind::Ingester {
            let checked = Arc::clone(&lifecycler);
            let check = move || checked.check_ready().map_err(|why| format!("Ingester not ready: {why}"));
            app.admin.check_ready_by(vec![Box::new(check)]);
        }
        let leaving = Arc::clone(&lifecycler);
        app.started(&format!("{}-ring-member", kind.name()), move || async move {
            leaving.leave();
            Ok(())
        });
        Ok(lifecycler)
    }

    /// The live view of those who would take part in the dataflow, of which this process is one under the id of its ring from now on; none without gossip.
    ///
    /// # Errors
    /// It has no address.
    pub(crate) fn propose(&self, app: &App, role: Role) -> anyhow::Result<Option<Proposal>> {
        let Some(gossip) = &self.gossip else { return Ok(None) };
        let cluster = &app.config.cluster;
        let (id, ring) = match role {
            Role::Ingester => (&cluster.ingester.id, &cluster.ingester),
            Role::Generator => (&cluster.generator.id, &cluster.generator),
        };
        let listen = cluster.mesh.listen;
        let given = cluster.mesh.advertise_address.or(cluster.memberlist.advertise_address);
        let host = given.or((!listen.ip().is_unspecified()).then(|| listen.ip())).or_else(|| address::of_interfaces(&ring.interfaces));
        let host = host.ok_or_else(|| anyhow::anyhow!("no address found for the dataflow: configure rubato.dataflow.advertise_addr"))?;
        let incarnation = u64::try_from(app.clock.now().as_millis())?;
        let candidate = Candidate { id: id.clone(), incarnation, address: SocketAddr::new(host, listen.port()), role };
        gossip.set_candidate(Some(candidate.clone()));
        Ok(Some(Proposal { own: candidate, all: gossip.store().candidates() }))
    }

    /// How many distributors are alive, as a live view; they share limits whose strategy is global.
    pub(crate) fn healthy_distributors(&self, app: &mut App) -> Option<watch::Receiver<usize>> {
        self.follow(app, Kind::Distributor, "distributor-count", |ring, now| ring.healthy(Operation::WriteNoExtend, now))
    }

    /// Where the ingesters are that may have recent spans, as a live view.
    pub(crate) fn ingester_addresses(&self, app: &mut App) -> Option<watch::Receiver<Arc<[String]>>> {
        self.follow(app, Kind::Ingester, "ingester-addresses", |ring, now| {
            let healthy = ring.instances().iter().filter(|instance| ring.is_healthy(instance, Operation::Reporting, now));
            healthy.map(|instance| instance.addr.clone()).collect()
        })
    }

    /// What follows from a ring and the time, as a live view.
    fn follow<T>(
        &self,
        app: &mut App,
        kind: Kind,
        name: &str,
        what: impl Fn(&storage::ring::Ring, Duration) -> T + Send + 'static,
    ) -> Option<watch::Receiver<T>>
    where
        T: PartialEq + Send + Sync + 'static,
    {
        let mut rings = self.rings(kind)?;
        let period = kind.config(&app.config.cluster).heartbeat_period.max(Duration::from_millis(100));
        let clock = Arc::clone(&app.clock);
        let (known, followed) = watch::channel(what(&rings.borrow(), clock.now()));
        app.spawn(name, move |mut shutdown| async move {
            loop {
                tokio::select! {
                    changed = rings.changed() => if changed.is_err() { shutdown.wait().await },
                    // Silence makes unhealthy, too.
                    () = tokio::time::sleep(period) => {}
                    () = shutdown.wait() => return Ok(()),
                }
                let now = what(&rings.borrow_and_update(), clock.now());
                known.send_if_modified(|known| {
                    let differs = *known != now;
                    *known = now;
                    differs
                });
            }
        });
        Some(followed)
    }
}

/// Listens, asks the seeds, and goes on gossiping.
async fn start_gossip(app: &mut App, config: &Memberlist) -> anyhow::Result<Arc<Gossip>> {
    let seed = seed(app, "memberlist");
    let listen = config.listen.first().copied();
    let bound = listen.map(|listen| listen.ip()).filter(|address| !address.is_unspecified());
    let interfaces = &app.config.cluster.ingester.interfaces;
    let host = config.advertise_address.or(bound).or_else(|| address::of_interfaces(interfaces));
    let host = host.ok_or_else(|| anyhow::anyhow!("no address found for gossip: configure memberlist.advertise_addr"))?;
    let name = if config.randomize_name { format!("{}-{:08x}", config.name, seed as u32) } else { config.name.clone() };
    let rest = config.rest.clone();
    let store = Store::new(Arc::clone(&app.clock), rest.left_timeout, SILENCE.max(rest.interval * 10));
    let settings = memberlist::Settings {
        name,
        listen: config.listen.clone(),
        advertise: SocketAddr::new(host, config.advertise_port),
        label: rest.label,
        accept_any_label: rest.accept_any_label,
        join: rest.join,
        rejoin: rest.rejoin,
        rejoin_interval: rest.rejoin_interval,
        min_join_backoff: rest.min_join_backoff,
        max_join_backoff: rest.max_join_backoff,
        max_join_retries: rest.max_join_retries,
        abort_if_join_fails: rest.abort_if_join_fails,
        fast_join_min_nodes: rest.fast_join_min_nodes,
        interval: rest.interval,
        fanout: rest.fanout,
        dead_time: rest.dead_time,
        leave_timeout: rest.leave_timeout,
        dial_timeout: rest.dial_timeout,
        exchange_timeout: rest.exchange_timeout,
    };
    tracing::info!(member = settings.name, advertise = settings.advertise.to_string(), label = settings.label, "memberlist starts");
    let peers = Peers::new(config.tls.as_ref()).context("memberlist")?;
    let gossip = Gossip::bind(settings, store, peers, seed, &app.registry).await?;
    gossip.fast_join().await?;
    let running = Arc::clone(&gossip);
    app.spawn("memberlist", |shutdown| running.run(shutdown));
    Ok(gossip)
}

/// Other numbers in every process and for every use.
fn seed(app: &App, purpose: &str) -> u64 {
    let now = app.clock.now();
    let name = storage::ring::fnv1a_32(purpose.as_bytes());
    (now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32) ^ u64::from(std::process::id()).rotate_left(16))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ u64::from(name)
}
