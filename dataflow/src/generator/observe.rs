//! Observing: from spans seen for the first time to what they add to which series, gathered over a tick.
//!
//! ```text
//!  (Segment, arrival) ─► counted before? ─► ended in time? ─► service graph ───────────────┐
//!                        (replays)           (slack)        └► filter, key ─► [`Book`] ◄────┘ one entry per series: Agg of this tick
//!                                                                               └─ finish(tick) ─► (Series, Agg)
//! ```
//!
//! Plain state of one worker, no timely. Spans come in the order of ticks. Settings are looked at when a tick begins, so within a tick
//! they do not change.
//!
//! In the steady state nothing is allocated for a span: its labels were built before, and its series is found by a hash of what decides
//! over them. What is remembered for that is bounded by [`Book::MAX`] and forgotten as a whole.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use foldhash::fast::{FoldHasher, RandomState};
use hashbrown::HashTable;
use prometheus::IntCounter;
use storage::{
    id::{SpanKey, Tenant, TraceId},
    otlp::Slice,
    segment::Segment,
};

use super::{
    FirstSeen, Observe,
    agg::{Agg, Weight},
    attributes::{self, RESOURCE_ATTRIBUTES},
    checkpoint::Part,
    filter::FilterError,
    identities::{Identities, identity, tenant_hash},
    metrics::Metrics,
    scan::{KeyNumber, Keys, Look, Scanned, scan},
    series::{Series, SeriesId},
    service_graph::{Half, ServiceGraph},
    settings::{Settings, Tenants},
    snapshot::Exemplar,
    span_metrics::{self, NotUtf8, SpanLabels},
};
use crate::tick::Ticks;

type Map<K, V> = HashMap<K, V, RandomState>;

/// What the series of this worker have gathered in the current tick.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: Vec<Entry>,
    by_id: Map<SeriesId, u32>,
    touched: Vec<u32>,
    exemplars: Vec<(Series, Exemplar)>,
    /// Of each bucket one exemplar is passed on per period.
    period: u64,
}

#[derive(Debug)]
struct Entry {
    series: Series,
    agg: Agg,
    touched: bool,
    period: u64,
    /// Buckets (modulo 64) that had an exemplar in `period`.
    sampled: u64,
}

impl Book {
    /// Series that are remembered from tick to tick, and what is remembered of a tenant to find them. Beyond, all of it is forgotten and
    /// labels are built again.
    const MAX: usize = 200_000;

    fn entry(&mut self, series: &Series) -> u32 {
        *self.by_id.entry(series.id()).or_insert_with(|| {
            self.entries.push(Entry { series: series.clone(), agg: Agg::default(), touched: false, period: 0, sampled: 0 });
            self.entries.len() as u32 - 1
        })
    }

    /// What the entry has gathered, to be added to.
    fn agg(&mut self, index: u32) -> Option<&mut Agg> {
        let entry = self.entries.get_mut(index as usize)?;
        if !mem::replace(&mut entry.touched, true) {
            self.touched.push(index);
        }
        Some(&mut entry.agg)
    }

    fn sample(&mut self, index: u32, exemplar: impl FnOnce() -> Exemplar, bucket: i32) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        if entry.period != self.period {
            (entry.period, entry.sampled) = (self.period, 0);
        }
        let bit = 1 << (bucket & 63);
        if entry.sampled & bit == 0 {
            entry.sampled |= bit;
            self.exemplars.push((entry.series.clone(), exemplar()));
        }
    }

    fn drain(&mut self, mut emit: impl FnMut(Series, Agg)) {
        for index in self.touched.drain(..) {
            let Some(entry) = self.entries.get_mut(index as usize) else { continue };
            entry.touched = false;
            emit(entry.series.clone(), mem::take(&mut entry.agg));
        }
    }
}

impl Observe for Book {
    fn observe(&mut self, series: &Series, agg: &Agg) {
        use differential_dataflow::difference::Semigroup;

        let index = self.entry(series);
        if let Some(sum) = self.agg(index) {
            sum.plus_equals(agg);
        }
    }

    fn exemplar(&mut self, series: &Series, exemplar: Exemplar) {
        let index = self.entry(series);
        self.sample(index, || exemplar, exemplar.bucket);
    }
}

