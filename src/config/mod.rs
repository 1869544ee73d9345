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
mod compactor;
mod document;
mod expand;
mod generator;
mod limits;
mod migrate;
mod overrides;
mod own;
mod receivers;
mod remote_write;
mod scalar;
mod schema;
mod settings;
mod status;
mod tls;
mod warnings;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

pub(crate) use cache::Cache;
pub(crate) use cluster::{Cluster, KvStore, Memberlist, Ring};
pub(crate) use compactor::Compactor;
pub(crate) use document::Problem;
pub(crate) use generator::Generator;
pub(crate) use limits::Limits;
pub(crate) use migrate::migrate;
pub(crate) use overrides::Overrides;
pub(crate) use own::{OwnOverrides, conflicts, to_json};
pub(crate) use receivers::{Grpc, Http, Receivers, Udp};
pub(crate) use scalar::{Value, duration};
pub(crate) use settings::Settings;
pub(crate) use status::{Mode, runtime_config, tenant_json};
pub(crate) use warnings::Warning;

use schema::Status;
use storage::blocklist;

use crate::{auth::AuthFiles, tls::ServerTls};

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

/// Where the server listens and how it logs.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// `host:port` of the HTTP server.
    pub(crate) http_endpoint: String,
    /// How the HTTP server's connections are encrypted; none is in the clear.
    pub(crate) http_tls: Option<ServerTls>,
    /// Who may use HTTP server and receivers; no files are everybody.
    pub(crate) auth: AuthFiles,
    /// The gRPC server.
    pub(crate) grpc: GrpcServer,
    /// Whether the HTTP port takes gRPC, too.
    pub(crate) grpc_over_http: bool,
    /// debug, info, warn or error.
    pub(crate) log_level: String,
    /// JSON instead of logfmt.
    pub(crate) log_json: bool,
    /// Requests are logged at info instead of debug.
    pub(crate) log_requests_at_info: bool,
    /// Whether requests are counted and timed.
    pub(crate) instrument: bool,
    /// How long open requests may take at shutdown.
    pub(crate) graceful_shutdown_timeout: Duration,
    /// Times that clients are given.
    pub(crate) http_timeouts: HttpTimeouts,
    /// `host:port` of the internal server, which answers `/ready` only.
    pub(crate) internal_endpoint: Option<String>,
    /// How its connections are encrypted; none is in the clear.
    pub(crate) internal_tls: Option<ServerTls>,
}

/// How long the HTTP server waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpTimeouts {
    /// For the next request of a connection and its head.
    pub(crate) idle: Option<Duration>,
    /// For the whole of a request, once its head is there.
    pub(crate) read: Option<Duration>,
    /// For a client that does not take any of its answer.
    pub(crate) write: Option<Duration>,
}

