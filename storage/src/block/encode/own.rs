//! Attributes with a leaf of their own: the fixed and the dedicated columns of one scope (block-format.md §8.3, §8.5).
//!
//! ```text
//!  attribute ─ offer ─► taken: the value waits in the slot of its leaf ─ write, when its resource, span or event is complete ─► leaf
//!                  └──► refused: it is a generic one
//! ```

use super::super::{
    attributes::{self, Value},
    columns::{Columns, Dictionary, Integer, ListId, Text},
    dedicated::{self, Assigned},
};

/// A leaf that holds an attribute of one name.
#[derive(Clone, Copy, Debug)]
enum Leaf {
    /// Optional, as in vParquet2 to 4.
    String(Dictionary),
    Int(Integer),
    /// Lists, as in vParquet5.
    Strings(ListId, Dictionary),
    Blobs(ListId, Text),
    Ints(ListId, Integer),
}

/// A value that waits for being written, as its leaf wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Taken {
    Code(u32),
    Codes(Vec<u32>),
    Texts(Vec<Vec<u8>>),
    Int(i64),
    Ints(Vec<i64>),
}

/// Values of the leaves of one resource, span or event, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Vec<Option<Taken>>);

impl Slots {
    /// Appends bytes that are equal exactly for equal values.
    pub(super) fn identity(&self, out: &mut Vec<u8>) {
        let mut words = |slot: usize, tag: u8, words: &[u64]| {
            out.extend_from_slice(&(slot as u32).to_le_bytes());
            out.push(tag);
            out.extend_from_slice(&(words.len() as u64).to_le_bytes());
            words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        };
        for (slot, taken) in self.0.iter().enumerate() {
            match taken {
                None => {}
                Some(Taken::Code(code)) => words(slot, 0, &[u64::from(*code)]),
                // In a list, one element and a scalar are the same.
                Some(Taken::Codes(codes)) => words(slot, 0, &codes.iter().map(|&code| u64::from(code)).collect::<Vec<_>>()),
                Some(Taken::Int(value)) => words(slot, 1, &[*value as u64]),
                Some(Taken::Ints(values)) => words(slot, 1, &values.iter().map(|&value| value as u64).collect::<Vec<_>>()),
                Some(Taken::Texts(texts)) => {
                    for text in texts {
                        words(slot, 2, &text.iter().map(|&byte| u64::from(byte)).collect::<Vec<_>>());
                    }
                }
            }
        }
        out.extend_from_slice(&u32::MAX.to_le_bytes());
    }
}

/// The leaves of one scope.
#[derive(Debug)]
pub(super) struct Own {
    leaves: Vec<(String, Leaf)>,
    /// Whether a value of the wrong type empties the leaf, as it does in lists.
    empties: bool,
}

