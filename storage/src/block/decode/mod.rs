//! Rows to traces (block-format.md §8.7).
//!
//! A leaf comes out of the file as three lists: values, definition levels, repetition levels. [`Rows`] walks all leaves of a row group
//! side by side, the way that Dremel's record assembly does: `SpanID` says how many resources, scopes and spans there are; every other
//! leaf is asked for one entry per element of its list, or for one entry that says that there is none.
//!
//! ```text
//!  meta.json, footer ─► Layout: which leaf is where in this version, and what it stands for
//!                         │  leaves_of(projection) ─► what is fetched and decoded
//!                         ▼                                                │
//!  Rows ◄── insert(leaf) ◄─────────────────────────────────────────────────┘
//!   └─ trace(), span_keys(): one row after the other
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `layout` | the positions of a version's leaves, by name, and how to read a row by them |
//! | `attributes` | the ways in which versions store attributes, and dedicated columns |
//! | `links` | links as they are stored up to vParquet3: one message per span |
//!
//! What the versions have in common is said once: a leaf that a version lacks is one that was not decoded, which is the same as one
//! that the projection did not ask for.
//!
//! The bytes are untrusted: leaves that disagree about the structure are an error. Strings that are not UTF-8, which Tempo stores
//! unseen, are read with U+FFFD in place of what is wrong.

mod attributes;
mod layout;
mod links;

use std::{ops::Range, sync::Arc};

pub(super) use self::layout::Layout;
pub use self::{
    attributes::{json_value, message as message_value},
    links::read as read_links,
};
use super::{
    Trace,
    leaf::{Leaf, Wrong, trace_id},
    nested,
};
use crate::id::{SpanKey, TraceId};

/// Bytes of strings that the rows of one row group may have. A dictionary can claim a multiple of what its bytes are, and here every
/// string is copied out of it.
const MAX_STRING_BYTES: usize = 4 << 30;

/// Decoded leaves of some rows, and how to read them.
#[derive(Debug)]
pub(super) struct Rows {
    layout: Arc<Layout>,
    leaves: Leaves,
    string_bytes: usize,
}

impl Rows {
    /// Room for all leaves, none there.
    pub(super) fn new(layout: Arc<Layout>) -> Self {
        let leaves = Leaves((0..layout.leaves()).map(|_| None).collect());
        Self { layout, leaves, string_bytes: 0 }
    }

    /// Adds a decoded leaf.
    pub(super) fn insert(&mut self, position: usize, leaf: Leaf) {
        self.string_bytes = self.string_bytes.saturating_add(leaf.string_bytes());
        self.leaves.0[position] = Some(leaf);
    }

    fn begin_row(&self) -> Result<(), Wrong> {
        if self.string_bytes > MAX_STRING_BYTES {
            return Err(format!("strings of {} bytes are more than a row group may have", self.string_bytes));
        }
        if self.leaves.0.iter().flatten().any(|leaf| leaf.repetition() != 0) {
            return Err("leaves disagree about the end of a row".to_owned());
        }
        Ok(())
    }

    /// The next row.
    ///
    /// # Errors
    /// What is wrong with the leaves.
    pub(super) fn trace(&mut self) -> Result<Trace, Wrong> {
        self.begin_row()?;
        self.layout.trace(&mut self.leaves)
    }

    /// Identities of the spans of the next row; needs only the leaves of [`Layout::key_leaves`].
    ///
    /// # Errors
    /// What is wrong with the leaves.
    pub(super) fn span_keys(&mut self) -> Result<(TraceId, Vec<SpanKey>), Wrong> {
        self.begin_row()?;
        let [trace, span, kind] = self.layout.key_leaves();
        let id = trace_id(self.leaves.get(trace)?.bytes()?);
        let mut keys = Vec::new();
        loop {
            let span_id = self.leaves.get(span)?.optional_bytes()?.map(nested::key);
            let kind = self.leaves.get(kind)?.optional_long()?;
            if let (Some(span_id), Some(kind)) = (span_id, kind) {
                keys.push(SpanKey { span_id, kind: kind as i32 });
            }
            if self.leaves.get(span)?.repetition() == 0 {
                return Ok((id, keys));
            }
        }
    }
}

/// Leaves by position, as far as they were decoded.
#[derive(Debug)]
struct Leaves(Vec<Option<Leaf>>);

impl Leaves {
    #[inline]
    fn get(&mut self, position: usize) -> Result<&mut Leaf, Wrong> {
        self.0[position].as_mut().ok_or_else(|| format!("leaf {position} was not decoded"))
    }

    #[inline]
    fn has(&self, position: usize) -> bool {
        self.0[position].is_some()
    }

    /// Uses up the entry in which each of the leaves says that there is no element.
    fn skip(&mut self, positions: Range<usize>) -> Result<(), Wrong> {
        self.0[positions].iter_mut().flatten().try_for_each(|leaf| match leaf.next()? {
            None => Ok(()),
            Some(_) => Err("leaves disagree about the structure of a row".to_owned()),
        })
    }

    fn bytes(&mut self, position: usize) -> Result<Vec<u8>, Wrong> {
        Ok(self.get(position)?.bytes()?.to_vec())
    }

    fn text(&mut self, position: usize) -> Result<String, Wrong> {
        Ok(text(self.get(position)?.bytes()?))
    }

    fn long(&mut self, position: usize) -> Result<i64, Wrong> {
        self.get(position)?.optional_long()?.ok_or_else(|| "a required leaf has no value".to_owned())
    }

    /// A count that the version or the projection may lack.
    fn count(&mut self, position: Option<usize>) -> Result<u32, Wrong> {
        match position {
            Some(position) if self.has(position) => self.long(position).map(|value| value as u32),
            _ => Ok(0),
        }
    }
}

/// A string, with U+FFFD in place of what is not UTF-8.
#[inline]
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes).into_owned(), str::to_owned)
}
