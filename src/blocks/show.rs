//! `rubato blocks show`.

use serde::Serialize;
use storage::block::{ColumnFacts, Meta, Reader};

use super::{bucket, bytes, count, print, print_json, share, table, text, time};

#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// Id of the block, or how it begins
    block: String,
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// Every column, not only the largest
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Columns that are shown without `--all`.
const LARGEST: usize = 25;

#[derive(Debug, Serialize)]
struct Shown {
    meta: Meta,
    #[serde(rename = "createdBy")]
    created_by: Option<String>,
    #[serde(rename = "rowGroups")]
    row_groups: Vec<RowGroup>,
    columns: Vec<ColumnFacts>,
}

#[derive(Debug, Serialize)]
struct RowGroup {
    traces: u64,
    bytes: u64,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let bucket = command.bucket.open().await?;
    let meta = bucket.block(&command.block).await?;
    let reader = Reader::open(&bucket.store, std::sync::Arc::new(meta.clone())).await.map_err(bucket::chained)?;
    let row_groups = reader.row_group_sizes().into_iter().map(|(traces, bytes)| RowGroup { traces, bytes }).collect();
    let mut shown = Shown { meta, created_by: reader.created_by().map(str::to_owned), row_groups, columns: reader.column_facts() };
    shown.columns.sort_by_key(|leaf| std::cmp::Reverse(leaf.compressed));
    if command.json { print_json(&shown) } else { print_text(&shown, command.all) }
}

fn print_text(shown: &Shown, all: bool) -> anyhow::Result<()> {
    let meta = &shown.meta;
    let spans = shown.columns.iter().find(|leaf| leaf.name.ends_with("Spans.SpanID")).map_or(0, |leaf| leaf.values);
    let mut facts = Vec::new();
    for (name, value) in [
        ("tenant", meta.tenant_id.to_string()),
        ("block", meta.block_id.to_string()),
        ("format", meta.format.clone()),
        ("written by", shown.created_by.clone().unwrap_or_else(|| "-".to_owned())),
        ("time", format!("{} to {}", time(meta.start_time), time(meta.end_time))),
        ("traces", count(meta.total_objects)),
        ("spans", format!("{} at most", count(spans))),
        ("size", format!("{}, footer {}", bytes(meta.size), bytes(meta.footer_size.into()))),
        ("compaction", format!("level {}, {} inputs known", meta.compaction_level, meta.compacted_from.len())),
        ("replication factor", meta.replication_factor.to_string()),
        ("bloom shards", meta.bloom_shards.to_string()),
        (
            "dedicated columns",
            match meta.dedicated_columns.iter().map(|column| format!("{}.{}", column.scope, column.name)).collect::<Vec<_>>() {
                columns if columns.is_empty() => "none".to_owned(),
                columns => columns.join(", "),
            },
        ),
    ] {
        facts.push(format!("{name:<20}{value}\n"));
    }
    let mut groups = table(&[">ROW GROUP", ">TRACES", ">SIZE"]);
    for (number, group) in shown.row_groups.iter().enumerate() {
        groups.add_row([number.to_string(), count(group.traces), bytes(group.bytes)]);
    }
    let mut columns = table(&["COLUMN", "CODEC", "ENCODING", ">VALUES", ">SIZE", ">SHARE", ">UNCOMPRESSED"]);
    let total: u64 = shown.columns.iter().map(|leaf| leaf.compressed).sum();
    let shown_columns = if all { shown.columns.len() } else { LARGEST };
    for leaf in shown.columns.iter().take(shown_columns) {
        columns.add_row([
            leaf.name.clone(),
            leaf.codec.clone(),
            leaf.encodings.clone(),
            count(leaf.values),
            bytes(leaf.compressed),
            share(leaf.compressed, total),
            bytes(leaf.uncompressed),
        ]);
    }
    let rest = shown.columns.len().saturating_sub(shown_columns);
    let more = if rest > 0 { format!("… and {rest} smaller columns; --all shows them\n") } else { String::new() };
    print(&format!("{}\n{}\n{}{more}", facts.concat(), text(&groups), text(&columns)));
    Ok(())
}