/// What is known of a resource.
#[derive(Debug)]
struct Resource {
    service: String,
    /// By number of the key: the encoded value.
    values: Vec<Option<Box<[u8]>>>,
    /// Gauges that each of its spans refreshes.
    gauges: Vec<u32>,
    is_utf8: bool,
}

/// The resources of the request that was worked on last: its segments follow one another, and most of its spans share a few resources.
#[derive(Debug, Default)]
struct Request {
    /// Held, so that no other request lies at the same place.
    body: Bytes,
    resources: Vec<(Slice, u32)>,
}

impl Request {
    /// More are looked up by their bytes.
    const MAX: usize = 16;

    /// The place of a resource of the request with this body, if it is known.
    fn find(&mut self, body: &Bytes, resource: Slice) -> Option<u32> {
        if self.body.as_ptr() != body.as_ptr() || self.body.len() != body.len() {
            self.resources.clear();
            self.body = body.clone();
        }
        self.resources.iter().find(|(slice, _)| *slice == resource).map(|(_, index)| *index)
    }

    fn remember(&mut self, resource: Slice, index: u32) {
        if self.resources.len() < Self::MAX {
            self.resources.push((resource, index));
        }
    }

    fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Entries of the book by what decides over a span's labels: by 128 bits of hash, seeded anew in each process, as series are told apart by
/// as many. So a span costs one look into one table, and nothing is gathered that lies somewhere else.
#[derive(Debug, Default)]
struct Known {
    table: HashTable<(u64, u64, u32)>,
    hashers: (RandomState, RandomState),
}

impl Known {
    /// The entry under what `key` writes into a hasher; a new one where there is none.
    fn get_or_insert(&mut self, key: impl Fn(&mut FoldHasher<'_>), new: impl FnOnce() -> u32) -> u32 {
        let hash_by = |hasher: &RandomState| {
            let mut hasher = hasher.build_hasher();
            key(&mut hasher);
            hasher.finish()
        };
        let (hash, check) = (hash_by(&self.hashers.0), hash_by(&self.hashers.1));
        let is_there = |known: &(u64, u64, u32)| (known.0, known.1) == (hash, check);
        if let Some((_, _, index)) = self.table.find(hash, is_there) {
            return *index;
        }
        let index = new();
        self.table.insert_unique(hash, (hash, check, index), |known| known.0);
        index
    }
}

/// A span with what was found of it on the wire.
struct Found<'a> {
    trace_id: TraceId,
    key: SpanKey,
    /// Index of its resource.
    resource: u32,
    encoded_resource: &'a [u8],
    encoded: &'a [u8],
    scanned: Scanned<'a>,
    /// By number of the key: the encoded value.
    values: &'a [Option<&'a [u8]>],
}

/// A tenant for whom something is generated.
#[derive(Debug)]
struct Active {
    tenant_hash: u64,
    settings: Arc<Settings>,
    slack: u64,
    labels: Option<SpanLabels>,
    graph: Option<ServiceGraph>,
    /// Of the attributes that either wants.
    wanted: Keys,
    resources: Map<Box<[u8]>, u32>,
    resource_list: Vec<Resource>,
    request: Request,
    /// By what decides over a span's labels: its entry in the book; [`NOT_UTF8`] for labels that cannot be.
    known: Known,
    received: IntCounter,
    received_bytes: IntCounter,
    late: IntCounter,
    filtered: IntCounter,
    not_utf8: IntCounter,
    sanitized: IntCounter,
}

const NOT_UTF8: u32 = u32::MAX;

/// See the module documentation.
#[derive(Debug)]
pub struct Observer {
    source: Arc<dyn Tenants>,
    version: Option<u64>,
    ticks: Ticks,
    workers: usize,
    metrics: Arc<Metrics>,
    /// `None` for a tenant who wants nothing.
    tenants: Map<Tenant, Option<Active>>,
    book: Book,
    /// Ticks in a period of exemplars.
    period: u64,
    tick: u64,
    /// Spans that a generation before has counted.
    counted: Option<Arc<Identities>>,
    /// Identities of the spans seen since [`Self::checkpoint`].
    fresh: Vec<u64>,
    /// Whether halves waited at the last checkpoint.
    waited: bool,
    forget_every: u64,
    forgot: u64,
}

