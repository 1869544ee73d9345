//! What tools print: tables, numbers for people, JSON for programs.
//!
//! Facts go to the standard output, everything else to the standard error.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Columns of an output that is no terminal.
const WIDTH: usize = 120;

/// Columns that a line may have.
pub(crate) fn width() -> usize {
    if std::io::stdout().is_terminal() { usize::from(console::Term::stdout().size().1) } else { WIDTH }
}

/// Text of a stranger, which must not control the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// An empty table with these headings; those that begin with `>` are for numbers, which stand at the right.
pub(crate) fn table(headings: &[&str]) -> Table {
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
pub(crate) fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Writes text to the standard output; a reader that has gone away is no error.
pub(crate) fn print(text: &str) {
    _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes a line for people to the standard error.
pub(crate) fn remark(text: &str) {
    _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a value as JSON that people can read too.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// A number with separators.
pub(crate) fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// A size in the units that people use.
pub(crate) fn bytes(size: u64) -> String {
    indicatif::BinaryBytes(size).to_string()
}
