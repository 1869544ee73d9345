//! All generic attributes of a scope at once, each as the number of a pair of key and value.
//!
//! ```text
//!  keys    a b │ b │ –          pairs    0: a = "x"   1: b = 7   2: b = "y"
//!  texts   x – │ y │ –     ─►   numbers  0 1 │ 2 │ –
//!  ints    – 7 │ – │ –
//! ```
//!
//! This is what counting all attributes needs: every leaf is gone through once, whatever the number of keys, and strings are not touched.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use storage::block::{
    BlockError,
    chunks::Chunks,
    column::{Column, Values},
    json_value,
};

use super::{
    super::{Listing, Pair, PairValue, live::value_of, vector::NIL},
    attributes::{Attributes, Keys, Leaf},
    leaves::{AttributeLeaves, ValueLeaves},
};
use crate::traceql::{Type, Value};

/// The key of an entry that does not count: there is none, another attribute of the element has the key, or the key has a leaf of its own.
const PASSED_OVER: u32 = NIL;

/// The pairs that were met so far.
#[derive(Default)]
struct Pairs {
    pairs: Vec<Pair>,
    /// By the number of a string: the first pair that has it.
    first_of_text: Vec<u32>,
    of_texts: HashMap<(u32, u32), u32>,
    of_numbers: HashMap<(u32, Type, u64), u32>,
}

impl Pairs {
    #[inline]
    fn of_text(&mut self, key: u32, code: u32) -> u32 {
        let Self { pairs, first_of_text, of_texts, .. } = self;
        // Nearly every string is the value of one key only.
        match first_of_text.get_mut(code as usize) {
            Some(first) if *first == NIL => {
                *first = push(pairs, key, PairValue::Text(code));
                *first
            }
            Some(first) if pairs[*first as usize].key == key => *first,
            _ => *of_texts.entry((key, code)).or_insert_with(|| push(pairs, key, PairValue::Text(code))),
        }
    }

    #[inline]
    fn of_value(&mut self, key: u32, value: Value) -> u32 {
        let bits = match &value {
            Value::Int(number) => *number as u64,
            Value::Float(number) => number.to_bits(),
            Value::Bool(value) => u64::from(*value),
            Value::Array(_) => 0,
            _ => return push(&mut self.pairs, key, PairValue::Other(value)),
        };
        let Self { pairs, of_numbers, .. } = self;
        *of_numbers.entry((key, value.type_of(), bits)).or_insert_with(|| push(pairs, key, PairValue::Other(value)))
    }
}

fn push(pairs: &mut Vec<Pair>, key: u32, value: PairValue) -> u32 {
    pairs.push(Pair { key, value });
    pairs.len() as u32 - 1
}

/// What is known of the entries so far.
struct Entries {
    /// Key of each, or [`PASSED_OVER`].
    keys: Vec<u32>,
    /// Pair of each, or [`NIL`].
    numbers: Vec<u32>,
    /// How many have a key and no pair yet.
    left: usize,
    pairs: Pairs,
}

impl Attributes {
    /// The attributes of a list but those that `is_own` names; none if the version keeps values as messages.
    pub(super) fn listing(
        &mut self,
        chunks: &mut Chunks,
        leaves: &AttributeLeaves,
        level: u8,
        is_own: impl Fn(&str) -> bool,
    ) -> Result<Option<Listing>, BlockError> {
        let ValueLeaves::Typed { texts, ints, doubles, bools, arrays } = leaves.values else { return Ok(None) };
        let keys = self.keys(chunks, leaves.key, level)?;
        let (names, key_of_code) = names(&keys, is_own);
        let mut entries = Entries::new(&keys, &key_of_code, names.len());
        let mut dictionary = Arc::default();
        for leaf in [texts, ints, doubles, bools] {
            if entries.left == 0 {
                break;
            }
            let leaf = self.leaf(chunks, leaf, &keys, level)?;
            if matches!(leaf.column.values, Values::Codes { .. } | Values::Bytes(_)) {
                dictionary = Arc::clone(&leaf.dictionary);
                entries.pairs.first_of_text = vec![NIL; dictionary.len()];
            }
            entries.fill(&leaf);
        }
        if let Some(arrays) = arrays.filter(|_| entries.left > 0) {
            let leaf = self.leaf(chunks, arrays, &keys, level)?;
            entries.fill_json(&leaf).map_err(|what| chunks.corrupt(what))?;
        }
        let Entries { numbers, pairs, .. } = entries;
        Ok(Some(Listing {
            entries: keys.owners.clone(),
            numbers,
            keys: names,
            pairs: pairs.pairs,
            dictionary,
            offsets: None,
            own: Vec::new(),
        }))
    }
}

