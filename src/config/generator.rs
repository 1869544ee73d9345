//! `metrics_generator`, and what a tenant's overrides make of it.
//!
//! ```text
//!  metrics_generator ───────────────► Generator ──┐ what no override says
//!  overrides.defaults, tenant entry ─► Limits  ───┴─► TenantGenerator: settings of the processors, of collection and sending
//! ```
//!
//! Overrides of processors replace the component's value where they are written, a list even if it is empty; all others are those of the
//! limits as a whole (a tenant's entry that leaves a key out means zero).

use std::{sync::Arc, time::Duration};

use dataflow::{
    generator::{
        Parts,
        filter::Filter,
        settings::{
            Common, DimensionMapping, FilterPolicy, Histograms, HostInfo, IntrinsicDimensions, MatchAttribute, MatchType, MatchValue,
            PolicyMatch, SPAN_METRICS_BUCKETS, ServiceGraphs, Settings as Processors, SpanMetrics, SpanNames,
        },
    },
    remote_write::{self, TenantSettings},
};

use super::{
    Problem, Settings, Value, remote_write as endpoints,
    settings::{blocks, positive_duration, strings, texts, unsigned},
};

/// The component: what holds where a tenant's overrides say nothing.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    /// Processors, all of them.
    span_metrics: SpanMetrics,
    service_graphs: ServiceGraphs,
    host_info: HostInfo,
    common: Common,
    /// Whether the limit of tenants is one of label sets instead of series.
    limits_entities: bool,
    /// A series without a new observation for this long ends.
    pub(crate) stale_duration: Duration,
    /// Collection and sending.
    pub(crate) remote_write: remote_write::Settings,
}

/// What holds for a tenant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TenantGenerator {
    /// What is generated; none: nothing.
    pub(crate) processors: Option<Arc<Processors>>,
    /// How it is collected and sent.
    pub(crate) remote_write: Arc<TenantSettings>,
}

const COMPONENT: &str = "metrics_generator";

