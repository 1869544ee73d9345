//! Remote write against a receiver that decodes both protocols and fails as it is told to.

mod receiver;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use storage::{
    clock::{Clock, ManualClock},
    id::TraceId,
};
use tokio::sync::oneshot;

use super::*;
use crate::generator::{Agg, Definition, Exemplar, Family, Layout, Parts, Series, Weight, histogram::Bucketer};
use receiver::{Fault, Receiver};

/// 12:34:56.789 on some day.
const NOW_MS: i64 = 1_700_051_696_789;
/// 12:33:59.000 on that day.
const ZERO_MS: i64 = 1_700_051_639_000;

const TICK: Duration = Duration::from_millis(250);

const PATIENCE: Duration = Duration::from_secs(60);

fn tenant() -> Tenant {
    Tenant::new("team-a").expect("a tenant")
}

fn layout(classic: bool, native: bool) -> Layout {
    Layout { parts: Parts::ALL, classic: classic.then(|| [0.016, 0.032, 1.0].into()), native: native.then_some(3) }
}

fn series(family: Family, labels: &[(&str, &str)], layout: Layout) -> Series {
    let labels = labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect();
    Series::new(Definition { tenant: tenant(), family, labels, layout: Arc::new(layout) })
}

/// A series that has seen spans of these durations in milliseconds.
fn observed(series: &Series, milliseconds: &[u64]) -> Accumulated {
    let mut agg = Agg::default();
    let bucketer = Bucketer::of(series.layout().clone());
    for duration in milliseconds {
        bucketer.observe(&mut agg, duration * 1_000_000, Weight::ONE);
        agg.size += 100;
    }
    Accumulated { series: series.clone(), agg, first: 1, last: 1, exemplars: Vec::new() }
}

fn calls(service: &str) -> Series {
    let parts = Parts { count: true, latency: false, size: false };
    series(Family::SpanMetrics, &[("service", service)], Layout { parts, ..layout(false, false) })
}

#[derive(Debug, Default)]
struct Tenants(Mutex<TenantSettings>);

impl Overrides for Tenants {
    fn remote_write(&self, _: &Tenant) -> Arc<TenantSettings> {
        Arc::new(self.0.lock().clone())
    }
}

/// Remote write as it runs, and everything that can be changed around it.
struct Running {
    snapshots: Snapshots,
    clock: ManualClock,
    tenants: Arc<Tenants>,
    registry: prometheus::Registry,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// With `recovered` as the newest snapshot before anything is sent. Another time is needed for each collection: [`Self::show`].
    fn start(endpoints: Vec<Endpoint>, recovered: Vec<Accumulated>, change: impl FnOnce(&mut Settings)) -> Self {
        let snapshots = Snapshots::default();
        publish(&snapshots, recovered);
        let clock = ManualClock::new(Duration::from_millis(NOW_MS as u64 - 120_000));
        let registry = prometheus::Registry::new();
        let tenants = Arc::new(Tenants::default());
        let mut settings = Settings {
            endpoints,
            collection_interval: Duration::from_millis(15),
            instance: "host".to_owned(),
            flush_deadline: PATIENCE,
            ..Settings::default()
        };
        change(&mut settings);
        let overrides: Arc<dyn Overrides> = Arc::<Tenants>::clone(&tenants);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let remote_write = RemoteWrite::new(settings, snapshots.clone(), overrides, shared, &registry).expect("right settings");
        clock.advance(Duration::from_millis(120_000));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(remote_write.run(async { _ = stopped.await }));
        Self { snapshots, clock, tenants, registry, stop, task }
    }

    /// Publishes a snapshot and waits until it was collected.
    async fn show(&self, series: Vec<Accumulated>) {
        let before = self.metric("tempo_metrics_generator_registry_collections_total", &[]);
        publish(&self.snapshots, series);
        self.clock.advance(Duration::from_millis(1_000));
        self.until("a collection", || self.metric("tempo_metrics_generator_registry_collections_total", &[]) > before).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "gave up waiting: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops without a further collection, since the clock stands still, and sends what waits.
    async fn stop(self) -> prometheus::Registry {
        _ = self.stop.send(());
        self.task.await.expect("no panic");
        self.registry
    }

    fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        metric(&self.registry, name, labels)
    }
}

