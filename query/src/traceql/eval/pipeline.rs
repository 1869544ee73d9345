//! Pipelines on one trace: stages, each turning spansets into spansets.
//!
//! ```text
//! all spans ──► { … } ──► by(…) ──► count() > 2 ──► …
//!   [0..n]      [1,3,4]   [1] [3,4]  —
//! ```
//!
//! A spanset is a list of span indices in storage order, without repetition, and never empty.

use std::collections::HashMap;

use super::{
    super::{
        ast::{LogicalOp, Pipeline, ScalarExpr, ScalarFilter, SpansetExpr, Stage},
        error::ExecutionError,
        value::Value,
    },
    aggregate,
    condition::Subject,
    operand::{Operand, compare},
    structural,
    view::TraceView,
};

/// Spans, and what stages have said about them.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Indices of spans.
    pub(super) spans: Vec<usize>,
    /// Values of `by(…)` and of aggregates by canonical text.
    pub(super) attributes: Vec<(String, Value)>,
}

/// Runs a pipeline on all spans of a trace.
pub(super) fn run(pipeline: &Pipeline, trace: &TraceView<'_>) -> Result<Vec<Group>, ExecutionError> {
    if trace.spans.is_empty() {
        return Ok(Vec::new());
    }
    Runner { trace }.pipeline(pipeline, vec![Group { spans: (0..trace.spans.len()).collect(), attributes: Vec::new() }])
}

#[derive(Clone, Copy)]
struct Runner<'v> {
    trace: &'v TraceView<'v>,
}

impl Runner<'_> {
    fn pipeline(self, pipeline: &Pipeline, mut groups: Vec<Group>) -> Result<Vec<Group>, ExecutionError> {
        for stage in &pipeline.stages {
            if groups.is_empty() {
                break;
            }
            groups = self.stage(stage, groups)?;
        }
        Ok(groups)
    }

    fn stage(self, stage: &Stage, groups: Vec<Group>) -> Result<Vec<Group>, ExecutionError> {
        let mut results = Vec::with_capacity(groups.len());
        match stage {
            Stage::Spansets(expr) => {
                for group in groups {
                    results.extend(self.spansets(expr, &group)?);
                }
            }
            Stage::Scalar(filter) => {
                for group in groups {
                    results.extend(self.scalar_filter(filter, group)?);
                }
            }
            Stage::By(key) => {
                let name = format!("by({key})");
                for group in groups {
                    let mut places: HashMap<String, usize> = HashMap::new();
                    for span in group.spans {
                        let value = Subject::new(self.trace, span).value(key)?.to_value();
                        // The debug text tells types apart, which the canonical text does not.
                        let place = *places.entry(format!("{value:?}")).or_insert_with(|| {
                            let mut attributes = group.attributes.clone();
                            attributes.push((name.clone(), value));
                            results.push(Group { spans: Vec::new(), attributes });
                            results.len() - 1
                        });
                        results[place].spans.push(span);
                    }
                }
            }
            Stage::Coalesce => results.extend(united(groups, Vec::new())),
            Stage::Select(_) => return Ok(groups),
        }
        Ok(results)
    }

    fn spansets(self, expr: &SpansetExpr, group: &Group) -> Result<Vec<Group>, ExecutionError> {
        match expr {
            SpansetExpr::Filter(condition) => {
                let mut spans = Vec::new();
                for span in &group.spans {
                    if Subject::new(self.trace, *span).satisfies(condition)? {
                        spans.push(*span);
                    }
                }
                Ok(non_empty(spans, group).into_iter().collect())
            }
            SpansetExpr::Logical { op, operands } => {
                let mut all = Vec::new();
                for operand in operands {
                    let side = self.spansets(operand, group)?;
                    if side.is_empty() && *op == LogicalOp::And {
                        return Ok(Vec::new());
                    }
                    all.extend(side);
                }
                Ok(united(all, group.attributes.clone()).into_iter().collect())
            }
            SpansetExpr::Structural { op, left, right } => {
                let single = |groups: Vec<Group>| match <[Group; 1]>::try_from(groups) {
                    Ok([only]) => Ok(only.spans),
                    Err(groups) if groups.is_empty() => Ok(Vec::new()),
                    Err(groups) => Err(ExecutionError::Groups { operator: op.as_str(), found: groups.len() }),
                };
                let left = single(self.spansets(left, group)?)?;
                let right = single(self.spansets(right, group)?)?;
                let spans = structural::apply(*op, self.trace.tree(), &left, &right);
                Ok(non_empty(spans, group).into_iter().collect())
            }
            SpansetExpr::Pipeline(pipeline) => self.pipeline(pipeline, vec![group.clone()]),
        }
    }

    fn scalar_filter(self, filter: &ScalarFilter, mut group: Group) -> Result<Option<Group>, ExecutionError> {
        // Other forms do not pass validation.
        let (ScalarExpr::Aggregate(aggregate), ScalarExpr::Literal(literal)) = (&filter.left, &filter.right) else {
            return Ok(None);
        };
        let value = aggregate::evaluate(aggregate, self.trace, &group.spans)?;
        if value.as_f64().is_none() || !compare(filter.op, &value, &Operand::from(literal)).unwrap_or(false) {
            return Ok(None);
        }
        group.attributes.push((aggregate.to_string(), value.to_value()));
        Ok(Some(group))
    }
}

fn non_empty(spans: Vec<usize>, source: &Group) -> Option<Group> {
    (!spans.is_empty()).then(|| Group { spans, attributes: source.attributes.clone() })
}

/// One spanset of all spans of several.
fn united(groups: Vec<Group>, attributes: Vec<(String, Value)>) -> Option<Group> {
    let mut spans: Vec<usize> = groups.into_iter().flat_map(|group| group.spans).collect();
    spans.sort_unstable();
    spans.dedup();
    (!spans.is_empty()).then_some(Group { spans, attributes })
}
