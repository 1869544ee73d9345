//! `jaeger.api_v2`: a batch in the only call of the collector's gRPC service (write-path.md §3.1).

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use storage::otlp::wire;

use super::model::{self, unknown};
use crate::{wire::count_field, zipkin::most_spans};

/// Path of the call.
pub(crate) const POST_SPANS: &str = "/jaeger.api_v2.CollectorService/PostSpans";

/// A message that is no batch: the field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0}")]
    Encoding(String),
    #[error("span {span}: {field}: {bytes} bytes where {wanted} are required")]
    Id { span: usize, field: &'static str, bytes: usize, wanted: usize },
}

#[derive(Clone, PartialEq, prost::Message)]
struct PostSpansRequest {
    #[prost(message, optional, tag = "1")]
    batch: Option<Batch>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<Span>,
    #[prost(message, optional, tag = "2")]
    process: Option<Process>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Process {
    #[prost(string, tag = "1")]
    service_name: String,
    #[prost(message, repeated, tag = "2")]
    tags: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    operation_name: String,
    #[prost(message, repeated, tag = "4")]
    references: Vec<SpanRef>,
    #[prost(message, optional, tag = "6")]
    start_time: Option<Time>,
    #[prost(message, optional, tag = "7")]
    duration: Option<Time>,
    #[prost(message, repeated, tag = "8")]
    tags: Vec<KeyValue>,
    #[prost(message, repeated, tag = "9")]
    logs: Vec<Log>,
    #[prost(message, optional, tag = "10")]
    process: Option<Process>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SpanRef {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(int32, tag = "3")]
    ref_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Log {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Time>,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(int32, tag = "2")]
    v_type: i32,
    #[prost(string, tag = "3")]
    v_str: String,
    #[prost(bool, tag = "4")]
    v_bool: bool,
    #[prost(int64, tag = "5")]
    v_int64: i64,
    #[prost(double, tag = "6")]
    v_float64: f64,
    #[prost(bytes = "vec", tag = "7")]
    v_binary: Vec<u8>,
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`, which look the same.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Reads an encoded `PostSpansRequest`.
pub(super) fn batch(message: &[u8]) -> Result<model::Batch, Malformed> {
    let batches = wire::Fields::new(message).flatten().filter(|field| field.number == 1).filter_map(|field| field.value.bytes());
    if batches.map(|batch| count_field(batch, 1)).sum::<usize>() > most_spans(message) {
        return Err(Malformed::Encoding("more spans than the message can hold".to_owned()));
    }
    let request = PostSpansRequest::decode(message).map_err(|error| Malformed::Encoding(error.to_string()))?;
    let Batch { spans, process } = request.batch.unwrap_or_default();
    let spans = spans.into_iter().enumerate().map(|(number, span)| span.into_model(number)).collect::<Result<_, _>>()?;
    Ok(model::Batch { process: process.unwrap_or_default().into(), spans })
}

impl Span {
    fn into_model(self, number: usize) -> Result<model::Span, Malformed> {
        let reference = |reference: &SpanRef| {
            Ok(model::Reference {
                follows_from: reference.ref_type == 1,
                trace_id: id(&reference.trace_id, number, "references.trace_id")?,
                span_id: id(&reference.span_id, number, "references.span_id")?,
            })
        };
        Ok(model::Span {
            trace_id: id(&self.trace_id, number, "trace_id")?,
            span_id: id(&self.span_id, number, "span_id")?,
            parent_id: [0; 8],
            name: self.operation_name,
            references: self.references.iter().map(reference).collect::<Result<_, _>>()?,
            start: nanoseconds(self.start_time),
            duration: nanoseconds(self.duration),
            tags: tags(self.tags),
            logs: self.logs.into_iter().map(|log| model::Log { time: nanoseconds(log.timestamp), fields: tags(log.fields) }).collect(),
            process: self.process.map(Into::into),
        })
    }
}

impl From<Process> for model::Process {
    fn from(process: Process) -> Self {
        Self { service: process.service_name, tags: tags(process.tags) }
    }
}

fn id<const N: usize>(bytes: &[u8], span: usize, field: &'static str) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed::Id { span, field, bytes: bytes.len(), wanted: N })
}

fn tags(tags: Vec<KeyValue>) -> Vec<model::Tag> {
    let tag = |tag: KeyValue| {
        let value = match tag.v_type {
            0 => Value::StringValue(tag.v_str),
            1 => Value::BoolValue(tag.v_bool),
            2 => Value::IntValue(tag.v_int64),
            3 => Value::DoubleValue(tag.v_float64),
            4 => Value::BytesValue(tag.v_binary),
            other => unknown(other),
        };
        model::Tag { key: tag.key, value }
    };
    tags.into_iter().map(tag).collect()
}

/// What is before 1970, or shorter than nothing, is 0.
fn nanoseconds(time: Option<Time>) -> u64 {
    let Time { seconds, nanos } = time.unwrap_or_default();
    u64::try_from(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).unwrap_or_default()
}
