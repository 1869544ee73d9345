//! `rubato blocks analyse`: where a block's attributes take room.
//!
//! Every span is read. An attribute is a key in a scope; its size is that of its values as they came in, before any compression, which is
//! what decides how much a search for another attribute has to read past. Distinct values are counted up to [`DISTINCT`].

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::Message as _;
use serde::Serialize;
use storage::block::{Meta, Projection, Reader, Trace};

use super::{bucket, bytes, count, print, print_json, progress, share, table, text};

/// Distinct values of an attribute that are counted.
const DISTINCT: usize = 10_000;

/// Attributes that have a column of their own in vParquet4 and before, whatever the settings.
const FIXED: [(&str, &str); 12] = [
    ("resource", "service.name"),
    ("resource", "cluster"),
    ("resource", "namespace"),
    ("resource", "pod"),
    ("resource", "container"),
    ("resource", "k8s.cluster.name"),
    ("resource", "k8s.namespace.name"),
    ("resource", "k8s.pod.name"),
    ("resource", "k8s.container.name"),
    ("span", "http.method"),
    ("span", "http.url"),
    ("span", "http.status_code"),
];

#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// Id of the block, or how it begins
    block: String,
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// Attributes that are shown of each scope
    #[arg(long, default_value_t = 15)]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An attribute of a scope.
#[derive(Debug, Default)]
struct Attribute {
    strings: u64,
    others: u64,
    bytes: u64,
    distinct: HashSet<u64>,
}

