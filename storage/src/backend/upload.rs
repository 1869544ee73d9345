//! An object written piece by piece: a multipart upload with parts of equal size.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, path::Path};

use super::{StoreError, refused};

/// Bytes of a part. S3 asks for at least 5 MiB and allows 10,000 parts.
const PART_BYTES: usize = 8 << 20;

/// An object on its way to the bucket. It exists once [`Upload::finish`] has returned; dropped before that, what was sent is left to the
/// bucket's clean-up of unfinished uploads, and [`Upload::abort`] is the tidy way.
#[derive(Debug)]
pub struct Upload {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    parts: Option<Box<dyn MultipartUpload>>,
    buffer: BytesMut,
    written: u64,
}

impl Upload {
    pub(super) fn new(objects: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self { objects, path, parts: None, buffer: BytesMut::new(), written: 0 }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends bytes. Waits while a part is on its way, so no more than two parts are held.
    ///
    /// # Errors
    /// The bucket refused a part.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= PART_BYTES {
            let part = self.buffer.split_to(PART_BYTES).freeze();
            self.part(part).await?;
        }
        Ok(())
    }

    async fn part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => self.parts.insert(self.objects.put_multipart(&self.path).await.map_err(refused("put", &self.path))?),
        };
        parts.put_part(PutPayload::from(part)).await.map_err(refused("put", &self.path))
    }

    /// Sends the rest: now the object exists. Returns its length.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        let rest = self.buffer.split().freeze();
        if self.parts.is_none() {
            self.objects.put(&self.path, rest.into()).await.map_err(refused("put", &self.path))?;
            return Ok(self.written);
        }
        if !rest.is_empty() {
            self.part(rest).await?;
        }
        if let Some(mut parts) = self.parts.take() {
            parts.complete().await.map_err(refused("put", &self.path))?;
        }
        Ok(self.written)
    }

    /// Throws away what was sent.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn abort(mut self) -> Result<(), StoreError> {
        match self.parts.take() {
            Some(mut parts) => parts.abort().await.map_err(refused("abort", &self.path)),
            None => Ok(()),
        }
    }
}
