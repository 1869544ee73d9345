//! Values by key: what a file and the flags say over the defaults of a schema.
//!
//! Only what was written is stored; everything else is looked up in the schema. So "differs from the default" and "was written" are both cheap
//! to ask, and a default can't go out of step with the table it comes from.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    scalar::Value,
    schema::{Leaf, Schema},
};

/// A value and the line it comes from; line 0 is a flag or the embedded defaults.
#[derive(Clone, Debug)]
struct Written {
    value: Value,
    line: usize,
}

/// The values of all keys of a schema.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    schema: Arc<Schema>,
    written: BTreeMap<String, Written>,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.schema.leaves().all(|leaf| other.schema.leaf(&leaf.path).is_some() && self.get(&leaf.path) == other.get(&leaf.path))
    }
}

impl Settings {
    /// All keys at their defaults.
    pub(crate) fn new(schema: Arc<Schema>) -> Self {
        Self { schema, written: BTreeMap::new() }
    }

    /// The schema.
    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    fn leaf(&self, path: &str) -> &Leaf {
        self.schema.leaf(path).unwrap_or_else(|| panic!("the code asks for a key that the schema doesn't have: {path}"))
    }

    /// Writes a key, replacing what was written before.
    pub(crate) fn set(&mut self, path: &str, value: Value, line: usize) {
        self.written.insert(path.to_owned(), Written { value, line });
    }

    /// Takes back what was written.
    pub(crate) fn unset(&mut self, path: &str) -> Option<(Value, usize)> {
        self.written.remove(path).map(|written| (written.value, written.line))
    }

    /// The value of a key, written or default.
    pub(crate) fn get(&self, path: &str) -> &Value {
        self.written.get(path).map_or_else(|| &self.leaf(path).default, |written| &written.value)
    }

    /// What was written for a key.
    pub(crate) fn written(&self, path: &str) -> Option<&Value> {
        self.written.get(path).map(|written| &written.value)
    }

    /// The line on which a key was written; 0 when it wasn't, or not in the file.
    pub(crate) fn line(&self, path: &str) -> usize {
        self.written.get(path).map_or(0, |written| written.line)
    }

    /// The keys that were written, with their leaves.
    pub(crate) fn written_leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.written.keys().filter_map(|path| self.schema.leaf(path))
    }

    /// Whether a key's value is another than its default.
    pub(crate) fn differs(&self, path: &str) -> bool {
        self.written.get(path).is_some_and(|written| written.value != self.leaf(path).default)
    }

    /// Whether any key at or below `block` was written.
    pub(crate) fn any_written(&self, block: &str) -> bool {
        self.written.keys().any(|path| path == block || path.strip_prefix(block).is_some_and(|rest| rest.starts_with('.')))
    }

    /// A boolean; absent ones are false.
    pub(crate) fn flag(&self, path: &str) -> bool {
        matches!(self.get(path), Value::Bool(true))
    }

    /// Text.
    pub(crate) fn text(&self, path: &str) -> &str {
        match self.get(path) {
            Value::Text(text) => text,
            _ => "",
        }
    }

    /// A number that is not negative; negative ones are 0.
    pub(crate) fn number(&self, path: &str) -> u64 {
        unsigned(self.get(path))
    }

    /// The same as a number of things; too large ones are the largest.
    pub(crate) fn count(&self, path: &str) -> usize {
        usize::try_from(self.number(path)).unwrap_or(usize::MAX)
    }

    /// A floating point number.
    pub(crate) fn float(&self, path: &str) -> f64 {
        match self.get(path) {
            Value::Float(value) => *value,
            _ => 0.0,
        }
    }

    /// A duration; negative ones are 0.
    pub(crate) fn duration(&self, path: &str) -> Duration {
        positive_duration(self.get(path))
    }

    /// The same where zero and less mean none.
    pub(crate) fn nonzero(&self, path: &str) -> Option<Duration> {
        Some(self.duration(path)).filter(|duration| !duration.is_zero())
    }

    /// A list of strings.
    pub(crate) fn strings(&self, path: &str) -> Vec<String> {
        strings(self.get(path))
    }

    /// The blocks of a list of blocks.
    pub(crate) fn blocks(&self, path: &str) -> Vec<&Settings> {
        blocks(self.get(path))
    }
}

/// An integer that is not negative.
pub(crate) fn unsigned(value: &Value) -> u64 {
    match value {
        Value::Uint(value) => *value,
        Value::Int(value) => u64::try_from(*value).unwrap_or(0),
        _ => 0,
    }
}

/// A duration that is not negative.
pub(crate) fn positive_duration(value: &Value) -> Duration {
    match value {
        Value::Duration(nanos) => Duration::from_nanos(u64::try_from(*nanos).unwrap_or(0)),
        _ => Duration::ZERO,
    }
}

/// The strings of a list.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::List(items) => {
            items.iter().filter_map(|item| if let Value::Text(text) = item { Some(text.clone()) } else { None }).collect()
        }
        _ => Vec::new(),
    }
}

/// The texts of a map.
pub(crate) fn texts(value: &Value) -> BTreeMap<String, String> {
    let Value::Map(entries) = value else { return BTreeMap::new() };
    let text = |value: &Value| if let Value::Text(text) = value { text.clone() } else { String::new() };
    entries.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// The blocks of a list of blocks.
pub(crate) fn blocks(value: &Value) -> Vec<&Settings> {
    match value {
        Value::List(items) => items.iter().filter_map(|item| if let Value::Block(block) = item { Some(&**block) } else { None }).collect(),
        _ => Vec::new(),
    }
}
