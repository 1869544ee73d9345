//! Arrays of typed values: what a field is of every span of a batch.
//!
//! ```text
//!  Text   codes 0 1 0 NIL 2     dictionary "cart" "shop" "pay"
//!  Int    values 7 0 9 0 1      present 1 0 1 0 1              (none: all are)
//!  Mixed  Value Value Nil …     several types under one name, and arrays
//! ```
//!
//! Typed arrays are what loops run over. [`Vector::Mixed`] is for what is rare: it costs an enum per span, and is always right.

use std::{borrow::Cow, sync::Arc};

use storage::block::column::Strings;

use crate::traceql::{Kind, Status, Value, scalar::Scalar};

/// The code of a span without value.
pub const NIL: u32 = u32::MAX;

/// Strings by number; all are UTF-8. A string may stand there more than once, and some may not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dictionary(Arc<Strings>);

impl Dictionary {
    /// The strings of a block's dictionary, with U+FFFD in place of what is not UTF-8.
    pub(crate) fn new(strings: Arc<Strings>) -> Self {
        if strings.iter().all(|string| string.is_ascii() || std::str::from_utf8(string).is_ok()) {
            return Self(strings);
        }
        let mut lossy = Self::default();
        strings.iter().for_each(|string| {
            lossy.push(&String::from_utf8_lossy(string));
        });
        lossy
    }

    /// Appends a string and returns its number; [`NIL`] when all strings together would have 4 GiB.
    pub(crate) fn push(&mut self, string: &str) -> u32 {
        let code = self.0.len() as u32;
        if code < NIL && Arc::make_mut(&mut self.0).push(string.as_bytes()).is_ok() { code } else { NIL }
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A string.
    ///
    /// # Panics
    /// There are not so many.
    pub fn text(&self, code: u32) -> &str {
        std::str::from_utf8(self.0.get(code as usize)).unwrap_or_default()
    }

    /// The bytes of a string.
    ///
    /// # Panics
    /// There are not so many.
    pub fn bytes_of(&self, code: u32) -> &[u8] {
        self.0.get(code as usize)
    }

    /// All strings, in order of their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.iter()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.0.bytes() + 4 * self.0.len()
    }
}

/// Strings as numbers of a dictionary.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    /// Number of the string of every span; [`NIL`] where there is none.
    pub codes: Vec<u32>,
    /// The strings.
    pub dictionary: Arc<Dictionary>,
}

/// Values of a fixed size.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers<T> {
    /// Values; anything where there is none.
    pub values: Vec<T>,
    /// Which spans have one; all when absent.
    pub present: Option<Vec<bool>>,
}

impl<T: Copy> Numbers<T> {
    /// A value for every span.
    pub(crate) fn all(values: Vec<T>) -> Self {
        Self { values, present: None }
    }

    /// A value.
    ///
    /// # Panics
    /// There are not so many spans.
    #[inline]
    pub fn get(&self, span: usize) -> Option<T> {
        let there = self.present.as_ref().is_none_or(|present| present[span]);
        there.then_some(self.values[span])
    }

    fn bytes(&self) -> usize {
        self.values.len() * (size_of::<T>() + usize::from(self.present.is_some()))
    }
}

/// One value per span, or per event or link.
#[derive(Clone, Debug, PartialEq)]
pub enum Vector {
    /// So many spans, none of which has a value.
    Nil(usize),
    /// Strings.
    Text(Texts),
    /// Integers.
    Int(Numbers<i64>),
    /// Doubles.
    Float(Numbers<f64>),
    /// Booleans.
    Bool(Numbers<bool>),
    /// Nanoseconds.
    Duration(Numbers<i64>),
    /// Status; every span has one.
    Status(Vec<Status>),
    /// Kind; every span has one.
    Kind(Vec<Kind>),
    /// Several types, and arrays. Absent ones are [`Value::Nil`].
    Mixed(Vec<Value>),
}

impl Vector {
    /// Number of spans.
    pub fn len(&self) -> usize {
        match self {
            Self::Nil(spans) => *spans,
            Self::Text(texts) => texts.codes.len(),
            Self::Int(numbers) | Self::Duration(numbers) => numbers.values.len(),
            Self::Float(numbers) => numbers.values.len(),
            Self::Bool(numbers) => numbers.values.len(),
            Self::Status(values) => values.len(),
            Self::Kind(values) => values.len(),
            Self::Mixed(values) => values.len(),
        }
    }

