//! A block format's columns as data: which leaves there are, in what order, how deep they nest and how each is stored.
//!
//! Tempo's readers address leaves by position, so the schema of a version is a text that is never computed: [`of`] parses the message text of
//! a real file, `vparquet2.txt` to `vparquet5.txt`. Only vParquet5 has places in it (`@resource`, `@event`, `@span`) where the groups of the
//! dedicated columns go. Everything else is derived from it:
//!
//! * a *leaf* is a primitive column, named as in the format description: `rs[].ss[].Spans[].Attrs[].Value[]`. vParquet5 has no LIST groups;
//!   its leaves are named as if it had, so that what means the same has the same name in all versions;
//! * a *list* is a repeated group or field. All leaves directly in a list (and not in a list below it) have the same repetition levels, and
//!   the REQUIRED ones the same definition levels too. So levels are kept once per list, not once per leaf.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use parquet::{
    basic::{Repetition, Type as Physical},
    schema::{
        parser::parse_message_type,
        types::{SchemaDescPtr, SchemaDescriptor, Type},
    },
};

use super::{
    DedicatedColumn, Format,
    dedicated::{self, Assigned, Scope},
};

/// How the values of a leaf are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A dictionary per row group, and indices.
    Dictionary,
    /// DELTA_LENGTH_BYTE_ARRAY.
    DeltaLengths,
    /// DELTA_BINARY_PACKED.
    Delta,
    /// PLAIN.
    Plain,
}

/// A primitive column.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Name, such as `rs[].Resource.ServiceName`.
    pub(crate) name: String,
    pub(crate) physical: Physical,
    /// Whether it is annotated as a string, so that its bytes must be UTF-8.
    pub(crate) text: bool,
    pub(crate) layout: Layout,
    /// Number of its list.
    pub(crate) list: usize,
    /// Whether it may be null in an element of its list.
    pub(crate) optional: bool,
    /// Whether the chunk says its smallest and largest value.
    pub(crate) bounds: bool,
}

/// A repeated group, or the row itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    /// Name, such as `rs[].ss[]`; empty for the row.
    pub(crate) name: String,
    /// Repetition level of the second and later elements.
    pub(crate) repetition: u8,
    /// Definition level of an element that is there.
    pub(crate) definition: u8,
}

/// The columns of a version.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) parquet: SchemaDescPtr,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) lists: Vec<List>,
}

impl Schema {
    /// Position of a leaf.
    ///
    /// # Panics
    /// The schema has no such leaf. Names are constants of this crate.
    pub(crate) fn leaf(&self, name: &str) -> usize {
        let found = self.leaves.iter().position(|leaf| leaf.name == name);
        found.unwrap_or_else(|| panic!("schema has no leaf \"{name}\""))
    }

    /// Number of a list.
    ///
    /// # Panics
    /// The schema has no such list. Names are constants of this crate.
    pub(crate) fn list(&self, name: &str) -> usize {
        let found = self.lists.iter().position(|list| list.name == name);
        found.unwrap_or_else(|| panic!("schema has no list \"{name}\""))
    }
}

/// Schemas of vParquet5 that are kept: a bucket has few lists of dedicated columns, but nobody promises that.
const KEPT: usize = 64;

/// The columns of a version. vParquet5 has columns only for the dedicated columns that it is given; the others have room for ten of
/// either scope, used or not. The same arguments give the same schema without building it again.
pub(crate) fn of(format: Format, dedicated: &[DedicatedColumn]) -> Arc<Schema> {
    static FIXED: LazyLock<[Arc<Schema>; 3]> = LazyLock::new(|| {
        let texts = [include_str!("vparquet2.txt"), include_str!("vparquet3.txt"), include_str!("vparquet4.txt")];
        texts.map(|text| Arc::new(derive(text, &[])))
    });
    static V5: LazyLock<Mutex<HashMap<String, Arc<Schema>>>> = LazyLock::new(Mutex::default);
    match format {
        Format::V2 => Arc::clone(&FIXED[0]),
        Format::V3 => Arc::clone(&FIXED[1]),
        Format::V4 => Arc::clone(&FIXED[2]),
        Format::V5 => {
            let columns = dedicated::assigned(format, dedicated);
            let blobs: Vec<_> = columns.iter().filter(|column| column.blob).map(Assigned::leaf).collect();
            let text = with_dedicated(&columns);
            let key = format!("{text}{blobs:?}");
            if let Some(known) = V5.lock().get(&key) {
                return Arc::clone(known);
            }
            let schema = Arc::new(derive(&text, &blobs));
            let mut known = V5.lock();
            if known.len() >= KEPT {
                known.clear();
            }
            Arc::clone(known.entry(key).or_insert(schema))
        }
    }
}

