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

impl<T: Default> Stack<T> {
    fn take(&mut self) -> T {
        self.0.pop().unwrap_or_default()
    }

    fn give(&mut self, empty: T) {
        if self.0.len() < KEPT {
            self.0.push(empty);
        }
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Spare {
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
    /// An empty array of levels.
    pub(super) fn levels(&mut self) -> Vec<u8> {
        self.levels.take()
    }

    /// An empty array of codes.
    pub(super) fn codes(&mut self) -> Vec<u32> {
        self.codes.take()
    }

    /// No strings, for a dictionary of about so many bytes.
    pub(super) fn dictionary(&mut self, bytes: usize) -> Strings {
        if bytes < SMALL { Strings::default() } else { self.dictionary.take().unwrap_or_default() }
    }

    /// The same values, none, in an array with room.
    pub(super) fn room_for(&mut self, none: Values) -> Values {
        match none {
            Values::Long(_) => Values::Long(self.longs.take()),
            Values::Double(_) => Values::Double(self.doubles.take()),
            Values::Bool(_) => Values::Bool(self.bools.take()),
            Values::Bytes(_) => Values::Bytes(self.strings.take()),
            codes @ Values::Codes { .. } => codes,
        }
    }

    /// Takes an array of levels back.
    pub(super) fn give_levels(&mut self, mut levels: Vec<u8>) {
        levels.clear();
        if levels.capacity() > 0 {
            self.levels.give(levels);
        }
    }

    /// Takes a dictionary back, unless somebody else needs it still.
    pub(super) fn give_dictionary(&mut self, dictionary: Arc<Strings>) {
        let large = Arc::into_inner(dictionary).filter(|dictionary| dictionary.capacity() >= SMALL);
        self.dictionary = large.map(Strings::emptied).or(self.dictionary.take());
    }

    /// Takes an array of codes back.
    pub(super) fn give_codes(&mut self, mut codes: Vec<u32>) {
        codes.clear();
        if codes.capacity() > 0 {
            self.codes.give(codes);
        }
    }

    /// Takes the array of values back.
    pub(super) fn give_values(&mut self, values: Values) {
        fn give<T>(stack: &mut Stack<Vec<T>>, mut array: Vec<T>) {
            array.clear();
            if array.capacity() > 0 {
                stack.give(array);
            }
        }
        match values {
            Values::Codes { codes, .. } => self.give_codes(codes),
            Values::Bytes(strings) if strings.is_empty() => {}
            Values::Bytes(strings) => self.strings.give(strings.emptied()),
            Values::Long(values) => give(&mut self.longs, values),
            Values::Double(values) => give(&mut self.doubles, values),
            Values::Bool(values) => give(&mut self.bools, values),
        }
    }
}
