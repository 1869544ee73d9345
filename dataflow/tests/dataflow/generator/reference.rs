//! What the generator must come to, computed from decoded spans the slow and obvious way, and nothing of the generator's own code.

use std::collections::BTreeMap;

use dataflow::generator::{Family, Snapshot, settings::SpanMetrics};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message;
use storage::id::Tenant;

/// A series as a reader sees it.
pub(crate) type Name = (Family, Vec<(String, String)>);

/// Whole numbers: the tests' multipliers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) count: i128,
    pub(crate) nanoseconds: i128,
    pub(crate) size: i128,
    /// Not cumulative; the last is `+Inf`.
    pub(crate) buckets: Vec<i128>,
}

fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a AnyValue> {
    attributes.iter().find(|attribute| attribute.key == key).map(|attribute| attribute.value.as_ref().unwrap_or(&NOTHING))
}

static NOTHING: AnyValue = AnyValue { value: None };

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(bool)) => bool.to_string(),
        Some(Value::IntValue(int)) => int.to_string(),
        Some(Value::DoubleValue(double)) => double.to_string(),
        Some(Value::ArrayValue(array)) => format!("[{}]", array.values.iter().map(text).collect::<String>()),
        _ => String::new(),
    }
}

fn sanitise(name: &str, reserved: &[&str]) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if reserved.contains(&name.as_str()) { format!("__{name}") } else { name }
}

fn job(settings: &SpanMetrics, resource: &Resource) -> BTreeMap<String, String> {
    let of = |key| find(&resource.attributes, key).map(text).unwrap_or_default();
    let mut labels = BTreeMap::new();
    if settings.enable_target_info {
        let (namespace, service) = (of("service.namespace"), of("service.name"));
        match (service.is_empty(), namespace.is_empty()) {
            (true, _) => {}
            (false, true) => drop(labels.insert("job".to_owned(), service)),
            (false, false) => drop(labels.insert("job".to_owned(), format!("{namespace}/{service}"))),
        }
        if settings.enable_instance_label {
            labels.insert("instance".to_owned(), of("service.instance.id"));
        }
    }
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// Adds a span that is to be counted.
pub(crate) fn count(sums: &mut BTreeMap<Name, Sums>, settings: &SpanMetrics, resource: &Resource, span: &Span) {
    const INTRINSICS: [&str; 5] = ["service", "span_name", "span_kind", "status_code", "status_message"];
    let status = span.status.clone().unwrap_or_default();
    let lookup = |key: &str| find(&resource.attributes, key).or_else(|| find(&span.attributes, key)).map(text).unwrap_or_default();
    let kinds = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
    let mut labels = BTreeMap::from([
        ("service".to_owned(), find(&resource.attributes, "service.name").map(text).unwrap_or_default()),
        ("span_name".to_owned(), span.name.clone()),
        ("span_kind".to_owned(), format!("SPAN_KIND_{}", kinds[span.kind as usize])),
        ("status_code".to_owned(), format!("STATUS_CODE_{}", ["UNSET", "OK", "ERROR"][status.code as usize])),
    ]);
    if settings.intrinsic_dimensions.status_message {
        labels.insert("status_message".to_owned(), status.message);
    }
    for key in &settings.dimensions {
        labels.insert(sanitise(key, &INTRINSICS), lookup(key));
    }
    for mapping in &settings.dimension_mappings {
        let values: Vec<String> = mapping.source_labels.iter().map(|key| lookup(key)).filter(|value| !value.is_empty()).collect();
        labels.insert(sanitise(&mapping.name, &INTRINSICS), values.join(&mapping.join));
    }
    let job = job(settings, resource);
    labels.extend(job.clone());
    labels.retain(|_, value| !value.is_empty());
    let ratio = span.attributes.iter().find(|attribute| attribute.key == settings.span_multiplier_key && !attribute.key.is_empty());
    let weight = match ratio.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::DoubleValue(ratio)) if *ratio > 0.0 => (1.0 / ratio) as i128,
        _ => 1,
    };
    let nanoseconds = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
    let series = sums.entry((Family::SpanMetrics, labels.into_iter().collect())).or_default();
    series.count += weight;
    series.nanoseconds += weight * i128::from(nanoseconds);
    series.size += span.encoded_len() as i128;
    series.buckets.resize(settings.buckets.len() + 1, 0);
    let bucket = settings.buckets.iter().position(|bound| nanoseconds as f64 / 1e9 <= *bound).unwrap_or(settings.buckets.len());
    series.buckets[bucket] += weight;

    let mut target: BTreeMap<String, String> = BTreeMap::new();
    for attribute in &resource.attributes {
        let hidden = ["service.name", "service.namespace", "service.instance.id"].contains(&attribute.key.as_str());
        if !hidden && !settings.target_info_excluded_dimensions.contains(&attribute.key) {
            let reserved = [&INTRINSICS[..], &["job", "instance"]].concat();
            target.insert(sanitise(&attribute.key, &reserved), attribute.value.as_ref().map(text).unwrap_or_default());
        }
    }
    target.retain(|_, value| !value.is_empty());
    if !target.is_empty() && !job.is_empty() {
        target.extend(job);
        sums.entry((Family::TargetInfo, target.into_iter().collect())).or_default().count += 1;
    }
}

/// What a snapshot says about span metrics, in the same form.
pub(crate) fn shown(snapshot: &Snapshot, tenant: &Tenant) -> BTreeMap<Name, Sums> {
    const ONE: i128 = 1 << 32;
    let whole = |sum: i128| {
        assert_eq!(sum % ONE, 0, "whole multipliers make whole sums");
        sum / ONE
    };
    let series = snapshot.tenants.get(tenant).into_iter().flat_map(|series| series.iter());
    let series = series.filter(|accumulated| matches!(accumulated.series.family(), Family::SpanMetrics | Family::TargetInfo));
    let of = |accumulated: &std::sync::Arc<dataflow::generator::Accumulated>| {
        let labels = accumulated.series.labels().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let agg = &accumulated.agg;
        let mut buckets = vec![0; accumulated.series.layout().classic.as_ref().map_or(0, |bounds| bounds.len() + 1)];
        agg.classic.iter().for_each(|(bucket, weight)| buckets[bucket as usize] = whole(weight.0));
        let sums = Sums { count: whole(agg.count.0), nanoseconds: whole(agg.sum), size: agg.size, buckets };
        ((accumulated.series.family(), labels), sums)
    };
    series.map(of).collect()
}