/// The sum of a counter or gauge over the series that have these label values.
fn metric(registry: &prometheus::Registry, name: &str, values: &[&str]) -> u64 {
    let families = registry.gather();
    let of_name = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    let has =
        |metric: &&prometheus::proto::Metric| values.iter().all(|value| metric.get_label().iter().any(|label| label.value() == *value));
    of_name.filter(has).map(|metric| (metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64).sum()
}

fn publish(snapshots: &Snapshots, series: Vec<Accumulated>) {
    publish_since(snapshots, series, None);
}

fn publish_since(snapshots: &Snapshots, mut series: Vec<Accumulated>, recovered: Option<u64>) {
    series.sort_by(|a, b| a.series.cmp(&b.series));
    let sequence = snapshots.latest().sequence + 1;
    let tenants = if series.is_empty() { HashMap::new() } else { HashMap::from([(tenant(), series.into_iter().map(Arc::new).collect())]) };
    snapshots.publish(Snapshot { sequence, tick: sequence, tick_length: TICK, recovered, tenants, ..Snapshot::default() });
}

fn endpoint(receiver: &Receiver) -> Endpoint {
    let mut endpoint = Endpoint::new(&receiver.url);
    endpoint.queue.min_backoff = Duration::from_millis(1);
    endpoint.queue.max_backoff = Duration::from_millis(20);
    endpoint
}

fn complaints(receiver: &Receiver) -> Vec<String> {
    receiver.stored(|stored| stored.complaints.clone())
}

/// What a receiver has, as text: series, times relative to the collection at [`NOW_MS`] + 1 s, values.
fn dump(receiver: &Receiver) -> Vec<String> {
    let line = |(key, values): (&String, &std::collections::BTreeMap<i64, f64>)| {
        let values: Vec<String> = values.iter().map(|(at, value)| format!("{}={value}", at - NOW_MS - 1_000)).collect();
        format!("{key} {}", values.join(" "))
    };
    receiver.stored(|stored| stored.series.iter().map(line).collect())
}

#[tokio::test]
async fn one_server_span_looks_as_in_tempo() {
    for protocol in [Protocol::V1, Protocol::V2] {
        let receiver = Receiver::start().await;
        let running = Running::start(vec![Endpoint { protocol, ..endpoint(&receiver) }], Vec::new(), |settings| {
            settings.external_labels.insert("source".to_owned(), "tempo".to_owned());
            settings.external_labels.insert("status_code".to_owned(), "overridden".to_owned());
            settings.tenant_label = Some("tenant".to_owned());
        });
        let labels = [("service", "a"), ("span_name", "GET /"), ("span_kind", "SPAN_KIND_SERVER"), ("status_code", "STATUS_CODE_UNSET")];
        running.show(vec![observed(&series(Family::SpanMetrics, &labels, layout(true, false)), &[20])]).await;
        running.stop().await;
        let common = "service=\"a\",source=\"tempo\",span_kind=\"SPAN_KIND_SERVER\",span_name=\"GET /\",status_code=\"overridden\",tenant=\"team-a\"}";
        let zero = ZERO_MS - NOW_MS - 1_000;
        let bucket = |le: &str, value: u32| {
            format!("traces_spanmetrics_latency_bucket{{__metrics_gen_instance=\"host\",le=\"{le}\",{common} {zero}=0 0={value}")
        };
        let plain = |name: &str, values: String| format!("traces_spanmetrics_{name}{{__metrics_gen_instance=\"host\",{common} {values}");
        let expected = [
            plain("calls_total", format!("{zero}=0 0=1")),
            bucket("+Inf", 1),
            bucket("0.016", 0),
            bucket("0.032", 1),
            bucket("1", 1),
            plain("latency_count", format!("{zero}=0 0=1")),
            plain("latency_sum", "0=0.02".to_owned()),
            plain("size_total", format!("{zero}=0 0=100")),
        ];
        assert_eq!(dump(&receiver), expected);
        assert_eq!(complaints(&receiver), [""; 0]);
        let versions: Vec<_> = receiver.stored(|stored| stored.metadata.iter().map(|it| it.metric_family_name.clone()).collect());
        let expected: &[Bytes] = match protocol {
            Protocol::V1 => {
                &["traces_spanmetrics_calls_total".into(), "traces_spanmetrics_latency".into(), "traces_spanmetrics_size_total".into()]
            }
            Protocol::V2 => &[],
        };
        assert_eq!(versions, expected);
    }
}

#[tokio::test]
async fn gauges_and_service_graphs() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    let edge = [("client", "a"), ("server", "b")];
    let mut all = vec![
        observed(&series(Family::TargetInfo, &[("job", "a")], Layout::COUNTER), &[1]),
        observed(&series(Family::HostInfo, &[("grafana_host_id", "h")], Layout::COUNTER), &[1]),
    ];
    let families = [
        Family::ServiceGraphRequests,
        Family::ServiceGraphFailed,
        Family::ServiceGraphClient,
        Family::ServiceGraphServer,
        Family::ServiceGraphMessaging,
        Family::ServiceGraphUnpaired,
    ];
    all.extend(families.map(|family| observed(&series(family, &edge, layout(false, true)), &[20, 30])));
    running.tenants.0.lock().host_info_metric = "hosts".to_owned();
    running.show(all).await;
    running.stop().await;
    let zero = ZERO_MS - NOW_MS - 1_000;
    let expected = [
        "hosts{__metrics_gen_instance=\"host\",grafana_host_id=\"h\"} 0=1".to_owned(),
        format!("traces_service_graph_request_client_seconds{{__metrics_gen_instance=\"host\",client=\"a\",server=\"b\"}} {zero}=0 0=2"),
        format!("traces_service_graph_request_failed_total{{__metrics_gen_instance=\"host\",client=\"a\",server=\"b\"}} {zero}=0 0=2"),
        format!(
            "traces_service_graph_request_messaging_system_seconds{{__metrics_gen_instance=\"host\",client=\"a\",server=\"b\"}} {zero}=0 0=2"
        ),
        format!("traces_service_graph_request_server_seconds{{__metrics_gen_instance=\"host\",client=\"a\",server=\"b\"}} {zero}=0 0=2"),
        format!("traces_service_graph_request_total{{__metrics_gen_instance=\"host\",client=\"a\",server=\"b\"}} {zero}=0 0=2"),
        "traces_target_info{__metrics_gen_instance=\"host\",job=\"a\"} 0=1".to_owned(),
    ];
    assert_eq!(dump(&receiver), expected);
    receiver.stored(|stored| {
        let histograms = stored.histograms.values().next().expect("one of the histograms");
        let [zero, now] = histograms.as_slice() else { panic!("{histograms:?}") };
        assert_eq!((zero.schema, zero.count_int, zero.zero_threshold), (3, Some(0), 2f64.powi(-128)));
        // 2^(-45/8) = 0.02026 is the upper end of the bucket of 20 ms, 2^(-40/8) = 0.03125 of that of 30 ms.
        let spans: Vec<_> = now.positive_spans.iter().map(|span| (span.offset, span.length)).collect();
        assert_eq!((spans, now.positive_deltas.clone(), now.sum), (vec![(-45, 1), (4, 1)], vec![1, 0], 0.05));
    });
}

