//! Halves that became no edge, counted by side and cause: in the collection, so as exactly as the edges are.

use std::{mem, sync::Arc};

use storage::id::Tenant;

use super::halves::Side;
use crate::generator::{Agg, Definition, Family, Labels, Layout, Observe, Series, Weight};

/// Why a half became no edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The other half did not come in time, and nothing said who it would have been.
    NoPartner,
    /// `max_items` halves waited already.
    MaxItems,
    /// Another client's span of the trace has the same id.
    DuplicateId,
    /// Its resource has no `service.name`.
    NoServiceName,
    /// Filter policies reject the other half.
    Filtered,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::NoPartner, Self::MaxItems, Self::DuplicateId, Self::NoServiceName, Self::Filtered];

    /// Value of the label `cause`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPartner => "no_partner",
            Self::MaxItems => "max_items",
            Self::DuplicateId => "duplicate_id",
            Self::NoServiceName => "no_service_name",
            Self::Filtered => "filtered",
        }
    }
}

impl Side {
    /// Value of the label `side`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Unpaired {
    tenant: Tenant,
    counts: [[Count; Cause::ALL.len()]; 2],
}

#[derive(Debug, Default)]
struct Count {
    /// Since the last flush.
    halves: u32,
    series: Option<Series>,
}

impl Unpaired {
    /// Nothing counted yet.
    pub(super) fn new(tenant: Tenant) -> Self {
        Self { tenant, counts: Default::default() }
    }

    /// One more.
    pub(super) fn count(&mut self, side: Side, cause: Cause) {
        self.counts[side as usize][cause as usize].halves += 1;
    }

    /// Hands out what has come.
    pub(super) fn flush(&mut self, observe: &mut impl Observe) {
        for side in [Side::Client, Side::Server] {
            for cause in Cause::ALL {
                let count = &mut self.counts[side as usize][cause as usize];
                let halves = i128::from(mem::take(&mut count.halves));
                if halves > 0 {
                    let series = count.series.get_or_insert_with(|| series(&self.tenant, side, cause));
                    observe.observe(series, &Agg::counted(Weight(Weight::ONE.0 * halves)));
                }
            }
        }
    }
}

fn series(tenant: &Tenant, side: Side, cause: Cause) -> Series {
    let labels: Labels =
        [("side", side.as_str()), ("cause", cause.as_str())].map(|(name, value)| (Arc::from(name), Arc::from(value))).into_iter().collect();
    Series::new(Definition { tenant: tenant.clone(), family: Family::ServiceGraphUnpaired, labels, layout: Arc::new(Layout::COUNTER) })
}
