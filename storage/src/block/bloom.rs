//! Bloom filters over trace ids, bit for bit those of Tempo (block-format.md §4).
//!
//! ```text
//!  id ──FNV-1──► shard ──► bloom-<shard> = m, k, bits, words (big-endian u64 each)
//!  id ──murmur3 x64 128──► h0 h1 h2 h3 ──► k locations below m, all of which must be set
//! ```
//!
//! A filter of the bucket is untrusted: [`contains`] takes m and k from its bytes and checks them against its length.

use crate::id::TraceId;

/// Shards that are being filled.
#[derive(Debug)]
pub(crate) struct Builder {
    bits: u64,
    hashes: u64,
    shards: Vec<Vec<u64>>,
}

impl Builder {
    /// Filters for about `objects` ids with a false-positive rate of `rate`, in shards of `shard_bytes` bytes.
    pub(crate) fn new(rate: f64, shard_bytes: usize, objects: u64) -> Self {
        let rate = if rate > 0.0 && rate < 1.0 { rate } else { 0.01 };
        let shard_bytes = shard_bytes.max(1);
        let objects = objects.max(1) as f64;
        let ln2 = std::f64::consts::LN_2;
        let estimate = (-objects * rate.ln() / (ln2 * ln2)).ceil();
        let hashes = (ln2 * estimate / objects).ceil() as u64;
        let shards = (estimate / (8.0 * shard_bytes as f64)).ceil().clamp(1.0, 1000.0) as usize;
        let bits = 8 * shard_bytes as u64;
        Self { bits, hashes, shards: vec![vec![0; shard_bytes.div_ceil(8)]; shards] }
    }

    /// Adds an id.
    pub(crate) fn add(&mut self, id: TraceId) {
        let shard = shard_of(id, self.shards.len() as u32) as usize;
        for location in locations(id, self.hashes, self.bits) {
            self.shards[shard][(location / 64) as usize] |= 1 << (location % 64);
        }
    }

    /// The objects `bloom-0`, `bloom-1`, ….
    pub(crate) fn finish(self) -> Vec<Vec<u8>> {
        let header = [self.bits, self.hashes, self.bits];
        self.shards.into_iter().map(|words| header.iter().chain(&words).flat_map(|word| word.to_be_bytes()).collect()).collect()
    }
}

/// The shard in which an id is looked up. Metas of the first releases have no number of shards and mean ten.
pub(crate) fn shard_of(id: TraceId, shards: u32) -> u32 {
    let shards = if shards == 0 { 10 } else { shards };
    let hash = id.0.iter().fold(2_166_136_261u32, |hash, &byte| hash.wrapping_mul(16_777_619) ^ u32::from(byte));
    hash % shards
}

/// Whether the shard may hold the id.
///
/// # Errors
/// Why the bytes are no filter.
pub(crate) fn contains(shard: &[u8], id: TraceId) -> Result<bool, String> {
    let word = |index: usize| shard.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let (Some(bits), Some(hashes), Some(length)) = (word(0), word(1), word(2)) else {
        return Err(format!("bloom filter of {} bytes has no header", shard.len()));
    };
    let words = (shard.len() as u64 - 24) / 8;
    if bits == 0 || bits != length || bits.div_ceil(64) > words || hashes == 0 || hashes > 1000 {
        return Err(format!("bloom filter of {} bytes says {bits} bits, {length} bits stored, {hashes} hashes", shard.len()));
    }
    Ok(locations(id, hashes, bits).all(|location| {
        let stored = word(3 + (location / 64) as usize).unwrap_or(0);
        stored >> (location % 64) & 1 == 1
    }))
}

/// Whether the bytes are a filter, as far as can be told.
pub(crate) fn is_filter(shard: &[u8]) -> bool {
    contains(shard, TraceId::default()).is_ok()
}

/// The bits of an id. `hashes` and `bits` are not 0.
fn locations(id: TraceId, hashes: u64, bits: u64) -> impl Iterator<Item = u64> {
    let mut longer = [1u8; 17];
    longer[..16].copy_from_slice(&id.0);
    let [h0, h1] = murmur3(&id.0);
    let [h2, h3] = murmur3(&longer);
    let h = [h0, h1, h2, h3];
    (0..hashes).map(move |i| {
        let base = h[(i % 2) as usize];
        let step = h[(2 + ((i + i % 2) % 4) / 2) as usize];
        base.wrapping_add(i.wrapping_mul(step)) % bits
    })
}

