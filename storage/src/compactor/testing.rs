//! A small world for tests: blocks that are lists of numbers, a line to the bucket that breaks when it is told to, and a reader.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use parking_lot::Mutex;
use prometheus::Registry;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::{
    Compactor, Limits, Merge, Overrides, Settings,
    ledger::{Holder, Ledger},
};
use crate::{
    backend::Store,
    block::{
        BlockError, DATA, Meta, fixtures,
        merge::{self, Merged},
    },
    blocklist::{Blocklist, Found},
    clock::{Clock, ManualClock, SystemClock},
    id::{BlockId, Tenant},
    ownership::Ownership,
};

/// A block of nothing.
pub(super) fn meta() -> Meta {
    let nothing = fixtures::meta(&Tenant::single(), Meta::NO_TIME);
    Meta { block_id: BlockId::nil(), start_time: Meta::NO_TIME, total_objects: 0, size: 0, footer_size: 0, ..nothing }
}

/// `data.parquet` of a block in these tests: spans as numbers, and a tail as Parquet has it.
fn data(spans: &[u64]) -> Vec<u8> {
    let bytes = spans.iter().flat_map(|span| span.to_le_bytes());
    bytes.chain([0; 4]).chain(*b"PAR1").collect()
}

async fn spans(store: &Store, tenant: &Tenant, block: BlockId) -> std::result::Result<Vec<u64>, crate::backend::StoreError> {
    let bytes = store.get(tenant, block, DATA).await?;
    let body = bytes.strip_suffix(b"\0\0\0\0PAR1").expect("a whole file");
    Ok(body.chunks_exact(8).map(|span| u64::from_le_bytes(span.try_into().expect("8 bytes"))).collect())
}

/// Writes everything of a block but its `meta.json`.
async fn write(store: &Store, meta: &mut Meta, spans: &[u64]) -> std::result::Result<(), crate::backend::StoreError> {
    let data = data(spans);
    (meta.size, meta.total_objects) = (data.len() as u64, spans.len() as u64);
    store.put_named(&meta.tenant_id, meta.block_id, DATA, data.into()).await?;
    store.put_named(&meta.tenant_id, meta.block_id, "bloom-0", "bloom".into()).await
}

/// Puts the numbers of all inputs together.
#[derive(Debug)]
struct Union;

impl Merge for Union {
    fn merge<'a>(
        &'a self,
        store: &'a Store,
        inputs: &'a [Arc<Meta>],
        output: BlockId,
        _settings: &'a merge::Settings,
    ) -> BoxFuture<'a, std::result::Result<Merged, BlockError>> {
        Box::pin(async move {
            let tenant = inputs[0].tenant_id.clone();
            let failed = |source| BlockError::Store { block: output, tenant: Tenant::single(), source: Box::new(source) };
            let mut all = Vec::new();
            for input in inputs {
                all.extend(spans(store, &tenant, input.block_id).await.map_err(failed)?);
            }
            all.sort_unstable();
            if all.contains(&CORRUPT) {
                let block = inputs.iter().find(|meta| meta.start_time == CORRUPT as i64).map_or(output, |meta| meta.block_id);
                return Err(BlockError::Corrupt { block, tenant, what: "it says so".to_owned() });
            }
            assert!(!all.contains(&PANIC), "the test wants a panic");
            let mut meta = Meta {
                block_id: output,
                tenant_id: tenant,
                compaction_level: inputs.iter().map(|meta| meta.compaction_level).max().expect("inputs") + 1,
                start_time: inputs.iter().map(|meta| meta.start_time).min().expect("inputs"),
                end_time: inputs.iter().map(|meta| meta.end_time).max().expect("inputs"),
                compacted_from: inputs.iter().map(|meta| meta.block_id).collect(),
                created_at: Meta::created_at_of_all(inputs.iter().map(Arc::as_ref)),
                ..meta()
            };
            write(store, &mut meta, &all).await.map_err(failed)?;
            Ok(Merged { meta, objects_combined: 0, spans_combined: 0, spans_discarded: 0 })
        })
    }
}

