//! Counts the spans of batches: the hot loop of metrics.
//!
//! ```text
//!  Batch ─ Exec: pipeline ─► spans ─► Rows: interval, value ─► groups of the batch ─► cells[group, interval]
//!                                                                │ looked up once per batch
//!                                                                ▼
//!                                                             Partial
//! ```
//!
//! Loops run over arrays and numbers; strings are touched once per batch and distinct value. A query that only counts spans needs no array
//! of rows at all.

use std::{ops::Range, sync::Arc};

use foldhash::{HashMap, HashMapExt as _};

use super::{
    cells::{Cells, Number},
    error::MetricsError,
    exemplars::{self, Exemplar},
    labels::{Group, LabelValue},
    partial::Partial,
    request::{MetricsRequest, Shape},
    rows::{self, Axis, Rows},
    tally,
};
use crate::{
    columns::{Batch, Vector},
    exec::Exec,
    traceql::{Field, MetricsFunction, Query},
};

/// Counts batches for one query.
#[derive(Debug)]
pub struct Observer {
    request: Arc<MetricsRequest>,
    exec: Exec,
    /// Finds the selection of `compare()`.
    selection: Option<Exec>,
    partial: Partial,
    inspected_spans: u64,
}

impl Observer {
    /// Nothing counted yet.
    pub fn new(request: Arc<MetricsRequest>) -> Self {
        let selection = match request.function() {
            MetricsFunction::Compare { selection, .. } => Some(Exec::new(&Query::filter(selection))),
            _ => None,
        };
        Self { exec: Exec::new(request.query()), selection, partial: Partial::new(&request), inspected_spans: 0, request }
    }

    /// Counts a batch. Only the spans `among` exist for the query, if given.
    ///
    /// # Errors
    /// The query fails on some span, the batch cannot be read, or the series do not fit into memory.
    pub fn observe(&mut self, batch: &Batch, among: Option<&[bool]>) -> Result<(), MetricsError> {
        let matched = self.exec.matched(batch, among)?;
        self.inspected_spans += batch.spans().map_err(crate::exec::ExecError::from)? as u64;
        self.count(batch, matched.as_deref())
    }

    /// Spans that were looked at.
    pub fn inspected_spans(&self) -> u64 {
        self.inspected_spans
    }

    /// Bytes of memory that the counts need, about.
    pub fn bytes(&self) -> usize {
        self.partial.bytes()
    }

    /// What was counted.
    pub fn finish(self) -> Partial {
        self.partial
    }

    /// Counts these spans, ascending; all when `None`.
    pub(super) fn count(&mut self, batch: &Batch, matched: Option<&[u32]>) -> Result<(), MetricsError> {
        if matched.is_some_and(<[u32]>::is_empty) {
            return Ok(());
        }
        let request = Arc::clone(&self.request);
        if request.shape() == Shape::Compare {
            let Some(selection) = &self.selection else { return Ok(()) };
            return tally::compare(&request, selection, batch, matched, &mut self.partial.comparison);
        }
        let starts = read(batch.starts_ns())?;
        let argument = request.function().argument().map(|field| vector_of(batch, field)).transpose()?;
        let by = request.by().iter().map(|field| vector_of(batch, field)).collect::<Result<Vec<_>, _>>()?;
        if by.is_empty() && argument.is_none() {
            let all_are_inside = self.count_all(&request, &starts, matched)?;
            if request.exemplars() == 0 {
                return Ok(());
            }
            let inside = (!all_are_inside).then(|| Rows::new(request.window(), &starts, matched, None).spans);
            let spans = inside.as_deref().or(matched);
            return self.choose_exemplars(&request, batch, &Counted { spans, ..Counted::default() });
        }
        let rows = Rows::new(request.window(), &starts, matched, argument.as_deref().map(|vector| (vector, request.shape())));
        if rows.spans.is_empty() {
            return Ok(());
        }
        let by: Vec<&Vector> = by.iter().map(AsRef::as_ref).collect();
        let (locals, groups) = rows::groups(&by, &rows.spans);
        self.count_rows(&request, &rows, &locals, &groups)?;
        let counted = Counted { spans: Some(&rows.spans), locals: &locals, groups: &groups, numbers: &rows.numbers };
        self.choose_exemplars(&request, batch, &counted)
    }

    /// Counts spans by nothing but time. Whether all of them are within the window.
    fn count_all(&mut self, request: &MetricsRequest, starts: &[u64], matched: Option<&[u32]>) -> Result<bool, MetricsError> {
        let mut counts = vec![0u64; request.window().intervals()];
        let mut axis = Axis::new(request.window());
        let mut count = |start: u64| {
            if let Some(interval) = axis.interval(start) {
                counts[interval] += 1;
            }
        };
        match matched {
            Some(spans) => spans.iter().for_each(|span| count(starts[*span as usize])),
            None => starts.iter().for_each(|start| count(*start)),
        }
        if counts.iter().any(|count| *count > 0)
            && let Some(group) = self.partial.groups.find(request, &[])?
            && let Cells::Counts(cells) = &mut self.partial.groups.cells
        {
            super::cells::add_counts(&mut cells[group as usize * counts.len()..], &counts);
        }
        Ok(counts.iter().sum::<u64>() == matched.map_or(starts.len(), <[u32]>::len) as u64)
    }

