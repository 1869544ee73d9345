//! The limits of one tenant, from either spelling.
//!
//! ```text
//!  overrides.defaults, or flat keys below overrides ──► Limits (absent key = its default)
//!  a tenant's entry in the per-tenant file          ──► Limits (absent key = zero: an entry replaces all defaults)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    columns::{DedicatedColumn, check_columns, columns},
    document::Problem,
    generator::{self, Generator, OfTenant, TenantGenerator},
    remote_write,
    scalar::{Value, zero},
    schema::{Status, join, limit_paths},
    settings::{Settings, blocks, positive_duration, strings, texts, unsigned},
};

/// The limits of a tenant. 0 is unlimited or off unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Refill of the token bucket, bytes/s. 0 refuses everything.
    pub(crate) rate_limit_bytes: u64,
    /// Capacity of the token bucket. 0 refuses everything.
    pub(crate) burst_size_bytes: u64,
    /// Live traces in this process.
    pub(crate) max_traces_per_user: u64,
    /// Live traces in the cluster.
    pub(crate) max_global_traces_per_user: u64,
    /// Instances per tenant.
    pub(crate) tenant_shard_size: u64,
    /// Attribute keys and string values are cut to this; 0 means `distributor.max_attribute_bytes`.
    pub(crate) max_attribute_bytes: u64,
    /// Delay added to every push.
    pub(crate) artificial_delay: Option<Duration>,
    /// Whether refusals carry a retry hint.
    pub(crate) retry_info_enabled: bool,
    /// Bytes of a tags or values answer.
    pub(crate) max_bytes_per_tag_values_query: u64,
    /// Blocks that a values query over recent data may look into.
    pub(crate) max_blocks_per_tag_values_query: u64,
    /// Longest time range of a search; 0 means the frontend's.
    pub(crate) max_search_duration: Duration,
    /// Longest time range of a metrics query; 0 means the frontend's.
    pub(crate) max_metrics_duration: Duration,
    /// Whether searches show trace ids with all their digits.
    pub(crate) left_pad_trace_ids: bool,
    /// Whether hints that can hurt are allowed in queries.
    pub(crate) unsafe_query_hints: bool,
    /// Age at which blocks are deleted; 0 means the compactor's.
    pub(crate) block_retention: Duration,
    /// Time window within which blocks are merged; 0 means the compactor's.
    pub(crate) compaction_window: Duration,
    /// No compaction for this tenant.
    pub(crate) compaction_disabled: bool,
    /// Bytes that a trace may have.
    pub(crate) max_bytes_per_trace: u64,
    /// Columns of this tenant's blocks; empty means the block's.
    pub(crate) dedicated_columns: Vec<DedicatedColumn>,
    /// Processors of the metrics-generator.
    pub(crate) processors: Vec<String>,
    /// Series of the metrics-generator.
    pub(crate) max_active_series: u64,
    /// Nothing is collected for this tenant.
    pub(crate) disable_collection: bool,
    /// What the tenant's bytes are attributed to.
    pub(crate) cost_attribution: Option<Arc<ingest::CostAttribution>>,
    /// Names of forwarders.
    pub(crate) forwarders: Vec<String>,
    /// What is generated, collected and sent.
    pub(crate) generator: TenantGenerator,
}

/// Keys that fall back to their default when a tenant's entry leaves them out.
const NEVER_ZERO: &[&str] = &[
    "metrics_generator.native_histogram_bucket_factor",
    "metrics_generator.native_histogram_max_bucket_number",
    "metrics_generator.native_histogram_min_reset_duration",
];

const PROCESSORS: &[&str] =
    &["service-graphs", "span-metrics", "span-metrics-count", "span-metrics-latency", "span-metrics-size", "local-blocks", "host-info"];

impl Limits {
    /// The limits below `prefix` of the configuration file.
    pub(crate) fn defaults(settings: &Settings, generator: &Generator) -> Self {
        let path = |path: &str| join("overrides.defaults", path);
        Self::read(&|key| settings.get(&path(key)).clone(), &|key| settings.written(&path(key)).cloned(), generator)
    }

    /// The limits of a tenant's entry.
    pub(crate) fn entry(entry: &Settings, generator: &Generator) -> Self {
        Self::read(&|path| of_entry(entry, path), &|path| entry.written(path).cloned(), generator)
    }

    /// The limits of a tenant that has set some for itself: those go before what its entry says, or else the defaults of `file`. Processors that
    /// any of them names run.
    pub(crate) fn of_user(user: &Settings, entry: Option<&Settings>, file: &Settings, generator: &Generator) -> Self {
        Self::read(&|path| of_user(user, entry, file, path), &|path| written_for_user(user, entry, file, path), generator)
    }