/// The gRPC server.
#[derive(Clone, Debug)]
pub(crate) struct GrpcServer {
    /// `host:port`.
    pub(crate) endpoint: String,
    /// Largest message that is taken.
    pub(crate) max_receive_bytes: usize,
    /// Largest message that is sent.
    pub(crate) max_send_bytes: usize,
    /// Calls of one connection at the same time; none is unlimited.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// A connection is asked to end after this time; none is never.
    pub(crate) max_connection_age: Option<Duration>,
    /// How long its calls may take then; none is for ever.
    pub(crate) max_connection_age_grace: Option<Duration>,
    /// A silent connection is pinged after this time.
    pub(crate) keepalive_time: Duration,
    /// How long the answer to a ping may take.
    pub(crate) keepalive_timeout: Duration,
    /// How connections are encrypted; none is in the clear.
    pub(crate) tls: Option<ServerTls>,
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

/// Queries.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// Deadline of a search.
    pub(crate) search_timeout: Duration,
    /// Deadline of a trace by id.
    pub(crate) trace_by_id_timeout: Duration,
    /// Deadline of any request; none is unlimited.
    pub(crate) api_timeout: Option<Duration>,
    /// Results of a search without `limit`.
    pub(crate) default_result_limit: u64,
    /// Largest `limit`; 0 is unlimited.
    pub(crate) max_result_limit: u64,
    /// Longest time range of a search; none is unlimited. A tenant's limit goes before.
    pub(crate) max_search_duration: Option<Duration>,
    /// Spans per span set without `spss`.
    pub(crate) default_spans_per_span_set: u64,
    /// Largest `spss`; 0 is unlimited.
    pub(crate) max_spans_per_span_set: u64,
    /// Largest TraceQL text.
    pub(crate) max_expression_bytes: u64,
    /// Whether a query may name several tenants.
    pub(crate) multi_tenant: bool,
    /// Headers that are logged with each query.
    pub(crate) logged_headers: Vec<String>,
    /// URLs that are refused.
    pub(crate) denied_urls: Vec<regex::Regex>,
    /// What is younger is hidden from all but lookups of traces.
    pub(crate) end_cutoff: Duration,
    /// Alternatives of the filter of a tag query; 0 is unlimited.
    pub(crate) max_condition_groups: u64,
    /// Bytes of a message of a stream; 0 is unlimited.
    pub(crate) max_packet_bytes: u64,
    /// How fast queries should be.
    pub(crate) slos: query::Slos,
    /// Longest range of a metrics query; none means any.
    pub(crate) max_metrics_duration: Option<Duration>,
    pub(crate) metrics: query::traceql_metrics::MetricsLimits,
}

/// The queue of jobs, and how queries are cut into them.
#[derive(Clone, Debug)]
pub(crate) struct QueryFrontend {
    /// The queue.
    pub(crate) settings: query::frontend::Settings,
    /// Jobs at the same time in this process, if it runs jobs itself.
    pub(crate) concurrent_workers: usize,
    /// Jobs of a query at the same time.
    pub(crate) concurrent_jobs: usize,
    /// Bytes of blocks of a job.
    pub(crate) target_bytes_per_job: u64,
    /// Jobs of a metrics query at the same time.
    pub(crate) metrics_concurrent_jobs: usize,
    /// Bytes of blocks of a job of a metrics query.
    pub(crate) metrics_bytes_per_job: u64,
    /// Jobs of the look-up of a trace.
    pub(crate) trace_shards: usize,
    /// Those at the same time; 0 is all.
    pub(crate) concurrent_shards: usize,
}

/// A process that runs jobs for query-frontends.
#[derive(Clone, Debug)]
pub(crate) struct Querier {
    /// Its workers.
    pub(crate) workers: query::querier::WorkerSettings,
    /// `host:port` of the processes that take spans in, separated by commas.
    pub(crate) ingesters: String,
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

/// Where blocks live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A store, and how to reach it.
    Store(storage::backend::Settings),
    /// Nothing sensible was written.
    Unknown(String),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(settings) => settings.fmt(f),
            Self::Unknown(name) => f.write_str(name),
        }
    }
}

/// A column of its own for an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DedicatedColumn {
    /// span, resource or event.
    pub(crate) scope: String,
    /// The attribute.
    pub(crate) name: String,
    /// string or int.
    pub(crate) kind: String,
    /// array, blob.
    pub(crate) options: Vec<String>,
}

/// The shape of blocks.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// vParquet2, 3, 4 or 5.
    pub(crate) version: String,
    /// Chance of a false positive of the bloom filter.
    pub(crate) bloom_filter_false_positive: f64,
    /// Bytes of a bloom filter's shard.
    pub(crate) bloom_filter_shard_bytes: u64,
    /// Bytes of a row group.
    pub(crate) row_group_bytes: u64,
    /// Columns of their own.
    pub(crate) dedicated_columns: Vec<DedicatedColumn>,
}

