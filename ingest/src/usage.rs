//! Cost attribution: whose bytes a tenant sends, by attributes that the tenant names.
//!
//! ```text
//!  body that was taken ─► per ResourceSpans: values of the dimensions, bytes ─► series of the tenant ─► GET /usage_metrics
//!                                                                               (bounded, stale ones go)
//! ```
//!
//! A span costs its own encoding and an equal share of what its `ResourceSpans` holds besides spans; what does not divide is the first span's. So
//! the bytes of all series of a tenant add up to the bytes of its requests. A series has one label per dimension: the value of a text, or
//! `__missing__`. A tenant that has as many series as it may counts everything new under `__overflow__`. A series that nothing was added to for some
//! time goes.
//!
//! Off unless configured, and then nothing here is called. A tenant without dimensions costs one look at its limits.

use std::{collections::HashMap, fmt::Write as _, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};
use storage::{
    id::Tenant,
    otlp::wire::{Valid, Value},
};

const MISSING: &str = "__missing__";
const OVERFLOW: &str = "__overflow__";

/// Labels that are not a tenant's to choose.
const RESERVED: [&str; 2] = ["tenant", "tracker"];

/// How often stale series are looked for.
const PURGE_PERIOD: Duration = Duration::from_secs(60);

/// What a tenant's bytes are attributed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostAttribution {
    /// Most series (`cost_attribution.max_cardinality`); 0 takes the distributor's.
    pub max_cardinality: u64,
    dimensions: Vec<Dimension>,
    /// Names of labels, sorted.
    labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dimension {
    attribute: String,
    in_resource: bool,
    in_span: bool,
    /// Place of its label.
    label: usize,
}

impl CostAttribution {
    /// By attributes, each with the name of its label: an empty one is that of the attribute (`cost_attribution.dimensions`). An attribute
    /// that begins with `resource.` or `span.` is looked for there, any other in both, and the span's goes first. Labels that come to the same
    /// name are one.
    pub fn new<'a>(max_cardinality: u64, dimensions: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let named: Vec<(&str, String)> = dimensions
            .into_iter()
            .map(|(attribute, label)| (attribute, sanitised(if label.is_empty() { attribute } else { label })))
            .collect();
        let mut labels: Vec<String> = named.iter().map(|(_, label)| label.clone()).collect();
        labels.sort();
        labels.dedup();
        let dimension = |(attribute, label): (&str, String)| {
            let scoped = |scope: &str| attribute.strip_prefix(scope).filter(|rest| !rest.is_empty());
            let (name, in_resource, in_span) = match (scoped("resource."), scoped("span.")) {
                (Some(name), _) => (name, true, false),
                (_, Some(name)) => (name, false, true),
                (None, None) => (attribute, true, true),
            };
            Dimension { attribute: name.to_owned(), in_resource, in_span, label: labels.binary_search(&label).unwrap_or(0) }
        };
        let dimensions = named.into_iter().map(dimension).collect();
        Self { max_cardinality, dimensions, labels }
    }

    /// Whether there is nothing to attribute to.
    pub fn is_empty(&self) -> bool {
        self.dimensions.is_empty()
    }
}

/// A label name: anything but letters, digits and underscores becomes an underscore, a leading digit too.
fn sanitised(label: &str) -> String {
    let clean = |(at, c): (usize, char)| if c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit()) { c } else { '_' };
    let name: String = label.chars().enumerate().map(clean).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

/// Settings of the tracker (`distributor.usage.cost_attribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageSettings {
    /// Most series of a tenant that has no number of its own.
    pub max_cardinality: u64,
    /// A series goes when nothing was added to it for so long.
    pub stale_duration: Duration,
}

impl Default for UsageSettings {
    fn default() -> Self {
        Self { max_cardinality: 10_000, stale_duration: Duration::from_secs(15 * 60) }
    }
}

/// Counts bytes by tenant and dimension. Clones share everything.
#[derive(Clone, Debug)]
pub struct UsageTracker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: UsageSettings,
    errors: IntCounterVec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<Tenant, Arc<Mutex<Usage>>>,
    next_purge: Duration,
}

/// What a tenant has used.
#[derive(Debug, Default)]
struct Usage {
    by: Arc<CostAttribution>,
    /// By the values of the labels, in their order.
    series: HashMap<Vec<Box<str>>, Series>,
}

#[derive(Clone, Copy, Debug)]
struct Series {
    bytes: u64,
    last: Duration,
}

