//! The rendered tree, run for real: each pod is a process with the arguments, the environment and the files that its container would have, at a
//! loopback address of its own, with the ports of the tree. What is outside of them is real, too: a server that speaks S3, memcached, Prometheus.
//!
//! Spans go in at the distributor; they are found at the frontend, recent and in blocks, and counted at Prometheus, once whatever the copies.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command},
};

use serde_json::Value;
use storage::id::TraceId;

use super::{Object, list_of, mixin::missing, render, workload};
use crate::{
    harness::{
        client::{Client, spans},
        eventually,
        network::Network,
        otlp::{body, span},
        s3::{ACCESS_KEY, BUCKET, SECRET_KEY, Server as S3},
        server,
    },
    memcached::process::Memcached,
    prometheus::Prometheus,
};

/// Pods, by role, in the order in which they get addresses.
const PODS: [(&str, usize); 6] =
    [("ingester", 3), ("metrics-generator", 1), ("distributor", 1), ("query-frontend", 1), ("querier", 1), ("compactor", 1)];

/// Traces that are sent.
const TRACES: u64 = 40;

/// What stands behind the names that only the cluster knows.
struct Outside {
    s3: S3,
    memcached: Memcached,
    prometheus: Prometheus,
    bucket: tempfile::TempDir,
}

/// A container's process. Killed when dropped; its log is printed if the test fails.
struct Pod {
    role: &'static str,
    name: String,
    address: String,
    dir: tempfile::TempDir,
    process: Child,
}

impl Pod {
    fn client(&self) -> Client {
        let at = |port: u16| format!("{}:{port}", self.address);
        Client::of([at(3100), at(4317), at(4318)])
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            server::print_end(&self.name, &fs::read_to_string(self.dir.path().join("log")).unwrap_or_default(), 25);
        }
    }
}

/// Names of the cluster and what stands for them here.
fn names(outside: &Outside, network: &Network) -> Vec<(String, String)> {
    let first = |role: &str| PODS.iter().take_while(|(name, _)| *name != role).map(|(_, pods)| pods).sum();
    let address = |role: &str| network.address(first(role));
    let ingesters: Vec<String> = (0..3).map(|node| format!("\"dns+{}:7946\"", network.address(node))).collect();
    [
        ("\"dns+gossip-ring.tempo.svc.cluster.local:7946\"", ingesters.join(", ")),
        ("query-frontend-discovery.tempo.svc.cluster.local", address("query-frontend")),
        ("http://mimir-distributor.mimir.svc.cluster.local:8080/api/v1/push", format!("{}/api/v1/write", outside.prometheus.url)),
        ("mcrouter.tempo.svc.cluster.local:5000", outside.memcached.address.to_string()),
        ("minio.tempo.svc.cluster.local:9000", outside.s3.address.to_string()),
        ("bucket: tempo", format!("bucket: {BUCKET}")),
    ]
    .map(|(name, stand_in)| (name.to_owned(), stand_in))
    .to_vec()
}

/// The files of the ConfigMap whose name begins so.
fn files(objects: &[Object], name: &str) -> BTreeMap<String, String> {
    let map = objects.iter().find(|object| object.kind() == "ConfigMap" && object.name().starts_with(name));
    let data = map.unwrap_or_else(|| panic!("no ConfigMap {name}")).at("/data").as_object().expect("files").clone();
    data.into_iter().map(|(file, text)| (file, text.as_str().expect("text").to_owned())).collect()
}

/// Writes the files of `/etc/tempo` with this pod's addresses, each of which the tree leaves to the pod's network.
fn write_files(objects: &[Object], dir: &Path, address: &str, names: &[(String, String)]) {
    for (file, text) in files(objects, "tempo-config").into_iter().chain(files(objects, "tempo-overrides")) {
        let mut text = text;
        if file == "tempo.yaml" {
            for (name, stand_in) in names {
                assert!(text.contains(name.as_str()), "{file} does not say {name}");
                text = text.replace(name.as_str(), stand_in);
            }
            let listen = format!("server:\n  http_listen_address: {address}\n  grpc_listen_address: {address}\n");
            let gossip = format!("memberlist:\n  bind_addr: [{address}]\n  gossip_interval: 200ms\n");
            for (block, more) in [("server:\n", listen), ("memberlist:\n", gossip)] {
                assert_eq!(text.matches(&format!("\n{block}")).count(), 1, "{block}");
                text = text.replacen(&format!("\n{block}"), &format!("\n{more}"), 1);
            }
            let dataflow = "dataflow: { workers: 2 }";
            assert!(text.contains(dataflow));
            text = text.replace(dataflow, &format!("dataflow: {{ workers: 2, listen_address: {address} }}"));
            text = text.replace("0.0.0.0:", &format!("{address}:"));
        }
        let text = text.replace("/etc/tempo", &dir.display().to_string()).replace("/var/tempo", &dir.join("data").display().to_string());
        fs::write(dir.join(file), text).expect("writable");
    }
}

/// The container's variables as the kubelet would fill them in.
fn environment(container: &Object, name: &str, address: &str) -> BTreeMap<String, String> {
    let value = |variable: &Value| {
        let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
        let secret = variable.pointer("/valueFrom/secretKeyRef/key").and_then(Value::as_str);
        match (variable["value"].as_str(), field, secret) {
            (Some(value), None, None) => value.to_owned(),
            (None, Some("metadata.name"), None) => name.to_owned(),
            (None, Some("status.podIP"), None) => address.to_owned(),
            (None, None, Some("access-key")) => ACCESS_KEY.to_owned(),
            (None, None, Some("secret-key")) => SECRET_KEY.to_owned(),
            _ => panic!("{variable} comes from nowhere"),
        }
    };
    let variables = list_of(container.at("/env"));
    variables.iter().map(|variable| (variable["name"].as_str().expect("a name").to_owned(), value(variable))).collect()
}

