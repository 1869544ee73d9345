//! What was written: a YAML document as a tree whose nodes know their lines.
//!
//! ```text
//!  text ──parser events──► Node (scalar as written, list, map) ──► anchors resolved, `<<` merged, duplicate keys reported
//! ```
//!
//! Scalars stay text: what `5m` or `no` means is the schema's decision. Only the first document of a stream is read. Depth and the number of nodes
//! (aliases expand to copies) are bounded, so a hostile file ends in an error.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// How deep blocks may be nested.
const MAX_DEPTH: usize = 100;
/// How many nodes a document may have after its aliases are expanded.
const MAX_NODES: usize = 500_000;

/// A problem of a file, for the list that is reported at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// The line, from 1.
    pub(crate) line: usize,
    /// What is wrong there.
    pub(crate) text: String,
}

impl Problem {
    pub(crate) fn new(line: usize, text: impl Into<String>) -> Self {
        Self { line, text: text.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// A node of the document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The line on which it begins, from 1.
    pub(crate) line: usize,
    /// What it is.
    pub(crate) data: Data,
}

/// The three kinds of node.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// A scalar as written; `plain` when it wasn't quoted.
    Scalar { text: String, plain: bool },
    /// A list.
    Seq(Vec<Node>),
    /// A map, in written order, without duplicates.
    Map(Vec<Entry>),
}

/// A key of a map and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Node,
}

impl Node {
    /// Whether this is an explicit or an empty null.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, plain } if super::scalar::is_null(text, *plain))
    }

    /// The kind in YAML's words, for messages.
    pub(crate) fn tag(&self) -> &'static str {
        match self.data {
            Data::Scalar { .. } => "!!str",
            Data::Seq(_) => "!!seq",
            Data::Map(_) => "!!map",
        }
    }
}

/// Reads the first document of a YAML text. `None` is an empty document.
///
/// # Errors
/// The syntax error, or everything that is wrong with keys and anchors.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, Vec<Problem>> {
    let mut loader = Loader { parser: Parser::new_from_str(text), anchors: HashMap::new(), problems: Vec::new(), nodes: 0 };
    let node = loader.document().map_err(|problem| vec![problem])?;
    if loader.problems.is_empty() { Ok(node) } else { Err(loader.problems) }
}

struct Loader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, (Node, usize)>,
    problems: Vec<Problem>,
    nodes: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(Problem::new(error.marker().line().max(1), error.info())),
            None => Err(Problem::new(1, "unexpected end of the document")),
        }
    }

    fn document(&mut self) -> Result<Option<Node>, Problem> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(None),
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing | Event::DocumentEnd, _) => {}
                (event, span) => {
                    let node = self.node(event, span, 0)?;
                    return Ok(Some(node).filter(|node| !node.is_null()));
                }
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        let line = span.start.line().max(1);
        self.count(line, 1)?;
        if depth > MAX_DEPTH {
            return Err(Problem::new(line, format!("blocks are nested deeper than {MAX_DEPTH}")));
        }
        let before = self.nodes;
        let (anchor, data) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none_or(|tag| tag.suffix != "str");
                (anchor, Data::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                (anchor, Data::Seq(items))
            }
            Event::MappingStart(anchor, _) => (anchor, Data::Map(self.map(depth)?)),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::new(line, "an anchor contains itself"));
                };
                self.count(line, size)?;
                return Ok(node);
            }
            other => return Err(Problem::new(line, format!("unexpected {other:?}"))),
        };
        let node = Node { line, data };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn count(&mut self, line: usize, more: usize) -> Result<(), Problem> {
        self.nodes += more;
        if self.nodes > MAX_NODES { Err(Problem::new(line, format!("the document has more than {MAX_NODES} nodes"))) } else { Ok(()) }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut merges = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => break,
                (event, span) => self.node(event, span, depth + 1)?,
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Data::Scalar { text, plain } = key.data else {
                self.problems.push(Problem::new(key.line, format!("invalid map key: {}", key.tag())));
                continue;
            };
            if plain && text == "<<" {
                merges.push(value);
                continue;
            }
            if let Some(first) = seen.get(&text) {
                self.problems.push(Problem::new(key.line, format!("mapping key \"{text}\" already defined at line {first}")));
                continue;
            }
            seen.insert(text.clone(), key.line);
            entries.push(Entry { key: text, line: key.line, value });
        }
        for merge in merges {
            self.merge(merge, &mut entries, &mut seen);
        }
        Ok(entries)
    }

    /// `<<: *base` or `<<: [*a, *b]`: keys of the map itself win, then those of the earlier base.
    fn merge(&mut self, from: Node, entries: &mut Vec<Entry>, seen: &mut HashMap<String, usize>) {
        match from.data {
            Data::Map(base) => {
                for entry in base {
                    if !seen.contains_key(&entry.key) {
                        seen.insert(entry.key.clone(), entry.line);
                        entries.push(entry);
                    }
                }
            }
            Data::Seq(bases) => bases.into_iter().for_each(|base| self.merge(base, entries, seen)),
            Data::Scalar { .. } => self.problems.push(Problem::new(from.line, "map merge requires map or sequence of maps as the value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short form of the tree: `{a@1: x@1, …}`.
    fn show(node: &Node) -> String {
        match &node.data {
            Data::Scalar { text, plain } => {
                if *plain {
                    text.clone()
                } else {
                    format!("'{text}'")
                }
            }
            Data::Seq(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Data::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|entry| format!("{}@{}: {}", entry.key, entry.line, show(&entry.value))).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    fn check(text: &str, expected: &str) {
        let shown = match parse(text) {
            Ok(Some(node)) => show(&node),
            Ok(None) => "empty".to_owned(),
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn trees() {
        check("", "empty");
        check("# only a comment\n", "empty");
        check("a: 1\nb:\n  - x\n  - 'y'\n", "{a@1: 1, b@2: [x, 'y']}");
        check("---\na:\n---\nb: 2\n", "{a@2: }");
        check(
            "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nseq:\n  <<: [*b, {z: 4, x: 9}]\n",
            "{base@1: {x@1: 1, y@1: 2}, use@2: {y@4: 3, x@1: 1}, seq@5: {x@1: 1, y@1: 2, z@6: 4}}",
        );
        check("a: !!str 5\n", "{a@1: '5'}");
    }

    #[test]
    fn problems() {
        check(
            "a: 1\nb: 2\na: 3\nb: 4\n",
            "line 3: mapping key \"a\" already defined at line 1; line 4: mapping key \"b\" already defined at line 2",
        );
        check("a: &x\n  <<: 5\n", "line 2: map merge requires map or sequence of maps as the value");
        assert!(parse("a: [1, 2\nb: 3\n").is_err());
        assert!(parse("a: *nothing\n").is_err());
        assert!(parse("a: &a [*a]\n").is_err());
    }

    #[test]
    fn bounds() {
        assert!(parse(&format!("{}1{}", "[".repeat(5000), "]".repeat(5000))).is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        let problems = parse(&bomb).expect_err("a billion nodes");
        assert!(problems[0].text.contains("nodes"), "{problems:?}");
    }
}
