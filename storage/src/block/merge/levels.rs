//! The levels of a leaf in the output: copied row by row, or element by element where rows are combined, and where its values lie.
//!
//! ```text
//!  parts    Shape 0, Shape 1            levels of the decoded rows; where each row's entries and values begin
//!  pages    Piece, Piece, …             rows of a part, or a combined row
//!             ▼ gather
//!  Page     levels of the page, and runs of values: (part, begin, length)
//! ```
//!
//! Leaves of one list have equal levels, so what is gathered for one of them is good for all that follow.

use std::{ops::Range, sync::Arc};

use super::combine::{Element, Tree};

/// Levels of some rows of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Of every entry; empty if the leaf is in no list.
    repetition: Vec<u8>,
    /// Of every entry; empty if every entry has a value.
    definition: Vec<u8>,
    max_definition: u8,
    /// First entry and first value of every row, and of the row that would follow.
    rows: Vec<(u32, u32)>,
}

impl Shape {
    /// Levels as they come out of a column; `definition` may be empty if every entry has a value.
    pub(super) fn new(repetition: Vec<u8>, definition: Vec<u8>, max_definition: u8, entries: usize) -> Self {
        let mut rows = Vec::new();
        if repetition.is_empty() && definition.is_empty() {
            rows.extend((0..entries as u32).map(|entry| (entry, entry)));
            rows.push((entries as u32, entries as u32));
            return Self { repetition, definition, max_definition, rows };
        }
        let mut value = 0;
        for entry in 0..entries {
            if repetition.get(entry).is_none_or(|&level| level == 0) {
                rows.push((entry as u32, value));
            }
            value += u32::from(definition.get(entry).is_none_or(|&level| level == max_definition));
        }
        rows.push((entries as u32, value));
        Self { repetition, definition, max_definition, rows }
    }

    /// Its levels: repetition and definition.
    pub(super) fn into_levels(self) -> (Vec<u8>, Vec<u8>) {
        (self.repetition, self.definition)
    }

    /// Whether these are its levels.
    pub(super) fn is(&self, repetition: &[u8], definition: &[u8], max_definition: u8, entries: usize) -> bool {
        self.max_definition == max_definition
            && self.rows.last().is_some_and(|&(known, _)| known as usize == entries)
            && self.definition == definition
            && self.repetition == repetition
    }

    /// Whether an entry of this definition level has a value.
    pub(super) fn has_value(&self, definition: u8) -> bool {
        self.definition.is_empty() || definition == self.max_definition
    }

    /// Number of values.
    pub(super) fn count(&self) -> usize {
        self.rows.last().map_or(0, |&(_, value)| value as usize)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.len() - 1
    }

    /// First value, and one past the last, of a row.
    pub(super) fn values(&self, row: u32) -> Range<u32> {
        self.rows[row as usize].1..self.rows[row as usize + 1].1
    }

    /// Number of entries of rows.
    pub(super) fn entries(&self, rows: Range<u32>) -> u32 {
        self.rows[rows.end as usize].0 - self.rows[rows.start as usize].0
    }

    /// Repetition and definition level of the entries of a row; 0 where the leaf cannot have another.
    pub(super) fn levels(&self, row: u32) -> impl Iterator<Item = (u8, u8)> {
        let entries = self.rows[row as usize].0 as usize..self.rows[row as usize + 1].0 as usize;
        entries.map(|entry| (level(&self.repetition, entry), level(&self.definition, entry)))
    }

    /// Begins of the elements at nesting level `depth` of a row, as (entry, value), and where the last one ends.
    fn elements(&self, row: u32, depth: u8) -> Vec<(u32, u32)> {
        let ((start, mut value), (end, last)) = (self.rows[row as usize], self.rows[row as usize + 1]);
        let mut begins = Vec::new();
        for entry in start..end {
            if level(&self.repetition, entry as usize) <= depth {
                begins.push((entry, value));
            }
            value += u32::from(self.definition.get(entry as usize).is_none_or(|&level| level == self.max_definition));
        }
        begins.push((end, last));
        begins
    }
}

fn level(levels: &[u8], entry: usize) -> u8 {
    levels.get(entry).copied().unwrap_or(0)
}

/// What a page has next. Rows of parts are counted from the first that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Rows of one part.
    Rows { part: u32, rows: Range<u32> },
    /// A combined row, by number.
    Combined(u32),
}

/// A combined row: what it is made of, by part and row, and how.
#[derive(Clone, Debug)]
pub(super) struct Combined {
    pub(super) rows: Vec<(u32, u32)>,
    pub(super) tree: Tree,
}

/// Where a leaf's values of combined rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// They are computed and lie in this part, one row per combined row.
    Part(u32),
    /// They are those of the elements at this nesting level: 1 resources, 2 scopes, 3 spans.
    Elements(u8),
    /// They are those of the first of the rows.
    First,
}