    /// Whether there are no spans.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a span has a value.
    ///
    /// # Panics
    /// There are not so many spans; so for all that follow.
    pub fn is_nil(&self, span: usize) -> bool {
        match self {
            Self::Nil(_) => true,
            Self::Text(texts) => texts.codes[span] == NIL,
            Self::Int(numbers) | Self::Duration(numbers) => numbers.get(span).is_none(),
            Self::Float(numbers) => numbers.get(span).is_none(),
            Self::Bool(numbers) => numbers.get(span).is_none(),
            Self::Status(_) | Self::Kind(_) => false,
            Self::Mixed(values) => values[span] == Value::Nil,
        }
    }

    /// The value of a span, borrowed where it is text or an array.
    pub fn get(&self, span: usize) -> Cow<'_, Value> {
        match self {
            Self::Mixed(values) => Cow::Borrowed(&values[span]),
            _ => Cow::Owned(self.value(span)),
        }
    }

    /// The value of a span; [`Value::Nil`] where there is none.
    pub fn value(&self, span: usize) -> Value {
        match self {
            Self::Nil(_) => Value::Nil,
            Self::Text(_) => self.text(span).map_or(Value::Nil, |text| Value::String(text.to_owned())),
            Self::Int(numbers) => numbers.get(span).map_or(Value::Nil, Value::Int),
            Self::Duration(numbers) => numbers.get(span).map_or(Value::Nil, Value::Duration),
            Self::Float(numbers) => numbers.get(span).map_or(Value::Nil, Value::Float),
            Self::Bool(numbers) => numbers.get(span).map_or(Value::Nil, Value::Bool),
            Self::Status(values) => Value::Status(values[span]),
            Self::Kind(values) => Value::Kind(values[span]),
            Self::Mixed(values) => values[span].clone(),
        }
    }

    /// The text of a span, if its value is one.
    pub fn text(&self, span: usize) -> Option<&str> {
        match self {
            Self::Text(Texts { codes, dictionary }) if codes[span] != NIL => Some(dictionary.text(codes[span])),
            Self::Mixed(values) => match &values[span] {
                Value::String(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// The value of a span.
    pub(crate) fn scalar(&self, span: usize) -> Scalar<'_> {
        match self {
            Self::Nil(_) => Scalar::Nil,
            Self::Text(_) => self.text(span).map_or(Scalar::Nil, Scalar::Text),
            Self::Int(numbers) => numbers.get(span).map_or(Scalar::Nil, Scalar::Int),
            Self::Duration(numbers) => numbers.get(span).map_or(Scalar::Nil, Scalar::Duration),
            Self::Float(numbers) => numbers.get(span).map_or(Scalar::Nil, Scalar::Float),
            Self::Bool(numbers) => numbers.get(span).map_or(Scalar::Nil, Scalar::Bool),
            Self::Status(values) => Scalar::Status(values[span]),
            Self::Kind(values) => Scalar::Kind(values[span]),
            Self::Mixed(values) => Scalar::from(&values[span]),
        }
    }

    /// Integers, floats and durations (in nanoseconds) as a float.
    pub fn number(&self, span: usize) -> Option<f64> {
        match self {
            Self::Int(numbers) | Self::Duration(numbers) => numbers.get(span).map(|number| number as f64),
            Self::Float(numbers) => numbers.get(span),
            Self::Mixed(values) => match &values[span] {
                Value::Int(number) | Value::Duration(number) => Some(*number as f64),
                Value::Float(number) => Some(*number),
                _ => None,
            },
            _ => None,
        }
    }

    /// Each value as often as its range says: those of resources for their spans.
    pub(crate) fn spread(&self, offsets: &[u32]) -> Self {
        fn repeat<T: Copy>(values: &[T], offsets: &[u32]) -> Vec<T> {
            let mut spread = Vec::with_capacity(offsets.last().map_or(0, |&end| end as usize));
            for (&value, range) in values.iter().zip(offsets.windows(2)) {
                spread.resize(range[1] as usize, value);
            }
            spread
        }
        fn numbers<T: Copy>(numbers: &Numbers<T>, offsets: &[u32]) -> Numbers<T> {
            let present = numbers.present.as_ref().map(|present| repeat(present, offsets));
            Numbers { values: repeat(&numbers.values, offsets), present }
        }
        match self {
            Self::Nil(_) => Self::Nil(offsets.last().map_or(0, |&end| end as usize)),
            Self::Text(Texts { codes, dictionary }) => {
                Self::Text(Texts { codes: repeat(codes, offsets), dictionary: Arc::clone(dictionary) })
            }
            Self::Int(values) => Self::Int(numbers(values, offsets)),
            Self::Float(values) => Self::Float(numbers(values, offsets)),
            Self::Bool(values) => Self::Bool(numbers(values, offsets)),
            Self::Duration(values) => Self::Duration(numbers(values, offsets)),
            Self::Status(values) => Self::Status(repeat(values, offsets)),
            Self::Kind(values) => Self::Kind(repeat(values, offsets)),
            Self::Mixed(values) => {
                let repeated = values.iter().zip(offsets.windows(2)).map(|(value, range)| (value, range[1] - range[0]));
                Self::Mixed(repeated.flat_map(|(value, count)| std::iter::repeat_n(value.clone(), count as usize)).collect())
            }
        }
    }

    /// These values, and where there is none, other ones; nothing where `closed`.
    pub(crate) fn or(self, other: Self, closed: Option<&[bool]>) -> Self {
        let is_closed = |span: usize| closed.is_some_and(|closed| closed[span]);
        match (self, other) {
            (Self::Nil(_), other) if closed.is_none() => other,
            (this, Self::Nil(_)) => this,
            (Self::Text(mut this), Self::Text(other)) => {
                let mut dictionary = Arc::unwrap_or_clone(this.dictionary);
                let begin = dictionary.len() as u32;
                for code in 0..other.dictionary.len() as u32 {
                    dictionary.push(other.dictionary.text(code));
                }
                for (span, (code, &instead)) in this.codes.iter_mut().zip(&other.codes).enumerate() {
                    if *code == NIL && instead != NIL && !is_closed(span) {
                        *code = begin + instead;
                    }
                }
                Self::Text(Texts { codes: this.codes, dictionary: Arc::new(dictionary) })
            }
            (this, other) => (0..this.len())
                .map(|span| if this.is_nil(span) && !is_closed(span) { other.value(span) } else { this.value(span) })
                .collect(),
        }
    }

    /// Of the elements of each span, the last value that is there.
    pub(crate) fn last_of_each(&self, offsets: &[u32]) -> Self {
        let last = |range: &[u32]| (range[0] as usize..range[1] as usize).rev().find(|&element| !self.is_nil(element));
        self.take(offsets.windows(2).map(last))
    }

    /// Of each range of elements the first one that has a value.
    pub(crate) fn first_of_each(&self, offsets: &[u32]) -> Self {
        let first = |range: &[u32]| (range[0] as usize..range[1] as usize).find(|&element| !self.is_nil(element));
        self.take(offsets.windows(2).map(first))
    }

    /// The values at some places.
    pub(crate) fn take(&self, places: impl Iterator<Item = Option<usize>>) -> Self {
        if let Self::Text(Texts { codes, dictionary }) = self {
            let codes = places.map(|place| place.map_or(NIL, |place| codes[place])).collect();
            return Self::Text(Texts { codes, dictionary: Arc::clone(dictionary) });
        }
        places.map(|place| place.map_or(Value::Nil, |place| self.value(place))).collect()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Nil(_) => 0,
            Self::Text(texts) => 4 * texts.codes.len() + texts.dictionary.bytes(),
            Self::Int(numbers) | Self::Duration(numbers) => numbers.bytes(),
            Self::Float(numbers) => numbers.bytes(),
            Self::Bool(numbers) => numbers.bytes(),
            Self::Status(values) => values.len(),
            Self::Kind(values) => values.len(),
            Self::Mixed(values) => values.iter().map(value_bytes).sum(),
        }
    }
}

fn value_bytes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            _ => 0,
        }
}
