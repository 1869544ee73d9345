//! One leaf after the other: decoded from all parts, gathered, written as a chunk. What one thread of a merge does.
//!
//! ```text
//!  part 0 ─ Decoder ─► codes ─ table ─► numbers 0 … ─┐
//!  part 1 ─ Decoder ─► codes ─ table ─► numbers 1 … ─┴─ runs ─► codes of the new dictionary ─ ChunkWriter ─► Chunk
//! ```
//!
//! A string of an input's dictionary is looked up once, when the first of its codes comes by; after that codes are replaced by numbers. So
//! one dictionary is in memory at a time, not those of all parts. Numbers become codes in the order in which they are written, as if the
//! rows had never been in several blocks. Shapes and what was gathered for them are kept from leaf to leaf, because most leaves of a list share them.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{
    facts::Decoded,
    group::Job,
    levels::{Combined, Origin, Page, Piece, Run, Shape, gather},
    source::Window,
};
use crate::block::{
    column::{Column, Decoder, Strings, Values},
    interner::Interner,
    pages::{Chunk, ChunkWriter, ColumnError, EncodedLevels, Press, Shared, Values as Written, write_levels},
    schema::Layout,
};

/// Shapes and gathered levels that a worker keeps: as many as leaves of other lists come between two leaves of one list.
const KEPT: usize = 8;

/// Why a leaf cannot be written.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something is wrong with the rows of a part.
    Part(u32, String),
    /// The output cannot be written.
    Write(ColumnError),
    /// There is no thread left.
    Thread(std::io::Error),
}

/// What is to be written: rows of parts, in order.
pub(super) struct Task {
    pub(super) job: Arc<Job>,
    /// Per part: the rows that are decoded. Pieces and combined rows count from the first.
    pub(super) rows: Vec<Range<u32>>,
    pub(super) pages: Vec<Vec<Piece>>,
    pub(super) combined: Vec<Combined>,
}

/// Levels of a leaf's pages, ready to be written.
struct Gathered {
    shapes: Vec<Arc<Shape>>,
    origin: Origin,
    max: (u8, u8),
    pages: Vec<EncodedPage>,
}

struct EncodedPage {
    rows: usize,
    entries: usize,
    values: usize,
    runs: Vec<Run>,
    repetition: Shared,
    definition: Vec<u8>,
}

impl EncodedPage {
    fn new(page: Page, (max_repetition, max_definition): (u8, u8)) -> Self {
        let (mut repetition, mut definition) = (Vec::new(), Vec::new());
        if max_repetition > 0 {
            write_levels(&page.repetition, max_repetition, &mut repetition);
        }
        if max_definition > 0 {
            write_levels(&page.definition, max_definition, &mut definition);
        }
        let Page { rows, entries, values, runs, .. } = page;
        Self { rows, entries, values, runs, repetition: Shared::new(repetition), definition }
    }
}

/// In the place of a number that is not known yet.
const UNKNOWN: u32 = u32::MAX;

fn wrong_type(task: &Task, leaf: usize, part: usize) -> Failure {
    Failure::Part(part as u32, format!("leaf \"{}\" has the wrong type", task.job.roles.schema.leaves[leaf].name))
}

/// See the module documentation.
pub(super) struct Worker {
    decoder: Decoder,
    press: Press,
    shapes: VecDeque<Arc<Shape>>,
    gathered: VecDeque<Arc<Gathered>>,
    interner: Interner,
    codes: Vec<u32>,
    /// Numbers by the codes of a part.
    table: Vec<u32>,
    /// Codes by numbers.
    renumbered: Vec<u32>,
    lengths: Vec<i64>,
    bytes: Vec<u8>,
    integers: Vec<i64>,
    doubles: Vec<f64>,
    flags: Vec<u8>,
}

