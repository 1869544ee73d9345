//! Which spans were counted, by a hash of their identity.
//!
//! A recovery reads the log again from the oldest record that is not in a block, and copies of spans whose record lies before that may
//! still come: from replicas, and from clients that try again. So each commit writes the identities of the spans that it counted, eight
//! bytes each, and the manifest lists what was written for as long as a copy would be recognised without a crash.
//!
//! ```text
//!  "RBIDS001" │ count: u64 │ count × identity: u64 │ xxh64 of all before       little-endian
//! ```

use std::collections::HashSet;

use foldhash::fast::FixedState;
use storage::id::{SpanKey, Tenant, TraceId};
use twox_hash::XxHash64;

const MAGIC: &[u8; 8] = b"RBIDS001";
const SEED: u64 = 0x5275_6261_746f_0003;

/// The hash of a tenant, for [`identity`].
pub(crate) fn tenant_hash(tenant: &Tenant) -> u64 {
    XxHash64::oneshot(SEED, tenant.as_str().as_bytes())
}

/// The hash of a span's identity. The same in every process and every version: it is kept on the bucket.
pub(crate) fn identity(tenant: u64, trace_id: TraceId, key: SpanKey) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let trace = u128::from_be_bytes(trace_id.0);
    let trace = fold(trace as u64 ^ 0x9e37_79b9_7f4a_7c15, (trace >> 64) as u64 ^ tenant);
    fold(trace ^ 0xa076_1d64_78bd_642f, key.span_id ^ 0xe703_7ed1_a0b4_28db ^ u64::from(key.kind as u32) << 32)
}

/// Spans that were counted by generations before.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    set: HashSet<u64, FixedState>,
    /// After this tick no copy would be recognised anyway.
    pub(crate) expires: u64,
}

impl Identities {
    pub(crate) fn until(expires: u64) -> Self {
        Self { expires, ..Self::default() }
    }

    pub(crate) fn contains(&self, identity: u64) -> bool {
        self.set.contains(&identity)
    }

    pub(crate) fn extend(&mut self, identities: &[u64]) {
        self.set.extend(identities);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

pub(crate) fn encode(identities: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + identities.len() * 8);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(identities.len() as u64).to_le_bytes());
    identities.iter().for_each(|identity| bytes.extend_from_slice(&identity.to_le_bytes()));
    bytes.extend_from_slice(&XxHash64::oneshot(SEED, &bytes).to_le_bytes());
    bytes
}

/// What [`encode`] wrote; `None` for anything else.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<u64>> {
    let (content, checksum) = bytes.split_last_chunk::<8>()?;
    if XxHash64::oneshot(SEED, content) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let (count, identities) = content.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let (identities, rest) = identities.as_chunks::<8>();
    (rest.is_empty() && identities.len() as u64 == u64::from_le_bytes(*count))
        .then(|| identities.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_or_not_at_all() {
        let identities: Vec<u64> = (0..100u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let bytes = encode(&identities);
        assert_eq!(decode(&bytes), Some(identities));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
            let mut flipped = bytes.clone();
            flipped[cut] ^= 1;
            assert_eq!(decode(&flipped), None);
        }
    }

    #[test]
    fn everything_takes_part() {
        let tenant = |name| tenant_hash(&Tenant::new(name).expect("valid"));
        let key = SpanKey { span_id: 7, kind: 2 };
        let all = [
            identity(tenant("a"), TraceId([1; 16]), key),
            identity(tenant("b"), TraceId([1; 16]), key),
            identity(tenant("a"), TraceId([2; 16]), key),
            identity(tenant("a"), TraceId([1; 16]), SpanKey { span_id: 8, ..key }),
            identity(tenant("a"), TraceId([1; 16]), SpanKey { kind: 3, ..key }),
        ];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
