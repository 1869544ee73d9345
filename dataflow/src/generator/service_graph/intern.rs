//! Interned values: what halves and edges refer to by number, so that a half costs bytes and comparing two costs nothing.
//!
//! Service names and label values repeat millions of times, but a sender may also invent a new one with every span. So numbers are given
//! out on demand and taken back by mark and sweep: the owner marks what it still refers to, the rest is freed. A sweep is due when there
//! are twice as many values as the last one left, which makes it cost a constant per value ever interned.
//!
//! Invariant: a [`Symbol`] is valid from [`Interner::intern`] to the first sweep that it is not marked in.

use std::{
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Number of an interned value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Symbol(u32);

impl Symbol {
    /// Stands for no value; never given out.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// The number, for tables beside the interner.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Values by number and numbers by value.
#[derive(Debug)]
pub(super) struct Interner<T: ?Sized> {
    values: Vec<Option<Arc<T>>>,
    free: Vec<u32>,
    numbers: HashTable<u32>,
    hasher: RandomState,
    sweep_at: usize,
}

/// No sweep is due below this many values.
const FEW: usize = 1024;

/// Which values are still referred to.
#[derive(Debug)]
pub(super) struct Marks(Vec<bool>);

impl Marks {
    /// The value is referred to. Returns whether that is news.
    pub(super) fn mark(&mut self, symbol: Symbol) -> bool {
        self.0.get_mut(symbol.index()).is_some_and(|marked| !std::mem::replace(marked, true))
    }
}

impl<T: ?Sized + Hash + Eq> Interner<T> {
    /// No values yet.
    pub(super) fn new() -> Self {
        Self { values: Vec::new(), free: Vec::new(), numbers: HashTable::new(), hasher: RandomState::default(), sweep_at: FEW }
    }

    /// The number of a value.
    pub(super) fn intern(&mut self, value: &T) -> Symbol
    where
        for<'a> Arc<T>: From<&'a T>,
    {
        let hash = self.hasher.hash_one(value);
        let Self { values, free, numbers, hasher, .. } = self;
        let is_it = |number: &u32| values[*number as usize].as_deref().is_some_and(|known| known == value);
        if let Some(number) = numbers.find(hash, is_it) {
            return Symbol(*number);
        }
        let number = free.pop().unwrap_or_else(|| {
            values.push(None);
            // Bounded by memory long before it is by the width of the number.
            values.len() as u32 - 1
        });
        values[number as usize] = Some(Arc::from(value));
        let rehash = |number: &u32| values[*number as usize].as_deref().map_or(0, |known| hasher.hash_one(known));
        numbers.insert_unique(hash, number, rehash);
        Symbol(number)
    }

    /// The value; none for [`Symbol::NONE`].
    pub(super) fn get(&self, symbol: Symbol) -> Option<&Arc<T>> {
        self.values.get(symbol.index())?.as_ref()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether so many have come since the last sweep that another one is worth its while.
    pub(super) fn is_sweep_due(&self) -> bool {
        self.len() >= self.sweep_at
    }

    /// Nothing is marked yet.
    pub(super) fn marks(&self) -> Marks {
        Marks(vec![false; self.values.len()])
    }

    /// Forgets what is not marked.
    pub(super) fn sweep(&mut self, marks: &Marks) {
        let Self { values, free, numbers, .. } = self;
        numbers.retain(|number| marks.0[*number as usize]);
        for (number, value) in values.iter_mut().enumerate() {
            if !marks.0[number] && value.take().is_some() {
                free.push(number as u32);
            }
        }
        self.sweep_at = (2 * self.len()).max(FEW);
    }
}

/// Labels that a half adds to its edge: name and value.
pub(super) type Dimensions = [(Symbol, Symbol)];

/// Everything that has a number.
#[derive(Debug)]
pub(super) struct Names {
    /// Names of services and peers, names and values of labels.
    pub(super) strings: Interner<str>,
    /// Sets of labels.
    pub(super) dimensions: Interner<Dimensions>,
}

impl Names {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { strings: Interner::new(), dimensions: Interner::new() }
    }

    /// Whether [`Self::sweep`] is worth its while.
    pub(super) fn is_sweep_due(&self) -> bool {
        self.strings.is_sweep_due() || self.dimensions.is_sweep_due()
    }

    /// Forgets everything but these strings and sets of labels.
    pub(super) fn sweep(&mut self, used: impl Iterator<Item = (Symbol, Symbol, Symbol)>) {
        let (mut strings, mut dimensions) = (self.strings.marks(), self.dimensions.marks());
        for (one, other, labels) in used {
            strings.mark(one);
            strings.mark(other);
            if dimensions.mark(labels) {
                for (name, value) in self.dimensions.get(labels).into_iter().flat_map(|labels| labels.iter()) {
                    strings.mark(*name);
                    strings.mark(*value);
                }
            }
        }
        self.strings.sweep(&strings);
        self.dimensions.sweep(&dimensions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_number_and_swept_numbers_are_used_again() {
        let mut interner: Interner<str> = Interner::new();
        let (cart, shop) = (interner.intern("cart"), interner.intern("shop"));
        assert_eq!(interner.intern("cart"), cart);
        assert_eq!(interner.get(shop).map(AsRef::as_ref), Some("shop"));
        assert_eq!(interner.get(Symbol::NONE), None);
        let mut marks = interner.marks();
        assert!(marks.mark(shop) && !marks.mark(shop) && !marks.mark(Symbol::NONE));
        interner.sweep(&marks);
        assert_eq!((interner.len(), interner.get(cart)), (1, None));
        assert_eq!((interner.intern("mail"), interner.intern("shop")), (cart, shop));
    }

    #[test]
    fn invented_values_do_not_stay() {
        let mut interner: Interner<str> = Interner::new();
        for number in 0..100 * FEW {
            interner.intern(number.to_string().as_str());
            if interner.is_sweep_due() {
                interner.sweep(&interner.marks());
            }
        }
        assert!(interner.values.len() <= FEW);
    }
}