/// As [`Union`], and takes a day.
#[derive(Debug)]
pub(super) struct Slow(pub(super) ManualClock);

impl Merge for Slow {
    fn merge<'a>(
        &'a self,
        store: &'a Store,
        inputs: &'a [Arc<Meta>],
        output: BlockId,
        settings: &'a merge::Settings,
    ) -> BoxFuture<'a, std::result::Result<Merged, BlockError>> {
        self.0.advance(Duration::from_secs(24 * 3600));
        Union.merge(store, inputs, output, settings)
    }
}

/// As [`Union`], and takes longer than claims hold: it ends when another instance has found that it is at work nevertheless.
#[derive(Debug)]
pub(super) struct Long(pub(super) ManualClock, pub(super) Duration);

impl Merge for Long {
    fn merge<'a>(
        &'a self,
        store: &'a Store,
        inputs: &'a [Arc<Meta>],
        output: BlockId,
        settings: &'a merge::Settings,
    ) -> BoxFuture<'a, std::result::Result<Merged, BlockError>> {
        let Self(clock, claim_timeout) = self;
        clock.advance(*claim_timeout * 2);
        Box::pin(async move {
            let other = Ledger { store: store.clone(), instance: "other".to_owned(), claim_timeout: claim_timeout.as_secs() as i64 };
            let tenant = &inputs[0].tenant_id;
            let began = Instant::now();
            while !store.exists(tenant, output, "compaction-alive.json").await.expect("bucket") {
                assert!(began.elapsed() < Duration::from_secs(60), "no sign of life");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let now = clock.now().as_secs() as i64;
            let holder = other.holder(tenant, inputs[0].block_id, BlockId::nil(), now).await.expect("bucket");
            assert!(matches!(holder, Holder::Another(_)), "{holder:?}");
            Union.merge(store, inputs, output, settings).await
        })
    }
}

/// A span that makes a merge fail, naming the block whose start time is the same number.
pub(super) const CORRUPT: u64 = 1_234_567_890;
/// A span that makes a merge panic.
pub(super) const PANIC: u64 = u64::MAX;

/// A line to a bucket that is cut at an operation, before or after it is carried out, and stays cut: what a killed process sees of the
/// world, and the world of it.
#[derive(Debug)]
struct Line {
    objects: Arc<InMemory>,
    operations: Arc<AtomicUsize>,
    cut_at: usize,
    carried_out: bool,
    /// Lets others go first, a few times at random.
    turns: Option<Arc<Mutex<ChaCha8Rng>>>,
}

impl Line {
    async fn give_way(&self) {
        let Some(turns) = &self.turns else { return };
        let turns = turns.lock().next_u32() % 4;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    async fn through<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        self.give_way().await;
        let cut = || Error::Generic { store: "line", source: "cut by the test".into() };
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        if number > self.cut_at || (number == self.cut_at && !self.carried_out) {
            return Err(cut());
        }
        let outcome = operation.await;
        self.give_way().await;
        if number == self.cut_at { Err(cut()) } else { outcome }
    }

