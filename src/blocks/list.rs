//! `rubato blocks list`.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use storage::block::Meta;

use super::{bucket, bytes, count, print, print_json, table, text, time};

/// Metas read at a time.
const CONCURRENCY: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Command {
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// Also those that were compacted or retired and wait to be deleted
    #[arg(long)]
    compacted: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A block of the list. In JSON its description and, of a compacted one, since when it is.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    meta: Meta,
    #[serde(rename = "compactedTime", skip_serializing_if = "Option::is_none")]
    compacted: Option<String>,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let bucket = command.bucket.open().await?;
    let mut entries: Vec<_> = bucket.blocks().await?.into_iter().map(|meta| Entry { meta, compacted: None }).collect();
    if command.compacted {
        for tenant in &bucket.tenants {
            let listing = bucket.store.listing(tenant).await.map_err(bucket::chained)?;
            let gone = listing.compacted.into_iter().filter(|(id, _)| !listing.live.contains(id));
            let read = gone.map(|(id, at)| {
                let store = &bucket.store;
                async move { store.compacted_meta(tenant, id).await.map(|meta| meta.map(|meta| (meta, at))) }
            });
            let read: Vec<_> = stream::iter(read.collect::<Vec<_>>()).buffered(CONCURRENCY).try_collect().await.map_err(bucket::chained)?;
            entries.extend(read.into_iter().flatten().map(|(meta, at)| Entry { meta, compacted: Some(time(at)) }));
        }
    }
    if command.json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        print(&format!("no blocks of {}\n", bucket.whose()));
        return Ok(());
    }
    let mut rows =
        table(&["TENANT", "BLOCK", "FORMAT", ">LEVEL", ">RF", "START", "END", ">TRACES", ">SIZE", ">ROW GROUPS", ">BLOOMS", "COMPACTED"]);
    for Entry { meta, compacted } in &entries {
        rows.add_row([
            meta.tenant_id.to_string(),
            meta.block_id.to_string(),
            meta.format.clone(),
            meta.compaction_level.to_string(),
            meta.replication_factor.to_string(),
            time(meta.start_time),
            time(meta.end_time),
            count(meta.total_objects),
            bytes(meta.size),
            meta.total_records.to_string(),
            meta.bloom_shards.to_string(),
            compacted.clone().unwrap_or_default(),
        ]);
    }
    let live = entries.iter().filter(|entry| entry.compacted.is_none());
    let (blocks, traces, size) =
        live.fold((0, 0, 0), |(blocks, traces, size), Entry { meta, .. }| (blocks + 1, traces + meta.total_objects, size + meta.size));
    print(&format!("{}\n{} live blocks, {} traces, {}\n", text(&rows), count(blocks), count(traces), bytes(size)));
    Ok(())
}