impl Worker {
    /// Keeps arrays of so many bytes, at most.
    pub(super) fn new(kept: usize) -> Self {
        Self {
            decoder: Decoder::keeping(kept),
            press: Press::new(),
            shapes: VecDeque::new(),
            gathered: VecDeque::new(),
            interner: Interner::default(),
            codes: Vec::new(),
            table: Vec::new(),
            renumbered: Vec::new(),
            lengths: Vec::new(),
            bytes: Vec::new(),
            integers: Vec::new(),
            doubles: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Lets go of what is kept from leaf to leaf of one row group.
    pub(super) fn forget(&mut self) {
        self.gathered.clear();
        self.decoder.forget_levels();
        while !self.shapes.is_empty() {
            self.forget_shape();
        }
    }

    /// Lets go of the shape that was not used for longest.
    fn forget_shape(&mut self) {
        if let Some((repetition, definition)) = self.shapes.pop_back().and_then(Arc::into_inner).map(Shape::into_levels) {
            self.decoder.give_levels(repetition);
            self.decoder.give_levels(definition);
        }
    }

    /// Decodes a leaf of all parts. Parts without rows have none.
    pub(super) fn decode(&mut self, windows: &[Arc<Window>], rows: &[Range<u32>], leaf: usize) -> Result<Vec<Decoded>, Failure> {
        let parts = windows.iter().zip(rows).enumerate();
        let decoded = parts.map(|(part, (window, rows))| self.decode_part(part, window, rows, leaf)).collect();
        self.forget_shapes(windows.len());
        decoded
    }

    fn decode_part(&mut self, part: usize, window: &Window, rows: &Range<u32>, leaf: usize) -> Result<Decoded, Failure> {
        if rows.is_empty() {
            let shape = Arc::new(Shape::new(Vec::new(), Vec::new(), 0, 0));
            return Ok(Decoded { shape, values: Values::Long(Vec::new()), first: rows.start });
        }
        let wrong = |what: String| Failure::Part(part as u32, what);
        let column = window.column(&mut self.decoder, leaf, rows).map_err(wrong)?;
        let Column { repetition, definition, values, max_definition, entries, .. } = column;
        let shape = self.shape(repetition, definition, max_definition, entries);
        if shape.rows() != rows.len() || shape.count() != values.len() {
            return Err(wrong(format!("leaf {leaf} has other levels than rows and values")));
        }
        Ok(Decoded { shape, values, first: rows.start })
    }

    /// Keeps the shapes of a few leaves, of all parts.
    fn forget_shapes(&mut self, parts: usize) {
        while self.shapes.len() > KEPT * parts {
            self.forget_shape();
        }
    }

    /// The same, and takes the strings out: there are numbers of the interner in their place. Those of parts without any are none.
    fn decode_numbers(&mut self, task: &Task, leaf: usize) -> Result<(Vec<Decoded>, Vec<Vec<u32>>), Failure> {
        let windows = &task.job.plan.parts;
        // Parts of one row group come together: they share a dictionary.
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by_key(|&part| windows[part].group());
        let mut all: Vec<_> = windows.iter().map(|_| None).collect();
        let mut last = None;
        for part in order {
            let mut decoded = self.decode_part(part, &windows[part], &task.rows[part], leaf)?;
            let numbers = self.number(&mut decoded.values, &mut last).ok_or_else(|| wrong_type(task, leaf, part))?;
            all[part] = Some((decoded, numbers));
        }
        if let Some(last) = last {
            self.decoder.give_dictionary(last);
        }
        self.forget_shapes(windows.len());
        Ok(all.into_iter().flatten().unzip())
    }

    /// The numbers of strings, which are gone after that; none if these are no strings. `last` is the dictionary that the table is for.
    fn number(&mut self, values: &mut Values, last: &mut Option<Arc<Strings>>) -> Option<Vec<u32>> {
        match std::mem::replace(values, Values::Long(Vec::new())) {
            Values::Codes { mut codes, dictionary } => {
                if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &dictionary)) {
                    self.table.clear();
                    self.table.resize(dictionary.len(), UNKNOWN);
                    if let Some(before) = last.replace(Arc::clone(&dictionary)) {
                        self.decoder.give_dictionary(before);
                    }
                }
                for code in &mut codes {
                    let number = &mut self.table[*code as usize];
                    if *number == UNKNOWN {
                        *number = self.interner.intern(dictionary.get(*code as usize)).0;
                    }
                    *code = *number;
                }
                Some(codes)
            }
            Values::Bytes(strings) => {
                let numbers = strings.iter().map(|string| self.interner.intern(string).0).collect();
                self.decoder.give_values(Values::Bytes(strings));
                Some(numbers)
            }
            values => values.is_empty().then(Vec::new),
        }
    }

    /// Takes memory of decoded rows back, for those that come next.
    fn give(&mut self, decoded: Vec<Decoded>) {
        decoded.into_iter().for_each(|decoded| self.decoder.give_values(decoded.values));
    }

    fn shape(&mut self, repetition: Vec<u8>, definition: Vec<u8>, max_definition: u8, entries: usize) -> Arc<Shape> {
        if let Some(at) = self.shapes.iter().position(|shape| shape.is(&repetition, &definition, max_definition, entries))
            && let Some(known) = self.shapes.remove(at)
        {
            self.shapes.push_front(Arc::clone(&known));
            self.decoder.give_levels(repetition);
            self.decoder.give_levels(definition);
            return known;
        }
        let shape = Arc::new(Shape::new(repetition, definition, max_definition, entries));
        self.shapes.push_front(Arc::clone(&shape));
        shape
    }

