//! One leaf after the other: decoded from all parts, gathered, written as a chunk. What one thread of a merge does.
//!
//! ```text
//!  part 0 ─ Decoder ─► codes 0 … ─┐
//!  part 1 ─ Decoder ─► codes 1 … ─┴─ runs ─► codes of the new dictionary ─ ChunkWriter ─► Chunk
//! ```
//!
//! A string of an input's dictionary is looked up in the new one once, when the first of its codes comes by; after that codes are
//! replaced by codes. Shapes and what was gathered for them are kept from leaf to leaf, because most leaves of a list share them.

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

/// See the module documentation.
pub(super) struct Worker {
    decoder: Decoder,
    press: Press,
    shapes: VecDeque<Arc<Shape>>,
    gathered: VecDeque<Arc<Gathered>>,
    interner: Interner,
    codes: Vec<u32>,
    lengths: Vec<i64>,
    bytes: Vec<u8>,
    integers: Vec<i64>,
    doubles: Vec<f64>,
    flags: Vec<u8>,
}

impl Worker {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decoder::default(),
            press: Press::new(),
            shapes: VecDeque::new(),
            gathered: VecDeque::new(),
            interner: Interner::default(),
            codes: Vec::new(),
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
        let mut decoded = Vec::with_capacity(rows.len() + 1);
        for (part, (window, rows)) in windows.iter().zip(rows).enumerate() {
            if rows.is_empty() {
                let shape = Arc::new(Shape::new(Vec::new(), Vec::new(), 0, 0));
                decoded.push(Decoded { shape, values: Values::Long(Vec::new()), first: rows.start });
                continue;
            }
            let wrong = |what: String| Failure::Part(part as u32, what);
            let column = window.column(&mut self.decoder, leaf, rows).map_err(wrong)?;
            let Column { repetition, definition, values, max_definition, entries, .. } = column;
            let shape = self.shape(repetition, definition, max_definition, entries);
            if shape.rows() != rows.len() || shape.count() != values.len() {
                return Err(wrong(format!("leaf {leaf} has other levels than rows and values")));
            }
            decoded.push(Decoded { shape, values, first: rows.start });
        }
        // Room for the shapes of as many leaves, of all parts.
        while self.shapes.len() > KEPT * windows.len() {
            self.forget_shape();
        }
        Ok(decoded)
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
        let mut decoded = self.decode(&plan.parts, &task.rows, leaf)?;
        let depth = roles.depth[leaf];
        let origin = match computed {
            Some(computed) => {
                decoded.push(computed);
                Origin::Part(decoded.len() as u32 - 1)
            }
            None if task.combined.is_empty() || depth == 0 => Origin::First,
            None => Origin::Elements(depth),
        };
        let gathered = self.gathered(task, &decoded, origin, max)?;
        let mut writer = ChunkWriter::default();
        self.interner.clear();
        // Codes of the new dictionary by codes of the old ones, where they are known; parts of one row group share a dictionary.
        let mut codes: Vec<(&Arc<Strings>, Vec<u32>)> = Vec::new();
        let mut codes_of = vec![0; decoded.len()];
        if info.layout == Layout::Dictionary {
            for (part, decoded) in decoded.iter().enumerate() {
                let Values::Codes { dictionary, .. } = &decoded.values else { continue };
                let known = codes.iter().position(|(known, _)| Arc::ptr_eq(known, dictionary));
                codes_of[part] = known.unwrap_or(codes.len());
                if known.is_none() {
                    codes.push((dictionary, vec![u32::MAX; dictionary.len()]));
                }
            }
        }
        for page in &gathered.pages {
            let levels = EncodedLevels { repetition: &page.repetition, definition: &page.definition };
            let mismatch = |part: u32| Failure::Part(part, format!("leaf \"{}\" has the wrong type", info.name));
            let values = match (info.layout, info.physical) {
                (Layout::Dictionary, _) => {
                    self.codes.clear();
                    self.codes.reserve(page.values);
                    for run in &page.runs {
                        let range = run.range();
                        match &decoded[run.part as usize].values {
                            Values::Codes { codes: old, dictionary } => {
                                let new = &mut codes[codes_of[run.part as usize]].1;
                                for &code in &old[range] {
                                    let known = &mut new[code as usize];
                                    if *known == u32::MAX {
                                        *known = self.interner.intern(dictionary.get(code as usize)).0;
                                    }
                                    self.codes.push(*known);
                                }
                            }
                            Values::Bytes(strings) => {
                                for at in range {
                                    self.codes.push(self.interner.intern(strings.get(at)).0);
                                }
                            }
                            _ => return Err(mismatch(run.part)),
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
            let strings = self.interner.len();
            writer.page(info, &mut self.press, (page.rows, page.entries), levels, values, strings).map_err(Failure::Write)?;
        }
        drop(codes);
        self.give(decoded);
        let dictionary = (info.layout == Layout::Dictionary).then_some(&self.interner);
        writer.finish(info, &mut self.press, dictionary).map_err(Failure::Write)
    }
}
