//! Overrides that a tenant sets for itself: one JSON document, in the keys of the per-tenant file, but only some of them.
//!
//! ```text
//!  JSON ─► nothing unknown, no null ─► as a tenant's entry ─► checked like one, and more strictly ─► Settings
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dataflow::generator::span_metrics::sanitise;
use serde_json::{Map, Value as Json};

use super::{
    check::check,
    document, limits,
    scalar::Value,
    schema::{self, Schema, join},
    settings::{Settings, blocks, strings},
    status,
};

/// Shortest and longest `metrics_generator.collection_interval`.
const COLLECTION_INTERVAL: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5 * 60));
/// Longest `metrics_generator.ingestion_time_range_slack`.
const MAX_SLACK: Duration = Duration::from_secs(12 * 3600);
/// Processors that a tenant may turn on.
const PROCESSORS: &[&str] =
    &["service-graphs", "span-metrics", "span-metrics-count", "span-metrics-latency", "span-metrics-size", "host-info"];

/// What a tenant has set for itself.
#[derive(Clone, Debug)]
pub(crate) struct OwnOverrides {
    /// As it is stored and shown: without nulls, and with the objects that are always there.
    pub(crate) json: Json,
    /// What it means.
    pub(crate) settings: Settings,
}

impl OwnOverrides {
    /// Reads a document, which may name these forwarders.
    ///
    /// # Errors
    /// What is wrong with it, for the client.
    pub(crate) fn new(mut json: Json, forwarders: &[String]) -> Result<Self, String> {
        without_nulls(&mut json);
        let user = schema::user();
        if let Some(name) = unknown(&user, "", &json) {
            return Err(format!("json: unknown field {name:?}"));
        }
        if !json.is_object() {
            return Err("json: the document is not an object".to_owned());
        }
        // Every JSON text is YAML.
        let node = document::parse(&json.to_string()).map_err(|problems| texts(&problems))?;
        let checked = check(&schema::tenant(), node.as_ref(), "");
        let mut problems = checked.problems;
        limits::validate(&checked.settings, "", "", &mut problems);
        if !problems.is_empty() {
            return Err(texts(&problems));
        }
        let settings = checked.settings;
        stricter(&settings, forwarders)?;
        for path in ["cost_attribution", "service_graphs", "span_metrics", "host_info"] {
            let parents: &[&str] = if path == "cost_attribution" { &[] } else { &["metrics_generator", "processor"] };
            complete(&mut json, parents.iter().copied().chain([path]));
        }
        Ok(Self { json, settings })
    }

    /// Reads the bytes of a document.
    ///
    /// # Errors
    /// As of [`OwnOverrides::new`].
    pub(crate) fn parse(bytes: &[u8], forwarders: &[String]) -> Result<Self, String> {
        Self::new(serde_json::from_slice(bytes).map_err(|error| format!("json: {error}"))?, forwarders)
    }

    /// Applies a merge patch (RFC 7386).
    pub(crate) fn patched(before: Option<&Self>, patch: &Json) -> Json {
        let mut json = before.map_or_else(|| Json::Object(Map::new()), |before| before.json.clone());
        merge(&mut json, patch);
        json
    }
}

/// The settings as such a document.
pub(crate) fn to_json(settings: &Settings) -> Json {
    status::settings_json(settings)
}

/// Whether an operator has said something of keys that tenants set for themselves. To turn on processors is no conflict.
pub(crate) fn conflicts(runtime: &Settings) -> bool {
    let user = schema::user();
    runtime.written_leaves().any(|leaf| leaf.path != "metrics_generator.processors" && user.leaf(&leaf.path).is_some())
}

fn texts(problems: &[document::Problem]) -> String {
    problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("; ")
}

/// What is asked of a tenant and not of an operator.
fn stricter(settings: &Settings, forwarders: &[String]) -> Result<(), String> {
    for name in settings.strings("forwarders") {
        if !forwarders.contains(&name) {
            return Err(format!("forwarder \"{name}\" is not a known forwarder, contact your system administrator"));
        }
    }
    let (key, (shortest, longest)) = ("metrics_generator.collection_interval", COLLECTION_INTERVAL);
    if settings.written(key).is_some() && !(shortest..=longest).contains(&settings.duration(key)) {
        return Err(format!("{key} must be between 15s and 5m"));
    }
    let key = "metrics_generator.ingestion_time_range_slack";
    if settings.duration(key) > MAX_SLACK || matches!(settings.get(key), Value::Duration(..0)) {
        return Err(format!("{key} must be between 0s and 12h"));
    }
    for name in strings(settings.get("metrics_generator.processors")) {
        if !PROCESSORS.contains(&name.as_str()) {
            return Err(format!("metrics_generator.processors: unknown processor \"{name}\" (one of {})", PROCESSORS.join(", ")));
        }
    }
    let key = "metrics_generator.span_name_sanitization";
    if !matches!(settings.text(key), "" | "dry_run" | "enabled") {
        return Err(format!("{key}: \"{}\" is not one of dry_run, enabled", settings.text(key)));
    }
    distinct_labels(settings)
}

/// Refuses two dimensions of span metrics that would be one label, of which only the later would be seen.
fn distinct_labels(settings: &Settings) -> Result<(), String> {
    const INTRINSICS: [&str; 5] = ["service", "span_name", "span_kind", "status_code", "status_message"];
    let key = |name: &str| format!("metrics_generator.processor.span_metrics.{name}");
    let mappings = blocks(settings.get(&key("dimension_mappings"))).into_iter().map(|mapping| mapping.text("name").to_owned());
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for name in settings.strings(&key("dimensions")).into_iter().chain(mappings) {
        let label = sanitise(&name);
        let label = if INTRINSICS.contains(&label.as_str()) { format!("__{label}") } else { label };
        if let Some(before) = known.insert(label.clone(), name.clone()) {
            return Err(format!("dimension {name:?} produces label {label:?} which collides with {before:?}"));
        }
    }
    Ok(())
}

