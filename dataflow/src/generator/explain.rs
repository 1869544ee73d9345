//! Explains: for each span of a trace, in which series it was counted, or why not.
//!
//! What becomes of a span follows from the span, its tenant's settings and when it arrived, so it is worked out again with the very
//! functions that counted it. Only the limits depend on what else there was: whether the span's series is among the committed ones tells
//! that it was admitted. Blocks do not keep what a sender said beside its spans (`no-generate-metrics`): they are explained as if it had not.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::ResourceSpans};
use prost::Message;
use serde::{Serialize, Serializer};
use storage::{
    id::{SpanKey, Tenant},
    otlp::{self, Walk, WireError},
    segment::Segment,
    wal::Position,
};

use super::{
    FirstSeen,
    accumulate::CARDINALITY_OVERFLOW,
    attributes::{self, RESOURCE_ATTRIBUTES},
    filter::Filter,
    observe::in_time,
    scan::{Keys, Look, scan},
    series::{Definition, Family, Labels, Parts, Series},
    settings::Settings,
    snapshot::Snapshot,
    span_metrics::SpanLabels,
};

/// What became of one span.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Its id.
    #[serde(serialize_with = "hex")]
    pub span_id: u64,
    /// `SPAN_KIND_…`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// `service.name` of its resource.
    pub service: String,
    /// End, Unix nanoseconds.
    pub end_time_unix_nano: u64,
    /// When it arrived, Unix nanoseconds; unknown of a span that is in a block and no longer in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived_unix_nano: Option<u64>,
    /// Whether what is shown and sent includes it already.
    pub committed: bool,
    /// By processor, in the order in which they see it.
    pub outcomes: Vec<Outcome>,
}

/// What one processor made of a span.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It counts in a series.
    Counted {
        /// The processor.
        processor: &'static str,
        /// Metrics of the series.
        metrics: Vec<&'static str>,
        /// Labels of the series.
        labels: BTreeMap<String, String>,
        /// How many spans it stands for.
        weight: f64,
        /// Where it counts really: in its series, or with others because of a limit.
        place: Place,
    },
    /// It is one side of an edge.
    Half {
        /// The processor.
        processor: &'static str,
        /// `client` or `server`.
        side: &'static str,
        /// The span of this trace that is the other side, if it is there.
        #[serde(serialize_with = "optional_hex", skip_serializing_if = "Option::is_none")]
        partner: Option<u64>,
    },
    /// It counts nowhere.
    Discarded {
        /// The processor; `all` for every one.
        processor: &'static str,
        /// As in `tempo_metrics_generator_spans_discarded_total`.
        reason: &'static str,
    },
}

/// Where a counted span is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In the series of its labels.
    Series,
    /// In `{metric_overflow="true"}`: the tenant has `max_active_series`.
    Overflow,
    /// In a series that has `__cardinality_overflow__` for a value: the tenant has `max_cardinality_per_label`.
    LabelOverflow,
    /// Nowhere yet, or no longer: the next commit will show it, or the series has ended.
    NotShown,
}

fn hex<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:016x}"))
}

fn optional_hex<S: Serializer>(id: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => hex(id, serializer),
        None => serializer.serialize_none(),
    }
}

