//! The running process: builds the modules in order, waits for a signal or a failure, and stops them in reverse.
//!
//! ```text
//!  run: App::new ──► HTTP server ──► modules::start ──► "rubato started" ──► signal ──► not ready, shutdown_delay ──► stop in reverse
//!                                        │                                └► a module's failure ──────────────────┘
//!                                        └ modules.rs: the one place that knows which modules a target has
//! ```
//!
//! A module is a [`services`](crate::services) entry plus a way to stop it: a task that ends when its [`Shutdown`] is thrown ([`App::spawn`]), or anything
//! that was started elsewhere and is stopped by a future ([`App::started`]). What was started later is stopped earlier, so a module may use those before it
//! until its own stop has returned.

use std::{
    future::Future,
    io::Write as _,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use storage::clock::{Clock, SystemClock};
use tokio::sync::{mpsc, watch};

use crate::{
    auth::Credentials,
    config::{Backend, COMPACTOR, Config, DISTRIBUTOR, INGESTER, METRICS_GENERATOR, Overrides, QUERIER, QUERY_FRONTEND, render_problems},
    grpc,
    http::{self, Admin},
    listener::{self, Serving},
    modules,
    own_traces::OwnTraces,
    process,
    refusals::refusals,
    resources::{Resources, Sizes},
    services::{Services, Shutdown, State},
    tls::{Listener, Open},
    user_overrides::UserOverrides,
};

type StopFuture = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Tasks get this much time to end after they were asked to, unless a module says otherwise.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Everything that modules are built from, and the modules that run.
pub(crate) struct App {
    /// What is meant.
    pub(crate) config: Arc<Config>,
    /// Where all metrics are registered.
    pub(crate) registry: Registry,
    /// The wall clock.
    pub(crate) clock: Arc<dyn Clock>,
    /// Limits by tenant, reloaded while running.
    pub(crate) overrides: Arc<Overrides>,
    /// What tenants set for themselves, if they may; known once the overrides are read.
    pub(crate) user_overrides: Option<Arc<UserOverrides>>,
    /// How much of each thing there is.
    pub(crate) sizes: Sizes,
    /// The operational routes; the query API is put in here.
    pub(crate) admin: Arc<Admin>,
    services: Services,
    stopping: watch::Sender<bool>,
    running: Vec<Running>,
    failures: mpsc::Sender<(String, anyhow::Error)>,
    failed: mpsc::Receiver<(String, anyhow::Error)>,
    http_address: Option<SocketAddr>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("target", &self.config.target).field("services", &self.services).finish_non_exhaustive()
    }
}

struct Running {
    name: String,
    stop: Box<dyn FnOnce() -> StopFuture + Send>,
}

/// Runs the process until a signal or a failure.
///
/// # Errors
/// A module couldn't be started, or failed.
pub(crate) async fn run(config: Config, resources: Resources, sizes: Sizes) -> anyhow::Result<()> {
    let signal = process::stop_signal();
    tokio::pin!(signal);
    let refusals = refusals(&config);
    anyhow::ensure!(refusals.is_empty(), "failed to init module services:{}", render_problems(&refusals));
    let mut app = App::new(config, sizes)?;
    tracing::info!(
        version = process::COMPATIBLE_VERSION,
        rubato = process::VERSION,
        revision = process::revision(),
        target = app.config.target.as_str(),
        "starting rubato"
    );
    tracing::info!(
        cpus = resources.cpus,
        memory_bytes = resources.memory_bytes,
        memory_is_limited = resources.memory_is_limited,
        async_threads = sizes.async_threads,
        dataflow_workers = sizes.dataflow_workers,
        "resources of this process"
    );
    log_configuration(&app.config);

    let started = tokio::select! {
        started = app.start() => started.map(|()| true),
        _ = &mut signal => Ok(false),
    };
    let outcome = match started {
        Ok(true) => {
            tracing::info!("rubato started");
            app.print_banner();
            tokio::select! {
                received = &mut signal => {
                    tracing::info!("=== received SIGINT/SIGTERM ===");
                    received.context("signal handler")
                }
                Some((name, error)) = app.failed.recv() => {
                    tracing::error!(module = name.as_str(), err = format!("{error:#}"), "module failed");
                    Err(error.context(format!("module {name} failed")))
                }
            }
        }
        Ok(false) => {
            tracing::info!("=== received SIGINT/SIGTERM === while starting");
            Ok(())
        }
        Err(error) => Err(error),
    };
    let delay = if outcome.is_ok() { app.config.shutdown_delay } else { Duration::ZERO };
    let stopped = app.stop(delay).await;
    tracing::info!("rubato stopped");
    outcome.and(stopped)
}

