//! What a tenant wants generated. Plain data; the binary fills it from the configuration and the tenant's overrides.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use storage::id::Tenant;

/// Default upper bounds of the latency buckets of span metrics, in seconds.
pub const SPAN_METRICS_BUCKETS: [f64; 14] =
    [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// Default upper bounds of the buckets of service graphs, in seconds.
pub const SERVICE_GRAPHS_BUCKETS: [f64; 8] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8];

/// All settings of one tenant, defaults and overrides resolved. A processor that is `None` is off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `span-metrics` and its sub-processors.
    pub span_metrics: Option<SpanMetrics>,
    /// `service-graphs`.
    pub service_graphs: Option<ServiceGraphs>,
    /// `host-info`.
    pub host_info: Option<HostInfo>,
    /// Limits and common rules.
    pub common: Common,
}

impl Settings {
    /// Whether anything is generated at all.
    pub fn is_active(&self) -> bool {
        self.span_metrics.is_some() || self.service_graphs.is_some() || self.host_info.is_some()
    }
}

/// What all processors of a tenant share.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// A span counts if it ended at most this long before it arrived, or after (`metrics_ingestion_time_range_slack`).
    pub slack: Duration,
    /// Active series of the tenant at most, by cost as Tempo counts it; 0 is no limit (`max_active_series`).
    pub max_active_series: u64,
    /// Label sets of the tenant at most, whatever they cost; 0 is no limit (`max_active_entities`, with `limiter_type: entity`).
    pub max_active_entities: u64,
    /// Distinct values of a label at most; 0 is no limit (`max_cardinality_per_label`).
    pub max_cardinality_per_label: u64,
    /// Label names are cut to this many bytes; 0 is no limit.
    pub max_label_name_length: usize,
    /// Label values are cut to this many bytes; 0 is no limit.
    pub max_label_value_length: usize,
    /// Which histograms are kept (`generate_native_histograms`).
    pub histograms: Histograms,
    /// Native buckets grow by at most this factor (`native_histogram_bucket_factor`).
    pub native_histogram_bucket_factor: f64,
    /// `span_name_sanitization`.
    pub span_names: SpanNames,
}

/// `span_name_sanitization`: whether the label `span_name` has a pattern where a name carries ids, see [`super::span_names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpanNames {
    /// Names are as they are.
    #[default]
    AsTheyAre,
    /// Names are as they are; how many would change is counted.
    DryRun,
    /// Names that carry ids are replaced.
    Patterns,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            slack: Duration::from_secs(30),
            max_active_series: 0,
            max_active_entities: 0,
            max_cardinality_per_label: 0,
            max_label_name_length: 1024,
            max_label_value_length: 2048,
            histograms: Histograms::Classic,
            native_histogram_bucket_factor: 1.1,
            span_names: SpanNames::AsTheyAre,
        }
    }
}

/// `generate_native_histograms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Histograms {
    /// Buckets with given bounds.
    #[default]
    Classic,
    /// Exponential buckets.
    Native,
    /// Both.
    Both,
}

/// `span-metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanMetrics {
    /// Which of the metrics; at least one.
    pub parts: super::Parts,
    /// `histogram_buckets`: upper bounds in seconds, strictly increasing.
    pub buckets: Arc<[f64]>,
    /// `intrinsic_dimensions`.
    pub intrinsic_dimensions: IntrinsicDimensions,
    /// `dimensions`: attributes that become labels.
    pub dimensions: Vec<String>,
    /// `dimension_mappings`: labels made of several attributes.
    pub dimension_mappings: Vec<DimensionMapping>,
    /// `filter_policies`: all of them must accept a span.
    pub filter_policies: Vec<FilterPolicy>,
    /// `enable_target_info`.
    pub enable_target_info: bool,
    /// `enable_instance_label`: counts with `enable_target_info` only.
    pub enable_instance_label: bool,
    /// `target_info_excluded_dimensions`.
    pub target_info_excluded_dimensions: Vec<String>,
    /// `span_multiplier_key`: the attribute that says how many spans one stands for; empty is none.
    pub span_multiplier_key: String,
    /// `enable_tracestate_span_multiplier`: where no attribute says it, the sampling threshold in the trace state does.
    pub enable_tracestate_span_multiplier: bool,
}

impl Default for SpanMetrics {
    fn default() -> Self {
        Self {
            parts: super::Parts::ALL,
            buckets: SPAN_METRICS_BUCKETS.into(),
            intrinsic_dimensions: IntrinsicDimensions::default(),
            dimensions: Vec::new(),
            dimension_mappings: Vec::new(),
            filter_policies: Vec::new(),
            enable_target_info: false,
            enable_instance_label: true,
            target_info_excluded_dimensions: Vec::new(),
            span_multiplier_key: String::new(),
            enable_tracestate_span_multiplier: false,
        }
    }
}

