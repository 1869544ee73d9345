//! What is measured while sending, and how it is printed.

use std::{collections::BTreeMap, io::Write, time::Duration};

use super::{Outcome, latency::Latency, ledger::Ledger};

/// Sums over the requests so far.
#[derive(Debug)]
pub(super) struct Statistics {
    latency: Latency,
    requests: u64,
    spans: u64,
    bytes: u64,
    /// Failed attempts by kind.
    failures: BTreeMap<String, u64>,
    /// Requests that were sent again at least once.
    retried: u64,
    /// Requests that were never acknowledged.
    pub(super) given_up: u64,
    /// CPU time of this process while it sent, where the system tells.
    pub(super) own_cpu: Option<Duration>,
}

impl Statistics {
    pub(super) fn new() -> Self {
        Self { latency: Latency::new(), requests: 0, spans: 0, bytes: 0, failures: BTreeMap::new(), retried: 0, given_up: 0, own_cpu: None }
    }

    pub(super) fn record(&mut self, outcome: &Outcome) {
        for failure in &outcome.failures {
            *self.failures.entry(failure.kind.clone()).or_default() += 1;
        }
        match outcome.latency {
            Some(latency) => {
                self.latency.record(latency);
                self.requests += 1;
                self.spans += outcome.request.spans as u64;
                self.bytes += outcome.request.body.len() as u64;
                self.retried += u64::from(!outcome.failures.is_empty());
            }
            None => self.given_up += 1,
        }
    }

    /// One line for the progress bar.
    pub(super) fn line(&self, elapsed: Duration) -> String {
        let rate = self.spans as f64 / elapsed.as_secs_f64().max(0.001);
        let failed: u64 = self.failures.values().sum();
        format!("{rate:.0} spans/s, p50 {:.1} ms, {failed} errors", millis(self.latency.percentile(50.0)))
    }

    pub(super) fn print(&self, out: &mut impl Write, ledger: &Ledger, elapsed: Duration) -> std::io::Result<()> {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let truth = ledger.acknowledged();
        writeln!(out, "acknowledged   {} spans of {} whole traces in {} requests", truth.spans, truth.traces, self.requests)?;
        writeln!(out, "rate           {:.0} spans/s over {seconds:.1} s", self.spans as f64 / seconds)?;
        writeln!(
            out,
            "bytes          {} ({:.2} MB/s, {:.0} per span, before compression)",
            self.bytes,
            self.bytes as f64 / seconds / 1e6,
            self.bytes as f64 / self.spans.max(1) as f64
        )?;
        writeln!(
            out,
            "latency        p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            millis(self.latency.percentile(50.0)),
            millis(self.latency.percentile(90.0)),
            millis(self.latency.percentile(99.0)),
            millis(self.latency.max())
        )?;
        let (refused, unknown) = ledger.lost();
        writeln!(
            out,
            "requests       {} sent again, {} given up ({refused} spans refused, {unknown} spans unknown)",
            self.retried, self.given_up
        )?;
        for (kind, count) in &self.failures {
            writeln!(out, "error          {count} x {kind}")?;
        }
        if let Some(cpu) = self.own_cpu {
            writeln!(out, "own cpu        {:.2} us per span", cpu.as_secs_f64() * 1e6 / self.spans.max(1) as f64)?;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// CPU time of this process, user and system; `None` where `/proc` does not tell.
pub(super) fn own_cpu() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses that may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // Linux counts these in hundredths of a second for every program.
    Some(Duration::from_millis((user + system) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn own_cpu_grows_with_work() {
        let before = own_cpu().expect("linux tells");
        let mut number = 1u64;
        while own_cpu().expect("linux tells") < before + Duration::from_millis(20) {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert_ne!(number, 0);
    }
}
