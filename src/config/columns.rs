//! Columns that attributes have to themselves: `parquet_dedicated_columns` of blocks and of tenants.

use super::{Settings, schema};

/// A column of its own for an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DedicatedColumn {
    /// span, resource or event.
    pub(crate) scope: String,
    /// The attribute.
    pub(crate) name: String,
    /// string or int.
    pub(crate) kind: String,
    /// array, blob.
    pub(crate) options: Vec<String>,
}

/// The columns of `storage.trace.block`: an explicit list replaces the default one.
pub(super) fn dedicated_columns(s: &Settings) -> Vec<DedicatedColumn> {
    let path = "storage.trace.block.parquet_dedicated_columns";
    if s.written(path).is_some() {
        return columns(&s.blocks(path));
    }
    let default = |(scope, kind, name): &(&str, &str, &str)| DedicatedColumn {
        scope: (*scope).to_owned(),
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        options: Vec::new(),
    };
    schema::DEDICATED_COLUMNS.iter().map(default).collect()
}

/// The columns of a list.
pub(super) fn columns(blocks: &[&Settings]) -> Vec<DedicatedColumn> {
    let column = |block: &&Settings| DedicatedColumn {
        scope: block.text("scope").to_owned(),
        name: block.text("name").to_owned(),
        kind: block.text("type").to_owned(),
        options: block.strings("options"),
    };
    blocks.iter().map(column).collect()
}

/// Whether a list of columns is one that a block can have.
pub(super) fn check_columns(blocks: &[&Settings]) -> Result<(), String> {
    let columns = columns(blocks);
    for (index, column) in columns.iter().enumerate() {
        if column.name.is_empty() {
            return Err("a dedicated column has no name".to_owned());
        }
        if !matches!(column.scope.as_str(), "span" | "resource" | "event") {
            return Err(format!("dedicated column \"{}\" has an invalid scope \"{}\"", column.name, column.scope));
        }
        let most = match column.kind.as_str() {
            "string" => 10,
            "int" => 5,
            other => return Err(format!("dedicated column \"{}\" has an invalid type \"{other}\"", column.name)),
        };
        if let Some(option) = column.options.iter().find(|option| !matches!(option.as_str(), "array" | "blob")) {
            return Err(format!("dedicated column \"{}\" has an invalid option \"{option}\"", column.name));
        }
        if columns[..index].iter().any(|other| other.name == column.name && other.scope == column.scope) {
            return Err(format!("dedicated column \"{}\" of scope {} is listed twice", column.name, column.scope));
        }
        if columns.iter().filter(|other| other.scope == column.scope && other.kind == column.kind).count() > most {
            return Err(format!("more than {most} dedicated columns of type {} in scope {}", column.kind, column.scope));
        }
    }
    Ok(())
}
