//! Span metrics: from a span's wire bytes to the labels of its series.
//!
//! Most spans have labels that were built before. A span's *key* is what decides over its labels, as it lies on the wire: a number for its
//! resource, its kind, status and name, and the encoded values of the attributes that are dimensions. The caller looks the key up; only
//! for a new key are labels built, here.

use std::{borrow::Cow, sync::Arc};

use storage::id::Tenant;

use super::{
    FirstSeen, Weight,
    attributes::{self, RESOURCE_ATTRIBUTES},
    filter::{Filter, FilterError, kind_name, status_name},
    histogram::Bucketer,
    scan::{KeyNumber, Keys, Look},
    series::{Definition, Family, Labels, Layout, Series},
    settings::{Common, HostInfo, Settings, SpanMetrics, SpanNames},
    span_names,
};

/// The labels that no dimension may take.
const INTRINSICS: [&str; 5] = ["service", "span_name", "span_kind", "status_code", "status_message"];

type Pair = (Arc<str>, Arc<str>);

/// The rules of one tenant, ready to be used.
#[derive(Debug)]
pub(crate) struct SpanLabels {
    tenant: Tenant,
    pub(crate) settings: SpanMetrics,
    common: Common,
    pub(crate) filter: Filter,
    pub(crate) bucketer: Bucketer,
    counter: Arc<Layout>,
    /// Keys of all attributes that take part, each once.
    pub(crate) keys: Vec<KeyNumber>,
    /// For each dimension: its label and its key.
    dimensions: Vec<(Arc<str>, KeyNumber)>,
    /// For each mapping: its label, its keys, and what stands between their values.
    mappings: Vec<(Arc<str>, Vec<KeyNumber>, String)>,
}

/// A value is not UTF-8: there are no labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotUtf8;

/// Each character that a label's name must not have becomes `_`.
pub fn sanitise(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// The label of a dimension: sanitised, and out of the way of `reserved` names.
fn label_of(name: &str, reserved: &[&str], common: &Common) -> Arc<str> {
    let name = sanitise(name);
    let name = if reserved.contains(&name.as_str()) { format!("__{name}") } else { name };
    shorten(&name, common.max_label_name_length).into()
}

/// At most `limit` bytes of a text, and no half character.
pub fn shorten(text: &str, limit: usize) -> &str {
    if limit == 0 || text.len() <= limit { text } else { &text[..text.floor_char_boundary(limit)] }
}

impl SpanLabels {
    /// `all` get the keys that take part.
    pub(crate) fn new(tenant: Tenant, settings: &SpanMetrics, common: &Common, all: &mut Keys) -> Result<Self, FilterError> {
        let mut keys = Vec::new();
        let mut number = |key: &String| {
            let number = all.number(key);
            if !keys.contains(&number) {
                keys.push(number);
            }
            number
        };
        let dimensions = settings.dimensions.iter().map(|key| (label_of(key, &INTRINSICS, common), number(key))).collect();
        let mappings = settings.dimension_mappings.iter().map(|mapping| {
            let sources = mapping.source_labels.iter().map(&mut number).collect();
            (label_of(&mapping.name, &INTRINSICS, common), sources, mapping.join.clone())
        });
        let mappings = mappings.collect();
        Ok(Self {
            tenant,
            filter: Filter::new(&settings.filter_policies)?,
            bucketer: Bucketer::new(&settings.buckets, settings.parts, common),
            counter: Arc::new(Layout::COUNTER),
            settings: settings.clone(),
            common: common.clone(),
            keys,
            dimensions,
            mappings,
        })
    }

    /// How many spans a span stands for.
    pub(crate) fn weight(&self, span: &FirstSeen<'_>) -> Weight {
        let SpanMetrics { span_multiplier_key, enable_tracestate_span_multiplier, .. } = &self.settings;
        attributes::weight(span.resource, span.span, span_multiplier_key, *enable_tracestate_span_multiplier)
    }

    /// Whether the name of a span carries ids and somebody wants to know.
    pub(crate) fn has_pattern(&self, name: &[u8]) -> bool {
        let asked = self.settings.intrinsic_dimensions.span_name && self.common.span_names != SpanNames::AsTheyAre;
        asked && std::str::from_utf8(name).is_ok_and(|name| matches!(span_names::pattern(name), Cow::Owned(_)))
    }

    fn pair(&self, name: &str, value: &str) -> Pair {
        (Arc::from(name), Arc::from(shorten(value, self.common.max_label_value_length)))
    }

    /// Whose attributes are looked at.
    pub(crate) fn looks(&self) -> Look {
        if self.keys.is_empty() { Look::Never } else { Look::Always }
    }

    /// The series that a span counts in.
    pub(crate) fn series(&self, span: &FirstSeen<'_>, message: &[u8]) -> Result<Series, NotUtf8> {
        let text = |key: KeyNumber| span.value(key).map_or(Ok("".into()), |value| attributes::text(value).ok_or(NotUtf8));
        let intrinsic = self.settings.intrinsic_dimensions;
        let mut pairs = Vec::with_capacity(8);
        if intrinsic.service {
            pairs.push(self.pair("service", span.service));
        }
        if intrinsic.span_name {
            let name = std::str::from_utf8(span.name).map_err(|_| NotUtf8)?;
            let name = if self.common.span_names == SpanNames::Patterns { span_names::pattern(name) } else { name.into() };
            pairs.push(self.pair("span_name", &name));
        }
        if intrinsic.span_kind {
            pairs.push(self.pair("span_kind", &kind_name(span.kind)));
        }
        if intrinsic.status_code {
            pairs.push(self.pair("status_code", &status_name(span.status)));
        }
        if intrinsic.status_message {
            pairs.push(self.pair("status_message", std::str::from_utf8(message).map_err(|_| NotUtf8)?));
        }
        for (label, key) in &self.dimensions {
            pairs.push(self.pair(label, &text(*key)?));
        }
        for (label, keys, join) in &self.mappings {
            let values = keys.iter().map(|key| text(*key)).collect::<Result<Vec<_>, _>>()?;
            let values: Vec<&str> = values.iter().map(|value| &**value).filter(|value| !value.is_empty()).collect();
            pairs.push(self.pair(label, &values.join(join)));
        }
        pairs.extend(self.job_and_instance(span.resource)?);
        Ok(Series::new(Definition {
            tenant: self.tenant.clone(),
            family: Family::SpanMetrics,
            labels: Labels::new(pairs),
            layout: Arc::clone(self.bucketer.layout()),
        }))
    }

    fn job_and_instance(&self, resource: &[u8]) -> Result<Vec<Pair>, NotUtf8> {
        let mut pairs = Vec::new();
        if !self.settings.enable_target_info {
            return Ok(pairs);
        }
        let text = |key: &str| {
            let value = attributes::find(resource, RESOURCE_ATTRIBUTES, key.as_bytes());
            value.map_or(Ok("".into()), |value| attributes::text(value).ok_or(NotUtf8))
        };
        let (namespace, service) = (text("service.namespace")?, text("service.name")?);
        if !service.is_empty() {
            let job = if namespace.is_empty() { service.into_owned() } else { format!("{namespace}/{service}") };
            pairs.push(self.pair("job", &job));
        }
        if self.settings.enable_instance_label {
            let instance = text("service.instance.id")?;
            if !instance.is_empty() {
                pairs.push(self.pair("instance", &instance));
            }
        }
        Ok(pairs)
    }

    /// The series of a resource, if it says anything beyond what identifies it.
    pub(crate) fn target_info(&self, resource: &[u8]) -> Result<Option<Series>, NotUtf8> {
        const IDENTITY: [&str; 3] = ["service.name", "service.namespace", "service.instance.id"];
        const RESERVED: [&str; 7] = ["service", "span_name", "span_kind", "status_code", "status_message", "job", "instance"];
        if !self.settings.enable_target_info {
            return Ok(None);
        }
        let mut pairs = Vec::new();
        for (key, value) in attributes::attributes(resource, RESOURCE_ATTRIBUTES) {
            let key = std::str::from_utf8(key).map_err(|_| NotUtf8)?;
            let excluded = self.settings.target_info_excluded_dimensions.iter().any(|excluded| excluded == key);
            if excluded || key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) || IDENTITY.contains(&key) {
                continue;
            }
            let value = attributes::text(value).ok_or(NotUtf8)?;
            pairs.push(self.pair(&label_of(key, &RESERVED, &self.common), &value));
        }
        let identity = self.job_and_instance(resource)?;
        let says_something = pairs.iter().any(|(_, value)| !value.is_empty()) && !identity.is_empty();
        pairs.extend(identity);
        Ok(says_something.then(|| {
            let layout = Arc::clone(&self.counter);
            Series::new(Definition { tenant: self.tenant.clone(), family: Family::TargetInfo, labels: Labels::new(pairs), layout })
        }))
    }
}

