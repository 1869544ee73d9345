//! `rubato trace`: one trace straight from a bucket, without a server.

pub(crate) mod waterfall;

use std::{io::Write as _, sync::Arc};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use query::{Engine, Recent, RecentError, engine::TraceRequest};
use storage::{
    blocklist::Blocklist,
    clock::SystemClock,
    id::{Tenant, TraceId},
    recent::{RecentAnswer, RecentPart, RecentTrace},
};

use crate::{bucket, output};

/// Show one trace from the blocks of a bucket
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// The trace, as hexadecimal digits; leading zeros may be left out
    id: String,
    #[command(flatten)]
    bucket: bucket::Arguments,
    /// Print the trace as JSON, as /api/v2/traces does
    #[arg(long)]
    json: bool,
    /// Print every span's attributes, events and links
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
}

/// A bucket has no recent data.
#[derive(Debug)]
struct NothingRecent;

#[async_trait]
impl Recent for NothingRecent {
    async fn trace(&self, _tenant: &Tenant, _id: TraceId) -> Result<RecentAnswer<Vec<RecentPart>>, RecentError> {
        Ok(RecentAnswer::default())
    }

    async fn traces(&self, _tenant: &Tenant) -> Result<RecentAnswer<Vec<RecentTrace>>, RecentError> {
        Ok(RecentAnswer::default())
    }
}

/// Runs the command.
///
/// # Errors
/// The bucket or a block cannot be read, or nothing has the trace.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let id = TraceId::from_hex(&command.id).with_context(|| format!("\"{}\"", command.id))?;
    let bucket = command.bucket.open().await?;
    let blocklist = Blocklist::load(&bucket.store).await.map_err(bucket::chained)?;
    let registry = prometheus::Registry::new();
    let settings = query::Settings::default();
    let engine = Engine::new(settings, bucket.store.clone(), blocklist, Arc::new(NothingRecent), Arc::new(SystemClock), &registry)?;
    let found = engine.trace(&bucket.tenants, TraceRequest { id, range: None }).await.map_err(bucket::chained)?;
    if found.resource_spans.is_empty() {
        bail!("no block of {} has trace {}", bucket.whose(), id.to_hex());
    }
    let mut out = std::io::stdout().lock();
    let text = if command.json {
        let mut json = query::api::trace_json(found.resource_spans);
        json.push(b'\n');
        json
    } else {
        waterfall::draw(id, &found.resource_spans, output::width(), command.verbose).into_bytes()
    };
    // A reader that has gone away is no error.
    _ = out.write_all(&text);
    if found.truncated {
        bail!("the trace is larger than {} bytes and was cut", found.max_bytes);
    }
    Ok(())
}