/// How an [`Observer`] is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Who wants what.
    pub source: Arc<dyn Tenants>,
    /// How long a tick is.
    pub ticks: Ticks,
    /// How many workers share the work.
    pub workers: usize,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Ticks in a period of exemplars.
    pub period: u64,
    /// What is remembered to be fast is forgotten this often, in ticks: it may be of series that are long gone.
    pub forget_every: u64,
}

impl Observer {
    /// Has seen nothing yet.
    pub fn new(setup: Setup) -> Self {
        let Setup { source, ticks, workers, metrics, period, forget_every } = setup;
        Self {
            source,
            version: None,
            ticks,
            workers,
            metrics,
            tenants: Map::default(),
            book: Book::default(),
            period: period.max(1),
            tick: 0,
            counted: None,
            fresh: Vec::new(),
            waited: false,
            forget_every: forget_every.max(1),
            forgot: 0,
        }
    }

    /// Goes on from what the generations before have counted and what waited in their service graphs.
    pub(crate) fn restore(&mut self, counted: Option<Arc<Identities>>, halves: Vec<(Tenant, Half)>) {
        self.counted = counted;
        self.waited = !halves.is_empty();
        self.refresh();
        let mut by_tenant: HashMap<Tenant, Vec<Half>> = HashMap::new();
        halves.into_iter().for_each(|(tenant, half)| by_tenant.entry(tenant).or_default().push(half));
        for (tenant, halves) in by_tenant {
            if let Some(graph) = self.active(&tenant).and_then(|active| active.graph.as_mut()) {
                graph.restore(halves);
            }
        }
    }

    /// Looks whether settings have changed.
    fn refresh(&mut self) {
        let version = self.source.version();
        if self.version == Some(version) {
            return;
        }
        self.version = Some(version);
        let tenants: Vec<Tenant> = self.tenants.keys().cloned().collect();
        for tenant in tenants {
            let settings = self.source.settings(&tenant).filter(|settings| settings.is_active());
            let old = self.tenants.remove(&tenant).flatten();
            if old.as_ref().map(|old| &old.settings) == settings.as_ref() {
                self.tenants.insert(tenant, old);
                continue;
            }
            if old.is_some() && settings.is_none() {
                self.metrics.show_processors(&tenant, false, false, false);
            }
            let mut new = settings.map(|settings| self.activate(&tenant, settings));
            // What waits for its other half does not know of settings.
            let halves = old.and_then(|old| old.graph).map(|graph| graph.snapshot());
            if let (Some(graph), Some(halves)) = (new.as_mut().and_then(|new| new.graph.as_mut()), halves) {
                graph.restore(halves);
            }
            self.tenants.insert(tenant, new);
        }
    }

    fn active(&mut self, tenant: &Tenant) -> Option<&mut Active> {
        if !self.tenants.contains_key(tenant) {
            let settings = self.source.settings(tenant).filter(|settings| settings.is_active());
            let active = settings.map(|settings| self.activate(tenant, settings));
            self.tenants.insert(tenant.clone(), active);
        }
        self.tenants.get_mut(tenant)?.as_mut()
    }

    fn activate(&self, tenant: &Tenant, settings: Arc<Settings>) -> Active {
        let common = &settings.common;
        let failed = |error: &FilterError| {
            tracing::error!(%tenant, %error, "metrics cannot be generated with these settings");
            self.metrics.processors_failed.with_label_values(&[tenant.as_str()]).inc();
        };
        let mut wanted = Keys::default();
        let spans = settings.span_metrics.as_ref();
        let labels = spans.and_then(|spans| SpanLabels::new(tenant.clone(), spans, common, &mut wanted).inspect_err(failed).ok());
        let graphs = settings.service_graphs.as_ref();
        let graph = |graphs| ServiceGraph::new(tenant.clone(), graphs, common, self.ticks, self.workers, &mut wanted);
        let graph = graphs.map(graph).and_then(|graph| graph.inspect_err(failed).ok());
        self.metrics.show_processors(tenant, graph.is_some(), labels.is_some(), settings.host_info.is_some());
        let discarded = |reason, processor| self.metrics.spans_discarded.with_label_values(&[tenant.as_str(), reason, processor]);
        Active {
            tenant_hash: tenant_hash(tenant),
            slack: u64::try_from(common.slack.as_nanos()).unwrap_or(u64::MAX),
            labels,
            graph,
            wanted,
            resources: Map::default(),
            resource_list: Vec::new(),
            request: Request::default(),
            known: Known::default(),
            received: self.metrics.spans_received.with_label_values(&[tenant.as_str()]),
            received_bytes: self.metrics.bytes_received.with_label_values(&[tenant.as_str()]),
            late: discarded("outside_metrics_ingestion_slack", "all"),
            filtered: discarded("span_metrics_filtered", "span-metrics"),
            not_utf8: discarded("invalid_utf8", "span-metrics"),
            sanitized: self.metrics.sanitized_span_names.with_label_values(&[tenant.as_str()]),
            settings,
        }
    }

