//! Repetition and definition levels: which entries of a page belong to some rows, and which of its values belong to those.

use std::ops::Range;

use super::{
    super::{decoding::Hybrid, encoding::width_of},
    Wrong,
    values::TORN,
};

/// Appends the repetition levels of the rows `wanted` of a page, of which there may be fewer. Returns how many rows the page has, and
/// which of its entries those are.
pub(super) fn repetition(
    bytes: &[u8],
    max: u8,
    entries: usize,
    wanted: &Range<usize>,
    out: &mut Vec<u8>,
) -> Result<(usize, Range<usize>), Wrong> {
    let begin = out.len();
    read(bytes, max, entries, out)?;
    let levels = &out[begin..];
    if levels.first().is_some_and(|&level| level != 0) {
        return Err("a page begins in the middle of a row".to_owned());
    }
    let rows = count(levels, 0);
    let start = nth_zero(levels, wanted.start);
    let selected = start..start + nth_zero(&levels[start..], wanted.len());
    keep(out, begin, &selected);
    Ok((rows, selected))
}

/// Appends the definition levels of the entries `selected` of a page. Returns which of its values those entries have.
pub(super) fn definition(bytes: &[u8], max: u8, selected: &Range<usize>, out: &mut Vec<u8>) -> Result<Range<usize>, Wrong> {
    let begin = out.len();
    read(bytes, max, selected.end, out)?;
    let before = count(&out[begin..begin + selected.start], max);
    keep(out, begin, selected);
    Ok(before..before + count(&out[begin..], max))
}

/// Levels of one row that were decoded before: leaves of one list have the same, byte for byte, if their pages are cut at the same rows.
#[derive(Debug, Default)]
pub(super) struct Memo {
    repetition: Vec<Remembered<(usize, Range<usize>)>>,
    definition: Vec<Remembered<Range<usize>>>,
}

#[derive(Debug)]
struct Remembered<F> {
    of: Parameters,
    bytes: Vec<u8>,
    levels: Vec<u8>,
    found: F,
}

/// Largest level, entries that are decoded, and the rows or entries that are wanted.
pub(super) type Parameters = (u8, usize, Range<usize>);

/// Levels of more bytes are not remembered.
const REMEMBERED: usize = 64 << 10;

impl Memo {
    /// As [`repetition`].
    pub(super) fn repetition(
        &mut self,
        bytes: &[u8],
        max: u8,
        entries: usize,
        wanted: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Range<usize>), Wrong> {
        remembered(&mut self.repetition, (max, entries, wanted.clone()), bytes, out, |out| repetition(bytes, max, entries, wanted, out))
    }

    /// As [`definition`].
    pub(super) fn definition(&mut self, bytes: &[u8], max: u8, selected: &Range<usize>, out: &mut Vec<u8>) -> Result<Range<usize>, Wrong> {
        remembered(&mut self.definition, (max, selected.end, selected.clone()), bytes, out, |out| definition(bytes, max, selected, out))
    }
}

fn remembered<F: Clone>(
    known: &mut Vec<Remembered<F>>,
    of: Parameters,
    bytes: &[u8],
    out: &mut Vec<u8>,
    decode: impl FnOnce(&mut Vec<u8>) -> Result<F, Wrong>,
) -> Result<F, Wrong> {
    if let Some(before) = known.iter().find(|known| known.of == of && known.bytes == bytes) {
        out.extend_from_slice(&before.levels);
        return Ok(before.found.clone());
    }
    let begin = out.len();
    let found = decode(out)?;
    if bytes.len() <= REMEMBERED {
        known.push(Remembered { of, bytes: bytes.to_vec(), levels: out[begin..].to_vec(), found: found.clone() });
    }
    Ok(found)
}

/// Repetition levels with which compressed pages begin, as a frame of their own: those that were decompressed and decoded before. The leaves of a
/// list have the same, so that all but the first need not even decompress them.
#[derive(Debug, Default)]
pub(super) struct Frames {
    known: Vec<Frame>,
    /// Of the levels of all.
    bytes: usize,
}

/// Bytes of levels after which frames are forgotten.
const KEPT_LEVELS: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Frame {
    of: Parameters,
    stored: Vec<u8>,
    /// Bytes without compression.
    pub(super) size: usize,
    pub(super) levels: Vec<u8>,
    /// Rows of the page, and the entries of those that are wanted.
    pub(super) found: (usize, Range<usize>),
}

impl Frames {
    /// The first frame of a page, if others follow it.
    pub(super) fn first(page: &[u8]) -> Option<&[u8]> {
        let length = zstd::zstd_safe::find_frame_compressed_size(page).ok()?;
        page.get(..length).filter(|first| first.len() < page.len())
    }

    /// What is known of a frame.
    pub(super) fn find(&self, max: u8, entries: usize, wanted: &Range<usize>, stored: &[u8]) -> Option<&Frame> {
        let same = |frame: &&Frame| frame.stored == stored && (frame.of.0, frame.of.1) == (max, entries) && frame.of.2 == *wanted;
        self.known.iter().find(same)
    }

    /// Remembers a frame, if it holds nothing but levels that have `bytes` bytes, with their length before them.
    pub(super) fn keep(&mut self, of: Parameters, stored: &[u8], bytes: usize, levels: &[u8], found: (usize, Range<usize>)) {
        let size = bytes + 4;
        if zstd::zstd_safe::get_frame_content_size(stored).is_ok_and(|content| content == Some(size as u64)) {
            if self.bytes + levels.len() > KEPT_LEVELS {
                *self = Self::default();
            }
            self.bytes += levels.len();
            self.known.push(Frame { of, stored: stored.to_vec(), size, levels: levels.to_vec(), found });
        }
    }
}

/// Appends the first `entries` levels of a page.
fn read(bytes: &[u8], max: u8, entries: usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
    let begin = out.len();
    out.reserve(entries);
    Hybrid::new(bytes, width_of(max.into())).and_then(|mut levels| levels.read_levels(entries, out)).ok_or(TORN)?;
    let largest = out[begin..].iter().fold(0, |largest, &level| level.max(largest));
    if largest > max { Err("a level is larger than the schema allows".to_owned()) } else { Ok(()) }
}

/// Of what was appended from `begin` on, keeps only a part.
fn keep(levels: &mut Vec<u8>, begin: usize, part: &Range<usize>) {
    levels.truncate(begin + part.end);
    levels.drain(begin..begin + part.start);
}

/// How many levels are this one. Sums of so few fit a byte, and bytes are added many at a time.
fn count(levels: &[u8], wanted: u8) -> usize {
    levels.chunks(usize::from(u8::MAX)).map(|some| usize::from(some.iter().map(|&level| u8::from(level == wanted)).sum::<u8>())).sum()
}

/// Where the row with this number begins: the position of that zero, or the end.
fn nth_zero(levels: &[u8], mut number: usize) -> usize {
    const STEP: usize = 128;
    for (index, step) in levels.chunks(STEP).enumerate() {
        let here = count(step, 0);
        if number < here {
            let within = step.iter().enumerate().filter(|(_, level)| **level == 0).nth(number);
            return index * STEP + within.map_or(step.len(), |(at, _)| at);
        }
        number -= here;
    }
    levels.len()
}