/// The component of a configuration file.
pub(super) fn generator(s: &Settings, problems: &mut Vec<Problem>) -> Generator {
    let path = |key: &str| format!("{COMPONENT}.{key}");
    let graphs = |key: &str| format!("{COMPONENT}.processor.service_graphs.{key}");
    let spans = |key: &str| format!("{COMPONENT}.processor.span_metrics.{key}");
    let size = |path: &str| usize::try_from(s.number(path)).unwrap_or(usize::MAX);
    validate(s, problems);
    let endpoints = endpoints::endpoints(s, problems);
    let intrinsic = |name: &str| s.flag(&spans(&format!("intrinsic_dimensions.{name}")));
    Generator {
        span_metrics: SpanMetrics {
            parts: Parts::ALL,
            buckets: floats(s.get(&spans("histogram_buckets"))).into(),
            intrinsic_dimensions: IntrinsicDimensions {
                service: intrinsic("service"),
                span_name: intrinsic("span_name"),
                span_kind: intrinsic("span_kind"),
                status_code: intrinsic("status_code"),
                status_message: intrinsic("status_message"),
            },
            dimensions: s.strings(&spans("dimensions")),
            dimension_mappings: mappings(s.get(&spans("dimension_mappings"))),
            filter_policies: policies(s.get(&spans("filter_policies"))),
            enable_target_info: s.flag(&spans("enable_target_info")),
            enable_instance_label: s.flag(&spans("enable_instance_label")),
            target_info_excluded_dimensions: s.strings(&spans("target_info_excluded_dimensions")),
            span_multiplier_key: s.text(&spans("span_multiplier_key")).to_owned(),
            enable_tracestate_span_multiplier: s.flag(&spans("enable_tracestate_span_multiplier")),
        },
        service_graphs: ServiceGraphs {
            wait: s.duration(&graphs("wait")),
            max_items: size(&graphs("max_items")),
            buckets: floats(s.get(&graphs("histogram_buckets"))).into(),
            dimensions: s.strings(&graphs("dimensions")),
            enable_client_server_prefix: s.flag(&graphs("enable_client_server_prefix")),
            enable_messaging_system_latency_histogram: s.flag(&graphs("enable_messaging_system_latency_histogram")),
            enable_virtual_node_label: s.flag(&graphs("enable_virtual_node_label")),
            peer_attributes: s.strings(&graphs("peer_attributes")),
            database_name_attributes: s.strings(&graphs("database_name_attributes")),
            span_multiplier_key: s.text(&graphs("span_multiplier_key")).to_owned(),
            enable_tracestate_span_multiplier: s.flag(&graphs("enable_tracestate_span_multiplier")),
            filter_policies: policies(s.get(&graphs("filter_policies"))),
        },
        host_info: HostInfo {
            host_identifiers: s.strings(&path("processor.host_info.host_identifiers")),
            metric_name: s.text(&path("processor.host_info.metric_name")).to_owned(),
        },
        common: Common {
            slack: s.duration(&path("metrics_ingestion_time_range_slack")),
            max_label_name_length: size(&path("registry.max_label_name_length")),
            max_label_value_length: size(&path("registry.max_label_value_length")),
            ..Common::default()
        },
        limits_entities: s.text(&path("limiter_type")) == "entity",
        stale_duration: s.duration(&path("registry.stale_duration")),
        remote_write: remote_write::Settings {
            endpoints,
            collection_interval: s.duration(&path("registry.collection_interval")),
            external_labels: texts(s.get(&path("registry.external_labels"))),
            tenant_label: Some(s.text(&path("registry.inject_tenant_id_as")).to_owned()).filter(|name| !name.is_empty()),
            instance: s.text(&path("instance_id")).to_owned(),
            add_org_id_header: s.flag(&path("storage.remote_write_add_org_id_header"))
                && (s.flag("multitenancy_enabled") || s.flag("auth_enabled")),
            flush_deadline: s.duration(&path("storage.remote_write_flush_deadline")),
            ..remote_write::Settings::default()
        },
    }
}

fn validate(s: &Settings, problems: &mut Vec<Problem>) {
    let path = |key: &str| format!("{COMPONENT}.{key}");
    let mut problem = |key: &str, text: String| problems.push(Problem::new(s.line(&path(key)), format!("{}: {text}", path(key))));
    for (name, _) in texts(s.get(&path("registry.external_labels"))) {
        if !is_label_name(&name) {
            problem("registry.external_labels", format!("\"{name}\" is not a valid label name"));
        }
    }
    let name = s.text(&path("registry.inject_tenant_id_as"));
    if !name.is_empty() && !is_label_name(name) {
        problem("registry.inject_tenant_id_as", format!("\"{name}\" is not a valid label name"));
    }
    let limiter = s.text(&path("limiter_type"));
    if !matches!(limiter, "series" | "entity") {
        problem("limiter_type", format!("\"{limiter}\" is not one of series, entity"));
    }
    for key in ["registry.collection_interval", "registry.stale_duration", "processor.service_graphs.wait"] {
        if s.duration(&path(key)).is_zero() {
            problem(key, "must be greater than 0".to_owned());
        }
    }
    for (key, why) in checks(|key| s.get(&path(key)), true) {
        problem(key, why);
    }
}

