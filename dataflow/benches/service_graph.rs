//! Service graphs: from first-seen spans to the sums of each tick, on one core, beside the same spans when nobody's half is among them.

use std::{collections::HashMap, hint::black_box, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataflow::{
    generator::{
        Agg, Exemplar, FirstSeen, Observe, Series,
        attributes::{self, RESOURCE_ATTRIBUTES, SPAN_ATTRIBUTES},
        scan::Keys,
        service_graph::ServiceGraph,
        settings::{Common, ServiceGraphs},
    },
    tick::Ticks,
};
use storage::{
    id::Tenant,
    otlp::{self, SpanEntry, Walk, wire::Fields, wire::Value},
    synthetic,
};

/// 20 requests of 1000 spans to a tick, as 250 ms of a busy minute.
const REQUESTS_PER_TICK: usize = 20;

/// Counts what is handed out.
#[derive(Debug, Default)]
struct Count(usize);

impl Observe for Count {
    fn observe(&mut self, _: &Series, _: &Agg) {
        self.0 += 1;
    }

    fn exemplar(&mut self, _: &Series, _: Exemplar) {}
}

/// What the operator reads of every span before it asks the processors.
struct Scanned<'a> {
    request: usize,
    entry: SpanEntry,
    parent_span_id: u64,
    status: i32,
    resource: usize,
    values: Vec<Option<&'a [u8]>>,
}

/// What it remembers of a resource.
struct Resource {
    service: String,
    values: Vec<Option<Box<[u8]>>>,
}

fn graph(settings: &ServiceGraphs) -> (ServiceGraph, Keys) {
    let (ticks, mut keys) = (Ticks::new(Duration::from_millis(250)), Keys::default());
    (ServiceGraph::new(Tenant::single(), settings, &Common::default(), ticks, 1, &mut keys).expect("no policies"), keys)
}

fn scan<'a>(requests: &'a [Bytes], keys: &Keys) -> (Vec<Resource>, Vec<Scanned<'a>>) {
    let (mut walk, mut resources, mut scanned) = (Walk::default(), Vec::new(), Vec::new());
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    for (request, body) in requests.iter().enumerate() {
        otlp::index(body, &mut walk).expect("synthetic requests are valid");
        for entry in &walk.spans {
            let (mut parent_span_id, mut status) = (0, 0);
            for field in Fields::within(body, entry.span).map(|field| field.expect("valid")) {
                match (field.number, field.value) {
                    (4, Value::Bytes(id)) => parent_span_id = u64::from_be_bytes(id.try_into().expect("8 bytes")),
                    (15, Value::Bytes(message)) => {
                        let code = Fields::new(message).filter_map(Result::ok).find(|field| field.number == 3);
                        status = i32::from(code.is_some_and(|code| code.value == Value::Varint(2))) * 2;
                    }
                    _ => {}
                }
            }
            let encoded = entry.resource.of(body).expect("inside");
            let resource = *known.entry(encoded).or_insert_with(|| {
                let service = attributes::find(encoded, RESOURCE_ATTRIBUTES, b"service.name").and_then(attributes::text);
                let values = keys.find_owned(encoded, RESOURCE_ATTRIBUTES);
                resources.push(Resource { service: service.expect("named").into_owned(), values });
                resources.len() - 1
            });
            let values = keys.find(entry.span.of(body).expect("inside"), SPAN_ATTRIBUTES);
            scanned.push(Scanned { request, entry: *entry, parent_span_id, status, resource, values });
        }
    }
    (resources, scanned)
}

fn run(requests: &[Bytes], resources: &[Resource], spans: &[Scanned<'_>], settings: &ServiceGraphs, kind: Option<i32>) -> usize {
    let (mut graph, _) = graph(settings);
    let mut count = Count::default();
    let mut tick = 0;
    for Scanned { request, entry, parent_span_id, status, resource, values } in spans {
        let resource = &resources[*resource];
        let now = (request / REQUESTS_PER_TICK) as u64;
        if now > tick {
            graph.advance(tick, &mut count);
            tick = now;
        }
        let body = &requests[*request];
        let span = FirstSeen {
            trace_id: entry.trace_id,
            span_id: entry.key.span_id,
            parent_span_id: *parent_span_id,
            kind: kind.unwrap_or(entry.key.kind),
            status: *status,
            start_ns: entry.start_ns,
            end_ns: entry.end_ns,
            service: &resource.service,
            name: b"",
            resource: entry.resource.of(body).unwrap_or_default(),
            span: entry.span.of(body).unwrap_or_default(),
            of_resource: &resource.values,
            of_span: values,
        };
        graph.push(&span, tick);
    }
    graph.advance(tick, &mut count);
    count.0
}

fn bench(criterion: &mut Criterion) {
    let requests = synthetic::requests(1, 20_000);
    // Twice as many may wait as in a process with room for the default load.
    let settings = ServiceGraphs { max_items: 100_000, ..ServiceGraphs::default() };
    let dimensions = ServiceGraphs {
        dimensions: ["service.namespace", "http.request.method", "k8s.cluster.name"].map(str::to_owned).to_vec(),
        enable_client_server_prefix: true,
        ..settings.clone()
    };
    let mut group = criterion.benchmark_group("service_graph");
    group.sample_size(20);
    for (name, settings, kind) in
        [("default", &settings, None), ("three dimensions", &dimensions, None), ("internal spans only", &settings, Some(1))]
    {
        let (resources, spans) = scan(&requests, &graph(settings).1);
        group.throughput(Throughput::Elements(spans.len() as u64));
        let id = BenchmarkId::from_parameter(name);
        let measured = |settings: &ServiceGraphs| black_box(run(&requests, &resources, &spans, settings, kind));
        group.bench_with_input(id, settings, |bencher, settings| bencher.iter(|| measured(settings)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
