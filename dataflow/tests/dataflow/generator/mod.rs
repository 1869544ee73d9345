//! The metrics-generator through the whole dataflow, against the reference in [`reference`].

pub(crate) mod reference;
mod service_graph;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dataflow::{
    Settings,
    generator::{
        self, Family, Parts,
        explain::{Outcome, Place},
        settings::{
            Common, DimensionMapping, FilterPolicy, Fixed, MatchAttribute, MatchType, MatchValue, PolicyMatch, ServiceGraphs, SpanMetrics,
        },
    },
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status},
};
use proptest::prelude::*;
use prost::Message;
use reference::{Name, Sums, count, shown};
use storage::{
    clock::{Clock as _, SystemClock},
    id::Tenant,
    wal::Entry,
};

use crate::harness::{Harness, shuffle, span_id, trace_id};

fn settings(workers: usize) -> Settings {
    Settings { commit_interval: Duration::from_millis(50), ..crate::settings(workers) }
}

pub(crate) fn tenants(span_metrics: SpanMetrics, common: Common) -> Arc<Fixed> {
    let settings = generator::Settings { span_metrics: Some(span_metrics), common, ..generator::Settings::default() };
    Arc::new(Fixed { default: Some(Arc::new(settings)), ..Fixed::default() })
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn string(key: &str, value: &str) -> KeyValue {
    pair(key, Value::StringValue(value.to_owned()))
}

/// A span that ended just now, told by a few numbers.
pub(crate) fn span(trace: u64, number: u64, shape: u64) -> (Resource, Span) {
    let mut resource = vec![string("service.name", ["shop", "cart", ""][(shape % 3) as usize])];
    if shape.is_multiple_of(5) {
        resource.push(string("service.namespace", "prod"));
    }
    if shape.is_multiple_of(2) {
        resource.push(string("service.instance.id", &format!("pod-{}", shape % 4)));
        resource.push(pair("k8s.pod", Value::IntValue((shape % 4) as i64)));
        resource.push(string("job", "mine"));
    }
    let mut attributes = vec![string("http.method", ["GET", "PUT"][(shape / 3 % 2) as usize])];
    if shape.is_multiple_of(7) {
        attributes.push(string("k8s.pod", "of the span"));
        let values = ["x", "y"].map(|text| AnyValue { value: Some(Value::StringValue(text.to_owned())) }).to_vec();
        attributes.push(pair("service", Value::ArrayValue(ArrayValue { values })));
    }
    match shape % 4 {
        0 => attributes.push(pair("ratio", Value::DoubleValue(0.25))),
        1 => attributes.push(pair("ratio", Value::IntValue(2))),
        _ => {}
    }
    let end = u64::try_from(SystemClock.now().as_nanos()).expect("this century") - shape % 10 * 1_000_000_000;
    let span = Span {
        trace_id: trace_id(trace).0.to_vec(),
        span_id: span_id(trace, number).to_be_bytes().to_vec(),
        name: format!("operation {}", shape % 5),
        kind: (shape % 6) as i32,
        start_time_unix_nano: end - shape * shape * 1_000_003 % 20_000_000_000,
        end_time_unix_nano: end,
        attributes,
        status: Some(Status { code: (shape / 2 % 3) as i32, message: ["", "broken"][(shape / 5 % 2) as usize].to_owned() }),
        ..Span::default()
    };
    (Resource { attributes: resource, ..Resource::default() }, span)
}

pub(crate) fn request(spans: &[(Resource, Span)]) -> Bytes {
    let one = |(resource, span): &(Resource, Span)| {
        let scope_spans = vec![ScopeSpans { spans: vec![span.clone()], ..ScopeSpans::default() }];
        ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() }
    };
    ExportTraceServiceRequest { resource_spans: spans.iter().map(one).collect() }.encode_to_vec().into()
}

/// Returns when everything appended before is in the snapshot: a span of another tenant, appended last, is in it.
async fn settled(harness: &Harness, number: u64) {
    let last = Tenant::new("the-last").expect("valid");
    harness.wal().append(&last, request(&[span(number, number, 1)])).await.expect("append");
    let spans = |harness: &Harness| shown(&harness.snapshots().latest(), &last).values().map(|sums| sums.count).sum::<i128>();
    let before = i128::from(number);
    harness.wait_until("the last span is counted", |harness| spans(harness) > before).await;
}