impl Own {
    /// The fixed leaves of strings `(attribute, leaf)` below `prefix`, and then the dedicated ones of `scope`.
    pub(super) fn new(columns: &Columns, prefix: &str, fixed: &[(&str, &str)], assigned: &[Assigned<'_>], scope: dedicated::Scope) -> Self {
        let lists = assigned.iter().any(|column| column.leaf().ends_with("[]"));
        let fixed = fixed.iter().map(|(name, leaf)| ((*name).to_owned(), Leaf::String(columns.dictionary(&format!("{prefix}.{leaf}")))));
        let dedicated = assigned.iter().filter(|column| column.scope == scope).map(|column| {
            let name = column.leaf();
            let leaf = match (lists, column.int, column.blob) {
                (false, ..) => Leaf::String(columns.dictionary(&name)),
                (true, true, _) => Leaf::Ints(columns.list(&name), columns.integer(&name)),
                (true, false, true) => Leaf::Blobs(columns.list(&name), columns.text(&name)),
                (true, false, false) => Leaf::Strings(columns.list(&name), columns.dictionary(&name)),
            };
            (column.name.to_owned(), leaf)
        });
        Self { leaves: fixed.chain(dedicated).collect(), empties: lists }
    }

    /// Adds the optional leaf of an integer attribute.
    pub(super) fn with_int(mut self, name: &str, leaf: Integer) -> Self {
        self.leaves.push((name.to_owned(), Leaf::Int(leaf)));
        self
    }

    /// Empty slots.
    pub(super) fn slots(&self) -> Slots {
        Slots(vec![None; self.leaves.len()])
    }

    /// The slot of an attribute.
    #[inline]
    pub(super) fn slot(&self, key: &[u8]) -> Option<usize> {
        self.leaves.iter().position(|(name, _)| name.as_bytes() == key)
    }

    /// Puts a value into its slot, replacing what an earlier attribute of the same name left there. False: its type is not that of the leaf.
    #[inline]
    pub(super) fn offer(&self, columns: &mut Columns, slots: &mut Slots, slot: usize, value: &Value<'_>) -> bool {
        let taken = match (self.leaves[slot].1, value) {
            (Leaf::String(leaf) | Leaf::Strings(_, leaf), Value::Text(text)) => Some(Taken::Code(columns.code(leaf, text))),
            (Leaf::Int(_) | Leaf::Ints(..), Value::Int(value)) => Some(Taken::Int(*value)),
            (Leaf::Blobs(..), Value::Text(text)) => Some(Taken::Texts(vec![text.to_vec()])),
            (Leaf::Strings(_, leaf), Value::Other(any)) => attributes::elements(any, attributes::as_text)
                .map(|texts| Taken::Codes(texts.into_iter().map(|text| columns.code(leaf, text)).collect())),
            (Leaf::Blobs(..), Value::Other(any)) => {
                attributes::elements(any, attributes::as_text).map(|texts| Taken::Texts(texts.into_iter().map(<[u8]>::to_vec).collect()))
            }
            (Leaf::Ints(..), Value::Other(any)) => attributes::elements(any, attributes::as_int).map(Taken::Ints),
            _ => None,
        };
        let fits = taken.is_some();
        if fits || self.empties {
            slots.0[slot] = taken;
        }
        fits
    }

    /// Writes the slots of a resource, span or event, the latest entry of `list`, whose definition level is `level`.
    #[inline]
    pub(super) fn write(&self, columns: &mut Columns, slots: &Slots, list: ListId, repetition: u8, level: u8) {
        for ((_, leaf), taken) in self.leaves.iter().zip(&slots.0) {
            match (*leaf, taken) {
                (Leaf::String(leaf), Some(Taken::Code(code))) => {
                    let entry = columns.latest(list);
                    columns.push_optional_code(leaf, entry, *code);
                }
                (Leaf::Int(leaf), Some(Taken::Int(value))) => {
                    let entry = columns.latest(list);
                    columns.push_optional_integer(leaf, entry, *value);
                }
                (Leaf::Strings(own, leaf), Some(Taken::Code(code))) => {
                    columns.enter(own, repetition, level + 1);
                    columns.push_code(leaf, *code);
                }
                (Leaf::Ints(own, leaf), Some(Taken::Int(value))) => {
                    columns.enter(own, repetition, level + 1);
                    columns.push_integer(leaf, *value);
                }
                (Leaf::Strings(own, leaf), Some(Taken::Codes(codes))) => {
                    each(columns, own, repetition, level, codes, |columns, &code| columns.push_code(leaf, code));
                }
                (Leaf::Ints(own, leaf), Some(Taken::Ints(values))) => {
                    each(columns, own, repetition, level, values, |columns, &value| columns.push_integer(leaf, value));
                }
                (Leaf::Blobs(own, leaf), Some(Taken::Texts(texts))) => {
                    each(columns, own, repetition, level, texts, |columns, text| columns.push_text(leaf, text));
                }
                (Leaf::Strings(own, _) | Leaf::Blobs(own, _) | Leaf::Ints(own, _), _) => columns.enter(own, repetition, level),
                (Leaf::String(_) | Leaf::Int(_), _) => {}
            }
        }
    }

    /// Adds that there is nothing that could have these attributes: `definition` is that of what lacks it.
    #[inline]
    pub(super) fn none(&self, columns: &mut Columns, repetition: u8, definition: u8) {
        for (_, leaf) in &self.leaves {
            if let Leaf::Strings(list, _) | Leaf::Blobs(list, _) | Leaf::Ints(list, _) = *leaf {
                columns.enter(list, repetition, definition);
            }
        }
    }
}

impl Slots {
    /// Empties all.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.0.fill(None);
    }
}

fn each<T>(columns: &mut Columns, list: ListId, repetition: u8, level: u8, values: &[T], push: impl Fn(&mut Columns, &T)) {
    if values.is_empty() {
        columns.enter(list, repetition, level);
    }
    for (index, value) in values.iter().enumerate() {
        columns.enter(list, if index == 0 { repetition } else { level + 1 }, level + 1);
        push(columns, value);
    }
}
