//! A trace prepared for evaluation.
//!
//! Built once per trace, from the OTLP messages as they are: the view only borrows. It adds what OTLP leaves implicit: the root, the extent
//! of the trace, and, once somebody asks, the place of each span in the tree.

use std::{collections::HashMap, sync::OnceLock};

use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue, any_value},
    trace::v1::{Span, Status as OtlpStatus},
};
use storage::{block::Trace, id::TraceId};

use super::{super::value::Status, tree::Tree};

/// Key of the attribute that names a service.
pub(super) const SERVICE_NAME: &str = "service.name";

/// A span with everything that belongs to it.
#[derive(Debug)]
pub(super) struct SpanView<'a> {
    pub(super) span: &'a Span,
    pub(super) resource: &'a [KeyValue],
    pub(super) scope: Option<&'a InstrumentationScope>,
}

impl SpanView<'_> {
    /// End minus start, in nanoseconds; negative when the span ends before it starts.
    pub(super) fn duration_ns(&self) -> i64 {
        self.span.end_time_unix_nano.wrapping_sub(self.span.start_time_unix_nano) as i64
    }

    pub(super) fn status(&self) -> Status {
        Status::from_otlp(self.span.status.as_ref().map_or(0, |status| status.code))
    }

    pub(super) fn status_message(&self) -> &str {
        self.span.status.as_ref().map_or("", |OtlpStatus { message, .. }| message)
    }

    pub(super) fn is_root(&self) -> bool {
        is_zero(&self.span.parent_span_id)
    }
}

/// A trace prepared for evaluation; built once per trace.
#[derive(Debug)]
pub(crate) struct TraceView<'a> {
    pub(super) id: TraceId,
    pub(super) spans: Vec<SpanView<'a>>,
    /// The span that names the trace.
    root: Option<usize>,
    /// Start of the earliest span, Unix nanoseconds.
    pub(super) start_ns: u64,
    /// End of the latest span, Unix nanoseconds.
    pub(super) end_ns: u64,
    /// Numbered when a query first needs it; most do not.
    tree: OnceLock<Tree>,
}

impl<'a> TraceView<'a> {
    /// Prepares a trace.
    pub(crate) fn new(trace: &'a Trace) -> Self {
        let mut spans = Vec::new();
        for resource_spans in &trace.resource_spans {
            let resource = resource_spans.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
            // Scopes of one name and version are one scope; the attributes of the first one count.
            let mut scopes: HashMap<(&str, &str), &InstrumentationScope> = HashMap::new();
            for scope_spans in &resource_spans.scope_spans {
                let scope = scope_spans.scope.as_ref().map(|scope| *scopes.entry((&scope.name, &scope.version)).or_insert(scope));
                spans.extend(scope_spans.spans.iter().map(|span| SpanView { span, resource, scope }));
            }
        }
        let start_ns = spans.iter().map(|view| view.span.start_time_unix_nano).min().unwrap_or_default();
        let end_ns = spans.iter().map(|view| view.span.end_time_unix_nano).max().unwrap_or_default();
        let root = spans.iter().rposition(|view| view.is_root() && !is_linked_child(view.span));
        Self { id: trace.trace_id, spans, root, start_ns, end_ns, tree: OnceLock::new() }
    }

    /// Number of spans.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no span at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether some part of the trace lies in `[from_ns, to_ns]`, Unix nanoseconds.
    pub(crate) fn overlaps(&self, from_ns: u64, to_ns: u64) -> bool {
        self.start_ns <= to_ns && self.end_ns >= from_ns
    }

    /// The places of the spans.
    pub(super) fn tree(&self) -> &Tree {
        self.tree.get_or_init(|| Tree::new(&self.spans))
    }

    /// Latest end minus earliest start, in nanoseconds.
    pub(super) fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// Name of the root span; empty when there is none.
    pub(super) fn root_name(&self) -> &'a str {
        self.root.map_or("", |root| &self.spans[root].span.name)
    }

    /// Service of the root span; empty when there is none, or when its name is no string.
    pub(super) fn root_service_name(&self) -> &'a str {
        self.root.map_or("", |root| service_name(self.spans[root].resource))
    }
}

/// The name of the service; empty when it is absent or no string.
pub(super) fn service_name(resource: &[KeyValue]) -> &str {
    let value = resource.iter().find(|attribute| attribute.key == SERVICE_NAME).and_then(|attribute| attribute.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(name)) => name,
        _ => "",
    }
}

pub(super) fn is_zero(id: &[u8]) -> bool {
    id.iter().all(|byte| *byte == 0)
}

/// The last eight bytes of an id, big-endian.
pub(super) fn span_id(id: &[u8]) -> u64 {
    id.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A root that the OpenTracing bridge has cut off: its parent is only a link into its own trace.
fn is_linked_child(span: &Span) -> bool {
    span.links.iter().any(|link| {
        link.trace_id == span.trace_id
            && link.attributes.iter().any(|attribute| {
                attribute.key == "opentracing.ref_type"
                    && attribute.value.as_ref().and_then(|value| value.value.as_ref())
                        == Some(&any_value::Value::StringValue("child_of".to_owned()))
            })
    })
}
