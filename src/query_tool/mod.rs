//! `rubato query`: asks a running server what Grafana would ask it, and shows the answer to people.
//!
//! | command | asks | shows |
//! |---|---|---|
//! | `search` | `/api/search` | one line per trace, with `--spans` what matched in it |
//! | `trace` | `/api/v2/traces/{id}` | a waterfall |
//! | `tags` | `/api/v2/search/tags` | names of attributes by scope |
//! | `tag-values` | `/api/v2/search/tag/{tag}/values` | values with their types |
//! | `metrics` | `/api/metrics/query_range`, `/api/metrics/query` | a line per series, with a sparkline |
//!
//! The server may be Rubato or Tempo. `--json` prints its answer as it is.

mod metrics;
mod search;
mod server;
mod tags;
mod trace;

use anyhow::{Context as _, bail};
use storage::clock::{Clock as _, SystemClock};

/// Ask a running server: search, traces, attributes, metrics
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Find traces by TraceQL, newest first
    Search(search::Command),
    /// Show one trace as a waterfall
    Trace(trace::Command),
    /// List the names of attributes by scope
    Tags(tags::NamesCommand),
    /// List the values of an attribute, such as resource.service.name
    TagValues(tags::ValuesCommand),
    /// Compute TraceQL metrics, such as '{ status = error } | rate() by (name)'
    Metrics(metrics::Command),
}

/// Runs the command.
///
/// # Errors
/// The server cannot be reached or refuses, or has not what was asked for.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command.what {
        What::Search(command) => search::run(command).await,
        What::Trace(command) => trace::run(command).await,
        What::Tags(command) => tags::names(command).await,
        What::TagValues(command) => tags::values(command).await,
        What::Metrics(command) => metrics::run(command).await,
    }
}

/// When. Times are Unix seconds or RFC 3339, such as 2026-01-31T12:00:00Z.
#[derive(Debug, clap::Args)]
struct Range {
    /// How far to look back from the end, such as 30m, 6h or 2d
    #[arg(long, default_value = "1h", conflicts_with = "start")]
    since: String,
    /// Where to begin: Unix seconds or a time such as 2026-01-31T12:00:00Z
    #[arg(long)]
    start: Option<String>,
    /// Where to end: Unix seconds or a time such as 2026-01-31T12:00:00Z; by default now
    #[arg(long)]
    end: Option<String>,
}

impl Range {
    /// The parameters that say it.
    fn parameters(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let now = SystemClock.now().as_secs() + 1;
        let end = self.end.as_deref().map(seconds).transpose()?.unwrap_or(now);
        let start = match &self.start {
            Some(start) => seconds(start)?,
            None => end.saturating_sub(length(&self.since)?),
        };
        if start >= end {
            bail!("the range begins at {start} and ends at {end}, so there is nothing in it");
        }
        Ok(vec![("start", start.to_string()), ("end", end.to_string())])
    }
}

/// Unix seconds of a time.
fn seconds(text: &str) -> anyhow::Result<u64> {
    let seconds = text.parse().ok().or_else(|| storage::block::time_of_text(text).and_then(|seconds| u64::try_from(seconds).ok()));
    seconds.with_context(|| format!("\"{text}\" is neither Unix seconds nor a time such as 2026-01-31T12:00:00Z"))
}

/// Seconds of a duration in Prometheus' form.
fn length(text: &str) -> anyhow::Result<u64> {
    let wrong = || format!("\"{text}\" is not a duration such as 90s, 30m, 6h, 2d or 1w");
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).with_context(wrong)?;
        let number: u64 = rest[..digits].parse().ok().with_context(wrong)?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let each = match &rest[..unit] {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => bail!(wrong()),
        };
        total = number.checked_mul(each).and_then(|seconds| total.checked_add(seconds)).with_context(wrong)?;
        rest = &rest[unit..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for (text, expected) in [("90s", 90), ("1h30m", 5_400), ("2d", 172_800), ("1w", 604_800)] {
            assert_eq!(length(text).expect("a duration"), expected);
        }
        for text in ["", "5", "h", "1y", "1h5", "99999999999999999999s", "99999999999999999w"] {
            let error = length(text).expect_err("no duration");
            assert!(error.to_string().contains(&format!("\"{text}\" is not a duration")), "{error}");
        }
    }

    #[test]
    fn ranges() {
        let range = |since: &str, start: Option<&str>, end: Option<&str>| {
            Range { since: since.to_owned(), start: start.map(str::to_owned), end: end.map(str::to_owned) }.parameters()
        };
        let expected = vec![("start", "1000".to_owned()), ("end", "4600".to_owned())];
        assert_eq!(range("1h", Some("1000"), Some("4600")).expect("a range"), expected);
        assert_eq!(range("1h", None, Some("1970-01-01T01:16:40Z")).expect("a range"), expected);
        assert!(range("1h", Some("5"), Some("5")).expect_err("empty").to_string().contains("nothing in it"));
        assert!(range("1h", Some("yesterday"), None).expect_err("no time").to_string().contains("\"yesterday\" is neither"));
    }
}
