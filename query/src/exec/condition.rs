//! A filter's condition on the spans of a batch.
//!
//! A conjunction is taken apart. What is a loop over arrays is done first, cheapest for the many spans; what is left is asked of the
//! spans that remain, one after the other. If some part can fail, the order is that of the text as far as it matters: a span that an
//! earlier part sorts out cannot fail in a later one.

use super::{
    ExecError,
    mask::{self, Domain, Mask, both, is_infallible, is_vectorised},
    rows::{Condition, Parts},
};
use crate::{
    columns::Batch,
    traceql::{
        Value,
        ast::{Expr, LogicalOp, Node},
    },
};

/// What happens when the condition fails on a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The query fails.
    Stop,
    /// It does not hold for that span.
    PassOver,
}

/// Which spans satisfy a condition; only of those `among`, if given.
pub(super) fn filter(batch: &Batch, condition: &Expr, among: Option<Mask>, on_failure: OnFailure) -> Result<Mask, ExecError> {
    let spans = batch.spans()?;
    let mut holds = among.unwrap_or_else(|| vec![true; spans]);
    let conjuncts: Vec<&Expr> = match &condition.node {
        Node::Logical { op: LogicalOp::And, operands } => operands.iter().collect(),
        Node::Literal(Value::Bool(true)) => return Ok(holds),
        _ => vec![condition],
    };
    let in_any_order = conjuncts.iter().all(|conjunct| is_infallible(conjunct));
    let parts = Parts::of(condition);
    let count = conjuncts.len();
    let mut rest = Vec::new();
    let (mut of_events, mut of_links) = (Vec::new(), Vec::new());
    let mut may_go_first = in_any_order || !(parts.events && parts.links);
    for conjunct in conjuncts {
        if is_vectorised(conjunct, Domain::Spans) && may_go_first && (in_any_order || conjunct.is_boolean()) {
            if holds.contains(&true) {
                holds = both(holds, &mask::evaluate(batch, conjunct, Domain::Spans, spans)?);
            }
            continue;
        }
        may_go_first = in_any_order;
        match Parts::of(conjunct) {
            Parts { events: true, links: false } => of_events.push(conjunct),
            Parts { events: false, links: true } => of_links.push(conjunct),
            _ => {}
        }
        rest.push(conjunct);
    }
    if rest.is_empty() || !holds.contains(&true) {
        return Ok(holds);
    }
    let elements_only = rest.len() == of_events.len() + of_links.len()
        && of_events.iter().all(|conjunct| is_vectorised(conjunct, Domain::Events))
        && of_links.iter().all(|conjunct| is_vectorised(conjunct, Domain::Links));
    if elements_only {
        holds = some_element(batch, &of_events, Domain::Events, holds)?;
        return some_element(batch, &of_links, Domain::Links, holds);
    }
    let joined;
    let compiled = match rest.as_slice() {
        // Without events and links a conjunction is one expression: its operands need not be booleans.
        _ if parts == Parts::default() && count > 1 => {
            // What was true so far stands before them.
            let so_far = Expr { at: condition.at, node: Node::Literal(Value::Bool(true)) };
            let written = rest.len() == count;
            let operands = (!written).then_some(so_far).into_iter().chain(rest.into_iter().cloned()).collect();
            joined = Expr { at: condition.at, node: Node::Logical { op: LogicalOp::And, operands } };
            Condition::whole(batch, &joined)?
        }
        rest => Condition::new(batch, rest)?,
    };
    for (span, holds) in holds.iter_mut().enumerate().filter(|(_, holds)| **holds) {
        *holds = match (compiled.holds(span), on_failure) {
            (Err(_), OnFailure::PassOver) => false,
            (result, _) => result?,
        };
    }
    Ok(holds)
}

/// Keeps the spans of which one event (link) satisfies all conditions.
fn some_element(batch: &Batch, conditions: &[&Expr], domain: Domain, mut holds: Mask) -> Result<Mask, ExecError> {
    let mut field = None;
    conditions.iter().for_each(|condition| condition.for_each_field(&mut |found| field = Some(found)));
    let Some(field) = field else { return Ok(holds) };
    let offsets = batch.elements(field)?.offsets;
    let elements = offsets.last().map_or(0, |&last| last as usize);
    let mut satisfied = vec![true; elements];
    for condition in conditions {
        satisfied = both(satisfied, &mask::evaluate(batch, condition, domain, elements)?);
    }
    for (holds, range) in holds.iter_mut().zip(offsets.windows(2)) {
        *holds &= satisfied[range[0] as usize..range[1] as usize].contains(&true);
    }
    Ok(holds)
}
