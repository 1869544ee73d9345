//! Against a reference that knows nothing of keys, slots or ticks' order: it has all spans before it, compares each with each, and reads
//! attributes from where the test wrote them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{Span, Status},
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::generator::{
    Agg, Exemplar, Family, Series,
    attributes::{RESOURCE_ATTRIBUTES, SPAN_ATTRIBUTES},
    settings::{FilterPolicy, MatchAttribute, MatchType, MatchValue, PolicyMatch},
};

const WAIT: u64 = 5;

/// A span as the test thinks of it.
#[derive(Clone, Debug)]
struct Sent {
    tick: u64,
    trace: u8,
    id: u64,
    parent: u64,
    kind: i32,
    error: bool,
    start_ns: u64,
    end_ns: u64,
    /// Empty for none.
    service: &'static str,
    resource: Vec<(&'static str, Value)>,
    attributes: Vec<(&'static str, Value)>,
}

impl Sent {
    fn new(tick: u64, id: u64, parent: u64, kind: i32, service: &'static str) -> Self {
        let (resource, attributes) = (Vec::new(), Vec::new());
        Self { tick, trace: 1, id, parent, kind, error: false, start_ns: 100, end_ns: 150_000_100, service, resource, attributes }
    }

    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.attributes.push((key, Value::StringValue(value.to_owned())));
        self
    }

    fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let service = [("service.name", Value::StringValue(self.service.to_owned()))];
        let resource = Resource { attributes: key_values(&[&service, self.resource.as_slice()].concat()), ..Resource::default() };
        let span = Span {
            trace_id: vec![self.trace; 16],
            span_id: self.id.to_be_bytes().to_vec(),
            name: "name".to_owned(),
            attributes: key_values(&self.attributes),
            status: Some(Status { code: if self.error { 2 } else { 0 }, ..Status::default() }),
            ..Span::default()
        };
        (resource.encode_to_vec(), span.encode_to_vec())
    }

    fn push_to(&self, Graph { graph, keys }: &mut Graph) {
        let (resource, span) = self.encode();
        let of_resource = keys.find_owned(&resource, RESOURCE_ATTRIBUTES);
        let seen = FirstSeen {
            trace_id: TraceId([self.trace; 16]),
            span_id: self.id,
            parent_span_id: self.parent,
            kind: self.kind,
            status: if self.error { 2 } else { 0 },
            start_ns: self.start_ns,
            end_ns: self.end_ns,
            service: self.service,
            name: b"name",
            resource: &resource,
            span: &span,
            of_resource: &of_resource,
            of_span: &keys.find(&span, SPAN_ATTRIBUTES),
        };
        graph.push(&seen, self.tick);
    }
}

fn key_values(attributes: &[(&str, Value)]) -> Vec<KeyValue> {
    let key_value = |(key, value): &(&str, Value)| {
        let value = Some(AnyValue { value: Some(value.clone()) });
        KeyValue { key: (*key).to_owned(), value, ..KeyValue::default() }
    };
    attributes.iter().map(key_value).collect()
}

/// A metric's labels and what it came to: count and sum in units of 2⁻³², and the buckets.
type Result = BTreeMap<(Family, String), (i128, i128, BTreeMap<i32, i128>)>;

/// Sums up what is handed out.
#[derive(Debug, Default)]
struct Sums {
    result: Result,
    exemplars: Vec<(Family, Exemplar)>,
}

impl Observe for Sums {
    fn observe(&mut self, series: &Series, agg: &Agg) {
        let labels: Vec<_> = series.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let sum = self.result.entry((series.family(), labels.join(","))).or_default();
        sum.0 += agg.count.0;
        sum.1 += agg.sum;
        for (bucket, weight) in agg.classic.iter() {
            *sum.2.entry(bucket).or_default() += weight.0;
        }
    }

    fn exemplar(&mut self, series: &Series, exemplar: Exemplar) {
        self.exemplars.push((series.family(), exemplar));
    }
}

