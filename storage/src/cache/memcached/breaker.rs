//! Leaving a server alone once it failed, so that a dead one costs its time-out only once.
//!
//! ```text
//!  closed ──failures in a row──► open ──back-off over──► one probe ──well──► closed
//!                                  ▲                         └────badly──► open, for twice as long
//! ```
//!
//! A probe is no caller's request: whoever finds the back-off over is turned away like everybody else and starts a probe that nobody waits
//! for. So after the failures that open it a server costs no caller anything until it answers again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::settings::Memcached;

/// Failures in a row that open a breaker where the configuration says nothing.
const FAILURES: u32 = 3;
/// The first back-off where the configuration says nothing.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// And the longest.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What may be done with a server now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Ask it.
    Go,
    /// Leave it alone.
    Skip,
    /// Leave it alone, but begin a probe.
    Probe,
}

/// The state of one server.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_to_open: u32,
    first_backoff: Duration,
    longest_backoff: Duration,
    /// Failures longer ago do not count; zero is for ever.
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32, since: Option<Instant> },
    Open { until: Instant, backoff: Duration },
}

const FRESH: State = State::Closed { failures: 0, since: None };

impl Breaker {
    pub(super) fn new(settings: &Memcached) -> Self {
        let nonzero = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        Self {
            failures_to_open: Some(settings.circuit_breaker_consecutive_failures).filter(|failures| *failures > 0).unwrap_or(FAILURES),
            first_backoff: nonzero(settings.circuit_breaker_timeout).unwrap_or(FIRST_BACKOFF),
            longest_backoff: nonzero(settings.circuit_breaker_timeout).unwrap_or(LONGEST_BACKOFF),
            interval: settings.circuit_breaker_interval,
            state: Mutex::new(FRESH),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(*self.state.lock(), State::Open { .. })
    }

    /// Asked before every request.
    pub(super) fn admit(&self, now: Instant) -> Admission {
        match &mut *self.state.lock() {
            State::Closed { .. } => Admission::Go,
            State::Open { until, .. } if now < *until => Admission::Skip,
            State::Open { until, backoff } => {
                // Nobody else probes before this one had its time.
                *until = now + *backoff;
                Admission::Probe
            }
        }
    }

    /// The server answered.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        // Most of the time there is nothing to write.
        if !matches!(*state, State::Closed { failures: 0, .. }) {
            *state = FRESH;
        }
    }

    /// The server did not answer a request. Says whether that opened the breaker.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let State::Closed { failures, since } = &mut *state else { return false };
        if !self.interval.is_zero() && since.is_some_and(|since| now.saturating_duration_since(since) > self.interval) {
            *failures = 0;
        }
        if *failures == 0 {
            *since = Some(now);
        }
        *failures += 1;
        let opens = *failures >= self.failures_to_open;
        if opens {
            *state = State::Open { until: now + self.first_backoff, backoff: self.first_backoff };
        }
        opens
    }

    /// The server did not answer a probe.
    pub(super) fn probe_failed(&self, now: Instant) {
        if let State::Open { until, backoff } = &mut *self.state.lock() {
            *backoff = (*backoff * 2).min(self.longest_backoff);
            *until = now + *backoff;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn opens_probes_and_closes() {
        let breaker = Breaker::new(&Memcached::default());
        let start = Instant::now();
        assert_eq!(breaker.admit(start), Admission::Go);
        assert!(!breaker.failed(start) && !breaker.failed(start));
        breaker.succeeded();
        assert!(!breaker.failed(start) && !breaker.failed(start), "a success forgets failures");
        assert!(breaker.failed(start));
        assert!(!breaker.failed(start), "it is open already");
        assert_eq!(breaker.admit(start), Admission::Skip);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.admit(now + SECOND * seconds - Duration::from_nanos(1)), Admission::Skip, "{seconds}");
            now += SECOND * seconds;
            assert_eq!(breaker.admit(now), Admission::Probe, "{seconds}");
            assert_eq!(breaker.admit(now), Admission::Skip, "one probe at a time");
            breaker.probe_failed(now);
        }
        assert!(breaker.is_open());
        breaker.succeeded();
        assert!(!breaker.is_open());
        assert_eq!(breaker.admit(now), Admission::Go);
    }

    #[test]
    fn a_lost_probe_is_repeated() {
        let breaker = Breaker::new(&Memcached { circuit_breaker_consecutive_failures: 1, ..Memcached::default() });
        let start = Instant::now();
        assert!(breaker.failed(start));
        assert_eq!(breaker.admit(start + SECOND), Admission::Probe);
        assert_eq!(breaker.admit(start + SECOND * 2), Admission::Probe);
    }

    #[test]
    fn what_is_configured_goes_before() {
        let settings = Memcached {
            circuit_breaker_consecutive_failures: 2,
            circuit_breaker_timeout: SECOND * 7,
            circuit_breaker_interval: SECOND * 10,
            ..Memcached::default()
        };
        let breaker = Breaker::new(&settings);
        let start = Instant::now();
        assert!(!breaker.failed(start));
        assert!(!breaker.failed(start + SECOND * 11), "the first is too long ago");
        let opened = start + SECOND * 12;
        assert!(breaker.failed(opened));
        assert_eq!(breaker.admit(opened + SECOND * 6), Admission::Skip);
        assert_eq!(breaker.admit(opened + SECOND * 7), Admission::Probe);
        breaker.probe_failed(opened + SECOND * 7);
        assert_eq!(breaker.admit(opened + SECOND * 14), Admission::Probe, "the back-off does not grow");
    }
}
