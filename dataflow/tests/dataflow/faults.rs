//! An object store that refuses what a test tells it to.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

/// What is refused, and what was seen.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    puts_refused: AtomicBool,
    manifests_refused: AtomicBool,
    metas_refused: AtomicBool,
    refused_part: Mutex<Option<&'static str>>,
    refusals: AtomicUsize,
    puts: AtomicUsize,
    manifests_with_blocks: AtomicUsize,
}

impl Faults {
    pub(crate) fn refuse_puts(&self, refuse: bool) {
        self.puts_refused.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn refuse_manifests(&self, refuse: bool) {
        self.manifests_refused.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn refuse_metas(&self, refuse: bool) {
        self.metas_refused.store(refuse, Ordering::SeqCst);
    }

    /// Refuses to write objects in whose names this occurs.
    pub(crate) fn refuse_named(&self, part: Option<&'static str>) {
        *self.refused_part.lock().expect("not poisoned") = part;
        self.refusals.store(0, Ordering::SeqCst);
    }

    /// How often that was refused.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::SeqCst)
    }

    /// Data files written.
    pub(crate) fn puts(&self) -> usize {
        self.puts.load(Ordering::SeqCst)
    }

    /// Manifests written that list a block.
    pub(crate) fn manifests_with_blocks(&self) -> usize {
        self.manifests_with_blocks.load(Ordering::SeqCst)
    }

    fn check(&self, location: &Path, payload: &PutPayload) -> Result<()> {
        let name = location.filename().unwrap_or_default();
        if self.refused_part.lock().expect("not poisoned").is_some_and(|part| name.contains(part)) {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            return Err(Error::Generic { store: "faulty", source: "refused by the test".into() });
        }
        let refused = if name.starts_with("manifest-") {
            &self.manifests_refused
        } else if name == "meta.json" {
            &self.metas_refused
        } else {
            &self.puts_refused
        };
        if refused.load(Ordering::SeqCst) || self.puts_refused.load(Ordering::SeqCst) {
            return Err(Error::Generic { store: "faulty", source: "refused by the test".into() });
        }
        if name == "data.parquet" {
            self.puts.fetch_add(1, Ordering::SeqCst);
        }
        let lists_a_block = || payload.iter().any(|part| part.windows(8).any(|window| window == b"\"meta\":{"));
        if name.starts_with("manifest-") && lists_a_block() {
            self.manifests_with_blocks.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// An in-memory bucket behind [`Faults`].
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<InMemory>,
    pub(crate) faults: Arc<Faults>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.faults.check(location, &payload)?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.faults.check(location, &PutPayload::new())?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
