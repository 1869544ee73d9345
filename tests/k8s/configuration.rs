//! The configuration that the tree deploys is one that the binary takes, for each role, and what the brief asks of it is in force.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use super::{ROLES, list_of, render, workload};

/// Runs the binary with the deployed files, as the container of a role would be started, and what is appended.
fn run(role: &str, more: &[&str]) -> Option<(bool, String, String)> {
    let objects = render("overlays/dev")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for map in objects.iter().filter(|object| object.kind() == "ConfigMap") {
        for (name, content) in map.at("/data").as_object().expect("it has data") {
            std::fs::write(folder.path().join(name), content.as_str().expect("text")).expect("the folder is writable");
        }
    }
    let pods = workload(&objects, role).pods().expect("it has pods");
    let container = &pods.containers()[0];
    let mounted = list_of(container.at("/volumeMounts")).iter().any(|mount| mount["mountPath"] == "/etc/tempo");
    assert!(mounted, "{role} has no configuration");
    let folder_name = folder.path().to_str().expect("text");
    let args: Vec<String> =
        list_of(container.at("/args")).iter().map(|arg| arg.as_str().expect("text").replace("/etc/tempo", folder_name)).collect();
    // The limits of tenants are read from where the file says.
    let file = folder.path().join("tempo.yaml");
    let text = std::fs::read_to_string(&file).expect("tempo.yaml is deployed").replace("/etc/tempo", folder_name);
    std::fs::write(&file, text).expect("the folder is writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rubato"));
    command.env_clear().args(&args).args(more);
    for variable in list_of(container.at("/env")) {
        let value = match variable.get("value").and_then(Value::as_str) {
            Some(value) => value,
            None if variable.pointer("/valueFrom/fieldRef/fieldPath") == Some(&Value::from("status.podIP")) => "127.0.0.1",
            None => "from-elsewhere",
        };
        command.env(variable["name"].as_str().expect("a name"), value);
    }
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Some((output.status.success(), text(output.stdout), text(output.stderr)))
}

#[test]
fn the_deployed_file_verifies_for_each_role_without_a_warning() {
    for (role, _) in ROLES {
        let Some((success, stdout, stderr)) = run(role, &["-config.verify"]) else { return };
        assert!(success, "{role}: {stdout}{stderr}");
    }
}

#[test]
fn the_deployed_numbers_are_the_promised_ones() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("k8s/overlays/dev/files/tempo.yaml");
    let text = std::fs::read_to_string(path).expect("it is part of the tree");
    let config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let at = |pointer: &str| config.pointer(pointer).cloned().unwrap_or_default();
    for (pointer, expected) in [
        ("/server/http_listen_port", Value::from(3100)),
        ("/server/grpc_listen_port", Value::from(9095)),
        ("/distributor/receivers/otlp/protocols/grpc/endpoint", Value::from("0.0.0.0:4317")),
        ("/ingester/lifecycler/ring/replication_factor", Value::from(3)),
        ("/ingester/flush_all_on_shutdown", Value::from(true)),
        ("/compactor/compaction/block_retention", Value::from("3h")),
        ("/memberlist/bind_port", Value::from(7946)),
        ("/overrides/defaults/ingestion/rate_limit_bytes", Value::from(15_000_000)),
        ("/overrides/defaults/ingestion/burst_size_bytes", Value::from(20_000_000)),
        ("/storage/trace/pool/max_workers", Value::from(400)),
        ("/storage/trace/pool/queue_depth", Value::from(20_000)),
        ("/storage/trace/block/version", Value::from("vParquet2")),
        ("/storage/trace/backend", Value::from("s3")),
        ("/storage/trace/s3/endpoint", Value::from("minio.tempo.svc.cluster.local:9000")),
        ("/cache/caches/0/memcached/ttl", Value::from("48h")),
        ("/cache/caches/0/memcached/addresses", Value::from("mcrouter.tempo.svc.cluster.local:5000")),
        ("/metrics_generator/storage/remote_write/0/url", Value::from("http://mimir-distributor.mimir.svc.cluster.local:8080/api/v1/push")),
        ("/storage/trace/s3/access_key", Value::from("${S3_ACCESS_KEY}")),
        ("/storage/trace/s3/secret_key", Value::from("${S3_SECRET_KEY}")),
    ] {
        assert_eq!(at(pointer), expected, "{pointer}");
    }
}
