//! `rubato query metrics`.
//!
//! ```text
//!  SERIES                            LAST   MIN   MAX
//!  {resource.service.name="shop"}     4.2   0.0   9.1  ▁▁▂▅█▅▂▁
//! ```
//!
//! The sparkline of a series runs over the whole range, the same for all series; where a series has no sample it has a gap. All lines have
//! one scale, so that series can be compared.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde_json::Value;

use super::{Range, server};
use crate::output::{bytes, count, print, printable, table, text, width};

/// Computes metrics.
#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// TraceQL with a metrics function, such as '{} | quantile_over_time(duration, .9) by (name)'
    query: String,
    #[command(flatten)]
    range: Range,
    /// Width of an interval, such as 15s or 5m; by default the server decides
    #[arg(long, conflicts_with = "instant")]
    step: Option<String>,
    /// One value for the whole range instead of many
    #[arg(long)]
    instant: bool,
    #[command(flatten)]
    server: server::Arguments,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let mut parameters = command.range.parameters()?;
    parameters.extend([("q", command.query), ("step", command.step.unwrap_or_default())]);
    let path = if command.instant { "/api/metrics/query" } else { "/api/metrics/query_range" };
    if command.server.json {
        return command.server.print_json(path, &parameters).await;
    }
    let body = command.server.get(path, &parameters, "application/json").await?;
    let answer: Value = serde_json::from_slice(&body).with_context(|| format!("{path} did not answer with JSON"))?;
    let series: Vec<Series> = answer["series"].as_array().map_or(&[][..], Vec::as_slice).iter().map(Series::of).collect();
    let shown = if command.instant { values(&series) } else { lines(&series, width()) };
    print(&format!("{shown}{}\n", summary(series.len(), &answer)));
    Ok(())
}

/// A series of an answer: its labels as text, and its samples by their time in milliseconds.
#[derive(Debug, Default, PartialEq)]
struct Series {
    labels: String,
    samples: Vec<(i64, f64)>,
}

impl Series {
    fn of(json: &Value) -> Self {
        let labels = json["labels"].as_array().map_or(&[][..], Vec::as_slice);
        let labels: Vec<_> =
            labels.iter().map(|label| format!("{}={}", printable(label["key"].as_str().unwrap_or("?")), shown(&label["value"]))).collect();
        let samples = match json["samples"].as_array() {
            Some(samples) => samples.iter().map(|sample| (long(&sample["timestampMs"]), double(&sample["value"]))).collect(),
            None => vec![(0, double(&json["value"]))],
        };
        Self { labels: format!("{{{}}}", labels.join(", ")), samples }
    }
}

/// A value of a label.
fn shown(value: &Value) -> String {
    match value.as_object().and_then(|value| value.iter().next()) {
        Some((kind, Value::String(text))) if kind == "stringValue" => format!("\"{}\"", printable(text)),
        Some((_, Value::String(text))) => printable(text),
        Some((_, other)) => other.to_string(),
        None => "nil".to_owned(),
    }
}

/// A 64-bit integer, which is a text; zero where it is left out.
fn long(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_i64()).unwrap_or(0)
}

/// A number, of which those that JSON does not know are texts; zero where it is left out.
fn double(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok())).unwrap_or(0.0)
}

fn values(series: &[Series]) -> String {
    let mut rows = table(&["SERIES", ">VALUE"]);
    for series in series {
        rows.add_row([series.labels.clone(), series.samples.first().map_or_else(String::new, |(_, value)| number(*value))]);
    }
    if series.is_empty() { String::new() } else { format!("{}\n", text(&rows)) }
}

fn lines(series: &[Series], width: usize) -> String {
    if series.is_empty() {
        return String::new();
    }
    let times: BTreeSet<i64> = series.iter().flat_map(|series| series.samples.iter().map(|(time, _)| *time)).collect();
    let (first, last) = (times.first().copied().unwrap_or(0), times.last().copied().unwrap_or(0));
    let all = || series.iter().flat_map(|series| series.samples.iter().map(|(_, value)| *value)).filter(|value| value.is_finite());
    let scale = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
    let cells = times.len().min((width / 3).clamp(10, 60));
    let mut rows = table(&["SERIES", ">LAST", ">MIN", ">MAX", ""]);
    for series in series {
        let values = || series.samples.iter().map(|(_, value)| *value);
        rows.add_row([
            series.labels.clone(),
            values().next_back().map_or_else(String::new, number),
            values().reduce(f64::min).map_or_else(String::new, number),
            values().reduce(f64::max).map_or_else(String::new, number),
            sparkline(&series.samples, (first, last), scale, cells),
        ]);
    }
    let time = |milliseconds: i64| storage::block::time_text(milliseconds.div_euclid(1000));
    format!("{}\nfrom {} to {}\n", text(&rows), time(first), time(last))
}

