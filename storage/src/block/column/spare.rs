//! Memory of columns that nobody needs any more, for those that come next.
//!
//! Arrays of a leaf have megabytes, and one leaf is decoded after the other. An allocator that gets them back leaves them resident for a
//! while and takes the next ones from elsewhere: a merge then holds many times what it uses.

use std::sync::Arc;

use super::values::{Strings, Values};

/// Arrays of one type that are kept: about those of two leaves of some parts.
const KEPT: usize = 16;

/// Dictionaries below these bytes have memory of their own: they may be kept for the next rows, with all the memory that they have.
const SMALL: usize = 256 << 10;

/// Empty arrays with room.
#[derive(Debug)]
struct Stack<T>(Vec<T>);

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Memory that an empty array has.
trait Capacity {
    fn bytes(&self) -> usize;
}

impl<T> Capacity for Vec<T> {
    fn bytes(&self) -> usize {
        self.capacity() * size_of::<T>()
    }
}

impl Capacity for Strings {
    fn bytes(&self) -> usize {
        self.capacity()
    }
}

impl<T: Default + Capacity> Stack<T> {
    fn take(&mut self, room: &mut usize) -> T {
        let array = self.0.pop().unwrap_or_default();
        *room += array.bytes();
        array
    }

    fn give(&mut self, empty: T, room: &mut usize) {
        if self.0.len() < KEPT
            && let Some(rest) = room.checked_sub(empty.bytes())
            && empty.bytes() > 0
        {
            *room = rest;
            self.0.push(empty);
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Spare {
    /// Bytes that may be kept beyond those that are; dictionaries are not counted.
    room: usize,
    levels: Stack<Vec<u8>>,
    codes: Stack<Vec<u32>>,
    strings: Stack<Strings>,
    /// Of a dictionary. One is decoded after the other.
    dictionary: Option<Strings>,
    longs: Stack<Vec<i64>>,
    doubles: Stack<Vec<f64>>,
    bools: Stack<Vec<bool>>,
}

impl Spare {
    /// Keeps at most so many bytes.
    pub(super) fn within(room: usize) -> Self {
        Self {
            room,
            levels: Stack::default(),
            codes: Stack::default(),
            strings: Stack::default(),
            dictionary: None,
            longs: Stack::default(),
            doubles: Stack::default(),
            bools: Stack::default(),
        }
    }

    /// An empty array of levels.
    pub(super) fn levels(&mut self) -> Vec<u8> {
        self.levels.take(&mut self.room)
    }

    /// An empty array of codes.
    pub(super) fn codes(&mut self) -> Vec<u32> {
        self.codes.take(&mut self.room)
    }

    /// No strings, for a dictionary of about so many bytes.
    pub(super) fn dictionary(&mut self, bytes: usize) -> Strings {
        if bytes < SMALL { Strings::default() } else { self.dictionary.take().unwrap_or_default() }
    }

    /// The same values, none, in an array with room.
    pub(super) fn room_for(&mut self, none: Values) -> Values {
        match none {
            Values::Long(_) => Values::Long(self.longs.take(&mut self.room)),
            Values::Double(_) => Values::Double(self.doubles.take(&mut self.room)),
            Values::Bool(_) => Values::Bool(self.bools.take(&mut self.room)),
            Values::Bytes(_) => Values::Bytes(self.strings.take(&mut self.room)),
            codes @ Values::Codes { .. } => codes,
        }
    }

    /// Takes an array of levels back.
    pub(super) fn give_levels(&mut self, mut levels: Vec<u8>) {
        levels.clear();
        self.levels.give(levels, &mut self.room);
    }

    /// Takes a dictionary back, unless somebody else needs it still.
    pub(super) fn give_dictionary(&mut self, dictionary: Arc<Strings>) {
        let large = Arc::into_inner(dictionary).filter(|dictionary| dictionary.capacity() >= SMALL);
        self.dictionary = large.map(Strings::emptied).or(self.dictionary.take());
    }

    /// Takes an array of codes back.
    pub(super) fn give_codes(&mut self, mut codes: Vec<u32>) {
        codes.clear();
        self.codes.give(codes, &mut self.room);
    }

    /// Takes the array of values back.
    pub(super) fn give_values(&mut self, values: Values) {
        fn give<T>(stack: &mut Stack<Vec<T>>, mut array: Vec<T>, room: &mut usize) {
            array.clear();
            stack.give(array, room);
        }
        let Self { room, strings, longs, doubles, bools, .. } = self;
        match values {
            Values::Codes { codes, .. } => self.give_codes(codes),
            Values::Bytes(values) => strings.give(values.emptied(), room),
            Values::Long(values) => give(longs, values, room),
            Values::Double(values) => give(doubles, values, room),
            Values::Bool(values) => give(bools, values, room),
        }
    }
}
