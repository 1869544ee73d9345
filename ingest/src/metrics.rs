//! The counters of receivers, distributor and ingester. Names are Tempo's where Tempo has the metric.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, GenericCounter},
};
use storage::id::Tenant;

use crate::traces::Verdict;

/// All metrics that have a tenant only by label, or none.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) accepted_spans: IntCounterVec,
    pub(crate) refused_spans: IntCounterVec,
    pub(crate) refused_requests: IntCounterVec,
    pub(crate) push_duration: Histogram,
    pub(crate) traces_per_batch: Histogram,
    ingress_bytes: IntCounterVec,
    bytes_received: IntCounterVec,
    spans_received: IntCounterVec,
    attributes_truncated: IntCounterVec,
    discarded_spans: IntCounterVec,
    distance_in_future: HistogramVec,
    distance_in_past: HistogramVec,
}

/// The handles of one tenant, so that no label is hashed on the hot path.
#[derive(Debug)]
pub(crate) struct TenantMetrics {
    pub(crate) ingress_bytes: IntCounter,
    pub(crate) bytes_received: IntCounter,
    pub(crate) spans_received: IntCounter,
    pub(crate) attributes_truncated: IntCounter,
    pub(crate) distance_in_future: Histogram,
    pub(crate) distance_in_past: Histogram,
}

/// Why spans were discarded: label `reason` of `tempo_discarded_spans_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discarded {
    RateLimited,
    InvalidTraceId,
    InvalidSpanId,
    LiveTracesExceeded,
    TraceTooLarge,
    UnknownError,
    TooManyTenants,
    WalRefused,
    NotReplicated,
}

impl Discarded {
    const ALL: [Self; 9] = [
        Self::RateLimited,
        Self::InvalidTraceId,
        Self::InvalidSpanId,
        Self::LiveTracesExceeded,
        Self::TraceTooLarge,
        Self::UnknownError,
        Self::TooManyTenants,
        Self::WalRefused,
        Self::NotReplicated,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::InvalidTraceId => "invalid_trace_id",
            Self::InvalidSpanId => "invalid_span_id",
            Self::LiveTracesExceeded => Verdict::LiveTracesExceeded.reason(),
            Self::TraceTooLarge => Verdict::TraceTooLarge.reason(),
            Self::UnknownError => Verdict::Unknown.reason(),
            Self::TooManyTenants => "too_many_tenants",
            Self::WalRefused => "wal_refused",
            Self::NotReplicated => "not_replicated",
        }
    }
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let exponential = |start| prometheus::exponential_buckets(start, 2.0, 10);
        let distance = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(vec![300.0, 1800.0, 3600.0]);
            register(registry, HistogramVec::new(options, &["tenant"])?)
        };
        Ok(Self {
            accepted_spans: counters("tempo_receiver_accepted_spans", "Spans of accepted requests.", &["receiver", "transport"])?,
            refused_spans: counters("tempo_receiver_refused_spans", "Spans of refused requests.", &["receiver", "transport"])?,
            refused_requests: counters(
                "rubato_ingest_refused_requests_total",
                "Requests refused before or by the distributor.",
                &["receiver", "transport", "reason"],
            )?,
            push_duration: register(
                registry,
                Histogram::with_opts(HistogramOpts::new("tempo_distributor_push_duration_seconds", "Time of a push, log included."))?,
            )?,
            traces_per_batch: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("tempo_distributor_traces_per_batch", "Traces in a request.").buckets(exponential(2.0)?),
                )?,
            )?,
            ingress_bytes: counters("tempo_distributor_ingress_bytes_total", "Bytes of requests, before any limit.", &["tenant"])?,
            bytes_received: counters("tempo_distributor_bytes_received_total", "Bytes of requests within the rate.", &["tenant"])?,
            spans_received: counters("tempo_distributor_spans_received_total", "Spans of requests within the rate.", &["tenant"])?,
            attributes_truncated: counters(
                "tempo_distributor_attributes_truncated_total",
                "Attribute keys and values that were cut.",
                &["tenant"],
            )?,
            discarded_spans: counters("tempo_discarded_spans_total", "Spans that were refused.", &["reason", "tenant"])?,
            distance_in_future: distance("tempo_spans_distance_in_future_seconds", "How far after their arrival traces end.")?,
            distance_in_past: distance("tempo_spans_distance_in_past_seconds", "How long before their arrival traces ended.")?,
        })
    }

    pub(crate) fn tenant(&self, tenant: &Tenant) -> TenantMetrics {
        let labels = &[tenant.as_str()];
        TenantMetrics {
            ingress_bytes: self.ingress_bytes.with_label_values(labels),
            bytes_received: self.bytes_received.with_label_values(labels),
            spans_received: self.spans_received.with_label_values(labels),
            attributes_truncated: self.attributes_truncated.with_label_values(labels),
            distance_in_future: self.distance_in_future.with_label_values(labels),
            distance_in_past: self.distance_in_past.with_label_values(labels),
        }
    }

    pub(crate) fn discard(&self, reason: Discarded, tenant: &str, spans: u64) {
        if spans > 0 {
            self.discarded_spans.with_label_values(&[reason.label(), tenant]).inc_by(spans);
        }
    }

    /// Removes the series of a tenant that is gone. A series that never existed is no error.
    pub(crate) fn forget(&self, tenant: &Tenant) {
        let labels = &[tenant.as_str()];
        let counters = [&self.ingress_bytes, &self.bytes_received, &self.spans_received, &self.attributes_truncated];
        for counter in counters {
            let _ = counter.remove_label_values(labels);
        }
        let _ = self.distance_in_future.remove_label_values(labels);
        let _ = self.distance_in_past.remove_label_values(labels);
        for reason in Discarded::ALL {
            let _ = self.discarded_spans.remove_label_values(&[reason.label(), tenant.as_str()]);
        }
    }
}

