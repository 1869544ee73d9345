//! An object written piece by piece: a multipart upload with parts of equal size.
//!
//! ```text
//!  write ──► buffer of one part ──full──► part n ┐
//!                                         part n-1 ├ on their way, a few at a time ──► bucket
//!                                                  ┘
//!  finish ── last part, complete: now the object exists          drop ── abort: nothing is left behind
//! ```
//!
//! Memory is bounded by the parts under way and the one that is filled, however large a piece is. What fits into one part goes as a plain
//! object. Parts have equal sizes because some stores that speak S3 insist on it, so their size is chosen before the first byte: from the
//! memory that there is, and so that the whole object has no more parts than S3 allows.

use std::{mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, path::Path};
use tokio::{runtime::Handle, task::JoinSet};

use super::{StoreError, refused};

/// Parts that an upload may have: the limit of S3.
const MAX_PARTS: usize = 10_000;

/// Bytes of a part at least: S3 takes none below.
const LEAST_BYTES: u64 = 5 << 20;

/// Bytes of a part where there is memory for it.
const BYTES: u64 = 12 << 20;

/// Parts under way at the same time, where there is memory for them.
const IN_FLIGHT: u64 = 2;

/// What an operator says about parts; what is not said follows from the object and from the memory for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said {
    /// Bytes of a part.
    pub(super) bytes: Option<usize>,
    /// Parts under way at the same time, at most.
    pub(super) in_flight: Option<usize>,
}

/// What is known of an object before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its bytes, about: it may be an eighth larger.
    pub(crate) bytes: u64,
    /// What its parts may take, if they can be so small.
    pub(crate) memory: u64,
}

impl Expected {
    /// Nothing is known, and there is memory enough.
    pub(super) const UNKNOWN: Self = Self { bytes: 0, memory: u64::MAX };
}

/// How an object is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Bytes of a part.
    pub(super) bytes: usize,
    /// Parts under way at the same time.
    pub(super) in_flight: usize,
}

impl Parts {
    /// As large as is said, or as there is memory for, and larger if the object had too many otherwise.
    pub(super) fn new(said: Said, expected: Expected) -> Self {
        let in_flight = said.in_flight.map_or(IN_FLIGHT, |in_flight| in_flight.max(1) as u64);
        let megabytes = |bytes: u64| bytes >> 20 << 20;
        let affordable = megabytes(expected.memory / (in_flight + 1)).clamp(LEAST_BYTES, BYTES);
        let needed = expected.bytes.saturating_add(expected.bytes / 8).div_ceil(MAX_PARTS as u64).next_multiple_of(1 << 20);
        let bytes = said.bytes.map_or(affordable, |bytes| bytes.max(1) as u64).max(needed);
        // One is filled meanwhile.
        let in_flight = (expected.memory / bytes).saturating_sub(1).clamp(1, in_flight);
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self { bytes: number(bytes), in_flight: number(in_flight) }
    }
}

/// An object on its way to the bucket. It exists once [`Upload::finish`] has returned. Dropped before that, what was sent is thrown away
/// in the background; [`Upload::abort`] waits for it.
#[derive(Debug)]
pub struct Upload {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    parts: Parts,
    sent: usize,
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
    buffer: BytesMut,
    written: u64,
}

impl Upload {
    pub(super) fn new(objects: Arc<dyn ObjectStore>, path: Path, parts: Parts) -> Self {
        Self { objects, path, parts, sent: 0, upload: None, in_flight: JoinSet::new(), buffer: BytesMut::new(), written: 0 }
    }

