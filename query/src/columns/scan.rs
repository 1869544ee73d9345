//! What of a block is read for a query: row group by row group, as little as possible.
//!
//! ```text
//!  footer: times ─► dictionaries of keys, and of strings that conditions ask for ─► leaves of the fields ─► Batch, Batch, …
//!         │                        │                                                 in portions of rows
//!         └─ nothing ◄─────────────┘ nothing
//! ```
//!
//! A row group whose times or dictionaries say that nothing can be found there costs no more than those. A key that is not in the dictionary of
//! keys saves the leaves of all generic attributes. What is left is fetched in one step, and in portions if it is large, so that memory
//! does not depend on how others cut row groups.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use parking_lot::Mutex;
use storage::block::{BlockError, Reader, chunks::SharedDictionaries};

use super::{
    Batch,
    block::{Expected, Leaves, Rows},
    prune::{self, Facts},
};
use crate::traceql::{
    Expr, Field, Filter, Intrinsic, Pipeline, Query, Scope, Stage, Type,
    ast::{Node, SpansetExpr},
};

/// Compressed bytes from which a row group is read in portions.
const PORTION: u64 = 8 << 20;

/// What a query wants of blocks.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    fields: Vec<Field>,
    /// Scopes of which all attributes are wanted, and whether with their values.
    scopes: Vec<(Scope, bool)>,
    pipeline: Option<Pipeline>,
    condition: Option<Expr>,
    starts: Option<(u64, u64)>,
    traces: Option<(u64, u64)>,
    expected: Arc<Expected>,
}

impl Wanted {
    /// What the evaluation of a query needs: its fields and those of its metrics function, of row groups in which its pipeline may leave
    /// something.
    pub fn of(query: &Query) -> Self {
        let mut wanted = Self { fields: query.fields(), pipeline: Some(query.pipeline().clone()), ..Self::default() };
        let mut expected = Expected::new();
        wanted.pipeline.iter().for_each(|pipeline| of_pipeline(pipeline, &mut wanted.fields, &mut expected));
        wanted.expected = Arc::new(expected);
        wanted
    }

    /// Nothing but some fields, of all spans.
    pub fn fields(fields: Vec<Field>) -> Self {
        Self { fields, ..Self::default() }
    }

    /// More fields.
    #[must_use]
    pub fn and_fields(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields.extend(fields);
        self
    }

    /// All attributes of a scope, too.
    #[must_use]
    pub fn and_all_of(mut self, scope: Scope) -> Self {
        self.scopes.push((scope, true));
        self
    }

    /// The names of all attributes of a scope, too.
    #[must_use]
    pub fn and_names_of(mut self, scope: Scope) -> Self {
        self.scopes.push((scope, false));
        self
    }

    /// Only row groups in which the condition of a filter may hold for a span; its fields, too.
    #[must_use]
    pub fn and_filter(mut self, filter: &Filter) -> Self {
        filter.condition().for_each_field(&mut |field| self.fields.push(field.clone()));
        self.condition = Some(filter.condition().clone());
        self
    }

    /// What [`Exec::matches`](crate::exec::Exec::matches) shows besides the fields of the query.
    #[must_use]
    pub fn and_shown(self) -> Self {
        let intrinsics = [
            Intrinsic::SpanId,
            Intrinsic::Duration,
            Intrinsic::Status,
            Intrinsic::RootName,
            Intrinsic::RootServiceName,
            Intrinsic::TraceDuration,
        ];
        let service = Field::Attribute { parent: false, scope: Scope::Resource, name: super::live::SERVICE_NAME.to_owned() };
        self.and_fields(intrinsics.map(Field::Intrinsic).into_iter().chain([service]))
    }

    /// Only row groups with spans that start in this range of Unix nanoseconds, both ends included.
    #[must_use]
    pub fn starting(mut self, from_ns: u64, to_ns: u64) -> Self {
        self.starts = Some((from_ns, to_ns));
        self
    }

    /// Only row groups with traces that touch this range of Unix nanoseconds.
    #[must_use]
    pub fn touching(mut self, from_ns: u64, to_ns: u64) -> Self {
        self.traces = Some((from_ns, to_ns));
        self
    }
}

/// Adds the fields that evaluation needs without their being shown, and what types literals make the query expect.
fn of_pipeline(pipeline: &Pipeline, fields: &mut Vec<Field>, expected: &mut Expected) {
    for stage in &pipeline.stages {
        if let Stage::Spansets(expr) = stage {
            of_spansets(expr, fields, expected);
        }
    }
}