/// What an ingester counts by tenant.
#[derive(Debug)]
pub(crate) struct IngesterMetrics {
    live_traces: IntGaugeVec,
    bytes_received: IntCounterVec,
}

/// The handles of one tenant.
#[derive(Debug)]
pub(crate) struct IngesterTenantMetrics {
    pub(crate) live_traces: IntGauge,
    pub(crate) bytes_received: IntCounter,
}

/// Values of the label `data_type`; there never was another.
const TRACE: &str = "trace";

impl IngesterMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let live = Opts::new("rubato_ingest_live_traces", "Traces counted against max_traces_per_user.");
        let bytes = Opts::new("tempo_ingester_bytes_received_total", "Bytes of spans handed to the log.");
        Ok(Self {
            live_traces: register(registry, IntGaugeVec::new(live, &["tenant"])?)?,
            bytes_received: register(registry, IntCounterVec::new(bytes, &["tenant", "data_type"])?)?,
        })
    }

    pub(crate) fn tenant(&self, tenant: &Tenant) -> IngesterTenantMetrics {
        IngesterTenantMetrics {
            live_traces: self.live_traces.with_label_values(&[tenant.as_str()]),
            bytes_received: self.bytes_received.with_label_values(&[tenant.as_str(), TRACE]),
        }
    }

    /// Removes the series of a tenant that is gone.
    pub(crate) fn forget(&self, tenant: &Tenant) {
        let _ = self.live_traces.remove_label_values(&[tenant.as_str()]);
        let _ = self.bytes_received.remove_label_values(&[tenant.as_str(), TRACE]);
    }
}

/// What comes of pushes from distributors.
#[derive(Debug)]
pub(crate) struct PusherMetrics {
    refused_pushes: IntCounterVec,
    refused_traces: [IntCounter; Verdict::REFUSALS.len()],
}

