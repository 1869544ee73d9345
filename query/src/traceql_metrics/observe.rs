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

use std::sync::Arc;

use super::{
    cells::{Cells, Number},
    error::MetricsError,
    exemplars::{self, Exemplar},
    labels::{Group, LabelValue},
    partial::Partial,
    request::{COMPARED, COMPARED_SCOPES, MetricsRequest, SERVICE_NAME, Shape, service_name},
    rows::{self, Axis, Locals, Rows},
};
use crate::{
    columns::{Batch, Vector},
    exec::Exec,
    traceql::{Field, MetricsFunction, Query, Scope},
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
            return self.compare(batch, matched);
        }
        let starts = read(batch.starts_ns())?;
        let argument = request.function().argument().map(|field| vector_of(batch, field)).transpose()?;
        let by = request.by().iter().map(|field| vector_of(batch, field)).collect::<Result<Vec<_>, _>>()?;
        if by.is_empty() && argument.is_none() {
            self.count_all(&request, &starts, matched)?;
        } else {
            let argument = argument.as_deref().map(|vector| (vector, request.shape()));
            let rows = Rows::new(request.window(), &starts, matched, argument);
            let by: Vec<&Vector> = by.iter().map(AsRef::as_ref).collect();
            self.count_rows(&request, &rows, &by)?;
        }
        self.choose_exemplars(&request, batch, matched, argument.as_deref(), &by)
    }

    /// Counts spans by nothing but time.
    fn count_all(&mut self, request: &MetricsRequest, starts: &[u64], matched: Option<&[u32]>) -> Result<(), MetricsError> {
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
        Ok(())
    }

    fn count_rows(&mut self, request: &MetricsRequest, rows: &Rows, by: &[&Vector]) -> Result<(), MetricsError> {
        if rows.spans.is_empty() {
            return Ok(());
        }
        let (locals, local_groups) = rows::groups(by, &rows.spans);
        let groups = &mut self.partial.groups;
        // Groups that begin may move others, so their numbers are taken when all are there.
        for group in &local_groups {
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
    fn choose_exemplars(
        &mut self,
        request: &MetricsRequest,
        batch: &Batch,
        matched: Option<&[u32]>,
        argument: Option<&Vector>,
        by: &[Arc<Vector>],
    ) -> Result<(), MetricsError> {
        if request.exemplars() == 0 {
            return Ok(());
        }
        let (ids, offsets, starts) = (read(batch.trace_ids())?, read(batch.trace_offsets())?, read(batch.starts_ns())?);
        let mut threshold = self.partial.exemplars.threshold(request);
        let mut spans: Vec<(u32, Option<Number>)> = Vec::new();
        for (trace, id) in ids.iter().enumerate() {
            if exemplars::priority(*id) >= threshold {
                continue;
            }
            spans.clear();
            let all = offsets[trace]..offsets[trace + 1];
            let counted = |span: u32| {
                request.window().interval(starts[span as usize])?;
                let Some(vector) = argument else { return Some((span, None)) };
                let number = rows::number(&vector.get(span as usize)).filter(|number| number.counts(request.shape()))?;
                Some((span, Some(number)))
            };
            match matched {
                Some(matched) => {
                    let from = matched.partition_point(|span| *span < all.start);
                    let to = matched.partition_point(|span| *span < all.end);
                    spans.extend(matched[from..to].iter().copied().filter_map(counted));
                }
                None => spans.extend(all.filter_map(counted)),
            }
            if spans.is_empty() {
                continue;
            }
            let (span, number) = spans[exemplars::choice(*id, spans.len())];
            let group: Group = by.iter().map(|vector| LabelValue::from(vector.value(span as usize))).collect();
            if !self.partial.exemplars.has_room(request, *id, &group, starts[span as usize]) {
                continue;
            }
            let labels = exemplar_labels(request, batch, span)?;
            let exemplar = Exemplar { group, time: starts[span as usize], number, labels };
            self.partial.exemplars.offer(request, *id, exemplar);
            threshold = self.partial.exemplars.threshold(request);
        }
        Ok(())
    }

    /// Counts each attribute by value, inside and outside of the selection.
    fn compare(&mut self, batch: &Batch, matched: Option<&[u32]>) -> Result<(), MetricsError> {
        let request = Arc::clone(&self.request);
        let (MetricsFunction::Compare { start_ns, end_ns, .. }, Some(selection)) = (request.function(), &self.selection) else {
            return Ok(());
        };
        let starts = read(batch.starts_ns())?;
        let rows = Rows::new(request.window(), &starts, matched, None);
        if rows.spans.is_empty() {
            return Ok(());
        }
        let window = (*start_ns, *end_ns) != (0, 0);
        let within = |span: u32| !window || i64::try_from(starts[span as usize]).is_ok_and(|start| *start_ns < start && start <= *end_ns);
        let selected = selection.matched(batch, None)?;
        let intervals = request.window().intervals();
        // The place of a span in the counts of a value: of the baseline first, then of the selection.
        let mut places = rows.intervals;
        let mut selected = selected.as_ref().map(|spans| spans.iter().copied().peekable());
        for (place, span) in places.iter_mut().zip(&rows.spans) {
            let is_selected = selected.as_mut().is_none_or(|selected| {
                while selected.next_if(|other| other < span).is_some() {}
                selected.peek() == Some(span)
            });
            if is_selected && within(*span) {
                *place += intervals as u32;
            }
        }
        for field in compared_fields(&request, batch)? {
            let vector = vector_of(batch, &field)?;
            if matches!(*vector, Vector::Nil(_) | Vector::Duration(_)) {
                continue;
            }
            let locals = Locals::of(&vector, &rows.spans);
            self.compare_field(&request, &field.to_string(), locals, &places)?;
        }
        Ok(())
    }

    fn compare_field(&mut self, request: &MetricsRequest, key: &str, locals: Locals, places: &[u32]) -> Result<(), MetricsError> {
        const ABSENT: u32 = u32::MAX;
        // Different numbers may stand for the same value.
        let mut unique: std::collections::HashMap<LabelValue, u32> = std::collections::HashMap::with_capacity(locals.values.len());
        let number = |value: LabelValue| {
            if value == LabelValue::Nil {
                return ABSENT;
            }
            let next = unique.len() as u32;
            *unique.entry(value).or_insert(next)
        };
        let numbers: Vec<u32> = locals.values.into_iter().map(number).collect();
        let width = 2 * request.window().intervals();
        let mut totals = vec![0u64; width];
        let mut counts = Vec::new();
        let too_many = unique.len() > request.max_values();
        if too_many {
            for (local, place) in locals.numbers.iter().zip(places) {
                totals[*place as usize] += u64::from(numbers[*local as usize] != ABSENT);
            }
        } else {
            counts.resize(unique.len() * width, 0u64);
            for (local, place) in locals.numbers.iter().zip(places) {
                let value = numbers[*local as usize];
                if value != ABSENT {
                    counts[value as usize * width + *place as usize] += 1;
                }
            }
            for row in counts.chunks_exact(width) {
                super::cells::add_counts(&mut totals, row);
            }
        }
        if totals.iter().all(|count| *count == 0) {
            return Ok(());
        }
        let values = (!too_many).then(|| {
            unique.into_iter().map(|(value, number)| {
                let (baseline, selection) = counts[number as usize * width..][..width].split_at(width / 2);
                (value, [baseline, selection])
            })
        });
        let (baseline, selection) = totals.split_at(width / 2);
        self.partial.comparison.add(request, key, [baseline, selection], values)
    }
}

fn read<T>(found: Result<T, storage::block::BlockError>) -> Result<T, MetricsError> {
    found.map_err(|error| MetricsError::Exec(error.into()))
}

/// The values of a field. Of several events or links the first one that has the field counts, as in Tempo, not the last one that search
/// shows.
fn vector_of(batch: &Batch, field: &Field) -> Result<Arc<Vector>, MetricsError> {
    if !field.is_of_event() && !field.is_of_link() {
        return read(batch.vector(field));
    }
    let elements = read(batch.elements(field))?;
    Ok(Arc::new(elements.values.first_of_each(&elements.offsets)))
}

/// What `compare()` counts of a batch: attributes, some intrinsics, and what the query itself asks for of events and links.
fn compared_fields(request: &MetricsRequest, batch: &Batch) -> Result<Vec<Field>, MetricsError> {
    let mut fields: Vec<Field> = COMPARED.map(Field::Intrinsic).into();
    fields.push(service_name());
    for scope in COMPARED_SCOPES {
        for name in read(batch.attribute_names(scope))? {
            if scope != Scope::Resource || name != SERVICE_NAME {
                fields.push(Field::Attribute { parent: false, scope, name });
            }
        }
    }
    fields.extend(request.query().fields().into_iter().filter(|field| field.is_of_event() || field.is_of_link()));
    Ok(fields)
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
