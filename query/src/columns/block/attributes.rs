//! Generic attributes: the values of one key, found in the lists of keys and values of all attributes.
//!
//! ```text
//!  keys      a b │ b │ – │ a c      entries: one per attribute, one for an element without attributes
//!  owners    0     2   3   4        entry at which each element (span, resource, …) begins
//!  texts     x – │ y │ – │ – –      entries as those of the keys, as long as no array has two elements
//!  ints      – 7 │ – │ – │ 1 –
//!                                   ─► a: "x", nil, nil, 1
//! ```
//!
//! Codes of keys are compared as numbers. Which type a key has is not known before it is looked for, and usually it is the same everywhere:
//! leaves of values are decoded one after the other until all its values are found.

use std::{collections::HashMap, sync::Arc};

use storage::block::{
    BlockError,
    chunks::Chunks,
    column::{Column, Strings, Values},
    json_value, message_value,
};

use super::{
    super::{
        live::{array_of, value_of},
        vector::{Dictionary, NIL, Numbers, Texts, Vector},
    },
    convert::codes,
    leaves::{AttributeLeaves, ValueLeaves},
};
use crate::traceql::{Type, Value};

/// The keys of all attributes of a list.
#[derive(Debug)]
pub(super) struct Keys {
    /// Code of every entry; [`NIL`] for elements without attributes.
    pub(super) codes: Vec<u32>,
    pub(super) dictionary: Arc<Strings>,
    /// Entry at which each element begins.
    pub(super) owners: Vec<u32>,
}

/// A leaf of values.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) column: Column,
    /// Of strings.
    pub(super) dictionary: Arc<Dictionary>,
    /// Entry at which each attribute begins, if that is not the entry of its key.
    pub(super) begins: Option<Vec<u32>>,
}

/// Decoded leaves of attributes. Kept, because queries often ask for more than one key.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    keys: HashMap<usize, Arc<Keys>>,
    leaves: HashMap<usize, Arc<Leaf>>,
}

/// The values of a key.
#[derive(Debug)]
pub(super) struct Found {
    /// One value per element.
    pub(super) vector: Vector,
    /// Which elements have the key, whether or not the language sees its value; all those that have a value if absent.
    pub(super) has_key: Option<Vec<bool>>,
}

/// An attribute with the key: its element, and its entry.
type Match = (u32, u32);

/// Which of the matches has its values where.
type Placed = (u32, At);

/// Where the values of an attribute stand in a leaf.
#[derive(Clone, Copy, Debug)]
struct At {
    first: u32,
    count: u32,
}

impl Attributes {
    /// The values of a key, of elements on this level. `expected` is the type that the query hopes for.
    pub(super) fn find(
        &mut self,
        chunks: &mut Chunks,
        leaves: &AttributeLeaves,
        level: u8,
        name: &str,
        expected: Option<Type>,
    ) -> Result<Found, BlockError> {
        let keys = self.keys(chunks, leaves.key, level)?;
        let elements = keys.owners.len();
        let matches = keys.matches(name);
        if matches.is_empty() {
            return Ok(Found { vector: Vector::Nil(elements), has_key: None });
        }
        let ValueLeaves::Typed { texts, ints, doubles, bools, arrays } = leaves.values else {
            return self.of_messages(chunks, leaves, &keys, &matches, level);
        };
        let mut order = [texts, ints, doubles, bools];
        let first = match expected {
            Some(Type::Int | Type::Duration) => ints,
            Some(Type::Float) => doubles,
            Some(Type::Bool) => bools,
            _ => texts,
        };
        order.sort_by_key(|&leaf| leaf != first);
        let mut left: Vec<u32> = (0..matches.len() as u32).collect();
        let mut found: Vec<(Arc<Leaf>, Vec<Placed>)> = Vec::new();
        for leaf in order {
            if left.is_empty() {
                break;
            }
            let leaf = self.leaf(chunks, leaf, &keys, level)?;
            let mut here = Vec::new();
            let mut rank = Rank::default();
            left.retain(|&at| {
                let place = leaf.at(matches[at as usize].1, &mut rank);
                if place.count > 0 {
                    here.push((at, place));
                }
                place.count == 0
            });
            if !here.is_empty() {
                found.push((leaf, here));
            }
        }
        let has_key = (!left.is_empty()).then(|| {
            let mut has_key = vec![false; elements];
            matches.iter().for_each(|&(element, _)| has_key[element as usize] = true);
            has_key
        });
        let mut vector = match found.as_slice() {
            [] => Vector::Nil(elements),
            [(leaf, here)] if here.iter().all(|(_, place)| place.count == 1) => of_one_type(leaf, elements, &matches, here),
            many => {
                let mut values = vec![Value::Nil; elements];
                for (leaf, here) in many {
                    for (at, place) in here {
                        let of_array = (place.first..place.first + place.count).map(|value| value_at(&leaf.column.values, value as usize));
                        values[matches[*at as usize].0 as usize] = array_of(of_array.collect());
                    }
                }
                Vector::Mixed(values)
            }
        };
        if let Some(arrays) = arrays.filter(|_| !left.is_empty()) {
            vector = self.with_json(chunks, arrays, &keys, level, &matches, &left, vector)?;
        }
        Ok(Found { vector, has_key })
    }