/// The names of keys, each once, and which of them each string of the dictionary is.
fn names(keys: &Keys, is_own: impl Fn(&str) -> bool) -> (Vec<String>, Vec<u32>) {
    let mut names: Vec<String> = Vec::new();
    let mut known: HashMap<String, u32> = HashMap::new();
    let of_code = keys.dictionary.iter().map(|key| {
        let name = String::from_utf8_lossy(key);
        if is_own(&name) {
            return PASSED_OVER;
        }
        *known.entry(name.into_owned()).or_insert_with_key(|name| {
            names.push(name.clone());
            names.len() as u32 - 1
        })
    });
    let of_code = of_code.collect();
    (names, of_code)
}

impl Entries {
    /// Of several attributes of an element with one key the first counts.
    fn new(keys: &Keys, key_of_code: &[u32], names: usize) -> Self {
        let mut of_entry = vec![PASSED_OVER; keys.codes.len()];
        let mut last_with = vec![u32::MAX; names];
        let mut left = 0;
        for (element, &begin) in keys.owners.iter().enumerate() {
            let end = keys.owners.get(element + 1).map_or(keys.codes.len(), |&end| end as usize);
            for (slot, &code) in of_entry[begin as usize..end].iter_mut().zip(&keys.codes[begin as usize..end]) {
                let key = key_of_code.get(code as usize).copied().unwrap_or(PASSED_OVER);
                let Some(last) = last_with.get_mut(key as usize) else { continue };
                if std::mem::replace(last, element as u32) != element as u32 {
                    *slot = key;
                    left += 1;
                }
            }
        }
        Self { numbers: vec![NIL; of_entry.len()], keys: of_entry, left, pairs: Pairs::default() }
    }

    /// Takes the values of a leaf.
    fn fill(&mut self, leaf: &Leaf) {
        fn at<T: Copy + Default>(values: &[T], place: u32) -> T {
            values.get(place as usize).copied().unwrap_or_default()
        }
        match &leaf.column.values {
            Values::Codes { codes, .. } => self.fill_with(leaf, |pairs, key, place| pairs.of_text(key, at(codes, place))),
            Values::Bytes(_) => self.fill_with(leaf, Pairs::of_text),
            Values::Long(values) => self.fill_with(leaf, |pairs, key, place| pairs.of_value(key, Value::Int(at(values, place)))),
            Values::Double(values) => self.fill_with(leaf, |pairs, key, place| pairs.of_value(key, Value::Float(at(values, place)))),
            Values::Bool(values) => self.fill_with(leaf, |pairs, key, place| pairs.of_value(key, Value::Bool(at(values, place)))),
        }
    }

    /// Takes the values of a leaf, of which `pair` says the pairs by key and place.
    #[inline]
    fn fill_with(&mut self, leaf: &Leaf, pair: impl Fn(&mut Pairs, u32, u32) -> u32) {
        let Self { keys, numbers, left, pairs } = self;
        each_value(leaf, |attribute, place, count| {
            let (Some(&key), Some(number)) = (keys.get(attribute), numbers.get_mut(attribute)) else { return };
            if key != PASSED_OVER && *number == NIL {
                *number = if count > 1 { pairs.of_value(key, Value::Array(Vec::new())) } else { pair(pairs, key, place) };
                *left -= 1;
            }
        });
    }

    /// Takes arrays that are stored as JSON.
    fn fill_json(&mut self, leaf: &Leaf) -> Result<(), String> {
        let mut wrong = None;
        let Self { keys, numbers, left, pairs } = self;
        each_value(leaf, |attribute, place, _| {
            let (Some(&key), Some(number)) = (keys.get(attribute), numbers.get_mut(attribute)) else { return };
            let json = leaf.column.values.string(place as usize).filter(|json| !json.is_empty());
            let Some(json) = json.filter(|_| key != PASSED_OVER && *number == NIL) else { return };
            match json_value(json).map(|value| value_of(&value)) {
                Ok(Value::Nil) => {}
                Ok(value) => {
                    *number = pairs.of_value(key, value);
                    *left -= 1;
                }
                Err(what) => wrong = Some(what),
            }
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// Calls `found` with the number of each attribute that has values in a leaf, the place of the first, and how many there are.
#[inline]
fn each_value(leaf: &Leaf, mut found: impl FnMut(usize, u32, u32)) {
    let Column { definition, max_definition, entries, .. } = &leaf.column;
    let is_there = |entry: usize| definition.get(entry).is_none_or(|level| level == max_definition);
    let mut place = 0;
    let Some(begins) = &leaf.begins else {
        for entry in (0..*entries).filter(|entry| is_there(*entry)) {
            found(entry, place, 1);
            place += 1;
        }
        return;
    };
    for (attribute, &begin) in begins.iter().enumerate() {
        let end = begins.get(attribute + 1).map_or(*entries, |&end| end as usize);
        let count = (begin as usize..end).filter(|&entry| is_there(entry)).count() as u32;
        if count > 0 {
            found(attribute, place, count);
            place += count;
        }
    }
}
