//! The query side: TraceQL, the engine that answers from recent data and blocks, and Tempo's API over HTTP and gRPC.
//!
//! ```text
//!  HTTP ──► api ───┬─► engine ── jobs ──► units ──┬─► Recent (a trait; the dataflow, for this crate unknown)
//!  gRPC ──► grpc ──┘    │                 │         └─► storage::block::Reader
//!                       │                 └─► traceql: parse once, evaluate on each trace
//!                       └─► storage::blocklist
//! ```
//!
//! Deliberately absent: nothing here writes, nothing here knows timely, and nothing here lists the bucket while a query runs. How an answer is
//! complete although data moves meanwhile, and although the list of blocks may be old, is told in [`engine`].

#![forbid(unsafe_code)]

pub mod api;
pub mod columns;
pub mod engine;
pub mod exec;
pub mod frontend;
pub mod grpc;
pub mod job;
pub mod metrics;
pub mod proto;
pub mod querier;
pub mod traceql;
pub mod traceql_metrics;

mod duration;
#[cfg(test)]
mod tests;

pub use api::{ApiSettings, BuildInfo, querier_router, router, tenant_of};
pub use engine::{Engine, ExternalTraces, Limits, Overrides, QueryError, Recent, RecentError, RecentSource, Settings, Units};
pub use grpc::{recent_metrics, recent_querier, streaming_querier};
pub use metrics::{InFlight, RequestMetrics, Slo, Slos};