/// What is wrong with the processors' keys, be it the component's (`is_component`) or a tenant's.
pub(super) fn checks<'a>(get: impl Fn(&str) -> &'a Value, is_component: bool) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    for key in ["processor.service_graphs.histogram_buckets", "processor.span_metrics.histogram_buckets"] {
        let buckets = floats(get(key));
        if buckets.iter().any(|bound| !bound.is_finite()) {
            wrong.push((key, "must be finite".to_owned()));
        } else if buckets.windows(2).any(|pair| pair[0] >= pair[1]) {
            wrong.push((key, "must be strictly increasing".to_owned()));
        }
    }
    for key in ["processor.service_graphs.filter_policies", "processor.span_metrics.filter_policies"] {
        for (index, policy) in blocks(get(key)).into_iter().enumerate() {
            let checked = policy_of(policy).and_then(|policy| Filter::new(&[policy]).map_err(|error| error.to_string()));
            if let Err(why) = checked {
                wrong.push((key, format!("[{index}]: {why}")));
            }
        }
    }
    let key = "processor.span_metrics.dimension_mappings";
    for (index, mapping) in blocks(get(key)).into_iter().enumerate() {
        if mapping.text("name").is_empty() || mapping.strings("source_labels").is_empty() {
            wrong.push((key, format!("[{index}]: name and source_labels must not be empty")));
        }
    }
    let key = "processor.host_info.metric_name";
    if let Value::Text(name) = get(key)
        && (is_component || !name.is_empty())
        && !is_metric_name(name)
    {
        wrong.push((key, format!("\"{name}\" is not a valid metric name")));
    }
    let key = "processor.host_info.host_identifiers";
    if is_component && strings(get(key)).is_empty() {
        wrong.push((key, "must not be empty".to_owned()));
    }
    wrong
}

/// What overrides say: the value that holds of a key below `metrics_generator`, and the one that was written.
pub(super) struct OfTenant<'a> {
    /// The value that holds.
    pub(super) get: &'a dyn Fn(&str) -> Value,
    /// What was written, if anything was.
    pub(super) written: &'a dyn Fn(&str) -> Option<Value>,
}

