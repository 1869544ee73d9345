//! The command line: Tempo's flags, in both spellings.
//!
//! `-name value`, `-name=value`, `--name value` and `--name=value` are the same; a boolean needs no value (`-name`, `-name=false`). The last occurrence
//! wins. A flag is a row of [`FLAGS`]: the key of the configuration that it sets, or one of a few that only the command line has. Written by hand because the
//! single dash before a long name is Go's custom and no argument parser's.

use std::path::PathBuf;

use crate::config::{Request, Value, parse_flag};

/// What a flag sets.
#[derive(Clone, Copy, Debug)]
enum Sets {
    /// A key of the configuration.
    Key(&'static str),
    /// A key that collects every occurrence.
    Each(&'static str),
    /// Something that only the command line has.
    Text(fn(&mut CommandLine, String)),
    /// The same, a boolean.
    Switch(fn(&mut CommandLine, bool)),
}

use Sets::{Each, Key, Switch, Text};

/// All flags: name, what it sets, and what the usage says. Defaults of keys come from the schema.
const FLAGS: &[(&str, Sets, &str)] = &[
    (
        "config.file",
        Text(|line, text| line.request.file = Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty())),
        "Configuration file to load.",
    ),
    (
        "config.expand-env",
        Switch(|line, on| line.request.expand_env = on),
        "Whether to expand environment variables in the configuration file.",
    ),
    ("config.verify", Switch(|line, on| line.verify = on), "Verify the configuration and exit; exit code 1 when there are warnings."),
    ("version", Switch(|line, on| line.version = on), "Print this build's version and exit."),
    ("health", Switch(|line, on| line.health = on), "Ask a running process whether it is ready and exit."),
    ("health.url", Text(|line, text| line.health_url = text), "The URL that -health asks (default http://localhost:3200/ready)."),
    ("mem-ballast-size-mbs", Text(|_, _| {}), "Accepted and ignored."),
    ("mutex-profile-fraction", Text(|_, _| {}), "Accepted and ignored."),
    ("block-profile-threshold", Text(|_, _| {}), "Accepted and ignored."),
    ("target", Key("target"), "Which modules to run."),
    ("auth.enabled", Key("auth_enabled"), "Deprecated: use -multitenancy.enabled."),
    ("multitenancy.enabled", Key("multitenancy_enabled"), "Whether requests name their tenant."),
    ("http-api-prefix", Key("http_api_prefix"), "Prefix of all API paths."),
    ("shutdown-delay", Key("shutdown_delay"), "How long to stay up, not ready, after a signal."),
    ("enable-go-runtime-metrics", Key("enable_go_runtime_metrics"), "Accepted and ignored."),
    ("log.level", Key("server.log_level"), "Only log messages of this level and above: debug, info, warn, error."),
    ("server.http-listen-port", Key("server.http_listen_port"), "Port of the HTTP server."),
    ("server.grpc-listen-port", Key("server.grpc_listen_port"), "Port of the gRPC server."),
    ("memberlist.host-port", Each("memberlist.join_members"), "Address of another member; may be given several times."),
    ("memberlist.bind-port", Key("memberlist.bind_port"), "Port of gossip."),
    (
        "memberlist.message-history-buffer-bytes",
        Key("memberlist.message_history_buffer_bytes"),
        "Bytes of gossip messages kept for debugging.",
    ),
    ("config.per-user-override-config", Key("overrides.per_tenant_override_config"), "File of per-tenant limits."),
    ("config.per-user-override-period", Key("overrides.per_tenant_override_period"), "How often the file of per-tenant limits is read."),
    ("distributor.rate-limit-strategy", Key("overrides.defaults.ingestion.rate_strategy"), "local or global."),
    (
        "distributor.ingestion-rate-limit-bytes",
        Key("overrides.defaults.ingestion.rate_limit_bytes"),
        "Per-tenant ingestion rate in bytes per second.",
    ),
    (
        "distributor.ingestion-burst-size-bytes",
        Key("overrides.defaults.ingestion.burst_size_bytes"),
        "Per-tenant ingestion burst in bytes.",
    ),
    ("distributor.log-received-spans.enabled", Key("distributor.log_received_spans.enabled"), "Log every received span."),
    (
        "distributor.log-received-spans.include-attributes",
        Key("distributor.log_received_spans.include_all_attributes"),
        "Log received spans with their attributes.",
    ),
    (
        "distributor.log-received-spans.filter-by-status-error",
        Key("distributor.log_received_spans.filter_by_status_error"),
        "Log only received spans with an error.",
    ),
    ("distributor.log-discarded-spans.enabled", Key("distributor.log_discarded_spans.enabled"), "Log every discarded span."),
    (
        "distributor.log-discarded-spans.include-attributes",
        Key("distributor.log_discarded_spans.include_all_attributes"),
        "Log discarded spans with their attributes.",
    ),
    (
        "distributor.log-discarded-spans.filter-by-status-error",
        Key("distributor.log_discarded_spans.filter_by_status_error"),
        "Log only discarded spans with an error.",
    ),
    ("ingester.max-traces-per-user", Key("overrides.defaults.ingestion.max_traces_per_user"), "Live traces per tenant in this process."),
    (
        "ingester.max-global-traces-per-user",
        Key("overrides.defaults.ingestion.max_global_traces_per_user"),
        "Live traces per tenant in the cluster.",
    ),
    ("ingester.max-bytes-per-trace", Key("overrides.defaults.global.max_bytes_per_trace"), "Bytes that a trace may have."),
    ("ingester.trace-idle-period", Key("ingester.trace_idle_period"), "Cut a trace after this long without a span."),
    ("ingester.max-block-duration", Key("ingester.max_block_duration"), "Cut a block when it is older."),
    ("ingester.max-block-bytes", Key("ingester.max_block_bytes"), "Cut a block when it is larger."),
    (
        "ingester.complete-block-timeout",
        Key("ingester.complete_block_timeout"),
        "Keep a block locally for this long after it was uploaded.",
    ),
    ("ingester.availability-zone", Key("ingester.lifecycler.availability_zone"), "Zone of this instance."),
    ("querier.frontend-address", Key("querier.frontend_worker.frontend_address"), "Address of the query-frontend."),
    (
        "querier.max-bytes-per-tag-values-query",
        Key("overrides.defaults.read.max_bytes_per_tag_values_query"),
        "Bytes of a tag values answer.",
    ),
    (
        "querier.max-blocks-per-tag-values-query",
        Key("overrides.defaults.read.max_blocks_per_tag_values_query"),
        "Blocks of a tag values query.",
    ),
    ("query-frontend.mcp-server.enabled", Key("query_frontend.mcp_server.enabled"), "Whether to serve MCP."),
    ("compactor.disabled", Key("compactor.disabled"), "Turn compaction off."),
    ("compactor.compaction.compaction.block-retention", Key("compactor.compaction.block_retention"), "Age at which blocks are deleted."),
    (
        "compactor.compaction.compaction.compaction-window",
        Key("compactor.compaction.compaction_window"),
        "Time window within which blocks are merged.",
    ),
    (
        "compactor.compaction.compaction.max-objects-per-block",
        Key("compactor.compaction.max_compaction_objects"),
        "Traces of a merged block.",
    ),
    ("compactor.compaction.compaction.max-block-bytes", Key("compactor.compaction.max_block_bytes"), "Bytes of a merged block."),
    (
        "metrics-generator.native-histogram-bucket-factor",
        Key("overrides.defaults.metrics_generator.native_histogram_bucket_factor"),
        "Growth of native histogram buckets.",
    ),
    (
        "metrics-generator.native-histogram-max-bucket-number",
        Key("overrides.defaults.metrics_generator.native_histogram_max_bucket_number"),
        "Buckets of a native histogram.",
    ),
    (
        "metrics-generator.native-histogram-min-reset-duration",
        Key("overrides.defaults.metrics_generator.native_histogram_min_reset_duration"),
        "Time between resets of a native histogram.",
    ),
    ("storage.trace.backend", Key("storage.trace.backend"), "local, s3, gcs or azure."),
    ("storage.trace.blocklist_poll", Key("storage.trace.blocklist_poll"), "How often the bucket is looked at."),
    ("storage.trace.wal.path", Key("storage.trace.wal.path"), "Folder of the write-ahead log."),
    ("storage.trace.pool.max-workers", Key("storage.trace.pool.max_workers"), "Workers of block reads."),
    ("storage.trace.pool.queue-depth", Key("storage.trace.pool.queue_depth"), "Queue of block reads."),
    ("storage.trace.local.path", Key("storage.trace.local.path"), "Folder of blocks."),
    ("storage.trace.s3.bucket", Key("storage.trace.s3.bucket"), "S3 bucket."),
    ("storage.trace.s3.prefix", Key("storage.trace.s3.prefix"), "S3 prefix."),
    ("storage.trace.s3.endpoint", Key("storage.trace.s3.endpoint"), "S3 endpoint."),
    ("storage.trace.s3.access_key", Key("storage.trace.s3.access_key"), "S3 access key."),
    ("storage.trace.s3.secret_key", Key("storage.trace.s3.secret_key"), "S3 secret key."),
    ("storage.trace.s3.session_token", Key("storage.trace.s3.session_token"), "S3 session token."),
    ("storage.trace.s3.tls_min_version", Key("storage.trace.s3.tls_min_version"), "Least TLS version towards S3."),
    ("storage.trace.s3.list_blocks_concurrency", Key("storage.trace.s3.list_blocks_concurrency"), "Listings at the same time."),
    ("storage.trace.s3.sse.type", Key("storage.trace.s3.sse.type"), "SSE-KMS, SSE-S3 or SSE-C."),
    ("storage.trace.s3.sse.kms-key-id", Key("storage.trace.s3.sse.kms_key_id"), "KMS key."),
    ("storage.trace.s3.sse.kms-encryption-context", Key("storage.trace.s3.sse.kms_encryption_context"), "KMS encryption context, JSON."),
    ("storage.trace.s3.sse.encryption-key", Key("storage.trace.s3.sse.encryption_key"), "SSE-C key."),
    ("storage.trace.gcs.bucket", Key("storage.trace.gcs.bucket_name"), "GCS bucket."),
    ("storage.trace.gcs.prefix", Key("storage.trace.gcs.prefix"), "GCS prefix."),
    ("storage.trace.gcs.list_blocks_concurrency", Key("storage.trace.gcs.list_blocks_concurrency"), "Listings at the same time."),
    ("storage.trace.gcs.max_retries", Key("storage.trace.gcs.max_retries"), "Retries of a GCS request."),
    ("storage.trace.azure.storage_account_name", Key("storage.trace.azure.storage_account_name"), "Azure storage account."),
    ("storage.trace.azure.storage_account_key", Key("storage.trace.azure.storage_account_key"), "Azure storage account key."),
    ("storage.trace.azure.container_name", Key("storage.trace.azure.container_name"), "Azure container."),
    ("storage.trace.azure.prefix", Key("storage.trace.azure.prefix"), "Azure prefix."),
    ("storage.trace.azure.endpoint", Key("storage.trace.azure.endpoint_suffix"), "Azure endpoint suffix."),
    ("storage.trace.azure.max_buffers", Key("storage.trace.azure.max_buffers"), "Buffers of an Azure upload."),
    (
        "storage.trace.block.v2-bloom-filter-false-positive",
        Key("storage.trace.block.bloom_filter_false_positive"),
        "Chance of a false positive of the bloom filter.",
    ),
    (
        "storage.trace.block.v2-bloom-filter-shard-size-bytes",
        Key("storage.trace.block.bloom_filter_shard_size_bytes"),
        "Bytes of a bloom filter's shard.",
    ),
    ("storage.trace.block.v2-index-downsample-bytes", Key("storage.trace.block.v2_index_downsample_bytes"), "Accepted and ignored."),
    ("storage.trace.block.v2-index-page-size-bytes", Key("storage.trace.block.v2_index_page_size_bytes"), "Accepted and ignored."),
    ("reporting.enabled", Key("usage_report.reporting_enabled"), "Accepted and ignored: nothing is ever reported."),
];

/// What was typed.
#[derive(Debug, Default)]
pub(crate) struct CommandLine {
    /// The configuration to load.
    pub(crate) request: Request,
    /// Check the configuration and exit.
    pub(crate) verify: bool,
    /// Print the version and exit.
    pub(crate) version: bool,
    /// Ask a running process and exit.
    pub(crate) health: bool,
    /// What to ask; empty means the default.
    pub(crate) health_url: String,
    /// Print the usage and exit.
    pub(crate) help: bool,
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// The message that goes before the usage.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<CommandLine, String> {
    let mut line = CommandLine::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
            return Err(format!("unexpected argument: {argument}"));
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        if name.is_empty() || name.starts_with('-') {
            return Err(format!("bad flag syntax: {argument}"));
        }
        if matches!(name, "h" | "help") {
            line.help = true;
            continue;
        }
        let Some((name, sets, _)) = FLAGS.iter().find(|(known, _, _)| *known == name) else {
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let value = match value {
            Some(value) => value,
            None if is_switch(*sets) => "true".to_owned(),
            None => arguments.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        apply(&mut line, *sets, &value).map_err(|why| format!("invalid value \"{value}\" for flag -{name}: {why}"))?;
    }
    Ok(line)
}

fn is_switch(sets: Sets) -> bool {
    match sets {
        Switch(_) => true,
        Key(path) => crate::config::is_bool(path),
        Each(_) | Text(_) => false,
    }
}

fn apply(line: &mut CommandLine, sets: Sets, text: &str) -> Result<(), String> {
    match sets {
        Text(set) => set(line, text.to_owned()),
        Switch(set) => set(line, boolean(text)?),
        Key(path) if crate::config::is_bool(path) => line.request.flags.push((path, Value::Bool(boolean(text)?))),
        Key(path) => line.request.flags.push((path, parse_flag(path, text)?)),
        Each(path) => {
            let value = Value::Text(text.to_owned());
            match line.request.flags.iter_mut().find(|(known, _)| *known == path) {
                Some((_, Value::List(values))) => values.push(value),
                _ => line.request.flags.push((path, Value::List(vec![value]))),
            }
        }
    }
    Ok(())
}

/// A boolean as Go's flag package reads it.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("parse error".to_owned()),
    }
}