impl UsageTracker {
    /// A tracker that has seen nothing.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(settings: UsageSettings, registry: &Registry) -> prometheus::Result<Self> {
        let errors = Opts::new("tempo_distributor_usage_tracker_errors_total", "Tenants whose usage could not be shown, by why.");
        let errors = IntCounterVec::new(errors, &["tenant", "reason"])?;
        registry.register(Box::new(errors.clone()))?;
        Ok(Self(Arc::new(Inner { settings, errors, state: Mutex::default() })))
    }

    /// Counts the bytes of a valid request.
    pub(crate) fn observe(&self, tenant: &Tenant, by: &Arc<CostAttribution>, body: &[u8], now: Duration) {
        if by.is_empty() {
            return;
        }
        let usage = {
            let mut state = self.0.state.lock();
            if now >= state.next_purge {
                self.purge(&mut state, now);
            }
            match state.tenants.get(tenant) {
                Some(usage) => Arc::clone(usage),
                None => Arc::clone(state.tenants.entry(tenant.clone()).or_default()),
            }
        };
        let max = if by.max_cardinality == 0 { self.0.settings.max_cardinality } else { by.max_cardinality };
        let mut usage = usage.lock();
        if usage.by != *by {
            // Other labels are other series.
            *usage = Usage { by: Arc::clone(by), series: HashMap::new() };
        }
        for_each_cost(by, body, |values, bytes| usage.add(values, bytes, usize::try_from(max).unwrap_or(usize::MAX), now));
    }

    /// Drops series that nothing was added to for long, and tenants without any.
    fn purge(&self, state: &mut State, now: Duration) {
        state.next_purge = now + PURGE_PERIOD;
        let stale = self.0.settings.stale_duration;
        state.tenants.retain(|_, usage| {
            // One that is counted for just now is not stale.
            let Some(mut usage) = usage.try_lock() else { return true };
            usage.series.retain(|_, series| now.saturating_sub(series.last) < stale);
            !usage.series.is_empty()
        });
    }

    /// All series in the text format of Prometheus, sorted.
    pub fn render(&self, now: Duration) -> String {
        let mut tenants: Vec<(Tenant, Arc<Mutex<Usage>>)> = {
            let mut state = self.0.state.lock();
            self.purge(&mut state, now);
            state.tenants.iter().map(|(tenant, usage)| (tenant.clone(), Arc::clone(usage))).collect()
        };
        tenants.sort_by(|(left, _), (right, _)| left.cmp(right));
        let mut out = String::new();
        for (tenant, usage) in tenants {
            let usage = usage.lock();
            if usage.by.labels.iter().any(|label| RESERVED.contains(&label.as_str())) {
                self.0.errors.with_label_values(&[tenant.as_str(), "invalid_labels_in_collect"]).inc();
                continue;
            }
            let mut series: Vec<_> = usage.series.iter().collect();
            series.sort_by_key(|(values, _)| *values);
            if out.is_empty() && !series.is_empty() {
                out.push_str("# HELP tempo_usage_tracker_bytes_received_total bytes total received with these labels\n");
                out.push_str("# TYPE tempo_usage_tracker_bytes_received_total counter\n");
            }
            for (values, Series { bytes, .. }) in series {
                let own = [("tenant", tenant.as_str()), ("tracker", "cost-attribution")];
                let mut labels: Vec<(&str, &str)> =
                    usage.by.labels.iter().map(String::as_str).zip(values.iter().map(AsRef::as_ref)).chain(own).collect();
                labels.sort_unstable();
                let labels: Vec<String> = labels.into_iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
                // Writing to a text does not fail.
                _ = writeln!(out, "tempo_usage_tracker_bytes_received_total{{{}}} {bytes}", labels.join(","));
            }
        }
        out
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Usage {
    fn add(&mut self, values: &[&str], bytes: u64, max: usize, now: Duration) {
        let key: Vec<Box<str>> = values.iter().map(|value| Box::from(*value)).collect();
        let is_new = !self.series.contains_key(&key);
        // The one for what is too much comes on top.
        let key = if is_new && self.series.len() >= max { vec![Box::from(OVERFLOW); values.len()] } else { key };
        let series = self.series.entry(key).or_insert(Series { bytes: 0, last: now });
        series.bytes = series.bytes.saturating_add(bytes);
        series.last = now;
    }
}

/// Calls `count` with the values of the labels and the bytes of each run of spans that have the same values.
fn for_each_cost(by: &CostAttribution, body: &[u8], mut count: impl FnMut(&[&str], u64)) {
    let looks_at_spans = by.dimensions.iter().any(|dimension| dimension.in_span);
    // ExportTraceServiceRequest: resource_spans = 1; ResourceSpans: resource = 1, scope_spans = 2; ScopeSpans: spans = 2.
    for resource_spans in messages(body, 1) {
        let total = encoded_field(resource_spans.len());
        let spans = || messages(resource_spans, 2).flat_map(|scope_spans| messages(scope_spans, 2));
        let (number, in_spans) = spans().fold((0u64, 0), |(number, bytes), span| (number + 1, bytes + encoded_field(span.len())));
        if number == 0 {
            continue;
        }
        let mut of_resource = vec![MISSING; by.labels.len()];
        for resource in messages(resource_spans, 1) {
            // Resource: attributes = 1.
            look_up(by, resource, 1, |dimension| dimension.in_resource, &mut of_resource);
        }
        if !looks_at_spans {
            count(&of_resource, total);
            continue;
        }
        let shared = total.saturating_sub(in_spans);
        let (share, rest) = (shared / number, shared % number);
        let mut run: Option<(Vec<&str>, u64)> = None;
        for (place, span) in spans().enumerate() {
            let bytes = encoded_field(span.len()) + share + if place == 0 { rest } else { 0 };
            let mut values = of_resource.clone();
            // Span: attributes = 9.
            look_up(by, span, 9, |dimension| dimension.in_span, &mut values);
            match &mut run {
                Some((same, sum)) if *same == values => *sum += bytes,
                _ => {
                    if let Some((values, bytes)) = run.replace((values, bytes)) {
                        count(&values, bytes);
                    }
                }
            }
        }
        if let Some((values, bytes)) = run {
            count(&values, bytes);
        }
    }
}

/// Fills in the values of those dimensions that `message` has as texts.
fn look_up<'a>(by: &CostAttribution, message: &'a [u8], field: u32, here: impl Fn(&Dimension) -> bool, values: &mut [&'a str]) {
    for attribute in messages(message, field) {
        // KeyValue: key = 1, value = 2; AnyValue: string_value = 1.
        let Some(key) = messages(attribute, 1).last() else { continue };
        for dimension in by.dimensions.iter().filter(|dimension| here(dimension) && dimension.attribute.as_bytes() == key) {
            let text = messages(attribute, 2).last().and_then(|value| messages(value, 1).last());
            if let Some(text) = text.and_then(|text| std::str::from_utf8(text).ok()) {
                values[dimension.label] = text;
            }
        }
    }
}

/// The contents of the length-delimited fields of a number, up to where the message makes no sense.
fn messages(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    Valid::new(message).filter(move |field| field.number == number).filter_map(|field| match field.value {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    })
}

/// Bytes of a field of `length` bytes, with its tag, which is one byte here, and its length.
fn encoded_field(length: usize) -> u64 {
    let of_length = (64 - (length as u64 | 1).leading_zeros()).div_ceil(7);
    1 + u64::from(of_length) + length as u64
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn text(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) });
        KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
    }

    fn span(attributes: Vec<KeyValue>) -> Span {
        Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "a span".to_owned(), attributes, ..Span::default() }
    }

    fn resource(attributes: Vec<KeyValue>, spans: Vec<Span>) -> ResourceSpans {
        let scope = InstrumentationScope { name: "library".to_owned(), ..InstrumentationScope::default() };
        ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    }

    fn body(resource_spans: Vec<ResourceSpans>) -> Vec<u8> {
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }

    fn tracker(max_cardinality: u64) -> UsageTracker {
        let settings = UsageSettings { max_cardinality, stale_duration: SECOND * 900 };
        UsageTracker::new(settings, &Registry::new()).expect("metrics are new")
    }

    fn tenant() -> Tenant {
        Tenant::new("a").expect("a tenant")
    }

    /// Series without what they have in common.
    fn series(tracker: &UsageTracker, now: Duration) -> Vec<String> {
        let shown = tracker.render(now);
        let lines = shown.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.replace("tempo_usage_tracker_bytes_received_total", "")).collect()
    }

    #[test]
    fn bytes_are_attributed_by_text_attributes() {
        let by = Arc::new(CostAttribution::new(0, [("service.name", ""), ("resource.team", "owner"), ("span.2nd", "")]));
        let tracker = tracker(100);
        let number = KeyValue {
            key: "team".to_owned(),
            value: Some(AnyValue { value: Some(any_value::Value::IntValue(5)) }),
            ..KeyValue::default()
        };
        let spans = vec![
            resource(vec![text("service.name", "cart"), number], vec![span(vec![text("2nd", "x")]), span(vec![text("team", "of a span")])]),
            resource(vec![text("service.name", "pay"), text("team", "money")], vec![span(vec![text("service.name", "inner \"quoted\"")])]),
        ];
        tracker.observe(&tenant(), &by, &body(spans), SECOND);
        let shown = tracker.render(SECOND);
        assert!(shown.starts_with("# HELP tempo_usage_tracker_bytes_received_total "), "{shown}");
        let labels: Vec<_> =
            series(&tracker, SECOND).into_iter().map(|line| line.split_once("} ").expect("a value").0.to_owned()).collect();
        let common = "tenant=\"a\",tracker=\"cost-attribution\"";
        assert_eq!(
            labels,
            [
                format!("{{owner=\"__missing__\",service_name=\"cart\",span_2nd=\"__missing__\",{common}"),
                format!("{{owner=\"__missing__\",service_name=\"cart\",span_2nd=\"x\",{common}"),
                format!("{{owner=\"money\",service_name=\"inner \\\"quoted\\\"\",span_2nd=\"__missing__\",{common}"),
            ]
        );
    }

    #[test]
    fn a_tenant_has_no_more_series_than_it_may_and_idle_ones_go() {
        let by = |max, attribute| Arc::new(CostAttribution::new(max, [(attribute, "service")]));
        let tracker = tracker(2);
        let push = |by: &Arc<CostAttribution>, name: &str, now| {
            tracker.observe(&tenant(), by, &body(vec![resource(vec![text("service.name", name)], vec![span(Vec::new())])]), now);
        };
        let names = |now| -> Vec<String> {
            let name = |line: String| line.split('"').nth(1).expect("a label").to_owned();
            series(&tracker, now).into_iter().map(name).collect()
        };
        let two = by(0, "service.name");
        for (name, second) in [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("a", 600)] {
            push(&two, name, SECOND * second);
        }
        assert_eq!(names(SECOND * 600), ["__overflow__", "a", "b"]);
        assert_eq!(names(SECOND * 901), ["a"], "15 minutes after the last push of the others");
        push(&two, "c", SECOND * 902);
        assert_eq!(names(SECOND * 902), ["a", "c"], "there is room again");
        let three = by(3, "resource.service.name");
        for name in ["x", "y", "z", "zz"] {
            push(&three, name, SECOND * 903);
        }
        assert_eq!(names(SECOND * 903), ["__overflow__", "x", "y", "z"], "a limit of the tenant's own, and other dimensions");
        assert!(names(SECOND * 9_000).is_empty());
        assert!(tracker.0.state.lock().tenants.is_empty());
        assert_eq!(tracker.render(SECOND * 9_000), "");
    }

    #[test]
    fn labels_that_are_not_for_tenants_are_an_error() {
        let by = Arc::new(CostAttribution::new(0, [("service.name", "tenant")]));
        let tracker = tracker(2);
        tracker.observe(&tenant(), &by, &body(vec![resource(Vec::new(), vec![span(Vec::new())])]), SECOND);
        assert_eq!(tracker.render(SECOND), "");
        assert_eq!(tracker.0.errors.with_label_values(&["a", "invalid_labels_in_collect"]).get(), 1);
        assert_eq!(sanitised("9.a-b"), "__a_b");
        assert_eq!(sanitised(""), "_");
        assert_eq!(CostAttribution::new(0, [("a.b", ""), ("a-b", "")]).labels, ["a_b"]);
    }

    proptest! {
        #[test]
        fn bytes_add_up_to_those_of_the_request(
            shape in prop::collection::vec((0usize..300, prop::collection::vec((0usize..200, 0u8..3), 1..6)), 1..5),
            scoped in 0usize..3,
        ) {
            let attribute = ["k", "span.k", "resource.k"][scoped];
            let by = Arc::new(CostAttribution::new(0, [(attribute, "")]));
            let spans = shape.iter().map(|(padding, spans)| {
                let spans = spans.iter().map(|(padding, value)| {
                    let padding = text("padding", &"x".repeat(*padding));
                    span(if *value == 0 { vec![padding] } else { vec![padding, text("k", &value.to_string())] })
                });
                resource(vec![text("padding", &"y".repeat(*padding)), text("k", "r")], spans.collect())
            });
            let body = body(spans.collect());
            let mut sum = 0;
            for_each_cost(&by, &body, |_, bytes| sum += bytes);
            prop_assert_eq!(sum, body.len() as u64);
        }

        #[test]
        fn bytes_that_are_no_request_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let by = CostAttribution::new(0, [("k", "")]);
            for_each_cost(&by, &bytes, |_, _| {});
        }
    }
}
