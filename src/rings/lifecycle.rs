//! The life of an instance in a ring (write-path.md §5.6).
//!
//! ```text
//!              join_after            observe_period
//!   PENDING ──────────────► JOINING ────────────────► ACTIVE ──leave()──► LEAVING ──unregister()──► LEFT, or LEAVING for good
//!      ▲                       └ tokens that others claim, too, are replaced ┘
//!      └ unknown, or found JOINING;  found ACTIVE or LEAVING, or tokens in a file: ACTIVE at once, with the tokens that it had
//! ```
//!
//! A heartbeat is the whole description, written anew: somebody who was forgotten by mistake is back with the next one.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as Moment},
};

use prometheus::{IntCounter, Registry, opts};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};
use storage::{
    clock::Clock,
    ring::{Instance, Rings, State},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::tokens;
use crate::{memberlist::Store, services::Shutdown};

/// Nobody can be heard more often than this.
const SHORTEST_PERIOD: Duration = Duration::from_millis(10);

/// What an instance is like.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The key of the ring among the others.
    pub(crate) ring: String,
    /// The name of the ring in metrics and messages.
    pub(crate) name: &'static str,
    /// Unique in the ring.
    pub(crate) id: String,
    /// `host:port` of gRPC.
    pub(crate) address: String,
    /// Availability zone, or nothing.
    pub(crate) zone: String,
    /// How many tokens it has.
    pub(crate) tokens: usize,
    /// Time between heartbeats.
    pub(crate) heartbeat_period: Duration,
    /// How long it stays PENDING.
    pub(crate) join_after: Duration,
    /// How long it stays JOINING.
    pub(crate) observe_period: Duration,
    /// How long it waits after it has left.
    pub(crate) final_sleep: Duration,
    /// How long it must have been well before it says that it is ready.
    pub(crate) min_ready_duration: Duration,
    /// Whether all others must be well for that, too.
    pub(crate) checks_ring_health: bool,
    /// Where tokens survive restarts.
    pub(crate) tokens_file: Option<PathBuf>,
    /// Whether it leaves the ring when the process ends.
    pub(crate) unregisters: bool,
    /// Others that were silent for longer are forgotten.
    pub(crate) forgets_after: Option<Duration>,
}

/// This process as an instance of one ring.
#[derive(Debug)]
pub(crate) struct Lifecycler {
    settings: Settings,
    store: Store,
    rings: Rings,
    clock: Arc<dyn Clock>,
    heartbeats: IntCounter,
    // Held for changes of the description, never while waiting.
    own: Mutex<Own>,
    ready: Mutex<Ready>,
}

#[derive(Debug)]
struct Own {
    state: State,
    tokens: Vec<u32>,
    registered: u64,
    random: ChaCha8Rng,
}

#[derive(Debug, Default)]
struct Ready {
    since: Option<Moment>,
    /// Once ready, always ready.
    is_latched: bool,
}

