//! A cursor over a column, for putting rows together.

pub(super) use super::column::Wrong;
use super::column::{Column, Values};
use crate::id::TraceId;

/// The entries of a column, and how far they have been used.
#[derive(Debug)]
pub(super) struct Leaf {
    column: Column,
    entry: usize,
    value: usize,
}

impl Leaf {
    /// A cursor before the first entry.
    pub(super) fn new(column: Column) -> Self {
        Self { column, entry: 0, value: 0 }
    }

    /// Bytes that all its strings have, each counted as often as it occurs.
    pub(super) fn string_bytes(&self) -> usize {
        self.column.values.string_bytes()
    }

    pub(super) fn definition(&self) -> Option<i16> {
        if self.column.max_definition > 0 { self.column.definition.get(self.entry).map(|&level| level.into()) } else { Some(0) }
    }

    /// Repetition level of the next entry; 0 at the end, where a new row would begin.
    pub(super) fn repetition(&self) -> i16 {
        self.column.repetition.get(self.entry).map_or(0, |&level| level.into())
    }

    /// How many elements of a list are ahead: the next entry's, and those after it that begin at `level`, which is the deepest of the leaf.
    #[inline]
    pub(super) fn elements(&self, level: i16) -> usize {
        let further = self.column.repetition.get(self.entry + 1..).unwrap_or_default();
        1 + further.iter().take_while(|&&repetition| i16::from(repetition) == level).count()
    }

    /// Uses up an entry and returns the position of its value, if it has one.
    pub(super) fn next(&mut self) -> Result<Option<usize>, Wrong> {
        let definition = self.definition().ok_or_else(|| "a leaf has fewer entries than its structure".to_owned())?;
        self.entry += 1;
        if definition != i16::from(self.column.max_definition) {
            return Ok(None);
        }
        self.value += 1;
        Ok(Some(self.value - 1))
    }

    pub(super) fn bytes(&mut self) -> Result<&[u8], Wrong> {
        self.optional_bytes()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    pub(super) fn optional_bytes(&mut self) -> Result<Option<&[u8]>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        self.column.values.string(at).map(Some).ok_or_else(|| LACKS.to_owned())
    }

    pub(super) fn optional_long(&mut self) -> Result<Option<i64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.column.values {
            Values::Long(values) => values.get(at).copied().map(Some).ok_or_else(|| LACKS.to_owned()),
            _ => Err(TYPE.to_owned()),
        }
    }

    pub(super) fn double(&mut self) -> Result<Option<f64>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.column.values {
            Values::Double(values) => values.get(at).copied().map(Some).ok_or_else(|| LACKS.to_owned()),
            _ => Err(TYPE.to_owned()),
        }
    }

    pub(super) fn bool(&mut self) -> Result<Option<bool>, Wrong> {
        let Some(at) = self.next()? else { return Ok(None) };
        match &self.column.values {
            Values::Bool(values) => values.get(at).copied().map(Some).ok_or_else(|| LACKS.to_owned()),
            _ => Err(TYPE.to_owned()),
        }
    }
}

const LACKS: &str = "a leaf has fewer values of its type than entries";
const TYPE: &str = "a leaf has the wrong type";

/// Trace ids of other lengths are padded on the left or cut to the last sixteen bytes.
pub(super) fn trace_id(bytes: &[u8]) -> TraceId {
    let mut id = [0; 16];
    let kept = &bytes[bytes.len().saturating_sub(16)..];
    id[16 - kept.len()..].copy_from_slice(kept);
    TraceId(id)
}
