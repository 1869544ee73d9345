//! A cluster as somebody would run it: twelve processes of six roles, each at a place of its own, and what they need from outside.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command},
    time::{Duration, Instant},
};

use super::switch::{OUTSIDE, Place, peers};
use crate::{
    harness::{
        PATIENCE,
        client::Client,
        eventually,
        s3::{ACCESS_KEY, BUCKET, SECRET_KEY, Server as S3},
        server,
    },
    memcached::process::Memcached,
    prometheus::Prometheus,
};

/// Processes by role, in the order of their places.
pub(super) const ROLES: [(&str, usize); 6] =
    [("ingester", 3), ("metrics-generator", 2), ("distributor", 2), ("querier", 2), ("query-frontend", 2), ("compactor", 1)];

/// How many of them run the dataflow.
const MEMBERS: f64 = 5.0;

/// What the cluster needs from outside.
pub(super) struct Outside {
    pub(super) memcached: Memcached,
    pub(super) prometheus: Prometheus,
    s3: S3,
    _bucket: tempfile::TempDir,
}

impl Outside {
    /// `None`, with the reason printed, where something is not installed.
    pub(super) async fn start() -> Option<Self> {
        let memcached = Memcached::start_at(OUTSIDE)?;
        // What nobody has sent for a while is over: a process that is killed can't say so.
        let prometheus = Prometheus::start_at(OUTSIDE, &["--query.lookback-delta=15s"]).await?;
        let bucket = tempfile::tempdir().expect("a temporary folder");
        let s3 = S3::start_at(bucket.path().to_owned(), &format!("{OUTSIDE}:0")).await;
        Some(Self { memcached, prometheus, s3, _bucket: bucket })
    }
}

/// The address of the first process of a role, and of those after it.
fn addresses(role: &str) -> Vec<String> {
    let first = ROLES.iter().take_while(|(name, _)| *name != role).map(|(_, count)| count).sum();
    let (_, count) = ROLES.into_iter().find(|(name, _)| *name == role).expect("a role");
    (first..first + count).map(peers).collect()
}