/// Sends a counter through faults, and says what the receiver complains of and what it counted.
async fn through(faults: Vec<Fault>, change: impl Fn(&mut Endpoint)) -> (Receiver, prometheus::Registry) {
    let receiver = Receiver::start().await;
    let mut endpoint = Endpoint { metadata_interval: None, timeout: PATIENCE, ..endpoint(&receiver) };
    change(&mut endpoint);
    receiver.fail(faults);
    let running = Running::start(vec![endpoint], Vec::new(), |_| {});
    for count in 1..=5 {
        running.show(vec![observed(&calls("a"), &vec![1; count]), observed(&calls("b"), &vec![1; 2 * count])]).await;
    }
    let registry = running.stop().await;
    assert_eq!(receiver.faults_left(), 0);
    assert_eq!(complaints(&receiver), [""; 0]);
    (receiver, registry)
}

const CALLS_A: &str = "traces_spanmetrics_calls_total{__metrics_gen_instance=\"host\",service=\"a\"}";
const CALLS_B: &str = "traces_spanmetrics_calls_total{__metrics_gen_instance=\"host\",service=\"b\"}";

#[tokio::test]
async fn nothing_is_lost_or_doubled_by_what_can_be_tried_again() {
    for fault in [
        Fault::Status(500, ""),
        Fault::Status(503, "Retry-After: 0\r\n"),
        Fault::Status(429, "Retry-After: 0\r\n"),
        Fault::Status(429, ""),
        Fault::Cut,
        Fault::CutAfterWriting,
        Fault::Slow(Duration::from_millis(30)),
    ] {
        let fails = !matches!(fault, Fault::Slow(_));
        for protocol in [Protocol::V1, Protocol::V2] {
            // Between requests that go through: each phase meets some.
            let faults = [fault.clone(), fault.clone(), Fault::None, fault.clone(), Fault::None, fault.clone()].to_vec();
            let (receiver, registry) = through(faults, |endpoint| endpoint.protocol = protocol).await;
            assert_eq!(receiver.values(CALLS_A), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{fault:?}");
            assert_eq!(receiver.values(CALLS_B), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0], "{fault:?}");
            let count = |name: &str| metric(&registry, &format!("prometheus_remote_storage_{name}"), &["team-a"]);
            assert_eq!((count("samples_total"), count("samples_failed_total"), count("samples_pending")), (12, 0, 0), "{fault:?}");
            assert_eq!(count("samples_retried_total") > 0, fails, "{fault:?}");
            let attempts: Vec<_> =
                receiver.stored(|stored| stored.requests.iter().filter_map(|headers| headers.get("retry-attempt").cloned()).collect());
            assert_eq!(attempts.first().map(String::as_str), fails.then_some("1"), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_made_again() {
    let slow = vec![Fault::None, Fault::Slow(Duration::from_secs(5))];
    let (receiver, registry) = through(slow, |endpoint| endpoint.timeout = Duration::from_millis(700)).await;
    assert_eq!(receiver.values(CALLS_A), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(metric(&registry, "rubato_remote_write_requests_total", &["retried", "none"]) > 0);
}

#[tokio::test]
async fn what_is_refused_is_dropped_and_counted() {
    for (status, retry_on_429) in [(400, true), (401, true), (413, true), (429, false)] {
        // Zeros go through, the first values don't.
        let faults = vec![Fault::None, Fault::Status(status, "Retry-After: 0\r\n")];
        let (receiver, registry) = through(faults, |endpoint| endpoint.queue.retry_on_429 = retry_on_429).await;
        assert_eq!(receiver.values(CALLS_A), [0.0, 2.0, 3.0, 4.0, 5.0], "{status}");
        assert_eq!(metric(&registry, "prometheus_remote_storage_samples_failed_total", &[]), 2, "{status}");
        assert_eq!(metric(&registry, "rubato_remote_write_requests_total", &["refused", &status.to_string()]), 1, "{status}");
        assert_eq!(metric(&registry, "prometheus_remote_storage_samples_retried_total", &[]), 0, "{status}");
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let begun = std::time::Instant::now();
    let (receiver, _) = through(vec![Fault::Status(429, "Retry-After: 1\r\n")], |_| {}).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(receiver.values(CALLS_A), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[tokio::test]
async fn a_receiver_of_the_older_protocol_is_sent_that() {
    for is_strict in [true, false] {
        let receiver = Receiver::of_v1(is_strict).await;
        let running = Running::start(vec![Endpoint { protocol: Protocol::V2, ..endpoint(&receiver) }], Vec::new(), |_| {});
        running.show(vec![observed(&calls("a"), &[1])]).await;
        running.show(vec![observed(&calls("a"), &[1, 1])]).await;
        let registry = running.stop().await;
        assert_eq!(receiver.values(CALLS_A), [0.0, 1.0, 2.0], "strict: {is_strict}");
        assert_eq!(complaints(&receiver), [""; 0]);
        assert_eq!(metric(&registry, "rubato_remote_write_requests_total", &["not_understood"]), 1);
        assert_eq!(metric(&registry, "prometheus_remote_storage_samples_total", &[]), 3);
    }
}

#[tokio::test]
async fn series_end_with_a_marker_and_begin_again_with_a_zero() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    let (a, b) = (observed(&calls("a"), &[1, 1, 1]), observed(&calls("b"), &[1]));
    running.show(vec![a.clone(), b.clone()]).await;
    running.show(vec![b.clone()]).await;
    // Again within the minute of the marker.
    running.show(vec![observed(&calls("a"), &[1]), b.clone()]).await;
    // Ended and begun again between two collections.
    running.show(vec![Accumulated { first: 9, ..observed(&calls("a"), &[1, 1]) }, b]).await;
    running.stop().await;
    assert_eq!(complaints(&receiver), [""; 0]);
    receiver.stored(|stored| {
        let values: Vec<_> = stored.series[CALLS_A].iter().map(|(at, value)| (at - NOW_MS, value.to_bits())).collect();
        let zero = 0.0_f64.to_bits();
        let expected = [
            (ZERO_MS - NOW_MS, zero),
            (1_000, 3.0_f64.to_bits()),
            (2_000, view::STALE.to_bits()),
            (2_001, zero),
            (3_000, 1.0_f64.to_bits()),
            (3_001, zero),
            (4_000, 2.0_f64.to_bits()),
        ];
        assert_eq!(values, expected);
    });
    assert_eq!(receiver.values(CALLS_B), [0.0, 1.0, 1.0, 1.0, 1.0]);
}

#[tokio::test]
async fn protocol_2_says_when_series_began() {
    // The tick of 12:34:51.750.
    let began = NOW_MS - 5_039;
    let tick = (began / 250) as u64;
    for protocol in [Protocol::V1, Protocol::V2] {
        let receiver = Receiver::start().await;
        let endpoint = Endpoint { protocol, metadata_interval: None, ..endpoint(&receiver) };
        let running = Running::start(vec![endpoint], Vec::new(), |_| {});
        let labels = [("service", "a")];
        let since = |first: u64, count: usize| {
            let of = |family: Family, native: bool| Accumulated {
                first,
                ..observed(&series(family, &labels, layout(!native, native)), &vec![20; count])
            };
            [(Family::SpanMetrics, false), (Family::ServiceGraphServer, true), (Family::TargetInfo, false)]
                .map(|(family, native)| of(family, native))
                .to_vec()
        };
        running.show(since(tick, 1)).await;
        running.show(since(tick, 2)).await;
        // Begun again; and as if the clock had been set back.
        running.show(since(tick + 30, 1)).await;
        running.show(since(tick + 4_000, 1)).await;
        running.stop().await;
        assert_eq!(complaints(&receiver), [""; 0]);
        let said = |name: &str| {
            let of_name = |(key, began): (&String, &Vec<i64>)| key.starts_with(name).then(|| began.clone());
            receiver.stored(|stored| stored.began.iter().find_map(of_name)).unwrap_or_default()
        };
        if protocol == Protocol::V1 {
            assert_eq!(said(""), [0; 0]);
            continue;
        }
        // A zero before each beginning says nothing.
        let again = began + 30 * 250;
        let expected = [0, began, began, 0, again, 0, 0];
        for name in [
            "traces_spanmetrics_calls_total",
            "traces_spanmetrics_latency_bucket",
            "traces_spanmetrics_latency_count",
            "traces_service_graph_request_server_seconds",
        ] {
            assert_eq!(said(name), expected, "{name}");
        }
        assert_eq!(said("traces_spanmetrics_latency_sum"), [began, began, again, 0], "there is no zero of a sum");
        assert_eq!(said("traces_target_info"), [0; 4], "a gauge has no beginning");
    }
}

#[tokio::test]
async fn headers_that_cannot_be_sent_are_counted() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    let failed = "tempo_metrics_generator_storage_remote_write_update_failed_total";
    running.show(vec![observed(&calls("a"), &[1])]).await;
    // Headers are asked for when a request is made.
    running.until("the first collection is there", || receiver.values(CALLS_A).len() == 2).await;
    assert_eq!(running.metric(failed, &["team-a"]), 0);
    running.tenants.0.lock().headers.insert("X-Team".to_owned(), "two\nlines".to_owned());
    running.show(vec![observed(&calls("a"), &[1, 1])]).await;
    running.until("it is counted", || running.metric(failed, &["team-a"]) > 0).await;
    running.stop().await;
    assert_eq!(receiver.values(CALLS_A), [0.0, 1.0]);
}

#[tokio::test]
async fn a_tenant_without_series_comes_again() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    // All within a minute: zeros must find their place between.
    running.clock.advance(Duration::from_secs(10));
    for _ in 0..3 {
        running.show(vec![observed(&calls("a"), &[1])]).await;
        running.show(Vec::new()).await;
        running.show(Vec::new()).await;
    }
    running.stop().await;
    assert_eq!(complaints(&receiver), [""; 0]);
    let values: Vec<u64> = receiver.values(CALLS_A).iter().map(|value| value.to_bits()).collect();
    assert_eq!(values, [0.0, 1.0, view::STALE, 0.0, 1.0, view::STALE, 0.0, 1.0, view::STALE].map(f64::to_bits));
}

#[tokio::test]
async fn recovered_series_have_no_zero() {
    let receiver = Receiver::start().await;
    let (a, gone) = (observed(&calls("a"), &[1]), observed(&calls("gone"), &[1]));
    let running = Running::start(vec![endpoint(&receiver)], vec![a, gone], |_| {});
    running.show(vec![observed(&calls("a"), &[1, 1]), observed(&calls("b"), &[1])]).await;
    running.stop().await;
    assert_eq!(receiver.values(CALLS_A), [2.0]);
    assert_eq!(receiver.values(CALLS_B), [0.0, 1.0]);
    let gone = receiver.values(&CALLS_A.replace("\"a\"", "\"gone\""));
    assert_eq!(gone.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), [view::STALE.to_bits()]);
}

/// A generator was lost, and its series, with all that it had counted, belong to this one now: a zero before them would count everything again.
#[tokio::test]
async fn series_that_are_taken_over_have_no_zero() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], vec![observed(&calls("own"), &[1])], |_| {});
    running.show(vec![observed(&calls("own"), &[1])]).await;
    let since = |series: Accumulated, first| Accumulated { first, ..series };
    let taken_over = since(observed(&calls("a"), &[1, 1]), 5);
    let new = since(observed(&calls("b"), &[1]), 9);
    let before = running.metric("tempo_metrics_generator_registry_collections_total", &[]);
    publish_since(&running.snapshots, vec![observed(&calls("own"), &[1]), taken_over, new], Some(7));
    running.clock.advance(Duration::from_millis(1_000));
    running.until("a collection", || running.metric("tempo_metrics_generator_registry_collections_total", &[]) > before).await;
    running.stop().await;
    assert_eq!(receiver.values(CALLS_A), [2.0]);
    assert_eq!(receiver.values(CALLS_B), [0.0, 1.0]);
}

#[tokio::test]
async fn other_buckets_under_the_same_labels_are_no_end() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    let labels = [("service", "a")];
    running.show(vec![observed(&series(Family::SpanMetrics, &labels, layout(true, false)), &[20, 20])]).await;
    let other = Layout { classic: Some([0.032, 2.0].into()), ..layout(true, false) };
    running.show(vec![observed(&series(Family::SpanMetrics, &labels, other), &[20])]).await;
    running.stop().await;
    assert_eq!(complaints(&receiver), [""; 0]);
    assert_eq!(receiver.values(CALLS_A), [0.0, 2.0, 0.0, 1.0]);
}