fn of_spansets(expr: &SpansetExpr, fields: &mut Vec<Field>, expected: &mut Expected) {
    match expr {
        SpansetExpr::Filter(condition) => of_condition(condition, expected),
        SpansetExpr::Logical { operands, .. } => operands.iter().for_each(|operand| of_spansets(operand, fields, expected)),
        SpansetExpr::Structural { left, right, .. } => {
            fields.extend([Intrinsic::NestedSetLeft, Intrinsic::NestedSetRight, Intrinsic::NestedSetParent].map(Field::Intrinsic));
            of_spansets(left, fields, expected);
            of_spansets(right, fields, expected);
        }
        SpansetExpr::Pipeline(pipeline) => of_pipeline(pipeline, fields, expected),
    }
}

fn of_condition(condition: &Expr, expected: &mut Expected) {
    match &condition.node {
        Node::Logical { operands, .. } => operands.iter().for_each(|operand| of_condition(operand, expected)),
        Node::Unary { operand, .. } => of_condition(operand, expected),
        Node::Binary { left, right, .. } => match (&left.node, &right.node) {
            (Node::Field(field), Node::Literal(literal)) | (Node::Literal(literal), Node::Field(field)) => {
                expected.insert(field.clone(), literal.type_of());
            }
            _ => {}
        },
        _ => {}
    }
}

/// A block that is read for a query.
#[derive(Debug)]
pub struct Scan {
    reader: Arc<Reader>,
    leaves: Arc<Leaves>,
    wanted: Arc<Wanted>,
}

impl Scan {
    /// # Errors
    /// The block is corrupt.
    pub fn new(reader: Arc<Reader>, wanted: Arc<Wanted>) -> Result<Self, BlockError> {
        let leaves = Arc::new(Leaves::new(&reader)?);
        Ok(Self { reader, leaves, wanted })
    }

    /// Number of row groups.
    pub fn row_groups(&self) -> usize {
        self.reader.row_groups()
    }

    /// Looks at a row group. What comes of it is empty when the row group has nothing that is wanted.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn row_group(&self, number: usize) -> Result<Batches, BlockError> {
        let Self { reader, leaves, wanted } = self;
        let mut batches = Batches {
            reader: Arc::clone(reader),
            block: Arc::clone(leaves),
            row_group: number,
            leaves: Vec::new(),
            lacking: BTreeSet::new(),
            expected: Arc::clone(&wanted.expected),
            dictionaries: SharedDictionaries::default(),
            portions: VecDeque::new(),
        };
        if !self.times_may_fit(number) {
            return Ok(batches);
        }
        let telling: Vec<usize> = self.telling().into_iter().collect();
        let dictionaries = reader.dictionaries(number, &telling).await?;
        let judged = {
            let (leaves, wanted) = (Arc::clone(leaves), Arc::clone(wanted));
            tokio::task::spawn_blocking(move || {
                let facts = Facts { leaves: &leaves, dictionaries: &dictionaries };
                let possible = wanted.pipeline.as_ref().is_none_or(|pipeline| prune::may_leave(pipeline, &facts))
                    && wanted.condition.as_ref().is_none_or(|condition| prune::may_hold(condition, &facts));
                let needed = possible.then(|| needed(&wanted, &facts));
                (dictionaries, needed)
            })
        };
        let (dictionaries, needed) = judged.await.map_err(|_| self.corrupt("its dictionaries cannot be looked at"))?;
        let Some((needed, lacking)) = needed else { return Ok(batches) };
        let rows = reader.rows_of(number)?;
        let bytes = reader.bytes_of(number, &needed)?;
        let portions = usize::try_from(bytes.div_ceil(PORTION)).unwrap_or(usize::MAX).clamp(1, rows.max(1));
        batches.portions = match portions {
            1 => VecDeque::from([None]),
            _ => {
                let step = rows.div_ceil(portions);
                (0..rows).step_by(step.max(1)).map(|begin| Some(begin..(begin + step).min(rows))).collect()
            }
        };
        batches.leaves = needed;
        batches.lacking = lacking;
        batches.dictionaries = Arc::new(Mutex::new(dictionaries));
        Ok(batches)
    }

    /// Whether the footer leaves it open that the row group has something of the wanted times.
    fn times_may_fit(&self, row_group: usize) -> bool {
        let bounds = |leaf| self.reader.bounds_of(row_group, leaf);
        let starts =
            self.wanted.starts.is_none_or(|(from, to)| bounds(self.leaves.start).is_none_or(|(min, max)| min <= to && max >= from));
        let traces = self.wanted.traces.is_none_or(|(from, to)| {
            bounds(self.leaves.trace_start).is_none_or(|(min, _)| min <= to)
                && bounds(self.leaves.trace_end).is_none_or(|(_, max)| max >= from)
        });
        starts && traces
    }

    /// Leaves whose dictionaries are looked at first.
    fn telling(&self) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for field in &self.wanted.fields {
            if let Field::Attribute { scope, .. } = field {
                let scopes: &[Scope] = if *scope == Scope::Any { &[Scope::Span, Scope::Resource] } else { &[*scope] };
                found.extend(scopes.iter().filter_map(|scope| self.leaves.generic(*scope)).map(|leaves| leaves.key));
            }
        }
        if let Some(pipeline) = &self.wanted.pipeline {
            prune::telling(pipeline, &self.leaves, &mut found);
        }
        if let Some(condition) = &self.wanted.condition {
            prune::telling_condition(condition, &self.leaves, &mut found);
        }
        found
    }

    fn corrupt(&self, what: &str) -> BlockError {
        let meta = self.reader.meta();
        BlockError::Corrupt { block: meta.block_id, tenant: meta.tenant_id.clone(), what: what.to_owned() }
    }
}