impl Lifecycler {
    /// Announces the instance, with the tokens that it had before if anybody remembers them.
    ///
    /// # Errors
    /// The file of tokens cannot be read, or a metric is registered already.
    pub(crate) fn start(
        settings: Settings,
        store: Store,
        rings: Rings,
        clock: Arc<dyn Clock>,
        seed: u64,
        registry: &Registry,
    ) -> anyhow::Result<Arc<Self>> {
        let options = opts!("tempo_ring_member_heartbeats_total", "Heartbeats that were told.").const_label("name", settings.name);
        let heartbeats = IntCounter::with_opts(options)?;
        registry.register(Box::new(heartbeats.clone()))?;
        let known = store.instance(&settings.ring, &settings.id).filter(|instance| instance.state != State::Left);
        let filed = settings.tokens_file.as_deref().map(tokens::load).transpose();
        let filed = filed.map_err(|error| anyhow::anyhow!("{}: tokens cannot be read: {error}", settings.name))?.flatten();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let now = clock.now().as_secs();
        let registered = known.as_ref().map(|known| known.registered).filter(|registered| *registered > 0).unwrap_or(now);
        let (state, tokens) = match (filed, known) {
            (Some(tokens), _) if !tokens.is_empty() => (State::Active, tokens),
            (_, Some(known)) if known.state == State::Active && !known.tokens.is_empty() => (State::Active, known.tokens),
            (_, Some(known)) if known.state == State::Leaving => {
                (State::Active, tokens::complete(&known.tokens, &BTreeSet::new(), settings.tokens, &mut random))
            }
            _ => (State::Pending, Vec::new()),
        };
        tracing::info!(
            ring = settings.name,
            id = settings.id,
            state = state.as_str(),
            tokens = tokens.len(),
            "instance announced in the ring"
        );
        let own = Mutex::new(Own { state, tokens, registered, random });
        let lifecycler = Self { settings, store, rings, clock, heartbeats, own, ready: Mutex::default() };
        if state == State::Active {
            lifecycler.file_tokens();
        } else if lifecycler.settings.join_after.is_zero() {
            lifecycler.join();
        }
        lifecycler.beat();
        Ok(Arc::new(lifecycler))
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to ACTIVE and tells everybody that it is alive, until told to stop.
    pub(crate) async fn run(self: Arc<Self>, mut shutdown: Shutdown) -> anyhow::Result<()> {
        let settings = &self.settings;
        let period = settings.heartbeat_period.max(SHORTEST_PERIOD);
        let started = Instant::now();
        let (join_at, observed_at) = (started + settings.join_after, started + settings.join_after + settings.observe_period);
        let mut beat_at = started + period;
        loop {
            let next = match self.own().state {
                State::Pending => join_at.min(beat_at),
                State::Joining => observed_at.min(beat_at),
                _ => beat_at,
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = shutdown.wait() => return Ok(()),
            }
            let (now, state) = (Instant::now(), self.own().state);
            match state {
                State::Pending if now >= join_at => self.join(),
                State::Joining if now >= observed_at => self.activate(),
                _ => {}
            }
            if now >= beat_at {
                beat_at = now + period;
                self.forget_silent();
            }
            self.beat();
        }
    }

    /// Takes tokens.
    fn join(&self) {
        self.own().state = State::Joining;
        self.settle_tokens();
        if self.settings.observe_period.is_zero() {
            self.activate();
        }
    }

    fn activate(&self) {
        self.settle_tokens();
        self.own().state = State::Active;
        self.file_tokens();
        tracing::info!(
            ring = self.settings.name,
            id = self.settings.id,
            tokens = self.own().tokens.len(),
            "instance is active in the ring"
        );
    }

    /// Replaces tokens that somebody else has, and draws those that are missing.
    fn settle_tokens(&self) {
        let ring = Arc::clone(&self.rings.borrow());
        let others = ring.instances().iter().filter(|instance| instance.id != self.settings.id);
        let taken: BTreeSet<u32> = others.flat_map(|instance| instance.tokens.iter().copied()).collect();
        let mut own = self.own();
        let own = &mut *own;
        own.tokens = tokens::complete(&own.tokens, &taken, self.settings.tokens, &mut own.random);
    }

    fn file_tokens(&self) {
        let Some(path) = &self.settings.tokens_file else { return };
        if let Err(error) = tokens::store(path, &self.own().tokens) {
            tracing::error!(ring = self.settings.name, path = %path.display(), error = error.to_string(), "tokens cannot be kept for the next start");
        }
    }

    /// Describes the instance as it is now.
    fn beat(&self) {
        let own = self.own();
        let instance = Instance {
            id: self.settings.id.clone(),
            addr: self.settings.address.clone(),
            timestamp: self.clock.now().as_secs(),
            state: own.state,
            tokens: own.tokens.clone(),
            zone: self.settings.zone.clone(),
            registered: own.registered,
            read_only: false,
        };
        drop(own);
        self.store.set_instance(&self.settings.ring, &instance);
        self.heartbeats.inc();
    }

    fn forget_silent(&self) {
        let Some(limit) = self.settings.forgets_after else { return };
        let (ring, now) = (Arc::clone(&self.rings.borrow()), self.clock.now());
        for instance in ring.instances().iter().filter(|instance| instance.id != self.settings.id && !instance.is_fresh(now, limit)) {
            if self.store.forget(&self.settings.ring, &instance.id) {
                tracing::warn!(ring = self.settings.name, id = instance.id, "instance forgotten after a long silence");
            }
        }
    }

    /// LEAVING: takes nothing new, still has what it has.
    pub(crate) fn leave(&self) {
        self.own().state = State::Leaving;
        self.beat();
    }

    /// The last step: out of the ring, or LEAVING until it comes back.
    pub(crate) async fn unregister(&self) {
        if self.settings.unregisters {
            self.store.forget(&self.settings.ring, &self.settings.id);
        }
        sleep(self.settings.final_sleep).await;
    }

    /// Whether the instance, and the ring if that matters, has been well for long enough.
    ///
    /// # Errors
    /// What is missing, as `/ready` says it.
    pub(crate) fn check_ready(&self) -> Result<(), String> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_latched {
            return Ok(());
        }
        if let Err(why) = self.check_health() {
            ready.since = None;
            return Err(why);
        }
        let since = *ready.since.get_or_insert_with(Moment::now);
        let wait = self.settings.min_ready_duration;
        if since.elapsed() < wait {
            return Err(format!("waiting for {wait:?} after being ready"));
        }
        ready.is_latched = true;
        Ok(())
    }

