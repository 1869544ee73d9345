//! The metrics that dashboards and alerts of Tempo's mixin select: which of our roles show them, and why some are nobody's.

use std::{collections::BTreeSet, fs, path::Path};

/// Where somebody who looks at dashboards expects a metric: its name, and the roles that show it once they have work.
pub(super) const SHOWN: &[(&str, &[&str])] = &[
    ("tempo_request_duration_seconds", EVERYBODY),
    ("tempo_request_message_bytes", EVERYBODY),
    ("tempo_response_message_bytes", EVERYBODY),
    ("tempo_inflight_requests", EVERYBODY),
    ("tempo_tcp_connections", EVERYBODY),
    ("tempo_tcp_connections_limit", EVERYBODY),
    ("tempo_build_info", EVERYBODY),
    ("tempo_limits_defaults", EVERYBODY),
    ("process_cpu_seconds_total", EVERYBODY),
    ("process_resident_memory_bytes", EVERYBODY),
    ("process_open_fds", EVERYBODY),
    ("process_start_time_seconds", EVERYBODY),
    ("go_memstats_heap_inuse_bytes", EVERYBODY),
    ("tempo_runtime_config_last_reload_successful", EVERYBODY),
    ("tempo_runtime_config_hash", EVERYBODY),
    ("tempo_receiver_accepted_spans", &["distributor"]),
    ("tempo_distributor_push_duration_seconds", &["distributor"]),
    ("tempo_distributor_ingress_bytes_total", &["distributor"]),
    ("tempo_distributor_bytes_received_total", &["distributor"]),
    ("tempo_distributor_spans_received_total", &["distributor"]),
    ("tempo_distributor_traces_per_batch", &["distributor"]),
    ("tempo_distributor_ingester_appends_total", &["distributor"]),
    ("tempo_distributor_ingester_append_failures_total", &["distributor"]),
    ("tempo_distributor_ingester_clients", &["distributor"]),
    ("tempo_ingester_live_traces", &["ingester"]),
    ("tempo_ingester_live_trace_bytes", &["ingester"]),
    ("tempo_ingester_traces_created_total", &["ingester"]),
    ("tempo_ingester_bytes_received_total", &["ingester"]),
    ("tempo_ingester_blocks_flushed_total", &["ingester"]),
    ("tempo_ingester_blocks_cleared_total", &["ingester"]),
    ("tempo_ingester_failed_flushes_total", &["ingester"]),
    ("tempo_ingester_flush_failed_retries_total", &["ingester"]),
    ("tempo_ingester_flush_retries_total", &["ingester"]),
    ("tempo_ingester_flush_duration_seconds", &["ingester"]),
    ("tempo_ingester_flush_size_bytes", &["ingester"]),
    ("tempo_ingester_flush_queue_length", &["ingester"]),
    ("tempo_ingester_replay_errors_total", &["ingester"]),
    ("tempo_ring_members", &["distributor", "ingester", "querier", "compactor", "metrics-generator"]),
    ("tempo_ring_tokens_total", &["distributor", "ingester", "querier", "compactor", "metrics-generator"]),
    ("tempo_memberlist_client_cluster_members_count", &["distributor", "ingester", "querier", "compactor", "metrics-generator"]),
    ("tempo_memberlist_client_cluster_node_health_score", &["distributor", "ingester", "querier", "compactor", "metrics-generator"]),
    ("tempo_memberlist_client_kv_store_count", &["distributor", "ingester", "querier", "compactor", "metrics-generator"]),
    ("tempo_memcache_request_duration_seconds", &["querier"]),
    ("tempo_cache_background_queue_length", &["querier"]),
    ("tempodb_backend_request_duration_seconds", &["ingester", "querier", "query-frontend", "compactor"]),
    ("tempodb_backend_hedged_roundtrips_total", &["ingester", "querier", "query-frontend", "compactor"]),
    ("tempodb_blocklist_poll_duration_seconds", &["query-frontend", "compactor"]),
    ("tempodb_compaction_errors_total", &["compactor"]),
    ("tempodb_retention_duration_seconds", &["compactor"]),
    ("tempodb_retention_marked_for_deletion_total", &["compactor"]),
    ("tempodb_retention_deleted_total", &["compactor"]),
    ("tempodb_retention_errors_total", &["compactor"]),
    ("tempo_query_frontend_queries_total", &["query-frontend"]),
    ("tempo_query_frontend_queries_within_slo_total", &["query-frontend"]),
    ("tempo_query_frontend_bytes_inspected_total", &["query-frontend"]),
    ("tempo_query_frontend_queue_length", &["query-frontend"]),
    ("tempo_query_frontend_queue_duration_seconds", &["query-frontend"]),
    ("tempo_query_frontend_connected_clients", &["query-frontend"]),
    ("tempo_query_frontend_retries", &["query-frontend"]),
    ("tempo_query_frontend_actual_batch_size", &["query-frontend"]),
    ("tempo_querier_worker_request_executed_total", &["querier"]),
    ("tempo_metrics_generator_registry_active_series", &["metrics-generator"]),
    // Spans are looked at where they are.
    ("tempo_metrics_generator_active_processors", &["ingester"]),
    ("prometheus_remote_storage_samples_total", &["metrics-generator"]),
];

const EVERYBODY: &[&str] = &["ingester", "metrics-generator", "distributor", "query-frontend", "querier", "compactor"];

