//! The thread that writes: takes whatever is queued, writes it with one call, syncs it once, acknowledges it all.
//!
//! ```text
//!  queue ──take all──► batches (one per file) ──► write_vectored ──► fsync ──► head, replies
//!                                                      │ fails          │ fails
//!                                                      ▼                ▼
//!                                               truncate, refuse    abandon the file, refuse
//! ```
//!
//! Nothing is remembered about a full disk: the next append simply tries again.

use std::{
    fs::File,
    io::{self, IoSlice},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    AppendError, Pending, Position, Shared, Sync,
    disk::{Disk, DiskFile},
    files,
    format::{self, FILE_HEADER_BYTES},
};
use crate::clock::Clock;

/// Refusals are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Starts the thread. The answer turns true when it has ended.
pub(super) fn spawn(
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    disk: Box<dyn Disk>,
    clock: Arc<dyn Clock>,
    last_at: u64,
    lock: File,
) -> io::Result<watch::Receiver<bool>> {
    let (done, ended) = watch::channel(false);
    let head = *shared.head.borrow();
    let end = EndOfWriter { shared: Arc::clone(&shared), room, lock: Some(lock), done };
    let mut writer = Writer {
        shared,
        disk,
        clock,
        current: None,
        head,
        last_at,
        dirty_since: None,
        headers: Vec::new(),
        last_log: None,
        refused_bytes_left: false,
    };
    thread::Builder::new().name("wal-writer".to_owned()).spawn(move || {
        let _end = end;
        writer.run();
    })?;
    Ok(ended)
}

/// However the thread ends: nobody waits for it any longer, and the folder is free.
struct EndOfWriter {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    lock: Option<File>,
    done: watch::Sender<bool>,
}

impl Drop for EndOfWriter {
    fn drop(&mut self) {
        self.room.close();
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        let (appends, advances) = (std::mem::take(&mut queue.appends), std::mem::take(&mut queue.advances));
        drop(queue);
        // Dropping the senders tells those who wait that the log is closed.
        drop((appends, advances, self.lock.take()));
        self.done.send_replace(true);
    }
}

struct Writer {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    clock: Arc<dyn Clock>,
    /// The file being written; none at the start, after an abandoned file, and when the last one was full.
    current: Option<Current>,
    /// Where the next record begins.
    head: Position,
    /// Time of the last record.
    last_at: u64,
    /// Since when there are acknowledged bytes without an fsync.
    dirty_since: Option<Instant>,
    /// Record headers and tenants of a batch; reused.
    headers: Vec<u8>,
    last_log: Option<Instant>,
    /// Whether refused bytes lie behind the last file's end, so that the next file must begin before the log is closed.
    refused_bytes_left: bool,
}

struct Current {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Good bytes, the file header included.
    bytes: u64,
}

