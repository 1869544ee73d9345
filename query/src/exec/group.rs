//! `by(…)`: spansets split by the value of an expression.
//!
//! Values become numbers first, equal ones the same; spans are then put together by number, spanset by spanset. Groups come in the order in
//! which their values appear.

use std::{collections::HashMap, sync::Arc};

use super::{
    ExecError,
    rows::Values,
    spansets::{Attribute, Spansets},
};
use crate::{
    columns::{Batch, NIL, Numbers, Vector},
    traceql::{
        Value,
        ast::{Expr, Node},
    },
};

/// Groups up to which the number of a group is found by looking at all of them.
const FEW: usize = 16;

/// Splits spansets.
pub(super) fn by(key: &Expr, batch: &Batch, incoming: &Spansets) -> Result<Spansets, ExecError> {
    let values = match &key.node {
        Node::Field(field) => batch.vector(field)?,
        _ => Arc::new(computed(key, batch, incoming)?),
    };
    let keys = Keys::new(&values);
    let mut groups = Spansets { spans: Vec::with_capacity(incoming.spans.len()), ..Spansets::default() };
    // Of every group: the spanset that it was split off from, and a span that has its value.
    let (mut sources, mut witnesses) = (Vec::new(), Vec::new());
    let mut split = Split::default();
    for spanset in 0..incoming.len() {
        let spans = incoming.spans_of(spanset);
        split.run(spans, &keys);
        for group in 0..split.keys.len() {
            let members = &split.sorted[split.ends[group] as usize - split.counts[group] as usize..split.ends[group] as usize];
            groups.spans.extend_from_slice(members);
            groups.end(incoming.traces[spanset], incoming.origins[spanset]);
            sources.push(spanset as u32);
            witnesses.extend(members.first());
        }
    }
    groups.attributes = incoming.attributes.iter().map(|attribute| attribute.clone().take(&sources)).collect();
    groups.attributes.push(Attribute { name: Arc::from(format!("by({key})")), values, index: witnesses });
    Ok(groups)
}

/// The value of an expression for the spans that there are.
fn computed(key: &Expr, batch: &Batch, incoming: &Spansets) -> Result<Vector, ExecError> {
    let compiled = Values::new(batch, key)?;
    let wanted = incoming.mask(batch.spans()?);
    let value = |(span, wanted): (usize, bool)| {
        if wanted { compiled.get(span).map(|value| value.to_value()) } else { Ok(Value::Nil) }
    };
    Ok(wanted.into_iter().enumerate().map(value).collect::<Result<Vector, _>>()?)
}

/// A number per span; equal values have equal numbers.
enum Keys<'v> {
    Codes { codes: &'v [u32], canonical: Option<Vec<u32>> },
    Longs(&'v Numbers<i64>),
    Numbers(Vec<u64>),
}

/// A value's number; none for nil.
type Key = (bool, u64);

impl<'v> Keys<'v> {
    fn new(vector: &'v Vector) -> Self {
        match vector {
            Vector::Text(texts) => {
                let mut first: HashMap<&[u8], u32> = HashMap::with_capacity(texts.dictionary.len());
                let canonical: Vec<u32> = texts.dictionary.iter().zip(0..).map(|(text, code)| *first.entry(text).or_insert(code)).collect();
                let unique = first.len() == canonical.len();
                Self::Codes { codes: &texts.codes, canonical: (!unique).then_some(canonical) }
            }
            Vector::Int(numbers) | Vector::Duration(numbers) => Self::Longs(numbers),
            other => {
                // The debug text tells types apart, which the canonical text does not.
                let mut known: HashMap<String, u64> = HashMap::new();
                let number = |value: Value| {
                    let next = known.len() as u64;
                    *known.entry(format!("{value:?}")).or_insert(next)
                };
                Self::Numbers((0..other.len()).map(|span| other.value(span)).map(number).collect())
            }
        }
    }

    #[inline]
    fn get(&self, span: u32) -> Key {
        match self {
            Self::Codes { codes, canonical } => match codes[span as usize] {
                NIL => (false, 0),
                code => (true, canonical.as_ref().map_or(code, |canonical| canonical[code as usize]).into()),
            },
            Self::Longs(numbers) => numbers.get(span as usize).map_or((false, 0), |number| (true, number as u64)),
            Self::Numbers(numbers) => (true, numbers[span as usize]),
        }
    }
}

/// Splits one spanset after the other; keeps memory for the next.
#[derive(Default)]
struct Split {
    /// Keys of the groups, in order of appearance.
    keys: Vec<Key>,
    counts: Vec<u32>,
    ends: Vec<u32>,
    known: HashMap<Key, u32>,
    group_of: Vec<u32>,
    sorted: Vec<u32>,
}

impl Split {
    fn run(&mut self, spans: &[u32], keys: &Keys<'_>) {
        self.keys.clear();
        self.counts.clear();
        self.known.clear();
        self.group_of.clear();
        for &span in spans {
            let group = self.group(keys.get(span));
            self.counts[group as usize] += 1;
            self.group_of.push(group);
        }
        self.ends.clear();
        let mut begin = 0;
        for count in &self.counts {
            self.ends.push(begin);
            begin += count;
        }
        self.sorted.resize(spans.len(), 0);
        for (&span, &group) in spans.iter().zip(&self.group_of) {
            let place = &mut self.ends[group as usize];
            self.sorted[*place as usize] = span;
            *place += 1;
        }
    }

    fn group(&mut self, key: Key) -> u32 {
        let found = if self.keys.len() <= FEW {
            self.keys.iter().position(|known| *known == key).map(|group| group as u32)
        } else {
            self.known.get(&key).copied()
        };
        found.unwrap_or_else(|| {
            let group = self.keys.len() as u32;
            self.keys.push(key);
            self.counts.push(0);
            if self.keys.len() == FEW + 1 {
                self.known.extend(self.keys.iter().copied().zip(0..));
            } else if self.keys.len() > FEW {
                self.known.insert(key, group);
            }
            group
        })
    }
}
