//! Reads records back.
//!
//! [`Scan`] walks the records of one file through a window of about 1 MiB and says where bytes are that are no record. [`Reader`]
//! moves a scan from file to file up to the durable head; recovery runs one over every file.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Position, Record, Shared, WalError, files,
    format::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, Seed},
};
use crate::id::Tenant;

/// Bytes read at once, unless a single record is larger.
const WINDOW_BYTES: usize = 1 << 20;

/// What lies at a position.
#[derive(Debug)]
pub(super) enum Step {
    /// A record.
    Record(Record),
    /// Bytes up to `to` that are no record.
    Damage {
        /// Where to go on: a record whose header is right, or the limit.
        to: Position,
    },
    /// The limit.
    End,
}

/// Walks one file. The bytes that it hands out are slices of its window.
#[derive(Debug)]
pub(super) struct Scan {
    file: File,
    seed: Seed,
    /// Position of the file's first record.
    start: Position,
    /// Bytes of the file from `window_at` on.
    window: Bytes,
    window_at: Position,
    /// Tenants mostly repeat; a clone of the last one saves an allocation.
    tenant: Option<Tenant>,
}

impl Scan {
    pub(super) fn open(path: &Path, start: Position, seed: Seed) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, seed, start, window: Bytes::new(), window_at: start, tenant: None })
    }

    /// Reads what lies at `position`, looking at nothing at or beyond `limit`.
    pub(super) fn step(&mut self, position: Position, limit: Position) -> io::Result<Step> {
        if position >= limit {
            return Ok(Step::End);
        }
        let Some(header) = self.header(position, limit)? else { return self.search(position, limit) };
        let next = Position(position.0 + header.total() as u64);
        // The header is genuine and its end inside the file, so that its length may be trusted with an allocation.
        let record = self.view(position, header.total(), limit)?;
        let body = record.slice((RECORD_HEADER_BYTES + header.tenant_bytes).min(record.len())..);
        if body.len() != header.body_bytes || self.seed.checksum(&body) != header.body_crc {
            return Ok(Step::Damage { to: next });
        }
        let Some(tenant) = self.tenant(&record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + header.tenant_bytes]) else {
            return Ok(Step::Damage { to: next });
        };
        let (at, skip_metrics_generation) = (Duration::from_nanos(header.at_ns), header.skip_metrics_generation);
        Ok(Step::Record(Record { position, next, at, tenant, body, skip_metrics_generation }))
    }

    fn tenant(&mut self, name: &[u8]) -> Option<Tenant> {
        if let Some(last) = &self.tenant
            && last.as_str().as_bytes() == name
        {
            return Some(last.clone());
        }
        let tenant = Tenant::new(std::str::from_utf8(name).ok()?).ok()?;
        self.tenant = Some(tenant.clone());
        Some(tenant)
    }

    /// The header of a record that begins at `position` and ends at or before `limit`.
    fn header(&mut self, position: Position, limit: Position) -> io::Result<Option<RecordHeader>> {
        // 255 is the longest tenant that the format can say.
        let bytes = self.view(position, RECORD_HEADER_BYTES + 255, limit)?;
        let header = RecordHeader::read(self.seed, position, &bytes);
        Ok(header.filter(|header| header.total() as u64 <= limit.0 - position.0))
    }

    /// Searches behind a damaged place for the next record.
    fn search(&mut self, damaged: Position, limit: Position) -> io::Result<Step> {
        let mut position = Position(damaged.0 + 1);
        while position < limit {
            let bytes = self.view(position, WINDOW_BYTES, limit)?;
            for offset in bytes.windows(RECORD_MAGIC.len()).enumerate().filter(|(_, four)| *four == RECORD_MAGIC).map(|(at, _)| at) {
                let candidate = Position(position.0 + offset as u64);
                if self.header(candidate, limit)?.is_some() {
                    return Ok(Step::Damage { to: candidate });
                }
            }
            // The last three bytes may be the beginning of a magic.
            let Some(done) = bytes.len().checked_sub(RECORD_MAGIC.len() - 1).filter(|done| *done > 0) else { break };
            position.0 += done as u64;
        }
        Ok(Step::Damage { to: limit })
    }

    /// The `length` bytes from `position` on, or as many as there are before `limit` and the end of the file.
    fn view(&mut self, position: Position, length: usize, limit: Position) -> io::Result<Bytes> {
        let length = (limit.0.saturating_sub(position.0)).min(length as u64) as usize;
        let offset = position.0.checked_sub(self.window_at.0).map_or(usize::MAX, |offset| offset as usize);
        if offset.checked_add(length).is_none_or(|end| end > self.window.len()) {
            let wanted = (limit.0 - position.0).min(length.max(WINDOW_BYTES) as u64);
            // `read_to_end` into spare capacity: no zeroing of a buffer that is overwritten at once.
            let mut buffer = Vec::with_capacity(wanted as usize);
            self.file.seek(SeekFrom::Start(position.0 - self.start.0 + FILE_HEADER_BYTES as u64))?;
            (&self.file).take(wanted).read_to_end(&mut buffer)?;
            self.window = Bytes::from(buffer);
            self.window_at = position;
        }
        let offset = (position.0 - self.window_at.0) as usize;
        Ok(self.window.slice(offset..(offset + length).min(self.window.len())))
    }
}

/// Reads records in order. Blocking: lives on a thread of its own.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    position: Position,
    /// The file being read, and which one it is.
    scan: Option<(u64, Scan)>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, position: Position) -> Self {
        Self { shared, position, scan: None }
    }

    /// Where the next record begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Reads records of up to about `max_bytes` in total (at least one, if there is one) and at most up to the durable head.
    /// Never waits: an empty answer means that the head is reached. Corrupt records are skipped and counted. Records that were released
    /// before they were read are passed over.
    ///
    /// # Errors
    /// A file that cannot be read. The same place is tried again by the next call.
    pub fn read(&mut self, max_bytes: usize, records: &mut Vec<Record>) -> Result<(), WalError> {
        let head = *self.shared.head.borrow();
        let mut bytes = 0;
        let mut vanished = 0;
        loop {
            let Some(file) = self.shared.files.at_or_after(self.position) else {
                // Behind the last record of the last file: there may be a gap up to the head.
                self.position = self.position.max(head);
                return Ok(());
            };
            if file.start > self.position {
                self.position = file.start;
            }
            let limit = file.end.min(head);
            if self.position >= limit {
                return Ok(());
            }
            let path = files::path(&self.shared.settings.dir, file.start);
            if self.scan.as_ref().is_none_or(|(generation, _)| *generation != file.generation) {
                match Scan::open(&path, file.start, self.shared.seed) {
                    Ok(scan) => self.scan = Some((file.generation, scan)),
                    // Released between the look at the list and the opening: look again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && vanished < 100 => {
                        vanished += 1;
                        continue;
                    }
                    Err(source) => return Err(WalError::new(&path, "open a file to read it", source)),
                }
            }
            let Some((_, scan)) = &mut self.scan else { return Ok(()) };
            loop {
                match scan.step(self.position, limit).map_err(|source| WalError::new(&path, "read records", source))? {
                    Step::Record(record) => {
                        self.position = record.next;
                        bytes += record.body.len();
                        records.push(record);
                        if bytes >= max_bytes {
                            return Ok(());
                        }
                    }
                    Step::Damage { to } => {
                        tracing::error!(path = %path.display(), from = self.position.0, to = to.0, "skipped a damaged record");
                        self.shared.metrics.corrupt_records.inc();
                        self.position = to;
                    }
                    Step::End => break,
                }
            }
        }
    }
}