/// A graph with the numbers of the attributes that it looks at.
struct Graph {
    graph: ServiceGraph,
    keys: Keys,
}

impl Deref for Graph {
    type Target = ServiceGraph;

    fn deref(&self) -> &ServiceGraph {
        &self.graph
    }
}

impl DerefMut for Graph {
    fn deref_mut(&mut self) -> &mut ServiceGraph {
        &mut self.graph
    }
}

fn graph(settings: &ServiceGraphs) -> Graph {
    let mut keys = Keys::default();
    let ticks = Ticks::new(Duration::from_secs(1));
    let graph = ServiceGraph::new(Tenant::single(), settings, &Common::default(), ticks, 1, &mut keys).expect("policies make sense");
    Graph { graph, keys }
}

fn settings() -> ServiceGraphs {
    ServiceGraphs { wait: Duration::from_secs(WAIT), ..ServiceGraphs::default() }
}

/// Pushes spans that are sorted by tick, and gives everything up that waits in the end.
fn run(settings: &ServiceGraphs, spans: &[Sent]) -> Sums {
    let (mut graph, mut sums) = (graph(settings), Sums::default());
    spans.iter().for_each(|span| span.push_to(&mut graph));
    graph.advance(1_000_000, &mut sums);
    assert_eq!((graph.waiting(), graph.snapshot().len()), (0, 0));
    sums
}

// ---- the reference

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(int) => int.to_string(),
        Value::DoubleValue(double) => double.to_string(),
        other => panic!("the test sends no {other:?}"),
    }
}

fn first<'a>(attributes: &'a [(&str, Value)], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|(there, _)| *there == key).map(|(_, value)| value)
}

/// A half as the specification describes it.
#[derive(Debug)]
struct Naive<'a> {
    span: &'a Sent,
    filtered: bool,
    messaging: bool,
    peer: String,
    database: Option<String>,
    weight: i128,
    labels: BTreeMap<String, String>,
}

fn naive<'a>(settings: &ServiceGraphs, span: &'a Sent, client: bool) -> Naive<'a> {
    let both = |key: &str| first(&span.resource, key).or(first(&span.attributes, key)).map(text);
    let peer = settings.peer_attributes.iter().find_map(|key| first(&span.attributes, key)).map(text).unwrap_or_default();
    let database = settings.database_name_attributes.iter().find_map(|key| both(key)).filter(|_| client).map(|name| {
        let port = both("network.peer.port").map_or(String::new(), |port| format!(":{port}"));
        let address = both("network.peer.address").map(|address| address + &port);
        both("peer.service").or(both("server.address")).or(address).unwrap_or(name)
    });
    let double = |value: &&Value| matches!(value, Value::DoubleValue(ratio) if *ratio > 0.0);
    let ratio = [&span.attributes, &span.resource].into_iter().find_map(|all| first(all, &settings.span_multiplier_key).filter(double));
    let weight = match ratio {
        Some(Value::DoubleValue(ratio)) => (4294967296.0 / ratio) as i128,
        _ => 4294967296,
    };
    let mut labels = BTreeMap::new();
    for key in &settings.dimensions {
        let side = if client { "client_" } else { "server_" };
        let prefix = if settings.enable_client_server_prefix { side } else { "" };
        if let Some(value) = both(key) {
            labels.insert(format!("{prefix}{key}").replace('.', "_"), value);
        }
    }
    let filtered = !settings.filter_policies.is_empty() && span.error;
    let database = database.filter(|name| !name.is_empty() && !filtered);
    Naive { span, filtered, messaging: matches!(span.kind, 4 | 5), peer, database, weight, labels }
}

#[derive(Default)]
struct Reference {
    virtual_node_label: bool,
    result: Result,
}