impl OfTenant<'_> {
    fn number(&self, key: &str) -> u64 {
        unsigned(&(self.get)(key))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match (self.written)(key) {
            Some(Value::Bool(flag)) => Some(flag),
            _ => None,
        }
    }

    fn list<T>(&self, key: &str, of: impl Fn(&Value) -> Vec<T>) -> Option<Vec<T>> {
        (self.written)(key).filter(|value| *value != Value::Null).map(|value| of(&value))
    }

    fn text(&self, key: &str) -> Option<String> {
        match (self.get)(key) {
            Value::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn duration(&self, key: &str) -> Option<Duration> {
        Some(positive_duration(&(self.get)(key))).filter(|duration| !duration.is_zero())
    }
}

/// Replaces a value where something is written.
fn replace<T>(value: &mut T, written: Option<impl Into<T>>) {
    if let Some(written) = written {
        *value = written.into();
    }
}

impl Generator {
    /// What holds for a tenant with these overrides.
    pub(super) fn of_tenant(&self, tenant: &OfTenant<'_>) -> TenantGenerator {
        let names = strings(&(tenant.get)("processors"));
        let wants = |name: &str| names.iter().any(|wanted| wanted == name);
        let host_info = self.host_info(tenant);
        let common = self.common(tenant);
        let processors = Processors {
            span_metrics: self.span_metrics(tenant, &wants),
            service_graphs: wants("service-graphs").then(|| self.service_graphs(tenant)),
            host_info: wants("host-info").then(|| host_info.clone()),
            common,
        };
        let limit = tenant.number("native_histogram_max_bucket_number");
        TenantGenerator {
            processors: processors.is_active().then(|| Arc::new(processors)),
            remote_write: Arc::new(TenantSettings {
                collection_interval: tenant.duration("collection_interval"),
                disable_collection: (tenant.get)("disable_collection") == Value::Bool(true),
                trace_id_label: tenant.text("trace_id_label_name").unwrap_or_else(|| "traceID".to_owned()),
                host_info_metric: host_info.metric_name,
                native_histogram_max_buckets: usize::try_from(limit).unwrap_or(usize::MAX),
                headers: texts(&(tenant.get)("remote_write_headers")),
            }),
        }
    }

    fn common(&self, tenant: &OfTenant<'_>) -> Common {
        let limit = |of_entities: bool, key: &str| if self.limits_entities == of_entities { tenant.number(key) } else { 0 };
        let factor = match (tenant.get)("native_histogram_bucket_factor") {
            Value::Float(factor) if factor > 1.0 => factor,
            _ => self.common.native_histogram_bucket_factor,
        };
        Common {
            slack: tenant.duration("ingestion_time_range_slack").unwrap_or(self.common.slack),
            max_active_series: limit(false, "max_active_series"),
            max_active_entities: limit(true, "max_active_entities"),
            max_cardinality_per_label: tenant.number("max_cardinality_per_label"),
            histograms: match tenant.text("generate_native_histograms").as_deref() {
                Some("native") => Histograms::Native,
                Some("both") => Histograms::Both,
                _ => Histograms::Classic,
            },
            native_histogram_bucket_factor: factor,
            span_names: match tenant.text("span_name_sanitization").as_deref() {
                Some("enabled") => SpanNames::Patterns,
                Some("dry_run") => SpanNames::DryRun,
                _ => SpanNames::AsTheyAre,
            },
            ..self.common.clone()
        }
    }

    fn span_metrics(&self, tenant: &OfTenant<'_>, wants: &dyn Fn(&str) -> bool) -> Option<SpanMetrics> {
        let all = wants("span-metrics");
        let parts = Parts {
            count: all || wants("span-metrics-count"),
            latency: all || wants("span-metrics-latency"),
            size: all || wants("span-metrics-size"),
        };
        if !(parts.count || parts.latency || parts.size) {
            return None;
        }
        let key = |name: &str| format!("processor.span_metrics.{name}");
        let mut settings = SpanMetrics { parts, ..self.span_metrics.clone() };
        replace(&mut settings.buckets, tenant.list(&key("histogram_buckets"), floats));
        if !all {
            // Tempo ignores other bounds where the latency is wanted alone.
            settings.buckets = SPAN_METRICS_BUCKETS.into();
        }
        replace(&mut settings.dimensions, tenant.list(&key("dimensions"), strings));
        replace(&mut settings.dimension_mappings, tenant.list(&key("dimension_mappings"), mappings));
        replace(&mut settings.filter_policies, tenant.list(&key("filter_policies"), policies));
        replace(&mut settings.enable_target_info, tenant.flag(&key("enable_target_info")));
        replace(&mut settings.enable_instance_label, tenant.flag(&key("enable_instance_label")));
        replace(&mut settings.target_info_excluded_dimensions, tenant.list(&key("target_info_excluded_dimensions"), strings));
        replace(&mut settings.span_multiplier_key, tenant.text(&key("span_multiplier_key")));
        replace(&mut settings.enable_tracestate_span_multiplier, tenant.flag(&key("enable_tracestate_span_multiplier")));
        if let Some(Value::Map(entries)) = (tenant.written)(&key("intrinsic_dimensions")) {
            let intrinsic = &mut settings.intrinsic_dimensions;
            for (name, value) in entries {
                let on = value == Value::Bool(true);
                match name.as_str() {
                    "service" => intrinsic.service = on,
                    "span_name" => intrinsic.span_name = on,
                    "span_kind" => intrinsic.span_kind = on,
                    "status_code" => intrinsic.status_code = on,
                    // Other names were refused.
                    _ => intrinsic.status_message = on,
                }
            }
        }
        Some(settings)
    }

    fn service_graphs(&self, tenant: &OfTenant<'_>) -> ServiceGraphs {
        let key = |name: &str| format!("processor.service_graphs.{name}");
        let mut settings = self.service_graphs.clone();
        replace(&mut settings.buckets, tenant.list(&key("histogram_buckets"), floats));
        replace(&mut settings.dimensions, tenant.list(&key("dimensions"), strings));
        replace(&mut settings.peer_attributes, tenant.list(&key("peer_attributes"), strings));
        // A tenant can switch this on and not off, as in Tempo.
        settings.enable_client_server_prefix |= tenant.flag(&key("enable_client_server_prefix")) == Some(true);
        replace(&mut settings.enable_messaging_system_latency_histogram, tenant.flag(&key("enable_messaging_system_latency_histogram")));
        replace(&mut settings.enable_virtual_node_label, tenant.flag(&key("enable_virtual_node_label")));
        replace(&mut settings.span_multiplier_key, tenant.text(&key("span_multiplier_key")));
        replace(&mut settings.enable_tracestate_span_multiplier, tenant.flag(&key("enable_tracestate_span_multiplier")));
        replace(&mut settings.filter_policies, tenant.list(&key("filter_policies"), policies));
        settings
    }

    fn host_info(&self, tenant: &OfTenant<'_>) -> HostInfo {
        let mut settings = self.host_info.clone();
        let identifiers = tenant.list("processor.host_info.host_identifiers", strings).filter(|list| !list.is_empty());
        replace(&mut settings.host_identifiers, identifiers);
        replace(&mut settings.metric_name, tenant.text("processor.host_info.metric_name"));
        settings
    }
}

fn floats(value: &Value) -> Vec<f64> {
    let Value::List(items) = value else { return Vec::new() };
    items.iter().filter_map(|item| if let Value::Float(number) = item { Some(*number) } else { None }).collect()
}

fn mappings(value: &Value) -> Vec<DimensionMapping> {
    let mapping = |block: &Settings| DimensionMapping {
        name: block.text("name").to_owned(),
        source_labels: block.strings("source_labels"),
        join: block.text("join").to_owned(),
    };
    blocks(value).into_iter().map(mapping).collect()
}

/// The policies that [`policy_of`] can read: all of a configuration that was checked.
fn policies(value: &Value) -> Vec<FilterPolicy> {
    blocks(value).into_iter().filter_map(|block| policy_of(block).ok()).collect()
}

/// A policy, or what is wrong with it.
fn policy_of(block: &Settings) -> Result<FilterPolicy, String> {
    let side = |name: &str| block.any_written(name).then(|| match_of(block, name)).transpose();
    Ok(FilterPolicy { include: side("include")?, include_any: side("include_any")?, exclude: side("exclude")? })
}

fn match_of(block: &Settings, side: &str) -> Result<PolicyMatch, String> {
    let match_type = match block.text(&format!("{side}.match_type")) {
        "strict" => MatchType::Strict,
        "regex" => MatchType::Regex,
        other => return Err(format!("{side}.match_type: \"{other}\" is not one of strict, regex")),
    };
    let attribute = |block: &Settings| {
        let key = block.text("key").to_owned();
        let value = match block.get("value") {
            Value::Text(text) => MatchValue::String(text.clone()),
            Value::Int(number) => MatchValue::Int(*number),
            Value::Float(number) => MatchValue::Double(*number),
            Value::Bool(flag) => MatchValue::Bool(*flag),
            _ => return Err(format!("{side}.attributes: the value of \"{key}\" is no string, number or boolean")),
        };
        Ok(MatchAttribute { key, value })
    };
    let attributes = block.blocks(&format!("{side}.attributes")).into_iter().map(attribute).collect::<Result<Vec<_>, _>>()?;
    if attributes.is_empty() {
        return Err(format!("{side}.attributes: must not be empty"));
    }
    Ok(PolicyMatch { match_type, attributes })
}

/// Whether Prometheus takes the name for a label.
pub(super) fn is_label_name(name: &str) -> bool {
    is_metric_name(name) && !name.contains(':')
}

fn is_metric_name(name: &str) -> bool {
    let begins = |c: char| c == '_' || c == ':' || c.is_ascii_alphabetic();
    name.starts_with(begins) && name.chars().all(|c| begins(c) || c.is_ascii_digit())
}

/// No component: for tests of limits.
#[cfg(test)]
impl Default for Generator {
    fn default() -> Self {
        generator(&Settings::new(super::schema::file()), &mut Vec::new())
    }
}
