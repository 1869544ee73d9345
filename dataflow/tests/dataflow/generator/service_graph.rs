//! Service graphs through the whole dataflow, against pairs found by looking every span's parent up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use dataflow::{
    cluster::Role,
    generator::{
        self, Family, Snapshot,
        settings::{Fixed, ServiceGraphs},
    },
};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span};
use proptest::prelude::*;
use prost::Message as _;
use storage::{
    clock::{Clock as _, SystemClock},
    id::Tenant,
    synthetic::{self, Requests},
};

use super::{settings, settled};
use crate::{
    cluster::processes::Processes,
    harness::{Harness, shuffle},
};

/// Client, server and connection type.
type Edge = (String, String, String);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sums {
    requests: i128,
    failed: i128,
    client_ns: i128,
    server_ns: i128,
}

fn attribute(span: &Span, keys: &[&str]) -> Option<String> {
    let value =
        keys.iter().find_map(|key| span.attributes.iter().find(|attribute| attribute.key == *key)?.value.as_ref()?.value.as_ref())?;
    if let Value::StringValue(text) = value { Some(text.clone()) } else { None }
}

fn duration(span: &Span) -> i128 {
    i128::from(span.end_time_unix_nano - span.start_time_unix_nano)
}

fn reference(requests: &[synthetic::Request]) -> BTreeMap<Edge, Sums> {
    let mut spans: HashMap<(Vec<u8>, Vec<u8>), (String, Span)> = HashMap::new();
    for request in requests {
        for resource_spans in ExportTraceServiceRequest::decode(request.body.clone()).expect("valid").resource_spans {
            let attributes = resource_spans.resource.expect("a resource").attributes;
            let service = attribute(&Span { attributes, ..Span::default() }, &["service.name"]).expect("a name");
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.insert((span.trace_id.clone(), span.span_id.clone()), (service.clone(), span));
            }
        }
    }
    let mut edges: BTreeMap<Edge, Sums> = BTreeMap::new();
    let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
    let mut edge = |client: &str, server: &str, connection: &str, of: [Option<&Span>; 2]| {
        let sums = edges.entry((client.to_owned(), server.to_owned(), connection.to_owned())).or_default();
        sums.requests += 1;
        sums.failed += i128::from(of.into_iter().flatten().any(failed));
        sums.client_ns += of[0].map_or(0, duration);
        sums.server_ns += of[1].map_or(0, duration);
    };
    for (service, span) in spans.values() {
        match span.kind {
            2 | 5 if span.parent_span_id.is_empty() => edge("user", service, "virtual_node", [None, Some(span)]),
            2 | 5 => {
                let (client, caller) = &spans[&(span.trace_id.clone(), span.parent_span_id.clone())];
                edge(client, service, if span.kind == 5 { "messaging_system" } else { "" }, [Some(caller), Some(span)]);
            }
            3 if attribute(span, &["db.namespace", "db.name", "db.system"]).is_some() => {
                let server = attribute(span, &["peer.service", "server.address"]).expect("an address");
                edge(service, &server, "database", [Some(span), Some(span)]);
            }
            _ => {}
        }
    }
    edges
}

