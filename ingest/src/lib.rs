//! Receivers and the distributor: from a socket to the write-ahead log.
//!
//! ```text
//!  gRPC 4317 ─┐  read within the byte budget          ┌─ count ─ rate limit ─ validate ─ truncate ─ trace limits ─┐
//!  HTTP 4318 ─┼─ decompress, bounded ── wire bytes ──►│                     Distributor::push                     ├─► Log::append ─► ack
//!  JSON, Jaeger, Zipkin ──translate──► wire bytes ───►└──────────────── refusals: counted, answered ──────────────┘
//! ```
//!
//! An OTLP request stays the bytes that the client sent: nothing builds a tree of its spans. Those of Jaeger and Zipkin are decoded,
//! translated and encoded, and go the same way from there. What is absent on purpose: no batching of
//! requests (the log commits in groups), no grouping by trace (the dataflow does it), no queue of its own (a sender waits for its
//! acknowledgement, and the [`budget`] bounds how many bytes of waiting senders are in memory).
//!
//! Invariants:
//!
//! * A request is acknowledged only after [`Log::append`] returned, or when nothing of it was left to store.
//! * What is appended has been accepted by [`storage::otlp::validate`].
//! * Bytes of requests in memory never exceed the [`Budget`], whatever the senders do, but for a constant per connection.
//! * Every refused span is counted in `tempo_discarded_spans_total`, every refused request in `rubato_ingest_refused_requests_total`.

mod body;
pub mod budget;
mod compression;
pub mod distributor;
pub mod foreign;
mod grpc;
mod http;
mod intake;
pub mod jaeger;
mod json;
pub mod limits;
mod metrics;
mod server;
pub mod status;
pub mod tenant;
mod thrift;
mod traces;
mod wire;
mod zipkin;

pub use self::http::{HttpSettings, otlp_http};
pub use budget::Budget;
pub use distributor::{Distributor, DistributorSettings, Log, PushError, Pushed, Refusal, Rejected};
pub use grpc::{GrpcSettings, jaeger_grpc, otlp_grpc};
pub use jaeger::{JaegerHttpSettings, JaegerUdpSettings, ThriftProtocol, jaeger_thrift_http, jaeger_thrift_udp};
pub use limits::{Limits, LimitsTable, Overrides, RateStrategy, SharedOverrides};
pub use server::{Drained, ServerSettings};
pub use zipkin::{ZipkinSettings, zipkin};
