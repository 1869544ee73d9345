//! The vocabulary and the durable half of Rubato: spans as wire bytes, the write-ahead log, blocks and the bucket they live in.
//!
//! ```text
//!  OTLP bytes ──otlp::validate──► wal::Wal::append ──ack──► client
//!                                   │
//!                                   ▼ wal::Reader
//!                                segment::Segment  (one trace's spans of one request, still wire bytes)
//!                                   │
//!                                   ▼ block::encode
//!                                backend::Store   (data.parquet, bloom-N, index, meta.json last)
//! ```
//!
//! Nothing here knows of HTTP, gRPC, timely or TraceQL; `ingest`, `dataflow` and `query` stand on this crate and not on each other.

#![forbid(unsafe_code)]

pub mod backend;
pub mod block;
pub mod blocklist;
pub mod cache;
pub mod clock;
pub mod compactor;
pub mod id;
pub mod otlp;
pub mod ownership;
pub mod recent;
pub mod ring;
pub mod segment;
pub mod synthetic;
pub mod tls;
pub mod wal;