pub(crate) fn everything() -> SpanMetrics {
    let exclude = PolicyMatch {
        match_type: MatchType::Regex,
        attributes: vec![
            MatchAttribute { key: "name".to_owned(), value: MatchValue::String("4$".to_owned()) },
            MatchAttribute { key: "kind".to_owned(), value: MatchValue::String("INTERNAL|SERVER".to_owned()) },
        ],
    };
    let mapping = DimensionMapping {
        name: "who does".to_owned(),
        source_labels: ["service.namespace", "service.name", "http.method"].map(str::to_owned).to_vec(),
        join: "/".to_owned(),
    };
    SpanMetrics {
        intrinsic_dimensions: generator::settings::IntrinsicDimensions { status_message: true, ..Default::default() },
        dimensions: ["http.method", "k8s.pod", "service", "job"].map(str::to_owned).to_vec(),
        dimension_mappings: vec![mapping],
        filter_policies: vec![FilterPolicy { exclude: Some(exclude), ..FilterPolicy::default() }],
        enable_target_info: true,
        span_multiplier_key: "ratio".to_owned(),
        ..SpanMetrics::default()
    }
}

pub(crate) fn is_excluded(span: &Span) -> bool {
    span.name.ends_with('4') && (span.kind == 1 || span.kind == 2)
}

/// What goes wrong on the way.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append,
    Flush,
    Refuse(usize),
    Restart(usize),
}

/// Everything that a commit writes, in the order in which it does.
const OBJECTS: [&str; 5] = ["data.parquet", ".series.zst", ".ids", "manifest-", "meta.json"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Append),
        1 => Just(Step::Flush),
        1 => (0..OBJECTS.len()).prop_map(Step::Refuse),
        2 => (1..=4usize).prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 1..14)
}

/// Never below what was shown before.
fn assert_monotonic(before: &BTreeMap<Name, Sums>, after: &BTreeMap<Name, Sums>) {
    for (name, sums) in before {
        let later = after.get(name).unwrap_or_else(|| panic!("{name:?} was shown and is gone"));
        assert!(later.count >= sums.count && later.nanoseconds >= sums.nanoseconds && later.size >= sums.size, "{name:?} went backwards");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Each acknowledged span counts once, whatever arrives how often, on however many workers, and whatever ends when.
    #[test]
    fn series_are_the_truth(
        workers in 1usize..=4,
        replicas in prop_oneof![Just(1usize), Just(3)],
        order in any::<u64>(),
        steps in steps(),
    ) {
        let (settings_of_tenant, tenant) = (everything(), Tenant::single());
        let mut harness = Harness::generating(settings(workers), tenants(settings_of_tenant.clone(), Common::default()));
        let (mut truth, mut seen) = (BTreeMap::new(), BTreeMap::new());
        let mut sent: Vec<(Resource, Span)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append => {
                    let mut batch: Vec<_> = (0..40u64).map(|index| span(index % 7, number as u64 * 100 + index, order % 1000 + index * 13)).collect();
                    for (resource, span) in batch.iter().filter(|(_, span)| !is_excluded(span)) {
                        count(&mut truth, &settings_of_tenant, resource, span);
                    }
                    sent.extend(batch.iter().cloned());
                    batch = std::iter::repeat_n(batch, replicas).flatten().collect();
                    // Some that came before come again.
                    batch.extend(sent.iter().step_by(3).cloned());
                    shuffle(&mut batch, order ^ number as u64);
                    harness.block_on(async {
                        for spans in batch.chunks(9) {
                            harness.wal().append(&tenant, request(spans)).await.expect("append");
                        }
                    });
                }
                Step::Flush => harness.begin_flush(),
                Step::Refuse(object) => harness.faults().refuse_named(Some(OBJECTS[object])),
                Step::Restart(workers) => {
                    harness.restart(settings(workers));
                    harness.faults().refuse_named(None);
                }
            }
            let shown = shown(&harness.snapshots().latest(), &tenant);
            assert_monotonic(&seen, &shown);
            seen = shown;
        }
        harness.faults().refuse_named(None);
        harness.block_on(settled(&harness, 0));
        prop_assert_eq!(shown(&harness.snapshots().latest(), &tenant), truth);
    }
}

