//! `jaeger.thrift`: a batch as the body of an HTTP request, or as the argument of a call in a datagram (write-path.md §3.1).

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use thrift::protocol::TType;

use super::model::{Batch, Log, Process, Reference, Span, Tag, unknown};
use crate::thrift::{Input, Malformed, Protocol};

/// What agents are called for.
const EMIT_BATCH: &str = "emitBatch";

/// Reads a `Batch` in the binary protocol.
pub(super) fn batch_of_body(body: &[u8]) -> Result<Batch, Malformed> {
    batch(&mut Input::new(Protocol::Binary, body)?)
}

/// Reads the batch of a call of `emitBatch`; [`None`] for a call of something else.
pub(super) fn batch_of_datagram(protocol: Protocol, datagram: &[u8]) -> Result<Option<Batch>, Malformed> {
    let mut input = Input::new(protocol, datagram)?;
    if input.message()? != EMIT_BATCH {
        return Ok(None);
    }
    let mut found = Batch::default();
    input.structure("emitBatch", |input, number, kind| {
        match (number, kind) {
            (1, TType::Struct) => found = batch(input)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Some(found))
}

fn batch(input: &mut Input<'_>) -> Result<Batch, Malformed> {
    let mut batch = Batch::default();
    input.structure("Batch", |input, number, kind| {
        match (number, kind) {
            (1, TType::Struct) => batch.process = process(input)?,
            (2, TType::List) => batch.spans.extend(input.structures(span)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(batch)
}

fn process(input: &mut Input<'_>) -> Result<Process, Malformed> {
    let mut process = Process::default();
    input.structure("Process", |input, number, kind| {
        match (number, kind) {
            (1, TType::String) => process.service = input.text()?,
            (2, TType::List) => process.tags = tags(input)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(process)
}

fn span(input: &mut Input<'_>) -> Result<Span, Malformed> {
    let (mut span, mut low, mut high) = (Span::default(), 0i64, 0i64);
    input.structure("Span", |input, number, kind| {
        match (number, kind) {
            (1, TType::I64) => low = input.long()?,
            (2, TType::I64) => high = input.long()?,
            (3, TType::I64) => span.span_id = input.long()?.to_be_bytes(),
            (4, TType::I64) => span.parent_id = input.long()?.to_be_bytes(),
            (5, TType::String) => span.name = input.text()?,
            (6, TType::List) => span.references.extend(input.structures(reference)?),
            (8, TType::I64) => span.start = nanoseconds(input.long()?),
            (9, TType::I64) => span.duration = nanoseconds(input.long()?),
            (10, TType::List) => span.tags = tags(input)?,
            (11, TType::List) => span.logs.extend(input.structures(log)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    span.trace_id = trace_id(high, low);
    Ok(span)
}

fn reference(input: &mut Input<'_>) -> Result<Reference, Malformed> {
    let (mut reference, mut low, mut high) = (Reference::default(), 0i64, 0i64);
    input.structure("SpanRef", |input, number, kind| {
        match (number, kind) {
            (1, TType::I32) => reference.follows_from = input.int()? == 1,
            (2, TType::I64) => low = input.long()?,
            (3, TType::I64) => high = input.long()?,
            (4, TType::I64) => reference.span_id = input.long()?.to_be_bytes(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    reference.trace_id = trace_id(high, low);
    Ok(reference)
}

fn log(input: &mut Input<'_>) -> Result<Log, Malformed> {
    let mut log = Log::default();
    input.structure("Log", |input, number, kind| {
        match (number, kind) {
            (1, TType::I64) => log.time = nanoseconds(input.long()?),
            (2, TType::List) => log.fields = tags(input)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(log)
}

fn tags(input: &mut Input<'_>) -> Result<Vec<Tag>, Malformed> {
    input.structures(tag)
}

fn tag(input: &mut Input<'_>) -> Result<Tag, Malformed> {
    let (mut key, mut kind_of_value) = (String::new(), 0);
    let (mut text, mut double, mut flag, mut long, mut bytes) = (String::new(), 0.0, false, 0, Vec::new());
    input.structure("Tag", |input, number, kind| {
        match (number, kind) {
            (1, TType::String) => key = input.text()?,
            (2, TType::I32) => kind_of_value = input.int()?,
            (3, TType::String) => text = input.text()?,
            (4, TType::Double) => double = input.double()?,
            (5, TType::Bool) => flag = input.boolean()?,
            (6, TType::I64) => long = input.long()?,
            (7, TType::String) => bytes = input.bytes()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let value = match kind_of_value {
        0 => Value::StringValue(text),
        1 => Value::DoubleValue(double),
        2 => Value::BoolValue(flag),
        3 => Value::IntValue(long),
        4 => Value::BytesValue(bytes),
        other => unknown(other),
    };
    Ok(Tag { key, value })
}

fn trace_id(high: i64, low: i64) -> [u8; 16] {
    (u128::from(high as u64) << 64 | u128::from(low as u64)).to_be_bytes()
}

/// Microseconds, which are signed in Thrift: what is before 1970 is 0.
fn nanoseconds(microseconds: i64) -> u64 {
    u64::try_from(microseconds).unwrap_or_default().saturating_mul(1000)
}
