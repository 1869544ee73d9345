//! The walks over a request's bytes: `validate` (before the acknowledgement), `index` and `split` (behind the WAL), and `prost`'s
//! decoding beside them. Each in bytes and in spans.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use storage::{
    id::Tenant,
    otlp::{Walk, index, validate},
    segment::Segment,
    synthetic::{self, Settings},
    wal::Position,
};

/// The tenant default of `distributor.max_attribute_bytes`.
const MAX_ATTRIBUTE_BYTES: usize = 2048;

struct Data {
    bodies: Vec<Bytes>,
    bytes: u64,
    spans: u64,
}

fn data(spans_per_request: usize) -> Data {
    let (bodies, totals) = synthetic::requests_with(Settings { spans_per_request, ..Settings::default() }, 400);
    Data { bytes: bodies.iter().map(|body| body.len() as u64).sum(), spans: totals.spans, bodies }
}

fn both(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, data: &Data, mut run: impl FnMut()) {
    for (unit, throughput) in [("bytes", Throughput::Bytes(data.bytes)), ("spans", Throughput::Elements(data.spans))] {
        group.throughput(throughput);
        group.bench_function(format!("{name}/{unit}"), |bencher| bencher.iter(&mut run));
    }
}

fn wire_walk(criterion: &mut Criterion) {
    for spans_per_request in [20, 250, 2000] {
        let data = data(spans_per_request);
        let mut group = criterion.benchmark_group(format!("wire_walk/{spans_per_request}_spans"));
        let mut walk = Walk::default();
        both(&mut group, "validate", &data, || {
            for body in &data.bodies {
                validate(black_box(body), MAX_ATTRIBUTE_BYTES, &mut walk).expect("valid");
            }
        });
        both(&mut group, "index", &data, || {
            for body in &data.bodies {
                index(black_box(body), &mut walk).expect("valid");
            }
        });
        let walks: Vec<Walk> = data
            .bodies
            .iter()
            .map(|body| {
                let mut walk = Walk::default();
                index(body, &mut walk).expect("valid");
                walk
            })
            .collect();
        let tenant = Tenant::single();
        both(&mut group, "split", &data, || {
            for (body, walk) in data.bodies.iter().zip(&walks) {
                black_box(Segment::split(&tenant, Position(0), body, black_box(walk)));
            }
        });
        both(&mut group, "prost", &data, || {
            for body in &data.bodies {
                black_box(ExportTraceServiceRequest::decode(&body[..]).expect("valid"));
            }
        });
    }
}

criterion_group!(benches, wire_walk);
criterion_main!(benches);
