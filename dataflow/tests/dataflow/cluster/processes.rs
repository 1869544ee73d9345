//! Several processes of a cluster in one: each with a log, a blocklist and a dataflow of its own, over one bucket and loopback sockets.
//! A member that is lost stops wherever it is; its sockets break, and the others must form again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    error::Error,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
use dataflow::{
    Components, Dataflow, DataflowError, Formations, Membership, Settings, TailQuestion, Tails,
    cluster::{Cause, Epoch, Formation, Lost, Member, Role},
    generator::{Generator, Snapshot, Snapshots, Tenants},
    manifest::ManifestStore,
};
use object_store::memory::InMemory;
use parking_lot::Condvar;
use storage::{
    backend::Store,
    block::{self, Reader},
    blocklist::Blocklist,
    clock::Clock,
    id::{Tenant, TraceId},
    recent::{RecentAnswer, RecentPart},
    segment::Segment,
    wal::{self, Wal},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::harness::{BadClock, Spans, span_ids, spans_of};

/// Formations that a test hands out.
#[derive(Debug, Default)]
struct Handed {
    state: parking_lot::Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: VecDeque<Formation>,
    current: Option<Lost>,
    is_stopped: bool,
    /// Why a generation ended by itself.
    failed: Option<String>,
}

impl Handed {
    /// Ends what runs; this comes next.
    fn hand(&self, formation: Formation) {
        let mut state = self.state.lock();
        if let Some(lost) = state.current.replace(formation.lost.clone()) {
            lost.set(Cause::Superseded { by: formation.epoch.clone() });
        }
        state.next.clear();
        state.next.push_back(formation);
        self.changed.notify_all();
    }
}

impl Formations for Handed {
    fn next(&self) -> Option<Formation> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            if let Some(Cause::Failed { .. } | Cause::Panic { .. }) = state.current.as_ref().and_then(Lost::cause) {
                state.failed = state.current.take().and_then(|lost| lost.cause()).map(|cause| cause.to_string());
            }
            match state.next.pop_front() {
                Some(formation) => return Some(formation),
                None => self.changed.wait(&mut state),
            }
        }
    }

    fn raise(&self, _counter: u64) {}

    fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        state.next.clear();
        if let Some(lost) = state.current.take() {
            lost.set(Cause::Stop);
        }
        self.changed.notify_all();
    }
}

/// Reaches members without a network, but as their segments would travel: by value.
#[derive(Debug, Default)]
struct InProcess(Mutex<HashMap<String, Weak<Dataflow>>>);

#[async_trait::async_trait]
impl Tails for InProcess {
    async fn fetch(&self, member: &Member, question: &TailQuestion) -> Result<Vec<Segment>, Box<dyn Error + Send + Sync>> {
        let dataflow = self.0.lock().expect("not poisoned").get(&member.id).and_then(Weak::upgrade);
        let segments = dataflow.ok_or("nobody there")?.tail(question).await?;
        Ok(segments.iter().map(|segment| Segment::clone(segment)).collect())
    }
}

struct Node {
    role: Role,
    folder: TempDir,
    clock: Arc<BadClock>,
    snapshots: Snapshots,
    running: Option<Running>,
}

struct Running {
    dataflow: Arc<Dataflow>,
    wal: Option<Wal>,
    blocklist: Blocklist,
    handed: Arc<Handed>,
}

pub(crate) struct Processes {
    runtime: Runtime,
    bucket: Arc<InMemory>,
    settings: Settings,
    tenants: Option<Arc<dyn Tenants>>,
    tails: Arc<InProcess>,
    nodes: Vec<Node>,
    epoch: u64,
}

/// Where manifests are kept in the bucket.
const MANIFESTS: &str = "rubato@test";

fn name(index: usize) -> String {
    format!("member-{index}")
}

impl Processes {
    /// None of them runs yet.
    pub(crate) fn new(settings: Settings, roles: &[Role], tenants: Option<Arc<dyn Tenants>>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let bucket = Arc::new(InMemory::new());
        let node = |role: &Role| {
            let folder = tempfile::tempdir().expect("folder");
            Node { role: *role, folder, clock: Arc::default(), snapshots: Snapshots::default(), running: None }
        };
        let nodes = roles.iter().map(node).collect();
        Self { runtime, settings, tenants, tails: Arc::default(), nodes, epoch: 0, bucket }
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    fn begin(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let registry = prometheus::Registry::new();
        let clock: Arc<dyn Clock> = Arc::<BadClock>::clone(&node.clock);
        let dir: PathBuf = node.folder.path().join("wal");
        let wal_settings = wal::Settings { dir, file_bytes: 64 << 10, sync: wal::Sync::Never, max_bytes: 1 << 30, queue_bytes: 1 << 20 };
        let wal = (node.role == Role::Ingester).then(|| Wal::open(wal_settings, Arc::clone(&clock), &registry).expect("log").0);
        let store = Store::new(Arc::clone(&self.bucket) as _, "");
        let blocklist = self.runtime.block_on(Blocklist::load(&store)).expect("blocklist");
        let components = Components {
            wal: wal.clone(),
            blocklist: blocklist.clone(),
            store,
            block_settings: Arc::new(block::Settings::default()),
            manifests: ManifestStore::new(Arc::clone(&self.bucket) as _, MANIFESTS),
            clock,
            generator: self.tenants.clone().map(|tenants| Generator { tenants, snapshots: node.snapshots.clone() }),
            runtime: self.runtime.handle().clone(),
        };
        let handed = Arc::new(Handed::default());
        let membership = Membership { formations: Arc::clone(&handed) as _, tails: Arc::clone(&self.tails) as _ };
        let dataflow = Arc::new(Dataflow::join(self.settings.clone(), components, membership, &registry).expect("dataflow"));
        self.tails.0.lock().expect("not poisoned").insert(name(index), Arc::downgrade(&dataflow));
        node.running = Some(Running { dataflow, wal, blocklist, handed });
    }

    /// These processes, started if need be, are a generation from now on.
    pub(crate) fn form(&mut self, present: &[usize], threads: usize) {
        for index in present {
            if self.nodes[*index].running.is_none() {
                self.begin(*index);
            }
        }
        self.epoch += 1;
        let epoch = Epoch { counter: self.epoch, leader: name(present[0]).into() };
        let address = ([127, 0, 0, 1], 0).into();
        let member = |index: &usize| Member { id: name(*index), incarnation: self.epoch, address, role: self.nodes[*index].role };
        let members: Vec<Member> = present.iter().map(member).collect();
        let formations = Formation::loopback(&epoch, &members, threads).expect("sockets");
        for (index, formation) in present.iter().zip(formations) {
            self.running(*index).handed.hand(formation);
        }
    }

    /// Stops a process wherever it is. Those that it was connected to are on their own until they form again.
    pub(crate) fn lose(&mut self, index: usize) {
        let Some(Running { dataflow, wal, .. }) = self.nodes[index].running.take() else { return };
        self.runtime.block_on(dataflow.shutdown());
        if let Some(wal) = wal {
            self.runtime.block_on(wal.close());
        }
    }

    /// Nothing of what these tests do makes a generation fail.
    fn verify(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let failed = node.running.as_ref().and_then(|running| running.handed.state.lock().failed.clone());
            assert_eq!(failed, None, "at {}", name(index));
        }
    }