impl Reference {
    fn add(&mut self, family: Family, labels: &BTreeMap<String, String>, weight: i128, nanoseconds: Option<u64>) {
        let labels: Vec<_> = labels.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}={value}")).collect();
        let sum = self.result.entry((family, labels.join(","))).or_default();
        sum.0 += weight;
        if let Some(nanoseconds) = nanoseconds {
            sum.1 += weight * i128::from(nanoseconds);
            let bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8];
            let bucket = bounds.iter().filter(|bound| nanoseconds as f64 / 1e9 > **bound).count();
            *sum.2.entry(bucket as i32).or_default() += weight;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one for each thing that an edge is")]
    fn edge(
        &mut self,
        client: &str,
        server: &str,
        connection: &str,
        virtual_node: &str,
        halves: [Option<&Naive<'_>>; 2],
        durations: [u64; 2],
        latency: Option<u64>,
    ) {
        let mut labels = BTreeMap::new();
        halves.into_iter().flatten().for_each(|half| labels.extend(half.labels.clone()));
        let mut label = |name: &str, value: &str| labels.insert(name.to_owned(), value.to_owned());
        label("client", client);
        label("server", server);
        label("connection_type", connection);
        if self.virtual_node_label {
            label("virtual_node", virtual_node);
        }
        let weight = halves[1].or(halves[0]).map_or(0, |half| half.weight);
        self.add(Family::ServiceGraphRequests, &labels, weight, None);
        if halves.into_iter().flatten().any(|half| half.span.error) {
            self.add(Family::ServiceGraphFailed, &labels, weight, None);
        }
        self.add(Family::ServiceGraphClient, &labels, weight, Some(durations[0]));
        self.add(Family::ServiceGraphServer, &labels, weight, Some(durations[1]));
        if latency.is_some() {
            self.add(Family::ServiceGraphMessaging, &labels, weight, latency);
        }
    }

    fn unpaired(&mut self, side: &str, cause: &str) {
        let labels = [("side", side), ("cause", cause)].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        self.add(Family::ServiceGraphUnpaired, &labels, 1 << 32, None);
    }
}

fn reference(settings: &ServiceGraphs, spans: &[Sent]) -> Result {
    let mut reference = Reference { virtual_node_label: settings.enable_virtual_node_label, ..Reference::default() };
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for span in spans {
        match (span.kind, span.service) {
            (3 | 4, "") => reference.unpaired("client", "no_service_name"),
            (2 | 5, "") => reference.unpaired("server", "no_service_name"),
            (3 | 4, _) => clients.push(naive(settings, span, true)),
            (2 | 5, _) => servers.push(naive(settings, span, false)),
            _ => {}
        }
    }
    let length = |half: &Naive<'_>| half.span.end_ns.saturating_sub(half.span.start_ns);
    let pairs = |client: &Naive<'_>, server: &Naive<'_>| {
        let (c, s) = (client.span, server.span);
        client.database.is_none() && c.trace == s.trace && s.parent != 0 && c.id == s.parent && c.tick.abs_diff(s.tick) < WAIT
    };
    for client in clients.iter().filter(|client| !client.filtered) {
        let service = client.span.service;
        let mut alone = true;
        let answered = servers.iter().any(|server| server.filtered && pairs(client, server));
        for server in servers.iter().filter(|server| !server.filtered && pairs(client, server)) {
            alone = false;
            let latency = server.span.start_ns.saturating_sub(client.span.end_ns);
            let latency = Some(latency).filter(|l| *l > 0 && server.messaging && settings.enable_messaging_system_latency_histogram);
            let connection = if server.messaging { "messaging_system" } else { "" };
            let durations = [length(client), length(server)];
            reference.edge(service, server.span.service, connection, "", [Some(client), Some(server)], durations, latency);
        }
        match &client.database {
            Some(database) => reference.edge(service, database, "database", "", [Some(client), None], [length(client); 2], None),
            None if !alone => {}
            None if answered => reference.unpaired("client", "filtered"),
            None if client.peer.is_empty() => reference.unpaired("client", "no_partner"),
            None => reference.edge(service, &client.peer, "virtual_node", "server", [Some(client), None], [length(client), 0], None),
        }
    }
    for server in servers.iter().filter(|server| !server.filtered) {
        let service = server.span.service;
        if server.span.parent == 0 {
            let client = if server.peer.is_empty() { "user" } else { &server.peer };
            reference.edge(client, service, "virtual_node", "client", [None, Some(server)], [0, length(server)], None);
        } else {
            match clients.iter().find(|client| pairs(client, server)) {
                Some(client) if client.filtered => reference.unpaired("server", "filtered"),
                Some(_) => {}
                None => reference.unpaired("server", "no_partner"),
            }
        }
    }
    reference.result
}

// ---- random streams

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec!["", "x", "pg1", "10.0.0.1"]).prop_map(|text| Value::StringValue(text.to_owned())),
        (0..3i64).prop_map(Value::IntValue),
        prop::sample::select(vec![0.25, 0.5, 2.0, -1.0]).prop_map(Value::DoubleValue),
    ]
}