/// Copies, late spans, crashes and limits at once: what counts is the same for all of them, and what does not is counted by reason.
#[test]
fn neither_replicas_nor_workers_nor_restarts_change_a_number() {
    let (unlimited, limited) = (Tenant::single(), Tenant::new("limited").expect("valid"));
    let settings_of_tenant = everything();
    let of = |common: Common| generator::Settings { span_metrics: Some(everything()), common, ..generator::Settings::default() };
    let tenants = || {
        let limits = Common { max_active_series: 40, ..Common::default() };
        let of_tenants = [(limited.clone(), Arc::new(of(limits)))].into();
        Arc::new(Fixed { default: Some(Arc::new(of(Common::default()))), tenants: of_tenants })
    };
    for (replicas, workers) in [1, 3].into_iter().flat_map(|replicas| [1, 2, 4].map(|workers| (replicas, workers))) {
        let mut harness = Harness::generating(settings(workers), tenants());
        let (mut truth, mut seen) = (BTreeMap::new(), [BTreeMap::new(), BTreeMap::new()]);
        let mut sent = Vec::new();
        for round in 0..4u64 {
            let mut batch: Vec<_> = (0..40u64).map(|index| span(index % 7, round * 100 + index, index * 13 + round)).collect();
            for (resource, span) in batch.iter().filter(|(_, span)| !is_excluded(span)) {
                count(&mut truth, &settings_of_tenant, resource, span);
            }
            for number in 60..64 {
                let (resource, mut span) = span(number, round * 100 + number, number);
                span.end_time_unix_nano -= 3_600_000_000_000;
                batch.push((resource, span));
            }
            sent.extend(batch.iter().cloned());
            let mut copies: Vec<_> = std::iter::repeat_n(batch, replicas).flatten().chain(sent.iter().step_by(4).cloned()).collect();
            shuffle(&mut copies, round + replicas as u64);
            harness.block_on(async {
                for spans in copies.chunks(11) {
                    for tenant in [&unlimited, &limited] {
                        harness.wal().append(tenant, request(spans)).await.expect("append");
                    }
                }
                // Before and after a commit, and in the middle of one.
                match round {
                    0 => settled(&harness, 0).await,
                    1 => harness.begin_flush(),
                    _ => {}
                }
            });
            // What is shown is what is sent: no counter goes back, not through a crash.
            for (seen, tenant) in seen.iter_mut().zip([&unlimited, &limited]) {
                let shown = shown(&harness.snapshots().latest(), tenant);
                assert_monotonic(seen, &shown);
                *seen = shown;
            }
            if round < 3 {
                harness.restart(settings([workers, 3, 1][round as usize]));
            }
        }
        harness.block_on(settled(&harness, 1));
        let snapshot = harness.snapshots().latest();
        let (all, few) = (shown(&snapshot, &unlimited), shown(&snapshot, &limited));
        assert_eq!(all, truth, "{replicas} copies, {workers} workers");
        assert_monotonic(&seen[0], &all);
        assert_monotonic(&seen[1], &few);
        // The limit takes nothing away, it puts together.
        for family in [Family::SpanMetrics, Family::TargetInfo] {
            let total = |sums: &BTreeMap<Name, Sums>| {
                let of_family = sums.iter().filter(|((of, _), _)| *of == family).map(|(_, sums)| sums);
                of_family.fold((0, 0, 0), |sum, sums| (sum.0 + sums.count, sum.1 + sums.nanoseconds, sum.2 + sums.size))
            };
            assert_eq!(total(&few), total(&truth), "{family:?}, {replicas} copies, {workers} workers");
        }
        let overflow = (Family::SpanMetrics, vec![("metric_overflow".to_owned(), "true".to_owned())]);
        assert!(few.len() < all.len() && few[&overflow].count > 0);
        assert_eq!(harness.counter("rubato_generator_lost_checkpoints_total"), 0);
    }
}