/// A process, or the place of one.
pub(super) struct Node {
    pub(super) role: &'static str,
    pub(super) name: String,
    pub(super) place: Place,
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Node {
    fn new(role: &'static str, number: usize, place: usize, outside: &Outside) -> Self {
        let dir = tempfile::Builder::new().prefix("rubato-soak-").tempdir().expect("a temporary folder");
        let node = Self { role, name: format!("{role}-{number}"), place: Place::new(place), dir, process: None };
        fs::write(node.dir.path().join("config.yaml"), node.config(outside)).expect("writable");
        node
    }

    fn config(&self, outside: &Outside) -> String {
        let Self { role, name, .. } = self;
        let (address, data) = (self.place.peers(), self.dir.path().display());
        let seeds: Vec<String> = addresses("ingester").iter().map(|address| format!("\"{address}:7946\"")).collect();
        let frontends: Vec<String> = addresses("query-frontend").iter().map(|address| format!("{address}:9095")).collect();
        let ring = format!("instance_id: {name}, instance_addr: {address}, kvstore: {{store: memberlist}}, heartbeat_period: 500ms");
        format!(
            "\
target: {role}
server: {{http_listen_port: 3200, grpc_listen_port: 9095}}
distributor:
  receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"0.0.0.0:4317\"}}, http: {{endpoint: \"0.0.0.0:4318\"}}}}}}}}
ingester_client: {{remote_timeout: 3s}}
ingester:
  trace_idle_period: 1s
  max_block_duration: 3s
  flush_check_period: 500ms
  lifecycler:
    {{id: {name}, address: {address}, num_tokens: 64, heartbeat_period: 500ms, min_ready_duration: 0s,
     ring: {{replication_factor: 3, heartbeat_timeout: 5s, kvstore: {{store: memberlist}}}}}}
metrics_generator:
  # Whatever comes late is counted, too: machines that run tests are slow.
  metrics_ingestion_time_range_slack: 1h
  ring: {{{ring}}}
  processor: {{service_graphs: {{wait: 10m}}}}
  registry: {{collection_interval: 1s, stale_duration: 5h, external_labels: {{__metrics_gen_instance: {name}}}}}
  storage: {{path: {data}/generator, remote_write: [{{url: \"{prometheus}/api/v1/write\"}}]}}
compactor:
  ring: {{{ring}, heartbeat_timeout: 5s}}
  compaction: {{compaction_cycle: 2s, compacted_block_retention: 1m}}
querier:
  frontend_worker: {{frontend_address: \"{frontends}\", dns_lookup_duration: 1s}}
query_frontend: {{query_end_cutoff: 0s}}
memberlist: {{bind_addr: [{address}], join_members: [{seeds}], gossip_interval: 200ms, min_join_backoff: 200ms, abort_if_cluster_join_fails: false}}
overrides: {{defaults: {{metrics_generator: {{processors: [service-graphs, span-metrics]}}}}}}
cache: {{caches: [{{roles: [bloom, parquet-footer, parquet-page, frontend-search], memcached: {{addresses: {memcached}, timeout: 500ms}}}}]}}
storage:
  trace:
    backend: s3
    s3: {{bucket: {BUCKET}, endpoint: \"{s3}\", insecure: true, forcepathstyle: true, access_key: {ACCESS_KEY}, secret_key: {SECRET_KEY}}}
    blocklist_poll: 3s
    wal: {{path: {data}/wal}}
rubato: {{dataflow: {{workers: 1, listen_address: {address}}}, memory_limit: 512MiB, threads: 2}}
",
            prometheus = outside.prometheus.url,
            memcached = outside.memcached.address,
            s3 = outside.s3.address,
            frontends = frontends.join(","),
            seeds = seeds.join(", "),
        )
    }

    /// Its client, for a moment: who is not there is not waited for.
    pub(super) fn client(&self) -> Client {
        let at = |port: u16| format!("{}:{port}", self.place.store());
        Client::of([at(3200), at(4317), at(4318)]).giving_up_after(Duration::from_secs(20))
    }

    pub(super) fn start(&mut self) {
        let binary = std::env::var("RUBATO_SOAK_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_rubato").to_owned());
        let mut command = self.place.command(&binary);
        command.arg(format!("-config.file={}", self.dir.path().join("config.yaml").display()));
        self.process = Some(server::spawn(command, self.dir.path(), &self.dir.path().join("log")));
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.assert_alive();
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("a child can be killed");
        process.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and waits for a good end.
    pub(super) async fn terminate(&mut self) {
        self.assert_alive();
        self.signal("TERM");
        let (mut process, began) = (self.process.take().expect("it runs"), Instant::now());
        while process.try_wait().expect("a child can be asked").is_none() {
            if began.elapsed() > PATIENCE {
                self.process = Some(process);
                panic!("{} does not end on SIGTERM", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let status = process.wait().expect("a child can be waited for");
        // One that has only just begun has not asked for the signal yet.
        assert!(status.success() || status.signal() == Some(15), "{} ends with {status}", self.name);
    }

    pub(super) fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs").success());
    }

    /// Nobody but the test ends a process.
    pub(super) fn assert_alive(&mut self) {
        if let Some(process) = &mut self.process {
            let status = process.try_wait().expect("a child can be asked");
            assert!(status.is_none(), "{} ended by itself: {status:?}", self.name);
        }
    }

    pub(super) fn log(&self) -> String {
        fs::read(self.dir.path().join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The value of a metric, if it answers.
    async fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.client().get("/metrics").await.ok().filter(|answer| answer.status == 200)?;
        answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; then there is nothing to end.
            _ = process.kill();
            _ = process.wait();
        }
        if let Some(kept) = std::env::var_os("RUBATO_SOAK_LOGS") {
            _ = fs::create_dir_all(&kept).and_then(|()| fs::write(std::path::Path::new(&kept).join(&self.name), self.log()));
        } else if std::thread::panicking() {
            server::print_end(&self.name, &self.log(), 20);
        }
    }
}

/// See the module documentation.
pub(super) struct Site {
    pub(super) nodes: Vec<Node>,
    pub(super) outside: Outside,
}

impl Site {
    /// Starts everything and waits until it works.
    pub(super) async fn start(outside: Outside) -> Self {
        let mut nodes = Vec::new();
        for (role, count) in ROLES {
            for number in 0..count {
                nodes.push(Node::new(role, number, nodes.len(), &outside));
            }
        }
        nodes.iter_mut().for_each(Node::start);
        let mut site = Self { nodes, outside };
        site.is_whole().await;
        site
    }

    pub(super) fn of(&self, role: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    /// Waits until everybody is ready, all ingesters may be written to, and one dataflow runs in all that run it.
    pub(super) async fn is_whole(&mut self) {
        for node in &mut self.nodes {
            eventually(&format!("{} is ready", node.name), || {
                node.assert_alive();
                let client = node.client();
                async move { client.get("/ready").await.is_ok_and(|answer| answer.status == 200).then_some(()) }
            })
            .await;
        }
        eventually("one dataflow", async || {
            let mut epochs = Vec::new();
            for node in self.of("ingester").chain(self.of("metrics-generator")) {
                let all = node.metric("rubato_dataflow_members").await? == MEMBERS;
                epochs.push(node.metric("rubato_dataflow_epoch").await.filter(|_| all)?);
            }
            epochs.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
        for node in self.of("distributor").chain(self.of("querier")) {
            eventually(&format!("{} knows three ingesters", node.name), async || {
                let active = "tempo_ring_members{name=\"ingester\",state=\"ACTIVE\"}";
                (node.metric(active).await? == 3.0).then_some(())
            })
            .await;
        }
    }
}
