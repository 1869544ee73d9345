//! Which files the log consists of, and which positions each of them holds.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Position, format::FILE_HEADER_BYTES};

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    /// Position of its first record; its name.
    pub(super) start: Position,
    /// Where its last record ends.
    pub(super) end: Position,
    /// Tells it from another file of the same name before or after it.
    pub(super) generation: u64,
}

impl LogFile {
    fn bytes(&self) -> u64 {
        FILE_HEADER_BYTES as u64 + (self.end.0 - self.start.0)
    }
}

/// The files, oldest first. Their ranges of positions do not overlap; there may be gaps.
#[derive(Debug)]
pub(super) struct Files(Mutex<Vec<LogFile>>);

impl Files {
    pub(super) fn new(files: Vec<LogFile>) -> Self {
        Self(Mutex::new(files))
    }

    pub(super) fn tail(&self) -> Option<Position> {
        self.0.lock().first().map(|file| file.start)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.lock().iter().map(LogFile::bytes).sum()
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// The file that holds `position` or, if none does, the first that begins later.
    pub(super) fn at_or_after(&self, position: Position) -> Option<LogFile> {
        let files = self.0.lock();
        files.get(files.partition_point(|file| file.end <= position)).copied()
    }

    /// Adds a file at the end, in place of the one of the same name if there is one (it holds no record).
    pub(super) fn push(&self, start: Position) {
        let mut files = self.0.lock();
        let generation = files.last().map_or(0, |file| file.generation) + 1;
        files.retain(|file| file.start != start);
        files.push(LogFile { start, end: start, generation });
    }

    /// The last file holds records up to `end` now.
    pub(super) fn extend(&self, end: Position) {
        if let Some(file) = self.0.lock().last_mut() {
            file.end = end;
        }
    }

    /// Takes out the files that hold only positions before `held`, but never the last, which says where the log ends.
    pub(super) fn take_before(&self, held: Position) -> Vec<LogFile> {
        let mut files = self.0.lock();
        let released = files.partition_point(|file| file.end <= held).min(files.len().saturating_sub(1));
        files.drain(..released).collect()
    }

    pub(super) fn put_back(&self, file: LogFile) {
        let mut files = self.0.lock();
        let place = files.partition_point(|other| other.start < file.start);
        files.insert(place, file);
    }
}

pub(super) fn path(dir: &Path, start: Position) -> PathBuf {
    dir.join(format!("{:020}.wal", start.0))
}

/// The position that names a file; none when it is not a file of the log.
pub(super) fn start_of(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(".wal")?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Position)
}