    fn gathered(&mut self, task: &Task, decoded: &[Decoded], origin: Origin, max: (u8, u8)) -> Result<Arc<Gathered>, Failure> {
        let is = |known: &Arc<Gathered>| {
            let same = |(a, b): (&Arc<Shape>, &Decoded)| Arc::ptr_eq(a, &b.shape);
            known.origin == origin && known.max == max && known.shapes.len() == decoded.len() && known.shapes.iter().zip(decoded).all(same)
        };
        if let Some(at) = self.gathered.iter().position(is)
            && let Some(known) = self.gathered.remove(at)
        {
            self.gathered.push_front(Arc::clone(&known));
            return Ok(known);
        }
        let shapes: Vec<_> = decoded.iter().map(|decoded| Arc::clone(&decoded.shape)).collect();
        let pages = gather(&shapes, &task.pages, &task.combined, origin).map_err(|(part, what)| Failure::Part(part, what.to_owned()))?;
        let pages = pages.into_iter().map(|page| EncodedPage::new(page, max)).collect();
        let gathered = Arc::new(Gathered { shapes, origin, max, pages });
        self.gathered.push_front(Arc::clone(&gathered));
        self.gathered.truncate(KEPT);
        Ok(gathered)
    }

    /// Writes the chunk of a leaf. `computed` are its values for the combined rows, if they are not copied.
    pub(super) fn chunk(&mut self, task: &Task, leaf: usize, computed: Option<Decoded>) -> Result<Chunk, Failure> {
        let Job { roles, plan, .. } = &*task.job;
        let info = &roles.schema.leaves[leaf];
        let list = &roles.schema.lists[info.list];
        let max = (list.repetition, list.definition + u8::from(info.optional));
        self.interner.clear();
        let coded = info.layout == Layout::Dictionary;
        let (mut decoded, mut numbers) =
            if coded { self.decode_numbers(task, leaf)? } else { (self.decode(&plan.parts, &task.rows, leaf)?, Vec::new()) };
        let depth = roles.depth[leaf];
        let origin = match computed {
            Some(mut computed) => {
                if coded {
                    numbers.push(self.number(&mut computed.values, &mut None).ok_or_else(|| wrong_type(task, leaf, decoded.len()))?);
                }
                decoded.push(computed);
                Origin::Part(decoded.len() as u32 - 1)
            }
            None if task.combined.is_empty() || depth == 0 => Origin::First,
            None => Origin::Elements(depth),
        };
        let gathered = self.gathered(task, &decoded, origin, max)?;
        let mut writer = ChunkWriter::default();
        self.renumbered.clear();
        self.renumbered.resize(self.interner.len(), UNKNOWN);
        // The number of each code.
        let mut order = Vec::new();
        for page in &gathered.pages {
            let levels = EncodedLevels { repetition: &page.repetition, definition: &page.definition };
            let mismatch = |part: u32| wrong_type(task, leaf, part as usize);
            let values = match (info.layout, info.physical) {
                (Layout::Dictionary, _) => {
                    self.codes.clear();
                    self.codes.reserve(page.values);
                    for run in &page.runs {
                        for &number in &numbers[run.part as usize][run.range()] {
                            let code = &mut self.renumbered[number as usize];
                            if *code == UNKNOWN {
                                *code = order.len() as u32;
                                order.push(number);
                            }
                            self.codes.push(*code);
                        }
                    }
                    Written::Codes(&self.codes)
                }
                (_, parquet::basic::Type::BYTE_ARRAY) => {
                    self.lengths.clear();
                    self.bytes.clear();
                    for run in &page.runs {
                        let values = &decoded[run.part as usize].values;
                        for at in run.range() {
                            let string = values.string(at).ok_or_else(|| mismatch(run.part))?;
                            self.lengths.push(string.len() as i64);
                            self.bytes.extend_from_slice(string);
                        }
                    }
                    Written::Bytes(&self.lengths, &self.bytes)
                }
                (_, parquet::basic::Type::DOUBLE) => {
                    self.doubles.clear();
                    for run in &page.runs {
                        let Values::Double(values) = &decoded[run.part as usize].values else { return Err(mismatch(run.part)) };
                        self.doubles.extend_from_slice(&values[run.range()]);
                    }
                    Written::Doubles(&self.doubles)
                }
                (_, parquet::basic::Type::BOOLEAN) => {
                    self.flags.clear();
                    for run in &page.runs {
                        let Values::Bool(values) = &decoded[run.part as usize].values else { return Err(mismatch(run.part)) };
                        self.flags.extend(values[run.range()].iter().map(|&value| u8::from(value)));
                    }
                    Written::Flags(&self.flags)
                }
                _ => {
                    self.integers.clear();
                    for run in &page.runs {
                        let Values::Long(values) = &decoded[run.part as usize].values else { return Err(mismatch(run.part)) };
                        self.integers.extend_from_slice(&values[run.range()]);
                    }
                    Written::Integers(&self.integers)
                }
            };
            let strings = order.len();
            writer.page(info, &mut self.press, (page.rows, page.entries), levels, values, strings).map_err(Failure::Write)?;
        }
        numbers.into_iter().for_each(|numbers| self.decoder.give_codes(numbers));
        self.give(decoded);
        self.interner.renumber(&order);
        let dictionary = coded.then_some(&self.interner);
        writer.finish(info, &mut self.press, dictionary).map_err(Failure::Write)
    }
}
