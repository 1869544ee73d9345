//! The configuration: what was written becomes what is meant.
//!
//! ```text
//!  file ──expand env──► document ──check against schema──► Settings ◄── embedded defaults, flags
//!                          │                                  │
//!                          └──► receivers ──────────────┐     ├──► /status/config, "not used yet", warnings
//!                                                       ▼     ▼
//!                                                   Config (typed, validated): all that the rest of the process sees
//! ```
//!
//! Every problem of a file is reported at once, each with its line. The rest of the process never asks for a key by name; a key that [`Config`] doesn't
//! carry has no effect, and its row in the schema says so.

mod bucket;
mod cache;
mod check;
mod cluster;
mod columns;
mod compactor;
mod document;
mod expand;
mod generator;
mod limits;
mod migrate;
mod overrides;
mod own;
mod queries;
mod receivers;
mod remote_write;
mod scalar;
mod schema;
mod server;
mod settings;
mod status;
mod tls;
mod trace_storage;
mod validate;
mod warnings;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

pub(crate) use cache::Cache;
pub(crate) use cluster::{Cluster, KvStore, Memberlist, Ring};
pub(crate) use compactor::Compactor;
pub(crate) use document::Problem;
pub(crate) use generator::Generator;
pub(crate) use limits::Limits;
pub(crate) use migrate::migrate;
pub(crate) use overrides::Overrides;
pub(crate) use own::{OwnOverrides, conflicts, to_json};
pub(crate) use queries::{Querier, Query, QueryFrontend};
pub(crate) use receivers::{Grpc, Http, Receivers, Udp};
pub(crate) use scalar::{Value, duration};
pub(crate) use server::{GrpcServer, HttpTimeouts, Server};
pub(crate) use settings::Settings;
pub(crate) use status::{Mode, runtime_config, tenant_json};
pub(crate) use trace_storage::{Backend, Block, Storage};
pub(crate) use warnings::Warning;

use schema::Status;
use storage::tls::ClientTls;

/// The targets that run everything in one process.
pub(crate) const SINGLE_BINARY: &[&str] = &["all", "scalable-single-binary"];

/// The target that compacts and does nothing else.
pub(crate) const COMPACTOR: &str = "compactor";

/// The target that plans queries and hands their jobs to queriers.
pub(crate) const QUERY_FRONTEND: &str = "query-frontend";

/// The target that runs jobs for query-frontends.
pub(crate) const QUERIER: &str = "querier";

/// The target that takes spans and sends each trace to its ingesters.
pub(crate) const DISTRIBUTOR: &str = "distributor";

/// The target that keeps recent spans and makes blocks of them.
pub(crate) const INGESTER: &str = "ingester";

/// The target that owns the series of the dataflow and sends them.
pub(crate) const METRICS_GENERATOR: &str = "metrics-generator";

/// What to load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// The file; none means the embedded defaults.
    pub(crate) file: Option<PathBuf>,
    /// Expand environment variables in the file.
    pub(crate) expand_env: bool,
    /// Values from the command line, by key. A key may occur more than once.
    pub(crate) flags: Vec<(&'static str, Value)>,
}

/// The write path.
#[derive(Clone, Debug)]
pub(crate) struct Distributor {
    /// What listens.
    pub(crate) receivers: Receivers,
    /// Attribute keys and string values are cut to this many bytes; 0 is off. A tenant's limit goes before.
    pub(crate) max_attribute_bytes: u64,
    /// Retry hint of refusals for exhausted limits; none is off.
    pub(crate) retry_after: Option<Duration>,
    /// How tenants' bytes are attributed, if they are.
    pub(crate) usage: Option<ingest::UsageSettings>,
}

/// Live traces and the cutting of blocks.
#[derive(Clone, Debug)]
pub(crate) struct Ingester {
    /// A trace is cut after this long without a span.
    pub(crate) trace_idle_period: Duration,
    /// A trace is cut this long after its first span.
    pub(crate) trace_live_period: Duration,
    /// A block is cut when it is older.
    pub(crate) max_block_duration: Duration,
    /// A block is cut when it is larger.
    pub(crate) max_block_bytes: u64,
    /// Blocks uploaded at the same time.
    pub(crate) concurrent_flushes: usize,
    /// Cut and upload everything before the process ends.
    pub(crate) flush_all_on_shutdown: bool,
}

