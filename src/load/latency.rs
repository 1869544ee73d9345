//! A histogram of latencies with a relative error of at most 1/32 and a fixed size.

use std::time::Duration;

/// Buckets per doubling.
const STEPS: usize = 32;

/// Counts of latencies from a microsecond to some weeks.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; STEPS * 42], total: 0, max: Duration::ZERO }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let bucket = bucket(latency.as_micros() as u64).min(self.counts.len() - 1);
        self.counts[bucket] += 1;
        self.total += 1;
        self.max = self.max.max(latency);
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// The smallest latency that at least `percent` of the recorded ones do not exceed; zero if there are none.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        let wanted = (self.total as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(upper(bucket)).min(self.max);
            }
        }
        self.max
    }
}

/// Values below [`STEPS`] have a bucket each; above, each doubling has [`STEPS`] of them.
fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let doublings = (micros.ilog2() - STEPS.ilog2()) as usize;
    doublings * STEPS + (micros >> doublings) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let doublings = bucket / STEPS - 1;
    (((bucket - doublings * STEPS) as u64 + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_gap() {
        let mut last = 0;
        for micros in 0..200_000 {
            let bucket = bucket(micros);
            assert!(bucket == last || bucket == last + 1, "{micros} is in bucket {bucket} after {last}");
            assert!(micros <= upper(bucket) && upper(bucket) <= micros + micros / 16, "{micros} is below {}", upper(bucket));
            last = bucket;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let mut latency = Latency::new();
        assert_eq!(latency.percentile(50.0), Duration::ZERO);
        for millis in 1..=1000 {
            latency.record(Duration::from_millis(millis));
        }
        for (percent, millis) in [(50.0, 500.0), (90.0, 900.0), (99.0, 990.0), (100.0, 1000.0)] {
            let found = latency.percentile(percent).as_secs_f64() * 1000.0;
            assert!((found / millis - 1.0).abs() < 0.04, "p{percent} is {found} ms");
        }
        assert_eq!(latency.max(), Duration::from_secs(1));
        latency.record(Duration::from_secs(1_000_000_000));
    }
}
