//! The leaves and lists of vParquet4 that a row is written to, by what they hold.
//!
//! Looked up by name once per encoder; from there on everything goes by number.

use super::{
    super::{
        attributes::AttributeLeaves,
        columns::{Columns, Dictionary, Integer, ListId, Text},
    },
    RESOURCE_LEAVES,
};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Leaves {
    pub(super) trace_id: Text,
    pub(super) trace_id_text: Text,
    pub(super) start: Integer,
    pub(super) end: Integer,
    pub(super) duration: Integer,
    pub(super) root_service: Dictionary,
    pub(super) root_span: Dictionary,
    pub(super) stats: ListId,
    pub(super) stats_key: Text,
    pub(super) stats_spans: Integer,
    pub(super) stats_errors: Integer,
    pub(super) resources: ListId,
    pub(super) resource_attributes: AttributeLeaves,
    pub(super) resource_dropped: Integer,
    pub(super) service: Dictionary,
    pub(super) resource_fixed: Vec<(&'static str, Dictionary)>,
    pub(super) scopes: ListId,
    pub(super) scope_name: Dictionary,
    pub(super) scope_version: Dictionary,
    pub(super) scope_attributes: AttributeLeaves,
    pub(super) scope_dropped: Integer,
    pub(super) spans: ListId,
    pub(super) span_id: Text,
    pub(super) parent_span_id: Text,
    pub(super) parent: Integer,
    pub(super) left: Integer,
    pub(super) right: Integer,
    pub(super) name: Dictionary,
    pub(super) kind: Integer,
    pub(super) trace_state: Text,
    pub(super) span_start: Integer,
    pub(super) span_duration: Integer,
    pub(super) status: Integer,
    pub(super) status_message: Text,
    pub(super) attributes: AttributeLeaves,
    pub(super) dropped_attributes: Integer,
    pub(super) events: ListId,
    pub(super) event_time: Integer,
    pub(super) event_name: Dictionary,
    pub(super) event_attributes: AttributeLeaves,
    pub(super) event_dropped: Integer,
    pub(super) dropped_events: Integer,
    pub(super) links: ListId,
    pub(super) link_trace_id: Text,
    pub(super) link_span_id: Text,
    pub(super) link_trace_state: Text,
    pub(super) link_attributes: AttributeLeaves,
    pub(super) link_dropped: Integer,
    pub(super) dropped_links: Integer,
    pub(super) status_code: Integer,
}

impl Leaves {
    /// Finds them by name.
    pub(super) fn new(columns: &Columns) -> Self {
        const SPAN: &str = "rs[].ss[].Spans[]";
        let span = |leaf: &str| format!("{SPAN}.{leaf}");
        Self {
            trace_id: columns.text("TraceID"),
            trace_id_text: columns.text("TraceIDText"),
            start: columns.integer("StartTimeUnixNano"),
            end: columns.integer("EndTimeUnixNano"),
            duration: columns.integer("DurationNano"),
            root_service: columns.dictionary("RootServiceName"),
            root_span: columns.dictionary("RootSpanName"),
            stats: columns.list("ServiceStats{}"),
            stats_key: columns.text("ServiceStats{}.key"),
            stats_spans: columns.integer("ServiceStats{}.value.SpanCount"),
            stats_errors: columns.integer("ServiceStats{}.value.ErrorCount"),
            resources: columns.list("rs[]"),
            resource_attributes: AttributeLeaves::new(columns, "rs[].Resource", 2),
            resource_dropped: columns.integer("rs[].Resource.DroppedAttributesCount"),
            service: columns.dictionary("rs[].Resource.ServiceName"),
            resource_fixed: RESOURCE_LEAVES
                .iter()
                .map(|(name, leaf)| (*name, columns.dictionary(&format!("rs[].Resource.{leaf}"))))
                .collect(),
            scopes: columns.list("rs[].ss[]"),
            scope_name: columns.dictionary("rs[].ss[].Scope.Name"),
            scope_version: columns.dictionary("rs[].ss[].Scope.Version"),
            scope_attributes: AttributeLeaves::new(columns, "rs[].ss[].Scope", 3),
            scope_dropped: columns.integer("rs[].ss[].Scope.DroppedAttributesCount"),
            spans: columns.list(SPAN),
            span_id: columns.text(&span("SpanID")),
            parent_span_id: columns.text(&span("ParentSpanID")),
            parent: columns.integer(&span("ParentID")),
            left: columns.integer(&span("NestedSetLeft")),
            right: columns.integer(&span("NestedSetRight")),
            name: columns.dictionary(&span("Name")),
            kind: columns.integer(&span("Kind")),
            trace_state: columns.text(&span("TraceState")),
            span_start: columns.integer(&span("StartTimeUnixNano")),
            span_duration: columns.integer(&span("DurationNano")),
            status: columns.integer(&span("StatusCode")),
            status_message: columns.text(&span("StatusMessage")),
            attributes: AttributeLeaves::new(columns, SPAN, 4),
            dropped_attributes: columns.integer(&span("DroppedAttributesCount")),
            events: columns.list(&span("Events[]")),
            event_time: columns.integer(&span("Events[].TimeSinceStartNano")),
            event_name: columns.dictionary(&span("Events[].Name")),
            event_attributes: AttributeLeaves::new(columns, &span("Events[]"), 5),
            event_dropped: columns.integer(&span("Events[].DroppedAttributesCount")),
            dropped_events: columns.integer(&span("DroppedEventsCount")),
            links: columns.list(&span("Links[]")),
            link_trace_id: columns.text(&span("Links[].TraceID")),
            link_span_id: columns.text(&span("Links[].SpanID")),
            link_trace_state: columns.text(&span("Links[].TraceState")),
            link_attributes: AttributeLeaves::new(columns, &span("Links[]"), 5),
            link_dropped: columns.integer(&span("Links[].DroppedAttributesCount")),
            dropped_links: columns.integer(&span("DroppedLinksCount")),
            status_code: columns.integer(&span("HttpStatusCode")),
        }
    }
}
