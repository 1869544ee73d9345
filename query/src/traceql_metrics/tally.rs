//! Counting every attribute of a batch: the hot loop of `compare()`.
//!
//! ```text
//!  spans of an element   places 3 3 7 –   ─►  (3, 2) (7, 1)        a place is an interval of a side; runs of equal ones are one
//!                                                 │
//!  attributes of it      pairs  4 9       ─►  counts[pair 4][3] += 2, [7] += 1, counts[pair 9]…
//!                                                 │  at the end of the batch, once per pair
//!                                                 ▼
//!                                          Comparison: attribute ─► value ─► counts
//! ```
//!
//! Values stay numbers of a dictionary until a batch is counted; text is made only of those that an attribute is compared by. An attribute with
//! too many values costs a count per span and nothing else, once that is known.

use std::sync::Arc;

use foldhash::{HashSet, HashSetExt as _};

use super::{
    compare::Comparison,
    error::MetricsError,
    labels::{LabelRef, LabelValue},
    observe::{read, vector_of},
    request::{COMPARED, COMPARED_SCOPES, MetricsRequest, SERVICE_NAME, service_name},
    rows::{Locals, Rows},
};
use crate::{
    columns::{Batch, Dictionary, Listing, NIL, PairValue, Runs, Vector},
    exec::Exec,
    traceql::{Field, MetricsFunction, Scope},
};

/// Counters that are held at once; attributes that need more are counted one after the other.
const MAX_COUNTERS: usize = 4 << 20;

/// The place of a span that does not count.
const OUTSIDE: u32 = u32::MAX;

/// Counts each attribute of spans by value, inside and outside of the selection.
pub(super) fn compare(
    request: &MetricsRequest,
    selection: &Exec,
    batch: &Batch,
    matched: Option<&[u32]>,
    comparison: &mut Comparison,
) -> Result<(), MetricsError> {
    let Some(places) = Places::new(request, selection, batch, matched)? else { return Ok(()) };
    let mut tally = Tally { request, comparison, places, weights: Vec::new() };
    let mut fields: Vec<Field> = COMPARED.map(Field::Intrinsic).into();
    fields.push(service_name());
    for scope in COMPARED_SCOPES {
        let field = |name| Field::Attribute { parent: false, scope, name };
        let names = match read(batch.listing(scope))? {
            Some(listing) => {
                tally.listing(&listing, &|name| field(name).to_string())?;
                listing.own
            }
            None => read(batch.attribute_names(scope))?,
        };
        fields.extend(names.into_iter().filter(|name| scope != Scope::Resource || name != SERVICE_NAME).map(field));
    }
    fields.extend(request.query().fields().into_iter().filter(|field| field.is_of_event() || field.is_of_link()));
    for field in fields {
        let runs = if field.is_of_event() || field.is_of_link() {
            Runs { offsets: None, values: Arc::unwrap_or_clone(vector_of(batch, &field)?) }
        } else {
            read(batch.runs(&field))?
        };
        tally.field(&field.to_string(), &runs)?;
    }
    Ok(())
}

/// Where each span counts.
struct Places {
    /// By span: its interval, counted from `first`, and `intervals` more in the selection; or [`OUTSIDE`].
    of_span: Vec<u32>,
    /// The first interval with spans.
    first: usize,
    /// Number of intervals from there to the last one with spans.
    intervals: usize,
}

impl Places {
    /// `None` when no span counts.
    fn new(request: &MetricsRequest, selection: &Exec, batch: &Batch, matched: Option<&[u32]>) -> Result<Option<Self>, MetricsError> {
        let MetricsFunction::Compare { start_ns, end_ns, .. } = request.function() else { return Ok(None) };
        let starts = read(batch.starts_ns())?;
        let rows = Rows::new(request.window(), &starts, matched, None);
        let (Some(&first), Some(&last)) = (rows.intervals.iter().min(), rows.intervals.iter().max()) else { return Ok(None) };
        let window = (*start_ns, *end_ns) != (0, 0);
        let within = |span: u32| !window || i64::try_from(starts[span as usize]).is_ok_and(|start| *start_ns < start && start <= *end_ns);
        let intervals = last - first + 1;
        let mut of_span = vec![OUTSIDE; starts.len()];
        rows.spans.iter().zip(&rows.intervals).for_each(|(span, interval)| of_span[*span as usize] = interval - first);
        let select = |span: u32, place: &mut u32| {
            if *place != OUTSIDE && within(span) {
                *place += intervals;
            }
        };
        match selection.matched(batch, None)? {
            None => of_span.iter_mut().zip(0..).for_each(|(place, span)| select(span, place)),
            Some(selected) => selected.into_iter().for_each(|span| select(span, &mut of_span[span as usize])),
        }
        Ok(Some(Self { of_span, first: first as usize, intervals: intervals as usize }))
    }

    fn width(&self) -> usize {
        2 * self.intervals
    }
}

/// How many spans of each element count in which place.
struct Weights {
    /// Where the weights of each element begin, and where the last ones end.
    offsets: Vec<u32>,
    /// Places and numbers of spans.
    weights: Vec<(u32, u32)>,
}