impl App {
    fn new(config: Config, sizes: Sizes) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let registry = Registry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        process::register(&registry, clock.now())?;
        let overrides = Arc::new(Overrides::new(config.overrides.clone(), &registry)?);
        let (stopping, is_stopping) = Shutdown::new();
        let services = Services::default();
        let admin = Admin::new(Arc::clone(&config), Arc::clone(&overrides), registry.clone(), services.clone(), is_stopping)?;
        let (failures, failed) = mpsc::channel(64);
        Ok(Self {
            config,
            registry,
            clock,
            overrides,
            user_overrides: None,
            sizes,
            admin,
            services,
            stopping,
            running: Vec::new(),
            failures,
            failed,
            http_address: None,
        })
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        self.services.set("modules", State::Starting);
        self.start_http().await?;
        let env = |name: &str| std::env::var(name).ok();
        if let Some((own_traces, sender)) = OwnTraces::from_env(&env, &self.config.target, &self.registry)? {
            self.admin.trace_by(own_traces);
            self.spawn("own-traces", |shutdown| sender.run(shutdown));
        }
        let config = Arc::clone(&self.config);
        let modules = async {
            match config.target.as_str() {
                COMPACTOR => modules::start_compactor(self).await,
                QUERY_FRONTEND => modules::start_query_frontend(self).await,
                QUERIER => modules::start_querier(self).await,
                INGESTER => modules::start_ingester(self).await,
                METRICS_GENERATOR => modules::start_metrics_generator(self).await,
                DISTRIBUTOR => modules::start_distributor(self).await,
                _ => modules::start(self).await,
            }
        };
        modules.await.context("failed to init module services")?;
        self.services.set("modules", State::Running);
        Ok(())
    }

    async fn start_http(&mut self) -> anyhow::Result<()> {
        let listener = http::bind(&self.config.server.http_endpoint).await?;
        let address = listener.local_addr()?;
        self.http_address = Some(address);
        let router = http::router(&self.admin, Credentials::read(&self.config.server.auth).context("rubato.auth")?);
        let timeouts = self.config.server.http_timeouts;
        let [http_open, grpc_open] = self.open_connections()?;
        let listener = Listener::new(listener, self.config.server.http_tls.as_ref(), http_open).context("server.http_tls_config")?;
        self.spawn("server", move |shutdown| listener::serve(listener, timeouts.into(), router, shutdown));
        let grpc = self.config.server.grpc.clone();
        let listener = http::bind(&grpc.endpoint).await?;
        let grpc_address = listener.local_addr()?;
        let router = grpc::router(&self.admin);
        let listener = Listener::new(listener, grpc.tls.as_ref(), grpc_open).context("server.grpc_tls_config")?;
        self.spawn("grpc-server", move |shutdown| listener::serve(listener, Serving::from(&grpc), router, shutdown));
        if let Some(endpoint) = self.config.server.internal_endpoint.clone() {
            let listener = http::bind(&endpoint).await?;
            // Its connections are those of probes, and not counted.
            let open = Open::new(IntGauge::new("internal", "Connections of the internal server.")?, 0);
            let tls = self.config.server.internal_tls.as_ref();
            let listener = Listener::new(listener, tls, open).context("internal_server.http_tls_config")?;
            let router = http::internal_router(&self.admin);
            self.spawn("internal-server", move |shutdown| listener::serve(listener, timeouts.into(), router, shutdown));
        }
        tracing::info!(http = address.to_string(), grpc = grpc_address.to_string(), "server listening on addresses");
        Ok(())
    }

    /// The connections of HTTP and of gRPC, and how many of each there may be.
    fn open_connections(&self) -> prometheus::Result<[Open; 2]> {
        let count = IntGaugeVec::new(Opts::new("tempo_tcp_connections", "Connections that are open."), &["protocol"])?;
        let most = Opts::new("tempo_tcp_connections_limit", "Connections that may be open; 0 is as many as there are.");
        let most = IntGaugeVec::new(most, &["protocol"])?;
        self.registry.register(Box::new(count.clone()))?;
        self.registry.register(Box::new(most.clone()))?;
        let server = &self.config.server;
        let limits = [("http", server.max_http_connections), ("grpc", server.max_grpc_connections)];
        Ok(limits.map(|(protocol, limit)| {
            most.with_label_values(&[protocol]).set(i64::try_from(limit).unwrap_or(i64::MAX));
            Open::new(count.with_label_values(&[protocol]), limit)
        }))
    }

    /// Runs a task as a module. It must end soon after its [`Shutdown`] is thrown; ending before that, or with an error, is a failure of the process.
    pub(crate) fn spawn<F>(&mut self, name: &str, run: impl FnOnce(Shutdown) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, shutdown) = Shutdown::new();
        let deadline = match name {
            "server" | "grpc-server" => self.config.server.graceful_shutdown_timeout,
            "remote-write" => self.config.generator.remote_write.flush_deadline + STOP_DEADLINE,
            _ => STOP_DEADLINE,
        };
        let (services, failures, asked) = (self.services.clone(), self.failures.clone(), shutdown.clone());
        let task = run(shutdown);
        let owned = name.to_owned();
        services.set(name, State::Running);
        let mut handle = tokio::spawn(async move {
            let outcome = task.await;
            let error = match outcome {
                Ok(()) if asked.is_thrown() => return,
                Ok(()) => anyhow::anyhow!("ended without being asked to"),
                Err(error) => error,
            };
            services.fail(&owned, &format!("{error:#}"));
            // A full channel means that 64 failures wait already; the first of them ends the process.
            _ = failures.try_send((owned, error));
        });
        let owned = name.to_owned();
        self.started(name, move || async move {
            _ = stop.send(true);
            if tokio::time::timeout(deadline, &mut handle).await.is_err() {
                handle.abort();
                bail!("{owned} did not stop within {deadline:?}");
            }
            Ok(())
        });
    }

    /// Says why a module cannot start yet; `/ready` repeats it.
    pub(crate) fn waits(&self, name: &str, why: &str) {
        self.services.wait(name, why);
    }

    /// Adds a module that runs already; `stop` ends it and returns when it has ended.
    pub(crate) fn started<F>(&mut self, name: &str, stop: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.services.set(name, State::Running);
        self.running.push(Running { name: name.to_owned(), stop: Box::new(move || Box::pin(stop())) });
    }

    /// Stops everything in reverse order. Errors are logged; the first is returned.
    async fn stop(&mut self, delay: Duration) -> anyhow::Result<()> {
        self.stopping.send_replace(true);
        if !delay.is_zero() {
            tracing::info!(delay = format!("{delay:?}"), "waiting before stopping");
            tokio::time::sleep(delay).await;
        }
        let mut outcome = Ok(());
        while let Some(Running { name, stop }) = self.running.pop() {
            self.services.set(&name, State::Stopping);
            let began = Instant::now();
            match stop().await {
                Ok(()) => {
                    self.services.set(&name, State::Terminated);
                    tracing::debug!(module = name.as_str(), elapsed = format!("{:?}", began.elapsed()), "module stopped");
                }
                Err(error) => {
                    tracing::error!(module = name.as_str(), err = format!("{error:#}"), "module failed to stop");
                    self.services.fail(&name, &format!("{error:#}"));
                    outcome = outcome.and(Err(error.context(format!("failed to stop {name}"))));
                }
            }
        }
        outcome
    }

    /// For a run without a configuration file: where to send, where to look, what to try.
    fn print_banner(&self) {
        if self.config.file.is_some() {
            return;
        }
        let Some(http) = self.http_address else { return };
        let text = banner(&self.config, http);
        // Nobody may be reading; that is not a reason to stop.
        _ = std::io::stdout().lock().write_all(text.as_bytes());
    }
}