    fn count_rows(&mut self, request: &MetricsRequest, rows: &Rows, locals: &[u32], local_groups: &[Group]) -> Result<(), MetricsError> {
        let groups = &mut self.partial.groups;
        // Groups that begin may move others, so their numbers are taken when all are there.
        for group in local_groups {
            groups.find(request, group)?;
        }
        const BEYOND: u32 = u32::MAX;
        let numbers: Vec<u32> = local_groups.iter().map(|group| groups.known(group).unwrap_or(BEYOND)).collect();
        let intervals = groups.intervals;
        let places = locals.iter().zip(&rows.intervals).map(|(local, interval)| (numbers[*local as usize], *interval as usize));
        match &mut groups.cells {
            Cells::Counts(cells) => {
                for (group, interval) in places.filter(|(group, _)| *group != BEYOND) {
                    cells[group as usize * intervals + interval] += 1;
                }
            }
            cells => {
                for ((group, interval), number) in places.zip(&rows.numbers).filter(|((group, _), _)| *group != BEYOND) {
                    cells.add(group as usize, interval, intervals, *number);
                }
            }
        }
        Ok(())
    }

    /// Takes one span of each trace whose priority is good enough.
    fn choose_exemplars(&mut self, request: &MetricsRequest, batch: &Batch, counted: &Counted<'_>) -> Result<(), MetricsError> {
        if request.exemplars() == 0 || counted.spans.is_some_and(<[u32]>::is_empty) {
            return Ok(());
        }
        let (ids, offsets, starts) = (read(batch.trace_ids())?, read(batch.trace_offsets())?, read(batch.starts_ns())?);
        let threshold = self.partial.exemplars.threshold(request);
        // Best first, so that a slice that is full stays full.
        let traces = ids.iter().zip(0u32..).map(|(id, trace)| (exemplars::priority(*id), trace));
        let traces = BestFirst { rest: traces.filter(|(priority, _)| *priority < threshold).collect(), sorted: Vec::new() };
        let mut slices: HashMap<(u64, u32), usize> = HashMap::new();
        for (priority, trace) in traces {
            if priority >= self.partial.exemplars.threshold(request) {
                break;
            }
            let (id, trace) = (ids[trace as usize], trace as usize);
            let places = counted.places(offsets[trace]..offsets[trace + 1]);
            if places.is_empty() {
                continue;
            }
            let place = places.start + exemplars::choice(id, places.len());
            let span = counted.spans.map_or(place as u32, |spans| spans[place]);
            let time = starts[span as usize];
            let local = counted.locals.get(place).copied().unwrap_or(0);
            let better = slices.entry((exemplars::slice(request, time), local)).or_default();
            if *better >= exemplars::PER_SLICE {
                continue;
            }
            *better += 1;
            let group = counted.groups.get(local as usize).cloned().unwrap_or_default();
            if !self.partial.exemplars.has_room(request, id, &group, time) {
                continue;
            }
            let labels = exemplar_labels(request, batch, span)?;
            let exemplar = Exemplar { group, time, number: counted.numbers.get(place).copied(), labels };
            self.partial.exemplars.offer(request, id, exemplar);
        }
        Ok(())
    }
}

/// Traces by priority. Mostly a few of many are wanted, so they are sorted in portions.
struct BestFirst {
    rest: Vec<(u64, u32)>,
    /// The best ones, the best of them last.
    sorted: Vec<(u64, u32)>,
}

impl Iterator for BestFirst {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<Self::Item> {
        const PORTION: usize = 256;
        if self.sorted.is_empty() {
            let begin = self.rest.len().saturating_sub(PORTION);
            if begin > 0 {
                self.rest.select_nth_unstable_by(begin, |a, b| b.cmp(a));
            }
            self.sorted = self.rest.split_off(begin);
            self.sorted.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.sorted.pop()
    }
}

/// The spans of a batch that were counted. The lists have an entry per span, or none at all.
#[derive(Clone, Copy, Default)]
struct Counted<'c> {
    /// Ascending; all of the batch when `None`.
    spans: Option<&'c [u32]>,
    /// Numbers of groups.
    locals: &'c [u32],
    groups: &'c [Group],
    numbers: &'c [Number],
}

impl Counted<'_> {
    /// Where in the lists the counted ones among these spans are.
    fn places(&self, spans: Range<u32>) -> Range<usize> {
        match self.spans {
            None => spans.start as usize..spans.end as usize,
            Some(counted) => {
                let place = |bound: u32| counted.partition_point(|span| *span < bound);
                place(spans.start)..place(spans.end)
            }
        }
    }
}

pub(super) fn read<T>(found: Result<T, storage::block::BlockError>) -> Result<T, MetricsError> {
    found.map_err(|error| MetricsError::Exec(error.into()))
}

/// The values of a field. Of several events or links the first one that has the field counts, as in Tempo, not the last one that search
/// shows.
pub(super) fn vector_of(batch: &Batch, field: &Field) -> Result<Arc<Vector>, MetricsError> {
    if !field.is_of_event() && !field.is_of_link() {
        return read(batch.vector(field));
    }
    read(batch.first(field))
}

/// The fields of a span that the query looks at, as far as it has them.
fn exemplar_labels(request: &MetricsRequest, batch: &Batch, span: u32) -> Result<Vec<(Box<str>, LabelValue)>, MetricsError> {
    let mut labels = Vec::new();
    for field in request.query().fields() {
        let value = LabelValue::from(vector_of(batch, &field)?.value(span as usize));
        if value != LabelValue::Nil {
            labels.push((field.to_string().into_boxed_str(), value));
        }
    }
    Ok(labels)
}
