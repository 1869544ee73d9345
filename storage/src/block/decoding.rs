//! Parquet's encodings, read: the reverse of `encoding`, for all values of a page or only those of some rows.
//!
//! | type or function | Parquet name | how it passes over what is not wanted |
//! |---|---|---|
//! | [`Hybrid`] | RLE / bit-packed hybrid | run by run |
//! | [`delta`] | DELTA_BINARY_PACKED | not at all: every value needs those before it |
//! | [`delta_strings`] | DELTA_LENGTH_BYTE_ARRAY | adds up lengths |
//! | [`fixed`] | PLAIN of numbers | at once |
//!
//! The bytes are untrusted: running out of them is [`None`], and nothing is allocated by a number found in them. What the caller asks
//! for bounds all results.

use std::ops::Range;

/// Bits at position `at`, counted in bits; those beyond the end are 0. `width` is at most 57.
#[inline]
fn bits(bytes: &[u8], at: usize, width: u32) -> u64 {
    let rest = bytes.get(at / 8..).unwrap_or(&[]);
    let word = match rest.first_chunk::<8>() {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    };
    word >> (at % 8) & ((1 << width) - 1)
}

/// ULEB128.
#[inline]
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn zigzag(bytes: &mut &[u8]) -> Option<i64> {
    varint(bytes).map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
}

#[derive(Clone, Copy, Debug)]
enum Run<'a> {
    Equal(u32),
    Packed { bytes: &'a [u8], at: usize },
}

/// Numbers of at most 32 bits in runs.
#[derive(Clone, Debug)]
pub(super) struct Hybrid<'a> {
    bytes: &'a [u8],
    width: u32,
    run: Run<'a>,
    left: usize,
}

impl<'a> Hybrid<'a> {
    /// The numbers in `bytes`, of `width` bits each. Numbers of no bits are 0, as many as are asked for.
    pub(super) fn new(bytes: &'a [u8], width: u32) -> Option<Self> {
        let left = if width == 0 { usize::MAX } else { 0 };
        (width <= 32).then_some(Self { bytes, width, run: Run::Equal(0), left })
    }

    fn next_run(&mut self) -> Option<()> {
        let header = varint(&mut self.bytes)?;
        if header & 1 == 1 {
            let groups = usize::try_from(header >> 1).ok()?;
            // The last group may be cut short by writers that save the padding.
            let length = groups.checked_mul(self.width as usize)?.min(self.bytes.len());
            let (packed, rest) = self.bytes.split_at(length);
            self.bytes = rest;
            self.run = Run::Packed { bytes: packed, at: 0 };
            self.left = (length * 8 / self.width as usize).min(groups.saturating_mul(8));
        } else {
            let size = self.width.div_ceil(8) as usize;
            let (value, rest) = self.bytes.split_at_checked(size)?;
            self.bytes = rest;
            self.run = Run::Equal(value.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)));
            self.left = usize::try_from(header >> 1).ok()?;
        }
        Some(())
    }

    /// Passes over numbers.
    pub(super) fn skip(&mut self, mut count: usize) -> Option<()> {
        while count > 0 {
            if self.left == 0 {
                self.next_run()?;
                continue;
            }
            let step = count.min(self.left);
            if let Run::Packed { at, .. } = &mut self.run {
                *at += step;
            }
            self.left -= step;
            count -= step;
        }
        Some(())
    }

    /// Appends the next `count` numbers.
    pub(super) fn read(&mut self, mut count: usize, out: &mut Vec<u32>) -> Option<()> {
        while count > 0 {
            if self.left == 0 {
                self.next_run()?;
                continue;
            }
            let step = count.min(self.left);
            match &mut self.run {
                Run::Equal(value) => out.resize(out.len() + step, *value),
                Run::Packed { bytes, at } => {
                    let width = self.width as usize;
                    out.extend((*at..*at + step).map(|index| bits(bytes, index * width, self.width) as u32));
                    *at += step;
                }
            }
            self.left -= step;
            count -= step;
        }
        Some(())
    }

    /// Appends the next `count` levels, which have at most eight bits.
    pub(super) fn read_levels(&mut self, mut count: usize, out: &mut Vec<u8>) -> Option<()> {
        let width = self.width as usize;
        if width > 8 {
            return None;
        }
        while count > 0 {
            if self.left == 0 {
                self.next_run()?;
                continue;
            }
            let mut step = count.min(self.left);
            match &mut self.run {
                // Most runs are short, and so many bytes are written at once as quickly as one.
                Run::Equal(value) if step <= 16 => {
                    out.extend_from_slice(&[*value as u8; 16]);
                    out.truncate(out.len() - (16 - step));
                }
                Run::Equal(value) => out.resize(out.len() + step, *value as u8),
                Run::Packed { bytes, at } if *at % 8 == 0 && step >= 8 => {
                    // Eight levels are `width` whole bytes.
                    step -= step % 8;
                    let mask = ((1u16 << width) - 1) as u8;
                    for group in 0..step / 8 {
                        let word = bits(bytes, (*at + group * 8) * width, 56.min(8 * width as u32));
                        if width == 8 {
                            out.extend_from_slice(bytes.get(*at + group * 8..)?.get(..8)?);
                        } else {
                            let mut eight = [0; 8];
                            for (index, level) in eight.iter_mut().enumerate() {
                                *level = (word >> (index * width)) as u8 & mask;
                            }
                            out.extend_from_slice(&eight);
                        }
                    }
                    *at += step;
                }
                Run::Packed { bytes, at } => {
                    out.extend((*at..*at + step).map(|index| bits(bytes, index * width, self.width) as u8));
                    *at += step;
                }
            }
            self.left -= step;
            count -= step;
        }
        Some(())
    }
}