fn banner(config: &Config, http: SocketAddr) -> String {
    let receivers = &config.distributor.receivers;
    let grpc = receivers.otlp_grpc.iter().map(|grpc| format!("  send     http://{}  (OTLP/gRPC)\n", grpc.endpoint));
    let posts = receivers.otlp_http.iter().map(|(http, path)| format!("  send     http://{}{path}  (OTLP/HTTP)\n", http.endpoint));
    let jaeger = receivers.jaeger_http.iter().map(|http| format!("  send     http://{}/api/traces  (Jaeger)\n", http.endpoint));
    let zipkin = receivers.zipkin.iter().map(|(http, _)| format!("  send     http://{}/api/v2/spans  (Zipkin)\n", http.endpoint));
    let sends: String = grpc.chain(posts).chain(jaeger).chain(zipkin).collect();
    let data = match &config.storage.backend {
        Backend::Store(bucket) => format!("  data     {bucket} and {}\n", config.storage.wal.dir.display()),
        Backend::Unknown(_) => String::new(),
    };
    let prefix = &config.http_api_prefix;
    format!(
        "\nRubato is running.\n\n{sends}  look     http://{http}  (Tempo API: add it to Grafana as a Tempo data source)\n{data}\nTry it:\n\n  curl -sG http://{http}{prefix}/api/search --data-urlencode 'q={{ status = error }}'\n\n`rubato load` sends example traces.\n\n"
    )
}

