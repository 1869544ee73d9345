//! `rubato query search`.

use query::proto::{SearchMetrics, SearchResponse, Span, SpanSet, TraceSearchMetadata};

use super::{Range, server};
use crate::{
    output::{bytes, count, print, printable, table, text},
    trace::waterfall::{duration, value},
};

/// Finds traces.
#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// TraceQL, such as '{ resource.service.name = "shop" && duration > 1s }'; by default every trace
    #[arg(default_value = "{}")]
    query: String,
    #[command(flatten)]
    range: Range,
    /// Most traces
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: u32,
    /// Show the spans that matched, and what the query looked at
    #[arg(long, short)]
    spans: bool,
    /// Most spans of a set, with --spans
    #[arg(long, default_value_t = 3)]
    spss: u32,
    #[command(flatten)]
    server: server::Arguments,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let mut parameters = command.range.parameters()?;
    parameters.extend([("q", command.query), ("limit", command.limit.to_string()), ("spss", command.spss.to_string())]);
    if command.server.json {
        return command.server.print_json("/api/search", &parameters).await;
    }
    let answer: SearchResponse = command.server.message("/api/search", &parameters).await?;
    let shown = if command.spans { with_spans(&answer.traces) } else { lines(&answer.traces) };
    print(&format!("{shown}{}\n", summary(answer.traces.len(), &answer.metrics.unwrap_or_default())));
    Ok(())
}

fn summary(traces: usize, metrics: &SearchMetrics) -> String {
    let SearchMetrics { inspected_traces, inspected_bytes, total_blocks, completed_jobs, total_jobs, .. } = *metrics;
    format!(
        "{} traces; {} looked at, {} read, {} blocks, {} of {} jobs done",
        count(traces as u64),
        count(inspected_traces.into()),
        bytes(inspected_bytes),
        count(total_blocks.into()),
        count(completed_jobs.into()),
        count(total_jobs.into()),
    )
}

fn started(trace: &TraceSearchMetadata) -> String {
    storage::block::time_text((trace.start_time_unix_nano / 1_000_000_000) as i64)
}

fn took(trace: &TraceSearchMetadata) -> String {
    if trace.duration_ms == 0 { "<1ms".to_owned() } else { duration(u64::from(trace.duration_ms) * 1_000_000) }
}

fn matched(trace: &TraceSearchMetadata) -> u32 {
    trace.span_sets.iter().map(|set| set.matched).fold(0, u32::saturating_add)
}

/// A line per trace.
fn lines(traces: &[TraceSearchMetadata]) -> String {
    if traces.is_empty() {
        return String::new();
    }
    let mut rows = table(&["START", ">DURATION", "TRACE", "SERVICE", "NAME", ">MATCHED", ">SPANS", ">ERRORS"]);
    for trace in traces {
        let (spans, errors) = trace
            .service_stats
            .values()
            .fold((0u64, 0u64), |(spans, errors), stats| (spans + u64::from(stats.span_count), errors + u64::from(stats.error_count)));
        rows.add_row([
            started(trace),
            took(trace),
            trace.trace_id.clone(),
            printable(&trace.root_service_name),
            printable(&trace.root_trace_name),
            count(matched(trace).into()),
            count(spans),
            count(errors),
        ]);
    }
    format!("{}\n", text(&rows))
}

/// A paragraph per trace: its line, then the sets of spans that matched.
fn with_spans(traces: &[TraceSearchMetadata]) -> String {
    traces.iter().fold(String::new(), |shown, trace| {
        let head = format!(
            "{}  {}  {}  {}: {}\n",
            started(trace),
            trace.trace_id,
            took(trace),
            printable(&trace.root_service_name),
            printable(&trace.root_trace_name)
        );
        let sets: String = trace.span_sets.iter().map(|set| show_set(set, trace.start_time_unix_nano)).collect();
        shown + &head + &sets + "\n"
    })
}

fn show_set(set: &SpanSet, trace_start: u64) -> String {
    let attributes = attributes(&set.attributes);
    let head = if attributes.is_empty() { String::new() } else { format!("  {attributes}: {} spans\n", count(set.matched.into())) };
    let mut rows = table(&["  ", ">AFTER", ">DURATION", "SPAN", "NAME", "ATTRIBUTES"]);
    for span in &set.spans {
        let Span { span_id, name, start_time_unix_nano, duration_nanos, .. } = span;
        rows.add_row([
            "  ".to_owned(),
            duration(start_time_unix_nano.saturating_sub(trace_start)),
            duration(*duration_nanos),
            span_id.clone(),
            printable(name),
            self::attributes(&span.attributes),
        ]);
    }
    let rest = usize::try_from(set.matched).unwrap_or(usize::MAX).saturating_sub(set.spans.len());
    let rest = if rest == 0 { String::new() } else { format!("   and {} more\n", count(rest as u64)) };
    head + &text(&rows) + &rest
}

fn attributes(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> String {
    let show = |attribute: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        format!("{}={}", printable(&attribute.key), attribute.value.as_ref().map_or_else(String::new, value))
    };
    attributes.iter().map(show).collect::<Vec<_>>().join(" ")
}
