//! When a request that was sent to many ingesters has succeeded or failed.
//!
//! Each trace goes to ingesters of its own, so each counts by itself: it is safe once as many calls succeeded as its quorum needs, and lost as soon
//! as more calls failed than it can bear. The request succeeds when all traces are safe and fails when one is lost, whichever comes first.
//!
//! A call that refuses single traces has succeeded all the same (write-path.md §4.7): its reasons only decide, at the end, which spans were
//! discarded. Those are the traces that fewer than `floor(RF / 2) + 1` ingesters accepted, if any ingester gave a reason.
//!
//! Tempo counts failures by family, so that failures that are the client's fault and others don't add up. Codes of gRPC are all of one family.

use super::plan::TracePlan;
use crate::traces::{Refusals, Verdict};

/// How the calls went so far.
#[derive(Debug)]
pub(crate) struct Quorum {
    votes: Vec<Votes>,
    /// Traces that are not safe yet.
    pending: usize,
}

#[derive(Debug)]
struct Votes {
    /// Successes that are still missing.
    missing: usize,
    /// Failures that can still be borne.
    bearable: usize,
    /// Ingesters that accepted the trace.
    accepted: usize,
    /// What the last of those that did not accept it said.
    reason: Verdict,
}

/// What is known after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More answers are needed.
    Open,
    /// All traces are safe.
    Reached,
    /// A trace has lost its quorum.
    Lost,
}

impl Quorum {
    /// No answers yet. For each trace: how many calls must succeed, and how many may fail.
    pub(crate) fn new(needs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let votes = needs.into_iter().map(|(missing, bearable)| Votes { missing, bearable, accepted: 0, reason: Verdict::Accepted });
        let votes: Vec<Votes> = votes.collect();
        Self { pending: votes.iter().filter(|votes| votes.missing > 0).count(), votes }
    }

    /// Counts a successful call with these traces. `verdicts` are in the same order; none is a refusal where they are missing.
    pub(crate) fn succeeded(&mut self, traces: impl IntoIterator<Item = usize>, verdicts: &[Verdict]) -> Outcome {
        for (place, trace) in traces.into_iter().enumerate() {
            let votes = &mut self.votes[trace];
            match verdicts.get(place) {
                None | Some(Verdict::Accepted) => votes.accepted += 1,
                Some(&reason) => votes.reason = reason,
            }
            if votes.missing > 0 {
                votes.missing -= 1;
                self.pending -= usize::from(votes.missing == 0);
            }
        }
        if self.pending == 0 { Outcome::Reached } else { Outcome::Open }
    }

    /// Counts a failed call with these traces.
    pub(crate) fn failed(&mut self, traces: impl IntoIterator<Item = usize>) -> Outcome {
        let mut outcome = if self.pending == 0 { Outcome::Reached } else { Outcome::Open };
        for trace in traces {
            let votes = &mut self.votes[trace];
            match votes.bearable.checked_sub(1) {
                Some(bearable) => votes.bearable = bearable,
                None => outcome = Outcome::Lost,
            }
        }
        outcome
    }

    /// What was discarded, as far as is known.
    pub(crate) fn refused(&self, traces: &[TracePlan], replication_factor: usize) -> Refusals {
        let mut refused = Refusals::default();
        for (votes, trace) in self.votes.iter().zip(traces) {
            if votes.accepted < replication_factor / 2 + 1 {
                refused.add(votes.reason, trace.id, trace.spans);
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The ingesters of a trace, and how many of them may fail.
    type Trace = (BTreeSet<usize>, usize);

    /// Says the same by looking at all answers so far: the ingesters of each trace, what each has answered, and nothing kept in between.
    fn naive(replicas: &[Trace], answers: &[(usize, bool)]) -> Outcome {
        let count = |trace: &BTreeSet<usize>, success| answers.iter().filter(|(who, ok)| trace.contains(who) && *ok == success).count();
        let lost = replicas.iter().any(|(trace, max_errors)| count(trace, false) > *max_errors);
        let reached = replicas.iter().all(|(trace, max_errors)| count(trace, true) >= trace.len() - max_errors);
        assert!(!(lost && reached), "a trace with too many failures cannot have enough successes");
        if lost {
            Outcome::Lost
        } else if reached {
            Outcome::Reached
        } else {
            Outcome::Open
        }
    }

    fn cluster() -> impl Strategy<Value = (Vec<Trace>, Vec<(usize, bool)>)> {
        let trace = (prop::collection::btree_set(0usize..6, 1..5), 0usize..4).prop_map(|(replicas, errors)| {
            let max_errors = errors.min(replicas.len() - 1);
            (replicas, max_errors)
        });
        let answers = Just((0usize..6).collect::<Vec<_>>()).prop_shuffle();
        (prop::collection::vec(trace, 1..8), answers, prop::collection::vec(any::<bool>(), 6))
            .prop_map(|(traces, order, oks)| (traces, order.into_iter().zip(oks).collect()))
    }

    proptest! {
        /// Whatever the order of the answers: the same outcome at the same answer as the naive model, which looks at everything each time.
        #[test]
        fn agrees_with_counting_everything((replicas, answers) in cluster()) {
            let mut quorum = Quorum::new(replicas.iter().map(|(trace, max_errors)| (trace.len() - max_errors, *max_errors)));
            for seen in 1..=answers.len() {
                let (who, ok) = answers[seen - 1];
                let traces = replicas.iter().enumerate().filter(|(_, (trace, _))| trace.contains(&who)).map(|(place, _)| place);
                let outcome = if ok { quorum.succeeded(traces, &[]) } else { quorum.failed(traces) };
                prop_assert_eq!(outcome, naive(&replicas, &answers[..seen]), "after {} answers", seen);
                if outcome == Outcome::Lost {
                    return Ok(());
                }
            }
            prop_assert_ne!(naive(&replicas, &answers), Outcome::Open, "all have answered");
        }
    }

    #[test]
    fn refusals_count_when_no_majority_accepted() {
        use Verdict::{Accepted, LiveTracesExceeded, TraceTooLarge, Unknown};

        let trace = |n: u8, spans| {
            let mut trace = TracePlan::default();
            (trace.id, trace.spans) = (storage::id::TraceId([n; 16]), spans);
            trace
        };
        let traces = [trace(0, 1), trace(1, 10), trace(2, 100), trace(3, 1000)];
        let mut quorum = Quorum::new([(2, 1); 4]);
        assert_eq!(quorum.succeeded(0..4, &[Accepted, LiveTracesExceeded, TraceTooLarge, Accepted]), Outcome::Open);
        assert_eq!(quorum.succeeded(0..4, &[Accepted, Accepted, Unknown]), Outcome::Reached, "refusals are answers");
        let spans = |quorum: &Quorum| {
            let refused = quorum.refused(&traces, 3);
            refused.iter().map(|(verdict, refused)| (verdict, refused.spans)).collect::<Vec<_>>()
        };
        assert_eq!(spans(&quorum), [(LiveTracesExceeded, 10), (Unknown, 100)], "the last reason counts");
        assert_eq!(quorum.succeeded(0..4, &[]), Outcome::Reached);
        assert_eq!(spans(&quorum), [(Unknown, 100)], "a late answer makes a majority for the second trace");
        assert_eq!(Quorum::new([(1, 1)]).refused(&traces[..1], 2), Refusals::default(), "who did not answer gave no reason");
    }
}
