//! A store that counts what is asked from another: what an operation costs is asserted in tests and shown by tools.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart, path::Path,
};

/// Operations since the last [`Counting::reset`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads of an object or of a range.
    pub gets: u64,
    /// Bytes that arrived by them.
    pub get_bytes: u64,
    /// Questions whether an object is there.
    pub heads: u64,
    /// Objects written whole, and parts of objects.
    pub puts: u64,
    /// Bytes sent by them.
    pub put_bytes: u64,
    /// Listings begun, of however many requests.
    pub lists: u64,
    /// Names and folders listed.
    pub listed: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Objects copied.
    pub copies: u64,
}

#[derive(Debug, Default)]
struct Counters {
    gets: AtomicU64,
    get_bytes: AtomicU64,
    heads: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    lists: AtomicU64,
    listed: AtomicU64,
    deletes: AtomicU64,
    copies: AtomicU64,
}

/// A store with a count.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn ObjectStore>,
    counters: Arc<Counters>,
}

impl Counting {
    /// Counts what is asked from `inner`, beginning with nothing.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, counters: Arc::default() })
    }

    /// What was asked.
    pub fn counts(&self) -> Counts {
        let counters = &self.counters;
        Counts {
            gets: counters.gets.load(Relaxed),
            get_bytes: counters.get_bytes.load(Relaxed),
            heads: counters.heads.load(Relaxed),
            puts: counters.puts.load(Relaxed),
            put_bytes: counters.put_bytes.load(Relaxed),
            lists: counters.lists.load(Relaxed),
            listed: counters.listed.load(Relaxed),
            deletes: counters.deletes.load(Relaxed),
            copies: counters.copies.load(Relaxed),
        }
    }

    /// What was asked until now, which is then forgotten.
    pub fn reset(&self) -> Counts {
        let counters = &self.counters;
        Counts {
            gets: counters.gets.swap(0, Relaxed),
            get_bytes: counters.get_bytes.swap(0, Relaxed),
            heads: counters.heads.swap(0, Relaxed),
            puts: counters.puts.swap(0, Relaxed),
            put_bytes: counters.put_bytes.swap(0, Relaxed),
            lists: counters.lists.swap(0, Relaxed),
            listed: counters.listed.swap(0, Relaxed),
            deletes: counters.deletes.swap(0, Relaxed),
            copies: counters.copies.swap(0, Relaxed),
        }
    }

    fn counted(&self, listing: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counters.lists.fetch_add(1, Relaxed);
        let counters = Arc::clone(&self.counters);
        listing.inspect(move |_| _ = counters.listed.fetch_add(1, Relaxed)).boxed()
    }
}

impl Counters {
    fn put(&self, bytes: usize) {
        self.puts.fetch_add(1, Relaxed);
        self.put_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counting({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.counters.put(payload.content_length());
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(CountingUpload { upload, counters: Arc::clone(&self.counters) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            self.counters.heads.fetch_add(1, Relaxed);
            return self.inner.get_opts(location, options).await;
        }
        self.counters.gets.fetch_add(1, Relaxed);
        let result = self.inner.get_opts(location, options).await?;
        let (meta, range, attributes, extensions) =
            (result.meta.clone(), result.range.clone(), result.attributes.clone(), result.extensions.clone());
        let counters = Arc::clone(&self.counters);
        let count = move |piece: &Result<Bytes>| {
            if let Ok(bytes) = piece {
                counters.get_bytes.fetch_add(bytes.len() as u64, Relaxed);
            }
        };
        let payload = GetResultPayload::Stream(result.into_stream().inspect(count).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let counters = Arc::clone(&self.counters);
        self.inner.delete_stream(locations.inspect(move |_| _ = counters.deletes.fetch_add(1, Relaxed)).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.counters.lists.fetch_add(1, Relaxed);
        let result = self.inner.list_with_delimiter(prefix).await?;
        self.counters.listed.fetch_add((result.objects.len() + result.common_prefixes.len()) as u64, Relaxed);
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.counters.copies.fetch_add(1, Relaxed);
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct CountingUpload {
    upload: Box<dyn MultipartUpload>,
    counters: Arc<Counters>,
}

#[async_trait]
impl MultipartUpload for CountingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.counters.put(data.content_length());
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
