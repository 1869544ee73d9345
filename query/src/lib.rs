//! The query side: TraceQL, the engine that answers from recent data and blocks, and Tempo's HTTP API.
//!
//! ```text
//!  HTTP ──► api ──► engine ──┬─► Recent (a trait; the dataflow, for this crate unknown)
//!                     │      └─► storage::blocklist::Blocklist, storage::block::Reader
//!                     └─► traceql: parse once, evaluate on each trace
//! ```
//!
//! Deliberately absent: nothing here writes, nothing here knows timely, and nothing here lists the bucket while a query runs. A query asks
//! recent data first and takes the list of blocks afterwards ([`engine`]); that order is what makes answers complete.

pub mod api;
pub mod engine;
pub mod metrics;
pub mod proto;
pub mod traceql;

mod duration;
#[cfg(test)]
mod tests;

pub use api::{ApiSettings, BuildInfo, router};
pub use engine::{Engine, Limits, Overrides, QueryError, Recent, RecentError, RecentTrace, Settings};
pub use metrics::RequestMetrics;