/// Explains the spans of one trace. Segments come with the arrival of their records, where it is known. Of a span that is there twice the
/// first counts, so hand them over in the order of arrival.
pub fn explain(settings: &Settings, snapshot: &Snapshot, tenant: &Tenant, segments: &[(Arc<Segment>, Option<Duration>)]) -> Vec<Explained> {
    let mut keys = Keys::default();
    let labels = settings.span_metrics.as_ref().and_then(|of| SpanLabels::new(tenant.clone(), of, &settings.common, &mut keys).ok());
    let graphs = settings.service_graphs.as_ref().and_then(|of| Filter::new(&of.filter_policies).ok());
    let mut seen: HashMap<SpanKey, usize> = HashMap::new();
    let mut explained: Vec<Explained> = Vec::new();
    // Who is whose parent: (span id, kind) and the parent's id.
    let mut edges: Vec<(SpanKey, u64)> = Vec::new();
    for (segment, arrived) in segments {
        for span in &segment.spans {
            if seen.contains_key(&span.key) {
                continue;
            }
            seen.insert(span.key, explained.len());
            let (resource, encoded) =
                (span.resource.of(&segment.body).unwrap_or_default(), span.span.of(&segment.body).unwrap_or_default());
            let mut values = Vec::new();
            let scanned = scan(encoded, &keys, Look::Always, &mut values);
            let of_resource = keys.find_owned(resource, RESOURCE_ATTRIBUTES);
            let service = attributes::find(resource, RESOURCE_ATTRIBUTES, b"service.name").and_then(attributes::text).unwrap_or_default();
            let first_seen = FirstSeen {
                trace_id: segment.trace_id,
                span_id: span.key.span_id,
                parent_span_id: scanned.parent_span_id,
                kind: span.key.kind,
                status: scanned.status,
                start_ns: scanned.start_ns,
                end_ns: scanned.end_ns,
                service: &service,
                name: scanned.name,
                resource,
                span: encoded,
                of_resource: &of_resource,
                of_span: &values,
            };
            edges.push((span.key, scanned.parent_span_id));
            let arrived_ns = arrived.map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            let slack = u64::try_from(settings.common.slack.as_nanos()).unwrap_or(u64::MAX);
            let outcomes = if !settings.is_active() {
                vec![Outcome::Discarded { processor: "all", reason: "no_processor" }]
            } else if arrived_ns.is_some_and(|at| !in_time(scanned.end_ns, at, slack)) {
                vec![Outcome::Discarded { processor: "all", reason: "outside_metrics_ingestion_slack" }]
            } else {
                outcomes(graphs.as_ref(), labels.as_ref(), snapshot, &first_seen, scanned.message)
            };
            explained.push(Explained {
                span_id: span.key.span_id,
                kind: super::filter::kind_name(span.key.kind).into_owned(),
                name: String::from_utf8_lossy(scanned.name).into_owned(),
                service: service.clone().into_owned(),
                end_time_unix_nano: scanned.end_ns,
                arrived_unix_nano: arrived_ns,
                committed: arrived.is_none_or(|at| at < snapshot.at),
                outcomes,
            });
        }
    }
    find_partners(&mut explained, &edges);
    explained
}

/// The spans of a trace that was read from blocks, as [`explain`] takes them.
///
/// # Errors
/// What was decoded cannot be encoded again.
pub fn segments(tenant: &Tenant, trace: Vec<ResourceSpans>) -> Result<Vec<Arc<Segment>>, WireError> {
    let body = Bytes::from(ExportTraceServiceRequest { resource_spans: trace }.encode_to_vec());
    let mut walk = Walk::default();
    otlp::index(&body, &mut walk)?;
    Ok(Segment::split(tenant, Position::default(), &body, &walk).into_iter().map(Arc::new).collect())
}

/// The other side of an edge: a client's or producer's child, a server's or consumer's parent.
fn find_partners(explained: &mut [Explained], edges: &[(SpanKey, u64)]) {
    let is_client = |key: &SpanKey| key.kind == 3 || key.kind == 4;
    let is_server = |key: &SpanKey| key.kind == 2 || key.kind == 5;
    for (explained, (key, parent)) in explained.iter_mut().zip(edges) {
        let found = edges.iter().find(|(other, other_parent)| {
            if is_client(key) { is_server(other) && *other_parent == key.span_id } else { is_client(other) && other.span_id == *parent }
        });
        for outcome in &mut explained.outcomes {
            if let Outcome::Half { partner, .. } = outcome {
                *partner = found.map(|(other, _)| other.span_id);
            }
        }
    }
}