fn attributes() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let keys = vec![
        "peer.service",
        "db.name",
        "db.system",
        "db.namespace",
        "server.address",
        "network.peer.address",
        "network.peer.port",
        "region",
        "http.method",
        "ratio",
        "noise",
    ];
    prop::collection::vec((prop::sample::select(keys), values()), 0..3)
}

/// Few traces and ids, so that most halves have partners, several of them or just missed ones.
fn spans() -> impl Strategy<Value = Vec<Sent>> {
    let names = prop::sample::select(vec!["cart", "shop", "mail", "", "shop"]);
    let times = (prop::sample::select(vec![0, 100_000_000, 100_000_001, 3_000_000_000]), 0..20_000_000_000u64);
    let ids = (0..3u8, 1..6u64, 0..6u64, 0..6i32);
    let span = (0..30u64, ids, times, names, any::<bool>(), attributes(), attributes());
    let span = span.prop_map(|(tick, (trace, id, parent, kind), (length, start_ns), service, error, resource, attributes)| Sent {
        tick,
        trace,
        id: if matches!(kind, 3 | 4) { id } else { 100 + id },
        parent,
        kind,
        error,
        start_ns,
        end_ns: start_ns + length,
        service,
        resource,
        attributes,
    });
    prop::collection::vec(span, 0..60).prop_map(|mut spans| {
        spans.sort_by_key(|span| span.tick);
        // One client's span under one id; and a database's is none that others could pair with.
        let mut seen = BTreeSet::new();
        spans.retain(|span| !matches!(span.kind, 3 | 4) || seen.insert((span.trace, span.id)));
        spans
    })
}

/// Rejects spans with an error.
fn no_errors() -> FilterPolicy {
    let attributes = vec![MatchAttribute { key: "status".to_owned(), value: MatchValue::String("STATUS_CODE_ERROR".to_owned()) }];
    FilterPolicy { exclude: Some(PolicyMatch { match_type: MatchType::Strict, attributes }), ..FilterPolicy::default() }
}

fn any_settings() -> impl Strategy<Value = ServiceGraphs> {
    let dimensions = prop::sample::subsequence(vec!["region".to_owned(), "http.method".to_owned()], 0..3);
    let multiplier = prop::sample::select(vec!["", "ratio"]);
    (any::<[bool; 4]>(), dimensions, multiplier).prop_map(|([prefix, latency, label, filtered], dimensions, multiplier)| ServiceGraphs {
        filter_policies: filtered.then(no_errors).into_iter().collect(),
        enable_client_server_prefix: prefix,
        enable_messaging_system_latency_histogram: latency,
        enable_virtual_node_label: label,
        dimensions,
        span_multiplier_key: multiplier.to_owned(),
        ..settings()
    })
}