#[tokio::test]
async fn a_receiver_that_is_away_costs_resolution_and_no_count() {
    let (away, present) = (Receiver::start().await, Receiver::start().await);
    away.fail(vec![Fault::Status(503, ""); 10_000]);
    let mut slow = Endpoint { metadata_interval: None, name: "away".to_owned(), ..endpoint(&away) };
    // Two collections of two samples.
    (slow.queue.capacity, slow.queue.max_shards) = (4, 1);
    let running = Running::start(vec![slow, Endpoint { name: "present".to_owned(), ..endpoint(&present) }], Vec::new(), |_| {});
    for count in 1..=9 {
        running.show(vec![observed(&calls("a"), &vec![1; count]), observed(&calls("b"), &[1])]).await;
    }
    running.until("what is present has it all", || present.values(CALLS_A).len() == 10).await;
    assert_eq!(away.values(CALLS_A), [0.0; 0]);
    running.until("a request is under way", || running.metric("prometheus_remote_storage_samples_pending", &["away"]) == 6).await;
    // It comes back: what is left of the faults is taken away.
    away.fail_no_more();
    let registry = running.stop().await;
    let values = away.values(CALLS_A);
    assert_eq!((values[0], values.last()), (0.0, Some(&9.0)), "{values:?}");
    assert!(values.is_sorted(), "{values:?}");
    assert_eq!(complaints(&away), [""; 0]);
    let dropped = metric(&registry, "prometheus_remote_storage_samples_dropped_total", &["away", "queue_full"]);
    // The first collection was under way, two waited; the zero goes with the first.
    assert_eq!((dropped, values.len()), (12, 4), "{values:?}");
    assert_eq!(metric(&registry, "prometheus_remote_storage_samples_dropped_total", &["present"]), 0);
}