impl Weights {
    fn new(places: &[u32], offsets: &[u32]) -> Self {
        let mut all = Self { offsets: vec![0], weights: Vec::new() };
        for range in offsets.windows(2) {
            let begin = all.weights.len();
            for &place in places[range[0] as usize..range[1] as usize].iter().filter(|place| **place != OUTSIDE) {
                // There are few places, and those of neighbours are often the same.
                match all.weights[begin..].iter_mut().rev().find(|(known, _)| *known == place) {
                    Some((_, count)) => *count += 1,
                    None => all.weights.push((place, 1)),
                }
            }
            all.offsets.push(all.weights.len() as u32);
        }
        all
    }

    fn of(&self, element: usize) -> &[(u32, u32)] {
        &self.weights[self.offsets[element] as usize..self.offsets[element + 1] as usize]
    }
}

/// Values of one attribute or of many, as numbers.
struct Coded<'v> {
    /// One per element, or per entry of `entries`; [`NIL`] for none.
    numbers: &'v [u32],
    /// Where the entries of each element begin.
    entries: Option<&'v [u32]>,
    /// How many numbers there are.
    count: usize,
    /// Attributes by canonical text.
    keys: &'v [String],
    /// The attribute that a number is a value of.
    key_of: &'v dyn Fn(u32) -> u32,
    /// What a number stands for.
    label: &'v dyn Fn(u32) -> LabelRef<'v>,
}

/// What numbers belong to: spans, or elements that have several.
#[derive(Clone, Copy)]
enum Elements<'w> {
    Spans(&'w [u32]),
    Weighted(&'w Weights),
}

impl Elements<'_> {
    /// Calls `add` with each place in which spans of an element count, and their number.
    #[inline]
    fn each(self, element: usize, mut add: impl FnMut(u32, u32)) {
        match self {
            Self::Spans(places) => {
                if places[element] != OUTSIDE {
                    add(places[element], 1);
                }
            }
            Self::Weighted(weights) => weights.of(element).iter().for_each(|(place, count)| add(*place, *count)),
        }
    }

    /// Whether some span of an element counts.
    #[inline]
    fn counts(self, element: usize) -> bool {
        match self {
            Self::Spans(places) => places[element] != OUTSIDE,
            Self::Weighted(weights) => !weights.of(element).is_empty(),
        }
    }
}

impl Coded<'_> {
    /// Calls `found` with each number and the element that has it.
    #[inline]
    fn each(&self, mut found: impl FnMut(usize, u32)) {
        let Some(entries) = self.entries else {
            return self
                .numbers
                .iter()
                .enumerate()
                .filter(|(_, number)| **number != NIL)
                .for_each(|(element, number)| found(element, *number));
        };
        for (element, &begin) in entries.iter().enumerate() {
            let end = entries.get(element + 1).map_or(self.numbers.len(), |&end| end as usize);
            for &number in self.numbers[begin as usize..end].iter().filter(|number| **number != NIL) {
                found(element, number);
            }
        }
    }
}

/// Counts of a batch.
struct Tally<'r> {
    request: &'r MetricsRequest,
    comparison: &'r mut Comparison,
    places: Places,
    /// By the offsets of the elements.
    weights: Vec<(Arc<Vec<u32>>, Arc<Weights>)>,
}

