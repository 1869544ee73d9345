//! The write-ahead log: what was acknowledged, in the order in which it was.
//!
//! ```text
//!  append ──bounded queue──► writer thread ──one write, one fsync──► file ──► acknowledge the whole group
//!                                                                     │
//!                                     durable head (watch) ◄──────────┘──► Reader::read (up to the head, never beyond)
//! ```
//!
//! The log is a folder:
//!
//! | name | what |
//! |---|---|
//! | `00000000000000004096.wal` | records from position 4096 on, up to the position that names the next file |
//! | `id` | identity of the log, a UUID as text |
//! | `lock` | locked by the process that writes |
//! | `quarantine/<position>-<bytes>.bin` | copies of what was found damaged |
//!
//! A file is a header and records without gaps; numbers are little-endian. The position of a record is the position that names the
//! file, plus its offset in the file, less the 40 bytes of the file header.
//!
//! | file header | bytes | | record | bytes | |
//! |---|---|---|---|---|---|
//! | 0 | 8 | magic `RUBATOWL` | 0 | 4 | magic `RbRc` |
//! | 8 | 4 | version, 1 | 4 | 4 | CRC-32C of bytes 8 to the end of the tenant |
//! | 12 | 16 | identity of the log | 8 | 4 | length of the body |
//! | 28 | 8 | start position | 12 | 4 | CRC-32C of the body |
//! | 36 | 4 | CRC-32C of bytes 0 to 36 | 16 | 8 | position of this record |
//! | | | | 24 | 8 | time of the append, Unix nanoseconds |
//! | | | | 32 | 1 | kind: 1 is an OTLP request |
//! | | | | 33 | 1 | length of the tenant |
//! | | | | 34 | 1 | 1: no metrics are generated from it, else 0 |
//! | | | | 35 | 1 | zero |
//! | | | | 36 | | tenant, then body |
//!
//! The checksums of a record are continued from that of the log's identity, and a record knows its position. Hence bytes that a client
//! sent inside a body, or that an older file left on the disk, are never taken for a record, and after damage the next record is found by
//! searching for one whose header is right.
//!
//! Invariants:
//! * The head moves, and an append is acknowledged, only after the record is as durable as [`Sync`] says; readers see nothing beyond.
//! * A refused append leaves nothing behind: its bytes are cut off, or their file is abandoned and the next one begins at the same
//!   position. What lies in a file beyond the start of the next is not part of the log. (If the disk refuses the cut *and* the next file
//!   until the process ends, the record comes back at the restart: the client sees it as it sees a lost answer.)
//! * After a failed fsync nobody knows what the disk holds, so that file is never written or synced again.
//! * No open file is written by a later process: every start begins a new file.

mod disk;
mod files;
mod format;
mod metrics;
mod reader;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use self::{disk::Disk, files::Files, format::Seed, metrics::Metrics};
pub use self::{format::MAX_RECORD_BYTES, reader::Reader};
use crate::{clock::Clock, id::Tenant};

/// A place in a WAL: bytes since it was created, over all its files. Never reused, never smaller later.
///
/// With [`Sync::Interval`] and [`Sync::Never`] a power loss can take records that were acknowledged, and their positions with them:
/// see [`Wal::advance_to`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub u64);

/// When an acknowledged record is on the disk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// fsync before every acknowledgement (of a group of records): survives power loss.
    Always,
    /// fsync this often: a power loss takes at most the last interval; kill -9 takes nothing.
    Interval(Duration),
    /// Never fsync: right for a memory-backed volume. kill -9 takes nothing.
    Never,
}

/// Where and how the log is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the log; made when missing.
    pub dir: PathBuf,
    /// A new file is begun when the current one has reached this many bytes.
    pub file_bytes: u64,
    /// When records are fsynced.
    pub sync: Sync,
    /// Appends are refused while the log holds more bytes than this.
    pub max_bytes: u64,
    /// Bytes of records that may wait for the writer; appends beyond wait themselves.
    pub queue_bytes: usize,
}

/// What is appended: a request, and what its sender wants beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A validated `ExportTraceServiceRequest`.
    pub body: Bytes,
    /// Whether its spans are only stored: the metrics-generator passes them over.
    pub skip_metrics_generation: bool,
}

impl From<Bytes> for Entry {
    fn from(body: Bytes) -> Self {
        Self { body, skip_metrics_generation: false }
    }
}

/// A record read back.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it begins.
    pub position: Position,
    /// Where the next one begins.
    pub next: Position,
    /// When it was appended, time since the Unix epoch, never smaller than that of the record before.
    pub at: Duration,
    /// Whose spans these are.
    pub tenant: Tenant,
    /// A validated `ExportTraceServiceRequest`. A slice of the read buffer.
    pub body: Bytes,
    /// As of [`Entry`].
    pub skip_metrics_generation: bool,
}

