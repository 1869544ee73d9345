//! The registry's view: what a series of the generator looks like to Prometheus.
//!
//! ```text
//!  Accumulated ──metrics──► calls_total ─┐
//!  (one series)        ├──► latency     ─┼─ emit ──► TimeSeries: labels with __name__ and le, one sample, exemplars
//!                      └──► size_total  ─┘
//! ```
//!
//! A metric of a series is one or more time series: a classic histogram is one for each bucket and two more, a native one is a single one.
//! Values are taken as they are; nothing here counts.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::{
    protocol::{Batch, BucketSpan, Exemplar, Family, Histogram, Label, MetricType, Sample, TimeSeries},
    settings::{Settings, TenantSettings},
};
use crate::generator::{self, Accumulated, Buckets, Weight, histogram::ZERO_THRESHOLD};
use storage::id::Tenant;

/// The value that says that a series has ended: a NaN with a payload, as Prometheus defines it.
pub(crate) const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// The metrics of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Calls,
    Latency,
    Size,
    TargetInfo,
    HostInfo,
    Requests,
    FailedRequests,
    ClientSeconds,
    ServerSeconds,
    MessagingSeconds,
}

impl Metric {
    /// All, in the order in which they are exposed.
    pub(crate) const ALL: [Self; 10] = [
        Self::Calls,
        Self::Latency,
        Self::Size,
        Self::TargetInfo,
        Self::HostInfo,
        Self::Requests,
        Self::FailedRequests,
        Self::ClientSeconds,
        Self::ServerSeconds,
        Self::MessagingSeconds,
    ];

    /// The metrics of a series.
    pub(crate) fn of(accumulated: &Accumulated) -> impl Iterator<Item = Self> + use<> {
        use generator::Family as F;
        let parts = accumulated.series.layout().parts;
        let metrics = match accumulated.series.family() {
            F::SpanMetrics => {
                [parts.count.then_some(Self::Calls), parts.latency.then_some(Self::Latency), parts.size.then_some(Self::Size)]
            }
            F::TargetInfo => [Some(Self::TargetInfo), None, None],
            F::HostInfo => [Some(Self::HostInfo), None, None],
            F::ServiceGraphRequests => [Some(Self::Requests), None, None],
            F::ServiceGraphFailed => [Some(Self::FailedRequests), None, None],
            F::ServiceGraphClient => [Some(Self::ClientSeconds), None, None],
            F::ServiceGraphServer => [Some(Self::ServerSeconds), None, None],
            F::ServiceGraphMessaging => [Some(Self::MessagingSeconds), None, None],
            F::ServiceGraphUnpaired => [None; 3],
        };
        metrics.into_iter().flatten()
    }

    /// Name, type, help and unit; the name of hosts is the tenant's.
    const fn texts(self) -> (&'static str, MetricType, &'static str, &'static str) {
        use MetricType::{Counter, Gauge, Histogram};
        match self {
            Self::Calls => ("traces_spanmetrics_calls_total", Counter, "Spans", ""),
            Self::Latency => ("traces_spanmetrics_latency", Histogram, "Duration of spans in seconds", ""),
            Self::Size => ("traces_spanmetrics_size_total", Counter, "Encoded size of spans in bytes", ""),
            Self::TargetInfo => ("traces_target_info", Gauge, "Attributes of the resources that sent spans", ""),
            Self::HostInfo => ("traces_host_info", Gauge, "Hosts that sent spans", ""),
            Self::Requests => ("traces_service_graph_request_total", Counter, "Requests between two services", ""),
            Self::FailedRequests => ("traces_service_graph_request_failed_total", Counter, "Failed requests between two services", ""),
            Self::ClientSeconds => {
                ("traces_service_graph_request_client_seconds", Histogram, "Duration of requests as the client saw them", "seconds")
            }
            Self::ServerSeconds => {
                ("traces_service_graph_request_server_seconds", Histogram, "Duration of requests as the server saw them", "seconds")
            }
            Self::MessagingSeconds => (
                "traces_service_graph_request_messaging_system_seconds",
                Histogram,
                "Time between the sending and the receiving of a message",
                "seconds",
            ),
        }
    }

