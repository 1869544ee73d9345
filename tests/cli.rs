//! Flags and configuration files, in the spellings and with the answers that Tempo's users know.

use std::{fs, path::Path, process::Output};

use crate::harness::server::run;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn with_config(text: &str, more: &[&str]) -> Output {
    let dir = folder();
    let path = dir.path().join("config.yaml");
    fs::write(&path, text).expect("the configuration is written");
    let file = format!("-config.file={}", path.display());
    let arguments: Vec<&str> = [file.as_str()].into_iter().chain(more.iter().copied()).collect();
    run(dir.path(), &arguments)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const GOOD: &str = "\
storage:
  trace:
    backend: local
    local:
      path: ./blocks
    wal:
      path: ./wal
";

#[test]
fn version_is_printed_in_both_spellings() {
    for spelling in ["-version", "--version"] {
        let output = run(folder().path(), &[spelling]);
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{spelling}: {output:?}");
        assert!(printed.contains("version"), "{printed}");
        assert!(printed.contains(env!("CARGO_PKG_VERSION")), "{printed}");
    }
}

#[test]
fn a_good_configuration_is_verified() {
    for flag in ["-config.verify", "--config.verify", "-config.verify=true"] {
        let output = with_config(GOOD, &[flag]);
        assert_eq!(output.status.code(), Some(0), "{flag}: {output:?}");
    }
}

#[test]
fn a_configuration_with_a_warning_is_not_verified() {
    let output = with_config(&format!("{GOOD}distributor:\n  log_received_spans:\n    enabled: true\n"), &["-config.verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn unknown_keys_are_refused_with_their_lines() {
    let output = with_config("server:\n  http_listen_port: 0\n  http_listen_prot: 1\ningester:\n  trace_idle: 5s\n", &["-config.verify"]);
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(printed.contains("failed parsing config: failed to parse configFile"), "{printed}");
    assert!(printed.contains("line 3: field http_listen_prot not found"), "{printed}");
    assert!(printed.contains("line 5: field trace_idle not found"), "all problems at once: {printed}");
}

#[test]
fn wrong_types_and_missing_files_are_refused() {
    let output = with_config("server:\n  http_listen_port: many\n", &["-config.verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("line 2"), "{output:?}");

    let output = run(folder().path(), &["-config.file=absent.yaml", "-config.verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("failed to read configFile absent.yaml"), "{output:?}");
}

#[test]
fn the_environment_is_expanded_only_when_asked() {
    let config = format!("{GOOD}server:\n  log_level: ${{RUBATO_TEST_LEVEL:-info}}\n");
    assert_eq!(with_config(&config, &["-config.expand-env", "-config.verify"]).status.code(), Some(0));
    assert_eq!(with_config(&config, &["-config.expand-env=true", "-config.verify"]).status.code(), Some(0));
    assert_eq!(with_config(&config, &["-config.verify"]).status.code(), Some(1));
}

#[test]
fn unknown_flags_end_with_usage() {
    let output = run(folder().path(), &["-no-such-flag"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("no-such-flag"), "{output:?}");
}

#[test]
fn unknown_targets_are_refused() {
    for arguments in [["-target=nothing", "-log.level=info"], ["--target", "nothing"]] {
        let output = run(folder().path(), &arguments);
        assert!(!output.status.success(), "{output:?}");
        let printed = text(&output.stderr) + &text(&output.stdout);
        assert!(printed.contains("nothing"), "{printed}");
    }
}

#[test]
fn load_explains_itself_and_fails_without_endpoint() {
    let output = run(folder().path(), &["load", "--help"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("--rate"), "{output:?}");

    // Nothing listens on the discard port.
    let dir = folder();
    let output =
        run(dir.path(), &["load", "--endpoint", "http://127.0.0.1:9", "--spans", "10", "--retry-for", "200ms", "--truth", "truth.json"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("given up"), "{output:?}");
    assert!(Path::new(&dir.path().join("truth.json")).exists());
}

/// Runs `rubato config …` on a file with this text; `FILE` stands for it.
fn config_tool(text: &str, arguments: &[&str]) -> Output {
    let dir = folder();
    let path = dir.path().join("tempo.yaml");
    fs::write(&path, text).expect("the configuration is written");
    let path = path.display().to_string();
    let arguments: Vec<&str> =
        ["config"].into_iter().chain(arguments.iter().map(|one| if *one == "FILE" { path.as_str() } else { one })).collect();
    run(dir.path(), &arguments)
}

#[test]
fn a_file_is_checked_with_lines_and_hints() {
    let output = config_tool(GOOD, &["check", "FILE"]);
    assert!(output.status.success() && text(&output.stdout).ends_with("tempo.yaml: ok\n"), "{output:?}");

    let wrong = "server:\n  http_listen_prot: 1\n";
    let output = config_tool(wrong, &["check", "FILE"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = text(&output.stdout);
    assert!(printed.contains("tempo.yaml:2: error: field http_listen_prot not found") && printed.contains("did you mean"), "{printed}");
    let output = config_tool(wrong, &["check", "FILE", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&findings[0]["line"], &findings[0]["level"]), (&2.into(), &"error".into()), "{findings}");

    let strange = format!("{GOOD}distributor:\n  log_received_spans:\n    enabled: true\n");
    let output = config_tool(&strange, &["check", "FILE"]);
    assert!(output.status.success() && text(&output.stdout).contains("tempo.yaml: warning: span logging"), "{output:?}");
    assert_eq!(config_tool(&strange, &["check", "FILE", "--strict"]).status.code(), Some(1));

    // What holds for one target does not for another, and the file of tenants' limits is looked at, too.
    let output = config_tool(GOOD, &["check", "FILE", "--target", "querier"]);
    assert!(text(&output.stdout).contains("warning: local backend"), "{output:?}");
    let limits = format!("{GOOD}overrides:\n  per_tenant_override_config: ./nowhere.yaml\n");
    let output = config_tool(&limits, &["check", "FILE"]);
    assert!(!output.status.success() && text(&output.stdout).contains("nowhere.yaml"), "{output:?}");
}

#[test]
fn what_holds_is_printed_with_secrets_masked() {
    let secret = "storage:\n  trace:\n    backend: s3\n    s3: {bucket: b, endpoint: e, access_key: k, secret_key: hush}\n";
    let output = config_tool(secret, &["print", "FILE", "--mode", "diff"]);
    let printed = text(&output.stdout);
    assert!(output.status.success() && printed.contains("bucket: b\n") && !printed.contains("hush"), "{output:?}");
    let output = config_tool(secret, &["print", "FILE"]);
    assert!(text(&output.stdout).contains("http_listen_port: 3200"), "with the defaults: {output:?}");
}

#[test]
fn an_old_file_is_migrated_to_one_that_verifies() {
    let old = format!("search_enabled: true\nquery_frontend:\n  query_shards: 60\noverrides:\n  ingestion_rate_limit_bytes: 5\n{GOOD}");
    assert_eq!(config_tool(&old, &["check", "FILE"]).status.code(), Some(1));
    let output = config_tool(&old, &["migrate", "FILE"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("line 1: search_enabled: removed"), "{output:?}");
    let migrated = text(&output.stdout);
    assert!(migrated.contains("trace_by_id:\n        query_shards: 60"), "{migrated}");
    let output = config_tool(&migrated, &["check", "FILE", "--strict"]);
    assert!(output.status.success(), "{migrated}\n{output:?}");
}