/// What was read.
#[derive(Debug, Default)]
struct Analysis {
    traces: u64,
    spans: u64,
    largest_trace: u64,
    attributes: BTreeMap<(&'static str, String), Attribute>,
}

/// A line of the answer.
#[derive(Debug, Serialize)]
struct Line {
    scope: &'static str,
    name: String,
    occurrences: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    bytes: u64,
    /// Up to 10,000.
    distinct: usize,
    #[serde(rename = "ownColumn")]
    own_column: bool,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let bucket = command.bucket.open().await?;
    let meta = Arc::new(bucket.block(&command.block).await?);
    let reader = Reader::open(&bucket.store, Arc::clone(&meta)).await.map_err(bucket::chained)?;
    let bar = progress(reader.row_groups() as u64, "reading");
    let mut analysis = Analysis::default();
    for row_group in 0..reader.row_groups() {
        for trace in reader.scan(row_group, Projection::ALL).await.map_err(bucket::chained)? {
            analysis.add(&trace);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let lines = analysis.lines(&meta);
    if command.json {
        return print_json(&serde_json::json!({
            "block": meta.block_id, "tenant": meta.tenant_id, "traces": analysis.traces, "spans": analysis.spans,
            "largestTraceSpans": analysis.largest_trace, "size": meta.size, "attributes": lines,
        }));
    }
    print(&format!(
        "block {}: {} traces, {} spans, {} in the largest; {} stored, {:.1} bytes per span\n",
        meta.block_id,
        count(analysis.traces),
        count(analysis.spans),
        count(analysis.largest_trace),
        bytes(meta.size),
        meta.size as f64 / analysis.spans.max(1) as f64,
    ));
    for scope in ["resource", "scope", "span", "event", "link"] {
        print_scope(scope, &lines, command.top);
    }
    print_suggestion(&lines);
    Ok(())
}

fn print_scope(scope: &str, lines: &[Line], top: usize) {
    let of_scope: Vec<_> = lines.iter().filter(|line| line.scope == scope).collect();
    if of_scope.is_empty() {
        return;
    }
    let total: u64 = of_scope.iter().map(|line| line.bytes).sum();
    let mut rows =
        table(&[&format!("{} ATTRIBUTE", scope.to_uppercase()), "TYPE", ">OCCURRENCES", ">DISTINCT", ">BYTES", ">SHARE", "COLUMN"]);
    for line in of_scope.iter().take(top) {
        rows.add_row([
            line.name.clone(),
            line.kind.to_owned(),
            count(line.occurrences),
            format!("{}{}", if line.distinct >= DISTINCT { "≥" } else { "" }, count(line.distinct as u64)),
            bytes(line.bytes),
            share(line.bytes, total),
            if line.own_column { "own" } else { "" }.to_owned(),
        ]);
    }
    let rest = of_scope.len().saturating_sub(top);
    let more = if rest > 0 { format!("… and {rest} smaller ones; --top shows more\n") } else { String::new() };
    print(&format!("\n{}{more}", text(&rows)));
}

/// The largest attributes that are strings and have no column of their own yet, as the configuration wants them.
fn print_suggestion(lines: &[Line]) {
    let mut text = String::new();
    for scope in ["resource", "span"] {
        let total: u64 = lines.iter().filter(|line| line.scope == scope).map(|line| line.bytes).sum();
        let candidates = lines.iter().filter(|line| line.scope == scope && line.kind == "string" && !line.own_column);
        for line in candidates.filter(|line| line.bytes * 20 >= total).take(10) {
            text.push_str(&format!("      - {{scope: {scope}, name: {}, type: string}}\n", line.name));
        }
    }
    if !text.is_empty() {
        print(&format!(
            "\nattributes with a twentieth of their scope's bytes or more deserve a column of their own:\nstorage:\n  trace:\n    block:\n      parquet_dedicated_columns:\n{text}"
        ));
    }
}

impl Analysis {
    fn add(&mut self, trace: &Trace) {
        self.traces += 1;
        let mut spans = 0;
        for resource in &trace.resource_spans {
            self.attributes("resource", resource.resource.iter().flat_map(|resource| &resource.attributes));
            for scope in &resource.scope_spans {
                self.attributes("scope", scope.scope.iter().flat_map(|scope| &scope.attributes));
                for span in &scope.spans {
                    spans += 1;
                    self.attributes("span", &span.attributes);
                    self.attributes("event", span.events.iter().flat_map(|event| &event.attributes));
                    self.attributes("link", span.links.iter().flat_map(|link| &link.attributes));
                }
            }
        }
        self.spans += spans;
        self.largest_trace = self.largest_trace.max(spans);
    }

    fn attributes<'a>(&mut self, scope: &'static str, attributes: impl IntoIterator<Item = &'a KeyValue>) {
        for KeyValue { key, value, .. } in attributes {
            let entry = self.attributes.entry((scope, key.clone())).or_default();
            let value = value.as_ref().and_then(|value| value.value.as_ref());
            let (size, hash) = match value {
                Some(Value::StringValue(text)) => {
                    entry.strings += 1;
                    (text.len(), hash(text.as_bytes()))
                }
                other => {
                    entry.others += 1;
                    let bytes = AnyValue { value: other.cloned() }.encode_to_vec();
                    (bytes.len(), hash(&bytes))
                }
            };
            entry.bytes += size as u64;
            if entry.distinct.len() < DISTINCT {
                entry.distinct.insert(hash);
            }
        }
    }

    /// All attributes, the largest of each scope first.
    fn lines(&self, meta: &Meta) -> Vec<Line> {
        let own_column = |scope: &str, name: &str| {
            let fixed = if meta.format == "vParquet5" { &FIXED[..1] } else { &FIXED[..] };
            fixed.contains(&(scope, name)) || meta.dedicated_columns.iter().any(|column| column.scope == scope && column.name == name)
        };
        let mut lines: Vec<_> = self
            .attributes
            .iter()
            .map(|((scope, name), attribute)| Line {
                scope,
                name: name.clone(),
                occurrences: attribute.strings + attribute.others,
                kind: match (attribute.strings, attribute.others) {
                    (_, 0) => "string",
                    (0, _) => "other",
                    _ => "mixed",
                },
                bytes: attribute.bytes,
                distinct: attribute.distinct.len(),
                own_column: own_column(scope, name),
            })
            .collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
        lines
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