/// Values that follow one another in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) part: u32,
    pub(super) start: u32,
    pub(super) length: u32,
}

/// Levels and places of the values of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) rows: usize,
    pub(super) entries: usize,
    /// As in [`Shape`].
    pub(super) repetition: Vec<u8>,
    /// As in [`Shape`].
    pub(super) definition: Vec<u8>,
    pub(super) runs: Vec<Run>,
    pub(super) values: usize,
}

impl Run {
    /// The values.
    pub(super) fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.length) as usize
    }
}

impl Page {
    /// Adds entries and their values; `repetition` is that of the first one.
    fn push(&mut self, part: u32, shape: &Shape, entries: Range<u32>, values: Range<u32>, repetition: Option<u8>) {
        self.entries += entries.len();
        self.values += values.len();
        let entries = entries.start as usize..entries.end as usize;
        if !shape.repetition.is_empty() {
            let first = self.repetition.len();
            self.repetition.extend_from_slice(&shape.repetition[entries.clone()]);
            if let (Some(level), Some(entry)) = (repetition, self.repetition.get_mut(first)) {
                *entry = level;
            }
        }
        if !shape.definition.is_empty() {
            self.definition.extend_from_slice(&shape.definition[entries]);
        }
        if values.is_empty() {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.part == part && run.start + run.length == values.start => run.length += values.len() as u32,
            _ => self.runs.push(Run { part, start: values.start, length: values.len() as u32 }),
        }
    }
}