/// MurmurHash3 x64 128 with seed 0 of 16 or 17 bytes.
fn murmur3(data: &[u8]) -> [u64; 2] {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let (mut h1, mut h2) = (0u64, 0u64);
    let mut chunks = data.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = chunk.split_at(8);
        let k1 = u64::from_le_bytes(low.try_into().unwrap_or_default());
        let k2 = u64::from_le_bytes(high.try_into().unwrap_or_default());
        h1 ^= k1.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= k2.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = chunks.remainder().iter().rev().fold(0u128, |tail, &byte| tail << 8 | u128::from(byte));
    let (k1, k2) = (tail as u64, (tail >> 64) as u64);
    if k2 != 0 {
        h2 ^= k2.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    }
    if k1 != 0 {
        h1 ^= k1.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    }
    h1 ^= data.len() as u64;
    h2 ^= data.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finalize(h1);
    h2 = finalize(h2);
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    [h1, h2]
}

fn finalize(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ k >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::fixtures;

    #[test]
    fn the_worked_example_of_the_format_holds() {
        let id = TraceId::from_hex("000102030405060708090a0b0c0d0e0f").expect("id");
        assert_eq!(shard_of(id, u32::MAX), 0x32e1_f245);
        assert_eq!(locations(id, 7, 819_200).collect::<Vec<_>>(), [474_928, 638_179, 518_252, 536_986, 95_820, 724_827, 604_900]);
    }

    #[test]
    fn filters_of_tempo_are_rebuilt_byte_for_byte() {
        let Some(root) = fixtures::root() else { return };
        for (name, rate, shard_bytes, objects) in [
            ("multi-shard", 0.01, 200, 5000),
            ("single-shard-default", 0.01, 102_400, 1000),
            ("overfull", 0.05, 100, 50),
            ("odd-size-33-bytes", 0.1, 33, 300),
        ] {
            let folder = root.join("bloom").join(name);
            let mut builder = Builder::new(rate, shard_bytes, objects);
            let contained = std::fs::read_to_string(folder.join("contained.txt")).expect("list of ids");
            let shards = builder.shards.len() as u32;
            let mut ids = Vec::new();
            for line in contained.lines().filter(|line| !line.starts_with('#')) {
                let mut words = line.split_whitespace();
                let id = TraceId::from_hex(words.next().expect("id")).expect("hex");
                assert_eq!(words.next().expect("shard").parse(), Ok(shard_of(id, shards)));
                builder.add(id);
                ids.push(id);
            }
            assert!(!ids.is_empty());
            let written = builder.finish();
            for (index, bytes) in written.iter().enumerate() {
                assert_eq!(&std::fs::read(folder.join(format!("bloom-{index}"))).expect("shard"), bytes, "{name} {index}");
            }
            assert!(!folder.join(format!("bloom-{}", written.len())).exists());
            for id in ids {
                assert_eq!(contains(&written[shard_of(id, shards) as usize], id), Ok(true));
            }
            let absent = std::fs::read_to_string(folder.join("not-contained.txt")).expect("list of ids");
            for line in absent.lines().filter(|line| !line.starts_with('#')) {
                let words: Vec<_> = line.split_whitespace().collect();
                let id = TraceId::from_hex(words[0]).expect("hex");
                assert_eq!(words[1].parse(), Ok(shard_of(id, shards)));
                assert_eq!(contains(&written[shard_of(id, shards) as usize], id).map(|c| c.to_string()), Ok(words[2].to_owned()));
            }
        }
    }

    #[test]
    fn corrupt_filters_are_errors() {
        let mut bytes = Builder::new(0.01, 100, 10).finish().remove(0);
        assert!(contains(&bytes, TraceId([1; 16])).is_ok());
        assert!(contains(&bytes[..20], TraceId([1; 16])).is_err());
        assert!(contains(&bytes[..bytes.len() - 8], TraceId([1; 16])).is_err());
        bytes[8] = 0xff;
        assert!(contains(&bytes, TraceId([1; 16])).is_err());
        assert_eq!(Builder::new(0.01, 102_400, 0).finish().len(), 1);
    }
}