/// Says once what the configuration holds that deserves a word.
fn log_configuration(config: &Config) {
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    log_warnings(config);
    for key in config.unused_keys() {
        tracing::info!(key = key.as_str(), "configuration key is not used yet");
    }
    for key in config.tempo3_keys() {
        tracing::info!(key = key.as_str(), "configuration key of Tempo 3.0 is ignored");
    }
}

/// Logs the warnings of a configuration.
pub(crate) fn log_warnings(config: &Config) {
    let warnings = config.warnings();
    if !warnings.is_empty() {
        tracing::warn!("-- CONFIGURATION WARNINGS --");
    }
    for warning in warnings {
        tracing::warn!(explain = warning.explain, "{}", warning.message);
    }
}

pub(crate) async fn watch_overrides(overrides: &Overrides, period: Duration, mut shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            () = tokio::time::sleep(period) => {}
        }
        // A small local file: reading it here is cheaper than handing it to another thread.
        if let Err(why) = overrides.reload() {
            tracing::error!(err = why, "failed to reload runtime config, the last good one stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::config::{self, Request, Value};

    fn config(target: &str) -> Config {
        let text = |text: &str| Value::Text(text.to_owned());
        let flags = vec![("target", text(target)), ("server.http_listen_port", Value::Int(0)), ("server.grpc_listen_port", Value::Int(0))];
        config::load(&Request { flags, ..Request::default() }, &|_| None).expect("right flags")
    }

    fn app() -> App {
        let config = config("all");
        let resources = Resources { cpus: 1.0, memory_bytes: 1 << 30, memory_is_limited: true };
        let sizes = Sizes::new(&resources, &config);
        App::new(config, sizes).expect("an empty registry")
    }

    #[tokio::test]
    async fn modules_stop_in_reverse() {
        let mut app = app();
        let order = Arc::new(Mutex::new(Vec::new()));
        app.start_http().await.expect("the HTTP server starts on any port");
        for name in ["wal", "dataflow", "ingest"] {
            let order = Arc::clone(&order);
            app.spawn(name, async move |mut shutdown| {
                shutdown.wait().await;
                order.lock().expect("one thread").push(name);
                Ok(())
            });
        }
        assert!(app.services.not_running().is_none());
        app.stop(Duration::ZERO).await.expect("everything stops");
        assert_eq!(*order.lock().expect("one thread"), ["ingest", "dataflow", "wal"]);
        assert!(app.services.rows().iter().all(|[_, state, _]| state == "Terminated"), "{:?}", app.services.rows());
    }

    #[tokio::test]
    async fn a_module_that_ends_by_itself_has_failed() {
        let mut app = app();
        app.spawn("short", async |_| Ok(()));
        let (name, error) = app.failed.recv().await.expect("a failure");
        assert_eq!((name.as_str(), error.to_string().as_str()), ("short", "ended without being asked to"));
        assert!(app.services.not_running().expect("failed").contains("Failed: 1"));
    }

    #[test]
    fn the_banner_names_the_addresses() {
        let text = banner(&config("all"), SocketAddr::from(([127, 0, 0, 1], 3200)));
        for part in ["http://127.0.0.1:4317", "http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:3200/api/search", "./rubato-data/blocks"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}
