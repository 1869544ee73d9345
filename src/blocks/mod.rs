//! `rubato blocks`: what an operator wants to know of the blocks in a bucket, and to do with them.
//!
//! | command | does |
//! |---|---|
//! | `list` | one line per block |
//! | `show` | one block: its description, row groups and columns |
//! | `analyse` | which attributes take the room, and which deserve a column of their own |
//! | `verify` | reads every byte of a block and checks it |
//! | `rewrite` | writes a block again, in another version or with other columns |
//!
//! Tables go to the standard output, everything else to the standard error; `--json` prints the same facts for programs. Long work shows
//! a bar on a terminal.

mod analyse;
mod list;
mod rewrite;
mod show;
mod verify;

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    bucket,
    output::{bytes, count, print, print_json, table, text},
};

/// Look at the blocks in a bucket, check them, convert them
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List the blocks of a bucket, newest first
    List(list::Command),
    /// Show what a block says of itself, its row groups and its columns
    Show(show::Command),
    /// Show which attributes take the room in a block, and which deserve a column of their own
    #[command(visible_alias = "analyze")]
    Analyse(analyse::Command),
    /// Read blocks completely and check that everything fits together
    Verify(verify::Command),
    /// Write a block again, in another version or with other dedicated columns, and retire the old one
    Rewrite(rewrite::Command),
}

/// Runs the command.
///
/// # Errors
/// The bucket or a block cannot be read, or a check failed.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command.what {
        What::List(command) => list::run(command).await,
        What::Show(command) => show::run(command).await,
        What::Analyse(command) => analyse::run(command).await,
        What::Verify(command) => verify::run(command).await,
        What::Rewrite(command) => rewrite::run(command).await,
    }
}

/// A bar over `steps` steps on the standard error, if that is a terminal.
fn progress(steps: u64, what: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(what.to_owned())
}

/// A part of a whole in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1}%", part as f64 * 100.0 / whole as f64) }
}

/// Unix seconds as text; `-` where there is no time.
fn time(seconds: i64) -> String {
    if seconds == storage::block::Meta::NO_TIME { "-".to_owned() } else { storage::block::time_text(seconds) }
}
