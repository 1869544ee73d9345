//! The limits of a tenant, in their scoped form. The flat form is derived: [`legacy_name`].

use super::{
    Kind, Row, bool_map, boolean,
    common::COLUMN,
    duration, float, floats,
    generator::{DIMENSION_MAPPING, FILTER_POLICY},
    int, list, opt_bool, opt_duration, prom, row, strings, text, text_map, uint,
};

/// `overrides.defaults`, and a tenant's entry in the per-tenant file.
pub(super) const LIMITS: &[Row] = &[
    text("ingestion.rate_strategy", "local").used(),
    int("ingestion.rate_limit_bytes", "15000000").used(),
    int("ingestion.burst_size_bytes", "20000000").used(),
    int("ingestion.max_traces_per_user", "10000").used(),
    int("ingestion.max_global_traces_per_user", "0").used(),
    int("ingestion.tenant_shard_size", "0").used(),
    int("ingestion.max_attribute_bytes", "0").used(),
    opt_duration("ingestion.artificial_delay", ""),
    boolean("ingestion.retry_info_enabled", "true").used(),
    int("read.max_bytes_per_tag_values_query", "1000000").used(),
    int("read.max_blocks_per_tag_values_query", "0").used(),
    prom("read.max_search_duration", "0s").used(),
    prom("read.max_metrics_duration", "0s").used(),
    boolean("read.unsafe_query_hints", "false"),
    boolean("read.left_pad_trace_ids", "false").used(),
    row("read.metrics_spanonly_fetch", Kind::OptionalBool, "").tempo3(),
    int("read.max_condition_groups_per_tag_query", "100").used(),
    prom("compaction.block_retention", "0s").used(),
    prom("compaction.compaction_window", "0s").used(),
    boolean("compaction.compaction_disabled", "false").used(),
    int("metrics_generator.ring_size", "0"),
    strings("metrics_generator.processors", "").used(),
    uint("metrics_generator.max_active_series", "0").used(),
    uint("metrics_generator.max_active_entities", "0").used(),
    uint("metrics_generator.max_cardinality_per_label", "0").used(),
    duration("metrics_generator.collection_interval", "0s").used(),
    boolean("metrics_generator.disable_collection", "false").used(),
    text("metrics_generator.generate_native_histograms", "classic").used(),
    text("metrics_generator.trace_id_label_name", "").used(),
    text("metrics_generator.span_name_sanitization", "").used(),
    text_map("metrics_generator.remote_write_headers", "").used(),
    int("metrics_generator.forwarder.queue_size", "0"),
    int("metrics_generator.forwarder.workers", "0"),
    floats("metrics_generator.processor.service_graphs.histogram_buckets", "").used(),
    strings("metrics_generator.processor.service_graphs.dimensions", "").used(),
    strings("metrics_generator.processor.service_graphs.peer_attributes", "").used(),
    opt_bool("metrics_generator.processor.service_graphs.enable_client_server_prefix", "").used(),
    opt_bool("metrics_generator.processor.service_graphs.enable_messaging_system_latency_histogram", "").used(),
    opt_bool("metrics_generator.processor.service_graphs.enable_virtual_node_label", "").used(),
    text("metrics_generator.processor.service_graphs.span_multiplier_key", "").used(),
    list("metrics_generator.processor.service_graphs.filter_policies", FILTER_POLICY).used(),
    opt_bool("metrics_generator.processor.service_graphs.enable_tracestate_span_multiplier", "").used(),
    floats("metrics_generator.processor.span_metrics.histogram_buckets", "").used(),
    strings("metrics_generator.processor.span_metrics.dimensions", "").used(),
    bool_map("metrics_generator.processor.span_metrics.intrinsic_dimensions", "").used(),
    list("metrics_generator.processor.span_metrics.filter_policies", FILTER_POLICY).used(),
    list("metrics_generator.processor.span_metrics.dimension_mappings", DIMENSION_MAPPING).used(),
    opt_bool("metrics_generator.processor.span_metrics.enable_target_info", "").used(),
    strings("metrics_generator.processor.span_metrics.target_info_excluded_dimensions", "").used(),
    opt_bool("metrics_generator.processor.span_metrics.enable_instance_label", "").used(),
    text("metrics_generator.processor.span_metrics.span_multiplier_key", "").used(),
    opt_bool("metrics_generator.processor.span_metrics.enable_tracestate_span_multiplier", "").used(),
    uint("metrics_generator.processor.local_blocks.max_live_traces", "0"),
    duration("metrics_generator.processor.local_blocks.max_block_duration", "0s"),
    uint("metrics_generator.processor.local_blocks.max_block_bytes", "0"),
    duration("metrics_generator.processor.local_blocks.flush_check_period", "0s"),
    duration("metrics_generator.processor.local_blocks.trace_idle_period", "0s"),
    duration("metrics_generator.processor.local_blocks.complete_block_timeout", "0s"),
    strings("metrics_generator.processor.host_info.host_identifiers", "").used(),
    text("metrics_generator.processor.host_info.metric_name", "").used(),
    duration("metrics_generator.ingestion_time_range_slack", "0s").used(),
    float("metrics_generator.native_histogram_bucket_factor", "1.1").used(),
    uint("metrics_generator.native_histogram_max_bucket_number", "100").used(),
    duration("metrics_generator.native_histogram_min_reset_duration", "15m"),
    strings("forwarders", ""),
    int("global.max_bytes_per_trace", "5000000").used(),
    list("storage.parquet_dedicated_columns", COLUMN),
    uint("cost_attribution.max_cardinality", "0").used(),
    text_map("cost_attribution.dimensions", "").used(),
];

