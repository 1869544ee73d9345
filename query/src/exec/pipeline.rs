//! Pipelines on a batch: stages, each turning spansets into spansets.
//!
//! ```text
//!  all spans ──► { … } ──► { … } >> { … } ──► by(…) ──► count() > 2 ──► …
//!                mask      masks, per trace   Spansets
//! ```
//!
//! As long as there is one spanset per trace a mask says it all; most queries end there. Spanset operators work on masks too: which spans
//! each side has, joined spanset by spanset.

use super::{
    ExecError, aggregate,
    condition::{OnFailure, filter},
    group,
    mask::{Mask, both},
    spansets::Spansets,
    structural::{Relatives, Tree},
};
use crate::{
    columns::Batch,
    traceql::{
        ExecutionError, Value,
        ast::{LogicalOp, Node, Pipeline, SpansetExpr, Stage, StructuralOp},
    },
};

/// What is left so far.
#[derive(Clone, Debug)]
pub(super) enum Left {
    /// One spanset per trace: all spans of it, or those of a mask.
    All,
    Mask(Mask),
    Spansets(Spansets),
}

impl Left {
    pub(super) fn into_spansets(self, batch: &Batch) -> Result<Spansets, ExecError> {
        match self {
            Self::All => Spansets::of_traces(batch, None),
            Self::Mask(mask) => Spansets::of_traces(batch, Some(&mask)),
            Self::Spansets(spansets) => Ok(spansets),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::All => false,
            Self::Mask(mask) => !mask.contains(&true),
            Self::Spansets(spansets) => spansets.is_empty(),
        }
    }
}

/// Runs a pipeline.
pub(super) fn run(pipeline: &Pipeline, batch: &Batch, mut left: Left) -> Result<Left, ExecError> {
    for stage in &pipeline.stages {
        if left.is_empty() {
            break;
        }
        left = run_stage(stage, batch, left)?;
    }
    Ok(left)
}

fn run_stage(stage: &Stage, batch: &Batch, left: Left) -> Result<Left, ExecError> {
    Ok(match stage {
        Stage::Spansets(SpansetExpr::Filter(condition)) if condition.node == Node::Literal(Value::Bool(true)) => left,
        Stage::Spansets(SpansetExpr::Filter(condition)) => match left {
            Left::All => Left::Mask(filter(batch, condition, None, OnFailure::Stop)?),
            Left::Mask(mask) => Left::Mask(filter(batch, condition, Some(mask), OnFailure::Stop)?),
            Left::Spansets(spansets) => {
                let mask = filter(batch, condition, Some(spansets.mask(batch.spans()?)), OnFailure::Stop)?;
                Left::Spansets(spansets.retain(&mask))
            }
        },
        // A parenthesised pipeline that is the whole query.
        Stage::Spansets(SpansetExpr::Pipeline(pipeline)) => run(pipeline, batch, left)?,
        Stage::Spansets(expr) => {
            let spansets = left.into_spansets(batch)?;
            let Side { mask, .. } = Operators { batch, tree: None, relatives: Relatives::default() }.side(expr, &spansets, None)?;
            Left::Spansets(spansets.retain(&mask))
        }
        Stage::Scalar(scalar) => Left::Spansets(aggregate::filter(scalar, batch, left.into_spansets(batch)?)?),
        Stage::By(key) => Left::Spansets(group::by(key, batch, &left.into_spansets(batch)?)?),
        Stage::Coalesce => Left::Spansets(left.into_spansets(batch)?.coalesce()),
        Stage::Select(_) => left,
    })
}

/// One side of an operator: which spans it has.
struct Side {
    mask: Mask,
    /// In how many spansets per incoming one; one at most when absent.
    spansets: Option<Vec<u32>>,
}

/// Evaluates spanset expressions on incoming spansets.
struct Operators<'b> {
    batch: &'b Batch,
    tree: Option<Tree>,
    relatives: Relatives,
}

