//! Vectors from values that come one after the other, of whatever type.

use std::{collections::HashMap, sync::Arc};

use super::vector::{Dictionary, NIL, Numbers, Texts, Vector};
use crate::traceql::Value;

/// A vector that grows. It has the type of the values so far; a value of another type makes it [`Vector::Mixed`].
#[derive(Debug)]
pub(crate) struct Builder {
    vector: Vector,
    /// Numbers of the strings of a vector of texts.
    codes: HashMap<String, u32>,
    dictionary: Dictionary,
}

impl Default for Builder {
    fn default() -> Self {
        Self { vector: Vector::Nil(0), codes: HashMap::new(), dictionary: Dictionary::default() }
    }
}

/// `count` spans without value.
fn absent<T: Copy + Default>(count: usize) -> Numbers<T> {
    Numbers { values: vec![T::default(); count], present: (count > 0).then(|| vec![false; count]) }
}

impl<T: Copy + Default> Numbers<T> {
    fn push(&mut self, value: Option<T>) {
        if value.is_none() && self.present.is_none() {
            self.present = Some(vec![true; self.values.len()]);
        }
        if let Some(present) = &mut self.present {
            present.push(value.is_some());
        }
        self.values.push(value.unwrap_or_default());
    }
}

impl Builder {
    /// Adds a span without value.
    pub(crate) fn push_nil(&mut self) {
        match &mut self.vector {
            Vector::Nil(count) => *count += 1,
            Vector::Text(texts) => texts.codes.push(NIL),
            Vector::Int(numbers) | Vector::Duration(numbers) => numbers.push(None),
            Vector::Float(numbers) => numbers.push(None),
            Vector::Bool(numbers) => numbers.push(None),
            Vector::Status(_) | Vector::Kind(_) => self.push_mixed(Value::Nil),
            Vector::Mixed(values) => values.push(Value::Nil),
        }
    }

    /// Adds a string.
    pub(crate) fn push_text(&mut self, text: &str) {
        if let Vector::Nil(count) = self.vector {
            self.vector = Vector::Text(Texts { codes: vec![NIL; count], dictionary: Arc::default() });
        }
        let Vector::Text(texts) = &mut self.vector else {
            return self.push_mixed(Value::String(text.to_owned()));
        };
        let code = match self.codes.get(text) {
            Some(&code) => code,
            None => {
                let code = self.dictionary.push(text);
                self.codes.insert(text.to_owned(), code);
                code
            }
        };
        texts.codes.push(code);
    }

    /// Adds a value.
    pub(crate) fn push(&mut self, value: Value) {
        if let Vector::Nil(count) = self.vector {
            self.vector = match &value {
                Value::Int(_) => Vector::Int(absent(count)),
                Value::Float(_) => Vector::Float(absent(count)),
                Value::Bool(_) => Vector::Bool(absent(count)),
                Value::Duration(_) => Vector::Duration(absent(count)),
                Value::Status(_) if count == 0 => Vector::Status(Vec::new()),
                Value::Kind(_) if count == 0 => Vector::Kind(Vec::new()),
                Value::Status(_) | Value::Kind(_) | Value::Array(_) => Vector::Mixed(vec![Value::Nil; count]),
                Value::Nil | Value::String(_) => Vector::Nil(count),
            };
        }
        match (&mut self.vector, value) {
            (_, Value::Nil) => self.push_nil(),
            (Vector::Nil(_) | Vector::Text(_), Value::String(text)) => self.push_text(&text),
            (Vector::Int(numbers), Value::Int(number)) | (Vector::Duration(numbers), Value::Duration(number)) => numbers.push(Some(number)),
            (Vector::Float(numbers), Value::Float(number)) => numbers.push(Some(number)),
            (Vector::Bool(numbers), Value::Bool(value)) => numbers.push(Some(value)),
            (Vector::Status(values), Value::Status(value)) => values.push(value),
            (Vector::Kind(values), Value::Kind(value)) => values.push(value),
            (_, value) => self.push_mixed(value),
        }
    }

    fn push_mixed(&mut self, value: Value) {
        if !matches!(self.vector, Vector::Mixed(_)) {
            let so_far = std::mem::take(self).finish();
            self.vector = Vector::Mixed((0..so_far.len()).map(|span| so_far.value(span)).collect());
        }
        if let Vector::Mixed(values) = &mut self.vector {
            values.push(value);
        }
    }

    /// The vector.
    pub(crate) fn finish(mut self) -> Vector {
        if let Vector::Text(texts) = &mut self.vector {
            texts.dictionary = Arc::new(self.dictionary);
        }
        self.vector
    }
}

impl FromIterator<Value> for Vector {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        let mut builder = Builder::default();
        values.into_iter().for_each(|value| builder.push(value));
        builder.finish()
    }
}

impl<'a> FromIterator<Option<&'a str>> for Vector {
    fn from_iter<I: IntoIterator<Item = Option<&'a str>>>(values: I) -> Self {
        let mut builder = Builder::default();
        values.into_iter().for_each(|value| match value {
            Some(text) => builder.push_text(text),
            None => builder.push_nil(),
        });
        builder.finish()
    }
}
