//! A trace as a picture made of text: who called whom, when and for how long.
//!
//! ```text
//!  checkout: POST /pay            212ms  ██████████████████████
//!  ├─ cart: GET /cart              40ms  ████
//!  └─ payment: charge !           150ms       ████████████████
//! ```
//!
//! Spans stand under their parents in the order of their starts. Whatever is not reached that way (parents that are missing, cycles)
//! stands at the top: every span is drawn once.

use std::{collections::HashMap, fmt::Write as _};

use console::{measure_text_width, truncate_str};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};
use storage::id::TraceId;

use crate::output::printable;

/// Levels that are drawn deeper to the right; those below stay where they are.
const DEEPEST: usize = 24;

/// A span and whose it is.
#[derive(Clone, Copy, Debug)]
struct Node<'a> {
    span: &'a Span,
    service: &'a str,
}

/// Draws a trace that fits into `width` columns, with all details of every span if `verbose`.
pub(crate) fn draw(id: TraceId, trace: &[ResourceSpans], width: usize, verbose: bool) -> String {
    let nodes: Vec<_> = trace
        .iter()
        .flat_map(|resource| {
            let service = service(resource);
            resource.scope_spans.iter().flat_map(|scope| &scope.spans).map(move |span| Node { span, service })
        })
        .collect();
    let start = nodes.iter().map(|node| node.span.start_time_unix_nano).min().unwrap_or(0);
    let end = nodes.iter().map(|node| node.span.end_time_unix_nano.max(node.span.start_time_unix_nano)).max().unwrap_or(0);
    let mut services: Vec<_> = nodes.iter().map(|node| node.service).collect();
    services.sort_unstable();
    services.dedup();
    let errors = nodes.iter().filter(|node| is_error(node.span)).count();
    let mut out = format!(
        "trace {}: {} spans of {} services, {} errors, {} from {}\n\n",
        id.to_hex(),
        nodes.len(),
        services.len(),
        errors,
        duration(end - start),
        storage::block::time_text((start / 1_000_000_000) as i64),
    );
    let bar_width = (width / 3).clamp(10, 60);
    let label_width = width.saturating_sub(bar_width + 11).max(20);
    for (branch, node) in order(&nodes) {
        let Node { span, service } = *node;
        let mark = if is_error(span) { " !" } else { "" };
        let label = format!("{branch}{service}: {}{mark}", printable(&span.name));
        let label = truncate_str(&label, label_width, "…");
        let gap = " ".repeat(label_width.saturating_sub(measure_text_width(&label)));
        let took = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
        let bar = bar(span.start_time_unix_nano - start, took, end - start, bar_width);
        _ = writeln!(out, "{label}{gap} {:>8}  {}", duration(took), bar.trim_end());
        if verbose {
            details(&mut out, span, start, " ".repeat(measure_text_width(&branch)).as_str());
        }
    }
    out
}

fn service(resource: &ResourceSpans) -> &str {
    let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
    let named = attributes.iter().find(|attribute| attribute.key == "service.name").and_then(|attribute| attribute.value.as_ref());
    match named.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(name)) if !name.is_empty() => name,
        _ => "?",
    }
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

/// All spans as they are drawn, each with the lines that lead to it.
fn order<'a, 'b>(nodes: &'b [Node<'a>]) -> Vec<(String, &'b Node<'a>)> {
    let by_id: HashMap<&[u8], usize> = nodes.iter().enumerate().map(|(index, node)| (node.span.span_id.as_slice(), index)).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut tops = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match by_id.get(node.span.parent_span_id.as_slice()).filter(|&&parent| parent != index && !node.span.parent_span_id.is_empty()) {
            Some(&parent) => children[parent].push(index),
            None => tops.push(index),
        }
    }
    let by_start = |list: &mut Vec<usize>| list.sort_by_key(|&index| (nodes[index].span.start_time_unix_nano, index));
    children.iter_mut().for_each(by_start);
    by_start(&mut tops);
    let mut drawn = vec![false; nodes.len()];
    let mut lines = Vec::with_capacity(nodes.len());
    // What no top reaches is part of a cycle: its first span becomes a top.
    for index in tops.into_iter().chain(0..nodes.len()) {
        // (span, what leads to its children, what leads to itself)
        let mut stack = vec![(index, String::new(), String::new(), 0)];
        while let Some((index, below, branch, depth)) = stack.pop() {
            if std::mem::replace(&mut drawn[index], true) {
                continue;
            }
            lines.push((branch, &nodes[index]));
            let last = children[index].last().copied();
            for &child in children[index].iter().rev() {
                let (own, further) = match (depth < DEEPEST, Some(child) == last) {
                    (false, _) => (below.clone(), below.clone()),
                    (true, true) => (format!("{below}└─ "), format!("{below}   ")),
                    (true, false) => (format!("{below}├─ "), format!("{below}│  ")),
                };
                stack.push((child, further, own, depth + 1));
            }
        }
    }
    lines
}

/// A bar of `width` cells over `total` nanoseconds; at least one cell is filled.
fn bar(offset: u64, took: u64, total: u64, width: usize) -> String {
    let cell = |nanos: u64| (nanos as f64 / total.max(1) as f64 * width as f64).round() as usize;
    let first = cell(offset).min(width - 1);
    let last = cell(offset.saturating_add(took)).clamp(first + 1, width);
    format!("{}{}", " ".repeat(first), "█".repeat(last - first))
}

