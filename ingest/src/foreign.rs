//! Every form of spans that is not OTLP, as a function from bytes to bytes: what the receivers do between reading a request and pushing it.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, TracesData};
use prost::Message as _;

use crate::{
    budget::{Exhausted, Reservation},
    jaeger, zipkin,
};

/// Bytes that a request takes while it is translated, per byte that came in: the least a span can be written with is some 30 bytes, and
/// decoded and translated it is some 500.
const GROWTH: usize = 16;

/// How spans are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// `jaeger.thrift`, a `Batch` in the binary protocol.
    JaegerThrift,
    /// A call of `emitBatch` in the compact protocol.
    JaegerCompactDatagram,
    /// A call of `emitBatch` in the binary protocol.
    JaegerBinaryDatagram,
    /// `jaeger.api_v2.PostSpansRequest`.
    JaegerProtobuf,
    /// Zipkin v1, a JSON array.
    ZipkinV1Json,
    /// Zipkin v1, a Thrift list in the binary protocol.
    ZipkinV1Thrift,
    /// Zipkin v2, a JSON array.
    ZipkinV2Json,
    /// `zipkin.proto3.ListOfSpans`.
    ZipkinV2Protobuf,
}

/// Bytes that are not what they should be: where, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Why a body was not translated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untranslated {
    #[error(transparent)]
    NoRoom(#[from] Exhausted),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Foreign {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::JaegerThrift,
        Self::JaegerCompactDatagram,
        Self::JaegerBinaryDatagram,
        Self::JaegerProtobuf,
        Self::ZipkinV1Json,
        Self::ZipkinV1Thrift,
        Self::ZipkinV2Json,
        Self::ZipkinV2Protobuf,
    ];

    /// Translates a body to an encoded `ExportTraceServiceRequest`. Spans without a start begin `now`, a time since the Unix epoch. With
    /// `parse_tags`, Zipkin's tags whose text is a number or a boolean become one.
    ///
    /// # Errors
    /// What is wrong with the body, and where.
    pub fn to_otlp(self, body: &[u8], now: Duration, parse_tags: bool) -> Result<Bytes, Malformed> {
        let resource_spans: Vec<ResourceSpans> = match self {
            Self::JaegerThrift => jaeger::of_thrift(body)?,
            Self::JaegerCompactDatagram => jaeger::of_datagram(jaeger::ThriftProtocol::Compact, body)?,
            Self::JaegerBinaryDatagram => jaeger::of_datagram(jaeger::ThriftProtocol::Binary, body)?,
            Self::JaegerProtobuf => jaeger::of_protobuf(body)?,
            Self::ZipkinV1Json => zipkin::of_v1_json(body, now, parse_tags)?,
            Self::ZipkinV1Thrift => zipkin::of_v1_thrift(body, now)?,
            Self::ZipkinV2Json => zipkin::of_v2_json(body, parse_tags)?,
            Self::ZipkinV2Protobuf => zipkin::of_v2_protobuf(body, parse_tags)?,
        };
        Ok(TracesData { resource_spans }.encode_to_vec().into())
    }

    /// The same, with what it takes reserved before.
    pub(crate) async fn to_otlp_within(
        self,
        reservation: &mut Reservation,
        body: &[u8],
        now: Duration,
        parse_tags: bool,
    ) -> Result<Bytes, Untranslated> {
        let wanted = body.len().saturating_mul(GROWTH).min(reservation.limit());
        reservation.reach(wanted).await?;
        Ok(self.to_otlp(body, now, parse_tags)?)
    }
}
