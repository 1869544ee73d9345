//! The keys of rings and gossip: `memberlist`, `ingester.lifecycler`, `distributor.ring`, `metrics_generator.ring`, `compactor.ring`, and
//! `rubato.dataflow.listen_address`, `listen_port`, `advertise_addr`, `tls_*`, where the processes of the dataflow reach each other.
//!
//! Of `memberlist`, these have no meaning here, since an exchange brings two members level and sends nothing twice: `retransmit_factor`,
//! `pull_push_interval`, `compression_enabled`, the queues, buffers and writers of packets, `dead_node_reclaim_time` and `obsolete_entries_timeout`.
//! The single binary has its rings to itself whatever is written (config.md §1, step 5).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use storage::tls::PeerTls;

use super::{Problem, Settings, tls};
use crate::memberlist::Seed;

/// Tokens of an instance: more would not fit into a message of gossip.
const MAX_TOKENS: usize = 4096;

/// Where a ring is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvStore {
    /// Nowhere: this process does everything itself.
    Absent,
    /// In this process.
    InMemory,
    /// In what the members tell each other.
    Memberlist,
    /// In something that Rubato doesn't speak to.
    Unavailable(String),
}

/// A ring, and the place of this process in it.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    /// The key whose value says where the ring is kept.
    pub(crate) store_key: String,
    /// Where.
    pub(crate) store: KvStore,
    /// What it is called there.
    pub(crate) key: String,
    /// The instance that this process is.
    pub(crate) id: String,
    /// Its address; none is that of the first of `interfaces`.
    pub(crate) address: Option<String>,
    /// Its port.
    pub(crate) port: u16,
    /// Where to look for its address.
    pub(crate) interfaces: Vec<String>,
    /// Its availability zone.
    pub(crate) zone: String,
    /// How many tokens it has.
    pub(crate) tokens: usize,
    /// Time between its heartbeats.
    pub(crate) heartbeat_period: Duration,
    /// How the ring answers.
    pub(crate) settings: storage::ring::Settings,
    /// How long it stays PENDING.
    pub(crate) join_after: Duration,
    /// How long it stays JOINING.
    pub(crate) observe_period: Duration,
    /// How long it waits after it has left.
    pub(crate) final_sleep: Duration,
    /// How long it must have been well to be ready.
    pub(crate) min_ready_duration: Duration,
    /// Whether the others must be well, too.
    pub(crate) checks_ring_health: bool,
    /// Where its tokens survive a restart.
    pub(crate) tokens_file: Option<PathBuf>,
    /// Whether it leaves the ring when it ends.
    pub(crate) unregisters: bool,
    /// Whether others are forgotten after twice the heartbeat timeout.
    pub(crate) auto_forgets: bool,
}

/// Gossip.
#[derive(Clone, Debug)]
pub(crate) struct Memberlist {
    /// Name of the member, before the random part.
    pub(crate) name: String,
    /// Whether there is a random part.
    pub(crate) randomize_name: bool,
    /// What is listened on.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where others reach it; none is the first address of the machine.
    pub(crate) advertise_address: Option<IpAddr>,
    /// The port there.
    pub(crate) advertise_port: u16,
    /// How it speaks with the others; none is in the clear.
    pub(crate) tls: Option<PeerTls>,
    /// What is wrong with the keys. It matters to those who gossip only: a file for all targets may name addresses that some don't have.
    pub(crate) problems: Vec<Problem>,
    /// The rest, as it is; its names and addresses are filled in.
    pub(crate) rest: Rest,
}

/// What needs no more than to be read.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    pub(crate) label: String,
    pub(crate) accept_any_label: bool,
    pub(crate) join: Vec<Seed>,
    pub(crate) rejoin: Vec<Seed>,
    pub(crate) rejoin_interval: Option<Duration>,
    pub(crate) min_join_backoff: Duration,
    pub(crate) max_join_backoff: Duration,
    pub(crate) max_join_retries: u64,
    pub(crate) abort_if_join_fails: bool,
    pub(crate) fast_join_min_nodes: Option<usize>,
    pub(crate) interval: Duration,
    pub(crate) fanout: usize,
    pub(crate) dead_time: Duration,
    pub(crate) left_timeout: Duration,
    pub(crate) leave_timeout: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) exchange_timeout: Duration,
}

/// Where the processes of the dataflow reach each other.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    /// What is listened on.
    pub(crate) listen: SocketAddr,
    /// Where others reach it; none is the first address of the machine.
    pub(crate) advertise_address: Option<IpAddr>,
    /// How it speaks with the others; none is in the clear.
    pub(crate) tls: Option<PeerTls>,
}