/// The series of the host that a resource names, if it does.
pub(crate) fn host_info(tenant: &Tenant, settings: &HostInfo, common: &Common, resource: &[u8]) -> Result<Option<Series>, NotUtf8> {
    for key in &settings.host_identifiers {
        let Some(value) = attributes::find(resource, RESOURCE_ATTRIBUTES, key.as_bytes()) else { continue };
        let attributes::Any::String(host) = attributes::any(value) else { continue };
        let host = std::str::from_utf8(host).map_err(|_| NotUtf8)?;
        if host.is_empty() {
            continue;
        }
        let pair = |name: &str, value: &str| (Arc::from(name), Arc::from(shorten(value, common.max_label_value_length)));
        let labels = Labels::new(vec![pair("grafana_host_id", host), pair("host_source", key)]);
        let layout = Arc::new(Layout::COUNTER);
        return Ok(Some(Series::new(Definition { tenant: tenant.clone(), family: Family::HostInfo, labels, layout })));
    }
    Ok(None)
}

/// Checks what [`SpanLabels::new`] would refuse, and what makes no sense: for whoever reads a configuration.
///
/// # Errors
/// What is wrong, in words for the operator.
pub fn validate(settings: &Settings) -> Result<(), String> {
    let increasing = |bounds: &[f64]| bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds.iter().all(|bound| bound.is_finite());
    if let Some(span_metrics) = &settings.span_metrics {
        Filter::new(&span_metrics.filter_policies).map_err(|error| error.to_string())?;
        if !increasing(&span_metrics.buckets) {
            return Err("histogram_buckets of span_metrics must be strictly increasing".to_owned());
        }
    }
    if let Some(graphs) = &settings.service_graphs {
        Filter::new(&graphs.filter_policies).map_err(|error| error.to_string())?;
        if !increasing(&graphs.buckets) {
            return Err("histogram_buckets of service_graphs must be strictly increasing".to_owned());
        }
    }
    if settings.host_info.as_ref().is_some_and(|host| host.host_identifiers.is_empty()) {
        return Err("host_identifiers of host_info must not be empty".to_owned());
    }
    Ok(())
}