    /// Takes in spans seen for the first time, of a record that arrived `at` (Unix nanoseconds) during `tick`, which is not smaller than
    /// that of any call before.
    pub fn push(&mut self, segment: &Segment, at: u64, tick: u64) {
        if tick != self.tick || self.version.is_none() {
            self.tick = tick;
            self.book.period = tick / self.period;
            self.refresh();
        }
        if self.active(&segment.tenant).is_none() {
            return;
        }
        let Self { tenants, book, counted, fresh, .. } = self;
        let Some(active) = tenants.get_mut(&segment.tenant).and_then(Option::as_mut) else { return };
        let mut values = Vec::new();
        let (mut received, mut received_bytes, mut late) = (0, 0, 0);
        for span in &segment.spans {
            let id = identity(active.tenant_hash, segment.trace_id, span.key);
            if counted.as_ref().is_some_and(|counted| counted.contains(id)) {
                continue;
            }
            fresh.push(id);
            let encoded = span.span.of(&segment.body).unwrap_or_default();
            received += 1;
            received_bytes += encoded.len() as u64;
            let scanned = scan(encoded, &active.wanted, active.looks(span.key.kind), &mut values);
            if !in_time(scanned.end_ns, at, active.slack) {
                late += 1;
                continue;
            }
            let encoded_resource = span.resource.of(&segment.body).unwrap_or_default();
            let resource = match active.request.find(&segment.body, span.resource) {
                Some(resource) => resource,
                None => {
                    let resource = active.resource(&segment.tenant, encoded_resource, book);
                    active.request.remember(span.resource, resource);
                    resource
                }
            };
            let found = Found { trace_id: segment.trace_id, key: span.key, resource, encoded_resource, encoded, scanned, values: &values };
            active.span(&found, tick, book);
        }
        active.received.inc_by(received);
        active.received_bytes.inc_by(received_bytes);
        if late > 0 {
            active.late.inc_by(late);
        }
    }

    /// All spans up to and including `tick` have been pushed: what was gathered is handed out, with examples.
    pub fn finish(&mut self, tick: u64, emit: impl FnMut(Series, Agg), exemplar: impl FnMut((Series, Exemplar))) {
        for (tenant, active) in &mut self.tenants {
            let Some(active) = active else { continue };
            active.request.forget();
            if let Some(graph) = &mut active.graph {
                graph.advance(tick, &mut self.book);
                let counts = graph.take_counts();
                self.metrics.service_graphs.add(tenant, counts);
                if counts.filtered_spans > 0 {
                    let labels = [tenant.as_str(), "service_graphs_filtered", "service-graphs"];
                    self.metrics.spans_discarded.with_label_values(&labels).inc_by(counts.filtered_spans);
                }
            }
        }
        self.book.drain(emit);
        self.book.exemplars.drain(..).for_each(exemplar);
        if self.book.entries.len() > Book::MAX || tick / self.forget_every != self.forgot {
            self.forgot = tick / self.forget_every;
            self.book.entries.clear();
            self.book.by_id.clear();
            self.tenants.values_mut().flatten().for_each(Active::forget);
        }
        // Many resources may share few series.
        let is_large = |active: &&mut Active| active.known.table.len() + active.resource_list.len() > Book::MAX;
        self.tenants.values_mut().flatten().filter(is_large).for_each(Active::forget);
        if self.counted.as_ref().is_some_and(|counted| counted.expires < tick) {
            self.counted = None;
        }
    }