#[tokio::test]
async fn what_is_too_old_is_not_sent() {
    let receiver = Receiver::start().await;
    receiver.fail(vec![Fault::Status(503, ""); 10_000]);
    let mut endpoint = Endpoint { metadata_interval: None, ..endpoint(&receiver) };
    endpoint.queue.sample_age_limit = Some(Duration::from_secs(90));
    let running = Running::start(vec![endpoint], Vec::new(), |_| {});
    running.show(vec![observed(&calls("a"), &[1])]).await;
    running.until("it is tried", || running.metric("prometheus_remote_storage_samples_retried_total", &[]) > 0).await;
    running.clock.advance(Duration::from_secs(1_000));
    // The zero and the value, and perhaps a collection at the new time.
    running.until("it is given up", || running.metric("prometheus_remote_storage_samples_dropped_total", &["too_old"]) == 2).await;
    receiver.fail_no_more();
    running.stop().await;
    assert!(!receiver.values(CALLS_A).contains(&0.0));
}

#[tokio::test]
async fn headers_say_who_we_are() {
    let receiver = Receiver::start().await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let token = dir.path().join("token");
    std::fs::write(&token, "  s3cret\n").expect("writable");
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let basic = Auth::Basic { username: "u".to_owned(), password: Credentials::Text("p".to_owned().into()) };
    let bearer = Auth::Header { scheme: "Bearer".to_owned(), credentials: Credentials::File(token) };
    let with = |auth, headers: &[(&str, &str)]| Endpoint { auth, headers: pairs(headers), metadata_interval: None, ..endpoint(&receiver) };
    for (endpoint, add, of_tenant, expected) in [
        (with(basic, &[]), true, vec![], vec![("authorization", Some("Basic dTpw")), ("x-scope-orgid", Some("team-a"))]),
        (
            with(bearer, &[("X-A", "1"), ("X-B", "1")]),
            false,
            vec![("x-b", "2")],
            vec![("authorization", Some("Bearer s3cret")), ("x-scope-orgid", None), ("x-a", Some("1")), ("x-b", Some("2"))],
        ),
        (with(Auth::None, &[("X-Scope-OrgID", "fixed")]), true, vec![], vec![("x-scope-orgid", Some("fixed")), ("authorization", None)]),
        (
            with(Auth::None, &[]),
            true,
            vec![("X-Scope-OrgID", "other")],
            vec![
                ("x-scope-orgid", Some("other")),
                ("content-encoding", Some("snappy")),
                ("content-type", Some("application/x-protobuf")),
                ("user-agent", Some("Rubato/1.2.3")),
                ("retry-attempt", None),
            ],
        ),
    ] {
        let running = Running::start(vec![endpoint], Vec::new(), |settings| {
            settings.add_org_id_header = add;
            settings.user_agent = "Rubato/1.2.3".to_owned();
        });
        running.tenants.0.lock().headers = pairs(&of_tenant);
        running.show(vec![observed(&calls("a"), &[1])]).await;
        running.stop().await;
        let headers = receiver.stored(|stored| stored.requests.last().cloned().expect("a request"));
        for (name, value) in expected {
            assert_eq!(headers.get(name).map(String::as_str), value, "{name}");
        }
    }
}