    fn clone_for_stream(&self) -> Self {
        Self { objects: Arc::clone(&self.objects), operations: Arc::clone(&self.operations), turns: self.turns.clone(), ..*self }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("line")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Line {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.through(self.objects.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.through(self.objects.put_multipart_opts(location, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.through(self.objects.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let line = Arc::new(self.clone_for_stream());
        let delete = move |path: Result<Path>| {
            let line = Arc::clone(&line);
            async move {
                let path = path?;
                line.through(line.objects.delete(&path)).await.map(|()| path)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (line, prefix) = (self.clone_for_stream(), prefix.cloned());
        let listing = async move { line.through(async { Ok(line.objects.list(prefix.as_ref())) }).await };
        stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.through(self.objects.copy_opts(from, to, options)).await
    }
}

/// A bucket, what was put into it, and the time.
#[derive(Debug)]
pub(super) struct World {
    objects: Arc<InMemory>,
    pub(super) clock: ManualClock,
    pub(super) tenant: Tenant,
    next_block: u128,
    /// All spans that were ever stored, sorted.
    expected: Vec<u64>,
}

impl World {
    /// An empty bucket. The time is the one that objects are stamped with.
    pub(super) fn new() -> Self {
        let clock = ManualClock::new(SystemClock.now());
        Self { objects: Arc::new(InMemory::new()), clock, tenant: Tenant::single(), next_block: 0, expected: Vec::new() }
    }

    /// The bucket over a line that never breaks.
    pub(super) fn store(&self) -> Store {
        Store::new(Arc::clone(&self.objects) as Arc<dyn ObjectStore>, "")
    }

    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_secs() as i64
    }

    pub(super) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// The description of a new block that ends now.
    pub(super) fn describe(&mut self) -> Meta {
        self.next_block += 1;
        let now = self.now();
        Meta { block_id: BlockId::from_u128(self.next_block), tenant_id: self.tenant.clone(), start_time: now, end_time: now, ..meta() }
    }

    /// Stores spans as a block, and publishes it.
    pub(super) async fn ingest(&mut self, spans: &[u64], change: impl FnOnce(&mut Meta)) -> Meta {
        let mut meta = self.describe();
        change(&mut meta);
        write(&self.store(), &mut meta, spans).await.expect("put");
        self.store().publish(&meta).await.expect("put");
        self.expected.extend(spans);
        self.expected.sort_unstable();
        meta
    }

    /// Stores blocks of three spans each.
    pub(super) async fn ingest_blocks(&mut self, blocks: u64) {
        for _ in 0..blocks {
            let first = self.expected.len() as u64;
            self.ingest(&[first, first + 1, first + 2], |_| {}).await;
        }
    }

    /// Everything was deleted.
    pub(super) fn expect_nothing(&mut self) {
        self.expected.clear();
    }

    /// A process that begins with what it finds.
    pub(super) fn process(&self, settings: Settings) -> Process {
        self.process_on(
            settings,
            Line { objects: Arc::clone(&self.objects), operations: Arc::default(), cut_at: usize::MAX, carried_out: false, turns: None },
        )
    }

    /// A process that is killed at an operation on the bucket, before or after it is carried out.
    pub(super) fn process_killed_at(&self, settings: Settings, cut_at: usize, carried_out: bool) -> Process {
        self.process_on(settings, Line { objects: Arc::clone(&self.objects), operations: Arc::default(), cut_at, carried_out, turns: None })
    }

    /// A process that gives way to others at random, and is killed at an operation.
    pub(super) fn process_in_turns(&self, settings: Settings, cut_at: usize, seed: u64) -> Process {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let carried_out = rng.next_u32() % 2 == 0;
        let turns = Some(Arc::new(Mutex::new(rng)));
        self.process_on(settings, Line { objects: Arc::clone(&self.objects), operations: Arc::default(), cut_at, carried_out, turns })
    }

    fn process_on(&self, settings: Settings, line: Line) -> Process {
        let operations = Arc::clone(&line.operations);
        let store = Store::new(Arc::new(line), "");
        let blocklist = Blocklist::new();
        let registry = Registry::new();
        let owner = Arc::new(Owner::default());
        let compactor = Compactor {
            merge: Box::new(Union),
            ..Compactor::new(
                settings,
                store.clone(),
                blocklist.clone(),
                Arc::clone(&owner) as Arc<dyn Ownership>,
                Arc::new(Limits::default()),
                Arc::new(self.clock.clone()),
                &registry,
            )
            .expect("an empty registry")
        };
        Process { store, blocklist, compactor, operations, tenant: self.tenant.clone(), registry, owner }
    }

    /// What a reader sees that starts now, and one that has been reading for some time.
    pub(super) async fn check(&self, why: &str) {
        let process = self.process(Settings::default());
        process.poll(i64::MAX).await.expect("poll");
        assert_eq!(process.read().await, self.expected, "{why}");
    }

    /// What a list shows.
    pub(super) async fn check_list(&self, process: &Process, why: &str) {
        assert_eq!(process.read().await, self.expected, "{why}");
    }

    /// The names of all objects, for failures.
    pub(super) async fn names(&self) -> Vec<String> {
        let objects: Vec<_> = self.objects.list(None).try_collect().await.expect("list");
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

/// Owns everything until it is told otherwise.
#[derive(Debug, Default)]
pub(super) struct Owner {
    /// Questions that are answered with yes before all are answered with no; 0: all with yes.
    pub(super) patience: AtomicUsize,
    asked: AtomicUsize,
}

impl Ownership for Owner {
    fn owns(&self, _key: &str) -> bool {
        let patience = self.patience.load(Ordering::SeqCst);
        patience == 0 || self.asked.fetch_add(1, Ordering::SeqCst) < patience
    }
}

/// A compactor with a list of its own.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) store: Store,
    pub(super) blocklist: Blocklist,
    pub(super) compactor: Compactor,
    pub(super) owner: Arc<Owner>,
    operations: Arc<AtomicUsize>,
    tenant: Tenant,
    registry: Registry,
}

impl Process {
    /// Operations on the bucket so far.
    pub(super) fn operations(&self) -> usize {
        self.operations.load(Ordering::SeqCst)
    }

    pub(super) fn with_overrides(mut self, overrides: impl Overrides) -> Self {
        self.compactor.overrides = Arc::new(overrides);
        self
    }

    /// Reads the bucket into the list.
    pub(super) async fn poll(&self, recent: i64) -> std::result::Result<(), crate::backend::StoreError> {
        let (store, tenant) = (&self.store, &self.tenant);
        let poll = self.blocklist.begin_poll();
        let listing = store.listing(tenant).await?;
        let mut found = Found { no_compact: listing.no_compact.iter().copied().collect(), ..Found::default() };
        for block in listing.live {
            match store.meta(tenant, block).await? {
                Some(meta) => found.live.push(Arc::new(meta)),
                // Marked between the two requests.
                None => found.compacted.extend(store.compacted_meta(tenant, block).await?.map(|meta| (Arc::new(meta), i64::MAX))),
            }
        }
        for (block, at) in listing.compacted {
            found.compacted.extend(store.compacted_meta(tenant, block).await?.map(|meta| (Arc::new(meta), at)));
        }
        self.blocklist.apply(poll, tenant, found, recent);
        Ok(())
    }

    /// Polls and compacts until there is nothing to do.
    pub(super) async fn settle(&self) {
        for _ in 0..100 {
            self.poll(i64::MAX).await.expect("poll");
            let cycle = self.compactor.cycle().await;
            assert_eq!(cycle.failed, 0);
            if cycle.compacted == 0 && cycle.skipped == 0 {
                return;
            }
        }
        panic!("it never ends");
    }

    /// Polls, compacts and retains for a while, as long as the line holds.
    pub(super) async fn work(&self, rounds: usize) {
        for _ in 0..rounds {
            if self.poll(i64::MAX).await.is_err() {
                return;
            }
            self.compactor.cycle().await;
            if self.compactor.retain().await.is_err() {
                return;
            }
        }
    }

    /// All spans in the listed blocks, sorted.
    async fn read(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for meta in self.blocklist.blocks(&self.tenant).iter() {
            all.extend(spans(&self.store, &self.tenant, meta.block_id).await.expect("data of a listed block"));
        }
        all.sort_unstable();
        all
    }

    /// The sum of a metric over its labels.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let value = |metric: &prometheus::proto::Metric| metric.get_counter().get_value() + metric.get_gauge().get_value();
        family.map_or(0.0, |family| family.get_metric().iter().map(value).sum())
    }
}