    fn check_health(&self) -> Result<(), String> {
        if self.own().tokens.is_empty() {
            return Err("this instance owns no tokens".to_owned());
        }
        let (ring, now) = (Arc::clone(&self.rings.borrow()), self.clock.now());
        let own = ring.instance(&self.settings.id).into_iter();
        let all = ring.instances().iter().filter(|_| self.settings.checks_ring_health);
        for instance in own.chain(all) {
            if !instance.is_fresh(now, ring.settings().heartbeat_timeout) {
                return Err(format!("instance {} past heartbeat timeout", instance.id));
            }
            if instance.state != State::Active {
                return Err(format!("instance {} in state {}", instance.id, instance.state));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use storage::{
        clock::ManualClock,
        ring::{Ring, Settings as RingSettings},
    };

    use super::*;

    struct Fixture {
        clock: ManualClock,
        store: Store,
        rings: Rings,
    }

    fn fixture() -> Fixture {
        let clock = ManualClock::new(Duration::from_secs(1_000_000));
        let store = Store::of_one(Arc::new(clock.clone()));
        let rings = store.rings("ring", RingSettings { heartbeat_timeout: Duration::from_secs(60), ..RingSettings::default() });
        Fixture { clock, store, rings }
    }

    fn settings(id: &str) -> Settings {
        Settings {
            ring: "ring".to_owned(),
            name: "ingester",
            id: id.to_owned(),
            address: format!("{id}:9095"),
            zone: String::new(),
            tokens: 16,
            heartbeat_period: Duration::from_millis(20),
            join_after: Duration::ZERO,
            observe_period: Duration::ZERO,
            final_sleep: Duration::ZERO,
            min_ready_duration: Duration::ZERO,
            checks_ring_health: true,
            tokens_file: None,
            unregisters: true,
            forgets_after: None,
        }
    }

    impl Fixture {
        fn start(&self, settings: Settings) -> Arc<Lifecycler> {
            let (store, rings, clock) = (self.store.clone(), self.rings.clone(), Arc::new(self.clock.clone()));
            Lifecycler::start(settings, store, rings, clock, 1, &Registry::new()).expect("starts")
        }

        fn ring(&self) -> Arc<Ring> {
            Arc::clone(&self.rings.borrow())
        }

        fn state(&self, id: &str) -> Option<State> {
            self.ring().instance(id).map(|instance| instance.state)
        }
    }

    #[tokio::test]
    async fn from_first_start_to_goodbye() {
        let fixture = fixture();
        let lifecycler = fixture.start(settings("a"));
        assert_eq!(fixture.state("a"), Some(State::Active));
        assert_eq!(fixture.ring().tokens(), 16);
        assert_eq!(lifecycler.check_ready(), Ok(()));
        let tokens = fixture.ring().instances()[0].tokens.clone();
        lifecycler.leave();
        assert_eq!(fixture.state("a"), Some(State::Leaving));
        assert_eq!(fixture.ring().instances()[0].tokens, tokens, "what it has can still be found");
        lifecycler.unregister().await;
        assert_eq!(fixture.state("a"), None);
    }

    #[tokio::test]
    async fn one_that_stays_leaving_comes_back_with_its_tokens() {
        let fixture = fixture();
        let lifecycler = fixture.start(Settings { unregisters: false, ..settings("a") });
        let tokens = fixture.ring().instances()[0].tokens.clone();
        lifecycler.leave();
        lifecycler.unregister().await;
        assert_eq!(fixture.state("a"), Some(State::Leaving));
        fixture.start(Settings { tokens: 20, address: "elsewhere:1".to_owned(), ..settings("a") });
        let instance = Arc::clone(&fixture.ring().instances()[0]);
        assert_eq!((instance.state, instance.addr.as_str(), instance.tokens.len()), (State::Active, "elsewhere:1", 20));
        assert!(tokens.iter().all(|token| instance.tokens.contains(token)));
    }

    #[tokio::test]
    async fn tokens_come_from_the_file_first() {
        let (fixture, dir) = (fixture(), tempfile::tempdir().expect("a folder"));
        let path = dir.path().join("tokens");
        let with_file = || Settings { tokens_file: Some(path.clone()), ..settings("a") };
        fixture.start(with_file());
        let tokens = fixture.ring().instances()[0].tokens.clone();
        // Everybody forgot.
        let fixture = self::fixture();
        fixture.start(with_file());
        assert_eq!(fixture.ring().instances()[0].tokens, tokens);
        std::fs::write(&path, "nonsense").expect("written");
        let (store, rings, clock) = (fixture.store, fixture.rings, Arc::new(fixture.clock));
        let refused = Lifecycler::start(with_file(), store, rings, clock, 1, &Registry::new()).expect_err("no JSON");
        assert!(refused.to_string().starts_with("ingester: tokens cannot be read: "), "{refused}");
    }

    #[tokio::test]
    async fn waits_and_observes_before_it_is_active() {
        let fixture = fixture();
        let (join_after, observe_period) = (Duration::from_millis(300), Duration::from_secs(2));
        let lifecycler = fixture.start(Settings { join_after, observe_period, ..settings("b") });
        assert_eq!((fixture.state("b"), fixture.ring().tokens()), (Some(State::Pending), 0));
        assert_eq!(lifecycler.check_ready(), Err("this instance owns no tokens".to_owned()));
        let (stop, shutdown) = Shutdown::new();
        let task = tokio::spawn(Arc::clone(&lifecycler).run(shutdown));
        let until = async |state| {
            let mut rings = fixture.rings.clone();
            rings.wait_for(|ring| ring.instance("b").is_some_and(|b| b.state == state)).await.expect("the store lives");
        };
        let began = Instant::now();
        until(State::Joining).await;
        assert!(began.elapsed() >= join_after);
        assert_eq!(lifecycler.check_ready(), Err("instance b in state JOINING".to_owned()));
        // Somebody else claims one of its tokens meanwhile.
        let claimed = fixture.ring().instances()[0].tokens[3];
        let other =
            Instance { id: "a".to_owned(), timestamp: 1_000_000, state: State::Active, tokens: vec![claimed], ..Instance::default() };
        fixture.store.set_instance("ring", &other);
        until(State::Active).await;
        assert!(began.elapsed() >= join_after + observe_period);
        let ring = fixture.ring();
        let own = ring.instance("b").expect("in the ring");
        assert!(!own.tokens.contains(&claimed) && own.tokens.len() == 16);
        stop.send(true).expect("it listens");
        task.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn not_ready_while_another_is_not_well_but_only_until_it_was_once() {
        let fixture = fixture();
        let other = |timestamp: u64, state| Instance { id: "z".to_owned(), timestamp, state, tokens: vec![1], ..Instance::default() };
        fixture.store.set_instance("ring", &other(1_000_000 - 61, State::Active));
        let lifecycler = fixture.start(settings("a"));
        assert_eq!(lifecycler.check_ready(), Err("instance z past heartbeat timeout".to_owned()));
        let careless = fixture.start(Settings { checks_ring_health: false, ..settings("b") });
        assert_eq!(careless.check_ready(), Ok(()));
        let patient = fixture.start(Settings { min_ready_duration: Duration::from_secs(3600), checks_ring_health: false, ..settings("c") });
        assert_eq!(patient.check_ready(), Err("waiting for 3600s after being ready".to_owned()));
        fixture.store.set_instance("ring", &other(1_000_000, State::Leaving));
        assert_eq!(lifecycler.check_ready(), Err("instance z in state LEAVING".to_owned()));
        fixture.store.set_instance("ring", &other(1_000_000, State::Active));
        assert_eq!(lifecycler.check_ready(), Ok(()));
        fixture.store.set_instance("ring", &other(1_000_000, State::Leaving));
        assert_eq!(lifecycler.check_ready(), Ok(()), "it was ready once");
    }

    #[tokio::test]
    async fn the_forgotten_come_back_and_the_silent_are_forgotten() {
        let fixture = fixture();
        let silent = Instance { id: "z".to_owned(), timestamp: 999_000, state: State::Active, tokens: vec![1], ..Instance::default() };
        fixture.store.set_instance("ring", &silent);
        let lifecycler = fixture.start(Settings { forgets_after: Some(Duration::from_secs(120)), ..settings("a") });
        assert!(fixture.store.forget("ring", "a"));
        assert!(!fixture.store.forget("ring", "a"), "only once");
        assert_eq!(fixture.state("a"), None);
        let (stop, shutdown) = Shutdown::new();
        let task = tokio::spawn(lifecycler.run(shutdown));
        let mut rings = fixture.rings.clone();
        rings.wait_for(|ring| ring.instance("a").is_some() && ring.instance("z").is_none()).await.expect("the store lives");
        stop.send(true).expect("it listens");
        task.await.expect("no panic").expect("no error");
    }
}