/// The message text of vParquet5 with the groups of these columns. Strings come before integers; a scope without columns has no group.
fn with_dedicated(columns: &[Assigned<'_>]) -> String {
    let mut text = String::new();
    for line in include_str!("vparquet5.txt").lines() {
        let scope = match line {
            "@resource" => Scope::Resource,
            "@event" => Scope::Event,
            "@span" => Scope::Span,
            line => {
                text.push_str(line);
                text.push('\n');
                continue;
            }
        };
        let mut fields: Vec<_> = columns.iter().filter(|column| column.scope == scope).collect();
        if fields.is_empty() {
            continue;
        }
        fields.sort_by_key(|column| column.int);
        text.push_str("REQUIRED group DedicatedAttributes {\n");
        for field in fields {
            let (kind, logical) = if field.int { ("INT64", "INTEGER(64,true)") } else { ("BYTE_ARRAY", "STRING") };
            // Writing into a string cannot fail.
            let _ = writeln!(text, "REPEATED {kind} {} ({logical});", field.short());
        }
        text.push_str("}\n");
    }
    text
}

/// What a Parquet encoding Tempo gives a leaf (block-format.md §7), with four liberties: names of services and events have dictionaries in
/// all versions, counts are deltas in all versions, and starts and durations of spans are plain. Their differences jump with every trace, so
/// that as deltas they are larger than compressed words, and are read more slowly. Values that have no leaf are plain, too: where there are
/// none, their pages are those of the other leaves without values, and a [file](super::file) has them once.
fn layout(name: &str, physical: Physical, blob: bool) -> Layout {
    const TEXTS: [&str; 9] =
        ["TraceID", "TraceIDText", "SpanID", "ParentSpanID", "TraceState", "StatusMessage", "ValueKVList", "ValueArray", "Links"];
    let last = name.rsplit('.').next().unwrap_or(name);
    match physical {
        Physical::BYTE_ARRAY if last == "ValueUnsupported" => Layout::Plain,
        Physical::BYTE_ARRAY if blob || TEXTS.contains(&last) || name.ends_with("Events[].Attrs[].Value") => Layout::DeltaLengths,
        Physical::BYTE_ARRAY => Layout::Dictionary,
        Physical::INT32 | Physical::INT64 => {
            let attribute = matches!(last, "ValueInt" | "ValueInt[]" | "HttpStatusCode") || name.contains(".DedicatedAttributes.");
            let time = matches!(name, "rs[].ss[].Spans[].StartTimeUnixNano" | "rs[].ss[].Spans[].DurationNano");
            if attribute || time { Layout::Plain } else { Layout::Delta }
        }
        _ => Layout::Plain,
    }
}

/// Leaves whose bounds let a reader pass over a row group. Not durations: Tempo compares unsigned bounds as signed numbers.
fn bounds(name: &str) -> bool {
    matches!(name, "TraceID" | "StartTimeUnixNano" | "EndTimeUnixNano" | "rs[].ss[].Spans[].StartTimeUnixNano")
}

/// The schema of a message text.
fn derive(text: &str, blobs: &[String]) -> Schema {
    let message = parse_message_type(text).expect("the texts of the versions are schemas");
    let lists = vec![List { name: String::new(), repetition: 0, definition: 0 }];
    let mut walk = Walk { blobs, leaves: Vec::new(), lists };
    for field in message.get_fields() {
        walk.visit(field, "", 0, 0);
    }
    Schema { leaves: walk.leaves, lists: walk.lists, parquet: Arc::new(SchemaDescriptor::new(Arc::new(message))) }
}

/// A walk over the tree of a schema.
struct Walk<'a> {
    blobs: &'a [String],
    leaves: Vec<Leaf>,
    lists: Vec<List>,
}