#[tokio::test]
async fn exemplars_are_sent_once() {
    for (classic, native) in [(true, false), (false, true), (true, true)] {
        let receiver = Receiver::start().await;
        let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
        let series = series(Family::ServiceGraphServer, &[("client", "a")], layout(classic, native));
        let of = |bucket, id: u8, nanoseconds| Exemplar {
            bucket,
            trace_id: TraceId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, id]),
            nanoseconds,
            at: 0,
        };
        let (first, second) = (of(1, 0xab, 20_000_000), of(3, 0xcd, 2_000_000_000));
        running.show(vec![Accumulated { exemplars: vec![first], ..observed(&series, &[20]) }]).await;
        running.show(vec![Accumulated { exemplars: vec![first, second], ..observed(&series, &[20, 2000]) }]).await;
        running.show(vec![Accumulated { exemplars: vec![first, second], ..observed(&series, &[20, 2000]) }]).await;
        running.stop().await;
        let mut found: Vec<_> = receiver.stored(|stored| {
            let text = |(key, exemplar): &(String, protocol::Exemplar)| {
                let key = key.trim_start_matches("traces_service_graph_request_server_seconds").to_owned();
                (exemplar.timestamp - NOW_MS, key, receiver::key(&exemplar.labels), exemplar.value)
            };
            stored.exemplars.iter().map(text).collect()
        });
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut expected = Vec::new();
        for (at, le, id, seconds) in [(1_000, "0.032", "1ab", 0.02), (2_000, "+Inf", "1cd", 2.0)] {
            let id = format!("{{traceID=\"{id}\"}}");
            if classic {
                let key = format!("_bucket{{__metrics_gen_instance=\"host\",client=\"a\",le=\"{le}\"}}");
                expected.push((at, key, id.clone(), seconds));
            }
            // Whoever asks by native histograms looks for exemplars there, whatever else there is.
            if native {
                expected.push((at, "{__metrics_gen_instance=\"host\",client=\"a\"}".to_owned(), id, seconds));
            }
        }
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn relabelling_drops_and_renames() {
    let receiver = Receiver::start().await;
    let rules = vec![
        Rule { action: Action::LabelDrop, regex: "__metrics_gen_instance".to_owned(), ..Rule::default() },
        Rule { action: Action::Drop, source_labels: vec!["service".to_owned()], regex: "b".to_owned(), ..Rule::default() },
    ];
    let running = Running::start(vec![Endpoint { relabel: rules, ..endpoint(&receiver) }], Vec::new(), |_| {});
    running.show(vec![observed(&calls("a"), &[1]), observed(&calls("b"), &[1])]).await;
    let registry = running.stop().await;
    assert_eq!(
        receiver.stored(|stored| stored.series.keys().cloned().collect::<Vec<_>>()),
        ["traces_spanmetrics_calls_total{service=\"a\"}"]
    );
    assert_eq!(metric(&registry, "prometheus_remote_storage_samples_dropped_total", &["dropped_series"]), 2);
}