/// Why an append was refused. Nothing was acknowledged; the client should try again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The disk or the log's own limit is full.
    #[error("write-ahead log is full: {0}")]
    Full(String),
    /// The operating system refused the write.
    #[error("write-ahead log cannot be written: {0}")]
    Io(String),
    /// The record is larger than a record may be.
    #[error("record of {bytes} bytes is larger than the {max} bytes that a record may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The log is being shut down.
    #[error("write-ahead log is closed")]
    Closed,
}

/// Why the log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("write-ahead log {path}: {action}")]
pub struct WalError {
    /// The file or folder.
    pub path: String,
    /// What was attempted.
    pub action: String,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl WalError {
    fn new(path: &Path, action: &str, source: io::Error) -> Self {
        Self { path: path.display().to_string(), action: action.to_owned(), source }
    }
}

/// What opening found and mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes cut off the tail: a record that was never acknowledged.
    pub torn_bytes: u64,
    /// Records in the middle that fail their checksum and were copied to the quarantine folder. A run of bytes in which no record can be
    /// told from the next counts as one. What was quarantined at an earlier start is not counted again.
    pub quarantined_records: u64,
    /// Their bytes.
    pub quarantined_bytes: u64,
}

/// What the handles, the writer and the readers share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    id: uuid::Uuid,
    seed: Seed,
    files: Files,
    queue: Mutex<Queue>,
    /// The writer sleeps on it.
    wake: Condvar,
    head: watch::Sender<Position>,
    metrics: Metrics,
}

/// What waits for the writer. A plain mutex, because it is held for a push or a swap only.
#[derive(Debug, Default)]
struct Queue {
    appends: Vec<Pending>,
    advances: Vec<(Position, oneshot::Sender<Result<(), AppendError>>)>,
    closed: bool,
}

/// An append that waits for the writer.
#[derive(Debug)]
struct Pending {
    tenant: Tenant,
    entry: Entry,
    body_crc: u32,
    reply: oneshot::Sender<Result<Position, AppendError>>,
    /// Room in the queue, given back when the append is done.
    _room: OwnedSemaphorePermit,
}

impl Shared {
    fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_all();
    }
}

/// Tells the writer to finish when the last handle is gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// Bytes that may be queued.
    room: Arc<Semaphore>,
    /// Turns true when the writer has ended.
    done: watch::Receiver<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Wal {
    handle: Arc<Handle>,
}

