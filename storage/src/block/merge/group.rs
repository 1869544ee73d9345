//! One row group of the output, from windows to chunks: the CPU's part of a merge.
//!
//! ```text
//!  plan ─ combine steps ─► facts of all leaves (threads) ─► trees, computed leaves
//!    │                                                        │
//!    └─ copy steps ──────────────► pieces, cut into pages ◄───┘
//!                                       ▼
//!                                  chunks of all leaves (threads)
//! ```

use std::{ops::Range, sync::Arc};

use super::{
    combine::{self, Tree},
    facts::{Decoded, Facts, Known, Meeting, disagree},
    leaves::{Failure, Task},
    levels::{Combined, Piece, Shape},
    plan::{Plan, Step},
    pool::Crew,
    roles::{Computed, Roles},
    source::Window,
};
use crate::block::{
    column::{Strings, Values},
    columns::PAGE_ENTRIES,
    nested::{Nested, Numbering},
    pages::Chunk,
};

/// What is needed to write a row group.
pub(super) struct Job {
    pub(super) roles: Arc<Roles>,
    pub(super) plan: Plan<Arc<Window>>,
    pub(super) max_bytes_per_trace: usize,
}

/// What happened to the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) objects_combined: u64,
    pub(super) spans_combined: u64,
    pub(super) spans_discarded: u64,
}

/// A row group of the output.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) chunks: Vec<Chunk>,
    pub(super) counts: Counts,
}

impl Job {
    /// Writes the chunks of all leaves.
    ///
    /// # Errors
    /// Which part is corrupt, or why the output cannot be written.
    pub(super) fn run(self: &Arc<Self>, crew: &mut Crew) -> Result<Encoded, Failure> {
        let windows = &self.plan.parts;
        let combination = self.combine(crew)?;

        let mut rows = vec![0..0; windows.len()];
        for piece in &combination.pieces {
            match piece {
                Piece::Rows { part, rows: wanted } => include(&mut rows[*part as usize], wanted),
                Piece::Combined(number) => {
                    for &(part, row) in &combination.combined[*number as usize].rows {
                        include(&mut rows[part as usize], &(row..row + 1));
                    }
                }
            }
        }
        let Combination { pieces, mut combined, computed, counts } = combination;
        for (part, row) in combined.iter_mut().flat_map(|combined| &mut combined.rows) {
            *row -= rows[*part as usize].start;
        }
        let spans = crew.own.decode(windows, &rows, self.roles.looked.span_id)?;
        let pages = cut(pieces, &combined, &rows, &spans);
        drop(spans);
        let task = Task { job: Arc::clone(self), rows, pages, combined };
        let chunks = crew.for_leaves(&self.roles, move |worker, leaf| worker.chunk(&task, leaf, computed[leaf].clone()))?;
        Ok(Encoded { chunks, counts })
    }

