//! Arrays of values, and how an encoding's bytes are appended to them.

use std::{ops::Range, sync::Arc};

use parquet::basic::Type as Physical;

use super::{
    super::decoding::{Hybrid, delta, delta_strings, fixed},
    Wrong,
    spare::Spare,
};

/// Parquet's numbers of encodings.
pub(super) const PLAIN: i64 = 0;
pub(super) const PLAIN_DICTIONARY: i64 = 2;
const RLE: i64 = 3;
const DELTA_BINARY_PACKED: i64 = 5;
const DELTA_LENGTH_BYTE_ARRAY: i64 = 6;
const DELTA_BYTE_ARRAY: i64 = 7;
pub(super) const RLE_DICTIONARY: i64 = 8;
const BYTE_STREAM_SPLIT: i64 = 9;

pub(super) const TORN: &str = "a page is torn";

/// Byte strings, one behind the other in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Strings {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all strings together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory that they take, about.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len() + 4 * self.ends.len()
    }

    /// The same with what is free of it.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity() + 4 * self.ends.capacity()
    }

    /// No strings, in the same memory.
    pub(super) fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.ends.clear();
        self
    }

    fn start(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize }
    }

    /// A string.
    ///
    /// # Panics
    /// There are not so many.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index] as usize]
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Appends a string.
    ///
    /// # Errors
    /// All strings together would have 4 GiB.
    pub fn push(&mut self, string: &[u8]) -> Result<(), Wrong> {
        self.bytes.extend_from_slice(string);
        let end = u32::try_from(self.bytes.len()).map_err(|_| "its strings are longer than 4 GiB".to_owned())?;
        self.ends.push(end);
        Ok(())
    }

    /// Strings that lie one behind the other in `bytes`, the first at its begin.
    fn append(&mut self, bytes: &[u8], lengths: &[i64]) -> Result<(), Wrong> {
        let start = self.bytes.len() as u64;
        let mut end = 0u64;
        self.ends.reserve(lengths.len());
        for &length in lengths {
            // Lengths have 32 bits, so this cannot overflow.
            end += u64::try_from(length).map_err(|_| TORN)?;
            self.ends.push((start + end) as u32);
        }
        if end > bytes.len() as u64 {
            return Err(TORN.to_owned());
        }
        if start + end > u64::from(u32::MAX) {
            return Err("its strings are longer than 4 GiB".to_owned());
        }
        self.bytes.extend_from_slice(&bytes[..end as usize]);
        Ok(())
    }

    /// `count` strings in the encoding PLAIN, in the memory of these, which are none.
    fn plain(mut self, mut input: &[u8], count: usize) -> Result<Self, Wrong> {
        // Every string has four bytes of length.
        self.ends.reserve(count.min(input.len() / 4));
        self.bytes.reserve(input.len().saturating_sub(4 * count));
        for _ in 0..count {
            let (string, rest) = plain_string(input).ok_or(TORN)?;
            self.push(string)?;
            input = rest;
        }
        Ok(self)
    }
}

fn plain_string(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The values of a column, in order. What is null has no value.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Numbers of strings of a dictionary; every one is a number of the dictionary.
    Codes {
        /// The numbers.
        codes: Vec<u32>,
        /// The strings, in the order of the file.
        dictionary: Arc<Strings>,
    },
    /// Byte strings.
    Bytes(Strings),
    /// INT64, and INT32 with its sign.
    Long(Vec<i64>),
    /// DOUBLE.
    Double(Vec<f64>),
    /// BOOLEAN.
    Bool(Vec<bool>),
}

/// A chunk's dictionary, decoded.
#[derive(Clone, Debug)]
pub enum Dictionary {
    /// Of BYTE_ARRAY.
    Strings(Arc<Strings>),
    /// Of INT32 and INT64.
    Long(Arc<Vec<i64>>),
    /// Of DOUBLE.
    Double(Arc<Vec<f64>>),
}

impl Dictionary {
    /// Reads the body of a dictionary page.
    pub(super) fn read(physical: Physical, input: &[u8], count: usize, spare: &mut Spare) -> Result<Self, Wrong> {
        Ok(match physical {
            Physical::BYTE_ARRAY => Self::Strings(Arc::new(spare.dictionary(input.len()).plain(input, count)?)),
            Physical::INT32 => {
                Self::Long(Arc::new(fixed(input, 0..count).ok_or(TORN)?.map(|word| i32::from_le_bytes(word).into()).collect()))
            }
            Physical::INT64 => Self::Long(Arc::new(fixed(input, 0..count).ok_or(TORN)?.map(i64::from_le_bytes).collect())),
            Physical::DOUBLE => Self::Double(Arc::new(fixed(input, 0..count).ok_or(TORN)?.map(f64::from_le_bytes).collect())),
            other => return Err(format!("it has a dictionary of {other}")),
        })
    }
}

