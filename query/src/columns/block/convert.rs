//! From a leaf's column to a vector: one value per element of the list that the leaf's values belong to.

use std::sync::Arc;

use storage::block::column::{Column, Strings, Values};

use super::super::{
    builder::Builder,
    live::array_of,
    vector::{Dictionary, NIL, Numbers, Texts, Vector},
};
use crate::traceql::Value;

/// Strings as numbers of a dictionary. Strings without dictionary are their own.
pub(super) fn codes(values: Values) -> Option<(Vec<u32>, Arc<Strings>)> {
    match values {
        Values::Codes { codes, dictionary } => Some((codes, dictionary)),
        Values::Bytes(strings) => Some(((0..strings.len() as u32).collect(), Arc::new(strings))),
        _ => None,
    }
}

/// The values as they are, one per entry of the vector.
pub(super) fn dense(values: Values) -> Vector {
    match values {
        Values::Long(values) => Vector::Int(Numbers::all(values)),
        Values::Double(values) => Vector::Float(Numbers::all(values)),
        Values::Bool(values) => Vector::Bool(Numbers::all(values)),
        strings => match codes(strings) {
            Some((codes, dictionary)) => Vector::Text(Texts { codes, dictionary: Arc::new(dictionary_of(dictionary)) }),
            None => Vector::Nil(0),
        },
    }
}

/// A dictionary that is UTF-8.
pub(super) fn dictionary_of(strings: Arc<Strings>) -> Dictionary {
    Dictionary::new(strings)
}

/// Spreads values over those entries that have one.
pub(super) fn sparse(values: Values, present: Vec<bool>) -> Vector {
    fn spread<T: Copy + Default>(values: &[T], present: Vec<bool>) -> Numbers<T> {
        let mut next = values.iter();
        let values = present.iter().map(|&there| if there { next.next().copied().unwrap_or_default() } else { T::default() }).collect();
        Numbers { values, present: Some(present) }
    }
    match dense(values) {
        Vector::Int(numbers) => Vector::Int(spread(&numbers.values, present)),
        Vector::Float(numbers) => Vector::Float(spread(&numbers.values, present)),
        Vector::Bool(numbers) => Vector::Bool(spread(&numbers.values, present)),
        Vector::Text(Texts { codes, dictionary }) => {
            let mut next = codes.iter();
            let codes = present.iter().map(|&there| if there { next.next().copied().unwrap_or(NIL) } else { NIL }).collect();
            Vector::Text(Texts { codes, dictionary })
        }
        _ => Vector::Nil(present.len()),
    }
}

/// One value per element of the list with this level; several are an array.
pub(super) fn of_elements(column: Column, level: u8) -> Vector {
    let Column { repetition, definition, values, max_definition, max_repetition, .. } = column;
    if max_definition == level {
        return dense(values);
    }
    let further = max_repetition > level && repetition.contains(&max_repetition);
    if !further {
        if definition.is_empty() {
            return dense(values);
        }
        let present: Vec<bool> =
            definition.iter().filter(|&&level_of| level_of >= level).map(|&level_of| level_of == max_definition).collect();
        return if present.contains(&true) { sparse(values, present) } else { Vector::Nil(present.len()) };
    }
    let values = dense(values);
    let mut builder = Builder::default();
    let mut elements: Option<Vec<Value>> = None;
    let mut next = 0;
    for (&repetition, &definition) in repetition.iter().zip(&definition) {
        if repetition < max_repetition {
            if let Some(elements) = elements.take() {
                builder.push(array_of(elements));
            }
            elements = (definition >= level).then(Vec::new);
        }
        if definition == max_definition {
            if let Some(elements) = &mut elements {
                elements.push(values.value(next));
            }
            next += 1;
        }
    }
    if let Some(elements) = elements {
        builder.push(array_of(elements));
    }
    builder.finish()
}