/// The leaves that the wanted fields need, and the keys that no list of attributes has.
fn needed(wanted: &Wanted, facts: &Facts<'_>) -> (Vec<usize>, BTreeSet<(usize, String)>) {
    let leaves = facts.leaves;
    let mut needed = BTreeSet::from([leaves.trace_id, leaves.trace_start, leaves.trace_end, leaves.start]);
    let mut lacking = BTreeSet::new();
    let has_key = |scope: Scope, name: &str| leaves.generic(scope).is_none_or(|generic| facts.may_have_key(generic, name));
    for field in &wanted.fields {
        leaves.of_field(field, &has_key, &mut needed);
        if let Field::Attribute { scope, name, .. } = field {
            let scopes: &[Scope] = if *scope == Scope::Any { &[Scope::Span, Scope::Resource] } else { &[*scope] };
            for generic in scopes.iter().filter_map(|scope| leaves.generic(*scope)) {
                if !facts.may_have_key(generic, name) {
                    lacking.insert((generic.key, name.clone()));
                }
            }
        }
    }
    for (scope, with_values) in &wanted.scopes {
        leaves.of_scope(*scope, *with_values, &mut needed);
    }
    (needed.into_iter().collect(), lacking)
}

/// The batches of a row group, one after the other.
#[derive(Debug)]
pub struct Batches {
    reader: Arc<Reader>,
    block: Arc<Leaves>,
    row_group: usize,
    leaves: Vec<usize>,
    lacking: BTreeSet<(usize, String)>,
    expected: Arc<HashMap<Field, Type>>,
    dictionaries: SharedDictionaries,
    portions: VecDeque<Option<Range<usize>>>,
}

impl Batches {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.portions.is_empty()
    }

    /// Compressed bytes that the batches read, about.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn bytes(&self) -> Result<u64, BlockError> {
        if self.is_empty() { Ok(0) } else { self.reader.bytes_of(self.row_group, &self.leaves) }
    }

    /// Bytes of memory that the next batch takes once all of it is decoded, about.
    ///
    /// # Errors
    /// The block is corrupt.
    pub fn memory_of_next(&self) -> Result<u64, BlockError> {
        let rows = self.reader.rows_of(self.row_group)?.max(1) as u64;
        let all = if self.is_empty() { 0 } else { self.reader.memory_of(self.row_group, &self.leaves)? };
        Ok(match self.portions.front() {
            Some(Some(portion)) => (all / rows).saturating_mul(portion.len() as u64),
            _ => all,
        })
    }

    /// Fetches the next batch; `None` after the last one. Nothing is decoded yet.
    ///
    /// # Errors
    /// The bucket failed, or the block is corrupt.
    pub async fn next(&mut self) -> Result<Option<Batch>, BlockError> {
        let Some(rows) = self.portions.pop_front() else { return Ok(None) };
        let chunks = self.reader.chunks(self.row_group, &self.leaves, rows, &self.dictionaries).await?;
        let rows = Rows::new(chunks, Arc::clone(&self.block), self.lacking.clone(), Arc::clone(&self.expected));
        Ok(Some(Batch::new(rows)))
    }
}