impl Operators<'_> {
    /// The spans that an expression leaves of the incoming spansets, or of those `among` them, if given.
    fn side(&mut self, expr: &SpansetExpr, incoming: &Spansets, among: Option<&[bool]>) -> Result<Side, ExecError> {
        let spans = self.batch.spans()?;
        match expr {
            SpansetExpr::Filter(condition) => {
                let among = among.map_or_else(|| incoming.mask(spans), <[bool]>::to_vec);
                Ok(Side { mask: filter(self.batch, condition, Some(among), OnFailure::Stop)?, spansets: None })
            }
            SpansetExpr::Logical { op, operands } => {
                let mask = match op {
                    LogicalOp::And => self.all_of(operands, incoming, among)?,
                    LogicalOp::Or => {
                        let mut any = vec![false; spans];
                        for operand in operands {
                            let side = self.side(operand, incoming, among)?;
                            any.iter_mut().zip(side.mask).for_each(|(any, span)| *any |= span);
                        }
                        any
                    }
                };
                Ok(Side { mask, spansets: None })
            }
            SpansetExpr::Structural { op, left, right } => {
                let left = self.single(*op, left, incoming, among)?;
                let right = self.single(*op, right, incoming, among)?;
                Ok(Side { mask: self.structural(*op, incoming, &left, &right)?, spansets: None })
            }
            SpansetExpr::Pipeline(pipeline) => {
                let given = match among {
                    Some(among) => incoming.as_origins().retain(among),
                    None => incoming.as_origins(),
                };
                let found = run(pipeline, self.batch, Left::Spansets(given))?.into_spansets(self.batch)?;
                let mut counts = vec![0; incoming.len()];
                found.origins.iter().for_each(|&origin| counts[origin as usize] += 1);
                Ok(Side { mask: found.mask(spans), spansets: Some(counts) })
            }
        }
    }

    /// The spans of all operands in those spansets of which every operand leaves something.
    fn all_of(&mut self, operands: &[SpansetExpr], incoming: &Spansets, among: Option<&[bool]>) -> Result<Mask, ExecError> {
        let spans = self.batch.spans()?;
        let mut all = vec![false; spans];
        let mut still = among.map_or_else(|| incoming.mask(spans), <[bool]>::to_vec);
        for operand in operands {
            let side = self.side(operand, incoming, Some(&still))?;
            for spanset in 0..incoming.len() {
                let members = incoming.spans_of(spanset);
                // An operand is not asked of spansets of which one before it left nothing.
                if !members.iter().any(|&span| side.mask[span as usize]) {
                    members.iter().for_each(|&span| still[span as usize] = false);
                }
            }
            all.iter_mut().zip(side.mask).for_each(|(all, span)| *all |= span);
            if !still.contains(&true) {
                break;
            }
        }
        Ok(both(all, &still))
    }

    /// A side of a structural operator, which must be one spanset.
    fn single(&mut self, op: StructuralOp, expr: &SpansetExpr, incoming: &Spansets, among: Option<&[bool]>) -> Result<Mask, ExecError> {
        let Side { mask, spansets } = self.side(expr, incoming, among)?;
        match spansets.into_iter().flatten().find(|&count| count > 1) {
            Some(found) => Err(ExecutionError::Groups { operator: op.as_str(), found: found as usize }.into()),
            None => Ok(mask),
        }
    }

    fn structural(&mut self, op: StructuralOp, incoming: &Spansets, left: &[bool], right: &[bool]) -> Result<Mask, ExecError> {
        let mut kept = vec![false; left.len()];
        let tree = match &mut self.tree {
            Some(tree) => tree,
            none => none.insert(Tree::new(self.batch)?),
        };
        let (mut anchors, mut candidates) = (Vec::new(), Vec::new());
        for spanset in 0..incoming.len() {
            let members = incoming.spans_of(spanset);
            candidates.clear();
            candidates.extend(members.iter().filter(|&&span| right[span as usize]));
            if candidates.is_empty() {
                continue;
            }
            anchors.clear();
            anchors.extend(members.iter().filter(|&&span| left[span as usize]));
            self.relatives.apply(op, tree, &anchors, &candidates, |span| kept[span as usize] = true);
        }
        Ok(kept)
    }
}
