//! Jaeger's batch of spans: what Thrift and protobuf both come out as, and what Thrift is written from.

use opentelemetry_proto::tonic::common::v1::any_value::Value;

/// Spans of one sender.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Who sent them.
    pub process: Process,
    /// The spans.
    pub spans: Vec<Span>,
}

/// Who sent spans.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Its service; empty for none.
    pub service: String,
    /// What else is known of it.
    pub tags: Vec<Tag>,
}

/// A span. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// Trace, big-endian.
    pub trace_id: [u8; 16],
    /// Identity in the trace, big-endian.
    pub span_id: [u8; 8],
    /// Thrift says it besides the references; 0 is none.
    pub parent_id: [u8; 8],
    /// Operation.
    pub name: String,
    /// Other spans that it comes from.
    pub references: Vec<Reference>,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds.
    pub duration: u64,
    /// Attributes.
    pub tags: Vec<Tag>,
    /// Events.
    pub logs: Vec<Log>,
    /// Protobuf may have another process than the batch's.
    pub process: Option<Process>,
}

/// Another span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// FOLLOWS_FROM; otherwise CHILD_OF.
    pub follows_from: bool,
    /// Its trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
}

/// A key and its value, in the words of OTLP already.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// Name.
    pub key: String,
    /// A string, number, boolean or bytes; Jaeger has no others.
    pub value: Value,
}

/// Something that happened in a span.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// Nanoseconds since the Unix epoch.
    pub time: u64,
    /// What; its name is the field `event`.
    pub fields: Vec<Tag>,
}

/// What stands for a value of a type that Jaeger does not have.
pub(super) fn unknown(kind: i32) -> Value {
    Value::StringValue(format!("<Unknown Jaeger TagType \"{kind}\">"))
}
