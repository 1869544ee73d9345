//! Writes in a cluster: a distributor, three ingesters with a log each, three copies of everything. Whatever happens to one ingester, every request
//! is acknowledged meanwhile, and nothing that was acknowledged is lost or there twice.

use storage::id::TraceId;

use crate::harness::{
    eventually,
    ledger::{Ledger, Load, check},
    network::{Network, ring, start_all, until_state},
    otlp::{body, span},
    server::{Config, Server},
};

struct Cluster {
    ingesters: Vec<Server>,
    distributor: Server,
    /// Has the bucket.
    _network: Network,
}

impl Cluster {
    /// Starts all; `change` may change the ingesters' configurations, which share a bucket.
    async fn start(change: impl Fn(usize, &mut Config)) -> Self {
        let network = Network::new();
        let mut ingesters: Vec<Server> = Vec::new();
        for node in 0..3 {
            let mut config = network.ingester(node, 3, "", "");
            change(node, &mut config);
            ingesters.push(Server::prepare(config));
        }
        let distributor = Server::prepare(network.distributor(3, 3));
        let mut cluster = Self { ingesters, distributor, _network: network };
        start_all(cluster.ingesters.iter_mut().chain([&mut cluster.distributor])).await;
        for node in 0..3 {
            cluster.is_active(node).await;
        }
        cluster
    }

    async fn is_active(&self, node: usize) {
        until_state(&[&self.distributor], &format!("ingester-{node}"), Some("ACTIVE")).await;
    }

    fn load(&self, seed: u64) -> Load {
        Load::start(self.distributor.client(), seed)
    }

    /// Bytes that an ingester has taken since it started.
    async fn received(&self, node: usize) -> f64 {
        self.ingesters[node]
            .client()
            .metric("tempo_ingester_bytes_received_total", &["tenant=\"single-tenant\"", "data_type=\"trace\""])
            .await
    }

    /// Pushes to an ingester that the distributor saw fail.
    async fn failures(&self, node: usize) -> f64 {
        let label = format!("ingester=\"{}\"", self.ingesters[node].grpc_address());
        self.distributor.client().metric("tempo_distributor_ingester_append_failures_total", &[&label]).await
    }

    async fn takes_more(&self, node: usize) {
        let before = self.received(node).await;
        eventually(&format!("ingester {node} takes more"), async || (self.received(node).await > before).then_some(())).await;
    }

    /// Looks at the blocks of those ingesters that still run.
    async fn verify(&mut self, ledger: &Ledger, what: &str) {
        assert!(ledger.acknowledged == ledger.sent, "{what}: something was refused");
        let mut bucket = None;
        for server in &mut self.ingesters {
            bucket.get_or_insert(server.blocks_path());
            if server.is_alive() {
                let answer = server.client().get("/flush").await.expect("an answer");
                assert_eq!(answer.status, 204, "{}", answer.text());
            }
        }
        let reader = Server::start(Config { bucket, ..Config::default() }).await;
        check(&reader.client(), ledger, what).await;
        eprintln!("{what}: {} traces", ledger.acknowledged.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_an_ingester_under_load_loses_nothing_and_delays_nobody() {
    let mut cluster = Cluster::start(|_, _| {}).await;
    let load = cluster.load(1);
    load.goes_on().await;
    cluster.ingesters[1].kill();
    load.goes_on().await;
    until_state(&[&cluster.distributor], "ingester-1", Some("UNHEALTHY")).await;
    load.goes_on().await;
    let ledger = load.finish().await;
    assert!(cluster.failures(1).await > 0.0, "it was killed while it was written to");
    cluster.verify(&ledger, "two of three are left").await;

    // It comes back with what it had, takes part again, and now another one may go.
    cluster.ingesters[1].start_again().await;
    cluster.is_active(1).await;
    let load = cluster.load(2);
    cluster.takes_more(1).await;
    cluster.ingesters[2].kill();
    load.goes_on().await;
    let more = load.finish().await;
    cluster.verify(&more, "the one that came back and the first").await;
    cluster.verify(&ledger, "what was there before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_refuses_nothing_and_loses_nothing() {
    let mut cluster = Cluster::start(|_, _| {}).await;
    let load = cluster.load(3);
    for node in 0..3 {
        load.goes_on().await;
        assert!(cluster.ingesters[node].terminate().await.success());
        until_state(&[&cluster.distributor], &format!("ingester-{node}"), None).await;
        load.goes_on().await;
        cluster.ingesters[node].start_again().await;
        cluster.is_active(node).await;
        cluster.takes_more(node).await;
    }
    let ledger = load.finish().await;
    cluster.verify(&ledger, "all were restarted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingester_that_hangs_holds_nobody_up() {
    let mut cluster = Cluster::start(|_, _| {}).await;
    let load = cluster.load(4);
    load.goes_on().await;
    cluster.ingesters[0].signal("STOP");
    load.goes_on().await;
    until_state(&[&cluster.distributor], "ingester-0", Some("UNHEALTHY")).await;
    load.goes_on().await;
    cluster.ingesters[0].signal("CONT");
    cluster.is_active(0).await;
    cluster.takes_more(0).await;
    let ledger = load.finish().await;
    cluster.verify(&ledger, "it hung for a while").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingester_that_refuses_is_outvoted() {
    // The log of one is full after some requests, and stays so as long as nothing is cut.
    let mut cluster = Cluster::start(|node, config| {
        if node == 2 {
            let more = config.more.replace("rubato: {", "rubato: {wal: {file_bytes: 64KiB, max_bytes: 256KiB}, ");
            *config = Config { more: more.leak(), trace_idle_period: "1h", max_block_duration: "1h", ..config.clone() };
        }
    })
    .await;
    let load = cluster.load(5);
    eventually("the full log refuses", async || (cluster.failures(2).await > 5.0).then_some(())).await;
    load.goes_on().await;
    let refused = cluster.ingesters[2].client().metric("rubato_wal_refused_total", &["reason=\"full\""]).await;
    assert!(refused > 0.0);
    let ledger = load.finish().await;
    cluster.ingesters[2].kill();
    cluster.verify(&ledger, "the others have it").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_it_is_refused_and_says_why() {
    let mut cluster = Cluster::start(|_, _| {}).await;
    let export = async |cluster: &Cluster, number: u8| {
        let id = TraceId([number; 16]);
        cluster.distributor.client().export(body("shop", vec![span(id, 1, "buy")]), None).await
    };
    export(&cluster, 1).await.expect("three of three");
    for node in 0..3 {
        eventually("every ingester has its copy", async || (cluster.received(node).await > 0.0).then_some(())).await;
    }
    cluster.ingesters[0].kill();
    export(&cluster, 2).await.expect("two of three are a quorum, though the ring doesn't know yet");
    until_state(&[&cluster.distributor], "ingester-0", Some("UNHEALTHY")).await;
    export(&cluster, 3).await.expect("two of three are a quorum");
    cluster.ingesters[1].kill();
    until_state(&[&cluster.distributor], "ingester-1", Some("UNHEALTHY")).await;
    let refused = export(&cluster, 4).await.expect_err("one of three is none");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let text = "at least 2 live replicas required, could only find 1 - unhealthy instances: 127.0.0.1:";
    assert!(refused.message().contains(text), "{refused}");
    assert_eq!(ring(&cluster.distributor).await.len(), 3, "nobody was forgotten");
}