    fn running(&self, index: usize) -> &Running {
        self.nodes[index].running.as_ref().expect("running")
    }

    pub(crate) fn dataflow(&self, index: usize) -> &Dataflow {
        &self.running(index).dataflow
    }

    pub(crate) fn wal(&self, index: usize) -> &Wal {
        self.running(index).wal.as_ref().expect("an ingester")
    }

    pub(crate) async fn append(&self, index: usize, tenant: &Tenant, request: Bytes) {
        self.wal(index).append(tenant, request).await.expect("append");
    }

    /// Through one process, whatever generations come and go meanwhile.
    pub(crate) async fn flush(&self, index: usize) {
        let flush = async {
            while let Err(error) = self.dataflow(index).flush().await {
                assert!(matches!(error, DataflowError::Reforming), "{error}");
                self.verify();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), flush).await.expect("a flush ends");
    }

    /// Everything in published blocks. Fails when a span is there twice.
    pub(crate) async fn stored(&self, tenant: &Tenant) -> Spans {
        let store = Store::new(Arc::clone(&self.bucket) as _, "");
        let blocks = store.blocks(tenant).await.expect("list");
        spans_of(&store, tenant, &blocks).await
    }

    /// The spans of a trace, asked of all ingesters of one generation. Fails when one is there twice.
    pub(crate) async fn read(&self, tenant: &Tenant, trace_id: TraceId) -> Vec<u64> {
        for _ in 0..1000 {
            if let Some(spans) = self.try_read(tenant, trace_id).await {
                return spans;
            }
            self.verify();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no answer of a whole generation");
    }

    async fn try_read(&self, tenant: &Tenant, trace_id: TraceId) -> Option<Vec<u64>> {
        let ingesters = self.nodes.iter().filter(|node| node.role == Role::Ingester).filter_map(|node| node.running.as_ref());
        let ingesters: Vec<&Running> = ingesters.collect();
        // Whoever asks knows the blocks of one process, and what the answers name.
        let listed = ingesters.first()?.blocklist.stages(tenant);
        let mut parts: Vec<RecentPart> = Vec::new();
        let (mut published, mut answered, mut epochs, mut expected) = (Vec::new(), BTreeSet::new(), BTreeSet::new(), 0);
        for running in ingesters {
            let RecentAnswer { data, published: lately, coverage } = running.dataflow.trace(tenant, trace_id).await.ok()?;
            parts.extend(data);
            published.extend(lately);
            answered.insert(coverage.index);
            epochs.insert(coverage.epoch);
            expected = coverage.processes;
        }
        if epochs.len() != 1 || answered.len() != expected as usize {
            return None;
        }
        let mut known: BTreeSet<_> = listed.compacted.iter().map(|compacted| compacted.meta.block_id).collect();
        let blocks: Vec<_> = listed.live.iter().chain(&published).filter(|meta| known.insert(meta.block_id)).cloned().collect();
        let counted = parts.iter().filter(|part| part.going.is_none_or(|block| !known.contains(&block)));
        let counted = counted.flat_map(|part| &part.segments).flat_map(|segment| &segment.spans);
        let mut spans: Vec<u64> = counted.map(|span| span.key.span_id).collect();
        let store = Store::new(Arc::clone(&self.bucket) as _, "");
        for meta in blocks {
            let reader = Reader::open(&store, meta).await.expect("block");
            if let Some(trace) = reader.find(trace_id).await.expect("block") {
                spans.extend(span_ids(&trace.resource_spans));
            }
        }
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0] < pair[1]), "trace {trace_id} has spans twice: {spans:x?}");
        Some(spans)
    }

    /// What each process shows of the metrics-generator.
    pub(crate) fn snapshots(&self) -> BTreeMap<usize, Arc<Snapshot>> {
        let running = self.nodes.iter().enumerate().filter(|(_, node)| node.running.is_some());
        running.map(|(index, node)| (index, node.snapshots.latest())).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.lose(index));
    }
}