/// As the checkpoint does it: through bytes, onto as many workers as there are traces.
fn restored(settings: &ServiceGraphs, graphs: &[Graph], workers: u8) -> Vec<Graph> {
    let shards: Vec<Vec<u8>> = graphs.iter().map(|graph| postcard::to_stdvec(&graph.snapshot()).expect("encodes")).collect();
    let halves: Vec<Half> = shards.iter().flat_map(|shard| postcard::from_bytes::<Vec<Half>>(shard).expect("decodes")).collect();
    let of = |worker| {
        let mut graph = graph(settings);
        graph.restore(halves.iter().filter(|half| half.trace_id.0[0] % workers == worker).cloned());
        graph
    };
    (0..workers).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// In any order inside a tick, handed out at any ticks, restored at any of them onto any number of workers.
    #[test]
    fn agrees_with_the_reference(
        spans in spans(),
        settings in any_settings(),
        seed in any::<u64>(),
        cuts in prop::collection::btree_map(0..40u64, prop::option::of(1..4u8), 0..12),
    ) {
        // Of a request with several servers, a checkpoint does not remember the client.
        let mut spans = spans;
        if cuts.values().any(Option::is_some) {
            let requests: BTreeSet<_> = spans.iter().filter(|span| span.kind == 3).map(|span| (span.trace, span.id)).collect();
            let mut answered = BTreeSet::new();
            spans.retain(|span| {
                let key = (span.trace, span.parent);
                !matches!(span.kind, 2 | 5) || !requests.contains(&key) || answered.insert(key)
            });
        }
        let mut shuffled = spans.clone();
        shuffled.sort_by_key(|span| (span.tick, (span.id ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed), span.kind));
        let (mut graphs, mut sums) = (vec![graph(&settings)], Sums::default());
        let mut rest = shuffled.as_slice();
        let ends = cuts.into_iter().chain([(1_000_000, None)]);
        for (end, restart) in ends {
            let (now, later) = rest.split_at(rest.partition_point(|span| span.tick <= end));
            rest = later;
            let workers = graphs.len();
            now.iter().for_each(|span| span.push_to(&mut graphs[usize::from(span.trace) % workers]));
            graphs.iter_mut().for_each(|graph| graph.advance(end, &mut sums));
            if let Some(workers) = restart {
                graphs = restored(&settings, &graphs, workers);
            }
        }
        prop_assert_eq!(&sums.result, &reference(&settings, &spans));
        prop_assert!(graphs.iter().all(|graph| graph.snapshot().is_empty()));
    }
}

// ---- by hand

fn requests(sums: &Sums) -> Vec<(String, i128)> {
    let of = |((family, labels), sum): (&(Family, String), &(i128, i128, _))| {
        (*family == Family::ServiceGraphRequests).then(|| (labels.clone(), sum.0 >> 32))
    };
    sums.result.iter().filter_map(of).collect()
}

#[test]
fn what_the_specification_promises() {
    let settings = ServiceGraphs { enable_virtual_node_label: true, ..settings() };
    let client = Sent::new(0, 7, 1, 3, "a");
    let pair = run(&settings, &[client.clone(), Sent::new(1, 8, 7, 2, "b")]);
    assert_eq!(requests(&pair), [("client=a,server=b".to_owned(), 1)]);
    assert_eq!(pair.result.len(), 3, "requests and both histograms: {:?}", pair.result);
    let root = run(&settings, &[Sent::new(0, 8, 0, 2, "b")]);
    assert_eq!(requests(&root), [("client=user,connection_type=virtual_node,server=b,virtual_node=client".to_owned(), 1)]);
    let peer = run(&settings, &[client.clone().with("peer.service", "paypal")]);
    assert_eq!(requests(&peer), [("client=a,connection_type=virtual_node,server=paypal,virtual_node=server".to_owned(), 1)]);
    let database = run(&settings, &[client.with("db.system", "postgresql").with("server.address", "pg1")]);
    assert_eq!(requests(&database), [("client=a,connection_type=database,server=pg1".to_owned(), 1)]);
    let server_side = (Family::ServiceGraphServer, "client=a,connection_type=database,server=pg1".to_owned());
    assert_eq!(database.result[&server_side].1, 150_000_000 << 32, "the client's duration stands for the server's");
}

