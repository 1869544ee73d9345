//! Starts a dataflow over a log in a temporary folder and a bucket in memory, and reads back what it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use dataflow::{
    Components, Dataflow, DataflowError, Settings,
    generator::{Generator, Snapshots, Tenants},
    manifest::ManifestStore,
};
use object_store::ObjectStore;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use storage::{
    backend::Store,
    block::{self, Projection, Reader},
    blocklist::Blocklist,
    clock::{Clock, SystemClock},
    id::{Tenant, TraceId},
    wal::{self, Wal},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::faults::{Faults, Faulty};

/// Sorted span ids by trace.
pub(crate) type Spans = BTreeMap<TraceId, Vec<u64>>;

pub(crate) fn trace_id(trace: u64) -> TraceId {
    let mut id = [0xab; 16];
    id[..8].copy_from_slice(&trace.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    TraceId(id)
}

pub(crate) fn span_id(trace: u64, span: u64) -> u64 {
    (trace + 1) << 20 | (span + 1)
}

/// A request with the spans, given as numbers of trace and span.
pub(crate) fn request(spans: &[(u64, u64)]) -> Bytes {
    let span = |(trace, span): &(u64, u64)| Span {
        trace_id: trace_id(*trace).0.to_vec(),
        span_id: span_id(*trace, *span).to_be_bytes().to_vec(),
        name: format!("operation {}", span % 5),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000 + span * 1000,
        end_time_unix_nano: 1_700_000_000_000_500_000 + span * 1000,
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: spans.iter().map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

/// A permutation that depends on the seed alone.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for index in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(index, usize::try_from(state >> 33).expect("31 bits") % (index + 1));
    }
}

/// The system's clock, wrong by as much as a test says, and able to take a thread down with it.
#[derive(Debug, Default)]
pub(crate) struct BadClock {
    wrong_by_seconds: AtomicI64,
    /// Beginning of the name of a thread that is to panic.
    victim: Mutex<Option<&'static str>>,
}

impl BadClock {
    pub(crate) fn step_to(&self, wrong_by_seconds: i64) {
        self.wrong_by_seconds.store(wrong_by_seconds, Ordering::SeqCst);
    }

    /// The next time that a thread of this name asks for the time, it panics.
    pub(crate) fn panic_in(&self, thread: &'static str) {
        *self.victim.lock().expect("not poisoned") = Some(thread);
    }

    pub(crate) fn has_panicked(&self) -> bool {
        self.victim.lock().expect("not poisoned").is_none()
    }
}

impl Clock for BadClock {
    fn now(&self) -> Duration {
        let due =
            self.victim.lock().expect("not poisoned").take_if(|name| thread::current().name().is_some_and(|is| is.starts_with(*name)));
        assert!(due.is_none(), "the test wants this thread to fail");
        let wrong_by = self.wrong_by_seconds.load(Ordering::SeqCst);
        let by = Duration::from_secs(wrong_by.unsigned_abs());
        if wrong_by < 0 { SystemClock.now().saturating_sub(by) } else { SystemClock.now() + by }
    }
}

pub(crate) struct Harness {
    clock: Arc<BadClock>,
    runtime: Runtime,
    folder: TempDir,
    objects: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
    registry: prometheus::Registry,
    generator: Option<Generator>,
    running: Option<(Arc<Dataflow>, Components)>,
}

impl Harness {
    pub(crate) fn new(settings: Settings) -> Self {
        Self::with_clock(settings, BadClock::default())
    }

    pub(crate) fn with_clock(settings: Settings, clock: BadClock) -> Self {
        Self::with(settings, clock, None)
    }

    /// With a metrics-generator.
    pub(crate) fn generating(settings: Settings, tenants: Arc<dyn Tenants>) -> Self {
        Self::with(settings, BadClock::default(), Some(Generator { tenants, snapshots: Snapshots::default() }))
    }

    fn with(settings: Settings, clock: BadClock, generator: Option<Generator>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let faults = Arc::new(Faults::default());
        let objects = Arc::new(Faulty { inner: Arc::default(), faults: Arc::clone(&faults) });
        let folder = tempfile::tempdir().expect("folder");
        let (clock, registry) = (Arc::new(clock), prometheus::Registry::new());
        let mut harness = Self { clock, runtime, folder, objects, faults, registry, generator, running: None };
        harness.start(settings, |_| {});
        harness
    }

    fn start(&mut self, settings: Settings, once_open: impl FnOnce(&Path)) {
        self.registry = prometheus::Registry::new();
        let wal_settings = wal::Settings {
            dir: self.folder.path().join("wal"),
            file_bytes: 1 << 20,
            sync: wal::Sync::Never,
            max_bytes: 1 << 30,
            queue_bytes: 1 << 20,
        };
        let clock: Arc<dyn Clock> = Arc::<BadClock>::clone(&self.clock);
        let (wal, _) = Wal::open(wal_settings, Arc::clone(&clock), &self.registry).expect("log");
        once_open(&self.folder.path().join("wal"));
        let store = Store::new(Arc::clone(&self.objects), "");
        let components = Components {
            wal: Some(wal),
            blocklist: self.runtime.block_on(Blocklist::load(&store)).expect("blocklist"),
            store,
            block_settings: Arc::new(block::Settings::default()),
            manifests: ManifestStore::new(Arc::clone(&self.objects), "rubato-manifests"),
            clock,
            generator: self.generator.clone(),
            runtime: self.runtime.handle().clone(),
        };
        let dataflow = Dataflow::start(settings, components.clone(), &self.registry).expect("dataflow");
        self.running = Some((Arc::new(dataflow), components));
    }

    /// Ends the dataflow wherever it is, and begins again from the log and the bucket.
    pub(crate) fn restart(&mut self, settings: Settings) {
        self.restart_with(settings, |_| {});
    }

    /// The same, with something done to the log's folder when it is open and not yet read.
    pub(crate) fn restart_with(&mut self, settings: Settings, once_open: impl FnOnce(&Path)) {
        let (dataflow, components) = self.running.take().expect("running");
        self.runtime.block_on(dataflow.shutdown());
        self.runtime.block_on(components.wal.as_ref().expect("every harness has a log").close());
        drop((dataflow, components));
        self.start(settings, once_open);
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// What the generator shows.
    pub(crate) fn snapshots(&self) -> &Snapshots {
        &self.generator.as_ref().expect("a harness that generates").snapshots
    }

    pub(crate) fn dataflow(&self) -> &Dataflow {
        &self.running.as_ref().expect("running").0
    }

    /// Where commits are recorded.
    pub(crate) fn manifests(&self) -> &ManifestStore {
        &self.components().manifests
    }

    /// Asks for a flush and does not wait for it.
    pub(crate) fn begin_flush(&self) {
        let dataflow = Arc::clone(&self.running.as_ref().expect("running").0);
        self.runtime.spawn(async move { dataflow.flush().await });
    }

    fn components(&self) -> &Components {
        &self.running.as_ref().expect("running").1
    }

    pub(crate) fn wal(&self) -> &Wal {
        self.components().wal.as_ref().expect("every harness has a log")
    }

    pub(crate) fn store(&self) -> &Store {
        &self.components().store
    }

    /// The blocks that queries read.
    pub(crate) fn listed(&self, tenant: &Tenant) -> Vec<block::Meta> {
        self.components().blocklist.blocks(tenant).iter().map(|meta| (**meta).clone()).collect()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|(dataflow, _)| dataflow.is_running())
    }

    pub(crate) fn clock(&self) -> &BadClock {
        &self.clock
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) async fn flush(&self) {
        let flush = async {
            loop {
                match self.running.as_ref().expect("running").0.flush().await {
                    // A generation has ended meanwhile: asked again, as the binary does.
                    Err(DataflowError::Reforming) => tokio::time::sleep(Duration::from_millis(20)).await,
                    other => return other,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), flush).await.expect("a flush ends").expect("flush");
    }

    pub(crate) async fn shutdown(&self) {
        self.running.as_ref().expect("running").0.shutdown().await;
    }

    /// The spans of a trace. Fails when one is there twice: reads the list of blocks, then recent data, then the blocks that the list or the
    /// answer names; what goes into one of them does not count.
    pub(crate) async fn read(&self, tenant: &Tenant, trace_id: TraceId) -> Vec<u64> {
        let (dataflow, components) = self.running.as_ref().expect("running");
        let listed = components.blocklist.stages(tenant);
        let recent = dataflow.trace(tenant, trace_id).await.expect("recent data");
        let mut known: BTreeSet<_> = listed.compacted.iter().map(|compacted| compacted.meta.block_id).collect();
        let blocks: Vec<_> = listed.live.iter().chain(&recent.published).filter(|meta| known.insert(meta.block_id)).cloned().collect();
        let counted = recent.data.iter().filter(|part| part.going.is_none_or(|block| !known.contains(&block)));
        let counted = counted.flat_map(|part| &part.segments).flat_map(|segment| &segment.spans);
        let mut spans: Vec<u64> = counted.map(|span| span.key.span_id).collect();
        for meta in blocks {
            let reader = Reader::open(&components.store, meta).await.expect("block");
            if let Some(trace) = reader.find(trace_id).await.expect("block") {
                spans.extend(span_ids(&trace.resource_spans));
            }
        }
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0] < pair[1]), "trace {trace_id} has spans twice: {spans:x?}");
        spans
    }

    /// Everything in published blocks. Fails when a span is there twice.
    pub(crate) async fn stored(&self, tenant: &Tenant) -> Spans {
        let blocks = self.store().blocks(tenant).await.expect("list");
        self.spans_of(tenant, &blocks).await
    }

    /// Everything in some blocks, published or not. Fails when a span is there twice.
    pub(crate) async fn spans_of(&self, tenant: &Tenant, blocks: &[block::Meta]) -> Spans {
        spans_of(self.store(), tenant, blocks).await
    }

    /// Sum of a counter over its labels.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let sum: f64 = family.map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum());
        sum as u64
    }

    /// Sum of a gauge over its labels.
    pub(crate) fn gauge(&self, name: &str) -> i64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let sum: f64 = family.map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_gauge().get_value()).sum());
        sum as i64
    }

    pub(crate) async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..1500 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in 30 s: {what}");
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some((dataflow, components)) = self.running.take() {
            self.runtime.block_on(dataflow.shutdown());
            self.runtime.block_on(components.wal.as_ref().expect("every harness has a log").close());
        }
    }
}

/// Everything in some blocks, published or not. Fails when a span is there twice.
pub(crate) async fn spans_of(store: &Store, tenant: &Tenant, blocks: &[block::Meta]) -> Spans {
    let mut stored = Spans::new();
    for meta in blocks {
        assert_eq!(meta.tenant_id, *tenant);
        let reader = Reader::open(store, Arc::new(meta.clone())).await.expect("block");
        for row_group in 0..reader.row_groups() {
            for trace in reader.scan(row_group, Projection::ALL).await.expect("scan") {
                stored.entry(trace.trace_id).or_default().extend(span_ids(&trace.resource_spans));
            }
        }
    }
    for (trace, spans) in &mut stored {
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0] < pair[1]), "trace {trace} is stored twice: {spans:x?}");
    }
    stored
}

pub(crate) fn span_ids(resource_spans: &[ResourceSpans]) -> Vec<u64> {
    let spans = resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
    spans.map(|span| u64::from_be_bytes(span.span_id.as_slice().try_into().expect("8 bytes"))).collect()
}