impl Walk<'_> {
    /// `above` is the name and `list` the list of what the node is in, `optionals` the optional groups between that list and the node.
    fn visit(&mut self, node: &Type, above: &str, list: usize, optionals: u8) {
        let info = node.get_basic_info();
        let is = |repetition| info.has_repetition() && info.repetition() == repetition;
        let mut name = match info.name() {
            // What annotations of lists and maps add to a path.
            "list" => format!("{above}[]"),
            "key_value" => format!("{above}{{}}"),
            "element" if above.ends_with("[]") => above.to_owned(),
            own if above.is_empty() => own.to_owned(),
            own => format!("{above}.{own}"),
        };
        let (mut list, mut optionals) = (list, optionals + u8::from(is(Repetition::OPTIONAL)));
        if is(Repetition::REPEATED) {
            if !name.ends_with(['}', ']']) {
                name.push_str("[]");
            }
            let upper = &self.lists[list];
            let (repetition, definition) = (upper.repetition + 1, upper.definition + optionals + 1);
            self.lists.push(List { name: name.clone(), repetition, definition });
            (list, optionals) = (self.lists.len() - 1, 0);
        }
        match node {
            Type::PrimitiveType { physical_type, .. } => {
                let blob = self.blobs.contains(&name);
                self.leaves.push(Leaf {
                    layout: layout(&name, *physical_type, blob),
                    bounds: bounds(&name),
                    physical: *physical_type,
                    text: info.logical_type_ref().is_some() && *physical_type == Physical::BYTE_ARRAY,
                    list,
                    optional: optionals > 0,
                    name,
                });
            }
            Type::GroupType { fields, .. } => {
                for field in fields {
                    self.visit(field, &name, list, optionals);
                }
            }
        }
    }
}