    /// Decides what becomes of the rows that meet.
    fn combine(self: &Arc<Self>, crew: &mut Crew) -> Result<Combination, Failure> {
        let roles = &*self.roles;
        let mut combination = Combination {
            pieces: Vec::new(),
            combined: Vec::new(),
            computed: vec![None; roles.schema.leaves.len()],
            counts: Counts::default(),
        };
        let meeting = |step: &Step| if let Step::Combine(rows) = step { Some(rows.clone()) } else { None };
        let meetings: Arc<[Meeting]> = self.plan.steps.iter().filter_map(meeting).collect();
        let mut rows = vec![0..0; self.plan.parts.len()];
        for &(part, row) in meetings.iter().flatten() {
            include(&mut rows[part as usize], &(row..row + 1));
        }
        let facts = if meetings.is_empty() {
            Vec::new()
        } else {
            let (job, meetings) = (Arc::clone(self), Arc::clone(&meetings));
            crew.for_leaves(roles, move |worker, leaf| {
                let decoded = worker.decode(&job.plan.parts, &rows, leaf)?;
                Ok(Facts::of(&job.roles, leaf, &meetings, decoded))
            })?
        };
        let known = Known::new(roles, &meetings, facts);
        let mut made = Vec::new();
        let mut next = 0;
        for step in &self.plan.steps {
            let meeting = match step {
                Step::Copy { part, rows } => {
                    combination.pieces.push(Piece::Rows { part: *part, rows: rows.clone() });
                    continue;
                }
                Step::Combine(rows) => rows,
            };
            let number = next;
            next += 1;
            let (part, row) = meeting[0];
            let first = Piece::Rows { part, rows: row..row + 1 };
            let others: u64 = meeting[1..].iter().map(|&(part, row)| known.spans(part, row)).sum();
            let counts = &mut combination.counts;
            if known.equal(number) {
                counts.objects_combined += 1;
                counts.spans_combined += others;
                combination.pieces.push(first);
                continue;
            }
            if self.max_bytes_per_trace > 0 && known.size(number) > self.max_bytes_per_trace as u64 {
                counts.spans_discarded += others;
                combination.pieces.push(first);
                continue;
            }
            let tree = combine::combine(&known.rows(number)?, roles.rebatches());
            counts.objects_combined += 1;
            counts.spans_combined += tree.dropped;
            if tree.spans.is_empty() {
                combination.pieces.push(first);
                continue;
            }
            combination.pieces.push(Piece::Combined(combination.combined.len() as u32));
            combination.combined.push(Combined { rows: meeting.clone(), tree });
            made.push(number);
        }
        if !made.is_empty() {
            for (leaf, computed) in combination.computed.iter_mut().enumerate() {
                if let Some(what) = roles.computed[leaf] {
                    *computed = Some(compute(&known, leaf, what, &combination.combined)?);
                }
            }
        }
        Ok(combination)
    }
}

/// What becomes of the rows that meet.
struct Combination {
    /// The row group, in order. Rows are those of the parts.
    pieces: Vec<Piece>,
    combined: Vec<Combined>,
    /// Per leaf: its values for the combined rows, if they are computed.
    computed: Vec<Option<Decoded>>,
    counts: Counts,
}

fn include(known: &mut Range<u32>, wanted: &Range<u32>) {
    let (start, end) =
        if known.start == known.end { (wanted.start, wanted.end) } else { (known.start.min(wanted.start), known.end.max(wanted.end)) };
    *known = start..end;
}

/// Cuts pages where a row ends with enough spans. Rows of the pieces, which were those of the parts, become those that are decoded.
fn cut(pieces: Vec<Piece>, combined: &[Combined], decoded: &[Range<u32>], spans: &[Decoded]) -> Vec<Vec<Piece>> {
    let mut pages = Vec::new();
    let mut page = Vec::new();
    let mut entries = 0;
    let mut add = |piece: Piece, size: usize| {
        entries += size;
        match (&piece, page.last_mut()) {
            (Piece::Rows { part, rows }, Some(Piece::Rows { part: last, rows: before })) if part == last && before.end == rows.start => {
                before.end = rows.end;
            }
            _ => page.push(piece),
        }
        if entries >= PAGE_ENTRIES {
            pages.push(std::mem::take(&mut page));
            entries = 0;
        }
    };
    for piece in pieces {
        match piece {
            Piece::Combined(number) => add(piece, combined[number as usize].tree.spans.len()),
            Piece::Rows { part, rows } => {
                let first = decoded[part as usize].start;
                for row in rows.start - first..rows.end - first {
                    let size = spans[part as usize].shape.entries(row..row + 1) as usize;
                    add(Piece::Rows { part, rows: row..row + 1 }, size);
                }
            }
        }
    }
    if !page.is_empty() {
        pages.push(page);
    }
    pages
}