fn outcomes(
    graphs: Option<&Filter>,
    labels: Option<&SpanLabels>,
    snapshot: &Snapshot,
    span: &FirstSeen<'_>,
    message: &[u8],
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    if let Some(filter) = graphs {
        let processor = "service-graphs";
        outcomes.push(match span.kind {
            2..=5 if span.service.is_empty() => Outcome::Discarded { processor, reason: "no_service_name" },
            2..=5 if !filter.accepts(span) => Outcome::Discarded { processor, reason: "service_graphs_filtered" },
            3 | 4 => Outcome::Half { processor, side: "client", partner: None },
            2 | 5 => Outcome::Half { processor, side: "server", partner: None },
            _ => Outcome::Discarded { processor, reason: "kind_without_edge" },
        });
    }
    if let Some(labels) = labels {
        let processor = "span-metrics";
        let weight = labels.weight(span).as_f64();
        outcomes.push(if labels.filter.accepts(span) {
            match labels.series(span, message) {
                Ok(series) => counted(snapshot, processor, &series, weight),
                Err(_) => Outcome::Discarded { processor, reason: "invalid_utf8" },
            }
        } else {
            Outcome::Discarded { processor, reason: "span_metrics_filtered" }
        });
        if labels.filter.accepts(span)
            && let Ok(Some(series)) = labels.target_info(span.resource)
        {
            outcomes.push(counted(snapshot, processor, &series, 1.0));
        }
    }
    outcomes
}

fn counted(snapshot: &Snapshot, processor: &'static str, series: &Series, weight: f64) -> Outcome {
    let shown = |series: &Series| {
        let of_tenant = snapshot.tenants.get(series.tenant());
        of_tenant.is_some_and(|all| all.binary_search_by_key(&series.id(), |accumulated| accumulated.series.id()).is_ok())
    };
    let overflow = Definition { labels: Labels::new(vec![("metric_overflow".into(), "true".into())]), ..series.definition().clone() };
    let place = match () {
        () if shown(series) => Place::Series,
        () if is_shown_without_values(snapshot, series) => Place::LabelOverflow,
        () if shown(&Series::new(overflow)) => Place::Overflow,
        () => Place::NotShown,
    };
    let labels = series.labels().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Outcome::Counted { processor, metrics: metrics(series.family(), series.layout().parts), labels, weight, place }
}

/// Whether there is a series like this one but for labels that have too many values.
fn is_shown_without_values(snapshot: &Snapshot, series: &Series) -> bool {
    let is_like = |other: &Series| {
        let pairs = other.labels().iter().zip(series.labels().iter());
        other.family() == series.family()
            && other.labels().pairs().len() == series.labels().pairs().len()
            && pairs.into_iter().all(|(other, this)| other.0 == this.0 && (other.1 == this.1 || other.1 == CARDINALITY_OVERFLOW))
    };
    snapshot.tenants.get(series.tenant()).is_some_and(|all| all.iter().any(|accumulated| is_like(&accumulated.series)))
}

fn metrics(family: Family, parts: Parts) -> Vec<&'static str> {
    match family {
        Family::SpanMetrics => [
            (parts.count, "traces_spanmetrics_calls_total"),
            (parts.latency, "traces_spanmetrics_latency"),
            (parts.size, "traces_spanmetrics_size_total"),
        ]
        .into_iter()
        .filter_map(|(wanted, name)| wanted.then_some(name))
        .collect(),
        Family::TargetInfo => vec!["traces_target_info"],
        Family::HostInfo => vec!["traces_host_info"],
        Family::ServiceGraphRequests => vec!["traces_service_graph_request_total"],
        Family::ServiceGraphFailed => vec!["traces_service_graph_request_failed_total"],
        Family::ServiceGraphClient => vec!["traces_service_graph_request_client_seconds"],
        Family::ServiceGraphServer => vec!["traces_service_graph_request_server_seconds"],
        Family::ServiceGraphMessaging => vec!["traces_service_graph_request_messaging_system_seconds"],
        Family::ServiceGraphUnpaired => Vec::new(),
    }
}