/// Why a file's leaves are not those of `schema`, if so. Additional leaves at the end do no harm.
pub(crate) fn difference(schema: &Schema, file: &SchemaDescriptor) -> Option<String> {
    for (index, leaf) in schema.leaves.iter().enumerate() {
        if index >= file.num_columns() {
            return Some(format!("leaf {index} \"{}\" is missing", leaf.name));
        }
        let (ours, theirs) = (schema.parquet.column(index), file.column(index));
        let same = ours.physical_type() == theirs.physical_type()
            && ours.max_def_level() == theirs.max_def_level()
            && ours.max_rep_level() == theirs.max_rep_level()
            && ours.path() == theirs.path();
        if !same {
            return Some(format!("leaf {index} is \"{}\" and should be \"{}\"", theirs.path(), leaf.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::block::{Meta, fixtures};

    fn dedicated_of_main() -> Option<Vec<DedicatedColumn>> {
        let path = fixtures::root()?.join("vParquet5/fixture-tenant/5a000000-0000-4000-8000-0000000000aa/meta.json");
        Some(Meta::from_json(&std::fs::read(path).expect("meta")).expect("meta").dedicated_columns)
    }

    #[test]
    fn the_schemas_are_those_of_tempo() {
        let counts = |format| {
            let schema = of(format, &[]);
            (schema.leaves.len(), schema.lists.len())
        };
        assert_eq!(Format::ALL.map(counts), [(58, 8), (76, 8), (103, 32), (78, 32)]);
        let Some(root) = fixtures::root() else { return };
        let fixture = |name: &str| {
            let text = std::fs::read_to_string(root.join("schema").join(name)).expect("schema");
            SchemaDescriptor::new(Arc::new(parse_message_type(&text).expect("fixture parses")))
        };
        for (name, schema) in [
            ("vParquet2.txt", of(Format::V2, &[])),
            ("vParquet3.txt", of(Format::V3, &[])),
            ("vParquet4.txt", of(Format::V4, &[])),
            ("vParquet5.no-dedicated.txt", of(Format::V5, &[])),
            ("vParquet5.main.txt", of(Format::V5, &dedicated_of_main().expect("fixtures"))),
        ] {
            assert_eq!(schema.parquet.root_schema(), fixture(name).root_schema(), "{name}");
            assert_eq!(difference(&schema, &fixture(name)), None, "{name}");
        }
        assert!(difference(&of(Format::V4, &[]), &fixture("vParquet3.txt")).expect("v3 is not v4").contains("leaf 7"));
    }

    #[test]
    fn equal_arguments_share_a_schema() {
        let column = |name: &str, options: &[&str]| DedicatedColumn {
            scope: "span".to_owned(),
            name: name.to_owned(),
            kind: "string".to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let (a, b) = (of(Format::V5, &[column("a", &[])]), of(Format::V5, &[column("b", &[])]));
        assert!(Arc::ptr_eq(&a, &b), "names are not part of a schema");
        let blob = of(Format::V5, &[column("a", &["blob"])]);
        assert_eq!(a.parquet.root_schema(), blob.parquet.root_schema());
        let leaf = "rs[].ss[].Spans[].DedicatedAttributes.String01[]";
        assert_eq!((a.leaves[a.leaf(leaf)].layout, blob.leaves[blob.leaf(leaf)].layout), (Layout::Dictionary, Layout::DeltaLengths));
        assert!(Arc::ptr_eq(&of(Format::V4, &[]), &of(Format::V4, &[column("a", &[])])));
        // More lists than are kept do no harm.
        for count in 0..2 * KEPT {
            let flags: Vec<_> = (0..8).map(|bit| column("a", if count >> bit & 1 == 1 { &["blob"] } else { &[] })).collect();
            assert_eq!(of(Format::V5, &flags).leaves.len(), 78 + 8);
        }
    }

    /// The tables of the format description: position, name, type, levels, encoding.
    #[test]
    fn leaves_are_those_of_the_tables_of_the_format_description() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/spec/block-format.md"));
        if !path.exists() {
            eprintln!("skipped: no {}", path.display());
            return;
        }
        let text = std::fs::read_to_string(path).expect("format description");
        for (format, heading) in [(Format::V2, "### 7.1"), (Format::V3, "### 7.3"), (Format::V4, "### 7.4"), (Format::V5, "### 7.5")] {
            let schema = of(format, &[]);
            let start = text.find(heading).expect("section") + heading.len();
            let section = text[start..].split("\n#").next().expect("section");
            let mut position = 0;
            for line in
                section.lines().filter(|line| line.strip_prefix("| ").is_some_and(|row| row.starts_with(|c: char| c.is_ascii_digit())))
            {
                let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
                let [_, name, kind, definition, repetition, _, encoding] = cells[..] else { panic!("row \"{line}\"") };
                // "String01 … 10" stands for ten rows.
                let names = match name.split_once("01 … ") {
                    Some((prefix, last)) => (1..=last.parse().expect("a count")).map(|n: usize| format!("{prefix}{n:02}")).collect(),
                    None => vec![name.to_owned()],
                };
                for name in names {
                    let leaf = &schema.leaves[position];
                    let list = &schema.lists[leaf.list];
                    let ours = if format == Format::V5 { leaf.name.replace("[]", "") } else { leaf.name.clone() };
                    assert_eq!(ours, name, "leaf {position} of {format}");
                    let physical = match kind {
                        "bytes" | "string" => Physical::BYTE_ARRAY,
                        "i64" | "u64" => Physical::INT64,
                        "i32" | "u32" => Physical::INT32,
                        "double" => Physical::DOUBLE,
                        "boolean" => Physical::BOOLEAN,
                        other => panic!("type \"{other}\""),
                    };
                    assert_eq!((leaf.physical, leaf.text), (physical, kind == "string"), "{name}");
                    assert_eq!((list.definition + u8::from(leaf.optional)).to_string(), definition, "{name}");
                    assert_eq!(list.repetition.to_string(), repetition, "{name}");
                    let layout = match encoding {
                        "DICT" => Layout::Dictionary,
                        "DLBA" if name == "ServiceStats{}.key" || name.ends_with("Events[].Name") => Layout::Dictionary,
                        // Another: where they are null, as most are, plain pages are those of other leaves.
                        "DLBA" if name.ends_with("ValueUnsupported") => Layout::Plain,
                        "DLBA" => Layout::DeltaLengths,
                        // A liberty of ours: see `layout`.
                        "DBP" if matches!(leaf.name.as_str(), "rs[].ss[].Spans[].StartTimeUnixNano" | "rs[].ss[].Spans[].DurationNano") => {
                            Layout::Plain
                        }
                        "DBP" => Layout::Delta,
                        "PLAIN" if name.contains("Dropped") => Layout::Delta,
                        "PLAIN" => Layout::Plain,
                        other => panic!("encoding \"{other}\""),
                    };
                    assert_eq!(leaf.layout, layout, "{name}");
                    position += 1;
                }
            }
            assert_eq!(position, schema.leaves.len(), "{format}");
        }
    }

    #[test]
    fn levels_are_those_that_the_parquet_crate_derives() {
        let full: Vec<_> = ["resource", "span", "event"]
            .into_iter()
            .flat_map(|scope| ["string", "int"].map(|kind| (scope, kind)))
            .map(|(scope, kind)| DedicatedColumn {
                scope: scope.to_owned(),
                name: "a".to_owned(),
                kind: kind.to_owned(),
                options: Vec::new(),
            })
            .collect();
        for format in Format::ALL {
            let schema = of(format, &full);
            for (position, (leaf, column)) in schema.leaves.iter().zip(schema.parquet.columns()).enumerate() {
                let list = &schema.lists[leaf.list];
                assert_eq!(i16::from(list.definition + u8::from(leaf.optional)), column.max_def_level(), "{}", leaf.name);
                assert_eq!(i16::from(list.repetition), column.max_rep_level(), "{}", leaf.name);
                assert_eq!(schema.leaf(&leaf.name), position);
            }
        }
    }
}
