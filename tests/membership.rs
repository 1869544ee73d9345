//! Processes that find each other by gossip, and what their rings say when some of them come and go.

use std::{collections::BTreeSet, fs};

use storage::id::TraceId;

use crate::harness::{
    eventually,
    network::{Network, ring, start_all, until_state},
    otlp::{body, span},
    server::{Config, Server, run},
};

async fn alive(server: &Server) -> usize {
    let json = server.client().get_as("/memberlist", "application/json").await.json();
    json["members"].as_array().expect("a list").iter().filter(|member| member["state"] == "Alive").count()
}

#[tokio::test]
async fn five_ingesters_come_and_go() {
    let network = Network::new();
    let mut nodes: Vec<Server> = (0..5)
        .map(|node| Server::prepare(network.ingester(node, 5, "", if node == 2 { ", unregister_on_shutdown: false" } else { "" })))
        .collect();
    start_all(&mut nodes).await;
    for node in &nodes {
        eventually("all see all", async || {
            let ring = ring(node).await;
            let are_well = ring.values().all(|(state, tokens)| state == "ACTIVE" && tokens.len() == 16);
            (ring.len() == 5 && are_well && alive(node).await == 5).then_some(())
        })
        .await;
    }
    let before = ring(&nodes[0]).await;
    for node in &nodes[1..] {
        assert_eq!(ring(node).await, before);
    }
    let page = nodes[0].client().get_as("/ingester/ring", "text/html").await.text();
    assert!(page.contains("<td>ingester-4</td>") && page.contains("Forget"), "{page}");

    // Killed, it is unhealthy, and comes back with the tokens that the others remember.
    nodes[4].kill();
    let [first, second, third, fourth, fifth] = &mut nodes[..] else { unreachable!("there are five") };
    until_state(&[first, second, third, fourth], "ingester-4", Some("UNHEALTHY")).await;
    assert!((first.client().metric("tempo_ring_members", &["name=\"ingester\"", "state=\"Unhealthy\""]).await - 1.0).abs() < f64::EPSILON);
    fifth.start_again().await;
    until_state(&[first, second, third, fourth, fifth], "ingester-4", Some("ACTIVE")).await;
    assert_eq!(ring(first).await, before);

    // Killed for good, it is in the ring until somebody says that it is to be forgotten.
    fifth.kill();
    until_state(&[first, second], "ingester-4", Some("UNHEALTHY")).await;
    let forget = |id: &'static str| {
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client")
            .post(format!("{}/ingester/ring", second.url()))
            .body(format!("forget={id}"))
            .header("content-type", "application/x-www-form-urlencoded")
    };
    assert_eq!(forget("nobody").send().await.expect("an answer").status(), 404);
    assert_eq!(forget("ingester-4").send().await.expect("an answer").status(), 302);
    until_state(&[first, second, third, fourth], "ingester-4", None).await;

    // One that ends in order is gone; one that is to come back is LEAVING, and then has its tokens again.
    assert!(fourth.terminate().await.success());
    until_state(&[first, second, third], "ingester-3", None).await;
    assert!(third.terminate().await.success());
    until_state(&[first, second], "ingester-2", Some("LEAVING")).await;
    third.start_again().await;
    until_state(&[first, second, third], "ingester-2", Some("ACTIVE")).await;
    assert_eq!(ring(second).await.get("ingester-2"), before.get("ingester-2"));
    eventually("three are alive", async || (alive(first).await == 3).then_some(())).await;
}

#[tokio::test]
async fn clusters_of_different_labels_do_not_mix() {
    let network = Network::new();
    let mut nodes = [(0, "blue"), (1, "blue"), (2, "red")].map(|(node, label)| Server::prepare(network.ingester(node, 3, label, "")));
    start_all(&mut nodes).await;
    let [first, second, red] = &nodes;
    for node in [first, second] {
        eventually("the blue ones meet", async || (ring(node).await.len() == 2).then_some(())).await;
    }
    eventually("the red one is turned away", async || {
        (first.client().metric("rubato_memberlist_refused_connections_total", &["reason=\"cluster_label\""]).await > 0.0).then_some(())
    })
    .await;
    assert_eq!(ring(red).await.into_keys().collect::<Vec<_>>(), ["ingester-2"]);
    assert_eq!((ring(first).await.len(), alive(first).await, alive(red).await), (2, 2, 1));
}

/// The TCP ports that a process listens on.
fn listening(pid: u32) -> BTreeSet<u16> {
    let sockets = fs::read_dir(format!("/proc/{pid}/fd")).expect("Linux tells about processes");
    let sockets = sockets.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let sockets: BTreeSet<String> = sockets.map(|target| target.to_string_lossy().into_owned()).collect();
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let port = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        // 0A is LISTEN.
        let own = *state == "0A" && sockets.contains(&format!("socket:[{inode}]"));
        own.then(|| u16::from_str_radix(address.rsplit(':').next().expect("a port"), 16).expect("hexadecimal"))
    };
    tables.iter().flat_map(|table| table.lines().filter_map(port)).collect()
}