    /// Identities of the spans seen since the last checkpoint, and the halves that wait now.
    pub(crate) fn checkpoint(&mut self) -> Part {
        let waiting = self.tenants.iter().filter_map(|(tenant, active)| Some((tenant, active.as_ref()?.graph.as_ref()?)));
        let halves: Vec<_> = waiting.flat_map(|(tenant, graph)| graph.snapshot().into_iter().map(|half| (tenant.clone(), half))).collect();
        let waits = !halves.is_empty();
        let changed = mem::replace(&mut self.waited, waits) || waits;
        Part::Observed { identities: mem::take(&mut self.fresh), halves, changed }
    }
}

/// Whether a span that ended at `end` and arrived at `at` counts.
pub(crate) fn in_time(end: u64, at: u64, slack: u64) -> bool {
    end.abs_diff(at) <= slack
}

impl Active {
    fn forget(&mut self) {
        self.resources.clear();
        self.resource_list.clear();
        self.request.forget();
        self.known.table.clear();
    }

    /// Whose attributes are looked at, of spans of a kind.
    fn looks(&self, kind: i32) -> Look {
        let labels = self.labels.as_ref().map_or(Look::Never, SpanLabels::looks);
        labels.max(self.graph.as_ref().map_or(Look::Never, |graph| graph.looks(kind)))
    }

    fn resource(&mut self, tenant: &Tenant, encoded: &[u8], book: &mut Book) -> u32 {
        if let Some(index) = self.resources.get(encoded) {
            return *index;
        }
        let mut is_utf8 = true;
        let service = attributes::find(encoded, RESOURCE_ATTRIBUTES, b"service.name").map_or(Some("".into()), attributes::text);
        let service = service.map_or_else(String::new, |service| service.into_owned());
        let mut gauges = Vec::new();
        let mut gauge = |series: Result<Option<Series>, NotUtf8>| match series {
            Ok(Some(series)) => gauges.push(book.entry(&series)),
            Ok(None) => {}
            Err(NotUtf8) => is_utf8 = false,
        };
        if let Some(labels) = &self.labels {
            gauge(labels.target_info(encoded));
        }
        if let Some(settings) = &self.settings.host_info {
            gauge(span_metrics::host_info(tenant, settings, &self.settings.common, encoded));
        }
        let values = self.wanted.find_owned(encoded, RESOURCE_ATTRIBUTES);
        let index = self.resource_list.len() as u32;
        self.resource_list.push(Resource { service, values, gauges, is_utf8 });
        self.resources.insert(encoded.into(), index);
        index
    }

    /// A span that is new and in time.
    fn span(&mut self, found: &Found<'_>, tick: u64, book: &mut Book) {
        let Some(resource) = self.resource_list.get(found.resource as usize) else { return };
        let span = FirstSeen {
            trace_id: found.trace_id,
            span_id: found.key.span_id,
            parent_span_id: found.scanned.parent_span_id,
            kind: found.key.kind,
            status: found.scanned.status,
            start_ns: found.scanned.start_ns,
            end_ns: found.scanned.end_ns,
            service: &resource.service,
            name: found.scanned.name,
            resource: found.encoded_resource,
            span: found.encoded,
            of_resource: &resource.values,
            of_span: found.values,
        };
        if let Some(graph) = &mut self.graph {
            graph.push(&span, tick);
        }
        if let Some(labels) = &self.labels {
            if !labels.filter.accepts(&span) {
                self.filtered.inc();
                return;
            }
            if !resource.is_utf8 {
                self.not_utf8.inc();
                return;
            }
            let with_message = labels.settings.intrinsic_dimensions.status_message;
            let key = |hasher: &mut FoldHasher<'_>| write_key(hasher, found, with_message, &labels.keys, &resource.values);
            let index = self.known.get_or_insert(key, || {
                if labels.has_pattern(span.name) {
                    self.sanitized.inc();
                }
                let series = labels.series(&span, found.scanned.message);
                series.map_or(NOT_UTF8, |series| book.entry(&series))
            });
            if index == NOT_UTF8 {
                self.not_utf8.inc();
                return;
            }
            let weight = labels.weight(&span);
            let nanoseconds = span.end_ns.saturating_sub(span.start_ns);
            let Some(agg) = book.agg(index) else { return };
            let bucket = labels.bucketer.observe(agg, nanoseconds, weight);
            agg.size = agg.size.wrapping_add(span.span.len() as i128);
            if labels.settings.parts.latency {
                book.sample(index, || Exemplar { bucket, trace_id: span.trace_id, nanoseconds, at: span.end_ns }, bucket);
            }
        }
        for gauge in &resource.gauges {
            if let Some(agg) = book.agg(*gauge) {
                agg.count.0 += Weight::ONE.0;
            }
        }
    }
}

