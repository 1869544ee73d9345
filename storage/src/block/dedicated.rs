//! Attributes with a column of their own: the fixed ones of vParquet2 to 4, and the dedicated ones that an operator chooses.
//!
//! ```text
//!  configuration ─ kept ─► meta.json ─ assigned ─► the n-th entry of its scope and type is the leaf StringNN or IntNN of that scope
//! ```
//!
//! Which leaf an entry has follows from the list alone (block-format.md §3.1), so a writer and a reader of the same `meta.json` agree.
//! An entry without a leaf stays in the list and its attribute stays a generic one.

use super::{DedicatedColumn, Format};

/// String attributes of resources with a leaf of their own in vParquet2 to 4, in the order of the leaves (block-format.md §7.2).
/// `service.name`, which has one in all versions, comes before them.
pub(crate) const RESOURCE_LEAVES: [(&str, &str); 8] = [
    ("cluster", "Cluster"),
    ("namespace", "Namespace"),
    ("pod", "Pod"),
    ("container", "Container"),
    ("k8s.cluster.name", "K8sClusterName"),
    ("k8s.namespace.name", "K8sNamespaceName"),
    ("k8s.pod.name", "K8sPodName"),
    ("k8s.container.name", "K8sContainerName"),
];

/// String attributes of spans with a leaf of their own in vParquet2 to 4; `http.status_code` is the third, of integers.
pub(crate) const SPAN_LEAVES: [(&str, &str); 2] = [("http.method", "HttpMethod"), ("http.url", "HttpUrl")];

/// Name of the integer attribute of spans with a leaf of its own in vParquet2 to 4.
pub(crate) const STATUS_CODE: &str = "http.status_code";

/// What a dedicated column belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Resources.
    Resource,
    /// Spans.
    Span,
    /// Events of spans.
    Event,
}

/// An entry of the list that has a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned<'a> {
    /// Name of the attribute.
    pub(crate) name: &'a str,
    pub(crate) scope: Scope,
    /// Whether it holds integers; strings otherwise.
    pub(crate) int: bool,
    /// Long strings that repeat little: without dictionary and bounds.
    pub(crate) blob: bool,
    /// Number of the leaf within its scope and type, from 1.
    pub(crate) number: usize,
    format: Format,
}

impl Assigned<'_> {
    /// Name of the leaf, such as `rs[].Resource.DedicatedAttributes.String01`, with `[]` after it in vParquet5, which has lists there.
    pub(crate) fn leaf(&self) -> String {
        let scope = match self.scope {
            Scope::Resource => "rs[].Resource",
            Scope::Span => "rs[].ss[].Spans[]",
            Scope::Event => "rs[].ss[].Spans[].Events[]",
        };
        let list = if self.format == Format::V5 { "[]" } else { "" };
        format!("{scope}.DedicatedAttributes.{}{list}", self.short())
    }

    /// The last part of that name: `String01`.
    pub(crate) fn short(&self) -> String {
        format!("{}{:02}", if self.int { "Int" } else { "String" }, self.number)
    }
}

/// The entries of `columns` that stand in the `meta.json` of a block (block-format.md §3.1): all in vParquet5, none in vParquet2, and in the
/// others those that may have a leaf there.
pub(crate) fn kept(format: Format, columns: &[DedicatedColumn]) -> Vec<DedicatedColumn> {
    let fixed = |column: &DedicatedColumn| match column.scope.as_str() {
        "resource" => column.name == "service.name" || RESOURCE_LEAVES.iter().any(|(name, _)| *name == column.name),
        "span" => column.name == STATUS_CODE || SPAN_LEAVES.iter().any(|(name, _)| *name == column.name),
        _ => true,
    };
    let kept = |column: &&DedicatedColumn| match format {
        Format::V2 => false,
        Format::V3 | Format::V4 => column.kind == "string" && column.options.is_empty() && !fixed(column),
        Format::V5 => true,
    };
    columns.iter().filter(kept).cloned().collect()
}

/// Strings of a scope that had leaves in the vParquet5 of release 2.10, which wrote longer lists into the meta all the same.
const STRINGS_OF_2_10: usize = 10;

/// The entries of a vParquet5 block's list for which there would be leaves had release 2.10 written it.
pub(crate) fn known_to_2_10(columns: &[DedicatedColumn]) -> Vec<DedicatedColumn> {
    let mut kept: Vec<DedicatedColumn> = Vec::new();
    for column in columns {
        let strings = kept.iter().filter(|other| other.scope == column.scope && other.kind == "string").count();
        if column.kind != "string" || strings < STRINGS_OF_2_10 {
            kept.push(column.clone());
        }
    }
    kept
}

