//! The time axis of a query: which intervals there are, and into which one a span falls.
//!
//! ```text
//!  start'      start                         end    end'
//!    |-----------|·--------|---------|--------·|          interval i is (start' + i·step, start' + (i+1)·step]
//!                ▲ first sample                ▲ last sample, both at right edges
//! ```
//!
//! A range is widened to whole steps since the Unix epoch and by one more step in front, so that the first sample covers what lies before
//! `start`. An instant query is one interval, as given. A span counts where it starts.

use std::time::Duration;

/// Why there is no time axis. The texts are Tempo's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The range is empty, or too close to the end of time to be widened.
    #[error("end must be greater than start")]
    Empty,
    /// A step of nothing.
    #[error("step must be greater than 0")]
    NoStep,
    /// Too many intervals.
    #[error("step of {} is too small, minimum step for given range is {}", go(*.step), go(*.minimum))]
    TooSmall {
        /// Step as asked for.
        step: u64,
        /// The smallest step that gives no more intervals than allowed.
        minimum: u64,
    },
}

fn go(nanos: u64) -> String {
    crate::duration::to_go(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// Intervals, each open to the left and closed to the right. All times are Unix nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Left edge of the first interval, which does not belong to it.
    start: u64,
    /// Length of an interval; never 0.
    step: u64,
    /// Number of intervals; never 0.
    intervals: usize,
}

impl Window {
    /// The intervals of a range query. `max_intervals` of 0 means any number.
    ///
    /// # Errors
    /// There is no interval, or there are too many.
    pub fn range(start: u64, end: u64, step: u64, max_intervals: u64) -> Result<Self, WindowError> {
        if start > end {
            return Err(WindowError::Empty);
        }
        let too_many = |range: u64| max_intervals > 0 && (step == 0 || range / step > max_intervals);
        if too_many(end - start) {
            let minimum = (end - start).div_ceil(max_intervals);
            return Err(WindowError::TooSmall { step, minimum });
        }
        if step == 0 {
            return Err(WindowError::NoStep);
        }
        let first = start - start % step;
        let last = end.div_ceil(step).checked_mul(step).ok_or(WindowError::Empty)?;
        if first == last {
            return Err(WindowError::Empty);
        }
        let start = first.saturating_sub(step);
        let intervals = usize::try_from((last - start) / step).map_err(|_| WindowError::Empty)?;
        Ok(Self { start, step, intervals })
    }

    /// The intervals of a range that is made of whole steps, as parts of other queries are; one that is not is widened to whole steps. Unlike
    /// [`Window::range`] without a step in front.
    ///
    /// # Errors
    /// There is no interval, or there are too many.
    pub fn aligned(start: u64, end: u64, step: u64, max_intervals: u64) -> Result<Self, WindowError> {
        // The first step of the range is the one in front.
        let first = (step > 0).then(|| (start - start % step).checked_add(step));
        match first {
            None => Err(WindowError::NoStep),
            Some(None) => Err(WindowError::Empty),
            Some(Some(_)) if start >= end => Err(WindowError::Empty),
            // A single interval.
            Some(Some(first)) if first >= end => Ok(Self { start: first - step, step, intervals: 1 }),
            Some(Some(first)) => Self::range(first, end, step, max_intervals),
        }
    }

    /// The one interval of an instant query.
    ///
    /// # Errors
    /// It is empty.
    pub fn instant(start: u64, end: u64) -> Result<Self, WindowError> {
        match end.checked_sub(start) {
            None | Some(0) => Err(WindowError::Empty),
            Some(step) => Ok(Self { start, step, intervals: 1 }),
        }
    }

    /// The step when the client does not say: about 240 samples.
    pub fn default_step(start: u64, end: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        const SMALLEST: u64 = SECOND / 20;
        let range = end.saturating_sub(start);
        let step = range / 240;
        if range < 60 * SECOND {
            return (step - step % SMALLEST).max(SMALLEST);
        }
        let grains = [3600, 300, 60, 15, 5, 1].map(|seconds| seconds * SECOND);
        grains.into_iter().find(|grain| step > *grain).map_or(SECOND, |grain| step - step % grain)
    }

    /// Number of intervals.
    pub fn intervals(&self) -> usize {
        self.intervals
    }

    /// Length of an interval in nanoseconds; never 0.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Length of an interval in seconds.
    pub fn step_seconds(&self) -> f64 {
        Duration::from_nanos(self.step).as_secs_f64()
    }

    /// The latest time that does not count any more, and the latest that does.
    pub fn bounds(&self) -> (u64, u64) {
        (self.start, self.start + self.step * self.intervals as u64)
    }

    /// The interval of a time.
    #[inline]
    pub fn interval(&self, time: u64) -> Option<usize> {
        // Times at or before the start wrap around and are too large.
        let interval = time.wrapping_sub(self.start).wrapping_sub(1) / self.step;
        (interval < self.intervals as u64).then_some(interval as usize)
    }

    /// The left edge of an interval, which does not belong to it, and the right one, which does.
    pub(super) fn edges(&self, interval: usize) -> (u64, u64) {
        let left = self.start + self.step * interval as u64;
        (left, left + self.step)
    }

    /// When the sample of an interval is, in Unix milliseconds: at its end.
    pub fn timestamp_ms(&self, interval: usize) -> i64 {
        let edge = self.start + self.step * (interval as u64 + 1);
        i64::try_from(edge / 1_000_000).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const BASE: u64 = 1_699_999_200 * SECOND;

    #[test]
    fn aligned_ranges_are_taken_as_they_are() {
        let step = 10 * SECOND;
        for (start, end, expected) in [
            (BASE, BASE + 3 * step, (BASE, BASE + 3 * step)),
            (BASE, BASE + step, (BASE, BASE + step)),
            (BASE + 1, BASE + step - 1, (BASE, BASE + step)),
            (BASE + 1, BASE + step + 1, (BASE, BASE + 2 * step)),
            (0, step, (0, step)),
        ] {
            let window = Window::aligned(start, end, step, 100).expect("intervals");
            assert_eq!((window.bounds(), window.step()), (expected, step), "{start} {end}");
        }
        assert_eq!(Window::aligned(BASE, BASE, step, 0), Err(WindowError::Empty));
        assert_eq!(Window::aligned(BASE, BASE + 1, 0, 0), Err(WindowError::NoStep));
        assert_eq!(Window::aligned(u64::MAX - 1, u64::MAX, step, 0), Err(WindowError::Empty));
        assert!(matches!(Window::aligned(BASE, BASE + 9 * step, step, 5), Err(WindowError::TooSmall { .. })));
    }

    #[test]
    fn ranges_are_widened_to_steps_and_by_one_more() {
        let window = Window::range(BASE + 25 * SECOND, BASE + 55 * SECOND, 10 * SECOND, 0).expect("valid");
        assert_eq!(window.bounds(), (BASE + 10 * SECOND, BASE + 60 * SECOND));
        let stamps: Vec<i64> = (0..window.intervals()).map(|interval| window.timestamp_ms(interval)).collect();
        assert_eq!(stamps, [20, 30, 40, 50, 60].map(|seconds| (1_699_999_200 + seconds) * 1000));
        assert_eq!(window.interval(BASE + 10 * SECOND), None, "the very start is out");
        assert_eq!(window.interval(BASE + 10 * SECOND + 1), Some(0));
        assert_eq!(window.interval(BASE + 20 * SECOND), Some(0), "a right edge is in");
        assert_eq!(window.interval(BASE + 60 * SECOND), Some(4));
        assert_eq!(window.interval(BASE + 60 * SECOND + 1), None);
        assert_eq!(window.interval(0), None);
    }

    #[test]
    fn an_instant_is_one_interval_as_given() {
        let window = Window::instant(BASE + 7, BASE + 17).expect("valid");
        assert_eq!((window.intervals(), window.bounds()), (1, (BASE + 7, BASE + 17)));
        assert_eq!([7, 8, 17, 18].map(|offset| window.interval(BASE + offset)), [None, Some(0), Some(0), None]);
        assert_eq!(Window::instant(5, 5), Err(WindowError::Empty));
        assert_eq!(Window::instant(6, 5), Err(WindowError::Empty));
    }

    #[test]
    fn what_gives_no_intervals_is_refused_with_tempos_words() {
        let error = |start, end, step| Window::range(start, end, step, 10_000).expect_err("refused").to_string();
        assert_eq!(error(2, 1, 1), "end must be greater than start");
        assert_eq!(error(10 * SECOND, 10 * SECOND, SECOND), "end must be greater than start");
        assert_eq!(error(BASE, BASE + 3600 * SECOND, 1_000_000), "step of 1ms is too small, minimum step for given range is 360ms");
        assert_eq!(error(BASE, BASE + 3600 * SECOND, 0), "step of 0s is too small, minimum step for given range is 360ms");
        assert_eq!(Window::range(1, 2, 0, 0), Err(WindowError::NoStep));
        assert_eq!(Window::range(0, u64::MAX, u64::MAX - 1, 0), Err(WindowError::Empty));
    }

    #[test]
    fn default_steps_are_round() {
        let of = |seconds: u64| Window::default_step(BASE, BASE + seconds * SECOND);
        let (minute, hour) = (60, 3600);
        let day = 24 * hour;
        for (range, milliseconds) in [
            (1, 50),
            (59, 200),
            (minute, 1_000),
            (5 * minute, 1_000),
            (15 * minute, 3_000),
            (30 * minute, 5_000),
            (hour, 15_000),
            (3 * hour, 45_000),
            (6 * hour, 60_000),
            (12 * hour, 180_000),
            (day, 300_000),
            (2 * day, 600_000),
            (7 * day, 2_400_000),
            (14 * day, 3_600_000),
            (30 * day, 10_800_000),
        ] {
            assert_eq!(of(range), milliseconds * 1_000_000, "{range} s");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_in_the_interval_that_its_edges_say(start in 0u64..1_000, length in 1u64..1_000, step in 1u64..50, time in 0u64..2_500) {
            let Ok(window) = Window::range(start, start + length, step, 0) else { return Ok(()) };
            let (low, high) = window.bounds();
            prop_assert!(low <= start && high >= start + length && low % step == 0 && high % step == 0);
            let naive = (0..window.intervals()).find(|i| {
                let left = low + *i as u64 * step;
                left < time && time <= left + step
            });
            prop_assert_eq!(window.interval(time), naive);
        }
    }
}