/// Which intrinsics become labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntrinsicDimensions {
    /// `service`.
    pub service: bool,
    /// `span_name`.
    pub span_name: bool,
    /// `span_kind`.
    pub span_kind: bool,
    /// `status_code`.
    pub status_code: bool,
    /// `status_message`.
    pub status_message: bool,
}

impl Default for IntrinsicDimensions {
    fn default() -> Self {
        Self { service: true, span_name: true, span_kind: true, status_code: true, status_message: false }
    }
}

/// A label whose value is made of several attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DimensionMapping {
    /// Name of the label, before it is sanitised.
    pub name: String,
    /// The attributes, in order.
    pub source_labels: Vec<String>,
    /// What stands between their values.
    pub join: String,
}

/// One policy of a filter: `include` must match if it is there, so must `include_any`, and `exclude` must not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterPolicy {
    /// What must match, all of it.
    pub include: Option<PolicyMatch>,
    /// Of which one must match.
    pub include_any: Option<PolicyMatch>,
    /// What must not match, all of it.
    pub exclude: Option<PolicyMatch>,
}

/// Attributes, and how they are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyMatch {
    /// How.
    pub match_type: MatchType,
    /// Which.
    pub attributes: Vec<MatchAttribute>,
}

/// How values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchType {
    /// Equal.
    Strict,
    /// The regular expression is found in the value, anywhere.
    Regex,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchAttribute {
    /// `kind`, `status`, `name`, `span.<key>` or `resource.<key>`.
    pub key: String,
    /// What it must be. With [`MatchType::Regex`] a string.
    pub value: MatchValue,
}

/// A value to compare with.
#[derive(Clone, Debug, PartialEq)]
pub enum MatchValue {
    /// A string, or a regular expression.
    String(String),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// A truth value.
    Bool(bool),
}

/// `service-graphs`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceGraphs {
    /// `wait`: a half waits this long for the other.
    pub wait: Duration,
    /// `max_items`: halves that may wait, over all workers.
    pub max_items: usize,
    /// `histogram_buckets`: upper bounds in seconds, strictly increasing.
    pub buckets: Arc<[f64]>,
    /// `dimensions`.
    pub dimensions: Vec<String>,
    /// `enable_client_server_prefix`.
    pub enable_client_server_prefix: bool,
    /// `enable_messaging_system_latency_histogram`.
    pub enable_messaging_system_latency_histogram: bool,
    /// `enable_virtual_node_label`.
    pub enable_virtual_node_label: bool,
    /// `peer_attributes`.
    pub peer_attributes: Vec<String>,
    /// `database_name_attributes`.
    pub database_name_attributes: Vec<String>,
    /// `span_multiplier_key`; empty is none.
    pub span_multiplier_key: String,
    /// `enable_tracestate_span_multiplier`.
    pub enable_tracestate_span_multiplier: bool,
    /// `filter_policies`: what they reject makes no edge, and neither does its other half.
    pub filter_policies: Vec<FilterPolicy>,
}

impl Default for ServiceGraphs {
    fn default() -> Self {
        let names = |names: [&str; 3]| names.map(str::to_owned).to_vec();
        Self {
            wait: Duration::from_secs(10),
            max_items: 10_000,
            buckets: SERVICE_GRAPHS_BUCKETS.into(),
            dimensions: Vec::new(),
            enable_client_server_prefix: false,
            enable_messaging_system_latency_histogram: false,
            enable_virtual_node_label: false,
            peer_attributes: names(["peer.service", "db.name", "db.system"]),
            database_name_attributes: names(["db.namespace", "db.name", "db.system"]),
            span_multiplier_key: String::new(),
            enable_tracestate_span_multiplier: false,
            filter_policies: Vec::new(),
        }
    }
}

/// `host-info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// `host_identifiers`: the first that a resource has as a string names its host.
    pub host_identifiers: Vec<String>,
    /// `metric_name`.
    pub metric_name: String,
}

impl Default for HostInfo {
    fn default() -> Self {
        Self { host_identifiers: vec!["k8s.node.name".to_owned(), "host.id".to_owned()], metric_name: "traces_host_info".to_owned() }
    }
}

/// Where the settings of tenants come from. They may change at any time.
pub trait Tenants: fmt::Debug + Send + Sync {
    /// Grows whenever an answer of [`Self::settings`] may have changed. Asked often, so cheap.
    fn version(&self) -> u64;

    /// What the tenant wants; `None` for nothing.
    fn settings(&self, tenant: &Tenant) -> Option<Arc<Settings>>;
}

/// Settings that never change: the same for all tenants but those named.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// Of everybody else.
    pub default: Option<Arc<Settings>>,
    /// By tenant.
    pub tenants: BTreeMap<Tenant, Arc<Settings>>,
}

impl Tenants for Fixed {
    fn version(&self) -> u64 {
        0
    }

    fn settings(&self, tenant: &Tenant) -> Option<Arc<Settings>> {
        self.tenants.get(tenant).or(self.default.as_ref()).map(Arc::clone)
    }
}
