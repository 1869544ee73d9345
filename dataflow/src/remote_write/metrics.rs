//! What remote write counts. Names and labels are those of Prometheus' sender and of Tempo's registry.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};
use storage::id::Tenant;

const ENDPOINT: [&str; 3] = ["tenant", "remote_name", "url"];

/// The metrics of all tenants and endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    collections: IntCounterVec,
    collections_failed: IntCounterVec,
    settings_failed: IntCounterVec,
    highest_timestamp: GaugeVec,
    samples: IntCounterVec,
    exemplars: IntCounterVec,
    histograms: IntCounterVec,
    samples_failed: IntCounterVec,
    exemplars_failed: IntCounterVec,
    histograms_failed: IntCounterVec,
    samples_retried: IntCounterVec,
    samples_dropped: IntCounterVec,
    samples_pending: IntGaugeVec,
    shards: IntGaugeVec,
    shards_desired: IntGaugeVec,
    shards_max: IntGaugeVec,
    highest_sent: GaugeVec,
    sent_batch_seconds: HistogramVec,
    bytes: IntCounterVec,
    requests: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let gauge = |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &ENDPOINT)?);
        let seconds = |name: &str, help: &str, labels: &[&str]| register(registry, GaugeVec::new(Opts::new(name, help), labels)?);
        let sent = |name: &str, help: &str| counter(&format!("prometheus_remote_storage_{name}"), help, &ENDPOINT);
        let batch_seconds = "prometheus_remote_storage_sent_batch_duration_seconds";
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];
        let batch_seconds = HistogramOpts::new(batch_seconds, "Time of a request, by endpoint").buckets(buckets);
        Ok(Self {
            collections: counter("tempo_metrics_generator_registry_collections_total", "Collections of a tenant's series", &["tenant"])?,
            collections_failed: counter(
                "tempo_metrics_generator_registry_collections_failed_total",
                "Collections that were left out",
                &["tenant", "error_type"],
            )?,
            settings_failed: counter(
                "tempo_metrics_generator_storage_remote_write_update_failed_total",
                "Collections of a tenant whose headers of remote write could not be applied",
                &["tenant"],
            )?,
            highest_timestamp: seconds(
                "prometheus_remote_storage_highest_timestamp_in_seconds",
                "Time of the newest sample that was to be sent",
                &["tenant"],
            )?,
            samples: sent("samples_total", "Samples written")?,
            exemplars: sent("exemplars_total", "Exemplars written")?,
            histograms: sent("histograms_total", "Samples of native histograms written")?,
            samples_failed: sent("samples_failed_total", "Samples that the receiver refused")?,
            exemplars_failed: sent("exemplars_failed_total", "Exemplars that the receiver refused")?,
            histograms_failed: sent("histograms_failed_total", "Samples of native histograms that the receiver refused")?,
            samples_retried: sent("samples_retried_total", "Samples whose request was tried again")?,
            samples_dropped: counter(
                "prometheus_remote_storage_samples_dropped_total",
                "Samples that were not sent, by reason",
                &["tenant", "remote_name", "url", "reason"],
            )?,
            samples_pending: gauge("prometheus_remote_storage_samples_pending", "Samples that wait")?,
            shards: gauge("prometheus_remote_storage_shards", "Requests that may be under way at the same time")?,
            shards_desired: gauge("prometheus_remote_storage_shards_desired", "Requests that should be under way at the same time")?,
            shards_max: gauge("prometheus_remote_storage_shards_max", "Requests that could be under way at the same time")?,
            highest_sent: seconds(
                "prometheus_remote_storage_queue_highest_sent_timestamp_seconds",
                "Time of the newest sample that was written",
                &ENDPOINT,
            )?,
            sent_batch_seconds: register(registry, HistogramVec::new(batch_seconds, &ENDPOINT)?)?,
            bytes: sent("bytes_total", "Compressed bytes of requests")?,
            requests: counter(
                "rubato_remote_write_requests_total",
                "Requests, by what became of them: written, retried, refused, or not_understood by a receiver of the older protocol",
                &["tenant", "remote_name", "url", "outcome", "status"],
            )?,
        })
    }

    pub(crate) fn collected(&self, tenant: &Tenant, at: i64) {
        self.collections.with_label_values(&[tenant.as_str()]).inc();
        #[expect(clippy::cast_precision_loss, reason = "a time as a float")]
        self.highest_timestamp.with_label_values(&[tenant.as_str()]).set(at as f64 / 1e3);
    }

    pub(crate) fn collection_failed(&self, tenant: &Tenant, error_type: &str) {
        self.collections_failed.with_label_values(&[tenant.as_str(), error_type]).inc();
    }

    pub(crate) fn settings_failed(&self, tenant: &Tenant, times: u64) {
        self.settings_failed.with_label_values(&[tenant.as_str()]).inc_by(times);
    }

    pub(crate) fn of_endpoint(&self, tenant: &Tenant, name: &str, url: &str) -> EndpointMetrics {
        let labels = [tenant.as_str(), name, url];
        EndpointMetrics {
            labels: labels.map(str::to_owned),
            samples: self.samples.with_label_values(&labels),
            exemplars: self.exemplars.with_label_values(&labels),
            histograms: self.histograms.with_label_values(&labels),
            samples_failed: self.samples_failed.with_label_values(&labels),
            exemplars_failed: self.exemplars_failed.with_label_values(&labels),
            histograms_failed: self.histograms_failed.with_label_values(&labels),
            samples_retried: self.samples_retried.with_label_values(&labels),
            pending: self.samples_pending.with_label_values(&labels),
            shards: [&self.shards, &self.shards_desired, &self.shards_max].map(|gauge| gauge.with_label_values(&labels)),
            highest_sent: self.highest_sent.with_label_values(&labels),
            seconds: self.sent_batch_seconds.with_label_values(&labels),
            bytes: self.bytes.with_label_values(&labels),
            all: self.clone(),
        }
    }
}

/// The metrics of one tenant at one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointMetrics {
    labels: [String; 3],
    all: Metrics,
    pub(crate) samples: IntCounter,
    pub(crate) exemplars: IntCounter,
    pub(crate) histograms: IntCounter,
    pub(crate) samples_failed: IntCounter,
    pub(crate) exemplars_failed: IntCounter,
    pub(crate) histograms_failed: IntCounter,
    pub(crate) samples_retried: IntCounter,
    pub(crate) pending: IntGauge,
    pub(crate) shards: [IntGauge; 3],
    pub(crate) highest_sent: Gauge,
    pub(crate) seconds: Histogram,
    pub(crate) bytes: IntCounter,
}

impl EndpointMetrics {
    pub(crate) fn dropped(&self, reason: &str, samples: usize) {
        if samples > 0 {
            let [tenant, name, url] = self.labels.each_ref().map(String::as_str);
            self.all.samples_dropped.with_label_values(&[tenant, name, url, reason]).inc_by(samples as u64);
        }
    }

    /// Counts a request. A status of `None` is no answer.
    pub(crate) fn request(&self, outcome: &str, status: Option<u16>) {
        let [tenant, name, url] = self.labels.each_ref().map(String::as_str);
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.all.requests.with_label_values(&[tenant, name, url, outcome, &status]).inc();
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
