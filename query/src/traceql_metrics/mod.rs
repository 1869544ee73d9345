//! TraceQL metrics: spans to numbers over time.
//!
//! ```text
//!  text, times ─► MetricsRequest ──┬──► Observer ◄── batches of a block, or of recent data      one per job
//!                 (window, bounds) │       │
//!                                  │    Partial ──encode──► … ──decode──► Partial               between processes
//!                                  │       └──────────── merge ──────────────┘
//!                                  └──► finish_range, finish_instant: series, second stages, exemplars, limits
//! ```
//!
//! The pipeline of a query leaves spans (`exec`); here they are put into intervals by the time they start, into groups by the values of the `by`
//! fields, and their values into cells. Cells add up exactly, so that an answer does not depend on how its data was split into jobs, on
//! which of them came first, or on whether a job was asked twice: the same query on the same data gives the same answer, bit by bit.
//! Sampling hints are therefore ignored: an exact answer is always an acceptable one.
//!
//! | module | holds |
//! |---|---|
//! | `request` | a query with its time axis and bounds |
//! | `window` | intervals |
//! | `observe`, `rows` | the loops over batches |
//! | `partial`, `cells`, `exact` | what is counted, and its sums |
//! | `compare`, `tally` | counts of `compare()`, and the loops that count |
//! | `exemplars` | spans that stand for a series |
//! | `wire` | partial results as bytes |
//! | `finish`, `second`, `labels` | series as clients see them |
//!
//! Deliberately absent: nothing here reads blocks, knows HTTP, or keeps anything from one query to the next.

mod cells;
mod compare;
mod error;
mod exact;
mod exemplars;
mod finish;
mod labels;
mod observe;
mod partial;
mod request;
mod rows;
mod second;
mod tally;
mod window;
mod wire;

pub use self::{
    error::MetricsError,
    finish::{Cost, finish_instant, finish_part, finish_range},
    labels::{Group, LabelValue},
    observe::Observer,
    partial::Partial,
    request::{Asked, MetricsLimits, MetricsRequest},
    window::{Window, WindowError},
};

#[cfg(test)]
mod tests;