#[tokio::test]
async fn a_tenant_whose_collection_is_disabled_is_not_sent() {
    let receiver = Receiver::start().await;
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |_| {});
    running.tenants.0.lock().disable_collection = true;
    publish(&running.snapshots, vec![observed(&calls("a"), &[1])]);
    for _ in 0..10 {
        running.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    assert_eq!(running.metric("tempo_metrics_generator_registry_collections_total", &[]), 0);
    // Picked up while running, and so is another interval.
    {
        let mut settings = running.tenants.0.lock();
        settings.disable_collection = false;
        settings.collection_interval = Some(Duration::from_millis(30));
    }
    running.show(vec![observed(&calls("a"), &[1, 1])]).await;
    running.stop().await;
    assert_eq!(receiver.values(CALLS_A), [0.0, 2.0]);
}

#[tokio::test]
async fn the_end_collects_once_more() {
    let receiver = Receiver::start().await;
    let running =
        Running::start(vec![endpoint(&receiver)], Vec::new(), |settings| settings.collection_interval = Duration::from_secs(3600));
    publish(&running.snapshots, vec![observed(&calls("a"), &[1])]);
    running.clock.advance(Duration::from_secs(1));
    // The tenant must have been noticed.
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop().await;
    assert_eq!(receiver.values(CALLS_A), [0.0, 1.0]);
}

#[tokio::test]
async fn the_end_is_not_held_up_by_a_receiver_that_is_away() {
    let receiver = Receiver::start().await;
    receiver.fail(vec![Fault::Status(503, ""); 10_000]);
    let running = Running::start(vec![endpoint(&receiver)], Vec::new(), |settings| settings.flush_deadline = Duration::from_millis(50));
    running.show(vec![observed(&calls("a"), &[1])]).await;
    tokio::time::timeout(PATIENCE, running.stop()).await.expect("the deadline ends it");
    assert_eq!(receiver.values(CALLS_A), [0.0; 0]);
}

#[tokio::test]
async fn requests_hold_no_more_samples_than_they_may() {
    let receiver = Receiver::start().await;
    let mut endpoint = Endpoint { metadata_interval: None, ..endpoint(&receiver) };
    endpoint.queue.max_samples_per_send = 10;
    let running = Running::start(vec![endpoint], Vec::new(), |_| {});
    let services: Vec<String> = (0..35).map(|index| format!("s{index}")).collect();
    running.show(services.iter().map(|service| observed(&calls(service), &[1])).collect()).await;
    running.stop().await;
    assert_eq!(complaints(&receiver), [""; 0]);
    // Zeros and values.
    assert_eq!(receiver.stored(|stored| (stored.requests.len(), stored.series.len())), (8, 35));
}

