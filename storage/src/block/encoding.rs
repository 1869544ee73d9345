//! Parquet's encodings, written straight from typed buffers.
//!
//! | function | Parquet name | used for |
//! |---|---|---|
//! | [`hybrid`] | RLE / bit-packed hybrid | dictionary indices |
//! | [`levels`] | the same, in fewer kinds of runs | levels |
//! | [`delta`] | DELTA_BINARY_PACKED | times, counts, lengths |
//! | [`delta_lengths`] | DELTA_LENGTH_BYTE_ARRAY | ids, free text |
//! | [`plain_strings`] | PLAIN of BYTE_ARRAY | text that is rare |
//! | [`bits`] | PLAIN of BOOLEAN | flags |
//!
//! All functions append to `out`. Widths are in bits.

/// A value that the hybrid encoding can pack.
pub(crate) trait Packed: Copy + Eq {
    fn word(self) -> u64;
}

impl Packed for u8 {
    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self)
    }
}

impl Packed for u32 {
    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self)
    }
}

/// Bits that hold `max`.
pub(crate) fn width_of(max: u64) -> u32 {
    u64::BITS - max.leading_zeros()
}

/// Runs of at least 8 equal values become RLE runs, everything between bit-packed groups of 8. `width` is at most 32.
pub(crate) fn hybrid<T: Packed>(values: &[T], width: u32, out: &mut Vec<u8>) {
    let mut literal_start = 0;
    let mut at = 0;
    while at < values.len() {
        let value = values[at];
        let run = values[at..].iter().take_while(|&&other| other == value).count();
        // Bit-packed groups are of 8: the literals before the run borrow from it what they lack.
        let borrowed = (at - literal_start).wrapping_neg() % 8;
        if run >= borrowed + 8 {
            literals(&values[literal_start..at + borrowed], width, out);
            varint((run - borrowed) as u64 * 2, out);
            out.extend_from_slice(&value.word().to_le_bytes()[..width.div_ceil(8) as usize]);
            literal_start = at + run;
        }
        at += run;
    }
    literals(&values[literal_start..], width, out);
}

/// The same encoding for what is compressed afterwards: either every run is an RLE run, however short, or all is bit-packed. Bytes that stand
/// for runs repeat where runs are long; where they are short, bit-packed groups do, and a mixture of both does in neither case.
pub(crate) fn levels(values: &[u8], width: u32, out: &mut Vec<u8>) {
    debug_assert!(width <= 8, "a run's value is one byte");
    let start = out.len();
    let limit = values.len() * width as usize / 4;
    let mut rest = values;
    while let Some(&value) = rest.first() {
        let (run, after) = rest.split_at(run_length(rest, value));
        rest = after;
        varint(run.len() as u64 * 2, out);
        out.push(value);
        if out.len() - start > limit + 2 {
            out.truncate(start);
            return literals(values, width, out);
        }
    }
}