#[tokio::test]
async fn single_binaries_live_side_by_side_and_open_nothing_to_the_network() {
    // Whatever a file for a cluster says of rings: this target is alone (config.md §1).
    let written = "memberlist: {join_members: [nowhere]}\ncompactor: {ring: {kvstore: {store: memberlist}}}";
    let mut servers = [Server::prepare(Config::default()), Server::prepare(Config { more: written, ..Config::default() })];
    start_all(&mut servers).await;
    for (server, number) in servers.iter().zip(1..) {
        assert_eq!(listening(server.pid()), server.ports().into(), "its own ports, no gossip, no mesh");
        let ring = ring(server).await;
        assert_eq!(ring.values().map(|(state, tokens)| (state.as_str(), tokens.len())).collect::<Vec<_>>(), [("ACTIVE", 128)]);
        let page = server.client().get("/memberlist").await.expect("an answer");
        assert_eq!(page.status, 200);
        let metrics = server.client().get("/metrics").await.expect("an answer").text();
        for absent in ["tempo_memberlist", "rubato_memberlist", "rubato_distributor_replicat", "tempo_distributor_ingester_"] {
            assert!(!metrics.contains(absent), "{absent} in {metrics}");
        }
        for present in [
            "tempo_ring_members{name=\"ingester\",state=\"ACTIVE\"} 1",
            "tempo_ring_members{name=\"ingester\",state=\"Unhealthy\"} 0",
            "tempo_ingester_replay_errors_total{tenant=\"\"} 0",
        ] {
            assert!(metrics.contains(present), "{present} not in {metrics}");
        }
        let id = TraceId([number; 16]);
        server.client().export(body("shop", vec![span(id, 1, "buy")]), None).await.expect("it takes spans");
        eventually("the trace", async || server.client().trace(id).await).await;
        let bytes =
            server.client().metric("tempo_ingester_bytes_received_total", &["tenant=\"single-tenant\"", "data_type=\"trace\""]).await;
        assert!(bytes > 0.0);
    }
    assert!(servers[0].client().trace(TraceId([2; 16])).await.is_none(), "they know nothing of each other");
}

#[tokio::test]
async fn rings_that_cannot_be_kept_are_refused_by_name() {
    for (target, block, expected) in [
        (
            "ingester",
            "ingester: {lifecycler: {ring: {kvstore: {store: consul}}}}",
            "ingester.lifecycler.ring.kvstore.store: \"consul\" is not available: rings are kept in memberlist or inmemory",
        ),
        ("compactor", "compactor: {ring: {kvstore: {store: etcd}}}", "compactor.ring.kvstore.store: \"etcd\" is not available"),
        ("distributor", "ingester: {lifecycler: {ring: {kvstore: {store: inmemory}}}}", "a distributor finds ingesters by memberlist"),
        ("distributor", "ingester: {lifecycler: {ring: {kvstore: {store: \"\"}}}}", "a distributor finds ingesters by their ring"),
        ("ingester", "memberlist: {tls_enabled: true}", "memberlist.tls_enabled: needs tls_cert_path and tls_key_path"),
        ("distributor", "memberlist: {join_members: [\"consul+x\"]}", "\"consul+\" is not one of dns+, dnssrv+, dnssrvnoa+"),
    ] {
        let network = Network::new();
        let dir = tempfile::tempdir().expect("a folder");
        let member = if block.starts_with("memberlist") { String::new() } else { network.memberlist(0, 0, "") };
        let ports = "server: {http_listen_address: 127.0.0.1, http_listen_port: 0, grpc_listen_address: 127.0.0.1, grpc_listen_port: 0}";
        let receivers = "distributor: {receivers: {otlp: {protocols: {http: {endpoint: \"127.0.0.1:0\"}}}}}";
        let storage = "storage: {trace: {backend: local, local: {path: blocks}, wal: {path: wal}}}";
        let config = dir.path().join("config.yaml");
        fs::write(&config, format!("target: {target}\n{ports}\n{receivers}\n{storage}\n{block}\n{member}")).expect("written");
        let output = run(dir.path(), &[&format!("-config.file={}", config.display())]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let printed = printed.replace("\\\"", "\"");
        assert!(!output.status.success() && printed.contains(expected), "{target}, {block}: {printed}");
        // Who asks beforehand is told the same.
        let checked = run(dir.path(), &["config", "check", &config.display().to_string()]);
        let printed = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(!checked.status.success() && printed.contains(expected), "{target}, {block}: {printed}");
    }
}