/// Appends the numbers `wanted` of a delta encoding to `out`, and returns the bytes behind it. `narrow` numbers wrap at 32 bits. All of
/// its numbers are passed over to find what is behind it; there must not be more than `limit`.
pub(super) fn delta<'a>(mut bytes: &'a [u8], narrow: bool, wanted: Range<usize>, limit: usize, out: &mut Vec<i64>) -> Option<&'a [u8]> {
    let block = usize::try_from(varint(&mut bytes)?).ok()?;
    let miniblocks = usize::try_from(varint(&mut bytes)?).ok()?;
    let total = usize::try_from(varint(&mut bytes)?).ok()?;
    if total < wanted.end || total > limit || miniblocks == 0 || miniblocks > 256 || block > 1 << 16 || block % miniblocks != 0 {
        return None;
    }
    let miniblock = block / miniblocks;
    if miniblock == 0 || miniblock % 8 != 0 {
        return None;
    }
    let mut value = zigzag(&mut bytes)?;
    let mut at = 1;
    out.reserve(wanted.len());
    if wanted.contains(&0) {
        out.push(value);
    }
    while at < total {
        let smallest = zigzag(&mut bytes)?;
        let (widths, rest) = bytes.split_at_checked(miniblocks)?;
        bytes = rest;
        for &width in widths {
            if at >= total {
                break;
            }
            let width = u32::from(width);
            if width > 64 {
                return None;
            }
            let (packed, rest) = bytes.split_at_checked(miniblock * width as usize / 8)?;
            bytes = rest;
            let here = (total - at).min(miniblock);
            for index in 0..here.min(wanted.end.saturating_sub(at)) {
                let bit = index * width as usize;
                let above =
                    if width <= 57 { bits(packed, bit, width) } else { bits(packed, bit, 32) | bits(packed, bit + 32, width - 32) << 32 };
                value = value.wrapping_add(smallest).wrapping_add(above as i64);
                if narrow {
                    value = i64::from(value as i32);
                }
                if at + index >= wanted.start {
                    out.push(value);
                }
            }
            at += here;
        }
    }
    Some(bytes)
}

/// The lengths of the strings `wanted` of DELTA_LENGTH_BYTE_ARRAY, and the bytes from the first of them on. A length may be negative, and
/// the strings longer than the bytes. There must not be more than `limit` strings.
pub(super) fn delta_strings(input: &[u8], wanted: Range<usize>, limit: usize) -> Option<(Vec<i64>, &[u8])> {
    let mut lengths = Vec::new();
    let bytes = delta(input, true, 0..wanted.end, limit, &mut lengths)?;
    let wanted_lengths = lengths.split_off(wanted.start);
    let before = lengths.into_iter().try_fold(0u64, |sum, length| Some(sum + u64::try_from(length).ok()?))?;
    Some((wanted_lengths, bytes.get(usize::try_from(before).ok()?..)?))
}