/// Overrides that tenants set for themselves.
#[derive(Clone, Debug)]
pub(crate) struct UserOverrides {
    /// Where they are kept.
    pub(crate) backend: Backend,
    /// How often they are read again.
    pub(crate) poll_interval: Duration,
    /// Whether a tenant whose entry says something of the same keys may not begin to set them.
    pub(crate) check_conflicts: bool,
    /// The forwarders that there are.
    pub(crate) forwarders: Vec<String>,
}

/// The dataflow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dataflow {
    /// Worker threads; none is decided by the CPUs.
    pub(crate) workers: Option<usize>,
    /// Length of a tick.
    pub(crate) tick: Duration,
    /// How often a checkpoint is written.
    pub(crate) checkpoint_interval: Duration,
}

/// What is meant: validated, with all defaults in place.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Which modules run.
    pub(crate) target: String,
    /// Whether requests name their tenant.
    pub(crate) multitenancy: bool,
    /// Prefix of `/api/…` paths: empty, or `/…` without a slash at the end.
    pub(crate) http_api_prefix: String,
    /// How long the process stays up, not ready, after it was asked to stop.
    pub(crate) shutdown_delay: Duration,
    /// Listening and logging.
    pub(crate) server: Server,
    /// The write path.
    pub(crate) distributor: Distributor,
    /// Live traces.
    pub(crate) ingester: Ingester,
    /// Queries.
    pub(crate) query: Query,
    /// The queue of jobs.
    pub(crate) query_frontend: QueryFrontend,
    /// Who runs jobs for other processes.
    pub(crate) querier: Querier,
    /// Disk and bucket.
    pub(crate) storage: Storage,
    /// The dataflow.
    pub(crate) dataflow: Dataflow,
    /// Rings and gossip.
    pub(crate) cluster: Cluster,
    /// How distributors and queriers speak with ingesters; none is in the clear.
    pub(crate) ingester_client_tls: Option<ClientTls>,
    /// Compaction and retention.
    pub(crate) compactor: Compactor,
    /// The metrics-generator.
    pub(crate) generator: Arc<Generator>,
    /// Threads of the async runtime; none is decided by the CPUs.
    pub(crate) threads: Option<usize>,
    /// Memory to stay below; none is decided by the cgroup.
    pub(crate) memory_limit: Option<u64>,
    /// Share of the cgroup's memory to stay below.
    pub(crate) memory_ratio: f64,
    /// Limits of tenants.
    pub(crate) overrides: overrides::Source,
    /// What tenants may set for themselves, if they may.
    pub(crate) user_overrides: Option<UserOverrides>,
    /// The file that was read; none is the embedded defaults.
    pub(crate) file: Option<PathBuf>,
    /// Every key, for `/status/config` and the warnings.
    pub(crate) settings: Settings,
    /// Remarks on the file: empty blocks.
    pub(crate) notes: Vec<String>,
    /// Whether limits are written in the flat form.
    pub(crate) legacy_overrides: bool,
}

/// Why there is no configuration. Printed behind `failed parsing config: `.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file can't be read.
    #[error("failed to read configFile {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// An expression in the file isn't understood.
    #[error("failed to expand env vars from configFile {path}: {why}")]
    Expand {
        /// The file.
        path: PathBuf,
        /// Line and expression.
        why: String,
    },
    /// The file has problems.
    #[error("failed to parse configFile {path}: yaml: unmarshal errors:{}", render_problems(.problems))]
    Parse {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
    /// Values that don't fit, without a file.
    #[error("invalid configuration:{}", render_problems(.0))]
    Invalid(Vec<Problem>),
}

/// Problems as lines of their own, each begun by a line break.
pub(crate) fn render_problems(problems: &[Problem]) -> String {
    let line = |problem: &Problem| if problem.line == 0 { format!("\n  {}", problem.text) } else { format!("\n  {problem}") };
    problems.iter().map(line).collect()
}

/// Loads a configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn load(request: &Request, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, LoadError> {
    let Some(path) = &request.file else {
        return build(embedded(), Receivers::embedded(), Vec::new(), request).map_err(LoadError::Invalid);
    };
    let path = path.clone();
    let text = std::fs::read_to_string(&path).map_err(|error| LoadError::Read { path: path.clone(), why: error.to_string() })?;
    let text =
        if request.expand_env { expand::expand(&text, env).map_err(|why| LoadError::Expand { path: path.clone(), why })? } else { text };
    parse(&text, request).map_err(|problems| LoadError::Parse { path, problems })
}