    fn read(get: &dyn Fn(&str) -> Value, written: &dyn Fn(&str) -> Option<Value>, generator: &Generator) -> Self {
        let number = |path: &str| unsigned(&get(path));
        let duration = |path: &str| positive_duration(&get(path));
        let flag = |path: &str| matches!(get(path), Value::Bool(true));
        Self {
            rate_limit_bytes: number("ingestion.rate_limit_bytes"),
            burst_size_bytes: number("ingestion.burst_size_bytes"),
            max_traces_per_user: number("ingestion.max_traces_per_user"),
            max_global_traces_per_user: number("ingestion.max_global_traces_per_user"),
            tenant_shard_size: number("ingestion.tenant_shard_size"),
            max_attribute_bytes: number("ingestion.max_attribute_bytes"),
            artificial_delay: Some(get("ingestion.artificial_delay"))
                .filter(|value| *value != Value::Null)
                .map(|value| positive_duration(&value)),
            retry_info_enabled: flag("ingestion.retry_info_enabled"),
            max_bytes_per_tag_values_query: number("read.max_bytes_per_tag_values_query"),
            max_blocks_per_tag_values_query: number("read.max_blocks_per_tag_values_query"),
            max_search_duration: duration("read.max_search_duration"),
            max_metrics_duration: duration("read.max_metrics_duration"),
            left_pad_trace_ids: flag("read.left_pad_trace_ids"),
            unsafe_query_hints: flag("read.unsafe_query_hints"),
            block_retention: duration("compaction.block_retention"),
            compaction_window: duration("compaction.compaction_window"),
            compaction_disabled: flag("compaction.compaction_disabled"),
            max_bytes_per_trace: number("global.max_bytes_per_trace"),
            dedicated_columns: columns(&blocks(&get("storage.parquet_dedicated_columns"))),
            processors: strings(&get("metrics_generator.processors")),
            max_active_series: number("metrics_generator.max_active_series"),
            disable_collection: flag("metrics_generator.disable_collection"),
            cost_attribution: cost_attribution(number("cost_attribution.max_cardinality"), &texts(&get("cost_attribution.dimensions"))),
            forwarders: strings(&get("forwarders")),
            generator: generator.of_tenant(&OfTenant {
                get: &|key| get(&join("metrics_generator", key)),
                written: &|key| written(&join("metrics_generator", key)),
            }),
        }
    }

    /// The pairs of `tempo_limits_defaults` and `tempo_limits_overrides`.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(crate) fn gauges(&self) -> [(&'static str, f64); 9] {
        [
            ("max_local_traces_per_user", self.max_traces_per_user as f64),
            ("max_global_traces_per_user", self.max_global_traces_per_user as f64),
            ("max_bytes_per_trace", self.max_bytes_per_trace as f64),
            ("max_bytes_per_tag_values_query", self.max_bytes_per_tag_values_query as f64),
            ("max_blocks_per_tag_values_query", self.max_blocks_per_tag_values_query as f64),
            ("ingestion_rate_limit_bytes", self.rate_limit_bytes as f64),
            ("ingestion_burst_size_bytes", self.burst_size_bytes as f64),
            ("block_retention", self.block_retention.as_nanos() as f64),
            ("metrics_generator_max_active_series", self.max_active_series as f64),
        ]
    }
}

/// What a tenant's entry says of a key, which replaces all defaults.
fn of_entry(entry: &Settings, path: &str) -> Value {
    match entry.written(path) {
        Some(value) => value.clone(),
        None if NEVER_ZERO.contains(&path) => entry.get(path).clone(),
        None => entry.schema().leaf(path).map_or(Value::Null, |leaf| zero(leaf.kind)),
    }
}

/// What holds of a key for a tenant that has set some for itself.
pub(super) fn of_user(user: &Settings, entry: Option<&Settings>, file: &Settings, path: &str) -> Value {
    let runtime = match entry {
        Some(entry) => of_entry(entry, path),
        None => file.get(&join("overrides.defaults", path)).clone(),
    };
    match (user.written(path), runtime) {
        (Some(own), runtime) if path == "metrics_generator.processors" => {
            let all: BTreeSet<String> = strings(own).into_iter().chain(strings(&runtime)).collect();
            Value::List(all.into_iter().map(Value::Text).collect())
        }
        (Some(own), _) => own.clone(),
        (None, runtime) => runtime,
    }
}

/// The same, if anybody wrote it.
fn written_for_user(user: &Settings, entry: Option<&Settings>, file: &Settings, path: &str) -> Option<Value> {
    let runtime = match entry {
        Some(entry) => entry.written(path).cloned(),
        None => file.written(&join("overrides.defaults", path)).cloned(),
    };
    if user.written(path).is_some() { Some(of_user(user, entry, file, path)) } else { runtime }
}