impl PusherMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let pushes = Opts::new("rubato_ingester_refused_pushes_total", "Pushes of distributors that were refused as a whole.");
        let traces =
            Opts::new("rubato_ingester_refused_traces_total", "Traces of pushes that were refused, by the reason that was answered.");
        let traces = register(registry, IntCounterVec::new(traces, &["reason"])?)?;
        Ok(Self {
            refused_pushes: register(registry, IntCounterVec::new(pushes, &["reason"])?)?,
            refused_traces: Verdict::REFUSALS.map(|verdict| traces.with_label_values(&[verdict.reason()])),
        })
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused_pushes.with_label_values(&[reason]).inc();
    }

    pub(crate) fn verdict(&self, verdict: Verdict) {
        if let Some(place) = Verdict::REFUSALS.iter().position(|&refusal| refusal == verdict) {
            self.refused_traces[place].inc();
        }
    }
}

/// What a distributor counts about ingesters.
#[derive(Debug)]
pub(crate) struct ReplicatorMetrics {
    pub(crate) clients: IntGauge,
    appends: IntCounterVec,
    append_failures: IntCounterVec,
    pub(crate) sent_bytes: IntCounter,
}

/// The handles of one ingester.
#[derive(Debug)]
pub(crate) struct PeerMetrics {
    pub(crate) appends: IntCounter,
    pub(crate) append_failures: IntCounter,
}

impl ReplicatorMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str| register(registry, IntCounterVec::new(Opts::new(name, help), &["ingester"])?);
        Ok(Self {
            clients: register(
                registry,
                IntGauge::new("tempo_distributor_ingester_clients", "Ingesters that this process is a client of.")?,
            )?,
            appends: counters("tempo_distributor_ingester_appends_total", "Batches sent to an ingester.")?,
            append_failures: counters("tempo_distributor_ingester_append_failures_total", "Batches that an ingester did not take.")?,
            sent_bytes: register(
                registry,
                IntCounter::new("rubato_distributor_replicated_bytes_total", "Bytes of messages for ingesters, compressed, all copies.")?,
            )?,
        })
    }

    pub(crate) fn peer(&self, address: &str) -> PeerMetrics {
        PeerMetrics {
            appends: self.appends.with_label_values(&[address]),
            append_failures: self.append_failures.with_label_values(&[address]),
        }
    }

    /// Removes the series of an ingester that is gone.
    pub(crate) fn forget(&self, address: &str) {
        let _ = self.appends.remove_label_values(&[address]);
        let _ = self.append_failures.remove_label_values(&[address]);
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// What one receiver counts.
#[derive(Clone, Debug)]
pub(crate) struct ReceiverMetrics {
    accepted_spans: IntCounter,
    refused_spans: IntCounter,
    refused_requests: IntCounterVec,
    receiver: &'static str,
    transport: &'static str,
}

/// Values of the label `receiver`.
pub(crate) const OTLP: &str = "otlp/otlp_receiver";
/// See [`OTLP`].
pub(crate) const JAEGER: &str = "jaeger/jaeger_receiver";
/// See [`OTLP`].
pub(crate) const ZIPKIN: &str = "zipkin/zipkin_receiver";

impl ReceiverMetrics {
    pub(crate) fn new(metrics: &Metrics, receiver: &'static str, transport: &'static str) -> Self {
        let labels = &[receiver, transport];
        let handle = |vec: &IntCounterVec| -> GenericCounter<_> { vec.with_label_values(labels) };
        Self {
            accepted_spans: handle(&metrics.accepted_spans),
            refused_spans: handle(&metrics.refused_spans),
            refused_requests: metrics.refused_requests.clone(),
            receiver,
            transport,
        }
    }

    pub(crate) fn accepted(&self, spans: u64) {
        self.accepted_spans.inc_by(spans);
    }

    pub(crate) fn refused(&self, spans: u64, reason: &str) {
        self.refused_spans.inc_by(spans);
        self.refused_requests.with_label_values(&[self.receiver, self.transport, reason]).inc();
    }
}