impl Wal {
    /// Opens or makes the log, cuts a torn tail, and starts the writer thread.
    ///
    /// # Errors
    /// A folder or file that cannot be made, read or cut; a folder that another process has open; metrics that are registered already.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>, metrics: &prometheus::Registry) -> Result<(Self, Recovery), WalError> {
        Self::open_on(Box::new(disk::Real), settings, clock, metrics)
    }

    fn open_on(
        disk: Box<dyn Disk>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        registry: &prometheus::Registry,
    ) -> Result<(Self, Recovery), WalError> {
        let dir = settings.dir.clone();
        std::fs::create_dir_all(&dir).map_err(|source| WalError::new(&dir, "make the folder", source))?;
        let lock = lock(&dir)?;
        let metrics = Metrics::register(registry).map_err(|error| WalError::new(&dir, "register the metrics", io::Error::other(error)))?;
        let recovery::Recovered { id, files, head, last_at, found } = recovery::recover(&dir)?;
        metrics.quarantined_records.inc_by(found.quarantined_records);
        metrics.torn_bytes.inc_by(found.torn_bytes);
        if found != Recovery::default() {
            tracing::warn!(
                dir = %dir.display(),
                torn_bytes = found.torn_bytes,
                quarantined_records = found.quarantined_records,
                quarantined_bytes = found.quarantined_bytes,
                "mended the write-ahead log"
            );
        }
        let room = Arc::new(Semaphore::new(settings.queue_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))));
        let shared = Arc::new(Shared {
            seed: Seed::of(id),
            settings,
            id,
            files: Files::new(files),
            queue: Mutex::default(),
            wake: Condvar::new(),
            head: watch::Sender::new(head),
            metrics,
        });
        shared.metrics.show_files(&shared.files);
        let done = writer::spawn(Arc::clone(&shared), Arc::clone(&room), disk, clock, last_at, lock)
            .map_err(|source| WalError::new(&dir, "start the writer thread", source))?;
        Ok((Self { handle: Arc::new(Handle { shared, room, done }) }, found))
    }

    /// Identity of this log, kept in its folder.
    pub fn id(&self) -> uuid::Uuid {
        self.handle.shared.id
    }

    /// Appends one record: a tenant and a validated request. Returns where it begins once it is as durable as [`Settings::sync`] says.
    /// Waits while the queue is full. When the future is dropped while it waits for the disk, the record may still be written.
    ///
    /// # Errors
    /// The record was refused and will not be read back.
    pub async fn append(&self, tenant: &Tenant, entry: impl Into<Entry>) -> Result<Position, AppendError> {
        let shared = &self.handle.shared;
        let result = self.try_append(tenant, entry.into()).await;
        if let Err(error) = &result {
            shared.metrics.refuse(error);
        }
        result
    }

    async fn try_append(&self, tenant: &Tenant, entry: Entry) -> Result<Position, AppendError> {
        let shared = &self.handle.shared;
        let bytes = format::record_bytes(tenant, &entry.body);
        if bytes > MAX_RECORD_BYTES {
            return Err(AppendError::TooLarge { bytes, max: MAX_RECORD_BYTES });
        }
        // A record larger than the whole queue takes all of it, or it would wait for ever.
        let room = bytes.min(shared.settings.queue_bytes).max(1) as u32;
        let room = Arc::clone(&self.handle.room).acquire_many_owned(room).await.map_err(|_| AppendError::Closed)?;
        let body_crc = shared.seed.checksum(&entry.body);
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = shared.queue.lock();
            if queue.closed {
                return Err(AppendError::Closed);
            }
            shared.metrics.queue_bytes.add(bytes as i64);
            queue.appends.push(Pending { tenant: tenant.clone(), entry, body_crc, reply, _room: room });
        }
        shared.wake.notify_one();
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Begin of the oldest record kept.
    pub fn tail(&self) -> Position {
        self.handle.shared.files.tail().unwrap_or(*self.handle.shared.head.borrow())
    }

    /// End of the last durable record, and every change of it.
    pub fn head(&self) -> watch::Receiver<Position> {
        self.handle.shared.head.subscribe()
    }

    /// Moves the head forward to `position` if it is before it, leaving a gap; the next record begins there.
    ///
    /// For the start after a power loss: if a checkpoint knows of a later position than the log does, then the log lost acknowledged
    /// records (only [`Sync::Interval`] and [`Sync::Never`] allow that), and appending at the head would use positions a second time.
    ///
    /// # Errors
    /// The new file cannot be made, or the log is closed.
    pub async fn advance_to(&self, position: Position) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.handle.shared.queue.lock();
            if queue.closed {
                return Err(AppendError::Closed);
            }
            queue.advances.push((position, reply));
        }
        self.handle.shared.wake.notify_one();
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// A reader that starts at `from`, or at the oldest record kept if that is later.
    ///
    /// # Errors
    /// A position beyond the head.
    pub fn reader(&self, from: Position) -> Result<Reader, WalError> {
        let shared = &self.handle.shared;
        let head = *shared.head.borrow();
        if from > head {
            let cause = format!("position {} is beyond the head, {}", from.0, head.0);
            return Err(WalError::new(&shared.settings.dir, "start a reader", io::Error::new(io::ErrorKind::InvalidInput, cause)));
        }
        Ok(Reader::new(Arc::clone(shared), from.max(self.tail())))
    }

    /// Deletes the files that hold only records before `held`. The file that is being written stays.
    ///
    /// # Errors
    /// A file that cannot be deleted.
    pub fn release(&self, held: Position) -> Result<(), WalError> {
        let shared = &self.handle.shared;
        for file in shared.files.take_before(held) {
            let path = files::path(&shared.settings.dir, file.start);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // Still on the disk, hence still counted, and deleted by a later release.
                    shared.files.put_back(file);
                    return Err(WalError::new(&path, "delete a released file", error));
                }
                _ => tracing::debug!(path = %path.display(), "released a file of the write-ahead log"),
            }
        }
        shared.metrics.show_files(&shared.files);
        Ok(())
    }

    /// Writes and syncs what is queued, then refuses further appends. Returns when the writer has ended and the folder may be opened
    /// again. Readers keep working.
    pub async fn close(&self) {
        self.handle.shared.close();
        // Fails only when the writer is gone, which is what is waited for.
        let _ = self.handle.done.clone().wait_for(|done| *done).await;
    }
}

/// Keeps other processes out for as long as the file is open.
fn lock(dir: &Path) -> Result<File, WalError> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| WalError::new(&path, "open the lock file", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let cause = io::Error::new(io::ErrorKind::ResourceBusy, "another process has this log open");
            Err(WalError::new(dir, "lock the folder", cause))
        }
        Err(std::fs::TryLockError::Error(source)) => Err(WalError::new(&path, "lock the folder", source)),
    }
}