fn shown(snapshot: &Snapshot, tenant: &Tenant) -> BTreeMap<Edge, Sums> {
    let mut edges: BTreeMap<Edge, Sums> = BTreeMap::new();
    for there in snapshot.tenants.get(tenant).into_iter().flat_map(|series| series.iter()) {
        let label = |name: &str| there.series.labels().get(name).unwrap_or_default().to_owned();
        let sums = edges.entry((label("client"), label("server"), label("connection_type"))).or_default();
        match there.series.family() {
            Family::ServiceGraphRequests => sums.requests += there.agg.count.0 >> 32,
            Family::ServiceGraphFailed => sums.failed += there.agg.count.0 >> 32,
            Family::ServiceGraphClient => sums.client_ns += there.agg.sum >> 32,
            Family::ServiceGraphServer => sums.server_ns += there.agg.sum >> 32,
            other => panic!("{other:?}: {:?}", there.series.labels()),
        }
    }
    edges
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 10, ..ProptestConfig::default() })]

    /// However often each request arrives and in whatever order, on however many workers, and whenever the dataflow ends and begins again.
    #[test]
    fn edges_are_the_truth(
        seed in any::<u64>(),
        workers in 1usize..=4,
        replicas in prop_oneof![Just(1usize), Just(3)],
        restarts in prop::collection::btree_map(0..12usize, 1usize..=4, 0..3),
    ) {
        let graphs = ServiceGraphs { wait: Duration::from_secs(600), ..ServiceGraphs::default() };
        let wanted = generator::Settings { service_graphs: Some(graphs), ..generator::Settings::default() };
        // The marker at the end is of another tenant, and counted by span metrics.
        let marker = generator::Settings { span_metrics: Some(super::only_count()), ..generator::Settings::default() };
        let tenant = Tenant::single();
        let fixed = Fixed { default: Some(Arc::new(marker)), tenants: [(tenant.clone(), Arc::new(wanted))].into() };
        let mut harness = Harness::generating(settings(workers), Arc::new(fixed));
        let now = u64::try_from(SystemClock.now().as_nanos()).expect("this century");
        let settings_of_load =
            synthetic::Settings { seed, base_time_ns: now, trace_interval_ns: 1, spans_per_request: 100, ..synthetic::Settings::default() };
        let requests: Vec<_> = Requests::new(settings_of_load, Some(40)).collect();
        let mut bodies: Vec<_> = requests.iter().flat_map(|request| std::iter::repeat_n(request.body.clone(), replicas)).collect();
        shuffle(&mut bodies, seed);
        for (number, bodies) in bodies.chunks(bodies.len().div_ceil(12)).enumerate() {
            harness.block_on(async {
                for body in bodies {
                    harness.wal().append(&tenant, body.clone()).await.expect("append");
                }
            });
            if let Some(workers) = restarts.get(&number) {
                harness.restart(settings(*workers));
            }
        }
        harness.block_on(settled(&harness, 0));
        prop_assert_eq!(shown(&harness.snapshots().latest(), &tenant), reference(&requests));
    }
}

/// Halves of an edge come in different logs, each of them in two, members are lost and come back, and a process of its own generates.
#[test]
fn edges_of_many_processes_are_the_truth() {
    let graphs = ServiceGraphs { wait: Duration::from_secs(600), ..ServiceGraphs::default() };
    let wanted = generator::Settings { service_graphs: Some(graphs), ..generator::Settings::default() };
    let tenant = Tenant::single();
    let fixed = Fixed { default: Some(Arc::new(wanted)), ..Fixed::default() };
    let roles = [Role::Ingester, Role::Ingester, Role::Ingester, Role::Generator];
    let mut processes = Processes::new(settings(1), &roles, Some(Arc::new(fixed)));
    processes.form(&[0, 1, 2, 3], 1);
    let now = u64::try_from(SystemClock.now().as_nanos()).expect("this century");
    let of_load =
        synthetic::Settings { seed: 7, base_time_ns: now, trace_interval_ns: 1, spans_per_request: 20, ..synthetic::Settings::default() };
    let requests: Vec<_> = Requests::new(of_load, Some(60)).collect();
    for (number, requests) in requests.chunks(requests.len().div_ceil(6)).enumerate() {
        let present: &[usize] = [[0, 1, 2].as_slice(), &[0, 1, 2], &[1, 2], &[0, 1, 2], &[0, 1, 2], &[0, 2]][number];
        processes.block_on(async {
            for (index, request) in requests.iter().enumerate() {
                for copy in 0..2 {
                    processes.append(present[(index + copy) % present.len()], &tenant, request.body.clone()).await;
                }
            }
        });
        match number {
            1 => {
                processes.lose(0);
                processes.form(&[1, 2, 3], 1);
            }
            2 => processes.form(&[0, 1, 2, 3], 2),
            // Series are where they were left.
            3 => {
                processes.lose(3);
                processes.form(&[0, 1, 2, 3], 1);
            }
            4 => {
                processes.lose(1);
                processes.form(&[0, 2, 3], 1);
            }
            _ => {}
        }
    }
    let truth = reference(&requests);
    assert!(truth.len() > 3, "{truth:?}");
    let of_generator = |processes: &Processes| shown(&processes.snapshots()[&3], &tenant);
    for _ in 0..1500 {
        if of_generator(&processes) == truth {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(of_generator(&processes), truth);
}
