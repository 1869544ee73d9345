//! A batch as `jaeger.thrift`, in the binary protocol: the body of a `POST /api/traces` to a collector.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use thrift::protocol::{TBinaryOutputProtocol, TFieldIdentifier, TListIdentifier, TOutputProtocol, TStructIdentifier, TType};

use super::model::{Batch, Log, Process, Reference, Span, Tag};

type Written = thrift::Result<()>;

/// Encodes a batch. Times lose what is finer than a microsecond; arrays and lists of pairs, which Jaeger has not, become text.
pub fn thrift_body(batch: &Batch) -> Vec<u8> {
    let mut body = Vec::new();
    let mut out = Output(TBinaryOutputProtocol::new(&mut body, true));
    // Into memory, where writing does not fail.
    if let Err(error) = out.batch(batch) {
        tracing::warn!(%error, "a batch of Jaeger's could not be encoded");
    }
    body
}

struct Output<'a>(TBinaryOutputProtocol<&'a mut Vec<u8>>);

impl Output<'_> {
    fn structure(&mut self, fields: impl FnOnce(&mut Self) -> Written) -> Written {
        self.0.write_struct_begin(&TStructIdentifier::new(""))?;
        fields(self)?;
        self.0.write_field_stop()?;
        self.0.write_struct_end()
    }

    fn field(&mut self, number: i16, kind: TType, value: impl FnOnce(&mut Self) -> Written) -> Written {
        self.0.write_field_begin(&TFieldIdentifier::new("", kind, number))?;
        value(self)?;
        self.0.write_field_end()
    }

    fn list<T>(&mut self, number: i16, elements: &[T], mut write: impl FnMut(&mut Self, &T) -> Written) -> Written {
        self.field(number, TType::List, |out| {
            let size = i32::try_from(elements.len()).unwrap_or(i32::MAX);
            out.0.write_list_begin(&TListIdentifier::new(TType::Struct, size))?;
            elements.iter().take(size as usize).try_for_each(|element| write(out, element))?;
            out.0.write_list_end()
        })
    }

    fn long(&mut self, number: i16, value: i64) -> Written {
        self.field(number, TType::I64, |out| out.0.write_i64(value))
    }

    fn int(&mut self, number: i16, value: i32) -> Written {
        self.field(number, TType::I32, |out| out.0.write_i32(value))
    }

    fn text(&mut self, number: i16, value: &str) -> Written {
        self.field(number, TType::String, |out| out.0.write_string(value))
    }

    fn batch(&mut self, Batch { process, spans }: &Batch) -> Written {
        self.structure(|out| {
            out.field(1, TType::Struct, |out| out.process(process))?;
            out.list(2, spans, Self::span)
        })
    }

    fn process(&mut self, Process { service, tags }: &Process) -> Written {
        self.structure(|out| {
            out.text(1, service)?;
            out.list(2, tags, Self::tag)
        })
    }

    fn span(&mut self, span: &Span) -> Written {
        self.structure(|out| {
            let (high, low) = halves(span.trace_id);
            out.long(1, low)?;
            out.long(2, high)?;
            out.long(3, i64::from_be_bytes(span.span_id))?;
            out.long(4, i64::from_be_bytes(span.parent_id))?;
            out.text(5, &span.name)?;
            out.list(6, &span.references, Self::reference)?;
            // Sampled.
            out.int(7, 1)?;
            out.long(8, microseconds(span.start))?;
            out.long(9, microseconds(span.duration))?;
            out.list(10, &span.tags, Self::tag)?;
            out.list(11, &span.logs, Self::log)
        })
    }

    fn reference(&mut self, reference: &Reference) -> Written {
        self.structure(|out| {
            let (high, low) = halves(reference.trace_id);
            out.int(1, reference.follows_from.into())?;
            out.long(2, low)?;
            out.long(3, high)?;
            out.long(4, i64::from_be_bytes(reference.span_id))
        })
    }

    fn log(&mut self, Log { time, fields }: &Log) -> Written {
        self.structure(|out| {
            out.long(1, microseconds(*time))?;
            out.list(2, fields, Self::tag)
        })
    }

    fn tag(&mut self, Tag { key, value }: &Tag) -> Written {
        self.structure(|out| {
            out.text(1, key)?;
            match value {
                Value::StringValue(text) => {
                    out.int(2, 0)?;
                    out.text(3, text)
                }
                Value::DoubleValue(double) => {
                    out.int(2, 1)?;
                    out.field(4, TType::Double, |out| out.0.write_double(*double))
                }
                Value::BoolValue(flag) => {
                    out.int(2, 2)?;
                    out.field(5, TType::Bool, |out| out.0.write_bool(*flag))
                }
                Value::IntValue(integer) => {
                    out.int(2, 3)?;
                    out.long(6, *integer)
                }
                Value::BytesValue(bytes) => {
                    out.int(2, 4)?;
                    out.field(7, TType::String, |out| out.0.write_bytes(bytes))
                }
                other => {
                    out.int(2, 0)?;
                    out.text(3, &format!("{other:?}"))
                }
            }
        })
    }
}

fn halves(id: [u8; 16]) -> (i64, i64) {
    let id = u128::from_be_bytes(id);
    ((id >> 64) as i64, id as i64)
}

fn microseconds(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::thrift::batch_of_body, *};

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            ".*".prop_map(Value::StringValue),
            any::<i64>().prop_map(Value::IntValue),
            any::<bool>().prop_map(Value::BoolValue),
            (-1e9..1e9).prop_map(Value::DoubleValue),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(Value::BytesValue),
        ]
    }

    fn tags() -> impl Strategy<Value = Vec<Tag>> {
        prop::collection::vec((".{0,9}", value()).prop_map(|(key, value)| Tag { key, value }), 0..4)
    }

    fn span() -> impl Strategy<Value = Span> {
        let time = || (0u64..1 << 50).prop_map(|micros| micros * 1000);
        let reference = (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 8]>());
        let references = prop::collection::vec(
            reference.prop_map(|(follows_from, trace_id, span_id)| Reference { follows_from, trace_id, span_id }),
            0..3,
        );
        let logs = prop::collection::vec((time(), tags()).prop_map(|(time, fields)| Log { time, fields }), 0..3);
        let ids = (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<[u8; 8]>());
        (ids, ".{0,9}", references, time(), time(), tags(), logs).prop_map(
            |((trace_id, span_id, parent_id), name, references, start, duration, tags, logs)| Span {
                trace_id,
                span_id,
                parent_id,
                name,
                references,
                start,
                duration,
                tags,
                logs,
                process: None,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(service in ".{0,9}", tags in tags(), spans in prop::collection::vec(span(), 0..4)) {
            let batch = Batch { process: Process { service, tags }, spans };
            prop_assert_eq!(batch_of_body(&thrift_body(&batch)).expect("well-formed"), batch);
        }
    }
}