/// Reads the text of a file.
fn parse(text: &str, request: &Request) -> Result<Config, Vec<Problem>> {
    from_document(document::parse(text)?.as_ref(), request)
}

fn from_document(node: Option<&document::Node>, request: &Request) -> Result<Config, Vec<Problem>> {
    let checked = check::check(&schema::file(), node, "");
    let mut problems = checked.problems;
    let receivers = receivers::parse(receivers::find(node, &["distributor", "receivers"]), &mut problems);
    let built = build(checked.settings, receivers, checked.notes, request);
    match built {
        Ok(config) if problems.is_empty() => Ok(config),
        Ok(_) => {
            problems.sort();
            Err(problems)
        }
        Err(more) => {
            problems.extend(more);
            problems.sort();
            Err(problems)
        }
    }
}

/// The settings of a run without a file: everything below `./rubato-data`, everything on the loopback, and metrics of all that comes.
fn embedded() -> Settings {
    let mut settings = Settings::new(schema::file());
    for (path, value) in [
        ("server.http_listen_address", "127.0.0.1"),
        ("server.grpc_listen_address", "127.0.0.1"),
        ("storage.trace.backend", "local"),
        ("storage.trace.local.path", "./rubato-data/blocks"),
        ("storage.trace.wal.path", "./rubato-data/wal"),
    ] {
        settings.set(path, Value::Text(value.to_owned()), 0);
    }
    settings.set("distributor.receivers", Receivers::embedded_text(), 0);
    let processors = ["service-graphs", "span-metrics"].map(|name| Value::Text(name.to_owned())).into();
    settings.set("overrides.defaults.metrics_generator.processors", Value::List(processors), 0);
    settings
}

/// From values to what is meant.
fn build(mut settings: Settings, receivers: Receivers, notes: Vec<String>, request: &Request) -> Result<Config, Vec<Problem>> {
    let mut problems = Vec::new();
    let legacy_overrides = limits::translate_legacy(&mut settings, "overrides", "overrides.defaults", &mut problems);
    // After the translation: flags are scoped, and go before either spelling of the file.
    for (path, value) in &request.flags {
        settings.set(path, value.clone(), 0);
    }
    limits::validate(&settings, "overrides.defaults", "overrides.defaults", &mut problems);
    let s = &settings;
    validate::validate(s, &mut problems);

    let storage = trace_storage::storage(s, &mut problems);
    let user = "overrides.user_configurable_overrides";
    let user_overrides = s.flag(&format!("{user}.enabled")).then(|| UserOverrides {
        backend: bucket::backend(s, &format!("{user}.client"), &mut problems),
        poll_interval: s.duration(&format!("{user}.poll_interval")),
        check_conflicts: s.flag(&format!("{user}.api.check_for_conflicting_runtime_overrides")),
        forwarders: s.blocks("distributor.forwarders").into_iter().map(|forwarder| forwarder.text("name").to_owned()).collect(),
    });
    let generator = Arc::new(generator::generator(s, &mut problems));
    let (query, querier) = (queries::query(s, &mut problems), queries::querier(s, &mut problems));
    let cluster = cluster::cluster(s, &mut problems);
    let server = server::server(s, &mut problems);
    let ingester_client_tls = tls::of_grpc_client(s, "ingester_client.grpc_client_config", &mut problems);
    if !problems.is_empty() {
        problems.sort();
        problems.dedup();
        return Err(problems);
    }
    let config = Config {
        target: s.text("target").to_owned(),
        multitenancy: s.flag("multitenancy_enabled") || s.flag("auth_enabled"),
        http_api_prefix: s.text("http_api_prefix").trim_end_matches('/').to_owned(),
        shutdown_delay: s.duration("shutdown_delay"),
        server,
        distributor: Distributor {
            receivers,
            max_attribute_bytes: s.number("distributor.max_attribute_bytes"),
            retry_after: s.nonzero("distributor.retry_after_on_resource_exhausted"),
            usage: s.flag("distributor.usage.cost_attribution.enabled").then(|| ingest::UsageSettings {
                max_cardinality: s.number("distributor.usage.cost_attribution.max_cardinality"),
                stale_duration: s.duration("distributor.usage.cost_attribution.stale_duration"),
            }),
        },
        ingester: Ingester {
            trace_idle_period: s.duration("ingester.trace_idle_period"),
            trace_live_period: s.duration("ingester.trace_live_period"),
            max_block_duration: s.duration("ingester.max_block_duration"),
            max_block_bytes: s.number("ingester.max_block_bytes"),
            concurrent_flushes: s.count("ingester.concurrent_flushes").max(1),
            flush_all_on_shutdown: s.flag("ingester.flush_all_on_shutdown"),
        },
        query,
        query_frontend: queries::query_frontend(s),
        querier,
        storage,
        dataflow: Dataflow {
            workers: Some(s.count("rubato.dataflow.workers")).filter(|workers| *workers > 0),
            tick: s.duration("rubato.dataflow.tick"),
            checkpoint_interval: s.duration("rubato.dataflow.checkpoint_interval"),
        },
        cluster,
        ingester_client_tls,
        compactor: compactor::compactor(s),
        generator: Arc::clone(&generator),
        threads: Some(s.count("rubato.threads")).filter(|threads| *threads > 0),
        memory_limit: Some(s.number("rubato.memory_limit")).filter(|bytes| *bytes > 0),
        memory_ratio: s.float("memory.automemlimit_ratio"),
        user_overrides,
        overrides: overrides::Source {
            defaults: Arc::new(Limits::defaults(s, &generator)),
            settings: s.clone(),
            generator,
            file: Some(s.text("overrides.per_tenant_override_config")).filter(|path| !path.is_empty()).map(PathBuf::from),
            period: s.duration("overrides.per_tenant_override_period"),
            expand_env: request.expand_env,
        },
        file: request.file.clone(),
        legacy_overrides,
        notes,
        settings,
    };
    Ok(config)
}

