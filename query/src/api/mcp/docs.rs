//! What language models may read: TraceQL and the configuration, in our own words.

/// A text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document {
    /// `docs-traceql` or `docs-config`, the tool that shows it.
    pub(super) tool: &'static str,
    /// Its name there.
    pub(super) name: &'static str,
    /// Its name as a resource.
    pub(super) uri: &'static str,
    /// What it is about, in a few words.
    pub(super) about: &'static str,
    /// Markdown.
    pub(super) text: &'static str,
}

/// All of them.
pub(super) const DOCUMENTS: [Document; 7] = [
    Document {
        tool: super::tools::DOCS_TRACEQL,
        name: "query",
        uri: "docs://traceql/query",
        about: "TraceQL in one page, and how to go about a question",
        text: include_str!("docs/traceql-query.md"),
    },
    Document {
        tool: super::tools::DOCS_TRACEQL,
        name: "basic",
        uri: "docs://traceql/basic",
        about: "TraceQL: filters, attributes, intrinsics, operators",
        text: include_str!("docs/traceql-basic.md"),
    },
    Document {
        tool: super::tools::DOCS_TRACEQL,
        name: "aggregates",
        uri: "docs://traceql/aggregates",
        about: "TraceQL: count(), avg(), sum(), by() over the spans of a trace",
        text: include_str!("docs/traceql-aggregates.md"),
    },
    Document {
        tool: super::tools::DOCS_TRACEQL,
        name: "structural",
        uri: "docs://traceql/structural",
        about: "TraceQL: parents, children, ancestors, descendants, siblings",
        text: include_str!("docs/traceql-structural.md"),
    },
    Document {
        tool: super::tools::DOCS_TRACEQL,
        name: "metrics",
        uri: "docs://traceql/metrics",
        about: "TraceQL metrics: rates, quantiles, histograms, comparisons over time",
        text: include_str!("docs/traceql-metrics.md"),
    },
    Document {
        tool: super::tools::DOCS_CONFIG,
        name: "config-overview",
        uri: "docs://config/overview",
        about: "How the server is configured",
        text: include_str!("docs/config-overview.md"),
    },
    Document {
        tool: super::tools::DOCS_CONFIG,
        name: "config-reference",
        uri: "docs://config/reference",
        about: "The keys of the configuration that are asked for most",
        text: include_str!("docs/config-reference.md"),
    },
];

/// The documents of a tool.
pub(super) fn of_tool(tool: &str) -> impl Iterator<Item = &'static Document> {
    DOCUMENTS.iter().filter(move |document| document.tool == tool)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traceql;

    /// The queries in fences, and those in tables.
    fn queries(text: &str) -> Vec<String> {
        let mut queries: Vec<String> =
            text.split("```traceql\n").skip(1).filter_map(|rest| rest.split("\n```").next()).map(str::to_owned).collect();
        let cells = text.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2));
        queries.extend(cells.filter(|code| code.starts_with('{')).map(|code| code.replace("\\|", "|")));
        queries
    }

    #[test]
    fn every_query_is_legal() {
        let mut seen = 0;
        for document in DOCUMENTS {
            for query in queries(document.text) {
                let parsed = traceql::parse(&query).unwrap_or_else(|error| panic!("{}: {query}: {error}", document.uri));
                assert!(parsed.metrics().is_none() || matches!(document.name, "metrics" | "query"), "{}: {query}", document.uri);
                assert!(parsed.metrics().is_some() || document.name != "metrics", "{}: {query}", document.uri);
                seen += 1;
            }
        }
        assert!(seen > 35, "{seen} queries");
    }

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = DOCUMENTS.iter().flat_map(|document| [document.name, document.uri]).collect();
        assert_eq!(names.len(), 2 * DOCUMENTS.len());
    }
}