struct Work {
    appends: Vec<Pending>,
    advances: Vec<(Position, oneshot::Sender<Result<(), AppendError>>)>,
    closed: bool,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let Work { appends, advances, closed } = self.wait();
            let nothing_left = appends.is_empty() && advances.is_empty();
            if !appends.is_empty() {
                self.append(appends);
            }
            for (position, reply) in advances {
                let result = self.advance(position);
                // Fails when nobody waits for the answer any longer.
                let _ = reply.send(result);
            }
            if let Some(due) = self.sync_due()
                && due <= Instant::now()
            {
                self.sync_interval();
            }
            if closed && nothing_left {
                break;
            }
        }
        self.retire();
        self.end_refused_bytes();
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Work {
        let mut queue = self.shared.queue.lock();
        while queue.appends.is_empty() && queue.advances.is_empty() && !queue.closed {
            match self.sync_due() {
                Some(due) => {
                    if self.shared.wake.wait_until(&mut queue, due).timed_out() {
                        break;
                    }
                }
                None => self.shared.wake.wait(&mut queue),
            }
        }
        Work { appends: std::mem::take(&mut queue.appends), advances: std::mem::take(&mut queue.advances), closed: queue.closed }
    }

    fn append(&mut self, appends: Vec<Pending>) {
        let file_bytes = self.shared.settings.file_bytes;
        let max_bytes = self.shared.settings.max_bytes;
        let mut appends = appends.into_iter().peekable();
        while appends.peek().is_some() {
            if self.current.as_ref().is_some_and(|current| current.bytes >= file_bytes) {
                self.retire();
            }
            // A new file costs a header.
            let new_bytes = if self.current.is_some() { 0 } else { FILE_HEADER_BYTES as u64 };
            let begin = self.current.as_ref().map_or(FILE_HEADER_BYTES as u64, |current| current.bytes);
            let kept = self.shared.files.bytes() + new_bytes;
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(append) = appends.next_if(|_| batch.is_empty() || begin + bytes < file_bytes) {
                let size = format::record_bytes(&append.tenant, &append.entry.body) as u64;
                if kept + bytes + size > max_bytes {
                    let cause = format!("it holds {} bytes of at most {max_bytes}", kept + bytes);
                    self.refuse(vec![append], &AppendError::Full(cause));
                } else {
                    bytes += size;
                    batch.push(append);
                }
            }
            if !batch.is_empty() {
                match self.write(&batch) {
                    Ok(()) => self.acknowledge(batch, bytes),
                    Err(error) => self.refuse(batch, &error),
                }
            }
        }
    }

    /// Writes a batch behind the head and makes it as durable as the settings say. If that fails, the file is as it was before or is
    /// not written again.
    fn write(&mut self, batch: &[Pending]) -> Result<(), AppendError> {
        self.ensure_file().map_err(|error| refusal("begin a file", &error))?;
        let Some(current) = &mut self.current else { return Err(AppendError::Closed) };
        let now = u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX);
        let at = now.max(self.last_at);

        self.headers.clear();
        let mut header_ends = Vec::with_capacity(batch.len());
        let mut position = self.head;
        for append in batch {
            let Pending { tenant, entry, body_crc, .. } = append;
            format::write_record_header(self.shared.seed, position, at, tenant, entry, *body_crc, &mut self.headers);
            header_ends.push(self.headers.len());
            position.0 += format::record_bytes(tenant, &entry.body) as u64;
        }
        let mut slices = Vec::with_capacity(2 * batch.len());
        let mut begin = 0;
        for (append, end) in batch.iter().zip(header_ends) {
            slices.push(IoSlice::new(&self.headers[begin..end]));
            slices.push(IoSlice::new(&append.entry.body));
            begin = end;
        }

        if let Err(error) = write_all(current.file.as_mut(), &mut slices) {
            if current.file.truncate(current.bytes).is_err() {
                self.abandon();
            }
            return Err(refusal("write records", &error));
        }
        self.last_at = at;
        match self.shared.settings.sync {
            Sync::Always => {
                if let Err(error) = self.sync() {
                    self.abandon();
                    return Err(refusal("sync records", &error));
                }
            }
            Sync::Interval(_) => self.dirty_since = self.dirty_since.or_else(|| Some(Instant::now())),
            Sync::Never => {}
        }
        Ok(())
    }

    fn acknowledge(&mut self, batch: Vec<Pending>, bytes: u64) {
        let first = self.head;
        self.head.0 += bytes;
        if let Some(current) = &mut self.current {
            current.bytes += bytes;
        }
        // First the file, so that a reader that sees the head finds the records.
        self.shared.files.extend(self.head);
        self.shared.head.send_replace(self.head);
        let metrics = &self.shared.metrics;
        metrics.appended_bytes.inc_by(bytes);
        metrics.appended_records.inc_by(batch.len() as u64);
        metrics.group_records.observe(batch.len() as f64);
        metrics.show_files(&self.shared.files);
        if self.last_log.take().is_some() {
            tracing::info!(head = self.head.0, "the write-ahead log accepts records again");
        }
        let mut position = first;
        for append in batch {
            let size = format::record_bytes(&append.tenant, &append.entry.body);
            metrics.queue_bytes.sub(size as i64);
            // Fails when the client is gone. The record stays: the client may have to send it again, as after any lost answer.
            let _ = append.reply.send(Ok(position));
            position.0 += size as u64;
        }
    }

    fn refuse(&mut self, appends: Vec<Pending>, error: &AppendError) {
        if self.last_log.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            tracing::error!(%error, records = appends.len(), "the write-ahead log refuses records");
            self.last_log = Some(Instant::now());
        }
        for append in appends {
            self.shared.metrics.queue_bytes.sub(format::record_bytes(&append.tenant, &append.entry.body) as i64);
            let _ = append.reply.send(Err(error.clone()));
        }
    }

    fn begin_file(&mut self) -> io::Result<Current> {
        let dir = &self.shared.settings.dir;
        let path = files::path(dir, self.head);
        let mut file = self.disk.create(&path)?;
        let header = format::file_header(self.shared.id, self.head);
        write_all(file.as_mut(), &mut [IoSlice::new(&header)])?;
        if self.shared.settings.sync != Sync::Never {
            file.sync()?;
            self.disk.sync_dir(dir)?;
        }
        Ok(Current { file, path, bytes: FILE_HEADER_BYTES as u64 })
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let timer = self.shared.metrics.fsync_seconds.start_timer();
        let result = current.file.sync();
        timer.observe_duration();
        self.dirty_since = None;
        if let Err(error) = &result {
            self.shared.metrics.fsync_failures.inc();
            tracing::error!(path = %current.path.display(), %error, "fsync of the write-ahead log failed");
        }
        result
    }

    /// After a failed fsync, which leaves unknown what the disk holds of the file's end (and a later fsync would not tell), or after a
    /// write that cannot be undone.
    fn abandon(&mut self) {
        let Some(mut current) = self.current.take() else { return };
        tracing::error!(path = %current.path.display(), good_bytes = current.bytes, "abandoned a file of the write-ahead log");
        if current.file.truncate(current.bytes).is_err() {
            self.refused_bytes_left = true;
            self.end_refused_bytes();
        }
    }

    /// Begins the next file at the head, which ends the file before, when there are bytes behind its end that were refused: a restart
    /// would take them for a part of the log.
    fn end_refused_bytes(&mut self) {
        if !self.refused_bytes_left || self.current.is_some() {
            return;
        }
        if let Err(error) = self.ensure_file() {
            tracing::error!(%error, "refused records are still on the disk, trying again with the next append");
        }
    }

    fn ensure_file(&mut self) -> io::Result<()> {
        if self.current.is_none() {
            self.current = Some(self.begin_file()?);
            self.shared.files.push(self.head);
            self.refused_bytes_left = false;
        }
        Ok(())
    }

    fn sync_due(&self) -> Option<Instant> {
        match self.shared.settings.sync {
            Sync::Interval(interval) => self.dirty_since.map(|since| since + interval),
            Sync::Always | Sync::Never => None,
        }
    }

    /// The records are acknowledged already, as `Sync::Interval` allows; all that can be done is to say so and to go on elsewhere.
    fn sync_interval(&mut self) {
        if self.sync().is_err() {
            self.abandon();
        }
    }

    /// Closes the current file.
    fn retire(&mut self) {
        if self.dirty_since.is_some() {
            self.sync_interval();
        }
        self.current = None;
    }

    fn advance(&mut self, position: Position) -> Result<(), AppendError> {
        if position <= self.head {
            return Ok(());
        }
        self.retire();
        let before = std::mem::replace(&mut self.head, position);
        match self.ensure_file() {
            Ok(()) => {
                tracing::warn!(from = before.0, to = position.0, "the write-ahead log lost records, going on behind them");
                self.shared.head.send_replace(position);
                Ok(())
            }
            // The head stays ahead: a file of that name may exist by now, and no other may ever reach into its positions.
            Err(error) => Err(refusal("begin a file", &error)),
        }
    }
}

fn write_all(file: &mut dyn DiskFile, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Skips slices that are empty from the start.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn refusal(action: &str, error: &io::Error) -> AppendError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            AppendError::Full(format!("{action}: {error}"))
        }
        _ => AppendError::Io(format!("{action}: {error}")),
    }
}
