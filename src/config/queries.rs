//! `query_frontend` and `querier`: how queries are bounded, cut into jobs, queued and run.

use std::time::Duration;

use storage::tls::ClientTls;

use super::{Problem, Settings, tls};

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
    /// Whether language models may ask at `/api/mcp`.
    pub(crate) mcp_enabled: bool,
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
    /// Whether traces are looked up in a store that is not ours, too.
    pub(crate) external_traces: bool,
}

/// A process that runs jobs for query-frontends.
#[derive(Clone, Debug)]
pub(crate) struct Querier {
    /// Its workers.
    pub(crate) workers: query::querier::WorkerSettings,
    /// How it speaks with query-frontends; none is in the clear.
    pub(crate) frontend_tls: Option<ClientTls>,
    /// `host:port` of the processes that take spans in, separated by commas.
    pub(crate) ingesters: String,
    /// URL of a store of traces that is not ours; empty for none.
    pub(crate) external_endpoint: String,
    /// How long it may take to answer.
    pub(crate) external_timeout: Duration,
}

/// What every process that answers queries needs.
pub(super) fn query(s: &Settings, problems: &mut Vec<Problem>) -> Query {
    let denied_urls = denied_urls(s, problems);
    let slo = |path: &str| query::Slo {
        duration: s.duration(&format!("query_frontend.{path}.duration_slo")),
        throughput: s.float(&format!("query_frontend.{path}.throughput_bytes_slo")),
    };
    Query {
        search_timeout: s.duration("querier.search.query_timeout"),
        trace_by_id_timeout: s.duration("querier.trace_by_id.query_timeout"),
        api_timeout: s.nonzero("query_frontend.api_timeout"),
        default_result_limit: s.number("query_frontend.search.default_result_limit"),
        max_result_limit: s.number("query_frontend.search.max_result_limit"),
        max_search_duration: s.nonzero("query_frontend.search.max_duration"),
        default_spans_per_span_set: s.number("query_frontend.search.default_spans_per_span_set"),
        max_spans_per_span_set: s.number("query_frontend.search.max_spans_per_span_set"),
        max_expression_bytes: s.number("query_frontend.max_query_expression_size_bytes"),
        multi_tenant: s.flag("query_frontend.multi_tenant_queries_enabled"),
        logged_headers: s.strings("query_frontend.log_query_request_headers"),
        denied_urls,
        end_cutoff: s.duration("query_frontend.query_end_cutoff"),
        max_condition_groups: s.number("overrides.defaults.read.max_condition_groups_per_tag_query"),
        max_packet_bytes: s.number("query_frontend.max_grpc_streaming_packet_size"),
        mcp_enabled: s.flag("query_frontend.mcp_server.enabled"),
        slos: query::Slos {
            traces: slo("trace_by_id"),
            search: slo("search"),
            metadata: slo("search.metadata_slo"),
            metrics: slo("metrics"),
        },
        max_metrics_duration: s.nonzero("query_frontend.metrics.max_duration"),
        metrics: query::traceql_metrics::MetricsLimits {
            max_exemplars: u32::try_from(s.number("query_frontend.metrics.max_exemplars")).unwrap_or(u32::MAX),
            max_intervals: s.number("query_frontend.metrics.max_intervals"),
            max_series: u32::try_from(s.number("query_frontend.metrics.max_response_series")).unwrap_or(u32::MAX),
            ..query::traceql_metrics::MetricsLimits::default()
        },
    }
}

/// The queue and the sizes of jobs.
pub(super) fn query_frontend(s: &Settings) -> QueryFrontend {
    QueryFrontend {
        settings: query::frontend::Settings {
            max_outstanding_per_tenant: s.count("query_frontend.max_outstanding_per_tenant"),
            max_tries: s.count("query_frontend.max_retries"),
            max_batch_size: s.count("query_frontend.max_batch_size"),
            hedge_after: s.nonzero("rubato.query_frontend.hedge_jobs_after"),
            weights: query::frontend::Weights {
                requests: s.flag("query_frontend.weights.request_with_weights"),
                retries: s.flag("query_frontend.weights.retry_with_weights"),
                max_conditions: s.count("query_frontend.weights.max_traceql_conditions"),
                max_regexes: s.count("query_frontend.weights.max_regex_conditions"),
            },
        },
        concurrent_workers: s.count("rubato.query_frontend.concurrent_workers"),
        concurrent_jobs: s.count("query_frontend.search.concurrent_jobs"),
        target_bytes_per_job: s.number("query_frontend.search.target_bytes_per_job"),
        metrics_concurrent_jobs: s.count("query_frontend.metrics.concurrent_jobs"),
        metrics_bytes_per_job: s.number("query_frontend.metrics.target_bytes_per_job"),
        trace_shards: s.count("query_frontend.trace_by_id.query_shards"),
        concurrent_shards: s.count("query_frontend.trace_by_id.concurrent_shards"),
        external_traces: s.flag("query_frontend.trace_by_id.external_enabled"),
    }
}

/// Who runs jobs.
pub(super) fn querier(s: &Settings, problems: &mut Vec<Problem>) -> Querier {
    let frontend_tls = tls::of_grpc_client(s, "querier.frontend_worker.grpc_client_config", problems);
    Querier {
        workers: query::querier::WorkerSettings {
            id: s.text("querier.frontend_worker.id").to_owned(),
            frontends: s.text("querier.frontend_worker.frontend_address").to_owned(),
            lookup_interval: s.duration("querier.frontend_worker.dns_lookup_duration"),
            concurrency: s.count("querier.max_concurrent_queries"),
            parallelism: (!s.flag("querier.frontend_worker.match_max_concurrent")).then(|| s.count("querier.frontend_worker.parallelism")),
            extra_delay: s.duration("querier.extra_query_delay"),
            max_receive_bytes: s.count("querier.frontend_worker.grpc_client_config.max_recv_msg_size"),
            max_send_bytes: s.count("querier.frontend_worker.grpc_client_config.max_send_msg_size"),
            backoff: (
                s.duration("querier.frontend_worker.grpc_client_config.backoff_config.min_period"),
                s.duration("querier.frontend_worker.grpc_client_config.backoff_config.max_period"),
            ),
        },
        frontend_tls,
        ingesters: s.text("rubato.querier.ingester_address").to_owned(),
        external_endpoint: s.text("querier.trace_by_id.external.endpoint").to_owned(),
        external_timeout: s.duration("querier.trace_by_id.external.timeout"),
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