fn start(objects: &[Object], role: &'static str, number: usize, address: String, names: &[(String, String)]) -> Pod {
    let pods = workload(objects, role).pods().expect("pods");
    let containers = list_of(pods.at("/spec/containers"));
    let [container] = containers.as_slice() else { panic!("{role} has {} containers", containers.len()) };
    let container = Object(container.clone());
    let name = format!("tempo-{role}-{number}");
    let dir = tempfile::Builder::new().prefix("rubato-pod-").tempdir().expect("a temporary folder");
    write_files(objects, dir.path(), &address, names);
    let arguments = list_of(container.at("/args"));
    let arguments =
        arguments.iter().map(|argument| argument.as_str().expect("text").replace("/etc/tempo", &dir.path().display().to_string()));
    let mut environment = environment(&container, &name, &address);
    // Nobody listens at the collector of own traces.
    environment.retain(|name, _| !name.starts_with("JAEGER_"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_rubato"));
    command.args(arguments).envs(environment);
    let process = server::spawn(command, dir.path(), &dir.path().join("log"));
    Pod { role, name, address, dir, process }
}

/// Starts every pod and waits until the probe of each is content.
async fn start_all(objects: &[Object], outside: &Outside) -> Vec<Pod> {
    let network = Network::new();
    let names = names(outside, &network);
    let mut pods = Vec::new();
    for (role, count) in PODS {
        for number in 0..count {
            let address = network.address(pods.len());
            pods.push(start(objects, role, number, address, &names));
        }
    }
    for pod in &mut pods {
        let client = pod.client();
        eventually(&format!("{} is ready", pod.name), || {
            let status = pod.process.try_wait().expect("a child can be asked");
            assert!(status.is_none(), "{} ended: {status:?}", pod.name);
            let client = client.clone();
            async move { client.get("/ready").await.is_ok_and(|answer| answer.status == 200).then_some(()) }
        })
        .await;
    }
    pods
}

fn of<'a>(pods: &'a [Pod], role: &str) -> &'a Pod {
    pods.iter().find(|pod| pod.role == role).expect("every role has a pod")
}

fn id(number: u64) -> TraceId {
    TraceId((u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_six_roles_of_the_tree_work_together() {
    let Some(objects) = render("overlays/dev") else { return };
    let Some(memcached) = Memcached::start() else { return };
    let Some(prometheus) = Prometheus::start().await else { return };
    let bucket = tempfile::tempdir().expect("a folder");
    let outside = Outside { s3: S3::start(bucket.path().to_owned()).await, memcached, prometheus, bucket };
    let pods = start_all(&objects, &outside).await;
    let (distributor, frontend) = (of(&pods, "distributor").client(), of(&pods, "query-frontend").client());

    for number in 0..TRACES {
        let sent = || distributor.export(body("checkout", vec![span(id(number), number + 1, "pay")]), None);
        // The ring may not be known everywhere yet.
        eventually("a span is taken", async || sent().await.ok()).await;
    }
    let everything_is_there = async |when: &str| {
        for number in 0..TRACES {
            let trace = eventually(&format!("{when}: trace {number}"), || frontend.trace(id(number))).await;
            assert_eq!(spans(&trace).count(), 1, "{when}: trace {number}");
        }
        eventually(&format!("{when}: all are found"), async || {
            let found = frontend.search("{ resource.service.name = \"checkout\" && name = \"pay\" }", 1000).await;
            assert!(found.len() as u64 <= TRACES, "{when}: {} found", found.len());
            (found.len() as u64 == TRACES).then_some(())
        })
        .await;
    };
    everything_is_there("recent").await;

    for pod in pods.iter().filter(|pod| pod.role == "ingester") {
        let answer = pod.client().get("/flush").await.expect("an answer");
        assert_eq!(answer.status, 204, "{}: {}", pod.name, answer.text());
    }
    everything_is_there("in blocks").await;
    assert!(outside.bucket.path().join(BUCKET).join("single-tenant").is_dir(), "blocks are in the bucket");

    // Three copies of each span, one count.
    let expected = TRACES as f64;
    eventually("every span is counted", async || {
        let query = "sum(traces_spanmetrics_calls_total{service=\"checkout\", span_name=\"pay\", cluster=\"dev\"})";
        let counted = outside.prometheus.query(query).await;
        let counted = counted.first().map(|(_, values)| values[0])?;
        assert!(counted <= expected, "{counted} counted of {expected}");
        ((counted - expected).abs() < f64::EPSILON).then_some(())
    })
    .await;

    // Dashboards find what they select.
    eventually("every role shows its metrics", async || {
        let mut all = Vec::new();
        for pod in &pods {
            let exposed = pod.client().get("/metrics").await.expect("an answer").text();
            all.extend(missing(pod.role, &exposed).into_iter().map(|name| (pod.name.as_str(), name)));
        }
        if !all.is_empty() {
            eprintln!("not there yet: {all:?}");
        }
        all.is_empty().then_some(())
    })
    .await;

    // As `kubectl delete -k` does.
    let mut pods = pods;
    for pod in &pods {
        let sent = Command::new("kill").args(["-TERM", &pod.process.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
    for pod in &mut pods {
        let name = pod.name.clone();
        let status = eventually(&format!("{name} ends"), || {
            let status = pod.process.try_wait().expect("a child can be asked");
            async move { status }
        })
        .await;
        assert!(status.success(), "{name}: {status}");
    }
}
