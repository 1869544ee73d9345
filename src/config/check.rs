//! A document against a schema: every problem with its line and a hint, and the values of what is right.
//!
//! ```text
//!  Node ──┐
//!         ├─► Checked { settings, problems, notes }
//!  Schema ┘      unknown key → the nearest name beside it, the place it belongs to, or what became of it
//! ```
//!
//! Problems stop the start; notes (a block without content) are logged.

use std::sync::Arc;

use super::{
    document::{Data, Node, Problem},
    scalar::{self, Value},
    schema::{Kind, Leaf, MOVED, Schema, join},
    settings::Settings,
};

/// The outcome of checking a document.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) settings: Settings,
    pub(crate) problems: Vec<Problem>,
    pub(crate) notes: Vec<String>,
}

/// Checks a document. `name` is what the top of the schema is called in messages.
pub(crate) fn check(schema: &Arc<Schema>, node: Option<&Node>, name: &str) -> Checked {
    let mut checker = Checker { schema, name, settings: Settings::new(Arc::clone(schema)), problems: Vec::new(), notes: Vec::new() };
    if let Some(node) = node {
        checker.block("", node);
    }
    checker.problems.sort();
    Checked { settings: checker.settings, problems: checker.problems, notes: checker.notes }
}

struct Checker<'a> {
    schema: &'a Arc<Schema>,
    name: &'a str,
    settings: Settings,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl Checker<'_> {
    /// How a path is called in messages.
    fn label(&self, path: &str) -> String {
        match (self.name, path) {
            ("", "") => "config".to_owned(),
            (name, path) => join(name, path),
        }
    }

    fn problem(&mut self, line: usize, text: String) {
        self.problems.push(Problem::new(line, text));
    }

    fn block(&mut self, path: &str, node: &Node) {
        let Data::Map(entries) = &node.data else {
            if node.is_null() {
                self.notes.push(format!("line {}: block \"{}\" is empty, its defaults are used", node.line, self.label(path)));
            } else {
                let text = format!("cannot unmarshal {} into block {}", describe(node), self.label(path));
                self.problem(node.line, text);
            }
            return;
        };
        for entry in entries {
            let child = join(path, &entry.key);
            // A dot in a written key must not reach over a block border.
            if entry.key.contains('.') || entry.key.is_empty() {
                self.unknown(path, &entry.key, entry.line);
            } else if let Some(leaf) = self.schema.leaf(&child).cloned() {
                self.leaf(&leaf, &entry.value, entry.line);
            } else if self.schema.children(&child).is_some() {
                self.block(&child, &entry.value);
            } else {
                self.unknown(path, &entry.key, entry.line);
            }
        }
    }

    fn leaf(&mut self, leaf: &Leaf, node: &Node, line: usize) {
        let optional = matches!(leaf.kind, Kind::Any | Kind::OptionalBool | Kind::OptionalDuration);
        if node.is_null() {
            if optional {
                self.settings.set(&leaf.path, Value::Null, line);
            } else {
                self.notes.push(format!("line {line}: key \"{}\" has no value, its default is used", self.label(&leaf.path)));
            }
            return;
        }
        match self.value(leaf, node) {
            Ok(value) => self.settings.set(&leaf.path, value, line),
            Err(problems) => self.problems.extend(problems),
        }
    }

    fn value(&mut self, leaf: &Leaf, node: &Node) -> Result<Value, Vec<Problem>> {
        let field = self.label(&leaf.path);
        let wrong = |node: &Node, into: &str| {
            vec![Problem::new(node.line, format!("cannot unmarshal {} into {into} (field {field})", describe(node)))]
        };
        let items = |items: &[Node], kind: Kind| -> Result<Value, Vec<Problem>> {
            let parse = |item: &Node| match &item.data {
                Data::Scalar { text, plain } => {
                    scalar::parse(kind, text, *plain).map_err(|why| vec![Problem::new(item.line, format!("{why} (field {field})"))])
                }
                _ => Err(wrong(item, kind.name())),
            };
            items.iter().map(parse).collect::<Result<_, _>>().map(Value::List)
        };
        match (leaf.kind, &node.data) {
            (Kind::Any, _) => Ok(free(node)),
            (Kind::Strings | Kind::Csv, Data::Seq(nodes)) => items(nodes, Kind::Text),
            (Kind::Floats, Data::Seq(nodes)) => items(nodes, Kind::Float),
            (Kind::TextMap | Kind::BoolMap, Data::Map(entries)) => {
                let kind = if matches!(leaf.kind, Kind::TextMap) { Kind::Text } else { Kind::Bool };
                let parse = |entry: &super::document::Entry| match &entry.value.data {
                    Data::Scalar { text, plain } => scalar::parse(kind, text, *plain)
                        .map(|value| (entry.key.clone(), value))
                        .map_err(|why| vec![Problem::new(entry.line, format!("{why} (field {field}.{})", entry.key))]),
                    _ => Err(wrong(&entry.value, kind.name())),
                };
                entries.iter().map(parse).collect::<Result<_, _>>().map(Value::Map)
            }
            (Kind::List(_), Data::Seq(nodes)) => {
                let schema = leaf.item.as_ref().expect("a list of blocks has the schema of its items");
                let mut problems = Vec::new();
                let mut blocks = Vec::new();
                for (index, node) in nodes.iter().enumerate() {
                    let checked = check(schema, Some(node), &format!("{field}[{index}]"));
                    problems.extend(checked.problems);
                    self.notes.extend(checked.notes);
                    blocks.push(Value::Block(Box::new(checked.settings)));
                }
                if problems.is_empty() { Ok(Value::List(blocks)) } else { Err(problems) }
            }
            (kind, Data::Scalar { text, plain }) => {
                scalar::parse(kind, text, *plain).map_err(|why| vec![Problem::new(node.line, format!("{why} (field {field})"))])
            }
            (kind, _) => Err(wrong(node, kind.name())),
        }
    }

    fn unknown(&mut self, block: &str, key: &str, line: usize) {
        let hint = self.hint(block, key).map_or(String::new(), |hint| format!(" ({hint})"));
        let text = format!("field {key} not found in type {}{hint}", self.label(block));
        self.problem(line, text);
    }

    fn hint(&self, block: &str, key: &str) -> Option<String> {
        let full = join(self.name, &join(block, key));
        if let Some((_, what)) = MOVED.iter().find(|(path, _)| *path == full) {
            return Some((*what).to_owned());
        }
        let siblings = self.schema.children(block)?.iter().map(|path| last(path));
        let nearest = siblings.map(|name| (distance(key, name), name)).min()?;
        if nearest.0 <= 1.max(key.chars().count() / 3) {
            return Some(format!("did you mean \"{}\"?", nearest.1));
        }
        let homes: Vec<&str> = self
            .schema
            .leaves()
            .map(|leaf| leaf.path.as_str())
            .chain(self.schema.blocks())
            .filter(|path| !path.is_empty() && last(path) == key)
            .collect();
        match homes.as_slice() {
            [home] => Some(format!("did you mean \"{home}\"?")),
            [one, two] => Some(format!("did you mean \"{one}\" or \"{two}\"?")),
            _ => None,
        }
    }
}