impl Config {
    /// Whether one process does everything.
    pub(crate) fn is_single_binary(&self) -> bool {
        SINGLE_BINARY.contains(&self.target.as_str())
    }

    /// What §"Warnings" of Tempo would warn of; decides `-config.verify`.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        warnings::warnings(self)
    }

    /// Keys that were written, differ from their defaults and have no effect yet.
    pub(crate) fn unused_keys(&self) -> Vec<String> {
        let leaves = self.settings.written_leaves().filter(|leaf| leaf.status == Status::Unused && self.settings.differs(&leaf.path));
        let mut keys: Vec<String> = leaves.map(|leaf| leaf.path.clone()).collect();
        keys.extend(self.distributor.receivers.unused.iter().cloned());
        keys.extend(self.distributor.receivers.unavailable.iter().map(|name| format!("distributor.receivers.{name}")));
        keys
    }

    /// Keys that were written and belong to Tempo 3.0.
    pub(crate) fn tempo3_keys(&self) -> Vec<String> {
        self.settings.written_leaves().filter(|leaf| leaf.status == Status::Tempo3).map(|leaf| leaf.path.clone()).collect()
    }

    /// What must be the same in all processes of one dataflow, or what is counted depends on who counts it: keys that differ from their defaults, and
    /// their values.
    pub(crate) fn of_one_dataflow(&self) -> BTreeMap<String, String> {
        const KEYS: &[&str] = &[
            "rubato.dataflow.tick",
            "ingester.lifecycler.ring.replication_factor",
            "metrics_generator.processor.",
            "metrics_generator.limiter_type",
            "metrics_generator.metrics_ingestion_time_range_slack",
            "metrics_generator.registry.max_label_",
            "metrics_generator.registry.stale_duration",
            "overrides.defaults.metrics_generator.",
        ];
        let leaves = self.settings.written_leaves().filter(|leaf| leaf.status == Status::Used && self.settings.differs(&leaf.path));
        let counts = leaves.filter(|leaf| KEYS.iter().any(|key| leaf.path.starts_with(key)));
        counts.map(|leaf| (leaf.path.clone(), status::line(&self.settings, &leaf.path))).collect()
    }

    /// The whole configuration as YAML, secrets masked.
    pub(crate) fn to_yaml(&self, mode: Mode) -> String {
        status::render(&self.settings, mode)
    }
}

/// The value of a key given on the command line.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn parse_flag(path: &str, text: &str) -> Result<Value, String> {
    let leaf = schema::file().leaf(path).cloned().ok_or_else(|| format!("no such key: {path}"))?;
    scalar::parse(leaf.kind, text, true)
}

/// Whether a key is a boolean.
pub(crate) fn is_bool(path: &str) -> bool {
    schema::file().leaf(path).is_some_and(|leaf| matches!(leaf.kind, schema::Kind::Bool))
}

/// The default of a key as it would be written.
pub(crate) fn default_text(path: &str) -> String {
    schema::file().leaf(path).map_or(String::new(), status::default_text)
}

#[cfg(test)]
mod tests;
