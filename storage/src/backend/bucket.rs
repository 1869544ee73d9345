//! A store as we use it: objects written with the tags and attributes of the configuration, and bodies that arrive whole.
//!
//! ```text
//!  get bytes 0-99 ──► ….…. 57 bytes ─╳ cut, or silent for too long
//!  get bytes 57-99 if it is still the same object ──► …… 100
//! ```
//!
//! Requests themselves are retried below ([`super::http`]); here only what breaks off after the answer's head has arrived is mended, by
//! asking for the rest. Whether the object is still the same is said by its ETag.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    Attributes, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, TagSet, path::Path,
};

use super::retry::Retry;

/// A client of a store, and what it is used with. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) retry: Arc<Retry>,
    /// How long a body may be silent.
    pub(super) timeout: Duration,
    pub(super) tags: TagSet,
    pub(super) attributes: Attributes,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let options = PutOptions { tags: self.tags.clone(), attributes: self.attributes.clone(), ..options };
        self.client.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let options = PutMultipartOptions { tags: self.tags.clone(), attributes: self.attributes.clone(), ..options };
        self.client.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.client.get_opts(location, options.clone()).await?;
        if options.head {
            return Ok(result);
        }
        let GetResult { payload: GetResultPayload::Stream(stream), meta, range, attributes, extensions } = result else {
            return Ok(result);
        };
        let body = Body {
            client: Arc::clone(&self.client),
            retry: Arc::clone(&self.retry),
            timeout: self.timeout,
            options,
            meta: meta.clone(),
            rest: range.clone(),
            failed: 0,
            stream,
        };
        let whole = futures::stream::try_unfold(body, Body::next).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(whole), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.client.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.client.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.client.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.client.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.client.copy_opts(from, to, options).await
    }
}

/// A body on its way.
struct Body {
    client: Arc<dyn ObjectStore>,
    retry: Arc<Retry>,
    timeout: Duration,
    options: GetOptions,
    meta: ObjectMeta,
    /// What has not arrived.
    rest: Range<u64>,
    /// How often it broke off.
    failed: u32,
    stream: BoxStream<'static, Result<Bytes>>,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the object's body breaks off, {0} bytes are missing")]
    Short(u64),
    #[error("the object's body stands still for {0:?}")]
    Silent(Duration),
    #[error("the object was replaced while it was read")]
    Replaced,
    #[error("the object's body is longer than was said")]
    Long,
}

impl From<Broken> for object_store::Error {
    fn from(error: Broken) -> Self {
        object_store::Error::Generic { store: "bucket", source: Box::new(error) }
    }
}

impl Body {
    /// The next piece.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let error = match tokio::time::timeout(self.timeout, self.stream.next()).await {
                Ok(Some(Ok(piece))) => {
                    let length = piece.len() as u64;
                    if length > self.rest.end - self.rest.start {
                        return Err(Broken::Long.into());
                    }
                    self.rest.start += length;
                    return Ok(Some((piece, self)));
                }
                Ok(None) if self.rest.is_empty() => return Ok(None),
                Ok(None) => Broken::Short(self.rest.end - self.rest.start).into(),
                Ok(Some(Err(error))) => error,
                Err(_) => Broken::Silent(self.timeout).into(),
            };
            if self.rest.is_empty() {
                return Ok(None);
            }
            self.failed += 1;
            let Some(pause) = self.retry.pause(self.failed) else { return Err(error) };
            tracing::debug!(path = %self.meta.location, %error, missing = self.rest.end - self.rest.start, ?pause, "asking for the rest of an object");
            tokio::time::sleep(pause).await;
            self.ask_for_the_rest().await?;
        }
    }

    async fn ask_for_the_rest(&mut self) -> Result<()> {
        let options = GetOptions { range: Some(GetRange::Bounded(self.rest.clone())), ..self.options.clone() };
        let again = self.client.get_opts(&self.meta.location, options).await?;
        let same = again.meta.e_tag == self.meta.e_tag && again.meta.size == self.meta.size && again.range == self.rest;
        if !same {
            return Err(Broken::Replaced.into());
        }
        self.stream = again.into_stream();
        Ok(())
    }
}