/// The samples as a line of `cells` characters: each shows the mean of the samples that fall into it.
fn sparkline(samples: &[(i64, f64)], (first, last): (i64, i64), (low, high): (f64, f64), cells: usize) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut sums = vec![(0.0, 0u32); cells.max(1)];
    let span = (last - first).max(1) as f64;
    for (time, value) in samples.iter().filter(|(_, value)| value.is_finite()) {
        let cell = ((time - first) as f64 / span * (sums.len() - 1) as f64).round() as usize;
        if let Some((sum, samples)) = sums.get_mut(cell) {
            *sum += value;
            *samples += 1;
        }
    }
    let height = |(sum, samples): &(f64, u32)| {
        if *samples == 0 {
            return ' ';
        }
        let share = if high > low { (sum / f64::from(*samples) - low) / (high - low) } else { 0.0 };
        HEIGHTS[((share * 7.0).round() as usize).min(7)]
    };
    sums.iter().map(height).collect()
}

/// Four figures.
fn number(value: f64) -> String {
    let figures = |digits: usize| {
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match value.abs() {
        size if !size.is_finite() => value.to_string(),
        0.0 => "0".to_owned(),
        size if !(1e-4..1e9).contains(&size) => format!("{value:.3e}"),
        size if size >= 1000.0 => figures(0),
        size if size >= 1.0 => figures(3 - size.log10().floor() as usize),
        _ => figures(5),
    }
}

fn summary(series: usize, answer: &Value) -> String {
    let metrics = &answer["metrics"];
    let inspected = |name: &str| u64::try_from(long(&metrics[name])).unwrap_or(0);
    let partial = match answer["status"].as_str() {
        Some("PARTIAL") => format!("\nnot everything: {}", printable(answer["message"].as_str().unwrap_or_default())),
        _ => String::new(),
    };
    format!(
        "{} series; {} spans looked at, {} read, {} blocks{partial}",
        count(series as u64),
        count(inspected("inspectedSpans")),
        bytes(inspected("inspectedBytes")),
        count(inspected("totalBlocks")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn two() -> Vec<Series> {
        let answer = json!([
            {"labels": [{"key": "resource.service.name", "value": {"stringValue": "shop\u{1b}"}}, {"key": "p", "value": {"doubleValue": 0.9}}],
             "samples": [{"timestampMs": "1000"}, {"timestampMs": "2000", "value": 4.0}, {"timestampMs": "4000", "value": 8.0}]},
            {"labels": [{"key": "status", "value": {"intValue": "3"}}], "samples": [{"timestampMs": "3000", "value": "NaN"}]},
        ]);
        answer.as_array().expect("a list").iter().map(Series::of).collect()
    }

    #[test]
    fn answers_are_read() {
        let series = two();
        assert_eq!(series[0].labels, "{resource.service.name=\"shop\u{fffd}\", p=0.9}");
        assert_eq!(series[0].samples, [(1000, 0.0), (2000, 4.0), (4000, 8.0)]);
        assert_eq!(series[1].labels, "{status=3}");
        assert!(series[1].samples[0].1.is_nan());
        assert_eq!(Series::of(&json!({"value": 2.5})), Series { labels: "{}".to_owned(), samples: vec![(0, 2.5)] });
    }

    #[test]
    fn a_series_has_a_line_with_a_picture() {
        let shown = lines(&two(), 100);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("SERIES") && lines[1].ends_with("▁▅ █"), "{shown}");
        assert!(shown.contains("from 1970-01-01T00:00:01Z to 1970-01-01T00:00:04Z"), "{shown}");
    }

    #[test]
    fn a_line_that_is_too_long_shows_means() {
        let samples: Vec<_> = (0..100).map(|time| (time, if time < 50 { 0.0 } else { 7.0 })).collect();
        assert_eq!(sparkline(&samples, (0, 99), (0.0, 7.0), 4), "▁▁██");
        assert_eq!(sparkline(&[(5, 1.0)], (5, 5), (1.0, 1.0), 1), "▁");
        assert_eq!(sparkline(&[], (0, 0), (0.0, 0.0), 3), "   ");
    }

    #[test]
    fn numbers_have_four_figures() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (12.345678, "12.35"),
            (123456.7, "123457"),
            (0.012345, "0.01235"),
            (1.5e12, "1.500e12"),
            (-2.5, "-2.5"),
            (1e-7, "1.000e-7"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), expected);
        }
    }
}
