//! Alerts and dashboards ask for what exists, and each alert has its paragraph in the runbook.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::tree;

/// Names of metrics in a PromQL expression, without the endings of histograms.
fn metrics(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_part(c) && c != ':').filter(|word| !word.contains(':'));
    let known = ["tempo_", "tempodb_", "rubato_", "traces_", "process_"];
    let names = words.filter(|word| known.iter().any(|prefix| word.starts_with(prefix)));
    let base = |name: &str| ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned();
    // `members_count` and the like are whole names.
    names
        .filter(|name| *name != "tempo_build_info")
        .map(|name| if name.contains("memberlist") { name.to_owned() } else { base(name) })
        .collect()
}

/// Every `expr` in a tree of YAML or JSON.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" => found.push(text.clone()),
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("text"));
        }
    }
}

/// All that the binary is made of.
pub(super) fn all_sources() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for folder in ["src", "dataflow/src", "ingest/src", "query/src", "storage/src"] {
        sources(&root.join(folder), &mut text);
    }
    text
}

fn alerts() -> PathBuf {
    tree("overlays/dev/alerts/rubato.yaml")
}

fn rules() -> Value {
    serde_yaml_ng::from_str(&fs::read_to_string(alerts()).expect("it is part of the tree")).expect("YAML")
}

#[test]
fn alerts_and_dashboards_ask_for_metrics_that_exist() {
    let text = all_sources();
    let mut asked = Vec::new();
    expressions(&rules(), &mut asked);
    for dashboard in fs::read_dir(tree("overlays/dev/grafana/dashboards")).expect("it is part of the tree") {
        let dashboard = fs::read_to_string(dashboard.expect("an entry").path()).expect("text");
        expressions(&serde_json::from_str(&dashboard).expect("JSON"), &mut asked);
    }
    assert!(asked.len() > 50, "{asked:?}");
    let names: BTreeSet<String> = asked.iter().flat_map(|expression| metrics(expression)).collect();
    let missing: Vec<&String> = names.iter().filter(|name| !text.contains(&format!("\"{name}\""))).collect();
    assert!(missing.is_empty(), "nothing has these metrics: {missing:?}");
}

#[test]
fn every_alert_has_its_paragraph_in_the_runbook() {
    let runbook = fs::read_to_string(tree("RUNBOOK.md")).expect("it is part of the tree");
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let rules = rules();
    let groups = rules["groups"].as_array().expect("groups");
    let all = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
    let alerts: BTreeSet<&str> = all.filter_map(|rule| rule["alert"].as_str()).collect();
    assert_eq!(alerts, sections);
}

#[test]
fn prometheus_takes_the_rules() {
    match Command::new("promtool").args(["check", "rules"]).arg(alerts()).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is not installed: {error}");
            eprintln!("skipped: promtool cannot be started: {error}");
        }
    }
}