#[test]
fn the_other_half_of_what_is_rejected_is_no_virtual_node() {
    let settings = ServiceGraphs { filter_policies: vec![no_errors()], ..settings() };
    let client = Sent::new(0, 1, 0, 3, "a").with("peer.service", "b");
    let server = Sent { error: true, ..Sent::new(1, 2, 1, 2, "b") };
    let mut graph = graph(&settings);
    let mut sums = Sums::default();
    [&client, &server].into_iter().for_each(|span| span.push_to(&mut graph));
    graph.advance(100, &mut sums);
    assert_eq!(requests(&sums), []);
    assert_eq!(sums.result.keys().map(|(_, labels)| labels.as_str()).collect::<Vec<_>>(), ["cause=filtered,side=client"]);
    let counts = Counts { edges: 1, dropped_edges: 1, filtered_spans: 1, ..Counts::default() };
    assert_eq!(graph.take_counts(), counts);
}

#[test]
fn all_consumers_of_a_message_are_edges() {
    let spans = [Sent::new(1, 8, 7, 5, "b"), Sent::new(1, 7, 1, 4, "a"), Sent::new(2, 9, 7, 5, "c"), Sent::new(3, 10, 7, 5, "b")];
    let edge = |server| format!("client=a,connection_type=messaging_system,server={server}");
    assert_eq!(requests(&run(&settings(), &spans)), [(edge("b"), 2), (edge("c"), 1)]);
}

#[test]
fn a_checkpoint_keeps_what_waits_and_the_producers() {
    let spans = [Sent::new(0, 6, 1, 3, "a"), Sent::new(0, 7, 1, 4, "a"), Sent::new(0, 8, 7, 5, "b"), Sent::new(0, 9, 1, 3, "a")];
    let (settings, mut sums) = (settings(), Sums::default());
    let mut graph = graph(&settings);
    spans.iter().for_each(|span| span.push_to(&mut graph));
    Sent::new(0, 10, 9, 2, "b").push_to(&mut graph);
    graph.advance(0, &mut sums);
    let mut kept: Vec<_> = graph.snapshot().into_iter().map(|half| (half.span_id, half.paired)).collect();
    kept.sort_unstable();
    assert_eq!((kept, graph.halves.len()), (vec![(6, false), (7, true)], 3));
}

#[test]
fn a_half_waits_for_its_time_and_not_longer() {
    for (apart, edges) in [(WAIT - 1, 1), (WAIT, 0)] {
        let client_first = [Sent::new(10, 7, 1, 3, "a"), Sent::new(10 + apart, 8, 7, 2, "b")];
        let server_first = [Sent::new(10, 8, 7, 2, "b"), Sent::new(10 + apart, 7, 1, 3, "a")];
        assert_eq!(requests(&run(&settings(), &client_first)).len(), edges);
        assert_eq!(requests(&run(&settings(), &server_first)).len(), edges);
    }
}

#[test]
fn too_many_halves_are_refused_and_counted() {
    let settings = ServiceGraphs { max_items: 10, ..settings() };
    let (mut graph, mut sums) = (graph(&settings), Sums::default());
    (0..100).for_each(|id| Sent::new(0, id, 1, 3, "a").push_to(&mut graph));
    assert_eq!(graph.waiting(), 10);
    graph.advance(0, &mut sums);
    (0..100).for_each(|id| Sent::new(1, 200, id, 2, "b").push_to(&mut graph));
    graph.advance(50, &mut sums);
    let unpaired =
        |side, cause| sums.result.get(&(Family::ServiceGraphUnpaired, format!("cause={cause},side={side}"))).map(|sum| sum.0 >> 32);
    // Ten clients have been taken in. Nine find their servers; the tenth has id 0, which is no parent, so its server is a root. That
    // leaves room for nine servers whose clients were refused.
    let edges: i128 = requests(&sums).iter().map(|(_, count)| count).sum();
    assert_eq!(edges, 10);
    assert_eq!((unpaired("client", "max_items"), unpaired("server", "max_items")), (Some(90), Some(81)));
    assert_eq!((unpaired("client", "no_partner"), unpaired("server", "no_partner")), (Some(1), Some(9)));
    assert_eq!(graph.take_counts(), Counts { edges: 20, expired_edges: 10, dropped_spans: 171, ..Counts::default() });
    assert_eq!(graph.take_counts(), Counts::default());
}

