//! Evaluation of a query on a batch: arrays in, spans out.
//!
//! ```text
//!  Batch ─► filter: conditions to masks ─► spanset operators on nested-set arrays ─► by, aggregates, coalesce ─► Spansets
//! ```
//!
//! Nothing in the language relates two traces, so a batch of many traces is evaluated at once: stages are loops over arrays, not over
//! traces. What cannot be such a loop (arithmetic, two attributes compared, events and links under other operators) is compiled and asked of
//! one span after the other, of those only that are left.
//!
//! | module | holds |
//! |---|---|
//! | `mask` | conditions as loops over arrays |
//! | `rows` | the whole language on one span |
//! | `condition` | which of the two a filter's parts are given to |
//! | `pipeline`, `spansets` | stages, and what is between them |
//! | `structural`, `group`, `aggregate` | spanset operators, `by()`, scalar filters |
//! | `output` | what search shows |

mod aggregate;
mod condition;
mod error;
mod group;
mod mask;
mod output;
mod pipeline;
mod rows;
mod spansets;
mod structural;

use self::{condition::OnFailure, pipeline::Left};
pub use self::{
    error::ExecError,
    spansets::{Attribute, Spansets},
};
use crate::{
    columns::Batch,
    traceql::{EvaluateOptions, Expr, Field, Filter, Query, TraceMatch},
};

/// A query, ready to be evaluated on batches.
#[derive(Clone, Debug)]
pub struct Exec {
    query: Query,
}

impl Exec {
    /// Prepares a query. Its metrics function is not evaluated, but the fields that it looks at are shown.
    pub fn new(query: &Query) -> Self {
        Self { query: query.clone() }
    }

    /// The fields that the query looks at; what a batch must be able to give.
    pub fn fields(&self) -> Vec<Field> {
        self.query.fields()
    }

    /// What the pipeline leaves of a batch.
    ///
    /// # Errors
    /// The query fails on some trace, and therefore as a whole, or the block is corrupt.
    pub fn spansets(&self, batch: &Batch) -> Result<Spansets, ExecError> {
        pipeline::run(self.query.pipeline(), batch, Left::All)?.into_spansets(batch)
    }

    /// The spans that the pipeline leaves, ascending, each once; `None` says all. Cheaper than [`Exec::spansets`] when it has filters only.
    /// Of the batch only the spans `among` take part, if given: all other ones do not exist for the query.
    ///
    /// # Errors
    /// As of [`Exec::spansets`].
    pub fn matched(&self, batch: &Batch, among: Option<&[bool]>) -> Result<Option<Vec<u32>>, ExecError> {
        let begin = among.map_or(Left::All, |among| Left::Mask(among.to_vec()));
        Ok(match pipeline::run(self.query.pipeline(), batch, begin)? {
            Left::All => None,
            Left::Mask(mask) => {
                let count = mask.iter().map(|holds| usize::from(*holds)).sum::<usize>();
                (count < mask.len()).then(|| spans_of(&mask, count))
            }
            Left::Spansets(mut spansets) => {
                spansets.spans.sort_unstable();
                Some(spansets.spans)
            }
        })
    }

    /// The traces of which the pipeline leaves something, ascending. Only traces that are `among` them are looked at, if given.
    ///
    /// # Errors
    /// As of [`Exec::spansets`].
    pub fn traces(&self, batch: &Batch, among: Option<&[bool]>) -> Result<Vec<u32>, ExecError> {
        let begin = match among {
            Some(among) if among.contains(&false) => {
                let offsets = batch.trace_offsets()?;
                let mut spans = vec![false; batch.spans()?];
                for (range, _) in offsets.windows(2).zip(among).filter(|(_, wanted)| **wanted) {
                    spans[range[0] as usize..range[1] as usize].fill(true);
                }
                Left::Mask(spans)
            }
            _ => Left::All,
        };
        Ok(match pipeline::run(self.query.pipeline(), batch, begin)? {
            Left::All => (0..batch.traces() as u32).collect(),
            Left::Mask(mask) => {
                let offsets = batch.trace_offsets()?;
                let ranges = offsets.windows(2).zip(0..);
                ranges.filter(|(range, _)| mask[range[0] as usize..range[1] as usize].contains(&true)).map(|(_, trace)| trace).collect()
            }
            Left::Spansets(spansets) => {
                let mut traces = spansets.traces;
                traces.dedup();
                traces
            }
        })
    }

    /// What search shows of the traces that are results, in the order of the batch.
    ///
    /// # Errors
    /// As of [`Exec::spansets`].
    pub fn matches(&self, batch: &Batch, options: EvaluateOptions) -> Result<Vec<TraceMatch>, ExecError> {
        output::show(&self.query, batch, &self.spansets(batch)?, options)
    }
}

/// The spans of a mask that holds for so many. There is no branch to guess: every number is written, and the next one over it if it is none.
fn spans_of(mask: &[bool], count: usize) -> Vec<u32> {
    let mut spans = vec![0; count + 1];
    let mut next = 0;
    for (holds, span) in mask.iter().zip(0..) {
        spans[next] = span;
        next += usize::from(*holds);
    }
    spans.truncate(count);
    spans
}

/// Which spans of a batch satisfy a condition, for `compare()`.
///
/// # Errors
/// As of [`Exec::spansets`].
pub fn satisfying(condition: &Expr, batch: &Batch) -> Result<Vec<bool>, ExecError> {
    condition::filter(batch, condition, None, OnFailure::Stop)
}

impl Filter {
    /// Which spans of a batch satisfy the condition. A condition that fails on a span does not hold for it.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn matching(&self, batch: &Batch) -> Result<Vec<bool>, ExecError> {
        condition::filter(batch, self.condition(), None, OnFailure::PassOver)
    }
}

#[cfg(test)]
pub(crate) mod tests;