#[test]
fn processors_limits_and_demand_are_shown() {
    let common = Common { max_active_series: 2, ..Common::default() };
    let harness = Harness::generating(settings(2), tenants(only_count(), common));
    harness.block_on(async {
        for number in 0..30 {
            let (resource, mut span) = span(number, number, 1);
            span.name = format!("operation {number}");
            harness.wal().append(&Tenant::single(), request(&[(resource, span)])).await.expect("append");
        }
        settled(&harness, 0).await;
    });
    // Both tenants, the one that settles and the one that is told of.
    assert_eq!(harness.gauge("tempo_metrics_generator_active_processors"), 2);
    assert_eq!(harness.gauge("tempo_metrics_generator_registry_max_active_series"), 4);
    assert_eq!(harness.gauge("tempo_metrics_generator_registry_active_series"), 3);
    let demand = harness.gauge("tempo_metrics_generator_registry_active_series_demand_estimate");
    assert!((29..=33).contains(&demand), "{demand}");
}

#[test]
fn a_crash_between_any_two_writes_of_a_commit_changes_nothing() {
    let (settings_of_tenant, tenant) = (everything(), Tenant::single());
    let mut harness = Harness::generating(settings(1), tenants(settings_of_tenant.clone(), Common::default()));
    let mut truth = BTreeMap::new();
    let mut sent = Vec::new();
    for (round, object) in OBJECTS.into_iter().chain(OBJECTS).enumerate() {
        let batch: Vec<_> = (0..30u64).map(|index| span(index % 5, round as u64 * 50 + index, index * 17 + round as u64)).collect();
        batch
            .iter()
            .filter(|(_, span)| !is_excluded(span))
            .for_each(|(resource, span)| count(&mut truth, &settings_of_tenant, resource, span));
        sent.extend(batch.iter().cloned());
        harness.block_on(async {
            // Committed, so that copies lie on both sides of the crash.
            harness.wal().append(&tenant, request(&batch[..15])).await.expect("append");
            settled(&harness, round as u64).await;
            harness.faults().refuse_named(Some(object));
            harness.wal().append(&tenant, request(&batch[10..])).await.expect("append");
            harness.begin_flush();
            harness.wait_until("a commit stumbles", |harness| harness.faults().refusals() > 0).await;
            harness.wal().append(&tenant, request(&sent)).await.expect("append");
        });
        harness.restart(settings([1, 2, 4, 3][round % 4]));
        harness.faults().refuse_named(None);
    }
    harness.block_on(settled(&harness, OBJECTS.len() as u64 * 2));
    assert_eq!(shown(&harness.snapshots().latest(), &tenant), truth);
    assert_eq!(harness.counter("rubato_generator_lost_checkpoints_total"), 0);
}

#[test]
fn late_spans_count_within_the_slack_only() {
    let (settings_of_tenant, tenant) = (SpanMetrics::default(), Tenant::single());
    let harness = Harness::generating(settings(2), tenants(settings_of_tenant.clone(), Common::default()));
    let mut truth = BTreeMap::new();
    let moved = |number, seconds: i64| {
        let (resource, mut span) = span(1, number, number);
        span.end_time_unix_nano = span.end_time_unix_nano.saturating_add_signed(seconds * 1_000_000_000);
        (resource, span)
    };
    let counted: Vec<_> = [-15, 0, 15].into_iter().enumerate().map(|(number, by)| moved(number as u64, by)).collect();
    let discarded: Vec<_> = [-3600, -60, 60, 3600].into_iter().enumerate().map(|(number, by)| moved(number as u64 + 10, by)).collect();
    counted.iter().for_each(|(resource, span)| count(&mut truth, &settings_of_tenant, resource, span));
    harness.block_on(async {
        harness.wal().append(&tenant, request(&[counted, discarded].concat())).await.expect("append");
        settled(&harness, 0).await;
    });
    assert_eq!(shown(&harness.snapshots().latest(), &tenant), truth);
    assert_eq!(harness.counter("tempo_metrics_generator_spans_discarded_total"), 4);
    assert_eq!(harness.counter("tempo_metrics_generator_spans_received_total"), 8);
}