    /// Bytes that it holds at most: the parts under way and the one that is filled.
    pub(crate) fn most(&self) -> u64 {
        (self.parts.bytes as u64).saturating_mul(self.parts.in_flight as u64 + 1)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends bytes. Waits while as many parts are under way as may be.
    ///
    /// # Errors
    /// The bucket refused a part, maybe of an earlier call. The upload is then of no use any more.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            // Sent when the next byte comes, so that the last part is never empty.
            if self.buffer.len() == self.parts.bytes {
                self.send_part().await?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.parts.bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Hands the buffer over.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        // The next one has all of its room at once: growing leaves as much memory behind again.
        let part = mem::replace(&mut self.buffer, BytesMut::with_capacity(self.parts.bytes)).freeze();
        if self.sent == MAX_PARTS {
            return Err(refused("put", &self.path)(too_long(self.parts.bytes)));
        }
        while self.in_flight.len() >= self.parts.in_flight {
            self.one_part_done().await?;
        }
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.objects.put_multipart(&self.path).await.map_err(refused("put", &self.path))?),
        };
        self.sent += 1;
        // A task of its own: it gets on while the caller makes the next part.
        self.in_flight.spawn(upload.put_part(PutPayload::from(part)));
        Ok(())
    }

    async fn one_part_done(&mut self) -> Result<(), StoreError> {
        match self.in_flight.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(refused("put", &self.path)(error)),
            Some(Err(error)) => Err(refused("put", &self.path)(error.into())),
        }
    }

    /// Sends the rest: now the object exists. Returns its length.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        if self.upload.is_none() {
            let whole: Bytes = mem::take(&mut self.buffer).freeze();
            self.objects.put(&self.path, whole.into()).await.map_err(refused("put", &self.path))?;
            return Ok(self.written);
        }
        if !self.buffer.is_empty() {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.one_part_done().await?;
        }
        if let Some(upload) = &mut self.upload {
            match upload.complete().await {
                Ok(_) => {}
                // The answer to a first attempt was lost, and the second one found nothing left to complete.
                Err(object_store::Error::NotFound { .. }) if self.is_there().await => {}
                Err(error) => return Err(refused("put", &self.path)(error)),
            }
        }
        self.upload = None;
        Ok(self.written)
    }

    // By `&mut`: multipart uploads are not `Sync`, and uploads run in spawned tasks.
    async fn is_there(&mut self) -> bool {
        self.objects.head(&self.path).await.is_ok_and(|object| object.size == self.written)
    }

    /// Throws away what was sent.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn abort(mut self) -> Result<(), StoreError> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        abort(upload, mem::take(&mut self.in_flight)).await.map_err(refused("abort", &self.path))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) else { return };
        let (in_flight, path) = (mem::take(&mut self.in_flight), mem::take(&mut self.path));
        runtime.spawn(async move {
            if let Err(error) = abort(upload, in_flight).await {
                tracing::warn!(%path, %error, "parts of an unfinished upload are left in the bucket");
            }
        });
    }
}

/// Aborts an upload once no part is under way: one that arrives later would stay.
async fn abort(mut upload: Box<dyn MultipartUpload>, mut in_flight: JoinSet<object_store::Result<()>>) -> object_store::Result<()> {
    in_flight.shutdown().await;
    upload.abort().await
}

fn too_long(part: usize) -> object_store::Error {
    let source = format!("it has more than {MAX_PARTS} parts of {part} bytes: part_size is too small for it").into();
    object_store::Error::Generic { store: "upload", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LARGEST: u64 = 100 << 30;

    fn parts(bytes: u64, memory: u64, said: Said) -> (u64, usize) {
        let parts = Parts::new(said, Expected { bytes, memory });
        (parts.bytes as u64 / MIB, parts.in_flight)
    }

    #[test]
    fn parts_are_as_large_as_there_is_memory_for_and_few_enough() {
        let ours = Said::default();
        let unknown = Parts::new(ours, Expected::UNKNOWN);
        assert_eq!((unknown.bytes as u64, unknown.in_flight), (12 * MIB, 2));
        assert_eq!(parts(300 * MIB, 36 * MIB, ours), (12, 2));
        assert_eq!(parts(300 * MIB, 25 * MIB, ours), (8, 2));
        assert_eq!(parts(300 * MIB, 15 * MIB, ours), (5, 2));
        assert_eq!(parts(300 * MIB, 11 * MIB, ours), (5, 1));
        assert_eq!(parts(300 * MIB, 0, ours), (5, 1));
        assert_eq!(parts(LARGEST, 11 * MIB, ours), (12, 1), "as small as it can be");
        for memory in [0, 20 * MIB, u64::MAX] {
            let (size, _) = parts(LARGEST, memory, ours);
            assert!(size * MIB * MAX_PARTS as u64 >= LARGEST * 9 / 8);
        }
    }

    #[test]
    fn what_is_said_about_parts_holds_if_the_object_fits() {
        let azure = Said { bytes: Some(3 << 20), in_flight: Some(4) };
        assert_eq!(parts(300 * MIB, u64::MAX, azure), (3, 4));
        assert_eq!(parts(300 * MIB, 11 * MIB, azure), (3, 2));
        assert_eq!(parts(LARGEST, u64::MAX, azure), (12, 4));
        let large = Said { bytes: Some(64 << 20), in_flight: None };
        assert_eq!(parts(300 * MIB, 11 * MIB, large), (64, 1));
        assert_eq!(parts(300 * MIB, u64::MAX, large), (64, 2));
    }
}