/// The last name of a path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A node in an error message: its tag, and the text of a scalar.
fn describe(node: &Node) -> String {
    match &node.data {
        Data::Scalar { text, .. } => format!("!!str `{text}`"),
        _ => node.tag().to_owned(),
    }
}

/// A value that no schema describes.
pub(crate) fn free(node: &Node) -> Value {
    match &node.data {
        Data::Scalar { text, plain } => scalar::resolve(text, *plain),
        Data::Seq(items) => Value::List(items.iter().map(free).collect()),
        Data::Map(entries) => Value::Map(entries.iter().map(|entry| (entry.key.clone(), free(&entry.value))).collect()),
    }
}

/// The number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{document, schema};

    fn problems(text: &str) -> Vec<String> {
        let node = document::parse(text).expect("the text is YAML");
        check(&schema::file(), node.as_ref(), "").problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_keys_are_reported_together_with_lines_and_hints() {
        let text = "\
server:
  http_listen_prt: 3200
  log_level: loud
ingester:
  trace_idle_periods: 5s
  block_retention: 3h
  max_block_bytes: -1
  max_block_duration: 5d
compactr: {}
search_enabled: true
storage:
  trace:
    wal:
      encoding: snappy
    pool: 5
    blocklist_poll: [1]
cache:
  caches:
    - roles: [bloom]
      memcache: {}
overrides:
  defaults:
    ingestion_rate_limit_bytes: 5
xyzzy: 1
";
        let expected = [
            "line 2: field http_listen_prt not found in type server (did you mean \"http_listen_port\"?)",
            "line 3: unrecognized log level \"loud\" (one of debug, info, warn, error) (field server.log_level)",
            "line 5: field trace_idle_periods not found in type ingester (did you mean \"trace_idle_period\"?)",
            "line 6: field block_retention not found in type ingester",
            "line 7: cannot unmarshal !!int `-1` into uint (field ingester.max_block_bytes)",
            "line 8: invalid duration \"5d\": unknown unit \"d\" (write days as hours: 24h) (field ingester.max_block_duration)",
            "line 9: field compactr not found in type config (did you mean \"compactor\"?)",
            "line 10: field search_enabled not found in type config (removed: search is always on)",
            "line 14: field encoding not found in type storage.trace.wal (moved to \"storage.trace.wal.v2_encoding\")",
            "line 15: cannot unmarshal !!str `5` into block storage.trace.pool",
            "line 16: cannot unmarshal !!seq into duration (field storage.trace.blocklist_poll)",
            "line 20: field memcache not found in type cache.caches[0] (did you mean \"memcached\"?)",
            "line 23: field ingestion_rate_limit_bytes not found in type overrides.defaults (did you mean \"overrides.ingestion_rate_limit_bytes\"?)",
            "line 24: field xyzzy not found in type config",
        ];
        assert_eq!(problems(text), expected);
    }

    #[test]
    fn empty_blocks_keep_their_defaults() {
        let node = document::parse("compactor:\ningester:\n  max_block_bytes:\n").expect("the text is YAML");
        let checked = check(&schema::file(), node.as_ref(), "");
        assert_eq!(checked.problems, []);
        assert_eq!(
            checked.notes,
            [
                "line 1: block \"compactor\" is empty, its defaults are used",
                "line 3: key \"ingester.max_block_bytes\" has no value, its default is used"
            ]
        );
        assert_eq!(checked.settings.number("ingester.max_block_bytes"), 524_288_000);
    }

    #[test]
    fn a_dotted_key_does_not_reach_into_a_block() {
        assert_eq!(problems("server.log_level: info\n"), ["line 1: field server.log_level not found in type config"]);
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "abc", 3), ("abc", "abc", 0), ("acb", "abc", 1), ("Abd", "abc", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected);
        }
    }
}
