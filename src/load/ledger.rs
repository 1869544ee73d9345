//! The exact truth of what was acknowledged, per trace and in sum.
//!
//! Memory: about 60 bytes per trace that was sent, since every one of them may be read back, and the summaries of those traces of which
//! spans are still on their way.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use storage::{
    id::TraceId,
    synthetic::{Part, Summary, Totals},
};

use super::Outcome;

/// What became of the spans of one trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct TraceLedger {
    /// Spans that the endpoint acknowledged.
    pub(super) acknowledged: u32,
    /// Spans that may or may not be stored.
    pub(super) unknown: u32,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Ledger {
    traces: HashMap<TraceId, TraceLedger>,
    /// Spans not heard of yet, of traces of which some were.
    open: HashMap<TraceId, (usize, Arc<Summary>)>,
    acknowledged: Totals,
    partial_traces: u64,
    refused_spans: u64,
    unknown_spans: u64,
}

/// What `--truth` writes.
#[derive(Debug, Serialize)]
pub(super) struct Truth<'a> {
    seed: u64,
    elapsed_seconds: f64,
    /// Spans, and edges of traces that were acknowledged as a whole.
    acknowledged: &'a Totals,
    /// Traces of which some spans were refused or are unknown; their edges are not counted.
    partial_traces: u64,
    refused_spans: u64,
    unknown_spans: u64,
    /// Spans by trace id, in hexadecimal.
    traces: BTreeMap<String, TraceLedger>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            traces: HashMap::new(),
            open: HashMap::new(),
            acknowledged: Totals::default(),
            partial_traces: 0,
            refused_spans: 0,
            unknown_spans: 0,
        }
    }

    pub(super) fn record(&mut self, outcome: &Outcome) {
        let (acknowledged, unknown) = (outcome.is_acknowledged(), outcome.is_unknown());
        let spans = outcome.request.spans as u64;
        match (acknowledged, unknown) {
            (true, _) => {}
            (false, true) => self.unknown_spans += spans,
            (false, false) => self.refused_spans += spans,
        }
        for part in &outcome.request.parts {
            self.record_part(part, acknowledged, unknown);
        }
    }

    fn record_part(&mut self, part: &Part, acknowledged: bool, unknown: bool) {
        let summary = &part.trace;
        let trace = self.traces.entry(summary.trace_id).or_default();
        let count = part.spans.len() as u32;
        if acknowledged {
            trace.acknowledged += count;
            self.acknowledged.add_spans(summary, part.spans.clone());
        } else if unknown {
            trace.unknown += count;
        }
        let (missing, _) = self.open.entry(summary.trace_id).or_insert_with(|| (summary.spans.len(), Arc::clone(summary)));
        *missing -= part.spans.len();
        if *missing == 0 {
            self.open.remove(&summary.trace_id);
            if trace.acknowledged as usize == summary.spans.len() {
                self.acknowledged.complete_trace(summary);
            } else {
                self.partial_traces += 1;
            }
        }
    }

    /// Sums over the acknowledged spans.
    pub(super) fn acknowledged(&self) -> &Totals {
        &self.acknowledged
    }

    /// Spans that the endpoint said it did not take, and spans of which nothing is known.
    pub(super) fn lost(&self) -> (u64, u64) {
        (self.refused_spans, self.unknown_spans)
    }

    /// The traces of which at least one span was acknowledged, by id.
    pub(super) fn traces(&self) -> Vec<(TraceId, TraceLedger)> {
        let mut traces: Vec<_> = self.traces.iter().filter(|(_, trace)| trace.acknowledged > 0).map(|(id, trace)| (*id, *trace)).collect();
        traces.sort_unstable_by_key(|(id, _)| *id);
        traces
    }

    pub(super) fn truth(&self, seed: u64, elapsed: Duration) -> Truth<'_> {
        Truth {
            seed,
            elapsed_seconds: elapsed.as_secs_f64(),
            acknowledged: &self.acknowledged,
            partial_traces: self.partial_traces + self.open.len() as u64,
            refused_spans: self.refused_spans,
            unknown_spans: self.unknown_spans,
            traces: self.traces().into_iter().map(|(id, trace)| (id.to_hex(), trace)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use storage::synthetic::{Requests, Settings};

    use super::*;
    use crate::load::endpoint::Failure;

    #[test]
    fn what_is_acknowledged_adds_up_to_what_was_generated() {
        let settings = Settings { spans_per_request: 100, ..Settings::default() };
        let mut whole = Totals::default();
        let mut ledger = Ledger::new();
        for request in Requests::new(settings, Some(300)) {
            for part in &request.parts {
                whole.add_spans(&part.trace, part.spans.clone());
                if part.spans.end == part.trace.spans.len() {
                    whole.complete_trace(&part.trace);
                }
            }
            ledger.record(&Outcome { request, latency: Some(Duration::ZERO), failures: Vec::new() });
        }
        assert_eq!(ledger.acknowledged(), &whole);
        assert!(ledger.open.is_empty());
        assert_eq!(ledger.traces().iter().map(|(_, trace)| u64::from(trace.acknowledged)).sum::<u64>(), whole.spans);
    }

    #[test]
    fn refused_and_unknown_spans_are_counted_apart() {
        let settings = Settings { spans_per_request: 50, ..Settings::default() };
        let mut ledger = Ledger::new();
        let mut sent = [0; 3];
        for (number, request) in Requests::new(settings, Some(200)).enumerate() {
            sent[number % 3] += request.spans as u64;
            let failure = Failure { kind: "x".to_owned(), retryable: false, retry_after: None, maybe_taken: number % 3 == 2 };
            let latency = (number % 3 == 0).then_some(Duration::ZERO);
            ledger.record(&Outcome { request, latency, failures: vec![failure] });
        }
        assert_eq!((ledger.acknowledged().spans, ledger.lost()), (sent[0], (sent[1], sent[2])));
        let truth = ledger.truth(1, Duration::ZERO);
        assert_eq!(truth.partial_traces + truth.acknowledged.traces, 200);
    }
}
