//! Tests of the whole program: each starts the real binary on free ports with a folder of its own and talks to it as clients do.
//!
//! One test binary; a module per behaviour. Nothing is asserted about how long something takes: what happens in the background is
//! asked for again until a generous deadline.

mod blocklist;
mod cli;
mod compaction;
mod contract;
mod harness;
mod hostile;
mod image;
mod k8s;
mod limits;
mod losses;
mod membership;
mod memcached;
mod metrics_query;
mod one_definition;
mod prometheus;
mod remote_write;
mod replication;
mod restart;
mod roles;
mod roundtrip;
mod s3;
mod scalable;
mod security;
mod service_graph;
mod soak;
mod tenancy;
mod tools;
