//! A block format's columns as data: which leaves there are, in what order, how deep they nest and how each is stored.
//!
//! Tempo's readers address leaves by position, so the schema of a version is a text that is never computed: [`v4`] parses
//! `vparquet4.txt`, the message text of a real file. Everything else is derived from it:
//!
//! * a *leaf* is a primitive column, named as in the format description: `rs[].ss[].Spans[].Attrs[].Value[]`;
//! * a *list* is a repeated group. All leaves directly in a list (and not in a list below it) have the same repetition levels, and the
//!   REQUIRED ones the same definition levels too. So levels are kept once per list, not once per leaf.

use std::sync::{Arc, LazyLock};

use parquet::{
    basic::{Repetition, Type as Physical},
    schema::{
        parser::parse_message_type,
        types::{SchemaDescPtr, SchemaDescriptor, Type},
    },
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

/// vParquet4 (block-format.md §7.4).
pub(crate) fn v4() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let message = parse_message_type(include_str!("vparquet4.txt")).expect("vparquet4.txt is a schema");
        derive(message, layout_v4, bounds_v4)
    });
    &SCHEMA
}

fn layout_v4(name: &str, physical: Physical) -> Layout {
    let last = name.rsplit('.').next().unwrap_or(name);
    match physical {
        Physical::BYTE_ARRAY => match (name, last) {
            ("TraceID" | "TraceIDText" | "ServiceStats{}.key", _) => Layout::DeltaLengths,
            (_, "ValueUnsupported" | "SpanID" | "ParentSpanID" | "TraceState" | "StatusMessage" | "TraceID") => Layout::DeltaLengths,
            _ => Layout::Dictionary,
        },
        Physical::INT32 | Physical::INT64 if last != "ValueInt[]" && last != "HttpStatusCode" => Layout::Delta,
        _ => Layout::Plain,
    }
}

/// Leaves whose bounds let a reader pass over a row group. Not durations: Tempo compares unsigned bounds as signed numbers.
fn bounds_v4(name: &str) -> bool {
    matches!(name, "TraceID" | "StartTimeUnixNano" | "EndTimeUnixNano" | "rs[].ss[].Spans[].StartTimeUnixNano")
}

fn derive(message: Type, layout: fn(&str, Physical) -> Layout, bounds: fn(&str) -> bool) -> Schema {
    let mut leaves = Vec::new();
    let mut lists = vec![List { name: String::new(), repetition: 0, definition: 0 }];
    for field in message.get_fields() {
        visit(field, "", 0, 0, &mut leaves, &mut lists, layout, bounds);
    }
    Schema { parquet: Arc::new(SchemaDescriptor::new(Arc::new(message))), leaves, lists }
}

#[expect(clippy::too_many_arguments, reason = "the state of one recursive walk")]
fn visit(
    node: &Type,
    above: &str,
    list: usize,
    optionals: u8,
    leaves: &mut Vec<Leaf>,
    lists: &mut Vec<List>,
    layout: fn(&str, Physical) -> Layout,
    bounds: fn(&str) -> bool,
) {
    let info = node.get_basic_info();
    let repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    let optional = info.has_repetition() && info.repetition() == Repetition::OPTIONAL;
    let mark = if info.name() == "key_value" { "{}" } else { "[]" };
    let (name, list) = if repeated {
        let name = format!("{above}{mark}");
        let upper = &lists[list];
        let added = List { name: name.clone(), repetition: upper.repetition + 1, definition: upper.definition + optionals + 1 };
        lists.push(added);
        (name, lists.len() - 1)
    } else if info.name() == "element" && above.ends_with("[]") {
        (above.to_owned(), list)
    } else if above.is_empty() {
        (info.name().to_owned(), list)
    } else {
        (format!("{above}.{}", info.name()), list)
    };
    let optionals = if repeated { 0 } else { optionals + u8::from(optional) };
    match node {
        Type::PrimitiveType { physical_type, .. } => leaves.push(Leaf {
            layout: layout(&name, *physical_type),
            bounds: bounds(&name),
            physical: *physical_type,
            text: info.logical_type_ref().is_some() && *physical_type == Physical::BYTE_ARRAY,
            list,
            optional,
            name,
        }),
        Type::GroupType { fields, .. } => {
            for field in fields {
                visit(field, &name, list, optionals, leaves, lists, layout, bounds);
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
    use super::*;
    use crate::block::fixtures;

    #[test]
    fn the_schema_is_that_of_tempo() {
        let schema = v4();
        assert_eq!((schema.leaves.len(), schema.lists.len()), (103, 32));
        let Some(root) = fixtures::root() else { return };
        let text = std::fs::read_to_string(root.join("schema/vParquet4.txt")).expect("schema");
        let fixture = SchemaDescriptor::new(Arc::new(parse_message_type(&text).expect("fixture parses")));
        assert_eq!(schema.parquet.root_schema(), fixture.root_schema());
        assert_eq!(difference(schema, &fixture), None);
        let other = std::fs::read_to_string(root.join("schema/vParquet3.txt")).expect("schema");
        let other = SchemaDescriptor::new(Arc::new(parse_message_type(&other).expect("fixture parses")));
        assert!(difference(schema, &other).expect("v3 is not v4").contains("leaf 7"));
    }

    #[test]
    fn leaves_have_the_names_levels_and_layouts_of_the_format_description() {
        let schema = v4();
        for (position, name, definition, repetition, layout) in [
            (0, "TraceID", 0, 0, Layout::DeltaLengths),
            (7, "ServiceStats{}.key", 1, 1, Layout::DeltaLengths),
            (9, "ServiceStats{}.value.ErrorCount", 1, 1, Layout::Delta),
            (12, "rs[].Resource.Attrs[].Value[]", 3, 3, Layout::Dictionary),
            (16, "rs[].Resource.Attrs[].ValueUnsupported", 3, 2, Layout::DeltaLengths),
            (36, "rs[].Resource.DedicatedAttributes.String10", 2, 1, Layout::Dictionary),
            (47, "rs[].ss[].Spans[].SpanID", 3, 3, Layout::DeltaLengths),
            (62, "rs[].ss[].Spans[].Attrs[].ValueInt[]", 5, 5, Layout::Plain),
            (75, "rs[].ss[].Spans[].Events[].Attrs[].ValueUnsupported", 6, 5, Layout::DeltaLengths),
            (92, "rs[].ss[].Spans[].HttpStatusCode", 4, 3, Layout::Plain),
            (102, "rs[].ss[].Spans[].DedicatedAttributes.String10", 4, 3, Layout::Dictionary),
        ] {
            let leaf = &schema.leaves[position];
            let list = &schema.lists[leaf.list];
            assert_eq!((leaf.name.as_str(), leaf.layout), (name, layout));
            assert_eq!((list.definition + u8::from(leaf.optional), list.repetition), (definition, repetition));
            assert_eq!(schema.leaf(name), position);
        }
        for (leaf, column) in schema.leaves.iter().zip(schema.parquet.columns()) {
            let list = &schema.lists[leaf.list];
            assert_eq!(i16::from(list.definition + u8::from(leaf.optional)), column.max_def_level());
            assert_eq!(i16::from(list.repetition), column.max_rep_level());
        }
    }
}
