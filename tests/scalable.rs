//! Several processes that are everything (`-target=scalable-single-binary`): each takes spans for all of them and answers for all of them.

use storage::id::TraceId;

use crate::harness::{
    client::spans,
    eventually,
    network::{Network, start_all, until_state},
    otlp::{body, span},
    server::{Config, Server},
};

fn config(network: &Network, node: usize) -> Config {
    let config = network.ingester(node, 3, "", "");
    let ring = format!("instance_id: node-{node}, instance_addr: 127.0.0.1");
    let more = config.more.replace("target: ingester", "target: scalable-single-binary")
        + &format!("compactor: {{ring: {{{ring}}}}}\nmetrics_generator: {{ring: {{{ring}}}}}\nquery_frontend: {{query_end_cutoff: 0s}}\n");
    let distributor = format!("  ring: {{{ring}}}");
    Config { more: more.leak(), distributor: distributor.leak(), trace_idle_period: "10m", max_block_duration: "1h", ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_answers_for_all_and_one_may_be_lost() {
    let network = Network::new();
    let mut servers: Vec<Server> = (0..3).map(|node| Server::prepare(config(&network, node))).collect();
    start_all(&mut servers).await;
    for node in 0..3 {
        until_state(&servers.iter().collect::<Vec<_>>(), &format!("ingester-{node}"), Some("ACTIVE")).await;
    }
    let id = |number: u8| TraceId([number + 1; 16]);
    for number in 0..30 {
        let request = body("shop", vec![span(id(number), u64::from(number) + 1, "sell")]);
        servers[usize::from(number) % 3].client().export(request, None).await.expect("it is acknowledged");
    }
    let everything = async |servers: &[Server], when: &str| {
        for (node, server) in servers.iter().enumerate() {
            eventually(&format!("{when}: node {node} finds everything"), async || {
                let answer = server.client().query("/api/search", &[("q", "{ name = \"sell\" }"), ("limit", "100")]).await;
                let found = if answer.status == 200 { answer.json()["traces"].as_array().map_or(0, Vec::len) } else { 0 };
                assert!(found <= 30, "{when}: {found} found");
                (found == 30).then_some(())
            })
            .await;
            for number in 0..30 {
                let trace = server.client().trace(id(number)).await.unwrap_or_else(|| panic!("{when}: node {node}, trace {number}"));
                assert_eq!(spans(&trace).count(), 1, "{when}: node {node}, trace {number}");
            }
        }
    };
    everything(&servers, "in peace").await;
    for server in &servers {
        let received = server.client().metric("rubato_ingest_live_traces", &[]).await;
        assert_eq!(received, 30.0, "each has a copy of everything");
    }

    let mut lost = servers.pop().expect("three");
    lost.kill();
    eventually("the others go on", async || {
        let search = servers[0].client().query("/api/search", &[("q", "{ name = \"sell\" }"), ("limit", "100")]).await;
        (search.status == 200).then_some(())
    })
    .await;
    everything(&servers, "after a loss").await;
    servers[0].client().export(body("shop", vec![span(id(30), 31, "buy")]), None).await.expect("two of three are a quorum");
    eventually("what came meanwhile", async || servers[1].client().trace(id(30)).await).await;
}
