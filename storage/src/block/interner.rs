//! Gives equal byte strings equal small numbers, in order of first appearance: the dictionaries of the columns.
//!
//! Strings lie one after the other in one buffer, which is already the body of a dictionary page apart from the lengths. The hash is
//! seeded per process, so that nobody can prepare strings that collide; numbers depend on the order of appearance only.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
};

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0u8));

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// All bytes of a string of less than eight, some of them twice. Of strings of one length, different ones give different numbers.
#[inline(always)]
fn short(bytes: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last));
    }
    match *bytes {
        [] => 0,
        [first, .., last] => u64::from(first) << 16 | u64::from(bytes[1]) << 8 | u64::from(last),
        [only] => only.into(),
    }
}

/// Whether two strings are the same. Most have a few dozen bytes, for which a call takes longer than comparing.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    let length = a.len();
    if length != b.len() {
        return false;
    }
    if length < 8 {
        return short(a) == short(b);
    }
    let mut at = 0;
    while at + 8 < length {
        if word(a, at) != word(b, at) {
            return false;
        }
        at += 8;
    }
    word(a, length - 8) == word(b, length - 8)
}

#[inline]
fn hash(seed: u64, bytes: &[u8]) -> u32 {
    let length = bytes.len();
    let mut state = seed ^ (length as u64).wrapping_mul(MULTIPLIER);
    if length < 8 {
        state = fold(state ^ short(bytes), MULTIPLIER);
    } else {
        let mut at = 0;
        while at + 8 < length {
            state = fold(state ^ word(bytes, at), MULTIPLIER);
            at += 8;
        }
        state = fold(state ^ word(bytes, length - 8), MULTIPLIER ^ seed);
    }
    (state ^ state >> 32) as u32
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Interner {
    /// Open addressing; `hash << 32 | number + 1`, or 0 when empty. A power of two long, at most half full.
    slots: Vec<u64>,
    bytes: Vec<u8>,
    /// End of each string in `bytes`.
    ends: Vec<usize>,
    seed: u64,
}

impl Default for Interner {
    fn default() -> Self {
        Self { slots: vec![0; 16], bytes: Vec::new(), ends: Vec::new(), seed: *SEED }
    }
}

impl Interner {
    /// The string's number, and whether it is new.
    #[inline]
    pub(crate) fn intern(&mut self, bytes: &[u8]) -> (u32, bool) {
        let hash = hash(self.seed, bytes);
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return (self.insert(bytes, hash, at), true);
            }
            let number = slot as u32 - 1;
            if (slot >> 32) as u32 == hash && same(self.get(number), bytes) {
                return (number, false);
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn insert(&mut self, bytes: &[u8], hash: u32, at: usize) -> u32 {
        let number = self.ends.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.slots[at] = u64::from(hash) << 32 | u64::from(number + 1);
        if self.ends.len() * 2 > self.slots.len() {
            let mut slots = vec![0; self.slots.len() * 2];
            let mask = slots.len() - 1;
            for &slot in self.slots.iter().filter(|&&slot| slot != 0) {
                let mut at = (slot >> 32) as usize & mask;
                while slots[at] != 0 {
                    at = (at + 1) & mask;
                }
                slots[at] = slot;
            }
            self.slots = slots;
        }
        number
    }

    /// Whether this is the string of a number; it is not if there is no such number.
    #[inline(always)]
    pub(crate) fn is(&self, number: u32, bytes: &[u8]) -> bool {
        (number as usize) < self.ends.len() && same(self.get(number), bytes)
    }

    /// The string of a number.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        &self.bytes[start..self.ends[number]]
    }

    /// Number of strings.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all strings.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all strings.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.slots.resize(16, 0);
        self.bytes.clear();
        self.ends.clear();
    }

    /// Numbers strings anew: `order` has the old number of each that stays. After that none can be interned until all are forgotten.
    pub(crate) fn renumber(&mut self, order: &[u32]) {
        let (mut bytes, mut ends) = (Vec::with_capacity(self.bytes.len()), Vec::with_capacity(order.len()));
        for &number in order {
            bytes.extend_from_slice(self.get(number));
            ends.push(bytes.len());
        }
        (self.bytes, self.ends) = (bytes, ends);
    }

    /// The numbers in an order in which strings resemble their neighbours: by length, and then by how they begin. The strings before the first
    /// of `bounds`, which ascend, come as they appeared; those between two bounds stay between them.
    pub(crate) fn sorted(&self, bounds: &[usize]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        let prefix = |number: u32| {
            let text = self.get(number);
            let mut prefix = [0; 16];
            let kept = text.len().min(prefix.len());
            prefix[..kept].copy_from_slice(&text[..kept]);
            (text.len(), u128::from_be_bytes(prefix), number)
        };
        for (at, &start) in bounds.iter().enumerate() {
            let end = bounds.get(at + 1).map_or(order.len(), |&end| end.min(order.len()));
            if let Some(part) = order.get_mut(start..end) {
                let mut keys: Vec<_> = part.iter().map(|&number| prefix(number)).collect();
                keys.sort_unstable();
                part.iter_mut().zip(keys).for_each(|(place, (.., number))| *place = number);
            }
        }
        order
    }

    /// The body of a PLAIN dictionary page: the strings of these numbers.
    pub(crate) fn write_plain(&self, order: &[u32], out: &mut Vec<u8>) {
        out.reserve(self.bytes.len() + 4 * self.ends.len());
        for &number in order {
            let text = self.get(number);
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_have_equal_numbers() {
        let mut interner = Interner::default();
        let strings: Vec<String> = (0..5000).map(|i| "x".repeat(i % 23) + &(i / 3).to_string()).collect();
        let mut model: Vec<&str> = Vec::new();
        for text in strings.iter().chain(&strings) {
            let expected = model.iter().position(|known| known == text).unwrap_or(model.len());
            assert_eq!(interner.intern(text.as_bytes()), (expected as u32, expected == model.len()));
            if expected == model.len() {
                model.push(text);
            }
        }
        assert_eq!(interner.len(), model.len());
        let order = interner.sorted(&[100, 2000]);
        let (fixed, rest) = order.split_at(100);
        assert!(fixed.iter().copied().eq(0..100));
        for part in [&rest[..1900], &rest[1900..]] {
            let strings: Vec<_> = part.iter().map(|&number| interner.get(number)).collect();
            assert!(strings.is_sorted_by_key(|text| (text.len(), text[..text.len().min(16)].to_vec())));
        }
        let mut numbers = order.clone();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..model.len() as u32));
        assert!(rest[..1900].iter().all(|&number| (100..2000).contains(&number)));
        let mut plain = Vec::new();
        interner.write_plain(&order, &mut plain);
        let expected: Vec<u8> = order
            .iter()
            .map(|&number| model[number as usize])
            .flat_map(|text| [(text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat())
            .collect();
        assert_eq!(plain, expected);
        assert!(Interner::default().sorted(&[100, 2000]).is_empty());
        assert!(model.iter().enumerate().all(|(number, text)| interner.is(number as u32, text.as_bytes())));
        assert!(!interner.is(0, b"y") && !interner.is(model.len() as u32, b""));
        interner.clear();
        assert_eq!(interner.intern(b""), (0, true));
    }
}
