//! Jaeger's batch of spans, as Thrift and protobuf both come out.

use opentelemetry_proto::tonic::common::v1::any_value::Value;

/// Spans of one sender.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) process: Process,
    pub(super) spans: Vec<Span>,
}

/// Who sent spans.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) service: String,
    pub(super) tags: Vec<Tag>,
}

/// A span. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Span {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    /// Thrift says it besides the references; 0 is none.
    pub(super) parent_id: [u8; 8],
    pub(super) name: String,
    pub(super) references: Vec<Reference>,
    pub(super) start: u64,
    pub(super) duration: u64,
    pub(super) tags: Vec<Tag>,
    pub(super) logs: Vec<Log>,
    /// Protobuf may have another process than the batch's.
    pub(super) process: Option<Process>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) follows_from: bool,
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
}

/// A key and its value, in the words of OTLP already.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tag {
    pub(super) key: String,
    pub(super) value: Value,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Log {
    pub(super) time: u64,
    pub(super) fields: Vec<Tag>,
}

/// What stands for a value of a type that Jaeger does not have.
pub(super) fn unknown(kind: i32) -> Value {
    Value::StringValue(format!("<Unknown Jaeger TagType \"{kind}\">"))
}
