//! Queries while an ingester is lost: what was acknowledged is in the answer, or the answer says that it may lack something.

use storage::id::TraceId;

use crate::harness::{
    client::{Client, spans},
    eventually,
    network::{Network, start_all, until_state},
    otlp::{body, span},
    server::{Config, Server},
};

/// Traces that are sent.
const TRACES: u64 = 30;

struct Cluster {
    ingesters: Vec<Server>,
    distributor: Server,
    frontend: Server,
    _querier: Server,
    /// Has the bucket.
    _network: Network,
}

fn id(number: u64) -> TraceId {
    TraceId((u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// An ingester's configuration, or that of whoever looks at the ring, with another number of copies. Nothing becomes a block.
fn with_copies(config: Config, copies: usize) -> Config {
    let ingester = config.ingester.replace("replication_factor: 3", &format!("replication_factor: {copies}"));
    Config { ingester: ingester.leak(), trace_idle_period: "10m", max_block_duration: "1h", ..config }
}

impl Cluster {
    async fn start(copies: usize) -> Self {
        let network = Network::new();
        let mut ingesters: Vec<_> = (0..3).map(|node| Server::prepare(with_copies(network.ingester(node, 3, "", ""), copies))).collect();
        let mut distributor = Server::prepare(with_copies(network.distributor(3, 3), copies));
        let bucket = Some(ingesters[0].blocks_path());
        let mut frontend = Server::prepare(Config {
            more: "target: query-frontend\nquery_frontend: {query_end_cutoff: 0s}\n",
            bucket: bucket.clone(),
            ..Config::default()
        });
        frontend.spawn();
        let worker = format!("{{frontend_address: \"{}\", dns_lookup_duration: 1s}}", frontend.grpc_address());
        let more = format!("target: querier\n{}querier: {{frontend_worker: {worker}}}\n", network.memberlist(4, 3, ""));
        let mut querier = Server::prepare(Config { more: more.leak(), bucket, ..with_copies(network.distributor(4, 3), copies) });
        start_all(ingesters.iter_mut().chain([&mut distributor, &mut querier])).await;
        assert!(frontend.wait_until_ready().await, "the frontend ended: {}", frontend.log());
        for node in 0..3 {
            until_state(&[&distributor, &querier], &format!("ingester-{node}"), Some("ACTIVE")).await;
        }
        let cluster = Self { ingesters, distributor, frontend, _querier: querier, _network: network };
        cluster.is_formed(&[0, 1, 2]).await;
        cluster
    }

    /// Waits until one dataflow runs in these.
    async fn is_formed(&self, nodes: &[usize]) {
        eventually("one dataflow", async || {
            for &node in nodes {
                let members = self.ingesters[node].client().metric("rubato_dataflow_members", &[]).await;
                if members != nodes.len() as f64 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Sends traces and waits until all their copies are where they belong.
    async fn send(&self, copies: usize) {
        for number in 0..TRACES {
            let request = body("shop", vec![span(id(number), number + 1, "sell")]);
            self.distributor.client().export(request, None).await.expect("it is acknowledged");
        }
        eventually("all copies", async || {
            let mut there = 0.0;
            for ingester in &self.ingesters {
                there += ingester.client().metric("rubato_ingest_live_traces", &[]).await;
            }
            (there == (TRACES * copies as u64) as f64).then_some(())
        })
        .await;
    }

    fn client(&self) -> Client {
        self.frontend.client()
    }

    /// Asks for everything in each way; whether everything was there. Fails if something was not, and nothing was said.
    async fn asks(&self, when: &str) -> bool {
        let (client, mut is_complete) = (self.client(), true);
        for number in (0..TRACES).step_by(4) {
            let answer = client.get_as(&format!("/api/traces/{}", id(number)), "application/json").await;
            let is_there = answer.status == 200 && answer.text().contains("sell");
            assert!(is_there || answer.status >= 500, "{when}: trace {number}: {} {}", answer.status, answer.text());
            is_complete &= is_there;
            let answer = client.get_as(&format!("/api/v2/traces/{}", id(number)), "application/json").await;
            let is_there = answer.status == 200 && answer.text().contains("sell");
            let says = answer.status >= 500 || answer.status == 200 && answer.json()["status"] == "PARTIAL";
            assert!(is_there || says, "{when}: trace {number} by v2: {} {}", answer.status, answer.text());
            is_complete &= is_there && !says;
        }
        let (start, end) = crate::harness::client::last_hour();
        let parameters = [("q", "{ name = \"sell\" }"), ("limit", "1000"), ("start", start.as_str()), ("end", end.as_str())];
        let answer = client.query("/api/search", &parameters).await;
        let found = if answer.status == 200 { answer.json()["traces"].as_array().map_or(0, Vec::len) as u64 } else { 0 };
        assert!(found == TRACES || answer.status >= 500, "{when}: {found} of {TRACES} found: {} {}", answer.status, answer.text());
        is_complete && found == TRACES
    }

    async fn everything(&self, when: &str) {
        eventually(&format!("{when}: everything is found"), async || self.asks(when).await.then_some(())).await;
    }
}

/// One is killed while it is asked for: what is answered is right, and after a moment it is whole.
async fn a_kill_hides_nothing(copies: usize) {
    let mut cluster = Cluster::start(copies).await;
    cluster.send(copies).await;
    cluster.everything("in peace").await;
    cluster.ingesters[1].kill();
    cluster.asks("at the moment of the loss").await;
    cluster.everything("after the loss").await;
    cluster.ingesters[1].start_again().await;
    cluster.asks("at the moment of its return").await;
    cluster.is_formed(&[0, 1, 2]).await;
    cluster.everything("after its return").await;
    for number in 0..TRACES {
        let trace = cluster.client().trace(id(number)).await.expect("it is there");
        assert_eq!(spans(&trace).count(), 1, "one copy is shown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_three_copies_a_lost_ingester_costs_nothing() {
    a_kill_hides_nothing(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_copies_a_lost_ingester_costs_nothing() {
    a_kill_hides_nothing(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_copy_answers_say_that_a_lost_ingester_is_missing() {
    let mut cluster = Cluster::start(1).await;
    cluster.send(1).await;
    cluster.everything("in peace").await;
    cluster.ingesters[1].kill();
    cluster.is_formed(&[0, 2]).await;
    assert!(!cluster.asks("without one").await, "a third of the traces is on the disk of the lost one alone");
    cluster.ingesters[1].start_again().await;
    cluster.is_formed(&[0, 1, 2]).await;
    cluster.everything("after its return").await;
}
