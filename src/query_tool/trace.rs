//! `rubato query trace`.

use anyhow::{Context as _, bail};
use query::proto::{PartialStatus, TraceByIdResponse};
use storage::id::TraceId;

use super::{seconds, server};
use crate::{
    output::{print, printable, width},
    trace::waterfall,
};

/// Shows one trace.
#[derive(Debug, clap::Args)]
pub(super) struct Command {
    /// The trace, as hexadecimal digits; leading zeros may be left out
    id: String,
    /// Look only into blocks that reach beyond this time: Unix seconds or a time such as 2026-01-31T12:00:00Z
    #[arg(long)]
    start: Option<String>,
    /// Look only into blocks that begin before this time
    #[arg(long)]
    end: Option<String>,
    /// Print every span's attributes, events and links
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    #[command(flatten)]
    server: server::Arguments,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    let id = TraceId::from_hex(&command.id).with_context(|| format!("\"{}\"", command.id))?;
    let time = |text: &Option<String>| {
        anyhow::Ok(text.as_deref().map(seconds).transpose()?.map_or_else(String::new, |seconds| seconds.to_string()))
    };
    let parameters = [("start", time(&command.start)?), ("end", time(&command.end)?)];
    let path = format!("/api/v2/traces/{}", id.to_hex());
    if command.server.json {
        return command.server.print_json(&path, &parameters).await;
    }
    let answer: TraceByIdResponse = command.server.message(&path, &parameters).await?;
    let is_partial = answer.status() == PartialStatus::Partial;
    let spans = answer.trace.map(|trace| trace.resource_spans).unwrap_or_default();
    if spans.is_empty() {
        bail!("the server has no trace {}", id.to_hex());
    }
    print(&waterfall::draw(id, &spans, width(), command.verbose));
    if is_partial {
        bail!("the trace is not whole: {}", printable(&answer.message));
    }
    Ok(())
}
