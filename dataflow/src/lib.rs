//! The heart of Rubato: one timely dataflow from the write-ahead log to blocks on the bucket.
//!
//! ```text
//!  WAL ─► reader thread ─bounded─► feed ──Segment @tick──► Exchange(trace) ─► live traces ─► block batch ─► upload pool
//!         (read, index, split)      │  admission               │  first seen      │                            │
//!                                   │                          ▼                  │ Held @checkpoint           │ Done
//!                                   │                      generator ──Shard──┐   ▼                            ▼
//!                                   └──Mark @checkpoint───────────────────────┴► commit (worker 0) ─► manifest ─► meta.json,
//!                                                                                        └► snapshot  blocklist, WAL release
//! ```
//!
//! Logical time is a [`tick`]: 250 ms of arrival time, so a trace that idles does so in the data's time and a replay after a crash
//! cuts as the first run did. Nothing inside timely pushes back; the feed does, by admitting only a few ticks beyond the probe and
//! only while the bytes that the process holds are within their budget. The log on disk takes the difference.
//!
//! What is recovered from what: a span is in a block that the newest [`manifest::Manifest`] lists, or in the WAL at or after the
//! manifest's `held` position, or (the usual case for a moment) in both; on recovery the blocks tell which spans to skip.
//!
//! Workers own their threads and their state. Other threads talk to them through bounded queues only: [`Dataflow`] asks a worker for
//! recent traces and the worker answers between two steps.

#![forbid(unsafe_code)]

mod batch;
pub mod cluster;
mod commit;
mod feed;
mod generation;
pub mod generator;
mod handle;
mod ledger;
mod letters;
pub mod live;
pub mod manifest;
mod metrics;
pub mod records;
pub mod remote_write;
mod seat;
mod settings;
mod steward;
mod tails;
pub mod tick;
mod upload;
mod worker;

pub use handle::{Components, Dataflow, DataflowError, Formations, Membership, Mesh};
pub use seat::Workers;
pub use settings::Settings;
pub use tails::{TailQuestion, Tails};
