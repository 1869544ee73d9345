//! Which records something came from, over all logs of a generation.
//!
//! A position says nothing without its log. Inside the dataflow the log is written into the upper bits of the position that each segment
//! carries anyway ([`place`]): the number of the process that feeds it. A process on its own is number 0, and its places are positions.
//! A log of 2⁵⁴ bytes (18 PB) would be too long.

use serde::{Deserialize, Serialize};
use storage::wal::Position;

use crate::manifest::Range;

const BITS: u32 = 54;

/// The place of a record: its log and where it begins there.
pub(crate) fn place(log: usize, position: Position) -> Position {
    Position((log as u64) << BITS | position.0)
}

/// The log of a [`place`].
pub(crate) fn log_of(place: Position) -> usize {
    (place.0 >> BITS) as usize
}

/// Where a [`place`] is in its log.
pub(crate) fn position_of(place: Position) -> Position {
    Position(place.0 & ((1 << BITS) - 1))
}

/// By log: the first and the last record that something came from. Mostly of one log or a few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records(Vec<(usize, Range)>);

impl Records {
    /// The records at some places.
    pub(crate) fn of(places: impl IntoIterator<Item = Position>) -> Self {
        let mut records = Self::default();
        places.into_iter().for_each(|place| records.add(place));
        records
    }

    /// One more.
    pub(crate) fn add(&mut self, place: Position) {
        let position = position_of(place);
        self.widen(log_of(place), Range { first: position, last: position });
    }

    fn widen(&mut self, log: usize, range: Range) {
        match self.0.iter_mut().find(|(there, _)| *there == log) {
            Some((_, there)) => *there = Range { first: there.first.min(range.first), last: there.last.max(range.last) },
            None => self.0.push((log, range)),
        }
    }

    /// Logs and ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, Range)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_kept_apart() {
        let places = [(3, 70), (0, 9), (3, 20), (0, 11), (1, 1)].map(|(log, position)| place(log, Position(position)));
        let records = Records::of(places);
        let range = |first, last| Range { first: Position(first), last: Position(last) };
        assert_eq!(records.iter().collect::<Vec<_>>(), [(3, range(20, 70)), (0, range(9, 11)), (1, range(1, 1))]);
        assert_eq!(places.map(log_of), [3, 0, 3, 0, 1]);
        assert_eq!(place(0, Position(77)), Position(77));
    }
}