/// The text of `-help`.
pub(crate) fn usage() -> String {
    let mut out = String::from(
        "Usage of rubato:\n  rubato [flags]              run (without flags: all targets on this machine, data below ./rubato-data)\n  rubato load [options]       generate load and check it\n  rubato blocks [options]     look at blocks, check them, convert them\n  rubato trace [options]      show a trace from a bucket\n  rubato query [options]      ask a running server\n\nFlags:\n",
    );
    let mut rows: Vec<_> = FLAGS.iter().collect();
    rows.sort_by_key(|(name, _, _)| *name);
    for (name, sets, help) in rows {
        let default = match sets {
            Key(path) => crate::config::default_text(path),
            Each(_) | Text(_) | Switch(_) => String::new(),
        };
        let value = if is_switch(*sets) { "" } else { " value" };
        let default = if default.is_empty() || default == "false" { String::new() } else { format!(" (default {default})") };
        out.push_str(&format!("  -{name}{value}\n    \t{help}{default}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn run(arguments: &[&str]) -> Result<CommandLine, String> {
        parse(arguments.iter().map(ToString::to_string))
    }

    #[test]
    fn both_spellings_and_the_last_wins() {
        for arguments in [
            ["-target=distributor", "-target=all", "-config.expand-env", "-server.http-listen-port=1234"].as_slice(),
            &["--target", "all", "--config.expand-env=true", "--server.http-listen-port", "0x4d2"],
            &[
                "-target",
                "all",
                "-config.expand-env=false",
                "-config.expand-env",
                "-server.http-listen-port=99",
                "--server.http-listen-port=1234",
            ],
        ] {
            let line = run(arguments).expect("the flags exist");
            assert!(line.request.expand_env);
            let config = config::load(&line.request, &|_| None).expect("the values are right");
            assert_eq!((config.target.as_str(), config.server.http_endpoint.as_str()), ("all", "127.0.0.1:1234"), "{arguments:?}");
        }
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        for (name, sets, _) in FLAGS {
            let value = match sets {
                Key(path) => config::default_text(path),
                _ => "true".to_owned(),
            };
            run(&[&format!("-{name}={value}")]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(
            usage().contains("-storage.trace.blocklist_poll value\n    \tHow often the bucket is looked at. (default 5m0s)\n"),
            "{}",
            usage()
        );
    }

    #[test]
    fn typed_values() {
        let line = run(&[
            "-multitenancy.enabled",
            "-shutdown-delay=5s",
            "-memberlist.host-port=a:1",
            "--memberlist.host-port",
            "b:2",
            "-distributor.ingestion-rate-limit-bytes=7",
            "-config.per-user-override-period=1m",
            "-log.level=debug",
        ]);
        let config = config::load(&line.expect("the flags exist").request, &|_| None).expect("the values are right");
        assert!(config.multitenancy);
        assert_eq!(config.shutdown_delay.as_secs(), 5);
        assert_eq!(config.settings.strings("memberlist.join_members"), ["a:1", "b:2"]);
        assert_eq!(config.overrides.defaults.rate_limit_bytes, 7);
        assert_eq!(config.overrides.period.as_secs(), 60);
        assert_eq!(config.server.log_level, "debug");
    }

    #[test]
    fn mistakes() {
        for (arguments, expected) in [
            (["-nope"].as_slice(), "flag provided but not defined: -nope"),
            (&["-target"], "flag needs an argument: -target"),
            (&["-version=maybe"], "invalid value \"maybe\" for flag -version: parse error"),
            (&["-server.http-listen-port=x"], "invalid value \"x\" for flag -server.http-listen-port: cannot unmarshal !!str `x` into int"),
            (
                &["-log.level=loud"],
                "invalid value \"loud\" for flag -log.level: unrecognized log level \"loud\" (one of debug, info, warn, error)",
            ),
            (&["stray"], "unexpected argument: stray"),
            (&["---target=all"], "bad flag syntax: ---target=all"),
            (&["-"], "unexpected argument: -"),
        ] {
            assert_eq!(run(arguments).expect_err("wrong"), expected);
        }
    }

    #[test]
    fn switches_of_the_command_line() {
        let line = run(&["-version", "-config.verify", "-config.file=/x", "-config.file=/y"]).expect("the flags exist");
        assert!(line.version && line.verify && !line.help);
        assert_eq!(line.request.file, Some(PathBuf::from("/y")));
        assert!(run(&["--help"]).expect("known").help);
    }
}
