//! The messages of `tempopb.Pusher`, read and written without a tree.
//!
//! ```text
//!  PushBytesRequest    12 <len> │ start, 4 bytes │ end, 4 bytes │ Trace { resource spans … } │   1a 10 │ trace id, 16 bytes │   …
//!  PushResponse        0a <len> │ reason of the first trace │ reason of the second │ …            empty: all were accepted
//! ```
//!
//! Start and end are Unix seconds, little-endian; `Trace` has the bytes of an `ExportTraceServiceRequest` with the spans of one trace. The older
//! call `PushBytes` has no start and end. Field numbers are those of Tempo 2.10. Traces and ids are two lists of the same length; we write them
//! alternately, which is as good, so that a trace and its id are one run of bytes that several messages can share.

use storage::{
    id::TraceId,
    otlp::{
        WireError,
        wire::{Fields, Valid, Value},
    },
};

use crate::{
    regroup::field_len,
    traces::Verdict,
    wire::{LENGTH_DELIMITED, put_bytes, put_varint},
};

const TRACES: u32 = 2;
const IDS: u32 = 3;
const SKIP_METRICS_GENERATION: u32 = 5;
const REASONS: u32 = 1;

/// Bytes before a trace: its start and its end.
pub(crate) const TIMES: usize = 8;

/// A `PushBytesRequest` whose lists have the same length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PushMessage<'a> {
    message: &'a [u8],
    traces: usize,
    /// Whether the metrics-generator passes the spans over.
    pub(crate) skip_metrics_generation: bool,
}

/// Why a message is refused. The texts are Tempo's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidMessage {
    /// Not the message.
    #[error("invalid PushBytesRequest: {0}")]
    Wire(#[from] WireError),
    /// Traces without id, or ids without trace.
    #[error("mismatched traces/ids length: {traces}, {ids}")]
    Mismatched { traces: usize, ids: usize },
}

impl<'a> PushMessage<'a> {
    /// Looks at a message from outside. What is inside the traces is not looked at.
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, InvalidMessage> {
        let (mut traces, mut ids, mut skip_metrics_generation) = (0, 0, false);
        for field in Fields::new(message) {
            let field = field?;
            match (field.number, field.value) {
                (TRACES, Value::Bytes(_)) => traces += 1,
                (IDS, Value::Bytes(_)) => ids += 1,
                (SKIP_METRICS_GENERATION, Value::Varint(skip)) => skip_metrics_generation = skip != 0,
                (TRACES | IDS, _) => return Err(WireError { field: "traces", cause: "wrong wire type" }.into()),
                _ => {}
            }
        }
        if traces == ids { Ok(Self { message, traces, skip_metrics_generation }) } else { Err(InvalidMessage::Mismatched { traces, ids }) }
    }

    /// How many traces there are.
    pub(crate) fn len(self) -> usize {
        self.traces
    }

    /// Each trace, times included, with its id.
    pub(crate) fn entries(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let list = |number| {
            let fields = Valid::new(self.message);
            fields.filter(move |field| field.number == number).filter_map(|field| field.value.bytes())
        };
        list(TRACES).zip(list(IDS))
    }
}

/// Bytes of a trace of `trace_len` bytes and its id in a message.
pub(crate) fn entry_len(trace_len: usize) -> usize {
    field_len(TIMES + trace_len) + field_len(16)
}

/// Appends a trace and its id; `write` appends the trace, of exactly `trace_len` bytes.
pub(crate) fn put_entry(out: &mut Vec<u8>, id: TraceId, times: [u32; 2], trace_len: usize, write: impl FnOnce(&mut Vec<u8>)) {
    out.push((TRACES << 3) as u8 | LENGTH_DELIMITED);
    put_varint(out, (TIMES + trace_len) as u64);
    let [start, end] = times.map(u32::to_le_bytes);
    out.extend_from_slice(&start);
    out.extend_from_slice(&end);
    let begin = out.len();
    write(out);
    debug_assert_eq!(out.len() - begin, trace_len, "the length before the trace is that of the trace");
    put_bytes(out, IDS, &id.0);
}

/// Appends that the metrics-generator passes the spans over. Said once or more often, of all of a message.
pub(crate) fn put_skip_metrics_generation(out: &mut Vec<u8>) {
    out.extend_from_slice(&[(SKIP_METRICS_GENERATION << 3) as u8, 1]);
}

/// A `PushResponse`.
pub(crate) fn response(verdicts: &[Verdict]) -> Vec<u8> {
    let mut out = Vec::new();
    if verdicts.iter().any(|&verdict| verdict != Verdict::Accepted) {
        let reasons: Vec<u8> = verdicts.iter().map(|&verdict| verdict as u8).collect();
        put_bytes(&mut out, REASONS, &reasons);
    }
    out
}