fn only_count() -> SpanMetrics {
    SpanMetrics { parts: Parts { count: true, latency: false, size: false }, ..SpanMetrics::default() }
}

#[test]
fn series_over_the_limit_are_counted_together() {
    let tenant = Tenant::single();
    let common = Common { max_active_series: 2, ..Common::default() };
    for workers in [1, 3] {
        let harness = Harness::generating(settings(workers), tenants(only_count(), common.clone()));
        harness.block_on(async {
            for number in 0..12 {
                harness.wal().append(&tenant, request(&[span(number, number, number)])).await.expect("append");
            }
            settled(&harness, 0).await;
        });
        let shown = shown(&harness.snapshots().latest(), &tenant);
        let overflow = (Family::SpanMetrics, vec![("metric_overflow".to_owned(), "true".to_owned())]);
        assert_eq!(shown.len(), 3, "{workers} workers: {shown:?}");
        assert_eq!(shown.values().map(|sums| sums.count).sum::<i128>(), 12, "nothing is silently gone");
        assert!(shown[&overflow].count > 0);
        assert!(harness.counter("tempo_metrics_generator_registry_series_limited_total") > 0);
    }
}

#[test]
fn a_label_with_too_many_values_keeps_the_first() {
    let tenant = Tenant::single();
    let common = Common { max_cardinality_per_label: 3, ..Common::default() };
    let harness = Harness::generating(settings(2), tenants(only_count(), common));
    harness.block_on(async {
        for number in 0..30 {
            let (resource, mut span) = span(number, number, 1);
            span.name = format!("operation {number}");
            harness.wal().append(&tenant, request(&[(resource, span)])).await.expect("append");
        }
        settled(&harness, 0).await;
    });
    let shown = shown(&harness.snapshots().latest(), &tenant);
    let names: BTreeSet<_> = shown.keys().flat_map(|(_, labels)| labels.iter().find(|(name, _)| name == "span_name")).cloned().collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.iter().any(|(_, value)| value == "__cardinality_overflow__"));
    assert_eq!(shown.values().map(|sums| sums.count).sum::<i128>(), 30);
}

#[test]
fn a_series_that_is_not_observed_ends_and_begins_anew() {
    let tenant = Tenant::single();
    // Long enough that a busy machine shows the series before it ends.
    let settings = Settings { stale_duration: Duration::from_secs(3), ..settings(2) };
    let harness = Harness::generating(settings, tenants(only_count(), Common::default()));
    harness.block_on(async {
        for number in [0, 1] {
            harness.wal().append(&tenant, request(&[span(number, number, 1)])).await.expect("append");
            let mut snapshots = harness.snapshots().subscribe();
            let is_there = |snapshot: &Arc<generator::Snapshot>| shown(snapshot, &tenant).len() == 1;
            let snapshot = tokio::time::timeout(Duration::from_secs(30), snapshots.wait_for(is_there)).await.expect("it is counted");
            let snapshot = Arc::clone(&snapshot.expect("the harness keeps the sender"));
            assert_eq!(shown(&snapshot, &tenant).values().next().map(|sums| sums.count), Some(1));
            let there = &snapshot.tenants[&tenant][0];
            assert!(there.first == there.last && there.last <= snapshot.tick);
            harness.wait_until("it ends", |harness| shown(&harness.snapshots().latest(), &tenant).is_empty()).await;
        }
    });
    assert!(harness.counter("tempo_metrics_generator_registry_series_removed_total") >= 2);
    assert_eq!(harness.gauge("tempo_metrics_generator_registry_active_series"), 0);
}

