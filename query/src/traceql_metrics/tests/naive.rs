//! Metrics by their definition: every span on its own, every value kept, every function read off the list of values.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::common::v1::any_value;
use storage::block::Trace;

use super::{MetricsRequest, Table, typed};
use crate::traceql::{BinaryOp, Field, Intrinsic, MetricsFunction, Scope, SecondStage, TraceView, Value, reference};

/// Values of a series by interval.
type Lists = BTreeMap<usize, Vec<f64>>;
type Labels = Vec<(String, any_value::Value)>;

fn shown(value: &Value) -> any_value::Value {
    match value {
        Value::Array(_) => any_value::Value::StringValue("nil".to_owned()),
        value => value.to_any_value().value.expect("a value"),
    }
}

fn text(value: &any_value::Value) -> String {
    match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        any_value::Value::BoolValue(value) => value.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The interval of a time, found by trying all.
fn interval(request: &MetricsRequest, time: u64) -> Option<usize> {
    let (low, high) = request.window().bounds();
    let intervals = request.window().intervals();
    let step = (high - low) / intervals as u64;
    (0..intervals).find(|i| time > low + *i as u64 * step && time <= low + (*i as u64 + 1) * step)
}

pub(super) fn evaluate(request: &MetricsRequest, traces: &[Trace]) -> Table {
    let metrics = request.query().metrics().expect("a metrics query");
    let function = &metrics.function;
    let mut groups: BTreeMap<String, (Labels, Lists)> = BTreeMap::new();
    let mut pairs: BTreeMap<String, (Labels, Lists)> = BTreeMap::new();
    let asked_for = conditions(request);
    for trace in traces {
        let view = TraceView::new(trace);
        for span in reference::matched(request.query(), &view).expect("evaluates") {
            let Some(interval) = interval(request, view.start_of(span)) else { continue };
            if let MetricsFunction::Compare { selection, start_ns, end_ns, .. } = function {
                let start = view.start_of(span) as i64;
                let inside = (*start_ns, *end_ns) == (0, 0) || start > *start_ns && start <= *end_ns;
                let side = if inside && view.satisfies(span, selection).expect("evaluates") { "selection" } else { "baseline" };
                for (key, value) in compared(request, &view, span) {
                    // What the query itself asks for is counted twice.
                    let times = if asked_for.contains(&key) { 2 } else { 1 };
                    for (meta, value) in [(side.to_owned(), value), (format!("{side}_total"), any_value::Value::StringValue("nil".into()))]
                    {
                        let labels = vec![("__meta_type".to_owned(), any_value::Value::StringValue(meta)), (key.clone(), value)];
                        let entry = pairs.entry(format!("{labels:?}")).or_insert_with(|| (labels, Lists::new()));
                        entry.1.entry(interval).or_default().extend(std::iter::repeat_n(1.0, times));
                    }
                }
                continue;
            }
            let value = match function.argument() {
                None => 1.0,
                Some(argument) => match view.value_of(span, argument) {
                    Value::Int(number) if counts(function, Some(number)) => number as f64,
                    Value::Duration(number) if counts(function, Some(number)) => number as f64,
                    Value::Float(number) if counts(function, None) => number,
                    _ => continue,
                },
            };
            let mut labels: Labels = Vec::new();
            for field in &metrics.by {
                let value = view.value_of(span, field);
                if value != Value::Nil {
                    labels.push((field.to_string(), shown(&value)));
                }
            }
            if let (true, Some(field)) = (labels.is_empty(), metrics.by.first()) {
                labels.push((field.to_string(), any_value::Value::StringValue("nil".to_owned())));
            }
            let entry = groups.entry(format!("{labels:?}")).or_insert_with(|| (labels, Lists::new()));
            entry.1.entry(interval).or_default().push(value);
        }
    }
    let intervals = request.window().intervals();
    let mut series: Vec<(Labels, Vec<Option<f64>>)> = Vec::new();
    if let MetricsFunction::Compare { top_n, .. } = function {
        return top(pairs, usize::try_from(*top_n).expect("small"), request);
    }
    if groups.is_empty() && metrics.by.is_empty() && matches!(function, MetricsFunction::Rate | MetricsFunction::CountOverTime) {
        groups.insert(String::new(), (Vec::new(), Lists::new()));
    }
    for (mut labels, lists) in groups.into_values() {
        let list = |interval: usize| lists.get(&interval).cloned().unwrap_or_default();
        match function {
            MetricsFunction::HistogramOverTime(field) => {
                let buckets: BTreeSet<u64> = lists.values().flatten().map(|value| bucket(*value)).collect();
                for bound in buckets {
                    let mut labels = labels.clone();
                    labels.push(("__bucket".to_owned(), any_value::Value::DoubleValue(bound as f64 / bucket_unit(field))));
                    let count = |interval| list(interval).iter().filter(|value| bucket(**value) == bound).count() as f64;
                    series.push((labels, (0..intervals).map(|interval| Some(count(interval))).collect()));
                }
            }
            MetricsFunction::QuantileOverTime(field, quantiles) => {
                for share in quantiles {
                    let mut labels = labels.clone();
                    labels.push(("p".to_owned(), any_value::Value::DoubleValue(*share)));
                    let sample = |interval| Some(quantile(&list(interval), *share) / bucket_unit(field));
                    series.push((labels, (0..intervals).map(sample).collect()));
                }
            }
            _ => {
                if metrics.by.is_empty() {
                    labels.push(("__name__".to_owned(), any_value::Value::StringValue(function.as_str().to_owned())));
                }
                let samples = (0..intervals).map(|interval| sample(request, function, &list(interval)));
                series.push((labels, samples.collect()));
            }
        }
    }
    for stage in &metrics.second {
        series.retain(|(_, samples)| samples.iter().any(Option::is_some));
        apply(&stage.item, &mut series);
    }
    to_table(request, series)
}

/// Whether a function takes in a value; integers and durations are given.
fn counts(function: &MetricsFunction, integer: Option<i64>) -> bool {
    match function {
        MetricsFunction::HistogramOverTime(_) | MetricsFunction::QuantileOverTime(..) => integer.is_some_and(|value| value >= 2),
        _ => true,
    }
}

fn sample(request: &MetricsRequest, function: &MetricsFunction, values: &[f64]) -> Option<f64> {
    let unit = match function.argument() {
        Some(Field::Intrinsic(Intrinsic::Duration)) => 1e9,
        _ => 1.0,
    };
    let count = values.len() as f64;
    let some = |value: f64| (!values.is_empty()).then_some(value / unit);
    match function {
        MetricsFunction::Rate => {
            let (low, high) = request.window().bounds();
            Some(count / ((high - low) as f64 / request.window().intervals() as f64 / 1e9))
        }
        MetricsFunction::CountOverTime => Some(count),
        MetricsFunction::MinOverTime(_) => some(values.iter().copied().fold(f64::INFINITY, f64::min)),
        MetricsFunction::MaxOverTime(_) => some(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        MetricsFunction::SumOverTime(_) => some(values.iter().sum()),
        MetricsFunction::AvgOverTime(_) => some(values.iter().sum::<f64>() / count),
        _ => None,
    }
}

fn bucket_unit(field: &Field) -> f64 {
    let is_duration = matches!(field, Field::Intrinsic(Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart));
    if is_duration { 1e9 } else { 1.0 }
}

fn bucket(value: f64) -> u64 {
    (1..64).map(|exponent| 1u64 << exponent).find(|bound| *bound as f64 >= value).expect("a bound")
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut buckets: Vec<u64> = values.iter().map(|value| bucket(*value)).collect();
    buckets.sort_unstable();
    if buckets.is_empty() {
        return 0.0;
    }
    let needed = ((share * buckets.len() as f64).ceil() as usize).max(1);
    // The bucket of the needed value, in sorted order.
    let bound = buckets[needed - 1];
    let below: Vec<u64> = buckets.iter().copied().filter(|other| *other < bound).collect();
    let here = buckets.iter().filter(|other| **other == bound).count();
    if below.len() + here == needed {
        return bound as f64;
    }
    let high = (bound as f64).log2();
    let low = below.last().map_or(high - 1.0, |other| (*other as f64).log2());
    (low + (high - low) * (needed - below.len()) as f64 / here as f64).exp2()
}

fn apply(stage: &SecondStage, series: &mut [(Labels, Vec<Option<f64>>)]) {
    let (limit, is_top) = match stage {
        SecondStage::TopK(limit) => (*limit as usize, true),
        SecondStage::BottomK(limit) => (*limit as usize, false),
        SecondStage::Filter { op, value } => {
            let holds = |sample: f64| match op {
                BinaryOp::Equal => sample == *value,
                BinaryOp::NotEqual => sample != *value,
                BinaryOp::Greater => sample > *value,
                BinaryOp::GreaterEqual => sample >= *value,
                BinaryOp::Less => sample < *value,
                BinaryOp::LessEqual => sample <= *value,
                other => panic!("{other}"),
            };
            series.iter_mut().for_each(|(_, samples)| samples.iter_mut().for_each(|sample| *sample = sample.filter(|s| holds(*s))));
            return;
        }
    };
    if series.len() <= limit {
        return;
    }
    series.sort_by_cached_key(|(labels, _)| labels.iter().map(|(key, value)| (text(value), key.clone())).collect::<Vec<_>>());
    for interval in 0..series[0].1.len() {
        let better = |left: (f64, usize), right: (f64, usize)| match (is_top, left.0 == right.0) {
            (true, true) => left.1 < right.1,
            (false, true) => left.1 > right.1,
            (true, false) => left.0 > right.0,
            (false, false) => left.0 < right.0,
        };
        let samples: Vec<(f64, usize)> =
            series.iter().enumerate().filter_map(|(place, (_, samples))| samples[interval].map(|sample| (sample, place))).collect();
        for sample in &samples {
            if samples.iter().filter(|other| better(**other, *sample)).count() >= limit {
                series[sample.1].1[interval] = None;
            }
        }
    }
}

fn compared(request: &MetricsRequest, view: &TraceView<'_>, span: usize) -> Vec<(String, any_value::Value)> {
    let intrinsics = [
        "name",
        "status",
        "statusMessage",
        "kind",
        "span:childCount",
        "rootName",
        "rootServiceName",
        "instrumentation:name",
        "instrumentation:version",
        "resource.service.name",
    ];
    let fields = intrinsics.map(|name| {
        let query = crate::traceql::parse(&format!("{{}} | select({name})")).expect("a field");
        query.fields().remove(0)
    });
    let mut fields: Vec<Field> = fields.into();
    fields.extend(view.attribute_fields(span));
    fields.extend(request.query().fields().into_iter().filter(|field| field.is_of_event() || field.is_of_link()));
    let mut distinct: BTreeMap<String, any_value::Value> = BTreeMap::new();
    for field in fields {
        let value = view.value_of(span, &field);
        if !matches!(value, Value::Nil | Value::Duration(_)) {
            distinct.insert(field.to_string(), shown(&value));
        }
    }
    distinct.into_iter().collect()
}

/// Attributes that conditions of the pipeline name with their scope.
fn conditions(request: &MetricsRequest) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for condition in request.query().pipeline().conditions() {
        condition.for_each_field(&mut |field| {
            if matches!(field, Field::Attribute { scope, .. } if *scope != Scope::Any) {
                found.insert(field.to_string());
            }
        });
    }
    found
}

fn top(pairs: BTreeMap<String, (Labels, Lists)>, number: usize, request: &MetricsRequest) -> Table {
    let mut by_key: BTreeMap<(String, String), Vec<(Labels, Lists)>> = BTreeMap::new();
    for (labels, lists) in pairs.into_values() {
        by_key.entry((text(&labels[0].1), labels[1].0.clone())).or_default().push((labels, lists));
    }
    let total = |lists: &Lists| std::cmp::Reverse(lists.values().map(Vec::len).sum::<usize>());
    let mut series = Vec::new();
    for (_, mut values) in by_key {
        values.sort_by_cached_key(|(labels, lists)| (total(lists), text(&labels[1].1)));
        values.truncate(number);
        series.extend(values);
    }
    let count =
        |lists: &Lists| (0..request.window().intervals()).map(|i| Some(lists.get(&i).map_or(0.0, |list| list.len() as f64))).collect();
    to_table(request, series.into_iter().map(|(labels, lists)| (labels, count(&lists))).collect())
}

fn to_table(request: &MetricsRequest, series: Vec<(Labels, Vec<Option<f64>>)>) -> Table {
    let mut table = Table::new();
    for (labels, samples) in series {
        let labels = labels.into_iter().map(|(key, value)| (key, typed(Some(&value)))).collect();
        let stamp = |(interval, sample): (usize, Option<f64>)| Some((request.window().timestamp_ms(interval), sample?));
        let samples: Vec<(i64, f64)> = samples.into_iter().enumerate().filter_map(stamp).collect();
        if !samples.is_empty() {
            table.insert(labels, samples);
        }
    }
    table
}