/// What decides over the labels of a span, as it lies on the wire. Each part has a fixed length or says how long it is.
#[inline]
fn write_key(hasher: &mut impl Hasher, found: &Found<'_>, with_message: bool, keys: &[KeyNumber], of_resource: &[Option<Box<[u8]>>]) {
    let sized = |hasher: &mut _, part: &[u8]| {
        Hasher::write_u32(hasher, part.len() as u32);
        Hasher::write(hasher, part);
    };
    hasher.write_u32(found.resource);
    hasher.write_i32(found.key.kind);
    hasher.write_i32(found.scanned.status);
    sized(hasher, found.scanned.name);
    if with_message {
        sized(hasher, found.scanned.message);
    }
    for key in keys {
        match (&of_resource[*key], found.values[*key]) {
            (None, Some(value)) => sized(hasher, value),
            // No value is that long.
            _ => hasher.write_u32(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;
    use storage::{
        otlp::{self, Walk},
        synthetic,
        wal::Position,
    };

    use super::*;
    use crate::generator::{
        accumulate::{Accumulator, Routes},
        settings::{Common, Fixed, SpanMetrics},
    };
    use crate::seat::Workers;

    fn segments() -> Vec<Segment> {
        let mut walk = Walk::default();
        let split = |request: &Bytes| {
            otlp::index(request, &mut walk).expect("synthetic requests are valid");
            Segment::split(&Tenant::single(), Position(0), request, &walk)
        };
        synthetic::requests(3, 30).iter().flat_map(split).collect()
    }

    /// The sums after `segments` went to workers and ticks as told.
    fn sums(segments: &[Segment], places: &[(usize, u64)]) -> BTreeMap<SeriesId, Agg> {
        let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).expect("nothing is registered"));
        let common = Common { slack: Duration::from_secs(u64::from(u32::MAX)), ..Common::default() };
        let span_metrics =
            Some(SpanMetrics { enable_target_info: true, dimensions: vec!["http.method".to_owned()], ..SpanMetrics::default() });
        let settings = Arc::new(Settings { span_metrics, common, ..Settings::default() });
        let source: Arc<dyn Tenants> = Arc::new(Fixed { default: Some(settings), ..Fixed::default() });
        let ticks = Ticks::new(Duration::from_millis(250));
        let setup = Setup { source: Arc::clone(&source), ticks, workers: 3, metrics: Arc::clone(&metrics), period: 4, forget_every: 3 };
        let mut accumulator = Accumulator::new(Arc::clone(&source), Routes::new(source, Workers::new([0])), metrics, 1000, []);
        let mut observers = [(); 3].map(|()| Observer::new(setup.clone()));
        for tick in 0..5 {
            let mut updates = Vec::new();
            for (worker, observer) in observers.iter_mut().enumerate() {
                for (segment, place) in segments.iter().zip(places.iter().cycle()) {
                    if *place == (worker, tick) {
                        observer.push(segment, 0, tick);
                    }
                }
                observer.finish(tick, |series, agg| updates.push((series, agg)), |_| {});
            }
            accumulator.apply(updates, tick);
        }
        accumulator.checkpoint(5).0.iter().map(|accumulated| (accumulated.series.id(), accumulated.agg.clone())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn neither_workers_nor_ticks_matter(places in prop::collection::vec((0..3usize, 0..5u64), 1..200)) {
            let segments = segments();
            let here = sums(&segments, &[(0, 0)]);
            prop_assert!(here.len() > 100);
            prop_assert_eq!(sums(&segments, &places), here);
        }
    }
}
