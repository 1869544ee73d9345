//! The leaves and lists that a row is written to, by what they hold. What a version does not have is none.
//!
//! Looked up by name once per encoder; from there on everything goes by number.

use super::super::{
    attributes::AttributeLeaves,
    columns::{Columns, Dictionary, Integer, ListId, Text},
    format::Format,
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
    /// vParquet4 and 5.
    pub(super) stats: Option<Stats>,
    pub(super) resources: ListId,
    pub(super) resource_attributes: AttributeLeaves,
    /// vParquet4 and 5.
    pub(super) resource_dropped: Option<Integer>,
    pub(super) service: Dictionary,
    pub(super) scopes: ListId,
    pub(super) scope_name: Dictionary,
    pub(super) scope_version: Dictionary,
    /// vParquet4 and 5, with the dropped count.
    pub(super) scope_attributes: Option<(AttributeLeaves, Integer)>,
    /// vParquet5.
    pub(super) scope_spans: Option<Integer>,
    pub(super) spans: ListId,
    pub(super) span_id: Text,
    pub(super) parent_span_id: Text,
    pub(super) parent: Integer,
    pub(super) left: Integer,
    pub(super) right: Integer,
    /// vParquet5.
    pub(super) children: Option<Integer>,
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
    pub(super) event_attributes: EventAttributes,
    pub(super) event_dropped: Integer,
    pub(super) dropped_events: Integer,
    pub(super) links: Links,
    pub(super) dropped_links: Integer,
    /// vParquet5: seconds and leaf.
    pub(super) rounded: Vec<(u64, Integer)>,
}

/// Per service of a trace: its name, its spans, those that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stats {
    pub(super) list: ListId,
    pub(super) service: Dictionary,
    pub(super) spans: Integer,
    pub(super) errors: Integer,
}

/// Attributes of events.
#[derive(Clone, Copy, Debug)]
pub(super) enum EventAttributes {
    /// vParquet4 and 5: as everywhere.
    Typed(AttributeLeaves),
    /// vParquet2 and 3: key and the bytes of the value.
    Raw { list: ListId, key: Dictionary, value: Text },
}

/// Links of spans.
#[derive(Clone, Copy, Debug)]
pub(super) enum Links {
    /// vParquet4 and 5.
    Typed { list: ListId, trace_id: Text, span_id: Text, trace_state: Text, attributes: AttributeLeaves, dropped: Integer },
    /// vParquet2 and 3: the message of all links of a span.
    Raw(Text),
}

impl Leaves {
    /// Finds them by name.
    pub(super) fn new(columns: &Columns, format: Format) -> Self {
        const SPAN: &str = "rs[].ss[].Spans[]";
        let span = |leaf: &str| format!("{SPAN}.{leaf}");
        let attributes = |prefix: &str, level| AttributeLeaves::new(columns, format, prefix, level);
        let typed = matches!(format, Format::V4 | Format::V5);
        let stats = |list: &str, service: &str, value: &str| Stats {
            list: columns.list(list),
            service: columns.dictionary(&format!("{list}.{service}")),
            spans: columns.integer(&format!("{list}{value}.SpanCount")),
            errors: columns.integer(&format!("{list}{value}.ErrorCount")),
        };
        Self {
            trace_id: columns.text("TraceID"),
            trace_id_text: columns.text("TraceIDText"),
            start: columns.integer("StartTimeUnixNano"),
            end: columns.integer("EndTimeUnixNano"),
            duration: columns.integer("DurationNano"),
            root_service: columns.dictionary("RootServiceName"),
            root_span: columns.dictionary("RootSpanName"),
            stats: match format {
                Format::V2 | Format::V3 => None,
                Format::V4 => Some(stats("ServiceStats{}", "key", ".value")),
                Format::V5 => Some(stats("ServiceStats[]", "ServiceName", "")),
            },
            resources: columns.list("rs[]"),
            resource_attributes: attributes("rs[].Resource", 2),
            resource_dropped: typed.then(|| columns.integer("rs[].Resource.DroppedAttributesCount")),
            service: columns.dictionary("rs[].Resource.ServiceName"),
            scopes: columns.list("rs[].ss[]"),
            scope_name: columns.dictionary("rs[].ss[].Scope.Name"),
            scope_version: columns.dictionary("rs[].ss[].Scope.Version"),
            scope_attributes: typed.then(|| (attributes("rs[].ss[].Scope", 3), columns.integer("rs[].ss[].Scope.DroppedAttributesCount"))),
            scope_spans: (format == Format::V5).then(|| columns.integer("rs[].ss[].SpanCount")),
            spans: columns.list(SPAN),
            span_id: columns.text(&span("SpanID")),
            parent_span_id: columns.text(&span("ParentSpanID")),
            parent: columns.integer(&span("ParentID")),
            left: columns.integer(&span("NestedSetLeft")),
            right: columns.integer(&span("NestedSetRight")),
            children: (format == Format::V5).then(|| columns.integer(&span("ChildCount"))),
            name: columns.dictionary(&span("Name")),
            kind: columns.integer(&span("Kind")),
            trace_state: columns.text(&span("TraceState")),
            span_start: columns.integer(&span("StartTimeUnixNano")),
            span_duration: columns.integer(&span("DurationNano")),
            status: columns.integer(&span("StatusCode")),
            status_message: columns.text(&span("StatusMessage")),
            attributes: attributes(SPAN, 4),
            dropped_attributes: columns.integer(&span("DroppedAttributesCount")),
            events: columns.list(&span("Events[]")),
            event_time: columns.integer(&span(if typed { "Events[].TimeSinceStartNano" } else { "Events[].TimeUnixNano" })),
            event_name: columns.dictionary(&span("Events[].Name")),
            event_attributes: if typed {
                EventAttributes::Typed(attributes(&span("Events[]"), 5))
            } else {
                EventAttributes::Raw {
                    list: columns.list(&span("Events[].Attrs[]")),
                    key: columns.dictionary(&span("Events[].Attrs[].Key")),
                    value: columns.text(&span("Events[].Attrs[].Value")),
                }
            },
            event_dropped: columns.integer(&span("Events[].DroppedAttributesCount")),
            dropped_events: columns.integer(&span("DroppedEventsCount")),
            links: if typed {
                Links::Typed {
                    list: columns.list(&span("Links[]")),
                    trace_id: columns.text(&span("Links[].TraceID")),
                    span_id: columns.text(&span("Links[].SpanID")),
                    trace_state: columns.text(&span("Links[].TraceState")),
                    attributes: attributes(&span("Links[]"), 5),
                    dropped: columns.integer(&span("Links[].DroppedAttributesCount")),
                }
            } else {
                Links::Raw(columns.text(&span("Links")))
            },
            dropped_links: columns.integer(&span("DroppedLinksCount")),
            rounded: match format {
                Format::V5 => [15, 60, 300, 3600].map(|n| (n, columns.integer(&span(&format!("StartTimeRounded{n}"))))).into(),
                _ => Vec::new(),
            },
        }
    }
}
