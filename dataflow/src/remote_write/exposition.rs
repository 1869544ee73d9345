//! A tenant's series as text: Prometheus' format, or OpenMetrics with exemplars.
//!
//! What is written is what would be sent now, without times. A native histogram has no text form; where a series has no other, its sum and
//! count are written with one bucket.

use std::{fmt::Write as _, sync::Arc};

use storage::id::Tenant;

use super::{
    protocol::{Batch, Exemplar, Family, Label, MetricType, TimeSeries},
    settings::{Settings, TenantSettings},
    view::{Metric, Show, View},
};
use crate::generator::{Accumulated, Snapshot};

/// Series of the generator that are written into one chunk.
const CHUNK_SERIES: usize = 256;

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for.
    pub fn of(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The text of a tenant's series, chunk by chunk.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    view: View,
    series: Arc<[Arc<Accumulated>]>,
    /// Which metric is written, and from which series on. One past the last metric is the end.
    next: Option<(usize, usize)>,
}

impl Exposition {
    /// Of a tenant; `None` if the snapshot doesn't know it.
    pub fn new(snapshot: &Snapshot, tenant: &Tenant, settings: &Settings, of_tenant: &TenantSettings, format: Format) -> Option<Self> {
        let series = Arc::clone(snapshot.tenants.get(tenant)?);
        Some(Self { format, view: View::new(settings, tenant, of_tenant), series, next: Some((0, 0)) })
    }

    fn head(&self, family: &Family, out: &mut String) {
        let name = String::from_utf8_lossy(&family.name);
        let (kind, name) = match family.kind {
            // OpenMetrics names a counter without the suffix that its samples have.
            MetricType::Counter if self.format == Format::OpenMetrics => ("counter", name.trim_end_matches("_total")),
            MetricType::Counter => ("counter", &*name),
            MetricType::Gauge => ("gauge", &*name),
            MetricType::Histogram => ("histogram", &*name),
        };
        _ = writeln!(out, "# HELP {name} {}", String::from_utf8_lossy(&family.help));
        _ = writeln!(out, "# TYPE {name} {kind}");
    }

    fn line(&self, series: &TimeSeries, out: &mut String) {
        let Some(sample) = series.samples.first() else { return };
        let text = |label: &Label| String::from_utf8_lossy(&label.value).into_owned();
        let is_name = |label: &&Label| label.name == "__name__";
        out.push_str(&series.labels.iter().find(is_name).map(text).unwrap_or_default());
        let canonical = self.format == Format::OpenMetrics;
        labels(series.labels.iter().filter(|label| !is_name(label)), canonical, out);
        _ = write!(out, " {}", number(sample.value));
        if canonical && let Some(exemplar) = series.exemplars.first() {
            self.exemplar(exemplar, out);
        }
        out.push('\n');
    }

    fn exemplar(&self, exemplar: &Exemplar, out: &mut String) {
        out.push_str(" # ");
        labels(exemplar.labels.iter(), false, out);
        _ = write!(out, " {}", number(exemplar.value));
    }

    /// What of a native histogram can be said in text.
    fn native(&self, series: &TimeSeries, out: &mut String) {
        let Some(histogram) = series.histograms.first() else { return };
        #[expect(clippy::cast_precision_loss, reason = "text of a float")]
        let count = histogram.count_int.unwrap_or_default() as f64;
        for (suffix, le, value) in [("_bucket", Some("+Inf"), count), ("_sum", None, histogram.sum), ("_count", None, count)] {
            let mut labels = series.labels.clone();
            for label in &mut labels {
                if label.name == "__name__" {
                    label.value = [&label.value, suffix.as_bytes()].concat().into();
                }
            }
            labels.extend(le.map(|le| Label { name: "le".into(), value: le.into() }));
            let sample = super::protocol::Sample { value, ..super::protocol::Sample::default() };
            self.line(&TimeSeries { labels, samples: vec![sample], ..TimeSeries::default() }, out);
        }
    }
}

impl Iterator for Exposition {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let (metric, from) = self.next?;
        let mut out = String::new();
        let Some(metric_shown) = Metric::ALL.get(metric) else {
            self.next = None;
            return Some(if self.format == Format::OpenMetrics { "# EOF\n".to_owned() } else { out });
        };
        let has = |series: &&Arc<Accumulated>| Metric::of(series).any(|of| of == *metric_shown);
        if from == 0 && self.series.iter().any(|series| has(&series)) {
            self.head(self.view.family(*metric_shown), &mut out);
        }
        let until = (from + CHUNK_SERIES).min(self.series.len());
        let mut batch = Batch::default();
        for series in self.series[from..until].iter().filter(has) {
            self.view.emit(*metric_shown, series, None, Show::Value, 0, &mut batch);
            // With both kinds of histogram the classic one says it all.
            let is_classic = batch.series.iter().any(|series| !series.samples.is_empty());
            for series in batch.series.drain(..) {
                if series.histograms.is_empty() {
                    self.line(&series, &mut out);
                } else if !is_classic {
                    self.native(&series, &mut out);
                }
            }
        }
        self.next = Some(if until == self.series.len() { (metric + 1, 0) } else { (metric, until) });
        Some(out)
    }
}

fn labels<'a>(labels: impl Iterator<Item = &'a Label>, canonical_le: bool, out: &mut String) {
    out.push('{');
    for (index, label) in labels.enumerate() {
        if index > 0 {
            out.push(',');
        }
        let value = String::from_utf8_lossy(&label.value);
        let whole = canonical_le && label.name == "le" && value.bytes().all(|byte| byte.is_ascii_digit());
        _ = write!(out, "{}=\"", String::from_utf8_lossy(&label.name));
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push_str(if whole { ".0\"" } else { "\"" });
    }
    out.push('}');
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}