/// The write-ahead log.
#[derive(Clone, Debug)]
pub(crate) struct Wal {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// When records are fsynced.
    pub(crate) sync: storage::wal::Sync,
    /// Largest log; none is decided by the disk.
    pub(crate) max_bytes: Option<u64>,
    /// Size of one file of the log.
    pub(crate) file_bytes: u64,
}

/// Everything on disk and in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Where blocks live.
    pub(crate) backend: Backend,
    /// The write-ahead log.
    pub(crate) wal: Wal,
    /// The shape of blocks.
    pub(crate) block: Block,
    /// How the bucket is polled.
    pub(crate) blocklist: blocklist::Settings,
    /// What is read through.
    pub(crate) cache: Cache,
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
    validate(s, &mut problems);

    let nonzero = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
    // `infinite` is the largest number.
    let finite = |duration: Duration| nonzero(duration).filter(|duration| duration.as_nanos() < i64::MAX as u128);
    let count = |path: &str| usize::try_from(s.number(path)).unwrap_or(usize::MAX);
    let endpoint = |block: &str, kind: &str| {
        let host = s.text(&format!("{block}.{kind}_listen_address"));
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        let port = s.number(&format!("{block}.{kind}_listen_port"));
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let sync = match wal_sync(s) {
        Ok(sync) => sync,
        Err(problem) => {
            problems.push(problem);
            storage::wal::Sync::Always
        }
    };
    let backend = bucket::backend(s, "storage.trace", &mut problems);
    let user = "overrides.user_configurable_overrides";
    let user_overrides = s.flag(&format!("{user}.enabled")).then(|| UserOverrides {
        backend: bucket::backend(s, &format!("{user}.client"), &mut problems),
        poll_interval: s.duration(&format!("{user}.poll_interval")),
        check_conflicts: s.flag(&format!("{user}.api.check_for_conflicting_runtime_overrides")),
        forwarders: s.blocks("distributor.forwarders").into_iter().map(|forwarder| forwarder.text("name").to_owned()).collect(),
    });
    let generator = Arc::new(generator::generator(s, &mut problems));
    let denied_urls = denied_urls(s, &mut problems);
    let cluster = cluster::cluster(s, &mut problems);
    let slo = |path: &str| query::Slo {
        duration: s.duration(&format!("query_frontend.{path}.duration_slo")),
        throughput: s.float(&format!("query_frontend.{path}.throughput_bytes_slo")),
    };
    let http_tls = tls::of_server(s, "server", "http_tls_config", &mut problems);
    let grpc_tls = tls::of_server(s, "server", "grpc_tls_config", &mut problems);
    let internal_tls = tls::of_server(s, "internal_server", "http_tls_config", &mut problems);
    let path = |key: &str| Some(s.text(key)).filter(|path| !path.is_empty()).map(PathBuf::from);
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
        server: Server {
            http_endpoint: endpoint("server", "http"),
            http_tls,
            auth: AuthFiles { basic_users: path("rubato.auth.basic_users_file"), bearer_tokens: path("rubato.auth.bearer_tokens_file") },
            grpc: GrpcServer {
                endpoint: endpoint("server", "grpc"),
                max_receive_bytes: count("server.grpc_server_max_recv_msg_size"),
                max_send_bytes: count("server.grpc_server_max_send_msg_size"),
                max_concurrent_streams: u32::try_from(s.number("server.grpc_server_max_concurrent_streams"))
                    .ok()
                    .filter(|streams| *streams > 0),
                max_connection_age: finite(s.duration("server.grpc_server_max_connection_age")),
                max_connection_age_grace: finite(s.duration("server.grpc_server_max_connection_age_grace")),
                keepalive_time: s.duration("server.grpc_server_keepalive_time"),
                keepalive_timeout: s.duration("server.grpc_server_keepalive_timeout"),
                tls: grpc_tls,
            },
            grpc_over_http: s.flag("stream_over_http_enabled"),
            http_timeouts: HttpTimeouts {
                // One time for both, since nobody can tell a client that has not begun from one that is slow.
                idle: ["read_header", "idle", "read"]
                    .iter()
                    .find_map(|key| nonzero(s.duration(&format!("server.http_server_{key}_timeout")))),
                read: nonzero(s.duration("server.http_server_read_timeout")),
                write: nonzero(s.duration("server.http_server_write_timeout")),
            },
            log_level: s.text("server.log_level").to_owned(),
            log_json: s.text("server.log_format") == "json",
            log_requests_at_info: s.flag("server.log_request_at_info_level_enabled"),
            instrument: s.flag("server.register_instrumentation"),
            graceful_shutdown_timeout: s.duration("server.graceful_shutdown_timeout"),
            internal_endpoint: s.flag("internal_server.enable").then(|| endpoint("internal_server", "http")),
            internal_tls,
        },
        distributor: Distributor {
            receivers,
            max_attribute_bytes: s.number("distributor.max_attribute_bytes"),
            retry_after: nonzero(s.duration("distributor.retry_after_on_resource_exhausted")),
        },
        ingester: Ingester {
            trace_idle_period: s.duration("ingester.trace_idle_period"),
            trace_live_period: s.duration("ingester.trace_live_period"),
            max_block_duration: s.duration("ingester.max_block_duration"),
            max_block_bytes: s.number("ingester.max_block_bytes"),
            concurrent_flushes: count("ingester.concurrent_flushes").max(1),
            flush_all_on_shutdown: s.flag("ingester.flush_all_on_shutdown"),
        },
        query: Query {
            search_timeout: s.duration("querier.search.query_timeout"),
            trace_by_id_timeout: s.duration("querier.trace_by_id.query_timeout"),
            api_timeout: nonzero(s.duration("query_frontend.api_timeout")),
            default_result_limit: s.number("query_frontend.search.default_result_limit"),
            max_result_limit: s.number("query_frontend.search.max_result_limit"),
            max_search_duration: nonzero(s.duration("query_frontend.search.max_duration")),
            default_spans_per_span_set: s.number("query_frontend.search.default_spans_per_span_set"),
            max_spans_per_span_set: s.number("query_frontend.search.max_spans_per_span_set"),
            max_expression_bytes: s.number("query_frontend.max_query_expression_size_bytes"),
            multi_tenant: s.flag("query_frontend.multi_tenant_queries_enabled"),
            logged_headers: s.strings("query_frontend.log_query_request_headers"),
            denied_urls,
            end_cutoff: s.duration("query_frontend.query_end_cutoff"),
            max_condition_groups: s.number("overrides.defaults.read.max_condition_groups_per_tag_query"),
            max_packet_bytes: s.number("query_frontend.max_grpc_streaming_packet_size"),
            slos: query::Slos {
                traces: slo("trace_by_id"),
                search: slo("search"),
                metadata: slo("search.metadata_slo"),
                metrics: slo("metrics"),
            },
            max_metrics_duration: nonzero(s.duration("query_frontend.metrics.max_duration")),
            metrics: query::traceql_metrics::MetricsLimits {
                max_exemplars: u32::try_from(s.number("query_frontend.metrics.max_exemplars")).unwrap_or(u32::MAX),
                max_intervals: s.number("query_frontend.metrics.max_intervals"),
                max_series: u32::try_from(s.number("query_frontend.metrics.max_response_series")).unwrap_or(u32::MAX),
                ..query::traceql_metrics::MetricsLimits::default()
            },
        },
        query_frontend: QueryFrontend {
            settings: query::frontend::Settings {
                max_outstanding_per_tenant: count("query_frontend.max_outstanding_per_tenant"),
                max_tries: count("query_frontend.max_retries"),
                max_batch_size: count("query_frontend.max_batch_size"),
                hedge_after: nonzero(s.duration("rubato.query_frontend.hedge_jobs_after")),
            },
            concurrent_workers: count("rubato.query_frontend.concurrent_workers"),
            concurrent_jobs: count("query_frontend.search.concurrent_jobs"),
            target_bytes_per_job: s.number("query_frontend.search.target_bytes_per_job"),
            metrics_concurrent_jobs: count("query_frontend.metrics.concurrent_jobs"),
            metrics_bytes_per_job: s.number("query_frontend.metrics.target_bytes_per_job"),
            trace_shards: count("query_frontend.trace_by_id.query_shards"),
            concurrent_shards: count("query_frontend.trace_by_id.concurrent_shards"),
        },
        querier: Querier {
            workers: query::querier::WorkerSettings {
                id: s.text("querier.frontend_worker.id").to_owned(),
                frontends: s.text("querier.frontend_worker.frontend_address").to_owned(),
                lookup_interval: s.duration("querier.frontend_worker.dns_lookup_duration"),
                concurrency: count("querier.max_concurrent_queries"),
                parallelism: (!s.flag("querier.frontend_worker.match_max_concurrent"))
                    .then(|| count("querier.frontend_worker.parallelism")),
                extra_delay: s.duration("querier.extra_query_delay"),
                max_receive_bytes: count("querier.frontend_worker.grpc_client_config.max_recv_msg_size"),
                max_send_bytes: count("querier.frontend_worker.grpc_client_config.max_send_msg_size"),
                backoff: (
                    s.duration("querier.frontend_worker.grpc_client_config.backoff_config.min_period"),
                    s.duration("querier.frontend_worker.grpc_client_config.backoff_config.max_period"),
                ),
            },
            ingesters: s.text("rubato.querier.ingester_address").to_owned(),
        },
        storage: Storage {
            backend,
            wal: Wal {
                dir: PathBuf::from(s.text("storage.trace.wal.path")),
                sync,
                max_bytes: Some(s.number("rubato.wal.max_bytes")).filter(|bytes| *bytes > 0),
                file_bytes: s.number("rubato.wal.file_bytes"),
            },
            block: Block {
                version: s.text("storage.trace.block.version").to_owned(),
                bloom_filter_false_positive: s.float("storage.trace.block.bloom_filter_false_positive"),
                bloom_filter_shard_bytes: s.number("storage.trace.block.bloom_filter_shard_size_bytes"),
                row_group_bytes: s.number("storage.trace.block.parquet_row_group_size_bytes"),
                dedicated_columns: dedicated_columns(s),
            },
            blocklist: blocklist(s),
            cache: cache::cache(s),
        },
        dataflow: Dataflow {
            workers: Some(count("rubato.dataflow.workers")).filter(|workers| *workers > 0),
            tick: s.duration("rubato.dataflow.tick"),
            checkpoint_interval: s.duration("rubato.dataflow.checkpoint_interval"),
        },
        cluster,
        compactor: compactor::compactor(s),
        generator: Arc::clone(&generator),
        threads: Some(count("rubato.threads")).filter(|threads| *threads > 0),
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

/// `rubato.wal.sync`, or Rubato's `sync` below Tempo's `storage.trace.wal`.
fn wal_sync(s: &Settings) -> Result<storage::wal::Sync, Problem> {
    let tempo = "storage.trace.wal.sync";
    let path = if s.text(tempo).is_empty() { "rubato.wal.sync" } else { tempo };
    match s.text(path) {
        "always" => Ok(storage::wal::Sync::Always),
        "interval" => Ok(storage::wal::Sync::Interval(s.duration("rubato.wal.sync_interval"))),
        "never" => Ok(storage::wal::Sync::Never),
        other => Err(Problem::new(s.line(path), format!("{path}: \"{other}\" is not one of always, interval, never"))),
    }
}

/// The keys `storage.trace.blocklist_poll*` and `storage.trace.empty_tenant_deletion_*`.
fn blocklist(s: &Settings) -> blocklist::Settings {
    let path = |key: &str| format!("storage.trace.{key}");
    let count = |key: &str| usize::try_from(s.number(&path(key))).unwrap_or(usize::MAX);
    blocklist::Settings {
        interval: s.duration(&path("blocklist_poll")),
        concurrency: count("blocklist_poll_concurrency"),
        tenant_concurrency: count("blocklist_poll_tenant_concurrency"),
        fallback: s.flag(&path("blocklist_poll_fallback")),
        index_builders: count("blocklist_poll_tenant_index_builders"),
        stale_index: s.duration(&path("blocklist_poll_stale_tenant_index")),
        jitter: Duration::from_millis(s.number(&path("blocklist_poll_jitter_ms"))),
        tolerate_consecutive_errors: count("blocklist_poll_tolerate_consecutive_errors"),
        tolerate_tenant_failures: count("blocklist_poll_tolerate_tenant_failures"),
        empty_tenant_deletion: s.flag(&path("empty_tenant_deletion_enabled")).then(|| s.duration(&path("empty_tenant_deletion_age"))),
        ..blocklist::Settings::default()
    }
}

/// The URLs that the operator forbids.
fn denied_urls(s: &Settings, problems: &mut Vec<Problem>) -> Vec<regex::Regex> {
    let path = "query_frontend.url_deny_list";
    let mut denied = Vec::new();
    for text in s.strings(path) {
        match regex::Regex::new(&text) {
            Ok(regex) => denied.push(regex),
            Err(error) => problems.push(Problem::new(s.line(path), format!("{path}: \"{text}\" is no regular expression: {error}"))),
        }
    }
    denied
}

/// What no single key's kind can say.
fn validate(s: &Settings, problems: &mut Vec<Problem>) {
    let mut problem = |path: &str, text: String| problems.push(Problem::new(s.line(path), text));
    let shards = s.number("query_frontend.trace_by_id.query_shards");
    if !(2..=100_000).contains(&shards) {
        problem(
            "query_frontend.trace_by_id.query_shards",
            "frontend query shards should be between 2 and 100000 (both inclusive)".to_owned(),
        );
    }
    for path in [
        "query_frontend.search.concurrent_jobs",
        "query_frontend.search.target_bytes_per_job",
        "query_frontend.search.most_recent_shards",
        "query_frontend.metrics.concurrent_jobs",
        "query_frontend.metrics.target_bytes_per_job",
        "query_frontend.max_batch_size",
    ] {
        if s.number(path) == 0 {
            problem(path, format!("{path} must be greater than 0"));
        }
    }
    if s.duration("query_frontend.metrics.interval").is_zero() {
        problem("query_frontend.metrics.interval", "query_frontend.metrics.interval must be greater than 0".to_owned());
    }
    let (cutoff, after) = ("query_frontend.query_end_cutoff", "query_frontend.search.query_backend_after");
    if s.duration(cutoff) > s.duration(after) {
        problem(cutoff, format!("{cutoff} must not be longer than {after}"));
    }
    let prefix = s.text("http_api_prefix");
    if !prefix.is_empty() && !prefix.starts_with('/') {
        problem("http_api_prefix", format!("http_api_prefix: \"{prefix}\" must start with /"));
    }
    let format = s.text("server.log_format");
    if !matches!(format, "logfmt" | "json") {
        problem("server.log_format", format!("server.log_format: \"{format}\" is not one of logfmt, json"));
    }
    for path in ["server.http_listen_port", "server.grpc_listen_port", "internal_server.http_listen_port"] {
        if s.number(path) > u64::from(u16::MAX) {
            problem(path, format!("{path}: {} is not a port", s.number(path)));
        }
    }
    let strategy = s.text("overrides.defaults.ingestion.rate_strategy");
    if !matches!(strategy, "local" | "global") {
        problem("overrides.defaults.ingestion.rate_strategy", format!("unknown ingestion rate strategy \"{strategy}\" (local or global)"));
    }
    for path in ["storage.trace.block.version", "block_builder.block.version", "metrics_generator.processor.local_blocks.block.version"] {
        let version = s.text(path);
        if !matches!(version, "v2" | "vParquet2" | "vParquet3" | "vParquet4" | "vParquet5") && !version.contains("preview") {
            problem(path, format!("{path}: {version} is not a valid block version"));
        }
    }
    let false_positive = s.float("storage.trace.block.bloom_filter_false_positive");
    if !(false_positive > 0.0 && false_positive < 1.0) {
        problem(
            "storage.trace.block.bloom_filter_false_positive",
            format!("invalid bloom filter fp rate {false_positive}: must be between 0 and 1"),
        );
    }
    for path in [
        "storage.trace.block.bloom_filter_shard_size_bytes",
        "storage.trace.block.parquet_row_group_size_bytes",
        "ingester.max_block_bytes",
        "rubato.wal.file_bytes",
    ] {
        if s.number(path) == 0 {
            problem(path, format!("{path}: must be greater than 0"));
        }
    }
    for path in ["rubato.dataflow.tick", "rubato.dataflow.checkpoint_interval", "rubato.wal.sync_interval", "ingester.max_block_duration"] {
        if s.duration(path).is_zero() {
            problem(path, format!("{path}: must be greater than 0"));
        }
    }
    if s.text("storage.trace.wal.path").is_empty() {
        problem("storage.trace.wal.path", "storage.trace.wal.path: must not be empty".to_owned());
    }
    let ratio = s.float("memory.automemlimit_ratio");
    if !(ratio > 0.0 && ratio <= 1.0) {
        problem("memory.automemlimit_ratio", format!("memory.automemlimit_ratio: {ratio} is not above 0 and at most 1"));
    }
    for text in cache::problems(s) {
        problem("cache.caches", text);
    }
}

/// The columns of `storage.trace.block`: an explicit list replaces the default one.
fn dedicated_columns(s: &Settings) -> Vec<DedicatedColumn> {
    let path = "storage.trace.block.parquet_dedicated_columns";
    if s.written(path).is_some() {
        return columns(&s.blocks(path));
    }
    let default = |(scope, kind, name): &(&str, &str, &str)| DedicatedColumn {
        scope: (*scope).to_owned(),
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        options: Vec::new(),
    };
    schema::DEDICATED_COLUMNS.iter().map(default).collect()
}

/// The columns of a list.
fn columns(blocks: &[&Settings]) -> Vec<DedicatedColumn> {
    let column = |block: &&Settings| DedicatedColumn {
        scope: block.text("scope").to_owned(),
        name: block.text("name").to_owned(),
        kind: block.text("type").to_owned(),
        options: block.strings("options"),
    };
    blocks.iter().map(column).collect()
}

/// Whether a list of columns is one that a block can have.
fn check_columns(blocks: &[&Settings]) -> Result<(), String> {
    let columns = columns(blocks);
    for (index, column) in columns.iter().enumerate() {
        if column.name.is_empty() {
            return Err("a dedicated column has no name".to_owned());
        }
        if !matches!(column.scope.as_str(), "span" | "resource" | "event") {
            return Err(format!("dedicated column \"{}\" has an invalid scope \"{}\"", column.name, column.scope));
        }
        let most = match column.kind.as_str() {
            "string" => 10,
            "int" => 5,
            other => return Err(format!("dedicated column \"{}\" has an invalid type \"{other}\"", column.name)),
        };
        if let Some(option) = column.options.iter().find(|option| !matches!(option.as_str(), "array" | "blob")) {
            return Err(format!("dedicated column \"{}\" has an invalid option \"{option}\"", column.name));
        }
        if columns[..index].iter().any(|other| other.name == column.name && other.scope == column.scope) {
            return Err(format!("dedicated column \"{}\" of scope {} is listed twice", column.name, column.scope));
        }
        if columns.iter().filter(|other| other.scope == column.scope && other.kind == column.kind).count() > most {
            return Err(format!("more than {most} dedicated columns of type {} in scope {}", column.kind, column.scope));
        }
    }
    Ok(())
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