impl Tally<'_> {
    /// Counts the values of a field.
    fn field(&mut self, key: &str, Runs { offsets, values }: &Runs) -> Result<(), MetricsError> {
        let keys = [key.to_owned()];
        let coded = |numbers, count, label| Coded { numbers, entries: None, count, keys: &keys, key_of: &|_| 0, label };
        match values {
            Vector::Nil(_) | Vector::Duration(_) => Ok(()),
            Vector::Text(texts) => {
                let label = |code| text(&texts.dictionary, code);
                self.count(&coded(&texts.codes, texts.dictionary.len(), &label), offsets.as_ref())
            }
            values => {
                let all: Vec<u32> = (0..values.len() as u32).collect();
                let Locals { mut numbers, values } = Locals::of(values, &all);
                if let Some(nil) = values.iter().position(|value| *value == LabelValue::Nil) {
                    numbers.iter_mut().filter(|number| **number == nil as u32).for_each(|number| *number = NIL);
                }
                let label = |number: u32| LabelRef::from(&values[number as usize]);
                self.count(&coded(&numbers, values.len(), &label), offsets.as_ref())
            }
        }
    }

    /// Counts the attributes of a list.
    fn listing(&mut self, listing: &Listing, canonical: &dyn Fn(String) -> String) -> Result<(), MetricsError> {
        let keys: Vec<String> = listing.keys.iter().cloned().map(canonical).collect();
        let label = |number: u32| match &listing.pairs[number as usize].value {
            PairValue::Text(code) => text(&listing.dictionary, *code),
            PairValue::Other(value) => LabelRef::from(value),
        };
        let coded = Coded {
            numbers: &listing.numbers,
            entries: Some(&listing.entries),
            count: listing.pairs.len(),
            keys: &keys,
            key_of: &|number| listing.pairs[number as usize].key,
            label: &label,
        };
        self.count(&coded, listing.offsets.as_ref())
    }

    fn count(&mut self, coded: &Coded<'_>, offsets: Option<&Arc<Vec<u32>>>) -> Result<(), MetricsError> {
        let weights = offsets.map(|offsets| self.weights(offsets));
        let Self { request, comparison, places, .. } = self;
        let elements = weights.as_ref().map_or(Elements::Spans(&places.of_span), |weights| Elements::Weighted(weights));
        let mut used = vec![false; coded.count];
        coded.each(|element, number| used[number as usize] |= elements.counts(element));
        let mut numbers: Vec<(u32, u32)> =
            used.iter().zip(0..).filter(|(used, _)| **used).map(|(_, number)| ((coded.key_of)(number), number)).collect();
        numbers.sort_unstable();
        let mut attributes: Vec<Attribute<'_>> = Vec::new();
        for numbers in numbers.chunk_by(|left, right| left.0 == right.0) {
            let key = &coded.keys[numbers[0].0 as usize];
            attributes.push(Attribute { key, too_many: has_too_many(request, comparison, key, numbers, coded), numbers });
        }
        let width = places.width();
        let mut rest = attributes.as_slice();
        while !rest.is_empty() {
            let mut counters = 0;
            let fitting = rest.iter().take_while(|attribute| {
                counters += attribute.slots() * width;
                counters <= MAX_COUNTERS
            });
            let (now, later) = rest.split_at(fitting.count().max(1));
            rest = later;
            let counts = counts(coded, elements, now, width);
            let mut counts = counts.chunks_exact(width);
            for attribute in now {
                let rows: Vec<&[u32]> = counts.by_ref().take(attribute.slots()).collect();
                add(request, comparison, places, attribute, &rows, coded)?;
            }
        }
        Ok(())
    }

    fn weights(&mut self, offsets: &Arc<Vec<u32>>) -> Arc<Weights> {
        if let Some((_, known)) = self.weights.iter().find(|(known, _)| Arc::ptr_eq(known, offsets)) {
            return Arc::clone(known);
        }
        let weights = Arc::new(Weights::new(&self.places.of_span, offsets));
        self.weights.push((Arc::clone(offsets), Arc::clone(&weights)));
        weights
    }
}

/// Whether an attribute has too many values, in this batch or before.
fn has_too_many(request: &MetricsRequest, comparison: &Comparison, key: &str, numbers: &[(u32, u32)], coded: &Coded<'_>) -> bool {
    let most = request.max_values();
    // Different numbers may stand for the same value.
    let distinct_too_many = || {
        let mut distinct = HashSet::new();
        numbers.iter().any(|(_, number)| distinct.insert((coded.label)(*number)) && distinct.len() > most)
    };
    comparison.is_overflowed(key) || numbers.len() > most && distinct_too_many()
}

/// Adds the rows of an attribute.
fn add(
    request: &MetricsRequest,
    comparison: &mut Comparison,
    places: &Places,
    attribute: &Attribute<'_>,
    rows: &[&[u32]],
    coded: &Coded<'_>,
) -> Result<(), MetricsError> {
    let mut totals = vec![0u32; places.width()];
    rows.iter().for_each(|row| totals.iter_mut().zip(*row).for_each(|(total, count)| *total += count));
    let (baseline, selection) = totals.split_at(places.intervals);
    let values = (!attribute.too_many).then(|| {
        attribute.numbers.iter().zip(rows).map(|((_, number), row)| {
            let (baseline, selection) = row.split_at(places.intervals);
            ((coded.label)(*number), [baseline, selection])
        })
    });
    comparison.add(request, attribute.key, places.first, [baseline, selection], values)
}

/// An attribute with the numbers of its values that occur.
struct Attribute<'c> {
    key: &'c str,
    /// With the number of the attribute.
    numbers: &'c [(u32, u32)],
    too_many: bool,
}

impl Attribute<'_> {
    /// Rows of counters that it needs: one for each value, or one for all if there are too many.
    fn slots(&self) -> usize {
        if self.too_many { 1 } else { self.numbers.len() }
    }
}

/// The counts of some attributes, row after row.
fn counts(coded: &Coded<'_>, elements: Elements<'_>, attributes: &[Attribute<'_>], width: usize) -> Vec<u32> {
    let mut row_of = vec![NIL; coded.count];
    let mut rows = 0;
    for attribute in attributes {
        for (place, (_, number)) in (0..).zip(attribute.numbers) {
            row_of[*number as usize] = rows + if attribute.too_many { 0 } else { place };
        }
        rows += attribute.slots() as u32;
    }
    let mut counts = vec![0u32; rows as usize * width];
    coded.each(|element, number| {
        let row = row_of[number as usize];
        if row != NIL {
            let counts = &mut counts[row as usize * width..][..width];
            elements.each(element, |place, count| counts[place as usize] += count);
        }
    });
    counts
}

fn text(dictionary: &Dictionary, code: u32) -> LabelRef<'_> {
    LabelRef::Text(dictionary.text(code))
}