    /// All keys of a list, in the order in which the writer met them.
    pub(super) fn names(&mut self, chunks: &mut Chunks, key: usize, level: u8) -> Result<Vec<String>, BlockError> {
        let keys = self.keys(chunks, key, level)?;
        let mut used = vec![false; keys.dictionary.len()];
        for &code in &keys.codes {
            if let Some(used) = used.get_mut(code as usize) {
                *used = true;
            }
        }
        let names = keys.dictionary.iter().zip(used).filter(|(_, used)| *used).map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        Ok(names.collect())
    }

    /// Bytes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        let keys: usize = self.keys.values().map(|keys| 4 * (keys.codes.len() + keys.owners.len())).sum();
        let leaf = |leaf: &Arc<Leaf>| {
            let Column { repetition, definition, values, .. } = &leaf.column;
            let values = match values {
                Values::Codes { codes, .. } => 4 * codes.len(),
                Values::Bytes(strings) => strings.bytes() + 4 * strings.len(),
                Values::Long(values) => 8 * values.len(),
                Values::Double(values) => 8 * values.len(),
                Values::Bool(values) => values.len(),
            };
            repetition.len() + definition.len() + values + leaf.begins.as_ref().map_or(0, |begins| 4 * begins.len())
        };
        keys + self.leaves.values().map(leaf).sum::<usize>()
    }

    /// Decodes the keys of a list.
    pub(super) fn keys(&mut self, chunks: &mut Chunks, leaf: usize, level: u8) -> Result<Arc<Keys>, BlockError> {
        if let Some(keys) = self.keys.get(&leaf) {
            return Ok(Arc::clone(keys));
        }
        let Column { repetition, definition, values, max_definition, entries, .. } = chunks.column(leaf)?;
        let Some((mut by_entry, dictionary)) = codes(values) else {
            return Err(chunks.corrupt("keys of attributes are no strings"));
        };
        if by_entry.len() < entries {
            let mut next = by_entry.iter();
            by_entry =
                definition.iter().map(|&there| if there == max_definition { next.next().copied().unwrap_or(NIL) } else { NIL }).collect();
        }
        let begins = |(&repetition, &definition): (&u8, &u8)| repetition <= level && definition >= level;
        let owners = repetition.iter().zip(&definition).zip(0..).filter_map(|(levels, entry)| begins(levels).then_some(entry)).collect();
        let keys = Arc::new(Keys { codes: by_entry, dictionary, owners });
        self.keys.insert(leaf, Arc::clone(&keys));
        Ok(keys)
    }

    /// Decodes a leaf of values.
    pub(super) fn leaf(&mut self, chunks: &mut Chunks, leaf: usize, keys: &Keys, level: u8) -> Result<Arc<Leaf>, BlockError> {
        if let Some(known) = self.leaves.get(&leaf) {
            return Ok(Arc::clone(known));
        }
        let column = chunks.column(leaf)?;
        let begins = (column.entries != keys.codes.len()).then(|| {
            let begins = column.repetition.iter().zip(0..).filter(|(repetition, _)| **repetition <= level + 1);
            begins.map(|(_, entry)| entry).collect::<Vec<u32>>()
        });
        if begins.as_ref().is_some_and(|begins| begins.len() != keys.codes.len()) {
            return Err(chunks.corrupt("the values of attributes are not as many as their keys"));
        }
        let dictionary = match &column.values {
            Values::Codes { dictionary, .. } => Dictionary::new(Arc::clone(dictionary)),
            Values::Bytes(strings) => Dictionary::new(Arc::new(strings.clone())),
            _ => Dictionary::default(),
        };
        let decoded = Arc::new(Leaf { column, dictionary: Arc::new(dictionary), begins });
        self.leaves.insert(leaf, Arc::clone(&decoded));
        Ok(decoded)
    }

    /// Arrays that are stored as JSON.
    #[expect(clippy::too_many_arguments, reason = "one step of `find`, with its state")]
    fn with_json(
        &mut self,
        chunks: &mut Chunks,
        leaf: usize,
        keys: &Keys,
        level: u8,
        matches: &[Match],
        left: &[u32],
        vector: Vector,
    ) -> Result<Vector, BlockError> {
        let leaf = self.leaf(chunks, leaf, keys, level)?;
        let mut rank = Rank::default();
        let mut values: Option<Vec<Value>> = None;
        for &at in left {
            let (element, entry) = matches[at as usize];
            let place = leaf.at(entry, &mut rank);
            let json = if place.count > 0 { leaf.column.values.string(place.first as usize) } else { None };
            let Some(json) = json.filter(|json| !json.is_empty()) else { continue };
            let value = json_value(json).map_err(|what| chunks.corrupt(what))?;
            let values = values.get_or_insert_with(|| (0..vector.len()).map(|element| vector.value(element)).collect());
            values[element as usize] = value_of(&value);
        }
        Ok(values.map_or(vector, |values| values.into_iter().collect()))
    }

    /// Values that are stored as messages.
    fn of_messages(
        &mut self,
        chunks: &mut Chunks,
        leaves: &AttributeLeaves,
        keys: &Keys,
        matches: &[Match],
        level: u8,
    ) -> Result<Found, BlockError> {
        let elements = keys.owners.len();
        let (mut values, mut has_key) = (vec![Value::Nil; elements], vec![false; elements]);
        let ValueLeaves::Message(leaf) = leaves.values else {
            return Ok(Found { vector: Vector::Nil(elements), has_key: None });
        };
        let leaf = self.leaf(chunks, leaf, keys, level)?;
        let mut rank = Rank::default();
        for &(element, entry) in matches {
            let place = leaf.at(entry, &mut rank);
            has_key[element as usize] = true;
            if let Some(message) = leaf.column.values.string(place.first as usize).filter(|_| place.count > 0) {
                let value = message_value(message).map_err(|what| chunks.corrupt(what))?;
                values[element as usize] = value_of(&value);
            }
        }
        Ok(Found { vector: values.into_iter().collect(), has_key: Some(has_key) })
    }
}