/// Gathers the levels of all pages of a leaf. `shapes` has one per part; `origin` says where combined rows come from.
///
/// # Errors
/// A combined row has elements that the leaf of this part does not have.
pub(super) fn gather(
    shapes: &[Arc<Shape>],
    pages: &[Vec<Piece>],
    combined: &[Combined],
    origin: Origin,
) -> Result<Vec<Page>, (u32, &'static str)> {
    let mut gathered = Vec::with_capacity(pages.len());
    for pieces in pages {
        let mut page = Page::default();
        let rows = |page: &mut Page, part: u32, rows: Range<u32>| {
            let shape = &shapes[part as usize];
            let ((entry, value), (entry_end, value_end)) = (shape.rows[rows.start as usize], shape.rows[rows.end as usize]);
            page.push(part, shape, entry..entry_end, value..value_end, None);
            page.rows += rows.len();
        };
        for piece in pieces {
            let number = match piece {
                Piece::Rows { part, rows: range } => {
                    rows(&mut page, *part, range.clone());
                    continue;
                }
                Piece::Combined(number) => *number,
            };
            let row = &combined[number as usize];
            let depth = match origin {
                Origin::Part(part) => {
                    rows(&mut page, part, number..number + 1);
                    continue;
                }
                Origin::First => {
                    let (part, first) = row.rows[0];
                    rows(&mut page, part, first..first + 1);
                    continue;
                }
                Origin::Elements(depth) => depth,
            };
            let elements: &[Element] = match depth {
                1 => &row.tree.resources,
                2 => &row.tree.scopes,
                _ => &row.tree.spans,
            };
            let begins: Vec<_> = row.rows.iter().map(|&(part, row)| shapes[part as usize].elements(row, depth)).collect();
            for element in elements {
                let (part, _) = row.rows[element.row as usize];
                let begins = &begins[element.row as usize];
                let at = element.ordinal as usize;
                let (Some(&(entry, value)), Some(&(entry_end, value_end))) = (begins.get(at), begins.get(at + 1)) else {
                    return Err((part, "leaves disagree about the structure of a row"));
                };
                page.push(part, &shapes[part as usize], entry..entry_end, value..value_end, Some(element.repetition));
            }
            page.rows += 1;
        }
        gathered.push(page);
    }
    Ok(gathered)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row of a leaf `Spans[].Attrs[].Value` below three lists: resources of scopes of spans of values.
    type Row = Vec<Vec<Vec<Vec<u32>>>>;

    /// Entries of a row: levels, and the value if there is one.
    fn entries(row: &Row) -> Vec<(u8, u8, Option<u32>)> {
        let mut out = Vec::new();
        let mut repetition = 0;
        if row.is_empty() {
            out.push((0, 0, None));
        }
        for scopes in row {
            if scopes.is_empty() {
                out.push((repetition, 1, None));
            }
            for spans in scopes {
                if spans.is_empty() {
                    out.push((repetition, 2, None));
                }
                for values in spans {
                    if values.is_empty() {
                        out.push((repetition, 3, None));
                    }
                    for &value in values {
                        out.push((repetition, 4, Some(value)));
                        repetition = 4;
                    }
                    repetition = 3;
                }
                repetition = 2;
            }
            repetition = 1;
        }
        out
    }

    fn shape(rows: &[Row]) -> (Shape, Vec<u32>) {
        let all: Vec<_> = rows.iter().flat_map(entries).collect();
        let levels = |level: fn(&(u8, u8, Option<u32>)) -> u8| all.iter().map(level).collect::<Vec<_>>();
        let shape = Shape::new(levels(|entry| entry.0), levels(|entry| entry.1), 4, all.len());
        (shape, all.iter().filter_map(|entry| entry.2).collect())
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let of = |inner: BoxedStrategy<Vec<u32>>| {
            let spans = prop::collection::vec(inner, 0..3);
            let scopes = prop::collection::vec(spans, 0..3);
            prop::collection::vec(scopes, 0..3)
        };
        prop::collection::vec(of(prop::collection::vec(any::<u32>(), 0..3).boxed()), 1..6)
    }

    fn check(page: &Page, values: &[Vec<u32>], expected: &[Row]) {
        let expected: Vec<_> = expected.iter().flat_map(entries).collect();
        let found: Vec<_> = page.repetition.iter().copied().zip(page.definition.iter().copied()).collect();
        assert_eq!(found, expected.iter().map(|entry| (entry.0, entry.1)).collect::<Vec<_>>());
        let copied: Vec<_> = page
            .runs
            .iter()
            .flat_map(|run| values[run.part as usize][run.start as usize..(run.start + run.length) as usize].iter().copied())
            .collect();
        assert_eq!(copied, expected.iter().filter_map(|entry| entry.2).collect::<Vec<_>>());
        assert_eq!((page.entries, page.values), (expected.len(), copied.len()));
    }

    proptest! {
        #[test]
        fn rows_are_copied_in_any_order(a in rows(), b in rows(), order in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..8)) {
            let ((shape_a, values_a), (shape_b, values_b)) = (shape(&a), shape(&b));
            let mut pieces = Vec::new();
            let mut expected = Vec::new();
            for (second, index) in order {
                let from = if second { &b } else { &a };
                let row = index.index(from.len());
                pieces.push(Piece::Rows { part: second.into(), rows: row as u32..from.len() as u32 });
                expected.extend_from_slice(&from[row..]);
            }
            let shapes = [Arc::new(shape_a), Arc::new(shape_b)];
            let pages = gather(&shapes, &[pieces], &[], Origin::First).expect("rows are there");
            prop_assert_eq!(pages[0].rows, expected.len());
            check(&pages[0], &[values_a, values_b], &expected);
        }

        /// Takes all spans that there are, in the order of rows, into one row: the naive way is to append the lists.
        #[test]
        fn elements_are_copied_by_ordinal(a in rows(), b in rows()) {
            let ((shape_a, values_a), (shape_b, values_b)) = (shape(&a), shape(&b));
            let (first, second) = (&a[a.len() - 1], &b[0]);
            let mut spans = Vec::new();
            let mut expected: Row = Vec::new();
            for (row, tree) in [first, second].into_iter().enumerate() {
                let mut ordinal = 0;
                for scopes in tree {
                    let mut kept = Vec::new();
                    for scope in scopes {
                        for at in 0..scope.len() {
                            let repetition = match (at, kept.is_empty(), expected.is_empty()) {
                                (1.., ..) => 3,
                                (0, false, _) => 2,
                                (0, true, false) => 1,
                                _ => 0,
                            };
                            spans.push(Element { row: row as u32, ordinal, repetition });
                            ordinal += 1;
                        }
                        // What is empty has an entry, too.
                        ordinal += u32::from(scope.is_empty());
                        if !scope.is_empty() {
                            kept.push(scope.clone());
                        }
                    }
                    ordinal += u32::from(scopes.is_empty());
                    if !kept.is_empty() {
                        expected.push(kept);
                    }
                }
            }
            if spans.is_empty() {
                return Ok(());
            }
            let tree = Tree { spans, ..Tree::default() };
            let combined = [Combined { rows: vec![(0, a.len() as u32 - 1), (1, 0)], tree }];
            let shapes = [Arc::new(shape_a), Arc::new(shape_b)];
            let pages = gather(&shapes, &[vec![Piece::Combined(0)]], &combined, Origin::Elements(3)).expect("elements are there");
            check(&pages[0], &[values_a, values_b], &[expected]);
        }
    }

    #[test]
    fn leaves_that_lack_an_element_are_an_error() {
        let (shape, _) = shape(&[vec![vec![vec![vec![1]]]]]);
        let tree = Tree { spans: vec![Element { row: 0, ordinal: 1, repetition: 0 }], ..Tree::default() };
        let combined = [Combined { rows: vec![(0, 0)], tree }];
        assert!(gather(&[Arc::new(shape)], &[vec![Piece::Combined(0)]], &combined, Origin::Elements(3)).is_err());
    }
}
