//! Jaeger: Thrift over HTTP and UDP, protobuf over gRPC (write-path.md §3.1).
//!
//! ```text
//!  HTTP POST /api/traces   Batch in the binary protocol ────────┐
//!  UDP 6831, 6832          emitBatch(Batch), compact or binary ─┼─► model ─► OTLP ─► Distributor::push
//!  gRPC PostSpans          jaeger.api_v2.Batch  (see `grpc`) ───┘
//! ```
//!
//! A datagram has no answer and no tenant: what cannot be taken is counted, and nothing is taken where tenants are told apart.

mod http;
mod model;
mod proto;
mod thrift;
mod translate;
mod udp;

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

pub use self::{
    http::{JaegerHttpSettings, jaeger_thrift_http},
    udp::{JaegerUdpSettings, ThriftProtocol, jaeger_thrift_udp},
};
use self::{model::Batch, translate::Form};
pub(crate) use proto::POST_SPANS;

/// Bytes that a request takes while it is translated, per byte that came in: the least a span can be written with is some 30 bytes, and
/// decoded and translated it is some 500.
pub(crate) const GROWTH: usize = 16;

/// Translates an encoded `PostSpansRequest` to an encoded `ExportTraceServiceRequest`.
pub(crate) fn from_post_spans(message: &[u8]) -> Result<Bytes, proto::Malformed> {
    Ok(encoded(proto::batch(message)?, Form::Protobuf))
}

fn encoded(batch: Batch, form: Form) -> Bytes {
    TracesData { resource_spans: translate::to_otlp(batch, form) }.encode_to_vec().into()
}