impl Values {
    /// No values of a type.
    pub(super) fn none(physical: Physical) -> Result<Self, Wrong> {
        Ok(match physical {
            Physical::BYTE_ARRAY => Self::Bytes(Strings::default()),
            Physical::INT32 | Physical::INT64 => Self::Long(Vec::new()),
            Physical::DOUBLE => Self::Double(Vec::new()),
            Physical::BOOLEAN => Self::Bool(Vec::new()),
            other => return Err(format!("it is of the type {other}, which no leaf has")),
        })
    }

    /// Bytes of memory that they take, about.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Codes { codes, dictionary } => 4 * codes.len() + dictionary.memory(),
            Self::Bytes(strings) => strings.memory(),
            Self::Long(values) => 8 * values.len(),
            Self::Double(values) => 8 * values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    /// Makes room for values; strings that are no codes grow as they come.
    pub(super) fn reserve(&mut self, more: usize) {
        match self {
            Self::Codes { codes, .. } => codes.reserve(more),
            Self::Bytes(_) => {}
            Self::Long(values) => values.reserve(more),
            Self::Double(values) => values.reserve(more),
            Self::Bool(values) => values.reserve(more),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Codes { codes, .. } => codes.len(),
            Self::Bytes(strings) => strings.len(),
            Self::Long(values) => values.len(),
            Self::Double(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    /// The string with this number among the values; none if there are not so many, or the values are no strings.
    pub fn string(&self, index: usize) -> Option<&[u8]> {
        match self {
            Self::Codes { codes, dictionary } => codes.get(index).map(|&code| dictionary.get(code as usize)),
            Self::Bytes(strings) if index < strings.len() => Some(strings.get(index)),
            _ => None,
        }
    }

    /// Bytes that all strings have, each counted as often as it occurs; 0 if the values are no strings.
    pub fn string_bytes(&self) -> usize {
        match self {
            Self::Codes { codes, dictionary } => codes.iter().map(|&code| dictionary.get(code as usize).len()).sum(),
            Self::Bytes(strings) => strings.bytes(),
            _ => 0,
        }
    }

    /// Appends the values `wanted` of a page of at most `limit` values. Strings that have to be copied out of a dictionary may not have
    /// more than `room` bytes.
    pub(super) fn append(&mut self, page: &Page<'_>, wanted: Range<usize>, room: usize) -> Result<(), Wrong> {
        if wanted.is_empty() {
            return Ok(());
        }
        let &Page { physical, encoding, input, limit, dictionary } = page;
        let narrow = physical == Physical::INT32;
        if matches!(encoding, RLE_DICTIONARY | PLAIN_DICTIONARY) {
            return self.append_codes(input, dictionary.ok_or("its dictionary is missing")?, wanted, room);
        }
        if let Self::Codes { .. } = self {
            self.materialize(room)?;
        }
        match (self, encoding) {
            (Self::Bytes(strings), DELTA_LENGTH_BYTE_ARRAY) => {
                let (lengths, bytes) = delta_strings(input, wanted, limit).ok_or(TORN)?;
                strings.append(bytes, &lengths)?;
            }
            (Self::Bytes(strings), PLAIN) => {
                let mut input = input;
                for index in 0..wanted.end {
                    let (string, rest) = plain_string(input).ok_or(TORN)?;
                    if index >= wanted.start {
                        strings.push(string)?;
                    }
                    input = rest;
                }
            }
            (Self::Bytes(strings), DELTA_BYTE_ARRAY) => append_prefixed(strings, input, wanted, limit, room)?,
            (Self::Long(values), DELTA_BINARY_PACKED) => {
                delta(input, narrow, wanted, limit, values).ok_or(TORN)?;
            }
            (Self::Long(values), PLAIN) if narrow => {
                values.extend(fixed(input, wanted).ok_or(TORN)?.map(|word| i64::from(i32::from_le_bytes(word))));
            }
            (Self::Long(values), PLAIN) => values.extend(fixed(input, wanted).ok_or(TORN)?.map(i64::from_le_bytes)),
            (Self::Double(values), PLAIN) => values.extend(fixed(input, wanted).ok_or(TORN)?.map(f64::from_le_bytes)),
            (Self::Long(values), BYTE_STREAM_SPLIT) if narrow => {
                values.extend(split_words::<4>(input, wanted).ok_or(TORN)?.map(|word| i64::from(i32::from_le_bytes(word))));
            }
            (Self::Long(values), BYTE_STREAM_SPLIT) => values.extend(split_words(input, wanted).ok_or(TORN)?.map(i64::from_le_bytes)),
            (Self::Double(values), BYTE_STREAM_SPLIT) => values.extend(split_words(input, wanted).ok_or(TORN)?.map(f64::from_le_bytes)),
            (Self::Bool(values), PLAIN) => {
                if wanted.end > input.len().saturating_mul(8) {
                    return Err(TORN.to_owned());
                }
                values.extend(wanted.map(|at| input[at / 8] >> (at % 8) & 1 == 1));
            }
            (Self::Bool(values), RLE) => {
                let input = input.get(4..).ok_or(TORN)?;
                let mut bits = Vec::new();
                let mut hybrid = Hybrid::new(input, 1).ok_or(TORN)?;
                hybrid.skip(wanted.start).and_then(|()| hybrid.read_levels(wanted.len(), &mut bits)).ok_or(TORN)?;
                values.extend(bits.into_iter().map(|bit| bit == 1));
            }
            (_, other) => return Err(format!("values of the type {physical} have the encoding {other}")),
        }
        Ok(())
    }

    fn append_codes(&mut self, input: &[u8], dictionary: &Dictionary, wanted: Range<usize>, room: usize) -> Result<(), Wrong> {
        let (&width, numbers) = input.split_first().ok_or(TORN)?;
        let mut hybrid = Hybrid::new(numbers, width.into()).ok_or("its dictionary numbers are too wide")?;
        hybrid.skip(wanted.start).ok_or(TORN)?;
        let mut read = |codes: &mut Vec<u32>, strings: usize| {
            let before = codes.len();
            hybrid.read(wanted.len(), codes).ok_or(TORN)?;
            let largest = codes[before..].iter().fold(0, |largest, &code| code.max(largest));
            if largest as usize >= strings && codes.len() > before { Err("a dictionary number has no value".to_owned()) } else { Ok(()) }
        };
        if let (Self::Bytes(strings), Dictionary::Strings(dictionary)) = (&*self, dictionary)
            && strings.is_empty()
        {
            *self = Self::Codes { codes: Vec::with_capacity(wanted.len()), dictionary: Arc::clone(dictionary) };
        }
        match (self, dictionary) {
            (Self::Codes { codes, dictionary: known }, Dictionary::Strings(dictionary)) if Arc::ptr_eq(known, dictionary) => {
                read(codes, dictionary.len())
            }
            (values @ (Self::Bytes(_) | Self::Codes { .. }), Dictionary::Strings(dictionary)) => {
                let mut codes = Vec::new();
                read(&mut codes, dictionary.len())?;
                values.materialize(room)?;
                let Self::Bytes(strings) = values else { return Ok(()) };
                copy_coded(strings, &codes, dictionary, room)
            }
            (Self::Long(values), Dictionary::Long(dictionary)) => {
                let mut codes = Vec::new();
                read(&mut codes, dictionary.len())?;
                values.extend(codes.into_iter().map(|code| dictionary[code as usize]));
                Ok(())
            }
            (Self::Double(values), Dictionary::Double(dictionary)) => {
                let mut codes = Vec::new();
                read(&mut codes, dictionary.len())?;
                values.extend(codes.into_iter().map(|code| dictionary[code as usize]));
                Ok(())
            }
            _ => Err("its dictionary has the wrong type".to_owned()),
        }
    }

    /// Turns codes into strings. They may not have more than `room` bytes together.
    pub(super) fn materialize(&mut self, room: usize) -> Result<(), Wrong> {
        if let Self::Codes { codes, dictionary } = self {
            let mut strings = Strings::default();
            copy_coded(&mut strings, codes, dictionary, room)?;
            *self = Self::Bytes(strings);
        }
        Ok(())
    }
}

fn copy_coded(strings: &mut Strings, codes: &[u32], dictionary: &Strings, room: usize) -> Result<(), Wrong> {
    for &code in codes {
        strings.push(dictionary.get(code as usize))?;
        if strings.bytes() > room {
            return Err(TOO_LARGE.to_owned());
        }
    }
    Ok(())
}

const TOO_LARGE: &str = "its strings are larger than its bytes can be";

/// DELTA_BYTE_ARRAY: every string is a prefix of the one before it and a suffix of its own.
fn append_prefixed(strings: &mut Strings, input: &[u8], wanted: Range<usize>, limit: usize, room: usize) -> Result<(), Wrong> {
    let mut prefixes = Vec::new();
    let input = delta(input, true, 0..wanted.end, limit, &mut prefixes).ok_or(TORN)?;
    let mut suffixes = Strings::default();
    let (lengths, bytes) = delta_strings(input, 0..wanted.end, limit).ok_or(TORN)?;
    suffixes.append(bytes, &lengths)?;
    let mut string = Vec::new();
    let mut copied = strings.bytes();
    for (index, prefix) in prefixes.into_iter().enumerate() {
        let prefix = usize::try_from(prefix).ok().filter(|&prefix| prefix <= string.len()).ok_or(TORN)?;
        string.truncate(prefix);
        string.extend_from_slice(suffixes.get(index));
        copied += string.len();
        if copied > room {
            return Err(TOO_LARGE.to_owned());
        }
        if index >= wanted.start {
            strings.push(&string)?;
        }
    }
    Ok(())
}

/// BYTE_STREAM_SPLIT: first the first bytes of all words, then the second ones, and so on.
fn split_words<const N: usize>(input: &[u8], wanted: Range<usize>) -> Option<impl Iterator<Item = [u8; N]>> {
    let count = input.len() / N;
    (wanted.end <= count).then(|| wanted.map(move |index| std::array::from_fn(|byte| input[byte * count + index])))
}

/// The values of a page, encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    pub(super) physical: Physical,
    pub(super) encoding: i64,
    pub(super) input: &'a [u8],
    /// Largest number of values that it can have.
    pub(super) limit: usize,
    pub(super) dictionary: Option<&'a Dictionary>,
}