/// Moves what is written in the flat spelling below `flat` to the scoped one below `scoped`; says whether there was any.
/// Mixing both spellings is a problem.
pub(crate) fn translate_legacy(settings: &mut Settings, flat: &str, scoped: &str, problems: &mut Vec<Problem>) -> bool {
    let moves: Vec<(String, String)> = limit_paths()
        .iter()
        .map(|(path, name)| (join(flat, name), join(scoped, path)))
        .filter(|(from, _)| {
            settings.written(from).is_some() && settings.schema().leaf(from).is_some_and(|leaf| leaf.status == Status::Legacy)
        })
        .collect();
    if moves.is_empty() {
        return false;
    }
    let neutral: BTreeSet<String> = limit_paths().iter().filter(|(path, name)| path == name).map(|(path, _)| join(scoped, path)).collect();
    let mixed =
        limit_paths().iter().map(|(path, _)| join(scoped, path)).find(|path| settings.written(path).is_some() && !neutral.contains(path));
    if let (Some(mixed), Some((from, to))) = (mixed, moves.first()) {
        let text = format!("field {from} of the legacy overrides format cannot stand beside {mixed}: write {to}");
        problems.push(Problem::new(settings.line(from), text));
    }
    for (from, to) in moves {
        if let Some((value, line)) = settings.unset(&from) {
            settings.set(&to, value, line);
        }
    }
    true
}

/// What is wrong with limits, by full key. `prefix` is where they stand.
pub(crate) fn validate(settings: &Settings, prefix: &str, name: &str, problems: &mut Vec<Problem>) {
    let mut problem = |path: &str, text: String| {
        problems.push(Problem::new(settings.line(&join(prefix, path)), format!("{}: {text}", join(name, path))));
    };
    let get = |path: &str| settings.get(&join(prefix, path));
    let mode = settings.text(&join(prefix, "metrics_generator.generate_native_histograms"));
    if !matches!(mode, "" | "classic" | "native" | "both") {
        problem("metrics_generator.generate_native_histograms", format!("\"{mode}\" is not one of classic, native, both"));
    }
    let mode = settings.text(&join(prefix, "metrics_generator.span_name_sanitization"));
    if !matches!(mode, "" | "dry_run" | "enabled") {
        problem("metrics_generator.span_name_sanitization", format!("\"{mode}\" is not one of dry_run, enabled"));
    }
    let factor = settings.float(&join(prefix, "metrics_generator.native_histogram_bucket_factor"));
    if factor != 0.0 && factor <= 1.0 {
        problem("metrics_generator.native_histogram_bucket_factor", format!("{factor} is not greater than 1"));
    }
    for (key, why) in generator::checks(|key| get(&join("metrics_generator", key)), false) {
        problem(&join("metrics_generator", key), why);
    }
    let label = settings.text(&join(prefix, "metrics_generator.trace_id_label_name"));
    if !label.is_empty() && !generator::is_label_name(label) {
        problem("metrics_generator.trace_id_label_name", format!("\"{label}\" is not a valid label name"));
    }
    for (name, value) in texts(get("metrics_generator.remote_write_headers")) {
        if let Err(why) = remote_write::check_header(&name, &value) {
            problem("metrics_generator.remote_write_headers", why);
        }
    }
    for processor in strings(get("metrics_generator.processors")) {
        if !PROCESSORS.contains(&processor.as_str()) {
            problem("metrics_generator.processors", format!("unknown processor \"{processor}\" (one of {})", PROCESSORS.join(", ")));
        }
    }
    if let Value::Map(dimensions) = get("metrics_generator.processor.span_metrics.intrinsic_dimensions") {
        for (name, _) in dimensions {
            if !matches!(name.as_str(), "service" | "span_name" | "span_kind" | "status_code" | "status_message") {
                problem(
                    "metrics_generator.processor.span_metrics.intrinsic_dimensions",
                    format!("{name} is not a valid intrinsic dimension"),
                );
            }
        }
    }
    if let Value::Map(dimensions) = get("cost_attribution.dimensions") {
        let mut seen = BTreeSet::new();
        for (attribute, label) in dimensions {
            let label = if let Value::Text(label) = label { label.as_str() } else { "" };
            if !seen.insert(sanitise(if label.is_empty() { attribute } else { label })) {
                problem("cost_attribution.dimensions", format!("label of \"{attribute}\" is used twice"));
            }
        }
    }
    if let Err(why) = check_columns(&blocks(get("storage.parquet_dedicated_columns"))) {
        problem("storage.parquet_dedicated_columns", why);
    }
}

/// Nothing where there are no dimensions.
fn cost_attribution(max_cardinality: u64, dimensions: &BTreeMap<String, String>) -> Option<Arc<ingest::CostAttribution>> {
    let dimensions = dimensions.iter().map(|(attribute, label)| (attribute.as_str(), label.as_str()));
    Some(ingest::CostAttribution::new(max_cardinality, dimensions)).filter(|by| !by.is_empty()).map(Arc::new)
}

/// A Prometheus label name: anything but letters, digits and underscores becomes an underscore, a leading digit too.
fn sanitise(label: &str) -> String {
    let clean = |(at, c): (usize, char)| if c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit()) { c } else { '_' };
    let name: String = label.chars().enumerate().map(clean).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}
