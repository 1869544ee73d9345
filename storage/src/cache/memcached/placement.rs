//! Which server has which key, as Tempo places them: both can share their servers while one replaces the other.
//!
//! Servers are ordered by name, runs of digits as numbers. With `consistent_hash` the place is the jump hash of xxHash64 of the key (a
//! server added at the end takes only its share of the keys); without, CRC-32 of the key modulo the number of servers.

use std::cmp::Ordering;

/// The place of a key among `servers` servers, which is below it; 0 for none.
pub(super) fn place(key: &str, servers: usize, consistent: bool) -> usize {
    match servers {
        0 | 1 => 0,
        _ if consistent => jump(twox_hash::XxHash64::oneshot(0, key.as_bytes()), servers),
        _ => crc32fast::hash(key.as_bytes()) as usize % servers,
    }
}

/// Jump consistent hash (Lamping and Veach, 2014).
fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut bucket, mut next) = (0u64, 0u64);
    while next < buckets as u64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let scale = (1u64 << 31) as f64 / ((key >> 33) + 1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2^31 times the number of buckets")]
        let jumped = ((bucket + 1) as f64 * scale) as u64;
        next = jumped;
    }
    usize::try_from(bucket).unwrap_or_default()
}

/// Orders names with runs of digits compared as numbers: `cache-2` before `cache-10`.
pub(super) fn natural(left: &str, right: &str) -> Ordering {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let (left_part, right_part) = (part(left_rest), part(right_rest));
        if left_part.is_empty() || right_part.is_empty() {
            return left_rest.len().cmp(&right_rest.len()).then_with(|| left.cmp(right));
        }
        let number = |part: &str| part.parse::<u128>().ok();
        let order = match (number(left_part), number(right_part)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => left_part.cmp(right_part),
        };
        if order.is_ne() {
            return order;
        }
        (left_rest, right_rest) = (&left_rest[left_part.len()..], &right_rest[right_part.len()..]);
    }
}

/// The first run of digits, or of anything else.
fn part(text: &str) -> &str {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["c-10:11211", "10.0.0.10:1", "c-9:11211", "10.0.0.9:1", "10.0.0.9:1", "c-010:11211", "c"];
        names.sort_by(|left, right| natural(left, right));
        assert_eq!(names, ["10.0.0.9:1", "10.0.0.9:1", "10.0.0.10:1", "c", "c-9:11211", "c-010:11211", "c-10:11211"]);
    }

    /// Values of the reference implementation in the paper's authors' Guava, `Hashing.consistentHash`.
    #[test]
    fn jump_is_that_of_the_paper() {
        assert_eq!([0u64, 1, 2, 3].map(|key| jump(key, 1)), [0; 4]);
        assert_eq!(jump(10_863_919_174_838_991, 11), 6);
        assert_eq!(jump(2_016_238_256_797_177_309, 11), 3);
        assert_eq!(jump(1_673_758_223_894_951_030, 11), 5);
        assert_eq!(jump(2, 100_001), 80_343);
        assert_eq!(jump(2201, 100_001), 22_152);
        assert_eq!(jump(2202, 100_001), 15_018);
    }

    #[test]
    fn without_consistency_it_is_the_checksum() {
        // CRC-32 of "123456789" is 0xcbf43926.
        assert_eq!(place("123456789", 1000, false), 0xcbf4_3926 % 1000);
        assert_eq!(place("123456789", 1, false), 0);
        assert_eq!(place("123456789", 0, true), 0);
    }

    proptest! {
        #[test]
        fn a_key_moves_only_to_the_new_server(key in any::<u64>(), servers in 1usize..50) {
            let (before, after) = (jump(key, servers), jump(key, servers + 1));
            prop_assert!(before < servers);
            prop_assert!(after == before || after == servers);
        }

        #[test]
        fn natural_is_an_order(names in prop::collection::vec("[a-c0-3.é]{0,5}", 3)) {
            let [a, b, c] = [&names[0], &names[1], &names[2]];
            prop_assert_eq!(natural(a, b), natural(b, a).reverse());
            prop_assert_eq!(natural(a, b).is_eq(), a == b);
            prop_assert!(!(natural(a, b).is_le() && natural(b, c).is_le()) || natural(a, c).is_le());
        }
    }
}
