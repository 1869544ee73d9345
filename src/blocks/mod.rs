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

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use crate::bucket;

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

/// An empty table with these headings; those that begin with `>` are for numbers, which stand at the right.
fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if headings[index].starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table as text, its lines without blanks at their ends.
fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Writes text to the standard output; a reader that has gone away is no error.
fn print(text: &str) {
    _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Prints a value as JSON that people can read too.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// A bar over `steps` steps on the standard error, if that is a terminal.
fn progress(steps: u64, what: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(what.to_owned())
}

/// A number with separators.
fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// A size in the units that people use.
fn bytes(size: u64) -> String {
    indicatif::BinaryBytes(size).to_string()
}

/// A part of a whole in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1}%", part as f64 * 100.0 / whole as f64) }
}

/// Unix seconds as text; `-` where there is no time.
fn time(seconds: i64) -> String {
    if seconds == storage::block::Meta::NO_TIME { "-".to_owned() } else { storage::block::time_text(seconds) }
}