/// Some of the words of a PLAIN page.
pub(super) fn fixed<const N: usize>(input: &[u8], wanted: Range<usize>) -> Option<impl Iterator<Item = [u8; N]>> {
    let (words, _) = input.as_chunks::<N>();
    words.get(wanted).map(|words| words.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::{super::encoding, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hybrid_is_read_from_any_place(runs in prop::collection::vec((0u32..200, 1usize..20), 1..50), shift in 0u32..24, cut in any::<prop::sample::Index>(), more in any::<prop::sample::Index>()) {
            let values: Vec<u32> = runs.iter().flat_map(|&(value, count)| std::iter::repeat_n(value << shift, count)).collect();
            let width = encoding::width_of(values.iter().copied().max().unwrap_or(0).into());
            let mut out = Vec::new();
            encoding::hybrid(&values, width, &mut out);
            let start = cut.index(values.len());
            let middle = start + more.index(values.len() - start);
            let mut hybrid = Hybrid::new(&out, width).expect("a width");
            prop_assert_eq!(hybrid.skip(start), Some(()));
            let mut read = Vec::new();
            prop_assert_eq!(hybrid.read(middle - start, &mut read), Some(()));
            prop_assert_eq!(hybrid.read(values.len() - middle, &mut read), Some(()));
            prop_assert_eq!(&read[..], &values[start..]);
            // Whatever is asked for beyond is padding or an end, never a panic.
            let _ = hybrid.read(1000, &mut read);
        }

        #[test]
        fn levels_are_read_in_any_portions(runs in prop::collection::vec((0u8..=255, 1usize..20), 1..50), width in 1u32..=8, portion in 1usize..40) {
            let values: Vec<u8> = runs.iter().flat_map(|&(value, count)| std::iter::repeat_n(value & ((1u16 << width) - 1) as u8, count)).collect();
            let mut out = Vec::new();
            encoding::hybrid(&values, width, &mut out);
            let mut hybrid = Hybrid::new(&out, width).expect("a width");
            let mut read = Vec::new();
            while read.len() < values.len() {
                let portion = portion.min(values.len() - read.len());
                prop_assert_eq!(hybrid.read_levels(portion, &mut read), Some(()));
            }
            prop_assert_eq!(read, values);
        }

        #[test]
        fn delta_is_read_up_to_any_value(values in prop::collection::vec(any::<i64>(), 0..300), small in prop::collection::vec(-3i64..1000, 0..300), cut in any::<prop::sample::Index>(), from in any::<prop::sample::Index>()) {
            for values in [values, small] {
                let count = cut.index(values.len() + 1);
                for narrow in [false, true] {
                    let values: Vec<i64> = values.iter().map(|&v| if narrow { i64::from(v as i32) } else { v }).collect();
                    let mut out = Vec::new();
                    encoding::delta(&values, if narrow { encoding::Width::W32 } else { encoding::Width::W64 }, &mut out);
                    out.extend_from_slice(b"behind");
                    let start = from.index(count + 1);
                    let mut read = Vec::new();
                    let rest = delta(&out, narrow, start..count, values.len(), &mut read).expect("well-formed");
                    prop_assert_eq!(&read[..], &values[start..count]);
                    prop_assert_eq!(rest, b"behind");
                    prop_assert!(delta(&out, narrow, 0..values.len() + 1, usize::MAX, &mut read).is_none());
                }
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), width in 0u32..=32, count in 0usize..500) {
            let mut hybrid = Hybrid::new(&bytes, width).expect("a width");
            let _ = hybrid.skip(count / 2);
            let _ = hybrid.read(count, &mut Vec::new());
            let mut hybrid = Hybrid::new(&bytes, width).expect("a width");
            let _ = hybrid.read_levels(count, &mut Vec::new());
            let _ = delta(&bytes, width % 2 == 0, count / 2..count, 1000, &mut Vec::new());
            let _ = delta_strings(&bytes, count / 2..count, 1000);
        }
    }
}
