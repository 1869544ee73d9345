//! Processes that gossip with each other, and with no others on this machine.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use super::{
    eventually,
    server::{Config, Server},
};

/// Loopback addresses of one cluster, which no other test uses: gossip has one port. And where its buckets are, one for each label.
pub(crate) struct Network {
    number: u32,
    buckets: tempfile::TempDir,
}

impl Network {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Other runs of the tests are other processes.
        let number = (std::process::id() % 4000) * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
        Self { number, buckets: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The address of a node.
    pub(crate) fn address(&self, node: usize) -> String {
        format!("127.{}.{}.{}", 1 + self.number / 256, self.number % 256, node + 1)
    }

    /// The block `memberlist` of a node that asks the first `seeds` nodes.
    pub(crate) fn memberlist(&self, node: usize, seeds: usize, label: &str) -> String {
        let seeds: Vec<String> = (0..seeds).map(|seed| format!("\"dns+{}:7946\"", self.address(seed))).collect();
        format!(
            "memberlist: {{bind_addr: [{}], join_members: [{}], gossip_interval: 100ms, min_join_backoff: 100ms, cluster_label: \"{label}\"}}\n",
            self.address(node),
            seeds.join(", "),
        )
    }

    /// An ingester of a ring with three copies; `lifecycler` are more keys of that block, each behind a comma.
    pub(crate) fn ingester(&self, node: usize, seeds: usize, label: &str, lifecycler: &str) -> Config {
        // The mesh has one port, too.
        let dataflow = format!("rubato: {{dataflow: {{listen_address: {}}}}}\n", self.address(node));
        let more = format!("target: ingester\n{}{dataflow}", self.memberlist(node, seeds, label));
        let ingester = format!(
            "  lifecycler: {{id: ingester-{node}, address: 127.0.0.1, num_tokens: 16, heartbeat_period: 200ms, min_ready_duration: 0s, \
             ring: {{heartbeat_timeout: 10s, replication_factor: 3}}{lifecycler}}}"
        );
        // What the dataflow commits is there.
        let bucket = Some(self.buckets.path().join(format!("bucket-{label}")));
        Config { more: more.leak(), ingester: ingester.leak(), bucket, ..Config::default() }
    }

    /// A distributor that writes to such ingesters. It waits for them for as long as a test may take.
    pub(crate) fn distributor(&self, node: usize, seeds: usize) -> Config {
        let memberlist = self.memberlist(node, seeds, "");
        let more = format!("target: distributor\n{memberlist}ingester_client: {{remote_timeout: 60s}}\n");
        let ingester = "  lifecycler: {ring: {replication_factor: 3, heartbeat_timeout: 10s}}";
        Config { more: more.leak(), ingester, ..Config::default() }
    }

    /// A compactor that shares the work with others. One that is silent for 3 s is not counted on, after twice that it is forgotten.
    pub(crate) fn compactor(&self, node: usize, seeds: usize) -> Config {
        let memberlist = self.memberlist(node, seeds, "");
        let more = format!(
            "target: compactor\n{memberlist}compactor:\n  compaction: {{compaction_cycle: 100ms, compacted_block_retention: 3s}}\n  \
             ring: {{kvstore: {{store: memberlist}}, instance_id: compactor-{node}, instance_addr: 127.0.0.1, heartbeat_period: 200ms, \
             heartbeat_timeout: 3s}}\nrubato:\n  compactor: {{patience_cycles: 0}}\n"
        );
        Config { more: more.leak(), ..Config::default() }
    }
}

/// A ring as a process sees it: state and tokens by id.
pub(crate) async fn ring_of(server: &Server, name: &str) -> BTreeMap<String, (String, Vec<u64>)> {
    let json = server.client().get_as(&format!("/{name}/ring"), "application/json").await.json();
    let shards = json["shards"].as_array().expect("a list").clone();
    let shard = |shard: Value| {
        let tokens = shard["tokens"].as_array().expect("tokens").iter().map(|token| token.as_u64().expect("a token")).collect();
        let text = |key: &str| shard[key].as_str().expect("text").to_owned();
        (text("id"), (text("state"), tokens))
    };
    shards.into_iter().map(shard).collect()
}

/// The ring of the ingesters.
pub(crate) async fn ring(server: &Server) -> BTreeMap<String, (String, Vec<u64>)> {
    ring_of(server, "ingester").await
}

/// Waits until an ingester is in that state, or in none, for all of these.
pub(crate) async fn until_state(servers: &[&Server], id: &str, expected: Option<&str>) {
    for server in servers {
        eventually(&format!("{id} is {expected:?}"), async || {
            let ring = ring(server).await;
            (ring.get(id).map(|(state, _)| state.as_str()) == expected).then_some(())
        })
        .await;
    }
}

/// Starts all at once and waits until all are ready.
pub(crate) async fn start_all<'a>(servers: impl IntoIterator<Item = &'a mut Server>) {
    let mut servers: Vec<_> = servers.into_iter().collect();
    servers.iter_mut().for_each(|server| server.spawn());
    for server in servers {
        // It ends early if somebody took its ports.
        if !server.wait_until_ready().await {
            server.start_again().await;
        }
    }
}