/// Those that have no series before something happens that a young cluster does without: refusals, failures, settings of tenants, a poll of the bucket
/// that finds a block, work for the compactor.
const LATER: &[&str] = &[
    "tempo_receiver_refused_spans",
    "tempo_distributor_attributes_truncated_total",
    "tempo_discarded_spans_total",
    "tempo_limits_overrides",
    "tempo_overrides_user_configurable_overrides_reload_failed_total",
    "tempodb_blocklist_poll_errors_total",
    "tempodb_blocklist_tenant_index_errors_total",
    "tempodb_blocklist_tenant_index_age_seconds",
    "tempo_cache_dropped_background_writes_total",
    "tempodb_blocklist_length",
    "tempodb_blocklist_tenant_index_builder",
    "tempodb_compaction_outstanding_blocks",
    "tempodb_compaction_blocks_total",
    "tempodb_compaction_bytes_written_total",
    "tempodb_compaction_objects_written_total",
    "tempodb_compaction_objects_combined_total",
    "tempo_query_frontend_discarded_requests_total",
    "tempo_metrics_generator_spans_received_total",
    "tempo_metrics_generator_bytes_received_total",
    "tempo_metrics_generator_spans_discarded_total",
];

/// Those that nobody has, and why.
const ABSENT: &[(&str, &str)] = &[
    ("tempo_distributor_metrics_generator_pushes_total", "generators take part in the dataflow, nothing is pushed to them"),
    ("tempo_distributor_metrics_generator_pushes_failures_total", "as above"),
    ("tempo_distributor_queue_length", "there are no forwarders"),
    ("tempo_distributor_queue_pushes_total", "as above"),
    ("tempo_distributor_queue_pushes_failures_total", "as above"),
    ("tempo_warnings_total", "what it counts is never looked for when blocks are written"),
    ("tempodb_work_queue_length", "jobs of a query wait at the frontend and nowhere else"),
    ("tempodb_work_queue_max", "as above"),
    ("go_goroutines", "there is no Go"),
    ("go_gc_duration_seconds_count", "as above"),
];

/// The names in a row of the list, of which those after the first may be short: `a_b, _c, _d (`a_…`)` are `a_b`, `a_c`, `a_d`, and `a_b_c, _x_c` are
/// `a_b_c`, `a_x_c`.
fn names(cell: &str) -> Vec<String> {
    let (cell, remark) = cell.split_once(" (").unwrap_or((cell, ""));
    let prefix = remark.strip_prefix('`').and_then(|rest| rest.split_once('…')).map(|(prefix, _)| prefix.trim_end_matches('_'));
    // Labels have commas, too.
    let mut depth = 0;
    let is_outside = |c: &char| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0 && *c != '}'
    };
    let outside: String = cell.chars().filter(is_outside).collect();
    let mut names: Vec<String> = Vec::new();
    for word in outside.split([',', ';', ' ']).map(str::trim).filter(|word| !word.is_empty()) {
        let Some(short) = word.strip_prefix('_') else {
            names.push(word.to_owned());
            continue;
        };
        let whole: Vec<&str> = names.last().expect("a short name has a long one before it").split('_').collect();
        let kept = whole.len().saturating_sub(short.split('_').count());
        let prefix = prefix.map_or_else(|| whole[..kept].join("_"), str::to_owned);
        names.push(format!("{prefix}_{short}"));
    }
    names
}

/// The names of the list in `config.md` §9; none where the shared folder is not there.
fn listed() -> Option<BTreeSet<String>> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/spec/config.md"));
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    let text = fs::read_to_string(path).expect("text");
    let section = text.split_once("\n## 9. ").expect("it has the section").1.split_once("\n### ").expect("it has an end").0;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let rows = rows.filter(|(number, _)| number.parse::<u32>().is_ok());
    Some(rows.flat_map(|(_, row)| names(row.split(" | ").next().expect("a cell"))).collect())
}

#[test]
fn every_metric_of_the_mixin_has_a_place_here() {
    assert_eq!(names("a_b_total, _c (`a_…`)"), ["a_b_total", "a_c"]);
    assert_eq!(names("a_b_c, _x_c"), ["a_b_c", "a_x_c"]);
    assert_eq!(names("a{x,y}, b_c; d (and more)"), ["a", "b_c", "d"]);
    let Some(listed) = listed() else { return };
    assert!(listed.len() > 80, "{listed:?}");
    let shown = SHOWN.iter().map(|(name, _)| *name);
    let known: BTreeSet<&str> = shown.chain(LATER.iter().copied()).chain(ABSENT.iter().map(|(name, _)| *name)).collect();
    let patterns = ["process_*", "prometheus_remote_storage_*"];
    let unknown: Vec<&String> = listed.iter().filter(|name| !known.contains(name.as_str()) && !patterns.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn what_comes_later_is_registered_and_what_is_absent_is_not() {
    let text = super::monitoring::all_sources();
    for name in LATER {
        assert!(text.contains(&format!("\"{name}\"")), "{name}");
    }
    for (name, why) in ABSENT {
        assert!(!text.contains(&format!("\"{name}\"")), "{name} is there, and nobody says that {why}");
    }
}

/// What a role should show and does not, in the text that it exposes.
pub(super) fn missing(role: &str, exposed: &str) -> Vec<&'static str> {
    let owned = SHOWN.iter().filter(|(_, roles)| roles.contains(&role)).map(|(name, _)| *name);
    let has = |name: &str| {
        let series = exposed.lines().filter_map(|line| line.strip_prefix(name));
        series.into_iter().any(|rest| ["{", " ", "_bucket{", "_count{", "_count "].iter().any(|end| rest.starts_with(end)))
    };
    owned.filter(|name| !has(name)).collect()
}
