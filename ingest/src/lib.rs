//! Receivers and the distributor: from a socket to the write-ahead log.
//!
//! ```text
//!  gRPC 4317 ─┐  read within the byte budget          ┌─ count ─ rate limit ─ validate ─ truncate ─┐
//!  HTTP 4318 ─┼─ decompress, bounded ── wire bytes ──►│              Distributor::push             ├─► Sink ─► ack
//!  JSON, Jaeger, Zipkin ──translate──► wire bytes ───►└───────── refusals: counted, answered ──────┘    │
//!                                                                                                        ├─ Local: one process
//!    ┌───────────────────────────────────────────────────────────────────────────────────────────────────┴─ Ring: Replicator
//!    │  by trace, to R ingesters                                   ┌──────────────── Ingester ───────────┐
//!    └─────────────────────────────► Pusher: validate ────────────►│ trace limits ─► Log::append ─► fsync │
//!                                                                  └──────────────────────────────────────┘
//! ```
//!
//! An OTLP request stays the bytes that the client sent: nothing builds a tree of its spans. Those of Jaeger and Zipkin are decoded,
//! translated and encoded, and go the same way from there. What is absent on purpose: no batching of
//! requests (the log commits in groups), no grouping by trace in a single process (the dataflow does it), no queue of its own (a sender waits for
//! its acknowledgement, and the [`budget`] bounds how many bytes of waiting senders are in memory).
//!
//! Invariants:
//!
//! * A request is acknowledged only after [`Log::append`] returned, in a cluster on a quorum of ingesters, or when nothing of it was left to store.
//! * What is appended has been accepted by [`storage::otlp::validate`] in the same process.
//! * Bytes of requests in memory never exceed the [`Budget`], whatever the senders do, but for a constant per connection.
//! * Every refused span is counted in `tempo_discarded_spans_total`, every refused request in `rubato_ingest_refused_requests_total`.

#![forbid(unsafe_code)]

mod body;
pub mod budget;
mod compression;
pub mod distributor;
pub mod foreign;
mod grpc;
mod http;
mod ingester;
mod intake;
pub mod jaeger;
mod json;
pub mod limits;
mod metrics;
mod push_message;
mod pusher;
mod regroup;
mod replicator;
mod scratch;
mod server;
pub mod status;
pub mod tenant;
mod tenants;
mod thrift;
mod traces;
mod unary;
mod usage;
mod wire;
mod zipkin;

pub use self::http::{HttpSettings, otlp_http};
pub use budget::Budget;
pub use compression::{Compression, UnknownCompression};
pub use distributor::{Distributor, DistributorSettings, PushError, Pushed, Refusal, Rejected, Sink};
pub use grpc::{GrpcSettings, jaeger_grpc, otlp_grpc};
pub use ingester::{Ingester, IngesterSettings, Log};
pub use jaeger::{JaegerHttpSettings, JaegerUdpSettings, ThriftProtocol, jaeger_thrift_http, jaeger_thrift_udp};
pub use limits::{Limits, LimitsTable, Overrides, RateStrategy, SharedOverrides};
pub use pusher::{PUSH_BYTES, PUSH_BYTES_V2, Pusher, PusherSettings};
pub use replicator::{CallError, Replicator, ReplicatorSettings};
pub use server::{Admit, Drained, ServerSettings};
pub use tenants::TooManyTenants;
pub use unary::Reply;
pub use usage::{CostAttribution, UsageSettings, UsageTracker};
pub use zipkin::{ZipkinSettings, zipkin};
