//! Metrics in the OpenMetrics text format, which Prometheus prefers when it scrapes.
//!
//! It differs from the older text format in little: a counter's family has no `_total` and its samples have, bounds of buckets are floating
//! point numbers, and `# EOF` says that nothing is missing. A counter whose name has no `_total` is shown as of unknown type, since a
//! counter's sample must have it and dashboards know it by the name that it has.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, MetricFamily, MetricType};

/// The families as text.
pub(crate) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::new();
    for family in families {
        let (name, kind) = match (family.get_field_type(), family.name().strip_suffix("_total")) {
            (MetricType::COUNTER, Some(name)) => (name, "counter"),
            (MetricType::GAUGE, _) => (family.name(), "gauge"),
            (MetricType::HISTOGRAM, _) => (family.name(), "histogram"),
            (MetricType::SUMMARY, _) => (family.name(), "summary"),
            (MetricType::COUNTER | MetricType::UNTYPED, _) => (family.name(), "unknown"),
        };
        // Writing into a text cannot fail.
        _ = writeln!(out, "# HELP {name} {}", escape(family.help()));
        _ = writeln!(out, "# TYPE {name} {kind}");
        for metric in family.get_metric() {
            let labels = metric.get_label();
            match family.get_field_type() {
                MetricType::COUNTER => sample(&mut out, family.name(), labels, None, &number(metric.get_counter().get_value())),
                MetricType::GAUGE => sample(&mut out, name, labels, None, &number(metric.get_gauge().get_value())),
                // Nothing makes these.
                MetricType::UNTYPED => {}
                MetricType::HISTOGRAM => {
                    let histogram = metric.get_histogram();
                    let buckets = format!("{name}_bucket");
                    for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
                        let bound = number(bucket.upper_bound());
                        sample(&mut out, &buckets, labels, Some(("le", &bound)), &bucket.cumulative_count().to_string());
                    }
                    let count = histogram.get_sample_count().to_string();
                    sample(&mut out, &buckets, labels, Some(("le", "+Inf")), &count);
                    sample(&mut out, &format!("{name}_sum"), labels, None, &number(histogram.get_sample_sum()));
                    sample(&mut out, &format!("{name}_count"), labels, None, &count);
                }
                MetricType::SUMMARY => {
                    let summary = metric.get_summary();
                    for quantile in summary.get_quantile() {
                        sample(&mut out, name, labels, Some(("quantile", &number(quantile.quantile()))), &number(quantile.value()));
                    }
                    sample(&mut out, &format!("{name}_sum"), labels, None, &number(summary.sample_sum()));
                    sample(&mut out, &format!("{name}_count"), labels, None, &summary.sample_count().to_string());
                }
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

fn sample(out: &mut String, name: &str, labels: &[LabelPair], more: Option<(&str, &str)>, value: &str) {
    out.push_str(name);
    let labels = labels.iter().map(|label| (label.name(), label.value())).chain(more);
    let mut separator = '{';
    for (name, value) in labels {
        _ = write!(out, "{separator}{name}=\"{}\"", escape(value));
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    out.push(' ');
    out.push_str(value);
    out.push('\n');
}

/// A floating point number, which always looks like one.
fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => format!("{value:?}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn families_look_as_openmetrics_says() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "Counts\n\"a\"."), &["why"]).expect("a counter");
        counter.with_label_values(&["x\\y\"z\n"]).inc_by(3);
        let odd = IntCounter::new("b", "Counts b.").expect("a counter");
        let gauge = IntGauge::new("c", "Is c.").expect("a gauge");
        let histogram = Histogram::with_opts(HistogramOpts::new("d", "Spreads d.").buckets(vec![0.5, 2.0])).expect("a histogram");
        histogram.observe(1.0);
        registry.register(Box::new(counter)).expect("new");
        registry.register(Box::new(odd)).expect("new");
        registry.register(Box::new(gauge)).expect("new");
        registry.register(Box::new(histogram)).expect("new");
        assert_eq!(
            encode(&registry.gather()),
            "\
# HELP a Counts\\n\\\"a\\\".
# TYPE a counter
a_total{why=\"x\\\\y\\\"z\\n\"} 3.0
# HELP b Counts b.
# TYPE b unknown
b 0.0
# HELP c Is c.
# TYPE c gauge
c 0.0
# HELP d Spreads d.
# TYPE d histogram
d_bucket{le=\"0.5\"} 0
d_bucket{le=\"2.0\"} 1
d_bucket{le=\"+Inf\"} 1
d_sum 1.0
d_count 1
# EOF
"
        );
    }
}
