//! Jaeger: Thrift over HTTP and UDP, protobuf over gRPC (write-path.md §3.1).
//!
//! ```text
//!  HTTP POST /api/traces   Batch in the binary protocol ────────┐
//!  UDP 6831, 6832          emitBatch(Batch), compact or binary ─┼─► model ─► OTLP ─► Distributor::push
//!  gRPC PostSpans          jaeger.api_v2.Batch  (see `grpc`) ───┘
//! ```
//!
//! [`thrift_body`] goes the other way, for spans that are sent to a collector.
//!
//! A datagram has no answer and no tenant: what cannot be taken is counted, and nothing is taken where tenants are told apart.

mod http;
pub mod model;
mod proto;
mod thrift;
mod translate;
mod udp;
mod write;

use opentelemetry_proto::tonic::trace::v1::ResourceSpans;

use self::translate::{Form, to_otlp};
pub use self::{
    http::{JaegerHttpSettings, jaeger_thrift_http},
    udp::{JaegerUdpSettings, ThriftProtocol, jaeger_thrift_udp},
    write::thrift_body,
};
use crate::{foreign::Malformed, thrift::Protocol};
pub(crate) use proto::POST_SPANS;

/// Why a datagram that is well-formed is not taken.
const UNKNOWN_METHOD: &str = "not a call of emitBatch";

/// A `Batch` in the binary protocol.
pub(crate) fn of_thrift(body: &[u8]) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(to_otlp(thrift::batch_of_body(body).map_err(Malformed::new)?, Form::Thrift))
}

/// A call of `emitBatch`.
pub(crate) fn of_datagram(protocol: ThriftProtocol, datagram: &[u8]) -> Result<Vec<ResourceSpans>, Malformed> {
    let protocol = match protocol {
        ThriftProtocol::Compact => Protocol::Compact,
        ThriftProtocol::Binary => Protocol::Binary,
    };
    let batch = thrift::batch_of_datagram(protocol, datagram).map_err(Malformed::new)?;
    Ok(to_otlp(batch.ok_or_else(|| Malformed::new(UNKNOWN_METHOD))?, Form::Thrift))
}

/// A `PostSpansRequest`.
pub(crate) fn of_protobuf(message: &[u8]) -> Result<Vec<ResourceSpans>, Malformed> {
    Ok(to_otlp(proto::batch(message).map_err(Malformed::new)?, Form::Protobuf))
}
