//! The engine against the naive evaluator.

mod queries;
mod traces;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use object_store::memory::InMemory;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use proptest::{prelude::*, test_runner::TestRunner};
use prost::Message as _;
use storage::{
    backend::Store,
    block::{self, DedicatedColumn, Format, Projection, Reader, Trace, TraceSegments},
    id::{BlockId, Tenant},
    otlp,
    segment::Segment,
    wal::Position,
};

use super::{Exec, ExecError};
use crate::{
    columns::{Batch, Scan, Wanted},
    traceql::{self, EvaluateOptions, TraceMatch, TraceView},
};

/// What the naive evaluator says of traces; `None` when the query fails.
fn naive(query: &traceql::Query, traces: &[Trace], options: EvaluateOptions) -> Option<Vec<TraceMatch>> {
    let results = traces.iter().map(|trace| query.evaluate(&TraceView::new(trace), options));
    let results: Result<Vec<_>, _> = results.collect();
    results.ok().map(|found| found.into_iter().flatten().collect())
}

/// The traces as a block, opened.
pub(crate) async fn write_block(format: Format, row_group_size_bytes: usize, traces: &[Trace]) -> Arc<Reader> {
    let tenant = Tenant::single();
    let mut segments: BTreeMap<_, Vec<Arc<Segment>>> = BTreeMap::new();
    for trace in traces {
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans: trace.resource_spans.clone() }.encode_to_vec());
        let mut walk = otlp::Walk::default();
        otlp::validate(&body, usize::MAX, &mut walk).expect("valid spans");
        for segment in Segment::split(&tenant, Position::default(), &body, &walk) {
            segments.entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
    }
    let segments: Vec<_> = segments.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect();
    let mut settings = block::Settings { version: format, row_group_size_bytes, ..block::Settings::default() };
    let own = |scope: &str, name: &str, kind: &str| DedicatedColumn {
        scope: scope.to_owned(),
        name: name.to_owned(),
        kind: kind.to_owned(),
        options: Vec::new(),
    };
    settings.dedicated_columns.extend([
        own("span", "dedicated", "string"),
        own("resource", "dedicated", "string"),
        own("span", "number", "int"),
        own("event", "a", "string"),
    ]);
    let encoded = block::encode(&settings, &tenant, BlockId::from_u128(1), &segments).expect("valid segments");
    let store = Store::new(Arc::new(InMemory::new()), "");
    store.put(&encoded).await.expect("memory");
    Arc::new(Reader::open(&store, Arc::new(encoded.meta)).await.expect("a block"))
}

/// What a query finds in a block; `None` when it fails. And whether some row group was not read.
pub(crate) async fn search_block(
    query: &traceql::Query,
    reader: &Arc<Reader>,
    options: EvaluateOptions,
) -> (Option<Vec<TraceMatch>>, bool) {
    let wanted = Arc::new(Wanted::of(query).and_shown());
    let scan = Scan::new(Arc::clone(reader), wanted).expect("a known schema");
    let exec = Exec::new(query);
    let (mut found, mut passed_over) = (Some(Vec::new()), false);
    for row_group in 0..scan.row_groups() {
        let mut batches = scan.row_group(row_group).await.expect("a good block");
        passed_over |= batches.is_empty();
        while let Some(batch) = batches.next().await.expect("a good block") {
            match exec.matches(&batch, options) {
                Ok(more) => found.iter_mut().for_each(|found| found.extend(more.iter().cloned())),
                Err(ExecError::Execution(_)) => found = None,
                Err(ExecError::Block(error)) => panic!("{query}: {error}"),
            }
        }
    }
    (found, passed_over)
}

/// Checks that a query has the same answer on a block as on its traces one by one. The traces are those that the block gives back.
async fn check_block(query: &str, traces: &[Trace], reader: &Arc<Reader>) -> Result<(), TestCaseError> {
    let Ok(query) = traceql::parse(query) else { return Ok(()) };
    let options = EvaluateOptions { spans_per_spanset: usize::MAX };
    let expected = naive(&query, traces, options);
    let (found, passed_over) = search_block(&query, reader, options).await;
    // A row group that cannot have results is not read, so the query cannot fail on it.
    if expected.is_some() || !passed_over {
        prop_assert_eq!(format!("{:?}", found), format!("{:?}", expected), "{} in {}", query, reader.format());
    }
    Ok(())
}

/// Checks that a batch gives the same answers as its traces one by one. Values may be NaN, so texts are compared.
fn check(query: &str, traces: &[Trace], batch: &Batch) -> Result<(), TestCaseError> {
    let Ok(query) = traceql::parse(query) else { return Ok(()) };
    for spans_per_spanset in [2, usize::MAX] {
        let options = EvaluateOptions { spans_per_spanset };
        let expected = naive(&query, traces, options);
        let found = Exec::new(&query).matches(batch, options);
        prop_assert_eq!(format!("{:?}", found.ok()), format!("{:?}", expected), "{}", query);
    }
    Ok(())
}

/// Generated queries are deep trees of strategies, too deep for the stack of a test's thread without optimisation.
fn on_a_large_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(test).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn agree(cases: u32, test: impl Fn(&[Trace], &[String]) -> Result<(), TestCaseError> + Send + 'static) {
    on_a_large_stack(move || {
        let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
        let strategy = (traces::traces(), prop::collection::vec(queries::query(), 20));
        let outcome = TestRunner::new(config).run(&strategy, |(traces, queries)| test(&traces, &queries));
        if let Err(error) = outcome {
            panic!("{error}");
        }
    });
}

#[test]
fn live_batches_answer_as_the_naive_evaluator_does() {
    agree(64, |traces, queries| {
        let batch = Batch::live(traces.to_vec());
        queries.iter().try_for_each(|query| check(query, traces, &batch))
    });
}

#[test]
fn blocks_of_all_versions_answer_as_the_naive_evaluator_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    agree(24, move |traces, queries| {
        runtime.block_on(async {
            for format in Format::ALL {
                let reader = write_block(format, 300, traces).await;
                let mut stored = Vec::new();
                for row_group in 0..reader.row_groups() {
                    stored.extend(reader.scan(row_group, Projection::ALL).await.expect("a good block"));
                }
                for query in queries {
                    check_block(query, &stored, &reader).await?;
                }
            }
            Ok(())
        })
    });
}