/// Whether a limit is one that tenants may set for themselves.
pub(super) fn is_of_users(path: &str) -> bool {
    const OWN: &[&str] = &[
        "forwarders",
        "cost_attribution.dimensions",
        "metrics_generator.processors",
        "metrics_generator.collection_interval",
        "metrics_generator.disable_collection",
        "metrics_generator.generate_native_histograms",
        "metrics_generator.trace_id_label_name",
        "metrics_generator.span_name_sanitization",
        "metrics_generator.ingestion_time_range_slack",
        "metrics_generator.native_histogram_bucket_factor",
        "metrics_generator.native_histogram_max_bucket_number",
        "metrics_generator.native_histogram_min_reset_duration",
    ];
    const BLOCKS: &[&str] = &["service_graphs.", "span_metrics.", "host_info."];
    let processor = path.strip_prefix("metrics_generator.processor.");
    OWN.contains(&path) || processor.is_some_and(|key| BLOCKS.iter().any(|block| key.starts_with(block)))
}

/// The flat name of a scoped path. Paths that are the same in both forms are returned as they are.
pub(crate) fn legacy_name(path: &str) -> String {
    if path.starts_with("cost_attribution.") || path == "forwarders" {
        return path.to_owned();
    }
    match path.split_once('.') {
        Some(("ingestion", rest @ ("max_traces_per_user" | "max_global_traces_per_user"))) => rest.to_owned(),
        Some(("ingestion", rest)) => format!("ingestion_{rest}"),
        Some(("metrics_generator", rest)) => format!("metrics_generator_{}", rest.replace('.', "_")),
        Some(("read" | "compaction" | "global" | "storage", rest)) => rest.to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::legacy_name;

    #[test]
    fn flat_names() {
        for (scoped, flat) in [
            ("ingestion.rate_limit_bytes", "ingestion_rate_limit_bytes"),
            ("ingestion.max_traces_per_user", "max_traces_per_user"),
            ("global.max_bytes_per_trace", "max_bytes_per_trace"),
            ("read.unsafe_query_hints", "unsafe_query_hints"),
            ("compaction.block_retention", "block_retention"),
            ("storage.parquet_dedicated_columns", "parquet_dedicated_columns"),
            ("metrics_generator.forwarder.queue_size", "metrics_generator_forwarder_queue_size"),
            ("metrics_generator.processor.span_metrics.dimensions", "metrics_generator_processor_span_metrics_dimensions"),
            ("cost_attribution.dimensions", "cost_attribution.dimensions"),
            ("forwarders", "forwarders"),
        ] {
            assert_eq!(legacy_name(scoped), flat);
        }
    }
}
