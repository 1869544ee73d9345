//! The bytes of a file header and of a record: see the table in the module documentation above.

use bytes::Bytes;
use uuid::Uuid;

use super::{Entry, Position};
use crate::id::Tenant;

/// Largest record, its header and tenant included.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// Bytes before the first record of a file.
pub(super) const FILE_HEADER_BYTES: usize = 40;
/// Bytes before the tenant of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 36;
/// What a record begins with.
pub(super) const RECORD_MAGIC: [u8; 4] = *b"RbRc";

const FILE_MAGIC: [u8; 8] = *b"RUBATOWL";
const VERSION: u32 = 1;
const KIND_OTLP: u8 = 1;

/// Where the checksums of a log's records start from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn of(id: Uuid) -> Self {
        Self(crc32c::crc32c(id.as_bytes()))
    }

    pub(super) fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// Bytes of the record that holds `body`.
pub(super) fn record_bytes(tenant: &Tenant, body: &Bytes) -> usize {
    RECORD_HEADER_BYTES + tenant.as_str().len() + body.len()
}

pub(super) fn file_header(id: Uuid, start: Position) -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(&FILE_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..28].copy_from_slice(id.as_bytes());
    header[28..36].copy_from_slice(&start.0.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..36]);
    header[36..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// What a file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileHeader {
    /// Identity of the log and start position.
    Good(Uuid, Position),
    /// Written by a later version.
    Version(u32),
    /// Torn or damaged.
    Bad,
}

pub(super) fn read_file_header(bytes: &[u8]) -> FileHeader {
    let Some(header) = bytes.first_chunk::<FILE_HEADER_BYTES>() else { return FileHeader::Bad };
    if header[..8] != FILE_MAGIC || crc32c::crc32c(&header[..36]) != word(header, 36) {
        return FileHeader::Bad;
    }
    match word(header, 8) {
        VERSION => {}
        other => return FileHeader::Version(other),
    }
    let mut id = [0; 16];
    id.copy_from_slice(&header[12..28]);
    FileHeader::Good(Uuid::from_bytes(id), Position(double_word(header, 28)))
}

/// Appends the header and the tenant of a record to `out`; its body is to follow.
pub(super) fn write_record_header(
    seed: Seed,
    position: Position,
    at_ns: u64,
    tenant: &Tenant,
    entry: &Entry,
    body_crc: u32,
    out: &mut Vec<u8>,
) {
    let begin = out.len();
    let tenant = tenant.as_str().as_bytes();
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(entry.body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body_crc.to_le_bytes());
    out.extend_from_slice(&position.0.to_le_bytes());
    out.extend_from_slice(&at_ns.to_le_bytes());
    out.extend_from_slice(&[KIND_OTLP, tenant.len() as u8, u8::from(entry.skip_metrics_generation), 0]);
    out.extend_from_slice(tenant);
    let checksum = seed.checksum(&out[begin + 8..]);
    out[begin + 4..begin + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// A record header whose checksum is right, or the bytes of one that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) tenant_bytes: usize,
    pub(super) body_bytes: usize,
    pub(super) body_crc: u32,
    pub(super) at_ns: u64,
    pub(super) skip_metrics_generation: bool,
}

impl RecordHeader {
    /// Bytes of the whole record.
    pub(super) fn total(&self) -> usize {
        RECORD_HEADER_BYTES + self.tenant_bytes + self.body_bytes
    }

    /// Reads the record header at the start of `bytes`, which belong to `position`. None when there is none, or `bytes` end before the
    /// tenant does.
    pub(super) fn read(seed: Seed, position: Position, bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        let tenant_bytes = usize::from(fixed[33]);
        let header = Self {
            tenant_bytes,
            body_bytes: word(fixed, 8) as usize,
            body_crc: word(fixed, 12),
            at_ns: double_word(fixed, 24),
            skip_metrics_generation: fixed[34] == 1,
        };
        let checked = bytes.get(8..RECORD_HEADER_BYTES + tenant_bytes)?;
        let good = fixed[..4] == RECORD_MAGIC
            && double_word(fixed, 16) == position.0
            && fixed[32] == KIND_OTLP
            && header.total() <= MAX_RECORD_BYTES
            && word(fixed, 4) == seed.checksum(checked);
        good.then_some(header)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn double_word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
