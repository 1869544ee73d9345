//! What the leaves of a version are to a merge: how deep they lie, which are computed for a combined row, which tell spans apart.

use std::sync::Arc;

use crate::block::{
    DedicatedColumn, Format,
    schema::{self, Schema},
};

/// Leaves whose values are computed for a combined row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Computed {
    /// Smallest start of the rows.
    Start,
    /// Largest end.
    End,
    /// End less start.
    Duration,
    /// The first of the rows' that is not empty.
    Root,
    /// Sorted names of the services.
    Service,
    /// Spans of each of them.
    ServiceSpans,
    /// Failed spans of each of them.
    ServiceErrors,
    /// Nested set numbers of the spans.
    Left,
    Right,
    Parent,
    Children,
    /// Spans of the scopes.
    ScopeSpans,
}

/// Positions of the leaves that are looked into when rows are combined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked {
    pub(super) span_id: usize,
    pub(super) parent_span_id: usize,
    pub(super) kind: usize,
    pub(super) span_start: usize,
    pub(super) status: usize,
    pub(super) service: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) root_service: usize,
    pub(super) root_span: usize,
}

impl Looked {
    /// Whether this is one of them.
    pub(super) fn has(&self, leaf: usize) -> bool {
        let Self { span_id, parent_span_id, kind, span_start, status, service, start, end, root_service, root_span } = *self;
        [span_id, parent_span_id, kind, span_start, status, service, start, end, root_service, root_span].contains(&leaf)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Roles {
    pub(super) format: Format,
    pub(super) schema: Arc<Schema>,
    pub(super) trace_id: usize,
    pub(super) looked: Looked,
    /// Per leaf: 0 the row, 1 resources, 2 scopes, 3 spans: what it belongs to, at whatever list below.
    pub(super) depth: Vec<u8>,
    /// Per leaf.
    pub(super) computed: Vec<Option<Computed>>,
    /// Per leaf: whether resources (or scopes) that differ in it are different. Counts of dropped attributes do not tell them apart.
    pub(super) telling: Vec<bool>,
}

impl Roles {
    pub(super) fn of(format: Format, dedicated: &[DedicatedColumn]) -> Self {
        let schema = schema::of(format, dedicated);
        let depth = |name: &str| match name {
            name if name.starts_with("rs[].ss[].Spans[].") => 3,
            name if name.starts_with("rs[].ss[].") => 2,
            name if name.starts_with("rs[].") => 1,
            _ => 0,
        };
        let computed = |name: &str| {
            Some(match name {
                "StartTimeUnixNano" => Computed::Start,
                "EndTimeUnixNano" => Computed::End,
                "DurationNano" => Computed::Duration,
                "RootServiceName" | "RootSpanName" => Computed::Root,
                "ServiceStats{}.key" | "ServiceStats[].ServiceName" => Computed::Service,
                "ServiceStats{}.value.SpanCount" | "ServiceStats[].SpanCount" => Computed::ServiceSpans,
                "ServiceStats{}.value.ErrorCount" | "ServiceStats[].ErrorCount" => Computed::ServiceErrors,
                "rs[].ss[].Spans[].NestedSetLeft" => Computed::Left,
                "rs[].ss[].Spans[].NestedSetRight" => Computed::Right,
                "rs[].ss[].Spans[].ParentID" => Computed::Parent,
                "rs[].ss[].Spans[].ChildCount" => Computed::Children,
                "rs[].ss[].SpanCount" => Computed::ScopeSpans,
                _ => return None,
            })
        };
        let names = || schema.leaves.iter().map(|leaf| leaf.name.as_str());
        let depths: Vec<u8> = names().map(depth).collect();
        let computed: Vec<_> = names().map(computed).collect();
        let telling = names()
            .zip(depths.iter().zip(&computed))
            .map(|(name, (depth, computed))| matches!(depth, 1 | 2) && computed.is_none() && !name.ends_with(".DroppedAttributesCount"));
        Self {
            format,
            trace_id: schema.leaf("TraceID"),
            looked: Looked {
                span_id: schema.leaf("rs[].ss[].Spans[].SpanID"),
                parent_span_id: schema.leaf("rs[].ss[].Spans[].ParentSpanID"),
                kind: schema.leaf("rs[].ss[].Spans[].Kind"),
                span_start: schema.leaf("rs[].ss[].Spans[].StartTimeUnixNano"),
                status: schema.leaf("rs[].ss[].Spans[].StatusCode"),
                service: schema.leaf("rs[].Resource.ServiceName"),
                start: schema.leaf("StartTimeUnixNano"),
                end: schema.leaf("EndTimeUnixNano"),
                root_service: schema.leaf("RootServiceName"),
                root_span: schema.leaf("RootSpanName"),
            },
            telling: telling.collect(),
            depth: depths,
            computed,
            schema,
        }
    }

    /// Whether equal resources and scopes of a row are one (block-format.md §8.6).
    pub(super) fn rebatches(&self) -> bool {
        self.format >= Format::V4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_its_roles() {
        for (format, computed) in [(Format::V2, 8), (Format::V3, 8), (Format::V4, 11), (Format::V5, 13)] {
            let roles = Roles::of(format, &[]);
            assert_eq!(roles.computed.iter().flatten().count(), computed, "{format}");
            // The spans' list has repetition level 3 in all versions, and what is below it has more.
            for (leaf, &depth) in roles.schema.leaves.iter().zip(&roles.depth) {
                let list = &roles.schema.lists[leaf.list];
                assert!(list.repetition >= depth && list.definition >= depth, "{}", leaf.name);
            }
            for (list, level) in [("rs[]", 1), ("rs[].ss[]", 2), ("rs[].ss[].Spans[]", 3)] {
                let list = &roles.schema.lists[roles.schema.list(list)];
                assert_eq!((list.repetition, list.definition), (level, level), "{format}");
            }
        }
    }
}
