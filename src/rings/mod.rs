//! The rings of this process: its own place in some of them, and the view that it has of all.
//!
//! ```text
//!  configuration ──► Lifecycler (PENDING → JOINING → ACTIVE → LEAVING → LEFT, heartbeats) ──► memberlist::Store ──► storage::ring::Rings
//!                                                                                                  ▲
//!                                                                        pages: POST forget=<id> ──┘
//! ```
//!
//! A process without others (`kvstore: inmemory`) has the same rings with itself as the only member, and no socket for them.

pub(crate) mod address;
mod lifecycle;
mod metrics;
pub(crate) mod page;
mod tokens;

pub(crate) use self::{
    lifecycle::{Lifecycler, Settings},
    metrics::observe,
};
