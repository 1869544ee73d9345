//! `rubato blocks rewrite`: a block in another version of the format, or with other dedicated columns.
//!
//! The new block takes the old one's place as the output of a compaction does: its objects, its `meta.json`, and then the mark on the old
//! one, under a claim that keeps compactors away. Whatever goes wrong on the way, the spans are in one live block.

use std::sync::Arc;

use anyhow::bail;
use storage::{
    block::{self, Format, Meta, Settings},
    clock::SystemClock,
    compactor,
    id::BlockId,
};

use super::{bucket, bytes, count, print, progress};

#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// Ids of the blocks, or how they begin
    #[arg(required = true)]
    blocks: Vec<String>,
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// The version to write: vParquet2, vParquet3, vParquet4 or vParquet5; by default the block's own
    #[arg(long, value_name = "VERSION")]
    to: Option<Format>,
    /// Take the dedicated columns from the configuration (the default ones without -c); by default they stay as they are
    #[arg(long)]
    dedicated_columns: bool,
    /// Keep the old block live; its spans are then in two blocks
    #[arg(long)]
    keep: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    if command.to.is_none() && !command.dedicated_columns {
        bail!("say what is to change: --to VERSION, --dedicated-columns, or both");
    }
    let bucket = command.bucket.open().await?;
    // All are looked up before the first is touched.
    let mut sources = Vec::new();
    for text in &command.blocks {
        let meta = Arc::new(bucket.block(text).await?);
        if !sources.contains(&meta) {
            sources.push(meta);
        }
    }
    for source in sources {
        let Ok(own) = source.format.parse::<Format>() else {
            bail!("block {} has the format \"{}\", which is not supported", source.block_id, source.format);
        };
        let version = command.to.unwrap_or(own);
        let dedicated_columns =
            if command.dedicated_columns { bucket.settings.dedicated_columns.clone() } else { source.dedicated_columns.clone() };
        let settings = Settings { version, dedicated_columns, ..bucket.settings.clone() };
        if version == own && settings.columns_kept() == source.dedicated_columns {
            print(&format!("block {} is {own} with these dedicated columns already\n", source.block_id));
            continue;
        }
        let lost = block::losses(own, version, !settings.columns_kept().is_empty());
        let lost = if lost.is_empty() { String::new() } else { format!("  {version} does not keep: {}\n", lost.join("; ")) };
        if command.dry_run {
            if !command.keep {
                compactor::check(&bucket.store, &source).await.map_err(bucket::chained)?;
            }
            let fate = if command.keep { "and the old block kept" } else { "and the old block marked as compacted" };
            print(&format!("block {} ({}) would be written as {version}, {fate}\n{lost}", source.block_id, facts(&source)));
            continue;
        }
        let meta = rewrite(&bucket, &source, &settings, command.keep).await?;
        print(&format!("block {} ({})\n  is now {} ({})\n{lost}", source.block_id, facts(&source), meta.block_id, facts(&meta)));
        if command.keep {
            print("  the old block is live too: its spans are in two blocks\n");
        }
    }
    Ok(())
}

/// Writes a block again and puts the new one in its place, or beside it.
async fn rewrite(bucket: &bucket::Bucket, source: &Arc<Meta>, settings: &Settings, keep: bool) -> anyhow::Result<Meta> {
    let output = BlockId::new_v4();
    let bar = progress(u64::from(source.total_records), "rewriting");
    let write = block::rewrite(&bucket.store, source, output, settings, |row_groups| bar.set_position(row_groups as u64));
    let done = if keep {
        let meta = write.await.map_err(bucket::chained)?;
        bucket.store.publish(&meta).await.map_err(bucket::chained)?;
        Ok(meta)
    } else {
        let patience = compactor::Settings::default().claim_timeout;
        compactor::replace(&bucket.store, source, output, patience, &SystemClock, write).await.map_err(bucket::chained)
    };
    bar.finish_and_clear();
    done
}

fn facts(meta: &Meta) -> String {
    format!("{}, {} traces, {}", meta.format, count(meta.total_objects), bytes(meta.size))
}
