//! Queries that would take all memory: each has an answer that says what is missing, or an error that says why there is none; what it reserved is
//! given back, and the next query is answered.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prometheus::Registry;
use prost::Message as _;
use storage::{
    backend::Store,
    block::{self, Meta, TraceSegments},
    blocklist::Blocklist,
    clock::SystemClock,
    id::{BlockId, Tenant, TraceId},
    otlp,
    recent::{RecentAnswer, RecentPart, RecentTrace},
    segment::Segment,
    wal::Position,
};

use super::{Condition, Engine, QueryError, Recent, RecentError, SearchRequest, Settings};
use crate::{
    proto, traceql,
    traceql_metrics::{Asked, MetricsLimits, MetricsRequest},
};

const SECOND: u64 = 1_000_000_000;
const BEGIN: u64 = 1_700_000_000;
const SPANS: u64 = 100_000;
const ID: TraceId = TraceId([7; 16]);

/// No recent data.
#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Recent for Nothing {
    async fn trace(&self, _: &Tenant, _: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        Ok(RecentAnswer::default())
    }

    async fn traces(&self, _: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        Ok(RecentAnswer::default())
    }
}

/// The number of the parent of each span but the first.
type Parent = fn(u64) -> u64;

/// Each span has two children.
const TREE: Parent = |number| number / 2;

/// Each span has one child.
const CHAIN: Parent = |number| number - 1;

/// A block of one trace, each of whose spans has an attribute with a value of its own.
fn large_trace(parent: Parent) -> block::Encoded {
    let text = |key: &str, text: String| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(text)) }),
        ..KeyValue::default()
    };
    let span = |number: u64| Span {
        trace_id: ID.0.to_vec(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        parent_span_id: if number == 0 { Vec::new() } else { (parent(number) + 1).to_be_bytes().to_vec() },
        name: format!("operation {}", number % 1000),
        start_time_unix_nano: BEGIN * SECOND + number * 1000,
        end_time_unix_nano: BEGIN * SECOND + number * 2000,
        attributes: vec![text("unique", format!("a value that only span {number} has")), text("parity", (number % 2).to_string())],
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..SPANS).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
    let mut walk = otlp::Walk::default();
    otlp::validate(&body, usize::MAX, &mut walk).expect("valid spans");
    let segments = Segment::split(&Tenant::single(), Position::default(), &body, &walk).into_iter().map(Arc::new).collect();
    let traces = [TraceSegments { trace_id: ID, segments }];
    block::encode(&block::Settings::default(), &Tenant::single(), BlockId::from_u128(1), &traces).expect("a block")
}

struct Setup {
    engine: Engine,
    registry: Registry,
}

impl Setup {
    /// An engine over the block. `memory_bytes` is what a query may hold.
    async fn new(encoded: &block::Encoded, memory_bytes: u64) -> Self {
        let store = Store::new(Arc::new(InMemory::new()), "");
        store.put(encoded).await.expect("memory");
        let list = Blocklist::new();
        list.add(Meta::clone(&encoded.meta));
        let registry = Registry::new();
        let settings = Settings { memory_bytes: 2 * memory_bytes, memory_bytes_per_query: memory_bytes, ..Settings::default() };
        let engine = Engine::new(settings, store, list, Arc::new(Nothing), Arc::new(SystemClock), &registry).expect("metrics");
        Self { engine, registry }
    }

    async fn range(&self, query: &str, asked: Asked, max_bytes: usize) -> Result<proto::QueryRangeResponse, String> {
        let query = Arc::new(traceql::parse(query).expect("legal"));
        let limits = MetricsLimits { max_bytes, ..MetricsLimits::default() };
        let request = MetricsRequest::new(query, asked, limits).map_err(|error| error.to_string())?;
        self.engine.query_range(&[Tenant::single()], Arc::new(request)).await.map_err(|error| error.to_string())
    }

    async fn search(&self, query: &str) -> Result<proto::SearchResponse, QueryError> {
        let condition = Condition::TraceQl(traceql::parse(query).expect("legal"));
        let range = Some(super::TimeRange { start: BEGIN - 60, end: BEGIN + 60 });
        self.engine.search(&[Tenant::single()], SearchRequest { condition, range, limit: 20, spans_per_spanset: 3 }).await
    }

    /// Bytes that queries hold.
    fn held(&self) -> i64 {
        let families = self.registry.gather();
        let memory = families.iter().find(|family| family.name() == "rubato_query_memory_bytes").expect("registered");
        memory.get_metric().iter().map(|metric| metric.get_gauge().get_value() as i64).sum()
    }
}

fn minutes() -> Asked {
    Asked { start: (BEGIN - 60) * SECOND, end: (BEGIN + 60) * SECOND, step: Some(SECOND), ..Asked::default() }
}

fn ten_years(step: Option<u64>) -> Asked {
    Asked { start: (BEGIN - 10 * 365 * 86_400) * SECOND, end: (BEGIN + 60) * SECOND, step, ..Asked::default() }
}

