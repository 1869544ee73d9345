//! The hashes that decide positions on the ring. FNV-1 multiplies before it mixes a byte in, FNV-1a after.

const OFFSET: u32 = 0x811c_9dc5;
const PRIME: u32 = 0x0100_0193;

/// The position of a trace: FNV-1 32 of the tenant's bytes followed by the trace id (write-path.md §4.5).
pub fn token(tenant: &str, trace_id: &[u8]) -> u32 {
    mix(mix(OFFSET, tenant.as_bytes()), trace_id)
}

/// FNV-1 with 32 bits.
pub fn fnv1_32(bytes: &[u8]) -> u32 {
    mix(OFFSET, bytes)
}

/// FNV-1a with 32 bits.
pub fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME))
}

fn mix(hash: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(hash, |hash, byte| hash.wrapping_mul(PRIME) ^ u32::from(*byte))
}
