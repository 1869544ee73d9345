use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use differential_dataflow::difference::Semigroup as _;
use proptest::prelude::*;
use storage::id::Tenant;

use super::{
    live::{LiveGraphs, MAX_WINDOW, STEP},
    live_view::{Graph, NodeKind},
};
use crate::generator::{
    Accumulated, Agg, Definition, Family, Labels, Layout, Parts, Series, Snapshot, Weight, histogram::Bucketer, settings::Common,
};

/// A collection that only grows, and its snapshots: a tick is a second.
#[derive(Debug, Default)]
struct Collection {
    series: BTreeMap<Series, Accumulated>,
    sequence: u64,
}

impl Collection {
    fn add(&mut self, tick: u64, series: &Series, agg: &Agg) {
        let new = || Accumulated { series: series.clone(), agg: Agg::default(), first: tick, last: tick, exemplars: Vec::new() };
        let entry = self.series.entry(series.clone()).or_insert_with(new);
        entry.agg.plus_equals(agg);
        entry.last = tick;
    }

    fn request(&mut self, tick: u64, edge: [&str; 3], milliseconds: [u64; 2], failed: bool) {
        let series = |family| series(family, &[("client", edge[0]), ("server", edge[1]), ("connection_type", edge[2])]);
        self.add(tick, &series(Family::ServiceGraphRequests), &Agg::counted(Weight::ONE));
        if failed {
            self.add(tick, &series(Family::ServiceGraphFailed), &Agg::counted(Weight::ONE));
        }
        for (family, milliseconds) in [(Family::ServiceGraphClient, milliseconds[0]), (Family::ServiceGraphServer, milliseconds[1])] {
            let mut agg = Agg::default();
            bucketer().observe(&mut agg, milliseconds * 1_000_000, Weight::ONE);
            self.add(tick, &series(family), &agg);
        }
    }

    fn snapshot(&mut self, tick: u64) -> Arc<Snapshot> {
        self.sequence += 1;
        let series: Vec<_> = self.series.values().cloned().map(Arc::new).collect();
        let at = Duration::from_secs(tick + 1);
        Arc::new(Snapshot { sequence: self.sequence, tick, at, tenants: [(Tenant::single(), series.into())].into(), ..Snapshot::default() })
    }
}

fn bucketer() -> Bucketer {
    Bucketer::new(&[0.1, 0.2, 0.4].into(), Parts::ALL, &Common::default())
}

fn series(family: Family, labels: &[(&str, &str)]) -> Series {
    let labels: Labels = labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect();
    let histogram = matches!(family, Family::ServiceGraphClient | Family::ServiceGraphServer);
    let layout = if histogram { Arc::clone(bucketer().layout()) } else { Arc::new(Layout::COUNTER) };
    Series::new(Definition { tenant: Tenant::single(), family, labels, layout })
}

fn requests(graph: &Graph) -> BTreeMap<(String, String), (f64, f64)> {
    graph.edges.iter().map(|edge| ((edge.client.clone(), edge.server.clone()), (edge.totals.requests, edge.totals.failed))).collect()
}

const WINDOW: Duration = Duration::from_secs(60);

#[test]
fn nodes_and_edges_of_a_window() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(1000));
    live.apply(&collection.snapshot(1000));
    for n in 0..10 {
        collection.request(1001, ["user", "shop", "virtual_node"], [0, 300], false);
        collection.request(1001, ["shop", "cart", ""], [160, 150], n == 0);
        collection.request(1001, ["cart", "pg", "database"], [50, 50], false);
        collection.request(1001, ["cart", "paypal", "virtual_node"], [250, 0], false);
    }
    collection.add(1001, &series(Family::ServiceGraphUnpaired, &[("side", "client"), ("cause", "no_partner")]), &Agg::counted(Weight::ONE));
    live.apply(&collection.snapshot(1010));
    let graph = live.graph(&Tenant::single(), WINDOW);
    assert_eq!((graph.start_ms, graph.end_ms), (1_001_000, 1_011_000), "nothing is known of the time before the first snapshot");
    let nodes: Vec<_> = graph.nodes.iter().map(|node| (node.name.as_str(), node.kind, node.totals.rate, node.latency.mean)).collect();
    assert_eq!(
        nodes,
        [
            ("cart", NodeKind::Service, 1.0, Some(0.15)),
            ("paypal", NodeKind::Virtual, 1.0, Some(0.25)),
            ("pg", NodeKind::Database, 1.0, Some(0.05)),
            ("shop", NodeKind::Service, 1.0, Some(0.3)),
            ("user", NodeKind::Virtual, 0.0, None),
        ]
    );
    let edge = graph.edges.iter().find(|edge| edge.client == "shop").expect("an edge");
    assert_eq!((edge.totals.requests, edge.totals.failed, edge.totals.failed_rate), (10.0, 1.0, 0.1));
    assert_eq!((edge.client_latency.mean, edge.server_latency.p50, edge.messaging_latency), (Some(0.16), Some(0.15000000000000002), None));
    assert_eq!(graph.unpaired.len(), 1);
    assert_eq!(live.graph(&Tenant::new("other").expect("a name"), WINDOW).edges, []);
    let json = serde_json::to_value(&graph).expect("encodes");
    assert_eq!(json["nodes"][2]["type"], "database");
    assert_eq!(json["edges"][3]["connectionType"], "virtual_node");
    assert_eq!(json["edges"][3]["serverLatency"]["mean"], 0.3);
    assert_eq!(json["edges"][3]["failedRate"], 0.0);
}

