//! The querier: takes jobs from query-frontends and runs them.
//!
//! ```text
//!  frontend 1 ◄── streams ──┐            ┌─► Units ──► blocks
//!                           ├─ workers ──┤      │
//!  frontend 2 ◄── streams ──┘            └──────┴────► Ingesters ──► rubato.Recent of every process that takes spans in
//! ```
//!
//! A querier knows neither tenants' limits nor which blocks there are: all that is in the jobs. It asks the processes that take spans in by
//! their own service, which runs a job where the data is; whoever knows only `tempopb.Querier` may ask them by that.

mod addresses;
mod ingesters;
mod recent;
mod workers;

pub use self::{
    addresses::{Addresses, look_up},
    ingesters::Ingesters,
    recent::RecentService,
    workers::{WorkerSettings, Workers},
};