/// A name that no key has.
fn unknown<'j>(schema: &Arc<Schema>, path: &str, json: &'j Json) -> Option<&'j str> {
    let Json::Object(members) = json else { return None };
    members.iter().find_map(|(name, value)| {
        // A dotted key does not reach into an object.
        if name.contains('.') {
            return Some(name.as_str());
        }
        let path = join(path, name);
        if schema.leaf(&path).is_some() {
            None
        } else if schema.children(&path).is_some() {
            unknown(schema, &path, value)
        } else {
            Some(name.as_str())
        }
    })
}

fn without_nulls(json: &mut Json) {
    if let Json::Object(members) = json {
        members.retain(|_, value| !value.is_null());
        members.values_mut().for_each(without_nulls);
    }
}

/// Has an object at a path.
fn complete<'p>(mut json: &mut Json, path: impl Iterator<Item = &'p str>) {
    for name in path {
        let Json::Object(members) = json else { return };
        json = members.entry(name).or_insert_with(|| Json::Object(Map::new()));
    }
}

fn merge(target: &mut Json, patch: &Json) {
    let Json::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Json::Object(Map::new());
    }
    let Json::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.as_str()).or_insert(Json::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(document: Json, text: &str) {
        assert_eq!(OwnOverrides::new(document, &["kafka".to_owned()]).expect_err("refused"), text);
    }

    #[test]
    fn a_document_is_completed() {
        let empty = json!({"cost_attribution": {}, "metrics_generator": {"processor": {"service_graphs": {}, "span_metrics": {}, "host_info": {}}}});
        assert_eq!(OwnOverrides::new(json!({}), &[]).expect("right").json, empty);
        assert_eq!(OwnOverrides::new(json!({"forwarders": null}), &[]).expect("right").json, empty);
        let document = json!({
            "forwarders": ["kafka"],
            "metrics_generator": {
                "processors": [], "collection_interval": "30s", "ingestion_time_range_slack": 5_000_000_000_i64,
                "processor": {"span_metrics": {"dimensions": ["a.b"], "intrinsic_dimensions": {"service": false}}}
            }
        });
        let own = OwnOverrides::new(document, &["kafka".to_owned()]).expect("right");
        assert_eq!(own.json["metrics_generator"]["processors"], json!([]), "an empty list says something");
        assert_eq!(own.settings.duration("metrics_generator.collection_interval"), Duration::from_secs(30));
        assert_eq!(own.settings.duration("metrics_generator.ingestion_time_range_slack"), Duration::from_secs(5));
        assert_eq!(own.settings.strings("metrics_generator.processor.span_metrics.dimensions"), ["a.b"]);
    }

    #[test]
    fn mistakes_are_named() {
        refused(json!({"ingestion": {"rate_limit_bytes": 5}}), "json: unknown field \"ingestion\"");
        refused(json!({"metrics_generator": {"ring_size": 1}}), "json: unknown field \"ring_size\"");
        refused(json!({"metrics_generator": {"processor": {"local_blocks": {}}}}), "json: unknown field \"local_blocks\"");
        refused(json!({"metrics_generator.processors": []}), "json: unknown field \"metrics_generator.processors\"");
        refused(json!([]), "json: the document is not an object");
        refused(json!({"forwarders": ["x"]}), "forwarder \"x\" is not a known forwarder, contact your system administrator");
        refused(
            json!({"metrics_generator": {"collection_interval": "10s"}}),
            "metrics_generator.collection_interval must be between 15s and 5m",
        );
        refused(
            json!({"metrics_generator": {"ingestion_time_range_slack": "13h"}}),
            "metrics_generator.ingestion_time_range_slack must be between 0s and 12h",
        );
        assert!(OwnOverrides::new(json!({"metrics_generator": {"processors": ["local-blocks"]}}), &[]).is_err());
        let buckets = json!({"metrics_generator": {"processor": {"service_graphs": {"histogram_buckets": [2, 1]}}}});
        assert!(OwnOverrides::new(buckets, &[]).expect_err("refused").contains("must be strictly increasing"));
        assert!(OwnOverrides::parse(b"{", &[]).is_err());
        let spans = |spans: Json| json!({"metrics_generator": {"processor": {"span_metrics": spans}}});
        refused(
            spans(json!({"dimensions": ["http.method", "http_method"]})),
            "dimension \"http_method\" produces label \"http_method\" which collides with \"http.method\"",
        );
        refused(
            spans(json!({"dimensions": ["service"], "dimension_mappings": [{"name": "__service", "source_labels": ["a"]}]})),
            "dimension \"__service\" produces label \"__service\" which collides with \"service\"",
        );
        let distinct = json!({"dimensions": ["a.b", "service"], "dimension_mappings": [{"name": "a.c", "source_labels": ["a.b"]}]});
        assert!(OwnOverrides::new(spans(distinct), &[]).is_ok());
    }

    #[test]
    fn patches_are_merged() {
        let before = OwnOverrides::new(json!({"metrics_generator": {"processors": ["host-info"], "disable_collection": true}}), &[]);
        let before = before.expect("right");
        let patch = json!({"metrics_generator": {"processors": ["span-metrics"], "disable_collection": null}});
        let after = OwnOverrides::patched(Some(&before), &patch);
        assert_eq!(after["metrics_generator"]["processors"], json!(["span-metrics"]));
        assert!(after["metrics_generator"].get("disable_collection").is_none());
        assert_eq!(OwnOverrides::patched(None, &json!({"forwarders": ["a"]})), json!({"forwarders": ["a"]}));
    }
}
