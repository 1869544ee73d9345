//! Generations over several members, in one process and in many.

mod harness;
mod members;
mod processes;
mod toy;
