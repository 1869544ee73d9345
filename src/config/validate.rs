//! What no single key's kind can say: numbers that must not be zero, ports, words of a list.

use super::{Problem, Settings, cache};

/// Adds what is wrong.
pub(super) fn validate(s: &Settings, problems: &mut Vec<Problem>) {
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