#[test]
fn nobody_who_wants_nothing_is_counted() {
    let (wants, other) = (Tenant::single(), Tenant::new("other").expect("valid"));
    let settings_of_tenant = generator::Settings { span_metrics: Some(only_count()), ..generator::Settings::default() };
    let wanted =
        |names: &[&str]| names.iter().map(|name| (Tenant::new(name).expect("valid"), Arc::new(settings_of_tenant.clone()))).collect();
    let fixed = Fixed { default: None, tenants: wanted(&[Tenant::SINGLE, "the-last"]) };
    let harness = Harness::generating(settings(2), Arc::new(fixed));
    harness.block_on(async {
        harness.wal().append(&other, request(&[span(1, 1, 1)])).await.expect("append");
        harness.wal().append(&wants, request(&[span(1, 1, 1)])).await.expect("append");
        settled(&harness, 0).await;
    });
    let snapshot = harness.snapshots().latest();
    assert_eq!((shown(&snapshot, &wants).len(), shown(&snapshot, &other).len()), (1, 0));
    assert_eq!(harness.counter("tempo_metrics_generator_spans_received_total"), 2);
}

#[test]
fn what_its_sender_generates_metrics_from_is_stored_only() {
    let tenant = Tenant::single();
    let harness = Harness::generating(settings(2), tenants(only_count(), Common::default()));
    let skipped = |body: Bytes| Entry { body, skip_metrics_generation: true };
    harness.block_on(async {
        harness.wal().append(&tenant, skipped(request(&[span(1, 1, 1)]))).await.expect("append");
        harness.wal().append(&tenant, request(&[span(2, 2, 2)])).await.expect("append");
        harness.wal().append(&tenant, request(&[span(1, 1, 1)])).await.expect("append");
        settled(&harness, 0).await;
    });
    let mut truth = BTreeMap::new();
    let (resource, counted) = span(2, 2, 2);
    count(&mut truth, &only_count(), &resource, &counted);
    assert_eq!(shown(&harness.snapshots().latest(), &tenant), truth, "the first copy decides");
    let readable = |trace| harness.block_on(harness.read(&tenant, trace_id(trace)));
    assert_eq!((readable(1), readable(2)), (vec![span_id(1, 1)], vec![span_id(2, 2)]));
}

#[test]
fn exemplars_are_traces_of_their_bucket() {
    let tenant = Tenant::single();
    let common = Common { histograms: generator::settings::Histograms::Both, ..Common::default() };
    let harness = Harness::generating(settings(2), tenants(SpanMetrics::default(), common));
    harness.block_on(async {
        harness.wal().append(&tenant, request(&[span(3, 1, 1)])).await.expect("append");
        settled(&harness, 0).await;
    });
    let snapshot = harness.snapshots().latest();
    let there = &snapshot.tenants[&tenant][0];
    assert_eq!(there.exemplars.len(), 1);
    assert_eq!(there.exemplars[0].trace_id, trace_id(3));
    assert_eq!(there.agg.classic.iter().map(|(bucket, _)| bucket).collect::<Vec<_>>(), [there.exemplars[0].bucket]);
    assert_eq!(there.agg.native.iter().map(|(_, weight)| weight).collect::<Vec<_>>(), [there.agg.count]);
}

#[test]
fn a_block_ahead_of_its_checkpoint_is_counted_and_not_stored_again() {
    let (settings_of_tenant, tenant) = (everything(), Tenant::single());
    let mut harness = Harness::generating(settings(2), tenants(settings_of_tenant.clone(), Common::default()));
    let batches: Vec<Vec<_>> = (0..2u64).map(|round| (0..40).map(|index| span(index % 5, round * 50 + index, index)).collect()).collect();
    let mut truth = BTreeMap::new();
    for (resource, span) in batches.iter().flatten().filter(|(_, span)| !is_excluded(span)) {
        count(&mut truth, &settings_of_tenant, resource, span);
    }
    harness.block_on(async {
        harness.wal().append(&tenant, request(&batches[0])).await.expect("append");
        settled(&harness, 0).await;
        let before = harness.manifests().load().await.expect("manifest");
        // Committed, and stopped before it is published and forgotten.
        harness.faults().refuse_named(Some("meta.json"));
        harness.wal().append(&tenant, request(&batches[1])).await.expect("append");
        harness.begin_flush();
        harness.wait_until("a block is committed", |harness| harness.faults().refusals() > 0).await;
        harness.shutdown().await;
        // As if that block had been uploaded just before the checkpoint of the earlier manifest was complete.
        let mut manifest = harness.manifests().load().await.expect("manifest");
        assert!(!manifest.blocks.is_empty() && manifest.positions != before.positions);
        manifest.sequence += 1;
        (manifest.tick, manifest.positions, manifest.generator) = (before.tick, before.positions, before.generator);
        harness.manifests().store(&manifest).await.expect("put");
    });
    harness.faults().refuse_named(None);
    harness.restart(settings(3));
    harness.block_on(async {
        settled(&harness, 1).await;
        harness.flush().await;
        let stored = harness.stored(&tenant).await;
        assert_eq!(stored.values().map(Vec::len).sum::<usize>(), 80);
    });
    assert_eq!(shown(&harness.snapshots().latest(), &tenant), truth);
}