/// Everything that makes processes a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Gossip.
    pub(crate) memberlist: Memberlist,
    /// The mesh of the dataflow.
    pub(crate) mesh: Mesh,
    /// Who has recent spans.
    pub(crate) ingester: Ring,
    /// Who shares global rate limits.
    pub(crate) distributor: Ring,
    /// Whether those limits are shared.
    pub(crate) shares_rate_limits: bool,
    /// Who owns series.
    pub(crate) generator: Ring,
    /// Who compacts.
    pub(crate) compactor: Ring,
}

/// Reads them.
pub(super) fn cluster(s: &Settings, problems: &mut Vec<Problem>) -> Cluster {
    let mut cluster = Cluster {
        memberlist: memberlist(s),
        mesh: mesh(s, problems),
        ingester: ingester(s, problems),
        distributor: instance_ring(s, "distributor", 1, false),
        shares_rate_limits: s.text("overrides.defaults.ingestion.rate_strategy") == "global",
        generator: instance_ring(s, "metrics_generator", 256, true),
        compactor: instance_ring(s, "compactor", 512, true),
    };
    s.text("metrics_generator.ring.instance_zone").clone_into(&mut cluster.generator.zone);
    match s.text("target") {
        "all" => {
            for ring in [&mut cluster.ingester, &mut cluster.distributor, &mut cluster.generator] {
                ring.store = KvStore::InMemory;
                ring.address = Some("127.0.0.1".to_owned());
            }
            cluster.ingester.settings.replication_factor = 1;
            cluster.ingester.min_ready_duration = Duration::ZERO;
            cluster.compactor.store = KvStore::Absent;
        }
        "scalable-single-binary" if cluster.compactor.store == KvStore::Absent => cluster.compactor.store = KvStore::Memberlist,
        _ => {}
    }
    cluster
}

fn instance_ring(s: &Settings, component: &str, tokens: usize, auto_forgets: bool) -> Ring {
    let path = |key: &str| format!("{component}.ring.{key}");
    let store_key = path("kvstore.store");
    Ring {
        store: store(s.text(&store_key)),
        store_key,
        key: key(s.text(&format!("{component}.override_ring_key")), component),
        id: s.text(&path("instance_id")).to_owned(),
        address: nonempty(s.text(&path("instance_addr"))),
        port: port(s, &path("instance_port")),
        interfaces: s.strings(&path("instance_interface_names")),
        zone: String::new(),
        tokens,
        heartbeat_period: s.duration(&path("heartbeat_period")),
        settings: storage::ring::Settings {
            heartbeat_timeout: s.duration(&path("heartbeat_timeout")),
            ..storage::ring::Settings::default()
        },
        join_after: Duration::ZERO,
        observe_period: Duration::ZERO,
        final_sleep: Duration::ZERO,
        min_ready_duration: Duration::ZERO,
        checks_ring_health: false,
        tokens_file: None,
        unregisters: true,
        auto_forgets,
    }
}

fn ingester(s: &Settings, problems: &mut Vec<Problem>) -> Ring {
    let path = |key: &str| format!("ingester.lifecycler.{key}");
    let store_key = path("ring.kvstore.store");
    let count = |key: &str| s.count(&path(key));
    let tokens = count("num_tokens");
    if !(1..=MAX_TOKENS).contains(&tokens) {
        let key = path("num_tokens");
        problems.push(Problem::new(s.line(&key), format!("{key}: {} is not between 1 and {MAX_TOKENS}", s.number(&key))));
    }
    Ring {
        store: store(s.text(&store_key)),
        store_key,
        key: key(s.text("ingester.override_ring_key"), "ring"),
        id: s.text(&path("id")).to_owned(),
        address: nonempty(s.text(&path("address"))),
        port: port(s, &path("port")),
        interfaces: s.strings(&path("interface_names")),
        zone: s.text(&path("availability_zone")).to_owned(),
        tokens,
        heartbeat_period: s.duration(&path("heartbeat_period")),
        settings: storage::ring::Settings {
            replication_factor: count("ring.replication_factor").max(1),
            heartbeat_timeout: s.duration(&path("ring.heartbeat_timeout")),
            zone_awareness: s.flag(&path("ring.zone_awareness_enabled")),
            excluded_zones: s.strings(&path("ring.excluded_zones")),
        },
        join_after: s.duration(&path("join_after")),
        observe_period: s.duration(&path("observe_period")),
        final_sleep: s.duration(&path("final_sleep")),
        min_ready_duration: s.duration(&path("min_ready_duration")),
        checks_ring_health: s.flag(&path("readiness_check_ring_health")),
        tokens_file: nonempty(s.text(&path("tokens_file_path"))).map(PathBuf::from),
        unregisters: s.flag(&path("unregister_on_shutdown")),
        auto_forgets: false,
    }
}