fn details(out: &mut String, span: &Span, trace_start: u64, indent: &str) {
    let kind = SpanKind::try_from(span.kind).map_or("unknown", |kind| match kind {
        SpanKind::Unspecified => "unspecified",
        SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    });
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    _ = writeln!(
        out,
        "{indent}  span {} {kind}, starts at {}",
        hex(&span.span_id),
        duration(span.start_time_unix_nano.saturating_sub(trace_start))
    );
    if let Some(status) = span.status.as_ref().filter(|status| !status.message.is_empty()) {
        _ = writeln!(out, "{indent}  status message: {}", printable(&status.message));
    }
    attributes(out, &span.attributes, &format!("{indent}  "));
    for event in &span.events {
        let at = duration(event.time_unix_nano.saturating_sub(span.start_time_unix_nano));
        _ = writeln!(out, "{indent}  event {} after {at}", printable(&event.name));
        attributes(out, &event.attributes, &format!("{indent}    "));
    }
    for link in &span.links {
        _ = writeln!(out, "{indent}  link to span {} of trace {}", hex(&link.span_id), hex(&link.trace_id));
        attributes(out, &link.attributes, &format!("{indent}    "));
    }
}

fn attributes(out: &mut String, attributes: &[KeyValue], indent: &str) {
    for attribute in attributes {
        let text = attribute.value.as_ref().map_or_else(String::new, value);
        _ = writeln!(out, "{indent}{} = {text}", printable(&attribute.key));
    }
}

pub(crate) fn value(value: &AnyValue) -> String {
    match &value.value {
        None => "nothing".to_owned(),
        Some(Value::StringValue(text)) => printable(text),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::ArrayValue(array)) => format!("[{}]", array.values.iter().map(self::value).collect::<Vec<_>>().join(", ")),
        Some(Value::KvlistValue(list)) => {
            let pair = |pair: &KeyValue| format!("{}: {}", printable(&pair.key), pair.value.as_ref().map_or_else(String::new, self::value));
            format!("{{{}}}", list.values.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Some(Value::BytesValue(bytes)) => format!("{} bytes", bytes.len()),
        Some(_) => "?".to_owned(),
    }
}

/// Nanoseconds in the unit that people would use, three figures at most.
pub(crate) fn duration(nanos: u64) -> String {
    let (value, unit) = match nanos {
        0..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => (nanos as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanos as f64 / 1e6, "ms"),
        1_000_000_000..60_000_000_000 => (nanos as f64 / 1e9, "s"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
            return match (days, hours) {
                (0, 0) => format!("{minutes}m{seconds}s"),
                (0, _) => format!("{hours}h{minutes}m"),
                _ => format!("{days}d{hours}h"),
            };
        }
    };
    match value {
        value if value < 10.0 => format!("{value:.2}{unit}"),
        value if value < 100.0 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Status};

    use super::*;

    fn span(id: u8, parent: u8, start: u64, end: u64, name: &str) -> Span {
        let id_of = |id: u8| if id == 0 { Vec::new() } else { vec![0, 0, 0, 0, 0, 0, 0, id] };
        Span {
            span_id: id_of(id),
            parent_span_id: id_of(parent),
            start_time_unix_nano: 1_000_000_000 + start * 1_000_000,
            end_time_unix_nano: 1_000_000_000 + end * 1_000_000,
            name: name.to_owned(),
            ..Span::default()
        }
    }

    fn trace(spans: Vec<Span>) -> Vec<ResourceSpans> {
        vec![ResourceSpans { scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }], ..ResourceSpans::default() }]
    }

    #[test]
    fn spans_stand_under_their_parents_in_the_order_of_their_starts() {
        let mut failed = span(3, 1, 60, 90, "charge");
        failed.status = Some(Status { code: StatusCode::Error.into(), message: "declined\u{1b}[2J".to_owned() });
        let trace = trace(vec![
            failed,
            span(1, 0, 0, 100, "pay"),
            span(4, 2, 10, 20, "get"),
            span(2, 1, 5, 50, "cart"),
            span(9, 8, 0, 1, "orphan"),
        ]);
        let drawn = draw(TraceId([7; 16]), &trace, 60, true);
        let labels: Vec<_> =
            drawn.lines().filter(|line| line.contains("?: ")).map(|line| line[..line.find("   ").unwrap_or(0)].trim_end()).collect();
        assert_eq!(labels, ["?: pay", "├─ ?: cart", "│  └─ ?: get", "└─ ?: charge !", "?: orphan"]);
        assert!(
            drawn.starts_with("trace 07070707070707070707070707070707: 5 spans of 1 services, 1 errors, 100ms from 1970-01-01T00:00:01Z")
        );
        assert!(!drawn.contains('\u{1b}') && drawn.contains("status message: declined\u{fffd}[2J"), "{drawn}");
        let bars: Vec<_> = drawn.lines().filter_map(|line| line.find('█').map(|at| line[at..].chars().count())).collect();
        assert_eq!(bars, [20, 9, 2, 6, 1], "{drawn}");
    }

    #[test]
    fn every_span_of_a_broken_trace_is_drawn_once() {
        let trace = trace(vec![span(1, 2, 0, 1, "a"), span(2, 1, 0, 1, "b"), span(3, 3, 0, 1, "c"), span(3, 0, 0, 0, "d")]);
        let drawn = draw(TraceId([1; 16]), &trace, 80, false);
        for name in ["a", "b", "c", "d"] {
            assert_eq!(drawn.matches(&format!("?: {name} ")).count(), 1, "{drawn}");
        }
    }

    #[test]
    fn durations_have_three_figures() {
        for (nanos, text) in
            [(0, "0ns"), (999, "999ns"), (1_234, "1.23µs"), (12_340_000, "12.3ms"), (59_900_000_000, "59.9s"), (3_725_000_000_000, "1h2m")]
        {
            assert_eq!(duration(nanos), text);
        }
    }
}
