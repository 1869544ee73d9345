//! What happens before the log is written again: identity, list of files, torn tail, quarantine.
//!
//! Every byte is read once and every checksum verified. Bad bytes at the end of the last file are a record that was being written when
//! the process died: they are cut off. Bad bytes anywhere else are damage: they stay where they are, readers skip them, and a copy goes
//! to the quarantine folder for whoever wants to look.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use uuid::Uuid;

use super::{
    Position, Recovery, WalError,
    files::{self, LogFile},
    format::{self, FILE_HEADER_BYTES, FileHeader, Seed},
    reader::{Scan, Step},
};

/// What the log consists of.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) id: Uuid,
    pub(super) files: Vec<LogFile>,
    /// End of the last record.
    pub(super) head: Position,
    /// Time of the last record, nanoseconds since the Unix epoch.
    pub(super) last_at: u64,
    pub(super) found: Recovery,
}

pub(super) fn recover(dir: &Path) -> Result<Recovered, WalError> {
    let mut starts = Vec::new();
    let list = |source| WalError::new(dir, "list the folder", source);
    for entry in fs::read_dir(dir).map_err(list)? {
        starts.extend(entry.map_err(list)?.file_name().to_str().and_then(files::start_of));
    }
    starts.sort_unstable();
    let id = identity(dir, &starts)?;
    let mut recovered = Recovered { id, files: Vec::new(), head: Position(0), last_at: 0, found: Recovery::default() };
    for (number, start) in starts.iter().enumerate() {
        recover_file(dir, *start, starts.get(number + 1).copied(), &mut recovered)?;
    }
    Ok(recovered)
}

fn recover_file(dir: &Path, start: Position, next: Option<Position>, recovered: &mut Recovered) -> Result<(), WalError> {
    let path = files::path(dir, start);
    let failed = |action: &'static str| {
        let path = path.clone();
        move |source| WalError::new(&path, action, source)
    };
    let length = fs::metadata(&path).map_err(failed("look at a file"))?.len();
    check_header(&path, start, length, recovered.id)?;

    let content = length.saturating_sub(FILE_HEADER_BYTES as u64);
    let limit = Position(start.0.saturating_add(content)).min(next.unwrap_or(Position(u64::MAX)));
    let mut scan = Scan::open(&path, start, Seed::of(recovered.id)).map_err(failed("open a file"))?;
    let mut end = start;
    // End of the last sound record: damage between it and a torn tail is cut with the tail, or the next start would find it at the end.
    let mut sound = start;
    loop {
        match scan.step(end, limit).map_err(failed("read records"))? {
            Step::Record(record) => {
                recovered.last_at = recovered.last_at.max(u64::try_from(record.at.as_nanos()).unwrap_or(u64::MAX));
                end = record.next;
                sound = end;
            }
            Step::Damage { to } if to >= limit && next.is_none() => {
                end = sound;
                recovered.found.torn_bytes += limit.0 - end.0;
                let file = File::options().write(true).open(&path).map_err(failed("open a file to cut it"))?;
                file.set_len(end.0 - start.0 + FILE_HEADER_BYTES as u64)
                    .and_then(|()| file.sync_all())
                    .map_err(failed("cut a torn record"))?;
                break;
            }
            Step::Damage { to } => {
                if quarantine(dir, &path, start, end, to).map_err(failed("copy a damaged record to the quarantine"))? {
                    recovered.found.quarantined_records += 1;
                    recovered.found.quarantined_bytes += to.0.min(limit.0) - end.0;
                }
                end = to.min(limit);
            }
            Step::End => break,
        }
    }
    recovered.files.push(LogFile { start, end, generation: recovered.files.len() as u64 });
    recovered.head = end;
    Ok(())
}

/// A torn or damaged header is survivable, because name and `id` file say the same; one that says something else is not.
fn check_header(path: &Path, start: Position, length: u64, id: Uuid) -> Result<(), WalError> {
    let wrong = |cause: String| WalError::new(path, "check the file header", io::Error::new(io::ErrorKind::InvalidData, cause));
    match read_header(path).map_err(|source| WalError::new(path, "read the file header", source))? {
        FileHeader::Good(found, _) if found != id => Err(wrong(format!("the file belongs to the log {found}, the folder to {id}"))),
        FileHeader::Good(_, found) if found != start => Err(wrong(format!("the file begins at {}, by its name at {}", found.0, start.0))),
        FileHeader::Good(..) => Ok(()),
        FileHeader::Version(version) => Err(wrong(format!("version {version} of the format is not known"))),
        FileHeader::Bad => {
            if length > FILE_HEADER_BYTES as u64 {
                tracing::warn!(path = %path.display(), "damaged file header, the records are read all the same");
            }
            Ok(())
        }
    }
}

fn read_header(path: &Path) -> io::Result<FileHeader> {
    let mut header = Vec::with_capacity(FILE_HEADER_BYTES);
    File::open(path)?.take(FILE_HEADER_BYTES as u64).read_to_end(&mut header)?;
    Ok(format::read_file_header(&header))
}

/// Copies the bytes from one position to another; false when an earlier start did so already.
fn quarantine(dir: &Path, path: &Path, start: Position, from: Position, to: Position) -> io::Result<bool> {
    let folder = dir.join("quarantine");
    let bytes = to.0 - from.0;
    let copy = folder.join(format!("{:020}-{bytes}.bin", from.0));
    if fs::metadata(&copy).is_ok_and(|found| found.len() == bytes) {
        return Ok(false);
    }
    fs::create_dir_all(&folder)?;
    let mut damaged = File::open(path)?;
    damaged.seek(SeekFrom::Start(from.0 - start.0 + FILE_HEADER_BYTES as u64))?;
    let mut copy = File::create(copy)?;
    io::copy(&mut damaged.take(bytes), &mut copy)?;
    copy.sync_all()?;
    Ok(true)
}

/// Reads the identity of the log or makes one. When its file is lost, the files of the log still know.
fn identity(dir: &Path, starts: &[Position]) -> Result<Uuid, WalError> {
    let path = dir.join("id");
    match fs::read_to_string(&path) {
        Ok(text) => {
            return text.trim().parse().map_err(|error| {
                WalError::new(&path, "read the identity", io::Error::new(io::ErrorKind::InvalidData, format!("not a UUID: {error}")))
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(WalError::new(&path, "read the identity", source)),
    }
    let known = starts.iter().find_map(|start| match read_header(&files::path(dir, *start)) {
        Ok(FileHeader::Good(id, _)) => Some(id),
        _ => None,
    });
    let id = known.unwrap_or_else(Uuid::new_v4);
    let write = || {
        let draft = dir.join("id.new");
        let mut file = File::create(&draft)?;
        file.write_all(format!("{id}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| WalError::new(&path, "write the identity", source))?;
    Ok(id)
}