fn store(name: &str) -> KvStore {
    match name {
        "" => KvStore::Absent,
        "inmemory" => KvStore::InMemory,
        "memberlist" => KvStore::Memberlist,
        other => KvStore::Unavailable(other.to_owned()),
    }
}

/// Keys of entries are paths; a ring is one step of them.
fn key(written: &str, otherwise: &str) -> String {
    if written.is_empty() { otherwise.to_owned() } else { written.replace('/', "-") }
}

fn nonempty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// The port of gRPC, unless there is another one.
fn port(s: &Settings, path: &str) -> u16 {
    let own = Some(s.number(path)).filter(|port| *port > 0);
    u16::try_from(own.unwrap_or_else(|| s.number("server.grpc_listen_port"))).unwrap_or_default()
}

fn port_of(s: &Settings, path: &str, problems: &mut Vec<Problem>) -> u16 {
    u16::try_from(s.number(path)).unwrap_or_else(|_| {
        problems.push(Problem::new(s.line(path), format!("{path}: {} is not a port", s.number(path))));
        0
    })
}

fn ip(s: &Settings, path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<IpAddr> {
    if text.is_empty() {
        return None;
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().inspect_err(|_| problems.push(Problem::new(s.line(path), format!("{path}: \"{text}\" is not an IP address")))).ok()
}

fn seeds(s: &Settings, path: &str, problems: &mut Vec<Problem>) -> Vec<Seed> {
    let mut found = Vec::new();
    for text in s.strings(path).iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        match Seed::parse(text) {
            Ok(seed) => found.push(seed),
            Err(why) => problems.push(Problem::new(s.line(path), format!("{path}: {why}"))),
        }
    }
    found
}

fn memberlist(s: &Settings) -> Memberlist {
    let problems = &mut Vec::new();
    let path = |key: &str| format!("memberlist.{key}");
    let (text, flag) = (|key: &str| s.text(&path(key)), |key: &str| s.flag(&path(key)));
    let (duration, number) = (|key: &str| s.duration(&path(key)), |key: &str| s.number(&path(key)));
    let count = |key: &str| s.count(&path(key));
    let bind_port = port_of(s, &path("bind_port"), problems);
    let mut listen: Vec<SocketAddr> = Vec::new();
    for address in s.strings(&path("bind_addr")) {
        listen.extend(ip(s, &path("bind_addr"), &address, problems).map(|address| SocketAddr::new(address, bind_port)));
    }
    if listen.is_empty() {
        listen.push(SocketAddr::from(([0, 0, 0, 0], bind_port)));
    }
    let (advertise_address, join) =
        (ip(s, &path("advertise_addr"), text("advertise_addr"), problems), seeds(s, &path("join_members"), problems));
    // Somebody who moves the port means both.
    let advertise_port =
        if s.written(&path("advertise_port")).is_some() { port_of(s, &path("advertise_port"), problems) } else { bind_port };
    let rejoin = seeds(s, &path("rejoin_seed_nodes"), problems);
    let tls = tls::of_peers(s, "memberlist", problems);
    let name = if text("node_name").is_empty() { s.text("ingester.lifecycler.id") } else { text("node_name") };
    let min_join_backoff = duration("min_join_backoff").max(Duration::from_millis(10));
    Memberlist {
        name: name.to_owned(),
        randomize_name: flag("randomize_node_name"),
        listen,
        advertise_address,
        advertise_port,
        tls,
        problems: std::mem::take(problems),
        rest: Rest {
            label: text("cluster_label").to_owned(),
            accept_any_label: flag("cluster_label_verification_disabled"),
            join,
            rejoin,
            rejoin_interval: s.nonzero(&path("rejoin_interval")),
            min_join_backoff,
            max_join_backoff: duration("max_join_backoff").max(min_join_backoff),
            max_join_retries: number("max_join_retries"),
            abort_if_join_fails: flag("abort_if_cluster_join_fails"),
            fast_join_min_nodes: flag("abort_if_cluster_fast_join_fails").then(|| count("abort_if_cluster_fast_join_fails_min_nodes")),
            interval: duration("gossip_interval").max(Duration::from_millis(10)),
            fanout: count("gossip_nodes").max(1),
            dead_time: duration("gossip_to_dead_nodes_time"),
            left_timeout: duration("left_ingesters_timeout").max(Duration::from_secs(1)),
            leave_timeout: duration("leave_timeout"),
            dial_timeout: duration("packet_dial_timeout").max(Duration::from_millis(10)),
            exchange_timeout: duration("stream_timeout").max(Duration::from_millis(10)),
        },
    }
}

fn mesh(s: &Settings, problems: &mut Vec<Problem>) -> Mesh {
    let (address, port) = ("rubato.dataflow.listen_address", "rubato.dataflow.listen_port");
    let host = ip(s, address, s.text(address), problems).unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let advertise = "rubato.dataflow.advertise_addr";
    let listen = SocketAddr::new(host, port_of(s, port, problems));
    let advertise_address = ip(s, advertise, s.text(advertise), problems);
    Mesh { listen, advertise_address, tls: tls::of_peers(s, "rubato.dataflow", problems) }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Request, parse},
        *,
    };

    #[test]
    fn every_key_arrives() {
        let text = "
target: ingester
server: {grpc_listen_port: 9999}
ingester:
  override_ring_key: other
  lifecycler:
    ring: {kvstore: {store: inmemory}, heartbeat_timeout: 1m, replication_factor: 3, zone_awareness_enabled: true, excluded_zones: 'c,d'}
    num_tokens: 7
    heartbeat_period: 1s
    observe_period: 2s
    join_after: 3s
    min_ready_duration: 4s
    final_sleep: 5s
    interface_names: [en7]
    tokens_file_path: /t
    availability_zone: a
    unregister_on_shutdown: false
    readiness_check_ring_health: false
    address: 10.0.0.1
    port: 1
    id: i-0
compactor: {ring: {kvstore: {store: memberlist}, instance_id: c, instance_addr: h, instance_port: 5, heartbeat_period: 7s, heartbeat_timeout: 8s}}
metrics_generator: {ring: {kvstore: {store: consul}, instance_zone: z}}
memberlist:
  node_name: n
  randomize_node_name: false
  bind_addr: [127.0.0.2, '::1']
  bind_port: 1000
  advertise_addr: 10.0.0.2
  cluster_label: blue
  cluster_label_verification_disabled: true
  join_members: 'dns+a:1, b'
  rejoin_seed_nodes: [c]
  rejoin_interval: 1m
  min_join_backoff: 2s
  max_join_backoff: 3s
  max_join_retries: 4
  abort_if_cluster_join_fails: true
  abort_if_cluster_fast_join_fails: true
  abort_if_cluster_fast_join_fails_min_nodes: 2
  gossip_interval: 100ms
  gossip_nodes: 5
  gossip_to_dead_nodes_time: 6s
  left_ingesters_timeout: 7s
  leave_timeout: 8s
  packet_dial_timeout: 9s
  stream_timeout: 10s
rubato: {dataflow: {listen_address: 127.0.0.3, listen_port: 1001, advertise_addr: 10.0.0.3}}
";
        let config = parse(text, &Request::default()).expect("right keys");
        assert_eq!(config.unused_keys(), [""; 0]);
        let Cluster { memberlist, mesh, ingester, distributor, generator, compactor, shares_rate_limits } = &config.cluster;
        let seconds = Duration::from_secs;
        assert_eq!((&ingester.store, ingester.key.as_str(), ingester.id.as_str()), (&KvStore::InMemory, "other", "i-0"));
        assert_eq!((ingester.address.as_deref(), ingester.port, &ingester.interfaces[..]), (Some("10.0.0.1"), 1, &["en7".to_owned()][..]));
        let expected = storage::ring::Settings {
            replication_factor: 3,
            heartbeat_timeout: seconds(60),
            zone_awareness: true,
            excluded_zones: vec!["c".to_owned(), "d".to_owned()],
        };
        assert_eq!((&ingester.settings, ingester.zone.as_str(), ingester.tokens), (&expected, "a", 7));
        assert_eq!((ingester.heartbeat_period, ingester.observe_period, ingester.join_after), (seconds(1), seconds(2), seconds(3)));
        assert_eq!((ingester.min_ready_duration, ingester.final_sleep), (seconds(4), seconds(5)));
        assert_eq!((ingester.unregisters, ingester.checks_ring_health), (false, false));
        assert_eq!(ingester.tokens_file.as_deref(), Some(std::path::Path::new("/t")));
        assert_eq!((&compactor.store, compactor.id.as_str(), compactor.address.as_deref()), (&KvStore::Memberlist, "c", Some("h")));
        assert_eq!((compactor.port, compactor.heartbeat_period, compactor.settings.heartbeat_timeout), (5, seconds(7), seconds(8)));
        assert_eq!((compactor.tokens, generator.tokens, distributor.tokens), (512, 256, 1));
        assert_eq!((compactor.auto_forgets, generator.auto_forgets, distributor.auto_forgets), (true, true, false));
        assert_eq!((&generator.store, generator.zone.as_str()), (&KvStore::Unavailable("consul".to_owned()), "z"));
        assert_eq!((&distributor.store, distributor.port, *shares_rate_limits), (&KvStore::Memberlist, 9999, false));
        let socket = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!((memberlist.name.as_str(), memberlist.randomize_name), ("n", false));
        assert_eq!(memberlist.listen, [socket("127.0.0.2:1000"), socket("[::1]:1000")]);
        assert_eq!((memberlist.advertise_address, memberlist.advertise_port), (Some(socket("10.0.0.2:1").ip()), 1000));
        let rest = &memberlist.rest;
        assert_eq!((rest.label.as_str(), rest.accept_any_label), ("blue", true));
        assert_eq!(rest.join, [Seed::Host("a:1".to_owned()), Seed::Host("b:7946".to_owned())]);
        assert_eq!((&rest.rejoin[..], rest.rejoin_interval), (&[Seed::Host("c:7946".to_owned())][..], Some(seconds(60))));
        assert_eq!((rest.min_join_backoff, rest.max_join_backoff, rest.max_join_retries), (seconds(2), seconds(3), 4));
        assert_eq!((rest.abort_if_join_fails, rest.fast_join_min_nodes), (true, Some(2)));
        assert_eq!((rest.interval, rest.fanout, rest.dead_time), (Duration::from_millis(100), 5, seconds(6)));
        assert_eq!((rest.left_timeout, rest.leave_timeout), (seconds(7), seconds(8)));
        assert_eq!((rest.dial_timeout, rest.exchange_timeout), (seconds(9), seconds(10)));
        assert_eq!((mesh.listen, mesh.advertise_address), (socket("127.0.0.3:1001"), Some(socket("10.0.0.3:1").ip())));
    }

    #[test]
    fn the_single_binary_is_alone_whatever_is_written() {
        let config = parse("ingester: {lifecycler: {ring: {replication_factor: 3, kvstore: {store: memberlist}}}}", &Request::default());
        let cluster = config.expect("right keys").cluster;
        assert_eq!((&cluster.ingester.store, cluster.ingester.settings.replication_factor), (&KvStore::InMemory, 1));
        assert_eq!((cluster.ingester.address.as_deref(), &cluster.compactor.store), (Some("127.0.0.1"), &KvStore::Absent));
        let config = parse("target: scalable-single-binary", &Request::default()).expect("right keys");
        assert_eq!((&config.cluster.ingester.store, &config.cluster.compactor.store), (&KvStore::Memberlist, &KvStore::Memberlist));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = "memberlist:\n  bind_port: 70000\n  advertise_addr: host\n  join_members: [consul+x]\n  tls_enabled: true\n";
        let config = parse(text, &Request::default()).expect("who doesn't gossip doesn't mind");
        let texts: Vec<String> = config.cluster.memberlist.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "line 2: memberlist.bind_port: 70000 is not a port",
                "line 3: memberlist.advertise_addr: \"host\" is not an IP address",
                "line 4: memberlist.join_members: \"consul+x\": \"consul+\" is not one of dns+, dnssrv+, dnssrvnoa+",
                "line 5: memberlist.tls_enabled: needs tls_cert_path and tls_key_path: the others connect to this process, too",
            ]
        );
        for tokens in [0, 4097] {
            let problems =
                parse(&format!("ingester: {{lifecycler: {{num_tokens: {tokens}}}}}"), &Request::default()).expect_err("not as said");
            assert_eq!(problems[0].to_string(), format!("line 1: ingester.lifecycler.num_tokens: {tokens} is not between 1 and 4096"));
        }
        let problems = parse("rubato: {dataflow: {listen_address: y}}", &Request::default()).expect_err("wrong value");
        assert_eq!(problems[0].to_string(), "line 1: rubato.dataflow.listen_address: \"y\" is not an IP address");
    }
}