/// The values of a leaf for all combined rows.
fn compute(known: &Known<'_>, leaf: usize, what: Computed, combined: &[Combined]) -> Result<Decoded, Failure> {
    let looked = known.roles().looked;
    let longs = |leaf: usize, row: &Combined| {
        let of = |&(part, row): &(u32, u32)| known.looked(leaf, part).and_then(|decoded| decoded.long(row)).ok_or_else(|| disagree(part));
        row.rows.iter().map(of).collect::<Result<Vec<_>, _>>()
    };
    let start = |row: &Combined| Ok(longs(looked.start, row)?.into_iter().map(|value| value as u64).min().unwrap_or(0));
    let end = |row: &Combined| Ok(longs(looked.end, row)?.into_iter().map(|value| value as u64).max().unwrap_or(0));
    let root = |row: &Combined| {
        let mut found: &[u8] = &[];
        for &(part, row) in row.rows.iter().rev() {
            let text = known.looked(leaf, part).and_then(|decoded| decoded.string(row)).ok_or_else(|| disagree(part))?;
            found = if text.is_empty() { found } else { text };
        }
        Ok(found.to_vec())
    };
    let numbers = |of: fn(&Nested) -> i32| {
        let mut numbering = Numbering::default();
        let mut nested = Vec::new();
        let mut values = Vec::new();
        for row in combined {
            numbering.number(&row.tree.nodes, &mut nested);
            values.extend(nested.iter().map(|numbers| i64::from(of(numbers))));
        }
        values
    };
    let one_each = || Arc::new(Shape::new(Vec::new(), Vec::new(), 0, combined.len()));
    let listed = |levels: &dyn Fn(&Tree) -> Vec<u8>, definition: u8| {
        let repetition: Vec<u8> = combined.iter().flat_map(|row| levels(&row.tree)).collect();
        let entries = repetition.len();
        Arc::new(Shape::new(repetition, vec![definition; entries], definition, entries))
    };
    let stats = || listed(&|tree| (0..tree.stats.len()).map(|at| u8::from(at > 0)).collect(), 1);
    let spans = || listed(&|tree| tree.spans.iter().map(|span| span.repetition).collect(), 3);
    let every = |row: &dyn Fn(&Combined) -> Result<u64, Failure>| {
        combined.iter().map(|combined| row(combined).map(|value| value as i64)).collect::<Result<Vec<_>, _>>()
    };
    let of_stats = |of: fn(&combine::Stats) -> i64| Values::Long(combined.iter().flat_map(|row| row.tree.stats.iter().map(of)).collect());
    let (shape, values) = match what {
        Computed::Start => (one_each(), Values::Long(every(&start)?)),
        Computed::End => (one_each(), Values::Long(every(&end)?)),
        Computed::Duration => (one_each(), Values::Long(every(&|row| Ok(end(row)?.wrapping_sub(start(row)?)))?)),
        Computed::Root => (one_each(), strings(combined.iter().map(root).collect::<Result<Vec<_>, _>>()?)?),
        Computed::Service => {
            (stats(), strings(combined.iter().flat_map(|row| &row.tree.stats).map(|stats| stats.service.clone()).collect())?)
        }
        Computed::ServiceSpans => (stats(), of_stats(|stats| stats.spans)),
        Computed::ServiceErrors => (stats(), of_stats(|stats| stats.errors)),
        Computed::Left => (spans(), Values::Long(numbers(|numbers| numbers.left))),
        Computed::Right => (spans(), Values::Long(numbers(|numbers| numbers.right))),
        Computed::Parent => (spans(), Values::Long(numbers(|numbers| numbers.parent))),
        Computed::Children => (spans(), Values::Long(numbers(|numbers| numbers.children))),
        Computed::ScopeSpans => {
            let shape = listed(&|tree| tree.scopes.iter().map(|scope| scope.repetition).collect(), 2);
            (shape, Values::Long(combined.iter().flat_map(|row| row.tree.spans_of_scopes.iter().copied()).collect()))
        }
    };
    Ok(Decoded { shape, values, first: 0 })
}

fn strings(texts: Vec<Vec<u8>>) -> Result<Values, Failure> {
    let mut strings = Strings::default();
    for text in texts {
        strings.push(&text).map_err(|what| Failure::Part(0, what))?;
    }
    Ok(Values::Bytes(strings))
}
