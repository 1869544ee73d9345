//! Logical time: ticks of arrival time.
//!
//! A tick is a number of whole [`Ticks::length`]s since the Unix epoch. It is taken from when a record was appended to the log, never
//! from when it is processed, and it never goes back: while the clock is behind the last tick, ticks go on at the pace of time itself.

use std::time::Duration;

/// Converts between durations and ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    length: Duration,
}

impl Ticks {
    /// Ticks of this length; at least one millisecond.
    pub fn new(length: Duration) -> Self {
        Self { length: length.max(Duration::from_millis(1)) }
    }

    /// Length of a tick.
    pub fn length(self) -> Duration {
        self.length
    }

    /// The tick that a time since the Unix epoch lies in.
    pub fn at(self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() / self.length.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many ticks a duration takes, rounded up, at least one.
    pub fn spanning(self, duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos().div_ceil(self.length.as_nanos())).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_up_and_times_round_down() {
        let ticks = Ticks::new(Duration::from_millis(250));
        assert_eq!(ticks.at(Duration::from_millis(1249)), 4);
        assert_eq!(ticks.spanning(Duration::from_millis(251)), 2);
        assert_eq!(ticks.spanning(Duration::ZERO), 1);
    }
}
