//! The metrics-generator: span metrics and service graphs as differential collections.
//!
//! ```text
//!  live traces ──first seen──► observe ─────────────(Series, tick, Agg)──► arrange, routed by series ──► accumulate ──► shards
//!   (owner of the trace)        │ admission, labels, pre-aggregation           [differential]              │ limits       │ as of a
//!                               │ pairing of halves (service graphs)                                      │ staleness    │ checkpoint
//!                               └─ identities counted, halves that wait ───────────────────────────────────────────────► commit
//!                                                                                           manifest on the bucket ─► Snapshots
//! ```

pub mod accumulate;
pub mod agg;
pub mod attributes;
pub(crate) mod checkpoint;
mod demand;
pub mod explain;
pub mod filter;
pub mod histogram;
mod identities;
pub mod metrics;
pub mod observe;
pub(crate) mod operators;
pub mod scan;
pub mod series;
pub mod service_graph;
pub mod settings;
pub mod snapshot;
pub mod span_metrics;
pub mod span_names;

pub use agg::{Agg, Buckets, Weight};
pub use series::{Definition, Family, Labels, Layout, Parts, Series, SeriesId};
pub use settings::{Settings, Tenants};
pub use snapshot::{Accumulated, Exemplar, Snapshot, Snapshots};

use std::sync::Arc;

use storage::id::TraceId;

use self::scan::KeyNumber;

/// What the dataflow needs in order to generate metrics.
#[derive(Clone, Debug)]
pub struct Generator {
    /// Who wants what.
    pub tenants: Arc<dyn Tenants>,
    /// Where committed series are shown.
    pub snapshots: Snapshots,
}

/// A span that was seen for the first time, with what every processor asks for already read.
#[derive(Clone, Copy, Debug)]
pub struct FirstSeen<'a> {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its own id.
    pub span_id: u64,
    /// Its parent's id; 0 for a root span.
    pub parent_span_id: u64,
    /// OTLP kind: 0 unspecified, 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// OTLP status: 0 unset, 1 ok, 2 error.
    pub status: i32,
    /// Start, Unix nanoseconds.
    pub start_ns: u64,
    /// End, Unix nanoseconds.
    pub end_ns: u64,
    /// `service.name` of its resource as the text of a label; empty where there is none.
    pub service: &'a str,
    /// Its name, UTF-8.
    pub name: &'a [u8],
    /// The encoded `Resource`, for [`attributes::find`] with [`attributes::RESOURCE_ATTRIBUTES`].
    pub resource: &'a [u8],
    /// The encoded `Span`, for [`attributes::find`] with [`attributes::SPAN_ATTRIBUTES`].
    pub span: &'a [u8],
    /// Encoded `AnyValue`s of the resource, by number of their key.
    pub of_resource: &'a [Option<Box<[u8]>>],
    /// Encoded `AnyValue`s of the span, by number of their key; empty if nobody wanted to look at them.
    pub of_span: &'a [Option<&'a [u8]>],
}

impl<'a> FirstSeen<'a> {
    /// The value under a key in the resource or else in the span.
    pub fn value(&self, key: KeyNumber) -> Option<&'a [u8]> {
        self.resource_value(key).or_else(|| self.own_value(key))
    }

    /// The value under a key in the resource.
    pub fn resource_value(&self, key: KeyNumber) -> Option<&'a [u8]> {
        self.of_resource.get(key)?.as_deref()
    }

    /// The value under a key in the span itself.
    pub fn own_value(&self, key: KeyNumber) -> Option<&'a [u8]> {
        *self.of_span.get(key)?
    }
}

/// Takes observations of one tick.
pub trait Observe {
    /// Adds to a series of the tenant that is being worked on.
    fn observe(&mut self, series: &Series, agg: &Agg);

    /// Offers an example of a duration; few of many are kept.
    fn exemplar(&mut self, series: &Series, exemplar: Exemplar);
}