#[test]
fn what_was_before_the_process_is_in_no_window() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(1000));
    collection.request(900, ["a", "b", ""], [1, 1], false);
    collection.request(1001, ["a", "c", ""], [1, 1], false);
    live.apply(&collection.snapshot(1005));
    assert_eq!(requests(&live.graph(&Tenant::single(), WINDOW)), [(("a".to_owned(), "c".to_owned()), (1.0, 0.0))].into());
    collection.request(1006, ["a", "b", ""], [1, 1], false);
    let snapshot = collection.snapshot(1007);
    live.apply(&snapshot);
    live.apply(&snapshot);
    let both = [(("a".to_owned(), "b".to_owned()), (1.0, 0.0)), (("a".to_owned(), "c".to_owned()), (1.0, 0.0))];
    assert_eq!(requests(&live.graph(&Tenant::single(), WINDOW)), both.into());
}

#[test]
fn a_series_that_became_stale_begins_anew() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(0));
    (0..5).for_each(|_| collection.request(1, ["a", "b", ""], [1, 1], false));
    live.apply(&collection.snapshot(1));
    collection.series.clear();
    collection.request(3, ["a", "b", ""], [1, 1], false);
    live.apply(&collection.snapshot(4));
    assert_eq!(requests(&live.graph(&Tenant::single(), WINDOW)), [(("a".to_owned(), "b".to_owned()), (6.0, 0.0))].into());
}

#[test]
fn what_a_limit_refuses_is_shown_and_is_no_edge() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(0));
    collection.add(1, &series(Family::ServiceGraphRequests, &[("metric_overflow", "true")]), &Agg::counted(Weight::ONE));
    collection.add(1, &series(Family::ServiceGraphFailed, &[("metric_overflow", "true")]), &Agg::counted(Weight::ONE));
    live.apply(&collection.snapshot(1));
    let graph = live.graph(&Tenant::single(), WINDOW);
    assert_eq!((graph.edges.len(), graph.nodes.len(), graph.overflow), (0, 0, 1.0));
}

#[test]
fn changes_lead_from_one_graph_to_the_next() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(0));
    live.apply(&collection.snapshot(0));
    collection.request(1, ["a", "b", ""], [1, 1], false);
    collection.request(30, ["c", "d", ""], [1, 1], false);
    live.apply(&collection.snapshot(30));
    let first = live.graph(&Tenant::single(), WINDOW);
    assert_eq!(first.changes_since(&first), None);
    live.apply(&collection.snapshot(95));
    let changes = live.graph(&Tenant::single(), WINDOW).changes_since(&first).expect("everything is over");
    assert_eq!((changes.nodes.len(), changes.removed_nodes.len(), changes.edges.len(), changes.removed_edges.len()), (0, 4, 0, 2));
    collection.request(100, ["a", "b", ""], [1, 1], false);
    live.apply(&collection.snapshot(100));
    let later = live.graph(&Tenant::single(), WINDOW);
    let changes = later.changes_since(&first).expect("c and d are gone");
    assert_eq!(changes.removed_nodes, ["c", "d"]);
    assert_eq!(changes.edges.iter().map(|edge| edge.client.as_str()).collect::<Vec<_>>(), ["a"], "another rate");
}

#[test]
fn too_many_sums_shorten_the_windows() {
    let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(0));
    live.apply(&collection.snapshot(0));
    for step in 1..=12u64 {
        (0..10_000).for_each(|n| {
            let client = format!("client-{n}");
            collection.add(step * 5, &series(Family::ServiceGraphRequests, &[("client", &client)]), &Agg::counted(Weight::ONE));
        });
        live.apply(&collection.snapshot(step * 5));
    }
    let graph = live.graph(&Tenant::single(), MAX_WINDOW);
    assert_eq!((graph.start_ms, graph.edges.len()), (15_000, 10_000), "ten steps of twelve are left");
    assert!(graph.edges.iter().all(|edge| edge.totals.requests == 10.0));
}

proptest! {
    /// Against sums over everything that happened, for every window.
    #[test]
    fn windows_agree_with_the_history(
        history in prop::collection::vec((1..3u64, prop::collection::vec((0..3usize, any::<bool>()), 0..4)), 1..60),
        window in 1..120u64,
    ) {
        let edges = [["a", "b", ""], ["a", "c", ""], ["b", "c", "messaging_system"]];
        let (mut collection, mut live) = (Collection::default(), LiveGraphs::new(0));
        live.apply(&collection.snapshot(0));
        let (mut tick, mut all) = (0, Vec::new());
        for (pause, happens) in history {
            tick += pause;
            for (edge, failed) in happens {
                collection.request(tick, edges[edge], [1, 1], failed);
                all.push((tick, edge, failed));
            }
            live.apply(&collection.snapshot(tick));
        }
        // What a snapshot brings is counted in the step that its tick ends in.
        let step = STEP.as_secs();
        let begin = (tick + 1).saturating_sub(window) / step * step;
        let mut expected = BTreeMap::<_, (f64, f64)>::new();
        for (_, edge, failed) in all.iter().filter(|(tick, ..)| tick + 1 >= begin) {
            let sums = expected.entry((edges[*edge][0].to_owned(), edges[*edge][1].to_owned())).or_default();
            sums.0 += 1.0;
            sums.1 += f64::from(u8::from(*failed));
        }
        let graph = live.graph(&Tenant::single(), Duration::from_secs(window));
        prop_assert_eq!(graph.end_ms, (tick + 1) * 1000);
        prop_assert_eq!(graph.start_ms, begin.max(1) * 1000);
        prop_assert_eq!(requests(&graph), expected);
        let incoming: HashMap<_, _> = graph.nodes.iter().map(|node| (node.name.as_str(), node.totals.requests)).collect();
        let total: f64 = graph.edges.iter().map(|edge| edge.totals.requests).sum();
        prop_assert_eq!(incoming.values().sum::<f64>(), total);
    }
}