    fn kind(self) -> MetricType {
        self.texts().1
    }
}

/// How many samples a series has in a collection.
pub(crate) fn cost(accumulated: &Accumulated) -> usize {
    let layout = accumulated.series.layout();
    let histogram = layout.classic.as_ref().map_or(0, |bounds| bounds.len() + 3) + usize::from(layout.native.is_some());
    Metric::of(accumulated).map(|metric| if metric.kind() == MetricType::Histogram { histogram } else { 1 }).sum()
}

/// What is shown of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// The zero that it began with, if it counts.
    Zero,
    /// Its value.
    Value,
    /// That it has ended.
    End,
}

static NAME: LazyLock<Bytes> = LazyLock::new(|| Bytes::from_static(b"__name__"));
static LE: LazyLock<Bytes> = LazyLock::new(|| Bytes::from_static(b"le"));

/// How the series of one tenant look.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Labels that every series has, by name.
    common: Vec<Label>,
    families: Vec<Arc<Family>>,
    trace_id_label: Bytes,
    native_max_buckets: usize,
}

impl View {
    pub(crate) fn new(settings: &Settings, tenant: &Tenant, of_tenant: &TenantSettings) -> Self {
        let mut common = settings.external_labels.clone();
        common.entry("__metrics_gen_instance".to_owned()).or_insert_with(|| settings.instance.clone());
        if let Some(name) = &settings.tenant_label {
            common.insert(name.clone(), tenant.as_str().to_owned());
        }
        let label = |(name, value): (String, String)| Label { name: name.into(), value: value.into() };
        let family = |metric: Metric| {
            let (name, kind, help, unit) = metric.texts();
            let name =
                if metric == Metric::HostInfo { of_tenant.host_info_metric.clone().into() } else { Bytes::from_static(name.as_bytes()) };
            Arc::new(Family { name, kind, help: Bytes::from_static(help.as_bytes()), unit: Bytes::from_static(unit.as_bytes()) })
        };
        Self {
            common: common.into_iter().map(label).filter(|label| !label.value.is_empty()).collect(),
            families: Metric::ALL.into_iter().map(family).collect(),
            trace_id_label: of_tenant.trace_id_label.clone().into(),
            native_max_buckets: if of_tenant.native_histogram_max_buckets == 0 {
                usize::MAX
            } else {
                of_tenant.native_histogram_max_buckets
            },
        }
    }

    pub(crate) fn family(&self, metric: Metric) -> &Arc<Family> {
        &self.families[metric as usize]
    }

    /// Adds all metrics of a series at a time in milliseconds. Exemplars that `before` has, too, are left out.
    pub(crate) fn emit_all(&self, series: &Accumulated, before: Option<&Accumulated>, show: Show, at: i64, batch: &mut Batch) {
        for metric in Metric::of(series) {
            self.emit(metric, series, before, show, at, batch);
        }
    }

    /// Adds one metric of a series.
    pub(crate) fn emit(&self, metric: Metric, series: &Accumulated, before: Option<&Accumulated>, show: Show, at: i64, batch: &mut Batch) {
        let family = self.family(metric);
        let mut emit = Emit { view: self, family, labels: self.labels(series), show, at, batch };
        match metric {
            Metric::Calls | Metric::Requests | Metric::FailedRequests => emit.sample("", series.agg.count.as_f64(), true),
            #[expect(clippy::cast_precision_loss, reason = "samples are floats")]
            Metric::Size => emit.sample("", series.agg.size as f64, true),
            Metric::TargetInfo | Metric::HostInfo => emit.sample("", 1.0, false),
            Metric::Latency | Metric::ClientSeconds | Metric::ServerSeconds | Metric::MessagingSeconds => {
                let layout = series.series.layout();
                if let Some(bounds) = &layout.classic {
                    emit.classic(series, before, bounds);
                }
                if let Some(schema) = layout.native {
                    emit.native(series, before, i32::from(schema));
                }
            }
        }
    }