#[test]
fn each_span_is_explained() {
    let (settings_of_tenant, tenant) = (everything(), Tenant::single());
    let harness = Harness::generating(settings(2), tenants(settings_of_tenant.clone(), Common::default()));
    let mut spans: Vec<_> = (0..20u64).map(|number| span(1, number, number)).collect();
    spans[7].1.end_time_unix_nano -= 3_600_000_000_000;
    let mut truth = BTreeMap::new();
    let in_time = spans[..7].iter().chain(&spans[8..]);
    for (resource, span) in in_time.filter(|(_, span)| !is_excluded(span)) {
        count(&mut truth, &settings_of_tenant, resource, span);
    }
    let explained = harness.block_on(async {
        harness.wal().append(&tenant, request(&spans)).await.expect("append");
        // Repeated, and told once.
        harness.wal().append(&tenant, request(&spans[..5])).await.expect("append");
        settled(&harness, 0).await;
        harness.dataflow().explain(&tenant, trace_id(1), Vec::new()).await.expect("explained")
    });
    assert_eq!(explained.len(), spans.len());
    let mut counted: BTreeMap<Name, f64> = BTreeMap::new();
    for (explained, (_, span)) in explained.iter().zip(&spans) {
        assert_eq!(explained.span_id.to_be_bytes().as_slice(), span.span_id);
        assert!(explained.committed && explained.arrived_unix_nano.is_some());
        for outcome in &explained.outcomes {
            match outcome {
                Outcome::Counted { metrics, labels, weight, place, .. } => {
                    assert_eq!(*place, Place::Series);
                    let family = if metrics == &["traces_target_info"] { Family::TargetInfo } else { Family::SpanMetrics };
                    *counted.entry((family, labels.clone().into_iter().collect())).or_default() += weight;
                }
                Outcome::Discarded { reason: "outside_metrics_ingestion_slack", .. } => assert_eq!(span.name, "operation 2"),
                Outcome::Discarded { reason: "span_metrics_filtered", .. } => assert!(is_excluded(span)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(counted, truth.into_iter().map(|(name, sums)| (name, sums.count as f64)).collect());
}

/// The two halves of a request between services that the number tells.
fn halves(number: u64) -> [(Resource, Span); 2] {
    let half = |service: String, kind, id: u64, parent: Option<u64>| {
        let (_, mut span) = span(number, id, 0);
        span.kind = kind;
        span.status = None;
        span.parent_span_id = parent.map_or_else(Vec::new, |parent| span_id(number, parent).to_be_bytes().to_vec());
        span.start_time_unix_nano = span.end_time_unix_nano - 1_000_000 * (number + 1);
        span.attributes.clear();
        (Resource { attributes: vec![string("service.name", &service)], ..Resource::default() }, span)
    };
    [half(format!("client {}", number % 3), 3, 1, None), half(format!("server {}", number % 2), 2, 2, Some(1))]
}

#[test]
fn edges_whose_halves_lie_on_both_sides_of_a_crash_count_once() {
    let tenant = Tenant::single();
    let graphs = ServiceGraphs { wait: Duration::from_secs(120), ..ServiceGraphs::default() };
    let both = generator::Settings { service_graphs: Some(graphs), span_metrics: Some(only_count()), ..generator::Settings::default() };
    let tenants = Arc::new(Fixed { default: Some(Arc::new(both)), ..Fixed::default() });
    let mut harness = Harness::generating(settings(2), Arc::clone(&tenants) as _);
    let mut truth: BTreeMap<(String, String), i128> = BTreeMap::new();
    for (round, object) in OBJECTS.into_iter().enumerate() {
        let pairs: Vec<_> = (0..20).map(|index| halves(round as u64 * 20 + index)).collect();
        for number in round as u64 * 20..(round as u64 + 1) * 20 {
            *truth.entry((format!("client {}", number % 3), format!("server {}", number % 2))).or_default() += 1;
        }
        // Of each pair, one half is committed before the crash: now the client's, now the server's.
        let (early, late): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .enumerate()
            .map(|(index, [client, server])| if index % 2 == 0 { (client, server) } else { (server, client) })
            .unzip();
        harness.block_on(async {
            harness.wal().append(&tenant, request(&early)).await.expect("append");
            settled(&harness, round as u64).await;
            harness.faults().refuse_named(Some(object));
            harness.wal().append(&tenant, request(&late[..10])).await.expect("append");
            harness.begin_flush();
            harness.wait_until("a commit stumbles", |harness| harness.faults().refusals() > 0).await;
            harness.wal().append(&tenant, request(&[early, late].concat())).await.expect("append");
        });
        harness.restart(settings([1, 4, 3][round % 3]));
        harness.faults().refuse_named(None);
    }
    harness.block_on(settled(&harness, OBJECTS.len() as u64));
    let snapshot = harness.snapshots().latest();
    let of = |family: Family| snapshot.tenants[&tenant].iter().filter(move |there| there.series.family() == family);
    let label = |there: &generator::Accumulated, name: &str| there.series.labels().get(name).unwrap_or_default().to_owned();
    let edges = of(Family::ServiceGraphRequests).map(|there| ((label(there, "client"), label(there, "server")), there.agg.count.0 >> 32));
    assert_eq!(edges.collect::<BTreeMap<_, _>>(), truth);
    let observed = of(Family::ServiceGraphServer).map(|there| there.agg.count.0 >> 32).sum::<i128>();
    assert_eq!(observed, truth.values().sum::<i128>());
    assert_eq!(of(Family::ServiceGraphUnpaired).count(), 0);
}

/// Settings of one tenant that change; everybody else's do not.
#[derive(Debug, Default)]
struct Changing {
    version: AtomicU64,
    current: Mutex<Option<Arc<generator::Settings>>>,
    others: Fixed,
}

impl Changing {
    fn change(&self, span_metrics: Option<SpanMetrics>) {
        let settings = span_metrics.map(|it| Arc::new(generator::Settings { span_metrics: Some(it), ..generator::Settings::default() }));
        *self.current.lock().expect("not poisoned") = settings;
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl generator::Tenants for Changing {
    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn settings(&self, tenant: &Tenant) -> Option<Arc<generator::Settings>> {
        if *tenant == Tenant::single() { self.current.lock().expect("not poisoned").clone() } else { self.others.settings(tenant) }
    }
}

#[test]
fn settings_may_change_at_any_time() {
    let tenant = Tenant::single();
    let others = tenants(only_count(), Common::default());
    let changing = Arc::new(Changing { others: (*others).clone(), ..Changing::default() });
    let harness = Harness::generating(settings(2), Arc::clone(&changing) as _);
    let with_dimension = SpanMetrics { dimensions: vec!["http.method".to_owned()], ..only_count() };
    let (mut truth, mut number) = (BTreeMap::new(), 0);
    for wanted in [None, Some(only_count()), Some(with_dimension), None, Some(only_count())] {
        changing.change(wanted.clone());
        let spans = [span(number, number, 2), span(number, number + 1, 2)];
        if let Some(settings_of_tenant) = wanted {
            spans.iter().for_each(|(resource, span)| count(&mut truth, &settings_of_tenant, resource, span));
        }
        harness.block_on(async {
            harness.wal().append(&tenant, request(&spans)).await.expect("append");
            settled(&harness, number).await;
        });
        number += 1;
    }
    let counts = |sums: BTreeMap<Name, Sums>| sums.into_iter().map(|(name, sums)| (name, sums.count)).collect::<BTreeMap<_, _>>();
    assert_eq!(counts(shown(&harness.snapshots().latest(), &tenant)), counts(truth));
}