/// Reads a `PushResponse` about `traces` traces: a verdict for each, or nothing if all were accepted. Reasons beyond them are left out, and
/// those that are missing are no refusals, as in Tempo.
pub(crate) fn read_response(message: &[u8], traces: usize) -> Result<Vec<Verdict>, WireError> {
    let mut verdicts = Vec::new();
    let mut add = |code| {
        if verdicts.len() < traces {
            verdicts.push(Verdict::of_code(code));
        }
    };
    for field in Fields::new(message) {
        let field = field?;
        match (field.number, field.value) {
            (REASONS, Value::Varint(code)) => add(code),
            (REASONS, Value::Bytes(packed)) => {
                let mut rest = packed;
                while !rest.is_empty() {
                    let code = take_varint(&mut rest).ok_or(WireError { field: "errors_by_trace", cause: "torn" })?;
                    add(code);
                }
            }
            _ => {}
        }
    }
    Ok(verdicts)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VARINT;
    use proptest::prelude::*;
    use prost::Message as _;

    #[derive(Clone, PartialEq, prost::Message)]
    struct PushBytesRequest {
        #[prost(bytes = "vec", repeated, tag = "2")]
        traces: Vec<Vec<u8>>,
        #[prost(bytes = "vec", repeated, tag = "3")]
        ids: Vec<Vec<u8>>,
        #[prost(bool, tag = "5")]
        skip_metrics_generation: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct PushResponse {
        #[prost(int32, repeated, tag = "1")]
        errors_by_trace: Vec<i32>,
    }

    #[test]
    fn the_segment_of_the_reference() {
        let mut out = Vec::new();
        put_entry(&mut out, TraceId([7; 16]), [10, 11], 0, |_| ());
        let request = PushBytesRequest::decode(&out[..]).expect("the message");
        assert_eq!(request.traces, [[0x0a, 0, 0, 0, 0x0b, 0, 0, 0]]);
        assert_eq!(request.ids, [[7; 16]]);
        assert_eq!(out.len(), entry_len(0));
    }

    proptest! {
        #[test]
        fn messages_are_those_of_protobuf(traces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6), skip in any::<bool>()) {
            let mut out = Vec::new();
            for (trace, n) in traces.iter().zip(0u8..) {
                let before = out.len();
                put_entry(&mut out, TraceId([n; 16]), [1, 2], trace.len(), |out| out.extend_from_slice(trace));
                prop_assert_eq!(out.len() - before, entry_len(trace.len()));
            }
            let request = PushBytesRequest::decode(&out[..]).expect("the message");
            // As another writer puts it: first one list, then the other.
            let reordered = PushBytesRequest { skip_metrics_generation: skip, ..request.clone() }.encode_to_vec();
            for message in [&out, &reordered] {
                let message = PushMessage::read(message).expect("the message");
                prop_assert_eq!(message.len(), traces.len());
                let entries: Vec<_> = message.entries().map(|(trace, id)| (trace[TIMES..].to_vec(), id.to_vec())).collect();
                let expected: Vec<_> = traces.iter().cloned().zip(request.ids.clone()).collect();
                prop_assert_eq!(entries, expected);
            }
        }

        #[test]
        fn answers_are_those_of_protobuf(codes in prop::collection::vec(0u64..4, 0..6)) {
            let verdicts: Vec<Verdict> = codes.iter().map(|&code| Verdict::of_code(code)).collect();
            let message = response(&verdicts);
            let decoded = PushResponse::decode(&message[..]).expect("the message").errors_by_trace;
            if codes.iter().all(|&code| code == 0) {
                prop_assert!(message.is_empty());
                prop_assert_eq!(read_response(&message, codes.len()), Ok(vec![]));
            } else {
                prop_assert_eq!(decoded.iter().map(|&code| code as u64).collect::<Vec<_>>(), &codes[..]);
                prop_assert_eq!(read_response(&message, codes.len()), Ok(verdicts));
                prop_assert_eq!(read_response(&message, 0), Ok(vec![]));
            }
        }

        #[test]
        fn hostile_messages_are_errors(message in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(read) = PushMessage::read(&message) {
                prop_assert_eq!(read.entries().count(), read.len());
            }
            let _ = read_response(&message, 3);
        }
    }

    #[test]
    fn lists_of_different_length_are_refused() {
        let request = PushBytesRequest { traces: vec![vec![]; 2], ids: vec![vec![]; 3], ..Default::default() };
        let error = PushMessage::read(&request.encode_to_vec()).expect_err("refused");
        assert_eq!(error.to_string(), "mismatched traces/ids length: 2, 3");
        let wrong_type = [(TRACES << 3) as u8 | VARINT, 1];
        assert!(matches!(PushMessage::read(&wrong_type), Err(InvalidMessage::Wire(_))));
    }
}
