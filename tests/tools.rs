//! `rubato blocks` and `rubato trace` on blocks that Tempo wrote.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    s3::{ACCESS_KEY, BUCKET, SECRET_KEY, Server as S3},
    server::run,
};

const VERSIONS: [&str; 4] = ["vParquet2", "vParquet3", "vParquet4", "vParquet5"];

fn fixtures() -> Option<PathBuf> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures/blocks"));
    if !root.exists() {
        eprintln!("skipped: no fixtures at {}", root.display());
        return None;
    }
    Some(root)
}

/// The two blocks of a version that hold the same 200 traces.
fn ids(version: &str) -> [String; 2] {
    let number = &version["vParquet".len()..];
    [format!("{number}a000000-0000-4000-8000-0000000000aa"), format!("{number}b000000-0000-4000-8000-0000000000bb")]
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).expect("a copy");
    }
}

/// A bucket with the folders of these tenants of a version.
fn bucket(version: &str, tenants: &[&str]) -> Option<TempDir> {
    let root = fixtures()?;
    let dir = tempfile::tempdir().expect("a temporary folder");
    for tenant in tenants {
        copy(&root.join(version).join(tenant), &dir.path().join("blocks").join(tenant));
    }
    Some(dir)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a tool on the bucket `blocks` of a folder.
fn tool(dir: &TempDir, arguments: &[&str]) -> Output {
    run(dir.path(), &[arguments, &["--bucket", "blocks"]].concat())
}

fn good(dir: &TempDir, arguments: &[&str]) -> String {
    let output = tool(dir, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    text(&output.stdout)
}

fn good_json(dir: &TempDir, arguments: &[&str]) -> Value {
    let printed = good(dir, arguments);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Runs a tool that must fail and returns what it says, its table and its error.
fn bad(dir: &TempDir, arguments: &[&str]) -> (String, String) {
    let output = tool(dir, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn blocks_are_listed() {
    for version in VERSIONS {
        let Some(dir) = bucket(version, &["fixture-tenant", "compaction-tenant"]) else { return };
        let table = good(&dir, &["blocks", "list"]);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("TENANT") && lines.last().expect("a sum").starts_with("3 live blocks, 440 traces"), "{table}");
        for id in ids(version) {
            let line = lines.iter().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("{id} in {table}"));
            assert!(line.starts_with("fixture-tenant") && line.contains(version) && line.contains(" 200 "), "{line}");
        }
        let list = good_json(&dir, &["blocks", "list", "--json", "--compacted"]);
        let compacted = |entry: &&Value| entry.get("compactedTime").is_some();
        let list = list.as_array().expect("a list");
        assert_eq!((list.len(), list.iter().filter(compacted).count()), (5, 2));
        let one = good_json(&dir, &["blocks", "list", "--json", "--tenant", "compaction-tenant"]);
        assert_eq!(one.as_array().map(Vec::len), Some(1));
        assert_eq!((&one[0]["totalObjects"], &one[0]["compactionLevel"], &one[0]["format"]), (&json!(40), &json!(1), &json!(version)));
    }
}

#[test]
fn a_block_is_shown_and_analysed() {
    for version in VERSIONS {
        let Some(dir) = bucket(version, &["fixture-tenant"]) else { return };
        let [main, multi] = ids(version);
        let shown = good(&dir, &["blocks", "show", &main[..2]]);
        assert!(shown.contains(&main) && shown.contains(version) && shown.contains("Spans.SpanID"), "{shown}");
        let shown = good_json(&dir, &["blocks", "show", &multi, "--json"]);
        let groups = shown["rowGroups"].as_array().expect("row groups");
        assert!(groups.len() >= 9);
        assert_eq!(groups.iter().map(|group| group["traces"].as_u64().expect("a number")).sum::<u64>(), 200);
        let analysed = good_json(&dir, &["blocks", "analyse", &main, "--json"]);
        assert_eq!((&analysed["traces"], &analysed["spans"]), (&json!(200), &json!(1474)));
        let analysed = good(&dir, &["blocks", "analyze", &main]);
        assert!(analysed.contains("200 traces, 1,474 spans") && analysed.contains("SPAN ATTRIBUTE"), "{analysed}");
    }
}

#[test]
fn good_blocks_verify_and_damaged_ones_are_named() {
    for version in VERSIONS {
        let Some(dir) = bucket(version, &["fixture-tenant", "compaction-tenant"]) else { return };
        let table = good(&dir, &["blocks", "verify"]);
        assert_eq!(table.lines().filter(|line| line.ends_with(" good")).count(), 3, "{table}");
        let [main, multi] = ids(version);
        let folder = |id: &str| dir.path().join("blocks/fixture-tenant").join(id);

        fs::remove_file(folder(&multi).join("bloom-2")).expect("removed");
        let bloom = folder(&main).join("bloom-0");
        let mut filter = fs::read(&bloom).expect("a filter");
        filter[24..].fill(0);
        fs::write(&bloom, &filter).expect("written");
        let (table, error) = bad(&dir, &["blocks", "verify"]);
        assert!(table.contains("bloom-2 is missing") && table.contains("bloom-0 does not have trace"), "{table}");
        assert!(error.contains("2 of 3 blocks are not good"), "{error}");

        copy(&fixtures().expect("fixtures").join(version).join("fixture-tenant"), &dir.path().join("blocks/fixture-tenant"));
        let path = folder(&main).join("data.parquet");
        let mut data = fs::read(&path).expect("data");
        data[1000..2000].fill(0xa5);
        fs::write(&path, data).expect("written");
        let path = folder(&multi).join("meta.json");
        let meta = fs::read_to_string(&path).expect("a meta");
        fs::write(&path, meta.replace("\"totalObjects\":200", "\"totalObjects\":201")).expect("written");
        let lines = {
            let output = tool(&dir, &["blocks", "verify", &main, &multi, "--json"]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
        };
        assert!(lines[0]["problems"][0].as_str().is_some_and(|problem| problem.contains("corrupt")), "{lines}");
        assert!(lines[1]["problems"][0].as_str().is_some_and(|problem| problem.contains("201")), "{lines}");
    }
}

/// The spans of a trace without their ids, each with what its resource and scope say, in an order of their own.
fn spans(trace: &Value) -> Vec<String> {
    fn sorted(attributes: &Value) -> Vec<String> {
        // 81 and 81.0 are the same double.
        let text = |attribute: &Value| match attribute["value"]["doubleValue"].as_f64() {
            Some(double) => format!("{} = {double}", attribute["key"]),
            None => attribute.to_string(),
        };
        let mut texts: Vec<_> = attributes.as_array().into_iter().flatten().map(text).collect();
        texts.sort();
        texts
    }
    let mut found = Vec::new();
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    for resource in list(trace, "resourceSpans") {
        for scope in list(&resource, "scopeSpans") {
            for span in list(&scope, "spans") {
                let events = list(&span, "events").into_iter().map(|event| json!([event["name"], sorted(&event["attributes"])]));
                let times = [&span["startTimeUnixNano"], &span["endTimeUnixNano"]];
                let about = (sorted(&resource["resource"]["attributes"]), &scope["scope"]["name"]);
                found.push(json!([about, span["name"], times, sorted(&span["attributes"]), events.collect::<Vec<_>>()]).to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn traces_are_found_as_tempo_finds_them_before_and_after_a_rewrite() {
    for (from, to) in VERSIONS.into_iter().zip(["vParquet5", "vParquet4", "vParquet5", "vParquet4"]) {
        let Some(dir) = bucket(from, &["fixture-tenant"]) else { return };
        let [main, multi] = ids(from);
        fs::remove_dir_all(dir.path().join("blocks/fixture-tenant").join(&multi)).expect("removed");
        let readback = fixtures().expect("fixtures").join(format!("readback/{from}.main.otlp.jsonl"));
        let readback = fs::read_to_string(readback).expect("readback");
        let known: Vec<Value> = readback.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let id_of = |trace: &Value| trace["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"].as_str().unwrap_or("").to_owned();
        // Edge cases have tests of their own.
        let known: Vec<_> =
            known.into_iter().filter(|trace| !id_of(trace).is_empty() && !id_of(trace).starts_with("ed9e")).step_by(40).collect();
        assert!(known.len() >= 4);
        let check = || {
            for trace in &known {
                let id = id_of(trace);
                let found = good_json(&dir, &["trace", id.trim_start_matches('0'), "--json"]);
                assert_eq!(spans(&found["trace"]), spans(trace), "{id}");
                let drawn = good(&dir, &["trace", &id, "--verbose"]);
                assert!(drawn.starts_with(&format!("trace {id}: {} spans", spans(trace).len())), "{drawn}");
            }
        };
        check();
        let said = good(&dir, &["blocks", "rewrite", &main[..2], "--to", to, "--dry-run"]);
        assert!(said.contains(&main) && said.contains(&format!("would be written as {to}")), "{said}");
        let said = good(&dir, &["blocks", "rewrite", &main[..2], "--to", to]);
        assert!(said.contains(&main) && said.contains(&format!("({to}, 200 traces")), "{said}");
        let list = good_json(&dir, &["blocks", "list", "--json", "--compacted"]);
        let (live, gone): (Vec<_>, Vec<_>) =
            list.as_array().expect("a list").iter().partition(|entry| entry.get("compactedTime").is_none());
        assert_eq!((live.len(), gone.len()), (1, 1));
        assert_eq!((&live[0]["format"], &live[0]["compactedFrom"]), (&json!(to), &json!([main])));
        assert_eq!(gone[0]["blockID"], json!(main));
        good(&dir, &["blocks", "verify"]);
        check();
        let said = good(&dir, &["blocks", "rewrite", live[0]["blockID"].as_str().expect("an id"), "--to", to]);
        assert!(said.contains("already"), "{said}");
        let (_, error) = bad(&dir, &["blocks", "rewrite", &main, "--to", to]);
        assert!(error.contains("no live block"), "{error}");
    }
}

#[test]
fn a_kept_block_stays_and_columns_come_from_the_configuration() {
    let Some(dir) = bucket("vParquet4", &["fixture-tenant"]) else { return };
    let [main, _] = ids("vParquet4");
    let config = "storage: {trace: {block: {parquet_dedicated_columns: [{scope: span, name: user.id, type: string}]}}}\n";
    fs::write(dir.path().join("config.yaml"), config).expect("written");
    let said = good(&dir, &["blocks", "rewrite", &main, "--dedicated-columns", "-c", "config.yaml", "--keep"]);
    assert!(said.contains("in two blocks"), "{said}");
    let list = good_json(&dir, &["blocks", "list", "--json"]);
    let new = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|entry| entry["dedicatedColumns"] == json!([{"n": "user.id"}]))
        .expect("the new block");
    assert!(new.get("compactedFrom").is_none() && list.as_array().map(Vec::len) == Some(3), "{list}");
    good(&dir, &["blocks", "verify"]);
}

#[test]
fn what_is_not_there_or_not_known_is_named() {
    let Some(dir) = bucket("vParquet4", &["fixture-tenant"]) else { return };
    let [main, _] = ids("vParquet4");
    for (arguments, expected) in [
        (vec!["trace", "1234567890abcdef"], "no block of tenant \"fixture-tenant\" has trace 00000000000000001234567890abcdef"),
        (vec!["trace", "what"], "\"what\""),
        (vec!["blocks", "show", "ffff"], "no live block \"ffff\" of tenant \"fixture-tenant\""),
        (vec!["blocks", "show", "4"], "is not one block"),
        (vec!["blocks", "rewrite", &main], "--to VERSION"),
        (vec!["blocks", "list", "--tenant", "a/b"], "--tenant a/b"),
    ] {
        let (_, error) = bad(&dir, &arguments);
        assert!(error.starts_with("error: ") && error.contains(expected), "{arguments:?}: {error}");
    }
    let output = tool(&dir, &["blocks", "rewrite", &main, "--to", "vParquet6"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("vParquet6 is not a valid block version"), "{output:?}");
    let output = run(dir.path(), &["blocks", "list", "--bucket", "absent"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("there is no folder absent"), "{output:?}");
    let output = run(dir.path(), &["blocks", "list", "--bucket", "ftp://absent"]);
    assert!(text(&output.stderr).contains("unknown kind \"ftp\""), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_s3_is_as_good_as_a_folder() {
    let Some(dir) = bucket("vParquet5", &["fixture-tenant"]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(folder.path().to_owned()).await;
    copy(&dir.path().join("blocks"), &folder.path().join(BUCKET).join("tempo"));
    let address = s3.address.to_string();
    let url = format!("s3://{BUCKET}/tempo");
    let [main, _] = ids("vParquet5");
    let tool = async |arguments: &[&str]| {
        let there = ["--bucket", &url, "--s3-endpoint", &address, "--s3-insecure", "--s3-user", ACCESS_KEY, "--s3-pass", SECRET_KEY]
            .map(str::to_owned);
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).chain(there).collect();
        let path = dir.path().to_owned();
        let work = move || run(&path, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(work).await.expect("the tool ran");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(&output.stdout)
    };
    assert!(tool(&["blocks", "list"]).await.contains("2 live blocks, 400 traces"));
    let said = tool(&["blocks", "rewrite", &main, "--to", "vParquet4"]).await;
    assert!(said.contains("(vParquet4, 200 traces"), "{said}");
    let verified = tool(&["blocks", "verify"]).await;
    assert_eq!(verified.lines().filter(|line| line.ends_with(" good")).count(), 2, "{verified}");
}