impl Keys {
    /// The first attribute of every element that has the key.
    fn matches(&self, name: &str) -> Vec<Match> {
        const STEP: usize = 32;
        let hits: Vec<u32> = self.dictionary.iter().zip(0..).filter(|(key, _)| is(key, name)).map(|(_, code)| code).collect();
        let mut matches = Vec::new();
        let Some((&hit, more)) = hits.split_first() else { return matches };
        let mut owner = 0;
        for (step, codes) in self.codes.chunks(STEP).enumerate() {
            // Without a branch per code this is a few instructions; a key that is rare costs no more.
            if more.is_empty() && !codes.iter().fold(false, |any, &code| any | (code == hit)) {
                continue;
            }
            for (at, &code) in codes.iter().enumerate() {
                if code != hit && !more.contains(&code) {
                    continue;
                }
                let entry = (step * STEP + at) as u32;
                while self.owners.get(owner + 1).is_some_and(|&begin| begin <= entry) {
                    owner += 1;
                }
                if matches.last().is_none_or(|&(last, _)| last != owner as u32)
                    && self.owners.get(owner).is_some_and(|&begin| begin <= entry)
                {
                    matches.push((owner as u32, entry));
                }
            }
        }
        matches
    }
}

/// Whether a stored key reads as a name.
fn is(key: &[u8], name: &str) -> bool {
    key == name.as_bytes() || name.contains('\u{fffd}') && String::from_utf8_lossy(key) == name
}