#[tokio::test]
async fn both_sides_of_tls_are_verified() {
    let pem = |text: &str| Pem::Text(text.to_owned().into());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, include_str!("tls/ca.pem")).expect("writable");
    let identity = Some((pem(include_str!("tls/client.pem")), pem(include_str!("tls/client.key"))));
    let trusted = Tls { ca: Some(Pem::File(ca)), identity, min_version: Some(TlsVersion::V13), ..Tls::default() };
    let anonymous = Tls { identity: None, ..trusted.clone() };
    let distrusting = Tls { ca: None, ..trusted.clone() };
    let careless = Tls { insecure_skip_verify: true, ..distrusting.clone() };
    for (tls, works) in [(trusted, true), (anonymous, false), (distrusting, false), (careless, true)] {
        let receiver = Receiver::of_tls().await;
        let endpoint = Endpoint { tls: tls.clone(), ..endpoint(&receiver) };
        let running = Running::start(vec![endpoint], Vec::new(), |settings| {
            settings.flush_deadline = if works { PATIENCE } else { Duration::ZERO };
        });
        running.show(vec![observed(&calls("a"), &[1])]).await;
        if !works {
            let refused = || receiver.stored(|stored| !stored.refused_handshakes.is_empty());
            running.until("a handshake fails", refused).await;
        }
        running.stop().await;
        assert_eq!(receiver.values(CALLS_A), if works { vec![0.0, 1.0] } else { Vec::new() }, "{tls:?}");
    }
}

#[test]
fn the_same_as_text() {
    let labels = [("service", "a\"b\\c\nd"), ("span_name", "GET")];
    let classic = series(Family::SpanMetrics, &labels, layout(true, true));
    let exemplar = Exemplar { bucket: 1, trace_id: TraceId([0xab; 16]), nanoseconds: 20_000_000, at: 0 };
    let native = series(Family::ServiceGraphServer, &[("client", "x")], layout(false, true));
    let snapshots = Snapshots::default();
    publish(&snapshots, vec![Accumulated { exemplars: vec![exemplar], ..observed(&classic, &[20]) }, observed(&native, &[500, 250])]);
    let settings = Settings { instance: "host".to_owned(), ..Settings::default() };
    let text = |format| {
        let exposition = Exposition::new(&snapshots.latest(), &tenant(), &settings, &TenantSettings::default(), format);
        exposition.expect("a tenant").collect::<String>()
    };
    let common = r#"service="a\"b\\c\nd",span_name="GET""#;
    let (head, labels) = ("__metrics_gen_instance=\"host\"", format!("{{__metrics_gen_instance=\"host\",{common}}}"));
    let bucket = |le: &str, rest: &str| format!("traces_spanmetrics_latency_bucket{{{head},le=\"{le}\",{common}}} {rest}\n");
    let server = "traces_service_graph_request_server_seconds";
    let expected = [
        "# HELP traces_spanmetrics_calls_total Spans\n# TYPE traces_spanmetrics_calls_total counter\n".to_owned(),
        format!("traces_spanmetrics_calls_total{labels} 1\n"),
        "# HELP traces_spanmetrics_latency Duration of spans in seconds\n# TYPE traces_spanmetrics_latency histogram\n".to_owned(),
        format!("traces_spanmetrics_latency_count{labels} 1\ntraces_spanmetrics_latency_sum{labels} 0.02\n"),
        bucket("0.016", "0") + &bucket("0.032", "1") + &bucket("1", "1") + &bucket("+Inf", "1"),
        "# HELP traces_spanmetrics_size_total Encoded size of spans in bytes\n# TYPE traces_spanmetrics_size_total counter\n".to_owned(),
        format!("traces_spanmetrics_size_total{labels} 100\n"),
        format!("# HELP {server} Duration of requests as the server saw them\n# TYPE {server} histogram\n"),
        format!("{server}_bucket{{{head},client=\"x\",le=\"+Inf\"}} 2\n"),
        format!("{server}_sum{{{head},client=\"x\"}} 0.75\n{server}_count{{{head},client=\"x\"}} 2\n"),
    ];
    assert_eq!(text(Format::Prometheus), expected.concat());
    let open = expected.concat();
    let open = open.replace("HELP traces_spanmetrics_calls_total", "HELP traces_spanmetrics_calls");
    let open = open.replace("TYPE traces_spanmetrics_calls_total", "TYPE traces_spanmetrics_calls");
    let open = open.replace("HELP traces_spanmetrics_size_total", "HELP traces_spanmetrics_size");
    let open = open.replace("TYPE traces_spanmetrics_size_total", "TYPE traces_spanmetrics_size");
    let open = open.replace("le=\"1\"", "le=\"1.0\"");
    let id = "ab".repeat(16);
    let open = open.replace(&bucket("0.032", "1"), &bucket("0.032", &format!("1 # {{traceID=\"{id}\"}} 0.02")));
    assert_eq!(text(Format::OpenMetrics), open + "# EOF\n");
    let nobody = Tenant::new("nobody").expect("a tenant");
    assert!(Exposition::new(&snapshots.latest(), &nobody, &settings, &TenantSettings::default(), Format::Prometheus).is_none());
}
