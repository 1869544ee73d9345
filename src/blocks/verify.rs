//! `rubato blocks verify`.

use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;
use storage::block::{self, Verified};

use super::{bucket, bytes, count, print, print_json, progress, table, text};

#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// Ids of the blocks, or how they begin; all live blocks if none is named
    blocks: Vec<String>,
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is known of a block after reading it.
#[derive(Debug, Serialize)]
struct Line {
    tenant: String,
    block: String,
    format: String,
    size: u64,
    traces: u64,
    spans: u64,
    #[serde(rename = "repeatedSpans")]
    repeated: u64,
    problems: Vec<String>,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let bucket = command.bucket.open().await?;
    let mut metas = Vec::new();
    for text in &command.blocks {
        metas.push(bucket.block(text).await?);
    }
    if command.blocks.is_empty() {
        metas = bucket.blocks().await?;
    }
    let bar = progress(metas.len() as u64, "verifying");
    let mut lines = Vec::with_capacity(metas.len());
    for meta in metas {
        let verified = match block::verify(&bucket.store, Arc::new(meta.clone())).await {
            Ok(verified) => verified,
            Err(error) => Verified { problems: vec![block::chain(&error)], ..Verified::default() },
        };
        let Verified { traces, spans, repeated, problems } = verified;
        let (tenant, block) = (meta.tenant_id.to_string(), meta.block_id.to_string());
        lines.push(Line { tenant, block, format: meta.format, size: meta.size, traces, spans, repeated, problems });
        bar.inc(1);
    }
    bar.finish_and_clear();
    if command.json {
        print_json(&lines)?;
    } else {
        let mut rows = table(&["TENANT", "BLOCK", "FORMAT", ">TRACES", ">SPANS", ">REPEATED", ">SIZE", "OUTCOME"]);
        for line in &lines {
            let outcome = if line.problems.is_empty() { "good".to_owned() } else { line.problems.join("; ") };
            let (tenant, block, format) = (line.tenant.clone(), line.block.clone(), line.format.clone());
            rows.add_row([tenant, block, format, count(line.traces), count(line.spans), count(line.repeated), bytes(line.size), outcome]);
        }
        print(&text(&rows));
    }
    match lines.iter().filter(|line| !line.problems.is_empty()).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} blocks are not good", lines.len()),
    }
}
