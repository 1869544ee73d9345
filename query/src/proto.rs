//! The messages and services of Tempo's query API, generated from `proto/`.
//!
//! Spans, resources and attributes are those of `opentelemetry-proto`: Tempo's copies have the same field numbers. The JSON form of the
//! messages is written by `api::json`; names there follow the protobuf JSON mapping, mixed case included.

#![allow(
    missing_docs,
    unused_qualifications,
    clippy::clone_on_ref_ptr,
    reason = "generated; fields whose name says everything have no comment"
)]

tonic::include_proto!("tempopb");

/// The protocol between query-frontend and queriers.
pub mod frontend {
    tonic::include_proto!("frontend");
}

/// HTTP in gRPC messages.
pub mod httpgrpc {
    tonic::include_proto!("httpgrpc");
}

/// Our own questions for recent data.
pub mod rubato {
    tonic::include_proto!("rubato");
}