/// How many values are this one before the first that is not, eight at a time.
#[inline]
fn run_length(values: &[u8], value: u8) -> usize {
    let all = u64::from_le_bytes([value; 8]);
    let mut length = 0;
    while let Some(next) = values[length..].first_chunk::<8>() {
        let different = u64::from_le_bytes(*next) ^ all;
        if different != 0 {
            return length + different.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length + values[length..].iter().take_while(|&&other| other == value).count()
}

fn literals<T: Packed>(values: &[T], width: u32, out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let groups = values.len().div_ceil(8);
    varint(groups as u64 * 2 + 1, out);
    pack(values.iter().map(|v| v.word()), width, groups * 8, out);
}

/// Packs values of `width` bits, least significant bit first, and pads with zeros to `count` values. `count * width` is a multiple of 8.
fn pack(values: impl Iterator<Item = u64>, width: u32, count: usize, out: &mut Vec<u8>) {
    let end = out.len() + (count * width as usize).div_ceil(8);
    if width <= 32 {
        let (mut word, mut filled) = (0u64, 0u32);
        for value in values {
            word |= value << filled;
            filled += width;
            if filled >= 32 {
                out.extend_from_slice(&(word as u32).to_le_bytes());
                word >>= 32;
                filled -= 32;
            }
        }
        out.extend_from_slice(&word.to_le_bytes()[..filled.div_ceil(8) as usize]);
    } else {
        let (mut word, mut filled) = (0u128, 0u32);
        for value in values {
            word |= u128::from(value) << filled;
            filled += width;
            if filled >= 64 {
                out.extend_from_slice(&(word as u64).to_le_bytes());
                word >>= 64;
                filled -= 64;
            }
        }
        out.extend_from_slice(&word.to_le_bytes()[..filled.div_ceil(8) as usize]);
    }
    out.resize(end, 0);
}

/// Booleans, one bit each.
pub(crate) fn bits(values: &[u8], out: &mut Vec<u8>) {
    pack(values.iter().map(|&v| u64::from(v)), 1, values.len().next_multiple_of(8), out);
}

/// How wide the arithmetic of a delta encoding is: that of the column's physical type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    W32,
    W64,
}

/// Values in a block and in each of its four miniblocks.
const BLOCK: usize = 128;
const MINIBLOCK: usize = 32;

/// Differences between neighbours, less a smallest difference, in whole bytes: they are compressed afterwards, which finds nothing in bits that
/// cross bytes. If one or two bytes can hold all differences, equal differences are equal bytes wherever they stand: blocks count from
/// [`NARROW`], and those with smaller differences from a number of whole 256 below it, so that the low bytes are the same and the high ones
/// of small differences too. Otherwise each block counts from its own smallest difference.
pub(crate) fn delta(values: &[i64], width: Width, out: &mut Vec<u8>) {
    varint(BLOCK as u64, out);
    varint((BLOCK / MINIBLOCK) as u64, out);
    varint(values.len() as u64, out);
    zigzag(values.first().copied().unwrap_or(0), out);
    let difference = |pair: &[i64]| match width {
        Width::W64 => pair[1].wrapping_sub(pair[0]),
        Width::W32 => i64::from((pair[1] as i32).wrapping_sub(pair[0] as i32)),
    };
    let range = |deltas: &mut dyn Iterator<Item = i64>| {
        deltas.fold((i64::MAX, i64::MIN), |(smallest, largest), delta| (smallest.min(delta), largest.max(delta)))
    };
    let (smallest, largest) = range(&mut values.windows(2).map(difference));
    let common = common_base(smallest, largest);
    let mut deltas = [0i64; BLOCK];
    for start in (0..values.len().saturating_sub(1)).step_by(BLOCK) {
        let block = &values[start..values.len().min(start + BLOCK + 1)];
        let deltas = &mut deltas[..block.len() - 1];
        deltas.iter_mut().zip(block.windows(2)).for_each(|(delta, pair)| *delta = difference(pair));
        let (smallest, _) = range(&mut deltas.iter().copied());
        let (base, least) = match common {
            None => (smallest, 0),
            Some(_) if smallest >= NARROW => (NARROW, 8),
            Some(base) => (base, 16),
        };
        zigzag(base, out);
        let widths_at = out.len();
        out.extend_from_slice(&[0; BLOCK / MINIBLOCK]);
        for (index, miniblock) in deltas.chunks_mut(MINIBLOCK).enumerate() {
            let mut all = 0;
            for delta in miniblock.iter_mut() {
                *delta = delta.wrapping_sub(base);
                all |= *delta as u64;
            }
            let width = width_of(all).next_multiple_of(8).max(least);
            out[widths_at + index] = width as u8;
            pack(miniblock.iter().map(|&d| d as u64), width, MINIBLOCK, out);
        }
    }
}

/// From where the differences count that fit one byte.
const NARROW: i64 = -(1 << 7);

/// What all blocks of a page that has these differences can count from, if one or two bytes are enough then. None if there is but one
/// difference, which needs no bits at all.
fn common_base(smallest: i64, largest: i64) -> Option<i64> {
    const WIDE: i64 = 1 << 16;
    if smallest >= largest || smallest < -WIDE || largest >= WIDE {
        return None;
    }
    let base = NARROW + (smallest.min(NARROW) - NARROW).div_euclid(1 << 8) * (1 << 8);
    (largest - base < WIDE).then_some(base)
}

/// The lengths as [`delta`], then the bytes one after the other.
pub(crate) fn delta_lengths(lengths: &[i64], bytes: &[u8], out: &mut Vec<u8>) {
    delta(lengths, Width::W32, out);
    out.extend_from_slice(bytes);
}

/// Every string behind its length.
pub(crate) fn plain_strings(lengths: &[i64], bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    for &length in lengths {
        let (string, after) = rest.split_at(length as usize);
        rest = after;
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(string);
    }
}

/// ULEB128.
pub(crate) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Signed ULEB128: the sign is the lowest bit.
pub(crate) fn zigzag(value: i64, out: &mut Vec<u8>) {
    varint((value << 1 ^ value >> 63) as u64, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    fn unpack(bytes: &[u8], index: usize, width: u32) -> u64 {
        (0..width as usize).fold(0, |value, bit| {
            let at = index * width as usize + bit;
            value | u64::from(bytes[at / 8] >> (at % 8) & 1) << bit
        })
    }

    /// The specification's decoder, bit by bit.
    fn read_hybrid(mut bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let mut values = Vec::new();
        while values.len() < count {
            let header = read_varint(&mut bytes);
            if header & 1 == 1 {
                let groups = (header >> 1) as usize;
                values.extend((0..groups * 8).map(|index| unpack(bytes, index, width) as u32));
                bytes = &bytes[groups * width as usize..];
            } else {
                let size = width.div_ceil(8) as usize;
                let value = bytes[..size].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                values.extend(std::iter::repeat_n(value, (header >> 1) as usize));
                bytes = &bytes[size..];
            }
        }
        assert!(bytes.is_empty());
        values.truncate(count);
        values
    }

    fn read_delta(mut bytes: &[u8], width: Width) -> Vec<i64> {
        let un_zigzag = |value: u64| (value >> 1) as i64 ^ -((value & 1) as i64);
        assert_eq!((read_varint(&mut bytes), read_varint(&mut bytes)), (128, 4));
        let count = read_varint(&mut bytes) as usize;
        let mut values = vec![un_zigzag(read_varint(&mut bytes))];
        while values.len() < count {
            let smallest = un_zigzag(read_varint(&mut bytes));
            let (widths, rest) = bytes.split_at(4);
            bytes = rest;
            for &miniblock in widths {
                if values.len() >= count {
                    assert_eq!(miniblock, 0);
                    continue;
                }
                for index in 0..32 {
                    let delta = smallest.wrapping_add(unpack(bytes, index, u32::from(miniblock)) as i64);
                    let value = values[values.len() - 1].wrapping_add(delta);
                    values.push(if width == Width::W32 { i64::from(value as i32) } else { value });
                    if values.len() == count {
                        break;
                    }
                }
                bytes = &bytes[4 * usize::from(miniblock)..];
            }
        }
        assert!(bytes.is_empty());
        values.truncate(count);
        values
    }

    proptest! {
        #[test]
        fn hybrid_is_what_the_specification_reads(runs in prop::collection::vec((0u32..200, 1usize..20), 0..50)) {
            let values: Vec<u32> = runs.iter().flat_map(|&(value, count)| std::iter::repeat_n(value, count)).collect();
            let width = width_of(values.iter().copied().max().unwrap_or(0).into());
            let mut out = Vec::new();
            hybrid(&values, width, &mut out);
            prop_assert_eq!(read_hybrid(&out, width, values.len()), values);
        }

        #[test]
        fn levels_are_what_the_specification_reads(runs in prop::collection::vec((0u8..8, 1usize..20), 0..50), short in prop::collection::vec(0u8..8, 0..50)) {
            let long: Vec<u8> = runs.iter().flat_map(|&(value, count)| std::iter::repeat_n(value, count)).collect();
            for values in [long, short] {
                let mut out = Vec::new();
                levels(&values, 3, &mut out);
                prop_assert_eq!(read_hybrid(&out, 3, values.len()), values.iter().map(|&v| u32::from(v)).collect::<Vec<_>>());
            }
        }

        #[test]
        fn delta_is_what_the_specification_reads(values in prop::collection::vec(any::<i64>(), 0..300), small in prop::collection::vec(-3i64..1000, 0..300)) {
            for values in [values, small] {
                let mut out = Vec::new();
                delta(&values, Width::W64, &mut out);
                let read = read_delta(&out, Width::W64);
                prop_assert_eq!(&read[..values.len()], &values[..]);
                let narrow: Vec<i64> = values.iter().map(|&v| i64::from(v as i32)).collect();
                out.clear();
                delta(&narrow, Width::W32, &mut out);
                let read = read_delta(&out, Width::W32);
                prop_assert_eq!(&read[..narrow.len()], &narrow[..]);
            }
        }
    }

    /// Sizes of the blocks: widths of their first miniblocks in bits, by what they count from.
    #[test]
    fn small_differences_are_the_same_bytes_whatever_the_page_has_beside_them() {
        let small: Vec<i64> = (0..300).map(|at| at * 3 % 50).collect();
        let mut out = Vec::new();
        delta(&small, Width::W32, &mut out);
        let bytes = |out: &[u8]| out.windows(2).filter(|two| two[1] == two[0]).count();
        assert!(out.len() < 2 * small.len() && bytes(&out) > 200, "one byte each, and equal ones");
        let alone = out.len();
        // One large difference makes a block wide, or a miniblock, but not the page.
        for (large, more) in [(600, 32), (-600, 128), (32_000, 160)] {
            let mut values = small.clone();
            values.iter_mut().skip(200).for_each(|value| *value += large);
            out.clear();
            delta(&values, Width::W32, &mut out);
            assert_eq!(&read_delta(&out, Width::W32)[..values.len()], &values[..]);
            assert!((alone..=alone + more + 4).contains(&out.len()), "{large}: {} after {alone}", out.len());
        }
        assert_eq!(
            [common_base(0, 0), common_base(-1, 1), common_base(-129, 0), common_base(-384, 65_151)],
            [None, Some(-128), Some(-384), Some(-384)]
        );
        assert_eq!([common_base(-384, 65_152), common_base(i64::MIN, 0), common_base(0, i64::MAX)], [None; 3]);
    }

    #[test]
    fn plain_strings_have_their_length_before_them() {
        let mut out = Vec::new();
        plain_strings(&[0, 3, 1], b"abcd", &mut out);
        assert_eq!(out, b"\0\0\0\0\x03\0\0\0abc\x01\0\0\0d");
    }

    #[test]
    fn wide_and_empty_packs() {
        for width in [0, 1, 7, 31, 32, 33, 63, 64] {
            let values: Vec<u64> =
                (0..32u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & u64::MAX.checked_shr(64 - width).unwrap_or(0)).collect();
            let mut out = Vec::new();
            pack(values.iter().copied(), width, 32, &mut out);
            assert_eq!(out.len(), width as usize * 4);
            for (index, &value) in values.iter().enumerate() {
                assert_eq!(unpack(&out, index, width), value);
            }
        }
        let mut out = Vec::new();
        bits(&[1, 0, 1, 1, 0, 0, 0, 0, 1], &mut out);
        assert_eq!(out, [0b1101, 1]);
    }
}
