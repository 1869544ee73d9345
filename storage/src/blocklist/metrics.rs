//! What polls say of themselves, by the names of Tempo where it has them.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, histogram_opts, opts,
    register_histogram_with_registry, register_int_counter_vec_with_registry, register_int_counter_with_registry,
    register_int_gauge_vec_with_registry,
};

use super::{Blocklist, poller::Cost};
use crate::{block::Meta, id::Tenant};

#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) duration: Histogram,
    pub(super) errors: IntCounterVec,
    pub(super) index_errors: IntCounterVec,
    pub(super) index_builder: IntGaugeVec,
    pub(super) index_age: IntGaugeVec,
    length: IntGaugeVec,
    objects: IntGaugeVec,
    bytes: IntGaugeVec,
    requests: IntCounterVec,
    transferred: IntCounterVec,
    listed: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let duration: HistogramOpts = histogram_opts!("tempodb_blocklist_poll_duration_seconds", "Time to poll the bucket.");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let opts: Opts = opts!(name, help);
            register_int_counter_vec_with_registry!(opts, labels, registry)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let opts: Opts = opts!(name, help);
            register_int_gauge_vec_with_registry!(opts, labels, registry)
        };
        Ok(Self {
            duration: register_histogram_with_registry!(duration, registry)?,
            errors: counters("tempodb_blocklist_poll_errors_total", "Polls of a tenant that failed.", &["tenant"])?,
            index_errors: counters("tempodb_blocklist_tenant_index_errors_total", "Tenant indexes that could not be used.", &["tenant"])?,
            index_builder: gauges("tempodb_blocklist_tenant_index_builder", "1 if this process builds the tenant's index.", &["tenant"])?,
            index_age: gauges(
                "tempodb_blocklist_tenant_index_age_seconds",
                "Age of the tenant's index when it was last used.",
                &["tenant"],
            )?,
            length: gauges("tempodb_blocklist_length", "Live blocks.", &["tenant"])?,
            objects: gauges("tempodb_backend_objects_total", "Traces in blocks.", &["tenant", "status"])?,
            bytes: gauges("tempodb_backend_bytes_total", "Bytes of blocks.", &["tenant", "status"])?,
            requests: counters("rubato_blocklist_poll_requests_total", "Requests to the bucket that polls made.", &["operation"])?,
            transferred: counters("rubato_blocklist_poll_index_bytes_total", "Bytes of tenant indexes, compressed.", &["direction"])?,
            listed: register_int_counter_with_registry!(
                "rubato_blocklist_poll_listed_objects_total",
                "Objects in the listings that polls made.",
                registry
            )?,
        })
    }

    pub(super) fn count(&self, cost: &Cost) {
        for (operation, requests) in [
            ("list_tenants", cost.tenant_listings),
            ("list_blocks", cost.listings),
            ("read_meta", cost.metas_read),
            ("read_index", cost.indexes_read + cost.indexes_unchanged),
            ("write_index", cost.indexes_written),
            ("delete", cost.deletions),
        ] {
            self.requests.with_label_values(&[operation]).inc_by(requests);
        }
        self.transferred.with_label_values(&["read"]).inc_by(cost.bytes_read);
        self.transferred.with_label_values(&["written"]).inc_by(cost.bytes_written);
        self.listed.inc_by(cost.objects_listed);
    }

    /// Shows what the list has of a tenant.
    pub(super) fn show(&self, list: &Blocklist, tenant: &Tenant) {
        let (live, compacted) = (list.blocks(tenant), list.compacted(tenant));
        self.length.with_label_values(&[tenant.as_str()]).set(signed(live.len() as u64));
        self.show_sums(tenant, "live", live.iter().map(AsRef::as_ref));
        self.show_sums(tenant, "compacted", compacted.iter().map(|compacted| compacted.meta.as_ref()));
    }

    fn show_sums<'a>(&self, tenant: &Tenant, status: &str, metas: impl Iterator<Item = &'a Meta>) {
        let (objects, bytes) = metas
            .fold((0u64, 0u64), |(objects, bytes), meta| (objects.saturating_add(meta.total_objects), bytes.saturating_add(meta.size)));
        self.objects.with_label_values(&[tenant.as_str(), status]).set(signed(objects));
        self.bytes.with_label_values(&[tenant.as_str(), status]).set(signed(bytes));
    }

    /// Forgets a tenant that is gone.
    pub(super) fn forget(&self, tenant: &Tenant) {
        // What was never shown cannot be removed, which is as well.
        for gauge in [&self.length, &self.index_builder, &self.index_age] {
            _ = gauge.remove_label_values(&[tenant.as_str()]);
        }
        for status in ["live", "compacted"] {
            _ = self.objects.remove_label_values(&[tenant.as_str(), status]);
            _ = self.bytes.remove_label_values(&[tenant.as_str(), status]);
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