/// The entries of a block's list that have a leaf, in their order.
pub(crate) fn assigned(format: Format, columns: &[DedicatedColumn]) -> Vec<Assigned<'_>> {
    let (strings, ints) = match format {
        Format::V2 => (0, 0),
        Format::V3 | Format::V4 => (10, 0),
        Format::V5 => (20, 5),
    };
    let mut assigned: Vec<Assigned<'_>> = Vec::new();
    for column in columns {
        let (scope, int) = match (column.scope.as_str(), column.kind.as_str()) {
            ("resource", "string") => (Scope::Resource, false),
            ("span", "string") => (Scope::Span, false),
            ("resource", "int") => (Scope::Resource, true),
            ("span", "int") => (Scope::Span, true),
            ("event", "string") if format == Format::V5 => (Scope::Event, false),
            ("event", "int") if format == Format::V5 => (Scope::Event, true),
            _ => continue,
        };
        let number = assigned.iter().filter(|other| (other.scope, other.int) == (scope, int)).count() + 1;
        if number <= if int { ints } else { strings } {
            let blob = !int && column.options.iter().any(|option| option == "blob");
            assigned.push(Assigned { name: &column.name, scope, int, blob, number, format });
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Settings;

    #[test]
    fn the_default_dedicated_columns_are_those_of_tempos_metas() {
        let columns = Settings::default().dedicated_columns;
        let json = |format| serde_json::to_string(&kept(format, &columns)).expect("json");
        let expected = r#"[{"n":"http.request.method"},{"n":"url.path"},{"n":"url.route"},{"n":"server.address"},{"n":"http.route"}]"#;
        assert_eq!((json(Format::V4), json(Format::V3)), (expected.to_owned(), expected.to_owned()));
        assert_eq!(json(Format::V2), "[]");
        assert_eq!(kept(Format::V5, &columns), columns);
    }

    #[test]
    fn leaves_are_numbered_by_scope_and_type_up_to_the_most_that_there_are() {
        let column = |scope: &str, name: &str, kind: &str, options: &[&str]| DedicatedColumn {
            scope: scope.to_owned(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        };
        let mut columns = vec![
            column("span", "a", "string", &[]),
            column("span", "b", "int", &[]),
            column("resource", "a", "string", &["blob"]),
            column("event", "a", "string", &["array"]),
            column("span", "c", "string", &[]),
            column("nonsense", "c", "string", &[]),
            column("span", "d", "double", &[]),
            column("event", "d", "int", &["blob"]),
        ];
        let leaves = |format, columns: &[DedicatedColumn]| -> Vec<(String, String, bool)> {
            assigned(format, columns).iter().map(|a| (a.name.to_owned(), a.leaf(), a.blob)).collect()
        };
        let expect = |all: &[(&str, &str, bool)]| -> Vec<(String, String, bool)> {
            all.iter().map(|&(name, leaf, blob)| (name.to_owned(), leaf.to_owned(), blob)).collect()
        };
        assert_eq!(
            leaves(Format::V5, &columns),
            expect(&[
                ("a", "rs[].ss[].Spans[].DedicatedAttributes.String01[]", false),
                ("b", "rs[].ss[].Spans[].DedicatedAttributes.Int01[]", false),
                ("a", "rs[].Resource.DedicatedAttributes.String01[]", true),
                ("a", "rs[].ss[].Spans[].Events[].DedicatedAttributes.String01[]", false),
                ("c", "rs[].ss[].Spans[].DedicatedAttributes.String02[]", false),
                ("d", "rs[].ss[].Spans[].Events[].DedicatedAttributes.Int01[]", false),
            ])
        );
        let v4 = kept(Format::V4, &columns);
        assert_eq!(
            leaves(Format::V4, &v4),
            expect(&[
                ("a", "rs[].ss[].Spans[].DedicatedAttributes.String01", false),
                ("c", "rs[].ss[].Spans[].DedicatedAttributes.String02", false),
            ])
        );
        assert_eq!(leaves(Format::V2, &columns), []);
        columns.extend((0..30).map(|n| column("span", &format!("more {n}"), "string", &[])));
        columns.extend((0..30).map(|n| column("span", &format!("int {n}"), "int", &[])));
        let count = |format, int: bool| assigned(format, &columns).iter().filter(|a| a.scope == Scope::Span && a.int == int).count();
        assert_eq!((count(Format::V5, false), count(Format::V5, true)), (20, 5));
        assert_eq!((count(Format::V3, false), count(Format::V3, true)), (10, 0));
    }
}
