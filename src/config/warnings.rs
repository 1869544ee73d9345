//! Configurations that are legal and probably not what was meant.

use std::time::Duration;

use super::{Config, Settings, columns::check_columns, schema};

/// A warning and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    /// What is configured.
    pub(crate) message: String,
    /// Why that is a problem.
    pub(crate) explain: &'static str,
}

const V2_KEYS: &[&str] = &[
    "storage.trace.block.v2_index_downsample_bytes",
    "storage.trace.block.v2_index_page_size_bytes",
    "compactor.compaction.v2_in_buffer_bytes",
    "compactor.compaction.v2_out_buffer_bytes",
    "compactor.compaction.v2_prefetch_traces_count",
];

/// All warnings of a configuration, in the order of the table in Tempo's documentation.
pub(super) fn warnings(config: &Config) -> Vec<Warning> {
    let s = &config.settings;
    let poll = s.duration("storage.trace.blocklist_poll");
    let below = |path: &str, bound: Duration| s.duration(path) < bound;
    let block_version = s.text("storage.trace.block.version");
    let columns = ["storage.trace.block", "overrides.defaults.storage"]
        .map(|block| check_columns(&s.blocks(&format!("{block}.parquet_dedicated_columns"))));

    let table: [(bool, &str, &'static str); 20] = [
        (
            below("ingester.complete_block_timeout", poll),
            "ingester.complete_block_timeout < storage.trace.blocklist_poll",
            "You may receive 404s between the time the ingesters have flushed a trace and the querier is aware of the new block",
        ),
        (
            below("compactor.compaction.block_retention", poll),
            "compactor.compaction.block_retention < storage.trace.blocklist_poll",
            "Queriers and compactors may attempt to read a block that no longer exists",
        ),
        (
            s.number("compactor.compaction.retention_concurrency") == 0,
            "c.Compactor.Compactor.RetentionConcurrency must be greater than zero",
            "10 is used",
        ),
        (
            s.text("storage.trace.backend") == "s3" && s.number("compactor.compaction.v2_out_buffer_bytes") < 5_242_880,
            "compactor.compaction.v2_out_buffer_bytes < 5242880",
            "the S3 minimum size of a part is 5 MiB",
        ),
        (
            s.number("storage.trace.blocklist_poll_concurrency") == 0,
            "storage.trace.blocklist_poll_concurrency must be greater than zero",
            "50 is used",
        ),
        (
            s.flag("distributor.log_received_spans.enabled"),
            "span logging is enabled",
            "this is for debugging only and writes a line for every span",
        ),
        (
            s.flag("distributor.log_discarded_spans.enabled"),
            "logging of discarded spans is enabled",
            "this is for debugging only and writes a line for every span",
        ),
        (
            s.text("storage.trace.backend") == "local" && !config.is_single_binary(),
            "local backend will not correctly retrieve traces with a distributed deployment",
            "use an object store, or the target all",
        ),
        (s.flag("query_frontend.mcp_server.enabled"), "the MCP server is enabled", "it hands trace data to language models"),
        (columns[0].is_err(), "storage.trace.block.parquet_dedicated_columns are invalid", "they are not used"),
        (columns[1].is_err(), "overrides.defaults.storage.parquet_dedicated_columns are invalid", "they are not used"),
        (
            block_version != "v2" && V2_KEYS.iter().any(|path| s.differs(path)),
            "v2_* settings are set and the block version is not v2",
            "they have no effect",
        ),
        (
            same_location(s),
            "user-configurable overrides are stored in the same location as traces",
            "they may be deleted as an unknown tenant's data",
        ),
        (config.legacy_overrides, "the legacy, flat format of overrides is used", "write overrides.defaults.<scope>.<key> instead"),
        (
            s.flag("storage.trace.s3.native_aws_auth_enabled"),
            "storage.trace.s3.native_aws_auth_enabled is deprecated",
            "the default credential chain is used anyway",
        ),
        (!s.text("storage.trace.cache").is_empty(), "storage.trace.cache is deprecated", "configure caches in the top level block cache"),
        (
            s.number("query_frontend.trace_by_id.concurrent_shards") > s.number("query_frontend.trace_by_id.query_shards"),
            "query_frontend.trace_by_id.concurrent_shards > query_frontend.trace_by_id.query_shards",
            "there are never more concurrent shards than shards",
        ),
        (
            s.text("block_builder.block.version") != s.text("block_builder.wal.version"),
            "block_builder.block.version != block_builder.wal.version",
            "the block builder writes its blocks in the format of its WAL",
        ),
        (
            s.duration("backend_scheduler.work.prune_age") <= poll * 2,
            "backend_scheduler.work.prune_age <= 2 * storage.trace.blocklist_poll",
            "jobs may be forgotten before their blocks are known",
        ),
        (
            has_assigned_partitions(s) && s.number("block_builder.partitions_per_instance") > 0,
            "block_builder.assigned_partitions and block_builder.partitions_per_instance are both set",
            "only one of them can hold",
        ),
    ];
    let given = table.into_iter().filter(|(holds, _, _)| *holds);
    given.map(|(_, message, explain)| Warning { message: message.to_owned(), explain }).collect()
}

fn has_assigned_partitions(s: &Settings) -> bool {
    matches!(s.get("block_builder.assigned_partitions"), super::Value::Map(partitions) if !partitions.is_empty())
}

/// Whether user-configurable overrides go to where the blocks are.
fn same_location(s: &Settings) -> bool {
    let (traces, client) = ("storage.trace", "overrides.user_configurable_overrides.client");
    let backend = s.text("storage.trace.backend");
    let keys: &[&str] = match backend {
        "local" => &["path"],
        "s3" => &["endpoint", "bucket", "prefix"],
        "gcs" => &["bucket_name", "prefix"],
        "azure" => &["storage_account_name", "container_name", "prefix"],
        _ => return false,
    };
    debug_assert!(keys.iter().all(|key| schema::file().leaf(&format!("{client}.{backend}.{key}")).is_some()), "keys of {backend}");
    s.flag("overrides.user_configurable_overrides.enabled")
        && s.text(&format!("{client}.backend")) == backend
        && keys.iter().all(|key| s.text(&format!("{traces}.{backend}.{key}")) == s.text(&format!("{client}.{backend}.{key}")))
}