const METRICS: [&str; 7] = [
    "{} | compare({ span.parity = `1` })",
    "{} | compare({ span.unique =~ `.*7` }, 100)",
    "{} | rate() by (span.unique)",
    "{} | rate() by (span.unique, name, span.parity)",
    "{} | quantile_over_time(duration, .9) by (span.unique)",
    "{} | histogram_over_time(duration) by (name)",
    "{} | sum_over_time(duration) by (span.unique) | topk(3)",
];

#[tokio::test]
async fn metrics_that_are_too_wide_are_cut_or_refused() {
    let setup = Setup::new(&large_trace(TREE), 64 << 20).await;
    let (mut cut, mut refused) = (0, 0);
    let ranges = || [minutes(), ten_years(None), ten_years(Some(86_400 * SECOND)), Asked { instant: true, ..ten_years(None) }];
    for (number, query) in METRICS.iter().enumerate() {
        // Each range with some of the queries, and each query with some of the ranges.
        for asked in ranges().into_iter().skip(number % 2).step_by(2) {
            match setup.range(query, asked, 4 << 20).await {
                Ok(answer) => {
                    let is_partial = answer.status == proto::PartialStatus::Partial as i32;
                    assert_eq!(is_partial, !answer.message.is_empty(), "{query}: a part comes with its reason: {}", answer.message);
                    assert!(!answer.series.is_empty(), "{query}");
                    cut += usize::from(is_partial);
                }
                Err(error) => {
                    assert!(error.contains("bytes of memory"), "{query}: {error}");
                    refused += 1;
                }
            }
            assert_eq!(setup.held(), 0, "{query}: what was reserved is given back");
        }
    }
    assert!(cut > 0 && refused > 0, "{cut} answers were cut, {refused} queries refused: the bounds are never met");
    let error = setup.range("{} | rate()", ten_years(Some(SECOND)), 4 << 20).await.expect_err("too many intervals");
    assert!(error.contains("step of 1s is too small"), "{error}");
    let all = setup.range("{} | count_over_time()", minutes(), 4 << 20).await.expect("the engine lives");
    let counted: f64 = all.series.iter().flat_map(|series| &series.samples).map(|sample| sample.value).sum();
    assert_eq!(counted, SPANS as f64);
}

#[tokio::test]
async fn a_trace_of_a_hundred_thousand_spans_is_searched_within_bounds() {
    let encoded = large_trace(TREE);
    let roomy = Setup::new(&encoded, 1 << 30).await;
    for (query, least) in [
        ("{}", SPANS as u32),
        ("{ span.unique = `a value that only span 77777 has` }", 1),
        ("{ span.parity = `1` } >> { name = `operation 7` }", 50),
        ("{ name = `operation 7` } | by(span.unique) | count() > 0", 1),
    ] {
        let answer = roomy.search(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let spanset = answer.traces.first().and_then(|trace| trace.span_sets.first());
        assert!(spanset.is_some_and(|spanset| spanset.matched >= least && spanset.spans.len() <= 3), "{query}: {:?}", answer.traces);
        assert_eq!(roomy.held(), 0, "{query}");
    }
    let tight = Setup::new(&encoded, 1 << 20).await;
    let error = tight.search("{ span.parity = `1` } >> { span.unique != nil }").await.expect_err("does not fit");
    assert!(error.to_string().contains("1048576 bytes of memory"), "{error}");
    assert_eq!(tight.held(), 0);
}

/// The spans that a query finds in the one trace of a block.
async fn matched(setup: &Setup, query: &str) -> u32 {
    let answer = setup.search(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    answer.traces.first().and_then(|trace| trace.span_set.as_ref()).map_or(0, |spanset| spanset.matched)
}

#[tokio::test]
async fn structure_is_told_of_a_chain_of_a_hundred_thousand_spans() {
    let setup = Setup::new(&large_trace(CHAIN), 1 << 30).await;
    let all = SPANS as u32;
    for (query, expected) in [
        ("{} >> {}", all - 1),
        ("{} << {}", all - 1),
        ("{} &>> {}", all),
        ("{} !>> {}", 1),
        ("{} > {}", all - 1),
        ("{} ~ {}", 0),
        ("{ name = `operation 999` } >> { name = `operation 7` }", all / 1000 - 1),
        ("{ nestedSetParent = -1 }", 1),
        ("{} | select(span.parity) | count() > 99999", all),
    ] {
        assert_eq!(matched(&setup, query).await, expected, "{query}");
        assert_eq!(setup.held(), 0, "{query}");
    }
}

#[test]
fn queries_that_are_too_deep_or_too_large_are_refused() {
    let deep = |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(100_000), close.repeat(100_000));
    for query in [
        format!("{{ {} }}", deep("(", "true", ")")),
        format!("{{ {} }}", deep("!", "true", "")),
        format!("{{ {} }}", deep("-", "1", "")),
        deep("(", "{}", ")"),
        format!("{{ name =~ `{}` }}", deep("(", "x", ")")),
        "{ name =~ `((a{1000}){1000}){1000}` }".to_owned(),
    ] {
        let error = traceql::parse(&query).expect_err("too much");
        let text = error.to_string();
        assert!(text.len() < 1000 && !text.is_empty(), "the text does not repeat the query: {text}");
    }
}
