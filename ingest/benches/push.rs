//! `Distributor::push` with a log that takes everything at once: what a request costs between its decompression and the log.

use std::{hint::black_box, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ingest::{
    Distributor, DistributorSettings, Ingester, IngesterSettings, Limits, LimitsTable, Log, SharedOverrides, Sink,
    foreign::Foreign,
    jaeger::{model, thrift_body},
};
use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    trace::v1::{Span, TracesData},
};
use prost::Message as _;
use storage::{
    clock::ManualClock,
    id::Tenant,
    otlp::{self, Walk},
    synthetic,
    wal::{AppendError, Entry, Position},
};

#[derive(Debug)]
struct NullLog;

#[async_trait]
impl Log for NullLog {
    async fn append(&self, _: &Tenant, entry: Entry) -> Result<Position, AppendError> {
        Ok(Position(black_box(entry.body).len() as u64))
    }
}

fn distributor() -> Distributor {
    // All checks run, none refuses.
    let limits = Limits {
        rate_limit_bytes: u64::MAX,
        burst_size_bytes: u64::MAX,
        max_traces_per_user: 10_000_000,
        max_bytes_per_trace: u64::MAX,
        ..Limits::default()
    };
    let overrides = SharedOverrides::new(LimitsTable { defaults: Arc::new(limits), ..LimitsTable::default() });
    let clock = ManualClock::new(Duration::from_secs(1_800_000_000));
    let registry = prometheus::Registry::new();
    let (shared, clock_of) = (Arc::new(overrides.clone()), Arc::new(clock.clone()));
    let ingester = Ingester::new(IngesterSettings::default(), Arc::new(NullLog), shared, None, clock_of, &registry);
    let sink = Sink::Local(ingester.expect("fresh registry"));
    Distributor::new(DistributorSettings::default(), sink, Arc::new(overrides), Arc::new(clock), &registry).expect("fresh registry")
}

fn push(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let tenant = Tenant::single();
    let mut group = criterion.benchmark_group("push");
    for spans_per_request in [10, 100, 1000] {
        let settings = synthetic::Settings { spans_per_request, ..synthetic::Settings::default() };
        let (requests, _) = synthetic::requests_with(settings, 4000);
        let bytes: usize = requests.iter().map(Bytes::len).sum();
        let mut walk = Walk::default();
        let mut spans = 0;
        for request in &requests {
            otlp::validate(request, usize::MAX, &mut walk).expect("synthetic requests are valid");
            spans += walk.spans.len();
        }
        let distributor = distributor();
        for (unit, throughput) in [("spans", Throughput::Elements(spans as u64)), ("bytes", Throughput::Bytes(bytes as u64))] {
            group.throughput(throughput);
            group.bench_function(BenchmarkId::new(unit, spans_per_request), |bencher| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        for request in &requests {
                            distributor.push(&tenant, request.clone()).await.expect("within all limits");
                        }
                    });
                });
            });
        }
    }
    group.finish();
}

/// The same spans in other forms: what translating costs beside walking OTLP. Throughput in spans.
fn translate(criterion: &mut Criterion) {
    let (requests, _) = synthetic::requests_with(synthetic::Settings::default(), 1000);
    let request = TracesData::decode(&requests[0][..]).expect("synthetic requests are valid");
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(spans(&request).count() as u64));
    let mut walk = Walk::default();
    group.bench_function("otlp", |bencher| bencher.iter(|| otlp::validate(black_box(&requests[0]), usize::MAX, &mut walk)));
    let thrift = thrift_body(&jaeger_batch(&request));
    let json = zipkin_json(&request);
    for (name, form, body) in [("jaeger thrift", Foreign::JaegerThrift, &thrift), ("zipkin v2 json", Foreign::ZipkinV2Json, &json)] {
        group.bench_function(name, |bencher| bencher.iter(|| form.to_otlp(black_box(body), Duration::ZERO, false).expect("spans")));
    }
    group.finish();
}

fn spans(request: &TracesData) -> impl Iterator<Item = &Span> {
    request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
}

fn jaeger_batch(request: &TracesData) -> model::Batch {
    let tags = |span: &Span| {
        let attributes = span.attributes.iter();
        attributes.filter_map(|kv| Some(model::Tag { key: kv.key.clone(), value: kv.value.clone()?.value? })).collect()
    };
    let span = |span: &Span| model::Span {
        trace_id: span.trace_id.as_slice().try_into().expect("16 bytes"),
        span_id: span.span_id.as_slice().try_into().expect("8 bytes"),
        parent_id: span.parent_span_id.as_slice().try_into().unwrap_or_default(),
        name: span.name.clone(),
        start: span.start_time_unix_nano,
        duration: span.end_time_unix_nano - span.start_time_unix_nano,
        tags: tags(span),
        ..model::Span::default()
    };
    let process = model::Process { service: "shop".to_owned(), tags: Vec::new() };
    model::Batch { process, spans: spans(request).map(span).collect() }
}

fn zipkin_json(request: &TracesData) -> Vec<u8> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let span = |span: &Span| {
        let tags = span.attributes.iter().filter_map(|kv| match kv.value.clone()?.value? {
            Value::StringValue(text) => Some((kv.key.clone(), text.into())),
            Value::IntValue(number) => Some((kv.key.clone(), number.to_string().into())),
            _ => None,
        });
        serde_json::json!({
            "traceId": hex(&span.trace_id), "id": hex(&span.span_id), "parentId": hex(&span.parent_span_id), "name": span.name,
            "kind": "SERVER", "timestamp": span.start_time_unix_nano / 1000,
            "duration": (span.end_time_unix_nano - span.start_time_unix_nano) / 1000 + 1,
            "localEndpoint": {"serviceName": "shop"}, "tags": serde_json::Map::from_iter(tags),
        })
    };
    serde_json::to_vec(&spans(request).map(span).collect::<Vec<_>>()).expect("json")
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = push, translate
}
criterion_main!(benches);