#[test]
fn another_client_under_the_same_id_is_counted() {
    let sums = run(&settings(), &[Sent::new(0, 7, 1, 3, "a"), Sent::new(0, 7, 1, 4, "a"), Sent::new(0, 8, 7, 2, "b")]);
    assert_eq!(requests(&sums), [("client=a,server=b".to_owned(), 1)]);
    assert!(sums.result.contains_key(&(Family::ServiceGraphUnpaired, "cause=duplicate_id,side=client".to_owned())));
}

#[test]
fn an_edge_has_exemplars_for_its_histograms() {
    let sums = run(&settings(), &[Sent::new(0, 7, 1, 3, "a"), Sent::new(0, 8, 7, 2, "b")]);
    let exemplar = Exemplar { bucket: 1, trace_id: TraceId([1; 16]), nanoseconds: 150_000_000, at: 150_000_100 };
    assert_eq!(sums.exemplars, [(Family::ServiceGraphClient, exemplar), (Family::ServiceGraphServer, exemplar)]);
}

#[test]
fn invented_names_leave_no_trace() {
    let (mut graph, mut sums) = (graph(&settings()), Sums::default());
    for tick in 0..6_000u64 {
        let name: &'static str = Box::leak(format!("peer-{tick}").into_boxed_str());
        Sent::new(tick, tick, 1, 3, "a").with("peer.service", name).push_to(&mut graph);
        graph.advance(tick, &mut sums);
    }
    graph.advance(1_000_000, &mut sums);
    assert_eq!(requests(&sums).len(), 6_000);
    assert!(graph.names.strings.len() < 2_000, "{} names are left", graph.names.strings.len());
}

#[test]
fn few_names_make_many_edges_and_they_do_not_stay() {
    let names: Vec<&'static str> = (0..150).map(|n| &*Box::leak(format!("s{n}").into_boxed_str())).collect();
    let (mut graph, mut sums) = (graph(&settings()), Sums::default());
    for tick in 0..150u64 {
        for id in 0..150u64 {
            Sent::new(tick, 1 + id, 1, 3, names[tick as usize]).with("db.name", names[id as usize]).push_to(&mut graph);
        }
        graph.advance(tick, &mut sums);
        assert!(graph.edges.len() <= 20_000);
    }
    assert_eq!(requests(&sums).len(), 22_500);
}

#[test]
fn a_burst_gives_its_memory_back() {
    let settings = ServiceGraphs { max_items: 1_000_000, ..settings() };
    let (mut graph, mut sums) = (graph(&settings), Sums::default());
    (0..50_000).for_each(|id| Sent::new(0, id, 1, 3, "a").push_to(&mut graph));
    (0..50_000).for_each(|id| Sent::new(2, 9, id, 2, "b").push_to(&mut graph));
    (0..100).for_each(|id| Sent::new(4, 100_000 + id, 1, 3, "a").push_to(&mut graph));
    graph.advance(6, &mut sums);
    assert_eq!((graph.halves.len(), graph.halves.slots() < 2_000), (100, true));
    (0..100).for_each(|id| Sent::new(7, 9, 100_000 + id, 2, "b").push_to(&mut graph));
    graph.advance(7, &mut sums);
    // Id 0 is no parent: that span is a root.
    assert_eq!(requests(&sums)[0], ("client=a,server=b".to_owned(), 49_999 + 100));
}

#[test]
fn nothing_is_read_of_spans_that_are_neither_clients_nor_servers() {
    let sums = run(&settings(), &[Sent::new(0, 7, 1, 0, "a"), Sent::new(0, 8, 7, 1, "b"), Sent::new(0, 9, 7, 17, "")]);
    assert!(sums.result.is_empty());
}