    /// The labels of a series and those of all, sorted, without name.
    fn labels(&self, series: &Accumulated) -> Vec<Label> {
        let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let is_common = |name: &str| self.common.iter().any(|label| label.name == name);
        let own = series.series.labels().iter().filter(|(name, _)| !is_common(name) && !matches!(*name, "__name__" | "le"));
        let mut labels: Vec<Label> = own.map(|(name, value)| Label { name: copy(name), value: copy(value) }).collect();
        labels.extend(self.common.iter().cloned());
        labels.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        labels
    }
}

/// The time series of one metric of one series.
struct Emit<'a> {
    view: &'a View,
    family: &'a Arc<Family>,
    labels: Vec<Label>,
    show: Show,
    at: i64,
    batch: &'a mut Batch,
}

impl Emit<'_> {
    /// The labels with the name, and `le` where there is one.
    fn named(&self, suffix: &str, le: Option<Bytes>) -> Vec<Label> {
        let mut name = self.family.name.clone();
        if !suffix.is_empty() {
            name = [&name, suffix.as_bytes()].concat().into();
        }
        let mut labels = Vec::with_capacity(self.labels.len() + 2);
        labels.extend_from_slice(&self.labels);
        let mut put = |label: Label| {
            let index = labels.partition_point(|there| there.name < label.name);
            labels.insert(index, label);
        };
        put(Label { name: NAME.clone(), value: name });
        if let Some(value) = le {
            put(Label { name: LE.clone(), value });
        }
        labels
    }

    fn push(&mut self, labels: Vec<Label>, samples: Vec<Sample>, histograms: Vec<Histogram>, exemplars: Vec<Exemplar>) {
        self.batch.series.push(TimeSeries { labels, samples, exemplars, histograms });
        self.batch.families.push(Arc::clone(self.family));
    }

    /// The sample of a value; none for the zero of what doesn't count.
    fn value(&self, value: f64, counts: bool) -> Option<Sample> {
        let value = match self.show {
            Show::Zero if !counts => return None,
            Show::Zero => 0.0,
            Show::Value => value,
            Show::End => STALE,
        };
        Some(Sample { value, timestamp: self.at, ..Sample::default() })
    }

    fn sample(&mut self, suffix: &str, value: f64, counts: bool) {
        if let Some(sample) = self.value(value, counts) {
            self.push(self.named(suffix, None), vec![sample], Vec::new(), Vec::new());
        }
    }

    fn classic(&mut self, series: &Accumulated, before: Option<&Accumulated>, bounds: &[f64]) {
        let agg = &series.agg;
        self.sample("_count", agg.count.as_f64(), true);
        self.sample("_sum", agg.seconds(), false);
        let labels = self.named("_bucket", Some(Bytes::new()));
        let le = labels.iter().position(|label| label.name == *LE).unwrap_or_default();
        let mut buckets = agg.classic.iter().peekable();
        let mut cumulative = Weight::ZERO;
        for index in 0..=bounds.len() {
            let bucket = i32::try_from(index).unwrap_or(i32::MAX);
            while let Some((_, weight)) = buckets.next_if(|(there, _)| *there <= bucket) {
                cumulative.0 = cumulative.0.wrapping_add(weight.0);
            }
            let (bound, value) = match bounds.get(index) {
                Some(bound) => (bound.to_string(), cumulative),
                None => ("+Inf".to_owned(), agg.count),
            };
            let mut labels = labels.clone();
            labels[le].value = bound.into();
            let exemplars = self.exemplars(series, before, |there| there == bucket);
            let samples = self.value(value.as_f64(), true).into_iter().collect();
            self.push(labels, samples, Vec::new(), exemplars);
        }
    }

    fn native(&mut self, series: &Accumulated, before: Option<&Accumulated>, schema: i32) {
        let now = native(series, schema, self.view.native_max_buckets, self.at);
        // A zero has the schema of what follows, so that the two are the same histogram.
        let empty = Histogram {
            count_int: Some(0),
            zero_count_int: Some(0),
            schema: now.schema,
            zero_threshold: now.zero_threshold,
            timestamp: self.at,
            ..Histogram::default()
        };
        let histogram = match self.show {
            Show::Zero => empty,
            Show::Value => now,
            Show::End => Histogram { sum: STALE, ..empty },
        };
        let exemplars = self.exemplars(series, before, |_| true);
        self.push(self.named("", None), Vec::new(), vec![histogram], exemplars);
    }

    /// The exemplars of some buckets that were not there before.
    fn exemplars(&self, series: &Accumulated, before: Option<&Accumulated>, wanted: impl Fn(i32) -> bool) -> Vec<Exemplar> {
        if self.show != Show::Value {
            return Vec::new();
        }
        let is_new = |exemplar: &&generator::Exemplar| !before.is_some_and(|before| before.exemplars.contains(*exemplar));
        let exemplars = series.exemplars.iter().filter(|exemplar| wanted(exemplar.bucket)).filter(is_new);
        #[expect(clippy::cast_precision_loss, reason = "values of exemplars are floats")]
        let exemplar = |exemplar: &generator::Exemplar| Exemplar {
            labels: vec![Label { name: self.view.trace_id_label.clone(), value: exemplar.trace_id.to_short_hex().into() }],
            value: exemplar.nanoseconds as f64 / 1e9,
            timestamp: self.at,
        };
        exemplars.map(exemplar).collect()
    }
}