/// Counts values on the way through the entries.
#[derive(Default)]
struct Rank {
    entry: usize,
    values: u32,
}

impl Rank {
    /// How many values stand before an entry, which is not before the one that was asked for last.
    fn before(&mut self, definition: &[u8], max: u8, entry: usize) -> u32 {
        let passed = definition.get(self.entry..entry).unwrap_or_default();
        self.values += passed.iter().map(|&level| u32::from(level == max)).sum::<u32>();
        self.entry = self.entry.max(entry);
        self.values
    }
}

impl Leaf {
    /// Where the values of an attribute stand among the values of the leaf.
    fn at(&self, entry: u32, rank: &mut Rank) -> At {
        let Column { definition, max_definition, entries, .. } = &self.column;
        let (begin, end) = match &self.begins {
            None => (entry as usize, entry as usize + 1),
            Some(begins) => {
                let end = begins.get(entry as usize + 1).map_or(*entries, |&end| end as usize);
                (begins.get(entry as usize).map_or(end, |&begin| begin as usize), end)
            }
        };
        if definition.is_empty() {
            return At { first: begin as u32, count: (end - begin) as u32 };
        }
        let first = rank.before(definition, *max_definition, begin);
        let count = definition.get(begin..end).unwrap_or_default().iter().filter(|&&level| level == *max_definition).count();
        At { first, count: count as u32 }
    }
}

/// A vector of scalars of one leaf.
fn of_one_type(leaf: &Leaf, elements: usize, matches: &[Match], here: &[Placed]) -> Vector {
    fn numbers<T: Copy + Default>(values: &[T], elements: usize, places: impl Iterator<Item = (u32, u32)>) -> Numbers<T> {
        let (mut spread, mut present) = (vec![T::default(); elements], vec![false; elements]);
        for (element, value) in places {
            if let Some(value) = values.get(value as usize) {
                spread[element as usize] = *value;
                present[element as usize] = true;
            }
        }
        Numbers { values: spread, present: (present.contains(&false)).then_some(present) }
    }
    let places = here.iter().map(|(at, place)| (matches[*at as usize].0, place.first));
    let dictionary = Arc::clone(&leaf.dictionary);
    match &leaf.column.values {
        Values::Long(values) => Vector::Int(numbers(values, elements, places)),
        Values::Double(values) => Vector::Float(numbers(values, elements, places)),
        Values::Bool(values) => Vector::Bool(numbers(values, elements, places)),
        Values::Codes { codes, .. } => {
            let mut spread = vec![NIL; elements];
            places.for_each(|(element, value)| spread[element as usize] = codes.get(value as usize).copied().unwrap_or(NIL));
            Vector::Text(Texts { codes: spread, dictionary })
        }
        Values::Bytes(_) => {
            let mut spread = vec![NIL; elements];
            places.for_each(|(element, value)| spread[element as usize] = value);
            Vector::Text(Texts { codes: spread, dictionary })
        }
    }
}

fn value_at(values: &Values, at: usize) -> Value {
    match values {
        Values::Long(values) => values.get(at).copied().map_or(Value::Nil, Value::Int),
        Values::Double(values) => values.get(at).copied().map_or(Value::Nil, Value::Float),
        Values::Bool(values) => values.get(at).copied().map_or(Value::Nil, Value::Bool),
        strings => strings.string(at).map_or(Value::Nil, |string| Value::String(String::from_utf8_lossy(string).into_owned())),
    }
}