/// A native histogram. Counts are whole: where spans stand for fractions of spans, each bucket is rounded. One that has more buckets than are
/// allowed is shown with buckets of twice the width, again and again.
fn native(series: &Accumulated, mut schema: i32, max_buckets: usize, timestamp: i64) -> Histogram {
    let whole = |weight: Weight| weight.as_f64().round().max(0.0);
    let mut zero_count = 0.0;
    let mut buckets: Vec<(i32, f64)> = Vec::new();
    for (bucket, weight) in series.agg.native.iter() {
        if bucket == Buckets::ZERO { zero_count += whole(weight) } else { buckets.push((bucket, whole(weight))) }
    }
    while buckets.len() > max_buckets.max(1) && schema > -4 {
        schema -= 1;
        let mut wider: Vec<(i32, f64)> = Vec::with_capacity(buckets.len());
        for (bucket, count) in buckets {
            // Buckets 2i - 1 and 2i are bucket i of the schema below.
            let bucket = bucket.wrapping_add(1) >> 1;
            match wider.last_mut() {
                Some((last, sum)) if *last == bucket => *sum += count,
                _ => wider.push((bucket, count)),
            }
        }
        buckets = wider;
    }
    let (mut spans, mut deltas): (Vec<BucketSpan>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut next, mut previous) = (0, 0);
    #[expect(clippy::cast_possible_truncation, reason = "counts are not negative and far below 2^63")]
    for &(bucket, count) in &buckets {
        match spans.last_mut() {
            Some(span) if bucket == next => span.length += 1,
            _ => spans.push(BucketSpan { offset: bucket - next, length: 1 }),
        }
        next = bucket + 1;
        deltas.push(count as i64 - previous);
        previous = count as i64;
    }
    let count = buckets.iter().map(|(_, count)| count).sum::<f64>() + zero_count;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are not negative and far below 2^63")]
    Histogram {
        count_int: Some(count as u64),
        sum: series.agg.seconds(),
        schema,
        zero_threshold: ZERO_THRESHOLD,
        zero_count_int: Some(zero_count as u64),
        positive_spans: spans,
        positive_deltas: deltas,
        reset_hint: 0,
        timestamp,
        start_timestamp: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use storage::id::Tenant;

    use super::*;
    use crate::generator::{Agg, Definition, Labels, Layout, Parts, Series, histogram::Bucketer};

    fn observed(layout: &Layout, nanoseconds: &[u64], weight: Weight) -> Accumulated {
        let mut agg = Agg::default();
        let bucketer = Bucketer::of(layout.clone());
        nanoseconds.iter().for_each(|duration| _ = bucketer.observe(&mut agg, *duration, weight));
        let definition = Definition {
            tenant: Tenant::single(),
            family: generator::Family::ServiceGraphServer,
            labels: Labels::default(),
            layout: Arc::new(layout.clone()),
        };
        Accumulated { series: Series::new(definition), agg, first: 0, last: 0, exemplars: Vec::new() }
    }

    /// The counts by bucket, as a receiver reads spans and deltas.
    fn decoded(histogram: &Histogram) -> BTreeMap<i32, i64> {
        let (mut counts, mut index, mut count) = (BTreeMap::new(), 0, 0);
        let mut deltas = histogram.positive_deltas.iter();
        for span in &histogram.positive_spans {
            index += span.offset;
            for _ in 0..span.length {
                count += deltas.next().expect("a delta for each bucket");
                counts.insert(index, count);
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        counts
    }

    proptest! {
        #[test]
        fn native_histograms_hold_every_duration(
            durations in prop::collection::vec(0..100_000_000_000_u64, 0..60),
            schema in -4..=8_i8,
            max_buckets in 1..40_usize,
        ) {
            let layout = Layout { parts: Parts::ALL, classic: None, native: Some(schema) };
            let histogram = native(&observed(&layout, &durations, Weight::ONE), i32::from(schema), max_buckets, 0);
            let counts = decoded(&histogram);
            prop_assert!(counts.len() <= max_buckets || histogram.schema == -4);
            // Bucket i holds what is above base^(i - 1) and at most base^i.
            let mut expected: BTreeMap<i32, i64> = BTreeMap::new();
            let base = 2_f64.powf(2_f64.powi(-histogram.schema));
            for seconds in durations.iter().map(|duration| *duration as f64 / 1e9).filter(|seconds| *seconds > 0.0) {
                let mut bucket = (seconds.ln() / base.ln()).ceil() as i32;
                // The logarithm is not exact.
                let bound = |bucket: i32| 2_f64.powf(f64::from(bucket) * 2_f64.powi(-histogram.schema));
                bucket += i32::from(seconds > bound(bucket)) - i32::from(seconds <= bound(bucket - 1));
                *expected.entry(bucket).or_default() += 1;
            }
            prop_assert_eq!(&counts, &expected);
            prop_assert_eq!(histogram.count_int, Some(durations.len() as u64));
            prop_assert_eq!(histogram.zero_count_int, Some(durations.iter().filter(|duration| **duration == 0).count() as u64));
        }

        #[test]
        fn classic_histograms_are_cumulative(durations in prop::collection::vec(0..4_000_000_000_u64, 0..60), weight in 1..5_i32) {
            let bounds = [0.002, 0.5, 1.0, 2.048];
            let layout = Layout { parts: Parts::ALL, classic: Some(bounds.into()), native: None };
            let series = observed(&layout, &durations, Weight::of_ratio(1.0 / f64::from(weight)));
            let view = View::new(&Settings::default(), &Tenant::single(), &TenantSettings::default());
            let mut batch = Batch::default();
            view.emit_all(&series, None, Show::Value, 7, &mut batch);
            let value = |suffix: &str, le: Option<&str>| {
                let is = |series: &&TimeSeries| {
                    let has = |name: &str, value: &str| series.labels.iter().any(|label| label.name == name && label.value == value);
                    has("__name__", &format!("traces_service_graph_request_server_seconds{suffix}")) && le.is_none_or(|le| has("le", le))
                };
                batch.series.iter().find(is).expect("a series").samples[0].value
            };
            for bound in bounds {
                let below = durations.iter().filter(|duration| **duration as f64 / 1e9 <= bound).count();
                prop_assert_eq!(value("_bucket", Some(&bound.to_string())), below as f64 * f64::from(weight));
            }
            let all = durations.len() as f64 * f64::from(weight);
            prop_assert_eq!((value("_bucket", Some("+Inf")), value("_count", None)), (all, all));
            let sum: u64 = durations.iter().sum();
            prop_assert!((value("_sum", None) - sum as f64 / 1e9 * f64::from(weight)).abs() < 1e-6);
            prop_assert_eq!(batch.series.len(), cost(&series));
        }
    }
}
